//! The part of a login in which an invited person enrols: code of the invitation, key, first code of the authenticator.

use jiff::Timestamp;
use russh::server::Auth;
use russh::{MethodKind, MethodSet};
use tokio::time::Instant;

use super::{Door, Gate, Stranger, proceed};
use crate::audit::Event;
use crate::auth::{Enrolling, Invited, KeyVerified, SignedKey, Unauthenticated};
use crate::ingress::prompts::{ask, enrolment_prompt, recovery_prompt};

impl Gate {
    /// An invited user's key: it is added once an authenticator code confirms. Returns what to ask, or the refusal.
    pub(super) async fn enrols(
        &mut self,
        invited: Invited,
        (user, signed): (&str, SignedKey<'_>),
        since: Instant,
    ) -> Result<String, Auth> {
        match invited.key_signed(&self.house.vault, user, signed, Timestamp::now()).await {
            Ok(enrolling) => {
                let prompt = enrolment_prompt(&enrolling);
                self.wait_at(Door::Enrolling(Box::new(enrolling)));
                Ok(prompt)
            }
            Err((invited, fault)) => {
                self.door = Door::Outside(invited.void());
                self.failed(user, Some(signed.key), fault.reason()).await;
                Err(self.refuse_for(&fault, since, self.first_methods()).await)
            }
        }
    }

    pub(super) async fn invited(
        &mut self,
        outside: Unauthenticated,
        (user, code): (&str, &str),
        since: Instant,
    ) -> Auth {
        match outside.invited(&self.house.vault, user, code, Timestamp::now()).await {
            Ok(invited) => {
                self.phase.enrolling();
                match std::mem::replace(&mut self.stranger, Stranger::Asked) {
                    Stranger::Signed { user: signed_for, key, user_verified } if signed_for == user => {
                        let signed = SignedKey { key: &key, user_verified };
                        let asked = self.enrols(invited, (user, signed), since).await;
                        asked.map_or_else(|refusal| refusal, |prompt| ask(None, prompt, false))
                    }
                    _ => {
                        self.wait_at(Door::Invited(Box::new(invited)));
                        proceed(MethodKind::PublicKey)
                    }
                }
            }
            Err((outside, fault)) => {
                self.door = Door::Outside(outside);
                self.failed(user, None, fault.reason()).await;
                self.refuse_for(&fault, since, self.first_methods()).await
            }
        }
    }

    pub(super) async fn invited_by_key(
        &mut self,
        verified: KeyVerified,
        (user, code): (&str, &str),
        since: Instant,
    ) -> Auth {
        match verified.invited(&self.house.vault, user, code, Timestamp::now()).await {
            Ok(enrolling) => {
                let prompt = enrolment_prompt(&enrolling);
                self.wait_at(Door::Enrolling(Box::new(enrolling)));
                self.phase.enrolling();
                ask(None, prompt, false)
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

    /// The first code of the authenticator: key and second factor count from now on.
    pub(super) async fn confirmed(
        &mut self,
        enrolling: Enrolling,
        (user, code): (&str, &str),
        since: Instant,
    ) -> Auth {
        let now = Timestamp::now();
        let confirmed = match enrolling.confirmed(&self.house.vault, user, code, now).await {
            Ok(confirmed) => confirmed,
            Err((enrolling, fault)) => {
                let (user, source_ip) = (enrolling.user().to_string(), self.source.ip().to_string());
                self.door = Door::Enrolling(Box::new(enrolling));
                self.audit(Event::MfaFailed { user, source_ip, reason: fault.reason().to_owned() }).await;
                return self
                    .refuse_for(&fault, since, MethodSet::from([MethodKind::KeyboardInteractive].as_slice()))
                    .await;
            }
        };
        let user = confirmed.user().to_string();
        let by = format!("{user} (invited)");
        let (fresh, key) = (confirmed.is_new_factor(), confirmed.new_key());
        // A public key is public: whoever only named it has it no more.
        let taken = key.clone().zip(confirmed.claims_from()).map(|(key, named)| {
            let reason = "never proven, and another user's".to_owned();
            Event::SshKeyRevoked { user: named.to_string(), key, by: by.clone(), reason }
        });
        let added = key.map(|key| Event::SshKeyAdded { user: user.clone(), key, by: by.clone() });
        let factor = fresh.then(|| Event::MfaEnrolled { user: user.clone(), by: Some(by), pending: false });
        let events = taken.into_iter().chain(added).chain(factor).collect();
        let enrol = confirmed.enrol(&self.house.vault, now);
        let enrolled = match self.house.trail.ahead_of(events, now, enrol).await {
            Ok(enrolled) => enrolled,
            Err(fault) => {
                // Another enrolment with the same code was faster, most likely.
                self.failed(&user, None, fault.reason()).await;
                return self.refuse_for(&fault, since, self.first_methods()).await;
            }
        };
        match enrolled.recovery_codes {
            Some(codes) => {
                self.wait_at(Door::Enrolled(Box::new(enrolled.login)));
                ask(None, recovery_prompt(&codes), true)
            }
            None => self.enter(enrolled.login, since).await,
        }
    }
}
