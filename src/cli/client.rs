//! The client of the daemon's socket: reads and writes the files that are named on this side.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use keystore::ssh::{HashAlg, PublicKey};

use super::keyboard::Keyboard;
use crate::admin::{
    Access, Ca, Chunk, Command, Encryption, Fault, Instances, Logs, Reply, Request, Sessions, SshKeys, Users,
    Which, read_reply,
};

/// How a command was typed.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) json: bool,
    pub(super) yes: bool,
}

/// Asks the daemon and returns its exit code.
pub(super) fn ask(socket: &Path, mut command: Command, Wanted { json, yes }: Wanted) -> Result<u8, Fault> {
    confirm(&mut command, yes, json)?;
    read_files(&mut command)?;
    let new = matches!(command, Command::Sessions(Sessions::Bundle { .. }));
    let output = take_output(&mut command);
    if let Some(path) = output.as_ref().filter(|path| new && path.exists()) {
        return Err(Fault::conflict(format!("{} is there already, and is not overwritten", path.display())));
    }
    let width = if output.is_none() && io::stdout().is_terminal() {
        Some(comfy_table::Table::new().width().unwrap_or(80))
    } else {
        None
    };
    let gone = |e: io::Error| Fault {
        code: 6,
        says: format!(
            "the daemon does not answer on {}: {e}. Is it running? Start it: keyward serve",
            socket.display()
        ),
    };
    let mut stream = UnixStream::connect(socket).map_err(gone)?;
    let keyboard = keyboard(&command).filter(|_| width.is_some() && !json);
    let rows = keyboard.as_ref().map(Keyboard::rows);
    let progress = io::stderr().is_terminal();
    let request = Request { command, json, width, keyboard: rows, progress };
    let request = request.frame().map_err(|e| Fault::usage(e.to_string()))?;
    stream.write_all(&request).map_err(gone)?;
    if let Some(keyboard) = keyboard {
        return keyboard.attended(&mut stream).map_err(gone);
    }
    match output {
        None => relay(&mut stream, &mut io::stdout().lock()).map_err(gone),
        Some(path) => {
            into_file(&mut stream, &path).map_err(|e| Fault::error(format!("{}: {e}", path.display())))
        }
    }
}

/// Asks whoever sits at the terminal, where a command asks. Without a terminal the daemon says what is missing.
fn confirm(command: &mut Command, said: bool, json: bool) -> Result<(), Fault> {
    let Some((question, yes)) = asks(command) else { return Ok(()) };
    *yes |= said;
    if *yes || json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let failed = |e: io::Error| Fault::error(format!("the terminal: {e}; nothing was changed"));
    io::stderr().write_all(format!("{question} (y/N) ").as_bytes()).map_err(failed)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    *yes = is_yes(&line);
    if *yes { Ok(()) } else { Err(Fault::error("nothing was changed")) }
}

/// What a command asks before it is done, and where the answer goes.
fn asks(command: &mut Command) -> Option<(String, &mut bool)> {
    match command {
        Command::Users(Users::Remove { name, yes }) => {
            Some((format!("Remove {name}, and revoke all their keys for good?"), yes))
        }
        Command::Instances(Instances::Remove { name, yes }) => {
            Some((format!("Remove {name}, with its rules, and end its sessions?"), yes))
        }
        Command::Ca(Ca::Retire { which, yes }) => {
            let which = if *which == Which::User { "user" } else { "host" };
            Some((
                format!("Forget the {which} CA of before? What trusts it alone refuses Keyward then."),
                yes,
            ))
        }
        _ => None,
    }
}

fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// The keyboard, for what listens to one.
fn keyboard(command: &Command) -> Option<Keyboard> {
    matches!(command, Command::Sessions(Sessions::Play { .. } | Sessions::Watch { .. }))
        .then(Keyboard::take)
        .flatten()
}

pub(super) fn relay(stream: &mut UnixStream, out: &mut impl Write) -> io::Result<u8> {
    loop {
        match read_reply(stream)? {
            Reply::Chunk(Chunk::Out(bytes)) => {
                match out.write_all(&bytes).and_then(|()| out.flush()) {
                    // `… | head` has seen enough: that is no fault of the daemon's.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                    written => written?,
                }
            }
            Reply::Chunk(Chunk::Err(bytes)) => io::stderr().write_all(&bytes)?,
            Reply::Exit(code) => return Ok(code),
        }
    }
}

/// The file appears whole or not at all.
fn into_file(stream: &mut UnixStream, path: &Path) -> io::Result<u8> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    let code = relay(stream, &mut file);
    if let Ok(0) = code {
        file.sync_all()?;
        fs::rename(&part, path)?;
    } else {
        fs::remove_file(&part)?;
    }
    code
}

fn take_output(command: &mut Command) -> Option<PathBuf> {
    match command {
        Command::Sessions(Sessions::Export { output, .. } | Sessions::Bundle { output, .. })
        | Command::Access(Access::Export { output })
        | Command::Logs(Logs::Export { output, .. }) => output.take(),
        _ => None,
    }
}

fn read_files(command: &mut Command) -> Result<(), Fault> {
    match command {
        Command::SshKeys(SshKeys::Add { file, file_text, .. } | SshKeys::Rotate { file, file_text, .. }) => {
            *file_text = read(file.as_deref())?
        }
        Command::Instances(Instances::Add(wanted)) => {
            wanted.host_key_text = read(wanted.host_key.as_deref())?;
            wanted.host_ca_text = read(wanted.host_ca.as_deref())?;
            if wanted.scan {
                wanted.host_key_text = Some(scan(&wanted.address)?);
            }
        }
        Command::Encryption(Encryption::Rotate { old_key, new_key }) => {
            // The daemon reads them, from wherever it was started.
            for file in [old_key, new_key] {
                let absolute = std::path::absolute(&*file);
                *file = absolute.map_err(|e| Fault::usage(format!("{}: {e}", file.display())))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn read(path: Option<&Path>) -> Result<Option<String>, Fault> {
    let Some(path) = path else { return Ok(None) };
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(1 << 16).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(1 << 16).read_to_string(&mut text))
    };
    read.map_err(|e| Fault::error(format!("{}: {e}", path.display())))?;
    Ok(Some(text))
}

fn scan(address: &keystore::HostPort) -> Result<String, Fault> {
    let port = address.port.to_string();
    let found = std::process::Command::new("ssh-keyscan").args(["-p", &port, "--", &address.host]).output();
    let found =
        found.map_err(|e| Fault::error(format!("ssh-keyscan: {e}; name the key with --host-key FILE")))?;
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    if text.trim().is_empty() {
        return Err(Fault::error(format!("{address} shows no host key; is its sshd running?")));
    }
    let note = format!(
        "Pinned what the instance showed just now; compare it: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\n{}",
        fingerprints(&text)
    );
    io::stderr().write_all(note.as_bytes()).map_err(|e| Fault::error(e.to_string()))?;
    Ok(text)
}

/// `SHA256:… (ssh-ed25519)`, a line for each key that ssh-keyscan printed.
fn fingerprints(scanned: &str) -> String {
    let keys = scanned.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (_, key) = line.split_once(' ')?;
        PublicKey::from_openssh(key).ok()
    });
    keys.map(|key| format!("  {} ({})\n", key.fingerprint(HashAlg::Sha256), key.algorithm())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(is_yes("y\n") && is_yes("Yes\n"));
        assert!(!is_yes("\n") && !is_yes("") && !is_yes("no\n") && !is_yes("yo\n"));
    }

    #[test]
    fn what_was_scanned_is_shown_as_fingerprints() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let told = fingerprints(&format!("# db-1:22 SSH-2.0\ndb-1 {key}\n"));
        assert!(told.starts_with("  SHA256:") && told.ends_with(" (ssh-ed25519)\n"), "{told}");
        assert_eq!(told.lines().count(), 1);
    }
}
