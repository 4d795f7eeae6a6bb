//! Who leaves: suspended or revoked, and what was touched.

use crate::rig::{Rig, text};

#[test]
fn a_suspension_tells_what_the_user_touched_and_nothing_of_the_neighbour() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &rig.login]);
    assert!(rig.ssh("alice", "echo of-alice").status.success());
    assert!(rig.ssh("bob", "echo of-bob").status.success());
    rig.ended_sessions();
    let told = rig.json(&["users", "suspend", "alice", "--reason", "left"]);
    let touched = &told["touched"];
    assert_eq!(told["user"]["status"], "suspended");
    assert_eq!(touched["logins"], 1);
    assert_eq!(touched["sources"][0], "127.0.0.1");
    assert_eq!(touched["destinations"][0], format!("{}@db-1", rig.login));
    assert_eq!(touched["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(touched["sessions"][0]["channels"][0]["command"], "echo of-alice");
    assert!(rig.ssh("bob", "true").status.success(), "the neighbour goes on");
    assert!(!rig.ssh("alice", "true").status.success());
}

#[test]
fn a_key_that_was_never_used_touched_nothing() {
    let rig = Rig::with_alice();
    let output = rig.run(&["ssh-keys", "revoke", "K1", "--reason", "lost"]);
    assert!(text(output.stdout).contains("touched nothing"));
    let again = rig.run(&["ssh-keys", "revoke", "K1", "--reason", "lost"]);
    assert_eq!(again.status.code(), Some(5));
    rig.ok(&["users", "add", "bob"]);
    let file = rig.path("id_alice.pub");
    let moved = rig.run(&["ssh-keys", "add", "--user", "bob", "--file", file.to_str().unwrap()]);
    assert_eq!(moved.status.code(), Some(5), "a revoked key is nobody else's either");
}
