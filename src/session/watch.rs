//! The watch: whatever changes in the vault, every live session and connection is decided again.
//!
//! A right that was lost, or whose time ran out, cuts what lives by it within a second. What cannot be decided
//! (the store fails) counts as lost.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::lifecycle::in_grace;
use keystore::{CaRotation, Instance, Record, Rule, User, UserKey, UserName};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{House, LiveInfo};
use crate::policy::{Facts, Rulebook};

/// Watches until `stop`. Run it as one task of the daemon.
pub async fn watch(house: Arc<House>, stop: CancellationToken) {
    let mut changes = house.vault.changes();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let relevant = tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => true,
            change = changes.recv() => match change {
                Ok(change) => {
                    if change.kind == Rule::KIND {
                        recompile(&house).await;
                    }
                    if change.kind == CaRotation::KIND
                        && let Err(error) = house.signers.reload(&house.vault).await
                    {
                        tracing::error!(%error, "ca.not_reloaded");
                    }
                    [Rule::KIND, User::KIND, UserKey::KIND, Instance::KIND].contains(&change.kind.as_str())
                }
                Err(RecvError::Lagged(_)) => {
                    recompile(&house).await;
                    true
                }
                Err(RecvError::Closed) => return,
            },
        };
        if relevant {
            decide_again(&house, Timestamp::now()).await;
        }
    }
}

/// Compiles the stored rules into the house's rulebook. If they cannot be read, nothing is allowed.
pub async fn recompile(house: &House) {
    let compiled = match house.vault.list::<Rule>().await {
        Ok(rules) => Rulebook::compile(&rules).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match compiled.or_else(|why| {
        tracing::error!(%why, "rules.unreadable: nothing is allowed until they are repaired");
        Rulebook::compile(&[])
    }) {
        Ok(rulebook) => house.rulebook.store(Arc::new(rulebook)),
        Err(error) => tracing::error!(%error, "rules.empty_set_refused"),
    }
}

async fn decide_again(house: &House, now: Timestamp) {
    for live in house.registry.live().into_iter().filter(|live| !live.is_cut()) {
        if let Some(sentence) = lost_right(house, &live.info, now).await {
            tracing::info!(user = %live.info.user, "session.right_lost");
            live.cut(&sentence);
        }
    }
}

/// The sentence that tells why `info` may not go on, or `None` if it may.
pub(super) async fn lost_right(house: &House, info: &LiveInfo, now: Timestamp) -> Option<String> {
    let by = LoggedIn { user: &info.user, key: &info.key, only_exchanges: info.only_exchanges };
    let user = match still_in(house, by, now).await {
        Ok(user) => user,
        Err(sentence) => return Some(sentence),
    };
    let (name, login, can) = info.to.as_ref()?;
    let instance = match house.vault.get::<Instance>(name.as_str()).await {
        Ok(Some(instance)) => instance,
        Ok(None) => return Some(format!("{name} is no longer reached through this bastion.")),
        Err(_) => return Some(UNDECIDED.to_owned()),
    };
    let facts = Facts { user: &info.user, roles: &user.roles, source: info.source.ip() };
    let decision = house.rulebook.load().decide(&facts, &instance, login, now);
    (!can.is_subset(&decision.can)).then(|| format!("Your access to {login}@{name} has ended."))
}

/// Who logged in some time ago.
#[derive(Debug, Clone, Copy)]
pub struct LoggedIn<'a> {
    /// The user.
    pub user: &'a UserName,
    /// Fingerprint of the key that signed.
    pub key: &'a str,
    /// The key had expired at the login: it may only be exchanged.
    pub only_exchanges: bool,
}

/// The user as stored now, if a login of `by` still counts.
///
/// # Errors
/// The sentence that tells why it does not.
pub async fn still_in(house: &House, by: LoggedIn<'_>, now: Timestamp) -> Result<User, String> {
    if let Some(reason) = house.guard.lockdown().reason() {
        return Err(lockdown_sentence(&reason));
    }
    let user = match house.vault.get::<User>(by.user.as_str()).await {
        Ok(Some(user)) => user,
        Ok(None) => return Err("Your account was removed.".to_owned()),
        Err(_) => return Err(UNDECIDED.to_owned()),
    };
    if user.suspended.is_some() {
        return Err("Your account was suspended.".to_owned());
    }
    if user.expires_at.is_some_and(|end| end <= now) {
        return Err("Your account has expired.".to_owned());
    }
    match house.vault.get::<UserKey>(by.key).await {
        Ok(Some(key)) if key.user == *by.user && key.usable(now) => Ok(user),
        Ok(Some(key)) if by.only_exchanges && in_grace(&key, house.config().keys.of(&user).grace, now) => {
            Ok(user)
        }
        Ok(Some(key)) => Err(format!("Your key {} is {}.", key.id, key.status_at(now))),
        Ok(None) => match house.certificates.standing(by.user, by.key, now) {
            Some((_, true)) => Ok(user),
            Some((_, false)) => Err("Your certificate has expired or was revoked.".to_owned()),
            None => Err("Your key was removed.".to_owned()),
        },
        Err(_) => Err(UNDECIDED.to_owned()),
    }
}

/// What those hear who are cut by a lockdown.
pub fn lockdown_sentence(reason: &str) -> String {
    format!("Nobody may use this bastion for now: {reason}.")
}

const UNDECIDED: &str = "Your access can no longer be checked.";
/// How late an expiry (of a user, key or rule) may be noticed. Changes are noticed at once.
const TICK: Duration = Duration::from_secs(1);
