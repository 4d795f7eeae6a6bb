//! What Keyward itself holds: the certificate authorities, and the keys on instances that trust none. Each has an age, an
//! end, and a way to its successor that can be gone on from after a crash.
//!
//! Events are told before what they tell of is written, as everywhere. Nothing here is asked for by an engineer.

use std::time::Duration;

use jiff::Timestamp;
use keystore::signing::Signers;
use keystore::{Credential, Instance, Vault};

use super::RotationFault;
use crate::audit::Trail;

mod ca;
mod errand;
mod managed;
mod script;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

pub use ca::lagging;
pub use errand::Errands;
pub use managed::{Reach, Visit, VisitFault};

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
    /// Takes what is due at `now`: CAs retire, keys of `max_age` seconds are rotated, rotations that stopped are gone on with.
    ///
    /// # Errors
    /// The store or the trail. What stands in the way on an instance is written down with its credential instead.
    pub async fn settle(&self, signers: &Signers, max_age: i64, now: Timestamp) -> Result<(), RotationFault> {
        self.retire_due(signers, now).await?;
        for credential in self.vault.list::<Credential>().await? {
            let waits = credential.fault.is_some()
                && credential.tried_at.is_some_and(|at| now.as_second() - at.as_second() < PAUSE);
            let due = credential.is_rotating() || credential.due_at(max_age).is_some_and(|due| due <= now);
            if !due || waits {
                continue;
            }
            let Some(instance) = self.vault.get::<Instance>(credential.instance.as_str()).await? else {
                continue;
            };
            match self.rotate((&instance, &credential.login), BY_ITSELF, now).await {
                Ok(_) => {
                    tracing::info!(instance = %instance.name, login = %credential.login, "credential.rotated")
                }
                Err(RotationFault::NotNow(why)) => tracing::warn!(%why, "credential.not_rotated"),
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }
}

/// Who did what nobody asked for.
pub const BY_ITSELF: &str = "keyward";
/// How often what is due is looked for.
pub const LOOK: Duration = Duration::from_secs(60);
/// Seconds before a rotation that failed is tried again by itself.
const PAUSE: i64 = 3600;
