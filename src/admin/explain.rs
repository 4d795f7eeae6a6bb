//! Why the rules let somebody in nowhere, in one sentence for whoever explains it. Pure; it decides nothing:
//! [`Rulebook::decide`](crate::policy::Rulebook::decide) does.

use jiff::Timestamp;
use keystore::{Effect, Instance, Login, Rule, Subject, Target};

use super::render::short_time;
use crate::policy::{Decision, Facts};

/// The nearest reason for a `decision` that allows nothing.
pub(super) fn why_not(
    facts: &Facts<'_>,
    (instance, login): (&Instance, &Login),
    rules: &[Rule],
    decision: &Decision,
    now: Timestamp,
) -> String {
    let to = format!("{login}@{}", instance.name);
    let (user, source) = (facts.user, facts.source);
    if !instance.logins.contains(login) {
        return format!("{} has no login {login}", instance.name);
    }
    let allows = |rule: &&Rule| rule.effect == Effect::Allow && is_about(rule, facts, (instance, login));
    let from_here = |rule: &Rule| rule.from.is_empty() || rule.from.iter().any(|net| net.contains(&source));
    let lasts = |rule: &Rule| rule.expires_at.is_none_or(|end| end > now);
    let meant: Vec<&Rule> = rules.iter().filter(allows).collect();
    let in_force = meant.iter().any(|rule| from_here(rule) && lasts(rule));
    if let Some(rule) = meant.iter().find(|rule| lasts(rule) && !from_here(rule)).filter(|_| !in_force) {
        let nets = rule.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return format!("{} allows {user} on {to} only from {nets}, not from {source}", rule.id);
    }
    if !decision.denied_by.is_empty() {
        return format!("{} forbids {user} on {to}", decision.denied_by.join(","));
    }
    match meant.iter().filter_map(|rule| Some((rule, rule.expires_at?))).max_by_key(|(_, end)| *end) {
        Some((rule, end)) => format!("{} allowed {user} on {to} until {}", rule.id, short_time(end)),
        None => format!("no rule allows {user} on {to} from {source}"),
    }
}

/// Whether the rule is about them and that place, whenever and from wherever.
fn is_about(rule: &Rule, facts: &Facts<'_>, (instance, login): (&Instance, &Login)) -> bool {
    let whom = match &rule.subject {
        Subject::User(name) => name == facts.user,
        Subject::Role(role) => facts.roles.contains(role),
    };
    let place = match &rule.target {
        Target::Instance(name) => *name == instance.name,
        Target::Label { key, value } => instance.labels.get(key) == Some(value),
    };
    whom && place && rule.logins.contains(login)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rule(id: &str, effect: Effect) -> Rule {
        Rule {
            id: id.to_owned(),
            effect,
            subject: Subject::User("alice".parse().unwrap()),
            target: Target::Instance("db-1".parse().unwrap()),
            logins: ["ubuntu".parse().unwrap()].into(),
            can: [keystore::Capability::Shell].into(),
            from: Vec::new(),
            expires_at: None,
            recording: None,
            added_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn why(rules: &[Rule], login: &str) -> String {
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
        let (user, roles) = ("alice".parse().unwrap(), BTreeSet::new());
        let facts = Facts { user: &user, roles: &roles, source: "192.0.2.7".parse().unwrap() };
        let login: Login = login.parse().unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let rulebook = crate::policy::Rulebook::compile(rules).unwrap();
        let decision = rulebook.decide(&facts, &instance, &login, now);
        assert!(decision.can.is_empty(), "{decision:?}");
        why_not(&facts, (&instance, &login), rules, &decision, now)
    }

    #[test]
    fn the_rule_that_is_nearest_is_named_and_none_that_has_nothing_to_do_with_it() {
        let mut inside = rule("R1", Effect::Allow);
        inside.from = vec!["10.0.0.0/8".parse().unwrap()];
        let mut forwards = rule("R2", Effect::Deny);
        forwards.can = [keystore::Capability::Forward].into();
        let mut over = rule("R3", Effect::Allow);
        over.expires_at = Some(Timestamp::from_second(1_700_000_000).unwrap());
        let (all, allows) = (rule("R4", Effect::Deny), rule("R5", Effect::Allow));
        assert_eq!(why(&[], "ubuntu"), "no rule allows alice on ubuntu@db-1 from 192.0.2.7");
        assert_eq!(
            why(&[inside.clone(), forwards], "ubuntu"),
            "R1 allows alice on ubuntu@db-1 only from 10.0.0.0/8, not from 192.0.2.7"
        );
        assert_eq!(why(&[over], "ubuntu"), "R3 allowed alice on ubuntu@db-1 until 2023-11-14 22:13");
        assert_eq!(why(&[all, allows, inside], "ubuntu"), "R4 forbids alice on ubuntu@db-1");
        assert_eq!(why(&[], "root"), "db-1 has no login root");
    }
}
