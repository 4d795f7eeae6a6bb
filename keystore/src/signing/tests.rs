use std::sync::Arc;

use super::*;
use crate::backend::Memory;
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
    assert_eq!(made.user_ca.public_key(), loaded.user_ca.public_key());
    assert_ne!(made.user_ca.public_key().key_data(), made.host_ca.public_key().key_data());
    assert!(Signers::create(&vault).await.is_err());
}

#[tokio::test]
async fn a_login_certificate_says_what_was_granted_for_five_minutes_at_most() {
    let signers = Signers::create(&vault()).await.unwrap();
    let credential = signers.user_ca.issue(terms(300), now()).unwrap();
    let certificate = credential.certificate();
    let at = u64::try_from(now().as_second()).unwrap();
    let trusted = [signers.user_ca.public_key().fingerprint(HashAlg::Sha256)];
    certificate.validate_at(at, &trusted).unwrap();
    assert!(certificate.validate_at(at + 240, &trusted).is_err(), "after its end");
    let other = [signers.host_ca.public_key().fingerprint(HashAlg::Sha256)];
    assert!(certificate.validate_at(at, &other).is_err(), "another CA");
    assert_eq!(certificate.valid_principals(), ["ubuntu"]);
    assert_eq!(certificate.extensions().keys().collect::<Vec<_>>(), ["permit-pty"]);
    assert_eq!(certificate.critical_options().get("source-address").unwrap(), "10.0.0.1/32");
    assert!(signers.user_ca.issue(terms(301), now()).is_err());
    assert!(signers.user_ca.issue(terms(0), now()).is_err());
}

#[tokio::test]
async fn a_credential_signs_as_its_certificate_says() {
    use russh::keys::signature::Verifier as _;
    let signers = Signers::create(&vault()).await.unwrap();
    let credential = signers.user_ca.issue(terms(60), now()).unwrap();
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
    let certificate = signers.host_ca.certify(&names, &signers.host, now()).unwrap();
    assert_eq!(certificate.valid_principals(), ["db-1"]);
    assert_eq!(certificate.public_key(), signers.host.public_key().key_data());
    let at = u64::try_from(now().as_second()).unwrap();
    assert_eq!((certificate.valid_after(), certificate.valid_before()), (at - 300, at - 300 + 86_400));
    assert!(signers.host_ca.certify(&[], &signers.host, now()).is_err());
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
