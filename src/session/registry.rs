//! What is live: sessions and logged-in connections, each with a wire that cuts it with a sentence.
//!
//! A cut has three steps, each taken for all who are cut before the next: nothing passes any more; the sockets to the
//! instances are shut; and then each hears its sentence, which takes the time it takes (docs/adr/0015).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keystore::{Capability, InstanceName, Login, UserName};
use std::collections::BTreeSet;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::auth::CertificateId;
use crate::egress::Passage;

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
    passage: Arc<Passage>,
}

/// Why it was cut, and by whom if somebody did it.
#[derive(Debug, Clone)]
struct Ended {
    sentence: String,
    /// What the trail keeps, where it is not the sentence.
    reason: Option<String>,
    by: Option<String>,
}

impl Live {
    /// Cuts it with a sentence; the first sentence stands.
    pub fn cut(&self, sentence: &str) {
        cut(&[(self.clone(), sentence.to_owned())], None);
    }

    /// Whether it was cut already and is on its way out.
    pub fn is_cut(&self) -> bool {
        self.cut.borrow().is_some()
    }

    /// The first step. Says whether nobody took it before; nobody wakes up.
    fn bar(&self, ended: Ended) -> bool {
        let mut first = false;
        self.cut.send_if_modified(|current| {
            first = current.is_none();
            if first {
                *current = Some(ended);
            }
            false
        });
        // Whoever finds it barred finds the sentence too.
        self.passage.bar();
        first
    }
}

/// Cuts all of `whom`, each with its sentence, on the word of `by`, whom the trail will name. When this returns nothing
/// passes any more in any of them, and no socket to an instance is open; that they are told lies ahead. Waits for nothing.
pub fn cut(whom: &[(Live, String)], by: Option<&str>) {
    cut_for(whom, None, by);
}

/// The same; the trail keeps `reason`, or the sentence where there is none.
fn cut_for(whom: &[(Live, String)], reason: Option<&str>, by: Option<&str>) {
    let ended = |sentence: &String| Ended {
        sentence: sentence.clone(),
        reason: reason.map(str::to_owned),
        by: by.map(str::to_owned),
    };
    let begun = Instant::now();
    let first: Vec<&Live> =
        whom.iter().filter(|(live, sentence)| live.bar(ended(sentence))).map(|(live, _)| live).collect();
    let barred = begun.elapsed();
    first.iter().for_each(|live| live.passage.shut());
    let shut = begun.elapsed();
    if !first.is_empty() {
        let (barred_us, shut_us) = (barred.as_micros(), shut.as_micros());
        tracing::info!(count = first.len(), barred_us, shut_us, "sessions.cut");
    }
    first.iter().for_each(|live| live.cut.send_modify(|_| {}));
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

    /// Why, as the trail keeps it, if it was cut already: the reason that was given, or else the sentence.
    pub fn reason(&self) -> Option<String> {
        let ended = self.0.borrow();
        ended.as_ref().map(|ended| ended.reason.as_ref().unwrap_or(&ended.sentence).clone())
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

    /// Its way to the instance.
    pub fn passage(&self) -> &Arc<Passage> {
        &self.live.passage
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.number);
    }
}

/// Live sessions and connections.
#[derive(Default)]
pub struct Registry {
    entries: Mutex<Entries>,
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
        let live = Live { info: Arc::new(info), cut: Arc::new(sender), passage: Arc::default() };
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

    /// How many connections and sessions of `user` are live.
    pub fn of_user(&self, user: &UserName) -> usize {
        self.lock().live.values().filter(|live| live.info.user == *user).count()
    }

    /// How many sessions (not connections) are live.
    pub fn sessions(&self) -> usize {
        self.lock().live.values().filter(|l| l.info.session.is_some()).count()
    }

    /// Cuts the session with this id, on the word of `by`. Says whether there was one.
    pub fn kill(&self, session: &str, by: &str, reason: &str) -> bool {
        let found = self.live_where(|info| info.session.as_deref() == Some(session));
        let sentence = format!("Your session was ended by an administrator: {reason}.");
        let found: Vec<_> = found.into_iter().map(|live| (live, sentence.clone())).collect();
        cut_for(&found, Some(reason), Some(by));
        !found.is_empty()
    }

    /// The drain waits for the change that begins here until what this returns is dropped; `None` once it has begun: then
    /// there must be no change any more.
    pub fn begin_change(&self) -> Option<TaskTrackerToken> {
        // Under the lock, or a change could begin behind the back of a drain that has found nothing to wait for.
        let entries = self.lock();
        entries.draining.is_none().then(|| self.tasks.token())
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
        let all: Vec<_> = self.live().into_iter().map(|live| (live, sentence.to_owned())).collect();
        cut(&all, None);
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
        assert_eq!(s.cut.reason().as_deref(), Some("left the company"), "the sentence is the user's");
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
    async fn when_a_cut_returns_nothing_passes_in_all_who_were_cut_and_it_does_in_others() {
        let registry = Registry::new();
        let mut crowd: Vec<_> = (0..100).map(|n| registry.enter(info(&format!("s{n}")))).collect();
        let mut spared = crowd.split_off(99);
        let cut_ones: Vec<_> = registry
            .live_where(|info| info.session.as_deref() != Some("s99"))
            .into_iter()
            .map(|live| (live, "over".to_owned()))
            .collect();
        cut(&cut_ones, None);
        assert!(crowd.iter().all(|s| s.passage().is_barred() && s.cut.sentence().is_some()));
        for s in &mut crowd {
            assert_eq!(s.cut.happened().await, "over");
        }
        let spared = spared.pop().unwrap();
        assert!(!spared.passage().is_barred() && spared.cut.sentence().is_none());
    }

    #[tokio::test]
    async fn who_waits_for_the_cut_wakes_up_though_it_was_barred_before() {
        let registry = Registry::new();
        let mut s = registry.enter(info("s1"));
        let mut waiting = s.cut.clone();
        let waiting = tokio::spawn(async move { waiting.happened().await });
        tokio::task::yield_now().await;
        s.cut("over");
        assert_eq!((waiting.await.unwrap(), s.cut.happened().await), ("over".to_owned(), "over".to_owned()));
    }

    #[tokio::test]
    async fn a_drain_waits_for_a_change_that_was_begun_and_lets_none_begin_after_it() {
        let registry = Registry::new();
        let begun = registry.begin_change();
        assert!(begun.is_some());
        assert!(
            !registry.drain("over", Duration::from_millis(1)).await,
            "it is not done yet, and the wait is bounded"
        );
        assert!(registry.begin_change().is_none());
        drop(begun);
        assert!(registry.drain("over", Duration::from_secs(60)).await);
    }

    #[test]
    fn what_is_dropped_is_no_longer_live() {
        let registry = Registry::new();
        drop(registry.enter(info("s1")));
        assert_eq!(registry.sessions(), 0);
    }
}
