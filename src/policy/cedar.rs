//! Rules and questions in Cedar's terms. The only file that knows Cedar.
//!
//! `User::"alice" in Role::"engineer"`, `Action::"shell"`, `Instance::"db-1" in Label::["env","prod"]`, and
//! a context of `login`, `source` (ip) and `now` (Unix time in ms). Policies are built as Cedar's JSON form, in which a
//! name is always a value and never syntax.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy, PolicyId,
    PolicySet, Request, RestrictedExpression,
};
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use keystore::{Capability, Effect, Instance, Login, Rule, Subject, Target};
use serde_json::{Value, json};

use super::{Facts, PolicyError};

/// One rule as one policy, whose id is the rule's.
pub(super) fn policy(rule: &Rule) -> Result<Policy, PolicyError> {
    let empty = |what| PolicyError::Empty { rule: rule.id.clone(), what };
    if rule.logins.is_empty() {
        return Err(empty("login"));
    }
    if rule.can.is_empty() {
        return Err(empty("capability"));
    }
    let policy = json!({
        "effect": match rule.effect { Effect::Allow => "permit", Effect::Deny => "forbid" },
        "principal": match &rule.subject {
            Subject::User(name) => json!({ "op": "==", "entity": entity("User", name.as_str()) }),
            Subject::Role(role) => json!({ "op": "in", "entity": entity("Role", role.as_str()) }),
        },
        "action": {
            "op": "in",
            "entities": rule.can.iter().map(|can| entity("Action", can.as_str())).collect::<Vec<_>>(),
        },
        "resource": match &rule.target {
            Target::Instance(name) => json!({ "op": "==", "entity": entity("Instance", name.as_str()) }),
            Target::Label { key, value } => json!({ "op": "in", "entity": entity("Label", &label_id(key, value)) }),
        },
        "conditions": conditions(rule),
    });
    Policy::from_json(Some(PolicyId::new(&rule.id)), policy)
        .map_err(|e| PolicyError::Rule { rule: rule.id.clone(), why: e.to_string() })
}

fn conditions(rule: &Rule) -> Vec<Value> {
    let logins: Vec<Value> = rule.logins.iter().map(|login| json!({ "Value": login.as_str() })).collect();
    let mut all = vec![json!({ "contains": { "left": { "Set": logins }, "right": context("login") } })];
    let networks = rule.from.iter().map(|network| {
        json!({ "isInRange": [context("source"), { "ip": [{ "Value": network_text(*network) }] }] })
    });
    all.extend(networks.reduce(|left, right| json!({ "||": { "left": left, "right": right } })));
    if let Some(end) = rule.expires_at {
        all.push(json!({ "<": { "left": context("now"), "right": { "Value": end.as_millisecond() } } }));
    }
    all.into_iter().map(|body| json!({ "kind": "when", "body": body })).collect()
}

fn entity(kind: &str, id: &str) -> Value {
    json!({ "type": kind, "id": id })
}

fn context(attr: &str) -> Value {
    json!({ ".": { "left": { "Var": "context" }, "attr": attr } })
}

/// What is asked: once for each capability.
pub(super) struct Question<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) instance: &'a Instance,
    pub(super) login: &'a Login,
    pub(super) now: Timestamp,
}

/// What the rules say to one capability.
pub(super) struct Answer {
    pub(super) capability: Capability,
    pub(super) allowed: bool,
    /// The rules that decided: allowing ones if allowed, else denying ones, or none.
    pub(super) rules: Vec<String>,
}

impl Question<'_> {
    /// # Errors
    /// If anything at all could not be evaluated: Cedar would skip that policy, and it may be one that denies.
    pub(super) fn ask(&self, policies: &PolicySet) -> Result<Vec<Answer>, PolicyError> {
        let kinds = KINDS.as_ref().map_err(fault)?;
        let user = kinds.user.called(self.facts.user.as_str());
        let instance = kinds.instance.called(self.instance.name.as_str());
        let entities = self.entities(kinds, (user.clone(), instance.clone()))?;
        let (context, authorizer) = (self.context()?, Authorizer::new());
        Capability::ALL
            .into_iter()
            .map(|capability| {
                let action = kinds.action.called(capability.as_str());
                let asked = Request::new(user.clone(), action, instance.clone(), context.clone(), None);
                let response = authorizer.is_authorized(&asked.map_err(fault)?, policies, &entities);
                if let Some(error) = response.diagnostics().errors().next() {
                    return Err(fault(error));
                }
                let rules = response.diagnostics().reason().map(ToString::to_string).collect();
                Ok(Answer { capability, allowed: response.decision() == Decision::Allow, rules })
            })
            .collect()
    }

    fn context(&self) -> Result<Context, PolicyError> {
        Context::from_pairs([
            ("login".to_owned(), RestrictedExpression::new_string(self.login.to_string())),
            ("source".to_owned(), RestrictedExpression::new_ip(address_text(self.facts.source))),
            ("now".to_owned(), RestrictedExpression::new_long(self.now.as_millisecond())),
        ])
        .map_err(fault)
    }

    fn entities(
        &self,
        kinds: &Kinds,
        (user, instance): (EntityUid, EntityUid),
    ) -> Result<Entities, PolicyError> {
        let roles = self.facts.roles.iter().map(|role| kinds.role.called(role.as_str()));
        let roles: HashSet<_> = roles.collect();
        let labels =
            self.instance.labels.iter().map(|(key, value)| kinds.label.called(&label_id(key, value)));
        let labels: HashSet<_> = labels.collect();
        let parents = roles.iter().chain(&labels).cloned().map(Entity::with_uid).collect::<Vec<_>>();
        let user = Entity::new(user, HashMap::new(), roles).map_err(fault)?;
        let instance = Entity::new(instance, HashMap::new(), labels).map_err(fault)?;
        Entities::from_entities(parents.into_iter().chain([user, instance]), None).map_err(fault)
    }
}

/// The kinds of entities. Cedar parses such a name with a grammar: once is enough.
static KINDS: LazyLock<Result<Kinds, String>> = LazyLock::new(|| {
    let kind = |name| EntityTypeName::from_str(name).map(Kind).map_err(|e| e.to_string());
    Ok(Kinds {
        user: kind("User")?,
        role: kind("Role")?,
        action: kind("Action")?,
        instance: kind("Instance")?,
        label: kind("Label")?,
    })
});

struct Kinds {
    user: Kind,
    role: Kind,
    action: Kind,
    instance: Kind,
    label: Kind,
}

struct Kind(EntityTypeName);

impl Kind {
    fn called(&self, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.0.clone(), EntityId::new(id))
    }
}

/// Injective, whatever the two contain: `a=b` with value `c` is not `a` with value `b=c`.
fn label_id(key: &str, value: &str) -> String {
    json!([key, value]).to_string()
}

/// Cedar takes no IPv4 part in an IPv6 address, so all eight groups are written out; an IPv4 address seen through a
/// dual-stack listener is the IPv4 address.
fn address_text(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join(":"),
    }
}

fn network_text(network: IpNet) -> String {
    let network = match network.trunc() {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(prefix)) => Ipv4Net::new(v4, prefix).map_or(IpNet::V6(v6), IpNet::V4),
            _ => IpNet::V6(v6),
        },
        v4 => v4,
    };
    format!("{}/{}", address_text(network.addr()), network.prefix_len())
}

fn fault(error: impl std::fmt::Display) -> PolicyError {
    PolicyError::Evaluation(error.to_string())
}
