//! Who asks, where the answer goes, and how a refusal ends: the frame around every command.
//!
//! An [`Output`] is bounded: a client that does not read slows its command and nothing else. Exit codes are those of
//! CONTRACT.md.

use std::collections::BTreeSet;
use std::net::IpAddr;

use keystore::{Role, UserName};
use serde::Serialize;
use tokio::sync::mpsc;

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

/// Where an answer goes.
pub struct Output {
    to: mpsc::Sender<Chunk>,
    json: bool,
    width: Option<u16>,
}

impl Output {
    /// An output into `to`; `width` is that of the terminal it ends on, in columns, if it does.
    pub fn new(to: mpsc::Sender<Chunk>, json: bool, width: Option<u16>) -> Self {
        Self { to, json, width }
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
        self.to.send(Chunk::Out(bytes)).await.map_err(|_| Fault::error("the client has gone"))
    }

    /// Writes text and a line end to standard output.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn line(&mut self, text: impl Into<String>) -> Result<(), Fault> {
        let mut text = text.into();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.into_bytes()).await
    }

    /// Writes a message to standard error.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn note(&mut self, text: impl Into<String>) -> Result<(), Fault> {
        let mut text = text.into();
        text.push('\n');
        self.to.send(Chunk::Err(text.into_bytes())).await.map_err(|_| Fault::error("the client has gone"))
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
            keystore::Error::Seal(_) | keystore::Error::Unreadable { .. } => 1,
        };
        Self { code, says: error.to_string() }
    }
}
