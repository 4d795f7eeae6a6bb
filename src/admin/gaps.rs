//! `sessions gaps`: everything that was not recorded, or may not have been, with the reason.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keystore::UserName;
use serde_json::{Value, json};

use super::render::{counted, table};
use super::shelf::Shelf;
use super::{Fault, Output, Progress};
use crate::recording::{SessionStatus, Summary, Unreadable};

/// The sessions that are meant, and those whose summary cannot be read: what is not known is meant by every question.
pub(super) async fn read(
    shelf: Shelf<'_>,
    (user, since): (Option<&UserName>, Option<Timestamp>),
    out: &mut Output,
) -> Result<(Vec<Summary>, Vec<Unreadable>), Fault> {
    let progress = Progress::default();
    let counts = progress.clone();
    let read = shelf.reading(move |tapes| tapes.list_all(&|done, all| counts.is(done, all)));
    let (mut found, unreadable) = out.meanwhile("looking", &progress, read).await?;
    found.retain(|s| user.is_none_or(|user| s.header.user == user.as_str()));
    found.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
    Ok((found, unreadable))
}

/// Tells what is missing in these.
pub(super) async fn tell(
    found: Vec<Summary>,
    unreadable: Vec<Unreadable>,
    out: &mut Output,
) -> Result<(), Fault> {
    let mut gaps: Vec<Value> = found.iter().flat_map(of).collect();
    for (id, error) in unreadable {
        gaps.push(json!({
            "session": id.to_string(), "user": "?", "to": "?", "started_at": null, "channel": null, "kind": "session",
            "bytes": null, "reason": format!("what was recorded is not known: {error}"),
        }));
    }
    if gaps.is_empty() {
        return out
            .either(&gaps, format!("Nothing is missing in {}.", counted(found.len(), "session")))
            .await;
    }
    let cell = |gap: &Value, name: &str| match gap.get(name) {
        Some(Value::String(text)) if name == "started_at" => {
            text.parse().map_or_else(|_| text.clone(), super::render::short_time)
        }
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let columns = ["session", "user", "to", "started_at", "channel", "kind", "bytes", "reason"];
    let rows = gaps.iter().map(|gap| columns.iter().map(|name| cell(gap, name)).collect());
    let header = ["SESSION", "USER", "TO", "STARTED", "CHANNEL", "KIND", "NOT KEPT (BYTES)", "WHY"];
    let shown = format!("{}\n\n{}", table(&header, rows, out.width()), summed(&gaps, out.width()));
    out.either(&gaps, shown).await
}

/// The gaps of one session.
fn of(summary: &Summary) -> Vec<Value> {
    let header = &summary.header;
    let gap = |channel: Option<u32>, kind: &str, bytes: Option<u64>, reason: String| {
        json!({
            "session": header.id, "user": header.user, "to": format!("{}@{}", header.login, header.instance),
            "started_at": header.started_at, "channel": channel, "kind": kind, "bytes": bytes, "reason": reason,
        })
    };
    let channels = summary.channels.iter();
    let mut gaps: Vec<Value> = channels
        .flat_map(|c| c.gaps().into_iter().map(move |missing| (c, missing)))
        .map(|(c, (bytes, reason))| gap(Some(c.channel), &c.kind, Some(bytes), reason))
        .collect();
    if summary.lost {
        gaps.push(gap(None, "session", None, LOST.to_owned()));
    }
    if summary.status == SessionStatus::Truncated
        && summary.reason.as_deref() != Some(Summary::CAME_TO_ITS_END)
    {
        let reason =
            "the daemon was stopped in the middle of it: at most the last 250 ms or 64 KiB are missing";
        gaps.push(gap(None, "session", None, reason.to_owned()));
    }
    gaps
}

const LOST: &str = "its summary was lost, and no identity here opens the tape: what of each channel was kept is on the tape alone";

/// How often each reason stands there, and of how many bytes, the rarest first: the one that matters must not drown in those
/// that every copy has.
pub fn reasons(gaps: &[Value]) -> Vec<(&str, u64, u64)> {
    let mut reasons: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for gap in gaps {
        let reason = gap.get("reason").and_then(Value::as_str).unwrap_or_default();
        let (times, bytes) = reasons.entry(reason).or_default();
        *times += 1;
        *bytes += gap.get("bytes").and_then(Value::as_u64).unwrap_or(0);
    }
    let mut reasons: Vec<_> = reasons.into_iter().map(|(why, (times, bytes))| (why, times, bytes)).collect();
    reasons.sort_by_key(|(_, times, _)| *times);
    reasons
}

fn summed(gaps: &[Value], width: Option<u16>) -> String {
    let row =
        |(why, times, bytes): (&str, u64, u64)| vec![times.to_string(), bytes.to_string(), why.to_owned()];
    table(&["GAPS", "BYTES", "WHY"], reasons(gaps).into_iter().map(row), width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_reason_comes_first() {
        let gap = |reason: &str, bytes: Option<u64>| json!({ "reason": reason, "bytes": bytes });
        let gaps = [gap("hashed", Some(5)), gap("failed", None), gap("hashed", Some(7))];
        assert_eq!(reasons(&gaps), [("failed", 1, 0), ("hashed", 2, 12)]);
    }
}
