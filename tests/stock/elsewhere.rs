//! Events elsewhere: a syslog server and a webhook get every event, across `kill -9` and while one of them is dead.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::rig::{Rig, free_port, text, wait_for};

type Got = Arc<Mutex<Vec<Value>>>;

/// A syslog server (octet counting) on `port`.
fn syslog(port: u16) -> Got {
    let got = Got::default();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let into = Arc::clone(&got);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let into = Arc::clone(&into);
            std::thread::spawn(move || {
                let mut from = BufReader::new(stream);
                let mut length = Vec::new();
                while from.read_until(b' ', &mut length).is_ok_and(|read| read > 0) {
                    let Ok(size) = String::from_utf8_lossy(&length).trim().parse() else { return };
                    let mut message = vec![0; size];
                    if from.read_exact(&mut message).is_err() {
                        return;
                    }
                    let message = String::from_utf8(message).unwrap();
                    let json = message.split_once('\u{feff}').unwrap().1;
                    into.lock().unwrap().push(serde_json::from_str(json).unwrap());
                    length.clear();
                }
            });
        }
    });
    got
}

/// A web server that takes a batch and refuses the next.
fn webhook(port: u16) -> Got {
    let got = Got::default();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let into = Arc::clone(&got);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let mut from = BufReader::new(stream);
            let (mut length, mut line) = (0, String::new());
            while from.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(size) = line.to_lowercase().strip_prefix("content-length:") {
                    length = size.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if from.read_exact(&mut body).is_err() {
                continue;
            }
            let takes = number % 2 == 0;
            if takes {
                let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
                into.lock().unwrap().extend(events);
            }
            let status = if takes { "200 OK" } else { "500 Broken" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            from.get_mut().write_all(answer.as_bytes()).ok();
        }
    });
    got
}

fn seqs(got: &Got) -> BTreeSet<u64> {
    got.lock().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

#[test]
fn every_event_leaves_the_house_across_kill_9_and_a_dead_receiver_holds_nothing_up() {
    let (log, hook) = (free_port(), free_port());
    let lines = format!(
        "[audit.syslog]\naddress = \"tcp://127.0.0.1:{log}\"\n[audit.webhook]\nurl = \"http://127.0.0.1:{hook}/in\"\nsecret = \"../hook.secret\"\n"
    );
    let mut rig = Rig::unstarted(&lines);
    fs::write(rig.path("hook.secret"), "a secret of some length").unwrap();
    // Nobody listens yet, and the bastion works.
    rig.serve();
    rig.add_user("alice");
    let status = rig.json(&["status"]);
    let behind = status["receivers"][0]["behind"].as_u64().unwrap();
    assert!(behind >= 2 && status["receivers"][1]["name"] == "webhook", "{status}");
    wait_for("the fault", || rig.ok(&["status"]).contains("WARNING: syslog tcp://"));
    let (logged, hooked) = (syslog(log), webhook(hook));
    let mut users = 0;
    for _ in 0..3 {
        for _ in 0..5 {
            users += 1;
            rig.ok(&["users", "add", &format!("user-{users}")]);
        }
        rig.kill_9();
        rig.serve();
    }
    rig.ok(&["users", "add", "last"]);
    let all: BTreeSet<u64> = (1..=rig.json(&["status"])["audit"]["seq"].as_u64().unwrap()).collect();
    for (got, name) in [(&logged, "syslog"), (&hooked, "webhook")] {
        wait_for(name, || seqs(got).is_superset(&all));
        let names: Vec<_> =
            got.lock().unwrap().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
        assert!(names.iter().filter(|name| *name == "user_added").count() > users, "{name}");
    }
    wait_for("the cursors", || {
        rig.json(&["status"])["receivers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|to| to["behind"] == 0 && to["fault"].is_null())
    });
    // The stop signs the chain; that head is elsewhere too, and proves itself.
    rig.stop();
    std::thread::sleep(Duration::from_millis(200));
    let heads: Vec<_> = logged
        .lock()
        .unwrap()
        .iter()
        .filter(|e| e["event"] == "checkpoint_signed")
        .map(Value::to_string)
        .collect();
    assert!(!heads.is_empty());
    fs::write(rig.path("heads"), heads.join("\n") + "\n").unwrap();
    let (state, heads) = (rig.path("bastion/state"), rig.path("heads"));
    let verify = || {
        rig.run(&["logs", "verify", "--state", state.to_str().unwrap(), "--heads", heads.to_str().unwrap()])
    };
    assert!(verify().status.success(), "{}", text(verify().stderr));
    // Rolled back as a whole, checkpoints and all.
    for file in fs::read_dir(state.join("audit/checkpoints")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let journal = state.join("audit/journal");
    let segment = fs::read_dir(&journal).unwrap().map(|f| f.unwrap().path());
    let segment = segment.filter(|f| fs::read_to_string(f).is_ok_and(|t| t.starts_with('1'))).min().unwrap();
    let first: Vec<_> = fs::read_to_string(&segment).unwrap().lines().take(2).map(str::to_owned).collect();
    fs::write(&segment, first.join("\n") + "\n").unwrap();
    assert_eq!(verify().status.code(), Some(10));
}

#[test]
fn a_receiver_that_is_none_is_refused_with_its_line() {
    let rig = Rig::unstarted("[audit.webhook]\nurl = \"http://siem.example/in\"\nsecret = \"s\"\n");
    let checked = rig.run(&["config", "check"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(checked.stderr).contains("audit.webhook.url"));
    // A secret that is not there: nothing starts.
    let rig = Rig::unstarted("[audit.webhook]\nurl = \"https://siem.example/in\"\nsecret = \"nowhere\"\n");
    let served = rig.run(&["serve"]);
    assert!(!served.status.success() && text(served.stderr).contains("nowhere"));
}
