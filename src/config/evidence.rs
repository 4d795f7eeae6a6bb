//! `[recording]` and `[audit]`: what is kept of sessions and of events, and for whom.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::lives::{Span, TEN_YEARS};
use crate::audit::{Receivers, SyslogAddress, SyslogTerms, WebhookTerms};

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
    /// What is told of the payload of forwards that are no SSH.
    pub forwards: Forwards,
    /// How payload is hashed that is not kept.
    pub digest: Digest,
    /// What happens to a session whose tape can no longer be written: `strict` ends it, `best_effort` lets it go on.
    pub mode: Mode,
    /// Whether lines typed at a terminal are kept too, once the terminal showed them.
    pub input: bool,
    /// Whether a user is told that her session is being watched.
    pub tell_watched: bool,
    /// Seconds that a tape is kept after its session's end; `None`: for ever.
    #[serde(deserialize_with = "span")]
    pub keep: Option<i64>,
    /// The same for sessions without a terminal, where it differs.
    #[serde(deserialize_with = "span")]
    pub keep_other: Option<i64>,
    /// A user may see the recordings of her own sessions.
    pub owner_may_view: bool,
    /// Admins may see recordings as auditors do.
    pub admin_may_view: bool,
    /// Watching a live session takes a second auditor, whose approval lasts so many seconds; `None`: it does not.
    #[serde(deserialize_with = "span")]
    pub watch_approval: Option<i64>,
}

/// A duration, in seconds.
fn span<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    Span::deserialize(from).map(|span| Some(span.0))
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

/// What is told of the payload of forwards that are no SSH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Forwards {
    /// Size and digest.
    #[default]
    Hash,
    /// Size.
    Count,
}

/// How payload is hashed that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// BLAKE3, as `b3sum` prints it: a fraction of the work.
    #[default]
    Blake3,
    /// SHA-256, where a rule asks for that.
    Sha256,
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
    /// Every event also goes to this syslog server.
    pub syslog: Option<Syslog>,
    /// And to this webhook.
    pub webhook: Option<Webhook>,
}

/// `[audit.syslog]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// `tls://HOST:PORT`, `tcp://HOST:PORT`, `udp://HOST:PORT` or `unix:PATH`.
    pub address: String,
    /// With `tls://`: the authorities that the server's certificate may come from, in PEM.
    pub ca_file: Option<PathBuf>,
}

/// `[audit.webhook]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// `https://…`; `http://` to this machine alone.
    pub url: String,
    /// The file with the secret that signs what is sent.
    pub secret: PathBuf,
    /// The authorities that the receiver's certificate may come from, in PEM. Default: those of the web.
    pub ca_file: Option<PathBuf>,
}

impl Audit {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(syslog) = &self.syslog {
            let address =
                syslog.address.parse::<SyslogAddress>().map_err(|what| ("audit.syslog.address", what))?;
            let wrong = |what: &str| Err(("audit.syslog.ca_file", what.to_owned()));
            match (&address, &syslog.ca_file) {
                (SyslogAddress::Tls(_), None) => {
                    return wrong("is needed: the authority of the server's certificate, in PEM");
                }
                (SyslogAddress::Tls(_), Some(_)) | (_, None) => {}
                (_, Some(_)) => {
                    return wrong("is for tls://HOST:PORT alone: without TLS no certificate is looked at");
                }
            }
        }
        let Some(webhook) = &self.webhook else { return Ok(()) };
        let uri = webhook.url.parse::<ureq::http::Uri>().ok();
        let to = uri.as_ref().filter(|uri| uri.authority().is_some_and(|to| !to.as_str().contains('@')));
        let here = || to.and_then(|uri| uri.host()).is_some_and(|host| HERE.contains(&host));
        match to.and_then(|uri| uri.scheme_str()) {
            Some("https") => return Ok(()),
            Some("http") if here() => return Ok(()),
            _ => {}
        }
        let what = format!(
            "{:?} is not taken; use https://HOST/PATH, or http://127.0.0.1:PORT/ for this machine",
            webhook.url
        );
        Err(("audit.webhook.url", what))
    }

    pub(super) fn resolved(self, base: &Path) -> Self {
        let webhook = self.webhook.map(|hook| Webhook {
            secret: base.join(hook.secret),
            ca_file: hook.ca_file.map(|file| base.join(file)),
            url: hook.url,
        });
        let ca_file = |file: PathBuf| base.join(file);
        let syslog = self.syslog.map(|log| Syslog { ca_file: log.ca_file.map(ca_file), ..log });
        Self { head_file: self.head_file.map(|file| base.join(file)), syslog, webhook, ..self }
    }

    /// Where events go, from the bastion that is called `host`.
    pub fn receivers(&self, host: &str) -> Receivers {
        let webhook = self.webhook.clone().map(|hook| {
            let Webhook { url, secret, ca_file } = hook;
            WebhookTerms { url, secret, ca_file }
        });
        let syslog = self.syslog.as_ref().and_then(|syslog| {
            let address = syslog.address.parse().ok()?;
            Some(SyslogTerms { address, ca_file: syslog.ca_file.clone() })
        });
        Receivers { syslog, host: host.to_owned(), webhook }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            checkpoint_events: 1000,
            head_file: None,
            disk_warn_percent: 80,
            reserve_mb: 16,
            syslog: None,
            webhook: None,
        }
    }
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            identity: None,
            recipients: Vec::new(),
            capture_limit_bytes: 16 << 20,
            forwards: Forwards::Hash,
            digest: Digest::Blake3,
            mode: Mode::Strict,
            input: false,
            tell_watched: true,
            keep: None,
            keep_other: None,
            owner_may_view: false,
            admin_may_view: false,
            watch_approval: None,
        }
    }
}

impl Recording {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, span, most) in [
            ("recording.keep", self.keep, TEN_YEARS),
            ("recording.keep_other", self.keep_other, TEN_YEARS),
            ("recording.watch_approval", self.watch_approval, 86_400),
        ] {
            if span.is_some_and(|span| !(1..=most).contains(&span)) {
                return Err((key, format!("is out of range; use 1s to {}d, or leave it out", most / 86_400)));
            }
        }
        Ok(())
    }

    pub(super) fn resolved(self, base: &Path) -> Self {
        // Without a word about it, the identity is where `init` puts it. With recipients alone it is elsewhere.
        let default = self.recipients.is_empty().then(|| PathBuf::from("auditors.key"));
        Self { identity: self.identity.or(default).map(|file| base.join(file)), ..self }
    }
}

/// The names of this machine that need no encryption.
const HERE: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];
