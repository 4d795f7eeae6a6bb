//! The store as the trail saw it: whoever rolls it back, to make a revoked key valid again, must make the trail forget.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use keystore::journal::{self, Fault, Receipt};
use serde::{Deserialize, Serialize};

use super::event::Event;

/// A record of the store's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreHead {
    /// Its number.
    pub seq: u64,
    /// Its hash, hex.
    pub hash: String,
}

/// What the trail knows of the store, since it was last restored.
#[derive(Debug, Clone, Default)]
pub struct SeenStore {
    /// How far it was at each checkpoint.
    heads: BTreeMap<u64, String>,
    /// The last record that each compaction forgot.
    forgotten: BTreeMap<u64, String>,
}

impl SeenStore {
    /// Takes the next event of the trail.
    pub(super) fn hear(&mut self, event: &Event) {
        match event {
            Event::CheckpointSigned { store: Some(head), .. } => {
                // The first that was told counts: behind the newest checkpoint anybody can tell another.
                self.heads.entry(head.seq).or_insert_with(|| head.hash.clone());
            }
            Event::StoreCompacted { through, head, .. } => {
                self.forgotten.entry(*through).or_insert_with(|| head.clone());
            }
            Event::StoreReplaced { .. } => *self = Self::default(),
            _ => {}
        }
    }

    /// Whether there is anything to hold a store against.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Checks the store's journal in `dir`, and that it holds every record that was seen and not forgotten. Reads files.
    ///
    /// # Errors
    /// The first fault.
    pub fn holds(&self, dir: &Path) -> Result<(), Fault> {
        let fault = |seq: u64, what: &str| Fault {
            file: dir.to_owned(),
            offset: 0,
            seq: Some(seq),
            what: what.to_owned(),
        };
        let mut seen = self.heads.clone();
        let mut store = journal::read_rebased(dir);
        let before = store.head();
        if before.seq > 0 && !self.is_empty() && self.forgotten.get(&before.seq) != Some(&before.hash) {
            return Err(fault(before.seq, "the store was compacted up to here, and no event tells of it"));
        }
        seen.retain(|seq, _| *seq > before.seq);
        for entry in store.by_ref() {
            let entry = entry?;
            if seen.remove(&entry.seq).is_some_and(|hash| hash != entry.hash) {
                let what =
                    "the store was rewritten or replaced: a checkpoint of the trail saw another record";
                let Fault { what, .. } = fault(entry.seq, what);
                return Err(Fault { file: entry.file, offset: entry.offset, seq: Some(entry.seq), what });
            }
        }
        match seen.into_keys().next() {
            None => Ok(()),
            Some(seq) => Err(fault(
                seq,
                "the store was rolled back: a checkpoint of the trail saw a record that is gone",
            )),
        }
    }
}

/// How far the store's journal in `dir` is, synced.
pub(super) fn newest(dir: &Path) -> io::Result<Option<StoreHead>> {
    let found = match journal::newest(dir) {
        // It was compacted in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => journal::newest(dir)?,
        found => found?,
    };
    Ok(found.map(|Receipt { seq, hash }| StoreHead { seq, hash }))
}
