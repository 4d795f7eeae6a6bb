//! A journal whose lines are judged as it is opened: those that nobody wrote who may are taken out, and kept aside.
//!
//! The chain is no proof of who wrote a line, as anybody can compute it. Whoever can tell, by a mark in what a line says,
//! opens a journal with [`Journal::open_judged`]. As a line's mark is over the hash before it, what follows one that was
//! forged is forged too. All of it goes into a file of its own beside the journal, is durable there, and is then cut off:
//! no reader of the journal ever meets it. A crash in between leaves it in both places, and the next opening begins again.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::read::{Entry, read, segments};
use super::{Journal, JournalError, Options, cut, io, sync_dir};
use crate::failpoint;

/// Lines that were taken out of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Where they are now.
    pub file: PathBuf,
    /// The number of the first of them.
    pub from: u64,
    /// The number of the last of them.
    pub through: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
}

impl Journal {
    /// [`Journal::open`]. `judge` says of every line, in order, whether it is believed. From the first that is not on, all
    /// lines are moved to a file in `beside`; see [`aside`].
    ///
    /// # Errors
    /// As [`Journal::open`], and the first error of `judge`: nothing was changed.
    pub fn open_judged(
        (dir, beside): (&Path, &Path),
        options: Options,
        mut judge: impl FnMut(&Entry) -> Result<bool, JournalError>,
    ) -> Result<Self, JournalError> {
        let held = lock(dir)?;
        let again = held.try_clone().map_err(|e| io(dir, e))?;
        let mut first = None;
        let opened = Self::open_locked(held, (dir, options), read(dir), |entry| match entry {
            Some(entry) if !judge(&entry)? => {
                first = Some(entry);
                Err(JournalError::Poisoned("a line is not believed".to_owned()))
            }
            _ => Ok(()),
        });
        let Some(first) = first else { return opened };
        take_out((dir, beside), &first)?;
        Self::open_locked(again, (dir, options), read(dir), |_| Ok(()))
    }
}

/// What was taken out into `beside`, oldest first. Reads all of it.
///
/// # Errors
/// What the system says.
pub fn aside(beside: &Path) -> Result<Vec<Aside>, JournalError> {
    let listed = match std::fs::read_dir(beside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|e| io(beside, e))?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let file = entry.map_err(|e| io(beside, e))?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let from = name.strip_suffix(KEPT).and_then(|name| name.split_once('-')?.0.parse().ok());
        if let Some(from) = from {
            let lines = File::open(&file).map_err(|e| io(&file, e))?;
            let (count, sha256) = pass(&[(&file, lines)], |_| Ok(()))?;
            found.push(Aside { file, from, through: through(from, count), sha256 });
        }
    }
    found.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(found)
}

/// Holds the journal in `dir`, which is made if it is not there, for as long as the file lives.
pub(super) fn lock(dir: &Path) -> Result<File, JournalError> {
    std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
    let path = dir.join("lock");
    let options = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = options.map_err(|e| io(&path, e))?;
    // A process that this one is just starting has the lock too until it runs its program.
    let tries = std::iter::repeat_with(|| lock.try_lock()).take(LOCK_TRIES);
    let held =
        tries.map(|tried| tried.inspect_err(|_| std::thread::sleep(LOCK_PAUSE))).any(|tried| tried.is_ok());
    if held { Ok(lock) } else { Err(JournalError::Locked(dir.to_owned())) }
}

/// Copies all from `first` on into a file in `beside`, then cuts it off.
fn take_out((dir, beside): (&Path, &Path), first: &Entry) -> Result<(), JournalError> {
    let later: Vec<PathBuf> =
        segments(dir).map_err(|e| io(dir, e))?.into_iter().filter(|path| *path > first.file).collect();
    let mut from = Vec::new();
    for path in std::iter::once(&first.file).chain(&later) {
        from.push((path.as_path(), File::open(path).map_err(|e| io(path, e))?));
    }
    if let Some((path, file)) = from.first_mut() {
        file.seek(SeekFrom::Start(first.offset)).map_err(|e| io(path, e))?;
    }
    std::fs::create_dir_all(beside).map_err(|e| io(beside, e))?;
    let part = beside.join("part");
    let mut to = File::create(&part).map_err(|e| io(&part, e))?;
    let (count, sha256) = pass(&from, |bytes| to.write_all(bytes).map_err(|e| io(&part, e)))?;
    to.sync_all().map_err(|e| io(&part, e))?;
    let kept = beside.join(format!("{:020}-{}{KEPT}", first.seq, sha256.get(..16).unwrap_or_default()));
    std::fs::rename(&part, &kept).map_err(|e| io(&kept, e))?;
    sync_dir(beside)?;
    tracing::error!(from = first.seq, lines = count, kept = %kept.display(), "journal.lines_not_ours");
    failpoint::reach("journal.lines.kept");
    // Backwards: whatever a crash leaves is a journal.
    for path in later.iter().rev() {
        std::fs::remove_file(path).map_err(|e| io(path, e))?;
    }
    cut(&first.file, first.offset)?;
    sync_dir(dir)?;
    failpoint::reach("journal.lines.cut");
    Ok(())
}

/// Reads files to their end. Returns how many lines they have, and the SHA-256 of all together.
fn pass(
    files: &[(&(impl AsRef<Path> + ?Sized), File)],
    mut take: impl FnMut(&[u8]) -> Result<(), JournalError>,
) -> Result<(u64, String), JournalError> {
    let (mut hash, mut count, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 16]);
    for (path, file) in files {
        let mut file = file;
        loop {
            let read = file.read(&mut chunk).map_err(|e| io(path.as_ref(), e))?;
            let bytes = chunk.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            count += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            hash.update(bytes);
            take(bytes)?;
        }
    }
    Ok((count, HEXLOWER.encode(&hash.finalize())))
}

fn through(from: u64, count: u64) -> u64 {
    from.saturating_add(count.saturating_sub(1))
}

const KEPT: &str = ".lines";
/// How often, and with which pause, a lock is tried.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
