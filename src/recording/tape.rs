//! The writer of one session's tape.
//!
//! A [`Tape`] takes messages into a small buffer and returns; one task seals the buffer into a frame and syncs it, at
//! most [`INTERVAL`] later. More than [`UNSYNCED`] bytes never wait: then [`Tape::record`] does, and with it the relay.
//! A write that fails ends the tape, and [`Tape::failed`] tells whoever holds it; with [`Mode::BestEffort`] the session
//! goes on and the ledger counts what is lost. A tape that ended is packed (see [`super::pack`]).

mod writing;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use keystore::Recording;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::disk::Reserve;
use super::format::{Header, Note, Record, Records, What};
use super::frames::Writer;
use super::ledger::{ChannelSummary, Kept, Ledger};
use super::message::{ChannelMessage, Direction};
use super::operations::Operation;
use super::summary::{SessionEnd, SessionStatus, Summary};
use super::tapes::TapeError;
use writing::{Batch, write};

/// What happens to a session whose tape can no longer be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It ends.
    #[default]
    Strict,
    /// It goes on; the ledger says what is lost.
    BestEffort,
}

impl Mode {
    /// Its name, as people type it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => Recording::Strict.as_str(),
            Self::BestEffort => Recording::BestEffort.as_str(),
        }
    }

    pub(super) fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

impl From<Recording> for Mode {
    fn from(said: Recording) -> Self {
        match said {
            Recording::Strict => Self::Strict,
            Recording::BestEffort => Self::BestEffort,
        }
    }
}

/// A running tape. Clones write to the same tape; when the last one is dropped unsealed, it ends as killed.
#[derive(Clone)]
pub struct Tape(Arc<Hold>);

struct Hold(Arc<Deck>);

impl Drop for Hold {
    fn drop(&mut self) {
        let end =
            SessionEnd { status: SessionStatus::Killed, reason: Some("abandoned by the daemon".to_owned()) };
        self.0.end(end, Timestamp::now());
    }
}

/// What a tape and its writing task share.
pub(super) struct Deck {
    header: Header,
    files: Files,
    mode: Mode,
    started: Instant,
    state: Mutex<State>,
    /// There is something to write.
    wake: Notify,
    /// It should be written now.
    now: Notify,
    /// There may be room again.
    room: Notify,
    failed: watch::Sender<Option<String>>,
    ended: watch::Sender<Option<Summary>>,
    /// How many records are on the disk.
    synced: watch::Sender<u64>,
    /// Somebody watches.
    watched: watch::Sender<bool>,
    /// To those who watch; most sessions nobody ever does.
    live: OnceLock<broadcast::Sender<Arc<Record>>>,
    /// Operations on files were completed.
    operated: Notify,
}

/// Where a running tape lies, and what opens it.
pub(super) struct Files {
    pub(super) tape: PathBuf,
    pub(super) summary: PathBuf,
    pub(super) key: Zeroizing<[u8; 32]>,
    /// The audit trail's reserve: where it is used up, what room there is belongs to the trail.
    pub(super) reserve: Option<Reserve>,
}

/// How much a tape keeps, and what if it cannot.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Bytes kept each way of a channel without a terminal.
    pub limit: u64,
    /// What is typed at a terminal is kept too, once the terminal showed it.
    pub typed: bool,
    /// What happens to a session whose tape can no longer be written.
    pub mode: Mode,
}

struct State {
    pending: Records,
    /// What came before those, in frames of its own: no frame may grow too long to be written.
    full: Vec<Records>,
    /// Channels whose last word is on the tape.
    closed: BTreeSet<u32>,
    /// Records taken in all.
    taken: u64,
    latest: u64,
    operations: VecDeque<(u32, Operation)>,
    in_flight: usize,
    ledger: Ledger,
    /// Channels whose counts changed since the last frame.
    counted: BTreeSet<u32>,
    failed: Option<String>,
    end: Option<(SessionEnd, Timestamp)>,
    /// The last record is on its way: the ledger says what the tape says, and no more.
    over: bool,
}

/// Starts a tape on `writer`; the task that writes it runs until it is sealed.
pub(super) fn start(header: Header, writer: Writer, files: Files, terms: Terms) -> (Tape, Arc<Deck>) {
    let mut ledger = Ledger::new(terms.limit);
    ledger.keeps_typed = terms.typed;
    let state = State {
        pending: Records::default(),
        full: Vec::new(),
        closed: BTreeSet::new(),
        taken: 0,
        latest: 0,
        operations: VecDeque::new(),
        in_flight: 0,
        ledger,
        counted: BTreeSet::new(),
        failed: None,
        end: None,
        over: false,
    };
    let deck = Arc::new(Deck {
        header,
        files,
        mode: terms.mode,
        started: Instant::now(),
        state: Mutex::new(state),
        wake: Notify::new(),
        now: Notify::new(),
        room: Notify::new(),
        failed: watch::Sender::new(None),
        ended: watch::Sender::new(None),
        synced: watch::Sender::new(0),
        watched: watch::Sender::new(false),
        live: OnceLock::new(),
        operated: Notify::new(),
    });
    tokio::spawn(write(Arc::clone(&deck), writer));
    (Tape(Arc::new(Hold(Arc::clone(&deck)))), deck)
}

impl Tape {
    /// A channel opened.
    pub fn channel_opened(&self, number: u32) {
        self.deck().put(|state| {
            state.ledger.opened(number);
            Some((number, What::Opened))
        });
    }

    /// A channel carries a port forward to `target`.
    pub fn forward_opened(&self, number: u32, target: &str) {
        self.deck().put(|state| {
            state.ledger.forward(number, target);
            Some((number, What::Opened))
        });
    }

    /// A channel closed; its ledger as it then stands.
    pub fn channel_closed(&self, number: u32) -> Option<ChannelSummary> {
        let deck = self.deck();
        deck.close_operations(&[number]);
        let mut closed = None;
        deck.put(|state| {
            closed = state.ledger.summary(number);
            state.closed.insert(number);
            Some((number, What::Closed(closed.clone()?)))
        });
        closed.or_else(|| deck.lock().ledger.summary(number))
    }

    /// The next completed operation on a file, and its channel; waits for one. Cancel-safe.
    pub async fn next_operation(&self) -> (u32, Operation) {
        let deck = self.deck();
        loop {
            let operated = deck.operated.notified();
            tokio::pin!(operated);
            operated.as_mut().enable();
            if let Some(found) = self.take_operation() {
                return found;
            }
            operated.await;
        }
    }

    /// A completed operation on a file that nobody took yet, and its channel.
    pub fn take_operation(&self) -> Option<(u32, Operation)> {
        let deck = self.deck();
        let taken = deck.lock().operations.pop_front();
        // There may be room for what completes the next one.
        deck.room.notify_waiters();
        taken
    }

    /// Resolves once somebody watches the session. Cancel-safe.
    pub async fn watched(&self) {
        let mut watched = self.deck().watched.subscribe();
        if watched.wait_for(|watched| *watched).await.is_err() {
            std::future::pending().await
        }
    }

    /// What happens to the session if the tape can no longer be written.
    pub fn mode(&self) -> Mode {
        self.deck().mode
    }

    /// Takes a message. Once this returns the recorder has it, and it may be sent. Waits while too much is unsynced, or too
    /// many operations were not taken.
    /// Cancel-safe: a cancelled message was not taken.
    ///
    /// # Errors
    /// [`TapeError::Failed`] once the tape cannot be written any more; [`TapeError::Sealed`] after its end.
    pub async fn record(
        &self,
        channel: u32,
        direction: Direction,
        message: &ChannelMessage,
    ) -> Result<(), TapeError> {
        let deck = self.deck();
        let size = message.payload().map_or(0, |bytes| bytes.len());
        loop {
            let room = deck.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if deck.take_message((channel, direction, message), size)? {
                deck.wake.notify_one();
                return Ok(());
            }
            deck.now.notify_one();
            room.await;
        }
    }

    /// Resolves with the reason once the tape cannot be written any more. Cancel-safe.
    pub async fn failed(&self) -> String {
        let mut failed = self.deck().failed.subscribe();
        let known = failed.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match known {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends the tape: the last frame and the summary beside it are synced when this returns.
    ///
    /// # Errors
    /// [`TapeError::Sealed`] if the writing task was lost.
    pub async fn seal(&self, end: SessionEnd, now: Timestamp) -> Result<Summary, TapeError> {
        self.deck().end(end, now);
        let mut ended = self.deck().ended.subscribe();
        let summary = ended.wait_for(Option::is_some).await.map_err(|_| TapeError::Sealed)?;
        summary.clone().ok_or(TapeError::Sealed)
    }

    fn deck(&self) -> &Deck {
        &self.0.0
    }
}

impl Deck {
    /// The summary as it stands.
    pub(super) fn summary(&self) -> Summary {
        let ended = self.ended.borrow().clone();
        ended.unwrap_or_else(|| Summary::of(self.header.clone(), self.lock().ledger.summaries()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Joins the running tape: how many records lie before what the receiver gets.
    pub(super) fn join(&self) -> (u64, broadcast::Receiver<Arc<Record>>) {
        let state = self.lock();
        let joined =
            (state.taken, self.live.get_or_init(|| broadcast::Sender::new(WATCHERS_BEHIND)).subscribe());
        drop(state);
        self.watched.send_replace(true);
        joined
    }

    /// Resolves once `records` lie on the disk, or the tape failed.
    pub(super) async fn synced(&self, records: u64) {
        self.now.notify_one();
        let mut synced = self.synced.subscribe();
        if synced.wait_for(|synced| *synced >= records).await.is_err() {
            tracing::debug!("tape.gone");
        }
    }

    /// Where it lies, and what opens it.
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Ends the operations that these channels left open.
    fn close_operations(&self, channels: &[u32]) {
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
        // Only a map with strange keys could not be encoded.
        if let Err(error) = state.pending.push(&record, payload) {
            state.failed = Some(error.to_string());
        }
        state.latest = record.millis;
        state.taken += 1;
        if let Some(live) = self.live.get().filter(|live| live.receiver_count() > 0) {
            // Who watches and does not keep up misses some; the session does not wait for them.
            drop(live.send(Arc::new(Record { payload: payload.to_vec(), ..record })));
        }
    }

    fn put(&self, happened: impl FnOnce(&mut State) -> Option<(u32, What)>) {
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

    /// Says whether there was room.
    fn take_message(&self, seen: (u32, Direction, &ChannelMessage), size: usize) -> Result<bool, TapeError> {
        let (channel, direction, message) = seen;
        let mut state = self.lock();
        if let Some(why) = state.failed.clone() {
            if self.mode == Mode::BestEffort {
                if state.operations.len() >= MOST_OPERATIONS && matches!(message, ChannelMessage::Data(_)) {
                    return Ok(false);
                }
                state.ledger.lost(channel, (direction, message), &why);
                // The trail may still have room: what is done to files is told there.
                let done = state.ledger.operations(channel);
                state.operations.extend(done.into_iter().map(|operation| (channel, operation)));
                self.operated.notify_waiters();
                return Ok(true);
            }
            return Err(TapeError::Failed(why));
        }
        if state.end.is_some() {
            return Err(TapeError::Sealed);
        }
        // Only what can complete operations waits for those before it: last words never do.
        if state.operations.len() >= MOST_OPERATIONS && matches!(message, ChannelMessage::Data(_)) {
            return Ok(false);
        }
        let unsynced = state.unsynced() + state.in_flight;
        if unsynced > 0 && unsynced + size > UNSYNCED {
            return Ok(false);
        }
        state.closed.remove(&channel);
        let kept = state.ledger.observe(channel, direction, message);
        let millis = self.millis();
        self.note_operations(&mut state, channel, millis);
        for line in state.ledger.typed(channel) {
            let typed = Record { millis, channel, what: What::Input, payload: Vec::new() };
            self.append(&mut state, typed, &line);
        }
        let (what, payload) = match (kept, direction, message) {
            (Kept::Count, ..) => {
                state.counted.insert(channel);
                return Ok(true);
            }
            (Kept::Payload, Direction::ToInstance, _) => (What::Input, message.payload()),
            (Kept::Payload, Direction::ToUser, ChannelMessage::Stderr(_)) => {
                (What::Stderr, message.payload())
            }
            (Kept::Payload, Direction::ToUser, _) => (What::Output, message.payload()),
            (Kept::Note, ..) => match Note::of(message) {
                Some(note) => (What::Note(direction, note), None),
                None => return Ok(true),
            },
        };
        let record = Record { millis, channel, what, payload: Vec::new() };
        self.append(&mut state, record, payload.map_or(&[], |bytes| bytes.as_ref()));
        Ok(true)
    }

    fn end(&self, end: SessionEnd, now: Timestamp) {
        self.lock().end.get_or_insert((end, now));
        self.wake.notify_one();
        self.now.notify_one();
    }

    /// What the next frame holds.
    fn batch(&self) -> Batch {
        let ending = self.lock().end.is_some();
        if ending {
            let channels = self.lock().ledger.numbers();
            self.close_operations(&channels);
        }
        let mut state = self.lock();
        let millis = self.millis();
        let note = |channel, what| Record { millis, channel, what, payload: Vec::new() };
        for channel in std::mem::take(&mut state.counted) {
            if let Some(summary) = state.ledger.summary(channel) {
                self.append(&mut state, note(channel, What::Counted(summary)), &[]);
            }
        }
        let end = if ending { state.end.clone() } else { None };
        if let Some((end, at)) = &end {
            // Thousands of channels would make a record too long to write: those that closed have told already.
            let mut open = state.ledger.summaries();
            open.retain(|summary| !state.closed.contains(&summary.channel));
            let what = What::End(end.clone(), *at, open);
            self.append(&mut state, note(0, what), &[]);
            state.over = true;
        }
        state.in_flight = state.unsynced();
        let mut records = std::mem::take(&mut state.full);
        records.push(std::mem::take(&mut state.pending));
        Batch { records, end }
    }

    fn fail(&self, why: &str) {
        let mut state = self.lock();
        state.failed = Some(why.to_owned());
        state.in_flight = 0;
        drop(state);
        self.failed.send_replace(Some(why.to_owned()));
        self.synced.send_replace(u64::MAX);
        self.room.notify_waiters();
    }
}

impl State {
    /// Bytes that wait to be written.
    fn unsynced(&self) -> usize {
        self.full.iter().map(Records::len).sum::<usize>() + self.pending.len()
    }
}

/// How long a message may lie unsynced.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many bytes may lie unsynced; one message larger than this may, alone.
const UNSYNCED: usize = 64 * 1024;
/// Completed operations that wait for the trail.
const MOST_OPERATIONS: usize = 1024;
/// Bytes after which records go into the next frame.
const LONG_FRAME: usize = 1 << 20;
/// Records a watcher may be behind before some are left out.
const WATCHERS_BEHIND: usize = 1024;
