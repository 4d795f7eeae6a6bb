//! How much room is left where the evidence lies.

use std::io;
use std::path::{Path, PathBuf};

/// The room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may still be written.
    pub bytes: u64,
    /// Bytes that may be written in all.
    pub size: u64,
    /// Hundredths that are taken, of what may be written in all.
    pub percent_used: u64,
}

/// The room left on the file system that holds `dir`. Blocks.
///
/// # Errors
/// What the system says.
pub fn disk_left(dir: &Path) -> io::Result<Room> {
    let told = rustix::fs::statvfs(dir)?;
    let bytes = told.f_bavail.saturating_mul(told.f_frsize);
    // As df counts: what only root may take is neither free nor used.
    let used = told.f_blocks.saturating_sub(told.f_bfree);
    let percent_used = (used.saturating_mul(100)).div_ceil((used + told.f_bavail).max(1));
    let size = (used + told.f_bavail).saturating_mul(told.f_frsize);
    Ok(Room { bytes, size, percent_used })
}

/// What is set aside for the audit trail.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// The file that holds it; gone once it was given up.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Whether a tape may write: once the reserve is given up, tapes would fill what was kept for the trail.
///
/// # Errors
/// There is no more room than that.
pub(super) fn spares(reserve: Option<&Reserve>) -> io::Result<()> {
    let Some(Reserve { file, bytes }) = reserve.filter(|reserve| !reserve.file.exists()) else {
        return Ok(());
    };
    let left = disk_left(file.parent().unwrap_or(Path::new("/")))?;
    if left.bytes / 2 >= *bytes {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full but for the audit trail's reserve"))
}
