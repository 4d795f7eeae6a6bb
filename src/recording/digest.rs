//! The digest of a channel's payload, as it passes.

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// How payload is hashed that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hashing {
    /// BLAKE3, as `b3sum` prints it: a third of the work of SHA-256, or less.
    #[default]
    Blake3,
    /// SHA-256, where a rule asks for that.
    Sha256,
}

/// A digest that is still growing. Takes no room before there is something to hash.
pub(super) struct Digest {
    hashing: Hashing,
    state: State,
}

enum State {
    Empty,
    Blake3(Box<blake3::Hasher>),
    Sha256(Box<Sha256>),
}

impl Digest {
    pub(super) fn new(hashing: Hashing) -> Self {
        Self { hashing, state: State::Empty }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Empty) {
            self.state = begun(self.hashing);
        }
        match &mut self.state {
            State::Empty => {}
            State::Blake3(hash) => {
                hash.update(bytes);
            }
            State::Sha256(hash) => hash.update(bytes),
        }
    }

    /// Of all so far: `blake3:` or `sha256:`, then hex.
    pub(super) fn told(&self) -> String {
        match &self.state {
            State::Empty => Self { hashing: self.hashing, state: begun(self.hashing) }.told(),
            State::Blake3(hash) => format!("blake3:{}", hash.finalize().to_hex()),
            State::Sha256(hash) => format!("sha256:{}", HEXLOWER.encode(&Sha256::clone(hash).finalize())),
        }
    }
}

fn begun(hashing: Hashing) -> State {
    match hashing {
        Hashing::Blake3 => State::Blake3(Box::default()),
        Hashing::Sha256 => State::Sha256(Box::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The empty input and "abc": BLAKE3's published vectors, FIPS 180-2.
    #[test]
    fn a_digest_is_that_of_all_pieces_together_and_names_its_kind() {
        for (hashing, nothing, abc) in [
            (
                Hashing::Blake3,
                "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
                "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
            (
                Hashing::Sha256,
                "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ] {
            let mut digest = Digest::new(hashing);
            assert_eq!(digest.told(), nothing);
            digest.update(b"ab");
            digest.told();
            digest.update(b"c");
            assert_eq!(digest.told(), abc);
        }
    }
}
