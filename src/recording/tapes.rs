//! The directory of tapes: `<id>.tape` (sealed frames), `<id>.key` (its key, wrapped), `<id>.json` (its summary).
//!
//! A tape without a summary that is not live was cut off by a crash: [`Tapes::open`] gives it one, `truncated`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::format::{self, Header, Record, What, Writer};
use super::keys::TapeKeys;
use super::ledger::ChannelSummary;
use super::message::SessionId;
use super::tape::{Deck, SessionStatus, Summary, Tape, start};
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
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, what: what.into() }
    }

    /// Whether it tells of a file that was changed or lost, rather than of a machine in trouble.
    pub fn is_tampering(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing(_))
    }
}

/// All tapes of a bastion.
pub struct Tapes {
    dir: PathBuf,
    keys: TapeKeys,
    limit: u64,
    live: Mutex<HashMap<SessionId, Weak<Deck>>>,
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
    /// Opens the directory, making it if it is not there; `limit` is how many bytes of a channel without a terminal
    /// are kept. Returns also the tapes that a crash cut off, now `truncated`: the trail should hear of them.
    ///
    /// # Errors
    /// [`TapeError::File`].
    pub fn open(dir: &Path, keys: TapeKeys, limit: u64) -> Result<(Self, Vec<Summary>), TapeError> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make.map_err(|e| TapeError::file(dir, e))?;
        let tapes = Self { dir: dir.to_owned(), keys, limit, live: Mutex::default() };
        let mut truncated = Vec::new();
        for id in tapes.ids("tape")? {
            if !tapes.path(id, "json").exists() {
                truncated.extend(tapes.truncated(id)?);
            }
        }
        Ok((tapes, truncated))
    }

    /// A directory, or a copy of one, to read from: nothing in it is changed.
    pub fn inspect(dir: &Path, keys: TapeKeys) -> Self {
        Self { dir: dir.to_owned(), keys, limit: 0, live: Mutex::default() }
    }

    /// A tape for the session `id`, which is known to the disk when this returns.
    ///
    /// # Errors
    /// [`TapeError`]: there must be no session.
    pub async fn record(
        &self,
        authorized: &Authorized,
        id: SessionId,
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
        };
        self.begin(header, id).await
    }

    pub(super) async fn begin(&self, header: Header, id: SessionId) -> Result<Tape, TapeError> {
        let (tape_file, key_file) = (self.path(id, "tape"), self.path(id, "key"));
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        let wrapped = self.keys.wrap(&key)?;
        let (dir, known) = (self.dir.clone(), header.clone());
        let writer = tokio::task::spawn_blocking(move || {
            create(&key_file, &wrapped)?;
            let file = new_file(&tape_file).map_err(|e| TapeError::file(&tape_file, e))?;
            let writer = Writer::start(file, &known, &key).map_err(|e| TapeError::file(&tape_file, e))?;
            File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|e| TapeError::file(&dir, e))?;
            Ok::<_, TapeError>(writer)
        });
        let writer = writer.await.map_err(|e| TapeError::Failed(e.to_string()))??;
        let (tape, deck) = start(header, writer, self.path(id, "json"), self.limit);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, deck| deck.strong_count() > 0);
        live.insert(id, Arc::downgrade(&deck));
        Ok(tape)
    }

    /// All sessions, oldest first. Reads files: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`TapeError`] if a summary cannot be read.
    pub fn list(&self) -> Result<Vec<Summary>, TapeError> {
        let mut found = Vec::new();
        for id in self.ids("tape")? {
            match self.summary(id) {
                Ok(summary) => found.push(summary),
                // One bad summary must not hide the others; `logs verify` names it.
                Err(error) => tracing::error!(%error, session.id = %id, "tape.summary_unreadable"),
            }
        }
        Ok(found)
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
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.path(id, "tape").exists() => {
                return Err(TapeError::Missing(id));
            }
            Err(e) => return Err(TapeError::file(&path, e)),
        };
        serde_json::from_slice(&text)
            .map_err(|e| TapeError::damaged(&path, 0, format!("no summary of a tape: {e}")))
    }

    /// Everything on the tape of an ended session.
    ///
    /// # Errors
    /// [`TapeError::NoIdentity`], [`TapeError::Live`], or what is wrong with the file.
    pub fn records(&self, id: SessionId) -> Result<Vec<Record>, TapeError> {
        if self.summary(id)?.status == SessionStatus::Live {
            return Err(TapeError::Live(id));
        }
        self.decoded(id, &self.bytes(id)?).map(|found| found.records)
    }

    /// Checks that the tape is the one whose `digest` the trail names (or, without one, its summary), that all its
    /// frames open, and that the summary beside it is the tape's own. Without the identity only the digest counts.
    ///
    /// # Errors
    /// The first thing that is wrong; see [`TapeError::is_tampering`].
    pub fn verify(&self, id: SessionId, digest: Option<&str>) -> Result<TapeVerified, TapeError> {
        let summary = self.summary(id)?;
        if summary.status == SessionStatus::Live {
            return Err(TapeError::Live(id));
        }
        let path = self.path(id, "tape");
        let bytes = self.bytes(id)?;
        let found = HEXLOWER.encode(&Sha256::digest(&bytes));
        // Where it is wrong helps more than that it is wrong: first the frames, then the digest.
        let opened = self.keys.can_read();
        if opened {
            let decoded = self.decoded(id, &bytes)?;
            let own = decoded.records.iter().rev().find_map(|r| match &r.what {
                What::End(end, channels) => Some((end, channels)),
                _ => None,
            });
            match own {
                Some((end, channels)) if end.status != summary.status || *channels != summary.channels => {
                    let what = "the summary does not say what the tape says: it was changed";
                    return Err(TapeError::damaged(&self.path(id, "json"), 0, what));
                }
                None if summary.status == SessionStatus::Closed => {
                    return Err(TapeError::damaged(
                        &path,
                        bytes.len() as u64,
                        "the end of the tape is missing",
                    ));
                }
                _ => {}
            }
        }
        if !opened && summary.status == SessionStatus::Closed && !format::looks_complete(&bytes) {
            return Err(TapeError::damaged(&path, bytes.len() as u64, "the end of the tape is missing"));
        }
        let expected = digest.or(summary.digest.as_deref());
        if expected != Some(found.as_str()) {
            let what = format!("its SHA-256 is {found}, not {}", expected.unwrap_or("known"));
            return Err(TapeError::damaged(&path, 0, what));
        }
        Ok(TapeVerified { digest: found, opened })
    }

    fn decoded(&self, id: SessionId, bytes: &[u8]) -> Result<format::Decoded, TapeError> {
        let (path, key_path) = (self.path(id, "tape"), self.path(id, "key"));
        let wrapped = fs::read(&key_path).map_err(|e| TapeError::file(&key_path, e))?;
        let key = self.keys.unwrap_key(&wrapped)?;
        format::read(bytes, &key).map_err(|bad| TapeError::damaged(&path, bad.offset, bad.what))
    }

    fn bytes(&self, id: SessionId) -> Result<Vec<u8>, TapeError> {
        let path = self.path(id, "tape");
        fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => TapeError::Missing(id),
            _ => TapeError::file(&path, e),
        })
    }

    /// Gives a tape that a crash left its summary; none if the crash came before its first byte.
    fn truncated(&self, id: SessionId) -> Result<Option<Summary>, TapeError> {
        let path = self.path(id, "tape");
        let bytes = self.bytes(id)?;
        let Some((header, _)) = format::header(&bytes) else { return Ok(None) };
        let records = match self.decoded(id, &bytes) {
            Ok(found) => found.records,
            // Without the identity, or with a frame that does not open, the ledger is not known. Verification tells.
            Err(_) => Vec::new(),
        };
        let last = records.last().map_or(0, |r| r.micros);
        let mut summary = Summary::of(header, ledger_of(&records));
        let ended = std::time::Duration::from_micros(last);
        summary.ended_at =
            Some(summary.header.started_at.checked_add(ended).unwrap_or(summary.header.started_at));
        summary.status = SessionStatus::Truncated;
        summary.reason = Some("the daemon was stopped in the middle of it".to_owned());
        summary.digest = Some(HEXLOWER.encode(&Sha256::digest(&bytes)));
        File::open(&path).and_then(|f| f.sync_all()).map_err(|e| TapeError::file(&path, e))?;
        write_beside(&self.path(id, "json"), &summary)?;
        Ok(Some(summary))
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

/// The last that the tape says of each channel.
fn ledger_of(records: &[Record]) -> Vec<ChannelSummary> {
    let mut ledger = super::ledger::Ledger::new(u64::MAX);
    let mut told = std::collections::BTreeMap::new();
    for record in records {
        match &record.what {
            What::Counted(summary) | What::Closed(summary) => {
                told.insert(record.channel, summary.clone());
            }
            What::Opened => ledger.opened(record.channel),
            what => {
                if let Some((direction, message)) = what.message(&record.payload) {
                    ledger.observe(record.channel, direction, &message);
                }
            }
        }
    }
    for summary in ledger.summaries() {
        // What was counted is told; what was kept counts itself.
        let counted = told.entry(summary.channel).or_insert_with(|| summary.clone());
        if summary.relayed_bytes > counted.relayed_bytes {
            *counted = summary;
        }
    }
    told.into_values().collect()
}

/// Writes a summary beside its tape: whole or not at all.
pub(super) fn write_beside(path: &Path, summary: &Summary) -> Result<(), TapeError> {
    let write = || -> io::Result<()> {
        let part = path.with_extension("json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec(summary)?)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|e| TapeError::file(path, e))
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
