//! Several changes of the store that happen together or not at all.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{Change, Error, Guard, Outcome, Transaction, Vault, Write, name, plain};
use crate::record::Record;

/// Changes that [`Vault::commit`] makes together.
#[derive(Default)]
pub struct Batch {
    steps: Vec<Step>,
    conditions: Vec<Condition>,
}

/// A record as it is sealed.
type Plain = Zeroizing<Vec<u8>>;

/// A record that must be there still, just as it was read.
struct Condition {
    kind: &'static str,
    id: String,
    plain: Plain,
    /// What is stored, as this version writes it: one before may have left out what it did not know.
    written: fn(&str, &[u8]) -> Result<Plain, Error>,
}

struct Step {
    kind: &'static str,
    id: String,
    what: What,
}

enum What {
    Insert(Zeroizing<Vec<u8>>),
    Put(Zeroizing<Vec<u8>>),
    Remove,
}

impl Batch {
    /// Adds a record; there must be none with this id.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if it cannot be written down.
    pub fn insert<R: Record>(mut self, record: &R) -> Result<Self, Error> {
        let id = record.record_id();
        let plain = plain(&name::<R>(&id), record)?;
        self.steps.push(Step { kind: R::KIND, id, what: What::Insert(plain) });
        Ok(self)
    }

    /// Adds a record, in the place of the one with this id if there is one.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if it cannot be written down.
    pub fn put<R: Record>(mut self, record: &R) -> Result<Self, Error> {
        let id = record.record_id();
        let plain = plain(&name::<R>(&id), record)?;
        self.steps.push(Step { kind: R::KIND, id, what: What::Put(plain) });
        Ok(self)
    }

    /// Nothing is changed unless this record is there, just as it was read: not removed, nor another by its name.
    ///
    /// # Errors
    /// [`Error::Unreadable`] if it cannot be written down.
    pub fn if_unchanged<R: Record>(mut self, record: &R) -> Result<Self, Error> {
        let id = record.record_id();
        let plain = plain(&name::<R>(&id), record)?;
        self.conditions.push(Condition { kind: R::KIND, id, plain, written: written::<R> });
        Ok(self)
    }

    /// Removes a record, if it is there.
    #[must_use]
    pub fn remove<R: Record>(mut self, id: &str) -> Self {
        self.steps.push(Step { kind: R::KIND, id: id.to_owned(), what: What::Remove });
        self
    }
}

impl Vault {
    /// Makes all changes of `batch`, or none; durable when it returns.
    ///
    /// # Errors
    /// [`Error::Exists`] if a record that was to be inserted is there already; [`Error::Changed`] if one that was to be
    /// unchanged is not.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        let _turn = self.turn.read().await;
        let keys = self.keys();
        loop {
            let mut transaction = sealed(&keys, &batch)?;
            for condition in &batch.conditions {
                transaction.guards.push(self.unchanged(&keys, condition).await?);
            }
            if let Outcome::Committed(_) = self.backend.transact(transaction).await? {
                break;
            }
            // What is no longer in an insert's way lets it try again; what must be unchanged is looked at again anyway.
            for Step { kind, id, what } in &batch.steps {
                let name = format!("{kind}/{id}");
                if matches!(what, What::Insert(_)) && self.backend.get(name.as_bytes()).await?.is_some() {
                    return Err(Error::Exists { kind, id: id.clone() });
                }
            }
        }
        for Step { kind, id, .. } in batch.steps {
            // No receiver is no fault: nothing is live that would have to be cut.
            drop(self.changes.send(Change { kind: kind.to_owned(), id }));
        }
        Ok(())
    }

    async fn unchanged(&self, keys: &super::Keys, condition: &Condition) -> Result<Guard, Error> {
        let Condition { kind, id, plain, written } = condition;
        let name = format!("{kind}/{id}");
        let changed = || Error::Changed { kind, id: id.clone() };
        let held = self.backend.get(name.as_bytes()).await?.ok_or_else(changed)?;
        if written(&name, &keys.open(&name, &held.value)?)? != *plain {
            return Err(changed());
        }
        Ok(Guard::Unchanged(Bytes::from(name), held.revision))
    }
}

fn written<R: Record>(name: &str, stored: &[u8]) -> Result<Plain, Error> {
    let record: R = serde_json::from_slice(stored)
        .map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })?;
    plain(name, &record)
}

fn sealed(keys: &super::Keys, batch: &Batch) -> Result<Transaction, Error> {
    let mut transaction = Transaction::default();
    for Step { kind, id, what } in &batch.steps {
        let name = format!("{kind}/{id}");
        let key = Bytes::from(name.clone());
        match what {
            What::Insert(plain) => {
                transaction.guards.push(Guard::Absent(key.clone()));
                transaction.writes.push(Write::Put(key, keys.seal(&name, plain)?));
            }
            What::Put(plain) => transaction.writes.push(Write::Put(key, keys.seal(&name, plain)?)),
            What::Remove => transaction.writes.push(Write::Delete(key)),
        }
    }
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Memory;
    use crate::seal::MasterKey;
    use crate::{Accepted, CaRotation, Error};
    use jiff::Timestamp;

    fn seen(instance: &str, ca: &str) -> Accepted {
        let instance = instance.parse().unwrap();
        Accepted { instance, ca: ca.to_owned(), since: Timestamp::UNIX_EPOCH }
    }

    async fn vault() -> Vault {
        let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
        vault.insert(&seen("db-1", "first")).await.unwrap();
        vault
    }

    #[tokio::test]
    async fn a_batch_is_made_while_what_it_stands_on_is_unchanged() {
        let vault = vault().await;
        let known = seen("db-1", "first");
        let batch = Batch::default().if_unchanged(&known).unwrap().put(&seen("db-2", "first")).unwrap();
        vault.commit(batch).await.unwrap();
        let batch = Batch::default().if_unchanged(&known).unwrap().put(&seen("db-1", "second")).unwrap();
        vault.commit(batch).await.unwrap();
        assert_eq!(vault.get::<Accepted>("db-1").await.unwrap().unwrap().ca, "second");
    }

    #[tokio::test]
    async fn a_batch_whose_ground_was_changed_or_removed_changes_nothing() {
        let vault = vault().await;
        for ground in ["db-1", "db-9"] {
            let was = seen(ground, "another");
            let batch = Batch::default().put(&seen("db-2", "x")).unwrap().remove::<CaRotation>("user");
            let refused = vault.commit(batch.if_unchanged(&was).unwrap()).await.unwrap_err();
            assert!(matches!(refused, Error::Changed { kind: "ca-accepted", .. }), "{refused}");
            assert!(vault.get::<Accepted>("db-2").await.unwrap().is_none(), "{ground}");
        }
    }
}
