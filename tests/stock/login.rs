//! Key, then code: only both make a login.

use crate::jump::next_code;
use crate::rig::{Rig, text};

#[test]
fn the_prompt_and_the_partial_success_are_what_scripts_match_on() {
    let rig = Rig::with_alice();
    let output = rig.client("ssh", "alice").args(["-v", "bastion", "help"]).output().unwrap();
    let err = text(output.stderr);
    assert!(err.contains("Authenticated using \"publickey\" with partial success."), "{err}");
}

#[test]
fn a_wrong_code_is_no_login() {
    let rig = Rig::with_alice();
    rig.script("code_alice", "echo 000000");
    assert_eq!(rig.ssh("alice", "echo reached").status.code(), Some(255));
}

#[test]
fn a_code_is_spent_once_also_across_a_kill_9() {
    let mut rig = Rig::with_alice();
    // A fresh step, and only codes of the authenticator: both logins fall into the same 30 seconds.
    std::thread::sleep(next_code());
    std::fs::copy(rig.path("totp_alice"), rig.path("code_alice")).unwrap();
    assert!(rig.ssh("alice", "true").status.success());
    assert!(!rig.ssh("alice", "true").status.success(), "the same code again");
    rig.kill_9();
    rig.serve();
    assert!(!rig.ssh("alice", "true").status.success(), "the same code again, after kill -9");
}

#[test]
fn a_key_alone_or_a_strangers_key_is_no_login() {
    let rig = Rig::with_alice();
    let output = rig
        .client("ssh", "alice")
        .args(["-o", "KbdInteractiveAuthentication=no", "bastion", "help"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    rig.keygen("id_nobody");
    rig.script("code_nobody", "echo 000000");
    let output = rig.client("ssh", "nobody").args(["bastion", "help"]).output().unwrap();
    assert!(text(output.stderr).contains("Permission denied"), "an unknown user sees what everyone sees");
}
