//! Logins with a certificate of an external authority: offered, then signed for.

use jiff::Timestamp;
use keystore::ssh::{Certificate, PublicKey};
use keystore::user_ca::Presented;
use russh::server::Auth;
use tokio::time::Instant;

use super::{Door, Gate, OFFER};
use crate::auth::{LoginFault, SignedCertificate};

impl Gate {
    /// A certificate without a signature: says whether one is worth while.
    pub(in crate::ingress) async fn certificate_offered(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Auth {
        let (since, now) = (Instant::now(), Timestamp::now());
        self.void_if_changed(user);
        let presented = Presented { certificate, user, source: self.source.ip(), max_age: 0 };
        let asked = (&presented, &*self.config.keys);
        let mut fault = LoginFault::UnknownKey;
        if matches!(self.door, Door::Outside(_) | Door::Hall(_)) {
            match self.house.certificates.offered(&self.house.vault, asked, now).await {
                Ok(()) => return Auth::Accept,
                Err(refused) => fault = refused,
            }
        }
        let key = PublicKey::from(certificate.public_key().clone());
        self.note_refused((user, &key), &fault);
        tokio::time::sleep_until(since + OFFER).await;
        Auth::reject()
    }

    /// A certificate whose key's signature of this request is right.
    pub(in crate::ingress) async fn certified(&mut self, user: &str, signed: SignedCertificate<'_>) -> Auth {
        let since = Instant::now();
        self.void_if_changed(user);
        if self.locked_down() {
            return self.keep_out(user, since).await;
        }
        let outside = match std::mem::replace(&mut self.door, Door::Shut) {
            Door::Outside(outside) => outside,
            Door::Hall(verified) => verified.void(),
            other => {
                self.door = other;
                return Auth::reject();
            }
        };
        let (vault, by) = (&self.house.vault, &self.house.certificates);
        match outside.certificate_verified(vault, by, (user, signed), Timestamp::now()).await {
            Ok(verified) => self.proven(verified, since).await,
            Err((outside, fault)) => {
                self.door = Door::Outside(outside);
                let key = PublicKey::from(signed.certificate.public_key().clone());
                self.failed(user, Some(&key), fault.reason()).await;
                self.refuse_for(&fault, since, self.first_methods()).await
            }
        }
    }
}
