//! A machine to practise on: an `authorized_keys` in a folder, a real shell, and a way for visits to go wrong.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use keystore::ssh::HashAlg;
use keystore::{Instance, SignsIn};
use tokio::sync::watch;

use super::managed::{Reach, Visit, VisitFault};
use super::probe::Probe;
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
    /// Fingerprints of the user CAs that it trusts.
    authorities: Mutex<Vec<String>>,
}

impl Machine {
    /// One that knows somebody else's key.
    pub(in crate::rotation) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        let machine = Self { home, luck: Mutex::default(), authorities: Mutex::default() };
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

    /// Certificates of these user CAs let in, and no others.
    pub(in crate::rotation) fn trust_authorities(&self, keys: &[String]) {
        *self.authorities.lock().unwrap() = keys.to_vec();
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

    fn probe<'a>(&'a self, probe: Probe<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        if self.luck.lock().unwrap().pop() == Some(Luck::Down) {
            return ready(Err(VisitFault::Failed("it does not answer".to_owned()))).boxed();
        }
        let offered =
            probe.authorities.iter().map(|ca| ca.public_key().fingerprint(HashAlg::Sha256).to_string());
        let taken = offered.into_iter().find(|ca| self.authorities.lock().unwrap().contains(ca));
        ready(taken.ok_or(VisitFault::NotAccepted)).boxed()
    }
}

/// Machines by name, of which one may hang; counts who is visited, and how many at once.
pub(super) struct Many {
    pub(super) machines: BTreeMap<String, Machine>,
    hangs: watch::Sender<String>,
    visited: Mutex<Vec<String>>,
    inside: AtomicUsize,
    most: AtomicUsize,
}

impl Many {
    pub(super) fn of(machines: BTreeMap<String, Machine>) -> Self {
        let (visited, hangs) = (Mutex::default(), watch::Sender::default());
        Self { machines, hangs, visited, inside: AtomicUsize::new(0), most: AtomicUsize::new(0) }
    }

    /// Only this one does from now on.
    pub(super) fn hangs(&self, name: &str) {
        self.hangs.send_replace(name.to_owned());
    }

    /// In order.
    pub(super) fn visited(&self) -> Vec<String> {
        self.visited.lock().unwrap().clone()
    }

    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    async fn inside(&self, name: &str) -> &Machine {
        self.visited.lock().unwrap().push(name.to_owned());
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        // Long enough for everybody else who may come in.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.hangs.subscribe().wait_for(|hangs| hangs != name).await.unwrap();
        self.inside.fetch_sub(1, Ordering::SeqCst);
        &self.machines[name]
    }
}

impl Reach for Many {
    fn visit<'a>(&'a self, visit: Visit<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        async move { self.inside(visit.instance.name.as_str()).await.visit(visit).await }.boxed()
    }

    fn probe<'a>(&'a self, probe: Probe<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        async move { self.inside(probe.instance.name.as_str()).await.probe(probe).await }.boxed()
    }
}
