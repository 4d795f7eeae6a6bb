//! `[console]`: how auditors' browsers reach the web console.

use std::net::SocketAddr;

use serde::Deserialize;

use super::lives::Span;

/// The web console. Auditors reach it through their own SSH connection; a port is opened only if one is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// It is served at all.
    pub enabled: bool,
    /// A port for browsers on this machine, or for a TLS proxy.
    pub listen: Option<SocketAddr>,
    /// The address under which browsers reach it through a TLS proxy: `https://NAME[:PORT]`, without a path.
    pub url: Option<String>,
    /// Seconds without a request after which a browser is signed out.
    pub idle: i64,
    /// Seconds after which it is signed out in any case.
    pub life: i64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConsole {
    enabled: Option<bool>,
    listen: Option<SocketAddr>,
    url: Option<String>,
    idle: Option<Span>,
    life: Option<Span>,
}

impl RawConsole {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(url) = &self.url
            && !is_origin(url)
        {
            let what = format!(
                "{url:?} is not the address of a TLS proxy; use for example \"https://audit.example.com\""
            );
            return Err(("console.url", what));
        }
        if let Some(listen) = self.listen
            && !listen.ip().is_loopback()
            && self.url.is_none()
        {
            let what = format!(
                "{listen} can be reached from elsewhere, and the console speaks no TLS; use 127.0.0.1, or put a TLS proxy \
                 before it and name its address: console.url = \"https://…\""
            );
            return Err(("console.listen", what));
        }
        let spans = [
            ("console.idle", self.idle, 60, 86_400, "60s to 24h"),
            ("console.life", self.life, 300, 604_800, "5m to 7d"),
        ];
        for (key, span, least, most, allowed) in spans {
            if span.is_some_and(|span| !(least..=most).contains(&span.0)) {
                return Err((key, format!("is out of range; use {allowed}")));
            }
        }
        Ok(())
    }
}

impl From<RawConsole> for Console {
    fn from(raw: RawConsole) -> Self {
        Self {
            enabled: raw.enabled.unwrap_or(true),
            listen: raw.listen,
            url: raw.url,
            idle: raw.idle.map_or(IDLE, |span| span.0),
            life: raw.life.map_or(LIFE, |span| span.0),
        }
    }
}

/// `https://` and a name with an optional port.
fn is_origin(url: &str) -> bool {
    let Some(host) = url.strip_prefix("https://") else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    !host.is_empty() && host.chars().all(plain)
}

const IDLE: i64 = 15 * 60;
const LIFE: i64 = 8 * 3600;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    fn parse(text: &str) -> Result<super::Console, String> {
        let text = format!("listen = \"127.0.0.1:1\"\n{text}");
        Config::parse(Path::new("/x/k.toml"), &text).map(|c| c.console).map_err(|e| e.to_string())
    }

    #[test]
    fn it_opens_no_port_unless_told() {
        let console = parse("").unwrap();
        assert!(console.enabled && console.listen.is_none());
        assert!(!parse("[console]\nenabled = false\n").unwrap().enabled);
        assert!(parse("[console]\nlisten = \"127.0.0.1:8022\"\n").unwrap().listen.is_some());
        assert!(parse("[console]\nlisten = \"[::1]:8022\"\n").is_ok());
    }

    #[test]
    fn a_port_for_others_needs_a_tls_proxy_in_words() {
        let said = parse("[console]\nlisten = \"0.0.0.0:8022\"\n").unwrap_err();
        assert!(said.starts_with("/x/k.toml:3: console.listen: 0.0.0.0:8022 can be reached from elsewhere"));
        let url = |url: &str| parse(&format!("[console]\nlisten = \"0.0.0.0:8022\"\nurl = \"{url}\"\n"));
        assert!(url("https://audit.example.com").is_ok() && url("https://audit.example.com:8443").is_ok());
        for wrong in ["http://audit.example.com", "https://", "https://a/b", "https://a@b", "audit"] {
            assert!(url(wrong).unwrap_err().contains(":4: console.url: "), "{wrong}");
        }
    }

    #[test]
    fn a_life_out_of_range_is_refused() {
        assert!(parse("[console]\nidle = \"5s\"\n").unwrap_err().contains("console.idle: is out of range"));
        assert!(parse("[console]\nlife = \"30d\"\n").unwrap_err().contains("console.life"));
        assert_eq!(parse("[console]\nidle = \"5m\"\n").unwrap().idle, 300);
    }
}
