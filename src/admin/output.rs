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

use crate::audit::{AuditError, harmless};
use crate::auth::Authenticated;
use crate::session::Chunk;

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
            source: caller.source().ip(),
            service: caller.is_service(),
            only_exchanges: caller.only_exchanges(),
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
    in_progress: bool,
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
        Self { to, json, width, keyboard: None, began: Instant::now(), in_progress: false, turn: None }
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
        self.progressed().await?;
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

    /// On a terminal, and once it takes over two seconds: how much of all is done, and how long the rest will take.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn progress(&mut self, doing: &str, (done, all): (u64, u64)) -> Result<(), Fault> {
        let since = self.began.elapsed();
        if self.width.is_none() || since < Duration::from_secs(2) || done == 0 || all == 0 {
            return Ok(());
        }
        let share = (done as f64 / all as f64).min(1.0);
        let left = since.mul_f64((1.0 - share) / share).as_secs();
        let bar = "#".repeat((share * 20.0) as usize);
        let text = format!(
            "\r{doing} [{bar:<20}] {:.0} %, {}:{:02} left\u{1b}[K",
            share * 100.0,
            left / 60,
            left % 60
        );
        self.in_progress = true;
        self.to.send(Chunk::Err(text.into_bytes())).await.map_err(|_| Fault::error("the client has gone"))
    }

    /// Takes the progress away before something else is written.
    async fn progressed(&mut self) -> Result<(), Fault> {
        if !std::mem::take(&mut self.in_progress) {
            return Ok(());
        }
        let gone = Chunk::Err(b"\r\x1b[K".to_vec());
        self.to.send(gone).await.map_err(|_| Fault::error("the client has gone"))
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
            keystore::Error::Exists { .. } => 5,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::is_command;

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
