//! One screen of a transcript: a terminal that is drawn on, or a roll of plain lines, and which of their lines are done with.

use std::borrow::Cow;

use avt::observer::{Observation, Observer};
use avt::parser::{Function, State};
use avt::{Operation, Parser, ScreenKind, Terminal};

use super::roll::{Modes, Roll};
use super::{LONGEST_LINE, Line, Source};
use crate::recording::cast::take_text;
use crate::recording::format::Record;
use crate::recording::screen::within;

/// A line that is not done with: since when, and what it says.
type Row = (u64, String);

/// What is on one screen, and what of it is told already.
pub(super) struct Screen {
    parser: Parser,
    pub(super) terminal: Terminal,
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
    pub(super) waits: String,
    primary: Vec<Row>,
    alternate: Vec<Row>,
    /// When the screen was last looked at, and when it last changed.
    looked: u64,
    pub(super) changed: u64,
}

impl Screen {
    pub(super) fn new(terminal: Terminal, plodding: bool) -> Self {
        Self {
            parser: Parser::new(),
            terminal,
            evicted: Evicted::default(),
            modes: Modes::default(),
            roll: None,
            shy: 0,
            plodding,
            halves: Vec::new(),
            waits: String::new(),
            primary: Vec::new(),
            alternate: Vec::new(),
            looked: 0,
            changed: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn rolls(&self) -> bool {
        self.roll.is_some()
    }

    /// Bytes of a line that is not whole and has begun to leave the screen.
    #[cfg(test)]
    pub(super) fn begun(&self) -> usize {
        self.evicted.begun.len()
    }

    pub(super) fn resize(&mut self, cols: u32, rows: u32) {
        let (cols, rows) = within(cols, rows);
        self.unroll();
        self.terminal.resize_with(cols, rows, (&mut self.evicted, &mut self.modes));
    }

    pub(super) fn draw(&mut self, record: &Record, done: &mut Vec<Line>) {
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

    pub(super) fn shown(&mut self, text: &str, (millis, channel): (u64, u32), done: &mut Vec<Line>) {
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

    pub(super) fn finish(mut self, channel: u32, done: &mut Vec<Line>) {
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
/// Cells that are filled at once by functions that fill many.
const MOST_FILLED: usize = if cfg!(test) { 4096 } else { 1 << 20 };
/// A roll is begun for this many bytes at least, and after one that took fewer than [`SHY`] not at once again: to begin and to
/// end one costs as much as drawing a screen.
const WORTH_A_ROLL: usize = if cfg!(test) { 64 } else { 1024 };
const SHY: usize = if cfg!(test) { 16 } else { 4096 };
