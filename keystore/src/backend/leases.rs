//! Leases of the backends that live in this process: which there are, when each ends, which keys are bound to it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Lease, Write};

#[derive(Default)]
pub(super) struct Leases {
    last: u64,
    /// Its time to live, and when it ends.
    granted: BTreeMap<u64, (Duration, Instant)>,
    bound: BTreeMap<Bytes, Lease>,
}

impl Leases {
    pub(super) fn grant(&mut self, ttl: Duration) -> Lease {
        self.last += 1;
        self.granted.insert(self.last, (ttl, Instant::now() + ttl));
        Lease(self.last)
    }

    pub(super) fn renew(&mut self, lease: Lease) -> bool {
        let now = Instant::now();
        match self.granted.get_mut(&lease.0) {
            Some((ttl, ends)) if *ends > now => {
                *ends = now + *ttl;
                true
            }
            _ => false,
        }
    }

    /// When it ends; `None` if it is gone.
    pub(super) fn ends(&self, lease: Lease) -> Option<Instant> {
        self.granted.get(&lease.0).map(|(_, ends)| *ends)
    }

    pub(super) fn alive(&self, lease: Lease) -> bool {
        self.ends(lease).is_some_and(|ends| ends > Instant::now())
    }

    /// Keeps track of what writes bind and unbind.
    pub(super) fn note(&mut self, write: &Write) {
        match write {
            Write::PutLeased(key, _, lease) => drop(self.bound.insert(key.clone(), *lease)),
            Write::Put(key, _) | Write::Delete(key) => drop(self.bound.remove(key)),
        }
    }

    /// Whether `key` goes with a lease.
    pub(super) fn binds(&self, key: &Bytes) -> bool {
        self.bound.contains_key(key)
    }

    /// Ends a lease that ran out, and says which keys go with it.
    pub(super) fn expire(&mut self, lease: Lease) -> Vec<Write> {
        if self.alive(lease) {
            return Vec::new();
        }
        self.granted.remove(&lease.0);
        let keys = self.bound.iter().filter(|(_, bound)| **bound == lease).map(|(key, _)| key);
        keys.cloned().map(Write::Delete).collect()
    }
}

/// Waits until a lease has ended for good. `ends` says when it will, or that who kept it is gone.
pub(super) async fn run_out(ends: impl Fn() -> Option<Instant>) {
    while let Some(at) = ends().filter(|at| *at > Instant::now()) {
        tokio::time::sleep_until(at).await;
    }
}
