//! The web console in headless Chromium, driven by `browser.py`: playing, searching, ledger, live view.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::console::Console;
use crate::rig::text;

#[test]
fn an_auditor_works_in_a_browser() {
    let console = Console::new();
    let rig = &console.rig;
    let show =
        "echo needle-one; echo '<b>bold</b>'; printf '\\033[31mred\\033[0m\\n'; sleep 1; echo needle-two";
    assert!(rig.client("ssh", "alice").args(["-tt", "db-1", show]).status().unwrap().success());
    let file = rig.path("a-file");
    std::fs::write(&file, "content").unwrap();
    let there = format!("db-1:{}", rig.path("there").display());
    assert!(rig.client("scp", "alice").arg(&file).arg(there).status().unwrap().success());
    let recorded = rig.ended_sessions();
    let session = recorded.iter().find(|s| s["channels"][0]["kind"] == "exec").unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();

    let fifo = rig.path("keys");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut alice = rig.client("ssh", "alice");
    let mut alice = alice
        .args(["-tt", "db-1", "echo up-and-live; while read line; do echo \"live-$line\"; done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = BufReader::new(alice.stdout.take().unwrap());
    out.read_line(&mut said).unwrap();
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    let live = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap().to_owned();
    let mut keys = alice.stdin.take().unwrap();
    let typed = fifo.clone();
    let typing = std::thread::spawn(move || {
        let line = std::fs::read(typed).unwrap();
        keys.write_all(&line).unwrap();
        keys
    });

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stock/browser.py");
    let output = Command::new("timeout")
        .args(["120", "/usr/bin/python3", script, &format!("http://127.0.0.1:{}", console.port)])
        .args([&console.link("oscar"), &session, &live, &format!("echo needle > {}", fifo.display())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // Whatever came of it, nobody waits for keys any more.
    if !typing.is_finished() {
        Command::new("timeout")
            .args(["5", "sh", "-c", &format!("echo > {}", fifo.display())])
            .status()
            .unwrap();
    }
    drop(typing.join().unwrap());
    assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
    eprintln!("{}", text(output.stdout));
    alice.kill().unwrap();
    alice.wait().unwrap();
    assert!(!rig.events("console_signed_out").is_empty());
}
