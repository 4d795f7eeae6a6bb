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
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::forward::{self, Target};
use super::goodbye::Goodbye;
use super::jump::{Arrival, Within};
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
    });
    let handler = Inner {
        shared: Arc::clone(&shared),
        outcome: outcome.clone(),
        login: None,
        refused: None,
        opening: None,
        terminals: HashSet::new(),
        listening: Vec::new(),
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
    drop(shared);
    tokio::select! {
        ended = &mut running => if let Err(error) = ended {
            tracing::debug!(%error, "inner.ended");
        },
        sentence = cut(outcome.clone()) => {
            // The channels say the sentence first; then the connection goes.
            goodbye.say(sentence, SENTENCE, &mut running).await;
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
}

/// russh's callbacks for the inner connection.
struct Inner {
    shared: Arc<Shared>,
    outcome: watch::Receiver<Option<Outcome>>,
    login: Option<Login>,
    /// Fingerprint of the last key that was refused, and why.
    refused: Option<(String, &'static str)>,
    opening: Option<tokio::task::JoinHandle<()>>,
    /// Channels that have a terminal.
    terminals: HashSet<ChannelId>,
    /// Where the instance listens for the user, with the number that each has on the tape.
    listening: Vec<(Listen, u32)>,
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
    fn visit(&self, handle: Handle) -> Option<(Visit, OwnedSemaphorePermit)> {
        let room = Arc::clone(&self.shared.room).try_acquire_owned().ok()?;
        let number = self.shared.channels.fetch_add(1, Ordering::Relaxed);
        let id = self.shared.id.to_string();
        Some((Visit::new(self.outcome.clone(), id, number, handle), room))
    }

    async fn forward(&self, target: Target, asked: (Channel<Msg>, ChannelOpenHandle), handle: Handle) {
        let (channel, reply) = asked;
        let Some((visit, room)) = self.visit(handle) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return;
        };
        tokio::spawn(async move {
            forward::serve(visit, target, channel, reply).await;
            drop(room);
        });
    }

    /// The session, once it is open; waits for it as long as the dial may take.
    async fn opened(&self) -> Option<Arc<Opened>> {
        let mut outcome = self.outcome.clone();
        let known =
            tokio::time::timeout(OPENING, outcome.wait_for(Option::is_some)).await.ok()?.ok()?.clone();
        known.and_then(Result::ok)
    }

    /// Lets the instance listen for the user; the port, if it does. Tape and trail hear of it first.
    async fn listen(&mut self, listen: Listen) -> Option<u32> {
        let opened = self.opened().await?;
        let number = self.shared.channels.fetch_add(1, Ordering::Relaxed);
        if !opened.listening(number, &listen).await {
            return None;
        }
        let heard = tokio::time::timeout(OPENING, opened.upstream().listen(&listen)).await;
        let port = heard.ok().and_then(Result::ok);
        match port {
            Some(_) if self.listening.len() < MOST_LISTENING => self.listening.push((listen, number)),
            Some(_) => {}
            None => opened.listens_no_more(number).await,
        }
        port
    }

    async fn listen_no_more(&mut self, listen: &Listen) -> bool {
        let Some(opened) = self.opened().await else { return false };
        if let Some(at) = self.listening.iter().position(|(other, _)| other == listen) {
            opened.listens_no_more(self.listening.swap_remove(at).1).await;
        }
        tokio::time::timeout(OPENING, opened.upstream().listen_no_more(listen)).await.is_ok_and(|r| r.is_ok())
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
                key: Some(key),
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
        self.refused = Some((UserKey::fingerprint_of(offer.public_key), "another key than the outer one"));
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
        _why: AuthRefusal,
    ) -> Result<(), russh::Error> {
        self.refused = key.map(|key| (UserKey::fingerprint_of(key), "a signature that does not count"));
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
        let Some((visit, room)) = self.visit(session.handle()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
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

    // Whoever asks the instance to listen waits for its answer, and with it this one connection (RFC 4254 §7.1: replies
    // come in order).
    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let listen = Listen::Tcp { address: address.to_owned(), port: *port };
        let taken = self.listen(listen).await;
        if let (0, Some(chosen)) = (*port, taken) {
            *port = chosen;
        }
        Ok(taken.is_some())
    }
    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listen_no_more(&Listen::Tcp { address: address.to_owned(), port }).await)
    }
    async fn streamlocal_forward(
        &mut self,
        socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listen(Listen::Socket(socket_path.to_owned())).await.is_some())
    }
    async fn cancel_streamlocal_forward(
        &mut self,
        socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listen_no_more(&Listen::Socket(socket_path.to_owned())).await)
    }
    async fn agent_request(&mut self, _: ChannelId, _: &mut Session) -> Result<bool, russh::Error> {
        Ok(self.opened().await.is_some_and(|opened| opened.authorized().may(Capability::Agent)))
    }

    // Requests are answered here, in order, also those that need no answer but ask for one; the relay reads them from the
    // channel and decides (see `reception`).
    async fn break_request(
        &mut self,
        channel: ChannelId,
        _length: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // RFC 4335 §3: it means something on a terminal line alone.
        if self.terminals.contains(&channel) {
            return session.channel_success(channel);
        }
        session.channel_failure(channel)
    }
    async fn signal(
        &mut self,
        channel: ChannelId,
        _signal: Sig,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _cols: u32,
        _rows: u32,
        _px_width: u32,
        _px_height: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.terminals.remove(&channel);
        Ok(())
    }
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
        if self.terminals.len() < MOST_CHANNELS as usize {
            self.terminals.insert(channel);
        }
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

/// How long a request that needs the session waits for it; a dial takes at most 20 s.
const OPENING: Duration = Duration::from_secs(25);
/// Ports and sockets on which an instance listens for one connection, of which the tape hears when they close.
const MOST_LISTENING: usize = 64;
/// Sessions in one connection, as OpenSSH's MaxSessions bounds them.
const MOST_CHANNELS: u32 = 32;
/// Time for a sentence to reach the user before the connection goes.
const SENTENCE: Duration = Duration::from_secs(1);
