//! The embedded store on disk: what survives, what is made anew, what is refused.
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
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keystore::backend::{Backend, Embedded, EmbeddedError, Outcome, Transaction, Versioned, Write};
use keystore::seal::{MasterKey, MasterKeySource};
use keystore::{Error, Vault};

/// The store in `dir`, under the master key in it; one that was not made yet has any.
fn open(dir: &Path, create: bool) -> Result<Embedded, EmbeddedError> {
    let file = dir.join("master.key");
    if create && !file.exists() {
        MasterKey::generate().unwrap().write_new(&file).unwrap();
    }
    let key = MasterKey::load(&MasterKeySource::File(file)).unwrap_or(MasterKey::generate().unwrap());
    Embedded::open(dir, create, key.line_key())
}

async fn put(store: &Embedded, key: &'static str, value: &'static str) {
    let writes = vec![Write::Put(Bytes::from(key), Bytes::from(value))];
    store.transact(Transaction { guards: vec![], writes }).await.unwrap();
}

async fn value(store: &Embedded, key: &str) -> Option<Bytes> {
    store.get(key.as_bytes()).await.unwrap().map(|v| v.value)
}

fn segment(dir: &Path) -> std::path::PathBuf {
    dir.join("journal").join(format!("{:020}.journal", 1))
}

async fn filled(dir: &Path) {
    let store = open(dir, true).unwrap();
    put(&store, "a", "1").await;
    put(&store, "b", "2").await;
}

fn refusal(dir: &Path, create: bool) -> EmbeddedError {
    open(dir, create).err().unwrap()
}

#[tokio::test]
async fn a_store_comes_back_and_is_never_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(&dir.path().join("none"), false), EmbeddedError::Missing(_)));
    assert!(!dir.path().join("none").exists());
    filled(dir.path()).await;
    assert!(matches!(refusal(dir.path(), true), EmbeddedError::Exists(_)));
    let store = open(dir.path(), false).unwrap();
    assert_eq!(value(&store, "a").await.unwrap(), "1");
    assert_eq!(store.revision().await.unwrap(), 2);
    assert!(matches!(refusal(dir.path(), false), EmbeddedError::Journal(_)), "open twice");
}

#[tokio::test]
async fn a_missing_or_damaged_index_is_made_anew_and_a_missing_journal_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let index = dir.path().join("index");
    std::fs::remove_dir_all(&index).unwrap();
    assert_eq!(value(&open(dir.path(), false).unwrap(), "b").await.unwrap(), "2");
    for name in ["db", "conf"] {
        let mut bytes = std::fs::read(index.join(name)).unwrap();
        bytes.iter_mut().for_each(|b| *b ^= 0x55);
        std::fs::write(index.join(name), bytes).unwrap();
        assert_eq!(value(&open(dir.path(), false).unwrap(), "b").await.unwrap(), "2", "{name}");
    }
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    assert!(matches!(refusal(dir.path(), false), EmbeddedError::JournalGone(_)));
    assert!(matches!(refusal(dir.path(), true), EmbeddedError::JournalGone(_)));
}

#[tokio::test]
async fn a_journal_that_lost_acknowledged_records_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let text = std::fs::read_to_string(segment(dir.path())).unwrap();
    let first = text.lines().next().unwrap();
    std::fs::write(segment(dir.path()), format!("{first}\n")).unwrap();
    assert!(matches!(refusal(dir.path(), false), EmbeddedError::JournalBehind { journal: 1, index: 2 }));
}

#[tokio::test]
async fn a_change_that_is_too_large_changes_nothing_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), true).unwrap();
    put(&store, "a", "1").await;
    let writes =
        [1, 20].map(|size| Write::Put(Bytes::from(format!("k{size}")), Bytes::from(vec![7; size << 20])));
    let refused = store.transact(Transaction { guards: vec![], writes: writes.into() }).await.unwrap_err();
    assert!(refused.to_string().contains("too large"), "{refused}");
    put(&store, "b", "2").await;
    assert_eq!((value(&store, "b").await, value(&store, "k1").await), (Some("2".into()), None));
}

#[tokio::test]
async fn a_change_that_is_longer_than_a_line_is_one_change_also_after_a_restart_and_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), true).unwrap();
    put(&store, "a", "1").await;
    let writes: Vec<_> =
        (0..20).map(|n| Write::Put(Bytes::from(format!("k{n:02}")), Bytes::from(vec![n; 1 << 20]))).collect();
    let outcome = store.transact(Transaction { guards: vec![], writes }).await.unwrap();
    // Seven pieces, the last of which decides.
    assert_eq!(outcome, Outcome::Committed(8));
    put(&store, "b", "2").await;
    let whole = |rows: &[(Bytes, Versioned)]| {
        let large = rows.iter().filter(|(key, _)| key.starts_with(b"k"));
        let large: Vec<_> = large.map(|(_, row)| (row.value.len(), row.value[0], row.revision)).collect();
        assert_eq!(large, (0..20).map(|n| (1 << 20, n, 8)).collect::<Vec<_>>());
    };
    whole(&store.range(b"").await.unwrap());
    drop(store);
    let store = open(dir.path(), false).unwrap();
    whole(&store.range(b"").await.unwrap());
    store.compact().await.unwrap();
    drop(store);
    let store = open(dir.path(), false).unwrap();
    whole(&store.range(b"").await.unwrap());
    assert_eq!(value(&store, "b").await, Some("2".into()));
}

#[tokio::test]
async fn a_compaction_that_was_told_of_forgets_nothing_that_came_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), true).unwrap();
    put(&store, "a", "1").await;
    let (told, hash) = store.newest().await.unwrap().unwrap();
    put(&store, "a", "2").await;
    assert!(store.compact_at(Some(told)).await.is_err());
    let (newest, _) = store.newest().await.unwrap().unwrap();
    assert_eq!((told, hash.len(), newest), (1, 64, 2));
    assert_eq!(store.compact_at(Some(newest)).await.unwrap().unwrap().through, 2);
    assert_eq!(value(&store, "a").await, Some("2".into()));
}

#[tokio::test]
async fn a_leased_key_does_not_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let store = open(dir.path(), false).unwrap();
    let lease = store.lease(Duration::from_secs(60)).await.unwrap();
    let writes = vec![Write::PutLeased(Bytes::from("here"), Bytes::from("1"), lease)];
    store.transact(Transaction { guards: vec![], writes }).await.unwrap();
    assert!(value(&store, "here").await.is_some());
    drop(store);
    let store = open(dir.path(), false).unwrap();
    assert_eq!(value(&store, "here").await, None);
    assert_eq!(value(&store, "a").await.unwrap(), "1");
}

#[tokio::test]
async fn another_master_key_and_a_moved_value_are_refused() {
    let store = Arc::new(keystore::backend::Memory::default());
    let vault = Vault::new(store.clone(), MasterKey::generate().unwrap());
    assert!(matches!(vault.check_master_key("it").await, Err(Error::NotFound { .. })));
    vault.initialise().await.unwrap();
    vault.check_master_key("it").await.unwrap();
    assert!(matches!(vault.initialise().await, Err(Error::Exists { .. })));
    let other = Vault::new(store.clone(), MasterKey::generate().unwrap());
    assert!(matches!(other.check_master_key("it").await, Err(Error::OtherMasterKey { .. })));
    vault.next_id("K").await.unwrap();
    let moved = store.get(b"counter/K").await.unwrap().unwrap().value;
    let writes = vec![Write::Put(Bytes::from("counter/R"), moved)];
    store.transact(Transaction { guards: vec![], writes }).await.unwrap();
    assert!(matches!(vault.next_id("R").await, Err(Error::Seal(_))));
    assert_eq!(vault.next_id("K").await.unwrap(), "K2");
}
