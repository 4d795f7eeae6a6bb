//! Five questions of an audit, asked by an auditor over SSH as docs/auditor.md says.

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::rig::{Rig, text};

/// db-2 is production; alice and bob work there and on db-1; oscar asks.
fn world() -> Rig {
    let rig = Rig::with_alice_and("capture_limit_bytes = 1000\n");
    let (address, key) = (format!("127.0.0.1:{}", rig.instance_port), rig.path("instance_key.pub"));
    let place = ["instances", "add", "db-2", "--address", &address, "--login", &rig.login];
    rig.ok(&[&place[..], &["--label", "env=prod", "--host-key", key.to_str().unwrap()]].concat());
    rig.add_user("bob");
    rig.add_user_as("oscar", "auditor");
    for (user, instance) in [("alice", "db-2"), ("bob", "db-1"), ("bob", "db-2")] {
        rig.ok(&["access", "allow", "--user", user, "--instance", instance, "--login", &rig.login]);
    }
    rig
}

fn ask(rig: &Rig, user: &str, question: &str) -> Output {
    rig.shared("ssh", user).arg("bastion").arg(question).output().unwrap()
}

/// The answer that oscar gets.
fn told(rig: &Rig, question: &str) -> String {
    let output = ask(rig, "oscar", question);
    assert!(output.status.success(), "{question}: {}", text(output.stderr));
    text(output.stdout)
}

fn ids(rig: &Rig, question: &str) -> Vec<String> {
    let found: Vec<Value> = serde_json::from_str(&told(rig, &format!("{question} --json"))).unwrap();
    found.iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect()
}

fn on(rig: &Rig, user: &str, instance: &str, command: &str) {
    assert!(rig.shared("ssh", user).args([instance, command]).status().unwrap().success());
}

/// The id of the session that ended last.
fn last(rig: &Rig) -> String {
    rig.ended_sessions().last().unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn who_was_root_on_prod_last_week() {
    let rig = world();
    on(&rig, "alice", "db-1", "true");
    on(&rig, "alice", "db-2", "echo in production");
    let prod = last(&rig);
    let question = format!("sessions list --login {} --label env=prod --since 7d", rig.login);
    assert_eq!(ids(&rig, &question), [prod.as_str()]);
    let shown = told(&rig, &question);
    assert!(shown.contains("alice") && shown.contains("exec echo in production"), "what was done: {shown}");
    assert!(ids(&rig, "sessions list --login nobody --label env=prod --since 7d").is_empty());
    // She herself sees her own, and asks after nobody else.
    assert_eq!(ask(&rig, "bob", "sessions list --user alice").status.code(), Some(4));
}

#[test]
fn who_read_a_given_file() {
    let rig = world();
    let (file, other) = (rig.path("payroll.csv"), rig.path("other.csv"));
    fs::write(&file, "name,salary\n").unwrap();
    fs::write(&other, "nothing\n").unwrap();
    let took = |user: &str, from: &std::path::Path| {
        let from = format!("db-1:{}", from.display());
        assert!(rig.shared("scp", user).arg(from).arg(rig.path("taken")).status().unwrap().success());
        last(&rig)
    };
    let copied = took("alice", &file);
    let innocent = took("bob", &other);
    on(&rig, "bob", "db-2", &format!("cat {}", file.display()));
    let shown = last(&rig);
    assert_eq!(ids(&rig, "sessions list --path payroll.csv"), [copied.as_str(), &shown]);
    let output = ask(&rig, "oscar", "sessions search payroll.csv");
    let (found, beside) = (text(output.stdout), text(output.stderr));
    let line = |id: &str, what: &str| found.lines().any(|line| line.starts_with(id) && line.contains(what));
    assert!(line(&copied, "sftp read") && line(&shown, "cat ") && !found.contains(&innocent), "{found}");
    assert!(beside.contains("in 2 sessions; searched 3 sessions"), "{beside}");
    // Under whatever name: by what it held.
    let sum = sha256sum(&file);
    assert!(told(&rig, &format!("sessions search {sum}")).starts_with(&copied));
    // Nothing is an answer too, and says in how much.
    let none = ask(&rig, "oscar", "sessions search no-such-file");
    assert!(none.status.success() && none.stdout.is_empty());
    assert!(text(none.stderr).contains("Nothing found; searched 3 sessions, "));
    assert_eq!(ask(&rig, "alice", "sessions search payroll.csv").status.code(), Some(4));
}

fn sha256sum(file: &std::path::Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(file).output().unwrap();
    text(output.stdout).split(' ').next().unwrap().to_owned()
}

#[test]
fn what_was_typed_before_a_service_went_down() {
    let rig = world();
    on(&rig, "bob", "db-2", "echo long over");
    let earlier = last(&rig);
    let mut ssh = rig.shared("ssh", "alice");
    ssh.args(["-tt", "db-2", "env PS1='ready$ ' sh -i"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut keys, mut screen) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let mut prompt = || {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(b"ready$ ") {
            screen.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    };
    prompt();
    for line in ["echo so much noise", "kill -0 $$ # stops the shop", "echo oops"] {
        keys.write_all(format!("{line}\r").as_bytes()).unwrap();
        prompt();
    }
    let went_down = jiff::Timestamp::now();
    keys.write_all(b"exit\r").unwrap();
    ssh.wait().unwrap();
    let guilty = last(&rig);
    assert_eq!(ids(&rig, &format!("sessions list --instance db-2 --at {went_down}")), [guilty.as_str()]);
    assert_eq!(ids(&rig, "sessions list --instance db-2"), [earlier.as_str(), &guilty]);
    assert!(ids(&rig, "sessions list --instance db-2 --at 1h").is_empty());
    let typed = told(&rig, &format!("sessions transcript {guilty} --commands"));
    let lines: Vec<_> = typed.lines().filter_map(|line| line.split_once("-- ready$ ")).map(|l| l.1).collect();
    assert_eq!(lines, ["echo so much noise", "kill -0 $$ # stops the shop", "echo oops", "exit"], "{typed}");
    let all = told(&rig, &format!("sessions transcript {guilty}"));
    assert!(all.lines().any(|line| line.ends_with("  so much noise")), "{all}");
    assert_eq!(ask(&rig, "bob", &format!("sessions transcript {guilty} --commands")).status.code(), Some(4));
}

#[test]
fn what_was_not_recorded_and_why() {
    let rig = world();
    assert_eq!(told(&rig, "sessions gaps --since 30d").trim(), "Nothing is missing in 0 sessions.");
    on(&rig, "bob", "db-1", "true");
    on(&rig, "alice", "db-2", "head -c 5000 /dev/zero");
    let cut = last(&rig);
    let gaps: Vec<Value> = serde_json::from_str(&told(&rig, "sessions gaps --since 30d --json")).unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0]["session"].as_str(), Some(cut.as_str()));
    // The piece that passes the limit is kept whole or not at all.
    assert!((4000..=5000).contains(&gaps[0]["bytes"].as_u64().unwrap()), "{gaps:?}");
    assert!(gaps[0]["reason"].as_str().unwrap().contains("over 1000 bytes from the instance"));
    assert!(gaps[0]["started_at"].is_string());
    let shown = told(&rig, "sessions gaps");
    assert!(shown.contains("GAPS") && shown.lines().last().unwrap().starts_with("1     "), "{shown}");
    let of_bob = told(&rig, "sessions gaps --user bob");
    assert!(of_bob.contains("Nothing is missing in 1 session."), "{of_bob}");
    assert_eq!(ask(&rig, "alice", "sessions gaps").status.code(), Some(4));
}

#[test]
fn is_anything_missing_or_changed() {
    let rig = world();
    on(&rig, "alice", "db-1", "echo evidence");
    let id = last(&rig);
    assert!(told(&rig, "logs verify").contains("1 tapes (1 opened): whole and unchanged"));
    assert!(told(&rig, &format!("sessions verify {id}")).contains("every frame opens"));
    assert_eq!(ask(&rig, "bob", "logs verify").status.code(), Some(4));
    fs::remove_file(rig.path(&format!("bastion/state/tapes/{id}.tape"))).unwrap();
    for question in ["logs verify".to_owned(), format!("sessions verify {id}")] {
        let output = ask(&rig, "oscar", &question);
        let says = text(output.stderr);
        assert!(output.status.code() == Some(10) && says.contains(&id), "{question}: {says}");
    }
}
