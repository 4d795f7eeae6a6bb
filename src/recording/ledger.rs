//! The ledger: for each channel, the bytes relayed against the bytes kept, and the reason where they differ.
//!
//! Decides what is kept. Terminal output is kept whole; what commands without a terminal read and write is kept up to a
//! limit, then counted and hashed; sftp and forwards are counted and hashed; what is typed at a terminal is only counted.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::message::{ChannelMessage, Direction};

/// How much of a channel lies on the tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// All output.
    Full,
    /// Structured operations.
    Operations,
    /// Size and SHA-256.
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
    /// Bytes relayed: output where there is a terminal, both ways elsewhere.
    pub relayed_bytes: u64,
    /// Bytes of those that lie on the tape.
    pub captured_bytes: u64,
    /// How much of them.
    pub capture: Capture,
    /// Why not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes from the user.
    pub bytes_in: u64,
    /// Bytes from the instance.
    pub bytes_out: u64,
    /// SHA-256 of what came from the user, hex, where it is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_in: Option<String>,
    /// SHA-256 of what came from the instance, hex, where it is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_out: Option<String>,
}

/// What the tape does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Payload,
    Count,
    Note,
}

#[derive(Default)]
pub(super) struct Ledger {
    channels: BTreeMap<u32, Channel>,
    limit: u64,
}

struct Channel {
    summary: ChannelSummary,
    hash_in: Sha256,
    hash_out: Sha256,
}

impl Ledger {
    /// `limit`: bytes of output kept for each channel that has no terminal.
    pub(super) fn new(limit: u64) -> Self {
        Self { channels: BTreeMap::new(), limit }
    }

    pub(super) fn opened(&mut self, number: u32) {
        self.channel(number);
    }

    pub(super) fn forward(&mut self, number: u32, target: &str) {
        let channel = self.channel(number);
        channel.begin("forward", Some(target.to_owned()));
        channel.only_digest("payload of forwards is counted and hashed, not stored");
    }

    pub(super) fn observe(&mut self, number: u32, direction: Direction, message: &ChannelMessage) -> Kept {
        let limit = self.limit;
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

    pub(super) fn summaries(&self) -> Vec<ChannelSummary> {
        self.channels.values().map(Channel::summary).collect()
    }

    pub(super) fn summary(&self, number: u32) -> Option<ChannelSummary> {
        self.channels.get(&number).map(Channel::summary)
    }

    fn channel(&mut self, number: u32) -> &mut Channel {
        self.channels.entry(number).or_insert_with(|| Channel::new(number))
    }
}

impl Channel {
    fn new(number: u32) -> Self {
        let summary = ChannelSummary {
            channel: number,
            kind: "session".to_owned(),
            command: None,
            exit_status: None,
            exit_signal: None,
            terminal: false,
            relayed_bytes: 0,
            captured_bytes: 0,
            capture: Capture::Full,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            sha256_in: None,
            sha256_out: None,
        };
        Self { summary, hash_in: Sha256::new(), hash_out: Sha256::new() }
    }

    fn input(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_in += bytes.len() as u64;
        // What is typed at a terminal holds passwords that no screen showed, and a hash would let them be guessed.
        if self.summary.terminal {
            return Kept::Count;
        }
        self.hash_in.update(bytes);
        self.keep(bytes, limit)
    }

    fn output(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_out += bytes.len() as u64;
        self.hash_out.update(bytes);
        self.keep(bytes, limit)
    }

    fn keep(&mut self, bytes: &[u8], limit: u64) -> Kept {
        let size = bytes.len() as u64;
        self.summary.relayed_bytes += size;
        let over = !self.summary.terminal && self.summary.captured_bytes + size > limit;
        if over && self.summary.capture == Capture::Full {
            self.only_digest(&format!("over {limit} bytes: the rest is counted and hashed, not stored"));
        }
        if self.summary.capture != Capture::Full {
            return Kept::Count;
        }
        self.summary.captured_bytes += size;
        Kept::Payload
    }

    fn request(&mut self, direction: Direction, message: &ChannelMessage) {
        match (message, direction) {
            (ChannelMessage::Pty { .. }, Direction::ToInstance) => self.summary.terminal = true,
            (ChannelMessage::Shell, Direction::ToInstance) => self.begin("shell", None),
            (ChannelMessage::Exec(command), Direction::ToInstance) => {
                self.begin("exec", Some(String::from_utf8_lossy(command).into_owned()));
            }
            (ChannelMessage::Subsystem(name), Direction::ToInstance) if name == "sftp" => self.sftp(),
            (ChannelMessage::Subsystem(name), Direction::ToInstance) => {
                self.begin("subsystem", Some(name.clone()))
            }
            (ChannelMessage::ExitStatus(status), Direction::ToUser) => {
                self.summary.exit_status = Some(*status)
            }
            (ChannelMessage::ExitSignal { signal, .. }, Direction::ToUser) => {
                self.summary.exit_signal = Some(signal.clone());
            }
            _ => {}
        }
    }

    /// A shell or command after a refused `sftp` is kept in full again: capture may widen, never narrow, or a peer
    /// could hide a shell behind a subsystem request that the instance refuses.
    fn begin(&mut self, kind: &str, command: Option<String>) {
        let first = matches!(self.summary.kind.as_str(), "session" | "sftp");
        if !first {
            return;
        }
        self.summary.kind = kind.to_owned();
        self.summary.command = command;
        self.summary.capture = Capture::Full;
        self.summary.reason = None;
        // A shell without a terminal is still a shell: its output is what a person saw.
        self.summary.terminal |= kind == "shell";
    }

    fn sftp(&mut self) {
        if self.summary.kind == "session" {
            self.begin("sftp", None);
            self.only_digest("sftp payload is counted and hashed, not stored");
        }
    }

    fn only_digest(&mut self, reason: &str) {
        self.summary.capture = Capture::Digest;
        self.summary.reason = Some(reason.to_owned());
    }

    fn summary(&self) -> ChannelSummary {
        let mut summary = self.summary.clone();
        let hex = |hash: &Sha256| Some(HEXLOWER.encode(&hash.clone().finalize()));
        if self.summary.capture == Capture::Digest {
            summary.sha256_out = hex(&self.hash_out);
            summary.sha256_in = hex(&self.hash_in);
        }
        summary
    }
}
