//! Another configuration for a daemon that runs: what of it counts at once, and what waits for the next start.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Config;

/// What a running daemon goes on with after its file was read again.
#[derive(Debug)]
pub struct Renewal {
    /// The new settings, but the old ones where they are bound to the start.
    pub config: Config,
    /// The keys that now say something else and count from now on: `mfa.remember`.
    pub changed: Vec<String>,
    /// The keys that now say something else and count only after a restart.
    pub at_start: Vec<String>,
}

impl Config {
    /// What a daemon that runs with `self` makes of `newer`.
    pub fn renewed(&self, newer: Self) -> Renewal {
        let bound = [
            ("listen", self.listen != newer.listen),
            ("state_dir", self.state_dir != newer.state_dir),
            ("socket", self.socket != newer.socket),
            ("master_key", self.master_key != newer.master_key),
            ("console.listen", self.console.listen != newer.console.listen),
            ("audit.head_file", self.audit.head_file != newer.audit.head_file),
            ("audit.reserve_mb", self.audit.reserve_mb != newer.audit.reserve_mb),
            ("audit.syslog.address", self.audit.syslog != newer.audit.syslog),
            ("audit.webhook.url", hook(self).map(|h| &h.url) != hook(&newer).map(|h| &h.url)),
            ("audit.webhook.secret", hook(self).map(|h| &h.secret) != hook(&newer).map(|h| &h.secret)),
            ("audit.webhook.ca_file", hook(self).map(|h| &h.ca_file) != hook(&newer).map(|h| &h.ca_file)),
        ];
        let (before, after) = (flat(&self.said), flat(&newer.said));
        let mut changed: Vec<String> = before
            .iter()
            .filter(|(key, value)| after.get(*key) != Some(value))
            .chain(after.iter().filter(|(key, _)| !before.contains_key(*key)))
            .map(|(key, _)| key.clone())
            .filter(|key| bound.iter().all(|(name, _)| name != key))
            .collect();
        changed.sort_unstable();
        let at_start = bound.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned());
        let mut config = Self {
            listen: self.listen,
            state_dir: self.state_dir.clone(),
            socket: self.socket.clone(),
            master_key: self.master_key.clone(),
            ..newer
        };
        config.audit.head_file.clone_from(&self.audit.head_file);
        config.audit.reserve_mb = self.audit.reserve_mb;
        config.audit.syslog.clone_from(&self.audit.syslog);
        config.audit.webhook.clone_from(&self.audit.webhook);
        config.console.listen = self.console.listen;
        Renewal { config, changed, at_start: at_start.collect() }
    }
}

fn hook(config: &Config) -> Option<&super::evidence::Webhook> {
    config.audit.webhook.as_ref()
}

/// Every key with its tables: `login.key_secs`.
fn flat(table: &Table) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            value => drop(found.insert(key.clone(), value.clone())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Config {
        Config::parse(Path::new("/x/k.toml"), text).unwrap()
    }

    #[test]
    fn what_can_change_while_serving_does_and_what_is_bound_to_the_start_stays() {
        let old = parse("listen = \"127.0.0.1:1\"\ndrain_secs = 5\n[mfa]\nremember = \"8h\"\n");
        let new = "listen = \"127.0.0.1:2\"\nstate_dir = \"s\"\n[keys]\nmax_age = \"5d\"\n[audit]\nreserve_mb = 1\n";
        let renewal = old.renewed(parse(new));
        assert_eq!(renewal.changed, ["drain_secs", "keys.max_age", "mfa.remember"]);
        assert_eq!(renewal.at_start, ["listen", "state_dir", "audit.reserve_mb"]);
        let now = renewal.config;
        assert_eq!((now.listen, now.state_dir.as_path()), (old.listen, old.state_dir.as_path()));
        assert_eq!((now.audit.reserve_mb, now.drain_secs, now.mfa.remember), (16, 20, None));
        assert_eq!(now.keys.base.max_age, 5 * 86_400);
        // Read once more it is told once more: the running daemon still has the old one.
        assert_eq!(now.renewed(parse(new)).at_start, ["listen", "state_dir", "audit.reserve_mb"]);
    }

    #[test]
    fn the_same_file_changes_nothing() {
        let text = "listen = \"127.0.0.1:1\"\nmaster_key = \"env:K\"\n[audit]\nhead_file = \"/h\"\n";
        let renewal = parse(text).renewed(parse(text));
        assert!(renewal.changed.is_empty() && renewal.at_start.is_empty());
    }
}
