//! The journal: an append-only, hash-chained file in segments, the truth behind the store and the audit trail.
//!
//! One dedicated thread writes; what arrives while it syncs goes out with the next sync (group commit). An append
//! returns only once its line is on the disk (fdatasync). A failed write or sync poisons the journal, because what
//! the kernel kept of it cannot be known (fsyncgate, PostgreSQL 2018): every later append fails until it is opened
//! again. Opening verifies the whole chain and cuts a torn last line; anything else that is wrong refuses to open.
//!
//! A line is `<seq> <hash> <payload>\n` with hash = SHA-256 of `<previous hash> <seq> <payload>` in hex; before the
//! first line stand 64 zeros. A segment is called after its first line's number: `00000000000000000001.journal`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

mod judged;
mod read;
mod rebase;

use judged::lock;
pub use judged::{Aside, aside};
pub(crate) use rebase::Rebased;
pub use rebase::read_rebased;

pub use read::{Entry, Fault, Reader, Verified, length, newest, newest_line, read, verify, verify_counting};

/// A handle on an open journal; clones share it. Closed, and its lock released, when the last one is dropped.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

/// How a journal is kept.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A new segment is begun once the current one has this many bytes.
    pub segment_bytes: u64,
    /// Bytes set aside in a file of its own, given up when the disk is full so that the journal can go on.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, reserve_bytes: 0 }
    }
}

/// Where a payload is about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    /// Its number; the first is 1.
    pub seq: u64,
    /// The hash of the line before, 64 hex digits.
    pub prev: &'a str,
}

/// Proof that a line is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Its number; 0 is the beginning of an empty journal.
    pub seq: u64,
    /// Its hash, 64 hex digits.
    pub hash: String,
}

impl Receipt {
    /// The point before the first line.
    pub(crate) fn genesis() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

/// Why the journal did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// What is on the disk is not what was written.
    #[error("the journal is damaged: {0}; restore it from a backup, nothing was changed")]
    Fault(#[from] Fault),
    /// Another process has it open.
    #[error("the journal in {0} is open in another process; stop that one first")]
    Locked(PathBuf),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An earlier write failed; nothing is accepted until the journal is opened again.
    #[error("the journal accepts nothing more after a failed write ({0}); free the disk and restart")]
    Poisoned(String),
    /// The payload contains a line break.
    #[error("a journal payload must be one line, of 16 MiB at most")]
    NotOneLine,
}

impl Journal {
    /// Opens the journal in `dir`, which is created if it is not there. Verifies every line and cuts a torn last one.
    ///
    /// # Errors
    /// [`JournalError::Fault`] if the chain does not hold; [`JournalError::Locked`] if it is open elsewhere.
    pub fn open(dir: &Path, options: Options) -> Result<Self, JournalError> {
        Self::open_with(dir, options, read, |_| Ok(()))
    }

    /// [`Journal::open`] of what `reading` reads, which also shows every line that it verified, in order,
    /// and then none; with the first error of `each` nothing was changed.
    fn open_with(
        dir: &Path,
        options: Options,
        reading: fn(&Path) -> Reader,
        each: impl FnMut(Option<Entry>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        let lock = lock(dir)?;
        Self::open_locked(lock, (dir, options), reading(dir), each)
    }

    fn open_locked(
        lock: File,
        (dir, options): (&Path, Options),
        mut reader: Reader,
        mut each: impl FnMut(Option<Entry>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        if !renew_reserve(dir, options.reserve_bytes)? {
            tracing::warn!("journal.reserve.missing: the disk is full");
        }
        for entry in reader.by_ref() {
            each(Some(entry?))?;
        }
        each(None)?;
        if let Some((path, length)) = reader.torn() {
            cut(path, length)?;
        }
        let head = reader.head();
        let segment = match reader.last_segment() {
            Some(path) => Some(Segment::reopen(path)?),
            None => None,
        };
        let shared = Arc::new(Mutex::new(head.clone()));
        let (sender, jobs) = mpsc::channel(1024);
        let writer = Writer {
            dir: dir.to_owned(),
            options,
            segment,
            head,
            shared: shared.clone(),
            poison: None,
            crowd: 0,
            _lock: lock,
        };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(jobs))
            .map_err(|e| io(dir, e))?;
        Ok(Self { inner: Arc::new(Inner { sender: Some(sender), thread: Some(thread), head: shared }) })
    }

    /// Appends the line that `payload` makes of its position; durable when it returns. Dropping the future before
    /// the line was queued appends nothing; dropping it later loses the receipt, not the line.
    ///
    /// # Errors
    /// [`JournalError::NotOneLine`] if the payload has a line break (nothing is written);
    /// [`JournalError::Poisoned`] if this or an earlier write failed.
    pub async fn append(
        &self,
        payload: impl for<'a> FnOnce(Position<'a>) -> Vec<u8> + Send + 'static,
    ) -> Result<Receipt, JournalError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.inner.sender.as_ref().ok_or_else(gone)?;
        sender.send(Job::Append(Box::new(payload), reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// [`Journal::append`] for a thread of its own: queues the line and hands back where the receipt will come.
    pub(crate) fn submit(
        &self,
        payload: impl for<'a> FnOnce(Position<'a>) -> Vec<u8> + Send + 'static,
    ) -> Result<Answer, JournalError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.inner.sender.as_ref().ok_or_else(gone)?;
        sender.blocking_send(Job::Append(Box::new(payload), reply)).map_err(|_| gone())?;
        Ok(answer)
    }

    /// The newest durable line.
    pub fn head(&self) -> Receipt {
        locked(&self.inner.head).clone()
    }
}

pub(crate) type Answer = oneshot::Receiver<Result<Receipt, JournalError>>;

/// The hash of a line in a chain: what it is made of stands at the top.
pub fn chain_hash(prev: &str, seq: u64, payload: &[u8]) -> String {
    hash_of(prev, format!("{seq} ").as_bytes(), payload)
}

/// The same, with the number as it stands in the line.
fn hash_of(prev: &str, number: &[u8], payload: &[u8]) -> String {
    let mut hasher = Sha256::new();
    for part in [prev.as_bytes(), b" ", number, payload] {
        hasher.update(part);
    }
    HEXLOWER.encode(&hasher.finalize())
}

/// Writes the line of `payload` that follows `prev` to `out`, and says what it is called.
fn line(prev: &Receipt, payload: &[u8], out: &mut Vec<u8>) -> Receipt {
    let seq = prev.seq + 1;
    let number = format!("{seq} ");
    let hash = hash_of(&prev.hash, number.as_bytes(), payload);
    for part in [number.as_bytes(), hash.as_bytes(), b" ", payload, b"\n"] {
        out.extend_from_slice(part);
    }
    Receipt { seq, hash }
}

fn segment_name(first: u64) -> String {
    format!("{first:020}.journal")
}

struct Inner {
    sender: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    head: Arc<Mutex<Receipt>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("journal.writer.panicked");
        }
    }
}

/// Makes a line's payload of its position.
pub(crate) type Payload = Box<dyn for<'a> FnOnce(Position<'a>) -> Vec<u8> + Send>;

type Reply = oneshot::Sender<Result<Receipt, JournalError>>;

enum Job {
    Append(Payload, Reply),
    /// See [`rebase`].
    Rebase(Vec<Payload>, oneshot::Sender<Result<Rebased, JournalError>>),
}

struct Segment {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Segment {
    fn create(dir: &Path, first: u64) -> Result<Self, JournalError> {
        let path = dir.join(segment_name(first));
        let mut options = OpenOptions::new();
        options.append(true).create_new(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(|e| io(&path, e))?;
        // The name must survive a power loss too, not only the bytes.
        sync_dir(dir)?;
        Ok(Self { path, file, length: 0 })
    }

    fn reopen(path: &Path) -> Result<Self, JournalError> {
        let file = OpenOptions::new().append(true).open(path).map_err(|e| io(path, e))?;
        let length = file.metadata().map_err(|e| io(path, e))?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), JournalError> {
        self.file.write_all(lines).and_then(|()| self.file.sync_data()).map_err(|e| io(&self.path, e))?;
        self.length += lines.len() as u64;
        Ok(())
    }
}

/// No line is longer, in bytes.
const LONGEST_LINE: u64 = 16 << 20;
/// At most so many lines, and so many bytes, share one sync.
const BATCH_LINES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
/// So many lines are a crowd; how long, at most, one is waited for, and how long after its last line.
const CROWD: usize = 8;
const GATHERING: Duration = Duration::from_millis(2);
const ABOUT_TO_COME: Duration = Duration::from_micros(50);

struct Writer {
    dir: PathBuf,
    options: Options,
    segment: Option<Segment>,
    head: Receipt,
    shared: Arc<Mutex<Receipt>>,
    poison: Option<String>,
    /// How many lines shared the last sync.
    crowd: usize,
    _lock: File,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = jobs.blocking_recv();
        while let Some(job) = next {
            next = match job {
                Job::Append(payload, reply) => self.commit((payload, reply), &mut jobs),
                Job::Rebase(lines, reply) => {
                    // Who asked may have gone away; what was done stays.
                    drop(reply.send(self.rebase(lines)));
                    None
                }
            };
            next = next.or_else(|| jobs.blocking_recv());
        }
    }

    /// Writes what waits; gives back the job that cannot share its sync.
    fn commit(&mut self, first: (Payload, Reply), jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        let begins = self.head.seq + 1;
        let mut head = self.head.clone();
        let mut lines = Vec::new();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        let mut other = None;
        let until = Instant::now() + GATHERING;
        while let Some((payload, reply)) = next.take() {
            if let Some(why) = &self.poison {
                answer(reply, Err(JournalError::Poisoned(why.clone())));
            } else {
                let payload = payload(Position { seq: head.seq + 1, prev: &head.hash });
                if !fits_a_line(&payload) {
                    answer(reply, Err(JournalError::NotOneLine));
                } else {
                    head = line(&head, &payload, &mut lines);
                    waiting.push((reply, head.clone()));
                }
            }
            let full = waiting.len() >= BATCH_LINES || lines.len() >= BATCH_BYTES;
            match if full { None } else { self.another(jobs, until) } {
                Some(Job::Append(payload, reply)) => next = Some((payload, reply)),
                rebase => other = rebase,
            }
        }
        self.crowd = waiting.len();
        if waiting.is_empty() {
            return other;
        }
        match self.write(begins, &lines) {
            Ok(()) => {
                self.head = head.clone();
                *locked(&self.shared) = head;
                for (reply, receipt) in waiting {
                    answer(reply, Ok(receipt));
                }
            }
            Err(why) => {
                let why = why.to_string();
                tracing::error!(error = %why, "journal.write.failed");
                for (reply, _) in waiting {
                    answer(reply, Err(JournalError::Poisoned(why.clone())));
                }
                self.poison = Some(why);
            }
        }
        other
    }

    /// What waits already. Where many shared the last sync, they come again one after the other: those that are about to
    /// come are waited for, or each crowd would take two syncs.
    fn another(&self, jobs: &mut mpsc::Receiver<Job>, until: Instant) -> Option<Job> {
        let job = jobs.try_recv().ok();
        if job.is_some() || self.crowd < CROWD || Instant::now() >= until {
            return job;
        }
        std::thread::sleep(ABOUT_TO_COME);
        jobs.try_recv().ok()
    }

    fn write(&mut self, first: u64, lines: &[u8]) -> Result<(), JournalError> {
        let full =
            self.segment.as_ref().is_none_or(|s| s.length > 0 && s.length >= self.options.segment_bytes);
        if full {
            self.segment = Some(self.create(first)?);
        }
        let Some(segment) = &mut self.segment else { return Err(gone()) };
        match segment.write(lines) {
            // Nothing was synced and the end is known, so this is not the failure that poisons: give up the reserve,
            // cut back what was written, and write it again.
            Err(JournalError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull && spend(&self.dir)? =>
            {
                tracing::error!("journal.reserve.spent: the disk is full");
                cut(&segment.path, segment.length)?;
                segment.write(lines)
            }
            written => written,
        }
    }

    /// A new segment, of the reserve if the disk is full.
    fn create(&self, first: u64) -> Result<Segment, JournalError> {
        match Segment::create(&self.dir, first) {
            Err(JournalError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull && spend(&self.dir)? =>
            {
                tracing::error!("journal.reserve.spent: the disk is full");
                remove_if_there(&self.dir.join(segment_name(first)))?;
                Segment::create(&self.dir, first)
            }
            created => created,
        }
    }
}

/// Where the reserve of the journal in `dir` lies while it is set aside.
pub fn reserve_file(dir: &Path) -> PathBuf {
    dir.join(RESERVE)
}

/// Whether the reserve is set aside.
pub fn has_reserve(dir: &Path, bytes: u64) -> bool {
    bytes == 0 || std::fs::metadata(dir.join(RESERVE)).is_ok_and(|m| m.len() >= bytes)
}

/// Sets the reserve aside, if the disk has room for it. Says whether it is there.
///
/// # Errors
/// Anything but a full disk.
pub fn renew_reserve(dir: &Path, bytes: u64) -> Result<bool, JournalError> {
    let path = dir.join(RESERVE);
    if has_reserve(dir, bytes) {
        return Ok(true);
    }
    let part = dir.join("reserve.new");
    let fill = || -> std::io::Result<()> {
        let mut file = File::create(&part)?;
        let zeros = vec![0; 1 << 20];
        let mut left = bytes;
        // Written, not only asked for: not every file system keeps what fallocate promises.
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
            file.write_all(zeros.get(..size).unwrap_or_default())?;
            left -= size as u64;
        }
        file.sync_all()?;
        std::fs::rename(&part, &path)
    };
    match fill() {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {
            std::fs::remove_file(&part).map_err(|e| io(&part, e))?;
            Ok(false)
        }
        Err(e) => Err(io(&part, e)),
    }
}

fn spend(dir: &Path) -> Result<bool, JournalError> {
    remove_if_there(&dir.join(RESERVE))
}

/// Says whether it was.
fn remove_if_there(path: &Path) -> Result<bool, JournalError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io(path, e)),
    }
}

const RESERVE: &str = "reserve";

fn cut(path: &Path, length: u64) -> Result<(), JournalError> {
    tracing::warn!(file = %path.display(), offset = length, "journal.torn_tail.cut");
    let file = OpenOptions::new().write(true).open(path).map_err(|e| io(path, e))?;
    file.set_len(length).and_then(|()| file.sync_all()).map_err(|e| io(path, e))
}

fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io(dir, e))
}

fn answer(reply: Reply, with: Result<Receipt, JournalError>) {
    // Who asked may have gone away; the line stays.
    drop(reply.send(with));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn fits_a_line(payload: &[u8]) -> bool {
    !payload.contains(&b'\n') && payload.len() as u64 <= LONGEST_LINE - 128
}

fn gone() -> JournalError {
    JournalError::Poisoned("its writer has ended".to_owned())
}

fn io(path: &Path, source: std::io::Error) -> JournalError {
    JournalError::Io { path: path.to_owned(), source }
}
