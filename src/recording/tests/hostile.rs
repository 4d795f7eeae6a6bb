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
    start(header(id), writer, Files { tape: real, summary, key }, TERMS).0
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
