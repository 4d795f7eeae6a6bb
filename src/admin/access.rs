//! `access …`.
//!
//! Rules are compiled before a change is reported done, so that what `explain` says next is what decides.

use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use keystore::{Capability, Effect, Instance, Login, Rule, Subject, Target, User};
use serde_json::{Value, json};

use super::explain::why_not;
use super::kinds::{Kinds, OfKind};
use super::render::{counted, plain, short_time, table};
use super::{Access, Caller, Destination, Fault, Output, RuleTerms, instances, review, trail, users};
use crate::audit::Event;
use crate::auth;
use crate::policy::Facts;
use crate::session::{House, cut, lockdown_sentence, recompile};

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Access,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Access::Allow(terms) => add(house, caller, (Effect::Allow, terms), out).await,
        Access::Deny(terms) => add(house, caller, (Effect::Deny, terms), out).await,
        Access::List => {
            let rules = rules(house).await?;
            let kinds = Kinds::of(house).await?;
            let rows = rules.iter().map(|rule| row(rule, &kinds));
            let header = ["RULE", "EFFECT", "WHO", "WHERE", "LOGINS", "CAN", "FROM", "EXPIRES", "RECORDING"];
            let text = table(&header, rows, out.width());
            let values = rules.iter().map(|what| OfKind { kind: kind(what, &kinds), what });
            out.either(&values.collect::<Vec<_>>(), text).await
        }
        Access::Review => review::run(house, out).await,
        Access::Export { output: _ } => {
            let rules = rules(house).await?;
            out.line(serde_json::to_string_pretty(&rules).map_err(|e| Fault::error(e.to_string()))?).await
        }
        Access::Audit => {
            let known = super::findings::Known {
                rules: rules(house).await?,
                users: house.vault.list().await?,
                instances: house.vault.list().await?,
            };
            let found = super::findings::findings(&known, now);
            let rows = found.iter().map(|f| vec![f.rule.clone(), f.kind.to_owned(), f.says.clone()]);
            let text = if found.is_empty() {
                format!("{}, nothing to say against them.", counted(known.rules.len(), "rule"))
            } else {
                table(&["RULE", "FINDING", "WHY"], rows, out.width())
            };
            out.either(&found, text).await
        }
        Access::DenyAll { reason: Some(reason), .. } => lock_down(house, caller, &reason, out).await,
        Access::DenyAll { reason: None, .. } => let_in(house, caller, out).await,
        Access::Remove { id } => {
            // `r5` is typed as easily.
            let id = id.to_ascii_uppercase();
            remove(house, caller, &id, now).await?;
            out.done(&json!({ "rule": id, "removed": true }), format!("Removed {id}.")).await
        }
        Access::Explain { user, destination, from } => {
            if !sees_all(caller) && caller.user() != Some(&user) {
                return Err(Fault::denied("you may ask about your own access only"));
            }
            let user = users::found(house, &user).await?;
            explain(house, caller, (user, destination, from), out).await
        }
    }
}

/// Whether the user would get there, and why (not).
async fn explain(
    house: &House,
    caller: &Caller,
    (user, destination, from): (User, Destination, Option<IpAddr>),
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let source = from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let instance = match instances::answering(house, &destination.host).await {
        Err(fault) if fault.code == 3 && !sees_all(caller) => {
            return out_of_reach(&user, &destination, source, out).await;
        }
        found => found?,
    };
    let facts = Facts { user: &user.name, roles: &user.roles, source };
    let mut decision = house.rulebook.load().decide(&facts, &instance, &destination.login, now);
    let reason = match barred(house, &user, from, now) {
        Some(why) => Some(why),
        None if !decision.can.is_empty() => None,
        None => {
            let to = (&instance, &destination.login);
            Some(why_not(&facts, to, &rules(house).await?, &decision, now))
        }
    };
    let allowed = reason.is_none();
    if !allowed && !sees_all(caller) {
        return out_of_reach(&user, &destination, source, out).await;
    }
    decision.rules.sort_by(|a, b| numbered(a).cmp(&numbered(b)));
    decision.denied_by.sort_by(|a, b| numbered(a).cmp(&numbered(b)));
    let recording = house.tapes.mode_for(decision.recording);
    let can: Vec<_> = decision.can.iter().map(|c| c.as_str()).collect();
    let value = json!({
        "user": user.name, "instance": instance.name, "login": destination.login, "source_ip": source,
        "allowed": allowed, "can": can, "rules": decision.rules, "denied_by": decision.denied_by,
        "until": decision.until, "reason": reason,
        "recording": if allowed { Some(recording.as_str()) } else { None },
    });
    let to = format!("{}@{}", destination.login, instance.name);
    let text = match reason {
        Some(why) => format!("denied: {why}"),
        None => format!(
            "allowed: {} on {to} for {}, by {}; recording {}",
            can.join(","),
            user.name,
            decision.rules.join(","),
            recording.as_str()
        ),
    };
    out.either(&value, text).await
}

/// Why the user does not even come in, whatever the rules say.
fn barred(house: &House, user: &User, from: Option<IpAddr>, now: Timestamp) -> Option<String> {
    if let Some(reason) = house.guard.lockdown().reason() {
        return Some(format!("lockdown: {}", plain(&reason)));
    }
    let elsewhere = |from: &IpAddr| !user.from.is_empty() && !user.from.iter().any(|net| net.contains(from));
    match (user.barred(now), from.filter(elsewhere)) {
        (Some(why), _) => Some(why.to_owned()),
        (None, Some(from)) => {
            let nets = user.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Some(format!("{} logs in only from {nets}, not from {from}", user.name))
        }
        (None, None) => None,
    }
}

/// All rules, in the order of their numbers.
pub(super) async fn rules(house: &House) -> Result<Vec<Rule>, Fault> {
    let mut rules: Vec<Rule> = house.vault.list().await?;
    rules.sort_by(|a, b| numbered(&a.id).cmp(&numbered(&b.id)));
    Ok(rules)
}

/// R2 comes before R10.
fn numbered(id: &str) -> (usize, &str) {
    (id.len(), id)
}

/// Who may know every instance and rule.
fn sees_all(caller: &Caller) -> bool {
    caller.has_role("admin") || caller.has_role("auditor")
}

/// The one answer for what an engineer may not enter, whether it exists or not: names are not for guessing.
async fn out_of_reach(user: &User, to: &Destination, source: IpAddr, out: &mut Output) -> Result<(), Fault> {
    let reason = format!("no rule allows {} on {}@{} from {source}", user.name, to.login, plain(&to.host));
    let value = json!({
        "user": user.name, "instance": to.host, "login": to.login, "source_ip": source,
        "allowed": false, "can": [], "rules": [], "denied_by": [], "until": null, "reason": reason,
    });
    out.either(&value, format!("denied: {reason}")).await
}

/// The effect first, its event then: a lockdown must not wait for a disk.
async fn lock_down(house: &House, caller: &Caller, reason: &str, out: &mut Output) -> Result<(), Fault> {
    // It is shown on the terminal of everyone who is cut, and again by `status`.
    let reason = &plain(reason.trim());
    if reason.is_empty() {
        return Err(Fault::usage("say why: --reason TEXT; nothing was changed"));
    }
    let guard = house.guard.clone();
    let why = reason.to_owned();
    let started = tokio::task::spawn_blocking(move || guard.lockdown().start(&why));
    // It holds before the disk has heard of it.
    house.guard.lockdown().begun().await;
    let sentence = lockdown_sentence(reason);
    let live: Vec<_> = house.registry.live().into_iter().map(|live| (live, sentence.clone())).collect();
    cut(&live, Some(&caller.name()));
    let started = started.await;
    let event = Event::LockdownStarted { by: caller.name(), reason: reason.to_owned() };
    let noted = trail::note(house, event, Timestamp::now()).await;
    // Whoever comes back after it gives a code again.
    let forgotten = auth::forget_all(&house.vault).await;
    // What fails does not keep the rest from being done.
    let failed = [
        started
            .map_err(|e| e.to_string())
            .and_then(|s| s.map_err(|e| e.to_string()))
            .err()
            .map(beyond_a_restart),
        noted.err().map(|fault| fault.says),
        forgotten.err().map(|error| format!("remembered second factors still count after it: {error}")),
    ];
    if let Some(says) = told_of(failed) {
        return Err(Fault::error(says));
    }
    let sessions = live.iter().filter(|(live, _)| live.info.session.is_some()).count();
    let says = format!(
        "Lockdown: {} ended and nobody is let in. End it on the bastion: keyward access deny-all --end",
        if sessions == 1 { "1 session was".to_owned() } else { format!("{sessions} sessions were") },
    );
    out.done(&json!({ "lockdown": reason, "ended_sessions": sessions }), says).await
}

fn beyond_a_restart(error: String) -> String {
    format!("not beyond a restart: {error}. Free the disk and say it again")
}

/// One sentence for all that failed beside a lockdown that holds.
fn told_of(failed: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    (!failed.is_empty()).then(|| format!("the lockdown holds, but {}", failed.join("; ")))
}

async fn let_in(house: &House, caller: &Caller, out: &mut Output) -> Result<(), Fault> {
    if !matches!(caller, Caller::Operator { .. }) {
        return Err(Fault::denied(
            "a lockdown is ended on the bastion itself: keyward access deny-all --end",
        ));
    }
    if house.guard.lockdown().reason().is_none() {
        return Err(Fault::not_found("there is no lockdown"));
    }
    let guard = house.guard.clone();
    let ended = async {
        let ended = tokio::task::spawn_blocking(move || guard.lockdown().end()).await;
        let goes_on = |error: String| Fault::error(format!("the lockdown goes on: {error}"));
        ended.map_err(|e| goes_on(e.to_string()))?.map_err(|e| goes_on(e.to_string()))
    };
    trail::gives(house, vec![Event::LockdownEnded { by: caller.name() }], Timestamp::now(), ended).await?;
    out.done(&json!({ "lockdown": null }), "The lockdown is over.").await
}

async fn add(
    house: &House,
    caller: &Caller,
    (effect, terms): (Effect, RuleTerms),
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let subject = match (terms.user, terms.role) {
        (Some(user), _) => Subject::User(users::found(house, &user).await?.name),
        (None, Some(role)) => Subject::Role(role),
        (None, None) => return Err(Fault::usage("say whom: --user NAME or --role ROLE")),
    };
    let target = match (terms.instance, terms.label) {
        (Some(name), _) => Target::Instance(instances::found(house, &name).await?.name),
        (None, Some(label)) => Target::Label { key: label.key, value: label.value },
        (None, None) => return Err(Fault::usage("say where: --instance NAME or --label KEY=VALUE")),
    };
    let expires_at = terms.expires.map(|when| when.ahead(now));
    if expires_at.is_some_and(|end| end <= now) {
        return Err(Fault::usage("--expires lies in the past; nothing was changed"));
    }
    if effect == Effect::Deny && terms.recording.is_some() {
        return Err(Fault::usage("--recording belongs to a rule that allows; nothing was changed"));
    }
    let rule = Rule {
        id: house.vault.next_id("R").await?,
        effect,
        subject,
        target,
        logins: terms.logins.into_iter().collect(),
        can: terms.can.into_iter().collect(),
        from: terms.from.iter().map(|net| net.net()).collect(),
        expires_at,
        recording: terms.recording,
        added_at: now,
    };
    if rule.logins.is_empty() || rule.can.is_empty() {
        return Err(Fault::usage("a rule needs at least one --login and one capability"));
    }
    if let Some(same) = rules(house).await?.iter().find(|other| says_the_same(other, &rule)) {
        return Err(Fault::conflict(format!("{} says exactly that already; nothing was changed", same.id)));
    }
    for note in terms.from.iter().filter_map(|net| net.note()) {
        out.note(note).await?;
    }
    let summary = row(&rule, &Kinds::of(house).await?).join(" ");
    let event = Event::AccessRuleAdded { rule: rule.id.clone(), by: caller.name(), summary };
    let insert = async {
        house.vault.insert(&rule).await?;
        recompile(house).await;
        Ok(())
    };
    match effect {
        Effect::Allow => trail::gives(house, vec![event], now, insert).await?,
        Effect::Deny => trail::takes(house, event, now, insert).await?,
    }
    out.either(&rule, format!("Added {}.", rule.id)).await
}

/// But for its number and its age.
fn says_the_same(one: &Rule, other: &Rule) -> bool {
    let Rule { id: _, added_at: _, effect, subject, target, logins, can, from, expires_at, recording } = one;
    (effect, subject, target, logins, can)
        == (&other.effect, &other.subject, &other.target, &other.logins, &other.can)
        && (from, expires_at, recording) == (&other.from, &other.expires_at, &other.recording)
}

pub(super) async fn remove(house: &House, caller: &Caller, id: &str, now: Timestamp) -> Result<(), Fault> {
    let rule = house.vault.get::<Rule>(id).await?;
    let rule =
        rule.ok_or_else(|| Fault::not_found(format!("no rule {}; see: keyward access list", plain(id))))?;
    let event = Event::AccessRuleRemoved { rule: id.to_owned(), by: caller.name() };
    let remove = async {
        house.vault.remove::<Rule>(id).await?;
        recompile(house).await;
        Ok(())
    };
    match rule.effect {
        Effect::Allow => trail::takes(house, event, now, remove).await,
        // Without a denial more is allowed.
        Effect::Deny => trail::gives(house, vec![event], now, remove).await,
    }
}

/// Of the one user that the rule is about; a role is borne by whoever bears it.
fn kind(rule: &Rule, kinds: &Kinds) -> Option<&'static str> {
    match &rule.subject {
        Subject::User(user) => kinds.word(user.as_str()),
        Subject::Role(_) => None,
    }
}

fn row(rule: &Rule, kinds: &Kinds) -> Vec<String> {
    let effect = if rule.effect == Effect::Allow { "allow" } else { "deny" };
    let who = match &rule.subject {
        Subject::User(user) => format!("user {}", kinds.marked(user.as_str())),
        Subject::Role(role) => format!("role {role}"),
    };
    let place = match &rule.target {
        Target::Instance(name) => name.to_string(),
        Target::Label { key, value } => format!("{key}={value}"),
    };
    let logins = rule.logins.iter().map(Login::as_str).collect::<Vec<_>>().join(",");
    let can = rule.can.iter().map(|c: &Capability| c.as_str()).collect::<Vec<_>>().join(",");
    let from = rule.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let from = if from.is_empty() { "anywhere".to_owned() } else { from };
    let expires = rule.expires_at.map_or_else(|| "never".to_owned(), short_time);
    let recording = match (rule.effect, rule.recording) {
        (Effect::Deny, _) => "-",
        (Effect::Allow, Some(recording)) => recording.as_str(),
        (Effect::Allow, None) => "default",
    };
    vec![rule.id.clone(), effect.into(), who, place, logins, can, from, expires, recording.to_owned()]
}

/// Where `caller` may go now: one entry for each instance and login.
pub(super) async fn reachable(
    house: &House,
    facts: &Facts<'_>,
) -> Result<Vec<(Instance, Login, Value)>, Fault> {
    let now = Timestamp::now();
    let rulebook = house.rulebook.load_full();
    let mut found = Vec::new();
    for instance in house.vault.list::<Instance>().await? {
        for (login, can) in rulebook.reachable(facts, &instance, now) {
            if !can.is_empty() {
                found.push((instance.clone(), login, json!(can)));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_failed_in_a_lockdown_is_told() {
        assert_eq!(told_of([None, None]), None);
        let says = told_of([Some(beyond_a_restart("disk full".into())), None, Some("no store".into())]);
        let says = says.unwrap();
        assert!(says.starts_with("the lockdown holds, but not beyond a restart: disk full"), "{says}");
        assert!(says.ends_with("; no store"), "{says}");
    }
}
