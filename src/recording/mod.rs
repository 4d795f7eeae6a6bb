//! Tapes: what a session showed and did, sealed so that only the auditors' identity can read it.
//!
//! Owns the tape format, the writer, the reader, the exports and the ledger of what was *not* kept. Takes an
//! `Authorized` and mints the `Tape` without which nothing is dialled; a tape that cannot be written is an error to
//! the relay, never a log line. What is typed at a terminal is counted, not kept: it holds passwords that no screen
//! showed.

mod cast;
mod commands;
mod digest;
mod disk;
mod drawing;
mod format;
mod frames;
mod keys;
mod ledger;
mod markers;
mod message;
mod modes;
mod operations;
mod pack;
mod player;
mod scp;
mod screen;
mod sftp;
mod sniff;
mod summary;
mod tape;
mod tapes;
mod told;
mod transcript;
mod typed;

pub use cast::{Cast, CastEvent, cast_header, cast_line, json_record};
pub use digest::Hashing;
pub use disk::{Reserve, Room, disk_left};
pub use drawing::Drawing;
pub use format::{Header, Note, Pixels, Record, What};
pub use keys::TapeKeys;
pub use ledger::{Capture, ChannelSummary};
pub use markers::{Marker, Markers};
pub use message::{ChannelMessage, Direction, SessionId};
pub use operations::{Deed, Operation};
pub use player::{Playback, Stage, picture};
pub use summary::{SessionEnd, SessionStatus, Summary};
pub use tape::{Held, Mode, Tape, Terms, Turn};
pub use tapes::{Keep, TapeError, TapeVerified, Tapes};
pub use told::{Frames, Live, Unreadable};
pub use transcript::{Line, Lines, Source, Transcript};

#[cfg(test)]
mod tests;
