//! An instance that trusts no CA: Keyward holds a key there, and rotates it without ever being locked out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::rig::{Rig, text};

/// Bastion, and an sshd that knows `authorized_keys` in a home of the test's own; `db-1` is entered with a held key.
fn rig() -> Rig {
    let mut rig = Rig::bastion();
    rig.start_sshd();
    let ssh = rig.path("home/.ssh");
    fs::create_dir_all(&ssh).unwrap();
    let config = fs::read_to_string(rig.path("sshd_config")).unwrap();
    let home = rig.path("home");
    let config = config.lines().filter(|l| !l.starts_with("TrustedUserCAKeys")).map(|l| {
        let l = if l.starts_with("AuthorizedKeysFile") {
            format!("AuthorizedKeysFile {}", file(&rig).display())
        } else if l.starts_with("SetEnv") {
            format!("{l} HOME={}", home.display())
        } else {
            l.to_owned()
        };
        l + "\n"
    });
    let config: String = config.collect();
    fs::write(rig.path("sshd_config"), config).unwrap();
    rig.restart_sshd();
    let (address, key) = (format!("127.0.0.1:{}", rig.instance_port), rig.path("instance_key.pub"));
    let login = rig.login.clone();
    let words = ["instances", "add", "db-1", "--address", &address, "--login", &login, "--host-key"];
    rig.ok(&[words.as_slice(), &[key.to_str().unwrap(), "--credential", "managed"]].concat());
    rig
}

fn with_alice(rig: &Rig) {
    rig.add_user("alice");
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &rig.login.clone()]);
}

fn file(rig: &Rig) -> PathBuf {
    rig.path("home/.ssh/authorized_keys")
}

fn lines(rig: &Rig) -> Vec<String> {
    fs::read_to_string(file(rig)).unwrap().lines().map(str::to_owned).collect()
}

fn credential(rig: &Rig) -> serde_json::Value {
    rig.json(&["instances", "credentials"])[0].clone()
}

/// Installs the key by hand, after somebody else's.
fn install(rig: &Rig) -> String {
    let key = credential(rig)["public_key"].as_str().unwrap().to_owned();
    fs::write(file(rig), format!("ssh-ed25519 AAAAtheirs theirs\n{key} by hand\n")).unwrap();
    fs::set_permissions(file(rig), fs::Permissions::from_mode(0o644)).unwrap();
    key
}

fn rotate(rig: &Rig) -> std::process::Output {
    rig.run(&["instances", "rotate", "db-1"])
}

#[test]
fn a_held_key_is_installed_used_and_rotated_and_every_login_is_on_tape() {
    let mut rig = rig();
    with_alice(&rig);
    let first = credential(&rig);
    assert_eq!(first["status"], "waiting");
    let script = rig.ok(&["instances", "trust-script", "db-1"]);
    assert!(
        script.contains(&format!("trust '{}' '{}'", rig.login, first["public_key"].as_str().unwrap())),
        "{script}"
    );
    // Not installed, nobody gets in, and nothing is rotated.
    let refused = text(rig.ssh("alice", "echo never").stderr);
    assert!(refused.contains("keyward instances trust-script db-1 prints what to run there"), "{refused}");
    let told = rotate(&rig);
    assert_eq!(told.status.code(), Some(1));
    let told = text(told.stderr);
    assert!(
        told.contains("its key was never accepted: it does not accept the key. Install it, as keyward instances trust-script db-1 says"),
        "{told}"
    );

    let first = install(&rig);
    assert_eq!(text(rig.ssh("alice", "echo in").stdout), "in\n");
    assert_eq!(credential(&rig)["status"], "in_use");
    let done = rotate(&rig);
    assert!(done.status.success(), "{}", text(done.stderr));
    let after = credential(&rig);
    let second = after["public_key"].as_str().unwrap();
    let now = lines(&rig);
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(
        now[0] == "ssh-ed25519 AAAAtheirs theirs" && now[1].starts_with(&format!("{second} keyward:db-1:")),
        "{now:?}"
    );
    assert!(first != second && after["old"].is_null() && after["fault"].is_null(), "{after}");
    assert_eq!(file(&rig).metadata().unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(text(rig.ssh("alice", "echo still").stdout), "still\n");
    rig.kill_9();
    rig.serve();
    assert_eq!(text(rig.ssh("alice", "echo after").stdout), "after\n");

    // Three logins of its own: to install, to prove, to remove; each is a session with a tape, under a name of its own.
    let own = rig.json(&["sessions", "list", "--user", "_keyward"]);
    let scripts = own.as_array().unwrap().iter().filter(|s| s["channels"][0]["command"] == "/bin/sh -s");
    assert_eq!(
        (own.as_array().unwrap().len(), scripts.count()),
        (4, 2),
        "and one before it was installed: {own:#}"
    );
    for event in [
        "credential_added",
        "credential_proven",
        "credential_rotation_begun",
        "credential_rotated",
        "credential_retired",
    ] {
        // That it is installed is told by the first session.
        assert_eq!(rig.events(event).len(), 1, "{event}");
    }
    assert_eq!(rig.run(&["users", "add", "_keyward"]).status.code(), Some(5));
    rig.ok(&["logs", "verify"]);
    rig.ok(&["instances", "remove", "db-1", "--yes"]);
    assert_eq!(rig.json(&["instances", "credentials"]), serde_json::json!([]));
}

#[test]
fn a_rotation_that_dies_at_any_step_is_gone_on_with_and_never_locks_out() {
    let mut rig = rig();
    install(&rig);
    rotate(&rig);
    let mut used = vec![credential(&rig)["public_key"].as_str().unwrap().to_owned()];
    for step in ["make", "install", "switch", "remove"] {
        for moment in ["done", "told", "kept"] {
            let point = format!("credential.{step}.{moment}");
            rig.kill_9();
            rig.serve_dying_at(&point);
            assert_eq!(rotate(&rig).status.code(), Some(6), "{point}");
            rig.died();
            // Whatever it is that Keyward would enter with now, the instance takes it.
            rig.serve();
            let now = credential(&rig);
            let key = now["public_key"].as_str().unwrap();
            assert!(lines(&rig).iter().any(|line| line.contains(key)), "{point}: {now}");
            // It goes on by itself, or when told.
            crate::rig::wait_for(&point, || {
                let after = credential(&rig);
                after["next"].is_null() && after["old"].is_null()
            });
            if used.contains(&credential(&rig)["public_key"].as_str().unwrap().to_owned()) {
                assert!(point.starts_with("credential.make") && !point.ends_with("kept"), "{point}");
                assert!(rotate(&rig).status.success(), "{point}");
            }
            let last = credential(&rig)["public_key"].as_str().unwrap().to_owned();
            let now = lines(&rig);
            assert!(now.len() == 2 && now[1].starts_with(&last), "{point}: {now:?}");
            assert!(!used.contains(&last), "{point}");
            used.push(last);
        }
    }
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_first_proof_that_dies_at_any_step_is_made_again_and_changes_no_key() {
    let mut rig = rig();
    let key = install(&rig);
    let before = lines(&rig);
    for (moment, status, told) in [("done", "waiting", 0), ("told", "waiting", 1), ("kept", "in_use", 2)] {
        let point = format!("credential.prove.{moment}");
        rig.kill_9();
        rig.serve_dying_at(&point);
        assert_eq!(rotate(&rig).status.code(), Some(6), "{point}");
        rig.died();
        rig.serve();
        let now = credential(&rig);
        assert_eq!(
            (&now["status"], &now["public_key"]),
            (&status.into(), &key.clone().into()),
            "{point}: {now}"
        );
        assert_eq!(lines(&rig), before, "{point}");
        assert_eq!(rig.events("credential_proven").len(), told, "{point}");
    }
    assert!(rig.events("credential_rotation_begun").is_empty());
    // What is proven is rotated when it is asked for, and not proven again.
    assert!(rotate(&rig).status.success());
    assert_ne!(credential(&rig)["public_key"], *key);
    assert_eq!(rig.events("credential_proven").len(), 2);
    rig.ok(&["logs", "verify"]);
}

#[test]
fn what_cannot_be_rotated_is_reported_with_its_reason_and_works_as_before() {
    let mut rig = rig();
    with_alice(&rig);
    let key = install(&rig);
    assert_eq!(text(rig.ssh("alice", "echo in").stdout), "in\n");
    let refused = |rig: &Rig, why: &str| {
        let output = rotate(rig);
        let told = text(output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(why) && told.contains("The key in use works as before."), "{told}");
        let fault = credential(rig)["fault"].as_str().unwrap().to_owned();
        assert!(fault.contains(why), "{fault}");
        assert_eq!(credential(rig)["public_key"], *key);
        assert!(rig.ok(&["instances", "credentials"]).contains("its rotation stopped"));
        assert!(rig.ok(&["status"]).contains("of Keyward's own keys could not be rotated"));
    };
    // A file that only points elsewhere.
    let elsewhere = rig.path("home/elsewhere");
    fs::rename(file(&rig), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, file(&rig)).unwrap();
    refused(&rig, "is a symbolic link");
    fs::remove_file(file(&rig)).unwrap();
    fs::rename(&elsewhere, file(&rig)).unwrap();
    // A key that runs one command, whatever is asked for.
    fs::write(file(&rig), format!("command=\"echo only this\" {key}\n")).unwrap();
    refused(&rig, "a forced command, or no shell?); it said: \"only this\"");
    install(&rig);
    // A file that cannot be written. (Root may write anything but what is mounted read-only.)
    let ssh = rig.path("home/.ssh");
    let mount = |args: &[&str]| {
        std::process::Command::new("mount").args(args).arg(&ssh).status().is_ok_and(|s| s.success())
    };
    if mount(&["--bind", ssh.to_str().unwrap()]) && mount(&["-o", "remount,bind,ro"]) {
        refused(&rig, "is not writable");
        assert_eq!(text(rig.ssh("alice", "echo in").stdout), "in\n", "who works is not bothered");
        assert!(std::process::Command::new("umount").arg(&ssh).status().unwrap().success());
    }
    // Nobody is there; then somebody who knows the key no more.
    rig.stop_sshd();
    refused(&rig, "it does not answer at 127.0.0.1:");
    let config = fs::read_to_string(rig.path("sshd_config")).unwrap();
    let forgetful = config.replace("AuthorizedKeysFile ", "AuthorizedKeysFile /none");
    fs::write(rig.path("sshd_config"), forgetful).unwrap();
    rig.restart_sshd();
    refused(&rig, "it does not accept the key");
    fs::write(rig.path("sshd_config"), config).unwrap();
    rig.restart_sshd();
    // And when nothing stands in the way any more, it goes on where it stopped.
    assert!(rotate(&rig).status.success());
    assert_ne!(credential(&rig)["public_key"], *key);
    assert_eq!(rig.events("credential_rotation_begun").len(), 1);
    assert!(rig.events("credential_rotation_failed").len() >= 3);
    assert!(!rig.ok(&["status"]).contains("could not be rotated"));
}

#[test]
fn in_a_lockdown_and_on_a_certificate_instance_no_key_is_rotated() {
    let rig = rig();
    install(&rig);
    rig.ok(&["access", "deny-all", "--reason", "breach"]);
    let told = rotate(&rig);
    assert!(text(told.stderr).contains("there is a lockdown"));
    rig.ok(&["access", "deny-all", "--end"]);
    rig.add_instance("db-2");
    let told = rig.run(&["instances", "rotate", "db-2"]);
    assert_eq!(told.status.code(), Some(2));
    assert!(text(told.stderr).contains("is entered with certificates of minutes"));
    assert!(rotate(&rig).status.success());
}
