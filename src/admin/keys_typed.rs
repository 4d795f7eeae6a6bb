//! Keys, out of the bytes that a terminal sends for them.

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Backspace,
    Escape,
    Left,
    Right,
    PageUp,
    PageDown,
    /// Ctrl-D or Ctrl-C.
    End,
    Other,
}

/// The keys of one piece of input. A terminal sends the bytes of a key in one piece.
pub(super) fn keys(bytes: &[u8]) -> Vec<Key> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.as_ref();
    let mut found = Vec::new();
    while let Some(c) = rest.chars().next() {
        if let Some((key, after)) = sequence(rest) {
            found.push(key);
            rest = after;
            continue;
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        found.push(match c {
            '\r' | '\n' => Key::Enter,
            '\u{7f}' | '\u{8}' => Key::Backspace,
            '\u{3}' | '\u{4}' => Key::End,
            '\u{1b}' => Key::Escape,
            c if c.is_control() => Key::Other,
            c => Key::Char(c),
        });
    }
    found
}

/// A key that is more than a character (xterm's forms), and what follows it.
fn sequence(text: &str) -> Option<(Key, &str)> {
    let rest = text.strip_prefix("\u{1b}[").or_else(|| text.strip_prefix("\u{1b}O"))?;
    let length = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    let (number, rest) = rest.split_at_checked(length)?;
    let end = rest.chars().next()?;
    let key = match (number, end) {
        (_, 'C') => Key::Right,
        (_, 'D') => Key::Left,
        ("5", '~') => Key::PageUp,
        ("6", '~') => Key::PageDown,
        _ => Key::Other,
    };
    Some((key, rest.get(end.len_utf8()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_unknown_ones_are_one_key() {
        let typed = keys("q \u{1b}[C\u{1b}[5~\u{1b}[1;5Aé\r\u{7f}\u{1b}OD\u{4}".as_bytes());
        let expected = [
            Key::Char('q'),
            Key::Char(' '),
            Key::Right,
            Key::PageUp,
            Key::Other,
            Key::Char('é'),
            Key::Enter,
            Key::Backspace,
            Key::Left,
            Key::End,
        ];
        assert_eq!(typed, expected);
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        assert_eq!(keys(b"\x1b[").len(), 2, "cut short it is no key, and no fault");
    }
}
