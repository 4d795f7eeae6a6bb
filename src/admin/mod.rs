//! The command language, behind two doors: the local socket and SSH exec.
//!
//! Owns the grammar ([`Command`]), who may say what ([`permitted`]), what each command does ([`execute`]) and how the
//! answer looks (tables, JSON). It takes a [`Caller`] that the door has already proven; it mints nothing. Every change
//! appends its audit event before it is made (docs/adr/0006).

mod access;
mod blast;
mod ca;
mod command;
mod credentials;
mod desk;
mod encryption;
mod execute;
mod factors;
mod findings;
mod instances;
mod keys;
mod logs;
mod output;
mod render;
mod replay;
mod report;
mod review;
mod rotate;
mod sessions;
mod status;
mod trail;
mod users;
mod wire;
mod words;

pub use crate::session::Chunk;
pub use command::*;
pub use credentials::{custody, errands};
pub use desk::FrontDesk;
pub use execute::{execute, permitted};
pub use logs::{StateVerified, verify};
pub use output::{Caller, Fault, Output, Visitor};
pub use rotate::rotation;
pub use wire::{MAX_REQUEST, Reply, Request, read_reply};
pub use words::*;
