//! The writer of one session's tape.
//!
//! A [`Tape`] takes messages into a small buffer and returns; one task seals the buffer into a frame and syncs it, at
//! most [`INTERVAL`] later. More than [`UNSYNCED`] bytes never wait: then [`Tape::record`] does, and with it the relay.
//! A write that fails ends the tape, and [`Tape::failed`] tells whoever holds it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::format::{Header, Note, Record, What, Writer, encode};
use super::ledger::{ChannelSummary, Kept, Ledger};
use super::message::{ChannelMessage, Direction};
use super::tapes::{TapeError, write_beside};

/// Where a tape is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// Running.
    Live,
    /// Ended by its peers.
    Closed,
    /// Cut.
    Killed,
    /// The daemon died while it was written.
    Truncated,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// `closed` or `killed`.
    pub status: SessionStatus,
    /// Why, where there is a reason.
    pub reason: Option<String>,
}

/// One session, as `sessions list --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Who, where, since when.
    #[serde(flatten)]
    pub header: Header,
    /// Null while live.
    pub ended_at: Option<Timestamp>,
    /// Where it is in its life.
    pub status: SessionStatus,
    /// Why it ended.
    pub reason: Option<String>,
    /// Bytes from the user.
    pub bytes_in: u64,
    /// Bytes from the instance.
    pub bytes_out: u64,
    /// The ledger.
    pub channels: Vec<ChannelSummary>,
    /// SHA-256 of the tape file, hex; null while live.
    pub digest: Option<String>,
}

impl Summary {
    pub(super) fn of(header: Header, channels: Vec<ChannelSummary>) -> Self {
        Self {
            header,
            ended_at: None,
            status: SessionStatus::Live,
            reason: None,
            bytes_in: channels.iter().map(|c| c.bytes_in).sum(),
            bytes_out: channels.iter().map(|c| c.bytes_out).sum(),
            channels,
            digest: None,
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
}

struct State {
    pending: Vec<u8>,
    in_flight: usize,
    ledger: Ledger,
    /// Channels whose counts changed since the last frame.
    counted: BTreeSet<u32>,
    failed: Option<String>,
    end: Option<(SessionEnd, Timestamp)>,
}

/// Starts a tape on `writer`; the task that writes it runs until it is sealed.
pub(super) fn start(header: Header, writer: Writer, summary_file: PathBuf, limit: u64) -> (Tape, Arc<Deck>) {
    let state = State {
        pending: Vec::new(),
        in_flight: 0,
        ledger: Ledger::new(limit),
        counted: BTreeSet::new(),
        failed: None,
        end: None,
    };
    let deck = Arc::new(Deck {
        header,
        started: Instant::now(),
        state: Mutex::new(state),
        wake: Notify::new(),
        now: Notify::new(),
        room: Notify::new(),
        failed: watch::Sender::new(None),
        ended: watch::Sender::new(None),
    });
    tokio::spawn(write(Arc::clone(&deck), writer, summary_file));
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
        let mut closed = None;
        self.deck().put(|state| {
            closed = state.ledger.summary(number);
            Some((number, What::Closed(closed.clone()?)))
        });
        closed
    }

    /// Takes a message. Once this returns the recorder has it, and it may be sent. Waits while too much is unsynced.
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
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
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

    fn micros(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn put(&self, happened: impl FnOnce(&mut State) -> Option<(u32, What)>) {
        let mut state = self.lock();
        if let Some((channel, what)) = happened(&mut state) {
            state.append(&Record { micros: self.micros(), channel, what, payload: Vec::new() }, &[]);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Says whether there was room.
    fn take_message(&self, seen: (u32, Direction, &ChannelMessage), size: usize) -> Result<bool, TapeError> {
        let (channel, direction, message) = seen;
        let mut state = self.lock();
        if let Some(why) = &state.failed {
            return Err(TapeError::Failed(why.clone()));
        }
        if state.end.is_some() {
            return Err(TapeError::Sealed);
        }
        let unsynced = state.pending.len() + state.in_flight;
        if unsynced > 0 && unsynced + size > UNSYNCED {
            return Ok(false);
        }
        let kept = state.ledger.observe(channel, direction, message);
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
        let record = Record { micros: self.micros(), channel, what, payload: Vec::new() };
        state.append(&record, payload.map_or(&[], |bytes| bytes.as_ref()));
        Ok(true)
    }

    fn end(&self, end: SessionEnd, now: Timestamp) {
        self.lock().end.get_or_insert((end, now));
        self.wake.notify_one();
        self.now.notify_one();
    }

    /// What the next frame holds, and the end if it is the last.
    fn batch(&self) -> (Vec<u8>, Option<(SessionEnd, Timestamp)>) {
        let mut state = self.lock();
        let micros = self.micros();
        for channel in std::mem::take(&mut state.counted) {
            if let Some(summary) = state.ledger.summary(channel) {
                state.append(
                    &Record { micros, channel, what: What::Counted(summary), payload: Vec::new() },
                    &[],
                );
            }
        }
        let end = state.end.clone();
        if let Some((end, _)) = &end {
            let what = What::End(end.clone(), state.ledger.summaries());
            state.append(&Record { micros, channel: 0, what, payload: Vec::new() }, &[]);
        }
        let batch = std::mem::take(&mut state.pending);
        state.in_flight = batch.len();
        (batch, end)
    }

    fn fail(&self, why: &str) {
        let mut state = self.lock();
        state.failed = Some(why.to_owned());
        state.in_flight = 0;
        drop(state);
        self.failed.send_replace(Some(why.to_owned()));
        self.room.notify_waiters();
    }
}

impl State {
    fn append(&mut self, record: &Record, payload: &[u8]) {
        // Only a length over 4 GiB or a map with strange keys could not be encoded.
        if let Err(error) = encode(record, payload, &mut self.pending) {
            self.failed = Some(error.to_string());
        }
    }
}

/// Writes frames until the tape ends, then the summary.
async fn write(deck: Arc<Deck>, mut writer: Writer, summary_file: PathBuf) {
    loop {
        deck.wake.notified().await;
        // A little patience makes one sync of many messages. A full buffer or the end cuts it short.
        drop(tokio::time::timeout(INTERVAL, deck.now.notified()).await);
        let (batch, end) = deck.batch();
        if batch.is_empty() {
            continue;
        }
        let last = end.is_some();
        let written = tokio::task::spawn_blocking(move || {
            let written = writer.frame(&batch, last);
            if written.is_err() {
                // The digest then covers the file as it is; if even this fails, verification will say so.
                if let Err(error) = writer.cut_back() {
                    tracing::error!(%error, "tape.cut_back_failed");
                }
            }
            (writer, written)
        });
        let failure = match written.await {
            Ok((back, written)) => {
                writer = back;
                written.err().map(|e| e.to_string())
            }
            Err(lost) => {
                deck.fail(&lost.to_string());
                return;
            }
        };
        match &failure {
            None => {
                deck.lock().in_flight = 0;
                deck.room.notify_waiters();
            }
            Some(why) => deck.fail(why),
        }
        if failure.is_some() || last {
            return finish(&deck, writer.digest(), summary_file, end).await;
        }
    }
}

/// Waits for the end if the tape failed before it, and writes the summary.
async fn finish(deck: &Deck, digest: String, file: PathBuf, end: Option<(SessionEnd, Timestamp)>) {
    let (end, at) = loop {
        match end.clone().or_else(|| deck.lock().end.clone()) {
            Some(end) => break end,
            None => deck.wake.notified().await,
        }
    };
    let mut summary = Summary::of(deck.header.clone(), deck.lock().ledger.summaries());
    summary.ended_at = Some(at);
    summary.status = end.status;
    summary.reason = end.reason;
    summary.digest = Some(digest);
    let written = {
        let summary = summary.clone();
        tokio::task::spawn_blocking(move || write_beside(&file, &summary)).await
    };
    // A summary that is missing is made again at the next start, from the tape.
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "tape.summary_failed"),
        Err(error) => tracing::error!(%error, "tape.summary_failed"),
    }
    deck.ended.send_replace(Some(summary));
}

/// How long a message may lie unsynced.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many bytes may lie unsynced; one message larger than this may, alone.
const UNSYNCED: usize = 64 * 1024;
