//! One session: its picture, what was done beside it, the ledger, whether it is whole.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::asking::{First, ask, first, may, say};
use super::door::{Auditor, with_player};
use super::live;
use super::pages::{Asked, verdict};
use super::views::{self, Entry, Frame, Row, Text, fault, place, shown, time};
use crate::recording::{SessionStatus, Summary};
use crate::session::House;

#[derive(Template)]
#[template(path = "session.html")]
struct SessionPage {
    frame: Frame,
    row: Row,
    key: Text,
    ended: String,
    reason: Text,
    digest: Text,
    bytes_in: String,
    bytes_out: String,
    live: bool,
    /// Who looks may end it.
    may_kill: bool,
    /// Somebody looked at a terminal.
    terminal: bool,
    /// Where to begin, in seconds.
    from: f64,
    ledger: Vec<Entry>,
}

pub(super) async fn page(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    auditor: Auditor,
) -> Response {
    let summary: Summary = match ask(&house, &auditor, &["sessions", "show", "--", &id]).await {
        Ok(summary) => summary,
        Err(wrong) => return fault(&auditor, "sessions", &wrong),
    };
    let from = Asked::of(query).value("t").parse::<f64>().ok().filter(|at| at.is_finite() && *at >= 0.0);
    let page = SessionPage {
        frame: Frame::of(&auditor, "sessions"),
        key: Text::from(&summary.header.key),
        ended: summary.ended_at.map(time).unwrap_or_default(),
        reason: summary.reason.as_ref().map(Text::from).unwrap_or_default(),
        digest: summary.digest.as_ref().map(Text::from).unwrap_or_default(),
        bytes_in: views::bytes(summary.bytes_in),
        bytes_out: views::bytes(summary.bytes_out),
        live: summary.status == SessionStatus::Live,
        may_kill: may(&house, &auditor, &live::kills(&id, "x")),
        terminal: summary.channels.iter().any(|c| c.terminal),
        from: from.unwrap_or(0.0),
        ledger: summary.channels.iter().map(Entry::of).collect(),
        row: Row::of(&summary),
    };
    with_player(shown(&page))
}

/// The recording as asciicast, with commands and operations as markers.
pub(super) async fn tape(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    auditor: Auditor,
) -> Response {
    let words = ["sessions", "export", "--", &id].map(str::to_owned);
    let poured = async { say(&house, &auditor, &words)?.pour().await };
    match poured.await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/x-asciicast")], body).into_response(),
        Err(wrong) => views::plain_fault(&wrong),
    }
}

pub(super) async fn verification(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    auditor: Auditor,
) -> Response {
    let found = ask::<Value>(&house, &auditor, &["sessions", "verify", "--", &id]).await;
    verdict(found.map(|value| {
        let opened = value.get("opened").and_then(Value::as_bool) == Some(true);
        let how = if opened { "every frame opens" } else { "its frames cannot be opened here" };
        let seq = value.get("seq").and_then(Value::as_u64).unwrap_or(0);
        format!("Whole and unchanged: {how}, and its SHA-256 is the one that event {seq} of the trail names.")
    }))
}

#[derive(Template)]
#[template(path = "transcript.html")]
struct TranscriptPage {
    frame: Frame,
    id: Text,
    commands: bool,
    lines: Vec<Line>,
    fault: Text,
    more: bool,
}

struct Line {
    time: Text,
    seconds: f64,
    place: String,
    source: Text,
    text: Text,
}

pub(super) async fn transcript(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    auditor: Auditor,
) -> Response {
    let commands = !Asked::of(query).value("commands").is_empty();
    let option = commands.then_some("--commands");
    let words: Vec<String> =
        ["sessions", "transcript"].into_iter().chain(option).map(str::to_owned).collect();
    let words = [words, vec!["--".to_owned(), id.clone()]].concat();
    let answer = async { first(say(&house, &auditor, &words)?, (MOST_LINES, MOST_TEXT)).await };
    let First { items: told, more, fault: wrong } = match answer.await {
        Ok(told) => told,
        Err(wrong) => return fault(&auditor, "sessions", &wrong),
    };
    let line = |told: &Value| {
        let word = |name: &str| told.get(name).and_then(Value::as_str).map(Text::from).unwrap_or_default();
        let seconds = told.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
        let at = told.get("time").and_then(Value::as_str).map(views::moment).unwrap_or_default();
        let (time, source, text) = (Text::from(&at), word("source"), word("text"));
        Line { time, seconds, place: place(seconds), source, text }
    };
    shown(&TranscriptPage {
        frame: Frame::of(&auditor, "sessions"),
        id: Text::from(&id),
        commands,
        more,
        lines: told.iter().map(line).collect(),
        fault: wrong.map(|wrong| Text::from(&wrong.says)).unwrap_or_default(),
    })
}

/// Lines of a transcript on one page.
const MOST_LINES: usize = 20_000;
/// And bytes of them, as JSON.
const MOST_TEXT: usize = 8 << 20;
