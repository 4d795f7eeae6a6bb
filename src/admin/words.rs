//! The words of the command line that are more than text: times, spans, labels, networks, destinations.
//!
//! Parsed once, where they are typed; a malformed one is refused with what would be right, before anything is asked
//! of the daemon.

use std::str::FromStr;

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

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().or_else(|_| single()).map(|net| Self(net.trunc())).map_err(|_| {
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
    fn a_place_on_a_tape_may_have_hours_minutes_and_seconds() {
        assert_eq!("1h20m".parse::<Offset>().unwrap().0, 4_800_000);
        assert_eq!("90s".parse::<Offset>().unwrap().0, 90_000);
        assert!("".parse::<Offset>().is_err() && "1h20".parse::<Offset>().is_err());
    }

    #[test]
    fn a_destination_names_login_and_instance() {
        assert_eq!("ubuntu@db-1".parse::<Destination>().unwrap().host, "db-1");
        assert!("db-1".parse::<Destination>().is_err());
        assert!("ubuntu@".parse::<Destination>().is_err());
    }

    #[test]
    fn a_network_is_truncated_to_its_prefix() {
        assert_eq!("10.1.2.3/8".parse::<Network>().unwrap().0.to_string(), "10.0.0.0/8");
        assert!("10.1.2.3/40".parse::<Network>().is_err());
    }
}
