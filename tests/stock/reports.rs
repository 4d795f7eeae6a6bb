//! What admins and auditors prove: how old the keys are, and who can reach what.

use crate::rig::{Rig, text};

#[test]
fn the_review_names_each_way_with_its_key_and_none_that_is_denied() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.ok(&["users", "add", "carol"]);
    let login = rig.login.clone();
    let rule = ["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &login, "--can", "exec"];
    rig.ok(&[&rule[..], &["--from", "10.0.0.0/8"]].concat());
    rig.ok(&["access", "allow", "--user", "carol", "--instance", "db-1", "--login", &login]);
    assert!(rig.ssh("alice", "true").status.success());
    rig.ended_sessions();
    let review = rig.json(&["access", "review"]);
    let ways = review.as_array().unwrap();
    assert_eq!(ways.len(), 3, "{review:#}");
    let of = |user: &str| ways.iter().find(|w| w["user"] == user).unwrap();
    assert_eq!((&of("alice")["from"], &of("alice")["key"]), (&"anywhere".into(), &"K1".into()));
    assert!(of("alice")["last_session_at"].is_string() && of("bob")["last_session_at"].is_null());
    assert_eq!((&of("bob")["from"], of("bob")["can"].as_array().unwrap().len()), (&"10.0.0.0/8".into(), 1));
    assert!(of("carol")["key"].is_null(), "a right without a key is named too");
    rig.ok(&["access", "deny", "--user", "alice", "--instance", "db-1", "--login", &login]);
    rig.ok(&["users", "suspend", "bob"]);
    let left = rig.json(&["access", "review"]);
    assert_eq!(left.as_array().unwrap().len(), 1, "{left:#}");
    assert!(rig.ok(&["access", "review"]).contains("no key"));
}

#[test]
fn the_report_knows_the_age_of_each_key_and_is_not_for_engineers() {
    let rig = Rig::with_alice();
    rig.ok(&["users", "add", "carol"]);
    let report = rig.json(&["ssh-keys", "report"]);
    assert_eq!((&report["by_status"]["active"], &report["ages"][0]["keys"]), (&1.into(), &1.into()));
    assert_eq!(report["never_used"][0]["id"], "K1");
    assert_eq!(report["users_without_key"][0], "carol");
    assert!(rig.ok(&["ssh-keys", "report"]).contains("Never used"));
    let csv = rig.ok(&["ssh-keys", "report", "--csv"]);
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.contains(",alice,human,id_alice,SHA256:"), "{csv}");
    for words in [["ssh-keys", "report"], ["access", "review"]] {
        let output = rig.client("ssh", "alice").arg("bastion").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", text(output.stdout));
    }
}
