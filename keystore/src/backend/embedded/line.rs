//! What a transaction looks like in the journal, and what the lines add up to.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

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

pub(super) fn encode(writes: &[Write]) -> Result<Vec<u8>, serde_json::Error> {
    let changes = writes.iter().map(|write| match write {
        Write::Put(key, value) => Change::Put(BASE64.encode(key), BASE64.encode(value)),
        Write::PutLeased(key, value, _) => Change::PutLeased(BASE64.encode(key), BASE64.encode(value)),
        Write::Delete(key) => Change::Delete(BASE64.encode(key)),
    });
    serde_json::to_vec(&changes.collect::<Vec<_>>())
}

/// The rows that the journal's lines add up to, and the hash of each line.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) rows: BTreeMap<Bytes, Versioned>,
    pub(super) hashes: Vec<String>,
}

impl Replay {
    pub(super) fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        self.hashes.push(entry.hash.clone());
        let changes: Vec<Change> = serde_json::from_slice(&entry.payload).map_err(|e| e.to_string())?;
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

    /// The hash of line `seq`, if the journal has it.
    pub(super) fn hash(&self, seq: Revision) -> Option<&str> {
        let at = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.hashes.get(at).map(String::as_str)
    }
}

fn decode(text: &str) -> Result<Bytes, String> {
    BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|e| e.to_string())
}
