//! Whether anybody is invited: asked for each connection, before anything else is known of it. So nothing is read for that
//! but after a change of an invitation, and the one answer for all is remembered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use keystore::{Batch, Change, Invitation, Record, Vault};
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::invite::open;

/// The open invitations.
pub struct Invitations {
    known: Mutex<Known>,
}

struct Known {
    changes: Receiver<Change>,
    /// Counts the changes that were heard of; beginning with one, so that the first who asks looks.
    heard: u64,
    /// How many of those the answer has seen.
    seen: u64,
    /// When the last of the open ones expires.
    last: Option<Timestamp>,
}

impl Invitations {
    /// Those of `vault`; nothing is read yet.
    pub fn of(vault: &Vault) -> Self {
        let known = Known { changes: vault.changes(), heard: 1, seen: 0, last: None };
        Self { known: Mutex::new(known) }
    }

    /// Whether anybody at all holds an open invitation: only then are strangers asked for one. Where the store fails, the
    /// answer stays what it was. Cancel-safe.
    pub async fn any(&self, vault: &Vault, now: Timestamp) -> bool {
        let heard = {
            let mut known = self.known();
            known.listen();
            if known.seen == known.heard {
                return known.last.is_some_and(|last| last > now);
            }
            known.heard
        };
        let looked = look(vault, now).await;
        let mut known = self.known();
        match looked {
            // Who looked before a later change says nothing about it.
            Ok(last) if heard > known.seen => (known.seen, known.last) = (heard, last),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "invitations.not_read: enrolment stays as it was"),
        }
        known.last.is_some_and(|last| last > now)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn listen(&mut self) {
        loop {
            match self.changes.try_recv() {
                Ok(change) if change.kind == Invitation::KIND => self.heard += 1,
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => self.heard += 1,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }
}

/// When the last open invitation expires. Those that are spent or have expired are forgotten on the way.
async fn look(vault: &Vault, now: Timestamp) -> Result<Option<Timestamp>, keystore::Error> {
    let mut last = None;
    for invitation in vault.list::<Invitation>().await? {
        if open(&invitation, now) {
            last = last.max(Some(invitation.expires_at));
            continue;
        }
        // Another may have been given in its place by now.
        let batch = Batch::default().if_unchanged(&invitation)?;
        match vault.commit(batch.remove::<Invitation>(&invitation.record_id())).await {
            Ok(()) | Err(keystore::Error::Changed { .. }) => {}
            Err(error) => tracing::warn!(%error, "invitation.not_forgotten"),
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::auth::testing::{Meddled, at};
    use crate::auth::{invitation, invite, withdraw};
    use keystore::seal::MasterKey;

    const DAY: i64 = 86_400;

    async fn invited(vault: &Vault, user: &str) {
        let (_, invitation) = invitation(&user.parse().unwrap(), at(0));
        invite(vault, &invitation).await.unwrap();
    }

    #[tokio::test]
    async fn the_answer_follows_each_change_and_the_clock_and_nothing_is_read_in_between() {
        let store = Arc::new(Meddled::default());
        let vault = Vault::new(store.clone(), MasterKey::generate().unwrap());
        let invitations = Invitations::of(&vault);
        assert!(!invitations.any(&vault, at(0)).await);
        invited(&vault, "carol").await;
        assert!(invitations.any(&vault, at(1)).await);
        let ranges = store.ranges.load(Ordering::SeqCst);
        for _ in 0..100 {
            assert!(invitations.any(&vault, at(2)).await);
        }
        assert_eq!(store.ranges.load(Ordering::SeqCst), ranges);
        assert!(!invitations.any(&vault, at(DAY)).await, "it has expired");
        withdraw(&vault, &"carol".parse().unwrap()).await.unwrap();
        assert!(!invitations.any(&vault, at(3)).await);
    }

    #[tokio::test]
    async fn what_is_spent_or_has_expired_is_forgotten_and_what_is_open_is_not() {
        let vault = crate::auth::testing::empty_vault();
        let invitations = Invitations::of(&vault);
        for user in ["carol", "dave", "erin"] {
            invited(&vault, user).await;
        }
        let spend = |invitation: &mut Invitation| {
            invitation.spent_at = Some(at(1));
            Ok::<_, keystore::Error>(())
        };
        vault.update("carol", spend).await.unwrap();
        let expire = |invitation: &mut Invitation| {
            invitation.expires_at = at(1);
            Ok::<_, keystore::Error>(())
        };
        vault.update("dave", expire).await.unwrap();
        assert!(invitations.any(&vault, at(2)).await);
        let left: Vec<Invitation> = vault.list().await.unwrap();
        assert_eq!(left.iter().map(|i| i.user.as_str()).collect::<Vec<_>>(), ["erin"]);
    }

    #[tokio::test]
    async fn a_store_that_fails_leaves_enrolment_as_it_was() {
        for was in [true, false] {
            let store = Arc::new(Meddled::default());
            let vault = Vault::new(store.clone(), MasterKey::generate().unwrap());
            let invitations = Invitations::of(&vault);
            if was {
                invited(&vault, "carol").await;
            }
            assert_eq!(invitations.any(&vault, at(1)).await, was);
            match was {
                true => withdraw(&vault, &"carol".parse().unwrap()).await.unwrap(),
                false => invited(&vault, "carol").await,
            }
            store.fails.store(true, Ordering::SeqCst);
            assert_eq!(invitations.any(&vault, at(2)).await, was);
            store.fails.store(false, Ordering::SeqCst);
            assert_eq!(invitations.any(&vault, at(3)).await, !was, "asked again as soon as it can be");
        }
    }
}
