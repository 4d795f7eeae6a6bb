//! What crosses a session's channels (RFC 4254 §5 and §6), in the words of this house, not of an SSH library.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A session's identity: a UUID version 7, so that ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new id for a session that starts at `now`.
    pub fn new(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, millis / 1000, nanos)))
    }

    /// When its session began, to the millisecond: it stands in the id (RFC 9562 §5.7).
    pub(super) fn began(self) -> Timestamp {
        let (seconds, nanos) = self.0.get_timestamp().map_or((0, 0), |at| at.to_unix());
        let nanos = i32::try_from(nanos).unwrap_or(0);
        i64::try_from(seconds)
            .ok()
            .and_then(|s| Timestamp::new(s, nanos).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = uuid::Error;
    fn from_str(given: &str) -> Result<Self, uuid::Error> {
        given.parse().map(Self)
    }
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the user.
    ToInstance,
    /// From the instance.
    ToUser,
}

/// One message on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelMessage {
    /// Payload.
    Data(Bytes),
    /// Extended data of type 1 (RFC 4254 §5.2).
    Stderr(Bytes),
    /// No more data this way.
    Eof,
    /// The channel ends.
    Close,
    /// `pty-req`.
    Pty {
        /// `TERM`.
        term: String,
        /// Width in characters.
        cols: u32,
        /// Height in characters.
        rows: u32,
        /// Width in pixels.
        px_width: u32,
        /// Height in pixels.
        px_height: u32,
        /// Encoded terminal modes (RFC 4254 §8).
        modes: Vec<(u8, u32)>,
    },
    /// `env`.
    Env {
        /// Variable.
        name: String,
        /// Value.
        value: String,
    },
    /// `shell`.
    Shell,
    /// `exec`, with the command's bytes.
    Exec(Bytes),
    /// `subsystem`.
    Subsystem(String),
    /// `window-change`.
    WindowChange {
        /// Width in characters.
        cols: u32,
        /// Height in characters.
        rows: u32,
        /// Width in pixels.
        px_width: u32,
        /// Height in pixels.
        px_height: u32,
    },
    /// `auth-agent-req@openssh.com`.
    Agent,
    /// `signal`, without `SIG`.
    Signal(String),
    /// `exit-status`.
    ExitStatus(u32),
    /// `exit-signal`.
    ExitSignal {
        /// Name, without `SIG`.
        signal: String,
        /// Whether a core was written.
        core_dumped: bool,
        /// Words for the user.
        message: String,
    },
    /// The last request was granted.
    Success,
    /// The last request was refused.
    Failure,
    /// `break`, of so many milliseconds (RFC 4335).
    Break(u32),
}

impl ChannelMessage {
    /// The payload, of the messages that carry one.
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Data(bytes) | Self::Stderr(bytes) => Some(bytes),
            _ => None,
        }
    }
}
