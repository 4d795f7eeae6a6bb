//! The command language, behind three doors: the local socket, SSH exec, and the pages of `console`.
//!
//! Owns the grammar ([`Command`]), who may say what ([`permitted`]), what each command does ([`execute`]) and how the
//! answer looks (tables, JSON). It takes a [`Caller`] that the door has already proven; it mints nothing. Every change
//! appends its audit event before it is made (docs/adr/0006).

mod access;
mod blast;
mod bundle;
mod bundle_check;
mod ca;
mod clock;
mod command;
mod console;
mod credentials;
mod desk;
mod encryption;
mod execute;
mod explain;
mod factors;
mod findings;
mod finds;
mod gaps;
mod instances;
mod keys;
mod keys_typed;
mod kinds;
mod live;
mod logs;
mod ocsf;
mod output;
mod player;
mod progress;
mod render;
mod replay;
mod report;
mod retention;
mod review;
mod rotate;
mod search;
mod sessions;
mod shelf;
mod sources;
mod status;
mod steps;
mod trail;
mod users;
mod whole;
mod wire;
mod words;

pub use crate::session::Chunk;
pub use bundle_check::{BundleVerified, verify_bundle};
pub use command::*;
pub use console::{CONSOLE, PORT};
pub use credentials::{custody, errands};
pub use desk::{FrontDesk, said};
pub use execute::{Viewers, entitled, execute, permitted};
pub use gaps::reasons;
pub use logs::{StateVerified, verify};
pub use output::{Caller, Fault, Keyboard, Output, Visitor};
pub use progress::Progress;
pub use retention::retire;
pub use rotate::rotation;
pub use sessions::{did, lasted, status};
pub use shelf::{copied, meant, offline, session_meant};
pub use whole::{SessionVerified, untold, verify_session};
pub use wire::{MAX_REQUEST, Reply, Request, read_reply};
pub use words::*;
