//! A crowd of recorded terminals that people type in, through one bastion: what it costs, how long an echo takes, and how
//! long a revoked key lives on.
//!
//! `cargo bench --bench crowd`. `KEYWARD_CROWD` (2000) terminals of two users, `KEYWARD_CROWD_SECS` (300) of typing, a key
//! every two seconds in each. Clients and instance are one process of this crate's own; all on loopback, so their CPU is
//! taken from the bastion's machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a benchmark fails by panicking, and shares its rig with the tests"
)]

mod instance;
#[path = "../jump/measure.rs"]
mod measure;
#[path = "../../tests/stock/raw.rs"]
mod raw;
#[path = "../../tests/stock/rig.rs"]
mod rig;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use instance::Echo;
use measure::{cpu_seconds, pss_kib};
use raw::Raw;
use rig::{Rig, text, wait_for};
use russh::{ChannelMsg, kex};
use tokio::sync::{Mutex, Semaphore};

const USERS: [&str; 2] = ["alice", "bob"];
const BETWEEN_KEYS: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Crowd {
    seated: AtomicUsize,
    over: AtomicBool,
    /// Milliseconds from each key to its echo.
    echoes: Mutex<Vec<f64>>,
    /// When a terminal of each user ended last.
    ends: [Mutex<Vec<Instant>>; 2],
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // `cargo test --benches` passes --test or nothing of ours: a benchmark is no test.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let size = number("KEYWARD_CROWD", 2000);
    let time = Duration::from_secs(number("KEYWARD_CROWD_SECS", 300) as u64);
    let rig = Rig::bastion_and(
        "[limits]\nmax_startups = 10000\nper_source = 10000\nper_user = 100000\n[mfa]\nremember = \"8h\"\n",
    );
    rig.keygen("instance_key");
    let (port, legs) =
        Echo::serve(russh::keys::load_secret_key(rig.path("instance_key"), None).unwrap()).await;
    let (address, key) = (format!("127.0.0.1:{port}"), rig.path("instance_key.pub"));
    rig.ok(&[
        "instances",
        "add",
        "db-1",
        "--address",
        &address,
        "--login",
        "x",
        "--host-key",
        key.to_str().unwrap(),
    ]);
    for user in USERS {
        rig.add_user(user);
        rig.ok(&["access", "allow", "--user", user, "--instance", "db-1", "--login", "x"]);
    }
    let rig = Arc::new(rig);
    let before = (pss_kib(rig.pid()), cpu_seconds(rig.pid()));
    let crowd = Arc::new(Crowd::default());
    let begun = Instant::now();
    // The first of each user gives the code; the others are remembered.
    let doors = Arc::new(Semaphore::new(16));
    let (mut typists, seated) = (Vec::new(), Arc::clone(&crowd));
    for number in 0..size {
        let (rig, crowd, doors) = (Arc::clone(&rig), Arc::clone(&crowd), Arc::clone(&doors));
        let seat = tokio::spawn(async move { sit(rig, crowd, doors, number).await });
        typists.push(seat);
        if number < USERS.len() {
            wait(|| seated.seated.load(Ordering::Relaxed) > number).await;
        }
    }
    wait_until(size, &crowd).await;
    let logins = begun.elapsed();
    let after = (pss_kib(rig.pid()), cpu_seconds(rig.pid()));
    println!(
        "{size} terminals in {:.1} s, {:.1} ms of the bastion's CPU each",
        logins.as_secs_f64(),
        (after.1 - before.1) * 1000.0 / size as f64
    );
    println!(
        "memory: {} KiB alone, {} KiB with all: {:.1} KiB each",
        before.0,
        after.0,
        (after.0 - before.0) as f64 / size as f64
    );

    crowd.echoes.lock().await.clear();
    let cpu = cpu_seconds(rig.pid());
    tokio::time::sleep(time).await;
    let cpu = cpu_seconds(rig.pid()) - cpu;
    let mut echoes = std::mem::take(&mut *crowd.echoes.lock().await);
    echoes.sort_by(f64::total_cmp);
    let at = |part: f64| echoes[((echoes.len() - 1) as f64 * part) as usize];
    println!(
        "{} echoes in {} s: p50 {:.2} ms, p99 {:.2} ms, longest {:.1} ms",
        echoes.len(),
        time.as_secs(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!(
        "bastion: {:.0} % of a core, {} KiB (PSS), {} KiB (RSS)",
        cpu / time.as_secs_f64() * 100.0,
        pss_kib(rig.pid()),
        rig.memory_kib()
    );
    let live = rig.json(&["sessions", "list", "--live"]).as_array().unwrap().len();
    assert_eq!(live, size, "sessions are live after all that");

    let mine = legs.lock().unwrap().open["alice"];
    let key = rig.json(&["ssh-keys", "list", "--user", "alice"])[0]["id"].as_str().unwrap().to_owned();
    let watching = sockets::watch((port, rig.port), size - mine);
    let (revoked, at) = (Instant::now(), jiff::Timestamp::now());
    let told = rig.clone();
    let told =
        tokio::task::spawn_blocking(move || told.ok(&["ssh-keys", "revoke", &key, "--reason", "stolen"]));
    wait(|| legs.lock().unwrap().open["alice"] == 0).await;
    let ended = legs.lock().unwrap().last_end.unwrap().duration_since(revoked);
    told.await.unwrap();
    let answered = revoked.elapsed();
    wait_async(async || crowd.ends[0].lock().await.len() == mine).await;
    let last = crowd.ends[0].lock().await.iter().max().unwrap().duration_since(revoked);
    let closed = tokio::task::spawn_blocking(move || watching.join().unwrap()).await.unwrap();
    let last_byte = legs.lock().unwrap().last_byte["alice"].saturating_duration_since(revoked);
    println!(
        "revoked a key with {mine} live terminals. Of the bastion: no socket to an instance was open after {:.0} ms, none to a \
         client after {:.0} ms; the instance read its last byte after {:.0} ms. Load: {}",
        ms(closed.0.duration_since(revoked)),
        ms(closed.1.duration_since(revoked)),
        ms(last_byte),
        std::fs::read_to_string("/proc/loadavg").unwrap().trim()
    );
    // What the bastion itself says, which the processes beside it do not blur.
    let log = std::fs::read_to_string(rig.path("log")).unwrap();
    for line in log.lines().filter(|line| line.contains("sessions.cut")) {
        let over: jiff::Timestamp = line.split_whitespace().next().unwrap().parse().unwrap();
        let over = over.duration_since(at).as_secs_f64() * 1000.0;
        let millis = |name: &str| -> f64 {
            let value = line.split_once(&format!("{name}=")).unwrap().1;
            value.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1000.0
        };
        let (barred, shut) = (millis("barred_us"), millis("shut_us"));
        println!(
            "it says: nothing passed any more after {:.0} ms, every socket to an instance was shut after {over:.0} ms \
             ({barred:.2} ms and {shut:.1} ms of work)",
            over - shut + barred,
        );
    }
    println!(
        "seen from outside: the last leg to the instance ended after {:.0} ms, the last user \
        knew after {:.0} ms, the command answered after {:.0} ms",
        ms(ended),
        ms(last),
        ms(answered)
    );
    assert_eq!(legs.lock().unwrap().open["bob"], size - mine, "the neighbour's go on");
    wait_for("the tapes to be sealed", || {
        rig.json(&["sessions", "list", "--live"]).as_array().unwrap().len() == size - mine
    });
    println!("all tapes sealed after {:.0} ms", ms(revoked.elapsed()));
    crowd.over.store(true, Ordering::Relaxed);
    for typist in typists {
        typist.await.unwrap();
    }
    println!("{}", text(rig.run(&["logs", "verify"]).stdout).lines().last().unwrap_or_default());
}

/// One terminal: logs in, jumps, types until the end of the crowd or its own.
async fn sit(rig: Arc<Rig>, crowd: Arc<Crowd>, doors: Arc<Semaphore>, number: usize) {
    let door = doors.acquire().await.unwrap();
    let user = USERS[number % USERS.len()];
    let code = || {
        let output = std::process::Command::new(rig.path(&format!("code_{user}"))).output().unwrap();
        text(output.stdout).trim().to_owned()
    };
    let key = rig.path(&format!("id_{user}"));
    let raw = Raw::login(rig.port, (user, &key), kex::MLKEM768X25519_SHA256, code).await.unwrap();
    let (_inner, mut channel) = raw.jump(("db-1", "x")).await.unwrap();
    channel.request_pty(false, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
    channel.request_shell(false).await.unwrap();
    drop(door);
    crowd.seated.fetch_add(1, Ordering::Relaxed);
    // Nobody types at the same moment as everybody.
    let spread = BETWEEN_KEYS.mul_f64(number as f64 * 0.618 % 1.0);
    tokio::time::sleep(spread).await;
    'typing: while !crowd.over.load(Ordering::Relaxed) {
        let typed = Instant::now();
        if channel.data_bytes("k".as_bytes().to_vec()).await.is_err() {
            break;
        }
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Data { .. }) => break,
                Some(ChannelMsg::Close) | None => break 'typing,
                Some(_) => {}
            }
        }
        crowd.echoes.lock().await.push(ms(typed.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(BETWEEN_KEYS) => {}
            ended = async { while !matches!(channel.wait().await, None | Some(ChannelMsg::Close | ChannelMsg::Eof)) {} } => {
                let () = ended;
                break;
            }
        }
    }
    crowd.ends[number % USERS.len()].lock().await.push(Instant::now());
}

async fn wait_until(size: usize, crowd: &Crowd) {
    let mut said = 0;
    while crowd.seated.load(Ordering::Relaxed) < size {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = crowd.seated.load(Ordering::Relaxed);
        if now / 200 > said {
            said = now / 200;
            eprintln!("{now} terminals");
        }
    }
}

async fn wait(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn wait_async(mut done: impl AsyncFnMut() -> bool) {
    while !done().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}
