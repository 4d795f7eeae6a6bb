//! What was begun when the daemon is told to stop is finished, and nothing new begins.

use std::fs;
use std::process::Stdio;

use crate::rig::{Rig, text, wait_for};

#[test]
fn a_change_that_was_begun_when_the_daemon_is_told_to_stop_is_made_and_told_and_the_next_is_neither() {
    let mut rig = Rig::unstarted("");
    let held = rig.serve_waiting_in_a_change();
    let add = |name: &str| {
        let mut add = rig.keyward(&["users", "add", name]);
        add.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = add("carol");
    wait_for("the change to begin", || fs::read_to_string(&held).is_ok_and(|at| !at.is_empty()));
    let second = add("dave");
    rig.tell_to_stop();
    wait_for("the drain", || fs::read_to_string(rig.path("log")).unwrap().contains("daemon.draining"));
    fs::remove_file(&held).unwrap();
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{}", text(first.stderr));
    assert!(!second.wait_with_output().unwrap().status.success());
    rig.stopped();
    rig.serve();
    let users = rig.json(&["users", "list"]);
    let named = |name: &str| users.as_array().unwrap().iter().any(|user| user["name"] == name);
    assert!(named("carol") && !named("dave"), "{users}");
    let told = rig.events("user_added");
    assert_eq!(told.len(), 1, "{told:?}");
    rig.ok(&["logs", "verify"]);
}

#[test]
fn the_same_of_a_change_over_ssh() {
    let mut rig = Rig::bastion();
    rig.add_user_as("ada", "admin");
    rig.stop();
    let held = rig.serve_waiting_in_a_change();
    let mut add = rig.client("ssh", "ada");
    let mut add = add.args(["bastion", "users", "add", "carol"]).spawn().unwrap();
    wait_for("the change to begin", || fs::read_to_string(&held).is_ok_and(|at| !at.is_empty()));
    rig.tell_to_stop();
    wait_for("her connection to be told of it", || add.try_wait().unwrap().is_some());
    fs::remove_file(&held).unwrap();
    rig.stopped();
    rig.serve();
    let users = rig.json(&["users", "list"]);
    assert!(users.as_array().unwrap().iter().any(|user| user["name"] == "carol"), "{users}");
    assert_eq!(rig.events("user_added").len(), 2);
}
