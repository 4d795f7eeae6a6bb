//! The login's states, each allowance beside its denied neighbour.

use keystore::{Ended, SecondFactor};

use super::testing::*;
use super::*;

const EXPIRY: i64 = 90 * 86_400;

async fn verified(vault: &Vault) -> KeyVerified {
    unauthenticated().key_verified(vault, "alice", &public_key(1), at(0)).await.ok().unwrap()
}

async fn key_fault(vault: &Vault, user: &str, key: u8, now: Timestamp) -> Option<LoginFault> {
    let rules = KeyRules::default();
    let knock = Knock { user, key: &public_key(key), source: "192.0.2.7".parse().unwrap(), rules: &rules };
    let offered = offered_key(vault, knock, now).await.is_ok();
    let fault =
        unauthenticated().key_verified(vault, user, &public_key(key), now).await.err().map(|(_, f)| f);
    assert_eq!(offered, fault.is_none(), "an offer and a signature must be judged alike");
    fault
}

async fn code_fault(vault: &Vault, code: &str, now: Timestamp) -> Option<LoginFault> {
    let login = verified(vault).await.with_second_factor(vault, "alice", code, now).await;
    login.err().map(|(_, fault)| fault)
}

#[tokio::test]
async fn a_key_logs_in_its_own_user_and_nobody_else() {
    let vault = vault().await;
    assert_eq!(key_fault(&vault, "alice", 1, at(0)).await, None);
    assert_eq!(key_fault(&vault, "bob", 1, at(0)).await, Some(LoginFault::UnknownKey));
    assert_eq!(key_fault(&vault, "alice", 7, at(0)).await, Some(LoginFault::UnknownKey));
    for nobody in ["carol", "", "ALICE", "alice/../bob", "-"] {
        assert_eq!(key_fault(&vault, nobody, 1, at(0)).await, Some(LoginFault::UnknownUser), "{nobody}");
    }
}

#[tokio::test]
async fn only_keys_in_use_count() {
    let vault = vault().await;
    let id = UserKey::fingerprint_of(&public_key(1));
    for (status, works) in [
        (KeyStatus::Pending, true),
        (KeyStatus::Active, true),
        (KeyStatus::Retiring, true),
        (KeyStatus::Retired, false),
        (KeyStatus::Revoked, false),
    ] {
        vault
            .update(&id, |k: &mut UserKey| {
                k.status = status;
                Ok::<_, keystore::Error>(())
            })
            .await
            .unwrap();
        let expected = (!works).then_some(LoginFault::KeyUnusable(status));
        assert_eq!(key_fault(&vault, "alice", 1, at(0)).await, expected);
    }
}

#[tokio::test]
async fn a_key_works_until_it_expires_and_is_exchanged_until_its_grace_ends() {
    let vault = vault().await;
    for (second, exchanges) in [(EXPIRY - 1, false), (EXPIRY, true), (EXPIRY + GRACE - 1, true)] {
        assert_eq!(key_fault(&vault, "alice", 1, at(second)).await, None);
        let key =
            unauthenticated().key_verified(&vault, "alice", &public_key(1), at(second)).await.ok().unwrap();
        let code = code(&vault, "alice", at(second)).await;
        let login = key.with_second_factor(&vault, "alice", &code, at(second)).await.ok().unwrap();
        assert_eq!(login.only_exchanges(), exchanges);
    }
    let fault = key_fault(&vault, "alice", 1, at(EXPIRY + GRACE)).await.unwrap();
    assert_eq!(fault, LoginFault::KeyUnusable(KeyStatus::Expired));
    assert_eq!(fault.reason(), "key expired");
}

#[tokio::test]
async fn a_pending_key_is_proven_by_key_and_code_and_not_by_the_key_alone() {
    let vault = vault().await;
    let id = UserKey::fingerprint_of(&public_key(1));
    let stage = |k: &mut UserKey| {
        (k.status, k.replaces) = (KeyStatus::Pending, Some("SHA256:old".to_owned()));
        Ok::<_, keystore::Error>(())
    };
    vault.update(&id, stage).await.unwrap();
    let status = async || vault.get::<UserKey>(&id).await.unwrap().unwrap().status_at(at(1));
    assert_eq!(code_fault(&vault, "000000x", at(0)).await, Some(LoginFault::WrongCode));
    assert_eq!(status().await, KeyStatus::Pending);
    let code = code(&vault, "alice", at(0)).await;
    assert_eq!(code_fault(&vault, &code, at(0)).await, None);
    assert_eq!(status().await, KeyStatus::Active);
}

#[tokio::test]
async fn key_and_code_make_a_login_that_remembers_both() {
    let vault = vault().await;
    let code = code(&vault, "alice", at(0)).await;
    let login = verified(&vault).await.with_second_factor(&vault, "alice", &code, at(3)).await.ok().unwrap();
    assert_eq!(login.user().as_str(), "alice");
    assert_eq!(login.source(), "192.0.2.7:4022".parse().unwrap());
    assert_eq!(login.at(), at(3));
    assert!(login.roles().iter().any(|r| r.as_str() == "engineer"));
    assert!(login.matches_key(&public_key(1)));
    assert!(!login.matches_key(&public_key(2)));
    let key: UserKey = vault.get(login.key()).await.unwrap().unwrap();
    assert_eq!(key.last_used_at, Some(at(3)));
}

#[tokio::test]
async fn a_code_is_spent_once_and_the_next_one_works() {
    let vault = vault().await;
    let (first, next) = (code(&vault, "alice", at(0)).await, code(&vault, "alice", at(30)).await);
    assert_eq!(code_fault(&vault, &first, at(0)).await, None);
    assert_eq!(code_fault(&vault, &first, at(1)).await, Some(LoginFault::SpentCode));
    assert_eq!(code_fault(&vault, &next, at(31)).await, None);
}

#[tokio::test]
async fn of_two_logins_with_one_code_at_the_same_instant_one_gets_in() {
    let vault = vault().await;
    let code = code(&vault, "alice", at(0)).await;
    let (a, b) = tokio::join!(code_fault(&vault, &code, at(0)), code_fault(&vault, &code, at(0)));
    assert_eq!([a, b].iter().filter(|fault| fault.is_none()).count(), 1);
}

#[tokio::test]
async fn a_code_older_than_a_spent_one_is_spent_too() {
    let vault = vault().await;
    let (old, ahead) = (code(&vault, "alice", at(0)).await, code(&vault, "alice", at(30)).await);
    assert_eq!(code_fault(&vault, &ahead, at(0)).await, None);
    assert_eq!(code_fault(&vault, &old, at(0)).await, Some(LoginFault::SpentCode));
}

#[tokio::test]
async fn a_clock_may_be_one_step_off_and_not_two() {
    for (off, works) in [(-60, false), (-30, true), (0, true), (30, true), (60, false)] {
        let vault = vault().await;
        let code = code(&vault, "alice", at(off)).await;
        let expected = (!works).then_some(LoginFault::WrongCode);
        assert_eq!(code_fault(&vault, &code, at(0)).await, expected, "{off} s");
    }
}

#[tokio::test]
async fn a_user_without_a_second_factor_cannot_log_in() {
    let vault = vault().await;
    let bob = unauthenticated().key_verified(&vault, "bob", &public_key(2), at(0)).await.ok().unwrap();
    let (_, fault) = bob.with_second_factor(&vault, "bob", "000000", at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::NoSecondFactor);
}

#[tokio::test]
async fn a_changed_user_name_voids_the_key() {
    let vault = vault().await;
    let code = code(&vault, "alice", at(0)).await;
    let (key, fault) =
        verified(&vault).await.with_second_factor(&vault, "bob", &code, at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::UserChanged);
    let (key, fault) = key.with_second_factor(&vault, "alice", &code, at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::UserChanged, "going back to the first name must not revive the key");
    let again = key.void().key_verified(&vault, "alice", &public_key(1), at(0)).await.ok().unwrap();
    assert!(again.with_second_factor(&vault, "alice", &code, at(0)).await.is_ok());
}

#[tokio::test]
async fn a_user_suspended_between_key_and_code_stays_out() {
    let vault = vault().await;
    let (key, code) = (verified(&vault).await, code(&vault, "alice", at(0)).await);
    let suspend = |u: &mut User| {
        u.suspended = Some(Ended { at: at(0), reason: "left".to_owned() });
        Ok::<_, keystore::Error>(())
    };
    vault.update("alice", suspend).await.unwrap();
    let (_, fault) = key.with_second_factor(&vault, "alice", &code, at(0)).await.err().unwrap();
    assert_eq!(fault.reason(), "user suspended");
    assert_eq!(key_fault(&vault, "alice", 1, at(0)).await, Some(LoginFault::Barred("user suspended")));
}

#[tokio::test]
async fn a_key_revoked_between_key_and_code_stays_out() {
    let vault = vault().await;
    let (key, code) = (verified(&vault).await, code(&vault, "alice", at(0)).await);
    let revoke = |k: &mut UserKey| {
        k.status = KeyStatus::Revoked;
        Ok::<_, keystore::Error>(())
    };
    vault.update(&UserKey::fingerprint_of(&public_key(1)), revoke).await.unwrap();
    let (_, fault) = key.with_second_factor(&vault, "alice", &code, at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::KeyUnusable(KeyStatus::Revoked));
}

#[tokio::test]
async fn after_five_wrong_codes_the_right_one_waits_and_then_works() {
    let vault = vault().await;
    for _ in 0..5 {
        assert_eq!(code_fault(&vault, "nonsense", at(0)).await, Some(LoginFault::WrongCode));
    }
    let early = code(&vault, "alice", at(29)).await;
    assert_eq!(code_fault(&vault, &early, at(29)).await, Some(LoginFault::TooManyCodes));
    let late = code(&vault, "alice", at(30)).await;
    assert_eq!(code_fault(&vault, &late, at(30)).await, None);
    let factor: SecondFactor = vault.get("alice").await.unwrap().unwrap();
    assert_eq!((factor.failures, factor.failed_at), (0, None));
}

#[tokio::test]
async fn four_wrong_codes_delay_nothing() {
    let vault = vault().await;
    for _ in 0..4 {
        assert_eq!(code_fault(&vault, "", at(0)).await, Some(LoginFault::WrongCode));
    }
    let code = code(&vault, "alice", at(0)).await;
    assert_eq!(code_fault(&vault, &code, at(0)).await, None);
}

#[tokio::test]
async fn a_recovery_code_works_once_however_it_is_typed() {
    let vault = vault().await;
    let codes = mfa::new_recovery_codes(&vault, &"alice".parse().unwrap()).await.unwrap();
    assert_eq!(codes.len(), 10);
    assert!(codes.iter().all(|c| c.len() == 14 && c.split('-').all(|part| part.len() == 4)));
    assert_eq!(code_fault(&vault, &codes[0], at(0)).await, None);
    assert_eq!(code_fault(&vault, &codes[0], at(0)).await, Some(LoginFault::WrongCode));
    let typed = codes[1].to_uppercase().replace('-', " ");
    assert_eq!(code_fault(&vault, &typed, at(0)).await, None);
    let newer = mfa::new_recovery_codes(&vault, &"alice".parse().unwrap()).await.unwrap();
    assert_eq!(code_fault(&vault, &codes[2], at(0)).await, Some(LoginFault::WrongCode));
    assert_eq!(code_fault(&vault, &newer[2], at(0)).await, None);
}

#[tokio::test]
async fn enrolment_gives_what_an_authenticator_needs_once() {
    let vault = vault().await;
    let bob = "bob".parse().unwrap();
    let enrolment = mfa::enroll(&vault, &bob, at(0)).await.unwrap();
    assert!(enrolment.uri.starts_with("otpauth://totp/"), "{}", enrolment.uri);
    assert!(enrolment.uri.contains(&enrolment.secret_base32));
    assert_eq!(enrolment.secret_base32.len(), 32);
    assert_eq!(enrolment.recovery_codes.len(), 10);
    assert!(matches!(mfa::enroll(&vault, &bob, at(0)).await, Err(mfa::MfaError::Enrolled(_))));
    let nobody = "carol".parse().unwrap();
    assert!(matches!(mfa::enroll(&vault, &nobody, at(0)).await, Err(mfa::MfaError::UnknownUser(_))));
}

#[tokio::test]
async fn a_reset_factor_is_gone_and_can_be_enrolled_anew() {
    let vault = vault().await;
    let alice = "alice".parse().unwrap();
    let old = code(&vault, "alice", at(0)).await;
    mfa::reset(&vault, &alice).await.unwrap();
    assert_eq!(code_fault(&vault, &old, at(0)).await, Some(LoginFault::NoSecondFactor));
    assert!(matches!(mfa::reset(&vault, &alice).await, Err(mfa::MfaError::NotEnrolled(_))));
    assert!(mfa::enroll(&vault, &alice, at(0)).await.is_ok());
}
