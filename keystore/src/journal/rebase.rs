//! A journal that begins later: what came before one of its lines is forgotten, and the chain goes on.
//!
//! Only the store's journal is ever rebased, never the audit trail's: [`super::read`] and [`super::verify`] take a journal
//! that does not begin with line 1 for what it is there, a journal that lost its beginning.
//!
//! The base is a segment of its own, called after its first line's number and the hash of the line before:
//! `00000000000000000043.after-<64 hex>.journal`. That hash goes into the one of its first line, as ever: who kept the
//! head of the old journal can tell that the new one follows it. The base is written aside and renamed once it is
//! durable: that moment decides. What lies before it is then removed, now or at the next opening.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::read::{Entry, Reader, read, segments};
use super::{
    Job, Journal, JournalError, Options, Payload, Position, Receipt, Segment, Writer, fits_a_line, gone, io,
    line, sync_dir,
};
use crate::failpoint;

/// Where a journal begins now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rebased {
    /// The last line that was forgotten.
    pub(crate) before: Receipt,
    /// The last line of the base.
    pub(crate) head: Receipt,
}

impl Journal {
    /// [`Journal::open`] of a journal that may have been rebased, if `each` is content with every line, and then with
    /// none, the end of them. Removes what an interrupted rebase left.
    pub(crate) fn open_rebased(
        dir: &Path,
        options: Options,
        each: impl FnMut(Option<Entry>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        let journal = Self::open_with(dir, options, read_rebased, each)?;
        // Only now that the base was read to its end.
        forget(dir)?;
        Ok(journal)
    }

    /// Begins the journal anew with what `lines`, at least one, make of their positions, and forgets what came before. For a thread of its own.
    pub(crate) fn submit_rebase(
        &self,
        lines: Vec<Payload>,
    ) -> Result<oneshot::Receiver<Result<Rebased, JournalError>>, JournalError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.inner.sender.as_ref().ok_or_else(gone)?;
        sender.blocking_send(Job::Rebase(lines, reply)).map_err(|_| gone())?;
        Ok(answer)
    }
}

impl Writer {
    pub(super) fn rebase(&mut self, lines: Vec<Payload>) -> Result<Rebased, JournalError> {
        if let Some(why) = &self.poison {
            return Err(JournalError::Poisoned(why.clone()));
        }
        if lines.is_empty() {
            return Err(JournalError::NotOneLine);
        }
        let before = self.head.clone();
        let mut head = before.clone();
        let mut text = Vec::new();
        for payload in lines {
            let payload = payload(Position { seq: head.seq + 1, prev: &head.hash });
            if !fits_a_line(&payload) {
                return Err(JournalError::NotOneLine);
            }
            head = line(&head, &payload, &mut text);
        }
        let path = self.dir.join(base_name(&before));
        let part = path.with_extension(PART);
        write_whole(&part, &text)?;
        failpoint::reach("journal.base.written");
        // Up to here nothing has changed. From here on it is not known what a power loss would leave, so a fault
        // must let nothing be appended to either.
        let renamed =
            std::fs::rename(&part, &path).map_err(|e| io(&path, e)).and_then(|()| sync_dir(&self.dir));
        if let Err(why) = renamed.and_then(|()| Segment::reopen(&path)).map(|base| self.segment = Some(base))
        {
            self.poison = Some(why.to_string());
            return Err(why);
        }
        failpoint::reach("journal.base.named");
        self.head = head.clone();
        *super::locked(&self.shared) = head.clone();
        forget(&self.dir)?;
        Ok(Rebased { before, head })
    }
}

/// The lines of the journal in `dir` from its newest base on, or all. Before its first line is read, [`Reader::head`] is
/// what was last forgotten.
pub fn read_rebased(dir: &Path) -> Reader {
    let reader = read(dir);
    match newest_base(dir) {
        Some((base, before)) => reader.beginning_with(base, before),
        None => reader,
    }
}

/// Removes what lies before the newest base, and bases that were never finished.
fn forget(dir: &Path) -> Result<(), JournalError> {
    let listed = std::fs::read_dir(dir).map_err(|e| io(dir, e))?;
    let parts = listed.filter_map(|entry| Some(entry.ok()?.path()));
    let mut old: Vec<PathBuf> = parts.filter(|path| path.extension().is_some_and(|e| e == PART)).collect();
    if let Some((base, _)) = newest_base(dir) {
        old.extend(segments(dir).map_err(|e| io(dir, e))?.into_iter().filter(|path| *path < base));
    }
    if old.is_empty() {
        return Ok(());
    }
    for path in old {
        std::fs::remove_file(&path).map_err(|e| io(&path, e))?;
        failpoint::reach("journal.segment.removed");
    }
    sync_dir(dir)
}

fn newest_base(dir: &Path) -> Option<(PathBuf, Receipt)> {
    let found = segments(dir).ok()?;
    found.into_iter().rev().find_map(|path| {
        let name = path.file_name()?.to_str()?;
        let (first, hash) = name.strip_suffix(".journal")?.split_once(".after-")?;
        let seq = first.parse::<u64>().ok()?.checked_sub(1)?;
        let before = Receipt { seq, hash: hash.to_owned() };
        (name == base_name(&before)).then_some((path, before))
    })
}

fn base_name(before: &Receipt) -> String {
    format!("{:020}.after-{}.journal", before.seq + 1, before.hash)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let opened = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|e| {
        // On a full disk even an unfinished file is in the way. One that stays is removed at the next opening.
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(%error, "journal.part_left");
        }
        io(path, e)
    })
}

const PART: &str = "part";
