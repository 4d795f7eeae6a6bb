//! Signing in with a link that SSH gave, and out again.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::Timestamp;
use serde::Deserialize;

use super::door::{Auditor, Door, caller, set_cookie, way};
use super::views;
use crate::admin::{self, Command};
use crate::audit::Event;
use crate::auth::{Refused, Stay};
use crate::session::House;

#[derive(Deserialize)]
pub(super) struct Link {
    #[serde(default)]
    ticket: String,
}

/// Spends the link's ticket. The trail knows of the browser before the browser has its cookie.
pub(super) async fn sign_in(
    State(house): State<Arc<House>>,
    Extension(door): Extension<Door>,
    Query(link): Query<Link>,
    headers: HeaderMap,
) -> Response {
    let now = Timestamp::now();
    let proof = match house.browsers.sign_in(&link.ticket, now) {
        Ok(proof) => proof,
        Err(refused) => return not_in(&house, &refused, now).await,
    };
    let person = proof.person();
    let (user, source_ip, key) = (person.user.to_string(), person.source.to_string(), person.key.clone());
    let foreign = matches!(&door, Door::Ssh(own) if *own != person.user);
    let may = admin::entitled(&house, &caller(person), &Command::Console { stay: false }).await;
    if let Some(why) = may.err().map(|fault| fault.says).or(foreign.then(|| FOREIGN.to_owned())) {
        let event = Event::ConsoleSignInFailed { user, source_ip, key, reason: why.clone() };
        return match house.trail.append(event, now).await {
            Ok(_) => views::refused(StatusCode::FORBIDDEN, "Not signed in", &why),
            Err(error) => failed(&error),
        };
    }
    if let Err(error) = house.trail.append(Event::ConsoleSignedIn { user, source_ip, key }, now).await {
        return failed(&error);
    }
    let config = house.config();
    let secure = way(&config.console, &headers).is_some_and(|way| way.secure);
    let stay = Stay { idle: config.console.idle, life: config.console.life };
    let cookie = house.browsers.enter(proof, stay, now);
    let cookie = set_cookie(secure, &cookie, stay.life);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sessions")).into_response()
}

async fn not_in(house: &House, refused: &Refused, now: Timestamp) -> Response {
    // Guesses are not audited: anybody on this machine could fill the trail with them.
    if let Refused::Spent(person) | Refused::Late(person) = refused {
        let event = Event::ConsoleSignInFailed {
            user: person.user.to_string(),
            source_ip: person.source.to_string(),
            key: person.key.clone(),
            reason: refused.to_string(),
        };
        if let Err(error) = house.trail.append(event, now).await {
            return failed(&error);
        }
    }
    // The same words for all: whether a guess was ever a link is nobody's business.
    views::refused(StatusCode::FORBIDDEN, "Not signed in", DEAD_LINK)
}

fn failed(error: &dyn std::fmt::Display) -> Response {
    tracing::error!(%error, "audit.append_failed");
    views::refused(StatusCode::SERVICE_UNAVAILABLE, "Not signed in", "The audit trail cannot be written.")
}

pub(super) async fn sign_out(
    State(house): State<Arc<House>>,
    auditor: Auditor,
    headers: HeaderMap,
) -> Response {
    if let Some(person) = house.browsers.leave(&auditor.cookie) {
        let event =
            Event::ConsoleSignedOut { user: person.user.to_string(), reason: "by the auditor".to_owned() };
        if let Err(error) = house.trail.append(event, Timestamp::now()).await {
            tracing::error!(%error, "audit.append_failed");
        }
    }
    let secure = way(&house.config().console, &headers).is_some_and(|way| way.secure);
    ([(header::SET_COOKIE, set_cookie(secure, "", 0))], views::goodbye()).into_response()
}

const DEAD_LINK: &str = "This link was used before, or its minute is over.";
const FOREIGN: &str = "This link is another auditor's.";
