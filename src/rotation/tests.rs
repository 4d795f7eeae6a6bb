//! A key and its successor through their lives, with a clock that the test moves.

use super::*;
use crate::audit::Filter;
use crate::auth::testing::{at, empty_vault, public_key, user_key};

const DAY: i64 = 86_400;

struct Stage {
    rotation: Rotation,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// alice's key 1, added at 0.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = empty_vault();
        vault.initialise().await.unwrap();
        let signers = keystore::signing::Signers::create(&vault).await.unwrap();
        let trail = Trail::open(dir.path(), signers.audit.clone()).unwrap();
        vault.insert(&user_key("alice", &public_key(1))).await.unwrap();
        let rotation = Rotation { vault: Arc::new(vault), trail: Arc::new(trail), rules: Default::default() };
        Self { rotation, _dir: dir }
    }

    async fn stage_successor(&self, now: Timestamp) {
        let old = self.key(1).await;
        self.rotation.may_replace(&old, now).await.unwrap();
        let new = UserKey {
            id: "K2".to_owned(),
            status: KeyStatus::Pending,
            replaces: Some(old.fingerprint),
            added_at: now,
            expires_at: Timestamp::from_second(now.as_second() + 90 * DAY).unwrap(),
            ..user_key("alice", &public_key(2))
        };
        self.rotation.vault.insert(&new).await.unwrap();
    }

    async fn logs_in(&self, key: u8, now: Timestamp) {
        let print = UserKey::fingerprint_of(&public_key(key));
        self.rotation.write(&print, |record| record.last_used_at = Some(now)).await.unwrap();
        self.rotation.settle(now).await.unwrap();
    }

    async fn key(&self, n: u8) -> UserKey {
        self.rotation.vault.get(&UserKey::fingerprint_of(&public_key(n))).await.unwrap().unwrap()
    }

    fn events(&self) -> Vec<String> {
        let found = self.rotation.trail.query(&Filter::default()).unwrap();
        found.iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_key_is_replaced_by_one_that_has_logged_in_and_not_before() {
    let stage = Stage::new().await;
    stage.stage_successor(at(0)).await;
    stage.rotation.settle(at(DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Active, "nothing was proven yet");
    stage.logs_in(2, at(DAY)).await;
    let next = stage.rotation.settle(at(DAY)).await.unwrap();
    assert_eq!(
        (stage.key(1).await.status, stage.key(2).await.status),
        (KeyStatus::Retiring, KeyStatus::Active)
    );
    assert_eq!(next, Some(at(2 * DAY)));
    stage.rotation.settle(at(2 * DAY - 1)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Retiring);
    stage.rotation.settle(at(2 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Retired);
    assert_eq!(stage.events(), ["ssh_key_activated", "ssh_key_retiring", "ssh_key_retired"]);
}

#[tokio::test]
async fn a_key_that_has_a_successor_gets_no_second_one() {
    let stage = Stage::new().await;
    stage.stage_successor(at(0)).await;
    let said = stage.rotation.may_replace(&stage.key(1).await, at(1)).await.unwrap_err().to_string();
    assert!(said.starts_with("K2 already waits to replace K1."), "{said}");
    stage.logs_in(2, at(2)).await;
    let said = stage.rotation.may_replace(&stage.key(1).await, at(3)).await.unwrap_err().to_string();
    assert!(said.contains("replaced by K2 already"), "{said}");
    assert!(stage.rotation.may_replace(&stage.key(2).await, at(3)).await.is_ok());
}

#[tokio::test]
async fn a_revoked_successor_leaves_the_old_key_as_it_was() {
    let stage = Stage::new().await;
    stage.stage_successor(at(0)).await;
    let new = stage.key(2).await;
    stage.rotation.write(&new.fingerprint, |record| record.status = KeyStatus::Revoked).await.unwrap();
    stage.rotation.settle(at(1)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Active);
    assert!(stage.rotation.may_replace(&stage.key(1).await, at(1)).await.is_ok());
    let said = stage.rotation.may_replace(&stage.key(2).await, at(1)).await.unwrap_err().to_string();
    assert!(said.starts_with("K2 is revoked."), "{said}");
}

#[tokio::test]
async fn a_key_in_grace_retires_at_once_when_its_successor_logs_in() {
    let stage = Stage::new().await;
    stage.rotation.settle(at(91 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Expired);
    stage.stage_successor(at(92 * DAY)).await;
    stage.logs_in(2, at(93 * DAY)).await;
    assert_eq!(
        (stage.key(1).await.status, stage.key(2).await.status),
        (KeyStatus::Retired, KeyStatus::Active)
    );
}

#[tokio::test]
async fn each_warning_comes_once_and_then_the_end() {
    let stage = Stage::new().await;
    for day in [75, 76, 77, 82, 83, 84, 89, 90, 91] {
        stage.rotation.settle(at(day * DAY)).await.unwrap();
    }
    let expiring = "ssh_key_expiring";
    assert_eq!(stage.events(), [expiring, expiring, expiring, "ssh_key_expired"]);
}

#[tokio::test]
async fn warnings_missed_while_the_daemon_was_down_become_one() {
    let stage = Stage::new().await;
    let next = stage.rotation.settle(at(0)).await.unwrap();
    assert_eq!(next, Some(at(76 * DAY)));
    stage.rotation.settle(at(89 * DAY + 1)).await.unwrap();
    stage.rotation.settle(at(89 * DAY + 2)).await.unwrap();
    assert_eq!(stage.events(), ["ssh_key_expiring"]);
}

#[tokio::test]
async fn a_crash_between_the_two_halves_of_a_rotation_is_made_good_at_the_next_start() {
    let stage = Stage::new().await;
    stage.stage_successor(at(0)).await;
    let print = stage.key(2).await.fingerprint;
    // The login was durable, and then the daemon was killed.
    stage.rotation.write(&print, |record| record.last_used_at = Some(at(5))).await.unwrap();
    assert_eq!(stage.key(2).await.status_at(at(6)), KeyStatus::Active, "the login holds");
    stage.rotation.settle(at(3600)).await.unwrap();
    assert_eq!(
        (stage.key(1).await.status, stage.key(2).await.status),
        (KeyStatus::Retiring, KeyStatus::Active)
    );
    stage.rotation.settle(at(3600)).await.unwrap();
    assert_eq!(stage.events(), ["ssh_key_activated", "ssh_key_retiring"], "and it is told once");
}

#[tokio::test]
async fn stricter_terms_shorten_what_lives_and_leave_time_to_exchange_it() {
    let mut stage = Stage::new().await;
    stage.rotation.settle(at(0)).await.unwrap();
    assert_eq!(stage.key(1).await.expires_at, at(90 * DAY), "the terms are those that it was added under");
    let stricter = |days: i64| {
        let base = lifecycle::Terms { max_age: days * DAY, ..lifecycle::Terms::default() };
        Arc::new(KeyRules { base, ..KeyRules::default() })
    };
    stage.rotation.rules = stricter(60);
    stage.rotation.settle(at(10 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.expires_at, at(60 * DAY));
    stage.rotation.rules = stricter(1);
    stage.rotation.settle(at(10 * DAY)).await.unwrap();
    stage.rotation.settle(at(11 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.expires_at, at(24 * DAY), "not before the first warning has had its time");
    assert_eq!(stage.events(), ["ssh_key_shortened", "ssh_key_shortened", "ssh_key_expiring"]);
    stage.rotation.rules = stricter(90);
    stage.rotation.settle(at(12 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.expires_at, at(24 * DAY), "no life is made longer");
    stage.rotation.settle(at(24 * DAY)).await.unwrap();
    assert_eq!(stage.key(1).await.status, KeyStatus::Expired);
}
