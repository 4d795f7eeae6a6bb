//! The audit trail: what happened, in order, so that a removal or a change shows.
//!
//! Owns the [`Event`] enum, the durable append that returns a [`Receipt`], the query, the signed checkpoints and the
//! offline verification. It never loses an event in silence: an append that is not on the disk is an error, and the
//! caller must not go on. `tracing` is for operators and is never the trail.
//! Mints the [`Receipt`] that `egress::dial` asks for.

mod change;
mod event;
mod forged;
mod heads;
mod mark;
mod out;
mod store;
mod tell;
mod text;
mod trail;
mod verify;

pub use event::{Event, FileFacts, SessionFacts};
pub use forged::Forged;
pub use keystore::journal::Receipt;
pub use mark::Marks;
pub use out::{Outlets, Receivers, Standing, SyslogAddress, SyslogTerms, WebhookTerms};
pub use store::{SeenStore, StoreHead};
pub use tell::{Excerpt, Hold};
pub use text::{harmless, is_command, plain};
pub use trail::{AuditError, Filter, Follow, Keeping, Known, Trail};
pub use verify::{
    Against, ClosedTape, DeletedTape, Fault, Verified, read_key, verify, verify_counting, verify_length,
    verify_with,
};
