//! The short way of a transcript tells what drawing everything tells.

use proptest::prelude::*;

use super::*;

fn transcript(records: &[Record], plodding: bool) -> Vec<Line> {
    let mut transcript = Transcript::default();
    transcript.plodding = plodding;
    let mut done = Vec::new();
    records.iter().for_each(|record| transcript.feed(record, &mut done));
    transcript.finish(&mut done);
    done
}

fn size(cols: u32, rows: u32) -> What {
    let note = Note::pty(cols, rows);
    What::Note(Direction::ToInstance, note)
}

/// Many plain lines: what a roll is for.
fn lines() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "request",
        "db-1",
        "\u{1b}[31mred\u{1b}[m",
        "\u{1b}[0;1m",
        "\u{1b}[38;5;7m",
        "\t",
        "  ",
        "größe",
        "│─┤",
        "",
        "\u{1b}[K",
        "\u{1b}[0K",
        "a-word-that-is-longer-than-the-whole-terminal-is-wide",
        "1234567890",
        "\u{1b}[44m",
    ]);
    let line = prop::collection::vec(word, 0..6).prop_map(|words| words.join(" "));
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\r\n"]);
    prop::collection::vec((line, end), 1..40)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect())
}

/// Anything else that a terminal does.
fn other() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "\u{1b}[2J",
        "\u{1b}[J",
        "\u{1b}[1J",
        "\u{1b}[3J",
        "\u{1b}[H",
        "\u{1b}[2;3H",
        "\u{1b}[99;1H",
        "\u{1b}[A",
        "\u{1b}[5B",
        "\u{1b}[3C",
        "\u{1b}[2D",
        "\u{1b}[1K",
        "\u{1b}[2K",
        "\u{1b}[2L",
        "\u{1b}[M",
        "\u{1b}[3P",
        "\u{1b}[4@",
        "\u{1b}[2X",
        "\u{1b}[2;4r",
        "\u{1b}[r",
        "\u{1b}[1;6r",
        "\u{1b}[?1049h",
        "\u{1b}[?1049l",
        "\u{1b}[?1047h",
        "\u{1b}[?1047l",
        "\u{1b}[?7l",
        "\u{1b}[?7h",
        "\u{1b}[?6h",
        "\u{1b}[?6l",
        "\u{1b}[4h",
        "\u{1b}[4l",
        "\u{1b}[20h",
        "\u{1b}[20l",
        "\u{1b}c",
        "\u{1b}[!p",
        "\u{1b}7",
        "\u{1b}8",
        "\u{1b}[s",
        "\u{1b}[u",
        "\u{1b}(0",
        "\u{1b}(B",
        "\u{1b})0",
        "\u{e}",
        "\u{f}",
        "\u{1b}H",
        "\u{1b}[g",
        "\u{1b}[3g",
        "\u{1b}[3b",
        "\u{1b}M",
        "\u{1b}D",
        "\u{1b}E",
        "\u{1b}[2S",
        "\u{1b}[2T",
        "\u{1b}]0;title\u{7}",
        "\u{7}",
        "\u{8}",
        "\r",
        "\n",
        "\u{b}",
        "50 %\r60 %\r",
        "日本語",
        "e\u{301}",
        "\u{ad}",
        "\u{7f}",
        "\u{1b}[?25l",
        "\u{1b}[?2004h",
        "\u{1b}#8",
        "\u{1b}[",
        "\u{1b}",
        "\u{1b}[3",
        "\u{1b}[31",
        "\u{1b}P",
        "\u{9b}31m",
        "x",
        "$ ",
        "\u{1b}[5;1H\r\n\r\n\r\n",
    ]);
    known.prop_map(str::to_owned)
}

fn sizes() -> impl Strategy<Value = (u32, u32)> {
    prop::sample::select(vec![(40, 6), (20, 4), (9, 3), (8, 1), (1, 2), (100, 12)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("KEYWARD_CASES").map_or(1500, |n| n.parse().unwrap()), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_roll_tells_what_an_emulator_tells(
        pieces in prop::collection::vec(prop_oneof![3 => lines(), 2 => other()], 1..14),
        cuts in prop::collection::vec((0..4000_usize, prop::sample::select(vec![0, 5, 299, 300, 1000, 2500_u64])), 0..10),
        first in sizes(),
        resized in prop::option::of((sizes(), 0..10_usize)),
    ) {
        let text = pieces.concat().into_bytes();
        let mut cuts: Vec<_> = cuts.into_iter().map(|(at, pause)| (at.min(text.len()), pause)).collect();
        cuts.extend([(0, 0), (text.len(), 0)]);
        cuts.sort_unstable();
        let mut records = vec![Record { millis: 0, channel: 1, what: size(first.0, first.1), payload: Vec::new() }];
        let mut millis = 0;
        for (index, pair) in cuts.windows(2).enumerate() {
            let (from, to) = (pair[0], pair[1]);
            millis += from.1;
            if let Some(((cols, rows), at)) = resized && at == index {
                let what = What::Note(Direction::ToInstance, Note::window_change(cols, rows));
                records.push(Record { millis, channel: 1, what, payload: Vec::new() });
            }
            let payload = text[from.0..to.0].to_vec();
            records.push(Record { millis, channel: 1, what: What::Output, payload });
        }
        prop_assert_eq!(transcript(&records, false), transcript(&records, true));
    }
}

#[test]
fn what_is_taken_for_narrow_is_drawn_in_one_column() {
    let mut terminal = avt::Terminal::new(4, 2).unwrap();
    for c in (0..=0x0010_ffff).filter_map(char::from_u32) {
        if transcript::is_narrow(c) {
            terminal.feed(format!("\u{1b}[H{c}").as_str());
            assert_eq!(terminal.cursor().col, 1, "{c:?}");
            assert_eq!(terminal.screen().line(0).unwrap().chars().next(), Some(c));
        }
    }
}

#[test]
fn plain_lines_are_not_drawn() {
    // Twenty thousand lines: as many as an emulator draws in seconds in a test build, and a roll at once.
    let line = format!("{}\r\n", "x".repeat(60));
    let mut records = vec![Record { millis: 0, channel: 1, what: size(80, 24), payload: Vec::new() }];
    let payload = line.repeat(50).into_bytes();
    records.extend((0..400).map(|_| Record {
        millis: 1,
        channel: 1,
        what: What::Output,
        payload: payload.clone(),
    }));
    let mut transcript = Transcript::default();
    let mut done = Vec::new();
    records.iter().for_each(|record| transcript.feed(record, &mut done));
    assert!(transcript.rolls(1));
    transcript.finish(&mut done);
    assert_eq!(done.len(), 20_000);
}
