//! What is known of ended sessions without reading it again: a cache that is empty after every start.
//!
//! Which sessions there are is asked of the directory again once that has changed. A summary is read once: it does not
//! change after the end. Whoever *verifies*, or looks for what is missing, reads the files.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::TapeError;
use crate::recording::{SessionId, Summary};

#[derive(Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the directory had changed last, as it was listed.
    changed: Option<SystemTime>,
    ids: Arc<[SessionId]>,
    told: HashMap<SessionId, Arc<Summary>>,
}

impl Known {
    /// The sessions in `dir`, oldest first; `list` reads the directory.
    pub(super) fn ids(
        &self,
        dir: &Path,
        list: impl FnOnce() -> Result<Vec<SessionId>, TapeError>,
    ) -> Result<Arc<[SessionId]>, TapeError> {
        let (before, now) = (changed(dir)?, SystemTime::now());
        if self.lock().changed == Some(before) {
            return Ok(Arc::clone(&self.lock().ids));
        }
        let ids: Arc<[SessionId]> = list()?.into();
        let mut state = self.lock();
        // A file that came within the same tick of the clock would leave no mark.
        let settled = now.duration_since(before).is_ok_and(|since| since > TICK);
        state.changed = settled.then_some(before);
        state.ids = Arc::clone(&ids);
        state.told.retain(|id, _| ids.binary_search(id).is_ok());
        Ok(ids)
    }

    /// What is known of each of these.
    pub(super) fn of(&self, ids: &[SessionId]) -> Vec<Option<Arc<Summary>>> {
        let state = self.lock();
        ids.iter().map(|id| state.told.get(id).cloned()).collect()
    }

    /// Remembers a session that has ended.
    pub(super) fn learn(&self, id: SessionId, summary: &Arc<Summary>) {
        let mut state = self.lock();
        if state.told.len() < MOST {
            state.told.insert(id, Arc::clone(summary));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changed(dir: &Path) -> Result<SystemTime, TapeError> {
    std::fs::metadata(dir).and_then(|found| found.modified()).map_err(|e| TapeError::file(dir, e))
}

/// Far over what file systems count time in.
const TICK: Duration = Duration::from_secs(2);
/// Summaries in memory, about 1 KB each.
const MOST: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_listed_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::default();
        let one = SessionId::new(jiff::Timestamp::now());
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let set = |at| std::fs::File::open(dir.path()).unwrap().set_modified(at).unwrap();
        set(long_ago);
        assert_eq!(known.ids(dir.path(), || Ok(vec![one])).unwrap().len(), 1);
        assert_eq!(known.ids(dir.path(), || panic!("nothing changed")).unwrap().len(), 1);
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert_eq!(known.ids(dir.path(), || Ok(Vec::new())).unwrap().len(), 0);
        assert_eq!(known.ids(dir.path(), || Ok(vec![one])).unwrap().len(), 1, "just changed: not trusted");
    }
}
