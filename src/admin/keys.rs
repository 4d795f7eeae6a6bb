//! `ssh-keys …`.
//!
//! A key's record is filed under its fingerprint, so a key that another user holds, or that was ever revoked, cannot be
//! added again. Revoking writes the event, then the record, which cuts the key's live sessions.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use keystore::signing::{GivenKey, KeyFault, parse_user_key};
use keystore::{Ended, KeyStatus, User, UserKey, UserKind, UserName};
use serde_json::{Value, json};

use super::blast::{self, Whose};
use super::render::{day, plain, short_time, table};
use super::report::Lasting;
use super::{Caller, Fault, Output, SshKeys, finds, report, rotate, trail, users};
use crate::auth;
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: SshKeys,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        SshKeys::Add { user, file: _, file_text, name, expires, verify_required } => {
            let text =
                file_text.ok_or_else(|| Fault::usage("name the public key file: --file id_ed25519.pub"))?;
            let expires_at = expires.map(|when| when.ahead(now));
            let key = add(house, caller, NewKey { user, text, name, expires_at, verify_required }).await?;
            let text = format!(
                "Added {} for {}: {}, expires {}.",
                key.id,
                key.user,
                key.fingerprint,
                day(key.expires_at)
            );
            out.either(&shown(&key, now), text).await
        }
        SshKeys::Report { csv } => report::run(house, csv, out).await,
        SshKeys::Rotate { user, old, file: _, file_text, name } => {
            rotate::run(house, caller, rotate::Wanted { user, old, text: file_text, name }, out).await
        }
        SshKeys::List { user, expiring } => {
            let mut keys: Vec<UserKey> = house.vault.list().await?;
            keys.retain(|k| user.as_ref().is_none_or(|u| &k.user == u));
            if let Some(within) = expiring {
                keys.retain(|k| k.usable(now) && k.expires_at.as_second() <= now.as_second() + within.0);
            }
            keys.sort_by(|a, b| (&a.user, a.added_at).cmp(&(&b.user, b.added_at)));
            if keys.is_empty() {
                finds::strangers(house, (user.as_ref(), None), out).await?;
            }
            let services = services(house).await?;
            let text = listed(&keys, &services, now, out.width());
            let values = keys.iter().map(|k| {
                let mut value = shown(k, now);
                if let Some(fields) = value.as_object_mut() {
                    fields.insert("kind".to_owned(), kind(k, &services).into());
                }
                value
            });
            out.either(&values.collect::<Vec<_>>(), text).await
        }
        SshKeys::Show { key } => {
            let key = find(house, &key).await?;
            if !caller.has_role("admin") && !caller.has_role("auditor") && caller.user() != Some(&key.user) {
                return Err(Fault::denied("that key is not yours; see yours with: ssh-keys list"));
            }
            let services = services(house).await?;
            let listed = listed(std::slice::from_ref(&key), &services, now, out.width());
            let owner = users::found(house, &key.user).await.ok();
            let terms = owner.map(|owner| Lasting::of(&house.config().keys, &owner));
            let told = terms.as_ref().map(|terms| format!("\n{}", terms.told())).unwrap_or_default();
            let text = format!("{listed}\n{}{told}", plain(&key.public_key));
            let mut value = shown(&key, now);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("terms".to_owned(), json!(terms));
                fields.insert("kind".to_owned(), kind(&key, &services).into());
            }
            out.either(&value, text).await
        }
        SshKeys::Revoke { key, reason } => {
            let key = find(house, &key).await?;
            if !caller.has_role("admin") && caller.user() != Some(&key.user) {
                return Err(Fault::denied("that key is not yours; see yours with: ssh-keys list"));
            }
            if key.status == KeyStatus::Revoked {
                return Err(Fault::conflict(format!("{} is revoked already", key.id)));
            }
            revoke(house, caller, &key, &reason).await?;
            let successors = revoke_pending(house, caller, &key, now).await?;
            out.note(format!("Revoked {} of {}. Its live sessions were ended.", key.id, key.user)).await?;
            let touched = blast::touched(house, Whose::Key(key.fingerprint.clone()), now).await?;
            let key = find(house, &key.fingerprint).await?;
            let mut text = touched.told(out.width());
            for next in &successors {
                text.push_str(&match next.status_at(now) {
                    KeyStatus::Revoked => format!(
                        "\n{} waited to replace it and was revoked with it. A new one: keyward users invite {}",
                        next.id, key.user
                    ),
                    status => format!(
                        "\n{} ({status}) was added with it, to replace it. Unless {} vouches for it: keyward ssh-keys revoke {} --reason TEXT",
                        next.id, key.user, next.id
                    ),
                });
            }
            let successors: Vec<_> = successors.iter().map(|k| shown(k, now)).collect();
            let value = json!({ "key": shown(&key, now), "touched": touched, "successors": successors });
            out.either(&value, text).await
        }
    }
}

pub(super) struct NewKey {
    pub(super) user: UserName,
    pub(super) text: String,
    pub(super) name: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) verify_required: bool,
}

async fn add(house: &House, caller: &Caller, new: NewKey) -> Result<UserKey, Fault> {
    let now = Timestamp::now();
    let claimed = claimed(house, caller, &new, now).await?;
    let key = made(house, new, claimed.as_ref(), now).await?;
    let Some(claimed) = claimed else {
        let insert = async { Ok(house.vault.insert(&key).await?) };
        trail::gives(house, vec![trail::key_added(caller, &key)], now, insert).await?;
        return Ok(key);
    };
    let takes_over = house.vault.update(&key.fingerprint, |held: &mut UserKey| {
        if *held != claimed {
            return Err(Fault::conflict(format!("{} was used meanwhile; nothing was changed", held.id)));
        }
        held.clone_from(&key);
        Ok(())
    });
    let withdrawn = trail::key_revoked(caller, &claimed, "never proven, and another user's");
    trail::gives(house, vec![withdrawn, trail::key_added(caller, &key)], now, takes_over).await?;
    Ok(key)
}

/// Somebody else's record of the key that is given, if they only named it: a public key is public, and whoever names one
/// as their next must not keep its owner out. An administrator, who vouches for the owner, takes it over while it waits: one
/// that was revoked, by whomever, never comes back.
async fn claimed(
    house: &House,
    caller: &Caller,
    new: &NewKey,
    now: Timestamp,
) -> Result<Option<UserKey>, Fault> {
    let Ok(GivenKey { key, .. }) = parse_user_key(&new.text, &house.config().keys.accepted) else {
        return Ok(None);
    };
    let held = house.vault.get::<UserKey>(&UserKey::fingerprint_of(&key)).await?;
    let only_named = |held: &UserKey| held.user != new.user && held.status_at(now) == KeyStatus::Pending;
    Ok(held.filter(|held| caller.has_role("admin") && only_named(held)))
}

/// The keys that were added to replace `key`; those that nobody logged in with yet are revoked with it, since only it
/// vouched for them.
async fn revoke_pending(
    house: &House,
    caller: &Caller,
    key: &UserKey,
    now: Timestamp,
) -> Result<Vec<UserKey>, Fault> {
    let mut successors: Vec<UserKey> = house.vault.list().await?;
    successors.retain(|k| k.replaces.as_deref() == Some(&key.fingerprint) && k.revoked.is_none());
    for next in &mut successors {
        if next.status_at(now) == KeyStatus::Pending {
            revoke(house, caller, next, &format!("waited to replace {}, which was revoked", key.id)).await?;
            *next = find(house, &next.fingerprint).await?;
        }
    }
    Ok(successors)
}

/// The record of a key that nobody holds or ever held, but for what is `claimed`; not stored yet.
pub(super) async fn made(
    house: &House,
    new: NewKey,
    claimed: Option<&UserKey>,
    now: Timestamp,
) -> Result<UserKey, Fault> {
    let user = users::found(house, &new.user).await?;
    let rules = Arc::clone(&house.config().keys);
    let faulty = |fault: KeyFault| Fault::error(fault.to_string());
    let GivenKey { key: public, verify_required } =
        parse_user_key(&new.text, &rules.accepted).map_err(faulty)?;
    let verify_required = verify_required || new.verify_required;
    if verify_required && !public.algorithm().as_str().starts_with("sk-") {
        return Err(faulty(KeyFault::NoVerification));
    }
    let fingerprint = UserKey::fingerprint_of(&public);
    if let Some(held) = house.vault.get::<UserKey>(&fingerprint).await?.filter(|held| Some(held) != claimed) {
        return Err(Fault::conflict(match held.status_at(now) {
            KeyStatus::Revoked | KeyStatus::Retired | KeyStatus::Expired => {
                format!(
                    "{fingerprint} is {} and never works again; make a new key: ssh-keygen -t ed25519",
                    held.status_at(now)
                )
            }
            KeyStatus::Pending if held.user == new.user => {
                let (id, user) = (&held.id, &held.user);
                format!("{fingerprint} is known already, as {id} of {user}: log in with it once")
            }
            _ if held.user == new.user => {
                format!("{fingerprint} is known already, as {} of {}", held.id, held.user)
            }
            _ => format!("{fingerprint} belongs to another user; make a key of {}'s own", new.user),
        }));
    }
    let latest = now.as_second() + rules.of(&user).max_age_of(user.kind);
    let latest = Timestamp::from_second(latest).map_err(|e| Fault::error(e.to_string()))?;
    let expires_at = new.expires_at.unwrap_or(latest);
    if expires_at > latest || expires_at <= now {
        let until = short_time(latest);
        return Err(Fault::error(format!("--expires takes a time from now to {until} (keys.max_age)")));
    }
    let comment = public.comment().to_string();
    Ok(UserKey {
        id: house.vault.next_id("K").await?,
        user: new.user,
        name: new.name.or(Some(comment).filter(|c| !c.is_empty())).unwrap_or_else(|| "unnamed".to_owned()),
        public_key: public.to_openssh().map_err(|e| Fault::error(e.to_string()))?,
        algorithm: public.algorithm().to_string(),
        fingerprint,
        status: KeyStatus::Active,
        added_at: now,
        expires_at,
        last_used_at: None,
        replaces: None,
        retires_at: None,
        warned: None,
        revoked: None,
        verify_required,
    })
}

/// Revokes `key`: the record first, so that no login passes meanwhile, then the live sessions.
pub(super) async fn revoke(house: &House, caller: &Caller, key: &UserKey, reason: &str) -> Result<(), Fault> {
    let now = Timestamp::now();
    let ended = house.vault.update(&key.fingerprint, |record: &mut UserKey| {
        record.status = KeyStatus::Revoked;
        record.revoked = Some(Ended { at: now, reason: reason.to_owned() });
        Ok::<(), Fault>(())
    });
    trail::takes(house, trail::key_revoked(caller, key, reason), now, ended).await?;
    // What was remembered of it opens nothing any more; this only tidies up.
    Ok(auth::forget_key(&house.vault, &key.fingerprint).await?)
}

pub(super) async fn find(house: &House, wanted: &str) -> Result<UserKey, Fault> {
    let keys: Vec<UserKey> = house.vault.list().await?;
    keys.into_iter()
        .find(|k| k.id.eq_ignore_ascii_case(wanted) || k.fingerprint == wanted)
        .ok_or_else(|| Fault::not_found(format!("no key {wanted}; see: keyward ssh-keys list")))
}

/// Who among the users is a service.
async fn services(house: &House) -> Result<BTreeSet<UserName>, Fault> {
    let users: Vec<User> = house.vault.list().await?;
    Ok(users.into_iter().filter(|u| u.kind == UserKind::Service).map(|u| u.name).collect())
}

fn kind(key: &UserKey, services: &BTreeSet<UserName>) -> &'static str {
    if services.contains(&key.user) { "service" } else { "human" }
}

pub(super) fn listed(
    keys: &[UserKey],
    services: &BTreeSet<UserName>,
    now: Timestamp,
    width: Option<u16>,
) -> String {
    let rows = keys.iter().map(|k| {
        vec![
            k.id.clone(),
            if services.contains(&k.user) { format!("{} (service)", k.user) } else { k.user.to_string() },
            k.name.clone(),
            standing(k, now),
            format!("{} d", k.age_days(now)),
            day(k.expires_at),
            k.last_used_at.map_or_else(|| "never".to_owned(), short_time),
            k.fingerprint.clone(),
        ]
    });
    table(&["KEY", "USER", "NAME", "STATUS", "AGE", "EXPIRES", "LAST USED", "FINGERPRINT"], rows, width)
}

fn standing(key: &UserKey, now: Timestamp) -> String {
    match (key.status_at(now), key.retires_at) {
        (KeyStatus::Retiring, Some(end)) => format!("retiring, until {}", short_time(end)),
        (status, _) if key.verify_required => format!("{status}, verify-required"),
        (status, _) => status.to_string(),
    }
}

pub(super) fn shown(key: &UserKey, now: Timestamp) -> Value {
    let mut value = json!(key);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("status".to_owned(), key.status_at(now).to_string().into());
        fields.insert("age_days".to_owned(), key.age_days(now).into());
    }
    value
}
