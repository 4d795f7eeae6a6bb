//! Which public keys people may use: Ed25519, in software or on a security key. Everything else is refused with one
//! sentence that says what was wrong and what to do.

use russh::keys::ssh_key::public::KeyData;

use crate::ssh::PublicKey;

/// Why a user's key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// There is nothing in it.
    #[error("the key file is empty; give the .pub file that ssh-keygen -t ed25519 wrote")]
    Empty,
    /// It is far too long for a public key.
    #[error(
        "the key file is too large for one public key; give the .pub file that ssh-keygen -t ed25519 wrote"
    )]
    TooLarge,
    /// A private key: a secret that does not belong here.
    #[error(
        "this is a private key, which must stay with its owner; give the file beside it that ends in .pub"
    )]
    Private,
    /// Several keys.
    #[error("there are several keys in the file; add each from a file of its own")]
    Several,
    /// DSA.
    #[error("DSA keys are broken and no longer accepted; make a new key: ssh-keygen -t ed25519")]
    Dsa,
    /// RSA.
    #[error("RSA keys are not accepted; make a new key: ssh-keygen -t ed25519")]
    Rsa,
    /// ECDSA over a NIST curve.
    #[error("ECDSA keys are not accepted; make a new key: ssh-keygen -t ed25519")]
    Ecdsa,
    /// A certificate.
    #[error("this is a certificate, not a key; give the .pub file without -cert in its name")]
    Certificate,
    /// Another public key format.
    #[error("this is not in OpenSSH's format; convert it: ssh-keygen -i -f FILE (for PEM add -m PKCS8)")]
    OtherFormat,
    /// An Ed25519 key for which anyone can sign.
    #[error("this Ed25519 key is weak: anyone can sign for it; make a new key: ssh-keygen -t ed25519")]
    Weak,
    /// No key at all.
    #[error("this is not an OpenSSH public key; give the .pub file that ssh-keygen -t ed25519 wrote")]
    Garbage,
}

/// Reads the one OpenSSH public key line in `text`; empty lines and lines that start with `#` do not count.
///
/// # Errors
/// What is wrong with it; see [`KeyFault`].
pub fn parse_user_key(text: &str) -> Result<PublicKey, KeyFault> {
    if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
        return Err(KeyFault::Private);
    }
    if text.len() > 16 * 1024 {
        return Err(KeyFault::TooLarge);
    }
    if text.contains("---- BEGIN SSH2 PUBLIC KEY") || text.contains("PUBLIC KEY-----") {
        return Err(KeyFault::OtherFormat);
    }
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let line = lines.next().ok_or(KeyFault::Empty)?;
    if lines.next().is_some() {
        return Err(KeyFault::Several);
    }
    let algorithm = line.split_ascii_whitespace().next().unwrap_or(line);
    match algorithm {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => {}
        "ssh-dss" => return Err(KeyFault::Dsa),
        "ssh-rsa" => return Err(KeyFault::Rsa),
        other if other.ends_with("-cert-v01@openssh.com") => return Err(KeyFault::Certificate),
        other if other.starts_with("ecdsa-sha2-") || other.starts_with("sk-ecdsa-sha2-") => {
            return Err(KeyFault::Ecdsa);
        }
        _ => return Err(KeyFault::Garbage),
    }
    let key = PublicKey::from_openssh(line).map_err(|_| KeyFault::Garbage)?;
    let point = match key.key_data() {
        KeyData::Ed25519(point) => point.0,
        KeyData::SkEd25519(key) => key.public_key().0,
        _ => return Err(KeyFault::Garbage),
    };
    // RFC 8032 §5.1.3: not every 32 bytes are a point; and a point of small order verifies signatures of anyone.
    let point = ed25519_dalek::VerifyingKey::from_bytes(&point).map_err(|_| KeyFault::Garbage)?;
    if point.is_weak() { Err(KeyFault::Weak) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::ssh_key::public::Ed25519PublicKey;

    const GOOD: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@laptop";

    #[test]
    fn an_ed25519_key_is_accepted_with_its_comment() {
        let key = parse_user_key(&format!("# mine\n\n{GOOD}\r\n")).unwrap();
        assert_eq!(key.to_openssh().unwrap(), GOOD);
    }

    #[test]
    fn every_other_kind_of_key_is_refused_by_name() {
        for (text, fault) in [
            ("", KeyFault::Empty),
            ("# nothing\n", KeyFault::Empty),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
                KeyFault::Private,
            ),
            ("ssh-dss AAAAB3NzaC1kc3M= a", KeyFault::Dsa),
            ("ssh-rsa AAAAB3NzaC1yc2E= a", KeyFault::Rsa),
            ("ecdsa-sha2-nistp256 AAAA a", KeyFault::Ecdsa),
            ("sk-ecdsa-sha2-nistp256@openssh.com AAAA a", KeyFault::Ecdsa),
            ("ssh-ed25519-cert-v01@openssh.com AAAA a", KeyFault::Certificate),
            ("---- BEGIN SSH2 PUBLIC KEY ----", KeyFault::OtherFormat),
            ("-----BEGIN PUBLIC KEY-----", KeyFault::OtherFormat),
            ("hello world", KeyFault::Garbage),
            ("ssh-ed25519", KeyFault::Garbage),
            ("ssh-ed25519 AAAA", KeyFault::Garbage),
            (
                "sk-ssh-ed25519@openssh.com AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti",
                KeyFault::Garbage,
            ),
        ] {
            assert_eq!(parse_user_key(text).unwrap_err(), fault, "{text}");
        }
        assert_eq!(parse_user_key(&format!("{GOOD}\n{GOOD}\n")).unwrap_err(), KeyFault::Several);
        assert_eq!(parse_user_key(&"x".repeat(20_000)).unwrap_err(), KeyFault::TooLarge);
    }

    #[test]
    fn a_key_that_anyone_can_sign_for_is_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            let key = PublicKey::from(KeyData::Ed25519(Ed25519PublicKey(point)));
            assert_eq!(parse_user_key(&key.to_openssh().unwrap()).unwrap_err(), KeyFault::Weak);
        }
    }
}
