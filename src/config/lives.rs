//! `[keys]` and `[mfa]`: how long keys live, and how long a second factor is remembered.

use std::collections::BTreeMap;

use keystore::Role;
use keystore::lifecycle::Terms;
use keystore::rules::{Accepted, KeyKind, KeyRules, RoleTerms};
use serde::Deserialize;

/// What is remembered of second factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mfa {
    /// For so many seconds a code given with a key from an address is not asked for again; `None`: it always is.
    pub remember: Option<i64>,
    /// A security key that verifies its user, and was enrolled as one that must, is key and code in one.
    pub verify_required_counts: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    max_age: Option<Span>,
    service_max_age: Option<Span>,
    warn: Option<Vec<Span>>,
    grace: Option<Span>,
    overlap: Option<Span>,
    algorithms: Option<Vec<String>>,
    role: BTreeMap<String, OfRole>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct OfRole {
    max_age: Option<Span>,
    warn: Option<Vec<Span>>,
    grace: Option<Span>,
    overlap: Option<Span>,
}

impl Keys {
    pub(super) fn check(&self, max_age_days: Option<u32>) -> Result<(), (String, String)> {
        if max_age_days.is_some() && self.max_age.is_some() {
            return Err((
                "key_max_age_days".to_owned(),
                "says the same as keys.max_age; keep only keys.max_age".to_owned(),
            ));
        }
        within("keys.service_max_age", self.service_max_age, 1)?;
        let everyone = (self.max_age, self.grace, self.overlap);
        check_terms("keys", everyone, self.warn.as_deref())?;
        for (name, role) in &self.role {
            let table = format!("keys.role.{name}");
            name.parse::<Role>().map_err(|invalid| (table.clone(), invalid.to_string()))?;
            check_terms(&table, (role.max_age, role.grace, role.overlap), role.warn.as_deref())?;
        }
        let algorithms = self.algorithms.as_deref();
        let wrong = algorithms.into_iter().flatten().find(|name| name.parse::<KeyKind>().is_err());
        let known = "use ed25519, sk-ed25519 and rsa-4096";
        match (wrong, algorithms) {
            (Some(wrong), _) => {
                Err(("keys.algorithms".to_owned(), format!("{wrong:?} is no kind of key; {known}")))
            }
            (None, Some([])) => Err(("keys.algorithms".to_owned(), format!("nobody could log in; {known}"))),
            _ => Ok(()),
        }
    }

    pub(super) fn rules(mut self, max_age_days: Option<u32>) -> KeyRules {
        let roles = std::mem::take(&mut self.role).into_iter().filter_map(|(name, role)| {
            let seconds = |span: Option<Span>| span.map(|span| span.0);
            let terms = RoleTerms {
                max_age: seconds(role.max_age),
                warn: role.warn.map(|spans| spans.iter().map(|span| span.0).collect()),
                grace: seconds(role.grace),
                overlap: seconds(role.overlap),
            };
            Some((name.parse().ok()?, terms))
        });
        let roles = roles.collect();
        let accepted = match self.algorithms.take() {
            Some(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
            None => Accepted::default(),
        };
        KeyRules { base: self.terms(max_age_days), roles, accepted }
    }

    fn terms(self, max_age_days: Option<u32>) -> Terms {
        let default = Terms::default();
        let days = max_age_days.map(|days| i64::from(days) * 86_400);
        let mut warn = self.warn.map_or(default.warn, |spans| spans.iter().map(|span| span.0).collect());
        warn.sort_unstable_by(|a, b| b.cmp(a));
        let max_age = self.max_age.map(|span| span.0).or(days).unwrap_or(default.max_age);
        Terms {
            max_age,
            // Never longer than a human's, unless it is said.
            service_max_age: self.service_max_age.map_or(max_age.min(default.service_max_age), |span| span.0),
            warn,
            grace: self.grace.map_or(default.grace, |span| span.0),
            overlap: self.overlap.map_or(default.overlap, |span| span.0),
        }
    }
}

/// The keys that Keyward itself holds on instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// After so many seconds one is rotated.
    pub max_age: i64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCredentials {
    max_age: Option<Span>,
}

impl RawCredentials {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        within("credentials.max_age", self.max_age, 1)
    }
}

impl From<RawCredentials> for Credentials {
    fn from(raw: RawCredentials) -> Self {
        Self { max_age: raw.max_age.map_or(90 * 86_400, |span| span.0) }
    }
}

fn check_terms(
    table: &str,
    (max_age, grace, overlap): (Option<Span>, Option<Span>, Option<Span>),
    warn: Option<&[Span]>,
) -> Result<(), (String, String)> {
    within(&format!("{table}.max_age"), max_age, 1)?;
    within(&format!("{table}.grace"), grace, 0)?;
    within(&format!("{table}.overlap"), overlap, 0)?;
    let warn = warn.unwrap_or_default();
    if warn.len() > 10 || warn.iter().any(|span| !(1..=TEN_YEARS).contains(&span.0)) {
        let what = "use at most ten durations, each 1s to 3650d".to_owned();
        return Err((format!("{table}.warn"), what));
    }
    Ok(())
}

fn within(key: &str, span: Option<Span>, least: i64) -> Result<(), (String, String)> {
    match span {
        Some(span) if !(least..=TEN_YEARS).contains(&span.0) => {
            Err((key.to_owned(), format!("is out of range; use {least}s to 3650d")))
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMfa {
    remember: Option<Span>,
    verify_required_counts: bool,
}

impl RawMfa {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        match self.remember {
            Some(span) if !(1..=LONGEST_MEMORY).contains(&span.0) => {
                Err(("mfa.remember", "is out of range; use 1s to 7d, or leave it out".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl From<RawMfa> for Mfa {
    fn from(raw: RawMfa) -> Self {
        Self { remember: raw.remember.map(|span| span.0), verify_required_counts: raw.verify_required_counts }
    }
}

/// A duration in seconds, written `90d`, `12h`, `10m` or `30s`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) i64);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration; use for example 90d, 12h or 30s");
        let (at, unit) = text.char_indices().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u32 = text.get(..at).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        Ok(Self(i64::from(count) * seconds))
    }
}

pub(super) const TEN_YEARS: i64 = 3650 * 86_400;
const LONGEST_MEMORY: i64 = 7 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, String> {
        let text = format!("listen = \"127.0.0.1:1\"\n{text}");
        Config::parse(Path::new("/x/k.toml"), &text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_lives_of_keys_have_defaults_and_can_be_set() {
        assert_eq!(*parse("").unwrap().keys, KeyRules::default());
        assert_eq!(parse("key_max_age_days = 30\n").unwrap().keys.base.max_age, 30 * 86_400);
        let service = |text: &str| parse(text).unwrap().keys.base.service_max_age / 86_400;
        assert_eq!(service(""), 30, "a service's opens doors without a code");
        assert_eq!(service("[keys]\nmax_age = \"7d\"\n"), 7, "never longer than a human's");
        assert_eq!(service("[keys]\nservice_max_age = \"90d\"\n"), 90, "unless it is said");
        let keys =
            parse("[keys]\nmax_age = \"8h\"\nwarn = [\"1h\", \"2h\"]\ngrace = \"0s\"\noverlap = \"10m\"\n");
        let keys = keys.unwrap().keys.base.clone();
        assert_eq!((keys.max_age, keys.grace, keys.overlap), (28_800, 0, 600));
        assert_eq!(keys.warn, [7200, 3600]);
    }

    #[test]
    fn a_wrong_duration_is_named_with_its_line() {
        let said = parse("[keys]\nmax_age = \"ninety\"\n").unwrap_err();
        assert_eq!(
            said,
            "/x/k.toml:3: keys.max_age: \"ninety\" is not a duration; use for example 90d, 12h or 30s"
        );
        assert!(parse("[keys]\nmax_age = \"0s\"\n").unwrap_err().contains("keys.max_age: is out of range"));
        assert!(parse("key_max_age_days = 3\n[keys]\nmax_age = \"1d\"\n").is_err());
    }

    #[test]
    fn a_key_on_an_instance_is_rotated_after_ninety_days_unless_told() {
        assert_eq!(parse("").unwrap().credentials.max_age, 90 * 86_400);
        assert_eq!(parse("[credentials]\nmax_age = \"1d\"\n").unwrap().credentials.max_age, 86_400);
        let said = parse("[credentials]\nmax_age = \"0s\"\n").unwrap_err();
        assert_eq!(said, "/x/k.toml:3: credentials.max_age: is out of range; use 1s to 3650d");
    }

    #[test]
    fn a_role_has_terms_of_its_own_and_faults_in_them_are_named() {
        let rules =
            parse("[keys]\noverlap = \"2h\"\n[keys.role.contractor]\nmax_age = \"30d\"\n").unwrap().keys;
        let of = |roles: &[&str]| rules.of_roles(&roles.iter().map(|r| r.parse().unwrap()).collect());
        assert_eq!((of(&["contractor"]).max_age, of(&["contractor"]).overlap), (30 * 86_400, 7200));
        assert_eq!(of(&["engineer"]).max_age, 90 * 86_400);
        for (wrong, said) in [
            (
                "[keys.role.contractor]\nmax_age = \"0s\"\n",
                ":3: keys.role.contractor.max_age: is out of range",
            ),
            ("[keys.role.Boss]\nmax_age = \"1d\"\n", "keys.role.Boss: role \"Boss\" is not valid"),
            ("[keys.role.x]\nmaxage = \"1d\"\n", "maxage: unknown key; did you mean max_age?"),
            ("[keys]\nalgorithms = [\"rsa-2048\"]\n", "keys.algorithms: \"rsa-2048\" is no kind of key"),
            ("[keys]\nalgorithms = []\n", "keys.algorithms: nobody could log in"),
        ] {
            let fault = parse(wrong).unwrap_err();
            assert!(fault.contains(said), "{fault}");
        }
        assert!(parse("[keys]\nalgorithms = [\"ed25519\", \"rsa-4096\"]\n").is_ok());
    }

    #[test]
    fn a_second_factor_is_not_remembered_unless_told() {
        assert_eq!(parse("").unwrap().mfa.remember, None);
        assert_eq!(parse("[mfa]\nremember = \"8h\"\n").unwrap().mfa.remember, Some(28_800));
        assert!(parse("[mfa]\nremember = \"365d\"\n").is_err());
    }
}
