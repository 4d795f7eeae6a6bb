//! `[keys]` and `[mfa]`: how long keys live, and how long a second factor is remembered.

use keystore::lifecycle::Terms;
use serde::Deserialize;

/// What is remembered of second factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mfa {
    /// For so many seconds a code given with a key from an address is not asked for again; `None`: it always is.
    pub remember: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    max_age: Option<Span>,
    service_max_age: Option<Span>,
    warn: Option<Vec<Span>>,
    grace: Option<Span>,
    overlap: Option<Span>,
}

impl Keys {
    pub(super) fn check(&self, max_age_days: Option<u32>) -> Result<(), (&'static str, String)> {
        if max_age_days.is_some() && self.max_age.is_some() {
            return Err((
                "key_max_age_days",
                "says the same as keys.max_age; keep only keys.max_age".to_owned(),
            ));
        }
        let spans = [
            ("keys.max_age", self.max_age, 1),
            ("keys.service_max_age", self.service_max_age, 1),
            ("keys.grace", self.grace, 0),
            ("keys.overlap", self.overlap, 0),
        ];
        for (key, span, least) in spans {
            if span.is_some_and(|span| !(least..=TEN_YEARS).contains(&span.0)) {
                return Err((key, format!("is out of range; use {least}s to 3650d")));
            }
        }
        let warn = self.warn.as_deref().unwrap_or_default();
        if warn.len() > 10 || warn.iter().any(|span| !(1..=TEN_YEARS).contains(&span.0)) {
            return Err(("keys.warn", "use at most ten durations, each 1s to 3650d".to_owned()));
        }
        Ok(())
    }

    pub(super) fn terms(self, max_age_days: Option<u32>) -> Terms {
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

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMfa {
    remember: Option<Span>,
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
        Self { remember: raw.remember.map(|span| span.0) }
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
    use crate::config::Config;
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, String> {
        let text = format!("listen = \"127.0.0.1:1\"\n{text}");
        Config::parse(Path::new("/x/k.toml"), &text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_lives_of_keys_have_defaults_and_can_be_set() {
        assert_eq!(parse("").unwrap().keys, keystore::lifecycle::Terms::default());
        assert_eq!(parse("key_max_age_days = 30\n").unwrap().keys.max_age, 30 * 86_400);
        let keys =
            parse("[keys]\nmax_age = \"8h\"\nwarn = [\"1h\", \"2h\"]\ngrace = \"0s\"\noverlap = \"10m\"\n");
        let keys = keys.unwrap().keys;
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
    fn a_second_factor_is_not_remembered_unless_told() {
        assert_eq!(parse("").unwrap().mfa.remember, None);
        assert_eq!(parse("[mfa]\nremember = \"8h\"\n").unwrap().mfa.remember, Some(28_800));
        assert!(parse("[mfa]\nremember = \"365d\"\n").is_err());
    }
}
