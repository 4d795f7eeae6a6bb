//! Somebody whose messages come in an order that no client has, at every stage of both connections: ignored, refused or cut off, as the
//! RFCs have it; never a panic, never a right, and alice never notices.

use crate::greed::while_alice_works;

#[test]
fn a_login_after_the_login_changes_nothing() {
    let out = while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session(); said = tap(t)
    name = USER if where == 'outer' else LOGIN
    for _ in range(3):
        # RFC 4252 §5.1: silently ignored once somebody is logged in.
        for user in (name, 'alice', 'root'):
            send(t, b'\x32', user, 'ssh-connection', 'none')
            send(t, b'\x32', user, 'ssh-connection', 'publickey', False, 'ssh-ed25519', KEY.asbytes())
            send(t, b'\x32', user, 'ssh-connection', 'password', False, 'x')
            send(t, b'\x32', user, 'ssh-connection', 'keyboard-interactive', '', '')
        send(t, b'\x3d', 1, '000000')
        send(t, b'\x05', 'ssh-userauth')
        send(t, b'\x05', 'ssh-connection')
    send(t, b'\x50', 'last@example.com', True)
    wait(lambda: 82 in said)
    print(where, t.is_active(), sorted({kind for kind in said if 50 <= kind < 80}))
"#,
    );
    assert_eq!(out, "inner True []\nouter True []\n");
}

#[test]
fn what_comes_before_its_time_ends_the_connection() {
    while_alice_works(
        r#"
def packet(*parts):
    body = msg(*parts).asbytes(); padding = 8 - (5 + len(body)) % 8; padding += 8 if padding < 4 else 0
    return struct.pack('>IB', 1 + len(body) + padding, padding) + body + bytes(padding)
def ended(s):
    s.settimeout(20)
    try:
        while s.recv(65536): pass
    except ConnectionError: pass
# In the clear, before any key exchange: strict key exchange takes nothing else first (CVE-2023-48795).
for message in (packet(b'\x32', USER, 'ssh-connection', 'none'), packet(b'\x05', 'ssh-userauth'), packet(b'\x5a', 'session', 0, 9, 9),
                packet(b'\x50', 'x', True), packet(b'\x15'), packet(b'\x1e', 'x' * 32), packet(b'\x34'), packet(b'\xff')):
    s = socket.create_connection(('127.0.0.1', PORT)); s.sendall(b'SSH-2.0-x\r\n' + message); ended(s)
# Encrypted, before the login: a channel and what belongs to one; what a server says.
for message in ((b'\x62', 0, 'exec', True, 'id'), (b'\x5d', 0, 9), (b'\x60', 0), (b'\x61', 0), (b'\x5b', 0, 0, 9, 9), (b'\x63', 0), (b'\x51',),
                (b'\x3c', 'x', '', '', 0)):
    t = connect(); send(t, *message); send(t, b'\x05', 'ssh-userauth'); time.sleep(0.1); send(t, *message)
    try: t.open_session(timeout=1); sys.exit('a channel')
    except Exception: pass
    t.close()
"#,
    );
}

#[test]
fn a_channel_that_is_closed_stays_closed_and_its_number_opens_nothing() {
    let out = while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session(); n = chan.remote_chanid
    if where == 'inner':
        # After its end a channel takes no data; after its close it is none.
        chan.exec_command('cat; echo over'); send(t, b'\x60', n); send(t, b'\x5e', n, 'late'); send(t, b'\x60', n)
        print(chan.makefile().read().decode().strip())
    said = tap(t)
    for _ in range(2): send(t, b'\x61', n)
    for other in (n, 999, 0xffffffff):
        for message in ((b'\x5e', other, 'late'), (b'\x5f', other, 1, 'late'), (b'\x62', other, 'exec', True, 'id'), (b'\x62', other, 'shell', False),
                        (b'\x5d', other, 0xffffffff), (b'\x60', other), (b'\x61', other), (b'\x63', other), (b'\x64', other)):
            send(t, *message)
    # The client's own number again, of a channel that is closed, and twice at once.
    before = said.count(91)
    for _ in range(3): send(t, b'\x5a', 'session', 40, 1 << 20, 32768)
    wait(lambda: said.count(91) == before + 3)
    send(t, b'\x50', 'last@example.com', True); wait(lambda: 82 in said)
    print(where, t.is_active(), said.count(91) - before, said.count(99), said.count(100))
"#,
    );
    assert_eq!(out, "over\ninner True 3 0 0\nouter True 3 0 0\n");
}

#[test]
fn windows_and_packets_of_any_size_are_taken_as_they_are() {
    let out = while_alice_works(
        r#"
for where, t in both():
    chan = t.open_session(); n = chan.remote_chanid
    # RFC 4254 §5.2: no window is larger than 2^32 - 1.
    for _ in range(10): send(t, b'\x5d', n, 0xffffffff)
    if where == 'inner':
        chan.exec_command('head -c 3000000 /dev/zero'); print(len(chan.makefile().read()))
    # It knows nothing of the channels that are opened by hand.
    said = tap(t); SWALLOWED.update(range(93, 99))
    # As large a packet as there is a number for, with all the window: what comes is what this client asked for.
    send(t, b'\x5a', 'session', 41, 0xffffffff, 0xffffffff); wait(lambda: 91 in said)
    number = max(n, 0) + 1
    for other in range(number, number + 3): send(t, b'\x62', other, 'exec', True, 'head -c 3000000 /dev/zero')
    # All data of the first channel came before its end.
    if where == 'inner': wait(lambda: 94 in said); assert 94 in said, said
    # No window at all, and a little more of it each time.
    send(t, b'\x5a', 'session', 42, 0, 1)
    for _ in range(20): send(t, b'\x5d', number + 1, 1)
    send(t, b'\x50', 'last@example.com', True); wait(lambda: 82 in said)
    print(where, t.is_active()); SWALLOWED.difference_update(range(93, 99))
"#,
    );
    assert_eq!(out, "3000000\ninner True\nouter True\n");
}

#[test]
fn a_channel_of_an_unknown_kind_is_refused_once() {
    let out = while_alice_works(
        r#"
for where, t in both():
    said = tap(t)
    kinds = ['nonsense@example.com', 'tun@openssh.com', 'x11', 'auth-agent@openssh.com', '', 'forwarded-tcpip', 'forwarded-streamlocal@openssh.com']
    for kind in kinds:
        more = ['127.0.0.1', 1, '127.0.0.1', 1] if kind == 'forwarded-tcpip' else ['127.0.0.1', 1] if kind == 'x11' else ['/x', ''] if kind.startswith('forwarded-s') else []
        send(t, b'\x5a', kind, 9, 1 << 20, 32768, *more)
        wait(lambda: 92 in said); assert 92 in said, kind
        # Another refusal of it would come before the answer to this.
        send(t, b'\x50', 'next@example.com', True); wait(lambda: 82 in said)
        assert said.count(92) == 1, kind
        said.clear()
    print(where, t.is_active())
"#,
    );
    assert_eq!(out, "inner True\nouter True\n");
}

#[test]
fn messages_that_end_too_soon_or_too_late_end_their_connection_alone() {
    while_alice_works(
        r#"
whole = [(b'\x5a', 'session', 9, 1 << 20, 32768), (b'\x62', 0, 'exec', True, 'true'), (b'\x62', 0, 'pty-req', True, 'vt', 80, 24, 0, 0, 'x'), (b'\x5d', 0, 9),
         (b'\x5e', 0, 'x'), (b'\x50', 'tcpip-forward', True, 'x', 1), (b'\x5a', 'direct-tcpip', 9, 9, 9, 'db-1', 22, 'x', 1), (b'\x5b', 0, 0, 9, 9), (b'\x5c', 0, 1, 'x', 'y')]
import random
random.seed(7)
keep = outer()
def at(where):
    # One code for all of it: each connection to the instance is cut off by itself.
    if where == 'outer': return connect()
    chan = keep.open_channel('direct-tcpip', ('db-1', 22), ('127.0.0.1', 1)); t = paramiko.Transport(chan); t.start_client(timeout=20)
    t.auth_publickey(LOGIN, KEY); t.open_session()
    return t
for where in ('inner', 'outer'):
    for parts in whole:
        body = msg(*parts).asbytes()
        for bad in (body[:-1], body[:1], body + b'x', body[:1] + b'\xff' * 8, body[:5] + b'\xff\xff\xff\xff' + body[9:]):
            t = at(where); m = paramiko.Message(); m.add_bytes(bad)
            try: t._send_message(m)
            except Exception: pass
            t.close()
print(keep.is_active())
"#,
    );
}

#[test]
fn garbage_under_every_cipher_and_mac_ends_its_connection_alone() {
    let out = while_alice_works(
        r#"
import itertools
def begun(cipher, mac):
    t = paramiko.Transport(socket.create_connection(('127.0.0.1', PORT)))
    t._preferred_ciphers, t._preferred_macs = (cipher,), (mac,)
    t.start_client(timeout=20)
    assert (t.local_cipher, t.local_mac) == (cipher, mac)
    return t
ciphers = ['aes128-ctr', 'aes256-ctr']
macs = [f'hmac-sha2-{bits}{kind}' for bits in (256, 512) for kind in ('', '-etm@openssh.com')]
for pair in itertools.product(ciphers, macs):
    # It works, and then a byte is changed, a length is huge, or all of it is noise.
    t = begun(*pair); assert t.auth_publickey(USER, KEY) == ['keyboard-interactive']; t.close()
    for bad in (b'', bytes(64), b'\xff' * 64, b'\0\0\0\x01' * 20, b'\0\0\0\x10' + bytes(60), b'\0\4\0\0' + bytes(60)):
        # So much that whatever length is read there is reached.
        t = begun(*pair)
        try: t.sock.sendall(bad + os.urandom(300000))
        except OSError: pass
        gone(t)
    t = begun(*pair); sock = t.sock; t.packetizer.write_all = lambda data: sock.sendall(data[:-1] + bytes([data[-1] ^ 1]))
    send(t, b'\x05', 'ssh-userauth'); gone(t)
print('ended')
"#,
    );
    assert_eq!(out, "ended\n");
}
