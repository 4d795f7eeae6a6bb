//! Commands about who may reach what.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keystore::{Capability, InstanceName, Login, Recording, Role, UserName};
use serde::{Deserialize, Serialize};

use crate::admin::words::{Destination, Label, Network, When, reason};

/// `access …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Access {
    /// Allow; a deny beats every allow
    Allow(RuleTerms),
    /// Deny, whatever else allows it
    Deny(RuleTerms),
    /// List rules
    List,
    /// Who can reach what, with which key, and when they last did
    Review,
    /// Remove a rule
    Remove {
        /// The rule: R3
        id: String,
    },
    /// Rules that never match, have expired, overlap, or name what is not there
    Audit,
    /// All rules as JSON
    Export {
        /// Write here (default: standard output)
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Lockdown: end every session, let nobody in until it is ended here
    #[command(group(clap::ArgGroup::new("what").required(true).args(["reason", "end"])))]
    DenyAll {
        /// Why, for the audit trail and for those who are cut
        #[arg(long, value_parser = reason)]
        reason: Option<String>,
        /// End the lockdown
        #[arg(long)]
        end: bool,
    },
    /// Would this user get there, and why
    Explain {
        /// The user
        user: UserName,
        /// LOGIN@INSTANCE
        destination: Destination,
        /// As if from this address
        #[arg(long)]
        from: Option<std::net::IpAddr>,
    },
}

/// What an access rule says.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["user", "role"])))]
#[command(group(clap::ArgGroup::new("where").required(true).args(["instance", "label"])))]
pub struct RuleTerms {
    /// This user
    #[arg(long)]
    pub user: Option<UserName>,
    /// Everyone with this role
    #[arg(long)]
    pub role: Option<Role>,
    /// This instance
    #[arg(long)]
    pub instance: Option<InstanceName>,
    /// Every instance with this label: env=prod
    #[arg(long)]
    pub label: Option<Label>,
    /// As this login (repeatable)
    #[arg(long = "login", required = true, value_delimiter = ',')]
    pub logins: Vec<Login>,
    /// To do what: shell,exec,sftp,forward,agent
    #[arg(long, value_delimiter = ',', default_value = "shell,exec,sftp")]
    pub can: Vec<Capability>,
    /// From this network only (repeatable)
    #[arg(long)]
    pub from: Vec<Network>,
    /// When the rule ends: a date, RFC 3339 time, or from now: 12h
    #[arg(long)]
    pub expires: Option<When>,
    /// If recording fails, a session ends (strict) or goes on (best-effort); default: as configured
    #[arg(long)]
    pub recording: Option<Recording>,
}
