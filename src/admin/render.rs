//! Tables and times for people.
//!
//! Cells come from users and instances, so control characters are shown, never sent to a terminal.

use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;

pub(super) use crate::audit::plain;

/// A table without frames, as wide as the terminal at most.
pub(super) fn table(
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
    width: Option<u16>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if let Some(width) = width.filter(|w| *w >= 60) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.set_header(header.iter().copied());
    let mut empty = true;
    for row in rows {
        empty = false;
        table.add_row(row.into_iter().map(|cell| plain(&cell)));
    }
    if empty {
        return "(none)".to_owned();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
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

    #[test]
    fn a_control_character_never_reaches_the_terminal() {
        let shown = table(&["NAME"], [vec!["a\u{1b}[2Jb".to_owned()]], None);
        assert!(!shown.contains('\u{1b}') && shown.contains("a\\u{1b}[2Jb"));
    }
}
