//! Operations: which files a channel moved, changed or removed, told from the bytes that passed.
//!
//! Observes; never changes what is relayed or kept. Content is hashed as it passes, never held. Everything a peer can
//! make grow is bounded, and a stream that is not what it should be is given up with the byte where it went wrong:
//! the ledger then keeps what follows, or somebody could talk through what looks like a transfer.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::commands::{name, programs};
use super::message::Direction;
use super::scp::Scp;
use super::sftp::Sftp;
use super::sniff::is_rsync;

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
    /// Where it is instead if what the client named was not what it seemed: a directory, or one of several of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_path: Option<String>,
    /// The new path of a rename, or what was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Bytes of content that passed.
    pub bytes: u64,
    /// SHA-256 of that content, hex, where it passed once, in order and to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SHA-256 of all bytes of the protocol that went this way, hex, where single files do not pass whole (rsync, git).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_sha256: Option<String>,
    /// Why it failed or is not known whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

impl Operation {
    pub(super) fn new(deed: Deed, by: &str, path: String) -> Self {
        Self {
            deed,
            by: by.to_owned(),
            path: shortened(path),
            or_path: None,
            to: None,
            bytes: 0,
            sha256: None,
            stream_sha256: None,
            fault: None,
        }
    }

    /// Says more of why it is not known whole.
    pub(super) fn doubt(&mut self, why: &str) {
        let before = self.fault.take().map(|fault| format!("{fault}; ")).unwrap_or_default();
        self.fault = Some(format!("{before}{why}"));
    }

    /// Whether the instance refused it.
    pub fn failed(&self) -> bool {
        self.fault.as_deref().is_some_and(|fault| fault.starts_with(FAILED))
    }

    /// One line for people; may hold control characters of the path.
    pub fn line(&self) -> String {
        let mut line = format!("{} {} {}", self.by, self.deed.as_str(), self.path);
        if let Some(or) = &self.or_path {
            line.push_str(&format!(" (or {or})"));
        }
        if let Some(to) = &self.to {
            line.push_str(&format!(" -> {to}"));
        }
        if matches!(self.deed, Deed::Read | Deed::Written) {
            line.push_str(&format!(", {} bytes", self.bytes));
        }
        if let Some(sha256) = &self.sha256 {
            line.push_str(&format!(", SHA-256 {sha256}"));
        }
        if let Some(sha256) = &self.stream_sha256 {
            line.push_str(&format!(", SHA-256 of the stream {sha256}"));
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
            operation.doubt("not in order, so not hashed");
        }
    }
}

/// What a channel's bytes are read as.
pub(super) enum Observer {
    /// The sftp subsystem, or its server as a command.
    Sftp(Box<Sftp>),
    /// `scp -t` and `scp -f`, the old protocol.
    Scp(Box<Scp>),
    /// `rsync --server` and git: counted and hashed to the end.
    Whole(Box<Whole>),
}

/// A stream that is not what it should be.
pub(super) struct Deviates(pub(super) &'static str);

/// What a command line says of the transfer that it starts.
pub(super) enum Told {
    /// It is read as this; the line does more, so its words may not be the whole truth.
    Read { observer: Observer, alone: bool },
    /// A transfer whose protocol is not read, and why.
    Unread(&'static str),
}

impl Observer {
    /// What a command line tells of files that it moves, if anything.
    pub(super) fn of_command(command: &str) -> Option<Told> {
        let programs = programs(command);
        let alone = programs.len() == 1;
        let mut told = programs.iter().filter_map(|words| Self::of_program(words));
        let first = told.next()?;
        Some(match first {
            Ok(_) if told.next().is_some() => {
                Told::Unread("several transfers in one command line are not read")
            }
            Ok(observer) => Told::Read { observer, alone },
            Err(why) => Told::Unread(why),
        })
    }

    fn of_program(words: &[String]) -> Option<Result<Self, &'static str>> {
        let program = name(words.first()?);
        let rest: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        let whole = |sends, by, path: &str| Some(Ok(Self::whole(Some(sends), by, path.to_owned())));
        match program {
            "scp" => Scp::of(&rest).map(|read| read.map(|scp| Self::Scp(Box::new(scp)))),
            "sftp-server" | "internal-sftp" => Some(Ok(Self::sftp())),
            "rsync" if rest.contains(&"--server") => Some(rsync(&rest)),
            "git-upload-pack" | "git-upload-archive" => whole(true, "git", rest.last()?),
            "git-receive-pack" => whole(false, "git", rest.last()?),
            "git" => match rest.iter().position(|word| GIT_SERVES.contains(word)).map(|at| rest.split_at(at))
            {
                Some((_, [serves, .., path])) => whole(*serves != "receive-pack", "git", path),
                _ => None,
            },
            "rz" | "sz" | "lrz" | "lsz" | "kermit" | "unison" => Some(Err("its protocol is not read")),
            _ => None,
        }
    }

    pub(super) fn sftp() -> Self {
        Self::Sftp(Box::default())
    }

    pub(super) fn whole(sends: Option<bool>, by: &'static str, path: String) -> Self {
        let deed = sends.map(|sends| if sends { Deed::Read } else { Deed::Written });
        // `rsync -s` names the files in the stream.
        let names = (by == "rsync" && path.is_empty() && deed.is_some()).then(Vec::new);
        let content = [Content::new(), Content::new()];
        Self::Whole(Box::new(Whole { by, path, deed, names, content }))
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
            Self::Whole(whole) => whole.pass(direction, bytes),
        }
    }

    /// The channel is over: what is still open ends here.
    pub(super) fn end(self, done: &mut Vec<Operation>) {
        match self {
            Self::Sftp(sftp) => sftp.end(done),
            Self::Scp(scp) => scp.end(done),
            Self::Whole(whole) => done.push(whole.operation()),
        }
    }
}

fn rsync(words: &[&str]) -> Result<Observer, &'static str> {
    if words.contains(&"--daemon") {
        return Err("rsync as a daemon names its files in the stream, which is not read");
    }
    let paths: Vec<&str> = words.iter().skip_while(|word| **word != ".").skip(1).copied().collect();
    // Behind `--` stand names, whatever they look like.
    let sends = words.iter().take_while(|word| **word != "--").any(|word| *word == "--sender");
    Ok(Observer::whole(Some(sends), "rsync", paths.join(" ")))
}

/// A protocol that is not read, but counted and hashed as a whole. What rsync sends are differences to what the other
/// side has, so that the digest of a file never passes; the digest of the stream proves what did.
pub(super) struct Whole {
    by: &'static str,
    path: String,
    /// Not known where no command line told.
    deed: Option<Deed>,
    /// The beginning of the stream that still names the files.
    names: Option<Vec<u8>>,
    /// From the user, from the instance.
    content: [Content; 2],
}

impl Whole {
    fn pass(&mut self, direction: Direction, bytes: &[u8]) -> Result<(), Deviates> {
        let [up, down] = &mut self.content;
        let passed = if direction == Direction::ToInstance { &mut *up } else { down };
        let begins = passed.bytes == 0 && !bytes.is_empty();
        passed.next(bytes);
        if let Some(names) = self.names.as_mut().filter(|_| direction == Direction::ToInstance) {
            names.extend_from_slice(bytes);
            if let Some(end) = names.windows(2).position(|two| two == [0, 0]) {
                let words: Vec<&[u8]> =
                    names.get(..end).unwrap_or_default().split(|byte| *byte == 0).collect();
                let paths = words.iter().skip_while(|word| **word != b".").skip(1).map(|word| bounded(word));
                self.path = bounded(paths.collect::<Vec<_>>().join(" ").as_bytes());
                self.names = None;
            } else if names.len() > 4 * LONGEST_PATH {
                return Err(Deviates("this is not rsync"));
            }
            return Ok(());
        }
        match self.by {
            "rsync" if begins && bytes.len() >= 4 && !is_rsync(bytes) => Err(Deviates("this is not rsync")),
            "git" if begins && bytes.len() >= 4 && !is_git(bytes) => Err(Deviates("this is not git")),
            _ => Ok(()),
        }
    }

    fn operation(self) -> Operation {
        let [up, down] = self.content;
        let deed = self.deed.unwrap_or(if up.bytes > down.bytes { Deed::Written } else { Deed::Read });
        let mut operation = Operation::new(deed, self.by, self.path);
        let stream = if deed == Deed::Written { up } else { down };
        operation.bytes = stream.bytes;
        operation.stream_sha256 = Some(HEXLOWER.encode(&stream.hash.finalize()));
        operation.fault = Some("all bytes of the protocol together, not single files".to_owned());
        operation
    }
}

/// A pkt-line (gitprotocol-common), also as a fault.
fn is_git(bytes: &[u8]) -> bool {
    bytes.iter().take(4).all(u8::is_ascii_hexdigit)
}

/// How the fault of what the instance refused begins.
pub(super) const FAILED: &str = "failed with status";
const GIT_SERVES: [&str; 3] = ["upload-pack", "upload-archive", "receive-pack"];

/// Text of a peer, bounded.
pub(super) fn bounded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..LONGEST_PATH).unwrap_or(bytes)).into_owned()
}

/// A path of a command line, which may name thousands.
pub(super) fn shortened(mut path: String) -> String {
    if let Some((end, _)) = path.char_indices().find(|(at, _)| *at >= LONGEST_PATH) {
        path.truncate(end);
        path.push('…');
    }
    path
}

/// As PATH_MAX.
pub(super) const LONGEST_PATH: usize = 4096;
