//! Commands about instances and the certificate authorities that vouch on the way to them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keystore::{HostPort, InstanceName, Login};
use serde::{Deserialize, Serialize};

use crate::admin::words::Label;

/// `instances …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Instances {
    /// Add an instance
    Add(Box<InstanceAdd>),
    /// List instances
    List,
    /// Show one instance
    Show {
        /// The instance
        name: InstanceName,
    },
    /// Remove an instance
    Remove {
        /// The instance
        name: InstanceName,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// The sshd lines an instance needs, as a script for its root
    TrustScript {
        /// The instance (default: for any)
        name: Option<InstanceName>,
    },
}

/// `instances add …`
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[command(group(clap::ArgGroup::new("trust").required(true).args(["host_key", "host_ca", "scan"])))]
pub struct InstanceAdd {
    /// The name people type
    pub name: InstanceName,
    /// Where its sshd listens: HOST:PORT
    #[arg(long)]
    pub address: HostPort,
    /// An account for use through the bastion (repeatable)
    #[arg(long = "login", required = true, value_delimiter = ',')]
    pub logins: Vec<Login>,
    /// A label for rules: env=prod (repeatable)
    #[arg(long = "label")]
    pub labels: Vec<Label>,
    /// Another name for the same instance (repeatable)
    #[arg(long = "alias")]
    pub aliases: Vec<InstanceName>,
    /// File with its public host keys (ssh_host_*_key.pub or known_hosts lines)
    #[arg(long)]
    pub host_key: Option<PathBuf>,
    /// What the client read from the file.
    #[arg(skip)]
    pub host_key_text: Option<String>,
    /// File with the public key of the CA that signs its host certificate
    #[arg(long)]
    pub host_ca: Option<PathBuf>,
    /// What the client read from the file.
    #[arg(skip)]
    pub host_ca_text: Option<String>,
    /// Ask the instance for its keys now and pin them (shows the fingerprints: compare them)
    #[arg(long)]
    pub scan: bool,
}

/// `ca …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Ca {
    /// Print a CA's public key, one line
    Show {
        /// user: for sshd's TrustedUserCAKeys; host: for known_hosts
        #[arg(value_enum)]
        which: Which,
    },
}

/// Which certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Which {
    /// Signs logins on instances.
    User,
    /// Signs host keys shown to clients.
    Host,
}
