//! A machine to practise on: an `authorized_keys` in a folder, a real shell, and a way for visits to go wrong.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use keystore::{Instance, SignsIn};

use super::managed::{Reach, Visit, VisitFault};
use crate::auth::testing::at;

/// How the next visits go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rotation) enum Luck {
    /// As it should be.
    Good,
    /// Nobody is there.
    Down,
    /// What is asked is done, but who asked never hears of it.
    Lost,
}

pub(in crate::rotation) struct Machine {
    home: tempfile::TempDir,
    luck: Mutex<Vec<Luck>>,
}

impl Machine {
    /// One that knows somebody else's key.
    pub(in crate::rotation) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        let machine = Self { home, luck: Mutex::default() };
        machine.trust("ssh-ed25519 AAAAtheirs theirs");
        machine
    }

    pub(in crate::rotation) fn instance(name: &str, credential: SignsIn) -> Instance {
        Instance {
            name: name.parse().unwrap(),
            aliases: [].into(),
            address: "192.0.2.9:22".parse().unwrap(),
            logins: ["ubuntu".parse().unwrap()].into(),
            labels: [].into(),
            host_trust: keystore::HostTrust::Pinned(Vec::new()),
            credential,
            added_at: at(0),
        }
    }

    /// Installs a key by hand.
    pub(in crate::rotation) fn trust(&self, line: &str) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.file()).unwrap();
        writeln!(file, "{line}").unwrap();
    }

    /// Somebody writes the file anew.
    pub(in crate::rotation) fn overwrite(&self, line: &str) {
        std::fs::write(self.file(), format!("{line}\n")).unwrap();
    }

    pub(in crate::rotation) fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(self.file()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Whether it takes this key.
    pub(in crate::rotation) fn accepts(&self, public_key: &str) -> bool {
        self.lines().iter().any(|line| line.contains(public_key))
    }

    /// The next visits go like this; those after them well.
    pub(in crate::rotation) fn next(&self, luck: &[Luck]) {
        *self.luck.lock().unwrap() = luck.iter().rev().copied().collect();
    }

    fn file(&self) -> std::path::PathBuf {
        self.home.path().join(".ssh/authorized_keys")
    }

    fn go(&self, visit: Visit<'_>) -> Result<String, VisitFault> {
        let luck = self.luck.lock().unwrap().pop().unwrap_or(Luck::Good);
        let nobody = VisitFault::Failed("it does not answer".to_owned());
        if luck == Luck::Down {
            return Err(nobody);
        }
        if !self.accepts(&visit.key.public_key) {
            return Err(VisitFault::NotAccepted);
        }
        let mut said = String::new();
        if let Some(script) = visit.script {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-s").env("HOME", self.home.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        }
        if luck == Luck::Lost { Err(nobody) } else { Ok(said) }
    }
}

impl Reach for Machine {
    fn visit<'a>(&'a self, visit: Visit<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        ready(self.go(visit)).boxed()
    }
}
