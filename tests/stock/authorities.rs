//! A CA changes with overlap: what trusts the one before goes on, what trusts the new one is seen, and then it is over.

use std::fs;

use crate::rig::{Rig, text};

/// What the instance trusts from now on; sshd reads the file at each login.
fn trust(rig: &Rig, lines: &str) {
    let part = rig.path("user_ca.part");
    fs::write(&part, lines).unwrap();
    fs::rename(part, rig.path("user_ca.pub")).unwrap();
}

fn announce(rig: &Rig, which: &str) -> String {
    rig.ok(&["ca", "rotate", which, "--overlap", "1h"])
}

#[test]
fn an_instance_is_entered_with_the_user_ca_that_it_knows_until_the_old_one_retires() {
    let mut rig = Rig::with_alice();
    let old = rig.ok(&["ca", "show", "user"]);
    assert_eq!(rig.run(&["ca", "retire", "user", "--yes"]).status.code(), Some(5), "there is no successor");
    // Whatever dies, it is announced or it is not.
    for (point, announced) in [("ca.announce.told", false), ("ca.announce.kept", true)] {
        rig.kill_9();
        rig.serve_dying_at(point);
        assert_eq!(rig.run(&["ca", "rotate", "user", "--overlap", "1h"]).status.code(), Some(6), "{point}");
        rig.died();
        rig.serve();
        assert_eq!(rig.ok(&["ca", "show", "user"]).lines().count(), if announced { 2 } else { 1 }, "{point}");
    }
    assert_eq!(rig.run(&["ca", "rotate", "user"]).status.code(), Some(5), "one at a time");
    let both = rig.ok(&["ca", "show", "user"]);
    assert!(both.starts_with(&old) && both.lines().all(|l| l.starts_with("ssh-ed25519 AAAA")), "{both}");

    // It knows the old one alone.
    assert_eq!(text(rig.ssh("alice", "echo old").stdout), "old\n");
    let status = rig.ok(&["status"]);
    assert!(status.contains("not yet seen to accept the new one: db-1"), "{status}");
    assert_eq!(rig.json(&["instances", "show", "db-1"])["needs_new_ca_line"], true);
    let script = rig.ok(&["instances", "trust-script", "db-1"]);
    assert!(both.lines().all(|line| script.contains(line)), "{script}");
    // It gets the new line, and is seen to take it.
    trust(&rig, &both);
    assert_eq!(text(rig.ssh("alice", "echo both").stdout), "both\n");
    assert_eq!(rig.json(&["instances", "show", "db-1"])["needs_new_ca_line"], false);
    assert!(rig.ok(&["instances", "list"]).contains("has the new CA line"));
    assert!(rig.ok(&["status"]).contains("every instance was seen to accept the new one"));

    assert_eq!(rig.run(&["ca", "retire", "user"]).status.code(), Some(2), "only with --yes");
    for (point, retired) in [("ca.retire.told", false), ("ca.retire.kept", true)] {
        rig.kill_9();
        rig.serve_dying_at(point);
        assert_eq!(rig.run(&["ca", "retire", "user", "--yes"]).status.code(), Some(6), "{point}");
        rig.died();
        rig.serve();
        assert_eq!(rig.ok(&["ca", "show", "user"]).lines().count(), if retired { 1 } else { 2 }, "{point}");
    }
    let new = rig.ok(&["ca", "show", "user"]);
    assert!(both.contains(&new) && new != old);
    assert_eq!(text(rig.ssh("alice", "echo new").stdout), "new\n");
    // Who knows only the one that has retired is told what to do; so is the auditor.
    trust(&rig, &old);
    let refused = rig.ssh("alice", "echo never");
    let told = text(refused.stderr);
    assert!(refused.stdout.is_empty());
    assert!(told.contains("keyward instances trust-script db-1 prints what to run there"), "{told}");
    assert!(rig.events("instance_unreachable")[0]["reason"].as_str().unwrap().contains("TrustedUserCAKeys"));
    let told = rig.events("ca_rotated");
    assert_eq!(told.last().unwrap()["not_seen_on"], serde_json::json!([]));
    assert_eq!(rig.events("ca_rotation_begun").last().unwrap()["successor"], told.last().unwrap()["key"]);
    rig.ok(&["logs", "verify"]);
}

#[test]
fn instances_are_asked_whether_they_trust_the_new_user_ca_before_the_old_one_retires() {
    let mut rig = Rig::bastion();
    rig.start_sshd();
    rig.add_instance("old-1");
    // Another one, whose list of authorities is its own; and one that is not there.
    let port = crate::rig::free_port();
    let config = fs::read_to_string(rig.path("sshd_config")).unwrap();
    let config = config
        .replace(&rig.instance_port.to_string(), &port.to_string())
        .replace("user_ca.pub", "both_ca.pub");
    let config = config.replace("sshd.pid", "both.pid");
    fs::write(rig.path("both_config"), config).unwrap();
    fs::write(rig.path("both_ca.pub"), rig.ok(&["ca", "show", "user"])).unwrap();
    let mut sshd = std::process::Command::new("/usr/sbin/sshd");
    let mut sshd = sshd.args(["-D", "-f"]).arg(rig.path("both_config")).spawn().unwrap();
    let _stop = scopeguard(move || {
        sshd.kill().ok();
        sshd.wait().ok();
    });
    crate::rig::wait_for("the other sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let (key, login) = (rig.path("instance_key.pub"), rig.login.clone());
    for (name, port) in [("both-1", port), ("down-1", crate::rig::free_port())] {
        let address = format!("127.0.0.1:{port}");
        let words = ["instances", "add", name, "--address", &address, "--login", &login, "--host-key"];
        rig.ok(&[words.as_slice(), &[key.to_str().unwrap()]].concat());
    }
    assert_eq!(rig.run(&["ca", "check"]).status.code(), Some(5), "there is no new one to ask for");
    announce(&rig, "user");
    let part = rig.path("both.part");
    fs::write(&part, rig.ok(&["ca", "show", "user"])).unwrap();
    fs::rename(part, rig.path("both_ca.pub")).unwrap();

    let told = rig.ok(&["ca", "check"]);
    assert!(told.contains("old-1") && told.contains("it trusts the one before alone"), "{told}");
    assert!(
        told.contains("down-1") && told.contains("does not answer") && !told.contains("both-1"),
        "{told}"
    );
    let status = rig.json(&["status"]);
    let user = &status["ca"]["user"];
    assert_eq!(user["not_seen_on"], serde_json::json!(["down-1", "old-1"]), "{user}");
    assert_eq!(user["asked"][1]["reason"], "it trusts the one before alone");
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("old-1 (it trusts the one before alone, asked "), "{warnings}");
    let events = rig.events("ca_not_trusted");
    let mut named: Vec<_> = events.iter().map(|e| e["instance"].as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(named, ["down-1", "old-1"]);
    // Each of these logins is recorded and sealed, like anybody's.
    let logins = rig.json(&["sessions", "list", "--user", "_keyward"]);
    let logins = logins.as_array().unwrap();
    assert!(logins.len() >= 3 && logins.iter().all(|s| s["status"] == "closed"), "{logins:?}");

    // The line comes to the one that lacked it; asked again it is no longer named, and its neighbour still is.
    trust(&rig, &rig.ok(&["ca", "show", "user"]));
    let told = rig.ok(&["ca", "check"]);
    assert!(told.contains("down-1") && !told.contains("old-1"), "{told}");
    rig.ok(&["ca", "retire", "user", "--yes"]);
    assert_eq!(rig.events("ca_rotated")[0]["not_seen_on"], serde_json::json!(["down-1"]));
    rig.ok(&["logs", "verify"]);
}

/// Does `last` when it is dropped, also when the test fails.
fn scopeguard(last: impl FnMut()) -> impl Drop {
    struct Last<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Last<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Last(last)
}

#[test]
fn an_overlap_ends_by_itself_also_while_the_bastion_was_down() {
    let mut rig = Rig::with_alice();
    let old = rig.ok(&["ca", "show", "user"]);
    for overlap in ["0s", "366d"] {
        assert_eq!(rig.run(&["ca", "rotate", "user", "--overlap", overlap]).status.code(), Some(2));
    }
    rig.ok(&["ca", "rotate", "user", "--overlap", "1s"]);
    rig.kill_9();
    std::thread::sleep(std::time::Duration::from_secs(2));
    rig.serve();
    crate::rig::wait_for("the old one to retire", || rig.ok(&["ca", "show", "user"]).lines().count() == 1);
    assert_ne!(rig.ok(&["ca", "show", "user"]), old);
    let told = rig.events("ca_rotated");
    assert_eq!((&told[0]["by"], &told[0]["not_seen_on"]), (&"keyward".into(), &serde_json::json!(["db-1"])));
}

/// A client whose trust is what `setup` printed, and nothing else.
fn reaches(rig: &Rig, setup: &str) -> bool {
    reached(rig, setup).0
}

/// The same, and what it is told on the way.
fn reached(rig: &Rig, setup: &str) -> (bool, String) {
    let mine = format!(
        "Host *\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile /dev/null\n GlobalKnownHostsFile /dev/null\n \
         StrictHostKeyChecking yes\n ControlMaster no\n ControlPath none\n",
        rig.path("id_alice").display()
    );
    let file = rig.path("setup_config");
    fs::write(&file, mine + setup).unwrap();
    let mut ssh = std::process::Command::new("ssh");
    ssh.arg("-F").arg(file).args(["db-1", "echo", "here"]).stdin(std::process::Stdio::null());
    let output = rig.asked(&mut ssh, "alice");
    let told = text(output.stderr);
    assert!(output.status.success() || told.contains("Host key verification failed"), "{told}");
    (output.stdout == b"here\n", told)
}

#[test]
fn clients_that_asked_again_in_time_trust_the_host_ca_before_and_after_it_changed() {
    let rig = Rig::with_alice();
    let setup = || rig.ok(&["ssh-config", "--user", "alice"]);
    let before = setup();
    announce(&rig, "host");
    let during = setup();
    assert_eq!(
        rig.ok(&["ca", "show", "host"]).lines().filter(|l| l.starts_with("@cert-authority * ")).count(),
        2
    );
    let (here, told) = reached(&rig, &before);
    assert!(here, "who does not know yet goes on");
    assert!(told.contains("this bastion changes the key that it vouches with"), "and is told: {told}");
    assert!(reaches(&rig, &during), "and so does who asked in time");
    // Everybody is told, at the desk of the bastion.
    let page = text(rig.client("ssh", "alice").arg("bastion").output().unwrap().stdout);
    assert!(page.contains("ssh alice@bastion setup"), "{page}");
    rig.ok(&["ca", "retire", "host", "--yes"]);
    let after = setup();
    assert!(reaches(&rig, &during) && reaches(&rig, &after));
    assert!(!reaches(&rig, &before), "its ssh refuses");
}

#[test]
fn a_change_of_the_host_ca_that_dies_at_any_step_has_happened_or_has_not_and_who_knows_both_gets_in() {
    let mut rig = Rig::with_alice();
    let setup = |rig: &Rig| rig.ok(&["ssh-config", "--user", "alice"]);
    let count = |rig: &Rig| rig.ok(&["ca", "show", "host"]).lines().count();
    let before = setup(&rig);
    for (point, lines) in [("ca.announce.told", 1), ("ca.announce.kept", 2)] {
        rig.kill_9();
        rig.serve_dying_at(point);
        assert_eq!(rig.run(&["ca", "rotate", "host"]).status.code(), Some(6), "{point}");
        rig.died();
        rig.serve();
        assert_eq!(count(&rig), lines, "{point}");
        assert!(reaches(&rig, &before), "{point}: who knows the old one alone goes on");
    }
    let during = setup(&rig);
    for (point, lines) in [("ca.retire.told", 2), ("ca.retire.kept", 1)] {
        rig.kill_9();
        rig.serve_dying_at(point);
        assert_eq!(rig.run(&["ca", "retire", "host", "--yes"]).status.code(), Some(6), "{point}");
        rig.died();
        rig.serve();
        assert_eq!(count(&rig), lines, "{point}");
        assert_eq!(reaches(&rig, &before), lines == 2, "{point}: the old one ends when it has retired");
        assert!(reaches(&rig, &during), "{point}");
    }
    assert_eq!(rig.run(&["ca", "retire", "host", "--yes"]).status.code(), Some(5), "it is over");
    assert!(reaches(&rig, &setup(&rig)));
    let (begun, done) = (rig.events("ca_rotation_begun"), rig.events("ca_rotated"));
    assert_eq!((begun.len(), done.len()), (2, 2), "told once more rather than never");
    assert_eq!(begun[1]["successor"], done[1]["key"]);
    rig.ok(&["logs", "verify"]);
}

#[test]
fn an_engineer_may_see_the_authorities_and_change_none() {
    let rig = Rig::with_alice();
    let desk = |command: &str| rig.shared("ssh", "alice").args(["bastion", command]).output().unwrap();
    assert!(desk("ca show user").status.success());
    for command in [
        "ca rotate user",
        "ca retire user --yes",
        "instances rotate db-1",
        "instances credentials",
        "encryption rotate --old-key /a --new-key /b",
    ] {
        assert_eq!(desk(command).status.code(), Some(4), "{command}");
    }
    rig.shared("ssh", "alice").args(["-O", "exit", "bastion"]).output().unwrap();
}
