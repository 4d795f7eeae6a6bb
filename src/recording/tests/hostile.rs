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
