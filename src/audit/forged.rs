//! Lines that somebody wrote into the trail who has the disk and not the audit key: taken out as the trail is opened, kept
//! beside it, and told of before anything else is.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use keystore::journal::{self, Aside, Entry, Fault, Journal, JournalError, Options, Receipt};
use serde::Serialize;

use super::event::Event;
use super::mark::Marks;
use super::trail::{AuditError, Trail, journal_dir, named};

/// Events that were forged, as the trail tells of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forged {
    /// The number that the first of them had.
    pub from: u64,
    /// The number that the last of them had.
    pub through: u64,
    /// Where their lines are kept: a file name in `forged/` of the trail.
    pub kept: String,
    /// SHA-256 of that file, hex.
    pub sha256: String,
    /// Sequence number of the event that tells of them; 0 until it is written.
    pub told: u64,
}

impl Forged {
    /// What `event`, which has this number, tells of forged events, if it does.
    pub(super) fn told_by(event: &Event, told: u64) -> Option<Self> {
        let Event::TrailForged { from, through, kept, sha256, .. } = event else { return None };
        Some(Self { from: *from, through: *through, kept: kept.clone(), sha256: sha256.clone(), told })
    }

    pub(super) fn event(&self) -> Event {
        let Self { from, through, kept, sha256, .. } = self.clone();
        Event::TrailForged { from, through, kept, sha256, reason: WHY.to_owned() }
    }

    /// What is wrong with the trail in `dir` since then. Reads the lines that were kept.
    pub fn fault(&self, dir: &Path) -> Fault {
        let file = forged_dir(dir).join(&self.kept);
        let kept = journal::aside(&forged_dir(dir)).unwrap_or_default();
        let state = match kept.iter().find(|kept| kept.file == file) {
            None => "they were kept here, and are gone",
            Some(kept) if kept.sha256 != self.sha256 => "they are kept here, and were changed since",
            Some(_) => "they are kept here",
        };
        let Self { from, through, told, .. } = self;
        let what = format!(
            "events {from} to {through} were forged while the bastion was down, as event {told} tells; no one reads them, {state}"
        );
        Fault { file, offset: 0, seq: None, what }
    }
}

impl std::fmt::Display for Forged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, through, kept, .. } = self;
        write!(
            f,
            "events {from} to {through} of the audit trail were forged while the bastion was down; see audit/forged/{kept}"
        )
    }
}

/// Judges the lines of a trail as it is opened, and remembers what they tell of earlier forgeries.
struct Jury<'a> {
    marks: &'a Marks,
    /// What the newest checkpoint says.
    signed: Option<&'a Receipt>,
    /// Whether the chain is thought to lead to what was signed: its hash is over all before it, so that their marks need
    /// not be looked at.
    leads: bool,
    /// Whether it did.
    arrived: bool,
    told: Vec<Forged>,
}

impl<'a> Jury<'a> {
    fn new(marks: &'a Marks, signed: Option<&'a Receipt>, leads: bool) -> Self {
        Self { marks, signed, leads, arrived: false, told: Vec::new() }
    }

    /// Whether lines were believed that lead to nothing that was signed.
    fn is_misled(&self) -> bool {
        self.leads && !self.arrived
    }

    /// Whether the bastion wrote it.
    ///
    /// # Errors
    /// It did not, and a checkpoint vouches for what it wrote there: that is lost, and nothing may be written on it.
    fn believes(&mut self, entry: &Entry) -> Result<bool, JournalError> {
        let fault = |what: &str| Fault {
            file: entry.file.clone(),
            offset: entry.offset,
            seq: Some(entry.seq),
            what: what.to_owned(),
        };
        let signed = self.signed.filter(|signed| entry.seq <= signed.seq);
        if let Some(signed) = signed.filter(|_| self.leads) {
            if entry.seq == signed.seq && entry.hash != signed.hash {
                return Err(fault(UNMARKED).into());
            }
            self.arrived |= entry.seq == signed.seq;
        } else if !self.marks.hold(entry) {
            return if signed.is_none() { Ok(false) } else { Err(fault(UNMARKED).into()) };
        }
        if named(&entry.payload) == Some(b"trail_forged") {
            let event = serde_json::from_slice(&entry.payload).ok();
            self.told.extend(event.and_then(|event| Forged::told_by(&event, entry.seq)));
        }
        Ok(true)
    }

    /// All that was forged: what the trail tells of, and what lies in `dir` and was not told yet.
    fn verdict(self, dir: &Path) -> Result<Vec<Forged>, AuditError> {
        let mut forged = self.told;
        for Aside { file, from, through, sha256 } in journal::aside(&forged_dir(dir))? {
            let kept = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !forged.iter().any(|told| told.kept == kept) {
                forged.push(Forged { from, through, kept, sha256, told: 0 });
            }
        }
        Ok(forged)
    }
}

impl Trail {
    /// The events that were forged while the bastion was down, in all its time.
    pub fn forged(&self) -> Vec<Forged> {
        self.forged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Tells of those that were found at the opening, and signs that at once. Before this, nothing is told.
    ///
    /// # Errors
    /// As [`Trail::checkpoint`]; the next opening finds them again.
    pub async fn tell_forged(&self, now: Timestamp) -> Result<(), AuditError> {
        let mut all = self.forged();
        if all.iter().all(|forged| forged.told > 0) {
            return Ok(());
        }
        for forged in all.iter_mut().filter(|forged| forged.told == 0) {
            tracing::error!(from = forged.from, through = forged.through, kept = %forged.kept, "audit.trail_forged");
            forged.told = self.append(forged.event(), now).await?.seq;
        }
        *self.forged.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = all;
        self.checkpoint(now).await.map(drop)
    }
}

/// Opens the journal of the trail in `dir`, whose newest checkpoint is `signed`, and says what was ever forged in it.
pub(super) fn open(
    dir: &Path,
    options: Options,
    (marks, signed): (&Marks, Option<&Receipt>),
) -> Result<(Journal, Vec<Forged>), AuditError> {
    let (lines, kept) = (journal_dir(dir), forged_dir(dir));
    let judged = |leads: bool| {
        let mut jury = Jury::new(marks, signed, leads);
        let opened = Journal::open_judged((&lines, &kept), options, |entry| jury.believes(entry));
        (jury, opened)
    };
    let (mut jury, mut opened) = judged(signed.is_some());
    if jury.is_misled() {
        // It must be closed to be opened again: now all are looked at, and the first that is not ours is named.
        drop(opened);
        (jury, opened) = judged(false);
    }
    let journal = opened?;
    Ok((journal, jury.verdict(dir)?))
}

/// Where forged lines are kept.
pub(super) fn forged_dir(dir: &Path) -> PathBuf {
    dir.join("forged")
}

const WHY: &str = "their marks are not the bastion's: somebody wrote them who has the disk and not its keys";
const UNMARKED: &str = "its mark is not one of this bastion: it was changed, or written by somebody who has the disk and not the \
                        keys, though a checkpoint vouches for what was here; or by a Keyward from before there were marks, \
                        whose trails are not taken over. Keep a copy of the directory, and put the trail back from its backup";
