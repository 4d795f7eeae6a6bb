//! Logins that are not asked for a code: services, security keys that verify their user where the configuration counts
//! that, and a second factor that is remembered for a while.
//!
//! A memory belongs to one key, one source address and one second factor, counts only while the configuration says so,
//! and only for a key in use. Suspension, revocation and reset forget it at once.

use jiff::Timestamp;
use keystore::{Remembered, SecondFactor, User, UserKind, UserName, Vault};

use super::{Authenticated, KeyVerified, LoginFault, Pending, Reach};

/// What spares a human a code, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spared {
    /// A code given with the same key from the same address less than so many seconds ago.
    pub remember: Option<i64>,
    /// A key that verifies its user each time it signs: something held, and something known (or a finger).
    pub verified_keys: bool,
}

impl From<Option<i64>> for Spared {
    fn from(remember: Option<i64>) -> Self {
        Self { remember, verified_keys: false }
    }
}

impl KeyVerified {
    /// Spends this state for a login without a code: the user is a service (whose networks the key's proof has
    /// checked), or is spared it.
    ///
    /// # Errors
    /// This state again: a code is due.
    pub async fn without_code(
        self,
        vault: &Vault,
        spared: impl Into<Spared>,
        now: Timestamp,
    ) -> Result<Authenticated, Self> {
        if self.voided {
            return Err(self);
        }
        // Whatever fails here, a code settles it.
        match self.unasked(vault, spared.into(), now).await {
            Ok(Some((user, reach))) => Ok(self.spent(user, reach, now)),
            Ok(None) | Err(_) => Err(self),
        }
    }

    async fn unasked(
        &self,
        vault: &Vault,
        spared: Spared,
        now: Timestamp,
    ) -> Result<Option<(User, Reach)>, LoginFault> {
        let user = vault.get::<User>(self.user.as_str()).await?.ok_or(LoginFault::UnknownUser)?;
        if let Some(why) = user.barred(now) {
            return Err(LoginFault::Barred(why));
        }
        let service = user.kind == UserKind::Service;
        let whole = service || (spared.verified_keys && self.verifies);
        if !whole && !self.remembered(vault, spared.remember, now).await? {
            return Ok(None);
        }
        let pending = if whole { Pending::IsProven } else { Pending::Waits };
        let reach = self.used(vault, (&user, pending), now).await?;
        Ok(Some((user, reach)))
    }

    async fn remembered(
        &self,
        vault: &Vault,
        remember: Option<i64>,
        now: Timestamp,
    ) -> Result<bool, LoginFault> {
        let Some(remember) = remember else { return Ok(false) };
        let id = Remembered::id_of(&self.fingerprint, self.source.ip());
        let (memory, factor) =
            (vault.get::<Remembered>(&id).await?, vault.get::<SecondFactor>(self.user.as_str()).await?);
        Ok(match (memory, factor) {
            (Some(memory), Some(factor)) => {
                memory.user == self.user
                    && memory.enrolled_at == factor.enrolled_at
                    && memory.at <= now
                    && now.as_second() < memory.at.as_second().saturating_add(remember)
            }
            _ => false,
        })
    }
}

/// Remembers that `login` was made with a code; what is older than `remember` seconds is forgotten.
///
/// # Errors
/// The store failed: a code will be asked for.
pub async fn remember(vault: &Vault, login: &Authenticated, remember: i64) -> Result<(), keystore::Error> {
    let Some(factor) = vault.get::<SecondFactor>(login.user().as_str()).await? else { return Ok(()) };
    let oldest = login.at().as_second().saturating_sub(remember);
    let memory = Remembered {
        user: login.user().clone(),
        key: login.key().to_owned(),
        source: login.source().ip().to_canonical(),
        at: login.at(),
        enrolled_at: factor.enrolled_at,
    };
    let same = |m: &Remembered| m.key == memory.key && m.source == memory.source;
    forget(vault, |m| m.at.as_second() <= oldest || same(m)).await?;
    match vault.insert(&memory).await {
        Err(keystore::Error::Exists { .. }) => {}
        other => other?,
    }
    // Who suspends forgets what there is, and what came after that is forgotten here: it must not wait for the resumption.
    let user = vault.get::<User>(memory.user.as_str()).await?;
    if user.is_none_or(|user| user.suspended.is_some()) {
        forget_user(vault, &memory.user).await?;
    }
    Ok(())
}

/// Forgets every second factor that `user` gave.
///
/// # Errors
/// The store failed.
pub async fn forget_user(vault: &Vault, user: &UserName) -> Result<(), keystore::Error> {
    forget(vault, |m| m.user == *user).await
}

/// Forgets every second factor that was given with `key`, a fingerprint.
///
/// # Errors
/// The store failed.
pub async fn forget_key(vault: &Vault, key: &str) -> Result<(), keystore::Error> {
    forget(vault, |m| m.key == key).await
}

/// Forgets every second factor of everyone, as a lockdown must.
///
/// # Errors
/// The store failed.
pub async fn forget_all(vault: &Vault) -> Result<(), keystore::Error> {
    forget(vault, |_| true).await
}

async fn forget(vault: &Vault, which: impl Fn(&Remembered) -> bool) -> Result<(), keystore::Error> {
    use keystore::Record;
    for memory in vault.list::<Remembered>().await?.into_iter().filter(|m| which(m)) {
        match vault.remove::<Remembered>(&memory.record_id()).await {
            Ok(_) | Err(keystore::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use keystore::UserKey;

    use super::*;
    use crate::auth::testing::*;
    use crate::auth::{Unauthenticated, mfa, offered_key};
    use crate::guard::{Guard, Limits};

    async fn verified(vault: &Vault, user: &str, key: u8, now: Timestamp) -> KeyVerified {
        unauthenticated().key_verified(vault, user, &public_key(key), now).await.ok().unwrap()
    }

    async fn logs_in_with_code(vault: &Vault) -> Authenticated {
        let code = code(vault, "alice", at(0)).await;
        let key = verified(vault, "alice", 1, at(0)).await;
        key.with_second_factor(vault, "alice", &code, at(0)).await.ok().unwrap()
    }

    async fn unasked(vault: &Vault, memory: Option<i64>, second: i64) -> bool {
        let key = verified(vault, "alice", 1, at(second)).await;
        key.without_code(vault, memory, at(second)).await.is_ok()
    }

    #[tokio::test]
    async fn a_second_factor_is_remembered_for_its_time_and_only_if_that_is_on() {
        let vault = vault().await;
        assert!(!unasked(&vault, Some(3600), 0).await, "nothing was given yet");
        let login = logs_in_with_code(&vault).await;
        remember(&vault, &login, 3600).await.unwrap();
        assert!(unasked(&vault, Some(3600), 3599).await);
        assert!(!unasked(&vault, Some(3600), 3600).await);
        assert!(!unasked(&vault, Some(60), 60).await, "a shorter time counts at once");
        assert!(!unasked(&vault, None, 1).await, "off");
        assert!(!unasked(&vault, Some(3600), -10).await, "a clock that went back remembers nothing");
    }

    #[tokio::test]
    async fn it_belongs_to_one_key_and_one_address() {
        let vault = vault().await;
        vault.insert(&user_key("alice", &public_key(3))).await.unwrap();
        let login = logs_in_with_code(&vault).await;
        remember(&vault, &login, 3600).await.unwrap();
        let other_key = verified(&vault, "alice", 3, at(1)).await;
        assert!(other_key.without_code(&vault, Some(3600), at(1)).await.is_err());
        let elsewhere = Guard::new(Limits::default()).admit("192.0.2.8:1".parse().unwrap(), at(0)).unwrap();
        let elsewhere = Unauthenticated::new(&elsewhere, &Default::default());
        let key = elsewhere.key_verified(&vault, "alice", &public_key(1), at(1)).await.ok().unwrap();
        assert!(key.without_code(&vault, Some(3600), at(1)).await.is_err());
    }

    #[tokio::test]
    async fn what_is_remembered_while_its_user_is_suspended_does_not_wait_for_the_resumption() {
        let vault = vault().await;
        let login = logs_in_with_code(&vault).await;
        let suspended = async |ended: Option<keystore::Ended>| {
            let set = |user: &mut User| {
                user.suspended.clone_from(&ended);
                Ok::<_, keystore::Error>(())
            };
            vault.update("alice", set).await.unwrap();
        };
        suspended(Some(keystore::Ended { at: at(1), reason: "stolen".to_owned() })).await;
        forget_user(&vault, &"alice".parse().unwrap()).await.unwrap();
        // The login was on its way all the time.
        remember(&vault, &login, 3600).await.unwrap();
        suspended(None).await;
        assert!(!unasked(&vault, Some(3600), 2).await);
        remember(&vault, &login, 3600).await.unwrap();
        assert!(unasked(&vault, Some(3600), 2).await, "as ever");
    }

    #[tokio::test]
    async fn reset_suspension_and_revocation_forget_it() {
        let vault = vault().await;
        let alice = "alice".parse().unwrap();
        let login = logs_in_with_code(&vault).await;
        remember(&vault, &login, 3600).await.unwrap();
        mfa::reset(&vault, &alice).await.unwrap();
        mfa::enroll(&vault, &alice, at(1)).await.unwrap();
        assert!(!unasked(&vault, Some(3600), 2).await, "another second factor");
        for forgets in ["user", "key", "all"] {
            let vault = super::super::testing::vault().await;
            let login = logs_in_with_code(&vault).await;
            remember(&vault, &login, 3600).await.unwrap();
            assert!(unasked(&vault, Some(3600), 1).await);
            match forgets {
                "user" => forget_user(&vault, &alice).await.unwrap(),
                "key" => forget_key(&vault, login.key()).await.unwrap(),
                _ => forget_all(&vault).await.unwrap(),
            }
            assert!(!unasked(&vault, Some(3600), 1).await, "{forgets}");
        }
    }

    #[tokio::test]
    async fn a_service_logs_in_with_its_key_from_its_networks_and_a_human_does_not() {
        let vault = vault().await;
        let mut backup = user("backup", &[]);
        backup.kind = UserKind::Service;
        backup.from = vec!["192.0.2.0/24".parse().unwrap()];
        vault.insert(&backup).await.unwrap();
        vault.insert(&user_key("backup", &public_key(3))).await.unwrap();
        let login = verified(&vault, "backup", 3, at(0)).await.without_code(&vault, None, at(0)).await;
        assert!(login.ok().unwrap().is_service());
        assert!(!unasked(&vault, None, 0).await);
        for from in [vec!["198.51.100.0/24".parse().unwrap()], vec![]] {
            let moved = |u: &mut User| {
                u.from.clone_from(&from);
                Ok::<_, keystore::Error>(())
            };
            vault.update("backup", moved).await.unwrap();
            let refused = unauthenticated().key_verified(&vault, "backup", &public_key(3), at(0)).await;
            assert_eq!(refused.err().unwrap().1, LoginFault::WrongNetwork);
            assert!(!offered(&vault, "backup", 3).await);
        }
    }

    #[tokio::test]
    async fn a_key_that_must_verify_its_user_does_and_counts_as_a_code_only_where_configured() {
        use crate::auth::SignedKey;
        let vault = vault().await;
        let must = |k: &mut UserKey| {
            k.verify_required = true;
            Ok::<_, keystore::Error>(())
        };
        vault.update(&UserKey::fingerprint_of(&public_key(1)), must).await.unwrap();
        let key = public_key(1);
        let signs = async |user_verified: bool| {
            let signed = SignedKey { key: &key, user_verified };
            unauthenticated().key_verified(&vault, "alice", signed, at(0)).await
        };
        assert_eq!(signs(false).await.err().unwrap().1, LoginFault::UserNotVerified);
        let spared = |verified_keys: bool| Spared { remember: None, verified_keys };
        let key = signs(true).await.ok().unwrap();
        let key = key.without_code(&vault, spared(false), at(0)).await.err().unwrap();
        let login = key.without_code(&vault, spared(true), at(0)).await.ok().unwrap();
        assert!(login.verifies());
        let suspend = |u: &mut User| {
            u.suspended = Some(keystore::Ended { at: at(0), reason: "left".to_owned() });
            Ok::<_, keystore::Error>(())
        };
        let between = signs(true).await.ok().unwrap();
        vault.update("alice", suspend).await.unwrap();
        assert!(between.without_code(&vault, spared(true), at(0)).await.is_err(), "suspended between");
        let other = public_key(2);
        let other = SignedKey { key: &other, user_verified: true };
        let bob = unauthenticated().key_verified(&vault, "bob", other, at(0)).await.ok().unwrap();
        assert!(
            bob.without_code(&vault, spared(true), at(0)).await.is_err(),
            "not enrolled as one that must"
        );
    }

    async fn offered(vault: &Vault, user: &str, key: u8) -> bool {
        let (key, rules) = (public_key(key), keystore::KeyRules::default());
        let knock =
            crate::auth::Knock { user, key: &key, source: "192.0.2.7".parse().unwrap(), rules: &rules };
        offered_key(vault, knock, at(0)).await.is_ok()
    }
}
