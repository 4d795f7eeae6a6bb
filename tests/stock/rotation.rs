//! A key and its successor, with the stock client.

use std::fs::{self, File};
use std::process::Output;

use crate::rig::{Rig, text, wait_for};

/// `ssh alice@bastion ssh-keys rotate … < id_NEW.pub`
fn rotate(rig: &Rig, user: &str, new: &str, more: &[&str]) -> Output {
    let file = rig.path(&format!("{new}.pub"));
    let mut command = rig.client("ssh", user);
    command.args(["bastion", "ssh-keys", "rotate"]).args(more);
    command.stdin(File::open(file).unwrap()).output().unwrap()
}

/// A login with the key file `key` instead of the user's own.
fn ssh_with(rig: &Rig, user: &str, key: &str, args: &[&str]) -> Output {
    let text = fs::read_to_string(rig.config(user, ""))
        .unwrap()
        .replace(&format!("id_{user}\n"), &format!("{key}\n"));
    let config = rig.path(&format!("config_{user}_{key}"));
    fs::write(&config, text).unwrap();
    let mut command = rig.client("ssh", user);
    command.arg("-F").arg(config);
    command.args(args).output().unwrap()
}

fn status(rig: &Rig, id: &str) -> String {
    rig.json(&["ssh-keys", "show", id])["status"].as_str().unwrap().to_owned()
}

fn events(rig: &Rig, name: &str) -> usize {
    rig.ok(&["logs", "tail", "-n", "1000"])
        .lines()
        .filter(|l| l.contains(&format!("\"event\":\"{name}\"")))
        .count()
}

#[test]
fn an_engineer_rotates_her_key_and_the_old_one_retires_after_the_overlap() {
    let rig = Rig::with_alice_and("[keys]\noverlap = \"3s\"\n");
    rig.keygen("id_new");
    let output = rotate(&rig, "alice", "id_new", &[]);
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(
        out.contains("K2") && out.contains("waits for its first login") && out.contains("alice@bastion"),
        "{out}"
    );
    assert_eq!((status(&rig, "K1"), status(&rig, "K2")), ("active".into(), "pending".into()));
    assert!(rig.ssh("alice", "true").status.success(), "the old key still works");

    let output = ssh_with(&rig, "alice", "id_new", &["db-1", "echo in"]);
    assert_eq!(text(output.stdout), "in\n", "{}", text(output.stderr));
    wait_for("the old key to give way", || status(&rig, "K1") == "retiring");
    assert_eq!(status(&rig, "K2"), "active");
    wait_for("the old key to retire", || status(&rig, "K1") == "retired");
    assert!(!text(rig.ssh("alice", "echo in").stdout).contains("in"), "the old key has retired");
    let output = ssh_with(&rig, "alice", "id_new", &["db-1", "echo in"]);
    assert_eq!(text(output.stdout), "in\n", "{}", text(output.stderr));
    for name in ["ssh_key_rotated", "ssh_key_activated", "ssh_key_retiring", "ssh_key_retired"] {
        wait_for(name, || events(&rig, name) == 1);
    }
    rig.ok(&["users", "add", "bob"]);
    let file = rig.path("id_alice.pub");
    for user in ["alice", "bob"] {
        let again = rig.run(&["ssh-keys", "add", "--user", user, "--file", file.to_str().unwrap()]);
        assert_eq!(
            again.status.code(),
            Some(5),
            "a retired key is never added again: {}",
            text(again.stderr)
        );
    }
}

#[test]
fn a_new_key_that_never_completes_a_login_replaces_nothing() {
    let rig = Rig::with_alice_and("[keys]\noverlap = \"1s\"\n");
    rig.keygen("id_new");
    assert!(rotate(&rig, "alice", "id_new", &[]).status.success());
    let good = fs::read(rig.path("code_alice")).unwrap();
    rig.script("code_alice", "echo 000000");
    let output = ssh_with(&rig, "alice", "id_new", &["-o", "NumberOfPasswordPrompts=1", "db-1", "echo in"]);
    assert_eq!(output.status.code(), Some(255), "the key alone is no login");
    fs::write(rig.path("code_alice"), good).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!((status(&rig, "K1"), status(&rig, "K2")), ("active".into(), "pending".into()));
    assert!(rig.ssh("alice", "true").status.success());
}

#[test]
fn what_cannot_be_a_successor_is_refused_and_changes_nothing() {
    let rig = Rig::with_alice();
    rig.add_user("mallory");
    rig.keygen("id_new");
    for (new, more, code, says) in [
        ("id_alice", &[][..], 5, "known already"),
        ("id_mallory", &[], 5, "belongs to another user"),
        ("id_new", &["--old", "K2"], 4, "another user's key"),
        ("id_new", &["--user", "mallory", "--old", "K2"], 4, "for admins"),
        ("id_new", &["--old", "K9"], 3, "no key K9"),
    ] {
        let output = rotate(&rig, "alice", new, more);
        let err = text(output.stderr);
        assert!(output.status.code() == Some(code) && err.contains(says), "{new} {more:?}: {err}");
    }
    let nothing = rig.client("ssh", "alice").args(["bastion", "ssh-keys", "rotate"]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(2), "{}", text(nothing.stderr));
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 2);
    rig.ok(&[
        "ssh-keys",
        "rotate",
        "--user",
        "alice",
        "--old",
        "K1",
        "--file",
        rig.path("id_new.pub").to_str().unwrap(),
    ]);
    rig.keygen("id_newer");
    let file = rig.path("id_newer.pub");
    let output = rig.run(&["ssh-keys", "rotate", "--old", "K1", "--file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(output.stderr).contains("K3 already waits"));
}

#[test]
fn a_rotation_survives_a_kill_9_at_each_step() {
    let mut rig = Rig::with_alice_and("[keys]\noverlap = \"4s\"\n");
    rig.keygen("id_new");
    assert!(rotate(&rig, "alice", "id_new", &[]).status.success());
    rig.kill_9();
    rig.serve();
    assert_eq!((status(&rig, "K1"), status(&rig, "K2")), ("active".into(), "pending".into()));
    assert!(
        ssh_with(&rig, "alice", "id_new", &["bastion", "ssh-keys", "list", "--user", "alice"])
            .status
            .success()
    );
    rig.kill_9();
    rig.serve();
    wait_for("the old key to give way", || status(&rig, "K1") == "retiring");
    rig.kill_9();
    std::thread::sleep(std::time::Duration::from_secs(4));
    rig.serve();
    assert_eq!((status(&rig, "K1"), status(&rig, "K2")), ("retired".into(), "active".into()));
    wait_for("the trail to say so", || events(&rig, "ssh_key_retired") == 1);
    rig.ok(&["logs", "verify"]);
}

#[test]
fn an_expired_key_in_grace_is_exchanged_and_opens_nothing_else() {
    let rig = Rig::with_alice_and("[keys]\nmax_age = \"14s\"\nwarn = [\"13s\"]\ngrace = \"30s\"\n");
    wait_for("the warning", || events(&rig, "ssh_key_expiring") == 1);
    let output = rig.client("ssh", "alice").arg("bastion").output().unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(
        out.contains("Your key K1 expires in ") && err.contains("Your key K1 expires in "),
        "{out} {err}"
    );
    let err = text(rig.ssh("alice", "true").stderr);
    assert_eq!(
        err.matches("Your key K1 expires in ").count(),
        2,
        "at the prompt, and as the inner banner: {err}"
    );
    wait_for("the key to expire", || events(&rig, "ssh_key_expired") == 1);

    let output = rig.ssh("alice", "echo reached");
    assert!(!text(output.stdout).contains("reached"));
    assert!(text(output.stderr).contains("Your key has expired; exchange it first"));
    let desk = |words: &[&str]| rig.client("ssh", "alice").arg("bastion").args(words).output().unwrap();
    for words in [&["ssh-keys", "list"][..], &["status"], &["ssh-keys", "revoke", "K1", "--reason", "x"]] {
        let output = desk(words);
        assert_eq!(output.status.code(), Some(4), "{words:?}: {}", text(output.stderr));
    }
    for words in [&["setup"][..], &["help"]] {
        let output = desk(words);
        assert!(output.status.success(), "{words:?}: {}", text(output.stderr));
    }
    let page = text(desk(&[]).stdout);
    assert!(page.contains("it can be exchanged, and nothing else") && !page.contains("ssh -J"), "{page}");

    rig.keygen("id_new");
    let output = rotate(&rig, "alice", "id_new", &[]);
    assert!(output.status.success(), "{}", text(output.stderr));
    let output = ssh_with(&rig, "alice", "id_new", &["db-1", "echo in"]);
    assert_eq!(text(output.stdout), "in\n", "{}", text(output.stderr));
    wait_for("the old key to retire", || status(&rig, "K1") == "retired");
    assert_eq!(rotate(&rig, "alice", "id_new", &[]).status.code(), Some(255), "a retired key opens nothing");
}

#[test]
fn after_its_grace_an_expired_key_opens_nothing_at_all() {
    let rig = Rig::with_alice_and("[keys]\nmax_age = \"2s\"\nwarn = []\ngrace = \"1s\"\n");
    std::thread::sleep(std::time::Duration::from_secs(4));
    rig.keygen("id_new");
    assert_eq!(rotate(&rig, "alice", "id_new", &[]).status.code(), Some(255));
    assert_eq!(rig.client("ssh", "alice").arg("bastion").output().unwrap().status.code(), Some(255));
    assert_eq!(status(&rig, "K1"), "expired");
    let file = rig.path("id_new.pub");
    rig.ok(&["ssh-keys", "rotate", "--user", "alice", "--old", "K1", "--file", file.to_str().unwrap()]);
}

#[test]
fn who_names_somebody_elses_key_keeps_its_owner_out_only_until_an_administrator_vouches() {
    let rig = Rig::with_alice();
    rig.add_user("mallory");
    rig.keygen("id_next");
    // A public key is public.
    assert!(rotate(&rig, "mallory", "id_next", &[]).status.success());
    let taken = rotate(&rig, "alice", "id_next", &[]);
    assert!(text(taken.stderr).contains("belongs to another user"), "she cannot tell who of them it is");
    rig.keygen("id_spite");
    assert!(rotate(&rig, "mallory", "id_spite", &[]).status.code() == Some(5), "one at a time");

    let file = |name: &str| rig.path(&format!("{name}.pub")).to_str().unwrap().to_owned();
    let added = rig.json(&["ssh-keys", "add", "--user", "alice", "--file", &file("id_next")]);
    assert_eq!((&added["user"], &added["status"]), (&"alice".into(), &"active".into()));
    let output = ssh_with(&rig, "alice", "id_next", &["db-1", "echo mine"]);
    assert_eq!(text(output.stdout), "mine\n", "{}", text(output.stderr));
    let told = rig.events("ssh_key_revoked");
    assert_eq!(told.last().unwrap()["reason"], "never proven, and another user's");

    // What somebody has logged in with is theirs, also for an administrator.
    let id = |name: &str| ["ssh-keys", "add", "--user", name, "--file"].map(str::to_owned);
    let words = [&id("mallory")[..], &[file("id_next")]].concat();
    assert_eq!(rig.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).status.code(), Some(5));
    let words = [&id("alice")[..], &[file("id_mallory")]].concat();
    assert_eq!(rig.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).status.code(), Some(5));

    // What was revoked never comes back, whoever revoked it: she makes another key.
    assert!(rotate(&rig, "mallory", "id_spite", &[]).status.success());
    let hers = rig.json(&["ssh-keys", "list", "--user", "mallory"]);
    let waits = hers.as_array().unwrap().iter().find(|key| key["status"] == "pending").unwrap();
    let revoke = format!("ssh-keys revoke {} --reason spite", waits["id"].as_str().unwrap());
    assert!(rig.client("ssh", "mallory").args(["bastion", &revoke]).status().unwrap().success());
    let words = [&id("alice")[..], &[file("id_spite")]].concat();
    let refused = rig.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(5), "{}", text(refused.stderr));
}

#[test]
fn a_successor_that_waits_is_revoked_with_the_key_that_vouched_for_it_and_one_in_use_is_named() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    for (user, new) in [("alice", "id_waits"), ("bob", "id_used")] {
        rig.keygen(new);
        assert!(rotate(&rig, user, new, &[]).status.success());
    }
    let used = ssh_with(&rig, "bob", "id_used", &["bastion", "ssh-keys list --user bob"]);
    assert!(used.status.success(), "{}", text(used.stderr));
    wait_for("bob's new key", || status(&rig, "K4") == "active");
    let told = rig.ok(&["ssh-keys", "revoke", "K1", "--reason", "stolen"]);
    assert!(told.contains("K3 waited to replace it and was revoked with it"), "{told}");
    assert_eq!(status(&rig, "K3"), "revoked");
    let late = ssh_with(&rig, "alice", "id_waits", &["db-1", "echo in"]);
    assert!(!late.status.success() && late.stdout.is_empty(), "a thief's next key opens nothing");
    let told = rig.ok(&["ssh-keys", "revoke", "K2", "--reason", "stolen"]);
    assert!(told.contains("K4 (active) was added with it"), "{told}");
    assert_eq!(status(&rig, "K4"), "active");
}
