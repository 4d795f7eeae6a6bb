//! What is remembered of the credentials that Keyward itself holds: keys on instances, and the change of a CA.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{InstanceName, Login, Record};

/// How Keyward signs in to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum SignsIn {
    /// With a certificate of minutes, by its user CA.
    #[default]
    Certificate,
    /// With a key that it holds and rotates: for instances that cannot trust a CA.
    Managed,
}

/// A key that Keyward holds; its private part is the vault's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    /// One line, OpenSSH format, without comment.
    pub public_key: String,
    /// `SHA256:…`.
    pub fingerprint: String,
    /// When it was made.
    pub made_at: Timestamp,
}

/// The key that Keyward signs in with to one account on one instance, and how far its rotation is. In this order:
/// `next` is made, put there (`installed`), proven by a login and takes the place of `key`, which becomes `old`; `old` is
/// removed there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The instance.
    pub instance: InstanceName,
    /// The account.
    pub login: Login,
    /// Signs in.
    pub key: HeldKey,
    /// When the instance first accepted `key`; until then it has to be installed by hand.
    pub proven_at: Option<Timestamp>,
    /// The successor, once it is made.
    pub next: Option<HeldKey>,
    /// `next` was put on the instance.
    pub installed: bool,
    /// Replaced, but perhaps still accepted by the instance.
    pub old: Option<HeldKey>,
    /// The last attempt to rotate.
    pub tried_at: Option<Timestamp>,
    /// Why it went no further, in words.
    pub fault: Option<String>,
}

impl Record for Credential {
    const KIND: &'static str = "credential";
    fn record_id(&self) -> String {
        Self::id_of(&self.instance, &self.login)
    }
}

impl Credential {
    /// The id of the credential for an account.
    pub fn id_of(instance: &InstanceName, login: &Login) -> String {
        format!("{instance}/{login}")
    }

    /// A rotation was begun and is not at its end.
    pub fn is_rotating(&self) -> bool {
        self.next.is_some() || self.old.is_some()
    }

    /// When its rotation is due, at an age of `max_age` seconds; `None` while it waits to be installed.
    pub fn due_at(&self, max_age: i64) -> Option<Timestamp> {
        self.proven_at?;
        Some(
            Timestamp::from_second(self.key.made_at.as_second().saturating_add(max_age))
                .unwrap_or(Timestamp::MAX),
        )
    }
}

/// Which certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaKind {
    /// Signs logins on instances.
    User,
    /// Signs host keys shown to clients.
    Host,
}

impl CaKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::User, Self::Host];

    /// `user` or `host`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for CaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an instance answered when it was asked whether it trusts the announced user CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaProbe {
    /// The instance.
    pub instance: InstanceName,
    /// Fingerprint of the CA.
    pub ca: String,
    /// When it was asked last.
    pub asked_at: Timestamp,
    /// Why it does not, or why that is not known; none if it does.
    pub fault: Option<String>,
}

impl Record for CaProbe {
    const KIND: &'static str = "ca-probe";
    fn record_id(&self) -> String {
        self.instance.to_string()
    }
}

/// A CA has a successor that is announced, and has not retired yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// Which one.
    pub which: CaKind,
    /// Fingerprint of the CA before.
    pub from: String,
    /// Fingerprint of its successor.
    pub to: String,
    /// When it was announced.
    pub begun_at: Timestamp,
    /// When the one before retires.
    pub ends_at: Timestamp,
    /// Who wanted it.
    pub by: String,
}

impl Record for CaRotation {
    const KIND: &'static str = "ca-rotation";
    fn record_id(&self) -> String {
        self.which.to_string()
    }
}

/// The user CA whose certificate an instance accepted last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The instance.
    pub instance: InstanceName,
    /// Fingerprint of the CA.
    pub ca: String,
    /// When it first did.
    pub since: Timestamp,
}

impl Record for Accepted {
    const KIND: &'static str = "ca-accepted";
    fn record_id(&self) -> String {
        self.instance.to_string()
    }
}
