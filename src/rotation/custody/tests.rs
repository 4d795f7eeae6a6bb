use std::collections::BTreeSet;
use std::path::Path;

use keystore::seal::{MasterKey, MasterKeySource};
use keystore::signing::Signers;
use keystore::{Batch, SignsIn};

use super::testing::{Luck, Machine, Many};
use super::*;
use crate::audit::Filter;
use crate::auth::testing::{Meddled, at};

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
    custody.look_after(&signers, max_age, at(91 * day)).await.unwrap();
    let waiting = held(&house.0).await;
    assert!(waiting.proven_at.is_none() && waiting.tried_at.is_none(), "nobody said that it is installed");
    rotate(&house, &machine, &instance).await.unwrap();
    let first = held(&house.0).await.key;
    custody.look_after(&signers, max_age, at(89 * day)).await.unwrap();
    assert_eq!(held(&house.0).await.key, first, "not due");
    machine.next(&[Luck::Down]);
    custody.look_after(&signers, max_age, at(91 * day)).await.unwrap();
    custody.look_after(&signers, max_age, at(91 * day + 3599)).await.unwrap();
    assert_eq!(held(&house.0).await.key, first, "not yet again");
    custody.look_after(&signers, max_age, at(91 * day + 3600)).await.unwrap();
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

/// `many` machines with a proven key each, `db-0` and on.
async fn machines(vault: &Vault, many: usize) -> Many {
    let machines = (0..many).map(|n| (format!("db-{n}"), Machine::new())).collect();
    let many = Many::of(machines);
    for (name, machine) in &many.machines {
        let instance = Machine::instance(name, SignsIn::Managed);
        let account = (&instance.name, instance.logins.first().unwrap());
        let (mut credential, batch) = Custody::fresh(account, Batch::default(), at(0)).unwrap();
        credential.proven_at = Some(at(0));
        vault.commit(batch.put(&credential).unwrap().insert(&instance).unwrap()).await.unwrap();
        machine.trust(&credential.key.public_key);
    }
    many
}

#[tokio::test]
async fn one_instance_that_hangs_delays_nobody_and_no_more_than_eight_are_visited_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let signers = Signers::load(&house.0).await.unwrap();
    let many = machines(&house.0, 20).await;
    many.hangs("db-3");
    let custody = Custody { vault: &house.0, trail: &house.1, reach: &many };
    let now = at(91 * 86_400);
    let begun: Vec<Credential> = house.0.list().await.unwrap();
    let rotated = async |name: &str| {
        let before = begun.iter().find(|c| c.instance.as_str() == name).unwrap();
        house.0.get::<Credential>(&format!("{name}/ubuntu")).await.unwrap().unwrap().key != before.key
    };
    let look = custody.look_after(&signers, 90 * 86_400, now);
    tokio::pin!(look);
    loop {
        tokio::select! {
            biased;
            done = &mut look => panic!("it waits for db-3: {done:?}"),
            () = tokio::task::yield_now() => {}
        }
        let mut left = Vec::new();
        for name in many.machines.keys().filter(|name| *name != "db-3") {
            if !rotated(name).await {
                left.push(name);
            }
        }
        if left.is_empty() {
            break;
        }
    }
    assert!(!rotated("db-3").await);
    assert_eq!(many.most(), 8);
    many.hangs("nobody");
    look.await.unwrap();
    assert!(rotated("db-3").await, "it was only slow");
}

#[tokio::test]
async fn who_did_not_answer_the_last_time_comes_last() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let signers = Signers::load(&house.0).await.unwrap();
    let many = machines(&house.0, 12).await;
    let fault = |credential: &mut Credential| {
        (credential.fault, credential.tried_at) = (Some("it does not answer".to_owned()), Some(at(0)));
        Ok::<_, keystore::Error>(())
    };
    for n in 0..9 {
        house.0.update(&format!("db-{n}/ubuntu"), fault).await.unwrap();
    }
    let custody = Custody { vault: &house.0, trail: &house.1, reach: &many };
    custody.look_after(&signers, 90 * 86_400, at(91 * 86_400)).await.unwrap();
    let first: BTreeSet<String> = many.visited().into_iter().take(3).collect();
    assert_eq!(first, ["db-10", "db-11", "db-9"].map(str::to_owned).into());
}

#[tokio::test]
async fn instances_are_asked_whether_they_trust_the_announced_authority_and_what_each_says_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let house = open(dir.path()).await;
    let signers = Signers::load(&house.0).await.unwrap();
    let many = Many::of(["both", "old", "none", "down"].map(|name| (name.to_owned(), Machine::new())).into());
    for name in many.machines.keys() {
        house.0.insert(&Machine::instance(name, SignsIn::Certificate)).await.unwrap();
    }
    let custody = Custody { vault: &house.0, trail: &house.1, reach: &many };
    assert_eq!(custody.probe(&signers, Asked::All, at(0)).await.unwrap(), 0, "there is nothing to ask for");
    let hour = 3600;
    let ends = at(24 * hour);
    let begun = custody.announce(&signers, (keystore::CaKind::User, "root"), ends, at(0)).await.unwrap();
    many.machines["both"].trust_authorities(&[begun.from.clone(), begun.to.clone()]);
    many.machines["old"].trust_authorities(std::slice::from_ref(&begun.from));
    many.machines["down"].next(&[Luck::Down, Luck::Down]);
    custody.look_after(&signers, 90 * 86_400, at(60)).await.unwrap();
    let said = async |name: &str| {
        house.0.get::<keystore::CaProbe>(name).await.unwrap().unwrap().fault.unwrap_or_default()
    };
    assert_eq!(
        [said("both").await, said("old").await, said("none").await, said("down").await],
        ["", "it trusts the one before alone", "it trusts neither", "it does not answer"]
    );
    let left = lagging(&house.0, keystore::CaKind::User).await.unwrap();
    assert_eq!(left.iter().map(ToString::to_string).collect::<Vec<_>>(), ["down", "none", "old"]);
    // Soon again nobody is, an hour later all who are left; the same answer is not told twice.
    let visits = many.visited().len();
    custody.look_after(&signers, 90 * 86_400, at(120)).await.unwrap();
    assert_eq!(many.visited().len(), visits);
    many.machines["old"].trust_authorities(std::slice::from_ref(&begun.to));
    custody.look_after(&signers, 90 * 86_400, at(60 + hour)).await.unwrap();
    assert_eq!(many.visited().len(), visits + 3);
    assert_eq!(said("old").await, "");
    let told = house.1.query(&Filter::default()).unwrap();
    let mut told: Vec<_> = told
        .iter()
        .filter(|event| event["event"] == "ca_not_trusted")
        .map(|event| event["instance"].as_str().unwrap())
        .collect();
    told.sort_unstable();
    assert_eq!(told, ["down", "none", "old"]);
    let retired = custody.retire(&signers, (keystore::CaKind::User, "root"), at(2 * hour)).await.unwrap();
    assert_eq!(retired.iter().map(ToString::to_string).collect::<Vec<_>>(), ["down", "none"]);
}

/// A house whose store is in memory, and whom others are faster than.
async fn meddled(dir: &Path) -> (std::sync::Arc<Meddled>, (Vault, Trail)) {
    let store = std::sync::Arc::new(Meddled::default());
    let vault = Vault::new(store.clone(), MasterKey::generate().unwrap());
    vault.initialise().await.unwrap();
    let signers = Signers::create(&vault).await.unwrap();
    let trail = Trail::open(&dir.join("audit"), signers.audit.clone()).unwrap();
    (store, (vault, trail))
}

#[tokio::test]
async fn a_credential_that_is_removed_in_the_middle_of_a_step_does_not_come_back() {
    // It stops at the first try of the key, at the install, at the switch, at the removal; and goes on from there.
    for good in 0..4 {
        for goes_well in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (store, house) = meddled(dir.path()).await;
            let (machine, instance) = machine(&house.0).await;
            machine.next(&[vec![Luck::Good; good], vec![Luck::Down]].concat());
            rotate(&house, &machine, &instance).await.unwrap_err();
            machine.next(if goes_well { &[] } else { &[Luck::Down] });
            store.removes_before_write("credential/db-1/ubuntu", "credential/db-1/ubuntu");
            let why = rotate(&house, &machine, &instance).await.unwrap_err();
            assert!(why.contains("removed or changed meanwhile"), "{good} {goes_well}: {why}");
            let left: Vec<Credential> = house.0.list().await.unwrap();
            assert!(left.is_empty(), "{good} {goes_well}: {left:?}");
        }
    }
}

#[tokio::test]
async fn what_an_instance_that_is_removed_meanwhile_said_of_its_authorities_is_not_kept() {
    for removed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (store, house) = meddled(dir.path()).await;
        let signers = Signers::load(&house.0).await.unwrap();
        let machine = Machine::new();
        house.0.insert(&Machine::instance("web-1", SignsIn::Certificate)).await.unwrap();
        let custody = Custody { vault: &house.0, trail: &house.1, reach: &machine };
        let user_ca = (keystore::CaKind::User, "root");
        let begun = custody.announce(&signers, user_ca, at(86_400), at(0)).await.unwrap();
        machine.trust_authorities(std::slice::from_ref(&begun.to));
        if removed {
            store.removes_before_write("ca-accepted/web-1", "instance/web-1");
        }
        assert_eq!(custody.probe(&signers, Asked::All, at(60)).await.unwrap(), 1);
        let kept = house.0.get::<keystore::Accepted>("web-1").await.unwrap();
        let probed = house.0.get::<keystore::CaProbe>("web-1").await.unwrap();
        assert_eq!((kept.is_some(), probed.is_some()), (!removed, !removed));
    }
}
