//! The way of a session to its instance, and the end of it that waits for nobody (docs/adr/0015).
//!
//! Whoever cuts a session bars its passage first: no byte goes through any more, whatever the tasks that carry it are at.
//! Then its sockets are shut down, by the system and not by SSH, which says goodbye in the order of what else there is to
//! say. Neither waits for a lock that is held over an await, for a disk, or for a peer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Whether bytes may pass, and the sockets that they pass through.
#[derive(Debug, Default)]
pub struct Passage {
    barred: AtomicBool,
    sockets: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Passage {
    /// Nothing passes from now on. What is in the middle of a system call may end that.
    pub fn bar(&self) {
        self.barred.store(true, Ordering::SeqCst);
    }

    /// Whether nothing passes any more.
    pub fn is_barred(&self) -> bool {
        self.barred.load(Ordering::SeqCst)
    }

    /// Bars it and shuts its sockets down: once this returns, no byte leaves this process through them.
    pub fn shut(&self) {
        self.bar();
        for socket in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(socket) = socket.upgrade() {
                shut_down(&socket);
            }
        }
    }

    /// The stream of a socket, for as long as this is not barred.
    ///
    /// # Errors
    /// The process has no more files.
    pub fn through(self: &Arc<Self>, tcp: TcpStream) -> io::Result<Passing> {
        let socket = Arc::new(tcp.as_fd().try_clone_to_owned()?);
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(&socket));
        // After it is known: whoever bars it later finds it.
        if self.is_barred() {
            shut_down(&socket);
        }
        drop(sockets);
        Ok(Passing { tcp, passage: Arc::clone(self), _socket: socket })
    }
}

fn shut_down(socket: &OwnedFd) {
    // What the peer has not taken yet is discarded when the socket is closed.
    if let Err(error) = sockopt::set_socket_linger(socket, Some(Duration::ZERO)) {
        tracing::debug!(%error, "socket.lingers");
    }
    if let Err(error) = shutdown(socket, Shutdown::Both) {
        tracing::debug!(%error, "socket.gone");
    }
}

/// A socket's stream that a [`Passage`] can end. Its file is closed with it.
#[derive(Debug)]
pub struct Passing {
    tcp: TcpStream,
    passage: Arc<Passage>,
    /// The same socket, for [`Passage::shut`].
    _socket: Arc<OwnedFd>,
}

impl Passing {
    fn open(&self) -> io::Result<()> {
        if self.passage.is_barred() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Passing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.open()?;
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Passing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.open()?;
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open()?;
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A stream through a passage, and the peer's end of it.
    async fn pair(passage: &Arc<Passage>) -> (Passing, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (passage.through(near).unwrap(), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_waits_to_read_ends_and_the_neighbour_goes_on() {
        let (passage, other) = (Arc::<Passage>::default(), Arc::<Passage>::default());
        let (mut near, _far) = pair(&passage).await;
        let (mut beside, mut its_peer) = pair(&other).await;
        let waiting = tokio::spawn(async move { near.read_u8().await });
        tokio::task::yield_now().await;
        passage.shut();
        assert!(waiting.await.unwrap().is_err());
        beside.write_all(b"x").await.unwrap();
        assert_eq!(its_peer.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn what_waits_to_write_to_a_peer_that_reads_nothing_ends() {
        let passage = Arc::<Passage>::default();
        let (mut near, _far) = pair(&passage).await;
        let waiting = tokio::spawn(async move { while near.write_all(&[0; 65_536]).await.is_ok() {} });
        tokio::task::yield_now().await;
        passage.shut();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_passes_either_way_once_it_is_barred_though_the_socket_is_still_open() {
        let passage = Arc::<Passage>::default();
        let (mut near, mut far) = pair(&passage).await;
        far.write_all(b"to the user").await.unwrap();
        passage.bar();
        assert!(near.read_u8().await.is_err() && near.write_all(b"to the instance").await.is_err());
        drop(near);
        let mut heard = Vec::new();
        drop(far.read_to_end(&mut heard).await);
        assert_eq!(heard, b"");
    }

    #[tokio::test]
    async fn a_peer_hears_of_it_though_nobody_tends_to_the_stream() {
        let passage = Arc::<Passage>::default();
        let (near, mut far) = pair(&passage).await;
        passage.shut();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        drop(near);
    }

    #[tokio::test]
    async fn a_socket_that_comes_too_late_is_shut_at_once() {
        let passage = Arc::<Passage>::default();
        passage.shut();
        let (_near, mut far) = pair(&passage).await;
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_leaves_no_file_open() {
        let passage = Arc::<Passage>::default();
        let (near, mut far) = pair(&passage).await;
        drop(near);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }
}
