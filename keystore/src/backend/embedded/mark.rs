//! The mark of a line: only who has the master key can write, move or replay one (docs/adr/0013).
//!
//! The chain alone proves nothing to whoever fears the disk: anybody can compute it. So what a line of the store says goes
//! behind `by ID MAC`, the id of the master key and a MAC over all of it, its number and the hash before it. As that hash is
//! over everything before, a line whose mark holds vouches for all lines that it follows. That is how another master key
//! takes over: the line `to ID MAC` that seals every value anew is marked under the new key, and for those before it,
//! which that key cannot check, its mark is enough. After it the old key writes nothing more.

use super::EmbeddedError;
use super::line::Replay;
use crate::backend::Revision;
use crate::journal::{Entry, Fault, JournalError, Position};
use crate::seal::LineKey;

/// A line that has no place yet: room for its mark, and what it says.
pub(super) struct Draft(Vec<u8>);

impl Draft {
    /// What `write` says.
    pub(super) fn new(
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), serde_json::Error>,
    ) -> Result<Self, serde_json::Error> {
        let mut line = vec![b' '; ROOM];
        write(&mut line)?;
        Ok(Self(line))
    }

    /// Whether a line of the journal holds it.
    pub(super) fn fits(&self) -> bool {
        crate::journal::fits_a_line(&self.0)
    }

    /// The line, at its place.
    pub(super) fn marked(mut self, kind: Kind, key: &LineKey, at: Position<'_>) -> Vec<u8> {
        let body = self.0.get(ROOM..).unwrap_or_default();
        let mac = key.mark(&parts(kind, key, (at.seq.to_string().as_bytes(), at.prev), body));
        let mark = format!("{} {} {mac} ", kind.word(), key.id());
        self.0.iter_mut().zip(mark.as_bytes()).for_each(|(to, from)| *to = *from);
        self.0
    }
}

/// Bytes of a mark: its kind, 16 hex digits, 64 of them, and a space after each.
const ROOM: usize = 2 + 1 + 16 + 1 + 64 + 1;

/// What a line says of the key that it is marked under.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The one of the line before.
    By,
    /// Another one, from here on.
    To,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::By => "by",
            Self::To => "to",
        }
    }
}

fn parts<'a>(
    kind: Kind,
    key: &'a LineKey,
    (seq, prev): (&'a [u8], &'a str),
    body: &'a [u8],
) -> [&'a [u8]; 5] {
    [kind.word().as_bytes(), key.id().as_bytes(), seq, prev.as_bytes(), body]
}

/// The lines of a journal, each judged as it is read.
pub(super) struct Trial<'a> {
    key: &'a LineKey,
    /// What those that were read add up to.
    pub(super) replay: Replay,
    /// Whether any line was marked under the key.
    known: bool,
    doubt: Option<Doubt>,
    ended: bool,
    last: Option<(Revision, std::path::PathBuf)>,
}

/// Lines that name another key, and that nothing vouched for yet.
struct Doubt {
    /// The first of them.
    fault: Fault,
    /// The key that the last of them names.
    id: String,
}

impl<'a> Trial<'a> {
    pub(super) fn under(key: &'a LineKey) -> Self {
        Self { key, replay: Replay::default(), known: false, doubt: None, ended: false, last: None }
    }

    /// Takes the next line; none is their end.
    pub(super) fn hear(&mut self, entry: Option<Entry>) -> Result<(), JournalError> {
        match entry {
            Some(entry) => self.line(entry),
            None => self.end(),
        }
    }

    /// What the store is told of, if its lines were read to their end and it is another key that they are marked under.
    pub(super) fn other_key(&mut self) -> Option<EmbeddedError> {
        let doubt = self.doubt.take().filter(|_| self.ended)?;
        let since = self.known.then_some(doubt.fault);
        Some(EmbeddedError::OtherKey { id: doubt.id, since, rows: std::mem::take(&mut self.replay.rows) })
    }

    fn line(&mut self, entry: Entry) -> Result<(), JournalError> {
        let fault = |what: String| Fault {
            file: entry.file.clone(),
            offset: entry.offset,
            seq: Some(entry.seq),
            what,
        };
        let Some(Marked { kind, id, mac, body }) = split(&entry.payload) else {
            return Err(fault(UNMARKED.to_owned()).into());
        };
        let seq = entry.seq.to_string();
        let parts = parts(kind, self.key, (seq.as_bytes(), &entry.prev), body);
        if id == self.key.id().as_bytes() && self.key.marked(&parts, mac) {
            self.known = true;
            if kind == Kind::To {
                self.doubt = None;
            }
        } else {
            let id = String::from_utf8_lossy(id).into_owned();
            // Lines of another key stand before one that takes over, or behind one that took over from this key.
            let foreign = kind == Kind::To || !self.known || self.doubt.is_some();
            if id == self.key.id() || !foreign {
                return Err(fault(FORGED.to_owned()).into());
            }
            let since = || Doubt { fault: fault(TAKEN_OVER.to_owned()), id: String::new() };
            self.doubt.get_or_insert_with(since).id = id;
        }
        self.replay.apply(&entry, body).map_err(fault)?;
        self.last = Some((entry.seq, entry.file));
        Ok(())
    }

    fn end(&mut self) -> Result<(), JournalError> {
        self.ended = true;
        if let Some(doubt) = &self.doubt {
            return Err(doubt.fault.clone().into());
        }
        match &self.last {
            Some((seq, file)) if !self.replay.is_whole() => {
                let what = "the base of the journal ends too soon".to_owned();
                Err(Fault { file: file.clone(), offset: 0, seq: Some(*seq), what }.into())
            }
            _ => Ok(()),
        }
    }
}

/// A line, taken apart.
struct Marked<'a> {
    kind: Kind,
    id: &'a [u8],
    mac: &'a [u8],
    body: &'a [u8],
}

fn split(payload: &[u8]) -> Option<Marked<'_>> {
    let (mark, body) = payload.split_at_checked(ROOM)?;
    let mut words = mark.strip_suffix(b" ")?.splitn(3, |byte| *byte == b' ');
    let kind = match words.next()? {
        b"by" => Kind::By,
        b"to" => Kind::To,
        _ => return None,
    };
    let id = words.next().filter(|id| id.len() == 16)?;
    Some(Marked { kind, id, mac: words.next()?, body })
}

const FORGED: &str = "its mark is not one of the master key: it, or one before it, was changed, moved, removed, replayed or \
                      written by somebody who has the disk and not that key";
const TAKEN_OVER: &str = "it is marked under another master key";
const UNMARKED: &str = "it has no mark of the master key: it was written by somebody who has the disk and not that key, or \
                        by a Keyward from before there were marks, whose stores are not taken over (a new one: keyward \
                        init --dir DIR)";
