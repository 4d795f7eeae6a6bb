//! The outer connection: key, then code; then jumps to instances, or the desk.
//!
//! The login is [`super::login`]'s.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::ssh::{Algorithm, Certificate, PublicKey};
use russh::server::{
    self, Auth, AuthRefusal, ChannelOpenHandle, Msg, PublicKeyOffer, Response, Session, SkSignature,
    VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::counter::{self, Visit};
use super::goodbye::Goodbye;
use super::jump::{Arrival, jump};
use super::login::Gate;
use super::refusal;
use super::stream::Deadlines;
use crate::audit::Event;
use crate::auth::{Authenticated, SignedCertificate, SignedKey};
use crate::config::Config;
use crate::session::{Cut, Desk, House, LiveInfo, enter};

/// russh's callbacks for the outer connection.
pub(super) struct Outer {
    house: Arc<House>,
    desk: Arc<dyn Desk>,
    gate: Gate,
    room: Arc<Semaphore>,
    /// Cancelled when the handler is dropped, that is when the connection is over.
    over: CancellationToken,
    /// Ends the stream under the connection.
    sever: CancellationToken,
    /// Known from the login on.
    cut: Option<Cut>,
    /// The security key whose signature was verified last verified its user.
    verified: bool,
}

/// Whether a signature of this algorithm counts: none with SHA-1 (RFC 8332 §3).
pub(super) fn sound(algorithm: &Algorithm) -> bool {
    !matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

/// The login deadlines of the configuration.
pub(super) fn deadlines(config: &Config) -> Deadlines {
    Deadlines {
        key: Duration::from_secs(config.login.key_secs),
        login: Duration::from_secs(config.login.login_secs),
    }
}

impl Outer {
    pub(super) fn new(house: Arc<House>, desk: Arc<dyn Desk>, gate: Gate, sever: CancellationToken) -> Self {
        let room = Arc::new(Semaphore::new(MOST_CHANNELS as usize));
        Self { house, desk, gate, room, over: CancellationToken::new(), sever, cut: None, verified: false }
    }

    fn caller(&self) -> Option<Arc<Authenticated>> {
        self.gate.caller()
    }

    /// Why nothing new may begin, once the connection is cut.
    fn lost(&self) -> Option<String> {
        self.cut.as_ref().and_then(Cut::sentence)
    }
}

impl server::Handler for Outer {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, _password: &str) -> Result<Auth, russh::Error> {
        Ok(self.gate.password(user).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        if !sound(offer.algorithm) {
            return Ok(Auth::reject());
        }
        Ok(match offer.certificate {
            Some(certificate) => self.gate.certificate_offered(user, certificate).await,
            None => self.gate.offered(user, offer.public_key).await,
        })
    }

    fn accept_sk_signature(&mut self, _user: &str, _key: &PublicKey, signature: SkSignature) -> bool {
        // Asked right before `auth_publickey`, which takes it.
        self.verified = signature.user_present() && signature.user_verified();
        signature.user_present()
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let user_verified = std::mem::take(&mut self.verified);
        if !sound(key.algorithm) {
            return Ok(Auth::reject());
        }
        Ok(self.gate.signed(user, SignedKey { key: key.public_key, user_verified }).await)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        let user_verified = std::mem::take(&mut self.verified);
        Ok(self.gate.certified(user, SignedCertificate { certificate, user_verified }).await)
    }

    async fn auth_refused(
        &mut self,
        user: &str,
        key: Option<&PublicKey>,
        why: AuthRefusal,
    ) -> Result<(), russh::Error> {
        self.gate.refused_unseen(user, key, why).await;
        Ok(())
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let Some(mut answers) = response else { return Ok(self.gate.question(user).await) };
        let answer = answers.next().filter(|code| code.len() <= 64);
        let answer = zeroize::Zeroizing::new(
            answer.map(|code| String::from_utf8_lossy(&code).trim().to_owned()).unwrap_or_default(),
        );
        Ok(self.gate.answer(user, &answer).await)
    }

    /// Enters the connection into the registry: losing the key or account cuts it.
    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let Some(caller) = self.caller() else {
            return Err(russh::Error::NotAuthenticated);
        };
        let info = LiveInfo {
            session: None,
            user: caller.user().clone(),
            key: caller.key().to_owned(),
            certificate: caller.certificate_id(),
            source: caller.source(),
            to: None,
            instance_added: None,
            since: Timestamp::now(),
            only_exchanges: caller.only_exchanges(),
        };
        // Who was suspended, or whose key was revoked, since it was looked at is cut here, before anything can be asked for.
        let mut registered = enter(&self.house, info, Timestamp::now()).await;
        self.cut = Some(registered.cut.clone());
        let over = self.over.clone();
        let (room, sever) = (Arc::clone(&self.room), self.sever.clone());
        let goodbye = Goodbye { handle: session.handle(), room, places: MOST_CHANNELS, sever };
        tokio::spawn(async move {
            tokio::select! {
                // The sessions inside say their sentence first.
                sentence = registered.cut.happened() => {
                    goodbye.say(sentence, AFTER_SESSIONS, over.cancelled()).await;
                }
                () = over.cancelled() => {}
            }
            drop(registered);
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
        let (Some(caller), Ok(room)) = (self.caller(), Arc::clone(&self.room).try_acquire_owned()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let stdio = refusal::is_stdio(originator_address, originator_port);
        if let Some(sentence) = self.lost() {
            tokio::spawn(async move {
                refusal::refuse(channel, reply, sentence, stdio).await;
                drop(room);
            });
            return Ok(());
        }
        let (house, asked) = (Arc::clone(&self.house), host_to_connect.to_owned());
        let Ok(port) = u16::try_from(port_to_connect) else { return Ok(()) };
        let (desk, handle) = (Arc::clone(&self.desk), session.handle());
        tokio::spawn(async move {
            if desk.shows_console(Arc::clone(&caller), asked.clone()).await {
                reply.accept().await;
                let id = channel.id();
                desk.browse(caller, Box::new(channel.into_stream())).await;
                if handle.close(id).await.is_err() {
                    tracing::debug!("console.user_gone");
                }
                return;
            }
            let arrival = Arrival { house, caller, asked, port, stdio, within: None };
            jump(arrival, channel, reply, handle).await;
            drop(room);
        });
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(reason) = self.lost() {
            reply.reject(ChannelOpenFailure::Other { code: 1, reason }).await;
            return Ok(());
        }
        let (Some(caller), Ok(room)) = (self.caller(), Arc::clone(&self.room).try_acquire_owned()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let Some(cut) = self.cut.clone() else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let (visit, handle) = (Visit { desk: Arc::clone(&self.desk), caller, cut }, session.handle());
        tokio::spawn(async move {
            reply.accept().await;
            counter::serve(visit, channel, handle).await;
            drop(room);
        });
        Ok(())
    }

    /// The desk shows itself on a terminal, and takes a command; there is nothing to set or to signal.
    fn takes_request(&mut self, _channel: ChannelId, kind: &str) -> bool {
        matches!(kind, "pty-req" | "window-change" | "shell" | "exec")
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

pub(super) async fn append(house: &House, event: Event) {
    if let Err(error) = house.trail.append(event, Timestamp::now()).await {
        tracing::error!(%error, "audit.append_failed");
    }
}

/// Time for the sessions inside a connection to end with their own sentence.
const AFTER_SESSIONS: Duration = Duration::from_millis(2500);
/// Channels in one outer connection.
const MOST_CHANNELS: u32 = 64;
