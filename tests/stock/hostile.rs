//! An instance that lies, stalls, floods and opens channels of its own: its user's session ends or goes on, the user gets nothing that she
//! did not ask for, and nobody else notices.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::forward::Ended;
use crate::rig::{MSG, Rig, free_port, text, wait_for};

/// A bastion with `db-1`, and `evil`, a made-up sshd that does `program`; alice may do all there that `can` says.
fn with_evil(program: &str, can: &str) -> (Rig, Ended) {
    with_evil_and("", program, can)
}

/// The same, with more lines in the configuration file.
pub fn with_evil_and(lines: &str, program: &str, can: &str) -> (Rig, Ended) {
    let rig = Rig::with_alice_and(lines);
    let port = free_port();
    fs::write(rig.path("evil.py"), format!("import paramiko\n{MSG}{EVIL}{program}\nserve()\n")).unwrap();
    let log = fs::File::create(rig.path("evil.log")).unwrap();
    let mut evil = Command::new("/usr/bin/python3");
    evil.arg(rig.path("evil.py")).arg(port.to_string()).current_dir(rig.dir.path()).stdin(Stdio::null());
    let evil = Ended(evil.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    wait_for("evil", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let (address, key) = (format!("127.0.0.1:{port}"), rig.path("instance_key.pub"));
    let key = ["--login", &rig.login, "--host-key", key.to_str().unwrap()];
    rig.ok(&[&["instances", "add", "evil", "--address", &address][..], &key].concat());
    let may = ["--login", &rig.login, "--can", can];
    rig.ok(&[&["access", "allow", "--user", "alice", "--instance", "evil"][..], &may].concat());
    (rig, evil)
}

/// `serve()` takes one connection after another; `act(t, chan, command)` is what a command does. `said` are the kinds of answers.
const EVIL: &str = r#"
import os, socket, sys, threading, time
HOST_KEY = paramiko.Ed25519Key.from_private_key_file('instance_key')
class Evil(paramiko.ServerInterface):
    def __init__(self, t): self.t = t
    def get_allowed_auths(self, user): return 'publickey'
    def check_auth_publickey(self, user, key): open('in', 'w').close(); return paramiko.AUTH_SUCCESSFUL
    def check_channel_request(self, kind, number): return paramiko.OPEN_SUCCEEDED
    def check_channel_forward_agent_request(self, chan): return True
    def check_channel_exec_request(self, chan, command):
        threading.Thread(target=act, args=(self.t, chan, command.decode()), daemon=True).start()
        return True
def on(t, kind, what):
    # What paramiko does with a kind of message, replaced on this connection.
    t._handler_table = dict(t._handler_table)
    t._handler_table[kind] = what
def prepare(t): pass
def greet(sock):
    t = paramiko.Transport(sock)
    t.add_server_key(HOST_KEY)
    read = t.packetizer.read_message; t.said = []
    def reads():
        kind, m = read(); t.said.append(kind)
        # Answers to what paramiko did not ask would end it.
        return (2, paramiko.Message()) if kind in (81, 82, 91, 92) else (kind, m)
    t.packetizer.read_message = reads
    prepare(t)
    try: t.start_server(server=Evil(t))
    except Exception as e: print(e, file=sys.stderr)
def serve():
    server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
    held = []
    while True:
        sock, _ = server.accept(); held.append(sock)
        threading.Thread(target=greet, args=(sock,), daemon=True).start()
def send(t, *parts):
    try: t._send_message(msg(*parts)); return True
    except Exception: return False
def wait(done):
    end = time.time() + 45
    while not done() and time.time() < end: time.sleep(0.02)
"#;

/// What the Python programs of the user begin with: `evil()` is a connection to the instance, `said` the kinds of what came.
pub const USER: &str = r#"
said = []
def evil():
    OUTER.append(outer())
    t = paramiko.Transport(OUTER[-1].open_channel('direct-tcpip', ('evil', 22), ('127.0.0.1', 1)))
    read = t.packetizer.read_message
    def reads():
        kind, m = read(); said.append(kind)
        return (2, paramiko.Message()) if kind in (81, 82) else (kind, m)
    t.packetizer.read_message = reads
    t.start_client(timeout=20); t.auth_publickey(LOGIN, KEY)
    return t
def run(t, command):
    chan = t.open_session(timeout=20); chan.settimeout(20); chan.exec_command(command)
    return chan
def word(chan, text):
    chan.sendall(text); return chan.recv(100).decode()
def wait(done):
    end = time.time() + 45
    while not done() and time.time() < end: time.sleep(0.02)
"#;

#[test]
fn an_instance_that_is_slow_to_listen_holds_back_nothing_else() {
    let slow = r#"
# It answers what it was asked to listen on only when it is told to, on another channel.
told = threading.Event(); asked = []
def prepare(t):
    on(t, 80, lambda self, m: asked.append(1))
def act(t, chan, command):
    while word := chan.recv(100):
        if word == b'answer': told.set(); send(t, b'\x51')
        chan.sendall(word + str(len(asked)).encode())
"#;
    let (rig, _evil) = with_evil(slow, "exec,forward");
    let out = rig.paramiko(
        "alice",
        &format!(
            "{USER}{}",
            r#"
t = evil(); chan = run(t, 'x')
print(word(chan, 'before'))
t._send_message(msg(b'\x50', 'tcpip-forward', True, '127.0.0.1', 4444))
t._send_message(msg(b'\x50', 'keepalive@openssh.com', True))
# A channel that is open, one that is opened, and no answer yet.
wait(lambda: word(chan, 'meanwhile').endswith('1'))
print(word(run(t, 'y'), 'another'), [kind for kind in said if kind in (81, 82)])
word(chan, 'answer')
wait(lambda: len([kind for kind in said if kind in (81, 82)]) == 2)
print([kind for kind in said if kind in (81, 82)])
"#
        ),
    );
    assert_eq!(out, "before0\nanother1 []\n[81, 82]\n");
}

#[test]
fn who_asks_on_and_on_behind_an_answer_that_does_not_come_is_disconnected() {
    let silent =
        "def prepare(t): on(t, 80, lambda self, m: None)\ndef act(t, chan, command): chan.sendall(b'up')";
    let (rig, _evil) = with_evil(silent, "exec,forward");
    let out = rig.paramiko(
        "alice",
        &format!(
            "{USER}{}",
            r#"
t = evil(); print(run(t, 'x').recv(2).decode())
t._send_message(msg(b'\x50', 'tcpip-forward', True, '127.0.0.1', 4444))
def asks(count):
    try:
        for _ in range(count): t._send_message(msg(b'\x50', 'nonsense@example.com', True))
    except Exception: pass
# As many as a client may have under way, and then more.
asks(500); print(word(run(t, 'y'), '')); asks(2000)
wait(lambda: not t.is_active()); print(t.is_active(), OUTER[-1].is_active())
"#
        ),
    );
    assert_eq!(out, "up\nup\nFalse True\n");
}

#[test]
fn an_instance_that_never_answers_a_dial_stalls_no_other_channel_of_its_connections() {
    let (rig, _evil) = with_evil("def greet(sock): time.sleep(60)", "exec,forward");
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = ["--login", &rig.login, "--can", "exec,forward"];
    rig.ok(&[&["access", "allow", "--user", "alice", "--instance", "db-1"][..], &forward].concat());
    let out = rig.paramiko(
        "alice",
        &format!(
            "{USER}MUTE = {}{}",
            mute.local_addr().unwrap().port(),
            r#"
import threading
t = inner(); chan = run(t, 'cat')
waiting = []
def wait_at_evil(through):
    e = paramiko.Transport(through.open_channel('direct-tcpip', ('evil', 22), ('127.0.0.1', 1)))
    e.start_client(timeout=20); e.auth_publickey(LOGIN, KEY)
    def opens():
        waiting.append(e)
        try: e.open_session(timeout=60)
        except Exception: pass
        waiting.remove(e)
    threading.Thread(target=opens, daemon=True).start()
# In the outer connection, and in the session on db-1; and a port there that says nothing.
wait_at_evil(OUTER[-1]); wait_at_evil(t)
t.open_channel('direct-tcpip', ('127.0.0.1', MUTE), ('127.0.0.1', 1)).sendall('x')
wait(lambda: len(waiting) == 2)
print(word(chan, 'open'), word(run(t, 'cat'), 'opened'))
desk = run(OUTER[-1], 'whoami'); desk.makefile().read(); print(desk.recv_exit_status() >= 0)
print(len(waiting), flush=True)
os._exit(0)
"#
        ),
    );
    assert_eq!(out, "open opened\nTrue\n2\n");
}

#[test]
fn an_instance_is_not_even_asked_to_listen_without_the_capability() {
    let (rig, _evil) = with_evil(
        r#"
asked = []
def prepare(t):
    on(t, 80, lambda self, m: asked.append(1))
def act(t, chan, command):
    while word := chan.recv(100): chan.sendall(word + str(len(asked)).encode())
"#,
        "exec",
    );
    let out = rig.paramiko(
        "alice",
        &format!(
            "{USER}{}",
            r#"
t = evil(); chan = run(t, 'x')
t._send_message(msg(b'\x50', 'tcpip-forward', True, '127.0.0.1', 4444))
t._send_message(msg(b'\x50', 'streamlocal-forward@openssh.com', True, '/tmp/never'))
wait(lambda: said.count(82) == 2)
print(said.count(81), said.count(82), word(chan, 'asked'))
"#
        ),
    );
    assert_eq!(out, "0 2 asked0\n");
}

#[test]
fn what_an_instance_opens_unasked_is_refused_once_each_and_what_was_asked_for_comes() {
    let (rig, _evil) = with_evil(
        r#"
def act(t, chan, command):
    # It agrees to listen by itself.
    def opens(kind, *parts):
        before = t.said.count(91) + t.said.count(92)
        send(t, b'\x5a', kind, 7, 1 << 20, 32768, *parts)
        wait(lambda: t.said.count(91) + t.said.count(92) > before)
    def tcp(port): opens('forwarded-tcpip', '127.0.0.1', port, '127.0.0.1', 1)
    while word := chan.recv(100).decode():
        t.said.clear()
        if word == 'unasked':
            tcp(4444); opens('forwarded-streamlocal@openssh.com', '/tmp/x', ''); opens('auth-agent@openssh.com')
            opens('x11', '127.0.0.1', 1); opens('session'); opens('direct-tcpip', 'h', 1, 'h', 1); opens('nonsense@example.com')
        elif word == 'asked': tcp(4444)
        elif word == 'other': tcp(4445)
        elif word == 'agent': opens('auth-agent@openssh.com')
        # A second answer to one of them would come before that to this.
        send(t, b'\x50', 'last@example.com', True); wait(lambda: 82 in t.said)
        chan.sendall(f'{t.said.count(91)} opened, {t.said.count(92)} refused')
def prepare(t):
    def answers(self, m):
        if m.get_text() == 'tcpip-forward': send(self, b'\x51')
    on(t, 80, answers)
"#,
        "exec,forward,agent",
    );
    let out = rig.paramiko(
        "alice",
        &format!(
            "{USER}{}",
            r#"
t = evil(); chan = run(t, 'x')
opened = lambda: said.count(90)
print(word(chan, 'unasked'), opened())
t._send_message(msg(b'\x50', 'tcpip-forward', True, '127.0.0.1', 4444)); wait(lambda: 81 in said)
print(word(chan, 'other'), opened())
word(chan, 'asked'); print(opened())
print(word(chan, 'agent'), opened())
lent = t.open_session(); t._send_message(msg(b'\x62', lent.remote_chanid, 'auth-agent-req@openssh.com', True)); wait(lambda: 99 in said)
word(chan, 'agent'); print(opened())
"#
        ),
    );
    let said: Vec<&str> = out.lines().collect();
    // This client takes neither, but they come to it.
    assert_eq!(said, ["0 opened, 7 refused 0", "0 opened, 1 refused 0", "1", "0 opened, 1 refused 1", "2"]);
    let denied = rig.events("forward_denied");
    assert_eq!(denied.len(), 1, "told once: {denied:?}");
    assert!(denied[0]["reason"].as_str().unwrap().contains("asked for no such thing"), "{denied:?}");
}

pub fn works(alice: &mut Child) {
    alice.stdin.as_mut().unwrap().write_all(b"word").unwrap();
    let mut back = [0; 4];
    alice.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
    assert_eq!(&back, b"word");
}

#[test]
fn whatever_an_instance_sends_ends_its_own_session_at_most() {
    let (rig, _evil) = with_evil(MISBEHAVES, "exec");
    let mut ssh = rig.shared("ssh", "alice");
    let mut alice = ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    works(&mut alice);
    let before = rig.memory_kib();
    let config = rig.config("alice", &rig.master("bastion"));
    let commands = [
        "flood",
        "stderr",
        "globals",
        "twice",
        "after-close",
        "after-eof",
        "unknown",
        "answers",
        "window",
        "kexinit",
        "newkeys",
        "requests",
        "auth",
        "confirm",
        "garbage",
        "disconnect",
        "deaf",
    ];
    for command in commands {
        let mut ssh = Command::new("timeout");
        ssh.args(["--foreground", "60", "ssh", "-F"]).arg(&config).args(["-J", "bastion", "-o"]);
        ssh.arg(format!("User={}", rig.login)).args(["evil", command]).stdin(Stdio::null());
        let output = ssh.output().unwrap();
        let (code, out) = (output.status.code(), text(output.stdout));
        assert_ne!(code, Some(124), "{command}: it did not end; {}", text(output.stderr));
        match command {
            // The first word of an ending counts.
            "twice" => assert_eq!((code, out.as_str()), (Some(3), "said"), "{command}"),
            "unknown" | "answers" | "window" => {
                assert_eq!((code, out.as_str()), (Some(5), "fine"), "{command}")
            }
            _ => {}
        }
        let err = text(output.stderr);
        assert!(!err.contains('\u{1b}') && !err.contains('\u{7}'), "{command}: {err:?}");
        works(&mut alice);
    }
    let grown = rig.memory_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "the bastion grew by {grown} KiB");
    drop(alice.stdin.take());
    assert!(alice.wait().unwrap().success());
    rig.shared("ssh", "alice").args(["-O", "exit", "bastion"]).stderr(Stdio::null()).status().unwrap();
    let sessions = rig.ended_sessions();
    assert_eq!(sessions.len(), commands.len() + 1, "each is sealed");
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_connection_on_which_nothing_runs_ends_with_its_instance() {
    // It hangs up when there is a file.
    let (rig, _evil) = with_evil(
        r#"
def prepare(t):
    def watch():
        while not os.path.exists('go'): time.sleep(0.05)
        t.close()
    threading.Thread(target=watch, daemon=True).start()
"#,
        "exec,forward",
    );
    let mut idle = rig.client("ssh", "alice");
    idle.args(["-J", "bastion", "-N", "-o", &format!("User={}", rig.login), "evil"]);
    let mut idle = idle.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the login there", || rig.path("in").exists());
    fs::write(rig.path("go"), "").unwrap();
    wait_for("the client to end", || idle.try_wait().unwrap().is_some());
    let output = idle.wait_with_output().unwrap();
    let said = text(output.stderr);
    assert_eq!(output.status.code(), Some(255), "{said}");
    assert!(said.contains("evil closed the connection"), "{said}");
    let sessions = rig.ended_sessions();
    assert_eq!(sessions[0]["reason"], "the instance closed the connection", "{sessions:?}");
    // Who leaves by herself is told so.
    assert!(rig.ssh("alice", "true").status.success());
    let sessions = rig.ended_sessions();
    let other = sessions.iter().find(|s| s["instance"] == "db-1").unwrap();
    assert_eq!(other["reason"], "closed by the user", "{other}");
}

#[test]
fn a_connection_on_which_nothing_runs_ends_where_the_instance_is_not_reached() {
    let (rig, _evil) = with_evil("def greet(sock): sock.close()", "exec,forward");
    let mut idle = Command::new("timeout");
    idle.args(["30", "ssh", "-F"]).arg(rig.config("alice", "")).args(["-J", "bastion", "-N", "-o"]);
    idle.arg(format!("User={}", rig.login)).arg("evil").stdin(Stdio::null());
    let output = rig.asked(&mut idle, "alice");
    let said = text(output.stderr);
    assert_eq!(output.status.code(), Some(255), "{said}");
    assert!(said.contains("evil does not answer"), "{said}");
}

#[test]
fn whatever_an_instance_answers_to_a_login_lets_nobody_in_and_disturbs_nobody() {
    let (rig, _evil) = with_evil(ANSWERS, "exec");
    let mut ssh = rig.shared("ssh", "alice");
    let mut alice = ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    works(&mut alice);
    let config = rig.config("alice", &rig.master("bastion"));
    let modes = [
        "ok",
        "gone",
        "pk-ok",
        "question",
        "failures",
        "partial",
        "banners",
        "open",
        "global",
        "accept",
        "kexinit",
        "nonsense",
        "disconnect",
    ];
    for mode in modes {
        fs::write(rig.path("mode"), mode).unwrap();
        let mut ssh = Command::new("timeout");
        ssh.args(["--foreground", "60", "ssh", "-F"]).arg(&config).args(["-J", "bastion", "-o"]);
        ssh.arg(format!("User={}", rig.login)).args(["evil", "x"]).stdin(Stdio::null());
        let output = ssh.output().unwrap();
        let (code, err) = (output.status.code(), text(output.stderr));
        match mode {
            "ok" => assert_eq!((code, text(output.stdout)), (Some(7), "in".to_owned()), "{err}"),
            _ => {
                assert_eq!((code, output.stdout.len()), (Some(255), 0), "{mode}: {err}");
                assert!(err.contains("keyward: evil "), "{mode}: {err}");
            }
        }
        assert!(!err.contains('\u{1b}') && !err.contains('\u{7}') && err.len() < 1000, "{mode}: {err:?}");
        works(&mut alice);
    }
    // What the bastion calls itself there gives no version away.
    assert_eq!(fs::read_to_string(rig.path("version")).unwrap(), "SSH-2.0-Keyward");
    drop(alice.stdin.take());
    assert!(alice.wait().unwrap().success());
    rig.shared("ssh", "alice").args(["-O", "exit", "bastion"]).stderr(Stdio::null()).status().unwrap();
    assert_eq!(rig.ended_sessions().len(), modes.len() + 1);
    assert_eq!(rig.events("instance_unreachable").len(), modes.len() - 1);
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains("panicked") && !log.contains('\u{1b}'), "{log}");
    rig.ok(&["logs", "verify"]);
}

const ANSWERS: &str = r#"
def act(t, chan, command):
    chan.sendall(b'in'); chan.send_exit_status(7); chan.close()
def prepare(t):
    mode = open('mode').read(); read = t.packetizer.read_message
    def reads():
        kind, m = read()
        if kind != 50 or mode == 'ok': open('version', 'w').write(t.remote_version); return kind, m
        evil = '\x1b]0;evil\x07\x1b[2J'
        if mode == 'pk-ok': send(t, b'\x3c', 'ssh-ed25519', 'x' * 51)
        if mode == 'question': send(t, b'\x3c', evil, evil, '', 1, evil, True)
        if mode == 'failures':
            for _ in range(200): send(t, b'\x33', 'publickey,' * 100, False)
        if mode == 'partial':
            for _ in range(20): send(t, b'\x33', 'publickey', True)
        if mode == 'banners':
            for _ in range(200): send(t, b'\x35', evil * 2000, 'en')
        if mode == 'open': send(t, b'\x5a', 'session', 0, 1 << 20, 32768)
        if mode == 'global': send(t, b'\x50', 'tcpip-forward', True, '0.0.0.0', 0)
        if mode == 'accept':
            for _ in range(20): send(t, b'\x06', 'ssh-userauth'); send(t, b'\x06', 'ssh-connection')
        if mode == 'kexinit': send(t, b'\x14', 'x')
        if mode == 'nonsense': send(t, b'\xc8', 'x' * 30000)
        if mode == 'disconnect': send(t, b'\x01', 2, evil * 1000, 'en')
        t.sock.close()
        return 2, paramiko.Message()
    t.packetizer.read_message = reads
"#;

const MISBEHAVES: &str = r#"
def end(t, chan, status):
    send(t, b'\x62', chan.remote_chanid, 'exit-status', False, status)
    send(t, b'\x60', chan.remote_chanid); send(t, b'\x61', chan.remote_chanid)
def act(t, chan, command):
    n = chan.remote_chanid
    # Far beyond the window, unless all of it is taken at once and more granted.
    if command == 'flood':
        for _ in range(4000):
            if not send(t, b'\x5e', n, b'x' * 32000): break
        end(t, chan, 0)
    if command == 'stderr':
        for _ in range(4000):
            if not send(t, b'\x5f', n, 1, b'x' * 32000): break
        end(t, chan, 0)
    if command == 'globals':
        for _ in range(50000):
            if not send(t, b'\x50', 'nonsense@example.com', True): break
        end(t, chan, 0)
    if command == 'twice':
        send(t, b'\x5e', n, 'said')
        for status in (3, 4, 5): send(t, b'\x62', n, 'exit-status', False, status)
        send(t, b'\x62', n, 'exit-signal', False, 'KILL\x1b[31m', False, '\x1b]0;evil\x07', 'en')
        end(t, chan, 6)
    if command == 'after-close':
        end(t, chan, 0)
        for _ in range(100):
            send(t, b'\x5e', n, 'late'); send(t, b'\x62', n, 'exit-status', False, 9); send(t, b'\x60', n); send(t, b'\x61', n); send(t, b'\x5d', n, 9)
    if command == 'after-eof':
        send(t, b'\x60', n); send(t, b'\x5e', n, 'late'); end(t, chan, 0)
    if command == 'unknown':
        for other in (n + 1, 99, 0xffffffff):
            send(t, b'\x62', other, 'exit-status', False, 9); send(t, b'\x5e', other, 'x'); send(t, b'\x60', other); send(t, b'\x5d', other, 9)
            send(t, b'\x63', other); send(t, b'\x64', other); send(t, b'\x61', other)
        send(t, b'\x62', n, 'nonsense@example.com', True, 'x'); send(t, b'\xc7', 'x')
        send(t, b'\x5e', n, 'fine'); end(t, chan, 5)
    if command == 'answers':
        for _ in range(100): send(t, b'\x51'); send(t, b'\x52'); send(t, b'\x63', n)
        send(t, b'\x5e', n, 'fine'); end(t, chan, 5)
    if command == 'window':
        for _ in range(10): send(t, b'\x5d', n, 0xffffffff)
        send(t, b'\x5e', n, 'fine'); end(t, chan, 5)
    if command == 'kexinit': send(t, b'\x14', 'no key exchange')
    if command == 'requests':
        for _ in range(20000):
            send(t, b'\x62', n, 'xon-xoff', False, True); send(t, b'\x62', n, 'nonsense@example.com', True, 'x' * 1000)
        end(t, chan, 0)
    if command == 'newkeys': send(t, b'\x15'); end(t, chan, 0)
    if command == 'auth':
        send(t, b'\x34'); send(t, b'\x33', 'publickey', False); send(t, b'\x35', 'late', 'en'); send(t, b'\x06', 'ssh-userauth'); end(t, chan, 0)
    if command == 'confirm':
        for other in (n, n + 1, 77):
            send(t, b'\x5b', other, 5, 0xffffffff, 0xffffffff); send(t, b'\x5c', other, 1, 'no', 'en')
        end(t, chan, 0)
    if command == 'garbage': t.sock.sendall(os.urandom(100000))
    if command == 'disconnect': send(t, b'\x01', 2, '\x1b]0;evil\x07\x1b[2J' * 1000, 'en')
    if command == 'deaf':
        # Reads no more, and lets go after a while.
        send(t, b'\x5e', n, 'x'); time.sleep(1); t.sock.close()
"#;
