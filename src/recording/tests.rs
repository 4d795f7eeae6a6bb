use std::fs::{self, OpenOptions};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;

use super::frames::{Plain, Reader, Writer};
use super::tape::{Files, start};
use super::*;

mod amplified;
mod bounds;
mod held;
mod hostile;
mod lost;
mod rolls;
mod smuggled;
mod soup;

fn header(id: SessionId) -> Header {
    Header {
        id: id.to_string(),
        user: "alice".to_owned(),
        login: "ubuntu".to_owned(),
        instance: "db-1".to_owned(),
        source_ip: "192.0.2.7".to_owned(),
        key: "SHA256:x".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        recording: Mode::Strict,
        parent: None,
        packed: false,
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

const TERMS: Terms =
    Terms { limit: 1000, typed: false, counts_forwards: false, hashing: Hashing::Blake3, mode: Mode::Strict };

/// All records of a tape.
fn records(tapes: &Tapes, id: SessionId) -> Vec<Record> {
    let mut frames = tapes.frames(id, 0).unwrap();
    let mut all = Vec::new();
    while let Some(records) = frames.next_frame().unwrap() {
        all.extend(records);
    }
    all
}

/// The tape as asciicast.
fn asciicast(tapes: &Tapes, id: SessionId) -> String {
    let mut playback = Playback::from(tapes, id, 0).unwrap();
    let mut text = cast_header(&tapes.summary(id).unwrap(), playback.cast());
    while let Some(event) = playback.next_event().unwrap() {
        text.push_str(&cast_line(&event));
    }
    text
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
    let (tapes, truncated) = Tapes::open(&dir.path().join("tapes"), keys, TERMS).unwrap();
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
    Tapes::open(&dir.join("tapes"), TapeKeys::load(&dir.join("identity")).unwrap(), TERMS).unwrap()
}

#[tokio::test]
async fn what_was_recorded_reads_back_and_verifies() {
    let Recorder { tapes, id, dir: _dir } = recorded().await;
    let summary = tapes.summary(id).unwrap();
    let [channel] = summary.channels.as_slice() else { panic!("{summary:?}") };
    assert_eq!((channel.kind.as_str(), channel.exit_status), ("exec", Some(3)));
    assert_eq!((channel.relayed_bytes, channel.captured_bytes), (7, 7));
    let cast = asciicast(&tapes, id);
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
    let (tapes, _) = Tapes::open(&dir.path().join("tapes"), keys, TERMS).unwrap();
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToUser, &data("secret")).await.unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    assert!(matches!(tapes.frames(id, 0), Err(TapeError::NoIdentity)));
    assert!(!tapes.verify(id, None).unwrap().opened);
    let (there, _) = reopen(dir.path());
    assert!(asciicast(&there, id).contains("secret"));
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
    let (summary, key) = (dir.path().join("summary.json"), zeroize::Zeroizing::new([7; 32]));
    let (tape, _deck) =
        start(header(id), writer, Files { tape: real.clone(), summary, key, reserve: None }, TERMS);
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
    let channel = &summary.channels[0];
    assert_eq!((channel.relayed_bytes, channel.captured_bytes, channel.capture), (10, 2, Capture::Full));
    // The ledger says itself what the list of gaps says.
    assert_eq!(channel.gaps(), [(8, channel.reason.clone().unwrap())]);
    assert!(channel.gaps()[0].1.contains("recording.input"));
    let tapes = reopen(dir.path()).0;
    assert!(!records(&tapes, id).iter().any(|r| r.payload.windows(7).any(|w| w == b"hunter2")));
    let cast = asciicast(&tapes, id);
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
        (1200, 1000, Capture::Digest)
    );
    assert!(channel.reason.as_deref().unwrap().contains("1000"));
    assert!(channel.digest_out.is_some());
}

#[test]
fn a_forward_is_hashed_or_counted_as_configured_and_a_command_is_hashed_always() {
    for counts in [false, true] {
        let mut ledger = ledger::Ledger::new(Terms { limit: 4, counts_forwards: counts, ..TERMS });
        ledger.forward(0, "127.0.0.1:80");
        ledger.observe(1, Direction::ToInstance, &ChannelMessage::Exec(Bytes::from_static(b"cat big")));
        for channel in [0, 1] {
            ledger.observe(channel, Direction::ToUser, &data("12345"));
        }
        let [forward, exec] = ledger.summaries().try_into().unwrap();
        assert_eq!((forward.relayed_bytes, forward.captured_bytes), (5, 0));
        let (capture, reason) = match counts {
            true => (Capture::None, "payload of forwards is counted, not stored (recording.forwards)"),
            false => (Capture::Digest, "payload of forwards is counted and hashed, not stored"),
        };
        assert_eq!((forward.capture, forward.reason.as_deref()), (capture, Some(reason)));
        assert_eq!((forward.digest_in.is_none(), forward.digest_out.is_none()), (counts, counts));
        assert!(exec.digest_out.is_some());
    }
}

#[tokio::test]
async fn a_character_cut_by_a_packet_is_exported_whole() {
    let record =
        |payload: &[u8]| Record { millis: 0, channel: 1, what: What::Output, payload: payload.to_vec() };
    let euro = "€".as_bytes();
    let mut cast = Cast::without_terminal();
    let shown =
        [record(&euro[..1]), record(&euro[1..])].iter().filter_map(|r| cast.event(r)).collect::<Vec<_>>();
    assert_eq!(shown, [(0, 'o', "€".to_owned())]);
    let mut cast = Cast::without_terminal();
    let shown = [record(b"a\xff"), record(b"b")].iter().filter_map(|r| cast.event(r)).collect::<Vec<_>>();
    assert_eq!(shown.iter().map(|e| e.2.as_str()).collect::<String>(), "a\u{fffd}b");
}

#[tokio::test]
async fn sftp_is_kept_as_operations_and_a_shell_in_its_place_is_kept_whole() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let sftp = ChannelMessage::Subsystem("sftp".to_owned());
    tape.record(1, Direction::ToInstance, &sftp).await.unwrap();
    tape.record(1, Direction::ToInstance, &data("cat /etc/shadow\n")).await.unwrap();
    tape.record(1, Direction::ToUser, &data("root:hash")).await.unwrap();
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let channel = &summary.channels[0];
    assert_eq!((channel.relayed_bytes, channel.captured_bytes), (25, 25));
    assert_eq!(channel.capture, Capture::Digest);
    assert!(channel.reason.as_deref().unwrap().contains("no valid length"));
    assert!(asciicast(&tapes, id).contains("root:hash"));
}

#[tokio::test]
async fn a_watcher_sees_what_was_and_what_comes() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
    tape.record(1, Direction::ToUser, &data("before")).await.unwrap();
    let (frames, before, mut live) = tapes.watch(id).await.unwrap();
    tape.record(1, Direction::ToUser, &data("after")).await.unwrap();
    tape.watched().await;
    let (_, shown) = picture(frames, before).unwrap();
    assert!(shown.contains("before") && !shown.contains("after"));
    let next = live.recv().await.unwrap();
    assert_eq!(next.payload, b"after");
    tape.seal(end(), Timestamp::now()).await.unwrap();
    assert!(matches!(tapes.watch(id).await, Err(TapeError::Ended(_))));
}

#[tokio::test]
async fn a_watcher_waits_for_no_frame_and_no_clock() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
    let (_, _, mut live) = tapes.watch(id).await.unwrap();
    for n in 0..500 {
        let line = format!("line {n}");
        tape.record(1, Direction::ToUser, &data(&line)).await.unwrap();
        // It is there when the relay may go on: nothing is awaited.
        assert_eq!(live.try_recv().unwrap().payload, line.as_bytes());
    }
    tape.seal(end(), Timestamp::now()).await.unwrap();
}

#[tokio::test]
async fn rewrapping_touches_only_keys_and_the_old_identity_reads_no_more() {
    let Recorder { tapes, id, dir } = recorded().await;
    let path = dir.path().join(format!("tapes/{id}.tape"));
    let before = fs::read(&path).unwrap();
    let others = TapeKeys::create(&dir.path().join("others")).unwrap();
    assert_eq!(
        tapes.rewrap(&TapeKeys::recipients_only(&others.recipients()).unwrap(), &|_, _| {}).unwrap(),
        1
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(tapes.frames(id, 0).is_err());
    let there =
        Tapes::inspect(&dir.path().join("tapes"), TapeKeys::load(&dir.path().join("others")).unwrap());
    assert!(there.verify(id, None).unwrap().opened);
}

#[tokio::test]
async fn with_best_effort_a_session_outlives_its_tape_and_the_ledger_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let id = SessionId::new(Timestamp::now());
    let real = dir.path().join("tape");
    let file = OpenOptions::new().write(true).create_new(true).open(&real).unwrap();
    let mut writer = Writer::start(file, &header(id), &[7; 32]).unwrap();
    writer.redirect(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (summary, key) = (dir.path().join("summary.json"), zeroize::Zeroizing::new([7; 32]));
    let terms = Terms { mode: Mode::BestEffort, ..TERMS };
    let (tape, _deck) = start(header(id), writer, Files { tape: real, summary, key, reserve: None }, terms);
    tape.record(1, Direction::ToUser, &data("taken, not yet written")).await.unwrap();
    tape.failed().await;
    tape.record(1, Direction::ToUser, &data("lost")).await.unwrap();
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let gaps = summary.channels[0].gaps();
    // What was taken and could not be written is lost like what came after it.
    assert_eq!((summary.channels[0].capture, gaps[0].0), (Capture::None, 26));
    assert!(gaps[0].1.contains("No space left"), "{gaps:?}");
}

/// A tape of a terminal, written as a session of `seconds` would write it, then packed. Returns its asciicast too.
fn hour(dir: &Path, seconds: u64) -> (Tapes, SessionId, String) {
    let keys = TapeKeys::create(&dir.join("identity")).unwrap();
    let (tapes, _) = Tapes::open(&dir.join("tapes"), keys, TERMS).unwrap();
    let id = SessionId::new(Timestamp::now());
    let file = |kind: &str| dir.join(format!("tapes/{id}.{kind}"));
    let key = [7; 32];
    fs::write(file("key"), tapes.wrapped(&key)).unwrap();
    let tape = OpenOptions::new().write(true).create_new(true).open(file("tape")).unwrap();
    let mut writer = Writer::start(tape, &header(id), &key).unwrap();
    let note = Note::pty(100, 30);
    let mut all = vec![Record {
        millis: 0,
        channel: 0,
        what: What::Note(Direction::ToInstance, note),
        payload: Vec::new(),
    }];
    let mut random = 1u64;
    let mut roll = |of: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % of
    };
    let mut at = 0;
    while at < seconds * 1000 {
        // A command typed letter by letter, what it prints, a pause.
        for letter in format!("git log --oneline -{} src/part{}.rs", roll(40), roll(200)).chars() {
            at += 60 + roll(200);
            all.push(Record {
                millis: at,
                channel: 0,
                what: What::Output,
                payload: letter.to_string().into(),
            });
        }
        let mut text = "\r\n".to_owned();
        for _ in 0..roll(40) {
            let words =
                ["fix", "parser", "of", "sessions", "when", "the", "window", "closes", "test", "relay"];
            // Of two thousand commits: what people list, they list again.
            let commit = roll(2000);
            let said: Vec<&str> = (0..6).map(|n| words[((commit * 7919) >> n) as usize % 10]).collect();
            let hash = commit.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36;
            text.push_str(&format!("\u{1b}[33m{hash:07x}\u{1b}[m {}\r\n", said.join(" ")));
        }
        at += 100;
        text.push_str("\u{1b}[01;32malice@db-1\u{1b}[00m:\u{1b}[01;34m~/src\u{1b}[00m$ ");
        all.push(Record { millis: at, channel: 0, what: What::Output, payload: text.into() });
        at += roll(20_000);
    }
    let mut cast = Cast::of(&all);
    let mut export = String::new();
    let mut ledger = ledger::Ledger::new(Terms { limit: 0, ..TERMS });
    ledger.observe(0, Direction::ToInstance, &pty());
    let mut ended = end();
    ended.reason = Some("closed".to_owned());
    for (index, record) in all.iter().enumerate() {
        let mut records = format::Records::default();
        records.push(record, &record.payload).unwrap();
        if index + 1 == all.len() {
            let what = What::End(ended.clone(), Timestamp::UNIX_EPOCH, ledger.summaries());
            let last = Record { millis: record.millis, channel: 0, what, payload: Vec::new() };
            records.push(&last, &[]).unwrap();
        }
        writer.frame(&Plain { records: &records, last: index + 1 == all.len() }).unwrap();
        export.extend(cast.event(record).iter().map(cast_line));
    }
    let files =
        Files { tape: file("tape"), summary: file("json"), key: zeroize::Zeroizing::new(key), reserve: None };
    let digest = pack::pack(&header(id), &files, writer.sink().length()).unwrap().unwrap();
    let mut summary = summary::Summary::of(header(id), ledger.summaries());
    (summary.status, summary.reason) = (ended.status, ended.reason);
    (summary.ended_at, summary.digest) = (Some(Timestamp::UNIX_EPOCH), Some(digest));
    fs::write(file("json"), serde_json::to_vec(&summary).unwrap()).unwrap();
    (tapes, id, export)
}

#[test]
fn an_hour_of_terminal_takes_an_eighth_of_its_asciicast() {
    let dir = tempfile::tempdir().unwrap();
    let (tapes, id, export) = hour(dir.path(), 3600);
    assert!(tapes.verify(id, None).unwrap().opened);
    let size = fs::metadata(dir.path().join(format!("tapes/{id}.tape"))).unwrap().len();
    println!(
        "an hour: {size} bytes, as asciicast {}: 1/{:.1}",
        export.len(),
        export.len() as f64 / size as f64
    );
    assert!(size * 8 <= export.len() as u64, "{size} of {}", export.len());
}

#[test]
fn eight_hours_play_from_any_minute_at_once_and_show_the_screen_as_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let (tapes, id, _) = hour(dir.path(), 8 * 3600);
    let mut slowest = std::time::Duration::ZERO;
    for minute in [1, 60, 239, 240, 311, 479] {
        let since = std::time::Instant::now();
        let mut there = Playback::from(&tapes, id, minute * 60_000).unwrap();
        let first = there.next_event().unwrap().unwrap();
        slowest = slowest.max(since.elapsed());
        assert!(first.2.contains("\u{1b}[2J\u{1b}[H"), "on an empty screen: {first:?}");
        assert!(there.next_event().unwrap().unwrap().0 >= minute * 60_000);
        // The picture is the one that playing from the start leads to.
        let (mut from_start, mut shown) =
            (Playback::from(&tapes, id, 0).unwrap(), screen::terminal(100, 30).unwrap());
        while let Some((millis, _, text)) = from_start.next_event().unwrap()
            && millis < minute * 60_000
        {
            shown.feed(text.as_str());
        }
        let mut drawn = screen::terminal(100, 30).unwrap();
        drawn.feed(first.2.as_str());
        assert_eq!(drawn.screen().text(), shown.screen().text(), "minute {minute}");
    }
    println!("slowest start: {slowest:?}");
    // Ten times what is asked of a release build, for a test build on a busy machine.
    assert!(slowest < std::time::Duration::from_secs(1), "{slowest:?}");
}
