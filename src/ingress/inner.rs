//! The inner connection: answers as the instance, with a host certificate for the name that was asked for, and hands
//! every session channel to the relay.
//!
//! The login is a signature of the key that opened the outer connection. The session is opened once, after that login;
//! its channels wait for it. Other channels (forwards, SSH in SSH) are refused: nothing opaque goes through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use keystore::{Instance, Login};
use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Pty};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

use super::reception::{FromUser, ToUser, apologise};
use super::stream::{Deadlined, Phase};
use crate::auth::Authenticated;
use crate::config::InnerAuth;
use crate::recording::SessionId;
use crate::session::{House, Opened, Sides, Wanted, open, relay};

/// A jump that was let through to an instance.
pub(super) struct Jump {
    pub(super) house: Arc<House>,
    pub(super) caller: Arc<Authenticated>,
    pub(super) instance: Arc<Instance>,
    /// The name as the client asked for it.
    pub(super) asked: String,
}

type Outcome = Result<Arc<Opened>, String>;

/// Serves the inner connection on `stream` until it ends; the session is sealed and audited when this returns.
pub(super) async fn serve<S>(jump: Jump, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = match host_config(&jump) {
        Ok(config) => Arc::new(config),
        Err(why) => {
            tracing::error!(%why, "host.certificate_failed");
            return;
        }
    };
    let phase = Phase::new();
    let stream = Deadlined::new(stream, phase.clone(), super::outer::deadlines(&jump.house.config));
    let (result, outcome) = watch::channel(None);
    let shared = Arc::new(Shared { jump, id: SessionId::new(Timestamp::now()), result, phase });
    let handler = Inner {
        shared: Arc::clone(&shared),
        outcome: outcome.clone(),
        login: None,
        channels: Arc::new(AtomicU32::new(0)),
        room: Arc::new(Semaphore::new(MOST_CHANNELS)),
        opening: None,
    };
    let mut running = match server::run_stream(config, stream, handler).await {
        Ok(running) => running,
        Err(error) => {
            tracing::debug!(%error, "inner.not_ssh");
            return;
        }
    };
    let handle = running.handle();
    tokio::select! {
        ended = &mut running => if let Err(error) = ended {
            tracing::debug!(%error, "inner.ended");
        },
        sentence = cut(outcome.clone()) => {
            // The channels say the sentence first; then the connection goes.
            tokio::time::sleep(SENTENCE).await;
            let goodbye = handle.disconnect(Disconnect::ByApplication, sentence, "en".to_owned());
            if goodbye.await.is_err() {
                tracing::debug!("inner.gone_before_goodbye");
            }
            if tokio::time::timeout(SENTENCE, &mut running).await.is_err() {
                tracing::debug!("inner.did_not_end");
            }
        }
    }
}

/// Resolves when the session has opened and is then cut.
async fn cut(mut outcome: watch::Receiver<Option<Outcome>>) -> String {
    let known = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
    // What this waits with must not keep the session from closing.
    drop(outcome);
    match known {
        Some(Ok(opened)) => opened.cut().happened().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

fn host_config(jump: &Jump) -> Result<server::Config, String> {
    let signers = &jump.house.signers;
    let mut principals = vec![jump.asked.clone()];
    let name = jump.instance.name.to_string();
    if !principals.contains(&name) {
        principals.push(name);
    }
    let certificate =
        signers.host_ca.certify(&principals, &signers.host, Timestamp::now()).map_err(|e| e.to_string())?;
    let method = if matches!(jump.house.config.inner_auth, InnerAuth::None) {
        MethodKind::None
    } else {
        MethodKind::PublicKey
    };
    let mut config = super::server_config(MethodSet::from([method].as_slice()));
    config.keys = vec![signers.host.russh_key()];
    config.certificates = vec![certificate];
    Ok(config)
}

struct Shared {
    jump: Jump,
    id: SessionId,
    result: watch::Sender<Option<Outcome>>,
    phase: Phase,
}

/// russh's callbacks for the inner connection.
struct Inner {
    shared: Arc<Shared>,
    outcome: watch::Receiver<Option<Outcome>>,
    login: Option<Login>,
    channels: Arc<AtomicU32>,
    room: Arc<Semaphore>,
    opening: Option<tokio::task::JoinHandle<()>>,
}

impl Inner {
    /// The login is proven: opens the session in a task of the registry, which also closes it.
    fn admit(&mut self, user: &str) -> Auth {
        let Ok(login) = user.parse::<Login>() else {
            return Auth::reject();
        };
        self.login = Some(login.clone());
        self.shared.phase.logged_in();
        if self.opening.is_none() {
            let shared = Arc::clone(&self.shared);
            let task = async move { hold(shared, login).await };
            self.opening = Some(self.shared.jump.house.registry.spawn(task));
        }
        Auth::Accept
    }
}

/// Opens the session, publishes the outcome, and closes the session once the connection and its channels are gone.
async fn hold(shared: Arc<Shared>, login: Login) {
    let jump = &shared.jump;
    let wanted = Wanted { instance: Arc::clone(&jump.instance), login };
    let outcome = match open(&jump.house, &jump.caller, &wanted, shared.id).await {
        Ok(opened) => Ok(Arc::new(opened)),
        Err(fault) => {
            tracing::info!(session.id = %shared.id, %fault, "session.not_opened");
            Err(fault.sentence(&wanted))
        }
    };
    let opened = outcome.as_ref().ok().cloned();
    shared.result.send_replace(Some(outcome));
    let Some(opened) = opened else { return };
    // Receivers live in the handler, in `serve` and in every channel's task.
    shared.result.closed().await;
    opened.close().await;
}

impl server::Handler for Inner {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        if matches!(self.shared.jump.house.config.inner_auth, InnerAuth::None) {
            return Ok(self.admit(user));
        }
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        let known = self.shared.jump.caller.matches_key(offer.public_key);
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        if self.shared.jump.caller.matches_key(key.public_key) {
            return Ok(self.admit(user));
        }
        Ok(Auth::reject())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let number = self.channels.fetch_add(1, Ordering::Relaxed);
        let (outcome, id, handle) = (self.outcome.clone(), self.shared.id.to_string(), session.handle());
        tokio::spawn(async move {
            serve_channel(Visit { outcome, id, number, handle }, channel, reply).await;
            drop(room);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let jump = &self.shared.jump;
        let event = crate::audit::Event::ForwardDenied {
            user: jump.caller.user().to_string(),
            source_ip: jump.caller.source().ip().to_string(),
            session: Some(self.shared.id.to_string()),
            target: format!("{host_to_connect}:{port_to_connect}"),
            reason: NO_FORWARDS.to_owned(),
        };
        let house = Arc::clone(&jump.house);
        tokio::spawn(async move {
            if let Err(error) = house.trail.append(event, Timestamp::now()).await {
                tracing::error!(%error, "audit.append_failed");
            }
            reply.reject(ChannelOpenFailure::Other { code: 1, reason: NO_FORWARDS.to_owned() }).await;
        });
        Ok(())
    }

    // Requests are answered here, in order; the relay reads them from the channel and decides (see `reception`).
    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _cols: u32,
        _rows: u32,
        _px_width: u32,
        _px_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}

/// One session channel of the inner connection.
struct Visit {
    outcome: watch::Receiver<Option<Outcome>>,
    id: String,
    number: u32,
    handle: Handle,
}

/// Waits for the session, opens its channel on the instance, and relays. If there is no session, says why.
async fn serve_channel(mut visit: Visit, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let known = visit.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
    let Some(outcome) = known else { return };
    let id = channel.id();
    let opened = match outcome {
        Ok(opened) => opened,
        Err(sentence) => {
            reply.accept().await;
            let (ear, mouth) = split(channel, visit.handle, id);
            apologise(Sides { ear, mouth }, &sentence, &visit.id).await;
            return;
        }
    };
    match opened.channel().await {
        Ok((from, to)) => {
            reply.accept().await;
            let (ear, mouth) = split(channel, visit.handle, id);
            relay(&opened, visit.number, Sides { ear, mouth }, Sides { ear: from, mouth: to }).await;
        }
        Err(fault) => {
            let reason = format!("{} opened no channel: {fault} (session {})", opened.instance(), visit.id);
            reply.reject(ChannelOpenFailure::Other { code: 2, reason }).await;
        }
    }
}

fn split(channel: Channel<Msg>, handle: Handle, id: ChannelId) -> (FromUser, ToUser) {
    let (read, write) = channel.split();
    (FromUser::new(read), ToUser::new(write, handle, id))
}

const NO_FORWARDS: &str = "Port forwards through an instance are not offered by this bastion";
/// Sessions in one connection, as OpenSSH's MaxSessions bounds them.
const MOST_CHANNELS: usize = 32;
/// Time for a sentence to reach the user before the connection goes.
const SENTENCE: Duration = Duration::from_secs(1);
