//! What a tape keeps up to its limit, and how long it says that a session was.

use super::*;

#[tokio::test]
async fn of_a_message_that_straddles_the_limit_the_part_up_to_it_is_kept_each_way() {
    let Recorder { tapes, dir, .. } = recorded().await;
    let text: String = (0..1500).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    // One message that is too long by itself, and one of several that brings it over; at the limit, nothing is left over.
    for cut in [&[1500][..], &[999, 501], &[1000, 500], &[1, 1498, 1]] {
        let id = SessionId::new(Timestamp::now());
        let tape = tapes.begin(header(id), id).await.unwrap();
        let exec = ChannelMessage::Exec(Bytes::from_static(b"cat"));
        tape.record(1, Direction::ToInstance, &exec).await.unwrap();
        for way in [Direction::ToInstance, Direction::ToUser] {
            let mut rest = text.as_str();
            for length in cut {
                let (first, behind) = rest.split_at(*length);
                tape.record(1, way, &data(first)).await.unwrap();
                rest = behind;
            }
        }
        let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
        let channel = &summary.channels[0];
        assert_eq!((channel.relayed_bytes, channel.captured_bytes), (3000, 2000), "{cut:?}");
        for what in [What::Input, What::Output] {
            let records = records(&tapes, id);
            let kept: Vec<u8> =
                records.into_iter().filter(|r| r.what == what).flat_map(|r| r.payload).collect();
            assert_eq!(kept, text.as_bytes()[..1000], "{cut:?}");
        }
        tapes.verify(id, summary.digest.as_deref()).unwrap();
        // Told again from a tape that a crash left: the same.
        fs::remove_file(tapes.summary_file(id)).unwrap();
        let (_, anew) = reopen(dir.path());
        assert_eq!((&anew[0].channels, anew[0].lasted_ms), (&summary.channels, summary.lasted_ms));
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_or_on_meanwhile_makes_no_session_shorter_or_longer() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    for hours in [-24, 24] {
        let id = SessionId::new(Timestamp::now());
        let now = Timestamp::now();
        let started_at = now + jiff::SignedDuration::from_hours(hours);
        let tape = tapes.begin(Header { started_at, ..header(id) }, id).await.unwrap();
        tape.record(1, Direction::ToInstance, &ChannelMessage::Shell).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let summary = tape.seal(end(), now).await.unwrap();
        let (lasted, ended) = (summary.lasted().unwrap(), summary.ended_at.unwrap());
        assert!((20..60_000).contains(&lasted), "{hours}: {lasted}");
        assert!(ended >= now && ended > started_at, "{hours}: {ended}");
        tapes.verify(id, summary.digest.as_deref()).unwrap();
    }
}

#[tokio::test]
async fn what_a_client_asks_of_a_terminal_is_on_the_tape_and_in_its_export() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let modes = vec![(1, 3), (53, 0), (128, 38400)];
    let asked = ChannelMessage::Pty {
        term: "xterm".to_owned(),
        cols: 100,
        rows: 30,
        px_width: 1600,
        px_height: 900,
        modes: modes.clone(),
    };
    let change = ChannelMessage::WindowChange { cols: 90, rows: 20, px_width: 1440, px_height: 600 };
    let bare = ChannelMessage::WindowChange { cols: 80, rows: 24, px_width: 0, px_height: 0 };
    for message in [&asked, &change, &bare] {
        tape.record(1, Direction::ToInstance, message).await.unwrap();
    }
    tape.seal(end(), Timestamp::now()).await.unwrap();
    let records = records(&tapes, id);
    let shown: Vec<_> = records.iter().map(|record| json_record(record).unwrap()["what"].clone()).collect();
    let pty = &shown[0]["note"][1]["pty"];
    assert_eq!(pty["px"], serde_json::json!([1600, 900]));
    assert_eq!(pty["modes"], serde_json::json!({ "VINTR": 3, "ECHO": 0, "TTY_OP_ISPEED": 38400 }));
    assert_eq!(shown[1]["note"][1]["window_change"]["px"], serde_json::json!([1440, 600]));
    assert!(shown[2]["note"][1]["window_change"].get("px").is_none(), "not known, not told");
    // As it came, for whoever reads the tape itself.
    assert!(matches!(&records[0].what, What::Note(_, Note::Pty { modes: kept, .. }) if *kept == modes));
}

#[tokio::test]
async fn a_session_of_many_channels_is_full_before_its_summary_is_too_long_to_be_read_and_keeps_none_of_their_state()
 {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let mut channels = 0;
    // Each as long as it may be, and six times as long in JSON.
    let target = "\u{1}".repeat(100_000);
    while !tape.is_full() {
        channels += 1;
        tape.forward_opened(channels, &target);
        tape.channel_closed(channels).unwrap();
        if channels % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(channels > 2000, "{channels}");
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!(summary.channels.len(), channels as usize);
    assert_eq!(tapes.summary(id).unwrap(), summary);
    tapes.verify(id, summary.digest.as_deref()).unwrap();
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_channel_is_counted_with_what_came_before() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &ChannelMessage::Shell).await.unwrap();
    tape.record(1, Direction::ToUser, &data("hello")).await.unwrap();
    tape.channel_closed(1);
    tape.record(1, Direction::ToUser, &data(", late")).await.unwrap();
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let [channel] = summary.channels.as_slice() else { panic!("{summary:?}") };
    assert_eq!((channel.kind.as_str(), channel.relayed_bytes, channel.captured_bytes), ("shell", 11, 11));
    tapes.verify(id, summary.digest.as_deref()).unwrap();
}

#[tokio::test]
async fn a_session_whose_summary_cannot_be_read_is_listed_with_the_reason_and_its_neighbour_as_ever() {
    let Recorder { tapes, dir, id: whole } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    // As after a restart, with nothing in memory.
    let (tapes, _) = reopen(dir.path());
    fs::write(tapes.summary_file(id), "no JSON").unwrap();
    let listed = tapes.list().unwrap();
    let [first, second] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(*first, tapes.summary(whole).unwrap());
    assert_eq!((second.header.id.as_str(), second.header.user.as_str()), (id.to_string().as_str(), "alice"));
    assert!(
        second.lost && second.reason.as_ref().unwrap().contains("its summary cannot be read"),
        "{second:?}"
    );
    // Not even its tape is there.
    fs::remove_file(tapes.tape_file(id)).unwrap();
    let listed = tapes.list().unwrap();
    assert_eq!(
        (listed[1].header.id.as_str(), listed[1].header.user.as_str()),
        (id.to_string().as_str(), "unknown")
    );
}
