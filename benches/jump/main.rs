//! Keyward beside OpenSSH's own jump host: same client, same instance, same cipher, runs interleaved. Prints ratios.
//!
//! `cargo bench --bench jump` takes some minutes. `KEYWARD_BENCH_MB` (256) is the size of a bulk run in MiB,
//! `KEYWARD_BENCH_ROUNDS` (5) how many of each; `KEYWARD_BENCH_ONLY` leaves out what has not this text in its name.
//! The figures of the last run are in `target/jump-bench.json`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a benchmark fails by panicking, and shares its rig with the tests"
)]

mod measure;
#[path = "../../tests/stock/rig.rs"]
mod rig;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measure::{Host, Table, cpu_seconds, pss_kib};
use rig::{Rig, free_port, wait_for};

fn main() {
    // `cargo test --benches` passes --test or nothing of ours: a benchmark is no test.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let bench = Bench::new();
    let mut table = Table::read();
    for cipher in ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"] {
        bench.raw(&mut table, cipher, (&bench.rig, ""));
        bench.raw(&mut table, cipher, (&bench.counting, ", not hashed"));
        bench.bulk(&mut table, cipher);
    }
    if bench.wants("one byte there and back") {
        bench.round_trips(&mut table);
    }
    if bench.wants("ssh -J HOST true") {
        bench.logins(&mut table);
    }
    if bench.wants("memory") {
        bench.memory(&mut table);
    }
    table.print_and_write();
}

struct Bench {
    rig: Rig,
    /// Another Keyward, with `recording.forwards = "count"`.
    counting: Rig,
    /// OpenSSH's jump host, a server of its own beside the instance's.
    jump: Child,
    jump_port: u16,
    bytes: u64,
    rounds: usize,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.jump.kill().ok();
        self.jump.wait().ok();
    }
}

impl Bench {
    fn new() -> Self {
        let (rig, counting) = (Rig::with_alice(), Rig::with_alice_and("forwards = \"count\"\n"));
        let login = rig.login.clone();
        let forward =
            ["access", "allow", "--user", "alice", "--instance", "db-1", "--can", "forward", "--login"];
        for rig in [&rig, &counting] {
            rig.ok(&[&forward[..], &[&login]].concat());
        }
        fs::copy(rig.path("id_alice.pub"), rig.path("authorized_keys")).unwrap();
        let jump_port = free_port();
        let dir = rig.dir.path().display();
        let config = format!(
            "ListenAddress 127.0.0.1:{jump_port}\nHostKey {dir}/instance_key\nAuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nPermitRootLogin prohibit-password\nPidFile none\nMaxStartups 1000\nMaxSessions 1000\n"
        );
        fs::write(rig.path("jump_config"), config).unwrap();
        let log = fs::File::create(rig.path("jump.log")).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        let jump = command.args(["-D", "-e", "-f"]).arg(rig.path("jump_config")).stderr(log).spawn().unwrap();
        wait_for("the jump host", || std::net::TcpStream::connect(("127.0.0.1", jump_port)).is_ok());
        let from_env =
            |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
        let bytes = from_env("KEYWARD_BENCH_MB", 256) << 20;
        let rounds = usize::try_from(from_env("KEYWARD_BENCH_ROUNDS", 5)).unwrap();
        Self { rig, counting, jump, jump_port, bytes, rounds }
    }

    fn wants(&self, name: &str) -> bool {
        std::env::var("KEYWARD_BENCH_ONLY").map_or(true, |text| name.contains(&text))
    }

    fn pid(&self, host: Host) -> u32 {
        self.pid_of(host, &self.rig)
    }

    fn pid_of(&self, host: Host, rig: &Rig) -> u32 {
        match host {
            Host::Keyward => rig.pid(),
            Host::OpenSsh => self.jump.id(),
        }
    }

    /// A client that jumps through `host`. Keyward's code is given once, to a master connection.
    fn client(&self, host: Host, options: &[&str]) -> Command {
        let mut command = self.rig.client("ssh", "alice");
        command.arg("-q");
        for option in options {
            command.args(["-o", option]);
        }
        let (key, login) = (self.rig.path("id_alice"), &self.rig.login);
        let cipher =
            options.iter().find_map(|o| o.strip_prefix("Ciphers=")).unwrap_or("aes128-gcm@openssh.com");
        match host {
            Host::Keyward => {
                let config = self.rig.config("alice", "");
                let proxy =
                    format!("ProxyCommand=ssh -q -F {} -c {cipher} -W %h:22 bastion", config.display());
                command.args(["-o", &proxy]).arg("db-1");
            }
            Host::OpenSsh => {
                let proxy = format!(
                    "ProxyCommand=ssh -q -F none -c {cipher} -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                     -p {} -W 127.0.0.1:{} {login}@127.0.0.1",
                    key.display(),
                    self.jump_port,
                    self.rig.instance_port
                );
                command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
                command.args(["-o", &proxy]).arg(format!("{login}@instance"));
            }
        }
        command
    }

    /// `ssh -W` to `port`: a stream that is no SSH, which Keyward counts and hashes.
    fn stdio(&self, (host, rig): (Host, &Rig), cipher: &str, port: u16) -> Command {
        // OpenSSH's jump host knows this alice.
        let rig = if host == Host::Keyward { rig } else { &self.rig };
        let mut command = rig.client("ssh", "alice");
        command.args(["-q", "-c", cipher]);
        if host == Host::Keyward {
            command.args(["-W", &format!("db-1:{port}"), "bastion"]);
            return command;
        }
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-p", &self.jump_port.to_string(), "-W", &format!("127.0.0.1:{port}")]);
        command.arg(format!("{}@127.0.0.1", self.rig.login));
        command
    }

    fn raw(&self, table: &mut Table, cipher: &str, (rig, how): (&Rig, &str)) {
        let short = cipher.split('@').next().unwrap_or(cipher);
        for down in [true, false] {
            let name = format!("ssh -W {}{how}, {short}", if down { "down" } else { "up" });
            if !self.wants(&name) {
                continue;
            }
            let port = peer(down, self.bytes);
            let mut runs: [Vec<(f64, f64)>; 2] = Default::default();
            rig.recover("alice");
            for _ in 0..self.rounds {
                for (i, host) in Host::BOTH.into_iter().enumerate() {
                    let before = cpu_seconds(self.pid_of(host, rig));
                    let begun = Instant::now();
                    let mut client = self.stdio((host, rig), cipher, port);
                    let mut source = None;
                    if !down {
                        let size = self.bytes.to_string();
                        let mut head = Command::new("head");
                        let mut head =
                            head.args(["-c", &size, "/dev/zero"]).stdout(Stdio::piped()).spawn().unwrap();
                        client.stdin(head.stdout.take().unwrap());
                        source = Some(head);
                    }
                    assert!(client.stdout(Stdio::null()).status().unwrap().success(), "{host:?}");
                    if let Some(mut head) = source {
                        head.wait().unwrap();
                    }
                    runs[i].push(self.rate(self.pid_of(host, rig), begun, before));
                }
            }
            self.rates(table, &name, &runs);
        }
    }

    /// MB/s and CPU seconds of the jump for a GB.
    fn rate(&self, jump: u32, begun: Instant, before: f64) -> (f64, f64) {
        let seconds = begun.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_millis(300));
        let gb = self.bytes as f64 / 1e9;
        (gb * 1000.0 / seconds, (cpu_seconds(jump) - before) / gb)
    }

    fn rates(&self, table: &mut Table, name: &str, runs: &[Vec<(f64, f64)>; 2]) {
        let column = |i: usize, pick: fn(&(f64, f64)) -> f64| runs[i].iter().map(pick).collect::<Vec<f64>>();
        table.row(&format!("{name}, MB/s"), column(0, |r| r.0), column(1, |r| r.0));
        table.row(&format!("{name}, CPU s/GB of the jump"), column(0, |r| r.1), column(1, |r| r.1));
    }

    /// New recovery codes: a code is spent once.
    fn codes(&self) {
        self.rig.recover("alice");
    }

    fn bulk(&self, table: &mut Table, cipher: &str) {
        let option = format!("Ciphers={cipher}");
        let short = cipher.split('@').next().unwrap_or(cipher);
        for down in [true, false] {
            let name = format!("ssh -J {}, {short}", if down { "down" } else { "up" });
            if !self.wants(&name) {
                continue;
            }
            let mut runs: [Vec<(f64, f64)>; 2] = Default::default();
            self.codes();
            for _ in 0..self.rounds {
                for (i, host) in Host::BOTH.into_iter().enumerate() {
                    let before = cpu_seconds(self.pid(host));
                    let begun = Instant::now();
                    let mut client = self.client(host, &[&option]);
                    let mut source = None;
                    if down {
                        client.arg(format!("head -c {} /dev/zero", self.bytes)).stdout(Stdio::null());
                    } else {
                        let size = self.bytes.to_string();
                        let mut head = Command::new("head");
                        let mut head =
                            head.args(["-c", &size, "/dev/zero"]).stdout(Stdio::piped()).spawn().unwrap();
                        client.arg("cat > /dev/null").stdin(head.stdout.take().unwrap());
                        source = Some(head);
                    }
                    assert!(client.status().unwrap().success(), "{host:?}");
                    if let Some(mut head) = source {
                        head.wait().unwrap();
                    }
                    runs[i].push(self.rate(self.pid(host), begun, before));
                }
            }
            self.rates(table, &name, &runs);
        }
    }

    /// One byte through `cat` and back.
    fn round_trips(&self, table: &mut Table) {
        self.codes();
        let mut found: [(Vec<f64>, Vec<f64>); 2] = Default::default();
        for _ in 0..self.rounds {
            for (i, host) in Host::BOTH.into_iter().enumerate() {
                let mut client = self.client(host, &[]);
                let mut child =
                    client.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
                let mut micros = Vec::new();
                for turn in 0..600 {
                    let begun = Instant::now();
                    to.write_all(b"x").unwrap();
                    from.read_exact(&mut [0]).unwrap();
                    if turn >= 100 {
                        micros.push(begun.elapsed().as_secs_f64() * 1e6);
                    }
                }
                drop(to);
                child.wait().unwrap();
                micros.sort_by(f64::total_cmp);
                found[i].0.push(micros[micros.len() / 2]);
                found[i].1.push(micros[micros.len() * 99 / 100]);
            }
        }
        let [(a50, a99), (b50, b99)] = found;
        table.row("one byte there and back, p50, µs", a50, b50);
        table.row("one byte there and back, p99, µs", a99, b99);
    }

    /// Everything included: key, code, audit, tape, dial, command, close.
    fn logins(&self, table: &mut Table) {
        let mut found: [(Vec<f64>, Vec<f64>); 2] = Default::default();
        for _ in 0..self.rounds {
            self.codes();
            for (i, host) in Host::BOTH.into_iter().enumerate() {
                let (before, begun) = (cpu_seconds(self.pid(host)), Instant::now());
                for _ in 0..LOGINS {
                    assert!(self.client(host, &[]).arg("true").status().unwrap().success(), "{host:?}");
                }
                let seconds = begun.elapsed().as_secs_f64();
                std::thread::sleep(Duration::from_millis(500));
                let cpu = cpu_seconds(self.pid(host)) - before;
                found[i].0.push(seconds * 1000.0 / LOGINS as f64);
                found[i].1.push(cpu * 1000.0 / LOGINS as f64);
            }
        }
        let [(a, a_cpu), (b, b_cpu)] = found;
        table.row("ssh -J HOST true, whole, ms", a, b);
        table.row("CPU of the jump for one, ms", a_cpu, b_cpu);
    }

    fn memory(&self, table: &mut Table) {
        let mut found: [(Vec<f64>, Vec<f64>); 2] = Default::default();
        for (i, host) in Host::BOTH.into_iter().enumerate() {
            for session in [false, true] {
                self.codes();
                let before = pss_kib(self.pid(host));
                let mut clients: Vec<Child> = Vec::new();
                for number in 0..HELD {
                    if number % CODES == 0 {
                        self.codes();
                    }
                    let mut client = if session { self.client(host, &[]) } else { self.idle(host) };
                    if session {
                        client.arg("echo up; sleep 600").stdout(Stdio::piped());
                    } else {
                        client.stdout(Stdio::null());
                    }
                    let mut child = client.spawn().unwrap();
                    match &mut child.stdout {
                        Some(out) => out.read_exact(&mut [0; 3]).unwrap(),
                        None => std::thread::sleep(Duration::from_millis(700)),
                    }
                    clients.push(child);
                }
                std::thread::sleep(Duration::from_secs(3));
                let each = (pss_kib(self.pid(host)) as f64 - before as f64) / HELD as f64;
                if session { &mut found[i].1 } else { &mut found[i].0 }.push(each);
                for mut client in clients {
                    client.kill().unwrap();
                    client.wait().unwrap();
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let [(a, a_live), (b, b_live)] = found;
        table.row("memory of an idle connection, PSS KiB", a, b);
        table.row("memory of a live ssh -J, PSS KiB", a_live, b_live);
    }

    fn idle(&self, host: Host) -> Command {
        let mut command = self.rig.client("ssh", "alice");
        command.args(["-q", "-N"]);
        if host == Host::Keyward {
            command.arg("bastion");
            return command;
        }
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-p", &self.jump_port.to_string()]).arg(format!("{}@127.0.0.1", self.rig.login));
        command
    }
}

const LOGINS: usize = 8;
/// Connections held at once.
const HELD: usize = 60;
/// Recovery codes a user has.
const CODES: usize = 10;

/// A TCP peer that sends `bytes` to whoever connects, or reads all there is.
fn peer(sends: bool, bytes: u64) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if sends {
                std::io::copy(&mut std::io::repeat(0).take(bytes), &mut stream).ok();
            } else {
                std::io::copy(&mut stream, &mut std::io::sink()).ok();
            }
        }
    });
    port
}
