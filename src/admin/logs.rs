//! `logs …`: the audit trail, exported, followed and verified.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Caller, Fault, Logs, Output};
use crate::audit::{self, Event, Filter};
use crate::recording::{TapeError, Tapes};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Logs,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Logs::Export { start, end, output: _ } => {
            let filter = Filter { since: Some(start.ago(now)), until: end.map(|e| e.ago(now)), event: None };
            let found = query(house, filter.clone()).await?;
            let event = Event::LogsExported {
                by: caller.name(),
                from: filter.since.map(|t| t.to_string()),
                to: filter.until.map(|t| t.to_string()),
                count: found.len() as u64,
            };
            house.trail.append(event, now).await.map_err(|e| Fault::error(e.to_string()))?;
            out.line(serde_json::to_string_pretty(&found).map_err(|e| Fault::error(e.to_string()))?).await
        }
        Logs::Tail { lines, follow } => tail(house, (lines, follow), out).await,
        Logs::Verify { state: _ } => {
            let (dir, tapes) = (house.config.audit_dir(), std::sync::Arc::clone(&house.tapes));
            let checked = tokio::task::spawn_blocking(move || verify(&dir, &tapes)).await;
            let verified = checked.map_err(|e| Fault::error(e.to_string()))??;
            out.either(&verified.as_json(), verified.to_string()).await
        }
    }
}

/// What a verification of the whole state found.
pub struct StateVerified {
    events: u64,
    checkpoints: u64,
    tapes: usize,
    opened: usize,
    unclosed: Vec<String>,
}

impl StateVerified {
    /// As `logs verify --json` prints it.
    pub fn as_json(&self) -> Value {
        json!({
            "events": self.events, "checkpoints": self.checkpoints, "tapes": self.tapes,
            "tapes_opened": self.opened, "unclosed_sessions": self.unclosed,
        })
    }
}

impl std::fmt::Display for StateVerified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, checkpoints, tapes, opened, unclosed } = self;
        write!(
            f,
            "{events} events, {checkpoints} checkpoints, {tapes} tapes ({opened} opened): whole and unchanged"
        )?;
        if !unclosed.is_empty() {
            write!(f, "\nnot closed (live, or cut off since the last start): {}", unclosed.join(", "))?;
        }
        Ok(())
    }
}

/// Checks the chain, its checkpoints, and every tape that the chain names. Blocks; reads files only.
///
/// # Errors
/// Exit code 10 and the first thing that is wrong.
pub fn verify(audit_dir: &Path, tapes: &Tapes) -> Result<StateVerified, Fault> {
    let chain =
        audit::verify(audit_dir).map_err(|fault| Fault::tampering(format!("audit trail: {fault}")))?;
    let mut opened = 0;
    for closed in &chain.tapes {
        let named = |what: String| {
            Fault::tampering(format!(
                "the tape of session {}, which event {} names: {what}",
                closed.session, closed.seq
            ))
        };
        let id = closed.session.parse().map_err(|_| named("not a session id".to_owned()))?;
        match tapes.verify(id, Some(&closed.digest)) {
            Ok(verified) => opened += usize::from(verified.opened),
            Err(TapeError::Missing(_)) => return Err(named("it is gone".to_owned())),
            Err(error) if error.is_tampering() => return Err(named(error.to_string())),
            Err(error) => return Err(Fault::error(error.to_string())),
        }
    }
    Ok(StateVerified {
        events: chain.entries,
        checkpoints: chain.checkpoints,
        tapes: chain.tapes.len(),
        opened,
        unclosed: chain.unclosed,
    })
}

async fn query(house: &House, filter: Filter) -> Result<Vec<Value>, Fault> {
    let trail = std::sync::Arc::clone(&house.trail);
    let found = tokio::task::spawn_blocking(move || trail.query(&filter)).await;
    found.map_err(|e| Fault::error(e.to_string()))?.map_err(|e| Fault::tampering(e.to_string()))
}

async fn tail(house: &House, (lines, follow): (usize, bool), out: &mut Output) -> Result<(), Fault> {
    let mut found = query(house, Filter::default()).await?;
    let mut skip = found.len().saturating_sub(lines);
    loop {
        for event in found.iter().skip(skip) {
            out.line(event.to_string()).await?;
        }
        if !follow {
            return Ok(());
        }
        skip = found.len();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        found = query(house, Filter::default()).await?;
    }
}
