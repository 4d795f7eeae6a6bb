//! The mark of an event: only who has the audit key can write one into the trail, move it or replay it (docs/adr/0014).
//!
//! The chain is a hash that anybody can compute, and a checkpoint is signed only every so often: who has the disk and no key
//! could write behind the newest one while the daemon is down. So each event has a `mark`, a MAC over its number, the hash
//! before it, and all else that it says. The opening believes no line whose mark does not hold: see [`super::forged`].

use std::fmt;
use std::sync::Arc;

use keystore::journal::{Entry, Position};
use keystore::seal::LineKey;
use keystore::signing::{AuditSigner, SigningError};
use sha2::{Digest, Sha256};

/// What marks events, and tells whose marks they are. Clones share it.
#[derive(Clone)]
pub struct Marks(Arc<LineKey>);

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Marks")
    }
}

impl Marks {
    /// Those of this audit key.
    ///
    /// # Errors
    /// As [`AuditSigner::line_key`].
    pub fn of(signer: &AuditSigner) -> Result<Self, SigningError> {
        Ok(Self(Arc::new(signer.line_key()?)))
    }

    /// Whether the bastion wrote this line, at this place.
    pub fn hold(&self, entry: &Entry) -> bool {
        let seq = entry.seq.to_string();
        taken_apart(&entry.payload, (&seq, &entry.prev)).is_some_and(|(time, mark, body)| {
            self.0.short_marked(&[EVENT, seq.as_bytes(), entry.prev.as_bytes(), &said(time, body)], mark)
        })
    }

    /// The mark of what is no event: a file beside the trail.
    pub(super) fn of_file(&self, parts: [&[u8]; 4]) -> String {
        self.0.short_mark(&in_file(parts))
    }

    /// Whether that is its mark.
    pub(super) fn hold_for_file(&self, parts: [&[u8]; 4], mark: &str) -> bool {
        self.0.short_marked(&in_file(parts), mark.as_bytes())
    }
}

/// An event on its way into the trail: all of it that does not wait for its place, so that the one thread that writes has
/// little to do.
pub(super) struct Draft {
    time: String,
    body: String,
    said: [u8; 32],
    marks: Marks,
}

impl Draft {
    /// Of an event in JSON.
    pub(super) fn new(marks: &Marks, time: String, event: &str) -> Self {
        let body = event.strip_prefix('{').unwrap_or(event).to_owned();
        let said = said(time.as_bytes(), body.as_bytes());
        Self { time, body, said, marks: marks.clone() }
    }

    /// The line, at its place.
    pub(super) fn at(&self, at: Position<'_>) -> Vec<u8> {
        let seq = at.seq.to_string();
        let mark =
            self.marks.0.short_mark(&[EVENT, seq.as_bytes(), at.prev.as_bytes(), self.said.as_slice()]);
        let mut line = Vec::with_capacity(self.time.len() + self.body.len() + 180);
        let parts = [OPEN, &self.time, SEQ, &seq, PREV, at.prev, MARK, &mark, "\",", self.body.as_str()];
        for part in parts {
            line.extend_from_slice(part.as_bytes());
        }
        line
    }
}

/// Time, mark and the rest of a line, if it is in the one form that an event has at its place.
fn taken_apart<'a>(line: &'a [u8], (seq, prev): (&str, &str)) -> Option<(&'a [u8], &'a [u8], &'a [u8])> {
    let line = line.strip_prefix(OPEN.as_bytes())?;
    let (time, line) = line.split_at_checked(line.iter().position(|byte| *byte == b'"')?)?;
    let place = [SEQ, seq, PREV, prev, MARK].concat();
    let line = line.strip_prefix(place.as_bytes())?;
    let (mark, line) = line.split_at_checked(line.iter().position(|byte| *byte == b'"')?)?;
    Some((time, mark, line.strip_prefix(b"\",")?))
}

/// SHA-256 of the event without its place and its mark: `{"time":"…",` and all that follows.
fn said(time: &[u8], body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [OPEN.as_bytes(), time, b"\",", body] {
        hash.update(part);
    }
    hash.finalize().into()
}

fn in_file([one, two, three, four]: [&[u8]; 4]) -> [&[u8]; 5] {
    [FILE, one, two, three, four]
}

const OPEN: &str = "{\"time\":\"";
const SEQ: &str = "\",\"seq\":";
const PREV: &str = ",\"prev\":\"";
const MARK: &str = "\",\"mark\":\"";
/// What a mark is of.
const EVENT: &[u8] = b"event";
const FILE: &[u8] = b"file";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use keystore::Vault;
    use keystore::backend::Memory;
    use keystore::seal::MasterKey;
    use keystore::signing::Signers;

    use super::*;

    async fn marks() -> Marks {
        let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
        Marks::of(&Signers::create(&vault).await.unwrap().audit).unwrap()
    }

    #[tokio::test]
    async fn a_mark_is_of_one_place_and_of_every_byte_of_an_event() {
        let (own, other) = (marks().await, marks().await);
        let prev = "ab".repeat(32);
        let draft = Draft::new(
            &own,
            "2026-11-23T00:00:00.000Z".to_owned(),
            "{\"event\":\"x\",\"by\":\"\\\"seq\\\":9\"}",
        );
        let payload = draft.at(Position { seq: 7, prev: &prev });
        serde_json::from_slice::<serde_json::Value>(&payload).unwrap();
        let entry = Entry { seq: 7, prev, hash: String::new(), payload, file: PathBuf::new(), offset: 0 };
        assert!(own.hold(&entry) && !other.hold(&entry));
        assert!(!own.hold(&Entry { seq: 8, ..entry.clone() }));
        assert!(!own.hold(&Entry { prev: "cd".repeat(32), ..entry.clone() }));
        for at in 0..entry.payload.len() {
            let mut changed = entry.clone();
            changed.payload[at] ^= 1;
            assert!(!own.hold(&changed), "byte {at}");
            changed.payload.truncate(at);
            assert!(!own.hold(&changed), "cut at {at}");
        }
        let twice = Entry { payload: [&entry.payload[..], b","].concat(), ..entry.clone() };
        assert!(!own.hold(&twice));
        // No file's mark is an event's.
        let mark = own.of_file([b"7", b"", b"", b""]);
        assert!(
            own.hold_for_file([b"7", b"", b"", b""], &mark)
                && !own.hold_for_file([b"", b"7", b"", b""], &mark)
        );
    }
}
