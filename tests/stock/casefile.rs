//! Handing over, keeping and letting go: archives for a case file, holds, retention, and who may see what.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

use crate::rig::{Rig, text, wait_for};

type Members = Vec<(String, Vec<u8>)>;

fn members(file: &Path) -> Members {
    let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    });
    entries.collect()
}

fn packed(file: &Path, members: &Members) {
    let mut archive = tar::Builder::new(fs::File::create(file).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    archive.finish().unwrap();
}

fn sh(script: &str, dir: &Path) -> Output {
    Command::new("sh").args(["-ec", script]).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

/// Two sessions of alice's.
fn two(rig: &Rig) -> Vec<String> {
    rig.ssh("alice", "echo first words");
    rig.ssh("alice", "echo other words");
    rig.ended_sessions().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_archive_proves_itself_with_standard_tools_and_names_whatever_is_changed() {
    let rig = Rig::with_alice();
    let ids = two(&rig);
    let file = rig.path("case.tar");
    let path = file.to_str().unwrap();
    rig.ok(&["sessions", "bundle", &ids[1], &ids[0], "--output", path]);
    assert_eq!(
        rig.run(&["sessions", "bundle", &ids[0], "--output", path]).status.code(),
        Some(5),
        "it is there"
    );
    assert_eq!(rig.events("recordings_bundled")[0]["sessions"], serde_json::json!(ids));
    assert_eq!(rig.events("recording_viewed").len(), 2);
    assert_eq!(rig.run(&["sessions", "bundle", "nobody"]).status.code(), Some(3));

    // With tar, sha256sum and ssh-keygen alone.
    let there = rig.path("case");
    fs::create_dir(&there).unwrap();
    let checks = "tar xf ../case.tar; sha256sum --quiet -c SHA256SUMS\n\
        ssh-keygen -Y verify -f allowed_signers -I keyward -n keyward-bundle -s SHA256SUMS.sig < SHA256SUMS\n\
        for c in checkpoints/*.json; do ssh-keygen -Y verify -f allowed_signers -I keyward -n keyward-audit -s ${c%.json}.sig < $c; done";
    let checked = sh(checks, &there);
    assert!(checked.status.success(), "{}{}", text(checked.stdout), text(checked.stderr));

    // Who has the identity reads it, without a daemon.
    let offline = |command: &str, identity: &str| {
        let (dir, identity) = (there.to_str().unwrap(), rig.path(identity));
        let args = ["sessions", command, &ids[0], "--state", dir, "--identity", identity.to_str().unwrap()];
        rig.keyward(&args).env("KEYWARD_CONFIG", "/nowhere").output().unwrap()
    };
    for command in ["play", "transcript", "export"] {
        let read = offline(command, "bastion/auditors.key");
        assert!(text(read.stdout).contains("first words"), "{command}: {}", text(read.stderr));
    }
    assert!(!offline("play", "bastion/master.key").status.success(), "who has not, does not");
    assert_eq!(rig.events("recording_viewed").len(), 2, "no trail hears of it");

    // And with keyward, without a daemon.
    let trust = rig.path("bastion/audit_key.pub");
    let verify = |file: &Path, key: &Path| {
        let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
        rig.run(&["sessions", "verify", "--bundle", file, "--trust", key])
    };
    let whole = verify(&file, &trust);
    assert!(whole.status.success() && text(whole.stdout).contains("2 sessions"), "{}", text(whole.stderr));
    rig.keygen("other_key");
    let other = verify(&file, &rig.path("other_key.pub"));
    assert_eq!(other.status.code(), Some(10), "{}", text(other.stderr));

    let all = members(&file);
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        &names[..5],
        [
            "README.txt",
            "audit_key.pub",
            "allowed_signers",
            "events.ndjson",
            &format!("tapes/{}.tape", ids[0])
        ]
    );
    let bad = rig.path("bad.tar");
    let refused = |members: &Members, named: &str, how: &str| {
        packed(&bad, members);
        let output = verify(&bad, &trust);
        let said = text(output.stderr);
        assert!(output.status.code() == Some(10) && said.contains(named), "{how} {named}: {said}");
    };
    for (index, (name, content)) in all.iter().enumerate() {
        let mut edited = all.clone();
        edited[index].1[content.len() / 2] ^= 1;
        // What changes the manifest is said of its signature.
        let named = if name == "SHA256SUMS" { "SHA256SUMS.sig" } else { name };
        refused(&edited, named, "edited");
        let mut shorter = all.clone();
        shorter.remove(index);
        refused(&shorter, name, "removed");
    }
    let mut more = all.clone();
    more.push(("tapes/extra".to_owned(), b"x".to_vec()));
    refused(&more, "tapes/extra", "added");
    let mut twice = all.clone();
    twice.push(all[0].clone());
    refused(&twice, "README.txt", "twice");
    let cut = fs::read(&file).unwrap();
    fs::write(&bad, &cut[..cut.len() / 2]).unwrap();
    assert_eq!(verify(&bad, &trust).status.code(), Some(10));
    // An archive behind the end of the archive, which tar -i unpacks; more zeros are what tape drives write.
    fs::write(&bad, [cut.as_slice(), &cut].concat()).unwrap();
    assert_eq!(verify(&bad, &trust).status.code(), Some(10));
    fs::write(&bad, [cut.as_slice(), &[0; 8192]].concat()).unwrap();
    assert!(verify(&bad, &trust).status.success());
    // A manifest that fits, signed by somebody else.
    let mut forged = all.clone();
    forged[0].1 = b"nothing happened".to_vec();
    let sum = data_encoding::HEXLOWER.encode(&Sha256::digest(&forged[0].1));
    let manifest = forged.iter().position(|(name, _)| name == "SHA256SUMS").unwrap();
    let lines = String::from_utf8(forged[manifest].1.clone()).unwrap();
    let lines: Vec<_> = lines.lines().skip(1).collect();
    forged[manifest].1 = format!("{sum}  README.txt\n{}\n", lines.join("\n")).into_bytes();
    fs::write(rig.path("sums"), &forged[manifest].1).unwrap();
    assert!(sh("ssh-keygen -q -Y sign -f other_key -n keyward-bundle sums", rig.dir.path()).status.success());
    forged[manifest + 1].1 = fs::read(rig.path("sums.sig")).unwrap();
    refused(&forged, "SHA256SUMS.sig", "signed anew");
}

#[test]
fn an_auditor_takes_an_archive_over_ssh_and_an_admin_and_an_engineer_do_not() {
    let rig = Rig::with_alice();
    rig.add_user_as("bob", "auditor");
    rig.add_user_as("carol", "admin");
    let ids = two(&rig);
    let ask = |user: &str, what: &str| rig.shared("ssh", user).args(["bastion", what]).output().unwrap();
    let bundle = format!("sessions bundle {}", ids[0]);
    let taken = ask("bob", &bundle);
    assert!(taken.status.success(), "{}", text(taken.stderr));
    fs::write(rig.path("over.tar"), taken.stdout).unwrap();
    let (file, key) = (rig.path("over.tar"), rig.path("bastion/audit_key.pub"));
    rig.ok(&["sessions", "verify", "--bundle", file.to_str().unwrap(), "--trust", key.to_str().unwrap()]);
    for user in ["carol", "alice"] {
        assert_eq!(ask(user, &bundle).status.code(), Some(4), "{user}");
        assert_eq!(ask(user, &format!("sessions transcript {}", ids[0])).status.code(), Some(4), "{user}");
    }
}

#[test]
fn a_user_sees_her_own_and_an_admin_all_only_where_that_is_configured() {
    let rig = Rig::with_alice_and("owner_may_view = true\nadmin_may_view = true\n");
    rig.add_user("mallory");
    rig.add_user_as("carol", "admin");
    let id = two(&rig).remove(0);
    let ask = |user: &str, what: &str| {
        rig.shared("ssh", user).args(["bastion", &format!("sessions {what}")]).output().unwrap()
    };
    let own = ask("alice", &format!("transcript {id}"));
    assert!(text(own.stdout).contains("first words"), "{}", text(own.stderr));
    assert_eq!(rig.events("recording_viewed")[0]["by"], "alice");
    assert!(text(ask("carol", &format!("transcript {id}")).stdout).contains("first words"));
    let nobody = "01a00000-0000-7000-8000-000000000000";
    let others =
        [ask("mallory", &format!("transcript {id}")), ask("mallory", &format!("transcript {nobody}"))];
    let said = others.map(|output| (output.status.code(), text(output.stderr)));
    assert_eq!(said[0].0, Some(4));
    assert_eq!(said[0], said[1], "whether it exists is not told");
    for command in ["search words".to_owned(), format!("bundle {id}"), format!("hold {id} --reason x")] {
        assert_eq!(ask("alice", &command).status.code(), Some(4), "{command}");
    }
    // Who bears the name now is not who bore it then.
    rig.ok(&["users", "remove", "alice", "--yes"]);
    fs::remove_file(rig.path("id_alice")).unwrap();
    rig.add_user("alice");
    let new =
        rig.client("ssh", "alice").args(["bastion", &format!("sessions transcript {id}")]).output().unwrap();
    assert_eq!(new.status.code(), Some(4), "{}", text(new.stdout));
}

#[test]
fn where_watching_takes_two_one_alone_does_not_watch() {
    let rig = Rig::with_alice_and("watch_approval = \"10m\"\n");
    rig.add_user_as("bob", "auditor");
    rig.add_user_as("dora", "auditor");
    let mut live = rig.client("ssh", "alice");
    let mut live = live
        .args(["-tt", "db-1", "echo up; read x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut id = String::new();
    wait_for("a live session", || {
        id = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    });
    let ask = |user: &str, what: String| {
        rig.shared("ssh", user).args(["bastion", &format!("sessions {what}")]).output().unwrap()
    };
    let alone = ask("bob", format!("watch {id}"));
    assert_eq!(alone.status.code(), Some(4));
    assert!(text(alone.stderr).contains(&format!("sessions approve {id} --for bob")));
    assert_eq!(rig.run(&["sessions", "watch", &id]).status.code(), Some(4), "nor does the operator");
    assert_eq!(ask("bob", format!("approve {id} --for bob")).status.code(), Some(4), "nobody for themselves");
    assert_eq!(ask("alice", format!("approve {id} --for bob")).status.code(), Some(4), "nor an engineer");
    assert!(ask("dora", format!("approve {id} --for bob")).status.success());
    assert_eq!(ask("dora", format!("watch {id}")).status.code(), Some(4), "it is for bob");
    let mut watching = rig.shared("ssh", "bob");
    let watching =
        watching.args(["bastion", &format!("sessions watch {id}")]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the watcher", || rig.events("recording_viewed").len() == 1);
    live.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert!(text(watching.wait_with_output().unwrap().stdout).contains("up"));
    live.wait().unwrap();
    let told = &rig.events("watch_approved")[0];
    assert_eq!((told["by"].as_str(), told["user"].as_str()), (Some("dora"), Some("bob")));
}

#[test]
fn recordings_go_when_their_time_is_over_and_the_chain_says_so() {
    let mut rig = Rig::with_alice();
    rig.ssh("alice", "echo third");
    let ids = two(&rig);
    let (held, gone) = (ids[2].clone(), ids[0].clone());
    rig.ok(&["sessions", "hold", &held, "--reason", "case 7"]);
    assert_eq!(rig.run(&["sessions", "hold", &held, "--reason", "again"]).status.code(), Some(5));
    assert_eq!(
        rig.run(&["sessions", "release", &gone, "--reason", "x"]).status.code(),
        Some(3),
        "it is not held"
    );
    assert!(rig.ok(&["sessions", "holds"]).contains("case 7"));
    let digest = rig.json(&["sessions", "show", &gone])["digest"].clone();
    let tapes = rig.path("bastion/state/tapes");
    let tape = |id: &str| tapes.join(format!("{id}.tape"));
    let there = (fs::read(tape(&gone)).unwrap(), fs::read(tape(&gone).with_extension("json")).unwrap());
    rig.stop();
    let config = rig.path("bastion/keyward.toml");
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{before}keep = \"1s\"\n")).unwrap();
    rig.serve();
    wait_for("retention", || rig.json(&["sessions", "list"]).as_array().unwrap().len() == 1);
    let deleted = rig.events("recording_deleted");
    assert_eq!(deleted.len(), 2, "not the one on hold");
    assert!(
        deleted
            .iter()
            .any(|e| e["session"] == gone.as_str() && e["digest"] == digest && e["user"] == "alice")
    );
    assert!(!tape(&gone).exists() && !tape(&gone).with_extension("key").exists() && tape(&held).exists());
    let verified = rig.ok(&["logs", "verify"]);
    assert!(verified.contains(&format!("{gone}: deleted by retention on")), "{verified}");
    assert!(rig.ok(&["sessions", "verify", &gone]).contains("deleted by retention"));
    rig.ok(&["sessions", "verify", &held]);
    // As a crash in the middle of it leaves one: no fault, and nothing that can be put on hold.
    fs::write(tape(&gone), &there.0).unwrap();
    fs::write(tape(&gone).with_extension("json"), &there.1).unwrap();
    assert!(rig.ok(&["sessions", "verify", &gone]).contains("deleted by retention"));
    assert!(rig.ok(&["logs", "verify"]).contains("deleted by retention"));
    assert_eq!(rig.run(&["sessions", "hold", &gone, "--reason", "late"]).status.code(), Some(5));
    fs::remove_file(tape(&gone)).unwrap();
    fs::remove_file(tape(&gone).with_extension("json")).unwrap();
    let show = rig.run(&["sessions", "play", &gone]);
    assert_eq!(show.status.code(), Some(3));
    assert!(text(show.stderr).contains("deleted by retention on"));

    // Released, its time is over too at the next look.
    rig.stop();
    fs::write(&config, &before).unwrap();
    let state = rig.path("bastion/state");
    let offline = |rig: &Rig| rig.run(&["logs", "verify", "--state", state.to_str().unwrap()]);
    assert!(offline(&rig).status.success(), "also on a copy, without a daemon");

    // A tape that is missing without an event is lost; and so is one whose event nobody signed.
    fs::remove_file(tape(&held)).unwrap();
    let lost = offline(&rig);
    assert_eq!(lost.status.code(), Some(10));
    assert!(text(lost.stderr).contains(&held));
    forge_deletion(&rig, &held);
    let forged = offline(&rig);
    assert_eq!(forged.status.code(), Some(10), "{}", text(forged.stdout));
}

/// Writes a deletion on at the end of the chain, as whoever has the disk and not the key could.
fn forge_deletion(rig: &Rig, session: &str) {
    let journal = rig.path("bastion/state/audit/journal");
    let mut segments: Vec<_> = fs::read_dir(&journal).unwrap().map(|f| f.unwrap().path()).collect();
    segments.retain(|file| {
        fs::read_to_string(file).is_ok_and(|text| text.starts_with(|c: char| c.is_ascii_digit()))
    });
    segments.sort();
    let last = segments.last().unwrap();
    let chain = fs::read_to_string(last).unwrap();
    let head: Vec<_> = chain.lines().last().unwrap().splitn(3, ' ').collect();
    let (seq, prev) = (head[0].parse::<u64>().unwrap() + 1, head[1]);
    let release = format!(
        "{{\"time\":\"2026-01-01T00:00:00Z\",\"seq\":{seq},\"prev\":\"{prev}\",\"event\":\"recording_released\",\"by\":\"x\",\"session\":\"{session}\",\"reason\":\"x\"}}"
    );
    let hash = |prev: &str, seq: u64, payload: &str| {
        data_encoding::HEXLOWER.encode(&Sha256::digest(format!("{prev} {seq} {payload}")))
    };
    let first = hash(prev, seq, &release);
    let next = seq + 1;
    let payload = format!(
        "{{\"time\":\"2026-01-01T00:00:00Z\",\"seq\":{next},\"prev\":\"{first}\",\"event\":\"recording_deleted\",\"user\":\"alice\",\"session\":\"{session}\",\"digest\":\"x\",\"reason\":\"x\"}}"
    );
    let second = hash(&first, next, &payload);
    let mut file = fs::File::options().append(true).open(last).unwrap();
    file.write_all(format!("{seq} {first} {release}\n{next} {second} {payload}\n").as_bytes()).unwrap();
}
