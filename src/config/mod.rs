//! Raw file to validated config.
//!
//! Owns `keyward.toml`: every fault is named with file, line and key, and nothing starts on a faulty file. Paths are
//! relative to the file. It never reads secrets; it only says where they lie.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keystore::KeyRules;
use keystore::seal::MasterKeySource;
use serde::Deserialize;

mod admission;
mod console;
mod evidence;
mod fault;
mod lives;
mod renewal;
mod transport;

pub use admission::{InnerAuth, Limits, LoginDeadlines, UserCa};
pub use console::Console;
pub use evidence::{Audit, Digest, Forwards, Mode, Recording};
pub use fault::ConfigError;
use fault::{Source, malformed};
pub use lives::{Credentials, Mfa};
pub use renewal::Renewal;
pub use transport::{Crypto, Transport};

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Where SSH is served.
    pub listen: SocketAddr,
    /// The host names and addresses under which clients reach the bastion: principals of its host certificate.
    pub names: Vec<String>,
    /// Everything the daemon writes lies under it.
    pub state_dir: PathBuf,
    /// The administration socket, mode 0600.
    pub socket: PathBuf,
    /// Where the master key comes from.
    pub master_key: MasterKeySource,
    /// How the terminated inner connection signs in.
    pub inner_auth: InnerAuth,
    /// How long a peer may take to log in.
    pub login: LoginDeadlines,
    /// How many unauthenticated peers are borne.
    pub limits: Limits,
    /// What every SSH connection negotiates.
    pub transport: Transport,
    /// Whom tapes are sealed to, and how much they keep.
    pub recording: Recording,
    /// What keys must be, how long they live, and when their owners are warned.
    pub keys: Arc<KeyRules>,
    /// What is remembered of second factors.
    pub mfa: Mfa,
    /// How long the keys live that Keyward itself holds on instances.
    pub credentials: Credentials,
    /// Whose certificates are accepted.
    pub user_ca: Option<UserCa>,
    /// How the audit trail is kept.
    pub audit: Audit,
    /// The auditors' web console.
    pub console: Console,
    /// Seconds a drain waits for live sessions.
    pub drain_secs: u64,
    /// The file as it was read, to tell what another says anew.
    said: toml::Table,
    /// The same as text, to name a line of it.
    text: String,
}

impl Config {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// The first fault, with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { file: path.to_owned(), why: error.to_string() })?;
        Self::parse(path, &text)
    }

    /// Validates `text` as the content of the file at `path`.
    ///
    /// # Errors
    /// The first fault, with file, line and key.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| malformed(path, text, &error))?;
        let source = Source { path, text };
        raw.check(&source)?;
        let absolute = std::path::absolute(path)
            .map_err(|error| ConfigError::Unreadable { file: path.to_owned(), why: error.to_string() })?;
        let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let master_key = match raw.master_key(&source)? {
            MasterKeySource::File(file) => MasterKeySource::File(base.join(file)),
            other => other,
        };
        Ok(Self {
            listen: raw.listen,
            names: raw.names,
            state_dir: base.join(raw.state_dir),
            socket: base.join(raw.socket),
            master_key,
            inner_auth: raw.inner_auth,
            login: raw.login,
            limits: raw.limits,
            transport: raw.transport,
            recording: raw.recording.resolved(&base),
            keys: Arc::new(raw.keys.rules(raw.key_max_age_days)),
            mfa: raw.mfa.into(),
            credentials: raw.credentials.into(),
            user_ca: raw.user_ca.map(|files| files.resolved(&base)),
            audit: raw.audit.resolved(&base),
            console: raw.console.into(),
            drain_secs: raw.drain_secs,
            said: toml::from_str(text).map_err(|error| malformed(path, text, &error))?,
            text: text.to_owned(),
            path: absolute,
        })
    }

    /// What is wrong with what the line of `key` names, as a fault of the file.
    pub fn fault(&self, key: &str, what: String) -> ConfigError {
        Source { path: &self.path, text: &self.text }.fault(key, what)
    }

    /// The bastion as its users name it.
    pub fn bastion(&self) -> &str {
        self.names.first().map_or("bastion", String::as_str)
    }

    /// Where the administration socket is, whatever else the file says: who must lock the bastion down now is not held up
    /// by a line that the next start would refuse.
    ///
    /// # Errors
    /// The first fault, if the file cannot be read or is no TOML.
    pub fn socket_of(path: &Path) -> Result<PathBuf, ConfigError> {
        let fault = match Self::load(path) {
            Ok(config) => return Ok(config.socket),
            Err(fault) => fault,
        };
        let table = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let Some(table) = table else { return Err(fault) };
        let named = table.get("socket").and_then(toml::Value::as_str).map(PathBuf::from);
        let base = std::path::absolute(path).ok().and_then(|file| Some(file.parent()?.to_owned()));
        base.map(|base| base.join(named.unwrap_or_else(default_socket))).ok_or(fault)
    }

    /// Where the store lies.
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir.join("store")
    }

    /// Where the audit journal lies.
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// Where the tapes lie.
    pub fn tapes_dir(&self) -> PathBuf {
        self.state_dir.join("tapes")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: SocketAddr,
    #[serde(default = "default_names")]
    names: Vec<String>,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_master_key")]
    master_key: String,
    #[serde(default)]
    inner_auth: InnerAuth,
    #[serde(default)]
    login: LoginDeadlines,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    transport: Transport,
    #[serde(default)]
    recording: Recording,
    /// As `keys.max_age`, in days: from before there was a table for keys.
    key_max_age_days: Option<u32>,
    #[serde(default)]
    keys: lives::Keys,
    #[serde(default)]
    mfa: lives::RawMfa,
    user_ca: Option<UserCa>,
    #[serde(default)]
    credentials: lives::RawCredentials,
    #[serde(default)]
    audit: Audit,
    #[serde(default)]
    console: console::RawConsole,
    #[serde(default = "default_drain")]
    drain_secs: u64,
}

fn default_names() -> Vec<String> {
    vec!["bastion".to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()]
}
fn default_state_dir() -> PathBuf {
    "state".into()
}
fn default_socket() -> PathBuf {
    "keyward.sock".into()
}
fn default_master_key() -> String {
    "file:master.key".to_owned()
}
fn default_drain() -> u64 {
    20
}

impl Raw {
    fn master_key(&self, source: &Source<'_>) -> Result<MasterKeySource, ConfigError> {
        match self.master_key.split_once(':') {
            Some(("file", rest)) if !rest.is_empty() => Ok(MasterKeySource::File(rest.into())),
            Some(("env", rest)) if !rest.is_empty() => Ok(MasterKeySource::Env(rest.to_owned())),
            Some(("credential", rest)) if !rest.is_empty() => {
                Ok(MasterKeySource::Credential(rest.to_owned()))
            }
            _ => Err(source.fault(
                "master_key",
                format!("{:?} names no source; use file:PATH, env:NAME or credential:NAME", self.master_key),
            )),
        }
    }

    fn check(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let within = |key: &str, value: u64, allowed: std::ops::RangeInclusive<u64>| {
            if allowed.contains(&value) {
                return Ok(());
            }
            let (from, to) = (allowed.start(), allowed.end());
            Err(source.fault(key, format!("{value} is out of range; use {from} to {to}")))
        };
        within("login.key_secs", self.login.key_secs, 5..=600)?;
        within("login.login_secs", self.login.login_secs, 5..=600)?;
        within("limits.max_startups", self.limits.max_startups as u64, 1..=100_000)?;
        within("limits.per_source", self.limits.per_source as u64, 1..=100_000)?;
        within("limits.per_user", self.limits.per_user as u64, 2..=1_000_000)?;
        within("transport.rekey_mb", self.transport.rekey_mb, 1..=65_536)?;
        within("key_max_age_days", self.key_max_age_days.unwrap_or(1).into(), 1..=3650)?;
        self.keys.check(self.key_max_age_days).map_err(|(key, what)| source.fault(&key, what))?;
        self.mfa.check().map_err(|(key, what)| source.fault(key, what))?;
        self.credentials.check().map_err(|(key, what)| source.fault(&key, what))?;
        self.audit.check().map_err(|(key, what)| source.fault(key, what))?;
        self.recording.check().map_err(|(key, what)| source.fault(key, what))?;
        self.console.check().map_err(|(key, what)| source.fault(key, what))?;
        within("audit.checkpoint_events", self.audit.checkpoint_events, 1..=1_000_000)?;
        within("audit.disk_warn_percent", self.audit.disk_warn_percent, 1..=99)?;
        within("audit.reserve_mb", self.audit.reserve_mb, 0..=4096)?;
        within("drain_secs", self.drain_secs, 0..=86_400)?;
        if self.login.login_secs < self.login.key_secs {
            let what = "the login cannot end before the key is due; use at least login.key_secs".to_owned();
            return Err(source.fault("login.login_secs", what));
        }
        if self.names.is_empty() || self.names.iter().any(|n| n.is_empty() || n.contains(char::is_whitespace))
        {
            let what = "list the host names or addresses by which clients reach the bastion".to_owned();
            return Err(source.fault("names", what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Config::parse(Path::new("/x/k.toml"), text).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = Config::parse(Path::new("/x/k.toml"), "listen = \"127.0.0.1:2222\"\n").unwrap();
        assert_eq!(config.state_dir, Path::new("/x/state"));
        assert!(matches!(config.master_key, MasterKeySource::File(f) if f == Path::new("/x/master.key")));
    }

    #[test]
    fn the_socket_is_found_in_a_file_that_has_a_fault_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k.toml");
        let socket_of = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::socket_of(&file).map_err(|fault| fault.to_string())
        };
        assert_eq!(socket_of("listen = \"here\"\nsocket = \"s\"\n").unwrap(), dir.path().join("s"));
        assert_eq!(socket_of("[login]\nkey_secs = 0\n").unwrap(), dir.path().join("keyward.sock"));
        assert!(socket_of("listen = \n").unwrap_err().contains("k.toml:1: "));
        assert!(Config::socket_of(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_bastion_with_recipients_alone_needs_no_identity() {
        let parse = |text: &str| Config::parse(Path::new("/x/k.toml"), text).unwrap().recording.identity;
        assert_eq!(parse("listen = \"127.0.0.1:1\"\n"), Some("/x/auditors.key".into()));
        assert_eq!(parse("listen = \"127.0.0.1:1\"\n[recording]\nrecipients = [\"age1x\"]\n"), None);
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_nearest_word() {
        let said = said("listen = \"127.0.0.1:2222\"\nstate_dri = \"s\"\n");
        assert_eq!(said, "/x/k.toml:2: state_dri: unknown key; did you mean state_dir?");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_table_and_line() {
        let said = said("listen = \"127.0.0.1:2222\"\n[login]\nkey_secs = 0\n");
        assert_eq!(said, "/x/k.toml:3: login.key_secs: 0 is out of range; use 5 to 600");
    }

    #[test]
    fn a_word_for_the_cryptography_that_is_not_known_is_refused() {
        let parse = |text: &str| Config::parse(Path::new("/x/k.toml"), text).unwrap().transport;
        assert_eq!(
            parse("listen = \"127.0.0.1:1\"\n"),
            Transport { crypto: Crypto::Default, rekey_mb: 1024 }
        );
        let strict = "listen = \"127.0.0.1:1\"\n[transport]\ncrypto = \"strict\"\nrekey_mb = 1\n";
        assert_eq!(parse(strict), Transport { crypto: Crypto::Strict, rekey_mb: 1 });
        let said = said("listen = \"127.0.0.1:1\"\n[transport]\ncrypto = \"stirct\"\n");
        assert!(said.starts_with("/x/k.toml:3: transport.crypto: ") && said.contains("strict"), "{said}");
    }

    #[test]
    fn events_go_out_encrypted_or_to_this_machine() {
        let said = |table: &str| said(&format!("listen = \"127.0.0.1:1\"\n[audit.{table}\n"));
        let hook = |url: &str| said(&format!("webhook]\nsecret = \"s\"\nurl = \"{url}\""));
        for good in
            ["https://siem.example/in", "http://127.0.0.1:8088/in", "http://localhost/in", "http://[::1]:1/"]
        {
            assert_eq!(hook(good), "", "{good}");
        }
        for bad in [
            "http://siem.example/in",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.1@evil.example/",
            "ftp://x/",
            "https://",
        ] {
            assert!(hook(bad).contains(":4: audit.webhook.url: "), "{bad}: {}", hook(bad));
        }
        assert!(said("webhook]\nurl = \"https://x/\"").contains("secret"));
        assert!(said("syslog]\naddress = \"log:514\"").contains(":3: audit.syslog.address: "));
        assert_eq!(said("syslog]\naddress = \"udp://log:514\""), "");
        assert!(said("syslog]\naddress = \"tls://log:6514\"").contains("audit.syslog.ca_file: "));
        assert!(
            said("syslog]\nca_file = \"ca.pem\"\naddress = \"tcp://log:601\"")
                .contains("tls://HOST:PORT alone")
        );
        assert_eq!(said("syslog]\naddress = \"tls://log:6514\"\nca_file = \"ca.pem\""), "");
    }

    #[test]
    fn how_long_recordings_are_kept_is_checked_and_not_set_by_default() {
        let parse = |text: &str| {
            Config::parse(Path::new("/x/k.toml"), &format!("listen = \"127.0.0.1:1\"\n[recording]\n{text}\n"))
        };
        assert_eq!(parse("keep = \"365d\"").unwrap().recording.keep, Some(365 * 86_400));
        let unset = parse("").unwrap().recording;
        assert_eq!(
            (unset.keep, unset.watch_approval, unset.owner_may_view, unset.admin_may_view),
            (None, None, false, false)
        );
        for (wrong, said) in [
            ("keep = \"0d\"", "/x/k.toml:3: recording.keep: is out of range"),
            ("keep_other = \"9999d\"", "recording.keep_other"),
            ("keep = \"forever\"", "is not a duration"),
            ("watch_approval = \"2d\"", "recording.watch_approval: is out of range; use 1s to 1d"),
        ] {
            let told = parse(wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(told.contains(said), "{told}");
        }
    }

    #[test]
    fn a_wrong_address_is_named() {
        assert!(said("\nlisten = \"here\"\n").starts_with("/x/k.toml:2: listen: "));
    }

    #[test]
    fn a_missing_key_is_named() {
        assert_eq!(said("state_dir = \"s\"\n"), "/x/k.toml:1: listen: is missing");
    }

    #[test]
    fn an_unknown_master_key_source_is_refused() {
        assert!(said("listen = \"127.0.0.1:1\"\nmaster_key = \"x\"\n").contains(":2: master_key: "));
    }
}
