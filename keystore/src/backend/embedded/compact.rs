//! Compaction: the journal begins anew with the rows that live, and so does the index.
//!
//! The journal's rename decides ([`crate::journal`]); the index follows it, in a directory called after the journal's
//! first line, because sled keeps old values in its files too. What a crash leaves of the older index is removed at the
//! next opening; an index newer than the journal means that the journal was rolled back, and is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::commit::Committer;
use super::index::Index;
use super::line::{self, Replay};
use super::mark::{Draft, Kind};
use super::{EmbeddedError, ended};
use crate::backend::{BackendError, Compacted, Revision, Versioned};
use crate::failpoint;
use crate::journal::Payload;

impl Committer {
    /// Compacts between two batches; readers go on all the while.
    pub(super) fn compact(&mut self) -> Result<Compacted, BackendError> {
        if self.broken {
            return Err(ended());
        }
        let rows = self.shared.read(|index| index.range(b""))?;
        // What goes with a lease is not there after a restart, and is not carried over.
        let stays = |(key, _): &&(Bytes, Versioned)| !self.shared.leases().binds(key);
        let lasting: Vec<_> = rows.iter().filter(stays).cloned().collect();
        let lines = line::base(&lasting).map_err(std::io::Error::from)?;
        let marked = |line: Draft| -> Payload {
            let key = Arc::clone(&self.key);
            Box::new(move |at| line.marked(Kind::By, &key, at))
        };
        let lines = lines.into_iter().map(marked).collect();
        let answer = self.journal.submit_rebase(lines).map_err(std::io::Error::other)?;
        let rebased = answer.blocking_recv().map_err(|_| ended())?.map_err(std::io::Error::other)?;
        // From here on the journal is ahead of the index: a fault must end the writing.
        self.broken = true;
        let base = rebased.before.seq + 1;
        failpoint::reach("store.index.old");
        let head = rebased.head;
        let index = Index::fresh(&index_dir(&self.dir, base), &rows, (head.seq, &head.hash))?;
        self.shared.rebase(index, base, head.seq);
        self.broken = false;
        failpoint::reach("store.index.new");
        remove_others(&self.dir, base);
        Ok(Compacted { through: rebased.before.seq, head: rebased.before.hash, base })
    }
}

/// Where the index of a journal lies that begins with line `first`.
pub(super) fn index_dir(dir: &Path, first: Revision) -> PathBuf {
    if first <= 1 { dir.join("index") } else { dir.join(format!("index.{first}")) }
}

/// Every index in `dir`, with the first line of the journal it was made from.
pub(super) fn indexes(dir: &Path) -> Vec<(Revision, PathBuf)> {
    let listed = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let named = listed.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let first = match name.strip_prefix("index")? {
            "" => 1,
            number => number.strip_prefix('.')?.parse().ok()?,
        };
        Some((first, entry.path()))
    });
    named.collect()
}

/// An index of a journal that began later than this one.
pub(super) fn check_indexes(dir: &Path, replay: &Replay) -> Result<(), EmbeddedError> {
    match indexes(dir).into_iter().map(|(first, _)| first).max() {
        Some(index) if index > replay.first() => {
            Err(EmbeddedError::JournalBehind { journal: replay.last(), index })
        }
        _ => Ok(()),
    }
}

/// Removes the indexes of journals that began earlier; their files may hold values that were to be forgotten.
pub(super) fn remove_others(dir: &Path, first: Revision) {
    for (_, path) in indexes(dir).into_iter().filter(|(other, _)| *other != first) {
        // sled may still be closing its files, and write one more.
        let removed = (0..10).find_map(|_| match std::fs::remove_dir_all(&path) {
            Ok(()) => Some(()),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "store.index.busy");
                std::thread::sleep(std::time::Duration::from_millis(20));
                None
            }
        });
        if removed.is_none() {
            tracing::warn!(path = %path.display(), "store.index.left: removed at the next start");
        }
    }
}
