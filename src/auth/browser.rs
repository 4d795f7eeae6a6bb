//! Browsers: sign-in links for people who have logged in over SSH, and the browsers that used one.
//!
//! A link is a random ticket that lives for [`TICKET_LIFE`] seconds and is spent once; what it gives is a cookie that ends
//! when it idles, at its end, or when the caller ends it because a right was lost. Both are known here by their SHA-256
//! alone, and in memory alone: a restart signs everybody out. Whether the person still *may* is asked at every request,
//! by whoever serves it; this room only knows who it is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use keystore::UserName;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::CertificateId;

/// A person who logged in over SSH with key and code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The user.
    pub user: UserName,
    /// Fingerprint of the key that signed.
    pub key: String,
    /// The certificate that the login was made with, if it was one.
    pub certificate: Option<CertificateId>,
    /// Where the SSH connection came from.
    pub source: IpAddr,
}

/// A spent ticket: the proof with which a browser is let in.
#[derive(Debug)]
pub struct SignedIn {
    person: Person,
}

impl SignedIn {
    /// Whose ticket it was.
    pub fn person(&self) -> &Person {
        &self.person
    }
}

/// Why a ticket lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such ticket was given, or so long ago that it is forgotten.
    #[error("no such link")]
    Unknown,
    /// It was used before.
    #[error("the link was used before")]
    Spent(Person),
    /// Its minute is over.
    #[error("the link is older than a minute")]
    Late(Person),
}

/// How long a browser stays signed in, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    /// Without a request.
    pub idle: i64,
    /// In any case.
    pub life: i64,
}

/// Open tickets and signed-in browsers.
#[derive(Default)]
pub struct Browsers {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tickets: HashMap<Hash, Ticket>,
    browsers: HashMap<Hash, Browser>,
}

type Hash = [u8; 32];

struct Ticket {
    person: Person,
    given: Timestamp,
    spent: bool,
}

struct Browser {
    person: Person,
    stay: Stay,
    since: Timestamp,
    last: Timestamp,
}

impl Browsers {
    /// A ticket for `person`: 256 bits, as base64url. The oldest of too many open ones is withdrawn.
    pub fn ticket(&self, person: Person, now: Timestamp) -> Zeroizing<String> {
        let (ticket, hash) = secret();
        let mut known = self.lock();
        known.forget(now);
        let own = |t: &Ticket| t.person.user == person.user && !t.spent;
        if known.tickets.values().filter(|t| own(t)).count() >= MOST_TICKETS {
            let oldest = known.tickets.iter().filter(|(_, t)| own(t)).min_by_key(|(_, t)| t.given);
            if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
                known.tickets.remove(&oldest);
            }
        }
        known.tickets.insert(hash, Ticket { person, given: now, spent: false });
        ticket
    }

    /// Spends a ticket.
    ///
    /// # Errors
    /// [`Refused`]: unknown, spent or late.
    pub fn sign_in(&self, ticket: &str, now: Timestamp) -> Result<SignedIn, Refused> {
        let mut known = self.lock();
        let ticket = known.tickets.get_mut(&hashed(ticket)).ok_or(Refused::Unknown)?;
        let person = ticket.person.clone();
        if std::mem::replace(&mut ticket.spent, true) {
            return Err(Refused::Spent(person));
        }
        if !(0..TICKET_LIFE).contains(&(now.as_second() - ticket.given.as_second())) {
            return Err(Refused::Late(person));
        }
        Ok(SignedIn { person })
    }

    /// Lets the browser in; returns its cookie. The oldest of one person's too many browsers is signed out.
    pub fn enter(&self, proof: SignedIn, stay: Stay, now: Timestamp) -> Zeroizing<String> {
        let (cookie, hash) = secret();
        let mut known = self.lock();
        known.forget(now);
        let person = proof.person;
        let own = |b: &Browser| b.person.user == person.user;
        if known.browsers.values().filter(|b| own(b)).count() >= MOST_BROWSERS {
            let oldest = known.browsers.iter().filter(|(_, b)| own(b)).min_by_key(|(_, b)| b.last);
            if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
                known.browsers.remove(&oldest);
            }
        }
        known.browsers.insert(hash, Browser { person, stay, since: now, last: now });
        cookie
    }

    /// Whose cookie it is; its idle time begins anew.
    pub fn who(&self, cookie: &str, now: Timestamp) -> Option<Person> {
        let mut known = self.lock();
        let hash = hashed(cookie);
        let browser = known.browsers.get_mut(&hash)?;
        if browser.is_over(now) {
            known.browsers.remove(&hash);
            return None;
        }
        browser.last = browser.last.max(now);
        Some(browser.person.clone())
    }

    /// Signs a browser out. Says who it was.
    pub fn leave(&self, cookie: &str) -> Option<Person> {
        self.lock().browsers.remove(&hashed(cookie)).map(|browser| browser.person)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, now: Timestamp) {
        self.tickets.retain(|_, t| now.as_second() - t.given.as_second() < REMEMBERED);
        self.browsers.retain(|_, b| !b.is_over(now));
    }
}

impl Browser {
    fn is_over(&self, now: Timestamp) -> bool {
        let (since, last) = (self.since.as_second(), self.last.as_second());
        now.as_second() - last >= self.stay.idle || now.as_second() - since >= self.stay.life
    }
}

/// A new secret, and by what it is known.
fn secret() -> (Zeroizing<String>, Hash) {
    let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
    let text = Zeroizing::new(BASE64URL_NOPAD.encode(bytes.as_slice()));
    let hash = hashed(&text);
    (text, hash)
}

fn hashed(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

/// Seconds in which a ticket can be spent.
pub const TICKET_LIFE: i64 = 60;
/// Seconds in which a used or late ticket is told from an unknown one.
const REMEMBERED: i64 = 3600;
/// Open tickets, and signed-in browsers, of one person.
const MOST_TICKETS: usize = 10;
const MOST_BROWSERS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn person(name: &str) -> Person {
        Person {
            user: name.parse().unwrap(),
            key: "SHA256:x".into(),
            certificate: None,
            source: "192.0.2.7".parse().unwrap(),
        }
    }

    const STAY: Stay = Stay { idle: 900, life: 3600 };

    #[test]
    fn a_ticket_is_spent_once() {
        let browsers = Browsers::default();
        let ticket = browsers.ticket(person("oscar"), at(0));
        assert_eq!(ticket.len(), 43, "256 bits");
        assert_eq!(browsers.sign_in(&ticket, at(1)).unwrap().person(), &person("oscar"));
        assert_eq!(browsers.sign_in(&ticket, at(2)).unwrap_err(), Refused::Spent(person("oscar")));
        assert_eq!(browsers.sign_in("guess", at(2)).unwrap_err(), Refused::Unknown);
    }

    #[test]
    fn a_ticket_lives_for_a_minute_and_a_late_one_is_spent_too() {
        let browsers = Browsers::default();
        let (early, late) =
            (browsers.ticket(person("oscar"), at(0)), browsers.ticket(person("oscar"), at(0)));
        assert!(browsers.sign_in(&early, at(59)).is_ok());
        assert_eq!(browsers.sign_in(&late, at(60)).unwrap_err(), Refused::Late(person("oscar")));
        assert_eq!(browsers.sign_in(&late, at(10)).unwrap_err(), Refused::Spent(person("oscar")));
        let backwards = browsers.ticket(person("oscar"), at(100));
        assert!(browsers.sign_in(&backwards, at(10)).is_err(), "a clock that was set back lengthens nothing");
    }

    #[test]
    fn a_browser_is_signed_out_when_it_idles_and_at_its_end() {
        let browsers = Browsers::default();
        let ticket = browsers.ticket(person("oscar"), at(0));
        let cookie = browsers.enter(browsers.sign_in(&ticket, at(0)).unwrap(), STAY, at(0));
        assert!(browsers.who(&cookie, at(899)).is_some());
        assert!(browsers.who(&cookie, at(1798)).is_some(), "it was active meanwhile");
        assert!(browsers.who(&cookie, at(2698)).is_none(), "idle");
        let ticket = browsers.ticket(person("oscar"), at(0));
        let cookie = browsers.enter(browsers.sign_in(&ticket, at(0)).unwrap(), STAY, at(0));
        assert!((0..3600).step_by(60).all(|second| browsers.who(&cookie, at(second)).is_some()));
        assert!(browsers.who(&cookie, at(3600)).is_none(), "its life is over");
        assert!(browsers.who(&ticket, at(1)).is_none(), "a ticket is no cookie");
    }

    #[test]
    fn who_leaves_is_out_and_others_stay() {
        let browsers = Browsers::default();
        let enter = |name: &str| {
            let ticket = browsers.ticket(person(name), at(0));
            browsers.enter(browsers.sign_in(&ticket, at(0)).unwrap(), STAY, at(0))
        };
        let (oscar, olga) = (enter("oscar"), enter("olga"));
        assert_eq!(browsers.leave(&oscar), Some(person("oscar")));
        assert!(browsers.who(&oscar, at(1)).is_none() && browsers.who(&olga, at(1)).is_some());
    }

    #[test]
    fn nobody_fills_the_memory() {
        let browsers = Browsers::default();
        let first = browsers.ticket(person("oscar"), at(0));
        for second in 1..50 {
            browsers.ticket(person("oscar"), at(second));
        }
        assert_eq!(browsers.lock().tickets.len(), MOST_TICKETS);
        assert!(browsers.sign_in(&first, at(1)).is_err());
        for _ in 0..50 {
            let ticket = browsers.ticket(person("oscar"), at(60));
            browsers.enter(browsers.sign_in(&ticket, at(60)).unwrap(), STAY, at(60));
        }
        assert_eq!(browsers.lock().browsers.len(), MOST_BROWSERS);
    }
}
