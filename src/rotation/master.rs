//! The master key's way to its successor: told, every value sealed anew, the store's history forgotten, told again.
//!
//! What a crash leaves is finished at the next start, under the new key. The steps themselves are the vault's.

use jiff::Timestamp;
use keystore::{Rekeyed, Successor, Vault};

use super::RotationFault;
use crate::audit::{Event, Trail};

/// Seals the store under another master key, while it serves. When this returns, no value that the old one opens is in
/// the store's files.
///
/// # Errors
/// The store or the trail. [`finish_rekeying`] goes on with what was begun, if [`Vault::rekeyed`] says that something was.
pub async fn rekey(
    vault: &Vault,
    trail: &Trail,
    to: Successor,
    now: Timestamp,
) -> Result<Option<Rekeyed>, RotationFault> {
    // One that a fault kept from its end is told before the next.
    finish_rekeying(vault, trail, now).await?;
    let (from, by) = (vault.master_key_id(), to.by.clone());
    trail.append(Event::MasterKeyRotationBegun { by, from, to: to.key.id() }, now).await?;
    vault.rekey(to, now).await?;
    finish_rekeying(vault, trail, now).await
}

/// Brings a change of the master key to its end, if one was begun and is not there yet.
///
/// # Errors
/// The store or the trail; it can be tried again.
pub async fn finish_rekeying(
    vault: &Vault,
    trail: &Trail,
    now: Timestamp,
) -> Result<Option<Rekeyed>, RotationFault> {
    let Some(done) = vault.rekeyed().await? else { return Ok(None) };
    compact(vault, trail, "what the old master key opens is forgotten", now).await?;
    let Rekeyed { from, to, records, by, .. } = done.clone();
    trail.append(Event::MasterKeyRotated { by, from, to, records }, now).await?;
    keystore::failpoint::reach("rekey.told");
    vault.rekeying_done().await?;
    Ok(Some(done))
}

/// Forgets the store's history, and tells where its journal's chain goes on.
///
/// # Errors
/// The store or the trail.
pub async fn compact(
    vault: &Vault,
    trail: &Trail,
    reason: &str,
    now: Timestamp,
) -> Result<(), RotationFault> {
    if let Some(done) = vault.compact().await? {
        let (through, head, reason) = (done.through, done.head, reason.to_owned());
        trail.append(Event::StoreCompacted { through, head, reason }, now).await?;
    }
    Ok(())
}
