//! The auditor's desk: finding, seeing, watching, handing over; and what was not seen.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{Rig, text, wait_for, write};

/// The events of this name, oldest first.
fn events(rig: &Rig, name: &str) -> Vec<Value> {
    let all = rig.ok(&["logs", "export", "--start", "1h", "--format", "ndjson"]);
    let all = all.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == name).collect()
}

/// One session of every kind, each from a client of its own.
fn every_kind(rig: &Rig) {
    write(&rig.path("up"), 70_000);
    let there = rig.path("there");
    rig.ssh("alice", "echo out; echo err >&2; cat >/dev/null");
    let mut shell = rig.client("ssh", "alice");
    let mut shell = shell.args(["-tt", "db-1"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut typed = shell.stdin.take().unwrap();
    std::io::Write::write_all(&mut typed, b"echo typed\nexit\n").unwrap();
    shell.wait().unwrap();
    for mode in ["-s", "-O"] {
        let copied = rig
            .client("scp", "alice")
            .args([mode, rig.path("up").to_str().unwrap(), &format!("db-1:{}", there.display())])
            .status()
            .unwrap();
        assert!(copied.success(), "{mode}");
    }
}

#[test]
fn the_ledger_adds_up_and_gaps_names_all_that_is_missing() {
    let rig = Rig::with_alice();
    every_kind(&rig);
    let sessions = rig.ended_sessions();
    assert_eq!(sessions.len(), 4);
    let gaps = rig.json(&["sessions", "gaps"]);
    let gaps = gaps.as_array().unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    for session in &sessions {
        for channel in session["channels"].as_array().unwrap() {
            let own = |gap: &&Value| gap["session"] == session["id"] && gap["channel"] == channel["channel"];
            let missing: u64 = gaps.iter().filter(own).map(|gap| number(&gap["bytes"])).sum();
            let passed = number(&channel["bytes_in"]) + number(&channel["bytes_out"]);
            assert_eq!(passed, number(&channel["captured_bytes"]) + missing, "{channel}");
            assert!(gaps.iter().filter(own).all(|gap| !gap["reason"].as_str().unwrap().is_empty()));
        }
    }
    let kinds: Vec<_> = gaps.iter().map(|gap| gap["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["shell", "sftp"], "typing, and the content of files by sftp");
    assert!(rig.ok(&["sessions", "gaps"]).contains("typed at a terminal"));
}

#[test]
fn files_by_sftp_scp_rsync_and_git_are_named_with_size_and_hash() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("up"), 70_000);
    let sum = text(std::process::Command::new("sha256sum").arg(rig.path("up")).output().unwrap().stdout);
    let sum = sum.split_whitespace().next().unwrap();
    let there = rig.path("there");
    let remote = format!("db-1:{}", there.display());
    for mode in ["-s", "-O"] {
        let up = rig.path("up");
        for (from, to) in
            [(up.to_str().unwrap(), remote.as_str()), (&remote, rig.path("back").to_str().unwrap())]
        {
            assert!(rig.client("scp", "alice").args([mode, from, to]).status().unwrap().success(), "{mode}");
        }
        assert_eq!(fs::read(rig.path("back")).unwrap(), content);
    }
    rig.ended_sessions();
    for name in ["file_written", "file_read"] {
        let found = events(&rig, name);
        let paths: Vec<_> = found.iter().map(|e| e["path"].as_str().unwrap()).collect();
        assert_eq!(paths, [there.to_str().unwrap(); 2], "{name}");
        for event in &found {
            assert_eq!(
                (event["bytes"].as_u64(), event["sha256"].as_str()),
                (Some(70_000), Some(sum)),
                "{event}"
            );
            assert_eq!((event["user"].as_str(), event["instance"].as_str()), (Some("alice"), Some("db-1")));
        }
    }
    let client = rig.client("ssh", "alice");
    let ssh = format!("ssh -F {}", client.get_args().nth(1).unwrap().to_str().unwrap());
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(args).env("GIT_SSH_COMMAND", &ssh).env("SSH_ASKPASS", rig.path("code_alice"));
        assert!(
            command.env("SSH_ASKPASS_REQUIRE", "force").status().unwrap().success(),
            "{program} {args:?}"
        );
    };
    run("rsync", &["-e", &ssh, rig.path("up").to_str().unwrap(), &remote]);
    let bare = rig.path("bare.git");
    run("git", &["init", "-q", "--bare", bare.to_str().unwrap()]);
    run("git", &["ls-remote", &format!("db-1:{}", bare.display())]);
    wait_for("git's event", || events(&rig, "file_read").len() == 3);
    assert_eq!(events(&rig, "file_read")[2]["path"], bare.to_str().unwrap());
    assert_eq!(events(&rig, "file_written")[2]["path"], there.to_str().unwrap());
    let with_file = rig.json(&["sessions", "list", "--path", "THERE"]);
    assert_eq!(with_file.as_array().unwrap().len(), 5, "four copies and rsync, not git");
    let listed = rig.json(&["sessions", "list", "--command", "GIT-UPLOAD"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

#[test]
fn a_command_that_only_looks_like_a_copy_is_kept_whole() {
    let rig = Rig::with_alice();
    let output = rig.ssh("alice", "scp -t /nowhere; echo hidden-words");
    assert!(text(output.stdout).contains("hidden-words"));
    rig.ended_sessions();
    assert!(rig.ok(&["sessions", "search", "hidden-words"]).contains("hidden-words"));
    assert_eq!(rig.json(&["sessions", "gaps"]).as_array().unwrap().len(), 0);
}

#[test]
fn a_transcript_is_what_a_person_saw_and_no_escape_reaches_the_auditor() {
    let rig = Rig::with_alice();
    let script = r"printf '\033[31mred\033[0m \033]0;title\007plain\n'; printf 'turn \342\200\256ed\n'; printf 'a\rb\n'";
    let output = rig.client("ssh", "alice").args(["-tt", "db-1", script]).output().unwrap();
    assert!(output.status.success());
    rig.ssh("alice", r"printf '\033[2Jraw\n'");
    let sessions = rig.ended_sessions();
    let id = |n: usize| sessions[n]["id"].as_str().unwrap().to_owned();
    let shown = rig.ok(&["sessions", "transcript", &id(0)]);
    assert!(
        shown.contains("0:00:0") && shown.contains("red plain\n") && shown.contains(r"turn \u{202e}ed"),
        "{shown}"
    );
    let raw = rig.ok(&["sessions", "transcript", &id(1)]);
    assert!(raw.contains(r"\u{1b}[2Jraw"), "{raw}");
    for shown in [&shown, &raw] {
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']));
    }
    // Found as it looked, whatever its case and colours; and not what was never there.
    let found = rig.ok(&["sessions", "search", "RED PLAIN"]);
    assert!(found.starts_with(&id(0)) && found.lines().count() == 1, "{found}");
    assert_eq!(rig.ok(&["sessions", "search", "[31mred plain"]), "");
    assert!(rig.ok(&["sessions", "search", "--regex", "^red +pl"]).contains("red plain"));
    assert_eq!(rig.run(&["sessions", "search", "--regex", "("]).status.code(), Some(2));
    let viewed = events(&rig, "recording_viewed");
    assert_eq!(viewed.iter().filter(|e| e["session"] == id(0).as_str()).count(), 3);
}

#[test]
fn a_watcher_sees_the_session_at_once_and_its_user_is_told() {
    let rig = Rig::with_alice();
    let script = "echo before; read x; echo after; date +%s%N; read y";
    let mut live = rig.client("ssh", "alice");
    let mut live = live.args(["-tt", "db-1", script]);
    live = live.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut live = live.spawn().unwrap();
    let mut session = Value::Null;
    wait_for("output", || {
        session = rig.json(&["sessions", "list", "--live"])[0].clone();
        session["bytes_out"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    let id = session["id"].as_str().unwrap();
    let mut watching = rig.keyward(&["sessions", "watch", id]);
    let mut watching = watching.stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = watching.stdout.take().unwrap();
    let mut shown = String::new();
    let mut until = |wanted: &str| {
        let mut bytes = [0; 4096];
        while !shown.contains(wanted) {
            let read = seen.read(&mut bytes).unwrap();
            assert!(read > 0, "the watch ended: {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    until("before");
    assert_eq!(events(&rig, "recording_viewed").len(), 1, "before the first byte");
    let mut typed = live.stdin.take().unwrap();
    let since = Instant::now();
    std::io::Write::write_all(&mut typed, b"x\n").unwrap();
    until("after");
    let late = since.elapsed();
    println!("seen {late:?} after it was typed");
    assert!(late < Duration::from_millis(400), "{late:?}");
    std::io::Write::write_all(&mut typed, b"y\n").unwrap();
    assert!(watching.wait().unwrap().success());
    let told = text(live.wait_with_output().unwrap().stderr);
    assert_eq!(told.matches("An auditor is watching").count(), 1, "{told}");
    rig.ended_sessions();
    assert_eq!(rig.run(&["sessions", "watch", id]).status.code(), Some(5), "it has ended");
}

#[test]
fn an_auditor_reads_over_ssh_and_an_engineer_does_not() {
    let rig = Rig::with_alice();
    rig.add_user("mallory");
    rig.ssh("alice", "echo on-tape");
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    rig.keygen("id_bob");
    rig.ok(&["users", "add", "bob", "--role", "auditor"]);
    let file = rig.path("id_bob.pub");
    rig.ok(&["ssh-keys", "add", "--user", "bob", "--file", file.to_str().unwrap()]);
    rig.authenticator("bob", &rig.json(&["mfa", "enroll", "bob"]));
    for command in ["transcript", "play"] {
        let ask = format!("sessions {command} {id}");
        let bob = rig.client("ssh", "bob").args(["bastion", &ask]).output().unwrap();
        assert!(text(bob.stdout).contains("on-tape"), "{}", text(bob.stderr));
        let mallory = rig.client("ssh", "mallory").args(["bastion", &ask]).output().unwrap();
        assert_eq!(mallory.status.code(), Some(4));
        assert!(!text(mallory.stdout).contains("on-tape"));
    }
    let viewed = events(&rig, "recording_viewed");
    assert!(viewed.iter().all(|event| event["by"] == "bob") && viewed.len() == 2);
}

#[test]
fn a_lockdown_cuts_everyone_survives_a_restart_and_is_ended_on_the_bastion() {
    let mut rig = Rig::with_alice();
    let mut live = rig.client("ssh", "alice");
    let mut live = live
        .args(["db-1", "echo up; sleep 60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(live.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(rig.run(&["access", "deny-all"]).status.code(), Some(2), "a reason is needed");
    rig.ok(&["access", "deny-all", "--reason", "key leaked"]);
    wait_for("the session to be cut", || live.try_wait().unwrap().is_some());
    assert!(text(live.wait_with_output().unwrap().stderr).contains("key leaked"));
    assert!(!text(rig.ssh("alice", "echo reached").stdout).contains("reached"));
    rig.kill_9();
    rig.serve();
    assert_eq!(rig.json(&["status"])["lockdown"], "key leaked");
    assert!(!text(rig.ssh("alice", "echo reached").stdout).contains("reached"));
    rig.ok(&["access", "deny-all", "--end"]);
    assert_eq!(rig.run(&["access", "deny-all", "--end"]).status.code(), Some(3));
    assert!(text(rig.ssh("alice", "echo reached").stdout).contains("reached"));
    assert_eq!((events(&rig, "lockdown_started").len(), events(&rig, "lockdown_ended").len()), (1, 1));
}

#[test]
fn the_rules_are_audited_and_exported() {
    let rig = Rig::with_alice();
    let login = rig.login.clone();
    assert_eq!(rig.json(&["access", "audit"]), serde_json::json!([]));
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login, "--can", "exec"]);
    rig.ok(&["access", "allow", "--role", "ghost", "--label", "env=none", "--login", "root"]);
    let found = rig.json(&["access", "audit"]);
    let kinds: Vec<_> =
        found.as_array().unwrap().iter().map(|f| (f["rule"].as_str(), f["kind"].as_str())).collect();
    assert_eq!(kinds, [(Some("R2"), Some("overlaps")), (Some("R3"), Some("never_matches"))]);
    let file = rig.path("rules.json");
    rig.ok(&["access", "export", "--output", file.to_str().unwrap()]);
    let rules: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(rules.as_array().unwrap().len(), 3);
}

#[test]
fn the_trail_tells_a_session_in_order_and_goes_out_in_three_formats() {
    let rig = Rig::with_alice();
    let mut tail = rig.keyward(&["logs", "tail", "-f", "-n", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    rig.ssh("alice", "=cmd|' /C calc'!A0");
    rig.ended_sessions();
    let about =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned();
    let names = ["access_allowed", "session_opened", "channel_opened", "channel_closed", "session_closed"];
    let mut followed = Vec::new();
    for line in lines.map_while(Result::ok) {
        followed.push(about(&line));
        if followed.last().is_some_and(|name| name == "session_closed") {
            break;
        }
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    followed.retain(|name| names.contains(&name.as_str()));
    assert_eq!(followed, names);
    let array: Value = serde_json::from_str(&rig.ok(&["logs", "export", "--start", "1h"])).unwrap();
    let count = array.as_array().unwrap().len();
    let csv = rig.ok(&["logs", "export", "--start", "1h", "--format", "csv"]);
    assert_eq!(csv.lines().count(), count + 2, "a header, and the export before");
    assert!(!csv.contains(",\"="), "nothing that a spreadsheet would calculate");
}

#[test]
fn sessions_are_filtered_by_who_where_and_what() {
    let rig = Rig::with_alice();
    rig.ok(&["instances", "remove", "db-1", "--yes"]);
    let (address, key) = (format!("127.0.0.1:{}", rig.instance_port), rig.path("instance_key.pub"));
    let add =
        ["instances", "add", "db-1", "--address", &address, "--login", &rig.login, "--label", "env=prod"];
    rig.ok(&[&add[..], &["--host-key", key.to_str().unwrap()]].concat());
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &rig.login]);
    rig.ssh("alice", "echo NEEDLE");
    let session = rig.ended_sessions().remove(0);
    let key = session["key"].as_str().unwrap();
    for (filter, hit, miss) in [
        ("--login", rig.login.as_str(), "nobody"),
        ("--instance", "db-1", "db-2"),
        ("--key", key, "SHA256:other"),
        ("--source", "127.0.0.0/8", "10.0.0.0/8"),
        ("--command", "needle", "haystack"),
        ("--path", "NEEDLE", "haystack"),
        ("--exit", "0", "7"),
        ("--until", "2099-01-01", "2001-01-01"),
        ("--label", "env=prod", "env=test"),
    ] {
        let found = |value: &str| rig.json(&["sessions", "list", filter, value]).as_array().unwrap().len();
        assert_eq!((found(hit), found(miss)), (1, 0), "{filter}");
        let searched = |value: &str| rig.ok(&["sessions", "search", "needle", filter, value]).lines().count();
        assert_eq!((searched(hit) > 0, searched(miss)), (true, 0), "{filter}");
    }
    let status = rig.json(&["status"]);
    assert!(status["disk"]["bytes_left"].as_u64().unwrap() > 0);
    assert_eq!(status["audit"]["reserve"], true);
}
