//! Enrolment, each allowance beside its denied neighbour.

use super::*;
use crate::auth::testing::*;
use crate::auth::{Knock, LoginFault, offered_key};

/// carol, new: no key, no second factor, a code.
async fn carol() -> (Vault, String) {
    let vault = vault().await;
    vault.insert(&user("carol", &["engineer"])).await.unwrap();
    let code = invited(&vault, "carol").await;
    (vault, code)
}

async fn invited(vault: &Vault, user: &str) -> String {
    let (code, invitation) = invitation(&user.parse().unwrap(), at(0));
    invite(vault, &invitation).await.unwrap();
    code
}

/// The last two steps.
async fn enrols(state: Enrolling, vault: &Vault, user: &str, code: &str) -> Result<Enrolled, LoginFault> {
    let confirmed = state.confirmed(vault, user, code, at(0)).await.map_err(|(_, fault)| fault)?;
    confirmed.enrol(vault, at(0)).await
}

async fn fault(vault: &Vault, user: &str, code: &str, now: Timestamp) -> Option<LoginFault> {
    unauthenticated().invited(vault, user, code, now).await.err().map(|(_, fault)| fault)
}

async fn known(vault: &Vault, key: u8) -> bool {
    let (key, rules) = (public_key(key), KeyRules::default());
    let knock = Knock { user: "carol", key: &key, source: "192.0.2.7".parse().unwrap(), rules: &rules };
    offered_key(vault, knock, at(1)).await.is_ok()
}

async fn enrolling(vault: &Vault, code: &str, key: u8) -> Enrolling {
    let invited = unauthenticated().invited(vault, "carol", code, at(0)).await.ok().unwrap();
    invited.key_signed(vault, "carol", &public_key(key), at(0)).await.ok().unwrap()
}

fn shown(enrolling: &Enrolling, now: Timestamp) -> String {
    let secret = &enrolling.new_factor().unwrap().secret_base32;
    let secret = data_encoding::BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let totp = totp_rs::Builder::new().with_secret(secret).build().unwrap();
    totp.generate(u64::try_from(now.as_second()).unwrap()).to_string()
}

#[tokio::test]
async fn a_code_a_key_and_a_first_authenticator_code_make_a_user_who_can_log_in() {
    let (vault, code) = carol().await;
    assert!(looks_like_invitation(&code) && !looks_like_invitation("123456"));
    let state = enrolling(&vault, &code, 3).await;
    assert!(state.new_key().is_some() && state.new_factor().unwrap().qr().is_some());
    let first = shown(&state, at(0));
    let confirmed = state.confirmed(&vault, "carol", &first, at(0)).await.ok().unwrap();
    assert!(confirmed.new_key().is_some() && confirmed.is_new_factor());
    assert!(!known(&vault, 3).await, "stored once the trail has heard of it");
    let done = confirmed.enrol(&vault, at(0)).await.unwrap();
    assert_eq!(done.recovery_codes.unwrap().len(), 10);
    assert_eq!(done.login.user().as_str(), "carol");
    assert!(done.login.matches_key(&public_key(3)));
    assert!(known(&vault, 3).await);
    let key = unauthenticated().key_verified(&vault, "carol", &public_key(3), at(1)).await.ok().unwrap();
    let (key, spent) = key.with_second_factor(&vault, "carol", &first, at(1)).await.err().unwrap();
    assert_eq!(spent, LoginFault::SpentCode, "the confirming code is spent");
    let next = super::super::testing::code(&vault, "carol", at(30)).await;
    assert!(key.with_second_factor(&vault, "carol", &next, at(30)).await.is_ok());
    assert_eq!(fault(&vault, "carol", &code, at(2)).await, Some(LoginFault::WrongInvitation), "once");
}

#[tokio::test]
async fn nothing_is_stored_before_the_authenticator_has_confirmed() {
    let (vault, code) = carol().await;
    let state = enrolling(&vault, &code, 3).await;
    let recovery = state.new_factor().unwrap().recovery_codes[0].clone();
    let (state, wrong) = state.confirmed(&vault, "carol", "000000", at(0)).await.err().unwrap();
    assert_eq!(wrong, LoginFault::WrongCode);
    let (state, wrong) = state.confirmed(&vault, "carol", &recovery, at(0)).await.err().unwrap();
    assert_eq!(wrong, LoginFault::WrongCode, "a recovery code confirms no authenticator");
    assert!(vault.get::<SecondFactor>("carol").await.unwrap().is_none());
    assert!(!known(&vault, 3).await);
    let right = shown(&state, at(0));
    let (state, changed) = state.confirmed(&vault, "bob", &right, at(0)).await.err().unwrap();
    assert_eq!(changed, LoginFault::UserChanged);
    assert!(state.confirmed(&vault, "carol", &right, at(0)).await.is_err(), "the name stays spoilt");
    assert_eq!(fault(&vault, "carol", &code, at(2)).await, None, "the code is good still");
}

#[tokio::test]
async fn an_enrolment_that_an_administrators_outran_leaves_no_key_behind() {
    for outrun in [false, true] {
        let (vault, code) = carol().await;
        let state = enrolling(&vault, &code, 3).await;
        let first = shown(&state, at(0));
        let confirmed = state.confirmed(&vault, "carol", &first, at(0)).await.ok().unwrap();
        if outrun {
            mfa::enroll(&vault, &"carol".parse().unwrap(), at(0)).await.unwrap();
        }
        assert_eq!(confirmed.enrol(&vault, at(0)).await.is_err(), outrun);
        assert_eq!(known(&vault, 3).await, !outrun);
    }
}

#[tokio::test]
async fn a_code_brings_nobody_in_from_a_network_that_the_user_may_not_come_from() {
    let (vault, code) = carol().await;
    for (network, expected) in
        [("192.0.2.0/24", None), ("10.0.0.0/8", Some(LoginFault::WrongNetwork)), ("192.0.2.7/32", None)]
    {
        let moved = |u: &mut User| {
            u.from = vec![network.parse().unwrap()];
            Ok::<_, keystore::Error>(())
        };
        vault.update("carol", moved).await.unwrap();
        assert_eq!(fault(&vault, "carol", &code, at(0)).await, expected, "{network}");
    }
}

#[tokio::test]
async fn of_two_enrolments_with_one_code_one_is_done() {
    let (vault, code) = carol().await;
    let (a, b) = (enrolling(&vault, &code, 3).await, enrolling(&vault, &code, 6).await);
    let (first, second) = (shown(&a, at(0)), shown(&b, at(0)));
    let a = a.confirmed(&vault, "carol", &first, at(0)).await.ok().unwrap();
    let b = b.confirmed(&vault, "carol", &second, at(0)).await.ok().unwrap();
    let (a, b) = tokio::join!(a.enrol(&vault, at(0)), b.enrol(&vault, at(0)));
    let known = [known(&vault, 3).await, known(&vault, 6).await];
    assert_eq!([a.is_ok(), b.is_ok()], known);
    assert_eq!(a.err().or(b.err()), Some(LoginFault::WrongInvitation));
    assert_ne!(known[0], known[1]);
}

#[tokio::test]
async fn key_and_factor_are_added_both_or_none() {
    let (vault, code) = carol().await;
    let state = enrolling(&vault, &code, 3).await;
    let first = shown(&state, at(0));
    let confirmed = state.confirmed(&vault, "carol", &first, at(0)).await.ok().unwrap();
    // An admin is faster with a factor.
    mfa::enroll(&vault, &"carol".parse().unwrap(), at(0)).await.unwrap();
    assert!(confirmed.enrol(&vault, at(0)).await.is_err());
    assert!(!known(&vault, 3).await, "the trail was told that the enrolment failed");
    let second = invited(&vault, "carol").await;
    let state = enrolling(&vault, &second, 3).await;
    let held = super::super::testing::code(&vault, "carol", at(0)).await;
    assert!(enrols(state, &vault, "carol", &held).await.is_ok());
    assert!(known(&vault, 3).await);
}

#[tokio::test]
async fn a_code_is_its_users_own_for_a_day_and_wrong_ones_do_not_wear_it_out() {
    let (vault, code) = carol().await;
    for (user, expected) in [
        ("carol", None),
        ("bob", Some(LoginFault::WrongInvitation)),
        ("nobody", Some(LoginFault::UnknownUser)),
        ("-", Some(LoginFault::UnknownUser)),
    ] {
        assert_eq!(fault(&vault, user, &code, at(1)).await, expected, "{user}");
    }
    assert_eq!(fault(&vault, "carol", &code.to_uppercase().replace('-', " "), at(VALID - 1)).await, None);
    assert_eq!(fault(&vault, "carol", &code, at(VALID)).await, Some(LoginFault::WrongInvitation));
    for _ in 0..1000 {
        assert_eq!(fault(&vault, "carol", "wrong", at(1)).await, Some(LoginFault::WrongInvitation));
    }
    assert_eq!(fault(&vault, "carol", &code, at(1)).await, None);
}

#[tokio::test]
async fn a_second_invitation_voids_the_first_and_a_withdrawn_one_is_none() {
    let (vault, first) = carol().await;
    let second = invited(&vault, "carol").await;
    assert_eq!(fault(&vault, "carol", &first, at(1)).await, Some(LoginFault::WrongInvitation));
    assert_eq!(fault(&vault, "carol", &second, at(1)).await, None);
    withdraw(&vault, &"carol".parse().unwrap()).await.unwrap();
    assert_eq!(fault(&vault, "carol", &second, at(1)).await, Some(LoginFault::WrongInvitation));
}

#[tokio::test]
async fn keys_of_others_and_keys_that_ended_are_not_welcome() {
    let (vault, code) = carol().await;
    let mut revoked = user_key("carol", &public_key(9));
    revoked.status = KeyStatus::Revoked;
    vault.insert(&revoked).await.unwrap();
    let mut invited = unauthenticated().invited(&vault, "carol", &code, at(0)).await.ok().unwrap();
    for (key, welcome) in [(1, false), (9, false), (3, true)] {
        assert_eq!(invited.welcomes(&vault, "carol", &public_key(key), at(0)).await, welcome, "{key}");
        assert!(!invited.welcomes(&vault, "bob", &public_key(key), at(0)).await);
        if !welcome {
            let signed = invited.key_signed(&vault, "carol", &public_key(key), at(0)).await;
            invited = signed.err().unwrap().0;
        }
    }
}

#[tokio::test]
async fn an_invitation_replaces_a_key_and_never_a_second_factor() {
    let vault = vault().await;
    let code_for_alice = invited(&vault, "alice").await;
    let invited_alice =
        unauthenticated().invited(&vault, "alice", &code_for_alice, at(0)).await.ok().unwrap();
    let state = invited_alice.key_signed(&vault, "alice", &public_key(3), at(0)).await.ok().unwrap();
    assert!(state.new_factor().is_none());
    let (state, fault) = state.confirmed(&vault, "alice", "000000", at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::WrongCode);
    let held = code(&vault, "alice", at(0)).await;
    let confirmed = state.confirmed(&vault, "alice", &held, at(0)).await.ok().unwrap();
    assert!(confirmed.new_key().is_some() && !confirmed.is_new_factor());
    assert!(confirmed.enrol(&vault, at(0)).await.unwrap().recovery_codes.is_none());
    let key = unauthenticated().key_verified(&vault, "alice", &public_key(1), at(0)).await.ok().unwrap();
    let code_again = invited(&vault, "alice").await;
    let (_, fault) = key.invited(&vault, "alice", &code_again, at(0)).await.err().unwrap();
    assert_eq!(fault, LoginFault::WrongCode, "who has a second factor uses it");
}

#[tokio::test]
async fn a_known_key_enrols_a_second_factor_after_a_reset() {
    let vault = vault().await;
    let invitation = invited(&vault, "bob").await;
    let key = unauthenticated().key_verified(&vault, "bob", &public_key(2), at(0)).await.ok().unwrap();
    let state = key.invited(&vault, "bob", &invitation, at(0)).await.ok().unwrap();
    assert!(state.new_key().is_none());
    let first = shown(&state, at(0));
    assert!(enrols(state, &vault, "bob", &first).await.unwrap().login.matches_key(&public_key(2)));
}

#[tokio::test]
async fn a_suspended_user_enrols_nothing() {
    let (vault, code) = carol().await;
    let state = enrolling(&vault, &code, 3).await;
    let suspend = |u: &mut User| {
        u.suspended = Some(keystore::Ended { at: at(0), reason: "left".to_owned() });
        Ok::<_, keystore::Error>(())
    };
    vault.update("carol", suspend).await.unwrap();
    let first = shown(&state, at(0));
    assert_eq!(
        enrols(state, &vault, "carol", &first).await.err(),
        Some(LoginFault::Barred("user suspended"))
    );
    assert_eq!(fault(&vault, "carol", &code, at(0)).await, Some(LoginFault::Barred("user suspended")));
}

#[tokio::test]
async fn an_invited_signature_takes_over_a_key_that_somebody_else_only_named_and_none_that_was_used() {
    for (used, status) in
        [(false, KeyStatus::Pending), (true, KeyStatus::Pending), (false, KeyStatus::Revoked)]
    {
        let (vault, code) = carol().await;
        let named = UserKey {
            id: "K7".to_owned(),
            status,
            replaces: Some(UserKey::fingerprint_of(&public_key(2))),
            last_used_at: used.then(|| at(0)),
            ..user_key("bob", &public_key(3))
        };
        vault.insert(&named).await.unwrap();
        let open = !used && status == KeyStatus::Pending;
        let invited = unauthenticated().invited(&vault, "carol", &code, at(0)).await.ok().unwrap();
        assert_eq!(invited.welcomes(&vault, "carol", &public_key(3), at(0)).await, open);
        let signed = invited.key_signed(&vault, "carol", &public_key(3), at(0)).await;
        let Ok(state) = signed else {
            assert!(!open);
            continue;
        };
        let first = shown(&state, at(0));
        let confirmed = state.confirmed(&vault, "carol", &first, at(0)).await.ok().unwrap();
        assert_eq!(confirmed.claims_from().map(UserName::as_str), Some("bob"));
        assert!(confirmed.new_key().is_some());
        assert!(confirmed.enrol(&vault, at(0)).await.unwrap().login.matches_key(&public_key(3)));
        assert!(known(&vault, 3).await, "it is hers");
    }
}

#[tokio::test]
async fn a_key_that_its_first_owner_logged_in_with_meanwhile_is_not_taken_over() {
    let (vault, code) = carol().await;
    let named = UserKey { status: KeyStatus::Pending, ..user_key("bob", &public_key(3)) };
    vault.insert(&named).await.unwrap();
    let state = enrolling(&vault, &code, 3).await;
    let used = |key: &mut UserKey| {
        key.last_used_at = Some(at(0));
        Ok::<_, keystore::Error>(())
    };
    vault.update(&named.fingerprint, used).await.unwrap();
    let first = shown(&state, at(0));
    assert_eq!(enrols(state, &vault, "carol", &first).await.err(), Some(LoginFault::UnknownKey));
    let held = vault.get::<UserKey>(&named.fingerprint).await.unwrap().unwrap();
    assert_eq!(held.user.as_str(), "bob");
    assert!(vault.get::<SecondFactor>("carol").await.unwrap().is_none(), "both or none");
}

#[tokio::test]
async fn a_key_in_its_grace_enrols_nothing_and_spends_no_invitation() {
    let vault = vault().await;
    let code = invited(&vault, "bob").await;
    let key = unauthenticated().key_verified(&vault, "bob", &public_key(2), at(0)).await.ok().unwrap();
    let between = key.invited(&vault, "bob", &code, at(0)).await.ok().unwrap();
    let first = shown(&between, at(0));
    let expire = |key: &mut UserKey| {
        key.expires_at = at(0);
        Ok::<_, keystore::Error>(())
    };
    vault.update(&UserKey::fingerprint_of(&public_key(2)), expire).await.unwrap();
    let expired = LoginFault::KeyUnusable(KeyStatus::Expired);
    assert_eq!(enrols(between, &vault, "bob", &first).await.err(), Some(expired.clone()));
    let key = unauthenticated().key_verified(&vault, "bob", &public_key(2), at(0)).await.ok().unwrap();
    assert_eq!(key.invited(&vault, "bob", &code, at(0)).await.err().unwrap().1, expired);
    // The code is good still, for another key.
    let invited = unauthenticated().invited(&vault, "bob", &code, at(0)).await.ok().unwrap();
    let state = invited.key_signed(&vault, "bob", &public_key(3), at(0)).await.ok().unwrap();
    let first = shown(&state, at(0));
    let enrolled = enrols(state, &vault, "bob", &first).await.unwrap();
    assert!(!enrolled.login.only_exchanges());
}
