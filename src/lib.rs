//! Keyward: an SSH bastion and key-lifecycle gateway. Plain `ssh -J`, recorded in full.
//!
//! The rooms stand on floors; each imports only rooms on lower floors (`tests/house.rs` checks it).

pub mod audit;
pub mod auth;
pub mod config;
pub mod guard;
pub mod policy;
