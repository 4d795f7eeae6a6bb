//! SIGHUP: the configuration is read again while the daemon serves. A faulty file changes nothing.
//!
//! New settings count for what begins from now on; live sessions go on. Users, keys, instances and rules need no reload:
//! they live in the store.

use std::sync::Arc;

use jiff::Timestamp;
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
    let (changed, at_start) = (renewal.changed.clone(), renewal.at_start.clone());
    let event = Event::ConfigReloaded { by: Some("SIGHUP".to_owned()), changed, at_start };
    let renew = async {
        house.tapes.keep(keys, terms);
        house.guard.limit(limits(&renewal.config));
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
    Ok((keys, recording::Terms { limit: terms.capture_limit_bytes, typed: terms.input, mode }))
}

/// How many strangers are borne.
pub(super) fn limits(config: &Config) -> guard::Limits {
    guard::Limits {
        max_startups: config.limits.max_startups,
        per_source: config.limits.per_source,
        ..guard::Limits::default()
    }
}
