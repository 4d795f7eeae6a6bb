//! `clock`: whether the machine's clock is believed, and the word of an administrator that it is right.

use jiff::Timestamp;
use serde_json::json;

use super::render::short_time;
use super::{Caller, Fault, Output, trail};
use crate::audit::Event;
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    is_right: bool,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let doubt = house.clock.doubt();
    let value = json!({ "time": now, "believed": doubt.unwrap_or(now), "doubted": doubt.is_some() });
    match doubt {
        None => out.either(&value, format!("It is {}; nothing speaks against it.", short_time(now))).await,
        Some(believed) if !is_right => out.either(&value, doubted(believed, now)).await,
        Some(believed) => {
            let event = Event::ClockConfirmed { by: caller.name(), believed: believed.to_string() };
            let confirmed = async {
                house.clock.confirm();
                Ok(())
            };
            trail::gives(house, vec![event], now, confirmed).await?;
            let value = json!({ "time": now, "believed": now, "doubted": false });
            let says =
                format!("It is {}. What has come to its end by now ends within a minute.", short_time(now));
            out.either(&value, says).await
        }
    }
}

/// What there is to say of a clock that is not believed.
pub(super) fn doubted(believed: Timestamp, now: Timestamp) -> String {
    format!(
        "the clock says {}, far ahead of what this bastion has seen ({}): logins go by it, but no key, CA or recording \
         ends for good. Set the clock; or, if it is right: keyward clock --is-right",
        short_time(now),
        short_time(believed)
    )
}
