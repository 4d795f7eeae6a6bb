//! The keyboard of a terminal, lent to the daemon while it plays: each key goes there at once, and nothing is echoed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::client::relay;

/// A terminal in raw mode, until it is dropped.
pub(super) struct Keyboard {
    before: Termios,
    rows: u16,
}

impl Keyboard {
    /// Takes the keyboard if standard input is one.
    pub(super) fn take() -> Option<Self> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let rows = tcgetwinsize(&stdin).ok().map(|size| size.ws_row).filter(|rows| *rows > 0).unwrap_or(24);
        let mut raw = before.clone();
        raw.make_raw();
        // Faults end their lines as always; what draws holds no bare line feed.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before, rows })
    }

    /// The lines of the terminal.
    pub(super) fn rows(&self) -> u16 {
        self.rows
    }

    /// Sends what is typed, shows what comes; gives the keyboard back.
    pub(super) fn attended(self, stream: &mut UnixStream) -> io::Result<u8> {
        let mut to = stream.try_clone()?;
        // It ends with the process: a read from a terminal cannot be called off.
        std::thread::spawn(move || {
            let mut typed = [0; 64];
            while let Ok(length @ 1..) = io::stdin().lock().read(&mut typed) {
                if to.write_all(typed.get(..length).unwrap_or_default()).is_err() {
                    break;
                }
            }
        });
        relay(stream, &mut io::stdout().lock())
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            // Nothing else can be done about it than to say so.
            drop(writeln!(io::stderr(), "keyward: the terminal could not be reset ({error}); run: reset"));
        }
    }
}
