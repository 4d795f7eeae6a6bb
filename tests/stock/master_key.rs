//! The master key is changed while the bastion serves; whatever dies in between, one of the two keys opens it.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use keystore::journal::{self, chain_hash};

use crate::rig::{Rig, text, wait_for};

/// `keyward serve` on a bastion that must not start: what it says.
fn refused(rig: &Rig) -> String {
    let output = rig.keyward(&["serve"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    text(output.stderr)
}

/// The configuration names `file` as the master key's.
fn name_key(rig: &Rig, file: &str) {
    let config = rig.path("bastion/keyward.toml");
    let lines = fs::read_to_string(&config).unwrap();
    let lines = lines.lines().map(|line| match line.starts_with("master_key") {
        true => format!("master_key = \"file:{file}\"\n"),
        false => format!("{line}\n"),
    });
    fs::write(config, lines.collect::<String>()).unwrap();
}

fn rotate(rig: &Rig, old: &str, new: &str) -> std::process::Output {
    let path = |name: &str| rig.path("bastion").join(name).to_str().unwrap().to_owned();
    rig.run(&["encryption", "rotate", "--old-key", &path(old), "--new-key", &path(new)])
}

#[test]
fn the_master_key_changes_under_a_live_session_and_the_old_one_opens_nothing_more() {
    let mut rig = Rig::with_alice();
    let mut ssh = rig.client("ssh", "alice");
    let mut live = ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the session", || !rig.json(&["sessions", "list", "--live"]).as_array().unwrap().is_empty());

    // Not with another key than the store's, nor to the same.
    rig.ok(&["init", "--dir", rig.path("other").to_str().unwrap()]);
    fs::copy(rig.path("other/master.key"), rig.path("bastion/foreign.key")).unwrap();
    assert_eq!(rotate(&rig, "foreign.key", "new.key").status.code(), Some(4));
    assert!(!rig.path("bastion/new.key").exists());
    assert_eq!(rotate(&rig, "master.key", "master.key").status.code(), Some(2));
    let done = rotate(&rig, "master.key", "new.key");
    let (said, failed) = (text(done.stdout), text(done.stderr));
    assert!(done.status.success(), "{failed}");
    assert!(
        said.contains("In ") && said.contains("new.key\". Without that the next start is refused"),
        "{said}"
    );
    assert!(rig.ok(&["status"]).contains("WARNING: the next start is refused"), "{}", rig.ok(&["status"]));
    // Said again it changes nothing.
    assert!(rotate(&rig, "master.key", "new.key").status.success());
    assert_eq!(rig.events("master_key_rotated").len(), 1);

    live.stdin.take().unwrap().write_all(b"still here").unwrap();
    assert_eq!(text(live.wait_with_output().unwrap().stdout), "still here");
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
    rig.ok(&["logs", "verify"]);
    rig.kill_9();

    let told = refused(&rig);
    let new = rig.path("bastion/new.key");
    assert!(told.contains("the store is sealed under master key "), "{told}");
    assert!(told.contains(&format!("(which was in {})", new.display())), "{told}");
    name_key(&rig, "new.key");
    rig.serve();
    assert!(!rig.ok(&["status"]).contains("WARNING"), "{}", rig.ok(&["status"]));
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_change_that_dies_at_any_step_is_finished_at_the_next_start_and_told_in_the_trail() {
    let mut rig = Rig::bastion();
    // A checkpoint sees the store: from here on one that nobody told of is another store.
    rig.stop();
    rig.serve();
    let (mut old, mut count) = ("master.key".to_owned(), 0);
    for point in [
        "rekey.begun",
        "rekey.sealed",
        "rekey.committed",
        "journal.base.written",
        "journal.base.named",
        "journal.segment.removed",
        "store.index.old",
        "store.index.new",
        "rekey.told",
    ] {
        rig.kill_9();
        rig.serve_dying_at(point);
        let new = format!("{point}.key");
        assert_eq!(rotate(&rig, &old, &new).status.code(), Some(6), "{point}");
        rig.died();
        let changed = !matches!(point, "rekey.begun" | "rekey.sealed");
        let (opens, wrong) = if changed { (&new, &old) } else { (&old, &new) };
        name_key(&rig, wrong);
        assert!(refused(&rig).contains("the store is sealed under"), "{point}");
        name_key(&rig, opens);
        rig.serve();
        if !changed {
            assert!(rotate(&rig, &old, &new).status.success(), "{point}: what died is begun again");
            name_key(&rig, &new);
        }
        count += 1;
        assert_eq!(rig.json(&["encryption", "status"])["next_start"], true, "{point}");
        // Told once more rather than never.
        let told = rig.events("master_key_rotated").len();
        assert!(told == count || point == "rekey.told" && told == count + 1, "{point}: {told}");
        assert!(rig.events("store_replaced").is_empty(), "{point}: it is the same store");
        rig.ok(&["logs", "verify"]);
        old = new;
    }
    rig.ok(&["logs", "verify"]);
    rig.add_user("zoe");
    assert_eq!(rig.json(&["users", "list"])[0]["name"], "zoe");
}

/// Who has the disk can compute every hash of the chain; `logs verify` cannot know.
#[test]
fn a_revoked_key_does_not_come_back_by_what_is_written_to_the_disk_without_the_master_key() {
    let mut rig = Rig::with_alice();
    let journal = rig.path("bastion/state/store/journal");
    let lines = || journal::read_rebased(&journal).map(Result::unwrap).collect::<Vec<_>>();
    let old = lines();
    let key = rig.json(&["ssh-keys", "list"])[0]["id"].as_str().unwrap().to_owned();
    rig.ok(&["ssh-keys", "revoke", &key, "--reason", "lost"]);
    rig.kill_9();

    let mut head = lines().pop().unwrap();
    let next = head.seq + 1;
    let good = fs::read_to_string(&head.file).unwrap();
    let mut forged = good.clone();
    for entry in old {
        head.seq += 1;
        head.hash = chain_hash(&head.hash, head.seq, &entry.payload);
        forged += &format!("{} {} {}\n", head.seq, head.hash, text(entry.payload));
    }
    fs::write(&head.file, &forged).unwrap();
    let told = refused(&rig);
    let named = format!("{} at byte {}, record {}: its mark is not", head.file.display(), good.len(), next);
    assert!(told.contains("opening the store") && told.contains(&named), "{told}");
    assert_eq!(fs::read_to_string(&head.file).unwrap(), forged);

    fs::write(&head.file, good).unwrap();
    rig.serve();
    assert!(!rig.ssh("alice", "echo again").status.success(), "still revoked");
    rig.ok(&["logs", "verify"]);
}
