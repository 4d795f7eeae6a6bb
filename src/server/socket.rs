//! The administration socket: mode 0600, and only root or the daemon's own user is heard.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Caller, Keyboard, MAX_REQUEST, Output, Reply, Request, execute};
use crate::session::House;

/// Binds the socket; one that a dead daemon left is replaced, a live daemon's is not.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until `stop`; what was asked before is still answered then, if that takes no longer than a moment.
pub(super) async fn serve(listener: UnixListener, house: Arc<House>, stop: CancellationToken) {
    let conversations = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let house = Arc::clone(&house);
                conversations.spawn(async move {
                    if let Err(error) = converse(stream, &house).await {
                        tracing::debug!(%error, "admin.conversation_ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin.accept_failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    conversations.close();
    if tokio::time::timeout(LAST_WORDS, conversations.wait()).await.is_err() {
        tracing::debug!("admin.conversations_left");
    }
}

async fn converse(mut stream: UnixStream, house: &House) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        tracing::warn!(uid, "admin.peer_refused");
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = tokio::time::timeout(Duration::from_secs(10), read(&mut stream)).await??;
    let (to, mut from) = mpsc::channel(16);
    let (typed, keys) = mpsc::channel(32);
    let keyboard = request.keyboard.map(|rows| Keyboard { keys, rows });
    let types = keyboard.is_some();
    let work = async move {
        let out = Output::new(to, request.json, request.width).with_keyboard(keyboard);
        let mut out = out.with_progress(request.progress);
        execute(house, &Caller::Operator { uid }, request.command, &mut out).await
    };
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let mut sent = Ok(());
        let mut key = [0; 64];
        loop {
            let chunk = tokio::select! {
                chunk = from.recv() => chunk,
                // A client without a keyboard says nothing after its request: this is its end, and what follows a session
                // must know.
                read = reader.read(&mut key) => {
                    let bytes = read.ok().and_then(|length| key.get(..length)).unwrap_or_default();
                    if types && !bytes.is_empty() && !bytes.contains(&CTRL_C) {
                        // More than the command takes is dropped.
                        drop(typed.try_send(bytes.to_vec()));
                        continue;
                    }
                    sent = Err(io::ErrorKind::BrokenPipe.into());
                    from.close();
                    break;
                }
            };
            let Some(chunk) = chunk else { break };
            sent = writer.write_all(&Reply::Chunk(chunk).frame()).await;
            if sent.is_err() {
                // The command sees its output closed and ends by itself, audit event included.
                from.close();
                break;
            }
        }
        sent
    };
    let (code, sent) = tokio::join!(work, send);
    sent?;
    writer.write_all(&Reply::Exit(code).frame()).await
}

const CTRL_C: u8 = 3;
/// How long the last answers may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let length = stream.read_u32().await?;
    if length > MAX_REQUEST {
        return Err(io::Error::other("the request is too long"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}
