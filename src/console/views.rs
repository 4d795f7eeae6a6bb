//! What a page shows. Everything that a user, an instance or an operator named is a [`Text`]: control and bidirectional
//! characters are made visible here, and the templates escape what HTML would obey.

use std::fmt;

use askama::Template;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;

use super::door::Auditor;
use crate::admin::{Fault, did, lasted, status};
use crate::audit::plain;
use crate::recording::{Capture, ChannelSummary, SessionStatus, Summary};

/// Text of somebody else, made harmless to a reader's eye.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text(String);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(plain(text))
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        Self(plain(text))
    }
}

impl Text {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The frame around a page: who is signed in, and where.
pub(super) struct Frame {
    pub(super) user: Text,
    pub(super) at: &'static str,
}

impl Frame {
    pub(super) fn of(auditor: &Auditor, at: &'static str) -> Self {
        Self { user: Text::from(&auditor.caller.name()), at }
    }
}

/// A page, or the reason why there is none.
pub(super) fn shown(page: &impl Template) -> Response {
    shown_as(StatusCode::OK, page)
}

pub(super) fn shown_as(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "console.template_failed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Before signing in, and where nothing else can be shown.
#[derive(Template)]
#[template(path = "notice.html")]
struct Notice {
    title: &'static str,
    says: Text,
    how: bool,
}

pub(super) fn signed_out() -> Response {
    let says = Text::from("You are not signed in, or were signed out because you were away.");
    shown_as(StatusCode::UNAUTHORIZED, &Notice { title: "Sign in", says, how: true })
}

pub(super) fn goodbye() -> Response {
    let says = Text::from("You are signed out.");
    shown(&Notice { title: "Signed out", says, how: true })
}

pub(super) fn refused(status: StatusCode, title: &'static str, why: &str) -> Response {
    shown_as(status, &Notice { title, says: Text::from(why), how: status == StatusCode::FORBIDDEN })
}

/// A page with nothing but a fault.
#[derive(Template)]
#[template(path = "fault.html")]
struct FaultPage {
    frame: Frame,
    says: Text,
}

pub(super) fn fault(auditor: &Auditor, at: &'static str, fault: &Fault) -> Response {
    let page = FaultPage { frame: Frame::of(auditor, at), says: Text::from(&fault.says) };
    shown_as(status_of(fault), &page)
}

/// A fault where a script asked.
pub(super) fn plain_fault(fault: &Fault) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status_of(fault), headers, plain(&fault.says)).into_response()
}

/// Exit codes (CONTRACT.md) as HTTP has them.
pub(super) fn status_of(fault: &Fault) -> StatusCode {
    match fault.code {
        2 => StatusCode::BAD_REQUEST,
        3 => StatusCode::NOT_FOUND,
        4 => StatusCode::FORBIDDEN,
        5 => StatusCode::CONFLICT,
        6 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// One session in a list.
pub(super) struct Row {
    pub(super) id: Text,
    pub(super) user: Text,
    pub(super) login: Text,
    pub(super) instance: Text,
    pub(super) source: Text,
    pub(super) started: String,
    pub(super) lasted: String,
    pub(super) status: &'static str,
    pub(super) did: Text,
    /// Something of it was not kept.
    pub(super) partly: bool,
}

impl Row {
    pub(super) fn of(summary: &Summary) -> Self {
        let header = &summary.header;
        Self {
            id: Text::from(&header.id),
            user: Text::from(&header.user),
            login: Text::from(&header.login),
            instance: Text::from(&header.instance),
            source: Text::from(&header.source_ip),
            started: time(header.started_at),
            lasted: lasted(summary),
            status: status(summary.status),
            did: Text::from(&did(summary)),
            partly: summary.channels.iter().any(|c| c.capture != Capture::Full)
                || summary.status == SessionStatus::Truncated,
        }
    }
}

/// One channel in the ledger.
pub(super) struct Entry {
    pub(super) channel: u32,
    pub(super) kind: Text,
    pub(super) command: Text,
    pub(super) exit: Text,
    pub(super) relayed: String,
    pub(super) captured: String,
    pub(super) capture: Text,
    pub(super) operations: u64,
    pub(super) gaps: Vec<(String, Text)>,
    pub(super) digests: Vec<(&'static str, Text)>,
}

impl Entry {
    pub(super) fn of(c: &ChannelSummary) -> Self {
        let exit = match (&c.exit_signal, c.exit_status) {
            (Some(signal), _) => format!("SIG{signal}"),
            (None, Some(status)) => status.to_string(),
            (None, None) => "–".to_owned(),
        };
        let sums = [("from the user", &c.digest_in), ("from the instance", &c.digest_out)];
        Self {
            channel: c.channel,
            kind: Text::from(&c.kind),
            command: c.command.as_ref().map(Text::from).unwrap_or_default(),
            exit: Text::from(&exit),
            relayed: bytes(c.relayed_bytes),
            captured: bytes(c.captured_bytes),
            capture: Text::from(word(&c.capture).as_str()),
            operations: c.operations,
            gaps: c.gaps().into_iter().map(|(size, why)| (bytes(size), Text::from(&why))).collect(),
            digests: sums.into_iter().filter_map(|(of, sum)| Some((of, Text::from(sum.as_ref()?)))).collect(),
        }
    }
}

/// The word that JSON has for it.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `2026-11-23 12:00:07`, UTC.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time as JSON has it, as [`time`]; what is none stays as it is.
pub(super) fn moment(told: &str) -> String {
    told.parse().map_or_else(|_| told.to_owned(), time)
}

/// `1,234 B`, `12.3 MB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 10_000 {
        return format!("{} B", grouped(count));
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = UNITS.iter().peekable();
    let mut name = unit.next().copied().unwrap_or_default();
    while value >= 1000.0
        && let Some(next) = unit.next()
    {
        value /= 1000.0;
        name = next;
    }
    format!("{value:.1} {name}")
}

/// `100,000`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1:02:03` since the session started.
pub(super) fn place(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_named_is_text() {
        let page = Notice { title: "x", says: Text::from("<script>\u{202e}\u{1b}[2J&\"'"), how: false };
        let html = page.render().unwrap();
        assert!(
            !html.contains("<script>") && !html.contains('\u{202e}') && !html.contains('\u{1b}'),
            "{html}"
        );
        assert!(html.contains("\\u{202e}\\u{1b}[2J"), "{html}");
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        assert_eq!((bytes(0), bytes(9_999)), ("0 B".into(), "9,999 B".into()));
        assert_eq!((bytes(12_345), bytes(16 << 20)), ("12.3 kB".into(), "16.8 MB".into()));
        assert_eq!((grouped(100_000), grouped(999)), ("100,000".into(), "999".into()));
        assert_eq!(place(3723.9), "1:02:03");
    }
}
