//! TLS to a syslog server (RFC 5425): whom it is trusted by, and the way to it.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A stream whose other side has proven its name.
pub(super) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Trust in the authorities of `ca_file` (PEM), and in no other.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub(super) fn trusting(ca_file: &Path) -> Result<Arc<ClientConfig>, String> {
    let at_fault = |what: String| format!("{}: {what}", ca_file.display());
    let pem = std::fs::read(ca_file).map_err(|e| at_fault(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| at_fault(format!("{e:?}")))?;
        roots.add(certificate).map_err(|e| at_fault(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(at_fault("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// What is wrong with a receiver's certificate, so that an operator knows what to mend.
pub(super) fn in_words(fault: String) -> String {
    let Some((_, what)) = fault.split_once("invalid peer certificate: ") else { return fault };
    match what {
        "UnknownIssuer" => {
            "its certificate comes from no authority that is trusted here (ca_file)".to_owned()
        }
        expired if expired.to_lowercase().contains("expired") => "its certificate has expired".to_owned(),
        what => {
            format!("its certificate does not fit: {}", what.strip_prefix("certificate ").unwrap_or(what))
        }
    }
}

/// Shakes hands with `host` on `stream`, within `patience` for each step.
///
/// # Errors
/// What is wrong with its certificate, or with the line.
pub(super) fn shaken(
    config: &Arc<ClientConfig>,
    host: &str,
    mut stream: TcpStream,
    patience: Duration,
) -> io::Result<TlsStream> {
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let mut line = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    stream.set_read_timeout(Some(patience))?;
    while line.is_handshaking() {
        line.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(line, stream))
}
