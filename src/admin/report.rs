//! `ssh-keys report`: how old the keys are, which are never used, and whose they are.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use keystore::{KeyRules, KeyStatus, User, UserKey, UserKind, UserName};
use serde::Serialize;

use super::render::{day, table};
use super::{Fault, Output};
use crate::rotation::span;
use crate::session::House;

/// What the report says; only keys that log in, or will, count in its figures.
#[derive(Debug, Serialize)]
struct Report {
    at: Timestamp,
    by_status: BTreeMap<String, usize>,
    ages: Vec<Age>,
    never_used: Vec<Line>,
    unused_30_days: Vec<Line>,
    expiring_14_days: Vec<Line>,
    /// Older than the terms of now allow: added under longer ones.
    over_age: Vec<Line>,
    oldest: Vec<Line>,
    by_user: Vec<Group>,
    by_role: Vec<Group>,
    users_without_key: Vec<String>,
    /// Those who come with certificates of the organisation's user CA.
    users_with_certificate: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Age {
    from_days: i64,
    to_days: Option<i64>,
    keys: usize,
}

#[derive(Debug, Clone, Serialize)]
struct Line {
    id: String,
    user: String,
    kind: &'static str,
    name: String,
    fingerprint: String,
    algorithm: String,
    status: String,
    age_days: i64,
    added_at: Timestamp,
    expires_at: Timestamp,
    last_used_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Group {
    name: String,
    users: usize,
    keys: usize,
    oldest_days: Option<i64>,
    next_expiry: Option<Timestamp>,
    max_age_days: i64,
}

/// How long the keys of somebody last, in words for people and seconds for programs.
#[derive(Debug, Serialize)]
pub(super) struct Lasting {
    max_age_secs: i64,
    warn_secs: Vec<i64>,
    grace_secs: i64,
    overlap_secs: i64,
}

impl Lasting {
    pub(super) fn of(rules: &KeyRules, owner: &User) -> Self {
        let terms = rules.of(owner);
        let max_age_secs = terms.max_age_of(owner.kind);
        Self { max_age_secs, warn_secs: terms.warn, grace_secs: terms.grace, overlap_secs: terms.overlap }
    }

    pub(super) fn told(&self) -> String {
        let warn = self.warn_secs.iter().map(|warning| span(*warning)).collect::<Vec<_>>().join(", ");
        format!(
            "A new key of this user lasts {}, with warnings {} before its end, {} of grace after it, and works {} longer once replaced.",
            span(self.max_age_secs),
            if warn.is_empty() { "never" } else { &warn },
            span(self.grace_secs),
            span(self.overlap_secs)
        )
    }
}

pub(super) async fn run(house: &House, csv: bool, out: &mut Output) -> Result<(), Fault> {
    let now = Timestamp::now();
    let (keys, users): (Vec<UserKey>, Vec<User>) = (house.vault.list().await?, house.vault.list().await?);
    if csv {
        return out.line(as_csv(&lines(&keys, &users, now))).await;
    }
    let certified = users.iter().map(|user| user.name.clone());
    let certified = certified.filter(|user| house.certificates.may_bring(user, &keys, now)).collect();
    let report = Report::of(&keys, (&users, &certified, &house.config().keys), now);
    let text = report.told(out.width());
    out.either(&report, text).await
}

fn lines(keys: &[UserKey], users: &[User], now: Timestamp) -> Vec<Line> {
    let services: BTreeSet<_> =
        users.iter().filter(|u| u.kind == UserKind::Service).map(|u| u.name.clone()).collect();
    keys.iter()
        .map(|key| Line {
            id: key.id.clone(),
            user: key.user.to_string(),
            kind: if services.contains(&key.user) { "service" } else { "human" },
            name: key.name.clone(),
            fingerprint: key.fingerprint.clone(),
            algorithm: key.algorithm.clone(),
            status: key.status_at(now).to_string(),
            age_days: key.age_days(now),
            added_at: key.added_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
        })
        .collect()
}

impl Report {
    fn of(
        keys: &[UserKey],
        (users, certified, rules): (&[User], &BTreeSet<UserName>, &KeyRules),
        now: Timestamp,
    ) -> Self {
        let mut by_status = BTreeMap::new();
        for key in keys {
            *by_status.entry(key.status_at(now).to_string()).or_insert(0) += 1;
        }
        let opens = |k: &&UserKey| {
            matches!(k.status_at(now), KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring)
        };
        let live: Vec<UserKey> = keys.iter().filter(opens).cloned().collect();
        let mut lines = lines(&live, users, now);
        lines.sort_by_key(|line| line.added_at);
        let only =
            |wanted: &dyn Fn(&Line) -> bool| lines.iter().filter(|l| wanted(l)).cloned().collect::<Vec<_>>();
        let days = |n: i64| n * 86_400;
        let since = |at: Timestamp| now.as_second() - at.as_second();
        let ages = EDGES.iter().enumerate().map(|(n, from)| {
            let to = EDGES.get(n + 1).copied();
            let inside = |l: &&Line| l.age_days >= *from && to.is_none_or(|to| l.age_days < to);
            Age { from_days: *from, to_days: to, keys: lines.iter().filter(inside).count() }
        });
        let roles: BTreeSet<String> =
            users.iter().flat_map(|u| u.roles.iter().map(ToString::to_string)).collect();
        let held = |name: &str| lines.iter().any(|l| l.user == name);
        let without = |certificate: bool| {
            let inside = users.iter().filter(|u| u.barred(now).is_none() && !held(u.name.as_str()));
            inside
                .filter(|u| certified.contains(&u.name) == certificate)
                .map(|u| u.name.to_string())
                .collect()
        };
        Self {
            at: now,
            by_status,
            ages: ages.collect(),
            never_used: only(&|l| l.last_used_at.is_none()),
            unused_30_days: only(&|l| l.last_used_at.is_some_and(|at| since(at) > days(30))),
            expiring_14_days: only(&|l| l.expires_at.as_second() - now.as_second() <= days(14)),
            over_age: only(&|l| {
                let owner = users.iter().find(|u| u.name.as_str() == l.user);
                owner.is_some_and(|owner| since(l.added_at) > rules.of(owner).max_age_of(owner.kind))
            }),
            oldest: lines.iter().take(10).cloned().collect(),
            by_user: users
                .iter()
                .map(|u| {
                    let group = group(u.name.as_str(), &[u], &lines);
                    Group { max_age_days: rules.of(u).max_age_of(u.kind) / 86_400, ..group }
                })
                .collect(),
            by_role: roles
                .iter()
                .map(|role| {
                    let alone = role.parse().into_iter().collect();
                    let held = users.iter().filter(|u| u.has_role(role)).collect::<Vec<_>>();
                    let max_age_days = rules.of_roles(&alone).max_age / 86_400;
                    Group { max_age_days, ..group(role, &held, &lines) }
                })
                .collect(),
            users_without_key: without(false),
            users_with_certificate: without(true),
        }
    }

    fn told(&self, width: Option<u16>) -> String {
        let states = self.by_status.iter().map(|(status, n)| format!("{n} {status}")).collect::<Vec<_>>();
        let mut text = format!("Keys: {}\n\nAge of the keys in use\n", states.join(", "));
        let most = self.ages.iter().map(|a| a.keys).max().unwrap_or(0).max(1);
        for age in &self.ages {
            let to = age.to_days.map_or_else(|| "on   ".to_owned(), |to| format!("- {to:<3}"));
            let bar = "#".repeat((age.keys * 40).div_ceil(most));
            text.push_str(&format!("  {:>3} {to} days  {:>5}  {bar}\n", age.from_days, age.keys));
        }
        for (title, lines) in [
            ("Never used", &self.never_used),
            ("Not used for 30 days", &self.unused_30_days),
            ("Expiring within 14 days", &self.expiring_14_days),
            ("Older than their terms allow by now", &self.over_age),
            ("Oldest", &self.oldest),
        ] {
            let rows = lines.iter().map(|l| {
                let used = l.last_used_at.map_or_else(|| "never".to_owned(), day);
                let who = if l.kind == "service" { format!("{} (service)", l.user) } else { l.user.clone() };
                vec![l.id.clone(), who, l.name.clone(), format!("{} d", l.age_days), day(l.expires_at), used]
            });
            let shown = table(&["KEY", "USER", "NAME", "AGE", "EXPIRES", "LAST USED"], rows, width);
            text.push_str(&format!("\n{title}\n{shown}\n"));
        }
        for (title, groups) in [("USER", &self.by_user), ("ROLE", &self.by_role)] {
            let rows = groups.iter().map(|g| {
                vec![
                    g.name.clone(),
                    g.keys.to_string(),
                    g.oldest_days.map_or_else(|| "-".to_owned(), |d| format!("{d} d")),
                    g.next_expiry.map_or_else(|| "-".to_owned(), day),
                    format!("{} d", g.max_age_days),
                ]
            });
            let shown = table(&[title, "KEYS IN USE", "OLDEST", "NEXT EXPIRY", "MAX AGE"], rows, width);
            text.push_str(&format!("\n{shown}\n"));
        }
        for (title, users) in [
            ("Without a key in use", &self.users_without_key),
            ("With certificates", &self.users_with_certificate),
        ] {
            if !users.is_empty() {
                text.push_str(&format!("\n{title}: {}\n", users.join(", ")));
            }
        }
        text
    }
}

fn group(name: &str, users: &[&User], lines: &[Line]) -> Group {
    let theirs: Vec<&Line> =
        lines.iter().filter(|l| users.iter().any(|u| u.name.as_str() == l.user)).collect();
    Group {
        name: name.to_owned(),
        users: users.len(),
        keys: theirs.len(),
        oldest_days: theirs.iter().map(|l| l.age_days).max(),
        next_expiry: theirs.iter().map(|l| l.expires_at).min(),
        max_age_days: 0,
    }
}

fn as_csv(lines: &[Line]) -> String {
    let mut text =
        "id,user,kind,name,fingerprint,algorithm,status,age_days,added_at,expires_at,last_used_at\r\n"
            .to_owned();
    for l in lines {
        let used = l.last_used_at.map(|at| at.to_string()).unwrap_or_default();
        let (age, added, expires) =
            (l.age_days.to_string(), l.added_at.to_string(), l.expires_at.to_string());
        let cells = [
            &l.id,
            &l.user,
            l.kind,
            &l.name,
            &l.fingerprint,
            &l.algorithm,
            &l.status,
            &age,
            &added,
            &expires,
            &used,
        ];
        text.push_str(&cells.map(cell).join(","));
        text.push_str("\r\n");
    }
    text
}

/// RFC 4180 §2; and a text that a spreadsheet would take for a formula is marked as text.
fn cell(text: &str) -> String {
    let text =
        if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// Where the bars of the histogram begin, in days.
const EDGES: [i64; 7] = [0, 7, 30, 60, 90, 180, 365];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{at, public_key, user, user_key};

    const DAY: i64 = 86_400;

    #[test]
    fn the_report_counts_what_opens_a_door_and_names_what_does_not() {
        let old = UserKey { last_used_at: Some(at(DAY)), ..user_key("alice", &public_key(1)) };
        let fresh =
            UserKey { id: "K2".to_owned(), added_at: at(49 * DAY), ..user_key("bob", &public_key(2)) };
        let gone = UserKey { status: KeyStatus::Revoked, ..user_key("bob", &public_key(3)) };
        let mut rules = KeyRules::default();
        let admins = keystore::rules::RoleTerms { max_age: Some(0), ..Default::default() };
        rules.roles.insert("admin".parse().unwrap(), admins);
        let users = [("alice", "engineer"), ("bob", "admin"), ("carol", "engineer"), ("dave", "engineer")];
        let users = users.map(|(name, role)| user(name, &[role]));
        let certified = ["dave".parse().unwrap()].into();
        let report = Report::of(&[old, fresh, gone], (&users, &certified, &rules), at(50 * DAY));
        assert_eq!(report.by_status, [("active".to_owned(), 2), ("revoked".to_owned(), 1)].into());
        let histogram: Vec<_> = report.ages.iter().map(|a| a.keys).collect();
        assert_eq!(histogram, [1, 0, 1, 0, 0, 0, 0]);
        let ids = |lines: &[Line]| lines.iter().map(|l| l.id.clone()).collect::<Vec<_>>().join(",");
        assert_eq!(ids(&report.never_used), "K2");
        assert_eq!(ids(&report.unused_30_days), "K1");
        assert_eq!((ids(&report.oldest), ids(&report.over_age)), ("K1,K2".to_owned(), "K2".to_owned()));
        assert_eq!(report.by_role.iter().map(|g| g.max_age_days).collect::<Vec<_>>(), [0, 90]);
        assert_eq!(
            (&*report.users_without_key, &*report.users_with_certificate),
            (&["carol".to_owned()][..], &["dave".to_owned()][..])
        );
        assert_eq!(
            report.by_role.iter().map(|g| (g.name.as_str(), g.keys)).collect::<Vec<_>>(),
            [("admin", 1), ("engineer", 1)]
        );
        let told = report.told(None);
        assert!(told.contains("Without a key in use: carol\n") && told.contains("With certificates: dave\n"));
    }

    #[test]
    fn a_cell_neither_breaks_the_row_nor_becomes_a_formula() {
        assert_eq!(cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(cell("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(cell("laptop"), "laptop");
    }
}
