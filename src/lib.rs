//! Keyward: an SSH bastion and key-lifecycle gateway. Plain `ssh -J`, recorded in full.
//!
//! The rooms, highest floor first; each imports only rooms on lower floors (`tests/house.rs` checks it).

pub mod cli;
pub mod server;
pub mod admin;
pub mod ingress;
pub mod session;
pub mod egress;
pub mod config;
pub mod recording;
pub mod policy;
pub mod auth;
pub mod audit;
pub mod guard;
