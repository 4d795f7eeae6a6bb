//! What a login was refused for where no proof was judged: offers, and what russh refuses by itself.

use keystore::UserKey;
use keystore::ssh::PublicKey;
use russh::server::AuthRefusal;
use tokio::time::Instant;

use super::{Gate, REFUSAL, count_failure};

/// The last offer that was refused.
pub(super) struct RefusedOffer {
    pub(super) user: String,
    /// Fingerprint.
    pub(super) key: String,
    /// What was wrong with the certificate that it, or one before it, was.
    pub(super) certificate: Option<&'static str>,
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
    pub(super) fn note_refused(&mut self, user: &str, key: &PublicKey, certificate: Option<&'static str>) {
        let (user, key) = (user.chars().take(64).collect(), UserKey::fingerprint_of(key));
        // A client offers the bare key right after its certificate, and the certificate is what should have let it in.
        let certificate = certificate.or(self.refused.take().and_then(|before| before.certificate));
        self.refused = Some(RefusedOffer { user, key, certificate });
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
