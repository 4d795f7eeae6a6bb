//! A login of Keyward's own: audited and recorded like a session of anybody's, under the name of nobody's.
//!
//! The same doors in the same order: tape, durable receipt, dial. What cannot be recorded does not happen; in a lockdown
//! nothing does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use keystore::signing::InstanceKey;
use keystore::ssh::HashAlg;
use keystore::{Instance, Login, Vault};

use super::managed::{Reach, Visit, VisitFault};
use super::probe::Probe;
use super::script::SHELL;
use crate::audit::{Event, SessionFacts, Trail};
use crate::config::Transport;
use crate::egress::{self, EgressError, Leg, Means, Proofs, Upstream};
use crate::guard::Guard;
use crate::policy::Authorized;
use crate::recording::{ChannelMessage, Direction, SessionEnd, SessionId, SessionStatus, Tape, Tapes};

/// The way to real instances.
pub struct Errands<'a> {
    /// The store.
    pub vault: &'a Vault,
    /// The audit trail.
    pub trail: &'a Trail,
    /// The recordings.
    pub tapes: &'a Tapes,
    /// Whether there is a lockdown.
    pub guard: &'a Guard,
    /// What connections negotiate.
    pub transport: Transport,
}

impl Reach for Errands<'_> {
    fn visit<'a>(&'a self, visit: Visit<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        self.run(visit).boxed()
    }

    fn probe<'a>(&'a self, probe: Probe<'a>) -> BoxFuture<'a, Result<String, VisitFault>> {
        self.ask(probe).boxed()
    }
}

fn failed(why: impl std::fmt::Display) -> VisitFault {
    VisitFault::Failed(why.to_string())
}

impl Errands<'_> {
    async fn run(&self, visit: Visit<'_>) -> Result<String, VisitFault> {
        let key = InstanceKey::load(self.vault, visit.key).await.map_err(failed)?;
        let account = (visit.instance, visit.login);
        let session = self.begin(account, &visit.key.fingerprint, visit.now).await?;
        let outcome = tokio::select! {
            outcome = session.go(&key, visit) => outcome,
            // The connection goes with what is dropped here.
            () = self.guard.lockdown().begun() => Err(failed("a lockdown began")),
        };
        session.end("looked after its key", outcome).await
    }

    /// Which user CA is accepted: its fingerprint.
    async fn ask(&self, probe: Probe<'_>) -> Result<String, VisitFault> {
        let first = probe.authorities.first().ok_or_else(|| failed("there is no user CA"))?;
        let key = first.public_key().fingerprint(HashAlg::Sha256).to_string();
        let session = self.begin((probe.instance, probe.login), &key, probe.now).await?;
        let outcome = tokio::select! {
            entered = session.enter(Means::Certificates(probe.authorities), probe.now) => match entered {
                Ok(upstream) => {
                    upstream.hang_up().await;
                    Ok(upstream.accepted().to_owned())
                }
                Err(fault) => Err(fault),
            },
            () = self.guard.lockdown().begun() => Err(failed("a lockdown began")),
        };
        session.end("asked which user CA it trusts", outcome).await
    }

    async fn begin(
        &self,
        (instance, login): (&Instance, &Login),
        key: &str,
        now: Timestamp,
    ) -> Result<Errand<'_>, VisitFault> {
        if self.guard.lockdown().reason().is_some() {
            return Err(failed("there is a lockdown: nothing is entered"));
        }
        let authorized = Authorized::housekeeping(instance, login, key).map_err(failed)?;
        let id = SessionId::new(now);
        let tape = self.tapes.record(&authorized, (id, None), now).await;
        let tape = tape.map_err(|e| failed(format!("it cannot be recorded: {e}")))?;
        Ok(Errand { errands: self, authorized, id: id.to_string(), tape })
    }
}

struct Errand<'a> {
    errands: &'a Errands<'a>,
    authorized: Authorized,
    id: String,
    tape: Tape,
}

impl Errand<'_> {
    /// Tells of it, then signs in.
    async fn enter(&self, means: Means<'_>, now: Timestamp) -> Result<Upstream, VisitFault> {
        let opened = Event::SessionOpened { facts: self.facts(), rules: Vec::new(), recording: None };
        let receipt = self.errands.trail.append(opened, now).await;
        let receipt = receipt.map_err(|e| failed(format!("it cannot be audited: {e}")))?;
        let proofs = Proofs { authorized: &self.authorized, tape: &self.tape, receipt: &receipt };
        let transport = self.errands.transport;
        let leg = Leg { session: &self.id, transport, passage: &Arc::default() };
        match egress::dial(proofs, means, leg, now).await {
            Ok(upstream) => Ok(upstream),
            Err(fault) => Err(self.not_reached(fault, now).await?),
        }
    }

    async fn go(&self, key: &InstanceKey, visit: Visit<'_>) -> Result<String, VisitFault> {
        let upstream = self.enter(Means::Key(key), visit.now).await?;
        let said = match visit.script {
            None => Ok(String::new()),
            Some(script) => match tokio::time::timeout(PATIENCE, self.exec(&upstream, script, visit)).await {
                Ok(said) => said,
                Err(_) => Err(failed("it did not answer within a minute")),
            },
        };
        upstream.hang_up().await;
        said
    }

    /// Runs `script` there; what it printed. Each message is on the tape before it is sent, or believed.
    async fn exec(&self, upstream: &Upstream, script: &str, visit: Visit<'_>) -> Result<String, VisitFault> {
        let (user, session) = (self.authorized.user().to_string(), self.id.clone());
        let (kind, command) = ("exec".to_owned(), Some(SHELL.to_owned()));
        let event = Event::ChannelOpened { user, session, channel: CHANNEL, kind, command };
        self.errands.trail.append(event, visit.now).await.map_err(failed)?;
        let (mut from, to) = upstream.open_session().await.map_err(failed)?;
        self.tape.channel_opened(CHANNEL);
        let messages = [
            ChannelMessage::Exec(Bytes::from_static(SHELL.as_bytes())),
            ChannelMessage::Data(Bytes::copy_from_slice(script.as_bytes())),
            ChannelMessage::Eof,
        ];
        for message in messages {
            self.record(Direction::ToInstance, &message).await?;
            to.send(message).await.map_err(failed)?;
        }
        let mut said = Vec::new();
        while let Some(message) = from.next().await {
            self.record(Direction::ToUser, &message).await?;
            match message {
                ChannelMessage::Data(data) if said.len() < LONGEST => said.extend_from_slice(&data),
                ChannelMessage::Stderr(data) if said.len() < LONGEST => said.extend_from_slice(&data),
                ChannelMessage::Failure => return Err(failed("it runs no commands")),
                ChannelMessage::Close => break,
                _ => {}
            }
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    async fn record(&self, direction: Direction, message: &ChannelMessage) -> Result<(), VisitFault> {
        let recorded = self.tape.record(CHANNEL, direction, message).await;
        recorded.map_err(|e| failed(format!("it cannot be recorded: {e}")))
    }

    async fn not_reached(&self, fault: EgressError, now: Timestamp) -> Result<VisitFault, VisitFault> {
        let event = fault.event(self.facts());
        self.errands.trail.append(event, now).await.map_err(failed)?;
        Ok(match fault {
            EgressError::KeyNotAccepted(_) | EgressError::NotAccepted => VisitFault::NotAccepted,
            other => failed(other),
        })
    }

    /// Seals the tape, then appends the close that carries its digest, and why it ended; then what came of it counts.
    async fn end<T>(&self, purpose: &str, outcome: Result<T, VisitFault>) -> Result<T, VisitFault> {
        let now = Timestamp::now();
        let reason = outcome.as_ref().map_or_else(ToString::to_string, |_| purpose.to_owned());
        if let Some(ledger) = self.tape.channel_closed(CHANNEL) {
            let event = Event::ChannelClosed {
                user: self.authorized.user().to_string(),
                session: self.id.clone(),
                channel: ledger.channel,
                kind: ledger.kind,
                relayed_bytes: ledger.relayed_bytes,
                captured_bytes: ledger.captured_bytes,
            };
            self.errands.trail.append(event, now).await.map_err(failed)?;
        }
        let end = SessionEnd { status: SessionStatus::Closed, reason: Some(reason) };
        let summary = self.tape.seal(end, now).await.map_err(failed)?;
        let word = if summary.status == SessionStatus::Closed { "closed" } else { "killed" };
        let event = Event::SessionClosed {
            facts: self.facts(),
            status: word.to_owned(),
            summary: summary.sha256(),
            reason: summary.reason,
            digest: summary.digest.unwrap_or_default(),
        };
        self.errands.trail.append(event, now).await.map_err(failed)?;
        outcome
    }

    fn facts(&self) -> SessionFacts {
        SessionFacts {
            session: self.id.clone(),
            user: self.authorized.user().to_string(),
            source_ip: self.authorized.source().ip().to_string(),
            key: self.authorized.key().to_owned(),
            instance: self.authorized.instance().name.to_string(),
            login: self.authorized.login().to_string(),
            parent: None,
        }
    }
}

/// The only channel of such a session.
const CHANNEL: u32 = 0;
/// Bytes of an answer that are read.
const LONGEST: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);
