//! SIGHUP: new settings for what begins from now on.

use std::fs;
use std::process::{Command, Stdio};

use crate::rig::{Rig, text, wait_for};

/// Writes the file anew and sends SIGHUP; returns what the log says from then on, once it says `answer`.
fn reload(rig: &Rig, change: impl Fn(String) -> String, answer: &str) -> String {
    let file = rig.path("bastion/keyward.toml");
    fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
    let log = || fs::read_to_string(rig.path("log")).unwrap();
    let before = log().len();
    assert!(Command::new("kill").args(["-HUP", &rig.pid().to_string()]).status().unwrap().success());
    wait_for(answer, || log()[before..].contains(answer));
    log()[before..].to_owned()
}

#[test]
fn new_settings_count_from_the_next_login_on_and_live_sessions_go_on() {
    let rig = Rig::with_alice();
    let mut live = rig.client("ssh", "alice");
    let mut live = live.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the session", || rig.json(&["sessions", "list", "--live"])[0]["id"].is_string());
    reload(
        &rig,
        |file| format!("{file}[keys]\nmax_age = \"10d\"\n[mfa]\nremember = \"1h\"\n"),
        "config.reloaded",
    );
    let event = &rig.events("config_reloaded")[0];
    assert_eq!(event["changed"], serde_json::json!(["keys.max_age", "mfa.remember"]));
    assert!(event["by"] == "SIGHUP" && event["at_start"].is_null(), "{event}");

    rig.keygen("id_second");
    let file = rig.path("id_second.pub");
    let second = rig.json(&["ssh-keys", "add", "--user", "alice", "--file", file.to_str().unwrap()]);
    let days = |key: &serde_json::Value| {
        let at = |name: &str| key[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
        (at("expires_at") - at("added_at")) / 86_400
    };
    assert_eq!(days(&second), 10);
    assert!(rig.ssh("alice", "true").status.success(), "gives a code");
    // What was added before has the time of the first warning, since nobody is locked out by surprise.
    wait_for("the shorter life", || days(&rig.json(&["ssh-keys", "show", "K1"])) == 14);
    assert_eq!(rig.events("ssh_key_shortened")[0]["user"], "alice");
    rig.script("code_alice", "exit 1");
    assert_eq!(text(rig.ssh("alice", "echo unasked").stdout), "unasked\n");
    reload(&rig, |file| file.replace("remember", "# remember"), "config.reloaded");
    assert_eq!(rig.ssh("alice", "true").status.code(), Some(255), "what was remembered counts no more");

    std::io::Write::write_all(live.stdin.as_mut().unwrap(), b"still here").unwrap();
    drop(live.stdin.take());
    assert_eq!(text(live.wait_with_output().unwrap().stdout), "still here");
    rig.ok(&["logs", "verify"]);
}

#[test]
fn what_is_bound_to_the_start_is_named_and_a_faulty_file_changes_nothing() {
    let rig = Rig::with_alice();
    let config = rig.path("bastion/keyward.toml");
    let good = fs::read_to_string(&config).unwrap();
    let said = reload(
        &rig,
        |file| {
            format!("drain_secs = 0\n{}[limits]\nper_source = 1\n", file.replace(&rig.port.to_string(), "1"))
        },
        "config.needs_a_restart",
    );
    assert!(said.contains("keys=listen"), "{said}");
    assert_eq!(rig.events("config_reloaded")[0]["at_start"], serde_json::json!(["listen"]));
    assert!(rig.ssh("alice", "true").status.success(), "it listens where it did");

    let events = rig.events("config_reloaded").len();
    for (wrong, named) in [
        ("[mfa]\nremember = \"soon\"\n", "mfa.remember: \"soon\" is not a duration"),
        ("recipients = [\"age1nobody\"]\n", "recording: "),
        ("drain_secs = -1\n", "drain_secs"),
    ] {
        let said = reload(&rig, |_| format!("{good}{wrong}"), "config.faulty");
        assert!(said.contains(named), "{said}");
    }
    fs::write(&config, good).unwrap();
    assert_eq!(rig.events("config_reloaded").len(), events, "a faulty file is not taken, not even in part");
    assert!(rig.ssh("alice", "true").status.success());
}

#[test]
fn a_kind_of_key_that_the_file_no_longer_lists_ends_what_lives_by_it_and_another_kind_lives_on() {
    let rig = Rig::with_alice();
    let session = |rig: &Rig| {
        let mut live = rig.client("ssh", "alice");
        live.args(["db-1", "echo up; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut live = live.spawn().unwrap();
        std::io::Read::read_exact(live.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
        live
    };
    let mut live = session(&rig);
    reload(&rig, |file| format!("{file}[keys]\nalgorithms = [\"ed25519\"]\n"), "config.reloaded");
    std::io::Write::write_all(live.stdin.as_mut().unwrap(), b"still here\n").unwrap();
    std::io::Read::read_exact(live.stdout.as_mut().unwrap(), &mut [0; 11]).unwrap();
    reload(&rig, |file| file.replace("[\"ed25519\"]", "[\"sk-ed25519\"]"), "config.reloaded");
    let stdin = live.stdin.take();
    let told = text(live.wait_with_output().unwrap().stderr);
    drop(stdin);
    assert!(told.contains("Keys of the kind ssh-ed25519 are no longer accepted, and K1 is one."), "{told}");
    assert!(!rig.ssh("alice", "true").status.success());
    let killed = &rig.events("session_killed")[0];
    assert!(killed["reason"].as_str().unwrap().contains("no longer accepted"), "{killed}");
    reload(&rig, |file| file.replace("sk-ed25519", "ed25519"), "config.reloaded");
    assert!(rig.ssh("alice", "true").status.success());
}
