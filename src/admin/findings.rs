//! `access audit`: what an auditor would say against the rules. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keystore::{Effect, Instance, Rule, Subject, Target, User};
use serde::Serialize;

/// What the rules are held against.
pub(super) struct Known {
    pub(super) rules: Vec<Rule>,
    pub(super) users: Vec<User>,
    pub(super) instances: Vec<Instance>,
}

/// Something about one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The rule's id.
    pub(super) rule: String,
    /// `expired`, `unknown`, `never_matches`, `overlaps`, `denied`.
    pub(super) kind: &'static str,
    /// Why, in words.
    pub(super) says: String,
}

/// All findings, in the order of the rules.
pub(super) fn findings(known: &Known, now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in &known.rules {
        let mut say = |kind, says: String| found.push(Finding { rule: rule.id.clone(), kind, says });
        if let Some(end) = rule.expires_at.filter(|end| *end <= now) {
            say("expired", format!("it ended {}", super::render::short_time(end)));
            continue;
        }
        if let Some(what) = unknown(rule, known) {
            say("unknown", what);
            continue;
        }
        if let Some(why) = never(rule, known, now) {
            say("never_matches", why);
            continue;
        }
        let mut said = false;
        for other in known.rules.iter().filter(|other| other.id != rule.id) {
            if other.expires_at.is_some_and(|end| end <= now) || !covers(other, rule) {
                continue;
            }
            if other.effect == rule.effect {
                // Of two that say the same, the younger one is said to be too many.
                if !said && (!covers(rule, other) || (other.added_at, &other.id) < (rule.added_at, &rule.id))
                {
                    say("overlaps", format!("{} says all of it already", other.id));
                    said = true;
                }
            } else if other.effect == Effect::Deny {
                say("denied", format!("{} denies all that it allows", other.id));
            }
        }
    }
    found
}

fn unknown(rule: &Rule, known: &Known) -> Option<String> {
    match (&rule.subject, &rule.target) {
        (Subject::User(name), _) if !known.users.iter().any(|user| user.name == *name) => {
            Some(format!("there is no user {name}"))
        }
        (_, Target::Instance(name)) if !known.instances.iter().any(|instance| instance.name == *name) => {
            Some(format!("there is no instance {name}"))
        }
        _ => None,
    }
}

fn never(rule: &Rule, known: &Known, now: Timestamp) -> Option<String> {
    let meant = |instance: &&Instance| match &rule.target {
        Target::Instance(name) => instance.name == *name,
        Target::Label { key, value } => instance.labels.get(key) == Some(value),
    };
    let instances: Vec<&Instance> = known.instances.iter().filter(meant).collect();
    if let (Target::Label { key, value }, true) = (&rule.target, instances.is_empty()) {
        return Some(format!("no instance has the label {key}={value}"));
    }
    if !instances.iter().any(|instance| !instance.logins.is_disjoint(&rule.logins)) {
        return Some("no instance that it means has one of its logins".to_owned());
    }
    match &rule.subject {
        Subject::Role(role) if !known.users.iter().any(|user| user.roles.contains(role)) => {
            Some(format!("no user has the role {role}"))
        }
        Subject::User(name) => {
            let user = known.users.iter().find(|user| user.name == *name)?;
            user.barred(now).map(|why| format!("{name} cannot log in: {why}"))
        }
        Subject::Role(_) => None,
    }
}

/// Whether `wide` says at least what `narrow` says, for as long and from wherever it does.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let lasts = match (wide.expires_at, narrow.expires_at) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => wide >= narrow,
    };
    let from = wide.from.is_empty()
        || !narrow.from.is_empty() && narrow.from.iter().all(|net| wide.from.iter().any(|w| w.contains(net)));
    let logins: &BTreeSet<_> = &wide.logins;
    wide.subject == narrow.subject
        && wide.target == narrow.target
        && logins.is_superset(&narrow.logins)
        && wide.can.is_superset(&narrow.can)
        && from
        && lasts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, user: &str, instance: &str) -> Rule {
        Rule {
            id: id.to_owned(),
            effect: Effect::Allow,
            subject: Subject::User(user.parse().unwrap()),
            target: Target::Instance(instance.parse().unwrap()),
            logins: ["ubuntu".parse().unwrap()].into(),
            can: [keystore::Capability::Shell].into(),
            from: Vec::new(),
            expires_at: None,
            recording: None,
            added_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn known(rules: Vec<Rule>) -> Known {
        let instance = Instance {
            name: "db-1".parse().unwrap(),
            aliases: BTreeSet::new(),
            address: "10.0.0.1:22".parse().unwrap(),
            logins: ["ubuntu".parse().unwrap()].into(),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            host_trust: keystore::HostTrust::Pinned(Vec::new()),
            credential: keystore::SignsIn::Certificate,
            added_at: Timestamp::UNIX_EPOCH,
        };
        let user = serde_json::from_value(serde_json::json!({
            "name": "alice", "roles": ["engineer"], "kind": "human", "added_at": "2026-01-01T00:00:00Z",
            "expires_at": null, "suspended": null,
        }));
        Known { rules, users: vec![user.unwrap()], instances: vec![instance] }
    }

    fn kinds(rules: Vec<Rule>) -> Vec<(String, &'static str)> {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        findings(&known(rules), now).into_iter().map(|f| (f.rule, f.kind)).collect()
    }

    #[test]
    fn a_rule_that_matches_is_not_spoken_of() {
        assert_eq!(kinds(vec![rule("R1", "alice", "db-1")]), []);
    }

    #[test]
    fn unknown_names_ended_rules_and_empty_targets_are_found() {
        let ended =
            Rule { expires_at: Some(Timestamp::from_second(1).unwrap()), ..rule("R3", "alice", "db-1") };
        let label = Target::Label { key: "env".to_owned(), value: "test".to_owned() };
        let nowhere = Rule { target: label, ..rule("R4", "alice", "db-1") };
        let other = Rule { logins: ["root".parse().unwrap()].into(), ..rule("R5", "alice", "db-1") };
        let found =
            kinds(vec![rule("R1", "bob", "db-1"), rule("R2", "alice", "db-9"), ended, nowhere, other]);
        let found: Vec<_> = found.iter().map(|(id, kind)| (id.as_str(), *kind)).collect();
        let never = "never_matches";
        assert_eq!(
            found,
            [("R1", "unknown"), ("R2", "unknown"), ("R3", "expired"), ("R4", never), ("R5", never)]
        );
    }

    #[test]
    fn of_two_rules_that_say_the_same_the_narrower_or_younger_is_too_many() {
        let mut wide = rule("R1", "alice", "db-1");
        wide.can.insert(keystore::Capability::Exec);
        assert_eq!(kinds(vec![wide, rule("R2", "alice", "db-1")]), [("R2".to_owned(), "overlaps")]);
        let twice = kinds(vec![rule("R1", "alice", "db-1"), rule("R2", "alice", "db-1")]);
        assert_eq!(twice, [("R2".to_owned(), "overlaps")]);
    }

    #[test]
    fn an_allow_that_a_deny_takes_back_is_found() {
        let deny = Rule { effect: Effect::Deny, ..rule("R2", "alice", "db-1") };
        assert_eq!(kinds(vec![rule("R1", "alice", "db-1"), deny]), [("R1".to_owned(), "denied")]);
    }
}
