//! Tables and times for people.
//!
//! Cells come from users and instances, so control characters are shown, never sent to a terminal.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use jiff::Timestamp;

pub(super) use crate::audit::plain;

/// A table without frames. Ids, dates, addresses and headings are never broken: where a terminal is too narrow, long text is
/// wrapped between its words; if that is not enough each row stays one line, or, where that would be long, a list of its own.
pub(super) fn table(
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
    width: Option<u16>,
) -> String {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    if rows.is_empty() {
        return "(none)".to_owned();
    }
    let columns = measured(header, &rows);
    let (natural, least) = columns.iter().fold((0, 0), |(natural, least), column| {
        (natural + column.natural + GAP, least + column.least() + GAP)
    });
    match width.map(usize::from) {
        Some(width) if natural > width + GAP && least <= width + GAP => {
            wrapped(header, rows, &columns, width)
        }
        Some(width) if natural > 2 * width => stacked(header, &rows),
        _ => arranged(header, rows).trim_fmt(),
    }
}

/// Characters in a column.
struct Column {
    natural: usize,
    /// Its longest word, or its heading.
    word: usize,
    /// It holds text that is read, not compared: words of a sentence, a command.
    prose: bool,
}

impl Column {
    fn least(&self) -> usize {
        if self.prose { self.word } else { self.natural }
    }
}

fn measured(header: &[&str], rows: &[Vec<String>]) -> Vec<Column> {
    let column = |(at, heading): (usize, &&str)| {
        let cells = || rows.iter().filter_map(|row| row.get(at));
        let length = |text: &str| text.chars().count();
        let words = cells().flat_map(|cell| cell.split(' ')).map(length);
        let natural = cells().map(|cell| length(cell)).max().unwrap_or(0).max(length(heading));
        let prose = cells().any(|cell| length(cell) > LONGEST_DATUM && cell.contains(' '));
        Column { natural, word: words.max().unwrap_or(0).max(length(heading)), prose }
    };
    header.iter().enumerate().map(column).collect()
}

fn arranged(header: &[&str], rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP as u16));
    }
    table
}

fn wrapped(header: &[&str], rows: Vec<Vec<String>>, columns: &[Column], width: usize) -> String {
    let mut table = arranged(header, rows);
    // The last column's gap is no part of what is seen.
    let width = u16::try_from(width + GAP).unwrap_or(u16::MAX);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    for (column, measure) in table.column_iter_mut().zip(columns) {
        column.set_constraint(if measure.prose {
            let least = u16::try_from(measure.word + GAP).unwrap_or(u16::MAX);
            ColumnConstraint::LowerBoundary(Width::Fixed(least))
        } else {
            ColumnConstraint::ContentWidth
        });
    }
    table.trim_fmt()
}

/// One line for each cell, one paragraph for each row.
fn stacked(header: &[&str], rows: &[Vec<String>]) -> String {
    let widest = header.iter().map(|heading| heading.chars().count()).max().unwrap_or(0);
    let line =
        |(heading, cell): (&&str, &String)| format!("{heading:<widest$}  {cell}").trim_end().to_owned();
    let paragraph = |row: &Vec<String>| header.iter().zip(row).map(line).collect::<Vec<_>>().join("\n");
    rows.iter().map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// Between two columns.
const GAP: usize = 2;
/// A date, a state, an age: what has spaces and is longer is prose.
const LONGEST_DATUM: usize = 24;

/// `1 session`, `3 sessions`.
pub(super) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// `2026-11-23 12:00` in UTC.
pub(super) fn short_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M").to_string()
}

/// `2026-11-23`.
pub(super) fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "019a208b-93a4-7976-b442-bac7974317e7";

    fn gaps(why: &str, width: u16) -> String {
        let row = vec![ID.to_owned(), "2026-11-23 12:00".to_owned(), "17".to_owned(), why.to_owned()];
        table(&["SESSION", "STARTED", "NOT KEPT (BYTES)", "WHY"], [row.clone(), row], Some(width))
    }

    fn whole(shown: &str, words: &[&str]) {
        for word in words {
            assert!(shown.lines().any(|line| line.contains(word)), "{word}:\n{shown}");
        }
    }

    #[test]
    fn on_a_narrow_terminal_prose_is_wrapped_and_nothing_else_is_broken() {
        let why = "payload of forwards is counted and hashed, not stored";
        let shown = gaps(why, 100);
        whole(&shown, &[ID, "2026-11-23 12:00", "NOT KEPT (BYTES)", "payload of"]);
        assert!(shown.lines().all(|line| line.chars().count() <= 100) && !shown.contains(why), "{shown}");
        assert!(gaps(why, 200).contains(why), "where there is room it is one line");
    }

    #[test]
    fn what_does_not_fit_stays_a_line_and_what_is_far_too_long_becomes_a_list() {
        let shown = gaps("hashed, not stored, as said", 70);
        whole(&shown, &[ID, "2026-11-23 12:00", "hashed, not stored, as said"]);
        assert_eq!(shown.lines().count(), 3, "{shown}");
        let why = "typed at a terminal: counted, not kept, since it holds passwords that no screen showed";
        let shown = gaps(why, 70);
        whole(&shown, &[&format!("SESSION           {ID}"), "STARTED           2026-11-23 12:00"]);
        whole(&shown, &[&format!("WHY               {why}")]);
        assert_eq!(shown.lines().count(), 9, "{shown}");
    }

    #[test]
    fn a_control_character_never_reaches_the_terminal() {
        let shown = table(&["NAME"], [vec!["a\u{1b}[2Jb".to_owned()]], None);
        assert!(!shown.contains('\u{1b}') && shown.contains("a\\u{1b}[2Jb"));
    }
}
