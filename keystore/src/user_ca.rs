//! The authorities of others whose certificates let their people in: which of them count, and what they withdrew.
//!
//! Judges a certificate whose holder has signed; it knows no users and keeps nothing. A certificate counts for names that
//! it lists, never for all; for as long as the terms of keys allow, never longer; and if it is made of plain keys: a
//! certificate of a certificate is none.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;

use crate::rules::Accepted;
use crate::ssh::{Algorithm, Certificate, HashAlg, PublicKey, looks_private};

mod krl;

pub use krl::{KrlFault, Revoked};

/// Authorities and what they withdrew.
#[derive(Debug)]
pub struct UserCas {
    authorities: Vec<PublicKey>,
    revoked: Revoked,
}

/// A certificate whose key has signed this session's authentication request.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The certificate.
    pub certificate: &'a Certificate,
    /// The user it is to be for.
    pub user: &'a str,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// How long a certificate may be valid in all, in seconds.
    pub max_age: i64,
}

/// Why authorities are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserCaFault {
    /// What is wrong with the file of their keys.
    #[error("{0}")]
    Keys(String),
    /// What is wrong with the list of what they withdrew.
    #[error(transparent)]
    Krl(KrlFault),
}

/// Why a certificate does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub enum CertFault {
    /// A host certificate.
    NotUser,
    /// Signed by nobody that is trusted, or not signed rightly, or with SHA-1.
    UnknownAuthority,
    /// Not valid yet.
    NotYet,
    /// Not valid any more.
    Expired,
    /// Valid for longer than keys live here.
    TooLong,
    /// For other names, or for all.
    OtherPrincipal,
    /// Not from there.
    OtherSource,
    /// It demands what Keyward does not know to keep.
    UnknownOption,
    /// Withdrawn by its authority.
    Revoked,
    /// Its key is of a kind that is not accepted.
    KeyNotAccepted,
}

impl CertFault {
    /// What it is, for the audit trail; stable words.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotUser => "not a user certificate",
            Self::UnknownAuthority => "certificate of an unknown authority",
            Self::NotYet => "certificate not valid yet",
            Self::Expired => "certificate expired",
            Self::TooLong => "certificate valid for longer than keys.max_age",
            Self::OtherPrincipal => "certificate not for this user",
            Self::OtherSource => "certificate not valid from this address",
            Self::UnknownOption => "certificate with an unknown critical option",
            Self::Revoked => "certificate revoked",
            Self::KeyNotAccepted => "certificate of a kind of key that is not accepted",
        }
    }
}

impl UserCas {
    /// Reads the public keys of authorities, one a line, and the list of what they withdrew: a KRL of ssh-keygen(1), or
    /// lines in the form of its KRL specifications.
    ///
    /// # Errors
    /// What is wrong with which of the two.
    pub fn read(keys: &str, krl: Option<&[u8]>) -> Result<Self, UserCaFault> {
        let lines = (1..).zip(keys.lines().map(str::trim));
        let authorities: Vec<PublicKey> = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| {
                // Nothing of the line is shown: it may be a secret in the wrong file.
                let what = if looks_private(line) { "is a private key" } else { "is no public key" };
                let key = PublicKey::from_openssh(line)
                    .map_err(|_| format!("line {number} {what}; give the authority's .pub file"))?;
                trustworthy(&key).then_some(key).ok_or_else(|| {
                    format!(
                        "line {number}: an authority signs with Ed25519, ECDSA, or RSA of 3072 bits or more"
                    )
                })
            })
            .collect::<Result<_, String>>()
            .map_err(UserCaFault::Keys)?;
        if authorities.is_empty() {
            return Err(UserCaFault::Keys("there is no public key in it".to_owned()));
        }
        let revoked = krl.map(Revoked::read).transpose().map_err(UserCaFault::Krl)?;
        Ok(Self { authorities, revoked: revoked.unwrap_or_default() })
    }

    /// Whether `presented` counts at `now`. Whether the user may log in at all is another question.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(
        &self,
        presented: &Presented<'_>,
        accepted: &Accepted,
        now: Timestamp,
    ) -> Result<(), CertFault> {
        let certificate = presented.certificate;
        if certificate.cert_type() != CertType::User {
            return Err(CertFault::NotUser);
        }
        self.signed(certificate)?;
        self.still(certificate, now)?;
        let life = certificate.valid_before().saturating_sub(certificate.valid_after());
        if i64::try_from(life).map_or(true, |life| life > presented.max_age) {
            return Err(CertFault::TooLong);
        }
        if !certificate.valid_principals().iter().any(|name| name == presented.user) {
            return Err(CertFault::OtherPrincipal);
        }
        for (name, value) in certificate.critical_options().iter() {
            match name.as_str() {
                "source-address" if !contains(value, presented.source) => return Err(CertFault::OtherSource),
                "source-address" => {}
                // Enforced by whoever saw the signature.
                "verify-required" if value.is_empty() => {}
                _ => return Err(CertFault::UnknownOption),
            }
        }
        let key = PublicKey::from(certificate.public_key().clone());
        accepted.admits(&key).map_err(|_| CertFault::KeyNotAccepted)
    }

    /// Whether a certificate that counted once still does: valid, of a trusted authority, and not withdrawn.
    ///
    /// # Errors
    /// Why not.
    pub fn still(&self, certificate: &Certificate, now: Timestamp) -> Result<(), CertFault> {
        if !self.authorities.iter().any(|ca| ca.key_data() == certificate.signature_key()) {
            return Err(CertFault::UnknownAuthority);
        }
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        if now < certificate.valid_after() {
            return Err(CertFault::NotYet);
        }
        if now >= certificate.valid_before() {
            return Err(CertFault::Expired);
        }
        if self.revoked.names(certificate) { Err(CertFault::Revoked) } else { Ok(()) }
    }

    fn signed(&self, certificate: &Certificate) -> Result<(), CertFault> {
        let sound = !matches!(
            certificate.signature().algorithm(),
            Algorithm::Rsa { hash: None } | Algorithm::Dsa | Algorithm::Other(_)
        );
        // Looked up among plain keys, so an authority is never itself a certificate.
        let ca = self.authorities.iter().find(|ca| ca.key_data() == certificate.signature_key());
        let ca = ca.filter(|_| sound).ok_or(CertFault::UnknownAuthority)?;
        // The library checks signature and authority; of the time it is asked for one at which the certificate is valid,
        // since that has an answer of its own here.
        let fingerprint = ca.fingerprint(HashAlg::Sha256);
        certificate
            .validate_at(certificate.valid_after(), [&fingerprint])
            .map_err(|_| CertFault::UnknownAuthority)
    }
}

/// Whether a certificate demands that its security key verify the user each time it signs.
pub fn demands_verification(certificate: &Certificate) -> bool {
    certificate.critical_options().contains_key("verify-required")
}

/// Which certificate it is, for people: `serial 7, key id "alice@example"`.
pub fn named(certificate: &Certificate) -> String {
    let ca = certificate.signature_key().fingerprint(HashAlg::Sha256);
    format!("serial {}, key id {:?}, of {ca}", certificate.serial(), certificate.key_id())
}

fn trustworthy(ca: &PublicKey) -> bool {
    match ca.key_data() {
        KeyData::Ed25519(_) | KeyData::SkEd25519(_) | KeyData::Ecdsa(_) | KeyData::SkEcdsaSha2NistP256(_) => {
            true
        }
        KeyData::Rsa(key) => key.n().as_positive_bytes().is_some_and(|n| n.len() >= 3072 / 8),
        _ => false,
    }
}

/// `source-address`: addresses and networks, separated by commas (PROTOCOL.certkeys). One that cannot be read contains
/// nothing.
fn contains(list: &str, source: IpAddr) -> bool {
    let source = source.to_canonical();
    let nets: Option<Vec<IpNet>> = list
        .split(',')
        .map(|one| one.parse::<IpNet>().ok().or_else(|| one.parse::<IpAddr>().ok().map(IpNet::from)))
        .collect();
    nets.is_some_and(|nets| nets.iter().any(|net| net.contains(&source)))
}

#[cfg(test)]
mod tests;
