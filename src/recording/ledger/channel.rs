//! The ledger of one channel: decides of each message what the tape keeps.

use super::super::digest::{Digest, Hashing};
use super::super::message::{ChannelMessage, Direction};
use super::super::operations::{Observer, Operation, Told};
use super::super::sniff::Sniffer;
use super::super::typed::Typed;
use super::{Capture, ChannelSummary, Kept, TYPED};

pub(super) struct Channel {
    summary: ChannelSummary,
    input: Way,
    output: Way,
    observer: Option<Observer>,
    /// Why what the observer tells may not be all.
    doubt: Option<String>,
    sniffer: Sniffer,
    typed: Typed,
    done: Vec<Operation>,
    /// A terminal was asked for before anything was started.
    pty: bool,
}

/// One direction.
struct Way {
    /// Of what passes; `None` where only its size is told.
    digest: Option<Digest>,
    /// Payload goes on the tape.
    storing: bool,
    stored: u64,
}

impl Way {
    fn new(hashing: Hashing) -> Self {
        Self { digest: Some(Digest::new(hashing)), storing: true, stored: 0 }
    }

    fn hash(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }

    fn told(&self) -> Option<String> {
        self.digest.as_ref().map(Digest::told)
    }
}

impl Channel {
    pub(super) fn new(number: u32, hashing: Hashing) -> Self {
        let summary = ChannelSummary {
            channel: number,
            kind: "session".to_owned(),
            command: None,
            exit_status: None,
            exit_signal: None,
            terminal: false,
            relayed_bytes: 0,
            captured_bytes: 0,
            capture: Capture::Full,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            typed_bytes: 0,
            operations: 0,
            digest_in: None,
            digest_out: None,
        };
        Self {
            summary,
            input: Way::new(hashing),
            output: Way::new(hashing),
            observer: None,
            doubt: None,
            sniffer: Sniffer::default(),
            typed: Typed::default(),
            done: Vec::new(),
            pty: false,
        }
    }

    /// One that was over, and of which something is heard again: what it hashed before is not known any more.
    pub(super) fn again(summary: ChannelSummary, hashing: Hashing) -> Self {
        let mut again = Self { summary, ..Self::new(0, hashing) };
        (again.input.digest, again.output.digest) = (None, None);
        again
    }

    pub(super) fn input(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_in += bytes.len() as u64;
        // What is typed at a terminal holds passwords that no screen showed, and a hash would let them be guessed.
        if self.summary.terminal {
            self.summary.typed_bytes += bytes.len() as u64;
            self.typed.input(bytes);
            self.observed(Direction::ToInstance, bytes);
            self.unseen();
            return Kept::Count;
        }
        self.input.hash(bytes);
        self.observed(Direction::ToInstance, bytes);
        self.keep(Direction::ToInstance, bytes, limit)
    }

    pub(super) fn output(&mut self, bytes: &[u8], limit: u64) -> Kept {
        self.summary.bytes_out += bytes.len() as u64;
        self.output.hash(bytes);
        self.typed.output(bytes);
        self.observed(Direction::ToUser, bytes);
        self.keep(Direction::ToUser, bytes, limit)
    }

    pub(super) fn take_operations(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.done)
    }

    pub(super) fn take_typed(&mut self) -> Vec<Vec<u8>> {
        self.typed.take_shown()
    }

    pub(super) fn typed_kept(&mut self, bytes: u64) {
        if self.summary.terminal {
            self.summary.typed_bytes = self.summary.typed_bytes.saturating_sub(bytes);
            self.summary.captured_bytes += bytes;
        }
    }

    /// Reads operations from the bytes. A stream that is not what it seemed is kept from here on: capture may widen.
    fn observed(&mut self, direction: Direction, bytes: &[u8]) {
        let speaks = matches!(self.summary.kind.as_str(), "shell" | "exec" | "subsystem");
        if self.observer.is_none()
            && speaks
            && let Some(found) = self.sniffer.transfer(direction, bytes)
        {
            self.observe(found, Some("known by its protocol, not by its command"));
        }
        let Some(observer) = &mut self.observer else { return };
        let before = self.done.len();
        let passed = observer.pass(direction, bytes, &mut self.done);
        self.completed(before);
        let Err(deviates) = passed else { return };
        self.end_observer();
        if self.summary.terminal {
            let why = format!("{} after {} bytes from the user", deviates.0, self.summary.bytes_in);
            self.unread(&why);
        } else if !(self.input.storing && self.output.storing) {
            let after = self.passed();
            let why = format!(
                "{} after {after} bytes: those were counted and hashed, what follows is kept",
                deviates.0
            );
            self.only(Capture::Digest, &why);
            (self.input.storing, self.output.storing) = (true, true);
        }
    }

    /// From here on the bytes are read as files.
    fn observe(&mut self, observer: Observer, doubt: Option<&str>) {
        self.observer = Some(observer);
        self.doubt = doubt.map(str::to_owned);
        if self.summary.terminal {
            let before = self.doubt.take().map(|doubt| format!("{doubt}; ")).unwrap_or_default();
            self.doubt = Some(format!("{before}through a terminal, which may change bytes"));
            if self.summary.capture == Capture::Full {
                self.summary.capture = Capture::Operations;
                self.summary.reason = Some(AT_A_TERMINAL.to_owned());
            }
        }
    }

    /// A transfer at a terminal that cannot be read: what came in is neither kept nor told.
    fn unread(&mut self, why: &str) {
        self.summary.capture = Capture::Output;
        self.summary.reason =
            Some(format!("a transfer at a terminal: {why}; what the user sent is counted, not kept"));
    }

    /// More came in than a person types and no screen showed it: not all of it can be passwords.
    fn unseen(&mut self) {
        if self.summary.capture == Capture::Full && self.typed.unseen > MOST_UNSEEN {
            self.summary.capture = Capture::Output;
            self.summary.reason = Some(format!(
                "more than {MOST_UNSEEN} bytes came in that the terminal did not show: counted, not kept"
            ));
        }
    }

    fn completed(&mut self, before: usize) {
        let new = self.done.get_mut(before..).unwrap_or_default();
        self.summary.operations += new.len() as u64;
        for operation in new {
            if let Some(doubt) = &self.doubt {
                operation.doubt(doubt);
            }
        }
    }

    /// Ends the operations that are still open.
    pub(super) fn end_observer(&mut self) {
        if let Some(observer) = self.observer.take() {
            let before = self.done.len();
            observer.end(&mut self.done);
            self.completed(before);
        }
    }

    fn keep(&mut self, direction: Direction, bytes: &[u8], limit: u64) -> Kept {
        let size = bytes.len() as u64;
        // A shell without a terminal is still a shell: its output is what a person saw.
        let limited = !self.summary.terminal && self.summary.kind != "shell";
        // Each way has its own, or a flood of output would hide what comes in behind it.
        let (way, from) = match direction {
            Direction::ToInstance => (&mut self.input, "the user"),
            Direction::ToUser => (&mut self.output, "the instance"),
        };
        if limited && way.storing && way.stored + size > limit {
            way.storing = false;
            let told = matches!(self.observer, Some(Observer::Scp(_) | Observer::Sftp(_)));
            self.summary.capture = if told { Capture::Operations } else { Capture::Digest };
            let before = self.summary.reason.take().map(|why| format!("{why}; ")).unwrap_or_default();
            let why = format!("over {limit} bytes from {from}: the rest is counted and hashed, not stored");
            self.summary.reason = Some(format!("{before}{why}"));
            // What still fits is the evidence of how it began; whoever wrote it chose where one message ends.
            let part = limit.saturating_sub(way.stored);
            way.stored += part;
            self.summary.captured_bytes += part;
            return usize::try_from(part).ok().filter(|part| *part > 0).map_or(Kept::Count, Kept::Part);
        }
        if !way.storing {
            return Kept::Count;
        }
        way.stored += size;
        self.summary.captured_bytes += size;
        Kept::Payload
    }

    pub(super) fn request(&mut self, direction: Direction, message: &ChannelMessage) {
        match (message, direction) {
            // Only before anything is started, as sshd has it: a later one would hide what comes from the user.
            (ChannelMessage::Pty { .. }, Direction::ToInstance) if self.summary.kind == "session" => {
                (self.pty, self.summary.terminal) = (true, true);
            }
            (ChannelMessage::Shell, Direction::ToInstance) => {
                self.begin("shell", None);
            }
            (ChannelMessage::Exec(command), Direction::ToInstance) => {
                self.exec(&String::from_utf8_lossy(command))
            }
            (ChannelMessage::Subsystem(name), Direction::ToInstance) if name == "sftp" => self.sftp(),
            (ChannelMessage::Subsystem(name), Direction::ToInstance) => {
                self.begin("subsystem", Some(shortened(name)));
            }
            (ChannelMessage::ExitStatus(status), Direction::ToUser) => {
                self.summary.exit_status = Some(*status)
            }
            (ChannelMessage::ExitSignal { signal, .. }, Direction::ToUser) => {
                self.summary.exit_signal = Some(signal.clone());
            }
            _ => {}
        }
    }

    /// A shell or command after a refused `sftp` is kept in full again: capture may widen, never narrow, or a peer
    /// could hide a shell behind a subsystem request that the instance refuses.
    fn begin(&mut self, kind: &str, command: Option<String>) -> bool {
        let first = matches!(self.summary.kind.as_str(), "session" | "sftp");
        if !first {
            return false;
        }
        self.end_observer();
        self.summary.kind = kind.to_owned();
        self.summary.command = command;
        // Nobody types at a subsystem, whatever was asked for before it.
        self.summary.terminal = self.pty && matches!(kind, "shell" | "exec");
        self.summary.capture = Capture::Full;
        self.summary.reason = None;
        (self.input.storing, self.output.storing) = (true, true);
        true
    }

    fn exec(&mut self, command: &str) {
        if !self.begin("exec", Some(shortened(command))) {
            return;
        }
        match Observer::of_command(command) {
            Some(Told::Read { observer, alone }) => {
                self.observe(observer, (!alone).then_some("the command line does more than this"));
            }
            // Without a terminal the bytes themselves are kept.
            Some(Told::Unread(why)) if self.summary.terminal => self.unread(why),
            Some(Told::Unread(_)) | None => {}
        }
    }

    fn sftp(&mut self) {
        if self.summary.kind == "session" && self.begin("sftp", None) {
            self.observer = Some(Observer::sftp());
            self.only(Capture::Operations, "the content of files is counted and hashed, not stored");
        }
    }

    pub(super) fn forward(&mut self, target: &str, hashed: bool) {
        self.begin("forward", Some(target.to_owned()));
        if hashed {
            return self.only(Capture::Digest, "payload of forwards is counted and hashed, not stored");
        }
        (self.input.digest, self.output.digest) = (None, None);
        self.only(Capture::None, "payload of forwards is counted, not stored (recording.forwards)");
    }

    /// The tape takes no more.
    pub(super) fn lost(&mut self, why: &str) {
        self.only(Capture::None, &format!("recording failed: {why}"));
    }

    /// What was to be kept and could not be written.
    pub(super) fn unkept(&mut self, bytes: u64, why: &str) {
        self.summary.unkept(bytes, why);
    }

    fn only(&mut self, capture: Capture, reason: &str) {
        self.summary.capture = capture;
        self.summary.reason = Some(reason.to_owned());
        (self.input.storing, self.output.storing) = (false, false);
    }

    fn passed(&self) -> u64 {
        self.summary.bytes_in + self.summary.bytes_out
    }

    pub(super) fn summary(&self) -> ChannelSummary {
        let mut summary = self.summary.clone();
        summary.relayed_bytes = self.passed();
        if summary.typed_bytes > 0 {
            summary.reason.get_or_insert_with(|| TYPED.to_owned());
        }
        if self.summary.capture != Capture::Full {
            summary.digest_out = self.output.told();
            summary.digest_in = if self.summary.terminal { None } else { self.input.told() };
        }
        summary
    }
}

/// A command line as the ledger shows it; the whole of it lies on the tape. Of a target this is all that is kept.
pub(super) fn shortened(command: &str) -> String {
    let mut short: String = command.chars().take(LONGEST_COMMAND).collect();
    if short.len() < command.len() {
        short.push('…');
    }
    short
}

const LONGEST_COMMAND: usize = 2048;
/// Bytes that a person may type without an echo before the ledger says so.
const MOST_UNSEEN: u64 = 64 << 10;
const AT_A_TERMINAL: &str =
    "a transfer at a terminal: its files are counted and hashed; what the user sent is not kept";
