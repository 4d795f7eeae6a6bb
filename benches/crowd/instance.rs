//! An instance that gives back what it hears, without a process for each session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use russh::keys::{Certificate, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Server, Session};
use russh::{Channel, ChannelId, Pty};

/// The connections of each user, and when the last one that ended did.
#[derive(Default)]
pub struct Legs {
    pub open: HashMap<String, usize>,
    pub last_end: Option<Instant>,
    /// When the last byte of each user came in.
    pub last_byte: HashMap<String, Instant>,
}

#[derive(Clone)]
pub struct Echo {
    legs: Arc<Mutex<Legs>>,
    user: Option<String>,
}

impl Echo {
    /// Serves `key` on a port of its own.
    pub async fn serve(key: PrivateKey) -> (u16, Arc<Mutex<Legs>>) {
        let config = server::Config { keys: vec![key], nodelay: true, ..server::Config::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let legs = Arc::new(Mutex::new(Legs::default()));
        let mut echo = Self { legs: Arc::clone(&legs), user: None };
        tokio::spawn(async move { echo.run_on_socket(Arc::new(config), &listener).await });
        (port, legs)
    }
}

impl Server for Echo {
    type Handler = Self;
    fn new_client(&mut self, _: Option<std::net::SocketAddr>) -> Self {
        Self { legs: Arc::clone(&self.legs), user: None }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(user) = self.user.take() {
            let mut legs = self.legs.lock().unwrap();
            *legs.open.get_mut(&user).unwrap() -= 1;
            legs.last_end = Some(Instant::now());
        }
    }
}

impl server::Handler for Echo {
    type Error = russh::Error;

    async fn auth_openssh_certificate(
        &mut self,
        _: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        // `USER session ID`.
        let user = certificate.key_id().split(' ').next().unwrap().to_owned();
        *self.legs.lock().unwrap().open.entry(user.clone()).or_default() += 1;
        self.user = Some(user);
        Ok(Auth::Accept)
    }
    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }
    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(user) = &self.user {
            self.legs.lock().unwrap().last_byte.insert(user.clone(), Instant::now());
        }
        session.data(channel, data.to_vec())
    }
}
