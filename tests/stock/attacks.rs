//! A peer that does not keep to the protocol: disconnected or refused, no login, no panic, and nobody else notices.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{Rig, text, wait_for};

/// alice works on `db-1` while others attack; what they may not reach.
struct Siege {
    rig: Rig,
    alice: Child,
}

impl Siege {
    /// With `config` added to the bastion's configuration.
    fn begin(config: &str) -> Self {
        let mut rig = Rig::with_alice();
        let file = rig.path("bastion/keyward.toml");
        fs::write(&file, fs::read_to_string(&file).unwrap() + config).unwrap();
        rig.kill_9();
        rig.serve();
        let mut ssh = rig.client("ssh", "alice");
        ssh.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut siege = Self { alice: ssh.spawn().unwrap(), rig };
        siege.alice_works();
        siege
    }

    fn alice_works(&mut self) {
        self.alice.stdin.as_mut().unwrap().write_all(b"word").unwrap();
        let mut back = [0; 4];
        self.alice.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
        assert_eq!(&back, b"word");
    }

    /// Nobody else logged in, nothing panicked, and alice's session never noticed. The next login works.
    fn end(mut self) {
        self.unharmed();
        assert_eq!(text(self.rig.ssh("alice", "echo reached").stdout), "reached\n");
    }

    /// The same where the attack got its source banned, from which alice comes too.
    fn alone(mut self) {
        self.unharmed();
    }

    fn unharmed(&mut self) {
        self.alice_works();
        assert_eq!(self.rig.events("ssh_login_succeeded").len(), 1, "alice's own login");
        let log = fs::read_to_string(self.rig.path("log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
        drop(self.alice.stdin.take());
        assert!(self.alice.wait().unwrap().success());
        wait_for("alice's session to end", || !self.rig.ended_sessions().is_empty());
        self.rig.ok(&["logs", "verify"]);
    }
}

/// What the Python programs below are made of: a connection whose messages are written by hand.
const BY_HAND: &str = r#"
def service(t):
    t._send_message(msg(b'\x05', 'ssh-userauth')); time.sleep(0.2)
def keyboard(t, user, submethods=''):
    t._send_message(msg(b'\x32', user, 'ssh-connection', 'keyboard-interactive', '', submethods))
def answer(t, code):
    t._send_message(msg(b'\x3d', 1, code))
def out(t):
    # No login: no channel comes of it, one way or the other.
    assert not t.is_authenticated()
    try: t.open_session(timeout=1)
    except Exception: return
    sys.exit('a channel')
def gone(t):
    end = time.time() + 5
    while t.is_active():
        if time.time() > end: sys.exit('still connected')
        time.sleep(0.05)
"#;

fn by_hand(siege: &Siege, program: &str) -> String {
    siege.rig.paramiko("alice", &format!("{BY_HAND}{program}"))
}

#[test]
fn an_offer_without_a_signature_proves_no_key() {
    let siege = Siege::begin("");
    by_hand(
        &siege,
        r#"
t = connect(); service(t)
t._send_message(msg(b'\x32', USER, 'ssh-connection', 'publickey', False, 'ssh-ed25519', KEY.asbytes()))
time.sleep(0.2); keyboard(t, USER); time.sleep(0.6); answer(t, code()); time.sleep(0.6)
out(t)
"#,
    );
    let failed = siege.rig.events("ssh_login_failed");
    assert!(failed.iter().any(|e| e["reason"] == "code before key"), "{failed:?}");
    siege.end();
}

#[test]
fn a_code_before_the_key_is_no_factor_and_stays_unspent() {
    let siege = Siege::begin("");
    let out = by_hand(
        &siege,
        r#"
t = connect(); service(t); c = code()
keyboard(t, USER); time.sleep(0.6); answer(t, c); time.sleep(0.6)
# The answer without a request counts as an attempt, and the key then asks for its code all the same.
try: print(t.auth_publickey(USER, KEY))
except Exception as e: print('refused')
out(t)
"#,
    );
    assert!(["['keyboard-interactive']\n", "refused\n"].contains(&out.as_str()), "{out}");
    siege.end();
}

#[test]
fn what_only_a_server_says_and_channels_before_the_login_end_the_connection() {
    let siege = Siege::begin("");
    by_hand(
        &siege,
        r#"
# SUCCESS, FAILURE, BANNER, SERVICE_ACCEPT, channel open, channel data, info response: before and after the service.
for first in (lambda t: None, service):
    for message in (msg(b'\x34'), msg(b'\x33', 'publickey', False), msg(b'\x35', 'x', 'en'), msg(b'\x06', 'ssh-userauth'),
                    msg(b'\x5a', 'session', 0, 1 << 20, 32768), msg(b'\x5e', 0, 'data')):
        t = connect(); first(t); t._send_message(message); gone(t)
# A global request opens nothing.
t = connect(); service(t); t._send_message(msg(b'\x50', 'tcpip-forward', True, '0.0.0.0', 0)); out(t)
"#,
    );
    siege.end();
}

#[test]
fn a_changed_user_name_voids_the_key() {
    let siege = Siege::begin("");
    siege.rig.add_user("bob");
    by_hand(
        &siege,
        r#"
# Between key and code; and between the prompt and its answer.
for between in (False, True):
    t = connect(); t.auth_publickey(USER, KEY); h = t.auth_handler
    h.auth_method = 'keyboard-interactive'
    def asked(title, instructions, prompts):
        keyboard(t, 'bob'); time.sleep(0.6); return [code()]
    h.interactive_handler = asked
    keyboard(t, USER if between else 'bob'); time.sleep(1.5)
    keyboard(t, USER); time.sleep(0.6); answer(t, code()); time.sleep(0.6)
    out(t)
"#,
    );
    let failed = siege.rig.events("ssh_login_failed");
    assert!(failed.iter().any(|e| e["reason"] == "user name changed"), "{failed:?}");
    siege.alone();
}

#[test]
fn ten_thousand_devices_are_one_prompt_and_wrong_codes_come_to_an_end() {
    let siege = Siege::begin("");
    let out = by_hand(
        &siege,
        r#"
t = connect(); t.auth_publickey(USER, KEY); h = t.auth_handler
h.auth_method = 'keyboard-interactive'; prompts = []
h.interactive_handler = lambda title, instructions, fields: (prompts.append(fields), ['000000'])[1]
for _ in range(20):
    if not t.is_active(): break
    h.auth_method = 'keyboard-interactive'
    try: keyboard(t, USER, 'pam,' * 10000)
    except Exception: break
    time.sleep(0.6)
gone(t)
print(len(prompts), prompts[0])
"#,
    );
    let (count, prompt) = out.split_once(' ').unwrap();
    assert!(count.parse::<u32>().unwrap() <= 10, "{out}");
    assert_eq!(prompt.trim(), "[('Verification code: ', False)]");
    siege.alone();
}

#[test]
fn an_unknown_user_sees_and_waits_as_a_known_one() {
    let siege = Siege::begin("");
    let out = by_hand(
        &siege,
        r#"
stranger = paramiko.Ed25519Key.from_private_key_file(D + '/instance_key')
def signed(user):
    t = connect(); start = time.time()
    try: t.auth_publickey(user, stranger); sys.exit('a login')
    except paramiko.BadAuthenticationType as e: said = str(e.allowed_types)
    except paramiko.AuthenticationException as e: said = str(e)
    return time.time() - start, said
rounds = [(signed('alice'), signed('nobody')) for _ in range(2)]
assert len({said for pair in rounds for _, said in pair}) == 1, rounds
print(min(a for (a, _), _ in rounds), min(b for _, (b, _) in rounds))
"#,
    );
    let times: Vec<f64> = out.split_whitespace().map(|t| t.parse().unwrap()).collect();
    let [known, unknown] = times.as_slice() else { panic!("{out}") };
    assert!((known - unknown).abs() < 0.1, "known {known} s, unknown {unknown} s");
    wait_for("the failures to be audited", || siege.rig.events("ssh_login_failed").len() == 4);
    let users = siege.rig.events("ssh_login_failed").iter().filter(|e| e["user"] == "nobody").count();
    assert_eq!(users, 2);
    siege.end();
}

/// Connects, says `bytes`, and returns how long the bastion kept the connection, at most `most`.
fn kept(rig: &Rig, bytes: &[u8], most: Duration) -> Duration {
    let start = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", rig.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.write_all(bytes).ok();
    let mut sink = [0; 4096];
    while start.elapsed() < most {
        match stream.read(&mut sink) {
            Ok(0) => return start.elapsed(),
            Err(error) if ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return start.elapsed();
            }
            Ok(_) | Err(_) => {}
        }
    }
    panic!("still connected after {most:?}, having said {} bytes", bytes.len())
}

#[test]
fn malformed_bytes_end_their_connection_and_no_other() {
    let siege = Siege::begin("[login]\nkey_secs = 5\nlogin_secs = 5\n");
    let packet = |length: u32, body: &[u8]| [&b"SSH-2.0-x\r\n"[..], &length.to_be_bytes(), body].concat();
    let random: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (bytes, soon) in [
        (vec![b'A'; 1 << 20], true),
        ([&b"SSH-2.0-"[..], &vec![b'x'; 1 << 20]].concat(), true),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false),
        (packet(0xffff_ffff, &[0; 64]), true),
        (packet(1 << 20, &[0; 64]), true),
        (packet(0, &[0; 64]), true),
        (packet(12, &[255; 64]), true),
        (packet(12, &[4, 20, 0, 0]), false),
        (packet(12, &[4, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), true),
        ([&b"SSH-2.0-x\r\n"[..], &random].concat(), true),
        (random.clone(), true),
        (vec![0; 4096], false),
    ] {
        let time = kept(&siege.rig, &bytes, Duration::from_secs(8));
        assert!(!soon || time < Duration::from_secs(3), "{time:?}: {:?}", &bytes[..20.min(bytes.len())]);
    }
    siege.end();
}

#[test]
fn a_silent_peer_and_one_that_trickles_are_gone_at_the_deadline() {
    let siege = Siege::begin("[login]\nkey_secs = 5\nlogin_secs = 6\n");
    let rig = &siege.rig;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let time = kept(rig, b"", Duration::from_secs(8));
            assert!(time > Duration::from_secs(4), "{time:?}");
        });
        scope.spawn(|| {
            let start = Instant::now();
            let mut stream = TcpStream::connect(("127.0.0.1", rig.port)).unwrap();
            while stream.write_all(b"S").is_ok() {
                assert!(start.elapsed() < Duration::from_secs(8), "a byte at a time keeps it open");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        // A key was proven in time; the code never comes.
        scope.spawn(|| {
            let program = "t = connect(); start = time.time(); t.auth_publickey(USER, KEY)\n\
                           while t.is_active(): time.sleep(0.05)\nprint(time.time() - start)";
            let time: f64 = rig.paramiko("alice", program).trim().parse().unwrap();
            assert!(time > 4.5 && time < 8.0, "{time}");
        });
    });
    siege.end();
}

#[test]
fn strangers_take_their_share_of_places_and_no_more() {
    let siege = Siege::begin("[limits]\nmax_startups = 4\nper_source = 3\n");
    let connect = || TcpStream::connect(("127.0.0.1", siege.rig.port)).unwrap();
    let greeted = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut version = [0; 8];
        stream.read_exact(&mut version).is_ok()
    };
    let mut held: Vec<TcpStream> = (0..3).map(|_| connect()).collect();
    assert!(held.iter_mut().all(greeted));
    assert!(!greeted(&mut connect()), "the fourth from one source");
    held.pop();
    wait_for("the place to be free again", || greeted(&mut connect()));
    drop(held);
    std::thread::sleep(Duration::from_millis(300));
    siege.end();
}

#[test]
fn who_tries_passwords_is_audited_and_kept_out_and_sees_what_everybody_sees() {
    let siege = Siege::begin("");
    let out = by_hand(
        &siege,
        r#"
for user in ('alice', 'nobody'):
    t = connect()
    for _ in range(2):
        try: t.auth_password(user, 'letmein', fallback=False); sys.exit('a login')
        except paramiko.BadAuthenticationType as e: print(user, e.allowed_types)
        except paramiko.AuthenticationException as e: print(user, e)
for n in range(40):
    try:
        t = connect(); t.auth_password('alice', 'letmein', fallback=False)
    except Exception as e: last = type(e).__name__
    if last == 'SSHException': break
print('banned' if last != 'BadAuthenticationType' else last)
"#,
    );
    let said: Vec<&str> = out.lines().collect();
    let of = |user: &str| said.iter().filter_map(|l| l.strip_prefix(user)).map(str::trim).collect::<Vec<_>>();
    assert_eq!(of("alice"), of("nobody"), "{out}");
    assert_eq!(of("alice")[0], "['publickey']");
    let failed = siege.rig.events("ssh_login_failed");
    for user in ["alice", "nobody"] {
        assert!(failed.iter().any(|e| e["user"] == user && e["reason"] == "a password"), "{failed:?}");
    }
    assert!(!siege.rig.events("source_banned").is_empty(), "{out}");
    siege.alone();
}

#[test]
fn a_wrong_signature_and_a_change_of_password_are_in_the_trail_and_a_right_one_is_not() {
    let rig = Rig::with_alice();
    rig.paramiko(
        "alice",
        r#"
class Forged(paramiko.Ed25519Key):
    def sign_ssh_data(self, data, algorithm=None):
        m = super().sign_ssh_data(data + b'x', algorithm) if algorithm else super().sign_ssh_data(data + b'x')
        return m
t = connect()
try: t.auth_publickey(USER, Forged.from_private_key_file(D + '/id_' + USER)); sys.exit('taken')
except paramiko.AuthenticationException: pass
t.close()
t = connect()
def changes(t, user):
    t._send_message(msg(b'\x05', 'ssh-userauth'))
    t._send_message(msg(b'\x32', user, 'ssh-connection', 'password', True, 'old', 'new'))
    time.sleep(1)
    t.close()
changes(t, USER)
# At the instance: another key first, which the change must not make forgotten.
OUTER.append(outer())
def at_instance():
    t = paramiko.Transport(OUTER[-1].open_channel('direct-tcpip', ('db-1', 22), ('127.0.0.1', 1)))
    t.start_client(timeout=20)
    return t
t = at_instance()
try: t.auth_publickey(LOGIN, paramiko.RSAKey.generate(2048)); sys.exit('taken')
except paramiko.AuthenticationException: pass
changes(t, LOGIN)
t = at_instance(); t.auth_publickey(LOGIN, KEY)
"#,
    );
    wait_for("the events", || rig.events("ssh_login_failed").len() == 3);
    let failed = rig.events("ssh_login_failed");
    let told: Vec<_> =
        failed.iter().map(|e| (e["reason"].as_str().unwrap(), e["user"].as_str().unwrap())).collect();
    let inner = "inner login to db-1 with a password";
    assert_eq!(told, [("wrong signature", "alice"), ("a password", "alice"), (inner, "alice")]);
    for with_key in [0, 2] {
        assert!(failed[with_key]["key"].as_str().unwrap().starts_with("SHA256:"), "{failed:?}");
    }
    assert_eq!(rig.events("ssh_login_succeeded").len(), 1);
}
