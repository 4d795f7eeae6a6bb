//! How a connection that is cut ends: what runs in it says its sentence, then it is told goodbye, then it is severed.

use std::sync::Arc;
use std::time::Duration;

use russh::Disconnect;
use russh::server::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What is needed to end a connection.
pub(super) struct Goodbye {
    pub(super) handle: Handle,
    /// All of its places are free once everything in the connection has ended.
    pub(super) room: Arc<Semaphore>,
    pub(super) places: u32,
    /// Ends the stream under the connection.
    pub(super) sever: CancellationToken,
}

impl Goodbye {
    /// Waits at most `patience` for what runs in the connection, says `sentence` and sees to it that it ends: `over`
    /// resolves when it has.
    pub(super) async fn say(self, sentence: String, patience: Duration, over: impl Future) {
        tokio::pin!(over);
        if tokio::time::timeout(patience, self.room.acquire_many(self.places)).await.is_err() {
            tracing::debug!("connection.not_empty_at_goodbye");
        }
        // A client that finds the goodbye right behind the last words shows neither; most leave when nothing is left open.
        if tokio::time::timeout(LEAVE, &mut over).await.is_ok() {
            return;
        }
        let leave = async {
            let goodbye = self.handle.disconnect(Disconnect::ByApplication, sentence, "en".to_owned());
            if goodbye.await.is_err() {
                tracing::debug!("connection.gone_before_goodbye");
            }
            over.await;
        };
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            tracing::debug!("connection.severed");
            self.sever.cancel();
        }
    }
}

/// How long a peer may take to leave.
const LEAVE: Duration = Duration::from_secs(1);
