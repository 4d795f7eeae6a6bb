//! Raw file to validated config.
//!
//! Owns `keyward.toml`: every fault is named with file, line and key, and nothing starts on a faulty file. Paths are
//! relative to the file. It never reads secrets; it only says where they lie.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use keystore::seal::MasterKeySource;
use serde::Deserialize;

mod lives;

pub use lives::Mfa;

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
    /// Whom tapes are sealed to, and how much they keep.
    pub recording: Recording,
    /// How long keys live, and when their owners are warned.
    pub keys: keystore::lifecycle::Terms,
    /// What is remembered of second factors.
    pub mfa: Mfa,
    /// How the audit trail is kept.
    pub audit: Audit,
    /// Seconds a drain waits for live sessions.
    pub drain_secs: u64,
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
        let master_key = match source.master_key(&raw)? {
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
            recording: raw.recording.resolved(&base),
            keys: raw.keys.terms(raw.key_max_age_days),
            mfa: raw.mfa.into(),
            audit: Audit { head_file: raw.audit.head_file.map(|file| base.join(file)), ..raw.audit },
            drain_secs: raw.drain_secs,
            path: absolute,
        })
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

/// How the terminated inner connection signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum InnerAuth {
    /// By a signature of the same user's active key.
    #[default]
    Key,
    /// Not at all: the outer channel is trusted.
    None,
}

/// How long a peer may take to log in, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginDeadlines {
    /// From the first byte to a proven key.
    pub key_secs: u64,
    /// From the first byte to the completed login.
    pub login_secs: u64,
}

impl Default for LoginDeadlines {
    fn default() -> Self {
        Self { key_secs: 30, login_secs: 120 }
    }
}

/// How many peers are borne at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Unauthenticated connections in all.
    pub max_startups: usize,
    /// Unauthenticated connections from one source address.
    pub per_source: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_startups: 100, per_source: 20 }
    }
}

/// How sessions are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    /// The auditors' age identity, if this machine may read tapes. Default: `auditors.key`, unless there are recipients.
    pub identity: Option<PathBuf>,
    /// Further age X25519 recipients (`age1…`) of new tapes.
    pub recipients: Vec<String>,
    /// Bytes kept of a channel without a terminal.
    pub capture_limit_bytes: u64,
    /// What happens to a session whose tape can no longer be written: `strict` ends it, `best_effort` lets it go on.
    pub mode: Mode,
    /// Whether a user is told that her session is being watched.
    pub tell_watched: bool,
}

/// What happens to a session whose tape can no longer be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It ends.
    #[default]
    Strict,
    /// It goes on, and the ledger says what is lost.
    BestEffort,
}

/// How the audit trail is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The chain is signed after so many events, and every hour in which there were any.
    pub checkpoint_events: u64,
    /// Each signed head is also appended here: a file on another disk, where whoever rewrites this one does not look.
    pub head_file: Option<PathBuf>,
    /// Megabytes set aside so that the trail can go on when the disk is full.
    pub reserve_mb: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { checkpoint_events: 1000, head_file: None, reserve_mb: 16 }
    }
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            identity: None,
            recipients: Vec::new(),
            capture_limit_bytes: 16 << 20,
            mode: Mode::Strict,
            tell_watched: true,
        }
    }
}

impl Recording {
    fn resolved(self, base: &Path) -> Self {
        // Without a word about it, the identity is where `init` puts it. With recipients alone it is elsewhere.
        let default = self.recipients.is_empty().then(|| PathBuf::from("auditors.key"));
        Self { identity: self.identity.or(default).map(|file| base.join(file)), ..self }
    }
}

/// What is wrong with the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{file}: cannot be read: {why}. Name the file with --config or $KEYWARD_CONFIG, or make one: keyward init --dir DIR", file = file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A line says what it must not.
    #[error("{file}:{line}: {key}: {what}", file = file.display())]
    Fault {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Which key, with its table: `login.key_secs`.
        key: String,
        /// What is wrong and what would be right.
        what: String,
    },
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
    recording: Recording,
    /// As `keys.max_age`, in days: from before there was a table for keys.
    key_max_age_days: Option<u32>,
    #[serde(default)]
    keys: lives::Keys,
    #[serde(default)]
    mfa: lives::RawMfa,
    #[serde(default)]
    audit: Audit,
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
        within("key_max_age_days", self.key_max_age_days.unwrap_or(1).into(), 1..=3650)?;
        self.keys.check(self.key_max_age_days).map_err(|(key, what)| source.fault(key, what))?;
        self.mfa.check().map_err(|(key, what)| source.fault(key, what))?;
        within("audit.checkpoint_events", self.audit.checkpoint_events, 1..=1_000_000)?;
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

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn master_key(&self, raw: &Raw) -> Result<MasterKeySource, ConfigError> {
        match raw.master_key.split_once(':') {
            Some(("file", rest)) if !rest.is_empty() => Ok(MasterKeySource::File(rest.into())),
            Some(("env", rest)) if !rest.is_empty() => Ok(MasterKeySource::Env(rest.to_owned())),
            Some(("credential", rest)) if !rest.is_empty() => {
                Ok(MasterKeySource::Credential(rest.to_owned()))
            }
            _ => Err(self.fault(
                "master_key",
                format!("{:?} names no source; use file:PATH, env:NAME or credential:NAME", raw.master_key),
            )),
        }
    }

    fn fault(&self, key: &str, what: String) -> ConfigError {
        let line = line_of_key(self.text, key).unwrap_or(1);
        ConfigError::Fault { file: self.path.to_owned(), line, key: key.to_owned(), what }
    }
}

fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let (line, mut key) = position(text, &span);
    let mut what = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
    if let Some((wrong, known)) = unknown_field(&what) {
        let nearest = known
            .iter()
            .copied()
            .max_by(|a, b| strsim::jaro_winkler(wrong, a).total_cmp(&strsim::jaro_winkler(wrong, b)));
        key = wrong.to_owned();
        what = match nearest.filter(|n| strsim::jaro_winkler(wrong, n) > 0.7) {
            Some(nearest) => format!("unknown key; did you mean {nearest}?"),
            None => format!("unknown key; known here: {}", known.join(", ")),
        };
    } else if let Some(missing) = what.strip_prefix("missing field ") {
        key = missing.trim_matches('`').to_owned();
        what = "is missing".to_owned();
    }
    ConfigError::Fault { file: path.to_owned(), line, key, what }
}

fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    message.strip_prefix("unknown field `")?;
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    Some((wrong, names.collect()))
}

/// The line (from 1) and the key that stands on it, with its table.
fn position(text: &str, span: &Range<usize>) -> (usize, String) {
    let line = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
    let mut table = String::new();
    let mut key = String::new();
    for content in text.lines().take(line) {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|c| c.strip_suffix(']')) {
            table = format!("{}.", name.trim());
            key = name.trim().to_owned();
        } else if let Some((name, _)) = content.split_once('=') {
            key = format!("{table}{}", name.trim());
        }
    }
    (line, if key.is_empty() { "(file)".to_owned() } else { key })
}

fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let mut table = String::new();
    for (index, content) in text.lines().enumerate() {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|c| c.strip_suffix(']')) {
            table = format!("{}.", name.trim());
        } else if let Some((name, _)) = content.split_once('=')
            && format!("{table}{}", name.trim()) == key
        {
            return Some(index + 1);
        }
    }
    None
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
