//! The SSH *server* side: the outer connection (the jump) and, inside its channels, the inner one that is terminated.
//!
//! Translation only: russh's callbacks become calls to `auth`, `session` and the desk. Takes `Admitted`; mints nothing.
//! Never relays an opaque byte: a channel is either SSH and terminated, or refused.

mod counter;
mod elastic;
mod forward;
mod goodbye;
mod inner;
mod jump;
mod listening;
mod login;
mod outer;
mod prompts;
mod reception;
mod refusal;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod visit;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::MethodSet;
use russh::server;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::Transport;
use crate::egress::{Severable, nothing_in_common};
use crate::guard::Admitted;
use crate::session::{Desk, House};

/// Serves one connection from its first byte to its last. Returns when it is over; its faults are logged, not returned,
/// because no one above could do more about a peer's misbehaviour.
pub async fn serve_connection(house: Arc<House>, desk: Arc<dyn Desk>, admitted: Admitted, tcp: TcpStream) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "connection.gone");
        return;
    }
    let (settings, source) = (house.config(), admitted.addr());
    let phase = stream::Phase::new();
    let sever = CancellationToken::new();
    let stream = Severable::new(tcp, &sever);
    let stream = stream::Deadlined::new(stream, phase.clone(), outer::deadlines(&settings));
    let gate = login::Gate::new(Arc::clone(&house), admitted, phase).await;
    let mut config = server_config(gate.first_methods(), settings.transport);
    config.keys = vec![house.signers.host.russh_key()];
    if !settings.names.is_empty() {
        let signers = &house.signers;
        match signers.authorities().host_ca.certify(&settings.names, &signers.host, jiff::Timestamp::now()) {
            Ok(certificate) => config.certificates = vec![certificate],
            Err(error) => tracing::error!(%error, "host.certificate_failed: serving the plain host key"),
        }
    }
    let proves = gate.proves();
    let handler = outer::Outer::new(Arc::clone(&house), desk, gate, sever.clone());
    let mut running = match server::run_stream(Arc::new(config), stream, handler).await {
        Ok(running) => running,
        Err(error) => {
            tracing::debug!(%error, "connection.not_ssh");
            return;
        }
    };
    let handle = running.handle();
    let ended = tokio::select! {
        ended = &mut running => ended,
        event = login::lapsed(&house, source.ip(), proves) => {
            tokio::join!(outer::append(&house, event), login::part(handle, sever, &mut running));
            return;
        }
    };
    if let Err(error) = ended {
        match nothing_in_common(&error, settings.transport) {
            // Its client says so too, but to somebody else than the operator who chose what is spoken.
            Some(why) => tracing::info!(%source, %why, "connection.nothing_in_common"),
            None => tracing::debug!(%error, "connection.ended"),
        }
    }
}

fn server_config(methods: MethodSet, transport: Transport) -> server::Config {
    server::Config {
        server_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-Keyward")),
        methods,
        // It sleeps on partial success too; refusals are made equal in time by the handler.
        auth_rejection_time: Duration::from_millis(5),
        auth_rejection_time_initial: Some(Duration::ZERO),
        preferred: crate::egress::preferred(transport),
        limits: crate::egress::rekey_limits(transport),
        max_auth_attempts: 10,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 3,
        nodelay: true,
        ..server::Config::default()
    }
}
