//! Whether the machine's clock is to be believed, for what cannot be taken back.
//!
//! A login is judged by the clock as it is: it loosens nothing. But what ends for good by time alone (a key, a CA, a
//! recording) goes by the *believed* time: that of the clock, unless it is far ahead of all that this bastion has seen.
//! Then the believed time runs on from there by itself, and waits for a word of the operator (docs/adr/0017).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// The believed time.
pub struct Clock {
    /// Tells a restart of the doubt: the last time that was believed.
    file: Option<PathBuf>,
    belief: Mutex<Belief>,
}

/// What is believed, and since which moment of the machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Belief {
    at: Timestamp,
    since: Instant,
    /// How far the clock may be ahead.
    leap: Duration,
    doubted: bool,
}

impl Clock {
    /// At a start. `newest` is the time of the newest event in the trail; none in a house that has seen nothing. A doubt
    /// that `file` tells of goes on.
    pub fn at(file: &Path, newest: Option<Timestamp>, now: Timestamp) -> Self {
        let doubt = match fs::read_to_string(file) {
            Ok(text) => text.trim().parse().ok().or(newest),
            Err(_) => None,
        };
        let at = doubt.or(newest).unwrap_or(now);
        let leap = if doubt.is_some() { LEAP } else { LONGEST_REST };
        let belief = Belief { at, since: Instant::now(), leap, doubted: false };
        let clock = Self { file: Some(file.to_owned()), belief: Mutex::new(belief) };
        clock.judge(now, Instant::now());
        clock
    }

    /// The time by which something may end for good.
    pub fn now(&self) -> Timestamp {
        self.judge(Timestamp::now(), Instant::now())
    }

    /// The believed time, if the clock says another one that is doubted.
    pub fn doubt(&self) -> Option<Timestamp> {
        let believed = self.now();
        self.belief().doubted.then_some(believed)
    }

    /// The clock is right, says the operator.
    pub fn confirm(&self) {
        let mut belief = self.belief();
        *belief = Belief { at: Timestamp::now(), since: Instant::now(), leap: LEAP, doubted: false };
        self.forget();
        tracing::info!(time = %belief.at, "clock.confirmed");
    }

    fn judge(&self, says: Timestamp, since: Instant) -> Timestamp {
        let mut belief = self.belief();
        let was = belief.doubted;
        let believed = belief.hears(says, since);
        match (was, belief.doubted) {
            (false, true) => {
                tracing::error!(%says, %believed, "clock.doubted: nothing ends by time until the clock is set, or: keyward clock --is-right");
                self.keep(belief.at);
            }
            (true, false) => {
                tracing::info!(time = %says, "clock.believed: it says again what was expected");
                self.forget();
            }
            _ => {}
        }
        believed
    }

    fn belief(&self) -> MutexGuard<'_, Belief> {
        self.belief.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, believed: Timestamp) {
        let Some(file) = &self.file else { return };
        let kept = fs::File::create(file)
            .and_then(|mut file| writeln!(file, "{believed}").and_then(|()| file.sync_all()));
        if let Err(error) = kept {
            tracing::error!(%error, "clock.doubt_not_kept: a restart would forget it");
        }
    }

    fn forget(&self) {
        let Some(file) = &self.file else { return };
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, "clock.doubt_not_forgotten: a restart would doubt the clock again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl Belief {
    /// The clock says `says`; what is believed.
    fn hears(&mut self, says: Timestamp, now: Instant) -> Timestamp {
        let passed = SignedDuration::try_from(now.saturating_duration_since(self.since)).unwrap_or_default();
        let expected = self.at.saturating_add(passed).unwrap_or(self.at);
        let ahead = says.duration_since(expected);
        self.doubted = ahead > SignedDuration::try_from(self.leap).unwrap_or_default();
        if self.doubted {
            return expected;
        }
        // A clock that went back ends nothing too early; one that was slowed or set by a little is followed.
        if ahead.abs() <= SignedDuration::try_from(LEAP).unwrap_or_default() || ahead.is_positive() {
            *self = Self { at: says, since: now, leap: LEAP, doubted: false };
        }
        says
    }
}

/// A bastion that was off for longer asks whether the clock is right. Most are off for an hour, some for a whole term of
/// a key (90 days); a clock that is broken is years ahead.
const LONGEST_REST: Duration = Duration::from_secs(100 * 86_400);
/// How far the clock may leap ahead while the daemon runs.
const LEAP: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap()
    }

    /// What is believed when the clock says the first, the second after the start.
    fn believed(leap: Duration, said: &[(u64, u64)]) -> Vec<Timestamp> {
        let since = Instant::now();
        let mut belief = Belief { at: at(100 * DAY), since, leap, doubted: false };
        let hear =
            |(says, passed): &(u64, u64)| belief.hears(at(*says), since + Duration::from_secs(*passed));
        said.iter().map(hear).collect()
    }

    #[test]
    fn a_clock_that_goes_its_way_is_believed() {
        let said = [(100 * DAY, 0), (100 * DAY + 60, 60), (101 * DAY, DAY)];
        assert_eq!(believed(LEAP, &said), said.map(|(says, _)| at(says)));
    }

    #[test]
    fn a_clock_that_is_wrong_for_a_moment_moves_the_believed_time_by_that_moment() {
        let said = [(100 * DAY + 10, 10), (500 * DAY, 12), (100 * DAY + 14, 14), (100 * DAY + 16, 16)];
        assert_eq!(believed(LEAP, &said), [10, 12, 14, 16].map(|second| at(100 * DAY + second)));
    }

    #[test]
    fn a_doubted_clock_stays_so_however_often_it_is_asked_and_the_believed_time_goes_on() {
        let said: Vec<_> = (0..10).map(|n| (500 * DAY + n * HOUR, n * HOUR)).collect();
        let expected: Vec<_> = (0..10).map(|n| at(100 * DAY + n * HOUR)).collect();
        assert_eq!(believed(LEAP, &said), expected);
    }

    #[test]
    fn a_small_leap_and_a_rest_of_a_week_are_believed_and_longer_ones_are_not() {
        assert_eq!(believed(LEAP, &[(100 * DAY + HOUR, 0)]), [at(100 * DAY + HOUR)]);
        assert_eq!(believed(LEAP, &[(100 * DAY + HOUR + 1, 0)]), [at(100 * DAY)]);
        assert_eq!(believed(LONGEST_REST, &[(200 * DAY, 0)]), [at(200 * DAY)]);
        assert_eq!(believed(LONGEST_REST, &[(200 * DAY + 1, 0)]), [at(100 * DAY)]);
    }

    #[test]
    fn a_clock_that_was_behind_may_come_back_to_where_it_was() {
        let said = [(100 * DAY, 0), (5 * DAY, 1), (5 * DAY + 60, 61), (100 * DAY + 70, 70), (120 * DAY, 80)];
        let expected = [at(100 * DAY), at(5 * DAY), at(5 * DAY + 60), at(100 * DAY + 70), at(100 * DAY + 80)];
        assert_eq!(believed(LEAP, &said), expected);
    }

    #[test]
    fn a_doubt_outlasts_a_restart_and_a_word_of_the_operator_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let now = Timestamp::now();
        let long_ago = now - SignedDuration::from_hours(130 * 24);
        assert!(Clock::at(&file, Some(long_ago), now).doubt().is_some());
        // Its own events are of now.
        let again = Clock::at(&file, Some(now), now);
        assert!(again.doubt().is_some_and(|believed| believed < now));
        again.confirm();
        assert_eq!(again.doubt(), None);
        assert_eq!(Clock::at(&file, Some(now), now).doubt(), None);
        assert_eq!(Clock::at(&file, None, now).doubt(), None, "a new house has nothing to doubt it by");
    }
}
