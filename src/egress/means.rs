//! What Keyward signs in to an instance with: a certificate of minutes, or a key that it holds there.

use keystore::Capability;
use keystore::signing::{CertTerms, InstanceCredential, InstanceKey, SigningError, UserCa};
use russh::client;
use russh::keys::HashAlg;
use russh::keys::agent::AgentIdentity;

use super::offer::Verifier;
use super::{EgressError, Proofs};
use crate::policy::Authorized;

/// What to sign in with.
#[derive(Clone, Copy)]
pub enum Means<'a> {
    /// Certificates of these authorities, tried in this order.
    Certificates(&'a [&'a UserCa]),
    /// A key that the instance was given.
    Key(&'a InstanceKey),
}

impl Means<'_> {
    /// Signs in. Says what was accepted: the fingerprint of the CA, or of the key.
    pub(super) async fn sign_in(
        self,
        handle: &mut client::Handle<Verifier>,
        proofs: Proofs<'_>,
        session: &str,
        now: jiff::Timestamp,
    ) -> Result<String, EgressError> {
        let login = proofs.authorized.login().to_string();
        let broken = |e: SignerError| EgressError::Broken(e.to_string());
        match self {
            Self::Certificates(authorities) => {
                for ca in authorities {
                    let credential = ca.issue(terms(proofs.authorized, session), now);
                    let credential = credential.map_err(|e| EgressError::Certificate(e.to_string()))?;
                    let certificate = credential.certificate().clone();
                    let mut signer = Signs(|data: &[u8]| InstanceCredential::sign(&credential, data));
                    let tried =
                        handle.authenticate_certificate_with(login.clone(), certificate, None, &mut signer);
                    if tried.await.map_err(broken)?.success() {
                        return Ok(ca.public_key().fingerprint(HashAlg::Sha256).to_string());
                    }
                }
                Err(EgressError::NotAccepted)
            }
            Self::Key(key) => {
                let mut signer = Signs(|data: &[u8]| key.sign(data));
                let public = key.public_key().clone();
                let fingerprint = public.fingerprint(HashAlg::Sha256).to_string();
                let tried = handle.authenticate_publickey_with(login, public, None, &mut signer);
                match tried.await.map_err(broken)?.success() {
                    true => Ok(fingerprint),
                    false => Err(EgressError::KeyNotAccepted(fingerprint)),
                }
            }
        }
    }
}

/// Only what was granted: without `permit-pty` sshd gives no terminal, and so on (OpenSSH PROTOCOL.certkeys).
fn terms(authorized: &Authorized, session: &str) -> CertTerms {
    let mut extensions = Vec::new();
    if authorized.may(Capability::Shell) || authorized.may(Capability::Exec) {
        extensions.push("permit-pty");
    }
    if authorized.may(Capability::Forward) {
        extensions.push("permit-port-forwarding");
    }
    if authorized.may(Capability::Agent) {
        extensions.push("permit-agent-forwarding");
    }
    CertTerms {
        login: authorized.login().clone(),
        key_id: format!("{} session {session}", authorized.user()),
        extensions,
        lifetime_secs: 120,
        source_address: None,
    }
}

/// Signs what russh asks to be signed, without the key.
struct Signs<F>(F);

/// What [`Signs`] may fail with.
#[derive(Debug, thiserror::Error)]
enum SignerError {
    #[error("the connection ended")]
    Ended,
    #[error("{0}")]
    Sign(String),
}

impl From<russh::SendError> for SignerError {
    fn from(_: russh::SendError) -> Self {
        Self::Ended
    }
}

impl<F: Fn(&[u8]) -> Result<Vec<u8>, SigningError> + Send + Sync> russh::Signer for Signs<F> {
    type Error = SignerError;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        _hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SignerError> {
        let signature = (self.0)(&to_sign).map_err(|e| SignerError::Sign(e.to_string()))?;
        // RFC 4252 §7: the request, followed by the signature as one string.
        let length = u32::try_from(signature.len()).map_err(|e| SignerError::Sign(e.to_string()))?;
        to_sign.extend_from_slice(&length.to_be_bytes());
        to_sign.extend_from_slice(&signature);
        Ok(to_sign)
    }
}
