//! The ledger: for each channel, the bytes relayed against the bytes kept, and the reason where they differ.
//!
//! Decides what is kept. Terminal output is kept whole; what commands without a terminal read and write is kept up to a
//! limit, then counted and hashed; forwards are counted and hashed; of sftp the operations are kept; what is typed at a
//! terminal is only counted.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::message::{ChannelMessage, Direction};
use super::operations::{Observer, Operation};

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
    /// How many operations on files lie on the tape.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub operations: u64,
    /// SHA-256 of what came from the user, hex, where it is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_in: Option<String>,
    /// SHA-256 of what came from the instance, hex, where it is hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_out: Option<String>,
}

impl ChannelSummary {
    /// Why not all that passed lies on the tape: bytes that do not, and the reason; none if all does.
    pub fn gaps(&self) -> Vec<(u64, String)> {
        let mut gaps = Vec::new();
        let missing = self.relayed_bytes - self.captured_bytes.min(self.relayed_bytes);
        if self.capture != Capture::Full || missing > 0 {
            gaps.push((missing, self.reason.clone().unwrap_or_else(|| "no reason is known".to_owned())));
        }
        // Output and input together are what was relayed, except at a terminal.
        let typed = (self.bytes_in + self.bytes_out).saturating_sub(self.relayed_bytes);
        if typed > 0 {
            gaps.push((typed, TYPED.to_owned()));
        }
        gaps
    }
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
    /// Payload goes on the tape.
    storing: bool,
    observer: Option<Observer>,
    done: Vec<Operation>,
    /// A terminal was asked for before anything was started.
    pty: bool,
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
        channel.only(Capture::Digest, "payload of forwards is counted and hashed, not stored");
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

    /// Counts a message that the tape could not take.
    pub(super) fn lost(
        &mut self,
        number: u32,
        (direction, message): (Direction, &ChannelMessage),
        why: &str,
    ) {
        let channel = self.channel(number);
        channel.only(Capture::None, &format!("recording failed: {why}"));
        channel.observer = None;
        if self.observe(number, direction, message) == Kept::Payload {
            tracing::debug!("tape.lost_payload_counted_as_kept");
        }
    }

    /// The operations that a message has completed.
    pub(super) fn operations(&mut self, number: u32) -> Vec<Operation> {
        self.channels.get_mut(&number).map(|channel| std::mem::take(&mut channel.done)).unwrap_or_default()
    }

    /// The channel is over: ends the operations that are still open.
    pub(super) fn closed(&mut self, number: u32) {
        if let Some(channel) = self.channels.get_mut(&number)
            && let Some(observer) = channel.observer.take()
        {
            observer.end(&mut channel.done);
            channel.summary.operations += channel.done.len() as u64;
        }
    }

    /// Every channel.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.channels.keys().copied().collect()
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
            operations: 0,
            sha256_in: None,
            sha256_out: None,
        };
        let (hash_in, hash_out) = (Sha256::new(), Sha256::new());
        Self { summary, hash_in, hash_out, storing: true, observer: None, done: Vec::new(), pty: false }
    }

    fn input(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_in += bytes.len() as u64;
        // What is typed at a terminal holds passwords that no screen showed, and a hash would let them be guessed.
        if self.summary.terminal {
            return Kept::Count;
        }
        self.hash_in.update(bytes);
        self.observed(Direction::ToInstance, bytes);
        self.keep(bytes, limit)
    }

    fn output(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_out += bytes.len() as u64;
        self.hash_out.update(bytes);
        self.observed(Direction::ToUser, bytes);
        self.keep(bytes, limit)
    }

    /// Reads operations from the bytes. A stream that is not what it seemed is kept from here on: capture may widen.
    fn observed(&mut self, direction: Direction, bytes: &[u8]) {
        let Some(observer) = &mut self.observer else { return };
        let before = self.done.len();
        let passed = observer.pass(direction, bytes, &mut self.done);
        self.summary.operations += (self.done.len() - before) as u64;
        let Err(deviates) = passed else { return };
        self.closed_early();
        if !self.storing {
            self.only(
                Capture::Digest,
                &format!(
                    "{} after {} bytes: those were counted and hashed, what follows is kept",
                    deviates.0, self.summary.relayed_bytes
                ),
            );
            self.storing = true;
        }
    }

    fn closed_early(&mut self) {
        if let Some(observer) = self.observer.take() {
            let before = self.done.len();
            observer.end(&mut self.done);
            self.summary.operations += (self.done.len() - before) as u64;
        }
    }

    fn keep(&mut self, bytes: &[u8], limit: u64) -> Kept {
        let size = bytes.len() as u64;
        self.summary.relayed_bytes += size;
        // A shell without a terminal is still a shell: its output is what a person saw.
        let limited = !self.summary.terminal && self.summary.kind != "shell";
        let over = limited && self.summary.captured_bytes + size > limit;
        if over && self.storing {
            let told = matches!(self.observer, Some(Observer::Scp(_)));
            let capture = if told { Capture::Operations } else { Capture::Digest };
            let before = self.summary.reason.take().map(|why| format!("{why}; ")).unwrap_or_default();
            let reason = format!("{before}over {limit} bytes: the rest is counted and hashed, not stored");
            self.only(capture, &reason);
        }
        if !self.storing {
            return Kept::Count;
        }
        self.summary.captured_bytes += size;
        Kept::Payload
    }

    fn request(&mut self, direction: Direction, message: &ChannelMessage) {
        match (message, direction) {
            // Only before anything is started, as sshd has it: a later one would hide what comes from the user.
            (ChannelMessage::Pty { .. }, Direction::ToInstance) if self.summary.kind == "session" => {
                (self.pty, self.summary.terminal) = (true, true);
            }
            (ChannelMessage::Shell, Direction::ToInstance) => {
                self.begin("shell", None);
            }
            (ChannelMessage::Exec(command), Direction::ToInstance) => {
                let command = String::from_utf8_lossy(command);
                let began = self.begin("exec", Some(shortened(&command)));
                self.observer = self.observer.take().or_else(|| {
                    // At a terminal nobody speaks a protocol.
                    if began && !self.summary.terminal { Observer::of_command(&command) } else { None }
                });
            }
            (ChannelMessage::Subsystem(name), Direction::ToInstance) if name == "sftp" => self.sftp(),
            (ChannelMessage::Subsystem(name), Direction::ToInstance) => {
                self.begin("subsystem", Some(shortened(name)));
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
    fn begin(&mut self, kind: &str, command: Option<String>) -> bool {
        let first = matches!(self.summary.kind.as_str(), "session" | "sftp");
        if !first {
            return false;
        }
        self.closed_early();
        self.summary.kind = kind.to_owned();
        self.summary.command = command;
        // Nobody types at a subsystem, whatever was asked for before it.
        self.summary.terminal = self.pty && matches!(kind, "shell" | "exec");
        self.summary.capture = Capture::Full;
        self.summary.reason = None;
        self.storing = true;
        true
    }

    fn sftp(&mut self) {
        if self.summary.kind == "session" && self.begin("sftp", None) {
            self.observer = Some(Observer::sftp());
            self.only(Capture::Operations, "the content of files is counted and hashed, not stored");
        }
    }

    fn only(&mut self, capture: Capture, reason: &str) {
        self.summary.capture = capture;
        self.summary.reason = Some(reason.to_owned());
        self.storing = false;
    }

    fn summary(&self) -> ChannelSummary {
        let mut summary = self.summary.clone();
        let hex = |hash: &Sha256| Some(HEXLOWER.encode(&hash.clone().finalize()));
        if self.summary.capture != Capture::Full {
            summary.sha256_out = hex(&self.hash_out);
            summary.sha256_in = hex(&self.hash_in);
        }
        summary
    }
}

/// A command line as the ledger shows it; the whole of it lies on the tape.
fn shortened(command: &str) -> String {
    let mut short: String = command.chars().take(LONGEST_COMMAND).collect();
    if short.len() < command.len() {
        short.push('…');
    }
    short
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

const LONGEST_COMMAND: usize = 2048;
const TYPED: &str = "typed at a terminal: counted, not kept, since it holds passwords that no screen showed";
