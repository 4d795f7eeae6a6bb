//! scp's old protocol, as `scp -t` (to the instance) and `scp -f` (from it) speak it.
//!
//! The sending side says `C0644 SIZE NAME\n`, the content and a zero byte; `D… NAME\n` and `E\n` around a directory's;
//! `T…\n` for times; a byte 1 or 2 and a line for a fault. The other side answers with zero bytes.

use super::message::Direction;
use super::operations::{Content, Deed, Deviates, LONGEST_PATH, Operation, bounded};

pub(super) struct Scp {
    sender: Direction,
    target: String,
    into_directory: bool,
    inside: Vec<String>,
    step: Step,
}

enum Step {
    Line(Vec<u8>),
    Content {
        left: u64,
        path: String,
        content: Box<Content>,
    },
    /// The byte after the content: zero, or a fault.
    Status {
        path: String,
        content: Box<Content>,
    },
}

impl Scp {
    /// For `scp` with these words; none if it is not the server's side.
    ///
    /// # Errors
    /// It is, and cannot be read.
    pub(super) fn of(words: &[&str]) -> Option<Result<Self, &'static str>> {
        let flag = |letter: char| {
            let flags = |word: &&&str| word.starts_with('-') && !word.starts_with("--");
            words.iter().filter(flags).any(|word| word.contains(letter))
        };
        let sender = match (flag('t'), flag('f')) {
            (true, false) => Direction::ToInstance,
            (false, true) => Direction::ToUser,
            (true, true) => return Some(Err("scp both ways at once is not read")),
            (false, false) => return None,
        };
        let target = (*words.last()?).to_owned();
        let into_directory = flag('d') || flag('r') || target.ends_with('/');
        let inside = Vec::new();
        Some(Ok(Self { sender, target, into_directory, inside, step: Step::Line(Vec::new()) }))
    }

    /// For a stream that is scp and whose command is not known: its files have names and no folder.
    pub(super) fn unnamed(sender: Direction) -> Self {
        let (target, inside) = (String::new(), Vec::new());
        Self { sender, target, into_directory: true, inside, step: Step::Line(Vec::new()) }
    }

    pub(super) fn pass(
        &mut self,
        direction: Direction,
        mut bytes: &[u8],
        done: &mut Vec<Operation>,
    ) -> Result<(), Deviates> {
        if direction != self.sender {
            return Ok(());
        }
        while let Some((first, rest)) = bytes.split_first() {
            match std::mem::replace(&mut self.step, Step::Line(Vec::new())) {
                Step::Line(mut line) => {
                    bytes = rest;
                    if *first != b'\n' {
                        if line.len() > LONGEST_PATH + 64 {
                            return Err(Deviates("a line of scp is too long"));
                        }
                        // Acknowledgements of the receiving side are its own; zeros between lines mean nothing.
                        if !(line.is_empty() && *first == 0) {
                            line.push(*first);
                        }
                        self.step = Step::Line(line);
                    } else {
                        self.line(&line)?;
                    }
                }
                Step::Content { left, path, mut content } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (piece, rest) = bytes.split_at(take);
                    content.next(piece);
                    bytes = rest;
                    let left = left - take as u64;
                    self.step = if left == 0 {
                        Step::Status { path, content }
                    } else {
                        Step::Content { left, path, content }
                    };
                }
                Step::Status { path, content } => {
                    bytes = rest;
                    let mut operation = self.operation(path);
                    content.tell(&mut operation);
                    if *first != 0 {
                        operation.fault = Some("the sending side reported a fault".to_owned());
                    }
                    done.push(operation);
                }
            }
        }
        Ok(())
    }

    pub(super) fn end(self, done: &mut Vec<Operation>) {
        let (deed, step) = (self.deed(), self.step);
        if let Step::Content { path, content, .. } | Step::Status { path, content } = step {
            let mut operation = Operation::new(deed, "scp", path);
            content.tell(&mut operation);
            operation.sha256 = None;
            operation.fault = Some("cut off".to_owned());
            done.push(operation);
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Deviates> {
        let text = bounded(line);
        match line.first() {
            Some(b'T' | 1) => {}
            // The receiving side ends here: what follows is read by something else.
            Some(2) => return Err(Deviates("scp gave up")),
            Some(b'E') => {
                self.inside.pop();
            }
            Some(b'C') => {
                let (size, name) = sized(&text)?;
                let path = self.path(&name);
                self.step = Step::Content { left: size, path, content: Box::new(Content::new()) };
                if size == 0
                    && let Step::Content { path, content, .. } =
                        std::mem::replace(&mut self.step, Step::Line(Vec::new()))
                {
                    self.step = Step::Status { path, content };
                }
            }
            Some(b'D') => {
                if self.inside.len() >= DEEPEST {
                    return Err(Deviates("directories of scp are too deep"));
                }
                self.inside.push(sized(&text)?.1);
            }
            _ => return Err(Deviates("this is not scp")),
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        let from_instance = self.sender == Direction::ToUser;
        if self.inside.is_empty() {
            // One of many that a pattern means lies beside the pattern.
            let many = from_instance && !self.target.ends_with(name);
            return match self.target.rsplit_once('/') {
                _ if !from_instance && self.into_directory => join(&self.target, [name]),
                Some((folder, _)) if many => join(folder, [name]),
                None if many => name.to_owned(),
                _ => self.target.clone(),
            };
        }
        // Reading `dir` sends `dir` itself as the first directory.
        let skip = usize::from(from_instance && self.target.ends_with(self.first()));
        join(&self.target, self.inside.iter().skip(skip).map(String::as_str).chain([name]))
    }

    fn first(&self) -> &str {
        self.inside.first().map_or("", String::as_str)
    }

    fn deed(&self) -> Deed {
        if self.sender == Direction::ToInstance { Deed::Written } else { Deed::Read }
    }

    fn operation(&self, path: String) -> Operation {
        Operation::new(self.deed(), "scp", path)
    }
}

fn join<'a>(folder: &str, parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut path = folder.trim_end_matches('/').to_owned();
    for part in parts {
        if !folder.is_empty() || !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
    }
    path
}

/// `C0644 SIZE NAME`.
fn sized(line: &str) -> Result<(u64, String), Deviates> {
    let mut parts = line.splitn(3, ' ');
    let (_, size, name) = (parts.next(), parts.next(), parts.next());
    let size = size.and_then(|size| size.parse().ok()).ok_or(Deviates("a line of scp has no size"))?;
    Ok((size, name.ok_or(Deviates("a line of scp has no name"))?.to_owned()))
}

const DEEPEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(words: &[&str], direction: Direction, bytes: &[u8]) -> Vec<Operation> {
        let mut scp = Scp::of(words).unwrap().unwrap();
        let mut done = Vec::new();
        for byte in bytes {
            assert!(scp.pass(direction, &[*byte], &mut done).is_ok());
        }
        scp.end(&mut done);
        done
    }

    #[test]
    fn a_file_that_is_sent_is_named_sized_and_hashed() {
        let done = passed(&["-t", "/tmp/there"], Direction::ToInstance, b"C0644 5 up\nhello\0");
        let [file] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((file.deed, file.path.as_str(), file.bytes), (Deed::Written, "/tmp/there", 5));
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(file.sha256.as_deref(), Some(hello));
    }

    #[test]
    fn files_in_directories_have_their_whole_path() {
        let stream = b"D0755 0 d\nC0644 1 a\nx\0D0755 0 e\nC0600 0 b\n\0E\nE\n";
        let done = passed(&["-r", "-t", "/tmp"], Direction::ToInstance, stream);
        let paths: Vec<&str> = done.iter().map(|o| o.path.as_str()).collect();
        assert_eq!(paths, ["/tmp/d/a", "/tmp/d/e/b"]);
    }

    #[test]
    fn a_file_that_is_cut_off_says_so_and_has_no_hash() {
        let done = passed(&["-f", "x"], Direction::ToUser, b"C0644 5 x\nhel");
        assert_eq!((done[0].bytes, done[0].sha256.is_none()), (3, true));
        assert!(done[0].fault.is_some());
    }

    #[test]
    fn each_file_that_a_pattern_means_is_named() {
        let done =
            passed(&["-f", "/etc/*.conf"], Direction::ToUser, b"C0644 1 a.conf\nx\0C0644 1 b.conf\ny\0");
        let paths: Vec<&str> = done.iter().map(|o| o.path.as_str()).collect();
        assert_eq!(paths, ["/etc/a.conf", "/etc/b.conf"]);
    }

    #[test]
    fn what_follows_the_end_of_one_copy_is_not_taken_for_its_files() {
        let mut scp = Scp::of(&["-t", "/tmp/harmless"]).unwrap().unwrap();
        let mut done = Vec::new();
        assert!(scp.pass(Direction::ToInstance, b"\x02done\nC0644 1 x\ny\0", &mut done).is_err());
        assert!(done.is_empty());
    }

    #[test]
    fn a_shell_behind_the_name_scp_is_no_scp() {
        let mut scp = Scp::of(&["-t", "x"]).unwrap().unwrap();
        assert!(scp.pass(Direction::ToInstance, b"id; cat /etc/shadow\n", &mut Vec::new()).is_err());
        assert!(Scp::of(&["file", "host:"]).is_none());
    }
}
