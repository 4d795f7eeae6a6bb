//! The transcript: what a person saw, as lines of text.
//!
//! A terminal's bytes go through an emulator. A line of its screen is told once it is done with: scrolled away,
//! overwritten by something else, or still there at the end. What stood for less than [`SETTLED`] and was then
//! overwritten nobody read, and is not told; what grew (typing, a progress bar) is told as it was last. Output without
//! a terminal is told line by line. Lines may hold control characters that a program without a terminal sent: whoever
//! shows them makes them visible.

mod roll;
mod screen;

use std::collections::BTreeMap;

use super::format::{Note, Record, What};
use super::screen::{has_room, terminal};
use super::tapes::TapeError;
use super::told::Frames;
use screen::Screen;

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
                    self.screens.insert(channel, Screen::new(terminal, self.plodding));
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
        self.screens.get(&channel).is_some_and(|screen| screen.rolls())
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

const LONGEST_LINE: usize = 64 << 10;
/// Bytes of lines that are told at once.
const ENOUGH: usize = 1 << 20;

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
            assert!(transcript.screens[&1].begun() <= LONGEST_LINE + 40);
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
