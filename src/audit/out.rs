//! Out of the house: every event, in order, to a syslog server and a webhook, with the signed heads.
//!
//! Each receiver has a thread that follows the journal on the disk, so a slow or dead one holds nothing up, and a cursor in
//! the state directory that is moved on only after the receiver took what is before it: nothing is skipped across a
//! `kill -9`, and what was sent twice has the same `seq`. A cursor that the trail no longer leads to is a fault: the trail was
//! rolled back or rewritten. Each cursor is marked (see [`super::mark`]): one that the bastion did not write would skip events
//! in silence, so it counts for nothing, all is sent again, and the trail says so.

mod syslog;
mod tls;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use syslog::{SyslogAddress, SyslogTerms};
pub use webhook::WebhookTerms;

use super::event::Event;
use super::mark::Marks;
use super::text::harmless;
use super::trail::{AuditError, Follow, Trail, checkpoint_dir, write_durably};

/// Where events go.
#[derive(Debug, Clone, Default)]
pub struct Receivers {
    /// A syslog server.
    pub syslog: Option<SyslogTerms>,
    /// The name of this host in syslog messages.
    pub host: String,
    /// A webhook.
    pub webhook: Option<WebhookTerms>,
}

/// How far a receiver is.
#[derive(Debug)]
pub struct Standing {
    /// `syslog` or `webhook`.
    pub name: &'static str,
    /// Its address.
    pub target: String,
    delivered: AtomicU64,
    fault: Mutex<Option<String>>,
}

impl Standing {
    /// The number of the last event that it took.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, fault: Option<String>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

impl Receivers {
    /// Whether the files that they name can be used; otherwise the key of the configuration that names one, and why not.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(self) -> Result<(), (&'static str, String)> {
        if let Some(terms) = self.syslog {
            syslog::Syslog::new(terms, &self.host).map_err(|why| ("audit.syslog.ca_file", why))?;
        }
        let Some(terms) = self.webhook else { return Ok(()) };
        let secret = format!("{}: ", terms.secret.display());
        webhook::Webhook::new(terms).map(drop).map_err(|why| {
            let of_secret = why.starts_with(&secret);
            (if of_secret { "audit.webhook.secret" } else { "audit.webhook.ca_file" }, why)
        })
    }
}

/// The receivers at work.
#[derive(Debug, Default)]
pub struct Outlets {
    standings: Vec<Arc<Standing>>,
    stop: Arc<AtomicBool>,
    rewound: Vec<Event>,
}

impl Outlets {
    /// Begins to send what `trail` holds, each receiver from where it was.
    ///
    /// # Errors
    /// A file of a cursor or the webhook's secret cannot be read.
    pub fn open(trail: &Arc<Trail>, receivers: Receivers) -> Result<Self, AuditError> {
        let mut outlets = Self::default();
        let unusable = |why: String| AuditError::Interrupted(why);
        if let Some(terms) = receivers.syslog {
            let target = terms.address.to_string();
            let to = syslog::Syslog::new(terms, &receivers.host).map_err(unusable)?;
            outlets.start(trail, ("syslog", target), Box::new(to))?;
        }
        if let Some(terms) = receivers.webhook {
            let target = terms.url.clone();
            let to = webhook::Webhook::new(terms).map_err(unusable)?;
            outlets.start(trail, ("webhook", target), Box::new(to))?;
        }
        Ok(outlets)
    }

    /// How far each is.
    pub fn standings(&self) -> &[Arc<Standing>] {
        &self.standings
    }

    /// What the trail is to hear: which of them get everything again, and why.
    pub fn rewound(&self) -> &[Event] {
        &self.rewound
    }

    /// Lets them take what is left, for a while; what they do not take waits for the next start. Cancel-safe.
    pub async fn settle(&self, head: u64, patience: Duration) {
        let behind = || self.standings.iter().any(|standing| standing.delivered() < head);
        let waiting = async {
            while behind() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            tracing::warn!("audit.receivers_behind: they get the rest after the next start");
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    fn start(
        &mut self,
        trail: &Arc<Trail>,
        (name, target): (&'static str, String),
        to: Box<dyn Receiver>,
    ) -> Result<(), AuditError> {
        let file = trail.dir.join("outlets").join(format!("{name}.json"));
        let keeping = Cursors { file, name, marks: trail.marks().clone() };
        let (cursor, doubt) = keeping.read(&target)?;
        if let Some(reason) = doubt {
            tracing::error!(receiver = name, %reason, "audit.receiver_rewound");
            self.rewound.push(Event::ReceiverRewound { receiver: format!("{name} {target}"), reason });
        }
        let delivered = AtomicU64::new(cursor.seq);
        let standing = Arc::new(Standing { name, target, delivered, fault: Mutex::default() });
        self.standings.push(Arc::clone(&standing));
        let (stop, follow) = (Arc::clone(&self.stop), trail.follow());
        let work =
            Work { to, keeping, cursor, standing, stop, follow, checkpoints: checkpoint_dir(&trail.dir) };
        // Its own thread: what it waits for is nobody else's. It is not joined: what it sends twice does no harm.
        let thread = std::thread::Builder::new().name(format!("audit-{name}"));
        thread.spawn(move || work.go()).map(drop).map_err(|e| AuditError::Interrupted(e.to_string()))
    }
}

/// An event on its way.
struct Parcel {
    seq: u64,
    hash: String,
    event: String,
    time: String,
    /// The event with its `hash`, one line. A checkpoint has its `statement` and its `signature` too.
    json: String,
}

/// Takes events.
trait Receiver: Send {
    /// Returns once the receiver has all of them.
    fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), String>;

    /// How many it takes at a time.
    fn most(&self) -> usize;
}

/// The last event that a receiver took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Cursor {
    receiver: String,
    seq: u64,
    hash: String,
}

/// Where and how the cursor of a receiver is kept.
struct Cursors {
    file: PathBuf,
    name: &'static str,
    marks: Marks,
}

impl Cursors {
    /// The cursor of this receiver, and why it is not believed; the beginning for another.
    fn read(&self, target: &str) -> Result<(Cursor, Option<String>), AuditError> {
        let fresh = || Cursor { receiver: target.to_owned(), ..Cursor::default() };
        let text = match std::fs::read(&self.file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((fresh(), None)),
            read => read.map_err(|source| AuditError::File { path: self.file.clone(), source })?,
        };
        let doubt = |what: &str| (fresh(), Some(format!("{}: {what}", self.file.display())));
        let Ok(kept) = serde_json::from_slice::<Kept>(&text) else {
            return Ok(doubt("it is no cursor; everything is sent again"));
        };
        let Kept { cursor, mark } = kept;
        if cursor.receiver != target {
            return Ok((fresh(), None));
        }
        if self.mark(&cursor, |parts| self.marks.hold_for_file(parts, &mark)) {
            Ok((cursor, None))
        } else {
            Ok(doubt(NOT_OURS))
        }
    }

    fn write(&self, cursor: &Cursor) -> Result<(), AuditError> {
        if let Some(dir) = self.file.parent() {
            std::fs::create_dir_all(dir)
                .map_err(|source| AuditError::File { path: dir.to_owned(), source })?;
        }
        let mark = self.mark(cursor, |parts| self.marks.of_file(parts));
        write_durably(&self.file, &serde_json::to_vec(&Kept { cursor: cursor.clone(), mark })?)
    }

    /// What a cursor's mark is over.
    fn mark<T>(&self, cursor: &Cursor, over: impl FnOnce([&[u8]; 4]) -> T) -> T {
        let seq = cursor.seq.to_string();
        over([self.name.as_bytes(), cursor.receiver.as_bytes(), seq.as_bytes(), cursor.hash.as_bytes()])
    }
}

/// A cursor in its file.
#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    cursor: Cursor,
    #[serde(default)]
    mark: String,
}

const NOT_OURS: &str = "its mark is not the bastion's: it was moved by somebody who has the disk and not the keys; everything is sent again";

struct Work {
    to: Box<dyn Receiver>,
    keeping: Cursors,
    cursor: Cursor,
    standing: Arc<Standing>,
    stop: Arc<AtomicBool>,
    follow: Follow,
    checkpoints: PathBuf,
}

impl Work {
    fn go(mut self) {
        let mut waiting: Vec<Parcel> = Vec::new();
        let mut failures = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if waiting.is_empty() {
                match self.more() {
                    Ok(parcels) => waiting = parcels,
                    Err(fault) => {
                        tracing::error!(receiver = self.standing.name, %fault, "audit.receiver_stopped");
                        return self.standing.note(Some(fault));
                    }
                }
            }
            let Some(last) = waiting.last() else {
                self.rest(PAUSE);
                continue;
            };
            let cursor = Cursor { seq: last.seq, hash: last.hash.clone(), ..self.cursor.clone() };
            let taken = self.to.deliver(&waiting);
            match taken.and_then(|()| self.keeping.write(&cursor).map_err(|e| e.to_string())) {
                Ok(()) => {
                    self.standing.delivered.store(cursor.seq, Ordering::Relaxed);
                    self.standing.note(None);
                    (self.cursor, failures) = (cursor, 0);
                    waiting.clear();
                }
                Err(fault) => {
                    let fault = tls::in_words(fault);
                    if failures == 0 {
                        tracing::warn!(receiver = self.standing.name, %fault, "audit.receiver_failed");
                    }
                    self.standing.note(Some(fault));
                    failures += 1;
                    self.rest(back_off(failures));
                }
            }
        }
    }

    /// What comes after the cursor, as much as the receiver takes at a time.
    fn more(&mut self) -> Result<Vec<Parcel>, String> {
        let (most, cursor) = (self.to.most(), &self.cursor);
        let (mut parcels, mut seen) = (Vec::new(), 0);
        let mut rewritten = false;
        let checkpoints = self.checkpoints.clone();
        let read = self.follow.some(most, |entry| {
            seen = entry.seq;
            rewritten |= entry.seq == cursor.seq && entry.hash != cursor.hash;
            let wanted = entry.seq > cursor.seq;
            if wanted {
                parcels.push(Parcel::of(entry, &checkpoints));
            }
            wanted
        });
        let ended = read.map_err(|e| e.to_string())?;
        if rewritten || ended && seen > 0 && seen < cursor.seq {
            return Err(format!(
                "it has event {}, and the trail no longer does: the trail was rolled back or rewritten. Run: keyward logs verify",
                cursor.seq
            ));
        }
        Ok(parcels)
    }

    fn rest(&self, pause: Duration) {
        let end = std::time::Instant::now() + pause;
        while std::time::Instant::now() < end && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE.min(pause));
        }
    }
}

impl Parcel {
    fn of(entry: keystore::journal::Entry, checkpoints: &Path) -> Self {
        let payload = String::from_utf8_lossy(&entry.payload);
        let fields: serde_json::Value = serde_json::from_slice(&entry.payload).unwrap_or_default();
        let text =
            |name: &str| fields.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let mut json =
            format!("{},\"hash\":\"{}\"", payload.strip_suffix('}').unwrap_or(&payload), entry.hash);
        if text("event") == "checkpoint_signed" {
            json.push_str(&head(&fields, checkpoints).unwrap_or_default());
        }
        json.push('}');
        Self {
            seq: entry.seq,
            hash: entry.hash,
            event: text("event"),
            time: text("time"),
            json: harmless(json),
        }
    }
}

/// The signed head that a checkpoint's event tells of, as further fields: with them a receiver's copy proves itself.
fn head(fields: &serde_json::Value, checkpoints: &Path) -> Option<String> {
    let base = checkpoints.join(format!("{:020}", fields.get("through")?.as_u64()?));
    let statement = std::fs::read_to_string(base.with_extension("json")).ok()?;
    let signature = std::fs::read_to_string(base.with_extension("sig")).ok()?;
    let quoted = |text: &str| serde_json::to_string(text).ok();
    Some(format!(",\"statement\":{},\"signature\":{}", quoted(&statement)?, quoted(&signature)?))
}

/// Longer each time, up to a minute, and not all receivers of a network at once.
fn back_off(failures: u32) -> Duration {
    let longest = Duration::from_secs(1 << failures.min(6).saturating_sub(1)).min(Duration::from_secs(60));
    longest.mul_f64(rand::random_range(0.5..1.0))
}

const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
#[path = "out/tests.rs"]
mod tests;
