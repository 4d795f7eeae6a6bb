//! What leaves a tape: asciicast v2 (<https://docs.asciinema.org/manual/asciicast/v2/>) and JSON.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json as value};

use super::format::{Note, Record, What};
use super::message::Direction;
use super::tape::Summary;

/// A replayable view of one channel, or of all where none has a terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct Cast {
    /// Width in characters.
    pub cols: u32,
    /// Height in characters.
    pub rows: u32,
    /// `TERM`.
    pub term: String,
    /// Microseconds since the session started, asciicast's event code (`o`, `i`, `r`), and its text.
    pub events: Vec<(u64, char, String)>,
}

impl Cast {
    /// The channel of a tape that a person would watch: the first with a terminal; without one, all of them together.
    pub fn of(records: &[Record]) -> Self {
        let terminal = records.iter().find_map(|r| match &r.what {
            What::Note(_, Note::Pty { term, cols, rows }) => Some((r.channel, term.clone(), *cols, *rows)),
            _ => None,
        });
        let (channel, term, cols, rows) = match terminal {
            Some((channel, term, cols, rows)) => (Some(channel), term, cols, rows),
            None => (None, "dumb".to_owned(), 80, 24),
        };
        let mut cast = Self { cols: or(cols, 80), rows: or(rows, 24), term, events: Vec::new() };
        let mut halves: BTreeMap<(u32, char), Vec<u8>> = BTreeMap::new();
        for record in records.iter().filter(|r| channel.is_none_or(|c| c == r.channel)) {
            let (code, stream) = match &record.what {
                What::Output => ('o', 'o'),
                What::Stderr => ('o', 'e'),
                What::Input => ('i', 'i'),
                What::Note(Direction::ToInstance, Note::WindowChange { cols, rows }) => {
                    cast.events.push((record.micros, 'r', format!("{cols}x{rows}")));
                    continue;
                }
                _ => continue,
            };
            // A character may be cut by the edge of a packet: its first half waits for the second.
            let waiting = halves.entry((record.channel, stream)).or_default();
            waiting.extend_from_slice(&record.payload);
            let mut text = take_text(waiting);
            if channel.is_none() {
                // No terminal made the line ends that a player's terminal wants.
                text = text.replace("\r\n", "\n").replace('\n', "\r\n");
            }
            if !text.is_empty() {
                cast.events.push((record.micros, code, text));
            }
        }
        let end = records.last().map_or(0, |r| r.micros);
        for ((_, stream), rest) in halves.into_iter().filter(|(_, rest)| !rest.is_empty()) {
            let code = if stream == 'i' { 'i' } else { 'o' };
            cast.events.push((end, code, String::from_utf8_lossy(&rest).into_owned()));
        }
        cast
    }
}

fn or(given: u32, default: u32) -> u32 {
    if given == 0 { default } else { given }
}

/// Takes the whole characters off `bytes`; what can be none becomes U+FFFD.
fn take_text(bytes: &mut Vec<u8>) -> String {
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

/// asciicast v2: a header line, then one event a line. Times in seconds.
pub fn asciicast(summary: &Summary, records: &[Record]) -> String {
    let cast = Cast::of(records);
    let header = &summary.header;
    let title = format!("{} as {}@{} (session {})", header.user, header.login, header.instance, header.id);
    let header = value!({
        "version": 2, "width": cast.cols, "height": cast.rows,
        "timestamp": header.started_at.as_second(), "title": title, "env": { "TERM": cast.term },
    });
    let mut out = format!("{header}\n");
    for (micros, code, text) in &cast.events {
        let seconds = std::time::Duration::from_micros(*micros).as_secs_f64();
        out.push_str(&value!([seconds, code.to_string(), text]).to_string());
        out.push('\n');
    }
    out
}

/// The summary and every record. Payload is `text` where it is UTF-8, else `base64`.
pub fn json(summary: &Summary, records: &[Record]) -> Result<Value, serde_json::Error> {
    let records = records.iter().map(|record| {
        let mut shown = value!({
            "seconds": std::time::Duration::from_micros(record.micros).as_secs_f64(),
            "channel": record.channel,
            "what": serde_json::to_value(&record.what)?,
        });
        if let (Some(fields), false) = (shown.as_object_mut(), record.payload.is_empty()) {
            match std::str::from_utf8(&record.payload) {
                Ok(text) => fields.insert("text".to_owned(), text.into()),
                Err(_) => fields.insert("base64".to_owned(), BASE64.encode(&record.payload).into()),
            };
        }
        Ok(shown)
    });
    let records = records.collect::<Result<Vec<Value>, serde_json::Error>>()?;
    Ok(value!({ "session": serde_json::to_value(summary)?, "records": records }))
}
