//! A quarter in the life of a bastion, with a moved clock: each day the daemon is cut off without a word and opens its
//! store and trail again, and instances fail as they do. At the end the trail must tell the story. With the programs that
//! people use it is told in `tests/stock/quarter.rs`.

use std::path::Path;
use std::sync::Arc;

use keystore::seal::{MasterKey, MasterKeySource};
use keystore::signing::Signers;
use keystore::{Accepted, Batch, CaKind, Credential, Ended, SignsIn, Successor, User};

use super::custody::testing::{Luck, Machine};
use super::*;
use crate::audit::Filter;
use crate::auth::testing::{at, code, public_key, unauthenticated, user, user_key};
use crate::auth::{Authenticated, LoginFault, mfa};

const DAY: i64 = 86_400;
/// alice rotates in time, bob is late, carol leaves, dave never comes back.
const PEOPLE: [(&str, u8); 4] = [("alice", 1), ("bob", 2), ("carol", 3), ("dave", 4)];

/// What a daemon has open.
struct House {
    rotation: Rotation,
    signers: Signers,
}

impl std::ops::Deref for House {
    type Target = Rotation;
    fn deref(&self) -> &Rotation {
        &self.rotation
    }
}

/// Opens it with the master key in `key`; a store is made where there is none.
async fn open_with(dir: &Path, key: &str) -> Result<House, String> {
    let key_file = dir.join(key);
    let create = !dir.join("store").exists();
    if create {
        MasterKey::generate().unwrap().write_new(&key_file).unwrap();
    }
    let master = MasterKey::load(&MasterKeySource::File(key_file)).unwrap();
    let store = dir.join("store");
    let vault = if create { Vault::create(&store, master) } else { Vault::open(&store, master, key) };
    let vault = vault.map_err(|e| e.to_string())?;
    let signers = if create {
        vault.initialise().await.unwrap();
        Signers::create(&vault).await.unwrap()
    } else {
        vault.check_master_key(key).await.map_err(|e| e.to_string())?;
        Signers::load(&vault).await.unwrap()
    };
    let trail = Trail::open(&dir.join("audit"), signers.audit.clone()).unwrap();
    let rotation = Rotation { vault: Arc::new(vault), trail: Arc::new(trail), rules: Default::default() };
    Ok(House { rotation, signers })
}

/// The key file that the configuration names on this day.
fn named(day: i64) -> &'static str {
    if day <= 50 { "master.key" } else { "master-2.key" }
}

async fn open(dir: &Path, day: i64) -> House {
    let house = open_with(dir, named(day)).await.unwrap();
    finish_rekeying(&house.vault, &house.trail, at(day * DAY)).await.unwrap();
    house
}

/// What happens to what Keyward itself holds.
async fn custody(house: &House, dir: &Path, machine: &Machine, day: i64) {
    let now = at(day * DAY + 60);
    let custody = Custody { vault: &house.vault, trail: &house.trail, reach: machine };
    match day {
        // The user CA changes; web-1 is seen to accept the new one, web-2 is not.
        20 => {
            let end = at(27 * DAY);
            let begun = custody.announce(&house.signers, (CaKind::User, "root"), end, now).await.unwrap();
            let accepted = Accepted { instance: "web-1".parse().unwrap(), ca: begun.to, since: now };
            house.vault.commit(Batch::default().put(&accepted).unwrap()).await.unwrap();
        }
        26 => assert_eq!(house.signers.authorities().trusted(CaKind::User).len(), 2),
        // The master key changes, and the daemon dies as soon as that is decided.
        50 => {
            let key = MasterKey::generate().unwrap();
            key.write_new(&dir.join("master-2.key")).unwrap();
            let (place, by) = ("master-2.key".to_owned(), "root".to_owned());
            house.vault.rekey(Successor { key, place, by }, now).await.unwrap();
        }
        // When its key is due the machine is down, then it loses every answer once: a step a day.
        90 => machine.next(&[Luck::Down]),
        91 => machine.next(&[Luck::Lost]),
        92 => machine.next(&[Luck::Good, Luck::Lost]),
        93 => machine.next(&[Luck::Good, Luck::Good, Luck::Lost]),
        _ => {}
    }
    custody.retire_due(&house.signers, now).await.unwrap();
    custody.look_after(&house.signers, 90 * DAY, now).await.unwrap();
    let held: Credential = house.vault.get("db-1/ubuntu").await.unwrap().unwrap();
    assert!(machine.accepts(&held.key.public_key), "day {day}: never locked out");
    assert_eq!(held.fault.is_some(), (90..=93).contains(&day), "day {day}: {:?}", held.fault);
}

/// The machines, and the key for the one that trusts no CA.
async fn instances(house: &House) -> Machine {
    let machine = Machine::new();
    let db = Machine::instance("db-1", SignsIn::Managed);
    let (credential, batch) =
        Custody::fresh((&db.name, db.logins.first().unwrap()), Batch::default(), at(0)).unwrap();
    let batch = batch.insert(&db).unwrap();
    let batch = ["web-1", "web-2"]
        .into_iter()
        .fold(batch, |batch, name| batch.insert(&Machine::instance(name, SignsIn::Certificate)).unwrap());
    house.vault.commit(batch).await.unwrap();
    machine.trust(&credential.key.public_key);
    // A first session shows that it is installed.
    let proven = |c: &mut Credential| {
        c.proven_at = Some(at(0));
        Ok::<_, keystore::Error>(())
    };
    house.vault.update("db-1/ubuntu", proven).await.unwrap();
    machine
}

async fn login(house: &House, name: &str, key: u8, now: Timestamp) -> Result<Authenticated, LoginFault> {
    let code = code(&house.vault, name, now).await;
    let key = unauthenticated().key_verified(&house.vault, name, &public_key(key), now).await;
    let key = key.map_err(|(_, fault)| fault)?;
    key.with_second_factor(&house.vault, name, &code, now).await.map_err(|(_, fault)| fault)
}

/// `ssh-keys rotate`, as the command does it.
async fn rotates(house: &House, name: &str, (old, new): (u8, u8), now: Timestamp) {
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

async fn status(house: &House, key: u8, now: Timestamp) -> KeyStatus {
    let key: UserKey = house.vault.get(&UserKey::fingerprint_of(&public_key(key))).await.unwrap().unwrap();
    key.status_at(now)
}

#[tokio::test]
async fn a_quarter_is_lived_through_and_the_trail_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path(), 0).await;
    let first_ca = house.signers.authorities().user_ca.public_key().clone();
    let machine = instances(&house).await;
    for (name, key) in PEOPLE {
        house.vault.insert(&user(name, &["engineer"])).await.unwrap();
        let record = UserKey { id: format!("K{key}"), ..user_key(name, &public_key(key)) };
        house.vault.insert(&record).await.unwrap();
        mfa::enroll(&house.vault, &name.parse().unwrap(), at(0)).await.unwrap();
    }
    drop(house);
    let mut told = Vec::new();
    for day in 1..=110 {
        if day == 51 {
            let refused = open_with(dir.path(), named(50)).await.err().unwrap();
            assert!(refused.contains("(which was in master-2.key)"), "{refused}");
        }
        let (house, now) = (open(dir.path(), day).await, at(day * DAY + 60));
        custody(&house, dir.path(), &machine, day).await;
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
                let about = ["user", "instance", "ca"].map(text).concat();
                let about = if about.is_empty() { "bastion".to_owned() } else { about };
                told.push(format!("{about} {}", text("event").replace("ssh_key_", "")));
                if text("event") == "ca_rotated" {
                    assert_eq!(event["not_seen_on"], serde_json::json!(["web-2"]));
                }
            }
            let held: Credential = house.vault.get("db-1/ubuntu").await.unwrap().unwrap();
            assert_eq!((held.key.made_at, held.old), (at(90 * DAY + 60), None));
            assert_eq!(machine.lines().len(), 2);
            let authorities = house.signers.authorities();
            assert_eq!(authorities.trusted(CaKind::User).len(), 1);
            assert_ne!(authorities.user_ca.public_key().key_data(), first_ca.key_data());
            let chain = keystore::journal::verify(&dir.path().join("audit/journal")).unwrap();
            assert_eq!(chain.entries, house.trail.head().seq, "never compacted");
        }
    }
    // What was told of twice a crash made so; what happened is told of at least once, and in this order.
    told.dedup();
    let of = |name: &str| {
        let lines = told.iter().filter_map(|line| line.strip_prefix(&format!("{name} ")));
        lines.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("alice"), "expiring activated retiring retired");
    assert_eq!(of("bob"), "expiring expiring expiring expired activated retired");
    assert_eq!(of("carol"), "expiring expiring", "revoked, she is warned no more");
    assert_eq!(of("dave"), "expiring expiring expiring expired");
    assert_eq!(of("user"), "ca_rotation_begun ca_rotated");
    assert_eq!(of("web-2user"), "ca_not_trusted", "it was asked in vain");
    assert_eq!(of("bastion"), "store_compacted checkpoint_signed master_key_rotated");
    assert_eq!(
        of("db-1"),
        "credential_rotation_begun credential_rotation_failed credential_rotation_failed credential_rotated \
         credential_rotation_failed credential_retired"
    );
}
