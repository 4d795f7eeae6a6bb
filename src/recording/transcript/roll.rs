//! The roll: a screen on which nothing but plain lines is printed, kept as text.
//!
//! Most of what a terminal shows is lines that scroll by, and an emulator draws each of them cell by cell. While a screen
//! takes nothing but lines (printable characters of one column, tabs, line ends, colours), at its bottom, it is like paper
//! on a roll: what it shows and what leaves it at the top is known without an emulator. Anything else, and the emulator
//! draws what the screen shows then and goes on. That both tell the same is held by a property test.

use std::collections::VecDeque;

use avt::parser::{AnsiMode, DecMode, DecModes, Function, SgrOp};
use avt::{Charset, Line, Observation, Observer, Operation, ScreenKind, Terminal};

/// The lines on a screen, the last of which is being printed.
pub(super) struct Roll {
    cols: usize,
    rows: usize,
    lines: VecDeque<Printed>,
    /// Rows of all lines, and how many of them, of the first, have left the screen.
    total: usize,
    gone: usize,
    /// Tabs are where they are at first.
    tabs: bool,
    /// What set the colours, after the last reset, before the first line began.
    pen: String,
    /// The start of a line end or of a colour, whose rest is still to come.
    pub(super) cut: String,
    /// Bytes that it took.
    pub(super) took: usize,
}

#[derive(Default)]
struct Printed {
    text: String,
    /// Its characters: each takes a column.
    width: usize,
    /// The same with its colours, if there are any: an emulator knows a coloured blank from none.
    raw: Option<String>,
}

impl Printed {
    fn rows(&self, cols: usize) -> usize {
        self.width.div_ceil(cols).max(1)
    }

    fn raw(&self) -> &str {
        self.raw.as_deref().unwrap_or(&self.text)
    }

    fn print(&mut self, text: &str, width: usize) {
        self.text.push_str(text);
        self.width += width;
        if let Some(raw) = &mut self.raw {
            raw.push_str(text);
        }
    }

    /// What changes no text.
    fn adorn(&mut self, sequence: &str) {
        self.raw.get_or_insert_with(|| self.text.clone()).push_str(sequence);
    }
}

impl Roll {
    /// Goes on from what a terminal shows, if that is plain lines with the cursor on an empty one at the bottom.
    pub(super) fn begin(terminal: &Terminal, modes: &Modes) -> Option<Self> {
        let (cols, rows) = terminal.size();
        let cursor = terminal.cursor();
        let primary = terminal.active_screen_kind() == ScreenKind::Primary;
        if !modes.are_plain(rows) || !primary || (cursor.col, cursor.row + 1) != (0, rows) {
            return None;
        }
        let mut roll = Self {
            cols,
            rows,
            lines: VecDeque::new(),
            total: 0,
            gone: 0,
            tabs: !modes.tabs,
            pen: String::new(),
            cut: String::new(),
            took: 0,
        };
        let (mut text, mut height) = (String::new(), 0);
        for line in terminal.screen().visible_lines() {
            if line.cells().iter().any(|cell| cell.char() == ' ' && !cell.pen().is_default()) {
                return None;
            }
            text.extend(line.chars());
            height += 1;
            if !line.is_wrapped() {
                text.truncate(text.trim_end_matches(' ').len());
                let (plain, width) = plain(&text);
                let printed = Printed { text: std::mem::take(&mut text), width, raw: None };
                if plain != printed.text.len() || plain > LONGEST || printed.rows(cols) != height {
                    return None;
                }
                roll.total += std::mem::take(&mut height);
                roll.lines.push_back(printed);
            }
        }
        let empty = roll.lines.back().is_some_and(|line| line.width == 0);
        (empty && roll.total == rows).then_some(roll)
    }

    /// Prints as much of `text` as is plain, and says how much that is, in bytes. Lines that leave the screen go to `gone`.
    pub(super) fn take(&mut self, text: &str, gone: &mut Vec<String>) -> usize {
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty() && self.pen.len() < LONGEST_PEN)
        {
            let size = match Piece::first(rest) {
                Piece::Text { size, width } if self.has_room(size) => {
                    self.print(rest.get(..size).unwrap_or_default(), width);
                    size
                }
                Piece::End(size) => {
                    self.lines.push_back(Printed::default());
                    self.total += 1;
                    self.scroll(gone);
                    size
                }
                Piece::Pen(size) | Piece::Nothing(size) => {
                    if let Some(line) = self.lines.back_mut() {
                        line.adorn(rest.get(..size).unwrap_or_default());
                    }
                    size
                }
                Piece::Tab if self.tabs && self.tab() => 1,
                Piece::Cut => {
                    self.cut.push_str(rest);
                    rest.len()
                }
                Piece::Text { .. } | Piece::Tab | Piece::Other => break,
            };
            at += size;
        }
        self.scroll(gone);
        self.took += at;
        at
    }

    /// The lines that are seen, as they are seen, without spaces at their ends.
    pub(super) fn seen(&self) -> impl Iterator<Item = &str> {
        let hidden = self.gone * self.cols;
        self.lines.iter().enumerate().map(move |(place, line)| {
            let start =
                if place == 0 { line.text.char_indices().nth(hidden).map(|(at, _)| at) } else { Some(0) };
            let text = match (start, hidden) {
                (Some(at), _) => line.text.get(at..).unwrap_or_default(),
                (None, 0) => line.text.as_str(),
                (None, _) => "",
            };
            text.trim_end()
        })
    }

    /// What an emulator that stands where this began draws to show the same: first the colours with which it makes its
    /// screen empty, then the lines.
    pub(super) fn drawn(&self) -> (String, String) {
        let lines: Vec<&str> = self.lines.iter().map(Printed::raw).collect();
        (format!("\u{1b}[m{}", self.pen), lines.join("\r\n"))
    }

    fn has_room(&self, size: usize) -> bool {
        self.lines.back().is_some_and(|line| line.raw().len() + size <= LONGEST)
    }

    fn print(&mut self, text: &str, width: usize) {
        let Some(line) = self.lines.back_mut() else { return };
        self.total -= line.rows(self.cols);
        line.print(text, width);
        self.total += line.rows(self.cols);
    }

    /// To the next multiple of eight, if that is on the same row.
    fn tab(&mut self) -> bool {
        let Some(line) = self.lines.back_mut() else { return false };
        let col = line.width % self.cols;
        let next = (col / 8 + 1) * 8;
        // At the end of a row the cursor stands in no column.
        if next >= self.cols || col == 0 && line.width > 0 {
            return false;
        }
        let spaces = "        ".get(..next - col).unwrap_or_default();
        self.print(spaces, spaces.len());
        true
    }

    /// The colours of a line that has gone still hold.
    fn keep_pen(&mut self, raw: &str) {
        for part in raw.split('\u{1b}').skip(1) {
            let Some((code, _)) = part.strip_prefix('[').and_then(|part| part.split_once('m')) else {
                continue;
            };
            if !code.bytes().all(|byte| matches!(byte, b'0'..=b';')) {
                continue;
            }
            let first = code.split([';', ':']).next().unwrap_or_default();
            if first.bytes().all(|digit| digit == b'0') {
                self.pen.clear();
            }
            self.pen.push_str(&format!("\u{1b}[{code}m"));
        }
    }

    fn scroll(&mut self, gone: &mut Vec<String>) {
        while self.total - self.gone > self.rows {
            self.gone += 1;
            let whole = self.lines.front().is_some_and(|line| line.rows(self.cols) == self.gone);
            if whole
                && self.lines.len() > 1
                && let Some(mut line) = self.lines.pop_front()
            {
                self.total -= std::mem::take(&mut self.gone);
                if let Some(raw) = line.raw.take() {
                    self.keep_pen(&raw);
                }
                line.text.truncate(line.text.trim_end().len());
                gone.push(line.text);
            }
        }
    }
}

/// What stands at the start of a text, sizes in bytes.
enum Piece {
    Text {
        size: usize,
        width: usize,
    },
    End(usize),
    Pen(usize),
    /// Erases to the right of the cursor, where nothing is.
    Nothing(usize),
    Tab,
    /// More is needed to tell.
    Cut,
    Other,
}

impl Piece {
    fn first(text: &str) -> Self {
        match text.as_bytes() {
            [b'\t', ..] => Self::Tab,
            [b'\r', rest @ ..] => {
                let more = rest.iter().take_while(|byte| **byte == b'\r').count();
                match rest.get(more) {
                    Some(b'\n') => Self::End(more + 2),
                    None if more < MOST_RETURNS => Self::Cut,
                    _ => Self::Other,
                }
            }
            [0x1b, b'[', rest @ ..] => {
                let code = rest.iter().take_while(|byte| matches!(byte, b'0'..=b';')).count();
                match rest.get(code) {
                    Some(b'm') if code < LONGEST_CODE => Self::Pen(code + 3),
                    Some(b'K') if matches!(rest, [b'K' | b'0', ..]) && code < 2 => Self::Nothing(code + 3),
                    None if code < LONGEST_CODE => Self::Cut,
                    _ => Self::Other,
                }
            }
            [0x1b] => Self::Cut,
            _ => match plain(text) {
                (0, _) => Self::Other,
                (size, width) => Self::Text { size, width },
            },
        }
    }
}

/// How many bytes, and how many characters, at the start are printed one in each column.
fn plain(text: &str) -> (usize, usize) {
    let bytes = text.as_bytes();
    let (mut size, mut width) = (0, 0);
    loop {
        let rest = bytes.get(size..).unwrap_or_default();
        let ascii = rest.iter().position(|byte| !matches!(byte, b' '..=b'~')).unwrap_or(rest.len());
        size += ascii;
        width += ascii;
        match text.get(size..).and_then(|rest| rest.chars().next()) {
            Some(c) if is_narrow(c) => {
                size += c.len_utf8();
                width += 1;
            }
            _ => return (size, width),
        }
    }
}

/// Of the characters beyond ASCII those, of the scripts that are common in logs, that take one column.
pub(in crate::recording) fn is_narrow(c: char) -> bool {
    matches!(c,
        '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{2ff}' | '\u{370}'..='\u{377}' | '\u{386}'..='\u{482}'
        | '\u{48a}'..='\u{52f}' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{203a}' | '\u{2190}'..='\u{21ff}'
        | '\u{2500}'..='\u{259f}')
}

/// What a terminal was told that makes it print otherwise than line by line, and whether a line that left it goes on.
#[derive(Default)]
pub(super) struct Modes {
    insert: bool,
    /// Wrapping was ever off, or the origin ever moved: a restored cursor may bring that back.
    strange: bool,
    margins: Option<(u16, u16)>,
    drawing: bool,
    shifted: bool,
    /// Tabs were set or cleared, or may have been.
    tabs: bool,
    /// The colours may be other than those of a new terminal.
    coloured: bool,
    goes_on: bool,
}

impl Modes {
    fn are_plain(&self, rows: usize) -> bool {
        let whole =
            self.margins.is_none_or(|(top, bottom)| top <= 1 && (bottom == 0 || usize::from(bottom) == rows));
        whole
            && !(self.insert || self.strange || self.drawing || self.shifted)
            && !(self.coloured || self.goes_on)
    }
}

impl Observer for &mut Modes {
    type Output = ();

    fn after(&mut self, _: &mut Observation<'_>, operation: &Operation) {
        let Operation::Function(function) = operation else { return };
        match function {
            Function::Print(_) | Function::Cr | Function::Lf => {}
            Function::Sgr(ops) => {
                self.coloured = ops.as_slice().last().map_or(self.coloured, |last| *last != SgrOp::Reset);
            }
            Function::Decrc | Function::Scorc => self.coloured = true,
            Function::Decrst(modes) if restores(modes) => {
                self.coloured = true;
                self.strange |= modes.as_slice().contains(&DecMode::AutoWrap);
            }
            Function::Sm(modes) if modes.as_slice().contains(&AnsiMode::Insert) => self.insert = true,
            Function::Rm(modes) if modes.as_slice().contains(&AnsiMode::Insert) => self.insert = false,
            Function::Decset(modes) if modes.as_slice().contains(&DecMode::Origin) => self.strange = true,
            Function::Decrst(modes) if modes.as_slice().contains(&DecMode::AutoWrap) => self.strange = true,
            // One that is not possible changes nothing; it is taken for one that does.
            Function::Decstbm(top, bottom) => self.margins = Some((*top, *bottom)),
            Function::Gzd4(charset) => self.drawing = *charset != Charset::Ascii,
            Function::So => self.shifted = true,
            Function::Si => self.shifted = false,
            Function::Hts | Function::Tbc(_) | Function::Ctc(_) => self.tabs = true,
            Function::Ris => **self = Modes { goes_on: self.goes_on, ..Modes::default() },
            Function::Decstr => {
                (self.insert, self.margins, self.drawing, self.shifted) = (false, None, false, false);
                self.coloured = false;
            }
            _ => {}
        }
    }

    // An emulator may lose one where it was widened.
    fn resized(&mut self, _: usize, _: usize) {
        self.tabs = true;
    }

    fn evicted(&mut self, _: &mut Observation<'_>, line: &Line) {
        self.goes_on = line.is_wrapped();
    }

    fn end(&mut self, _: &mut Observation<'_>) {}
}

fn restores(modes: &DecModes) -> bool {
    let restoring = [DecMode::SaveCursor, DecMode::SaveCursorAltScreenBuffer];
    modes.as_slice().iter().any(|mode| restoring.contains(mode))
}

/// Bytes of a colour's code, and of all that were set since the last reset.
const LONGEST_CODE: usize = 64;
const LONGEST_PEN: usize = 4096;
/// Bytes of a line: longer ones are told in parts.
const LONGEST: usize = super::LONGEST_LINE / 2;
/// Carriage returns before a line feed.
const MOST_RETURNS: usize = 8;
