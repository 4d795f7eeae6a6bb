//! Which programs a command line starts, as far as its words tell: through `sh -c`, `sudo`, a path, a list of commands.
//!
//! A shell may start what no line tells (an alias, a script, a copy under another name): that is known by how it speaks,
//! see [`super::sniff`].

use std::path::Path;

/// The words of every program that stands where a command may stand, in order.
pub(super) fn programs(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    within(line, DEEPEST, &mut found);
    found
}

/// The name of a program, without its path.
pub(super) fn name(word: &str) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word)
}

fn within(line: &str, deeper: usize, found: &mut Vec<Vec<String>>) {
    for segment in segments(line) {
        let words = shlex::split(&segment).unwrap_or_else(|| {
            segment.split_whitespace().map(|w| w.trim_matches(['"', '\'']).into()).collect()
        });
        program(&words, deeper, found);
    }
}

fn program(words: &[String], deeper: usize, found: &mut Vec<Vec<String>>) {
    let assigns = |word: &&String| word.contains('=') && !word.starts_with(['-', '/', '=']);
    let mut words = words.get(words.iter().take_while(assigns).count()..).unwrap_or_default();
    // What starts another program has options of its own before that one's name; only known names are looked for there.
    if words.first().is_some_and(|first| STARTS_ANOTHER.contains(&name(first))) {
        let known = |word: &String| MOVES_FILES.contains(&name(word)) || SHELLS.contains(&name(word));
        let at = words.iter().skip(1).position(known).map_or(0, |at| at + 1);
        words = words.get(at..).unwrap_or_default();
    }
    let Some(first) = words.first() else { return };
    if deeper > 0 && name(first) == "eval" {
        return within(&words.get(1..).unwrap_or_default().join(" "), deeper - 1, found);
    }
    if deeper > 0 && SHELLS.contains(&name(first)) {
        let says = |word: &String| word.starts_with('-') && !word.starts_with("--") && word.contains('c');
        let at = words.iter().skip(1).position(says).map(|at| at + 2);
        let line = at.and_then(|at| words.iter().skip(at).find(|word| !word.starts_with('-')));
        if let Some(line) = line {
            return within(line, deeper - 1, found);
        }
    }
    found.push(words.to_vec());
}

/// The line cut where a new command begins, without comments and redirections.
fn segments(line: &str) -> Vec<String> {
    let mut cutter = Cutter { done: Vec::new(), current: String::new(), quote: None, skipping: Skip::No };
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match (cutter.quote, c) {
            (None | Some('"'), '\\') => {
                cutter.put(c);
                cutter.put(chars.next().unwrap_or('\\'));
            }
            (Some(quote), c) if c == quote => cutter.quoted(None, c),
            (None, '\'' | '"') => cutter.quoted(Some(c), c),
            (None | Some('"'), '`') => cutter.cut(),
            (None | Some('"'), '$') if next == Some('(') => cutter.cut(),
            (None, ';' | '&' | '|' | '(' | ')' | '{' | '}' | '\n') => cutter.cut(),
            (None, '<' | '>') => {
                cutter.redirect();
                while chars.next_if(|c| "<>&|".contains(*c)).is_some() {}
            }
            (None, '#') if cutter.current.is_empty() || cutter.current.ends_with(' ') => {
                while chars.next_if(|c| *c != '\n').is_some() {}
            }
            (None, c) if c.is_whitespace() => cutter.space(),
            (_, c) => cutter.put(c),
        }
    }
    cutter.cut();
    cutter.done
}

struct Cutter {
    done: Vec<String>,
    current: String,
    quote: Option<char>,
    skipping: Skip,
}

/// The word after a redirection is a file, and none of the program's.
#[derive(PartialEq, Eq)]
enum Skip {
    No,
    Spaces,
    Word,
}

impl Cutter {
    fn put(&mut self, c: char) {
        match self.skipping {
            Skip::No => self.current.push(c),
            Skip::Spaces => self.skipping = Skip::Word,
            Skip::Word => {}
        }
    }

    fn quoted(&mut self, quote: Option<char>, c: char) {
        self.quote = quote;
        self.put(c);
    }

    fn space(&mut self) {
        if self.skipping == Skip::Word {
            self.skipping = Skip::No;
        }
        if self.skipping == Skip::No {
            self.current.push(' ');
        }
    }

    fn redirect(&mut self) {
        // `2>`: the number belongs to it.
        let kept = self.current.trim_end_matches(|c: char| c.is_ascii_digit());
        if kept.is_empty() || kept.ends_with(' ') {
            self.current.truncate(kept.len());
        }
        self.current.push(' ');
        self.skipping = Skip::Spaces;
    }

    fn cut(&mut self) {
        let mut segment = std::mem::take(&mut self.current);
        segment.extend(self.quote.take());
        self.skipping = Skip::No;
        if !segment.trim().is_empty() {
            self.done.push(segment);
        }
    }
}

/// Programs that another one is started by.
const STARTS_ANOTHER: [&str; 26] = [
    "exec", "command", "builtin", "nohup", "setsid", "time", "env", "nice", "ionice", "sudo", "doas", "su",
    "timeout", "stdbuf", "chroot", "busybox", "toybox", "xargs", "script", "strace", "unshare", "then", "do",
    "if", "while", "!",
];
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "su", "script"];
/// Programs that are known to move files over their standard input and output.
const MOVES_FILES: [&str; 15] = [
    "scp",
    "sftp-server",
    "internal-sftp",
    "rsync",
    "git",
    "git-upload-pack",
    "git-upload-archive",
    "git-receive-pack",
    "rz",
    "sz",
    "lrz",
    "lsz",
    "kermit",
    "unison",
    "eval",
];
const DEEPEST: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn first(line: &str) -> Vec<String> {
        programs(line).into_iter().next().unwrap_or_default()
    }

    #[test]
    fn a_copy_is_found_however_it_is_started() {
        for line in [
            "scp -t /x",
            "/usr/bin/scp -t /x",
            "sh -c 'scp -t /x'",
            "bash -lc \"exec scp -t /x\"",
            "sudo -u root scp -t /x",
            "sudo sh -c 'exec scp -t /x'",
            "env A=b nice -n 5 scp -t /x",
            "A=b scp -t /x",
            "timeout 5 scp -t /x </dev/stdin 2> /dev/null # harmless",
            "scp -t /x > '/a b'",
            "eval \"scp -t /x\"",
            "(scp -t /x)",
            "su - root -c 'scp -t /x'",
        ] {
            let words = first(line);
            assert_eq!(words.iter().skip(1).collect::<Vec<_>>(), ["-t", "/x"], "{line}: {words:?}");
            assert_eq!(words.first().map(|word| name(word)), Some("scp"), "{line}");
        }
    }

    #[test]
    fn what_stands_beside_it_is_a_program_of_its_own() {
        let all = |line| programs(line).into_iter().map(|words| words.join(" ")).collect::<Vec<_>>();
        assert_eq!(all("cd /srv && scp -t . ; echo 'a;b'"), ["cd /srv", "scp -t .", "echo a;b"]);
        assert_eq!(all("echo \"$(scp -f /etc/shadow)\"").get(1).unwrap(), "scp -f /etc/shadow");
        assert_eq!(all("echo scp -t /x"), ["echo scp -t /x"]);
        assert!(all("").is_empty() && all("';").len() == 1);
    }

    #[test]
    fn no_line_is_too_strange() {
        for line in
            ["\\", "'", "\"$(", "sh -c", "sh -c 'sh -c \"sh -c sh\"'", "2>", "<<<", "`", "sudo", "eval"]
        {
            drop(programs(line));
        }
    }
}
