//! The transcript: what a person saw, as lines of text.
//!
//! A terminal's bytes go through an emulator. A line of its screen is told once it is done with: scrolled away,
//! overwritten by something else, or still there at the end. What stood for less than [`SETTLED`] and was then
//! overwritten nobody read, and is not told; what grew (typing, a progress bar) is told as it was last. Output without
//! a terminal is told line by line. Lines may hold control characters that a program without a terminal sent: whoever
//! shows them makes them visible.

mod roll;

use std::borrow::Cow;
use std::collections::BTreeMap;

use avt::observer::{Observation, Observer};
use avt::parser::{Function, State};
use avt::{Operation, Parser, ScreenKind, Terminal};

use super::cast::take_text;
use super::format::{Note, Record, What};
use super::screen::{has_room, terminal, within};
use super::tapes::TapeError;
use super::told::Frames;
use roll::{Modes, Roll};

#[cfg(test)]
pub(super) use roll::is_narrow;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The screen, or standard output.
    Output,
    /// Standard error of a command without a terminal.
    Stderr,
    /// What a command without a terminal read.
    Input,
    /// What was asked for: a command, a shell, a subsystem.
    Command,
    /// An operation on a file.
    Operation,
}

/// A line of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was first seen, in milliseconds since the session started.
    pub millis: u64,
    /// Channel number.
    pub channel: u32,
    /// Where it comes from.
    pub source: Source,
    /// The text.
    pub text: String,
}

/// Makes lines of records.
#[derive(Default)]
pub struct Transcript {
    screens: BTreeMap<u32, Screen>,
    streams: BTreeMap<(u32, u8), Stream>,
    /// An emulator draws everything: what the short ways are held against.
    pub(super) plodding: bool,
}

/// A line that is not done with: since when, and what it says.
type Row = (u64, String);

struct Screen {
    parser: Parser,
    terminal: Terminal,
    evicted: Evicted,
    modes: Modes,
    /// In place of the terminal, while nothing but plain lines is printed.
    roll: Option<Roll>,
    /// Bytes that the terminal draws before a roll is tried again.
    shy: usize,
    /// The terminal draws everything.
    plodding: bool,
    halves: Vec<u8>,
    /// What is drawn later: few bytes may fill many screens.
    waits: String,
    primary: Vec<Row>,
    alternate: Vec<Row>,
    /// When the screen was last looked at, and when it last changed.
    looked: u64,
    changed: u64,
}

#[derive(Default)]
struct Stream {
    since: u64,
    line: Vec<u8>,
}

impl Transcript {
    /// Takes the next record; lines that are done with go to `done`.
    pub fn feed(&mut self, record: &Record, done: &mut Vec<Line>) {
        self.begin(record, done);
        while self.goes_on(done) {}
    }

    /// Goes on with what few bytes of the last record made of much; whether there was any.
    fn goes_on(&mut self, done: &mut Vec<Line>) -> bool {
        let waits = self.screens.iter_mut().find(|(_, screen)| !screen.waits.is_empty());
        let Some((channel, screen)) = waits else { return false };
        let text = std::mem::take(&mut screen.waits);
        screen.shown(&text, (screen.changed, *channel), done);
        true
    }

    /// Takes the next record, or as much of it as fits in memory: the rest is for [`Self::goes_on`], before anything else.
    fn begin(&mut self, record: &Record, done: &mut Vec<Line>) {
        let channel = record.channel;
        if let What::Note(_, Note::Pty { cols, rows, .. } | Note::WindowChange { cols, rows, .. }) =
            &record.what
        {
            let others = self.screens.iter().filter(|(number, _)| **number != channel);
            if !has_room(others.map(|(_, screen)| &screen.terminal), (*cols, *rows)) {
                // What comes is told as it is, line by line.
                return self.close(channel, done);
            }
        }
        match &record.what {
            What::Note(_, Note::Pty { cols, rows, .. }) => {
                if let Some(terminal) = terminal(*cols, *rows) {
                    let screen = Screen { plodding: self.plodding, ..Screen::new(terminal) };
                    self.screens.insert(channel, screen);
                }
            }
            What::Note(_, Note::WindowChange { cols, rows, .. }) => {
                if let Some(screen) = self.screens.get_mut(&channel) {
                    screen.resize(*cols, *rows);
                }
            }
            What::Note(_, Note::Exec(command)) => done.push(line(record, Source::Command, command)),
            What::Note(_, Note::Shell) => done.push(line(record, Source::Command, "(shell)")),
            What::Note(_, Note::Subsystem(name)) => {
                done.push(line(record, Source::Command, &format!("(subsystem {name})")));
            }
            What::Operation(operation) => done.push(line(record, Source::Operation, &operation.line())),
            What::Output | What::Stderr if self.screens.contains_key(&channel) => {
                if let Some(screen) = self.screens.get_mut(&channel) {
                    screen.draw(record, done);
                }
            }
            What::Output => self.stream(record, Source::Output, done),
            What::Stderr => self.stream(record, Source::Stderr, done),
            // What was typed at a screen is what the screen shows.
            What::Input if self.screens.contains_key(&channel) => {}
            What::Input => self.stream(record, Source::Input, done),
            What::Closed(_) => self.close(channel, done),
            _ => {}
        }
    }

    /// The tape is over: what is still on the screens is told.
    pub fn finish(mut self, done: &mut Vec<Line>) {
        let mut channels: Vec<u32> = self.screens.keys().copied().collect();
        channels.extend(self.streams.keys().map(|(channel, _)| *channel));
        for channel in channels {
            self.close(channel, done);
        }
    }

    #[cfg(test)]
    pub(super) fn rolls(&self, channel: u32) -> bool {
        self.screens.get(&channel).is_some_and(|screen| screen.roll.is_some())
    }

    fn close(&mut self, channel: u32, done: &mut Vec<Line>) {
        if let Some(screen) = self.screens.remove(&channel) {
            screen.finish(channel, done);
        }
        for source in [Source::Output, Source::Stderr, Source::Input] {
            if let Some(stream) = self.streams.remove(&(channel, source as u8))
                && !stream.line.is_empty()
            {
                done.push(stream.line(channel, source));
            }
        }
    }

    fn stream(&mut self, record: &Record, source: Source, done: &mut Vec<Line>) {
        let stream = self.streams.entry((record.channel, source as u8)).or_default();
        for piece in record.payload.split_inclusive(|byte| *byte == b'\n') {
            if stream.line.is_empty() {
                stream.since = record.millis;
            }
            stream.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || stream.line.len() > LONGEST_LINE {
                done.push(std::mem::take(stream).line(record.channel, source));
            }
        }
    }
}

/// The lines of a tape, a frame's at a time.
pub struct Lines {
    frames: Frames,
    /// Of the last frame, those that nobody looked at yet.
    records: std::vec::IntoIter<Record>,
    transcript: Option<Transcript>,
    /// Bytes of payload that were read so far.
    pub read: u64,
}

impl Lines {
    /// The lines of what `frames` hold.
    pub fn of(frames: Frames) -> Self {
        let (records, transcript) = (Vec::new().into_iter(), Some(Transcript::default()));
        Self { frames, records, transcript, read: 0 }
    }

    /// Those that are done with after the next frame, or a part of it that tells much; none at the end. Reads files.
    ///
    /// # Errors
    /// [`TapeError::Damaged`].
    pub fn more(&mut self) -> Result<Option<Vec<Line>>, TapeError> {
        let mut done = Vec::new();
        let Some(transcript) = &mut self.transcript else { return Ok(None) };
        if self.records.as_slice().is_empty() && !transcript.goes_on(&mut done) {
            match self.frames.next_frame()? {
                Some(records) => self.records = records.into_iter(),
                None => {
                    if let Some(transcript) = self.transcript.take() {
                        transcript.finish(&mut done);
                    }
                    return Ok(Some(done));
                }
            }
        }
        let (mut size, mut seen) = (0, 0);
        loop {
            let new = done.get(seen..).unwrap_or_default();
            size += new.iter().map(|line| line.text.len() + size_of::<Line>()).sum::<usize>();
            seen = done.len();
            if size >= ENOUGH {
                return Ok(Some(done));
            }
            if transcript.goes_on(&mut done) {
                continue;
            }
            let Some(record) = self.records.next() else { return Ok(Some(done)) };
            self.read += record.payload.len() as u64;
            transcript.begin(&record, &mut done);
        }
    }
}

impl Stream {
    fn line(self, channel: u32, source: Source) -> Line {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end_matches(['\n', '\r']).to_owned();
        Line { millis: self.since, channel, source, text }
    }
}

fn line(record: &Record, source: Source, text: &str) -> Line {
    Line { millis: record.millis, channel: record.channel, source, text: text.to_owned() }
}

impl Screen {
    fn new(terminal: Terminal) -> Self {
        Self {
            parser: Parser::new(),
            terminal,
            evicted: Evicted::default(),
            modes: Modes::default(),
            roll: None,
            shy: 0,
            plodding: false,
            halves: Vec::new(),
            waits: String::new(),
            primary: Vec::new(),
            alternate: Vec::new(),
            looked: 0,
            changed: 0,
        }
    }

    fn resize(&mut self, cols: u32, rows: u32) {
        let (cols, rows) = within(cols, rows);
        self.unroll();
        self.terminal.resize_with(cols, rows, (&mut self.evicted, &mut self.modes));
    }

    fn draw(&mut self, record: &Record, done: &mut Vec<Line>) {
        let stood = record.millis.saturating_sub(self.changed) >= SETTLED;
        if stood || record.millis.saturating_sub(self.looked) >= LONGEST_UNSEEN {
            self.look(record.channel, done);
            self.looked = record.millis;
        }
        self.halves.extend_from_slice(&record.payload);
        let text = take_text(&mut self.halves);
        self.changed = record.millis;
        self.shown(&text, (record.millis, record.channel), done);
    }

    fn shown(&mut self, text: &str, (millis, channel): (u64, u32), done: &mut Vec<Line>) {
        let alternate = self.alternate();
        for text in self.show(text) {
            let since = self.was_there(&text).unwrap_or(millis);
            if !text.is_empty() {
                done.push(Line { millis: since, channel, source: Source::Output, text });
            }
        }
        if alternate && !self.alternate() {
            // What filled the whole screen is gone at once.
            let rows = std::mem::take(&mut self.alternate);
            done.extend(rows.into_iter().map(|row| told(row, channel)));
        }
    }

    /// Shows `text`, as far as that is not too much at once; returns the lines that scrolled away.
    fn show(&mut self, text: &str) -> Vec<String> {
        let mut gone = Vec::new();
        let cut = self.roll.as_mut().map(|roll| std::mem::take(&mut roll.cut)).unwrap_or_default();
        let whole = if cut.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(cut + text) };
        let mut rest: &str = &whole;
        while !rest.is_empty() {
            if let Some(roll) = &mut self.roll {
                let taken = roll.take(rest, &mut gone);
                rest = rest.get(taken..).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                self.unroll();
            }
            let (drawn, more) = rest.split_at(self.drawn_first(rest));
            let (lines, taken) = self.emulate(drawn);
            self.shy = self.shy.saturating_sub(taken);
            gone.extend(lines);
            if taken < drawn.len() {
                self.waits = rest.get(taken..).unwrap_or_default().to_owned();
                break;
            }
            rest = more;
            if !rest.is_empty() && self.parser.state == State::Ground {
                self.roll = Roll::begin(&self.terminal, &self.modes);
                self.shy = SHY;
            }
        }
        gone
    }

    /// How much of a text the terminal must draw before a roll may be tried: up to the end of a line, or all.
    fn drawn_first(&self, text: &str) -> usize {
        if text.len() < self.shy + WORTH_A_ROLL || self.plodding {
            return text.len();
        }
        let after = text.as_bytes().get(self.shy..).unwrap_or_default();
        after.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| self.shy + at + 1)
    }

    /// Draws `text`, or its beginning if that alone fills many screens. Returns the lines that scrolled away, and how much
    /// was drawn, in bytes.
    fn emulate(&mut self, text: &str) -> (Vec<String>, usize) {
        let (parser, size) = (&mut self.parser, self.terminal.size());
        let (mut chars, mut filled, mut taken) = (text.chars(), 0, 0);
        let functions = std::iter::from_fn(|| {
            while filled < MOST_FILLED {
                let c = chars.next()?;
                taken += c.len_utf8();
                if let Some(function) = parser.feed(c) {
                    filled += fills(&function, size);
                    return Some(function);
                }
            }
            None
        });
        let (gone, _) = self.terminal.execute_with(functions, (&mut self.evicted, &mut self.modes));
        (gone, taken)
    }

    /// Goes on with the terminal: it is drawn as the roll stands.
    fn unroll(&mut self) {
        let Some(roll) = self.roll.take() else { return };
        self.shy = if roll.took < SHY { 2 * SHY } else { 0 };
        // What the terminal showed when the roll began has left the screen, or is drawn again.
        let (_, rows) = self.terminal.size();
        let (pen, lines) = roll.drawn();
        self.emulate(&pen);
        let blank = std::iter::once(Function::Cr).chain(std::iter::repeat_n(Function::Lf, rows));
        self.terminal.execute(blank);
        // Of this, only what is the start of a line on the screen left it.
        self.emulate(&lines);
        self.emulate(&roll.cut);
    }

    /// Since when a line that scrolls away now was on the screen; it is told, so no longer waits to be.
    fn was_there(&mut self, text: &str) -> Option<u64> {
        let found =
            self.primary.iter().position(|(_, row)| !row.is_empty() && text.starts_with(row.as_str()))?;
        Some(self.primary.remove(found).0)
    }

    fn alternate(&self) -> bool {
        self.terminal.active_screen_kind() == ScreenKind::Alternate
    }

    /// Compares the screen with how it was: what is no longer there is told.
    fn look(&mut self, channel: u32, done: &mut Vec<Line>) {
        let now = self.rows();
        let alternate = self.alternate();
        let before = if alternate { &mut self.alternate } else { &mut self.primary };
        let mut rows: Vec<Row> = now.into_iter().map(|text| (self.changed, text)).collect();
        let mut taken = vec![false; rows.len()];
        for (index, (since, text)) in std::mem::take(before).into_iter().enumerate() {
            let same = |place: usize, rows: &[Row], taken: &[bool]| {
                !taken.get(place).copied().unwrap_or(true)
                    && rows.get(place).is_some_and(|(_, row)| row.starts_with(text.as_str()))
            };
            let place = if same(index, &rows, &taken) {
                Some(index)
            } else {
                (0..rows.len()).find(|place| same(*place, &rows, &taken))
            };
            match place {
                Some(place) => {
                    if let (Some(row), Some(taken)) = (rows.get_mut(place), taken.get_mut(place)) {
                        row.0 = since;
                        *taken = true;
                    }
                }
                None => done.push(told((since, text), channel)),
            }
        }
        *before = rows;
    }

    /// The lines on the screen, those that were wrapped whole, without the empty ones.
    fn rows(&self) -> Vec<String> {
        if let Some(roll) = &self.roll {
            return roll.seen().filter(|text| !text.is_empty()).map(str::to_owned).collect();
        }
        let mut rows = Vec::new();
        let mut text = String::new();
        for line in self.terminal.screen().visible_lines() {
            text.extend(line.chars());
            if !line.is_wrapped() {
                let trimmed = text.trim_end();
                if !trimmed.is_empty() {
                    rows.push(trimmed.to_owned());
                }
                text.clear();
            }
        }
        if !text.trim_end().is_empty() {
            rows.push(text.trim_end().to_owned());
        }
        rows
    }

    fn finish(mut self, channel: u32, done: &mut Vec<Line>) {
        self.look(channel, done);
        self.unroll();
        let rows = std::mem::take(&mut self.alternate);
        done.extend(rows.into_iter().map(|row| told(row, channel)));
        // The rest of the primary screen, with the start of a line of which only the end is still there.
        let evicted = std::mem::take(&mut self.evicted);
        for text in evicted.finish(&self.terminal) {
            let since = self.was_there(&text).unwrap_or(self.changed);
            if !text.is_empty() {
                done.push(Line { millis: since, channel, source: Source::Output, text });
            }
        }
    }
}

/// Cells that a function fills beyond those that its own bytes pay for. No line can leave the screen that nobody filled.
fn fills(function: &Function, (cols, rows): (usize, usize)) -> usize {
    match function {
        Function::Rep(times) => usize::from(*times),
        Function::Decaln | Function::Ris => cols * rows,
        Function::Su(lines) | Function::Sd(lines) | Function::Il(lines) | Function::Dl(lines) => {
            usize::from(*lines)
        }
        _ => 0,
    }
}

/// The lines that leave the screen at its top, those that were wrapped whole: as far as memory goes, for a program may
/// print for hours without a line end.
#[derive(Default)]
struct Evicted {
    begun: String,
    whole: Vec<String>,
}

impl Evicted {
    fn take(&mut self, line: &avt::Line) {
        self.begun.extend(line.chars());
        if !line.is_wrapped() || self.begun.len() > LONGEST_LINE {
            self.whole.push(self.begun.trim_end().to_owned());
            self.begun.clear();
        }
    }

    /// What is left on the primary screen, without the empty lines at its end.
    fn rest(&mut self, terminal: &Terminal) {
        let before = self.whole.len();
        terminal.primary_screen().all_lines().for_each(|line| self.take(line));
        while self.whole.len() > before && self.whole.last().is_some_and(String::is_empty) {
            self.whole.pop();
        }
    }

    fn finish(mut self, terminal: &Terminal) -> Vec<String> {
        self.rest(terminal);
        self.whole
    }
}

impl Observer for Evicted {
    type Output = Vec<String>;

    fn before(&mut self, context: &mut Observation<'_>, operation: &Operation) {
        // A reset takes all of it away.
        if matches!(operation, Operation::Function(Function::Ris)) {
            self.rest(context.terminal());
        }
    }

    fn evicted(&mut self, _: &mut Observation<'_>, line: &avt::Line) {
        self.take(line);
    }

    fn end(&mut self, _: &mut Observation<'_>) -> Vec<String> {
        std::mem::take(&mut self.whole)
    }
}

fn told((millis, text): Row, channel: u32) -> Line {
    Line { millis, channel, source: Source::Output, text }
}

/// Milliseconds that something must stand on a screen to have been seen.
const SETTLED: u64 = 300;
/// A screen that never stands still is looked at this often, in milliseconds.
const LONGEST_UNSEEN: u64 = 1000;
const LONGEST_LINE: usize = 64 << 10;
/// Bytes of lines that are told at once, and cells that are filled at once by functions that fill many.
const ENOUGH: usize = 1 << 20;
const MOST_FILLED: usize = if cfg!(test) { 4096 } else { 1 << 20 };
/// A roll is begun for this many bytes at least, and after one that took fewer than [`SHY`] not at once again: to begin and to
/// end one costs as much as drawing a screen.
const WORTH_A_ROLL: usize = if cfg!(test) { 64 } else { 1024 };
const SHY: usize = if cfg!(test) { 16 } else { 4096 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Direction;

    fn pty() -> Record {
        let note = Note::pty(40, 4);
        Record { millis: 0, channel: 1, what: What::Note(Direction::ToInstance, note), payload: Vec::new() }
    }

    fn output(millis: u64, text: &str) -> Record {
        Record { millis, channel: 1, what: What::Output, payload: text.as_bytes().to_vec() }
    }

    fn told(records: &[Record]) -> Vec<(u64, String)> {
        let (mut transcript, mut done) = (Transcript::default(), Vec::new());
        records.iter().for_each(|record| transcript.feed(record, &mut done));
        transcript.finish(&mut done);
        done.into_iter().map(|line| (line.millis, line.text)).collect()
    }

    fn texts(records: &[Record]) -> Vec<String> {
        told(records).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn what_is_typed_letter_by_letter_is_one_line_at_the_time_of_its_first() {
        let typed = [pty(), output(1000, "$ l"), output(2000, "s"), output(3000, "\r\na b\r\n$ ")];
        assert_eq!(told(&typed), [(1000, "$ ls".to_owned()), (3000, "a b".into()), (3000, "$".into())]);
    }

    #[test]
    fn output_without_a_line_end_is_told_in_pieces_and_held_in_little_memory() {
        let (mut transcript, mut done) = (Transcript::default(), Vec::new());
        transcript.feed(&pty(), &mut done);
        for n in 0..200 {
            transcript.feed(&output(n, &"x".repeat(10_000)), &mut done);
            assert!(transcript.screens[&1].evicted.begun.len() <= LONGEST_LINE + 40);
        }
        transcript.finish(&mut done);
        assert_eq!(done.iter().map(|line| line.text.len()).sum::<usize>(), 2_000_000);
    }

    #[test]
    fn a_screen_that_is_not_drawn_is_told_line_by_line() {
        let (mut transcript, mut done) = (Transcript::default(), Vec::new());
        let mut pty = pty();
        for channel in 1..=5 {
            pty.channel = channel;
            let note = Note::pty(1000, 1000);
            pty.what = What::Note(Direction::ToInstance, note);
            transcript.feed(&pty, &mut done);
        }
        transcript.feed(&Record { channel: 5, ..output(1, "hello\r\n") }, &mut done);
        assert_eq!(done.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["hello"]);
    }

    #[test]
    fn lines_that_scrolled_away_are_told_once_and_in_order() {
        let mut records = vec![pty()];
        records.extend((0..9).map(|n| output(n * 1000, &format!("line {n}\r\n"))));
        assert_eq!(texts(&records), (0..9).map(|n| format!("line {n}")).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_seen_and_then_overwritten_is_told_and_a_flicker_is_not() {
        let seen = [pty(), output(0, "secret"), output(2000, "\r\u{1b}[Kharmless\r\n")];
        assert_eq!(texts(&seen), ["secret", "harmless"]);
        let flicker = [pty(), output(0, "secret"), output(10, "\r\u{1b}[Kharmless\r\n")];
        assert_eq!(texts(&flicker), ["harmless"]);
    }

    #[test]
    fn a_full_screen_program_is_told_and_what_was_below_it_stays() {
        let records = [
            pty(),
            output(0, "$ vi\r\n"),
            output(1000, "\u{1b}[?1049h\u{1b}[Hinside vi"),
            output(3000, "\u{1b}[?1049l$ exit"),
        ];
        assert_eq!(texts(&records), ["inside vi", "$ vi", "$ exit"]);
    }

    #[test]
    fn output_without_a_terminal_is_told_line_by_line() {
        let records = [output(5, "one\ntw"), output(9, "o\n\u{1b}[31mred")];
        assert_eq!(told(&records), [(5, "one".to_owned()), (5, "two".into()), (9, "\u{1b}[31mred".into())]);
    }
}
