//! The command language: one grammar for the local socket and for SSH exec.
//!
//! Only shapes and names; what a command does stands in the modules beside. Values are parsed into types here, so a
//! malformed name never travels. Files are read by the client and travel as text in the `*_text` fields.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keystore::{Capability, HostPort, InstanceName, Login, Role, UserName};
use serde::{Deserialize, Serialize};

use super::words::{Destination, Label, Network, Offset, Span, When};

/// Everything the daemon can be asked to do.
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Command {
    /// Version, live sessions, keys about to expire, journal state
    Status,
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
    /// The audit trail
    #[command(subcommand)]
    Logs(Logs),
    /// Whom recordings are sealed to
    #[command(subcommand)]
    Recording(Recording),
    /// The public keys of the certificate authorities
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
    /// Suspend a user; live sessions end
    Suspend {
        /// The user
        name: UserName,
        /// Why
        #[arg(long, default_value = "suspended by an administrator")]
        reason: String,
    },
    /// Let a suspended user log in again
    Resume {
        /// The user
        name: UserName,
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
    /// Add a public key (ssh-ed25519 or sk-ssh-ed25519)
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
        #[arg(long)]
        reason: String,
    },
}

/// `mfa …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Mfa {
    /// Enrol an authenticator; prints secret, QR code and recovery codes once
    Enroll {
        /// The user
        name: UserName,
    },
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
        #[arg(long)]
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
}

/// `sessions …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Sessions {
    /// List sessions
    List {
        /// Only those open now
        #[arg(long)]
        live: bool,
        /// Of this user
        #[arg(long)]
        user: Option<UserName>,
        /// Begun since: a date, RFC 3339 time, or ago: 24h
        #[arg(long)]
        since: Option<When>,
        /// Only some of them.
        #[command(flatten)]
        only: Box<SessionFilter>,
    },
    /// Show one session
    Show {
        /// The session
        id: String,
    },
    /// Replay a terminal session here
    Play {
        /// The session
        id: String,
        /// Times faster
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
        /// Begin there: 1h20m, 90s
        #[arg(long, default_value = "0s")]
        from: Offset,
    },
    /// What a person saw, as text with time stamps
    Transcript {
        /// The session
        id: String,
    },
    /// Find text on screens, in output, commands and file names
    Search {
        /// Text, whatever its case
        pattern: String,
        /// The pattern is a regular expression
        #[arg(long)]
        regex: bool,
        /// In sessions of this user
        #[arg(long)]
        user: Option<UserName>,
        /// In sessions begun since: a date, RFC 3339 time, or ago: 24h
        #[arg(long)]
        since: Option<When>,
    },
    /// What was not recorded, and why
    Gaps {
        /// In sessions begun since: a date, RFC 3339 time, or ago: 30d
        #[arg(long)]
        since: Option<When>,
    },
    /// Watch a live session; its user is told
    Watch {
        /// The session
        id: String,
    },
    /// Export a terminal session as asciicast v2, or all as JSON
    Export {
        /// The session
        id: String,
        /// Write here (default: standard output)
        #[arg(long)]
        output: Option<PathBuf>,
        /// asciicast or json
        #[arg(long, value_enum, default_value = "asciicast")]
        format: Format,
    },
    /// Check that a tape is whole and unchanged
    Verify {
        /// The session
        id: String,
    },
    /// End a live session
    Kill {
        /// The session
        id: String,
        /// What the user is told
        #[arg(long, default_value = "ended by an administrator")]
        reason: String,
    },
}

/// Which sessions `sessions list` shows.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
pub struct SessionFilter {
    /// As this login
    #[arg(long)]
    pub login: Option<Login>,
    /// On this instance
    #[arg(long)]
    pub instance: Option<InstanceName>,
    /// With this key (SHA256: fingerprint)
    #[arg(long)]
    pub key: Option<String>,
    /// From this address or network
    #[arg(long)]
    pub source: Option<Network>,
    /// With this text in a command
    #[arg(long)]
    pub command: Option<String>,
}

/// What `sessions export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Format {
    /// asciicast v2.
    Asciicast,
    /// The summary as JSON.
    Json,
}

/// `logs …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Logs {
    /// Events between two times as one JSON array, as JSON lines, or as CSV
    Export {
        /// From: a date, RFC 3339 time, or ago: 24h
        #[arg(long)]
        start: When,
        /// Until (default: now)
        #[arg(long)]
        end: Option<When>,
        /// json, ndjson or csv
        #[arg(long, value_enum, default_value = "json")]
        format: LogFormat,
        /// Write here (default: standard output)
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// The last events, one JSON object a line
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
        /// Go on as they come
        #[arg(short, long)]
        follow: bool,
    },
    /// Check the whole chain; names the first bad record (exit 10)
    Verify {
        /// Offline, on the files of this state directory
        #[arg(long)]
        state: Option<PathBuf>,
        /// Trust this audit key (audit_key.pub, kept elsewhere) and not the one that lies beside the chain
        #[arg(long, requires = "state")]
        trust: Option<PathBuf>,
        /// The heads that the daemon wrote to audit.head_file: the chain must still lead to them
        #[arg(long, requires = "state")]
        heads: Option<PathBuf>,
    },
}

/// What `logs export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum LogFormat {
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// Comma-separated values (RFC 4180), safe to open in a spreadsheet.
    Csv,
}

/// `recording …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Recording {
    /// Wrap the key of every recording anew, to the recipients of now; the recordings themselves are not touched
    Rewrap {
        /// Offline, on the recordings of this state directory
        #[arg(long)]
        state: Option<PathBuf>,
        /// Offline: the identity that opens them now
        #[arg(long, requires = "state")]
        identity: Option<PathBuf>,
        /// Also to this recipient: age1… (repeatable; on the bastion only. With --state: to these alone)
        #[arg(long = "recipient")]
        recipients: Vec<String>,
    },
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
