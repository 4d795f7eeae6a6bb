//! Forwards: each only with its capability, and SSH inside one never unseen.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use crate::rig::{Rig, free_port, text, wait_for};

/// alice may forward to `db-1`, and use her agent there.
fn rig() -> Rig {
    let rig = Rig::with_alice();
    let login = rig.login.clone();
    let args = ["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login];
    rig.ok(&[&args[..], &["--can", "forward,agent"]].concat());
    rig
}

/// A service that greets whoever connects, and says what it heard.
pub fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"greeting\n").unwrap();
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).ok();
            stream.write_all(&heard).ok();
        }
    });
    port
}

pub fn talk(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut greeting = [0; 9];
    if stream.read_exact(&mut greeting).is_err() {
        return String::new();
    }
    stream.write_all(b"hello").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).ok();
    format!("{}{}", text(greeting.to_vec()), text(rest))
}

pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `ssh -N` with `args`, until dropped.
pub fn background(rig: &Rig, args: &[&str], port: u16) -> Ended {
    let child = rig.client("ssh", "alice").arg("-N").args(args).stderr(Stdio::null()).spawn().unwrap();
    let child = Ended(child);
    wait_for("the forward", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    child
}

fn forwards(rig: &Rig) -> Vec<serde_json::Value> {
    let sessions = rig.ended_sessions();
    let channels = sessions.iter().flat_map(|s| s["channels"].as_array().unwrap().clone());
    channels.filter(|c| c["kind"] == "forward").collect()
}

#[test]
fn a_local_forward_goes_through_the_instance_and_is_counted() {
    let rig = rig();
    let (service, local) = (service(), free_port());
    let spec = format!("127.0.0.1:{local}:127.0.0.1:{service}");
    let master = background(&rig, &["-L", &spec, "db-1"], local);
    assert_eq!(talk(local), "greeting\nhello");
    drop(master);
    let channels = forwards(&rig);
    let told = channels.iter().find(|c| c["relayed_bytes"] == 19).unwrap_or_else(|| panic!("{channels:?}"));
    assert_eq!(
        (&told["capture"], &told["command"]),
        (&"digest".into(), &format!("127.0.0.1:{service}").into())
    );
}

#[test]
fn without_the_capability_a_local_forward_is_refused_with_a_sentence() {
    let rig = Rig::with_alice();
    let (service, local) = (service(), free_port());
    let spec = format!("127.0.0.1:{local}:127.0.0.1:{service}");
    let master = background(&rig, &["-L", &spec, "db-1"], local);
    assert_eq!(talk(local), "");
    drop(master);
    assert!(rig.events("forward_denied").iter().any(|e| e["target"] == format!("127.0.0.1:{service}")));
    let output = through(&rig, &format!("127.0.0.1:{service}"));
    assert!(text(output.stderr).contains("do not let you forward through db-1"));
}

/// `ssh -W` through the session on `db-1`.
fn through(rig: &Rig, target: &str) -> Output {
    rig.client("ssh", "alice").args(["-W", target, "db-1"]).output().unwrap()
}

#[test]
fn a_remote_forward_comes_back_to_the_user() {
    let rig = rig();
    let (service, remote) = (service(), free_port());
    let spec = format!("127.0.0.1:{remote}:127.0.0.1:{service}");
    let _master = background(&rig, &["-o", "ExitOnForwardFailure=yes", "-R", &spec, "db-1"], remote);
    assert_eq!(talk(remote), "greeting\nhello");
}

#[test]
fn a_remote_forward_that_nobody_uses_is_on_the_tape_all_the_same() {
    let rig = rig();
    let spec = format!("127.0.0.1:{}:127.0.0.1:9", free_port());
    let mut command = rig.client("ssh", "alice");
    let output =
        command.args(["-o", "ExitOnForwardFailure=yes", "-R", &spec, "db-1", "true"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let target = format!("listens on {} for the user", spec.rsplitn(3, ':').last().unwrap());
    assert!(forwards(&rig).iter().any(|c| c["command"] == target), "{:?}", forwards(&rig));
    assert!(rig.events("channel_opened").iter().any(|e| e["command"] == target));
}

#[test]
fn without_the_capability_a_remote_forward_fails() {
    let rig = Rig::with_alice();
    let spec = format!("127.0.0.1:{}:127.0.0.1:9", free_port());
    let mut command = rig.client("ssh", "alice");
    let output =
        command.args(["-N", "-o", "ExitOnForwardFailure=yes", "-R", &spec, "db-1"]).output().unwrap();
    assert!(text(output.stderr).contains("remote port forwarding failed"));
    let asked = format!("refused: to listen on {} for the user", spec.rsplitn(3, ':').last().unwrap());
    assert!(forwards(&rig).iter().any(|c| c["command"] == asked), "{:?}", forwards(&rig));
}

#[test]
fn a_socks_proxy_and_a_unix_socket_go_through() {
    let rig = rig();
    let (service, local) = (service(), free_port());
    let _socks = background(&rig, &["-D", &format!("127.0.0.1:{local}"), "db-1"], local);
    let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
    let port = service.to_be_bytes();
    // SOCKS 4 (no authentication): connect to 127.0.0.1.
    stream.write_all(&[4, 1, port[0], port[1], 127, 0, 0, 1, 0]).unwrap();
    let mut reply = [0; 8];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[1], 90);
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"greeting\n");

    let socket = rig.path("service.sock");
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || unix.accept().unwrap().0.write_all(b"from the socket").unwrap());
    let local = free_port();
    let spec = format!("127.0.0.1:{local}:{}", socket.display());
    let mut unix_forward = rig.client("ssh", "alice");
    let _unix = Ended(unix_forward.args(["-N", "-L", &spec, "db-1"]).spawn().unwrap());
    let mut said = String::new();
    wait_for("the socket", || {
        TcpStream::connect(("127.0.0.1", local)).is_ok_and(|mut s| s.read_to_string(&mut said).is_ok())
    });
    assert_eq!(said, "from the socket");
}

#[test]
fn a_port_of_an_instance_that_is_no_ssh_is_a_forward() {
    let rig = rig();
    let (service, local) = (service(), free_port());
    let spec = format!("127.0.0.1:{local}:db-1:{service}");
    let _master = background(&rig, &["-L", &spec, "bastion"], local);
    assert_eq!(talk(local), "greeting\nhello", "a server that speaks first");
    wait_for("its ledger", || !forwards(&rig).is_empty());
}

#[test]
fn a_jump_that_leads_nowhere_is_closed_and_not_left_waiting() {
    let (allowed, denied) = (rig(), Rig::with_alice());
    // Nobody listens there, or the rules give no forward: the client has said all and would wait for ever.
    for (rig, said) in [(&allowed, ""), (&denied, "GET / HTTP/1.0\r\n\r\n")] {
        std::fs::write(rig.path("said"), said).unwrap();
        let mut command = Command::new("timeout");
        command.args(["20", "ssh", "-F"]).arg(rig.config("alice", ""));
        command.args(["-W", &format!("db-1:{}", free_port()), "bastion"]);
        command.stdin(std::fs::File::open(rig.path("said")).unwrap());
        let output = rig.asked(&mut command, "alice");
        assert_eq!(output.status.code(), Some(0), "{}", text(output.stderr));
    }
}

#[test]
fn a_half_closed_forward_still_brings_the_answer() {
    let rig = rig();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).ok();
                // Longer than what a user who left is waited for.
                std::thread::sleep(std::time::Duration::from_secs(6));
                stream.write_all(&heard).ok();
            });
        }
    });
    let (inside, outside) = (free_port(), free_port());
    let spec = format!("127.0.0.1:{inside}:127.0.0.1:{port}");
    let _inner = background(&rig, &["-L", &spec, "db-1"], inside);
    let spec = format!("127.0.0.1:{outside}:db-1:{port}");
    let _outer = background(&rig, &["-L", &spec, "bastion"], outside);
    for local in [inside, outside] {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        stream.write_all(b"question").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(40))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|e| panic!("{e}: {local} of {inside} {outside}"));
        assert_eq!(answer, "question", "{local} of {inside} {outside}");
    }
}

#[test]
fn ssh_inside_a_forward_is_cut_and_audited() {
    let rig = rig();
    std::fs::copy(rig.path("id_alice.pub"), rig.path("authorized_keys")).unwrap();
    let proxy = format!(
        "ProxyCommand=ssh -F {} -W 127.0.0.1:{} db-1",
        rig.config("alice", "").display(),
        rig.instance_port
    );
    let mut nested = rig.client("ssh", "alice");
    nested.args(["-o", &proxy, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    let output = nested.args([&format!("{}@elsewhere", rig.login), "echo unseen"]).output().unwrap();
    assert!(!text(output.stdout).contains("unseen"), "it would not be on any tape");
    assert!(
        rig.events("forward_denied").iter().any(|e| e["reason"].as_str().unwrap().contains("SSH inside"))
    );
}

#[test]
fn an_agent_is_lent_only_with_its_capability() {
    for (rig, allowed) in [(rig(), true), (Rig::with_alice(), false)] {
        let socket = rig.path("agent.sock");
        let agent = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn();
        let _agent = Ended(agent.unwrap());
        wait_for("the agent", || socket.exists());
        let add = Command::new("ssh-add")
            .arg("-q")
            .arg(rig.path("id_alice"))
            .env("SSH_AUTH_SOCK", &socket)
            .status();
        assert!(add.unwrap().success());
        let mut client = rig.client("ssh", "alice");
        let output =
            client.env("SSH_AUTH_SOCK", &socket).args(["-A", "db-1", "ssh-add -l"]).output().unwrap();
        assert_eq!(text(output.stdout).contains("ED25519"), allowed, "{}", text(output.stderr));
    }
}

#[test]
fn hundreds_of_refused_listens_are_told_once_and_hide_no_recording() {
    let rig = Rig::with_alice();
    let out = rig.paramiko(
        "alice",
        r#"
t = inner()
chan = t.open_session(); chan.exec_command('cat')
for n in range(300):
    # As long as a packet lets it be, and six times as long in JSON.
    path = '/' + str(n) + '\x01' * 32000
    assert t.global_request('streamlocal-forward@openssh.com', (path,), wait=True) is None
chan.sendall('still here'); chan.shutdown_write()
print(chan.makefile().read().decode())
t.close(); OUTER[-1].close()
"#,
    );
    assert_eq!(out, "still here\n");
    let sessions = rig.ended_sessions();
    let channels = sessions[0]["channels"].as_array().unwrap();
    let forwards: Vec<_> = channels.iter().filter(|c| c["kind"] == "forward").collect();
    assert_eq!(forwards.len(), 1, "{}", forwards.len());
    assert!(forwards[0]["command"].as_str().unwrap().chars().count() < 2100);
    rig.ok(&["sessions", "verify", sessions[0]["id"].as_str().unwrap()]);
    rig.ok(&["logs", "verify"]);
    let denied = rig.events("forward_denied");
    assert_eq!(denied.len(), 2, "the first, and how many more: {denied:?}");
    assert!(denied[1]["target"].as_str().unwrap().starts_with("299 more"), "{denied:?}");
}
