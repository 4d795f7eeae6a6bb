//! A user's session channel as [`ChannelMessage`]s in and out, and what is said on a channel that leads nowhere.

use std::time::Duration;

use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

use crate::egress::{signal_of, signal_text};
use crate::recording::ChannelMessage;
use crate::session::{Ear, Mouth, Sides, parting};

/// What comes from the user on one channel.
pub(super) struct FromUser(ChannelReadHalf);

impl FromUser {
    pub(super) fn new(half: ChannelReadHalf) -> Self {
        Self(half)
    }
}

impl Ear for FromUser {
    async fn next(&mut self) -> Option<ChannelMessage> {
        loop {
            return Some(match self.0.wait().await? {
                ChannelMsg::Data { data } => ChannelMessage::Data(data),
                ChannelMsg::Eof => ChannelMessage::Eof,
                ChannelMsg::Close => ChannelMessage::Close,
                ChannelMsg::RequestPty {
                    term,
                    col_width,
                    row_height,
                    pix_width,
                    pix_height,
                    terminal_modes,
                    ..
                } => ChannelMessage::Pty {
                    term,
                    cols: col_width,
                    rows: row_height,
                    px_width: pix_width,
                    px_height: pix_height,
                    modes: terminal_modes.into_iter().map(|(code, value)| (code as u8, value)).collect(),
                },
                ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                    ChannelMessage::Env { name: variable_name, value: variable_value }
                }
                ChannelMsg::RequestShell { .. } => ChannelMessage::Shell,
                ChannelMsg::Exec { command, .. } => ChannelMessage::Exec(command.into()),
                ChannelMsg::RequestSubsystem { name, .. } => ChannelMessage::Subsystem(name),
                ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                    ChannelMessage::WindowChange {
                        cols: col_width,
                        rows: row_height,
                        px_width: pix_width,
                        px_height: pix_height,
                    }
                }
                ChannelMsg::AgentForward { .. } => ChannelMessage::Agent,
                ChannelMsg::Break { length, .. } => ChannelMessage::Break(length),
                ChannelMsg::Signal { signal } => ChannelMessage::Signal(signal_text(&signal)),
                // X11 requests were refused when they came.
                _ => continue,
            });
        }
    }
}

/// What goes to the user on one channel.
pub(super) struct ToUser {
    half: ChannelWriteHalf<Msg>,
    handle: Handle,
    id: ChannelId,
}

impl ToUser {
    pub(super) fn new(half: ChannelWriteHalf<Msg>, handle: Handle, id: ChannelId) -> Self {
        Self { half, handle, id }
    }
}

impl Mouth for ToUser {
    async fn say(&self, message: ChannelMessage) -> Result<(), String> {
        let half = &self.half;
        let said = match message {
            ChannelMessage::Data(data) => half.data_bytes(data).await,
            ChannelMessage::Stderr(data) => half.extended_data_bytes(1, data).await,
            ChannelMessage::Eof => half.eof().await,
            ChannelMessage::Close => half.close().await,
            ChannelMessage::ExitStatus(status) => half.exit_status(status).await,
            ChannelMessage::ExitSignal { signal, core_dumped, message } => {
                let told = self.handle.exit_signal_request(
                    self.id,
                    signal_of(&signal),
                    core_dumped,
                    message,
                    "en".to_owned(),
                );
                return told.await.map_err(|()| "the connection is gone".to_owned());
            }
            // Only a client asks (RFC 4254 §6); its requests were answered when they came.
            _ => Ok(()),
        };
        said.map_err(|e| e.to_string())
    }

    async fn gone(&self) {
        self.handle.closed().await;
    }
}

/// Waits until the user has asked for something (a client shows stderr only then), says the sentence, and closes.
pub(super) async fn apologise(mut user: Sides<FromUser, ToUser>, sentence: &str, id: &str) {
    let asked = async {
        while let Some(message) = user.ear.next().await {
            if matches!(
                message,
                ChannelMessage::Shell | ChannelMessage::Exec(_) | ChannelMessage::Subsystem(_)
            ) {
                return;
            }
        }
    };
    if tokio::time::timeout(ASK, asked).await.is_err() {
        tracing::debug!("user.asked_for_nothing");
    }
    for message in parting(sentence, id).into_iter().chain([ChannelMessage::Close]) {
        if user.mouth.say(message).await.is_err() {
            return;
        }
    }
}

const ASK: Duration = Duration::from_secs(10);
