//! The webhook: a POST of a JSON array of events, signed with HMAC-SHA-256 under a shared secret.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider};
use zeroize::Zeroizing;

use super::{Parcel, Receiver};

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookTerms {
    /// `https://…`; `http://` to this machine alone.
    pub url: String,
    /// The file with the shared secret.
    pub secret: PathBuf,
    /// The authorities that its certificate may come from, in PEM; none: those of the web.
    pub ca_file: Option<PathBuf>,
}

pub(super) struct Webhook {
    url: String,
    secret: Zeroizing<Vec<u8>>,
    agent: ureq::Agent,
}

impl Webhook {
    pub(super) fn new(terms: WebhookTerms) -> Result<Self, String> {
        let read = |file: &PathBuf| std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()));
        let secret = Zeroizing::new(read(&terms.secret)?);
        let secret = Zeroizing::new(secret.trim_ascii().to_vec());
        if secret.len() < SHORTEST {
            return Err(format!(
                "{}: a secret of at least {SHORTEST} bytes is needed",
                terms.secret.display()
            ));
        }
        let roots = match &terms.ca_file {
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = read(file)?;
                let found = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                });
                let found: Vec<_> = found.collect();
                if found.is_empty() {
                    return Err(format!("{}: no certificate in it", file.display()));
                }
                RootCerts::new_with_certs(&found)
            }
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(roots);
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .timeout_global(Some(PATIENCE))
            // A redirect would send the events where nobody configured them to go.
            .max_redirects(0)
            .proxy(None)
            .http_status_as_error(false)
            .user_agent(concat!("keyward/", env!("CARGO_PKG_VERSION")));
        Ok(Self { url: terms.url, secret, agent: config.build().into() })
    }
}

impl Receiver for Webhook {
    fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), String> {
        let events: Vec<&str> = parcels.iter().map(|parcel| parcel.json.as_str()).collect();
        let body = format!("[{}]", events.join(",\n"));
        let at = Timestamp::now().as_second();
        let signature = signature(&self.secret, at, body.as_bytes()).ok_or("the secret cannot be used")?;
        let (first, last) = (parcels.first().map_or(0, |p| p.seq), parcels.last().map_or(0, |p| p.seq));
        let request = self
            .agent
            .post(&self.url)
            .header("Content-Type", "application/json")
            .header("Keyward-Signature", format!("t={at},v1={signature}"))
            .header("Keyward-Sequence", format!("{first}-{last}"));
        let response = request.send(body.as_bytes()).map_err(|e| e.to_string())?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
    }

    fn most(&self) -> usize {
        500
    }
}

/// Hex, over the time and the body: what was taken down cannot be sent again later.
pub(super) fn signature(secret: &[u8], at: i64, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    Some(data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

const PATIENCE: Duration = Duration::from_secs(20);
const SHORTEST: usize = 16;
