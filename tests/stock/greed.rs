//! Somebody who is logged in and takes what is not theirs: memory stays bounded, their own connection ends or is refused, and
//! nobody else notices.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use crate::rig::{Rig, wait_for};

/// alice works on `db-1` while mallory, who may enter it too, does `program` with paramiko.
pub fn while_alice_works(program: &str) -> String {
    while_alice_works_with("", program)
}

/// The same, with more lines in the configuration file.
fn while_alice_works_with(lines: &str, program: &str) -> String {
    let rig = Rig::with_alice_and(lines);
    rig.add_user("mallory");
    let may = ["--login", &rig.login, "--can", "shell,exec,sftp,forward"];
    rig.ok(&[&["access", "allow", "--user", "mallory", "--instance", "db-1"][..], &may].concat());
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut alice = ssh.spawn().unwrap();
    works(&mut alice);
    let before = rig.memory_kib();
    let over = std::sync::atomic::AtomicBool::new(false);
    let (out, most) = std::thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let mut most = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(rig.memory_kib());
                works(&mut alice);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            most
        });
        let out = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            rig.paramiko("mallory", &format!("{BY_HAND}{program}"))
        }));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        (out, watched.join().unwrap())
    });
    let out = out.unwrap();
    let grown = most.saturating_sub(before);
    assert!(grown < 64 * 1024, "the bastion grew by {grown} KiB");
    works(&mut alice);
    drop(alice.stdin.take());
    assert!(alice.wait().unwrap().success());
    wait_for("all to end", || rig.ended_sessions().iter().all(|s| s["status"] != "live"));
    let log = std::fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    rig.ok(&["logs", "verify"]);
    out
}

fn works(alice: &mut Child) {
    alice.stdin.as_mut().unwrap().write_all(b"word").unwrap();
    let mut back = [0; 4];
    alice.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
    assert_eq!(&back, b"word");
}

/// Messages by hand, and a tap on the kinds of those that come back.
const BY_HAND: &str = r#"
import threading
READ = paramiko.packet.Packetizer.read_message
# Answers to what paramiko did not ask would end it.
SWALLOWED = {81, 82, 91, 92, 99, 100}
def reads(self):
    kind, m = READ(self)
    if not hasattr(self, 'said'): return kind, m
    self.said.append(kind)
    return (2, paramiko.Message()) if kind in SWALLOWED else (kind, m)
paramiko.packet.Packetizer.read_message = reads
def tap(t):
    t.packetizer.said = []; return t.packetizer.said
def deaf(t):
    stop = threading.Event(); read = t.packetizer.read_message
    def reads():
        stop.wait(); return read()
    t.packetizer.read_message = reads
def send(t, *parts):
    try: t._send_message(msg(*parts)); return True
    except Exception: return False
def gone(t):
    end = time.time() + 20
    while t.is_active():
        if time.time() > end: sys.exit('still connected')
        time.sleep(0.05)
def wait(done):
    end = time.time() + 45
    while not done():
        if time.time() > end: return
        time.sleep(0.02)
def both():
    t = inner(); yield 'inner', t
    yield 'outer', OUTER[-1]
"#;

#[test]
fn who_ignores_the_window_is_disconnected() {
    while_alice_works(
        r#"
# A service of the instance that never reads.
unread = socket.socket(); unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
unread.bind(('127.0.0.1', 0)); unread.listen()
for where, t in both():
    if where == 'inner':
        chan = t.open_session(); chan.exec_command('sleep 30')
    else:
        chan = t.open_channel('direct-tcpip', ('db-1', unread.getsockname()[1]), ('127.0.0.1', 1))
    for _ in range(1000):
        if not send(t, b'\x5e', chan.remote_chanid, b'x' * 32000): break
    gone(t)
    inner()
"#,
    );
}

fn ten_thousand_channels(to: &str) {
    let out = while_alice_works(&format!(
        r#"
t = inner(); t = t if '{to}' == 'inner' else OUTER[-1]
said = tap(t)
for n in range(10000): send(t, b'\x5a', 'session', 1000 + n, 1 << 20, 32768)
end = time.time() + 40
while said.count(91) + said.count(92) < 10000 and time.time() < end: time.sleep(0.05)
print(said.count(91), said.count(92))
"#
    ));
    let (opened, refused) = out.trim().split_once(' ').unwrap();
    let (opened, refused): (u32, u32) = (opened.parse().unwrap(), refused.parse().unwrap());
    // A slow machine has not heard all the answers by then.
    assert!((1..=64).contains(&opened) && refused > 500, "{out}");
}

#[test]
fn ten_thousand_channels_to_an_instance_are_refused_beyond_a_few() {
    ten_thousand_channels("inner");
}

#[test]
fn ten_thousand_channels_to_the_bastion_are_refused_beyond_a_few() {
    ten_thousand_channels("outer");
}

#[test]
fn packets_of_no_size_carry_nothing_and_cost_nothing() {
    while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session()
    if where == 'inner': chan.exec_command('cat')
    for _ in range(20000): send(t, b'\x5e', chan.remote_chanid, '')
    for _ in range(20000): send(t, b'\x5f', chan.remote_chanid, 1, '')
    for _ in range(20000): send(t, b'\x02', '')
    print(where, t.is_active(), chan.closed, t.saved_exception, file=sys.stderr, flush=True)
    if where == 'inner':
        chan.sendall('word'); assert chan.recv(4) == b'word'
# A channel whose packets may have no size at all, with something to send on it.
t = inner(); said = tap(t)
send(t, b'\x5a', 'session', 7, 1 << 20, 0); time.sleep(1)
for number in range(1, 9):
    send(t, b'\x62', number, 'exec', True, 'yes')
time.sleep(1)
"#,
    );
}

#[test]
fn a_flood_of_requests_whose_answers_nobody_reads_stops_its_sender_alone() {
    while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session()
    deaf(t)
    def flood():
        for n in range(200000):
            if not send(t, b'\x62', chan.remote_chanid, 'env', True, 'KW_' + str(n % 10), 'x' * 200): return
            if not send(t, b'\x50', 'nonsense@example.com', True): return
            if not send(t, b'\x62', chan.remote_chanid, 'nonsense@example.com', True): return
    worker = threading.Thread(target=flood, daemon=True); worker.start(); worker.join(8)
    inner()
os._exit(0)
"#,
    );
}

#[test]
fn who_asks_for_everything_and_reads_nothing_holds_back_only_themselves() {
    while_alice_works(
        r#"
t = inner()
chans = [t.open_session() for _ in range(8)]
deaf(OUTER[-1])
for chan in chans:
    send(t, b'\x5d', chan.remote_chanid, 0x7fffffff)
    send(t, b'\x62', chan.remote_chanid, 'exec', False, 'head -c 40000000 /dev/zero')
time.sleep(6)
inner()
os._exit(0)
"#,
    );
}

#[test]
fn who_sends_on_while_keys_are_exchanged_is_disconnected() {
    while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session()
    # After its own KEXINIT a peer says nothing but key exchange (RFC 4253 §7.1).
    answers = t.packetizer.send_message
    t._send_kex_init()
    try:
        for n in range(100000): answers(msg(b'\x62', chan.remote_chanid, 'env', True, 'KW_A', 'x' * 1000))
    except Exception: pass
    gone(t)
    inner()
"#,
    );
}

#[test]
fn who_opens_channels_instead_of_answering_a_wish_for_new_keys_is_disconnected() {
    while_alice_works_with(
        "[transport]\nrekey_mb = 1\n",
        r#"
for where, t in both():
    chan = t.open_session(); chan.exec_command('cat > /dev/null' if where == 'inner' else 'ssh-keys list')
    asked = threading.Event(); read = t.packetizer.read_message
    def reads():
        kind, m = read()
        if kind == 20: asked.set()
        # What comes of the opens is nothing to it either.
        return (2, paramiko.Message()) if kind in (20, 91, 92, 99, 100) else (kind, m)
    t.packetizer.read_message = reads
    while not asked.is_set() and send(t, b'\x02', 'x' * 30000): pass
    for n in range(400000):
        if not send(t, b'\x5a', 'session', n, 1 << 20, 32768): break
    gone(t)
"#,
    );
}
