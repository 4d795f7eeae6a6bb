//! The relay: one channel's messages, both ways, each on the tape before it is sent.
//!
//! Takes the open session; never sends what was not recorded. A side is read only when the other has taken what came
//! before: what waits is in the SSH connections' own queues, bounded by the windows they granted (RFC 4254 §5.2).

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use keystore::Capability;

use super::{Cut, Ongoing};
use crate::egress::{EgressError, FromInstance, ToInstance};
use crate::recording::{ChannelMessage, Direction, Mode, Turn};

/// Where a channel's messages come from.
pub trait Ear: Send + 'static {
    /// The next message in order; `None` once the channel is gone. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<ChannelMessage>> + Send;
}

/// Where a channel's messages go.
pub trait Mouth: Send + Sync {
    /// Sends one message. The error is a sentence for the log; the peer is gone.
    fn say(&self, message: ChannelMessage) -> impl Future<Output = Result<(), String>> + Send;
    /// Resolves when the whole connection is gone, also while nobody listens to the channel. Cancel-safe. Never for a side
    /// that is always listened to: there its end is heard.
    fn gone(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
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
#[derive(PartialEq, Eq)]
enum End {
    /// One direction of a forward is at its end; with both, the forward is.
    HalfClosed,
    /// The instance closed the channel: the normal end.
    Closed,
    /// The user closed the channel or is gone.
    UserLeft,
    /// The channel ends with a sentence to the user.
    Sentence(String),
    /// SSH inside a forward: it would go through unseen.
    Opaque,
    /// The whole session ends: the tape took no more.
    NotRecorded(String),
}

/// One channel of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Its number within the session.
    pub number: u32,
    /// What goes through it.
    pub carries: Carries,
}

/// What a channel carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carries {
    /// A shell, a command or a subsystem.
    Session,
    /// An opaque stream to or from this target.
    Forward(String),
}

/// Relays a channel until it ends, then closes both sides. SSH inside a forward ends it unseen: then the user's side is
/// still open, and returned so that it can be told why.
pub async fn relay<E: Ear, M: Mouth, F: Ear, N: Mouth>(
    session: &Ongoing,
    lane: Lane,
    mut user: Sides<E, M>,
    mut instance: Sides<F, N>,
) -> Option<Sides<E, M>> {
    let mut cut = session.cut();
    let number = lane.number;
    match &lane.carries {
        Carries::Session => session.tape().channel_opened(number),
        Carries::Forward(target) => {
            session.tape().forward_opened(number, target);
            if let Err(fault) = session.channel_opened(number, ("forward", Some(target.clone()))).await {
                tracing::error!(session.id = %session.id(), %fault, "forward.not_audited");
                close_both(&user.mouth, &instance.mouth).await;
                return None;
            }
        }
    }
    let mut telling = Telling::default();
    let end = {
        let up = upward(session, &lane, &mut user.ear, &instance.mouth);
        let down = downward(session, &lane, &mut instance.ear, &user.mouth);
        let beside = beside(session, &lane, (&user.mouth, &mut telling));
        tokio::pin!(up, down);
        let flow = async {
            tokio::select! {
                biased;
                end = &mut down => if end == End::HalfClosed { up.await } else { end },
                end = &mut up => match end {
                    End::HalfClosed => down.await,
                    // The user closed; the instance may still have an exit status to tell the tape.
                    End::UserLeft => match tokio::time::timeout(LAST_WORDS, down).await {
                        Ok(End::NotRecorded(why)) => End::NotRecorded(why),
                        // After our own CLOSE the instance's is not heard any more: that is no broken connection.
                        Ok(_) | Err(_) => End::UserLeft,
                    },
                    end => end,
                },
            }
        };
        tokio::select! {
            biased;
            sentence = Cut::happened(&mut cut) => End::Sentence(sentence),
            why = beside => End::NotRecorded(why),
            // A cut hangs up on the instance too: that may be seen here before the cut itself is.
            end = flow => cut.sentence().map_or(end, End::Sentence),
            // What was under way may still be taken; a program that reads nothing keeps no session without its user.
            () = vanished(&user.mouth) => End::UserLeft,
        }
    };
    telling.finish().await;
    let opaque = end == End::Opaque;
    match end {
        End::Closed | End::HalfClosed | End::UserLeft => {}
        End::Sentence(sentence) => farewell(session, &lane, &user.mouth, &sentence).await,
        End::Opaque => {
            if let Carries::Forward(target) = &lane.carries {
                session.forward_denied(target, SSH_IN_FORWARD).await;
            }
        }
        End::NotRecorded(why) => {
            tracing::error!(session.id = %session.id(), %why, "recording.failed");
            session.recording_failed(&why).await;
            let sentence = "Recording failed, so your session cannot go on.";
            farewell(session, &lane, &user.mouth, sentence).await;
        }
    }
    if opaque {
        close("instance", &instance.mouth).await;
    } else {
        close_both(&user.mouth, &instance.mouth).await;
    }
    let ledger = session.tape().channel_closed(number);
    while let Some((_, operation)) = session.tape().take_operation() {
        session.operated(operation).await;
    }
    if let Some(ledger) = ledger {
        session.channel_closed(ledger).await;
    }
    opaque.then_some(user)
}

async fn vanished<M: Mouth>(user: &M) {
    user.gone().await;
    tokio::time::sleep(LAST_WORDS).await;
}

async fn close_both<M: Mouth, N: Mouth>(user: &M, instance: &N) {
    close("instance", instance).await;
    close("user", user).await;
}

async fn close<M: Mouth>(side: &str, mouth: &M) {
    if let Err(why) = mouth.say(ChannelMessage::Close).await {
        tracing::debug!(side, %why, "was gone before the channel closed");
    }
}

/// What the trail is being told while a relay runs. Whoever ends the relay finishes it: what was taken from the tape to be
/// told is told once, though the end comes in the middle.
#[derive(Default)]
struct Telling<'a>(Option<BoxFuture<'a, ()>>);

impl<'a> Telling<'a> {
    /// Cancelled, it is left to [`Telling::finish`].
    async fn tell(&mut self, work: impl Future<Output = ()> + Send + 'a) {
        self.0 = Some(work.boxed());
        self.finish().await;
    }

    /// Cancel-safe.
    async fn finish(&mut self) {
        if let Some(work) = &mut self.0 {
            work.await;
        }
        self.0 = None;
    }
}

/// What happens beside the relay: operations on files are audited, the user hears that she is watched. Ends with the
/// reason when the session may not go on because its tape cannot be written.
async fn beside<'a, M: Mouth>(
    session: &'a Ongoing,
    lane: &Lane,
    (mouth, telling): (&M, &mut Telling<'a>),
) -> String {
    let tape = session.tape();
    let (mut watched, mut failed) = (false, false);
    loop {
        tokio::select! {
            (_, operation) = tape.next_operation() => telling.tell(session.operated(operation)).await,
            why = tape.failed(), if !failed => {
                if tape.mode() == Mode::Strict {
                    return why;
                }
                failed = true;
                telling.tell(async move { session.note_recording_failed(&why).await }).await;
            }
            () = tape.watched(), if !watched && !lane.is_forward() => {
                watched = true;
                if session.must_tell_watched() {
                    let text = format!("\r\nkeyward: An auditor is watching this session ({}).\r\n", session.id());
                    let notice = ChannelMessage::Stderr(Bytes::from(text));
                    if tape.record(lane.number, Direction::ToUser, &notice).await.is_ok()
                        && let Err(why) = mouth.say(notice).await
                    {
                        tracing::debug!(%why, "user was gone before the notice");
                    }
                }
            }
        }
    }
}

/// User to instance.
async fn upward<E: Ear, N: Mouth>(session: &Ongoing, lane: &Lane, ear: &mut E, mouth: &N) -> End {
    let number = lane.number;
    let mut opening = Opening::of(lane);
    let mut begun = false;
    let mut held = session.tape().held(number, Direction::ToInstance);
    loop {
        let message = match held.turn(ear.next()).await {
            Ok(Turn::Heard(message)) => {
                if !lane.takes(session, &message) || too_late(&message, begun) {
                    continue;
                }
                begun |= started(&message).is_some();
                if opening.is_ssh(&message) {
                    return End::Opaque;
                }
                if let Some(refused) = refusal(session, &message) {
                    return End::Sentence(refused);
                }
                match held.take(message).await {
                    Ok(()) => continue,
                    Err(why) => return End::NotRecorded(why.to_string()),
                }
            }
            Ok(Turn::Free(message)) => message,
            Ok(Turn::Over) => break,
            Err(why) => return End::NotRecorded(why.to_string()),
        };
        if let Some(started) = started(&message)
            && let Err(why) = session.channel_opened(number, started).await
        {
            return End::NotRecorded(why.to_string());
        }
        if matches!(message, ChannelMessage::Close) {
            break;
        }
        let half_closed = lane.is_forward() && message == ChannelMessage::Eof;
        if session.is_barred() {
            return End::UserLeft;
        }
        if let Err(why) = mouth.say(message).await {
            return End::Sentence(format!("{} closed the connection ({why}).", session.instance()));
        }
        if half_closed {
            return End::HalfClosed;
        }
    }
    // The user is gone: a program on the instance that reads its input must see the end.
    if let Err(why) = mouth.say(ChannelMessage::Close).await {
        tracing::debug!(%why, "instance was gone before the user");
    }
    End::UserLeft
}

/// Instance to user.
async fn downward<F: Ear, M: Mouth>(session: &Ongoing, lane: &Lane, ear: &mut F, mouth: &M) -> End {
    let number = lane.number;
    let mut opening = Opening::of(lane);
    let (mut closed, mut heard_end) = (false, false);
    // A forward has no exit status to wait for.
    let (mut exited, mut ended) = (matches!(lane.carries, Carries::Forward(_)), false);
    let mut held = session.tape().held(number, Direction::ToUser);
    loop {
        let message = match held.turn(ear.next()).await {
            Ok(Turn::Heard(message)) if opening.is_ssh(&message) => return End::Opaque,
            // A command ends once: what the tape says of it is what the user is told.
            Ok(Turn::Heard(message)) if is_ending(&message) && std::mem::replace(&mut heard_end, true) => {
                continue;
            }
            Ok(Turn::Heard(message)) => match held.take(message).await {
                Ok(()) => continue,
                Err(why) => return End::NotRecorded(why.to_string()),
            },
            Ok(Turn::Free(message)) => message,
            Ok(Turn::Over) => break,
            Err(why) => return End::NotRecorded(why.to_string()),
        };
        match message {
            // A client closes its channel once both sides are at their end, and takes no exit status after that. So the
            // end waits for the status: with `ssh -n db-1 'make > log 2>&1'` minutes lie between them.
            ChannelMessage::Eof if !exited && !lane.is_forward() => ended = true,
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
                exited |= is_ending(&message);
                let end = (exited && std::mem::take(&mut ended)).then_some(ChannelMessage::Eof);
                let half_closed = lane.is_forward() && message == ChannelMessage::Eof;
                for message in std::iter::once(message).chain(end) {
                    if session.is_barred() || mouth.say(message).await.is_err() {
                        return End::UserLeft;
                    }
                }
                if half_closed {
                    return End::HalfClosed;
                }
            }
        }
    }
    if closed { End::Closed } else { End::Sentence(format!("{} closed the connection.", session.instance())) }
}

/// How a command ended (RFC 4254 §6.10).
fn is_ending(message: &ChannelMessage) -> bool {
    matches!(message, ChannelMessage::ExitStatus(_) | ChannelMessage::ExitSignal { .. })
}

/// A terminal for what already runs: sshd takes none, and the ledger must not believe in one.
fn too_late(message: &ChannelMessage, begun: bool) -> bool {
    begun && matches!(message, ChannelMessage::Pty { .. })
}

/// What the user starts with this message, in the words of `channel_opened`.
fn started(message: &ChannelMessage) -> Option<(&'static str, Option<String>)> {
    let text = |bytes: &[u8]| Some(String::from_utf8_lossy(bytes).into_owned());
    match message {
        ChannelMessage::Shell => Some(("shell", None)),
        ChannelMessage::Exec(command) => Some(("exec", text(command))),
        ChannelMessage::Subsystem(name) if name == "sftp" => Some(("sftp", None)),
        ChannelMessage::Subsystem(name) => Some(("subsystem", text(name.as_bytes()))),
        _ => None,
    }
}

impl Lane {
    fn is_forward(&self) -> bool {
        matches!(self.carries, Carries::Forward(_))
    }

    /// Whether a message of the user is passed on. What is not is left out, and the session goes on.
    fn takes(&self, session: &Ongoing, message: &ChannelMessage) -> bool {
        match (message, &self.carries) {
            (ChannelMessage::Data(_) | ChannelMessage::Eof | ChannelMessage::Close, _) => true,
            (_, Carries::Forward(_)) => false,
            // Refused when it was asked for; many clients ask always.
            (ChannelMessage::Agent, Carries::Session) => session.authorized().may(Capability::Agent),
            (_, Carries::Session) => true,
        }
    }
}

/// Watches the first bytes of one direction of a forward for an SSH version (RFC 4253 §4.2). Nothing is held back: the
/// first four bytes of a stream are harmless, and some protocols wait for an answer to their first one.
struct Opening {
    seen: Option<Vec<u8>>,
}

impl Opening {
    fn of(lane: &Lane) -> Self {
        Self { seen: lane.is_forward().then(Vec::new) }
    }

    fn is_ssh(&mut self, message: &ChannelMessage) -> bool {
        let (Some(seen), ChannelMessage::Data(bytes)) = (&mut self.seen, message) else { return false };
        seen.extend(bytes.iter().take(SSH.len()));
        if seen.starts_with(SSH) {
            return true;
        }
        if !SSH.starts_with(seen) {
            self.seen = None;
        }
        false
    }
}

/// Why the rules do not let this request through, if so.
fn refusal(session: &Ongoing, message: &ChannelMessage) -> Option<String> {
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
async fn farewell<M: Mouth>(session: &Ongoing, lane: &Lane, mouth: &M, sentence: &str) {
    if lane.is_forward() {
        return;
    }
    let number = lane.number;
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

const SSH: &[u8] = b"SSH-";
/// Why SSH inside a forward is refused.
const SSH_IN_FORWARD: &str =
    "SSH inside a forward cannot be recorded: jump to an instance that the bastion knows";
/// How long a side that should be ending is listened to.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    fn data(text: &str) -> ChannelMessage {
        ChannelMessage::Data(Bytes::copy_from_slice(text.as_bytes()))
    }
    fn forward() -> Lane {
        Lane { number: 1, carries: Carries::Forward("web:80".to_owned()) }
    }

    #[tokio::test]
    async fn what_was_begun_to_be_told_is_told_once_though_the_relay_ends_in_the_middle() {
        let (told, disk) = (AtomicU8::new(0), tokio::sync::Notify::new());
        let mut telling = Telling::default();
        {
            let work = async {
                disk.notified().await;
                told.fetch_add(1, Ordering::Relaxed);
            };
            // The relay ends while the disk is still at it.
            let relayed = telling.tell(work);
            tokio::select! {
                biased;
                () = relayed => panic!("the disk was not ready"),
                () = std::future::ready(()) => {}
            }
        }
        disk.notify_one();
        telling.finish().await;
        telling.finish().await;
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn ssh_in_a_forward_is_seen_however_it_is_cut() {
        let mut whole = Opening::of(&forward());
        assert!(whole.is_ssh(&data("SSH-2.0-OpenSSH_9.2\r\n")));
        let mut cut = Opening::of(&forward());
        assert!(!cut.is_ssh(&data("SS")) && !cut.is_ssh(&data("H")) && cut.is_ssh(&data("-1.99-x")));
    }

    #[test]
    fn what_is_not_ssh_goes_through_and_a_shell_may_print_anything() {
        let mut http = Opening::of(&forward());
        assert!(!http.is_ssh(&data("S")) && !http.is_ssh(&data("END /")) && !http.is_ssh(&data("SSH-2.0-")));
        let mut shell = Opening::of(&Lane { number: 1, carries: Carries::Session });
        assert!(!shell.is_ssh(&data("SSH-2.0-OpenSSH")));
    }

    #[test]
    fn a_terminal_is_passed_on_only_before_anything_runs() {
        let (term, modes) = ("xterm".to_owned(), Vec::new());
        let pty = ChannelMessage::Pty { term, cols: 80, rows: 24, px_width: 0, px_height: 0, modes };
        assert!(!too_late(&pty, false) && too_late(&pty, true) && !too_late(&data("x"), true));
    }

    #[test]
    fn a_channel_that_is_cut_ends_with_a_sentence_and_255() {
        let [said, status, eof] = parting("Your key was revoked.", "0190");
        assert!(matches!(said, ChannelMessage::Stderr(s) if s.ends_with(b"revoked. (session 0190)\r\n")));
        assert!(matches!(status, ChannelMessage::ExitStatus(255)));
        assert!(matches!(eof, ChannelMessage::Eof));
    }
}
