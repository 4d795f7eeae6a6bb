//! Verification of the trail, with the daemon or offline on the files: the chain, the checkpoints, and which tapes the
//! chain names. It never repairs. The tapes themselves are checked by `recording`, which stands on a higher floor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

pub use keystore::journal::Fault;
use keystore::journal::{self, Receipt};
use keystore::ssh::{PublicKey, SshSig};
use serde::Deserialize;

use super::event::Event;
use super::forged::Forged;
use super::heads;
use super::mark::Marks;
use super::store::SeenStore;
use super::trail::{NAMESPACE, checkpoint_dir, journal_dir, signer_file};

/// What a clean verification found.
#[derive(Debug, Clone)]
pub struct Verified {
    /// How many events the chain has.
    pub entries: u64,
    /// The newest event.
    pub head: Option<Receipt>,
    /// The last line was cut off by a crash; nobody had been told that it was written.
    pub torn_tail: bool,
    /// How many signed checkpoints agree with the chain.
    pub checkpoints: u64,
    /// The tapes the chain names: each must exist and have this digest. One whose digest changed is named more than once.
    pub tapes: Vec<ClosedTape>,
    /// What the trail saw of the store since it was last restored.
    pub store: SeenStore,
    /// Sessions that were opened and not closed: live, or cut off by a crash.
    pub unclosed: Vec<String>,
    /// The tapes whose time was over, by session, as far as a checkpoint of the same run covers the event: only then may
    /// they be gone.
    pub deleted: BTreeMap<String, DeletedTape>,
    /// Events that were forged while the bastion was down, as the trail tells. They are not in the chain any more.
    pub forged: Vec<Forged>,
    /// How many events at the end nobody vouches for: no checkpoint covers them, and their marks were not checked. The
    /// event of the newest checkpoint itself is not counted.
    pub unsigned: u64,
}

/// A tape that was deleted when its time was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedTape {
    /// SHA-256 of the tape file, hex.
    pub digest: String,
    /// When, RFC 3339.
    pub time: String,
    /// Sequence number of the event.
    pub seq: u64,
}

/// A tape as the chain names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedTape {
    /// Session id.
    pub session: String,
    /// SHA-256 of the tape file, hex.
    pub digest: String,
    /// SHA-256 of the summary beside it, hex, where the chain names it.
    pub summary: Option<String>,
    /// Sequence number of the event that closed it.
    pub seq: u64,
}

/// What the trail is verified against.
#[derive(Debug, Clone)]
pub struct Against {
    /// The audit key, kept elsewhere.
    pub key: PublicKey,
    /// The file of heads, kept elsewhere, if there is one.
    pub heads: Option<PathBuf>,
    /// What tells whose events they are, where the keys are: on the running bastion.
    pub marks: Option<Marks>,
}

/// The public key in an OpenSSH file, as `init` writes `audit_key.pub`.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn read_key(file: &Path) -> Result<PublicKey, Fault> {
    let wrong = |what: String| Fault { file: file.to_owned(), offset: 0, seq: None, what };
    let text =
        bounded(file).map_err(|fault| wrong(format!("the audit key cannot be read: {}", fault.what)))?;
    PublicKey::from_openssh(String::from_utf8_lossy(&text).trim())
        .map_err(|e| wrong(format!("not an OpenSSH public key: {e}")))
}

/// Verifies the trail in `dir` against the audit key that lies beside it.
///
/// # Errors
/// The first fault. An attacker who rewrote the whole directory, key included, is caught only by [`verify_with`].
pub fn verify(dir: &Path) -> Result<Verified, Fault> {
    let key = read_key(&signer_file(dir))?;
    verify_with(dir, &Against { key, heads: None, marks: None })
}

/// Verifies the trail in `dir` against an audit key, and heads, that were kept elsewhere.
///
/// # Errors
/// The first fault.
pub fn verify_with(dir: &Path, against: &Against) -> Result<Verified, Fault> {
    verify_counting(dir, against, &|_| {})
}

/// The same; `read_so` hears of the bytes that were read, of [`verify_length`].
///
/// # Errors
/// The first fault.
pub fn verify_counting(dir: &Path, against: &Against, read_so: &dyn Fn(u64)) -> Result<Verified, Fault> {
    let key = &against.key;
    if read_key(&signer_file(dir))? != *key {
        let what =
            "it is not the audit key of this bastion: the trail was signed anew by somebody else".to_owned();
        return Err(Fault { file: signer_file(dir), offset: 0, seq: None, what });
    }
    let heads = against.heads.as_ref().map(|file| heads::read(file, key)).transpose()?.unwrap_or_default();
    let mut heads: BTreeMap<u64, String> = heads.into_iter().collect();
    let (no_head, mut signed_elsewhere) = (heads.is_empty(), 0u64);
    let chain = journal::verify_counting(&journal_dir(dir), read_so)?;
    let mut claims = checkpoints(dir, key)?;
    let mut verified = Verified {
        entries: chain.entries,
        head: chain.head,
        torn_tail: chain.torn_tail,
        checkpoints: 0,
        tapes: Vec::new(),
        store: SeenStore::default(),
        unclosed: Vec::new(),
        deleted: BTreeMap::new(),
        forged: Vec::new(),
        unsigned: 0,
    };
    let mut told = Told { vouched: against.marks.is_some(), waiting: Vec::new() };
    let mut held = BTreeSet::new();
    let mut signed = None;
    let mut newest = HashMap::new();
    for entry in journal::read(&journal_dir(dir)) {
        let entry = entry?;
        read_so(entry.length());
        let wrong = |what: String| Fault {
            file: entry.file.clone(),
            offset: entry.offset,
            seq: Some(entry.seq),
            what,
        };
        if against.marks.as_ref().is_some_and(|marks| !marks.hold(&entry)) {
            return Err(wrong(NOT_OURS.to_owned()));
        }
        if heads.remove(&entry.seq).is_some_and(|hash| hash != entry.hash) {
            return Err(wrong(
                "the chain was rewritten: it disagrees with the head that was kept elsewhere".to_owned(),
            ));
        }
        let signed_before = signed;
        if let Some(claim) = claims.remove(&entry.seq) {
            if claim.hash != entry.hash {
                return Err(wrong(format!(
                    "the chain was rewritten: it disagrees with {}",
                    claim.file.display()
                )));
            }
            verified.checkpoints += 1;
            verified.unsigned = 0;
            signed = Some(entry.seq);
        }
        let line: Line = serde_json::from_slice(&entry.payload)
            .map_err(|e| wrong(format!("not an event that this version knows: {e}")))?;
        if line.seq != entry.seq || line.prev != entry.prev {
            return Err(wrong("the event carries another position than its record".to_owned()));
        }
        if let Some(event) = &line.event {
            told.hear(event, &mut verified.store);
            verified.forged.extend(Forged::told_by(event, entry.seq));
        }
        match &line.event {
            Some(Event::HeadFileBegun { .. }) => signed_elsewhere = 0,
            Some(Event::CheckpointSigned { .. }) => signed_elsewhere += 1,
            _ => {}
        }
        let of_its_own =
            matches!(line.event, Some(Event::CheckpointSigned { through, .. }) if signed == Some(through));
        verified.unsigned += u64::from(entry.seq > signed.unwrap_or(0) && !of_its_own);
        match line.event {
            Some(Event::SessionOpened { facts, .. }) => verified.unclosed.push(facts.session),
            Some(Event::SessionClosed { facts, digest, summary, .. }) => {
                verified.unclosed.retain(|open| *open != facts.session);
                let closed = ClosedTape { session: facts.session, digest, summary, seq: entry.seq };
                let before = newest.insert(closed.session.clone(), verified.tapes.len());
                match before.and_then(|at| verified.tapes.get_mut(at).map(|before| (at, before))) {
                    // A summary may be written again by a later start, the tape never: its digest stays.
                    Some((at, before)) if before.digest == closed.digest || before.digest.is_empty() => {
                        newest.insert(closed.session.clone(), at);
                        *before = closed;
                    }
                    Some((_, before)) => {
                        before.summary = None;
                        verified.tapes.push(closed);
                    }
                    None => verified.tapes.push(closed),
                }
            }
            Some(Event::RecordingHeld { session, .. }) => {
                // It was to be deleted, and a crash came between: it is there, and stays.
                verified.deleted.remove(&session);
                held.insert(session);
            }
            Some(Event::RecordingReleased { session, .. }) => drop(held.remove(&session)),
            Some(Event::RecordingDeleted { session, .. }) if held.contains(&session) => {
                return Err(wrong(format!("it deletes the tape of session {session}, which was on hold")));
            }
            Some(Event::RecordingDeleted { session, digest, .. }) => {
                let gone = DeletedTape { digest, time: line.time, seq: entry.seq };
                verified.deleted.entry(session).or_insert(gone);
            }
            // A deletion is signed before it is made, in the same run. One that lay unsigned at a start was not made, or was
            // written there by whoever took the tape away.
            Some(Event::DaemonStarted { .. }) => {
                verified.deleted.retain(|_, tape| signed_before.is_some_and(|last| tape.seq <= last));
            }
            // On a running bastion it may have been signed since the checkpoints were listed.
            Some(Event::CheckpointSigned { through, head, .. })
                if signed.is_none_or(|last| last < through) =>
            {
                let file = checkpoint_dir(dir).join(format!("{through:020}.json"));
                if !file.exists() {
                    let what = format!("it is gone: event {} says that it was signed", entry.seq);
                    return Err(Fault { file, offset: 0, seq: Some(through), what });
                }
                let (_, claim) = claim(file, key)?;
                if claim.hash != head {
                    return Err(claim.fault(&format!("it is not the one that event {} tells of", entry.seq)));
                }
                verified.checkpoints += 1;
                signed = Some(through);
            }
            _ => {}
        }
        if signed > signed_before {
            told.are_signed(&mut verified.store);
        }
    }
    if against.marks.is_some() {
        verified.unsigned = 0;
    }
    // The chain alone can be written on by whoever writes on the disk: what is not signed deletes nothing.
    verified.deleted.retain(|_, tape| signed.is_some_and(|last| tape.seq <= last));
    if let (true, Some(file)) = (no_head && signed_elsewhere > 0, &against.heads) {
        let what = format!(
            "it holds no head, but {signed_elsewhere} checkpoints were signed since it was begun: it was emptied"
        );
        return Err(Fault { file: file.clone(), offset: 0, seq: None, what });
    }
    if let (Some((seq, _)), Some(file)) = (heads.first_key_value(), &against.heads) {
        let what = format!(
            "{} names a record that the chain no longer has: the end was cut off, or the whole state rolled back",
            file.display()
        );
        return Err(Fault { file: journal_dir(dir), offset: 0, seq: Some(*seq), what });
    }
    match claims.into_values().next() {
        Some(ahead) => {
            Err(ahead.fault("it covers a record that the chain no longer has: the end was cut off"))
        }
        None => Ok(verified),
    }
}

/// What is told of the store: that it forgot something, or is another, is believed of whoever is known to be the bastion.
struct Told {
    /// The marks are checked.
    vouched: bool,
    /// Until a checkpoint covers them.
    waiting: Vec<Event>,
}

impl Told {
    fn hear(&mut self, event: &Event, store: &mut SeenStore) {
        match event {
            Event::StoreReplaced { .. } | Event::StoreCompacted { .. } if !self.vouched => {
                self.waiting.push(event.clone());
            }
            _ => store.hear(event),
        }
    }

    fn are_signed(&mut self, store: &mut SeenStore) {
        self.waiting.drain(..).for_each(|event| store.hear(&event));
    }
}

/// The bytes that a verification of the trail in `dir` reads.
pub fn verify_length(dir: &Path) -> u64 {
    2 * journal::length(&journal_dir(dir))
}

/// A line of the chain; an event of a newer version is carried, not refused.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    time: String,
    seq: u64,
    prev: String,
    #[serde(flatten, deserialize_with = "known")]
    event: Option<Event>,
}

fn known<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Event>, D::Error> {
    let fields = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(fields).ok())
}

/// A signed statement about the chain.
pub(super) struct Claim {
    file: PathBuf,
    pub(super) hash: String,
}

impl Claim {
    fn fault(&self, what: &str) -> Fault {
        Fault { file: self.file.clone(), offset: 0, seq: None, what: what.to_owned() }
    }
}

#[derive(Deserialize)]
pub(super) struct Statement {
    pub(super) seq: u64,
    pub(super) hash: String,
}

/// Every checkpoint whose signature holds, by the record it covers.
fn checkpoints(dir: &Path, key: &PublicKey) -> Result<BTreeMap<u64, Claim>, Fault> {
    let dir = checkpoint_dir(dir);
    let fault = |file: &Path, what: String| Fault { file: file.to_owned(), offset: 0, seq: None, what };
    let listing = match fs::read_dir(&dir) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(fault(&dir, e.to_string())),
    };
    let mut claims = BTreeMap::new();
    for entry in listing {
        let file = entry.map_err(|e| fault(&dir, e.to_string()))?.path();
        if file.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let (seq, claim) = claim(file, key)?;
        claims.insert(seq, claim);
    }
    Ok(claims)
}

/// The checkpoint in this file, if its signature holds, and the record it covers.
pub(super) fn claim(file: PathBuf, key: &PublicKey) -> Result<(u64, Claim), Fault> {
    let fault = |file: &Path, what: String| Fault { file: file.to_owned(), offset: 0, seq: None, what };
    let text = bounded(&file)?;
    let signature = file.with_extension("sig");
    let sig = SshSig::from_pem(&bounded(&signature)?)
        .map_err(|e| fault(&signature, format!("not an SSHSIG: {e}")))?;
    key.verify(NAMESPACE, &text, &sig)
        .map_err(|_| fault(&file, "the signature of this checkpoint does not hold".to_owned()))?;
    let said: Statement =
        serde_json::from_slice(&text).map_err(|e| fault(&file, format!("not a checkpoint: {e}")))?;
    if file.file_stem().is_none_or(|name| name.to_string_lossy() != format!("{:020}", said.seq)) {
        return Err(fault(&file, format!("it is the checkpoint of record {}: it was moved", said.seq)));
    }
    Ok((said.seq, Claim { file, hash: said.hash }))
}

/// The start of a file that should be small: one that is not fails its signature, and fills no memory.
fn bounded(file: &Path) -> Result<Vec<u8>, Fault> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        fs::File::open(file)?.take(LONGEST).read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_err(|e| Fault { file: file.to_owned(), offset: 0, seq: None, what: e.to_string() })
}

const NOT_OURS: &str =
    "its mark is not one of this bastion: somebody wrote it who has the disk and not the keys";
/// Of a checkpoint, its signature, or a public key.
const LONGEST: u64 = 64 << 10;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
