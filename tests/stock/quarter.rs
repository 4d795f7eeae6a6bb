//! A quarter in the life of a bastion, with a moved clock and the programs that people use. After every step the daemon is
//! killed without a word and started again. At the end the report and the trail tell what happened, and nothing else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::clock::Clock;
use crate::rig::{Rig, free_port, text, wait_for};

#[test]
fn a_quarter_is_lived_through_with_the_stock_client_and_a_kill_at_every_step() {
    let mut life = Life::begin();
    everybody_comes_in(&mut life);
    the_user_ca_changes(&mut life);
    the_master_key_changes(&mut life);
    alice_is_warned_and_asks_for_a_successor(&mut life);
    her_new_key_proves_itself(&mut life);
    her_old_key_retires(&mut life);
    carol_leaves_in_mid_session(&mut life);
    the_others_are_warned_to_the_last_day(&mut life);
    the_held_key_is_rotated_when_its_time_comes(&mut life);
    bob_is_late_and_only_exchanges_his_key(&mut life);
    dave_is_too_late_and_an_administrator_brings_him_back(&mut life);
    the_report_tells_how_it_ended(&life);
    the_trail_tells_this_story_and_no_other(&life);
}

/// Their keys are K1 to K4.
const PEOPLE: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// `db-1` trusts the user CA and no key, `db-2` a key that Keyward holds and no CA.
fn everybody_comes_in(life: &mut Life) {
    for name in PEOPLE {
        life.join(name);
        life.cut();
        assert!(life.enters(name, &format!("id_{name}"), "db-1"), "{name}");
    }
    assert!(life.enters("alice", "id_alice", "db-2"));
    let page = life.page("alice", "id_alice");
    assert!(page.contains("You are alice") && !page.contains("expires in"), "{page}");
    life.cut();
}

/// Day 20 to 28: announced, trusted beside the old one, alone.
fn the_user_ca_changes(life: &mut Life) {
    life.reach(20);
    let old = life.rig.ok(&["ca", "show", "user"]);
    life.rig.ok(&["ca", "rotate", "user", "--overlap", "7d"]);
    let both = life.rig.ok(&["ca", "show", "user"]);
    life.trust(&both);
    life.cut();
    assert_eq!(life.rig.ok(&["ca", "show", "user"]), both, "both outlive the kill");
    assert_eq!(both.lines().count(), 2);
    assert!(life.enters("alice", "id_alice", "db-1"));
    wait_for("db-1 to be seen", || {
        life.rig.ok(&["status"]).contains("every instance was seen to accept the new one")
    });
    life.reach(26);
    assert_eq!(life.rig.ok(&["ca", "show", "user"]), both, "the old one has a day left");

    life.reach(28);
    life.told("ca_rotated", &["user CA"]);
    wait_for("the old one to retire", || life.rig.ok(&["ca", "show", "user"]).lines().count() == 1);
    life.cut();
    let new = life.rig.ok(&["ca", "show", "user"]);
    assert!(both.contains(&new) && new != old);
    life.trust(&old);
    assert!(!life.enters("alice", "id_alice", "db-1"), "who knows the old one alone lets nobody in");
    life.told("instance_unreachable", &["alice"]);
    life.trust(&new);
    assert!(life.enters("alice", "id_alice", "db-1"));
    life.cut();
}

/// Day 50. The daemon dies when it is decided, before it is told.
fn the_master_key_changes(life: &mut Life) {
    life.reach(50);
    let path = |name: &str| life.rig.path("bastion").join(name).to_str().unwrap().to_owned();
    let (old, new) = (path("master.key"), path("next.key"));
    life.rig.kill_9();
    life.rig.serve_dying_at("rekey.committed");
    let died = life.rig.run(&["encryption", "rotate", "--old-key", &old, "--new-key", &new]);
    assert_eq!(died.status.code(), Some(6));
    life.rig.died();
    let refused = life.rig.run(&["serve"]);
    let said = text(refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("the store is sealed under master key "), "the old one opens nothing more: {said}");
    let file = life.rig.path("bastion/keyward.toml");
    let config = fs::read_to_string(&file).unwrap();
    assert!(config.contains("file:master.key"));
    fs::write(&file, config.replace("file:master.key", "file:next.key")).unwrap();
    life.rig.serve();
    assert!(life.enters("alice", "id_alice", "db-1") && life.enters("alice", "id_alice", "db-2"));
    life.cut();
}

/// Day 78, twelve days before the end.
fn alice_is_warned_and_asks_for_a_successor(life: &mut Life) {
    life.reach(74);
    assert!(!life.page("alice", "id_alice").contains("expires in"), "not before the fourteenth day");
    life.reach(78);
    life.told("ssh_key_expiring", &PEOPLE);
    let page = life.page("alice", "id_alice");
    assert!(page.contains("Your key K1 expires in 11 days. Renew it: ssh-keygen"), "{page}");
    let jump = life.ssh("alice", "id_alice", &["db-1", "true"]);
    let banners = text(jump.stderr).matches("Your key K1 expires in 11 days.").count();
    assert_eq!((jump.status.code(), banners), (Some(0), 2), "at the prompt, and as the inner banner");

    life.rig.keygen("id_alice2");
    let output = life.rotate("alice", "id_alice", "id_alice2");
    assert!(text(output.stdout).contains("waits for its first login"), "{}", text(output.stderr));
    life.cut();
    assert_eq!((life.status("K1"), life.status("K5")), ("active".into(), "pending".into()));
    assert!(life.enters("alice", "id_alice", "db-1"), "the old key still works");
}

/// Day 79: with key and code. The key alone replaces nothing.
fn her_new_key_proves_itself(life: &mut Life) {
    life.reach(79);
    let code = fs::read(life.rig.path("code_alice")).unwrap();
    life.rig.script("code_alice", "echo 000000");
    assert!(!life.enters("alice", "id_alice2", "db-1"));
    life.told("mfa_failed", &["alice"]);
    fs::write(life.rig.path("code_alice"), code).unwrap();
    life.cut();
    assert_eq!((life.status("K1"), life.status("K5")), ("active".into(), "pending".into()));

    assert!(life.enters("alice", "id_alice2", "db-1"));
    wait_for("the old key to give way", || life.status("K1") == "retiring");
    life.cut();
    assert_eq!((life.status("K1"), life.status("K5")), ("retiring".into(), "active".into()));
    let output = life.ssh("alice", "id_alice", &["db-1", "true"]);
    let told = text(output.stderr);
    assert!(
        output.status.success()
            && told.contains("has been replaced and stops working in 2")
            && told.contains(" hours."),
        "{told}"
    );
}

/// Day 81: the overlap of a day is over.
fn her_old_key_retires(life: &mut Life) {
    life.reach(81);
    life.told("ssh_key_retired", &["alice"]);
    life.cut();
    assert_eq!(life.status("K1"), "retired");
    assert!(life.keeps_out("alice", "id_alice", "db-1") && life.keeps_out("alice", "id_alice", "bastion"));
    assert_eq!(life.adds("alice", "id_alice"), Some(5), "what has retired never comes back");
    assert!(life.enters("alice", "id_alice2", "db-1"));
    assert!(!life.page("alice", "id_alice2").contains("expires in"), "and she is left in peace");
}

/// Day 85. bob, who sits beside her, goes on.
fn carol_leaves_in_mid_session(life: &mut Life) {
    life.reach(85);
    life.told("ssh_key_expiring", &["bob", "carol", "dave"]);
    let (carol, mut bob) = (life.live("carol", "id_carol"), life.live("bob", "id_bob"));
    let touched = life.rig.ok(&["ssh-keys", "revoke", "K3", "--reason", "left"]);
    assert!(touched.contains("db-1"), "what she touched: {touched}");
    let ended = carol.wait_with_output().unwrap();
    let told = text(ended.stderr);
    assert!(!ended.status.success() && told.contains("keyward: Your key K3 is revoked."), "{told}");
    life.told("session_killed", &["carol"]);
    life.rig.ok(&["users", "suspend", "carol", "--reason", "left"]);
    bob.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    let bob = bob.wait_with_output().unwrap();
    assert_eq!((bob.status.code(), text(bob.stdout)), (Some(0), "still here\n".to_owned()));

    life.cut();
    assert_eq!(life.status("K3"), "revoked");
    assert!(life.keeps_out("carol", "id_carol", "db-1") && life.keeps_out("carol", "id_carol", "bastion"));
    for user in ["carol", "bob"] {
        assert_eq!(life.adds(user, "id_carol"), Some(5), "a revoked key is nobody's, {user}");
    }
    life.cut();
}

/// Day 89.
fn the_others_are_warned_to_the_last_day(life: &mut Life) {
    life.reach(89);
    life.told("ssh_key_expiring", &["bob", "dave"]);
    let page = life.page("bob", "id_bob");
    assert!(page.contains("Your key K2 expires in 23 hours."), "{page}");
    assert!(life.enters("bob", "id_bob", "db-1"));
    life.cut();
}

/// Day 91: the daemon does it by itself when it starts.
fn the_held_key_is_rotated_when_its_time_comes(life: &mut Life) {
    let first = life.held_key();
    assert!(life.trusted_keys().contains(&first));
    life.reach(91);
    life.told("ssh_key_expired", &["bob", "dave"]);
    life.told("credential_retired", &["db-2"]);
    wait_for("the old key to be forgotten", || {
        life.rig.json(&["instances", "credentials"])[0]["old"].is_null()
    });
    life.cut();
    let (second, trusted) = (life.held_key(), life.trusted_keys());
    assert!(first != second && trusted.contains(&second) && !trusted.contains(&first), "{trusted}");
    assert!(trusted.starts_with("ssh-ed25519 AAAAtheirs theirs\n"), "somebody else's stays: {trusted}");
    assert!(life.enters("alice", "id_alice2", "db-2"));
    life.cut();
}

/// Day 95, his grace.
fn bob_is_late_and_only_exchanges_his_key(life: &mut Life) {
    life.reach(95);
    let refused = life.ssh("bob", "id_bob", &["db-1", "echo in"]);
    let told = text(refused.stderr);
    assert!(refused.stdout.is_empty() && !refused.status.success());
    assert!(told.contains("Your key has expired; exchange it first: ssh-keys rotate"), "{told}");
    assert!(told.contains("for 8 days it can be exchanged, and nothing else"), "{told}");
    life.told("access_denied", &["bob"]);
    assert_eq!(life.ssh("bob", "id_bob", &["bastion", "ssh-keys", "list"]).status.code(), Some(4));
    life.rig.keygen("id_bob2");
    let output = life.rotate("bob", "id_bob", "id_bob2");
    assert!(output.status.success(), "{}", text(output.stderr));
    life.cut();
    assert_eq!((life.status("K2"), life.status("K6")), ("expired".into(), "pending".into()));
    assert!(life.enters("bob", "id_bob2", "db-1"));
    life.told("ssh_key_retired", &["bob"]);
    life.cut();
    assert_eq!((life.status("K2"), life.status("K6")), ("retired".into(), "active".into()));
    assert!(life.keeps_out("bob", "id_bob", "bastion"), "it is of no more use");
}

/// Day 105, the day after the last of his grace.
fn dave_is_too_late_and_an_administrator_brings_him_back(life: &mut Life) {
    life.reach(105);
    life.rig.keygen("id_dave2");
    assert!(life.keeps_out("dave", "id_dave", "db-1") && life.keeps_out("dave", "id_dave", "bastion"));
    assert_eq!(life.rotate("dave", "id_dave", "id_dave2").status.code(), Some(255), "not even that");
    wait_for("the refusal to be told", || life.refusals("dave") == 3);
    let invited = life.rig.json(&["users", "invite", "dave"]);
    life.cut();
    let (code, log) = (invited["code"].as_str().unwrap(), life.rig.path("prompts_dave"));
    fs::rename(life.rig.path("code_dave"), life.rig.path("usual_dave")).unwrap();
    let body = format!(
        "printf '%s\\n' \"$1\" >> {}\ncase \"$1\" in *'Enrolment code: ') echo {code} ;; *) exec {} ;; esac",
        log.display(),
        life.rig.path("usual_dave").display()
    );
    life.rig.script("code_dave", &body);
    let page = life.page("dave", "id_dave2");
    assert!(page.contains("You are dave"), "{page}\n{}", fs::read_to_string(log).unwrap_or_default());
    life.cut();
    life.rig.keygen("id_dave3");
    assert!(life.keeps_out("dave", "id_dave3", "bastion"), "the code is spent");
    assert!(life.enters("dave", "id_dave2", "db-1") && life.keeps_out("dave", "id_dave", "db-1"));
    life.cut();
}

fn the_report_tells_how_it_ended(life: &Life) {
    let keys = life.rig.json(&["ssh-keys", "list"]);
    let told = keys.as_array().unwrap().iter().map(|key| {
        let word = |name: &str| key[name].as_str().unwrap();
        format!("{} {} {} {}", word("id"), word("user"), word("status"), key["age_days"])
    });
    let told: Vec<_> = told.collect();
    let expected = [
        "K1 alice retired 105",
        "K5 alice active 27",
        "K2 bob retired 105",
        "K6 bob active 10",
        "K3 carol revoked 105",
        "K4 dave expired 105",
        "K7 dave active 0",
    ];
    assert_eq!(told, expected);
    let report = life.rig.json(&["ssh-keys", "report"]);
    let states = serde_json::json!({"active": 3, "expired": 1, "retired": 2, "revoked": 1});
    assert_eq!(report["by_status"], states);
    // carol has no key, and being suspended needs none.
    for list in ["never_used", "unused_30_days", "expiring_14_days", "over_age", "users_without_key"] {
        assert_eq!(report[list], serde_json::json!([]), "{list}");
    }
    let told = |list: &str, names: [&str; 2]| {
        let lines = report[list].as_array().unwrap().iter();
        lines.map(|line| names.map(|name| line[name].to_string()).join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(told("oldest", ["id", "age_days"]), ["\"K5\" 27", "\"K6\" 10", "\"K7\" 0"]);
    assert_eq!(told("ages", ["from_days", "keys"])[..4], ["0 1", "7 2", "30 0", "60 0"]);
    let people = ["\"alice\" 1", "\"bob\" 1", "\"carol\" 0", "\"dave\" 1"];
    assert_eq!(told("by_user", ["name", "keys"]), people);
}

fn the_trail_tells_this_story_and_no_other(life: &Life) {
    life.rig.ok(&["logs", "verify"]);
    let file = life.rig.path("trail.json");
    life.rig.ok(&["logs", "export", "--start", "200d", "--output", file.to_str().unwrap()]);
    let events: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let story = Story::of(&events, &life.key_ids());
    let all = [
        ("alice", ALICE),
        ("bob", BOB),
        ("carol", CAROL),
        ("dave", DAVE),
        ("user CA", &["20 ca_rotation_begun", "28 ca_rotated"]),
        ("db-2", DB_2),
        ("bastion", BASTION),
    ];
    for (who, expected) in all {
        assert_eq!(story.about(who), expected, "{who}");
    }
    let told: usize = all.iter().map(|(_, expected)| expected.len()).sum();
    assert_eq!(story.0.len(), told, "of nobody else: {:?}", story.0);
}

const ALICE: &[&str] = &[
    "0 user_added",
    "0 ssh_key_added K1",
    "0 mfa_enrolled",
    "0 mfa_confirmed",
    "28 instance_unreachable: it does not accept Keyward's certificate for this login; check TrustedUserCAKeys there",
    "78 ssh_key_expiring K1",
    "78 ssh_key_added K5",
    "78 ssh_key_rotated K1",
    "79 mfa_failed: wrong code",
    "79 ssh_key_activated K5",
    "79 ssh_key_retiring K1",
    "81 ssh_key_retired K1",
    "81 ssh_login_failed K1: no offered key is accepted",
    "81 ssh_login_failed K1: no offered key is accepted",
];
const BOB: &[&str] = &[
    "0 user_added",
    "0 ssh_key_added K2",
    "0 mfa_enrolled",
    "0 mfa_confirmed",
    "78 ssh_key_expiring K2",
    "85 ssh_key_expiring K2",
    "89 ssh_key_expiring K2",
    "91 ssh_key_expired K2",
    "95 access_denied K2: key expired",
    "95 ssh_key_added K6",
    "95 ssh_key_rotated K2",
    "95 ssh_key_activated K6",
    "95 ssh_key_retired K2",
    "95 ssh_login_failed K2: no offered key is accepted",
];
const CAROL: &[&str] = &[
    "0 user_added",
    "0 ssh_key_added K3",
    "0 mfa_enrolled",
    "0 mfa_confirmed",
    "78 ssh_key_expiring K3",
    "85 ssh_key_expiring K3",
    "85 ssh_key_revoked K3: left",
    "85 session_killed K3: Your key K3 is revoked.",
    "85 user_suspended: left",
    "85 ssh_login_failed K3: no offered key is accepted",
    "85 ssh_login_failed K3: no offered key is accepted",
];
const DAVE: &[&str] = &[
    "0 user_added",
    "0 ssh_key_added K4",
    "0 mfa_enrolled",
    "0 mfa_confirmed",
    "78 ssh_key_expiring K4",
    "85 ssh_key_expiring K4",
    "89 ssh_key_expiring K4",
    "91 ssh_key_expired K4",
    "105 ssh_login_failed K4: no offered key is accepted",
    "105 ssh_login_failed K4: no offered key is accepted",
    "105 ssh_login_failed K4: no offered key is accepted",
    "105 user_invited",
    "105 ssh_key_added K7",
    "105 ssh_login_failed: no offered key is accepted",
    "105 ssh_login_failed K4: no offered key is accepted",
];
const DB_2: &[&str] = &[
    "0 credential_added",
    "0 credential_proven",
    "91 credential_rotation_begun",
    "91 credential_rotated",
    "91 credential_retired",
];
const BASTION: &[&str] = &[
    "50 master_key_rotation_begun",
    "50 store_compacted: what the old master key opens is forgotten",
    "50 master_key_rotated",
];

/// What a trail tells, without the everyday: whom it is about, and `DAY EVENT WHICH`.
struct Story(Vec<(String, String)>);

impl Story {
    fn of(events: &[serde_json::Value], keys: &HashMap<String, String>) -> Self {
        let (mut told, mut starts, mut last) = (Vec::new(), 0, HashMap::new());
        let begin = second(&events[0]);
        for event in events {
            let name = event["event"].as_str().unwrap();
            starts += u32::from(name == "daemon_started");
            if EVERYDAY.contains(&name) {
                continue;
            }
            let word = |field: &str| event[field].as_str();
            let of_ca = word("ca").map(|ca| format!("{ca} CA"));
            let who = of_ca.as_deref().or(word("user")).or(word("instance")).unwrap_or("bastion");
            let day = (second(event) - begin) / 86_400;
            let which = word("key").and_then(|key| keys.get(key)).map(|id| format!(" {id}"));
            // Each request has a number of its own.
            let why = word("reason").map(|reason| reason.split(" (request ").next().unwrap());
            let why = why.map(|reason| format!(": {reason}"));
            let line = format!("{day} {name}{}{}", which.unwrap_or_default(), why.unwrap_or_default());
            let line = (who.to_owned(), line);
            let before = last.insert(line.clone(), starts);
            // A kill between an event and what it tells of makes the daemon tell it again, never twice in one life.
            if !(BY_TIME.contains(&name) && before.is_some_and(|before| before < starts)) {
                told.push(line);
            }
        }
        Self(told)
    }

    fn about(&self, who: &str) -> Vec<&str> {
        self.0.iter().filter(|(of, _)| of == who).map(|(_, line)| line.as_str()).collect()
    }
}

fn second(event: &serde_json::Value) -> i64 {
    event["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
}

/// What nobody asks for: time brings it, or a first login.
const BY_TIME: [&str; 9] = [
    "ssh_key_expiring",
    "ssh_key_expired",
    "ssh_key_activated",
    "ssh_key_retiring",
    "ssh_key_retired",
    "ca_rotated",
    "credential_rotation_begun",
    "credential_rotated",
    "credential_retired",
];

/// What happens every day.
const EVERYDAY: [&str; 12] = [
    "daemon_started",
    "daemon_stopped",
    "checkpoint_signed",
    "logs_exported",
    "ssh_login_succeeded",
    "access_allowed",
    "session_opened",
    "session_closed",
    "channel_opened",
    "channel_closed",
    "access_rule_added",
    "instance_added",
];

/// A bastion, two instances, and the day that it is there.
struct Life {
    rig: Rig,
    clock: Clock,
    day: u32,
    /// The port of `db-2`.
    second: u16,
}

impl Life {
    fn begin() -> Self {
        let (mut rig, clock) = (Rig::unstarted(""), Clock::new());
        rig.world = clock.days_ahead(0);
        rig.serve();
        rig.start_sshd();
        let mut life = Self { rig, clock, day: 0, second: free_port() };
        life.two_instances();
        life
    }

    fn two_instances(&mut self) {
        fs::create_dir_all(self.rig.path("home/.ssh")).unwrap();
        let file = self.rig.path("sshd_config");
        let more = format!(
            "ListenAddress 127.0.0.1:{port}\nMatch LocalPort {port}\nTrustedUserCAKeys none\n\
             AuthorizedKeysFile {home}/.ssh/authorized_keys\nSetEnv SHLVL=2 HOME={home}\n",
            port = self.second,
            home = self.rig.path("home").display()
        );
        fs::write(&file, fs::read_to_string(&file).unwrap() + &more).unwrap();
        self.rig.restart_sshd();
        self.rig.add_instance("db-1");
        let (address, login) = (format!("127.0.0.1:{}", self.second), self.rig.login.clone());
        let key = self.rig.path("instance_key.pub");
        let words = ["instances", "add", "db-2", "--address", &address, "--login", &login, "--host-key"];
        self.rig.ok(&[words.as_slice(), &[key.to_str().unwrap(), "--credential", "managed"]].concat());
        let lines = format!("ssh-ed25519 AAAAtheirs theirs\n{}\n", self.held_key());
        fs::write(self.rig.path("home/.ssh/authorized_keys"), lines).unwrap();
    }

    /// Key and authenticator, and both instances are theirs. The first code of a day is the authenticator's, the others
    /// are recovery codes: a code is spent once.
    fn join(&self, name: &str) {
        let rig = &self.rig;
        rig.add_user(name);
        let path = |file: &str| rig.path(&format!("{file}_{name}"));
        fs::rename(path("code"), path("spare")).unwrap();
        fs::write(path("count"), "1").unwrap();
        let body = format!(
            "mkdir \"{}_$(date +%F)\" 2>/dev/null && exec {}\nexec {}",
            path("came").display(),
            path("totp").display(),
            path("spare").display()
        );
        rig.script(&format!("code_{name}"), &body);
        for instance in ["db-1", "db-2"] {
            rig.ok(&["access", "allow", "--user", name, "--instance", instance, "--login", &rig.login]);
        }
    }

    /// `kill -9`, and a new start.
    fn cut(&mut self) {
        self.rig.kill_9();
        self.rig.serve();
    }

    /// Goes on to `day`, by less than a week at a time; each time the daemon is killed and starts on another day.
    fn reach(&mut self, day: u32) {
        while self.day < day {
            self.day = day.min(self.day + 6);
            self.rig.kill_9();
            self.rig.world = self.clock.days_ahead(self.day);
            // The instances first: what is due there is done as soon as the daemon starts.
            self.rig.restart_sshd();
            self.rig.serve();
        }
    }

    /// The stock client with this key.
    fn client(&self, user: &str, key: &str, words: &[&str]) -> Command {
        // For the jump too, which is another ssh and hears of the file alone.
        let config = fs::read_to_string(self.rig.config(user, "NumberOfPasswordPrompts 1\n")).unwrap();
        let file = self.rig.path(&format!("config_{key}_of_{user}"));
        fs::write(&file, config.replace(&format!("id_{user}\n"), &format!("{key}\n"))).unwrap();
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(file).args(words).stdin(Stdio::null());
        self.rig.asking(&mut ssh, user);
        ssh
    }

    fn ssh(&self, user: &str, key: &str, words: &[&str]) -> Output {
        self.client(user, key, words).output().unwrap()
    }

    /// Whether a command runs there; at the bastion itself, whether the login is let in.
    fn enters(&self, user: &str, key: &str, to: &str) -> bool {
        if to == "bastion" {
            return self.ssh(user, key, &[to]).status.success();
        }
        let output = self.ssh(user, key, &[to, "echo in"]);
        assert_eq!(output.stdout == b"in\n", output.status.success(), "{}", text(output.stderr));
        output.status.success()
    }

    /// Whether the login is refused, and the trail tells of it: that it does when the client has hung up, which a kill may
    /// forestall.
    fn keeps_out(&self, user: &str, key: &str, from: &str) -> bool {
        let before = self.refusals(user);
        let refused = self.ssh(user, key, &[from, "echo", "in"]);
        if refused.status.code() != Some(255) || !refused.stdout.is_empty() {
            return false;
        }
        wait_for("the refusal to be told", || self.refusals(user) > before);
        true
    }

    fn refusals(&self, user: &str) -> usize {
        self.story().about(user).iter().filter(|line| line.contains(" ssh_login_failed")).count()
    }

    /// What the bastion shows who comes without a command.
    fn page(&self, user: &str, key: &str) -> String {
        text(self.ssh(user, key, &["bastion"]).stdout)
    }

    /// `ssh USER@bastion ssh-keys rotate < id_NEW.pub`
    fn rotate(&self, user: &str, key: &str, new: &str) -> Output {
        let file = File::open(self.rig.path(&format!("{new}.pub"))).unwrap();
        self.client(user, key, &["bastion", "ssh-keys", "rotate"]).stdin(file).output().unwrap()
    }

    /// A session that says what it is told, one line.
    fn live(&self, user: &str, key: &str) -> Child {
        let mut ssh = self.client(user, key, &["db-1", "echo up; head -n 1"]);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        child
    }

    fn adds(&self, user: &str, key: &str) -> Option<i32> {
        let file = self.rig.path(&format!("{key}.pub"));
        self.rig.run(&["ssh-keys", "add", "--user", user, "--file", file.to_str().unwrap()]).status.code()
    }

    fn status(&self, key: &str) -> String {
        self.rig.json(&["ssh-keys", "show", key])["status"].as_str().unwrap().to_owned()
    }

    fn trust(&self, lines: &str) {
        let part = self.rig.path("user_ca.part");
        fs::write(&part, lines).unwrap();
        fs::rename(part, self.rig.path("user_ca.pub")).unwrap();
    }

    fn held_key(&self) -> String {
        self.rig.json(&["instances", "credentials"])[0]["public_key"].as_str().unwrap().to_owned()
    }

    fn trusted_keys(&self) -> String {
        fs::read_to_string(self.rig.path("home/.ssh/authorized_keys")).unwrap()
    }

    /// Waits until the trail has told it today: what time brings, the daemon does after it has started.
    fn told(&self, event: &str, of: &[&str]) {
        let line = format!("{} {event}", self.day);
        wait_for(event, || {
            let story = self.story();
            of.iter().all(|who| story.about(who).iter().any(|told| told.starts_with(&line)))
        });
    }

    /// As it is told so far.
    fn story(&self) -> Story {
        let tail = self.rig.ok(&["logs", "tail", "-n", "10000"]);
        let events: Vec<_> = tail.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Story::of(&events, &HashMap::new())
    }

    /// By their fingerprints.
    fn key_ids(&self) -> HashMap<String, String> {
        let keys = self.rig.json(&["ssh-keys", "list"]);
        let word = |key: &serde_json::Value, name: &str| key[name].as_str().unwrap().to_owned();
        keys.as_array().unwrap().iter().map(|key| (word(key, "fingerprint"), word(key, "id"))).collect()
    }
}
