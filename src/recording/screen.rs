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
    let (cols, rows) = (bound(cols, 80), bound(rows, 24));
    (cols, rows.min(MOST_CELLS / cols))
}

/// Whether a screen of this wish has room beside those of the other channels.
pub(super) fn has_room<'a>(others: impl Iterator<Item = &'a Terminal>, (cols, rows): (u32, u32)) -> bool {
    let cells = |(cols, rows): (usize, usize)| cols * rows;
    others.map(|other| cells(other.size())).sum::<usize>() + cells(within(cols, rows)) <= MOST_CELLS_TOGETHER
}

/// The screens of all channels with a terminal.
#[derive(Default)]
pub(super) struct Screens(BTreeMap<u32, (Terminal, Vec<u8>)>);

impl Screens {
    /// Draws what the record shows. A channel whose screen has no room beside the others' is not drawn.
    pub(super) fn watch(&mut self, record: &Record) {
        if let What::Note(_, Note::Pty { cols, rows, .. } | Note::WindowChange { cols, rows, .. })
        | What::Screen { cols, rows } = &record.what
        {
            let others = self.0.iter().filter(|(channel, _)| **channel != record.channel);
            if !has_room(others.map(|(_, (terminal, _))| terminal), (*cols, *rows)) {
                self.0.remove(&record.channel);
                return;
            }
        }
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
            What::Note(_, Note::WindowChange { cols, rows, .. }) => {
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

/// Characters across, or lines down, of the largest terminal that is drawn.
const LARGEST: u32 = 1000;
/// Cells of one screen, and of all screens of a session; each takes about 40 bytes, with the alternate screen.
const MOST_CELLS: usize = 250_000;
const MOST_CELLS_TOGETHER: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Direction;

    #[test]
    fn many_huge_screens_take_little_memory_and_many_small_ones_are_all_drawn() {
        let drawn = |cols, rows| {
            let mut screens = Screens::default();
            for channel in 0..32 {
                let note = Note::pty(80, 24);
                let mut record = Record {
                    millis: 0,
                    channel,
                    what: What::Note(Direction::ToInstance, note),
                    payload: Vec::new(),
                };
                screens.watch(&record);
                record.what = What::Note(Direction::ToInstance, Note::window_change(cols, rows));
                screens.watch(&record);
            }
            let sizes: Vec<_> = screens.0.values().map(|(terminal, _)| terminal.size()).collect();
            (sizes.len(), sizes.iter().map(|(cols, rows)| cols * rows).sum::<usize>())
        };
        let (_, cells) = drawn(u32::MAX, u32::MAX);
        assert!(cells <= MOST_CELLS_TOGETHER, "{cells}");
        assert_eq!(drawn(250, 80), (32, 32 * 250 * 80));
    }
}
