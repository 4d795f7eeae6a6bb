//! The composition root: makes a house, opens it, serves it, drains it.
//!
//! Owns the listeners, the accept loop and the administration socket. It decides nothing about peers: `guard` admits,
//! `ingress` serves.

mod bootstrap;
mod check;
mod reload;
mod run;
mod socket;
#[cfg(test)]
mod tests;
mod upkeep;
mod workers;

pub use bootstrap::{InitError, init};
pub use check::check;
pub use run::{ServeError, run};
