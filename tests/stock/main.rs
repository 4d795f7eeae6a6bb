//! The built binary, driven with stock tools: ssh, scp, sftp, rsync, git, sshd, oathtool, asciinema, and
//! other people's clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod accounting;
mod administration;
mod attacks;
mod auditor;
mod authorities;
mod browser;
mod capabilities;
mod casefile;
mod certificates;
mod channels;
mod clock;
mod console;
mod contract;
mod copy;
mod crash;
mod cuts;
mod desk;
mod destinations;
mod disorder;
mod elsewhere;
mod ending;
mod enrolment;
mod evidence;
mod factors;
mod five;
mod flow;
mod forged;
mod forward;
mod greed;
mod halves;
mod hostile;
mod interop;
mod jump;
mod kinds;
mod leaver;
mod libraries;
mod login;
mod managed;
mod master_key;
mod nested;
mod quarter;
mod raw;
mod rekey;
mod reload;
mod reports;
mod rig;
mod roles;
mod rotation;
mod seeing;
mod severed;
mod smuggling;
mod strict;
mod tls;
mod unasked;
mod waiting;
