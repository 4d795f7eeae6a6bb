//! The summary of a session: what `sessions list` shows, and what lies beside each tape.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::format::Header;
use super::ledger::ChannelSummary;

/// Where a tape is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Running.
    Live,
    /// Ended by its peers.
    Closed,
    /// Cut.
    Killed,
    /// The daemon died while it was written.
    Truncated,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// `closed` or `killed`.
    pub status: SessionStatus,
    /// Why, where there is a reason.
    pub reason: Option<String>,
}

/// One session, as `sessions list --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Who, where, since when.
    #[serde(flatten)]
    pub header: Header,
    /// Null while live.
    pub ended_at: Option<Timestamp>,
    /// How long it was, in milliseconds, whatever was done to the clock meanwhile; none while live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
    /// The one that was beside the tape was lost, and nobody here could open the tape to tell it again: what it says of
    /// channels and of the end is on the tape alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Where it is in its life.
    pub status: SessionStatus,
    /// Why it ended.
    pub reason: Option<String>,
    /// Bytes from the user.
    pub bytes_in: u64,
    /// Bytes from the instance.
    pub bytes_out: u64,
    /// The ledger.
    pub channels: Vec<ChannelSummary>,
    /// SHA-256 of the tape file, hex; null while live.
    pub digest: Option<String>,
}

impl Summary {
    /// The reason in one that was lost of a tape that was not cut off.
    pub const CAME_TO_ITS_END: &str =
        "the tape came to its end, but its summary was lost: how it ended is on the tape alone";

    /// SHA-256 of the summary as it lies beside its tape, hex.
    pub fn sha256(&self) -> Option<String> {
        use sha2::Digest as _;
        let text = serde_json::to_vec(self).ok()?;
        Some(data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text)))
    }

    /// How long it was, in milliseconds; none while it is live.
    pub fn lasted(&self) -> Option<u64> {
        let ended = self.ended_at?;
        let by_the_clock = ended.as_millisecond().saturating_sub(self.header.started_at.as_millisecond());
        self.lasted_ms.or_else(|| Some(u64::try_from(by_the_clock).unwrap_or(0)))
    }

    pub(super) fn of(header: Header, channels: Vec<ChannelSummary>) -> Self {
        Self {
            header,
            ended_at: None,
            lasted_ms: None,
            lost: false,
            status: SessionStatus::Live,
            reason: None,
            bytes_in: channels.iter().map(|c| c.bytes_in).sum(),
            bytes_out: channels.iter().map(|c| c.bytes_out).sum(),
            channels,
            digest: None,
        }
    }
}
