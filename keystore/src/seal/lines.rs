//! The keys that prove who wrote a line: of the store's journal, made of the master key, and of the audit trail, made of the
//! audit key. Nobody can make those of them.
//!
//! HKDF-Expand (RFC 5869 §2.3), one block of it: either is 256 random bits, so there is nothing to extract (§3.3). Whoever
//! has a line key can write lines, and can open no value and sign no checkpoint.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::MasterKey;

/// What marks lines, and checks their marks.
pub struct LineKey {
    key: Zeroizing<[u8; 32]>,
    id: String,
}

impl MasterKey {
    /// The key for lines of the store that goes with this one.
    pub fn line_key(&self) -> LineKey {
        LineKey::expanded(&self.key, b"keyward store line 1", self.id())
    }
}

impl LineKey {
    /// The key for lines of the trail that goes with an audit key of this seed.
    pub(crate) fn of_the_trail(seed: &[u8; 32]) -> Self {
        Self::expanded(seed, b"keyward trail line 1", String::new())
    }

    fn expanded(from: &[u8; 32], label: &[u8], id: String) -> Self {
        let mut derived = keyed(from);
        derived.update(label);
        derived.update(&[1]);
        Self { key: Zeroizing::new(derived.finalize().into_bytes().into()), id }
    }

    /// The id of the master key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The first 128 bits (RFC 2104 §5) of HMAC-SHA256 over `parts`, each after its length, in hex.
    pub fn short_mark(&self, parts: &[&[u8]]) -> String {
        let mut mark = self.mark(parts);
        mark.truncate(SHORT);
        mark
    }

    /// Whether `mark` is the short one of `parts`; takes the same time wherever it differs.
    pub fn short_marked(&self, parts: &[&[u8]], mark: &[u8]) -> bool {
        let bytes = HEXLOWER.decode(mark).unwrap_or_default();
        mark.len() == SHORT && self.over(parts).verify_truncated_left(&bytes).is_ok()
    }

    /// HMAC-SHA256 over `parts`, each after its length, in hex.
    pub(crate) fn mark(&self, parts: &[&[u8]]) -> String {
        HEXLOWER.encode(&self.over(parts).finalize().into_bytes())
    }

    /// Whether `mark` is the one of `parts`; takes the same time wherever it differs.
    pub(crate) fn marked(&self, parts: &[&[u8]], mark: &[u8]) -> bool {
        HEXLOWER.decode(mark).is_ok_and(|mark| self.over(parts).verify_slice(&mark).is_ok())
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = keyed(&self.key);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Hex digits of a short mark.
const SHORT: usize = 32;

/// RFC 2104 §2: a key that is shorter than a block is filled up with zeros.
fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = Zeroizing::new([0; 64]);
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    Hmac::new((&*block).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_its_key_and_its_parts() {
        let (master, other) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        let key = master.line_key();
        let mark = key.mark(&[b"ab", b"c"]);
        let fits = |key: &LineKey, parts: &[&[u8]]| key.marked(parts, mark.as_bytes());
        assert!(fits(&master.line_key(), &[b"ab", b"c"]), "made again");
        assert!(!fits(&key, &[b"a", b"bc"]), "the same bytes, divided elsewhere");
        assert!(!fits(&key, &[b"ab"]) && !fits(&other.line_key(), &[b"ab", b"c"]));
        assert!(!key.marked(&[b"ab", b"c"], &mark.as_bytes()[..62]), "shortened");
        assert!(!key.marked(&[b"ab", b"c"], mark.to_uppercase().as_bytes()), "one way to write it");
    }

    #[test]
    fn a_short_mark_is_the_beginning_of_the_whole_one_and_nothing_shorter() {
        let key = LineKey::of_the_trail(&[7; 32]);
        let (mark, whole) = (key.short_mark(&[b"a", b"b"]), key.mark(&[b"a", b"b"]));
        assert!(mark.len() == 32 && whole.starts_with(&mark));
        assert!(key.short_marked(&[b"a", b"b"], mark.as_bytes()));
        assert!(!key.short_marked(&[b"ab", b""], mark.as_bytes()));
        for other in [&mark[..30], &mark[..0], &whole, &mark.to_uppercase()] {
            assert!(!key.short_marked(&[b"a", b"b"], other.as_bytes()), "{other}");
        }
        assert!(!LineKey::of_the_trail(&[8; 32]).short_marked(&[b"a", b"b"], mark.as_bytes()));
    }

    #[test]
    fn the_derivation_is_hkdf() {
        // HMAC-SHA256(0b * 32, "keyward store line 1" 01) as any other program computes it.
        let master = MasterKey { key: Zeroizing::new([0x0b; 32]) };
        assert_eq!(
            HEXLOWER.encode(master.line_key().key.as_slice()),
            "5f36f6dae95407c2c91f5a59db648fb0bbf4f0adb5020aa6976475f9b9ee34bd"
        );
    }
}
