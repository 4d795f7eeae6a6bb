//! `sources …`: who is kept out because they failed too often, and letting one in again before the time.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::render::{short_time, table};
use super::{Caller, Fault, Output, Sources, trail};
use crate::audit::Event;
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Sources,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Sources::List => {
            let bans = house.guard.bans(now);
            let rows = bans.iter().map(|(source, until)| vec![source.clone(), short_time(*until)]);
            out.either(&shown(&bans), table(&["BANNED", "UNTIL"], rows, out.width())).await
        }
        Sources::Unban { address } => unban(house, caller, (address, now), out).await,
    }
}

async fn unban(
    house: &House,
    caller: &Caller,
    (address, now): (IpAddr, Timestamp),
    out: &mut Output,
) -> Result<(), Fault> {
    if house.guard.banned(address, now).is_none() {
        return Err(Fault::not_found(format!("{address} is not banned; see: keyward sources list")));
    }
    let event = Event::SourceUnbanned { source_ip: address.to_string(), by: Some(caller.name()) };
    let lifted = async {
        house.guard.unban(address);
        Ok(())
    };
    trail::gives(house, vec![event], now, lifted).await?;
    out.done(&json!({ "source": address, "banned": false }), format!("{address} is let in again.")).await
}

/// As `sources list` and `status` show it.
pub(super) fn shown(bans: &[(String, Timestamp)]) -> Vec<Value> {
    bans.iter().map(|(source, until)| json!({ "source": source, "until": until })).collect()
}
