//! The relay: one channel's messages, both ways, each on the tape before it is sent.
//!
//! Takes the open session; never sends what was not recorded. A side is read only when the other has taken what came
//! before: what waits is in the SSH connections' own queues, bounded by the windows they granted (RFC 4254 §5.2).

use std::time::Duration;

use bytes::Bytes;
use keystore::Capability;

use super::{Cut, Opened};
use crate::egress::{EgressError, FromInstance, ToInstance};
use crate::recording::{ChannelMessage, Direction};

/// Where a channel's messages come from.
pub trait Ear: Send + 'static {
    /// The next message in order; `None` once the channel is gone.
    fn next(&mut self) -> impl Future<Output = Option<ChannelMessage>> + Send;
}

/// Where a channel's messages go.
pub trait Mouth: Send + Sync {
    /// Sends one message. The error is a sentence for the log; the peer is gone.
    fn say(&self, message: ChannelMessage) -> impl Future<Output = Result<(), String>> + Send;
}

impl Ear for FromInstance {
    async fn next(&mut self) -> Option<ChannelMessage> {
        FromInstance::next(self).await
    }
}

impl Mouth for ToInstance {
    async fn say(&self, message: ChannelMessage) -> Result<(), String> {
        self.send(message).await.map_err(|e: EgressError| e.to_string())
    }
}

/// One side of a channel: what it says and what it hears.
pub struct Sides<E, M> {
    /// From it.
    pub ear: E,
    /// To it.
    pub mouth: M,
}

/// Why a channel's relay ended.
enum End {
    /// The instance closed the channel: the normal end.
    Closed,
    /// The user closed the channel or is gone.
    UserLeft,
    /// The channel ends with a sentence to the user.
    Sentence(String),
    /// The whole session ends: the tape took no more.
    NotRecorded(String),
}

/// Relays channel `number` until it ends, then closes both sides.
pub async fn relay<E: Ear, M: Mouth>(
    session: &Opened,
    number: u32,
    mut user: Sides<E, M>,
    mut instance: Sides<FromInstance, ToInstance>,
) {
    let mut cut = session.cut();
    session.tape().channel_opened(number);
    let end = {
        let up = upward(session, number, &mut user.ear, &instance.mouth);
        let down = downward(session, number, &mut instance.ear, &user.mouth);
        tokio::pin!(up, down);
        tokio::select! {
            biased;
            sentence = Cut::happened(&mut cut) => End::Sentence(sentence),
            end = &mut down => end,
            end = &mut up => match end {
                // The user closed; the instance may still have an exit status to tell the tape.
                End::UserLeft => {
                    tokio::select! {
                        end = &mut down => end,
                        () = tokio::time::sleep(LAST_WORDS) => End::UserLeft,
                    }
                }
                end => end,
            },
        }
    };
    match end {
        End::Closed | End::UserLeft => {}
        End::Sentence(sentence) => farewell(session, number, &user.mouth, &sentence).await,
        End::NotRecorded(why) => {
            tracing::error!(session.id = %session.id(), %why, "recording.failed");
            session.recording_failed(&why).await;
            let sentence = "Recording failed, so your session cannot go on.";
            farewell(session, number, &user.mouth, sentence).await;
        }
    }
    for (side, said) in [
        ("instance", instance.mouth.say(ChannelMessage::Close).await),
        ("user", user.mouth.say(ChannelMessage::Close).await),
    ] {
        if let Err(why) = said {
            tracing::debug!(side, %why, "was gone before the channel closed");
        }
    }
    session.tape().channel_closed(number);
}

/// User to instance.
async fn upward<E: Ear>(session: &Opened, number: u32, ear: &mut E, mouth: &ToInstance) -> End {
    while let Some(message) = ear.next().await {
        if let Some(refused) = refusal(session, &message) {
            return End::Sentence(refused);
        }
        if let Err(why) = session.tape().record(number, Direction::ToInstance, &message).await {
            return End::NotRecorded(why.to_string());
        }
        if matches!(message, ChannelMessage::Close) {
            break;
        }
        if let Err(why) = mouth.say(message).await {
            return End::Sentence(format!("{} closed the connection ({why}).", session.instance()));
        }
    }
    // The user is gone: a program on the instance that reads its input must see the end.
    if let Err(why) = mouth.say(ChannelMessage::Close).await {
        tracing::debug!(%why, "instance was gone before the user");
    }
    End::UserLeft
}

/// Instance to user.
async fn downward<M: Mouth>(session: &Opened, number: u32, ear: &mut FromInstance, mouth: &M) -> End {
    let mut closed = false;
    while let Some(message) = ear.next().await {
        if let Err(why) = session.tape().record(number, Direction::ToUser, &message).await {
            return End::NotRecorded(why.to_string());
        }
        match message {
            ChannelMessage::Close => {
                closed = true;
                break;
            }
            // The user's request was answered when it came.
            ChannelMessage::Success => {}
            ChannelMessage::Failure => {
                return End::Sentence(format!("{} refused to start what you asked for.", session.instance()));
            }
            message => {
                if mouth.say(message).await.is_err() {
                    return End::UserLeft;
                }
            }
        }
    }
    if closed { End::Closed } else { End::Sentence(format!("{} closed the connection.", session.instance())) }
}

/// Why the rules do not let this request through, if so.
fn refusal(session: &Opened, message: &ChannelMessage) -> Option<String> {
    let needed = match message {
        ChannelMessage::Shell => Capability::Shell,
        ChannelMessage::Exec(_) => Capability::Exec,
        ChannelMessage::Subsystem(name) if name == "sftp" => Capability::Sftp,
        ChannelMessage::Subsystem(_) => Capability::Exec,
        _ => return None,
    };
    let allowed = session.authorized().may(needed);
    (!allowed)
        .then(|| format!("The access rules do not let you use {needed} on {} here.", session.instance()))
}

/// Tells the user, on the tape first, and ends the channel as a failed command.
async fn farewell<M: Mouth>(session: &Opened, number: u32, mouth: &M, sentence: &str) {
    for message in parting(sentence, session.id()) {
        if let Err(error) = session.tape().record(number, Direction::ToUser, &message).await {
            tracing::debug!(%error, "the last words are not on the tape");
        }
        // A user who does not read must not keep a cut session open.
        match tokio::time::timeout(LAST_WORDS, mouth.say(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The messages that end a channel with a sentence and a reference: stderr, exit status 255, EOF.
pub(crate) fn parting(sentence: &str, id: &str) -> [ChannelMessage; 3] {
    let text = format!("\r\nkeyward: {sentence} (session {id})\r\n");
    [ChannelMessage::Stderr(Bytes::from(text)), ChannelMessage::ExitStatus(255), ChannelMessage::Eof]
}

/// How long a side that should be ending is listened to.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_is_cut_ends_with_a_sentence_and_255() {
        let [said, status, eof] = parting("Your key was revoked.", "0190");
        assert!(matches!(said, ChannelMessage::Stderr(s) if s.ends_with(b"revoked. (session 0190)\r\n")));
        assert!(matches!(status, ChannelMessage::ExitStatus(255)));
        assert!(matches!(eof, ChannelMessage::Eof));
    }
}
