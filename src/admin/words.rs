//! The words of the command line that are more than text: times, spans, labels, networks, destinations.
//!
//! Parsed once, where they are typed; a malformed one is refused with what would be right, before anything is asked
//! of the daemon.

use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use keystore::Login;
use serde::{Deserialize, Serialize};

/// A word of the command line that does not have the form it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

/// A moment as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// A fixed time.
    At(Timestamp),
    /// A distance from now, in seconds.
    Away(i64),
}

impl When {
    /// The moment, where a distance leads forward.
    pub fn ahead(self, now: Timestamp) -> Timestamp {
        self.resolve(now, 1)
    }

    /// The moment, where a distance leads back.
    pub fn ago(self, now: Timestamp) -> Timestamp {
        self.resolve(now, -1)
    }

    fn resolve(self, now: Timestamp, sign: i64) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Away(seconds) => Timestamp::from_second(now.as_second() + sign * seconds).unwrap_or(now),
        }
    }
}

impl FromStr for When {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(Self::At(at));
        }
        if let Some(at) = text
            .parse::<jiff::civil::Date>()
            .ok()
            .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok())
        {
            return Ok(Self::At(at.timestamp()));
        }
        text.parse::<Span>().map(|span| Self::Away(span.0)).map_err(|_| {
            Malformed(format!(
                "{text:?} is not a time; use 2026-12-31, 2026-12-31T23:59:00Z, or a span such as 90d"
            ))
        })
    }
}

/// When something ends, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// It does not.
    Never,
    /// Then.
    Then(When),
}

impl FromStr for Until {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text == "never" {
            return Ok(Self::Never);
        }
        text.parse().map(Self::Then).map_err(|Malformed(what)| Malformed(format!("{what}, or never")))
    }
}

/// Why something is done, for the audit trail and for those whom it cuts.
pub(super) fn reason(text: &str) -> Result<String, Malformed> {
    let reason = text.trim();
    if reason.is_empty() || reason.chars().count() > LONGEST_REASON {
        return Err(Malformed(format!(
            "say why, in at most {LONGEST_REASON} characters; nothing was changed"
        )));
    }
    Ok(reason.to_owned())
}

/// Of a reason, in characters.
const LONGEST_REASON: usize = 500;

/// A duration in seconds: `90d`, `12h`, `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub i64);

impl FromStr for Span {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed(format!("{text:?} is not a duration; use for example 90d, 12h or 30s"));
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return Err(wrong()),
        };
        let count: u32 = text.strip_suffix(unit).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        Ok(Self(i64::from(count) * seconds))
    }
}

/// A place on a tape, in milliseconds since its start: `1h20m`, `90s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset(pub u64);

impl FromStr for Offset {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong =
            || Malformed(format!("{text:?} is not a place on a tape; use for example 1h20m, 5m or 90s"));
        if text.is_empty() {
            return Err(wrong());
        }
        let parts = text.split_inclusive(['h', 'm', 's']).map(|part| {
            let span = part.parse::<Span>().map_err(|_| wrong())?;
            u64::try_from(span.0).map_err(|_| wrong())
        });
        parts.sum::<Result<u64, Malformed>>().map(|seconds| Self(seconds * 1000))
    }
}

/// How many times faster than it was recorded something is played.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Speed(f64);

impl Speed {
    /// So many times as fast, within what is allowed.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self((self.0 * factor).clamp(SLOWEST, FASTEST))
    }

    /// How long a pause of the recording lasts at this speed. One that no clock can count is a damaged tape's.
    pub fn paced(self, pause: Duration) -> Duration {
        Duration::try_from_secs_f64(pause.as_secs_f64() / self.0)
            .map_or(LONGEST_WAIT, |d| d.min(LONGEST_WAIT))
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self(1.0)
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Speed> for f64 {
    fn from(speed: Speed) -> Self {
        speed.0
    }
}

impl TryFrom<f64> for Speed {
    type Error = Malformed;
    fn try_from(times: f64) -> Result<Self, Malformed> {
        // NaN is in no range.
        if (SLOWEST..=FASTEST).contains(&times) {
            return Ok(Self(times));
        }
        Err(Malformed(format!("{times:?} is not a speed; use a number from {SLOWEST} to {FASTEST}")))
    }
}

impl FromStr for Speed {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number: Option<f64> = text.parse().ok();
        number.and_then(|times| Self::try_from(times).ok()).ok_or_else(|| {
            Malformed(format!("{text:?} is not a speed; use a number from {SLOWEST} to {FASTEST}"))
        })
    }
}

const SLOWEST: f64 = 0.01;
const FASTEST: f64 = 1000.0;
/// Nobody sits before a player for longer than this, and clocks can count it.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 86_400);

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Before the `=`.
    pub key: String,
    /// After the `=`.
    pub value: String,
}

impl FromStr for Label {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(Malformed(format!("{text:?} is not a label; use KEY=VALUE, for example env=prod"))),
        }
    }
}

/// A network, or a single address, as it was typed: `10.1.2.3/8` means `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network(IpNet);

impl Network {
    /// The network that is meant.
    pub fn net(self) -> IpNet {
        self.0.trunc()
    }

    /// What to say if something else was typed.
    pub fn note(self) -> Option<String> {
        (self.0 != self.net()).then(|| format!("--from {} means the network {}", self.0, self.net()))
    }
}

impl FromStr for Network {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().or_else(|_| single()).map(Self).map_err(|_| {
            Malformed(format!("{text:?} is not a network; use for example 10.0.0.0/8 or 192.0.2.7"))
        })
    }
}

/// `LOGIN@INSTANCE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The account.
    pub login: Login,
    /// The instance's name, alias or address.
    pub host: String,
}

impl FromStr for Destination {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = || {
            Malformed(format!("{text:?} is not a destination; use LOGIN@INSTANCE, for example ubuntu@db-1"))
        };
        let (login, host) = text.rsplit_once('@').filter(|(_, host)| !host.is_empty()).ok_or_else(wrong)?;
        Ok(Self { login: login.parse().map_err(|_| wrong())?, host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit() {
        assert_eq!("90d".parse::<Span>().unwrap().0, 7_776_000);
        assert!("90".parse::<Span>().is_err());
        assert!("d".parse::<Span>().is_err());
        assert!("9µ".parse::<Span>().is_err());
    }

    #[test]
    fn a_reason_says_something_and_not_a_novel() {
        assert_eq!(reason(" lost "), Ok("lost".to_owned()));
        assert!(reason("").is_err() && reason(" \t").is_err());
        assert!(reason(&"ü".repeat(500)).is_ok() && reason(&"ü".repeat(501)).is_err());
    }

    #[test]
    fn an_end_is_a_time_or_never() {
        assert_eq!("never".parse(), Ok(Until::Never));
        assert_eq!("1d".parse(), Ok(Until::Then(When::Away(86_400))));
        assert!("soon".parse::<Until>().unwrap_err().to_string().ends_with(", or never"));
    }

    #[test]
    fn a_place_on_a_tape_may_have_hours_minutes_and_seconds() {
        assert_eq!("1h20m".parse::<Offset>().unwrap().0, 4_800_000);
        assert_eq!("90s".parse::<Offset>().unwrap().0, 90_000);
        assert!("".parse::<Offset>().is_err() && "1h20".parse::<Offset>().is_err());
    }

    #[test]
    fn a_speed_is_a_number_that_a_clock_can_count_with() {
        for good in ["1", "0.01", "1000", "2.5"] {
            assert!(good.parse::<Speed>().is_ok(), "{good}");
        }
        for bad in ["1e-300", "0", "-0", "-1", "nan", "inf", "-inf", "0.009", "1000.1", "fast", ""] {
            assert!(bad.parse::<Speed>().unwrap_err().to_string().ends_with("from 0.01 to 1000"), "{bad}");
        }
        // A request on the socket is held to the same.
        assert!(
            serde_json::from_str::<Speed>("1e-300").is_err() && serde_json::from_str::<Speed>("2").is_ok()
        );
    }

    #[test]
    fn no_pause_of_a_tape_is_too_long_for_a_clock() {
        let slow = "0.01".parse::<Speed>().unwrap();
        assert_eq!(slow.paced(Duration::from_secs(2)), Duration::from_secs(200));
        assert_eq!(slow.paced(Duration::MAX), LONGEST_WAIT);
        assert_eq!(slow.times(0.5), slow);
        assert_eq!(Speed::default().times(f64::MAX).paced(Duration::from_secs(1)), Duration::from_millis(1));
    }

    #[test]
    fn a_destination_names_login_and_instance() {
        assert_eq!("ubuntu@db-1".parse::<Destination>().unwrap().host, "db-1");
        assert!("db-1".parse::<Destination>().is_err());
        assert!("ubuntu@".parse::<Destination>().is_err());
    }

    #[test]
    fn a_network_is_truncated_to_its_prefix_and_that_is_said() {
        let (inside, whole) =
            ("10.1.2.3/8".parse::<Network>().unwrap(), "10.0.0.0/8".parse::<Network>().unwrap());
        assert_eq!(inside.net(), whole.net());
        assert_eq!(inside.note().unwrap(), "--from 10.1.2.3/8 means the network 10.0.0.0/8");
        assert_eq!((whole.note(), "192.0.2.7".parse::<Network>().unwrap().note()), (None, None));
        assert!("10.1.2.3/40".parse::<Network>().is_err());
    }
}
