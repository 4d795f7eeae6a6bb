//! `keyward serve`: opens the house, accepts until told to stop, drains.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use keystore::seal::MasterKey;
use keystore::signing::Signers;
use keystore::{OpenError, Vault};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::workers::Workers;
use super::{reload, socket, upkeep};
use crate::admin::{self, FrontDesk};
use crate::audit::{Event, Keeping, Outlets, SessionFacts, Trail};
use crate::auth::{Browsers, Certificates, Invitations};
use crate::config::Config;
use crate::console::Console;
use crate::guard::clock::Clock;
use crate::guard::lockdown::Lockdown;
use crate::guard::{Admitted, Guard};
use crate::ingress::serve_connection;
use crate::policy::Rulebook;
use crate::recording::{Header, SessionStatus, Summary, Tapes};
use crate::rotation;
use crate::session::{Approvals, Desk, House, Registry, recompile, watch};

/// Why the daemon does not serve: what was being done, and what went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct ServeError {
    doing: &'static str,
    why: String,
}

fn during<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> ServeError {
    move |why| ServeError { doing, why: why.to_string() }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Anything that keeps it from starting; nothing is made anew.
pub async fn run(config: Config) -> Result<(), ServeError> {
    raise_file_limit();
    let house = Arc::new(open(config).await?);
    recompile(&house).await;
    let config = house.config();
    let listener = TcpListener::bind(config.listen).await.map_err(during("listening for SSH"))?;
    let browsers = match config.console.listen.filter(|_| config.console.enabled) {
        Some(address) => Some(
            TcpListener::bind(address).await.map_err(during("listening for browsers (console.listen)"))?,
        ),
        None => None,
    };
    let door = socket::bind(&config.socket).map_err(during("opening the administration socket"))?;
    let mut term = signal(SignalKind::terminate()).map_err(during("waiting for signals"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(during("waiting for signals"))?;
    let hangup = signal(SignalKind::hangup()).map_err(during("waiting for signals"))?;

    let console = Arc::new(Console::new(Arc::clone(&house), FrontDesk::new(Arc::clone(&house))));
    let stop = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(watch(Arc::clone(&house), stop.clone()));
    let workflows = Arc::clone(&house);
    let believed = Arc::clone(&house);
    let clock = move || believed.clock.now();
    tasks.spawn(rotation::keep(move || admin::rotation(&workflows), clock, stop.clone()));
    tasks.spawn(upkeep::custody(Arc::clone(&house), stop.clone()));
    tasks.spawn(upkeep::keep(Arc::clone(&house), stop.clone()));
    tasks.spawn(reload::follow_user_ca(Arc::clone(&house), stop.clone()));
    tasks.spawn(reload::heed(hangup, Arc::clone(&house), stop.clone()));
    tasks.spawn(socket::serve(door, Arc::clone(&house), stop.clone()));
    if let Some(browsers) = browsers {
        tasks.spawn(Arc::clone(&console).listen(browsers, stop.clone()));
    }
    let workers = Workers::start().map_err(during("starting the workers"))?;
    tracing::info!(address = %config.listen, "daemon.listening");
    tokio::select! {
        () = accept(listener, &workers, &house, console) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("daemon.draining");
    let patience = Duration::from_secs(house.config().drain_secs);
    if !house.registry.drain("The bastion is restarting; please connect again in a moment.", patience).await {
        tracing::warn!("daemon.drain_timed_out");
    }
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
        tracing::warn!("daemon.tasks_left");
    }
    tokio::task::spawn_blocking(move || workers.end()).await.map_err(during("ending the workers"))?;
    note(&house, Event::DaemonStopped { reason: "told to stop".to_owned() }).await?;
    // Last of all, so that nothing of this run lies behind it unsigned but its own event.
    let last =
        house.trail.checkpoint(Timestamp::now()).await.map_err(during("signing the last checkpoint"))?;
    house.outlets.settle(last.seq, Duration::from_secs(3)).await;
    if let Err(error) = std::fs::remove_file(&config.socket) {
        tracing::debug!(%error, "daemon.socket_left");
    }
    Ok(())
}

/// A session takes five files (two connections, one of them twice, tape and key): the soft limit of most systems, 1024, is 200 sessions.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(files = ?raised.current, "limit.raised"),
        Err(error) => tracing::warn!(%error, files = ?limit.current, "limit.not_raised"),
    }
}

pub(super) async fn open(config: Config) -> Result<House, ServeError> {
    let master = MasterKey::load(&config.master_key).map_err(during("loading the master key"))?;
    let place = config.master_key.to_string();
    let vault = Vault::open(&config.store_dir(), master, &place).map_err(|fault| match fault {
        OpenError::Key(_) => during("checking the master key")(fault),
        OpenError::Store(_) => during("opening the store")(fault),
    })?;
    vault.check_master_key(&place).await.map_err(during("checking the master key"))?;
    let signers = Signers::load(&vault).await.map_err(during("loading the signing keys"))?;
    let auditor = signers.audit.clone();
    let store = config.store_dir().join("journal");
    let keeping = Keeping {
        reserve_bytes: config.audit.reserve_mb << 20,
        head_file: config.audit.head_file.clone(),
        store: Some(store.clone()),
    };
    let trail = Trail::open_keeping(&config.audit_dir(), auditor, keeping)
        .map_err(during("opening the audit trail"))?;
    let clock = Clock::at(&config.state_dir.join("clock"), trail.last_told(), Timestamp::now());
    // Before anything else is: nothing of this run lies between what was forged and the word of it.
    trail.tell_forged(Timestamp::now()).await.map_err(during("telling of forged events"))?;
    let (keys, kept) = reload::kept(&config).map_err(during("reading the auditors' keys"))?;
    let (tapes, rebuilt) =
        Tapes::open(&config.tapes_dir(), keys, kept).map_err(during("opening the recordings"))?;
    let guard =
        Guard::locked_down_by(reload::limits(&config), Lockdown::at(&config.state_dir.join("lockdown")));
    if let Some(reason) = guard.lockdown().reason() {
        tracing::warn!(%reason, "lockdown: nobody is let in; end it with: keyward access deny-all --end");
    }
    let cas = reload::user_cas(&config).map_err(during("reading the external user CA"))?;
    let rulebook = Rulebook::compile(&[]).map_err(during("compiling the rules"))?;
    let bytes = config.audit.reserve_mb << 20;
    let reserve = trail.reserve_file().map(|file| crate::recording::Reserve { file, bytes });
    let trail = Arc::new(trail);
    let host = config.names.first().map_or("keyward", String::as_str);
    let outlets = Outlets::open(&trail, config.audit.receivers(host))
        .map_err(during("opening the receivers of events"))?;
    let house = House {
        clock,
        invitations: Invitations::of(&vault),
        vault: Arc::new(vault),
        certificates: Certificates::of(cas),
        guard,
        trail,
        tapes: Arc::new(tapes.sparing(reserve)),
        browsers: Browsers::default(),
        signers: Arc::new(signers),
        registry: Registry::new(),
        outlets,
        approvals: Approvals::default(),
        started_at: Timestamp::now(),
        settings: ArcSwap::from_pointee(config),
        rulebook: ArcSwap::from_pointee(rulebook),
    };
    note(&house, Event::DaemonStarted { version: env!("CARGO_PKG_VERSION").to_owned() }).await?;
    for event in house.outlets.rewound() {
        note(&house, event.clone()).await?;
    }
    // What a crash kept of a change of the master key from its end.
    let rekeyed = rotation::finish_rekeying(&house.vault, &house.trail, Timestamp::now()).await;
    rekeyed.map_err(during("finishing the change of the master key"))?;
    let (trail, tapes) = (Arc::clone(&house.trail), Arc::clone(&house.tapes));
    let untold = tokio::task::spawn_blocking(move || {
        let known = trail.sessions().map_err(|e| e.to_string())?;
        tapes.remove_orphans(&known).map_err(|e| e.to_string())?;
        let untold = tapes.untold(&rebuilt, &known).map_err(|e| e.to_string())?;
        Ok::<_, String>((untold, known.store_replaced(&store)))
    });
    let recovered = untold.await.map_err(during("recovering the recordings"))?;
    let (untold, replaced) = recovered.map_err(during("recovering the recordings"))?;
    if let Some(event) = replaced {
        tracing::error!("store.replaced: it is not the one that the audit trail saw; was a backup restored?");
        note(&house, event).await?;
        house
            .trail
            .checkpoint(Timestamp::now())
            .await
            .map_err(during("signing what was told of the store"))?;
    }
    for tape in untold {
        note(&house, ended(tape)).await?;
    }
    house.trail.begin_heads(Timestamp::now()).await.map_err(during("beginning the file of heads"))?;
    Ok(house)
}

/// What the trail hears of a session whose end a crash kept from it.
fn ended(tape: Summary) -> Event {
    let summary = tape.sha256();
    let status = match tape.status {
        SessionStatus::Closed => "closed",
        SessionStatus::Killed => "killed",
        SessionStatus::Truncated | SessionStatus::Live => "truncated",
    };
    let Header { id, user, login, instance, source_ip, key, parent, .. } = tape.header;
    Event::SessionClosed {
        facts: SessionFacts { session: id, user, source_ip, key, instance, login, parent },
        status: status.to_owned(),
        reason: tape.reason,
        digest: tape.digest.unwrap_or_default(),
        summary,
    }
}

async fn note(house: &House, event: Event) -> Result<(), ServeError> {
    house.trail.append(event, Timestamp::now()).await.map(drop).map_err(during("writing the audit trail"))
}

async fn accept(listener: TcpListener, workers: &Workers, house: &Arc<House>, desk: Arc<dyn Desk>) {
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others will close some.
                tracing::warn!(%error, "accept.failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        match house.guard.admit(peer, Timestamp::now()) {
            Ok(admitted) => {
                let (house, desk) = (Arc::clone(house), Arc::clone(&desk));
                // Its readiness is told to the runtime that accepted it: the worker takes it over as a bare socket.
                match tcp.into_std() {
                    Ok(tcp) => workers.serve(move || serve(house, desk, admitted, tcp)),
                    Err(error) => tracing::warn!(%error, "accept.failed"),
                }
            }
            Err(refused) => tracing::info!(source.ip = %peer.ip(), why = %refused, "accept.refused"),
        }
    }
}

async fn serve(house: Arc<House>, desk: Arc<dyn Desk>, admitted: Admitted, tcp: std::net::TcpStream) {
    match TcpStream::from_std(tcp) {
        Ok(tcp) => serve_connection(house, desk, admitted, tcp).await,
        Err(error) => tracing::warn!(%error, "accept.failed"),
    }
}
