//! A whole house without its daemon: what is decided in it, with no watch that would decide it again.

use std::path::Path;
use std::sync::Arc;

use keystore::backend::Memory;
use keystore::rules::KeyKind;
use keystore::seal::MasterKey;
use keystore::{Ended, KeyRules, User, UserKey, UserKind, Vault};

use super::{init, run};
use crate::auth::testing;
use crate::config::Config;
use crate::ingress::testing::{Heard, Peer, reaches};
use crate::session::{House, LiveInfo, LoggedIn, enter, still_in};

mod clock;
mod exchange;

async fn house(dir: &Path) -> House {
    let file = init(dir, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let house = run::open(Config::load(&file).unwrap()).await.unwrap();
    testing::people(&house.vault).await;
    house
}

/// A login of alice's, on its way from its proof into the registry.
fn login() -> LiveInfo {
    LiveInfo {
        session: None,
        user: "alice".parse().unwrap(),
        key: UserKey::fingerprint_of(&testing::public_key(1)),
        certificate: None,
        source: "192.0.2.1:5".parse().unwrap(),
        to: None,
        instance_added: None,
        since: testing::at(0),
        only_exchanges: false,
    }
}

/// What a login hears that is let in just now.
async fn enters(house: &House) -> Option<String> {
    enter(house, login(), testing::at(1)).await.cut.sentence()
}

async fn stands(house: &House) -> Result<User, String> {
    let LiveInfo { user, key, .. } = login();
    let by = LoggedIn { user: &user, key: &key, certificate: None, only_exchanges: false };
    still_in(house, by, testing::at(1)).await
}

#[tokio::test]
async fn who_was_suspended_between_the_proof_and_the_entry_is_cut_at_the_entry() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path()).await;
    assert_eq!(enters(&house).await, None);
    let ended = Some(Ended { at: testing::at(0), reason: "left".to_owned() });
    let suspend = |user: &mut User| {
        user.suspended.clone_from(&ended);
        Ok::<_, keystore::Error>(())
    };
    house.vault.update("bob", suspend).await.unwrap();
    assert_eq!(enters(&house).await, None, "that was her neighbour");
    house.vault.update("alice", suspend).await.unwrap();
    assert_eq!(enters(&house).await.as_deref(), Some("Your account was suspended."));
}

#[tokio::test]
async fn a_key_that_was_revoked_between_the_proof_and_the_entry_is_cut_at_the_entry() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path()).await;
    let revoke = |key: &mut UserKey| {
        key.status = keystore::KeyStatus::Revoked;
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&login().key, revoke).await.unwrap();
    assert!(enters(&house).await.unwrap().contains("is revoked"));
    assert_eq!(house.registry.live().len(), 0, "nothing of it is left once it is dropped");
}

#[tokio::test]
async fn a_lockdown_between_the_proof_and_the_entry_cuts_at_the_entry() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path()).await;
    house.guard.lockdown().start("drill").unwrap();
    assert!(enters(&house).await.unwrap().contains("drill"));
    house.guard.lockdown().end().unwrap();
    assert_eq!(enters(&house).await, None);
}

/// As after a reload of the file.
fn accept(house: &House, kinds: &[KeyKind]) {
    let mut config = (*house.config()).clone();
    config.keys = Arc::new(KeyRules { accepted: kinds.iter().copied().collect(), ..(*config.keys).clone() });
    house.settings.store(Arc::new(config));
}

#[tokio::test]
async fn a_kind_of_key_that_is_taken_off_the_list_ends_what_lives_by_it_and_another_kind_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path()).await;
    assert!(stands(&house).await.is_ok());
    accept(&house, &[KeyKind::Ed25519]);
    assert!(stands(&house).await.is_ok(), "the kind that went was not hers");
    accept(&house, &[KeyKind::SkEd25519]);
    let told = stands(&house).await.unwrap_err();
    assert!(told.contains("ssh-ed25519") && told.contains("no longer accepted"), "{told}");
    assert_eq!(enters(&house).await, Some(told));
    accept(&house, &[KeyKind::SkEd25519, KeyKind::Ed25519]);
    assert!(stands(&house).await.is_ok());
}

#[tokio::test]
async fn one_user_takes_no_more_than_a_share_and_the_neighbour_takes_hers() {
    let dir = tempfile::tempdir().unwrap();
    let house = house(dir.path()).await;
    let mut config = (*house.config()).clone();
    config.limits.per_user = 2;
    house.settings.store(Arc::new(config));
    let held = [enter(&house, login(), testing::at(1)).await, enter(&house, login(), testing::at(1)).await];
    assert!(held.iter().all(|one| one.cut.sentence().is_none()));
    assert!(enters(&house).await.unwrap().contains("You have 2 connections and sessions open here"));
    let key = UserKey::fingerprint_of(&testing::public_key(2));
    let bob = LiveInfo { user: "bob".parse().unwrap(), key, ..login() };
    assert_eq!(enter(&house, bob, testing::at(1)).await.cut.sentence(), None);
    assert_eq!(house.registry.live().len(), 2);
    drop(held);
    assert_eq!(enters(&house).await, None);
}

/// Where the peers of these tests come from.
const SOURCE: &str = "192.0.2.9:4022";

async fn peer(house: &Arc<House>) -> Peer {
    Peer::from(house, SOURCE.parse().unwrap()).await.expect("nobody is banned")
}

async fn is_banned(house: &House) -> bool {
    // What a connection leaves behind is counted in a task of its own.
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    house.guard.banned("192.0.2.9".parse().unwrap(), jiff::Timestamp::now()).is_some()
}

#[tokio::test]
async fn a_trail_that_refuses_bans_nobody_who_could_come_in_and_six_wrong_keys_do() {
    let dir = tempfile::tempdir().unwrap();
    let house = Arc::new(house(dir.path()).await);
    let (own, strange) = (testing::public_key(3), testing::public_key(4));
    let from = vec!["192.0.2.0/24".parse().unwrap()];
    let service = User { kind: UserKind::Service, from, ..testing::user("backup", &[]) };
    house.vault.insert(&service).await.unwrap();
    house.vault.insert(&testing::user_key("backup", &own)).await.unwrap();
    house.trail.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..7 {
        assert_eq!(peer(&house).await.signs("backup", &own).await, Heard::Refused);
    }
    assert!(!is_banned(&house).await);
    house.trail.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(peer(&house).await.signs("backup", &own).await, Heard::In);
    for _ in 0..7 {
        let Some(mut peer) = Peer::from(&house, SOURCE.parse().unwrap()).await else { break };
        assert_eq!(peer.signs("backup", &strange).await, Heard::Refused);
    }
    assert!(is_banned(&house).await);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_bans_nobody_and_six_connections_that_offer_only_wrong_keys_are_banned() {
    let dir = tempfile::tempdir().unwrap();
    let whole = house(dir.path()).await;
    let (own, strange) = (testing::public_key(1), testing::public_key(4));
    // What was written under one master key does not open under another.
    let memory = Arc::new(Memory::default());
    let before = Vault::new(memory.clone(), MasterKey::generate().unwrap());
    testing::people(&before).await;
    let vault = Arc::new(Vault::new(memory, MasterKey::generate().unwrap()));
    let good = Arc::clone(&whole.vault);
    let broken = Arc::new(House { vault, ..whole });
    let caller = Arc::new(testing::login("alice", &["engineer"], jiff::Timestamp::now()).await);
    let told = reaches(&broken, &caller, "db-1").await.unwrap_err();
    assert!(told.contains("the store is unavailable"), "a jump is no decision of the rules: {told}");
    for _ in 0..7 {
        assert_eq!(peer(&broken).await.offers("alice", &own).await, Heard::Refused);
        assert_eq!(peer(&broken).await.signs("alice", &own).await, Heard::Refused);
    }
    assert!(!is_banned(&broken).await);
    let house = Arc::new(House { vault: good, ..Arc::into_inner(broken).expect("every peer is gone") });
    assert_eq!(reaches(&house, &caller, "db-1").await, Ok(false), "no rule lets her in there");
    assert_eq!(peer(&house).await.offers("alice", &own).await, Heard::In);
    for _ in 0..7 {
        let Some(mut peer) = Peer::from(&house, SOURCE.parse().unwrap()).await else { break };
        assert_eq!(peer.offers("alice", &strange).await, Heard::Refused);
        drop(peer);
        is_banned(&house).await;
    }
    assert!(is_banned(&house).await);
}

#[tokio::test]
async fn another_name_after_an_enrolment_voids_it_and_the_same_name_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let house = Arc::new(house(dir.path()).await);
    let now = jiff::Timestamp::now();
    house.vault.insert(&testing::user("carol", &["engineer"])).await.unwrap();
    house
        .vault
        .insert(&UserKey {
            expires_at: now + jiff::SignedDuration::from_hours(1),
            ..testing::user_key("carol", &testing::public_key(9))
        })
        .await
        .unwrap();
    crate::auth::mfa::enroll(&house.vault, &"carol".parse().unwrap(), now).await.unwrap();
    for other in [Some("bob"), None] {
        let mut peer = peer(&house).await.enrolled(testing::login("carol", &["engineer"], now).await);
        if let Some(other) = other {
            assert_eq!(peer.answers(other, "").await, Heard::Refused);
            assert_eq!(peer.answers("carol", "").await, Heard::Refused, "it was voided for good");
        } else {
            assert_eq!(peer.answers("carol", "").await, Heard::In);
        }
    }
    // The same through an offer of whatever kind.
    let key = testing::public_key(2);
    let mut peer = peer(&house).await.enrolled(testing::login("carol", &["engineer"], now).await);
    assert_eq!(peer.offers_certificate("bob", &key).await, Heard::Refused);
    assert_eq!(peer.answers("carol", "").await, Heard::Refused);
}

#[tokio::test]
async fn a_certificate_that_is_offered_for_another_name_voids_the_key_and_for_the_same_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let house = Arc::new(house(dir.path()).await);
    let key = testing::public_key(1);
    for (name, then) in [("alice", Heard::Asked), ("bob", Heard::Refused)] {
        let mut peer = peer(&house).await;
        assert_eq!(peer.signs("alice", &key).await, Heard::More);
        assert_eq!(peer.offers_certificate(name, &key).await, Heard::Refused);
        assert_eq!(peer.asks("alice").await, then, "{name}");
    }
}
