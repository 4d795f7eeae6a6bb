//! Ports and sockets on which the instance listens for the user (`ssh -R`): told when they are asked for, used or not.

use keystore::Capability;

use super::Ongoing;
use crate::egress::Listen;

impl Ongoing {
    /// Tape and trail hear that the user wants the instance to listen. Says whether it may.
    pub async fn listening(&self, number: u32, listen: &Listen) -> bool {
        let target = match listen {
            Listen::Tcp { address, port } => format!("{address}:{port}"),
            Listen::Socket(path) => path.clone(),
        };
        if !self.authorized().may(Capability::Forward) {
            self.tape().forward_opened(number, &format!("refused: to listen on {target} for the user"));
            self.tape().channel_closed(number);
            self.forward_denied(&target, "the access rules give no forward").await;
            return false;
        }
        let target = format!("listens on {target} for the user");
        self.tape().forward_opened(number, &target);
        if let Err(fault) = self.channel_opened(number, ("forward", Some(target))).await {
            tracing::error!(session.id = %self.id(), %fault, "forward.not_audited");
            return false;
        }
        true
    }

    /// The instance listens there no more, or never did.
    pub async fn listens_no_more(&self, number: u32) {
        if let Some(ledger) = self.tape().channel_closed(number) {
            self.channel_closed(ledger).await;
        }
    }
}
