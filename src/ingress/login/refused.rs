//! What a login was refused for where no proof was judged: offers, and what russh refuses by itself.

use keystore::UserKey;
use keystore::ssh::PublicKey;
use russh::server::AuthRefusal;
use tokio::time::Instant;

use super::{Gate, REFUSAL, count_failure};
use crate::audit::Event;
use crate::auth::LoginFault;

/// The last offer that was refused.
pub(super) struct RefusedOffer {
    user: String,
    /// Fingerprint.
    key: String,
    /// What was wrong with the certificate that it, or one before it, was.
    certificate: Option<&'static str>,
    /// What kept it, or one before it, from being judged: it may have been the right one.
    unjudged: Option<&'static str>,
}

impl RefusedOffer {
    /// Whether the peer is to blame.
    pub(super) fn counts(&self) -> bool {
        self.unjudged.is_none()
    }

    /// What the trail hears of a connection that ends with it.
    pub(super) fn event(self, source_ip: String) -> Event {
        let reason = self.unjudged.or(self.certificate).unwrap_or("no offered key is accepted").to_owned();
        Event::SshLoginFailed { user: self.user, source_ip, key: Some(self.key), reason }
    }
}

/// What the trail calls a refusal of russh's own.
pub(in crate::ingress) fn words_for(why: AuthRefusal) -> &'static str {
    match why {
        AuthRefusal::PasswordChange => "a password",
        AuthRefusal::Certificate => "certificate of an unknown authority",
        _ => "wrong signature",
    }
}

impl Gate {
    /// Not counted yet: an agent offers every key it holds. russh asks this of a signed request too.
    pub(super) fn note_refused(&mut self, (user, key): (&str, &PublicKey), fault: &LoginFault) {
        let (user, key) = (user.chars().take(64).collect(), UserKey::fingerprint_of(key));
        let before = self.refused.take();
        let (before, unjudged) = before.map_or((None, None), |b| (b.certificate, b.unjudged));
        // A client offers the bare key right after its certificate, and the certificate is what should have let it in.
        let certificate = match fault {
            LoginFault::Certificate(_) | LoginFault::HasKey => Some(fault.reason()),
            _ => before,
        };
        let unjudged = unjudged.or((!fault.is_peers()).then(|| fault.reason()));
        self.refused = Some(RefusedOffer { user, key, certificate, unjudged });
    }

    /// What russh refuses by itself is audited, counted and as slow as any other refusal.
    pub(in crate::ingress) async fn refused_unseen(
        &mut self,
        user: &str,
        key: Option<&PublicKey>,
        why: AuthRefusal,
    ) {
        let since = Instant::now();
        self.void_if_changed(user);
        self.failed(user, key, words_for(why)).await;
        count_failure(&self.house, self.source.ip()).await;
        tokio::time::sleep_until(since + REFUSAL).await;
    }
}
