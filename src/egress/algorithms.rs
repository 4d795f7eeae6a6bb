//! Which algorithms Keyward speaks, on every leg: strict key exchange, nothing with SHA-1, no group under 4096 bits, no
//! compression, and encrypt-and-MAC only with those who know nothing else.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Limits, Preferred, cipher, compression, kex, mac};

use crate::config::{Crypto, Transport};

/// The lists, best first. AES-128-GCM stands first because both sides' hardware is fastest at it.
pub fn preferred(transport: Transport) -> Preferred {
    Preferred {
        kex: Cow::Borrowed(match transport.crypto {
            Crypto::Default => KEX,
            Crypto::Strict => POST_QUANTUM_KEX,
        }),
        key: Cow::Borrowed(HOST_KEYS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(match transport.crypto {
            Crypto::Default => MACS,
            Crypto::Strict => ENCRYPT_THEN_MAC,
        }),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// After how many bytes, and how long, the bastion asks for new keys.
pub fn rekey_limits(transport: Transport) -> Limits {
    let bytes = usize::try_from(transport.rekey_mb << 20).unwrap_or(usize::MAX);
    Limits { rekey_read_limit: bytes, rekey_write_limit: bytes, ..Limits::default() }
}

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// What a quantum computer does not open (draft-ietf-sshm-mlkem-hybrid-kex). The last four are no key exchanges: they say
/// what else is spoken (RFC 8308, OpenSSH's PROTOCOL §1.10).
const POST_QUANTUM_KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// libssh2 before 1.11 (in Debian 12: curl, the git libraries, PHP) knows the last two alone. They are not broken, only harder to
/// prove sound. The client chooses: whoever puts AES-GCM or encrypt-then-MAC first gets that, whoever sits between (RFC 4253 §7.1).
const MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM, mac::HMAC_SHA512, mac::HMAC_SHA256];
const ENCRYPT_THEN_MAC: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM];

/// Host keys: the bastion's own is ED25519, instances may have others.
const HOST_KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];
