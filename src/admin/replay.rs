//! Reading tapes: played, watched, searched, as text, exported. That somebody looks is in the trail before the first
//! byte is shown. Tapes are read a frame at a time where blocking is allowed, and never faster than the reader takes it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::keys_typed::{Key, keys};
use super::player::{self, LONGEST_PAUSE, Wanted};
use super::render::plain;
use super::sessions::parsed;
use super::shelf::Shelf;
use super::steps::Steps;
use super::{Caller, Fault, Format, Keyboard, Output, Speed};
use crate::audit::{Event, harmless};
use crate::recording::{
    Cast, CastEvent, Drawing, Frames, Line, Lines, Marker, Markers, Playback, Record, SessionId, Source,
    Summary, TapeError, What, cast_header, cast_line, json_record, picture,
};
use crate::session::House;

/// Whose tape is asked for, and by whom.
pub(super) type Asked<'a> = (Shelf<'a>, &'a Caller, &'a str);

/// Replays at the tape's own pace; pauses are shortened to two seconds. With a keyboard it listens to it.
pub(super) async fn play(asked: Asked<'_>, speed: Speed, from: u64, out: &mut Output) -> Result<(), Fault> {
    let (shelf, caller, id) = asked;
    let id = parsed(id)?;
    let summary = shelf.summary(id).await?;
    let length = length(&summary);
    if summary.ended_at.is_none() {
        out.note(format!("{id} is live; to see it as it goes on: keyward sessions watch {id}")).await?;
    }
    if from > length {
        return Err(Fault::usage(format!(
            "session {id} lasted {}: there is nothing after that",
            place(length)
        )));
    }
    let playback = shelf.reading_of(id, move |tapes| Playback::from(tapes, id, from)).await?;
    viewed(shelf, caller, id).await?;
    if let Some(keyboard) = out.take_keyboard() {
        return player::play(shelf, Wanted { id, speed, from, length }, keyboard, out).await;
    }
    let (mut events, mut last, mut drawing) = (events(playback), from, Drawing::default());
    let mut shown = false;
    while let Some(events) = events.next().await? {
        for (millis, _, text) in events.into_iter().filter(|(_, code, _)| *code == 'o') {
            shown = true;
            let pause = Duration::from_millis(millis.saturating_sub(last)).min(LONGEST_PAUSE);
            last = millis;
            tokio::time::sleep(speed.paced(pause)).await;
            out.bytes(drawing.of_text(&text).into_bytes()).await?;
        }
    }
    tidied(&drawing, out).await?;
    if !shown {
        out.note(format!("{id} has no output to play; what was done: keyward sessions show {id}")).await?;
    }
    Ok(())
}

/// Gives the terminal back as it was, if it is one.
async fn tidied(drawing: &Drawing, out: &mut Output) -> Result<(), Fault> {
    if out.width().is_some() { out.bytes(drawing.tidy().into_bytes()).await } else { Ok(()) }
}

/// Milliseconds that a session lasted.
fn length(summary: &Summary) -> u64 {
    summary.lasted().unwrap_or(0)
}

/// What a playback shows, some events at a time.
pub(super) fn events(mut playback: Playback) -> Steps<Vec<CastEvent>> {
    Steps::of(move || {
        let (mut events, mut size) = (Vec::new(), 0);
        while events.len() < 64 && size < PIECE {
            let Some(event) = playback.next_event()? else { break };
            size += event.2.len();
            events.push(event);
        }
        Ok((!events.is_empty()).then_some(events))
    })
}

/// What a person saw, line by line.
///
/// With `commands` only what was typed or done, as far as [`Markers`] find it.
pub(super) async fn transcript(asked: Asked<'_>, commands: bool, out: &mut Output) -> Result<(), Fault> {
    let (shelf, caller, id) = asked;
    let id = parsed(id)?;
    let summary = shelf.summary(id).await?;
    let (started, length) = (summary.header.started_at, length(&summary));
    let frames = shelf.reading_of(id, move |tapes| tapes.frames(id, 0)).await?;
    let mut steps = if commands {
        deeds(frames)
    } else {
        let mut lines = Lines::of(frames);
        Steps::of(move || lines.more())
    };
    viewed(shelf, caller, id).await?;
    let mut first = true;
    while let Some(lines) = steps.next().await? {
        out.sent("reading", (lines.last().map_or(0, |line| line.millis), length));
        for line in lines {
            if out.json() {
                let shown = json!({
                    "seconds": Duration::from_millis(line.millis).as_secs_f64(), "channel": line.channel,
                    "time": moment(started, line.millis).map(|at| format!("{at:.3}")),
                    "source": source(line.source), "text": line.text,
                });
                out.line(format!("{}{shown}", if first { "[\n" } else { "," })).await?;
            } else {
                let at = moment(started, line.millis).map(clock).unwrap_or_default();
                out.line(format!("{}  {at}  {}", place(line.millis), shown(&line))).await?;
            }
            first = false;
        }
    }
    if out.json() {
        out.line(if first { "[]" } else { "]" }).await?;
    }
    Ok(())
}

/// What was typed or done, frame by frame.
fn deeds(mut frames: Frames) -> Steps<Vec<Line>> {
    let mut markers = Markers::default();
    Steps::of(move || {
        let mut found = Vec::new();
        while found.is_empty() {
            let Some(records) = frames.next_frame()? else { return Ok(None) };
            records.iter().for_each(|record| markers.feed(record, &mut found));
        }
        let source = |kind| if kind == "file" { Source::Operation } else { Source::Command };
        let line =
            |Marker { millis, channel, kind, text }| Line { millis, channel, source: source(kind), text };
        Ok(Some(found.into_iter().map(line).collect()))
    })
}

/// A second auditor lets `watcher` watch, for as long as is configured.
pub(super) async fn approve(
    asked: (&House, &Caller, &str),
    watcher: &str,
    out: &mut Output,
) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let shelf = Shelf::from(house);
    let id = parsed(id)?;
    let Some(seconds) = house.config().recording.watch_approval else {
        return Err(Fault::usage("watching takes no approval here; see recording.watch_approval"));
    };
    if caller.name() == watcher {
        return Err(Fault::denied("nobody approves for themselves: it takes a second auditor"));
    }
    if shelf.summary(id).await?.ended_at.is_some() {
        return Err(TapeError::Ended(id).into());
    }
    let now = Timestamp::now();
    let until = Timestamp::from_second(now.as_second() + seconds).map_err(|e| Fault::error(e.to_string()))?;
    let event = Event::WatchApproved {
        by: caller.name(),
        user: watcher.to_owned(),
        session: id.to_string(),
        until: format!("{until:.0}"),
    };
    house.trail.append(event, now).await.map_err(|e| Fault::error(e.to_string()))?;
    house.approvals.grant(id, watcher, until);
    out.note(format!("{} may watch {id} until {until:.0}.", plain(watcher))).await
}

/// The live session, as it stands and as it goes on.
pub(super) async fn watch(asked: (&House, &Caller, &str), out: &mut Output) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let shelf = Shelf::from(house);
    let id = parsed(id)?;
    if shelf.summary(id).await?.ended_at.is_some() {
        return Err(TapeError::Ended(id).into());
    }
    let approved = || house.approvals.allow(id, &caller.name(), Timestamp::now());
    if house.config().recording.watch_approval.is_some() && !approved() {
        let (id, name) = (id.to_string(), caller.name());
        return Err(Fault::denied(format!(
            "watching takes a second auditor here; ask one to run: keyward sessions approve {id} --for {name}"
        )));
    }
    viewed(shelf, caller, id).await?;
    if out.json() {
        return super::live::follow(house, id, out).await;
    }
    let (frames, before, mut live) = house.tapes.watch(id).await?;
    let stood = tokio::task::spawn_blocking(move || picture(frames, before)).await;
    let (mut cast, dump) = stood.map_err(|e| Fault::error(e.to_string()))??;
    let mut drawing = Drawing::default();
    out.bytes(drawing.of_text(&dump).into_bytes()).await?;
    let mut keyboard = out.take_keyboard();
    let ended = loop {
        let record = tokio::select! {
            () = out.gone() => return Ok(()),
            () = quits(&mut keyboard) => break false,
            record = live.recv() => record,
        };
        match record {
            Ok(record) if matches!(record.what, What::End(..)) => break true,
            Ok(record) => {
                if cast.channel().is_none()
                    && let Some(terminal) = Cast::begins(&record)
                {
                    cast = terminal;
                }
                if let Some((_, 'o', text)) = cast.event(&record) {
                    out.bytes(drawing.of_text(&text).into_bytes()).await?;
                }
            }
            Err(RecvError::Lagged(missed)) => {
                out.note(format!("\r\nkeyward: {missed} pieces were left out: you read too slowly\r"))
                    .await?;
            }
            Err(RecvError::Closed) => break true,
        }
    };
    tidied(&drawing, out).await?;
    let says =
        if ended { format!("session {id} has ended") } else { format!("session {id} goes on, unwatched") };
    out.note(format!("\r\nkeyward: {says}\r")).await
}

/// Resolves when `q` is typed; never without a keyboard. Cancel-safe.
async fn quits(keyboard: &mut Option<Keyboard>) {
    let Some(keyboard) = keyboard else { return std::future::pending().await };
    loop {
        match keyboard.keys.recv().await {
            Some(typed) if !keys(&typed).iter().any(|key| matches!(key, Key::Char('q') | Key::End)) => {}
            _ => return,
        }
    }
}

/// The tape in another format.
pub(super) async fn export(asked: Asked<'_>, format: Format, out: &mut Output) -> Result<(), Fault> {
    let (shelf, caller, id) = asked;
    let id = parsed(id)?;
    let summary = shelf.summary(id).await?;
    let mut pieces = match format {
        Format::Asciicast => {
            let playback = shelf.reading_of(id, move |tapes| Playback::from(tapes, id, 0)).await?;
            as_cast(&summary, playback)
        }
        Format::Json => {
            let frames = shelf.reading_of(id, move |tapes| tapes.frames(id, 0)).await?;
            as_json(&summary, frames)?
        }
    };
    viewed(shelf, caller, id).await?;
    let length = length(&summary);
    while let Some((at, piece)) = pieces.next().await? {
        out.bytes(piece.into_bytes()).await?;
        out.sent("exporting", (at, length));
    }
    Ok(())
}

/// A piece of what is exported, and up to which millisecond of the session it goes.
type Piece = (u64, String);

fn as_cast(summary: &Summary, mut playback: Playback) -> Steps<Piece> {
    // A terminal's name is the user's word, and the header ends on terminals too.
    let mut header = Some(harmless(cast_header(summary, playback.cast())));
    let mut at = 0;
    Steps::of(move || {
        let mut piece = header.take().unwrap_or_default();
        while piece.len() < PIECE {
            let Some(event) = playback.next_event()? else { break };
            at = event.0;
            piece.push_str(&cast_line(&super::live::readable(event)));
        }
        Ok((!piece.is_empty()).then_some((at, piece)))
    })
}

fn as_json(summary: &Summary, mut frames: Frames) -> Result<Steps<Piece>, Fault> {
    let encoded = |error: serde_json::Error| TapeError::Failed(error.to_string());
    let session = serde_json::to_string(summary).map_err(encoded)?;
    let mut piece = format!("{{\"session\":{session},\"records\":[");
    let (mut first, mut done, mut at) = (true, false, 0);
    Ok(Steps::of(move || {
        while piece.len() < PIECE && !done {
            let Some(records) = frames.next_frame()? else {
                piece.push_str("\n]}\n");
                done = true;
                break;
            };
            for record in records.iter().filter(|r: &&Record| !matches!(r.what, What::Screen { .. })) {
                piece.push_str(if first { "\n" } else { ",\n" });
                (first, at) = (false, record.millis);
                let record = json_record(record).map_err(encoded)?.to_string();
                // JSON too ends on terminals.
                piece.push_str(&harmless(record));
            }
        }
        Ok((!piece.is_empty()).then(|| (at, std::mem::take(&mut piece))))
    }))
}

/// Before the first byte is shown: who looks is known, or nothing is shown.
pub(super) async fn viewed(shelf: Shelf<'_>, caller: &Caller, id: SessionId) -> Result<(), Fault> {
    shelf.hears(Event::RecordingViewed { by: caller.name(), session: id.to_string() }).await
}

/// When something `millis` after the start of a session happened.
pub(super) fn moment(started: Timestamp, millis: u64) -> Option<Timestamp> {
    started.checked_add(Duration::from_millis(millis)).ok()
}

/// `2026-11-23 12:00:59`, UTC.
pub(super) fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `0:01:23` since the session started.
pub(super) fn place(millis: u64) -> String {
    let seconds = millis / 1000;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(super) fn shown(line: &Line) -> String {
    let mark = match line.source {
        Source::Output => "",
        Source::Stderr => "stderr: ",
        Source::Input => "stdin: ",
        Source::Command => "-- ",
        Source::Operation => "-- file: ",
    };
    format!("{mark}{}", plain(&line.text))
}

pub(super) fn source(source: Source) -> &'static str {
    match source {
        Source::Output => "output",
        Source::Stderr => "stderr",
        Source::Input => "input",
        Source::Command => "command",
        Source::Operation => "operation",
    }
}

const PIECE: usize = 64 << 10;
