//! Opening a session: the doors in their order. Whoever reads [`open`] has read what must be true before a byte flows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use keystore::journal::Receipt;
use keystore::{Instance, Login};

use super::credential;
use super::listening::Listening;
use super::watch::{LoggedIn, lost_right, still_in, too_many};
use super::{Cut, House, LiveInfo, Registered};
use crate::audit::{Event, FileFacts, SessionFacts};
use crate::auth::Authenticated;
use crate::egress::{self, EgressError, FromInstance, Passage, Passing, Proofs, ToInstance, Upstream};
use crate::policy::Authorized;
use crate::recording::{ChannelSummary, Deed, Mode, Operation, SessionEnd, SessionId, SessionStatus, Tape};

/// Where the caller wants to go.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The instance, as looked up.
    pub instance: Arc<Instance>,
    /// The account there.
    pub login: Login,
    /// Id of the session inside which it is asked for, if it is (SSH inside SSH).
    pub parent: Option<String>,
}

/// Why a session did not open. [`OpenFault::sentence`] is for the user.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    /// Peer: the rules do not allow it.
    #[error("denied by the access rules")]
    Denied,
    /// Peer: the account or key lost its right since the login; says which.
    #[error("{0}")]
    Lost(String),
    /// Internal: no tape, no session.
    #[error("no recording: {0}")]
    NoTape(String),
    /// Internal: no receipt, no session.
    #[error("no audit receipt: {0}")]
    NoReceipt(String),
    /// Instance: it could not be reached or entered.
    #[error(transparent)]
    Egress(#[from] EgressError),
}

impl OpenFault {
    /// One sentence for the user; names nothing the user may not know.
    pub fn sentence(&self, wanted: &Wanted) -> String {
        let name = &wanted.instance.name;
        match self {
            Self::Denied => format!("The access rules do not let you in as {}@{name}.", wanted.login),
            Self::Lost(sentence) => sentence.clone(),
            Self::NoTape(_) => "Your session cannot be recorded, so it was not opened.".to_owned(),
            Self::NoReceipt(_) => "Your session cannot be audited, so it was not opened.".to_owned(),
            Self::Egress(EgressError::HostKeyMismatch { .. }) => format!(
                "{name} shows a host key that is not on record; someone may be in between. Tell your administrator."
            ),
            Self::Egress(EgressError::Unreachable { .. }) => format!("{name} does not answer."),
            Self::Egress(EgressError::NothingInCommon { kind, .. }) => {
                format!("{name} has no {kind} in common with this bastion. Tell your administrator.")
            }
            Self::Egress(EgressError::NotAccepted | EgressError::KeyNotAccepted(_)) => format!(
                "{name} does not accept this bastion for {}. Your administrator can mend that: keyward instances \
                 trust-script {name} prints what to run there.",
                wanted.login
            ),
            Self::Egress(EgressError::Certificate(_) | EgressError::Credential(_)) => {
                format!("This bastion could not make ready to enter {name}. Tell your administrator.")
            }
            Self::Egress(_) => format!("{name} could not be entered."),
        }
    }
}

/// A session that is authorised, on tape and in the trail. End it with [`Ongoing::close`].
pub struct Ongoing {
    id: String,
    house: Arc<House>,
    authorized: Authorized,
    parent: Option<String>,
    tape: Tape,
    registered: Registered,
    told: AtomicBool,
    failure_told: AtomicBool,
    /// The channels that stand for ports and sockets on which the instance listens.
    pub(super) listening: Listening,
}

/// A session that is signed in on its instance. End it with [`Opened::close`].
pub struct Opened {
    ongoing: Ongoing,
    upstream: Upstream,
}

impl std::ops::Deref for Opened {
    type Target = Ongoing;
    fn deref(&self) -> &Ongoing {
        &self.ongoing
    }
}

/// Opens the session `id`, in this order: policy, registry, tape, durable audit receipt, dial.
///
/// # Errors
/// [`OpenFault`]; whatever was begun (tape, trail) has then been closed again.
pub async fn open(
    house: &Arc<House>,
    caller: &Authenticated,
    wanted: &Wanted,
    id: SessionId,
) -> Result<Opened, OpenFault> {
    let (ongoing, receipt) = begin(house, caller, wanted, id).await?;
    match credential::dial(house, ongoing.proofs(&receipt), (&ongoing.id, ongoing.passage())).await {
        Ok(upstream) => Ok(Opened { ongoing, upstream }),
        Err(fault) => Err(ongoing.not_reached(fault).await),
    }
}

/// Opens a session for a stream that is no SSH, to `port` of the instance; the same doors, and a plain dial.
///
/// # Errors
/// As [`open`].
pub async fn open_plain(
    house: &Arc<House>,
    caller: &Authenticated,
    wanted: &Wanted,
    port: u16,
) -> Result<(Ongoing, Passing), OpenFault> {
    let id = SessionId::new(Timestamp::now());
    let (ongoing, receipt) = begin(house, caller, wanted, id).await?;
    match egress::dial_plain(ongoing.proofs(&receipt), ongoing.passage(), port).await {
        Ok(stream) => Ok((ongoing, stream)),
        Err(fault) => Err(ongoing.not_reached(fault).await),
    }
}

/// Policy, tape, durable audit receipt.
async fn begin(
    house: &Arc<House>,
    caller: &Authenticated,
    wanted: &Wanted,
    id: SessionId,
) -> Result<(Ongoing, Receipt), OpenFault> {
    let now = Timestamp::now();
    // The login may be hours old: the roles of now count, more of them or fewer.
    let by = LoggedIn {
        user: caller.user(),
        key: caller.key(),
        certificate: caller.certificate_id(),
        only_exchanges: caller.only_exchanges(),
    };
    let user = match still_in(house, by, now).await {
        Ok(user) => user,
        Err(sentence) => return Err(lost(house, caller, wanted, (id, sentence)).await?),
    };
    let to = (&*wanted.instance, &wanted.login);
    let authorized = match house.rulebook.load().authorize(caller, &user.roles, to, now) {
        Ok(authorized) => authorized,
        Err(_denied) => {
            audit(house, denied_event(caller, wanted, format!("no rule allows it (request {id})"))).await?;
            return Err(OpenFault::Denied);
        }
    };
    // First into the registry, then the question again: what is lost from here on cuts.
    let info = live_info(&authorized, id, now);
    let registered = house.registry.enter(info.clone());
    if let Some(sentence) = lost_right(house, &info, now).await.or_else(|| too_many(house, &info)) {
        return Err(lost(house, caller, wanted, (id, sentence)).await?);
    }
    let tape = match house.tapes.record(&authorized, (id, wanted.parent.as_deref()), now).await {
        Ok(tape) => tape,
        Err(error) => {
            let why = error.to_string();
            audit(house, recording_failed(&authorized, &id.to_string(), &why)).await?;
            return Err(OpenFault::NoTape(why));
        }
    };
    let id = id.to_string();
    let opened = Event::SessionOpened {
        facts: SessionFacts { parent: wanted.parent.clone(), ..facts(&authorized, &id) },
        rules: authorized.rules().to_vec(),
        recording: (tape.mode() == Mode::BestEffort).then(|| "best_effort".to_owned()),
    };
    let allowed = access_allowed(&authorized, &id);
    // One sync for both: the first is queued before the second.
    let (allowed, opened) = tokio::join!(house.trail.append(allowed, now), house.trail.append(opened, now));
    match allowed.and(opened) {
        Ok(receipt) => {
            let house = Arc::clone(house);
            let (told, failure_told) = (AtomicBool::new(false), AtomicBool::new(false));
            let parent = wanted.parent.clone();
            let listening = Listening::default();
            let ongoing =
                Ongoing { id, house, authorized, parent, tape, registered, told, failure_told, listening };
            Ok((ongoing, receipt))
        }
        Err(error) => {
            seal(&tape, SessionStatus::Killed, "no audit receipt").await;
            Err(OpenFault::NoReceipt(error.to_string()))
        }
    }
}

/// A right that was lost since the login, in the trail.
async fn lost(
    house: &House,
    caller: &Authenticated,
    wanted: &Wanted,
    (id, sentence): (SessionId, String),
) -> Result<OpenFault, OpenFault> {
    audit(house, denied_event(caller, wanted, format!("{sentence} (request {id})"))).await?;
    Ok(OpenFault::Lost(sentence))
}

impl Ongoing {
    /// Its id, as text.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// What the policy granted.
    pub fn authorized(&self) -> &Authorized {
        &self.authorized
    }
    /// The tape it is recorded on.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }
    /// The instance's name.
    pub fn instance(&self) -> &str {
        self.authorized.instance().name.as_str()
    }
    /// A wire that tells when it is cut.
    pub fn cut(&self) -> Cut {
        self.registered.cut.clone()
    }

    /// Whether it was cut: nothing passes any more, though not everybody was told yet.
    pub(super) fn is_barred(&self) -> bool {
        self.registered.passage().is_barred()
    }

    fn passage(&self) -> &Arc<Passage> {
        self.registered.passage()
    }

    fn proofs<'a>(&'a self, receipt: &'a Receipt) -> Proofs<'a> {
        Proofs { authorized: &self.authorized, tape: &self.tape, receipt }
    }

    /// Says in the trail that a forward was refused.
    pub async fn forward_denied(&self, target: &str, why: &str) {
        let event = Event::ForwardDenied {
            user: self.authorized.user().to_string(),
            source_ip: self.authorized.source().ip().to_string(),
            session: Some(self.id.clone()),
            target: target.chars().take(256).collect(),
            reason: why.to_owned(),
        };
        if let Err(fault) = audit(&self.house, event).await {
            tracing::error!(session.id = %self.id, %fault, "audit.append_failed");
        }
    }

    /// Whether the user is still to be told that somebody watches; says yes once.
    pub(super) fn must_tell_watched(&self) -> bool {
        self.house.config().recording.tell_watched && !self.told.swap(true, Ordering::Relaxed)
    }

    /// The trail hears of what the user starts on a channel before the instance does.
    ///
    /// # Errors
    /// [`OpenFault::NoReceipt`]: it must not start.
    pub(super) async fn channel_opened(
        &self,
        channel: u32,
        (kind, command): (&str, Option<String>),
    ) -> Result<(), OpenFault> {
        let (user, session) = (self.authorized.user().to_string(), self.id.clone());
        let command = command.map(|command| command.chars().take(LONGEST_COMMAND).collect());
        let event = Event::ChannelOpened { user, session, channel, kind: kind.to_owned(), command };
        audit(&self.house, event).await
    }

    /// A channel is over.
    pub(super) async fn channel_closed(&self, ledger: ChannelSummary) {
        let event = Event::ChannelClosed {
            user: self.authorized.user().to_string(),
            session: self.id.clone(),
            channel: ledger.channel,
            kind: ledger.kind,
            relayed_bytes: ledger.relayed_bytes,
            captured_bytes: ledger.captured_bytes,
        };
        self.note(event).await;
    }

    /// A file was read, written or changed.
    pub(super) async fn operated(&self, operation: Operation) {
        let (user, session) = (self.authorized.user().to_string(), self.id.clone());
        let (instance, failed) = (self.instance().to_owned(), operation.failed());
        let Operation { deed, path, or_path, to, bytes, sha256, stream_sha256, fault: reason, .. } =
            operation;
        let file = FileFacts { user, session, instance, path, or_path, reason };
        let event = match deed {
            Deed::Read => Event::FileRead { file, bytes, sha256, stream_sha256 },
            Deed::Written => Event::FileWritten { file, bytes, sha256, stream_sha256 },
            // What the instance refused to change is on the tape.
            _ if failed => return,
            _ => Event::FileChanged { file, deed: deed.as_str().to_owned(), to },
        };
        self.note(event).await;
    }

    /// The tape took no more: says so in the trail, once.
    pub(super) async fn note_recording_failed(&self, why: &str) {
        if !self.failure_told.swap(true, Ordering::Relaxed) {
            self.note(recording_failed(&self.authorized, &self.id, why)).await;
        }
    }

    async fn note(&self, event: Event) {
        if let Err(fault) = audit(&self.house, event).await {
            tracing::error!(session.id = %self.id, %fault, "audit.append_failed");
        }
    }

    /// The tape took no more: says so in the trail and cuts every channel of the session.
    pub async fn recording_failed(&self, why: &str) {
        self.note_recording_failed(why).await;
        self.registered.cut("Recording failed, so your session cannot go on.");
    }

    /// The instance was not reached: says so in the trail and ends the session.
    async fn not_reached(self, fault: EgressError) -> OpenFault {
        // Who is cut on the way there is shut off from the instance, which is no fault of the instance's.
        if let Some(sentence) = self.registered.cut.sentence() {
            self.close().await;
            return OpenFault::Lost(sentence);
        }
        not_reached(&self.house, &self.authorized, &self.id, &fault).await;
        let (parent, reason) = (self.parent.clone(), &fault.to_string());
        let ending = Ending { id: &self.id, parent, killed: false, by: None, reason };
        finish(&self.house, &self.authorized, &self.tape, ending).await;
        fault.into()
    }

    /// Seals the tape and says so in the trail.
    pub async fn close(&self) {
        self.end(BY_USER).await;
    }

    /// The same, with the reason unless the session was cut.
    async fn end(&self, otherwise: &str) {
        self.listens_nowhere().await;
        let reason = self.registered.cut.reason();
        let ending = Ending {
            id: &self.id,
            parent: self.parent.clone(),
            killed: reason.is_some(),
            by: self.registered.cut.by(),
            reason: reason.as_deref().unwrap_or(otherwise),
        };
        finish(&self.house, &self.authorized, &self.tape, ending).await;
    }
}

impl Opened {
    /// The connection to the instance.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Opens a session channel on the instance.
    ///
    /// # Errors
    /// [`EgressError::Broken`].
    pub async fn channel(&self) -> Result<(FromInstance, ToInstance), EgressError> {
        self.upstream.open_session().await
    }

    /// Ends the connection to the instance.
    pub async fn hang_up(&self) {
        self.upstream.hang_up().await;
    }

    /// Hangs up, seals the tape and says so in the trail.
    pub async fn close(&self) {
        let reason = if self.upstream.is_closed() { BY_INSTANCE } else { BY_USER };
        self.hang_up().await;
        self.ongoing.end(reason).await;
    }
}

/// Characters of a command or target that stand in the trail; the whole of a command lies on the tape.
const LONGEST_COMMAND: usize = 4096;
/// Why a session that was not cut is over.
const BY_USER: &str = "closed by the user";
const BY_INSTANCE: &str = "the instance closed the connection";

struct Ending<'a> {
    id: &'a str,
    parent: Option<String>,
    killed: bool,
    by: Option<String>,
    reason: &'a str,
}

/// Seals the tape, then appends the close that carries its digest.
async fn finish(house: &House, authorized: &Authorized, tape: &Tape, ending: Ending<'_>) {
    let status = if ending.killed { SessionStatus::Killed } else { SessionStatus::Closed };
    let Sealed { digest, summary, status, reason } = seal(tape, status, ending.reason).await;
    let facts = SessionFacts { parent: ending.parent, ..facts(authorized, ending.id) };
    let killed = ending.killed.then(|| Event::SessionKilled {
        facts: facts.clone(),
        by: ending.by.clone(),
        reason: reason.clone(),
    });
    let word = if status == SessionStatus::Closed { "closed" } else { "killed" };
    let closed =
        Event::SessionClosed { facts, status: word.to_owned(), reason: Some(reason), digest, summary };
    for event in killed.into_iter().chain([closed]) {
        if let Err(fault) = audit(house, event).await {
            tracing::error!(session.id = %ending.id, %fault, "audit.append_failed");
        }
    }
}

/// How a tape ended. One that failed counts as killed, whatever ended its session.
struct Sealed {
    digest: String,
    summary: Option<String>,
    status: SessionStatus,
    reason: String,
}

async fn seal(tape: &Tape, status: SessionStatus, reason: &str) -> Sealed {
    match tape.seal(SessionEnd { status, reason: Some(reason.to_owned()) }, Timestamp::now()).await {
        Ok(summary) => {
            let told = summary.sha256();
            Sealed {
                digest: summary.digest.unwrap_or_default(),
                summary: told,
                status: summary.status,
                reason: summary.reason.unwrap_or_else(|| reason.to_owned()),
            }
        }
        Err(error) => {
            tracing::error!(%error, "tape.seal_failed");
            Sealed { digest: String::new(), summary: None, status, reason: reason.to_owned() }
        }
    }
}

async fn not_reached(house: &House, authorized: &Authorized, id: &str, fault: &EgressError) {
    let event = fault.event(facts(authorized, id));
    if let Err(fault) = audit(house, event).await {
        tracing::error!(session.id = %id, %fault, "audit.append_failed");
    }
}

async fn audit(house: &House, event: Event) -> Result<(), OpenFault> {
    match house.trail.append(event, Timestamp::now()).await {
        Ok(_receipt) => Ok(()),
        Err(error) => Err(OpenFault::NoReceipt(error.to_string())),
    }
}

fn facts(authorized: &Authorized, session: &str) -> SessionFacts {
    SessionFacts {
        session: session.to_owned(),
        user: authorized.user().to_string(),
        source_ip: authorized.source().ip().to_string(),
        key: authorized.key().to_owned(),
        instance: authorized.instance().name.to_string(),
        login: authorized.login().to_string(),
        parent: None,
    }
}

fn access_allowed(authorized: &Authorized, session: &str) -> Event {
    let SessionFacts { session, user, source_ip, key, instance, login, .. } = facts(authorized, session);
    let (session, rules) = (Some(session), authorized.rules().to_vec());
    Event::AccessAllowed { user, source_ip, key, session, instance, login, rules }
}

fn recording_failed(authorized: &Authorized, session: &str, why: &str) -> Event {
    Event::RecordingFailed {
        user: authorized.user().to_string(),
        session: session.to_owned(),
        reason: why.to_owned(),
    }
}

fn denied_event(caller: &Authenticated, wanted: &Wanted, reason: String) -> Event {
    Event::AccessDenied {
        user: caller.user().to_string(),
        source_ip: caller.source().ip().to_string(),
        key: Some(caller.key().to_owned()),
        instance: Some(wanted.instance.name.to_string()),
        login: Some(wanted.login.to_string()),
        reason,
    }
}

fn live_info(authorized: &Authorized, id: SessionId, now: Timestamp) -> LiveInfo {
    LiveInfo {
        session: Some(id.to_string()),
        user: authorized.user().clone(),
        key: authorized.key().to_owned(),
        certificate: authorized.certificate(),
        source: authorized.source(),
        to: Some((authorized.instance().name.clone(), authorized.login().clone(), authorized.can().clone())),
        instance_added: Some(authorized.instance().added_at),
        since: now,
        only_exchanges: false,
    }
}
