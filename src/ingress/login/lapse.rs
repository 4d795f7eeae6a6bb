//! A login that waits for its next factor while what was proven before is taken away: it ends then, not at its answer.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use keystore::{Change, KeyStatus, Record, User, UserKey, UserName};
use russh::Disconnect;
use russh::server::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Door;
use crate::audit::Event;
use crate::auth::LoginFault;
use crate::session::House;

/// What was proven, while more is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ingress) struct Proven {
    user: UserName,
    /// Fingerprint of the user's own key that signed, if one did and the store knows it.
    key: Option<String>,
}

impl Proven {
    pub(super) fn of(door: &Door) -> Option<Self> {
        let key = match door {
            Door::Hall(verified) if !verified.is_certified() => Some(verified.key().to_owned()),
            Door::Enrolled(caller) if caller.certificate_id().is_none() => Some(caller.key().to_owned()),
            _ => None,
        };
        Some(Self { user: door.user()?.clone(), key })
    }

    fn concerns(&self, change: &Change) -> bool {
        match change.kind.as_str() {
            User::KIND => change.id == self.user.as_str(),
            UserKey::KIND => self.key.as_ref().is_some_and(|key| change.id == *key),
            _ => false,
        }
    }

    /// Why it counts for nothing any more, if so. What cannot be read is for the next answer to find out.
    async fn void(&self, house: &House) -> Option<LoginFault> {
        let now = Timestamp::now();
        let user = house.vault.get::<User>(self.user.as_str()).await.ok()?;
        let Some(user) = user else { return Some(LoginFault::UnknownUser) };
        if let Some(why) = user.barred(now) {
            return Some(LoginFault::Barred(why));
        }
        let key = house.vault.get::<UserKey>(self.key.as_ref()?).await.ok()?;
        let Some(key) = key.filter(|key| key.user == self.user) else { return Some(LoginFault::UnknownKey) };
        let status = key.status_at(now);
        let gone = matches!(status, KeyStatus::Revoked | KeyStatus::Retired);
        gone.then_some(LoginFault::KeyUnusable(status))
    }

    fn event(self, source: IpAddr, fault: &LoginFault) -> Event {
        let (user, source_ip, reason) =
            (self.user.to_string(), source.to_string(), fault.reason().to_owned());
        Event::SshLoginFailed { user, source_ip, key: self.key, reason }
    }
}

/// Resolves once what was proven last, and is waited upon, counts for nothing any more, with what the trail shall hear of it.
/// Cancel-safe.
pub(in crate::ingress) async fn lapsed(
    house: &House,
    source: IpAddr,
    mut proves: watch::Receiver<Option<Proven>>,
) -> Event {
    loop {
        let proven = proves.wait_for(Option::is_some).await.ok().and_then(|proven| proven.clone());
        // The gate is gone.
        let Some(proven) = proven else { return std::future::pending().await };
        tokio::select! {
            fault = taken_away(house, &proven) => return proven.event(source, &fault),
            changed = proves.changed() => if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

async fn taken_away(house: &House, proven: &Proven) -> LoginFault {
    // First heard, then asked: between the two nothing is missed.
    let mut changes = house.vault.changes();
    loop {
        if let Some(fault) = proven.void(house).await {
            return fault;
        }
        loop {
            match changes.recv().await {
                Ok(change) if !proven.concerns(&change) => {}
                Ok(_) | Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }
}

/// Ends a connection that is not logged in, in the words of one that was refused too often. `over` resolves when it has
/// ended.
pub(in crate::ingress) async fn part(handle: Handle, sever: CancellationToken, over: impl Future) {
    let leave = async {
        let words = "Too many authentication attempts".to_owned();
        if handle.disconnect(Disconnect::NoMoreAuthMethodsAvailable, words, String::new()).await.is_err() {
            tracing::debug!("connection.gone_before_goodbye");
        }
        over.await;
    };
    if tokio::time::timeout(LEAVE, leave).await.is_err() {
        tracing::debug!("connection.severed");
        sever.cancel();
    }
}

/// How long a peer may take to leave.
const LEAVE: Duration = Duration::from_secs(1);
