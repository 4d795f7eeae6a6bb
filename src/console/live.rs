//! The live view: `sessions watch` as server-sent events, in the form that the player understands.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::asking::{Answer, ask, say};
use super::door::{Auditor, Door, entitled};
use super::pages::Asked;
use super::views;
use crate::recording::{SessionStatus, Summary};
use crate::session::House;

pub(super) async fn stream(
    State(house): State<Arc<House>>,
    Extension(door): Extension<Door>,
    Path(id): Path<String>,
    auditor: Auditor,
) -> Response {
    let words = ["sessions", "watch", "--", &id].map(str::to_owned);
    let mut answer = match say(&house, &auditor, &words) {
        Ok(answer) => answer,
        Err(fault) => return views::plain_fault(&fault),
    };
    let Some(first) = answer.next().await else {
        return match answer.fault().await {
            Some(fault) => views::plain_fault(&fault),
            None => views::plain_fault(&crate::admin::Fault::error("the session has ended")),
        };
    };
    let mut tick = tokio::time::interval(LOOK_AGAIN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watching = Watching { house, door, cookie: auditor.cookie, answer, tick, text: first.to_vec() };
    let events = stream::unfold(Some(watching), |watching| async move {
        let mut watching = watching?;
        let (piece, more) = watching.next().await;
        Some((Ok::<Bytes, std::io::Error>(piece), more.then_some(watching)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// Ends the session, for whoever may do so over SSH too. Returns to its page once it has ended.
pub(super) async fn kill(
    State(house): State<Arc<House>>,
    Path(id): Path<String>,
    auditor: Auditor,
    form: String,
) -> Response {
    let reason = Asked::of(Some(form)).value("reason").to_owned();
    let killed = async {
        let mut answer = say(&house, &auditor, &kills(&id, &reason))?;
        while answer.next().await.is_some() {}
        answer.fault().await.map_or(Ok(()), Err)
    };
    if let Err(wrong) = killed.await {
        return views::fault(&auditor, "sessions", &wrong);
    }
    for _ in 0..MOST_LOOKS {
        let summary = ask::<Summary>(&house, &auditor, &["sessions", "show", "--", &id]).await;
        if summary.map_or(true, |summary| summary.status != SessionStatus::Live) {
            break;
        }
        tokio::time::sleep(ENDING).await;
    }
    Redirect::to(&format!("/sessions/{id}")).into_response()
}

/// The command that ends a session.
pub(super) fn kills(id: &str, reason: &str) -> [String; 5] {
    ["sessions".into(), "kill".into(), format!("--reason={reason}"), "--".into(), id.into()]
}

struct Watching {
    house: Arc<House>,
    door: Door,
    cookie: String,
    answer: Answer,
    tick: tokio::time::Interval,
    /// What was heard and not told yet.
    text: Vec<u8>,
}

impl Watching {
    /// The next events, and whether more may come.
    async fn next(&mut self) -> (Bytes, bool) {
        let mut changes = self.house.vault.changes();
        loop {
            let told = self.told();
            if !told.is_empty() {
                return (told.into(), true);
            }
            let over = tokio::select! {
                piece = self.answer.next() => match piece {
                    Some(piece) => {
                        self.text.extend_from_slice(&piece);
                        continue;
                    }
                    // Perhaps the command saw first that the right is gone.
                    None => true,
                },
                _ = self.tick.tick() => false,
                _ = changes.recv() => false,
            };
            if let Err(why) = entitled(&self.house, &self.cookie, Some(&self.door)).await {
                let why = json!({ "why": why.unwrap_or_else(|| "You are signed out.".to_owned()) });
                return (format!("event: refused\ndata: {why}\n\nevent: done\ndata: {{}}\n\n").into(), false);
            }
            if over {
                return (Bytes::from_static(b"event: done\ndata: {}\n\n"), false);
            }
        }
    }

    /// The whole lines among what was heard, as events.
    fn told(&mut self) -> String {
        let Some(end) = self.text.iter().rposition(|byte| *byte == b'\n') else { return String::new() };
        let rest = self.text.split_off(end + 1);
        let lines = std::mem::replace(&mut self.text, rest);
        String::from_utf8_lossy(&lines).lines().filter_map(event).collect()
    }
}

/// A line of asciicast as an event of the stream.
fn event(line: &str) -> Option<String> {
    let line = line.trim();
    let value: Value = serde_json::from_str(line).ok()?;
    if value.get("width").is_some() {
        return Some(format!("data: {line}\n\n"));
    }
    if let Some(missed) = value.get("missed") {
        let data = json!({ "missed": missed });
        return Some(format!("event: missed\ndata: {data}\n\n"));
    }
    let data = value.as_array()?;
    // Markers go beside the picture, not into it.
    let kind = if data.get(1)?.as_str()? == "m" { "event: mark\n" } else { "" };
    Some(format!("{kind}data: {line}\n\n"))
}

/// How often, and how many times, it is looked whether a killed session has ended.
const ENDING: Duration = Duration::from_millis(50);
const MOST_LOOKS: u32 = 100;
/// How late the end of a right may be noticed that no change in the store announces.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_event_and_no_line_makes_two() {
        assert_eq!(
            event("[0.5,\"o\",\"a\\n\\ndata: b\"]").unwrap(),
            "data: [0.5,\"o\",\"a\\n\\ndata: b\"]\n\n"
        );
        assert!(event("[0.5,\"m\",\"$ ls\"]").unwrap().starts_with("event: mark\n"));
        assert!(event("{\"version\":2,\"width\":80}").unwrap().starts_with("data: "));
        assert!(event("{\"ended\":\"x\"}").is_none() && event("not json").is_none());
    }
}
