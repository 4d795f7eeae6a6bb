//! Ports and sockets on which the instance listens for the user (`ssh -R`): told when they are asked for, used or not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keystore::Capability;

use super::Ongoing;
use crate::egress::Listen;

/// The channels that stand for ports and sockets on which the instance listens.
#[derive(Default)]
pub(super) struct Listening {
    numbers: Mutex<BTreeSet<u32>>,
    /// How often the user asked in vain.
    refused: AtomicU64,
}

impl Listening {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ongoing {
    /// Tape and trail hear that the user wants the instance to listen. Says whether it may.
    pub async fn listening(&self, number: u32, listen: &Listen) -> bool {
        let target = match listen {
            Listen::Tcp { address, port } => format!("{address}:{port}"),
            Listen::Socket(path) => path.clone(),
        };
        let why = match (self.authorized().may(Capability::Forward), self.tape().is_full()) {
            (true, false) => None,
            (false, _) => Some(NO_FORWARD),
            (true, true) => Some(FULL),
        };
        if let Some(why) = why {
            // Tape and trail hear of the first, so that nobody fills them; the others are counted.
            if self.listening.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                self.tape().forward_opened(number, &format!("refused: to listen on {target} for the user"));
                self.tape().channel_closed(number);
                self.forward_denied(&target, why).await;
            }
            return false;
        }
        let target = format!("listens on {target} for the user");
        self.tape().forward_opened(number, &target);
        self.listening.lock().insert(number);
        if let Err(fault) = self.channel_opened(number, ("forward", Some(target))).await {
            tracing::error!(session.id = %self.id(), %fault, "forward.not_audited");
            return false;
        }
        true
    }

    /// The instance listens there no more, or never did.
    pub async fn listens_no_more(&self, number: u32) {
        // Only once, though both the user and the end of the session may say so.
        if self.listening.lock().remove(&number)
            && let Some(ledger) = self.tape().channel_closed(number)
        {
            self.channel_closed(ledger).await;
        }
    }

    /// The session ends: whoever leaves takes nothing back first.
    pub(super) async fn listens_nowhere(&self) {
        let numbers = self.listening.lock().clone();
        for number in numbers {
            self.listens_no_more(number).await;
        }
        let more = self.listening.refused.load(Ordering::Relaxed).saturating_sub(1);
        if more > 0 {
            let target = format!("{more} more places to listen on for the user");
            self.forward_denied(&target, "refused as the first of them was").await;
        }
    }
}

const NO_FORWARD: &str = "the access rules give no forward";
const FULL: &str = "the session has had as many channels as one may";
