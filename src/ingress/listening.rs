//! What the user asks the instance to listen on (`ssh -R`), asked of it one after the other, beside all else that goes on in
//! the connection: an instance that is slow to answer holds back only what is asked of it (RFC 4254 §7.1).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::server::{GlobalReplyHandle, Handle};
use tokio::sync::{mpsc, watch};

use super::inner::{Outcome, Shared};
use crate::egress::Listen;
use crate::session::Opened;

/// A request, with the way to answer it: refused when dropped.
pub(super) struct Asked {
    pub(super) begin: bool,
    pub(super) listen: Listen,
    pub(super) reply: GlobalReplyHandle,
}

/// Asks one after the other, until the connection is gone or nobody can ask any more.
pub(super) struct Asking {
    pub(super) shared: Arc<Shared>,
    pub(super) outcome: watch::Receiver<Option<Outcome>>,
    pub(super) handle: Handle,
}

impl Asking {
    /// Begins. What is sent when there is no room is refused.
    pub(super) fn begin(self) -> mpsc::Sender<Asked> {
        let (asks, asked) = mpsc::channel(MOST_LISTENING);
        tokio::spawn(self.answer(asked));
        asks
    }

    async fn answer(mut self, mut asked: mpsc::Receiver<Asked>) {
        let handle = self.handle.clone();
        let answering = async {
            let opened =
                self.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            let Some(Ok(opened)) = opened else { return };
            let mut places = Places { shared: self.shared, opened, taken: Vec::new() };
            while let Some(Asked { begin, listen, reply }) = asked.recv().await {
                match begin {
                    true => places.listen(listen, reply).await,
                    false => places.listen_no_more(&listen, reply).await,
                }
            }
        };
        tokio::select! {
            () = answering => {}
            () = handle.closed() => {}
        }
    }
}

/// Where the instance listens for the user, with the number that each has on the tape.
struct Places {
    shared: Arc<Shared>,
    opened: Arc<Opened>,
    taken: Vec<(Listen, u32)>,
}

impl Places {
    /// Lets the instance listen for the user. Tape and trail hear of it first.
    async fn listen(&mut self, listen: Listen, reply: GlobalReplyHandle) {
        if self.taken.len() >= MOST_LISTENING {
            return;
        }
        let number = self.shared.channels.fetch_add(1, Ordering::Relaxed);
        if !self.opened.listening(number, &listen).await {
            return;
        }
        // Who connects there at once is taken to the user once she knows that it listens.
        self.shared.asking.send_replace(true);
        let heard = tokio::time::timeout(ANSWER, self.opened.upstream().listen(&listen)).await;
        let taken = match (heard, listen) {
            (Ok(Ok(port)), Listen::Tcp { address, port: 0 }) => {
                reply.success_on_port(port);
                Some(Listen::Tcp { address, port })
            }
            (Ok(Ok(_)), listen) => {
                reply.success();
                Some(listen)
            }
            (Ok(Err(_)) | Err(_), _) => None,
        };
        self.shared.asking.send_replace(false);
        match taken {
            Some(listen) => self.taken.push((listen, number)),
            None => self.opened.listens_no_more(number).await,
        }
    }

    async fn listen_no_more(&mut self, listen: &Listen, reply: GlobalReplyHandle) {
        if let Some(at) = self.taken.iter().position(|(other, _)| other == listen) {
            self.opened.listens_no_more(self.taken.swap_remove(at).1).await;
        }
        let heard = tokio::time::timeout(ANSWER, self.opened.upstream().listen_no_more(listen)).await;
        if heard.is_ok_and(|heard| heard.is_ok()) {
            reply.success();
        }
    }
}

/// How long an instance may take to answer.
const ANSWER: Duration = Duration::from_secs(25);
/// Ports and sockets on which an instance listens for one connection, and requests for them that wait.
const MOST_LISTENING: usize = 64;
