//! Jumps: a `direct-tcpip` channel to an instance, on the outer connection or inside a session.
//!
//! The name or address is looked up and authorised for each channel. What speaks SSH is terminated, whatever the port;
//! what does not is a forward.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use keystore::{Capability, Instance, Login, User, UserName};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::elastic::{Elastic, FirstBytes, first_bytes};
use super::forward::{self, Plain, Resumed};
use super::inner::{self, Jump};
use super::outer::append;
use super::reception::{FromUser, ToUser};
use super::refusal;
use super::visit::split;
use crate::audit::Event;
use crate::auth::Authenticated;
use crate::policy::Facts;
use crate::session::{House, Sides};

/// A `direct-tcpip` request.
#[derive(Clone)]
pub(super) struct Arrival {
    pub(super) house: Arc<House>,
    pub(super) caller: Arc<Authenticated>,
    /// The name or address as the client asked for it.
    pub(super) asked: String,
    pub(super) port: u16,
    /// It is an `ssh -W`.
    pub(super) stdio: bool,
    /// The session inside which it came, if it did.
    pub(super) within: Option<Within>,
}

/// The session inside which another one is asked for (SSH inside SSH).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Within {
    /// Its id.
    pub(super) session: String,
    /// How many sessions lie around the new one.
    pub(super) depth: usize,
}

/// Lets the channel through to an instance that the caller may enter in some way; everything else is refused.
pub(super) async fn jump(arrival: Arrival, channel: Channel<Msg>, reply: ChannelOpenHandle, handle: Handle) {
    let request = Uuid::now_v7();
    if arrival.caller.only_exchanges() {
        audit_refusal(&arrival, format!("key expired (request {request})")).await;
        let reason = format!("{EXPIRED} (request {request})");
        reply.reject(ChannelOpenFailure::Other { code: 1, reason }).await;
        return;
    }
    let instance = match reachable(&arrival).await {
        Ok(Some(instance)) => instance,
        Ok(None) => return turn_away(arrival, channel, reply).await,
        Err(fault) => return put_off(&arrival, (channel, reply), fault).await,
    };
    reply.accept().await;
    let id = channel.id();
    let (mut ear, mouth) = split(channel, handle, id);
    let first = first_bytes(&mut ear, FIRST_BYTES).await;
    let forward = match forward_login(&arrival, &instance).await {
        Ok(forward) => forward,
        // What is SSH needs none.
        Err(_) if matches!(first, FirstBytes::Ssh(_)) => None,
        Err(fault) => {
            audit_forward(&arrival, format!("{fault} (request {request})")).await;
            return forward::hang_up(&mouth).await;
        }
    };
    let sshs = arrival.is_ssh(&instance);
    let instance = Arc::new(instance);
    let ended = matches!(first, FirstBytes::Ended(_));
    let (first, login) = match (first, forward) {
        // A client that is silent at an SSH port, or that may do nothing else, waits for us to speak first.
        (FirstBytes::Ssh(first), _) => (first, None),
        (FirstBytes::Silent(first), forward) if sshs || forward.is_none() => (first, None),
        (FirstBytes::Silent(first) | FirstBytes::Other(first) | FirstBytes::Ended(first), Some(login)) => {
            (first, Some(login))
        }
        (FirstBytes::Silent(_) | FirstBytes::Other(_) | FirstBytes::Ended(_), None) => {
            let reason = format!("not SSH, and the access rules give no forward (request {request})");
            audit_forward(&arrival, reason).await;
            return forward::hang_up(&mouth).await;
        }
    };
    let Some(login) = login else {
        return terminate(arrival, instance, Elastic::new(first, ear, mouth)).await;
    };
    let Arrival { house, caller, port, .. } = arrival;
    let plain = Plain { house, caller, instance, login, port, first, ended };
    // In the registry's care, so that a drain waits until its tape is sealed.
    let registry = Arc::clone(&plain.house.registry);
    let served = registry.spawn(async move { forward::serve_plain(plain, Sides { ear, mouth }).await });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::info!(%request, %why, "forward.failed"),
        Err(why) => tracing::error!(%request, %why, "forward.panicked"),
    }
}

/// Answers as the instance, until all is said that was said in it. Boxed, since what is inside may jump again.
fn terminate(
    arrival: Arrival,
    instance: Arc<Instance>,
    (stream, said): (Elastic<FromUser>, JoinHandle<()>),
) -> BoxFuture<'static, ()> {
    let Arrival { house, caller, asked, within, .. } = arrival;
    Box::pin(async move {
        inner::serve(Jump { house, caller, instance, asked, within }, stream).await;
        if tokio::time::timeout(LAST_WORDS, said).await.is_err() {
            tracing::debug!("user.did_not_read_the_end");
        }
    })
}

/// Refuses, in the same words whether there is no such instance or the caller may not enter it: names are not for guessing.
pub(super) async fn turn_away(arrival: Arrival, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let request = Uuid::now_v7();
    audit_refusal(&arrival, format!("unknown or not allowed (request {request})")).await;
    let asked: String = arrival.asked.chars().filter(|c| !c.is_control()).take(64).collect();
    let mut reason = format!("You have no access to an instance named {asked} (request {request})");
    if arrival.within.is_some() {
        reason.push_str(&format!(". {}", right_way(&arrival.house, arrival.caller.user())));
    }
    refusal::refuse(channel, reply, reason, arrival.stdio).await;
}

/// Refuses for the bastion's own fault: whether there is such an instance, and whether the caller may enter it, is not known.
pub(super) async fn put_off(
    arrival: &Arrival,
    (channel, reply): (Channel<Msg>, ChannelOpenHandle),
    fault: StoreFault,
) {
    let request = Uuid::now_v7();
    audit_refusal(arrival, format!("{fault} (request {request})")).await;
    let reason = format!(
        "The bastion cannot look up where you may go now; try again, or tell your administrator (request {request})"
    );
    refusal::refuse(channel, reply, reason, arrival.stdio).await;
}

/// How SSH gets to where it is recorded.
pub(super) fn right_way(house: &House, user: &UserName) -> String {
    let bastion = house.bastion();
    format!(
        "From here only instances that the bastion knows are reached: ssh -J {user}@{bastion} LOGIN@INSTANCE"
    )
}

/// A jump inside a session (`ssh -J bastion,db-1 db-2`): what is SSH becomes a session of its own, which the bastion dials
/// as any other. What is not is given back: it goes through the instance, and may be SSH no more.
pub(super) async fn nested(
    arrival: Arrival,
    instance: Instance,
    (mut ear, mouth): (FromUser, ToUser),
) -> Option<(Resumed, ToUser)> {
    let sshs = arrival.is_ssh(&instance);
    let (first, ended) = match first_bytes(&mut ear, FIRST_BYTES).await {
        FirstBytes::Ssh(first) => (first, None),
        FirstBytes::Silent(first) if sshs => (first, None),
        FirstBytes::Silent(first) | FirstBytes::Other(first) => (first, Some(false)),
        FirstBytes::Ended(first) => (first, Some(true)),
    };
    match ended {
        Some(ended) => Some((Resumed { first, ended, rest: ear }, mouth)),
        None => {
            terminate(arrival, Arc::new(instance), Elastic::new(first, ear, mouth)).await;
            None
        }
    }
}

impl Arrival {
    /// Whether SSH is to be expected at the port.
    fn is_ssh(&self, instance: &Instance) -> bool {
        self.port == SSH || self.port == instance.address.port
    }

    /// Inside a session a loopback address is the instance's own, whatever the bastion knows under it.
    fn is_loopback(&self) -> bool {
        let address = self.asked.parse::<IpAddr>();
        self.within.is_some() && address.is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// Sessions lie around it as deep as they may.
    pub(super) fn too_deep(&self) -> bool {
        self.within.as_ref().is_some_and(|within| within.depth > MOST_NESTED)
    }
}

/// Internal: the store could not be read, so nothing was decided.
#[derive(Debug, thiserror::Error)]
#[error("not decided: the store is unavailable: {0}")]
pub(super) struct StoreFault(#[from] keystore::Error);

/// A login on the instance with which the caller may forward.
async fn forward_login(arrival: &Arrival, instance: &Instance) -> Result<Option<Login>, StoreFault> {
    let house = &arrival.house;
    let user = house.vault.get::<User>(arrival.caller.user().as_str()).await?;
    let Some(user) = user else { return Ok(None) };
    let facts = Facts { user: &user.name, roles: &user.roles, source: arrival.caller.source().ip() };
    let open = house.rulebook.load().reachable(&facts, instance, Timestamp::now());
    Ok(open.into_iter().find(|(_, can)| can.contains(&Capability::Forward)).map(|(login, _)| login))
}

async fn audit_forward(arrival: &Arrival, reason: String) {
    let event = Event::ForwardDenied {
        user: arrival.caller.user().to_string(),
        source_ip: arrival.caller.source().ip().to_string(),
        session: None,
        target: format!("{}:{}", arrival.asked.chars().take(64).collect::<String>(), arrival.port),
        reason,
    };
    append(&arrival.house, event).await;
}

/// The instance that is meant, if any rule lets the caller in there now.
///
/// # Errors
/// [`StoreFault`]: nobody knows.
pub(super) async fn reachable(arrival: &Arrival) -> Result<Option<Instance>, StoreFault> {
    let house = &arrival.house;
    if arrival.is_loopback() {
        return Ok(None);
    }
    let instances = house.vault.list::<Instance>().await?;
    // Roles as they are now, not as they were at login.
    let user = house.vault.get::<User>(arrival.caller.user().as_str()).await?;
    let meant = Instance::meant(&instances, &arrival.asked, Some(arrival.port)).cloned();
    let Some((instance, user)) = meant.zip(user) else { return Ok(None) };
    let source = arrival.caller.source().ip();
    let facts = Facts { user: &user.name, roles: &user.roles, source };
    let open = house.rulebook.load().reachable(&facts, &instance, Timestamp::now());
    Ok((!open.is_empty()).then_some(instance))
}

async fn audit_refusal(arrival: &Arrival, reason: String) {
    let event = Event::AccessDenied {
        user: arrival.caller.user().to_string(),
        source_ip: arrival.caller.source().ip().to_string(),
        key: Some(arrival.caller.key().to_owned()),
        instance: Some(arrival.asked.chars().take(64).collect()),
        login: None,
        reason,
    };
    append(&arrival.house, event).await;
}

const EXPIRED: &str = "Your key has expired; exchange it first: ssh-keys rotate";
/// How long a channel may be silent before Keyward speaks first.
const FIRST_BYTES: Duration = Duration::from_secs(3);
/// The port of SSH (RFC 4253 §4.1).
pub(super) const SSH: u16 = 22;
/// How long a user may take to read the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Sessions around a session.
const MOST_NESTED: usize = 4;
