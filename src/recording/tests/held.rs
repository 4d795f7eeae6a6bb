//! What may be passed on, and when.

use super::*;

/// So many bytes that do not compress, others for each size.
fn noise(size: usize) -> ChannelMessage {
    let mut state = size as u64;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    });
    ChannelMessage::Data(bytes.take(size).collect())
}

async fn freed(held: &mut Held<'_>) -> Result<ChannelMessage, TapeError> {
    match held.turn(std::future::pending()).await? {
        Turn::Free(message) => Ok(message),
        Turn::Heard(_) | Turn::Over => panic!("nothing is said"),
    }
}

#[tokio::test]
async fn what_is_held_lies_on_the_disk_when_it_is_free_and_comes_in_order() {
    let Recorder { tapes, dir, .. } = recorded().await;
    tapes.keep(TapeKeys::load(&dir.path().join("identity")).unwrap(), Terms { limit: 1 << 30, ..TERMS });
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    let file = dir.path().join(format!("tapes/{id}.tape"));
    let begun = fs::metadata(&file).unwrap().len();
    let mut held = tape.held(1, Direction::ToUser);
    held.take(noise(60_000)).await.unwrap();
    assert_eq!(freed(&mut held).await.unwrap(), noise(60_000));
    for more in [50_000, 300_000, 7, 100_000] {
        held.take(noise(more)).await.unwrap();
    }
    let mut on_disk = 60_000;
    for more in [50_000, 300_000] {
        on_disk += more;
        assert_eq!(freed(&mut held).await.unwrap(), noise(usize::try_from(more).unwrap()));
        assert!(fs::metadata(&file).unwrap().len() - begun >= on_disk, "held until it lies there");
    }
    for more in [7, 100_000] {
        assert_eq!(freed(&mut held).await.unwrap(), noise(more));
    }
    let over = held.turn(std::future::ready(None)).await.unwrap();
    assert!(matches!(over, Turn::Over));
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    assert_eq!((summary.bytes_out, summary.channels[0].captured_bytes), (510_007, 510_007));
    assert!(tapes.verify(id, summary.digest.as_deref()).unwrap().opened);
}

#[tokio::test]
async fn what_is_held_is_never_free_when_the_disk_fails_and_what_was_not_written_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let id = SessionId::new(Timestamp::now());
    let real = dir.path().join("tape");
    let file = OpenOptions::new().write(true).create_new(true).open(&real).unwrap();
    let mut writer = Writer::start(file, &header(id), &[7; 32]).unwrap();
    writer.redirect(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (summary, key) = (dir.path().join("summary.json"), zeroize::Zeroizing::new([7; 32]));
    let terms = Terms { limit: 1 << 30, ..TERMS };
    let (tape, _deck) = start(header(id), writer, Files { tape: real, summary, key, reserve: None }, terms);
    let mut held = tape.held(1, Direction::ToUser);
    held.take(noise(60_000)).await.unwrap();
    freed(&mut held).await.unwrap();
    held.take(noise(60_000)).await.unwrap();
    assert!(matches!(freed(&mut held).await, Err(TapeError::Failed(_))));
    assert!(matches!(held.take(noise(1)).await, Err(TapeError::Failed(_))));
    let summary = tape.seal(end(), Timestamp::now()).await.unwrap();
    let channel = &summary.channels[0];
    assert_eq!((channel.relayed_bytes, channel.captured_bytes), (120_000, 0));
    assert!(channel.reason.as_deref().unwrap().contains("No space left"), "{channel:?}");
}

#[tokio::test]
async fn what_is_only_counted_is_never_held() {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.forward_opened(1, "web:80");
    let mut held = tape.held(1, Direction::ToUser);
    for _ in 0..64 {
        held.take(noise(1 << 20)).await.unwrap();
        let turn = held.turn(std::future::ready(Some(data("more")))).await.unwrap();
        assert!(matches!(turn, Turn::Free(_)), "passed on before more is read");
    }
    tape.seal(end(), Timestamp::now()).await.unwrap();
}
