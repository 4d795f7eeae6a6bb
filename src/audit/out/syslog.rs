//! Syslog, RFC 5424: over UDP (RFC 5426), TCP with octet counting (RFC 6587 §3.4.1), the same in TLS (RFC 5425) or a local
//! socket.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::tls::{TlsStream, shaken, trusting};
use super::{Parcel, Receiver};

/// A syslog server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogTerms {
    /// Where it listens.
    pub address: SyslogAddress,
    /// The authorities that its certificate may come from, in PEM: with TLS, and only then.
    pub ca_file: Option<PathBuf>,
}

/// Where a syslog server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// `udp://HOST:PORT`: what is lost on the way nobody knows.
    Udp(String),
    /// `tcp://HOST:PORT`.
    Tcp(String),
    /// `tls://HOST:PORT`.
    Tls(String),
    /// `unix:PATH`, a datagram socket such as `/dev/log`.
    Unix(PathBuf),
}

impl FromStr for SyslogAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no syslog address; use tls://HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT or unix:PATH"
            )
        };
        let host = |rest: &str| {
            let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
            let fits =
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0);
            if fits { Ok(rest.to_owned()) } else { Err(wrong()) }
        };
        match text.split_once(':') {
            Some(("udp", rest)) => host(rest.strip_prefix("//").ok_or_else(wrong)?).map(Self::Udp),
            Some(("tcp", rest)) => host(rest.strip_prefix("//").ok_or_else(wrong)?).map(Self::Tcp),
            Some(("tls", rest)) => host(rest.strip_prefix("//").ok_or_else(wrong)?).map(Self::Tls),
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(to) => write!(f, "udp://{to}"),
            Self::Tcp(to) => write!(f, "tcp://{to}"),
            Self::Tls(to) => write!(f, "tls://{to}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(super) struct Syslog {
    address: SyslogAddress,
    host: String,
    trust: Option<Arc<ClientConfig>>,
    line: Option<Line>,
}

enum Line {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    Unix(UnixDatagram),
}

impl Syslog {
    pub(super) fn new(terms: SyslogTerms, host: &str) -> Result<Self, String> {
        let SyslogTerms { address, ca_file } = terms;
        let trust = ca_file.as_deref().map(trusting).transpose()?;
        let host: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
        Ok(Self { address, host: if host.is_empty() { "-".to_owned() } else { host }, trust, line: None })
    }

    fn send(&mut self, parcels: &[Parcel]) -> io::Result<()> {
        let mut line = match self.line.take() {
            Some(line) => line,
            None => Line::open(&self.address, self.trust.as_ref())?,
        };
        let messages = parcels.iter().map(|parcel| message(parcel, &self.host));
        match &mut line {
            Line::Udp(socket) => messages.into_iter().try_for_each(|m| socket.send(cut(&m)).map(drop))?,
            Line::Unix(socket) => messages.into_iter().try_for_each(|m| socket.send(cut(&m)).map(drop))?,
            Line::Tcp(stream) => counted(stream, messages)?,
            Line::Tls(stream) => counted(stream.as_mut(), messages)?,
        }
        self.line = Some(line);
        Ok(())
    }
}

/// Sends with octet counting, and sees whether the other side is still there.
fn counted(stream: &mut (impl Read + Write), messages: impl Iterator<Item = String>) -> io::Result<()> {
    let mut to = io::BufWriter::new(&mut *stream);
    for message in messages {
        write!(to, "{} {message}", message.len())?;
    }
    to.flush()?;
    drop(to);
    stays(stream)
}

impl Receiver for Syslog {
    fn deliver(&mut self, parcels: &[Parcel]) -> Result<(), String> {
        self.send(parcels).map_err(|e| e.to_string())
    }

    fn most(&self) -> usize {
        2000
    }
}

impl Line {
    fn open(address: &SyslogAddress, trust: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        match address {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Unix(socket))
            }
            SyslogAddress::Udp(to) => {
                let to = resolved(to)?;
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.connect(to)?;
                Ok(Self::Udp(socket))
            }
            SyslogAddress::Tcp(to) => {
                let stream = connected(to)?;
                stream.set_read_timeout(Some(STAYS))?;
                Ok(Self::Tcp(stream))
            }
            SyslogAddress::Tls(to) => {
                let trust = trust.ok_or_else(|| io::Error::other("no authority is trusted"))?;
                let host = to.rsplit_once(':').map_or(to.as_str(), |(host, _)| host);
                let stream = shaken(trust, host, connected(to)?, PATIENCE)?;
                stream.sock.set_read_timeout(Some(STAYS))?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }
}

fn connected(to: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&resolved(to)?, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn resolved(to: &str) -> io::Result<std::net::SocketAddr> {
    to.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("it has no address"))
}

/// Syslog has no receipt: what the other side still has not closed on after a moment counts as taken.
fn stays(stream: &mut impl Read) -> io::Result<()> {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "it closed the connection")),
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Facility 13 (log audit), severity informational, or warning for what did not go as it should.
fn message(parcel: &Parcel, host: &str) -> String {
    let worrying =
        ["failed", "denied", "mismatch", "banned", "lockdown", "killed", "unreachable", "suspected", "low"];
    let severity = if worrying.iter().any(|word| parcel.event.contains(word)) { 4 } else { 6 };
    let name: String = parcel.event.chars().filter(char::is_ascii_graphic).take(32).collect();
    let (time, id) = (if parcel.time.is_empty() { "-" } else { &parcel.time }, parcel.seq & 0x7fff_ffff);
    let pri = 13 * 8 + severity;
    // A BOM says that the message is UTF-8 (§6.4); it holds no control character.
    format!(
        "<{pri}>1 {time} {host} keyward {} {name} [meta sequenceId=\"{id}\"] \u{feff}{}",
        std::process::id(),
        parcel.json
    )
}

/// What fits into a datagram, at the border of a character.
fn cut(message: &str) -> &[u8] {
    let mut end = message.len().min(DATAGRAM);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default().as_bytes()
}

const PATIENCE: Duration = Duration::from_secs(10);
const STAYS: Duration = Duration::from_millis(300);
const DATAGRAM: usize = 60_000;
