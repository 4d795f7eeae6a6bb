//! `sessions play` at a terminal: the recording at its own pace, and keys to pause, hurry, jump and search.
//!
//! An emulator follows what was drawn, so that the status line can cover the last line of the terminal and be taken away
//! again. Everything that reaches the terminal is [`Drawing`].

use std::collections::VecDeque;
use std::time::Duration;

use regex::Regex;
use tokio::time::Instant;

use super::keys_typed::{Key, keys};
use super::render::plain;
use super::replay::{events, place};
use super::search::{lines, pattern};
use super::shelf::Shelf;
use super::steps::Steps;
use super::{Fault, Keyboard, Offset, Output, Speed};
use crate::recording::{CastEvent, Drawing, Marker, Markers, Playback, SessionId, Stage, Tapes};

/// What is played, how fast, from where.
pub(super) struct Wanted {
    pub(super) id: SessionId,
    pub(super) speed: Speed,
    pub(super) from: u64,
    /// Milliseconds that the session lasted.
    pub(super) length: u64,
}

/// Plays until the end is left, with `q`.
pub(super) async fn play(
    shelf: Shelf<'_>,
    wanted: Wanted,
    keyboard: Keyboard,
    out: &mut Output,
) -> Result<(), Fault> {
    let size = (out.width().unwrap_or(80), keyboard.rows);
    let (id, length, speed) = (wanted.id, wanted.length, wanted.speed);
    let (reel, stage) = reel(shelf, id, wanted.from).await?;
    let mut player = Player {
        shelf,
        out,
        reel,
        stage,
        drawing: Drawing::default(),
        size,
        tape: Tape { id, length, markers: None, pattern: None },
        waiting: VecDeque::new(),
        ended: false,
        at: wanted.from,
        since: Instant::now(),
        speed,
        pace: Pace { paused: false, skips: true },
        covered: false,
        asks: None,
    };
    let done = player.run(keyboard).await;
    let rows = player.size.1;
    let tidy = format!("{}\u{1b}[{rows};1H\u{1b}[K\r\n", player.drawing.tidy());
    player.out.bytes(tidy.into_bytes()).await?;
    done
}

struct Player<'a> {
    shelf: Shelf<'a>,
    out: &'a mut Output,
    reel: Steps<Vec<CastEvent>>,
    stage: Stage,
    drawing: Drawing,
    size: (u16, u16),
    tape: Tape,
    waiting: VecDeque<CastEvent>,
    ended: bool,
    /// The place on the tape, in milliseconds, and when it was reached.
    at: u64,
    since: Instant,
    speed: Speed,
    pace: Pace,
    /// The status line covers the last line.
    covered: bool,
    /// What is being typed, and what for.
    asks: Option<(Asks, String)>,
}

struct Tape {
    id: SessionId,
    length: u64,
    markers: Option<Vec<Marker>>,
    pattern: Option<Regex>,
}

struct Pace {
    paused: bool,
    skips: bool,
}

#[derive(Clone, Copy)]
enum Asks {
    Time,
    Text,
}

enum Next {
    Go,
    Quit,
}

impl Player<'_> {
    async fn run(&mut self, mut keyboard: Keyboard) -> Result<(), Fault> {
        if self.stage.size().0 > self.size.0.into() || self.stage.size().1 > self.size.1.into() {
            let (cols, rows) = self.stage.size();
            self.pace.paused = true;
            self.say(&format!("made on {cols}x{rows}: a larger terminal shows all of it. Space goes on"))
                .await?;
        }
        loop {
            if self.waiting.is_empty() && !self.ended {
                match self.reel.next().await? {
                    Some(events) => self.waiting.extend(events),
                    None => {
                        self.ended = true;
                        self.at = self.at.max(self.tape.length);
                        self.say("the end. q quits, 0 plays again").await?;
                    }
                }
                continue;
            }
            let due = self.due();
            tokio::select! {
                biased;
                typed = keyboard.keys.recv() => {
                    let Some(typed) = typed else { return Ok(()) };
                    for key in keys(&typed) {
                        if let Next::Quit = self.press(key).await? {
                            return Ok(());
                        }
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.step().await?,
            }
        }
    }

    /// When the next event is due; never while it stands still.
    fn due(&self) -> Option<Instant> {
        let (millis, ..) = self.waiting.front().filter(|_| !self.pace.paused && self.asks.is_none())?;
        let pause = Duration::from_millis(millis.saturating_sub(self.at));
        let pause = if self.pace.skips { pause.min(LONGEST_PAUSE) } else { pause };
        Some(self.since + self.speed.paced(pause))
    }

    async fn step(&mut self) -> Result<(), Fault> {
        let Some(event) = self.waiting.pop_front() else { return Ok(()) };
        if self.covered {
            self.uncover().await?;
        }
        (self.at, self.since) = (event.0.max(self.at), Instant::now());
        self.stage.show(&event);
        if event.1 == 'o' {
            let drawn = self.drawing.of_text(&event.2);
            self.out.bytes(drawn.into_bytes()).await?;
        }
        Ok(())
    }

    async fn uncover(&mut self) -> Result<(), Fault> {
        self.covered = false;
        let picture = self.drawing.of_text(&self.stage.picture());
        self.out.bytes(picture.into_bytes()).await
    }

    async fn press(&mut self, key: Key) -> Result<Next, Fault> {
        if let Some((asks, text)) = self.asks.take() {
            return self.typed(asks, text, key).await.map(|()| Next::Go);
        }
        match key {
            Key::Char('q') | Key::End => return Ok(Next::Quit),
            Key::Char(' ') => {
                self.pace.paused = !self.pace.paused;
                self.since = Instant::now();
                if self.pace.paused { self.say("").await? } else { self.uncover().await? }
            }
            Key::Char('.') => {
                self.pace.paused = true;
                self.step().await?;
                self.say("").await?;
            }
            Key::Char('+' | '=') => self.hurry(2.0).await?,
            Key::Char('-' | '_') => self.hurry(0.5).await?,
            Key::Char('i') => {
                self.pace.skips = !self.pace.skips;
                self.say("").await?;
            }
            Key::Char('0') => self.seek(0, "").await?,
            Key::Right => self.seek(self.at.saturating_add(10_000), "").await?,
            Key::Left => self.seek(self.at.saturating_sub(10_000), "").await?,
            Key::PageDown => self.seek(self.at.saturating_add(60_000), "").await?,
            Key::PageUp => self.seek(self.at.saturating_sub(60_000), "").await?,
            Key::Char(']') => self.mark(true).await?,
            Key::Char('[') => self.mark(false).await?,
            Key::Char('t' | 'g') => self.ask(Asks::Time, String::new()).await?,
            Key::Char('/') => self.ask(Asks::Text, String::new()).await?,
            Key::Char('n') => self.find(true).await?,
            Key::Char('N' | 'p') => self.find(false).await?,
            _ => self.say(HELP).await?,
        }
        Ok(Next::Go)
    }

    async fn typed(&mut self, asks: Asks, mut text: String, key: Key) -> Result<(), Fault> {
        match key {
            Key::Char(c) => text.push(c),
            Key::Backspace => drop(text.pop()),
            Key::Enter => return self.asked(asks, &text).await,
            _ => return self.say("").await,
        }
        self.ask(asks, text).await
    }

    async fn ask(&mut self, asks: Asks, text: String) -> Result<(), Fault> {
        let what = match asks {
            Asks::Time => "go to (1h20m, 12:30, 90s): ",
            Asks::Text => "/",
        };
        let shown = format!("{what}{text}");
        self.asks = Some((asks, text));
        self.say(&shown).await
    }

    async fn asked(&mut self, asks: Asks, text: &str) -> Result<(), Fault> {
        match asks {
            Asks::Time => match time(text) {
                Some(at) => self.seek(at, "").await,
                None => self.say("that is no time: 1h20m, 12:30 or 90s").await,
            },
            Asks::Text if text.is_empty() => self.find(true).await,
            Asks::Text => match pattern(text, false) {
                Ok(pattern) => {
                    self.tape.pattern = Some(pattern);
                    self.find(true).await
                }
                Err(fault) => self.say(&fault.says).await,
            },
        }
    }

    async fn hurry(&mut self, times: f64) -> Result<(), Fault> {
        self.speed = self.speed.times(times);
        self.since = Instant::now();
        self.say("").await
    }

    /// Shows the screen as it stood at `at`, and stops there if something is said about it.
    async fn seek(&mut self, at: u64, about: &str) -> Result<(), Fault> {
        let at = at.min(self.tape.length);
        let (reel, stage) = reel(self.shelf, self.tape.id, at).await?;
        (self.reel, self.stage, self.at, self.since) = (reel, stage, at, Instant::now());
        self.waiting.clear();
        self.ended = false;
        self.pace.paused |= !about.is_empty();
        if let Some(events) = self.reel.next().await? {
            self.waiting.extend(events);
        }
        // The picture comes first; of a tape played from its start there is none.
        self.uncover().await?;
        if at > 0 && self.waiting.front().is_some_and(|(millis, ..)| *millis <= at) {
            self.step().await?;
        }
        self.at = at;
        self.say(about).await
    }

    async fn mark(&mut self, ahead: bool) -> Result<(), Fault> {
        if self.tape.markers.is_none() {
            self.say("looking for commands and file operations …").await?;
            self.tape.markers = Some(markers(self.shelf, self.tape.id).await?);
        }
        let (at, all) = (self.at, self.tape.markers.as_deref().unwrap_or_default());
        let found = if ahead {
            all.iter().find(|marker| marker.millis > at)
        } else {
            all.iter().rev().find(|marker| marker.millis < at)
        };
        match found.cloned() {
            Some(marker) => self.seek(marker.millis, &format!("{}: {}", marker.kind, marker.text)).await,
            None => self.say(if ahead { "no marker after this" } else { "no marker before this" }).await,
        }
    }

    async fn find(&mut self, ahead: bool) -> Result<(), Fault> {
        let Some(pattern) = self.tape.pattern.clone() else {
            return self.say("nothing to look for yet: type /").await;
        };
        self.say("searching …").await?;
        let (at, mut all) = (self.at, lines(self.shelf, self.tape.id, pattern).await?);
        let mut last = None;
        while let Some(hits) = all.next().await? {
            for line in hits {
                // The moment after, so that the line is there.
                let place = line.millis + 1;
                if ahead && place > at {
                    return self.seek(place, &line.text).await;
                }
                if place < at {
                    last = Some((place, line.text));
                }
            }
        }
        match last.filter(|_| !ahead) {
            Some((place, text)) => self.seek(place, &text).await,
            None => self.say("not found").await,
        }
    }

    /// Covers the last line with how it stands, and what there is to say.
    async fn say(&mut self, what: &str) -> Result<(), Fault> {
        let held = self.pace.paused || self.ended;
        let mut line = format!(
            " {} {}/{}  {}x{}  {}",
            if held { "||" } else { ">" },
            place(self.at),
            place(self.tape.length),
            self.speed,
            if self.pace.skips { "" } else { "  real time" },
            plain(if what.is_empty() && held { HELP } else { what }),
        );
        if line.chars().count() > self.size.0.into() {
            line = line.chars().take(self.size.0.saturating_sub(1).into()).collect();
        }
        let covers =
            format!("{}\u{1b}[{};1H\u{1b}[7m{line}\u{1b}[K\u{1b}[m", Drawing::default().tidy(), self.size.1);
        self.covered = true;
        self.out.bytes(covers.into_bytes()).await
    }
}

/// The events from `from` on, and the stage that they are played on.
async fn reel(shelf: Shelf<'_>, id: SessionId, from: u64) -> Result<(Steps<Vec<CastEvent>>, Stage), Fault> {
    let playback = shelf.reading(move |tapes: &Tapes| Playback::from(tapes, id, from)).await?;
    let stage = Stage::new(playback.cast());
    Ok((events(playback), stage))
}

async fn markers(shelf: Shelf<'_>, id: SessionId) -> Result<Vec<Marker>, Fault> {
    let mut frames = shelf.reading(move |tapes| tapes.frames(id, 0)).await?;
    let mut markers = Markers::default();
    let mut steps = Steps::of(move || {
        let Some(records) = frames.next_frame()? else { return Ok(None) };
        let mut found = Vec::new();
        records.iter().for_each(|record| markers.feed(record, &mut found));
        Ok(Some(found))
    });
    let mut all = Vec::new();
    while let Some(found) = steps.next().await? {
        all.extend(found);
        if all.len() > MOST_MARKERS {
            break;
        }
    }
    Ok(all)
}

/// `1h20m`, `12:30`, `1:02:03`, or seconds.
fn time(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Ok(Offset(millis)) = text.parse() {
        return Some(millis);
    }
    let parts: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
    let parts = parts.filter(|parts| parts.len() <= 3)?;
    let seconds = parts.iter().try_fold(0u64, |sum, part| sum.checked_mul(60)?.checked_add(*part))?;
    seconds.checked_mul(1000)
}

/// Pauses of a recording are not waited for longer than this, unless asked for.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const MOST_MARKERS: usize = 100_000;
const HELP: &str = "space pause  +- speed  <-/-> 10s  [ ] command  / find  n N again  t time  i idle  q quit";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_typed_as_people_write_it() {
        assert_eq!(time("12:30"), Some(750_000));
        assert_eq!(time("1:02:03"), Some(3_723_000));
        assert_eq!(time("1h20m"), Some(4_800_000));
        assert_eq!(time(" 90 "), Some(90_000));
        for wrong in ["", "soon", "1:2:3:4", "-5", "99999999999999999999", "99999999999999999:0:0"] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }
}
