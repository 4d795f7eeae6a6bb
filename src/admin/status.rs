//! `status` and `recording …`: how the bastion itself is.

use jiff::Timestamp;
use keystore::UserKey;
use serde_json::json;

use super::render::{plain, short_time};
use super::{Caller, Fault, Output, Progress, Recording};
use crate::audit::Event;
use crate::recording::{TapeKeys, disk_left};
use crate::session::House;

pub(super) async fn status(house: &House, out: &mut Output) -> Result<(), Fault> {
    let now = Timestamp::now();
    let keys: Vec<UserKey> = house.vault.list().await?;
    let soon = now.as_second() + 14 * 86_400;
    let expiring = keys.iter().filter(|k| k.usable(now) && k.expires_at.as_second() <= soon).count();
    let (head, signed) = (house.trail.head(), house.trail.signed());
    let live = house.registry.sessions();
    let connections = house.registry.live().len() - live;
    let version = env!("CARGO_PKG_VERSION");
    let uptime = now.as_second() - house.started_at.as_second();
    let (trail, dir) = (std::sync::Arc::clone(&house.trail), house.config().state_dir.clone());
    let looked = tokio::task::spawn_blocking(move || (trail.has_reserve(), disk_left(&dir))).await;
    let (reserve, room) = looked.map_err(|e| Fault::error(e.to_string()))?;
    let room = room.map_err(|e| Fault::error(e.to_string()))?;
    let lockdown = house.guard.lockdown().reason();
    let bans = house.guard.bans(now);
    let mut warnings = Vec::new();
    if room.percent_used >= house.config().audit.disk_warn_percent {
        warnings.push(format!("the disk is {} % full; at its end no session is let in", room.percent_used));
    }
    if !reserve {
        warnings.push("the audit trail's reserve is used up: free the disk".to_owned());
    }
    let forged = house.trail.forged();
    warnings.extend(forged.iter().map(|forged| format!("{forged}. Run: keyward logs verify")));
    let doubt = house.clock.doubt();
    warnings.extend(doubt.map(|believed| super::clock::doubted(believed, now)));
    warnings.extend(super::encryption::next_start(house));
    let (ca, changing) = super::ca::state(house).await?;
    warnings.extend(changing);
    warnings.extend(super::credentials::warnings(house, now).await?);
    if let Some(reason) = &lockdown {
        warnings.push(format!("lockdown: {}. End it: keyward access deny-all --end", plain(reason)));
    }
    let receivers: Vec<_> =
        house.outlets.standings().iter().map(|to| (to, head.seq.saturating_sub(to.delivered()))).collect();
    for (to, behind) in &receivers {
        if let Some(fault) = to.fault() {
            warnings.push(format!("{} {} is {behind} events behind: {}", to.name, to.target, plain(&fault)));
        }
    }
    let under_way = super::retention::under_way();
    let retention = under_way.and_then(|(so_far, since)| super::progress::told(so_far, since));
    let value = json!({
        "retention": under_way.map(|((done, all), since)| json!({
            "done": done, "of": all, "seconds": since.as_secs(),
        })),
        "receivers": receivers.iter().map(|(to, behind)| json!({
            "name": to.name, "target": to.target, "delivered": to.delivered(), "behind": behind, "fault": to.fault(),
        })).collect::<Vec<_>>(),
        "version": version, "listen": house.config().listen, "started_at": house.started_at,
        "uptime_secs": uptime, "live_sessions": live, "connections": connections, "keys_expiring": expiring,
        "disk": { "bytes_left": room.bytes, "percent_used": room.percent_used },
        "audit": {
            "seq": head.seq, "hash": head.hash, "signed_through": signed, "reserve": reserve,
            "forged": forged,
        },
        "master_key": house.vault.master_key_id(), "ca": ca,
        "recordings_readable_here": house.tapes.can_read(), "lockdown": lockdown, "clock_doubted": doubt.is_some(), "warnings": warnings,
        "banned_sources": super::sources::shown(&bans),
    });
    let mut text = format!(
        "keyward {version}, listening on {}, up {}\n\
         live sessions      {live}, {connections} connections\n\
         keys expiring 14d  {expiring}\n\
         disk               {} MB left, {} % used\n\
         audit trail        event {} {}, signed through {signed}\n\
         recordings         {}",
        house.config().listen,
        lasted(uptime),
        room.bytes / 1_000_000,
        room.percent_used,
        head.seq,
        head.hash,
        if house.tapes.can_read() { "readable here" } else { "readable only with the auditors' identity" },
    );
    if let Some(left) = &retention {
        text.push_str(&format!("\nretention          deleting recordings: {left}"));
    }
    for (to, behind) in &receivers {
        text.push_str(&format!("\n{:<18} {}, {behind} events behind", to.name, to.target));
    }
    for (source, until) in bans.iter().take(MOST_BANS) {
        text.push_str(&format!("\nbanned             {source} until {}", short_time(*until)));
    }
    if bans.len() > MOST_BANS {
        text.push_str(&format!(
            "\n                   and {} more (keyward sources list)",
            bans.len() - MOST_BANS
        ));
    }
    for warning in &warnings {
        text.push_str(&format!("\nWARNING: {warning}"));
    }
    out.either(&value, text).await
}

/// Banned sources that `status` names.
const MOST_BANS: usize = 10;

fn lasted(seconds: i64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
        (days, hours, _) => format!("{days}d{hours:02}h"),
    }
}

pub(super) async fn recording(
    house: &House,
    caller: &Caller,
    command: Recording,
    out: &mut Output,
) -> Result<(), Fault> {
    let Recording::Rewrap { recipients: further, .. } = command;
    if !further.is_empty() && !matches!(caller, Caller::Operator { .. }) {
        return Err(Fault::denied(
            "who else may read the recordings is said on the bastion itself: keyward recording rewrap --recipient …",
        ));
    }
    let config = house.config();
    let terms = &config.recording;
    // Those of the configuration always: nobody takes the recordings from the auditors here.
    let all: Vec<String> = terms.recipients.iter().chain(&further).cloned().collect();
    let to = TapeKeys::configured(terms.identity.as_deref(), &all)?;
    let names = to.recipients();
    let count = super::sessions::reading(house, |tapes| tapes.list()).await?.len() as u64;
    let event = Event::RecordingsRewrapped { by: caller.name(), count, recipients: names.clone() };
    let progress = Progress::default();
    let counts = progress.clone();
    let rewrap =
        super::sessions::reading(house, move |tapes| tapes.rewrap(&to, &|done, all| counts.is(done, all)));
    let rewrap = super::trail::gives(house, vec![event], Timestamp::now(), rewrap);
    let done = out.meanwhile("wrapping keys", &progress, rewrap).await?;
    let value = json!({ "rewrapped": done, "recipients": names });
    let text = format!(
        "{done} recordings can now be read by {}. New ones follow the configuration.",
        names.join(", ")
    );
    out.either(&value, text).await
}
