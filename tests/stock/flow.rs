//! Flow control (RFC 4254 §5.2): no channel stops another, nothing deadlocks, nothing grows. Each case runs through
//! OpenSSH's own jump host too: Keyward must behave as well.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{Rig, text, wait_for, write};

/// Through whom the client jumps to the same instance.
#[derive(Clone, Copy, Debug)]
enum Jump {
    Keyward,
    OpenSsh,
}

const BOTH: [Jump; 2] = [Jump::OpenSsh, Jump::Keyward];

/// `ssh` to the instance through `jump`, with further connections sharing the first one's master.
fn client(rig: &Rig, jump: Jump) -> Command {
    let mut command = rig.client("ssh", "alice");
    let path = rig.path(&format!("mux_{jump:?}"));
    command.arg("-o").arg(format!("ControlPath={}", path.display()));
    match jump {
        Jump::Keyward => command.arg("db-1"),
        Jump::OpenSsh => {
            // Once: sshd may be reading it when the next client is made.
            if !rig.path("authorized_keys").exists() {
                fs::copy(rig.path("id_alice.pub"), rig.path("authorized_keys")).unwrap();
            }
            let host = format!("{}@127.0.0.1:{}", rig.login, rig.instance_port);
            command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]);
            // The jump host needs the same options, which -J would not hand on.
            let key = rig.path("id_alice");
            let proxy = format!(
                "ProxyCommand=ssh -F none -q -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                 -p {} -W %h:%p {}@127.0.0.1",
                key.display(),
                rig.instance_port,
                rig.login
            );
            command.args(["-o", &proxy]).arg(format!("ssh://{host}"))
        }
    };
    command
}

fn master(rig: &Rig, jump: Jump) -> Child {
    let mut command = client(rig, jump);
    let mut child = command.args(["-M", "-N"]).spawn().unwrap();
    wait_for("the master", || {
        assert!(child.try_wait().unwrap().is_none(), "{jump:?}: the master ended");
        client(rig, jump).args(["-O", "check"]).output().unwrap().status.success()
    });
    child
}

/// Ends a process that this test started.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn bulk_both_ways_with_a_reader_that_pauses_is_exact() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("in"), 50_000_000);
    for jump in BOTH {
        let mut child = client(&rig, jump)
            .arg("cat")
            .stdin(fs::File::open(rig.path("in")).unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let mut seen = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut seen).unwrap();
        assert!(child.wait().unwrap().success(), "{jump:?}");
        assert!(seen == content, "{jump:?}: {} of {} bytes", seen.len(), content.len());
    }
}

#[test]
fn a_channel_that_nobody_reads_does_not_stop_its_neighbour() {
    let rig = Rig::with_alice();
    for jump in BOTH {
        let _master = Ended(master(&rig, jump));
        let stalled = client(&rig, jump).arg("cat /dev/zero").stdout(Stdio::piped()).spawn().unwrap();
        let _stalled = Ended(stalled);
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        let output = client(&rig, jump).arg("echo neighbour").output().unwrap();
        assert_eq!(text(output.stdout), "neighbour\n", "{jump:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{jump:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn an_instance_that_reads_nothing_holds_the_user_back_and_not_the_bastion() {
    let rig = Rig::with_alice();
    for jump in BOTH {
        let _master = Ended(master(&rig, jump));
        let before = rig.memory_kib();
        let unread =
            client(&rig, jump).arg("sleep 60").stdin(fs::File::open("/dev/zero").unwrap()).spawn().unwrap();
        let _unread = Ended(unread);
        std::thread::sleep(Duration::from_secs(3));
        let grown = rig.memory_kib().saturating_sub(before);
        assert!(grown < 48 * 1024, "{jump:?}: the bastion grew by {grown} KiB");
        let output = client(&rig, jump).arg("echo neighbour").output().unwrap();
        assert_eq!(text(output.stdout), "neighbour\n", "{jump:?}");
    }
}
