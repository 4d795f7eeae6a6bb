//! The durable, chained append; the query; the signed checkpoint.
//!
//! Layout of the directory: `journal/` (segments of the chain), `checkpoints/<seq>.json` with its detached SSHSIG
//! `<seq>.sig` (`ssh-keygen -Y verify -n keyward-audit`), and `signer.pub`, the public half of the audit key. Each head is
//! appended to a second place too, where one is configured (see [`super::heads`]). Each event is marked (see [`super::mark`]).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use keystore::journal::{self, Journal, JournalError, Receipt};
use keystore::signing::{AuditSigner, SigningError};
use keystore::ssh::{HashAlg, PublicKey};
use serde_json::{Map, Value};

use super::event::Event;
use super::forged::{self, Forged};
use super::heads;
use super::mark::{Draft, Marks};
use super::store::{SeenStore, newest};
use super::verify::claim;

/// SSHSIG namespace of checkpoints (PROTOCOL.sshsig).
pub(super) const NAMESPACE: &str = "keyward-audit";
/// The events that a start wants to know of.
const TELLING: [&[u8]; 5] =
    [b"session_opened", b"session_closed", b"checkpoint_signed", b"store_compacted", b"store_replaced"];
/// Time, number and hash of the line before take fewer bytes.
const FIRST_FIELDS: usize = 256;
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why an event is not in the trail, or could not be read back. All are internal or the operator's: a peer cannot
/// cause one.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The journal refused; the event is not durable, and the caller must not go on.
    #[error(
        "the audit trail could not be written: {0}. Nothing is let through until the daemon is restarted"
    )]
    Journal(#[from] JournalError),
    /// A file beside the journal could not be written or read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checkpoint could not be signed.
    #[error("the checkpoint could not be signed: {0}")]
    Signing(#[from] SigningError),
    /// The trail on disk is damaged.
    #[error("the audit trail is damaged: {0}. Run: keyward logs verify")]
    Damaged(String),
    /// An event could not be put in JSON.
    #[error("an event could not be encoded: {0}")]
    Encoding(#[from] serde_json::Error),
    /// A task of the daemon was stopped half way.
    #[error("the audit trail was interrupted: {0}")]
    Interrupted(String),
}

/// Which events a query wants; an empty filter wants all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Not before this (inclusive).
    pub since: Option<Timestamp>,
    /// Not after this (inclusive).
    pub until: Option<Timestamp>,
    /// Only events of this name.
    pub event: Option<String>,
}

/// The audit trail. One per daemon; appends from many tasks share one fsync.
pub struct Trail {
    pub(super) dir: PathBuf,
    journal: Journal,
    signer: AuditSigner,
    marks: Marks,
    /// What was forged, in all its time.
    pub(super) forged: Mutex<Vec<Forged>>,
    keeping: Keeping,
    signed: AtomicU64,
    /// Held while a head is signed: two at once would mix up statement and signature.
    signing: tokio::sync::Mutex<()>,
    /// A test's failing disk.
    #[cfg(test)]
    pub(crate) refuses: std::sync::atomic::AtomicBool,
}

/// What the trail is kept with.
#[derive(Debug, Clone, Default)]
pub struct Keeping {
    /// Bytes set aside so that it can go on when the disk is full.
    pub reserve_bytes: u64,
    /// Each signed head is appended here too: on another disk, where whoever rewrites this one does not look.
    pub head_file: Option<PathBuf>,
    /// The store's journal: each checkpoint says how far it was.
    pub store: Option<PathBuf>,
}

impl Trail {
    /// [`Trail::open_keeping`] with nothing set aside and no second place for heads.
    ///
    /// # Errors
    /// As there.
    pub fn open(dir: &Path, signer: AuditSigner) -> Result<Self, AuditError> {
        Self::open_keeping(dir, signer, Keeping::default())
    }

    /// Opens the trail in `dir`, making it if it is not there. A torn last line (a crash in the middle of a write
    /// that nobody was told was done) is cut. Events behind the newest checkpoint that the bastion did not write are taken
    /// out of it, and wait to be told of: see [`Trail::tell_forged`].
    ///
    /// # Errors
    /// Anything else that does not verify: a damaged trail is never written on.
    pub fn open_keeping(dir: &Path, signer: AuditSigner, keeping: Keeping) -> Result<Self, AuditError> {
        for part in [journal_dir(dir), checkpoint_dir(dir)] {
            fs::create_dir_all(&part).map_err(|source| AuditError::File { path: part.clone(), source })?;
        }
        let options = journal::Options { segment_bytes: SEGMENT_BYTES, reserve_bytes: keeping.reserve_bytes };
        let marks = Marks::of(&signer)?;
        let signed = last_signed(dir, signer.public_key());
        let (journal, forged) = forged::open(dir, options, (&marks, signed.as_ref()))?;
        let public = signer.public_key().to_openssh().map_err(|e| AuditError::Damaged(e.to_string()))?;
        write_durably(&signer_file(dir), format!("{}\n", public.trim_end()).as_bytes())?;
        let signed = AtomicU64::new(signed.map_or(0, |signed| signed.seq.min(journal.head().seq)));
        Ok(Self {
            dir: dir.to_owned(),
            journal,
            signer,
            marks,
            forged: Mutex::new(forged),
            keeping,
            signed,
            signing: tokio::sync::Mutex::default(),
            #[cfg(test)]
            refuses: Default::default(),
        })
    }

    /// Appends one event; it is on the disk when this returns. Cancelling may leave it written without a receipt.
    ///
    /// # Errors
    /// The event is not durable: the caller must refuse what it was about to do.
    pub async fn append(&self, event: Event, now: Timestamp) -> Result<Receipt, AuditError> {
        #[cfg(test)]
        if self.refuses.load(Ordering::Relaxed) {
            return Err(AuditError::Interrupted("the disk of this test is full".to_owned()));
        }
        // Made here, not by the one thread that writes.
        let draft = Draft::new(&self.marks, format!("{now:.3}"), &serde_json::to_string(&event)?);
        Ok(self.journal.append(move |at| draft.at(at)).await?)
    }

    /// The bytes of the trail.
    pub fn length(&self) -> u64 {
        journal::length(&journal_dir(&self.dir))
    }

    /// What tells whose events they are.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The newest event's receipt.
    pub fn head(&self) -> Receipt {
        self.journal.head()
    }

    /// When the newest event was told, if it says so. Reads a file.
    pub fn last_told(&self) -> Option<Timestamp> {
        let (_, told) = journal::newest_line(&journal_dir(&self.dir)).ok()??;
        let fields: Value = serde_json::from_slice(&told).ok()?;
        fields.get("time")?.as_str()?.parse().ok()
    }

    /// The number of the last event that a checkpoint covers.
    pub fn signed(&self) -> u64 {
        self.signed.load(Ordering::Relaxed)
    }

    /// The file that holds the reserve, if one is kept.
    pub fn reserve_file(&self) -> Option<PathBuf> {
        (self.keeping.reserve_bytes > 0).then(|| journal::reserve_file(&journal_dir(&self.dir)))
    }

    /// Whether the reserve is there.
    pub fn has_reserve(&self) -> bool {
        journal::has_reserve(&journal_dir(&self.dir), self.keeping.reserve_bytes)
    }

    /// Sets the reserve aside again if `bytes_left` on the disk are several times as much: on a disk that is still full
    /// it would only take what it gave. Says whether it is there. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Journal`].
    pub fn renew_reserve(&self, bytes_left: u64) -> Result<bool, AuditError> {
        if self.has_reserve() || bytes_left / 4 < self.keeping.reserve_bytes {
            return Ok(self.has_reserve());
        }
        Ok(journal::renew_reserve(&journal_dir(&self.dir), self.keeping.reserve_bytes)?)
    }

    /// Begins the file of heads, if one is configured and not there: says so, and signs the chain at once.
    ///
    /// # Errors
    /// As [`Trail::checkpoint`].
    pub async fn begin_heads(&self, now: Timestamp) -> Result<(), AuditError> {
        let Some(file) = self.keeping.head_file.clone().filter(|file| !file.exists()) else { return Ok(()) };
        tracing::warn!(file = %file.display(), "audit.head_file_begun");
        self.append(Event::HeadFileBegun { file: file.display().to_string() }, now).await?;
        self.checkpoint(now).await.map(drop)
    }

    /// Follows the trail from its beginning; at its end, ask again for what was appended since.
    pub fn follow(&self) -> Follow {
        Follow(journal::read(&journal_dir(&self.dir)))
    }

    /// The sessions that the trail knows. Reads files.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn sessions(&self) -> Result<Known, AuditError> {
        let mut known = Known::default();
        for entry in journal::read(&journal_dir(&self.dir)) {
            let entry = entry.map_err(|fault| AuditError::Damaged(fault.to_string()))?;
            // Few events are about the life of a session: the others are not parsed.
            if named(&entry.payload).is_some_and(|name| !TELLING.contains(&name)) {
                continue;
            }
            match serde_json::from_slice(&entry.payload) {
                Ok(Event::SessionOpened { facts, .. }) => {
                    known.sessions.entry(facts.session).or_default();
                }
                Ok(Event::SessionClosed { facts, digest, summary, .. }) if !digest.is_empty() => {
                    known.sessions.insert(facts.session, Some(summary));
                }
                Ok(event) => known.store.hear(&event),
                Err(_) => {}
            }
        }
        Ok(known)
    }

    /// The events that `filter` wants, oldest first, each with its `hash`. Reads files: call it where blocking is
    /// allowed.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn query(&self, filter: &Filter) -> Result<Vec<Value>, AuditError> {
        self.query_counting(filter, &|_| {})
    }

    /// The same; `read_so` hears of the bytes that were read, of [`Trail::length`].
    ///
    /// # Errors
    /// As [`Trail::query`].
    pub fn query_counting(&self, filter: &Filter, read_so: &dyn Fn(u64)) -> Result<Vec<Value>, AuditError> {
        let mut found = Vec::new();
        for entry in journal::read(&journal_dir(&self.dir)) {
            let entry = entry.map_err(|fault| AuditError::Damaged(fault.to_string()))?;
            read_so(entry.length());
            let fields = fields(entry)?;
            if filter.wants(&fields) {
                found.push(Value::Object(fields));
            }
        }
        Ok(found)
    }

    /// Signs the chain up to its head, as SSHSIG in `checkpoints/`, and appends [`Event::CheckpointSigned`].
    ///
    /// # Errors
    /// The files or the event could not be written, or the key could not sign.
    pub async fn checkpoint(&self, now: Timestamp) -> Result<Receipt, AuditError> {
        let _turn = self.signing.lock().await;
        let head = self.journal.head();
        let key = self.signer.public_key().fingerprint(HashAlg::Sha256).to_string();
        let statement = serde_json::json!({
            "seq": head.seq, "hash": head.hash, "time": format!("{now:.3}"), "key": key,
        });
        let statement = format!("{statement}\n");
        let signature = self.signer.sshsig(NAMESPACE, statement.as_bytes())?;
        let base = checkpoint_dir(&self.dir).join(format!("{:020}", head.seq));
        let (elsewhere, store) = (self.keeping.head_file.clone(), self.keeping.store.clone());
        let written = tokio::task::spawn_blocking(move || {
            if let Some(file) = elsewhere {
                // The trail goes on without it: what cannot be reached is no reason to stop, but to say so.
                if let Err(error) = heads::append(&file, &statement, &signature) {
                    tracing::error!(%error, "audit.head_file_failed");
                }
            }
            // The signature first: a statement without one is a fault, a signature without a statement is not. A head
            // that was signed before (and whose event the trail then refused) stays as it is: a crash, or a full disk,
            // between the two would leave the signature of another statement.
            if !base.with_extension("json").exists() {
                write_durably(&base.with_extension("sig"), signature.as_bytes())?;
                write_durably(&base.with_extension("json"), statement.as_bytes())?;
            }
            let file = |dir: PathBuf| newest(&dir).map_err(|source| AuditError::File { path: dir, source });
            store.map_or(Ok(None), file)
        });
        let store = written.await.map_err(|e| AuditError::Interrupted(e.to_string()))??;
        self.signed.store(head.seq, Ordering::Relaxed);
        self.append(Event::CheckpointSigned { through: head.seq, head: head.hash, key, store }, now).await
    }
}

/// What a trail knows of what lies beside it.
#[derive(Debug, Default)]
pub struct Known {
    /// The sessions, each with its newest close, and in it the digest of its summary.
    sessions: BTreeMap<String, Option<Option<String>>>,
    store: SeenStore,
}

impl Known {
    /// Whether it was opened.
    pub fn has(&self, session: &str) -> bool {
        self.sessions.contains_key(session)
    }

    /// What to say if the store in `dir` is not the one that the checkpoints saw. Reads files.
    pub fn store_replaced(&self, dir: &Path) -> Option<Event> {
        let fault = if self.store.is_empty() { None } else { self.store.holds(dir).err() };
        fault.map(|fault| Event::StoreReplaced { reason: fault.to_string() })
    }

    /// Whether it was closed, and with this summary, where one is told.
    pub fn is_closed_with(&self, session: &str, summary: Option<&str>) -> bool {
        let closed = self.sessions.get(session).and_then(Option::as_ref);
        closed.is_some_and(|told| summary.is_none() || told.is_none() || told.as_deref() == summary)
    }
}

/// The events of a trail as they come; see [`Trail::follow`].
pub struct Follow(journal::Reader);

impl Follow {
    /// The events since the last call, oldest first, each with its `hash`, one call to `each` for each of them. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn more(&mut self, mut each: impl FnMut(Value)) -> Result<(), AuditError> {
        self.0.resume().map_err(|fault| AuditError::Damaged(fault.to_string()))?;
        for entry in self.0.by_ref() {
            let entry = entry.map_err(|fault| AuditError::Damaged(fault.to_string()))?;
            each(Value::Object(fields(entry)?));
        }
        Ok(())
    }
}

/// The name of an event, where it stands where [`Trail::append`] puts it: before anything that a peer could say.
pub(super) fn named(payload: &[u8]) -> Option<&[u8]> {
    const TAG: &[u8] = b"\"event\":\"";
    let start = payload.get(..FIRST_FIELDS.min(payload.len()))?;
    let at = start.windows(TAG.len()).position(|part| part == TAG)? + TAG.len();
    payload.get(at..)?.split(|byte| *byte == b'"').next()
}

impl Follow {
    /// The next entries, until `each` wanted `most` of them, and whether that was the end. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub(super) fn some(
        &mut self,
        most: usize,
        mut each: impl FnMut(journal::Entry) -> bool,
    ) -> Result<bool, AuditError> {
        let damaged = |fault: journal::Fault| AuditError::Damaged(fault.to_string());
        let mut wanted = 0;
        while wanted < most {
            let entry = match self.0.next() {
                Some(entry) => entry,
                None => {
                    self.0.resume().map_err(damaged)?;
                    let Some(entry) = self.0.next() else { return Ok(true) };
                    entry
                }
            };
            wanted += usize::from(each(entry.map_err(damaged)?));
        }
        Ok(false)
    }
}

fn fields(entry: journal::Entry) -> Result<Map<String, Value>, AuditError> {
    let mut fields: Map<String, Value> = serde_json::from_slice(&entry.payload)?;
    fields.insert("hash".to_owned(), Value::String(entry.hash));
    Ok(fields)
}

/// What the newest checkpoint of this key says.
fn last_signed(dir: &Path, key: &PublicKey) -> Option<Receipt> {
    let names = fs::read_dir(checkpoint_dir(dir)).into_iter().flatten().flatten();
    // A signature alone is one whose statement a crash prevented.
    let mut statements: Vec<_> = names
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .collect();
    statements.sort_unstable();
    // One that does not hold vouches for nothing; it is for the verification to name.
    let newest = statements.into_iter().rev().find_map(|file| claim(file, key).ok());
    newest.map(|(seq, claim)| Receipt { seq, hash: claim.hash })
}

impl Filter {
    fn wants(&self, fields: &Map<String, Value>) -> bool {
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if self.event.as_deref().is_some_and(|wanted| text("event") != Some(wanted)) {
            return false;
        }
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        // Events carry milliseconds: compare at that grain, so that an event's own time as a bound includes it.
        let grain = |t: Timestamp| t.as_millisecond();
        let Some(at) = text("time").and_then(|t| t.parse::<Timestamp>().ok()).map(grain) else { return true };
        self.since.is_none_or(|since| grain(since) <= at) && self.until.is_none_or(|until| at <= grain(until))
    }
}

pub(super) fn journal_dir(dir: &Path) -> PathBuf {
    dir.join("journal")
}
pub(super) fn checkpoint_dir(dir: &Path) -> PathBuf {
    dir.join("checkpoints")
}
pub(super) fn signer_file(dir: &Path) -> PathBuf {
    dir.join("signer.pub")
}

/// Writes beside, syncs, renames over, syncs the directory.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> Result<(), AuditError> {
    let write = || -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().map_err(|source| AuditError::File { path: path.to_owned(), source })
}
