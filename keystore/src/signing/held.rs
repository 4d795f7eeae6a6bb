//! Keys that Keyward holds for accounts on instances that trust no CA.

use jiff::Timestamp;
use russh::keys::PrivateKey;

use super::{Secret, SigningError, stored_if_any, wire_signature};
use crate::record::{HeldKey, UserKey};
use crate::ssh::PublicKey;
use crate::vault::{Batch, Vault};

/// A key that signs in to an account.
pub struct InstanceKey {
    key: PrivateKey,
}

impl InstanceKey {
    /// Makes a key; it is there once `batch` is committed.
    ///
    /// # Errors
    /// [`SigningError`].
    pub fn make(batch: Batch, now: Timestamp) -> Result<(HeldKey, Batch), SigningError> {
        let mut secret = Secret::fresh(String::new())?;
        let public = secret.key()?.public_key().clone();
        let fingerprint = UserKey::fingerprint_of(&public);
        secret.name = name(&fingerprint);
        let line = public.to_openssh()?;
        let public_key = line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Ok((HeldKey { public_key, fingerprint, made_at: now }, batch.insert(&secret)?))
    }

    /// The key that `held` tells of.
    ///
    /// # Errors
    /// [`SigningError::Missing`] if the vault does not have it.
    pub async fn load(vault: &Vault, held: &HeldKey) -> Result<Self, SigningError> {
        let key = stored_if_any(vault, &name(&held.fingerprint)).await?;
        Ok(Self { key: key.ok_or(SigningError::Missing("instance"))? })
    }

    /// Forgets a key; it is gone once `batch` is committed.
    #[must_use]
    pub fn forget(batch: Batch, held: &HeldKey) -> Batch {
        batch.remove::<Secret>(&name(&held.fingerprint))
    }

    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// Signs `data`: algorithm and signature, each as a string (RFC 8709 §6), without a length around the two.
    ///
    /// # Errors
    /// [`SigningError::Ssh`].
    pub fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SigningError> {
        wire_signature(&self.key, data)
    }
}

fn name(fingerprint: &str) -> String {
    format!("instance {fingerprint}")
}
