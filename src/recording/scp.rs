//! scp's old protocol, as `scp -t` (to the instance) and `scp -f` (from it) speak it.
//!
//! The sending side says `C0644 SIZE NAME\n`, the content and a zero byte; `D… NAME\n` and `E\n` around a directory's;
//! `T…\n` for times; a byte 1 or 2 and a line for a fault. The other side answers with zero bytes.

use super::message::Direction;
use super::operations::{Content, Deed, Deviates, LONGEST_PATH, Operation, bounded, shortened};

pub(super) struct Scp {
    sender: Direction,
    /// What the command line names: one for `-t`, any number for `-f`.
    targets: Vec<String>,
    /// The target is a directory in any case.
    into_directory: bool,
    inside: Vec<String>,
    step: Step,
    /// What the other side has not answered yet.
    awaits: Option<Awaited>,
    /// An answer that is no zero byte: what it said, and how long it may still be.
    refusal: Option<(Vec<u8>, usize)>,
    /// The sending side went on without an answer: what it sends may be read as something else.
    ahead: bool,
    /// A file that passed and whose end was not answered yet.
    passed: Option<Operation>,
}

enum Step {
    Line(Vec<u8>),
    Content {
        left: u64,
        place: Place,
        content: Box<Content>,
    },
    /// The byte after the content: zero, or a fault.
    Status {
        place: Place,
        content: Box<Content>,
    },
    /// The words of a fault, so many bytes at most.
    Fault(usize),
}

/// Where a file is, or else where it is if the target was not what it seemed.
struct Place {
    path: String,
    or: Option<String>,
}

/// What an answer is to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    File,
    Directory,
    End,
    Other,
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
        let last = (*words.last()?).to_owned();
        let targets = match sender {
            Direction::ToInstance => vec![last],
            Direction::ToUser => {
                let named = words.iter().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned());
                let named: Vec<String> = named.collect();
                if named.is_empty() { vec![last] } else { named }
            }
        };
        let into_directory = flag('d') || targets.iter().any(|target| is_directory(target));
        Some(Ok(Self { targets, into_directory, ..Self::unnamed(sender) }))
    }

    /// For a stream that is scp and whose command is not known: its files have names and no folder.
    pub(super) fn unnamed(sender: Direction) -> Self {
        Self {
            sender,
            targets: vec![String::new()],
            into_directory: true,
            inside: Vec::new(),
            step: Step::Line(Vec::new()),
            awaits: None,
            refusal: None,
            ahead: false,
            passed: None,
        }
    }

    pub(super) fn pass(
        &mut self,
        direction: Direction,
        mut bytes: &[u8],
        done: &mut Vec<Operation>,
    ) -> Result<(), Deviates> {
        if direction != self.sender {
            return bytes.iter().try_for_each(|byte| self.answers(*byte, done));
        }
        while let Some((first, rest)) = bytes.split_first() {
            if self.awaits.take().is_some() {
                self.ahead = true;
                self.told(None, done);
            }
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
                Step::Content { left, place, mut content } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (piece, rest) = bytes.split_at(take);
                    content.next(piece);
                    bytes = rest;
                    let left = left - take as u64;
                    self.step = if left == 0 {
                        Step::Status { place, content }
                    } else {
                        Step::Content { left, place, content }
                    };
                }
                Step::Status { place, content } => {
                    bytes = rest;
                    let mut operation = self.operation(place);
                    content.tell(&mut operation);
                    if *first == 0 {
                        self.awaits = Some(Awaited::End);
                    } else {
                        operation.sha256 = None;
                        operation.fault = Some("the sending side reported a fault".to_owned());
                        self.step = Step::Fault(LONGEST_ANSWER);
                    }
                    self.passed = Some(operation);
                    if *first == 2 {
                        return Err(Deviates("scp gave up"));
                    }
                }
                Step::Fault(left) => {
                    bytes = rest;
                    if *first == b'\n' || left <= 1 {
                        self.awaits = Some(Awaited::End);
                    } else {
                        self.step = Step::Fault(left - 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// The receiving side answers each line and each file before the sending side goes on: with a zero byte, or with a
    /// fault and why. What was refused is not there, and what follows is read as the next line.
    fn answers(&mut self, byte: u8, done: &mut Vec<Operation>) -> Result<(), Deviates> {
        let Some((mut says, left)) = self.refusal.take() else {
            match byte {
                0 => {
                    self.awaits = None;
                    self.told(None, done);
                }
                1 | 2 => self.refusal = Some((Vec::new(), LONGEST_ANSWER)),
                // To scp's sending side any other byte is the start of a fault. Before its receiving side speaks, or at a
                // terminal, something else may.
                _ if self.sender == Direction::ToUser => {
                    self.refusal = Some((vec![byte], LONGEST_ANSWER - 1))
                }
                _ => {}
            }
            return Ok(());
        };
        if byte != b'\n' && left > 1 {
            if says.len() < LONGEST_REASON {
                says.push(byte);
            }
            self.refusal = Some((says, left - 1));
            return Ok(());
        }
        self.refused(&bounded(&says), done)
    }

    fn refused(&mut self, says: &str, done: &mut Vec<Operation>) -> Result<(), Deviates> {
        if self.ahead {
            return Err(Deviates("scp was refused what it had gone on from"));
        }
        let why = format!("refused: {}", says.trim());
        let under_way = !matches!(self.step, Step::Line(_));
        match self.awaits.take() {
            Some(Awaited::File) => {
                let step = std::mem::replace(&mut self.step, Step::Line(Vec::new()));
                if let Step::Content { place, .. } | Step::Status { place, .. } = step {
                    let mut operation = self.operation(place);
                    operation.fault = Some(why);
                    done.push(operation);
                }
            }
            Some(Awaited::Directory) => drop(self.inside.pop()),
            Some(Awaited::End) => self.told(Some(why), done),
            Some(Awaited::Other) | None if !under_way => {}
            Some(Awaited::Other) | None => return Err(Deviates("scp was refused a file in its middle")),
        }
        Ok(())
    }

    /// The file that passed is done with.
    fn told(&mut self, fault: Option<String>, done: &mut Vec<Operation>) {
        let Some(mut operation) = self.passed.take() else { return };
        if let Some(fault) = fault {
            operation.sha256 = None;
            operation.doubt(&fault);
        }
        done.push(operation);
    }

    pub(super) fn end(mut self, done: &mut Vec<Operation>) {
        self.told(None, done);
        let step = std::mem::replace(&mut self.step, Step::Line(Vec::new()));
        if let Step::Content { place, content, .. } | Step::Status { place, content } = step {
            let mut operation = self.operation(place);
            content.tell(&mut operation);
            operation.sha256 = None;
            operation.doubt("cut off");
            done.push(operation);
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Deviates> {
        let text = bounded(line);
        let awaits = match line.first() {
            Some(1) => return Ok(()),
            // The receiving side ends here: what follows is read by something else.
            Some(2) => return Err(Deviates("scp gave up")),
            Some(b'T') => Awaited::Other,
            Some(b'E') => {
                self.inside.pop();
                Awaited::Other
            }
            Some(b'C') => {
                let (size, name) = sized(&text)?;
                let (place, content) = (self.place(&name), Box::new(Content::new()));
                self.step = match size {
                    0 => Step::Status { place, content },
                    left => Step::Content { left, place, content },
                };
                Awaited::File
            }
            Some(b'D') => {
                if self.inside.len() >= DEEPEST {
                    return Err(Deviates("directories of scp are too deep"));
                }
                self.inside.push(sized(&text)?.1);
                Awaited::Directory
            }
            _ => return Err(Deviates("this is not scp")),
        };
        self.awaits = Some(awaits);
        Ok(())
    }

    fn place(&self, name: &str) -> Place {
        match self.sender {
            Direction::ToInstance => self.written(name),
            Direction::ToUser => self.read(name),
        }
    }

    /// A target that is a directory takes what is sent into it; nobody here can look whether it is one.
    fn written(&self, name: &str) -> Place {
        let target = self.targets.first().map_or("", String::as_str);
        let inside = || self.inside.iter().map(String::as_str).chain([name]);
        let within = join(target, inside());
        // Without it, the first name is the target's own.
        let itself = join(target, inside().skip(1));
        match (self.into_directory, self.inside.is_empty()) {
            (true, _) => Place { path: within, or: None },
            (false, true) => Place { path: itself, or: Some(within) },
            (false, false) => Place { path: within, or: Some(itself) },
        }
    }

    fn read(&self, name: &str) -> Place {
        let first = self.inside.first().map_or(name, String::as_str);
        let mut named = self.targets.iter().filter(|target| last_of(target) == first);
        if let Some(target) = named.next() {
            let below = |target: &str| {
                let skip = usize::from(!self.inside.is_empty());
                let names = self.inside.iter().skip(skip).map(String::as_str);
                if self.inside.is_empty() { target.to_owned() } else { join(target, names.chain([name])) }
            };
            return Place { path: below(target), or: named.next().map(|target| below(target)) };
        }
        // One of many that a pattern means lies beside the pattern; what `.` means lies in it.
        let pattern = self.targets.iter().find(|target| target.contains(['*', '?', '[', '{', '$', '~']));
        let mut others = self
            .targets
            .iter()
            .filter(|target| is_directory(target))
            .chain(pattern)
            .chain(self.targets.last());
        let names = || self.inside.iter().map(String::as_str).chain([name]);
        let path = others.next().map_or_else(String::new, |target| match target.rsplit_once('/') {
            _ if is_directory(target) => join(target, names()),
            Some((folder, _)) => join(folder, names()),
            None => join("", names()),
        });
        Place { path, or: None }
    }

    fn deed(&self) -> Deed {
        if self.sender == Direction::ToInstance { Deed::Written } else { Deed::Read }
    }

    fn operation(&self, place: Place) -> Operation {
        let mut operation = Operation::new(self.deed(), "scp", place.path);
        operation.or_path = place.or.map(shortened);
        if self.ahead {
            operation.doubt("the sending side did not wait for answers");
        }
        operation
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

/// Whether a path names a directory whatever is there.
fn is_directory(path: &str) -> bool {
    matches!(path, "" | "." | "..") || path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..")
}

fn last_of(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// `C0644 SIZE NAME`.
fn sized(line: &str) -> Result<(u64, String), Deviates> {
    let mut parts = line.splitn(3, ' ');
    let (_, size, name) = (parts.next(), parts.next(), parts.next());
    let size = size.and_then(|size| size.parse().ok()).ok_or(Deviates("a line of scp has no size"))?;
    Ok((size, name.ok_or(Deviates("a line of scp has no name"))?.to_owned()))
}

const DEEPEST: usize = 256;
/// The words of a fault that scp reads before it goes on (`response()` has a buffer of 2048).
const LONGEST_ANSWER: usize = 2047;
/// Of those, what is told.
const LONGEST_REASON: usize = 256;

#[cfg(test)]
mod tests;
