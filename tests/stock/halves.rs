//! Recordings of which somebody took a part away.

use std::fs;

use crate::rig::{Rig, text};

#[test]
fn a_recording_of_which_a_part_is_gone_is_a_fault_in_one_sentence_and_its_neighbour_plays() {
    let rig = Rig::with_alice();
    for word in ["first", "second"] {
        rig.ssh("alice", &format!("echo {word}"));
    }
    let ended = rig.ended_sessions();
    let [one, other] = [0, 1].map(|at: usize| ended[at]["id"].as_str().unwrap().to_owned());
    let state = rig.path("bastion/state");
    let copied = ["--state", state.to_str().unwrap()];
    let identity = rig.path("bastion/auditors.key");
    let file = |kind: &str| state.join(format!("tapes/{one}.{kind}"));
    for gone in [&["tape"][..], &["key"], &["json"], &["tape", "key"], &["tape", "json"]] {
        let whole: Vec<_> = gone.iter().map(|kind| (file(kind), fs::read(file(kind)).unwrap())).collect();
        whole.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        for command in ["play", "transcript", "export"] {
            let mut offline = vec!["sessions", command, &one];
            offline.extend(copied);
            offline.extend(["--identity", identity.to_str().unwrap()]);
            for words in [offline, vec!["sessions", command, &one]] {
                let output = rig.run(&words);
                let said = text(output.stderr);
                assert_eq!(output.status.code(), Some(10), "{gone:?} {words:?}: {said}");
                assert!(said.lines().count() == 1 && said.contains("gone"), "{gone:?} {words:?}: {said}");
                assert!(output.stdout.is_empty(), "{gone:?} {words:?}");
            }
        }
        assert!(rig.ok(&["sessions", "transcript", &other]).contains("second"));
        assert_eq!(rig.run(&["logs", "verify"]).status.code(), Some(10), "{gone:?}");
        for (path, bytes) in whole {
            fs::write(path, bytes).unwrap();
        }
    }
    rig.ok(&["logs", "verify"]);
    assert!(rig.ok(&["sessions", "transcript", &one]).contains("first"));
}

#[test]
fn where_nobody_can_open_the_tape_a_lost_summary_is_a_gap_and_proves_itself_all_the_same() {
    let mut rig = Rig::with_alice();
    rig.ssh("alice", "echo first");
    rig.stop();
    let config = rig.path("bastion/keyward.toml");
    let identity = rig.path("bastion/auditors.key");
    let text_of = fs::read_to_string(&identity).unwrap();
    let public = text_of.split_whitespace().find(|word| word.starts_with("age1")).unwrap();
    let lines = fs::read_to_string(&config).unwrap();
    let recipients = format!("recipients = [\"{public}\"]");
    fs::write(&config, lines.replace("identity = \"auditors.key\"", &recipients)).unwrap();
    let away = rig.path("identity");
    fs::rename(&identity, &away).unwrap();
    rig.serve();
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    assert!(!rig.ok(&["sessions", "gaps"]).contains("summary was lost"));
    rig.stop();
    fs::remove_file(rig.path(&format!("bastion/state/tapes/{id}.json"))).unwrap();
    rig.serve();
    let gaps = rig.ok(&["sessions", "gaps"]);
    assert!(gaps.contains("its summary was lost") && !gaps.contains("250 ms"), "{gaps}");
    let shown = rig.json(&["sessions", "show", &id]);
    assert!(
        shown["lost"] == true && shown["reason"].as_str().unwrap().contains("came to its end"),
        "{shown}"
    );
    rig.ok(&["logs", "verify"]);
    rig.stop();
    // To the auditors it is no forgery, and all is still there.
    let state = rig.path("bastion/state");
    let copied = ["--state", state.to_str().unwrap(), "--identity", away.to_str().unwrap()];
    rig.ok(&[&["logs", "verify"], &copied[..]].concat());
    assert!(rig.ok(&[&["sessions", "transcript", &id], &copied[..]].concat()).contains("first"));
}
