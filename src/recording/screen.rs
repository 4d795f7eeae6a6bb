//! Screens: what a terminal shows, drawn by an emulator from the bytes that it got.

use std::collections::BTreeMap;

use avt::Terminal;

use super::cast::take_text;
use super::format::{Note, Record, What};

/// A terminal of a peer's wish, within bounds: every cell takes memory here.
pub(super) fn terminal(cols: u32, rows: u32) -> Option<Terminal> {
    let (cols, rows) = within(cols, rows);
    Terminal::new(cols, rows).ok()
}

/// The size a terminal of this wish has.
pub(super) fn within(cols: u32, rows: u32) -> (usize, usize) {
    let bound = |given: u32, default: u32| if given == 0 { default } else { given.min(LARGEST) } as usize;
    (bound(cols, 80), bound(rows, 24))
}

/// The screens of all channels with a terminal.
#[derive(Default)]
pub(super) struct Screens(BTreeMap<u32, (Terminal, Vec<u8>)>);

impl Screens {
    /// Draws what the record shows.
    pub(super) fn watch(&mut self, record: &Record) {
        match &record.what {
            What::Note(_, Note::Pty { cols, rows, .. }) => {
                if let Some(terminal) = terminal(*cols, *rows) {
                    self.0.insert(record.channel, (terminal, Vec::new()));
                }
            }
            What::Screen { cols, rows } => {
                if let Some(mut terminal) = terminal(*cols, *rows) {
                    terminal.feed(String::from_utf8_lossy(&record.payload).as_ref());
                    self.0.insert(record.channel, (terminal, Vec::new()));
                }
            }
            What::Note(_, Note::WindowChange { cols, rows }) => {
                if let Some((terminal, _)) = self.0.get_mut(&record.channel) {
                    let (cols, rows) = within(*cols, *rows);
                    terminal.resize(cols, rows);
                }
            }
            What::Output | What::Stderr => {
                if let Some((terminal, halves)) = self.0.get_mut(&record.channel) {
                    halves.extend_from_slice(&record.payload);
                    terminal.feed(take_text(halves).as_str());
                }
            }
            What::Closed(_) => {
                self.0.remove(&record.channel);
            }
            _ => {}
        }
    }

    /// For each screen the channel, its size, and what draws it on an empty one.
    pub(super) fn pictures(&self) -> Vec<(u32, What, String)> {
        let picture = |(channel, (terminal, _)): (&u32, &(Terminal, Vec<u8>))| {
            let (cols, rows) = terminal.size();
            let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            (*channel, What::Screen { cols: size(cols), rows: size(rows) }, terminal.dump())
        };
        self.0.iter().map(picture).collect()
    }
}

/// Characters across and lines down of the largest terminal that is drawn.
const LARGEST: u32 = 1000;
