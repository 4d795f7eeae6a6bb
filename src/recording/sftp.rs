//! sftp version 3 (draft-ietf-secsh-filexfer-02), as far as it tells which files were touched.
//!
//! A streaming decoder: a packet's first fields are read, the content of reads and writes is hashed as it passes and
//! never held. Packets, open files and unanswered requests are bounded; what exceeds them is no sftp. Nor is an answer
//! that nobody asked for, an id that is asked with twice, or a handle that was not given: they could name a wrong file.

use std::collections::{HashMap, HashSet};

use super::message::Direction;
use super::operations::{Content, Deed, Deviates, LONGEST_PATH, Operation, bounded};

#[derive(Default)]
pub(super) struct Sftp {
    up: Packets,
    down: Packets,
    asked: HashMap<u32, Asked>,
    open: HashMap<Vec<u8>, Open>,
    directories: HashSet<Vec<u8>>,
    versions: (bool, bool),
}

/// A request that was not answered yet.
enum Asked {
    Open {
        path: String,
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

/// An open file.
struct Open {
    path: String,
    read: Content,
    written: Content,
    fault: Option<String>,
}

/// One direction, cut into packets. `head` holds what was seen of the packet, up to [`HEAD`]; the rest is content.
#[derive(Default)]
struct Packets {
    head: Vec<u8>,
    /// Bytes of the packet that are still to come, once its length is known.
    left: Option<u64>,
    content: Option<(Vec<u8>, u64, u64)>,
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
                Asked::Open { path } => Operation::new(Deed::Read, "sftp", path),
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
            match self.asked.remove(&id) {
                Some(Asked::Read { handle, offset }) => (handle, offset),
                _ => return Err(Deviates("sftp data that nobody asked for")),
            }
        };
        let length = u64::from(fields.number().unwrap_or(0));
        let packets = if direction == Direction::ToInstance { &mut self.up } else { &mut self.down };
        if packets.left != Some(length) {
            return Err(Deviates("a packet of sftp is longer than its content"));
        }
        if !self.open.contains_key(&handle) {
            return Err(UNKNOWN_HANDLE);
        }
        packets.content = Some((handle.clone(), offset, length));
        if direction == Direction::ToInstance {
            self.ask(id, Asked::Write { handle })?;
        }
        Ok(())
    }

    fn ask(&mut self, id: u32, asked: Asked) -> Result<(), Deviates> {
        if self.asked.len() >= MOST_ASKED {
            return Err(Deviates("too many unanswered requests of sftp"));
        }
        match self.asked.insert(id, asked) {
            None => Ok(()),
            Some(_) => Err(Deviates("an id of sftp is asked with twice")),
        }
    }

    fn file(&self, handle: &[u8]) -> Result<&Open, Deviates> {
        self.open.get(handle).ok_or(UNKNOWN_HANDLE)
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
            OPEN => Asked::Open { path: path() },
            CLOSE if self.open.contains_key(&first) || self.directories.contains(&first) => {
                Asked::Close { handle: first }
            }
            CLOSE => return Err(UNKNOWN_HANDLE),
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
        let asked = fields.number().and_then(|id| self.asked.remove(&id));
        let asked = asked.ok_or(Deviates("an answer of sftp that nobody asked for"))?;
        let status = if *kind == STATUS { fields.number() } else { None };
        let fault = status.filter(|code| *code != 0).map(|code| {
            let said = fields.text().map(bounded).unwrap_or_default();
            format!("failed with status {code}: {said}")
        });
        match asked {
            Asked::Open { path } if *kind == HANDLE => {
                let handle = fields.text().unwrap_or_default().to_vec();
                let open = Open { path, read: Content::new(), written: Content::new(), fault: None };
                if self.open.len() >= MOST_OPEN {
                    return Err(Deviates("too many open files of sftp"));
                }
                if let Some(old) = self.open.insert(handle, open) {
                    finish(old, None, done);
                }
            }
            Asked::Directory if *kind == HANDLE => {
                if self.directories.len() >= MOST_OPEN {
                    return Err(Deviates("too many open directories of sftp"));
                }
                self.directories.insert(fields.text().unwrap_or_default().to_vec());
            }
            Asked::Directory | Asked::Look => {}
            Asked::Open { path } => {
                let mut operation = Operation::new(Deed::Read, "sftp", path);
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
                    finish(open, None, done);
                }
            }
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

impl Packets {
    fn end(&mut self) {
        self.head.clear();
        (self.left, self.content) = (None, None);
    }

    /// Whether the head is whole and content follows.
    fn content_begins(&self) -> bool {
        matches!(self.head.first(), Some(&WRITE | &DATA)) && self.head.len() >= self.head_ends()
    }

    /// How long the head is, as far as it is known from what there is of it.
    fn head_ends(&self) -> usize {
        match self.head.first() {
            None => 1,
            // Kind, id, length of the data.
            Some(&DATA) => 9,
            // Kind, id, handle, offset, length of the data.
            Some(&WRITE) => match self.head.get(5..9).and_then(|size| <[u8; 4]>::try_from(size).ok()) {
                Some(size) => 9 + (u32::from_be_bytes(size) as usize).min(HEAD) + 12,
                None => 9,
            },
            Some(_) => usize::MAX,
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }
    fn long(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }
    fn text(&mut self) -> Option<&'a [u8]> {
        let size = self.number()? as usize;
        let (text, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(text)
    }
}

/// What an ATTRS field changes (§5).
fn attributes(fields: &mut Fields<'_>) -> String {
    let flags = fields.number().unwrap_or(0);
    let mut said = Vec::new();
    if flags & 1 != 0 {
        said.push(format!("size {}", fields.long().unwrap_or(0)));
    }
    if flags & 2 != 0 {
        said.push(format!("owner {}:{}", fields.number().unwrap_or(0), fields.number().unwrap_or(0)));
    }
    if flags & 4 != 0 {
        said.push(format!("mode {:04o}", fields.number().unwrap_or(0) & 0o7777));
    }
    if flags & 8 != 0 {
        said.push("times".to_owned());
    }
    said.join(", ")
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
const UNKNOWN_HANDLE: Deviates = Deviates("a handle of sftp that was not given");
const MOST_ASKED: usize = 4096;
const MOST_OPEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![kind];
        body.extend(id.to_be_bytes());
        fields.iter().for_each(|field| body.extend_from_slice(field));
        [u32::try_from(body.len()).unwrap().to_be_bytes().as_slice(), &body].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [u32::try_from(text.len()).unwrap().to_be_bytes().as_slice(), text].concat()
    }

    /// Both directions, a byte at a time.
    fn passed(said: &[(Direction, Vec<u8>)]) -> Result<Vec<Operation>, &'static str> {
        let (mut sftp, mut done) = (Box::<Sftp>::default(), Vec::new());
        for (direction, bytes) in said {
            for byte in bytes {
                sftp.pass(*direction, &[*byte], &mut done).map_err(|deviates| deviates.0)?;
            }
        }
        sftp.end(&mut done);
        Ok(done)
    }

    use Direction::{ToInstance as UP, ToUser as DOWN};

    #[test]
    fn a_file_that_is_written_is_named_sized_and_hashed() {
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let done = passed(&[
            (UP, packet(OPEN, 1, &[&text(b"/tmp/x"), &[0; 8]])),
            (DOWN, packet(HANDLE, 1, &[&text(b"h")])),
            (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"hel")])),
            (UP, packet(WRITE, 3, &[&text(b"h"), &3u64.to_be_bytes(), &text(b"lo")])),
            (DOWN, packet(STATUS, 2, &[&[0; 4]])),
            (DOWN, packet(STATUS, 3, &[&[0; 4]])),
            (UP, packet(CLOSE, 4, &[&text(b"h")])),
            (DOWN, packet(STATUS, 4, &[&[0; 4]])),
        ]);
        let done = done.unwrap();
        let [file] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((file.deed, file.path.as_str(), file.bytes), (Deed::Written, "/tmp/x", 5));
        assert_eq!(file.sha256.as_deref(), Some(hello));
    }

    #[test]
    fn a_refused_write_is_no_whole_file() {
        let done = passed(&[
            (UP, packet(OPEN, 1, &[&text(b"/full"), &[0; 8]])),
            (DOWN, packet(HANDLE, 1, &[&text(b"h")])),
            (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"hel")])),
            (DOWN, packet(STATUS, 2, &[&4u32.to_be_bytes(), &text(b"disk full")])),
        ]);
        let done = done.unwrap();
        assert!(done[0].sha256.is_none() && done[0].fault.as_deref().unwrap().contains("disk full"));
    }

    #[test]
    fn a_shell_behind_the_subsystem_is_no_sftp() {
        assert!(passed(&[(UP, b"cat /etc/shadow\n".to_vec())]).is_err());
        assert!(passed(&[(UP, packet(77, 1, &[b"id"]))]).is_err());
        assert!(passed(&[(DOWN, packet(DATA, 9, &[&text(b"hidden")]))]).is_err());
    }

    #[test]
    fn a_wrong_file_cannot_be_named_by_an_id_or_a_handle() {
        let open = |id, path: &[u8]| (UP, packet(OPEN, id, &[&text(path), &[0; 8]]));
        let write = (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"x")]));
        let given = (DOWN, packet(HANDLE, 1, &[&text(b"h")]));
        assert!(passed(&[open(1, b"/etc/shadow"), open(1, b"/tmp/x")]).is_err());
        assert!(passed(&[open(1, b"/tmp/x"), write.clone()]).is_err());
        assert!(passed(&[open(1, b"/tmp/x"), given.clone(), given.clone()]).is_err());
        assert!(passed(&[(UP, packet(CLOSE, 1, &[&text(b"h")]))]).is_err());
        assert!(passed(&[open(1, b"/tmp/x"), given.clone(), write]).is_ok());
        // An id may be asked with again once it is answered; a directory has a handle too.
        let closed = [(UP, packet(CLOSE, 1, &[&text(b"h")])), (DOWN, packet(STATUS, 1, &[&[0; 4]]))];
        let opened = [(UP, packet(OPENDIR, 1, &[&text(b"/srv")])), given];
        assert!(passed(&[opened, closed].concat()).is_ok());
    }

    #[test]
    fn versions_are_told_once_and_what_is_not_answered_is_told() {
        let init = (UP, [5u32.to_be_bytes().as_slice(), &[INIT, 0, 0, 0, 3]].concat());
        let version = (DOWN, [5u32.to_be_bytes().as_slice(), &[VERSION, 0, 0, 0, 3]].concat());
        let removal = (UP, packet(REMOVE, 1, &[&text(b"/b")]));
        let done = passed(&[init, version.clone(), removal.clone()]).unwrap();
        assert_eq!((done[0].deed, done[0].fault.as_deref()), (Deed::Removed, Some("not answered")));
        assert!(passed(&[version.clone(), version]).is_err());
    }

    #[test]
    fn a_rename_and_a_removal_are_operations() {
        let done = passed(&[
            (UP, packet(RENAME, 1, &[&text(b"/a"), &text(b"/b")])),
            (DOWN, packet(STATUS, 1, &[&[0; 4]])),
            (UP, packet(REMOVE, 2, &[&text(b"/b")])),
            (DOWN, packet(STATUS, 2, &[&3u32.to_be_bytes(), &text(b"denied")])),
        ]);
        let done = done.unwrap();
        assert_eq!((done[0].deed, done[0].to.as_deref()), (Deed::Renamed, Some("/b")));
        assert_eq!((done[1].deed, done[1].fault.is_some()), (Deed::Removed, true));
    }
}
