//! `[transport]`: what every SSH connection of the bastion negotiates, and how often its keys are exchanged anew.

use serde::Deserialize;

/// What the bastion speaks, as a server and as a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// Which key exchanges are accepted.
    pub crypto: Crypto,
    /// Mebibytes in one direction after which the bastion asks for new keys (RFC 4253 §9); an hour has passed at the
    /// latest.
    pub rekey_mb: u64,
}

impl Default for Transport {
    fn default() -> Self {
        Self { crypto: Crypto::Default, rekey_mb: 1024 }
    }
}

/// Which key exchanges are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Crypto {
    /// Post-quantum first, then elliptic curves, then large groups.
    #[default]
    Default,
    /// Post-quantum alone: what is recorded today stays closed to a quantum computer of tomorrow.
    Strict,
}
