//! Signing: the user CA, the host CA, the host key and the audit key.
//!
//! Their private keys are Ed25519 seeds, sealed in the vault as records of kind `secret`; callers get signers, never
//! bytes. The one exception is [`HostIdentity::russh_key`]: russh signs the key exchange itself and takes the key by
//! value. Which public keys of users are accepted at all is decided here too ([`parse_user_key`]).

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use russh::keys::PrivateKey;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::record::{Login, Record};
use crate::seal::LineKey;
use crate::ssh::{Certificate, HashAlg, LineEnding, PublicKey};
use crate::vault::{self, Batch, Vault};

mod authority;
mod held;
mod user_key;

pub use authority::{Authorities, announcement, retirement};
pub use held::InstanceKey;
pub use user_key::{GivenKey, KeyFault, parse_user_key};

/// Everything that Keyward signs with.
pub struct Signers {
    authorities: RwLock<Arc<Authorities>>,
    /// The bastion's own host key.
    pub host: HostIdentity,
    /// Signs the checkpoints of the audit trail.
    pub audit: AuditSigner,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The vault did not give or take a key.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The vault has no such signing key.
    #[error("the store has no {0} key; it was not initialised to the end")]
    Missing(&'static str),
    /// A certificate was asked for that this CA does not give.
    #[error("no certificate: {0}")]
    Terms(&'static str),
    /// The SSH library refused.
    #[error("signing failed: {0}")]
    Ssh(#[from] russh::keys::ssh_key::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(String),
}

impl Signers {
    /// Makes and stores all signing keys, all or none.
    ///
    /// # Errors
    /// [`SigningError::Vault`] with [`vault::Error::Exists`] if the store has signing keys.
    pub async fn create(vault: &Vault) -> Result<Self, SigningError> {
        let mut batch = Batch::default();
        for name in NAMES {
            batch = batch.insert(&Secret::fresh(name.to_owned())?)?;
        }
        vault.commit(batch).await?;
        Self::load(vault).await
    }

    /// The signing keys of an initialised store.
    ///
    /// # Errors
    /// [`SigningError::Missing`] if one is not there: none is ever made in its place.
    pub async fn load(vault: &Vault) -> Result<Self, SigningError> {
        Ok(Self {
            authorities: RwLock::new(Arc::new(Authorities::load(vault).await?)),
            host: HostIdentity { key: stored(vault, HOST).await?.into() },
            audit: AuditSigner { key: stored(vault, AUDIT).await?.into() },
        })
    }

    /// The certificate authorities of now.
    pub fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the authorities as they are stored now: one was announced, or has retired.
    ///
    /// # Errors
    /// [`SigningError`]; those of before stay.
    pub async fn reload(&self, vault: &Vault) -> Result<(), SigningError> {
        let loaded = Arc::new(Authorities::load(vault).await?);
        *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }
}

/// What a login certificate says.
#[derive(Debug, Clone)]
pub struct CertTerms {
    /// The account, and the certificate's only principal.
    pub login: Login,
    /// Who and which session, for the instance's own log.
    pub key_id: String,
    /// `permit-pty`, `permit-port-forwarding`, …; only what was granted.
    pub extensions: Vec<&'static str>,
    /// The whole length of its life in seconds, 10 to 300. A fifth of it lies before `now`, for clocks that differ.
    pub lifetime_secs: u64,
    /// The only addresses it is valid from: a list of CIDR, `source-address` in ssh-keygen(1).
    pub source_address: Option<String>,
}

/// The CA that instances trust for logins (`TrustedUserCAKeys`).
pub struct UserCa {
    key: PrivateKey,
}

impl UserCa {
    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// A fresh key with a certificate for it.
    ///
    /// # Errors
    /// [`SigningError::Terms`] if the life asked for is not 10 to 300 seconds.
    pub fn issue(&self, terms: CertTerms, now: Timestamp) -> Result<InstanceCredential, SigningError> {
        if !(10..=300).contains(&terms.lifetime_secs) {
            return Err(SigningError::Terms("a login certificate lives 10 to 300 seconds"));
        }
        let subject = fresh_key()?;
        let after = seconds(now)?.saturating_sub(terms.lifetime_secs / 5);
        let mut builder = builder(&subject, after, after + terms.lifetime_secs)?;
        builder.cert_type(CertType::User)?;
        builder.key_id(terms.key_id)?;
        builder.valid_principal(terms.login.as_str())?;
        for extension in terms.extensions.into_iter().collect::<BTreeSet<_>>() {
            builder.extension(extension, "")?;
        }
        if let Some(source) = terms.source_address {
            builder.critical_option("source-address", source)?;
        }
        let certificate = builder.sign(&self.key)?;
        Ok(InstanceCredential { key: subject, certificate })
    }
}

/// An ephemeral key and its certificate: what the bastion logs in to one instance with, once.
pub struct InstanceCredential {
    key: PrivateKey,
    certificate: Certificate,
}

impl InstanceCredential {
    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Signs `data` as the certified key. Returns the SSH signature: algorithm and signature, each as a string
    /// (RFC 8709 §6), without a length around the two.
    ///
    /// # Errors
    /// [`SigningError::Ssh`].
    pub fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SigningError> {
        wire_signature(&self.key, data)
    }
}

/// The CA that clients trust for instances (`@cert-authority`).
pub struct HostCa {
    key: PrivateKey,
}

impl HostCa {
    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// A host certificate for `principals`, valid from five minutes ago for 24 hours.
    ///
    /// # Errors
    /// [`SigningError::Terms`] without principals: such a certificate would be valid for every host.
    pub fn certify(
        &self,
        principals: &[String],
        host: &HostIdentity,
        now: Timestamp,
    ) -> Result<Certificate, SigningError> {
        if principals.is_empty() || principals.iter().any(String::is_empty) {
            return Err(SigningError::Terms("a host certificate needs the names it is for"));
        }
        let after = seconds(now)?.saturating_sub(300);
        let mut builder = builder(&host.key, after, after + 86_400)?;
        builder.cert_type(CertType::Host)?;
        builder.key_id(format!("keyward for {}", principals.join(",")))?;
        for principal in principals.iter().collect::<BTreeSet<_>>() {
            builder.valid_principal(principal.as_str())?;
        }
        Ok(builder.sign(&self.key)?)
    }
}

/// The bastion's host key. Clones share it.
#[derive(Clone)]
pub struct HostIdentity {
    key: Arc<PrivateKey>,
}

impl HostIdentity {
    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// The key itself, for the SSH transport: the one private key that leaves this crate, because russh signs the
    /// key exchange itself.
    pub fn russh_key(&self) -> PrivateKey {
        (*self.key).clone()
    }
}

/// The key that vouches for the audit trail. Clones share it.
#[derive(Clone)]
pub struct AuditSigner {
    key: Arc<PrivateKey>,
}

impl AuditSigner {
    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// What marks the lines of the trail: made of this key, so that it stays when the master key changes.
    ///
    /// # Errors
    /// [`SigningError::Terms`] if this is no Ed25519 key.
    pub fn line_key(&self) -> Result<LineKey, SigningError> {
        let pair = self.key.key_data().ed25519();
        let pair = pair.ok_or(SigningError::Terms("the audit key is not an Ed25519 key"))?;
        Ok(LineKey::of_the_trail(pair.private.as_ref()))
    }

    /// An SSHSIG of `message` in PEM, as `ssh-keygen -Y verify` reads it (OpenSSH PROTOCOL.sshsig), SHA-512.
    ///
    /// # Errors
    /// [`SigningError::Ssh`], also for an empty `namespace`.
    pub fn sshsig(&self, namespace: &str, message: &[u8]) -> Result<String, SigningError> {
        Ok(self.key.sign(namespace, HashAlg::Sha512, message)?.to_pem(LineEnding::LF)?)
    }
}

const USER_CA: &str = "user-ca";
const HOST_CA: &str = "host-ca";
const HOST: &str = "host";
const AUDIT: &str = "audit";
const NAMES: [&str; 4] = [USER_CA, HOST_CA, HOST, AUDIT];

#[derive(Serialize, Deserialize)]
struct Secret {
    name: String,
    seed: [u8; 32],
}

impl Secret {
    fn fresh(name: String) -> Result<Self, SigningError> {
        let mut secret = Self { name, seed: [0; 32] };
        fill(&mut secret.seed)?;
        Ok(secret)
    }

    fn key(&self) -> Result<PrivateKey, SigningError> {
        let pair = Ed25519Keypair::from_seed(&self.seed);
        Ok(PrivateKey::new(pair.into(), format!("keyward-{}", self.name))?)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.seed);
    }
}

impl Record for Secret {
    const KIND: &'static str = "secret";
    fn record_id(&self) -> String {
        self.name.clone()
    }
}

async fn stored(vault: &Vault, name: &'static str) -> Result<PrivateKey, SigningError> {
    stored_if_any(vault, name).await?.ok_or(SigningError::Missing(name))
}

async fn stored_if_any(vault: &Vault, name: &str) -> Result<Option<PrivateKey>, SigningError> {
    vault.get::<Secret>(name).await?.map(|secret| secret.key()).transpose()
}

fn wire_signature(key: &PrivateKey, data: &[u8]) -> Result<Vec<u8>, SigningError> {
    let failed = |_| SigningError::Ssh(russh::keys::ssh_key::Error::Crypto);
    let signature = key.try_sign(data).map_err(failed)?;
    signature.encode_vec().map_err(|e| SigningError::Ssh(e.into()))
}

fn fresh_key() -> Result<PrivateKey, SigningError> {
    let mut seed = Zeroizing::new([0; 32]);
    fill(seed.as_mut_slice())?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

fn builder(subject: &PrivateKey, after: u64, before: u64) -> Result<Builder, SigningError> {
    let mut nonce = vec![0; Builder::RECOMMENDED_NONCE_SIZE];
    fill(&mut nonce)?;
    let mut serial = [0; 8];
    fill(&mut serial)?;
    let mut builder = Builder::new(nonce, subject.public_key(), after, before)?;
    builder.serial(u64::from_be_bytes(serial))?;
    Ok(builder)
}

fn fill(bytes: &mut [u8]) -> Result<(), SigningError> {
    use rand::TryRng as _;
    rand::rngs::SysRng.try_fill_bytes(bytes).map_err(|e| SigningError::Random(e.to_string()))
}

fn seconds(now: Timestamp) -> Result<u64, SigningError> {
    u64::try_from(now.as_second()).map_err(|_| SigningError::Terms("the clock stands before 1970"))
}

#[cfg(test)]
mod tests;
