//! Several changes of the store that happen together or not at all.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{Change, Error, Guard, Outcome, Transaction, Vault, Write, name, plain};
use crate::record::Record;

/// Changes that [`Vault::commit`] makes together.
#[derive(Default)]
pub struct Batch {
    steps: Vec<Step>,
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
    /// [`Error::Exists`] if a record that was to be inserted is there already.
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        let _turn = self.turn.read().await;
        let keys = self.keys();
        while let Outcome::Conflict = self.backend.transact(sealed(&keys, &batch)?).await? {
            // Only an insert can conflict; what is no longer in its way lets it try again.
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
