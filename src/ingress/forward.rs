//! Forwards: what goes through a session beside its shells and commands, each with the `forward` or `agent` capability.
//!
//! A forward is opened by the instance's own sshd, under the session's certificate; it is counted and hashed on the
//! tape. SSH inside a forward is cut, since it would go through unseen; to an instance it is a jump ([`super::jump`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use keystore::{Capability, Instance, Login};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use super::inner::Shared;
use super::jump::{self, Arrival, put_off, reachable, right_way, turn_away};
use super::reception::{FromUser, ToUser};
use super::refusal;
use super::visit::{Visit, split};
use crate::auth::Authenticated;
use crate::egress::{EgressError, FromInstance, Offer, Offered, ToInstance};
use crate::recording::ChannelMessage;
use crate::session::{Carries, Ear, House, Lane, Mouth, OpenFault, Opened, Sides, Wanted, open_plain, relay};

/// Where a user's forward leads, as the instance sees it.
pub(super) enum Target {
    Tcp(Arrival),
    Socket(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(arrival) => write!(f, "{}:{}", arrival.asked, arrival.port),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

impl Target {
    async fn reach(&self, opened: &Opened) -> Result<(FromInstance, ToInstance), EgressError> {
        match self {
            Self::Tcp(arrival) => opened.upstream().open_forward(&arrival.asked, arrival.port).await,
            Self::Socket(path) => opened.upstream().open_socket(path).await,
        }
    }
}

/// A forward that the client asks for inside its session (`ssh -L`, `ssh -D`), or a jump from there.
pub(super) async fn serve(mut visit: Visit, target: Target, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let Some(Ok(opened)) = visit.outcome().await else {
        reply.reject(ChannelOpenFailure::ConnectFailed).await;
        return;
    };
    if let Target::Tcp(arrival) = &target {
        let reachable = match reachable(arrival).await {
            Ok(reachable) => reachable,
            Err(fault) => return put_off(arrival, (channel, reply), fault).await,
        };
        match reachable.filter(|_| !arrival.too_deep()) {
            Some(instance) => {
                let arrival = arrival.clone();
                reply.accept().await;
                let id = channel.id();
                let user = split(channel, visit.handle.clone(), id);
                let Some((ear, mouth)) = jump::nested(arrival, instance, user).await else { return };
                return through(&opened, &visit, (&target, Sides { ear, mouth })).await;
            }
            None if arrival.port == jump::SSH => return turn_away(arrival.clone(), channel, reply).await,
            None => {}
        }
    }
    if !opened.authorized().may(Capability::Forward) {
        opened.forward_denied(&target.to_string(), NO_FORWARD).await;
        let reason = format!("The access rules do not let you forward through {}", opened.instance());
        let reason = format!("{reason} (session {})", opened.id());
        reply.reject(ChannelOpenFailure::Other { code: PROHIBITED, reason }).await;
        return;
    }
    let Some(reached) = visit.while_here(target.reach(&opened)).await else { return };
    match reached {
        Ok((ear, mouth)) => {
            reply.accept().await;
            let lane = Lane { number: visit.number, carries: Carries::Forward(target.to_string()) };
            let id = channel.id();
            let (from, to) = split(channel, visit.handle, id);
            let user = relay(&opened, lane, Sides { ear: from, mouth: to }, Sides { ear, mouth }).await;
            if let (Some(user), Target::Tcp(arrival)) = (user, &target) {
                let way = right_way(&arrival.house, arrival.caller.user());
                let reason =
                    format!("SSH to {target} would go through unseen (session {}). {way}", opened.id());
                refusal::tell(user, &reason).await;
            }
        }
        Err(error) => {
            let reason = format!("{} could not connect to {target}: {error}", opened.instance());
            reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }).await;
        }
    }
}

/// What turned out to be no SSH goes on through the instance. Its channel is open already, so refusals close it.
async fn through(opened: &Opened, visit: &Visit, (target, user): (&Target, Sides<Resumed, ToUser>)) {
    if !opened.authorized().may(Capability::Forward) {
        opened.forward_denied(&target.to_string(), NO_FORWARD).await;
        return hang_up(&user.mouth).await;
    }
    let Some(reached) = visit.while_here(target.reach(opened)).await else { return };
    match reached {
        Ok((ear, mouth)) => {
            let lane = Lane { number: visit.number, carries: Carries::Forward(target.to_string()) };
            if let Some(user) = relay(opened, lane, user, Sides { ear, mouth }).await {
                hang_up(&user.mouth).await;
            }
        }
        Err(error) => {
            tracing::info!(session.id = %opened.id(), %error, "forward.failed");
            hang_up(&user.mouth).await;
        }
    }
}

/// Takes the channels that the instance offers (`ssh -R`, agent) to the user, for as long as the connection lives.
pub(super) async fn serve_offers(shared: &Arc<Shared>, opened: &Arc<Opened>, handle: Handle) {
    let Some(mut offers) = opened.upstream().take_offers() else { return };
    let mut told = false;
    while let Some(offer) = offers.recv().await {
        let needed = if offer.what == Offered::Agent { Capability::Agent } else { Capability::Forward };
        if !offer.asked {
            // Once, so that nobody fills the trail.
            if !std::mem::replace(&mut told, true) {
                opened.forward_denied(&offer.what.to_string(), UNASKED).await;
            }
            offer.refuse().await;
            continue;
        }
        let room = Arc::clone(&shared.room).try_acquire_owned();
        let allowed = opened.authorized().may(needed) && !opened.tape().is_full();
        let (true, Ok(room)) = (allowed, room) else {
            offer.refuse().await;
            continue;
        };
        let visit = shared.visit(handle.clone());
        let (opened, mut asking) = (Arc::clone(opened), shared.asking.subscribe());
        tokio::spawn(async move {
            // A client refuses what comes before the answer to its own request; the agent needs none.
            let answered = async { drop(asking.wait_for(|asking| !asking).await) };
            if offer.what == Offered::Agent || visit.while_here(answered).await.is_some() {
                carry_offer(&opened, visit, offer).await;
            }
            drop(room);
        });
    }
}

async fn carry_offer(opened: &Opened, visit: Visit, offer: Offer) {
    let handle = &visit.handle;
    let (opening, target) = match &offer.what {
        Offered::Agent => (handle.channel_open_agent().await, "the user's agent".to_owned()),
        Offered::Socket(path) => (
            handle.channel_open_forwarded_streamlocal(path).await,
            format!("the user, from {path} on the instance"),
        ),
        Offered::Tcp { address, port, originator, originator_port } => (
            handle.channel_open_forwarded_tcpip(address, *port, originator, *originator_port).await,
            format!("the user, from {address}:{port} on the instance"),
        ),
    };
    let Ok(channel) = opening else {
        offer.refuse().await;
        return;
    };
    let (ear, mouth) = offer.take().await;
    let id = channel.id();
    let (from, to) = split(channel, visit.handle, id);
    let lane = Lane { number: visit.number, carries: Carries::Forward(target) };
    // Here the instance is the one that spoke SSH, to a server of the user's.
    if let Some(user) = relay(opened, lane, Sides { ear: from, mouth: to }, Sides { ear, mouth }).await {
        hang_up(&user.mouth).await;
    }
}

impl Shared {
    fn visit(&self, handle: Handle) -> Visit {
        let number = self.channels.fetch_add(1, Ordering::Relaxed);
        Visit::new(self.result.subscribe(), self.id.to_string(), number, handle)
    }
}

/// A stream that is no SSH, from a jump channel of the outer connection to a port of an instance.
pub(super) struct Plain {
    pub(super) house: Arc<House>,
    pub(super) caller: Arc<Authenticated>,
    pub(super) instance: Arc<Instance>,
    /// One of the instance's logins that has the `forward` capability.
    pub(super) login: Login,
    pub(super) port: u16,
    /// What was read of the stream already.
    pub(super) first: Bytes,
    /// The user has said all already.
    pub(super) ended: bool,
}

/// Opens a session for the stream and relays it. The error is a sentence for the log: the stream can't carry one.
pub(super) async fn serve_plain(plain: Plain, user: Sides<FromUser, ToUser>) -> Result<(), OpenFault> {
    let target = format!("{}:{}", plain.instance.address.host, plain.port);
    let wanted = Wanted { instance: plain.instance, login: plain.login, parent: None };
    let opened = open_plain(&plain.house, &plain.caller, &wanted, plain.port).await;
    let (session, there) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            hang_up(&user.mouth).await;
            return Err(why);
        }
    };
    let user =
        Sides { ear: Resumed { first: plain.first, ended: plain.ended, rest: user.ear }, mouth: user.mouth };
    let lane = Lane { number: 1, carries: Carries::Forward(target) };
    let (read, write) = tokio::io::split(there);
    let there = Sides { ear: Incoming::new(read), mouth: Outgoing(Mutex::new(write)) };
    if let Some(user) = relay(&session, lane, user, there).await {
        hang_up(&user.mouth).await;
    }
    session.close().await;
    Ok(())
}

/// Closes a channel that leads nowhere: a client that has said all would wait for an answer for ever.
pub(super) async fn hang_up(user: &ToUser) {
    if let Err(error) = user.say(ChannelMessage::Close).await {
        tracing::debug!(%error, "user.gone_before_goodbye");
    }
}

/// What was heard already, then the rest.
pub(super) struct Resumed {
    pub(super) first: Bytes,
    pub(super) ended: bool,
    pub(super) rest: FromUser,
}

impl Ear for Resumed {
    async fn next(&mut self) -> Option<ChannelMessage> {
        if !self.first.is_empty() {
            return Some(ChannelMessage::Data(std::mem::take(&mut self.first)));
        }
        if std::mem::take(&mut self.ended) {
            return Some(ChannelMessage::Eof);
        }
        self.rest.next().await
    }
}

/// What comes from a plain stream. Small pieces lie beside one another in one buffer: each with its own would hold as much
/// memory as the largest, for as long as it waits.
struct Incoming<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R> Incoming<R> {
    fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> Ear for Incoming<R> {
    async fn next(&mut self) -> Option<ChannelMessage> {
        if self.buffer.capacity() < LITTLE {
            self.buffer.reserve(READ);
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Some(ChannelMessage::Eof),
            Ok(_) => Some(ChannelMessage::Data(self.buffer.split().freeze())),
            Err(_) => None,
        }
    }
}

struct Outgoing<W>(Mutex<W>);

impl<W: AsyncWrite + Unpin + Send> Mouth for Outgoing<W> {
    async fn say(&self, message: ChannelMessage) -> Result<(), String> {
        // One task at a time says something: the lock is never waited for, it only lends the writer.
        let mut write = self.0.lock().await;
        let said = match message {
            ChannelMessage::Data(bytes) => write.write_all(&bytes).await,
            ChannelMessage::Eof | ChannelMessage::Close => write.shutdown().await,
            _ => Ok(()),
        };
        said.map_err(|e| e.to_string())
    }
}

/// Why a channel that the instance opens is refused.
const UNASKED: &str = "the instance offered it, and the user asked for no such thing";
const NO_FORWARD: &str = "the access rules give no forward";
const READ: usize = 128 * 1024;
/// Room below which there is made more.
const LITTLE: usize = 16 * 1024;
/// RFC 4254 §5.1.
const PROHIBITED: u32 = 1;
const CONNECT_FAILED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_pieces_share_one_buffer_and_a_large_one_comes_whole() {
        let (mut far, near) = tokio::io::duplex(READ);
        let mut incoming = Incoming::new(near);
        let mut held = Vec::new();
        for n in 0..100 {
            far.write_all(&[n]).await.unwrap();
            let Some(ChannelMessage::Data(piece)) = incoming.next().await else { panic!("no data") };
            assert_eq!(piece.as_ref(), [n]);
            held.push(piece);
        }
        let begin = held[0].as_ptr() as usize;
        assert!(held.iter().enumerate().all(|(n, piece)| piece.as_ptr() as usize == begin + n));
        far.write_all(&[7; 64 * 1024]).await.unwrap();
        assert!(
            matches!(incoming.next().await, Some(ChannelMessage::Data(piece)) if piece.len() == 64 * 1024)
        );
        drop(far);
        assert_eq!(incoming.next().await, Some(ChannelMessage::Eof));
    }
}
