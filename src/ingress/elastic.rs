//! A jump channel of the outer connection as the stream under the inner one, whose writes never wait.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::recording::ChannelMessage;
use crate::session::{Ear, Mouth};

/// The inner connection's stream: reads come from the outer channel, writes never wait.
///
/// The inner connection does not read while it writes: if its writes could wait for a client that does not read while
/// *it* writes, both would wait for ever. What is queued is bounded by the windows that the client itself granted in the
/// inner connection; past [`MOST`] bytes the stream fails, and past [`MOST_OF_ALL`] in all each that holds more than
/// [`SHARE`] of them: those who hold them pay, not whoever writes next. Small writes are joined, so that the outer packets
/// are full.
pub(super) struct Elastic<E> {
    current: Bytes,
    reading: Reading<E>,
    queue: Arc<Queue>,
}

enum Reading<E> {
    Idle(E),
    Busy(BoxFuture<'static, (E, Option<ChannelMessage>)>),
    Ended,
}

/// What waits for all clients together.
struct Budget {
    held: AtomicUsize,
    most: usize,
}

impl Budget {
    const fn of(most: usize) -> Self {
        Self { held: AtomicUsize::new(0), most }
    }

    fn is_spent(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.most
    }
}

struct Queue {
    state: Mutex<Waiting>,
    wake: Notify,
    budget: &'static Budget,
}

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    /// Left the queue, and the outer connection has not taken it yet.
    taken: usize,
    ended: bool,
    broken: bool,
}

impl Waiting {
    fn held(&self) -> usize {
        self.bytes.len() + self.taken
    }
}

/// Bytes that left the queue; what is on its way out still counts until this is dropped.
struct Taken<'a>(&'a Queue, usize);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let Self(queue, size) = self;
        let mut waiting = queue.lock();
        waiting.taken = waiting.taken.saturating_sub(*size);
        queue.budget.held.fetch_sub(*size, Ordering::Relaxed);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.lock().bytes.len();
        self.budget.held.fetch_sub(left, Ordering::Relaxed);
    }
}

impl Queue {
    fn new(budget: &'static Budget) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), budget }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is queued until it ended and is empty.
    async fn drain(&self, mouth: &impl Mouth) -> Result<(), String> {
        loop {
            let (bytes, ended) = {
                let mut waiting = self.lock();
                // Whole, with its memory: a connection that says nothing more holds none.
                let bytes = std::mem::take(&mut waiting.bytes).freeze();
                waiting.taken += bytes.len();
                (bytes, waiting.ended)
            };
            if !bytes.is_empty() {
                let _taken = Taken(self, bytes.len());
                mouth.say(ChannelMessage::Data(bytes)).await?;
            } else if ended {
                mouth.say(ChannelMessage::Eof).await?;
                return mouth.say(ChannelMessage::Close).await;
            } else {
                self.wake.notified().await;
            }
        }
    }
}

impl<E: Ear> Elastic<E> {
    /// `first` is read before what `ear` gives. A task says to `mouth` what is written, until the stream is dropped and
    /// all is said; it is returned too.
    pub(super) fn new(first: Bytes, ear: E, mouth: impl Mouth + 'static) -> (Self, JoinHandle<()>) {
        Self::within(&ALL, first, (ear, mouth))
    }

    fn within(
        budget: &'static Budget,
        first: Bytes,
        (ear, mouth): (E, impl Mouth + 'static),
    ) -> (Self, JoinHandle<()>) {
        let queue = Arc::new(Queue::new(budget));
        let drained = Arc::clone(&queue);
        let said = tokio::spawn(async move {
            if let Err(why) = drained.drain(&mouth).await {
                tracing::debug!(%why, "outer.channel_gone");
            }
            drained.lock().broken = true;
        });
        (Self { current: first, reading: Reading::Idle(ear), queue }, said)
    }
}

impl<E> Drop for Elastic<E> {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.wake.notify_one();
    }
}

impl<E: Ear + Unpin> AsyncRead for Elastic<E> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.current.is_empty() {
                let taken = self.current.len().min(buf.remaining());
                buf.put_slice(&self.current.split_to(taken));
                return Poll::Ready(Ok(()));
            }
            let mut busy = match std::mem::replace(&mut self.reading, Reading::Ended) {
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Busy(busy) => busy,
                Reading::Idle(mut ear) => Box::pin(async move {
                    let heard = ear.next().await;
                    (ear, heard)
                }),
            };
            match busy.as_mut().poll(cx) {
                Poll::Pending => {
                    self.reading = Reading::Busy(busy);
                    return Poll::Pending;
                }
                Poll::Ready((ear, Some(ChannelMessage::Data(bytes)))) => {
                    self.current = bytes;
                    self.reading = Reading::Idle(ear);
                }
                Poll::Ready((_, None | Some(ChannelMessage::Eof | ChannelMessage::Close))) => {}
                Poll::Ready((ear, Some(_))) => self.reading = Reading::Idle(ear),
            }
        }
    }
}

impl<E: Unpin> AsyncWrite for Elastic<E> {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut waiting = self.queue.lock();
        if waiting.broken || waiting.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // A peer that grants windows and never reads ends its own connection, not the bastion's memory, nor its neighbour's.
        let (held, budget) = (waiting.held(), self.queue.budget);
        if held > MOST || held > SHARE && budget.is_spent() {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        // More will follow a large write: without room for it, all that waits would be copied for each.
        if buf.len() >= LARGE && waiting.bytes.capacity() - waiting.bytes.len() < buf.len() {
            waiting.bytes.reserve(buf.len().max(ROOM));
        }
        waiting.bytes.extend_from_slice(buf);
        budget.held.fetch_add(buf.len(), Ordering::Relaxed);
        drop(waiting);
        self.queue.wake.notify_one();
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue.lock().ended = true;
        self.queue.wake.notify_one();
        Poll::Ready(Ok(()))
    }
}

/// What a channel's first bytes say.
pub(super) enum FirstBytes {
    /// It is SSH.
    Ssh(Bytes),
    /// It says nothing: a client may wait for the other side to speak first.
    Silent(Bytes),
    /// It is something else.
    Other(Bytes),
    /// It has said all it will say, and that is not SSH.
    Ended(Bytes),
}

/// Listens until it is clear whether the peer speaks SSH (RFC 4253 §4.2), at most `patience`.
pub(super) async fn first_bytes(ear: &mut impl Ear, patience: Duration) -> FirstBytes {
    let mut seen = BytesMut::new();
    let mut ended = false;
    let listening = async {
        while seen.len() < SSH.len() && SSH.starts_with(&seen) {
            match ear.next().await {
                Some(ChannelMessage::Data(bytes)) => seen.extend_from_slice(&bytes),
                None | Some(ChannelMessage::Eof | ChannelMessage::Close) => {
                    ended = true;
                    break;
                }
                Some(_) => {}
            }
        }
    };
    let late = tokio::time::timeout(patience, listening).await.is_err();
    let seen = seen.freeze();
    if seen.starts_with(SSH) {
        FirstBytes::Ssh(seen)
    } else if late && SSH.starts_with(&seen) {
        FirstBytes::Silent(seen)
    } else if ended {
        FirstBytes::Ended(seen)
    } else {
        FirstBytes::Other(seen)
    }
}

/// Any version: one that is not 2.0 is refused by the terminated connection, never relayed.
const SSH: &[u8] = b"SSH-";
/// Bytes that wait for one client that does not read.
const MOST: usize = 16 << 20;
/// Bytes that wait for all of them.
const MOST_OF_ALL: usize = 256 << 20;
/// Bytes that may wait for one client however many wait for the others: what one reads within a moment.
const SHARE: usize = 1 << 20;
/// A write from which on more is expected, and the room that is made then.
const LARGE: usize = 4 << 10;
const ROOM: usize = 64 << 10;
/// How many wait.
static ALL: Budget = Budget::of(MOST_OF_ALL);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;

    /// What it says, and whether it ends then.
    struct Says(Vec<&'static str>, bool);

    impl Ear for Says {
        async fn next(&mut self) -> Option<ChannelMessage> {
            match self.0.is_empty() {
                true if self.1 => Some(ChannelMessage::Eof),
                true => std::future::pending().await,
                false => Some(ChannelMessage::Data(Bytes::from_static(self.0.remove(0).as_bytes()))),
            }
        }
    }

    struct Hears(mpsc::UnboundedSender<ChannelMessage>);

    impl Mouth for Hears {
        async fn say(&self, message: ChannelMessage) -> Result<(), String> {
            self.0.send(message).map_err(|e| e.to_string())
        }
    }

    async fn first(said: &[&'static str]) -> FirstBytes {
        first_bytes(&mut Says(said.to_vec(), false), Duration::from_millis(50)).await
    }

    #[tokio::test]
    async fn a_client_that_says_ssh_is_terminated_however_it_says_it() {
        assert!(matches!(first(&["SSH-2.0-OpenSSH_9.2\r\n"]).await, FirstBytes::Ssh(_)));
        assert!(matches!(first(&["S", "SH", "-2.0-x"]).await, FirstBytes::Ssh(b) if b == "SSH-2.0-x"));
    }

    #[tokio::test]
    async fn a_client_that_says_get_is_not_and_a_silent_one_may_be() {
        assert!(
            matches!(first(&["GET / HTTP/1.1\r\n"]).await, FirstBytes::Other(b) if b.starts_with(b"GET"))
        );
        assert!(matches!(first(&["S"]).await, FirstBytes::Silent(b) if b == "S"));
    }

    #[tokio::test]
    async fn an_end_before_anything_was_said_is_not_lost() {
        let heard = first_bytes(&mut Says(vec!["x"], true), Duration::from_secs(5)).await;
        assert!(matches!(heard, FirstBytes::Other(b) if b == "x"));
        let heard = first_bytes(&mut Says(vec!["S"], true), Duration::from_secs(5)).await;
        assert!(matches!(heard, FirstBytes::Ended(b) if b == "S"));
    }

    /// Takes what is said to it and reads nothing.
    struct Deaf;

    impl Mouth for Deaf {
        async fn say(&self, _: ChannelMessage) -> Result<(), String> {
            std::future::pending().await
        }
    }

    type Stream = Elastic<Says>;

    fn deaf(budget: &'static Budget) -> Stream {
        Elastic::within(budget, Bytes::new(), (Says(Vec::new(), false), Deaf)).0
    }

    /// Writes until `size` bytes wait; says whether the stream took them.
    async fn fill(stream: &mut Stream, size: usize) -> bool {
        for _ in 0..size / LARGE {
            if stream.write_all(&[0; LARGE]).await.is_err() {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    #[tokio::test]
    async fn over_the_common_mark_those_who_hold_the_bytes_fail_and_whoever_holds_few_goes_on() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::of(3 * MOST - 4 * LARGE)));
        let (to, mut heard) = mpsc::unbounded_channel();
        let says = Says(Vec::new(), false);
        let (mut innocent, _said) = Elastic::within(budget, Bytes::new(), (says, Hears(to)));
        let mut holders = [deaf(budget), deaf(budget), deaf(budget)];
        for holder in &mut holders {
            assert!(fill(holder, MOST - LARGE).await, "each is within its own bound");
        }
        assert!(budget.is_spent());
        for word in [&b"one"[..], b"two"] {
            innocent.write_all(word).await.unwrap();
            assert_eq!(heard.recv().await, Some(ChannelMessage::Data(Bytes::from_static(word))));
        }
        let mut modest = deaf(budget);
        assert!(fill(&mut modest, SHARE).await, "one that does not read has its share");
        assert!(!fill(&mut modest, 2 * LARGE).await, "and no more");
        for holder in &mut holders {
            assert!(holder.write_all(b"more").await.is_err());
        }
    }

    #[tokio::test]
    async fn what_is_on_its_way_out_counts_against_the_stream_that_it_is_of() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::of(usize::MAX)));
        let mut stream = deaf(budget);
        assert!(fill(&mut stream, LARGE).await);
        assert_eq!(stream.queue.lock().bytes.len(), 0, "the client has it, and does not read it");
        assert!(fill(&mut stream, MOST).await);
        assert!(!fill(&mut stream, LARGE).await);
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_holds_no_memory_and_a_large_write_makes_room_for_the_next() {
        let (to, mut heard) = mpsc::unbounded_channel();
        let (mut stream, _said) = Elastic::new(Bytes::new(), Says(Vec::new(), false), Hears(to));
        stream.write_all(&[0; LARGE]).await.unwrap();
        assert!(stream.queue.lock().bytes.capacity() >= ROOM);
        heard.recv().await.unwrap();
        assert_eq!(stream.queue.lock().bytes.capacity(), 0);
        stream.write_all(b"x").await.unwrap();
        assert!(stream.queue.lock().bytes.capacity() < LARGE);
    }

    #[tokio::test]
    async fn what_is_written_is_joined_and_ends_with_the_stream() {
        let (to, mut heard) = mpsc::unbounded_channel();
        let (mut stream, said) =
            Elastic::new(Bytes::from_static(b"first"), Says(vec!["second"], false), Hears(to));
        let mut read = [0; 11];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"firstsecond");
        stream.write_all(b"a").await.unwrap();
        stream.write_all(b"b").await.unwrap();
        assert_eq!(heard.recv().await, Some(ChannelMessage::Data(Bytes::from_static(b"ab"))));
        drop(stream);
        assert_eq!(heard.recv().await, Some(ChannelMessage::Eof));
        assert_eq!(heard.recv().await, Some(ChannelMessage::Close));
        said.await.unwrap();
    }
}
