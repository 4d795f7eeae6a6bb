//! What a clock that is not believed ends, and what the word of an administrator changes.

use jiff::{SignedDuration, Timestamp};
use keystore::KeyStatus;
use tokio::sync::mpsc;

use super::*;
use crate::admin::{self, Caller, Command, Output, execute};
use crate::audit::Filter;

#[tokio::test]
async fn a_doubted_clock_lets_nobody_in_who_is_late_and_ends_no_key_until_an_administrator_says_that_it_is_right()
 {
    let dir = tempfile::tempdir().unwrap();
    let file = init(dir.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let config = Config::load(&file).unwrap();
    let now = Timestamp::now();
    let day = |days: i64| now + SignedDuration::from_hours(24 * days);
    // As a daemon leaves it that doubted the clock a month ago.
    std::fs::write(config.state_dir.join("clock"), day(-30).to_string()).unwrap();
    let house = run::open(config).await.unwrap();
    testing::people(&house.vault).await;
    let print = UserKey::fingerprint_of(&testing::public_key(1));
    let expired = |key: &mut UserKey| {
        (key.added_at, key.expires_at) = (day(-91), day(-1));
        Ok::<_, keystore::Error>(())
    };
    house.vault.update(&print, expired).await.unwrap();
    let settled = async || {
        admin::rotation(&house).settle(house.clock.now()).await.unwrap();
        house.vault.get::<UserKey>(&print).await.unwrap().unwrap()
    };
    let key = settled().await;
    assert_eq!((key.status, key.status_at(now)), (KeyStatus::Active, KeyStatus::Expired));
    let clock = async |is_right: bool| {
        let (to, _said) = mpsc::channel(64);
        let mut out = Output::new(to, false, None);
        execute(&house, &Caller::Operator { uid: 0 }, Command::Clock { is_right }, &mut out).await
    };
    assert_eq!(clock(false).await, 0);
    assert!(house.clock.doubt().is_some(), "it was only asked");
    assert_eq!(clock(true).await, 0);
    assert_eq!(settled().await.status, KeyStatus::Expired);
    let told = Filter { event: Some("clock_confirmed".to_owned()), ..Filter::default() };
    assert_eq!(house.trail.query(&told).unwrap().len(), 1);
}
