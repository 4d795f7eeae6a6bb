//! A whole house without its daemon: what is decided in it, with no watch that would decide it again.

use std::path::Path;
use std::sync::Arc;

use keystore::rules::KeyKind;
use keystore::{Ended, KeyRules, User, UserKey};

use super::{init, run};
use crate::auth::testing;
use crate::config::Config;
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
