//! The first door: who may hold a place among the peers that have not logged in yet.
//!
//! Owns the limits on unauthenticated connections (sshd's `MaxStartups`), their share per source, and the penalties
//! of sources that fail (sshd's `PerSourcePenalties`). Takes an address and mints [`Admitted`], which gives its place
//! back when it is dropped. Never looks at names, keys or the store, and forgets everything at a restart, but not a
//! lockdown (see [`lockdown`]) nor a doubt of the machine's clock (see [`clock`]).
//!
//! A source is what one party holds (`source`); the memory for all of them is bounded (`penalties`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;

pub mod clock;
pub mod lockdown;
mod penalties;
mod source;

use lockdown::Lockdown;
use penalties::Penalties;
use source::{Source, network_of, source_of};

/// How many strangers, and how much patience with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Unauthenticated connections at one time, over all sources.
    pub max_startups: usize,
    /// Unauthenticated connections at one time from one source.
    pub per_source: usize,
    /// What each failure adds to its source's penalty.
    pub penalty: Duration,
    /// A source is banned once its penalty reaches this.
    pub ban_from: Duration,
    /// No penalty grows beyond this.
    pub ban_max: Duration,
}

impl Limits {
    /// Unauthenticated connections at one time from an IPv6 /48: a quarter of all, or as many as two sites may have.
    fn per_network(&self) -> usize {
        self.per_source.saturating_mul(2).max(self.max_startups / 4)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_startups: 100,
            per_source: 10,
            penalty: Duration::from_secs(5),
            ban_from: Duration::from_secs(30),
            ban_max: Duration::from_secs(600),
        }
    }
}

/// Counts and judges sources. A clone is a handle to the same counts.
///
/// A source is an IPv4 address or an IPv6 /64: a site holds a whole /64 (RFC 6177), so single addresses mean nothing. Of a
/// /48, which one party may hold as well, no more than a quarter of all places are taken; and once many of its /64s fail,
/// it is one source.
#[derive(Clone)]
pub struct Guard {
    shared: Arc<Shared>,
    lockdown: Arc<Lockdown>,
}

impl Guard {
    /// A guard that has seen nobody yet.
    pub fn new(limits: Limits) -> Self {
        Self::locked_down_by(limits, Lockdown::in_memory())
    }

    /// A guard that heeds `lockdown`.
    pub fn locked_down_by(limits: Limits, lockdown: Lockdown) -> Self {
        let shared = Shared { limits: ArcSwap::from_pointee(limits), state: Mutex::default() };
        Self { shared: Arc::new(shared), lockdown: Arc::new(lockdown) }
    }

    /// From now on these limits count; who holds a place keeps it.
    pub fn limit(&self, limits: Limits) {
        self.shared.limits.store(Arc::new(limits));
    }

    /// Whether nobody is let in, and its start and end.
    pub fn lockdown(&self) -> &Lockdown {
        &self.lockdown
    }

    /// A place for a connection that has not logged in; hold it until the login or the end.
    ///
    /// # Errors
    /// [`Refused`] while the source is banned, or when the places (its own, or all) are taken.
    pub fn admit(&self, addr: SocketAddr, now: Timestamp) -> Result<Admitted, Refused> {
        if self.lockdown.reason().is_some() {
            return Err(Refused::Lockdown);
        }
        let sources = [Some(source_of(addr.ip())), network_of(addr.ip())];
        let limits = self.shared.limits.load();
        let mut state = self.shared.state();
        if let Some(until) = state.penalties.banned(addr.ip(), now) {
            return Err(Refused::Banned { until });
        }
        if state.waiting >= limits.max_startups {
            return Err(Refused::TooManyStartups);
        }
        let shares = [limits.per_source, limits.per_network()];
        let full = sources.iter().zip(shares).any(|(source, share)| {
            source.is_some_and(|source| state.by_source.get(&source).copied().unwrap_or_default() >= share)
        });
        if full {
            return Err(Refused::TooManyFromSource);
        }
        for source in sources.into_iter().flatten() {
            *state.by_source.entry(source).or_default() += 1;
        }
        state.waiting += 1;
        drop(state);
        Ok(Admitted { addr, sources, shared: Arc::clone(&self.shared) })
    }

    /// Counts a failed login against its source. `Some(until)` if this failure is the one that bans it: audit that.
    pub fn failed(&self, ip: IpAddr, now: Timestamp) -> Option<Timestamp> {
        let limits = self.shared.limits.load();
        self.shared.state().penalties.add(ip, &limits, now)
    }

    /// A login succeeded: one earlier slip of the same source is forgiven. Not all of them, or whoever has one
    /// account could wash away what he tries on others. A ban stays.
    pub fn succeeded(&self, ip: IpAddr) {
        let forgiven = self.shared.limits.load().penalty;
        self.shared.state().penalties.forgive(ip, forgiven);
    }

    /// Until when the source is banned, if it is.
    pub fn banned(&self, ip: IpAddr, now: Timestamp) -> Option<Timestamp> {
        self.shared.state().penalties.banned(ip, now)
    }

    /// Who is banned, and until when; who is banned longest comes first. An address, or an IPv6 network.
    pub fn bans(&self, now: Timestamp) -> Vec<(String, Timestamp)> {
        self.shared.state().penalties.bans(now)
    }

    /// Forgets what `ip`, and the network around it, did so far.
    pub fn unban(&self, ip: IpAddr) {
        self.shared.state().penalties.forget(ip);
    }

    /// How many unauthenticated connections hold a place now.
    pub fn waiting(&self) -> usize {
        self.shared.state().waiting
    }
}

/// Proof that the guard let a connection in; its place is free again when this is dropped.
///
/// Only [`Guard::admit`] makes one:
/// ```
/// # use keyward::guard::{Admitted, Guard, Limits};
/// fn admitted(guard: &Guard, addr: std::net::SocketAddr, now: jiff::Timestamp) -> Option<Admitted> {
///     guard.admit(addr, now).ok()
/// }
/// ```
/// ```compile_fail,E0451
/// # use keyward::guard::Admitted;
/// fn forged(addr: std::net::SocketAddr) -> Admitted {
///     Admitted { addr, ..unreachable!() }
/// }
/// ```
pub struct Admitted {
    addr: SocketAddr,
    /// Where its place is counted.
    sources: [Option<Source>; 2],
    shared: Arc<Shared>,
}

impl Admitted {
    /// Where the connection comes from.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.waiting = state.waiting.saturating_sub(1);
        for source in self.sources.into_iter().flatten() {
            if let Some(waiting) = state.by_source.get_mut(&source) {
                *waiting = waiting.saturating_sub(1);
                if *waiting == 0 {
                    state.by_source.remove(&source);
                }
            }
        }
    }
}

/// Why a connection is not let in. The peer is at fault, or the house is full.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// All places for unauthenticated connections are taken.
    #[error("too many unauthenticated connections")]
    TooManyStartups,
    /// This source has taken its share of them.
    #[error("too many unauthenticated connections from this source")]
    TooManyFromSource,
    /// An administrator keeps everybody out.
    #[error("lockdown")]
    Lockdown,
    /// It failed too often.
    #[error("source banned until {until}")]
    Banned {
        /// When the ban ends.
        until: Timestamp,
    },
}

struct Shared {
    limits: ArcSwap<Limits>,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are whole after each statement that changes them: a panic elsewhere must not close the door for all.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    waiting: usize,
    /// Of sources and of networks; who holds no place has no entry.
    by_source: HashMap<Source, usize>,
    penalties: Penalties,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard::new(Limits { max_startups: 3, per_source: 2, ..Limits::default() })
    }
    fn addr(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 4022)
    }
    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn one_source_takes_its_share_and_another_still_gets_in() {
        let guard = guard();
        let _held =
            [guard.admit(addr("192.0.2.1"), at(0)).unwrap(), guard.admit(addr("192.0.2.1"), at(0)).unwrap()];
        assert_eq!(guard.admit(addr("192.0.2.1"), at(0)).err(), Some(Refused::TooManyFromSource));
        assert!(guard.admit(addr("192.0.2.2"), at(0)).is_ok());
    }

    #[test]
    fn a_lockdown_keeps_everybody_out_and_its_end_lets_them_in() {
        let guard = guard();
        guard.lockdown().start("breach").unwrap();
        assert_eq!(guard.admit(addr("192.0.2.1"), at(0)).err(), Some(Refused::Lockdown));
        guard.lockdown().end().unwrap();
        assert!(guard.admit(addr("192.0.2.1"), at(0)).is_ok());
    }

    #[test]
    fn a_full_house_refuses_and_a_dropped_proof_gives_its_place_back() {
        let guard = guard();
        let first = guard.admit(addr("192.0.2.1"), at(0)).unwrap();
        let _second = guard.admit(addr("192.0.2.2"), at(0)).unwrap();
        let _third = guard.admit(addr("192.0.2.3"), at(0)).unwrap();
        assert_eq!(guard.admit(addr("192.0.2.4"), at(0)).err(), Some(Refused::TooManyStartups));
        drop(first);
        assert_eq!(guard.waiting(), 2);
        assert_eq!(guard.admit(addr("192.0.2.4"), at(0)).unwrap().addr(), addr("192.0.2.4"));
    }

    #[test]
    fn a_network_of_64_bits_is_one_source_and_the_next_is_another() {
        let guard = guard();
        let _held = [
            guard.admit(addr("2001:db8::1"), at(0)).unwrap(),
            guard.admit(addr("2001:db8::2"), at(0)).unwrap(),
        ];
        assert_eq!(guard.admit(addr("2001:db8::3"), at(0)).err(), Some(Refused::TooManyFromSource));
        assert!(guard.admit(addr("2001:db8:0:1::1"), at(0)).is_ok());
    }

    #[test]
    fn an_ipv4_peer_is_the_same_source_on_a_dual_stack_listener() {
        let guard = guard();
        for _ in 0..6 {
            guard.failed("::ffff:192.0.2.1".parse().unwrap(), at(0));
        }
        assert!(guard.banned("192.0.2.1".parse().unwrap(), at(0)).is_some());
        assert!(guard.banned("::ffff:192.0.2.2".parse().unwrap(), at(0)).is_none());
    }

    #[test]
    fn the_sixth_failure_bans_and_the_fifth_does_not() {
        let (guard, ip) = (guard(), "192.0.2.1".parse().unwrap());
        for _ in 0..5 {
            assert_eq!(guard.failed(ip, at(0)), None);
        }
        assert!(guard.admit(addr("192.0.2.1"), at(0)).is_ok());
        assert_eq!(guard.failed(ip, at(0)), Some(at(30)));
        assert_eq!(guard.admit(addr("192.0.2.1"), at(0)).err(), Some(Refused::Banned { until: at(30) }));
        assert!(guard.admit(addr("192.0.2.2"), at(0)).is_ok());
    }

    #[test]
    fn a_ban_lasts_to_its_end_and_not_longer() {
        let (guard, ip) = (guard(), "192.0.2.1".parse().unwrap());
        for _ in 0..6 {
            guard.failed(ip, at(0));
        }
        guard.succeeded(ip);
        assert_eq!(guard.banned(ip, at(29)), Some(at(30)));
        assert_eq!(guard.banned(ip, at(30)), None);
        assert_eq!(guard.failed(ip, at(31)), None);
    }

    #[test]
    fn a_ban_that_is_lifted_is_over_and_its_neighbour_stays_out() {
        let guard = guard();
        for ip in ["192.0.2.1", "192.0.2.2"] {
            for _ in 0..6 {
                guard.failed(ip.parse().unwrap(), at(0));
            }
        }
        assert_eq!(guard.bans(at(0)).len(), 2);
        guard.unban("192.0.2.1".parse().unwrap());
        assert_eq!(guard.bans(at(0)), [("192.0.2.2".to_owned(), at(30))]);
        assert!(
            guard.admit(addr("192.0.2.1"), at(0)).is_ok() && guard.admit(addr("192.0.2.2"), at(0)).is_err()
        );
        assert_eq!(guard.bans(at(30)), []);
    }

    #[test]
    fn a_penalty_has_a_ceiling() {
        let (guard, ip) = (guard(), "192.0.2.1".parse().unwrap());
        for _ in 0..1000 {
            guard.failed(ip, at(0));
        }
        assert_eq!(guard.banned(ip, at(0)), Some(at(600)));
    }

    #[test]
    fn a_success_forgives_one_failure_and_only_one() {
        let (guard, ip) = (guard(), "192.0.2.1".parse().unwrap());
        for _ in 0..5 {
            guard.failed(ip, at(0));
        }
        guard.succeeded(ip);
        assert_eq!(guard.failed(ip, at(0)), None);
        assert!(guard.failed(ip, at(0)).is_some());
    }

    #[test]
    fn new_limits_count_from_now_on_and_take_no_place_away() {
        let guard = guard();
        let held =
            [guard.admit(addr("192.0.2.1"), at(0)).unwrap(), guard.admit(addr("192.0.2.1"), at(0)).unwrap()];
        guard.limit(Limits { per_source: 1, ..Limits::default() });
        assert_eq!(guard.waiting(), 2);
        assert_eq!(guard.admit(addr("192.0.2.1"), at(0)).err(), Some(Refused::TooManyFromSource));
        drop(held);
        assert!(guard.admit(addr("192.0.2.1"), at(0)).is_ok());
    }

    #[test]
    fn a_network_of_48_bits_takes_a_quarter_of_the_places_and_others_still_get_in() {
        let guard = Guard::new(Limits { max_startups: 100, per_source: 10, ..Limits::default() });
        let flood = (0..200).map(|site| guard.admit(addr(&format!("2001:db8:7:{site:x}::1")), at(0)));
        let held: Vec<_> = flood.filter_map(Result::ok).collect();
        assert_eq!(held.len(), 25);
        assert_eq!(guard.admit(addr("2001:db8:7:ffff::1"), at(0)).err(), Some(Refused::TooManyFromSource));
        let others: Vec<_> =
            ["2001:db8:8::1", "192.0.2.1"].map(|ip| guard.admit(addr(ip), at(0)).ok()).into();
        assert!(others.iter().all(Option::is_some));
        drop((held, others));
        assert!(guard.shared.state().by_source.is_empty(), "nothing is kept of who has left");
        assert!(guard.admit(addr("2001:db8:7:ffff::1"), at(0)).is_ok());
    }

    #[test]
    fn a_limit_of_zero_keeps_everybody_out_and_no_entry() {
        let guard = Guard::new(Limits { max_startups: 3, per_source: 0, ..Limits::default() });
        assert_eq!(guard.admit(addr("192.0.2.1"), at(0)).err(), Some(Refused::TooManyFromSource));
        assert!(guard.shared.state().by_source.is_empty());
    }
}
