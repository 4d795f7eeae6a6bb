//! Files of a recording that are gone: what is said then, and what a start makes of it.

use super::*;
use crate::recording::Keep;

/// Tapes that nobody here can open, and who can.
struct Sealed {
    dir: tempfile::TempDir,
    tapes: Tapes,
    auditors: TapeKeys,
}

impl Sealed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let auditors = TapeKeys::create(&dir.path().join("identity")).unwrap();
        let tapes = Self::open(&dir, &auditors).0;
        Self { dir, tapes, auditors }
    }

    fn open(dir: &tempfile::TempDir, auditors: &TapeKeys) -> (Tapes, Vec<Summary>) {
        let keys = TapeKeys::recipients_only(&auditors.recipients()).unwrap();
        Tapes::open(&dir.path().join("tapes"), keys, TERMS).unwrap()
    }

    async fn begin(&self) -> (SessionId, Tape) {
        let id = SessionId::new(Timestamp::now());
        let tape = self.tapes.begin(header(id), id).await.unwrap();
        tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
        tape.record(1, Direction::ToInstance, &ChannelMessage::Shell).await.unwrap();
        tape.record(1, Direction::ToUser, &data("# ")).await.unwrap();
        (id, tape)
    }
}

#[tokio::test]
async fn a_summary_that_was_lost_says_so_and_is_no_lie_where_the_tape_opens() {
    let sealed = Sealed::new();
    let (ended, tape) = sealed.begin().await;
    let own = tape.seal(end(), Timestamp::now()).await.unwrap();
    fs::remove_file(sealed.tapes.summary_file(ended)).unwrap();
    let (tapes, anew) = Sealed::open(&sealed.dir, &sealed.auditors);
    let [lost] = anew.as_slice() else { panic!("{anew:?}") };
    assert!(lost.lost && lost.channels.is_empty());
    assert_eq!(lost.reason.as_deref(), Some(Summary::CAME_TO_ITS_END));
    assert!(lost.ended_at >= Some(lost.header.started_at) && lost.digest == own.digest);
    tapes.verify(ended, own.digest.as_deref()).unwrap();
    // The auditors, who can open it, do not take it for a forgery; that it says more would be one.
    let keys = || TapeKeys::load(&sealed.dir.path().join("identity")).unwrap();
    let theirs = Tapes::inspect(&sealed.dir.path().join("tapes"), keys());
    assert!(theirs.verify(ended, own.digest.as_deref()).unwrap().opened);
    let file = theirs.summary_file(ended);
    let text = fs::read_to_string(&file).unwrap();
    let more = serde_json::to_string(&own.channels).unwrap();
    fs::write(&file, text.replace("\"channels\":[]", &format!("\"channels\":{more}"))).unwrap();
    assert!(theirs.verify(ended, own.digest.as_deref()).unwrap_err().is_tampering());
    // With the identity all is told again, and nothing was lost.
    fs::remove_file(&file).unwrap();
    let (_, anew) = Tapes::open(&sealed.dir.path().join("tapes"), keys(), TERMS).unwrap();
    assert_eq!(anew, [own]);
}

#[tokio::test]
async fn of_a_tape_that_a_crash_cut_off_and_that_does_not_open_both_is_said() {
    let sealed = Sealed::new();
    let (id, tape) = sealed.begin().await;
    let file = sealed.tapes.tape_file(id);
    while fs::metadata(&file).unwrap().len() < 600 {
        tape.record(1, Direction::ToUser, &data("some more")).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (tapes, anew) = Sealed::open(&sealed.dir, &sealed.auditors);
    let [lost] = anew.as_slice() else { panic!("{anew:?}") };
    assert!(lost.lost && lost.status == SessionStatus::Truncated);
    assert!(lost.reason.as_deref().unwrap().contains("in the middle"), "{lost:?}");
    tapes.verify(id, lost.digest.as_deref()).unwrap();
}

#[test]
fn whoever_takes_a_summary_away_does_not_shorten_the_time_of_its_tape() {
    let now = Timestamp::now();
    let id = SessionId::new(now);
    let header = Header { started_at: now - jiff::SignedDuration::from_secs(50), ..header(id) };
    let told =
        |lost| Summary { lost, ended_at: Some(header.started_at), ..Summary::of(header.clone(), Vec::new()) };
    for (terminal, other, own, lost) in [
        (Some(100), Some(10), true, false),
        (Some(10), Some(100), false, false),
        (Some(10), Some(10), true, true),
        (None, Some(10), true, false),
    ] {
        let keep = Keep { terminal, other };
        assert_eq!(keep.over(&told(false), now).is_some(), own, "{keep:?}");
        assert_eq!(keep.over(&told(true), now).is_some(), lost, "{keep:?}");
    }
}

#[tokio::test]
async fn of_a_recording_of_which_a_part_is_gone_the_part_is_named() {
    let Recorder { tapes, id, dir } = recorded().await;
    let path = |kind: &str| dir.path().join(format!("tapes/{id}.{kind}"));
    let kinds = ["tape", "key", "json"];
    let whole = kinds.map(|kind| fs::read(path(kind)).unwrap());
    for gone in 0..8u8 {
        let is_gone = |at: usize| gone & 1 << at != 0;
        for (at, kind) in kinds.iter().enumerate() {
            match is_gone(at) {
                true => fs::remove_file(path(kind)).unwrap(),
                false => fs::write(path(kind), &whole[at]).unwrap(),
            }
        }
        let opened = tapes.frames(id, 0).map(drop);
        match gone {
            0 => opened.unwrap(),
            7 => assert!(matches!(opened, Err(TapeError::Missing(_)))),
            _ => {
                let first = kinds.iter().enumerate().find(|(at, _)| is_gone(*at)).unwrap().1;
                // Of one without tape and key, and of one without summary alone, that is what is missing.
                let error = opened.unwrap_err();
                assert!(error.is_tampering(), "{gone}: {error}");
                let said = error.to_string();
                let named = if gone == 6 { "json" } else { first };
                assert!(said.contains(&format!("{id}.{named}")) && said.contains("gone"), "{gone}: {said}");
            }
        }
        for kind in kinds {
            drop(fs::remove_file(path(kind)));
        }
        for (kind, bytes) in kinds.iter().zip(&whole) {
            fs::write(path(kind), bytes).unwrap();
        }
    }
}
