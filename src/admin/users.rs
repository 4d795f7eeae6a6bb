//! `users …`.
//!
//! Removing a user leaves nothing behind that a later user of the same name would inherit: keys are revoked, the
//! second factor and the user's own rules go.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keystore::{
    Batch, Effect, Ended, Invitation, Role, Rule, SecondFactor, Subject, User, UserKey, UserKind, UserName,
};
use serde_json::{Value, json};

use super::blast::{self, Whose};
use super::render::{plain, short_time, table};
use super::{Caller, Fault, Kind, Network, Output, Until, Users, When, factors, keys, trail};
use crate::audit::Event;
use crate::auth;
use crate::policy::HOUSEKEEPER;
use crate::session::{House, recompile};

pub(super) async fn users(
    house: &House,
    caller: &Caller,
    command: Users,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Users::Add { name, roles, kind, expires, from } => {
            let mut roles: BTreeSet<Role> = roles.into_iter().collect();
            if kind == Kind::Service && from.is_empty() {
                return Err(Fault::usage(
                    "a service logs in without a code: say from where, --from 10.0.3.0/24",
                ));
            }
            // A service reaches what rules name it for; a human is an engineer unless told otherwise.
            if roles.is_empty() && kind == Kind::Human {
                roles.extend("engineer".parse::<Role>());
            }
            let kind = match kind {
                Kind::Human => UserKind::Human,
                Kind::Service => UserKind::Service,
            };
            let expires_at = ahead(expires, now)?;
            for note in from.iter().filter_map(|net| net.note()) {
                out.note(note).await?;
            }
            let from = from.into_iter().map(Network::net).collect();
            if name.as_str() == HOUSEKEEPER {
                return Err(Fault::conflict(format!(
                    "{name} is what Keyward itself is called in the trail; choose another name"
                )));
            }
            let user =
                User { name: name.clone(), roles, kind, added_at: now, expires_at, suspended: None, from };
            if house.vault.get::<User>(name.as_str()).await?.is_some() {
                return Err(Fault::conflict(format!("user {name} exists already")));
            }
            let insert = async { Ok(house.vault.insert(&user).await?) };
            trail::gives(house, vec![trail::user_added(caller, &user)], now, insert).await?;
            let next = match user.kind {
                UserKind::Human => format!("Added {name}. Next: keyward users invite {name}"),
                UserKind::Service => {
                    format!("Added the service {name}. Next: keyward ssh-keys add --user {name} --file FILE")
                }
            };
            out.either(&shown(&user, "none", now), next).await
        }
        Users::List => {
            let (users, held): (Vec<User>, Vec<SecondFactor>) =
                (house.vault.list().await?, house.vault.list().await?);
            let factor = |user: &User| factors::standing(held.iter().find(|f| f.user == user.name));
            let text = table(&HEADER, users.iter().map(|user| row(user, factor(user), now)), out.width());
            out.either(&users.iter().map(|u| shown(u, factor(u), now)).collect::<Vec<_>>(), text).await
        }
        Users::Show { name } => {
            let user = found(house, &name).await?;
            let factor = house.vault.get::<SecondFactor>(name.as_str()).await?;
            let factor = factors::standing(factor.as_ref());
            let text = table(&HEADER, [row(&user, factor, now)], out.width());
            out.either(&shown(&user, factor, now), text).await
        }
        Users::Invite { name } => invite(house, caller, &name, out).await,
        Users::Roles { name, add, remove } => {
            let change =
                RoleChange { added: add.into_iter().collect(), removed: remove.into_iter().collect() };
            roles(house, caller, (&name, change), out).await
        }
        Users::Suspend { name, reason } => {
            let user = found(house, &name).await?;
            if let Some(before) = &user.suspended {
                return Err(Fault::conflict(format!(
                    "{name} is suspended already, since {} ({}); nothing was changed",
                    short_time(before.at),
                    plain(&before.reason)
                )));
            }
            not_the_last_admin(house, &user, now).await?;
            let ended = Ended { at: now, reason: reason.clone() };
            let suspended = async {
                set_suspended(house, &name, ended).await?;
                leave_nothing_open(house, &name).await
            };
            trail::takes(house, trail::user_suspended(caller, &name, &reason), now, suspended).await?;
            out.note(format!("Suspended {name}. Undo: keyward users resume {name}")).await?;
            let touched = blast::touched(house, Whose::User(name.clone()), now).await?;
            let user = found(house, &name).await?;
            let factor = house.vault.get::<SecondFactor>(name.as_str()).await?;
            let user = shown(&user, factors::standing(factor.as_ref()), now);
            let value = json!({ "user": user, "touched": touched });
            out.either(&value, touched.told(out.width())).await
        }
        Users::Resume { name, expires } => resume(house, caller, (&name, expires), out).await,
        Users::Remove { name, yes } => {
            let user = found(house, &name).await?;
            not_the_last_admin(house, &user, now).await?;
            if !yes {
                return Err(Fault::usage(format!(
                    "removing {name} revokes all their keys for good; nothing was changed. To do it, add --yes"
                )));
            }
            remove(house, caller, &name, now).await?;
            out.done(&json!({ "user": name, "removed": true }), format!("Removed {name}.")).await
        }
    }
}

pub(super) async fn found(house: &House, name: &UserName) -> Result<User, Fault> {
    let user = house.vault.get::<User>(name.as_str()).await?;
    if let Some(user) = user {
        return Ok(user);
    }
    let known: Vec<User> = house.vault.list().await?;
    let near = known.iter().map(|u| u.name.as_str()).find(|n| strsim::jaro_winkler(n, name.as_str()) > 0.85);
    Err(Fault::not_found(match near {
        Some(near) => format!("no user {name}; did you mean {near}?"),
        None => format!("no user {name}; see: keyward users list"),
    }))
}

/// Lifts a suspension, and says anew when the user expires, if that was asked for.
async fn resume(
    house: &House,
    caller: &Caller,
    (name, expires): (&UserName, Option<Until>),
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let mut user = found(house, name).await?;
    user.suspended = None;
    match expires {
        Some(Until::Never) => user.expires_at = None,
        Some(Until::Then(when)) => user.expires_at = ahead(Some(when), now)?,
        None => {}
    }
    if let Some(why) = user.barred(now) {
        return Err(Fault::conflict(format!(
            "{name} could not log in ({why}); say until when: keyward users resume {name} --expires 90d, or never"
        )));
    }
    let (suspended, expires_at) = (user.suspended.clone(), user.expires_at);
    let resumed = house.vault.update(name.as_str(), |record: &mut User| {
        record.suspended.clone_from(&suspended);
        record.expires_at = expires_at;
        Ok::<(), Fault>(())
    });
    let until = expires_at.map_or_else(|| "never".to_owned(), |end| end.to_string());
    let event = trail::user_resumed(caller, name, expires.map(|_| until));
    trail::gives(house, vec![event], now, resumed).await?;
    let factor = house.vault.get::<SecondFactor>(name.as_str()).await?;
    let value = shown(&user, factors::standing(factor.as_ref()), now);
    let until = expires_at.map(|end| format!(", until {}", short_time(end))).unwrap_or_default();
    out.done(&value, format!("{name} can log in again{until}.")).await
}

/// A time to come.
fn ahead(expires: Option<When>, now: Timestamp) -> Result<Option<Timestamp>, Fault> {
    let end = expires.map(|when| when.ahead(now));
    if end.is_some_and(|end| end <= now) {
        return Err(Fault::usage("--expires lies in the past; nothing was changed"));
    }
    Ok(end)
}

async fn invite(house: &House, caller: &Caller, name: &UserName, out: &mut Output) -> Result<(), Fault> {
    let now = Timestamp::now();
    let user = found(house, name).await?;
    if let Some(why) = user.barred(now) {
        let more = if user.expires_at.is_some_and(|end| end <= now) { " --expires 90d" } else { "" };
        return Err(Fault::conflict(format!(
            "{name} cannot log in ({why}); first: keyward users resume {name}{more}"
        )));
    }
    if user.kind == UserKind::Service {
        return Err(Fault::conflict(format!(
            "{name} is a service and has no authenticator; add its key: keyward ssh-keys add --user {name} --file FILE"
        )));
    }
    let (code, invitation) = auth::invitation(name, now);
    let expires_at = invitation.expires_at;
    let event =
        Event::UserInvited { user: name.to_string(), by: caller.name(), expires_at: expires_at.to_string() };
    let invited = async { Ok(auth::invite(&house.vault, &invitation).await?) };
    trail::gives(house, vec![event], now, invited).await?;
    let bastion = house.bastion();
    let command = format!("ssh -i ~/.ssh/id_ed25519 -o IdentitiesOnly=yes {name}@{bastion}");
    let factor = match house.vault.get::<SecondFactor>(name.as_str()).await? {
        Some(_) => format!(
            "{name} confirms with the authenticator in use. Is it lost too? keyward mfa reset {name}, before the login"
        ),
        None => format!("That adds the key and sets up {name}'s authenticator."),
    };
    let text = format!(
        "Enrolment code for {name}, good once, until {}. Send it by a way you trust:\n\n  {code}\n\n\
         {name} types, on the machine that has (or makes) the key:\n\n  ssh-keygen -t ed25519\n  {command}\n\n\
         and gives the code when asked. {factor}",
        short_time(expires_at),
    );
    let value = json!({ "user": name, "code": code, "expires_at": expires_at, "command": command });
    out.either(&value, text).await
}

/// Roles that a user gets and loses.
struct RoleChange {
    added: BTreeSet<Role>,
    removed: BTreeSet<Role>,
}

async fn roles(
    house: &House,
    caller: &Caller,
    (name, change): (&UserName, RoleChange),
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let mut user = found(house, name).await?;
    let RoleChange { added, removed } = &change;
    if added.is_empty() && removed.is_empty() {
        return Err(Fault::usage("say which: --add ROLE or --remove ROLE; nothing was changed"));
    }
    if let Some(both) = added.intersection(removed).next() {
        return Err(Fault::usage(format!("{both} cannot be both given and taken; nothing was changed")));
    }
    if caller.user() == Some(name) && !added.is_empty() {
        return Err(Fault::denied(
            "roles of your own are another administrator's to give; nothing was changed",
        ));
    }
    if let Some(held) = added.intersection(&user.roles).next() {
        return Err(Fault::conflict(format!("{name} is {held} already; nothing was changed")));
    }
    if let Some(lacked) = removed.difference(&user.roles).next() {
        return Err(Fault::conflict(format!("{name} is not {lacked}; nothing was changed")));
    }
    if removed.iter().any(|role| role.as_str() == "admin") {
        not_the_last_admin(house, &user, now).await?;
    }
    user.roles = user.roles.union(added).filter(|role| !removed.contains(*role)).cloned().collect();
    let event = trail::user_roles_changed(caller, &user, (added, removed));
    let rules: Vec<Rule> = house.vault.list().await?;
    // Without a role that rules deny things to, more is allowed.
    let frees = rules.iter().any(|rule| {
        rule.effect == Effect::Deny && matches!(&rule.subject, Subject::Role(role) if removed.contains(role))
    });
    let changed = async {
        let roles = user.roles.clone();
        let set = |record: &mut User| {
            record.roles.clone_from(&roles);
            Ok::<(), Fault>(())
        };
        house.vault.update(name.as_str(), set).await
    };
    match added.is_empty() && !frees {
        true => trail::takes(house, event, now, changed).await?,
        false => trail::gives(house, vec![event], now, changed).await?,
    }
    let factor = house.vault.get::<SecondFactor>(name.as_str()).await?;
    let shown = shown(&user, factors::standing(factor.as_ref()), now);
    let told = user.roles.iter().map(Role::as_str).collect::<Vec<_>>().join(", ");
    let told = if told.is_empty() { "none".to_owned() } else { told };
    out.either(&shown, format!("Roles of {name}: {told}. That counts from now on, also for who is in.")).await
}

/// Refuses what would leave nobody who administers and can log in. Who has no such right to lose is not asked about.
pub(super) async fn not_the_last_admin(house: &House, user: &User, now: Timestamp) -> Result<(), Fault> {
    let users: Vec<User> = house.vault.list().await?;
    if !administers(user, now) || users.iter().any(|other| other.name != user.name && administers(other, now))
    {
        return Ok(());
    }
    Err(Fault::conflict(format!(
        "{} is the last admin who can log in; nothing was changed. First: keyward users roles NAME --add admin",
        user.name
    )))
}

fn administers(user: &User, now: Timestamp) -> bool {
    user.kind == UserKind::Human
        && user.barred(now).is_none()
        && user.roles.iter().any(|role| role.as_str() == "admin")
}

async fn set_suspended(house: &House, name: &UserName, ended: Ended) -> Result<(), Fault> {
    house
        .vault
        .update(name.as_str(), |user: &mut User| {
            user.suspended = Some(ended.clone());
            Ok::<(), Fault>(())
        })
        .await
}

/// Withdraws the invitation and forgets the second factors that were given. Both are tried.
async fn leave_nothing_open(house: &House, name: &UserName) -> Result<(), Fault> {
    let (withdrawn, forgotten) =
        (auth::withdraw(&house.vault, name).await, auth::forget_user(&house.vault, name).await);
    Ok(withdrawn.and(forgotten)?)
}

async fn remove(house: &House, caller: &Caller, name: &UserName, now: Timestamp) -> Result<(), Fault> {
    revoke_all(house, caller, name).await?;
    let mut rules: Vec<Rule> = house.vault.list().await?;
    rules.retain(|rule| rule.subject == Subject::User(name.clone()));
    let batch = Batch::default().remove::<Invitation>(name.as_str()).remove::<User>(name.as_str());
    let batch = rules.iter().fold(batch, |batch, rule| batch.remove::<Rule>(&rule.id));
    let rule_removed = |rule: &Rule| Event::AccessRuleRemoved { rule: rule.id.clone(), by: caller.name() };
    let events = rules.iter().map(rule_removed).chain([trail::user_removed(caller, name)]).collect();
    // All at once: without a rule that denies, a user who is still there might do more.
    let removed = async { Ok(house.vault.commit(batch.remove::<SecondFactor>(name.as_str())).await?) };
    let done = trail::takes_all(house, events, now, removed).await;
    recompile(house).await;
    done?;
    // An enrolment may have been under way; it looks for its user once more when it is done.
    revoke_all(house, caller, name).await?;
    house.vault.commit(Batch::default().remove::<SecondFactor>(name.as_str())).await?;
    leave_nothing_open(house, name).await
}

async fn revoke_all(house: &House, caller: &Caller, name: &UserName) -> Result<(), Fault> {
    let owned: Vec<UserKey> = house.vault.list().await?;
    for key in owned.iter().filter(|k| &k.user == name && k.revoked.is_none()) {
        keys::revoke(house, caller, key, "user removed").await?;
    }
    Ok(())
}

fn state(user: &User, now: Timestamp) -> &'static str {
    match user.barred(now) {
        None => "active",
        Some(_) if user.suspended.is_some() => "suspended",
        Some(_) => "expired",
    }
}

fn row(user: &User, factor: &str, now: Timestamp) -> Vec<String> {
    let roles = user.roles.iter().map(Role::as_str).collect::<Vec<_>>().join(",");
    let kind = if user.kind == UserKind::Human { "human" } else { "service" };
    let expires = user.expires_at.map_or_else(|| "-".to_owned(), short_time);
    let from = user.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    vec![
        user.name.to_string(),
        roles,
        kind.into(),
        state(user, now).into(),
        if user.kind == UserKind::Human { factor.to_owned() } else { "-".to_owned() },
        short_time(user.added_at),
        expires,
        if user.from.is_empty() { "anywhere".to_owned() } else { from },
    ]
}

fn shown(user: &User, factor: &str, now: Timestamp) -> Value {
    let mut value = json!(user);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("status".to_owned(), state(user, now).into());
        fields.insert("second_factor".to_owned(), factor.into());
    }
    value
}

const HEADER: [&str; 8] = ["USER", "ROLES", "KIND", "STATE", "CODE", "ADDED", "EXPIRES", "FROM"];
