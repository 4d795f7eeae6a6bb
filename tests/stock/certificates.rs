//! Certificates of somebody else's authority, made by ssh-keygen: for users who have no key here.

use std::fs;
use std::process::{Command, Stdio};

use crate::rig::{Rig, text, wait_for};

fn keygen(rig: &Rig, args: &[&str]) {
    let output =
        Command::new("ssh-keygen").arg("-q").args(args).current_dir(rig.dir.path()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(output.stderr));
}

/// alice with her key, carol without one, and a bastion that trusts `corp_ca` by SIGHUP.
fn rig() -> Rig {
    let rig = Rig::with_alice();
    for name in ["corp_ca", "other_ca", "id_carol"] {
        rig.keygen(name);
    }
    fs::write(rig.path("revoked"), "# nothing yet\n").unwrap();
    let config = rig.path("bastion/keyward.toml");
    let said =
        fs::read_to_string(&config).unwrap() + "[user_ca]\nkeys = \"../corp_ca.pub\"\nkrl = \"../revoked\"\n";
    fs::write(&config, said).unwrap();
    assert!(Command::new("kill").args(["-HUP", &rig.pid().to_string()]).status().unwrap().success());
    wait_for("the reload", || !rig.events("config_reloaded").is_empty());
    rig.ok(&["users", "add", "carol"]);
    let login = rig.login.clone();
    rig.ok(&["access", "allow", "--user", "carol", "--instance", "db-1", "--login", &login]);
    rig.authenticator("carol", &rig.json(&["mfa", "enroll", "carol"]));
    rig
}

/// A certificate of `ca` beside carol's key, where the stock client finds it.
fn certify(rig: &Rig, ca: &str, more: &[&str]) {
    keygen(rig, &[&["-s", ca, "-I", "carol@corp", "-z", "7"][..], more, &["id_carol.pub"]].concat());
}

const GOOD: [&str; 4] = ["-n", "carol", "-V", "-1m:+1h"];

fn refused(rig: &Rig, user: &str) -> bool {
    let output =
        rig.client("ssh", user).args(["-o", "NumberOfPasswordPrompts=1", "bastion"]).output().unwrap();
    output.status.code() == Some(255)
}

#[test]
fn a_certificate_and_a_code_let_in_who_has_no_key_here() {
    let rig = rig();
    assert!(refused(&rig, "carol"), "the key alone is nobody's");
    certify(&rig, "corp_ca", &GOOD);
    let output = rig.ssh("carol", "echo in");
    assert_eq!(text(output.stdout), "in\n", "{}", text(output.stderr));
    let event = rig.events("ssh_login_succeeded").pop().unwrap();
    let named = event["certificate"].as_str().unwrap();
    assert!(named.starts_with("serial 7, key id \"carol@corp\", of SHA256:"), "{named}");
    let page = text(rig.client("ssh", "carol").arg("bastion").output().unwrap().stdout);
    assert!(page.contains("You came with the certificate serial 7"), "{page}");
    let mut rotate = rig.client("ssh", "carol");
    let new = fs::File::open(rig.path("other_ca.pub")).unwrap();
    let rotate = rotate.args(["bastion", "ssh-keys", "rotate"]).stdin(new).output().unwrap();
    assert!(rotate.status.code() == Some(5) && text(rotate.stderr).contains("whoever gave it renews it"));
    rig.script("code_carol", "echo 000000");
    assert!(refused(&rig, "carol"), "a certificate is no code");
    rig.ended_sessions();
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_certificate_that_is_not_right_in_every_part_is_none() {
    let rig = rig();
    for (ca, options) in [
        ("other_ca", &GOOD[..]),
        ("corp_ca", &["-n", "dave", "-V", "+1h"]),
        ("corp_ca", &["-n", "carol", "-V", "+91d"]),
        ("corp_ca", &["-n", "carol", "-V", "+1h", "-O", "force-command=true"]),
        ("corp_ca", &["-n", "carol", "-V", "+1h", "-O", "source-address=10.0.0.0/8"]),
    ] {
        certify(&rig, ca, options);
        assert!(refused(&rig, "carol"), "{ca} {options:?}");
    }
    assert!(rig.events("ssh_login_succeeded").is_empty());
    certify(&rig, "corp_ca", &["-n", "carol", "-V", "-1m:+1h", "-O", "source-address=127.0.0.0/8"]);
    assert!(rig.ssh("carol", "true").status.success());
}

#[test]
fn the_trail_says_why_a_certificate_was_refused() {
    let rig = rig();
    let failed = || rig.events("ssh_login_failed");
    for (count, (options, reason)) in [
        (["-n", "carol", "-V", "-2h:-1h"], "certificate expired"),
        (["-n", "carol", "-V", "+1h:+2h"], "certificate not valid yet"),
        (["-n", "dave", "-V", "-1m:+1h"], "certificate not for this user"),
    ]
    .into_iter()
    .enumerate()
    {
        certify(&rig, "corp_ca", &options);
        assert!(refused(&rig, "carol"), "{options:?}");
        wait_for("the event", || failed().len() == count + 1);
        let event = failed().pop().unwrap();
        assert_eq!((event["user"].as_str(), event["reason"].as_str()), (Some("carol"), Some(reason)));
    }
    certify(&rig, "corp_ca", &GOOD);
    assert!(rig.ssh("carol", "true").status.success());
    assert_eq!(failed().len(), 3, "one that counts is no failure, though its bare key is none");
}

#[test]
fn a_certificate_is_for_users_without_a_key_and_not_for_keys_that_were_revoked() {
    let rig = rig();
    certify(&rig, "corp_ca", &["-n", "carol,alice,nobody", "-V", "-1m:+1h"]);
    for user in ["alice", "nobody"] {
        let mut ssh = rig.client("ssh", "carol");
        let denied =
            ssh.args(["-o", "NumberOfPasswordPrompts=1", &format!("{user}@bastion")]).output().unwrap();
        assert_eq!(denied.status.code(), Some(255), "{user}");
    }
    rig.ok(&["users", "suspend", "carol"]);
    assert!(refused(&rig, "carol"), "suspended");
    rig.ok(&["users", "resume", "carol"]);
    assert!(rig.ssh("carol", "true").status.success());
    let file = rig.path("id_carol.pub");
    rig.ok(&["ssh-keys", "add", "--user", "carol", "--file", file.to_str().unwrap()]);
    assert!(rig.ssh("carol", "true").status.success(), "by the key itself now");
    assert!(rig.events("ssh_login_succeeded").last().unwrap()["certificate"].is_null());
    rig.ok(&["ssh-keys", "revoke", "K2", "--reason", "lost"]);
    assert!(refused(&rig, "carol"), "no certificate brings a revoked key back");
}

#[test]
fn what_the_authority_revokes_is_cut_and_a_list_that_cannot_be_read_lets_nobody_in() {
    let rig = rig();
    certify(&rig, "corp_ca", &GOOD);
    let live = || {
        let mut ssh = rig.client("ssh", "carol");
        let child = ssh.args(["db-1", "echo up; sleep 60"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        wait_for("the session", || rig.json(&["sessions", "list", "--live"])[0]["id"].is_string());
        child
    };
    let session = live();
    fs::write(rig.path("spec"), "serial: 7\n").unwrap();
    keygen(&rig, &["-k", "-f", "krl", "-s", "corp_ca.pub", "spec"]);
    fs::rename(rig.path("krl"), rig.path("revoked")).unwrap();
    let told = text(session.wait_with_output().unwrap().stderr);
    assert!(told.contains("Your certificate has expired or was revoked."), "{told}");
    assert!(refused(&rig, "carol"));

    fs::write(rig.path("revoked"), "revoke everything\n").unwrap();
    wait_for("the fault in the log", || {
        fs::read_to_string(rig.path("log")).unwrap().contains("user_ca.faulty")
    });
    assert!(refused(&rig, "carol"));
    fs::write(rig.path("revoked"), "serial: 8\n").unwrap();
    let log = || fs::read_to_string(rig.path("log")).unwrap();
    wait_for("the list to be read", || log().rfind("user_ca.read") > log().rfind("user_ca.faulty"));
    // Valid for some seconds only: the session ends with it.
    certify(&rig, "corp_ca", &["-n", "carol", "-V", "-1m:+10s"]);
    let told = text(live().wait_with_output().unwrap().stderr);
    assert!(told.contains("Your certificate has expired or was revoked."), "{told}");
    assert!(rig.ssh("alice", "true").status.success());
}

#[test]
fn of_two_certificates_of_one_key_each_stands_for_its_own_login() {
    let rig = rig();
    let mut seen = 0;
    let mut live = |serial: &str| {
        certify(&rig, "corp_ca", &[&GOOD[..], &["-z", serial]].concat());
        let mut ssh = rig.client("ssh", "carol");
        let child = ssh.args(["db-1", "echo up; sleep 60"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        seen += 1;
        wait_for("the session", || {
            rig.json(&["sessions", "list", "--live"]).as_array().unwrap().len() == seen
        });
        child
    };
    let (first, mut second) = (live("7"), live("8"));
    fs::write(rig.path("revoked"), "serial: 7\n").unwrap();
    let told = text(first.wait_with_output().unwrap().stderr);
    assert!(told.contains("Your certificate has expired or was revoked."), "{told}");
    assert!(second.try_wait().unwrap().is_none(), "that of the newer certificate goes on");
    fs::write(rig.path("revoked"), "serial: 7-8\n").unwrap();
    let told = text(second.wait_with_output().unwrap().stderr);
    assert!(told.contains("Your certificate has expired or was revoked."), "{told}");
}
