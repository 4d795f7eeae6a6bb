//! What can happen. The names are in the contract and stay; fields may be added.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use super::store::StoreHead;

/// Who a session belongs to and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Session id.
    pub session: String,
    /// The user.
    pub user: String,
    /// Where the user came from.
    pub source_ip: String,
    /// Fingerprint of the key that signed, `SHA256:…`.
    pub key: String,
    /// The instance's name.
    pub instance: String,
    /// Account on the instance.
    pub login: String,
    /// The session inside which this one was asked for, if it was (SSH inside SSH).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// Which file of which instance, and in whose session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// The user it is about.
    pub user: String,
    /// Session id.
    pub session: String,
    /// The instance's name.
    pub instance: String,
    /// Path on the instance.
    pub path: String,
    /// Where it is instead if that was not what it seemed: a directory, or one of several of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_path: Option<String>,
    /// Why it failed or is not known whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl FileFacts {
    /// Every path it may be.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.path.as_str()).chain(self.or_path.as_deref())
    }
}

/// One audit event. The JSON tag is `event`, in snake case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(tag = "event", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Event {
    /// A person completed key and code.
    SshLoginSucceeded {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// The certificate it came with, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
    },
    /// A login did not complete. The reason is for the auditor; the peer never sees it.
    SshLoginFailed {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A second factor was enrolled.
    MfaEnrolled {
        /// The user it is about.
        user: String,
        /// Who did it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// It waits for its first code: [`Event::MfaConfirmed`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pending: bool,
    },
    /// A login was completed with the first code of a second factor; one that it replaces is gone.
    MfaConfirmed {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
    },
    /// A code was wrong or spent.
    MfaFailed {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A second factor, or its recovery codes, were replaced or removed.
    MfaReset {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// What was replaced, if the second factor itself stays: `recovery codes`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        what: Option<String>,
    },
    /// A user was added.
    UserAdded {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// Role names.
        roles: Vec<String>,
    },
    /// A user was given a one-time enrolment code.
    UserInvited {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// RFC 3339, UTC.
        expires_at: String,
    },
    /// A user got or lost roles.
    UserRolesChanged {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// Role names that the user got.
        added: Vec<String>,
        /// Role names that the user lost.
        removed: Vec<String>,
        /// Role names that the user has now.
        roles: Vec<String>,
    },
    /// A user was suspended.
    UserSuspended {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// Why, in words for the auditor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A suspended or expired user was let in again, or expires at another time now.
    UserResumed {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
        /// When the user expires, if that was said anew: RFC 3339, or `never`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
    },
    /// A user was removed.
    UserRemoved {
        /// The user it is about.
        user: String,
        /// Who did it.
        by: String,
    },
    /// A key was added.
    SshKeyAdded {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Who did it.
        by: String,
    },
    /// A key proved itself and became active.
    SshKeyActivated {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A key got a successor.
    SshKeyRotated {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Fingerprint of the new key.
        successor: String,
        /// Who did it.
        by: String,
    },
    /// A key logged in while it was at work from another address.
    SshKeySharedSuspected {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// The other addresses.
        elsewhere: Vec<String>,
    },
    /// A key will expire soon.
    SshKeyExpiring {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// RFC 3339, UTC.
        expires_at: String,
    },
    /// A key expired.
    SshKeyExpired {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A key's life was shortened: the terms of its owner are stricter than when it was added.
    SshKeyShortened {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// When it would have expired; RFC 3339, UTC.
        was: String,
        /// When it expires; RFC 3339, UTC.
        until: String,
    },
    /// A replaced key goes on working for a while: its successor is in use.
    SshKeyRetiring {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Fingerprint of the new key.
        successor: String,
        /// RFC 3339, UTC.
        until: String,
    },
    /// A replaced key stopped working.
    SshKeyRetired {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A key was withdrawn for good.
    SshKeyRevoked {
        /// The user it is about.
        user: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Who did it.
        by: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// An instance was added.
    InstanceAdded {
        /// The instance's name.
        instance: String,
        /// `HOST:PORT`.
        address: String,
        /// Who did it.
        by: String,
    },
    /// An instance was removed.
    InstanceRemoved {
        /// The instance's name.
        instance: String,
        /// Who did it.
        by: String,
    },
    /// An instance showed a host key that is not the trusted one; the session was refused.
    InstanceHostKeyMismatch {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Session id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<String>,
        /// Fingerprint of the key that was shown.
        offered: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// An instance could not be dialled.
    InstanceUnreachable {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Session id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<String>,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A rule let a user reach an instance.
    AccessAllowed {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Session id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Ids of the rules that allowed it.
        rules: Vec<String>,
    },
    /// An access rule was added.
    AccessRuleAdded {
        /// Rule id.
        rule: String,
        /// Who did it.
        by: String,
        /// The rule in words.
        summary: String,
    },
    /// An access rule was removed.
    AccessRuleRemoved {
        /// Rule id.
        rule: String,
        /// Who did it.
        by: String,
    },
    /// A user asked for something that no rule allows.
    AccessDenied {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// The instance's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
        /// Account on the instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<String>,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A session is about to start: durable before any byte flows.
    SessionOpened {
        /// Who, where, as whom.
        #[serde(flatten)]
        facts: SessionFacts,
        /// Ids of the rules that allowed it.
        rules: Vec<String>,
        /// `best_effort` where it goes on if its recording fails.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recording: Option<String>,
    },
    /// A session ended; `digest` is the SHA-256 of its tape.
    SessionClosed {
        /// Who, where, as whom.
        #[serde(flatten)]
        facts: SessionFacts,
        /// `closed`, `killed` or `truncated`.
        status: String,
        /// Why, in words for the auditor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// SHA-256 of the tape file, hex.
        digest: String,
        /// SHA-256 of the summary beside it, hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        summary: Option<String>,
    },
    /// A session was cut.
    SessionKilled {
        /// Who, where, as whom.
        #[serde(flatten)]
        facts: SessionFacts,
        /// Who did it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A channel opened in a session.
    ChannelOpened {
        /// The user it is about.
        user: String,
        /// Session id.
        session: String,
        /// Channel number within the session.
        channel: u32,
        /// `shell`, `exec`, `sftp`, `forward`, …
        kind: String,
        /// The command, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<String>,
    },
    /// A channel closed in a session.
    ChannelClosed {
        /// The user it is about.
        user: String,
        /// Session id.
        session: String,
        /// Channel number within the session.
        channel: u32,
        /// `shell`, `exec`, `sftp`, `forward`, …
        kind: String,
        /// Bytes relayed.
        relayed_bytes: u64,
        /// Bytes kept on the tape.
        captured_bytes: u64,
    },
    /// A forward was refused.
    ForwardDenied {
        /// The user it is about.
        user: String,
        /// Where the peer came from.
        source_ip: String,
        /// Session id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        /// `HOST:PORT` asked for.
        target: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A file was read from an instance.
    FileRead {
        /// Which file.
        #[serde(flatten)]
        file: FileFacts,
        /// Size in bytes.
        bytes: u64,
        /// SHA-256 of the content, hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
        /// SHA-256 of the protocol's stream, hex, where files do not pass whole (rsync, git).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream_sha256: Option<String>,
    },
    /// A file was written to an instance.
    FileWritten {
        /// Which file.
        #[serde(flatten)]
        file: FileFacts,
        /// Size in bytes.
        bytes: u64,
        /// SHA-256 of the content, hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
        /// SHA-256 of the protocol's stream, hex, where files do not pass whole (rsync, git).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream_sha256: Option<String>,
    },
    /// A file of an instance was renamed, linked, removed or changed without its content.
    FileChanged {
        /// Which file.
        #[serde(flatten)]
        file: FileFacts,
        /// `renamed`, `removed`, `directory made`, `changed`.
        deed: String,
        /// The new path of a rename, or what was changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// A recorder failed; its session was refused or cut.
    RecordingFailed {
        /// The user it is about.
        user: String,
        /// Session id.
        session: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// Someone read a tape.
    RecordingViewed {
        /// Who did it.
        by: String,
        /// Session id.
        session: String,
    },
    /// Someone searched the tapes.
    RecordingsSearched {
        /// Who did it.
        by: String,
        /// For what.
        pattern: String,
        /// In how many sessions.
        count: u64,
    },
    /// Someone took tapes out as a signed archive.
    RecordingsBundled {
        /// Who did it.
        by: String,
        /// Which sessions.
        sessions: Vec<String>,
    },
    /// A tape is kept past its time.
    RecordingHeld {
        /// Who did it.
        by: String,
        /// Session id.
        session: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A tape is no longer kept past its time.
    RecordingReleased {
        /// Who did it.
        by: String,
        /// Session id.
        session: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A tape's time is over: it is deleted once this is signed.
    RecordingDeleted {
        /// The user it is about.
        user: String,
        /// Session id.
        session: String,
        /// SHA-256 of the tape file, hex.
        digest: String,
        /// Which rule, in words for the auditor.
        reason: String,
    },
    /// A second auditor lets someone watch a live session.
    WatchApproved {
        /// Who did it.
        by: String,
        /// Who may watch.
        user: String,
        /// Session id.
        session: String,
        /// RFC 3339, UTC.
        until: String,
    },
    /// An auditor was given a sign-in link for the web console.
    ConsoleLinkGiven {
        /// The user it is about.
        user: String,
        /// Where the SSH connection came from.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A sign-in link was used: a browser is let in.
    ConsoleSignedIn {
        /// The user it is about.
        user: String,
        /// Where the SSH connection came from that asked for the link.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A sign-in link let nobody in.
    ConsoleSignInFailed {
        /// The user it is about.
        user: String,
        /// Where the SSH connection came from that asked for the link.
        source_ip: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A browser was signed out.
    ConsoleSignedOut {
        /// The user it is about.
        user: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// The keys of all tapes were wrapped anew.
    RecordingsRewrapped {
        /// Who did it.
        by: String,
        /// How many tapes.
        count: u64,
        /// Who can read them now: `age1…`.
        recipients: Vec<String>,
    },
    /// Someone exported the trail.
    LogsExported {
        /// Who did it.
        by: String,
        /// Start of the range, RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// End of the range, RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// How many events.
        count: u64,
    },
    /// A source address was banned.
    SourceBanned {
        /// Where the peer came from.
        source_ip: String,
        /// RFC 3339, UTC.
        until: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A ban ended.
    SourceUnbanned {
        /// Where the peer came from.
        source_ip: String,
        /// Who did it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// Everything was denied.
    LockdownStarted {
        /// Who did it.
        by: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// The lockdown was lifted.
    LockdownEnded {
        /// Who did it.
        by: String,
    },
    /// The store is about to be sealed under another master key.
    MasterKeyRotationBegun {
        /// Who did it.
        by: String,
        /// Id of the master key of now, 16 hex digits.
        from: String,
        /// Id of the one to come.
        to: String,
    },
    /// The store is sealed under another master key, and nothing that the old one opens is left in it.
    MasterKeyRotated {
        /// Who did it.
        by: String,
        /// Id of the master key before, 16 hex digits.
        from: String,
        /// Id of the one of now.
        to: String,
        /// How many values were sealed anew.
        records: u64,
    },
    /// The store's journal forgot what is not live. This trail is never compacted.
    StoreCompacted {
        /// The last record that was forgotten.
        through: u64,
        /// Its hash, hex: the chain of the store's journal goes on from there.
        head: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// A key was made that Keyward itself signs in to an instance with.
    CredentialAdded {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Who did it.
        by: String,
    },
    /// An instance accepted that key for the first time.
    CredentialProven {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// That key got a successor, which is about to be installed there.
    CredentialRotationBegun {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// Fingerprint of the new key.
        successor: String,
        /// Who did it; `keyward` if it was due.
        by: String,
    },
    /// The successor has logged in there, and is in use.
    CredentialRotated {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint of the key in use now.
        key: String,
        /// Fingerprint of the one before.
        replaced: String,
    },
    /// The key before was removed there, and is forgotten.
    CredentialRetired {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
    },
    /// A rotation went no further; it is tried again.
    CredentialRotationFailed {
        /// The instance's name.
        instance: String,
        /// Account on the instance.
        login: String,
        /// Fingerprint of the key in use.
        key: String,
        /// How far it came, and why no further.
        reason: String,
    },
    /// A CA got a successor; both are trusted for a while.
    CaRotationBegun {
        /// `user` or `host`.
        ca: String,
        /// Fingerprint of the CA of now.
        key: String,
        /// Fingerprint of its successor.
        successor: String,
        /// When the successor takes its place, RFC 3339, UTC.
        until: String,
        /// Who did it.
        by: String,
    },
    /// The successor of a CA took its place; the one before is forgotten.
    CaRotated {
        /// `user` or `host`.
        ca: String,
        /// Fingerprint of the CA of now.
        key: String,
        /// Fingerprint of the one before.
        replaced: String,
        /// Who did it; `keyward` if it was due.
        by: String,
        /// Instances that were not yet seen to accept it.
        not_seen_on: Vec<String>,
    },
    /// An instance does not trust the CA that is announced, or did not say: found by a login of Keyward's own.
    CaNotTrusted {
        /// `user`.
        ca: String,
        /// The instance's name.
        instance: String,
        /// Fingerprint of the announced CA.
        key: String,
        /// Why.
        reason: String,
    },
    /// The daemon started.
    DaemonStarted {
        /// Keyward's version.
        version: String,
    },
    /// The daemon stopped.
    DaemonStopped {
        /// Why, in words for the auditor.
        reason: String,
    },
    /// The machine's clock, which was far ahead of what the bastion had seen, is right: an administrator says so.
    ClockConfirmed {
        /// Who did it.
        by: String,
        /// What was believed before (RFC 3339).
        believed: String,
    },
    /// A change that the trail told of was not made after all.
    ChangeFailed {
        /// Number of the event that told of it: the first, if there were several.
        change: u64,
        /// The names of those events.
        what: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// The configuration was read again.
    ConfigReloaded {
        /// Who did it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// The keys that now say something else and count from now on: `mfa.remember`.
        #[serde(default)]
        changed: Vec<String>,
        /// The keys that now say something else and count only after a restart.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at_start: Vec<String>,
    },
    /// The file of heads was not there, and begins with the next checkpoint. A second time: somebody removed it.
    HeadFileBegun {
        /// Where it lies.
        file: String,
    },
    /// The disk of the state directory fills: told once at each crossing, and when the trail lives on its reserve.
    DiskLow {
        /// Hundredths that are taken.
        percent_used: u64,
        /// Bytes that may still be written.
        bytes_left: u64,
        /// Whether the trail's reserve is still there.
        reserve: bool,
    },
    /// The chain up to `through` was signed.
    CheckpointSigned {
        /// Sequence number of the last event it covers.
        through: u64,
        /// Hash of that event, hex.
        head: String,
        /// Fingerprint, `SHA256:…`.
        key: String,
        /// How far the store was: it may never be behind this again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<StoreHead>,
    },
    /// Somebody who has the disk and not the keys wrote events into the trail while the bastion was down. They were taken
    /// out of it; their numbers are given again, this event's first.
    TrailForged {
        /// The number that the first of them had.
        from: u64,
        /// The number that the last of them had.
        through: u64,
        /// Where their lines are kept: a file name in `forged/` of the trail.
        kept: String,
        /// SHA-256 of that file, hex.
        sha256: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// What a receiver of events had taken is not known: all events are sent to it again.
    ReceiverRewound {
        /// Which, and where it is.
        receiver: String,
        /// Why, in words for the auditor.
        reason: String,
    },
    /// The store is not the one that a checkpoint saw: it was restored from a backup, or rolled back.
    StoreReplaced {
        /// Why, in words for the auditor.
        reason: String,
    },
}

impl Event {
    /// The name in the contract, as in `ssh_login_failed`.
    pub fn name(&self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_json_tag_and_absent_fields_are_left_out() {
        let event = Event::SshLoginFailed {
            user: "mallory".to_owned(),
            source_ip: "192.0.2.7".to_owned(),
            key: None,
            reason: "unknown user".to_owned(),
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], event.name());
        assert!(json.get("key").is_none());
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }

    #[test]
    fn a_session_event_is_flat() {
        let facts = SessionFacts {
            session: "s".to_owned(),
            user: "alice".to_owned(),
            source_ip: "192.0.2.1".to_owned(),
            key: "SHA256:x".to_owned(),
            instance: "db-1".to_owned(),
            login: "ubuntu".to_owned(),
            parent: None,
        };
        let event = Event::SessionOpened { facts, rules: vec!["R1".to_owned()], recording: None };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], "session_opened");
        assert_eq!(json["instance"], "db-1");
        assert!(json.get("facts").is_none());
    }
}
