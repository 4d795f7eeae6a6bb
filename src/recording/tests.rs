use std::fs::{self, OpenOptions};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;

use super::format::Writer;
use super::tape::start;
use super::*;

fn header(id: SessionId) -> Header {
    Header {
        id: id.to_string(),
        user: "alice".to_owned(),
        login: "ubuntu".to_owned(),
        instance: "db-1".to_owned(),
        source_ip: "192.0.2.7".to_owned(),
        key: "SHA256:x".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
    }
}

fn end() -> SessionEnd {
    SessionEnd { status: SessionStatus::Closed, reason: None }
}

fn data(text: &str) -> ChannelMessage {
    ChannelMessage::Data(Bytes::copy_from_slice(text.as_bytes()))
}

fn pty() -> ChannelMessage {
    let (term, modes) = ("xterm".to_owned(), Vec::new());
    ChannelMessage::Pty { term, cols: 100, rows: 30, px_width: 0, px_height: 0, modes }
}

struct Recorder {
    dir: tempfile::TempDir,
    tapes: Tapes,
    id: SessionId,
}

/// A folder of tapes with one of a command that said `hello`.
async fn recorded() -> Recorder {
    let dir = tempfile::tempdir().unwrap();
    let keys = TapeKeys::create(&dir.path().join("identity")).unwrap();
    let (tapes, truncated) = Tapes::open(&dir.path().join("tapes"), keys, 1000).unwrap();
    assert!(truncated.is_empty());
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.channel_opened(1);
    let exec = ChannelMessage::Exec(Bytes::from_static(b"cat"));
    tape.record(1, Direction::ToInstance, &exec).await.unwrap();
    tape.record(1, Direction::ToInstance, &data("in")).await.unwrap();
    tape.record(1, Direction::ToUser, &data("hello")).await.unwrap();
    tape.record(1, Direction::ToUser, &ChannelMessage::ExitStatus(3)).await.unwrap();
    tape.channel_closed(1);
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!(summary.status, SessionStatus::Closed);
    Recorder { dir, tapes, id }
}

fn reopen(dir: &Path) -> (Tapes, Vec<Summary>) {
    Tapes::open(&dir.join("tapes"), TapeKeys::load(&dir.join("identity")).unwrap(), 1000).unwrap()
}

#[tokio::test]
async fn what_was_recorded_reads_back_and_verifies() {
    let Recorder { tapes, id, dir: _dir } = recorded().await;
    let summary = tapes.summary(id).unwrap();
    let [channel] = summary.channels.as_slice() else { panic!("{summary:?}") };
    assert_eq!((channel.kind.as_str(), channel.exit_status), ("exec", Some(3)));
    assert_eq!((channel.relayed_bytes, channel.captured_bytes), (7, 7));
    let cast = asciicast(&summary, &tapes.records(id).unwrap());
    assert!(cast.contains("\"hello\""), "{cast}");
    assert!(tapes.verify(id, summary.digest.as_deref()).unwrap().opened);
}

#[tokio::test]
async fn every_changed_byte_of_a_tape_is_noticed() {
    let Recorder { tapes, id, dir } = recorded().await;
    let path = dir.path().join(format!("tapes/{id}.tape"));
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x41;
        fs::write(&path, changed).unwrap();
        assert!(tapes.verify(id, None).is_err(), "byte {at}");
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(tapes.verify(id, None).is_err(), "cut to {length}");
    }
    fs::write(&path, &whole).unwrap();
    tapes.verify(id, None).unwrap();
}

#[tokio::test]
async fn a_changed_summary_is_noticed() {
    let Recorder { tapes, id, dir } = recorded().await;
    let path = dir.path().join(format!("tapes/{id}.json"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"relayed_bytes\":7", "\"relayed_bytes\":5")).unwrap();
    assert!(tapes.verify(id, None).unwrap_err().is_tampering());
}

#[tokio::test]
async fn a_tape_without_an_end_is_truncated_at_the_next_start() {
    let Recorder { tapes, id, dir } = recorded().await;
    let other = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(other), other).await.unwrap();
    tape.channel_opened(1);
    tape.record(1, Direction::ToUser, &data("last words")).await.unwrap();
    assert_eq!(tapes.summary(other).unwrap().status, SessionStatus::Live);
    let path = dir.path().join(format!("tapes/{other}.tape"));
    let short = fs::metadata(&path).unwrap().len();
    while fs::metadata(&path).unwrap().len() == short {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (again, truncated) = reopen(dir.path());
    let [summary] = truncated.as_slice() else { panic!("{truncated:?}") };
    assert_eq!((summary.header.id.clone(), summary.status), (other.to_string(), SessionStatus::Truncated));
    assert_eq!(summary.channels[0].captured_bytes, 10);
    again.verify(other, summary.digest.as_deref()).unwrap();
    assert_eq!(again.summary(id).unwrap().status, SessionStatus::Closed);
}

#[tokio::test]
async fn a_bastion_with_recipients_only_writes_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let auditors = TapeKeys::create(&dir.path().join("identity")).unwrap();
    let keys = TapeKeys::recipients_only(&auditors.recipients()).unwrap();
    let (tapes, _) = Tapes::open(&dir.path().join("tapes"), keys, 1000).unwrap();
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToUser, &data("secret")).await.unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    assert!(matches!(tapes.records(id), Err(TapeError::NoIdentity)));
    assert!(!tapes.verify(id, None).unwrap().opened);
    let (there, _) = reopen(dir.path());
    assert!(asciicast(&there.summary(id).unwrap(), &there.records(id).unwrap()).contains("secret"));
}

#[tokio::test]
async fn a_full_disk_fails_the_tape_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let id = SessionId::new(Timestamp::now());
    // The header goes to a real file; then the disk is full.
    let real = dir.path().join("tape");
    let file = OpenOptions::new().write(true).create_new(true).open(&real).unwrap();
    let mut writer = Writer::start(file, &header(id), &[7; 32]).unwrap();
    writer.redirect(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (tape, _deck) = start(header(id), writer, dir.path().join("summary.json"), 1000);
    tape.record(1, Direction::ToUser, &data("taken, not yet written")).await.unwrap();
    assert!(tape.failed().await.contains("No space left"));
    assert!(matches!(tape.record(1, Direction::ToUser, &data("more")).await, Err(TapeError::Failed(_))));
    let killed = SessionEnd { status: SessionStatus::Killed, reason: Some("recording failed".to_owned()) };
    assert_eq!(tape.seal(killed, Timestamp::now()).await.unwrap().status, SessionStatus::Killed);
}

#[tokio::test]
async fn a_tape_that_ended_takes_no_more() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    assert!(matches!(tape.record(1, Direction::ToUser, &data("late")).await, Err(TapeError::Sealed)));
}

#[tokio::test]
async fn typing_at_a_terminal_is_counted_and_never_kept() {
    let Recorder { tapes, dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
    tape.record(1, Direction::ToInstance, &ChannelMessage::Shell).await.unwrap();
    tape.record(1, Direction::ToInstance, &data("hunter2\r")).await.unwrap();
    tape.record(1, Direction::ToUser, &data("$ ")).await.unwrap();
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!((summary.bytes_in, summary.channels[0].relayed_bytes), (8, 2));
    let records = reopen(dir.path()).0.records(id).unwrap();
    assert!(!records.iter().any(|r| r.payload.windows(7).any(|w| w == b"hunter2")));
    let cast = asciicast(&summary, &records);
    assert!(cast.starts_with("{") && cast.contains("\"width\":100"), "{cast}");
}

#[tokio::test]
async fn output_over_the_limit_is_hashed_and_the_ledger_says_why() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let exec = ChannelMessage::Exec(Bytes::from_static(b"cat big"));
    tape.record(1, Direction::ToInstance, &exec).await.unwrap();
    for _ in 0..3 {
        tape.record(1, Direction::ToUser, &data(&"x".repeat(400))).await.unwrap();
    }
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let channel = &summary.channels[0];
    assert_eq!(
        (channel.relayed_bytes, channel.captured_bytes, channel.capture),
        (1200, 800, Capture::Digest)
    );
    assert!(channel.reason.as_deref().unwrap().contains("1000"));
    assert!(channel.sha256_out.is_some());
}

#[tokio::test]
async fn a_character_cut_by_a_packet_is_exported_whole() {
    let record =
        |payload: &[u8]| Record { micros: 0, channel: 1, what: What::Output, payload: payload.to_vec() };
    let euro = "€".as_bytes();
    let cast = Cast::of(&[record(&euro[..1]), record(&euro[1..])]);
    assert_eq!(cast.events, [(0, 'o', "€".to_owned())]);
    let cast = Cast::of(&[record(b"a\xff"), record(b"b")]);
    assert_eq!(cast.events.iter().map(|e| e.2.as_str()).collect::<String>(), "a\u{fffd}b");
}
