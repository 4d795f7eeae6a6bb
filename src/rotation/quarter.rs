//! A quarter in the life of a bastion, with a moved clock: each day the daemon is cut off without a word and opens its
//! store and trail again. At the end the trail must tell the story.

use std::path::Path;
use std::sync::Arc;

use keystore::backend::Embedded;
use keystore::seal::{MasterKey, MasterKeySource};
use keystore::signing::Signers;
use keystore::{Ended, User};

use super::*;
use crate::audit::Filter;
use crate::auth::testing::{at, code, public_key, unauthenticated, user, user_key};
use crate::auth::{Authenticated, LoginFault, mfa};

const DAY: i64 = 86_400;
/// alice rotates in time, bob is late, carol leaves, dave never comes back.
const PEOPLE: [(&str, u8); 4] = [("alice", 1), ("bob", 2), ("carol", 3), ("dave", 4)];

async fn open(dir: &Path, create: bool) -> Rotation {
    let key_file = dir.join("master.key");
    if create {
        MasterKey::generate().unwrap().write_new(&key_file).unwrap();
    }
    let master = MasterKey::load(&MasterKeySource::File(key_file)).unwrap();
    let vault = Vault::new(Arc::new(Embedded::open(&dir.join("store"), create).unwrap()), master);
    let signers = if create {
        vault.initialise().await.unwrap();
        Signers::create(&vault).await.unwrap()
    } else {
        Signers::load(&vault).await.unwrap()
    };
    let trail = Trail::open(&dir.join("audit"), signers.audit.clone()).unwrap();
    Rotation { vault: Arc::new(vault), trail: Arc::new(trail), rules: Default::default() }
}

async fn login(house: &Rotation, name: &str, key: u8, now: Timestamp) -> Result<Authenticated, LoginFault> {
    let code = code(&house.vault, name, now).await;
    let key = unauthenticated().key_verified(&house.vault, name, &public_key(key), now).await;
    let key = key.map_err(|(_, fault)| fault)?;
    key.with_second_factor(&house.vault, name, &code, now).await.map_err(|(_, fault)| fault)
}

/// `ssh-keys rotate`, as the command does it.
async fn rotates(house: &Rotation, name: &str, (old, new): (u8, u8), now: Timestamp) {
    let old: UserKey = house.vault.get(&UserKey::fingerprint_of(&public_key(old))).await.unwrap().unwrap();
    house.may_replace(&old, now).await.unwrap();
    let record = UserKey {
        id: format!("K{new}"),
        status: KeyStatus::Pending,
        replaces: Some(old.fingerprint),
        added_at: now,
        expires_at: Timestamp::from_second(now.as_second() + 90 * DAY).unwrap(),
        ..user_key(name, &public_key(new))
    };
    house.vault.insert(&record).await.unwrap();
}

async fn status(house: &Rotation, key: u8, now: Timestamp) -> KeyStatus {
    let key: UserKey = house.vault.get(&UserKey::fingerprint_of(&public_key(key))).await.unwrap().unwrap();
    key.status_at(now)
}

#[tokio::test]
async fn a_quarter_is_lived_through_and_the_trail_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path(), true).await;
    for (name, key) in PEOPLE {
        house.vault.insert(&user(name, &["engineer"])).await.unwrap();
        let record = UserKey { id: format!("K{key}"), ..user_key(name, &public_key(key)) };
        house.vault.insert(&record).await.unwrap();
        mfa::enroll(&house.vault, &name.parse().unwrap(), at(0)).await.unwrap();
    }
    drop(house);
    let mut told = Vec::new();
    for day in 1..=110 {
        let (house, now) = (open(dir.path(), false).await, at(day * DAY + 60));
        match day {
            10 | 60 => assert!(login(&house, "alice", 1, now).await.is_ok_and(|l| !l.only_exchanges())),
            // Warned on day 76, alice has a new key on day 78 and uses it on day 79.
            78 => rotates(&house, "alice", (1, 11), now).await,
            79 => {
                assert!(login(&house, "alice", 1, now).await.is_ok(), "the old key still works");
                let later = at(day * DAY + 120);
                assert!(login(&house, "alice", 11, later).await.is_ok(), "and the new one proves itself");
            }
            81 => {
                let retired = login(&house, "alice", 1, now).await.err();
                assert_eq!(retired, Some(LoginFault::KeyUnusable(KeyStatus::Retired)));
                assert!(login(&house, "alice", 11, now).await.is_ok());
            }
            // carol leaves: suspended, her key revoked.
            85 => {
                let leave = |u: &mut User| {
                    u.suspended = Some(Ended { at: now, reason: "left".to_owned() });
                    Ok::<_, keystore::Error>(())
                };
                house.vault.update("carol", leave).await.unwrap();
                let print = UserKey::fingerprint_of(&public_key(3));
                house.write(&print, |key| key.status = KeyStatus::Revoked).await.unwrap();
            }
            // bob comes late: his key is exchanged, and opens nothing else.
            95 => {
                assert!(login(&house, "bob", 2, now).await.is_ok_and(|l| l.only_exchanges()));
                rotates(&house, "bob", (2, 12), now).await;
                let later = at(day * DAY + 120);
                assert!(login(&house, "bob", 12, later).await.is_ok_and(|l| !l.only_exchanges()));
            }
            103 => assert!(login(&house, "dave", 4, now).await.is_ok_and(|l| l.only_exchanges())),
            105 => {
                let over = login(&house, "dave", 4, now).await.err();
                assert_eq!(over, Some(LoginFault::KeyUnusable(KeyStatus::Expired)), "his grace is over");
            }
            _ => {}
        }
        // Every third day the daemon is cut off before it could write what was due.
        if day % 3 != 0 {
            house.settle(at(day * DAY + 180)).await.unwrap();
        }
        if day == 110 {
            for (key, expected) in [
                (1, KeyStatus::Retired),
                (11, KeyStatus::Active),
                (2, KeyStatus::Retired),
                (12, KeyStatus::Active),
                (3, KeyStatus::Revoked),
                (4, KeyStatus::Expired),
            ] {
                assert_eq!(status(&house, key, now).await, expected, "K{key}");
            }
            for event in house.trail.query(&Filter::default()).unwrap() {
                let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                told.push(format!("{} {}", text("user"), text("event").replace("ssh_key_", "")));
            }
        }
    }
    let of = |name: &str| {
        let lines = told.iter().filter_map(|line| line.strip_prefix(&format!("{name} ")));
        lines.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("alice"), "expiring activated retiring retired");
    assert_eq!(of("bob"), "expiring expiring expiring expired activated retired");
    assert_eq!(of("carol"), "expiring expiring", "revoked, she is warned no more");
    assert_eq!(of("dave"), "expiring expiring expiring expired");
}
