//! A login between key and code: what was proven may be taken away meanwhile.

use std::process::{Child, Stdio};

use crate::rig::{Rig, text, wait_for};

/// A client that has proven its key, and whose person looks for the code.
fn waits(rig: &Rig, user: &str) -> Child {
    let (asked, go) = (rig.path(&format!("asked_{user}")), rig.path(&format!("go_{user}")));
    rig.script(
        &format!("slow_{user}"),
        &format!(
            "touch {}; while [ ! -e {} ]; do sleep 0.1; done; exec {}",
            asked.display(),
            go.display(),
            rig.path(&format!("code_{user}")).display()
        ),
    );
    let mut command = rig.client("ssh", user);
    command.env("SSH_ASKPASS", rig.path(&format!("slow_{user}"))).args(["db-1", "echo in"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the prompt", || asked.exists());
    child
}

/// What the bastion's side of it shows: whether it is still connected.
fn connected(rig: &Rig) -> usize {
    let output = std::process::Command::new("ss")
        .args(["-Htn", "state", "established", &format!("( sport = :{} )", rig.port)])
        .output()
        .unwrap();
    text(output.stdout).lines().count()
}

#[test]
fn a_login_whose_key_is_revoked_or_user_suspended_before_the_code_ends_then_and_the_neighbour_goes_on() {
    let rig = Rig::with_alice();
    for user in ["bob", "carol"] {
        rig.add_user(user);
        rig.ok(&["access", "allow", "--user", user, "--instance", "db-1", "--login", &rig.login]);
    }
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| waits(&rig, user));
    assert_eq!(connected(&rig), 3);
    let key = rig.json(&["ssh-keys", "list", "--user", "alice"])[0]["id"].as_str().unwrap().to_owned();
    rig.ok(&["ssh-keys", "revoke", &key, "--reason", "lost"]);
    wait_for("alice's connection to end", || connected(&rig) == 2);
    rig.ok(&["users", "suspend", "bob"]);
    wait_for("bob's connection to end", || connected(&rig) == 1);
    let failed = rig.events("ssh_login_failed");
    let reasons: Vec<_> = failed.iter().map(|e| e["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["key revoked", "user suspended"], "{failed:?}");
    for user in ["alice", "bob", "carol"] {
        std::fs::write(rig.path(&format!("go_{user}")), "").unwrap();
    }
    for lost in [alice, bob] {
        let output = lost.wait_with_output().unwrap();
        assert!(!output.status.success());
        let says = text(output.stderr);
        assert!(!says.contains("revoked") && !says.contains("suspended"), "{says}");
    }
    assert_eq!(text(carol.wait_with_output().unwrap().stdout), "in\n");
}
