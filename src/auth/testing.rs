//! A small populated vault, for the unit tests of this room and of those above it. Not part of the program.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;
use keystore::backend::{
    Backend, BackendError, Compacted, Lease, Memory, Outcome, Transaction, Versioned, Watch, Write,
};
use keystore::seal::MasterKey;
use keystore::ssh::PublicKey;
use keystore::{KeyStatus, SecondFactor, User, UserKey, Vault};

use super::{Authenticated, Unauthenticated};
use crate::guard::{Guard, Limits};

/// How long expired keys can be exchanged, in seconds.
pub(crate) const GRACE: i64 = 14 * 86_400;

/// A fixed moment, `second` seconds after the start of a TOTP step.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A public key that nobody holds the private part of.
pub(crate) fn public_key(n: u8) -> PublicKey {
    let mut wire = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
    wire.extend([n; 32]);
    PublicKey::from_openssh(&format!("ssh-ed25519 {}", data_encoding::BASE64.encode(&wire))).unwrap()
}

pub(crate) fn user(name: &str, roles: &[&str]) -> User {
    User {
        name: name.parse().unwrap(),
        roles: roles.iter().map(|r| r.parse().unwrap()).collect(),
        kind: Default::default(),
        added_at: at(0),
        expires_at: None,
        suspended: None,
        from: Vec::new(),
    }
}

pub(crate) fn user_key(name: &str, key: &PublicKey) -> UserKey {
    UserKey {
        id: "K1".to_owned(),
        user: name.parse().unwrap(),
        name: "laptop".to_owned(),
        public_key: key.to_openssh().unwrap(),
        algorithm: key.algorithm().to_string(),
        fingerprint: UserKey::fingerprint_of(key),
        status: KeyStatus::Active,
        added_at: at(0),
        expires_at: at(90 * 86_400),
        last_used_at: None,
        replaces: None,
        retires_at: None,
        warned: None,
        revoked: None,
        verify_required: false,
    }
}

/// A store in memory that others get at in between, and that can fail.
#[derive(Default)]
pub(crate) struct Meddled {
    inner: Memory,
    /// Before the next transaction that writes this key, somebody is faster with that one.
    pub(crate) before: Mutex<Option<(String, Transaction)>>,
    /// How often a range was read.
    pub(crate) ranges: AtomicUsize,
    /// Reading fails.
    pub(crate) fails: AtomicBool,
}

impl Meddled {
    /// Before the key is written the next time, it is removed.
    pub(crate) fn removes_before_write(&self, wanted: &str, removed: &str) {
        let writes = vec![Write::Delete(removed.to_owned().into())];
        let faster = Transaction { guards: Vec::new(), writes };
        *self.before.lock().unwrap() = Some((wanted.to_owned(), faster));
    }
}

impl Backend for Meddled {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Versioned>, BackendError>> {
        self.inner.get(key)
    }

    fn range<'a>(&'a self, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<(Bytes, Versioned)>, BackendError>> {
        self.ranges.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return ready(Err(BackendError::Damaged("for a test".to_owned()))).boxed();
        }
        self.inner.range(prefix)
    }

    fn transact(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome, BackendError>> {
        let writes = |key: &str| {
            transaction
                .writes
                .iter()
                .any(|write| matches!(write, Write::Put(put, _) if *put == key.as_bytes()))
        };
        let faster = self.before.lock().unwrap().take_if(|(key, _)| writes(key));
        async move {
            if let Some((_, faster)) = faster {
                self.inner.transact(faster).await?;
            }
            self.inner.transact(transaction).await
        }
        .boxed()
    }

    fn lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, BackendError>> {
        self.inner.lease(ttl)
    }

    fn renew(&self, lease: Lease) -> BoxFuture<'_, Result<bool, BackendError>> {
        self.inner.renew(lease)
    }

    fn watch<'a>(&'a self, prefix: &'a [u8], after: u64) -> BoxFuture<'a, Result<Watch, BackendError>> {
        self.inner.watch(prefix, after)
    }

    fn revision(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        self.inner.revision()
    }

    fn history(&self) -> BoxFuture<'_, Result<u64, BackendError>> {
        self.inner.history()
    }

    fn newest(&self) -> BoxFuture<'_, Result<Option<(u64, String)>, BackendError>> {
        self.inner.newest()
    }

    fn compact_at(&self, newest: Option<u64>) -> BoxFuture<'_, Result<Option<Compacted>, BackendError>> {
        self.inner.compact_at(newest)
    }
}

pub(crate) fn empty_vault() -> Vault {
    Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap())
}

/// alice (key 1, enrolled), bob (key 2, not enrolled).
pub(crate) async fn vault() -> Vault {
    let vault = empty_vault();
    people(&vault).await;
    vault
}

/// The same people, in a vault that there is.
pub(crate) async fn people(vault: &Vault) {
    for (n, name) in [(1, "alice"), (2, "bob")] {
        vault.insert(&user(name, &["engineer"])).await.unwrap();
        vault.insert(&user_key(name, &public_key(n))).await.unwrap();
    }
    super::mfa::enroll(vault, &"alice".parse().unwrap(), at(0)).await.unwrap();
}

/// What the user's authenticator shows at `when`.
pub(crate) async fn code(vault: &Vault, user: &str, when: Timestamp) -> String {
    let factor = vault.get::<SecondFactor>(user).await.unwrap().unwrap();
    let totp = totp_rs::Builder::new().with_secret(factor.secret.clone()).build().unwrap();
    totp.generate(u64::try_from(when.as_second()).unwrap()).to_string()
}

pub(crate) fn unauthenticated() -> Unauthenticated {
    let admitted = Guard::new(Limits::default()).admit("192.0.2.7:4022".parse().unwrap(), at(0)).unwrap();
    Unauthenticated::new(&admitted, &Default::default())
}

/// A login of a new user with these roles, by the real chain, from 192.0.2.7.
pub(crate) async fn login(name: &str, roles: &[&str], now: Timestamp) -> Authenticated {
    let (vault, key) = (empty_vault(), public_key(9));
    vault.insert(&user(name, roles)).await.unwrap();
    vault.insert(&user_key(name, &key)).await.unwrap();
    super::mfa::enroll(&vault, &name.parse().unwrap(), now).await.unwrap();
    let code = code(&vault, name, now).await;
    let verified = unauthenticated().key_verified(&vault, name, &key, now).await.ok().unwrap();
    verified.with_second_factor(&vault, name, &code, now).await.ok().unwrap()
}
