//! A store in memory, for tests: gone with the process, otherwise as the trait says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};

use super::leases::{Leases, run_out};
use super::watchers::Watchers;
use super::{
    Backend, BackendError, Changed, Compacted, Guard, Lease, Outcome, Revision, Transaction, Versioned,
    Watch, Write,
};

/// A store in memory.
#[derive(Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Bytes, Versioned>,
    revision: Revision,
    watchers: Watchers,
    leases: Leases,
}

impl State {
    fn transact(&mut self, transaction: Transaction) -> Outcome {
        let holds = transaction.guards.iter().all(|guard| match guard {
            Guard::Absent(key) => !self.rows.contains_key(key),
            Guard::Unchanged(key, revision) => self.rows.get(key).is_some_and(|r| r.revision == *revision),
        });
        let leased = transaction.writes.iter().all(|write| match write {
            Write::PutLeased(_, _, lease) => self.leases.alive(*lease),
            _ => true,
        });
        if !holds || !leased {
            return Outcome::Conflict;
        }
        self.revision += 1;
        let revision = self.revision;
        let mut changes = Vec::new();
        for write in transaction.writes {
            self.leases.note(&write);
            match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => {
                    self.rows.insert(key.clone(), Versioned { value: value.clone(), revision });
                    changes.push(Changed { key, value: Some(value), revision });
                }
                Write::Delete(key) => {
                    if self.rows.remove(&key).is_some() {
                        changes.push(Changed { key, value: None, revision });
                    }
                }
            }
        }
        self.watchers.announce(changes);
        Outcome::Committed(revision)
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

impl Backend for Memory {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Versioned>, BackendError>> {
        ready(Ok(self.state().rows.get(key).cloned())).boxed()
    }

    fn range<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<(Bytes, Versioned)>, BackendError>> {
        let state = self.state();
        let from = state.rows.range(Bytes::copy_from_slice(prefix)..);
        let found = from.take_while(|(key, _)| key.starts_with(prefix));
        ready(Ok(found.map(|(key, row)| (key.clone(), row.clone())).collect())).boxed()
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, BackendError>> {
        async { Ok(self.state().transact(transaction)) }.boxed()
    }

    fn lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, BackendError>> {
        async move {
            let lease = self.state().leases.grant(ttl);
            let state = Arc::downgrade(&self.state);
            tokio::spawn(async move {
                run_out(|| state.upgrade().and_then(|s| locked(&s).leases.ends(lease))).await;
                if let Some(state) = state.upgrade() {
                    let mut state = locked(&state);
                    let writes = state.leases.expire(lease);
                    if !writes.is_empty() {
                        state.transact(Transaction { guards: Vec::new(), writes });
                    }
                }
            });
            Ok(lease)
        }
        .boxed()
    }

    fn renew(&self, lease: Lease) -> BoxFuture<'_, Result<bool, BackendError>> {
        async move { Ok(self.state().leases.renew(lease)) }.boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a [u8], after: Revision) -> BoxFuture<'a, Result<Watch, BackendError>> {
        async move { self.state().watchers.watch(prefix, after) }.boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, BackendError>> {
        async { Ok(self.state().revision) }.boxed()
    }

    fn history(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        ready(Ok(0)).boxed()
    }

    fn newest(&self) -> BoxFuture<'_, Result<Option<(Revision, String)>, BackendError>> {
        async { Ok(None) }.boxed()
    }

    fn compact_at(&self, _: Option<Revision>) -> BoxFuture<'_, Result<Option<Compacted>, BackendError>> {
        ready(Ok(None)).boxed()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
