//! `[recording]` and `[audit]`: what is kept of sessions and of events, and for whom.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// How sessions are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    /// The auditors' age identity, if this machine may read tapes. Default: `auditors.key`, unless there are recipients.
    pub identity: Option<PathBuf>,
    /// Further age X25519 recipients (`age1…`) of new tapes.
    pub recipients: Vec<String>,
    /// Bytes kept each way of a channel without a terminal.
    pub capture_limit_bytes: u64,
    /// What happens to a session whose tape can no longer be written: `strict` ends it, `best_effort` lets it go on.
    pub mode: Mode,
    /// Whether lines typed at a terminal are kept too, once the terminal showed them.
    pub input: bool,
    /// Whether a user is told that her session is being watched.
    pub tell_watched: bool,
}

/// What happens to a session whose tape can no longer be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It ends.
    #[default]
    Strict,
    /// It goes on, and the ledger says what is lost.
    BestEffort,
}

/// How the audit trail is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The chain is signed after so many events, and every hour in which there were any.
    pub checkpoint_events: u64,
    /// Each signed head is also appended here: a file on another disk, where whoever rewrites this one does not look.
    pub head_file: Option<PathBuf>,
    /// Hundredths of the disk that are taken when `status` and an event warn.
    pub disk_warn_percent: u64,
    /// Megabytes set aside so that the trail can go on when the disk is full.
    pub reserve_mb: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { checkpoint_events: 1000, head_file: None, disk_warn_percent: 80, reserve_mb: 16 }
    }
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            identity: None,
            recipients: Vec::new(),
            capture_limit_bytes: 16 << 20,
            mode: Mode::Strict,
            input: false,
            tell_watched: true,
        }
    }
}

impl Recording {
    pub(super) fn resolved(self, base: &Path) -> Self {
        // Without a word about it, the identity is where `init` puts it. With recipients alone it is elsewhere.
        let default = self.recipients.is_empty().then(|| PathBuf::from("auditors.key"));
        Self { identity: self.identity.or(default).map(|file| base.join(file)), ..self }
    }
}
