//! Tapes: what a session showed and did, sealed so that only the auditors' identity can read it.
//!
//! Owns the tape format, the writer, the reader, the exports and the ledger of what was *not* kept. Takes an
//! `Authorized` and mints the `Tape` without which nothing is dialled; a tape that cannot be written is an error to
//! the relay, never a log line. What is typed at a terminal is counted, not kept: it holds passwords that no screen
//! showed.

mod cast;
mod format;
mod keys;
mod ledger;
mod message;
mod tape;
mod tapes;

pub use cast::{Cast, asciicast, json};
pub use format::{Header, Note, Record, What};
pub use keys::TapeKeys;
pub use ledger::{Capture, ChannelSummary};
pub use message::{ChannelMessage, Direction, SessionId};
pub use tape::{SessionEnd, SessionStatus, Summary, Tape};
pub use tapes::{TapeError, TapeVerified, Tapes};

#[cfg(test)]
mod tests;
