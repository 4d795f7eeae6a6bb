//! Reading tapes: played, watched, searched, as text, exported. That somebody looks is in the trail before the first
//! byte is shown. Tapes are read a frame at a time where blocking is allowed, and never faster than the reader takes it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use regex::{Regex, RegexBuilder};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::render::plain;
use super::sessions::{parsed, summary};
use super::{Caller, Fault, Format, Output};
use crate::audit::Event;
use crate::recording::{
    Cast, Frames, Line, Playback, Record, SessionId, Source, Summary, TapeError, Tapes, Transcript, What,
    cast_header, cast_line, json_record, picture,
};
use crate::session::House;

/// Whose tape is asked for, and by whom.
pub(super) type Asked<'a> = (&'a House, &'a Caller, &'a str);

/// Replays at the tape's own pace; pauses are shortened to two seconds.
pub(super) async fn play(asked: Asked<'_>, speed: f64, from: u64, out: &mut Output) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let id = parsed(id)?;
    let mut playback = super::sessions::reading(house, move |tapes| Playback::from(tapes, id, from)).await?;
    viewed(house, caller, id).await?;
    let mut events = piped(house, move |_, to| {
        while let Some(event) = playback.next_event()? {
            if to.blocking_send(Ok(event)).is_err() {
                break;
            }
        }
        Ok(())
    });
    let mut last = from;
    while let Some(event) = events.recv().await {
        let (millis, code, text) = event?;
        if code != 'o' {
            continue;
        }
        let pause = Duration::from_millis(millis.saturating_sub(last)).min(LONGEST_PAUSE);
        last = millis;
        tokio::time::sleep(pause.div_f64(speed)).await;
        out.bytes(text.into_bytes()).await?;
    }
    Ok(())
}

/// What a person saw, line by line.
pub(super) async fn transcript(asked: Asked<'_>, out: &mut Output) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let id = parsed(id)?;
    let frames = super::sessions::reading(house, move |tapes| tapes.frames(id, 0)).await?;
    viewed(house, caller, id).await?;
    let mut lines = piped(house, move |_, to| read_lines(frames, |line| to.blocking_send(Ok(line)).is_ok()));
    let mut first = true;
    while let Some(line) = lines.recv().await {
        let line = line?;
        if out.json() {
            let shown = json!({
                "seconds": Duration::from_millis(line.millis).as_secs_f64(), "channel": line.channel,
                "source": source(line.source), "text": line.text,
            });
            out.line(format!("{}{shown}", if first { "[\n" } else { "," })).await?;
        } else {
            out.line(format!("{}  {}", place(line.millis), shown(&line))).await?;
        }
        first = false;
    }
    if out.json() {
        out.line(if first { "[]" } else { "]" }).await?;
    }
    Ok(())
}

/// What is looked for.
pub(super) fn pattern(text: &str, regex: bool) -> Result<Regex, Fault> {
    let text = if regex { text.to_owned() } else { regex::escape(text) };
    let built = RegexBuilder::new(&text).case_insensitive(true).size_limit(1 << 20).build();
    built.map_err(|e| Fault::usage(format!("the pattern is no regular expression: {e}")))
}

/// Looks through the tapes of `among`, oldest first.
pub(super) async fn search(
    (house, caller): (&House, &Caller),
    among: &[Summary],
    pattern: Regex,
    out: &mut Output,
) -> Result<(), Fault> {
    let pattern = Arc::new(pattern);
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for summary in among {
        let id = parsed(&summary.header.id)?;
        let wanted = Arc::clone(&pattern);
        let mut hits = piped(house, move |tapes, to| {
            read_lines(tapes.frames(id, 0)?, |line| {
                !wanted.is_match(&line.text) || to.blocking_send(Ok(line)).is_ok()
            })
        });
        let mut viewed_already = false;
        while let Some(hit) = hits.recv().await {
            let line = match hit {
                Ok(line) => line,
                // One tape that does not open must not end the search; that it was left out is said.
                Err(error) => {
                    unread.push(format!("{id}: {error}"));
                    break;
                }
            };
            if !viewed_already {
                viewed(house, caller, id).await?;
                viewed_already = true;
            }
            if out.json() {
                found.push(json!({
                    "session": id.to_string(), "user": summary.header.user, "instance": summary.header.instance,
                    "seconds": Duration::from_millis(line.millis).as_secs_f64(), "channel": line.channel,
                    "source": source(line.source), "text": line.text,
                }));
            } else {
                out.line(format!("{id}  {}  {}", place(line.millis), shown(&line))).await?;
            }
        }
    }
    if out.json() {
        out.either(&found, "").await?;
    }
    if unread.is_empty() {
        return Ok(());
    }
    Err(Fault::error(format!("not searched, so there may be more:\n{}", plain_lines(&unread))))
}

/// The live session, as it stands and as it goes on.
pub(super) async fn watch(asked: Asked<'_>, out: &mut Output) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let id = parsed(id)?;
    if summary(house, &id.to_string()).await?.ended_at.is_some() {
        return Err(TapeError::Ended(id).into());
    }
    viewed(house, caller, id).await?;
    let (frames, before, mut live) = house.tapes.watch(id).await?;
    let stood = tokio::task::spawn_blocking(move || picture(frames, before)).await;
    let (mut cast, dump) = stood.map_err(|e| Fault::error(e.to_string()))??;
    out.bytes(dump.into_bytes()).await?;
    loop {
        let record = tokio::select! {
            () = out.gone() => return Ok(()),
            record = live.recv() => record,
        };
        match record {
            Ok(record) if matches!(record.what, What::End(..)) => break,
            Ok(record) => {
                if cast.channel().is_none()
                    && let Some(terminal) = Cast::begins(&record)
                {
                    cast = terminal;
                }
                if let Some((_, 'o', text)) = cast.event(&record) {
                    out.bytes(text.into_bytes()).await?;
                }
            }
            Err(RecvError::Lagged(missed)) => {
                out.note(format!("\r\nkeyward: {missed} pieces were left out: you read too slowly\r"))
                    .await?;
            }
            Err(RecvError::Closed) => break,
        }
    }
    out.note(format!("\r\nkeyward: session {id} has ended\r")).await
}

/// The tape in another format.
pub(super) async fn export(asked: Asked<'_>, format: Format, out: &mut Output) -> Result<(), Fault> {
    let (house, caller, id) = asked;
    let id = parsed(id)?;
    let summary = summary(house, &id.to_string()).await?;
    let mut pieces = match format {
        Format::Asciicast => {
            let mut playback =
                super::sessions::reading(house, move |tapes| Playback::from(tapes, id, 0)).await?;
            piped(house, move |_, to| {
                let mut piece = cast_header(&summary, playback.cast());
                while let Some(event) = playback.next_event()? {
                    piece.push_str(&cast_line(&event));
                    if piece.len() > PIECE && to.blocking_send(Ok(std::mem::take(&mut piece))).is_err() {
                        return Ok(());
                    }
                }
                drop(to.blocking_send(Ok(piece)));
                Ok(())
            })
        }
        Format::Json => {
            let frames = super::sessions::reading(house, move |tapes| tapes.frames(id, 0)).await?;
            piped(house, move |_, to| as_json(&summary, frames, &to))
        }
    };
    viewed(house, caller, id).await?;
    while let Some(piece) = pieces.recv().await {
        out.bytes(piece?.into_bytes()).await?;
    }
    Ok(())
}

type Pieces<T> = mpsc::Sender<Result<T, TapeError>>;

fn as_json(summary: &Summary, mut frames: Frames, to: &Pieces<String>) -> Result<(), TapeError> {
    let encoded = |error: serde_json::Error| TapeError::Failed(error.to_string());
    let mut piece =
        format!("{{\"session\":{},\"records\":[", serde_json::to_string(summary).map_err(encoded)?);
    let mut first = true;
    while let Some(records) = frames.next_frame()? {
        for record in records.iter().filter(|r: &&Record| !matches!(r.what, What::Screen { .. })) {
            piece.push_str(if first { "\n" } else { ",\n" });
            first = false;
            piece.push_str(&json_record(record).map_err(encoded)?.to_string());
            if piece.len() > PIECE && to.blocking_send(Ok(std::mem::take(&mut piece))).is_err() {
                return Ok(());
            }
        }
    }
    piece.push_str("\n]}\n");
    drop(to.blocking_send(Ok(piece)));
    Ok(())
}

/// Runs `work` where blocking is allowed; what it sends comes out as it is taken.
fn piped<T: Send + 'static>(
    house: &House,
    work: impl FnOnce(&Tapes, Pieces<T>) -> Result<(), TapeError> + Send + 'static,
) -> mpsc::Receiver<Result<T, TapeError>> {
    let (to, from) = mpsc::channel(64);
    let tapes = Arc::clone(&house.tapes);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = work(&tapes, to.clone()) {
            // Whoever asked may have gone away.
            drop(to.blocking_send(Err(error)));
        }
    });
    from
}

/// Every line of a tape, until `each` says that it is enough.
fn read_lines(mut frames: Frames, mut each: impl FnMut(Line) -> bool) -> Result<(), TapeError> {
    let (mut transcript, mut done) = (Transcript::default(), Vec::new());
    while let Some(records) = frames.next_frame()? {
        records.iter().for_each(|record| transcript.feed(record, &mut done));
        for line in done.drain(..) {
            if !each(line) {
                return Ok(());
            }
        }
    }
    transcript.finish(&mut done);
    for line in done {
        if !each(line) {
            return Ok(());
        }
    }
    Ok(())
}

/// Before the first byte is shown: who looks is known, or nothing is shown.
async fn viewed(house: &House, caller: &Caller, id: SessionId) -> Result<(), Fault> {
    let event = Event::RecordingViewed { by: caller.name(), session: id.to_string() };
    house.trail.append(event, Timestamp::now()).await.map(drop).map_err(|e| Fault::error(e.to_string()))
}

/// `0:01:23` since the session started.
fn place(millis: u64) -> String {
    let seconds = millis / 1000;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn shown(line: &Line) -> String {
    let mark = match line.source {
        Source::Output => "",
        Source::Stderr => "stderr: ",
        Source::Input => "stdin: ",
        Source::Command => "-- ",
        Source::Operation => "-- file: ",
    };
    format!("{mark}{}", plain(&line.text))
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Output => "output",
        Source::Stderr => "stderr",
        Source::Input => "input",
        Source::Command => "command",
        Source::Operation => "operation",
    }
}

fn plain_lines(lines: &[String]) -> String {
    lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
}

const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const PIECE: usize = 64 << 10;
