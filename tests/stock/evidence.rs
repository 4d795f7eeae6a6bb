//! The red team: whatever is edited, cut, swapped, removed or rolled back is named, exit code 10. And what a crash loses.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::rig::{Rig, text};

/// Two sessions, the daemon stopped cleanly after each: the state as it was after the first, and as it is.
struct Scene {
    rig: Rig,
    earlier: PathBuf,
}

fn scene() -> Scene {
    let mut rig = Rig::with_alice();
    rig.ssh("alice", "echo first; head -c 3000 /dev/urandom | base64");
    rig.ended_sessions();
    rig.stop();
    let earlier = rig.path("earlier");
    copy(&rig.path("bastion/state"), &earlier);
    rig.serve();
    rig.ssh("alice", "echo second; head -c 3000 /dev/urandom | base64");
    rig.ended_sessions();
    rig.stop();
    Scene { rig, earlier }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Every file below `dir` that is evidence, with its path from there; the store's index is made from its journal.
fn evidence(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            match path.is_dir() {
                true if name != "index" => folders.push(path),
                false if name != "lock" && name != "reserve" => {
                    found.push(path.strip_prefix(dir).unwrap().to_owned());
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

impl Scene {
    /// A fresh copy of the state, to be tampered with.
    fn copy(&self) -> PathBuf {
        let copied = self.rig.path("copy");
        if copied.exists() {
            fs::remove_dir_all(&copied).unwrap();
        }
        copy(&self.rig.path("bastion/state"), &copied);
        copied
    }

    fn verify(&self, state: &Path) -> Output {
        let key = self.rig.path("bastion/audit_key.pub");
        self.rig.run(&[
            "logs",
            "verify",
            "--state",
            state.to_str().unwrap(),
            "--trust",
            key.to_str().unwrap(),
        ])
    }

    /// The state does not verify, and the fault names a file of it.
    fn caught(&self, state: &Path, what: &str) -> String {
        let output = self.verify(state);
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(10), "{what}: {said}{}", text(output.stdout));
        assert!(said.contains(state.to_str().unwrap()), "{what}: no file is named: {said}");
        said
    }
}

#[test]
fn an_untouched_copy_is_whole_and_says_so() {
    let scene = scene();
    let output = scene.verify(&scene.copy());
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(text(output.stdout).contains("2 tapes (2 opened): whole and unchanged"));
}

#[test]
fn every_file_that_is_edited_cut_or_removed_is_named() {
    let scene = scene();
    let files = evidence(&scene.rig.path("bastion/state"));
    assert!(files.len() >= 12, "{files:?}");
    for file in &files {
        let state = scene.copy();
        let path = state.join(file);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 2] {
            let mut edited = whole.clone();
            edited[at] ^= 0x01;
            fs::write(&path, &edited).unwrap();
            scene.caught(&state, &format!("{} edited at {at}", file.display()));
        }
        for length in [0, whole.len() / 2] {
            fs::write(&path, &whole[..length]).unwrap();
            scene.caught(&state, &format!("{} cut to {length}", file.display()));
        }
        fs::remove_file(&path).unwrap();
        let said = scene.caught(&state, &format!("{} removed", file.display()));
        let name = file.file_name().unwrap().to_str().unwrap();
        let journal = file.extension().is_some_and(|kind| kind == "journal");
        assert!(said.contains(name) || journal, "{name} removed: {said}");
    }
}

#[test]
fn every_file_that_is_swapped_with_another_of_its_kind_is_named() {
    let scene = scene();
    let files = evidence(&scene.rig.path("bastion/state"));
    let mut swapped = 0;
    for file in &files {
        let like = |other: &&PathBuf| {
            *other != file && other.extension() == file.extension() && other.parent() == file.parent()
        };
        for other in files.iter().filter(like) {
            let state = scene.copy();
            let (one, two) = (fs::read(state.join(file)).unwrap(), fs::read(state.join(other)).unwrap());
            fs::write(state.join(file), two).unwrap();
            fs::write(state.join(other), one).unwrap();
            scene.caught(&state, &format!("{} swapped with {}", file.display(), other.display()));
            swapped += 1;
        }
    }
    assert!(swapped >= 8, "{swapped}");
    // Both files of a checkpoint under the name of another one.
    let state = scene.copy();
    let statements: Vec<_> = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "json") && f.starts_with("audit"))
        .collect();
    for kind in ["json", "sig"] {
        let name = |at: usize| state.join(statements[at]).with_extension(kind);
        fs::copy(name(0), name(1)).unwrap();
    }
    assert!(scene.caught(&state, "a checkpoint under another name").contains("it was moved"));
}

#[test]
fn every_file_that_is_rolled_back_is_named_and_the_whole_state_against_its_heads() {
    let mut scene = scene();
    let files = evidence(&scene.rig.path("bastion/state"));
    let mut rolled = 0;
    for file in &files {
        let state = scene.copy();
        let before = scene.earlier.join(file);
        let unchanged = fs::read(&before).is_ok_and(|old| old == fs::read(state.join(file)).unwrap());
        if unchanged {
            continue;
        }
        match before.exists() {
            true => drop(fs::copy(&before, state.join(file)).unwrap()),
            false => fs::remove_file(state.join(file)).unwrap(),
        }
        scene.caught(&state, &format!("{} rolled back", file.display()));
        rolled += 1;
    }
    assert!(rolled >= 5, "{rolled}");
    // The audit folder as a whole: the tapes know better.
    let state = scene.copy();
    fs::remove_dir_all(state.join("audit")).unwrap();
    copy(&scene.earlier.join("audit"), &state.join("audit"));
    assert!(scene.caught(&state, "the trail rolled back").contains("knows no such session"));

    // Everything: only what was kept elsewhere knows.
    let config = scene.rig.path("bastion/keyward.toml");
    let heads = scene.rig.path("heads");
    let more = format!("{}\n[audit]\nhead_file = {:?}\n", fs::read_to_string(&config).unwrap(), heads);
    fs::write(&config, more).unwrap();
    scene.rig.serve();
    scene.rig.stop();
    let state = scene.copy();
    let verify = |state: &Path| {
        let (state, heads) = (state.to_str().unwrap(), heads.to_str().unwrap());
        scene.rig.run(&["logs", "verify", "--state", state, "--heads", heads])
    };
    assert!(verify(&state).status.success());
    assert!(scene.verify(&scene.earlier).status.success(), "it was whole, once");
    let output = verify(&scene.earlier);
    assert_eq!(output.status.code(), Some(10), "{}", text(output.stderr));
}

#[test]
fn a_store_that_is_rolled_back_is_named_and_a_start_on_it_is_told() {
    let mut scene = scene();
    let state = scene.rig.path("bastion/state");
    fs::remove_dir_all(state.join("store")).unwrap();
    copy(&scene.earlier.join("store"), &state.join("store"));
    assert!(scene.caught(&state, "the store rolled back").contains("the store was rolled back"));
    // A restored backup is no secret for ever, and no fault for ever.
    scene.rig.serve();
    let told = scene.rig.events("store_replaced");
    assert!(told.len() == 1 && told[0]["reason"].as_str().unwrap().contains("rolled back"), "{told:?}");
    scene.rig.stop();
    assert!(scene.verify(&state).status.success());
    // A copy without the store says so.
    let copied = scene.copy();
    fs::remove_dir_all(copied.join("store")).unwrap();
    let output = scene.verify(&copied);
    assert!(output.status.success() && text(output.stdout).contains("the store is not here"));
}

#[test]
fn a_file_of_heads_begins_at_the_start_and_its_removal_is_told() {
    let mut rig = Rig::with_alice();
    rig.stop();
    let (config, heads) = (rig.path("bastion/keyward.toml"), rig.path("heads"));
    // The disk of any machine is fuller than this.
    let more = format!("\n[audit]\nhead_file = {heads:?}\ndisk_warn_percent = 1\n");
    fs::write(&config, fs::read_to_string(&config).unwrap() + &more).unwrap();
    rig.serve();
    assert!(rig.run(&["logs", "verify"]).status.success(), "whole at once");
    crate::rig::wait_for("the alarm", || rig.events("disk_low").len() == 1);
    assert!(rig.ok(&["status"]).contains("WARNING: the disk is "));
    fs::remove_file(&heads).unwrap();
    assert_eq!(rig.run(&["logs", "verify"]).status.code(), Some(10), "gone");
    rig.stop();
    fs::remove_file(&heads).unwrap();
    rig.serve();
    assert!(rig.run(&["logs", "verify"]).status.success());
    assert_eq!(rig.events("head_file_begun").len(), 2, "the trail tells that it began twice");
}

#[test]
fn a_folder_that_was_written_anew_with_a_signer_of_its_own_is_caught() {
    let scene = scene();
    let other = Rig::with_alice();
    let state = scene.copy();
    fs::remove_dir_all(&state).unwrap();
    copy(&other.path("bastion/state"), &state);
    assert!(scene.caught(&state, "another bastion's state").contains("signer.pub"));
}

#[test]
fn the_daemon_names_what_was_changed_under_it() {
    let mut scene = scene();
    scene.rig.serve();
    let state = scene.rig.path("bastion/state");
    for file in evidence(&state) {
        let path = state.join(&file);
        let whole = fs::read(&path).unwrap();
        let mut edited = whole.clone();
        edited[whole.len() / 2] ^= 1;
        fs::write(&path, &edited).unwrap();
        let output = scene.rig.run(&["logs", "verify"]);
        assert_eq!(output.status.code(), Some(10), "{}: {}", file.display(), text(output.stderr));
        fs::write(&path, &whole).unwrap();
    }
    assert!(scene.rig.run(&["logs", "verify"]).status.success());
}

#[test]
fn a_checkpoint_is_proved_with_openssh_alone() {
    let scene = scene();
    let dir = scene.rig.path("bastion");
    let key = fs::read_to_string(dir.join("audit_key.pub")).unwrap();
    fs::write(scene.rig.path("signers"), format!("bastion {key}")).unwrap();
    let files = evidence(&dir.join("state"));
    let statement = files
        .iter()
        .find(|f| f.starts_with("audit/checkpoints") && f.extension().is_some_and(|e| e == "json"));
    let statement = dir.join("state").join(statement.unwrap());
    let proved = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "bastion", "-n", "keyward-audit", "-f"])
        .arg(scene.rig.path("signers"))
        .arg("-s")
        .arg(statement.with_extension("sig"))
        .stdin(fs::File::open(&statement).unwrap())
        .output()
        .unwrap();
    assert!(proved.status.success(), "{}", text(proved.stderr));
}

/// `KEYWARD_KILLS` rounds, each with a session, an upload, changes by an admin and checkpoints under way.
#[test]
fn a_kill_at_any_moment_loses_no_more_than_the_bound_and_says_so() {
    let rounds = std::env::var("KEYWARD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(16u64);
    let mut rig =
        Rig::with_alice_and("[mfa]\nremember = \"1h\"\n[audit]\ncheckpoint_events = 3\nreserve_mb = 1\n");
    // The code is asked for once.
    rig.ssh("alice", "true");
    crate::rig::write(&rig.path("up"), 3_000_000);
    let before = rig.ended_sessions();
    let mut known: BTreeSet<String> = before.iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
    let mut most = 0;
    for round in 0..rounds {
        let out = rig.path("seen");
        let mut live = rig.client("ssh", "alice");
        let live = live.args(["db-1", "while seq 1 50; do sleep 0.01; done"]);
        let live = live.stdout(fs::File::create(&out).unwrap()).stderr(Stdio::null());
        let mut live = live.spawn().unwrap();
        crate::rig::wait_for("output", || fs::metadata(&out).unwrap().len() > 0);
        let mut copy = rig.client("scp", "alice");
        copy.args(["-q", if round % 2 == 0 { "-O" } else { "-s" }]).arg(rig.path("up"));
        let copy = copy.arg(format!("db-1:{}", rig.path("there").display())).stderr(Stdio::null());
        let mut copy = copy.spawn().unwrap();
        let admin = (0..).map(|n| {
            let name = format!("u{round}-{n}");
            (rig.keyward(&["users", "add", &name]), name)
        });
        let admin: Vec<_> = admin.take(40).collect();
        let admin = std::thread::spawn(move || {
            let done = admin.into_iter().map_while(|(mut add, name)| {
                add.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success().then_some(name)
            });
            done.collect::<Vec<_>>()
        });
        let mut moment = [0; 2];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut moment).unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(u16::from_le_bytes(moment)) % 700));
        rig.kill_9();
        live.wait().unwrap();
        copy.wait().unwrap();
        let added = admin.join().unwrap();
        rig.serve();
        most = most.max(checked(&rig, &mut known, &fs::read(&out).unwrap()));
        let users = rig.json(&["users", "list"]);
        let users: BTreeSet<_> =
            users.as_array().unwrap().iter().map(|u| u["name"].as_str().unwrap()).collect();
        // What was said to be done is done, whenever the kill came.
        assert!(added.iter().all(|name| users.contains(name.as_str())), "round {round}: {added:?}");
    }
    rig.stop();
    let state = rig.path("bastion/state");
    rig.ok(&["logs", "verify", "--state", state.to_str().unwrap()]);
    println!("{rounds} kills, at most {most} bytes lost");
}

/// After a kill: everything verifies, and of the session that was `seen` no more is lost than may be. Returns how much.
fn checked(rig: &Rig, known: &mut BTreeSet<String>, seen: &[u8]) -> u64 {
    rig.ok(&["logs", "verify"]);
    let sessions = rig.json(&["sessions", "list"]);
    let of = |session: &serde_json::Value| session["id"].as_str().unwrap().to_owned();
    let sessions = sessions.as_array().unwrap();
    let new: Vec<_> = sessions.iter().filter(|session| !known.contains(&of(session))).collect();
    known.extend(sessions.iter().map(of));
    // The first of the round; what it ran may be in the part that is lost.
    let Some(session) = new.first() else { panic!("the session that was seen is not there") };
    assert_eq!(session["status"], "truncated");
    let kept = session["channels"][0]["captured_bytes"].as_u64().unwrap_or(0);
    let lost = (seen.len() as u64).saturating_sub(kept);
    assert!(lost <= 64 << 10, "{lost} of {} bytes lost", seen.len());
    let id = of(session);
    let cast = rig.ok(&["sessions", "play", &id, "--speed", "1000"]).replace("\r\n", "\n");
    let same = cast.len().min(seen.len());
    assert!(cast.as_bytes()[..same] == seen[..same], "what is on the tape is what was seen");
    let gaps = rig.ok(&["sessions", "gaps"]);
    assert!(gaps.contains(&id) && gaps.contains("stopped in the middle"), "{gaps}");
    lost
}

/// On a disk of 48 MB: sessions end, the trail goes on. Needs root, who can make such a disk; elsewhere it is skipped.
#[test]
fn on_a_full_disk_sessions_end_and_the_trail_goes_on() {
    let mut rig = Rig::with_alice();
    rig.stop();
    let state = rig.path("bastion/state");
    let away = rig.path("away");
    fs::rename(&state, &away).unwrap();
    fs::create_dir(&state).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "none"]).arg(&state).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        println!("skipped: no right to mount");
        return;
    }
    let _unmounted = Unmounted(state.clone());
    copy(&away.join("."), &state);
    rig.serve();
    let mut live = rig.client("ssh", "alice");
    let mut live = live
        .args(["db-1", "while head -c 2000 /dev/urandom | base64 -w 0; do sleep 0.1; done"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    crate::rig::wait_for("a live session", || rig.json(&["status"])["live_sessions"] == 1);
    // Somebody fills the disk.
    Command::new("sh").arg("-c").arg(format!("cat /dev/zero > {}/fill", state.display())).output().unwrap();
    crate::rig::wait_for("the session to end", || live.try_wait().unwrap().is_some());
    assert!(text(live.wait_with_output().unwrap().stderr).contains("Recording failed"));
    // The last page of the trail may have had room for a few events still.
    crate::rig::wait_for("the reserve to be used", || {
        rig.ok(&["logs", "export", "--start", "1s"]);
        text(rig.run(&["status"]).stdout).contains("WARNING: the audit trail's reserve is used up")
    });
    assert!(text(rig.ssh("alice", "echo reached").stderr).contains("cannot be recorded"));
    let trail = rig.ok(&["logs", "export", "--start", "1h", "--format", "ndjson"]);
    assert!(trail.contains("\"recording_failed\""), "{trail}");
    fs::remove_file(state.join("fill")).unwrap();
    assert!(
        text(rig.ssh("alice", "echo reached").stdout).contains("reached"),
        "with room there are sessions again"
    );
    rig.ok(&["logs", "verify"]);
    rig.stop();
}

struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
