//! `sessions …`: reading what was recorded. Every look at a tape is itself an event, written before the first byte.

use jiff::Timestamp;
use serde_json::json;

use super::render::{plain, short_time, table};
use super::{Caller, Fault, Output, SessionFilter, Sessions, replay};
use crate::recording::{Mode, SessionId, SessionStatus, Summary, TapeError};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Sessions,
    out: &mut Output,
) -> Result<(), Fault> {
    match command {
        Sessions::List { live, user, since, only } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let mut found = summaries(house).await?;
            found.retain(|s| !live || s.status == SessionStatus::Live);
            found.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            found.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            found.retain(|s| wanted(s, &only));
            let shown = listed(&found, out.width());
            out.either(&found, shown).await
        }
        Sessions::Show { id } => {
            let summary = summary(house, &id).await?;
            let shown = described(&summary, out.width());
            out.either(&summary, shown).await
        }
        Sessions::Gaps { since } => gaps(house, since.map(|when| when.ago(Timestamp::now())), out).await,
        Sessions::Play { id, speed, from } => {
            if !(speed > 0.0 && speed <= 1000.0) {
                return Err(Fault::usage("--speed takes a number above 0, at most 1000"));
            }
            replay::play((house, caller, &id), speed, from.0, out).await
        }
        Sessions::Transcript { id } => replay::transcript((house, caller, &id), out).await,
        Sessions::Search { pattern, regex, user, since } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let pattern = replay::pattern(&pattern, regex)?;
            let mut among = summaries(house).await?;
            among.retain(|s| s.status != SessionStatus::Live);
            among.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            among.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            replay::search((house, caller), &among, pattern, out).await
        }
        Sessions::Watch { id } => replay::watch((house, caller, &id), out).await,
        Sessions::Export { id, output: _, format } => replay::export((house, caller, &id), format, out).await,
        Sessions::Verify { id } => verify(house, &id, out).await,
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

fn wanted(session: &Summary, only: &SessionFilter) -> bool {
    let header = &session.header;
    let from =
        |net: &super::Network| header.source_ip.parse().is_ok_and(|ip: std::net::IpAddr| net.0.contains(&ip));
    let said = |text: &String| {
        let text = text.to_lowercase();
        session.channels.iter().filter_map(|c| c.command.as_ref()).any(|c| c.to_lowercase().contains(&text))
    };
    only.login.as_ref().is_none_or(|login| header.login == login.as_str())
        && only.instance.as_ref().is_none_or(|instance| header.instance == instance.as_str())
        && only.key.as_ref().is_none_or(|key| header.key == *key)
        && only.source.as_ref().is_none_or(from)
        && only.command.as_ref().is_none_or(said)
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
    let tapes = std::sync::Arc::clone(&house.tapes);
    let done = tokio::task::spawn_blocking(move || read(&tapes)).await;
    done.map_err(|e| Fault::error(e.to_string()))?.map_err(Fault::from)
}

async fn summaries(house: &House) -> Result<Vec<Summary>, Fault> {
    reading(house, crate::recording::Tapes::list).await
}

pub(super) async fn summary(house: &House, id: &str) -> Result<Summary, Fault> {
    let id = parsed(id)?;
    reading(house, move |tapes| tapes.summary(id)).await
}

pub(super) fn parsed(id: &str) -> Result<SessionId, Fault> {
    id.parse().map_err(|_| Fault::not_found(format!("no session {id}; see: keyward sessions list")))
}

/// The tape against its own frames and against the digest that the chain names.
async fn verify(house: &House, id: &str, out: &mut Output) -> Result<(), Fault> {
    let session = parsed(id)?;
    if reading(house, move |tapes| tapes.summary(session)).await?.status == SessionStatus::Live {
        return Err(Fault::conflict(format!("session {session} is still live; verify it when it has ended")));
    }
    let dir = house.config().audit_dir();
    let chain = tokio::task::spawn_blocking(move || crate::audit::verify(&dir)).await;
    let chain = chain.map_err(|e| Fault::error(e.to_string()))?;
    let chain = chain.map_err(|fault| Fault::tampering(format!("audit trail: {fault}")))?;
    let named = chain.tapes.into_iter().rev().find(|closed| closed.session == session.to_string());
    let Some(named) = named else {
        return Err(Fault::tampering(format!("the audit trail names no tape of session {session}")));
    };
    let digest = named.digest.clone();
    let verified = reading(house, move |tapes| tapes.verify(session, Some(&digest))).await?;
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

fn lasted(summary: &Summary) -> String {
    let Some(end) = summary.ended_at else { return "-".to_owned() };
    let seconds = end.as_second() - summary.header.started_at.as_second();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

fn status(status: SessionStatus) -> &'static str {
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
