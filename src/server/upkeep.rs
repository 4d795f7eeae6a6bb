//! Upkeep: signs the chain regularly, keeps the journal's reserve, and says when the disk fills.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::audit::Event;
use crate::recording::{Room, disk_left};
use crate::rotation;
use crate::session::House;

/// Keeps until `stop`. Run it as one task of the daemon.
pub(super) async fn keep(house: Arc<House>, stop: CancellationToken) {
    let mut tick = ticking(TICK);
    let (mut signed_at, mut ticks) = (Timestamp::now(), 0u64);
    let mut alarm = Alarm::new(house.config().audit.disk_warn_percent);
    tokio::select! {
        () = stop.cancelled() => return,
        () = known(&house) => {}
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = Timestamp::now();
        // A checkpoint is an event itself: one that covers nothing else is not worth signing.
        let unsigned = house.trail.head().seq.saturating_sub(house.trail.signed());
        let hourly = unsigned > 1 && now.as_second() - signed_at.as_second() >= HOUR;
        if hourly || unsigned > house.config().audit.checkpoint_events {
            signed_at = now;
            if let Err(error) = house.trail.checkpoint(now).await {
                tracing::error!(%error, "audit.checkpoint_failed");
            }
        }
        ticks += 1;
        if ticks % DISK_EVERY == 1 {
            disk(&house, &mut alarm).await;
            compact(&house, now).await;
        }
        if ticks % RETIRE_EVERY == 3 {
            match admin::retire(&house, house.clock.now()).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "recordings.deleted: their time is over"),
                Err(error) => tracing::error!(%error, "recordings.retention_failed"),
            }
        }
    }
}

/// Reads the summaries of what ended, so that the first who lists sessions does not wait for that.
async fn known(house: &House) {
    let tapes = Arc::clone(&house.tapes);
    match tokio::task::spawn_blocking(move || tapes.list().map(drop)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "sessions.not_listed"),
        Err(error) => tracing::error!(%error, "sessions.not_listed"),
    }
}

/// Looks after what Keyward itself holds, until `stop`: CAs retire, its keys on instances are rotated. A task of its own.
pub(super) async fn custody(house: Arc<House>, stop: CancellationToken) {
    let retire = || async {
        let errands = admin::errands(&house);
        told(admin::custody(&house, &errands).retire_due(&house.signers, house.clock.now()).await);
    };
    look((retire, || look_after(&house)), rotation::LOOK, stop).await;
}

/// Retires and visits `every` so often. Each goes its own way, and both are always gone on with: an instance may take its
/// time while it holds what the other waits for.
async fn look<R: Future<Output = ()>, V: Future<Output = ()>>(
    (retire, visit): (impl Fn() -> R, impl Fn() -> V),
    every: Duration,
    stop: CancellationToken,
) {
    let retires = async {
        let mut tick = ticking(every);
        while next(&mut tick, &stop).await {
            retire().await;
        }
    };
    let visits = async {
        let mut tick = ticking(every);
        while next(&mut tick, &stop).await {
            // Stopped in the middle, it is gone on with at the next start.
            tokio::select! {
                () = stop.cancelled() => return,
                () = visit() => {}
            }
        }
    };
    tokio::join!(retires, visits);
}

fn ticking(every: Duration) -> Interval {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Whether there is a next time.
async fn next(tick: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        _ = tick.tick() => true,
    }
}

async fn look_after(house: &House) {
    let errands = admin::errands(house);
    let max_age = house.config().credentials.max_age;
    told(admin::custody(house, &errands).look_after(&house.signers, max_age, house.clock.now()).await);
}

fn told(done: Result<(), rotation::RotationFault>) {
    if let Err(fault) = done {
        tracing::error!(%fault, "custody.failed: tried again within a minute");
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

/// Looks at the disk; says once at each crossing that it fills.
async fn disk(house: &Arc<House>, alarm: &mut Alarm) {
    let (trail, dir) = (Arc::clone(&house.trail), house.config().state_dir.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let room = disk_left(&dir)?;
        let reserve = trail.renew_reserve(room.bytes).unwrap_or_else(|error| {
            tracing::error!(%error, "audit.reserve_failed");
            trail.has_reserve()
        });
        Ok::<_, std::io::Error>((room, reserve))
    });
    let fault = match looked.await {
        Ok(Ok((room, reserve))) => {
            let Some(event) = alarm.hears(room, reserve) else { return };
            tracing::warn!(percent = room.percent_used, bytes_left = room.bytes, reserve, "disk.low");
            match house.trail.append(event, Timestamp::now()).await {
                Ok(_receipt) => return,
                Err(error) => error.to_string(),
            }
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::error!(%fault, "disk.not_told");
}

/// Whether the disk is low, and who knows.
struct Alarm {
    /// Hundredths of the disk that are taken when it is low.
    from: u64,
    level: Level,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Fine,
    Low,
    /// Even the trail's reserve is used up.
    Spent,
}

impl Alarm {
    fn new(from: u64) -> Self {
        Self { from, level: Level::Fine }
    }

    /// The event, where things got worse.
    fn hears(&mut self, room: Room, reserve: bool) -> Option<Event> {
        let low = room.percent_used >= self.from;
        // A disk that goes up and down around the mark is told once.
        let still = self.level == Level::Low && room.percent_used + SLACK >= self.from;
        let level = match (reserve, low || still) {
            (false, _) => Level::Spent,
            (true, true) => Level::Low,
            (true, false) => Level::Fine,
        };
        let worse = level > std::mem::replace(&mut self.level, level);
        worse.then_some(Event::DiskLow { percent_used: room.percent_used, bytes_left: room.bytes, reserve })
    }
}

/// Records after which the store's journal is compacted; reading so many at a start takes about a second.
const LONG_HISTORY: u64 = 100_000;
const TICK: Duration = Duration::from_secs(1);
const HOUR: i64 = 3600;
/// Ticks between looks for recordings whose time is over.
const RETIRE_EVERY: u64 = 600;
/// Ticks between looks at the disk.
const DISK_EVERY: u64 = 30;
/// Hundredths by which the disk must be better before it is low again.
const SLACK: u64 = 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn told(figures: &[(u64, bool)]) -> Vec<u64> {
        let mut alarm = Alarm::new(80);
        let heard = figures.iter().filter_map(|(percent_used, reserve)| {
            alarm.hears(Room { bytes: 5, size: 100, percent_used: *percent_used }, *reserve)
        });
        let percent = |event| match event {
            Event::DiskLow { percent_used, .. } => percent_used,
            other => panic!("{other:?}"),
        };
        heard.map(percent).collect()
    }

    #[test]
    fn a_disk_that_fills_is_told_once_at_each_crossing() {
        assert_eq!(told(&[(79, true), (80, true), (95, true), (79, true), (81, true)]), [80]);
        assert_eq!(told(&[(80, true), (60, true), (85, true)]), [80, 85]);
        assert_eq!(told(&[(99, true), (100, false), (100, false), (99, true), (100, false)]), [99, 100, 100]);
    }

    #[test]
    fn a_disk_with_room_is_not_told() {
        assert_eq!(told(&[(0, true), (79, true), (78, true)]), [] as [u64; 0]);
    }

    #[tokio::test]
    async fn an_instance_that_takes_its_time_with_what_a_retiring_ca_waits_for_holds_up_neither() {
        let (held, stop) = (tokio::sync::Mutex::new(()), CancellationToken::new());
        let (retired, visited) = (AtomicU32::new(0), AtomicU32::new(0));
        let both = || retired.load(Ordering::SeqCst) >= 3 && visited.load(Ordering::SeqCst) >= 3;
        let retire = || async {
            let _held = held.lock().await;
            retired.fetch_add(1, Ordering::SeqCst);
        };
        let visit = || async {
            let _held = held.lock().await;
            // Somebody waits for the lock by now.
            tokio::time::sleep(Duration::from_millis(5)).await;
            visited.fetch_add(1, Ordering::SeqCst);
            if both() {
                stop.cancel();
            }
        };
        let looked = look((retire, visit), Duration::from_millis(1), stop.clone());
        tokio::time::timeout(Duration::from_secs(60), looked).await.expect("one of them stands still");
        assert!(both());
    }
}
