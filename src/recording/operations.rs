//! Operations: which files a channel moved, changed or removed, told from the bytes that passed.
//!
//! Observes; never changes what is relayed or kept. Content is hashed as it passes, never held. Everything a peer can
//! make grow is bounded, and a stream that is not what it should be is given up with the byte where it went wrong:
//! the ledger then keeps what follows, or somebody could talk through what looks like a transfer.

use std::path::Path;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::message::Direction;
use super::scp::Scp;
use super::sftp::Sftp;

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// Content came from the instance.
    Read,
    /// Content went to the instance.
    Written,
    /// Renamed, or linked under another name.
    Renamed,
    /// Removed.
    Removed,
    /// A directory was made.
    DirectoryMade,
    /// Permissions, owner, size or times were changed.
    Changed,
}

impl Deed {
    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Written => "written",
            Self::Renamed => "renamed",
            Self::Removed => "removed",
            Self::DirectoryMade => "directory made",
            Self::Changed => "changed",
        }
    }
}

/// One operation on a file of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What was done.
    pub deed: Deed,
    /// By which protocol: `sftp`, `scp`, `rsync`, `git`.
    pub by: String,
    /// The path as the client named it.
    pub path: String,
    /// The new path of a rename, or what was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Bytes of content that passed.
    pub bytes: u64,
    /// SHA-256 of that content, hex, where it passed once, in order and to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it failed or is not known whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Operation {
    pub(super) fn new(deed: Deed, by: &str, path: String) -> Self {
        Self { deed, by: by.to_owned(), path, to: None, bytes: 0, sha256: None, fault: None }
    }

    /// One line for people; may hold control characters of the path.
    pub fn line(&self) -> String {
        let mut line = format!("{} {} {}", self.by, self.deed.as_str(), self.path);
        if let Some(to) = &self.to {
            line.push_str(&format!(" -> {to}"));
        }
        if matches!(self.deed, Deed::Read | Deed::Written) {
            line.push_str(&format!(", {} bytes", self.bytes));
        }
        if let Some(sha256) = &self.sha256 {
            line.push_str(&format!(", SHA-256 {sha256}"));
        }
        if let Some(fault) = &self.fault {
            line.push_str(&format!(" ({fault})"));
        }
        line
    }
}

/// Content that passes, hashed while it passes in order.
pub(super) struct Content {
    pub(super) bytes: u64,
    next: u64,
    hash: Sha256,
    in_order: bool,
}

impl Content {
    pub(super) fn new() -> Self {
        Self { bytes: 0, next: 0, hash: Sha256::new(), in_order: true }
    }

    /// A piece that belongs at `offset`.
    pub(super) fn at(&mut self, offset: u64, piece: &[u8]) {
        self.in_order &= offset == self.next;
        self.bytes += piece.len() as u64;
        self.next = offset.saturating_add(piece.len() as u64);
        if self.in_order {
            self.hash.update(piece);
        }
    }

    /// The next piece.
    pub(super) fn next(&mut self, piece: &[u8]) {
        self.at(self.next, piece);
    }

    /// Ends it into the operation that moved it.
    pub(super) fn tell(self, operation: &mut Operation) {
        operation.bytes = self.bytes;
        operation.sha256 = self.in_order.then(|| HEXLOWER.encode(&self.hash.finalize()));
        if !self.in_order {
            operation.fault = Some("not in order, so not hashed".to_owned());
        }
    }
}

/// What a channel's bytes are read as.
pub(super) enum Observer {
    /// The sftp subsystem.
    Sftp(Box<Sftp>),
    /// `scp -t` and `scp -f`, the old protocol.
    Scp(Box<Scp>),
    /// `rsync --server` and git: known by their command, counted to the end.
    Whole { operation: Operation, direction: Direction },
}

/// A stream that is not what it should be.
pub(super) struct Deviates(pub(super) &'static str);

impl Observer {
    /// The observer for a command line, if it is one that moves files.
    pub(super) fn of_command(command: &str) -> Option<Self> {
        let words = shlex::split(command)?;
        let program = words.first().and_then(|word| Path::new(word).file_name()).and_then(|n| n.to_str())?;
        let rest: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        match program {
            "scp" => Scp::of(&rest).map(|scp| Self::Scp(Box::new(scp))),
            "rsync" if rest.first() == Some(&"--server") => {
                let sends = rest.contains(&"--sender");
                let paths = rest.iter().skip_while(|word| **word != ".").skip(1).copied().collect::<Vec<_>>();
                Some(Self::whole(sends, "rsync", paths.join(" ")))
            }
            "git-upload-pack" => Some(Self::whole(true, "git", rest.last()?.to_string())),
            "git-upload-archive" => Some(Self::whole(true, "git", rest.last()?.to_string())),
            "git-receive-pack" => Some(Self::whole(false, "git", rest.last()?.to_string())),
            "git" => match rest.as_slice() {
                ["upload-pack" | "upload-archive", .., path] => {
                    Some(Self::whole(true, "git", (*path).into()))
                }
                ["receive-pack", .., path] => Some(Self::whole(false, "git", (*path).into())),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn sftp() -> Self {
        Self::Sftp(Box::default())
    }

    fn whole(sends: bool, by: &str, path: String) -> Self {
        let (deed, direction) =
            if sends { (Deed::Read, Direction::ToUser) } else { (Deed::Written, Direction::ToInstance) };
        let mut operation = Operation::new(deed, by, path);
        operation.fault = Some("all bytes of the protocol together, not single files".to_owned());
        Self::Whole { operation, direction }
    }

    /// Bytes that pass; what they complete goes to `done`.
    pub(super) fn pass(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        done: &mut Vec<Operation>,
    ) -> Result<(), Deviates> {
        match self {
            Self::Sftp(sftp) => sftp.pass(direction, bytes, done),
            Self::Scp(scp) => scp.pass(direction, bytes, done),
            Self::Whole { operation, direction: counted } => {
                if direction == *counted {
                    operation.bytes += bytes.len() as u64;
                }
                Ok(())
            }
        }
    }

    /// The channel is over: what is still open ends here.
    pub(super) fn end(self, done: &mut Vec<Operation>) {
        match self {
            Self::Sftp(sftp) => sftp.end(done),
            Self::Scp(scp) => scp.end(done),
            Self::Whole { operation, .. } => done.push(operation),
        }
    }
}

/// Text of a peer, bounded.
pub(super) fn bounded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..LONGEST_PATH).unwrap_or(bytes)).into_owned()
}

/// As PATH_MAX.
pub(super) const LONGEST_PATH: usize = 4096;
