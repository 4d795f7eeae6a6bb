//! What a crash, a lost key and a full disk leave: everything durable is there, and nothing is made anew.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{Rig, text, wait_for};

/// A session of alice that runs `command`; its stdout is read by the test.
fn running(rig: &Rig, command: &str) -> Child {
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["db-1", command]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Every line is the moment at which it was written on the instance, in nanoseconds.
const CLOCK: &str = "while date +%s%N; do sleep 0.01; done";

#[test]
fn a_crash_costs_a_tape_a_quarter_of_a_second_at_most() {
    let mut rig = Rig::with_alice();
    let mut ssh = running(&rig, CLOCK);
    let mut shown = BufReader::new(ssh.stdout.take().unwrap()).lines();
    // The instance is as good a clock as any: two seconds of it.
    let first: u128 = shown.next().unwrap().unwrap().parse().unwrap();
    while shown.next().unwrap().unwrap().parse::<u128>().unwrap() < first + 2_000_000_000 {}
    let live = rig.json(&["sessions", "list", "--live"]);
    let id = live[0]["id"].as_str().unwrap().to_owned();
    let killed = now();
    rig.kill_9();
    ssh.wait().unwrap();
    rig.serve();

    let session = rig.json(&["sessions", "show", &id]);
    assert_eq!(session["status"], "truncated");
    assert!(!session["ended_at"].is_null());
    let replay = rig.ok(&["sessions", "play", &id, "--speed", "1000"]);
    let last: u128 = replay.lines().filter_map(|l| l.trim().parse().ok()).next_back().unwrap();
    let lost = Duration::from_nanos(u64::try_from(killed.saturating_sub(last)).unwrap());
    // 250 ms unsynced, and what this machine took to say the time, send it and die.
    assert!(lost < Duration::from_millis(400), "{lost:?} are not on the tape");
    rig.ok(&["sessions", "verify", &id]);
    rig.ok(&["logs", "verify"]);
    let closed = rig.events("session_closed");
    assert!(closed.iter().any(|e| e["session"] == id.as_str() && e["status"] == "truncated"), "{closed:?}");
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
}

#[test]
fn a_crash_under_much_output_loses_no_more_than_64_kib_of_what_was_passed_on() {
    let mut rig = Rig::with_alice();
    // It ends when nobody reads it any more; who reads here stops first, so that less comes than is kept.
    let mut ssh = running(&rig, "base64 -w 76 /dev/urandom");
    let mut out = ssh.stdout.take().unwrap();
    let mut seen = vec![0; 3_000_000];
    std::io::Read::read_exact(&mut out, &mut seen).unwrap();
    let id = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap().to_owned();
    rig.kill_9();
    std::io::Read::read_to_end(&mut out, &mut seen).unwrap();
    ssh.wait().unwrap();
    rig.serve();
    let session = rig.json(&["sessions", "show", &id]);
    assert_eq!(session["status"], "truncated");
    let kept = session["channels"][0]["captured_bytes"].as_u64().unwrap();
    assert!(kept + (64 << 10) >= seen.len() as u64, "{kept} of {} bytes", seen.len());
    let cast = rig.ok(&["sessions", "play", &id, "--speed", "1000"]).replace("\r\n", "\n");
    let same = cast.len().min(seen.len());
    assert!(same + (64 << 10) >= seen.len() && cast.as_bytes()[..same] == seen[..same]);
    rig.ok(&["logs", "verify"]);
}

fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

/// `keyward serve` on a bastion that must not start: its one sentence.
fn refused(rig: &Rig) -> String {
    let start = Instant::now();
    let mut serve = rig.keyward(&["serve"]);
    let mut child = serve.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("it serves");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(output.stderr);
    // Before it may stand what the log says on the way, with a time.
    let sentences: Vec<_> = said.lines().filter(|line| line.starts_with("keyward: ")).collect();
    assert_eq!(sentences.len(), 1, "{said}");
    sentences[0].to_owned()
}

/// Every file of the bastion, with its size; the store's index, which is made from the journal, does not count.
fn inventory(rig: &Rig) -> Vec<String> {
    let mut find = Command::new("find");
    let found = find.arg(rig.path("bastion")).args(["-type", "f", "-printf", "%p %s\n"]).output().unwrap();
    let all = text(found.stdout);
    let mut lines: Vec<String> = all.lines().filter(|l| !l.contains("/index/")).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn without_its_master_key_a_bastion_does_not_start_and_nothing_is_made_anew() {
    let mut rig = Rig::with_alice();
    rig.kill_9();
    let key = rig.path("bastion/master.key");
    let good = fs::read_to_string(&key).unwrap();
    let write = |content: &str, mode: u32| {
        fs::write(&key, content).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    };
    // A key of another bastion.
    let other = rig.path("other");
    rig.ok(&["init", "--dir", other.to_str().unwrap()]);
    let foreign = fs::read_to_string(other.join("master.key")).unwrap();
    for (content, mode, word) in [
        (foreign.as_str(), 0o600, "checking the master key"),
        ("garbage\n", 0o600, "keyward.toml:8: master_key: "),
        ("", 0o600, "is not a master key"),
        (&good, 0o644, "chmod 600"),
    ] {
        write(content, mode);
        let before = inventory(&rig);
        let said = refused(&rig);
        assert!(said.contains(word), "{said}");
        assert_eq!(inventory(&rig), before);
    }
    fs::remove_file(&key).unwrap();
    let before = inventory(&rig);
    assert!(refused(&rig).contains("master.key"), "the missing file is named");
    assert_eq!(inventory(&rig), before);
    write(&good, 0o600);
    rig.serve();
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
}

#[test]
fn a_store_that_is_missing_beside_its_key_is_not_made_anew() {
    let mut rig = Rig::with_alice();
    rig.kill_9();
    for lost in ["state/store", "state"] {
        fs::rename(rig.path("bastion").join(lost), rig.path("kept")).unwrap();
        let before = inventory(&rig);
        let said = refused(&rig);
        assert!(said.contains("no store") && said.contains("restore the backup"), "{said}");
        assert_eq!(rig.run(&["init", "--dir", rig.path("bastion").to_str().unwrap()]).status.code(), Some(5));
        assert_eq!(inventory(&rig), before);
        fs::rename(rig.path("kept"), rig.path("bastion").join(lost)).unwrap();
    }
    // The index is only an index: it is made again from the journal.
    fs::remove_dir_all(rig.path("bastion/state/store/index")).unwrap();
    rig.serve();
    assert_eq!(rig.json(&["users", "list"])[0]["name"], "alice");
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
}

#[test]
fn a_terminated_daemon_tells_its_users_closes_their_tapes_and_exits_0() {
    let mut rig = Rig::with_alice();
    let mut ssh = running(&rig, "echo up; sleep 60");
    let mut up = String::new();
    BufReader::new(ssh.stdout.as_mut().unwrap()).read_line(&mut up).unwrap();
    let start = Instant::now();
    assert_eq!(rig.terminate().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let output = ssh.wait_with_output().unwrap();
    let told = text(output.stderr);
    assert!(told.contains("keyward: The bastion is restarting; please connect again"), "{told}");
    let state = rig.path("bastion/state");
    let offline = rig.ok(&["logs", "verify", "--state", state.to_str().unwrap()]);
    assert!(!offline.contains("not closed"), "{offline}");
    rig.serve();
    let session = &rig.json(&["sessions", "list"])[0];
    assert_eq!(session["status"], "killed");
    assert!(session["reason"].as_str().unwrap().contains("restarting"), "{session}");
    assert_eq!(rig.events("daemon_stopped").len(), 1);
}

/// A small file system for the tapes, until dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: std::path::PathBuf, size: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(&at);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then_some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_ends_what_cannot_be_recorded_and_nothing_else() {
    let mut rig = Rig::with_alice();
    rig.kill_9();
    let tapes = rig.path("bastion/state/tapes");
    fs::create_dir_all(&tapes).unwrap();
    let Some(disk) = SmallDisk::mount(tapes.clone(), "1m") else {
        eprintln!("skipped: only root can mount the small disk that this test fills");
        return;
    };
    rig.serve();
    let mut quiet = rig.client("ssh", "alice");
    let mut quiet = quiet.args(["db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the quiet session", || {
        rig.json(&["sessions", "list", "--live"])[0]["channels"][0]["kind"] == "exec"
    });
    // Random bytes fill the disk; the session that writes them ends with a sentence, and not at its own end.
    let loud = rig.ssh("alice", "head -c 8000000 /dev/urandom; echo the end");
    let told = text(loud.stderr);
    assert!(loud.stdout.len() < 8_000_000, "{}", loud.stdout.len());
    assert!(told.contains("Recording failed, so your session cannot go on. (session "), "{told}");
    let failed = rig.events("recording_failed");
    assert_eq!(failed.len(), 1, "{failed:?}");
    // No disk at all, no session: it is not opened, and says so.
    let filler = fs::File::create(tapes.join("filler")).unwrap();
    while std::io::Write::write(&mut &filler, &[0; 512]).is_ok() {}
    let refused = rig.ssh("alice", "echo unseen");
    let told = text(refused.stderr);
    assert!(refused.stdout.is_empty() && told.contains("cannot be recorded"), "{told}");
    // The daemon lives, and once there is room so does everything else.
    assert!(quiet.try_wait().unwrap().is_none(), "a session that recorded nothing since lives on");
    assert!(rig.run(&["status"]).status.success());
    let mut grow = Command::new("mount");
    assert!(grow.args(["-o", "remount,size=16m"]).arg(&tapes).status().unwrap().success());
    assert_eq!(text(rig.ssh("alice", "echo again").stdout), "again\n");
    std::io::Write::write_all(quiet.stdin.as_mut().unwrap(), b"word").unwrap();
    drop(quiet.stdin.take());
    assert_eq!(text(quiet.wait_with_output().unwrap().stdout), "word");
    rig.ended_sessions();
    rig.ok(&["logs", "verify"]);
    rig.kill_9();
    drop(disk);
}

#[test]
fn no_kill_9_leaves_a_change_without_its_event() {
    let mut rig = Rig::bastion();
    let keyward = format!(
        "KEYWARD_CONFIG={} {}",
        rig.path("bastion/keyward.toml").display(),
        env!("CARGO_BIN_EXE_keyward")
    );
    for round in 0..6 {
        // Many at once, so that the kill falls between an event and its change in one of them.
        let adders: Vec<Child> = (0..4)
            .map(|n| {
                let body = format!(
                    "i=0; while [ $i -lt 200 ]; do {keyward} users add u{round}.{n}.$i >/dev/null 2>&1 || exit 0; \
                     {keyward} users suspend u{round}.{n}.$i >/dev/null 2>&1 || exit 0; i=$((i + 1)); done"
                );
                Command::new(rig.script(&format!("adds_{round}_{n}"), &body)).spawn().unwrap()
            })
            .collect();
        let busy = || rig.json(&["users", "list"]).as_array().unwrap().len() > round * 5 + 4;
        wait_for("some users", busy);
        std::thread::sleep(Duration::from_millis(37 * (round as u64 + 1)));
        rig.kill_9();
        for mut adder in adders {
            adder.wait().unwrap();
        }
        rig.serve();
    }
    let told = |name: &str| -> std::collections::BTreeSet<String> {
        rig.events(name).iter().map(|e| e["user"].as_str().unwrap().to_owned()).collect()
    };
    let (added, suspended) = (told("user_added"), told("user_suspended"));
    for user in rig.json(&["users", "list"]).as_array().unwrap() {
        let name = user["name"].as_str().unwrap();
        assert!(added.contains(name), "{name} was added and the trail knows nothing of it");
        assert!(user["suspended"].is_null() || suspended.contains(name), "{name} was suspended unseen");
    }
    rig.ok(&["logs", "verify"]);
}

#[test]
fn a_best_effort_rule_lets_a_session_outlive_its_recording_and_a_strict_neighbour_ends() {
    let mut rig = Rig::with_alice();
    rig.add_user("bob");
    let login = rig.login.clone();
    let allow = |user: &str, more: &[&str]| {
        let rule = ["access", "allow", "--user", user, "--instance", "db-1", "--login", &login];
        rig.run(&[rule.as_slice(), more].concat()).status.code()
    };
    assert_eq!(allow("bob", &["--recording", "loose"]), Some(2));
    assert_eq!(allow("bob", &["--recording", "best-effort"]), Some(0));
    let deny = ["access", "deny", "--user", "bob", "--instance", "db-1", "--login", &login];
    assert_eq!(rig.run(&[deny.as_slice(), &["--recording", "strict"]].concat()).status.code(), Some(2));
    let listed = rig.ok(&["access", "list"]);
    assert!(listed.contains("best-effort") && listed.contains("default"), "{listed}");
    let explained = |user: &str| rig.ok(&["access", "explain", user, &format!("{login}@db-1")]);
    assert!(explained("bob").contains("recording best-effort"), "{}", explained("bob"));
    assert!(explained("alice").contains("recording strict"), "{}", explained("alice"));
    // Of several rules the strictest counts.
    assert_eq!(allow("bob", &["--recording", "strict", "--can", "exec"]), Some(0));
    assert!(explained("bob").contains("recording strict"));
    rig.ok(&["access", "remove", "R3"]);
    rig.kill_9();

    let tapes = rig.path("bastion/state/tapes");
    fs::create_dir_all(&tapes).unwrap();
    let Some(disk) = SmallDisk::mount(tapes, "1m") else {
        eprintln!("skipped: only root can mount the small disk that this test fills");
        return;
    };
    rig.serve();
    let mut strict = rig.client("ssh", "alice");
    strict.args(["db-1", "cat > /dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut strict = strict.stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the strict session", || {
        rig.json(&["sessions", "list", "--live"])[0]["channels"][0]["kind"] == "exec"
    });
    let loud = rig.ssh("bob", "head -c 8000000 /dev/urandom; echo the end");
    assert!(loud.status.success() && loud.stdout.ends_with(b"the end\n") && loud.stdout.len() == 8_000_008);
    // More than the disk ever had: what bob's tape could not write it gave back.
    let mut random = vec![0; 4_000_000];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    // It may end while it is written to.
    std::io::Write::write_all(strict.stdin.as_mut().unwrap(), &random).ok();
    let told = text(strict.wait_with_output().unwrap().stderr);
    assert!(told.contains("Recording failed, so your session cannot go on."), "{told}");
    let failed = rig.events("recording_failed");
    let mut users: Vec<_> = failed.iter().map(|event| event["user"].as_str().unwrap()).collect();
    users.sort_unstable();
    assert_eq!(users, ["alice", "bob"]);
    let opened = rig.events("session_opened");
    let terms = |user: &str| opened.iter().find(|e| e["user"] == user).unwrap()["recording"].clone();
    assert_eq!((terms("bob").as_str(), terms("alice").as_str()), (Some("best_effort"), None));
    let sessions = rig.json(&["sessions", "list", "--user", "bob"]);
    let (session, channel) = (&sessions[0], &sessions[0]["channels"][0]);
    assert_eq!(
        (session["recording"].as_str(), channel["capture"].as_str()),
        (Some("best_effort"), Some("none"))
    );
    assert!(channel["reason"].as_str().unwrap().contains("recording failed"), "{channel}");
    assert!(rig.ok(&["sessions", "show", session["id"].as_str().unwrap()]).contains("best-effort"));
    rig.kill_9();
    drop(disk);
}
