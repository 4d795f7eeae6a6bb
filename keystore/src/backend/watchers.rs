//! Who watches what: the newest changes, kept in memory, and those who wait for more. Shared by the backends that
//! live in this process.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{BackendError, Changed, Revision, Watch};

/// How many changes are kept for watches that begin in the past.
const KEPT: usize = 16_384;

#[derive(Default)]
pub(super) struct Watchers {
    /// Changes after this revision are all in `kept`.
    floor: Revision,
    kept: VecDeque<Changed>,
    watching: Vec<(Bytes, mpsc::UnboundedSender<Changed>)>,
}

impl Watchers {
    pub(super) fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    pub(super) fn watch(&mut self, prefix: &[u8], after: Revision) -> Result<Watch, BackendError> {
        if after < self.floor {
            return Err(BackendError::Compacted(after));
        }
        let (sender, watch) = mpsc::unbounded_channel();
        let missed = self.kept.iter().filter(|c| c.revision > after && c.key.starts_with(prefix));
        for change in missed {
            if sender.send(change.clone()).is_err() {
                break;
            }
        }
        self.watching.push((Bytes::copy_from_slice(prefix), sender));
        Ok(watch)
    }

    /// All changes of one revision together.
    pub(super) fn announce(&mut self, changes: Vec<Changed>) {
        for change in changes {
            self.watching.retain(|(prefix, sender)| {
                if change.key.starts_with(prefix) {
                    sender.send(change.clone()).is_ok()
                } else {
                    !sender.is_closed()
                }
            });
            self.kept.push_back(change);
        }
        while self.kept.len() > KEPT {
            if let Some(gone) = self.kept.pop_front() {
                self.floor = self.floor.max(gone.revision);
            }
        }
    }
}
