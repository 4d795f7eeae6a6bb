//! What a running daemon holds, put together once by `server` and lent to whoever serves a connection.

use std::sync::Arc;

use arc_swap::ArcSwap;
use keystore::Vault;
use keystore::signing::Signers;

use crate::audit::{Outlets, Trail};
use crate::auth::{Browsers, Certificates, Invitations};
use crate::config::Config;
use crate::guard::Guard;
use crate::guard::clock::Clock;
use crate::policy::Rulebook;
use crate::recording::Tapes;

use super::{Approvals, Registry};

/// The rooms' live parts.
pub struct House {
    /// The store.
    pub vault: Arc<Vault>,
    /// Whose certificates let their people in.
    pub certificates: Arc<Certificates>,
    /// Whether anybody is invited to enrol.
    pub invitations: Invitations,
    /// Who may knock.
    pub guard: Guard,
    /// The time by which something may end for good.
    pub clock: Clock,
    /// The audit trail.
    pub trail: Arc<Trail>,
    /// Sign-in links of the web console, and the browsers that used one.
    pub browsers: Browsers,
    /// The recordings.
    pub tapes: Arc<Tapes>,
    /// The authorities and the host key.
    pub signers: Arc<Signers>,
    /// Live sessions and connections.
    pub registry: Arc<Registry>,
    /// Where events also go.
    pub outlets: Outlets,
    /// Who may watch what, where that takes two.
    pub approvals: Approvals,
    /// When the daemon started.
    pub started_at: jiff::Timestamp,
    /// The validated configuration, as it was last read: see [`House::config`].
    pub settings: ArcSwap<Config>,
    /// The compiled rules; [`super::watch`] replaces them when a rule changes.
    pub rulebook: ArcSwap<Rulebook>,
}

impl House {
    /// The configuration of now. Hold it for as long as several of its settings must fit together: SIGHUP replaces it.
    pub fn config(&self) -> Arc<Config> {
        self.settings.load_full()
    }

    /// The bastion as its users name it.
    pub fn bastion(&self) -> String {
        self.settings.load().bastion().to_owned()
    }
}
