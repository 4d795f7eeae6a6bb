//! The login of the outer connection: one state that each step spends.
//!
//! Refusals have the same words and take the same time, whoever asks. The slot of the unauthenticated is given back at
//! login.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::UserKey;
use keystore::ssh::PublicKey;
use russh::server::Auth;
use russh::{MethodKind, MethodSet};
use tokio::time::Instant;

use super::stream::Phase;
use crate::audit::Event;
use crate::auth::{Authenticated, KeyVerified, Unauthenticated, offered_key_known};
use crate::guard::Admitted;
use crate::rotation::notice;
use crate::session::House;

/// How far the login of one connection has come.
pub(super) struct Gate {
    house: Arc<House>,
    admitted: Option<Admitted>,
    source: SocketAddr,
    phase: Phase,
    door: Door,
}

enum Door {
    Outside(Unauthenticated),
    /// A key signed for this user name.
    Hall(KeyVerified),
    Inside(Arc<Authenticated>),
    /// A step was interrupted: no login any more.
    Shut,
}

impl Gate {
    pub(super) fn new(house: Arc<House>, admitted: Admitted, phase: Phase) -> Self {
        let door = Door::Outside(Unauthenticated::new(&admitted, house.config.keys.grace));
        let source = admitted.addr();
        Self { house, admitted: Some(admitted), source, phase, door }
    }

    /// Who is logged in.
    pub(super) fn caller(&self) -> Option<Arc<Authenticated>> {
        match &self.door {
            Door::Inside(caller) => Some(Arc::clone(caller)),
            _ => None,
        }
    }

    /// A key without a signature: says whether one is worth while.
    pub(super) async fn offered(&self, user: &str, key: &PublicKey) -> Auth {
        let since = Instant::now();
        let (vault, grace) = (&self.house.vault, self.house.config.keys.grace);
        if offered_key_known(vault, (user, key), grace, Timestamp::now()).await {
            return Auth::Accept;
        }
        // Not counted: an agent offers every key it holds.
        tokio::time::sleep_until(since + OFFER).await;
        Auth::reject()
    }

    /// A key whose signature of this request is right.
    pub(super) async fn signed(&mut self, user: &str, key: &PublicKey) -> Auth {
        let since = Instant::now();
        let outside = match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Outside(outside) => outside,
            // A new key starts the login anew (RFC 4252 §5).
            Door::Hall(verified) => verified.void(),
            other => {
                self.door = other;
                return Auth::reject();
            }
        };
        match outside.key_verified(&self.house.vault, user, key, Timestamp::now()).await {
            Ok(verified) => {
                self.door = Door::Hall(verified);
                self.phase.key_proven();
                proceed(MethodKind::KeyboardInteractive)
            }
            Err((outside, fault)) => {
                self.door = Door::Outside(outside);
                let event = Event::SshLoginFailed {
                    user: user.chars().take(64).collect(),
                    source_ip: self.source.ip().to_string(),
                    key: Some(UserKey::fingerprint_of(key)),
                    reason: fault.reason().to_owned(),
                };
                self.audit(event).await;
                self.refuse(since, MethodKind::PublicKey).await
            }
        }
    }

    /// The peer wants to be asked.
    pub(super) async fn question(&mut self, user: &str) -> Auth {
        match &self.door {
            Door::Hall(verified) if verified.user().as_str() == user => {
                ask(self.notice(verified.key()).await, CODE_PROMPT, false)
            }
            _ => self.stranger().await,
        }
    }

    /// The peer answers.
    pub(super) async fn answer(&mut self, user: &str, answer: &str) -> Auth {
        match &self.door {
            Door::Hall(verified) if verified.user().as_str() == user => self.code_given(user, answer).await,
            _ => self.stranger().await,
        }
    }

    async fn stranger(&mut self) -> Auth {
        // RFC 4252 §5: a changed user name voids every factor.
        self.door = match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Hall(verified) => Door::Outside(verified.void()),
            other => other,
        };
        self.refuse(Instant::now(), MethodKind::PublicKey).await
    }

    async fn code_given(&mut self, user: &str, code: &str) -> Auth {
        let since = Instant::now();
        let verified = match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Hall(verified) => verified,
            other => {
                self.door = other;
                return self.refuse(since, MethodKind::PublicKey).await;
            }
        };
        match verified.with_second_factor(&self.house.vault, user, code, Timestamp::now()).await {
            Ok(caller) => self.enter(caller, since).await,
            Err((verified, fault)) => {
                let (user, source_ip) = (verified.user().to_string(), self.source.ip().to_string());
                self.door = Door::Hall(verified);
                self.audit(Event::MfaFailed { user, source_ip, reason: fault.reason().to_owned() }).await;
                self.refuse(since, MethodKind::KeyboardInteractive).await
            }
        }
    }

    /// All is proven: once the trail says so, the peer is inside.
    async fn enter(&mut self, caller: Authenticated, since: Instant) -> Auth {
        let event = Event::SshLoginSucceeded {
            user: caller.user().to_string(),
            source_ip: self.source.ip().to_string(),
            key: caller.key().to_owned(),
        };
        if !self.audit(event).await {
            return self.refuse(since, MethodKind::PublicKey).await;
        }
        // The slot of the unauthenticated is given back.
        drop(self.admitted.take());
        self.house.guard.succeeded(self.source.ip());
        self.phase.logged_in();
        self.door = Door::Inside(Arc::new(caller));
        Auth::Accept
    }

    /// What the owner of the key, which is proven, should know of its end.
    async fn notice(&self, key: &str) -> Option<String> {
        let key = self.house.vault.get::<UserKey>(key).await.ok().flatten()?;
        let config = &self.house.config;
        notice(&key, &config.keys, Timestamp::now(), config.names.first().map_or("bastion", String::as_str))
    }

    /// A durable audit event, or no login.
    async fn audit(&self, event: Event) -> bool {
        match self.house.trail.append(event, Timestamp::now()).await {
            Ok(_receipt) => true,
            Err(error) => {
                tracing::error!(%error, "audit.append_failed");
                false
            }
        }
    }

    /// Counts the failure against the source and refuses, `since` + [`REFUSAL`].
    async fn refuse(&mut self, since: Instant, next: MethodKind) -> Auth {
        let source = self.source.ip();
        if let Some(until) = self.house.guard.failed(source, Timestamp::now()) {
            let reason = "too many failed logins".to_owned();
            self.audit(Event::SourceBanned {
                source_ip: source.to_string(),
                until: until.to_string(),
                reason,
            })
            .await;
        }
        tokio::time::sleep_until(since + REFUSAL).await;
        Auth::Reject {
            proceed_with_methods: Some(MethodSet::from([next].as_slice())),
            partial_success: false,
        }
    }
}

/// One step is done, `next` is due.
fn proceed(next: MethodKind) -> Auth {
    Auth::Reject { proceed_with_methods: Some(MethodSet::from([next].as_slice())), partial_success: true }
}

fn ask(instructions: Option<String>, prompt: &'static str, echo: bool) -> Auth {
    Auth::Partial {
        name: "".into(),
        instructions: instructions.unwrap_or_default().into(),
        prompts: vec![(prompt.into(), echo)].into(),
    }
}

/// Clients and scripts match on it.
const CODE_PROMPT: &str = "Verification code: ";
/// Every refusal of a proof takes at least this long, counted from the request.
const REFUSAL: Duration = Duration::from_millis(400);
/// Every refusal of an offered key takes at least this long.
const OFFER: Duration = Duration::from_millis(20);
