//! Seeing a recording on one's own terminal: only drawing gets there, and keys steer it.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::rig::{Rig, text, wait_for};

/// What an instance may send to harm whoever looks: a clipboard, a title, a question, a device string, eight-bit controls,
/// keys that change, scrollback that goes, text that turns.
const HARM: &str = r"printf 'shown \033]52;c;ZXZpbA==\007\033]0;title\007\033[6n\033[c\033P$qm\033\\\302\2335n\033[?1000h\033[3J\342\200\256end\n'";

/// Adds `bob`, an auditor with key and authenticator.
fn auditor(rig: &Rig) {
    rig.add_user_as("bob", "auditor");
}

fn harmless(shown: &str) {
    let only_draws = !shown.contains("\u{1b}]")
        && !shown.contains("\u{1b}P")
        && ["6n", "5n", "[c", "1000h", "3J", "52;c", "title", "$qm"].iter().all(|part| !shown.contains(part))
        && !shown.contains(['\u{7}', '\u{9b}', '\u{202e}']);
    assert!(only_draws && shown.contains("shown end"), "{shown:?}");
}

#[test]
fn nothing_but_drawing_reaches_the_terminal_of_who_plays_watches_or_exports() {
    let rig = Rig::with_alice();
    // Long enough for a start after a second.
    let script = format!("{HARM}; read x; sleep 1.5");
    let mut live = rig.client("ssh", "alice");
    let mut live =
        live.args(["-tt", "db-1", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut id = String::new();
    wait_for("output", || {
        let session = rig.json(&["sessions", "list", "--live"])[0].clone();
        id = session["id"].as_str().unwrap_or_default().to_owned();
        session["bytes_out"].as_u64().is_some_and(|bytes| bytes > 20)
    });
    let watching = rig.keyward(&["sessions", "watch", &id]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the watcher", || rig.events("recording_viewed").len() == 1);
    let mut typed = live.stdin.take().unwrap();
    typed.write_all(b"x\n").unwrap();
    harmless(&text(watching.wait_with_output().unwrap().stdout));
    live.wait().unwrap();
    rig.ended_sessions();
    harmless(&rig.ok(&["sessions", "play", &id, "--speed", "100"]));
    harmless(&rig.ok(&["sessions", "play", &id, "--speed", "100", "--from", "1s"]));
    let cast = rig.ok(&["sessions", "export", &id]);
    let events = cast.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
    harmless(
        &events
            .filter(|event| event[1] == "o")
            .map(|event| event[2].as_str().unwrap().to_owned())
            .collect::<String>(),
    );
    // The whole truth is in the JSON, in escapes.
    let json = rig.ok(&["sessions", "export", &id, "--format", "json"]);
    assert!(json.contains("52;c;ZXZpbA==") && !json.contains(['\u{1b}', '\u{202e}']));
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(!log.contains('\u{1b}'), "the operator's log neither");
}

/// Somebody at a terminal.
struct Seat {
    child: Child,
    keys: ChildStdin,
    shows: Receiver<Vec<u8>>,
    shown: String,
}

impl Seat {
    fn at(command: &mut std::process::Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (keys, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (to, shows) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut bytes) {
                if to.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keys, shows, shown: String::new() }
    }

    fn sees(&mut self, wanted: &str) {
        while !self.shown.contains(wanted) {
            let Ok(bytes) = self.shows.recv_timeout(Duration::from_secs(60)) else {
                panic!("waited for {wanted:?} in {:?}", self.shown);
            };
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.shown.clear();
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }
}

/// A shell of three commands on tape; its id.
fn shell(rig: &Rig) -> String {
    let mut shell = rig.client("ssh", "alice");
    let mut shell =
        shell.args(["-tt", "db-1", "sh -i"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut typed = shell.stdin.take().unwrap();
    for command in ["echo fir''st", "echo sec''ond", "exit"] {
        // As a person types, one after the other.
        std::thread::sleep(Duration::from_millis(1200));
        typed.write_all(format!("{command}\n").as_bytes()).unwrap();
    }
    shell.wait().unwrap();
    rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned()
}

fn steered(mut seat: Seat) {
    seat.sees("echo");
    seat.types(" ");
    seat.sees("||");
    seat.types("/");
    seat.sees("/");
    seat.types("second\r");
    seat.sees("|| 0:00:0");
    seat.types("/nowhere\r");
    seat.sees("not found");
    seat.types("0");
    seat.sees("0:00:00/");
    seat.types("]");
    seat.sees("command: sh -i");
    seat.types("]");
    seat.sees("echo fir''st");
    seat.types("t");
    seat.sees("go to");
    seat.types("2s\r");
    seat.sees("0:00:02/");
    seat.types("+");
    seat.sees("2x");
    seat.types("q");
    assert!(seat.child.wait().unwrap().success());
}

#[test]
fn keys_steer_a_recording_at_the_local_door_and_over_ssh() {
    let rig = Rig::with_alice();
    auditor(&rig);
    let id = shell(&rig);
    let play = format!("{} sessions play {id}", env!("CARGO_BIN_EXE_keyward"));
    let mut local = std::process::Command::new("script");
    local.args(["-qec", &format!("stty cols 90 rows 30; {play}"), "/dev/null"]);
    local.env("KEYWARD_CONFIG", rig.path("bastion/keyward.toml")).env("SHELL", "/bin/sh");
    steered(Seat::at(&mut local));
    let mut remote = rig.client("ssh", "bob");
    steered(Seat::at(remote.args(["-tt", "bastion", &format!("sessions play {id}")])));
    // Without a terminal it plays as ever.
    assert!(rig.ok(&["sessions", "play", &id, "--speed", "100"]).contains("second"));
    // Her neighbour, an engineer, is refused at the same door.
    let alice =
        rig.client("ssh", "alice").args(["-tt", "bastion", &format!("sessions play {id}")]).output().unwrap();
    assert_eq!(alice.status.code(), Some(4));
    assert!(!text(alice.stdout).contains("second"));
}

#[test]
fn a_search_is_an_event_whether_it_finds_something_or_not() {
    let rig = Rig::with_alice();
    auditor(&rig);
    for word in ["one", "two", "three"] {
        rig.ssh("alice", &format!("echo word-{word}"));
    }
    let ids: Vec<_> = rig.ended_sessions().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    let found = rig.ok(&["sessions", "search", "WORD-"]);
    let mut order: Vec<_> = found.lines().map(|line| line.split(' ').next().unwrap()).collect();
    order.dedup();
    assert_eq!(order, ids, "oldest first, although they are read side by side");
    assert_eq!(rig.ok(&["sessions", "search", "nothing-like-it"]), "");
    let searched = rig.events("recordings_searched");
    let told: Vec<_> =
        searched.iter().map(|e| (e["pattern"].as_str().unwrap(), e["count"].as_u64().unwrap())).collect();
    assert_eq!(told, [("WORD-", 3), ("nothing-like-it", 3)]);
    assert_eq!(rig.events("recording_viewed").len(), 3, "what was found was seen");
    let alice = rig.client("ssh", "alice").args(["bastion", "sessions search word-"]).output().unwrap();
    assert_eq!((alice.status.code(), rig.events("recordings_searched").len()), (Some(4), 2));
}

#[test]
fn what_is_watched_over_ssh_is_less_than_200_ms_old() {
    let rig = Rig::with_alice();
    auditor(&rig);
    let mut live = rig.client("ssh", "alice");
    live.args(["-tt", "db-1", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut live = live.spawn().unwrap();
    let mut id = String::new();
    wait_for("a live session", || {
        id = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    });
    let mut watching = rig.shared("ssh", "bob");
    let mut watching =
        watching.args(["bastion", &format!("sessions watch {id}")]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the watcher", || rig.events("recording_viewed").len() == 1);
    let (mut keys, mut screen) = (live.stdin.take().unwrap(), watching.stdout.take().unwrap());
    let mut late = 0;
    const ROUNDS: usize = 60;
    for n in 0..ROUNDS {
        let line = format!("<{n:03}>");
        let since = std::time::Instant::now();
        keys.write_all(format!("{line}\n").as_bytes()).unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(line.as_bytes()) {
            screen.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        late += usize::from(since.elapsed() >= Duration::from_millis(200));
    }
    // From the key to the watcher's terminal, with the instance's echo between; a busy machine has its moments.
    assert!(late <= ROUNDS / 2, "{late} of {ROUNDS} came late");
    eprintln!("{late} of {ROUNDS} later than 200 ms");
    live.kill().unwrap();
    live.wait().unwrap();
    watching.wait().unwrap();
}
