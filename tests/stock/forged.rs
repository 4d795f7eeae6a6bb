//! Events that somebody writes into the trail while the daemon is down, who has the disk and not the keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use keystore::journal;

use crate::rig::{Rig, text};

/// Appends `events`, as well chained and as like the bastion's own as anybody can make them. Returns the first number.
fn forge(state: &Path, events: &[String]) -> u64 {
    let file = segment(state);
    let mut lines = fs::read_to_string(&file).unwrap();
    let last = lines.lines().last().unwrap().to_owned();
    let mut words = last.split(' ');
    let (mut seq, mut prev) = (words.next().unwrap().parse().unwrap(), words.next().unwrap().to_owned());
    let mark = last.split("\"mark\":\"").nth(1).unwrap().split('"').next().unwrap();
    let first = seq + 1;
    for event in events {
        seq += 1;
        let payload = format!(
            "{{\"time\":\"{}\",\"seq\":{seq},\"prev\":\"{prev}\",\"mark\":\"{mark}\",{event}}}",
            jiff::Timestamp::now()
        );
        let hash = journal::chain_hash(&prev, seq, payload.as_bytes());
        lines.push_str(&format!("{seq} {hash} {payload}\n"));
        prev = hash;
    }
    fs::write(&file, lines).unwrap();
    assert!(journal::verify(&state.join("audit/journal")).is_ok(), "the chain holds");
    first
}

fn segment(state: &Path) -> PathBuf {
    let found = fs::read_dir(state.join("audit/journal")).unwrap().map(|entry| entry.unwrap().path());
    found.filter(|path| path.extension().is_some_and(|kind| kind == "journal")).max().unwrap()
}

fn trail(rig: &Rig) -> Vec<serde_json::Value> {
    let all = rig.ok(&["logs", "export", "--start", "1h", "--format", "ndjson"]);
    all.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What an attacker would like to have happened: a login, an administrator, a tape that was deleted in good order, another
/// store, and that it all was told by a run that began and ended well.
fn wished(session: &str) -> Vec<String> {
    [
        "\"event\":\"daemon_started\",\"version\":\"0.1.0\"",
        "\"event\":\"user_added\",\"user\":\"mallory\",\"by\":\"root\",\"roles\":[\"admin\"]",
        &format!(
            "\"event\":\"recording_deleted\",\"user\":\"alice\",\"session\":\"{session}\",\"digest\":\"00\",\"reason\":\"kept for 1d\""
        ),
        "\"event\":\"store_replaced\",\"reason\":\"a backup was restored\"",
        "\"event\":\"daemon_stopped\",\"reason\":\"told to stop\"",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn events_forged_while_the_daemon_was_down_are_told_of_first_and_nobody_believes_them() {
    let mut rig = Rig::with_alice();
    rig.ssh("alice", "echo first");
    let session = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    let state = rig.path("bastion/state");
    let key = rig.path("bastion/audit_key.pub");
    let copied = ["logs", "verify", "--state", state.to_str().unwrap(), "--trust", key.to_str().unwrap()];
    // After a clean stop, and after a crash.
    for (round, clean) in [true, false].into_iter().enumerate() {
        let before = trail(&rig);
        if clean {
            rig.stop()
        } else {
            rig.kill_9()
        }
        let first = forge(&state, &wished(&session));
        // Without a restart and without the keys nobody can tell whose the end of the trail is, and that is said; an earlier
        // forgery is named all the same.
        let output = rig.run(&copied);
        let (said, code) = (text(output.stdout) + &text(output.stderr), output.status.code());
        match round {
            0 => assert!(code == Some(0) && said.contains("events are not signed yet"), "{said}"),
            _ => assert!(code == Some(10) && said.contains("were forged"), "{said}"),
        }
        rig.serve();
        let after = trail(&rig);
        let new: Vec<_> = after.iter().filter(|event| event["seq"].as_u64().unwrap() >= first).collect();
        let names: Vec<_> = new.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names[..3], ["trail_forged", "checkpoint_signed", "daemon_started"], "{round}");
        assert_eq!((&new[0]["from"], &new[0]["through"]), (&first.into(), &(first + 4).into()));
        assert!(before.iter().all(|event| after.contains(event)), "what was there before is there");
        assert!(!after.iter().any(|event| event["user"] == "mallory" || event["event"] == "store_replaced"));
        let status = rig.ok(&["status"]);
        assert!(status.contains(&format!("WARNING: events {first} to {}", first + 4)), "{status}");
        // The tape is there, and proves itself.
        rig.ok(&["sessions", "verify", &session]);
        let kept = state.join("audit/forged").join(new[0]["kept"].as_str().unwrap());
        assert!(fs::read_to_string(&kept).unwrap().contains("mallory"));
    }
    let live = rig.run(&["logs", "verify"]);
    rig.stop();
    for output in [live, rig.run(&copied)] {
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(10), "{said}");
        for part in ["audit/forged/", "were forged", "and 1 more times", "All else is whole"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn an_honest_end_that_was_not_signed_is_adopted_without_a_word() {
    let mut rig = Rig::with_alice();
    rig.ssh("alice", "echo first");
    rig.ended_sessions();
    let before = trail(&rig);
    rig.kill_9();
    let state = rig.path("bastion/state");
    let said = rig.ok(&["logs", "verify", "--state", state.to_str().unwrap()]);
    assert!(said.contains("events are not signed yet"), "{said}");
    rig.serve();
    let after = trail(&rig);
    assert!(before.iter().zip(&after).all(|(one, other)| one == other));
    let since: Vec<_> = after[before.len()..].iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(since.contains(&"daemon_started") && !since.contains(&"trail_forged"), "{since:?}");
    assert!(!state.join("audit/forged").exists() && !rig.ok(&["status"]).contains("forged"));
    rig.ok(&["logs", "verify"]);
    rig.stop();
    let said = rig.ok(&["logs", "verify", "--state", state.to_str().unwrap()]);
    assert!(!said.contains("not signed"), "a clean stop signs all: {said}");
}

#[test]
fn events_forged_under_a_running_daemon_are_named_by_it() {
    let rig = Rig::with_alice();
    let state = rig.path("bastion/state");
    let first = forge(&state, &wished("s")[1..2]);
    let output = rig.run(&["logs", "verify"]);
    let said = text(output.stderr);
    assert!(output.status.code() == Some(10) && said.contains(&format!("record {first}")), "{said}");
}

#[test]
fn a_trail_whose_signed_part_was_rewritten_is_not_served() {
    let mut rig = Rig::with_alice();
    rig.stop();
    let state = rig.path("bastion/state");
    let file = segment(&state);
    let lines = fs::read_to_string(&file).unwrap();
    fs::write(&file, lines.split_inclusive('\n').take(2).collect::<String>()).unwrap();
    let first = forge(&state, &wished("s"));
    let mut serve = Command::new("timeout");
    serve.args(["30", env!("CARGO_BIN_EXE_keyward"), "serve"]);
    serve.env("KEYWARD_CONFIG", rig.path("bastion/keyward.toml"));
    let refused = serve.output().unwrap();
    let said = text(refused.stderr);
    assert!(!refused.status.success() && said.contains(&format!("record {first}")), "{said}");
    assert!(!state.join("audit/forged").exists());
}
