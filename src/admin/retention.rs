//! Retention and holds. A tape is deleted only after the trail says so under a signature, and never while it is live or on
//! hold; `logs verify` then counts it as deleted, and one that is missing without all that as lost.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::render::plain;
use super::sessions::{parsed, reading};
use super::{Caller, Fault, Output};
use crate::audit::{Event, Trail};
use crate::recording::{Keep, SessionId, Summary, Tapes};
use crate::session::House;

/// Deletes the tapes whose time is over. Returns how many.
///
/// # Errors
/// [`Fault`]: what is not in the trail, and signed, is not deleted.
pub async fn retire(house: &House, now: Timestamp) -> Result<usize, Fault> {
    let terms = &house.config().recording;
    let keep = Keep { terminal: terms.keep, other: terms.keep_other.or(terms.keep) };
    retire_from(&house.tapes, &house.trail, keep, now).await
}

async fn retire_from(
    tapes: &Arc<Tapes>,
    trail: &Arc<Trail>,
    keep: Keep,
    now: Timestamp,
) -> Result<usize, Fault> {
    if keep == Keep::default() {
        return Ok(0);
    }
    // Nobody puts a tape on hold between the look and the deletion.
    let _turn = TURN.lock().await;
    let (shelf, told) = (Arc::clone(tapes), Arc::clone(trail));
    let due = tokio::task::spawn_blocking(move || due(&shelf, &told, keep, now)).await;
    let due = due.map_err(|e| Fault::error(e.to_string()))??;
    if due.is_empty() {
        return Ok(0);
    }
    let unwritten = |e: crate::audit::AuditError| Fault::error(e.to_string());
    for (_, summary, seconds) in &due {
        let event = Event::RecordingDeleted {
            user: summary.header.user.clone(),
            session: summary.header.id.clone(),
            digest: summary.digest.clone().unwrap_or_default(),
            reason: format!("retention: kept for {}", lasted(*seconds)),
        };
        trail.append(event, now).await.map_err(unwritten)?;
    }
    trail.checkpoint(now).await.map_err(unwritten)?;
    let (shelf, count) = (Arc::clone(tapes), due.len());
    let deleted =
        tokio::task::spawn_blocking(move || due.iter().try_for_each(|(id, ..)| shelf.delete(*id))).await;
    deleted.map_err(|e| Fault::error(e.to_string()))??;
    Ok(count)
}

type Due = Vec<(SessionId, Summary, i64)>;

fn due(tapes: &Tapes, trail: &Trail, keep: Keep, now: Timestamp) -> Result<Due, Fault> {
    let mut due = Vec::new();
    for summary in tapes.list()? {
        if let (Some(seconds), Ok(id)) = (keep.over(&summary, now), summary.header.id.parse()) {
            due.push((id, summary, seconds));
        }
    }
    if !due.is_empty() {
        let holds = trail.holds().map_err(|e| Fault::tampering(e.to_string()))?;
        due.retain(|(_, summary, _)| !holds.contains_key(&summary.header.id));
    }
    Ok(due)
}

/// `sessions hold`: the tape is kept past its time.
pub(super) async fn hold(
    (house, caller): (&House, &Caller),
    id: &str,
    reason: &str,
    out: &mut Output,
) -> Result<(), Fault> {
    let _turn = TURN.lock().await;
    let id = exists(house, id).await?;
    if let Some(hold) = holds(house).await?.get(&id) {
        let says = format!("session {id} is on hold already: {} ({})", plain(&hold.reason), plain(&hold.by));
        return Err(Fault::conflict(says));
    }
    let event = Event::RecordingHeld { by: caller.name(), session: id.clone(), reason: reason.to_owned() };
    noted(house, event).await?;
    out.note(format!("The tape of {id} is kept until: keyward sessions release {id} --reason TEXT")).await
}

/// `sessions release`: the tape is kept as long as the others.
pub(super) async fn release(
    (house, caller): (&House, &Caller),
    id: &str,
    reason: &str,
    out: &mut Output,
) -> Result<(), Fault> {
    let _turn = TURN.lock().await;
    let id = exists(house, id).await?;
    if !holds(house).await?.contains_key(&id) {
        return Err(Fault::not_found(format!("session {id} is not on hold; see: keyward sessions holds")));
    }
    let event =
        Event::RecordingReleased { by: caller.name(), session: id.clone(), reason: reason.to_owned() };
    noted(house, event).await?;
    out.note(format!("The tape of {id} is kept as long as the others.")).await
}

/// `sessions holds`.
pub(super) async fn list(house: &House, out: &mut Output) -> Result<(), Fault> {
    let holds = holds(house).await?;
    let value: Vec<_> = holds
        .iter()
        .map(|(id, hold)| json!({ "session": id, "by": hold.by, "reason": hold.reason }))
        .collect();
    let rows = holds.into_iter().map(|(id, hold)| vec![id, hold.by, hold.reason]);
    let shown = super::render::table(&["SESSION", "BY", "WHY"], rows, out.width());
    out.either(&value, shown).await
}

async fn exists(house: &House, id: &str) -> Result<String, Fault> {
    Ok(super::sessions::summary(house, &parsed(id)?.to_string()).await?.header.id)
}

async fn holds(house: &House) -> Result<std::collections::BTreeMap<String, crate::audit::Hold>, Fault> {
    let trail = Arc::clone(&house.trail);
    reading(house, move |_| Ok(trail.holds())).await?.map_err(|e| Fault::tampering(e.to_string()))
}

async fn noted(house: &House, event: Event) -> Result<(), Fault> {
    house.trail.append(event, Timestamp::now()).await.map(drop).map_err(|e| Fault::error(e.to_string()))
}

fn lasted(seconds: i64) -> String {
    match seconds {
        s if s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s => format!("{s}s"),
    }
}

static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
