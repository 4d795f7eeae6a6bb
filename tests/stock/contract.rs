//! What the command line promises at its edges: exit codes, words, and JSON where it is asked for.

use std::fs;

use crate::rig::{Rig, text};

/// Runs each line; it must end with this code, and say this.
fn each(rig: &Rig, lines: &[(&str, i32, &str)]) {
    for (line, code, word) in lines {
        let output = rig.run(&line.split(' ').collect::<Vec<_>>());
        let said = format!("{}{}", text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(*code), "{line}: {said}");
        assert!(said.contains(word), "{line}: {said}");
    }
}

#[test]
fn the_last_admin_stays_and_what_says_nothing_or_the_same_again_is_refused() {
    let rig = Rig::with_alice();
    rig.add_user_as("ada", "admin");
    rig.ok(&["users", "add", "bob", "--expires", "1h"]);
    each(
        &rig,
        &[
            ("users remove ada --yes", 5, "the last admin"),
            ("users suspend ada", 5, "the last admin"),
            ("users add zed --expires 2020-01-01", 2, "in the past"),
            ("users suspend bob --reason=", 2, "say why"),
            ("users suspend bob --reason left", 0, ""),
            ("users suspend bob --reason again", 5, "(left)"),
            ("users resume bob --expires 2020-01-01", 2, "in the past"),
            ("--json users resume bob --expires never", 0, "\"expires_at\": null"),
            ("access deny --user bob --instance db-1 --login root --from 10.0.0.5/8", 0, "10.0.0.0/8"),
            ("access deny --user bob --instance db-1 --login root --from 10.0.0.0/8", 5, "R2 says exactly"),
            ("--json access remove r2", 0, "\"R2\""),
            ("access remove R99", 3, "keyward access list"),
            ("logs export --start 2026-01-02 --end 2026-01-01", 2, "--start is after --end"),
            ("sessions list --user nobody", 0, "no user nobody (never seen in a recording either)"),
            ("sessions list --instance nope", 0, "no instance nope"),
            ("ssh-keys list --user nobody", 0, "no user nobody"),
            ("sessions search --user nobody x", 0, "no user nobody"),
            ("sessions list --user bob", 0, "(none)"),
        ],
    );
    let mut reset = rig.shared("ssh", "ada");
    let output = reset.args(["bastion", "mfa", "reset", "ada"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(output.stderr));
    rig.add_user_as("eva", "admin");
    each(&rig, &[("users suspend ada", 0, ""), ("users remove eva --yes", 5, "the last admin")]);
    let resumed = rig.events("user_resumed");
    assert_eq!(resumed[0]["expires_at"], "never");
}

#[test]
fn what_is_asked_for_in_json_is_answered_in_json_and_a_denial_says_why() {
    let rig = Rig::with_alice();
    assert!(rig.json(&["ca", "show", "user"])["lines"][0].as_str().unwrap().starts_with("ssh-"));
    assert_eq!(format!("{}\n", rig.json(&["ca", "show", "host"])["lines"][0].as_str().unwrap()), {
        rig.ok(&["ca", "show", "host"])
    });
    let config = rig.json(&["ssh-config", "--user", "alice"]);
    assert_eq!(config["config"].as_str().unwrap(), rig.ok(&["ssh-config", "--user", "alice"]));
    assert_eq!(rig.json(&["config", "check"])["valid"], true);
    let made = rig.json(&["init", "--dir", rig.path("other").to_str().unwrap()]);
    assert_eq!(made["config"], rig.path("other/keyward.toml").to_str().unwrap());
    let fingerprints = &rig.json(&["instances", "show", "db-1"])["host_key_fingerprints"];
    assert!(fingerprints[0].as_str().unwrap().starts_with("SHA256:"));

    let to = format!("{}@db-1", rig.login);
    let why = |to: &str| {
        let told = rig.json(&["access", "explain", "alice", to, "--from", "192.0.2.7"]);
        (told["allowed"].as_bool().unwrap(), told["reason"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(why(&to), (true, String::new()));
    assert_eq!(why("nobody@db-1").1, "db-1 has no login nobody");
    let told = rig.json(&["access", "deny-all", "--reason", "drill", "--yes"]);
    assert_eq!((&told["lockdown"], &told["ended_sessions"]), (&"drill".into(), &0.into()));
    assert_eq!(why(&to), (false, "lockdown: drill".to_owned()));
    assert_eq!(rig.json(&["access", "deny-all", "--end"])["lockdown"], serde_json::Value::Null);
    rig.ok(&["access", "remove", "R1"]);
    let login = rig.login.clone();
    let rule = ["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login];
    rig.ok(&[&rule[..], &["--from", "10.0.0.0/8"]].concat());
    assert!(why(&to).1.contains("only from 10.0.0.0/8, not from 192.0.2.7"), "{:?}", why(&to));
}

#[test]
fn a_file_that_was_named_wrongly_says_nothing_against_the_trail_and_an_id_may_be_shortened() {
    let rig = Rig::with_alice();
    assert!(rig.ssh("alice", "echo once").status.success());
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(rig.json(&["sessions", "show", &id[..20]])["id"], id.as_str());
    assert!(rig.ok(&["sessions", "play", &id[..20], "--speed", "1000"]).contains("once"));
    let state = rig.path("bastion/state").display().to_string();
    let (key, empty) = (rig.path("bastion/audit_key.pub"), rig.path("empty"));
    fs::write(&empty, "").unwrap();
    let verify = |more: &[&str]| {
        let output = rig.run(&[&["logs", "verify", "--state", &state][..], more].concat());
        (output.status.code().unwrap(), text(output.stderr))
    };
    for named in [["--trust", "nofile"], ["--heads", "nofile"], ["--trust", empty.to_str().unwrap()]] {
        let (code, said) = verify(&named);
        assert!(code == 1 && said.contains(named[1]) && !said.contains("byte 0"), "{code}: {said}");
    }
    assert_eq!(verify(&["--trust", key.to_str().unwrap()]).0, 0);
    let around = rig.run(&["logs", "verify", "--state", rig.path("bastion").to_str().unwrap()]);
    assert!(text(around.stderr).contains("did you mean --state"), "the folder around it");
    let play = ["sessions", "play", &id, "--state", &state, "--speed", "1e-300", "--identity"];
    let played = rig.run(&[&play[..], &[rig.path("bastion/auditors.key").to_str().unwrap()]].concat());
    assert_eq!(played.status.code(), Some(2), "{}", text(played.stderr));
}

#[test]
fn an_admin_adds_an_instance_over_ssh_and_commands_are_typed_as_on_the_bastion() {
    let rig = Rig::with_alice();
    rig.add_user_as("ada", "admin");
    let desk = |user: &str, line: &str, stdin: Option<fs::File>| {
        let mut ssh = rig.shared("ssh", user);
        ssh.args(["bastion", line]);
        if let Some(stdin) = stdin {
            ssh.stdin(stdin);
        }
        let output = ssh.output().unwrap();
        (output.status.code(), format!("{}{}", text(output.stdout), text(output.stderr)))
    };
    let key = || Some(fs::File::open(rig.path("instance_key.pub")).unwrap());
    let add = "instances add db-2 --address 127.0.0.1:22 --login root --host-key";
    assert_eq!(desk("alice", &format!("{add} -"), key()).0, Some(4));
    assert_eq!(desk("ada", &format!("{add} /etc/passwd"), None).0, Some(2));
    let secret = Some(fs::File::open(rig.path("instance_key")).unwrap());
    let (code, said) = desk("ada", &format!("{add} -"), secret);
    assert!(code == Some(1) && said.contains("private key") && !said.contains("BEGIN"), "{said}");
    let (code, said) = desk("ada", &format!("keyward {add} -"), key());
    assert_eq!(code, Some(0), "{said}");
    assert!(desk("ada", "keyward instances show db-2", None).1.contains("SHA256:"));
    let (code, said) = desk("ada", "instances shw", None);
    assert!(code == Some(2) && !said.ends_with("\n\n"), "{said:?}");
    let (code, said) = desk("alice", "logs verify", None);
    assert!(code == Some(4) && said.contains("for auditors and admins"), "{said}");
    assert_eq!(desk("ada", "sources unban 192.0.2.1", None).0, Some(3));
}
