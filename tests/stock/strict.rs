//! `transport.crypto = "strict"`: post-quantum key exchange alone, on every leg.

use std::borrow::Cow;
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey, load_secret_key};
use russh::server::{self, Auth, Server as _};
use russh::{Channel, ChannelId, Preferred, kex};

use crate::raw::Raw;
use crate::rig::{Rig, text, wait_for};

const STRICT: &str = "[transport]\ncrypto = \"strict\"\n";

/// An instance that knows post-quantum key exchange, which Debian 12's sshd does not under a name that the bastion has.
#[derive(Clone)]
struct Instance;

impl server::Server for Instance {
    type Handler = Self;
    fn new_client(&mut self, _: Option<std::net::SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Instance {
    type Error = russh::Error;
    async fn auth_openssh_certificate(&mut self, _: &str, _: &Certificate) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }
    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }
    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)?;
        session.data(channel, command.to_vec())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

/// Serves `key` on a port of its own, with `exchange` alone.
async fn instance(key: PrivateKey, exchange: kex::Name) -> u16 {
    let preferred = Preferred { kex: Cow::Owned(vec![exchange]), ..Preferred::default() };
    let config = Arc::new(server::Config { keys: vec![key], preferred, ..server::Config::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { Instance.run_on_socket(config, &listener).await });
    port
}

/// What comes back of `word` through the bastion from an instance, both legs with these key exchanges.
async fn heard(rig: &Rig, user: kex::Name, there: kex::Name) -> Result<String, russh::Error> {
    let key = load_secret_key(rig.path("instance_key"), None).unwrap();
    let port = instance(key, there).await;
    let (name, address) = (format!("db-{port}"), format!("127.0.0.1:{port}"));
    let pinned = rig.path("instance_key.pub");
    let pinned = pinned.to_str().unwrap();
    rig.ok(&["instances", "add", &name, "--address", &address, "--login", &rig.login, "--host-key", pinned]);
    rig.ok(&["access", "allow", "--user", "alice", "--instance", &name, "--login", &rig.login]);
    let code = || {
        text(std::process::Command::new(rig.path("code_alice")).output().unwrap().stdout).trim().to_owned()
    };
    let raw = Raw::login(rig.port, ("alice", &rig.path("id_alice")), user, code).await?;
    let (_inner, mut channel) = raw.jump((&name, &rig.login)).await?;
    channel.exec(true, "word").await?;
    let mut heard = Vec::new();
    while let Some(message) = channel.wait().await {
        match message {
            russh::ChannelMsg::Data { data } | russh::ChannelMsg::ExtendedData { data, .. } => {
                heard.extend_from_slice(&data)
            }
            _ => {}
        }
    }
    Ok(text(heard))
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_takes_post_quantum_key_exchange_alone_from_users_and_to_instances() {
    let rig = Rig::with_alice_and(STRICT);
    let (pq, classic) = (kex::MLKEM768X25519_SHA256, kex::CURVE25519);
    assert_eq!(heard(&rig, pq, pq).await.unwrap(), "word");
    assert!(heard(&rig, classic, pq).await.is_err(), "a user without it");
    let said = heard(&rig, pq, classic).await.unwrap();
    assert!(said.contains("has no key exchange in common with this bastion"), "{said}");
    // The stock client of Debian 12 with curve25519 alone.
    let mut ssh = rig.client("ssh", "alice");
    let refused = ssh.args(["-o", "KexAlgorithms=curve25519-sha256", "db-1", "true"]).output().unwrap();
    assert!(text(refused.stderr).contains("no matching key exchange method found"));
    let told = || std::fs::read_to_string(rig.path("log")).unwrap();
    wait_for("the operator to be told", || told().contains("connection.nothing_in_common"));
    for words in ["source=127.0.0.1:", "which OpenSSH has from 9.9 on", "it offers curve25519-sha256"] {
        assert!(told().contains(words), "{words}: {}", told());
    }
    let unreachable = rig.events("instance_unreachable");
    assert!(
        unreachable.iter().any(|e| e["reason"].as_str().unwrap().contains("key exchange")),
        "{unreachable:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_strict_a_curve_is_enough_and_post_quantum_comes_first() {
    let rig = Rig::with_alice();
    assert_eq!(heard(&rig, kex::CURVE25519, kex::CURVE25519).await.unwrap(), "word");
    assert_eq!(heard(&rig, kex::MLKEM768X25519_SHA256, kex::MLKEM768X25519_SHA256).await.unwrap(), "word");
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["-vv", "-o", "KexAlgorithms=curve25519-sha256", "db-1", "echo reached"]);
    let output = ssh.output().unwrap();
    assert_eq!(text(output.stdout), "reached\n");
    // What the bastion offers, in its order: on the outer connection and on the inner one.
    let offers = text(output.stderr);
    let offers: Vec<&str> = offers
        .lines()
        .filter(|l| l.contains("KEX algorithms: mlkem768x25519-sha256,curve25519-sha256,"))
        .collect();
    assert_eq!(offers.len(), 2, "{offers:?}");
}
