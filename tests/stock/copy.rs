//! An auditor with nothing but a copy of the files, OpenSSH's tools and the `keyward` binary replays and proves a session.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, text};

/// A folder of the auditor's, on a machine where no bastion is.
struct Case {
    dir: tempfile::TempDir,
    keyward: PathBuf,
}

impl Case {
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.keyward);
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("KEYWARD_CONFIG", "/nowhere/keyward.toml").env("NO_COLOR", "1").output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(output.stderr));
        text(output.stdout)
    }

    fn sh(&self, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(self.dir.path()).stdin(Stdio::null()).output().unwrap()
    }

    /// What is said when one byte of `file` is another, which is then put right again.
    fn with_a_byte_changed(&self, file: &str, at: usize, words: &[&str]) -> String {
        let path = self.dir.path().join(file);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        let output = self.run(words);
        fs::write(&path, whole).unwrap();
        let says = text(output.stderr);
        assert_eq!(output.status.code(), Some(10), "{file} at {at}: {says}");
        assert!(says.contains(file), "{file} at {at}: {says}");
        says
    }
}

/// A bastion that writes what it cannot read: the identity is the auditor's own, and she only gave its public half.
fn bastion(auditor: &Path) -> Rig {
    let mut rig = Rig::unstarted("");
    rig.ok(&["init", "--dir", auditor.to_str().unwrap(), "--listen", "127.0.0.1:1"]);
    let identity = fs::read_to_string(auditor.join("auditors.key")).unwrap();
    let public = identity.split_whitespace().find(|word| word.starts_with("age1")).unwrap();
    let config = rig.path("bastion/keyward.toml");
    let lines = fs::read_to_string(&config).unwrap();
    fs::write(&config, lines.replace("identity = \"auditors.key\"", &format!("recipients = [\"{public}\"]")))
        .unwrap();
    fs::remove_file(rig.path("bastion/auditors.key")).unwrap();
    rig.serve();
    rig.start_sshd();
    rig.add_instance("db-1");
    rig.add_user("alice");
    let login = rig.login.clone();
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-1", "--login", &login]);
    rig
}

fn copied(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_copy_of_the_files_replays_and_proves_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = bastion(&dir.path().join("own"));
    let show = "echo first words; printf '\\033[1mbold\\033[0m\\n'";
    assert!(rig.shared("ssh", "alice").args(["-tt", "db-1", show]).status().unwrap().success());
    assert!(rig.shared("ssh", "alice").args(["db-1", "echo other words"]).status().unwrap().success());
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    let refused = rig.run(&["sessions", "play", &id]);
    assert!(!refused.status.success(), "the bastion cannot read it: {}", text(refused.stdout));
    rig.stop();

    let case = Case { keyward: PathBuf::from(env!("CARGO_BIN_EXE_keyward")), dir };
    let here = case.dir.path();
    copied(&rig.path("bastion/state"), &here.join("state"));
    fs::copy(rig.path("bastion/audit_key.pub"), here.join("audit_key.pub")).unwrap();
    fs::rename(here.join("own/auditors.key"), here.join("auditors.key")).unwrap();
    fs::remove_dir_all(here.join("own")).unwrap();
    drop(rig);

    // OpenSSH alone: the heads of the chain are signed by the key that was kept.
    let checks = "echo \"bastion $(cat audit_key.pub)\" > allowed\n\
        for c in state/audit/checkpoints/*.json; do ssh-keygen -Y verify -f allowed -I bastion -n keyward-audit -s ${c%.json}.sig < $c; done";
    let signed = case.sh(checks);
    assert!(signed.status.success(), "{}{}", text(signed.stdout), text(signed.stderr));
    assert!(text(signed.stdout).contains("Good \"keyward-audit\" signature for bastion"));

    // The chain, and every recording that it names.
    let kept = ["--trust", "audit_key.pub", "--identity", "auditors.key"];
    let verify_all = [&["logs", "verify", "--state", "state"], &kept[..]].concat();
    assert!(case.ok(&verify_all).contains("2 tapes (2 opened): whole and unchanged"));
    assert!(case.ok(&["logs", "verify", "--state", "state"]).contains("2 tapes (0 opened)"));
    let verify = [&["sessions", "verify", &id, "--state", "state"], &kept[..]].concat();
    assert!(case.ok(&verify).contains("every frame opens"));
    assert!(case.ok(&verify[..5]).contains("not opened: no identity here"));

    // What happened.
    let listed = case.ok(&["sessions", "list", "--state", "state", "--user", "alice"]);
    assert!(listed.contains(&id) && listed.contains("echo other words"), "{listed}");
    assert!(case.ok(&["sessions", "gaps", "--state", "state"]).contains("Nothing is missing in 2 sessions"));
    let read = ["--state", "state", "--identity", "auditors.key"];
    let of = |command: &str| case.ok(&[&["sessions", command, &id], &read[..]].concat());
    assert!(of("play").contains("first words") && of("transcript").contains("bold"));
    assert!(case.ok(&[&["sessions", "search", "other words"], &read[..]].concat()).contains("other words"));
    let export = [&["sessions", "export", &id, "--output", "tape.cast"], &read[..]].concat();
    case.ok(&export);
    let played = case.sh("LC_ALL=C.UTF-8 script -qec 'asciinema cat tape.cast' /dev/null");
    assert!(text(played.stdout).contains("first words"), "{}", text(played.stderr));
    // What takes the store, or the trail, is not answered from too little.
    assert_eq!(
        case.run(&["sessions", "list", "--state", "state", "--label", "env=prod"]).status.code(),
        Some(2)
    );

    // One byte, anywhere: named with its file, and as far as the chain goes with its place.
    for name in fs::read_dir(here.join("state/tapes")).unwrap() {
        let file = format!("state/tapes/{}", name.unwrap().file_name().to_str().unwrap());
        let length = fs::metadata(here.join(&file)).unwrap().len() as usize;
        for at in [0, length / 2, length - 1] {
            let says = case.with_a_byte_changed(&file, at, &verify_all);
            if file.ends_with(".tape") && at > 0 {
                let place = says.split("byte ").nth(1).and_then(|rest| rest.split(':').next());
                let place: usize = place.and_then(|digits| digits.parse().ok()).unwrap_or(usize::MAX);
                assert!(place > 0 && place <= at, "changed at {at} of {length}: {says}");
            }
        }
    }
    let journal = fs::read_dir(here.join("state/audit/journal")).unwrap().map(|f| f.unwrap().path());
    let segment = journal.filter(|f| f.extension().is_some_and(|kind| kind == "journal")).min().unwrap();
    let file = segment.strip_prefix(here).unwrap().to_str().unwrap().to_owned();
    let says = case.with_a_byte_changed(&file, 200, &verify_all);
    assert!(says.contains(" at byte 0, record 1"), "{says}");
    let signed = fs::read_dir(here.join("state/audit/checkpoints")).unwrap().map(|f| f.unwrap().path());
    for path in signed {
        let file = path.strip_prefix(here).unwrap().to_str().unwrap().to_owned();
        case.with_a_byte_changed(&file, 100, &verify_all);
        if file.ends_with(".json") {
            let whole = fs::read(&path).unwrap();
            fs::write(&path, text(whole.clone()).replace("\"seq\"", "\"sea\"")).unwrap();
            assert!(!case.sh(checks).status.success(), "OpenSSH refuses it too");
            fs::write(&path, whole).unwrap();
        }
    }
    assert!(case.ok(&verify_all).contains("whole and unchanged"), "all as it was");
}

#[test]
fn a_stranger_reads_nothing_of_a_copy_and_is_told_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = bastion(&dir.path().join("own"));
    assert!(rig.ssh("alice", "echo secret words").status.success());
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    rig.ok(&["init", "--dir", dir.path().join("other").to_str().unwrap(), "--listen", "127.0.0.1:1"]);
    rig.stop();
    let case = Case { keyward: PathBuf::from(env!("CARGO_BIN_EXE_keyward")), dir };
    copied(&rig.path("bastion/state"), &case.dir.path().join("state"));
    let other = ["--state", "state", "--identity", "other/auditors.key"];
    for command in ["play", "transcript", "export"] {
        let output = case.run(&[&["sessions", command, &id], &other[..]].concat());
        let says = text(output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{command}: {says}");
        assert!(says.contains(&id), "{command}: {says}");
    }
    let search = case.run(&[&["sessions", "search", "secret"], &other[..]].concat());
    assert!(search.status.code() == Some(1) && search.stdout.is_empty(), "{}", text(search.stderr));
    // Nor with no identity at all, or where there is no copy.
    assert_eq!(case.run(&["sessions", "play", &id, "--state", "state"]).status.code(), Some(2));
    assert_eq!(case.run(&["logs", "verify", "--state", "nowhere"]).status.code(), Some(3));
    // Over SSH a path is the auditor's own, and is not looked for on the bastion.
    rig.serve();
    rig.add_user_as("oscar", "auditor");
    for words in
        ["sessions list --state /", "sessions gaps --state /", &format!("sessions verify {id} --state /")]
    {
        let output = rig.shared("ssh", "oscar").args(["bastion", words]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(output.stderr));
    }
}
