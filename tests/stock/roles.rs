//! Roles change: what one gave ends at once, and somebody always administers.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use crate::rig::{Rig, text, wait_for};

/// A client's command that goes on, once its first line is there.
fn lasting(rig: &Rig, user: &str, args: &[&str]) -> Child {
    let mut ssh = rig.client("ssh", user);
    let mut child = ssh.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    // A byte at a time: what follows is the caller's.
    let out = child.stdout.as_mut().unwrap();
    while !first.ends_with('\n') {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "{first}");
        first.push(byte[0].into());
    }
    child
}

fn told(mut child: Child) -> (Option<i32>, String) {
    // Its output is read to the end, or it would wait for that.
    let out = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || BufReader::new(out).lines().count());
    wait_for("the end of it", || child.try_wait().unwrap().is_some());
    reading.join().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn ended(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "the neighbour goes on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_lost_role_cuts_what_lived_by_it_and_leaves_the_neighbour() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.ok(&["access", "remove", "R1"]);
    for user in ["alice", "bob"] {
        rig.ok(&["users", "roles", user, "--add", "dba"]);
    }
    rig.ok(&["access", "allow", "--role", "dba", "--instance", "db-1", "--login", &rig.login]);
    let busy = ["db-1", "echo up; sleep 60"];
    let (alice, bob) = (lasting(&rig, "alice", &busy), lasting(&rig, "bob", &busy));
    let user = rig.json(&["users", "roles", "alice", "--remove", "dba", "--add", "dbb"]);
    assert_eq!(user["roles"], serde_json::json!(["dbb", "engineer"]));
    let (_, said) = told(alice);
    assert!(said.contains(&format!("Your access to {}@db-1 has ended.", rig.login)), "{said}");
    assert!(rig.ssh("alice", "echo reached").stdout.is_empty());
    ended(bob);
    let event = rig.events("user_roles_changed").pop().unwrap();
    assert_eq!(event["user"], "alice");
    assert_eq!((&event["added"][0], &event["removed"][0]), (&"dbb".into(), &"dba".into()), "{event}");
    rig.ok(&["logs", "verify"]);
}

#[test]
fn who_is_no_auditor_any_more_sees_nothing_more_and_another_does() {
    let rig = Rig::bastion();
    rig.add_user_as("bob", "auditor");
    rig.add_user_as("eve", "auditor");
    let tail = ["bastion", "logs", "tail", "-f"];
    let (bob, eve) = (lasting(&rig, "bob", &tail), lasting(&rig, "eve", &tail));
    rig.ok(&["users", "roles", "bob", "--remove", "auditor"]);
    let (code, said) = told(bob);
    assert!(code == Some(4) && said.contains("this is for auditors"), "{code:?} {said}");
    ended(eve);
    let again = rig.client("ssh", "bob").args(tail).output().unwrap();
    assert_eq!(again.status.code(), Some(4));
}

#[test]
fn the_last_admin_stays_one() {
    let rig = Rig::bastion();
    rig.add_user_as("ada", "admin");
    rig.add_user("bob");
    let refused = |args: &[&str], code: i32, word: &str| {
        let before = (rig.json(&["users", "list"]), rig.events("user_roles_changed").len());
        let output = rig.run(&[&["users", "roles"], args].concat());
        let said = text(output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(word), "{args:?}: {said}");
        assert_eq!(before, (rig.json(&["users", "list"]), rig.events("user_roles_changed").len()));
    };
    refused(&["ada", "--remove", "admin"], 5, "the last admin");
    refused(&["ada"], 2, "--add ROLE");
    refused(&["bob", "--add", "engineer"], 5, "engineer already");
    refused(&["bob", "--remove", "admin"], 5, "bob is not admin");
    refused(&["bob", "--add", "x", "--remove", "x"], 2, "both");
    refused(&["boob", "--add", "x"], 3, "did you mean bob?");
    let own = rig.client("ssh", "bob").args(["bastion", "users", "roles", "bob", "--add", "admin"]).output();
    assert_eq!(own.unwrap().status.code(), Some(4), "nobody makes herself an admin");
    rig.ok(&["users", "roles", "bob", "--add", "admin"]);
    rig.ok(&["users", "suspend", "bob"]);
    refused(&["ada", "--remove", "admin"], 5, "the last admin");
    rig.ok(&["users", "resume", "bob"]);
    let by_ada = ["bastion", "users", "roles", "ada", "--remove", "admin"];
    assert!(rig.client("ssh", "ada").args(by_ada).output().unwrap().status.success());
    assert_eq!(rig.events("user_roles_changed").pop().unwrap()["by"], "ada");
    let again = rig.client("ssh", "ada").args(["bastion", "users", "list"]).output().unwrap();
    assert_eq!(again.status.code(), Some(4));
    refused(&["bob", "--remove", "admin"], 5, "the last admin");
}

#[test]
fn a_role_that_is_given_counts_on_a_connection_of_before_and_nobody_gives_it_to_herself() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.add_user_as("ada", "admin");
    rig.ok(&["access", "allow", "--role", "dba", "--instance", "db-1", "--login", &rig.login]);
    let shared = |user: &str, args: &[&str]| rig.shared("ssh", user).args(args).output().unwrap();
    let reached = |user: &str| text(shared(user, &["db-1", "echo reached"]).stdout);
    let status = |user: &str| shared(user, &["bastion", "status"]).status.code();
    assert_eq!((reached("bob"), status("bob")), (String::new(), Some(4)));
    rig.ok(&["users", "roles", "bob", "--add", "dba", "--add", "auditor"]);
    assert_eq!((reached("bob"), status("bob")), ("reached\n".to_owned(), Some(0)));
    assert!(text(shared("bob", &["bastion"]).stdout).contains("@db-1"), "the page knows of it");
    rig.ok(&["users", "roles", "bob", "--remove", "dba", "--remove", "auditor"]);
    assert_eq!((reached("bob"), status("bob")), (String::new(), Some(4)));
    assert_eq!(rig.events("ssh_login_succeeded").iter().filter(|e| e["user"] == "bob").count(), 1);
    let told = rig.events("user_roles_changed").len();
    for (name, code) in [("ada", 4), ("bob", 0)] {
        let output = shared("ada", &["bastion", "users", "roles", name, "--add", "auditor"]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", text(output.stderr));
    }
    assert_eq!(rig.events("user_roles_changed").len(), told + 1);
}
