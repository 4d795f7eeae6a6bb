//! What the keys of people must be, and how long they live: terms for everyone, terms of roles, accepted kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use russh::keys::ssh_key::public::{KeyData, RsaPublicKey};

use crate::lifecycle::Terms;
use crate::record::{Role, User};
use crate::signing::KeyFault;
use crate::ssh::PublicKey;

/// The rules for keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRules {
    /// How long the keys of those live whose roles have no terms of their own.
    pub base: Terms,
    /// What roles have of their own.
    pub roles: BTreeMap<Role, RoleTerms>,
    /// The kinds that are accepted, when a key is added and at each login.
    pub accepted: Accepted,
}

/// What a role has of its own; the rest is everyone's. In seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoleTerms {
    /// As [`Terms::max_age`], for services too.
    pub max_age: Option<i64>,
    /// As [`Terms::warn`].
    pub warn: Option<Vec<i64>>,
    /// As [`Terms::grace`].
    pub grace: Option<i64>,
    /// As [`Terms::overlap`].
    pub overlap: Option<i64>,
}

impl KeyRules {
    /// The terms of `user`: of each duration the shortest that any role has, where a role without one has everyone's;
    /// and every warning that any role asks for.
    pub fn of(&self, user: &User) -> Terms {
        self.of_roles(&user.roles)
    }

    /// The terms of whoever has exactly these roles.
    pub fn of_roles(&self, roles: &BTreeSet<Role>) -> Terms {
        let base = &self.base;
        let own = || roles.iter().map(|role| self.roles.get(role));
        let shortest = |everyones: i64, of: &dyn Fn(&RoleTerms) -> Option<i64>| {
            own().map(|role| role.and_then(of).unwrap_or(everyones)).min().unwrap_or(everyones)
        };
        let mut warn: Vec<i64> = own()
            .flat_map(|role| role.and_then(|role| role.warn.as_ref()).unwrap_or(&base.warn).iter().copied())
            .collect();
        if roles.is_empty() {
            warn.clone_from(&base.warn);
        }
        warn.sort_unstable_by(|a, b| b.cmp(a));
        warn.dedup();
        Terms {
            max_age: shortest(base.max_age, &|role| role.max_age),
            service_max_age: shortest(base.service_max_age, &|role| role.max_age),
            warn,
            grace: shortest(base.grace, &|role| role.grace),
            overlap: shortest(base.overlap, &|role| role.overlap),
        }
    }
}

/// A kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// `ssh-ed25519`.
    Ed25519,
    /// `sk-ssh-ed25519@openssh.com`.
    SkEd25519,
    /// `ssh-rsa` of 4096 to 8192 bits, which signs with SHA-2 (RFC 8332).
    Rsa4096,
}

impl FromStr for KeyKind {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "ed25519" => Ok(Self::Ed25519),
            "sk-ed25519" => Ok(Self::SkEd25519),
            "rsa-4096" => Ok(Self::Rsa4096),
            _ => Err(()),
        }
    }
}

/// The kinds of keys that people may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted(BTreeSet<KeyKind>);

impl Default for Accepted {
    /// Ed25519, in software or on a security key.
    fn default() -> Self {
        Self(BTreeSet::from([KeyKind::Ed25519, KeyKind::SkEd25519]))
    }
}

impl FromIterator<KeyKind> for Accepted {
    fn from_iter<I: IntoIterator<Item = KeyKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().collect())
    }
}

impl Accepted {
    /// Whether a key of this kind is accepted: for one that was added, and so found [sound](Self::admits), before.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn takes(&self, key: &PublicKey) -> Result<(), KeyFault> {
        match key.key_data() {
            KeyData::Ed25519(_) => self.has(KeyKind::Ed25519, KeyFault::NotHere),
            KeyData::SkEd25519(_) => self.has(KeyKind::SkEd25519, KeyFault::NotHere),
            KeyData::Rsa(key) => self.has(KeyKind::Rsa4096, KeyFault::Rsa).and_then(|()| strong(key)),
            KeyData::Dsa(_) => Err(KeyFault::Dsa),
            KeyData::Ecdsa(_) | KeyData::SkEcdsaSha2NistP256(_) => Err(KeyFault::Ecdsa),
            _ => Err(KeyFault::Garbage),
        }
    }

    /// Whether a key that nobody has looked at before is accepted: of its kind, and sound.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn admits(&self, key: &PublicKey) -> Result<(), KeyFault> {
        self.takes(key)?;
        let point = match key.key_data() {
            KeyData::Ed25519(point) => point.0,
            KeyData::SkEd25519(key) => key.public_key().0,
            _ => return Ok(()),
        };
        // RFC 8032 §5.1.3: not every 32 bytes are a point; and a point of small order verifies signatures of anyone.
        let point = ed25519_dalek::VerifyingKey::from_bytes(&point).map_err(|_| KeyFault::Garbage)?;
        if point.is_weak() { Err(KeyFault::Weak) } else { Ok(()) }
    }

    fn has(&self, kind: KeyKind, otherwise: KeyFault) -> Result<(), KeyFault> {
        if self.0.contains(&kind) { Ok(()) } else { Err(otherwise) }
    }
}

/// 4096 to 8192 bits, an odd modulus, and an odd public exponent from 65537 (FIPS 186-5 §A.1.1) to 32 bits.
fn strong(key: &RsaPublicKey) -> Result<(), KeyFault> {
    let modulus = key.n().as_positive_bytes().ok_or(KeyFault::Garbage)?;
    let exponent = key.e().as_positive_bytes().ok_or(KeyFault::Garbage)?;
    let leading = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !(4096..=8192).contains(&(modulus.len() * 8).saturating_sub(leading)) {
        return Err(KeyFault::RsaSize);
    }
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    let value = exponent.iter().take(5).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    if odd(modulus) && odd(exponent) && exponent.len() <= 4 && value >= 65_537 {
        Ok(())
    } else {
        Err(KeyFault::RsaWeak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use russh::keys::ssh_key::Mpint;

    fn rsa(bits: usize, e: &[u8], last: u8) -> PublicKey {
        let mut n = vec![0xff; bits.div_ceil(8)];
        n[0] = 0xff >> ((8 - bits % 8) % 8);
        *n.last_mut().unwrap() = last;
        let key = RsaPublicKey::new(Mpint::from_positive_bytes(e), Mpint::from_positive_bytes(&n));
        PublicKey::from(KeyData::Rsa(key.unwrap()))
    }

    const F4: &[u8] = &[1, 0, 1];

    #[test]
    fn rsa_is_accepted_by_configuration_only_and_not_too_small_nor_too_large() {
        let with: Accepted = [KeyKind::Ed25519, KeyKind::Rsa4096].into_iter().collect();
        assert_eq!(with.admits(&rsa(4096, F4, 0xff)), Ok(()));
        assert_eq!(Accepted::default().admits(&rsa(4096, F4, 0xff)), Err(KeyFault::Rsa));
        assert_eq!(with.admits(&rsa(8192, F4, 0xff)), Ok(()));
        for bits in [1024, 2048, 3072, 4095, 8193] {
            assert_eq!(with.admits(&rsa(bits, F4, 0xff)), Err(KeyFault::RsaSize), "{bits}");
        }
        for e in [&[3][..], &[1, 0, 0], &[1, 0, 0, 0, 1], &[0xff, 0xff]] {
            assert_eq!(with.admits(&rsa(4096, e, 0xff)), Err(KeyFault::RsaWeak), "{e:?}");
        }
        assert_eq!(with.admits(&rsa(4096, F4, 0xfe)), Err(KeyFault::RsaWeak), "an even modulus");
    }

    fn terms() -> impl Strategy<Value = RoleTerms> {
        let span = || prop::option::of(1..1000_i64);
        (span(), span(), span(), prop::option::of(prop::collection::vec(1..1000_i64, 0..3)))
            .prop_map(|(max_age, grace, overlap, warn)| RoleTerms { max_age, warn, grace, overlap })
    }

    proptest! {
        #[test]
        fn one_role_more_never_lengthens_a_life_and_never_loses_a_warning(
            of in prop::collection::vec(prop::option::of(terms()), 1..5),
        ) {
            let role = |n: usize| format!("role{n}").parse::<Role>().unwrap();
            let roles = of.iter().enumerate().filter_map(|(n, t)| Some((role(n), t.clone()?))).collect();
            let rules = KeyRules { roles, ..KeyRules::default() };
            let held = |count: usize| (0..count).map(role).collect::<BTreeSet<_>>();
            for count in 1..of.len() {
                let (fewer, more) = (rules.of_roles(&held(count)), rules.of_roles(&held(count + 1)));
                prop_assert!(more.max_age <= fewer.max_age && more.service_max_age <= fewer.service_max_age);
                prop_assert!(more.grace <= fewer.grace && more.overlap <= fewer.overlap);
                prop_assert!(fewer.warn.iter().all(|warning| more.warn.contains(warning)));
            }
        }

        #[test]
        fn a_role_without_terms_has_everyones(of in terms()) {
            let rules = KeyRules { roles: [("other".parse().unwrap(), of)].into(), ..KeyRules::default() };
            for roles in [BTreeSet::new(), BTreeSet::from(["engineer".parse::<Role>().unwrap()])] {
                prop_assert_eq!(rules.of_roles(&roles), Terms::default());
            }
        }
    }
}
