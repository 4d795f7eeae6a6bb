//! The life of a second factor: pending, confirmed, replaced, and slowed down.

use crate::rig::{Rig, text};

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
