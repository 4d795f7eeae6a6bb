//! The command language: one grammar for the local socket and for SSH exec.
//!
//! Only shapes and names; what a command does stands in the modules beside. Values are parsed into types here, so a
//! malformed name never travels. Files are read by the client and travel as text in the `*_text` fields.

use clap::Subcommand;
use keystore::UserName;
use serde::{Deserialize, Serialize};

mod access;
mod desk;
mod encryption;
mod nature;
mod people;
mod places;
mod sources;

pub use access::{Access, RuleTerms};
pub use desk::{Format, FromCopy, LogFormat, Logs, Part, Recording, SessionFilter, Sessions};
pub use encryption::Encryption;
pub(super) use nature::FromAfar;
pub use people::{Kind, Mfa, SshKeys, Users};
pub use places::{Ca, InstanceAdd, Instances, Means, Which};
pub use sources::Sources;

/// Everything the daemon can be asked to do.
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Command {
    /// Version, live sessions, keys about to expire, journal state
    Status,
    /// Whether the machine's clock is believed
    Clock {
        /// It is right: what has come to its end by it may end
        #[arg(long)]
        is_right: bool,
    },
    /// Who may log in to the bastion
    #[command(subcommand)]
    Users(Users),
    /// The public keys people log in with
    #[command(subcommand)]
    SshKeys(SshKeys),
    /// Second factors: authenticator codes and recovery codes
    #[command(subcommand)]
    Mfa(Mfa),
    /// The private instances behind the bastion
    #[command(subcommand)]
    Instances(Instances),
    /// Who may reach what; nothing is allowed by default
    #[command(subcommand, alias = "firewall")]
    Access(Access),
    /// Recorded sessions: list, replay, export, verify, kill
    #[command(subcommand)]
    Sessions(Sessions),
    /// Addresses that failed too often and are kept out for a while
    #[command(subcommand)]
    Sources(Sources),
    /// The audit trail
    #[command(subcommand)]
    Logs(Logs),
    /// Whom recordings are sealed to
    #[command(subcommand)]
    Recording(Recording),
    /// The master key that the store is sealed under
    #[command(subcommand)]
    Encryption(Encryption),
    /// A sign-in link for the auditors' web console: over SSH, valid for a minute, spent once
    Console {
        /// Keep the connection open, for a forward beside it: ssh -L …
        #[arg(long)]
        stay: bool,
    },
    /// The certificate authorities: show, rotate
    #[command(subcommand)]
    Ca(Ca),
    /// The ~/.ssh/config block and the @cert-authority line for a client
    #[command(alias = "setup")]
    SshConfig {
        /// For this user (default over SSH: yourself)
        #[arg(long)]
        user: Option<UserName>,
    },
}
