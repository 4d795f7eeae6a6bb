//! A bastion, a real sshd behind it and a user with an authenticator, all in one temporary folder.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub instance_port: u16,
    pub login: String,
    /// What every program is started with besides: another clock.
    pub world: Vec<(&'static str, String)>,
    daemon: Option<Child>,
    sshd: Option<Child>,
}

impl Rig {
    /// Bastion and instance `db-1` up, `alice` enrolled with key and code, and allowed on `db-1`.
    pub fn with_alice() -> Self {
        Self::with_alice_and("")
    }

    /// The same, with more lines in the configuration file.
    pub fn with_alice_and(lines: &str) -> Self {
        let mut rig = Self::bastion_and(lines);
        rig.start_sshd();
        rig.add_instance("db-1");
        rig.add_user("alice");
        let login = rig.login.clone();
        rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login]);
        rig
    }

    /// An initialised bastion that serves.
    pub fn bastion() -> Self {
        Self::bastion_and("")
    }

    /// The same, with more lines in the configuration file.
    pub fn bastion_and(lines: &str) -> Self {
        let mut rig = Self::unstarted(lines);
        rig.serve();
        rig
    }

    /// The same, but it does not serve yet.
    pub fn unstarted(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let login = text(Command::new("id").arg("-un").output().unwrap().stdout).trim().to_owned();
        let (port, instance_port, world) = (free_port(), free_port(), Vec::new());
        let rig = Self { dir, port, instance_port, login, world, daemon: None, sshd: None };
        let state = rig.path("bastion");
        rig.ok(&["init", "--dir", state.to_str().unwrap(), "--listen", &format!("127.0.0.1:{}", rig.port)]);
        if !lines.is_empty() {
            let file = rig.path("bastion/keyward.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, text + lines).unwrap();
        }
        rig
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&mut self) {
        self.serve_dying_at("nowhere");
    }

    /// The same, of a daemon that dies when it comes by `point` of `keystore::failpoint`, as if by `kill -9`.
    pub fn serve_dying_at(&mut self, point: &str) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.daemon =
            Some(self.keyward(&["serve"]).env("KEYWARD_TEST_DIE_AT", point).stderr(log).spawn().unwrap());
        wait_for("the daemon", || self.run(&["status"]).status.success());
    }

    /// Starts the daemon; a change that it begins waits for as long as the file that this returns lies there.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn serve_waiting_in_a_change(&mut self) -> PathBuf {
        let (held, log) =
            (self.path("held"), fs::File::options().create(true).append(true).open(self.path("log")));
        fs::write(&held, "").unwrap();
        let mut serve = self.keyward(&["serve"]);
        serve.env("KEYWARD_TEST_WAIT_AT", "change.begun").env("KEYWARD_TEST_WAIT_FOR", &held);
        self.daemon = Some(serve.stderr(log.unwrap()).spawn().unwrap());
        wait_for("the daemon", || self.run(&["status"]).status.success());
        held
    }

    /// SIGTERM, and no more.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn tell_to_stop(&self) {
        assert!(Command::new("kill").arg(self.pid().to_string()).status().unwrap().success());
    }

    /// Waits until the daemon has ended.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn stopped(&mut self) {
        assert!(self.daemon.take().unwrap().wait().unwrap().success());
    }

    /// SIGTERM: drains, signs the chain, ends.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
        daemon.wait().unwrap();
    }

    /// `kill -9`: what is not durable is gone.
    pub fn kill_9(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Waits until a daemon of [`Self::serve_dying_at`] is dead.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn died(&mut self) {
        let status = self.daemon.take().unwrap().wait().unwrap();
        assert_eq!(status.code(), None, "it ended of itself: {status}");
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Resident memory of the daemon.
    pub fn memory_kib(&self) -> u64 {
        let id = self.pid();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// SIGTERM: the daemon drains; how it ended.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().unwrap();
        let status = Command::new("kill").arg(daemon.id().to_string()).status().unwrap();
        assert!(status.success());
        daemon.wait().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn keyward(&self, args: &[&str]) -> Command {
        // Another build can be looked at with the same tests.
        let built = std::env::var_os("KEYWARD_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_keyward").into());
        let mut command = Command::new(built);
        command.args(args).env("KEYWARD_CONFIG", self.path("bastion/keyward.toml"));
        command.stdin(Stdio::null()).env("NO_COLOR", "1").envs(self.world.iter().cloned());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.keyward(args).output().unwrap()
    }

    /// Runs `keyward` and returns its stdout; it must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "keyward {args:?}: {}", text(output.stderr));
        text(output.stdout)
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(args);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// A user with a fresh key `id_NAME` and an authenticator `code_NAME` (a program that prints the code).
    pub fn add_user(&self, name: &str) {
        self.add_user_as(name, "engineer");
    }

    pub fn add_user_as(&self, name: &str, role: &str) {
        self.keygen(&format!("id_{name}"));
        // Several roles have commas between them.
        let roles = role.split(',').flat_map(|role| ["--role", role]);
        self.ok(&["users", "add", name].into_iter().chain(roles).collect::<Vec<_>>());
        let file = self.path(&format!("id_{name}.pub"));
        self.ok(&["ssh-keys", "add", "--user", name, "--file", file.to_str().unwrap()]);
        let enrolment = self.json(&["mfa", "enroll", name]);
        self.authenticator(name, &enrolment);
    }

    /// Ten new recovery codes for `code_NAME`.
    #[allow(dead_code, reason = "for the benchmark, which shares this rig")]
    pub fn recover(&self, name: &str) {
        let mut fresh = self.json(&["mfa", "recovery-codes", name]);
        fresh["secret"] = "".into();
        self.authenticator(name, &fresh);
        fs::write(self.path(&format!("count_{name}")), "1").unwrap();
    }

    /// Makes `code_NAME` an authenticator: the code of now at the first call, then recovery codes, since a code is
    /// spent once and a test would have to wait for the next.
    pub fn authenticator(&self, name: &str, enrolment: &serde_json::Value) {
        let secret = enrolment["secret"].as_str().unwrap();
        let mut body = format!(
            "n=$(cat {count} 2>/dev/null || echo 0)\necho $((n + 1)) > {count}\ncase $n in\n0) oathtool --totp --base32 {secret} ;;\n",
            count = self.path(&format!("count_{name}")).display(),
        );
        for (i, code) in enrolment["recovery_codes"].as_array().unwrap().iter().enumerate() {
            body.push_str(&format!("{}) echo {} ;;\n", i + 1, code.as_str().unwrap()));
        }
        body.push_str("*) exit 1 ;;\nesac");
        self.script(&format!("code_{name}"), &body);
        self.script(&format!("totp_{name}"), &format!("exec oathtool --totp --base32 {secret}"));
    }

    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    pub fn keygen(&self, name: &str) {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(self.path(name))
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// An engineer's stock client: one block, one line of trust, `code_USER` as her authenticator.
    pub fn client(&self, program: &str, user: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.config(user, "")).stdin(Stdio::null());
        self.asking(&mut command, user);
        command
    }

    /// The same with `ControlMaster` and `ControlPersist` for the bastion: one code, many connections.
    pub fn shared(&self, program: &str, user: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.config(user, &self.master("bastion"))).stdin(Stdio::null());
        self.asking(&mut command, user);
        command
    }

    /// A configuration block that keeps one connection to `hosts` and shares it.
    pub fn master(&self, hosts: &str) -> String {
        let path = self.path("cm-%C");
        let path = path.display();
        format!("Host {hosts}\n ControlMaster auto\n ControlPath {path}\n ControlPersist yes\n")
    }

    /// Lets `command` ask `code_USER` for the code.
    pub fn asking(&self, command: &mut Command, user: &str) {
        command.env("SSH_ASKPASS", self.path(&format!("code_{user}"))).env("SSH_ASKPASS_REQUIRE", "force");
        command.envs(self.world.iter().cloned());
    }

    /// The output of `command`, which may ask `code_USER`.
    pub fn asked(&self, command: &mut Command, user: &str) -> Output {
        self.asking(command, user);
        command.output().unwrap()
    }

    /// The `ssh_config` of `user`, with `first` before everything else; an own file for each `first`.
    pub fn config(&self, user: &str, first: &str) -> PathBuf {
        // All the trust that a client needs: one line.
        let known = self.path("known_hosts");
        if !known.exists() {
            fs::write(&known, self.ok(&["ca", "show", "host"])).unwrap();
        }
        let text = format!(
            "{first}Host *\n IdentityFile {key}\n IdentitiesOnly yes\n UserKnownHostsFile {known}\n \
             StrictHostKeyChecking yes\nHost bastion\n HostName 127.0.0.1\n Port {port}\n User {user}\n\
             Host db-* main-db\n ProxyJump bastion\n User {login}\n",
            key = self.path(&format!("id_{user}")).display(),
            known = known.display(),
            port = self.port,
            login = self.login,
        );
        let mut hasher = std::hash::DefaultHasher::new();
        text.hash(&mut hasher);
        let config = self.path(&format!("ssh_config_{user}_{:x}", hasher.finish()));
        if !config.exists() {
            let part = config.with_extension(format!("{:?}", std::thread::current().id()));
            fs::write(&part, text).unwrap();
            fs::rename(part, &config).unwrap();
        }
        config
    }

    /// `ssh USER@bastion → db-1 COMMAND`.
    pub fn ssh(&self, user: &str, command: &str) -> Output {
        self.client("ssh", user).args(["db-1", command]).output().unwrap()
    }

    /// Runs a Python program with Debian's paramiko, a client that does what the stock client cannot be made to do.
    /// It finds `connect()`, `outer()` (logged in), `inner()` (at the instance) and `msg()`. Returns its stdout.
    pub fn paramiko(&self, user: &str, program: &str) -> String {
        let file = self.path(&format!("program_{:?}.py", std::thread::current().id()));
        fs::write(&file, format!("{PARAMIKO}{MSG}{program}")).unwrap();
        // Debian's own interpreter: that is where Debian's package is.
        let mut python = Command::new("timeout");
        python
            .args(["60", "/usr/bin/python3"])
            .arg(&file)
            .stdin(Stdio::null())
            .env("RIG", self.dir.path())
            .env("KEYWARD", env!("CARGO_BIN_EXE_keyward"))
            .env("PORT", self.port.to_string());
        let output = python.env("USER_NAME", user).env("LOGIN", &self.login).output().unwrap();
        assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
        text(output.stdout)
    }

    /// The sessions, once none is live.
    pub fn ended_sessions(&self) -> Vec<serde_json::Value> {
        let mut sessions = Vec::new();
        wait_for("the sessions to end", || {
            sessions = self.json(&["sessions", "list"]).as_array().unwrap().clone();
            !sessions.is_empty() && sessions.iter().all(|s| s["status"] != "live")
        });
        sessions
    }

    /// The audit events of this name.
    pub fn events(&self, name: &str) -> Vec<serde_json::Value> {
        let all: serde_json::Value =
            serde_json::from_str(&self.ok(&["logs", "export", "--start", "1h"])).unwrap();
        all.as_array().unwrap().iter().filter(|e| e["event"] == name).cloned().collect()
    }

    pub fn add_instance(&self, name: &str) {
        let address = format!("127.0.0.1:{}", self.instance_port);
        let key = self.path("instance_key.pub");
        let key = key.to_str().unwrap();
        self.ok(&[
            "instances",
            "add",
            name,
            "--address",
            &address,
            "--login",
            &self.login,
            "--host-key",
            key,
        ]);
    }

    /// A real sshd that trusts Keyward's user CA and nothing else.
    pub fn start_sshd(&mut self) {
        self.keygen("instance_key");
        fs::write(self.path("user_ca.pub"), self.ok(&["ca", "show", "user"])).unwrap();
        let dir = self.dir.path().display();
        // SHLVL keeps bash from reading ~/.bashrc, whose output and time are none of ours.
        let config = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {dir}/instance_key\nTrustedUserCAKeys {dir}/user_ca.pub\n\
             AuthorizedKeysFile {dir}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPidFile {dir}/sshd.pid\nAcceptEnv LANG LC_* KW_*\n\
             Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\nLogLevel VERBOSE\n\
             SetEnv SHLVL=2\nExposeAuthInfo yes\n",
            self.instance_port
        );
        fs::write(self.path("sshd_config"), config).unwrap();
        if self.login == "root" {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        self.restart_sshd();
    }

    /// The instance is down.
    #[allow(dead_code, reason = "for the tests, not for the benchmark, which shares this rig")]
    pub fn stop_sshd(&mut self) {
        let mut sshd = self.sshd.take().unwrap();
        sshd.kill().unwrap();
        sshd.wait().unwrap();
    }

    /// (Re)starts the instance on `sshd_config`, with a new log.
    pub fn restart_sshd(&mut self) {
        if let Some(mut old) = self.sshd.take() {
            old.kill().unwrap();
            old.wait().unwrap();
        }
        let sshd = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .envs(self.world.iter().cloned())
            .stderr(fs::File::create(self.path("sshd.log")).unwrap())
            .spawn()
            .unwrap();
        self.sshd = Some(sshd);
        wait_for("sshd", || TcpStream::connect(("127.0.0.1", self.instance_port)).is_ok());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for child in [self.daemon.take(), self.sshd.take()].iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking()
            && let Ok(log) = fs::File::open(self.path("log"))
        {
            for line in BufReader::new(log).lines().map_while(Result::ok).take(200) {
                eprintln!("keyward: {line}");
            }
        }
    }
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits up to a minute (machines are noisy); what is waited for is named in the panic.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn write(path: &Path, bytes: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    fs::write(path, &content).unwrap();
    content
}

/// A port that nobody listens on, and that neither another test of this process nor an outgoing connection (32768 and
/// up) is given before it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = std::process::id() as u16 % 128 * 90;
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A message of SSH written by hand: a byte, booleans, numbers and strings (RFC 4251 §5). For Python, after `import paramiko`.
pub const MSG: &str = r#"
def msg(*parts):
    m = paramiko.Message()
    for p in parts:
        if isinstance(p, bytes) and len(p) == 1: m.add_byte(p)
        elif isinstance(p, bool): m.add_boolean(p)
        elif isinstance(p, int): m.add_int(p)
        else: m.add_string(p)
    return m
"#;

/// What the programs of [`Rig::paramiko`] start with: a login, and a jump.
const PARAMIKO: &str = r#"
import os, socket, struct, subprocess, sys, time
import paramiko
D = os.environ['RIG']; PORT = int(os.environ['PORT']); USER = os.environ['USER_NAME']; LOGIN = os.environ['LOGIN']
KEY = paramiko.Ed25519Key.from_private_key_file(D + '/id_' + USER)
def code(): return subprocess.check_output([D + '/code_' + USER]).decode().strip()
def connect():
    t = paramiko.Transport(socket.create_connection(('127.0.0.1', PORT)))
    t.start_client(timeout=20)
    return t
def outer():
    t = connect()
    assert t.auth_publickey(USER, KEY) == ['keyboard-interactive']
    t.auth_interactive(USER, lambda title, instructions, prompts: [code()])
    return t
OUTER = []
def inner():
    OUTER.append(outer())
    chan = OUTER[-1].open_channel('direct-tcpip', ('db-1', 22), ('127.0.0.1', 1))
    t = paramiko.Transport(chan)
    t.start_client(timeout=20)
    t.auth_publickey(LOGIN, KEY)
    return t
"#;
