//! The store on this machine's disk: the journal is the truth, sled is the index over it.
//!
//! A transaction is a line of the journal; it is acknowledged once that line is durable, then applied to the index.
//! Opening replays the journal and compares: an index that is missing, behind, damaged or simply different is made
//! anew. An index that knows more than the journal means that the journal lost acknowledged lines: that is refused,
//! as is an index without a journal. A line that was not written under the master key is refused (`mark`). Only this module
//! imports sled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use self::commit::{Committer, Job, Shared};
use self::index::Index;
use self::mark::Trial;
use super::leases::run_out;
use super::{Backend, BackendError, Compacted, Lease, Outcome, Revision, Transaction, Versioned, Watch};
use crate::journal::{Fault, Journal, JournalError, Options};
use crate::seal::LineKey;

mod commit;
mod compact;
mod index;
mod line;
mod mark;

/// A store on this machine's disk.
pub struct Embedded {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a store was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is no store, and none was asked to be made.
    #[error(
        "there is no store in {0}; restore the backup (a new bastion is made in an empty directory: keyward init --dir DIR)"
    )]
    Missing(PathBuf),
    /// There is a store, and a new one was asked for.
    #[error("there is a store in {0} already; nothing was changed")]
    Exists(PathBuf),
    /// The index is there, its journal is not.
    #[error(
        "the journal of the store in {0} is gone while its index is still there; restore the journal directory from the backup"
    )]
    JournalGone(PathBuf),
    /// The index knows records that the journal has lost.
    #[error(
        "the journal ends at record {journal} but record {index} was acknowledged; restore it from the backup"
    )]
    JournalBehind {
        /// The journal's last record.
        journal: u64,
        /// The last record that the index applied.
        index: u64,
    },
    /// The journal is not the one that the index was made from.
    #[error("record {0} of the journal is not the one that was acknowledged; restore it from the backup")]
    JournalReplaced(u64),
    /// The journal is whole, as far as this key can tell, and another one's.
    #[error("the store is written under master key {id}, which is not the one that was given")]
    OtherKey {
        /// That one's id.
        id: String,
        /// Where that begins, if there are lines before it that are marked under the one that was given.
        since: Option<Fault>,
        /// What the journal adds up to, which nothing proves: for the words of a refusal.
        rows: BTreeMap<Bytes, Versioned>,
    },
    /// The journal did not open.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The index could not be made.
    #[error("the index in {path} cannot be used: {why}")]
    Index {
        /// Its directory.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

impl Embedded {
    /// Opens the store in `dir`, whose lines `key` marks; with `create`, makes a new one there instead.
    ///
    /// # Errors
    /// [`EmbeddedError::Missing`] or [`EmbeddedError::Exists`] if what is there is not what was asked for;
    /// otherwise whatever is wrong with it. No error changes anything but the index.
    pub fn open(dir: &Path, create: bool, key: LineKey) -> Result<Self, EmbeddedError> {
        let journal_dir = dir.join("journal");
        match (begun(&journal_dir), !compact::indexes(dir).is_empty()) {
            (true, _) if create => return Err(EmbeddedError::Exists(dir.to_owned())),
            (false, true) => return Err(EmbeddedError::JournalGone(dir.to_owned())),
            (false, false) if !create => return Err(EmbeddedError::Missing(dir.to_owned())),
            _ => {}
        }
        let mut trial = Trial::under(&key);
        let opened = Journal::open_rebased(&journal_dir, Options::default(), |entry| trial.hear(entry));
        let journal = opened.map_err(|fault| trial.other_key().unwrap_or(fault.into()))?;
        let replay = trial.replay;
        compact::check_indexes(dir, &replay)?;
        let index = Index::open(&compact::index_dir(dir, replay.first()), &replay)?;
        compact::remove_others(dir, replay.first());
        let shared = Arc::new(Shared::new(index, journal.head().seq, replay.first()));
        let (jobs, queue) = mpsc::channel(1024);
        let committer = Committer::new(dir.to_owned(), journal, shared.clone(), key);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || committer.run(queue))
            .map_err(|source| JournalError::Io { path: dir.to_owned(), source })?;
        Ok(Self { shared, jobs: Some(jobs), thread: Some(thread) })
    }

    async fn decided(&self, transaction: Transaction, to: Option<LineKey>) -> Result<Outcome, BackendError> {
        let (reply, answer) = oneshot::channel();
        self.jobs()?.send(Job::Transact(transaction, to, reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    fn jobs(&self) -> Result<&mpsc::Sender<Job>, BackendError> {
        self.jobs.as_ref().ok_or_else(ended)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("store.committer.panicked");
        }
    }
}

impl Backend for Embedded {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Versioned>, BackendError>> {
        async move { self.shared.read(|index| index.get(key)) }.boxed()
    }

    fn range<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<(Bytes, Versioned)>, BackendError>> {
        async move { self.shared.read(|index| index.range(prefix)) }.boxed()
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, BackendError>> {
        self.decided(transaction, None).boxed()
    }

    fn transact_under(
        &self,
        transaction: Transaction,
        key: LineKey,
    ) -> BoxFuture<'_, Result<Outcome, BackendError>> {
        self.decided(transaction, Some(key)).boxed()
    }

    fn lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, BackendError>> {
        async move {
            let lease = self.shared.leases().grant(ttl);
            let (shared, jobs) = (Arc::downgrade(&self.shared), self.jobs()?.downgrade());
            tokio::spawn(async move {
                run_out(|| shared.upgrade().and_then(|s| s.leases().ends(lease))).await;
                // No sender: the store was closed, and leased keys do not outlive that.
                if let Some(jobs) = jobs.upgrade() {
                    drop(jobs.send(Job::Expire(lease)).await);
                }
            });
            Ok(lease)
        }
        .boxed()
    }

    fn renew(&self, lease: Lease) -> BoxFuture<'_, Result<bool, BackendError>> {
        async move { Ok(self.shared.leases().renew(lease)) }.boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a [u8], after: Revision) -> BoxFuture<'a, Result<Watch, BackendError>> {
        async move { self.shared.watchers().watch(prefix, after) }.boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, BackendError>> {
        async move { Ok(self.shared.revision()) }.boxed()
    }

    fn history(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        async move { Ok(self.shared.history()) }.boxed()
    }

    fn newest(&self) -> BoxFuture<'_, Result<Option<(Revision, String)>, BackendError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.jobs()?.send(Job::Newest(reply)).await.map_err(|_| ended())?;
            answer.await.map(Some).map_err(|_| ended())
        }
        .boxed()
    }

    fn compact_at(&self, newest: Option<Revision>) -> BoxFuture<'_, Result<Option<Compacted>, BackendError>> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.jobs()?.send(Job::Compact(newest, reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?.map(Some)
        }
        .boxed()
    }
}

/// Whether a journal was ever begun here.
fn begun(journal_dir: &Path) -> bool {
    journal_dir.join("lock").exists()
        || std::fs::read_dir(journal_dir).is_ok_and(|mut found| found.next().is_some())
}

fn ended() -> BackendError {
    BackendError::Io(std::io::Error::other("the store accepts nothing more"))
}
