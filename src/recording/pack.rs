//! Packing: a tape that ended is written once more in large frames, compressed better, each readable without the one
//! before and beginning with a picture of every screen. So an hour of typing is small, and a player can begin anywhere.
//!
//! The packed tape has nonces of its own (see [`super::frames`]), so the tape's key never seals two things alike. It
//! takes the place of the first one whole or not at all; whatever fails leaves the first one as it is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::format::{Header, Record, Records, What};
use super::frames::{Plain, Reader, Writer};
use super::screen::Screens;
use super::tape::Files;

/// Packs the tape of `length` bytes and returns the digest of the new one; none if it is too short or too long to be
/// worth it.
pub(super) fn pack(header: &Header, files: &Files, length: u64) -> io::Result<Option<String>> {
    if !(SHORTEST..=LONGEST).contains(&length) {
        return Ok(None);
    }
    let part = files.tape.with_extension("tape.new");
    let packed = packed_into(&part, header, (files, length));
    if packed.is_err()
        && let Err(error) = fs::remove_file(&part)
    {
        // Of a disk that is full it would hold what is left, until the next start.
        tracing::debug!(%error, "tape.part_left");
    }
    packed.map(Some)
}

fn packed_into(part: &Path, header: &Header, (files, length): (&Files, u64)) -> io::Result<String> {
    let fault = |bad: super::frames::BadFrame| io::Error::other(bad.what);
    let mut from = Reader::open(File::open(&files.tape)?, &files.key).map_err(fault)?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part)?;
    let mut to = Writer::start(file, &Header { packed: true, ..header.clone() }, &files.key)?;
    if length > MUCH {
        to.hurry()?;
    }
    let mut records = Records::default();
    let mut screens = Screens::default();
    let mut enough = FRAME;
    while let Some(found) = from.next().map_err(fault)? {
        for record in found {
            if records.len() >= enough {
                to.frame(&Plain { records: &std::mem::take(&mut records), last: false })?;
                for (channel, what, payload) in screens.pictures() {
                    let picture = Record { millis: record.millis, channel, what, payload: Vec::new() };
                    records.push(&picture, payload.as_bytes())?;
                }
                // Pictures of huge screens in all colours must not be most of the tape, nor most of the work.
                enough = FRAME.max(2 * records.len());
            }
            screens.watch(&record);
            // How far the counts were matters to a tape that was cut off, not to one that ended.
            if matches!(record.what, What::Counted(_)) {
                continue;
            }
            records.push(&record, &record.payload)?;
        }
    }
    if !from.complete() {
        return Err(io::Error::other("it has no end"));
    }
    to.frame(&Plain { records: &records, last: true })?;
    to.sink().sync()?;
    fs::rename(part, &files.tape)?;
    if let Some(dir) = files.tape.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(to.sink().digest())
}

/// What a frame holds before it is compressed, in bytes, unless its pictures are larger: a player that begins in it reads no more than this to get there.
const FRAME: usize = 256 << 10;
/// What is longer holds bulk output, more than a day of typing: packed as well as that it would hold up the end of its session.
const MUCH: u64 = 2 << 20;
/// A shorter tape is small, and near its start from everywhere.
const SHORTEST: u64 = 32 << 10;
/// A longer tape holds bulk output, is written in large frames as it is, and would hold up the end of its session.
const LONGEST: u64 = 64 << 20;
