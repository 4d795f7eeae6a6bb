//! A bastion, a real sshd behind it and a user with an authenticator, all in one temporary folder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub port: u16,
    pub instance_port: u16,
    pub login: String,
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
        let dir = tempfile::tempdir().unwrap();
        let login = text(Command::new("id").arg("-un").output().unwrap().stdout).trim().to_owned();
        let mut rig =
            Self { dir, port: free_port(), instance_port: free_port(), login, daemon: None, sshd: None };
        let state = rig.path("bastion");
        rig.ok(&["init", "--dir", state.to_str().unwrap(), "--listen", &format!("127.0.0.1:{}", rig.port)]);
        if !lines.is_empty() {
            let file = rig.path("bastion/keyward.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, text + lines).unwrap();
        }
        rig.serve();
        rig
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.daemon = Some(self.keyward(&["serve"]).stderr(log).spawn().unwrap());
        wait_for("the daemon", || self.run(&["status"]).status.success());
    }

    /// `kill -9`: what is not durable is gone.
    pub fn kill_9(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn keyward(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.args(args).env("KEYWARD_CONFIG", self.path("bastion/keyward.toml"));
        command.stdin(Stdio::null()).env("NO_COLOR", "1");
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
        self.keygen(&format!("id_{name}"));
        self.ok(&["users", "add", name, "--role", "engineer"]);
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
        let config = self.path(&format!("ssh_config_{user}"));
        let known = self.path("known_hosts");
        // All the trust that a client needs: one line.
        keep(&known, &self.ok(&["ca", "show", "host"]));
        keep(
            &config,
            &format!(
                "Host *\n IdentityFile {key}\n IdentitiesOnly yes\n UserKnownHostsFile {known}\n \
                 StrictHostKeyChecking yes\nHost bastion\n HostName 127.0.0.1\n Port {port}\n User {user}\n\
                 Host db-*\n ProxyJump bastion\n User {login}\n",
                key = self.path(&format!("id_{user}")).display(),
                known = known.display(),
                port = self.port,
                login = self.login,
            ),
        );
        let mut command = Command::new(program);
        command.arg("-F").arg(config).stdin(Stdio::null());
        command.env("SSH_ASKPASS", self.path(&format!("code_{user}"))).env("SSH_ASKPASS_REQUIRE", "force");
        command
    }

    /// `ssh USER@bastion → db-1 COMMAND`.
    pub fn ssh(&self, user: &str, command: &str) -> Output {
        self.client("ssh", user).args(["db-1", command]).output().unwrap()
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
        let config = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {dir}/instance_key\nTrustedUserCAKeys {dir}/user_ca.pub\n\
             AuthorizedKeysFile {dir}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPidFile {dir}/sshd.pid\nAcceptEnv LANG LC_* KW_*\n\
             Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\n",
            self.instance_port
        );
        fs::write(self.path("sshd_config"), config).unwrap();
        if self.login == "root" {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let sshd = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
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

/// Writes a file unless it holds that already: a client that is starting may be reading it.
fn keep(path: &Path, content: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(content) {
        fs::write(path, content).unwrap();
    }
}

/// Waits up to 20 s; what is waited for is named in the panic.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waited 20 s for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn write(path: &Path, bytes: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    fs::write(path, &content).unwrap();
    content
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
