//! The wire is cut, or falls silent, in the middle of a key exchange (RFC 4253 §9), on every leg and whoever began it: that session ends and
//! is sealed, and nobody else notices.

use std::fs;
use std::process::{Child, Stdio};

use crate::hostile::{USER, with_evil_and, works};
use crate::rig::{Rig, text, wait_for};

/// The bastion asks for new keys after a mebibyte.
const BASTION_ASKS: &str = "[transport]\nrekey_mb = 1\n";

/// bob at work on `db-1`, who must not notice.
fn bob(rig: &Rig) -> Child {
    rig.add_user("bob");
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &rig.login]);
    let mut ssh = rig.client("ssh", "bob");
    let mut bob = ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    works(&mut bob);
    bob
}

/// alice's sessions have ended so, and bob's goes on.
fn sealed(rig: &Rig, mut bob: Child, statuses: &[&str]) {
    let mut seen = Vec::new();
    wait_for("alice's sessions to end", || {
        let sessions = rig.json(&["sessions", "list", "--user", "alice"]);
        seen =
            sessions.as_array().unwrap().iter().map(|s| s["status"].as_str().unwrap().to_owned()).collect();
        seen.len() == statuses.len() && !seen.iter().any(|status| status == "live")
    });
    assert_eq!(seen, statuses);
    works(&mut bob);
    drop(bob.stdin.take());
    assert!(bob.wait().unwrap().success());
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    rig.ok(&["logs", "verify"]);
    for session in rig.json(&["sessions", "list", "--user", "alice"]).as_array().unwrap() {
        rig.ok(&["sessions", "verify", session["id"].as_str().unwrap()]);
    }
}

#[test]
fn a_user_who_is_cut_off_when_the_bastion_asks_for_new_keys() {
    let rig = Rig::with_alice_and(BASTION_ASKS);
    let bob = bob(&rig);
    // Cut when the bastion's wish is there and nothing has been answered: of the inner connection, then of the outer one.
    rig.paramiko(
        "alice",
        r#"
import threading
def cut_at_kexinit(t):
    read = t.packetizer.read_message; cut = threading.Event()
    def reads():
        kind, m = read()
        if kind == 20: OUTER[-1].sock.close(); cut.set()
        return kind, m
    t.packetizer.read_message = reads
    return cut
for which in ('inner', 'outer'):
    t = inner(); chan = t.open_session(); chan.exec_command('cat > /dev/null')
    cut = cut_at_kexinit(t if which == 'inner' else OUTER[-1])
    try:
        for _ in range(200): chan.sendall(b'x' * 32768)
    except Exception: pass
    if not cut.wait(20): sys.exit('nobody asked for keys')
"#,
    );
    sealed(&rig, bob, &["closed", "closed"]);
}

/// The instance goes when the bastion asks for keys, or answers, a second time.
const CUT_AT_THE_SECOND: &str = r#"
def prepare(t):
    seen = []
    def kexinit(self, m):
        seen.append(1)
        if len(seen) == 2: self.sock.close(); return
        self._negotiate_keys(m)
    on(t, 20, kexinit)
"#;

/// alice's `ssh evil COMMAND` on an instance that does `program`.
fn at_evil(lines: &str, program: &str) {
    let (rig, _evil) = with_evil_and(lines, program, "exec");
    let bob = bob(&rig);
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["-J", "bastion", "-o", &format!("User={}", rig.login), "evil", "x"]);
    let output = ssh.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let said = text(output.stderr);
    assert!(said.contains("evil closed the connection"), "{said}");
    sealed(&rig, bob, &["closed"]);
}

#[test]
fn an_instance_that_is_cut_off_in_its_own_key_exchange() {
    at_evil("", "def act(t, chan, command): t._send_kex_init(); t.sock.close()");
}

#[test]
fn an_instance_that_is_cut_off_when_the_bastion_has_answered_its_key_exchange() {
    at_evil("", &format!("def act(t, chan, command): t._send_kex_init()\n{CUT_AT_THE_SECOND}"));
}

#[test]
fn an_instance_that_is_cut_off_when_the_bastion_asks_for_new_keys() {
    at_evil(
        BASTION_ASKS,
        &format!(
            "def act(t, chan, command):
    try:
        for _ in range(200): chan.sendall(b'x' * 32768)
    except Exception: pass
{CUT_AT_THE_SECOND}"
        ),
    );
}

#[test]
fn an_instance_that_never_ends_a_key_exchange_keeps_neither_its_user_nor_the_session() {
    let program = r#"
def act(t, chan, command):
    chan.sendall(b'begun'); t._send_kex_init()
    # From here on it says nothing more.
    t.packetizer.send_message = lambda m: None
"#;
    for suspended in [false, true] {
        let (rig, _evil) = with_evil_and("", program, "exec");
        let bob = bob(&rig);
        let then = match suspended {
            // Her account is suspended while it lasts; or she leaves.
            true => {
                "subprocess.check_call([os.environ['KEYWARD'], 'users', 'suspend', USER], env=dict(os.environ, KEYWARD_CONFIG=D + '/bastion/keyward.toml'))
wait(lambda: not OUTER[-1].is_active())
if OUTER[-1].is_active(): sys.exit('still connected')"
            }
            false => "OUTER[-1].close()",
        };
        let out = rig.paramiko(
            "alice",
            &format!(
                "{USER}t = evil(); chan = run(t, 'x'); print(chan.recv(5).decode(), flush=True)\n{then}\n"
            ),
        );
        assert!(out.starts_with("begun"), "{out}");
        sealed(&rig, bob, &[if suspended { "killed" } else { "closed" }]);
    }
}
