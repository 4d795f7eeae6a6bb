//! The web console for auditors: pages over what the command language answers.
//!
//! Owns the HTTP door: which hosts and browsers are heard, who is signed in, how answers look as pages. It decides nothing
//! about sessions: every page says a command of `admin` for the auditor who asks, with the rights of that moment, and
//! shows its JSON. Reached through the auditor's own SSH connection, and on a port only if one is configured. Takes an
//! `Authenticated` (over SSH) or a browser's cookie; mints nothing.

mod asking;
mod assets;
mod door;
mod live;
mod pages;
mod session;
mod sign;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use futures_util::future::{BoxFuture, FutureExt};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, CONSOLE, Caller, Command, FrontDesk, Visitor};
use crate::auth::Authenticated;
use crate::session::{Ask, Chunk, Desk, House, Stream};
use door::Door;

/// The desk with a window for browsers.
pub struct Console {
    house: Arc<House>,
    desk: Arc<FrontDesk>,
    pages: Router,
    room: Arc<Semaphore>,
    /// Where pages are made and commands carried out: not on the thread that serves an SSH connection, where whatever waits
    /// for a disk holds up all that it relays (docs/adr/0008).
    runtime: Handle,
}

impl Console {
    /// A console in `house`; `desk` answers commands over SSH. Call it on the runtime that shall make the pages.
    pub fn new(house: Arc<House>, desk: FrontDesk) -> Self {
        let pages = pages::router(Arc::clone(&house));
        Self {
            house,
            desk: Arc::new(desk),
            pages,
            room: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
            runtime: Handle::current(),
        }
    }

    /// Serves browsers on a port until `stop`.
    pub async fn listen(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "console.accept_failed");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
                tracing::warn!("console.full");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "console.browser_gone");
            }
            let (pages, stop) = (self.pages.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve(pages, Box::new(stream), Door::Port) => {}
                }
                drop(room);
            });
        }
    }
}

async fn serve(pages: Router, stream: Box<dyn Stream>, door: Door) {
    let pages = TowerToHyperService::new(pages.layer(Extension(door)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(LONGEST_HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), pages).await {
        tracing::debug!(%error, "console.browser_gone");
    }
}

impl Desk for Console {
    fn run(&self, caller: Arc<Authenticated>, ask: Ask, to: mpsc::Sender<Chunk>) -> BoxFuture<'_, u8> {
        let desk = Arc::clone(&self.desk);
        let answered = self.runtime.spawn(async move { desk.run(caller, ask, to).await });
        async move {
            answered.await.unwrap_or_else(|error| {
                tracing::error!(%error, "desk.panicked");
                1
            })
        }
        .boxed()
    }

    fn reads_stdin(&self, command: &str) -> bool {
        self.desk.reads_stdin(command)
    }

    fn shows_console(&self, caller: Arc<Authenticated>, host: String) -> BoxFuture<'_, bool> {
        async move {
            let caller = Caller::User(Visitor::of(&caller));
            let open = self.house.config().console.enabled && host.eq_ignore_ascii_case(CONSOLE);
            open && admin::entitled(&self.house, &caller, &Command::Console { stay: false }).await.is_ok()
        }
        .boxed()
    }

    fn browse(&self, caller: Arc<Authenticated>, stream: Box<dyn Stream>) -> BoxFuture<'_, ()> {
        let served = self.runtime.spawn(serve(self.pages.clone(), stream, Door::Ssh(caller.user().clone())));
        async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "console.panicked");
            }
        }
        .boxed()
    }
}

/// Browsers' connections on the port.
const MOST_CONNECTIONS: usize = 128;
/// How long a browser may take over the head of a request, and be silent between two.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_HEAD: usize = 32 << 10;
