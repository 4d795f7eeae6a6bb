//! What an instance asks of the bastion: that its host key be known, and that its channels towards the user be taken.
//!
//! A channel that nobody asked for is refused by whoever takes the [`Offer`], who hears that it was not: it is never open
//! before.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::client::{self, ChannelOpenHandle};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelOpenFailure};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use super::channel::{self, FromInstance, ToInstance};
use super::{Listen, trust};

/// What an instance offers a channel for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// Someone connected to a port on which the instance listens for the user (`ssh -R`).
    Tcp {
        /// The address that listens.
        address: String,
        /// Its port.
        port: u32,
        /// Who connected.
        originator: String,
        /// From which port.
        originator_port: u32,
    },
    /// Someone connected to a Unix socket on which the instance listens for the user.
    Socket(String),
    /// A program wants the user's agent.
    Agent,
}

impl std::fmt::Display for Offered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { address, port, .. } => write!(f, "{address}:{port}"),
            Self::Socket(path) => f.write_str(path),
            Self::Agent => f.write_str("the user's agent"),
        }
    }
}

/// What the user asked an instance for, and is offered with good reason.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<Mutex<Wishes>>);

#[derive(Default)]
struct Wishes {
    agent: bool,
    /// One that was asked for twice stands here twice.
    places: Vec<Place>,
}

#[derive(PartialEq, Eq)]
enum Place {
    /// Instances name the address in their own way. 0 while it is theirs to choose the port.
    Port(u32),
    Socket(String),
}

impl Place {
    fn of(listen: &Listen) -> Self {
        match listen {
            Listen::Tcp { port, .. } => Self::Port(*port),
            Listen::Socket(path) => Self::Socket(path.clone()),
        }
    }
}

impl Asked {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user lends the agent.
    pub(super) fn agent(&self) {
        self.wishes().agent = true;
    }

    /// The user wants the instance to listen.
    pub(super) fn listen(&self, listen: &Listen) {
        self.wishes().places.push(Place::of(listen));
    }

    /// The user wants it no more, or it never did.
    pub(super) fn listen_no_more(&self, listen: &Listen) {
        let (mut wishes, place) = (self.wishes(), Place::of(listen));
        if let Some(at) = wishes.places.iter().position(|other| *other == place) {
            wishes.places.swap_remove(at);
        }
    }

    fn covers(&self, what: &Offered) -> bool {
        let wishes = self.wishes();
        match what {
            Offered::Agent => wishes.agent,
            Offered::Tcp { port, .. } => {
                wishes.places.iter().any(|place| [Place::Port(*port), Place::Port(0)].contains(place))
            }
            Offered::Socket(path) => wishes.places.contains(&Place::Socket(path.clone())),
        }
    }
}

/// A channel that an instance offers; refused when dropped.
pub struct Offer {
    /// For what.
    pub what: Offered,
    /// Whether the user asked for it.
    pub asked: bool,
    channel: Channel<client::Msg>,
    reply: ChannelOpenHandle,
}

impl Offer {
    /// Takes the channel.
    pub async fn take(self) -> (FromInstance, ToInstance) {
        self.reply.accept().await;
        channel::split(self.channel, Asked::default())
    }

    /// Refuses it.
    pub async fn refuse(self) {
        self.reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    }
}

pub(super) struct Verifier {
    pub(super) trust: trust::Trust,
    pub(super) fault: Arc<Mutex<Option<String>>>,
    pub(super) offered: mpsc::Sender<Offer>,
    pub(super) asked: Asked,
    /// Dropped with the connection, which tells that it is gone.
    pub(super) _alive: DropGuard,
}

impl Verifier {
    fn offer(&self, what: Offered, channel: Channel<client::Msg>, reply: ChannelOpenHandle) {
        // With no room, or nobody there, the offer is dropped, which refuses it (RFC 4254 §5.1).
        let asked = self.asked.covers(&what);
        if self.offered.try_send(Offer { what, asked, channel, reply }).is_err() {
            tracing::debug!("instance.offer_refused");
        }
    }
}

impl client::Handler for Verifier {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        match self.trust.check(offered) {
            Ok(()) => Ok(true),
            Err(why) => {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                Ok(false)
            }
        }
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let what = Offered::Tcp {
            address: connected_address.to_owned(),
            port: connected_port,
            originator: originator_address.to_owned(),
            originator_port,
        };
        self.offer(what, channel, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<client::Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.offer(Offered::Socket(socket_path.to_owned()), channel, reply);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<client::Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.offer(Offered::Agent, channel, reply);
        Ok(())
    }

    // What only a client opens, and X11: the handles are dropped, which refuses.
    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<client::Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _host: &str,
        _port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<client::Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}
