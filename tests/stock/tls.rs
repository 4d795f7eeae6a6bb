//! Events that leave over TLS: to whom the certificate proves to be meant, and to nobody else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::rig::{Rig, free_port, text, wait_for};

/// A receiver at work, until it is dropped.
struct Receiver(Child);

impl Receiver {
    fn start(rig: &Rig, kind: &str, port: u16, certificate: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stock/receiver.py");
        let pem = |kind: &str| rig.path(&format!("{certificate}.{kind}"));
        let mut python = Command::new("/usr/bin/python3");
        python.arg(script).args([kind, &port.to_string()]).arg(pem("pem")).arg(pem("key"));
        python.arg(rig.path(&format!("{kind}.out"))).arg(rig.path("hook.secret"));
        let mut child = python.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        Self(child)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Authorities and certificates by the stock tool: `good`, and three that are not.
fn certificates(dir: &Path) {
    let script = "q() { openssl \"$@\" 2>>openssl.log; }\n\
        key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'\n\
        for ca in ours theirs; do q req -x509 $key -keyout $ca.key -out $ca.pem -days 30 -subj /CN=$ca; done\n\
        leaf() { printf 'subjectAltName=%s\\n' $3 > $1.ext; q req $key -keyout $1.key -out $1.csr -subj /CN=$1\n\
          q x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -extfile $1.ext -out $1.pem -days $4; }\n\
        leaf good ours IP:127.0.0.1 30; leaf foreign theirs IP:127.0.0.1 30\n\
        leaf misnamed ours DNS:other.example 30; leaf late ours IP:127.0.0.1 -1";
    let made = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    let log = fs::read_to_string(dir.join("openssl.log")).unwrap_or_default();
    assert!(made.status.success(), "{}{log}", text(made.stderr));
}

fn taken(rig: &Rig, kind: &str) -> BTreeSet<u64> {
    let lines = fs::read_to_string(rig.path(&format!("{kind}.out"))).unwrap_or_default();
    // The last line may be on its way.
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.map(|event| event["seq"].as_u64().unwrap()).collect()
}

#[test]
fn events_go_to_whom_the_certificate_proves_and_to_nobody_else() {
    let (log, hook) = (free_port(), free_port());
    let mut rig = Rig::unstarted(&format!(
        "[audit.syslog]\naddress = \"tls://127.0.0.1:{log}\"\nca_file = \"../ours.pem\"\n\
         [audit.webhook]\nurl = \"https://127.0.0.1:{hook}/in\"\nsecret = \"../hook.secret\"\nca_file = \"../ours.pem\"\n"
    ));
    certificates(rig.dir.path());
    fs::write(rig.path("hook.secret"), "a secret of some length").unwrap();
    let start = |rig: &Rig, certificate: &str| {
        [("syslog", log), ("webhook", hook)].map(|(kind, port)| Receiver::start(rig, kind, port, certificate))
    };
    for (certificate, why) in
        [("foreign", "no authority"), ("misnamed", "not valid for name"), ("late", "has expired")]
    {
        let receivers = start(&rig, certificate);
        // A new daemon, so that nobody waits for the next attempt.
        rig.serve();
        wait_for("both to be refused", || {
            let status = rig.json(&["status"]);
            let said = |at: usize| status["receivers"][at]["fault"].as_str().unwrap_or_default().to_owned();
            [0, 1].iter().all(|at| said(*at).contains(why))
        });
        let told = rig.ok(&["status"]);
        for name in ["WARNING: syslog tls://127.0.0.1", "WARNING: webhook https://127.0.0.1"] {
            assert!(told.contains(name), "{certificate}: {told}");
        }
        assert!(taken(&rig, "syslog").is_empty() && taken(&rig, "webhook").is_empty(), "{certificate}");
        rig.kill_9();
        drop(receivers);
    }
    let _receivers = start(&rig, "good");
    rig.serve();
    rig.ok(&["users", "add", "carol"]);
    let all: BTreeSet<u64> = (1..=rig.json(&["status"])["audit"]["seq"].as_u64().unwrap()).collect();
    for kind in ["syslog", "webhook"] {
        wait_for(kind, || taken(&rig, kind).is_superset(&all));
    }
    wait_for("the cursors", || {
        let status = rig.json(&["status"]);
        let receivers = status["receivers"].as_array().unwrap();
        receivers.iter().all(|to| to["behind"] == 0 && to["fault"].is_null())
    });
}

#[test]
fn an_authority_that_is_none_is_refused_at_the_start() {
    for (content, why) in [(None, "No such file"), (Some("no certificate"), "no certificate in it")] {
        let rig =
            Rig::unstarted("[audit.syslog]\naddress = \"tls://127.0.0.1:1\"\nca_file = \"../ca.pem\"\n");
        if let Some(content) = content {
            fs::write(rig.path("ca.pem"), content).unwrap();
        }
        let served = rig.run(&["serve"]);
        let says = text(served.stderr);
        assert!(!served.status.success() && says.contains("ca.pem") && says.contains(why), "{says}");
    }
}
