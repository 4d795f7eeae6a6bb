//! What a configuration names, looked at before anything is opened: the same faults, in the same words, for
//! `config check` and for `serve`. Nothing is made, bound or written.

use std::path::Path;

use keystore::seal::{MasterKey, MasterKeySource};

use super::reload;
use crate::config::{Config, ConfigError};
use crate::recording::TapeKeys;

/// Whether every file that `config` names is there and is what it should be.
///
/// # Errors
/// The first fault, with file, line and key.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    master_key(config)
        .and_then(|()| auditors(config))
        .and_then(|()| authorities(config))
        .and_then(|()| config.audit.receivers("").check())
        .and_then(|()| socket(config))
        .map_err(|(key, what)| config.fault(key, what))
}

/// A key of the configuration, and what is wrong with what it names.
type Fault = (&'static str, String);

fn master_key(config: &Config) -> Result<(), Fault> {
    match &config.master_key {
        MasterKeySource::File(_) => {
            MasterKey::load(&config.master_key).map(drop).map_err(|fault| ("master_key", fault.to_string()))
        }
        // Those are the daemon's own, and not there for whoever checks.
        MasterKeySource::Env(_) | MasterKeySource::Credential(_) => Ok(()),
    }
}

fn auditors(config: &Config) -> Result<(), Fault> {
    let terms = &config.recording;
    if let Some(file) = &terms.identity {
        TapeKeys::load(file).map_err(|fault| ("recording.identity", fault.to_string()))?;
    }
    if terms.identity.is_none() || !terms.recipients.is_empty() {
        let sealed = TapeKeys::recipients_only(&terms.recipients);
        sealed.map_err(|fault| ("recording.recipients", fault.to_string()))?;
    }
    Ok(())
}

fn authorities(config: &Config) -> Result<(), Fault> {
    let Err(fault) = reload::user_cas(config) else { return Ok(()) };
    let krl = config.user_ca.as_ref().and_then(|files| files.krl.as_deref());
    let key = if krl == Some(fault.file()) { "user_ca.krl" } else { "user_ca.keys" };
    Err((key, fault.to_string()))
}

fn socket(config: &Config) -> Result<(), Fault> {
    match config.socket.parent().filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(folder) => Err(("socket", no_folder(folder))),
    }
}

fn no_folder(folder: &Path) -> String {
    format!("there is no folder {}; make it, with mode 0700", folder.display())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A new bastion's configuration, and what `check` says of it after `change`.
    async fn said(change: impl FnOnce(&Path) -> String) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = crate::server::init(&dir.path().join("b"), "127.0.0.1:1".parse().unwrap()).await.unwrap();
        let more = change(file.parent().unwrap());
        let mut text = fs::read_to_string(&file).unwrap();
        for line in more.lines().filter(|line| line.starts_with("socket") || line.starts_with("recipients")) {
            let name = line.split(' ').next().unwrap();
            text = text.lines().filter(|l| !l.starts_with(name)).map(|l| format!("{l}\n")).collect();
            text = if name == "socket" { format!("{line}\n{text}") } else { format!("{text}{line}\n") };
        }
        let more: String = more
            .lines()
            .filter(|line| !line.starts_with("socket") && !line.starts_with("recipients"))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(&file, text + &more).unwrap();
        let said = check(&Config::load(&file).unwrap()).err().map(|e| e.to_string()).unwrap_or_default();
        said.replace(&file.display().to_string(), "FILE")
    }

    fn at_fault(said: &str, key: &str, words: &str) {
        let named = said.strip_prefix("FILE:").and_then(|rest| rest.split_once(": "));
        let (line, rest) = named.unwrap_or_else(|| panic!("{said}"));
        assert!(line.parse::<u32>().is_ok_and(|line| line >= 1), "{said}");
        assert!(rest.starts_with(&format!("{key}: ")) && rest.contains(words), "{said}");
    }

    #[tokio::test]
    async fn what_init_made_is_whole_and_what_was_taken_away_or_changed_since_is_named() {
        assert_eq!(said(|_| String::new()).await, "");
        let without = said(|dir| {
            fs::remove_file(dir.join("master.key")).unwrap();
            String::new()
        });
        at_fault(&without.await, "master_key", "the master key is not in");
        let open = said(|dir| {
            fs::set_permissions(dir.join("master.key"), fs::Permissions::from_mode(0o644)).unwrap();
            String::new()
        });
        at_fault(&open.await, "master_key", "chmod 600");
        for text in [None, Some("hello\n")] {
            let identity = said(|dir| {
                let file = dir.join("auditors.key");
                text.map_or_else(|| fs::remove_file(&file), |text| fs::write(&file, text)).unwrap();
                String::new()
            });
            at_fault(&identity.await, "recording.identity", "auditors.key");
        }
    }

    #[tokio::test]
    async fn a_value_that_is_none_is_named_with_its_key() {
        let recipients = said(|_| "recipients = [\"age1nobody\"]\n".to_owned());
        at_fault(&recipients.await, "recording.recipients", "is no age recipient");
        let socket = said(|_| "socket = \"nowhere/keyward.sock\"\n".to_owned());
        at_fault(&socket.await, "socket", "there is no folder");
        let webhook = "[audit.webhook]\nurl = \"https://siem.example/in\"\nsecret = \"hook\"\n".to_owned();
        at_fault(&said(|_| webhook).await, "audit.webhook.secret", "hook: ");
        let authorities = "[user_ca]\nkeys = \"ca.pub\"\n".to_owned();
        at_fault(&said(|_| authorities.clone()).await, "user_ca.keys", "ca.pub: ");
        let none = said(|dir| {
            fs::write(dir.join("ca.pub"), "hello\n").unwrap();
            authorities
        });
        at_fault(&none.await, "user_ca.keys", "no public key");
    }

    #[tokio::test]
    async fn a_secret_in_the_wrong_place_is_not_shown() {
        let identity = "AGE-SECRET-KEY-1QQPQYP";
        let recipients = said(|_| format!("recipients = [\"{identity}\"]\n")).await;
        let authorities = said(|dir| {
            fs::write(dir.join("ca.pub"), identity).unwrap();
            "[user_ca]\nkeys = \"ca.pub\"\n".to_owned()
        });
        for said in [recipients, authorities.await] {
            assert!(said.contains("private key") && !said.contains("QQPQYP"), "{said}");
        }
    }
}
