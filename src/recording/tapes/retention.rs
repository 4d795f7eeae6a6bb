//! Retention: which tapes have had their time, and their deletion. The trail hears of it before (see `admin::retention`);
//! nothing here decides that on its own.

use std::fs;
use std::io;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::super::message::SessionId;
use super::super::summary::Summary;
use super::{TapeError, Tapes, small};

/// How long tapes are kept, in seconds; none: for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Of sessions with a terminal.
    pub terminal: Option<i64>,
    /// Of all others.
    pub other: Option<i64>,
}

impl Keep {
    /// Whether the time of an ended session's tape is over, and how long it was.
    pub fn over(&self, summary: &Summary, now: Timestamp) -> Option<i64> {
        let terminal = summary.channels.iter().any(|channel| channel.terminal);
        let seconds = match summary.lost {
            // It may have had a terminal: whoever takes a summary away must not shorten the tape's time.
            true => self.terminal?.max(self.other?),
            false if terminal => self.terminal?,
            false => self.other?,
        };
        let ended = summary.ended_at?;
        (now.as_second().saturating_sub(ended.as_second()) >= seconds).then_some(seconds)
    }
}

impl Tapes {
    /// The summary beside a tape, and the SHA-256 of the file that it was read from, hex. Reads files.
    ///
    /// # Errors
    /// [`TapeError`]: it is gone, or no summary of this session.
    pub fn summary_as_it_lies(&self, id: SessionId) -> Result<(Summary, String), TapeError> {
        let path = self.path(id, "json");
        let text = small(&path).map_err(|e| TapeError::file(&path, e))?;
        let read = serde_json::from_slice::<Summary>(&text).ok();
        let summary = read.filter(|summary| summary.header.id == id.to_string());
        let summary = summary.ok_or_else(|| TapeError::damaged(&path, 0, "no summary of this session"))?;
        Ok((summary, HEXLOWER.encode(&Sha256::digest(text))))
    }

    /// Whether tape and key are both there: of one that is being deleted they are not.
    pub fn lies_whole(&self, id: SessionId) -> bool {
        self.path(id, "tape").exists() && self.path(id, "key").exists()
    }

    /// Deletes a tape: first its key, so that a crash in the middle leaves nothing that can be read; its summary last, so
    /// that it is found again. Writes files.
    ///
    /// # Errors
    /// [`TapeError::Live`], [`TapeError::File`].
    pub fn delete(&self, id: SessionId) -> Result<(), TapeError> {
        if self.summary(id)?.ended_at.is_none() {
            return Err(TapeError::Live(id));
        }
        for kind in ["key", "tape", "json"] {
            let path = self.path(id, kind);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(TapeError::file(&path, e)),
                _ => {}
            }
        }
        self.known.gone(id);
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| TapeError::file(&self.dir, e))
    }
}
