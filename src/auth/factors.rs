//! The life of a second factor: pending, confirmed, replaced; and what its clock tells.

use keystore::SecondFactor;

use super::mfa::{self, MfaError, clock_notice};
use super::testing::*;
use super::*;

/// What an authenticator with this secret shows at `when`.
fn shows(secret: &str, when: Timestamp) -> String {
    let secret = data_encoding::BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let totp = totp_rs::Builder::new().with_secret(secret).build().unwrap();
    totp.generate(u64::try_from(when.as_second()).unwrap()).to_string()
}

async fn log_in(vault: &Vault, code: &str, now: Timestamp) -> Result<Authenticated, LoginFault> {
    let key = unauthenticated().key_verified(vault, "alice", &public_key(1), now).await.ok().unwrap();
    key.with_second_factor(vault, "alice", code, now).await.map_err(|(_, fault)| fault)
}

async fn factor(vault: &Vault) -> SecondFactor {
    vault.get("alice").await.unwrap().unwrap()
}

/// alice with a confirmed factor, and the code that she gave.
async fn confirmed() -> Vault {
    let vault = vault().await;
    let login = log_in(&vault, &code(&vault, "alice", at(0)).await, at(0)).await.unwrap();
    mfa::confirm(&vault, &login).await.unwrap();
    vault
}

#[tokio::test]
async fn a_factor_is_pending_until_a_login_with_its_first_code() {
    let vault = vault().await;
    let codes = mfa::new_recovery_codes(&vault, &"alice".parse().unwrap()).await.unwrap();
    assert!(log_in(&vault, "000000x", at(0)).await.is_err());
    let by_recovery = log_in(&vault, &codes[0], at(0)).await.unwrap();
    assert!(!by_recovery.confirms(), "a recovery code proves no authenticator");
    mfa::confirm(&vault, &by_recovery).await.unwrap();
    assert_eq!(factor(&vault).await.standing(), "pending");
    let login = log_in(&vault, &code(&vault, "alice", at(0)).await, at(0)).await.unwrap();
    assert!(login.confirms());
    assert_eq!(factor(&vault).await.standing(), "pending", "the trail hears of it first");
    mfa::confirm(&vault, &login).await.unwrap();
    assert_eq!(factor(&vault).await.standing(), "enrolled");
    let again = log_in(&vault, &code(&vault, "alice", at(30)).await, at(30)).await.unwrap();
    assert!(!again.confirms());
}

#[tokio::test]
async fn a_pending_factor_is_replaced_at_once() {
    let (vault, alice) = (vault().await, "alice".parse().unwrap());
    let old = code(&vault, "alice", at(0)).await;
    assert!(matches!(mfa::enroll(&vault, &alice, at(1)).await, Err(MfaError::Enrolled(_))));
    let new = mfa::replace(&vault, &alice, at(1)).await.unwrap();
    assert_eq!(log_in(&vault, &old, at(1)).await.err(), Some(LoginFault::WrongCode));
    let login = log_in(&vault, &shows(&new.secret_base32, at(1)), at(1)).await.unwrap();
    mfa::confirm(&vault, &login).await.unwrap();
    assert_eq!(factor(&vault).await.standing(), "enrolled");
    let nobody = "bob".parse().unwrap();
    assert!(matches!(mfa::replace(&vault, &nobody, at(1)).await, Err(MfaError::NotEnrolled(_))));
}

#[tokio::test]
async fn the_old_factor_works_until_the_new_one_is_confirmed_and_not_after() {
    let (vault, alice) = (confirmed().await, "alice".parse().unwrap());
    let old = factor(&vault).await;
    let next = mfa::replace(&vault, &alice, at(30)).await.unwrap();
    assert_eq!(factor(&vault).await.standing(), "replacing");
    let early = log_in(&vault, &next.recovery_codes[0], at(30)).await;
    assert_eq!(early.err(), Some(LoginFault::WrongCode), "its recovery codes count once it does");
    let with_old = log_in(&vault, &code(&vault, "alice", at(30)).await, at(30)).await.unwrap();
    assert!(!with_old.confirms());
    let first = shows(&next.secret_base32, at(60));
    let with_next = log_in(&vault, &first, at(60)).await.unwrap();
    assert!(with_next.confirms());
    assert_eq!(
        log_in(&vault, &first, at(60)).await.err(),
        Some(LoginFault::SpentCode),
        "spent before it counts"
    );
    mfa::confirm(&vault, &with_next).await.unwrap();
    assert_eq!(log_in(&vault, &first, at(61)).await.err(), Some(LoginFault::SpentCode), "and after");
    let held = factor(&vault).await;
    assert!(held.next.is_none() && held.enrolled_at == at(30) && held.secret != old.secret);
    let mut elsewhere = old.clone();
    elsewhere.user = "bob".parse().unwrap();
    vault.insert(&elsewhere).await.unwrap();
    let old_code = code(&vault, "bob", at(90)).await;
    assert_eq!(log_in(&vault, &old_code, at(90)).await.err(), Some(LoginFault::WrongCode));
    assert!(log_in(&vault, &next.recovery_codes[0], at(90)).await.is_ok());
}

#[tokio::test]
async fn a_login_confirms_the_factor_it_was_made_with_and_no_later_one() {
    let (vault, alice) = (confirmed().await, "alice".parse().unwrap());
    let first = mfa::replace(&vault, &alice, at(30)).await.unwrap();
    let login = log_in(&vault, &shows(&first.secret_base32, at(30)), at(30)).await.unwrap();
    mfa::replace(&vault, &alice, at(31)).await.unwrap();
    mfa::confirm(&vault, &login).await.unwrap();
    let held = factor(&vault).await;
    assert_eq!((held.standing(), held.enrolled_at), ("replacing", at(0)));
}

#[tokio::test]
async fn of_two_logins_at_once_with_first_codes_one_gets_in_and_confirms() {
    let (vault, alice) = (confirmed().await, "alice".parse().unwrap());
    let next = mfa::replace(&vault, &alice, at(30)).await.unwrap();
    let first = shows(&next.secret_base32, at(30));
    let (a, b) = tokio::join!(log_in(&vault, &first, at(30)), log_in(&vault, &first, at(30)));
    let logins: Vec<_> = [a, b].into_iter().flatten().collect();
    assert_eq!(logins.len(), 1);
    mfa::confirm(&vault, &logins[0]).await.unwrap();
    mfa::confirm(&vault, &logins[0]).await.unwrap();
    assert_eq!(
        (factor(&vault).await.standing(), factor(&vault).await.spent_step.is_some()),
        ("enrolled", true)
    );
}

#[tokio::test]
async fn a_clock_that_is_off_is_noticed_and_one_that_is_right_is_not() {
    // Seconds off, seconds into the step of now, whether the code counts, what is told.
    for (off, into, counts, told) in [
        (0, 5, true, None),
        (-30, 5, true, None),
        (-30, 25, true, Some("about 40 seconds behind")),
        (30, 5, true, Some("about 40 seconds ahead")),
        (-60, 5, false, Some("about 50 seconds behind")),
        (90, 0, false, Some("about 105 seconds ahead")),
        (-300, 0, false, Some("about 285 seconds behind")),
        (-330, 0, false, None),
    ] {
        let vault = confirmed().await;
        let start = 3600 + into;
        let given = code(&vault, "alice", at(start + off)).await;
        assert_eq!(log_in(&vault, &given, at(start)).await.is_ok(), counts, "{off}");
        let said = clock_notice(&factor(&vault).await);
        assert_eq!(said.is_some(), told.is_some(), "{off}: {said:?}");
        assert!(told.is_none_or(|told| said.as_deref().unwrap().contains(told)), "{off}: {said:?}");
        assert!(log_in(&vault, &code(&vault, "alice", at(3660)).await, at(3660)).await.is_ok());
        assert_eq!(clock_notice(&factor(&vault).await), None, "a right code of now takes it back");
    }
}

#[tokio::test]
async fn the_attempt_budget_is_in_the_store_and_slows_down_the_longer_it_goes_on() {
    let vault = confirmed().await;
    let mut now = 1000;
    let mut waits = Vec::new();
    for _ in 0..9 {
        while log_in(&vault, "nonsense", at(now)).await.err() == Some(LoginFault::TooManyCodes) {
            now += 1;
        }
        waits.push(now);
    }
    let gaps: Vec<i64> = waits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps, [0, 0, 0, 0, 30, 60, 120, 240]);
    let held = factor(&vault).await;
    assert_eq!((held.failures, held.failed_at), (9, Some(at(now))), "what a restart reads");
}

#[tokio::test]
async fn a_clock_that_went_back_bars_nobody_for_longer_than_the_wait() {
    let vault = confirmed().await;
    for _ in 0..5 {
        assert_eq!(log_in(&vault, "000000x", at(10 * 86_400)).await.err(), Some(LoginFault::WrongCode));
    }
    for second in [60, 89] {
        let right = code(&vault, "alice", at(second)).await;
        assert_eq!(log_in(&vault, &right, at(second)).await.err(), Some(LoginFault::TooManyCodes));
    }
    let right = code(&vault, "alice", at(90)).await;
    assert!(log_in(&vault, &right, at(90)).await.is_ok());
}
