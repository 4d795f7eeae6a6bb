//! What the vault remembers: users, their keys and second factors, instances, access rules.
//!
//! Names are parsed once, here, and carried as types from then on. Records are plain data: what may happen to them
//! is decided by the rooms above (`auth`, `policy`, `rotation`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ssh::{HashAlg, PublicKey};

mod factor;
mod held;

pub use held::{Accepted, CaKind, CaProbe, CaRotation, Credential, HeldKey, SignsIn};

pub use factor::{Invitation, NextFactor, Remembered, SecondFactor};

/// A record kept in the vault under `KIND/id`.
pub trait Record: Serialize + serde::de::DeserializeOwned + Send + Sync + 'static {
    /// The first part of its name in the store; also the `kind` of its [`Change`](crate::Change) notices.
    const KIND: &'static str;
    /// Its identity within `KIND`; never changes during its life.
    fn record_id(&self) -> String;
}

/// A name that does not have the form its kind asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[error("{what} {given:?} is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    given: String,
    rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(given: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(given) {
                    Ok(Self(given.to_owned()))
                } else {
                    let given = given.chars().take(64).collect();
                    Err(InvalidName { what: $what, given, rule: $rule })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(given: String) -> Result<Self, InvalidName> {
                given.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A person or service known to the bastion: the user name before `@bastion`.
    UserName,
    "user name",
    "use 1 to 32 of a-z 0-9 . _ -, starting with a letter or _",
    |s| s.len() <= 32
        && s.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
);
name_type!(
    /// A private instance's name, as typed after `-J`: a lower-case host name (RFC 1123 §2.1).
    InstanceName,
    "instance name",
    "use 1 to 63 of a-z 0-9 . -, starting and ending with a letter or digit",
    |s| (1..=63).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b))
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.ends_with(|c: char| c.is_ascii_alphanumeric())
);
name_type!(
    /// A role: `engineer`, `admin` and `auditor` are built in, others are free names for rules.
    Role,
    "role",
    "use 1 to 32 of a-z 0-9 _ -, starting with a letter",
    |s| s.len() <= 32
        && s.starts_with(|c: char| c.is_ascii_lowercase())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
);
name_type!(
    /// An account on an instance: the user name before `@db-1`.
    Login,
    "login",
    "use 1 to 32 of A-Z a-z 0-9 . _ - $, not starting with -",
    |s| (1..=32).contains(&s.len())
        && !s.starts_with('-')
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-$".contains(&b))
);

/// A human, or a program that acts unattended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum UserKind {
    /// Logs in with key and code.
    #[default]
    Human,
    /// Logs in with a key alone, from listed networks.
    Service,
}

/// Since when, and why, something no longer works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The moment it ended.
    pub at: Timestamp,
    /// The words of who ended it.
    pub reason: String,
}

/// Who may log in to the bastion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name before `@bastion`.
    pub name: UserName,
    /// What rules and administration grant by.
    pub roles: BTreeSet<Role>,
    /// Human or service.
    pub kind: UserKind,
    /// When the user was added.
    pub added_at: Timestamp,
    /// After this the user cannot log in, and live sessions end.
    pub expires_at: Option<Timestamp>,
    /// Set while the user is suspended.
    pub suspended: Option<Ended>,
    /// The networks the user may come from; empty means any for a human, none for a service.
    #[serde(default)]
    pub from: Vec<IpNet>,
}

impl Record for User {
    const KIND: &'static str = "user";
    fn record_id(&self) -> String {
        self.name.to_string()
    }
}

impl User {
    /// Whether the user has `role`.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r.as_str() == role)
    }

    /// Whether the user may come from `source`.
    pub fn comes_from(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        (self.kind == UserKind::Human && self.from.is_empty())
            || self.from.iter().any(|net| net.contains(&source))
    }

    /// Why the user cannot log in at `now`, if so.
    pub fn barred(&self, now: Timestamp) -> Option<&'static str> {
        if self.suspended.is_some() {
            Some("user suspended")
        } else if self.expires_at.is_some_and(|end| end <= now) {
            Some("user expired")
        } else {
            None
        }
    }
}

/// The life of a key. Only `Active` and `Retiring` log in (`Pending` proves itself by logging in once).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// Added as a successor; not used yet.
    Pending,
    /// In use.
    Active,
    /// Has a successor, works until the overlap ends.
    Retiring,
    /// Older than its maximum age.
    Expired,
    /// Replaced.
    Retired,
    /// Withdrawn: never works again, can never be added again.
    Revoked,
}

impl fmt::Display for KeyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Expired => "expired",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        })
    }
}

/// A user's public key. Its record id is the fingerprint, so no key can belong to two users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserKey {
    /// Short id for people: `K12`.
    pub id: String,
    /// Whose key it is.
    pub user: UserName,
    /// A label, by default the comment of the key file.
    pub name: String,
    /// One line, OpenSSH format (RFC 4253 §6.6 in base64).
    pub public_key: String,
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// Where in its life it is, as last written; see [`UserKey::status_at`].
    pub status: KeyStatus,
    /// When it was added.
    pub added_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When it last completed a login.
    pub last_used_at: Option<Timestamp>,
    /// Fingerprint of the key it was added to replace.
    #[serde(default)]
    pub replaces: Option<String>,
    /// Set once its successor is in use: it works until then.
    #[serde(default)]
    pub retires_at: Option<Timestamp>,
    /// The last warning given, in seconds before expiry.
    #[serde(default)]
    pub warned: Option<i64>,
    /// Set once revoked.
    pub revoked: Option<Ended>,
    /// Its signatures count only if the security key verified its user, by PIN or finger.
    #[serde(default)]
    pub verify_required: bool,
}

impl Record for UserKey {
    const KIND: &'static str = "key";
    fn record_id(&self) -> String {
        self.fingerprint.clone()
    }
}

impl UserKey {
    /// The fingerprint under which a key is filed: `SHA256:…`.
    pub fn fingerprint_of(key: &PublicKey) -> String {
        key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The status at `now`: the stored one, and what time and use have brought since (see [`crate::lifecycle`]).
    pub fn status_at(&self, now: Timestamp) -> KeyStatus {
        crate::lifecycle::standing(self, now)
    }

    /// Whether a signature of this key counts at `now`.
    pub fn usable(&self, now: Timestamp) -> bool {
        matches!(self.status_at(now), KeyStatus::Active | KeyStatus::Retiring)
    }

    /// Whole days since it was added.
    pub fn age_days(&self, now: Timestamp) -> i64 {
        (now.as_second() - self.added_at.as_second()).div_euclid(86_400)
    }
}

/// `HOST:PORT`, or `[V6]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// A host name or an IP address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = InvalidName;
    fn from_str(given: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            what: "address",
            given: given.chars().take(300).collect(),
            rule: "use HOST:PORT, for example 10.0.3.7:22 or [fd00::7]:22",
        };
        let (host, port) = given.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().ok().filter(|p| *p != 0).ok_or_else(invalid)?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?.to_string(),
            None if host.is_empty() || host.len() > 253 => return Err(invalid()),
            None if host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)) => {
                host.to_ascii_lowercase()
            }
            None => return Err(invalid()),
        };
        Ok(Self { host, port })
    }
}
impl TryFrom<String> for HostPort {
    type Error = InvalidName;
    fn try_from(given: String) -> Result<Self, InvalidName> {
        given.parse()
    }
}
impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.to_string()
    }
}
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How an instance proves that it is itself. There is no "accept any".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostTrust {
    /// One of these host keys (OpenSSH one-line format); at least one.
    Pinned(Vec<String>),
    /// A host certificate for its name or address, signed by this CA key (OpenSSH one-line format).
    Ca(String),
}

/// A private instance behind the bastion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The name people type.
    pub name: InstanceName,
    /// Other names that mean the same instance.
    pub aliases: BTreeSet<InstanceName>,
    /// Where its sshd listens, as the bastion dials it.
    pub address: HostPort,
    /// Accounts that exist for use through the bastion.
    pub logins: BTreeSet<Login>,
    /// Free labels for rules: `env=prod`.
    pub labels: BTreeMap<String, String>,
    /// How it proves itself.
    pub host_trust: HostTrust,
    /// How Keyward signs in to it.
    #[serde(default)]
    pub credential: SignsIn,
    /// When it was added.
    pub added_at: Timestamp,
}

impl Record for Instance {
    const KIND: &'static str = "instance";
    fn record_id(&self) -> String {
        self.name.to_string()
    }
}

impl Instance {
    /// The one of `all` that `host` means, as somebody asked for it: a name goes before an alias, and that before an
    /// address. Of several at one address (a gateway's) it is the one at `port`, if one is.
    pub fn meant<'a>(all: &'a [Self], host: &str, port: Option<u16>) -> Option<&'a Self> {
        let named = all.iter().find(|i| i.name.as_str().eq_ignore_ascii_case(host));
        let alias = || all.iter().find(|i| i.is_named(host));
        let there = || all.iter().filter(|i| i.answers_to(host));
        let at_port = || there().find(|i| Some(i.address.port) == port);
        named.or_else(alias).or_else(at_port).or_else(|| there().next())
    }

    /// Whether `host` is its name or one of its aliases.
    pub fn is_named(&self, host: &str) -> bool {
        self.name.as_str().eq_ignore_ascii_case(host)
            || self.aliases.iter().any(|a| a.as_str().eq_ignore_ascii_case(host))
    }

    /// Whether `host` (a name or address as a client asked for it) means this instance.
    pub fn answers_to(&self, host: &str) -> bool {
        self.is_named(host) || self.address.host.eq_ignore_ascii_case(host)
    }
}

/// What may be done in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// An interactive shell.
    Shell,
    /// A command: also scp in its old mode, rsync, git.
    Exec,
    /// The sftp subsystem: also scp in its new mode.
    Sftp,
    /// Port and socket forwards.
    Forward,
    /// Agent forwarding.
    Agent,
}

impl Capability {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 5] = [Self::Shell, Self::Exec, Self::Sftp, Self::Forward, Self::Agent];

    /// Its name in `--can` and in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Exec => "exec",
            Self::Sftp => "sftp",
            Self::Forward => "forward",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Capability {
    type Err = InvalidName;
    fn from_str(given: &str) -> Result<Self, InvalidName> {
        Self::ALL.into_iter().find(|c| c.as_str() == given).ok_or_else(|| InvalidName {
            what: "capability",
            given: given.to_owned(),
            rule: "use shell, exec, sftp, forward or agent",
        })
    }
}

/// Allow or deny. A deny beats every allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Grants.
    Allow,
    /// Forbids, whatever else allows it.
    Deny,
}

/// Whom a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One user.
    User(UserName),
    /// Everyone with the role.
    Role(Role),
}

/// Which instances a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One instance.
    Instance(InstanceName),
    /// Every instance that carries the label.
    Label {
        /// The label's key.
        key: String,
        /// The label's value.
        value: String,
    },
}

/// What happens to a session whose recording fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recording {
    /// It ends.
    Strict,
    /// It goes on; the ledger says what is lost.
    BestEffort,
}

impl Recording {
    /// Its name in `--recording`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::BestEffort => "best-effort",
        }
    }
}

impl FromStr for Recording {
    type Err = InvalidName;
    fn from_str(given: &str) -> Result<Self, InvalidName> {
        match given {
            "strict" => Ok(Self::Strict),
            "best-effort" | "best_effort" => Ok(Self::BestEffort),
            _ => {
                let (what, given) = ("kind of recording", given.chars().take(300).collect());
                Err(InvalidName { what, given, rule: "use strict or best-effort" })
            }
        }
    }
}

/// An access rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Short id for people: `R3`.
    pub id: String,
    /// Allow or deny.
    pub effect: Effect,
    /// Whom.
    pub subject: Subject,
    /// Where.
    pub target: Target,
    /// As which logins; never empty.
    pub logins: BTreeSet<Login>,
    /// To do what; never empty.
    pub can: BTreeSet<Capability>,
    /// From which source networks; empty means from anywhere.
    pub from: Vec<IpNet>,
    /// The rule means nothing after this.
    pub expires_at: Option<Timestamp>,
    /// What happens to a session whose recording fails; as the bastion is configured, where the rule does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<Recording>,
    /// When it was added.
    pub added_at: Timestamp,
}

impl Record for Rule {
    const KIND: &'static str = "rule";
    fn record_id(&self) -> String {
        self.id.clone()
    }
}

#[cfg(test)]
mod tests;
