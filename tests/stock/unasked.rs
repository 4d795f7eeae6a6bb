//! Logins without a code: remembered second factors, and services.

use std::fs;

use crate::rig::{Rig, text, wait_for};

/// From now on the user has no authenticator.
fn no_code(rig: &Rig, user: &str) {
    rig.script(&format!("code_{user}"), "exit 1");
}

#[test]
fn a_remembered_second_factor_is_not_asked_for_until_it_is_forgotten() {
    let mut rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    assert!(rig.ssh("alice", "true").status.success());
    let good = fs::read(rig.path("code_alice")).unwrap();
    no_code(&rig, "alice");
    assert!(rig.ssh("alice", "true").status.success(), "the code is remembered");
    rig.kill_9();
    rig.serve();
    assert!(rig.ssh("alice", "true").status.success(), "also by a daemon that was killed");
    rig.ok(&["users", "suspend", "alice"]);
    rig.ok(&["users", "resume", "alice"]);
    assert!(!rig.ssh("alice", "true").status.success(), "a suspension forgets");
    fs::write(rig.path("code_alice"), good).unwrap();
    assert!(rig.ssh("alice", "true").status.success());
    no_code(&rig, "alice");
    rig.ok(&["mfa", "reset", "alice"]);
    rig.ok(&["mfa", "enroll", "alice"]);
    assert!(!rig.ssh("alice", "true").status.success(), "a reset forgets");
}

#[test]
fn what_another_key_of_the_same_user_gave_is_not_remembered_for_this_one() {
    let rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    assert!(rig.ssh("alice", "true").status.success());
    rig.keygen("id_second");
    let file = rig.path("id_second.pub");
    rig.ok(&["ssh-keys", "add", "--user", "alice", "--file", file.to_str().unwrap()]);
    fs::rename(rig.path("id_second"), rig.path("id_alice")).unwrap();
    fs::rename(rig.path("id_second.pub"), rig.path("id_alice.pub")).unwrap();
    no_code(&rig, "alice");
    assert!(!rig.ssh("alice", "true").status.success());
}

#[test]
fn unless_told_every_login_is_asked() {
    let rig = Rig::with_alice();
    assert!(rig.ssh("alice", "true").status.success());
    no_code(&rig, "alice");
    assert!(!rig.ssh("alice", "true").status.success());
}

#[test]
fn a_service_comes_with_its_key_alone_to_what_a_rule_names_and_nowhere_else() {
    let rig = Rig::with_alice();
    assert_eq!(
        rig.run(&["users", "add", "backup", "--kind", "service"]).status.code(),
        Some(2),
        "from where?"
    );
    for (name, from) in [("backup", "127.0.0.0/8"), ("stray", "192.0.2.0/24")] {
        rig.ok(&["users", "add", name, "--kind", "service", "--from", from]);
        rig.keygen(&format!("id_{name}"));
        let file = rig.path(&format!("id_{name}.pub"));
        rig.ok(&["ssh-keys", "add", "--user", name, "--file", file.to_str().unwrap()]);
        no_code(&rig, name);
    }
    rig.ok(&["access", "allow", "--role", "engineer", "--instance", "db-1", "--login", &rig.login]);
    assert!(!text(rig.ssh("backup", "echo in").stdout).contains("in"), "no rule names it");
    for name in ["backup", "stray"] {
        rig.ok(&["access", "allow", "--user", name, "--instance", "db-1", "--login", &rig.login]);
    }
    let output = rig.ssh("backup", "echo in");
    assert_eq!(text(output.stdout), "in\n", "{}", text(output.stderr));
    assert!(!text(rig.ssh("stray", "echo in").stdout).contains("in"), "not from this network");
    for words in [&[][..], &["status"], &["ssh-keys", "list"]] {
        let output = rig.client("ssh", "backup").arg("bastion").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{words:?}: {}", text(output.stdout));
    }
    for list in [["ssh-keys", "list"], ["access", "list"], ["sessions", "list"]] {
        assert!(rig.ok(&list).contains("backup (service)"), "{list:?}");
        let listed = rig.json(&list);
        let of = |item: &serde_json::Value| {
            let user = item["subject"]["user"].as_str().or(item["user"].as_str()).unwrap_or("a role");
            (user.to_owned(), item["kind"].as_str().map(str::to_owned))
        };
        for (user, kind) in listed.as_array().unwrap().iter().map(of) {
            let expected = match user.as_str() {
                "backup" | "stray" => Some("service"),
                "alice" => Some("human"),
                _ => None,
            };
            assert_eq!(kind.as_deref(), expected, "{list:?} {user}");
        }
    }
    assert_eq!(rig.json(&["ssh-keys", "show", "K2"])["kind"], "service");
    assert_eq!(rig.json(&["ssh-keys", "show", "K1"])["kind"], "human");
    rig.keygen("id_new");
    let mut rotate = rig.client("ssh", "backup");
    rotate.args(["bastion", "ssh-keys", "rotate"]).stdin(fs::File::open(rig.path("id_new.pub")).unwrap());
    let output = rotate.output().unwrap();
    assert!(output.status.success(), "its own key it may rotate: {}", text(output.stderr));
    fs::rename(rig.path("id_new"), rig.path("id_backup")).unwrap();
    fs::rename(rig.path("id_new.pub"), rig.path("id_backup.pub")).unwrap();
    assert_eq!(text(rig.ssh("backup", "echo in").stdout), "in\n");
    wait_for("the old key to give way", || rig.ok(&["ssh-keys", "list"]).contains("retiring, until "));
    assert!(rig.ok(&["users", "list"]).contains("192.0.2.0/24"));
    assert_eq!(rig.run(&["mfa", "enroll", "backup"]).status.code(), Some(5));
    assert_eq!(rig.run(&["users", "invite", "backup"]).status.code(), Some(5));
}

#[test]
fn wrong_codes_are_counted_across_a_kill_9() {
    let mut rig = Rig::with_alice();
    let good = fs::read(rig.path("code_alice")).unwrap();
    rig.script("code_alice", "echo 000000");
    for prompts in ["3", "2"] {
        let prompts = format!("NumberOfPasswordPrompts={prompts}");
        assert!(
            !rig.client("ssh", "alice").args(["-o", &prompts, "bastion"]).output().unwrap().status.success()
        );
    }
    rig.kill_9();
    rig.serve();
    fs::write(rig.path("code_alice"), good).unwrap();
    assert!(!rig.ssh("alice", "true").status.success(), "the right code waits now");
    assert!(rig.ok(&["logs", "tail", "-n", "50"]).contains("too many wrong codes"));
    rig.add_user("bob");
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &rig.login]);
    assert!(rig.ssh("bob", "true").status.success(), "her neighbour's does not");
}

#[test]
fn a_key_at_work_in_two_places_is_suspected_to_be_shared_and_in_one_is_not() {
    let rig = Rig::with_alice();
    let mut held = rig.client("ssh", "alice").args(["db-1", "sleep 30"]).spawn().unwrap();
    wait_for("the first login", || {
        rig.json(&["sessions", "list", "--live"]).as_array().is_some_and(|s| !s.is_empty())
    });
    assert!(rig.ssh("alice", "true").status.success());
    assert!(
        !rig.ok(&["logs", "tail", "-n", "50"]).contains("shared_suspected"),
        "one address is no suspicion"
    );
    let output = rig.client("ssh", "alice").args(["-b", "127.0.0.2", "bastion"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(rig.ok(&["logs", "tail", "-n", "50"]).contains("\"event\":\"ssh_key_shared_suspected\""));
    held.kill().unwrap();
    held.wait().unwrap();
}
