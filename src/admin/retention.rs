//! Retention and holds. A tape is deleted only after the trail says so under a signature, and never while it is live or on
//! hold; `logs verify` then counts it as deleted, and one that is missing without all that as lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::render::plain;
use super::sessions::{parsed, reading};
use super::{Caller, Fault, Output, Progress};
use crate::audit::{Event, Known, Trail};
use crate::recording::{Keep, SessionId, Summary, TapeError, Tapes};
use crate::session::House;

/// Deletes the tapes whose time is over. Returns how many.
///
/// # Errors
/// [`Fault`]: what is not in the trail, and signed, is not deleted.
pub async fn retire(house: &House, now: Timestamp) -> Result<usize, Fault> {
    let terms = &house.config().recording;
    let keep = Keep { terminal: terms.keep, other: terms.keep_other.or(terms.keep) };
    let under_way = UnderWay::begun();
    retire_from((&house.tapes, &house.trail), keep, now, &under_way.0).await
}

/// How far the deletion is that is under way, in tapes, and for how long it has been.
pub(super) fn under_way() -> Option<((u64, u64), Duration)> {
    let now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
    now.as_ref().map(|(progress, since)| (progress.so_far(), since.elapsed()))
}

/// One that [`under_way`] tells of until it is dropped.
struct UnderWay(Progress);

impl UnderWay {
    fn begun() -> Self {
        let progress = Progress::default();
        *NOW.lock().unwrap_or_else(PoisonError::into_inner) = Some((progress.clone(), Instant::now()));
        Self(progress)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *NOW.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// `progress` counts each tape twice: as it is told of, and as it is deleted.
async fn retire_from(
    (tapes, trail): (&Arc<Tapes>, &Arc<Trail>),
    keep: Keep,
    now: Timestamp,
    progress: &Progress,
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
    progress.expect(2 * due.len() as u64);
    let unwritten = |e: crate::audit::AuditError| Fault::error(e.to_string());
    for (_, summary, seconds) in &due {
        let event = Event::RecordingDeleted {
            user: summary.header.user.clone(),
            session: summary.header.id.clone(),
            digest: summary.digest.clone().unwrap_or_default(),
            reason: format!("retention: kept for {}", lasted(*seconds)),
        };
        trail.append(event, now).await.map_err(unwritten)?;
        progress.did(1);
    }
    trail.checkpoint(now).await.map_err(unwritten)?;
    let (shelf, count, counts) = (Arc::clone(tapes), due.len(), progress.clone());
    let delete = move || {
        due.iter().try_for_each(|(id, ..)| {
            shelf.delete(*id)?;
            counts.did(1);
            Ok::<_, TapeError>(())
        })
    };
    let deleted = tokio::task::spawn_blocking(delete).await;
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
        let damaged = |e: crate::audit::AuditError| Fault::tampering(e.to_string());
        let (holds, known) = (trail.holds().map_err(damaged)?, trail.sessions().map_err(damaged)?);
        due.retain_mut(|(id, summary, _)| {
            !holds.contains_key(&summary.header.id)
                && vouched(tapes, *id, &known, keep, now).is_some_and(|own| {
                    *summary = own;
                    true
                })
        });
    }
    Ok(due)
}

/// The summary that the trail names, if by it too the tape's time is over. A summary is a file beside the tape: whoever
/// writes on the disk could let Keyward itself take a tape away, by when it says that the session ended.
fn vouched(tapes: &Tapes, id: SessionId, known: &Known, keep: Keep, now: Timestamp) -> Option<Summary> {
    let refused = |why: String| tracing::error!(session.id = %id, %why, "recording.not_deleted: run keyward logs verify");
    match tapes.summary_as_it_lies(id) {
        Ok((own, digest)) if known.is_closed_with(&id.to_string(), Some(&digest)) => {
            keep.over(&own, now).is_some().then_some(own)
        }
        Ok(_) => {
            refused("the audit trail names another summary".to_owned());
            None
        }
        Err(error) => {
            refused(error.to_string());
            None
        }
    }
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
    let session = parsed(&id)?;
    if !reading(house, move |tapes| Ok(tapes.lies_whole(session))).await? {
        return Err(Fault::conflict(format!(
            "session {id}: its recording is gone, or about to be; see: keyward logs verify"
        )));
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

static NOW: Mutex<Option<(Progress, Instant)>> = Mutex::new(None);
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(test)]
mod tests {
    use keystore::Vault;
    use keystore::backend::Memory;
    use keystore::seal::MasterKey;
    use keystore::signing::Signers;
    use sha2::Digest as _;

    use super::*;
    use crate::recording::TapeKeys;

    #[tokio::test]
    async fn a_summary_that_the_trail_does_not_name_lets_no_tape_be_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
        let signers = Signers::create(&vault).await.unwrap();
        let trail = Arc::new(Trail::open(&dir.path().join("audit"), signers.audit).unwrap());
        let tapes = dir.path().join("tapes");
        std::fs::create_dir(&tapes).unwrap();
        let tapes = Arc::new(Tapes::inspect(&tapes, TapeKeys::generate()));
        let (now, id) = (Timestamp::now(), SessionId::new(Timestamp::now()));
        let told = |ended: i64| {
            let told = json!({
                "id": id.to_string(), "user": "alice", "login": "ubuntu", "instance": "db-1", "source_ip": "192.0.2.7",
                "key": "SHA256:x", "started_at": Timestamp::UNIX_EPOCH, "status": "closed", "reason": null, "bytes_in": 0,
                "ended_at": Timestamp::from_second(ended).unwrap(), "bytes_out": 0, "channels": [], "digest": "d",
            });
            std::fs::write(tapes.summary_file(id), told.to_string()).unwrap();
            std::fs::write(tapes.tape_file(id), "the tape").unwrap();
            data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(told.to_string()))
        };
        let own = told(now.as_second() - 100);
        let closed = json!({
            "event": "session_closed", "session": id.to_string(), "user": "alice", "source_ip": "192.0.2.7", "key": "SHA256:x",
            "instance": "db-1", "login": "ubuntu", "status": "closed", "reason": null, "digest": "d", "summary": own,
        });
        trail.append(serde_json::from_value(closed).unwrap(), now).await.unwrap();
        let retire = |seconds| {
            let keep = Keep { terminal: Some(seconds), other: Some(seconds) };
            let (tapes, trail) = (Arc::clone(&tapes), Arc::clone(&trail));
            async move {
                let progress = Progress::default();
                let count = retire_from((&tapes, &trail), keep, now, &progress).await.unwrap();
                assert_eq!(progress.so_far(), (2 * count as u64, 2 * count as u64));
                count
            }
        };
        assert_eq!(retire(1000).await, 0);
        // Somebody writes that it ended long ago; the list may have been read before or after.
        told(1);
        assert_eq!(retire(1000).await, 0);
        assert!(tapes.tape_file(id).exists());
        told(now.as_second() - 100);
        assert_eq!(retire(50).await, 1);
        assert!(!tapes.tape_file(id).exists());
    }
}
