//! Committing: one thread decides every transaction, in order. What arrives while the journal syncs is decided
//! against the rows that are on their way and goes out with the next sync; nothing is visible, and nobody is
//! answered, before it is durable.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::index::Index;
use super::mark::{Draft, Kind};
use super::{ended, line};
use crate::backend::leases::Leases;
use crate::backend::watchers::Watchers;
use crate::backend::{
    BackendError, Changed, Compacted, Guard, Lease, Outcome, Revision, Transaction, Versioned, Write,
};
use crate::failpoint;
use crate::journal::{Answer, Journal, Position};
use crate::seal::LineKey;

pub(super) enum Job {
    /// With a key, its line and those after it are marked under that one.
    Transact(Transaction, Option<LineKey>, Reply),
    Expire(Lease),
    /// The newest record and its hash.
    Newest(oneshot::Sender<(Revision, String)>),
    /// See [`super::compact`]; only if this is the newest record still.
    Compact(Option<Revision>, oneshot::Sender<Result<Compacted, BackendError>>),
}

type Reply = oneshot::Sender<Result<Outcome, BackendError>>;

/// What readers and the committer share.
pub(super) struct Shared {
    index: RwLock<Index>,
    revision: AtomicU64,
    /// The journal's first line.
    base: AtomicU64,
    watchers: Mutex<Watchers>,
    leases: Mutex<Leases>,
}

impl Shared {
    pub(super) fn new(index: Index, revision: Revision, base: Revision) -> Self {
        Self {
            index: RwLock::new(index),
            revision: AtomicU64::new(revision),
            base: AtomicU64::new(base),
            watchers: Mutex::new(Watchers::starting_at(revision)),
            leases: Mutex::default(),
        }
    }

    /// Reads between two commits, never in the middle of one.
    pub(super) fn read<T>(&self, ask: impl FnOnce(&Index) -> T) -> T {
        ask(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn history(&self) -> u64 {
        self.revision().saturating_sub(self.base.load(Ordering::Acquire))
    }

    /// Readers go on with `index`, which has the same rows as the one before.
    pub(super) fn rebase(&self, index: Index, base: Revision, revision: Revision) {
        let mut current = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, index);
        self.base.store(base, Ordering::Release);
        self.revision.store(revision, Ordering::Release);
        drop(current);
        // sled flushes, syncs and joins a thread when it is dropped: no reader waits for that.
        drop(old);
    }

    pub(super) fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Committer {
    pub(super) dir: PathBuf,
    pub(super) journal: Journal,
    pub(super) shared: Arc<Shared>,
    /// What lines are marked under.
    pub(super) key: Arc<LineKey>,
    /// Set once something failed: from then on the journal may know what the index does not.
    pub(super) broken: bool,
}

/// At most so many transactions share one sync.
const BATCH: usize = 256;

impl Committer {
    pub(super) fn new(dir: PathBuf, journal: Journal, shared: Arc<Shared>, key: LineKey) -> Self {
        Self { dir, journal, shared, key: Arc::new(key), broken: false }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = Batch { rows: BTreeMap::new(), next: self.shared.revision() + 1 };
            let (mut decided, mut compact, mut newest) = (Vec::new(), None, None);
            let mut next = Some(first);
            while let Some(job) = next.take() {
                match job {
                    Job::Transact(transaction, to, reply) => {
                        let what = self.decide(transaction, to, &mut batch);
                        decided.push(Decided { reply: Some(reply), what });
                    }
                    Job::Expire(lease) => {
                        let writes = self.shared.leases().expire(lease);
                        if !writes.is_empty() {
                            let transaction = Transaction { guards: Vec::new(), writes };
                            let what = self.decide(transaction, None, &mut batch);
                            decided.push(Decided { reply: None, what });
                        }
                    }
                    Job::Newest(reply) => newest = Some(reply),
                    Job::Compact(at, reply) => compact = Some((at, reply)),
                }
                if decided.len() < BATCH && compact.is_none() && newest.is_none() {
                    next = queue.try_recv().ok();
                }
            }
            for one in decided {
                self.finish(one);
            }
            let head = self.journal.head();
            if let Some((at, reply)) = compact {
                let moved = at.is_some_and(|at| at != head.seq);
                // Who asked may have gone away; what was done stays.
                drop(reply.send(if moved { Err(BackendError::Moved) } else { self.compact() }));
            }
            if let Some(reply) = newest {
                drop(reply.send((head.seq, head.hash)));
            }
        }
    }

    fn decide(
        &mut self,
        transaction: Transaction,
        to: Option<LineKey>,
        batch: &mut Batch,
    ) -> Result<Option<Staged>, BackendError> {
        if self.broken { Err(ended()) } else { self.stage(transaction, to, batch) }
    }

    /// Checks the guards and queues the line; `None` is a conflict.
    fn stage(
        &mut self,
        transaction: Transaction,
        to: Option<LineKey>,
        batch: &mut Batch,
    ) -> Result<Option<Staged>, BackendError> {
        for guard in &transaction.guards {
            let (Guard::Absent(key) | Guard::Unchanged(key, _)) = guard;
            let found = batch.revision_of(key, &self.shared)?;
            let holds = match guard {
                Guard::Absent(_) => found.is_none(),
                Guard::Unchanged(_, revision) => found == Some(*revision),
            };
            if !holds {
                return Ok(None);
            }
        }
        let mut leases = self.shared.leases();
        let alive = transaction.writes.iter().all(|write| match write {
            Write::PutLeased(_, _, lease) => leases.alive(*lease),
            _ => true,
        });
        if !alive {
            return Ok(None);
        }
        let mut lines = line::encode(&transaction.writes).map_err(std::io::Error::from)?;
        if !lines.iter().all(Draft::fits) {
            return Err(BackendError::TooLarge);
        }
        let count = lines.len() as Revision;
        let Some(last) = lines.pop() else { return Ok(None) };
        // Of several lines the last one decides: what it writes is written by it.
        let revision = batch.next + count - 1;
        let mut changes: BTreeMap<Bytes, Option<Versioned>> = BTreeMap::new();
        for write in &transaction.writes {
            leases.note(write);
            match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                    changes.insert(key.clone(), Some(Versioned { value: value.clone(), revision }))
                }
                Write::Delete(key) => changes.insert(key.clone(), None),
            };
        }
        drop(leases);
        self.hold(lines)?;
        let kind = if to.is_some() { Kind::To } else { Kind::By };
        let key = to.map_or_else(|| Arc::clone(&self.key), Arc::new);
        self.key = Arc::clone(&key);
        let answer = self.submit(move |at| last.marked(kind, &key, at))?;
        batch.rows.extend(changes.clone());
        batch.next = revision + 1;
        Ok(Some(Staged { answer, revision, rows: changes.into_iter().collect() }))
    }

    /// Puts the pieces of a transaction before its last one on the disk, where they count for nothing yet.
    fn hold(&mut self, pieces: Vec<Draft>) -> Result<(), BackendError> {
        let mut answers = Vec::new();
        for piece in pieces {
            let key = Arc::clone(&self.key);
            answers.push(self.submit(move |at| piece.marked(Kind::By, &key, at))?);
        }
        if let Some(last) = answers.pop() {
            let kept =
                last.blocking_recv().map_err(|_| ended()).map(|kept| kept.map_err(std::io::Error::other));
            if let Err(error) = kept.and_then(|kept| kept.map_err(BackendError::from)) {
                self.broken = true;
                return Err(error);
            }
            failpoint::reach("store.pieces.held");
        }
        Ok(())
    }

    fn submit(
        &mut self,
        line: impl FnOnce(Position<'_>) -> Vec<u8> + Send + 'static,
    ) -> Result<Answer, BackendError> {
        self.journal.submit(line).map_err(|e| {
            self.broken = true;
            std::io::Error::other(e).into()
        })
    }

    fn finish(&mut self, decided: Decided) {
        let outcome = match decided.what {
            _ if self.broken => Err(ended()),
            Ok(None) => Ok(Outcome::Conflict),
            Ok(Some(staged)) => self.commit(staged).inspect_err(|_| self.broken = true),
            Err(e) => Err(e),
        };
        if let Err(e) = &outcome {
            tracing::error!(error = %e, "store.commit.failed");
        }
        if let Some(reply) = decided.reply {
            // Who asked may have gone away; what was decided stays.
            drop(reply.send(outcome));
        }
    }

    fn commit(&mut self, staged: Staged) -> Result<Outcome, BackendError> {
        let receipt = staged.answer.blocking_recv().map_err(|_| ended())?.map_err(std::io::Error::other)?;
        if receipt.seq != staged.revision {
            return Err(BackendError::Damaged("the journal gave another number than expected".to_owned()));
        }
        let revision = staged.revision;
        let mut changes = Vec::new();
        {
            let index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            for (key, row) in &staged.rows {
                if row.is_some() || index.get(key)?.is_some() {
                    let value = row.as_ref().map(|r| r.value.clone());
                    changes.push(Changed { key: key.clone(), value, revision });
                }
            }
            index.apply(&staged.rows, revision, &receipt.hash)?;
        }
        self.shared.revision.store(revision, Ordering::Release);
        self.shared.watchers().announce(changes);
        Ok(Outcome::Committed(revision))
    }
}

struct Decided {
    reply: Option<Reply>,
    what: Result<Option<Staged>, BackendError>,
}

struct Staged {
    answer: Answer,
    revision: Revision,
    rows: Vec<(Bytes, Option<Versioned>)>,
}

/// The rows that are on their way to the disk.
struct Batch {
    rows: BTreeMap<Bytes, Option<Versioned>>,
    next: Revision,
}

impl Batch {
    fn revision_of(&self, key: &Bytes, shared: &Shared) -> Result<Option<Revision>, BackendError> {
        let found = match self.rows.get(key) {
            Some(staged) => staged.clone(),
            None => shared.read(|index| index.get(key))?,
        };
        Ok(found.map(|row| row.revision))
    }
}
