//! The command line: exit codes, JSON, faults that change nothing.

use std::fs;

use crate::rig::{Rig, text};

#[test]
fn init_refuses_a_folder_that_is_initialised() {
    let rig = Rig::bastion();
    let dir = rig.path("bastion");
    let key = fs::read(dir.join("host_key.pub")).unwrap();
    let output = rig.run(&["init", "--dir", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(fs::read(dir.join("host_key.pub")).unwrap(), key);
}

#[test]
fn a_key_of_another_user_is_a_conflict() {
    let rig = Rig::with_alice();
    rig.ok(&["users", "add", "bob"]);
    let file = rig.path("id_alice.pub");
    let output = rig.run(&["ssh-keys", "add", "--user", "bob", "--file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5), "{}", text(output.stderr));
    assert_eq!(rig.json(&["ssh-keys", "list", "--user", "bob"]).as_array().unwrap().len(), 0);
}

#[test]
fn what_is_unknown_is_not_found_and_what_is_mistyped_is_usage() {
    let rig = Rig::bastion();
    assert_eq!(rig.run(&["users", "show", "nobody"]).status.code(), Some(3));
    let output = rig.run(&["usres", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(output.stderr).contains("users"), "the nearest right word is named");
}

#[test]
fn without_a_daemon_the_exit_code_says_so() {
    let mut rig = Rig::bastion();
    rig.kill_9();
    assert_eq!(rig.run(&["users", "list"]).status.code(), Some(6));
}

#[test]
fn an_edited_audit_record_is_named() {
    let mut rig = Rig::with_alice();
    rig.kill_9();
    let audit = rig.path("bastion/state/audit/journal");
    let segment = fs::read_dir(&audit)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "journal"))
        .unwrap();
    let state = rig.path("bastion/state");
    let verify = || rig.run(&["logs", "verify", "--state", state.to_str().unwrap()]);
    assert!(verify().status.success());
    let edited = fs::read_to_string(&segment).unwrap().replacen("alice", "alicf", 1);
    fs::write(&segment, edited).unwrap();
    let output = verify();
    assert_eq!(output.status.code(), Some(10));
    assert!(text(output.stderr).contains(".journal"), "the first bad record is named");
}
