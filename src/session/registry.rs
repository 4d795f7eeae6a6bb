//! What is live: sessions and logged-in connections, each with a wire that cuts it with a sentence.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use keystore::{Capability, InstanceName, Login, UserName};
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::auth::CertificateId;

/// Where a live session leads, and what it may do there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveInfo {
    /// The session id as text; `None` for a connection to the bastion itself.
    pub session: Option<String>,
    /// Whose it is.
    pub user: UserName,
    /// Fingerprint of the key that signed the login.
    pub key: String,
    /// The certificate that the login was made with, if it was one.
    pub certificate: Option<CertificateId>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// The instance and login it leads to, and the capabilities it was opened with.
    pub to: Option<(InstanceName, Login, BTreeSet<Capability>)>,
    /// When that instance was added: one that has its name later is another.
    pub instance_added: Option<Timestamp>,
    /// Since when.
    pub since: Timestamp,
    /// Its key had expired at the login: it may only exchange it.
    pub only_exchanges: bool,
}

/// A live session or connection.
#[derive(Debug, Clone)]
pub struct Live {
    /// What it is.
    pub info: Arc<LiveInfo>,
    cut: Arc<watch::Sender<Option<Ended>>>,
    running: Arc<Running>,
}

/// Whether something of a session may still run on its instance, and how many there are of which it may though they were
/// cut.
#[derive(Debug)]
struct Running {
    here: AtomicBool,
    cut_ones: Arc<watch::Sender<usize>>,
}

/// Why it was cut, and by whom if somebody did it.
#[derive(Debug, Clone)]
struct Ended {
    sentence: String,
    by: Option<String>,
}

impl Live {
    /// Cuts it with a sentence; the first sentence stands.
    pub fn cut(&self, sentence: &str) {
        self.end(sentence, None);
    }

    /// The same, on the word of `by`, whom the trail will name.
    pub fn cut_by(&self, by: &str, sentence: &str) {
        self.end(sentence, Some(by.to_owned()));
    }

    /// Whether it was cut already and is on its way out.
    pub fn is_cut(&self) -> bool {
        self.cut.borrow().is_some()
    }

    fn end(&self, sentence: &str, by: Option<String>) {
        self.cut.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(Ended { sentence: sentence.to_owned(), by });
                if self.running.here.load(Ordering::SeqCst) {
                    self.running.cut_ones.send_modify(|count| *count += 1);
                }
            }
            first
        });
    }
}

/// The receiving end of the wire: resolves when the session is cut.
#[derive(Debug, Clone)]
pub struct Cut(watch::Receiver<Option<Ended>>);

impl Cut {
    /// Waits for the cut and returns its sentence; never returns if it never comes. Cancel-safe.
    pub async fn happened(&mut self) -> String {
        // The guard of the watched value must be gone before the next await.
        let ended = self.0.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        match ended {
            Some(ended) => ended.sentence,
            None => std::future::pending().await,
        }
    }

    /// The sentence, if it was cut already.
    pub fn sentence(&self) -> Option<String> {
        self.0.borrow().as_ref().map(|ended| ended.sentence.clone())
    }

    /// Who did it, if somebody did.
    pub fn by(&self) -> Option<String> {
        self.0.borrow().as_ref().and_then(|ended| ended.by.clone())
    }
}

/// Keeps an entry in the registry for as long as it lives.
pub struct Registered {
    registry: Arc<Registry>,
    number: u64,
    /// The wire.
    pub cut: Cut,
    live: Live,
}

impl Registered {
    /// Cuts it from the inside.
    pub fn cut(&self, sentence: &str) {
        self.live.cut(sentence);
    }

    /// Nothing of it runs on the instance any more.
    pub fn off_the_instance(&self) {
        // Under the lock of the cut: it is counted there and nowhere else.
        self.live.cut.send_if_modified(|cut| {
            if self.live.running.here.swap(false, Ordering::SeqCst) && cut.is_some() {
                self.live.running.cut_ones.send_modify(|count| *count -= 1);
            }
            false
        });
    }

    /// Waits until nothing runs any more of all that were cut. A thief's sessions may be a thousand: first they end, and
    /// then each is told, sealed and audited.
    pub async fn all_are_off(&self) {
        let mut cut_ones = self.registry.cut_ones.subscribe();
        // The registry holds the sender.
        drop(cut_ones.wait_for(|count| *count == 0).await);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.off_the_instance();
        self.registry.lock().live.remove(&self.number);
    }
}

/// Live sessions and connections.
#[derive(Default)]
pub struct Registry {
    entries: Mutex<Entries>,
    /// How many were cut while something of them may still run on an instance.
    cut_ones: Arc<watch::Sender<usize>>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Entries {
    next: u64,
    draining: Option<String>,
    live: HashMap<u64, Live>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Enters a session or connection; it leaves when the returned guard is dropped.
    pub fn enter(self: &Arc<Self>, info: LiveInfo) -> Registered {
        let (sender, receiver) = watch::channel(None);
        let here = AtomicBool::new(info.session.is_some());
        let running = Arc::new(Running { here, cut_ones: Arc::clone(&self.cut_ones) });
        let live = Live { info: Arc::new(info), cut: Arc::new(sender), running };
        let mut entries = self.lock();
        if let Some(sentence) = &entries.draining {
            live.cut(sentence);
        }
        let number = entries.next;
        entries.next += 1;
        entries.live.insert(number, live.clone());
        Registered { registry: Arc::clone(self), number, cut: Cut(receiver), live }
    }

    /// Everything live, in no order.
    pub fn live(&self) -> Vec<Live> {
        self.lock().live.values().cloned().collect()
    }

    /// Those that are `wanted`, in no order.
    pub fn live_where(&self, mut wanted: impl FnMut(&LiveInfo) -> bool) -> Vec<Live> {
        self.lock().live.values().filter(|live| wanted(&live.info)).cloned().collect()
    }

    /// How many sessions (not connections) are live.
    pub fn sessions(&self) -> usize {
        self.lock().live.values().filter(|l| l.info.session.is_some()).count()
    }

    /// Cuts the session with this id, on the word of `by`. Says whether there was one.
    pub fn kill(&self, session: &str, by: &str, reason: &str) -> bool {
        let found = self.live_where(|info| info.session.as_deref() == Some(session));
        if let Some(live) = found.first() {
            live.cut_by(by, &format!("Your session was ended by an administrator: {reason}."));
        }
        !found.is_empty()
    }

    /// Runs a task that the drain waits for.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Cuts everything, also what enters from now on, and waits until tapes are sealed, at most `patience`.
    /// Says whether all ended.
    pub async fn drain(&self, sentence: &str, patience: Duration) -> bool {
        self.lock().draining = Some(sentence.to_owned());
        for live in self.live() {
            live.cut(sentence);
        }
        self.tasks.close();
        tokio::time::timeout(patience, self.tasks.wait()).await.is_ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(session: &str) -> LiveInfo {
        LiveInfo {
            session: Some(session.to_owned()),
            user: "alice".parse().unwrap(),
            key: "SHA256:x".to_owned(),
            certificate: None,
            source: "192.0.2.1:5".parse().unwrap(),
            to: None,
            instance_added: None,
            since: Timestamp::UNIX_EPOCH,
            only_exchanges: false,
        }
    }

    #[tokio::test]
    async fn a_killed_session_hears_the_reason() {
        let registry = Registry::new();
        let mut s = registry.enter(info("s1"));
        assert!(registry.kill("s1", "ada", "left the company"));
        assert!(s.cut.happened().await.contains("left the company"));
        assert_eq!(s.cut.by().as_deref(), Some("ada"));
        assert!(registry.kill("s1", "mallory", "later"));
        assert_eq!(s.cut.by().as_deref(), Some("ada"), "the first one did it");
    }

    #[tokio::test]
    async fn its_neighbour_lives_on() {
        let registry = Registry::new();
        let other = registry.enter(info("s2"));
        assert!(!registry.kill("s1", "ada", "left the company"));
        assert!(other.cut.sentence().is_none());
    }

    #[tokio::test]
    async fn those_who_were_cut_wait_for_each_other_and_for_nobody_else() {
        let registry = Registry::new();
        let (a, b, other) =
            (registry.enter(info("s1")), registry.enter(info("s2")), registry.enter(info("s3")));
        a.cut("over");
        b.cut("over");
        a.off_the_instance();
        a.off_the_instance();
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, a.all_are_off()).await.is_err(), "b still runs");
        drop(b);
        a.all_are_off().await;
        other.off_the_instance();
        other.cut("over");
        a.all_are_off().await;
    }

    #[test]
    fn what_is_dropped_is_no_longer_live() {
        let registry = Registry::new();
        drop(registry.enter(info("s1")));
        assert_eq!(registry.sessions(), 0);
    }
}
