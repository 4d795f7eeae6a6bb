//! Whether a tape is the one that was written: its frames, its summary, the digest that the trail names.

use super::super::frames;
use super::super::ledger::Capture;
use super::super::message::SessionId;
use super::super::summary::{SessionStatus, Summary};
use super::{TapeError, TapeVerified, Tapes, length};

impl Tapes {
    /// The bytes of a session's tape; none if it is gone.
    pub fn length(&self, id: SessionId) -> u64 {
        length(&self.path(id, "tape"))
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
        let (path, summary_path) = (self.path(id, "tape"), self.path(id, "json"));
        let lies = |what: &str| TapeError::damaged(&summary_path, 0, what);
        if summary.header.id != id.to_string() {
            return Err(lies("it is the summary of another session"));
        }
        let key_path = self.path(id, "key");
        if !key_path.exists() {
            return Err(TapeError::damaged(&key_path, 0, "it is gone: nobody can open the tape"));
        }
        // Where it is wrong helps more than that it is wrong: first the frames, then the digest.
        let opened = self.kept.load().keys.can_read();
        let end = |at| TapeError::damaged(&path, at, "the end of the tape is missing");
        if opened {
            let (told, at) = self.told_up_to(id)?;
            if told.status == SessionStatus::Truncated && summary.status == SessionStatus::Closed {
                let edited = TapeError::damaged(&path, at, "from here on it does not open: it was changed");
                return Err(if at < length(&path) { edited } else { end(at) });
            }
            let lasted_ms = summary.lasted_ms.and(told.lasted_ms);
            let own = Summary { digest: summary.digest.clone(), lasted_ms, ..told };
            // What killed a session may be that its tape could not be written: then only the summary tells.
            let failed = summary.status == SessionStatus::Killed && own.status == SessionStatus::Truncated;
            let same = match own.status {
                // It claims no more than the tape says; that it is the one that the trail heard of says its digest.
                _ if summary.lost => own.header == summary.header && summary.channels.is_empty(),
                SessionStatus::Truncated => plainly(&own) == plainly(&summary),
                _ => own == summary,
            };
            if !(same || failed && own.header == summary.header) {
                return Err(lies("the summary does not say what the tape says: it was changed"));
            }
        } else {
            self.kept.load().keys.recognises(&key_path)?;
            if summary.status == SessionStatus::Closed && !frames::looks_complete(self.file(id)?) {
                return Err(end(length(&path)));
            }
        }
        let found = self.digest(id)?;
        let expected = digest.or(summary.digest.as_deref());
        if expected != Some(found.as_str()) {
            let what = format!("its SHA-256 is {found}, not {}", expected.unwrap_or("known"));
            return Err(TapeError::damaged(&path, 0, what));
        }
        if summary.digest.as_ref() != Some(&found) {
            return Err(lies("it names another digest than the tape has"));
        }
        Ok(TapeVerified { digest: found, opened })
    }
}

/// A summary that was made from a tape without an end, but for what a later version might read otherwise. That all of it
/// is as it was says the digest that the trail names.
fn plainly(summary: &Summary) -> Summary {
    let mut plain = summary.clone();
    for channel in &mut plain.channels {
        channel.operations = 0;
        channel.captured_bytes = 0;
        (channel.capture, channel.reason) = (Capture::Full, None);
        (channel.digest_in, channel.digest_out) = (None, None);
    }
    plain
}
