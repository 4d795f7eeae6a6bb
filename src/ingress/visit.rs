//! One channel of an inner connection on its way to the session: waits for it, takes its channel there, or hears why not.

use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelId, ChannelOpenFailure};
use tokio::sync::watch;

use super::inner::Outcome;
use super::reception::{FromUser, ToUser, apologise};
use crate::egress::{FromInstance, ToInstance};
use crate::session::{Carries, Lane, Opened, Sides, relay};

/// One channel's way to the session.
pub(super) struct Visit {
    outcome: watch::Receiver<Option<Outcome>>,
    id: String,
    pub(super) number: u32,
    pub(super) handle: Handle,
}

impl Visit {
    pub(super) fn new(
        outcome: watch::Receiver<Option<Outcome>>,
        id: String,
        number: u32,
        handle: Handle,
    ) -> Self {
        Self { outcome, id, number, handle }
    }

    /// What `work` comes to; `None` if the user's connection ends before.
    pub(super) async fn while_here<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.handle.closed() => None,
        }
    }

    /// Waits until the session has opened, or not; `None` if the connection went before.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

/// Waits for the session, opens its channel on the instance, and relays. If there is no session, or no more, says why.
pub(super) async fn serve_channel(mut visit: Visit, channel: Channel<Msg>, reply: ChannelOpenHandle) {
    let Some(outcome) = visit.outcome().await else { return };
    let sentence = match outcome {
        Ok(opened) => match visit.while_here(opened.channel()).await {
            // An instance that never answers keeps no session open for somebody who left.
            None => return,
            Some(Ok(there)) => return carry(visit, &opened, there, (channel, reply)).await,
            Some(Err(fault)) => match opened.cut().sentence() {
                // An instance is hung up on at once when its session is cut.
                Some(sentence) => sentence,
                None => {
                    let name = opened.instance();
                    let reason = format!("{name} opened no channel: {fault} (session {})", visit.id);
                    return reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }).await;
                }
            },
        },
        Err(sentence) => sentence,
    };
    reply.accept().await;
    let id = channel.id();
    let (ear, mouth) = split(channel, visit.handle, id);
    apologise(Sides { ear, mouth }, &sentence, &visit.id).await;
}

async fn carry(
    visit: Visit,
    opened: &Opened,
    (ear, mouth): (FromInstance, ToInstance),
    (channel, reply): (Channel<Msg>, ChannelOpenHandle),
) {
    reply.accept().await;
    let id = channel.id();
    let (from, to) = split(channel, visit.handle, id);
    let lane = Lane { number: visit.number, carries: Carries::Session };
    relay(opened, lane, Sides { ear: from, mouth: to }, Sides { ear, mouth }).await;
}

pub(super) fn split(channel: Channel<Msg>, handle: Handle, id: ChannelId) -> (FromUser, ToUser) {
    let (read, write) = channel.split();
    (FromUser::new(read), ToUser::new(write, handle, id))
}

/// RFC 4254 §5.1.
const CONNECT_FAILED: u32 = 2;
