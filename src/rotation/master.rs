//! The master key's way to its successor: told, every value sealed anew, the store's history forgotten, told again.
//!
//! What a crash leaves is finished at the next start, under the new key. The steps themselves are the vault's.

use jiff::Timestamp;
use keystore::backend::BackendError;
use keystore::{Rekeyed, Successor, Vault};

use super::RotationFault;
use crate::audit::{Event, Trail};

/// Seals the store under another master key, while it serves. When this returns, no value that the old one opens is in
/// the store's files. `so_far` hears how much of how much is done.
///
/// # Errors
/// The store or the trail. [`finish_rekeying`] goes on with what was begun, if [`Vault::rekeyed`] says that something was.
pub async fn rekey(
    vault: &Vault,
    trail: &Trail,
    to: Successor,
    (now, so_far): (Timestamp, &(dyn Fn(u64, u64) + Send + Sync)),
) -> Result<Option<Rekeyed>, RotationFault> {
    // One that a fault kept from its end is told before the next.
    finish_rekeying(vault, trail, now).await?;
    let (from, by) = (vault.master_key_id(), to.by.clone());
    trail.append(Event::MasterKeyRotationBegun { by, from, to: to.key.id() }, now).await?;
    // To seal them is about half of it; then they are written twice.
    vault.rekey_counting(to, now, &|done, all| so_far(done, 2 * all)).await?;
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

/// Tells where the chain of the store's journal will go on, then forgets the store's history. The event first: of a
/// compaction that nobody told of, a start and every verification would say that the store was replaced.
///
/// # Errors
/// The store or the trail.
pub async fn compact(
    vault: &Vault,
    trail: &Trail,
    reason: &str,
    now: Timestamp,
) -> Result<(), RotationFault> {
    let mut tries = 0;
    while let Some((through, head)) = vault.newest().await? {
        let event = Event::StoreCompacted { through, head, reason: reason.to_owned() };
        let compacted = async {
            // Who verifies a copy believes of this only what is signed.
            trail.checkpoint(now).await?;
            Ok(vault.compact_at(through).await?)
        };
        match trail.ahead_of(vec![event], now, compacted).await {
            // Somebody wrote in between; then it goes on from another record.
            Err(RotationFault::Store(keystore::Error::Backend(BackendError::Moved)))
                if tries < MOST_TRIES =>
            {
                tries += 1;
            }
            done => return done.map(drop),
        }
    }
    Ok(())
}

/// A store that is written to at each of so many looks is compacted another time.
const MOST_TRIES: u32 = 20;
