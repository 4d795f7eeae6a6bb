//! Who asks, where the answer goes, and how a refusal ends: the frame around every command.
//!
//! An [`Output`] is bounded: a client that does not read slows its command and nothing else. Exit codes are those of
//! CONTRACT.md.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use keystore::{Role, UserName};
use serde::Serialize;
use tokio::sync::{MutexGuard, mpsc};

use super::progress::{Progress, bar};
use crate::audit::{AuditError, harmless};
use crate::auth::{Authenticated, CertificateId};
use crate::session::{Chunk, LoggedIn};

/// Who asks, as proven by the door the command came through.
#[derive(Debug, Clone)]
pub enum Caller {
    /// On the socket, by peer credentials: root or the daemon's own user.
    Operator {
        /// The peer's user id.
        uid: u32,
    },
    /// Over SSH, logged in with key and code.
    User(Visitor),
}

impl Caller {
    /// The name under which the audit trail knows the caller.
    pub fn name(&self) -> String {
        match self {
            Self::Operator { uid } => format!("uid:{uid}"),
            Self::User(visitor) => visitor.user.to_string(),
        }
    }

    /// The user, if it is one.
    pub fn user(&self) -> Option<&UserName> {
        match self {
            Self::Operator { .. } => None,
            Self::User(visitor) => Some(&visitor.user),
        }
    }

    /// Whether the caller may do what `role` may. An operator may everything.
    pub fn has_role(&self, role: &str) -> bool {
        match self {
            Self::Operator { .. } => true,
            Self::User(visitor) => visitor.roles.iter().any(|r| r.as_str() == role),
        }
    }
}

/// A logged-in user, as far as commands need to know.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The user.
    pub user: UserName,
    /// Their roles at login.
    pub roles: BTreeSet<Role>,
    /// The fingerprint of the key that signed.
    pub key: String,
    /// The certificate that they came with, if it was one.
    pub certificate: Option<CertificateId>,
    /// Where they come from.
    pub source: IpAddr,
    /// It is a service: it may rotate its own key, and nothing else.
    pub service: bool,
    /// Their key has expired: it can be exchanged, and nothing else.
    pub only_exchanges: bool,
}

impl Visitor {
    /// The one who logged in.
    pub fn of(caller: &Authenticated) -> Self {
        Self {
            user: caller.user().clone(),
            roles: caller.roles().clone(),
            key: caller.key().to_owned(),
            certificate: caller.certificate_id(),
            source: caller.source().ip(),
            service: caller.is_service(),
            only_exchanges: caller.only_exchanges(),
        }
    }
}

impl Visitor {
    /// Whether exchanging the key that they came with is all that is open to them.
    pub(super) fn exchanges_only(&self) -> bool {
        self.service || self.only_exchanges
    }

    /// The login, to be asked whether it counts still.
    pub(super) fn logged_in(&self) -> LoggedIn<'_> {
        LoggedIn {
            user: &self.user,
            key: &self.key,
            certificate: self.certificate,
            only_exchanges: self.only_exchanges,
        }
    }
}

/// Where an answer goes.
pub struct Output {
    to: mpsc::Sender<Chunk>,
    json: bool,
    width: Option<u16>,
    keyboard: Option<Keyboard>,
    began: Instant,
    /// Progress is seen: standard error is a terminal.
    tells: bool,
    in_progress: bool,
    shown: Option<Instant>,
    turn: Option<MutexGuard<'static, ()>>,
}

/// What is typed at the terminal that an answer goes to.
pub struct Keyboard {
    /// The keys, as the terminal sends them.
    pub keys: mpsc::Receiver<Vec<u8>>,
    /// The lines of the terminal.
    pub rows: u16,
}

impl Output {
    /// An output into `to`; `width` is that of the terminal it ends on, in columns, if it does.
    pub fn new(to: mpsc::Sender<Chunk>, json: bool, width: Option<u16>) -> Self {
        let (began, tells) = (Instant::now(), width.is_some());
        Self { to, json, width, keyboard: None, began, tells, in_progress: false, shown: None, turn: None }
    }

    /// The same output, whose standard error is a terminal or not, wherever the answer goes.
    #[must_use]
    pub fn with_progress(self, tells: bool) -> Self {
        Self { tells, ..self }
    }

    /// The same output, on a terminal at which somebody types.
    #[must_use]
    pub fn with_keyboard(self, keyboard: Option<Keyboard>) -> Self {
        Self { keyboard, ..self }
    }

    /// The keyboard, if there is one; whoever takes it listens to it.
    pub fn take_keyboard(&mut self) -> Option<Keyboard> {
        self.keyboard.take()
    }

    /// Holds the turn of a change until the answer begins.
    pub(super) fn hold(&mut self, turn: MutexGuard<'static, ()>) {
        self.turn = Some(turn);
    }

    /// Gives the turn back, if it is held.
    pub(super) fn release(&mut self) {
        self.turn = None;
    }

    /// The same output, answering in JSON or not.
    #[must_use]
    pub fn with_json(self, json: bool) -> Self {
        Self { json, ..self }
    }

    /// Whether JSON was asked for.
    pub fn json(&self) -> bool {
        self.json
    }

    /// The columns of the terminal it ends on, if it does.
    pub fn width(&self) -> Option<u16> {
        self.width
    }

    /// Resolves once nobody listens any more. Cancel-safe.
    pub async fn gone(&self) {
        self.to.closed().await;
    }

    /// Writes bytes to standard output.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn bytes(&mut self, bytes: Vec<u8>) -> Result<(), Fault> {
        self.release();
        if self.width.is_some() {
            self.progressed().await?;
        }
        self.to.send(Chunk::Out(bytes)).await.map_err(|_| Fault::error("the client has gone"))
    }

    /// Writes text, or JSON, and a line end to standard output. Characters that a terminal obeys go as JSON escapes.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn line(&mut self, text: impl Into<String>) -> Result<(), Fault> {
        let mut text = harmless(text.into());
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.into_bytes()).await
    }

    /// Writes a message to standard error, with the same escapes.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn note(&mut self, text: impl Into<String>) -> Result<(), Fault> {
        let mut text = harmless(text.into());
        text.push('\n');
        self.release();
        self.progressed().await?;
        self.to.send(Chunk::Err(text.into_bytes())).await.map_err(|_| Fault::error("the client has gone"))
    }

    /// On a terminal, and once it takes over two seconds: how much of all is done, and how long the rest will take. Waits
    /// for nobody: who does not read sees no progress, and holds nothing up.
    pub fn progress(&mut self, doing: &str, so_far: (u64, u64)) {
        if !self.tells || self.shown.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        if let Some(text) = bar(doing, so_far, self.began.elapsed())
            && self.to.try_send(Chunk::Err(text.into_bytes())).is_ok()
        {
            self.in_progress = true;
            self.shown = Some(Instant::now());
        }
    }

    /// The same of an answer that is written meanwhile, unless that is seen itself.
    pub fn sent(&mut self, doing: &str, so_far: (u64, u64)) {
        if self.width.is_none() {
            self.progress(doing, so_far);
        }
    }

    /// Waits for `work`, which counts in `so_far`, and shows how far it is. The work is always run to its end.
    pub async fn meanwhile<T>(&mut self, doing: &str, so_far: &Progress, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = tick.tick() => self.progress(doing, so_far.so_far()),
            }
        }
    }

    /// Takes the progress away, before something else is written there and at the end.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn progressed(&mut self) -> Result<(), Fault> {
        if !std::mem::take(&mut self.in_progress) {
            return Ok(());
        }
        let gone = Chunk::Err(b"\r\x1b[K".to_vec());
        self.to.send(gone).await.map_err(|_| Fault::error("the client has gone"))
    }

    /// Says on standard error what was done, and writes `value` as JSON if that was asked for.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn done(&mut self, value: &impl Serialize, note: impl Into<String>) -> Result<(), Fault> {
        self.note(note).await?;
        if self.json { self.either(value, "").await } else { Ok(()) }
    }

    /// Writes `value` as JSON if that was asked for, or else `text`.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn either(&mut self, value: &impl Serialize, text: impl Into<String>) -> Result<(), Fault> {
        if !self.json {
            return self.line(text).await;
        }
        let value = serde_json::to_string_pretty(value).map_err(|e| Fault::error(e.to_string()))?;
        self.line(value).await
    }
}

/// Why a command did not do what it was asked to: an exit code and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{says}")]
pub struct Fault {
    /// The exit code.
    pub code: u8,
    /// What failed, then what to do.
    pub says: String,
}

impl Fault {
    /// Exit 1.
    pub fn error(says: impl Into<String>) -> Self {
        Self { code: 1, says: says.into() }
    }
    /// Exit 2.
    pub fn usage(says: impl Into<String>) -> Self {
        Self { code: 2, says: says.into() }
    }
    /// Exit 3.
    pub fn not_found(says: impl Into<String>) -> Self {
        Self { code: 3, says: says.into() }
    }
    /// Exit 4.
    pub fn denied(says: impl Into<String>) -> Self {
        Self { code: 4, says: says.into() }
    }
    /// Exit 5.
    pub fn conflict(says: impl Into<String>) -> Self {
        Self { code: 5, says: says.into() }
    }
    /// Exit 10.
    pub fn tampering(says: impl Into<String>) -> Self {
        Self { code: 10, says: says.into() }
    }
}

impl From<keystore::Error> for Fault {
    fn from(error: keystore::Error) -> Self {
        let code = match &error {
            keystore::Error::Exists { .. } | keystore::Error::Changed { .. } => 5,
            keystore::Error::NotFound { .. } => 3,
            keystore::Error::Backend(_) => 6,
            keystore::Error::Seal(_)
            | keystore::Error::OtherMasterKey { .. }
            | keystore::Error::Unreadable { .. } => 1,
        };
        Self { code, says: error.to_string() }
    }
}

impl From<AuditError> for Fault {
    fn from(error: AuditError) -> Self {
        Self::error(format!("nothing was changed: {error}"))
    }
}

/// How often progress is shown.
const LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::is_command;

    #[tokio::test]
    async fn work_that_takes_long_is_seen_on_a_terminal_alone_and_leaves_no_trace() {
        for (width, told, seen) in [(Some(80), None, true), (None, None, false), (None, Some(true), true)] {
            let (to, mut from) = mpsc::channel(16);
            let mut out = Output::new(to, false, width);
            out.tells = told.unwrap_or(out.tells);
            // The bar's own clock is the machine's.
            out.began = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
            let so_far = Progress::default();
            so_far.expect(4);
            so_far.did(1);
            let work = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                7
            };
            assert_eq!(out.meanwhile("counting", &so_far, work).await, 7);
            out.note("done").await.unwrap();
            drop(out);
            let mut said = String::new();
            while let Some(Chunk::Err(bytes)) = from.recv().await {
                said.push_str(&String::from_utf8(bytes).unwrap());
            }
            assert_eq!(said.contains("counting [#####               ] 25 %, 0:3"), seen, "{said:?}");
            assert!(said.ends_with(if seen { "\r\u{1b}[Kdone\n" } else { "done\n" }), "{said:?}");
        }
    }

    #[tokio::test]
    async fn who_does_not_read_holds_no_work_up() {
        let (to, _from) = mpsc::channel(1);
        let mut out = Output::new(to, false, Some(80));
        out.began = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let so_far = Progress::default();
        so_far.expect(2);
        so_far.did(1);
        let work = tokio::time::sleep(Duration::from_millis(20));
        out.meanwhile("counting", &so_far, work).await;
    }

    #[tokio::test]
    async fn who_does_not_read_an_answer_holds_up_no_other_change() {
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let (to, _from) = mpsc::channel(1);
        let mut out = Output::new(to, false, None);
        out.note("fills the channel").await.unwrap();
        out.hold(TURN.lock().await);
        assert!(TURN.try_lock().is_err());
        let stuck = tokio::spawn(async move { out.note("waits for the reader").await });
        drop(TURN.lock().await);
        assert!(!stuck.is_finished());
        stuck.abort();
    }

    #[tokio::test]
    async fn json_holds_no_character_that_a_terminal_obeys_and_stays_the_same_json() {
        let value = serde_json::json!({ "user": "a\u{9b}2Jb\u{202e}c\u{e0041}d\u{7f}e\u{1b}[m", "name": "Grüße, 世界" });
        let (to, mut from) = mpsc::channel(2);
        let mut out = Output::new(to, true, None);
        out.either(&value, "").await.unwrap();
        out.line(value.to_string()).await.unwrap();
        for _ in 0..2 {
            let Some(Chunk::Out(bytes)) = from.recv().await else { panic!("no output") };
            let text = String::from_utf8(bytes).unwrap();
            assert!(!text.chars().any(|c| is_command(c) && c != '\n'), "{text:?}");
            assert!(text.contains("\\u009b2J") && text.contains("Grüße, 世界"), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
    }
}
