//! The audit events of administration, each with who did it, and the way of a change through the trail: every command
//! that changes something goes through [`gives`] or [`takes`] (docs/adr/0006).

use std::collections::BTreeSet;

use jiff::Timestamp;
use keystore::{Instance, Role, User, UserKey, UserName};

use super::{Caller, Fault};
use crate::audit::{AuditError, Event};
use crate::session::House;

/// A change that gives or moves something: its events first, and without them nothing.
pub(super) async fn gives<T>(
    house: &House,
    events: Vec<Event>,
    now: Timestamp,
    change: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    house.trail.ahead_of(events, now, change).await
}

/// A change that takes something away: its event first too, but a trail that refuses does not keep it from being made.
pub(super) async fn takes<T>(
    house: &House,
    event: Event,
    now: Timestamp,
    change: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    takes_all(house, vec![event], now, change).await
}

/// The same, of a change that takes several things away.
pub(super) async fn takes_all<T>(
    house: &House,
    events: Vec<Event>,
    now: Timestamp,
    change: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let (done, refused) = house.trail.beside(events, now, change).await?;
    refused.map_or(Ok(done), |error| Err(unrecorded(error)))
}

/// Appends the event of a lockdown, the one change that goes before its event, since it must wait for no disk.
pub(super) async fn note(house: &House, event: Event, now: Timestamp) -> Result<(), Fault> {
    match house.trail.append(event, now).await {
        Ok(_) => Ok(()),
        Err(error) => Err(unrecorded(error)),
    }
}

fn unrecorded(error: AuditError) -> Fault {
    Fault::error(format!("the change was made, but is not in the audit trail: {error}"))
}

pub(super) fn user_added(caller: &Caller, user: &User) -> Event {
    let roles = user.roles.iter().map(Role::to_string).collect();
    Event::UserAdded { user: user.name.to_string(), by: caller.name(), roles }
}
/// `user` is as it will be.
pub(super) fn user_roles_changed(
    caller: &Caller,
    user: &User,
    (added, removed): (&BTreeSet<Role>, &BTreeSet<Role>),
) -> Event {
    let named = |roles: &BTreeSet<Role>| roles.iter().map(Role::to_string).collect();
    Event::UserRolesChanged {
        user: user.name.to_string(),
        by: caller.name(),
        added: named(added),
        removed: named(removed),
        roles: named(&user.roles),
    }
}
pub(super) fn user_suspended(caller: &Caller, user: &UserName, reason: &str) -> Event {
    Event::UserSuspended { user: user.to_string(), by: caller.name(), reason: Some(reason.to_owned()) }
}
/// `expires_at`: what was said anew of when the user expires, `never` or RFC 3339.
pub(super) fn user_resumed(caller: &Caller, user: &UserName, expires_at: Option<String>) -> Event {
    Event::UserResumed { user: user.to_string(), by: caller.name(), expires_at }
}
pub(super) fn user_removed(caller: &Caller, user: &UserName) -> Event {
    Event::UserRemoved { user: user.to_string(), by: caller.name() }
}
pub(super) fn mfa_enrolled(caller: &Caller, user: &UserName) -> Event {
    Event::MfaEnrolled { user: user.to_string(), by: Some(caller.name()), pending: true }
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
