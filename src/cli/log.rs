//! The operator's log on standard error: one line an event, and nothing in it that a terminal obeys. Names, commands and
//! faults in it come from peers and instances.

use std::io::{self, Write};

use crate::audit::plain;

/// Where the log goes.
pub(super) fn stderr() -> Lines<io::Stderr> {
    Lines(io::stderr())
}

/// Takes one event a write, as `tracing_subscriber` gives it.
pub(super) struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        self.0.write_all(format!("{}\n", plain(line)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_no_terminal_obeys() {
        let mut out = Lines(Vec::new());
        out.write_all("WARN login \u{1b}]52;c;x\u{7}\nINFO forged \u{202e} \u{9b}2J Grüße\n".as_bytes())
            .unwrap();
        let shown = String::from_utf8(out.0).unwrap();
        assert_eq!(shown, "WARN login \\u{1b}]52;c;x\\u{7}\\u{a}INFO forged \\u{202e} \\u{9b}2J Grüße\n");
    }
}
