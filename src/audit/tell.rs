//! What the trail tells of some sessions: their files, their holds, their deletion, their events as they stand in the chain.
//! All of it reads files: call it where blocking is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use keystore::journal::{self, chain_hash};
use serde_json::Value;

use super::event::Event;
use super::trail::{AuditError, Trail, checkpoint_dir, journal_dir};

/// Why a tape is kept past its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Who said so.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Some sessions' part of the trail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// Their events, as they stand in the chain, each with its `hash`, one JSON object a line.
    pub events: String,
    /// Statements and signatures of the checkpoints from the first of those events on, oldest first.
    pub checkpoints: Vec<PathBuf>,
}

impl Excerpt {
    /// Number, hash, hash of the one before, and the event itself, of a line of [`Excerpt::events`]; none if the line is
    /// not what the chain hashed.
    pub fn proven(line: &str) -> Option<(u64, String, String, Option<Event>)> {
        let (payload, hash) = line.rsplit_once(",\"hash\":\"")?;
        let hash = hash.strip_suffix("\"}")?;
        let payload = format!("{payload}}}");
        let fields: Value = serde_json::from_str(&payload).ok()?;
        let (seq, prev) = (fields.get("seq")?.as_u64()?, fields.get("prev")?.as_str()?.to_owned());
        let event = serde_json::from_value(fields).ok();
        (chain_hash(&prev, seq, payload.as_bytes()) == hash).then(|| (seq, hash.to_owned(), prev, event))
    }
}

impl Trail {
    /// The sessions in which a file with `text` in its path was read, written or changed, whatever its case.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn sessions_with_file(&self, text: &str) -> Result<BTreeSet<String>, AuditError> {
        let (text, mut found) = (text.to_lowercase(), BTreeSet::new());
        let says = |path: &str| path.to_lowercase().contains(&text);
        self.each(&["\"file_read\"", "\"file_written\"", "\"file_changed\""], |event, _| match event {
            Event::FileRead { file, .. } | Event::FileWritten { file, .. } if file.paths().any(says) => {
                found.insert(file.session);
            }
            Event::FileChanged { file, to, .. } if file.paths().chain(to.as_deref()).any(says) => {
                found.insert(file.session);
            }
            _ => {}
        })?;
        Ok(found)
    }

    /// The sessions whose tapes are kept past their time.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn holds(&self) -> Result<BTreeMap<String, Hold>, AuditError> {
        let mut holds = BTreeMap::new();
        self.each(&["\"recording_held\"", "\"recording_released\""], |event, _| match event {
            Event::RecordingHeld { by, session, reason } => {
                holds.insert(session, Hold { by, reason });
            }
            Event::RecordingReleased { session, .. } => {
                holds.remove(&session);
            }
            _ => {}
        })?;
        Ok(holds)
    }

    /// When the tape of `session` was deleted, RFC 3339, and why, if it was.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify.
    pub fn deletion(&self, session: &str) -> Result<Option<(String, String)>, AuditError> {
        let mut told = None;
        self.each(&["\"recording_deleted\""], |event, time| {
            if let Event::RecordingDeleted { session: gone, reason, .. } = event
                && gone == session
            {
                told = told.take().or(Some((time, reason)));
            }
        })?;
        Ok(told)
    }

    /// The part of the trail that is about `sessions`.
    ///
    /// # Errors
    /// [`AuditError::Damaged`] at the first record that does not verify; [`AuditError::File`].
    pub fn excerpt(&self, sessions: &BTreeSet<String>) -> Result<Excerpt, AuditError> {
        let (mut excerpt, mut first) = (Excerpt::default(), u64::MAX);
        for entry in journal::read(&journal_dir(&self.dir)) {
            let entry = entry.map_err(|fault| AuditError::Damaged(fault.to_string()))?;
            let fields: Value = serde_json::from_slice(&entry.payload)?;
            if fields.get("session").and_then(Value::as_str).is_none_or(|id| !sessions.contains(id)) {
                continue;
            }
            first = first.min(entry.seq);
            let payload = String::from_utf8_lossy(&entry.payload);
            let payload = payload.strip_suffix('}').unwrap_or(&payload);
            excerpt.events.push_str(&format!("{payload},\"hash\":\"{}\"}}\n", entry.hash));
        }
        let dir = checkpoint_dir(&self.dir);
        let files = fs::read_dir(&dir).map_err(|source| AuditError::File { path: dir, source })?;
        let covers = |path: &PathBuf| {
            let number =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            path.extension().is_some_and(|kind| kind == "json" || kind == "sig")
                && number.is_some_and(|n| n >= first)
        };
        excerpt.checkpoints = files.flatten().map(|file| file.path()).filter(covers).collect();
        excerpt.checkpoints.sort_unstable();
        Ok(excerpt)
    }

    /// The events whose text has one of `names` in it, with their times. The others are not parsed.
    fn each(&self, names: &[&str], mut hear: impl FnMut(Event, String)) -> Result<(), AuditError> {
        for entry in journal::read(&journal_dir(&self.dir)) {
            let entry = entry.map_err(|fault| AuditError::Damaged(fault.to_string()))?;
            let text = String::from_utf8_lossy(&entry.payload);
            if !names.iter().any(|name| text.contains(name)) {
                continue;
            }
            let fields: Value = serde_json::from_slice(&entry.payload)?;
            let time = fields.get("time").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Ok(event) = serde_json::from_value(fields) {
                hear(event, time);
            }
        }
        Ok(())
    }
}
