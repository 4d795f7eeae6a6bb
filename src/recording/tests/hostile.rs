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
    assert!(summary.channels[0].terminal && summary.channels[0].relayed_bytes == 0);
}

/// A tape whose disk is full once `before` is recorded; the tape's file is `real`.
fn on_a_full_disk(tapes: &Tapes, id: SessionId) -> Tape {
    let (key, real) = ([7; 32], tapes.tape_file(id));
    let file = OpenOptions::new().write(true).create_new(true).open(&real).unwrap();
    let mut writer = Writer::start(file, &header(id), &key).unwrap();
    fs::write(real.with_extension("key"), tapes.wrapped(&key)).unwrap();
    writer.redirect(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (summary, key) = (tapes.summary_file(id), zeroize::Zeroizing::new(key));
    start(header(id), writer, Files { tape: real, summary, key, reserve: None }, TERMS).0
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
