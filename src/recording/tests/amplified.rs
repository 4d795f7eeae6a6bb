//! A few bytes that fill many screens: told whole, and never all at once.

use super::*;

/// What is told of a terminal that shows `text`, in the pieces that it comes in.
async fn told(text: &str) -> Vec<Vec<Line>> {
    let Recorder { tapes, dir: _dir, .. } = recorded().await;
    let id = SessionId::new(Timestamp::now());
    let tape = tapes.begin(header(id), id).await.unwrap();
    tape.record(1, Direction::ToInstance, &pty()).await.unwrap();
    tape.record(1, Direction::ToInstance, &ChannelMessage::Shell).await.unwrap();
    tape.record(1, Direction::ToUser, &data(text)).await.unwrap();
    tape.record(1, Direction::ToUser, &data("\r\nthe end\r\n")).await.unwrap();
    tape.seal(end(), Timestamp::now()).await.unwrap();
    let mut lines = Lines::of(tapes.frames(id, 0).unwrap());
    let mut pieces = Vec::new();
    while let Some(piece) = lines.more().unwrap() {
        pieces.push(piece);
    }
    pieces
}

fn size(piece: &[Line]) -> usize {
    piece.iter().map(|line| line.text.len()).sum()
}

#[tokio::test]
async fn a_character_repeated_ten_million_times_is_told_in_pieces_and_whole() {
    let pieces = told(&"x\u{1b}[65535b\r\n".repeat(160)).await;
    let most = pieces.iter().map(|piece| size(piece)).max().unwrap();
    assert!(most < 2 << 20, "{most} bytes at once");
    let all: String = pieces.into_iter().flatten().map(|line| line.text).collect();
    // The parser or the emulator may bound how often, but nothing between is lost.
    assert!(all.matches('x').count() > 5_000_000, "{}", all.len());
    assert!(all.starts_with("(shell)xxx") && all.ends_with("the end"));
}

#[tokio::test]
async fn a_screen_that_is_filled_and_wiped_again_and_again_is_told_in_pieces() {
    let pieces = told(&"\u{1b}#8\u{1b}c".repeat(1000)).await;
    assert!(pieces.iter().all(|piece| size(piece) < 2 << 20));
    let all: Vec<Line> = pieces.into_iter().flatten().collect();
    assert_eq!(all.iter().filter(|line| line.text == "E".repeat(100)).count(), 30_000);
    assert_eq!(all.last().unwrap().text, "the end");
}

#[tokio::test]
async fn what_scrolls_nothing_but_blanks_away_tells_nothing_of_it() {
    let pieces = told(&"\u{1b}[65535S".repeat(2000)).await;
    let all: Vec<Line> = pieces.into_iter().flatten().collect();
    assert_eq!(all.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["(shell)", "the end"]);
}
