//! Tables and times for people.
//!
//! Cells come from users and instances, so control characters are shown, never sent to a terminal.

use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;

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

/// `text` with what a terminal or a reader's eye would obey made visible: control characters, and the invisible ones
/// that turn, hide or break text (UTS #36, "Trojan Source").
pub(super) fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if is_command(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// Whether a terminal, or a reader's eye, would obey `c`.
pub(super) fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

    #[test]
    fn what_turns_text_around_is_shown_and_what_people_write_stays() {
        assert_eq!(plain("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(plain("Grüße, 世界 שלום"), "Grüße, 世界 שלום");
    }
}
