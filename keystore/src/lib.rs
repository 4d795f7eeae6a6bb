//! Keyward's vault: identities, the life of keys, sealing, signing, backends and the journal.
//!
//! Everything Keyward must remember lives behind [`Vault`]; everything Keyward signs is signed by a signer from
//! [`signing`]. No private-key byte leaves this crate but for the SSH transport's host key, which russh takes by
//! value (see [`signing::HostIdentity`]). The journal ([`journal`]) is an append-only, hash-chained file that serves
//! both the store and the audit trail.

pub mod backend;
pub mod failpoint;
pub mod journal;
pub mod lifecycle;
pub mod record;
pub mod rules;
pub mod seal;
pub mod signing;
pub mod user_ca;
mod vault;

/// SSH key types, re-exported so that rooms other than ingress and egress need not import russh.
pub mod ssh {
    pub use russh::keys::ssh_key::{Fingerprint, LineEnding, SshSig};
    pub use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

    /// Whether `text` looks like a private key, whoever's: what is said of it must not show any of it.
    pub fn looks_private(text: &str) -> bool {
        let text = text.to_ascii_uppercase();
        text.contains("PRIVATE KEY-----")
            || text.contains("AGE-SECRET-KEY-")
            || text.contains("KEYWARD-MASTER-KEY-")
    }
}

pub use record::*;
pub use rules::KeyRules;
pub use vault::{Batch, Change, Error, OpenError, Rekeyed, Successor, Vault};
