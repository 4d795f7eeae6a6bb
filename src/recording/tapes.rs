//! The directory of tapes: `<id>.tape` (sealed frames), `<id>.key` (its key, wrapped), `<id>.json` (its summary).
//!
//! A tape without a summary that is not live was cut off by a crash: [`Tapes::open`] gives it one, `truncated`.

mod known;
mod recovery;
mod retention;
mod verify;

pub use retention::Keep;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use keystore::Recording;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::disk::{Reserve, spares};
use super::format::Header;
use super::frames::{Reader, Writer};
use super::keys::TapeKeys;
use super::message::SessionId;
use super::summary::{SessionStatus, Summary};
use super::tape::{Deck, Files, Mode, Tape, Terms, start};
use super::told::{Frames, Live, Unreadable};
use crate::policy::Authorized;

/// Why a tape cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TapeError {
    /// Operator: a file could not be written or read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Operator: the recipients or the identity are not usable.
    #[error("{0}")]
    Keys(String),
    /// Operator: this machine holds recipients only.
    #[error("tapes cannot be read here: the auditors' identity is kept elsewhere")]
    NoIdentity,
    /// Internal: an earlier write failed, and the tape takes no more.
    #[error("the tape could not be written: {0}")]
    Failed(String),
    /// Internal: the tape has ended.
    #[error("the tape has ended")]
    Sealed,
    /// There is no tape of this session.
    #[error("no tape of session {0}")]
    Missing(SessionId),
    /// The session is still running.
    #[error("session {0} is still live")]
    Live(SessionId),
    /// The session has ended.
    #[error("session {0} has ended; replay it with: keyward sessions play {0}")]
    Ended(SessionId),
    /// The file is not what was written.
    #[error("{path}, byte {offset}: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// At which byte.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl TapeError {
    /// [`TapeError::File`].
    pub fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }

    /// A file beside a tape is not the one that the trail names.
    pub fn changed(path: &Path) -> Self {
        Self::damaged(path, 0, "it is not the one that the audit trail names: it was changed")
    }

    /// Whether it tells of a file that was changed or lost, rather than of a machine in trouble.
    pub fn is_tampering(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing(_))
    }
}

/// All tapes of a bastion.
pub struct Tapes {
    dir: PathBuf,
    kept: ArcSwap<Kept>,
    live: Mutex<HashMap<SessionId, Weak<Deck>>>,
    reserve: Option<Reserve>,
    known: known::Known,
}

/// Whom tapes are sealed to, and what they keep.
struct Kept {
    keys: TapeKeys,
    terms: Terms,
}

impl Kept {
    fn swappable(keys: TapeKeys, terms: Terms) -> ArcSwap<Self> {
        ArcSwap::from_pointee(Self { keys, terms })
    }
}

/// What a check of a tape found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapeVerified {
    /// SHA-256 of the file, hex.
    pub digest: String,
    /// Its frames were opened, not only counted: this machine holds the identity.
    pub opened: bool,
}

impl Tapes {
    /// Opens the directory, making it if it is not there. Returns also the tapes that a crash left without a summary and
    /// that have one now. What the trail should hear of: [`Tapes::untold`].
    ///
    /// # Errors
    /// [`TapeError::File`].
    pub fn open(dir: &Path, keys: TapeKeys, terms: Terms) -> Result<(Self, Vec<Summary>), TapeError> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make.map_err(|e| TapeError::file(dir, e))?;
        let tapes = Self {
            dir: dir.to_owned(),
            kept: Kept::swappable(keys, terms),
            live: Mutex::default(),
            reserve: None,
            known: known::Known::default(),
        };
        let mut truncated = Vec::new();
        tapes.sweep()?;
        for id in tapes.ids("tape")? {
            if !tapes.path(id, "json").exists() {
                truncated.extend(tapes.truncated(id)?);
            }
        }
        Ok((tapes, truncated))
    }

    /// A directory, or a copy of one, to read from: nothing in it is changed.
    pub fn inspect(dir: &Path, keys: TapeKeys) -> Self {
        let kept = Kept::swappable(keys, Terms::default());
        Self {
            dir: dir.to_owned(),
            kept,
            live: Mutex::default(),
            reserve: None,
            known: known::Known::default(),
        }
    }

    /// Tapes that write nothing while what is left of the disk is the audit trail's reserve.
    pub fn sparing(self, reserve: Option<Reserve>) -> Self {
        Self { reserve, ..self }
    }

    /// From now on new tapes are sealed to `keys` and kept on `terms`; those that are being written stay as they began.
    pub fn keep(&self, keys: TapeKeys, terms: Terms) {
        self.kept.store(Arc::new(Kept { keys, terms }));
    }

    /// A tape for the session `id`, which is known to the disk when this returns.
    ///
    /// # Errors
    /// [`TapeError`]: there must be no session.
    pub async fn record(
        &self,
        authorized: &Authorized,
        (id, parent): (SessionId, Option<&str>),
        now: Timestamp,
    ) -> Result<Tape, TapeError> {
        let header = Header {
            id: id.to_string(),
            user: authorized.user().to_string(),
            login: authorized.login().to_string(),
            instance: authorized.instance().name.to_string(),
            source_ip: authorized.source().ip().to_string(),
            key: authorized.key().to_owned(),
            started_at: now,
            recording: self.mode_for(authorized.recording()),
            parent: parent.map(str::to_owned),
            packed: false,
        };
        self.begin(header, id).await
    }

    /// What happens to a session whose tape can no longer be written, if the rules say this of it.
    pub fn mode_for(&self, said: Option<Recording>) -> Mode {
        said.map_or(self.kept.load().terms.mode, Mode::from)
    }

    pub(super) async fn begin(&self, header: Header, id: SessionId) -> Result<Tape, TapeError> {
        let (tape_file, key_file) = (self.path(id, "tape"), self.path(id, "key"));
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        let kept = self.kept.load_full();
        let wrapped = kept.keys.wrap(&key)?;
        let (summary, reserve) = (self.path(id, "json"), self.reserve.clone());
        let files = Files { tape: tape_file.clone(), summary, key: key.clone(), reserve: reserve.clone() };
        let (dir, known) = (self.dir.clone(), header.clone());
        let undo = [tape_file.clone(), key_file.clone()];
        let writer = tokio::task::spawn_blocking(move || {
            enough_room(&dir)?;
            spares(reserve.as_ref()).map_err(|e| TapeError::Failed(e.to_string()))?;
            let file = new_file(&tape_file).map_err(|e| TapeError::file(&tape_file, e))?;
            let start = || {
                create(&key_file, &wrapped)?;
                let writer = Writer::start(file, &known, &key).map_err(|e| TapeError::file(&tape_file, e))?;
                File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|e| TapeError::file(&dir, e))?;
                Ok::<_, TapeError>(writer)
            };
            // Nobody else has this id: what was begun is ours.
            start().inspect_err(|_| drop(undo.map(fs::remove_file)))
        });
        let writer = writer.await.map_err(|e| TapeError::Failed(e.to_string()))??;
        let terms = Terms { mode: header.recording, ..kept.terms };
        let (tape, deck) = start(header, writer, files, terms);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, deck| deck.strong_count() > 0);
        live.insert(id, Arc::downgrade(&deck));
        drop(live);
        self.known.began(id);
        Ok(tape)
    }

    /// All sessions, oldest first. What ended is read once and remembered: a summary that somebody changes meanwhile is
    /// for [`Tapes::list_all`] and [`Tapes::verify`] to find. Reads files: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`TapeError`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Summary>, TapeError> {
        let ids = self.ids_known()?;
        Ok(self.remembered(&ids))
    }

    /// The ids of all sessions, oldest first.
    ///
    /// # Errors
    /// [`TapeError`] if the directory cannot be read.
    pub fn ids_known(&self) -> Result<Arc<[SessionId]>, TapeError> {
        self.known.ids(&self.dir, || Ok(self.sessions()?.into_iter().collect()))
    }

    /// These sessions, as [`Tapes::list`].
    pub fn remembered(&self, ids: &[SessionId]) -> Vec<Summary> {
        let mut found = Vec::with_capacity(ids.len());
        for (id, known) in ids.iter().copied().zip(self.known.of(ids)) {
            if let Some(known) = known {
                found.push(Summary::clone(&known));
                continue;
            }
            let runs = self.deck(id).is_some();
            match self.summary(id) {
                Ok(summary) if runs || summary.status == SessionStatus::Live => found.push(summary),
                Ok(summary) => {
                    let summary = Arc::new(summary);
                    self.known.learn(id, &summary);
                    found.push(Arc::unwrap_or_clone(summary));
                }
                // Its recording was deleted meanwhile.
                Err(TapeError::Missing(_)) => {}
                Err(error) => {
                    tracing::error!(%error, session.id = %id, "tape.summary_unreadable");
                    found.push(self.unread(id, &error));
                }
            }
        }
        found
    }

    /// All sessions, oldest first, and what is wrong with those whose summary cannot be read: one bad summary must not
    /// hide the others. `so_far` hears how many of how many were read. Reads files.
    ///
    /// # Errors
    /// [`TapeError`] if the directory cannot be read.
    pub fn list_all(&self, so_far: &dyn Fn(u64, u64)) -> Result<(Vec<Summary>, Vec<Unreadable>), TapeError> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        let sessions = self.sessions()?;
        for (number, id) in sessions.iter().copied().enumerate() {
            so_far(number as u64, sessions.len() as u64);
            match self.summary(id) {
                Ok(summary) => found.push(summary),
                Err(error) => {
                    tracing::error!(%error, session.id = %id, "tape.summary_unreadable");
                    unreadable.push((id, error));
                }
            }
        }
        Ok((found, unreadable))
    }

    /// Every session that left a tape, a key or a summary.
    ///
    /// # Errors
    /// [`TapeError::File`].
    pub fn sessions(&self) -> Result<BTreeSet<SessionId>, TapeError> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| TapeError::file(&self.dir, e))? {
            let name = entry.map_err(|e| TapeError::file(&self.dir, e))?.file_name();
            let Some((stem, kind)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
            if matches!(kind, "tape" | "key" | "json") {
                all.extend(stem.parse::<SessionId>());
            }
        }
        // Sorted first: a set is made of a hundred thousand in one go.
        all.sort_unstable();
        Ok(all.into_iter().collect())
    }

    /// One session.
    ///
    /// # Errors
    /// [`TapeError::Missing`] if there is none.
    pub fn summary(&self, id: SessionId) -> Result<Summary, TapeError> {
        if let Some(deck) = self.deck(id) {
            return Ok(deck.summary());
        }
        let path = self.path(id, "json");
        let text = match small(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.path(id, "tape").exists() => {
                let key = self.path(id, "key");
                return Err(if key.exists() { self.half(id, &key) } else { TapeError::Missing(id) });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(TapeError::damaged(&path, 0, "it is gone"));
            }
            Err(e) => return Err(TapeError::file(&path, e)),
        };
        serde_json::from_slice(&text)
            .map_err(|e| TapeError::damaged(&path, 0, format!("no summary of a tape: {e}")))
    }

    /// What is on the tape of an ended session, a frame at a time, from the frame in which `from` (milliseconds since
    /// its start) lies.
    ///
    /// # Errors
    /// [`TapeError::NoIdentity`], [`TapeError::Live`], or what is wrong with the file.
    pub fn frames(&self, id: SessionId, from: u64) -> Result<Frames, TapeError> {
        if self.summary(id)?.status == SessionStatus::Live {
            return Err(TapeError::Live(id));
        }
        let tape = self.path(id, "tape");
        if !tape.exists() {
            return Err(self.half(id, &self.path(id, "json")));
        }
        let mut frames = self.opened(id)?;
        if from > 0 {
            frames.reader.seek(from).map_err(|bad| frames.damaged(bad))?;
        }
        Ok(frames)
    }

    /// The tape of `id` is gone, and this stayed.
    fn half(&self, id: SessionId, stayed: &Path) -> TapeError {
        let stayed = stayed.file_name().unwrap_or_default().to_string_lossy();
        TapeError::damaged(&self.path(id, "tape"), 0, format!("it is gone, and {stayed} is still here"))
    }

    /// Joins a running tape: what was on it so far, then what comes. Whoever is recorded is told by the session.
    ///
    /// # Errors
    /// [`TapeError::Ended`] unless the session is live.
    pub async fn watch(&self, id: SessionId) -> Result<(Frames, u64, Live), TapeError> {
        let deck = self.deck(id).filter(|deck| deck.summary().status == SessionStatus::Live);
        let Some(deck) = deck else {
            return Err(if self.path(id, "tape").exists() {
                TapeError::Ended(id)
            } else {
                TapeError::Missing(id)
            });
        };
        let (before, live) = deck.join();
        deck.synced(before).await;
        let files = deck.files();
        let file = File::open(&files.tape).map_err(|e| TapeError::file(&files.tape, e))?;
        let path = files.tape.clone();
        let reader =
            Reader::open(file, &files.key).map_err(|bad| TapeError::damaged(&path, bad.offset, bad.what))?;
        Ok((Frames { path, reader }, before, live))
    }

    /// Wraps the key of every tape anew, to `recipients`. Touches only the `.key` files, each whole or not at all.
    /// `so_far` hears how many of how many are done. Returns how many. Reads and writes files.
    ///
    /// # Errors
    /// [`TapeError`] at the first key that does not open here; those before it are done, and doing it again is safe.
    pub fn rewrap(&self, recipients: &TapeKeys, so_far: &dyn Fn(u64, u64)) -> Result<usize, TapeError> {
        let mut done = 0;
        let ids = self.ids("key")?;
        for id in ids.iter().copied() {
            so_far(done as u64, ids.len() as u64);
            let path = self.path(id, "key");
            let key = self.key(id)?;
            let wrapped = recipients.wrap(&key)?;
            replace(&path, &wrapped).map_err(|e| TapeError::file(&path, e))?;
            done += 1;
        }
        Ok(done)
    }

    /// Whether tapes can be read here.
    pub fn can_read(&self) -> bool {
        self.kept.load().keys.can_read()
    }

    /// SHA-256 of the summary as it lies beside the tape, hex.
    ///
    /// # Errors
    /// [`TapeError`] if it is gone.
    pub fn summary_digest(&self, id: SessionId) -> Result<String, TapeError> {
        let path = self.path(id, "json");
        match small(&path) {
            Ok(text) => Ok(HEXLOWER.encode(&Sha256::digest(text))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // On a full disk it waits for room.
                let waits = self.deck(id).and_then(|deck| deck.summary().sha256());
                waits.ok_or_else(|| TapeError::damaged(&path, 0, "it is gone"))
            }
            Err(e) => Err(TapeError::file(&path, e)),
        }
    }

    /// The file of a session's summary.
    pub fn summary_file(&self, id: SessionId) -> PathBuf {
        self.path(id, "json")
    }

    /// The file of a session's tape.
    pub fn tape_file(&self, id: SessionId) -> PathBuf {
        self.path(id, "tape")
    }

    #[cfg(test)]
    pub(super) fn wrapped(&self, key: &[u8; 32]) -> Vec<u8> {
        self.kept.load().keys.wrap(key).unwrap()
    }

    fn opened(&self, id: SessionId) -> Result<Frames, TapeError> {
        let path = self.path(id, "tape");
        let key = self.key(id)?;
        let reader = Reader::open(self.file(id)?, &key)
            .map_err(|bad| TapeError::damaged(&path, bad.offset, bad.what))?;
        if reader.header().id != id.to_string() {
            return Err(TapeError::damaged(&path, 0, "it is the tape of another session"));
        }
        Ok(Frames { path, reader })
    }

    fn key(&self, id: SessionId) -> Result<Zeroizing<[u8; 32]>, TapeError> {
        let path = self.path(id, "key");
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TapeError::damaged(&path, 0, "it is gone: nobody can open the tape"),
            _ => TapeError::file(&path, e),
        })?;
        let mut wrapped = Vec::new();
        file.take(LONGEST_KEY).read_to_end(&mut wrapped).map_err(|e| TapeError::file(&path, e))?;
        self.kept.load().keys.unwrap_key(&wrapped).map_err(|error| match error {
            TapeError::Keys(what) => TapeError::damaged(&path, 0, what),
            other => other,
        })
    }

    fn file(&self, id: SessionId) -> Result<File, TapeError> {
        let path = self.path(id, "tape");
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TapeError::Missing(id),
            _ => TapeError::file(&path, e),
        })
    }

    /// SHA-256 of the tape, hex.
    fn digest(&self, id: SessionId) -> Result<String, TapeError> {
        let (mut file, mut hash) = (self.file(id)?, Sha256::new());
        let mut chunk = vec![0; 256 << 10];
        loop {
            let read = file.read(&mut chunk).map_err(|e| TapeError::file(&self.path(id, "tape"), e))?;
            if read == 0 {
                return Ok(HEXLOWER.encode(&hash.finalize()));
            }
            hash.update(chunk.get(..read).unwrap_or_default());
        }
    }

    fn deck(&self, id: SessionId) -> Option<Arc<Deck>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(&id).and_then(Weak::upgrade)
    }

    fn ids(&self, extension: &str) -> Result<Vec<SessionId>, TapeError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| TapeError::file(&self.dir, e))? {
            let path = entry.map_err(|e| TapeError::file(&self.dir, e))?.path();
            if path.extension().is_some_and(|e| e == extension)
                && let Some(id) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok())
            {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    fn path(&self, id: SessionId, extension: &str) -> PathBuf {
        self.dir.join(format!("{id}.{extension}"))
    }
}

/// Refuses a new tape before the disk is so full that the ones that run, and the audit trail, could not go on.
fn enough_room(dir: &Path) -> Result<(), TapeError> {
    let left = super::disk_left(dir).map_err(|e| TapeError::file(dir, e))?;
    if left.bytes < LEAST_ROOM.min(left.size / 3) {
        return Err(TapeError::Failed(format!("only {} bytes are left on the disk", left.bytes)));
    }
    Ok(())
}

/// A summary, or as much of what lies in its place as fits in memory.
fn small(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST_SUMMARY).read_to_end(&mut text)?;
    Ok(text)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}

/// Writes a summary beside its tape: whole or not at all.
pub(super) fn write_beside(path: &Path, summary: &Summary) -> Result<(), TapeError> {
    let write = || replace(path, &serde_json::to_vec(summary)?);
    write().map_err(|e| TapeError::file(path, e))
}

/// Replaces a file: whole or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".new");
    let part = PathBuf::from(part);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn create(path: &Path, content: &[u8]) -> Result<(), TapeError> {
    let write = || -> io::Result<()> {
        let mut file = new_file(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|e| TapeError::file(path, e))
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A session of ten thousand commands has one of 20 MB.
const LONGEST_SUMMARY: u64 = 64 << 20;
/// A wrapped key for a hundred recipients is not longer.
const LONGEST_KEY: u64 = 64 << 10;
/// Of a disk so small that a third of it is less, that third.
const LEAST_ROOM: u64 = 16 << 20;
