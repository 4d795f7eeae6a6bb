//! Sealing: what the store keeps is ciphertext under one master key.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a random 24-byte nonce; the additional data is the format
//! version and the value's name, so that a value moved to another name, or written by another version, does not
//! open. A sealed value is `version (1 byte) · nonce (24) · ciphertext and tag`. The master key never leaves
//! [`MasterKey`] but to the file that [`MasterKey::write_new`] makes.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use data_encoding::HEXLOWER_PERMISSIVE;
use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

mod lines;

pub use lines::LineKey;

/// Where the master key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterKeySource {
    /// A file that only its owner can read.
    File(PathBuf),
    /// An environment variable, by name.
    Env(String),
    /// A systemd credential, by name (`LoadCredential=`, `systemd.exec(5)`).
    Credential(String),
}

impl std::fmt::Display for MasterKeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::Credential(name) => write!(f, "the systemd credential {name}"),
        }
    }
}

/// The key that all records are sealed under.
pub struct MasterKey {
    key: Zeroizing<[u8; 32]>,
}

/// Why a master key or a sealed value was refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The source has no key.
    #[error(
        "the master key is not in {place}: {why}. Restore it from its backup; without it the store cannot be read"
    )]
    Missing {
        /// Where it was looked for.
        place: String,
        /// What was found instead.
        why: String,
    },
    /// Others can read the file.
    #[error("others can read the master key: run chmod 600 {0}")]
    TooOpen(PathBuf),
    /// The source has something that is no master key.
    #[error("what is in {0} is not a master key: expected one line, {PREFIX} and 64 hex digits")]
    Malformed(String),
    /// A key is there already and is not overwritten.
    #[error("{0} exists already; a master key is never overwritten")]
    Exists(PathBuf),
    /// The file could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(String),
    /// The value does not open under this key and name.
    #[error("{0} does not open: the master key is another one, or the store was changed")]
    DoesNotOpen(String),
}

impl MasterKey {
    /// A fresh key from the system's random source.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        random(key.as_mut_slice())?;
        Ok(Self { key })
    }

    /// What the key is called where it must not be shown: 16 hex digits that say nothing about it (a hash of 256
    /// random bits).
    pub fn id(&self) -> String {
        use sha2::{Digest as _, Sha256};
        let mut hasher = Sha256::new();
        hasher.update(b"keyward master key id\0");
        hasher.update(self.key.as_slice());
        HEXLOWER_PERMISSIVE.encode(hasher.finalize().get(..8).unwrap_or_default())
    }

    /// The key from its source.
    ///
    /// # Errors
    /// [`SealError::Missing`], [`SealError::Malformed`], or [`SealError::TooOpen`] for a file with mode bits for
    /// group or others.
    pub fn load(source: &MasterKeySource) -> Result<Self, SealError> {
        match source {
            MasterKeySource::File(path) => Self::from_file(path, &source.to_string()),
            MasterKeySource::Env(name) => {
                let place = source.to_string();
                match std::env::var(name) {
                    Ok(text) => Self::parse(&Zeroizing::new(text), &place),
                    Err(e) => Err(SealError::Missing { place, why: e.to_string() }),
                }
            }
            MasterKeySource::Credential(name) => {
                let place = source.to_string();
                let valid = !name.is_empty() && !name.contains('/') && name != "..";
                match std::env::var_os("CREDENTIALS_DIRECTORY") {
                    Some(dir) if valid => Self::from_file(&Path::new(&dir).join(name), &place),
                    Some(_) => Err(SealError::Missing { place, why: "not a credential's name".to_owned() }),
                    None => {
                        Err(SealError::Missing { place, why: "CREDENTIALS_DIRECTORY is not set".to_owned() })
                    }
                }
            }
        }
    }

    /// Writes the key to a new file with mode 0600, durably.
    ///
    /// # Errors
    /// [`SealError::Exists`] if there is a file of this name, which stays as it was.
    pub fn write_new(&self, path: &Path) -> Result<(), SealError> {
        let io = |source| SealError::Io { path: path.to_owned(), source };
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = opened.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => SealError::Exists(path.to_owned()),
            _ => io(e),
        })?;
        let hex = Zeroizing::new(HEXLOWER_PERMISSIVE.encode(self.key.as_slice()));
        let line = Zeroizing::new(format!("{PREFIX}{}\n", hex.as_str()));
        file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)
    }

    /// Seals `plain` so that it opens under `name` only.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Bytes, SealError> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        let payload = Payload { msg: plain, aad: &associated(name) };
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), payload);
        // The cipher fails for messages beyond 256 GiB only.
        let sealed = sealed.map_err(|_| SealError::DoesNotOpen(name.to_owned()))?;
        let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out.into())
    }

    /// Opens what was sealed under `name`.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let refused = || SealError::DoesNotOpen(name.to_owned());
        let (version, rest) = sealed.split_first().ok_or_else(refused)?;
        let (nonce, msg) = rest.split_at_checked(NONCE).ok_or_else(refused)?;
        if *version != VERSION {
            return Err(refused());
        }
        let payload = Payload { msg, aad: &associated(name) };
        let plain = self.cipher().decrypt(XNonce::from_slice(nonce), payload);
        plain.map(Zeroizing::new).map_err(|_| refused())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.key.as_slice().into())
    }

    fn from_file(path: &Path, place: &str) -> Result<Self, SealError> {
        let missing = |e: std::io::Error| SealError::Missing { place: place.to_owned(), why: e.to_string() };
        let mode = std::fs::metadata(path).map_err(missing)?.mode();
        if mode & 0o077 != 0 {
            return Err(SealError::TooOpen(path.to_owned()));
        }
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(missing)?;
        Self::parse(&text, place)
    }

    fn parse(text: &str, place: &str) -> Result<Self, SealError> {
        let malformed = || SealError::Malformed(place.to_owned());
        let hex = text.trim().strip_prefix(PREFIX).ok_or_else(malformed)?;
        let bytes =
            HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map(Zeroizing::new).map_err(|_| malformed())?;
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(malformed());
        }
        key.copy_from_slice(&bytes);
        Ok(Self { key })
    }
}

const PREFIX: &str = "keyward-master-key-1:";
const VERSION: u8 = 1;
const NONCE: usize = 24;

fn associated(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + name.len());
    out.extend_from_slice(b"keyward seal ");
    out.push(VERSION);
    out.push(0);
    out.extend_from_slice(name.as_bytes());
    out
}

fn random(into: &mut [u8]) -> Result<(), SealError> {
    SysRng.try_fill_bytes(into).map_err(|e| SealError::Random(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_under_its_name_and_key_only() {
        let master = MasterKey::generate().unwrap();
        let sealed = master.seal("key/a", b"secret").unwrap();
        assert_eq!(master.open("key/a", &sealed).unwrap().as_slice(), b"secret");
        assert!(master.open("key/b", &sealed).is_err(), "moved to another name");
        assert!(MasterKey::generate().unwrap().open("key/a", &sealed).is_err(), "another master key");
    }

    #[test]
    fn no_changed_or_shortened_value_opens() {
        let master = MasterKey::generate().unwrap();
        let sealed = master.seal("n", b"secret").unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.to_vec();
            bad[at] ^= 1;
            assert!(master.open("n", &bad).is_err(), "byte {at} changed");
            assert!(master.open("n", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_file_comes_back_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let master = MasterKey::generate().unwrap();
        master.write_new(&path).unwrap();
        let sealed = master.seal("n", b"x").unwrap();
        let again = MasterKey::load(&MasterKeySource::File(path.clone())).unwrap();
        assert_eq!(again.open("n", &sealed).unwrap().as_slice(), b"x");
        assert!(matches!(MasterKey::generate().unwrap().write_new(&path), Err(SealError::Exists(_))));
    }

    #[test]
    fn a_missing_malformed_or_readable_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let load = || MasterKey::load(&MasterKeySource::File(path.clone())).err().unwrap();
        assert!(matches!(load(), SealError::Missing { .. }));
        MasterKey::generate().unwrap().write_new(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(), SealError::TooOpen(_)));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "keyward-master-key-1:00").unwrap();
        assert!(matches!(load(), SealError::Malformed(_)));
        let unset = MasterKeySource::Env("KEYWARD_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(matches!(MasterKey::load(&unset), Err(SealError::Missing { .. })));
    }
}
