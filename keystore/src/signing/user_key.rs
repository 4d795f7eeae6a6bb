//! The one public key in a file that somebody gave. What is none, or of no accepted kind, is refused with one sentence that
//! says what was wrong and what to do.

use crate::rules::Accepted;
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
    /// RSA, too small to last or too large to bear.
    #[error(
        "RSA keys need 4096 to 8192 bits; make a new key: ssh-keygen -t ed25519, or ssh-keygen -t rsa -b 4096"
    )]
    RsaSize,
    /// RSA with a modulus or exponent that no honest program makes.
    #[error("this RSA key is weak; make a new key: ssh-keygen -t ed25519, or ssh-keygen -t rsa -b 4096")]
    RsaWeak,
    /// A kind that could be accepted, but is not.
    #[error("this kind of key is not accepted here (keys.algorithms in keyward.toml)")]
    NotHere,
    /// An option of authorized_keys that means nothing here.
    #[error("options before the key count for nothing here, but verify-required; take the others away")]
    Option,
    /// Another key that cannot verify its user.
    #[error("only a security key can verify its user; make one: ssh-keygen -t ed25519-sk -O verify-required")]
    NoVerification,
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

/// A key as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenKey {
    /// The key.
    pub key: PublicKey,
    /// It stands behind the option `verify-required`, sshd(8): its signatures count only if the user was verified.
    pub verify_required: bool,
}

/// Reads the one OpenSSH public key line in `text`; empty lines and lines that start with `#` do not count.
///
/// # Errors
/// What is wrong with it; see [`KeyFault`].
pub fn parse_user_key(text: &str, accepted: &Accepted) -> Result<GivenKey, KeyFault> {
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
    let (verify_required, line) = without_option(line)?;
    match line.split_ascii_whitespace().next().unwrap_or(line) {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" | "ssh-rsa" => {}
        "ssh-dss" => return Err(KeyFault::Dsa),
        other if other.ends_with("-cert-v01@openssh.com") => return Err(KeyFault::Certificate),
        other if other.starts_with("ecdsa-sha2-") || other.starts_with("sk-ecdsa-sha2-") => {
            return Err(KeyFault::Ecdsa);
        }
        _ => return Err(KeyFault::Garbage),
    }
    let unread = if line.starts_with("ssh-rsa ") { KeyFault::Rsa } else { KeyFault::Garbage };
    let key = PublicKey::from_openssh(line).map_err(|_| unread)?;
    accepted.admits(&key)?;
    if verify_required && !key.algorithm().as_str().starts_with("sk-") {
        return Err(KeyFault::NoVerification);
    }
    Ok(GivenKey { key, verify_required })
}

/// The line behind its options, of which one is known.
fn without_option(line: &str) -> Result<(bool, &str), KeyFault> {
    let Some((first, rest)) = line.split_once([' ', '\t']) else { return Ok((false, line)) };
    match first {
        "verify-required" => Ok((true, rest.trim_start())),
        _ if OPTIONS.iter().any(|option| first.starts_with(option)) => Err(KeyFault::Option),
        _ => Ok((false, line)),
    }
}

/// How options begin (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
const OPTIONS: [&str; 18] = [
    "agent-forwarding",
    "cert-authority",
    "command=",
    "environment=",
    "expiry-time=",
    "from=",
    "no-",
    "permitlisten=",
    "permitopen=",
    "port-forwarding",
    "principals=",
    "pty",
    "restrict",
    "touch-required",
    "tunnel=",
    "user-rc",
    "verify-required,",
    "x11-forwarding",
];

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};

    fn parse(text: &str) -> Result<GivenKey, KeyFault> {
        parse_user_key(text, &Accepted::default())
    }

    const GOOD: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@laptop";

    #[test]
    fn an_ed25519_key_is_accepted_with_its_comment() {
        let given = parse(&format!("# mine\n\n{GOOD}\r\n")).unwrap();
        assert_eq!((given.key.to_openssh().unwrap().as_str(), given.verify_required), (GOOD, false));
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
            assert_eq!(parse(text).unwrap_err(), fault, "{text}");
        }
        assert_eq!(parse(&format!("{GOOD}\n{GOOD}\n")).unwrap_err(), KeyFault::Several);
        assert_eq!(parse(&"x".repeat(20_000)).unwrap_err(), KeyFault::TooLarge);
    }

    #[test]
    fn a_key_that_anyone_can_sign_for_is_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            let key = PublicKey::from(KeyData::Ed25519(Ed25519PublicKey(point)));
            assert_eq!(parse(&key.to_openssh().unwrap()).unwrap_err(), KeyFault::Weak);
        }
    }

    #[test]
    fn verify_required_is_heard_before_a_security_key_and_no_other_option_is() {
        let point = match PublicKey::from_openssh(GOOD).unwrap().key_data() {
            KeyData::Ed25519(point) => *point,
            _ => unreachable!(),
        };
        let sk = PublicKey::from(KeyData::SkEd25519(SkEd25519::new(point, "ssh:"))).to_openssh().unwrap();
        assert!(parse(&format!("verify-required {sk}")).unwrap().verify_required);
        assert!(!parse(&sk).unwrap().verify_required);
        assert_eq!(parse(&format!("verify-required {GOOD}")), Err(KeyFault::NoVerification));
        for option in
            ["no-pty", "command=\"true\"", "verify-required,no-pty", "from=\"10.0.0.1\"", "no-touch-required"]
        {
            assert_eq!(parse(&format!("{option} {sk}")), Err(KeyFault::Option), "{option}");
        }
    }
}
