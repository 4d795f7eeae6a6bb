//! The desk: who answers `ssh alice@bastion …` when no instance is meant. `admin` sits there.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::auth::Authenticated;

/// What a person asks at the desk.
#[derive(Debug)]
pub struct Ask {
    /// The command line after `ssh alice@bastion`; `None` for a plain shell.
    pub command: Option<String>,
    /// Standard input, at most 1 MiB, read to its end if [`Desk::reads_stdin`].
    pub stdin: Vec<u8>,
    /// The columns of the terminal that the answer goes to, if it does.
    pub columns: Option<u16>,
    /// The lines of that terminal.
    pub rows: Option<u16>,
    /// What is typed at that terminal while the answer comes.
    pub keys: Option<mpsc::Receiver<Vec<u8>>>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// For standard output.
    Out(Vec<u8>),
    /// For standard error.
    Err(Vec<u8>),
}

/// A channel as a stream of bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Answers commands over SSH.
pub trait Desk: Send + Sync + 'static {
    /// Runs the command as `caller`, as far as the caller's role allows; the answer goes to `to` as it comes. Returns
    /// the exit code (CONTRACT.md). Runs to its end even when nobody listens any more.
    fn run(&self, caller: Arc<Authenticated>, ask: Ask, to: mpsc::Sender<Chunk>) -> BoxFuture<'_, u8>;

    /// Whether `command` reads standard input: only then is it waited for (a terminal's never ends).
    fn reads_stdin(&self, command: &str) -> bool;

    /// Whether `host` is the bastion's own web console, and `caller` may open it now.
    fn shows_console(&self, caller: Arc<Authenticated>, host: String) -> BoxFuture<'_, bool> {
        drop((caller, host));
        futures_util::future::ready(false).boxed()
    }

    /// Serves the caller's browser on a channel of their SSH connection, until it hangs up.
    fn browse(&self, caller: Arc<Authenticated>, stream: Box<dyn Stream>) -> BoxFuture<'_, ()> {
        drop((caller, stream));
        futures_util::future::ready(()).boxed()
    }
}
