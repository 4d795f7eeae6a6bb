//! Where bytes are kept: the [`Backend`] trait, and its implementations.
//!
//! A backend knows nothing of records or sealing: it maps byte keys to byte values, each with the revision that last
//! wrote it. One conformance suite runs against every implementation.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::seal::LineKey;

mod embedded;
mod leases;
mod memory;
mod watchers;

pub use embedded::{Embedded, EmbeddedError};
pub use memory::Memory;

/// A point in the store's history. Grows by at least one with every committed transaction.
pub type Revision = u64;

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The revision that wrote it.
    pub revision: Revision,
}

/// What must hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(Bytes),
    /// The key was last written by exactly this revision.
    Unchanged(Bytes, Revision),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Set the key.
    Put(Bytes, Bytes),
    /// Set the key until the lease runs out; a lease that ran out already is a conflict.
    PutLeased(Bytes, Bytes, Lease),
    /// Remove the key; removing an absent key is no error.
    Delete(Bytes),
}

/// Compare-and-set: all guards hold and all writes happen, or nothing does.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The conditions.
    pub guards: Vec<Guard>,
    /// The changes.
    pub writes: Vec<Write>,
}

/// What came of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable at this revision: it survives kill -9 and power loss.
    Committed(Revision),
    /// A guard did not hold; nothing changed.
    Conflict,
}

/// A time to live that keys can be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease(pub u64);

/// What a compaction forgot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// The last record that was forgotten.
    pub through: Revision,
    /// Its hash: the chain goes on from there.
    pub head: String,
    /// The record the store begins with now.
    pub base: Revision,
}

/// A change that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The key.
    pub key: Bytes,
    /// Its new value; `None` if it was removed.
    pub value: Option<Bytes>,
    /// The revision of the change.
    pub revision: Revision,
}

/// Why a backend could not answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Reading or writing failed; the backend refuses further writes until it is opened again.
    #[error("the store cannot be read or written: {0}")]
    Io(#[from] std::io::Error),
    /// What was read is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Something was written meanwhile; nothing was compacted.
    #[error("the store was written to meanwhile; try it again")]
    Moved,
    /// More than one line of the journal holds; nothing was changed.
    #[error("the change is too large to be made at once; nothing was changed")]
    TooLarge,
    /// The revision asked for is no longer kept; read everything again.
    #[error("revision {0} is no longer kept")]
    Compacted(Revision),
}

/// A watch's events, in order, without gaps.
pub type Watch = tokio::sync::mpsc::UnboundedReceiver<Changed>;

/// A store of bytes. Dropping a future of `transact` leaves the transaction either committed or not, never half.
pub trait Backend: Send + Sync + 'static {
    /// The value of `key`.
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Versioned>, BackendError>>;

    /// All keys that start with `prefix`, in byte order.
    fn range<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<(Bytes, Versioned)>, BackendError>>;

    /// Commits all writes if all guards hold. Returns only once the outcome is durable.
    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, BackendError>>;

    /// [`Backend::transact`]; once it is committed, what the store's files hold is proven by this key, from this
    /// transaction on. A store without files proves nothing.
    fn transact_under(
        &self,
        transaction: Transaction,
        _key: LineKey,
    ) -> BoxFuture<'_, Result<Outcome, BackendError>> {
        self.transact(transaction)
    }

    /// Grants a lease; keys bound to it vanish when it runs out. Leases do not survive a restart of an embedded
    /// store: their keys are then gone.
    fn lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, BackendError>>;

    /// Extends a lease to its full time to live; `false` if it ran out already.
    fn renew(&self, lease: Lease) -> BoxFuture<'_, Result<bool, BackendError>>;

    /// Every change under `prefix` after revision `after`.
    fn watch<'a>(&'a self, prefix: &'a [u8], after: Revision) -> BoxFuture<'a, Result<Watch, BackendError>>;

    /// The newest committed revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, BackendError>>;

    /// How many records are kept that a compaction would forget, about.
    fn history(&self) -> BoxFuture<'_, Result<u64, BackendError>>;

    /// The newest record and its hash: what a compaction would forget last. `None` where no history is kept.
    fn newest(&self) -> BoxFuture<'_, Result<Option<(Revision, String)>, BackendError>>;

    /// Forgets every value but the live ones: afterwards no other is in the store's files. Values and revisions stay
    /// what they are, and readers go on; `None` where no history is kept. Interrupted, it has happened or it has not.
    /// With `newest` only if that still is the newest record, else [`BackendError::Moved`].
    fn compact_at(&self, newest: Option<Revision>) -> BoxFuture<'_, Result<Option<Compacted>, BackendError>>;

    /// [`Backend::compact_at`] whatever the newest record is.
    fn compact(&self) -> BoxFuture<'_, Result<Option<Compacted>, BackendError>> {
        self.compact_at(None)
    }
}
