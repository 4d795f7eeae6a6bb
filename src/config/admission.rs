//! `inner_auth`, `[login]`, `[limits]` and `[user_ca]`: how peers sign in, how long they may take, how many are borne, whose
//! certificates count.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// How the terminated inner connection signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum InnerAuth {
    /// By a signature of the same user's active key.
    #[default]
    Key,
    /// Not at all: the outer channel is trusted.
    None,
}

/// How long a peer may take to log in, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginDeadlines {
    /// From the first byte to a proven key.
    pub key_secs: u64,
    /// From the first byte to the completed login.
    pub login_secs: u64,
}

impl Default for LoginDeadlines {
    fn default() -> Self {
        Self { key_secs: 30, login_secs: 120 }
    }
}

/// How many peers are borne at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Unauthenticated connections in all.
    pub max_startups: usize,
    /// Unauthenticated connections from one source address.
    pub per_source: usize,
    /// Connections and sessions of one user; `ssh -J` takes one of each.
    pub per_user: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_startups: 100, per_source: 20, per_user: 1000 }
    }
}

/// Authorities of others whose user certificates are accepted, for users who have no key of their own here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserCa {
    /// Their public keys, one a line.
    pub keys: PathBuf,
    /// What they withdrew: a KRL of `ssh-keygen -k`, or its lines in plain. Read again when it changes.
    pub krl: Option<PathBuf>,
}

impl UserCa {
    pub(super) fn resolved(self, base: &Path) -> Self {
        Self { keys: base.join(self.keys), krl: self.krl.map(|file| base.join(file)) }
    }
}
