//! The inner connection: answers as the instance, with a host certificate for the name that was asked for, and hands
//! every session channel to the relay.
//!
//! The login is a signature of the key that opened the outer connection. The session is opened once, after that login;
//! its channels wait for it. Forwards are [`super::forward`]'s.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use keystore::ssh::{Certificate, PublicKey};
use keystore::{CaKind, CaRotation, Capability, Instance, Login, SecondFactor, User, UserKey};
use russh::server::{
    self, Auth, AuthRefusal, ChannelOpenHandle, Handle, Msg, PublicKeyOffer, Session, SkSignature,
    VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::forward::{self, Target};
use super::goodbye::Goodbye;
use super::jump::{Arrival, Within};
use super::listening::{Asked, Asking};
use super::login::words_for;
use super::outer::sound;
use super::refusal;
use super::stream::{Deadlined, Phase};
use super::visit::{Visit, serve_channel};
use crate::auth::{Authenticated, mfa};
use crate::config::InnerAuth;
use crate::egress::{Listen, Severable};
use crate::recording::SessionId;
use crate::rotation::{ca_notice, notice};
use crate::session::{House, Opened, Wanted, open};

/// A jump that was let through to an instance.
pub(super) struct Jump {
    pub(super) house: Arc<House>,
    pub(super) caller: Arc<Authenticated>,
    pub(super) instance: Arc<Instance>,
    /// The name as the client asked for it.
    pub(super) asked: String,
    /// The session inside which it came, if it did.
    pub(super) within: Option<Within>,
}

pub(super) type Outcome = Result<Arc<Opened>, String>;

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
    let sever = CancellationToken::new();
    let stream = Severable::new(stream, &sever);
    let stream = Deadlined::new(stream, phase.clone(), super::outer::deadlines(&jump.house.config()));
    let (result, outcome) = watch::channel(None);
    let shared = Arc::new(Shared {
        jump,
        id: SessionId::new(Timestamp::now()),
        result,
        phase,
        handle: OnceLock::new(),
        channels: AtomicU32::new(0),
        room: Arc::new(Semaphore::new(MOST_CHANNELS as usize)),
        asking: watch::Sender::new(false),
    });
    let handler = Inner {
        shared: Arc::clone(&shared),
        outcome: outcome.clone(),
        login: None,
        refused: None,
        opening: None,
        terminals: HashSet::new(),
        asks: None,
    };
    let mut running = match server::run_stream(config, stream, handler).await {
        Ok(running) => running,
        Err(error) => {
            tracing::debug!(%error, "inner.not_ssh");
            return;
        }
    };
    let handle = running.handle();
    shared.handle.get_or_init(|| handle.clone());
    let goodbye = Goodbye { handle, room: Arc::clone(&shared.room), places: MOST_CHANNELS, sever };
    let id = shared.id;
    drop(shared);
    let sentence = tokio::select! {
        biased;
        ended = &mut running => {
            if let Err(error) = ended {
                tracing::debug!(%error, "inner.ended");
            }
            return;
        }
        sentence = cut(outcome.clone()) => sentence,
        sentence = left_alone(outcome.clone(), &goodbye.room) => sentence,
    };
    // The channels say the sentence first; then the connection goes.
    goodbye.say(format!("{sentence} (session {id})"), SENTENCE, &mut running).await;
}

/// Resolves when the session has opened and is then cut.
async fn cut(outcome: watch::Receiver<Option<Outcome>>) -> String {
    match known(outcome).await {
        Some(Ok(opened)) => opened.cut().happened().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

/// Resolves when the instance has gone, or was never reached, and the last words were taken, however long that takes: a
/// connection to nowhere would look alive (`ssh -N`).
async fn left_alone(outcome: watch::Receiver<Option<Outcome>>, room: &Semaphore) -> String {
    let sentence = match known(outcome).await {
        Some(Ok(opened)) => {
            opened.upstream().gone().await;
            // A cut shuts the socket first.
            opened.cut().sentence().unwrap_or_else(|| format!("{} closed the connection.", opened.instance()))
        }
        // Whoever asks for a channel is told there.
        Some(Err(sentence)) => {
            tokio::time::sleep(ASK).await;
            sentence
        }
        None => std::future::pending().await,
    };
    drop(room.acquire_many(MOST_CHANNELS).await);
    sentence
}

/// How the opening of the session went.
async fn known(mut outcome: watch::Receiver<Option<Outcome>>) -> Option<Outcome> {
    // Dropped at the end: what waits with it must not keep the session from closing.
    outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
}

fn host_config(jump: &Jump) -> Result<server::Config, String> {
    let signers = &jump.house.signers;
    let mut principals = vec![jump.asked.clone()];
    let name = jump.instance.name.to_string();
    if !principals.contains(&name) {
        principals.push(name);
    }
    let certificate = signers
        .authorities()
        .host_ca
        .certify(&principals, &signers.host, Timestamp::now())
        .map_err(|e| e.to_string())?;
    let method = if matches!(jump.house.config().inner_auth, InnerAuth::None) {
        MethodKind::None
    } else {
        MethodKind::PublicKey
    };
    let mut config =
        super::server_config(MethodSet::from([method].as_slice()), jump.house.config().transport);
    config.keys = vec![signers.host.russh_key()];
    config.certificates = vec![certificate];
    Ok(config)
}

pub(super) struct Shared {
    jump: Jump,
    pub(super) id: SessionId,
    pub(super) result: watch::Sender<Option<Outcome>>,
    phase: Phase,
    handle: OnceLock<Handle>,
    /// The next channel's number.
    pub(super) channels: AtomicU32,
    /// For how many channels there is room.
    pub(super) room: Arc<Semaphore>,
    /// The instance is being asked to listen, and the user has no answer yet.
    pub(super) asking: watch::Sender<bool>,
}

/// russh's callbacks for the inner connection.
struct Inner {
    shared: Arc<Shared>,
    outcome: watch::Receiver<Option<Outcome>>,
    login: Option<Login>,
    /// Fingerprint of the last key that was refused, and why the last request was.
    refused: Option<(Option<String>, &'static str)>,
    opening: Option<tokio::task::JoinHandle<()>>,
    /// Channels that have a terminal.
    terminals: HashSet<ChannelId>,
    /// Where the instance is asked to listen for the user, once it is.
    asks: Option<mpsc::Sender<Asked>>,
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

    /// A channel's way to the session, if there is room for one more.
    fn visit(&self, handle: Handle) -> Result<(Visit, OwnedSemaphorePermit), ChannelOpenFailure> {
        let room = Arc::clone(&self.shared.room).try_acquire_owned();
        let room = room.map_err(|_| ChannelOpenFailure::ResourceShortage)?;
        let id = self.shared.id.to_string();
        if matches!(&*self.outcome.borrow(), Some(Ok(opened)) if opened.tape().is_full()) {
            let reason =
                format!("This session has had as many channels as one may: begin a new one (session {id})");
            return Err(ChannelOpenFailure::Other { code: RESOURCE_SHORTAGE, reason });
        }
        let number = self.shared.channels.fetch_add(1, Ordering::Relaxed);
        Ok((Visit::new(self.outcome.clone(), id, number, handle), room))
    }

    async fn forward(&self, target: Target, asked: (Channel<Msg>, ChannelOpenHandle), handle: Handle) {
        let (channel, reply) = asked;
        let (visit, room) = match self.visit(handle) {
            Ok(visit) => visit,
            Err(full) => return reply.reject(full).await,
        };
        tokio::spawn(async move {
            forward::serve(visit, target, channel, reply).await;
            drop(room);
        });
    }

    /// Asks the instance to listen for the user, or to do so no more.
    fn ask(&mut self, begin: bool, listen: Listen, session: &mut Session) {
        let reply = session.answer_later();
        let asks = self.asks.get_or_insert_with(|| {
            let (shared, outcome) = (Arc::clone(&self.shared), self.outcome.clone());
            Asking { shared, outcome, handle: session.handle() }.begin()
        });
        if asks.try_send(Asked { begin, listen, reply }).is_err() {
            tracing::debug!("listening.not_asked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A client offers every key it holds: that none was the right one counts once, at the end.
        if let (None, Some((key, why))) = (&self.opening, self.refused.take()) {
            let jump = &self.shared.jump;
            let event = crate::audit::Event::SshLoginFailed {
                user: jump.caller.user().to_string(),
                source_ip: jump.caller.source().ip().to_string(),
                key,
                reason: format!("inner login to {} with {why}", jump.instance.name),
            };
            let house = Arc::clone(&jump.house);
            tokio::spawn(async move { super::outer::append(&house, event).await });
        }
    }
}

/// Opens the session, publishes the outcome, and closes the session once the connection and its channels are gone.
async fn hold(shared: Arc<Shared>, login: Login) {
    let jump = &shared.jump;
    let parent = jump.within.as_ref().map(|within| within.session.clone());
    let wanted = Wanted { instance: Arc::clone(&jump.instance), login, parent };
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
    let offers = async {
        if let Some(handle) = shared.handle.get() {
            forward::serve_offers(&shared, &opened, handle.clone()).await;
        }
        std::future::pending::<()>().await;
    };
    let mut cut = opened.cut();
    tokio::select! {
        // Receivers live in the handler, in `serve` and in every channel's task.
        () = shared.result.closed() => {}
        () = offers => {}
        _ = cut.happened() => {
            // Nothing more happens on the instance, however long the user's side takes to hear why.
            opened.hang_up().await;
            shared.result.closed().await;
        }
    }
    opened.close().await;
}

impl server::Handler for Inner {
    type Error = russh::Error;

    /// What the owner of the key should know of its end: here it is seen by every client, also with `-J`.
    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        let jump = &self.shared.jump;
        let (vault, config) = (&jump.house.vault, jump.house.config());
        // Who came with a certificate has none.
        let key = vault.get::<UserKey>(jump.caller.key()).await.ok().flatten();
        let owner = vault.get::<User>(jump.caller.user().as_str()).await.ok().flatten();
        let end = key.zip(owner).and_then(|(key, owner)| {
            notice(&key, &config.keys.of(&owner), Timestamp::now(), config.bastion())
        });
        let factor = jump.house.vault.get::<SecondFactor>(jump.caller.user().as_str()).await.ok().flatten();
        let clock = factor.as_ref().and_then(mfa::clock_notice);
        let changing = jump.house.vault.get::<CaRotation>(CaKind::Host.as_str()).await.ok().flatten();
        let to = format!("{}@{}", jump.caller.user(), config.bastion());
        let changing = changing.map(|rotation| ca_notice(&rotation, Timestamp::now(), &to));
        let said: String =
            end.into_iter().chain(clock).chain(changing).map(|said| format!("{said}\n")).collect();
        Ok((!said.is_empty()).then_some(said))
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        if matches!(self.shared.jump.house.config().inner_auth, InnerAuth::None) {
            return Ok(self.admit(user));
        }
        Ok(Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        if sound(offer.algorithm) && self.shared.jump.caller.matches_key(offer.public_key) {
            return Ok(Auth::Accept);
        }
        let key = UserKey::fingerprint_of(offer.public_key);
        self.refused = Some((Some(key), "another key than the outer one"));
        Ok(Auth::reject())
    }

    /// A key that must verify its user does so here too.
    fn accept_sk_signature(&mut self, _user: &str, _key: &PublicKey, signature: SkSignature) -> bool {
        let verified = signature.user_verified() || !self.shared.jump.caller.verifies();
        signature.user_present() && verified
    }

    async fn auth_refused(
        &mut self,
        _user: &str,
        key: Option<&PublicKey>,
        why: AuthRefusal,
    ) -> Result<(), russh::Error> {
        // What was refused before stays known where this names no key.
        let before = self.refused.take().and_then(|(key, _)| key);
        self.refused = Some((key.map(UserKey::fingerprint_of).or(before), words_for(why)));
        Ok(())
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        if sound(key.algorithm) && self.shared.jump.caller.matches_key(key.public_key) {
            return Ok(self.admit(user));
        }
        Ok(Auth::reject())
    }

    /// The key of the outer login, though it comes with a certificate here: that one was judged there.
    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        let key = PublicKey::from(certificate.public_key().clone());
        Ok(if self.shared.jump.caller.matches_key(&key) { self.admit(user) } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let (visit, room) = match self.visit(session.handle()) {
            Ok(visit) => visit,
            Err(full) => {
                reply.reject(full).await;
                return Ok(());
            }
        };
        tokio::spawn(async move {
            serve_channel(visit, channel, reply).await;
            drop(room);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Ok(port) = u16::try_from(port_to_connect) else { return Ok(()) };
        let jump = &self.shared.jump;
        let depth = 1 + jump.within.as_ref().map_or(0, |within| within.depth);
        let target = Target::Tcp(Arrival {
            house: Arc::clone(&jump.house),
            caller: Arc::clone(&jump.caller),
            asked: host_to_connect.to_owned(),
            port,
            stdio: refusal::is_stdio(originator_address, originator_port),
            within: Some(Within { session: self.shared.id.to_string(), depth }),
        });
        self.forward(target, (channel, reply), session.handle()).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.forward(Target::Socket(socket_path.to_owned()), (channel, reply), session.handle()).await;
        Ok(())
    }

    // What these return does not count: the answer is given when the instance has given its own (see `listening`).
    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        self.ask(true, Listen::Tcp { address: address.to_owned(), port: *port }, session);
        Ok(false)
    }
    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        self.ask(false, Listen::Tcp { address: address.to_owned(), port }, session);
        Ok(false)
    }
    async fn streamlocal_forward(
        &mut self,
        socket_path: &str,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        self.ask(true, Listen::Socket(socket_path.to_owned()), session);
        Ok(false)
    }
    async fn cancel_streamlocal_forward(
        &mut self,
        socket_path: &str,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        self.ask(false, Listen::Socket(socket_path.to_owned()), session);
        Ok(false)
    }

    /// Decided at once: a channel is open only where the session is.
    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, russh::Error> {
        let outcome = self.outcome.borrow();
        Ok(matches!(&*outcome, Some(Ok(opened)) if opened.authorized().may(Capability::Agent)))
    }

    /// Requests are answered here, in order; the relay reads them from the channel and decides (see `reception`).
    fn takes_request(&mut self, channel: ChannelId, kind: &str) -> bool {
        match kind {
            "pty-req" => {
                if self.terminals.len() < MOST_CHANNELS as usize {
                    self.terminals.insert(channel);
                }
                true
            }
            // RFC 4335 §3: it means something on a terminal line alone.
            "break" => self.terminals.contains(&channel),
            kind => matches!(kind, "env" | "shell" | "exec" | "subsystem" | "window-change" | "signal"),
        }
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.terminals.remove(&channel);
        Ok(())
    }
}

/// Sessions in one connection, as OpenSSH's MaxSessions bounds them.
const MOST_CHANNELS: u32 = 32;
/// RFC 4254 §5.1.
const RESOURCE_SHORTAGE: u32 = 4;
/// How long a client whose session did not open may take to ask for a channel.
const ASK: Duration = Duration::from_secs(3);
/// Time for a sentence to reach the user before the connection goes.
const SENTENCE: Duration = Duration::from_secs(1);
