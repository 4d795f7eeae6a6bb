//! The certificate authorities, each with its successor while there is one.
//!
//! A successor is announced, both are trusted for a while, then it takes the place of the one before, whose private key
//! is forgotten. Each of the two steps is one transaction.

use jiff::Timestamp;

use super::{HOST_CA, HostCa, Secret, SigningError, USER_CA, UserCa, stored, stored_if_any};
use crate::record::{CaKind, CaRotation, UserKey};
use crate::ssh::PublicKey;
use crate::vault::{Batch, Vault};

/// The authorities of now.
pub struct Authorities {
    /// Signs the certificates that the bastion logs in to instances with.
    pub user_ca: UserCa,
    /// Its successor.
    pub next_user_ca: Option<UserCa>,
    /// Signs the certificates that the bastion answers for instances with.
    pub host_ca: HostCa,
    /// Its successor: announced, but signs nothing before it is its turn.
    pub next_host_ca: Option<HostCa>,
}

impl Authorities {
    pub(super) async fn load(vault: &Vault) -> Result<Self, SigningError> {
        let next_user_ca = stored_if_any(vault, next_name(CaKind::User)).await?;
        let next_host_ca = stored_if_any(vault, next_name(CaKind::Host)).await?;
        Ok(Self {
            user_ca: UserCa { key: stored(vault, USER_CA).await? },
            next_user_ca: next_user_ca.map(|key| UserCa { key }),
            host_ca: HostCa { key: stored(vault, HOST_CA).await? },
            next_host_ca: next_host_ca.map(|key| HostCa { key }),
        })
    }

    /// The public keys to trust: the one of now, and its successor.
    pub fn trusted(&self, which: CaKind) -> Vec<&PublicKey> {
        let (current, next) = match which {
            CaKind::User => (self.user_ca.public_key(), self.next_user_ca.as_ref().map(UserCa::public_key)),
            CaKind::Host => (self.host_ca.public_key(), self.next_host_ca.as_ref().map(HostCa::public_key)),
        };
        [current].into_iter().chain(next).collect()
    }
}

/// The announcement of a CA's successor: commit the batch to make it. Refused while there is one already.
///
/// # Errors
/// [`SigningError`]; nothing has changed.
pub async fn announcement(
    vault: &Vault,
    which: CaKind,
    (by, begun_at, ends_at): (String, Timestamp, Timestamp),
) -> Result<(CaRotation, Batch), SigningError> {
    let from = UserKey::fingerprint_of(stored(vault, name(which)).await?.public_key());
    let secret = Secret::fresh(next_name(which).to_owned())?;
    let to = UserKey::fingerprint_of(secret.key()?.public_key());
    let rotation = CaRotation { which, from, to, begun_at, ends_at, by };
    let batch = Batch::default().insert(&secret)?.insert(&rotation)?;
    Ok((rotation, batch))
}

/// The end of a CA whose successor was announced: commit the batch, and the successor is the CA.
///
/// # Errors
/// [`SigningError::Missing`] if none was announced; nothing has changed.
pub async fn retirement(vault: &Vault, which: CaKind) -> Result<(CaRotation, Batch), SigningError> {
    let rotation = vault.get::<CaRotation>(which.as_str()).await?;
    let rotation = rotation.ok_or(SigningError::Missing("announced CA"))?;
    let next = vault.get::<Secret>(next_name(which)).await?.ok_or(SigningError::Missing("announced CA"))?;
    let current = Secret { name: name(which).to_owned(), seed: next.seed };
    let batch = Batch::default().put(&current)?;
    let batch = batch.remove::<Secret>(next_name(which)).remove::<CaRotation>(which.as_str());
    Ok((rotation, batch))
}

fn name(which: CaKind) -> &'static str {
    match which {
        CaKind::User => USER_CA,
        CaKind::Host => HOST_CA,
    }
}

fn next_name(which: CaKind) -> &'static str {
    match which {
        CaKind::User => "user-ca-next",
        CaKind::Host => "host-ca-next",
    }
}
