//! Rules and questions in Cedar's terms. The only file that knows Cedar.
//!
//! `User::"alice" in Role::"engineer"`, `Action::"shell"`, `Instance::"db-1" in Label::["env","prod"]`, and
//! a context of `login`, `source` (ip) and `now` (Unix time in ms). Policies are built as Cedar's JSON form, in which a
//! name is always a value and never syntax.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;

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
        let entities = self.entities()?;
        let authorizer = Authorizer::new();
        Capability::ALL
            .into_iter()
            .map(|capability| {
                let response = authorizer.is_authorized(&self.request(capability)?, policies, &entities);
                if let Some(error) = response.diagnostics().errors().next() {
                    return Err(fault(error));
                }
                let rules = response.diagnostics().reason().map(ToString::to_string).collect();
                Ok(Answer { capability, allowed: response.decision() == Decision::Allow, rules })
            })
            .collect()
    }

    fn request(&self, capability: Capability) -> Result<Request, PolicyError> {
        let context = Context::from_pairs([
            ("login".to_owned(), RestrictedExpression::new_string(self.login.to_string())),
            ("source".to_owned(), RestrictedExpression::new_ip(address_text(self.facts.source))),
            ("now".to_owned(), RestrictedExpression::new_long(self.now.as_millisecond())),
        ])
        .map_err(fault)?;
        let principal = uid("User", self.facts.user.as_str())?;
        let resource = uid("Instance", self.instance.name.as_str())?;
        Request::new(principal, uid("Action", capability.as_str())?, resource, context, None).map_err(fault)
    }

    fn entities(&self) -> Result<Entities, PolicyError> {
        let roles = self.facts.roles.iter().map(|role| uid("Role", role.as_str()));
        let roles = roles.collect::<Result<HashSet<_>, _>>()?;
        let labels = self.instance.labels.iter().map(|(key, value)| uid("Label", &label_id(key, value)));
        let labels = labels.collect::<Result<HashSet<_>, _>>()?;
        let parents = roles.iter().chain(&labels).cloned().map(Entity::with_uid).collect::<Vec<_>>();
        let user =
            Entity::new(uid("User", self.facts.user.as_str())?, HashMap::new(), roles).map_err(fault)?;
        let instance = Entity::new(uid("Instance", self.instance.name.as_str())?, HashMap::new(), labels)
            .map_err(fault)?;
        Entities::from_entities(parents.into_iter().chain([user, instance]), None).map_err(fault)
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, PolicyError> {
    let kind = EntityTypeName::from_str(kind).map_err(fault)?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
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
