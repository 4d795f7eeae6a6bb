//! The way of a key to its successor: staged, proven by its first login, then the old one retires.
//!
//! Takes `lifecycle`'s steps when they are due, by use or by time, and tells the trail of each before it is written: a
//! crash in between repeats an event, it never loses one. What is not written yet holds all the same, since every
//! reader asks for the status *at now*. Decides nothing about logins; `auth` does.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::lifecycle::{self, Step, Terms};
use keystore::{Change, KeyRules, KeyStatus, Record, User, UserKey, UserKind, Vault};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::audit::{AuditError, Event, Trail};

mod custody;
mod master;
mod notice;

pub use custody::{Asked, BY_ITSELF, Custody, Errands, LOOK, Probe, Reach, Visit, VisitFault, lagging};
pub use master::{compact, finish_rekeying, rekey};
pub use notice::{ca_notice, notice, span};

/// Why a workflow went no further. What it left can be gone on from.
#[derive(Debug, thiserror::Error)]
pub enum RotationFault {
    /// Operator or owner: the old key is in no state to get a successor.
    #[error("{0}")]
    NotNow(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] keystore::Error),
    /// The trail failed.
    #[error(transparent)]
    Trail(#[from] AuditError),
    /// A signing key could not be made or read.
    #[error(transparent)]
    Signing(#[from] keystore::signing::SigningError),
}

/// The workflows, over the store and the trail.
#[derive(Clone)]
pub struct Rotation {
    /// The store.
    pub vault: Arc<Vault>,
    /// The audit trail.
    pub trail: Arc<Trail>,
    /// How long keys live.
    pub rules: Arc<KeyRules>,
}

impl Rotation {
    /// The successor of `old` that its owner staged, if it still waits for its first login.
    ///
    /// # Errors
    /// The store.
    pub async fn waiting(&self, old: &UserKey, now: Timestamp) -> Result<Option<UserKey>, RotationFault> {
        let keys: Vec<UserKey> = self.vault.list().await?;
        let waits = |k: &UserKey| {
            let follows = k.replaces.as_deref() == Some(&old.fingerprint) && k.user == old.user;
            follows && k.status_at(now) == KeyStatus::Pending
        };
        Ok(keys.into_iter().find(waits))
    }

    /// Whether `old` may get a successor at `now`: it is in use, or expired.
    ///
    /// # Errors
    /// [`RotationFault::NotNow`]: what stands in the way and what to do.
    pub async fn may_replace(&self, old: &UserKey, now: Timestamp) -> Result<(), RotationFault> {
        self.may_replace_once(old, None, now).await
    }

    /// The same, once `withdrawn`, which waited, is so.
    ///
    /// # Errors
    /// As [`Rotation::may_replace`].
    pub async fn may_replace_once(
        &self,
        old: &UserKey,
        withdrawn: Option<&UserKey>,
        now: Timestamp,
    ) -> Result<(), RotationFault> {
        let keys: Vec<UserKey> = self.vault.list().await?;
        let follows = |k: &&UserKey| k.replaces.as_deref() == Some(&old.fingerprint) && Some(*k) != withdrawn;
        let successor = keys.iter().filter(follows).find(|k| {
            matches!(k.status_at(now), KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring)
        });
        let (id, user) = (&old.id, &old.user);
        match (old.status_at(now), successor) {
            (KeyStatus::Active | KeyStatus::Expired, None) => Ok(()),
            (_, Some(next)) if next.status_at(now) == KeyStatus::Pending => {
                Err(RotationFault::NotNow(format!(
                    "{next} already waits to replace {id}. Log in with it once; or, if it is not the one you want, \
                     withdraw it first: ssh-keys revoke {next} --reason mistake",
                    next = next.id
                )))
            }
            (_, Some(next)) => Err(RotationFault::NotNow(format!(
                "{id} was replaced by {} already; rotate that one",
                next.id
            ))),
            (KeyStatus::Pending, None) => Err(RotationFault::NotNow(format!(
                "{id} was never used; withdraw it instead: ssh-keys revoke {id} --reason mistake"
            ))),
            (ended, None) => Err(RotationFault::NotNow(format!(
                "{id} is {ended}. Ask an administrator for a code: keyward users invite {user}"
            ))),
        }
    }

    /// Writes every step that is due at `now`; returns when the next one comes by time.
    ///
    /// # Errors
    /// The store or the trail; what was not written is due again.
    pub async fn settle(&self, now: Timestamp) -> Result<Option<Timestamp>, RotationFault> {
        let mut next = None;
        for key in self.vault.list::<UserKey>().await? {
            next = sooner(next, self.advance(&key.fingerprint, now).await?);
        }
        Ok(next)
    }

    /// The same for one key.
    async fn advance(&self, key: &str, now: Timestamp) -> Result<Option<Timestamp>, RotationFault> {
        let Some(mut key) = self.vault.get::<UserKey>(key).await? else { return Ok(None) };
        while let Some(step) = lifecycle::due(&key, now) {
            key = self.take(key, step, now).await?;
        }
        if let (KeyStatus::Active, Some(old)) = (key.status, &key.replaces) {
            self.succeed(old, &key, now).await?;
        }
        let (terms, kind) = self.terms(&key).await?;
        let key = self.shorten(key, (&terms, kind), now).await?;
        self.warn(&key, &terms, now).await?;
        Ok(sooner(lifecycle::next_by_time(&key), lifecycle::next_warning(&key, &terms, now)))
    }

    /// Those of the key's owner, as the roles are now.
    async fn terms(&self, key: &UserKey) -> Result<(Terms, UserKind), RotationFault> {
        let owner = self.vault.get::<User>(key.user.as_str()).await?;
        Ok(owner.map_or_else(
            || (self.rules.base.clone(), UserKind::Human),
            |owner| (self.rules.of(&owner), owner.kind),
        ))
    }

    /// Stricter terms than those it was added under hold for a key too, but nobody is locked out by surprise: it lives for
    /// as long as the first warning comes before an end.
    async fn shorten(
        &self,
        key: UserKey,
        (terms, kind): (&Terms, UserKind),
        now: Timestamp,
    ) -> Result<UserKey, RotationFault> {
        let Some(until) = lifecycle::shortened(&key, (terms, kind), now) else { return Ok(key) };
        let (user, print, was) = (key.user.to_string(), key.fingerprint.clone(), key.expires_at.to_string());
        let event = Event::SshKeyShortened { user, key: print, was, until: until.to_string() };
        let written = self.write(&key.fingerprint, |record| record.expires_at = record.expires_at.min(until));
        self.trail.ahead_of(vec![event], now, written).await
    }

    async fn take(&self, key: UserKey, step: Step, now: Timestamp) -> Result<UserKey, RotationFault> {
        let (user, print) = (key.user.to_string(), key.fingerprint.clone());
        let event = match step {
            Step::Prove => Some(Event::SshKeyActivated { user, key: print }),
            Step::Expire => Some(Event::SshKeyExpired { user, key: print }),
            Step::Retire => Some(Event::SshKeyRetired { user, key: print }),
            // Never due by use or time.
            Step::Succeed | Step::Revoke => None,
        };
        let written = self.write(&key.fingerprint, |record| {
            if lifecycle::due(record, now) == Some(step)
                && let Some(after) = lifecycle::next(record.status, step)
            {
                record.status = after;
            }
        });
        self.trail.ahead_of(event.into_iter().collect(), now, written).await
    }

    /// `new` is in use: `old` works to the end of the overlap, or, if it has expired, no more.
    async fn succeed(&self, old: &str, new: &UserKey, now: Timestamp) -> Result<(), RotationFault> {
        let Some(old) = self.vault.get::<UserKey>(old).await? else { return Ok(()) };
        let (user, key) = (old.user.to_string(), old.fingerprint.clone());
        let end = Timestamp::from_second(now.as_second().saturating_add(self.terms(&old).await?.0.overlap));
        let end = end.unwrap_or(old.expires_at).min(old.expires_at);
        let event = match lifecycle::next(old.status, Step::Succeed) {
            Some(KeyStatus::Retiring) => {
                let successor = new.fingerprint.clone();
                Event::SshKeyRetiring { user, key, successor, until: end.to_string() }
            }
            Some(KeyStatus::Retired) => Event::SshKeyRetired { user, key },
            _ => return Ok(()),
        };
        let written = self.write(&old.fingerprint, |record| {
            if let Some(after) = lifecycle::next(record.status, Step::Succeed) {
                record.status = after;
                record.retires_at = Some(end);
            }
        });
        self.trail.ahead_of(vec![event], now, written).await.map(drop)
    }

    async fn warn(&self, key: &UserKey, terms: &Terms, now: Timestamp) -> Result<(), RotationFault> {
        let Some(before) = lifecycle::warning(key, terms, now) else { return Ok(()) };
        if key.warned.is_some_and(|warned| warned <= before) {
            return Ok(());
        }
        let (user, print) = (key.user.to_string(), key.fingerprint.clone());
        let expires_at = key.expires_at.to_string();
        let event = Event::SshKeyExpiring { user, key: print, expires_at };
        let written = self.write(&key.fingerprint, |record| record.warned = Some(before));
        self.trail.ahead_of(vec![event], now, written).await.map(drop)
    }

    async fn write(&self, key: &str, mut change: impl FnMut(&mut UserKey)) -> Result<UserKey, RotationFault> {
        self.vault
            .update(key, |record: &mut UserKey| {
                change(record);
                Ok(record.clone())
            })
            .await
    }
}

/// Takes every step when it is due, until `stop`. Run it as one task of the daemon. `of_now` is asked each time, since
/// the terms may change; `clock` says by which time something may end for good.
pub async fn keep(of_now: impl Fn() -> Rotation, clock: impl Fn() -> Timestamp, stop: CancellationToken) {
    let rotation = of_now();
    let mut changes = rotation.vault.changes();
    let mut next = told(rotation.settle(clock()).await);
    loop {
        let pause = next.map_or(LONGEST_PAUSE, |at| until(at, clock()).min(LONGEST_PAUSE));
        next = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => told(of_now().settle(clock()).await),
            change = changes.recv() => match change {
                Ok(Change { kind, id }) if kind == UserKey::KIND => {
                    sooner(next, told(of_now().advance(&id, clock()).await))
                }
                // Who has other roles may have stricter terms.
                Ok(Change { kind, .. }) if kind == User::KIND => told(of_now().settle(clock()).await),
                Ok(_) => next,
                Err(RecvError::Lagged(_)) => told(of_now().settle(clock()).await),
                Err(RecvError::Closed) => return,
            },
        };
    }
}

fn told(settled: Result<Option<Timestamp>, RotationFault>) -> Option<Timestamp> {
    settled.unwrap_or_else(|fault| {
        tracing::error!(%fault, "rotation.failed: tried again within a minute");
        None
    })
}

fn sooner(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    let millis = at.as_millisecond().saturating_sub(now.as_millisecond());
    // A step that is due already but could not be written must not make this spin.
    Duration::from_millis(u64::try_from(millis).unwrap_or(0).saturating_add(20))
}

/// Steps by time are noticed this late at most, also when the wall clock jumps.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod quarter;
#[cfg(test)]
mod tests;
