//! Lists of what an authority withdrew: KRLs as `ssh-keygen -k` writes them (OpenSSH PROTOCOL.krl), and plain lines as it
//! reads them (ssh-keygen(1), KEY REVOCATION LISTS).
//!
//! A list that holds anything that is not understood is refused as a whole: what it names could still get in.

use std::collections::BTreeSet;

use data_encoding::BASE64_NOPAD;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::ssh::{Certificate, PublicKey};

/// What was withdrawn.
#[derive(Debug, Default)]
pub struct Revoked {
    /// By the key of an authority; `None`: of all of them. Serial numbers, first and last.
    serials: Vec<(Option<Vec<u8>>, u64, u64)>,
    key_ids: Vec<(Option<Vec<u8>>, String)>,
    /// SHA-256 of keys, of holders and of authorities.
    keys: BTreeSet<[u8; 32]>,
    /// SHA-1 of others, as `ssh-keygen -k` writes them for lines of `sha1:`. Two keys with one are both withdrawn.
    sha1: BTreeSet<[u8; 20]>,
}

/// Why a list is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KrlFault {
    /// It ends in the middle.
    #[error("the KRL is cut off")]
    CutOff,
    /// Of another version of the format.
    #[error("the KRL is of version {0} of its format; make one with ssh-keygen -k")]
    Version(u32),
    /// A part that is not understood.
    #[error("the KRL holds {0}, which is not understood")]
    Unknown(String),
    /// A line that is not understood.
    #[error(
        "line {0} is none of: serial: N, serial: N-M, id: TEXT, key: PUBLIC KEY, hash: SHA256:FINGERPRINT"
    )]
    Line(usize),
    /// Neither a KRL nor text.
    #[error("it is neither a KRL nor text; make one with ssh-keygen -k")]
    Garbage,
}

impl Revoked {
    /// Reads a list of either kind.
    ///
    /// # Errors
    /// What is not understood.
    pub fn read(content: &[u8]) -> Result<Self, KrlFault> {
        match content.strip_prefix(MAGIC) {
            Some(rest) => Self::binary(Reader(rest)),
            None => Self::lines(std::str::from_utf8(content).map_err(|_| KrlFault::Garbage)?),
        }
    }

    /// Whether `certificate` was withdrawn: itself, its key, or its authority's.
    pub fn names(&self, certificate: &Certificate) -> bool {
        let blob = |key: &russh::keys::ssh_key::public::KeyData| PublicKey::from(key.clone()).to_bytes().ok();
        let (Some(ca), Some(own)) = (blob(certificate.signature_key()), blob(certificate.public_key()))
        else {
            return true;
        };
        let by = |of: &Option<Vec<u8>>| of.as_ref().is_none_or(|of| *of == ca);
        let serial = certificate.serial();
        self.holds(&own)
            || self.holds(&ca)
            // An authority that does not number its certificates gives them all a zero.
            || serial != 0 && self.serials.iter().any(|(of, from, to)| by(of) && (*from..=*to).contains(&serial))
            || self.key_ids.iter().any(|(of, id)| by(of) && id == certificate.key_id())
    }

    fn holds(&self, key: &[u8]) -> bool {
        let sha1 = || -> [u8; 20] { Sha1::digest(key).into() };
        self.keys.contains(&digest(key)) || !self.sha1.is_empty() && self.sha1.contains(&sha1())
    }

    fn lines(text: &str) -> Result<Self, KrlFault> {
        let mut found = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            found.line(line).ok_or(KrlFault::Line(number + 1))?;
        }
        Ok(found)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(':').map_or(("", line), |(word, rest)| (word, rest.trim()));
        match word {
            "serial" => {
                let (from, to) = rest.split_once('-').unwrap_or((rest, rest));
                let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
                self.serials.push((None, from, to));
                (from <= to).then_some(())
            }
            "id" => {
                self.key_ids.push((None, rest.to_owned()));
                (!rest.is_empty()).then_some(())
            }
            "sha256" | "sha1" => self.key(rest),
            "hash" => self.fingerprint(rest),
            "SHA256" => self.fingerprint(line),
            "key" => self.key(rest),
            _ => self.key(line),
        }
    }

    fn fingerprint(&mut self, text: &str) -> Option<()> {
        let digest = BASE64_NOPAD.decode(text.strip_prefix("SHA256:")?.as_bytes()).ok()?;
        self.keys.insert(digest.try_into().ok()?);
        Some(())
    }

    fn key(&mut self, line: &str) -> Option<()> {
        let key = PublicKey::from_openssh(line).ok()?;
        self.keys.insert(digest(&key.to_bytes().ok()?));
        Some(())
    }

    fn binary(mut reader: Reader<'_>) -> Result<Self, KrlFault> {
        let version = reader.u32()?;
        if version != 1 {
            return Err(KrlFault::Version(version));
        }
        // Number, date, flags; a reserved field; a comment.
        for _ in 0..3 {
            reader.u64()?;
        }
        reader.string()?;
        reader.string()?;
        let mut found = Self::default();
        while !reader.0.is_empty() {
            let (kind, mut part) = (reader.u8()?, Reader(reader.string()?));
            match kind {
                1 => found.certificates(part)?,
                2 => {
                    while !part.0.is_empty() {
                        found.keys.insert(digest(part.string()?));
                    }
                }
                3 => {
                    while !part.0.is_empty() {
                        found.sha1.insert(part.string()?.try_into().map_err(|_| KrlFault::CutOff)?);
                    }
                }
                5 => {
                    while !part.0.is_empty() {
                        found.keys.insert(part.string()?.try_into().map_err(|_| KrlFault::CutOff)?);
                    }
                }
                255 => part.extension()?,
                other => return Err(KrlFault::Unknown(format!("a section of type {other}"))),
            }
        }
        Ok(found)
    }

    fn certificates(&mut self, mut part: Reader<'_>) -> Result<(), KrlFault> {
        let of = Some(part.string()?).filter(|ca| !ca.is_empty()).map(<[u8]>::to_vec);
        part.string()?;
        while !part.0.is_empty() {
            let (kind, mut inner) = (part.u8()?, Reader(part.string()?));
            match kind {
                0x20 => {
                    while !inner.0.is_empty() {
                        let serial = inner.u64()?;
                        self.serials.push((of.clone(), serial, serial));
                    }
                }
                0x21 => self.serials.push((of.clone(), inner.u64()?, inner.u64()?)),
                0x22 => self.bitmap(&of, inner)?,
                0x23 => {
                    while !inner.0.is_empty() {
                        let id = String::from_utf8_lossy(inner.string()?).into_owned();
                        self.key_ids.push((of.clone(), id));
                    }
                }
                0x39 => inner.extension()?,
                other => return Err(KrlFault::Unknown(format!("certificates of type {other:#x}"))),
            }
        }
        Ok(())
    }

    /// An offset, and a number whose lowest bit stands for it.
    fn bitmap(&mut self, of: &Option<Vec<u8>>, mut inner: Reader<'_>) -> Result<(), KrlFault> {
        let (offset, bits) = (inner.u64()?, inner.string()?);
        for (byte, above) in bits.iter().rev().zip(0_u64..) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let serial = offset.checked_add(above * 8 + bit).ok_or(KrlFault::CutOff)?;
                self.serials.push((of.clone(), serial, serial));
            }
        }
        Ok(())
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], KrlFault> {
        let (read, rest) = self.0.split_at_checked(count).ok_or(KrlFault::CutOff)?;
        self.0 = rest;
        Ok(read)
    }

    fn u8(&mut self) -> Result<u8, KrlFault> {
        self.bytes(1)?.first().copied().ok_or(KrlFault::CutOff)
    }

    fn u32(&mut self) -> Result<u32, KrlFault> {
        self.bytes(4)?.try_into().map(u32::from_be_bytes).map_err(|_| KrlFault::CutOff)
    }

    fn u64(&mut self) -> Result<u64, KrlFault> {
        self.bytes(8)?.try_into().map(u64::from_be_bytes).map_err(|_| KrlFault::CutOff)
    }

    fn string(&mut self) -> Result<&'a [u8], KrlFault> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).map_err(|_| KrlFault::CutOff)?)
    }

    /// An extension that is not critical can be passed over.
    fn extension(&mut self) -> Result<(), KrlFault> {
        let (name, critical) = (self.string()?, self.u8()?);
        if critical == 0 {
            return Ok(());
        }
        Err(KrlFault::Unknown(format!("the extension {:?}", String::from_utf8_lossy(name))))
    }
}

fn digest(blob: &[u8]) -> [u8; 32] {
    Sha256::digest(blob).into()
}

const MAGIC: &[u8] = b"SSHKRL\n\0";
