//! A key and its successor at the desk, for those to whom nothing else is open: in grace, or a service.

use jiff::Timestamp;
use keystore::{KeyStatus, SecondFactor, UserKind};
use tokio::sync::mpsc;

use super::*;
use crate::admin::{Caller, Chunk, Command, Output, SshKeys, Visitor, execute};
use crate::audit::Filter;

/// alice's key has been expired for a day, bob is a service, and the clock is the machine's.
async fn exchanging(dir: &Path) -> House {
    let house = house(dir).await;
    let now = Timestamp::now().as_second();
    let day = |days: i64| Timestamp::from_second(now + days * 86_400).unwrap();
    let expired = |key: &mut UserKey| {
        (key.added_at, key.expires_at) = (day(-91), day(-1));
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&print(1), expired).await.unwrap();
    let fresh = |key: &mut UserKey| {
        (key.id, key.expires_at) = ("K2".to_owned(), day(30));
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&print(2), fresh).await.unwrap();
    let service = |user: &mut User| {
        user.kind = UserKind::Service;
        user.from = vec!["192.0.2.0/24".parse().unwrap()];
        Ok::<_, keystore::Error>(())
    };
    house.vault.update("bob", service).await.unwrap();
    house
}

fn print(key: u8) -> String {
    UserKey::fingerprint_of(&testing::public_key(key))
}

/// As a login with `key` would be.
async fn caller(house: &House, key: u8) -> Caller {
    let key = held(house, key).await;
    let user = house.vault.get::<User>(key.user.as_str()).await.unwrap().unwrap();
    Caller::User(Visitor {
        user: key.user.clone(),
        roles: user.roles,
        source: "192.0.2.1".parse().unwrap(),
        certificate: None,
        service: user.kind == UserKind::Service,
        only_exchanges: key.status_at(Timestamp::now()) == KeyStatus::Expired,
        key: key.fingerprint,
    })
}

async fn held(house: &House, key: u8) -> UserKey {
    house.vault.get(&print(key)).await.unwrap().unwrap()
}

/// `ssh-keys rotate < NEW.pub` with the key `by`: exit code, and what was said.
async fn rotates(house: &House, by: u8, new: &str, old: Option<&str>) -> (u8, String) {
    let (user, file, name) = (None, None, None);
    let (old, file_text) = (old.map(str::to_owned), Some(new.to_owned()));
    let rotate = Command::SshKeys(SshKeys::Rotate { user, old, file, file_text, name });
    let (to, mut said) = mpsc::channel(64);
    let mut out = Output::new(to, false, None);
    let code = execute(house, &caller(house, by).await, rotate, &mut out).await;
    drop(out);
    let mut text = Vec::new();
    while let Some(Chunk::Out(bytes) | Chunk::Err(bytes)) = said.recv().await {
        text.extend_from_slice(&bytes);
    }
    (code, String::from_utf8(text).unwrap())
}

fn line(key: u8) -> String {
    testing::public_key(key).to_openssh().unwrap()
}

#[tokio::test]
async fn who_staged_the_wrong_key_in_grace_or_for_a_service_stages_another_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let house = exchanging(dir.path()).await;
    for (by, wrong, right) in [(1, 3, 6), (2, 9, 10)] {
        assert_eq!(rotates(&house, by, &line(wrong), None).await.0, 0);
        let (code, said) = rotates(&house, by, &line(right), None).await;
        assert!(code == 0 && said.contains("which waited, was withdrawn"), "{said}");
        let (wrong, right) = (held(&house, wrong).await, held(&house, right).await);
        assert_eq!((wrong.status, right.status), (KeyStatus::Revoked, KeyStatus::Pending));
        assert_eq!(right.replaces, Some(print(by)));
    }
    let told = house.trail.query(&Filter::default()).unwrap();
    let told: Vec<_> = told.iter().filter_map(|event| event["event"].as_str()).collect();
    let staged = ["ssh_key_added", "ssh_key_rotated"];
    let both = [&staged[..], &["ssh_key_revoked"], &staged[..]].concat();
    assert!(told.ends_with(&[both.clone(), both].concat()), "{told:?}");
}

#[tokio::test]
async fn a_successor_that_was_logged_in_with_is_not_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let house = exchanging(dir.path()).await;
    assert_eq!(rotates(&house, 2, &line(3), None).await.0, 0);
    let used = |key: &mut UserKey| {
        key.last_used_at = Some(Timestamp::now());
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&print(3), used).await.unwrap();
    let (code, said) = rotates(&house, 2, &line(6), None).await;
    assert!(code == 5 && said.contains("was replaced by"), "{said}");
    assert_eq!(held(&house, 3).await.status_at(Timestamp::now()), KeyStatus::Active);
}

#[tokio::test]
async fn who_may_do_more_than_exchange_is_asked_to_withdraw_the_one_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let house = exchanging(dir.path()).await;
    let human = |user: &mut User| {
        (user.kind, user.from) = (UserKind::Human, Vec::new());
        Ok::<_, keystore::Error>(())
    };
    house.vault.update("bob", human).await.unwrap();
    crate::auth::mfa::enroll(&house.vault, &"bob".parse().unwrap(), Timestamp::now()).await.unwrap();
    assert_eq!(rotates(&house, 2, &line(3), None).await.0, 0);
    let (code, said) = rotates(&house, 2, &line(6), None).await;
    assert!(code == 5 && said.contains("withdraw it first"), "{said}");
    assert_eq!(held(&house, 3).await.status, KeyStatus::Pending);
}

#[tokio::test]
async fn a_key_that_only_exchanges_displaces_itself_and_no_healthy_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let house = exchanging(dir.path()).await;
    for (owner, key) in [("alice", 7), ("bob", 8)] {
        let healthy =
            UserKey { id: format!("K{key}"), ..testing::user_key(owner, &testing::public_key(key)) };
        house.vault.insert(&healthy).await.unwrap();
    }
    for (by, other) in [(1, "K7"), (2, "K8")] {
        let (code, said) = rotates(&house, by, &line(3), Some(other)).await;
        assert!(code == 4 && said.contains("not the key that you came with"), "{said}");
    }
    assert_eq!(rotates(&house, 1, &line(3), Some("K1")).await.0, 0);
    assert_eq!(rotates(&house, 7, &line(6), Some("K7")).await.0, 0, "a healthy key, by itself");
}

/// A security key, as its public key file is.
fn security_key(n: u8) -> String {
    let name = b"sk-ssh-ed25519@openssh.com";
    let mut wire = Vec::new();
    for part in [&name[..], &[n; 32], b"ssh:"] {
        wire.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        wire.extend(part);
    }
    format!("sk-ssh-ed25519@openssh.com {}", data_encoding::BASE64.encode(&wire))
}

/// alice's key verifies her.
async fn verifying(dir: &Path, counts: bool) -> House {
    let house = exchanging(dir).await;
    let must = |key: &mut UserKey| {
        key.verify_required = true;
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&print(1), must).await.unwrap();
    let mut config = (*house.config()).clone();
    config.mfa.verify_required_counts = counts;
    house.settings.store(Arc::new(config));
    house
}

#[tokio::test]
async fn the_successor_of_a_key_that_verifies_its_user_does_so_too_and_no_other_key_claims_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = verifying(dir.path(), true).await;
    house.vault.remove::<SecondFactor>("alice").await.unwrap();
    let (code, said) = rotates(&house, 1, &security_key(3), None).await;
    assert!(code == 0 && said.contains("must verify you"), "{said}");
    let keys: Vec<UserKey> = house.vault.list().await.unwrap();
    assert!(keys.iter().any(|key| key.replaces == Some(print(1)) && key.verify_required));
    let claimed = format!("verify-required {}", security_key(6));
    assert_eq!(rotates(&house, 2, &claimed, None).await.0, 4, "the one before vouches for nothing");
    assert_eq!(rotates(&house, 2, &security_key(6), None).await.0, 0);
    let keys: Vec<UserKey> = house.vault.list().await.unwrap();
    assert!(keys.iter().any(|key| key.replaces == Some(print(2)) && !key.verify_required));
}

#[tokio::test]
async fn a_successor_that_could_never_log_in_is_refused_when_it_is_staged() {
    for (counts, has_code, new, expected) in [
        (true, false, line(3), 4),
        (false, false, security_key(3), 4),
        (true, true, line(3), 0),
        (false, true, security_key(3), 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let house = verifying(dir.path(), counts).await;
        if !has_code {
            house.vault.remove::<SecondFactor>("alice").await.unwrap();
        }
        let (code, said) = rotates(&house, 1, &new, None).await;
        assert_eq!(code, expected, "{counts} {has_code} {said}");
        assert!(code == 0 || said.contains("could not log in"), "{said}");
    }
}
