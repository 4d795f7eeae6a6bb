//! `logs …`: the audit trail, exported, followed and verified.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Caller, Fault, LogFormat, Logs, Output, Progress};
use crate::audit::{self, Against, Event, Filter};
use crate::recording::{SessionId, TapeError, TapeVerified, Tapes};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Logs,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Logs::Export { start, end, format, output: _ } => {
            let filter = Filter { since: Some(start.ago(now)), until: end.map(|e| e.ago(now)), event: None };
            if filter.until.is_some_and(|end| Some(end) < filter.since) {
                return Err(Fault::usage("--start is after --end; exchange them"));
            }
            let found = query(house, filter.clone(), out).await?;
            let event = Event::LogsExported {
                by: caller.name(),
                from: filter.since.map(|t| t.to_string()),
                to: filter.until.map(|t| t.to_string()),
                count: found.len() as u64,
            };
            house.trail.append(event, now).await.map_err(|e| Fault::error(e.to_string()))?;
            written(&found, format, out).await
        }
        Logs::Tail { lines, follow } => tail(house, (lines, follow), out).await,
        Logs::Verify { .. } => {
            let (dir, tapes) = (house.config().audit_dir(), std::sync::Arc::clone(&house.tapes));
            let (against, progress) = (against(house), Progress::default());
            let counts = progress.clone();
            let checked = tokio::task::spawn_blocking(move || verify(&dir, &tapes, &against, &counts));
            let checked = out.meanwhile("verifying", &progress, checked).await;
            let verified = checked.map_err(|e| Fault::error(e.to_string()))??;
            out.either(&verified.as_json(), verified.to_string()).await
        }
    }
}

/// What this bastion knows of its trail besides the trail.
pub(super) fn against(house: &House) -> Against {
    let heads = house.config().audit.head_file.clone();
    Against {
        key: house.signers.audit.public_key().clone(),
        // Before the first checkpoint there is none.
        heads: heads.filter(|file| house.trail.signed() > 0 || file.exists()),
        marks: Some(house.trail.marks().clone()),
    }
}

/// What a verification of the whole state found.
pub struct StateVerified {
    events: u64,
    checkpoints: u64,
    tapes: usize,
    opened: usize,
    store: bool,
    unclosed: Vec<String>,
    deleted: Vec<(String, audit::DeletedTape)>,
    unsigned: u64,
}

impl StateVerified {
    /// As `logs verify --json` prints it.
    pub fn as_json(&self) -> Value {
        json!({
            "events": self.events, "checkpoints": self.checkpoints, "tapes": self.tapes,
            "tapes_opened": self.opened, "store": self.store, "unclosed_sessions": self.unclosed,
            "unsigned_events": self.unsigned,
            "deleted_by_retention": self.deleted.iter().map(|(session, gone)| json!({
                "session": session, "deleted_at": gone.time, "sha256": gone.digest, "seq": gone.seq,
            })).collect::<Vec<_>>(),
        })
    }
}

impl std::fmt::Display for StateVerified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, checkpoints, tapes, opened, store, unclosed, deleted, unsigned } = self;
        write!(
            f,
            "{events} events, {checkpoints} checkpoints, {tapes} tapes ({opened} opened): whole and unchanged"
        )?;
        if !store {
            f.write_str("\nthe store is not here, and was not checked")?;
        }
        if *unsigned > 0 {
            write!(
                f,
                "\nthe last {unsigned} events are not signed yet: here nobody can tell whether the bastion wrote them. Its next \
                 start, and its own logs verify, can"
            )?;
        }
        if !unclosed.is_empty() {
            write!(f, "\nnot closed (live, or cut off since the last start): {}", unclosed.join(", "))?;
        }
        for (session, gone) in deleted {
            write!(f, "\n{session}: deleted by retention on {} (event {})", gone.time, gone.seq)?;
        }
        Ok(())
    }
}

/// Checks the chain, its checkpoints, and every tape that the chain names; `progress` counts bytes. Blocks; reads files only.
///
/// # Errors
/// Exit code 10 and the first thing that is wrong.
pub fn verify(
    audit_dir: &Path,
    tapes: &Tapes,
    against: &Against,
    progress: &Progress,
) -> Result<StateVerified, Fault> {
    let ended = ended(tapes)?;
    progress.expect(audit::verify_length(audit_dir));
    progress.expect(ended.iter().map(|(id, _)| tapes.length(*id)).sum());
    let chain = audit::verify_counting(audit_dir, against, &|bytes| progress.did(bytes))
        .map_err(|fault| Fault::tampering(format!("audit trail: {fault}")))?;
    let mut opened = 0;
    for closed in &chain.tapes {
        let named = |what: String| {
            Fault::tampering(format!(
                "the tape of session {}, which event {} names: {what}",
                closed.session, closed.seq
            ))
        };
        let id = closed.session.parse().map_err(|_| named("not a session id".to_owned()))?;
        if let Some(gone) = chain.deleted.get(&closed.session) {
            // Its files may still be there after a crash: the next start takes them away.
            if gone.digest != closed.digest {
                return Err(named(format!(
                    "event {} deleted another, with SHA-256 {}",
                    gone.seq, gone.digest
                )));
            }
            continue;
        }
        match is_named(tapes, id, closed) {
            Ok(verified) => opened += usize::from(verified.opened),
            Err(TapeError::Missing(_)) => {
                return Err(named(format!("{} is gone", tapes.tape_file(id).display())));
            }
            Err(error) if error.is_tampering() => return Err(named(error.to_string())),
            Err(error) => return Err(Fault::error(error.to_string())),
        }
        progress.did(tapes.length(id));
    }
    strangers(tapes, &ended, &chain)?;
    // A copy for auditors may come without the store.
    let store = audit_dir.parent().map(|state| state.join("store/journal")).filter(|store| store.exists());
    if let Some(store) = &store {
        held_against(store, audit_dir, (&chain, against))?;
    }
    // Last, so that all else is known to be whole.
    if let Some(forged) = chain.forged.first() {
        return Err(Fault::tampering(format!(
            "audit trail: {}{}",
            forged.fault(audit_dir),
            more(&chain.forged)
        )));
    }
    Ok(StateVerified {
        unsigned: chain.unsigned,
        store: store.is_some(),
        events: chain.entries,
        checkpoints: chain.checkpoints,
        tapes: chain.tapes.len(),
        opened,
        unclosed: chain.unclosed,
        deleted: chain.deleted.into_iter().collect(),
    })
}

fn more(forged: &[audit::Forged]) -> String {
    match forged.len().saturating_sub(1) {
        0 => ". All else is whole and unchanged".to_owned(),
        more => format!(", and {more} more times. All else is whole and unchanged"),
    }
}

/// Whether tape and summary are the ones that the trail names. Blocks.
pub(super) fn is_named(
    tapes: &Tapes,
    id: SessionId,
    closed: &audit::ClosedTape,
) -> Result<TapeVerified, TapeError> {
    let verified = tapes.verify(id, Some(&closed.digest))?;
    let told = tapes.summary_digest(id)?;
    let changed = closed.summary.as_ref().is_some_and(|named| *named != told);
    if changed { Err(TapeError::changed(&tapes.summary_file(id))) } else { Ok(verified) }
}

/// The store against what the trail saw of it. What does not fit is looked at twice: on a running bastion the store may
/// have been compacted since the trail was read.
fn held_against(
    store: &Path,
    audit_dir: &Path,
    (chain, against): (&audit::Verified, &Against),
) -> Result<(), Fault> {
    let chain_fault = |fault| Fault::tampering(format!("audit trail: {fault}"));
    if chain.store.holds(store).is_ok() {
        return Ok(());
    }
    let again = audit::verify_with(audit_dir, against).map_err(chain_fault)?;
    again.store.holds(store).map_err(|fault| Fault::tampering(format!("the store: {fault}")))
}

/// The sessions that have ended, and whether their summary is there. Asked before the chain is read: what begins or runs
/// now may not be in it yet.
fn ended(tapes: &Tapes) -> Result<Vec<(SessionId, bool)>, Fault> {
    let mut ended = Vec::new();
    for id in tapes.sessions().map_err(|e| Fault::error(e.to_string()))? {
        match tapes.summary(id) {
            Ok(summary) if summary.ended_at.is_none() => {}
            summary => ended.push((id, summary.is_ok())),
        }
    }
    Ok(ended)
}

/// Tapes and chain must name the same sessions: a chain whose end was taken away leaves tapes that it does not know, and
/// a session that was opened left a tape.
fn strangers(tapes: &Tapes, ended: &[(SessionId, bool)], chain: &audit::Verified) -> Result<(), Fault> {
    let closed = chain.tapes.iter().map(|tape| &tape.session);
    let known: BTreeSet<&String> = chain.unclosed.iter().chain(closed).collect();
    for (id, readable) in ended {
        let (id, name) = (*id, id.to_string());
        // One without a summary may just have begun.
        let began = !readable && tapes.summary(id).is_ok();
        if !began && !known.contains(&name) {
            return Err(Fault::tampering(format!(
                "{}: the audit trail knows no such session; the end of the trail was taken away, or the tape is not ours",
                tapes.tape_file(id).display()
            )));
        }
    }
    for session in &chain.unclosed {
        let tape = session.parse().map(|id| tapes.tape_file(id));
        if !tape.is_ok_and(|file| file.exists()) {
            return Err(Fault::tampering(format!(
                "the tape of session {session}, which was opened, is gone"
            )));
        }
    }
    Ok(())
}

async fn written(found: &[Value], format: LogFormat, out: &mut Output) -> Result<(), Fault> {
    match format {
        LogFormat::Json => {
            out.line(serde_json::to_string_pretty(found).map_err(|e| Fault::error(e.to_string()))?).await
        }
        LogFormat::Ndjson => {
            for event in found {
                out.line(event.to_string()).await?;
            }
            Ok(())
        }
        LogFormat::Ocsf => {
            for event in found {
                out.line(super::ocsf::ocsf(event).to_string()).await?;
            }
            Ok(())
        }
        LogFormat::Csv => {
            out.line(format!("{},details", COLUMNS.join(","))).await?;
            for event in found {
                out.line(csv(event)).await?;
            }
            Ok(())
        }
    }
}

/// One event as a line of CSV: the columns, and whatever else it has as JSON.
fn csv(event: &Value) -> String {
    let mut rest = event.as_object().cloned().unwrap_or_default();
    let mut cells: Vec<String> = Vec::new();
    for column in COLUMNS {
        cells.push(match rest.remove(column) {
            Some(Value::String(text)) => cell(&text),
            Some(Value::Null) | None => cell(""),
            Some(other) => cell(&other.to_string()),
        });
    }
    let details = if rest.is_empty() { String::new() } else { Value::Object(rest).to_string() };
    cells.push(cell(&details));
    cells.join(",")
}

/// A quoted cell (RFC 4180). One that a spreadsheet would calculate gets an apostrophe before it (OWASP, "CSV Injection").
fn cell(text: &str) -> String {
    let text = super::render::plain(text).replace('"', "\"\"");
    let formula = text.trim_start().starts_with(['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠']);
    format!("\"{}{text}\"", if formula { "'" } else { "" })
}

const COLUMNS: [&str; 11] =
    ["time", "seq", "event", "user", "source_ip", "key", "session", "instance", "login", "reason", "hash"];

async fn query(house: &House, filter: Filter, out: &mut Output) -> Result<Vec<Value>, Fault> {
    let (trail, progress) = (std::sync::Arc::clone(&house.trail), Progress::default());
    progress.expect(trail.length());
    let counts = progress.clone();
    let found =
        tokio::task::spawn_blocking(move || trail.query_counting(&filter, &|bytes| counts.did(bytes)));
    let found = out.meanwhile("reading the trail", &progress, found).await;
    found.map_err(|e| Fault::error(e.to_string()))?.map_err(|e| Fault::tampering(e.to_string()))
}

async fn tail(house: &House, (lines, follow): (usize, bool), out: &mut Output) -> Result<(), Fault> {
    let mut trail = house.trail.follow();
    let mut last = std::collections::VecDeque::new();
    let mut most = lines;
    loop {
        let more = tokio::task::spawn_blocking(move || {
            let read = trail.more(|event| {
                last.push_back(event);
                if last.len() > most {
                    last.pop_front();
                }
            });
            read.map(|()| (trail, last))
        });
        let more = more.await.map_err(|e| Fault::error(e.to_string()))?;
        (trail, last) = more.map_err(|e| Fault::tampering(e.to_string()))?;
        for event in last.drain(..) {
            out.line(event.to_string()).await?;
        }
        if !follow {
            return Ok(());
        }
        // From here on nothing is left out.
        most = usize::MAX;
        let head = house.trail.head().seq;
        while house.trail.head().seq == head {
            tokio::select! {
                () = out.gone() => return Ok(()),
                () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_a_spreadsheet_would_calculate_is_text() {
        assert_eq!(cell("=1+1"), "\"'=1+1\"");
        assert_eq!(cell("@SUM(A1)"), "\"'@SUM(A1)\"");
        assert_eq!(cell("say \"hi\", bob"), "\"say \"\"hi\"\", bob\"");
        assert_eq!(cell("plain"), "\"plain\"");
    }

    #[test]
    fn a_session_that_comes_and_goes_meanwhile_is_no_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::recording::TapeKeys::create(&dir.path().join("identity")).unwrap();
        let tapes = Tapes::inspect(dir.path(), keys);
        let chain = audit::Verified {
            entries: 0,
            head: None,
            torn_tail: false,
            checkpoints: 0,
            tapes: Vec::new(),
            store: Default::default(),
            unclosed: Vec::new(),
            deleted: std::collections::BTreeMap::new(),
            forged: Vec::new(),
            unsigned: 0,
        };
        let (now, id) = (Timestamp::now(), SessionId::new(Timestamp::now()));
        let told = |ended_at: Option<Timestamp>| {
            let told = json!({
                "id": id.to_string(), "user": "alice", "login": "ubuntu", "instance": "db-1", "started_at": now,
                "source_ip": "192.0.2.7", "key": "SHA256:x", "ended_at": ended_at, "status": "closed",
                "reason": null, "bytes_in": 0, "bytes_out": 0, "channels": [], "digest": null,
            });
            std::fs::write(tapes.summary_file(id), told.to_string()).unwrap();
        };
        // It begins while the chain is read, or just before.
        let before = ended(&tapes).unwrap();
        std::fs::write(tapes.tape_file(id), "begins").unwrap();
        let begins = ended(&tapes).unwrap();
        assert!(strangers(&tapes, &begins, &chain).is_err());
        told(None);
        let runs = ended(&tapes).unwrap();
        told(Some(now));
        for listed in [before, begins, runs] {
            strangers(&tapes, &listed, &chain).unwrap();
        }
        // One that had ended before is a stranger.
        let after = ended(&tapes).unwrap();
        assert_eq!(strangers(&tapes, &after, &chain).unwrap_err().code, 10);
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let event = json!({ "time": "t", "event": "file_read", "path": "a\nb", "seq": 7 });
        let line = csv(&event);
        assert!(!line.contains('\n') && line.starts_with("\"t\",\"7\",\"file_read\""), "{line}");
    }
}
