//! What a start makes of the tapes that a crash left: gives them summaries, removes what never began, and says what the
//! trail has not heard.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use jiff::Timestamp;

use super::super::format::{Header, What};
use super::super::frames;
use super::super::message::SessionId;
use super::super::summary::{SessionEnd, SessionStatus, Summary};
use super::super::told::{Telling, cut_off};
use super::{TapeError, Tapes, length, write_beside};
use crate::audit::Known;

impl Tapes {
    /// The ended sessions that the trail must still hear of: those that it has open, those whose summary was made anew
    /// since (`rebuilt`), and those that it does not know and that hold nothing (a crash, or a full disk, came between
    /// tape and trail). One that it does not know and that holds something is none of them: there the trail lost its
    /// end, and verification says so. Reads files.
    ///
    /// # Errors
    /// [`TapeError`] if the directory cannot be read.
    pub fn untold(&self, rebuilt: &[Summary], known: &Known) -> Result<Vec<Summary>, TapeError> {
        let mut untold = Vec::new();
        for id in self.sessions()? {
            let name = id.to_string();
            let anew = rebuilt.iter().find(|summary| summary.header.id == name).and_then(Summary::sha256);
            if known.is_closed_with(&name, anew.as_deref()) {
                continue;
            }
            // What cannot be read is left to verification.
            let Ok(summary) = self.summary(id) else { continue };
            let ended = summary.ended_at.is_some() && summary.header.id == name;
            if ended && (known.has(&name) || self.is_blank(id, &summary)) {
                untold.push(summary);
            }
        }
        Ok(untold)
    }

    /// Removes keys whose tape never was: what a crash left of a session that `known` does not have.
    ///
    /// # Errors
    /// [`TapeError::File`].
    pub fn remove_orphans(&self, known: &Known) -> Result<(), TapeError> {
        for id in self.ids("key")? {
            let alone = !self.path(id, "tape").exists() && !self.path(id, "json").exists();
            if alone && !known.has(&id.to_string()) {
                tracing::warn!(session.id = %id, "tape.never_began");
                let path = self.path(id, "key");
                fs::remove_file(&path).map_err(|e| TapeError::file(&path, e))?;
            }
        }
        Ok(())
    }

    /// Whether no channel ever opened.
    fn is_blank(&self, id: SessionId, summary: &Summary) -> bool {
        if self.kept.load().keys.can_read() {
            return self.told(id).is_ok_and(|told| told.channels.is_empty());
        }
        // Without the identity a summary that was made anew knows of no channel.
        let header_only = || {
            let line = self.file(id).ok().and_then(|file| frames::header(&mut BufReader::new(file)));
            line.is_some_and(|(_, line)| line.len() as u64 == length(&self.path(id, "tape")))
        };
        summary.channels.is_empty() && (summary.status != SessionStatus::Truncated || header_only())
    }

    /// What the tape itself tells of its session; `truncated` if it has no end.
    pub(super) fn told(&self, id: SessionId) -> Result<Summary, TapeError> {
        self.told_up_to(id).map(|(summary, _)| summary)
    }

    /// The same, and the byte up to which the tape opens.
    pub(super) fn told_up_to(&self, id: SessionId) -> Result<(Summary, u64), TapeError> {
        let mut frames = self.opened(id)?;
        let mut telling = Telling::default();
        let (mut end, mut lasted) = (None, None);
        let mut closed = BTreeMap::new();
        while let Some(records) = frames.next_frame()? {
            for record in &records {
                match &record.what {
                    What::End(how, at, channels) => {
                        end = Some((how.clone(), *at, channels.clone()));
                        lasted = Some(record.millis);
                    }
                    what => {
                        if let What::Closed(channel) = what {
                            closed.insert(record.channel, channel.clone());
                        }
                        telling.hear(record);
                    }
                }
            }
        }
        // What is packed says so in clear; it was not so when the session began.
        let header = Header { packed: false, ..frames.reader.header().clone() };
        let Some((SessionEnd { status, reason }, at, channels)) = end.filter(|_| frames.reader.complete())
        else {
            return Ok((cut_off(header, telling), frames.reader.offset()));
        };
        // The end tells of the channels that were open still, or of all.
        closed.extend(channels.into_iter().map(|channel| (channel.channel, channel)));
        let mut summary = Summary::of(header, closed.into_values().collect());
        (summary.status, summary.reason, summary.ended_at) = (status, reason, Some(at));
        summary.lasted_ms = lasted;
        Ok((summary, frames.reader.offset()))
    }

    /// Gives a tape that a crash left its summary; none if the crash came before its first byte.
    pub(super) fn truncated(&self, id: SessionId) -> Result<Option<Summary>, TapeError> {
        let path = self.path(id, "tape");
        let Some((header, _)) = frames::header(&mut BufReader::new(self.file(id)?)) else { return Ok(None) };
        let header = Header { packed: false, ..header };
        // Without the identity, or with a frame that does not open, the ledger is not known. Verification tells. A tape
        // that ended and whose summary was not written any more ended as it says.
        let mut summary = self.told(id).or_else(|_| self.untellable(id, header))?;
        summary.digest = Some(self.digest(id)?);
        File::open(&path).and_then(|f| f.sync_all()).map_err(|e| TapeError::file(&path, e))?;
        write_beside(&self.path(id, "json"), &summary)?;
        Ok(Some(summary))
    }

    /// What can be said of a tape that does not open here: who, where, since when, and whether it came to its end.
    fn untellable(&self, id: SessionId, header: Header) -> Result<Summary, TapeError> {
        let written = fs::metadata(self.path(id, "tape")).and_then(|file| file.modified());
        let written = written.ok().and_then(|at| Timestamp::try_from(at).ok());
        let ended_at = written.max(Some(header.started_at));
        let mut summary =
            Summary { lost: true, lasted_ms: None, ended_at, ..cut_off(header, Telling::default()) };
        if frames::looks_complete(self.file(id)?) {
            summary.reason = Some(Summary::CAME_TO_ITS_END.to_owned());
        }
        Ok(summary)
    }

    /// A session whose summary cannot be read, as far as its tape tells who and where: it must not be missing where
    /// sessions are listed.
    pub(super) fn unread(&self, id: SessionId, error: &TapeError) -> Summary {
        let told = self.file(id).ok().and_then(|file| frames::header(&mut BufReader::new(file)));
        let header =
            told.map_or_else(|| Header::unknown(id), |(header, _)| Header { packed: false, ..header });
        let nothing = || cut_off(Header::unknown(id), Telling::default());
        let summary = self.untellable(id, header).unwrap_or_else(|_| nothing());
        let reason = format!("its summary cannot be read: {error}");
        Summary { lost: true, reason: Some(reason), ..summary }
    }

    /// Removes what a crash left half written: a tape without its header, and a key whose tape never was. The trail hears
    /// of a session only after both were synced.
    pub(super) fn sweep(&self) -> Result<(), TapeError> {
        for entry in fs::read_dir(&self.dir).map_err(|e| TapeError::file(&self.dir, e))? {
            let path = entry.map_err(|e| TapeError::file(&self.dir, e))?.path();
            if path.extension().is_some_and(|e| e == "new") {
                fs::remove_file(&path).map_err(|e| TapeError::file(&path, e))?;
            }
        }
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(TapeError::file(path, e)),
            _ => Ok(()),
        };
        for id in self.ids("tape")? {
            let path = self.path(id, "tape");
            if !self.path(id, "json").exists()
                && frames::lacks_header(self.file(id)?).map_err(|e| TapeError::file(&path, e))?
            {
                tracing::warn!(session.id = %id, "tape.never_began");
                // The key first: a tape without one would stay.
                remove(&self.path(id, "key"))?;
                remove(&path)?;
            }
        }
        Ok(())
    }
}
