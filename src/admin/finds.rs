//! Which sessions are meant, and who may see what was recorded in them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use keystore::{Instance, InstanceName, User, UserName};

use super::sessions::{reading, summary};
use super::{Caller, Fault, Network, Output, SessionFilter, Sessions};
use crate::recording::{Summary, Tapes};
use crate::session::House;

/// Those of `found` that the filter wants.
pub(super) async fn only(
    house: &House,
    mut found: Vec<Summary>,
    only: &SessionFilter,
) -> Result<Vec<Summary>, Fault> {
    found.retain(|s| wanted(s, only));
    if let Some(label) = &only.label {
        let instances = house.vault.list::<Instance>().await?;
        let named: BTreeSet<String> = instances
            .into_iter()
            .filter(|instance| instance.labels.get(&label.key) == Some(&label.value))
            .map(|instance| instance.name.to_string())
            .collect();
        found.retain(|s| named.contains(&s.header.instance));
    }
    let Some(text) = only.path.clone() else { return Ok(found) };
    let (trail, wanted) = (Arc::clone(&house.trail), text.clone());
    let with_file = reading(house, move |_| Ok(trail.sessions_with_file(&wanted))).await?;
    let with_file: BTreeSet<String> = with_file.map_err(|e| Fault::tampering(e.to_string()))?;
    found.retain(|s| with_file.contains(&s.header.id) || says(s, &text));
    Ok(found)
}

/// A list is empty: says so if there never was such a user or instance.
pub(super) async fn strangers(
    house: &House,
    (user, instance): (Option<&UserName>, Option<&InstanceName>),
    out: &mut Output,
) -> Result<(), Fault> {
    if user.is_none() && instance.is_none() {
        return Ok(());
    }
    let seen = reading(house, Tapes::list).await?;
    if let Some(name) = user
        && house.vault.get::<User>(name.as_str()).await?.is_none()
        && !seen.iter().any(|s| s.header.user == name.as_str())
    {
        out.note(format!("no user {name} (never seen in a recording either)")).await?;
    }
    if let Some(name) = instance
        && house.vault.get::<Instance>(name.as_str()).await?.is_none()
        && !seen.iter().any(|s| s.header.instance == name.as_str())
    {
        out.note(format!("no instance {name} (never seen in a recording either)")).await?;
    }
    Ok(())
}

/// What can be told from its summary alone.
pub(super) fn wanted(session: &Summary, only: &SessionFilter) -> bool {
    let header = &session.header;
    let until = only.until.map(|when| when.ago(Timestamp::now()));
    let from = |net: &Network| header.source_ip.parse().is_ok_and(|ip: IpAddr| net.net().contains(&ip));
    let at = only.at.map(|when| when.ago(Timestamp::now()));
    let ran = |t| header.started_at <= t && session.ended_at.is_none_or(|end| end >= t);
    until.is_none_or(|t| header.started_at < t)
        && at.is_none_or(ran)
        && only.login.as_ref().is_none_or(|login| header.login == login.as_str())
        && only.instance.as_ref().is_none_or(|instance| header.instance == instance.as_str())
        && only.key.as_ref().is_none_or(|key| header.key == *key)
        && only.source.as_ref().is_none_or(from)
        && only.command.as_ref().is_none_or(|text| says(session, text))
        && only.exit.is_none_or(|code| session.channels.iter().any(|c| c.exit_status == Some(code)))
}

/// Whether a command of the session has `text` in it, whatever its case.
fn says(session: &Summary, text: &str) -> bool {
    let text = text.to_lowercase();
    session.channels.iter().filter_map(|c| c.command.as_ref()).any(|c| c.to_lowercase().contains(&text))
}

/// Whether the caller may see the recording that `command` names: an auditor, an admin where that is configured, and a user
/// her own where that is. Others hear the same whether it exists or not.
pub(super) async fn may_see(house: &House, caller: &Caller, command: &Sessions) -> Result<(), Fault> {
    let terms = &house.config().recording;
    if caller.has_role("auditor") || caller.has_role("admin") {
        // Which of them may say what was decided before.
        return Ok(());
    }
    let id = match command {
        Sessions::Play { id, .. }
        | Sessions::Transcript { id, .. }
        | Sessions::Export { id, .. }
        | Sessions::Show { id, .. } => id,
        _ => return Ok(()),
    };
    let denied = || Fault::denied("this is for auditors; ask one of them");
    let user = caller.user().filter(|_| terms.owner_may_view).ok_or_else(denied)?;
    let session = summary(house, id).await.map_err(|_| denied())?;
    // Another person may have borne the name before.
    let since = house.vault.get::<User>(user.as_str()).await?.map(|user| user.added_at);
    let own =
        session.header.user == user.as_str() && since.is_some_and(|since| since <= session.header.started_at);
    if own { Ok(()) } else { Err(denied()) }
}
