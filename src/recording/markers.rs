//! Markers: the moments of a tape that a reader jumps to. Commands and operations as the tape names them, and the commands
//! of a shell as far as its screen tells: a shell that takes pasted text in brackets, or marks its prompts (OSC 133), says
//! when a line was entered; of others a prompt with something behind it counts, once its line ends.

use std::collections::BTreeMap;

use avt::Terminal;

use super::cast::take_text;
use super::format::{Note, Record, What};
use super::screen::{has_room, terminal, within};

/// A moment worth jumping to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Milliseconds since the session started.
    pub millis: u64,
    /// Channel number.
    pub channel: u32,
    /// `channel`, `command` or `file`.
    pub kind: &'static str,
    /// What was entered or done. Holds whatever an instance or a user sent.
    pub text: String,
}

/// Finds markers, record by record.
#[derive(Default)]
pub struct Markers(BTreeMap<u32, Screen>);

struct Screen {
    terminal: Terminal,
    halves: Vec<u8>,
    says_so: bool,
    /// What the line said before something was typed on it.
    prompt: Option<String>,
}

impl Markers {
    /// Takes the next record; markers go to `found`.
    pub fn feed(&mut self, record: &Record, found: &mut Vec<Marker>) {
        let mut mark = |kind, text: &str| {
            let text = text.to_owned();
            found.push(Marker { millis: record.millis, channel: record.channel, kind, text });
        };
        if let What::Note(_, Note::Pty { cols, rows, .. } | Note::WindowChange { cols, rows, .. }) =
            &record.what
        {
            let others = self.0.iter().filter(|(channel, _)| **channel != record.channel);
            if !has_room(others.map(|(_, screen)| &screen.terminal), (*cols, *rows)) {
                self.0.remove(&record.channel);
                return;
            }
        }
        match &record.what {
            What::Note(_, Note::Pty { cols, rows, .. }) => {
                if let Some(terminal) = terminal(*cols, *rows) {
                    let screen = Screen { terminal, halves: Vec::new(), says_so: false, prompt: None };
                    self.0.insert(record.channel, screen);
                }
            }
            What::Note(_, Note::WindowChange { cols, rows, .. }) => {
                if let Some(screen) = self.0.get_mut(&record.channel) {
                    let (cols, rows) = within(*cols, *rows);
                    screen.terminal.resize(cols, rows);
                }
            }
            What::Note(_, Note::Exec(command)) => mark("command", command),
            What::Note(_, Note::Shell) => mark("channel", "(shell)"),
            What::Note(_, Note::Subsystem(name)) => mark("channel", &format!("(subsystem {name})")),
            What::Operation(operation) => mark("file", &operation.line()),
            What::Output => {
                if let Some(screen) = self.0.get_mut(&record.channel) {
                    screen.draw(&record.payload, |line| mark("command", &line));
                }
            }
            What::Closed(_) => drop(self.0.remove(&record.channel)),
            _ => {}
        }
    }
}

impl Screen {
    fn draw(&mut self, bytes: &[u8], mut mark: impl FnMut(String)) {
        let mut from = 0;
        let entered = |at: &usize| {
            ENTERED.iter().any(|sign| bytes.get(*at..).is_some_and(|rest| rest.starts_with(sign)))
        };
        for hit in (0..bytes.len()).filter(entered) {
            self.feed(bytes.get(from..hit).unwrap_or_default());
            from = hit;
            self.says_so = true;
            if let Some(line) = self.line(true) {
                mark(line);
            }
        }
        if from == 0 && !self.says_so {
            from = self.guess(bytes, mark);
        }
        self.feed(bytes.get(from..).unwrap_or_default());
    }

    /// Of a shell that does not say so: what stood behind a prompt when its line ended. Returns how much of `bytes` it drew.
    fn guess(&mut self, bytes: &[u8], mut mark: impl FnMut(String)) -> usize {
        if let Some(line) = self.line(false).filter(|line| line.ends_with(['$', '#', '%', '>'])) {
            self.prompt = Some(line);
        }
        let Some(prompt) = &self.prompt else { return 0 };
        let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return 0 };
        let prompt = prompt.clone();
        self.feed(bytes.get(..end).unwrap_or_default());
        self.prompt = None;
        if let Some(line) = self.line(false)
            && line.strip_prefix(&prompt).is_some_and(|typed| !typed.trim().is_empty())
        {
            mark(line);
        }
        end
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.halves.extend_from_slice(bytes);
        self.terminal.feed(take_text(&mut self.halves).as_str());
    }

    /// The line on which the cursor stands, or (`above`) the last one above it that says something.
    fn line(&self, above: bool) -> Option<String> {
        let row = self.terminal.cursor().row;
        // From below: of a large screen only the lines that are asked for become text, each time something is printed.
        let mut shown: Vec<&avt::Line> = self.terminal.screen().visible_lines().take(row + 1).collect();
        while let Some(last) = shown.pop() {
            let mut parts = vec![last.text()];
            while shown.last().is_some_and(|line| line.is_wrapped()) && parts.len() < MOST_WRAPPED {
                parts.extend(shown.pop().map(avt::Line::text));
            }
            parts.reverse();
            let said = parts.concat().trim_end().to_owned();
            if !said.is_empty() {
                return Some(said);
            }
            if !above {
                break;
            }
        }
        None
    }
}

/// Lines of a screen that one command may take.
const MOST_WRAPPED: usize = 64;
/// Leaving bracketed paste (xterm), and the start of a command's output (FinalTerm).
const ENTERED: [&[u8]; 2] = [b"\x1b[?2004l", b"\x1b]133;C"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Direction;

    fn found(output: &[&str]) -> Vec<(u64, &'static str, String)> {
        let note = Note::pty(30, 5);
        let pty = Record {
            millis: 0,
            channel: 1,
            what: What::Note(Direction::ToInstance, note),
            payload: Vec::new(),
        };
        let (mut markers, mut found) = (Markers::default(), Vec::new());
        markers.feed(&pty, &mut found);
        for (index, text) in output.iter().enumerate() {
            let payload = text.as_bytes().to_vec();
            markers.feed(
                &Record { millis: index as u64 * 10, channel: 1, what: What::Output, payload },
                &mut found,
            );
        }
        found.into_iter().map(|marker| (marker.millis, marker.kind, marker.text)).collect()
    }

    #[test]
    fn a_shell_that_says_when_a_line_was_entered_is_believed() {
        let bash = ["\u{1b}[?2004h$ l", "s /etc", "\r\n\u{1b}[?2004l\r", "hosts\r\n", "\u{1b}[?2004h$ "];
        assert_eq!(found(&bash), [(20, "command", "$ ls /etc".to_owned())]);
        let zsh = ["% who", "\u{1b}[?2004l\r\r\nalice\r\n"];
        assert_eq!(found(&zsh), [(10, "command", "% who".to_owned())]);
    }

    #[test]
    fn of_another_shell_a_prompt_with_something_behind_it_counts_and_output_does_not() {
        let dash =
            ["$ ", "reboot", "\r\n", "going down\r\n", "\r\n", "$ ", "\r\n", "$ ", "ls\r\na > b\r\n$ "];
        assert_eq!(
            found(&dash),
            [(20, "command", "$ reboot".to_owned()), (80, "command", "$ ls".to_owned())]
        );
    }
}
