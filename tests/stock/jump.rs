//! The natural path: a plain `ssh -J`, and what goes through it.

use std::fs;
use std::process::{Command, Stdio};

use crate::rig::{Rig, text, wait_for, write};

#[test]
fn a_plain_ssh_jump_is_recorded_and_replayed() {
    let rig = Rig::with_alice();
    let output = rig.ssh("alice", "echo out-word; echo err-word >&2; exit 7");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(7), "{err}");
    assert_eq!(out, "out-word\n");
    assert!(err.contains("err-word"), "{err}");

    let sessions = rig.ended_sessions();
    let [session] = sessions.as_slice() else { panic!("{sessions:?}") };
    assert_eq!(session["user"], "alice");
    assert_eq!(session["instance"], "db-1");
    assert_eq!(session["status"], "closed");
    assert_eq!(session["channels"][0]["kind"], "exec");
    assert_eq!(session["channels"][0]["exit_status"], 7);
    let id = session["id"].as_str().unwrap();
    let replay = rig.ok(&["sessions", "play", id, "--speed", "1000"]);
    assert!(replay.contains("out-word") && replay.contains("err-word"), "{replay}");
    rig.ok(&["sessions", "verify", id]);
    rig.ok(&["logs", "verify"]);
}

#[test]
fn an_instance_that_no_rule_allows_is_denied() {
    let rig = Rig::with_alice();
    rig.add_user("mallory");
    let output = rig.ssh("mallory", "echo reached");
    assert!(!output.status.success());
    assert!(!text(output.stdout).contains("reached"));
    rig.add_instance("db-2");
    let output = rig.client("ssh", "alice").args(["db-2", "echo reached"]).output().unwrap();
    assert!(!output.status.success());
    assert!(!text(output.stdout).contains("reached"));
}

#[test]
fn another_users_key_does_not_open_the_inner_login() {
    let rig = Rig::with_alice();
    rig.add_user("mallory");
    let through_alice = format!("ProxyCommand=ssh -F {} -W %h:22 bastion", rig.config("alice", "").display());
    let output = rig
        .client("ssh", "mallory")
        .env("SSH_ASKPASS", rig.path("code_alice"))
        .args(["-o", &through_alice, "db-1", "echo reached"])
        .output()
        .unwrap();
    let err = text(output.stderr);
    assert!(err.contains("Permission denied (publickey)"), "{err}");
    wait_for("the failed inner login in the trail", || {
        rig.events("ssh_login_failed")
            .iter()
            .any(|e| e["reason"].as_str().unwrap().contains("inner login to db-1"))
    });
    assert!(!text(output.stdout).contains("reached"));
}

#[test]
fn a_file_copied_by_scp_in_both_modes_arrives_whole() {
    let rig = Rig::with_alice();
    for (mode, size) in [("-s", 300_000), ("-O", 300_001)] {
        let content = write(&rig.path("up"), size);
        let there = rig.path("there");
        let output = rig
            .client("scp", "alice")
            .arg(mode)
            .arg(rig.path("up"))
            .arg(format!("db-1:{}", there.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{mode}: {}", text(output.stderr));
        assert_eq!(fs::read(&there).unwrap(), content);
        fs::remove_file(&there).unwrap();
    }
}

#[test]
fn two_way_bulk_through_a_command_is_exact() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("in"), 3_000_000);
    let output = rig
        .client("ssh", "alice")
        .args(["db-1", "cat"])
        .stdin(fs::File::open(rig.path("in")).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(output.stdout == content, "{} of {} bytes", output.stdout.len(), content.len());
}

#[test]
fn a_revoked_key_ends_its_live_session_and_never_works_again() {
    let rig = Rig::with_alice();
    let mut live = rig
        .client("ssh", "alice")
        .args(["db-1", "echo up; sleep 60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("a live session", || {
        rig.json(&["sessions", "list", "--live"]).as_array().is_some_and(|s| !s.is_empty())
    });
    let key = rig.json(&["ssh-keys", "list"])[0]["id"].as_str().unwrap().to_owned();
    let touched = rig.ok(&["ssh-keys", "revoke", &key, "--reason", "laptop stolen"]);
    assert!(touched.contains("@db-1"), "what it touched is told: {touched}");
    wait_for("the session to be cut", || live.try_wait().unwrap().is_some());
    let output = live.wait_with_output().unwrap();
    assert!(text(output.stderr).contains("revoked"), "the user is told why");
    assert!(!text(rig.ssh("alice", "echo reached").stdout).contains("reached"));
    let file = rig.path("id_alice.pub");
    let again = rig.run(&["ssh-keys", "add", "--user", "alice", "--file", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(5), "a revoked key can never be added again");
}

#[test]
fn the_tape_plays_in_stock_asciinema() {
    let rig = Rig::with_alice();
    let output = rig.client("ssh", "alice").args(["-tt", "db-1", "echo seen-on-tape"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    let cast = rig.path("tape.cast");
    rig.ok(&["sessions", "export", &id, "--output", cast.to_str().unwrap(), "--format", "asciicast"]);
    // asciinema wants a terminal: script(1) makes one.
    let cat = format!("asciinema cat {}", cast.display());
    let played =
        Command::new("script").args(["-qec", &cat, "/dev/null"]).env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(played.status.success(), "{}", text(played.stderr));
    assert!(text(played.stdout).contains("seen-on-tape"));
}

/// A code is spent once: until the next one there is nothing to log in with.
pub fn next_code() -> std::time::Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    std::time::Duration::from_millis(30_100 - (now.as_millis() % 30_000) as u64)
}
