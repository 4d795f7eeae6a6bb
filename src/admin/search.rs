//! `sessions search`: through what screens showed, commands and file names, several tapes at a time. Who searches, and for
//! what, is in the trail before the first tape is opened: that nothing was found tells something too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use regex::{Regex, RegexBuilder};
use serde_json::json;

use super::render::plain;
use super::replay::{clock, moment, place, shown, source, viewed};
use super::sessions::parsed;
use super::shelf::Shelf;
use super::steps::Steps;
use super::{Caller, Fault, Output};
use crate::audit::Event;
use crate::recording::{Line, Lines, SessionId, SessionStatus, Summary};

/// What is looked for.
pub(super) fn pattern(text: &str, regex: bool) -> Result<Regex, Fault> {
    if text.is_empty() {
        return Err(Fault::usage("say what to look for: every line has nothing in it"));
    }
    let text = if regex { text.to_owned() } else { regex::escape(text) };
    let built = RegexBuilder::new(&text).case_insensitive(true).size_limit(1 << 20).build();
    built.map_err(|e| Fault::usage(format!("the pattern is no regular expression: {e}")))
}

/// The lines of a tape that match.
pub(super) async fn lines(
    shelf: Shelf<'_>,
    id: SessionId,
    pattern: Regex,
) -> Result<Steps<Vec<Line>>, Fault> {
    hits(shelf, id, pattern, Arc::default()).await
}

/// Looks through the tapes of `among`, oldest first. What runs is not searched, and that is said.
pub(super) async fn search(
    (shelf, caller): (Shelf<'_>, &Caller),
    among: Vec<Summary>,
    sought: &str,
    pattern: Regex,
    out: &mut Output,
) -> Result<(), Fault> {
    let (live, among): (Vec<_>, Vec<_>) = among.into_iter().partition(|s| s.status == SessionStatus::Live);
    let event = Event::RecordingsSearched {
        by: caller.name(),
        pattern: sought.to_owned(),
        count: among.len() as u64,
    };
    shelf.hears(event).await?;
    let (read, sessions) = (Arc::new(AtomicU64::new(0)), among.len());
    let total = among.iter().flat_map(|s| &s.channels).map(|channel| channel.captured_bytes).sum();
    let jobs = among.into_iter().map(|summary| first(shelf, summary, pattern.clone(), Arc::clone(&read)));
    let mut tapes = stream::iter(jobs).buffered(at_a_time());
    let mut report = Report::default();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        let opened = tokio::select! {
            opened = tapes.next() => opened,
            _ = tick.tick() => {
                out.progress("searching", (read.load(Ordering::Relaxed), total));
                continue;
            }
        };
        let Some((summary, opened)) = opened else { break };
        report.tell((shelf, caller), &summary, opened, out).await?;
    }
    if out.json() {
        out.either(&report.found, "").await?;
    }
    let searched = sessions - report.unread.len();
    let mut says = report.summed(searched, read.load(Ordering::Relaxed), live.len());
    if report.hits == 0 && is_expression(sought) && *pattern.as_str() == regex::escape(sought) {
        says.push_str(" The pattern was taken as text; --regex reads it as a regular expression.");
    }
    out.note(says).await?;
    if report.unread.is_empty() {
        return Ok(());
    }
    Err(Fault::error(format!("not searched, so there may be more:\n{}", report.unread.join("\n"))))
}

/// It has what only makes sense in a regular expression.
fn is_expression(sought: &str) -> bool {
    sought.contains(['|', '*', '\\', '^', '$']) && Regex::new(sought).is_ok()
}

type Opened = Result<(Option<Vec<Line>>, Steps<Vec<Line>>), Fault>;

/// The first matching lines of one tape, and the way to the others.
async fn first(
    shelf: Shelf<'_>,
    summary: Summary,
    pattern: Regex,
    read: Arc<AtomicU64>,
) -> (Summary, Opened) {
    let opened = async {
        let mut hits = hits(shelf, parsed(&summary.header.id)?, pattern, read).await?;
        Ok((hits.next().await?, hits))
    };
    let opened = opened.await;
    (summary, opened)
}

async fn hits(
    shelf: Shelf<'_>,
    id: SessionId,
    pattern: Regex,
    read: Arc<AtomicU64>,
) -> Result<Steps<Vec<Line>>, Fault> {
    let frames = shelf.reading_of(id, move |tapes| tapes.frames(id, 0)).await?;
    let mut lines = Lines::of(frames);
    Ok(Steps::of(move || {
        let mut hits = Vec::new();
        while hits.len() < AT_ONCE {
            let before = lines.read;
            let Some(more) = lines.more()? else { return Ok((!hits.is_empty()).then_some(hits)) };
            read.fetch_add(lines.read - before, Ordering::Relaxed);
            hits.extend(more.into_iter().filter(|line| pattern.is_match(&line.text)));
        }
        Ok(Some(hits))
    }))
}

#[derive(Default)]
struct Report {
    found: Vec<serde_json::Value>,
    unread: Vec<String>,
    hits: u64,
    sessions: u64,
}

impl Report {
    /// What was found, and in how much: that nothing was found tells something only with that.
    fn summed(&self, searched: usize, bytes: u64, live: usize) -> String {
        let Self { hits, sessions, .. } = self;
        let found = match (hits, sessions) {
            (0, _) => "Nothing found".to_owned(),
            (1, _) => "1 hit".to_owned(),
            (hits, 1) => format!("{hits} hits in 1 session"),
            (hits, sessions) => format!("{hits} hits in {sessions} sessions"),
        };
        let among = if searched == 1 { "1 session".to_owned() } else { format!("{searched} sessions") };
        let mut says = format!("{found}; searched {among}, {:.1} MB.", bytes as f64 / 1e6);
        if live > 0 {
            says.push_str(&format!(
                " {live} live not searched: watch those, or search again when they have ended."
            ));
        }
        says
    }

    async fn tell(
        &mut self,
        (shelf, caller): (Shelf<'_>, &Caller),
        summary: &Summary,
        opened: Opened,
        out: &mut Output,
    ) -> Result<(), Fault> {
        let id = parsed(&summary.header.id)?;
        // One tape that does not open must not end the search; that it was left out is said.
        let (mut hits, mut more) = match opened {
            Ok((Some(hits), more)) => (hits, more),
            Ok((None, _)) => return Ok(()),
            Err(fault) => {
                self.unread.push(plain(&format!("{id}: {fault}")));
                return Ok(());
            }
        };
        viewed(shelf, caller, id).await?;
        self.sessions += 1;
        loop {
            self.hits += hits.len() as u64;
            for line in hits {
                if out.json() {
                    self.found.push(json!({
                        "session": id.to_string(), "user": summary.header.user, "instance": summary.header.instance,
                        "seconds": Duration::from_millis(line.millis).as_secs_f64(), "channel": line.channel,
                        "time": moment(summary.header.started_at, line.millis).map(|at| format!("{at:.3}")),
                        "source": source(line.source), "text": line.text,
                    }));
                } else {
                    let header = &summary.header;
                    let at = moment(header.started_at, line.millis).map(clock).unwrap_or_default();
                    let who = plain(&format!("{} {}@{}", header.user, header.login, header.instance));
                    out.line(format!("{id}  {}  {at}  {who}  {}", place(line.millis), shown(&line))).await?;
                }
            }
            hits = match more.next().await {
                Ok(Some(hits)) => hits,
                Ok(None) => return Ok(()),
                Err(fault) => {
                    self.unread.push(plain(&format!("{id}: {fault}")));
                    return Ok(());
                }
            };
        }
    }
}

/// So many tapes are read side by side: as many as there are processors, and not all of a large machine's.
fn at_a_time() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

/// Matching lines held at a time.
const AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_says_what_it_looked_through() {
        let report = |hits, sessions| Report { hits, sessions, ..Report::default() };
        assert_eq!(report(0, 0).summed(3, 1_240_000, 0), "Nothing found; searched 3 sessions, 1.2 MB.");
        assert!(is_expression("a|b") && is_expression(r"\d+ rows") && !is_expression("etc/shadow"));
        assert!(!is_expression("*.rs") && !is_expression("a.b(c)"));
        assert_eq!(report(1, 1).summed(1, 0, 0), "1 hit; searched 1 session, 0.0 MB.");
        assert_eq!(report(7, 1).summed(9, 0, 0), "7 hits in 1 session; searched 9 sessions, 0.0 MB.");
        let live = report(7, 2).summed(9, 0, 2);
        assert!(
            live.starts_with("7 hits in 2 sessions; ") && live.contains(" 2 live not searched"),
            "{live}"
        );
    }
}
