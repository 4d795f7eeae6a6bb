//! `console`: a sign-in link for the web console, for whoever has just proven key and code over SSH.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Caller, Fault, Output};
use crate::audit::Event;
use crate::auth::{Person, TICKET_LIFE};
use crate::session::House;

/// The name under which the bastion forwards to its own console: `ssh -L 8022:console:80 …`.
pub const CONSOLE: &str = "console";
/// The port of the browser's machine that links name where the configuration has no other.
pub const PORT: u16 = 8022;

pub(super) async fn link(house: &House, caller: &Caller, stay: bool, out: &mut Output) -> Result<(), Fault> {
    let config = house.config();
    let config = &config.console;
    let Caller::User(visitor) = caller else {
        return Err(Fault::usage(format!(
            "a link lets a user in, not the operator: ssh AUDITOR@{} console",
            house.bastion()
        )));
    };
    if !config.enabled {
        return Err(Fault::error("the web console is off; an administrator can set console.enabled = true"));
    }
    let now = Timestamp::now();
    let person = Person {
        user: visitor.user.clone(),
        key: visitor.key.clone(),
        certificate: visitor.certificate,
        source: visitor.source,
    };
    let event = Event::ConsoleLinkGiven {
        user: person.user.to_string(),
        source_ip: person.source.to_string(),
        key: person.key.clone(),
    };
    house.trail.append(event, now).await.map_err(|e| Fault::error(e.to_string()))?;
    let port = config.listen.map_or(PORT, |listen| listen.port());
    let base = config.url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
    let ticket = house.browsers.ticket(person, now);
    let url = format!("{base}/sign-in?ticket={}", ticket.as_str());
    let to = format!("{}@{}", visitor.user, house.bastion());
    let forward = format!("-L {port}:{CONSOLE}:80 {to}");
    if out.json() {
        let until = now + SignedDuration::from_secs(TICKET_LIFE);
        let forward = format!("ssh -N {forward}");
        out.line(json!({ "url": url, "expires_at": until, "forward": forward }).to_string()).await?;
    } else {
        out.line(url).await?;
        out.note(match (&config.url, stay) {
            (Some(_), _) => "Open it within a minute; it works once.".to_owned(),
            (None, true) => "Open it within a minute; it works once. Ctrl-C ends the connection.".to_owned(),
            (None, false) => format!(
                "Open it within a minute; it works once. Your browser reaches the console through your own connection:\n  \
                 ssh {forward} {CONSOLE} --stay\ngives the link and the way at once; or leave this running first: ssh -N {forward}"
            ),
        })
        .await?;
    }
    if stay {
        out.gone().await;
    }
    Ok(())
}
