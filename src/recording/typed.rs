//! What is typed at a terminal, and whether the terminal showed it.
//!
//! The bastion does not see whether the instance has echo off, so a line that was typed counts as shown only if each of
//! its characters came back, in order, as the very next thing that was printed, before the line was over. What did not
//! come back (a password, or one shown as stars), came back late or among other output is never handed out, and a whole
//! line with it. So nothing is kept as typed that does not lie on the tape as output already.

use std::collections::VecDeque;

#[derive(Default)]
pub(super) struct Typed {
    lines: VecDeque<Line>,
    input: Keys,
    output: Keys,
    shown: Vec<Vec<u8>>,
    held: usize,
    /// Bytes of lines that did not come back; keys that type nothing do not count.
    pub(super) unseen: u64,
}

/// What was typed up to the end of a line.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// Of those, what has not come back yet.
    expected: VecDeque<u8>,
    typed: u64,
    broken: bool,
    ended: bool,
}

impl Typed {
    /// Bytes from the user.
    pub(super) fn input(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let key = self.input.next(*byte);
            if self.lines.back().is_none_or(|line| line.ended) {
                self.lines.push_back(Line::default());
            }
            let (crowded, full) = (self.lines.len() > MOST_LINES, self.held >= MOST_HELD);
            let Some(line) = self.lines.back_mut() else { return };
            // Some terminals type letters as sequences: those come back otherwise, if at all. Whole files may come this
            // way too: they are counted only.
            if full || line.bytes.len() >= LONGEST || matches!(key, Key::Unknown) {
                self.held -= line.give_up();
            }
            if !line.broken {
                line.bytes.push(*byte);
                self.held += 1;
            }
            match key {
                Key::Printed if line.broken => line.typed += 1,
                Key::Printed => {
                    line.typed += 1;
                    line.expected.push_back(*byte);
                }
                Key::Control => {
                    line.typed += 1;
                    line.ended = matches!(*byte, b'\r' | b'\n' | 3 | 4 | 26);
                }
                Key::Sequence | Key::Unknown => {}
            }
            if let Some(first) = self.lines.front_mut().filter(|_| crowded) {
                self.held -= first.give_up();
            }
            self.settle();
        }
    }

    /// Bytes from the instance. Costs nothing while nothing waits for its echo.
    pub(super) fn output(&mut self, bytes: &[u8]) {
        if self.lines.is_empty() {
            self.output = Keys::default();
            return;
        }
        for byte in bytes {
            let key = self.output.next(*byte);
            let Some(line) = self.lines.front_mut() else { break };
            match key {
                Key::Printed if line.expected.is_empty() => {}
                Key::Printed if line.expected.front() == Some(byte) => drop(line.expected.pop_front()),
                Key::Printed => self.held -= line.give_up(),
                Key::Control if *byte == b'\n' && !line.expected.is_empty() => self.held -= line.give_up(),
                _ => {}
            }
            self.settle();
        }
    }

    /// The lines that came back since the last call, oldest first.
    pub(super) fn take_shown(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.shown)
    }

    fn settle(&mut self) {
        while self.lines.front().is_some_and(|line| line.ended && line.expected.is_empty()) {
            let Some(line) = self.lines.pop_front() else { break };
            self.held -= line.bytes.len();
            match line.broken {
                true => self.unseen += line.typed,
                // A line without a character has shown nothing about the echo.
                false if line.bytes.iter().any(|byte| *byte >= b' ') => self.shown.push(line.bytes),
                false => {}
            }
        }
        // A file that is sent has no line ends: what was given up counts at once.
        if let Some(line) = self.lines.back_mut().filter(|line| line.broken) {
            self.unseen += std::mem::take(&mut line.typed);
        }
    }
}

impl Line {
    /// Keeps nothing of it; returns how much it held.
    fn give_up(&mut self) -> usize {
        self.broken = true;
        self.expected = VecDeque::new();
        std::mem::take(&mut self.bytes).len()
    }
}

/// What a byte is to a terminal (ECMA-48 §5).
enum Key {
    Printed,
    Control,
    /// Part of a key that types nothing, or of a colour or a move.
    Sequence,
    /// Part of a sequence that may stand for anything.
    Unknown,
}

/// Tells sequences from what is printed.
#[derive(Default)]
enum Keys {
    #[default]
    Plain,
    Escape,
    /// `ESC [`, and what followed.
    Csi(Vec<u8>),
    /// `ESC O` and one more.
    Single,
    /// `ESC ]` and the like, to BEL or `ESC \`.
    Text(bool),
}

impl Keys {
    fn next(&mut self, byte: u8) -> Key {
        match std::mem::take(self) {
            Self::Plain => match byte {
                0x1b => *self = Self::Escape,
                0..=0x1f | 0x7f => return Key::Control,
                _ => return Key::Printed,
            },
            Self::Escape => match byte {
                b'[' => *self = Self::Csi(Vec::new()),
                b'O' => *self = Self::Single,
                b']' | b'P' | b'_' | b'^' | b'X' => *self = Self::Text(false),
                _ => return Key::Unknown,
            },
            Self::Csi(mut said) => match byte {
                0x40..=0x7e if said.len() <= LONGEST_KEY && is_plain_key(&said, byte) => {}
                0x40..=0x7e => return Key::Unknown,
                0x20..=0x3f if said.len() <= LONGEST_KEY => {
                    said.push(byte);
                    *self = Self::Csi(said);
                }
                _ => return Key::Unknown,
            },
            Self::Single => {}
            Self::Text(escaped) => match (escaped, byte) {
                (_, 7) | (true, b'\\') => {}
                (_, byte) => {
                    *self = Self::Text(byte == 0x1b);
                    return Key::Unknown;
                }
            },
        }
        Key::Sequence
    }
}

/// An arrow, a function key, a colour: not a letter in another form (`CSI u`, `CSI 27;…~`).
fn is_plain_key(said: &[u8], last: u8) -> bool {
    last != b'u' && !(last == b'~' && said.starts_with(b"27;"))
}

const LONGEST: usize = 4096;
const MOST_HELD: usize = 16 << 10;
const MOST_LINES: usize = 256;
const LONGEST_KEY: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    enum Said<'a> {
        In(&'a str),
        Out(&'a str),
    }
    use Said::{In, Out};

    fn kept(said: &[Said<'_>]) -> Vec<String> {
        let mut typed = Typed::default();
        for said in said {
            match said {
                In(bytes) => typed.input(bytes.as_bytes()),
                Out(bytes) => typed.output(bytes.as_bytes()),
            }
        }
        typed.take_shown().into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn a_line_that_comes_back_is_kept() {
        let letters = [Out("$ "), In("l"), Out("l"), In("s"), Out("s"), In("\r"), Out("\r\na b\r\n$ ")];
        assert_eq!(kept(&letters), ["ls\r"]);
        assert_eq!(kept(&[In("ls\r"), Out("ls\r\n")]), ["ls\r"]);
        assert_eq!(kept(&[In("é€\r"), Out("é"), Out("€\r\n")]), ["é€\r"]);
        // Coloured, corrected, recalled.
        assert_eq!(kept(&[In("ls\r"), Out("\x1b[32ml\x1b[0m\x1b[1ms\x1b[m\r\n")]), ["ls\r"]);
        let corrected = [In("lx"), Out("lx"), In("\x7f"), Out("\x08\x1b[K"), In("s\r"), Out("s\r\n")];
        assert_eq!(kept(&corrected), ["lx\x7fs\r"]);
        assert_eq!(kept(&[In("\x1b[A"), Out("ls"), In(" x\r"), Out(" x\r\n")]), ["\x1b[A x\r"]);
    }

    #[test]
    fn a_password_is_never_kept() {
        for said in [
            [In("hunter2\r"), Out("\r\n$ ")].as_slice(),
            &[In("hunter2\r"), Out("*******\r\n")],
            &[In("hunter2\r"), Out("hunter3\r\n")],
            &[In("h"), Out("h"), In("unter2\r"), Out("\r\n")],
            // By chance, and on a screen where something else goes on.
            &[In("h"), Out("... h"), In("unter2\r"), Out("unter2\r\n")],
            &[In("hunter2\r"), Out("\r\nhunter2 is no password\r\n")],
            // Shown only once the line was over, and in part.
            &[In("hunter2"), In("\r"), Out("\n"), Out("hunter2")],
            &[In("hunter2\r"), Out("hunter\r\n")],
            &[In("\x1b[104u\x1b[105uok\r"), Out("ok\r\n")],
            &[In("\x1b[27;5;104~ok\r"), Out("ok\r\n")],
            &[In("\r"), Out("\r\n")],
        ] {
            assert_eq!(kept(said), Vec::<String>::new());
        }
    }

    #[test]
    fn the_line_after_a_password_is_kept_again() {
        let said = [In("sudo ls\r"), Out("sudo ls\r\nPassword: "), In("hunter2\r"), Out("\r\nx\r\n$ ")];
        let mut said = said.to_vec();
        said.extend([In("id\r"), Out("id\r\n")]);
        assert_eq!(kept(&said), ["sudo ls\r", "id\r"]);
        // Typed ahead of its prompt: the terminal echoed the first line and not the second.
        let ahead = [In("sudo ls\rhunter2\r"), Out("sudo ls\r\nPassword: \r\n"), In("id\r"), Out("id\r\n")];
        assert_eq!(kept(&ahead), ["sudo ls\r", "id\r"]);
    }

    #[test]
    fn a_file_that_is_sent_is_counted_and_not_held() {
        let mut typed = Typed::default();
        for _ in 0..1000 {
            typed.input(&[b'x'; 1000]);
        }
        assert!(typed.unseen > 990_000 && typed.held <= MOST_HELD, "{} {}", typed.unseen, typed.held);
        for _ in 0..20_000 {
            typed.input(b"short lines\n");
        }
        assert!(typed.held <= MOST_HELD && typed.lines.len() <= MOST_LINES + 2, "{}", typed.lines.len());
    }

    impl Clone for Said<'_> {
        fn clone(&self) -> Self {
            match self {
                In(text) => In(text),
                Out(text) => Out(text),
            }
        }
    }
}
