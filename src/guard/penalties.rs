//! The penalties of sources that fail, in bounded memory and bounded time, whoever fails.
//!
//! Whoever holds an IPv6 /48 holds 65,536 sites: each with tries of its own, they would be without limit. So once
//! [`MOST_SITES`] sites of a network have a penalty at the same time, the network is one source until its own penalty ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::Limits;
use super::source::{Source, network_of, source_of};

/// Who has failed lately.
#[derive(Default)]
pub(super) struct Penalties {
    of: HashMap<Source, Penalty>,
    /// The sites of each network that have a penalty, or had one.
    sites: HashMap<Source, Vec<Source>>,
}

#[derive(Clone, Copy)]
struct Penalty {
    /// Unix time, milliseconds.
    ends: i64,
    /// Once banned, banned to the end, though the remaining time falls below the threshold.
    banned: bool,
}

impl Penalties {
    /// Counts a failure. `Some(until)` if it is the one that bans.
    pub(super) fn add(&mut self, ip: IpAddr, limits: &Limits, now: Timestamp) -> Option<Timestamp> {
        let now = now.as_millisecond();
        self.make_room(now);
        let source = self.counted(ip, now);
        let penalty = self.of.entry(source).or_insert(Penalty { ends: now, banned: false });
        if penalty.ends <= now {
            *penalty = Penalty { ends: now, banned: false };
        }
        penalty.ends = penalty
            .ends
            .saturating_add(millis(limits.penalty))
            .min(now.saturating_add(millis(limits.ban_max)));
        let newly = !penalty.banned && penalty.ends.saturating_sub(now) >= millis(limits.ban_from);
        penalty.banned |= newly;
        newly.then(|| timestamp(penalty.ends))
    }

    /// Takes `forgiven` off the penalty of whoever this is; a ban stays.
    pub(super) fn forgive(&mut self, ip: IpAddr, forgiven: Duration) {
        // Not off that of a network: one account in it would wash away what its other sites try.
        if let Some(penalty) = self.of.get_mut(&source_of(ip)).filter(|penalty| !penalty.banned) {
            penalty.ends = penalty.ends.saturating_sub(millis(forgiven));
        }
    }

    /// Until when whoever this is, or the network around, is banned.
    pub(super) fn banned(&self, ip: IpAddr, now: Timestamp) -> Option<Timestamp> {
        let sources = [Some(source_of(ip)), network_of(ip)];
        let bans = sources.into_iter().flatten().filter_map(|source| self.of.get(&source));
        let ends = bans.filter(|p| p.banned && p.ends > now.as_millisecond()).map(|p| p.ends).max();
        ends.map(timestamp)
    }

    /// Who is banned, the longest first.
    pub(super) fn bans(&self, now: Timestamp) -> Vec<(String, Timestamp)> {
        let banned = self.of.iter().filter(|(_, p)| p.banned && p.ends > now.as_millisecond());
        let mut bans: Vec<_> = banned.map(|(source, p)| (named(source), timestamp(p.ends))).collect();
        bans.sort_by(|(a, first), (b, second)| second.cmp(first).then_with(|| a.cmp(b)));
        bans
    }

    /// Forgets whoever this is, and the network around.
    pub(super) fn forget(&mut self, ip: IpAddr) {
        for source in [Some(source_of(ip)), network_of(ip)].into_iter().flatten() {
            self.of.remove(&source);
        }
    }

    /// Where a failure is counted: with the site, or with its network.
    fn counted(&mut self, ip: IpAddr, now: i64) -> Source {
        let site = source_of(ip);
        let Some(network) = network_of(ip) else { return site };
        let lasts = |source: &Source| self.of.get(source).is_some_and(|penalty| penalty.ends > now);
        if lasts(&network) {
            return network;
        }
        if lasts(&site) {
            return site;
        }
        let sites = self.sites.entry(network).or_default();
        sites.retain(|known| *known != site && lasts(known));
        if sites.len() >= MOST_SITES {
            return network;
        }
        sites.push(site);
        site
    }

    /// Keeps the tables bounded: first what has ended goes, then what ends soonest, which is who failed least. Many at a
    /// time, so that a flood of failures pays for the search once for each of them.
    fn make_room(&mut self, now: i64) {
        if self.of.len() < MAX_PENALTIES {
            return;
        }
        self.of.retain(|_, penalty| penalty.ends > now);
        if self.of.len() >= MAX_PENALTIES {
            let mut ends: Vec<i64> = self.of.values().map(|penalty| penalty.ends).collect();
            let (_, soonest, _) = ends.select_nth_unstable(MAX_PENALTIES / 16);
            let soonest = *soonest;
            let mut excess = MAX_PENALTIES / 16;
            self.of.retain(|_, penalty| {
                let goes = penalty.ends <= soonest && excess > 0;
                excess -= usize::from(goes);
                !goes
            });
        }
        self.sites.retain(|_, sites| {
            sites.retain(|site| self.of.contains_key(site));
            !sites.is_empty()
        });
    }
}

/// Sites of one network that may have a penalty at one time before the network is one source.
const MOST_SITES: usize = 16;
/// As sshd's `PerSourcePenalties max-sources`.
const MAX_PENALTIES: usize = 65_536;

/// An address without the length of its prefix, a network with it.
fn named(source: &Source) -> String {
    if source.prefix_len() == source.max_prefix_len() {
        source.addr().to_string()
    } else {
        source.to_string()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn site(network: u16, site: u32) -> IpAddr {
        format!("2001:db8:{network:x}:{site:x}::1").parse().unwrap()
    }

    fn fails(penalties: &mut Penalties, ip: IpAddr, second: i64) -> Option<Timestamp> {
        penalties.add(ip, &Limits::default(), at(second))
    }

    #[test]
    fn the_table_stays_bounded_and_who_failed_most_is_kept() {
        let mut penalties = Penalties::default();
        let worst: IpAddr = "203.0.113.1".parse().unwrap();
        for _ in 0..6 {
            fails(&mut penalties, worst, 0);
        }
        for n in 0..3 * MAX_PENALTIES as u32 {
            fails(&mut penalties, IpAddr::from((n + 1).to_be_bytes()), 0);
            assert!(penalties.of.len() <= MAX_PENALTIES);
        }
        assert!(penalties.of.len() > MAX_PENALTIES / 16 * 15 && penalties.banned(worst, at(0)).is_some());
    }

    #[test]
    fn a_flood_from_one_network_takes_little_memory_and_is_banned_as_a_whole() {
        let mut penalties = Penalties::default();
        let mut bans = 0;
        for n in 0..=0xffff {
            bans += usize::from(fails(&mut penalties, site(7, n), 0).is_some());
        }
        assert_eq!(bans, 1, "it is told once, not for each of its sites");
        assert_eq!((penalties.of.len(), penalties.sites.len()), (MOST_SITES + 1, 1));
        assert!(penalties.banned(site(7, 0x1234), at(0)).is_some());
        assert!(penalties.banned(site(8, 0x1234), at(0)).is_none(), "the network beside it");
        assert!(penalties.banned("192.0.2.1".parse().unwrap(), at(0)).is_none());
        // No longer than anybody else is.
        assert!(penalties.banned(site(7, 0x1234), at(601)).is_none());
        assert_eq!(fails(&mut penalties, site(7, 0x1234), 601), None);
    }

    #[test]
    fn one_bad_site_or_a_few_do_not_ban_the_network_around_them() {
        let mut penalties = Penalties::default();
        for n in 0..MOST_SITES as u32 {
            for _ in 0..50 {
                fails(&mut penalties, site(7, n), 0);
            }
            assert!(penalties.banned(site(7, n), at(0)).is_some());
        }
        assert!(penalties.banned(site(7, 0xffff), at(0)).is_none());
        // Honest slips, one after the other over the day, add up to nothing.
        for n in 0..1000 {
            assert_eq!(fails(&mut penalties, site(8, n % 40), i64::from(n) * 60), None);
        }
    }

    #[test]
    fn floods_from_many_networks_are_bounded_too() {
        let mut penalties = Penalties::default();
        for n in 0..4 * MAX_PENALTIES as u32 {
            fails(&mut penalties, site((n % 0xffff) as u16, n / 0xffff), 0);
        }
        assert!(penalties.of.len() <= MAX_PENALTIES && penalties.sites.len() <= MAX_PENALTIES);
    }

    #[test]
    fn whoever_has_an_account_in_a_network_that_is_one_source_washes_nothing_away() {
        let mut penalties = Penalties::default();
        for n in 0..MOST_SITES as u32 + 5 {
            assert_eq!(fails(&mut penalties, site(7, n), 0), None);
        }
        for _ in 0..100 {
            penalties.forgive(site(7, 0), Duration::from_secs(5));
        }
        assert!(fails(&mut penalties, site(7, 99), 0).is_some(), "the sixth");
    }
}
