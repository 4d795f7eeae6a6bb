//! The login of the outer connection: one state that each step spends.
//!
//! Refusals have the same words and take the same time, whoever asks. The slot of the unauthenticated is given back at
//! login.

mod certificate;
mod enrolment;
mod lapse;
mod refused;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::ssh::PublicKey;
use keystore::{User, UserKey, UserName};
use russh::server::Auth;
use russh::{MethodKind, MethodSet};
use tokio::sync::watch;
use tokio::time::Instant;

use super::outer::append;
use super::prompts::{CODE_PROMPT, INVITATION, ask, enrolment_prompt};
use super::stream::Phase;
use crate::audit::Event;
use crate::auth::{
    Authenticated, Enrolling, Invited, KeyVerified, Knock, LoginFault, SignedKey, Spared, Unauthenticated,
    forget_key, looks_like_invitation, mfa, offered_key, remember,
};
use crate::config::Config;
use crate::guard::Admitted;
use crate::rotation::notice;
use crate::session::House;
pub(super) use lapse::{Proven, lapsed, part};
use refused::RefusedOffer;
pub(super) use refused::words_for;

/// How far the login of one connection has come.
pub(super) struct Gate {
    house: Arc<House>,
    /// As it was when the connection came.
    config: Arc<Config>,
    admitted: Option<Admitted>,
    source: SocketAddr,
    phase: Phase,
    door: Door,
    /// Somebody holds an enrolment code: strangers are asked for one.
    inviting: bool,
    stranger: Stranger,
    refused: Option<RefusedOffer>,
    /// What was proven while more is due: whoever serves the connection ends it once that counts no more.
    proven: watch::Sender<Option<Proven>>,
}

/// The first key of a connection that is not the user's. A client that has offered all its keys in vain never signs
/// with one again, so while somebody is invited it is asked to sign at once, whoever it says it is: if an enrolment
/// code follows, the key has proven itself already.
enum Stranger {
    None,
    Asked,
    Signed { user: String, key: PublicKey, user_verified: bool },
}

enum Door {
    Outside(Unauthenticated),
    /// A key signed for this user name.
    Hall(KeyVerified),
    /// An enrolment code was right; a key is due.
    Invited(Box<Invited>),
    /// Enrolment code and key were right; a code of the authenticator is due.
    Enrolling(Box<Enrolling>),
    /// Enrolled, and shown the recovery codes.
    Enrolled(Box<Authenticated>),
    Inside(Arc<Authenticated>),
    /// A step was interrupted: no login any more.
    Shut,
}

impl Door {
    /// For whom something was proven.
    fn user(&self) -> Option<&UserName> {
        match self {
            Self::Outside(_) | Self::Shut => None,
            Self::Hall(verified) => Some(verified.user()),
            Self::Invited(invited) => Some(invited.user()),
            Self::Enrolling(enrolling) => Some(enrolling.user()),
            Self::Enrolled(caller) => Some(caller.user()),
            Self::Inside(caller) => Some(caller.user()),
        }
    }
}

impl Gate {
    pub(super) async fn new(house: Arc<House>, admitted: Admitted, phase: Phase) -> Self {
        let config = house.config();
        let inviting = house.invitations.any(&house.vault, Timestamp::now()).await;
        let door = Door::Outside(Unauthenticated::new(&admitted, &config.keys));
        let source = admitted.addr();
        let (admitted, stranger) = (Some(admitted), Stranger::None);
        let (refused, proven) = (None, watch::Sender::new(None));
        Self { house, config, admitted, source, phase, door, inviting, stranger, refused, proven }
    }

    /// Hears what is proven while more is due.
    pub(super) fn proves(&self) -> watch::Receiver<Option<Proven>> {
        self.proven.subscribe()
    }

    /// What a stranger may begin with: the same for everyone.
    pub(super) fn first_methods(&self) -> MethodSet {
        let methods: &[MethodKind] = match self.inviting {
            true => &[MethodKind::PublicKey, MethodKind::KeyboardInteractive],
            false => &[MethodKind::PublicKey],
        };
        MethodSet::from(methods)
    }

    /// Who is logged in.
    pub(super) fn caller(&self) -> Option<Arc<Authenticated>> {
        match &self.door {
            Door::Inside(caller) => Some(Arc::clone(caller)),
            _ => None,
        }
    }

    /// A key without a signature: says whether one is worth while.
    pub(super) async fn offered(&mut self, user: &str, key: &PublicKey) -> Auth {
        let (since, now) = (Instant::now(), Timestamp::now());
        self.void_if_changed(user);
        let (vault, rules) = (&self.house.vault, &*self.config.keys);
        let worth_while = match &self.door {
            Door::Invited(invited) if invited.welcomes(vault, user, key, now).await => Ok(()),
            Door::Invited(_) => Err(LoginFault::UnknownKey),
            _ => offered_key(vault, Knock { user, key, source: self.source.ip(), rules }, now).await,
        };
        let Err(fault) = worth_while else { return Auth::Accept };
        let first = matches!((&self.door, &self.stranger), (Door::Outside(_), Stranger::None));
        if self.inviting && first && rules.accepted.admits(key).is_ok() {
            self.stranger = Stranger::Asked;
            return Auth::Accept;
        }
        self.note_refused((user, key), &fault);
        tokio::time::sleep_until(since + OFFER).await;
        Auth::reject()
    }

    /// A key whose signature of this request is right.
    pub(super) async fn signed(&mut self, user: &str, signed: SignedKey<'_>) -> Auth {
        let (since, SignedKey { key, user_verified }) = (Instant::now(), signed);
        self.void_if_changed(user);
        if self.locked_down() {
            return self.keep_out(user, since).await;
        }
        let outside = match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Outside(outside) => outside,
            // A new key starts the login anew (RFC 4252 §5).
            Door::Hall(verified) => verified.void(),
            Door::Invited(invited) => {
                let asked = self.enrols(*invited, (user, signed), since).await;
                return asked.map_or_else(|refusal| refusal, |_| proceed(MethodKind::KeyboardInteractive));
            }
            other => {
                self.door = other;
                return Auth::reject();
            }
        };
        match outside.key_verified(&self.house.vault, user, signed, Timestamp::now()).await {
            Ok(verified) => self.proven(verified, since).await,
            Err((outside, fault)) => {
                self.door = Door::Outside(outside);
                if matches!(self.stranger, Stranger::Asked) {
                    self.note_refused((user, key), &fault);
                    self.stranger =
                        Stranger::Signed { user: user.to_owned(), key: key.clone(), user_verified };
                    tokio::time::sleep_until(since + OFFER).await;
                    return Auth::reject();
                }
                self.failed(user, Some(key), fault.reason()).await;
                self.refuse_for(&fault, since, self.first_methods()).await
            }
        }
    }

    /// The key is proven; a code is due, unless it is spared.
    async fn proven(&mut self, verified: KeyVerified, since: Instant) -> Auth {
        let mfa = self.config.mfa;
        let spared = Spared { remember: mfa.remember, verified_keys: mfa.verify_required_counts };
        match verified.without_code(&self.house.vault, spared, Timestamp::now()).await {
            Ok(caller) => self.enter(caller, since).await,
            Err(verified) => {
                self.wait_at(Door::Hall(verified));
                self.phase.key_proven();
                proceed(MethodKind::KeyboardInteractive)
            }
        }
    }

    /// The peer wants to be asked.
    pub(super) async fn question(&mut self, user: &str) -> Auth {
        if self.void_if_changed(user) {
            return self.changed(user).await;
        }
        match &self.door {
            Door::Hall(verified) if verified.user().as_str() == user => {
                ask(self.notice(verified.key()).await, CODE_PROMPT, false)
            }
            Door::Enrolling(enrolling) if enrolling.user().as_str() == user => {
                ask(None, enrolment_prompt(enrolling), false)
            }
            Door::Outside(_) if self.inviting => {
                // Who reads a code from a message needs longer than who has a key.
                self.phase.key_proven();
                ask(Some(INVITATION.to_owned()), "Enrolment code: ", false)
            }
            _ => self.stranger(user).await,
        }
    }

    /// The peer answers.
    pub(super) async fn answer(&mut self, user: &str, answer: &str) -> Auth {
        if self.void_if_changed(user) {
            return self.changed(user).await;
        }
        match &self.door {
            Door::Hall(verified) if verified.user().as_str() == user => {}
            Door::Enrolling(enrolling) if enrolling.user().as_str() == user => {}
            Door::Enrolled(caller) if caller.user().as_str() == user => {}
            Door::Outside(_) if self.inviting => {}
            _ => return self.stranger(user).await,
        }
        let since = Instant::now();
        if self.locked_down() {
            return self.keep_out(user, since).await;
        }
        match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Hall(verified) if looks_like_invitation(answer) => {
                self.invited_by_key(verified, (user, answer), since).await
            }
            Door::Hall(verified) => self.code_given(verified, (user, answer), since).await,
            Door::Outside(outside) => self.invited(outside, (user, answer), since).await,
            Door::Enrolling(enrolling) => self.confirmed(*enrolling, (user, answer), since).await,
            Door::Enrolled(caller) => match self.still_in_use(&caller).await {
                Ok(true) => self.enter(*caller, since).await,
                still => {
                    self.door = Door::Enrolled(caller);
                    let fault = still.map_or_else(LoginFault::from, |_| LoginFault::UnknownKey);
                    self.refuse_for(&fault, since, self.first_methods()).await
                }
            },
            other => {
                self.door = other;
                self.refuse(since, self.first_methods()).await
            }
        }
    }

    /// A password is no method here: who tries one is guessing.
    pub(super) async fn password(&mut self, user: &str) -> Auth {
        self.void_if_changed(user);
        self.failed(user, None, "a password").await;
        count_failure(&self.house, self.source.ip()).await;
        Auth::reject()
    }

    /// Nothing was proven for this user name.
    async fn stranger(&mut self, user: &str) -> Auth {
        let since = Instant::now();
        self.failed(user, None, "code before key").await;
        self.refuse(since, self.first_methods()).await
    }

    /// Something was proven, and for another user name.
    async fn changed(&mut self, user: &str) -> Auth {
        let since = Instant::now();
        self.failed(user, None, LoginFault::UserChanged.reason()).await;
        self.refuse(since, self.first_methods()).await
    }

    /// RFC 4252 §5: a changed user name voids every factor. Each request begins with this; says whether there was one.
    fn void_if_changed(&mut self, user: &str) -> bool {
        let changed = self.door.user().is_some_and(|proven| proven.as_str() != user);
        if changed {
            // Who is inside proves nothing more (RFC 4252 §5.1).
            let outside = self.admitted.as_ref().map(|by| Unauthenticated::new(by, &self.config.keys));
            self.door = outside.map_or(Door::Shut, Door::Outside);
            self.proven.send_replace(None);
        }
        changed
    }

    /// As after an enrolment.
    #[cfg(test)]
    pub(super) fn enrolled_as(&mut self, caller: Authenticated) {
        self.wait_at(Door::Enrolled(Box::new(caller)));
    }

    /// Something is proven, and more is due.
    fn wait_at(&mut self, door: Door) {
        self.door = door;
        self.proven.send_replace(Proven::of(&self.door));
    }

    async fn code_given(
        &mut self,
        verified: KeyVerified,
        (user, code): (&str, &str),
        since: Instant,
    ) -> Auth {
        match verified.with_second_factor(&self.house.vault, user, code, Timestamp::now()).await {
            Ok(caller) => {
                let entered = self.enter(caller, since).await;
                // What spares the next code is given only to who is inside, that is in the trail.
                if let Some(caller) = self.caller() {
                    self.remember(&caller).await;
                }
                entered
            }
            Err((verified, fault)) => {
                let (user, source_ip) = (verified.user().to_string(), self.source.ip().to_string());
                self.door = Door::Hall(verified);
                self.audit(Event::MfaFailed { user, source_ip, reason: fault.reason().to_owned() }).await;
                self.refuse_for(&fault, since, MethodSet::from([MethodKind::KeyboardInteractive].as_slice()))
                    .await
            }
        }
    }

    async fn remember(&self, caller: &Authenticated) {
        let Some(seconds) = self.config.mfa.remember.filter(|_| !caller.only_exchanges()) else {
            return;
        };
        if let Err(error) = remember(&self.house.vault, caller, seconds).await {
            tracing::error!(%error, "mfa.not_remembered");
        }
        // A lockdown forgets everything once it holds; what was written after that is forgotten here.
        if self.locked_down()
            && let Err(error) = forget_key(&self.house.vault, caller.key()).await
        {
            tracing::error!(%error, "mfa.not_forgotten");
        }
    }

    /// The door of the house was closed after this connection came through it.
    fn locked_down(&self) -> bool {
        self.house.guard.lockdown().reason().is_some()
    }

    /// Refuses for the lockdown: whatever was proven is void, and nobody is to blame.
    async fn keep_out(&mut self, user: &str, since: Instant) -> Auth {
        self.door = Door::Shut;
        self.failed(user, None, "lockdown").await;
        tokio::time::sleep_until(since + REFUSAL).await;
        Auth::Reject { proceed_with_methods: Some(self.first_methods()), partial_success: false }
    }

    /// Minutes may have passed while the recovery codes were written down.
    async fn still_in_use(&self, caller: &Authenticated) -> Result<bool, keystore::Error> {
        let (vault, now) = (&self.house.vault, Timestamp::now());
        let user = vault.get::<User>(caller.user().as_str()).await?;
        let key = vault.get::<UserKey>(caller.key()).await?;
        let counts = match key {
            Some(key) => key.usable(now),
            None => {
                let standing = self.house.certificates.standing(caller.user(), caller.certificate_id(), now);
                standing.is_some_and(|(_, counts)| counts)
            }
        };
        Ok(user.is_some_and(|user| user.barred(now).is_none()) && counts)
    }

    /// All is proven: once the trail says so, the peer is inside.
    async fn enter(&mut self, caller: Authenticated, since: Instant) -> Auth {
        if self.locked_down() {
            return self.keep_out(caller.user().as_str(), since).await;
        }
        // Store and trail are the bastion's: who finds them broken is turned away, and not to blame.
        if caller.confirms() && !self.confirm(&caller).await {
            return self.turn_away(since, self.first_methods()).await;
        }
        let event = Event::SshLoginSucceeded {
            user: caller.user().to_string(),
            source_ip: self.source.ip().to_string(),
            key: caller.key().to_owned(),
            certificate: caller.certificate(),
        };
        if !self.audit(event).await {
            return self.turn_away(since, self.first_methods()).await;
        }
        self.suspect_sharing(&caller).await;
        // The slot of the unauthenticated is given back.
        drop(self.admitted.take());
        self.house.guard.succeeded(self.source.ip());
        self.phase.logged_in();
        self.proven.send_replace(None);
        self.door = Door::Inside(Arc::new(caller));
        Auth::Accept
    }

    /// The second factor counts from its first code on, and the one it replaces no more.
    async fn confirm(&self, caller: &Authenticated) -> bool {
        let (user, source_ip) = (caller.user().to_string(), self.source.ip().to_string());
        let event = Event::MfaConfirmed { user, source_ip };
        let confirm = mfa::confirm(&self.house.vault, caller);
        let confirmed = self.house.trail.ahead_of(vec![event], Timestamp::now(), confirm).await;
        if let Err(error) = &confirmed {
            tracing::error!(%error, "mfa.not_confirmed");
        }
        confirmed.is_ok()
    }

    /// A key at work in two places at once is perhaps in two hands: the trail says so, nobody is cut.
    async fn suspect_sharing(&self, caller: &Authenticated) {
        let here = self.source.ip().to_canonical();
        let elsewhere: BTreeSet<String> = self
            .house
            .registry
            .live_where(|info| info.key == caller.key() && info.source.ip().to_canonical() != here)
            .into_iter()
            .map(|live| live.info.source.ip().to_canonical().to_string())
            .collect();
        if !elsewhere.is_empty() {
            let event = Event::SshKeySharedSuspected {
                user: caller.user().to_string(),
                source_ip: here.to_string(),
                key: caller.key().to_owned(),
                elsewhere: elsewhere.into_iter().collect(),
            };
            self.audit(event).await;
        }
    }

    /// What the owner of the key, which is proven, should know of its end.
    async fn notice(&self, key: &str) -> Option<String> {
        let key = self.house.vault.get::<UserKey>(key).await.ok().flatten()?;
        let owner = self.house.vault.get::<User>(key.user.as_str()).await.ok().flatten()?;
        notice(&key, &self.config.keys.of(&owner), Timestamp::now(), self.config.bastion())
    }

    async fn failed(&self, user: &str, key: Option<&PublicKey>, reason: &str) {
        let event = Event::SshLoginFailed {
            user: user.chars().take(64).collect(),
            source_ip: self.source.ip().to_string(),
            key: key.map(UserKey::fingerprint_of),
            reason: reason.to_owned(),
        };
        self.audit(event).await;
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

    /// Refuses, and counts the failure against the source if it is the peer's.
    async fn refuse_for(&self, fault: &LoginFault, since: Instant, next: MethodSet) -> Auth {
        match fault.is_peers() {
            true => self.refuse(since, next).await,
            false => self.turn_away(since, next).await,
        }
    }

    /// Counts the failure against the source and refuses, `since` + [`REFUSAL`].
    async fn refuse(&self, since: Instant, next: MethodSet) -> Auth {
        count_failure(&self.house, self.source.ip()).await;
        self.turn_away(since, next).await
    }

    /// Refuses in the same words and time, and blames nobody.
    async fn turn_away(&self, since: Instant, next: MethodSet) -> Auth {
        tokio::time::sleep_until(since + REFUSAL).await;
        Auth::Reject { proceed_with_methods: Some(next), partial_success: false }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Whoever only offered keys and left without any proof has failed once, as sshd counts it.
        if let (Door::Outside(_), Some(refused)) = (&self.door, self.refused.take()) {
            let (house, source) = (Arc::clone(&self.house), self.source.ip());
            tokio::spawn(async move {
                let (source_ip, counts) = (source.to_string(), refused.counts());
                append(&house, refused.event(source_ip)).await;
                if counts {
                    count_failure(&house, source).await;
                }
            });
        }
    }
}

async fn count_failure(house: &House, source: IpAddr) {
    if let Some(until) = house.guard.failed(source, Timestamp::now()) {
        let (source_ip, reason) = (source.to_string(), "too many failed logins".to_owned());
        append(house, Event::SourceBanned { source_ip, until: until.to_string(), reason }).await;
    }
}

/// One step is done, `next` is due.
fn proceed(next: MethodKind) -> Auth {
    Auth::Reject { proceed_with_methods: Some(MethodSet::from([next].as_slice())), partial_success: true }
}

/// Every refusal of a proof takes at least this long, counted from the request.
const REFUSAL: Duration = Duration::from_millis(400);
/// Every refusal of an offered key takes at least this long.
const OFFER: Duration = Duration::from_millis(20);
