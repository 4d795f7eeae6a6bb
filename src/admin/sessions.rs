//! `sessions …`: reading what was recorded. Every look at a tape is itself an event, written before the first byte.

use jiff::Timestamp;

use super::render::{short_time, table};
use super::{Caller, Fault, Format, Output, Sessions};
use crate::audit::Event;
use crate::recording::{Cast, Record, SessionId, SessionStatus, Summary, TapeError, asciicast, json};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Sessions,
    out: &mut Output,
) -> Result<(), Fault> {
    match command {
        Sessions::List { live, user, since } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let mut found = summaries(house).await?;
            found.retain(|s| !live || s.status == SessionStatus::Live);
            found.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            found.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            let shown = listed(&found, out.width());
            out.either(&found, shown).await
        }
        Sessions::Show { id } => {
            let summary = summary(house, &id).await?;
            let shown = described(&summary, out.width());
            out.either(&summary, shown).await
        }
        Sessions::Play { id, speed } => {
            if !(speed > 0.0 && speed <= 1000.0) {
                return Err(Fault::usage("--speed takes a number above 0, at most 1000"));
            }
            let (_, records) = tape(house, caller, &id).await?;
            play(&Cast::of(&records), speed, out).await
        }
        Sessions::Export { id, output: _, format } => {
            let (summary, records) = tape(house, caller, &id).await?;
            let text = match format {
                Format::Asciicast => asciicast(&summary, &records),
                Format::Json => json(&summary, &records)
                    .and_then(|value| serde_json::to_string_pretty(&value))
                    .map_err(|e| Fault::error(e.to_string()))?,
            };
            out.line(text).await
        }
        Sessions::Verify { id } => verify(house, &id, out).await,
        Sessions::Kill { id, reason } => {
            // The session's own end writes `session_killed` to the trail.
            if !house.registry.kill(&id, &reason) {
                return Err(Fault::not_found(format!(
                    "no live session {id}; see: keyward sessions list --live"
                )));
            }
            out.note(format!("Ended {id}.")).await
        }
    }
}

/// Runs `read` on the tapes where blocking is allowed.
async fn reading<T: Send + 'static>(
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

async fn summary(house: &House, id: &str) -> Result<Summary, Fault> {
    let id = parsed(id)?;
    reading(house, move |tapes| tapes.summary(id)).await
}

fn parsed(id: &str) -> Result<SessionId, Fault> {
    id.parse().map_err(|_| Fault::not_found(format!("no session {id}; see: keyward sessions list")))
}

/// A whole tape; that it was viewed is in the trail first.
async fn tape(house: &House, caller: &Caller, id: &str) -> Result<(Summary, Vec<Record>), Fault> {
    let id = parsed(id)?;
    let found = reading(house, move |tapes| Ok((tapes.summary(id)?, tapes.records(id)?))).await?;
    let event = Event::RecordingViewed { by: caller.name(), session: id.to_string() };
    // Before the first byte is shown: who looks is known, or nothing is shown.
    house.trail.append(event, Timestamp::now()).await.map_err(|e| Fault::error(e.to_string()))?;
    Ok(found)
}

/// The tape against its own frames and against the digest that the chain names.
async fn verify(house: &House, id: &str, out: &mut Output) -> Result<(), Fault> {
    let session = parsed(id)?;
    if reading(house, move |tapes| tapes.summary(session)).await?.status == SessionStatus::Live {
        return Err(Fault::conflict(format!("session {session} is still live; verify it when it has ended")));
    }
    let dir = house.config.audit_dir();
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

/// Replays at the tape's own pace; pauses are shortened to two seconds.
async fn play(cast: &Cast, speed: f64, out: &mut Output) -> Result<(), Fault> {
    let mut last = 0;
    for (micros, _, text) in cast.events.iter().filter(|(_, code, _)| *code == 'o') {
        let pause = std::time::Duration::from_micros(micros.saturating_sub(last)).min(LONGEST_PAUSE);
        last = *micros;
        tokio::time::sleep(pause.div_f64(speed)).await;
        out.bytes(text.clone().into_bytes()).await?;
    }
    Ok(())
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
    for (name, value) in [("reason", &summary.reason), ("sha256", &summary.digest)] {
        if let Some(value) = value {
            text.push_str(&format!("{name:<8} {value}\n"));
        }
    }
    let rows = summary.channels.iter().map(|c| {
        let exit = match (&c.exit_status, &c.exit_signal) {
            (_, Some(signal)) => format!("SIG{signal}"),
            (Some(status), None) => status.to_string(),
            (None, None) => "-".to_owned(),
        };
        let capture = serde_json::to_value(c.capture).ok().and_then(|v| v.as_str().map(str::to_owned));
        let kept = format!("{} of {} B, {}", c.captured_bytes, c.relayed_bytes, capture.unwrap_or_default());
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
            TapeError::Live(_) => Self::conflict(error.to_string()),
            _ if error.is_tampering() => Self::tampering(error.to_string()),
            _ => Self::error(error.to_string()),
        }
    }
}

const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);
