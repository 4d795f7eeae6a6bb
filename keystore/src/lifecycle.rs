//! The life of a key, as a pure function: which step leads from which state to which, and when each is due.
//!
//! `pending → active → retiring → retired`; `expired` by age, `revoked` from any. Every step leads onward, none back: a
//! key that stopped working never works again, and a moved clock makes no key younger. Writes nothing and audits
//! nothing: `rotation` does, and what it has not written yet holds all the same ([`standing`]).

use jiff::Timestamp;

use crate::record::{KeyStatus, UserKey, UserKind};

/// How long keys live, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// From being added to expiry.
    pub max_age: i64,
    /// The same for services, whose keys open doors without a code.
    pub service_max_age: i64,
    /// How long before expiry each warning comes; longest first.
    pub warn: Vec<i64>,
    /// How long an expired key may still be exchanged by its owner.
    pub grace: i64,
    /// How long a replaced key goes on working after its successor's first login.
    pub overlap: i64,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            max_age: 90 * DAY,
            service_max_age: 30 * DAY,
            warn: vec![14 * DAY, 7 * DAY, DAY],
            grace: 14 * DAY,
            overlap: DAY,
        }
    }
}

/// What happens to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It completed its first login.
    Prove,
    /// Its successor completed its first login.
    Succeed,
    /// The overlap with its successor ended.
    Retire,
    /// It reached its maximum age.
    Expire,
    /// It was withdrawn.
    Revoke,
}

/// Where `step` leads from `from`; `None` if it cannot happen there.
pub fn next(from: KeyStatus, step: Step) -> Option<KeyStatus> {
    use KeyStatus::{Active, Expired, Pending, Retired, Retiring, Revoked};
    match (from, step) {
        (Pending, Step::Prove) => Some(Active),
        (Active, Step::Succeed) => Some(Retiring),
        (Retiring, Step::Retire) | (Expired, Step::Succeed) => Some(Retired),
        (Pending | Active | Retiring, Step::Expire) => Some(Expired),
        (Pending | Active | Retiring | Expired | Retired, Step::Revoke) => Some(Revoked),
        _ => None,
    }
}

/// The step that use and time have brought on but the record does not show yet.
pub fn due(key: &UserKey, now: Timestamp) -> Option<Step> {
    due_in(key.status, key, now)
}

/// The status at `now`: the record's, and every step that is due.
pub fn standing(key: &UserKey, now: Timestamp) -> KeyStatus {
    let mut status = key.status;
    // Each step leads onward, so this ends.
    while let Some(after) = due_in(status, key, now).and_then(|step| next(status, step)) {
        status = after;
    }
    status
}

/// When the next step of `key` comes by time alone, if one does.
pub fn next_by_time(key: &UserKey) -> Option<Timestamp> {
    match key.status {
        KeyStatus::Retiring => Some(key.retires_at.map_or(key.expires_at, |end| end.min(key.expires_at))),
        KeyStatus::Pending | KeyStatus::Active => Some(key.expires_at),
        KeyStatus::Expired | KeyStatus::Retired | KeyStatus::Revoked => None,
    }
}

/// Whether `key` is expired, but may still be exchanged by its owner, for `grace` seconds: it was in use, and has no
/// successor in use.
pub fn in_grace(key: &UserKey, grace: i64, now: Timestamp) -> bool {
    let was_in_use = key.replaces.is_none() || key.last_used_at.is_some();
    standing(key, now) == KeyStatus::Expired
        && was_in_use
        && key.retires_at.is_none()
        && now.as_second() < grace_ends(key, grace)
}

impl Terms {
    /// How long a key of such a user lives, in seconds.
    pub fn max_age_of(&self, kind: UserKind) -> i64 {
        match kind {
            UserKind::Human => self.max_age,
            UserKind::Service => self.service_max_age,
        }
    }
}

/// When `key` is to expire, if its owner's terms are stricter than those that it was added under: not before the longest
/// warning that they know has had its time.
pub fn shortened(key: &UserKey, (terms, kind): (&Terms, UserKind), now: Timestamp) -> Option<Timestamp> {
    if !matches!(standing(key, now), KeyStatus::Pending | KeyStatus::Active) {
        return None;
    }
    let by_age = key.added_at.as_second().saturating_add(terms.max_age_of(kind));
    let notice = terms.warn.iter().copied().max().unwrap_or(DAY);
    let end = Timestamp::from_second(by_age.max(now.as_second().saturating_add(notice))).ok()?;
    (end < key.expires_at).then_some(end)
}

/// When the grace of `key` ends, in Unix seconds.
pub fn grace_ends(key: &UserKey, grace: i64) -> i64 {
    key.expires_at.as_second().saturating_add(grace)
}

/// The warning (seconds before expiry) that `key` has come to at `now`, if it is in use and nears its end. A warning
/// longer than the key's whole life is none.
pub fn warning(key: &UserKey, terms: &Terms, now: Timestamp) -> Option<i64> {
    if standing(key, now) != KeyStatus::Active {
        return None;
    }
    let left = key.expires_at.as_second() - now.as_second();
    let lifetime = key.expires_at.as_second() - key.added_at.as_second();
    terms.warn.iter().copied().filter(|before| *before < lifetime && left <= *before).min()
}

/// When the next warning of `key` comes, if one does.
pub fn next_warning(key: &UserKey, terms: &Terms, now: Timestamp) -> Option<Timestamp> {
    let ends = key.expires_at.as_second();
    let ahead =
        terms.warn.iter().map(|before| ends.saturating_sub(*before)).filter(|at| *at > now.as_second());
    ahead.min().and_then(|at| Timestamp::from_second(at).ok())
}

fn due_in(status: KeyStatus, key: &UserKey, now: Timestamp) -> Option<Step> {
    let expired = key.expires_at <= now;
    match status {
        KeyStatus::Pending if key.last_used_at.is_some() => Some(Step::Prove),
        KeyStatus::Retiring if key.retires_at.is_some_and(|end| end <= now && end <= key.expires_at) => {
            Some(Step::Retire)
        }
        KeyStatus::Pending | KeyStatus::Active | KeyStatus::Retiring if expired => Some(Step::Expire),
        _ => None,
    }
}

const DAY: i64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;
    use crate::seal::MasterKey;
    use crate::{Error, Vault};
    use proptest::prelude::*;
    use std::sync::Arc;

    const STATES: [KeyStatus; 6] = [
        KeyStatus::Pending,
        KeyStatus::Active,
        KeyStatus::Retiring,
        KeyStatus::Expired,
        KeyStatus::Retired,
        KeyStatus::Revoked,
    ];
    const STEPS: [Step; 5] = [Step::Prove, Step::Succeed, Step::Retire, Step::Expire, Step::Revoke];

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn age(status: KeyStatus) -> usize {
        STATES.iter().position(|s| *s == status).unwrap()
    }

    fn works(status: KeyStatus) -> bool {
        matches!(status, KeyStatus::Active | KeyStatus::Retiring)
    }

    fn key(status: KeyStatus) -> UserKey {
        UserKey {
            id: "K1".to_owned(),
            user: "alice".parse().unwrap(),
            name: "laptop".to_owned(),
            public_key: String::new(),
            algorithm: "ssh-ed25519".to_owned(),
            fingerprint: "SHA256:x".to_owned(),
            status,
            added_at: at(0),
            expires_at: at(90 * DAY),
            last_used_at: None,
            replaces: None,
            retires_at: None,
            warned: None,
            revoked: None,
            verify_required: false,
        }
    }

    prop_compose! {
        fn any_key()(
            status in prop::sample::select(STATES.to_vec()),
            expires in 0..1000_i64,
            used in prop::option::of(0..1000_i64),
            retires in prop::option::of(0..1000_i64),
            replaces in any::<bool>(),
        ) -> UserKey {
            UserKey {
                expires_at: at(expires),
                last_used_at: used.map(at),
                retires_at: retires.map(at),
                replaces: replaces.then(|| "SHA256:old".to_owned()),
                ..key(status)
            }
        }
    }

    proptest! {
        #[test]
        fn no_path_leads_back_to_a_usable_state(
            start in prop::sample::select(STATES.to_vec()),
            steps in prop::collection::vec(prop::sample::select(STEPS.to_vec()), 0..20),
        ) {
            let (mut status, mut ended) = (start, false);
            for step in steps {
                let Some(after) = next(status, step) else { continue };
                prop_assert!(age(after) > age(status), "{status} -> {after}");
                status = after;
                ended |= matches!(status, KeyStatus::Expired | KeyStatus::Retired | KeyStatus::Revoked);
                prop_assert!(!ended || !works(status));
            }
        }

        #[test]
        fn time_never_runs_a_key_younger(key in any_key(), earlier in 0..1000_i64, later in 0..1000_i64) {
            let (earlier, later) = (earlier.min(later), earlier.max(later));
            prop_assert!(age(standing(&key, at(earlier))) <= age(standing(&key, at(later))));
            prop_assert!(age(key.status) <= age(standing(&key, at(earlier))));
        }

        #[test]
        fn stricter_terms_shorten_a_life_once_and_never_by_surprise(
            key in any_key(), max_age in 0..1000_i64, notice in 0..100_i64, when in 0..1000_i64, later in 0..1000_i64,
        ) {
            let terms = Terms { max_age, service_max_age: 2 * max_age, warn: vec![notice / 2, notice], ..Terms::default() };
            let now = at(when);
            match shortened(&key, (&terms, UserKind::Human), now) {
                None => {}
                Some(end) => {
                    prop_assert!(end < key.expires_at, "no life is made longer");
                    prop_assert!(end >= at(when + notice), "there is time to exchange it");
                    prop_assert!(matches!(standing(&key, now), KeyStatus::Pending | KeyStatus::Active));
                    let short = UserKey { expires_at: end, ..key };
                    let (same, then) = ((&terms, UserKind::Human), at(when + later));
                    prop_assert_eq!(shortened(&short, same, then), None);
                }
            }
        }

        #[test]
        fn a_step_written_late_changes_nothing(key in any_key(), when in 0..1000_i64) {
            let now = at(when);
            let mut written = key.clone();
            while let Some(after) = due(&written, now).and_then(|step| next(written.status, step)) {
                written.status = after;
            }
            prop_assert_eq!(standing(&key, now), written.status);
        }

        #[test]
        fn a_key_past_its_end_never_works(key in any_key(), late in 0..1000_i64) {
            let now = at(key.expires_at.as_second() + late);
            prop_assert!(!works(standing(&key, now)));
        }

        #[test]
        fn no_key_gets_a_second_owner(tries in prop::collection::vec((0..4_u8, 0..3_u8), 1..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
                let mut owners = std::collections::HashMap::new();
                for (print, user) in tries {
                    let mut record = key(KeyStatus::Active);
                    record.fingerprint = format!("SHA256:{print}");
                    record.user = format!("user{user}").parse().unwrap();
                    let added = vault.insert(&record).await;
                    let first = owners.entry(print).or_insert_with(|| record.user.clone()).clone();
                    assert!(matches!(added, Ok(()) | Err(Error::Exists { .. })));
                    let held = vault.get::<UserKey>(&record.fingerprint).await.unwrap().unwrap();
                    assert_eq!(held.user, first);
                }
            });
        }
    }

    #[test]
    fn the_whole_life_and_the_steps_that_do_not_exist() {
        use KeyStatus::*;
        assert_eq!(next(Pending, Step::Prove), Some(Active));
        assert_eq!(next(Active, Step::Succeed), Some(Retiring));
        assert_eq!(next(Retiring, Step::Retire), Some(Retired));
        assert_eq!(next(Pending, Step::Succeed), None, "a key never seen working is no one's predecessor");
        assert_eq!(next(Revoked, Step::Revoke), None);
        for state in [Active, Retiring, Expired, Retired, Revoked] {
            assert_eq!(next(state, Step::Prove), None, "{state} proves nothing");
        }
    }

    #[test]
    fn a_pending_key_waits_for_its_first_login_and_ages_meanwhile() {
        let mut pending = UserKey { replaces: Some("SHA256:old".to_owned()), ..key(KeyStatus::Pending) };
        assert_eq!(standing(&pending, at(DAY)), KeyStatus::Pending);
        assert_eq!(standing(&pending, at(90 * DAY)), KeyStatus::Expired);
        assert!(!in_grace(&pending, Terms::default().grace, at(90 * DAY)), "it was never in use");
        pending.last_used_at = Some(at(DAY));
        assert_eq!(standing(&pending, at(DAY)), KeyStatus::Active);
    }

    #[test]
    fn a_retiring_key_works_to_the_end_of_the_overlap() {
        let retiring = UserKey { retires_at: Some(at(DAY)), ..key(KeyStatus::Retiring) };
        assert_eq!(standing(&retiring, at(DAY - 1)), KeyStatus::Retiring);
        assert_eq!(standing(&retiring, at(DAY)), KeyStatus::Retired);
        assert_eq!(next_by_time(&retiring), Some(at(DAY)));
    }

    #[test]
    fn grace_begins_at_expiry_and_ends() {
        let (active, terms) = (key(KeyStatus::Active), Terms::default().grace);
        assert!(!in_grace(&active, terms, at(90 * DAY - 1)));
        assert!(in_grace(&active, terms, at(90 * DAY)));
        assert!(in_grace(&active, terms, at(104 * DAY - 1)));
        assert!(!in_grace(&active, terms, at(104 * DAY)));
        for ended in [KeyStatus::Retired, KeyStatus::Revoked] {
            assert!(!in_grace(&key(ended), terms, at(90 * DAY)), "{ended}");
        }
    }

    #[test]
    fn warnings_come_in_their_order_and_only_to_a_key_in_use() {
        let (active, terms) = (key(KeyStatus::Active), Terms::default());
        assert_eq!(warning(&active, &terms, at(75 * DAY)), None);
        assert_eq!(warning(&active, &terms, at(76 * DAY)), Some(14 * DAY));
        assert_eq!(warning(&active, &terms, at(83 * DAY)), Some(7 * DAY));
        assert_eq!(warning(&active, &terms, at(89 * DAY)), Some(DAY));
        assert_eq!(warning(&active, &terms, at(90 * DAY)), None);
        assert_eq!(warning(&key(KeyStatus::Retiring), &terms, at(89 * DAY)), None);
        let brief = UserKey { expires_at: at(DAY), ..key(KeyStatus::Active) };
        assert_eq!(warning(&brief, &terms, at(DAY - 1)), None, "it never had a day to live");
        assert_eq!(next_warning(&active, &terms, at(76 * DAY)), Some(at(83 * DAY)));
    }
}
