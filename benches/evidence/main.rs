//! What evidence costs: appends to the audit trail, recording, searching, starting on a long trail.
//!
//! `cargo bench --bench evidence` takes some minutes. `KEYWARD_BENCH_ROUNDS` (5) is how many of each,
//! `KEYWARD_BENCH_RECORDS` (1,000,000) how long the long trail is. The figures of the last run are in
//! `target/evidence-bench.json`. An hour and eight hours of terminal are measured by the tests `an_hour_of_terminal…` and
//! `eight_hours…`, which can make such tapes without waiting for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark fails by panicking"
)]

mod relay;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;
use keystore::backend::Memory;
use keystore::journal;
use keystore::seal::MasterKey;
use keystore::signing::Signers;
use keystore::ssh::PublicKey;
use keystore::{Effect, HostTrust, Instance, KeyStatus, Rule, Subject, Target, User, UserKey, Vault};
use keyward::audit::{Event, FileFacts, Trail};
use keyward::auth::{self, Unauthenticated};
use keyward::guard::{Guard, Limits};
use keyward::policy::{Authorized, Rulebook};
use keyward::recording::{
    ChannelMessage, Direction, SessionEnd, SessionId, SessionStatus, TapeKeys, Tapes, Terms, Transcript, Turn,
};
use serde_json::{Map, Value, json};

fn main() {
    // `cargo test --benches` passes --test or nothing of ours: a benchmark is no test.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let from_env = |name: &str, or| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    let rounds = usize::try_from(from_env("KEYWARD_BENCH_ROUNDS", 5)).unwrap();
    let records = from_env("KEYWARD_BENCH_RECORDS", 1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // Beside the build, on a disk: a folder for temporary files may lie in memory.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = tempfile::tempdir_in(target).unwrap();
    let mut table = Map::new();
    runtime.block_on(appends(dir.path(), rounds, &mut table));
    let house = runtime.block_on(House::new(&dir.path().join("house")));
    runtime.block_on(recording(&house, rounds, &mut table));
    runtime.block_on(searching(&house, rounds, &mut table));
    runtime.block_on(starting(&dir.path().join("long"), records, &mut table));
    let file = target.parent().unwrap_or(target).join("evidence-bench.json");
    fs::write(&file, serde_json::to_vec_pretty(&Value::Object(table)).unwrap()).unwrap();
    println!("figures: {}", file.display());
}

/// A figure of the table: the median of its runs, and all of them.
fn tell(table: &mut Map<String, Value>, name: &str, runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    println!("{name:<66} {median:>12.2}   ({:.2} to {:.2})", sorted[0], sorted[sorted.len() - 1]);
    table.insert(name.to_owned(), json!({ "median": median, "runs": runs }));
    median
}

/// What a session's end says, as long as most events are.
fn event() -> Event {
    let file = FileFacts {
        user: "alice".to_owned(),
        session: "01a2095f-a4ef-7077-94ae-baf50ba37228".to_owned(),
        instance: "db-1".to_owned(),
        path: "/srv/data/2026/11/23/part-00017.parquet".to_owned(),
        or_path: None,
        reason: None,
    };
    Event::FileWritten {
        file,
        bytes: 73_400_320,
        sha256: Some("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".to_owned()),
        stream_sha256: None,
    }
}

async fn trail(dir: &Path) -> Trail {
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    Trail::open(dir, Signers::create(&vault).await.unwrap().audit).unwrap()
}

/// Appends `count` events from many tasks. Returns the seconds it took, and the latency of each in milliseconds.
async fn append(trail: &Arc<Trail>, count: u64) -> (f64, Vec<f64>) {
    let left = Arc::new(AtomicU64::new(count));
    let begun = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (trail, left) = (Arc::clone(trail), Arc::clone(&left));
            tokio::spawn(async move {
                let mut each = Vec::new();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    let since = Instant::now();
                    trail.append(event(), Timestamp::now()).await.unwrap();
                    each.push(since.elapsed().as_secs_f64() * 1000.0);
                }
                each
            })
        })
        .collect();
    let mut each = Vec::new();
    for task in tasks {
        each.extend(task.await.unwrap());
    }
    (begun.elapsed().as_secs_f64(), each)
}

/// The trail beside the same lines written by hand: groups of as many, each followed by fdatasync.
async fn appends(dir: &Path, rounds: usize, table: &mut Map<String, Value>) {
    let (mut rates, mut plain, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let folder = dir.join(format!("trail{round}"));
        let trail = Arc::new(trail(&folder).await);
        let (seconds, mut each) = append(&trail, APPENDS).await;
        each.sort_by(f64::total_cmp);
        rates.push(APPENDS as f64 / seconds);
        p50.push(each[each.len() / 2]);
        p99.push(each[each.len() * 99 / 100]);
        drop(trail);
        let lines: Vec<u8> = journal_bytes(&folder.join("journal"));
        let size = lines.len() * TASKS / usize::try_from(APPENDS).unwrap();
        let mut file = File::create(dir.join("plain")).unwrap();
        let begun = Instant::now();
        for group in lines.chunks(size) {
            file.write_all(group).unwrap();
            file.sync_data().unwrap();
        }
        plain.push(APPENDS as f64 / begun.elapsed().as_secs_f64());
        fs::remove_dir_all(&folder).unwrap();
    }
    let own = tell(table, &format!("audit appends a second, {TASKS} at a time"), &rates);
    tell(table, "the same, p50, ms", &p50);
    tell(table, "the same, p99, ms", &p99);
    let disk = tell(table, "the same lines by hand, a group and an fdatasync, a second", &plain);
    tell(table, "the trail of what the disk can do", &[own / disk]);
}

fn journal_bytes(dir: &Path) -> Vec<u8> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "journal"));
    files.sort();
    files.iter().flat_map(|file| fs::read(file).unwrap()).collect()
}

/// CPU seconds of this process so far.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

async fn recording(house: &House, rounds: usize, table: &mut Map<String, Value>) {
    let ways = [
        ("no tape", None, false),
        ("counted and hashed", Some(house), false),
        ("a command's, 16 MiB of it kept", Some(house), true),
    ];
    let mut rates = [const { Vec::new() }; 3];
    let mut spent = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for (at, (_, house, kept)) in ways.iter().enumerate() {
            let (rate, cpu) = relay::throughput(*house, *kept, RELAYED).await;
            rates[at].push(rate);
            spent[at].push(cpu);
        }
    }
    for (at, (name, ..)) in ways.iter().enumerate() {
        tell(table, &format!("relay between two SSH connections, {name}, MB/s"), &rates[at]);
        tell(table, &format!("the same, with both ends, {name}, CPU s a GB"), &spent[at]);
        // Each pair by itself: what else the machine does changes from one to the next.
        let costs = rates[at].iter().zip(&rates[0]).map(|(taped, bare)| 100.0 * (1.0 - taped / bare));
        if at > 0 {
            tell(table, &format!("recording costs, {name}, % of throughput"), &costs.collect::<Vec<_>>());
        }
    }
    // The recorder alone, fed as fast as it takes it.
    let mut alone = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        house.command_output(RELAYED).await;
        alone.push(RELAYED as f64 / 1e6 / begun.elapsed().as_secs_f64());
    }
    tell(table, "the recorder alone, MB/s", &alone);
}

/// A search reads, opens, unpacks and goes through every line.
async fn searching(house: &House, rounds: usize, table: &mut Map<String, Value>) {
    for (name, what) in [
        ("a terminal", Shown::Lines),
        ("full-screen programs", Shown::Screens),
        ("a shell without a terminal", Shown::Stream),
    ] {
        let id = house.output(what, SEARCHED).await;
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let begun = Instant::now();
            let (mut frames, mut transcript) = (house.tapes.frames(id, 0).unwrap(), Transcript::default());
            let (mut lines, mut hits, mut done) = (0u64, 0u64, Vec::new());
            while let Some(records) = frames.next_frame().unwrap() {
                records.iter().for_each(|record| transcript.feed(record, &mut done));
                for line in done.drain(..) {
                    lines += 1;
                    hits += u64::from(line.text.contains("needle"));
                }
            }
            rates.push(SEARCHED as f64 / 1e6 / begun.elapsed().as_secs_f64());
            assert!(lines > 0 && hits == 0);
        }
        tell(table, &format!("search through the tape of {name}, MB/s of what was shown"), &rates);
    }
}

/// What a start does with a long trail: it verifies the chain, and looks which sessions it knows.
async fn starting(dir: &Path, records: u64, table: &mut Map<String, Value>) {
    let long = Arc::new(trail(dir).await);
    append(&long, records).await;
    drop(Arc::try_unwrap(long).ok().unwrap());
    let size = journal_bytes(&dir.join("journal")).len() as f64 / 1e6;
    tell(table, "a long trail, MB", &[size]);
    let begun = Instant::now();
    let again = trail(dir).await;
    tell(table, &format!("start on a trail of {records} events: opened and verified, s"), &[since(begun)]);
    let begun = Instant::now();
    again.sessions().unwrap();
    tell(table, "the same: looked through for sessions, s", &[since(begun)]);
    let begun = Instant::now();
    journal::verify(&dir.join("journal")).unwrap();
    tell(table, "the chain alone verified, s", &[since(begun)]);
}

fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64()
}

/// A folder of tapes, and the right to record one.
pub struct House {
    tapes: Tapes,
    authorized: Authorized,
}

impl House {
    async fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let keys = TapeKeys::create(&dir.join("identity")).unwrap();
        let terms = Terms { limit: 16 << 20, ..Terms::default() };
        let (tapes, _) = Tapes::open(&dir.join("tapes"), keys, terms).unwrap();
        Self { tapes, authorized: authorized().await }
    }

    /// Kept up to the limit, as a command is.
    async fn command_output(&self, bytes: usize) -> SessionId {
        let exec = ChannelMessage::Exec(Bytes::from_static(b"cat /srv/image"));
        self.record((&[exec], &log_lines()), bytes).await
    }

    /// Kept whole.
    async fn output(&self, what: Shown, bytes: usize) -> SessionId {
        let (term, modes) = ("xterm".to_owned(), Vec::new());
        let pty = ChannelMessage::Pty { term, cols: 100, rows: 30, px_width: 0, px_height: 0, modes };
        match what {
            Shown::Stream => self.record((&[ChannelMessage::Shell], &log_lines()), bytes).await,
            Shown::Lines => self.record((&[pty, ChannelMessage::Shell], &log_lines()), bytes).await,
            Shown::Screens => self.record((&[pty, ChannelMessage::Shell], &screens()), bytes).await,
        }
    }

    async fn record(&self, (start, text): (&[ChannelMessage], &str), bytes: usize) -> SessionId {
        let id = SessionId::new(Timestamp::now());
        let tape = self.tapes.record(&self.authorized, (id, None), Timestamp::now()).await.unwrap();
        tape.channel_opened(1);
        for message in start {
            tape.record(1, Direction::ToInstance, message).await.unwrap();
        }
        let mut left = bytes;
        let mut pieces = text.as_bytes().chunks(32 << 10).cycle();
        let mut ear = || {
            let piece = pieces.next().unwrap();
            let size = left.min(piece.len());
            left -= size;
            (size > 0).then(|| ChannelMessage::Data(Bytes::copy_from_slice(&piece[..size])))
        };
        let mut held = tape.held(1, Direction::ToUser);
        loop {
            match held.turn(async { ear() }).await.unwrap() {
                Turn::Heard(message) => held.take(message).await.unwrap(),
                Turn::Free(_) => {}
                Turn::Over => break,
            }
        }
        let end = SessionEnd { status: SessionStatus::Closed, reason: None };
        tape.seal(end, Timestamp::now()).await.unwrap();
        id
    }
}

#[derive(Clone, Copy)]
enum Shown {
    /// Lines that scroll by at a terminal.
    Lines,
    /// What programs draw that fill the terminal, as top and an editor do.
    Screens,
    /// Lines, without a terminal.
    Stream,
}

/// A megabyte of a log.
fn log_lines() -> String {
    let (mut text, mut numbers) = (String::new(), Numbers(0));
    while text.len() < 1 << 20 {
        let number = numbers.next();
        text.push_str(&format!(
            "Nov 23 17:{:02} db-1 app[{}]: request {number:x} took {} ms\r\n",
            number % 60,
            number % 9999,
            number >> 46
        ));
    }
    text
}

/// A megabyte of screens: all rows drawn anew with colours, then some cells of them here and there.
fn screens() -> String {
    let (mut text, mut numbers) = ("\x1b[?1049h".to_owned(), Numbers(0));
    while text.len() < 1 << 20 {
        text.push_str("\x1b[H");
        for row in 0..29 {
            let number = numbers.next();
            let colour = 31 + number % 7;
            text.push_str(&format!(
                "{:>7} root 20 0 \x1b[{colour}m{:>9}\x1b[m {:>5}.{} worker-{number:x}\x1b[K\r\n",
                number % 99_999,
                number % 9_999_999,
                number % 100,
                row
            ));
        }
        for _ in 0..40 {
            let number = numbers.next();
            text.push_str(&format!("\x1b[{};{}H{:02}", 1 + number % 29, 1 + number % 90, number % 60));
        }
    }
    text
}

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 8
    }
}

/// By the real doors: a key, a code, a rule.
async fn authorized() -> Authorized {
    let now = Timestamp::now();
    let far = Timestamp::from_second(now.as_second() + 86_400).unwrap();
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    let name: keystore::UserName = "alice".parse().unwrap();
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
    let key = PublicKey::from_openssh(line).unwrap();
    let (roles, kind, from) = (["engineer".parse().unwrap()].into(), Default::default(), Vec::new());
    let user =
        User { name: name.clone(), roles, kind, added_at: now, expires_at: None, suspended: None, from };
    vault.insert(&user).await.unwrap();
    let user_key = UserKey {
        id: "K1".to_owned(),
        user: name.clone(),
        name: "laptop".to_owned(),
        public_key: line.to_owned(),
        algorithm: key.algorithm().to_string(),
        fingerprint: UserKey::fingerprint_of(&key),
        status: KeyStatus::Active,
        added_at: now,
        expires_at: far,
        last_used_at: None,
        replaces: None,
        retires_at: None,
        warned: None,
        revoked: None,
        verify_required: false,
    };
    vault.insert(&user_key).await.unwrap();
    auth::mfa::enroll(&vault, &name, now).await.unwrap();
    let codes = auth::mfa::new_recovery_codes(&vault, &name).await.unwrap();
    let admitted = Guard::new(Limits::default()).admit("192.0.2.7:4022".parse().unwrap(), now).unwrap();
    let knock = Unauthenticated::new(&admitted, &Default::default());
    let verified = knock.key_verified(&vault, "alice", &key, now).await.ok().unwrap();
    let login = verified.with_second_factor(&vault, "alice", &codes[0], now).await.ok().unwrap();
    let instance = Instance {
        name: "db-1".parse().unwrap(),
        aliases: Default::default(),
        address: "192.0.2.9:22".parse().unwrap(),
        logins: ["ubuntu".parse().unwrap()].into(),
        labels: Default::default(),
        host_trust: HostTrust::Ca(line.to_owned()),
        credential: Default::default(),
        added_at: now,
    };
    let rule = Rule {
        id: "R1".to_owned(),
        effect: Effect::Allow,
        subject: Subject::User(name),
        target: Target::Instance(instance.name.clone()),
        logins: instance.logins.clone(),
        can: keystore::Capability::ALL.into(),
        from: Vec::new(),
        expires_at: None,
        recording: None,
        added_at: now,
    };
    let rules = Rulebook::compile(&[rule]).unwrap();
    rules.authorize(&login, login.roles(), (&instance, &"ubuntu".parse().unwrap()), now).unwrap()
}

/// Appends under way at a time: a busy bastion's.
const TASKS: usize = 512;
const APPENDS: u64 = 100_000;
const RELAYED: usize = 256 << 20;
const SEARCHED: usize = 128 << 20;
