//! The stream under an SSH connection: with deadlines until login.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    /// An enrolment code was right: an authenticator app must be set up now, which takes people minutes.
    pub(super) fn enrolling(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }
    /// Logged in: no deadline counts.
    pub(super) fn logged_in(&self) {
        self.0.fetch_max(3, Ordering::AcqRel);
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
    enrolment: Pin<Box<Sleep>>,
}

impl<S> Deadlined<S> {
    pub(super) fn new(inner: S, phase: Phase, deadlines: Deadlines) -> Self {
        let key = Box::pin(tokio::time::sleep(deadlines.key));
        let login = Box::pin(tokio::time::sleep(deadlines.login));
        let enrolment = Box::pin(tokio::time::sleep(ENROLMENT));
        Self { inner, phase, key, login, enrolment }
    }

    fn late(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let phase = self.phase.now();
        let late = (phase < 1 && self.key.as_mut().poll(cx).is_ready())
            || (phase < 2 && self.login.as_mut().poll(cx).is_ready())
            || (phase < 3 && self.enrolment.as_mut().poll(cx).is_ready());
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

/// How long an invited person has in all, once the enrolment code was right.
const ENROLMENT: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

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
