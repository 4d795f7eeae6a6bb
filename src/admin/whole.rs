//! `sessions verify`: whether the recording of one session is the one that was made. The same on a running bastion and on a
//! copy of its files; blocks, reads files, and needs public keys alone.

use std::path::Path;

use serde_json::{Value, json};

use super::logs::is_named;
use super::{Fault, Progress};
use crate::audit::{self, Against};
use crate::recording::{SessionId, SessionStatus, TapeError, Tapes};

/// What a check of one session found.
pub struct SessionVerified {
    /// As `--json` prints it.
    pub value: Value,
    /// In words.
    pub says: String,
}

/// Checks the trail, then the tape of `session` against its own frames and against the digest that the trail names.
///
/// # Errors
/// Exit code 10 and the first thing that is wrong; 3 if nobody knows of such a session, 5 while it is live. None if the
/// trail has not heard how it ended.
pub fn verify_session(
    (audit_dir, tapes): (&Path, &Tapes),
    session: SessionId,
    against: &Against,
    progress: &Progress,
) -> Result<Option<SessionVerified>, Fault> {
    let summary = tapes.summary(session);
    if summary.as_ref().is_ok_and(|summary| summary.status == SessionStatus::Live) {
        return Err(live(session));
    }
    progress.expect(audit::verify_length(audit_dir) + tapes.length(session));
    let chain = audit::verify_counting(audit_dir, against, &|bytes| progress.did(bytes))
        .map_err(|fault| Fault::tampering(format!("audit trail: {fault}")))?;
    let name = session.to_string();
    let closed: Vec<_> = chain.tapes.iter().filter(|closed| closed.session == name).collect();
    let gone = || match (chain.deleted.get(&name), closed.last()) {
        (Some(gone), _) => Ok(Some(deleted(session, gone))),
        (None, Some(named)) => Err(Fault::tampering(format!(
            "{} is gone; event {} names it, and no signed event deletes it",
            tapes.tape_file(session).display(),
            named.seq
        ))),
        (None, None) => Err(TapeError::Missing(session).into()),
    };
    if summary.is_err() && !tapes.tape_file(session).exists() {
        return gone();
    }
    if !tapes.lies_whole(session)
        && let Some(gone) = chain.deleted.get(&name)
    {
        // Its time was over, and a crash came in the middle of its deletion.
        return Ok(Some(deleted(session, gone)));
    }
    let Some(named) = closed.last() else {
        return match (chain.unclosed.contains(&name), &summary) {
            // A copy that was made while it ran.
            (true, Err(_)) => Err(live(session)),
            (true, Ok(_)) => Ok(None),
            (false, _) => {
                Err(Fault::tampering(format!("the audit trail names no tape of session {session}")))
            }
        };
    };
    let mut opened = Err(TapeError::Missing(session));
    // Of one whose digest changed all are held against it: the chain can be written on by whoever has the disk.
    for closed in &closed {
        opened = Ok(match is_named(tapes, session, closed) {
            Err(TapeError::Missing(_)) => return gone(),
            verified => verified?,
        });
    }
    let verified = opened?;
    let how = if verified.opened { "every frame opens" } else { "not opened: no identity here" };
    Ok(Some(SessionVerified {
        value: json!({
            "session": name, "sha256": verified.digest, "opened": verified.opened, "seq": named.seq,
        }),
        says: format!(
            "{session}: whole and unchanged ({how}; SHA-256 {} as event {} says)",
            verified.digest, named.seq
        ),
    }))
}

/// The trail has not heard how the session ended.
pub fn untold(session: SessionId) -> Fault {
    Fault::conflict(format!(
        "the audit trail has not heard how session {session} ended; the next start tells it. See: keyward logs verify"
    ))
}

fn live(session: SessionId) -> Fault {
    Fault::conflict(format!("session {session} is still live; verify it when it has ended"))
}

fn deleted(session: SessionId, gone: &audit::DeletedTape) -> SessionVerified {
    let (time, seq, digest) = (&gone.time, gone.seq, &gone.digest);
    SessionVerified {
        value: json!({ "session": session.to_string(), "deleted_at": time, "sha256": digest, "seq": seq }),
        says: format!("{session}: deleted by retention on {time} (event {seq}; SHA-256 {digest})"),
    }
}
