//! What a tape and its writing task share: takes messages, hands them over in batches, and knows how far the disk is.

use std::sync::{Arc, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::super::format::{Note, Record, What};
use super::super::ledger::Kept;
use super::super::message::{ChannelMessage, Direction};
use super::super::summary::{SessionEnd, Summary};
use super::super::tapes::TapeError;
use super::writing::Batch;
use super::{Deck, Files, LOOSE, Mode, Reach, State, Taken, UNSYNCED, WATCHERS_BEHIND};

impl Deck {
    /// The summary as it stands.
    pub(in crate::recording) fn summary(&self) -> Summary {
        let ended = self.ended.borrow().clone();
        ended.unwrap_or_else(|| Summary::of(self.header.clone(), self.lock().ledger.summaries()))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Joins the running tape: how many records lie before what the receiver gets.
    pub(in crate::recording) fn join(&self) -> (u64, broadcast::Receiver<Arc<Record>>) {
        let state = self.lock();
        let live = self.live.get_or_init(|| broadcast::Sender::new(WATCHERS_BEHIND));
        let joined = (state.reach.records, live.subscribe());
        drop(state);
        self.watched.send_replace(true);
        joined
    }

    /// Resolves once `records` lie on the disk, or the tape failed.
    pub(in crate::recording) async fn synced(&self, records: u64) {
        self.now.notify_one();
        self.reached(records).await;
    }

    pub(super) async fn reached(&self, records: u64) {
        let mut synced = self.synced.subscribe();
        if synced.wait_for(|synced| *synced >= records).await.is_err() {
            tracing::debug!("tape.gone");
        }
    }

    /// Where it lies, and what opens it.
    pub(in crate::recording) fn files(&self) -> &Files {
        &self.files
    }

    /// Ends the operations that these channels left open.
    pub(super) fn close_operations(&self, channels: &[u32]) {
        let mut state = self.lock();
        let millis = self.millis();
        if state.over {
            return;
        }
        for channel in channels {
            state.ledger.closed(*channel);
            self.note_operations(&mut state, *channel, millis);
        }
    }

    fn note_operations(&self, state: &mut State, channel: u32, millis: u64) {
        let done = state.ledger.operations(channel);
        if done.is_empty() {
            return;
        }
        for operation in done {
            let what = What::Operation(operation.clone());
            self.append(state, Record { millis, channel, what, payload: Vec::new() }, &[]);
            state.operations.push_back((channel, operation));
        }
        self.operated.notify_waiters();
    }

    fn append(&self, state: &mut State, record: Record, payload: &[u8]) {
        // Time never runs back on a tape.
        let record = Record { millis: record.millis.max(state.latest), ..record };
        if state.pending.len() > LONG_FRAME {
            state.full.push(std::mem::take(&mut state.pending));
        }
        let before = state.pending.len();
        // Only a map with strange keys could not be encoded.
        if let Err(error) = state.pending.push(&record, payload) {
            state.failed = Some(error.to_string());
        }
        state.latest = record.millis;
        state.reach.records += 1;
        state.reach.bytes += (state.pending.len() - before) as u64;
        if let Some(live) = self.live.get().filter(|live| live.receiver_count() > 0) {
            // Who watches and does not keep up misses some; the session does not wait for them.
            drop(live.send(Arc::new(Record { payload: payload.to_vec(), ..record })));
        }
    }

    pub(super) fn put(&self, happened: impl FnOnce(&mut State) -> Option<(u32, What)>) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        if let Some((channel, what)) = happened(&mut state) {
            let record = Record { millis: self.millis(), channel, what, payload: Vec::new() };
            self.append(&mut state, record, &[]);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// None if there was no room.
    pub(super) fn take_message(
        &self,
        (channel, direction, message): (u32, Direction, &ChannelMessage),
        size: usize,
    ) -> Result<Option<Taken>, TapeError> {
        let mut state = self.lock();
        if let Some(why) = state.failed.clone() {
            if self.mode == Mode::BestEffort {
                if state.operations.len() >= MOST_OPERATIONS && matches!(message, ChannelMessage::Data(_)) {
                    return Ok(None);
                }
                state.ledger.lost(channel, (direction, message), &why);
                // The trail may still have room: what is done to files is told there.
                let done = state.ledger.operations(channel);
                state.operations.extend(done.into_iter().map(|operation| (channel, operation)));
                self.operated.notify_waiters();
                return Ok(Some(Taken(None)));
            }
            return Err(TapeError::Failed(why));
        }
        if state.end.is_some() {
            return Err(TapeError::Sealed);
        }
        // Only what can complete operations waits for those before it: last words never do.
        if state.operations.len() >= MOST_OPERATIONS && matches!(message, ChannelMessage::Data(_)) {
            return Ok(None);
        }
        let unsynced = state.reach.bytes - state.durable.bytes;
        if unsynced > 0 && unsynced + size as u64 > UNSYNCED {
            return Ok(None);
        }
        let kept = state.ledger.observe(channel, direction, message);
        let millis = self.millis();
        self.note_operations(&mut state, channel, millis);
        for line in state.ledger.typed(channel) {
            let typed = Record { millis, channel, what: What::Input, payload: Vec::new() };
            self.append(&mut state, typed, &line);
        }
        if matches!(kept, Kept::Count | Kept::Part(_)) {
            state.counted.insert(channel);
        }
        let most = if let Kept::Part(most) = kept { most } else { size };
        let bytes = message.payload().map(|bytes| bytes.get(..most).unwrap_or(bytes));
        let (what, payload) = match (kept, direction, message) {
            (Kept::Count, ..) => return Ok(Some(Taken(None))),
            (Kept::Payload | Kept::Part(_), Direction::ToInstance, _) => (What::Input, bytes),
            (Kept::Payload | Kept::Part(_), Direction::ToUser, ChannelMessage::Stderr(_)) => {
                (What::Stderr, bytes)
            }
            (Kept::Payload | Kept::Part(_), Direction::ToUser, _) => (What::Output, bytes),
            (Kept::Note, ..) => match Note::of(message) {
                Some(note) => (What::Note(direction, note), None),
                None => return Ok(Some(Taken(None))),
            },
        };
        let record = Record { millis, channel, what, payload: Vec::new() };
        self.append(&mut state, record, payload.unwrap_or_default());
        Ok(Some(state.taken(channel, payload.map_or(0, |bytes| bytes.len() as u64))))
    }

    /// Whether what lies before this many records may be passed on, now that they are on the disk or never will be.
    pub(super) fn free(&self, records: u64) -> Result<(), TapeError> {
        let state = self.lock();
        match &state.failed {
            Some(why) if self.mode == Mode::Strict && state.durable.records < records => {
                Err(TapeError::Failed(why.clone()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn end(&self, end: SessionEnd, now: Timestamp) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.lasted = self.millis();
            // The clock may have been set back meanwhile: then the tape's own time counts.
            let began = self.header.started_at;
            let lasted = std::time::Duration::from_millis(state.lasted);
            state.end = Some((end, began.checked_add(lasted).map_or(now, |ended| ended.max(now))));
        }
        drop(state);
        self.wake.notify_one();
        self.now.notify_one();
    }

    /// What the next frame holds.
    pub(super) fn batch(&self) -> Batch {
        let ending = self.lock().end.is_some();
        if ending {
            let channels = self.lock().ledger.numbers();
            self.close_operations(&channels);
        }
        let mut state = self.lock();
        let millis = if ending { state.lasted } else { self.millis() };
        let note = |channel, what| Record { millis, channel, what, payload: Vec::new() };
        for channel in std::mem::take(&mut state.counted) {
            if let Some(summary) = state.ledger.summary(channel) {
                self.append(&mut state, note(channel, What::Counted(summary)), &[]);
            }
        }
        let end = if ending { state.end.clone() } else { None };
        if let Some((end, at)) = &end {
            // Thousands of channels would make a record too long to write: those that closed have told already.
            let what = What::End(end.clone(), *at, state.ledger.summaries_of_open());
            self.append(&mut state, note(0, what), &[]);
            state.over = true;
        }
        let mut records = std::mem::take(&mut state.full);
        records.push(std::mem::take(&mut state.pending));
        Batch { records, reach: state.reach, end }
    }

    /// So much is on the disk now.
    pub(super) fn settle(&self, reach: Reach) {
        let mut state = self.lock();
        state.durable = reach;
        while state.unkept.front().is_some_and(|(after, ..)| *after <= reach.records) {
            state.unkept.pop_front();
        }
        drop(state);
        self.room.notify_waiters();
        self.synced.send_replace(reach.records);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    pub(super) fn fail(&self, why: &str) {
        let mut state = self.lock();
        if state.failed.is_none() {
            state.failed = Some(why.to_owned());
        }
        for (_, channel, bytes) in std::mem::take(&mut state.unkept) {
            state.ledger.unkept(channel, bytes, why);
        }
        state.durable.bytes = state.reach.bytes;
        drop(state);
        self.failed.send_replace(Some(why.to_owned()));
        self.synced.send_replace(u64::MAX);
        self.room.notify_waiters();
        self.wake.notify_one();
        self.now.notify_one();
    }
}

impl State {
    /// A message was appended, with so much payload: when it may be passed on.
    fn taken(&mut self, channel: u32, payload: u64) -> Taken {
        let after = self.reach.records;
        if payload > 0 {
            self.unkept.push_back((after, channel, payload));
        }
        if self.reach.loose - self.durable.loose + payload > LOOSE {
            return Taken(Some(after));
        }
        self.reach.loose += payload;
        Taken(None)
    }
}

/// Completed operations that wait for the trail.
const MOST_OPERATIONS: usize = 1024;
/// Bytes after which records go into the next frame.
const LONG_FRAME: usize = 1 << 20;
