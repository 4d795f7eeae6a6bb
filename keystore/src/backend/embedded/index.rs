//! The index: sled 0.34, trusted with nothing. A panic inside it (a flipped bit can cause one) is a damaged index.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;

use super::EmbeddedError;
use super::line::Replay;
use crate::backend::{BackendError, Revision, Versioned};

pub(super) struct Index {
    rows: sled::Tree,
    meta: sled::Tree,
    _db: sled::Db,
}

/// Milliseconds between sled's own flushes. The journal is synced with every write and fills in what an index lacks: this
/// only bounds how far a journal can be rolled back before a crash without the index knowing better.
const FLUSH: u64 = 5_000;
/// The last line applied: its number, big-endian, and its hash.
const APPLIED: &str = "applied";

impl Index {
    /// The index in `dir`, made equal to `replay`.
    pub(super) fn open(dir: &Path, replay: &Replay) -> Result<Self, EmbeddedError> {
        let unusable =
            |why: BackendError| EmbeddedError::Index { path: dir.to_owned(), why: why.to_string() };
        if dir.exists() {
            match Self::at(dir).and_then(|index| Ok((index.applied()?, index.equals(replay)?, index))) {
                Ok((applied, equal, index)) => {
                    check_history(applied.as_ref(), replay)?;
                    if equal {
                        return Ok(index);
                    }
                    tracing::info!("store.index.behind");
                }
                Err(why) => tracing::warn!(error = %why, "store.index.damaged"),
            }
            std::fs::remove_dir_all(dir).map_err(|e| unusable(e.into()))?;
        }
        let index = Self::at(dir).map_err(unusable)?;
        index.fill(replay).map_err(unusable)?;
        Ok(index)
    }

    /// A new index in `dir`, which nothing uses, with these rows, as of line `seq`.
    pub(super) fn fresh(
        dir: &Path,
        rows: &[(Bytes, Versioned)],
        (seq, hash): (Revision, &str),
    ) -> Result<Self, BackendError> {
        if dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        let index = Self::at(dir)?;
        let rows: Vec<_> = rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))).collect();
        index.apply(&rows, seq, hash)?;
        Ok(index)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Versioned>, BackendError> {
        match guarded(|| self.rows.get(key))? {
            Some(stored) => decode(&stored).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn range(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Versioned)>, BackendError> {
        let found = guarded(|| self.rows.scan_prefix(prefix).collect::<Result<Vec<_>, _>>())?;
        found.into_iter().map(|(key, row)| Ok((Bytes::copy_from_slice(&key), decode(&row)?))).collect()
    }

    /// Applies rows (`None` removes) and notes the line they came from.
    pub(super) fn apply(
        &self,
        rows: &[(Bytes, Option<Versioned>)],
        seq: Revision,
        hash: &str,
    ) -> Result<(), BackendError> {
        let mut batch = sled::Batch::default();
        for (key, row) in rows {
            match row {
                Some(row) => batch.insert(key.as_ref(), encode(row)),
                None => batch.remove(key.as_ref()),
            }
        }
        guarded(|| self.rows.apply_batch(batch))?;
        let mut applied = seq.to_be_bytes().to_vec();
        applied.extend_from_slice(hash.as_bytes());
        guarded(|| self.meta.insert(APPLIED, applied)).map(drop)
    }

    fn at(dir: &Path) -> Result<Self, BackendError> {
        // sled gives its lock back a moment after it was closed; the journal's lock says that nobody else has it.
        for _ in 0..100 {
            match guarded(|| sled::Config::new().path(dir).flush_every_ms(Some(FLUSH)).open()) {
                Err(BackendError::Io(e)) if e.to_string().contains("lock") => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                other => return Self::with(other?),
            }
        }
        Err(std::io::Error::other("it is open in another process").into())
    }

    fn with(db: sled::Db) -> Result<Self, BackendError> {
        let (rows, meta) = guarded(|| Ok((db.open_tree("rows")?, db.open_tree("meta")?)))?;
        Ok(Self { rows, meta, _db: db })
    }

    fn applied(&self) -> Result<Option<(Revision, String)>, BackendError> {
        let Some(stored) = guarded(|| self.meta.get(APPLIED))? else { return Ok(None) };
        let damaged = || BackendError::Damaged("the index does not know what it has".to_owned());
        let (seq, hash) = stored.split_first_chunk::<8>().ok_or_else(damaged)?;
        Ok(Some((u64::from_be_bytes(*seq), String::from_utf8_lossy(hash).into_owned())))
    }

    fn equals(&self, replay: &Replay) -> Result<bool, BackendError> {
        let rows = self.range(b"")?;
        let known = self.applied()?.map_or(0, |(seq, _)| seq) == replay.last();
        Ok(known && rows.len() == replay.rows.len() && rows.iter().map(|(k, r)| (k, r)).eq(&replay.rows))
    }

    fn fill(&self, replay: &Replay) -> Result<(), BackendError> {
        let Some(hash) = replay.hash(replay.last()) else { return Ok(()) };
        let rows: Vec<_> = replay.rows.iter().map(|(key, row)| (key.clone(), Some(row.clone()))).collect();
        self.apply(&rows, replay.last(), hash)
    }
}

fn check_history(applied: Option<&(Revision, String)>, replay: &Replay) -> Result<(), EmbeddedError> {
    match applied {
        None | Some((0, _)) => Ok(()),
        Some((seq, hash)) => match replay.hash(*seq) {
            None => Err(EmbeddedError::JournalBehind { journal: replay.last(), index: *seq }),
            Some(found) if found != hash => Err(EmbeddedError::JournalReplaced(*seq)),
            Some(_) => Ok(()),
        },
    }
}

fn encode(row: &Versioned) -> Vec<u8> {
    let mut out = row.revision.to_be_bytes().to_vec();
    out.extend_from_slice(&row.value);
    out
}

fn decode(stored: &[u8]) -> Result<Versioned, BackendError> {
    let damaged = || BackendError::Damaged("a row of the index is too short".to_owned());
    let (revision, value) = stored.split_first_chunk::<8>().ok_or_else(damaged)?;
    Ok(Versioned { value: Bytes::copy_from_slice(value), revision: u64::from_be_bytes(*revision) })
}

fn guarded<T>(ask: impl FnOnce() -> sled::Result<T>) -> Result<T, BackendError> {
    match catch_unwind(AssertUnwindSafe(ask)) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(sled::Error::Io(e))) => Err(e.into()),
        Ok(Err(e)) => Err(BackendError::Damaged(e.to_string())),
        Err(_) => Err(BackendError::Damaged("the index panicked".to_owned())),
    }
}
