//! Files that go through by every way a shell has are operations, or the ledger says why not; what is typed.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::rig::{Rig, write};

/// A person at a terminal: types each line once what stands before it was shown. Returns all that was shown.
fn at_a_terminal(rig: &Rig, command: &[&str], typed: &[(&str, &str)]) -> String {
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["-tt", "db-1"]).args(command).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.stderr(Stdio::null()).spawn().unwrap();
    let (mut keys, mut screen) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let (sender, screens) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read) = screen.read(&mut bytes)
            && read > 0
            && sender.send(bytes[..read].to_vec()).is_ok()
        {}
    });
    let (mut shown, mut seen) = (String::new(), 0);
    for (until, line) in typed {
        while !shown[seen..].contains(until) {
            let Ok(more) = screens.recv_timeout(Duration::from_secs(30)) else {
                ssh.kill().unwrap();
                panic!("{until:?} was never shown: {shown:?}");
            };
            shown.push_str(&String::from_utf8_lossy(&more));
        }
        seen += shown[seen..].find(until).unwrap() + until.len();
        keys.write_all(line.as_bytes()).unwrap();
    }
    drop(keys);
    shown.extend(screens.iter().map(|more| String::from_utf8_lossy(&more).into_owned()));
    reading.join().unwrap();
    ssh.wait().unwrap();
    shown
}

/// The operations of the newest session, as JSON.
fn operations(rig: &Rig) -> (Value, Vec<Value>) {
    let session = rig.ended_sessions().pop().unwrap();
    let file = rig.path("export.json");
    let file = file.to_str().unwrap();
    rig.ok(&["sessions", "export", session["id"].as_str().unwrap(), "--format", "json", "--output", file]);
    let all: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    fs::remove_file(file).unwrap();
    let records = all.as_array().or_else(|| all["records"].as_array()).unwrap().clone();
    let found = records.iter().filter_map(|r| r["what"].get("operation").cloned()).collect();
    (session["channels"][0].clone(), found)
}

#[test]
fn an_upload_through_a_terminal_is_an_operation() {
    let rig = Rig::with_alice();
    for (n, command) in
        ["scp -t", "sh -c 'exec scp -t \"$0\"'", "cp $(command -v scp) it; ./it -t"].iter().enumerate()
    {
        let there = rig.path(&format!("there{n}"));
        let command = format!("cd {}; {command} {}", rig.path("").display(), there.display());
        // The terminal is in its usual mode: it wants lines, and ^D for the end.
        at_a_terminal(&rig, &[&command], &[("\0", "C0644 7 up\nhidden\n\0\u{4}\u{4}\u{4}")]);
        assert_eq!(fs::read_to_string(&there).unwrap(), "hidden\n", "{command}");
        let (channel, operations) = operations(&rig);
        let [file] = operations.as_slice() else { panic!("{command}: {channel} {operations:?}") };
        assert_eq!((file["deed"].as_str(), file["bytes"].as_u64()), (Some("written"), Some(7)), "{file}");
        assert_eq!(file["sha256"].as_str().map(str::len), Some(64));
        assert_ne!(channel["capture"], "full", "{channel}");
        assert!(channel["reason"].as_str().unwrap().contains("terminal"), "{channel}");
    }
    assert_eq!(rig.events("file_written").len(), 3);
    assert!(rig.ok(&["sessions", "gaps"]).contains("a transfer at a terminal"));
}

#[test]
fn sftp_and_rsync_by_other_ways_are_operations() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("up"), 40_000);
    let client = rig.client("ssh", "alice");
    let config = client.get_args().nth(1).unwrap().to_str().unwrap().to_owned();
    let there = rig.path("there");
    // sftp's server as a command, by its path.
    fs::write(rig.path("batch"), format!("put {} {}\n", rig.path("up").display(), there.display())).unwrap();
    let mut sftp = rig.client("sftp", "alice");
    sftp.args(["-s", "/usr/lib/openssh/sftp-server", "db-1"])
        .stdin(fs::File::open(rig.path("batch")).unwrap());
    assert!(sftp.status().unwrap().success());
    assert_eq!(fs::read(&there).unwrap(), content);
    let (channel, found) = operations(&rig);
    assert!(found.iter().any(|o| o["deed"] == "written" && o["bytes"] == 40_000), "{found:?}");
    assert_eq!((channel["kind"].as_str(), channel["capture"].as_str()), (Some("exec"), Some("full")));

    // rsync whose file names are in the stream, and one behind a shell.
    for (n, path) in [vec!["-s"], vec!["--rsync-path", "cd / && rsync"]].iter().enumerate() {
        let there = rig.path(&format!("rsynced{n}"));
        let mut rsync = std::process::Command::new("rsync");
        rsync.args(path).args(["-e", &format!("ssh -F {config}")]).arg(rig.path("up"));
        rsync.arg(format!("db-1:{}", there.display()));
        assert!(rig.asked(&mut rsync, "alice").status.success());
        let (_, found) = operations(&rig);
        let [file] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((file["by"].as_str(), file["path"].as_str()), (Some("rsync"), there.to_str()), "{file}");
        assert_eq!(file["stream_sha256"].as_str().map(str::len), Some(64));
        assert!(file["fault"].as_str().unwrap().contains("not single files"), "{file}");
    }
}

#[test]
fn a_file_that_is_piped_into_a_command_is_on_the_tape() {
    let rig = Rig::with_alice();
    let there = rig.path("there");
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["db-1", &format!("head -c 20000000 /dev/zero; base64 -d > {}", there.display())]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    ssh.stdin.take().unwrap().write_all(b"aGlkZGVuLXdvcmRz\n").unwrap();
    ssh.wait().unwrap();
    assert_eq!(fs::read_to_string(there).unwrap(), "hidden-words");
    let (channel, _) = operations(&rig);
    assert_eq!(channel["capture"], "digest", "{channel}");
    // 16 MiB of zeros went before it, and hide nothing.
    assert!(rig.ok(&["sessions", "search", "aGlkZGVuLXdvcmRz"]).contains("aGlkZGVu"));
}

/// What real scp refuses at the instance is not there, and what follows is a file of its own.
#[test]
fn an_upload_behind_a_refused_one_is_named() {
    let rig = Rig::with_alice();
    let there = rig.path("there");
    fs::create_dir_all(there.join("taken")).unwrap();
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["db-1", "scp", "-r", "-d", "-t", there.to_str().unwrap()]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut up, mut down) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let mut answer = || {
        let mut said = vec![0];
        down.read_exact(&mut said).unwrap();
        while said[0] != 0 && !said.ends_with(b"\n") {
            said.push(0);
            let at = said.len() - 1;
            down.read_exact(&mut said[at..]).unwrap();
        }
        said[0]
    };
    assert_eq!(answer(), 0);
    // A directory is in the way of the first; the second is one that the first's content seems to hold.
    for (line, taken) in [
        ("C0644 9999 taken\n", 1),
        ("C0644 5 evil\n", 0),
        ("hello\0", 0),
        ("D0755 0 evil\n", 1),
        ("C0644 2 more\n", 0),
        ("hi\0", 0),
    ] {
        up.write_all(line.as_bytes()).unwrap();
        assert_eq!(answer(), taken, "{line}");
    }
    drop(up);
    ssh.wait().unwrap();
    assert_eq!(fs::read(there.join("evil")).unwrap(), b"hello");
    assert_eq!(fs::read(there.join("more")).unwrap(), b"hi");
    let told = |name: &str| there.join(name).to_str().unwrap().to_owned();
    let written = rig.events("file_written");
    let paths: Vec<_> =
        written.iter().map(|e| (e["path"].as_str().unwrap().to_owned(), e["bytes"].as_u64())).collect();
    assert_eq!(paths, [(told("taken"), Some(0)), (told("evil"), Some(5)), (told("more"), Some(2))]);
    assert!(
        written[0]["reason"].as_str().unwrap().contains("Is a directory") && written[1]["reason"].is_null()
    );
    assert!(rig.ok(&["sessions", "list", "--path", "/there/evil"]).contains("alice"));
}

/// A name that a file got later is found too.
#[test]
fn a_file_is_found_by_the_name_it_was_given_after_its_upload() {
    let rig = Rig::with_alice();
    let (here, there) = (rig.path("here"), rig.path("there"));
    fs::create_dir(&there).unwrap();
    fs::write(&here, "hello").unwrap();
    let batch = rig.path("batch");
    let lines = format!(
        "put {here} {there}/harmless\nrename {there}/harmless {there}/evil\nrm {there}/nothing\n",
        here = here.display(),
        there = there.display()
    );
    fs::write(&batch, lines).unwrap();
    let mut sftp = rig.client("sftp", "alice");
    sftp.args(["-b", batch.to_str().unwrap(), "db-1"]).output().unwrap();
    assert!(there.join("evil").exists());
    crate::rig::wait_for("the event", || rig.events("file_changed").iter().any(|e| e["deed"] == "renamed"));
    rig.ended_sessions();
    let found = rig.json(&["sessions", "list", "--path", "there/evil"]);
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(
        rig.json(&["sessions", "list", "--path", "there/nothing"]).as_array().unwrap().len(),
        0,
        "it was refused"
    );
    let session = found[0]["id"].as_str().unwrap();
    rig.ok(&["sessions", "verify", session]);
    assert!(rig.ok(&["sessions", "search", "no such words"]).is_empty());
}

#[test]
fn lines_typed_at_a_shell_are_exported_if_that_is_configured_and_passwords_never() {
    let rig = Rig::with_alice_and("input = true\n");
    let shell = [
        ("ready> ", "read -rsp 'Password: ' p\r"),
        // Not as soon as the line that asks for it is echoed: bash would read the return before the terminal turns it into
        // a line end.
        ("\rPassword: ", "hunter2-secret\r"),
        ("ready> ", "stty -echo; echo go; read q; stty echo\r"),
        ("\rgo\r\n", "quiet-secret\r"),
        ("ready> ", "echo 'lösung' | wc -c\r"),
        ("8\r\n", "exit\r"),
    ];
    let command = ["PS1='ready> ' bash --norc --noprofile"];
    let shown = at_a_terminal(&rig, &command, &shell);
    assert!(!shown.contains("secret"), "the terminal showed it: {shown:?}");
    let session = rig.ended_sessions().pop().unwrap();
    let file = rig.path("cast");
    rig.ok(&["sessions", "export", session["id"].as_str().unwrap(), "--output", file.to_str().unwrap()]);
    let cast = fs::read_to_string(&file).unwrap();
    let typed: Vec<String> = cast
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event[1] == "i")
        .map(|event| event[2].as_str().unwrap().to_owned())
        .collect();
    let all = typed.concat();
    assert!(
        all.contains("read -rsp 'Password: ' p\r") && all.contains("echo 'lösung' | wc -c\r"),
        "{typed:?}"
    );
    assert!(!cast.contains("secret"), "{typed:?}");
    let gaps = rig.json(&["sessions", "gaps"]);
    let missing = gaps[0]["bytes"].as_u64().unwrap();
    assert!((27..60).contains(&missing), "both passwords, and what came too late: {gaps}");
    // Off by default.
    let other = Rig::with_alice();
    at_a_terminal(&other, &["PS1='ready> ' bash --norc --noprofile"], &[("ready> ", "exit\r")]);
    let session = other.ended_sessions().pop().unwrap();
    other.ok(&["sessions", "export", session["id"].as_str().unwrap(), "--output", file.to_str().unwrap()]);
    assert!(!fs::read_to_string(&file).unwrap().contains("\"i\""));
}
