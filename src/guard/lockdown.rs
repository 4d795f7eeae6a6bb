//! Lockdown: nobody is let in until an administrator on the bastion itself ends it.
//!
//! A file whose first line is the reason stands for it, so that it survives a restart; a file that cannot be read stands
//! for it too.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// Whether there is a lockdown.
pub struct Lockdown {
    file: Option<PathBuf>,
    reason: watch::Sender<Option<String>>,
    /// Held while the file changes: what is said and what the file tells of end up the same.
    writing: Mutex<()>,
}

impl Lockdown {
    /// One that a restart would forget.
    pub fn in_memory() -> Self {
        Self { file: None, reason: watch::Sender::new(None), writing: Mutex::default() }
    }

    /// The lockdown that `file` tells of.
    pub fn at(file: &Path) -> Self {
        let reason = match fs::read(file) {
            Ok(text) => Some(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Fail closed.
            Err(error) => Some(format!("{} cannot be read: {error}", file.display())),
        };
        Self { file: Some(file.to_owned()), reason: watch::Sender::new(reason), writing: Mutex::default() }
    }

    /// Why nobody is let in; none if there is no lockdown.
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Resolves once there is a lockdown. Cancel-safe.
    pub async fn begun(&self) {
        let mut reason = self.reason.subscribe();
        if reason.wait_for(Option::is_some).await.is_err() {
            std::future::pending().await
        }
    }

    /// Nobody is let in from now on, also after a restart. Whoever is in must be cut by the caller. Blocks.
    ///
    /// # Errors
    /// The file could not be written: the lockdown holds, but not beyond a restart.
    pub fn start(&self, reason: &str) -> io::Result<()> {
        self.reason.send_replace(Some(reason.to_owned()));
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Again: an end may have come in between.
        self.reason.send_replace(Some(reason.to_owned()));
        let Some(path) = &self.file else { return Ok(()) };
        let part = path.with_extension("new");
        let mut file = File::create(&part)?;
        file.write_all(format!("{}\n", reason.replace('\n', " ")).as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        sync_dir(path)
    }

    /// Everybody is let in again. Blocks.
    ///
    /// # Errors
    /// The file could not be removed: the lockdown goes on.
    pub fn end(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.file {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => sync_dir(path)?,
            }
        }
        self.reason.send_replace(None);
        Ok(())
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lockdown_survives_a_restart_and_its_end_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lockdown");
        assert_eq!(Lockdown::at(&file).reason(), None);
        Lockdown::at(&file).start("key leaked").unwrap();
        let again = Lockdown::at(&file);
        assert_eq!(again.reason().as_deref(), Some("key leaked"));
        again.end().unwrap();
        assert_eq!(Lockdown::at(&file).reason(), None);
    }

    #[test]
    fn a_lockdown_that_cannot_be_read_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Lockdown::at(dir.path()).reason().is_some());
    }
}
