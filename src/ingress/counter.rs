//! The counter: one session channel of the outer connection, from its request to the desk's answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::Channel;
use russh::server::{Handle, Msg};
use tokio::sync::mpsc;

use super::reception::{FromUser, ToUser};
use crate::auth::Authenticated;
use crate::recording::ChannelMessage;
use crate::session::{Ask, Chunk, Cut, Desk, Ear, Mouth};

/// Who asks at the counter, and the wire that ends the connection.
pub(super) struct Visit {
    pub(super) desk: Arc<dyn Desk>,
    pub(super) caller: Arc<Authenticated>,
    pub(super) cut: Cut,
}

/// Hears what is asked, asks the desk, and ends the channel with the answer.
pub(super) async fn serve(visit: Visit, channel: Channel<Msg>, handle: Handle) {
    let Visit { desk, caller, mut cut } = visit;
    let id = channel.id();
    let (read, write) = channel.split();
    let (mut ear, mouth) = (FromUser::new(read), ToUser::new(write, handle, id));
    let asked = tokio::select! {
        biased;
        sentence = cut.happened() => Err(sentence),
        asked = asked(&mut ear, desk.as_ref()) => Ok(asked),
    };
    let (typed, keys) = mpsc::channel(KEYS);
    let ask = match asked {
        Ok(Ok(ask)) => Ask { keys: ask.columns.map(|_| keys), ..ask },
        Ok(Err(Unasked::Left)) => return,
        Ok(Err(Unasked::Endless(why))) => {
            let sentence = format!("standard input did not end: {why}. Nothing was done");
            return send_away(&mouth, (&sentence, USAGE)).await;
        }
        Err(sentence) => return send_away(&mouth, (&sentence, DENIED)).await,
    };
    let columns = ask.columns;
    let (to, mut from) = mpsc::channel(16);
    // A task of its own: a change that was begun is finished and audited, whether the user waits or not.
    let answering = tokio::spawn(async move { desk.run(caller, ask, to).await });
    let send = async {
        while let Some(chunk) = from.recv().await {
            let text = |bytes| Bytes::from(if columns.is_some() { with_returns(bytes) } else { bytes });
            let message = match chunk {
                Chunk::Out(bytes) => ChannelMessage::Data(text(bytes)),
                Chunk::Err(bytes) => ChannelMessage::Stderr(text(bytes)),
            };
            mouth.say(message).await?;
        }
        let exit = answering.await.map_err(|e| e.to_string())?;
        for message in [ChannelMessage::ExitStatus(exit.into()), ChannelMessage::Eof, ChannelMessage::Close] {
            mouth.say(message).await?;
        }
        Ok::<(), String>(())
    };
    tokio::select! {
        sent = send => if let Err(why) = sent {
            tracing::debug!(%why, "user.left_the_counter");
        },
        () = left(&mut ear, columns.map(|_| typed)) => {
            drop(mouth.say(ChannelMessage::Close).await);
        }
    }
}

/// Why nothing is asked of the desk.
#[derive(Debug, PartialEq, Eq)]
enum Unasked {
    /// The user left first.
    Left,
    /// Standard input was still going on; what came of it is not what was meant.
    Endless(&'static str),
}

/// What is asked, with its standard input.
async fn asked(ear: &mut FromUser, desk: &dyn Desk) -> Result<Ask, Unasked> {
    let (command, size) = heard(ear).await.ok_or(Unasked::Left)?;
    let wants = command.as_deref().is_some_and(|c| desk.reads_stdin(c));
    let stdin = if wants { rest(ear).await? } else { Vec::new() };
    Ok(Ask { command, stdin, columns: size.map(|s| s.0), rows: size.map(|s| s.1), keys: None })
}

/// Tells why nothing was done.
async fn send_away(mouth: &ToUser, (sentence, code): (&str, u32)) {
    let said = format!("keyward: {sentence}\r\n").into_bytes();
    for message in [
        ChannelMessage::Stderr(said.into()),
        ChannelMessage::ExitStatus(code),
        ChannelMessage::Eof,
        ChannelMessage::Close,
    ] {
        if let Err(why) = mouth.say(message).await {
            tracing::debug!(%why, "user.left_the_counter");
            return;
        }
    }
}

/// Resolves when the user leaves: closes the channel, or types Ctrl-C at a terminal. What else is typed there goes to
/// `typed`; more than the answer takes is dropped.
async fn left(ear: &mut FromUser, typed: Option<mpsc::Sender<Vec<u8>>>) {
    while let Some(message) = ear.next().await {
        match message {
            ChannelMessage::Close => return,
            ChannelMessage::Signal(_) => return,
            ChannelMessage::Data(keys) if typed.is_some() && keys.contains(&CTRL_C) => return,
            ChannelMessage::Data(keys) => {
                if let Some(Err(dropped)) = typed.as_ref().map(|typed| typed.try_send(keys.to_vec())) {
                    tracing::trace!(%dropped, "user.keys_dropped");
                }
            }
            _ => {}
        }
    }
}

/// The command (`None`: a shell), and the columns and lines of the terminal, if there is one.
async fn heard(ear: &mut FromUser) -> Option<(Option<String>, Option<(u16, u16)>)> {
    let mut size = None;
    loop {
        match ear.next().await? {
            ChannelMessage::Pty { cols, rows, .. } => {
                // A size of none is that of a terminal that does not say.
                let or =
                    |given: u32, other: u16| u16::try_from(given).ok().filter(|n| *n > 0).unwrap_or(other);
                size = Some((or(cols, 80).max(40), or(rows, 24).max(4)));
            }
            ChannelMessage::Shell => return Some((None, size)),
            ChannelMessage::Exec(command) => {
                return Some((Some(String::from_utf8_lossy(&command).into_owned()), size));
            }
            ChannelMessage::Close => return None,
            _ => {}
        }
    }
}

/// Standard input until its end, at most [`MOST`] bytes and [`PATIENCE`].
async fn rest(ear: &mut impl Ear) -> Result<Vec<u8>, Unasked> {
    let mut stdin = Vec::new();
    let reading = async {
        while let Some(message) = ear.next().await {
            match message {
                ChannelMessage::Data(data) if stdin.len() + data.len() <= MOST => {
                    stdin.extend_from_slice(&data)
                }
                ChannelMessage::Data(_) => return Err(Unasked::Endless("more than 1 MiB came")),
                ChannelMessage::Eof => return Ok(()),
                ChannelMessage::Close => return Err(Unasked::Left),
                _ => {}
            }
        }
        Err(Unasked::Left)
    };
    let late =
        |_| Err(Unasked::Endless("30 seconds passed; give it a file, as in: ssh-keys rotate < new.pub"));
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(late).map(|()| stdin)
}

/// A terminal in raw mode needs CR before LF.
fn with_returns(text: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 32);
    for byte in text {
        if byte == b'\n' && out.last() != Some(&b'\r') {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out
}

const CTRL_C: u8 = 3;
/// Exit codes of CONTRACT.md.
const USAGE: u32 = 2;
const DENIED: u32 = 4;
/// Keystrokes that wait to be heard.
const KEYS: usize = 32;
const MOST: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// Says this, and then nothing more.
    struct Says(Vec<ChannelMessage>);

    impl Ear for Says {
        async fn next(&mut self) -> Option<ChannelMessage> {
            match self.0.is_empty() {
                true => std::future::pending().await,
                false => Some(self.0.remove(0)),
            }
        }
    }

    #[tokio::test]
    async fn what_ends_is_taken_and_what_is_cut_short_is_not() {
        let data = |size: usize| ChannelMessage::Data(Bytes::from(vec![b'x'; size]));
        let said = |messages: Vec<ChannelMessage>| async { rest(&mut Says(messages)).await };
        assert_eq!(said(vec![data(MOST), ChannelMessage::Eof]).await.unwrap().len(), MOST);
        let over = said(vec![data(MOST), data(1), ChannelMessage::Eof]).await;
        assert_eq!(over, Err(Unasked::Endless("more than 1 MiB came")));
        assert_eq!(said(vec![data(9), ChannelMessage::Close]).await, Err(Unasked::Left));
    }

    #[test]
    fn a_terminal_gets_carriage_returns_once() {
        assert_eq!(with_returns(b"a\nb\r\n".to_vec()), b"a\r\nb\r\n");
    }
}
