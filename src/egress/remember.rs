//! What is remembered of an instance having accepted what it was entered with. Whoever sees it says so, here: a session,
//! or a visit of Keyward's own.
//!
//! Nothing is written of an instance that was removed meanwhile, nor of another that has its name by now.

use jiff::Timestamp;
use keystore::{Accepted, Batch, Credential, Instance, Vault, failpoint};

use crate::audit::{AuditError, Event, Trail};

/// Why something was not remembered. It is noticed again at the next login there.
#[derive(Debug, thiserror::Error)]
pub enum NotRemembered {
    /// The store failed, or what it is about is there no more.
    #[error(transparent)]
    Store(#[from] keystore::Error),
    /// The trail failed.
    #[error(transparent)]
    Trail(#[from] AuditError),
}

/// The key `fingerprint` that Keyward holds for the account `id` logged in there: no one has to install it any more. Told
/// first; nothing happens if that is known, or if the key is another by now.
///
/// # Errors
/// [`NotRemembered`].
pub async fn proven(
    (vault, trail): (&Vault, &Trail),
    (id, fingerprint): (&str, &str),
    now: Timestamp,
) -> Result<(), NotRemembered> {
    let unproven = |held: &Credential| held.proven_at.is_none() && held.key.fingerprint == fingerprint;
    let Some(held) = vault.get::<Credential>(id).await?.filter(unproven) else { return Ok(()) };
    let (instance, login) = (held.instance.to_string(), held.login.to_string());
    let event = Event::CredentialProven { instance, login, key: fingerprint.to_owned() };
    let written = async {
        failpoint::reach("credential.prove.told");
        let prove = |credential: &mut Credential| {
            if unproven(credential) {
                (credential.proven_at, credential.tried_at, credential.fault) = (Some(now), Some(now), None);
            }
            Ok(())
        };
        vault.update(id, prove).await
    };
    trail.ahead_of(vec![event], now, written).await
}

/// `instance` accepted a certificate of the user CA with the fingerprint `ca`.
///
/// # Errors
/// The store's; [`keystore::Error::Changed`] if the instance is there no more.
pub async fn accepted(
    vault: &Vault,
    instance: &Instance,
    ca: &str,
    now: Timestamp,
) -> Result<(), keystore::Error> {
    let known = vault.get::<Accepted>(instance.name.as_str()).await?;
    if known.is_some_and(|known| known.ca == ca) {
        return Ok(());
    }
    let accepted = Accepted { instance: instance.name.clone(), ca: ca.to_owned(), since: now };
    vault.commit(Batch::default().if_unchanged(instance)?.put(&accepted)?).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keystore::seal::MasterKey;
    use keystore::signing::Signers;
    use keystore::{HeldKey, HostTrust, SignsIn};

    use super::*;
    use crate::audit::Filter;
    use crate::auth::testing::{Meddled, at};

    struct Stage {
        store: Arc<Meddled>,
        vault: Vault,
        trail: Trail,
        _dir: tempfile::TempDir,
    }

    async fn stage() -> Stage {
        let (store, dir) = (Arc::new(Meddled::default()), tempfile::tempdir().unwrap());
        let vault = Vault::new(store.clone(), MasterKey::generate().unwrap());
        vault.initialise().await.unwrap();
        let signers = Signers::create(&vault).await.unwrap();
        let trail = Trail::open(dir.path(), signers.audit.clone()).unwrap();
        Stage { store, vault, trail, _dir: dir }
    }

    fn credential(fingerprint: &str) -> Credential {
        let (fingerprint, public_key) = (fingerprint.to_owned(), String::new());
        Credential {
            instance: "db-1".parse().unwrap(),
            login: "ubuntu".parse().unwrap(),
            key: HeldKey { fingerprint, public_key, made_at: at(0) },
            proven_at: None,
            next: None,
            installed: false,
            old: None,
            tried_at: None,
            fault: Some("its key was never accepted".to_owned()),
        }
    }

    fn told(trail: &Trail) -> Vec<String> {
        let told = trail.query(&Filter::default()).unwrap();
        told.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_key_that_logged_in_is_told_of_once_and_then_written_down() {
        let Stage { vault, trail, .. } = &stage().await;
        vault.insert(&credential("SHA256:held")).await.unwrap();
        for (key, expected) in
            [("SHA256:another", None), ("SHA256:held", Some(at(2))), ("SHA256:held", Some(at(2)))]
        {
            proven((vault, trail), ("db-1/ubuntu", key), at(2)).await.unwrap();
            let held = vault.get::<Credential>("db-1/ubuntu").await.unwrap().unwrap();
            assert_eq!((held.proven_at, held.fault.is_none()), (expected, expected.is_some()), "{key}");
        }
        assert_eq!(told(trail), ["credential_proven"]);
    }

    #[tokio::test]
    async fn a_credential_that_is_removed_while_it_is_proven_does_not_come_back() {
        let Stage { store, vault, trail, .. } = &stage().await;
        vault.insert(&credential("SHA256:held")).await.unwrap();
        store.removes_before_write("credential/db-1/ubuntu", "credential/db-1/ubuntu");
        let proving = proven((vault, trail), ("db-1/ubuntu", "SHA256:held"), at(2)).await;
        assert!(matches!(proving, Err(NotRemembered::Store(keystore::Error::NotFound { .. }))));
        assert!(vault.get::<Credential>("db-1/ubuntu").await.unwrap().is_none());
        assert_eq!(told(trail), ["credential_proven", "change_failed"]);
    }

    #[tokio::test]
    async fn what_an_instance_accepted_is_remembered_of_it_and_not_of_one_that_was_removed_meanwhile() {
        let Stage { store, vault, .. } = &stage().await;
        let instance = Instance {
            name: "db-1".parse().unwrap(),
            aliases: [].into(),
            address: "192.0.2.9:22".parse().unwrap(),
            logins: ["ubuntu".parse().unwrap()].into(),
            labels: [].into(),
            host_trust: HostTrust::Pinned(Vec::new()),
            credential: SignsIn::Certificate,
            added_at: at(0),
        };
        vault.insert(&instance).await.unwrap();
        accepted(vault, &instance, "SHA256:first", at(1)).await.unwrap();
        let known = async || vault.get::<Accepted>("db-1").await.unwrap().map(|accepted| accepted.ca);
        assert_eq!(known().await.as_deref(), Some("SHA256:first"));
        store.removes_before_write("ca-accepted/db-1", "instance/db-1");
        let refused = accepted(vault, &instance, "SHA256:next", at(2)).await.unwrap_err();
        assert!(matches!(refused, keystore::Error::Changed { kind: "instance", .. }), "{refused}");
        assert_eq!(known().await.as_deref(), Some("SHA256:first"));
    }
}
