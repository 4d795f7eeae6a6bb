//! Somebody who has the disk, and not the master key, writes lines of the store's journal: hashes and all, as the chain
//! is no secret. Each attempt is refused by name and changes nothing; the store that nobody touched opens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use keystore::backend::{Backend, BackendError, Embedded, EmbeddedError, Transaction, Write};
use keystore::journal::{self, chain_hash};
use keystore::seal::{MasterKey, MasterKeySource};
use keystore::{OpenError, Successor, Vault};

/// A store, and the master key that whoever has the disk does not have.
struct Scene {
    dir: tempfile::TempDir,
    key: MasterKey,
}

impl Scene {
    /// `key` is put, put again and deleted: records 1 to 3; then `other` is put.
    async fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap(), key: MasterKey::generate().unwrap() };
        let store = scene.open(true).unwrap();
        for (key, value) in [("key", Some("active")), ("key", Some("active still")), ("key", None)] {
            write(&store, key, value).await;
        }
        write(&store, "other", Some("1")).await;
        drop(store);
        scene
    }

    fn open(&self, create: bool) -> Result<Embedded, EmbeddedError> {
        Embedded::open(self.dir.path(), create, self.key.line_key())
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// The newest segment, and the payloads of all lines.
    fn payloads(&self) -> (PathBuf, Vec<String>) {
        let entries: Vec<_> = journal::read_rebased(&self.journal()).map(Result::unwrap).collect();
        let file = entries.last().unwrap().file.clone();
        (file, entries.into_iter().map(|entry| String::from_utf8(entry.payload).unwrap()).collect())
    }

    /// Writes the journal with these lines, whose chain holds, and no index that could know better.
    fn forge(&self, payloads: &[String]) {
        let (file, _) = self.payloads();
        self.forge_in(&file, payloads);
    }

    fn forge_in(&self, file: &Path, payloads: &[String]) {
        let mut before = journal::read_rebased(&self.journal()).head();
        let mut text = String::new();
        for payload in payloads {
            before.seq += 1;
            before.hash = chain_hash(&before.hash, before.seq, payload.as_bytes());
            text += &format!("{} {} {payload}\n", before.seq, before.hash);
        }
        std::fs::write(file, text).unwrap();
        assert_eq!(
            journal::read_rebased(&self.journal()).filter(Result::is_err).count(),
            0,
            "the chain holds"
        );
    }

    fn forget_index(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("index") {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// It is refused for record `seq`, with and without the index, and not a byte of the journal changes.
    fn is_refused_at(&self, seq: u64) {
        let before = files(&self.journal());
        for _ in 0..2 {
            let refused = self.open(false).err().expect("it opened").to_string();
            assert!(refused.contains(&format!(", record {seq}: its mark is not one of")), "{refused}");
            assert!(refused.contains(".journal at byte ") && refused.contains("restore it"), "{refused}");
            assert!(refused.ends_with("nothing was changed"), "{refused}");
            assert_eq!(files(&self.journal()), before);
            self.forget_index();
        }
    }
}

async fn write(store: &Embedded, key: &str, value: Option<&str>) {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let write = match value {
        Some(value) => Write::Put(key, Bytes::copy_from_slice(value.as_bytes())),
        None => Write::Delete(key),
    };
    store.transact(Transaction { guards: vec![], writes: vec![write] }).await.unwrap();
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn a_store_that_nobody_touched_opens_also_without_its_index_and_compacted() {
    let scene = Scene::new().await;
    for _ in 0..2 {
        let store = scene.open(false).unwrap();
        assert!(store.get(b"key").await.unwrap().is_none());
        assert!(store.get(b"other").await.unwrap().is_some());
        store.compact().await.unwrap();
        write(&store, "key", Some("again")).await;
        write(&store, "key", None).await;
        drop(store);
        scene.forget_index();
    }
    // Without any key the chain can be verified as ever; that is what an auditor with a copy does.
    assert_eq!(journal::read_rebased(&scene.journal()).filter(Result::is_err).count(), 0);
}

#[tokio::test]
async fn an_old_put_that_is_appended_again_does_not_bring_its_record_back() {
    let scene = Scene::new().await;
    let (_, mut lines) = scene.payloads();
    lines.push(lines[0].clone());
    scene.forge(&lines);
    scene.is_refused_at(5);
}

#[tokio::test]
async fn a_line_that_is_moved_dropped_changed_or_unmarked_is_refused() {
    let scene = Scene::new().await;
    let (_, lines) = scene.payloads();
    let mut moved = lines.clone();
    moved.swap(1, 2);
    scene.forge(&moved);
    scene.is_refused_at(2);
    let mut dropped = lines.clone();
    dropped.remove(2);
    scene.forge(&dropped);
    scene.is_refused_at(3);
    let mut changed = lines.clone();
    changed[2] = changed[2].replace("delete", "Delete");
    scene.forge(&changed);
    scene.is_refused_at(3);
    let mut declared = lines.clone();
    declared[3] = declared[3].replacen("by", "to", 1);
    scene.forge(&declared);
    scene.is_refused_at(4);
    let mut stripped = lines.clone();
    let at = stripped[3].find('[').unwrap();
    stripped[3].drain(..at);
    scene.forge(&stripped);
    let refused = scene.open(false).err().unwrap().to_string();
    assert!(refused.contains(", record 4: it has no mark of the master key"), "{refused}");
    scene.forge(&lines);
    scene.open(false).unwrap();
}

#[tokio::test]
async fn a_line_of_another_master_key_is_refused_wherever_it_stands() {
    let (scene, other) = (Scene::new().await, Scene::new().await);
    let ((_, lines), (_, theirs)) = (scene.payloads(), other.payloads());
    let mut with = lines.clone();
    with.push(theirs[0].clone());
    scene.forge(&with);
    scene.is_refused_at(5);
    with = lines.clone();
    with[0] = theirs[0].clone();
    // The next line no longer follows the one that it was written behind.
    scene.forge(&with);
    scene.is_refused_at(2);
    // All of them: it is that store, which opens under its own key.
    scene.forge(&theirs);
    let refused = Vault::open(scene.dir.path(), key_of(&scene), "it").err().unwrap();
    assert!(matches!(refused, OpenError::Key(keystore::Error::OtherMasterKey { .. })), "{refused}");
    assert!(
        refused.to_string().starts_with(&format!("the store is sealed under master key {};", other.key.id()))
    );
}

/// The scene's master key once more.
fn key_of(scene: &Scene) -> MasterKey {
    let file = scene.dir.path().join("master.key");
    if !file.exists() {
        scene.key.write_new(&file).unwrap();
    }
    MasterKey::load(&MasterKeySource::File(file)).unwrap()
}

#[tokio::test]
async fn a_forged_base_is_refused_and_the_lines_before_it_stay() {
    let scene = Scene::new().await;
    let (_, lines) = scene.payloads();
    let head = journal::read_rebased(&scene.journal()).map(Result::unwrap).last().unwrap();
    let name = format!("{:020}.after-{}.journal", head.seq + 1, head.hash);
    let base = lines[0][..85].to_owned() + r#"{"rows":[["a2V5","YWN0aXZl",1]],"left":0}"#;
    let base_file = scene.journal().join(name);
    std::fs::write(&base_file, "").unwrap();
    scene.forge_in(&base_file, &[base]);
    scene.is_refused_at(5);
    std::fs::remove_file(&base_file).unwrap();
    scene.open(false).unwrap();
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_a_whole_last_line_with_a_wrong_mark_is_not() {
    let scene = Scene::new().await;
    let (file, lines) = scene.payloads();
    let whole = std::fs::read(&file).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    // What a crash leaves of a fifth line, and a crash in the middle of the mark.
    for torn in [&whole[last..whole.len() - 1], &b"5 aa"[..]] {
        std::fs::write(&file, [&whole[..], torn].concat()).unwrap();
        drop(scene.open(false).unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }
    // A torn tail behind a forged line is not cut either: nothing changes.
    let mut forged = lines.clone();
    forged.push(lines[3].clone());
    scene.forge(&forged);
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&text[..], b"6 aa"].concat()).unwrap();
    scene.is_refused_at(5);
}

#[tokio::test]
async fn a_whole_journal_that_is_rolled_back_is_still_what_its_index_betrays() {
    let scene = Scene::new().await;
    let (_, lines) = scene.payloads();
    scene.forge(&lines[..2]);
    let refused = scene.open(false).err().unwrap();
    assert!(matches!(refused, EmbeddedError::JournalBehind { journal: 2, index: 4 }), "{refused}");
}

#[tokio::test]
async fn a_line_that_only_its_mark_makes_too_long_changes_nothing_and_the_store_goes_on() {
    let scene = Scene::new().await;
    let store = scene.open(false).unwrap();
    let mut writes = 0;
    // A line is 16 MiB, less 128 bytes for its number and hash. Base64 makes 4 of 3.
    for spare in (0..160).step_by(20) {
        let value = vec![7; ((16 << 20) - 128 - spare) / 4 * 3 - 18];
        let write = Write::Put(Bytes::from("large"), Bytes::from(value));
        match store.transact(Transaction { guards: vec![], writes: vec![write] }).await {
            Ok(_) => writes += 1,
            Err(fault) => assert!(matches!(fault, BackendError::TooLarge), "{spare}: {fault}"),
        }
    }
    assert!(writes > 0 && writes < 8, "{writes}");
    drop(store);
    scene.open(false).unwrap();
}

/// A vault whose master key was changed, with the journal as it was before that, and after, not compacted.
async fn rekeyed() -> (Scene, MasterKey, Vec<String>) {
    let scene = Scene { dir: tempfile::tempdir().unwrap(), key: MasterKey::generate().unwrap() };
    let vault = Vault::create(scene.dir.path(), key_of(&scene)).unwrap();
    vault.initialise().await.unwrap();
    vault.next_id("K").await.unwrap();
    let new = MasterKey::generate().unwrap();
    let file = scene.dir.path().join("new.key");
    new.write_new(&file).unwrap();
    let to = Successor { key: new, place: "new.key".to_owned(), by: "root".to_owned() };
    let (_, before) = scene.payloads();
    vault.rekey(to, Timestamp::UNIX_EPOCH).await.unwrap();
    vault.next_id("K").await.unwrap();
    (scene, MasterKey::load(&MasterKeySource::File(file)).unwrap(), before)
}

#[tokio::test]
async fn a_new_master_key_vouches_for_the_lines_before_it_and_the_old_one_writes_no_more() {
    let (scene, new, before) = rekeyed().await;
    let open = |key: &MasterKey| Embedded::open(scene.dir.path(), false, key.line_key());
    drop(open(&new).unwrap());
    let (_, lines) = scene.payloads();
    // Under the old key: it is told which one takes over, and where.
    let refused = Vault::open(scene.dir.path(), key_of(&scene), "old").err().unwrap().to_string();
    let words = format!("under master key {} (which was in new.key), says ", new.id());
    assert!(refused.contains(&words) && refused.contains(", record 4: "), "{refused}");
    // A line of the old key, after the change and before it.
    let refusal = |lines: &[String]| {
        scene.forge(lines);
        scene.forget_index();
        open(&new).err().expect("it opened").to_string()
    };
    let mut with = lines.clone();
    with.push(lines[1].clone());
    assert!(refusal(&with).contains(&format!("record {}: its mark", lines.len() + 1)));
    with = lines.clone();
    with.insert(1, lines[1].clone());
    // What takes over vouches for the lines that it followed, and for no other.
    let taken_over = with.iter().position(|line| line.starts_with("to ")).unwrap() + 1;
    assert!(refusal(&with).contains(&format!("record {taken_over}: its mark")), "{}", refusal(&with));
    // The journal of before the change is the old key's.
    assert!(refusal(&before).contains(&format!("written under master key {}", scene.key.id())));
    scene.forge(&lines);
    drop(open(&new).unwrap());
}

#[tokio::test]
async fn another_change_before_the_first_is_cleaned_up_also_back_to_the_old_key_opens() {
    let (scene, new, _) = rekeyed().await;
    let new_file = scene.dir.path().join("new.key");
    let again = || MasterKey::load(&MasterKeySource::File(new_file.clone())).unwrap();
    let vault = Vault::open(scene.dir.path(), again(), "new").unwrap();
    let to = Successor { key: key_of(&scene), place: "old".to_owned(), by: "root".to_owned() };
    vault.rekey(to, Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(vault.next_id("K").await.unwrap(), "K3");
    drop(vault);
    let refused = Vault::open(scene.dir.path(), again(), "new").err().unwrap().to_string();
    assert!(refused.contains(&format!("master key {} (which was in old)", scene.key.id())), "{refused}");
    let vault = Arc::new(Vault::open(scene.dir.path(), key_of(&scene), "old").unwrap());
    assert_eq!(vault.next_id("K").await.unwrap(), "K4");
    vault.compact().await.unwrap();
    drop(vault);
    assert!(Embedded::open(scene.dir.path(), false, new.line_key()).is_err());
    scene.open(false).unwrap();
}
