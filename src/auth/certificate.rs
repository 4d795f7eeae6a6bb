//! Logins by a certificate of somebody else's authority: for users who have no key of their own here.
//!
//! Takes a certificate whose key has signed and mints [`KeyVerified`]; a second factor is due as for everyone. A certificate
//! that let somebody in is looked at again for as long as they are in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use keystore::rules::Accepted;
use keystore::ssh::{Certificate, PublicKey};
use keystore::user_ca::{CertFault, Presented, UserCas, demands_verification, named};
use keystore::{KeyRules, KeyStatus, User, UserKey, UserName, Vault};

use sha2::{Digest, Sha256};

use super::{KeyVerified, LoginFault, Unauthenticated};

/// Whose certificates count, and which have let somebody in.
pub struct Certificates {
    trusted: ArcSwap<Trusted>,
    used: Mutex<HashMap<CertificateId, Used>>,
}

enum Trusted {
    /// None are configured.
    Nobody,
    These(UserCas),
    /// Their files cannot be read: nobody is let in on what they may have withdrawn.
    Unreadable,
}

struct Used {
    user: UserName,
    certificate: Arc<Certificate>,
}

/// Which certificate a login was made with: one key may come with several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateId([u8; 32]);

impl CertificateId {
    /// Its own bytes, hashed. What cannot be written down is like nothing else.
    fn of(certificate: &Certificate) -> Option<Self> {
        certificate.to_bytes().ok().map(|bytes| Self(Sha256::digest(bytes).into()))
    }
}

/// A certificate and a signature by its key; the caller has verified the signature.
#[derive(Debug, Clone, Copy)]
pub struct SignedCertificate<'a> {
    /// The certificate.
    pub certificate: &'a Certificate,
    /// Its key is a security key's, which says that it verified its user.
    pub user_verified: bool,
}

impl Certificates {
    /// Those of `authorities`; `None`: nobody's.
    pub fn of(authorities: Option<UserCas>) -> Arc<Self> {
        let trusted = ArcSwap::from_pointee(Trusted::from(authorities));
        Arc::new(Self { trusted, used: Mutex::default() })
    }

    /// From now on those of `authorities` count.
    pub fn trust(&self, authorities: Option<UserCas>) {
        self.trusted.store(Arc::new(authorities.into()));
    }

    /// None counts until [`trust`](Self::trust) is said again.
    pub fn distrust(&self) {
        self.trusted.store(Arc::new(Trusted::Unreadable));
    }

    /// Whether `user`, of whose keys all are among `keys`, comes with a certificate: somebody's count here, and no key of
    /// the user's own stands before them.
    pub fn may_bring(&self, user: &UserName, keys: &[UserKey], now: Timestamp) -> bool {
        let mut theirs = keys.iter().filter(|key| key.user == *user);
        !matches!(&**self.trusted.load(), Trusted::Nobody) && !theirs.any(|key| bars(key, now))
    }

    /// The certificate with which `user` came in, if it was one: its words, and whether it still counts.
    pub fn standing(
        &self,
        user: &UserName,
        with: Option<CertificateId>,
        now: Timestamp,
    ) -> Option<(String, bool)> {
        let certificate = match self.used().get(&with?) {
            Some(used) if used.user == *user => Arc::clone(&used.certificate),
            _ => return None,
        };
        let counts = self.still(&certificate, now).is_ok();
        let until =
            i64::try_from(certificate.valid_before()).ok().and_then(|end| Timestamp::from_second(end).ok());
        let until = until.map_or_else(String::new, |end| format!(", valid until {end}"));
        Some((format!("{}{until}", named(&certificate)), counts))
    }

    /// Whether the key of a certificate that somebody came in with is of a kind that is `accepted`.
    pub fn kind_accepted(&self, with: Option<CertificateId>, accepted: &Accepted) -> bool {
        let certificate =
            with.and_then(|with| self.used().get(&with).map(|used| Arc::clone(&used.certificate)));
        certificate.is_some_and(|certificate| accepted.takes(&certified(&certificate)).is_ok())
    }

    /// A certificate that is *offered* is worth a signature. This is no proof of anything.
    ///
    /// # Errors
    /// Why it is not. The peer must not see it.
    pub async fn offered(
        &self,
        vault: &Vault,
        (presented, rules): (&Presented<'_>, &KeyRules),
        now: Timestamp,
    ) -> Result<(), LoginFault> {
        self.find(vault, (presented, rules), now).await.map(drop)
    }

    async fn find(
        &self,
        vault: &Vault,
        (presented, rules): (&Presented<'_>, &KeyRules),
        now: Timestamp,
    ) -> Result<User, LoginFault> {
        let name = presented.user.parse::<UserName>().map_err(|_| LoginFault::UnknownUser)?;
        let user = vault.get::<User>(name.as_str()).await?.ok_or(LoginFault::UnknownUser)?;
        let presented = Presented { max_age: rules.of(&user).max_age_of(user.kind), ..*presented };
        self.judge(&presented, &rules.accepted, now)?;
        if let Some(why) = user.barred(now) {
            return Err(LoginFault::Barred(why));
        }
        none_of_their_own(vault, &user.name, presented.certificate, now).await?;
        if !user.comes_from(presented.source) {
            return Err(LoginFault::WrongNetwork);
        }
        Ok(user)
    }

    fn judge(
        &self,
        presented: &Presented<'_>,
        accepted: &Accepted,
        now: Timestamp,
    ) -> Result<(), LoginFault> {
        match &**self.trusted.load() {
            Trusted::Nobody => Err(LoginFault::UnknownKey),
            Trusted::Unreadable => Err(LoginFault::Store("the user CA's files cannot be read".to_owned())),
            Trusted::These(cas) => Ok(cas.judge(presented, accepted, now)?),
        }
    }

    fn still(&self, certificate: &Certificate, now: Timestamp) -> Result<(), CertFault> {
        match &**self.trusted.load() {
            Trusted::These(cas) => cas.still(certificate, now),
            Trusted::Nobody | Trusted::Unreadable => Err(CertFault::UnknownAuthority),
        }
    }

    fn note(&self, user: &UserName, certificate: &Arc<Certificate>, now: Timestamp) {
        let ended = |used: &Used| {
            i64::try_from(used.certificate.valid_before()).is_ok_and(|end| end <= now.as_second())
        };
        let mut used = self.used();
        used.retain(|_, used| !ended(used));
        if let Some(id) = CertificateId::of(certificate) {
            used.insert(id, Used { user: user.clone(), certificate: Arc::clone(certificate) });
        }
    }

    fn used(&self) -> MutexGuard<'_, HashMap<CertificateId, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Option<UserCas>> for Trusted {
    fn from(authorities: Option<UserCas>) -> Self {
        authorities.map_or(Self::Nobody, Self::These)
    }
}

impl From<CertFault> for LoginFault {
    fn from(fault: CertFault) -> Self {
        Self::Certificate(fault)
    }
}

impl Unauthenticated {
    /// Spends this state for a certificate whose key has signed this session's authentication request.
    ///
    /// # Errors
    /// This state again, and why. The peer must not see which it was.
    pub async fn certificate_verified(
        self,
        vault: &Vault,
        by: &Arc<Certificates>,
        (user, signed): (&str, SignedCertificate<'_>),
        now: Timestamp,
    ) -> Result<KeyVerified, (Self, LoginFault)> {
        let SignedCertificate { certificate, user_verified } = signed;
        let presented = Presented { certificate, user, source: self.source.ip(), max_age: 0 };
        let verifies = demands_verification(certificate);
        match by.find(vault, (&presented, &self.rules), now).await {
            Ok(_) if verifies && !user_verified => Err((self, LoginFault::UserNotVerified)),
            Ok(user) => Ok(KeyVerified {
                user: user.name,
                fingerprint: UserKey::fingerprint_of(&certified(certificate)),
                source: self.source,
                rules: self.rules,
                verifies,
                voided: false,
                certificate: Some(Certified {
                    certificate: Arc::new(certificate.clone()),
                    by: Arc::clone(by),
                }),
            }),
            Err(fault) => Err((self, fault)),
        }
    }
}

/// A certificate that counted when it was presented.
#[derive(Clone)]
pub(super) struct Certified {
    certificate: Arc<Certificate>,
    by: Arc<Certificates>,
}

impl Certified {
    /// Whether it still counts, for a user who still has no key.
    pub(super) async fn counts(
        &self,
        vault: &Vault,
        user: &UserName,
        now: Timestamp,
    ) -> Result<(), LoginFault> {
        self.by.still(&self.certificate, now)?;
        none_of_their_own(vault, user, &self.certificate, now).await
    }

    /// It let `user` in.
    pub(super) fn used(&self, user: &UserName, now: Timestamp) {
        self.by.note(user, &self.certificate, now);
    }

    pub(super) fn id(&self) -> Option<CertificateId> {
        CertificateId::of(&self.certificate)
    }

    pub(super) fn named(&self) -> String {
        named(&self.certificate)
    }
}

/// Certificates are for who has no key here; and a key that was ever known here counts, or does not, by its own record.
async fn none_of_their_own(
    vault: &Vault,
    user: &UserName,
    certificate: &Certificate,
    now: Timestamp,
) -> Result<(), LoginFault> {
    let print = UserKey::fingerprint_of(&certified(certificate));
    for key in vault.list::<UserKey>().await? {
        let status = key.status_at(now);
        if key.fingerprint == print {
            return Err(LoginFault::KeyUnusable(status));
        }
        if key.user == *user && bars(&key, now) {
            return Err(LoginFault::HasKey);
        }
    }
    Ok(())
}

/// Whether a key keeps its user's certificates out: one that has expired does, since its user exchanges it.
fn bars(key: &UserKey, now: Timestamp) -> bool {
    !matches!(key.status_at(now), KeyStatus::Revoked | KeyStatus::Retired)
}

fn certified(certificate: &Certificate) -> PublicKey {
    PublicKey::from(certificate.public_key().clone())
}

#[cfg(test)]
mod tests {
    use keystore::Ended;
    use keystore::rules::KeyKind;
    use keystore::signing::{CertTerms, Signers};

    use super::*;
    use crate::auth::testing::*;
    use crate::auth::{Authenticated, mfa};

    /// carol, enrolled, without a key; an authority that is trusted, and a certificate of hers.
    struct Stage {
        vault: Vault,
        by: Arc<Certificates>,
        authority: String,
        certificate: Certificate,
    }

    impl Stage {
        async fn new() -> Self {
            let (vault, corp) = (vault().await, empty_vault());
            vault.insert(&user("carol", &["engineer"])).await.unwrap();
            mfa::enroll(&vault, &"carol".parse().unwrap(), at(0)).await.unwrap();
            let signers = Signers::create(&corp).await.unwrap();
            let terms = CertTerms {
                login: "carol".parse().unwrap(),
                key_id: "carol@corp".to_owned(),
                extensions: Vec::new(),
                lifetime_secs: 300,
                source_address: None,
            };
            let certificate =
                signers.authorities().user_ca.issue(terms, at(0)).unwrap().certificate().clone();
            let authority = signers.authorities().user_ca.public_key().to_openssh().unwrap();
            let by = Certificates::of(Some(UserCas::read(&authority, None).unwrap()));
            Self { vault, by, authority, certificate }
        }

        fn revoke(&self, lines: &str) {
            self.by.trust(Some(UserCas::read(&self.authority, Some(lines.as_bytes())).unwrap()));
        }

        async fn proves(&self, user: &str, now: Timestamp) -> Result<KeyVerified, LoginFault> {
            let signed = SignedCertificate { certificate: &self.certificate, user_verified: false };
            let asked = unauthenticated().certificate_verified(&self.vault, &self.by, (user, signed), now);
            asked.await.map_err(|(_, fault)| fault)
        }

        async fn gives_code(&self, key: KeyVerified, now: Timestamp) -> Result<Authenticated, LoginFault> {
            let code = code(&self.vault, "carol", now).await;
            key.with_second_factor(&self.vault, "carol", &code, now).await.map_err(|(_, fault)| fault)
        }

        fn standing(&self, now: Timestamp) -> Option<bool> {
            let id = CertificateId::of(&self.certificate);
            self.by.standing(&"carol".parse().unwrap(), id, now).map(|(_, counts)| counts)
        }
    }

    #[tokio::test]
    async fn a_certificate_and_a_code_make_a_login_that_lasts_as_long_as_the_certificate() {
        let stage = Stage::new().await;
        assert_eq!(stage.standing(at(0)), None, "nobody came with it yet");
        let key = stage.proves("carol", at(0)).await.ok().unwrap();
        let key = key.without_code(&stage.vault, None, at(0)).await.err().unwrap();
        let login = stage.gives_code(key, at(0)).await.ok().unwrap();
        assert!(login.certificate().unwrap().contains("carol@corp"));
        assert_eq!((stage.standing(at(200)), stage.standing(at(300))), (Some(true), Some(false)));
        let kinds = |kinds: &[KeyKind]| {
            stage.by.kind_accepted(login.certificate_id(), &kinds.iter().copied().collect::<Accepted>())
        };
        assert!(kinds(&[KeyKind::Ed25519, KeyKind::Rsa4096]) && !kinds(&[KeyKind::SkEd25519]));
        assert!(
            !stage.by.kind_accepted(None, &Accepted::default()),
            "who came with none has none that counts"
        );
        stage.revoke("id: carol@corp\n");
        assert_eq!(stage.standing(at(1)), Some(false));
        stage.revoke("id: bob@corp\n");
        assert_eq!(stage.standing(at(1)), Some(true));
        stage.by.distrust();
        assert_eq!(stage.standing(at(1)), Some(false));
        assert!(matches!(stage.proves("carol", at(1)).await.err(), Some(LoginFault::Store(_))));
    }

    #[tokio::test]
    async fn it_is_for_its_user_alone_and_only_without_a_key_here() {
        let stage = Stage::new().await;
        let other = LoginFault::Certificate(CertFault::OtherPrincipal);
        assert_eq!(stage.proves("alice", at(0)).await.err(), Some(other));
        assert_eq!(stage.proves("nobody", at(0)).await.err(), Some(LoginFault::UnknownUser));
        let key = stage.proves("carol", at(0)).await.ok().unwrap();
        let code = code(&stage.vault, "alice", at(0)).await;
        let changed = key.with_second_factor(&stage.vault, "alice", &code, at(0)).await.err().unwrap().1;
        assert_eq!(changed, LoginFault::UserChanged);
        let carol = "carol".parse().unwrap();
        assert!(stage.by.may_bring(&carol, &[], at(0)));
        let held = user_key("carol", &public_key(9));
        stage.vault.insert(&held).await.unwrap();
        assert_eq!(stage.proves("carol", at(0)).await.err(), Some(LoginFault::HasKey));
        assert!(!stage.by.may_bring(&carol, std::slice::from_ref(&held), at(0)));
        assert!(stage.by.may_bring(&"dave".parse().unwrap(), &[held], at(0)), "it is not his");
        stage.by.trust(None);
        assert_eq!(stage.proves("carol", at(0)).await.err(), Some(LoginFault::UnknownKey));
        assert!(!stage.by.may_bring(&carol, &[], at(0)));
    }

    #[tokio::test]
    async fn what_happens_between_certificate_and_code_counts() {
        for between in ["nothing", "suspended", "revoked", "untrusted", "has a key", "key revoked", "expired"]
        {
            let stage = Stage::new().await;
            let key = stage.proves("carol", at(0)).await.ok().unwrap();
            let mut now = at(1);
            match between {
                "suspended" => {
                    let suspend = |u: &mut User| {
                        u.suspended = Some(Ended { at: at(0), reason: "left".to_owned() });
                        Ok::<_, keystore::Error>(())
                    };
                    stage.vault.update("carol", suspend).await.unwrap();
                }
                "revoked" => stage.revoke(&format!("serial: {}\n", stage.certificate.serial())),
                "untrusted" => stage.by.trust(None),
                "has a key" => stage.vault.insert(&user_key("carol", &public_key(9))).await.unwrap(),
                "key revoked" => {
                    let mut held = user_key("carol", &certified(&stage.certificate));
                    held.status = KeyStatus::Revoked;
                    stage.vault.insert(&held).await.unwrap();
                }
                "expired" => now = at(300),
                _ => {}
            }
            assert_eq!(stage.gives_code(key, now).await.is_ok(), between == "nothing", "{between}");
            assert_eq!(stage.standing(now).is_some(), between == "nothing", "{between}");
        }
    }
}
