use std::path::Path;

use keystore::seal::{MasterKey, MasterKeySource};
use keystore::signing::Signers;
use keystore::{Batch, SignsIn};

use super::testing::{Luck, Machine};
use super::*;
use crate::audit::Filter;
use crate::auth::testing::at;

/// A store and a trail; dropped without a word, as a crash would.
async fn open(dir: &Path) -> (Vault, Trail) {
    let file = dir.join("master.key");
    let create = !file.exists();
    if create {
        MasterKey::generate().unwrap().write_new(&file).unwrap();
    }
    let master = MasterKey::load(&MasterKeySource::File(file)).unwrap();
    let store = dir.join("store");
    let vault =
        if create { Vault::create(&store, master) } else { Vault::open(&store, master, "it") }.unwrap();
    let signers =
        if create { Signers::create(&vault).await.unwrap() } else { Signers::load(&vault).await.unwrap() };
    let trail = Trail::open(&dir.join("audit"), signers.audit.clone()).unwrap();
    (vault, trail)
}

/// A machine with its key installed.
async fn machine(vault: &Vault) -> (Machine, Instance) {
    let (machine, instance) = (Machine::new(), Machine::instance("db-1", SignsIn::Managed));
    let account = (&instance.name, instance.logins.first().unwrap());
    let (credential, batch) = Custody::fresh(account, Batch::default(), at(0)).unwrap();
    vault.commit(batch).await.unwrap();
    machine.trust(&credential.key.public_key);
    (machine, instance)
}

async fn held(vault: &Vault) -> Credential {
    vault.get::<Credential>("db-1/ubuntu").await.unwrap().unwrap()
}

async fn rotate(
    house: &(Vault, Trail),
    machine: &Machine,
    instance: &Instance,
) -> Result<Credential, String> {
    let custody = Custody { vault: &house.0, trail: &house.1, reach: machine };
    let login = instance.logins.first().unwrap();
    custody.rotate((instance, login), "root", at(60)).await.map_err(|fault| fault.to_string())
}

#[tokio::test]
async fn whichever_visit_goes_wrong_the_key_in_use_is_one_that_the_machine_takes() {
    for bad in [Luck::Down, Luck::Lost] {
        // The first try of the key, then: install, prove, remove.
        for at_visit in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let house = open(dir.path()).await;
            let (machine, instance) = machine(&house.0).await;
            let first = held(&house.0).await.key;
            machine.next(&[vec![Luck::Good; at_visit], vec![bad]].concat());
            let why = rotate(&house, &machine, &instance).await.unwrap_err();
            assert!(why.contains("it does not answer"), "{why}");
            drop(house);

            let house = open(dir.path()).await;
            let stopped = held(&house.0).await;
            assert!(machine.accepts(&stopped.key.public_key), "{bad:?} at {at_visit}: {stopped:?}");
            assert!(stopped.fault.is_some());
            let done = rotate(&house, &machine, &instance).await.unwrap();
            assert_ne!(done.key, first);
            assert_eq!((&done.next, &done.old, &done.fault), (&None, &None, &None));
            let lines = machine.lines();
            assert_eq!(lines.len(), 2, "theirs and the new one: {lines:?}");
            assert!(machine.accepts(&done.key.public_key) && !machine.accepts(&first.public_key));
            assert!(keystore::signing::InstanceKey::load(&house.0, &first).await.is_err(), "it is forgotten");
        }
    }
}

#[tokio::test]
async fn a_new_key_that_somebody_wrote_over_is_put_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let (machine, instance) = machine(&house.0).await;
    machine.next(&[Luck::Good, Luck::Good, Luck::Down]);
    rotate(&house, &machine, &instance).await.unwrap_err();
    let stopped = held(&house.0).await;
    let next = stopped.next.unwrap();
    assert!(machine.accepts(&next.public_key));
    // Their configuration management writes its own list, with the key that it knows.
    machine.overwrite(&stopped.key.public_key);
    let done = rotate(&house, &machine, &instance).await.unwrap();
    assert_eq!(done.key, next);
}

#[tokio::test]
async fn what_was_never_installed_is_left_alone_and_what_is_due_is_tried_every_hour() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let signers = Signers::load(&house.0).await.unwrap();
    let (machine, instance) = machine(&house.0).await;
    house.0.insert(&instance).await.unwrap();
    let custody = Custody { vault: &house.0, trail: &house.1, reach: &machine };
    let (max_age, day) = (90 * 86_400, 86_400);
    custody.settle(&signers, max_age, at(91 * day)).await.unwrap();
    let waiting = held(&house.0).await;
    assert!(waiting.proven_at.is_none() && waiting.tried_at.is_none(), "nobody said that it is installed");
    rotate(&house, &machine, &instance).await.unwrap();
    let first = held(&house.0).await.key;
    custody.settle(&signers, max_age, at(89 * day)).await.unwrap();
    assert_eq!(held(&house.0).await.key, first, "not due");
    machine.next(&[Luck::Down]);
    custody.settle(&signers, max_age, at(91 * day)).await.unwrap();
    custody.settle(&signers, max_age, at(91 * day + 3599)).await.unwrap();
    assert_eq!(held(&house.0).await.key, first, "not yet again");
    custody.settle(&signers, max_age, at(91 * day + 3600)).await.unwrap();
    assert_ne!(held(&house.0).await.key, first);
    let told = house.1.query(&Filter::default()).unwrap();
    let names: Vec<_> = told.iter().map(|e| e["event"].as_str().unwrap()).collect();
    let once = ["credential_rotation_begun", "credential_rotated", "credential_retired"];
    let failed = [
        "credential_rotation_begun",
        "credential_rotation_failed",
        "credential_rotated",
        "credential_retired",
    ];
    assert_eq!(names, [["credential_proven"].as_slice(), &once, &failed].concat());
}
