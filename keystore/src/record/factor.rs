//! Second factors, what is remembered of them, and the codes with which people enrol.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Record, UserName};

/// A user's TOTP secret and what has been spent of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondFactor {
    /// Whose it is.
    pub user: UserName,
    /// The shared secret, raw bytes (RFC 4226 §4 R6: at least 128 bit). Sealed on disk as part of the record.
    pub secret: Vec<u8>,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// The last time step (Unix time / 30 s) whose code was accepted; that step and all before it are spent.
    pub spent_step: Option<u64>,
    /// SHA-256 of each recovery code not spent yet.
    pub recovery: Vec<[u8; 32]>,
    /// Wrong codes since the last accepted one.
    pub failures: u32,
    /// When the last wrong code came.
    pub failed_at: Option<Timestamp>,
    /// No login was completed with one of its codes yet.
    #[serde(default)]
    pub pending: bool,
    /// The one that takes its place once a login was completed with one of its codes.
    #[serde(default)]
    pub next: Option<Box<NextFactor>>,
    /// How far the authenticator's clock was off when last seen, in seconds; ahead is positive. `None`: not to speak of.
    #[serde(default)]
    pub drift: Option<i64>,
}

/// A second factor that waits for its first code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextFactor {
    /// As [`SecondFactor::secret`].
    pub secret: Vec<u8>,
    /// As [`SecondFactor::enrolled_at`].
    pub enrolled_at: Timestamp,
    /// As [`SecondFactor::spent_step`].
    pub spent_step: Option<u64>,
    /// As [`SecondFactor::recovery`]; they count once it does.
    pub recovery: Vec<[u8; 32]>,
}

impl SecondFactor {
    /// Where it stands, in a word: `pending`, `enrolled`, or `replacing` while the next one waits.
    pub fn standing(&self) -> &'static str {
        match (self.pending, &self.next) {
            (true, _) => "pending",
            (false, Some(_)) => "replacing",
            (false, None) => "enrolled",
        }
    }
}

impl Drop for NextFactor {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl Record for SecondFactor {
    const KIND: &'static str = "mfa";
    fn record_id(&self) -> String {
        self.user.to_string()
    }
}

impl fmt::Debug for SecondFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondFactor").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Drop for SecondFactor {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

/// That a second factor was given with a key from an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Whose second factor.
    pub user: UserName,
    /// Fingerprint of the key, `SHA256:…`.
    pub key: String,
    /// The address, canonical.
    pub source: IpAddr,
    /// When it was given.
    pub at: Timestamp,
    /// [`SecondFactor::enrolled_at`] of the factor that was given: a new one is another.
    pub enrolled_at: Timestamp,
}

impl Remembered {
    /// The id under which a memory is filed.
    pub fn id_of(key: &str, source: IpAddr) -> String {
        format!("{key}@{}", source.to_canonical())
    }
}

impl Record for Remembered {
    const KIND: &'static str = "remembered";
    fn record_id(&self) -> String {
        Self::id_of(&self.key, self.source)
    }
}

/// A one-time code with which a user enrols a key and a second factor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Who is invited.
    pub user: UserName,
    /// SHA-256 of the code.
    pub code: [u8; 32],
    /// When it was given.
    pub made_at: Timestamp,
    /// It means nothing after this.
    pub expires_at: Timestamp,
    /// Set once used.
    pub spent_at: Option<Timestamp>,
}

impl Record for Invitation {
    const KIND: &'static str = "invitation";
    fn record_id(&self) -> String {
        self.user.to_string()
    }
}
