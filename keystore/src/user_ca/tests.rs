//! Certificates that count, and each neighbour that does not; lists of either kind, as ssh-keygen writes and reads them.

use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A folder in which ssh-keygen works.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        for name in ["ca", "other_ca", "alice"] {
            bench.keygen(&["-t", "ed25519", "-N", "", "-C", name, "-f", name]);
        }
        bench
    }

    fn keygen(&self, args: &[&str]) {
        let output = Command::new("ssh-keygen").arg("-q").args(args).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    /// alice's key with a certificate of `ca`.
    fn certificate(&self, ca: &str, more: &[&str]) -> Certificate {
        let args = [&["-s", ca, "-I", "alice@corp", "-z", "7"][..], more, &["alice.pub"]].concat();
        self.keygen(&args);
        Certificate::from_openssh(&self.read("alice-cert.pub")).unwrap()
    }

    fn cas(&self, krl: Option<&[u8]>) -> UserCas {
        UserCas::read(&self.read("ca.pub"), krl).unwrap()
    }

    fn krl(&self, spec: &str) -> Vec<u8> {
        fs::write(self.0.path().join("spec"), spec).unwrap();
        self.keygen(&["-k", "-f", "krl", "-s", "ca.pub", "spec"]);
        fs::read(self.0.path().join("krl")).unwrap()
    }
}

const HOUR: i64 = 3600;
const GOOD: [&str; 4] = ["-n", "alice,root", "-V", "-1m:+50m"];

fn judged(cas: &UserCas, certificate: &Certificate) -> Result<(), CertFault> {
    let source = "192.0.2.7".parse().unwrap();
    let presented = Presented { certificate, user: "alice", source, max_age: HOUR };
    cas.judge(&presented, &Accepted::default(), Timestamp::now())
}

#[test]
fn a_certificate_counts_for_its_user_and_each_neighbour_does_not() {
    let bench = Bench::new();
    let cas = bench.cas(None);
    let with = |more: &[&str]| judged(&cas, &bench.certificate("ca", more));
    assert_eq!(with(&GOOD), Ok(()));
    for (options, expected) in [
        (&["-n", "bob", "-V", "+50m"][..], Err(CertFault::OtherPrincipal)),
        (&["-n", "Alice", "-V", "+50m"], Err(CertFault::OtherPrincipal)),
        (&["-V", "+50m"], Err(CertFault::OtherPrincipal)),
        (&["-h", "-n", "alice", "-V", "+50m"], Err(CertFault::NotUser)),
        (&["-n", "alice", "-V", "+2h"], Err(CertFault::TooLong)),
        (&["-n", "alice"], Err(CertFault::TooLong)),
        (&["-n", "alice", "-V", "-3h:-150m"], Err(CertFault::Expired)),
        (&["-n", "alice", "-V", "+10m:+20m"], Err(CertFault::NotYet)),
        (&["-n", "alice", "-V", "+50m", "-O", "source-address=192.0.2.0/24,2001:db8::1"], Ok(())),
        (&["-n", "alice", "-V", "+50m", "-O", "source-address=198.51.100.0/24"], Err(CertFault::OtherSource)),
        (&["-n", "alice", "-V", "+50m", "-O", "force-command=true"], Err(CertFault::UnknownOption)),
        (&["-n", "alice", "-V", "+50m", "-O", "critical:later@example=1"], Err(CertFault::UnknownOption)),
        (&["-n", "alice", "-V", "+50m", "-O", "extension:later@example=1"], Ok(())),
    ] {
        assert_eq!(with(options), expected, "{options:?}");
    }
    assert_eq!(judged(&cas, &bench.certificate("other_ca", &GOOD)), Err(CertFault::UnknownAuthority));
}

#[test]
fn a_changed_certificate_is_nobodys() {
    let bench = Bench::new();
    let cas = bench.cas(None);
    let good = bench.certificate("ca", &GOOD).to_bytes().unwrap();
    let principal = good.windows(5).position(|part| part == b"alice").unwrap();
    for at in [principal, principal + 11, good.len() - 10] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let Ok(changed) = Certificate::from_bytes(&bytes) else { continue };
        assert_eq!(judged(&cas, &changed), Err(CertFault::UnknownAuthority), "{at}");
    }
}

#[test]
fn a_certificate_of_a_weak_or_refused_kind_of_key_does_not_count() {
    let bench = Bench::new();
    let cas = bench.cas(None);
    for (kind, bits) in [("rsa", "2048"), ("ecdsa", "256")] {
        fs::remove_file(bench.0.path().join("alice")).unwrap();
        bench.keygen(&["-t", kind, "-b", bits, "-N", "", "-f", "alice"]);
        assert_eq!(judged(&cas, &bench.certificate("ca", &GOOD)), Err(CertFault::KeyNotAccepted), "{kind}");
    }
}

#[test]
fn what_a_krl_of_ssh_keygen_names_is_revoked_and_nothing_else() {
    let bench = Bench::new();
    let certificate = bench.certificate("ca", &GOOD);
    let key = PublicKey::from(certificate.public_key().clone());
    let print = key.fingerprint(HashAlg::Sha256);
    let line = key.to_openssh().unwrap();
    let ca = bench.read("ca.pub");
    let long: String = (0..400).filter(|n| n % 3 == 1).map(|n| format!("serial: {n}\n")).collect();
    for (spec, revoked) in [
        ("serial: 7\n".to_owned(), true),
        ("serial: 8\n".to_owned(), false),
        ("serial: 5-9\n".to_owned(), true),
        ("serial: 1-6\nserial: 8-100000\n".to_owned(), false),
        (long, true),
        ("serial: 1\nserial: 9\nserial: 17\nserial: 300\n".to_owned(), false),
        ("id: alice@corp\n".to_owned(), true),
        ("id: bob@corp\n".to_owned(), false),
        (format!("key: {line}\n"), true),
        (format!("hash: {print}\n"), true),
        (format!("sha256: {line}\n"), true),
        (format!("sha1: {line}\n"), true),
        (format!("sha1: {ca}\n"), true),
        (format!("sha1: {}\n", bench.read("other_ca.pub")), false),
        (format!("key: {ca}\n"), true),
        (format!("key: {}\n", bench.read("other_ca.pub")), false),
    ] {
        let expected = if revoked { Err(CertFault::Revoked) } else { Ok(()) };
        assert_eq!(judged(&bench.cas(Some(&bench.krl(&spec))), &certificate), expected, "KRL of {spec}");
        assert_eq!(judged(&bench.cas(Some(spec.as_bytes())), &certificate), expected, "lines {spec}");
    }
    assert_eq!(judged(&bench.cas(Some(b"# nothing yet\n\n")), &certificate), Ok(()));
}

#[test]
fn serials_of_one_authority_revoke_nothing_of_another() {
    let bench = Bench::new();
    let certificate = bench.certificate("other_ca", &GOOD);
    let both = format!("{}{}", bench.read("ca.pub"), bench.read("other_ca.pub"));
    let krl = bench.krl("serial: 7\nid: alice@corp\n");
    let cas = UserCas::read(&both, Some(&krl)).unwrap();
    assert_eq!(judged(&cas, &certificate), Ok(()));
    assert_eq!(judged(&cas, &bench.certificate("ca", &GOOD)), Err(CertFault::Revoked));
}

#[test]
fn a_list_that_is_not_understood_is_refused_whole() {
    let bench = Bench::new();
    let krl = bench.krl("serial: 7\n");
    for cut in [8, 20, krl.len() - 1] {
        assert_eq!(Revoked::read(&krl[..cut]).err(), Some(KrlFault::CutOff), "{cut}");
    }
    let mut other = krl.clone();
    other[11] = 2;
    assert_eq!(Revoked::read(&other).err(), Some(KrlFault::Version(2)));
    // Comment and header are behind the first 44 bytes of what ssh-keygen writes; there the first section begins.
    let mut unknown = krl.clone();
    unknown[44] = 77;
    assert!(matches!(Revoked::read(&unknown), Err(KrlFault::Unknown(_))), "a section of another kind");
    for line in ["serial: x", "serial: 9-7", "serial: -1", "id:", "hash: x", "revoke everything", "key: x"] {
        assert_eq!(Revoked::read(line.as_bytes()).err(), Some(KrlFault::Line(1)), "{line}");
    }
    assert_eq!(Revoked::read(&[0xff, 0xfe]).err(), Some(KrlFault::Garbage));
}

#[test]
fn an_authority_must_be_worth_its_trust() {
    let read =
        |text: &str| UserCas::read(text, None).err().map(|fault| fault.to_string()).unwrap_or_default();
    assert!(read("").contains("no public key in it"));
    assert!(read("# ours\nhello\n").contains("line 2 is no public key"));
    for secret in ["AGE-SECRET-KEY-1QQPQYP", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk"] {
        let said = read(secret);
        assert!(said.contains("line 1 is a private key"), "{said}");
        assert!(!said.contains("QQPQ") && !said.contains("BEGIN"), "{said}");
    }
    let bench = Bench::new();
    bench.keygen(&["-t", "rsa", "-b", "2048", "-N", "", "-f", "weak"]);
    assert!(read(&bench.read("weak.pub")).contains("3072 bits"));
    bench.certificate("ca", &GOOD);
    assert_ne!(read(&bench.read("alice-cert.pub")), "", "a certificate is no authority");
    let nested = KeyData::Certificate(Box::new(bench.certificate("ca", &GOOD)));
    assert!(!trustworthy(&PublicKey::from(nested.clone())));
    assert!(Accepted::default().admits(&PublicKey::from(nested)).is_err(), "nor is a certificate a key");
}

proptest! {
    #[test]
    fn no_list_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), krl in any::<bool>()) {
        let content = if krl { [b"SSHKRL\n\0\0\0\0\x01".as_slice(), &bytes].concat() } else { bytes };
        drop(Revoked::read(&content));
    }
}
