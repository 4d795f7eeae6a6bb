//! Commands about people: users, their keys, their second factors.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use keystore::{Role, UserName};
use serde::{Deserialize, Serialize};

use crate::admin::words::{Network, Span, Until, When, reason};

/// `users …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Users {
    /// Add a user
    Add {
        /// The name before @bastion
        name: UserName,
        /// engineer, admin, auditor, or a free name for rules (repeatable; default: engineer)
        #[arg(long = "role")]
        roles: Vec<Role>,
        /// human (key and code) or service (key alone)
        #[arg(long, value_enum, default_value = "human")]
        kind: Kind,
        /// When the user stops working: a date, RFC 3339 time, or from now: 90d
        #[arg(long)]
        expires: Option<When>,
        /// From this network only (repeatable); a service needs one
        #[arg(long)]
        from: Vec<Network>,
    },
    /// List users
    List,
    /// Show one user
    Show {
        /// The user
        name: UserName,
    },
    /// A one-time code with which a user adds a key and an authenticator, with nothing but ssh
    Invite {
        /// The user
        name: UserName,
    },
    /// Give a user roles, or take some away; what a role gave ends at once
    Roles {
        /// The user
        name: UserName,
        /// A role the user gets (repeatable)
        #[arg(long = "add")]
        add: Vec<Role>,
        /// A role the user loses (repeatable)
        #[arg(long = "remove")]
        remove: Vec<Role>,
    },
    /// Suspend a user; live sessions end
    Suspend {
        /// The user
        name: UserName,
        /// Why
        #[arg(long, default_value = "suspended by an administrator", value_parser = reason)]
        reason: String,
    },
    /// Let a suspended or expired user log in again, or change when a user expires
    Resume {
        /// The user
        name: UserName,
        /// When the user stops working now: a date, RFC 3339 time, from now: 90d, or never
        #[arg(long)]
        #[serde(default)]
        expires: Option<Until>,
    },
    /// Remove a user; keys are revoked and live sessions end
    Remove {
        /// The user
        name: UserName,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

/// Human or service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Kind {
    /// Key and code.
    Human,
    /// Key alone.
    Service,
}

/// `ssh-keys …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum SshKeys {
    /// Add a public key (ssh-ed25519, sk-ssh-ed25519, or what keys.algorithms says)
    Add {
        /// Whose key
        #[arg(long)]
        user: UserName,
        /// The .pub file, or - for standard input
        #[arg(long)]
        file: Option<PathBuf>,
        /// What the client read from the file.
        #[arg(skip)]
        file_text: Option<String>,
        /// A label (default: the key's comment)
        #[arg(long)]
        name: Option<String>,
        /// When the key expires: a date, RFC 3339 time, or from now: 90d
        #[arg(long)]
        expires: Option<When>,
        /// A security key whose signatures count only if it verified its user, by PIN or finger
        #[arg(long)]
        verify_required: bool,
    },
    /// List keys
    List {
        /// Of this user
        #[arg(long)]
        user: Option<UserName>,
        /// That expire within: 14d
        #[arg(long)]
        expiring: Option<Span>,
    },
    /// Show one key
    Show {
        /// Id (K12) or SHA256: fingerprint
        key: String,
    },
    /// How old the keys are, which are never used, and whose they are
    Report {
        /// One row for each key, as CSV
        #[arg(long)]
        csv: bool,
    },
    /// Give a key its successor: the old one works until the new one has logged in, and a while longer
    Rotate {
        /// Whose key (default over SSH: yourself)
        #[arg(long)]
        user: Option<UserName>,
        /// The key to replace: id (K12) or SHA256: fingerprint (default over SSH: the one you came with)
        #[arg(long)]
        old: Option<String>,
        /// The new .pub file, or - for standard input (over SSH: always standard input)
        #[arg(long)]
        file: Option<PathBuf>,
        /// What the client read from the file.
        #[arg(skip)]
        file_text: Option<String>,
        /// A label (default: the key's comment)
        #[arg(long)]
        name: Option<String>,
    },
    /// Revoke a key for good; its live sessions end at once
    Revoke {
        /// Id (K12) or SHA256: fingerprint
        key: String,
        /// Why
        #[arg(long, value_parser = reason)]
        reason: String,
    },
}

/// `mfa …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Mfa {
    /// Enrol an authenticator; prints secret, QR code and recovery codes once. Its first code confirms it
    Enroll {
        /// The user
        name: UserName,
        /// In place of the one in use, which goes on until the new one is confirmed
        #[arg(long)]
        replace: bool,
    },
    /// Who has a second factor, and how it is: pending, enrolled, replacing
    List,
    /// Forget the second factor; the user cannot log in until enrolled again
    Reset {
        /// The user
        name: UserName,
    },
    /// Ten new recovery codes; the old ones stop working
    RecoveryCodes {
        /// The user
        name: UserName,
    },
}
