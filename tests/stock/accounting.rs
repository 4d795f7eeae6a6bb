//! Every way through, added up byte for byte: what passed is on the tape, or named as a gap with its reason.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::forward::{Ended, background, service, talk};
use crate::rig::{Rig, free_port, wait_for, write};

fn rig() -> Rig {
    let rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    let login = rig.login.clone();
    let all = ["--can", "shell,exec,sftp,forward,agent"];
    let rule = ["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login];
    rig.ok(&[rule.as_slice(), &all].concat());
    rig
}

fn piped(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input).ok());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output.stdout
}

/// Commands, shells and copies, with and without a terminal.
fn sessions(rig: &Rig) {
    let up = write(&rig.path("up"), 70_000);
    let ssh = |args: &[&str]| {
        let mut command = rig.client("ssh", "alice");
        command.args(args);
        command
    };
    assert_eq!(piped(ssh(&["db-1", "cat"]), &up), up);
    piped(ssh(&["-tt", "db-1"]), b"echo typed\nexit\n");
    piped(ssh(&["-T", "db-1"]), b"echo typed\n");
    piped(ssh(&["-tt", "db-1", "head -n 1; head -c 5000 /dev/zero | base64"]), b"line\n");
    piped(ssh(&["db-1", "echo over there >&2; exit 3"]), b"");
    let (from, there) = (rig.path("up"), format!("db-1:{}", rig.path("there").display()));
    for mode in ["-s", "-O"] {
        let mut copy = rig.client("scp", "alice");
        assert!(copy.args(["-q", mode]).arg(&from).arg(&there).status().unwrap().success());
    }
    let shell = format!("ssh -F {}", rig.config("alice", "").display());
    let mut rsync = Command::new("rsync");
    assert!(rig.asked(rsync.args(["-e", &shell]).arg(&from).arg(&there), "alice").status.success());
    let bare = rig.path("bare.git");
    assert!(Command::new("git").args(["init", "-q", "--bare"]).arg(&bare).status().unwrap().success());
    let mut git = Command::new("git");
    git.args(["ls-remote", &format!("db-1:{}", bare.display())]).env("GIT_SSH_COMMAND", &shell);
    assert!(rig.asked(&mut git, "alice").status.success());
}

/// Forwards of every kind, and the agent.
fn forwards(rig: &Rig) {
    let service = service();
    let (inside, remote, socks, outside) = (free_port(), free_port(), free_port(), free_port());
    let local = background(rig, &["-L", &format!("127.0.0.1:{inside}:127.0.0.1:{service}"), "db-1"], inside);
    assert_eq!(talk(inside), "greeting\nhello");
    drop(local);
    let back = background(rig, &["-R", &format!("127.0.0.1:{remote}:127.0.0.1:{service}"), "db-1"], remote);
    assert_eq!(talk(remote), "greeting\nhello");
    drop(back);
    let proxy = background(rig, &["-D", &format!("127.0.0.1:{socks}"), "db-1"], socks);
    let mut stream = TcpStream::connect(("127.0.0.1", socks)).unwrap();
    let port = service.to_be_bytes();
    stream.write_all(&[4, 1, port[0], port[1], 127, 0, 0, 1, 0]).unwrap();
    stream.read_exact(&mut [0; 17]).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    drop((stream, proxy));
    let plain = background(rig, &["-L", &format!("127.0.0.1:{outside}:db-1:{service}"), "bastion"], outside);
    assert_eq!(talk(outside), "greeting\nhello");
    drop(plain);

    let socket = rig.path("service.sock");
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || unix.accept().unwrap().0.write_all(b"from the socket").unwrap());
    let port = free_port();
    let spec = format!("127.0.0.1:{port}:{}", socket.display());
    let streamlocal = Ended(rig.client("ssh", "alice").args(["-N", "-L", &spec, "db-1"]).spawn().unwrap());
    let mut said = String::new();
    wait_for("the socket", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut s| s.read_to_string(&mut said).is_ok())
    });
    assert_eq!(said, "from the socket");
    drop(streamlocal);

    let agent = rig.path("agent.sock");
    let _agent = Ended(
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&agent).stdout(Stdio::null()).spawn().unwrap(),
    );
    wait_for("the agent", || agent.exists());
    let mut add = Command::new("ssh-add");
    assert!(add.arg("-q").arg(rig.path("id_alice")).env("SSH_AUTH_SOCK", &agent).status().unwrap().success());
    let mut keys = rig.client("ssh", "alice");
    keys.args(["-A", "db-1", "ssh-add -l"]).env("SSH_AUTH_SOCK", &agent);
    assert!(keys.output().unwrap().status.success());
    // SSH inside SSH is cut, and what passed until then is counted.
    let to = format!("127.0.0.1:{}", rig.instance_port);
    rig.client("ssh", "alice").args(["-W", &to, "db-1"]).output().unwrap();
}

fn number(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap()
}

#[test]
fn the_bytes_of_every_way_through_add_up() {
    let rig = rig();
    sessions(&rig);
    forwards(&rig);
    let sessions = rig.ended_sessions();
    let gaps = rig.json(&["sessions", "gaps"]);
    let gaps = gaps.as_array().unwrap();
    let closed = rig.events("channel_closed");
    let mut all: Vec<Value> = Vec::new();
    for session in &sessions {
        let channels = session["channels"].as_array().unwrap();
        let sum = |field: &str| channels.iter().map(|channel| number(channel, field)).sum::<u64>();
        assert_eq!(number(session, "bytes_in"), sum("bytes_in"));
        assert_eq!(number(session, "bytes_out"), sum("bytes_out"));
        for channel in channels {
            let own = |gap: &&Value| gap["session"] == session["id"] && gap["channel"] == channel["channel"];
            let missing: u64 = gaps.iter().filter(own).map(|gap| number(gap, "bytes")).sum();
            let passed = number(channel, "bytes_in") + number(channel, "bytes_out");
            assert_eq!(passed, number(channel, "captured_bytes") + missing, "{channel}");
            assert!(gaps.iter().filter(own).all(|gap| !gap["reason"].as_str().unwrap().is_empty()));
            assert_eq!(passed, number(channel, "relayed_bytes"), "{channel}");
            assert!(
                missing == 0 && channel["capture"] == "full" || channel["reason"].is_string(),
                "{channel}"
            );
            // The trail says the same.
            let event = closed.iter().find(|event| own(event)).unwrap_or_else(|| panic!("{channel}"));
            assert_eq!(number(event, "relayed_bytes"), number(channel, "relayed_bytes"), "{channel}");
            assert_eq!(number(event, "captured_bytes"), number(channel, "captured_bytes"), "{channel}");
            all.push(channel.clone());
        }
        rig.ok(&["sessions", "verify", session["id"].as_str().unwrap()]);
    }
    let of = |kind: &str| all.iter().filter(|channel| channel["kind"] == kind).collect::<Vec<_>>();
    let command = |part: &str| {
        let is =
            |channel: &&&Value| channel["command"].as_str().is_some_and(|command| command.contains(part));
        *of("exec").iter().find(is).unwrap_or_else(|| panic!("{part}: {all:?}"))
    };
    let cat = command("cat");
    assert_eq!((number(cat, "bytes_in"), number(cat, "bytes_out")), (70_000, 70_000));
    assert_eq!((cat["capture"].as_str(), number(cat, "captured_bytes")), (Some("full"), 140_000));
    assert_eq!(number(command("echo over"), "captured_bytes"), 11);
    for (part, operations) in [("scp -t", 1), ("rsync --server", 1), ("git-upload-pack", 1)] {
        assert_eq!(number(command(part), "operations"), operations, "{part}");
    }
    assert_eq!((of("shell").len(), of("sftp").len()), (2, 1));
    // `-L`, `-R`, `-D` and the port of an instance: nine bytes and five back, five there.
    let talks = of("forward").into_iter().filter(|forward| {
        (number(forward, "bytes_in"), number(forward, "bytes_out")) == (5, 14)
            || (number(forward, "bytes_in"), number(forward, "bytes_out")) == (14, 5)
    });
    assert_eq!(talks.count(), 4, "{:?}", of("forward"));
    let socket = of("forward").into_iter().filter(|forward| number(forward, "bytes_out") == 15);
    assert!(socket.count() >= 1, "{:?}", of("forward"));
    let agent = of("forward")
        .into_iter()
        .filter(|forward| forward["command"].as_str().is_some_and(|command| command.contains("agent")));
    assert_eq!(agent.count(), 1, "{:?}", of("forward"));
    assert!(of("forward").iter().all(|forward| forward["digest_in"].is_string()));
}
