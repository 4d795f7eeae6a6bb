//! `sessions …`: reading what was recorded. Every look at a tape is itself an event, written before the first byte.

use jiff::Timestamp;
use serde_json::json;

use super::render::{plain, short_time, table};
use super::shelf::Shelf;
use super::{Caller, Fault, Output, Part, Sessions, bundle, finds, replay, retention, search};
use crate::audit::ClosedTape;
use crate::recording::{Mode, SessionId, SessionStatus, Summary, TapeError};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Sessions,
    out: &mut Output,
) -> Result<(), Fault> {
    finds::may_see(house, caller, &command).await?;
    match command {
        Sessions::List { live, user, since, only, part } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            if !live && user.is_none() && since.is_none() && only.is_none() {
                return all(house, part, out).await;
            }
            let mut found = summaries(house).await?;
            found.retain(|s| !live || s.status == SessionStatus::Live);
            found.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            found.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            let found = finds::only(house, found, &only).await?;
            if part.count {
                return out.either(&json!({ "count": found.len() }), found.len().to_string()).await;
            }
            let found = part.of(&found);
            let shown = listed(found, out.width());
            out.either(&found, shown).await
        }
        Sessions::Show { id } => {
            let summary = summary(house, &id).await?;
            let shown = described(&summary, out.width());
            out.either(&summary, shown).await
        }
        Sessions::Gaps { since } => gaps(house, since.map(|when| when.ago(Timestamp::now())), out).await,
        Sessions::Play { id, speed, from, copy: _ } => {
            if !(speed > 0.0 && speed <= 1000.0) {
                return Err(Fault::usage("--speed takes a number above 0, at most 1000"));
            }
            replay::play((house.into(), caller, &id), speed, from.0, out).await
        }
        Sessions::Transcript { id, copy: _ } => replay::transcript((house.into(), caller, &id), out).await,
        Sessions::Search { pattern, regex, user, since, only, copy: _ } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let sought = search::pattern(&pattern, regex)?;
            let mut among = summaries(house).await?;
            among.retain(|s| s.status != SessionStatus::Live);
            among.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            among.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            let among = finds::only(house, among, &only).await?;
            search::search((house.into(), caller), among, &pattern, sought, out).await
        }
        Sessions::Watch { id } => replay::watch((house, caller, &id), out).await,
        Sessions::Export { id, format, .. } => replay::export((house.into(), caller, &id), format, out).await,
        Sessions::Verify { id: Some(id), .. } => verify(house, &id, out).await,
        Sessions::Verify { id: None, .. } => {
            Err(Fault::usage("--bundle names a file of your own machine: use it there"))
        }
        Sessions::Bundle { ids, output: _ } => bundle::make((house, caller), &ids, out).await,
        Sessions::Hold { id, reason } => retention::hold((house, caller), &id, &reason, out).await,
        Sessions::Release { id, reason } => retention::release((house, caller), &id, &reason, out).await,
        Sessions::Holds => retention::list(house, out).await,
        Sessions::Approve { id, watcher } => replay::approve((house, caller, &id), &watcher, out).await,
        Sessions::Kill { id, reason } => {
            // The session's own end writes `session_killed` to the trail.
            if !house.registry.kill(&id, &caller.name(), &plain(&reason)) {
                return Err(Fault::not_found(format!(
                    "no live session {id}; see: keyward sessions list --live"
                )));
            }
            out.note(format!("Ended {id}.")).await
        }
    }
}

/// All sessions, of which only those that are shown are read: there may be a hundred thousand.
async fn all(house: &House, part: Part, out: &mut Output) -> Result<(), Fault> {
    let ids = reading(house, crate::recording::Tapes::ids_known).await?;
    if part.count {
        return out.either(&json!({ "count": ids.len() }), ids.len().to_string()).await;
    }
    let found = reading(house, move |tapes| Ok(tapes.remembered(part.of(&ids)))).await?;
    let shown = listed(&found, out.width());
    out.either(&found, shown).await
}

/// Everything that was not recorded, or may not have been, with the reason.
async fn gaps(house: &House, since: Option<Timestamp>, out: &mut Output) -> Result<(), Fault> {
    let (found, unreadable) = reading(house, crate::recording::Tapes::list_all).await?;
    let mut gaps = Vec::new();
    let gap = |session: &str, user: &str, to: String, rest: (Option<u32>, &str, Option<u64>, String)| {
        let (channel, kind, bytes, reason) = rest;
        json!({
            "session": session, "user": user, "to": to, "channel": channel, "kind": kind, "bytes": bytes,
            "reason": reason,
        })
    };
    for summary in found.iter().filter(|s| since.is_none_or(|t| s.header.started_at >= t)) {
        let header = &summary.header;
        let to = || format!("{}@{}", header.login, header.instance);
        for channel in &summary.channels {
            for (bytes, reason) in channel.gaps() {
                let rest = (Some(channel.channel), channel.kind.as_str(), Some(bytes), reason);
                gaps.push(gap(&header.id, &header.user, to(), rest));
            }
        }
        if summary.status == SessionStatus::Truncated {
            let reason =
                "the daemon was stopped in the middle of it: at most the last 250 ms or 64 KiB are missing";
            gaps.push(gap(&header.id, &header.user, to(), (None, "session", None, reason.to_owned())));
        }
    }
    for (id, error) in unreadable {
        let rest = (None, "session", None, format!("what was recorded is not known: {error}"));
        gaps.push(gap(&id.to_string(), "?", "?".to_owned(), rest));
    }
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let columns = ["session", "user", "to", "channel", "kind", "bytes", "reason"];
    let rows =
        gaps.iter().map(|gap| columns.iter().map(|c| gap.get(c).map(text).unwrap_or_default()).collect());
    let header = ["SESSION", "USER", "TO", "CHANNEL", "KIND", "NOT KEPT (BYTES)", "WHY"];
    let shown =
        if gaps.is_empty() { "Nothing is missing.".to_owned() } else { table(&header, rows, out.width()) };
    out.either(&gaps, shown).await
}

/// Runs `read` on the tapes where blocking is allowed.
pub(super) async fn reading<T: Send + 'static>(
    house: &House,
    read: impl FnOnce(&crate::recording::Tapes) -> Result<T, TapeError> + Send + 'static,
) -> Result<T, Fault> {
    Shelf::from(house).reading(read).await
}

async fn summaries(house: &House) -> Result<Vec<Summary>, Fault> {
    reading(house, crate::recording::Tapes::list).await
}

pub(super) async fn summary(house: &House, id: &str) -> Result<Summary, Fault> {
    Shelf::from(house).summary(parsed(id)?).await
}

/// What there is to say of a tape whose time was over, if it was.
pub(super) async fn deleted(house: &House, id: SessionId) -> Result<Option<String>, Fault> {
    let trail = std::sync::Arc::clone(&house.trail);
    let told = reading(house, move |_| Ok(trail.deletion(&id.to_string()))).await?;
    let told = told.map_err(|e| Fault::tampering(e.to_string()))?;
    Ok(told.map(|(at, reason)| {
        format!("session {id}: its recording was deleted by retention on {at} ({})", plain(&reason))
    }))
}

pub(super) fn parsed(id: &str) -> Result<SessionId, Fault> {
    id.parse().map_err(|_| Fault::not_found(format!("no session {id}; see: keyward sessions list")))
}

/// The tape against its own frames and against the digest that the chain names.
async fn verify(house: &House, id: &str, out: &mut Output) -> Result<(), Fault> {
    let session = parsed(id)?;
    match reading(house, move |tapes| Ok(tapes.summary(session))).await? {
        Ok(summary) if summary.status == SessionStatus::Live => {
            return Err(Fault::conflict(format!(
                "session {session} is still live; verify it when it has ended"
            )));
        }
        Err(TapeError::Missing(_)) => {
            return match signed_deletion(house, session).await? {
                Some(value) => out.either(&value.0, value.1).await,
                None => Err(TapeError::Missing(session).into()),
            };
        }
        _ => {}
    }
    // Its time was over, and a crash came in the middle of its deletion.
    if !reading(house, move |tapes| Ok(tapes.lies_whole(session))).await?
        && let Ok(Some(value)) = signed_deletion(house, session).await
    {
        return out.either(&value.0, value.1).await;
    }
    let mut named = named(house, session).await?;
    // Of one whose digest changed all are held against it: the chain can be written on by whoever has the disk.
    let Some(newest) = named.last().cloned() else {
        return Err(Fault::tampering(format!("the audit trail names no tape of session {session}")));
    };
    let verified = reading(house, move |tapes| {
        let mut verified = None;
        for closed in named.drain(..) {
            verified = Some(super::logs::is_named(tapes, session, &closed)?);
        }
        verified.ok_or(TapeError::Missing(session))
    });
    let (verified, named) = (verified.await?, newest);
    let how = if verified.opened { "every frame opens" } else { "not opened: no identity here" };
    let value = serde_json::json!({
        "session": session.to_string(), "sha256": verified.digest, "opened": verified.opened, "seq": named.seq,
    });
    let text = format!(
        "{session}: whole and unchanged ({how}; SHA-256 {} as event {} says)",
        verified.digest, named.seq
    );
    out.either(&value, text).await
}

/// The ends of the session that the trail tells of. One that has just ended may not be told yet.
async fn named(house: &House, session: SessionId) -> Result<Vec<ClosedTape>, Fault> {
    for _ in 0..5 {
        let chain = chain(house).await?;
        let mut named = chain.tapes;
        named.retain(|closed| closed.session == session.to_string());
        if !named.is_empty() || !chain.unclosed.contains(&session.to_string()) {
            return Ok(named);
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    Err(Fault::conflict(format!(
        "the audit trail has not heard how session {session} ended; the next start tells it. See: keyward logs verify"
    )))
}

async fn chain(house: &House) -> Result<crate::audit::Verified, Fault> {
    let (dir, against) = (house.config().audit_dir(), super::logs::against(house));
    let chain = tokio::task::spawn_blocking(move || crate::audit::verify_with(&dir, &against)).await;
    let chain = chain.map_err(|e| Fault::error(e.to_string()))?;
    chain.map_err(|fault| Fault::tampering(format!("audit trail: {fault}")))
}

/// The deletion of a tape, as the signed part of the chain tells it, as JSON and in words.
async fn signed_deletion(
    house: &House,
    session: SessionId,
) -> Result<Option<(serde_json::Value, String)>, Fault> {
    let chain = chain(house).await?;
    let gone = chain.deleted.get(&session.to_string());
    if gone.is_none() && chain.tapes.iter().any(|tape| tape.session == session.to_string()) {
        return Err(Fault::tampering(format!(
            "the tape of session {session} is gone, and no signed event deletes it"
        )));
    }
    Ok(gone.map(|gone| {
        let value = json!({
            "session": session.to_string(), "deleted_at": gone.time, "sha256": gone.digest, "seq": gone.seq,
        });
        (
            value,
            format!(
                "{session}: deleted by retention on {} (event {}; SHA-256 {})",
                gone.time, gone.seq, gone.digest
            ),
        )
    }))
}

fn listed(found: &[Summary], width: Option<u16>) -> String {
    let rows = found.iter().map(|s| {
        let header = &s.header;
        let did: Vec<&str> = s.channels.iter().map(|c| c.kind.as_str()).collect();
        vec![
            header.id.clone(),
            header.user.clone(),
            format!("{}@{}", header.login, header.instance),
            header.source_ip.clone(),
            short_time(header.started_at),
            lasted(s),
            status(s.status).to_owned(),
            did.join(","),
        ]
    });
    table(&["SESSION", "USER", "TO", "FROM", "STARTED", "LASTED", "STATUS", "CHANNELS"], rows, width)
}

/// `1m07s`; a dash while it is live.
pub fn lasted(summary: &Summary) -> String {
    let Some(end) = summary.ended_at else { return "-".to_owned() };
    let seconds = end.as_second() - summary.header.started_at.as_second();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// The word for it.
pub fn status(status: SessionStatus) -> &'static str {
    match status {
        SessionStatus::Live => "live",
        SessionStatus::Closed => "closed",
        SessionStatus::Killed => "killed",
        SessionStatus::Truncated => "truncated",
    }
}

fn described(summary: &Summary, width: Option<u16>) -> String {
    let header = &summary.header;
    let mut text = format!(
        "session  {}\nuser     {} with key {}\nfrom     {}\nto       {}@{}\nstarted  {}\nstatus   {}, lasted {}\n",
        header.id,
        header.user,
        header.key,
        header.source_ip,
        header.login,
        header.instance,
        header.started_at,
        status(summary.status),
        lasted(summary),
    );
    if header.recording == Mode::BestEffort {
        text.push_str("terms    best-effort: it goes on if its recording fails, and the ledger says so\n");
    }
    for (name, value) in [("reason", &summary.reason), ("sha256", &summary.digest)] {
        if let Some(value) = value {
            text.push_str(&format!("{name:<8} {}\n", plain(value)));
        }
    }
    let rows = summary.channels.iter().map(|c| {
        let exit = match (&c.exit_status, &c.exit_signal) {
            (_, Some(signal)) => format!("SIG{signal}"),
            (Some(status), None) => status.to_string(),
            (None, None) => "-".to_owned(),
        };
        let capture = serde_json::to_value(c.capture).ok().and_then(|v| v.as_str().map(str::to_owned));
        let mut kept =
            format!("{} of {} B, {}", c.captured_bytes, c.relayed_bytes, capture.unwrap_or_default());
        if c.operations > 0 {
            kept.push_str(&format!(", {} file operations", c.operations));
        }
        let reason = c.reason.clone().unwrap_or_default();
        vec![c.channel.to_string(), c.kind.clone(), c.command.clone().unwrap_or_default(), exit, kept, reason]
    });
    format!(
        "{text}\n{}",
        table(&["CHANNEL", "KIND", "COMMAND", "EXIT", "CAPTURED", "WHY NOT ALL"], rows, width)
    )
}

impl From<TapeError> for Fault {
    fn from(error: TapeError) -> Self {
        match &error {
            TapeError::Missing(id) => Self::not_found(format!("no session {id}; see: keyward sessions list")),
            TapeError::Live(_) | TapeError::Ended(_) => Self::conflict(error.to_string()),
            _ if error.is_tampering() => Self::tampering(error.to_string()),
            _ => Self::error(error.to_string()),
        }
    }
}
