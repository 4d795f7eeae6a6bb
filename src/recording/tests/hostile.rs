//! Peers that hide what they do, and crashes at the worst moment.

use super::*;

#[tokio::test]
async fn a_terminal_asked_for_late_or_before_sftp_hides_nothing() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let exec = ChannelMessage::Exec(Bytes::from_static(b"bash"));
    let sftp = ChannelMessage::Subsystem("sftp".to_owned());
    for asked in [[&exec, &pty()], [&sftp, &pty()], [&pty(), &sftp]] {
        let id = SessionId::new(Timestamp::now());
        let tape = tapes.begin(header(id), id).await.unwrap();
        for message in asked {
            tape.record(1, Direction::ToInstance, message).await.unwrap();
        }
        tape.record(1, Direction::ToInstance, &data("rm -rf /srv\n")).await.unwrap();
        let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
        let channel = &summary.channels[0];
        assert!(!channel.terminal, "{channel:?}");
        assert_eq!((channel.relayed_bytes, channel.captured_bytes), (12, 12), "{channel:?}");
        assert!(records(&tapes, id).iter().any(|r| r.payload == b"rm -rf /srv\n"));
    }
}

#[tokio::test]
async fn a_terminal_asked_for_in_time_still_is_one() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let exec = ChannelMessage::Exec(Bytes::from_static(b"top"));
    for message in [&pty(), &exec, &data("q")] {
        tape.record(1, Direction::ToInstance, message).await.unwrap();
    }
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let channel = &summary.channels[0];
    assert!(channel.terminal && (channel.relayed_bytes, channel.captured_bytes) == (1, 0));
}

/// A tape whose disk is full once `before` is recorded; the tape's file is `real`.
fn on_a_full_disk(tapes: &Tapes, id: SessionId) -> Tape {
    on_a_full_disk_with(tapes, id, TERMS).0
}

fn on_a_full_disk_with(
    tapes: &Tapes,
    id: SessionId,
    terms: Terms,
) -> (Tape, std::sync::Arc<super::super::tape::Deck>) {
    let (key, real) = ([7; 32], tapes.tape_file(id));
    let file = OpenOptions::new().write(true).create_new(true).open(&real).unwrap();
    let mut writer = Writer::start(file, &header(id), &key).unwrap();
    fs::write(real.with_extension("key"), tapes.wrapped(&key)).unwrap();
    writer.redirect(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (summary, key) = (tapes.summary_file(id), zeroize::Zeroizing::new(key));
    start(header(id), writer, Files { tape: real, summary, key, reserve: None }, terms)
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_end_leaves_a_killed_session_that_verifies() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let summary = on_a_full_disk(&tapes, id).seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!(summary.status, SessionStatus::Killed);
    assert!(summary.reason.as_deref().unwrap().starts_with("recording failed: "), "{summary:?}");
    tapes.verify(id, summary.digest.as_deref()).unwrap();
    // One that was closed and lost its end is still noticed.
    let text = fs::read_to_string(tapes.summary_file(id)).unwrap();
    fs::write(tapes.summary_file(id), text.replace("\"killed\"", "\"closed\"")).unwrap();
    assert!(tapes.verify(id, None).unwrap_err().is_tampering());
}

#[tokio::test]
async fn a_session_of_ten_thousand_commands_ends_as_a_whole() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let exec = ChannelMessage::Exec(Bytes::from("x".repeat(2000)));
    for number in 1..=10_000 {
        tape.channel_opened(number);
        tape.record(number, Direction::ToInstance, &exec).await.unwrap();
        tape.channel_closed(number);
    }
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!((summary.status, summary.channels.len()), (SessionStatus::Closed, 10_000));
    tapes.verify(id, summary.digest.as_deref()).unwrap();
}

#[tokio::test]
async fn a_tail_of_zeros_is_a_torn_tail_and_zeros_in_the_middle_are_not() {
    let Recorder { tapes, id, dir } = recorded().await;
    let other = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(other), other).await.unwrap();
    let file = tapes.tape_file(other);
    let short = fs::metadata(&file).unwrap().len();
    tape.record(1, Direction::ToUser, &data("last words")).await.unwrap();
    while fs::metadata(&file).unwrap().len() == short {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for zeros in [1, 8, 200_000] {
        let whole = fs::read(&file).unwrap();
        fs::write(&file, [whole.as_slice(), &vec![0; zeros]].concat()).unwrap();
        let (again, truncated) = reopen(dir.path());
        again.verify(other, truncated[0].digest.as_deref()).unwrap();
        assert_eq!(truncated[0].channels[0].captured_bytes, 10);
        fs::remove_file(again.summary_file(other)).unwrap();
    }
    // The end of a tape that was closed may not be zeros.
    let file = tapes.tape_file(id);
    let mut whole = fs::read(&file).unwrap();
    let half = whole.len() - 40;
    whole[half..].fill(0);
    fs::write(&file, &whole).unwrap();
    assert!(tapes.verify(id, None).unwrap_err().is_tampering());
}

#[tokio::test]
async fn what_a_crash_left_of_a_beginning_is_removed_and_nothing_else() {
    let Recorder { tapes, id, dir } = recorded().await;
    let [empty, torn, orphan, lost] = [1, 2, 3, 4].map(|_| SessionId::new(Timestamp::now()));
    let key = |id| tapes.tape_file(id).with_extension("key");
    fs::write(tapes.tape_file(empty), "").unwrap();
    fs::write(tapes.tape_file(torn), "KEYWARD-TAPE-1 {\"id\":").unwrap();
    for id in [empty, orphan, lost] {
        fs::write(key(id), "wrapped").unwrap();
    }
    let (again, rebuilt) = reopen(dir.path());
    assert!(rebuilt.is_empty());
    let trail = trail(dir.path(), &[("session_opened", lost)]).await;
    again.remove_orphans(&trail.sessions().unwrap()).unwrap();
    // The key of a session that the trail knows stays: its tape was taken away.
    assert_eq!(again.sessions().unwrap().into_iter().collect::<Vec<_>>(), [id, lost]);
    again.verify(id, None).unwrap();
}

#[tokio::test]
async fn a_tape_that_cannot_begin_leaves_nothing() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let key = tapes.tape_file(id).with_extension("key");
    fs::create_dir(&key).unwrap();
    assert!(tapes.begin(header(id), id).await.is_err());
    fs::remove_dir(&key).unwrap();
    assert!(!tapes.sessions().unwrap().contains(&id));
}

/// A trail with these events.
async fn trail(dir: &Path, events: &[(&str, SessionId)]) -> crate::audit::Trail {
    use keystore::{Vault, backend::Memory, seal::MasterKey, signing::Signers};
    let vault = Vault::new(std::sync::Arc::new(Memory::default()), MasterKey::generate().unwrap());
    let signers = Signers::create(&vault).await.unwrap();
    let trail = crate::audit::Trail::open(&dir.join("audit"), signers.audit).unwrap();
    for (event, id) in events {
        let event = serde_json::json!({
            "event": event, "facts": { "session": id.to_string() }, "session": id.to_string(), "user": "alice",
            "source_ip": "192.0.2.7", "key": "SHA256:x", "instance": "db-1", "login": "ubuntu", "rules": [],
            "status": "closed", "reason": null, "digest": "d", "summary": "s",
        });
        trail.append(serde_json::from_value(event).unwrap(), Timestamp::now()).await.unwrap();
    }
    trail
}

#[tokio::test]
async fn the_trail_hears_once_of_each_session_whose_end_a_crash_kept_from_it() {
    let Recorder { tapes, id: told, dir } = recorded().await;
    let [open, closed, blank, header_only, anew] = [1, 2, 3, 4, 5].map(|_| SessionId::new(Timestamp::now()));
    for id in [open, closed, blank, anew] {
        let tape = tapes.begin(header(id), id).await.unwrap();
        if id != blank {
            tape.channel_opened(1);
        }
        tape.seal(end(), Timestamp::now()).await.unwrap();
    }
    drop(tapes.begin(header(header_only), header_only).await.unwrap());
    while !tapes.summary_file(header_only).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fs::remove_file(tapes.summary_file(anew)).unwrap();
    let (again, rebuilt) = reopen(dir.path());
    assert_eq!(rebuilt.len(), 1);
    let events = [open, closed, anew].map(|id| ("session_opened", id));
    let closes = [closed, anew].map(|id| ("session_closed", id));
    let trail = trail(dir.path(), &[events.as_slice(), &closes].concat()).await;
    let known = trail.sessions().unwrap();
    let untold = again.untold(&rebuilt, &known).unwrap();
    let ids: Vec<String> = untold.iter().map(|summary| summary.header.id.clone()).collect();
    // `told` holds something and the trail does not know it: its end was taken away, which verification must say.
    assert!(!ids.contains(&told.to_string()));
    let mut expected = [open, blank, header_only, anew].map(|id| id.to_string());
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn operations_that_nobody_takes_hold_up_the_channel_and_not_its_last_words() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let sftp = ChannelMessage::Subsystem("sftp".to_owned());
    tape.record(1, Direction::ToInstance, &sftp).await.unwrap();
    // RMDIR "/a", and its answer.
    let asked = |id: u8| Bytes::from(vec![0, 0, 0, 11, 15, 0, 0, 0, id, 0, 0, 0, 2, b'/', b'a']);
    let answered = |id: u8| Bytes::from(vec![0, 0, 0, 9, 101, 0, 0, 0, id, 0, 0, 0, 0]);
    let remove = async || {
        tape.record(1, Direction::ToInstance, &ChannelMessage::Data(asked(7))).await.unwrap();
        tape.record(1, Direction::ToUser, &ChannelMessage::Data(answered(7))).await.unwrap();
    };
    for _ in 0..1024 {
        remove().await;
    }
    let patience = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(patience, remove()).await.is_err());
    let last = ChannelMessage::Stderr(Bytes::from_static(b"last words"));
    tape.record(1, Direction::ToUser, &last).await.unwrap();
    let took = async { tape.next_operation().await };
    tokio::join!(remove(), took);
    tape.seal(end(), Timestamp::now()).await.unwrap();
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_tape_changes_nothing_that_it_says() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    for _ in 0..20 {
        let id = SessionId::new(Timestamp::now());
        let tape = tapes.begin(header(id), id).await.unwrap();
        let sealing = tape.clone();
        let sealed = tokio::spawn(async move { sealing.seal(end(), Timestamp::now()).await.unwrap() });
        let mut number = 0;
        while !sealed.is_finished() {
            number += 1;
            tape.channel_opened(number);
            assert!(tape.channel_closed(number).is_none_or(|ledger| ledger.channel == number));
            tokio::task::yield_now().await;
        }
        tapes.verify(id, sealed.await.unwrap().digest.as_deref()).unwrap();
    }
}

#[tokio::test]
async fn a_packing_that_fails_leaves_the_tape_and_nothing_else() {
    let Recorder { tapes, id, dir } = recorded().await;
    let (tape, key) = (tapes.tape_file(id), zeroize::Zeroizing::new([7; 32]));
    fs::remove_file(&tape).unwrap();
    let file = OpenOptions::new().write(true).create_new(true).open(&tape).unwrap();
    drop(Writer::start(file, &header(id), &key).unwrap());
    let header_only = fs::read(&tape).unwrap();
    // No end, and a frame that does not open.
    for rest in
        [&b""[..], &[0, 0, 0, 20, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]]
    {
        fs::write(&tape, [&header_only, rest].concat()).unwrap();
        let files =
            Files { tape: tape.clone(), summary: tapes.summary_file(id), key: key.clone(), reserve: None };
        assert!(super::super::pack::pack(&header(id), &files, 32 << 10).is_err());
        let left: Vec<_> =
            fs::read_dir(dir.path().join("tapes")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
        assert_eq!(fs::read(&tape).unwrap(), [&header_only, rest].concat());
    }
}

#[tokio::test]
async fn no_player_is_told_of_a_terminal_that_it_has_no_memory_for() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let huge = |cols, rows| ChannelMessage::WindowChange { cols, rows, px_width: 0, px_height: 0 };
    let (term, modes) = ("xterm".to_owned(), Vec::new());
    let pty = ChannelMessage::Pty { term, cols: u32::MAX, rows: u32::MAX, px_width: 0, px_height: 0, modes };
    for message in [pty, ChannelMessage::Shell, huge(u32::MAX, 0), huge(81, 25)] {
        tape.record(1, Direction::ToInstance, &message).await.unwrap();
    }
    tape.seal(end(), Timestamp::now()).await.unwrap();
    let cast = asciicast(&tapes, id);
    assert!(!cast.contains("4294967295") && cast.contains("\"81x25\""), "{cast}");
}

#[tokio::test]
async fn a_tape_without_an_end_verifies_where_a_later_version_reads_it_otherwise() {
    let Recorder { tapes, dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let exec = ChannelMessage::Exec(Bytes::from_static(b"cat"));
    tape.record(1, Direction::ToInstance, &exec).await.unwrap();
    tape.record(1, Direction::ToUser, &data("hello")).await.unwrap();
    let (file, start) = (tapes.tape_file(id), fs::metadata(tapes.tape_file(id)).unwrap().len());
    while fs::metadata(&file).unwrap().len() == start {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // As a crash leaves it.
    let torn = fs::read(&file).unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    fs::write(&file, torn).unwrap();
    fs::remove_file(tapes.summary_file(id)).unwrap();
    let (again, truncated) = reopen(dir.path());
    let [summary] = truncated.as_slice() else { panic!("{truncated:?}") };
    again.verify(id, summary.digest.as_deref()).unwrap();
    let said = |change: &dyn Fn(&mut ChannelSummary)| {
        let mut other = summary.clone();
        change(&mut other.channels[0]);
        fs::write(again.summary_file(id), serde_json::to_vec(&other).unwrap()).unwrap();
        again.verify(id, summary.digest.as_deref())
    };
    said(&|channel| (channel.operations, channel.capture) = (3, Capture::Operations)).unwrap();
    assert!(said(&|channel| channel.bytes_out += 1).unwrap_err().is_tampering());
    assert!(said(&|channel| channel.command = None).unwrap_err().is_tampering());
}

#[tokio::test]
async fn files_that_pass_once_the_tape_failed_are_told_all_the_same() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let (tape, _) = on_a_full_disk_with(&tapes, id, Terms { mode: Mode::BestEffort, ..TERMS });
    let exec = ChannelMessage::Exec(Bytes::from_static(b"scp -t /srv/x"));
    tape.record(1, Direction::ToInstance, &exec).await.unwrap();
    tape.failed().await;
    tape.record(1, Direction::ToInstance, &data("C0644 5 x\n")).await.unwrap();
    tape.record(1, Direction::ToUser, &data("\0")).await.unwrap();
    tape.record(1, Direction::ToInstance, &data("hello\0")).await.unwrap();
    tape.record(1, Direction::ToUser, &data("\0")).await.unwrap();
    let (_, file) = tape.take_operation().unwrap();
    assert_eq!((file.path.as_str(), file.bytes), ("/srv/x", 5));
    // What is no transfer after all is not called kept.
    tape.record(1, Direction::ToInstance, &data("sh -i\n")).await.unwrap();
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!((summary.status, summary.channels[0].capture), (SessionStatus::Killed, Capture::None));
    tapes.verify(id, summary.digest.as_deref()).unwrap();
}

#[tokio::test]
async fn a_tape_that_was_not_packed_shows_from_its_middle_what_stood_there_before() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
    let size = || fs::metadata(tapes.tape_file(id)).unwrap().len();
    for text in ["first", "\r\nsecond", "\r\nthird"] {
        let before = size();
        tape.record(1, Direction::ToUser, &data(text)).await.unwrap();
        while size() == before {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    tape.seal(end(), Timestamp::now()).await.unwrap();
    let mut playback = Playback::from(&tapes, id, 1_000_000).unwrap();
    let (_, _, picture) = playback.next_event().unwrap().unwrap();
    assert!(["first", "second", "third"].iter().all(|text| picture.contains(text)), "{picture:?}");
}
