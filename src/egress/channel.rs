//! One session channel on an instance, as [`ChannelMessage`]s in and out.

use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty};

use super::EgressError;
use super::offer::Asked;
use super::signal::{signal_of, signal_text};
use crate::recording::ChannelMessage;

/// What comes from the instance on one channel.
pub struct FromInstance {
    half: ChannelReadHalf,
}

/// What goes to the instance on one channel.
pub struct ToInstance {
    half: ChannelWriteHalf<Msg>,
    asked: Asked,
}

pub(super) fn split(channel: Channel<Msg>, asked: Asked) -> (FromInstance, ToInstance) {
    let (read, write) = channel.split();
    (FromInstance { half: read }, ToInstance { half: write, asked })
}

impl FromInstance {
    /// The next message in order; `None` when the channel or connection is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<ChannelMessage> {
        loop {
            return Some(match self.half.wait().await? {
                ChannelMsg::Data { data } => ChannelMessage::Data(data),
                ChannelMsg::ExtendedData { data, ext: 1 } => ChannelMessage::Stderr(data),
                ChannelMsg::Eof => ChannelMessage::Eof,
                ChannelMsg::Close => ChannelMessage::Close,
                ChannelMsg::Success => ChannelMessage::Success,
                ChannelMsg::Failure => ChannelMessage::Failure,
                ChannelMsg::ExitStatus { exit_status } => ChannelMessage::ExitStatus(exit_status),
                ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, .. } => {
                    ChannelMessage::ExitSignal {
                        signal: signal_text(&signal_name),
                        core_dumped,
                        message: error_message,
                    }
                }
                _ => continue,
            });
        }
    }
}

impl ToInstance {
    /// Sends one message; waits for the instance's window. Not cancel-safe: a cut message may be half sent.
    ///
    /// # Errors
    /// [`EgressError::Broken`] once the connection is gone.
    pub async fn send(&self, message: ChannelMessage) -> Result<(), EgressError> {
        let half = &self.half;
        let sent = match message {
            ChannelMessage::Data(data) => half.data_bytes(data).await,
            ChannelMessage::Stderr(data) => half.extended_data_bytes(1, data).await,
            ChannelMessage::Eof => half.eof().await,
            ChannelMessage::Close => half.close().await,
            ChannelMessage::Pty { term, cols, rows, px_width, px_height, modes } => {
                let modes: Vec<(Pty, u32)> =
                    modes.iter().filter_map(|(code, value)| Some((Pty::from_u8(*code)?, *value))).collect();
                half.request_pty(false, &term, cols, rows, px_width, px_height, &modes).await
            }
            ChannelMessage::Env { name, value } => half.set_env(false, name, value).await,
            ChannelMessage::Shell => half.request_shell(true).await,
            ChannelMessage::Exec(command) => half.exec(true, command.to_vec()).await,
            ChannelMessage::Subsystem(name) => half.request_subsystem(true, name).await,
            ChannelMessage::WindowChange { cols, rows, px_width, px_height } => {
                half.window_change(cols, rows, px_width, px_height).await
            }
            ChannelMessage::Agent => {
                self.asked.agent();
                half.agent_forward(false).await
            }
            ChannelMessage::Break(length) => half.send_break(false, length).await,
            ChannelMessage::Signal(name) => half.signal(signal_of(&name)).await,
            // What only a server says (RFC 4254 §6.10) is not for the instance.
            ChannelMessage::ExitStatus(_)
            | ChannelMessage::ExitSignal { .. }
            | ChannelMessage::Success
            | ChannelMessage::Failure => Ok(()),
        };
        sent.map_err(|e| EgressError::Broken(e.to_string()))
    }
}
