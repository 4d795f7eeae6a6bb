//! What needs no daemon: reading and proving recordings on a copy of the files, in this process.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keystore::ssh::PublicKey;
use tokio::sync::mpsc;

use super::keyboard::Keyboard;
use super::{error, runtime};
use crate::admin::{self, Chunk, Command, Fault, Logs, Output, Progress, Recording, Sessions};
use crate::audit::{self, Against};
use crate::config::Config;
use crate::recording::{TapeKeys, Tapes};

/// Carries `command` out without a daemon, if it names files to do so on; otherwise gives it back.
pub(super) fn run(command: Command, config: &Path, json: bool) -> Result<Result<u8, Fault>, Box<Command>> {
    let out = Streams { json, shows: io::stdout().is_terminal(), ..Streams::default() };
    Ok(match command {
        Command::Sessions(Sessions::Verify { id: Some(id), state: Some(state), identity, trust, .. }) => {
            let copy = Copied { state, identity, trust, heads: None };
            verify_session(&copy, &id, config, out)
        }
        Command::Sessions(Sessions::Verify { bundle: Some(file), trust: Some(key), .. }) => {
            verify_bundle(&file, &key, out)
        }
        Command::Logs(Logs::Verify { state: Some(state), identity, trust, heads }) => {
            verify_state(&Copied { state, identity, trust, heads }, config, out)
        }
        Command::Recording(Recording::Rewrap { state: Some(state), identity, recipients }) => {
            rewrap(&state, identity.as_deref(), &recipients, out)
        }
        Command::Sessions(command) => match copy_of(&command) {
            Some((state, identity)) => read((&state, identity.as_deref()), command, out),
            None => return Err(Box::new(Command::Sessions(command))),
        },
        command => return Err(Box::new(command)),
    })
}

/// The copy that `command` reads, and the identity that opens it, if it names one.
fn copy_of(command: &Sessions) -> Option<(PathBuf, Option<PathBuf>)> {
    match command {
        Sessions::Play { copy, .. }
        | Sessions::Transcript { copy, .. }
        | Sessions::Export { copy, .. }
        | Sessions::Search { copy, .. } => Some((copy.state.clone()?, copy.identity.clone())),
        Sessions::List { state, .. } | Sessions::Show { state, .. } | Sessions::Gaps { state, .. } => {
            Some((state.clone()?, None))
        }
        _ => None,
    }
}

/// A copy of a bastion's files, and what was kept elsewhere to hold it against.
struct Copied {
    state: PathBuf,
    identity: Option<PathBuf>,
    trust: Option<PathBuf>,
    heads: Option<PathBuf>,
}

impl Copied {
    /// The audit key is the one that is named, or the one that `init` wrote beside the state directory, or, on a bare copy,
    /// the one inside it: then only who has the bastion's own key could have rewritten everything.
    fn against(&self) -> Result<Against, Fault> {
        let audit = self.audit();
        if !audit.is_dir() {
            let meant = admin::meant(&self.state);
            return Err(Fault::not_found(format!("{} holds no audit trail{meant}", audit.display())));
        }
        if let Some(heads) = &self.heads {
            readable(heads)?;
        }
        let beside = || self.state.parent().map(|dir| dir.join("audit_key.pub")).filter(|file| file.exists());
        let key = match &self.trust {
            Some(named) => trusted(named)?,
            None => {
                let found = beside().unwrap_or_else(|| audit.join("signer.pub"));
                audit::read_key(&found).map_err(|fault| Fault::tampering(fault.to_string()))?
            }
        };
        Ok(Against { key, heads: self.heads.clone(), marks: None })
    }

    /// Frames are opened with the identity that is named, or with the one of a configuration that is readable here.
    fn tapes(&self, config: &Path) -> Result<Tapes, Fault> {
        let configured =
            || Config::load(config).ok().and_then(|c| c.recording.identity).filter(|file| file.exists());
        let keys = match self.identity.clone().or_else(configured) {
            Some(file) => TapeKeys::load(&file).map_err(error)?,
            None => TapeKeys::none(),
        };
        Ok(Tapes::inspect(&self.state.join("tapes"), keys))
    }

    fn audit(&self) -> PathBuf {
        self.state.join("audit")
    }
}

/// The audit key that was kept elsewhere. A file that was named wrongly says nothing against the trail.
fn trusted(file: &Path) -> Result<PublicKey, Fault> {
    readable(file)?;
    audit::read_key(file).map_err(|fault| {
        Fault::error(format!(
            "{}: {}; name the audit_key.pub that was kept elsewhere",
            file.display(),
            fault.what
        ))
    })
}

fn readable(file: &Path) -> Result<(), Fault> {
    let read = File::open(file).and_then(|mut file| file.read(&mut [0]));
    read.map(drop).map_err(|e| Fault::error(format!("{}: cannot be read: {e}", file.display())))
}

fn verify_state(copy: &Copied, config: &Path, out: Streams) -> Result<u8, Fault> {
    let (audit, tapes, against) = (copy.audit(), copy.tapes(config)?, copy.against()?);
    let work = move |progress: &Progress| admin::verify(&audit, &tapes, &against, progress);
    out.counted(work, |found| (found.as_json(), found.to_string()))
}

fn verify_session(copy: &Copied, id: &str, config: &Path, out: Streams) -> Result<u8, Fault> {
    let (audit, tapes, against) = (copy.audit(), copy.tapes(config)?, copy.against()?);
    let id = admin::session_meant(&tapes, id)?;
    let work = move |progress: &Progress| {
        let found = admin::verify_session((&audit, &tapes), id, &against, progress)?;
        found.ok_or_else(|| admin::untold(id))
    };
    out.counted(work, |found| (found.value, found.says))
}

fn verify_bundle(file: &Path, key: &Path, out: Streams) -> Result<u8, Fault> {
    let key = trusted(key)?;
    let at_fault = |what: String| Fault::error(format!("{}: {what}", file.display()));
    let archive = File::open(file).map_err(|e| at_fault(e.to_string()))?;
    let (length, name) = (archive.metadata().map_or(0, |found| found.len()), file.display().to_string());
    let work = move |progress: &Progress| {
        progress.expect(length);
        let from = Counting(archive, progress.clone());
        admin::verify_bundle(io::BufReader::new(from), &key)
            .map_err(|fault| Fault { says: format!("{name}: {}", fault.says), ..fault })
    };
    out.counted(work, |found| (found.as_json(), found.to_string()))
}

/// A file that says how much of it was read.
struct Counting(File, Progress);

impl Read for Counting {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        self.1.did(read as u64);
        Ok(read)
    }
}

fn rewrap(state: &Path, identity: Option<&Path>, recipients: &[String], out: Streams) -> Result<u8, Fault> {
    let identity =
        identity.ok_or_else(|| Fault::usage("name the identity that opens them now: --identity FILE"))?;
    let to = TapeKeys::recipients_only(recipients).map_err(|e| Fault::usage(e.to_string()))?;
    let tapes = Tapes::inspect(&state.join("tapes"), TapeKeys::load(identity).map_err(error)?);
    let names = to.recipients();
    let work = move |progress: &Progress| Ok(tapes.rewrap(&to, &|done, all| progress.is(done, all))?);
    out.counted(work, |done| {
        let says = format!("{done} recordings can now be read by {}", names.join(", "));
        (serde_json::json!({ "rewrapped": done, "recipients": names }), says)
    })
}

/// Reads recordings in a copy.
fn read((state, identity): (&Path, Option<&Path>), command: Sessions, out: Streams) -> Result<u8, Fault> {
    let tapes = admin::copied(state, identity)?;
    let into = match &command {
        Sessions::Export { output: Some(file), .. } => {
            // What was recorded is nobody else's.
            let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
            Some(opened.map_err(|e| Fault::error(format!("{}: {e}", file.display())))?)
        }
        _ => None,
    };
    let shows = out.shows && into.is_none();
    let plays = matches!(command, Sessions::Play { .. });
    let keyboard = if plays && shows { Keyboard::take() } else { None };
    let out = Streams { shows, into, keyboard, ..out };
    out.with(async move |out| admin::offline(tapes, command, out).await)
}

/// Where the answer goes in this process.
#[derive(Default)]
struct Streams {
    json: bool,
    /// The answer is seen at a terminal.
    shows: bool,
    into: Option<File>,
    keyboard: Option<Keyboard>,
}

impl Streams {
    /// Runs `work`, which blocks and counts how far it is, and writes what it found as JSON or in words.
    fn counted<T: Send + 'static>(
        self,
        work: impl FnOnce(&Progress) -> Result<T, Fault> + Send + 'static,
        told: impl FnOnce(T) -> (serde_json::Value, String),
    ) -> Result<u8, Fault> {
        self.with(async move |out| {
            let progress = Progress::default();
            let counts = progress.clone();
            let done = tokio::task::spawn_blocking(move || work(&counts));
            let done = out.meanwhile("working", &progress, done).await;
            let (value, says) = told(done.map_err(error)??);
            out.either(&value, says).await
        })
    }

    /// Runs `work` on an output of this process.
    fn with(self, work: impl AsyncFnOnce(&mut Output) -> Result<(), Fault>) -> Result<u8, Fault> {
        let Self { json, shows, into, keyboard } = self;
        let width = shows.then(|| comfy_table::Table::new().width().unwrap_or(80));
        let (to, from) = mpsc::channel(16);
        let listens =
            keyboard.as_ref().map(|keyboard| admin::Keyboard { keys: typed(), rows: keyboard.rows() });
        let out = Output::new(to, json, width).with_keyboard(listens);
        let mut out = out.with_progress(io::stderr().is_terminal());
        let printing = std::thread::spawn(move || match into {
            Some(mut file) => print(from, &mut file),
            None => print(from, &mut io::stdout().lock()),
        });
        let done = runtime()?.block_on(async move {
            let done = work(&mut out).await;
            // The fault itself is told by whoever called.
            out.progressed().await.and(done)
        });
        let printed = printing.join().unwrap_or(Ok(()));
        drop(keyboard);
        // Who reads no further, as head does, has seen enough.
        match printed {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            printed => printed.map_err(|e| Fault::error(e.to_string()))?,
        }
        done.map(|()| 0)
    }
}

fn print(mut from: mpsc::Receiver<Chunk>, out: &mut impl Write) -> io::Result<()> {
    let mut err = io::stderr().lock();
    while let Some(chunk) = from.blocking_recv() {
        match chunk {
            Chunk::Out(bytes) => out.write_all(&bytes).and_then(|()| out.flush())?,
            Chunk::Err(bytes) => err.write_all(&bytes)?,
        }
    }
    Ok(())
}

/// What is typed here. The thread ends with the process.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (to, keys) = mpsc::channel(32);
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = io::stdin().lock().read(&mut bytes) {
            if to.blocking_send(bytes.get(..length).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    keys
}
