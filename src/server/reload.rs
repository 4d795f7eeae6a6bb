//! SIGHUP: the configuration is read again while the daemon serves. A faulty file changes nothing.
//!
//! New settings count for what begins from now on; live sessions go on. Users, keys, instances and rules need no reload:
//! they live in the store.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::user_ca::{UserCaFault, UserCas};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditError, Event};
use crate::config::{self, Config, ConfigError};
use crate::guard;
use crate::recording::{self, TapeError, TapeKeys};
use crate::session::House;

/// Why the daemon keeps its settings.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("recording: {0}")]
    Auditors(#[from] TapeError),
    #[error("user_ca: {0}")]
    Authorities(#[from] UserCaError),
    #[error(transparent)]
    Trail(#[from] AuditError),
}

/// Reloads at each SIGHUP, until `stop`. Run it as one task of the daemon.
pub(super) async fn heed(mut hangup: Signal, house: Arc<House>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            heard = hangup.recv() => if heard.is_none() { return },
        }
        if let Err(fault) = reload(&house).await {
            tracing::error!(%fault, "config.faulty: the running daemon keeps its settings");
        }
    }
}

async fn reload(house: &House) -> Result<(), ReloadError> {
    let running = house.config();
    let renewal = running.renewed(Config::load(&running.path)?);
    // Everything that can fail comes before the first thing that changes.
    let (keys, terms) = kept(&renewal.config)?;
    let cas = user_cas(&renewal.config)?;
    let (changed, at_start) = (renewal.changed.clone(), renewal.at_start.clone());
    let event = Event::ConfigReloaded { by: Some("SIGHUP".to_owned()), changed, at_start };
    let renew = async {
        house.tapes.keep(keys, terms);
        house.guard.limit(limits(&renewal.config));
        house.certificates.trust(cas);
        house.settings.store(Arc::new(renewal.config));
        Ok::<_, ReloadError>(())
    };
    house.trail.ahead_of(vec![event], Timestamp::now(), renew).await?;
    let changed = renewal.changed.join(", ");
    tracing::info!(%changed, "config.reloaded: it counts for what begins from now on");
    if !renewal.at_start.is_empty() {
        let keys = renewal.at_start.join(", ");
        tracing::warn!(%keys, "config.needs_a_restart: these keep their old values until then");
    }
    Ok(())
}

/// Whom tapes are sealed to, and what they keep.
pub(super) fn kept(config: &Config) -> Result<(TapeKeys, recording::Terms), TapeError> {
    let terms = &config.recording;
    let keys = TapeKeys::configured(terms.identity.as_deref(), &terms.recipients)?;
    let mode = match terms.mode {
        config::Mode::Strict => recording::Mode::Strict,
        config::Mode::BestEffort => recording::Mode::BestEffort,
    };
    let terms = recording::Terms {
        limit: terms.capture_limit_bytes,
        typed: terms.input,
        counts_forwards: terms.forwards == config::Forwards::Count,
        hashing: match terms.digest {
            config::Digest::Blake3 => recording::Hashing::Blake3,
            config::Digest::Sha256 => recording::Hashing::Sha256,
        },
        mode,
    };
    Ok((keys, terms))
}

/// How many strangers are borne.
pub(super) fn limits(config: &Config) -> guard::Limits {
    guard::Limits {
        max_startups: config.limits.max_startups,
        per_source: config.limits.per_source,
        ..guard::Limits::default()
    }
}

/// Why the external authorities are not known: which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}", file = file.display())]
pub(super) struct UserCaError {
    file: PathBuf,
    why: String,
}

impl UserCaError {
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

/// The authorities whose certificates are accepted, and what they withdrew.
pub(super) fn user_cas(config: &Config) -> Result<Option<UserCas>, UserCaError> {
    let Some(files) = &config.user_ca else { return Ok(None) };
    let read = |file: &Path| {
        std::fs::read(file).map_err(|error| UserCaError { file: file.to_owned(), why: error.to_string() })
    };
    let keys = read(&files.keys)?;
    let krl = files.krl.as_deref().map(read).transpose()?;
    // Only the list can be binary; a file of keys that is not text has no key in it.
    let cas =
        UserCas::read(&String::from_utf8_lossy(&keys), krl.as_deref()).map_err(|fault| match fault {
            UserCaFault::Keys(why) => UserCaError { file: files.keys.clone(), why },
            UserCaFault::Krl(why) => {
                UserCaError { file: files.krl.clone().unwrap_or_default(), why: why.to_string() }
            }
        })?;
    Ok(Some(cas))
}

/// Reads the authorities' files again whenever they change, until `stop`: what they withdrew counts within a second or
/// two, also for who is in. While they cannot be read no certificate counts.
pub(super) async fn follow_user_ca(house: Arc<House>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known = marks(&house.config());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let config = house.config();
        let found = marks(&config);
        if found == known {
            continue;
        }
        known = found;
        match user_cas(&config) {
            Ok(cas) => {
                tracing::info!("user_ca.read");
                house.certificates.trust(cas);
            }
            Err(fault) => {
                tracing::error!(%fault, "user_ca.faulty: no certificate counts until it is mended");
                house.certificates.distrust();
            }
        }
    }
}

/// By which a file that changed is known: when it was written, how long it is, which file it is.
fn marks(config: &Config) -> Vec<Option<(i64, i64, u64, u64)>> {
    let files = config.user_ca.iter().flat_map(|files| [Some(&files.keys), files.krl.as_ref()]).flatten();
    files
        .map(|file| std::fs::metadata(file).ok().map(|m| (m.mtime(), m.mtime_nsec(), m.len(), m.ino())))
        .collect()
}

const TICK: Duration = Duration::from_secs(1);
