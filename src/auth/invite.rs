//! Enrolment with nothing but a client: an invitation's code, then a signing key, then a first authenticator code.
//!
//! [`Unauthenticated`] → [`Invited`] (the code) → [`Enrolling`] (a key that signed) → [`Confirmed`] (a code of the
//! authenticator) → [`Enrolled`]. Nothing is stored before the last step, so that the trail can hear of it first; there
//! the invitation is spent first, by compare-and-set, so it brings in one person once. An invitation never replaces a
//! second factor: who has one confirms with it.
//!
//! Wrong codes are counted against their source (`guard`), never against the invitation: of 2^80 codes nobody guesses
//! one in a day, but whoever knows a user's name could void an invitation that wears out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use keystore::ssh::PublicKey;
use keystore::{
    Batch, Invitation, KeyRules, KeyStatus, SecondFactor, User, UserKey, UserKind, UserName, Vault,
};
use sha2::{Digest, Sha256};

use super::certificate::Certified;
use super::mfa::{self, Enrolment};
use super::{Authenticated, KeyVerified, LoginFault, Reach, SignedKey, Unauthenticated, usable};

/// An invitation for `user` and its code; it counts once it is given ([`invite`]).
pub fn invitation(user: &UserName, now: Timestamp) -> (String, Invitation) {
    let code = mfa::grouped_code(CODE_LENGTH);
    let expires_at = Timestamp::from_second(now.as_second() + VALID).unwrap_or(now);
    let hash = hash(&code);
    (code, Invitation { user: user.clone(), code: hash, made_at: now, expires_at, spent_at: None })
}

/// Gives an invitation. An earlier one of the same user is void.
///
/// # Errors
/// The store failed.
pub async fn invite(vault: &Vault, invitation: &Invitation) -> Result<(), keystore::Error> {
    withdraw(vault, &invitation.user).await?;
    vault.insert(invitation).await
}

/// Takes the invitation of `user` back, if there is one.
///
/// # Errors
/// The store failed.
pub async fn withdraw(vault: &Vault, user: &UserName) -> Result<(), keystore::Error> {
    match vault.remove::<Invitation>(user.as_str()).await {
        Ok(_) | Err(keystore::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether `answer` has the form of an invitation's code, which no other code has.
pub fn looks_like_invitation(answer: &str) -> bool {
    mfa::normalised(answer).len() == CODE_LENGTH
}

impl Unauthenticated {
    /// Spends this state for the code of `user`'s invitation.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    pub async fn invited(
        self,
        vault: &Vault,
        user: &str,
        code: &str,
        now: Timestamp,
    ) -> Result<Invited, (Self, LoginFault)> {
        match check(vault, (user, self.source.ip()), code, now).await {
            Ok(user) => {
                let Self { source, rules } = self;
                Ok(Invited { user, source, rules, invitation: hash(code), voided: false })
            }
            Err(fault) => Err((self, fault)),
        }
    }
}

impl KeyVerified {
    /// The same for one whose key is known, but who has no second factor.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    pub async fn invited(
        mut self,
        vault: &Vault,
        user: &str,
        code: &str,
        now: Timestamp,
    ) -> Result<Enrolling, (Self, LoginFault)> {
        self.voided |= user != self.user.as_str();
        if self.voided {
            return Err((self, LoginFault::UserChanged));
        }
        let begun = async {
            check(vault, (user, self.source.ip()), code, now).await?;
            if self.certificate.is_none() {
                whole(vault, (&self.fingerprint, self.user.as_str()), now).await?;
            }
            match begin(vault, &self.user, now).await? {
                Factor::Held => Err(LoginFault::WrongCode),
                fresh => Ok(fresh),
            }
        };
        match begun.await {
            Ok(factor) => {
                let Self { user, fingerprint, source, rules, verifies, certificate, .. } = self;
                let by = Invited { user, source, rules, invitation: hash(code), voided: false };
                Ok(Enrolling { by, fingerprint, key: None, factor, confirms: None, verifies, certificate })
            }
            Err(fault) => Err((self, fault)),
        }
    }
}

/// A connection whose peer gave the code of [`Invited::user`]'s invitation; a key is due.
///
/// The code alone opens nothing, and serves once:
/// ```compile_fail,E0308
/// # use keyward::{auth::Invited, policy::Rulebook};
/// # use keystore::{Instance, Login, Role};
/// # use jiff::Timestamp;
/// # type Roles = std::collections::BTreeSet<Role>;
/// fn without_a_key(rules: &Rulebook, by: &Invited, roles: &Roles, to: (&Instance, &Login)) {
///     let authorized = rules.authorize(by, roles, to, Timestamp::UNIX_EPOCH);
/// }
/// ```
/// ```compile_fail,E0382
/// # use keyward::auth::Invited;
/// # use keystore::{Vault, ssh::PublicKey};
/// # use jiff::Timestamp;
/// async fn two_keys(by: Invited, vault: &Vault, key: &PublicKey, now: Timestamp) {
///     let first = by.key_signed(vault, "alice", key, now).await;
///     let second = by.key_signed(vault, "alice", key, now).await;
/// }
/// ```
pub struct Invited {
    user: UserName,
    source: SocketAddr,
    rules: Arc<KeyRules>,
    invitation: [u8; 32],
    voided: bool,
}

impl Invited {
    /// Who is invited.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// Gives up what was proved, as a changed user name demands (RFC 4252 §5).
    pub fn void(self) -> Unauthenticated {
        Unauthenticated { source: self.source, rules: self.rules }
    }

    /// Whether a key that is *offered* may become, or is, the user's.
    pub async fn welcomes(&self, vault: &Vault, user: &str, key: &PublicKey, now: Timestamp) -> bool {
        user == self.user.as_str() && self.judge(vault, key, now).await.is_ok()
    }

    /// Spends this state for a key that has *signed* this session's authentication request; the caller has verified
    /// the signature.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    pub async fn key_signed(
        mut self,
        vault: &Vault,
        user: &str,
        key: impl Into<SignedKey<'_>>,
        now: Timestamp,
    ) -> Result<Enrolling, (Self, LoginFault)> {
        self.voided |= user != self.user.as_str();
        if self.voided {
            return Err((self, LoginFault::UserChanged));
        }
        let SignedKey { key, user_verified } = key.into();
        let begun = async {
            let judged = self.judge(vault, key, now).await?;
            if matches!(&judged, Judged::Theirs(held) if held.verify_required) && !user_verified {
                return Err(LoginFault::UserNotVerified);
            }
            Ok((judged, begin(vault, &self.user, now).await?))
        };
        match begun.await {
            Ok((judged, factor)) => {
                let verifies = matches!(&judged, Judged::Theirs(held) if held.verify_required);
                let new = |claims| Some(NewKey { key: key.clone(), claims });
                let new = match judged {
                    Judged::Theirs(_) => None,
                    Judged::Nobodys => new(None),
                    Judged::Named(by) => new(Some(by)),
                };
                Ok(Enrolling {
                    by: self,
                    fingerprint: UserKey::fingerprint_of(key),
                    key: new,
                    factor,
                    confirms: None,
                    verifies,
                    certificate: None,
                })
            }
            Err(fault) => Err((self, fault)),
        }
    }

    /// What the key is to the user; an error if it can never be theirs.
    async fn judge(&self, vault: &Vault, key: &PublicKey, now: Timestamp) -> Result<Judged, LoginFault> {
        self.rules.accepted.admits(key).map_err(|_| LoginFault::UnknownKey)?;
        let Some(held) = vault.get::<UserKey>(&UserKey::fingerprint_of(key)).await? else {
            return Ok(Judged::Nobodys);
        };
        if held.user != self.user && held.status_at(now) == KeyStatus::Pending {
            return Ok(Judged::Named(Box::new(held)));
        }
        usable(&held, self.user.as_str(), NO_GRACE, now)?;
        Ok(Judged::Theirs(Box::new(held)))
    }
}

/// Whose a key is that an invited user wants to come with.
enum Judged {
    Nobodys,
    Theirs(Box<UserKey>),
    /// Somebody else only named it as their next: a public key is public. Whoever signs with it takes it over; what was
    /// logged in with, or has ended, is its owner's for good.
    Named(Box<UserKey>),
}

/// A key that is to be added.
struct NewKey {
    key: PublicKey,
    /// Somebody else's record of it, which goes.
    claims: Option<Box<UserKey>>,
}

/// A connection whose peer gave an invitation's code and signed with a key; a code of the authenticator is due.
///
/// ```
/// # use keyward::auth::{Confirmed, Enrolling, LoginFault};
/// # use keystore::Vault;
/// # use jiff::Timestamp;
/// async fn confirmed(
///     by: Enrolling,
///     vault: &Vault,
///     now: Timestamp,
/// ) -> Result<Confirmed, (Enrolling, LoginFault)> {
///     by.confirmed(vault, "alice", "123456", now).await
/// }
/// ```
/// ```compile_fail,E0451
/// # use keyward::auth::{Enrolling, Invited};
/// fn without_a_signature(by: Invited) -> Enrolling {
///     Enrolling { by, fingerprint: String::new(), ..unreachable!() }
/// }
/// ```
pub struct Enrolling {
    by: Invited,
    fingerprint: String,
    /// `None`: it is the user's already.
    key: Option<NewKey>,
    factor: Factor,
    /// As in [`Authenticated`].
    confirms: Option<Timestamp>,
    /// As in [`Authenticated`].
    verifies: bool,
    /// As in [`Authenticated`].
    certificate: Option<Certified>,
}

/// What confirms the enrolment.
enum Factor {
    Held,
    Fresh(Box<(SecondFactor, Enrolment)>),
}

impl Enrolling {
    /// Who enrols.
    pub fn user(&self) -> &UserName {
        &self.by.user
    }

    /// The fingerprint of the key that will be added; `None` if the key is the user's already.
    pub fn new_key(&self) -> Option<String> {
        self.key.as_ref().map(|_| self.fingerprint.clone())
    }

    /// The one who only named that key as theirs, and from whom it is taken.
    pub fn claims_from(&self) -> Option<&UserName> {
        self.key.as_ref().and_then(|new| new.claims.as_ref()).map(|held| &held.user)
    }

    /// The new second factor, to be shown; `None` if the user has one, which confirms.
    pub fn new_factor(&self) -> Option<&Enrolment> {
        match &self.factor {
            Factor::Held => None,
            Factor::Fresh(fresh) => Some(&fresh.1),
        }
    }

    /// Gives up what was proved, as a changed user name demands (RFC 4252 §5).
    pub fn void(self) -> Unauthenticated {
        self.by.void()
    }

    /// Spends this state and a code of the authenticator. Nothing is stored but that a code is spent.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    pub async fn confirmed(
        mut self,
        vault: &Vault,
        user: &str,
        code: &str,
        now: Timestamp,
    ) -> Result<Confirmed, (Self, LoginFault)> {
        self.by.voided |= user != self.by.user.as_str();
        if self.by.voided {
            return Err((self, LoginFault::UserChanged));
        }
        let judged = async {
            match &mut self.factor {
                Factor::Held => self.confirms = mfa::spend(vault, &self.by.user, code, now).await?,
                Factor::Fresh(fresh) => mfa::try_out(&mut fresh.0, code, now)?,
            }
            unbarred(vault, &self.by.user, now).await
        };
        match judged.await {
            Ok(_) => Ok(Confirmed(self)),
            Err(fault) => Err((self, fault)),
        }
    }

    async fn store(&self, vault: &Vault, now: Timestamp) -> Result<Authenticated, LoginFault> {
        let name = self.by.user.as_str();
        let user = unbarred(vault, &self.by.user, now).await?;
        // Before the invitation is spent: minutes may have passed.
        if self.key.is_none() && self.certificate.is_none() {
            whole(vault, (&self.fingerprint, name), now).await?;
        }
        let ours = self.by.invitation;
        vault
            .update(name, |invitation: &mut Invitation| {
                if invitation.code != ours || !open(invitation, now) {
                    return Err(LoginFault::WrongInvitation);
                }
                invitation.spent_at = Some(now);
                Ok(())
            })
            .await?;
        let mut batch = Batch::default();
        if let Some(NewKey { key, claims }) = &self.key {
            let record = self.record(vault, (&user, key), now).await?;
            batch = match claims {
                Some(named) => batch.if_unchanged(&**named)?.put(&record)?,
                None => batch.insert(&record)?,
            };
        } else if let Some(certificate) = &self.certificate {
            certificate.counts(vault, &self.by.user, now).await?;
            certificate.used(&self.by.user, now);
        } else {
            vault
                .update(&self.fingerprint, |key: &mut UserKey| {
                    usable(key, name, NO_GRACE, now)?;
                    key.last_used_at = Some(now);
                    Ok::<_, LoginFault>(())
                })
                .await?;
        }
        if let Factor::Fresh(fresh) = &self.factor {
            batch = batch.insert(&fresh.0)?;
        }
        // Both or none: a key without its factor would be one that the trail says was not added.
        vault.commit(batch).await?;
        // Read after they were written: who was suspended or removed meanwhile leaves nothing behind.
        if let Err(fault) = unbarred(vault, &self.by.user, now).await {
            vault.commit(self.taken_back()).await?;
            return Err(fault);
        }
        Ok(Authenticated {
            user: user.name,
            roles: user.roles,
            kind: user.kind,
            fingerprint: self.fingerprint.clone(),
            source: self.by.source,
            at: now,
            reach: Reach::Everything,
            confirms: self.confirms,
            verifies: self.verifies,
            certificate: self.certificate.clone(),
        })
    }

    /// Removes what was added.
    fn taken_back(&self) -> Batch {
        let mut batch = Batch::default();
        if self.key.is_some() {
            batch = batch.remove::<UserKey>(&self.fingerprint);
        }
        if let Factor::Fresh(_) = &self.factor {
            batch = batch.remove::<SecondFactor>(self.by.user.as_str());
        }
        batch
    }

    async fn record(
        &self,
        vault: &Vault,
        (user, key): (&User, &PublicKey),
        now: Timestamp,
    ) -> Result<UserKey, LoginFault> {
        let store = |why: String| LoginFault::Store(why);
        let max_age = self.by.rules.of(user).max_age_of(user.kind);
        let expires_at = Timestamp::from_second(now.as_second().saturating_add(max_age));
        Ok(UserKey {
            id: vault.next_id("K").await?,
            user: self.by.user.clone(),
            name: "enrolled".to_owned(),
            public_key: key.to_openssh().map_err(|e| store(e.to_string()))?,
            algorithm: key.algorithm().to_string(),
            fingerprint: self.fingerprint.clone(),
            status: KeyStatus::Active,
            added_at: now,
            expires_at: expires_at.map_err(|e| store(e.to_string()))?,
            last_used_at: Some(now),
            replaces: None,
            retires_at: None,
            warned: None,
            revoked: None,
            verify_required: false,
        })
    }
}

/// A connection whose peer gave everything that an enrolment takes; what is left is to store it.
pub struct Confirmed(Enrolling);

impl Confirmed {
    /// Who enrols.
    pub fn user(&self) -> &UserName {
        self.0.user()
    }

    /// The fingerprint of the key that will be added; `None` if the key is the user's already.
    pub fn new_key(&self) -> Option<String> {
        self.0.new_key()
    }

    /// The one who only named that key as theirs, and from whom it is taken.
    pub fn claims_from(&self) -> Option<&UserName> {
        self.0.claims_from()
    }

    /// Whether a second factor will be added.
    pub fn is_new_factor(&self) -> bool {
        self.0.new_factor().is_some()
    }

    /// Spends this state and the invitation for a login. Key and second factor are durable when this returns `Ok`.
    ///
    /// # Errors
    /// Why not; the login begins anew on another connection. The peer must not see which it was.
    pub async fn enrol(self, vault: &Vault, now: Timestamp) -> Result<Enrolled, LoginFault> {
        let login = self.0.store(vault, now).await?;
        let recovery_codes = self.0.new_factor().map(|fresh| fresh.recovery_codes.clone());
        Ok(Enrolled { login, recovery_codes })
    }
}

/// A finished enrolment.
pub struct Enrolled {
    /// The login it is, too.
    pub login: Authenticated,
    /// The recovery codes of a new second factor, to be shown now and never again.
    pub recovery_codes: Option<Vec<String>>,
}

/// The user, if `code` is their invitation's. Reads the same records whoever asks.
async fn check(
    vault: &Vault,
    (user, source): (&str, IpAddr),
    code: &str,
    now: Timestamp,
) -> Result<UserName, LoginFault> {
    let name = user.parse::<UserName>();
    let id = name.as_ref().map_or("-", UserName::as_str);
    let (user, invitation) = (vault.get::<User>(id).await, vault.get::<Invitation>(id).await);
    let given = hash(code);
    let user = user?.filter(|_| name.is_ok()).ok_or(LoginFault::UnknownUser)?;
    if let Some(why) = user.barred(now) {
        return Err(LoginFault::Barred(why));
    }
    if user.kind == UserKind::Service {
        return Err(LoginFault::WrongInvitation);
    }
    match invitation? {
        Some(invitation) if open(&invitation, now) && invitation.code == given => {
            // As with a key: an invitation is no way in from elsewhere.
            if user.comes_from(source) { Ok(user.name) } else { Err(LoginFault::WrongNetwork) }
        }
        _ => Err(LoginFault::WrongInvitation),
    }
}

async fn unbarred(vault: &Vault, user: &UserName, now: Timestamp) -> Result<User, LoginFault> {
    let user = vault.get::<User>(user.as_str()).await?.ok_or(LoginFault::UnknownUser)?;
    user.barred(now).map_or(Ok(user), |why| Err(LoginFault::Barred(why)))
}

/// A key that has expired is exchanged and opens nothing else; it enrols nothing.
async fn whole(vault: &Vault, (key, user): (&str, &str), now: Timestamp) -> Result<(), LoginFault> {
    let held = vault.get::<UserKey>(key).await?.ok_or(LoginFault::UnknownKey)?;
    usable(&held, user, NO_GRACE, now).map(drop)
}

async fn begin(vault: &Vault, user: &UserName, now: Timestamp) -> Result<Factor, LoginFault> {
    if vault.get::<SecondFactor>(user.as_str()).await?.is_some() {
        return Ok(Factor::Held);
    }
    let fresh = mfa::fresh(user, now).map_err(|e| LoginFault::Store(e.to_string()))?;
    Ok(Factor::Fresh(Box::new(fresh)))
}

pub(super) fn open(invitation: &Invitation, now: Timestamp) -> bool {
    invitation.spent_at.is_none() && invitation.expires_at > now
}

fn hash(code: &str) -> [u8; 32] {
    Sha256::digest(mfa::normalised(code)).into()
}

/// For a key that must be in use.
const NO_GRACE: i64 = 0;
/// 80 random bits in base32.
const CODE_LENGTH: usize = 16;
/// Seconds an invitation is valid.
const VALID: i64 = 86_400;

#[cfg(test)]
mod tests;
