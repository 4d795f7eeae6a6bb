//! What a key may be, and for whom how long: terms of roles, RSA by configuration, security keys that verify their user.

use std::fs;
use std::process::Command;

use crate::rig::{Rig, text};

fn days(key: &serde_json::Value) -> i64 {
    let at = |name: &str| key[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    (at("expires_at") - at("added_at")) / 86_400
}

fn add(rig: &Rig, user: &str, file: &str) -> std::process::Output {
    let file = rig.path(file);
    rig.run(&["--json", "ssh-keys", "add", "--user", user, "--file", file.to_str().unwrap()])
}

fn rsa(rig: &Rig, name: &str, bits: &str) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "rsa", "-b", bits, "-N", "", "-C", name, "-f"]).arg(rig.path(name));
    assert!(keygen.status().unwrap().success());
}

#[test]
fn a_role_has_its_own_terms_and_the_shortest_wins() {
    let rig = Rig::bastion_and(
        "[keys.role.contractor]\nmax_age = \"5d\"\noverlap = \"1h\"\n[keys.role.root]\nmax_age = \"2d\"\n",
    );
    for (user, roles, lasts) in [
        ("alice", &["engineer"][..], 90),
        ("bob", &["engineer", "contractor"], 5),
        ("carol", &["contractor", "root"], 2),
    ] {
        let mut args = vec!["users", "add", user];
        args.extend(roles.iter().flat_map(|role| ["--role", role]));
        rig.ok(&args);
        rig.keygen(&format!("id_{user}"));
        let added = add(&rig, user, &format!("id_{user}.pub"));
        assert_eq!(days(&serde_json::from_slice(&added.stdout).unwrap()), lasts, "{user}");
    }
    let key = rig.json(&["ssh-keys", "show", "K2"]);
    assert_eq!(
        (&key["terms"]["max_age_secs"], &key["terms"]["overlap_secs"]),
        (&432_000.into(), &3600.into())
    );
    let shown = rig.ok(&["ssh-keys", "show", "K2"]);
    assert!(
        shown.contains("A new key of this user lasts 5 days") && shown.contains("works 60 minutes longer"),
        "{shown}"
    );
    let report = rig.json(&["ssh-keys", "report"]);
    let of = |role: &str| {
        report["by_role"].as_array().unwrap().iter().find(|g| g["name"] == role).unwrap()["max_age_days"]
            .clone()
    };
    assert_eq!((of("engineer"), of("contractor"), of("root")), (90.into(), 5.into(), 2.into()));
}

#[test]
fn an_rsa_key_of_4096_bits_logs_in_where_the_configuration_takes_it_and_signs_with_sha_2_only() {
    let rig = Rig::with_alice_and("[keys]\nalgorithms = [\"ed25519\", \"rsa-4096\"]\n");
    rsa(&rig, "id_small", "3072");
    let refused = add(&rig, "alice", "id_small.pub");
    assert!(refused.status.code() == Some(1) && text(refused.stderr).contains("4096 to 8192 bits"));
    rsa(&rig, "id_rsa", "4096");
    assert!(add(&rig, "alice", "id_rsa.pub").status.success());
    let with = |options: &[&str]| {
        let mut ssh = rig.client("ssh", "alice");
        let text = fs::read_to_string(rig.config("alice", "")).unwrap().replace("id_alice", "id_rsa");
        fs::write(rig.path("rsa_config"), text).unwrap();
        ssh.arg("-F").arg(rig.path("rsa_config")).args(options).args(["db-1", "echo in"]).output().unwrap()
    };
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let output = with(&["-o", &format!("PubkeyAcceptedAlgorithms={algorithm}")]);
        assert_eq!(text(output.stdout), "in\n", "{algorithm}: {}", text(output.stderr));
    }
    // The stock client will not sign with SHA-1 for a server that does not say it takes it; this one does.
    let said = rig.paramiko(
        "alice",
        r#"
RSA = paramiko.RSAKey.from_private_key_file(D + '/id_rsa')
def old():
    off = {'pubkeys': ['rsa-sha2-256', 'rsa-sha2-512']}
    t = paramiko.Transport(socket.create_connection(('127.0.0.1', PORT)), disabled_algorithms=off, server_sig_algs=False)
    t.start_client(timeout=20)
    return t
try:
    sys.exit('SHA-1 was taken: %r' % old().auth_publickey(USER, RSA))
except paramiko.AuthenticationException: pass
print('done')
"#,
    );
    assert_eq!(said, "done\n");

    // Without the word a key that was added with it opens nothing.
    let config = rig.path("bastion/keyward.toml");
    let text_of = fs::read_to_string(&config).unwrap();
    fs::write(&config, text_of.replace("algorithms", "# algorithms")).unwrap();
    assert!(Command::new("kill").args(["-HUP", &rig.pid().to_string()]).status().unwrap().success());
    crate::rig::wait_for("the reload", || !rig.events("config_reloaded").is_empty());
    assert_eq!(with(&[]).status.code(), Some(255));
    let refused = add(&rig, "alice", "id_small.pub");
    assert!(text(refused.stderr).contains("RSA keys are not accepted"));
    assert!(rig.ssh("alice", "true").status.success());
}

/// A security key in software: what it says of presence and verification is up to the test.
const SECURITY_KEY: &str = r#"
import base64, hashlib
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
class Sk(paramiko.PKey):
    public_blob = None
    def __init__(self, flags):
        self.secret, self.flags = Ed25519PrivateKey.from_private_bytes(b'k' * 32), flags
    def get_name(self): return 'sk-ssh-ed25519@openssh.com'
    def asbytes(self):
        m = paramiko.Message()
        for part in (self.get_name(), self.secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), 'ssh:'):
            m.add_string(part)
        return m.asbytes()
    def sign_ssh_data(self, data, algorithm=None):
        tail = bytes([self.flags]) + struct.pack('>I', 7)
        signed = self.secret.sign(hashlib.sha256(b'ssh:').digest() + tail + hashlib.sha256(data).digest())
        m = paramiko.Message()
        m.add_string(self.get_name()); m.add_string(signed); m.add_bytes(tail)
        return m
PRESENT, VERIFIED = 1, 5
def first_step(flags):
    t = connect()
    try: return t, t.auth_publickey(USER, Sk(flags))
    except paramiko.AuthenticationException: return t, 'refused'
def reaches(t, flags):
    t = paramiko.Transport(t.open_channel('direct-tcpip', ('db-1', 22), ('127.0.0.1', 1)))
    t.start_client(timeout=20)
    try: t.auth_publickey(LOGIN, Sk(flags))
    except paramiko.SSHException: return False
    return True
"#;

fn security_key(rig: &Rig, option: &str) -> String {
    let line = rig.paramiko(
        "alice",
        &format!(
            "{SECURITY_KEY}print(Sk(0).get_name(), base64.b64encode(Sk(0).asbytes()).decode(), 'token')"
        ),
    );
    fs::write(rig.path("id_sk.pub"), format!("{option}{line}")).unwrap();
    line
}

#[test]
fn a_key_that_must_verify_its_user_does_so_at_every_login_and_is_no_code() {
    let rig = Rig::with_alice();
    security_key(&rig, "verify-required ");
    let added = add(&rig, "alice", "id_sk.pub");
    assert!(added.status.success(), "{}", text(added.stderr));
    assert!(rig.ok(&["ssh-keys", "list"]).contains("verify-required"));
    let program = r#"
for flags in (0, PRESENT, 4):
    assert first_step(flags)[1] == 'refused', flags
t, due = first_step(VERIFIED)
assert due == ['keyboard-interactive'], due
t.auth_interactive(USER, lambda title, instructions, prompts: [code()])
assert not reaches(t, PRESENT), 'the inner login too'
assert reaches(t, VERIFIED)
print('done')
"#;
    assert_eq!(rig.paramiko("alice", &format!("{SECURITY_KEY}{program}")), "done\n");
    let failed = rig.events("ssh_login_failed");
    assert!(failed.iter().any(|e| e["reason"] == "user not verified by the security key"), "{failed:?}");
}

#[test]
fn a_key_that_verifies_its_user_is_the_second_factor_where_the_configuration_says_so() {
    let rig = Rig::with_alice_and("[mfa]\nverify_required_counts = true\n");
    security_key(&rig, "");
    let file = rig.path("id_sk.pub");
    rig.ok(&["ssh-keys", "add", "--user", "alice", "--verify-required", "--file", file.to_str().unwrap()]);
    let program = r#"
for flags in (0, PRESENT, 4):
    assert first_step(flags)[1] == 'refused', flags
t, due = first_step(VERIFIED)
assert due == [] and t.is_authenticated(), due
assert reaches(t, VERIFIED) and not reaches(t, PRESENT)
print('done')
"#;
    assert_eq!(rig.paramiko("alice", &format!("{SECURITY_KEY}{program}")), "done\n");
    rig.script("code_alice", "exit 1");
    assert_eq!(rig.ssh("alice", "true").status.code(), Some(255), "another key still needs its code");
}

#[test]
fn a_security_key_that_need_not_verify_is_a_key_like_others_and_its_owner_cannot_say_otherwise() {
    let rig = Rig::with_alice_and("[mfa]\nverify_required_counts = true\n");
    let line = security_key(&rig, "");
    let mut rotate = rig.client("ssh", "alice");
    fs::write(rig.path("staged.pub"), format!("verify-required {line}")).unwrap();
    let staged = fs::File::open(rig.path("staged.pub")).unwrap();
    let output = rotate.args(["bastion", "ssh-keys", "rotate"]).stdin(staged).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(output.stderr));
    assert!(add(&rig, "alice", "id_sk.pub").status.success());
    let program =
        "t, due = first_step(VERIFIED)\nassert due == ['keyboard-interactive'], due\nprint('done')\n";
    assert_eq!(rig.paramiko("alice", &format!("{SECURITY_KEY}{program}")), "done\n");
}
