//! Sessions: opened in a fixed order, relayed through the tape, cut when their right ends, closed into the trail.
//!
//! [`open`] takes an `Authenticated` caller and walks the doors: policy, tape, audit receipt, dial. [`relay`] moves one
//! channel's messages both ways, each recorded before it is sent. [`Registry`] knows what is live; [`watch`] re-decides
//! it whenever a user, key, instance or rule changes. Nothing here speaks SSH: `ingress` and `egress` do.

mod approvals;
mod credential;
mod desk;
mod house;
mod listening;
mod open;
mod registry;
mod relay;
mod watch;

pub use approvals::Approvals;
pub use desk::{Ask, Chunk, Desk, Stream};
pub use house::House;
pub use open::{Ongoing, OpenFault, Opened, Wanted, open, open_plain};
pub use registry::{Cut, Live, LiveInfo, Registered, Registry, cut};
pub(crate) use relay::parting;
pub use relay::{Carries, Ear, Lane, Mouth, Sides, relay};
pub use watch::{LoggedIn, enter, lockdown_sentence, recompile, still_in, watch};
