//! A vault over a store on this machine's disk: the master key proves the store's lines before it opens a value.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::rekey::{NEEDED, Needed};
use super::{Error, MasterKey, Vault, Versioned};
use crate::backend::{Embedded, EmbeddedError};

/// Why a vault was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store did not open.
    #[error(transparent)]
    Store(EmbeddedError),
    /// The master key is not the store's: [`Error::OtherMasterKey`].
    #[error(transparent)]
    Key(Error),
}

impl Vault {
    /// Makes a store in `dir`, and a vault over it that is not initialised.
    ///
    /// # Errors
    /// [`OpenError::Store`] if there is one already, or it cannot be made.
    pub fn create(dir: &Path, master: MasterKey) -> Result<Self, OpenError> {
        let backend = Embedded::open(dir, true, master.line_key()).map_err(OpenError::Store)?;
        Ok(Self::new(Arc::new(backend), master))
    }

    /// The vault over the store in `dir`, with the master key, which came from `place`.
    ///
    /// # Errors
    /// [`OpenError::Key`] if the store was written under another; [`OpenError::Store`] for what is wrong with it.
    pub fn open(dir: &Path, master: MasterKey, place: &str) -> Result<Self, OpenError> {
        match Embedded::open(dir, false, master.line_key()) {
            Ok(backend) => Ok(Self::new(Arc::new(backend), master)),
            Err(EmbeddedError::OtherKey { id, since, rows }) => {
                let mut needs = needs(&id, &rows);
                if let Some(since) = since {
                    needs += &format!(
                        ", says {since} (if nobody changed the master key it is forged: restore the store from a backup)"
                    );
                }
                let place = place.to_owned();
                Err(OpenError::Key(Error::OtherMasterKey { needs, place, found: master.id() }))
            }
            Err(fault) => Err(OpenError::Store(fault)),
        }
    }
}

/// The key with this id, and where it was, if the store knows.
fn needs(id: &str, rows: &BTreeMap<Bytes, Versioned>) -> String {
    let noted = rows.get(NEEDED.as_bytes()).and_then(|row| serde_json::from_slice(&row.value).ok());
    match noted {
        Some(needed @ Needed { .. }) if needed.id == id => needed.words(),
        _ => format!("master key {id}"),
    }
}
