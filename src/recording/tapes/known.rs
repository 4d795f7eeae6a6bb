//! What is known of ended sessions without reading it again: a cache that is empty after every start.
//!
//! Which sessions there are is asked of the directory once; what begins and goes here is known. What others do to the
//! directory is seen [`AGAIN`] later at the latest: to list a hundred thousand sessions takes long, and each that begins
//! or ends changes the directory. A summary is read once: it does not change after the end. Whoever *verifies*, or looks
//! for what is missing, reads the files.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::TapeError;
use crate::recording::{SessionId, Summary};

#[derive(Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Default)]
struct State {
    /// When the directory had changed last, as it was listed, and when that was.
    changed: Option<SystemTime>,
    listed: Option<Instant>,
    ids: Arc<[SessionId]>,
    /// What began and what went since.
    began: BTreeSet<SessionId>,
    gone: BTreeSet<SessionId>,
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
        {
            let mut state = self.lock();
            let lately = state.listed.is_some_and(|listed| listed.elapsed() < AGAIN);
            if lately || state.changed == Some(before) {
                return Ok(state.present());
            }
            (state.began, state.gone) = Default::default();
        }
        let ids: Arc<[SessionId]> = list()?.into();
        let mut state = self.lock();
        // A file that came within the same tick of the clock would leave no mark.
        let settled = now.duration_since(before).is_ok_and(|since| since > TICK);
        state.changed = settled.then_some(before);
        state.listed = Some(Instant::now());
        state.told.retain(|id, _| ids.binary_search(id).is_ok());
        state.ids = ids;
        Ok(state.present())
    }

    /// A session began here.
    pub(super) fn began(&self, id: SessionId) {
        self.lock().began.insert(id);
    }

    /// A session's recording was deleted here.
    pub(super) fn gone(&self, id: SessionId) {
        let mut state = self.lock();
        state.began.remove(&id);
        state.told.remove(&id);
        state.gone.insert(id);
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

impl State {
    /// What was listed, with what happened since.
    fn present(&mut self) -> Arc<[SessionId]> {
        if !self.began.is_empty() || !self.gone.is_empty() {
            let (began, gone) = (std::mem::take(&mut self.began), std::mem::take(&mut self.gone));
            let mut ids: Vec<_> = self.ids.iter().copied().filter(|id| !gone.contains(id)).collect();
            ids.extend(began);
            // Nearly sorted as it is: the ids of new sessions are the greatest.
            ids.sort();
            ids.dedup();
            self.ids = ids.into();
        }
        Arc::clone(&self.ids)
    }
}

fn changed(dir: &Path) -> Result<SystemTime, TapeError> {
    std::fs::metadata(dir).and_then(|found| found.modified()).map_err(|e| TapeError::file(dir, e))
}

/// How old a list may be where others may have changed the directory.
const AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(30) };
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

    #[test]
    fn what_begins_and_goes_here_is_known_without_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::default();
        let id = |second| SessionId::new(jiff::Timestamp::from_second(second).unwrap());
        let [one, two, three] = [id(1), id(2), id(3)];
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        std::fs::File::open(dir.path()).unwrap().set_modified(long_ago).unwrap();
        known.ids(dir.path(), || Ok(vec![one, two])).unwrap();
        known.began(three);
        known.gone(one);
        for _ in 0..2 {
            let ids = known.ids(dir.path(), || panic!("nothing was listed")).unwrap();
            assert_eq!(ids.as_ref(), [two, three]);
        }
        known.gone(three);
        assert_eq!(known.ids(dir.path(), || panic!("nothing was listed")).unwrap().as_ref(), [two]);
    }
}
