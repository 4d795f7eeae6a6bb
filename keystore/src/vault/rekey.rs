//! The change of the master key: every value is sealed anew under it, in one transaction, while the store serves.
//!
//! There is no key between the master key and the values: one that stayed would leave all that was ever written open to
//! whoever had the old master key (docs/adr/0007). The transaction decides: before it the store opens under the old
//! key, after it under the new one, which also marks the store's lines from then on. [`Vault::compact`] then removes what is sealed under the old one from the files.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Compacted, Error, Guard, MasterKey, Outcome, SealError, Transaction, Vault, Write};
use crate::failpoint;

/// A change of the master key that is not told and cleaned up to the end yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekeyed {
    /// The id of the key before.
    pub from: String,
    /// The id of the key of now.
    pub to: String,
    /// How many values were sealed anew.
    pub records: u64,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// The key that a store is to be sealed under.
pub struct Successor {
    /// The key.
    pub key: MasterKey,
    /// Where it lies, in words.
    pub place: String,
    /// Who wants it.
    pub by: String,
}

impl Vault {
    /// The id of the master key that values are sealed under now.
    pub fn master_key_id(&self) -> String {
        self.keys().id()
    }

    /// Seals every value under another key. Writers wait meanwhile, readers do not. What is left to do afterwards is
    /// [`Vault::compact`], then [`Vault::rekeying_done`]; until then [`Vault::rekeyed`] says so.
    ///
    /// # Errors
    /// A value that does not open now, or the backend; the store is then still sealed under the key before.
    pub async fn rekey(&self, to: Successor, now: Timestamp) -> Result<Rekeyed, Error> {
        self.rekey_counting(to, now, &|_, _| {}).await
    }

    /// The same; `so_far` hears how many values of how many are sealed.
    ///
    /// # Errors
    /// As [`Vault::rekey`].
    pub async fn rekey_counting(
        &self,
        to: Successor,
        now: Timestamp,
        so_far: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Rekeyed, Error> {
        let _alone = self.turn.write().await;
        let (old, new) = (self.keys().current.clone(), Arc::new(to.key));
        // Who sealed before it was our turn may have gone away with its transaction still on its way: it is decided
        // before this one, and what it wrote is seen below.
        let flush = Transaction { guards: Vec::new(), writes: vec![Write::Delete(Bytes::from(REKEYED))] };
        self.backend.transact(flush).await?;
        failpoint::reach("rekey.begun");
        self.set_keys(Keys { current: old.clone(), other: Some(new.clone()) });
        let mut transaction = self.sealed_anew((&old, &new), so_far).await?;
        let records = transaction.writes.len() as u64;
        let done = Rekeyed { from: old.id(), to: new.id(), records, by: to.by, at: now };
        let needed = Needed { id: new.id(), place: to.place };
        for (name, text) in [(REKEYED, serde_json::to_vec(&done)), (NEEDED, serde_json::to_vec(&needed))] {
            let text = text.map_err(|e| Error::Unreadable { name: name.to_owned(), why: e.to_string() })?;
            transaction.writes.push(Write::Put(Bytes::from(name), Bytes::from(text)));
        }
        failpoint::reach("rekey.sealed");
        if let Outcome::Conflict = self.backend.transact_under(transaction, new.line_key()).await? {
            // Nobody but this vault may write, and nobody else in it has its turn.
            return Err(Error::Unreadable {
                name: "mark".to_owned(),
                why: "something else writes".to_owned(),
            });
        }
        failpoint::reach("rekey.committed");
        self.set_keys(Keys { current: new, other: Some(old) });
        Ok(done)
    }

    async fn sealed_anew(
        &self,
        (old, new): (&MasterKey, &MasterKey),
        so_far: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Transaction, Error> {
        let mut transaction = Transaction::default();
        let rows = self.backend.range(b"").await?;
        let all = rows.len() as u64;
        for (number, (key, row)) in (0..).zip(rows) {
            if number % AT_ONCE == 0 {
                so_far(number, all);
                // Readers go on meanwhile, also those that this thread serves; and whoever waits may want to say how far it is.
                tokio::task::yield_now().await;
            }
            let name = String::from_utf8_lossy(&key).into_owned();
            if PLAIN.contains(&name.as_str()) {
                continue;
            }
            let sealed = new.seal(&name, &old.open(&name, &row.value)?)?;
            transaction.guards.push(Guard::Unchanged(key.clone(), row.revision));
            transaction.writes.push(Write::Put(key, sealed));
        }
        Ok(transaction)
    }

    /// The change of the master key that was not brought to its end.
    ///
    /// # Errors
    /// [`Error::Backend`], [`Error::Unreadable`].
    pub async fn rekeyed(&self) -> Result<Option<Rekeyed>, Error> {
        self.unsealed(REKEYED).await
    }

    /// The change of the master key is told and cleaned up: what was sealed under the old one opens no more.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn rekeying_done(&self) -> Result<(), Error> {
        let _alone = self.turn.write().await;
        let writes = vec![Write::Delete(Bytes::from(REKEYED))];
        self.backend.transact(Transaction { guards: Vec::new(), writes }).await?;
        let current = self.keys().current.clone();
        self.set_keys(Keys { current, other: None });
        Ok(())
    }

    /// Forgets every value but the live ones: afterwards no other is in the store's files.
    ///
    /// # Errors
    /// [`Error::Backend`]; it has then happened or it has not.
    pub async fn compact(&self) -> Result<Option<Compacted>, Error> {
        Ok(self.backend.compact().await?)
    }

    /// The newest record of the store and its hash, hex; none where no history is kept.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn newest(&self) -> Result<Option<(u64, String)>, Error> {
        Ok(self.backend.newest().await?)
    }

    /// [`Vault::compact`], if `newest` still is the newest record.
    ///
    /// # Errors
    /// [`Error::Backend`], with [`crate::backend::BackendError::Moved`] if it is not.
    pub async fn compact_at(&self, newest: u64) -> Result<Option<Compacted>, Error> {
        Ok(self.backend.compact_at(Some(newest)).await?)
    }

    /// How many records a compaction would forget, about.
    ///
    /// # Errors
    /// [`Error::Backend`].
    pub async fn history(&self) -> Result<u64, Error> {
        Ok(self.backend.history().await?)
    }

    /// The words for a master key, found in `place`, that is not the store's.
    pub(super) async fn other_master_key(&self, place: &str, found: String) -> Result<Error, Error> {
        let needed: Option<Needed> = self.unsealed(NEEDED).await?;
        let needs = needed.map_or_else(|| "another master key".to_owned(), |needed| needed.words());
        Ok(Error::OtherMasterKey { needs, place: place.to_owned(), found })
    }

    async fn unsealed<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(found) = self.backend.get(name.as_bytes()).await? else { return Ok(None) };
        let unreadable =
            |e: serde_json::Error| Error::Unreadable { name: name.to_owned(), why: e.to_string() };
        serde_json::from_slice(&found.value).map(Some).map_err(unreadable)
    }

    pub(super) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the keys are others than `keys`: what did not open may do so now.
    pub(super) fn changed_since(&self, keys: &Arc<Keys>) -> bool {
        !Arc::ptr_eq(keys, &self.keys())
    }

    fn set_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }
}

/// What values are sealed under, and the other key that they may be sealed under while it changes.
pub(super) struct Keys {
    current: Arc<MasterKey>,
    other: Option<Arc<MasterKey>>,
}

impl Keys {
    pub(super) fn only(master: MasterKey) -> Arc<Self> {
        Arc::new(Self { current: Arc::new(master), other: None })
    }

    pub(super) fn id(&self) -> String {
        self.current.id()
    }

    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Result<Bytes, SealError> {
        self.current.seal(name, plain)
    }

    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let opened = self.current.open(name, sealed);
        match (&self.other, opened) {
            (Some(other), Err(_)) => other.open(name, sealed),
            (_, opened) => opened,
        }
    }
}

/// Which master key the store needs: for the words of a refusal, so it is not sealed, and proves nothing.
#[derive(Serialize, Deserialize)]
pub(super) struct Needed {
    pub(super) id: String,
    place: String,
}

impl Needed {
    pub(super) fn words(&self) -> String {
        format!("master key {} (which was in {})", self.id, self.place)
    }
}

/// Values that are sealed before anybody else has a turn.
const AT_ONCE: u64 = 32;
pub(super) const NEEDED: &str = "mark/key";
const REKEYED: &str = "mark/rekeyed";
/// What is not sealed.
const PLAIN: [&str; 2] = [NEEDED, REKEYED];
