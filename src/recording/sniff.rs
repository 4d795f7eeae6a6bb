//! Transfers that no command line told: known by how both sides begin to speak.
//!
//! Looks at the first bytes of messages only, and asks for a word of each side, so that no output of a program alone can
//! put an operation on the tape. What slips through is still in the ledger: kept, or counted with a reason.

use super::message::Direction;
use super::operations::Observer;
use super::scp::Scp;

#[derive(Default)]
pub(super) struct Sniffer {
    spoken: bool,
    /// The last that each side said was one zero byte, as scp's receiving side does.
    ready: [bool; 2],
}

impl Sniffer {
    /// The transfer that begins with these bytes.
    pub(super) fn transfer(&mut self, direction: Direction, bytes: &[u8]) -> Option<Observer> {
        let up = direction == Direction::ToInstance;
        let [of_user, of_instance] = &mut self.ready;
        let (own, other) = if up { (of_user, of_instance) } else { (of_instance, of_user) };
        let answered = *other;
        *own = bytes == [0];
        let first = !std::mem::replace(&mut self.spoken, true);
        if answered && is_scp(bytes) {
            return Some(Observer::Scp(Box::new(Scp::unnamed(direction))));
        }
        if up && is_sftp(bytes) {
            return Some(Observer::sftp());
        }
        // The receiving side of rsync, at the instance or at the user, speaks at once.
        (first && is_rsync(bytes)).then(|| Observer::whole(None, "rsync", String::new()))
    }
}

/// `C0644 5 name`, `D0755 0 name`, `T1 0 1 0`.
fn is_scp(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ');
    let (mode, size, name) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let digits =
        |part: Option<&[u8]>| part.is_some_and(|d| !d.is_empty() && d.iter().all(u8::is_ascii_digit));
    let (Some((kind, mode)), Some(_)) = (mode.split_first(), name) else { return false };
    matches!(kind, b'C' | b'D' | b'T') && line.len() < bytes.len() && digits(Some(mode)) && digits(size)
}

/// SSH_FXP_INIT.
fn is_sftp(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, _, _, 1, 0, 0, 0, 1..=9, ..])
}

/// A protocol version, little-endian, as both sides send first.
pub(super) fn is_rsync(bytes: &[u8]) -> bool {
    matches!(bytes, [20..=99, 0, 0, 0, ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{ToInstance as UP, ToUser as DOWN};

    fn found(said: &[(Direction, &[u8])]) -> bool {
        let mut sniffer = Sniffer::default();
        said.iter().any(|(direction, bytes)| sniffer.transfer(*direction, bytes).is_some())
    }

    #[test]
    fn a_copy_under_another_name_is_known() {
        assert!(found(&[(DOWN, b"hi\n"), (DOWN, b"\0"), (UP, b"C0644 5 x\nhello\0")]));
        assert!(found(&[(UP, b"\0"), (DOWN, b"T1 0 1 0\nC0644 5 x\n")]));
        assert!(found(&[(UP, b"password\n"), (UP, &[0, 0, 0, 5, 1, 0, 0, 0, 3])]));
        assert!(found(&[(UP, &[31, 0, 0, 0])]));
    }

    #[test]
    fn what_a_program_prints_is_no_copy() {
        assert!(!found(&[(DOWN, b"C0644 5 /etc/shadow\nhello\0")]));
        assert!(!found(&[(UP, b"C0644 5 x\nhello\0")]));
        assert!(!found(&[(UP, b"C code\n"), (DOWN, &[0, 0, 0, 5, 1, 0, 0, 0, 3])]));
        assert!(!found(&[(DOWN, b"$ "), (UP, &[31, 0, 0, 0])]));
    }
}
