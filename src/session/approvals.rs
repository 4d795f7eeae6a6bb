//! Four eyes: who may watch which live session, because a second auditor said so. Kept in memory: after a restart nobody
//! may until it is said again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::recording::SessionId;

/// The approvals of now.
#[derive(Debug, Default)]
pub struct Approvals(Mutex<HashMap<(SessionId, String), Timestamp>>);

impl Approvals {
    /// Lets `watcher` watch `session` until `until`.
    pub fn grant(&self, session: SessionId, watcher: &str, until: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((session, watcher.to_owned()), until);
    }

    /// Whether `watcher` may watch `session` at `now`. What is over is forgotten.
    pub fn allow(&self, session: SessionId, watcher: &str, now: Timestamp) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, until| *until > now);
        all.contains_key(&(session, watcher.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_for_one_watcher_one_session_and_a_while() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (one, other) = (SessionId::new(at(1)), SessionId::new(at(2)));
        let approvals = Approvals::default();
        approvals.grant(one, "bob", at(100));
        assert!(approvals.allow(one, "bob", at(99)));
        assert!(!approvals.allow(other, "bob", at(99)) && !approvals.allow(one, "carol", at(99)));
        assert!(!approvals.allow(one, "bob", at(100)));
        assert!(!approvals.allow(one, "bob", at(99)), "what was over is gone");
    }
}
