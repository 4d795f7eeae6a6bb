//! `sessions verify --bundle`: an archive held against the audit key. Reads one member at a time, needs no daemon, unpacks
//! nothing, and names the first bad thing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use keystore::ssh::{PublicKey, SshSig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Fault;
use super::bundle::{EVENTS, MANIFEST, NAMESPACE, SIGNATURE, hex};
use crate::audit::{Event, Excerpt};
use crate::recording::Summary;

/// What a whole archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleVerified {
    sessions: Vec<String>,
    events: usize,
    checkpoints: usize,
}

impl BundleVerified {
    /// As `--json` prints it.
    pub fn as_json(&self) -> Value {
        json!({ "sessions": self.sessions, "events": self.events, "checkpoints": self.checkpoints })
    }
}

impl std::fmt::Display for BundleVerified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sessions, events, checkpoints } = self;
        write!(
            f,
            "{} sessions, {events} events, {checkpoints} checkpoints: whole and unchanged",
            sessions.len()
        )?;
        sessions.iter().try_for_each(|session| write!(f, "\n  {session}"))
    }
}

/// Checks the archive that `from` holds against the audit key that was kept elsewhere.
///
/// # Errors
/// Exit code 10 and the first thing that is wrong.
pub fn verify_bundle(from: impl Read, key: &PublicKey) -> Result<BundleVerified, Fault> {
    let held = Held::read(from)?;
    held.is_signed(key)?;
    held.is_complete()?;
    let events = held.events()?;
    let checkpoints = held.checkpoints(key, &events)?;
    let sessions = held.sessions(&events)?;
    Ok(BundleVerified { sessions, events: events.len(), checkpoints })
}

/// The members: all digests, and the content of those that are read.
#[derive(Default)]
struct Held {
    digests: BTreeMap<String, String>,
    small: BTreeMap<String, Vec<u8>>,
}

type Told = (u64, String, String, Option<Event>);

impl Held {
    fn read(from: impl Read) -> Result<Self, Fault> {
        let (mut held, mut together) = (Self::default(), 0);
        let mut archive = tar::Archive::new(from);
        let broken = |e: std::io::Error| bad("the archive", &format!("cannot be read to its end: {e}"));
        // Raw: an extension that renames or resizes what follows is a member of its own here, and refused.
        for entry in archive.entries().map_err(broken)?.raw(true) {
            let mut entry = entry.map_err(broken)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if entry.header().entry_type() != tar::EntryType::Regular {
                return Err(bad(&name, "is no regular file: it is not of this archive"));
            }
            let (digest, content) = taken(&mut entry, keeps(&name)).map_err(broken)?;
            together += content.as_ref().map_or(0, Vec::len);
            if together > LARGEST_TOGETHER {
                return Err(bad("the archive", "holds more than any that was made"));
            }
            if held.digests.insert(name.clone(), digest).is_some() {
                return Err(bad(&name, "is there twice"));
            }
            if let Some(content) = content {
                held.small.insert(name, content);
            } else if keeps(&name) {
                return Err(bad(&name, "is larger than any that was made"));
            }
        }
        // What lies behind the end some tools unpack too.
        let (mut rest, mut chunk) = (archive.into_inner(), vec![0; 64 << 10]);
        loop {
            let read = rest.read(&mut chunk).map_err(broken)?;
            match chunk.get(..read).unwrap_or_default() {
                [] => return Ok(held),
                behind if behind.iter().any(|byte| *byte != 0) => {
                    return Err(bad("the archive", "goes on behind its end"));
                }
                _ => {}
            }
        }
    }

    fn member(&self, name: &str) -> Result<&[u8], Fault> {
        self.small.get(name).map(Vec::as_slice).ok_or_else(|| bad(name, "is missing"))
    }

    fn is_signed(&self, key: &PublicKey) -> Result<(), Fault> {
        let sig = SshSig::from_pem(self.member(SIGNATURE)?).map_err(|_| bad(SIGNATURE, "is no SSHSIG"))?;
        key.verify(NAMESPACE, self.member(MANIFEST)?, &sig)
            .map_err(|_| bad(SIGNATURE, "does not hold: SHA256SUMS was changed, or another key signed it"))
    }

    /// All that the manifest names is there and unchanged, and nothing else is.
    fn is_complete(&self) -> Result<(), Fault> {
        let manifest = String::from_utf8_lossy(self.member(MANIFEST)?);
        let mut named = BTreeSet::from([MANIFEST, SIGNATURE]);
        for line in manifest.lines() {
            let (digest, name) =
                line.split_once("  ").ok_or_else(|| bad(MANIFEST, "has a line of another form"))?;
            match self.digests.get(name) {
                None => return Err(bad(name, "is missing")),
                Some(found) if found != digest => {
                    return Err(bad(name, "was changed: it has another SHA-256"));
                }
                Some(_) => named.insert(name),
            };
        }
        match self.digests.keys().find(|name| !named.contains(name.as_str())) {
            Some(stranger) => Err(bad(stranger, "was added: SHA256SUMS does not name it")),
            None => Ok(()),
        }
    }

    /// The events, each as the chain hashed it, in its order.
    fn events(&self) -> Result<Vec<Told>, Fault> {
        let mut events: Vec<Told> = Vec::new();
        for (number, line) in String::from_utf8_lossy(self.member(EVENTS)?).lines().enumerate() {
            let wrong = |what: &str| bad(&format!("{EVENTS}, line {}", number + 1), what);
            let event = Excerpt::proven(line).ok_or_else(|| wrong("is not what the chain hashed"))?;
            if let Some((seq, hash, ..)) = events.last()
                && (event.0 <= *seq || event.0 == seq + 1 && event.2 != *hash)
            {
                return Err(wrong("does not follow the line before"));
            }
            events.push(event);
        }
        Ok(events)
    }

    fn checkpoints(&self, key: &PublicKey, events: &[Told]) -> Result<usize, Fault> {
        let statements =
            self.small.iter().filter(|(name, _)| name.starts_with("checkpoints/") && name.ends_with(".json"));
        let (mut count, mut last) = (0, 0);
        for (name, statement) in statements {
            let signature = format!("{}.sig", name.trim_end_matches(".json"));
            let sig =
                SshSig::from_pem(self.member(&signature)?).map_err(|_| bad(&signature, "is no SSHSIG"))?;
            key.verify("keyward-audit", statement, &sig).map_err(|_| bad(&signature, "does not hold"))?;
            let said: Value = serde_json::from_slice(statement).map_err(|_| bad(name, "is no checkpoint"))?;
            let seq = said.get("seq").and_then(Value::as_u64).ok_or_else(|| bad(name, "is no checkpoint"))?;
            let hash = said.get("hash").and_then(Value::as_str);
            if events.iter().any(|event| event.0 == seq && Some(event.1.as_str()) != hash) {
                return Err(bad(name, "disagrees with the event that it covers"));
            }
            (count, last) = (count + 1, last.max(seq));
        }
        match events.last() {
            Some((seq, ..)) if *seq > last => Err(bad("checkpoints/", "none covers the last of the events")),
            _ => Ok(count),
        }
    }

    /// Every tape is the one that its session's end names, with its own summary; every end has its tape.
    fn sessions(&self, events: &[Told]) -> Result<Vec<String>, Fault> {
        let mut ends = BTreeMap::new();
        for (.., event) in events {
            if let Some(Event::SessionClosed { facts, digest, summary, .. }) = event {
                ends.insert(facts.session.clone(), (digest.clone(), summary.clone()));
            }
        }
        let tapes = self.digests.keys().filter_map(|name| name.strip_prefix("tapes/")?.strip_suffix(".tape"));
        let tapes: BTreeSet<&str> = tapes.collect();
        if let Some(lost) = ends.keys().find(|session| !tapes.contains(session.as_str())) {
            return Err(bad(&format!("tapes/{lost}.tape"), "is missing, and the events tell of it"));
        }
        for id in &tapes {
            let file = |kind: &str| format!("tapes/{id}.{kind}");
            let (digest, summary) = ends
                .get(*id)
                .ok_or_else(|| bad(&file("tape"), "belongs to no session that the events end"))?;
            if self.digests.get(&file("tape")) != Some(digest) {
                return Err(bad(&file("tape"), "is not the one that the audit trail names"));
            }
            let told: Summary = serde_json::from_slice(self.member(&file("json"))?)
                .map_err(|_| bad(&file("json"), "is no summary of a tape"))?;
            let other = summary.is_some() && self.digests.get(&file("json")) != summary.as_ref();
            if other || told.header.id != *id || told.digest.as_ref() != Some(digest) {
                return Err(bad(&file("json"), "is not the one that the audit trail names"));
            }
            self.member(&file("key"))?;
        }
        Ok(tapes.into_iter().map(str::to_owned).collect())
    }
}

/// All but tapes are read.
fn keeps(name: &str) -> bool {
    !name.ends_with(".tape")
}

/// Digest of a member, and its content if that is wanted and within bounds.
fn taken(entry: &mut impl Read, keep: bool) -> std::io::Result<(String, Option<Vec<u8>>)> {
    let (mut hash, mut chunk, mut kept) = (Sha256::new(), vec![0; 256 << 10], keep.then(Vec::new));
    loop {
        let read = entry.read(&mut chunk)?;
        let bytes = chunk.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            return Ok((hex(&hash.finalize()), kept));
        }
        hash.update(bytes);
        match &mut kept {
            Some(content) if content.len() + bytes.len() <= LARGEST => content.extend_from_slice(bytes),
            _ => kept = None,
        }
    }
}

fn bad(name: &str, what: &str) -> Fault {
    Fault::tampering(format!("{} {what}", super::render::plain(name)))
}

/// All members that are held in memory, in bytes, and one of them.
const LARGEST_TOGETHER: usize = 512 << 20;
const LARGEST: usize = 256 << 20;
