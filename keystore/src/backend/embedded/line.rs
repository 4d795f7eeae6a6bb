//! What a transaction looks like in the journal, and what the lines add up to. A compacted journal begins with lines
//! of another kind: the rows that were live, each with the revision that wrote it.

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

pub(super) fn encode(writes: &[Write]) -> Result<Draft, serde_json::Error> {
    let changes = writes.iter().map(|write| match write {
        Write::Put(key, value) => Change::Put(BASE64.encode(key), BASE64.encode(value)),
        Write::PutLeased(key, value, _) => Change::PutLeased(BASE64.encode(key), BASE64.encode(value)),
        Write::Delete(key) => Change::Delete(BASE64.encode(key)),
    });
    Draft::new(|line| serde_json::to_writer(line, &changes.collect::<Vec<_>>()))
}

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
    let pieces: Vec<_> = if rows.is_empty() { vec![rows] } else { rows.chunks(ROWS).collect() };
    let last = pieces.len().saturating_sub(1);
    let lines = pieces.into_iter().enumerate().map(|(at, piece)| {
        let text =
            |(key, row): &(Bytes, Versioned)| (BASE64.encode(key), BASE64.encode(&row.value), row.revision);
        let base = Base { rows: piece.iter().map(text).collect(), left: last - at };
        Draft::new(|line| serde_json::to_writer(line, &base))
    });
    lines.collect()
}

/// Rows in one line of a base.
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
}

impl Replay {
    /// Takes the next line, which says `body` behind its mark.
    pub(super) fn apply(&mut self, entry: &Entry, body: &[u8]) -> Result<(), String> {
        if self.first == 0 {
            self.first = entry.seq;
        }
        self.hashes.push(entry.hash.clone());
        if body.first() == Some(&b'{') {
            return self.apply_base(entry, body);
        }
        let changes: Vec<Change> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
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
