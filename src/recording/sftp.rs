//! sftp version 3 (draft-ietf-secsh-filexfer-02), as far as it tells which files were touched.
//!
//! A streaming decoder: a packet's first fields are read, the content of reads and writes is hashed as it passes and
//! never held. Packets, open files and unanswered requests are bounded; what exceeds them is no sftp. Nor is an answer
//! that nobody asked for, an id that is asked with twice, or a handle that was not given: they could name a wrong file.

mod packets;

use std::collections::{HashMap, HashSet};

use super::message::Direction;
use super::operations::{Content, Deed, Deviates, FAILED, LONGEST_PATH, Operation, bounded};
use packets::{Fields, Packets, attributes};

#[derive(Default)]
pub(super) struct Sftp {
    up: Packets,
    down: Packets,
    asked: HashMap<u32, Asked>,
    open: HashMap<Vec<u8>, Open>,
    directories: HashSet<Vec<u8>>,
    /// Bytes of the names that are held for unanswered requests and open files.
    held: usize,
    versions: (bool, bool),
}

/// A request that was not answered yet.
enum Asked {
    Open {
        path: String,
        how: How,
    },
    Directory,
    Read {
        handle: Vec<u8>,
        offset: u64,
    },
    Write {
        handle: Vec<u8>,
    },
    Close {
        handle: Vec<u8>,
    },
    Other(Operation),
    /// Touches nothing.
    Look,
}

impl Asked {
    fn names(&self) -> usize {
        match self {
            Self::Open { path, .. } => path.len(),
            Self::Other(operation) => operation.path.len() + operation.to.as_ref().map_or(0, String::len),
            Self::Read { handle, .. } | Self::Write { handle } | Self::Close { handle } => handle.len(),
            Self::Directory | Self::Look => 0,
        }
    }
}

/// An open file.
struct Open {
    path: String,
    how: How,
    read: Content,
    written: Content,
    fault: Option<String>,
    /// Its end was asked for: whoever uses its handle from now on means the next file that gets it.
    closing: bool,
}

/// What a file is opened for (§6.3).
#[derive(Clone, Copy)]
struct How {
    writes: bool,
    /// It is made, or emptied, even if nothing is written.
    makes: bool,
}

impl How {
    fn of(flags: u32) -> Self {
        Self { writes: flags & 2 != 0, makes: flags & 0x18 != 0 }
    }

    fn deed(self) -> Deed {
        if self.writes || self.makes { Deed::Written } else { Deed::Read }
    }
}

impl Sftp {
    pub(super) fn pass(
        &mut self,
        direction: Direction,
        mut bytes: &[u8],
        done: &mut Vec<Operation>,
    ) -> Result<(), Deviates> {
        while !bytes.is_empty() {
            bytes = self.step(direction, bytes, done)?;
        }
        Ok(())
    }

    pub(super) fn end(self: Box<Self>, done: &mut Vec<Operation>) {
        let mut unanswered: Vec<(u32, Asked)> = self.asked.into_iter().collect();
        unanswered.sort_unstable_by_key(|(id, _)| *id);
        for (_, asked) in unanswered {
            let mut operation = match asked {
                Asked::Open { path, how } => Operation::new(how.deed(), "sftp", path),
                Asked::Other(operation) => operation,
                _ => continue,
            };
            operation.fault = Some("not answered".to_owned());
            done.push(operation);
        }
        for open in self.open.into_values() {
            finish(open, Some("not closed".to_owned()), done);
        }
    }

    /// Takes some of `bytes` and returns the rest.
    fn step<'a>(
        &mut self,
        direction: Direction,
        bytes: &'a [u8],
        done: &mut Vec<Operation>,
    ) -> Result<&'a [u8], Deviates> {
        let packets = if direction == Direction::ToInstance { &mut self.up } else { &mut self.down };
        let Some(left) = packets.left else {
            let need = 4 - packets.head.len().min(4);
            let (taken, rest) = bytes.split_at(need.min(bytes.len()));
            packets.head.extend_from_slice(taken);
            if let Some(length) = packets.head.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length);
                // OpenSSH's own bound is 256 KiB.
                if length == 0 || length > LONGEST_PACKET {
                    return Err(Deviates("a packet of sftp has no valid length"));
                }
                packets.left = Some(length.into());
                packets.head.clear();
            }
            return Ok(rest);
        };
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if let Some((handle, offset, content_left)) = &mut packets.content {
            let (piece, rest) = bytes.split_at(take);
            let part = usize::try_from(*content_left).unwrap_or(usize::MAX).min(piece.len());
            let part = piece.get(..part).unwrap_or_default();
            if let Some(open) = self.open.get_mut(handle) {
                let content =
                    if direction == Direction::ToInstance { &mut open.written } else { &mut open.read };
                content.at(*offset, part);
            }
            *offset += part.len() as u64;
            *content_left -= part.len() as u64;
            packets.left = Some(left - take as u64);
            if left == take as u64 {
                packets.end();
            }
            return Ok(rest);
        }
        // The head is gathered a byte at a time where content may follow, so that content never lands in it.
        let until = packets.head_ends().saturating_sub(packets.head.len()).max(1);
        let (taken, rest) = bytes.split_at(take.min(until));
        let looked_at = HEAD.saturating_sub(packets.head.len()).min(taken.len());
        packets.head.extend_from_slice(taken.get(..looked_at).unwrap_or_default());
        packets.left = Some(left - taken.len() as u64);
        if packets.content_begins() {
            self.content(direction)?;
            let packets = if direction == Direction::ToInstance { &mut self.up } else { &mut self.down };
            if packets.left == Some(0) {
                packets.end();
            }
        } else if packets.left == Some(0) {
            let head = std::mem::take(&mut packets.head);
            packets.end();
            match direction {
                Direction::ToInstance => self.asks(&head)?,
                Direction::ToUser => self.answers(&head, done)?,
            }
        }
        Ok(rest)
    }

    /// A WRITE request or DATA answer whose content follows.
    fn content(&mut self, direction: Direction) -> Result<(), Deviates> {
        let packets = if direction == Direction::ToInstance { &mut self.up } else { &mut self.down };
        let head = std::mem::take(&mut packets.head);
        let mut fields = Fields(head.get(1..).unwrap_or_default());
        let id = fields.number().unwrap_or(0);
        let (handle, offset) = if direction == Direction::ToInstance {
            let handle = fields.text().unwrap_or_default().to_vec();
            (handle, fields.long().unwrap_or(0))
        } else {
            match self.answered(id) {
                Some(Asked::Read { handle, offset }) => (handle, offset),
                _ => return Err(Deviates("sftp data that nobody asked for")),
            }
        };
        let length = u64::from(fields.number().unwrap_or(0));
        let packets = if direction == Direction::ToInstance { &mut self.up } else { &mut self.down };
        if packets.left != Some(length) {
            return Err(Deviates("a packet of sftp is longer than its content"));
        }
        let Some(open) = self.open.get(&handle) else { return Err(UNKNOWN_HANDLE) };
        if direction == Direction::ToInstance && open.closing {
            return Err(CLOSED_HANDLE);
        }
        packets.content = Some((handle.clone(), offset, length));
        if direction == Direction::ToInstance {
            self.ask(id, Asked::Write { handle })?;
        }
        Ok(())
    }

    fn ask(&mut self, id: u32, asked: Asked) -> Result<(), Deviates> {
        self.held += asked.names();
        if self.asked.len() >= MOST_ASKED || self.held > MOST_NAMES {
            return Err(Deviates("too many unanswered requests of sftp"));
        }
        match self.asked.insert(id, asked) {
            None => Ok(()),
            Some(_) => Err(Deviates("an id of sftp is asked with twice")),
        }
    }

    fn answered(&mut self, id: u32) -> Option<Asked> {
        let asked = self.asked.remove(&id)?;
        self.held = self.held.saturating_sub(asked.names());
        Some(asked)
    }

    fn file(&self, handle: &[u8]) -> Result<&Open, Deviates> {
        match self.open.get(handle) {
            None => Err(UNKNOWN_HANDLE),
            Some(open) if open.closing => Err(CLOSED_HANDLE),
            Some(open) => Ok(open),
        }
    }

    fn asks(&mut self, head: &[u8]) -> Result<(), Deviates> {
        let Some((kind, rest)) = head.split_first() else { return Ok(()) };
        let mut fields = Fields(rest);
        if *kind == INIT && !std::mem::replace(&mut self.versions.0, true) {
            return Ok(());
        }
        let id = fields.number().ok_or(Deviates("a packet of sftp is too short"))?;
        let first = fields.text().unwrap_or_default().to_vec();
        let path = || bounded(&first);
        let deed = |deed| Operation::new(deed, "sftp", path());
        let asked = match *kind {
            OPEN => Asked::Open { path: path(), how: How::of(fields.number().unwrap_or(0)) },
            CLOSE if self.directories.contains(&first) => Asked::Close { handle: first },
            CLOSE => {
                self.file(&first)?;
                if let Some(open) = self.open.get_mut(&first) {
                    open.closing = true;
                }
                Asked::Close { handle: first }
            }
            READ => {
                self.file(&first)?;
                Asked::Read { handle: first, offset: fields.long().unwrap_or(0) }
            }
            REMOVE | RMDIR => Asked::Other(deed(Deed::Removed)),
            MKDIR => Asked::Other(deed(Deed::DirectoryMade)),
            SETSTAT | FSETSTAT => {
                let mut operation = deed(Deed::Changed);
                if *kind == FSETSTAT {
                    operation.path = self.file(&first)?.path.clone();
                }
                operation.to = Some(attributes(&mut fields));
                Asked::Other(operation)
            }
            RENAME | SYMLINK => {
                let mut operation = deed(Deed::Renamed);
                operation.to = fields.text().map(bounded);
                Asked::Other(operation)
            }
            EXTENDED if matches!(first.as_slice(), b"posix-rename@openssh.com" | b"hardlink@openssh.com") => {
                let from = fields.text().map(bounded).unwrap_or_default();
                let mut operation = Operation::new(Deed::Renamed, "sftp", from);
                operation.to = fields.text().map(bounded);
                Asked::Other(operation)
            }
            EXTENDED if matches!(first.as_slice(), b"lsetstat@openssh.com") => {
                let path = fields.text().map(bounded).unwrap_or_default();
                let mut operation = Operation::new(Deed::Changed, "sftp", path);
                operation.to = Some(attributes(&mut fields));
                Asked::Other(operation)
            }
            EXTENDED if first.as_slice() == b"copy-data" => {
                // Read handle, offset, length, write handle: the content never passes here.
                let from = self.file(fields.text().unwrap_or_default())?.path.clone();
                let (_, _) = (fields.long(), fields.long());
                let to = self.file(fields.text().unwrap_or_default())?.path.clone();
                let mut operation = Operation::new(Deed::Written, "sftp", to);
                operation.fault = Some(format!("copied on the instance from {from}"));
                Asked::Other(operation)
            }
            EXTENDED if !LOOKS.contains(&first.as_slice()) => {
                let says = format!("by an extension that is not read: {}", path());
                Asked::Other(Operation {
                    fault: Some(says),
                    ..Operation::new(Deed::Changed, "sftp", "?".to_owned())
                })
            }
            OPENDIR => Asked::Directory,
            EXTENDED | 12 | 16 | 17 | 19 | 7 | 8 => Asked::Look,
            _ => return Err(Deviates("a packet of sftp is of unknown kind")),
        };
        self.ask(id, asked)
    }

    fn answers(&mut self, head: &[u8], done: &mut Vec<Operation>) -> Result<(), Deviates> {
        let Some((kind, rest)) = head.split_first() else { return Ok(()) };
        let mut fields = Fields(rest);
        if *kind == VERSION && !std::mem::replace(&mut self.versions.1, true) {
            return Ok(());
        }
        let asked = fields.number().and_then(|id| self.answered(id));
        let asked = asked.ok_or(Deviates("an answer of sftp that nobody asked for"))?;
        let status = if *kind == STATUS { fields.number() } else { None };
        let fault = status.filter(|code| *code != 0).map(|code| {
            let said = fields.text().map(bounded).unwrap_or_default();
            format!("{FAILED} {code}: {said}")
        });
        match asked {
            Asked::Open { path, how } if *kind == HANDLE => {
                let handle = fields.text().unwrap_or_default().to_vec();
                let (read, written) = (Content::new(), Content::new());
                let open = Open { path, how, read, written, fault: None, closing: false };
                self.held += open.path.len();
                if self.open.len() >= MOST_OPEN || self.held > MOST_NAMES {
                    return Err(Deviates("too many open files of sftp"));
                }
                if handle.len() > LONGEST_HANDLE {
                    return Err(Deviates("a handle of sftp is too long"));
                }
                if let Some(old) = self.open.insert(handle, open) {
                    self.held = self.held.saturating_sub(old.path.len());
                    finish(old, None, done);
                }
            }
            Asked::Directory if *kind == HANDLE => {
                if self.directories.len() >= MOST_OPEN {
                    return Err(Deviates("too many open directories of sftp"));
                }
                let handle = fields.text().unwrap_or_default();
                if handle.len() > LONGEST_HANDLE {
                    return Err(Deviates("a handle of sftp is too long"));
                }
                self.directories.insert(handle.to_vec());
            }
            Asked::Directory | Asked::Look => {}
            Asked::Open { path, how } => {
                let mut operation = Operation::new(how.deed(), "sftp", path);
                operation.fault = Some(fault.unwrap_or_else(|| "not opened".to_owned()));
                done.push(operation);
            }
            Asked::Read { handle, .. } => {
                // Status 1 is the end of the file.
                if let (Some(open), Some(why)) = (self.open.get_mut(&handle), fault)
                    && status != Some(1)
                {
                    open.fault.get_or_insert(why);
                }
            }
            Asked::Write { handle } => {
                if let (Some(open), Some(why)) = (self.open.get_mut(&handle), fault) {
                    open.fault.get_or_insert(why);
                }
            }
            Asked::Close { handle } => {
                self.directories.remove(&handle);
                if let Some(open) = self.open.remove(&handle) {
                    self.held = self.held.saturating_sub(open.path.len());
                    finish(open, None, done);
                }
            }
            // An extension that the server does not have changed nothing.
            Asked::Other(operation) if operation.path == "?" && status == Some(8) => drop(operation),
            Asked::Other(mut operation) => {
                operation.fault = fault.or(operation.fault);
                done.push(operation);
            }
        }
        Ok(())
    }
}

/// What was done to a file that is closed now.
fn finish(open: Open, fault: Option<String>, done: &mut Vec<Operation>) {
    let (read, written) = (open.read.bytes > 0, open.written.bytes > 0);
    // One that was made, emptied or opened for writing alone was not read, though nothing was written.
    let written = written || open.how.makes || open.how.writes && !read;
    for (deed, content, happened) in
        [(Deed::Read, open.read, read || !written), (Deed::Written, open.written, written)]
    {
        if !happened {
            continue;
        }
        let mut operation = Operation::new(deed, "sftp", open.path.clone());
        content.tell(&mut operation);
        if let Some(why) = open.fault.clone().or_else(|| fault.clone()) {
            operation.sha256 = None;
            operation.fault = Some(why);
        }
        done.push(operation);
    }
}

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const RENAME: u8 = 18;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
/// OpenSSH takes 256 KiB; others a little more.
const LONGEST_PACKET: u32 = 1 << 20;
/// Two paths and some: as much of a packet as is looked at.
const HEAD: usize = 2 * LONGEST_PATH + 256;
/// Extensions that change nothing: OpenSSH's (its PROTOCOL, §4) and those of draft-ietf-secsh-filexfer-extensions.
const LOOKS: [&[u8]; 14] = [
    b"statvfs@openssh.com",
    b"fstatvfs@openssh.com",
    b"fsync@openssh.com",
    b"limits@openssh.com",
    b"expand-path@openssh.com",
    b"users-groups-by-id@openssh.com",
    b"home-directory",
    b"vendor-id",
    b"version-select",
    b"space-available",
    b"check-file-handle",
    b"check-file-name",
    b"md5-hash",
    b"md5-hash-handle",
];
const CLOSED_HANDLE: Deviates = Deviates("a handle of sftp is used after its end was asked for");
const UNKNOWN_HANDLE: Deviates = Deviates("a handle of sftp that was not given");
const MOST_ASKED: usize = 4096;
const MOST_OPEN: usize = 1024;
/// Bytes of names, of all of those together.
const MOST_NAMES: usize = 4 << 20;
/// §3: a handle is at most 256 bytes long.
const LONGEST_HANDLE: usize = 256;

#[cfg(test)]
mod tests;
