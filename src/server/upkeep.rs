//! Upkeep: signs the chain regularly, keeps the journal's reserve, and says when the disk fills.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::recording::disk_left;
use crate::rotation;
use crate::session::House;

/// Keeps until `stop`. Run it as one task of the daemon.
pub(super) async fn keep(house: Arc<House>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut signed_at, mut ticks, mut warned) = (Timestamp::now(), 0u64, false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = Timestamp::now();
        // A checkpoint is an event itself: one that covers nothing else is not worth signing.
        let unsigned = house.trail.head().seq.saturating_sub(house.trail.signed());
        let hourly = unsigned > 1 && now.as_second() - signed_at.as_second() >= HOUR;
        if hourly || unsigned > house.config.audit.checkpoint_events {
            signed_at = now;
            if let Err(error) = house.trail.checkpoint(now).await {
                tracing::error!(%error, "audit.checkpoint_failed");
            }
        }
        ticks += 1;
        if ticks % DISK_EVERY == 1 {
            warned = disk(&house, warned).await;
            compact(&house, now).await;
        }
    }
}

/// Forgets the store's history once it is long: a start reads all of it.
async fn compact(house: &House, now: Timestamp) {
    let compacted = match house.vault.history().await {
        Ok(records) if records >= LONG_HISTORY => {
            rotation::compact(&house.vault, &house.trail, "its journal was long", now).await
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = compacted {
        tracing::error!(%error, "store.compaction_failed");
    }
}

/// Looks at the disk; says once that it fills.
async fn disk(house: &Arc<House>, warned: bool) -> bool {
    let (trail, dir) = (Arc::clone(&house.trail), house.config.state_dir.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let room = disk_left(&dir)?;
        if let Err(error) = trail.renew_reserve(room.bytes) {
            tracing::error!(%error, "audit.reserve_failed");
        }
        Ok::<_, std::io::Error>(room)
    });
    match looked.await {
        Ok(Ok(room)) if room.percent_used >= FULL_FROM => {
            if !warned {
                tracing::warn!(percent = room.percent_used, bytes_left = room.bytes, "disk.filling");
            }
            true
        }
        Ok(Ok(_)) => false,
        Ok(Err(error)) => {
            tracing::error!(%error, "disk.unknown");
            warned
        }
        Err(error) => {
            tracing::error!(%error, "disk.unknown");
            warned
        }
    }
}

/// Records after which the store's journal is compacted; reading so many at a start takes about a second.
const LONG_HISTORY: u64 = 100_000;
const TICK: Duration = Duration::from_secs(1);
const HOUR: i64 = 3600;
/// Ticks between looks at the disk.
const DISK_EVERY: u64 = 30;
/// Hundredths of the disk that are taken when a warning is due.
const FULL_FROM: u64 = 80;
