//! `access review`: who can reach what, with which key, from where, and when they last did.
//!
//! Asks the same rulebook that decides. A rule may hold for a network only, so each user is asked for from an address of
//! every region that the networks make which any rule or user names ([`places`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use keystore::{Instance, KeyStatus, Login, Rule, User, UserKey, UserKind};
use serde::Serialize;

mod places;

use places::{Place, Regions};

use super::render::{day, short_time, table};
use super::{Fault, Output};
use crate::policy::{Decision, Facts, Rulebook};
use crate::recording::Summary;
use crate::session::House;

/// One way to one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Way {
    user: String,
    kind: &'static str,
    roles: Vec<String>,
    /// Null: there is no key to go with, but perhaps a certificate.
    key: Option<String>,
    /// The user has no key here, and comes with a certificate of the organisation's user CA.
    certificate: bool,
    fingerprint: Option<String>,
    key_status: Option<String>,
    key_age_days: Option<i64>,
    key_last_used_at: Option<Timestamp>,
    instance: String,
    login: String,
    can: Vec<String>,
    /// `anywhere`, or a network; narrower ones follow in which it is otherwise: `10.0.0.0/8 except 10.0.0.0/24`.
    from: String,
    rules: Vec<String>,
    /// The last session of this user with this key, or with any certificate, to this place.
    last_session_at: Option<Timestamp>,
}

pub(super) async fn run(house: &House, out: &mut Output) -> Result<(), Fault> {
    let ways = ways(house, Timestamp::now()).await?;
    let rows = ways.iter().map(|w| {
        let key = match (&w.key, &w.key_status, w.key_age_days) {
            (Some(key), Some(status), Some(age)) => format!("{key} {status} {age} d"),
            _ if w.certificate => "certificate".to_owned(),
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
    let last = Last::of(sessions);
    let rulebook = house.rulebook.load_full();
    let asked = Asked { rulebook: &rulebook, regions: regions(&rules, &users), now };
    let mut found = Vec::new();
    for user in users.iter().filter(|u| u.barred(now).is_none()) {
        let opens = |k: &&UserKey| {
            k.user == user.name
                && matches!(k.status_at(now), KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring)
        };
        let held: Vec<Option<&UserKey>> = keys.iter().filter(opens).map(Some).collect();
        let held = if held.is_empty() { vec![None] } else { held };
        let certificate = house.certificates.may_bring(&user.name, &keys, now);
        for instance in &instances {
            for login in &instance.logins {
                for (from, decision) in asked.ways(user, instance, login) {
                    let to = Destination { user, instance, login, from: &from, decision: &decision };
                    found.extend(held.iter().map(|key| to.with(*key, certificate, &last, now)));
                }
            }
        }
    }
    Ok(found)
}

/// What the rulebook is asked for everybody.
struct Asked<'a> {
    rulebook: &'a Rulebook,
    regions: Regions,
    now: Timestamp,
}

impl Asked<'_> {
    /// From where `user` may go there, and to do what.
    fn ways(&self, user: &User, instance: &Instance, login: &Login) -> Vec<(Place, Decision)> {
        let decide = |source: IpAddr| {
            let facts = Facts { user: &user.name, roles: &user.roles, source };
            self.rulebook.decide(&facts, instance, login, self.now)
        };
        let may = |source: IpAddr| {
            let decision = user.comes_from(source).then(|| decide(source));
            decision.filter(|decision| !decision.can.is_empty()).map(ByDeed)
        };
        self.regions.told(may).into_iter().map(|(place, decision)| (place, decision.0)).collect()
    }
}

/// Decisions are alike when they let do the same, whatever rules say so.
struct ByDeed(Decision);

impl PartialEq for ByDeed {
    fn eq(&self, other: &Self) -> bool {
        self.0.can == other.0.can
    }
}

fn regions(rules: &[Rule], users: &[User]) -> Regions {
    let of_rules = rules.iter().flat_map(|r| r.from.iter());
    Regions::of(of_rules.chain(users.iter().flat_map(|u| u.from.iter())).copied())
}

/// Key or user, instance and login.
type There = (String, String, String);

/// When somebody was last anywhere.
#[derive(Default)]
struct Last {
    by_key: BTreeMap<There, Timestamp>,
    by_user: BTreeMap<There, Timestamp>,
}

impl Last {
    fn of(sessions: Vec<Summary>) -> Self {
        let mut last = Self::default();
        for s in sessions {
            let to = |who: String| (who, s.header.instance.clone(), s.header.login.clone());
            // Oldest first, so the newest stays.
            last.by_key.insert(to(s.header.key.clone()), s.header.started_at);
            last.by_user.insert(to(s.header.user.clone()), s.header.started_at);
        }
        last
    }
}

/// A way without what it is gone with.
struct Destination<'a> {
    user: &'a User,
    instance: &'a Instance,
    login: &'a Login,
    from: &'a Place,
    decision: &'a Decision,
}

impl Destination<'_> {
    fn with(&self, key: Option<&UserKey>, certificate: bool, last: &Last, now: Timestamp) -> Way {
        let Self { user, instance, login, from, decision } = self;
        let there = |who: &str| (who.to_owned(), instance.name.to_string(), login.to_string());
        let last_session_at = match key {
            Some(key) => last.by_key.get(&there(&key.fingerprint)),
            None => last.by_user.get(&there(user.name.as_str())),
        };
        Way {
            user: user.name.to_string(),
            kind: if user.kind == UserKind::Service { "service" } else { "human" },
            roles: user.roles.iter().map(ToString::to_string).collect(),
            certificate: key.is_none() && certificate,
            key: key.map(|k| k.id.clone()),
            fingerprint: key.map(|k| k.fingerprint.clone()),
            key_status: key.map(|k| k.status_at(now).to_string()),
            key_age_days: key.map(|k| k.age_days(now)),
            key_last_used_at: key.and_then(|k| k.last_used_at),
            instance: instance.name.to_string(),
            login: login.to_string(),
            can: decision.can.iter().map(ToString::to_string).collect(),
            from: from.to_string(),
            rules: decision.rules.clone(),
            last_session_at: last_session_at.copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{at, public_key, user, user_key};
    use ipnet::{IpNet, Ipv4Net};
    use keystore::{Capability, Effect, HostTrust, Subject, Target};
    use proptest::prelude::*;

    fn rule(n: usize, (allows, can, from): (bool, Capability, Vec<IpNet>)) -> Rule {
        Rule {
            id: format!("R{n}"),
            effect: if allows { Effect::Allow } else { Effect::Deny },
            subject: Subject::User("alice".parse().unwrap()),
            target: Target::Instance("db-1".parse().unwrap()),
            logins: ["ubuntu".parse().unwrap()].into(),
            can: [can].into(),
            from,
            expires_at: None,
            recording: None,
            added_at: at(0),
        }
    }

    fn instance() -> Instance {
        Instance {
            name: "db-1".parse().unwrap(),
            aliases: [].into(),
            address: "192.0.2.9:22".parse().unwrap(),
            logins: ["ubuntu".parse().unwrap()].into(),
            labels: [].into(),
            host_trust: HostTrust::Pinned(Vec::new()),
            credential: keystore::SignsIn::Certificate,
            added_at: at(0),
        }
    }

    /// Few bits, so that they nest.
    fn net() -> impl Strategy<Value = IpNet> {
        (0_u32..8, 0_u8..=3)
            .prop_map(|(bits, length)| IpNet::V4(Ipv4Net::new((bits << 29).into(), length).unwrap()).trunc())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn from_each_address_the_review_says_what_would_be_decided(
            rules in prop::collection::vec(
                (any::<bool>(), prop::sample::select(Capability::ALL.to_vec()), prop::collection::vec(net(), 0..3)),
                0..5,
            ),
            from in prop::collection::vec(net(), 0..3),
        ) {
            let rules: Vec<Rule> = rules.into_iter().enumerate().map(|(n, terms)| rule(n, terms)).collect();
            let (alice, instance) = (User { from, ..user("alice", &["engineer"]) }, instance());
            let login = instance.logins.first().unwrap();
            let rulebook = Rulebook::compile(&rules).unwrap();
            let regions = regions(&rules, std::slice::from_ref(&alice));
            let asked = Asked { rulebook: &rulebook, regions, now: at(0) };
            let ways = asked.ways(&alice, &instance, login);
            for bits in 0..8_u32 {
                let source = IpAddr::V4(((bits << 29) + 7).into());
                let told: Vec<_> = ways.iter().filter(|(place, _)| place.covers(source)).collect();
                let facts = Facts { user: &alice.name, roles: &alice.roles, source };
                let decided = rulebook.decide(&facts, &instance, login, at(0)).can;
                let decided = Some(decided).filter(|can| alice.comes_from(source) && !can.is_empty());
                let told: Vec<_> = told.into_iter().map(|(_, decision)| decision.can.clone()).collect();
                prop_assert_eq!(told, decided.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn who_comes_with_a_certificate_was_there_with_whichever_it_was_and_with_a_key_only_by_that_key() {
        let (alice, instance, regions) = (user("alice", &[]), instance(), Regions::of([].into_iter()));
        let login = instance.logins.first().unwrap();
        let there = |who: &str| (who.to_owned(), "db-1".to_owned(), "ubuntu".to_owned());
        let last = Last { by_key: [].into(), by_user: [(there("alice"), at(5))].into() };
        let rulebook = Rulebook::compile(&[rule(1, (true, Capability::Shell, Vec::new()))]).unwrap();
        let asked = Asked { rulebook: &rulebook, regions, now: at(9) };
        let [(from, decision)] = &asked.ways(&alice, &instance, login)[..] else { panic!("one way") };
        let to = Destination { user: &alice, instance: &instance, login, from, decision };
        let way = to.with(None, true, &last, at(9));
        assert!(way.certificate && way.last_session_at == Some(at(5)));
        let key = user_key("alice", &public_key(1));
        let way = to.with(Some(&key), true, &last, at(9));
        assert!(!way.certificate && way.last_session_at.is_none(), "that was not with this key");
        assert!(!to.with(None, false, &last, at(9)).certificate);
    }
}
