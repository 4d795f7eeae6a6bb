//! What may be drawn on somebody's terminal: a stream from an instance, reduced to what draws.
//!
//! An emulator's parser reads the stream into typed functions, and only those that draw are written again, in one form
//! each. So nothing passes that is not named here: no title, clipboard or link (OSC), no device string (DCS, APC, PM, SOS),
//! no question whose answer the terminal would type into the reader's shell (DA, DSR, DECRQSS), no mode that changes what
//! keys send, no wiping of what scrolled away, in seven bits or in eight, whole or cut by the edge of a packet.

use avt::parser::{AnsiMode, CtcOp, DecMode, EdScope, ElScope, Function, SgrOp, TbcScope};
use avt::{Charset, Color, Parser};

use super::cast::take_text;
use crate::audit::is_command;

/// A stream on its way to a terminal.
#[derive(Debug, Default)]
pub struct Drawing {
    parser: Parser,
    halves: Vec<u8>,
    /// A line feed also returns (LNM). Not passed on: it would change what the reader's Enter key sends.
    returns: bool,
    /// No terminal made its line ends: they are made here.
    lines: bool,
    at_return: bool,
    alternate: bool,
}

impl Drawing {
    /// A stream that was not made for a terminal.
    pub(super) fn of_lines() -> Self {
        Self { lines: true, ..Self::default() }
    }

    /// What `bytes` draw. A sequence or a character that is cut by their end waits for the rest.
    pub fn of(&mut self, bytes: &[u8]) -> String {
        self.halves.extend_from_slice(bytes);
        let text = take_text(&mut self.halves);
        self.of_text(&text)
    }

    /// What is left when nothing more comes.
    pub(super) fn rest(&mut self) -> String {
        let rest = std::mem::take(&mut self.halves);
        if rest.is_empty() { String::new() } else { self.of_text(&String::from_utf8_lossy(&rest)) }
    }

    /// What `text` draws.
    pub fn of_text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            if let Some(function) = self.parser.feed(c) {
                let line_end = function == Function::Cr;
                self.write(function, &mut out);
                self.at_return = line_end;
            }
        }
        out
    }

    /// Puts a terminal that drew this stream back as its owner had it.
    pub fn tidy(&self) -> String {
        format!("{}{PLAIN_PEN}", if self.alternate { "\u{1b}[?1049l" } else { "" })
    }

    fn write(&mut self, function: Function, out: &mut String) {
        use Function as F;
        match function {
            // Invisible characters that turn or hide text; those that join letters and emoji are text.
            F::Print(c) if is_command(c) && !matches!(c, '\u{200c}' | '\u{200d}') => {}
            F::Print(c) => out.push(c),
            F::Bs => out.push('\u{8}'),
            F::Cr => out.push('\r'),
            F::Ht => out.push('\t'),
            F::Lf if self.at_return => out.push('\n'),
            F::Lf if self.returns || self.lines => out.push_str("\r\n"),
            // The same as an index: on its way to the reader's screen nobody adds a return to it.
            F::Lf => out.push_str("\u{1b}D"),
            F::So => out.push('\u{e}'),
            F::Si => out.push('\u{f}'),
            F::Cbt(n) => csi(out, n, 'Z'),
            F::Cha(n) => csi(out, n, 'G'),
            F::Cht(n) => csi(out, n, 'I'),
            F::Cnl(n) => csi(out, n, 'E'),
            F::Cpl(n) => csi(out, n, 'F'),
            F::Cub(n) => csi(out, n, 'D'),
            F::Cud(n) => csi(out, n, 'B'),
            F::Cuf(n) => csi(out, n, 'C'),
            F::Cuu(n) => csi(out, n, 'A'),
            F::Dch(n) => csi(out, n, 'P'),
            F::Dl(n) => csi(out, n, 'M'),
            F::Ech(n) => csi(out, n, 'X'),
            F::Ich(n) => csi(out, n, '@'),
            F::Il(n) => csi(out, n, 'L'),
            F::Rep(n) => csi(out, n, 'b'),
            F::Sd(n) => csi(out, n, 'T'),
            F::Su(n) => csi(out, n, 'S'),
            F::Vpa(n) => csi(out, n, 'd'),
            F::Vpr(n) => csi(out, n, 'e'),
            F::Cup(row, col) => out.push_str(&format!("\u{1b}[{row};{col}H")),
            F::Decstbm(top, bottom) => out.push_str(&format!("\u{1b}[{top};{bottom}r")),
            F::Ctc(CtcOp::Set) => csi(out, 0, 'W'),
            F::Ctc(CtcOp::ClearCurrentColumn) => csi(out, 2, 'W'),
            F::Ctc(CtcOp::ClearAll) => csi(out, 5, 'W'),
            F::Tbc(TbcScope::CurrentColumn) => csi(out, 0, 'g'),
            F::Tbc(TbcScope::All) => csi(out, 3, 'g'),
            F::Ed(EdScope::Below) => csi(out, 0, 'J'),
            F::Ed(EdScope::Above) => csi(out, 1, 'J'),
            F::Ed(EdScope::All) => csi(out, 2, 'J'),
            F::El(ElScope::ToRight) => csi(out, 0, 'K'),
            F::El(ElScope::ToLeft) => csi(out, 1, 'K'),
            F::El(ElScope::All) => csi(out, 2, 'K'),
            F::Decaln => out.push_str("\u{1b}#8"),
            F::Decrc | F::Scorc => out.push_str("\u{1b}8"),
            F::Decsc | F::Scosc => out.push_str("\u{1b}7"),
            F::Nel => out.push_str("\u{1b}E"),
            F::Ri => out.push_str("\u{1b}M"),
            F::Hts => out.push_str("\u{1b}H"),
            F::Decstr => out.push_str(PLAIN_PEN),
            // A full reset would also wipe what scrolled away.
            F::Ris => {
                out.push_str(&self.tidy());
                (self.returns, self.alternate) = (false, false);
                out.push_str("\u{1b}[2J\u{1b}[H");
            }
            F::Gzd4(charset) => out.push_str(if drawn(charset) { "\u{1b}(0" } else { "\u{1b}(B" }),
            F::G1d4(charset) => out.push_str(if drawn(charset) { "\u{1b})0" } else { "\u{1b})B" }),
            F::Sm(modes) => modes.as_slice().iter().for_each(|mode| self.ansi(*mode, 'h', out)),
            F::Rm(modes) => modes.as_slice().iter().for_each(|mode| self.ansi(*mode, 'l', out)),
            F::Decset(modes) => modes.as_slice().iter().for_each(|mode| self.dec(*mode, 'h', out)),
            F::Decrst(modes) => modes.as_slice().iter().for_each(|mode| self.dec(*mode, 'l', out)),
            F::Sgr(ops) if ops.as_slice().is_empty() => {}
            F::Sgr(ops) => {
                let codes: Vec<String> = ops.as_slice().iter().map(pen).collect();
                out.push_str(&format!("\u{1b}[{}m", codes.join(";")));
            }
            F::Ed(EdScope::SavedLines) | F::Osc(_) | F::Xtwinops(_) => {}
        }
    }

    fn ansi(&mut self, mode: AnsiMode, end: char, out: &mut String) {
        match mode {
            AnsiMode::Insert => csi(out, 4, end),
            AnsiMode::NewLine => self.returns = end == 'h',
        }
    }

    fn dec(&mut self, mode: DecMode, end: char, out: &mut String) {
        let number = match mode {
            // Changes what the reader's arrow keys send.
            DecMode::CursorKeys => return,
            DecMode::Origin => 6,
            DecMode::AutoWrap => 7,
            DecMode::TextCursorEnable => 25,
            DecMode::AltScreenBuffer => 1047,
            DecMode::SaveCursor => 1048,
            DecMode::SaveCursorAltScreenBuffer => 1049,
        };
        if matches!(mode, DecMode::AltScreenBuffer | DecMode::SaveCursorAltScreenBuffer) {
            self.alternate = end == 'h';
        }
        out.push_str(&format!("\u{1b}[?{number}{end}"));
    }
}

fn csi(out: &mut String, number: u16, end: char) {
    out.push_str(&format!("\u{1b}[{number}{end}"));
}

fn drawn(charset: Charset) -> bool {
    charset == Charset::Drawing
}

/// ECMA-48 §8.3.117; colours in the form that every terminal reads.
fn pen(op: &SgrOp) -> String {
    let code = match op {
        SgrOp::Reset => 0,
        SgrOp::SetBoldIntensity => 1,
        SgrOp::SetFaintIntensity => 2,
        SgrOp::SetItalic => 3,
        SgrOp::SetUnderline => 4,
        SgrOp::SetBlink => 5,
        SgrOp::SetInverse => 7,
        SgrOp::SetStrikethrough => 9,
        SgrOp::ResetIntensity => 22,
        SgrOp::ResetItalic => 23,
        SgrOp::ResetUnderline => 24,
        SgrOp::ResetBlink => 25,
        SgrOp::ResetInverse => 27,
        SgrOp::ResetStrikethrough => 29,
        SgrOp::ResetForegroundColor => 39,
        SgrOp::ResetBackgroundColor => 49,
        SgrOp::SetForegroundColor(color) => return colour(*color, 30),
        SgrOp::SetBackgroundColor(color) => return colour(*color, 40),
    };
    code.to_string()
}

fn colour(color: Color, base: u8) -> String {
    match color {
        Color::Indexed(n) if n < 8 => (base + n).to_string(),
        Color::Indexed(n) if n < 16 => (base + 52 + n).to_string(),
        Color::Indexed(n) => format!("{};5;{n}", base + 8),
        Color::RGB(c) => format!("{};2;{};{};{}", base + 8, c.r, c.g, c.b),
    }
}

/// Soft reset (DECSTR), and by itself what some terminals leave out of it: wrapping, the cursor, insert mode, ASCII, colours.
const PLAIN_PEN: &str = "\u{1b}[!p\u{1b}[?7h\u{1b}[?25h\u{1b}[4l\u{1b}(B\u{1b})B\u{f}\u{1b}[m";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that may ever come out, said again by other means.
    fn only_draws(text: &str) -> bool {
        let allowed = concat!(
            r"^(?:[^\x00-\x1f\x7f-\u{9f}\u{ad}\u{61c}\u{200e}\u{200f}\u{202a}-\u{202e}\u{2066}-\u{2069}]|[\x08\t\n\r\x0e\x0f]",
            r"|\x1b(?:[78DEHM]|[()][0B]|#8|\[(?:[\d;]*[@A-IJ-MPSTWXZbdegmr]|4[hl]|\?(?:6|7|25|1047|1048|1049)[hl]|!p)))*$"
        );
        let regex = regex::Regex::new(allowed).unwrap();
        regex.is_match(text) && !text.contains("\u{1b}[3J")
    }

    fn drawn(bytes: &[u8]) -> String {
        let mut drawing = Drawing::default();
        let out = drawing.of(bytes);
        out + &drawing.rest()
    }

    #[test]
    fn drawing_passes_and_whatever_a_terminal_would_answer_or_obey_does_not() {
        for (given, passes) in [
            ("plain \u{1b}[1;31mred\u{1b}[0m\r\n", "plain \u{1b}[1;31mred\u{1b}[0m\r\n"),
            ("\u{1b}[?1049h\u{1b}[2J\u{1b}[5;7Hx", "\u{1b}[?1049h\u{1b}[2J\u{1b}[5;7Hx"),
            ("a\u{1b}]52;c;cm0gLXJmIH4K\u{7}b", "ab"),
            ("a\u{1b}]0;title\u{1b}\\b", "ab"),
            ("a\u{1b}]8;;http://evil/\u{1b}\\link\u{1b}]8;;\u{1b}\\", "alink"),
            ("a\u{1b}P$qm\u{1b}\\b\u{1b}_apc\u{1b}\\c\u{1b}^pm\u{1b}\\d\u{1b}Xsos\u{1b}\\e", "abcde"),
            ("a\u{1b}[c\u{1b}[>c\u{1b}[=c\u{1b}[6n\u{1b}[?6n\u{1b}[x\u{1b}[21t\u{1b}[>q\u{1b}[?1$pb", "ab"),
            (
                "a\u{1b}[?1h\u{1b}[?1000;1006h\u{1b}[?1004h\u{1b}[?2004h\u{1b}=\u{1b}>\u{1b}[20h\u{1b}[>4;2mb",
                "ab",
            ),
            ("a\u{5}\u{7}\u{0}\u{1b}Z\u{1b}[5i\u{1b}[3Jb\u{7f}", "ab"),
            ("a\u{9b}6n\u{9d}52;c;x\u{9c}\u{90}$qm\u{9c}b", "ab"),
            ("\u{9b}31mred", "\u{1b}[31mred"),
            ("tu\u{202e}rn \u{2066}me", "turn me"),
            ("x\u{1b}[8;1;1ty", "xy"),
            ("a\r\nb\nc", "a\r\nb\u{1b}Dc"),
        ] {
            assert_eq!(drawn(given.as_bytes()), passes, "{given:?}");
        }
        assert_eq!(Drawing::of_lines().of(b"a\r\nb\nc"), "a\r\nb\r\nc");
        // Eight-bit controls that are no UTF-8 are no characters either.
        assert_eq!(drawn(b"a\x9b6nb"), "a\u{fffd}6nb");
        assert_eq!(drawn(b"never ends \x1b]52;c;AAAA"), "never ends ");
    }

    #[test]
    fn a_terminal_is_given_back_as_it_was() {
        let mut drawing = Drawing::default();
        drawing.of(b"\x1b[?1049h\x1b[?25l");
        assert!(drawing.tidy().starts_with("\u{1b}[?1049l") && drawing.tidy().contains("\u{1b}[?25h"));
        drawing.of(b"\x1b[?1049l");
        assert!(!drawing.tidy().contains("1049"));
    }

    /// Pieces of streams, dangerous and not, and what is in between.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            &b"\x1b]"[..],
            b"52;c;",
            b"\x07",
            b"\x1b\\",
            b"\x1bP",
            b"\x1b_",
            b"\x1b^",
            b"\x1bX",
            b"\x1b[",
            b"?",
            b">",
            b"6n",
            b"c",
            b"$p",
            b"!p",
            b"1049h",
            b"2004h",
            b"20h",
            b"38;2;1;2;3m",
            b"4:3m",
            b"3J",
            b"2J",
            b"r",
            b"\xc2\x9b",
            b"\xc2\x9d",
            b"\xc2\x9c",
            b"\xc2\x90",
            b"\x9b",
            b"\x18",
            b"\x1a",
            b"\x05",
            b"\xe2\x80\xae",
            b"\xe2\x82\xac",
            b"text",
            b"\r\n",
            b"\t",
            b"\x1bc",
            b"\x1b(0",
            b"\x0e",
            b"99999999",
            b";",
            b"t",
            b"i",
        ])
        .prop_map(<[u8]>::to_vec);
        let any = prop::collection::vec(any::<u8>(), 0..6);
        prop::collection::vec(prop_oneof![4 => known, 1 => any], 0..60).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn whatever_comes_only_drawing_goes_on_however_it_is_cut(bytes in pieces(), cuts in prop::collection::vec(0..400_usize, 0..8)) {
            let whole = drawn(&bytes);
            prop_assert!(only_draws(&whole), "{:?} of {:?}", whole, bytes);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut drawing = Drawing::default();
            let mut out: String = cuts.windows(2).map(|cut| {
                let piece = drawing.of(&bytes[cut[0]..cut[1]]);
                assert!(only_draws(&piece), "each piece alone too: {piece:?}");
                piece
            }).collect();
            out.push_str(&drawing.rest());
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn what_goes_on_draws_the_same_picture(bytes in pieces()) {
            let picture = |text: &str| {
                let mut terminal = avt::Terminal::new(40, 8).unwrap();
                terminal.feed(text);
                terminal.screen().visible_lines().map(avt::Line::text).collect::<Vec<_>>()
            };
            let given: String = String::from_utf8_lossy(&bytes).into_owned();
            // What turns or hides text is left out, on purpose.
            prop_assume!(!given.contains(|c: char| c == '\u{7f}' || is_command(c) && !c.is_control()));
            prop_assert_eq!(picture(&drawn(given.as_bytes())), picture(&given));
        }
    }
}
