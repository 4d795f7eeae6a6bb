//! The writer of one session's tape.
//!
//! A [`Tape`] takes messages into a small buffer; one task seals the buffer into a frame and syncs it, at most
//! [`INTERVAL`] later. At most [`LOOSE`] bytes are passed on before they are synced; what comes on top of them is held
//! until it is, up to [`UNSYNCED`] bytes (ADR 12). A write that fails ends the tape, and [`Tape::failed`] tells whoever holds it; with [`Mode::BestEffort`] the session
//! goes on and the ledger counts what is lost. A tape that ended is packed (see [`super::pack`]).

mod deck;
mod held;
mod writing;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use keystore::Recording;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::digest::Hashing;
use super::disk::Reserve;
use super::format::{Header, Record, Records, What};
use super::frames::Writer;
use super::ledger::{ChannelSummary, Ledger};
use super::message::{ChannelMessage, Direction};
use super::operations::Operation;
use super::summary::{SessionEnd, SessionStatus, Summary};
use super::tapes::TapeError;
use writing::write;

pub use held::{Held, Turn};

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
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// Bytes kept each way of a channel without a terminal.
    pub limit: u64,
    /// What is typed at a terminal is kept too, once the terminal showed it.
    pub typed: bool,
    /// The payload of forwards is counted and not hashed.
    pub counts_forwards: bool,
    /// How payload is hashed.
    pub hashing: Hashing,
    /// What happens to a session whose tape can no longer be written.
    pub mode: Mode,
}

struct State {
    pending: Records,
    /// What came before those, in frames of its own: no frame may grow too long to be written.
    full: Vec<Records>,
    latest: u64,
    operations: VecDeque<(u32, Operation)>,
    /// What is taken, and what of it lies on the disk.
    reach: Reach,
    durable: Reach,
    /// Payload that is not on the disk: after how many records, of which channel, how much.
    unkept: VecDeque<(u64, u32, u64)>,
    ledger: Ledger,
    /// Channels whose counts changed since the last frame.
    counted: BTreeSet<u32>,
    failed: Option<String>,
    end: Option<(SessionEnd, Timestamp)>,
    /// When that was, in milliseconds since the session started.
    lasted: u64,
    /// The last record is on its way: the ledger says what the tape says, and no more.
    over: bool,
}

/// How far a tape is, counted from its beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Reach {
    /// Records.
    records: u64,
    /// Bytes of them, before they are compressed.
    bytes: u64,
    /// Bytes of payload that might be passed on before they were synced.
    loose: u64,
}

/// A message that the tape has, and how many records must be on the disk before it may be passed on; none: it may be now.
#[derive(Debug)]
struct Taken(Option<u64>);

/// Starts a tape on `writer`; the task that writes it runs until it is sealed.
pub(super) fn start(header: Header, writer: Writer, files: Files, terms: Terms) -> (Tape, Arc<Deck>) {
    let state = State {
        pending: Records::default(),
        full: Vec::new(),
        latest: 0,
        operations: VecDeque::new(),
        reach: Reach::default(),
        durable: Reach::default(),
        unkept: VecDeque::new(),
        ledger: Ledger::new(terms),
        counted: BTreeSet::new(),
        failed: None,
        end: None,
        lasted: 0,
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
            closed = state.ledger.over(number);
            Some((number, What::Closed(closed.clone()?)))
        });
        closed.or_else(|| deck.lock().ledger.summary(number))
    }

    /// Whether the session has had as many channels as can be told of it: it may open no more.
    pub fn is_full(&self) -> bool {
        self.deck().lock().ledger.is_full()
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
    /// many operations were not taken. A relay of much reads ahead meanwhile: [`Tape::held`].
    /// A message of which this was cancelled may lie on the tape; it must not be passed on.
    ///
    /// # Errors
    /// [`TapeError::Failed`] once the tape cannot be written any more; [`TapeError::Sealed`] after its end.
    pub async fn record(
        &self,
        channel: u32,
        direction: Direction,
        message: &ChannelMessage,
    ) -> Result<(), TapeError> {
        let taken = self.take(channel, direction, message).await?;
        self.free(&taken).await
    }

    /// What one side of a channel says, each message held until it may be passed on.
    pub fn held(&self, channel: u32, direction: Direction) -> Held<'_> {
        Held::new(self, channel, direction)
    }

    /// Cancel-safe: a cancelled message was not taken.
    async fn take(
        &self,
        channel: u32,
        direction: Direction,
        message: &ChannelMessage,
    ) -> Result<Taken, TapeError> {
        let deck = self.deck();
        let size = message.payload().map_or(0, |bytes| bytes.len());
        loop {
            let room = deck.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(taken) = deck.take_message((channel, direction, message), size)? {
                deck.wake.notify_one();
                if taken.0.is_some() {
                    deck.now.notify_one();
                }
                return Ok(taken);
            }
            deck.now.notify_one();
            room.await;
        }
    }

    /// Waits until a message may be passed on. Cancel-safe.
    async fn free(&self, Taken(after): &Taken) -> Result<(), TapeError> {
        let Some(after) = after else { return Ok(()) };
        let deck = self.deck();
        deck.reached(*after).await;
        deck.free(*after)
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

/// How long a message may lie unsynced.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many bytes may be passed on before they are synced.
const LOOSE: u64 = 64 << 10;
/// How many bytes may lie unsynced, those that are held included; one message larger than this may, alone.
const UNSYNCED: u64 = 2 << 20;
/// Records a watcher may be behind before some are left out.
const WATCHERS_BEHIND: usize = 1024;
