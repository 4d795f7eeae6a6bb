//! The pages: the list of sessions, the search, what is missing, the chain.

use std::sync::Arc;

use askama::Template;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{Whole, ask, say, whole};
use super::door::{Auditor, guarded};
use super::views::{Frame, Row, Text, fault, grouped, place, shown, shown_as, status_of};
use super::{assets, live, session, sign, views};
use crate::admin::Fault;
use crate::audit::plain;
use crate::recording::Summary;
use crate::session::House;

pub(super) fn router(house: Arc<House>) -> Router {
    Router::new()
        .route("/", get(|| async { Redirect::to("/sessions") }))
        .route("/sign-in", get(sign::sign_in))
        .route("/sign-out", post(sign::sign_out))
        .route("/sessions", get(list))
        .route("/sessions/{id}", get(session::page))
        .route("/sessions/{id}/tape", get(session::tape))
        .route("/sessions/{id}/transcript", get(session::transcript))
        .route("/sessions/{id}/verification", get(session::verification))
        .route("/sessions/{id}/live", get(live::stream))
        .route("/sessions/{id}/kill", post(live::kill).layer(DefaultBodyLimit::max(LONGEST_FORM)))
        .route("/search", get(search))
        .route("/gaps", get(gaps))
        .route("/chain", get(chain))
        .route("/chain/verification", get(chain_verification))
        .route("/assets/{name}", get(assets::asset))
        .fallback(|| async { views::refused(StatusCode::NOT_FOUND, "Not found", "There is no such page.") })
        .layer(middleware::from_fn_with_state(Arc::clone(&house), guarded))
        .with_state(house)
}

/// A filter: its name in the address, the option of the command, its label, an example.
type Filter = (&'static str, &'static str, &'static str);

/// The filters of `sessions list` and `sessions search`; each name is that of the option.
const FILTERS: [Filter; 12] = [
    ("user", "User", "alice"),
    ("instance", "Instance", "db-1"),
    ("label", "Label", "env=prod"),
    ("login", "Login", "root"),
    ("command", "Command", "rm -rf"),
    ("path", "File path", "/etc/shadow"),
    ("exit", "Exit code", "1"),
    ("source", "From", "10.0.0.0/8"),
    ("since", "Since", "7d or 2026-11-23"),
    ("until", "Until", "1d or 2026-11-23"),
    ("at", "Running at", "2h or a time"),
    ("key", "Key", "SHA256:…"),
];
const PER_PAGE: usize = 50;

/// A field of a form, with what was typed.
struct Field {
    name: &'static str,
    label: &'static str,
    example: &'static str,
    value: Text,
}

/// What the address asks for: names and values, empty ones left out.
pub(super) struct Asked(Vec<(String, String)>);

impl Asked {
    pub(super) fn of(query: Option<String>) -> Self {
        let pairs = url_pairs(query.as_deref().unwrap_or_default());
        Self(pairs.into_iter().filter(|(_, value)| !value.trim().is_empty()).collect())
    }

    pub(super) fn value(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.trim())
    }

    fn has(&self, name: &str) -> bool {
        !self.value(name).is_empty()
    }

    fn fields(&self, filters: &[Filter]) -> Vec<Field> {
        let field = |(name, label, example): &Filter| Field {
            name,
            label,
            example,
            value: Text::from(self.value(name)),
        };
        filters.iter().map(field).collect()
    }

    /// The filters as options; `--name=value`, so that no value is read as an option.
    fn options(&self, filters: &[Filter]) -> Vec<String> {
        let given = filters.iter().filter(|(name, ..)| self.has(name));
        given.map(|(name, ..)| format!("--{name}={}", self.value(name))).collect()
    }

    /// The same question about another page.
    fn page(&self, page: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (key, value) in self.0.iter().filter(|(key, _)| key != "page") {
            query.append_pair(key, value);
        }
        if page > 1 {
            query.append_pair("page", &page.to_string());
        }
        format!("/sessions?{}", query.finish())
    }
}

fn url_pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().take(MOST_PAIRS).collect()
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct ListPage {
    frame: Frame,
    fields: Vec<Field>,
    live: bool,
    filtered: bool,
    fault: Text,
    rows: Vec<Row>,
    total: Option<String>,
    first: String,
    last: String,
    newer: Option<String>,
    older: Option<String>,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

async fn list(State(house): State<Arc<House>>, auditor: Auditor, RawQuery(query): RawQuery) -> Response {
    let asked = Asked::of(query);
    let page = asked.value("page").parse::<usize>().unwrap_or(1).clamp(1, 1_000_000);
    let skip = (page - 1) * PER_PAGE;
    let mut words = vec!["sessions".to_owned(), "list".to_owned()];
    words.extend(asked.options(&FILTERS));
    words.extend(asked.has("live").then(|| "--live".to_owned()));
    let filtered = words.len() > 2;
    let mut of_page = words.clone();
    // One more than is shown: whether there are more.
    of_page.extend([format!("--last={}", PER_PAGE + 1), format!("--skip={skip}")]);
    words.push("--count".to_owned());
    let answers = async {
        let found = whole::<Vec<Summary>>(say(&house, &auditor, &of_page)?).await?.value;
        // To count what fits a filter is to look through all once more: only where nothing is filtered.
        let count = match filtered {
            true => None,
            false => Some(whole::<Count>(say(&house, &auditor, &words)?).await?.value.count),
        };
        Ok::<_, Fault>((found, count))
    };
    let (found, total, wrong) = match answers.await {
        Ok((found, total)) => (found, total, None),
        Err(wrong) => (Vec::new(), None, Some(wrong)),
    };
    let rows: Vec<Row> = found.iter().rev().take(PER_PAGE).map(Row::of).collect();
    let more = found.len() > PER_PAGE;
    let total = total.or((!more).then_some((skip + rows.len()) as u64));
    let shown_page = ListPage {
        frame: Frame::of(&auditor, "sessions"),
        fields: asked.fields(&FILTERS),
        live: asked.has("live"),
        filtered,
        fault: wrong.as_ref().map(|w| Text::from(first_line(&w.says))).unwrap_or_default(),
        first: grouped((skip + 1) as u64),
        last: grouped((skip + rows.len()) as u64),
        newer: (page > 1).then(|| asked.page(page - 1)),
        older: more.then(|| asked.page(page + 1)),
        total: total.map(grouped),
        rows,
    };
    shown_as(wrong.as_ref().map_or(StatusCode::OK, status_of), &shown_page)
}

/// Of what the grammar says of a malformed word, the sentence.
fn first_line(says: &str) -> &str {
    let line = says.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line)
}

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    frame: Frame,
    pattern: Text,
    regex: bool,
    fields: Vec<Field>,
    asked: bool,
    fault: Text,
    found: Vec<Found>,
    /// How much was found, in how much.
    says: Text,
    more: bool,
}

/// The hits of one session.
struct Found {
    session: Text,
    user: Text,
    instance: Text,
    hits: Vec<Hit>,
}

struct Hit {
    time: Text,
    seconds: f64,
    place: String,
    source: Text,
    text: Text,
}

#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    session: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    instance: String,
    seconds: f64,
    #[serde(default)]
    time: String,
    source: String,
    text: String,
}

async fn search(State(house): State<Arc<House>>, auditor: Auditor, RawQuery(query): RawQuery) -> Response {
    let asked = Asked::of(query);
    let mut page = SearchPage {
        frame: Frame::of(&auditor, "search"),
        pattern: Text::from(asked.value("pattern")),
        regex: asked.has("regex"),
        fields: asked.fields(&FILTERS),
        asked: asked.has("pattern"),
        fault: Text::default(),
        found: Vec::new(),
        says: Text::default(),
        more: false,
    };
    if !page.asked {
        return shown(&page);
    }
    let mut words = vec!["sessions".to_owned(), "search".to_owned()];
    words.extend(asked.options(&FILTERS));
    words.extend(page.regex.then(|| "--regex".to_owned()));
    words.extend(["--".to_owned(), asked.value("pattern").to_owned()]);
    let answer = async { whole::<Vec<Told>>(say(&house, &auditor, &words)?).await };
    let wrong = match answer.await {
        Ok(Whole { value: hits, says, fault: wrong }) => {
            page.says = Text::from(&says);
            page.more = hits.len() > MOST_HITS;
            for hit in hits.iter().take(MOST_HITS) {
                page.add(hit);
            }
            wrong
        }
        Err(wrong) => Some(wrong),
    };
    page.fault = wrong.as_ref().map(|wrong| Text::from(first_line(&wrong.says))).unwrap_or_default();
    shown_as(wrong.as_ref().map_or(StatusCode::OK, status_of), &page)
}

impl SearchPage {
    fn add(&mut self, told: &Told) {
        let session = Text::from(&told.session);
        let hit = hit(told);
        match self.found.last_mut().filter(|found| found.session == session) {
            Some(found) => found.hits.push(hit),
            None => self.found.push(Found {
                session,
                user: Text::from(&told.user),
                instance: Text::from(&told.instance),
                hits: vec![hit],
            }),
        }
    }
}

fn hit(told: &Told) -> Hit {
    let (seconds, source) = (told.seconds, Text::from(&told.source));
    let time = Text::from(&views::moment(&told.time));
    Hit { time, seconds, place: place(seconds), source, text: Text::from(&told.text) }
}

#[derive(Template)]
#[template(path = "gaps.html")]
struct GapsPage {
    frame: Frame,
    fields: Vec<Field>,
    reasons: Vec<(String, String, Text)>,
    fault: Text,
    gaps: Vec<Gap>,
    count: String,
    more: bool,
}

struct Gap {
    started: Text,
    session: Text,
    user: Text,
    to: Text,
    kind: Text,
    bytes: String,
    reason: Text,
}

async fn gaps(State(house): State<Arc<House>>, auditor: Auditor, RawQuery(query): RawQuery) -> Response {
    let mut asked = Asked::of(query);
    if !asked.has("since") {
        asked.0.push(("since".to_owned(), "30d".to_owned()));
    }
    let options = asked.options(&FILTERS);
    let words: Vec<&str> =
        ["sessions", "gaps"].into_iter().chain(options.iter().map(String::as_str)).collect();
    let answer = ask::<Vec<Value>>(&house, &auditor, &words).await;
    let (found, wrong) = match answer {
        Ok(found) => (found, None),
        Err(wrong) => (Vec::new(), Some(wrong)),
    };
    let text =
        |gap: &Value, name: &str| gap.get(name).and_then(Value::as_str).map(Text::from).unwrap_or_default();
    let started = |gap: &Value| gap.get("started_at").and_then(Value::as_str).map(views::moment);
    let gap = |gap: &Value| Gap {
        started: Text::from(&started(gap).unwrap_or_default()),
        session: text(gap, "session"),
        user: text(gap, "user"),
        to: text(gap, "to"),
        kind: text(gap, "kind"),
        bytes: gap.get("bytes").and_then(Value::as_u64).map_or("?".to_owned(), views::bytes),
        reason: text(gap, "reason"),
    };
    let page = GapsPage {
        frame: Frame::of(&auditor, "gaps"),
        fields: asked.fields(&FILTERS),
        reasons: reasons(&found),
        fault: wrong.as_ref().map(|w| Text::from(first_line(&w.says))).unwrap_or_default(),
        count: grouped(found.len() as u64),
        more: found.len() > MOST_HITS,
        gaps: found.iter().rev().take(MOST_HITS).map(gap).collect(),
    };
    shown_as(wrong.as_ref().map_or(StatusCode::OK, status_of), &page)
}

/// How often each reason stands there, and of how many bytes, the rarest first.
fn reasons(gaps: &[Value]) -> Vec<(String, String, Text)> {
    let told = |(why, times, bytes): (&str, u64, u64)| (grouped(times), views::bytes(bytes), Text::from(why));
    crate::admin::reasons(gaps).into_iter().map(told).collect()
}

#[derive(Template)]
#[template(path = "chain.html")]
struct ChainPage {
    frame: Frame,
    facts: Vec<(&'static str, Text)>,
    warnings: Vec<Text>,
}

async fn chain(State(house): State<Arc<House>>, auditor: Auditor) -> Response {
    let status: Value = match ask(&house, &auditor, &["status"]).await {
        Ok(status) => status,
        Err(wrong) => return fault(&auditor, "chain", &wrong),
    };
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let word = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let readable = status.pointer("/recordings_readable_here").and_then(Value::as_bool);
    let facts = [
        ("Last event", grouped(number("/audit/seq"))),
        ("Its hash", word("/audit/hash").to_owned()),
        ("Signed through event", grouped(number("/audit/signed_through"))),
        ("Live sessions", grouped(number("/live_sessions"))),
        (
            "Recordings",
            if readable == Some(true) {
                "readable here"
            } else {
                "readable only where the auditors' identity is"
            }
            .to_owned(),
        ),
        ("Disk left", views::bytes(number("/disk/bytes_left"))),
        ("Up since", word("/started_at").to_owned()),
        ("Version", word("/version").to_owned()),
    ];
    let warnings = status.pointer("/warnings").and_then(Value::as_array).into_iter().flatten();
    shown(&ChainPage {
        frame: Frame::of(&auditor, "chain"),
        facts: facts.iter().map(|(name, value)| (*name, Text::from(value))).collect(),
        warnings: warnings.filter_map(Value::as_str).map(Text::from).collect(),
    })
}

async fn chain_verification(State(house): State<Arc<House>>, auditor: Auditor) -> Response {
    let told = |value: Value| {
        let number = |name: &str| value.get(name).and_then(Value::as_u64).map(grouped).unwrap_or_default();
        format!(
            "Whole and unchanged: {} events, {} checkpoints, {} recordings ({} opened).",
            number("events"),
            number("checkpoints"),
            number("tapes"),
            number("tapes_opened")
        )
    };
    verdict(ask(&house, &auditor, &["logs", "verify"]).await.map(told))
}

/// What a verification found, for the script of a page.
pub(super) fn verdict(found: Result<String, Fault>) -> Response {
    let value = match found {
        Ok(says) => json!({ "ok": true, "says": plain(&says) }),
        Err(fault) if fault.code == 4 => return views::plain_fault(&fault),
        Err(fault) => json!({ "ok": false, "tampering": fault.code == 10, "says": plain(&fault.says) }),
    };
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Bytes of a form.
const LONGEST_FORM: usize = 16 << 10;
/// Parts of an address that are read.
const MOST_PAIRS: usize = 64;
/// Hits, or gaps, on one page.
const MOST_HITS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_into_a_filter_is_never_an_option() {
        let asked = Asked::of(Some("user=--live&command=%3Cb%3E&key=&page=3".to_owned()));
        assert_eq!(asked.options(&FILTERS), ["--user=--live", "--command=<b>"]);
        assert_eq!(asked.page(2), "/sessions?user=--live&command=%3Cb%3E&page=2");
        assert_eq!(asked.page(1), "/sessions?user=--live&command=%3Cb%3E");
    }
}
