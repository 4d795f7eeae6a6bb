use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use keystore::Vault;
use keystore::backend::Memory;
use keystore::seal::MasterKey;
use keystore::signing::Signers;

use super::*;
use crate::audit::forged::forged_dir;
use crate::audit::{Filter, SessionFacts, Trail};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

async fn trail(dir: &Path) -> Trail {
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    let signers = Signers::create(&vault).await.unwrap();
    Trail::open(dir, signers.audit).unwrap()
}

fn facts(session: &str) -> SessionFacts {
    SessionFacts {
        session: session.to_owned(),
        user: "alice".to_owned(),
        source_ip: "192.0.2.1".to_owned(),
        key: "SHA256:x".to_owned(),
        instance: "db-1".to_owned(),
        parent: None,
        login: "ubuntu".to_owned(),
    }
}

fn added(user: &str) -> Event {
    Event::UserAdded { user: user.to_owned(), by: "root".to_owned(), roles: Vec::new() }
}

async fn three_events(dir: &Path) -> Trail {
    let trail = trail(dir).await;
    trail.append(added("alice"), at(0)).await.unwrap();
    trail
        .append(Event::SessionOpened { facts: facts("s1"), rules: Vec::new(), recording: None }, at(10))
        .await
        .unwrap();
    let closed = Event::SessionClosed {
        facts: facts("s1"),
        status: "closed".to_owned(),
        reason: None,
        digest: "d1".to_owned(),
        summary: None,
    };
    trail.append(closed, at(20)).await.unwrap();
    trail
}

fn only_segment(dir: &Path) -> PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(journal_dir(dir)).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "journal"));
    assert_eq!(files.len(), 1);
    files.pop().unwrap()
}

#[tokio::test]
async fn a_clean_trail_verifies_and_names_its_tapes() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    trail.checkpoint(at(30)).await.unwrap();
    trail
        .append(Event::SessionOpened { facts: facts("s2"), rules: Vec::new(), recording: None }, at(40))
        .await
        .unwrap();
    let found = verify(dir.path()).unwrap();
    assert_eq!((found.entries, found.checkpoints, found.torn_tail), (5, 1, false));
    assert_eq!(found.head.unwrap().hash, trail.head().hash);
    assert_eq!(found.tapes.len(), 1);
    assert_eq!((found.tapes[0].session.as_str(), found.tapes[0].digest.as_str()), ("s1", "d1"));
    assert_eq!(found.unclosed, ["s2"]);
}

#[tokio::test]
async fn events_carry_their_place_in_the_chain_and_filters_choose() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    let all = trail.query(&Filter::default()).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all[1]["prev"], all[0]["hash"]);
    for field in ["time", "event", "seq", "prev", "hash"] {
        assert!(all[2].get(field).is_some(), "{field}");
    }
    let filter = Filter { since: Some(at(10)), until: Some(at(10)), event: None };
    assert_eq!(trail.query(&filter).unwrap().len(), 1);
    let filter = Filter { event: Some("session_closed".to_owned()), ..Filter::default() };
    assert_eq!(trail.query(&filter).unwrap()[0]["digest"], "d1");
    let filter = Filter { event: Some("session".to_owned()), ..Filter::default() };
    assert!(trail.query(&filter).unwrap().is_empty());
}

#[tokio::test]
async fn a_changed_event_is_named() {
    let dir = tempfile::tempdir().unwrap();
    three_events(dir.path()).await;
    let file = only_segment(dir.path());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("session_opened", "session_opener")).unwrap();
    let fault = verify(dir.path()).unwrap_err();
    assert_eq!(fault.file, file);
    assert!(fault.to_string().contains("journal"), "{fault}");
}

#[tokio::test]
async fn a_removed_event_is_found() {
    let dir = tempfile::tempdir().unwrap();
    three_events(dir.path()).await;
    let file = only_segment(dir.path());
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<_> =
        text.split_inclusive('\n').enumerate().filter(|(n, _)| *n != 1).map(|(_, l)| l).collect();
    std::fs::write(&file, kept.concat()).unwrap();
    verify(dir.path()).unwrap_err();
}

#[tokio::test]
async fn an_end_cut_off_after_a_checkpoint_is_found_and_a_torn_line_is_not_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    trail.checkpoint(at(30)).await.unwrap();
    drop(trail);
    let file = only_segment(dir.path());
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}4 abc")).unwrap();
    assert!(verify(dir.path()).unwrap().torn_tail);
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    std::fs::write(&file, lines[..2].concat()).unwrap();
    let fault = verify(dir.path()).unwrap_err();
    assert!(fault.what.contains("cut off"), "{fault}");
}

#[tokio::test]
async fn a_checkpoint_that_was_changed_or_removed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    trail.checkpoint(at(30)).await.unwrap();
    let file = std::fs::read_dir(checkpoint_dir(dir.path()))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|f| f.extension().is_some_and(|e| e == "json"))
        .unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"seq\":", "\"seq\": ")).unwrap();
    assert_eq!(verify(dir.path()).unwrap_err().file, file);
    std::fs::remove_file(&file).unwrap();
    assert!(verify(dir.path()).unwrap_err().what.contains("gone"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_sign_at_once_leave_no_statement_with_the_signature_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let trail = std::sync::Arc::new(three_events(dir.path()).await);
    for n in 0..30 {
        let (one, other) = (std::sync::Arc::clone(&trail), std::sync::Arc::clone(&trail));
        let one = tokio::spawn(async move { one.checkpoint(at(n)).await });
        let other = tokio::spawn(async move { other.checkpoint(at(1000 + n)).await });
        one.await.unwrap().unwrap();
        other.await.unwrap().unwrap();
        verify(dir.path()).unwrap();
    }
}

#[tokio::test]
async fn a_head_that_was_signed_already_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    trail.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    let signed = |kind: &str| fs::read(dir.path().join(format!("checkpoints/{:020}.{kind}", 3))).unwrap();
    trail.checkpoint(at(30)).await.unwrap_err();
    let before = (signed("json"), signed("sig"));
    trail.checkpoint(at(60)).await.unwrap_err();
    assert_eq!((signed("json"), signed("sig")), before);
    trail.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    trail.checkpoint(at(90)).await.unwrap();
    assert_eq!(verify(dir.path()).unwrap().checkpoints, 1);
}

#[tokio::test]
async fn a_deletion_that_lay_unsigned_at_a_start_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    let deleted = |session: &str| Event::RecordingDeleted {
        user: "alice".to_owned(),
        session: session.to_owned(),
        digest: "d".to_owned(),
        reason: "retention: kept for 90d".to_owned(),
    };
    let started = || Event::DaemonStarted { version: "1".to_owned() };
    trail.append(deleted("kept"), at(10)).await.unwrap();
    trail.checkpoint(at(11)).await.unwrap();
    // Written there while the daemon was down, or told before a crash: the next run signs all that it finds.
    trail.append(deleted("forged"), at(12)).await.unwrap();
    trail.append(started(), at(13)).await.unwrap();
    trail.checkpoint(at(14)).await.unwrap();
    let gone = |trail: &Path| verify(trail).unwrap().deleted.into_keys().collect::<Vec<_>>();
    assert_eq!(gone(dir.path()), ["kept"]);
    // After a crash it is told again.
    trail.append(deleted("forged"), at(15)).await.unwrap();
    trail.checkpoint(at(16)).await.unwrap();
    assert_eq!(gone(dir.path()), ["forged", "kept"]);
}

#[tokio::test]
async fn another_key_does_not_vouch_for_a_trail() {
    let dir = tempfile::tempdir().unwrap();
    let mine = three_events(dir.path()).await;
    mine.checkpoint(at(30)).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    three_events(other.path()).await;
    let key = std::fs::read_to_string(signer_file(other.path())).unwrap();
    verify_with(
        dir.path(),
        &Against { key: PublicKey::from_openssh(key.trim()).unwrap(), heads: None, marks: None },
    )
    .unwrap_err();
}

fn closed(session: &str, digest: &str, summary: &str) -> Event {
    let summary = Some(summary.to_owned());
    let (status, reason, digest) = ("closed".to_owned(), None, digest.to_owned());
    Event::SessionClosed { facts: facts(session), status, reason, digest, summary }
}

#[tokio::test]
async fn of_two_closes_the_newest_summary_counts_and_every_digest() {
    let dir = tempfile::tempdir().unwrap();
    let trail = three_events(dir.path()).await;
    for event in
        [closed("a", "1", "old"), closed("b", "1", "x"), closed("a", "1", "new"), closed("b", "2", "y")]
    {
        trail.append(event, at(40)).await.unwrap();
    }
    let named = verify(dir.path()).unwrap().tapes;
    let of = |session: &str| {
        let of = named.iter().filter(|t| t.session == session);
        of.map(|t| (t.digest.as_str(), t.summary.as_deref())).collect::<Vec<_>>()
    };
    assert_eq!(of("a"), [("1", Some("new"))]);
    assert_eq!(of("b"), [("1", None), ("2", Some("y"))]);
    let known = trail.sessions().unwrap();
    assert!(known.is_closed_with("a", Some("new")) && !known.is_closed_with("a", Some("old")));
    assert!(known.is_closed_with("b", None) && !known.has("c") && !known.is_closed_with("c", None));
}

#[tokio::test]
async fn a_torn_head_costs_itself_alone_and_a_file_of_heads_that_is_gone_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, file) = (dir.path().join("audit"), dir.path().join("heads"));
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    let signers = Signers::create(&vault).await.unwrap();
    let key = signers.audit.public_key().clone();
    let keeping = crate::audit::Keeping { head_file: Some(file.clone()), ..Default::default() };
    let trail = Trail::open_keeping(&audit, signers.audit, keeping).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    trail.checkpoint(at(1)).await.unwrap();
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}{}", &whole[..40])).unwrap();
    trail.checkpoint(at(2)).await.unwrap();
    assert_eq!(heads::read(&file, &key).unwrap().len(), 2);
    let against = Against { key: key.clone(), heads: Some(file.clone()), marks: None };
    verify_with(&audit, &against).unwrap();
    // A head whose signature does not hold is no torn line, nor is one that is written to, and an empty file is no start.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen('{', "[", 1)).unwrap();
    assert!(verify_with(&audit, &against).unwrap_err().what.contains("edited"));
    std::fs::write(&file, "").unwrap();
    assert!(verify_with(&audit, &against).unwrap_err().what.contains("emptied"));
    std::fs::write(&file, text.replacen("hash", "hush", 1)).unwrap();
    assert!(verify_with(&audit, &against).unwrap_err().what.contains("signature"));
    std::fs::remove_file(&file).unwrap();
    assert!(verify_with(&audit, &against).unwrap_err().what.contains("gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_is_signed_while_it_is_verified_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let trail = Arc::new(trail(dir.path()).await);
    let path = dir.path().to_owned();
    let signing = {
        let trail = Arc::clone(&trail);
        tokio::spawn(async move {
            for n in 0..60 {
                trail.append(added("alice"), at(n)).await.unwrap();
                trail.checkpoint(at(n)).await.unwrap();
            }
        })
    };
    let verifying = tokio::task::spawn_blocking(move || {
        let mut most = 0;
        while most < 60 {
            most = super::verify(&path).unwrap().checkpoints;
        }
    });
    signing.await.unwrap();
    verifying.await.unwrap();
}

/// Lines as anybody can write them who has the disk: chained, and marked as well as that goes.
fn forge(dir: &Path, events: &[&str]) {
    let file = only_segment(dir);
    let mut text = std::fs::read_to_string(&file).unwrap();
    let last = text.lines().last().unwrap_or("0 0").to_owned();
    let mut words = last.split(' ');
    let mut seq: u64 = words.next().unwrap().parse().unwrap();
    let mut prev = words.next().unwrap().to_owned();
    let mark = last.split("\"mark\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    for event in events {
        seq += 1;
        let payload = format!(
            "{{\"time\":\"2026-11-23T00:00:00.000Z\",\"seq\":{seq},\"prev\":\"{prev}\",\"mark\":\"{mark}\",{event}}}"
        );
        let hash = journal::chain_hash(&prev, seq, payload.as_bytes());
        text.push_str(&format!("{seq} {hash} {payload}\n"));
        prev = hash;
    }
    std::fs::write(&file, text).unwrap();
}

const GIVEN: &str = "\"event\":\"user_added\",\"user\":\"mallory\",\"by\":\"root\",\"roles\":[\"admin\"]";

async fn signer() -> keystore::signing::AuditSigner {
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    Signers::create(&vault).await.unwrap().audit
}

fn names(trail: &Trail) -> Vec<String> {
    let events = trail.query(&Filter::default()).unwrap();
    events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn forged_events_are_taken_out_kept_told_of_first_and_named_by_every_verification() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    trail.checkpoint(at(1)).await.unwrap();
    trail.append(added("bob"), at(2)).await.unwrap();
    let head = trail.head();
    let marks = trail.marks().clone();
    drop(trail);
    forge(dir.path(), &[GIVEN, GIVEN]);
    let key = signer.public_key().clone();
    // Who has public keys alone can only say that nobody vouches for the end; the bastion can say whose it is.
    assert_eq!(verify(dir.path()).unwrap().unsigned, 3);
    let own = Against { key: key.clone(), heads: None, marks: Some(marks) };
    let fault = verify_with(dir.path(), &own).unwrap_err();
    assert_eq!((fault.seq, fault.what.contains("mark")), (Some(4), true), "{fault}");

    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    assert_eq!(trail.head(), head, "nothing of theirs is in the chain");
    trail.tell_forged(at(3)).await.unwrap();
    let told = trail.query(&Filter::default()).unwrap();
    assert_eq!(names(&trail)[3..], ["trail_forged", "checkpoint_signed"]);
    assert_eq!((&told[3]["from"], &told[3]["through"]), (&4.into(), &5.into()));
    let found = verify_with(dir.path(), &own).unwrap();
    assert_eq!((found.forged.len(), found.unsigned), (1, 0));
    let said = found.forged[0].fault(dir.path());
    assert!(said.what.contains("events 4 to 5") && said.what.ends_with("they are kept here"), "{said}");
    let kept = std::fs::read_to_string(&said.file).unwrap();
    assert_eq!(kept.matches("mallory").count(), 2);
    // Told once, signed, and never forgotten.
    drop(trail);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.tell_forged(at(4)).await.unwrap();
    assert_eq!((trail.head().seq, trail.forged().len()), (5, 1));
    assert_eq!(verify(dir.path()).unwrap().forged, trail.forged());
    std::fs::write(&said.file, kept.replace("mallory", "malcolm")).unwrap();
    assert!(found.forged[0].fault(dir.path()).what.contains("changed since"));
    std::fs::remove_file(&said.file).unwrap();
    assert!(found.forged[0].fault(dir.path()).what.contains("are gone"));
}

#[tokio::test]
async fn an_honest_tail_that_is_not_signed_is_adopted_without_a_word() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    for n in 0..5 {
        trail.append(added("alice"), at(n)).await.unwrap();
    }
    trail.checkpoint(at(6)).await.unwrap();
    trail.append(added("bob"), at(7)).await.unwrap();
    drop(trail);
    let file = only_segment(dir.path());
    // A crash in the middle of a line.
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + "8 ab").unwrap();
    let trail = Trail::open(dir.path(), signer).unwrap();
    trail.tell_forged(at(8)).await.unwrap();
    assert!(trail.head().seq == 7 && trail.forged().is_empty() && !dir.path().join("forged").exists());
    assert_eq!(verify(dir.path()).unwrap().unsigned, 1);
}

#[tokio::test]
async fn what_a_checkpoint_vouches_for_is_not_cut_and_nothing_is_written_on_it() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    trail.append(added("bob"), at(1)).await.unwrap();
    trail.checkpoint(at(2)).await.unwrap();
    drop(trail);
    // The second event made anew, and all behind it.
    let file = only_segment(dir.path());
    let first = std::fs::read_to_string(&file).unwrap().split_inclusive('\n').next().unwrap().to_owned();
    std::fs::write(&file, first).unwrap();
    forge(dir.path(), &[GIVEN, GIVEN]);
    let before = std::fs::read(&file).unwrap();
    let refused = Trail::open(dir.path(), signer.clone()).err().unwrap().to_string();
    assert!(refused.contains("record 2") && refused.contains("a checkpoint vouches"), "{refused}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // Whoever takes the checkpoint away too leaves what is not signed, and it is not believed.
    std::fs::remove_dir_all(checkpoint_dir(dir.path())).unwrap();
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    assert_eq!((trail.head().seq, trail.forged().len()), (1, 1));
    // A checkpoint that somebody else signed vouches for nothing.
    drop(trail);
    let other = tempfile::tempdir().unwrap();
    three_events(other.path()).await.checkpoint(at(5)).await.unwrap();
    std::fs::rename(checkpoint_dir(other.path()), checkpoint_dir(dir.path())).unwrap();
    forge(dir.path(), &[GIVEN, GIVEN]);
    let trail = Trail::open(dir.path(), signer).unwrap();
    assert_eq!((trail.head().seq, trail.signed()), (1, 0));
}

#[tokio::test]
async fn a_checkpoint_that_the_chain_does_not_reach_vouches_for_none_of_it() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    for n in 0..6 {
        trail.append(added("alice"), at(n)).await.unwrap();
    }
    trail.checkpoint(at(7)).await.unwrap();
    drop(trail);
    let file = only_segment(dir.path());
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines = |count: usize| whole.split_inclusive('\n').take(count).collect::<String>();
    let refused = |what: &str| {
        let said = Trail::open(dir.path(), signer.clone()).err().unwrap().to_string();
        assert!(said.contains("record 3") && said.contains("a checkpoint vouches"), "{what}: {said}");
    };
    std::fs::write(&file, lines(2)).unwrap();
    forge(dir.path(), &[GIVEN]);
    refused("shorter than what was signed");
    // A last line that is cut as torn, with a number as if the chain were long enough.
    let forged = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{forged}9 {} \0\n", "0".repeat(64))).unwrap();
    refused("as if it were longer");
    std::fs::write(&file, lines(2)).unwrap();
    forge(dir.path(), &[GIVEN; 6]);
    refused("longer, and another");
    // Honest, but put back to an earlier day: the verification says so.
    std::fs::write(&file, lines(3)).unwrap();
    assert_eq!(Trail::open(dir.path(), signer.clone()).unwrap().head().seq, 3);
    assert!(verify(dir.path()).unwrap_err().what.contains("cut off"));
}

#[tokio::test]
async fn a_forgery_over_several_segments_and_one_that_is_the_whole_trail_are_taken_out() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    drop(trail);
    forge(dir.path(), &[GIVEN, GIVEN, GIVEN]);
    let file = only_segment(dir.path());
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    std::fs::write(&file, lines[..2].concat()).unwrap();
    std::fs::write(file.with_file_name("00000000000000000003.journal"), lines[2..].concat()).unwrap();
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.tell_forged(at(1)).await.unwrap();
    assert_eq!(only_segment(dir.path()), file);
    let told = &trail.forged()[0];
    assert_eq!((told.from, told.through, told.told), (2, 4, 2));
    assert_eq!(
        std::fs::read_to_string(forged_dir(dir.path()).join(&told.kept)).unwrap(),
        lines[1..].concat()
    );
    drop(trail);
    // Another bastion's trail in its place, which proves nothing here.
    std::fs::remove_dir_all(dir.path()).unwrap();
    drop(three_events(dir.path()).await);
    let trail = Trail::open(dir.path(), signer).unwrap();
    trail.tell_forged(at(1)).await.unwrap();
    assert_eq!(names(&trail), ["trail_forged", "checkpoint_signed"]);
    assert_eq!(trail.append(added("carol"), at(2)).await.unwrap().seq, 3);
}

#[tokio::test]
async fn what_was_taken_out_before_a_crash_is_told_after_it() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    drop(trail);
    forge(dir.path(), &[GIVEN]);
    // It crashed after the lines were cut; again after they were told, before that was signed.
    drop(Trail::open(dir.path(), signer.clone()).unwrap());
    let trail = Trail::open(dir.path(), signer.clone()).unwrap();
    let waits = trail.forged();
    assert_eq!((waits[0].from, waits[0].told), (2, 0));
    trail.append(waits[0].event(), at(1)).await.unwrap();
    drop(trail);
    let trail = Trail::open(dir.path(), signer).unwrap();
    assert_eq!(trail.forged()[0].told, 2);
    trail.tell_forged(at(2)).await.unwrap();
    assert_eq!(names(&trail), ["user_added", "trail_forged"]);
    assert_eq!(verify(dir.path()).unwrap().forged.len(), 1);
}

#[tokio::test]
async fn a_store_that_is_said_to_be_another_is_believed_once_that_is_signed() {
    let (dir, signer) = (tempfile::tempdir().unwrap(), signer().await);
    let store = tempfile::tempdir().unwrap();
    let line = |seq: u64, prev: &str| {
        let hash = journal::chain_hash(prev, seq, b"x");
        (format!("{seq} {hash} x\n"), hash)
    };
    let (first, hash) = line(1, &"0".repeat(64));
    let (second, _) = line(2, &hash);
    let file = store.path().join("00000000000000000001.journal");
    std::fs::write(&file, format!("{first}{second}")).unwrap();
    let keeping = crate::audit::Keeping { store: Some(store.path().to_owned()), ..Default::default() };
    let trail = Trail::open_keeping(dir.path(), signer, keeping).unwrap();
    trail.append(added("alice"), at(0)).await.unwrap();
    trail.checkpoint(at(1)).await.unwrap();
    let holds = || verify(dir.path()).unwrap().store.holds(store.path()).is_ok();
    assert!(holds());
    std::fs::write(&file, &first).unwrap();
    assert!(!holds());
    // Behind the newest checkpoint anybody can write.
    trail.append(Event::StoreReplaced { reason: "a backup".to_owned() }, at(2)).await.unwrap();
    assert!(!holds());
    trail.checkpoint(at(3)).await.unwrap();
    assert!(holds());
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
        fn a_spoilt_checkpoint_or_head_is_never_valid(
            which in 0usize..3,
            how in proptest::collection::vec((0usize..4096, 1u8..), 1..4),
            cut in 0usize..4096,
        ) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let heads = dir.path().join("heads");
            let key = runtime.block_on(async {
                let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
                let signer = Signers::create(&vault).await.unwrap().audit;
                let key = signer.public_key().clone();
                let keeping = crate::audit::Keeping { head_file: Some(heads.clone()), ..Default::default() };
                let trail = Trail::open_keeping(dir.path(), signer, keeping).unwrap();
                trail.append(added("alice"), at(0)).await.unwrap();
                trail.checkpoint(at(1)).await.unwrap();
                key
            });
            let file = match which {
                0 => checkpoint_dir(dir.path()).join(format!("{:020}.json", 1)),
                1 => checkpoint_dir(dir.path()).join(format!("{:020}.sig", 1)),
                _ => heads.clone(),
            };
            let whole = std::fs::read(&file).unwrap();
            let mut bytes = whole.clone();
            for (at, with) in how {
                let at = at % bytes.len();
                bytes[at] ^= with;
            }
            bytes.truncate(cut.max(1));
            std::fs::write(&file, &bytes).unwrap();
            let still_a_head = which == 2 && heads::read(&heads, &key).is_ok_and(|found| found.len() == 1);
            let found = verify_with(dir.path(), &Against { key, heads: Some(heads), marks: None });
            // A signature in other letters is the same.
            let same = || SshSig::from_pem(&bytes).ok() == SshSig::from_pem(&whole).ok();
            prop_assert!(still_a_head || bytes == whole || which == 1 && same() || found.is_err());
        }
    }
}
