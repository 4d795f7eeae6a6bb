//! Whether the machine that answers is the instance that was enrolled: pinned host keys, or a host CA.
//!
//! There is no "accept any": a record that cannot be read fails the dial before a packet is sent.

use std::borrow::Cow;

use jiff::Timestamp;
use keystore::{HostTrust, Instance};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};

use super::EgressError;

/// What an instance's host key is measured against.
pub(super) enum Trust {
    Pinned(Vec<PublicKey>),
    Ca { key: PublicKey, names: Vec<String>, at: u64 },
}

impl Trust {
    /// Reads the record.
    pub(super) fn read(instance: &Instance, now: Timestamp) -> Result<Self, EgressError> {
        let parse =
            |line: &String| PublicKey::from_openssh(line).map_err(|e| EgressError::Trust(e.to_string()));
        match &instance.host_trust {
            HostTrust::Pinned(lines) => {
                let keys = lines.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                if keys.is_empty() {
                    return Err(EgressError::Trust("no host key is pinned".to_owned()));
                }
                Ok(Self::Pinned(keys))
            }
            HostTrust::Ca(line) => {
                let mut names = vec![instance.name.to_string(), instance.address.host.clone()];
                names.extend(instance.aliases.iter().map(ToString::to_string));
                let at = u64::try_from(now.as_second()).map_err(|e| EgressError::Trust(e.to_string()))?;
                Ok(Self::Ca { key: parse(line)?, names, at })
            }
        }
    }

    /// Asks the instance for a key of a kind that can be checked: sshd offers the first kind both sides know.
    pub(super) fn narrow(&self, preferred: &mut russh::Preferred) {
        match self {
            Self::Pinned(keys) => {
                let kinds = keys.iter().flat_map(|key| match key.algorithm() {
                    Algorithm::Rsa { .. } => vec![
                        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
                        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
                    ],
                    other => vec![other],
                });
                preferred.key = Cow::Owned(kinds.collect());
            }
            Self::Ca { .. } => {
                preferred.host_key_certificates = Cow::Owned(
                    preferred.key.iter().filter(|a| **a != Algorithm::Rsa { hash: None }).cloned().collect(),
                );
            }
        }
    }

    /// Whether `offered` proves the instance; the error says what was offered instead.
    pub(super) fn check(&self, offered: &PublicKeyOrCertificate) -> Result<(), String> {
        match (self, offered) {
            (Self::Pinned(keys), PublicKeyOrCertificate::PublicKey { key, .. }) => {
                if keys.iter().any(|pinned| pinned.key_data() == key.key_data()) {
                    Ok(())
                } else {
                    Err(key.fingerprint(HashAlg::Sha256).to_string())
                }
            }
            (Self::Ca { key, names, at }, PublicKeyOrCertificate::Certificate(certificate)) => {
                if certificate.cert_type() != CertType::Host {
                    return Err("not a host certificate".to_owned());
                }
                certificate
                    .validate_at(*at, [&key.fingerprint(HashAlg::Sha256)])
                    .map_err(|_| "a certificate that is expired or of another authority".to_owned())?;
                // A host certificate without principals would be good for every name: refused.
                if certificate
                    .valid_principals()
                    .iter()
                    .any(|p| names.iter().any(|n| n.eq_ignore_ascii_case(p)))
                {
                    Ok(())
                } else {
                    Err("a certificate for another name".to_owned())
                }
            }
            (Self::Pinned(_), PublicKeyOrCertificate::Certificate(_)) => {
                Err("a certificate where a pinned key was expected".to_owned())
            }
            (Self::Ca { .. }, PublicKeyOrCertificate::PublicKey { key, .. }) => {
                Err(format!("{} without a certificate", key.fingerprint(HashAlg::Sha256)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> PublicKey {
        PublicKey::from_openssh(line).unwrap()
    }
    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q";

    #[test]
    fn the_pinned_host_key_is_the_instance() {
        let trust = Trust::Pinned(vec![key(A)]);
        assert!(trust.check(&PublicKeyOrCertificate::from(key(A))).is_ok());
    }

    #[test]
    fn another_host_key_is_not_the_instance() {
        let trust = Trust::Pinned(vec![key(A)]);
        assert!(trust.check(&PublicKeyOrCertificate::from(key(B))).is_err());
    }
}
