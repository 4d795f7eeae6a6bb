//! A store whose process dies between any two steps of a compaction, or of a change of the master key. Each is tried in
//! a process of its own, which ends at the named point as if by `kill -9`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use keystore::backend::{Backend, Embedded, EmbeddedError, Transaction, Write};
use keystore::seal::{MasterKey, MasterKeySource};
use keystore::signing::Signers;
use keystore::{Ended, Error, OpenError, Successor, User, Vault};

const DIR: &str = "KEYWARD_TEST_DIR";
const DIE_AT: &str = "KEYWARD_TEST_DIE_AT";

/// Runs the test `name` of this file in a process of its own that dies at `point`.
fn dies_at(name: &str, dir: &Path, point: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture", "--include-ignored"]).env(DIR, dir).env(DIE_AT, point);
    let output = child.output().unwrap();
    assert!(!output.status.success(), "it did not come by {point}: {output:?}");
    assert_eq!(output.status.code(), None, "it did not die at {point}: {output:?}");
}

fn dir_of_child() -> Option<std::path::PathBuf> {
    std::env::var_os(DIR).map(Into::into)
}

/// The store in `dir`, under the master key in it.
fn open(dir: &Path, create: bool) -> Result<Embedded, EmbeddedError> {
    let file = dir.join("master.key");
    if create && !file.exists() {
        MasterKey::generate().unwrap().write_new(&file).unwrap();
    }
    Embedded::open(dir, create, MasterKey::load(&MasterKeySource::File(file)).unwrap().line_key())
}

async fn put(store: &Embedded, key: &str, value: &str) {
    let writes =
        vec![Write::Put(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))];
    store.transact(Transaction { guards: vec![], writes }).await.unwrap();
}

async fn rows(store: &Embedded) -> Vec<(String, String, u64)> {
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
    let rows = store.range(b"").await.unwrap();
    rows.iter().map(|(key, row)| (text(key), text(&row.value), row.revision)).collect()
}

/// Whether any file under `dir` has these bytes, as they are or in base64.
fn on_disk(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path, bytes);
        }
        let held = std::fs::read(path).unwrap();
        let encoded = data_encoding::BASE64.encode(bytes);
        [bytes, encoded.as_bytes()].iter().any(|wanted| held.windows(wanted.len()).any(|w| w == *wanted))
    })
}

async fn long_history(dir: &Path) -> Embedded {
    let store = open(dir, true).unwrap();
    for n in 0..50 {
        put(&store, "counter", &format!("forgotten-value-{n}")).await;
        put(&store, &format!("k{}", n % 7), &n.to_string()).await;
    }
    put(&store, "counter", "live").await;
    store
}

#[tokio::test]
async fn a_compacted_store_has_its_rows_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = long_history(dir.path()).await;
    let before = rows(&store).await;
    assert!(on_disk(dir.path(), b"forgotten-value-3"));
    let lease = store.lease(std::time::Duration::from_secs(60)).await.unwrap();
    let leased = vec![Write::PutLeased(Bytes::from("here"), Bytes::from("1"), lease)];
    store.transact(Transaction { guards: vec![], writes: leased }).await.unwrap();

    let compacted = store.compact().await.unwrap().unwrap();
    assert_eq!((compacted.through, compacted.base), (102, 103));
    assert_eq!(store.history().await.unwrap(), 0);
    assert!(!on_disk(dir.path(), b"forgotten-value-3") && on_disk(dir.path(), b"live"));
    assert!(store.get(b"here").await.unwrap().is_some(), "what is leased lives on in this process");
    put(&store, "after", "1").await;
    drop(store);
    let store = open(dir.path(), false).unwrap();
    let mut expected = before;
    expected.insert(0, ("after".to_owned(), "1".to_owned(), 104));
    assert_eq!(rows(&store).await, expected, "values and revisions are what they were");
    assert_eq!(store.revision().await.unwrap(), 104);
    // Once more, on top of the first.
    store.compact().await.unwrap();
    drop(store);
    assert_eq!(rows(&open(dir.path(), false).unwrap()).await, expected);
    assert_eq!(std::fs::read_dir(dir.path().join("journal")).unwrap().count(), 2, "a segment and the lock");
}

#[tokio::test]
async fn the_chain_of_a_compacted_journal_goes_on_from_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = long_history(dir.path()).await;
    let compacted = store.compact().await.unwrap().unwrap();
    drop(store);
    let journal = dir.path().join("journal");
    let base = std::fs::read_dir(&journal).unwrap().map(|e| e.unwrap().path());
    let base = base.into_iter().find(|p| p.extension().is_some_and(|e| e == "journal")).unwrap();
    let name = base.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name, format!("{:020}.after-{}.journal", compacted.base, compacted.head));
    // The name is bound into the first line: as the follower of another line it is refused.
    let other = journal.join(name.replace(&compacted.head, &"0".repeat(64)));
    std::fs::rename(&base, &other).unwrap();
    assert!(matches!(open(dir.path(), false), Err(EmbeddedError::Journal(_))));
    std::fs::rename(&other, &base).unwrap();
    // To the audit trail's eyes such a journal has lost its beginning.
    assert!(keystore::journal::verify(&journal).is_err());
    drop(open(dir.path(), false).unwrap());
    // A journal from before the compaction, restored beside an index from after it, is refused.
    std::fs::remove_file(&base).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("master.key"), elsewhere.path().join("master.key")).unwrap();
    drop(long_history(elsewhere.path()).await);
    let old = format!("{:020}.journal", 1);
    std::fs::copy(elsewhere.path().join("journal").join(&old), journal.join(&old)).unwrap();
    let refused = open(dir.path(), false).err().unwrap();
    assert!(matches!(refused, EmbeddedError::JournalBehind { journal: 101, index: 102 }), "{refused}");
}

/// Only as a process of its own.
#[tokio::test]
#[ignore = "the part of the child"]
async fn child_compacts() {
    let Some(dir) = dir_of_child() else { return };
    open(&dir, false).unwrap().compact().await.unwrap();
}

#[tokio::test]
async fn a_compaction_that_dies_at_any_step_has_happened_or_has_not() {
    for point in [
        "journal.base.written",
        "journal.base.named",
        "journal.segment.removed",
        "store.index.old",
        "store.index.new",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = long_history(dir.path()).await;
        let before = rows(&store).await;
        drop(store);
        dies_at("child_compacts", dir.path(), point);
        let store = open(dir.path(), false).unwrap();
        assert_eq!(rows(&store).await, before, "{point}");
        let forgot = !on_disk(dir.path(), b"forgotten-value-3");
        assert_eq!(forgot, point != "journal.base.written", "{point}");
        put(&store, "after", "1").await;
        store.compact().await.unwrap();
        drop(store);
        assert_eq!(rows(&open(dir.path(), false).unwrap()).await.len(), before.len() + 1, "{point}");
        assert!(!on_disk(dir.path(), b"forgotten-value-3"), "{point}");
    }
}

fn key(dir: &Path, name: &str) -> MasterKey {
    MasterKey::load(&MasterKeySource::File(dir.join(name))).unwrap()
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn opened(dir: &Path, name: &str) -> Result<Vault, OpenError> {
    Vault::open(&dir.join("store"), key(dir, name), name)
}

fn vault(dir: &Path, name: &str) -> Vault {
    opened(dir, name).unwrap()
}

/// A store sealed under `old`, beside the two key files; and its host key.
async fn house(dir: &Path) -> String {
    for name in ["old", "new"] {
        MasterKey::generate().unwrap().write_new(&dir.join(name)).unwrap();
    }
    let vault = Vault::create(&dir.join("store"), key(dir, "old")).unwrap();
    vault.initialise().await.unwrap();
    vault.next_id("K").await.unwrap();
    host(&Signers::create(&vault).await.unwrap())
}

fn host(signers: &Signers) -> String {
    signers.host.public_key().to_openssh().unwrap()
}

async fn rekey(dir: &Path) -> Vault {
    let vault = vault(dir, "old");
    vault.check_master_key("old").await.unwrap();
    let to = Successor { key: key(dir, "new"), place: "the file new".to_owned(), by: "root".to_owned() };
    let done = vault.rekey(to, now()).await.unwrap();
    assert_eq!((done.from, done.to, done.records), (key(dir, "old").id(), key(dir, "new").id(), 6));
    vault
}

#[tokio::test]
async fn after_the_change_the_new_key_opens_everything_and_the_old_one_nothing_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let made = house(dir.path()).await;
    let sealed = {
        let key = key(dir.path(), "old").line_key();
        let store = Embedded::open(&dir.path().join("store"), false, key).unwrap();
        store.get(b"secret/host").await.unwrap().unwrap().value
    };
    let vault = rekey(dir.path()).await;
    assert_eq!(host(&Signers::load(&vault).await.unwrap()), made, "the open vault goes on");
    assert_eq!(vault.next_id("K").await.unwrap(), "K2");
    assert!(on_disk(&dir.path().join("store"), &sealed), "the journal still has it");
    vault.compact().await.unwrap();
    vault.rekeying_done().await.unwrap();
    assert_eq!(vault.rekeyed().await.unwrap(), None);
    assert!(!on_disk(&dir.path().join("store"), &sealed));
    drop(vault);
    let wrong = opened(dir.path(), "old").err().unwrap();
    let line_key = key(dir.path(), "new").line_key();
    let store = Arc::new(Embedded::open(&dir.path().join("store"), false, line_key).unwrap());
    for (name, row) in store.range(b"").await.unwrap() {
        let name = String::from_utf8(name.to_vec()).unwrap();
        assert!(key(dir.path(), "old").open(&name, &row.value).is_err(), "{name}");
    }
    let (old, new) = (key(dir.path(), "old").id(), key(dir.path(), "new").id());
    assert_eq!(
        wrong.to_string(),
        format!(
            "the store is sealed under master key {new} (which was in the file new); what is in old is master key \
             {old}. Name the right one as master_key in keyward.toml"
        )
    );
    let vault = Vault::new(store, key(dir.path(), "new"));
    vault.check_master_key("new").await.unwrap();
    assert_eq!(vault.next_id("K").await.unwrap(), "K3");
    assert_eq!(host(&Signers::load(&vault).await.unwrap()), made);
}

/// Only as a process of its own.
#[tokio::test]
#[ignore = "the part of the child"]
async fn child_rekeys() {
    let Some(dir) = dir_of_child() else { return };
    let vault = rekey(&dir).await;
    vault.compact().await.unwrap();
    vault.rekeying_done().await.unwrap();
}

#[tokio::test]
async fn a_change_that_dies_at_any_step_leaves_a_store_that_one_of_the_keys_opens() {
    for (point, opens) in [
        ("rekey.begun", "old"),
        ("rekey.sealed", "old"),
        ("rekey.committed", "new"),
        ("journal.base.written", "new"),
        ("journal.base.named", "new"),
        ("journal.segment.removed", "new"),
        ("store.index.old", "new"),
        ("store.index.new", "new"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let made = house(dir.path()).await;
        dies_at("child_rekeys", dir.path(), point);
        let other = if opens == "old" { "new" } else { "old" };
        let wrong = opened(dir.path(), other).err().unwrap();
        assert!(matches!(wrong, OpenError::Key(Error::OtherMasterKey { .. })), "{point}: {wrong}");
        let id = key(dir.path(), opens).id();
        let words = format!("the store is sealed under master key {id}");
        assert!(wrong.to_string().starts_with(&words), "{point}: {wrong}");
        let vault = vault(dir.path(), opens);
        vault.check_master_key(opens).await.unwrap();
        assert_eq!(host(&Signers::load(&vault).await.unwrap()), made, "{point}");
        assert_eq!(vault.next_id("K").await.unwrap(), "K2", "{point}");
        let owed = vault.rekeyed().await.unwrap();
        assert_eq!(owed.is_some(), opens == "new", "{point}: what is left to do is known");
    }
}

#[tokio::test]
async fn who_reads_and_writes_meanwhile_notices_nothing() {
    let dir = tempfile::tempdir().unwrap();
    house(dir.path()).await;
    let vault = Arc::new(vault(dir.path(), "old"));
    let busy: Vec<_> = (0..8)
        .map(|n| {
            let vault = vault.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    vault.next_id(&format!("P{}", n % 3)).await.unwrap();
                    Signers::load(&vault).await.unwrap();
                }
            })
        })
        .collect();
    for name in ["new", "old", "new"] {
        let to = Successor { key: key(dir.path(), name), place: name.to_owned(), by: "root".to_owned() };
        vault.rekey(to, now()).await.unwrap();
        vault.compact().await.unwrap();
        vault.rekeying_done().await.unwrap();
    }
    for task in busy {
        task.await.unwrap();
    }
    let total = [
        vault.next_id("P0").await.unwrap(),
        vault.next_id("P1").await.unwrap(),
        vault.next_id("P2").await.unwrap(),
    ];
    assert_eq!(total, ["P0151", "P1151", "P2101"]);
}

/// In base64 more than any line of the journal holds, in values of a megabyte; and as many as need two lines.
const LARGE: usize = 13;
const TWO_LINES: usize = 5;

fn large(n: usize) -> User {
    User {
        name: format!("user-{n}").parse().unwrap(),
        roles: [].into(),
        kind: Default::default(),
        added_at: now(),
        expires_at: None,
        suspended: Some(Ended { at: now(), reason: format!("{n:04}").repeat(256 << 10) }),
        from: Vec::new(),
    }
}

async fn large_house(dir: &Path, count: usize) -> String {
    let made = house(dir).await;
    let vault = vault(dir, "old");
    for n in 0..count {
        vault.insert(&large(n)).await.unwrap();
    }
    made
}

async fn is_whole(vault: &Vault, (made, count): (&str, usize)) {
    assert_eq!(host(&Signers::load(vault).await.unwrap()), made);
    let mut users: Vec<User> = vault.list().await.unwrap();
    users.sort_by_key(|user| user.name.as_str().trim_start_matches("user-").parse::<usize>().unwrap());
    assert!(users == (0..count).map(large).collect::<Vec<_>>());
}

/// Only as a process of its own.
#[tokio::test]
#[ignore = "the part of the child"]
async fn child_rekeys_what_is_large() {
    let Some(dir) = dir_of_child() else { return };
    rekey_large(&dir).await;
}

async fn rekey_large(dir: &Path) -> Vault {
    let vault = vault(dir, "old");
    let to = Successor { key: key(dir, "new"), place: "the file new".to_owned(), by: "root".to_owned() };
    vault.rekey(to, now()).await.unwrap();
    vault.compact().await.unwrap();
    vault.rekeying_done().await.unwrap();
    vault
}

#[tokio::test]
async fn a_store_of_any_size_is_sealed_anew_in_one_decision() {
    let dir = tempfile::tempdir().unwrap();
    let made = large_house(dir.path(), LARGE).await;
    drop(rekey_large(dir.path()).await);
    assert!(opened(dir.path(), "old").is_err());
    let vault = vault(dir.path(), "new");
    is_whole(&vault, (&made, LARGE)).await;
    assert_eq!(vault.next_id("K").await.unwrap(), "K2");
}

#[tokio::test]
async fn a_change_of_a_large_store_that_dies_between_its_pieces_has_not_happened() {
    let dir = tempfile::tempdir().unwrap();
    let made = large_house(dir.path(), TWO_LINES).await;
    dies_at("child_rekeys_what_is_large", dir.path(), "store.pieces.held");
    assert!(matches!(opened(dir.path(), "new"), Err(OpenError::Key(_))));
    let vault = vault(dir.path(), "old");
    is_whole(&vault, (&made, TWO_LINES)).await;
    // What is written next voids the pieces that were left; it is tried again, and to its end.
    assert_eq!(vault.next_id("K").await.unwrap(), "K2");
    drop(vault);
    is_whole(&self::vault(dir.path(), "old"), (&made, TWO_LINES)).await;
    drop(rekey_large(dir.path()).await);
    is_whole(&self::vault(dir.path(), "new"), (&made, TWO_LINES)).await;
}
