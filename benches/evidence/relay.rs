//! A relay of our own between two SSH connections in this process, with a tape and without one: what recording costs.
//! The messages are recorded as `session::relay` records them, before they are passed on.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;
use keyward::egress::preferred;
use keyward::recording::{ChannelMessage, Direction, SessionEnd, SessionId, SessionStatus, Tape, Turn};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKeyOrCertificate};
use russh::server::{Auth, Msg, Session};
use russh::{Channel, ChannelId, ChannelMsg, client, server};
use tokio::net::{TcpListener, TcpStream};

use crate::{House, cpu};

/// MB/s, and CPU seconds for a GB, of a command's output through the relay; without `kept` the tape counts and hashes it, as it does a forward.
pub async fn throughput(house: Option<&House>, kept: bool, bytes: usize) -> (f64, f64) {
    let instance = listen(Role::Instance { bytes }).await;
    let tape = match house {
        Some(house) => {
            let id = SessionId::new(Timestamp::now());
            Some(house.tapes.record(&house.authorized, (id, None), Timestamp::now()).await.unwrap())
        }
        None => None,
    };
    let relay = listen(Role::Relay { instance, tape: tape.clone(), kept }).await;
    let user = connected(relay).await;
    let mut channel = user.channel_open_session().await.unwrap();
    let (begun, before) = (Instant::now(), cpu());
    channel.exec(true, "cat /srv/image").await.unwrap();
    let mut left = bytes;
    while left > 0 {
        if let ChannelMsg::Data { data } = channel.wait().await.unwrap() {
            left -= data.len();
        }
    }
    let rate = bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let spent = cpu() - before;
    if let Some(tape) = tape {
        let end = SessionEnd { status: SessionStatus::Closed, reason: None };
        let summary = tape.seal(end, Timestamp::now()).await.unwrap();
        assert_eq!(summary.bytes_out, bytes as u64);
    }
    (rate, spent / bytes as f64 * 1e9)
}

enum Role {
    /// Sends so many bytes.
    Instance { bytes: usize },
    /// Passes on what the instance sends, on the tape first if there is one.
    Relay { instance: u16, tape: Option<Tape>, kept: bool },
}

struct Side {
    role: Arc<Role>,
    channel: Option<Channel<Msg>>,
}

impl server::Handler for Side {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let (channel, role) = (self.channel.take().unwrap(), Arc::clone(&self.role));
        let command = Bytes::copy_from_slice(command);
        tokio::spawn(async move {
            match &*role {
                Role::Instance { bytes } => send(&channel, *bytes).await,
                Role::Relay { instance, tape, kept } => {
                    pass(&channel, *instance, (tape.as_ref(), kept.then_some(command))).await
                }
            }
        });
        Ok(())
    }
}

async fn send(channel: &Channel<Msg>, bytes: usize) {
    // Neither zeros nor noise: text, a little of it new each time.
    let mut left = bytes;
    let mut piece: Vec<u8> = (0..32_768u32).map(|i| (i * 31 % 97 + 32) as u8).collect();
    while left > 0 {
        let size = left.min(piece.len());
        piece[..8].copy_from_slice(&(left as u64).to_be_bytes());
        channel.data_bytes(Bytes::copy_from_slice(&piece[..size])).await.unwrap();
        left -= size;
    }
}

async fn pass(user: &Channel<Msg>, instance: u16, (tape, command): (Option<&Tape>, Option<Bytes>)) {
    let connection = connected(instance).await;
    let mut channel = connection.channel_open_session().await.unwrap();
    match (tape, command) {
        (Some(tape), Some(command)) => {
            tape.channel_opened(1);
            tape.record(1, Direction::ToInstance, &ChannelMessage::Exec(command)).await.unwrap();
        }
        // What goes through is counted and hashed, nothing is kept.
        (Some(tape), None) => tape.forward_opened(1, "web:80"),
        (None, _) => {}
    }
    channel.exec(false, "cat /srv/image").await.unwrap();
    let Some(tape) = tape else {
        while let Some(data) = heard(&mut channel).await {
            if user.data_bytes(data).await.is_err() {
                return;
            }
        }
        return;
    };
    let mut held = tape.held(1, Direction::ToUser);
    loop {
        match held.turn(async { heard(&mut channel).await.map(ChannelMessage::Data) }).await.unwrap() {
            Turn::Heard(message) => held.take(message).await.unwrap(),
            Turn::Free(ChannelMessage::Data(data)) => {
                if user.data_bytes(data).await.is_err() {
                    return;
                }
            }
            Turn::Free(_) => {}
            Turn::Over => return,
        }
    }
}

async fn heard(channel: &mut Channel<client::Msg>) -> Option<Bytes> {
    loop {
        if let ChannelMsg::Data { data } = channel.wait().await? {
            return Some(data);
        }
    }
}

async fn listen(role: Role) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let config = server::Config {
        keys: vec![key],
        preferred: preferred(Default::default()),
        nodelay: true,
        ..Default::default()
    };
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let side = Side { role: Arc::new(role), channel: None };
        let running = server::run_stream(Arc::new(config), stream, side).await.unwrap();
        // Whoever measures hangs up when it has all.
        drop(running.await);
    });
    port
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn connected(port: u16) -> client::Handle<Trusting> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let config =
        client::Config { preferred: preferred(Default::default()), nodelay: true, ..Default::default() };
    let mut handle = client::connect_stream(Arc::new(config), stream, Trusting).await.unwrap();
    assert!(handle.authenticate_none("bench").await.unwrap().success());
    handle
}
