//! What lies on a tape: a header in clear, and records.
//!
//! The records of a frame are `varint size of all heads, heads, bodies`; a head is `varint milliseconds since the record
//! before, varint channel * 8 + tag, varint size of the body`. Tags 1 to 3 carry payload as it was relayed; tag 0 carries
//! what happened as JSON; tag 4 is a picture of a screen, its size in two more varints.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ledger::ChannelSummary;
use super::message::{ChannelMessage, Direction, SessionId};
use super::operations::Operation;
use super::summary::SessionEnd;
use super::tape::Mode;

/// What stands in clear at the start of a tape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Session id.
    pub id: String,
    /// The user.
    pub user: String,
    /// Account on the instance.
    pub login: String,
    /// The instance's name.
    pub instance: String,
    /// Where the user came from.
    pub source_ip: String,
    /// Fingerprint of the user's key.
    pub key: String,
    /// When the session started.
    pub started_at: Timestamp,
    /// What happens if it cannot be written any more, where that is not the end of the session.
    #[serde(default, skip_serializing_if = "Mode::is_strict")]
    pub recording: Mode,
    /// The session inside which this one was asked for, if it was (SSH inside SSH).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Rewritten at its end in large frames, each of which can be read without the one before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packed: bool,
}

impl Header {
    /// Of a session of which no more is known than that it was.
    pub(super) fn unknown(id: SessionId) -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            id: id.to_string(),
            user: unknown(),
            login: unknown(),
            instance: unknown(),
            source_ip: unknown(),
            key: unknown(),
            started_at: id.began(),
            recording: Mode::default(),
            parent: None,
            packed: false,
        }
    }
}

/// One thing on a tape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Milliseconds since the session started.
    pub millis: u64,
    /// Channel number; 0 for the end of the session.
    pub channel: u32,
    /// What happened.
    pub what: What,
    /// The bytes of [`What::Output`], [`What::Stderr`], [`What::Input`] and [`What::Screen`].
    pub payload: Vec<u8>,
}

/// What a [`Record`] tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The channel opened.
    Opened,
    /// Output.
    Output,
    /// Output on stderr.
    Stderr,
    /// Input of a channel without a terminal: a script on standard input says more than the command line.
    Input,
    /// How the screen stands here, for whoever begins to read here: what draws it, as payload.
    Screen {
        /// Width in characters.
        cols: u32,
        /// Height in characters.
        rows: u32,
    },
    /// A message without payload.
    Note(Direction, Note),
    /// A file was moved, changed or removed, as the bytes that passed tell.
    Operation(Operation),
    /// How far the counts are.
    Counted(ChannelSummary),
    /// The channel closed, with its ledger.
    Closed(ChannelSummary),
    /// The session ended, when, and with the whole ledger.
    End(SessionEnd, Timestamp, Vec<ChannelSummary>),
}

/// A [`ChannelMessage`] without payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant and field is the one of ChannelMessage with the same name")]
pub enum Note {
    Eof,
    Close,
    Pty {
        term: String,
        cols: u32,
        rows: u32,
        #[serde(default, skip_serializing_if = "Pixels::are_unknown")]
        px: Pixels,
        /// Encoded terminal modes (RFC 4254 §8), each opcode with its argument.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        modes: Vec<(u8, u32)>,
    },
    Env {
        name: String,
        value: String,
    },
    Shell,
    Exec(String),
    Subsystem(String),
    Agent,
    WindowChange {
        cols: u32,
        rows: u32,
        #[serde(default, skip_serializing_if = "Pixels::are_unknown")]
        px: Pixels,
    },
    Signal(String),
    ExitStatus(u32),
    ExitSignal {
        signal: String,
        core_dumped: bool,
        message: String,
    },
    Success,
    Failure,
    Break(u32),
}

/// Width and height of a terminal in pixels, as the client says; 0 where it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pixels(pub u32, pub u32);

impl Pixels {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn are_unknown(&self) -> bool {
        *self == Self::default()
    }
}

impl Note {
    #[cfg(test)]
    pub(super) fn pty(cols: u32, rows: u32) -> Self {
        Self::Pty { term: "xterm".to_owned(), cols, rows, px: Pixels::default(), modes: Vec::new() }
    }

    #[cfg(test)]
    pub(super) fn window_change(cols: u32, rows: u32) -> Self {
        Self::WindowChange { cols, rows, px: Pixels::default() }
    }

    /// The note for a message; none for payload.
    pub(super) fn of(message: &ChannelMessage) -> Option<Self> {
        Some(match message {
            ChannelMessage::Data(_) | ChannelMessage::Stderr(_) => return None,
            ChannelMessage::Eof => Self::Eof,
            ChannelMessage::Close => Self::Close,
            ChannelMessage::Pty { term, cols, rows, px_width, px_height, modes } => Self::Pty {
                term: term.clone(),
                cols: *cols,
                rows: *rows,
                px: Pixels(*px_width, *px_height),
                // There are no more opcodes than that.
                modes: modes.iter().take(256).copied().collect(),
            },
            ChannelMessage::Env { name, value } => Self::Env { name: name.clone(), value: value.clone() },
            ChannelMessage::Shell => Self::Shell,
            ChannelMessage::Exec(command) => Self::Exec(String::from_utf8_lossy(command).into_owned()),
            ChannelMessage::Subsystem(name) => Self::Subsystem(name.clone()),
            ChannelMessage::Agent => Self::Agent,
            ChannelMessage::WindowChange { cols, rows, px_width, px_height } => {
                Self::WindowChange { cols: *cols, rows: *rows, px: Pixels(*px_width, *px_height) }
            }
            ChannelMessage::Signal(name) => Self::Signal(name.clone()),
            ChannelMessage::ExitStatus(status) => Self::ExitStatus(*status),
            ChannelMessage::ExitSignal { signal, core_dumped, message } => Self::ExitSignal {
                signal: signal.clone(),
                core_dumped: *core_dumped,
                message: message.clone(),
            },
            ChannelMessage::Success => Self::Success,
            ChannelMessage::Failure => Self::Failure,
            ChannelMessage::Break(length) => Self::Break(*length),
        })
    }

    fn message(&self) -> Option<ChannelMessage> {
        Some(match self {
            Self::Pty { term, cols, rows, px, modes } => ChannelMessage::Pty {
                term: term.clone(),
                cols: *cols,
                rows: *rows,
                px_width: px.0,
                px_height: px.1,
                modes: modes.clone(),
            },
            Self::Shell => ChannelMessage::Shell,
            Self::Exec(command) => ChannelMessage::Exec(command.clone().into()),
            Self::Subsystem(name) => ChannelMessage::Subsystem(name.clone()),
            Self::ExitStatus(status) => ChannelMessage::ExitStatus(*status),
            Self::ExitSignal { signal, core_dumped, message } => ChannelMessage::ExitSignal {
                signal: signal.clone(),
                core_dumped: *core_dumped,
                message: message.clone(),
            },
            _ => return None,
        })
    }
}

impl What {
    /// The message that made this record, as far as the ledger needs it.
    pub(super) fn message(&self, payload: &[u8]) -> Option<(Direction, ChannelMessage)> {
        let bytes = || bytes::Bytes::copy_from_slice(payload);
        Some(match self {
            Self::Output => (Direction::ToUser, ChannelMessage::Data(bytes())),
            Self::Stderr => (Direction::ToUser, ChannelMessage::Stderr(bytes())),
            Self::Input => (Direction::ToInstance, ChannelMessage::Data(bytes())),
            Self::Note(direction, note) => (*direction, note.message()?),
            Self::Opened
            | Self::Screen { .. }
            | Self::Operation(_)
            | Self::Counted(_)
            | Self::Closed(_)
            | Self::End(..) => return None,
        })
    }
}

/// Records on their way into a frame: heads and bodies apart, because what was typed at random moments then still lies
/// side by side, and is compressed like the text that it is.
#[derive(Debug, Default)]
pub(super) struct Records {
    heads: Vec<u8>,
    bodies: Vec<u8>,
    /// When the first of them happened, in milliseconds since the session started.
    pub(super) began: u64,
    latest: u64,
    /// How many.
    pub(super) count: u64,
}

impl Records {
    /// Appends a record, whose payload may lie elsewhere. Time never runs back.
    pub(super) fn push(&mut self, record: &Record, payload: &[u8]) -> io::Result<()> {
        let json;
        let (tag, body) = match &record.what {
            What::Output => (1, payload),
            What::Stderr => (2, payload),
            What::Input => (3, payload),
            What::Screen { .. } => (4, payload),
            what => {
                json = serde_json::to_vec(what)?;
                (0, json.as_slice())
            }
        };
        let millis = record.millis.max(self.latest);
        if self.count == 0 {
            (self.began, self.latest) = (millis, millis);
        }
        put_varint(millis - self.latest, &mut self.heads);
        put_varint(u64::from(record.channel) << 3 | tag, &mut self.heads);
        put_varint(body.len() as u64, &mut self.heads);
        if let What::Screen { cols, rows } = record.what {
            put_varint(cols.into(), &mut self.heads);
            put_varint(rows.into(), &mut self.heads);
        }
        self.bodies.extend_from_slice(body);
        self.latest = millis;
        self.count += 1;
        Ok(())
    }

    /// Their size, in bytes.
    pub(super) fn len(&self) -> usize {
        self.heads.len() + self.bodies.len()
    }

    /// As they go into a frame, one behind the other.
    pub(super) fn parts(&self) -> (Vec<u8>, [&[u8]; 2]) {
        let mut size = Vec::new();
        put_varint(self.heads.len() as u64, &mut size);
        (size, [&self.heads, &self.bodies])
    }
}

/// The records of a frame that begins at `millis`; none if it holds anything else.
pub(super) fn decode(mut plain: &[u8], mut millis: u64) -> Option<Vec<Record>> {
    let heads = &mut take_part(&mut plain)?;
    let bodies = &mut plain;
    let mut found = Vec::new();
    while !heads.is_empty() {
        millis = millis.checked_add(take_varint(heads)?)?;
        let both = take_varint(heads)?;
        let channel = u32::try_from(both >> 3).ok()?;
        let size = usize::try_from(take_varint(heads)?).ok()?;
        let what = match both & 7 {
            0 => None,
            1 => Some(What::Output),
            2 => Some(What::Stderr),
            3 => Some(What::Input),
            4 => Some(What::Screen {
                cols: u32::try_from(take_varint(heads)?).ok()?,
                rows: u32::try_from(take_varint(heads)?).ok()?,
            }),
            _ => return None,
        };
        let (body, rest) = bodies.split_at_checked(size)?;
        *bodies = rest;
        found.push(match what {
            None => Record { millis, channel, what: serde_json::from_slice(body).ok()?, payload: Vec::new() },
            Some(what) => Record { millis, channel, what, payload: body.to_vec() },
        });
    }
    bodies.is_empty().then_some(found)
}

fn take_part<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let size = usize::try_from(take_varint(from)?).ok()?;
    let (part, rest) = from.split_at_checked(size)?;
    *from = rest;
    Some(part)
}

/// LEB128, as in WebAssembly and DWARF.
fn put_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
