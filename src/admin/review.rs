//! `access review`: who can reach what, with which key, from where, and when they last did.
//!
//! Asks the same rulebook that decides. A rule may hold for a network only, so each user is asked for from every
//! network that any rule names, and from outside of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use keystore::{Instance, KeyStatus, Rule, User, UserKey, UserKind};
use serde::Serialize;

use super::render::{day, short_time, table};
use super::{Fault, Output};
use crate::policy::Facts;
use crate::session::House;

/// One way to one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Way {
    user: String,
    kind: &'static str,
    roles: Vec<String>,
    /// Null: there is no key to go with.
    key: Option<String>,
    fingerprint: Option<String>,
    key_status: Option<String>,
    key_age_days: Option<i64>,
    key_last_used_at: Option<Timestamp>,
    instance: String,
    login: String,
    can: Vec<String>,
    /// `anywhere`, or a network.
    from: String,
    rules: Vec<String>,
    /// The last session of this user with this key to this place.
    last_session_at: Option<Timestamp>,
}

pub(super) async fn run(house: &House, out: &mut Output) -> Result<(), Fault> {
    let ways = ways(house, Timestamp::now()).await?;
    let rows = ways.iter().map(|w| {
        let key = match (&w.key, &w.key_status, w.key_age_days) {
            (Some(key), Some(status), Some(age)) => format!("{key} {status} {age} d"),
            _ => "no key".to_owned(),
        };
        let user = if w.kind == "service" { format!("{} (service)", w.user) } else { w.user.clone() };
        vec![
            user,
            format!("{}@{}", w.login, w.instance),
            w.can.join(","),
            w.from.clone(),
            w.rules.join(","),
            key,
            w.key_last_used_at.map_or_else(|| "never".to_owned(), day),
            w.last_session_at.map_or_else(|| "never".to_owned(), short_time),
        ]
    });
    let header = ["USER", "MAY REACH", "AND DO", "FROM", "BY", "WITH KEY", "KEY LAST USED", "LAST THERE"];
    let text = table(&header, rows, out.width());
    out.either(&ways, text).await
}

async fn ways(house: &House, now: Timestamp) -> Result<Vec<Way>, Fault> {
    let (users, keys): (Vec<User>, Vec<UserKey>) = (house.vault.list().await?, house.vault.list().await?);
    let (rules, instances): (Vec<Rule>, Vec<Instance>) =
        (house.vault.list().await?, house.vault.list().await?);
    let tapes = Arc::clone(&house.tapes);
    let sessions = tokio::task::spawn_blocking(move || tapes.list()).await;
    let sessions = sessions.map_err(|e| Fault::error(e.to_string()))?.map_err(Fault::from)?;
    let mut last = BTreeMap::new();
    for s in sessions {
        // Oldest first, so the newest stays.
        last.insert((s.header.key, s.header.instance, s.header.login), s.header.started_at);
    }
    let places = places(&rules, &users);
    let rulebook = house.rulebook.load_full();
    let mut found = Vec::new();
    for user in users.iter().filter(|u| u.barred(now).is_none()) {
        let opens = |k: &&UserKey| {
            k.user == user.name
                && matches!(k.status_at(now), KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring)
        };
        let held: Vec<Option<&UserKey>> = keys.iter().filter(opens).map(Some).collect();
        let held = if held.is_empty() { vec![None] } else { held };
        for instance in &instances {
            for login in &instance.logins {
                let mut from_anywhere = BTreeSet::new();
                for (from, source) in places.iter().filter(|(_, source)| user.comes_from(*source)) {
                    let facts = Facts { user: &user.name, roles: &user.roles, source: *source };
                    let decision = rulebook.decide(&facts, instance, login, now);
                    if decision.can.is_empty() || decision.can == from_anywhere {
                        continue;
                    }
                    if from == ANYWHERE {
                        from_anywhere.clone_from(&decision.can);
                    }
                    for key in &held {
                        let print = key.map(|k| k.fingerprint.clone());
                        let there = print.clone().map(|p| (p, instance.name.to_string(), login.to_string()));
                        found.push(Way {
                            user: user.name.to_string(),
                            kind: if user.kind == UserKind::Service { "service" } else { "human" },
                            roles: user.roles.iter().map(ToString::to_string).collect(),
                            key: key.map(|k| k.id.clone()),
                            fingerprint: print,
                            key_status: key.map(|k| k.status_at(now).to_string()),
                            key_age_days: key.map(|k| k.age_days(now)),
                            key_last_used_at: key.and_then(|k| k.last_used_at),
                            instance: instance.name.to_string(),
                            login: login.to_string(),
                            can: decision.can.iter().map(ToString::to_string).collect(),
                            from: from.clone(),
                            rules: decision.rules.clone(),
                            last_session_at: there.and_then(|there| last.get(&there).copied()),
                        });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Each network that is named anywhere with an address in it, after an address that lies in none.
fn places(rules: &[Rule], users: &[User]) -> Vec<(String, IpAddr)> {
    let nets: BTreeSet<IpNet> = rules
        .iter()
        .flat_map(|r| r.from.iter())
        .chain(users.iter().flat_map(|u| u.from.iter()))
        .copied()
        .collect();
    let outside = (0..=u8::MAX).map(|n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)));
    let outside = outside.chain([IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1))]);
    let outside = outside.into_iter().find(|ip| !nets.iter().any(|net| net.contains(ip)));
    let outside = outside.map(|ip| (ANYWHERE.to_owned(), ip));
    outside.into_iter().chain(nets.iter().map(|net| (net.to_string(), net.addr()))).collect()
}

const ANYWHERE: &str = "anywhere";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::user;

    #[test]
    fn the_address_for_anywhere_lies_in_no_network_that_is_named() {
        let mut service = user("backup", &[]);
        service.from = vec!["192.0.2.0/25".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        let places = places(&[], &[service]);
        assert_eq!(places.len(), 3);
        assert_eq!(places[0], (ANYWHERE.to_owned(), "192.0.2.128".parse().unwrap()));
    }
}
