//! Where a jump leads: every name of an instance, and nowhere else; what the instance must prove, and what it sees.

use std::fs;
use std::process::Command;

use crate::rig::{Rig, free_port, text};

/// `ssh` to `host` with `options`, echoing a word there; stdout and stderr.
fn reach(rig: &Rig, options: &[&str], host: &str) -> (String, String) {
    let output = rig.shared("ssh", "alice").args(options).args([host, "echo reached"]).output().unwrap();
    (text(output.stdout), text(output.stderr))
}

/// One more instance at `port` that alice may reach, proven by `trust`.
fn instance(rig: &Rig, name: &str, port: u16, trust: [&str; 2]) {
    let login = rig.login.as_str();
    let address = format!("127.0.0.1:{port}");
    let add = ["instances", "add", name, "--address", &address, "--login", login, "--alias", "main-db"];
    rig.ok(&[&add[..], &trust[..]].concat());
    rig.ok(&["access", "allow", "--user", "alice", "--instance", name, "--login", login]);
}

#[test]
fn an_instance_answers_to_its_name_alias_and_address_at_any_port() {
    let rig = Rig::with_alice();
    let key = rig.path("instance_key.pub");
    rig.ok(&["instances", "remove", "db-1", "--yes"]);
    instance(&rig, "db-1", rig.instance_port, ["--host-key", key.to_str().unwrap()]);
    let jump: &[&str] = &["-J", "bastion", "-l", &rig.login];
    for (options, host) in [
        (&[][..], "db-1"),
        (&[], "main-db"),
        // The stock client writes names in small letters, unless HostName says otherwise.
        (&["-o", "HostName=DB-1"], "db-1"),
        (jump, "127.0.0.1"),
        (&["-p", "4444"], "db-1"),
    ] {
        let (out, err) = reach(&rig, options, host);
        assert_eq!(out, "reached\n", "{options:?} {host}: {err}");
    }
    assert!(rig.ended_sessions().iter().all(|s| s["instance"] == "db-1"));
}

#[test]
fn what_is_unknown_and_what_is_not_allowed_are_refused_in_the_same_words() {
    let rig = Rig::with_alice();
    rig.add_instance("db-2");
    let mut said = Vec::new();
    for host in ["db-2", "db-9"] {
        // Both ways: with a client of its own, and with one that shares a connection.
        for mut ssh in [rig.client("ssh", "alice"), rig.shared("ssh", "alice")] {
            let output = ssh.args([host, "echo reached"]).output().unwrap();
            let err = text(output.stderr);
            assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(255), &b""[..]), "{err}");
            let sentence = format!("You have no access to an instance named {host} (request ");
            assert!(err.contains(&sentence), "{err}");
            said.push(err.replace(host, "HOST").split("(request").next().unwrap().to_owned());
        }
    }
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:?}");
    let denied = rig.events("access_denied");
    assert_eq!(denied.len(), 4);
    assert_eq!(denied[0]["instance"], "db-2");
    // A port forward to nowhere is refused as a channel.
    let out = rig.paramiko(
        "alice",
        "t = outer()\ntry: t.open_channel('direct-tcpip', ('db-9', 80), ('127.0.0.1', 1))\n\
         except paramiko.ChannelException as e: print(e.code)\n",
    );
    assert_eq!(out, "1\n", "administratively prohibited");
}

#[test]
fn a_login_that_no_rule_names_is_refused_with_a_sentence() {
    let rig = Rig::with_alice();
    let (out, err) = reach(&rig, &["-l", "nobody"], "db-1");
    assert!(out.is_empty() && err.contains("do not let you in as nobody@db-1. (session "), "{err}");
    let denied = rig.events("access_denied");
    assert_eq!(denied[0]["login"], "nobody");
    assert_eq!(rig.json(&["sessions", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(reach(&rig, &[], "db-1").0, "reached\n", "her own login");
}

#[test]
fn a_host_key_that_is_not_on_record_is_fatal_told_and_audited() {
    let rig = Rig::with_alice();
    rig.keygen("other_key");
    instance(&rig, "db-2", rig.instance_port, ["--host-key", rig.path("other_key.pub").to_str().unwrap()]);
    let (out, err) = reach(&rig, &[], "db-2");
    assert!(out.is_empty() && err.contains("db-2 shows a host key that is not on record"), "{err}");
    let [event] = &rig.events("instance_host_key_mismatch")[..] else { panic!("one event") };
    let shown = Command::new("ssh-keygen").arg("-lf").arg(rig.path("instance_key.pub")).output().unwrap();
    assert!(text(shown.stdout).contains(event["offered"].as_str().unwrap()), "{event}");
    assert_eq!((&event["instance"], &event["user"]), (&"db-2".into(), &"alice".into()));
    let sshd = fs::read_to_string(rig.path("sshd.log")).unwrap();
    assert!(!sshd.contains("Accepted"), "no login was tried there: {sshd}");
}

#[test]
fn an_instance_that_does_not_answer_is_named() {
    let rig = Rig::with_alice();
    let key = rig.path("instance_key.pub");
    instance(&rig, "db-2", free_port(), ["--host-key", key.to_str().unwrap()]);
    let (out, err) = reach(&rig, &[], "db-2");
    assert!(out.is_empty() && err.contains("keyward: db-2 does not answer. (session "), "{err}");
    assert_eq!(rig.events("instance_unreachable").len(), 1);
}

#[test]
fn a_host_certificate_proves_its_own_instance_and_no_other() {
    let mut rig = Rig::with_alice();
    rig.keygen("host_ca");
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-I", "db-2", "-h", "-n", "db-2", "-s"]).arg(rig.path("host_ca"));
    assert!(sign.arg(rig.path("instance_key.pub")).status().unwrap().success());
    let config = rig.path("sshd_config");
    let certificate = format!("HostCertificate {}\n", rig.path("instance_key-cert.pub").display());
    fs::write(&config, fs::read_to_string(&config).unwrap() + &certificate).unwrap();
    rig.restart_sshd();
    let ca = rig.path("host_ca.pub");
    instance(&rig, "db-2", rig.instance_port, ["--host-ca", ca.to_str().unwrap()]);
    assert_eq!(reach(&rig, &[], "db-2").0, "reached\n");
    rig.ok(&["instances", "remove", "db-2", "--yes"]);
    instance(&rig, "db-3", rig.instance_port, ["--host-ca", ca.to_str().unwrap()]);
    let (out, err) = reach(&rig, &[], "db-3");
    assert!(out.is_empty() && err.contains("host key that is not on record"), "{err}");
    assert_eq!(reach(&rig, &[], "db-1").0, "reached\n", "the same machine, pinned");
}

#[test]
fn the_instance_sees_a_certificate_of_minutes_that_names_user_and_session() {
    let rig = Rig::with_alice();
    let output = rig.ssh("alice", "cat $SSH_USER_AUTH");
    let certificate = text(output.stdout).replacen("publickey ", "", 1);
    fs::write(rig.path("seen-cert.pub"), certificate).unwrap();
    let shown =
        Command::new("ssh-keygen").arg("-Lf").arg(rig.path("seen-cert.pub")).env("TZ", "UTC").output();
    let shown = text(shown.unwrap().stdout);
    let field =
        |name: &str| shown.lines().find_map(|l| l.trim().strip_prefix(name)).unwrap_or_default().trim();
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(field("Key ID:"), format!("\"alice session {id}\""), "{shown}");
    let valid: Vec<jiff::civil::DateTime> =
        field("Valid:").split(' ').filter_map(|word| word.parse().ok()).collect();
    let [from, to] = valid.as_slice() else { panic!("{shown}") };
    assert!(from.duration_until(*to).as_secs() <= 300, "{shown}");
    let after = |name: &str| -> Vec<&str> {
        let lines = shown.lines().map(str::trim).skip_while(|l| !l.starts_with(name)).skip(1);
        lines.take_while(|l| !l.contains(':') && !l.is_empty()).collect()
    };
    assert_eq!(after("Principals:"), [rig.login.as_str()], "{shown}");
    // Shell and command were granted; forwarding and the agent were not.
    assert_eq!(after("Extensions:"), ["permit-pty"], "{shown}");
    assert!(fs::read_to_string(rig.path("sshd.log")).unwrap().contains(&format!("ID alice session {id} ")));
}
