//! The life of a second factor: pending, confirmed, replaced, and slowed down.

use std::fs::{self, File};

use crate::rig::{Rig, text, wait_for};

fn standing(rig: &Rig, user: &str) -> String {
    rig.json(&["users", "show", user])["second_factor"].as_str().unwrap().to_owned()
}

#[test]
fn a_factor_is_confirmed_by_its_first_code_and_the_trail_says_so() {
    let rig = Rig::with_alice();
    assert_eq!(standing(&rig, "alice"), "pending");
    assert_eq!(rig.events("mfa_enrolled")[0]["pending"], true);
    assert!(rig.ok(&["mfa", "list"]).contains("pending"));
    assert!(rig.ssh("alice", "true").status.success());
    assert_eq!(standing(&rig, "alice"), "enrolled");
    assert!(rig.ssh("alice", "true").status.success());
    assert_eq!(rig.events("mfa_confirmed").len(), 1);
}

#[test]
fn a_new_authenticator_takes_over_with_its_first_code() {
    let rig = Rig::with_alice();
    assert_eq!(rig.run(&["mfa", "enroll", "alice"]).status.code(), Some(5), "a pending one is one");
    let pending = rig.json(&["mfa", "enroll", "alice", "--replace"]);
    rig.authenticator("alice", &pending);
    assert!(rig.ssh("alice", "true").status.success());
    assert_eq!(rig.run(&["mfa", "enroll", "alice"]).status.code(), Some(5), "one in use is not overwritten");
    let next = rig.json(&["mfa", "enroll", "alice", "--replace"]);
    assert_eq!((next["status"].as_str(), standing(&rig, "alice").as_str()), (Some("pending"), "replacing"));
    assert!(rig.ssh("alice", "true").status.success(), "the old one goes on");
    let old = std::fs::read(rig.path("code_alice")).unwrap();
    let secret = next["secret"].as_str().unwrap();
    rig.script("code_alice", &format!("oathtool --totp --base32 {secret}"));
    assert!(rig.ssh("alice", "true").status.success());
    assert_eq!((standing(&rig, "alice").as_str(), rig.events("mfa_confirmed").len()), ("enrolled", 2));
    std::fs::write(rig.path("code_alice"), old).unwrap();
    assert_eq!(rig.ssh("alice", "true").status.code(), Some(255), "the old recovery codes are gone");
}

#[test]
fn a_clock_that_is_off_is_told_after_a_login_and_never_before() {
    let rig = Rig::with_alice();
    let totp = std::fs::read_to_string(rig.path("totp_alice")).unwrap();
    let late = totp.replace("oathtool", "oathtool --now '2 minutes ago'").replace("#!/bin/sh\nexec ", "");
    let right = std::fs::read(rig.path("code_alice")).unwrap();
    rig.script("code_alice", late.trim());
    let refused = rig.client("ssh", "alice").args(["-v", "bastion"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(255));
    rig.script(
        "code_alice",
        &format!("echo {}", rig.json(&["mfa", "recovery-codes", "alice"])["recovery_codes"][0]),
    );
    let output = rig.client("ssh", "alice").arg("bastion").output().unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(
        out.contains("The clock of your authenticator is about 1") && out.contains("seconds behind"),
        "{out}"
    );
    let before = text(refused.stderr) + &err;
    assert!(!before.contains("clock of your"), "{before}");
    assert!(rig.json(&["mfa", "list"])[0]["clock_off_secs"].as_i64().unwrap() < -90);
    std::fs::write(rig.path("code_alice"), right).unwrap();
    assert!(rig.ssh("alice", "true").status.success());
    assert!(rig.json(&["mfa", "list"])[0]["clock_off_secs"].is_null(), "a code of now takes it back");
}

#[test]
fn wrong_codes_slow_a_user_down_also_across_a_kill_9() {
    let mut rig = Rig::with_alice();
    let right = std::fs::read(rig.path("code_alice")).unwrap();
    rig.script("code_alice", "echo nonsense");
    for _ in 0..5 {
        let once = ["-o", "NumberOfPasswordPrompts=1", "bastion"];
        assert_eq!(rig.client("ssh", "alice").args(once).output().unwrap().status.code(), Some(255));
    }
    rig.kill_9();
    rig.serve();
    std::fs::write(rig.path("code_alice"), right).unwrap();
    assert_eq!(rig.ssh("alice", "true").status.code(), Some(255), "a right code, too soon");
    let failed = rig.events("mfa_failed");
    assert_eq!(failed.last().unwrap()["reason"], "too many wrong codes");
    assert_eq!(rig.json(&["mfa", "list"])[0]["failures"], 5);
}

/// From now on she has no authenticator; what she had.
fn without_code(rig: &Rig) -> Vec<u8> {
    let code = fs::read(rig.path("code_alice")).unwrap();
    rig.script("code_alice", "exit 1");
    code
}

#[test]
fn a_remembered_second_factor_is_forgotten_by_a_lockdown() {
    let rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    assert!(rig.ssh("alice", "true").status.success());
    let code = without_code(&rig);
    assert!(rig.ssh("alice", "true").status.success(), "the code is remembered");
    rig.ok(&["access", "deny-all", "--reason", "breach"]);
    assert!(!rig.ssh("alice", "true").status.success(), "nobody comes in");
    rig.ok(&["access", "deny-all", "--end"]);
    assert!(!rig.ssh("alice", "true").status.success(), "and whoever was remembered before is a stranger");
    fs::write(rig.path("code_alice"), code).unwrap();
    assert!(rig.ssh("alice", "true").status.success());
    without_code(&rig);
    assert!(rig.ssh("alice", "true").status.success(), "what is given after it is remembered as ever");
}

#[test]
fn a_rotated_key_inherits_no_remembered_second_factor() {
    let rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    assert!(rig.ssh("alice", "true").status.success());
    let code = without_code(&rig);
    rig.keygen("id_new");
    let mut rotate = rig.client("ssh", "alice");
    rotate.args(["bastion", "ssh-keys", "rotate"]).stdin(File::open(rig.path("id_new.pub")).unwrap());
    assert!(rotate.output().unwrap().status.success(), "the old key's code is remembered");
    let takes = |kept: &str, key: &str| {
        fs::rename(rig.path("id_alice"), rig.path(kept)).unwrap();
        fs::rename(rig.path(key), rig.path("id_alice")).unwrap();
    };
    let status = |key: &str| rig.json(&["ssh-keys", "show", key])["status"].clone();
    // ssh looks for the public half of the name too.
    fs::remove_file(rig.path("id_alice.pub")).unwrap();
    takes("id_old", "id_new");
    assert!(!rig.ssh("alice", "true").status.success(), "the new key owes a code");
    assert_eq!((status("K1"), status("K2")), ("active".into(), "pending".into()), "and replaces nothing");
    fs::write(rig.path("code_alice"), code).unwrap();
    assert!(rig.ssh("alice", "true").status.success());
    wait_for("the old key to give way", || status("K1") == "retiring");
    without_code(&rig);
    assert!(rig.ssh("alice", "true").status.success(), "its own code is remembered");
    takes("id_new", "id_old");
    assert!(rig.ssh("alice", "true").status.success(), "as the old key's is, as long as that lives");
}
