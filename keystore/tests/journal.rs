//! The journal: what is acknowledged stays, what is changed shows, what was torn is cut.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keystore::journal::{Journal, JournalError, Options, read, verify};

fn segment(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.journal"))
}

async fn filled(dir: &Path, lines: u64, segment_bytes: u64) -> Journal {
    let journal = Journal::open(dir, Options { segment_bytes, ..Options::default() }).unwrap();
    for n in 1..=lines {
        let receipt =
            journal.append(move |at| format!("{{\"n\":{n},\"seq\":{}}}", at.seq).into_bytes()).await;
        assert_eq!(receipt.unwrap().seq, n);
    }
    journal
}

#[tokio::test]
async fn what_was_appended_is_read_and_verified_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let journal = filled(dir.path(), 20, 300).await;
    let head = journal.head();
    assert_eq!(verify(dir.path()).unwrap().head, Some(head.clone()));
    drop(journal);
    assert!(std::fs::read_dir(dir.path()).unwrap().count() > 3, "several segments");
    let entries: Vec<_> = read(dir.path()).collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.len(), 20);
    assert_eq!(entries[0].prev, "0".repeat(64));
    assert_eq!(entries[4].payload, b"{\"n\":5,\"seq\":5}");
    assert_eq!(entries[5].prev, entries[4].hash);
    let again = Journal::open(dir.path(), Options::default()).unwrap();
    assert_eq!(again.head(), head);
    assert_eq!(again.append(|_| b"x".to_vec()).await.unwrap().seq, 21);
}

#[tokio::test]
async fn appends_at_once_all_get_numbers_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), Options::default()).unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.append(|at| at.prev.as_bytes().to_vec()).await.unwrap().seq })
        })
        .collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=200).collect::<Vec<_>>());
    assert_eq!(verify(dir.path()).unwrap().entries, 200);
}

#[tokio::test]
async fn a_payload_of_two_lines_is_refused_and_the_next_one_taken() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), Options::default()).unwrap();
    assert!(matches!(journal.append(|_| b"a\nb".to_vec()).await, Err(JournalError::NotOneLine)));
    assert_eq!(journal.append(|_| b"ab".to_vec()).await.unwrap().seq, 1);
}

#[tokio::test]
async fn a_journal_that_is_open_does_not_open_again() {
    let dir = tempfile::tempdir().unwrap();
    let _open = filled(dir.path(), 1, 1000).await;
    assert!(matches!(Journal::open(dir.path(), Options::default()), Err(JournalError::Locked(_))));
}

#[tokio::test]
async fn every_flipped_byte_shows_and_names_its_record() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 3, 10_000).await);
    let path = segment(dir.path(), 1);
    let good = std::fs::read(&path).unwrap();
    // The last byte is the end of the last line: without it, that line is torn, not changed.
    for at in 0..good.len() - 1 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let wanted = 1 + good[..at].iter().filter(|b| **b == b'\n').count() as u64;
        let fault = verify(dir.path()).unwrap_err();
        assert_eq!(fault.seq, Some(wanted), "byte {at}: {fault}");
        assert!(Journal::open(dir.path(), Options::default()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bad, "a refused journal is left as it is");
    }
}

#[tokio::test]
async fn a_removed_line_and_a_removed_segment_show() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 20, 300).await);
    let path = segment(dir.path(), 1);
    let text = std::fs::read_to_string(&path).unwrap();
    let without: String =
        text.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, l)| format!("{l}\n")).collect();
    std::fs::write(&path, without).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().seq, Some(2));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().seq, Some(1));
}

#[tokio::test]
async fn a_torn_last_line_is_cut_and_a_torn_line_before_others_refused() {
    for torn in [&b"3 abc"[..], b"\0\0\0\0", b"3 abc\0\0\n", b"3"] {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path(), 2, 10_000).await);
        let path = segment(dir.path(), 1);
        let whole = std::fs::read(&path).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(torn).unwrap();
        let verified = verify(dir.path()).unwrap();
        assert_eq!((verified.entries, verified.torn_tail), (2, true));
        let journal = Journal::open(dir.path(), Options::default()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(journal.append(|_| b"next".to_vec()).await.unwrap().seq, 3);
        drop(journal);
        assert!(!verify(dir.path()).unwrap().torn_tail);
        file.write_all(torn).unwrap();
        file.write_all(b"\n4 x\n").unwrap();
        assert!(Journal::open(dir.path(), Options::default()).is_err());
    }
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn child_that_appends_until_killed() {
    let Ok(dir) = std::env::var("KEYWARD_JOURNAL_CHILD") else { return };
    let journal =
        Journal::open(Path::new(&dir), Options { segment_bytes: 2000, ..Options::default() }).unwrap();
    loop {
        let receipt = journal.append(|at| format!("{:0100}", at.seq).into_bytes()).await.unwrap();
        println!("\nacknowledged {} {}", receipt.seq, receipt.hash);
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_appends_until_killed", "--nocapture"])
            .env("KEYWARD_JOURNAL_CHILD", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while acknowledged.len() < 40 + 7 * round {
            let line = lines.next().unwrap().unwrap();
            if let Some(receipt) = line.strip_prefix("acknowledged ") {
                let (seq, hash) = receipt.split_once(' ').unwrap();
                acknowledged.push((seq.parse::<u64>().unwrap(), hash.to_owned()));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let entries: Vec<_> = read(dir.path()).collect::<Result<_, _>>().unwrap();
        for (seq, hash) in acknowledged {
            assert!(seq > before);
            assert_eq!(entries[usize::try_from(seq).unwrap() - 1].hash, hash);
        }
        before = entries.len() as u64;
    }
}

#[tokio::test]
async fn a_gigabyte_that_is_no_journal_is_read_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 3, 1 << 20).await);
    // Sparse: it takes no disk.
    std::fs::OpenOptions::new().write(true).open(segment(dir.path(), 1)).unwrap().set_len(1 << 30).unwrap();
    assert!(verify(dir.path()).is_err());
    assert!(keystore::journal::newest(dir.path()).unwrap().is_none());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(most < 200 << 10, "{most} KiB");
}

#[tokio::test]
async fn the_newest_line_is_the_head_also_behind_a_torn_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(keystore::journal::newest(dir.path()).unwrap().is_none());
    let journal = filled(dir.path(), 40, 500).await;
    let head = journal.head();
    drop(journal);
    assert_eq!(keystore::journal::newest(dir.path()).unwrap(), Some(head.clone()));
    let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "journal"));
    let last = files.iter().max().unwrap();
    std::fs::OpenOptions::new().append(true).open(last).unwrap().write_all(b"41 0123").unwrap();
    assert_eq!(keystore::journal::newest(dir.path()).unwrap(), Some(head));
}

mod soup {
    //! `KEYWARD_SOUP` is how many.

    use proptest::prelude::*;

    use super::*;

    fn many() -> ProptestConfig {
        let cases = std::env::var("KEYWARD_SOUP").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
        ProptestConfig::with_cases(cases)
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn a_spoilt_journal_is_never_another_one(
            how in proptest::collection::vec((0u8..5, 0usize..8192, 1usize..200, 1u8..), 1..6),
        ) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let dir = tempfile::tempdir().unwrap();
            drop(runtime.block_on(filled(dir.path(), 20, 1 << 20)));
            let file = segment(dir.path(), 1);
            let original: Vec<String> = read(dir.path()).map(|entry| entry.unwrap().hash).collect();
            let mut bytes = std::fs::read(&file).unwrap();
            for (kind, at, length, with) in how {
                let at = at % bytes.len().max(1);
                let end = (at + length).min(bytes.len());
                match kind {
                    _ if bytes.is_empty() => {}
                    0 => bytes[at] ^= with,
                    1 => drop(bytes.splice(at..at, std::iter::repeat_n(with, length))),
                    2 => drop(bytes.drain(at..end)),
                    3 => bytes[at..end].reverse(),
                    _ => bytes.extend_from_within(at..end),
                }
            }
            std::fs::write(&file, bytes).unwrap();
            // What still reads as a journal is the beginning of the one that was written.
            let found: Vec<_> = read(dir.path()).map_while(|entry| entry.ok().map(|entry| entry.hash)).collect();
            prop_assert!(original.starts_with(&found));
            drop(keystore::journal::newest(dir.path()));
        }
    }
}

/// A file system without room for one more file, where this user may mount one.
struct Crammed<'a>(&'a Path);

impl<'a> Crammed<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,nr_inodes=16", "tmpfs"]).arg(at).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(at))
    }

    fn cram(&self) {
        for n in 0..16 {
            if std::fs::write(self.0.join(format!("filler{n}")), b"").is_err() {
                return;
            }
        }
        panic!("there is always room");
    }
}

impl Drop for Crammed<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0).status().ok();
    }
}

#[tokio::test]
async fn a_new_segment_is_begun_at_the_cost_of_the_reserve_and_without_one_nothing_is_taken() {
    for reserve_bytes in [4096, 0] {
        let dir = tempfile::tempdir().unwrap();
        let Some(disk) = Crammed::mount(dir.path()) else { return };
        let journal = Journal::open(dir.path(), Options { segment_bytes: 1, reserve_bytes }).unwrap();
        journal.append(|_| b"first".to_vec()).await.unwrap();
        disk.cram();
        let second = journal.append(|_| b"second".to_vec()).await;
        assert_eq!(second.is_ok(), reserve_bytes > 0, "{second:?}");
        drop(journal);
        assert_eq!(read(dir.path()).count(), if reserve_bytes > 0 { 2 } else { 1 });
    }
}
