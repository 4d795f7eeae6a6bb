//! `inner_auth`, `[login]` and `[limits]`: how peers sign in, how long they may take, how many are borne.

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
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_startups: 100, per_source: 20 }
    }
}
