//! Files that somebody wants to get past the recorder, and what is typed.

use super::*;

const UP: Direction = Direction::ToInstance;
const DOWN: Direction = Direction::ToUser;

fn exec(command: &str) -> (Direction, ChannelMessage) {
    (UP, ChannelMessage::Exec(Bytes::copy_from_slice(command.as_bytes())))
}

fn said(direction: Direction, bytes: &[u8]) -> (Direction, ChannelMessage) {
    (direction, ChannelMessage::Data(Bytes::copy_from_slice(bytes)))
}

/// What a tape of these messages tells of its one channel, and its records; the tape verifies.
async fn told_with(
    terms: Terms,
    messages: Vec<(Direction, ChannelMessage)>,
) -> (ChannelSummary, Vec<Record>) {
    let dir = tempfile::tempdir().unwrap();
    let keys = TapeKeys::create(&dir.path().join("identity")).unwrap();
    let (tapes, _) = Tapes::open(&dir.path().join("tapes"), keys, terms).unwrap();
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.channel_opened(1);
    for (direction, message) in &messages {
        tape.record(1, *direction, message).await.unwrap();
    }
    tape.channel_closed(1);
    let mut summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    tapes.verify(id, summary.digest.as_deref()).unwrap();
    (summary.channels.remove(0), records(&tapes, id))
}

async fn told(messages: Vec<(Direction, ChannelMessage)>) -> (ChannelSummary, Vec<Record>) {
    told_with(TERMS, messages).await
}

fn operations(records: &[Record]) -> Vec<&Operation> {
    records.iter().filter_map(|r| if let What::Operation(o) = &r.what { Some(o) } else { None }).collect()
}

fn kept(records: &[Record], bytes: &[u8]) -> bool {
    records.iter().any(|r| r.payload.windows(bytes.len()).any(|part| part == bytes))
}

const UPLOAD: &[u8] = b"C0644 6 up\nhidden\0";
/// SHA-256 of `hidden`.
const HIDDEN: &str = "e564b4081d7a9ea4b00dada53bdae70c99b87b6fce869f0c3dd4d2bfa1e53e1c";

#[tokio::test]
async fn an_upload_through_a_terminal_is_an_operation_however_it_is_started() {
    for command in
        ["scp -t /x", "/usr/bin/scp -t /x", "sh -c 'scp -t /x'", "sudo scp -t /x", "cd /; exec scp -t /x"]
    {
        let (channel, records) =
            told(vec![(UP, pty()), exec(command), said(DOWN, b"\0"), said(UP, UPLOAD)]).await;
        let operations = operations(&records);
        let [file] = operations.as_slice() else { panic!("{command}: {operations:?}") };
        assert_eq!((file.deed, file.path.as_str(), file.bytes), (Deed::Written, "/x", 6), "{command}");
        assert_eq!(file.sha256.as_deref(), Some(HIDDEN));
        assert!(file.fault.as_deref().unwrap().contains("through a terminal"), "{file:?}");
        assert_eq!((channel.capture, channel.operations), (Capture::Operations, 1), "{channel:?}");
        assert_eq!(channel.gaps(), [(UPLOAD.len() as u64, channel.reason.clone().unwrap())]);
        assert!(channel.digest_in.is_none() && !kept(&records, b"hidden"));
    }
}

#[tokio::test]
async fn an_upload_behind_another_name_or_typed_at_a_shell_is_known_by_its_protocol() {
    for start in [exec("/tmp/innocent"), (UP, ChannelMessage::Shell)] {
        let opened = [(UP, pty()), start, said(DOWN, b"$ "), said(UP, b"./innocent\r"), said(DOWN, b"\0")];
        let (channel, records) = told([opened.as_slice(), &[said(UP, UPLOAD)]].concat()).await;
        let operations = operations(&records);
        let [file] = operations.as_slice() else { panic!("{operations:?}") };
        assert_eq!((file.path.as_str(), file.bytes), ("up", 6));
        assert!(file.fault.as_deref().unwrap().contains("known by its protocol"), "{file:?}");
        assert_eq!(channel.capture, Capture::Operations);
    }
}

#[tokio::test]
async fn a_transfer_at_a_terminal_that_cannot_be_read_is_never_called_full() {
    let sudo = vec![(UP, pty()), exec("sudo scp -t /x"), said(UP, b"hunter2\n"), said(UP, b"more\n")];
    let both = vec![(UP, pty()), exec("scp -t -f /x"), said(UP, b"more\n")];
    let two = vec![(UP, pty()), exec("scp -t /tmp/a; scp -t /etc/b"), said(UP, UPLOAD)];
    let zmodem = vec![(UP, pty()), exec("rz"), said(UP, b"more\n")];
    let daemon = vec![(UP, pty()), exec("rsync --server --daemon ."), said(UP, b"@RSYNCD: 31.0\n")];
    let rsync = vec![(UP, pty()), exec("rsync --server . /x"), said(UP, b"cat > /x\n")];
    for messages in [sudo, both, two, zmodem, daemon, rsync] {
        let (channel, records) = told(messages.clone()).await;
        assert_eq!(channel.capture, Capture::Output, "{messages:?}");
        let gaps = channel.gaps();
        assert!(gaps[0].0 == channel.bytes_in && gaps[0].1.contains("not kept"), "{gaps:?}");
        assert!(!kept(&records, b"hunter2") && channel.digest_in.is_none());
    }
    // A terminal at which people work still is.
    let top = vec![(UP, pty()), exec("top"), said(UP, b"q"), said(DOWN, b"bye")];
    assert_eq!(told(top).await.0.capture, Capture::Full);
}

#[tokio::test]
async fn after_sudo_asked_for_a_password_the_files_are_operations_again() {
    let start = [(UP, pty()), exec("sudo scp -t /x"), said(DOWN, b"Password: "), said(UP, b"hunter2\n")];
    let (channel, records) = told([start.as_slice(), &[said(DOWN, b"\0"), said(UP, UPLOAD)]].concat()).await;
    assert_eq!((operations(&records).len(), channel.capture), (1, Capture::Output));
}

#[tokio::test]
async fn a_flood_that_no_screen_shows_is_told() {
    let mut messages = vec![(UP, pty()), (UP, ChannelMessage::Shell), said(UP, b"cat > x\r")];
    messages.push(said(DOWN, b"cat > x\r\n"));
    messages.extend((0..80).map(|_| said(UP, &[b'x'; 1000])));
    let (channel, records) = told(messages).await;
    assert_eq!(channel.capture, Capture::Output);
    assert_eq!(channel.gaps(), [(80_008, channel.reason.clone().unwrap())]);
    assert!(channel.reason.unwrap().contains("did not show") && !kept(&records, b"xxx"));
}

#[tokio::test]
async fn sftp_as_a_command_is_operations_and_its_bytes_are_kept_up_to_the_limit() {
    let packet = |body: &[u8]| [u32::try_from(body.len()).unwrap().to_be_bytes().as_slice(), body].concat();
    let init = packet(&[1, 0, 0, 0, 3]);
    let remove = packet(&[15, 0, 0, 0, 7, 0, 0, 0, 2, b'/', b'a']);
    let done = packet(&[101, 0, 0, 0, 7, 0, 0, 0, 0]);
    for (command, terminal) in [
        ("/usr/lib/openssh/sftp-server", false),
        ("exec sftp-server -R", true),
        ("sh -c /usr/lib/sftp-server", false),
        ("/tmp/innocent", false),
        ("/tmp/innocent", true),
    ] {
        let mut messages = vec![exec(command), said(UP, &init), said(UP, &remove), said(DOWN, &done)];
        if terminal {
            messages.insert(0, (UP, pty()));
        }
        let (channel, records) = told(messages).await;
        let operations = operations(&records);
        assert_eq!((operations.len(), operations[0].deed), (1, Deed::Removed), "{command}");
        let expected = if terminal { Capture::Operations } else { Capture::Full };
        assert_eq!((channel.capture, kept(&records, &remove)), (expected, !terminal), "{command}");
    }
}

#[tokio::test]
async fn what_comes_in_behind_a_flood_of_output_is_kept() {
    let mut messages = vec![exec("yes; bash")];
    messages.extend((0..4).map(|_| said(DOWN, &[b'y'; 400])));
    messages.push(said(UP, b"rm -rf /srv\n"));
    let (channel, records) = told(messages).await;
    assert!(kept(&records, b"rm -rf /srv\n"));
    assert_eq!((channel.relayed_bytes, channel.captured_bytes), (1612, 1012));
    assert_eq!(channel.gaps()[0].0, 600);
}

#[tokio::test]
async fn a_whole_stream_that_is_not_read_has_its_digest() {
    let stream = [31, 0, 0, 0, 1, 2, 3];
    let line = "rsync --server -vlogDtpre.iLsfxCIvu . /srv/x";
    let (_, found) = told(vec![exec(line), said(UP, &stream), said(DOWN, &[31, 0, 0, 0])]).await;
    let file = operations(&found)[0];
    let sum = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(stream));
    assert_eq!(
        (file.path.as_str(), file.bytes, file.stream_sha256.as_deref()),
        ("/srv/x", 7, Some(sum.as_str()))
    );
    assert!(file.sha256.is_none());
    // A file may be called like an option.
    let line = "rsync --server -e.LsfxC -- . --sender";
    let (_, found) = told(vec![exec(line), said(UP, &stream)]).await;
    assert_eq!(operations(&found)[0].deed, Deed::Written);
    // Thousands of names are not an event.
    let line = format!("rsync --server . {}", "/srv/ä ".repeat(10_000));
    let (_, found) = told(vec![exec(&line), said(UP, &stream)]).await;
    assert!(operations(&found)[0].path.len() < 5000);
    // `rsync -s` names its files in the stream.
    let names = b"rsync\0--server\0-e31\0.\0/etc/evil\0\0\x1f\0\0\0";
    let (_, found) = told(vec![exec("rsync --server -se31"), said(UP, names)]).await;
    assert_eq!(operations(&found)[0].path, "/etc/evil");
}

#[tokio::test]
async fn a_line_that_the_terminal_showed_is_kept_if_that_is_wanted_and_a_password_never() {
    let typed = Terms { typed: true, ..TERMS };
    let messages = vec![
        (UP, pty()),
        (UP, ChannelMessage::Shell),
        said(DOWN, b"$ "),
        said(UP, b"sudo id\r"),
        said(DOWN, b"sudo id\r\nPassword: "),
        said(UP, b"hunter2\r"),
        said(DOWN, b"\r\nuid=0\r\n$ "),
    ];
    let (channel, records) = told_with(typed, messages.clone()).await;
    let input: Vec<_> = records.iter().filter(|r| r.what == What::Input).map(|r| r.payload.clone()).collect();
    assert_eq!(input, [b"sudo id\r".to_vec()]);
    assert!(!kept(&records, b"hunter2"));
    assert_eq!(
        (channel.relayed_bytes, channel.captured_bytes),
        (channel.bytes_out + 16, channel.bytes_out + 8)
    );
    assert_eq!(channel.gaps()[0].0, 8, "the password");
    let mut cast = Cast::of(&records);
    assert!(
        records.iter().filter_map(|r| cast.event(r)).any(|event| event.1 == 'i' && event.2 == "sudo id\r")
    );
    let (channel, records) = told(messages).await;
    assert!(!records.iter().any(|r| r.what == What::Input) && channel.gaps()[0].0 == 16);
}
