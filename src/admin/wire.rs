//! Framing on the local socket.
//!
//! A request is a big-endian u32 length and JSON. Replies are `[kind u8][length u32][payload]`: 1 standard output,
//! 2 standard error, 3 the exit code (one byte), which ends the conversation.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::{Chunk, Command};

/// The longest request taken, in bytes.
pub const MAX_REQUEST: u32 = 1 << 20;
const MAX_REPLY: u32 = 1 << 24;

/// What a client asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Answer in JSON.
    pub json: bool,
    /// The columns of the client's terminal, if its standard output is one.
    pub width: Option<u16>,
    /// The lines of that terminal, if what is typed there follows the request.
    #[serde(default)]
    pub keyboard: Option<u16>,
    /// Whether the client's standard error is a terminal, where progress is seen.
    #[serde(default)]
    pub progress: bool,
}

impl Request {
    /// The request as it goes over the socket.
    ///
    /// # Errors
    /// If it is longer than [`MAX_REQUEST`].
    pub fn frame(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).ok().filter(|l| *l <= MAX_REQUEST);
        let length = length.ok_or_else(|| io::Error::other("the request is too long"))?;
        Ok([length.to_be_bytes().as_slice(), &body].concat())
    }
}

/// A piece of the daemon's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// For standard output or standard error.
    Chunk(Chunk),
    /// The end, with the exit code.
    Exit(u8),
}

impl Reply {
    /// The reply as it goes over the socket.
    pub fn frame(&self) -> Vec<u8> {
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Chunk(Chunk::Out(bytes)) => (1, bytes),
            Self::Chunk(Chunk::Err(bytes)) => (2, bytes),
            Self::Exit(exit) => {
                code = [*exit];
                (3, &code)
            }
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        [&[kind], length.to_be_bytes().as_slice(), payload].concat()
    }
}

/// Reads one reply; blocks.
///
/// # Errors
/// If the daemon goes away or sends what is no reply.
pub fn read_reply(from: &mut impl Read) -> io::Result<Reply> {
    let mut kind = [0u8; 1];
    let mut length = [0u8; 4];
    from.read_exact(&mut kind)?;
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_REPLY {
        return Err(io::Error::other("the daemon sent a reply that is too long"));
    }
    let mut payload = vec![0u8; length as usize];
    from.read_exact(&mut payload)?;
    match kind {
        [1] => Ok(Reply::Chunk(Chunk::Out(payload))),
        [2] => Ok(Reply::Chunk(Chunk::Err(payload))),
        [3] => Ok(Reply::Exit(payload.first().copied().unwrap_or(1))),
        [other] => Err(io::Error::other(format!("the daemon sent a reply of unknown kind {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_survives_the_socket() {
        for reply in
            [Reply::Chunk(Chunk::Out(b"x".to_vec())), Reply::Chunk(Chunk::Err(vec![])), Reply::Exit(10)]
        {
            assert_eq!(read_reply(&mut reply.frame().as_slice()).unwrap(), reply);
        }
    }

    #[test]
    fn an_unknown_or_cut_reply_is_refused() {
        assert!(read_reply(&mut [9u8, 0, 0, 0, 0].as_slice()).is_err());
        assert!(read_reply(&mut [1u8, 0, 0, 0, 5, 1].as_slice()).is_err());
    }
}
