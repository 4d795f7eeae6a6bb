//! The audit events of administration, each with who did it.

use jiff::Timestamp;
use keystore::{Instance, Role, User, UserKey, UserName};

use super::{Caller, Fault};
use crate::audit::Event;
use crate::session::House;

/// Appends `event`; what it tells of has happened already, so a failure says that the change stands unrecorded.
pub(super) async fn note(house: &House, event: Event, now: Timestamp) -> Result<(), Fault> {
    match house.trail.append(event, now).await {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Fault::error(format!("the change was made, but is not in the audit trail: {error}")))
        }
    }
}

pub(super) fn user_added(caller: &Caller, user: &User) -> Event {
    let roles = user.roles.iter().map(Role::to_string).collect();
    Event::UserAdded { user: user.name.to_string(), by: caller.name(), roles }
}
pub(super) fn user_suspended(caller: &Caller, user: &UserName, reason: &str) -> Event {
    Event::UserSuspended { user: user.to_string(), by: caller.name(), reason: Some(reason.to_owned()) }
}
pub(super) fn user_resumed(caller: &Caller, user: &UserName) -> Event {
    Event::UserResumed { user: user.to_string(), by: caller.name() }
}
pub(super) fn user_removed(caller: &Caller, user: &UserName) -> Event {
    Event::UserRemoved { user: user.to_string(), by: caller.name() }
}
pub(super) fn mfa_enrolled(caller: &Caller, user: &UserName) -> Event {
    Event::MfaEnrolled { user: user.to_string(), by: Some(caller.name()) }
}
pub(super) fn recovery_codes_replaced(caller: &Caller, user: &UserName) -> Event {
    let what = Some("recovery codes".to_owned());
    Event::MfaReset { user: user.to_string(), by: caller.name(), what }
}
pub(super) fn mfa_reset(caller: &Caller, user: &UserName) -> Event {
    Event::MfaReset { user: user.to_string(), by: caller.name(), what: None }
}
pub(super) fn key_added(caller: &Caller, key: &UserKey) -> Event {
    Event::SshKeyAdded { user: key.user.to_string(), key: key.fingerprint.clone(), by: caller.name() }
}
pub(super) fn key_revoked(caller: &Caller, key: &UserKey, reason: &str) -> Event {
    let (user, key) = (key.user.to_string(), key.fingerprint.clone());
    Event::SshKeyRevoked { user, key, by: caller.name(), reason: reason.to_owned() }
}
pub(super) fn instance_added(caller: &Caller, instance: &Instance) -> Event {
    let (instance, address) = (instance.name.to_string(), instance.address.to_string());
    Event::InstanceAdded { instance, address, by: caller.name() }
}
