//! The command line: exit codes, JSON, faults that change nothing.

use std::fs;
use std::process::Command;

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

/// Makes a key file with ssh-keygen and returns the public one.
fn key(rig: &Rig, name: &str, kind: &[&str]) -> String {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-N", "", "-f"]).arg(rig.path(name)).arg("-t").args(kind);
    assert!(keygen.status().unwrap().success());
    rig.path(&format!("{name}.pub")).display().to_string()
}

#[test]
fn a_key_that_will_not_do_is_refused_in_one_sentence_that_says_what_will() {
    let rig = Rig::with_alice();
    rig.ok(&["users", "add", "bob"]);
    fs::write(rig.path("garbage"), "ssh-ed25519 garbage\n").unwrap();
    fs::write(rig.path("binary"), [0xff; 300]).unwrap();
    let file = |name: &str| rig.path(name).display().to_string();
    for (file, word) in [
        (key(&rig, "dsa", &["dsa"]), "DSA"),
        (key(&rig, "rsa2048", &["rsa", "-b", "2048"]), "RSA"),
        (key(&rig, "rsa4096", &["rsa", "-b", "4096"]), "RSA"),
        (key(&rig, "ecdsa", &["ecdsa"]), "ECDSA"),
        (file("garbage"), "not an OpenSSH public key"),
        (file("binary"), "UTF-8"),
        (file("id_alice"), "private key"),
        (file("nothing"), "No such file"),
    ] {
        let output = rig.run(&["ssh-keys", "add", "--user", "bob", "--file", &file]);
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {said}");
        assert!(said.contains(word) && said.trim().lines().count() == 1, "{file}: {said}");
    }
    assert_eq!(rig.json(&["ssh-keys", "list", "--user", "bob"]).as_array().unwrap().len(), 0);
    assert_eq!(rig.events("ssh_key_added").len(), 1, "alice's");
    rig.keygen("id_bob");
    rig.ok(&["ssh-keys", "add", "--user", "bob", "--file", &file("id_bob.pub")]);
}

#[test]
fn what_is_wrong_is_named_with_its_exit_code_and_changes_nothing() {
    let rig = Rig::with_alice();
    let key = rig.path("instance_key.pub").display().to_string();
    let login = ["--login", "root"];
    let before = ["users", "ssh-keys", "instances", "access"].map(|noun| rig.json(&[noun, "list"]));
    for (line, more, code, word) in [
        ("sesions list", &[][..], 2, "'sessions'"),
        ("ssh-keys lst", &[], 2, "'list'"),
        ("users add Alice!", &[], 2, "\"Alice!\" is not valid"),
        ("users add alice", &[], 5, "exists already"),
        ("users remove alice", &[], 2, "--yes"),
        ("users show alcie", &[], 3, "did you mean alice?"),
        ("instances show db-2", &[], 3, "did you mean db-1?"),
        ("access allow --user alcie --instance db-1", &login[..], 3, "did you mean alice?"),
        ("access allow --user alice --instance db-2", &login, 3, "did you mean db-1?"),
        ("access allow --user alice --instance db-1 --can shel", &login, 2, "use shell, exec"),
        ("access allow --user alice --instance db-1 --expires 2020-01-01", &login, 2, "in the past"),
        ("access allow --user alice --instance db-1 --from 10.0.0.0/99", &login, 2, "not a network"),
        ("instances add db-1 --address h:22 --login x --host-key", &[&key], 5, "an instance db-1 already"),
        ("instances add db-2 --address h:22 --login x", &[], 2, "--host-key"),
        ("instances add db-2 --address h --login x --host-key", &[&key], 2, "HOST:PORT"),
        ("instances add db-2 --address h:22 --login x --host-key /dev/null", &[], 1, "public host key"),
        ("sessions show 01a208b5-93a4-7976-b442-bac7974317e7", &[], 3, "no session"),
        ("sessions kill 01a208b5-93a4-7976-b442-bac7974317e7", &[], 3, "no"),
        ("ssh-keys revoke K99 --reason x", &[], 3, "no key K99"),
        ("access remove R99", &[], 3, "no rule R99"),
    ] {
        let args: Vec<&str> = line.split(' ').chain(more.iter().copied()).collect();
        let output = rig.run(&args);
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(said.contains(word), "{line}: {said}");
    }
    let after = ["users", "ssh-keys", "instances", "access"].map(|noun| rig.json(&[noun, "list"]));
    assert_eq!(before, after);
}

#[test]
fn a_fault_in_the_configuration_is_named_with_file_line_and_key() {
    let rig = Rig::bastion();
    let good = fs::read_to_string(rig.path("bastion/keyward.toml")).unwrap();
    let bad = rig.path("bad.toml").display().to_string();
    for (change, said) in [
        (good.replacen("state_dir", "state_dri", 1), "state_dri: unknown key; did you mean state_dir?"),
        (good.replacen("listen = \"", "listen = \"x", 1), "listen: "),
        (good.clone() + "[login]\nkey_secs = 1\n", "login.key_secs: 1 is out of range; use 5 to 600"),
        (good.clone() + "[login]\nkey_secs = \"a\"\n", "login.key_secs: "),
        (
            good.clone() + "[limits]\nmax_startup = 5\n",
            "max_startup: unknown key; did you mean max_startups?",
        ),
        (good.replacen("file:master.key", "pile:x", 1), "master_key: "),
    ] {
        fs::write(&bad, &change).unwrap();
        let key = said.split(':').next().unwrap().rsplit('.').next().unwrap();
        let line = 1 + change.lines().position(|l| l.starts_with(key)).unwrap();
        for command in [&["config", "check"][..], &["serve"]] {
            let output = rig.run(&[&["--config", bad.as_str()], command].concat());
            assert_eq!(output.status.code(), Some(1));
            let told = text(output.stderr);
            assert!(told.contains(&format!("{bad}:{line}: {said}")), "{line}: {told}");
        }
    }
    assert!(rig.run(&["config", "check"]).status.success());
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
