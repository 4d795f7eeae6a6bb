//! Commands about instances and the certificate authorities that vouch on the way to them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keystore::{CaKind, HostPort, InstanceName, Login, SignsIn};
use serde::{Deserialize, Serialize};

use crate::admin::words::{Label, Span};

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
    /// The keys that Keyward itself holds on instances: age, state, and why one could not be rotated
    Credentials,
    /// Rotate the keys that Keyward holds on an instance, now
    Rotate {
        /// The instance
        name: InstanceName,
        /// Only the key for this account
        #[arg(long)]
        login: Option<Login>,
    },
    /// What an instance needs to let Keyward in, as a script for its root
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
    /// What Keyward enters it with: a certificate of minutes, or a key that it holds there and rotates
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub credential: Means,
    /// Ask the instance for its keys now and pin them (shows the fingerprints: compare them)
    #[arg(long)]
    pub scan: bool,
}

/// `ca …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Ca {
    /// Print a CA's public key, one line; while it changes, that of its successor too
    Show {
        /// user: for sshd's TrustedUserCAKeys; host: for known_hosts
        #[arg(value_enum)]
        which: Which,
    },
    /// Announce a successor; both are trusted for the overlap, then the one of now is forgotten
    Rotate {
        /// user: signs logins on instances; host: vouches to clients
        #[arg(value_enum)]
        which: Which,
        /// For how long both are trusted
        #[arg(long, default_value = "7d")]
        overlap: Span,
    },
    /// Ask the instances that were not yet seen to accept the announced user CA, by a login each
    Check,
    /// End the overlap now
    Retire {
        /// Which one
        #[arg(value_enum)]
        which: Which,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

/// What Keyward enters an instance with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
pub enum Means {
    /// A certificate of minutes.
    #[default]
    Certificate,
    /// A key that it holds there.
    Managed,
}

impl From<Means> for SignsIn {
    fn from(means: Means) -> Self {
        match means {
            Means::Certificate => Self::Certificate,
            Means::Managed => Self::Managed,
        }
    }
}

/// Which certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Which {
    /// Signs logins on instances.
    User,
    /// Signs host keys shown to clients.
    Host,
}

impl From<Which> for CaKind {
    fn from(which: Which) -> Self {
        match which {
            Which::User => Self::User,
            Which::Host => Self::Host,
        }
    }
}
