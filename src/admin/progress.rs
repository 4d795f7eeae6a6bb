//! How far a long piece of work is, as whoever does it counts it. Shown by [`super::Output::meanwhile`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counted by the work, read by whoever waits for it. What the numbers count (bytes, files, records) is the work's affair.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    all: AtomicU64,
}

impl Progress {
    /// So much more is to be done.
    pub fn expect(&self, more: u64) {
        self.0.all.fetch_add(more, Ordering::Relaxed);
    }

    /// So much more was done.
    pub fn did(&self, some: u64) {
        self.0.done.fetch_add(some, Ordering::Relaxed);
    }

    /// So much is done of so much.
    pub fn is(&self, done: u64, all: u64) {
        self.0.done.store(done, Ordering::Relaxed);
        self.0.all.store(all, Ordering::Relaxed);
    }

    /// What was done, of what is to be done.
    pub fn so_far(&self) -> (u64, u64) {
        (self.0.done.load(Ordering::Relaxed), self.0.all.load(Ordering::Relaxed))
    }
}

/// One line: what is done, how much of it is, and how long the rest will take at the pace so far. None while nobody can tell.
pub(super) fn bar(doing: &str, (done, all): (u64, u64), since: Duration) -> Option<String> {
    let share = share((done, all), since)?;
    let bar = "#".repeat((share * 20.0) as usize);
    Some(format!("\r{doing} [{bar:<20}] {}\u{1b}[K", left(share, since)))
}

/// The same, where it is read and not watched: `30 %, 1:30 left`.
pub(super) fn told(so_far: (u64, u64), since: Duration) -> Option<String> {
    share(so_far, since).map(|share| left(share, since))
}

fn share((done, all): (u64, u64), since: Duration) -> Option<f64> {
    (since >= PATIENCE && done > 0 && all > 0).then(|| (done as f64 / all as f64).min(1.0))
}

fn left(share: f64, since: Duration) -> String {
    let left = since.mul_f64((1.0 - share) / share).as_secs();
    format!("{:.0} %, {}:{:02} left", share * 100.0, left / 60, left % 60)
}

/// What is over sooner needs no progress.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_pace_so_far() {
        let after = Duration::from_secs(30);
        assert_eq!(
            bar("verifying", (25, 100), after).unwrap(),
            "\rverifying [#####               ] 25 %, 1:30 left\u{1b}[K"
        );
        assert_eq!(told((25, 100), after).unwrap(), "25 %, 1:30 left");
        // More than was foreseen: it is as good as done.
        assert!(bar("verifying", (130, 100), after).unwrap().contains("100 %, 0:00 left"));
    }

    #[test]
    fn what_is_short_or_unknown_says_nothing() {
        assert_eq!(bar("x", (1, 2), Duration::from_millis(1900)), None);
        assert_eq!(bar("x", (0, 2), Duration::from_secs(9)), None);
        assert_eq!(bar("x", (1, 0), Duration::from_secs(9)), None);
    }
}
