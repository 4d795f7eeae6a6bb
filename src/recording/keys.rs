//! Whom tapes are sealed to. The bastion needs only recipients; the identity that reads may live elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};
use keystore::ssh::looks_private;
use zeroize::Zeroizing;

use super::tapes::TapeError;

/// The auditors' age X25519 recipients and, where this machine may read tapes, their identity.
pub struct TapeKeys {
    recipients: Vec<Recipient>,
    identity: Option<Identity>,
}

impl TapeKeys {
    /// A new identity, in memory only.
    pub fn generate() -> Self {
        let identity = Identity::generate();
        Self { recipients: vec![identity.to_public()], identity: Some(identity) }
    }

    /// A new identity, written to `path` (mode 0600, age's own format).
    ///
    /// # Errors
    /// [`TapeError::File`] if the file exists already or cannot be written.
    pub fn create(path: &Path) -> Result<Self, TapeError> {
        let identity = Identity::generate();
        let public = identity.to_public();
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            let secret = identity.to_string();
            let text = Zeroizing::new(format!("# public key: {public}\n{}\n", secret.expose_secret()));
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            path.parent()
                .filter(|dir| !dir.as_os_str().is_empty())
                .map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
        };
        write().map_err(|e| TapeError::file(path, e))?;
        Ok(Self { recipients: vec![public], identity: Some(identity) })
    }

    /// The identity in `path`, as `age-keygen` or [`TapeKeys::create`] wrote it.
    ///
    /// # Errors
    /// [`TapeError::File`] if it cannot be read, [`TapeError::Keys`] if it holds no identity.
    pub fn load(path: &Path) -> Result<Self, TapeError> {
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| TapeError::file(path, e))?);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let identity: Option<Identity> = line.and_then(|line| line.parse().ok());
        let identity = identity
            .ok_or_else(|| TapeError::Keys(format!("{} holds no age X25519 identity", path.display())))?;
        Ok(Self { recipients: vec![identity.to_public()], identity: Some(identity) })
    }

    /// Nobody: for checking tapes, not for writing or reading them.
    pub fn none() -> Self {
        Self { recipients: Vec::new(), identity: None }
    }

    /// As configured: the identity in a file, further recipients, or both.
    ///
    /// # Errors
    /// As [`TapeKeys::load`] and [`TapeKeys::recipients_only`].
    pub fn configured(identity: Option<&Path>, recipients: &[String]) -> Result<Self, TapeError> {
        let Some(path) = identity else { return Self::recipients_only(recipients) };
        let mut keys = Self::load(path)?;
        if !recipients.is_empty() {
            keys.recipients.extend(Self::recipients_only(recipients)?.recipients);
        }
        Ok(keys)
    }

    /// Recipients only (`age1…`): tapes are written here and read elsewhere.
    ///
    /// # Errors
    /// [`TapeError::Keys`] names the recipient that is none, or says that there is not one.
    pub fn recipients_only(recipients: &[String]) -> Result<Self, TapeError> {
        let parse = |text: &String| {
            text.parse::<Recipient>().map_err(|e| {
                TapeError::Keys(if looks_private(text) {
                    // It is not shown to whoever reads the message.
                    "this is a private key; give its recipient, age1…".to_owned()
                } else {
                    format!("{text:?} is no age recipient: {e}")
                })
            })
        };
        let recipients = recipients.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if recipients.is_empty() {
            return Err(TapeError::Keys(
                "no recipient: a tape that nobody can read is not written".to_owned(),
            ));
        }
        Ok(Self { recipients, identity: None })
    }

    /// The recipients, as `age1…`.
    pub fn recipients(&self) -> Vec<String> {
        self.recipients.iter().map(ToString::to_string).collect()
    }

    /// Whether tapes can be read here.
    pub fn can_read(&self) -> bool {
        self.identity.is_some()
    }

    /// Whether the file at `path` is a key wrapped by age at all: what can be told without an identity.
    pub(super) fn recognises(&self, path: &Path) -> Result<(), TapeError> {
        let file = fs::File::open(path).map_err(|e| TapeError::file(path, e))?;
        match age::Decryptor::new_buffered(io::BufReader::new(file.take(1 << 16))) {
            Ok(_) => Ok(()),
            Err(error) => Err(TapeError::Damaged {
                path: path.to_owned(),
                offset: 0,
                what: format!("not a wrapped key: {error}"),
            }),
        }
    }

    pub(super) fn wrap(&self, key: &[u8; 32]) -> Result<Vec<u8>, TapeError> {
        let failed =
            |e: &dyn std::fmt::Display| TapeError::Keys(format!("the tape's key cannot be wrapped: {e}"));
        let recipients = self.recipients.iter().map(|r| r as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|e| failed(&e))?;
        let mut wrapped = Vec::new();
        let mut writer = encryptor.wrap_output(&mut wrapped).map_err(|e| failed(&e))?;
        writer.write_all(key).map_err(|e| failed(&e))?;
        writer.finish().map_err(|e| failed(&e))?;
        Ok(wrapped)
    }

    pub(super) fn unwrap_key(&self, wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, TapeError> {
        let identity = self.identity.as_ref().ok_or(TapeError::NoIdentity)?;
        let failed =
            |e: &dyn std::fmt::Display| TapeError::Keys(format!("the tape's key does not unwrap: {e}"));
        let decryptor = age::Decryptor::new_buffered(wrapped).map_err(|e| failed(&e))?;
        let mut reader =
            decryptor.decrypt(std::iter::once(identity as &dyn age::Identity)).map_err(|e| failed(&e))?;
        let mut key = Zeroizing::new([0; 32]);
        reader.read_exact(key.as_mut()).map_err(|e| failed(&e))?;
        Ok(key)
    }
}
