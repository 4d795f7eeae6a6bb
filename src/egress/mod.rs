//! The SSH *client* side: dials an instance, proves that it is itself, and signs in with a certificate of minutes, or with
//! a key that it holds there.
//!
//! Takes the three proofs of a session ([`Authorized`], [`Tape`], the audit [`Receipt`]) by reference: who lacks one
//! cannot dial. Never decides who may go where, never sees a private key (a signer signs), never skips the host key.

mod algorithms;
mod channel;
mod means;
mod offer;
mod passage;
mod remember;
mod severable;
mod signal;
mod trust;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use keystore::journal::Receipt;
use russh::{AlgorithmKind, Disconnect, SshId, client};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::audit::{Event, SessionFacts};
use crate::config::{Crypto, Transport};
use crate::policy::Authorized;
use crate::recording::Tape;

pub use algorithms::{preferred, rekey_limits};
pub use channel::{FromInstance, ToInstance};
pub use means::Means;
pub use offer::{Offer, Offered};
pub use passage::{Passage, Passing};
pub use remember::{NotRemembered, accepted, proven};
pub use severable::Severable;
pub use signal::{signal_of, signal_text};

use offer::{Asked, Verifier};

/// Why the instance could not be reached or entered.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// Instance: nothing answers at its address.
    #[error("it does not answer at {address}: {why}")]
    Unreachable {
        /// `HOST:PORT`.
        address: String,
        /// What the network said.
        why: String,
    },
    /// Instance: the host key is not the one that was enrolled. Perhaps another machine answers.
    #[error("its host key does not match what is on record ({offered})")]
    HostKeyMismatch {
        /// Fingerprint of what was offered, or why its certificate does not count.
        offered: String,
    },
    /// Operator: instance and bastion share no algorithm of this kind.
    #[error("it has no {kind} in common with this bastion{hint}; it offers {offered}")]
    NothingInCommon {
        /// Of what.
        kind: &'static str,
        /// What would help, in brackets; empty where nothing is known.
        hint: &'static str,
        /// What the instance offers.
        offered: String,
    },
    /// Instance: it does not accept Keyward's certificate.
    #[error("it does not accept Keyward's certificate for this login; check TrustedUserCAKeys there")]
    NotAccepted,
    /// Instance: it does not accept the key that Keyward holds for it; its fingerprint.
    #[error("it does not accept Keyward's key {0} for this login; check ~/.ssh/authorized_keys there")]
    KeyNotAccepted(String),
    /// Operator: what is on record about the instance's host key cannot be read.
    #[error("what is on record about its host key cannot be read: {0}")]
    Trust(String),
    /// Internal: the certificate could not be made.
    #[error("the bastion's own fault, not the instance's: no certificate could be made: {0}")]
    Certificate(String),
    /// Internal: the key that Keyward holds for it could not be had.
    #[error("the bastion's own fault, not the instance's: its key for this login could not be had: {0}")]
    Credential(String),
    /// Instance: the connection broke.
    #[error("the connection to it broke: {0}")]
    Broken(String),
}

impl EgressError {
    /// What the trail hears of it, for the session that `facts` are of.
    pub fn event(&self, facts: SessionFacts) -> Event {
        let SessionFacts { session, user, source_ip, instance, login, .. } = facts;
        let (session, login, reason) = (Some(session), Some(login), self.to_string());
        match self {
            Self::HostKeyMismatch { offered } => Event::InstanceHostKeyMismatch {
                user,
                source_ip,
                session,
                instance,
                login,
                offered: offered.clone(),
                reason,
            },
            _ => Event::InstanceUnreachable { user, source_ip, session, instance, login, reason },
        }
    }
}

/// What must exist before an instance is dialled.
///
/// ```
/// # use {keystore::journal::Receipt, keyward::{policy::Authorized, recording::Tape}};
/// fn with_all_three(a: &Authorized, t: &Tape, r: &Receipt) {
///     let _ = keyward::egress::Proofs { authorized: a, tape: t, receipt: r };
/// }
/// ```
/// No tape, no dial: there is no way to leave one out.
/// ```compile_fail,E0063
/// # use {keystore::journal::Receipt, keyward::policy::Authorized};
/// fn without_a_tape(a: &Authorized, r: &Receipt) {
///     let _ = keyward::egress::Proofs { authorized: a, receipt: r };
/// }
/// ```
#[derive(Clone, Copy)]
pub struct Proofs<'a> {
    /// The policy's permission.
    pub authorized: &'a Authorized,
    /// The open tape.
    pub tape: &'a Tape,
    /// The receipt of the durable `session_opened`.
    pub receipt: &'a Receipt,
}

/// What else a dial needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Leg<'a> {
    /// Through which the connection goes: whoever cuts the session bars it.
    pub passage: &'a Arc<Passage>,
    /// Id of the session that it is for.
    pub session: &'a str,
    /// What the connection negotiates.
    pub transport: Transport,
}

/// A signed-in connection to an instance. Closed by [`Upstream::hang_up`], or when dropped.
pub struct Upstream {
    handle: client::Handle<Verifier>,
    offers: Mutex<Option<mpsc::Receiver<Offer>>>,
    accepted: String,
    asked: Asked,
    /// Cancelled when the connection is over.
    gone: CancellationToken,
    /// Ends the stream under the connection.
    passage: Arc<Passage>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.passage.shut();
    }
}

/// Dials the instance, checks its host key, and signs in as the authorised login. Gives up after 20 s.
/// The session is named in a certificate's key id.
///
/// # Errors
/// See [`EgressError`]; a host key mismatch is fatal.
pub async fn dial(
    proofs: Proofs<'_>,
    means: Means<'_>,
    leg: Leg<'_>,
    now: Timestamp,
) -> Result<Upstream, EgressError> {
    let address = proofs.authorized.instance().address.to_string();
    match tokio::time::timeout(DIAL, enter(proofs, means, leg, now)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(EgressError::Unreachable { address, why: "no answer within 20 seconds".to_owned() }),
    }
}

/// Dials `port` of the instance for a stream that is no SSH. Gives up after 20 s.
///
/// # Errors
/// [`EgressError::Unreachable`].
pub async fn dial_plain(
    proofs: Proofs<'_>,
    passage: &Arc<Passage>,
    port: u16,
) -> Result<Passing, EgressError> {
    let host = proofs.authorized.instance().address.host.as_str();
    let unreachable = |why: String| EgressError::Unreachable { address: format!("{host}:{port}"), why };
    match tokio::time::timeout(DIAL, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => passage.through(stream).map_err(|e| unreachable(e.to_string())),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no answer within 20 seconds".to_owned())),
    }
}

async fn enter(
    proofs: Proofs<'_>,
    means: Means<'_>,
    leg: Leg<'_>,
    now: Timestamp,
) -> Result<Upstream, EgressError> {
    let instance = proofs.authorized.instance();
    let trust = trust::Trust::read(instance, now)?;
    let config = Arc::new(client_config(&trust, leg.transport));
    let fault = Arc::new(Mutex::new(None));
    let (offered, offers) = mpsc::channel(MOST_OFFERS);
    let asked = Asked::default();
    let gone = CancellationToken::new();
    let _alive = gone.clone().drop_guard();
    let verifier = Verifier { trust, fault: Arc::clone(&fault), offered, asked: asked.clone(), _alive };
    let unreachable = |why: String| EgressError::Unreachable { address: instance.address.to_string(), why };

    let tcp = TcpStream::connect((instance.address.host.as_str(), instance.address.port))
        .await
        .map_err(|e| unreachable(e.to_string()))?;
    tcp.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
    let stream = leg.passage.through(tcp).map_err(|e| unreachable(e.to_string()))?;
    let mut handle = client::connect_stream(config, stream, verifier).await.map_err(|e| {
        let mismatch = fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        match mismatch {
            Some(offered) => EgressError::HostKeyMismatch { offered },
            None => nothing_in_common(&e, leg.transport).unwrap_or_else(|| unreachable(e.to_string())),
        }
    })?;

    let accepted = means.sign_in(&mut handle, proofs, leg.session, now).await?;
    let (offers, passage) = (Mutex::new(Some(offers)), Arc::clone(leg.passage));
    Ok(Upstream { handle, offers, passage, accepted, asked, gone })
}

/// The fault where both sides' lists do not meet (RFC 4253 §7.1), in words; for a user's client too.
pub fn nothing_in_common(error: &russh::Error, transport: Transport) -> Option<EgressError> {
    let russh::Error::NoCommonAlgo { kind, theirs, .. } = error else { return None };
    let hint = match (kind, transport.crypto) {
        (AlgorithmKind::Kex, Crypto::Strict) => STRICT,
        _ => "",
    };
    let kind = match kind {
        AlgorithmKind::Kex => "key exchange",
        AlgorithmKind::Key => "kind of host key",
        AlgorithmKind::Cipher => "cipher",
        AlgorithmKind::Compression => "compression",
        AlgorithmKind::Mac => "MAC",
    };
    // The peer's words, so not more of them than a line.
    let offered = theirs.join(", ").chars().filter(|c| !c.is_control()).take(256).collect();
    Some(EgressError::NothingInCommon { kind, hint, offered })
}

impl Upstream {
    /// What the instance accepted: the fingerprint of the CA, or of the key.
    pub fn accepted(&self) -> &str {
        &self.accepted
    }

    /// Opens a session channel on the instance.
    ///
    /// # Errors
    /// [`EgressError::Broken`] if the instance refuses it or is gone.
    pub async fn open_session(&self) -> Result<(FromInstance, ToInstance), EgressError> {
        let channel =
            self.handle.channel_open_session().await.map_err(|e| EgressError::Broken(e.to_string()))?;
        Ok(channel::split(channel, self.asked.clone()))
    }

    /// Opens a channel from the instance to `host:port`, as the instance sees them.
    ///
    /// # Errors
    /// [`EgressError::Broken`] with what the instance says.
    pub async fn open_forward(
        &self,
        host: &str,
        port: u16,
    ) -> Result<(FromInstance, ToInstance), EgressError> {
        let opening = self.handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0);
        let opened = opening.await.map_err(|e| EgressError::Broken(e.to_string()))?;
        Ok(channel::split(opened, self.asked.clone()))
    }

    /// Opens a channel from the instance to a Unix socket on it.
    ///
    /// # Errors
    /// [`EgressError::Broken`] with what the instance says.
    pub async fn open_socket(&self, path: &str) -> Result<(FromInstance, ToInstance), EgressError> {
        let opening = self.handle.channel_open_direct_streamlocal(path);
        let opened = opening.await.map_err(|e| EgressError::Broken(e.to_string()))?;
        Ok(channel::split(opened, self.asked.clone()))
    }

    /// Asks the instance to listen for the user (RFC 4254 §7.1); the port it took, 0 if it is the one asked for.
    ///
    /// # Errors
    /// [`EgressError::Broken`] with what the instance says.
    pub async fn listen(&self, listen: &Listen) -> Result<u32, EgressError> {
        let wish = Wish::new(&self.asked, listen);
        let port = match listen {
            Listen::Tcp { address, port } => self.handle.tcpip_forward(address, *port).await,
            Listen::Socket(path) => self.handle.streamlocal_forward(path).await.map(|()| 0),
        };
        let port = port.map_err(|e| EgressError::Broken(e.to_string()))?;
        wish.granted(port);
        Ok(port)
    }

    /// Asks the instance to listen no more.
    ///
    /// # Errors
    /// [`EgressError::Broken`] with what the instance says.
    pub async fn listen_no_more(&self, listen: &Listen) -> Result<(), EgressError> {
        let asked = match listen {
            Listen::Tcp { address, port } => self.handle.cancel_tcpip_forward(address, *port).await,
            Listen::Socket(path) => self.handle.cancel_streamlocal_forward(path).await,
        };
        self.asked.listen_no_more(listen);
        asked.map_err(|e| EgressError::Broken(e.to_string()))
    }

    /// The channels that the instance offers; `None` if someone has them already.
    pub fn take_offers(&self) -> Option<mpsc::Receiver<Offer>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Resolves when the connection is gone, whoever ended it. Cancel-safe.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Says goodbye and closes, whatever the instance does: it has a second. One that is gone already is no fault.
    pub async fn hang_up(&self) {
        let leave = async {
            let goodbye = self.handle.disconnect(Disconnect::ByApplication, "session over", "en");
            if let Err(error) = goodbye.await {
                tracing::debug!(%error, "instance was gone before the goodbye");
            }
            self.gone().await;
        };
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            tracing::debug!("instance.severed");
        }
        self.passage.shut();
    }
}

/// Where an instance listens for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port, as `ssh -R` says it.
    Tcp {
        /// Address to bind.
        address: String,
        /// Port; 0 for any.
        port: u32,
    },
    /// A Unix socket.
    Socket(String),
}

/// What the instance is being asked for: taken back unless it is granted, also when nobody waits for the answer any more.
struct Wish<'a> {
    asked: &'a Asked,
    listen: Option<&'a Listen>,
}

impl<'a> Wish<'a> {
    fn new(asked: &'a Asked, listen: &'a Listen) -> Self {
        asked.listen(listen);
        Self { asked, listen: Some(listen) }
    }

    /// The instance listens, on `port` if it chose one.
    fn granted(mut self, port: u32) {
        if let Some(Listen::Tcp { address, port: 0 }) = self.listen.take() {
            self.asked.listen(&Listen::Tcp { address: address.clone(), port });
            self.asked.listen_no_more(&Listen::Tcp { address: address.clone(), port: 0 });
        }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        if let Some(listen) = self.listen {
            self.asked.listen_no_more(listen);
        }
    }
}

fn client_config(trust: &trust::Trust, transport: Transport) -> client::Config {
    let mut preferred = preferred(transport);
    trust.narrow(&mut preferred);
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Keyward")),
        preferred,
        limits: rekey_limits(transport),
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    }
}

/// What `transport.crypto = "strict"` asks of an instance.
const STRICT: &str = " (strict: mlkem768x25519-sha256 alone, which OpenSSH has from 9.9 on)";
/// Channels that an instance may offer before one is taken; more are refused.
const MOST_OFFERS: usize = 64;
/// How long an instance may take to let go.
const LEAVE: Duration = Duration::from_secs(1);
const DIAL: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_whose_fault_it_is() {
        let own = [EgressError::Credential("no answer".to_owned()), EgressError::Certificate("x".to_owned())];
        assert!(
            own.iter()
                .all(|fault| fault.to_string().starts_with("the bastion's own fault, not the instance's"))
        );
        assert!(!EgressError::NotAccepted.to_string().contains("own fault"));
    }
}
