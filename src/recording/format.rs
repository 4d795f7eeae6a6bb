//! The tape on disk.
//!
//! `KEYWARD-TAPE-1 {header JSON}\n`, then frames: a big-endian u32 (top bit: the last frame) with the length of the
//! ciphertext, then the ciphertext. ChaCha20-Poly1305 as in the STREAM construction (Hoang et al. 2015, as age uses it):
//! the nonce is an 11-byte counter and a last-frame byte, the key is the tape's own, the header's SHA-256 is the
//! associated data. So frames cannot be changed, moved, dropped or taken for another tape's, and an end cut off shows.
//! The key lies beside, in `<id>.key`, wrapped with age.

use std::fs::File;
use std::io::{self, Write};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ledger::ChannelSummary;
use super::message::{ChannelMessage, Direction};
use super::tape::SessionEnd;

const MAGIC: &str = "KEYWARD-TAPE-1 ";
const LAST: u32 = 1 << 31;
const MAX_FRAME: u32 = 64 << 20;

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
}

/// One thing on a tape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the session started.
    #[serde(rename = "t")]
    pub micros: u64,
    /// Channel number; 0 for the end of the session.
    #[serde(rename = "c")]
    pub channel: u32,
    /// What happened.
    #[serde(rename = "w")]
    pub what: What,
    /// The bytes of [`What::Output`], [`What::Stderr`] and [`What::Input`].
    #[serde(skip)]
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
    /// A message without payload.
    Note(Direction, Note),
    /// How far the counts are.
    Counted(ChannelSummary),
    /// The channel closed, with its ledger.
    Closed(ChannelSummary),
    /// The session ended, with the whole ledger.
    End(SessionEnd, Vec<ChannelSummary>),
}

/// A [`ChannelMessage`] without payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant and field is the one of ChannelMessage with the same name")]
pub enum Note {
    Eof,
    Close,
    Pty { term: String, cols: u32, rows: u32 },
    Env { name: String, value: String },
    Shell,
    Exec(String),
    Subsystem(String),
    Agent,
    WindowChange { cols: u32, rows: u32 },
    Signal(String),
    ExitStatus(u32),
    ExitSignal { signal: String, core_dumped: bool, message: String },
    Success,
    Failure,
}

impl Note {
    /// The note for a message; none for payload.
    pub(super) fn of(message: &ChannelMessage) -> Option<Self> {
        Some(match message {
            ChannelMessage::Data(_) | ChannelMessage::Stderr(_) => return None,
            ChannelMessage::Eof => Self::Eof,
            ChannelMessage::Close => Self::Close,
            ChannelMessage::Pty { term, cols, rows, .. } => {
                Self::Pty { term: term.clone(), cols: *cols, rows: *rows }
            }
            ChannelMessage::Env { name, value } => Self::Env { name: name.clone(), value: value.clone() },
            ChannelMessage::Shell => Self::Shell,
            ChannelMessage::Exec(command) => Self::Exec(String::from_utf8_lossy(command).into_owned()),
            ChannelMessage::Subsystem(name) => Self::Subsystem(name.clone()),
            ChannelMessage::Agent => Self::Agent,
            ChannelMessage::WindowChange { cols, rows, .. } => {
                Self::WindowChange { cols: *cols, rows: *rows }
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
        })
    }

    fn message(&self) -> Option<ChannelMessage> {
        Some(match self {
            Self::Pty { term, cols, rows } => ChannelMessage::Pty {
                term: term.clone(),
                cols: *cols,
                rows: *rows,
                px_width: 0,
                px_height: 0,
                modes: Vec::new(),
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
            Self::Opened | Self::Counted(_) | Self::Closed(_) | Self::End(..) => return None,
        })
    }
}

/// Appends a record: u32 length and JSON, u32 length and payload.
pub(super) fn encode(record: &Record, payload: &[u8], into: &mut Vec<u8>) -> io::Result<()> {
    let json = serde_json::to_vec(record)?;
    for part in [json.as_slice(), payload] {
        let size = u32::try_from(part.len()).map_err(io::Error::other)?;
        into.extend_from_slice(&size.to_be_bytes());
        into.extend_from_slice(part);
    }
    Ok(())
}

fn decode(mut plain: &[u8], into: &mut Vec<Record>) -> Option<()> {
    while !plain.is_empty() {
        let json = take_part(&mut plain)?;
        let payload = take_part(&mut plain)?;
        let mut record: Record = serde_json::from_slice(json).ok()?;
        record.payload = payload.to_vec();
        into.push(record);
    }
    Some(())
}

fn take_part<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, rest) = from.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
    *from = rest;
    Some(part)
}

struct Stream {
    cipher: ChaCha20Poly1305,
    bound_to: [u8; 32],
    frame: u64,
}

impl Stream {
    fn new(key: &[u8; 32], header: &[u8]) -> Self {
        let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
        Self { cipher, bound_to: Sha256::digest(header).into(), frame: 0 }
    }

    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        for (to, from) in nonce.iter_mut().skip(3).zip(self.frame.to_be_bytes()) {
            *to = from;
        }
        if let Some(end) = nonce.last_mut() {
            *end = u8::from(last);
        }
        nonce.into()
    }
}

/// Writes frames, each synced before it returns, and keeps the file's running digest.
pub(super) struct Writer {
    file: File,
    stream: Stream,
    digest: Sha256,
    length: u64,
}

impl Writer {
    /// Starts the tape in `file`, an empty one.
    pub(super) fn start(mut file: File, header: &Header, key: &[u8; 32]) -> io::Result<Self> {
        let line = format!("{MAGIC}{}\n", serde_json::to_string(header)?);
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        let stream = Stream::new(key, line.as_bytes());
        let length = line.len() as u64;
        Ok(Self { file, stream, digest: Sha256::new_with_prefix(line), length })
    }

    /// Writes and syncs one frame; `last` ends the tape.
    pub(super) fn frame(&mut self, plain: &[u8], last: bool) -> io::Result<()> {
        let payload = Payload { msg: plain, aad: &self.stream.bound_to };
        let sealed = self.stream.cipher.encrypt(&self.stream.nonce(last), payload);
        let sealed = sealed.map_err(|_| io::Error::other("a frame could not be sealed"))?;
        let size = u32::try_from(sealed.len()).ok().filter(|size| *size <= MAX_FRAME);
        let size = size.ok_or_else(|| io::Error::other("a frame is too long"))?;
        let mut bytes = (size | if last { LAST } else { 0 }).to_be_bytes().to_vec();
        bytes.extend_from_slice(&sealed);
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.digest.update(&bytes);
        self.length += bytes.len() as u64;
        self.stream.frame += 1;
        Ok(())
    }

    /// SHA-256 of the file so far, hex.
    pub(super) fn digest(&self) -> String {
        HEXLOWER.encode(&self.digest.clone().finalize())
    }

    /// Goes on in another file.
    #[cfg(test)]
    pub(super) fn redirect(&mut self, file: File) {
        self.file = file;
    }

    /// After a failed write: cuts the file back to its last whole frame, which is what [`Writer::digest`] covers.
    pub(super) fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)
    }
}

/// The header of a tape and where its frames start.
pub(super) fn header(bytes: &[u8]) -> Option<(Header, usize)> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let json = bytes.get(..end)?.strip_prefix(MAGIC.as_bytes())?;
    Some((serde_json::from_slice(json).ok()?, end + 1))
}

/// Whether the frames of a tape run, unbroken, to one marked last. Needs no key and proves nothing.
pub(super) fn looks_complete(bytes: &[u8]) -> bool {
    let mut rest = header(bytes).and_then(|(_, start)| bytes.get(start..)).unwrap_or_default();
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = u32::from_be_bytes(*size);
        let Some(next) = after.get((size & !LAST) as usize..) else { return false };
        if size & LAST != 0 {
            return next.is_empty();
        }
        rest = next;
    }
    false
}

/// All records of a tape.
pub(super) struct Decoded {
    pub(super) records: Vec<Record>,
    pub(super) frames: u64,
    /// The last frame is there.
    pub(super) complete: bool,
}

/// A frame that does not open: at which byte, and what is wrong.
pub(super) struct BadFrame {
    pub(super) offset: u64,
    pub(super) what: &'static str,
}

/// Opens every frame. An end that is missing or torn (the last frame of a killed daemon) gives `complete: false`;
/// a frame that does not open with more behind it is a fault.
pub(super) fn read(bytes: &[u8], key: &[u8; 32]) -> Result<Decoded, BadFrame> {
    let bad = |offset: usize, what| BadFrame { offset: offset as u64, what };
    let (_, start) = header(bytes).ok_or(bad(0, "not a tape of this version"))?;
    let mut stream = Stream::new(key, bytes.get(..start).unwrap_or_default());
    let mut found = Decoded { records: Vec::new(), frames: 0, complete: false };
    let mut at = start;
    while let Some((size, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
        if found.complete {
            return Err(bad(at, "bytes after the last frame"));
        }
        let size = u32::from_be_bytes(*size);
        let (size, last) = ((size & !LAST) as usize, size & LAST != 0);
        let Some(sealed) = rest.get(..size) else { break };
        let payload = Payload { msg: sealed, aad: &stream.bound_to };
        let Ok(plain) = stream.cipher.decrypt(&stream.nonce(last), payload) else {
            if rest.len() == size {
                break;
            }
            return Err(bad(at, "the frame does not open: it was changed, moved or removed"));
        };
        decode(&plain, &mut found.records).ok_or(bad(at, "the frame holds no records of this version"))?;
        found.complete = last;
        found.frames += 1;
        stream.frame += 1;
        at += 4 + size;
    }
    if found.complete && at != bytes.len() {
        return Err(bad(at, "bytes after the last frame"));
    }
    Ok(found)
}
