//! What Keyward itself holds: the certificate authorities, and the keys on instances that trust none. Each has an age, an
//! end, and a way to its successor that can be gone on from after a crash.
//!
//! Events are told before what they tell of is written, as everywhere. Nothing here is asked for by an engineer.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use keystore::signing::Signers;
use keystore::{Credential, Instance, Vault};

use super::RotationFault;
use crate::audit::Trail;

mod ca;
mod errand;
mod managed;
mod probe;
mod script;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

pub use ca::lagging;
pub use errand::Errands;
pub use managed::{Reach, Visit, VisitFault};
pub use probe::{Asked, Probe};

/// The workflows, over the store, the trail, and a way to the instances.
pub struct Custody<'a> {
    /// The store.
    pub vault: &'a Vault,
    /// The audit trail.
    pub trail: &'a Trail,
    /// The way to instances.
    pub reach: &'a dyn Reach,
}

impl Custody<'_> {
    /// Looks after what lies on instances: keys of `max_age` seconds are rotated, rotations that stopped are gone on with,
    /// and whether an announced user CA is trusted is asked. Some at a time: one that does not answer delays nobody.
    ///
    /// # Errors
    /// The store or the trail. What stands in the way on an instance is written down with its credential instead.
    pub async fn look_after(
        &self,
        signers: &Signers,
        max_age: i64,
        now: Timestamp,
    ) -> Result<(), RotationFault> {
        let (rotated, asked) =
            tokio::join!(self.rotate_due(max_age, now), self.probe(signers, Asked::Due, now));
        rotated.and(asked.map(drop))
    }

    async fn rotate_due(&self, max_age: i64, now: Timestamp) -> Result<(), RotationFault> {
        let mut due: Vec<Credential> = self.vault.list().await?;
        due.retain(|credential| {
            let waits = credential.fault.is_some()
                && credential.tried_at.is_some_and(|at| now.as_second() - at.as_second() < PAUSE);
            let due = credential.is_rotating() || credential.due_at(max_age).is_some_and(|due| due <= now);
            due && !waits
        });
        // What did not answer the last time may not do so now: the others are not kept waiting.
        due.sort_by_key(|credential| credential.fault.is_some());
        visit_all(due.into_iter().map(|credential| self.rotate_one(credential, now))).await
    }

    async fn rotate_one(&self, credential: Credential, now: Timestamp) -> Result<(), RotationFault> {
        let found = self.vault.get::<Instance>(credential.instance.as_str()).await?;
        let Some(instance) = found else { return Ok(()) };
        match self.rotate((&instance, &credential.login), BY_ITSELF, now).await {
            Ok(_) => {
                tracing::info!(instance = %instance.name, login = %credential.login, "credential.rotated")
            }
            Err(RotationFault::NotNow(why)) => tracing::warn!(%why, "credential.not_rotated"),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }
}

/// Who did what nobody asked for.
pub const BY_ITSELF: &str = "keyward";
/// Makes visits, [`AT_ONCE`] at a time, all of them; the first fault of the store or the trail.
async fn visit_all<V: Future<Output = Result<(), RotationFault>>>(
    mut visits: impl Iterator<Item = V>,
) -> Result<(), RotationFault> {
    let (mut under_way, mut failed) = (FuturesUnordered::new(), None);
    loop {
        under_way.extend(visits.by_ref().take(AT_ONCE - under_way.len()));
        match under_way.next().await {
            None => return failed.map_or(Ok(()), Err),
            Some(visited) => failed = failed.or(visited.err()),
        }
    }
}

/// How often what is due is looked for.
pub const LOOK: Duration = Duration::from_secs(60);
/// Instances that are visited at one time.
const AT_ONCE: usize = 8;
/// Seconds before what failed is tried again by itself.
const PAUSE: i64 = 3600;
