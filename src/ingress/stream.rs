//! Streams under the SSH connections: one with deadlines until login, and one whose writes never wait.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// How far a login has come; shared by the handler, which advances it, and the stream, which enforces it.
#[derive(Clone, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

impl Phase {
    pub(super) fn new() -> Self {
        Self::default()
    }
    /// A key was proven: the shorter deadline no longer counts.
    pub(super) fn key_proven(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }
    /// Logged in: no deadline counts.
    pub(super) fn logged_in(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }
    fn now(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// How long a peer may take, from its first moment on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) key: Duration,
    pub(super) login: Duration,
}

/// A stream that fails once its peer is too late, however the peer trickles.
pub(super) struct Deadlined<S> {
    inner: S,
    phase: Phase,
    key: Pin<Box<Sleep>>,
    login: Pin<Box<Sleep>>,
}

impl<S> Deadlined<S> {
    pub(super) fn new(inner: S, phase: Phase, deadlines: Deadlines) -> Self {
        let key = Box::pin(tokio::time::sleep(deadlines.key));
        let login = Box::pin(tokio::time::sleep(deadlines.login));
        Self { inner, phase, key, login }
    }

    fn late(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let phase = self.phase.now();
        let late = (phase < 1 && self.key.as_mut().poll(cx).is_ready())
            || (phase < 2 && self.login.as_mut().poll(cx).is_ready());
        if late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadlined<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.late(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadlined<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.late(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.late(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The inner connection's stream: reads come from the outer channel, writes never wait.
///
/// The outer connection's loop waits when the inner one does not read, and the inner one does not read while it writes:
/// if its writes could wait for the outer loop, both would wait for ever. What is queued is bounded by the windows that
/// the client itself granted in the inner connection; past [`MOST`] bytes the stream fails.
pub(super) struct Elastic<R> {
    first: Bytes,
    read: R,
    queue: Option<mpsc::UnboundedSender<Bytes>>,
    queued: Arc<AtomicUsize>,
}

impl<R> Elastic<R> {
    /// `first` is read before what `read` gives. A task writes to `write` until the stream is dropped and its queue empty.
    pub(super) fn new<W>(first: Bytes, read: R, mut write: W) -> Self
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (queue, mut waiting) = mpsc::unbounded_channel::<Bytes>();
        let queued = Arc::new(AtomicUsize::new(0));
        let level = Arc::clone(&queued);
        tokio::spawn(async move {
            while let Some(bytes) = waiting.recv().await {
                if let Err(error) = write.write_all(&bytes).await {
                    tracing::debug!(%error, "outer.channel_gone");
                    return;
                }
                level.fetch_sub(bytes.len(), Ordering::AcqRel);
            }
            if let Err(error) = write.shutdown().await {
                tracing::debug!(%error, "outer.channel_gone");
            }
        });
        Self { first, read, queue: Some(queue), queued }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Elastic<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let taken = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(taken));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl<R: Unpin> AsyncWrite for Elastic<R> {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let queue = self.queue.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        if self.queued.fetch_add(buf.len(), Ordering::AcqRel) > MOST {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        queue.send(Bytes::copy_from_slice(buf)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue = None;
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
}

/// Reads until it is clear whether the peer speaks SSH (RFC 4253 §4.2), at most `patience`.
pub(super) async fn first_bytes<R: AsyncRead + Unpin>(read: &mut R, patience: Duration) -> FirstBytes {
    let mut seen = bytes::BytesMut::with_capacity(256);
    let reading = async {
        while seen.len() < SSH.len() && SSH.starts_with(&seen) {
            match read.read_buf(&mut seen).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    let late = tokio::time::timeout(patience, reading).await.is_err();
    let seen = seen.freeze();
    if seen.starts_with(SSH) {
        FirstBytes::Ssh(seen)
    } else if late && SSH.starts_with(&seen) {
        FirstBytes::Silent(seen)
    } else {
        FirstBytes::Other(seen)
    }
}

const SSH: &[u8] = b"SSH-2.0-";
/// Bytes queued towards a client that does not read.
const MOST: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_says_ssh_is_terminated() {
        let mut said: &[u8] = b"SSH-2.0-OpenSSH_9.2\r\n";
        let first = first_bytes(&mut said, Duration::from_secs(1)).await;
        assert!(matches!(first, FirstBytes::Ssh(b) if b.starts_with(SSH)));
    }

    #[tokio::test]
    async fn a_client_that_says_get_is_not_relayed() {
        let mut said: &[u8] = b"GET / HTTP/1.1\r\n";
        assert!(matches!(first_bytes(&mut said, Duration::from_secs(1)).await, FirstBytes::Other(_)));
    }

    fn brief() -> Deadlines {
        Deadlines { key: Duration::from_millis(20), login: Duration::from_millis(60) }
    }

    #[tokio::test]
    async fn a_silent_peer_is_dropped_at_the_key_deadline() {
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Deadlined::new(near, Phase::new(), brief());
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_peer_that_logged_in_may_be_silent() {
        let (near, _far) = tokio::io::duplex(64);
        let phase = Phase::new();
        let mut stream = Deadlined::new(near, phase.clone(), brief());
        phase.logged_in();
        assert!(tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await.is_err());
    }
}
