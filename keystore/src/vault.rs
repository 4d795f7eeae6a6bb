//! Records, sealed: the typed face of the store.
//!
//! Every value is sealed before it reaches a [`Backend`] and bound to its key name, so a value moved to another name
//! does not open. All changes are compare-and-set.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::backend::{Backend, BackendError, Guard, Outcome, Transaction, Write};
use crate::record::Record;
use crate::seal::{MasterKey, SealError};

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
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A value did not open under the master key.
    #[error(transparent)]
    Seal(#[from] SealError),
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
    master: MasterKey,
    changes: broadcast::Sender<Change>,
}

impl Vault {
    /// A vault over `backend`, sealed under `master`. The master key is checked by the one who opened the backend
    /// ([`Vault::check_master_key`]).
    pub fn new(backend: Arc<dyn Backend>, master: MasterKey) -> Self {
        let (changes, _) = broadcast::channel(1024);
        Self { backend, master, changes }
    }

    /// Writes the sealed mark that later proves the master key. Fails with [`Error::Exists`] on a store that has one.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer; nothing has changed then.
    pub async fn initialise(&self) -> Result<(), Error> {
        let sealed = self.master.seal(MARK, MARK.as_bytes())?;
        self.put_new("mark", "master", sealed).await
    }

    /// Proves that the master key is the one this store was initialised with.
    ///
    /// # Errors
    /// [`Error::Seal`] if it is another; [`Error::NotFound`] if the store was never initialised.
    pub async fn check_master_key(&self) -> Result<(), Error> {
        let stored = self.backend.get(MARK.as_bytes()).await?;
        let stored = stored.ok_or(Error::NotFound { kind: "mark", id: "master".to_owned() })?;
        self.master.open(MARK, &stored.value)?;
        Ok(())
    }

    /// The record with this id.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer, [`Error::Seal`] or [`Error::Unreadable`] if a record does not open.
    pub async fn get<R: Record>(&self, id: &str) -> Result<Option<R>, Error> {
        let name = name::<R>(id);
        match self.backend.get(name.as_bytes()).await? {
            Some(found) => Ok(Some(self.open(&name, &found.value)?)),
            None => Ok(None),
        }
    }

    /// All records of this kind, ordered by id.
    ///
    /// # Errors
    /// [`Error::Backend`] if the store does not answer, [`Error::Seal`] or [`Error::Unreadable`] if a record does not open.
    pub async fn list<R: Record>(&self) -> Result<Vec<R>, Error> {
        let found = self.backend.range(name::<R>("").as_bytes()).await?;
        found
            .into_iter()
            .map(|(key, found)| self.open(&String::from_utf8_lossy(&key), &found.value))
            .collect()
    }

    /// Adds a record; durable when it returns.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one with this id.
    pub async fn insert<R: Record>(&self, record: &R) -> Result<(), Error> {
        let id = record.record_id();
        let name = name::<R>(&id);
        let sealed = self.seal(&name, record)?;
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
        loop {
            let found = self.backend.get(name.as_bytes()).await.map_err(Error::from)?;
            let found = found.ok_or(Error::NotFound { kind: R::KIND, id: id.to_owned() })?;
            let mut record: R = self.open(&name, &found.value)?;
            let result = change(&mut record)?;
            let sealed = self.seal(&name, &record)?;
            let key = Bytes::from(name.clone());
            let transaction = Transaction {
                guards: vec![Guard::Unchanged(key.clone(), found.revision)],
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
        loop {
            let found = self.backend.get(name.as_bytes()).await?;
            let found = found.ok_or(Error::NotFound { kind: R::KIND, id: id.to_owned() })?;
            let record = self.open(&name, &found.value)?;
            let key = Bytes::from(name.clone());
            let transaction = Transaction {
                guards: vec![Guard::Unchanged(key.clone(), found.revision)],
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
        loop {
            let found = self.backend.get(name.as_bytes()).await?;
            let (guard, last) = match &found {
                Some(found) => (
                    Guard::Unchanged(key.clone(), found.revision),
                    serde_json::from_slice::<u64>(&self.master.open(&name, &found.value)?)
                        .map_err(|e| Error::Unreadable { name: name.clone(), why: e.to_string() })?,
                ),
                None => (Guard::Absent(key.clone()), 0),
            };
            let sealed = self.master.seal(&name, (last + 1).to_string().as_bytes())?;
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

    fn seal<R: Record>(&self, name: &str, record: &R) -> Result<Bytes, Error> {
        let plain = serde_json::to_vec(record)
            .map(zeroize::Zeroizing::new)
            .map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })?;
        Ok(self.master.seal(name, &plain)?)
    }

    fn open<R: Record>(&self, name: &str, sealed: &[u8]) -> Result<R, Error> {
        let plain = self.master.open(name, sealed)?;
        serde_json::from_slice(&plain)
            .map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })
    }

    fn announce<R: Record>(&self, id: &str) {
        // No receiver is no fault: nothing is live that would have to be cut.
        drop(self.changes.send(Change { kind: R::KIND.to_owned(), id: id.to_owned() }));
    }
}

const MARK: &str = "mark/master";

fn name<R: Record>(id: &str) -> String {
    format!("{}/{id}", R::KIND)
}
