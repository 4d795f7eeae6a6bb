//! SSH inside SSH: terminated and recorded as a session of its own, or refused with a sentence; never unseen.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use crate::rig::{Rig, free_port, text, wait_for};

/// db-1 and db-2, one sshd behind both; alice may enter db-1.
fn rig() -> Rig {
    let rig = Rig::with_alice();
    rig.add_instance("db-2");
    rig
}

fn allow(rig: &Rig, instance: &str, can: &str) {
    let rule = ["access", "allow", "--user", "alice", "--instance", instance, "--login", &rig.login];
    rig.ok(&[&rule[..], &["--can", can]].concat());
}

/// `ssh -J bastion,db-1 TARGET COMMAND`.
fn jump(rig: &Rig, target: &str, command: &str) -> Output {
    let jumps = format!("bastion,{}@db-1", rig.login);
    rig.client("ssh", "alice").args(["-J", &jumps, target, command]).output().unwrap()
}

fn session_to<'a>(sessions: &'a [serde_json::Value], instance: &str) -> &'a serde_json::Value {
    sessions.iter().find(|s| s["instance"] == instance).unwrap_or_else(|| panic!("{instance}: {sessions:?}"))
}

#[test]
fn a_jump_through_an_instance_is_a_recorded_session_inside_its_session() {
    let rig = rig();
    allow(&rig, "db-2", "shell,exec,sftp");
    let output = jump(&rig, "db-2", "echo out-word; exit 7");
    assert_eq!((output.status.code(), text(output.stdout)), (Some(7), "out-word\n".to_owned()));
    let sessions = rig.ended_sessions();
    let (outer, inner) = (session_to(&sessions, "db-1"), session_to(&sessions, "db-2"));
    assert_eq!((&inner["parent"], &outer["parent"]), (&outer["id"], &serde_json::Value::Null));
    assert_eq!(inner["channels"][0]["capture"], "full", "{inner}");
    let id = inner["id"].as_str().unwrap();
    assert!(rig.ok(&["sessions", "play", id, "--speed", "1000"]).contains("out-word"));
    for event in ["session_opened", "session_closed"] {
        let events = rig.events(event);
        let told = events.iter().find(|e| e["session"] == id).unwrap();
        assert_eq!(told["parent"], outer["id"], "{told}");
    }
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_file_goes_through_three_instances_and_a_fifth_level_is_refused() {
    let rig = rig();
    for name in ["db-2", "db-3", "db-4", "db-5", "db-6"] {
        if name != "db-2" {
            rig.add_instance(name);
        }
        allow(&rig, name, "exec");
    }
    let login = &rig.login;
    let deep = |levels: usize| {
        let jumps = (0..levels).map(|n| format!(",{login}@db-{}", n + 2)).collect::<String>();
        let mut ssh = rig.client("ssh", "alice");
        ssh.args(["-J", &format!("bastion{jumps}"), "db-1", "cat"]).stdin(Stdio::piped());
        let mut ssh = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A client that is refused does not read.
        ssh.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).ok();
        ssh.wait_with_output().unwrap()
    };
    let whole = deep(3);
    assert_eq!(whole.stdout.len(), 300_000, "{}", text(whole.stderr));
    assert_eq!(rig.ended_sessions().len(), 4, "each level is on a tape");
    let refused = deep(5);
    assert!(refused.stdout.is_empty() && !refused.status.success());
}

#[test]
fn where_no_rule_lets_one_in_a_nested_jump_is_refused_with_the_right_way() {
    let rig = rig();
    // An instance without a rule, and a name that is none: the same words.
    for target in ["db-2", "db-99"] {
        let output = jump(&rig, target, "echo reached");
        let said = text(output.stderr);
        assert!(output.stdout.is_empty() && !output.status.success());
        assert!(said.contains(&format!("You have no access to an instance named {target}")), "{said}");
        assert!(said.contains("ssh -J alice@bastion LOGIN@INSTANCE"), "{said}");
        let denied = rig.events("access_denied");
        assert!(denied.iter().any(|e| e["instance"] == target), "{denied:?}");
    }
    // The instance, but not this login.
    allow(&rig, "db-2", "exec");
    let output = jump(&rig, "stranger@db-2", "echo reached");
    let said = text(output.stderr);
    assert!(output.stdout.is_empty() && said.contains("do not let you in as stranger@db-2"), "{said}");
    // And with it, not what the rule leaves out.
    let output = rig
        .client("sftp", "alice")
        .args(["-b", "/dev/null", "-J", &format!("bastion,{}@db-1", rig.login), "db-2"])
        .output()
        .unwrap();
    assert!(!output.status.success() && text(output.stderr).contains("do not let you use sftp on db-2"));
}

#[test]
fn another_users_key_opens_no_nested_session() {
    let rig = rig();
    allow(&rig, "db-2", "exec");
    rig.add_user("mallory");
    let through = format!("ProxyCommand=ssh -F {} -W %h:22 db-1", rig.config("alice", "").display());
    let mut ssh = rig.client("ssh", "mallory");
    ssh.env("SSH_ASKPASS", rig.path("code_alice")).args(["-o", &through, "db-2", "echo reached"]);
    let output = ssh.output().unwrap();
    assert!(output.stdout.is_empty() && text(output.stderr).contains("Permission denied (publickey)"));
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `ssh -N` to db-1 with `args`, until dropped.
fn background(rig: &Rig, args: &[&str], port: u16) -> Ended {
    let mut ssh = rig.client("ssh", "alice");
    let child = Ended(ssh.arg("-N").args(args).arg("db-1").stderr(Stdio::null()).spawn().unwrap());
    wait_for("the forward", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    child
}

/// The stock client on a local port, as if that were `name`.
fn on(rig: &Rig, port: u16, name: &str) -> Output {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(rig.config("alice", "")).args(["-p", &port.to_string(), "-l", &rig.login]);
    ssh.args(["-o", &format!("HostKeyAlias={name}"), "-o", "ProxyJump=none", "127.0.0.1", "echo reached"]);
    ssh.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn ssh_through_a_local_forward_is_recorded_where_the_target_is_known_and_cut_elsewhere() {
    let rig = rig();
    allow(&rig, "db-1", "forward");
    allow(&rig, "db-2", "exec");
    std::fs::copy(rig.path("id_alice.pub"), rig.path("authorized_keys")).unwrap();
    // By name, by an odd port, and by an address that is no instance's.
    let (named, odd, elsewhere) = (free_port(), free_port(), free_port());
    let by_name = format!("127.0.0.1:{named}:db-2:22");
    let by_port = format!("127.0.0.1:{odd}:db-2:{}", free_port());
    let by_address = format!("127.0.0.1:{elsewhere}:localhost:{}", rig.instance_port);
    let _forwards = background(&rig, &["-L", &by_name, "-L", &by_port, "-L", &by_address], named);
    for port in [named, odd] {
        let output = on(&rig, port, "db-2");
        assert_eq!(text(output.stdout), "reached\n", "{}", text(output.stderr));
    }
    let output = on(&rig, elsewhere, "db-2");
    let said = text(output.stderr);
    assert!(output.stdout.is_empty() && said.contains("would go through unseen"), "{said}");
    assert!(said.contains("ssh -J alice@bastion LOGIN@INSTANCE"), "{said}");
    let denied = rig.events("forward_denied");
    assert!(denied.iter().any(|e| e["reason"].as_str().unwrap().contains("SSH inside")), "{denied:?}");
    let opened = rig.events("session_opened");
    assert_eq!(opened.iter().filter(|e| e["instance"] == "db-2" && e["parent"].is_string()).count(), 2);
}

#[test]
fn what_is_no_ssh_still_goes_through_the_instance_also_when_the_server_speaks_first() {
    let rig = rig();
    allow(&rig, "db-1", "forward");
    allow(&rig, "db-2", "exec");
    // `localhost` is an alias of none; db-2 resolves to nothing on the instance, so its address stands in for it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"greeting\n").ok();
        }
    });
    let local = free_port();
    let spec = format!("127.0.0.1:{local}:127.0.0.1:{service}");
    let _forward = background(&rig, &["-L", &spec], local);
    let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"greeting\n");
}

#[test]
fn a_nested_session_is_cut_with_its_own_right_and_with_the_one_around_it() {
    let rig = rig();
    allow(&rig, "db-2", "exec");
    for removed in ["db-2", "db-1"] {
        let jumps = format!("bastion,{}@db-1", rig.login);
        let mut ssh = rig.client("ssh", "alice");
        ssh.args(["-J", &jumps, "db-2", "echo up; sleep 60"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        let mut up = [0; 3];
        ssh.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        rig.ok(&["instances", "remove", removed, "--yes"]);
        wait_for("the session to be cut", || ssh.try_wait().unwrap().is_some());
        let ended = rig.ended_sessions();
        assert!(ended.iter().any(|s| s["instance"] == removed && s["status"] == "killed"), "{ended:?}");
        rig.add_instance(removed);
        allow(&rig, removed, "exec");
    }
}
