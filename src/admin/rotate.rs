//! `ssh-keys rotate`: a key's successor, added as pending. The way on from there is `rotation`'s.

use std::sync::Arc;

use jiff::Timestamp;
use keystore::{Batch, Ended, KeyStatus, SecondFactor, UserKey, UserKind, UserName, Vault};
use serde_json::json;

use super::keys::{self, NewKey, find, shown};
use super::render::short_time;
use super::{Caller, Fault, Output, trail, users};
use crate::audit::Event;
use crate::rotation::{Rotation, RotationFault, span};
use crate::session::House;

/// The key workflows of `house`.
pub fn rotation(house: &House) -> Rotation {
    Rotation {
        vault: Arc::clone(&house.vault),
        trail: Arc::clone(&house.trail),
        rules: Arc::clone(&house.config().keys),
    }
}

impl From<RotationFault> for Fault {
    fn from(fault: RotationFault) -> Self {
        match fault {
            RotationFault::NotNow(says) => Self::conflict(says),
            other => Self::error(other.to_string()),
        }
    }
}

pub(super) struct Wanted {
    pub(super) user: Option<UserName>,
    pub(super) old: Option<String>,
    pub(super) text: Option<String>,
    pub(super) name: Option<String>,
}

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    wanted: Wanted,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let text = wanted.text.ok_or_else(|| Fault::usage("name the new public key file: --file id_new.pub"))?;
    let old = match (&wanted.old, caller) {
        (Some(old), _) => find(house, old).await?,
        (None, Caller::User(visitor)) if wanted.user.as_ref().is_none_or(|u| *u == visitor.user) => {
            match house.certificates.standing(&visitor.user, visitor.certificate, now) {
                None => find(house, &visitor.key).await?,
                Some(_) => {
                    let says = "you came with a certificate: whoever gave it renews it, there is no key to rotate here";
                    return Err(Fault::conflict(says));
                }
            }
        }
        (None, _) => {
            return Err(Fault::usage("name the key to replace: --old K12; see: keyward ssh-keys list"));
        }
    };
    if wanted.user.as_ref().or(caller.user()).is_some_and(|user| *user != old.user) {
        return Err(Fault::denied(format!("{} is another user's key; see: ssh-keys list", old.id)));
    }
    let withdrawn = exchanged(house, caller, &old, now).await?;
    rotation(house).may_replace_once(&old, withdrawn.as_ref(), now).await?;
    if !caller.has_role("admin") {
        not_too_many(&house.vault, &old.user).await?;
    }
    let new = successor(house, caller, (&old, wanted.name, text), now).await?;
    let staged = Staged { old: &old, new: &new, withdrawn: withdrawn.as_ref() };
    trail::gives(house, staged.events(caller), now, async {
        match house.vault.commit(staged.batch(now)?).await {
            Err(keystore::Error::Changed { .. }) => {
                let says = "the key that waited was logged in with meanwhile; nothing was changed";
                Err(Fault::conflict(says))
            }
            done => Ok(done?),
        }
    })
    .await?;
    let value = json!({ "old": shown(&old, now), "new": shown(&new, now) });
    let overlap = house.config().keys.of(&users::found(house, &old.user).await?).overlap;
    let mut text = told(house, &old, &new, overlap);
    if let Some(withdrawn) = &withdrawn {
        text = format!("{}, which waited, was withdrawn.\n{text}", withdrawn.id);
    }
    out.either(&value, text).await
}

/// The successor that waits and is withdrawn for the next one, where `caller` can do nothing but exchange a key: nothing
/// else is open to whoever staged a wrong one. An error if `old` is not the key that such a caller came with, since one
/// that has expired, or is a service's, says nothing about another.
async fn exchanged(
    house: &House,
    caller: &Caller,
    old: &UserKey,
    now: Timestamp,
) -> Result<Option<UserKey>, Fault> {
    match caller {
        Caller::User(visitor) if visitor.exchanges_only() => {
            if visitor.key != old.fingerprint {
                let says = format!("{} is not the key that you came with; leave --old out", old.id);
                return Err(Fault::denied(says));
            }
            Ok(rotation(house).waiting(old, now).await?)
        }
        _ => Ok(None),
    }
}

/// The record of the key that is to follow `old`; not stored yet.
async fn successor(
    house: &House,
    caller: &Caller,
    (old, name, text): (&UserKey, Option<String>, String),
    now: Timestamp,
) -> Result<UserKey, Fault> {
    let new = NewKey { user: old.user.clone(), text, name, expires_at: None, verify_required: false };
    let mut new = UserKey {
        status: KeyStatus::Pending,
        replaces: Some(old.fingerprint.clone()),
        ..keys::made(house, new, None, now).await?
    };
    // Keyward cannot see whether a security key is one: who may say so is who vouches for it, or for the one before.
    if new.verify_required && !old.verify_required && !caller.has_role("admin") {
        return Err(Fault::denied(
            "only an administrator can add a key as verify-required; leave that word out",
        ));
    }
    new.verify_required |= old.verify_required && new.algorithm.starts_with("sk-");
    if !caller.has_role("admin") {
        can_log_in(house, &new).await?;
    }
    Ok(new)
}

/// A key that could never prove itself would be waited for in vain: somebody without an authenticator logs in with a key
/// that verifies its user, or not at all.
async fn can_log_in(house: &House, new: &UserKey) -> Result<(), Fault> {
    let user = users::found(house, &new.user).await?;
    let whole = new.verify_required && house.config().mfa.verify_required_counts;
    let has_code = house.vault.get::<SecondFactor>(user.name.as_str()).await?.is_some();
    if whole || has_code || user.kind == UserKind::Service {
        return Ok(());
    }
    Err(Fault::denied(format!(
        "you have no authenticator, so this key could not log in: take one on a security key that verifies you \
         (ssh-keygen -t ed25519-sk -O verify-required), or ask an administrator for a code: keyward users invite {}",
        user.name
    )))
}

/// A successor, and whom it displaces.
struct Staged<'a> {
    old: &'a UserKey,
    new: &'a UserKey,
    withdrawn: Option<&'a UserKey>,
}

impl Staged<'_> {
    fn events(&self, caller: &Caller) -> Vec<Event> {
        let rotated = Event::SshKeyRotated {
            user: self.old.user.to_string(),
            key: self.old.fingerprint.clone(),
            successor: self.new.fingerprint.clone(),
            by: caller.name(),
        };
        let withdrawn = self.withdrawn.map(|key| trail::key_revoked(caller, key, WITHDRAWN));
        withdrawn.into_iter().chain([trail::key_added(caller, self.new), rotated]).collect()
    }

    /// All of it or nothing, and nothing if the withdrawn key was used meanwhile.
    fn batch(&self, now: Timestamp) -> Result<Batch, Fault> {
        let mut batch = Batch::default().insert(self.new)?;
        if let Some(withdrawn) = self.withdrawn {
            let ended = Some(Ended { at: now, reason: WITHDRAWN.to_owned() });
            let ended = UserKey { status: KeyStatus::Revoked, revoked: ended, ..withdrawn.clone() };
            batch = batch.if_unchanged(withdrawn)?.put(&ended)?;
        }
        Ok(batch)
    }
}

const WITHDRAWN: &str = "never used; its owner staged another in its place";

/// Records of keys are kept for good, so that none comes back. Who stages and withdraws one after the other fills the store.
async fn not_too_many(vault: &Vault, user: &UserName) -> Result<(), Fault> {
    let keys: Vec<UserKey> = vault.list().await?;
    if keys.iter().filter(|key| key.user == *user).count() < MOST_KEYS {
        return Ok(());
    }
    Err(Fault::denied(format!(
        "{MOST_KEYS} keys of yours are on record; ask an administrator: keyward ssh-keys rotate --user {user} --old KEY --file FILE"
    )))
}

/// Keys of one user, of any status, up to which the user adds more.
const MOST_KEYS: usize = 200;

/// What happens when, and what to type next.
fn told(house: &House, old: &UserKey, new: &UserKey, overlap: i64) -> String {
    let now = Timestamp::now();
    let bastion = house.bastion();
    let (id, next, user) = (&old.id, &new.id, &new.user);
    let meanwhile = match old.status_at(now) {
        KeyStatus::Expired => format!("Until then {id}, which has expired, opens nothing but this command."),
        _ => format!("Until then nothing changes: {id} works until {}.", short_time(old.expires_at)),
    };
    let afterwards = match old.status_at(now) {
        KeyStatus::Expired => format!("{next} is your key from that moment on; {id} retires."),
        _ => format!(
            "{next} is your key from that moment on; {id} works {} longer, then retires.",
            span(overlap)
        ),
    };
    let verified = match new.verify_required {
        true => format!(" It must verify you by PIN or finger, as {id} does."),
        false => String::new(),
    };
    format!(
        "{next} ({}) waits for its first login.{verified}\n\n\
         1. Log in with it once, with your code:  ssh -i ~/.ssh/id_new -o IdentitiesOnly=yes {user}@{bastion}\n   {meanwhile}\n\
         2. {afterwards}\n3. Put it in place of the old file, or in ~/.ssh/config:  IdentityFile ~/.ssh/id_new\n\n\
         The new key expires {}.",
        new.fingerprint,
        short_time(new.expires_at),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{public_key, user_key, vault};

    #[tokio::test]
    async fn a_user_adds_keys_up_to_a_number_and_the_neighbour_goes_on() {
        let vault = vault().await;
        let asks = async |name: &str| not_too_many(&vault, &name.parse().unwrap()).await;
        for n in 0..u8::try_from(MOST_KEYS).unwrap() - 1 {
            assert!(asks("alice").await.is_ok(), "{n} more");
            vault.insert(&user_key("alice", &public_key(n + 3))).await.unwrap();
        }
        assert_eq!(asks("alice").await.unwrap_err().code, 4);
        assert!(asks("bob").await.is_ok());
    }
}
