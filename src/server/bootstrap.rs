//! `keyward init`: a new house in an empty directory. The configuration file is written last, so a half-made house is
//! never served, and nothing that exists is ever made anew.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keystore::Vault;
use keystore::seal::MasterKey;
use keystore::signing::Signers;

use crate::recording::TapeKeys;

/// Why there is no new house.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already, or a part of one.
    #[error(
        "{0} exists already: this directory is initialised, and nothing was changed. Serve it, or choose another --dir"
    )]
    Initialised(PathBuf),
    /// A file or the store could not be made.
    #[error("{0}")]
    Failed(String),
}

fn failed(error: impl std::fmt::Display) -> InitError {
    InitError::Failed(error.to_string())
}

/// Makes a house in `dir` and returns the path of its configuration file.
///
/// # Errors
/// [`InitError::Initialised`] if any part of one lies there.
pub async fn init(dir: &Path, listen: SocketAddr) -> Result<PathBuf, InitError> {
    let config = dir.join("keyward.toml");
    let master_file = dir.join("master.key");
    let auditors = dir.join("auditors.key");
    let state = dir.join("state");
    for part in [&config, &master_file, &auditors, &state] {
        if part.symlink_metadata().is_ok() {
            return Err(InitError::Initialised(part.clone()));
        }
    }
    for part in [dir, &state] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(part).map_err(failed)?;
    }
    let master = MasterKey::generate().map_err(failed)?;
    master.write_new(&master_file).map_err(failed)?;
    let vault = Vault::create(&state.join("store"), master).map_err(failed)?;
    vault.initialise().await.map_err(failed)?;
    let signers = Signers::create(&vault).await.map_err(failed)?;
    let authorities = signers.authorities();
    for (name, key) in [
        ("host_key.pub", signers.host.public_key()),
        ("host_ca.pub", authorities.host_ca.public_key()),
        ("user_ca.pub", authorities.user_ca.public_key()),
        ("audit_key.pub", signers.audit.public_key()),
    ] {
        let line = key.to_openssh().map_err(failed)?;
        fs::write(dir.join(name), format!("{}\n", line.trim())).map_err(failed)?;
    }
    TapeKeys::create(&auditors).map_err(failed)?;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&config).map_err(failed)?;
    file.write_all(template(listen).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(config)
}

fn template(listen: SocketAddr) -> String {
    let mut names = vec!["bastion".to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let ip = listen.ip().to_string();
    if !listen.ip().is_unspecified() && !names.contains(&ip) {
        names.push(ip);
    }
    let names = names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    format!(
        "# Keyward. Paths are relative to this file. Check it with: keyward --config FILE config check\n\
         listen = \"{listen}\"\n\
         # How clients name the bastion; the first is used in their configuration.\n\
         names = [{names}]\n\
         state_dir = \"state\"\nsocket = \"keyward.sock\"\n\
         # file:PATH, env:NAME or credential:NAME (systemd)\nmaster_key = \"file:master.key\"\n\
         \n[recording]\n\
         # Who holds this file can read every recording. Better: move it to the auditors' machine, remove this line, and\n\
         # write its \"public key:\" here: recipients = [\"age1...\"]. The bastion then writes what it cannot read.\n\
         identity = \"auditors.key\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_valid_configuration() {
        let text = template("192.0.2.1:22".parse().unwrap());
        let config = crate::config::Config::parse(Path::new("/x/keyward.toml"), &text).unwrap();
        assert!(config.names.contains(&"192.0.2.1".to_owned()));
    }
}
