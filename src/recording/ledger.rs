//! The ledger: for each channel, the bytes relayed against the bytes kept, and the reason where they differ.
//!
//! Decides what is kept. Terminal output is kept whole; what commands without a terminal read and write is kept up to a
//! limit each way, then counted and hashed; forwards are counted, and hashed unless that is switched off; of sftp the
//! operations are kept; what is typed at a terminal is counted, and kept only where that is wanted and the terminal showed it.

mod channel;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::{ChannelMessage, Direction};
use super::operations::Operation;
use super::tape::Terms;
use channel::{Channel, shortened};

/// How much of a channel lies on the tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// All output.
    Full,
    /// Structured operations.
    Operations,
    /// All output; of what came in no more than its size.
    Output,
    /// Size and digest.
    Digest,
    /// Nothing.
    None,
}

/// One channel, as `sessions list --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSummary {
    /// Number within the session.
    pub channel: u32,
    /// `shell`, `exec`, `sftp`, `subsystem`, `forward`; `session` until the user asked for one.
    pub kind: String,
    /// Command, name of the subsystem, or target of the forward.
    pub command: Option<String>,
    /// As the instance reported it.
    pub exit_status: Option<u32>,
    /// Signal that ended the command, without `SIG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Bytes relayed, both ways. Of older terminals: output, and typing that was kept.
    pub relayed_bytes: u64,
    /// Bytes of those that lie on the tape.
    pub captured_bytes: u64,
    /// How much of them: `full` says that all was kept that was shown.
    pub capture: Capture,
    /// Why not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes from the user.
    pub bytes_in: u64,
    /// Bytes from the instance.
    pub bytes_out: u64,
    /// Bytes of those that were typed at a terminal and do not lie on the tape.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub typed_bytes: u64,
    /// How many operations on files lie on the tape.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub operations: u64,
    /// Digest of what came from the user, where it is hashed: `blake3:` or `sha256:` and hex. Without such a word it is a
    /// SHA-256, of an older tape.
    #[serde(default, alias = "sha256_in", skip_serializing_if = "Option::is_none")]
    pub digest_in: Option<String>,
    /// The same of what came from the instance.
    #[serde(default, alias = "sha256_out", skip_serializing_if = "Option::is_none")]
    pub digest_out: Option<String>,
}

impl ChannelSummary {
    /// Bytes that it takes up in the summary of its session.
    fn written(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |text| text.len() + 1)
    }

    /// What was to be kept and could not be written.
    fn unkept(&mut self, bytes: u64, why: &str) {
        self.captured_bytes = self.captured_bytes.saturating_sub(bytes);
        self.reason.get_or_insert_with(|| format!("recording failed: {why}"));
    }

    /// Why not all that passed lies on the tape: bytes that do not, and the reason; none if all does.
    pub fn gaps(&self) -> Vec<(u64, String)> {
        let mut gaps = Vec::new();
        let passed = self.bytes_in + self.bytes_out;
        // What was typed at an older terminal was not counted as relayed.
        let typed = self.typed_bytes.max(passed.saturating_sub(self.relayed_bytes));
        let missing = passed.saturating_sub(typed).saturating_sub(self.captured_bytes);
        let reason = || self.reason.clone().unwrap_or_else(|| "no reason is known".to_owned());
        if missing > 0 || self.capture != Capture::Full && typed == 0 {
            gaps.push((missing, reason()));
        }
        if typed > 0 {
            let own = missing == 0 && self.capture != Capture::Full;
            gaps.push((typed, if own { reason() } else { TYPED.to_owned() }));
        }
        gaps
    }
}

/// What the tape does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Payload,
    /// So many bytes of it, the first; the rest is counted.
    Part(usize),
    Count,
    Note,
}

pub(super) struct Ledger {
    open: BTreeMap<u32, Channel>,
    /// A session may have many thousands of channels: of one that is over no more than this is kept.
    over: BTreeMap<u32, ChannelSummary>,
    terms: Terms,
    /// Bytes that those take up in the summary.
    told: usize,
}

impl Ledger {
    pub(super) fn new(terms: Terms) -> Self {
        Self { open: BTreeMap::new(), over: BTreeMap::new(), terms, told: 0 }
    }

    /// Whether one channel more could make the summary too long to be read back.
    pub(super) fn is_full(&self) -> bool {
        self.told >= MOST_TOLD
    }

    pub(super) fn opened(&mut self, number: u32) {
        self.channel(number);
    }

    pub(super) fn forward(&mut self, number: u32, target: &str) {
        let hashed = !self.terms.counts_forwards;
        self.channel(number).forward(&shortened(target), hashed);
    }

    pub(super) fn observe(&mut self, number: u32, direction: Direction, message: &ChannelMessage) -> Kept {
        let limit = self.terms.limit;
        let channel = self.channel(number);
        match (message, direction) {
            (ChannelMessage::Data(bytes) | ChannelMessage::Stderr(bytes), Direction::ToInstance) => {
                channel.input(bytes, limit)
            }
            (ChannelMessage::Data(bytes) | ChannelMessage::Stderr(bytes), Direction::ToUser) => {
                channel.output(bytes, limit)
            }
            (message, direction) => {
                channel.request(direction, message);
                Kept::Note
            }
        }
    }

    /// Counts a message that the tape could not take.
    pub(super) fn lost(
        &mut self,
        number: u32,
        (direction, message): (Direction, &ChannelMessage),
        why: &str,
    ) {
        self.channel(number).lost(why);
        if matches!(self.observe(number, direction, message), Kept::Payload | Kept::Part(_)) {
            tracing::debug!("tape.lost_payload_counted_as_kept");
        }
        // A transfer that turned out to be none would be kept again, if there were a tape.
        self.channel(number).lost(why);
    }

    /// So many bytes that were counted as kept never came to the disk.
    pub(super) fn unkept(&mut self, number: u32, bytes: u64, why: &str) {
        match self.over.get_mut(&number) {
            Some(summary) => summary.unkept(bytes, why),
            None => self.channel(number).unkept(bytes, why),
        }
    }

    /// The operations that a message has completed.
    pub(super) fn operations(&mut self, number: u32) -> Vec<Operation> {
        self.open.get_mut(&number).map(Channel::take_operations).unwrap_or_default()
    }

    /// The lines typed at a terminal that a message has shown, if they are kept.
    pub(super) fn typed(&mut self, number: u32) -> Vec<Vec<u8>> {
        let keeps = self.terms.typed;
        let lines = self.open.get_mut(&number).map(Channel::take_typed).unwrap_or_default();
        if !keeps {
            return Vec::new();
        }
        self.typed_kept(number, lines.iter().map(|line| line.len() as u64).sum());
        lines
    }

    /// So many bytes that were typed lie on the tape.
    pub(super) fn typed_kept(&mut self, number: u32, bytes: u64) {
        self.channel(number).typed_kept(bytes);
    }

    /// The channel closed: ends the operations that are still open.
    pub(super) fn closed(&mut self, number: u32) {
        if let Some(channel) = self.open.get_mut(&number) {
            channel.end_observer();
        }
    }

    /// The channel is over, and its operations were taken: what it needed while it ran is given back.
    pub(super) fn over(&mut self, number: u32) -> Option<ChannelSummary> {
        if let Some(channel) = self.open.remove(&number) {
            let summary = channel.summary();
            self.told += summary.written();
            self.over.insert(number, summary);
        }
        self.over.get(&number).cloned()
    }

    /// Every channel that is open.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.open.keys().copied().collect()
    }

    pub(super) fn summaries(&self) -> Vec<ChannelSummary> {
        let mut all: Vec<_> = self.over.values().cloned().chain(self.summaries_of_open()).collect();
        all.sort_by_key(|summary| summary.channel);
        all
    }

    /// Those of the channels that are not over.
    pub(super) fn summaries_of_open(&self) -> Vec<ChannelSummary> {
        self.open.values().map(Channel::summary).collect()
    }

    pub(super) fn summary(&self, number: u32) -> Option<ChannelSummary> {
        self.open.get(&number).map(Channel::summary).or_else(|| self.over.get(&number).cloned())
    }

    /// The channel, which is open from now on if it was not.
    fn channel(&mut self, number: u32) -> &mut Channel {
        let hashing = self.terms.hashing;
        self.open.entry(number).or_insert_with(|| match self.over.remove(&number) {
            Some(summary) => Channel::again(summary, hashing),
            None => Channel::new(number, hashing),
        })
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Half of what is read back of a summary: those who are open still, and what fails later, have the other half. It is
/// thirty thousand commands of a line, or two thousand of the longest.
const MOST_TOLD: usize = 32 << 20;
const TYPED: &str = "typed at a terminal: counted, not kept (recording.input), since it holds passwords that no screen showed";
