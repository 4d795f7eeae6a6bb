//! Text that nobody vouched for, made fit to be read: names, commands and lines come from users and instances, and end on
//! terminals, in logs, tables and spreadsheets. What those would obey is shown, never sent.

/// `text` with what a terminal or a reader's eye would obey made visible: control characters, and the invisible ones
/// that turn, hide or break text (UTS #36, "Trojan Source").
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if is_command(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// Whether a terminal, or a reader's eye, would obey `c`.
pub fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with JSON's escapes for what [`is_command`], but for the white space of text. JSON stays the same JSON: serde
/// escapes the C0 controls alone, and an event holds names that nobody vouched for.
pub fn harmless(text: String) -> String {
    let obeyed = |c: char| is_command(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(obeyed) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        if obeyed(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_text_around_is_shown_and_what_people_write_stays() {
        assert_eq!(plain("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(plain("Grüße, 世界 שלום"), "Grüße, 世界 שלום");
    }
}
