use std::sync::Arc;

use super::*;
use crate::backend::Memory;
use crate::record::CaKind;
use crate::seal::MasterKey;
use crate::ssh::SshSig;

fn vault() -> Vault {
    Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap())
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn terms(lifetime_secs: u64) -> CertTerms {
    CertTerms {
        login: "ubuntu".parse().unwrap(),
        key_id: "alice session 1".to_owned(),
        extensions: vec!["permit-pty"],
        lifetime_secs,
        source_address: Some("10.0.0.1/32".to_owned()),
    }
}

#[tokio::test]
async fn stored_signers_come_back_and_are_never_made_twice() {
    let vault = vault();
    assert!(matches!(Signers::load(&vault).await, Err(SigningError::Missing(_))));
    let made = Signers::create(&vault).await.unwrap();
    let loaded = Signers::load(&vault).await.unwrap();
    assert_eq!(made.authorities().user_ca.public_key(), loaded.authorities().user_ca.public_key());
    assert_ne!(
        made.authorities().user_ca.public_key().key_data(),
        made.authorities().host_ca.public_key().key_data()
    );
    assert!(Signers::create(&vault).await.is_err());
}

#[tokio::test]
async fn a_login_certificate_says_what_was_granted_for_five_minutes_at_most() {
    let signers = Signers::create(&vault()).await.unwrap();
    let credential = signers.authorities().user_ca.issue(terms(300), now()).unwrap();
    let certificate = credential.certificate();
    let at = u64::try_from(now().as_second()).unwrap();
    let trusted = [signers.authorities().user_ca.public_key().fingerprint(HashAlg::Sha256)];
    certificate.validate_at(at, &trusted).unwrap();
    assert!(certificate.validate_at(at + 240, &trusted).is_err(), "after its end");
    let other = [signers.authorities().host_ca.public_key().fingerprint(HashAlg::Sha256)];
    assert!(certificate.validate_at(at, &other).is_err(), "another CA");
    assert_eq!(certificate.valid_principals(), ["ubuntu"]);
    assert_eq!(certificate.extensions().keys().collect::<Vec<_>>(), ["permit-pty"]);
    assert_eq!(certificate.critical_options().get("source-address").unwrap(), "10.0.0.1/32");
    assert!(signers.authorities().user_ca.issue(terms(301), now()).is_err());
    assert!(signers.authorities().user_ca.issue(terms(0), now()).is_err());
}

#[tokio::test]
async fn a_credential_signs_as_its_certificate_says() {
    use russh::keys::signature::Verifier as _;
    let signers = Signers::create(&vault()).await.unwrap();
    let credential = signers.authorities().user_ca.issue(terms(60), now()).unwrap();
    let wire = credential.sign(b"login").unwrap();
    let signature = russh::keys::ssh_key::Signature::try_from(wire.as_slice()).unwrap();
    let key = PublicKey::from(credential.certificate().public_key().clone());
    key.key_data().verify(b"login", &signature).unwrap();
    assert!(key.key_data().verify(b"other", &signature).is_err());
}

#[tokio::test]
async fn a_host_certificate_names_its_hosts_and_one_for_all_hosts_is_refused() {
    let signers = Signers::create(&vault()).await.unwrap();
    let names = ["db-1".to_owned()];
    let certificate = signers.authorities().host_ca.certify(&names, &signers.host, now()).unwrap();
    assert_eq!(certificate.valid_principals(), ["db-1"]);
    assert_eq!(certificate.public_key(), signers.host.public_key().key_data());
    let at = u64::try_from(now().as_second()).unwrap();
    assert_eq!((certificate.valid_after(), certificate.valid_before()), (at - 300, at - 300 + 86_400));
    assert!(signers.authorities().host_ca.certify(&[], &signers.host, now()).is_err());
}

#[tokio::test]
async fn an_audit_signature_verifies_for_its_message_and_namespace_only() {
    let signers = Signers::create(&vault()).await.unwrap();
    let pem = signers.audit.sshsig("keyward-audit", b"checkpoint").unwrap();
    let signature = SshSig::from_pem(&pem).unwrap();
    let key = signers.audit.public_key();
    key.verify("keyward-audit", b"checkpoint", &signature).unwrap();
    assert!(key.verify("keyward-audit", b"other", &signature).is_err());
    assert!(key.verify("file", b"checkpoint", &signature).is_err());
}

#[tokio::test]
async fn a_successor_of_a_ca_is_trusted_beside_it_and_then_takes_its_place() {
    let vault = vault();
    let signers = Signers::create(&vault).await.unwrap();
    for which in CaKind::ALL {
        let line = |at: usize| signers.authorities().trusted(which)[at].to_openssh().unwrap();
        let before = line(0);
        assert!(
            matches!(retirement(&vault, which).await, Err(SigningError::Missing(_))),
            "none is announced"
        );
        let (announced, batch) = announcement(&vault, which, ("root".into(), now(), now())).await.unwrap();
        vault.commit(batch).await.unwrap();
        signers.reload(&vault).await.unwrap();
        assert_eq!(signers.authorities().trusted(which).len(), 2);
        assert_eq!(line(0), before, "the one before is the CA");
        let next = line(1);
        let (_, again) = announcement(&vault, which, ("root".into(), now(), now())).await.unwrap();
        assert!(vault.commit(again).await.is_err(), "one at a time");

        let (retired, batch) = retirement(&vault, which).await.unwrap();
        assert_eq!(retired, announced);
        vault.commit(batch).await.unwrap();
        let signers = Signers::load(&vault).await.unwrap();
        let trusted: Vec<_> =
            signers.authorities().trusted(which).iter().map(|k| k.to_openssh().unwrap()).collect();
        // The comment tells where a key lies, and is not part of it.
        assert_eq!(trusted[0].split(' ').nth(1), next.split(' ').nth(1));
        assert_eq!(trusted.len(), 1);
    }
}

#[tokio::test]
async fn a_held_key_is_there_once_committed_and_gone_once_forgotten() {
    let vault = vault();
    let (held, batch) = InstanceKey::make(Batch::default(), now()).unwrap();
    assert!(InstanceKey::load(&vault, &held).await.is_err());
    vault.commit(batch).await.unwrap();
    let key = InstanceKey::load(&vault, &held).await.unwrap();
    assert!(key.public_key().to_openssh().unwrap().starts_with(&held.public_key));
    vault.commit(InstanceKey::forget(Batch::default(), &held)).await.unwrap();
    assert!(InstanceKey::load(&vault, &held).await.is_err());
}
