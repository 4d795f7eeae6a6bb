//! The login: a chain of states, each spent by the door that mints the next.
//!
//! [`Unauthenticated`] → [`KeyVerified`] (a *signed* request of a key in use) → [`Authenticated`] (a code, spent
//! durably). A state has private fields and no `Clone`, so no factor can be skipped, forged or used twice. This room
//! never speaks SSH and never audits: the caller does, with [`LoginFault::reason`]. [`mfa`] owns the second factor.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use certificate::Certified;
use jiff::Timestamp;
use keystore::ssh::PublicKey;
use keystore::user_ca::CertFault;
use keystore::{KeyRules, KeyStatus, Role, User, UserKey, UserKind, UserName, Vault, lifecycle};

use crate::audit::AuditError;
use crate::guard::Admitted;

mod browser;
mod certificate;
mod invitations;
mod invite;
pub mod mfa;
#[cfg(test)]
pub(crate) mod testing;
mod unasked;

pub use browser::{Browsers, Person, Refused, SignedIn, Stay, TICKET_LIFE};
pub use certificate::{CertificateId, Certificates, SignedCertificate};
pub use invitations::Invitations;
pub use invite::{
    Confirmed, Enrolled, Enrolling, Invited, invitation, invite, looks_like_invitation, withdraw,
};
pub use unasked::{Spared, forget_all, forget_key, forget_user, remember};

/// Whether a key that a client *offers* (without a signature) is worth a signature. This is no proof of anything.
///
/// # Errors
/// Why it is not. The peer must not see it.
pub async fn offered_key(vault: &Vault, knock: Knock<'_>, now: Timestamp) -> Result<(), LoginFault> {
    find_key(vault, &knock, now).await.map(drop)
}

/// Who says to be whom, with which key, from where.
#[derive(Debug, Clone, Copy)]
pub struct Knock<'a> {
    /// The name given.
    pub user: &'a str,
    /// The key.
    pub key: &'a PublicKey,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// What keys must be, and how long they live.
    pub rules: &'a KeyRules,
}

/// A key that has signed this session's authentication request; the caller has verified the signature.
#[derive(Debug, Clone, Copy)]
pub struct SignedKey<'a> {
    /// The key.
    pub key: &'a PublicKey,
    /// It is a security key's, which says that it verified its user.
    pub user_verified: bool,
}

impl<'a> From<&'a PublicKey> for SignedKey<'a> {
    /// A key that verifies nobody.
    fn from(key: &'a PublicKey) -> Self {
        Self { key, user_verified: false }
    }
}

/// A connection whose peer has proved nothing yet.
pub struct Unauthenticated {
    source: SocketAddr,
    rules: Arc<KeyRules>,
}

impl Unauthenticated {
    /// The state every admitted connection starts in. In its grace (`rules`) an expired key still logs in, to be
    /// exchanged and for nothing else.
    pub fn new(admitted: &Admitted, rules: &Arc<KeyRules>) -> Self {
        Self { source: admitted.addr(), rules: Arc::clone(rules) }
    }

    /// Spends this state for a key that has *signed* this session's authentication request (RFC 4252 §7). The caller
    /// has verified the signature; here the key is found to be `user`'s, and in use.
    ///
    /// Dropping the future loses the login, nothing else.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    ///
    /// A state that is spent is gone:
    /// ```
    /// # use keyward::auth::*;
    /// # use keystore::{Vault, ssh::PublicKey};
    /// # use jiff::Timestamp;
    /// async fn once(login: Unauthenticated, vault: &Vault, key: &PublicKey, now: Timestamp) {
    ///     let first = login.key_verified(vault, "alice", key, now).await;
    /// }
    /// ```
    /// ```compile_fail,E0382
    /// # use keyward::auth::*;
    /// # use keystore::{Vault, ssh::PublicKey};
    /// # use jiff::Timestamp;
    /// async fn twice(login: Unauthenticated, vault: &Vault, key: &PublicKey, now: Timestamp) {
    ///     let first = login.key_verified(vault, "alice", key, now).await;
    ///     let second = login.key_verified(vault, "alice", key, now).await;
    /// }
    /// ```
    pub async fn key_verified(
        self,
        vault: &Vault,
        user: &str,
        key: impl Into<SignedKey<'_>>,
        now: Timestamp,
    ) -> Result<KeyVerified, (Self, LoginFault)> {
        let SignedKey { key, user_verified } = key.into();
        let knock = Knock { user, key, source: self.source.ip(), rules: &self.rules };
        match find_key(vault, &knock, now).await {
            Ok((_, held)) if held.verify_required && !user_verified => {
                Err((self, LoginFault::UserNotVerified))
            }
            Ok((user, held)) => Ok(KeyVerified {
                user: user.name,
                verifies: held.verify_required,
                fingerprint: held.fingerprint,
                source: self.source,
                rules: self.rules,
                voided: false,
                certificate: None,
            }),
            Err(fault) => Err((self, fault)),
        }
    }
}

/// A connection whose peer holds a private key of [`KeyVerified::user`]; the second factor is due.
///
/// It opens nothing by itself:
/// ```
/// # use keyward::{auth::Authenticated, policy::Rulebook};
/// # use keystore::{Instance, Login, Role};
/// # use jiff::Timestamp;
/// # type Roles = std::collections::BTreeSet<Role>;
/// fn with_both(rules: &Rulebook, by: &Authenticated, roles: &Roles, to: (&Instance, &Login)) {
///     let authorized = rules.authorize(by, roles, to, Timestamp::UNIX_EPOCH);
/// }
/// ```
/// ```compile_fail,E0308
/// # use keyward::{auth::KeyVerified, policy::Rulebook};
/// # use keystore::{Instance, Login, Role};
/// # use jiff::Timestamp;
/// # type Roles = std::collections::BTreeSet<Role>;
/// fn without_a_code(rules: &Rulebook, by: &KeyVerified, roles: &Roles, to: (&Instance, &Login)) {
///     let authorized = rules.authorize(by, roles, to, Timestamp::UNIX_EPOCH);
/// }
/// ```
pub struct KeyVerified {
    user: UserName,
    fingerprint: String,
    source: SocketAddr,
    rules: Arc<KeyRules>,
    /// The key verified its user, as it must each time.
    verifies: bool,
    /// Another name was tried on this state: it never becomes a login any more.
    voided: bool,
    /// It is not a key of the user's own, but one of this certificate's.
    certificate: Option<Certified>,
}

impl KeyVerified {
    /// Whose key it is.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The key's fingerprint, `SHA256:…`.
    pub fn key(&self) -> &str {
        &self.fingerprint
    }

    /// Whether it is the key of a certificate, and none of the user's own.
    pub fn is_certified(&self) -> bool {
        self.certificate.is_some()
    }

    /// Gives up what was proved, as a changed user name demands (RFC 4252 §5).
    pub fn void(self) -> Unauthenticated {
        Unauthenticated { source: self.source, rules: self.rules }
    }

    /// Spends this state and a code for a login. The code is durably spent before this returns `Ok`; user and key are
    /// read again, since minutes may have passed. `user` is the name of *this* request: another than the key's voids
    /// the key for good.
    ///
    /// Dropping the future may leave the code spent without a login; never the other way round.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    ///
    /// ```compile_fail,E0382
    /// # use keyward::auth::*;
    /// # use keystore::Vault;
    /// # use jiff::Timestamp;
    /// async fn two_logins_of_one_key(key: KeyVerified, vault: &Vault, now: Timestamp) {
    ///     let first = key.with_second_factor(vault, "alice", "123456", now).await;
    ///     let second = key.with_second_factor(vault, "alice", "654321", now).await;
    /// }
    /// ```
    pub async fn with_second_factor(
        mut self,
        vault: &Vault,
        user: &str,
        code: &str,
        now: Timestamp,
    ) -> Result<Authenticated, (Self, LoginFault)> {
        self.voided |= user != self.user.as_str();
        if self.voided {
            return Err((self, LoginFault::UserChanged));
        }
        match self.complete(vault, code, now).await {
            Ok((user, reach, confirms)) => Ok(Authenticated { confirms, ..self.spent(user, reach, now) }),
            Err(fault) => Err((self, fault)),
        }
    }

    fn spent(self, user: User, reach: Reach, now: Timestamp) -> Authenticated {
        let Self { fingerprint, source, verifies, certificate, .. } = self;
        if let Some(certificate) = &certificate {
            certificate.used(&user.name, now);
        }
        Authenticated {
            certificate,
            verifies,
            user: user.name,
            roles: user.roles,
            kind: user.kind,
            fingerprint,
            source,
            at: now,
            reach,
            confirms: None,
        }
    }

    async fn complete(
        &self,
        vault: &Vault,
        code: &str,
        now: Timestamp,
    ) -> Result<(User, Reach, Option<Timestamp>), LoginFault> {
        // RFC 6238 §5.2: an accepted code is spent. Persist first, then let the login through.
        let confirms = mfa::spend(vault, &self.user, code, now).await?;
        let user = vault.get::<User>(self.user.as_str()).await?.ok_or(LoginFault::UnknownUser)?;
        // For a pending key this is the proof that makes it active (`keystore::lifecycle`).
        let reach = self.used(vault, (&user, Pending::IsProven), now).await?;
        // Read after the key was written: who was suspended meanwhile stays out.
        let user = vault.get::<User>(self.user.as_str()).await?.ok_or(LoginFault::UnknownUser)?;
        match user.barred(now) {
            Some(why) => Err(LoginFault::Barred(why)),
            None => Ok((user, reach, confirms)),
        }
    }
}

/// What a login means to a key that waits for its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    IsProven,
    Waits,
}

impl KeyVerified {
    /// The key is used, if it may still be.
    async fn used(
        &self,
        vault: &Vault,
        (user, pending): (&User, Pending),
        now: Timestamp,
    ) -> Result<Reach, LoginFault> {
        if let Some(certificate) = &self.certificate {
            certificate.counts(vault, &self.user, now).await?;
            return Ok(Reach::Everything);
        }
        let grace = self.rules.of(user).grace;
        vault
            .update(&self.fingerprint, |key: &mut UserKey| {
                let reach = usable(key, self.user.as_str(), grace, now)?;
                let in_use = matches!(key.status_at(now), KeyStatus::Active | KeyStatus::Retiring);
                if pending == Pending::Waits && !in_use {
                    return Err(LoginFault::KeyUnusable(key.status_at(now)));
                }
                key.last_used_at = Some(now);
                Ok(reach)
            })
            .await
    }
}

/// A login: key and code. The only thing that `policy` authorises.
///
/// ```compile_fail,E0599
/// fn copied(login: &keyward::auth::Authenticated) -> keyward::auth::Authenticated {
///     login.clone()
/// }
/// ```
pub struct Authenticated {
    user: UserName,
    roles: BTreeSet<Role>,
    kind: UserKind,
    fingerprint: String,
    source: SocketAddr,
    at: Timestamp,
    reach: Reach,
    /// It was made with the first code of the second factor that was enrolled then.
    confirms: Option<Timestamp>,
    /// Its key verifies its user each time it signs.
    verifies: bool,
    /// It was made with this certificate.
    certificate: Option<Certified>,
}

/// How far a login goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Everything,
    /// The key has expired: it can be exchanged, and nothing else.
    Exchange,
}

impl Authenticated {
    /// Who logged in.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The roles at the time of the login.
    pub fn roles(&self) -> &BTreeSet<Role> {
        &self.roles
    }

    /// The fingerprint of the key that signed, `SHA256:…`.
    pub fn key(&self) -> &str {
        &self.fingerprint
    }

    /// Where the connection comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// When the login was complete.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether it was made with the first code of a second factor: then [`mfa::confirm`] it.
    pub fn confirms(&self) -> bool {
        self.confirms.is_some()
    }

    /// Whether a signature of its key counts only if the key verified its user.
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    /// The certificate it was made with, if it was one, in words: `serial 7, key id "alice@example", of SHA256:…`.
    pub fn certificate(&self) -> Option<String> {
        self.certificate.as_ref().map(Certified::named)
    }

    /// Which one that was.
    pub fn certificate_id(&self) -> Option<CertificateId> {
        self.certificate.as_ref().and_then(Certified::id)
    }

    /// Whether it is a service, which has nothing to say to the bastion itself.
    pub fn is_service(&self) -> bool {
        self.kind == UserKind::Service
    }

    /// Whether the key has expired, so that it can be exchanged and nothing else: no instance is open to this login.
    pub fn only_exchanges(&self) -> bool {
        self.reach == Reach::Exchange
    }

    /// Whether `key` is the key that signed.
    pub fn matches_key(&self, key: &PublicKey) -> bool {
        UserKey::fingerprint_of(key) == self.fingerprint
    }
}

/// Why a step of the login failed. For the audit trail only: a peer always sees the same words.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum LoginFault {
    /// No such user.
    #[error("unknown user")]
    UnknownUser,
    /// The key is nobody's, or another user's.
    #[error("unknown key")]
    UnknownKey,
    /// The key is of a kind that is not accepted any more.
    #[error("kind of key not accepted")]
    KeyNotAccepted,
    /// A certificate does not count; says why.
    #[error("{0}")]
    Certificate(CertFault),
    /// A certificate of a user who has a key.
    #[error("certificate of a user who has a key of their own")]
    HasKey,
    /// The security key did not verify its user, as this one must.
    #[error("user not verified by the security key")]
    UserNotVerified,
    /// The key is the user's but no longer, or not yet, in use.
    #[error("key {0}")]
    KeyUnusable(KeyStatus),
    /// The user is suspended or expired; says which.
    #[error("{0}")]
    Barred(&'static str),
    /// The user may not come from there.
    #[error("not from this network")]
    WrongNetwork,
    /// The user has no second factor: an admin must enrol one.
    #[error("no second factor enrolled")]
    NoSecondFactor,
    /// No invitation, or one that is spent, expired or void, or another code than its own.
    #[error("wrong enrolment code")]
    WrongInvitation,
    /// Not a code of this time, nor a recovery code.
    #[error("wrong code")]
    WrongCode,
    /// A code that was right, but has been used, or is older than one that has.
    #[error("code already spent")]
    SpentCode,
    /// After many wrong codes none is looked at for a while.
    #[error("too many wrong codes")]
    TooManyCodes,
    /// Another user name in the middle of a login.
    #[error("user name changed during authentication")]
    UserChanged,
    /// The store did not answer: the operator's fault, never the peer's.
    #[error("store: {0}")]
    Store(String),
}

impl LoginFault {
    /// The `reason` of the audit event; stable words.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownUser => "unknown user",
            Self::UnknownKey => "unknown key",
            Self::KeyNotAccepted => "kind of key not accepted",
            Self::Certificate(fault) => fault.words(),
            Self::HasKey => "certificate of a user who has a key of their own",
            Self::UserNotVerified => "user not verified by the security key",
            Self::KeyUnusable(KeyStatus::Expired) => "key expired",
            Self::KeyUnusable(KeyStatus::Retired) => "key retired",
            Self::KeyUnusable(KeyStatus::Revoked) => "key revoked",
            Self::KeyUnusable(KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring) => {
                "key not usable"
            }
            Self::Barred(why) => why,
            Self::WrongNetwork => "not from this network",
            Self::NoSecondFactor => "no second factor enrolled",
            Self::WrongInvitation => "wrong enrolment code",
            Self::WrongCode => "wrong code",
            Self::SpentCode => "code already spent",
            Self::TooManyCodes => "too many wrong codes",
            Self::UserChanged => "user name changed",
            Self::Store(_) => "store unavailable",
        }
    }

    /// Whether the peer is to be penalised for it: not for what the operator broke.
    pub fn is_peers(&self) -> bool {
        !matches!(self, Self::Store(_))
    }
}

impl From<AuditError> for LoginFault {
    fn from(error: AuditError) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<keystore::Error> for LoginFault {
    fn from(error: keystore::Error) -> Self {
        match error {
            keystore::Error::NotFound { kind: "mfa", .. } => Self::NoSecondFactor,
            keystore::Error::NotFound { kind: "key", .. } => Self::UnknownKey,
            keystore::Error::NotFound { kind: "invitation", .. } => Self::WrongInvitation,
            keystore::Error::NotFound { kind: "user", .. } => Self::UnknownUser,
            // Somebody logged in meanwhile with a key that they had only named.
            keystore::Error::Changed { kind: "key", .. } => Self::UnknownKey,
            other => Self::Store(other.to_string()),
        }
    }
}

/// The user and the key, if the key is the user's and both are in use. Reads the same records whoever asks, so that a name
/// that does not exist takes as long as one that does.
async fn find_key(vault: &Vault, knock: &Knock<'_>, now: Timestamp) -> Result<(User, UserKey), LoginFault> {
    let name = knock.user.parse::<UserName>();
    let found = vault.get::<User>(name.as_ref().map_or("-", UserName::as_str)).await;
    let key = vault.get::<UserKey>(&UserKey::fingerprint_of(knock.key)).await;
    let found = found?.filter(|_| name.is_ok()).ok_or(LoginFault::UnknownUser)?;
    if let Some(why) = found.barred(now) {
        return Err(LoginFault::Barred(why));
    }
    let held = key?.ok_or(LoginFault::UnknownKey)?;
    usable(&held, found.name.as_str(), knock.rules.of(&found).grace, now)?;
    knock.rules.accepted.takes(knock.key).map_err(|_| LoginFault::KeyNotAccepted)?;
    if !found.comes_from(knock.source) {
        return Err(LoginFault::WrongNetwork);
    }
    Ok((found, held))
}

fn usable(key: &UserKey, user: &str, grace: i64, now: Timestamp) -> Result<Reach, LoginFault> {
    if key.user.as_str() != user {
        return Err(LoginFault::UnknownKey);
    }
    match key.status_at(now) {
        // A pending key proves itself by a login with key and code.
        KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring => Ok(Reach::Everything),
        KeyStatus::Expired if lifecycle::in_grace(key, grace, now) => Ok(Reach::Exchange),
        status => Err(LoginFault::KeyUnusable(status)),
    }
}

#[cfg(test)]
mod factors;
#[cfg(test)]
mod tests;
