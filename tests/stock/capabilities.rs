//! Each capability on its own: an instance that gives it, beside instances that give each of the others; on a plain jump, on a jump inside a
//! session, and over shared connections. What is refused leaves nothing behind on the instance.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::forward::{Ended, service, talk};
use crate::rig::{Rig, free_port, text, wait_for, write};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    /// Through a session on `db-hop`.
    Nested,
    /// One connection to the bastion and one to each instance.
    Shared,
}

/// Instances, and what each gives.
const INSTANCES: [(&str, &[&str]); 5] = [
    ("db-shell", &["shell"]),
    ("db-exec", &["exec"]),
    ("db-sftp", &["sftp"]),
    ("db-forward", &["forward"]),
    ("db-agent", &["exec", "agent"]),
];

struct Ways {
    rig: Rig,
    way: Way,
    agent: PathBuf,
    _agent: Ended,
}

impl Ways {
    /// `robot`, a service user, may do on each instance what it gives; its key is in an agent.
    fn new(way: Way) -> Self {
        let mut rig = Rig::bastion();
        rig.start_sshd();
        let echo = fs::read_to_string(rig.path("sshd_config")).unwrap() + "Subsystem echo /bin/echo up-2\n";
        fs::write(rig.path("sshd_config"), echo).unwrap();
        rig.restart_sshd();
        rig.keygen("id_robot");
        rig.ok(&["users", "add", "robot", "--kind", "service", "--from", "127.0.0.0/8"]);
        let key = rig.path("id_robot.pub");
        rig.ok(&["ssh-keys", "add", "--user", "robot", "--file", key.to_str().unwrap()]);
        for (name, gives) in INSTANCES.into_iter().chain([("db-hop", &["exec"][..])]) {
            rig.add_instance(name);
            let may = ["--login", &rig.login, "--can", &gives.join(",")];
            rig.ok(&[&["access", "allow", "--user", "robot", "--instance", name][..], &may].concat());
        }
        let socket = rig.path("agent.sock");
        let agent = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Ended(agent.unwrap());
        wait_for("the agent", || socket.exists());
        let mut add = Command::new("ssh-add");
        add.arg("-q").arg(rig.path("id_robot")).env("SSH_AUTH_SOCK", &socket);
        assert!(add.status().unwrap().success());
        let ways = Self { rig, way, agent: socket, _agent: agent };
        if way == Way::Shared {
            for (name, _) in INSTANCES {
                // A master that lends the agent, as those that share it ask for.
                let mut master = ways.client("ssh");
                master.args(["-A", "-f", "-N", name]).stdout(Stdio::null()).stderr(Stdio::null());
                assert!(master.status().unwrap().success(), "{name}");
            }
        }
        ways
    }

    fn client(&self, program: &str) -> Command {
        let first = match self.way {
            Way::Shared => format!("{}{}", self.rig.master("bastion"), self.rig.master("db-*")),
            Way::Plain | Way::Nested => String::new(),
        };
        let mut command = Command::new("timeout");
        command.args(["--foreground", "30", program, "-F"]).arg(self.rig.config("robot", &first));
        if self.way == Way::Nested {
            command.args(["-J", &format!("bastion,{}@db-hop", self.rig.login)]);
        }
        command.env("SSH_AUTH_SOCK", &self.agent).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// What `command` says, given `input`.
    fn said(&self, mut command: Command, input: &str) -> String {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Who is refused does not read.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        text(child.wait_with_output().unwrap().stdout)
    }

    fn runs(&self, to: &str, args: &[&str], input: &str) -> bool {
        let mut ssh = self.client("ssh");
        ssh.args(args.iter().map(|arg| if *arg == "TO" { to } else { arg }));
        self.said(ssh, input).contains("up-2")
    }

    fn copies(&self, to: &str, program: &str, args: &[&str]) -> bool {
        let there = self.rig.path(&format!("there-{to}-{}", args.len()));
        let (here, target) = (self.rig.path("here"), format!("{to}:{}", there.display()));
        write(&here, 10_000);
        let mut copy = self.client(program);
        match program {
            "sftp" => {
                let batch = self.rig.path("batch");
                fs::write(&batch, format!("put {} {}\n", here.display(), there.display())).unwrap();
                copy.arg("-b").arg(batch).arg(to);
            }
            _ => drop(copy.args(args).arg(here).arg(target)),
        }
        let copied = copy.stdout(Stdio::null()).status().unwrap().success();
        assert_eq!(copied, there.exists(), "{program} to {to}: there is a file only where it went well");
        copied
    }

    /// `ssh -L` or `-R` with `spec`, until dropped; none if it is refused at once.
    fn forward(&self, to: &str, args: [&str; 2], up: impl Fn() -> bool) -> Option<Forwarding<'_>> {
        let mut ssh = self.client("ssh");
        if self.way == Way::Shared {
            ssh.args(["-O", "forward"]).args(args).arg(to);
            let granted = ssh.stdout(Stdio::null()).status().unwrap().success();
            return granted.then(|| Forwarding {
                ways: self,
                to: to.to_owned(),
                args: args.map(str::to_owned),
                child: None,
            });
        }
        ssh.args(["-N", "-o", "ExitOnForwardFailure=yes"]).args(args).arg(to);
        let mut child = ssh.spawn().unwrap();
        let mut over = false;
        wait_for("the forward", || {
            over = child.try_wait().unwrap().is_some();
            over || up()
        });
        let forwarding =
            Forwarding { ways: self, to: to.to_owned(), args: args.map(str::to_owned), child: Some(child) };
        (!over).then_some(forwarding)
    }

    fn local(&self, to: &str, target: &str) -> bool {
        let port = free_port();
        let spec = format!("127.0.0.1:{port}:{target}");
        let up = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let _forward = self.forward(to, ["-L", &spec], up).expect("what the client listens on by itself");
        talk(port) == "greeting\nhello"
    }

    fn remote_port(&self, to: &str) -> bool {
        let port = free_port();
        let spec = format!("127.0.0.1:{port}:127.0.0.1:{}", service());
        let up = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let forward = self.forward(to, ["-R", &spec], up);
        assert_eq!(forward.is_some(), up(), "it listens there only where it was granted");
        forward.is_some() && talk(port) == "greeting\nhello"
    }

    fn remote_socket(&self, to: &str) -> bool {
        let path = self.rig.path(&format!("remote-{to}.sock"));
        let spec = format!("{}:127.0.0.1:{}", path.display(), service());
        let up = || UnixStream::connect(&path).is_ok();
        let forward = self.forward(to, ["-R", &spec], up);
        assert_eq!(forward.is_some(), up(), "it listens there only where it was granted");
        let mut greeting = [0; 9];
        forward.is_some() && UnixStream::connect(&path).unwrap().read_exact(&mut greeting).is_ok()
    }
}

struct Forwarding<'a> {
    ways: &'a Ways,
    to: String,
    args: [String; 2],
    child: Option<Child>,
}

impl Drop for Forwarding<'_> {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                // `timeout` passes it on.
                Command::new("kill").arg(child.id().to_string()).status().ok();
                child.wait().ok();
            }
            None => {
                let mut ssh = self.ways.client("ssh");
                ssh.args(["-O", "cancel"]).args(&self.args).arg(&self.to).stdout(Stdio::null()).status().ok();
            }
        }
    }
}

fn each_capability_alone(way: Way) {
    let ways = Ways::new(way);
    let socket = ways.rig.path("service.sock");
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in unix.incoming() {
            let (mut stream, mut heard) = (stream.unwrap(), [0; 5]);
            stream.write_all(b"greeting\n").ok();
            stream.read_exact(&mut heard).ok();
            stream.write_all(&heard).ok();
        }
    });
    let (port, socket) = (format!("127.0.0.1:{}", service()), socket.display().to_string());
    let up = "echo up-$((1+1))";
    type Try<'a> = Box<dyn Fn(&str) -> bool + 'a>;
    let w = &ways;
    let tries: Vec<(&str, &str, Try<'_>)> = vec![
        ("a shell", "shell", Box::new(|to| w.runs(to, &["-tt", "TO"], &format!("{up}; exit\n")))),
        (
            "a shell without a terminal",
            "shell",
            Box::new(|to| w.runs(to, &["-T", "TO"], &format!("{up}; exit\n"))),
        ),
        ("a command", "exec", Box::new(|to| w.runs(to, &["TO", up], ""))),
        ("a command on a terminal", "exec", Box::new(|to| w.runs(to, &["-tt", "TO", up], ""))),
        ("a subsystem", "exec", Box::new(|to| w.runs(to, &["-s", "TO", "echo"], ""))),
        ("sftp", "sftp", Box::new(|to| w.copies(to, "sftp", &[]))),
        ("scp", "sftp", Box::new(|to| w.copies(to, "scp", &["-q"]))),
        ("scp -O", "exec", Box::new(|to| w.copies(to, "scp", &["-q", "-O"]))),
        ("-L to a port", "forward", Box::new(|to| w.local(to, &port))),
        ("-L to a socket", "forward", Box::new(|to| w.local(to, &socket))),
        ("-R of a port", "forward", Box::new(|to| w.remote_port(to))),
        ("-R of a socket", "forward", Box::new(|to| w.remote_socket(to))),
        ("the agent", "agent", Box::new(|to| w.runs(to, &["-A", "TO", "ssh-add -l >&2 && echo up-2"], ""))),
    ];
    for (number, (what, needs, goes)) in tries.iter().enumerate() {
        let (gives, not): (Vec<_>, Vec<_>) = INSTANCES.iter().partition(|(_, gives)| gives.contains(needs));
        // Where each is a login of its own: one that gives it, and a neighbour that does not, another one each time.
        let some =
            if way == Way::Shared { INSTANCES.to_vec() } else { vec![gives[0], not[number % not.len()]] };
        for (instance, gives) in some {
            assert_eq!(goes(instance), gives.contains(needs), "{what} on {instance}");
        }
    }
    drop(tries);
    if way == Way::Shared {
        for name in INSTANCES.map(|(name, _)| name).into_iter().chain(["bastion"]) {
            ways.client("ssh").args(["-O", "exit", name]).status().unwrap();
        }
    }
    let denied = ways.rig.events("forward_denied");
    let kinds = if way == Way::Shared { 4 * 4 } else { 4 };
    assert!(denied.len() >= kinds, "{} of {kinds}", denied.len());
    ways.rig.ended_sessions();
    ways.rig.ok(&["logs", "verify"]);
}

#[test]
fn each_capability_gives_itself_alone_on_a_plain_jump() {
    each_capability_alone(Way::Plain);
}

#[test]
fn each_capability_gives_itself_alone_on_a_jump_inside_a_session() {
    each_capability_alone(Way::Nested);
}

#[test]
fn each_capability_gives_itself_alone_over_shared_connections() {
    each_capability_alone(Way::Shared);
}
