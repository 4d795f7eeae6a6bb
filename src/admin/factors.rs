//! `mfa …`: enrolment, replacement and reset of second factors. A secret is shown once, when it is made.

use jiff::Timestamp;
use keystore::{SecondFactor, UserKind, UserName};
use serde_json::json;

use super::render::{short_time, table};
use super::users::{found, not_the_last_admin};
use super::{Caller, Fault, Mfa, Output, trail};
use crate::auth;
use crate::auth::mfa::{self, Enrolment, MfaError};
use crate::session::House;

pub(super) async fn run(house: &House, caller: &Caller, command: Mfa, out: &mut Output) -> Result<(), Fault> {
    let now = Timestamp::now();
    match command {
        Mfa::Enroll { name, replace } => {
            let enrolment = enroll(house, caller, (&name, replace), now).await?;
            let value = json!({
                "user": name, "secret": enrolment.secret_base32, "uri": enrolment.uri,
                "recovery_codes": enrolment.recovery_codes, "status": "pending",
            });
            out.either(&value, told(&name, replace, &enrolment, out)).await
        }
        Mfa::List => list(house, out).await,
        Mfa::Reset { name } => {
            let user = found(house, &name).await?;
            enrolled(house, &name).await?;
            // On the bastion itself another factor can be enrolled at once.
            if caller.user() == Some(&name) {
                not_the_last_admin(house, &user, now).await?;
            }
            let reset = async {
                let reset = mfa::reset(&house.vault, &name).await.map_err(fault);
                let forgotten = auth::forget_user(&house.vault, &name).await;
                reset.and(Ok(forgotten?))
            };
            trail::takes(house, trail::mfa_reset(caller, &name), now, reset).await?;
            let says = format!("{name} has no second factor now. Next: keyward users invite {name}");
            out.done(&json!({ "user": name, "status": "none" }), says).await
        }
        Mfa::RecoveryCodes { name } => {
            enrolled(house, &name).await?;
            let replaced = async { mfa::new_recovery_codes(&house.vault, &name).await.map_err(fault) };
            let event = trail::recovery_codes_replaced(caller, &name);
            let codes = trail::gives(house, vec![event], now, replaced).await?;
            out.either(&json!({ "user": name, "recovery_codes": codes }), recovery(&codes)).await
        }
    }
}

async fn enroll(
    house: &House,
    caller: &Caller,
    (name, replace): (&UserName, bool),
    now: Timestamp,
) -> Result<Enrolment, Fault> {
    if found(house, name).await?.kind == UserKind::Service {
        return Err(Fault::conflict(format!("{name} is a service: it logs in with its key alone")));
    }
    match (house.vault.get::<SecondFactor>(name.as_str()).await?, replace) {
        (Some(_), false) => return Err(fault(MfaError::Enrolled(name.clone()))),
        (None, true) => return Err(fault(MfaError::NotEnrolled(name.clone()))),
        _ => {}
    }
    let enrolled = async {
        let enrolled = match replace {
            true => mfa::replace(&house.vault, name, now).await,
            false => mfa::enroll(&house.vault, name, now).await,
        };
        enrolled.map_err(fault)
    };
    trail::gives(house, vec![trail::mfa_enrolled(caller, name)], now, enrolled).await
}

fn told(name: &UserName, replace: bool, enrolment: &Enrolment, out: &Output) -> String {
    let first = match out.width().and_then(|_| enrolment.qr()) {
        Some(qr) => format!("{qr}\n\nScan the code, or type the secret"),
        None => "Type the secret".to_owned(),
    };
    let meanwhile = match replace {
        true => "Until then the one in use goes on, and these recovery codes do not count.",
        false => "Until then it is pending.",
    };
    format!(
        "{first} into an authenticator app:\n\n  secret  {}\n  uri     {}\n\n\
         {name} confirms it by logging in with a code that it shows. {meanwhile}\n\n{}",
        enrolment.secret_base32,
        enrolment.uri,
        recovery(&enrolment.recovery_codes)
    )
}

async fn list(house: &House, out: &mut Output) -> Result<(), Fault> {
    let users: Vec<keystore::User> = house.vault.list().await?;
    let held: Vec<SecondFactor> = house.vault.list().await?;
    let of = |name: &UserName| held.iter().find(|factor| factor.user == *name);
    let humans: Vec<_> =
        users.iter().filter(|u| u.kind == UserKind::Human).map(|u| (&u.name, of(&u.name))).collect();
    let rows = humans.iter().map(|(name, factor)| {
        let of = |column: &dyn Fn(&SecondFactor) -> String| factor.map_or_else(|| "-".to_owned(), column);
        vec![
            name.to_string(),
            standing(*factor).to_owned(),
            of(&|f| short_time(f.enrolled_at)),
            of(&|f| f.recovery.len().to_string()),
            of(&|f| f.failures.to_string()),
            of(&|f| f.drift.map_or_else(|| "-".to_owned(), |drift| format!("{drift:+} s"))),
        ]
    });
    let header = ["USER", "CODE", "ENROLLED", "RECOVERY LEFT", "WRONG IN A ROW", "CLOCK"];
    let text = table(&header, rows, out.width());
    let values = humans.iter().map(|(name, factor)| {
        json!({
            "user": name, "status": standing(*factor), "enrolled_at": factor.map(|f| f.enrolled_at),
            "recovery_codes_left": factor.map(|f| f.recovery.len()), "failures": factor.map(|f| f.failures),
            "clock_off_secs": factor.and_then(|f| f.drift),
        })
    });
    out.either(&values.collect::<Vec<_>>(), text).await
}

/// `none`, `pending`, `enrolled` or `replacing`.
pub(super) fn standing(factor: Option<&SecondFactor>) -> &'static str {
    factor.map_or("none", SecondFactor::standing)
}

async fn enrolled(house: &House, name: &UserName) -> Result<SecondFactor, Fault> {
    found(house, name).await?;
    let factor = house.vault.get::<SecondFactor>(name.as_str()).await?;
    factor.ok_or_else(|| fault(MfaError::NotEnrolled(name.clone())))
}

fn fault(error: MfaError) -> Fault {
    match error {
        MfaError::Enrolled(_) => Fault::conflict(error.to_string()),
        other => Fault::error(other.to_string()),
    }
}

fn recovery(codes: &[String]) -> String {
    format!("Recovery codes, each good once; shown only now:\n\n  {}", codes.join("\n  "))
}
