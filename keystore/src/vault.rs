//! Records, sealed: the typed face of the store.
//!
//! Every value is sealed before it reaches a [`Backend`] and bound to its key name, so a value moved to another name
//! does not open. All changes are compare-and-set. The master key can change while it is open (`rekey`).

use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::backend::{Backend, BackendError, Compacted, Guard, Outcome, Transaction, Versioned, Write};
use crate::record::Record;
use crate::seal::{MasterKey, SealError};

mod batch;
mod opening;
mod rekey;

pub use batch::Batch;
pub use opening::OpenError;
use rekey::Keys;
pub use rekey::{Rekeyed, Successor};

/// A record that changed: which, not how. Receivers that lag read everything again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The [`Record::KIND`].
    pub kind: String,
    /// The [`Record::record_id`].
    pub id: String,
}

/// Why the vault did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record exists already.
    #[error("{kind} {id} exists already")]
    Exists {
        /// The [`Record::KIND`].
        kind: &'static str,
        /// The [`Record::record_id`].
        id: String,
    },
    /// No such record.
    #[error("no {kind} {id}")]
    NotFound {
        /// The [`Record::KIND`].
        kind: &'static str,
        /// The [`Record::record_id`].
        id: String,
    },
    /// The record is not as it was, or no more: somebody was faster.
    #[error("{kind} {id} was changed or removed meanwhile")]
    Changed {
        /// The [`Record::KIND`].
        kind: &'static str,
        /// The [`Record::record_id`].
        id: String,
    },
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A value did not open under the master key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The master key is another one than the store is sealed under.
    #[error(
        "the store is sealed under {needs}; what is in {place} is master key {found}. Name the right one as master_key \
         in keyward.toml"
    )]
    OtherMasterKey {
        /// The one it needs, in words: its id, and where it was when it became the store's, as far as that is known.
        needs: String,
        /// Where the one that was given came from.
        place: String,
        /// Its id.
        found: String,
    },
    /// A value opened but is not what this version writes.
    #[error("the record {name} cannot be read: {why}")]
    Unreadable {
        /// The record's name in the store.
        name: String,
        /// What the decoder said.
        why: String,
    },
}

/// The store of records.
pub struct Vault {
    backend: Arc<dyn Backend>,
    keys: RwLock<Arc<Keys>>,
    /// Held shared from before a value is sealed until it is committed; alone while the master key changes.
    turn: tokio::sync::RwLock<()>,
    changes: broadcast::Sender<Change>,
}

impl Vault {
    /// A vault over `backend`, sealed under `master`. The master key is checked by the one who opened the backend
    /// ([`Vault::check_master_key`]).
    pub fn new(backend: Arc<dyn Backend>, master: MasterKey) -> Self {
        let (changes, _) = broadcast::channel(1024);
        Self { backend, keys: RwLock::new(Keys::only(master)), turn: tokio::sync::RwLock::default(), changes }
    }

    /// Writes the sealed mark that later proves the master key. Fails with [`Error::Exists`] on a store that has one.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer; nothing has changed then.
    pub async fn initialise(&self) -> Result<(), Error> {
        let _turn = self.turn.read().await;
        let sealed = self.keys().seal(MARK, MARK.as_bytes())?;
        self.put_new("mark", "master", sealed).await
    }

    /// Proves that the master key, which came from `place`, is the one that this store is sealed under.
    ///
    /// # Errors
    /// [`Error::OtherMasterKey`] if it is another; [`Error::NotFound`] if the store was never initialised.
    pub async fn check_master_key(&self, place: &str) -> Result<(), Error> {
        let stored = self.backend.get(MARK.as_bytes()).await?;
        let stored = stored.ok_or(Error::NotFound { kind: "mark", id: "master".to_owned() })?;
        let keys = self.keys();
        match keys.open(MARK, &stored.value) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.other_master_key(place, keys.id()).await?),
        }
    }

    /// The record with this id.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer, [`Error::Seal`] or [`Error::Unreadable`] if a record does not open.
    pub async fn get<R: Record>(&self, id: &str) -> Result<Option<R>, Error> {
        Ok(self.read(&name::<R>(id)).await?.map(|(record, _)| record))
    }

    /// All records of this kind, ordered by id.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer, [`Error::Seal`] or [`Error::Unreadable`] if a record does not open.
    pub async fn list<R: Record>(&self) -> Result<Vec<R>, Error> {
        loop {
            let keys = self.keys();
            let found = self.backend.range(name::<R>("").as_bytes()).await?;
            let opened = found
                .into_iter()
                .map(|(key, found)| open(&keys, &String::from_utf8_lossy(&key), &found.value))
                .collect();
            match opened {
                Err(Error::Seal(_)) if self.changed_since(&keys) => {}
                opened => return opened,
            }
        }
    }

    /// Adds a record; durable when it returns.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one with this id.
    pub async fn insert<R: Record>(&self, record: &R) -> Result<(), Error> {
        let _turn = self.turn.read().await;
        let id = record.record_id();
        let sealed = self.seal(&name::<R>(&id), record)?;
        self.put_new(R::KIND, &id, sealed).await?;
        self.announce::<R>(&id);
        Ok(())
    }

    /// Changes a record by compare-and-set; durable when it returns. `change` may run more than once (when another
    /// writer was faster) and sees the newest record each time; its error leaves everything as it was.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; whatever `change` returns.
    pub async fn update<R: Record, T, E: From<Error>>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut R) -> Result<T, E>,
    ) -> Result<T, E> {
        let name = name::<R>(id);
        let _turn = self.turn.read().await;
        loop {
            let found = self.read::<R>(&name).await.map_err(E::from)?;
            let (mut record, revision) = found.ok_or(Error::NotFound { kind: R::KIND, id: id.to_owned() })?;
            let result = change(&mut record)?;
            let sealed = self.seal(&name, &record)?;
            let key = Bytes::from(name.clone());
            let transaction = Transaction {
                guards: vec![Guard::Unchanged(key.clone(), revision)],
                writes: vec![Write::Put(key, sealed)],
            };
            if let Outcome::Committed(_) = self.backend.transact(transaction).await.map_err(Error::from)? {
                self.announce::<R>(id);
                return Ok(result);
            }
        }
    }

    /// Removes a record and returns it; durable when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    pub async fn remove<R: Record>(&self, id: &str) -> Result<R, Error> {
        let name = name::<R>(id);
        let _turn = self.turn.read().await;
        loop {
            let found = self.read::<R>(&name).await?;
            let (record, revision) = found.ok_or(Error::NotFound { kind: R::KIND, id: id.to_owned() })?;
            let key = Bytes::from(name.clone());
            let transaction = Transaction {
                guards: vec![Guard::Unchanged(key.clone(), revision)],
                writes: vec![Write::Delete(key)],
            };
            if let Outcome::Committed(_) = self.backend.transact(transaction).await? {
                self.announce::<R>(id);
                return Ok(record);
            }
        }
    }

    /// The next short id for people: `K1`, `K2`, … Ids are never given twice, also when what they named is gone.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer; nothing has changed then.
    pub async fn next_id(&self, prefix: &str) -> Result<String, Error> {
        let name = format!("counter/{prefix}");
        let key = Bytes::from(name.clone());
        let _turn = self.turn.read().await;
        loop {
            let found = self.read::<u64>(&name).await?;
            let (guard, last) = match found {
                Some((last, revision)) => (Guard::Unchanged(key.clone(), revision), last),
                None => (Guard::Absent(key.clone()), 0),
            };
            let sealed = self.keys().seal(&name, (last + 1).to_string().as_bytes())?;
            let transaction =
                Transaction { guards: vec![guard], writes: vec![Write::Put(key.clone(), sealed)] };
            if let Outcome::Committed(_) = self.backend.transact(transaction).await? {
                return Ok(format!("{prefix}{}", last + 1));
            }
        }
    }

    /// Changes committed through this vault from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn put_new(&self, kind: &'static str, id: &str, sealed: Bytes) -> Result<(), Error> {
        let key = Bytes::from(format!("{kind}/{id}"));
        let transaction =
            Transaction { guards: vec![Guard::Absent(key.clone())], writes: vec![Write::Put(key, sealed)] };
        match self.backend.transact(transaction).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(Error::Exists { kind, id: id.to_owned() }),
        }
    }

    /// What is stored under `name`, opened, and the revision that wrote it.
    async fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<(T, u64)>, Error> {
        loop {
            let keys = self.keys();
            let Some(Versioned { value, revision }) = self.backend.get(name.as_bytes()).await? else {
                return Ok(None);
            };
            match open(&keys, name, &value) {
                Ok(opened) => return Ok(Some((opened, revision))),
                Err(Error::Seal(_)) if self.changed_since(&keys) => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    fn seal<R: Record>(&self, name: &str, record: &R) -> Result<Bytes, Error> {
        Ok(self.keys().seal(name, &plain(name, record)?)?)
    }

    fn announce<R: Record>(&self, id: &str) {
        // No receiver is no fault: nothing is live that would have to be cut.
        drop(self.changes.send(Change { kind: R::KIND.to_owned(), id: id.to_owned() }));
    }
}

/// A record as it is sealed.
fn plain<R: Record>(name: &str, record: &R) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
    serde_json::to_vec(record)
        .map(zeroize::Zeroizing::new)
        .map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })
}

fn open<T: serde::de::DeserializeOwned>(keys: &Keys, name: &str, sealed: &[u8]) -> Result<T, Error> {
    let plain = keys.open(name, sealed)?;
    serde_json::from_slice(&plain)
        .map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })
}

const MARK: &str = "mark/master";

fn name<R: Record>(id: &str) -> String {
    format!("{}/{id}", R::KIND)
}
