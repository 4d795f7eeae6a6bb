//! What a key, or all keys of a user, touched lately: printed when one is withdrawn, so that the next question is answered.
//!
//! Read from the tapes' summaries and the trail, after the withdrawal: the cut never waits for the reading.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use keystore::UserName;
use serde::Serialize;
use serde_json::Value;

use super::Fault;
use super::render::{plain, short_time, table};
use crate::audit::{Event, Filter};
use crate::recording::{SessionStatus, Summary};
use crate::session::House;

/// Whose traces.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    /// The key with this fingerprint.
    Key(String),
    /// Every key of the user.
    User(UserName),
}

/// The traces.
#[derive(Debug, Serialize)]
pub(super) struct Touched {
    since: Timestamp,
    logins: u64,
    last_login: Option<String>,
    sources: BTreeSet<String>,
    destinations: BTreeSet<String>,
    files_read: BTreeMap<String, BTreeSet<String>>,
    files_written: BTreeMap<String, BTreeSet<String>>,
    sessions: Vec<Summary>,
}

/// What `whose` touched in the 90 days before `now`.
pub(super) async fn touched(house: &House, whose: Whose, now: Timestamp) -> Result<Touched, Fault> {
    let (tapes, trail) = (Arc::clone(&house.tapes), Arc::clone(&house.trail));
    let since = Timestamp::from_second(now.as_second() - DAYS * 86_400).unwrap_or(Timestamp::UNIX_EPOCH);
    let read = tokio::task::spawn_blocking(move || {
        let sessions = tapes.list().map_err(|e| e.to_string())?;
        let filter = Filter { since: Some(since), until: None, event: None };
        let events = trail.query(&filter).map_err(|e| e.to_string())?;
        Ok::<_, String>((sessions, events))
    });
    let read = read.await.map_err(|e| Fault::error(e.to_string()))?;
    let (mut sessions, events) = read.map_err(|why| {
        Fault::error(format!("it was withdrawn, but what it touched cannot be read: {why}"))
    })?;
    sessions.retain(|s| {
        let theirs = match &whose {
            Whose::Key(key) => s.header.key == *key,
            Whose::User(user) => s.header.user == user.as_str(),
        };
        theirs && (s.status == SessionStatus::Live || s.ended_at.is_none_or(|end| end >= since))
    });
    let destinations = sessions.iter().map(|s| format!("{}@{}", s.header.login, s.header.instance)).collect();
    let mut found = Touched {
        since,
        logins: 0,
        last_login: None,
        sources: sessions.iter().map(|s| s.header.source_ip.clone()).collect(),
        destinations,
        files_read: BTreeMap::new(),
        files_written: BTreeMap::new(),
        sessions,
    };
    let ids: BTreeSet<String> = found.sessions.iter().map(|s| s.header.id.clone()).collect();
    for event in events {
        found.count(&whose, &ids, event);
    }
    Ok(found)
}

impl Touched {
    fn count(&mut self, whose: &Whose, sessions: &BTreeSet<String>, event: Value) {
        let time = event.get("time").and_then(Value::as_str).map(str::to_owned);
        match serde_json::from_value(event) {
            Ok(Event::SshLoginSucceeded { user, source_ip, key, .. }) => {
                let theirs = match whose {
                    Whose::Key(wanted) => key == *wanted,
                    Whose::User(wanted) => user == wanted.as_str(),
                };
                if theirs {
                    self.logins += 1;
                    self.sources.insert(source_ip);
                    self.last_login = time;
                }
            }
            Ok(Event::FileRead { file, .. }) if sessions.contains(&file.session) => {
                let read = self.files_read.entry(file.instance.clone()).or_default();
                read.extend(file.paths().map(str::to_owned));
            }
            Ok(Event::FileWritten { file, .. }) if sessions.contains(&file.session) => {
                let written = self.files_written.entry(file.instance.clone()).or_default();
                written.extend(file.paths().map(str::to_owned));
            }
            Ok(Event::FileChanged { file, deed, to }) if sessions.contains(&file.session) => {
                let written = self.files_written.entry(file.instance.clone()).or_default();
                written.extend(file.paths().map(str::to_owned).chain(to.filter(|_| deed == "renamed")));
            }
            // Other events, also those of a later version, are not about this.
            _ => {}
        }
    }

    /// As people read it.
    pub(super) fn told(&self, width: Option<u16>) -> String {
        if self.logins == 0 && self.sessions.is_empty() {
            return format!("In the last {DAYS} days it touched nothing: no login, no session.");
        }
        let all = |names: &BTreeSet<String>| plain(&names.iter().cloned().collect::<Vec<_>>().join(", "));
        let last = self
            .last_login
            .as_deref()
            .and_then(|t| t.parse().ok())
            .map_or_else(String::new, |t| format!(", the last at {}", short_time(t)));
        let mut text = format!(
            "In the last {DAYS} days it touched:\n  logins     {} from {}{last}\n  instances  {}\n",
            self.logins,
            all(&self.sources),
            if self.destinations.is_empty() { "none".to_owned() } else { all(&self.destinations) },
        );
        for (what, files) in [("read", &self.files_read), ("written", &self.files_written)] {
            for (instance, paths) in files {
                text.push_str(&format!("  {what:<10} on {}: {}\n", plain(instance), all(paths)));
            }
        }
        if self.sessions.is_empty() {
            return text;
        }
        let rows = self.sessions.iter().map(|s| {
            let did = s.channels.iter().map(|c| match &c.command {
                Some(command) => format!("{}: {command}", c.kind),
                None => c.kind.clone(),
            });
            vec![
                s.header.id.clone(),
                format!("{}@{}", s.header.login, s.header.instance),
                s.header.source_ip.clone(),
                short_time(s.header.started_at),
                did.collect::<Vec<_>>().join("; "),
            ]
        });
        let shown = table(&["SESSION", "TO", "FROM", "STARTED", "DID"], rows, width);
        format!("{text}\n{shown}\nReplay one: keyward sessions play SESSION")
    }
}

const DAYS: i64 = 90;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_never_commands_the_terminal() {
        let files = BTreeMap::from([(
            "db-1".to_owned(),
            BTreeSet::from(["/tmp/a\u{1b}]52;c;eA==\u{7}".to_owned(), "/tmp/\u{9b}2J".to_owned()]),
        )]);
        let touched = Touched {
            since: Timestamp::UNIX_EPOCH,
            logins: 1,
            last_login: None,
            sources: BTreeSet::new(),
            destinations: BTreeSet::new(),
            files_read: BTreeMap::new(),
            files_written: files,
            sessions: Vec::new(),
        };
        let told = touched.told(None);
        assert!(told.contains("/tmp/a\\u{1b}]52") && told.contains("/tmp/\\u{9b}2J"), "{told}");
        assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told}");
    }
}
