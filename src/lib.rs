//! Keyward: an SSH bastion and key-lifecycle gateway. Plain `ssh -J`, recorded in full.
//!
//! The rooms stand on floors; each imports only rooms on lower floors (`tests/house.rs` checks it).

pub mod admin;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod console;
pub mod egress;
pub mod guard;
pub mod ingress;
pub mod policy;
pub mod recording;
pub mod rotation;
pub mod server;
pub mod session;
