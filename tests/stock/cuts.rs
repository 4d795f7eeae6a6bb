//! A right that ends takes its live sessions with it, with a sentence; a neighbour's session lives on.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::rig::{Rig, text, wait_for};

/// alice and bob on `db-1`, alice with a running command through a shared connection.
fn rig() -> (Rig, Live, Live) {
    let rig = Rig::with_alice();
    rig.add_user("bob");
    let login = rig.login.clone();
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &login]);
    let (alice, bob) = (Live::start(&rig, "alice"), Live::start(&rig, "bob"));
    wait_for("two sessions", || rig.json(&["sessions", "list", "--live"]).as_array().unwrap().len() == 2);
    (rig, alice, bob)
}

struct Live(Child);

impl Live {
    fn start(rig: &Rig, user: &str) -> Self {
        let mut ssh = rig.client("ssh", user);
        ssh.args(["db-1", "echo up; sleep 60"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        Self(child)
    }

    /// What the user was told when it ended.
    fn told(mut self) -> String {
        wait_for("the session to be cut", || self.0.try_wait().unwrap().is_some());
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn session_of(rig: &Rig, user: &str) -> serde_json::Value {
    let all = rig.json(&["sessions", "list", "--user", user]);
    all.as_array().unwrap().last().unwrap().clone()
}

/// Waits until alice's session is sealed as killed, for this reason.
fn killed(rig: &Rig, reason: &str) {
    wait_for("the tape to be sealed", || session_of(rig, "alice")["status"] == "killed");
    let session = session_of(rig, "alice");
    assert!(session["reason"].as_str().unwrap().contains(reason), "{session}");
    // The trail hears of the end a moment after the summary.
    let verify = ["sessions", "verify", session["id"].as_str().unwrap()];
    wait_for("the tape in the trail", || rig.run(&verify).status.success());
}

#[test]
fn a_session_that_an_admin_kills_is_told_why() {
    let (rig, alice, mut bob) = rig();
    let id = session_of(&rig, "alice")["id"].as_str().unwrap().to_owned();
    rig.add_user_as("ada", "admin");
    let kill = format!("sessions kill {id} --reason 'maintenance window \u{9b}2J'");
    assert!(rig.shared("ssh", "ada").args(["bastion", &kill]).status().unwrap().success());
    let told = alice.told();
    assert!(!told.contains('\u{9b}') && told.contains("\\u{9b}2J"), "{told}");
    assert!(told.contains("maintenance window") && told.contains(&id), "{told}");
    killed(&rig, "maintenance window");
    let ends = rig.events("session_killed");
    assert_eq!((ends.len(), &ends[0]["by"]), (1, &"ada".into()), "{ends:?}");
    assert!(bob.lives());
    assert_eq!(rig.run(&["sessions", "kill", &id]).status.code(), Some(3), "it is not live any more");
}

#[test]
fn a_suspended_user_is_cut_and_stays_out_until_resumed() {
    let (rig, alice, mut bob) = rig();
    rig.ok(&["users", "suspend", "alice"]);
    assert!(alice.told().contains("Your account was suspended."));
    killed(&rig, "suspended");
    assert!(!rig.ssh("alice", "echo reached").status.success());
    assert!(bob.lives());
    rig.ok(&["users", "resume", "alice"]);
    assert_eq!(text(rig.ssh("alice", "echo reached").stdout), "reached\n");
}

#[test]
fn who_is_cut_on_the_way_to_an_instance_hears_why_and_the_instance_is_not_blamed() {
    let rig = Rig::with_alice();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, key) = (mute.local_addr().unwrap().to_string(), rig.path("instance_key.pub"));
    let add = ["instances", "add", "db-9", "--address", &address, "--login", &rig.login, "--host-key"];
    rig.ok(&[&add[..], &[key.to_str().unwrap()]].concat());
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-9", "--login", &rig.login]);
    let mut ssh = rig.client("ssh", "alice");
    let alice = Live(ssh.args(["db-9", "true"]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    // The bastion has dialled, and waits for a word of the instance.
    let _dialled = mute.accept().unwrap();
    rig.ok(&["users", "suspend", "alice"]);
    let told = alice.told();
    assert!(told.contains("Your account was suspended.") && !told.contains("db-9 does not"), "{told}");
    killed(&rig, "suspended");
    assert_eq!(rig.events("instance_unreachable").len(), 0);
}

#[test]
fn a_removed_rule_cuts_what_lived_by_it() {
    let (rig, alice, mut bob) = rig();
    rig.ok(&["access", "remove", "R1"]);
    let told = alice.told();
    assert!(told.contains(&format!("Your access to {}@db-1 has ended.", rig.login)), "{told}");
    killed(&rig, "has ended");
    assert!(bob.lives());
}

#[test]
fn a_rule_that_expires_cuts_and_a_deny_does() {
    let (rig, alice, bob) = rig();
    let login = rig.login.as_str();
    let rule = ["access", "allow", "--user", "alice", "--instance", "db-1", "--login", login];
    rig.ok(&[&rule[..], &["--expires", "2s"]].concat());
    rig.ok(&["access", "remove", "R1"]);
    // The second rule took over from the first, and ends by itself.
    assert!(alice.told().contains("has ended"));
    killed(&rig, "has ended");
    rig.ok(&["access", "deny", "--user", "bob", "--instance", "db-1", "--login", login]);
    assert!(bob.told().contains("has ended"));
}

#[test]
fn a_removed_instance_ends_its_sessions_and_leaves_no_rule_to_its_namesake() {
    let (rig, alice, bob) = rig();
    rig.add_instance("db-2");
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-2", "--login", &rig.login]);
    rig.ok(&["instances", "remove", "db-1", "--yes"]);
    for live in [alice, bob] {
        assert!(live.told().contains("db-1 is no longer reached through this bastion."));
    }
    let rules = rig.json(&["access", "list"]);
    assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    assert_eq!(rules[0]["id"], "R3", "the neighbour's stays");
    rig.add_instance("db-1");
    assert!(rig.ssh("alice", "echo reached").stdout.is_empty());
}

#[test]
fn an_open_connection_opens_nothing_more_once_its_user_is_cut() {
    let rig = Rig::with_alice();
    let ssh = |command: &str| rig.shared("ssh", "alice").args(["db-1", command]).output().unwrap();
    assert_eq!(text(ssh("echo reached").stdout), "reached\n");
    let key = rig.json(&["ssh-keys", "list"])[0]["id"].as_str().unwrap().to_owned();
    rig.ok(&["ssh-keys", "revoke", &key, "--reason", "laptop stolen"]);
    // The connection is still there for a moment, to tell its sessions why.
    for _ in 0..8 {
        let output = ssh("echo reached");
        assert!(output.stdout.is_empty(), "a new session on a revoked key");
        let page = rig.shared("ssh", "alice").args(["bastion", "ssh-keys", "list"]).output().unwrap();
        assert!(page.stdout.is_empty(), "a command on a revoked key");
    }
}

/// `ssh USER@bastion ssh-keys add --user mallory`, whose standard input has not ended yet.
fn half_typed(rig: &Rig, user: &str) -> Child {
    let mut ssh = rig.shared("ssh", user);
    ssh.args(["bastion", "ssh-keys add --user mallory"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let key = fs::read(rig.path("id_evil.pub")).unwrap();
    ssh.stdin.as_mut().unwrap().write_all(&key).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    ssh
}

#[test]
fn a_command_that_is_still_being_typed_when_its_right_ends_does_nothing() {
    for ended_by in ["nothing", "revoke", "suspend", "lockdown"] {
        let rig = Rig::bastion();
        rig.add_user_as("ada", "admin");
        // The last one is not suspended.
        rig.ok(&["users", "add", "eva", "--role", "admin"]);
        rig.ok(&["users", "add", "mallory"]);
        rig.keygen("id_evil");
        assert!(
            rig.shared("ssh", "ada").args(["bastion", "users", "list"]).output().unwrap().status.success()
        );
        let ssh = half_typed(&rig, "ada");
        match ended_by {
            "revoke" => {
                let key = rig.json(&["ssh-keys", "list"])[0]["id"].as_str().unwrap().to_owned();
                drop(rig.ok(&["ssh-keys", "revoke", &key, "--reason", "laptop stolen"]));
            }
            "suspend" => drop(rig.ok(&["users", "suspend", "ada"])),
            "lockdown" => drop(rig.ok(&["access", "deny-all", "--reason", "breach"])),
            _ => {}
        }
        // Its standard input ends here, or by the cut.
        let output = ssh.wait_with_output().unwrap();
        let keys = rig.json(&["ssh-keys", "list", "--user", "mallory"]);
        let expected = usize::from(ended_by == "nothing");
        assert_eq!(keys.as_array().unwrap().len(), expected, "{ended_by}: {}", text(output.stderr));
        assert_eq!(output.status.success(), ended_by == "nothing", "{ended_by}");
    }
}

/// What `program` starts and leaves in the middle is over within seconds, though the other end still runs.
fn abandoned(program: &str) -> serde_json::Value {
    let rig = Rig::with_alice();
    let may = ["--login", &rig.login, "--can", "shell,exec,sftp,forward"];
    rig.ok(&[&["access", "allow", "--user", "alice", "--instance", "db-1"][..], &may].concat());
    rig.paramiko("alice", program);
    rig.ended_sessions().remove(0)
}

#[test]
fn a_session_ends_with_its_user_though_the_instance_takes_nothing_more() {
    let session = abandoned(
        r#"
chan = inner().open_session(); chan.exec_command('sleep 300')
chan.settimeout(3)
try: chan.sendall(b'x' * (8 << 20)); sys.exit('all of it was taken')
except socket.timeout: os._exit(0)
"#,
    );
    assert_eq!(session["status"], "closed", "{session}");
}

#[test]
fn a_forward_ends_with_its_user_though_the_service_takes_nothing_more() {
    let session = abandoned(
        r#"
unread = socket.socket(); unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
unread.bind(('127.0.0.1', 0)); unread.listen()
# It outlives this program.
if os.fork() == 0:
    for end in (0, 1, 2): os.close(end)
    conn = unread.accept(); time.sleep(100); os._exit(0)
chan = outer().open_channel('direct-tcpip', ('db-1', unread.getsockname()[1]), ('127.0.0.1', 1))
chan.settimeout(3)
try: chan.sendall(b'x' * (32 << 20)); sys.exit('all of it was taken')
except socket.timeout: os._exit(0)
"#,
    );
    assert_eq!(session["status"], "closed", "{session}");
}

#[test]
fn who_leaves_while_the_instance_answers_nothing_leaves_no_session_behind() {
    let rig = Rig::with_alice();
    let config = rig.config("alice", &rig.master("db-*"));
    let ssh = |args: &[&str]| {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&config).args(args).stdin(Stdio::null());
        rig.asking(&mut ssh, "alice");
        ssh
    };
    let sshd = text(ssh(&["db-1", "echo $PPID"]).output().unwrap().stdout).trim().to_owned();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &sshd]).status().unwrap().success());
    signal("-STOP");
    // A second channel of the connection that is open: nobody answers.
    let mut second = Live(ssh(&["db-1", "echo reached"]).stdout(Stdio::piped()).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(700));
    assert!(second.lives() && session_of(&rig, "alice")["status"] == "live");
    assert!(ssh(&["-O", "exit", "db-1"]).output().unwrap().status.success());
    wait_for("the session to end", || session_of(&rig, "alice")["status"] == "closed");
    signal("-KILL");
}

#[test]
fn one_user_opens_no_more_than_a_share_and_is_told_so_and_the_neighbour_is_served() {
    let rig = Rig::with_alice_and("[limits]\nper_user = 3\n");
    rig.add_user("bob");
    let login = rig.login.clone();
    rig.ok(&["access", "allow", "--user", "bob", "--instance", "db-1", "--login", &login]);
    // A connection and a session.
    let mut alice = Live::start(&rig, "alice");
    let refused = rig.client("ssh", "alice").args(["db-1", "echo more"]).output().unwrap();
    let told = text(refused.stderr);
    assert!(told.contains("You have 3 connections and sessions open here"), "{told}");
    assert!(refused.stdout.is_empty() && alice.lives());
    assert_eq!(text(rig.ssh("bob", "echo served").stdout), "served\n");
    drop(alice);
    wait_for("alice's to end", || rig.json(&["status"])["connections"] == 0);
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
}
