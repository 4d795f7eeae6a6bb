//! `ssh alice@bastion …`: her page, her configuration, and commands as far as her role goes.

use std::fs;
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, text, wait_for, write};

fn desk(rig: &Rig, user: &str, command: &[&str]) -> Output {
    rig.shared("ssh", user).arg("bastion").args(command).output().unwrap()
}

#[test]
fn the_page_shows_who_she_is_her_keys_and_where_she_may_go() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.add_instance("db-2");
    let output = desk(&rig, "alice", &[]);
    let page = text(output.stdout);
    assert!(output.status.success(), "{page}");
    let key =
        rig.json(&["ssh-keys", "list", "--user", "alice"])[0]["fingerprint"].as_str().unwrap().to_owned();
    let way = format!("ssh -J alice@bastion {}@db-1", rig.login);
    for word in ["You are alice (engineer)", "0 d", &key, &way, "shell,exec,sftp"] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert!(!page.contains("bob") && !page.contains("db-2"), "{page}");
}

#[test]
fn the_configuration_of_setup_is_all_a_stock_client_needs() {
    let rig = Rig::with_alice();
    rig.ok(&["instances", "remove", "db-1", "--yes"]);
    let (address, key) = (format!("127.0.0.1:{}", rig.instance_port), rig.path("instance_key.pub"));
    let add =
        ["instances", "add", "db-1", "--alias", "main-db", "--address", &address, "--login", &rig.login];
    rig.ok(&[&add[..], &["--host-key", key.to_str().unwrap()]].concat());
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &rig.login]);
    let printed = text(desk(&rig, "alice", &["setup"]).stdout);
    // Her own part, and what keeps this test out of ~/.ssh; the rest is used as printed.
    let sockets = rig.path("own-%C").display().to_string();
    let own = format!(
        "{}\nHost *\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n",
        printed.replace("~/.ssh/keyward-%C", &sockets),
        rig.path("id_alice").display()
    );
    let config = rig.path("own_config");
    fs::write(&config, own).unwrap();
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        rig.asking(command.arg("-F").arg(&config).args(args).stdin(Stdio::null()), "alice");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}\n{printed}", text(output.stderr));
        text(output.stdout)
    };
    // Codes are counted from here; `setup` took one.
    fs::write(rig.path("count_alice"), "3").unwrap();
    assert_eq!(run("ssh", &["db-1", "echo reached"]), "reached\n");
    assert_eq!(run("ssh", &["main-db", "echo by alias"]), "by alias\n");
    assert!(run("ssh", &["bastion", "ssh-keys", "list"]).contains("alice"));
    let content = write(&rig.path("up"), 5000);
    let there = rig.path("there");
    run("scp", &[rig.path("up").to_str().unwrap(), &format!("db-1:{}", there.display())]);
    assert!(fs::read(there).unwrap() == content);
    assert_eq!(fs::read_to_string(rig.path("count_alice")).unwrap().trim(), "4", "one code for all of it");
    // Trust in one authority is no trust in others: the printed line with another key reaches nothing.
    rig.keygen("other_ca");
    let other = fs::read_to_string(rig.path("other_ca.pub")).unwrap();
    let ours = printed.split_whitespace().find(|w| w.starts_with("AAAA")).unwrap();
    let text_of = fs::read_to_string(&config).unwrap().replace(ours, other.split(' ').nth(1).unwrap());
    fs::write(rig.path("wrong_config"), text_of.replace("own-%C", "wrong-%C")).unwrap();
    let mut wrong = Command::new("ssh");
    wrong.arg("-F").arg(rig.path("wrong_config")).args(["db-1", "echo reached"]).stdin(Stdio::null());
    let output = rig.asked(&mut wrong, "alice");
    assert!(output.stdout.is_empty() && text(output.stderr).contains("verification failed"));
}

#[test]
fn an_engineer_does_nothing_that_is_an_admins_or_an_auditors() {
    let rig = Rig::with_alice();
    for command in [
        "users add carol",
        "users list",
        "access allow --user alice --instance db-1 --login postgres",
        "access list",
        "access remove R1",
        "mfa reset alice",
        "instances list",
        "sessions list --user bob",
        "sessions kill 01a208b5-93a4-7976-b442-bac7974317e7",
        "logs verify",
        "logs export --start 1h",
        "status",
        "ssh-keys list --user bob",
        "ssh-config --user bob",
    ] {
        let output = desk(&rig, "alice", &[command]);
        assert_eq!(output.status.code(), Some(4), "{command}: {}", text(output.stderr));
        assert!(output.stdout.is_empty(), "{command}");
    }
    for (command, code) in
        [("ssh-keys list", 0), ("sessions list", 0), ("usres list", 2), ("'open", 2), ("serve", 2)]
    {
        assert_eq!(desk(&rig, "alice", &[command]).status.code(), Some(code), "{command}");
    }
    assert_eq!(rig.json(&["users", "list"]).as_array().unwrap().len(), 1);
    assert_eq!(rig.json(&["access", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn an_auditor_plays_and_exports_and_an_admin_administers() {
    let rig = Rig::with_alice();
    assert!(rig.ssh("alice", "echo on the tape").status.success());
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    rig.add_user_as("oscar", "auditor");
    rig.add_user_as("ada", "admin");
    let play = desk(&rig, "oscar", &["sessions", "play", &id, "--speed", "1000"]);
    assert!(play.status.success() && text(play.stdout).contains("on the tape"), "{}", text(play.stderr));
    let export = desk(&rig, "oscar", &["sessions", "export", &id]);
    let first = text(export.stdout).lines().next().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&first).unwrap()["version"], 2);
    assert_eq!(desk(&rig, "oscar", &["sessions", "verify", &id]).status.code(), Some(0));
    assert_eq!(desk(&rig, "oscar", &["logs", "verify"]).status.code(), Some(0));
    let logs = desk(&rig, "oscar", &["logs", "export", "--start", "1h"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&logs.stdout).unwrap().as_array().unwrap().len() > 5);
    assert_eq!(desk(&rig, "oscar", &["users", "add", "carol"]).status.code(), Some(4));
    let seen = rig.events("recording_viewed");
    assert!(seen.iter().any(|e| e["session"] == id.as_str() && e["by"] == "oscar"), "{seen:?}");

    assert_eq!(desk(&rig, "ada", &["users", "add", "carol"]).status.code(), Some(0));
    assert_eq!(desk(&rig, "ada", &["users", "add", "carol"]).status.code(), Some(5));
    assert_eq!(desk(&rig, "ada", &["users", "show", "nobody"]).status.code(), Some(3));
    assert_eq!(
        desk(&rig, "ada", &["sessions", "play", &id]).status.code(),
        Some(4),
        "an admin is no auditor"
    );
    rig.keygen("id_carol");
    let mut add = rig.shared("ssh", "ada");
    add.args(["bastion", "ssh-keys", "add", "--user", "carol"])
        .stdin(fs::File::open(rig.path("id_carol.pub")).unwrap());
    assert_eq!(add.status().unwrap().code(), Some(0));
    assert_eq!(rig.json(&["ssh-keys", "list", "--user", "carol"]).as_array().unwrap().len(), 1);
}

#[test]
fn an_admin_takes_no_recording_from_the_auditors() {
    let rig = Rig::with_alice();
    assert!(rig.ssh("alice", "echo on the tape").status.success());
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    rig.add_user_as("ada", "admin");
    rig.add_user_as("oscar", "auditor");
    let other = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let rewrap = ["recording", "rewrap", "--recipient", other];
    for user in ["ada", "oscar"] {
        assert_eq!(desk(&rig, user, &rewrap).status.code(), Some(4), "{user}");
    }
    assert!(rig.events("recordings_rewrapped").is_empty());
    assert_eq!(desk(&rig, "ada", &["recording", "rewrap"]).status.code(), Some(0), "as configured");
    // On the bastion itself another reader is added, and the auditors stay.
    let done = rig.json(&rewrap);
    assert_eq!(done["recipients"].as_array().unwrap().len(), 2, "{done}");
    assert_eq!(rig.events("recordings_rewrapped")[1]["recipients"], done["recipients"]);
    let play = desk(&rig, "oscar", &["sessions", "play", &id, "--speed", "1000"]);
    assert!(text(play.stdout).contains("on the tape"), "{}", text(play.stderr));
}

#[test]
fn explain_tells_an_engineer_nothing_of_what_she_may_not_enter() {
    let rig = Rig::with_alice();
    rig.add_instance("db-7");
    let login = rig.login.clone();
    rig.ok(&["access", "deny", "--user", "alice", "--instance", "db-7", "--login", &login]);
    let mut said = Vec::new();
    for host in ["db-7", "db-8"] {
        for form in ["", " --json"] {
            let output = desk(&rig, "alice", &[&format!("access explain alice {login}@{host}{form}")]);
            assert_eq!(output.status.code(), Some(0), "{}", text(output.stderr));
            said.push(format!("{}{}", text(output.stdout), text(output.stderr)).replace(host, "HOST"));
        }
    }
    assert_eq!(said[..2], said[2..], "whether it exists or not");
    let own = text(desk(&rig, "alice", &[&format!("access explain alice {login}@db-1")]).stdout);
    assert!(own.contains("allowed: ") && own.contains("R1"), "{own}");
    // Who administers is told which rule it was, and what was perhaps meant.
    assert!(rig.ok(&["access", "explain", "alice", &format!("{login}@db-7")]).contains("R2 forbids"));
    assert_eq!(rig.run(&["access", "explain", "alice", &format!("{login}@db-8")]).status.code(), Some(3));
}

#[test]
fn the_name_a_stranger_gives_commands_no_terminal() {
    let rig = Rig::with_alice();
    let stranger = rig.client("ssh", "alice").args(["-l", "eve\u{9b}2J", "bastion"]).output().unwrap();
    assert_eq!(stranger.status.code(), Some(255));
    let mut told = String::new();
    wait_for("the failed login", || {
        told = rig.ok(&["logs", "tail", "-n", "20"]);
        told.contains("ssh_login_failed")
    });
    assert!(!told.contains('\u{9b}') && told.contains("eve\\u009b2J"), "{told}");
    assert_eq!(rig.events("ssh_login_failed")[0]["user"], "eve\u{9b}2J", "the name itself is kept");
}
