//! What a tape itself tells of its session: its frames, and the ledger of one that has no end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{Header, Record, What};
use super::frames::{self, Reader};
use super::ledger::{ChannelSummary, Ledger};
use super::message::SessionId;
use super::summary::{SessionStatus, Summary};
use super::tape::Terms;
use super::tapes::TapeError;

/// The frames of a tape, one in memory at a time.
pub struct Frames {
    pub(super) path: PathBuf,
    pub(super) reader: Reader,
}

impl Frames {
    /// The next frame's records; none at the end, also where that is missing.
    ///
    /// # Errors
    /// [`TapeError::Damaged`].
    pub fn next_frame(&mut self) -> Result<Option<Vec<Record>>, TapeError> {
        self.reader.next().map_err(|bad| TapeError::damaged(&self.path, bad.offset, bad.what))
    }

    pub(super) fn damaged(&self, bad: frames::BadFrame) -> TapeError {
        TapeError::damaged(&self.path, bad.offset, bad.what)
    }
}

/// A session whose summary cannot be read, and why.
pub type Unreadable = (SessionId, TapeError);

/// What comes on a running tape.
pub type Live = tokio::sync::broadcast::Receiver<Arc<Record>>;

/// The ledger as the records of a tape without an end tell it.
pub(super) struct Telling {
    ledger: Ledger,
    told: BTreeMap<u32, ChannelSummary>,
    last: u64,
}

impl Default for Telling {
    fn default() -> Self {
        Self {
            ledger: Ledger::new(Terms { limit: u64::MAX, ..Terms::default() }),
            told: BTreeMap::new(),
            last: 0,
        }
    }
}

impl Telling {
    pub(super) fn hear(&mut self, record: &Record) {
        self.last = record.millis;
        match &record.what {
            What::Counted(summary) => drop(self.told.insert(record.channel, summary.clone())),
            What::Closed(summary) => {
                self.told.insert(record.channel, summary.clone());
                self.ledger.over(record.channel);
            }
            What::Opened => self.ledger.opened(record.channel),
            what => {
                if let Some((direction, message)) = what.message(&record.payload) {
                    self.ledger.observe(record.channel, direction, &message);
                    drop(self.ledger.operations(record.channel));
                    if *what == What::Input {
                        self.ledger.typed_kept(record.channel, record.payload.len() as u64);
                    }
                }
            }
        }
    }

    /// The last that the tape says of each channel.
    fn channels(self) -> Vec<ChannelSummary> {
        let mut told = self.told;
        for summary in self.ledger.summaries() {
            // What was counted is told; what was kept counts itself.
            let counted = told.entry(summary.channel).or_insert_with(|| summary.clone());
            if shown(&summary) > shown(counted) {
                *counted = summary;
            }
        }
        told.into_values().collect()
    }
}

/// What passed but for the typing that no tape has.
fn shown(summary: &ChannelSummary) -> u64 {
    summary.relayed_bytes.saturating_sub(summary.typed_bytes)
}

/// The summary of a session whose tape has no end.
pub(super) fn cut_off(header: Header, telling: Telling) -> Summary {
    let lasted = std::time::Duration::from_millis(telling.last);
    let ended = header.started_at.checked_add(lasted).unwrap_or(header.started_at);
    let lasted_ms = Some(telling.last);
    let mut summary = Summary { lasted_ms, ..Summary::of(header, telling.channels()) };
    summary.ended_at = Some(ended);
    summary.status = SessionStatus::Truncated;
    summary.reason = Some("the daemon was stopped in the middle of it".to_owned());
    summary
}
