//! Reading and verifying a journal, also without opening it: needs no lock and changes nothing.
//!
//! Every line is checked against the chain as it is read; the first that does not hold ends the reading with a
//! [`Fault`] that names file, offset and number. A last line that was never finished is no fault: it was never
//! acknowledged.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::{LONGEST_LINE, Receipt, chain_hash, segment_name};

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number; the first is 1.
    pub seq: u64,
    /// The hash of the line before, 64 hex digits.
    pub prev: String,
    /// Its hash, 64 hex digits.
    pub hash: String,
    /// What was appended.
    pub payload: Vec<u8>,
    /// The segment it lies in.
    pub file: PathBuf,
    /// Where in the segment its line begins, in bytes.
    pub offset: u64,
}

impl Entry {
    /// The bytes of its line.
    pub fn length(&self) -> u64 {
        let digits = self.seq.checked_ilog10().unwrap_or(0) as usize + 1;
        (digits + self.hash.len() + self.payload.len() + 3) as u64
    }
}

/// The first thing that is wrong with a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The segment, or the directory.
    pub file: PathBuf,
    /// Where the bad line begins, in bytes.
    pub offset: u64,
    /// Which number the line should have had.
    pub seq: Option<u64>,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.file.display(), self.offset)?;
        if let Some(seq) = self.seq {
            write!(f, ", record {seq}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for Fault {}

/// A journal whose chain holds from the first line to the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many lines.
    pub entries: u64,
    /// The last one; `None` if there is none.
    pub head: Option<Receipt>,
    /// Whether an unfinished line follows. A live writer's last line may look like that.
    pub torn_tail: bool,
}

/// Checks every line of the journal in `dir`.
///
/// # Errors
/// The first line that does not hold.
pub fn verify(dir: &Path) -> Result<Verified, Fault> {
    verify_counting(dir, &|_| {})
}

/// The same; `read` hears of each line's bytes.
///
/// # Errors
/// As [`verify`].
pub fn verify_counting(dir: &Path, read_so: &dyn Fn(u64)) -> Result<Verified, Fault> {
    let mut reader = read(dir);
    for entry in reader.by_ref() {
        read_so(entry?.length());
    }
    let head = reader.head();
    Ok(Verified {
        entries: head.seq,
        torn_tail: reader.torn().is_some(),
        head: (head.seq > 0).then_some(head),
    })
}

/// The bytes of the journal in `dir`; what cannot be looked at counts nothing.
pub fn length(dir: &Path) -> u64 {
    let segments = segments(dir).unwrap_or_default();
    segments.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// The lines of the journal in `dir`, in order, each one verified. Ends after the first [`Fault`].
pub fn read(dir: &Path) -> Reader {
    let (segments, fault) = match segments(dir) {
        Ok(segments) => (segments, None),
        Err(e) => (Vec::new(), Some(fault(dir, 0, None, &format!("cannot be read: {e}")))),
    };
    Reader { fault, segments: segments.into_iter(), ..Reader::nowhere(dir) }
}

/// The newest whole line of the journal in `dir`, synced before this returns; its chain is not checked. None if there is
/// no line. For a live journal too.
///
/// # Errors
/// What the system says.
pub fn newest(dir: &Path) -> std::io::Result<Option<Receipt>> {
    Ok(newest_line(dir)?.map(|(receipt, _)| receipt))
}

/// The same, with what the line tells.
///
/// # Errors
/// As [`newest`].
pub fn newest_line(dir: &Path) -> std::io::Result<Option<(Receipt, Vec<u8>)>> {
    for path in segments(dir)?.into_iter().rev() {
        let mut file = File::open(&path)?;
        // Who is told of it must find it after a power loss.
        file.sync_data()?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LONGEST_LINE)))?;
        let mut tail = Vec::new();
        file.take(LONGEST_LINE).read_to_end(&mut tail)?;
        let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else { continue };
        let whole = tail.get(..end).unwrap_or_default();
        let begin = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut parts = whole.get(begin..).unwrap_or_default().splitn(3, |byte| *byte == b' ');
        let mut part = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
        if let (Some(Ok(seq)), Some(hash)) = (part().map(str::parse), part()) {
            let told = parts.next().unwrap_or_default().to_vec();
            return Ok(Some((Receipt { seq, hash: hash.to_owned() }, told)));
        }
    }
    Ok(None)
}

/// The iterator behind [`read`].
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    /// Where in the last segment the next line begins, in bytes.
    at: u64,
    segments: std::vec::IntoIter<PathBuf>,
    current: Option<Open>,
    last: Option<PathBuf>,
    head: Receipt,
    torn: Option<(PathBuf, u64)>,
    fault: Option<Fault>,
    ended: bool,
    /// The segment that the journal begins with, where that is not the one of line 1 (see [`super::rebase`]).
    base: Option<PathBuf>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: BufReader<File>,
    offset: u64,
}

impl Iterator for Reader {
    type Item = Result<Entry, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = match self.fault.take() {
            Some(fault) => Err(fault),
            None => self.step(),
        };
        match next {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(fault) => {
                self.ended = true;
                Some(Err(fault))
            }
        }
    }
}

impl Reader {
    fn nowhere(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            at: 0,
            segments: Vec::new().into_iter(),
            current: None,
            last: None,
            head: Receipt::genesis(),
            torn: None,
            fault: None,
            ended: false,
            base: None,
        }
    }

    /// The same from the segment `base` on, whose first line follows `before`.
    pub(super) fn beginning_with(mut self, base: PathBuf, before: Receipt) -> Self {
        let rest: Vec<PathBuf> = self.segments.filter(|path| *path >= base).collect();
        self.segments = rest.into_iter();
        (self.base, self.head) = (Some(base), before);
        self
    }

    /// The last line that was read.
    pub fn head(&self) -> Receipt {
        self.head.clone()
    }

    /// Goes on after the end with what was appended since; nothing is read twice.
    ///
    /// # Errors
    /// A segment or the directory cannot be read.
    pub fn resume(&mut self) -> Result<(), Fault> {
        let wrong = |path: &Path, e: std::io::Error| fault(path, 0, None, &format!("cannot be read: {e}"));
        let found = segments(&self.dir).map_err(|e| wrong(&self.dir, e))?;
        let newer = found.into_iter().filter(|path| self.last.as_ref().is_none_or(|last| path > last));
        self.segments = newer.collect::<Vec<_>>().into_iter();
        if let Some(path) = self.last.clone() {
            let mut file = File::open(&path).map_err(|e| wrong(&path, e))?;
            file.seek(SeekFrom::Start(self.at)).map_err(|e| wrong(&path, e))?;
            let file = BufReader::with_capacity(1 << 16, file);
            self.current = Some(Open { path, file, offset: self.at });
        }
        self.torn = None;
        self.ended = false;
        Ok(())
    }

    /// The segment with an unfinished last line, and where that line begins. Known once everything was read.
    pub(super) fn torn(&self) -> Option<(&Path, u64)> {
        self.torn.as_ref().map(|(path, offset)| (path.as_path(), *offset))
    }

    pub(super) fn last_segment(&self) -> Option<&Path> {
        self.last.as_deref()
    }

    fn step(&mut self) -> Result<Option<Entry>, Fault> {
        let expected = self.head.seq + 1;
        loop {
            let Some(open) = &mut self.current else {
                if !self.open_next(expected)? {
                    return Ok(None);
                }
                continue;
            };
            let mut line = Vec::new();
            let at = open.offset;
            // What is no line of ours must not fill the memory.
            let read = whole_line(&mut open.file, &mut line);
            let read = read.map_err(|e| fault(&open.path, at, Some(expected), &e.to_string()))?;
            if read == 0 {
                self.current = None;
                continue;
            }
            open.offset += read as u64;
            return match parse(&line, expected, &self.head.hash) {
                Ok((hash, payload)) => {
                    let prev =
                        std::mem::replace(&mut self.head, Receipt { seq: expected, hash: hash.clone() });
                    let file = open.path.clone();
                    self.at = open.offset;
                    Ok(Some(Entry { seq: expected, prev: prev.hash, hash, payload, file, offset: at }))
                }
                Err(what) => {
                    let short = line.last() != Some(&b'\n') && line.len() as u64 <= LONGEST_LINE;
                    let unfinished = short || line.contains(&0) && at_end(&mut open.file);
                    if unfinished && self.segments.as_slice().is_empty() {
                        self.torn = Some((open.path.clone(), at));
                        return Ok(None);
                    }
                    Err(fault(&open.path, at, Some(expected), what))
                }
            };
        }
    }

    fn open_next(&mut self, expected: u64) -> Result<bool, Fault> {
        let Some(path) = self.segments.next() else { return Ok(false) };
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name != segment_name(expected) && self.base.as_ref() != Some(&path) {
            let what = format!("a segment is missing or left over: expected {}", segment_name(expected));
            return Err(fault(&path, 0, Some(expected), &what));
        }
        let file = File::open(&path).map_err(|e| fault(&path, 0, Some(expected), &e.to_string()))?;
        self.last = Some(path.clone());
        self.at = 0;
        self.current = Some(Open { path, file: BufReader::with_capacity(1 << 16, file), offset: 0 });
        Ok(true)
    }
}

fn parse(line: &[u8], expected: u64, prev: &str) -> Result<(String, Vec<u8>), &'static str> {
    let line = line.strip_suffix(b"\n").ok_or("the line has no end")?;
    let mut parts = line.splitn(3, |b| *b == b' ');
    let (seq, hash, payload) = match (parts.next(), parts.next(), parts.next()) {
        (Some(seq), Some(hash), Some(payload)) => (seq, hash, payload),
        _ => return Err("the line is not a journal line"),
    };
    if seq != expected.to_string().as_bytes() {
        return Err("its number is not the next one: a record was removed, added or moved");
    }
    let wanted = chain_hash(prev, expected, payload);
    if hash != wanted.as_bytes() {
        return Err("its hash does not fit: this record, or the one before it, was changed");
    }
    Ok((wanted, payload.to_vec()))
}

/// Reads a line, or what there is of it. A live writer may have written half of it when the end was met, and all of it
/// a moment later: only an end that is met again is one.
fn whole_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    loop {
        let room = (LONGEST_LINE + 1).saturating_sub(line.len() as u64);
        let read = (&mut *file).take(room).read_until(b'\n', line)?;
        if read == 0 || line.ends_with(b"\n") {
            return Ok(line.len());
        }
    }
}

fn at_end(file: &mut impl BufRead) -> bool {
    let mut byte = [0];
    matches!(file.read(&mut byte), Ok(0))
}

pub(super) fn segments(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "journal") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn fault(file: &Path, offset: u64, seq: Option<u64>, what: &str) -> Fault {
    Fault { file: file.to_owned(), offset, seq, what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file to which more is written between one look at its end and the next.
    struct Growing(Vec<&'static [u8]>);

    impl std::io::Read for Growing {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let Some(piece) = self.0.pop() else { return Ok(0) };
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_line_that_is_finished_while_it_is_read_is_whole() {
        // Its beginning, the end of the file for now, the rest.
        let mut file = BufReader::new(Growing(vec![b"lf\nnext\n", b"", b"ha"]));
        let mut line = Vec::new();
        assert_eq!(whole_line(&mut file, &mut line).unwrap(), 5);
        assert_eq!(line, b"half\n");
        let mut file = BufReader::new(Growing(vec![b"", b"", b"torn"]));
        line.clear();
        assert_eq!((whole_line(&mut file, &mut line).unwrap(), line.as_slice()), (4, b"torn".as_slice()));
    }
}
