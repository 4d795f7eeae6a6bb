//! New keys while bytes flow (RFC 4253 §9): every byte arrives, whoever asks for them, on every leg; and strict key
//! exchange on all of them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::rig::{Rig, text, wait_for};

/// Who asks for new keys after each mebibyte.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    /// The client, on the outer connection and on the inner one.
    Client,
    /// The bastion on every leg, and the instance.
    Servers,
}

/// alice may also forward; `asks` is set up.
fn rig(asks: Asks) -> Rig {
    let mut rig = Rig::with_alice_and(match asks {
        Asks::Client => "",
        Asks::Servers => "[transport]\nrekey_mb = 1\n",
    });
    let login = rig.login.clone();
    let forward = ["--login", &login, "--can", "forward"];
    rig.ok(&[&["access", "allow", "--user", "alice", "--instance", "db-1"][..], &forward].concat());
    let mut config = fs::read_to_string(rig.path("sshd_config")).unwrap().replace("VERBOSE", "DEBUG3");
    if asks == Asks::Servers {
        config.push_str("RekeyLimit 1M\n");
    }
    fs::write(rig.path("sshd_config"), config).unwrap();
    rig.restart_sshd();
    rig
}

/// alice's `ssh`, which says on stderr what it negotiates.
fn client(rig: &Rig, asks: Asks) -> Command {
    let rekey = if asks == Asks::Client { "RekeyLimit 1M\n" } else { "" };
    let first = format!("Host *\n LogLevel DEBUG1\n{rekey}");
    let mut command = Command::new("ssh");
    rig.asking(command.arg("-F").arg(rig.config("alice", &first)), "alice");
    command
}

/// Sends `mib` mebibytes through `command`, which sends them back; returns its stderr.
fn both_ways(mut command: Command, mib: usize) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut errors = child.stderr.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for part in 0..mib {
                input.write_all(&block(part)).unwrap();
            }
        });
        let errors = scope.spawn(move || {
            let mut all = String::new();
            errors.read_to_string(&mut all).unwrap();
            all
        });
        let mut seen = vec![0; 1 << 20];
        for part in 0..mib {
            output.read_exact(&mut seen).unwrap_or_else(|e| panic!("in MiB {part}: {e}"));
            assert!(seen == block(part), "MiB {part} differs");
        }
        assert_eq!(output.read(&mut seen).unwrap(), 0, "nothing follows");
        assert!(child.wait().unwrap().success());
        errors.join().unwrap()
    })
}

/// A mebibyte like no other.
fn block(part: usize) -> Vec<u8> {
    let mut state = part as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut block = Vec::with_capacity(1 << 20);
    while block.len() < 1 << 20 {
        // xorshift64: no byte is where it was in another block.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    block
}

fn times(log: &str, words: &str) -> usize {
    log.matches(words).count()
}

/// A service that sends back what it hears, to every connection.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut from = stream.unwrap();
            let mut to = from.try_clone().unwrap();
            std::thread::spawn(move || {
                std::io::copy(&mut from, &mut to).ok();
                to.shutdown(std::net::Shutdown::Write).ok();
            });
        }
    });
    port
}

/// Mebibytes each way; `KEYWARD_REKEY_MIB` for more by hand.
fn amount() -> usize {
    std::env::var("KEYWARD_REKEY_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

fn recorded(asks: Asks) {
    let rig = rig(asks);
    let mib = amount();
    let mut command = client(&rig, asks);
    command.args(["db-1", "cat"]);
    let log = both_ways(command, mib);
    // Inner and outer connection log to the same place: both ways on both, and a first exchange each.
    let exchanges = times(&log, "SSH2_MSG_NEWKEYS received");
    assert!(exchanges > mib, "{exchanges} exchanges");
    let channel = &rig.ended_sessions()[0]["channels"][0];
    assert_eq!(channel["bytes_in"], mib << 20, "{channel}");
    assert!(channel["bytes_out"].as_u64().unwrap() >= (mib as u64) << 20, "sshd's log adds to it: {channel}");
    if asks == Asks::Servers {
        let there = times(&fs::read_to_string(rig.path("sshd.log")).unwrap(), "SSH2_MSG_NEWKEYS received");
        assert!(there > mib / 2, "{there} exchanges with the instance");
    }
}

fn raw(asks: Asks) {
    let rig = rig(asks);
    let mib = amount();
    let mut command = client(&rig, asks);
    command.args(["-W", &format!("db-1:{}", echo()), "bastion"]);
    let log = both_ways(command, mib);
    let exchanges = times(&log, "SSH2_MSG_NEWKEYS received");
    assert!(exchanges > mib / 2, "{exchanges} exchanges");
    assert_eq!(rig.ended_sessions()[0]["channels"][0]["relayed_bytes"], 2 * (mib << 20));
}

#[test]
fn a_recorded_jump_is_exact_while_the_client_asks_for_new_keys() {
    recorded(Asks::Client);
}

#[test]
fn a_recorded_jump_is_exact_while_bastion_and_instance_ask_for_new_keys() {
    recorded(Asks::Servers);
}

#[test]
fn a_raw_forward_is_exact_while_the_client_asks_for_new_keys() {
    raw(Asks::Client);
}

#[test]
fn a_raw_forward_is_exact_while_the_bastion_asks_for_new_keys() {
    raw(Asks::Servers);
}

#[test]
fn what_is_under_way_on_many_channels_survives_new_keys() {
    let rig = rig(Asks::Servers);
    // Three windows are filled before the client takes up the bastion's wish for new keys, which it gets after a mebibyte.
    let out = rig.paramiko(
        "alice",
        r#"
import hashlib, threading
t = inner()
# What arrives while this is not set is taken up late: also what a read that began before brings.
resume = threading.Event(); resume.set(); read = t.packetizer.read_message
def reads_later():
    message = read(); resume.wait(); return message
t.packetizer.read_message = reads_later
chans = [t.open_session() for _ in range(3)]
for chan in chans: chan.exec_command('sha256sum')
resume.clear()
part = bytes(range(256)) * 7936
for chan in chans: chan.sendall(part)
resume.set()
want = hashlib.sha256(part).hexdigest()
for chan in chans:
    chan.shutdown_write(); assert chan.makefile().read().startswith(want.encode())
print('exact')
"#,
    );
    assert_eq!(out, "exact\n");
}

#[test]
fn the_key_exchange_is_strict_on_every_leg() {
    let rig = rig(Asks::Client);
    let first = "Host *\n LogLevel DEBUG3\n";
    let mut command = Command::new("ssh");
    rig.asking(command.arg("-F").arg(rig.config("alice", first)).args(["db-1", "true"]), "alice");
    let log = text(command.stdin(Stdio::null()).output().unwrap().stderr);
    assert_eq!(times(&log, "will use strict KEX ordering"), 2, "outer and inner: {log}");
    let there = fs::read_to_string(rig.path("sshd.log")).unwrap();
    assert_eq!(times(&there, "will use strict KEX ordering"), 1, "{there}");
}

/// alice works on `db-1` while somebody's connection is lost in the middle of a key exchange.
#[test]
fn a_wire_that_is_cut_in_a_key_exchange_ends_its_own_connection_alone() {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &rig.login]);
    let mut alice = rig.client("ssh", "alice");
    let mut alice = alice.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut works = || {
        alice.stdin.as_mut().unwrap().write_all(b"word").unwrap();
        let mut back = [0; 4];
        alice.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
        assert_eq!(&back, b"word");
    };
    works();
    // Cut after the client's KEXINIT, before the bastion's answer is taken up: the inner connection, then the outer one.
    rig.paramiko(
        "bob",
        r#"
t = inner(); chan = t.open_session(); chan.exec_command('cat')
t._send_kex_init(); OUTER[-1].sock.close()
t = inner(); chan = t.open_session(); chan.exec_command('cat')
OUTER[-1]._send_kex_init(); OUTER[-1].sock.close()
"#,
    );
    wait_for("bob's sessions to end", || {
        let bob = rig.json(&["sessions", "list", "--user", "bob"]);
        let bob = bob.as_array().unwrap();
        bob.len() == 2 && bob.iter().all(|s| s["status"] == "closed")
    });
    works();
    drop(alice.stdin.take());
    assert!(alice.wait().unwrap().success());
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_key_exchange_that_never_ends_keeps_nobody_from_being_cut() {
    let rig = Rig::with_alice();
    let out = rig.paramiko(
        "alice",
        r#"
import threading
t = inner(); chan = t.open_session(); chan.exec_command('echo up; cat'); assert chan.recv(3) == b'up\n'
# A key exchange begins on both connections, and the answers are never given.
t.packetizer.send_message = lambda m: None
OUTER[-1]._send_kex_init()
OUTER[-1].packetizer.send_message = lambda m: None
print('begun', flush=True)
subprocess.check_call([os.environ['KEYWARD'], 'users', 'suspend', USER], env=dict(os.environ, KEYWARD_CONFIG=D + '/bastion/keyward.toml'))
end = time.time() + 20
while OUTER[-1].is_active():
    if time.time() > end: sys.exit('still connected')
    time.sleep(0.05)
"#,
    );
    assert!(out.starts_with("begun"), "{out}");
    wait_for("the session to be sealed", || rig.ended_sessions()[0]["status"] == "killed");
}
