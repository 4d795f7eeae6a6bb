//! Commands of the auditor's desk: sessions, the trail, whom recordings are sealed to.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keystore::{InstanceName, Login, UserName};
use serde::{Deserialize, Serialize};

use crate::admin::words::{Label, Network, Offset, Speed, When, reason};

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
        /// How many of those.
        #[command(flatten)]
        part: Part,
        /// Offline, in this copy of a state directory
        #[arg(long, conflicts_with = "live")]
        state: Option<PathBuf>,
    },
    /// Show one session
    Show {
        /// The session
        id: String,
        /// Offline, in this copy of a state directory
        #[arg(long)]
        state: Option<PathBuf>,
    },
    /// Replay a terminal session here
    Play {
        /// The session
        id: String,
        /// Times faster
        #[arg(long, default_value = "1", allow_negative_numbers = true)]
        speed: Speed,
        /// Begin there: 1h20m, 90s
        #[arg(long, default_value = "0s")]
        from: Offset,
        /// Where it lies.
        #[command(flatten)]
        copy: FromCopy,
    },
    /// What a person saw, as text with time stamps
    Transcript {
        /// The session
        id: String,
        /// Only what was typed or done: commands and file operations
        #[arg(long)]
        #[serde(default)]
        commands: bool,
        /// Where it lies.
        #[command(flatten)]
        copy: FromCopy,
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
        /// Only in some of them.
        #[command(flatten)]
        only: Box<SessionFilter>,
        /// Where they lie.
        #[command(flatten)]
        copy: FromCopy,
    },
    /// What was not recorded, and why
    Gaps {
        /// In sessions of this user
        #[arg(long)]
        user: Option<UserName>,
        /// In sessions begun since: a date, RFC 3339 time, or ago: 30d
        #[arg(long)]
        since: Option<When>,
        /// Only in some of them.
        #[command(flatten)]
        only: Box<SessionFilter>,
        /// Offline, in this copy of a state directory
        #[arg(long)]
        state: Option<PathBuf>,
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
        /// Where it lies.
        #[command(flatten)]
        copy: FromCopy,
    },
    /// Take recordings out as a signed archive for a case file
    Bundle {
        /// The sessions
        #[arg(required = true)]
        ids: Vec<String>,
        /// Write here, if nothing is there yet (default: standard output)
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Check that a tape, or an archive, is whole and unchanged
    Verify {
        /// The session
        #[arg(required_unless_present = "bundle")]
        id: Option<String>,
        /// Offline: this archive, as sessions bundle made it
        #[arg(long, requires = "trust", conflicts_with = "id", group = "offline")]
        bundle: Option<PathBuf>,
        /// Offline, in this copy of a state directory
        #[arg(long, requires = "id", group = "offline")]
        state: Option<PathBuf>,
        /// Offline: the auditors' identity; with it every frame is opened too
        #[arg(long, requires = "state")]
        identity: Option<PathBuf>,
        /// Offline: the audit key (audit_key.pub) that you kept elsewhere
        #[arg(long, requires = "offline")]
        trust: Option<PathBuf>,
    },
    /// Keep a recording past its time
    Hold {
        /// The session
        id: String,
        /// Why, for the audit trail
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Keep it as long as the others again
    Release {
        /// The session
        id: String,
        /// Why, for the audit trail
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// What is kept past its time, by whom and why
    Holds,
    /// Let another auditor watch a live session, where that takes two
    Approve {
        /// The session
        id: String,
        /// Who may watch
        #[arg(long = "for")]
        watcher: String,
    },
    /// End a live session
    Kill {
        /// The session
        id: String,
        /// What the user is told
        #[arg(long, default_value = "ended by an administrator", value_parser = reason)]
        reason: String,
    },
}

impl Sessions {
    /// The ids of the sessions that are named.
    pub(in crate::admin) fn ids_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::Show { id, .. }
            | Self::Play { id, .. }
            | Self::Transcript { id, .. }
            | Self::Watch { id }
            | Self::Export { id, .. }
            | Self::Hold { id, .. }
            | Self::Release { id, .. }
            | Self::Approve { id, .. }
            | Self::Kill { id, .. } => vec![id],
            Self::Bundle { ids, .. } => ids.iter_mut().collect(),
            Self::Verify { id, .. } => id.iter_mut().collect(),
            Self::List { .. } | Self::Search { .. } | Self::Gaps { .. } | Self::Holds => Vec::new(),
        }
    }
}

/// A copy of a bastion's files, or an unpacked archive, to read recordings from without a daemon.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct FromCopy {
    /// Offline, from this copy of a state directory, or the folder of an unpacked archive
    #[arg(long, requires = "identity")]
    pub state: Option<PathBuf>,
    /// Offline: the auditors' identity that opens them
    #[arg(long, requires = "state")]
    pub identity: Option<PathBuf>,
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
    /// On an instance with this label: KEY=VALUE
    #[arg(long)]
    pub label: Option<Label>,
    /// With this key (SHA256: fingerprint)
    #[arg(long)]
    pub key: Option<String>,
    /// From this address or network
    #[arg(long)]
    pub source: Option<Network>,
    /// With this text in a command
    #[arg(long)]
    pub command: Option<String>,
    /// With a command that ended so
    #[arg(long, value_name = "CODE")]
    pub exit: Option<u32>,
    /// In which a file with this text in its path was read or written, or a command names it
    #[arg(long, value_name = "TEXT")]
    pub path: Option<String>,
    /// Begun before: a date, RFC 3339 time, or ago: 24h
    #[arg(long)]
    pub until: Option<When>,
    /// Running then, whenever they began: an RFC 3339 time, or ago: 2h
    #[arg(long, value_name = "TIME")]
    #[serde(default)]
    pub at: Option<When>,
}

impl SessionFilter {
    /// It leaves out nothing.
    pub fn is_none(&self) -> bool {
        let Self { login, instance, label, key, source, command, exit, path, until, at } = self;
        let words = [key, command, path].iter().all(|word| word.is_none());
        let place = login.is_none() && instance.is_none() && label.is_none() && source.is_none();
        words && place && exit.is_none() && until.is_none() && at.is_none()
    }
}

/// How much of a list is shown.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
pub struct Part {
    /// Only so many, the newest
    #[arg(long)]
    pub last: Option<usize>,
    /// Leave out so many of the newest
    #[arg(long, default_value_t = 0)]
    pub skip: usize,
    /// Only say how many there are
    #[arg(long)]
    pub count: bool,
}

impl Part {
    /// The part of a list whose newest is the last.
    pub fn of<'a, T>(&self, found: &'a [T]) -> &'a [T] {
        let end = found.len().saturating_sub(self.skip);
        let start = end.saturating_sub(self.last.unwrap_or(end));
        found.get(start..end).unwrap_or_default()
    }
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
        /// json, ndjson, csv, or ocsf (one event of that schema a line)
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
        /// Offline: the auditors' identity; with it every frame of every tape is opened too
        #[arg(long, requires = "state")]
        identity: Option<PathBuf>,
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
    /// Events of the Open Cybersecurity Schema Framework, one JSON object a line.
    Ocsf,
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
