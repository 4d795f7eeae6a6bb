//! Reading recordings from a copy of the files: the daemon's own reading, in this process.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::sync::mpsc;

use super::keyboard::Keyboard;
use crate::admin::{self, Chunk, Fault, FromCopy, Output, Sessions};

/// The copy that `command` reads, if it names one.
pub(super) fn copy_of(command: &Sessions) -> Option<&FromCopy> {
    match command {
        Sessions::Play { copy, .. }
        | Sessions::Transcript { copy, .. }
        | Sessions::Export { copy, .. }
        | Sessions::Search { copy, .. } => copy.state.is_some().then_some(copy),
        _ => None,
    }
}

/// Carries `command` out on the copy in `state`.
pub(super) fn read(state: &Path, copy: &FromCopy, command: Sessions, json: bool) -> Result<u8, Fault> {
    let identity = copy
        .identity
        .as_deref()
        .ok_or_else(|| Fault::usage("name the auditors' identity: --identity FILE"))?;
    let tapes = admin::copied(state, identity)?;
    let shows = io::IsTerminal::is_terminal(&io::stdout());
    let width = (shows && !matches!(command, Sessions::Export { .. }))
        .then(|| comfy_table::Table::new().width().unwrap_or(80));
    let plays = matches!(command, Sessions::Play { .. });
    let keyboard = if plays && width.is_some() { Keyboard::take() } else { None };
    let (to, from) = mpsc::channel(16);
    let listens = keyboard.as_ref().map(|keyboard| admin::Keyboard { keys: typed(), rows: keyboard.rows() });
    let mut out = Output::new(to, json, width).with_keyboard(listens);
    let into = match &command {
        Sessions::Export { output: Some(file), .. } => {
            // What was recorded is nobody else's.
            let opened =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
            Some(opened.map_err(|e| Fault::error(format!("{}: {e}", file.display())))?)
        }
        _ => None,
    };
    let printing = std::thread::spawn(move || match into {
        Some(mut file) => print(from, &mut file),
        None => print(from, &mut io::stdout().lock()),
    });
    let done = super::runtime()?.block_on(async move { admin::offline(tapes, command, &mut out).await });
    let printed = printing.join().unwrap_or(Ok(()));
    drop(keyboard);
    // Who reads no further, as head does, has seen enough.
    match printed {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
        printed => printed.map_err(|e| Fault::error(e.to_string()))?,
    }
    done.map(|()| 0)
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
