//! What a transaction looks like in the journal, and what the lines add up to. One that is longer than a line comes in
//! pieces, which count for nothing until the last one has come: that decides. A compacted journal begins with lines of
//! another kind: the rows that were live, each with the revision that wrote it.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::mark::Draft;
use crate::backend::{Revision, Versioned, Write};
use crate::journal::Entry;

/// One change, keys and values in base64. Leased puts are told apart because their keys do not outlive a restart.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Put(String, String),
    PutLeased(String, String),
    Delete(String),
}

/// The lines of a transaction, at least one. The last one decides.
pub(super) fn encode(writes: &[Write]) -> Result<Vec<Draft>, serde_json::Error> {
    let mut pieces = in_pieces(writes, usize::MAX, |write| match write {
        Write::Put(key, value) | Write::PutLeased(key, value, _) => key.len() + value.len(),
        Write::Delete(key) => key.len(),
    });
    let last = pieces.pop().unwrap_or_default();
    let before = pieces.len();
    let held = pieces.into_iter().map(|piece| {
        Draft::new(|line| {
            line.push(HELD);
            serde_json::to_writer(line, &changes(piece))
        })
    });
    let mut lines = held.collect::<Result<Vec<_>, _>>()?;
    lines.push(Draft::new(|line| {
        if before > 0 {
            line.extend(format!("{}{before} ", char::from(LAST)).bytes());
        }
        serde_json::to_writer(line, &changes(last))
    })?);
    Ok(lines)
}

fn changes(writes: &[Write]) -> Vec<Change> {
    let changes = writes.iter().map(|write| match write {
        Write::Put(key, value) => Change::Put(BASE64.encode(key), BASE64.encode(value)),
        Write::PutLeased(key, value, _) => Change::PutLeased(BASE64.encode(key), BASE64.encode(value)),
        Write::Delete(key) => Change::Delete(BASE64.encode(key)),
    });
    changes.collect()
}

/// Runs of `all` of at most `most` and, unless one alone is longer, about [`PIECE`] bytes; none if there is nothing.
fn in_pieces<T>(all: &[T], most: usize, size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut pieces, mut rest) = (Vec::new(), all);
    while !rest.is_empty() {
        let mut bytes = 0_usize;
        let fits = rest.iter().take(most).take_while(|one| {
            bytes = bytes.saturating_add(size(one));
            bytes <= PIECE
        });
        let (piece, left) = rest.split_at(fits.count().max(1));
        pieces.push(piece);
        rest = left;
    }
    pieces
}

/// Begins a piece that counts once its last one has come.
const HELD: u8 = b'+';
/// Begins the last one; the number of those before follows.
const LAST: u8 = b'=';
/// Bytes of keys and values in one line, before base64.
const PIECE: usize = 4 << 20;

/// One line of a base: an object, where a transaction is an array.
#[derive(Serialize, Deserialize)]
struct Base {
    /// Key and value in base64, and the revision.
    rows: Vec<(String, String, Revision)>,
    /// How many lines of the base follow.
    left: usize,
}

/// The lines of a base that has these rows; at least one.
pub(super) fn base(rows: &[(Bytes, Versioned)]) -> Result<Vec<Draft>, serde_json::Error> {
    let mut pieces = in_pieces(rows, ROWS, |(key, row)| key.len() + row.value.len());
    if pieces.is_empty() {
        pieces.push(rows);
    }
    let last = pieces.len().saturating_sub(1);
    let lines = pieces.into_iter().enumerate().map(|(at, piece)| {
        let text =
            |(key, row): &(Bytes, Versioned)| (BASE64.encode(key), BASE64.encode(&row.value), row.revision);
        let base = Base { rows: piece.iter().map(text).collect(), left: last - at };
        Draft::new(|line| serde_json::to_writer(line, &base))
    });
    lines.collect()
}

/// Rows in one line of a base, at most.
const ROWS: usize = 1000;

/// The rows that the journal's lines add up to, and the hash of each line.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) rows: BTreeMap<Bytes, Versioned>,
    /// The number of the first line; 0 without lines.
    first: Revision,
    hashes: Vec<String>,
    /// How many lines of the base are still to come.
    left: usize,
    /// The pieces of a transaction whose last one has not come.
    held: Vec<Vec<Change>>,
}

impl Replay {
    /// Takes the next line, which says `body` behind its mark.
    pub(super) fn apply(&mut self, entry: &Entry, body: &[u8]) -> Result<(), String> {
        if self.first == 0 {
            self.first = entry.seq;
        }
        self.hashes.push(entry.hash.clone());
        // A crash left pieces without their last one: the next line that is none of theirs is written after it.
        let held = std::mem::take(&mut self.held);
        match body.split_first() {
            Some((b'{', _)) => self.apply_base(entry, body),
            Some((&HELD, piece)) => {
                self.held = held;
                self.held.push(serde_json::from_slice(piece).map_err(|e| e.to_string())?);
                Ok(())
            }
            Some((&LAST, rest)) => {
                let space = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
                let (number, last) = rest.split_at(space);
                if number != held.len().to_string().as_bytes() {
                    return Err("a transaction that lacks pieces".to_owned());
                }
                let last: Vec<Change> = serde_json::from_slice(last).map_err(|e| e.to_string())?;
                self.apply_changes(entry, held.into_iter().flatten().chain(last))
            }
            _ => {
                let changes: Vec<Change> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
                self.apply_changes(entry, changes)
            }
        }
    }

    fn apply_changes(
        &mut self,
        entry: &Entry,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<(), String> {
        for change in changes {
            match change {
                Change::Put(key, value) => {
                    let row = Versioned { value: decode(&value)?, revision: entry.seq };
                    self.rows.insert(decode(&key)?, row);
                }
                Change::PutLeased(key, _) | Change::Delete(key) => drop(self.rows.remove(&decode(&key)?)),
            }
        }
        Ok(())
    }

    fn apply_base(&mut self, entry: &Entry, body: &[u8]) -> Result<(), String> {
        let base: Base = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        let begins = entry.seq == self.first;
        if !begins && self.left != base.left + 1 {
            return Err("a piece of a base where none belongs".to_owned());
        }
        self.left = base.left;
        for (key, value, revision) in base.rows {
            self.rows.insert(decode(&key)?, Versioned { value: decode(&value)?, revision });
        }
        Ok(())
    }

    /// Whether all rows are there that the journal's base says there are.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// The number of the first line; 1 if the journal was never compacted.
    pub(super) fn first(&self) -> Revision {
        self.first.max(1)
    }

    /// The number of the last line; 0 without lines.
    pub(super) fn last(&self) -> Revision {
        self.first() - 1 + self.hashes.len() as u64
    }

    /// The hash of line `seq`, if the journal has it.
    pub(super) fn hash(&self, seq: Revision) -> Option<&str> {
        let at = usize::try_from(seq.checked_sub(self.first())?).ok()?;
        self.hashes.get(at).map(String::as_str)
    }
}

fn decode(text: &str) -> Result<Bytes, String> {
    BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|e| e.to_string())
}
