//! What the owner of a key is told about its end: one sentence, with what to type.

use jiff::Timestamp;
use keystore::lifecycle::{self, Terms};
use keystore::{CaRotation, KeyStatus, UserKey};

/// What to tell the owner of `key` at a login, if anything; `to` is the bastion as they name it.
pub fn notice(key: &UserKey, terms: &Terms, now: Timestamp, to: &str) -> Option<String> {
    let (id, user) = (&key.id, &key.user);
    let renew = format!(
        "Renew it: ssh-keygen -t ed25519 -f ~/.ssh/id_new && ssh {user}@{to} ssh-keys rotate < ~/.ssh/id_new.pub"
    );
    let left = |end: i64| span(end.saturating_sub(now.as_second()));
    match key.status_at(now) {
        KeyStatus::Active => {
            lifecycle::warning(key, terms, now)?;
            Some(format!("Your key {id} expires in {}. {renew}", left(key.expires_at.as_second())))
        }
        KeyStatus::Retiring => {
            let end = key.retires_at.unwrap_or(key.expires_at);
            Some(format!("Your key {id} has been replaced and stops working in {}.", left(end.as_second())))
        }
        KeyStatus::Expired if lifecycle::in_grace(key, terms.grace, now) => Some(format!(
            "Your key {id} has expired; for {} it can be exchanged, and nothing else. {renew}",
            left(lifecycle::grace_ends(key, terms.grace))
        )),
        _ => None,
    }
}

/// What everybody is told while the host CA changes; `to` is the bastion as they name it, `user@` included.
pub fn ca_notice(rotation: &CaRotation, now: Timestamp, to: &str) -> String {
    let left = span(rotation.ends_at.as_second().saturating_sub(now.as_second()));
    format!(
        "In {left} this bastion changes the key that it vouches with. Before that, replace Keyward's block in ~/.ssh/config \
         by what this prints: ssh {to} setup"
    )
}

/// `6 days`, `23 hours`, `1 minute`: the largest unit, rounded down.
pub fn span(seconds: i64) -> String {
    let (count, unit) = match seconds.max(0) {
        s if s >= 2 * 86_400 => (s / 86_400, "day"),
        s if s >= 2 * 3600 => (s / 3600, "hour"),
        s if s >= 120 => (s / 60, "minute"),
        s => (s, "second"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{at, public_key, user_key};

    #[test]
    fn the_owner_is_told_when_there_is_something_to_do_and_only_then() {
        let (key, terms) = (user_key("alice", &public_key(1)), Terms::default());
        let said = |day: i64| notice(&key, &terms, at(day * 86_400), "bastion");
        assert_eq!(said(10), None);
        assert!(said(84).unwrap().starts_with("Your key K1 expires in 6 days. Renew it: ssh-keygen"));
        assert!(said(84).unwrap().contains("ssh alice@bastion ssh-keys rotate < "));
        assert!(said(92).unwrap().contains("for 12 days it can be exchanged, and nothing else"));
        assert_eq!(said(104), None);
    }

    #[test]
    fn a_span_is_told_in_its_largest_unit() {
        let told: Vec<_> = [1, 119, 120, 7200, 172_800, -5].map(span).into();
        assert_eq!(told, ["1 second", "119 seconds", "2 minutes", "2 hours", "2 days", "0 seconds"]);
    }
}
