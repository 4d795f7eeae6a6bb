//! One suite for every backend: what the trait promises, tried on each implementation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use keystore::backend::{
    Backend, BackendError, Embedded, Guard, Lease, Memory, Outcome, Revision, Transaction, Versioned, Write,
};
use keystore::seal::MasterKey;

/// The master key of every store here.
static KEY: LazyLock<MasterKey> = LazyLock::new(|| MasterKey::generate().unwrap());

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Write {
    Write::Put(b(key), b(value))
}

async fn commit(backend: &dyn Backend, guards: Vec<Guard>, writes: Vec<Write>) -> Option<Revision> {
    match backend.transact(Transaction { guards, writes }).await.unwrap() {
        Outcome::Committed(revision) => Some(revision),
        Outcome::Conflict => None,
    }
}

async fn value(backend: &dyn Backend, key: &str) -> Option<Bytes> {
    backend.get(key.as_bytes()).await.unwrap().map(|v| v.value)
}

async fn what_is_put_is_there_and_what_is_deleted_is_not(backend: Arc<dyn Backend>) {
    assert_eq!(value(&*backend, "a").await, None);
    let revision = commit(&*backend, vec![], vec![put("a", "1")]).await.unwrap();
    let stored = backend.get(b"a").await.unwrap().unwrap();
    assert_eq!(stored, Versioned { value: b("1"), revision });
    let later =
        commit(&*backend, vec![], vec![Write::Delete(b("a")), Write::Delete(b("none"))]).await.unwrap();
    assert!(later > revision);
    assert_eq!(backend.revision().await.unwrap(), later);
    assert_eq!(value(&*backend, "a").await, None);
}

async fn a_guard_that_does_not_hold_changes_nothing(backend: Arc<dyn Backend>) {
    let first = commit(&*backend, vec![Guard::Absent(b("a"))], vec![put("a", "1")]).await.unwrap();
    assert_eq!(
        commit(&*backend, vec![Guard::Absent(b("a"))], vec![put("a", "2"), put("b", "2")]).await,
        None
    );
    assert_eq!(commit(&*backend, vec![Guard::Unchanged(b("a"), first + 1)], vec![put("b", "2")]).await, None);
    assert_eq!(commit(&*backend, vec![Guard::Unchanged(b("none"), first)], vec![put("b", "2")]).await, None);
    assert_eq!(value(&*backend, "a").await, Some(b("1")));
    assert_eq!(value(&*backend, "b").await, None);
    assert_eq!(backend.revision().await.unwrap(), first);
    assert!(commit(&*backend, vec![Guard::Unchanged(b("a"), first)], vec![put("a", "2")]).await.is_some());
}

async fn a_range_is_ordered_and_keeps_to_its_prefix(backend: Arc<dyn Backend>) {
    commit(&*backend, vec![], vec![put("k/b", "2"), put("k/a", "1"), put("l", "3"), put("k", "0")]).await;
    let keys = |rows: Vec<(Bytes, Versioned)>| rows.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
    assert_eq!(keys(backend.range(b"k/").await.unwrap()), [b("k/a"), b("k/b")]);
    assert_eq!(keys(backend.range(b"").await.unwrap()).len(), 4);
    assert!(backend.range(b"x").await.unwrap().is_empty());
}

async fn of_many_writers_each_step_is_won_by_one(backend: Arc<dyn Backend>) {
    commit(&*backend, vec![], vec![put("n", "0")]).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    loop {
                        let now = backend.get(b"n").await.unwrap().unwrap();
                        let n: u32 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                        let guard = Guard::Unchanged(b("n"), now.revision);
                        if commit(&*backend, vec![guard], vec![put("n", &(n + 1).to_string())])
                            .await
                            .is_some()
                        {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value(&*backend, "n").await, Some(b("128")));
}

async fn a_watch_sees_every_change_of_its_prefix_in_order(backend: Arc<dyn Backend>) {
    let before = backend.revision().await.unwrap();
    commit(&*backend, vec![], vec![put("w/1", "a"), put("other", "x")]).await;
    let mut watch = backend.watch(b"w/", before).await.unwrap();
    commit(&*backend, vec![], vec![Write::Delete(b("w/1"))]).await;
    let first = watch.recv().await.unwrap();
    let second = watch.recv().await.unwrap();
    assert_eq!((first.key, first.value), (b("w/1"), Some(b("a"))));
    assert_eq!((second.key, second.value), (b("w/1"), None));
    assert!(first.revision < second.revision);
    assert!(watch.try_recv().is_err());
}

async fn a_leased_key_goes_with_its_lease_and_stays_with_a_renewed_one(backend: Arc<dyn Backend>) {
    let lease = backend.lease(Duration::from_millis(400)).await.unwrap();
    let write = Write::PutLeased(b("here"), b("1"), lease);
    let revision = commit(&*backend, vec![], vec![write]).await.unwrap();
    let mut watch = backend.watch(b"here", revision).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(backend.renew(lease).await.unwrap());
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(value(&*backend, "here").await.is_some(), "renewed");
    assert_eq!(watch.recv().await.unwrap().value, None);
    assert_eq!(value(&*backend, "here").await, None);
    assert!(!backend.renew(lease).await.unwrap());
    let late = Write::PutLeased(b("here"), b("1"), lease);
    assert_eq!(commit(&*backend, vec![], vec![late]).await, None, "the lease is gone");
    assert_eq!(commit(&*backend, vec![], vec![Write::PutLeased(b("x"), b("1"), Lease(99))]).await, None);
}

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod memory {
            use super::*;
            $(#[tokio::test] async fn $case() { super::$case(Arc::new(Memory::default())).await; })*
        }
        mod embedded {
            use super::*;
            $(#[tokio::test] async fn $case() {
                let dir = tempfile::tempdir().unwrap();
                super::$case(Arc::new(Embedded::open(dir.path(), true, KEY.line_key()).unwrap())).await;
            })*
        }
    };
}

suite!(
    what_is_put_is_there_and_what_is_deleted_is_not,
    a_guard_that_does_not_hold_changes_nothing,
    a_range_is_ordered_and_keeps_to_its_prefix,
    of_many_writers_each_step_is_won_by_one,
    a_watch_sees_every_change_of_its_prefix_in_order,
    a_leased_key_goes_with_its_lease_and_stays_with_a_renewed_one,
);

#[tokio::test]
async fn a_watch_from_before_the_start_says_that_it_would_have_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), true, KEY.line_key()).unwrap();
    commit(&store, vec![], vec![put("a", "1")]).await;
    drop(store);
    let store = Embedded::open(dir.path(), false, KEY.line_key()).unwrap();
    assert!(matches!(store.watch(b"", 0).await, Err(BackendError::Compacted(0))));
    assert!(store.watch(b"", 1).await.is_ok());
}
