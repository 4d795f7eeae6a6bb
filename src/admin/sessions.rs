//! `sessions …`: reading what was recorded. Every look at a tape is itself an event, written before the first byte.

use jiff::Timestamp;
use serde_json::json;

use super::kinds::{Kinds, OfKind};
use super::render::{counted, plain, short_time, table};
use super::shelf::Shelf;
use super::whole::{SessionVerified, untold, verify_session};
use super::{
    Caller, Fault, Output, Part, Progress, Sessions, bundle, finds, gaps, replay, retention, search,
};
use crate::recording::{ChannelSummary, Mode, SessionId, SessionStatus, Summary, TapeError};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Sessions,
    out: &mut Output,
) -> Result<(), Fault> {
    let mut command = command;
    if caller.has_role("auditor") || caller.has_role("admin") {
        Shelf::from(house).spell_out(&mut command).await?;
    }
    finds::may_see(house, caller, &command).await?;
    match command {
        Sessions::List { live, user, since, only, part, .. } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            if !live && user.is_none() && since.is_none() && only.is_none() {
                return all(house, part, out).await;
            }
            let mut found = summaries(house).await?;
            found.retain(|s| !live || s.status == SessionStatus::Live);
            found.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            found.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            let found = finds::only(house, found, &only).await?;
            if found.is_empty() {
                finds::strangers(house, (user.as_ref(), only.instance.as_ref()), out).await?;
            }
            if part.count {
                return out.either(&json!({ "count": found.len() }), found.len().to_string()).await;
            }
            tell(house, part.of(&found), out).await
        }
        Sessions::Show { id, .. } => {
            let summary = summary(house, &id).await?;
            let shown = described(&summary, out.width());
            out.either(&summary, shown).await
        }
        Sessions::Gaps { user, since, only, .. } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let (found, unreadable) = gaps::read(house.into(), (user.as_ref(), since), out).await?;
            if found.is_empty() {
                finds::strangers(house, (user.as_ref(), only.instance.as_ref()), out).await?;
            }
            gaps::tell(finds::only(house, found, &only).await?, unreadable, out).await
        }
        Sessions::Play { id, speed, from, copy: _ } => {
            replay::play((house.into(), caller, &id), speed, from.0, out).await
        }
        Sessions::Transcript { id, commands, copy: _ } => {
            replay::transcript((house.into(), caller, &id), commands, out).await
        }
        Sessions::Search { pattern, regex, user, since, only, copy: _ } => {
            let since = since.map(|when| when.ago(Timestamp::now()));
            let sought = search::pattern(&pattern, regex)?;
            let mut among = summaries(house).await?;
            among.retain(|s| user.as_ref().is_none_or(|u| s.header.user == u.as_str()));
            among.retain(|s| since.is_none_or(|t| s.header.started_at >= t));
            let among = finds::only(house, among, &only).await?;
            if among.is_empty() {
                finds::strangers(house, (user.as_ref(), only.instance.as_ref()), out).await?;
            }
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
            out.done(&json!({ "session": id, "ended": true }), format!("Ended {id}.")).await
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
    tell(house, &found, out).await
}

/// The list, with who of them is a service.
async fn tell(house: &House, found: &[Summary], out: &mut Output) -> Result<(), Fault> {
    let kinds = Kinds::of(house).await?;
    let shown = listed(found, &kinds, out.width());
    let values = found.iter().map(|what| OfKind { kind: kinds.word(&what.header.user), what });
    let values: Vec<_> = values.collect();
    out.either(&values, shown).await
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

/// The session that `text` means: an id, or the beginning of one that no other has.
pub(super) fn spelled_out(text: &str, known: impl IntoIterator<Item = SessionId>) -> Result<String, Fault> {
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if text.parse::<SessionId>().is_ok() || text.len() < SHORTEST_BEGINNING || !digits(text) {
        return Ok(text.to_owned());
    }
    let begins = text.to_ascii_lowercase();
    let found: Vec<String> =
        known.into_iter().map(|id| id.to_string()).filter(|id| id.starts_with(&begins)).collect();
    match found.as_slice() {
        // Whoever looks it up says that there is none.
        [] => Ok(text.to_owned()),
        [one] => Ok(one.clone()),
        many => {
            let shown = many.iter().take(MOST_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if many.len() > MOST_TOLD { ", …" } else { "" };
            let count = many.len();
            Err(Fault::usage(format!(
                "{text} begins the ids of {count} sessions: {shown}{more}; type more of it"
            )))
        }
    }
}

/// Characters of an id that may stand for it.
const SHORTEST_BEGINNING: usize = 8;
/// Ids that are named where several begin alike.
const MOST_TOLD: usize = 10;

pub(super) fn parsed(id: &str) -> Result<SessionId, Fault> {
    id.parse().map_err(|_| Fault::not_found(format!("no session {id}; see: keyward sessions list")))
}

/// The tape against its own frames and against the digest that the chain names.
async fn verify(house: &House, id: &str, out: &mut Output) -> Result<(), Fault> {
    let session = parsed(id)?;
    for _ in 0..5 {
        let (dir, tapes) = (house.config().audit_dir(), std::sync::Arc::clone(&house.tapes));
        let (against, progress) = (super::logs::against(house), Progress::default());
        let counts = progress.clone();
        let checked =
            tokio::task::spawn_blocking(move || verify_session((&dir, &tapes), session, &against, &counts));
        let checked = out.meanwhile("verifying", &progress, checked).await;
        if let Some(SessionVerified { value, says }) = checked.map_err(|e| Fault::error(e.to_string()))?? {
            return out.either(&value, says).await;
        }
        // One that has just ended may not be told yet.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    Err(untold(session))
}

pub(super) fn listed(found: &[Summary], kinds: &Kinds, width: Option<u16>) -> String {
    let rows = found.iter().map(|s| {
        let header = &s.header;
        vec![
            header.id.clone(),
            kinds.marked(&header.user),
            format!("{}@{}", header.login, header.instance),
            header.source_ip.clone(),
            short_time(header.started_at),
            lasted(s),
            status(s.status).to_owned(),
            did(s),
        ]
    });
    table(&["SESSION", "USER", "TO", "FROM", "STARTED", "LASTED", "STATUS", "WHAT"], rows, width)
}

/// What was done in a session, as far as a line of a list shows it: `exec uptime; sftp, 3 file operations`.
pub fn did(summary: &Summary) -> String {
    let said = |c: &ChannelSummary| match (&c.command, c.operations) {
        (Some(command), _) => format!("{} {command}", c.kind),
        (None, 0) => c.kind.clone(),
        (None, 1) => format!("{}, 1 file operation", c.kind),
        (None, files) => format!("{}, {files} file operations", c.kind),
    };
    let mut did = summary.channels.iter().map(said).collect::<Vec<_>>().join("; ");
    if let Some((cut, _)) = did.char_indices().nth(LONGEST_DEED) {
        did.truncate(cut);
        did.push('…');
    }
    did
}

/// Characters of what was done in a session, in a list.
const LONGEST_DEED: usize = 120;

/// `1m07s`; a dash while it is live.
pub fn lasted(summary: &Summary) -> String {
    let Some(lasted) = summary.lasted() else { return "-".to_owned() };
    let seconds = lasted / 1000;
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

pub(super) fn described(summary: &Summary, width: Option<u16>) -> String {
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
            let count = usize::try_from(c.operations).unwrap_or(usize::MAX);
            kept.push_str(&format!(", {}", counted(count, "file operation")));
        }
        let reason = c.reason.clone().unwrap_or_default();
        vec![c.channel.to_string(), c.kind.clone(), c.command.clone().unwrap_or_default(), exit, kept, reason]
    });
    if summary.channels.is_empty() {
        return text;
    }
    let shown = table(&["CHANNEL", "KIND", "COMMAND", "EXIT", "CAPTURED", "WHY NOT ALL"], rows, width);
    format!("{text}\n{shown}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_stands_for_it_if_no_other_begins_so() {
        let ids = [
            "019a208b-93a4-7976-b442-bac7974317e7",
            "019a208b-93a4-7976-b442-bac7974317e8",
            "019a208c-93a4-7976-b442-bac7974317e7",
        ];
        let known = || ids.map(|id| id.parse::<SessionId>().unwrap());
        assert_eq!(spelled_out("019A208C", known()).unwrap(), ids[2]);
        assert_eq!(spelled_out(ids[1], known()).unwrap(), ids[1]);
        assert_eq!(spelled_out(&ids[0][..35], known()).unwrap_err().code, 2);
        let told = spelled_out("019a208b", known()).unwrap_err();
        assert!(told.says.contains(ids[0]) && told.says.contains(ids[1]) && !told.says.contains(ids[2]));
        // Too short, or none: as it was typed, and nobody is meant.
        for none in ["019a208", "019a208d", "--------x"] {
            assert_eq!(spelled_out(none, known()).unwrap(), none);
            assert_eq!(parsed(none).unwrap_err().code, 3);
        }
    }
}
