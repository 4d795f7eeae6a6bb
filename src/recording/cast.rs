//! What leaves a tape: asciicast v2 (<https://docs.asciinema.org/manual/asciicast/v2/>) and JSON.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json as value};

use super::drawing::Drawing;
use super::format::{Note, Record, What};
use super::message::Direction;
use super::screen::within;
use super::summary::Summary;

/// A replayable view of one channel, or of all where none has a terminal, made record by record.
#[derive(Debug)]
pub struct Cast {
    /// Width in characters.
    pub cols: u32,
    /// Height in characters.
    pub rows: u32,
    /// `TERM`.
    pub term: String,
    channel: Option<u32>,
    streams: BTreeMap<(u32, char), Drawing>,
    last: u64,
}

/// Milliseconds since the session started, asciicast's event code (`o`, `i`, `r`, `m`), and its text.
pub type CastEvent = (u64, char, String);

impl Cast {
    /// A view of the channel that a person would watch: the first whose terminal is noted in `records`; without one, of
    /// all of them together.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        records.into_iter().find_map(Self::begins).unwrap_or_else(Self::without_terminal)
    }

    /// The view that begins at this record, if it notes a terminal.
    pub fn begins(record: &Record) -> Option<Self> {
        match &record.what {
            What::Note(_, Note::Pty { term, cols, rows, .. }) => {
                let (cols, rows) = size(*cols, *rows);
                let (term, channel) = (term.clone(), Some(record.channel));
                Some(Self { cols, rows, term, channel, ..Self::without_terminal() })
            }
            _ => None,
        }
    }

    /// All channels together.
    pub fn without_terminal() -> Self {
        let (term, streams) = ("dumb".to_owned(), BTreeMap::new());
        Self { cols: 80, rows: 24, term, channel: None, streams, last: 0 }
    }

    /// The channel it shows; none for all together.
    pub fn channel(&self) -> Option<u32> {
        self.channel
    }

    /// What the record shows, if anything.
    pub fn event(&mut self, record: &Record) -> Option<CastEvent> {
        self.last = record.millis;
        if let Some(label) = marker(&record.what) {
            return Some((record.millis, 'm', label));
        }
        if self.channel.is_some_and(|channel| channel != record.channel) {
            return None;
        }
        let (code, stream) = match &record.what {
            What::Output => ('o', 'o'),
            What::Stderr => ('o', 'e'),
            What::Input => ('i', 'i'),
            What::Note(Direction::ToInstance, Note::WindowChange { cols, rows, .. }) => {
                let (cols, rows) = size(*cols, *rows);
                return Some((record.millis, 'r', format!("{cols}x{rows}")));
            }
            _ => return None,
        };
        // Whoever plays it draws it on a terminal of their own: nothing but drawing goes there.
        let fresh = if self.channel.is_none() { Drawing::of_lines } else { Drawing::default };
        let text = self.streams.entry((record.channel, stream)).or_insert_with(fresh).of(&record.payload);
        (!text.is_empty()).then_some((record.millis, code, text))
    }

    /// The first halves whose second never came.
    pub fn rest(&mut self) -> Vec<CastEvent> {
        let streams = std::mem::take(&mut self.streams);
        let rest = streams.into_iter().map(|((_, stream), mut drawing)| (stream, drawing.rest()));
        rest.filter(|(_, text)| !text.is_empty())
            .map(|(stream, text)| (self.last, if stream == 'i' { 'i' } else { 'o' }, text))
            .collect()
    }

    /// Puts a terminal that was drawn on back as its owner had it.
    pub fn tidy(&self) -> String {
        let all = self.streams.values().map(Drawing::tidy);
        all.max_by_key(String::len).unwrap_or_default()
    }
}

/// What a marker says: commands, and operations on files, of whichever channel. May hold control characters.
fn marker(what: &What) -> Option<String> {
    Some(match what {
        What::Note(Direction::ToInstance, Note::Exec(command)) => format!("$ {command}"),
        What::Note(Direction::ToInstance, Note::Shell) => "shell".to_owned(),
        What::Note(Direction::ToInstance, Note::Subsystem(name)) => format!("subsystem {name}"),
        What::Operation(operation) => operation.line(),
        _ => return None,
    })
}

/// An event as a line of asciicast v2. Times in seconds.
pub fn cast_line((millis, code, text): &CastEvent) -> String {
    let seconds = std::time::Duration::from_millis(*millis).as_secs_f64();
    format!("{}\n", value!([seconds, code.to_string(), text]))
}

/// The size that is drawn: a peer may ask for one that no player has the memory for.
fn size(cols: u32, rows: u32) -> (u32, u32) {
    let (cols, rows) = within(cols, rows);
    let bound = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    (bound(cols), bound(rows))
}

/// Takes the whole characters off `bytes`; what can be none becomes U+FFFD.
pub(super) fn take_text(bytes: &mut Vec<u8>) -> String {
    let whole = bytes.len() - unfinished(bytes);
    let rest = bytes.split_off(whole);
    let text = String::from_utf8_lossy(bytes).into_owned();
    *bytes = rest;
    text
}

/// How many bytes at the end are the start of a character that may still come.
fn unfinished(bytes: &[u8]) -> usize {
    let start = bytes.len().saturating_sub(3);
    let mut tail = bytes.get(start..).unwrap_or_default();
    while !tail.is_empty() {
        match std::str::from_utf8(tail) {
            Err(e) if e.valid_up_to() == 0 && e.error_len().is_none() => return tail.len(),
            _ => tail = tail.get(1..).unwrap_or_default(),
        }
    }
    0
}

/// The header line of an asciicast v2 file.
pub fn cast_header(summary: &Summary, cast: &Cast) -> String {
    let header = &summary.header;
    let title = format!("{} as {}@{} (session {})", header.user, header.login, header.instance, header.id);
    let header = value!({
        "version": 2, "width": cast.cols, "height": cast.rows,
        "timestamp": header.started_at.as_second(), "title": title, "env": { "TERM": cast.term },
    });
    format!("{header}\n")
}

/// A record as JSON. Payload is `text` where it is UTF-8, else `base64`.
///
/// # Errors
/// If serde_json cannot write it.
pub fn json_record(record: &Record) -> Result<Value, serde_json::Error> {
    let mut what = serde_json::to_value(&record.what)?;
    if let What::Note(_, Note::Pty { modes, .. }) = &record.what
        && let Some(shown) = what.pointer_mut("/note/1/pty/modes")
    {
        *shown = super::modes::named(modes);
    }
    let mut shown = value!({
        "seconds": std::time::Duration::from_millis(record.millis).as_secs_f64(),
        "channel": record.channel,
        "what": what,
    });
    if let (Some(fields), false) = (shown.as_object_mut(), record.payload.is_empty()) {
        match std::str::from_utf8(&record.payload) {
            Ok(text) => fields.insert("text".to_owned(), text.into()),
            Err(_) => fields.insert("base64".to_owned(), BASE64.encode(&record.payload).into()),
        };
    }
    Ok(shown)
}
