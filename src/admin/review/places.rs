//! From where: the world, cut into the regions in which every rule and every user's networks say the same.
//!
//! A region is a network without the narrower ones that are named inside of it. One address stands for it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The regions that some networks make.
pub(super) struct Regions(Vec<Region>);

/// The first is the world itself.
struct Region {
    /// None: the world.
    net: Option<IpNet>,
    /// An address of it; none if narrower networks leave nothing of it.
    sample: Option<IpAddr>,
    /// The next narrower ones.
    inside: Vec<usize>,
    /// The next wider one.
    around: Option<usize>,
}

/// Where one answer holds: a network, or everywhere, but for some networks inside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    net: Option<IpNet>,
    except: Vec<IpNet>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net {
            None => f.write_str(ANYWHERE)?,
            Some(net) => write!(f, "{net}")?,
        }
        let except = self.except.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
        if except.is_empty() { Ok(()) } else { write!(f, " except {except}") }
    }
}

#[cfg(test)]
impl Place {
    pub(super) fn covers(&self, ip: IpAddr) -> bool {
        let within = |net: &IpNet| net.contains(&ip);
        self.net.as_ref().is_none_or(within) && !self.except.iter().any(within)
    }
}

impl Regions {
    pub(super) fn of(nets: impl Iterator<Item = IpNet>) -> Self {
        let nets: BTreeSet<IpNet> = nets.map(|net| net.trunc()).collect();
        let mut nets: Vec<IpNet> = nets.into_iter().collect();
        nets.sort_by_key(IpNet::prefix_len);
        let world = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let sample = world.into_iter().find_map(|all| uncovered(all, &nets));
        let mut regions = vec![Region { net: None, sample, inside: Vec::new(), around: None }];
        for net in &nets {
            // Wider ones come first, so the last that holds it is the next wider.
            let around = regions.iter().rposition(|r| r.net.is_none_or(|wider| wider.contains(net)));
            let narrower: Vec<IpNet> =
                nets.iter().filter(|other| *other != net && net.contains(*other)).copied().collect();
            let number = regions.len();
            if let Some(wider) = around.and_then(|around| regions.get_mut(around)) {
                wider.inside.push(number);
            }
            let sample = uncovered(*net, &narrower);
            regions.push(Region { net: Some(*net), sample, inside: Vec::new(), around });
        }
        Self(regions)
    }

    /// Where `ask` has which answer, but for where it has none. An answer that goes on inside is told once.
    pub(super) fn told<A: PartialEq>(&self, ask: impl Fn(IpAddr) -> Option<A>) -> Vec<(Place, A)> {
        let answers: Vec<Option<Option<A>>> = self.0.iter().map(|r| r.sample.map(&ask)).collect();
        let places = self.0.iter().enumerate().filter(|(number, _)| {
            let answer = answers.get(*number).and_then(Option::as_ref);
            answer.is_some_and(|answer| answer.is_some() && self.around(*number, &answers) != Some(answer))
        });
        let places: Vec<(usize, Place)> = places
            .map(|(number, region)| {
                let except = self.exceptions(number, &answers);
                (number, Place { net: region.net, except })
            })
            .collect();
        let mut answers = answers;
        let mut told = Vec::new();
        for (number, place) in places {
            if let Some(answer) = answers.get_mut(number).and_then(Option::take).flatten() {
                told.push((place, answer));
            }
        }
        told
    }

    /// The answer of the next wider region that there is anything of.
    fn around<'a, A>(&self, number: usize, answers: &'a [Option<A>]) -> Option<&'a A> {
        let mut number = self.0.get(number)?.around;
        while let Some(wider) = number {
            if let Some(answer) = answers.get(wider).and_then(Option::as_ref) {
                return Some(answer);
            }
            number = self.0.get(wider)?.around;
        }
        None
    }

    /// The networks inside in which the answer is another.
    fn exceptions<A: PartialEq>(&self, number: usize, answers: &[Option<A>]) -> Vec<IpNet> {
        let answer = answers.get(number).and_then(Option::as_ref);
        let inside = |number: usize| self.0.get(number).map(|r| r.inside.as_slice()).unwrap_or_default();
        let mut left: VecDeque<usize> = inside(number).iter().copied().collect();
        let mut found = Vec::new();
        while let Some(narrower) = left.pop_front() {
            let other = answers.get(narrower).and_then(Option::as_ref);
            match (other.is_some() && other != answer, self.0.get(narrower).and_then(|r| r.net)) {
                (true, Some(net)) => found.push(net),
                _ => left.extend(inside(narrower)),
            }
        }
        found
    }
}

/// An address of `net` that lies in none of `others`.
fn uncovered(net: IpNet, others: &[IpNet]) -> Option<IpAddr> {
    if others.iter().any(|other| other.contains(&net)) {
        return None;
    }
    let inside: Vec<IpNet> = others.iter().filter(|other| net.contains(*other)).copied().collect();
    if inside.is_empty() {
        return Some(net.addr());
    }
    // At most as deep as an address is long: only halves with something inside are halved again.
    net.subnets(net.prefix_len().saturating_add(1)).ok()?.find_map(|half| uncovered(half, &inside))
}

const ANYWHERE: &str = "anywhere";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(named: &[&str]) -> Vec<IpNet> {
        named.iter().map(|net| net.parse().unwrap()).collect()
    }

    /// The places where a rule lets in that allows `allow` and denies `deny`.
    fn told(allow: &[&str], deny: &[&str]) -> Vec<String> {
        let (allow, deny) = (nets(allow), nets(deny));
        let within = |nets: &[IpNet], ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
        let regions = Regions::of(allow.iter().chain(&deny).copied());
        let asked = regions.told(|ip| (within(&allow, ip) && !within(&deny, ip)).then_some(()));
        asked.into_iter().map(|(place, ())| place.to_string()).collect()
    }

    #[test]
    fn a_denied_corner_hides_nothing_of_the_network_around_it() {
        assert_eq!(told(&["10.0.0.0/8"], &["10.0.0.0/24"]), ["10.0.0.0/8 except 10.0.0.0/24"]);
        assert_eq!(told(&["10.0.0.0/8"], &["10.0.0.0/9"]), ["10.0.0.0/8 except 10.0.0.0/9"]);
        assert_eq!(told(&["10.0.0.0/8"], &["10.0.0.0/9", "10.128.0.0/9"]), [""; 0]);
        assert_eq!(told(&["0.0.0.0/0", "::/0"], &["10.0.0.0/8"]), ["0.0.0.0/0 except 10.0.0.0/8", "::/0"]);
        assert_eq!(told(&["10.0.0.0/8", "10.1.0.0/16"], &[]), ["10.0.0.0/8"]);
        assert_eq!(told(&["10.0.0.0/8"], &["192.0.2.0/24"]), ["10.0.0.0/8"]);
    }

    /// Few bits, so that they nest.
    fn net() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), 0_u32..64, 0_u8..=6).prop_map(|(v6, bits, length)| {
            let net: IpNet = match v6 {
                false => Ipv4Net::new((bits << 26).into(), length).unwrap().into(),
                true => Ipv6Net::new((u128::from(bits) << 122).into(), length).unwrap().into(),
            };
            net.trunc()
        })
    }

    proptest! {
        #[test]
        fn each_address_is_told_once_and_as_it_is(
            answers in prop::collection::vec((net(), prop::option::of(0..3_u8)), 0..12),
            v6 in any::<bool>(),
            bits in any::<u32>(),
        ) {
            // The narrowest network decides, and the world where there is none.
            let ask = |ip: IpAddr| {
                let holding = answers.iter().filter(|(net, _)| net.contains(&ip));
                holding.max_by_key(|(net, _)| net.prefix_len()).map_or(Some(9), |(_, answer)| *answer)
            };
            let regions = Regions::of(answers.iter().map(|(net, _)| *net));
            let ip: IpAddr = match v6 {
                false => IpAddr::V4(bits.into()),
                true => IpAddr::V6((u128::from(bits) << 96).into()),
            };
            let told = regions.told(ask);
            let of_it: Vec<_> = told.iter().filter(|(place, _)| place.covers(ip)).map(|(_, a)| *a).collect();
            prop_assert_eq!(of_it, ask(ip).into_iter().collect::<Vec<_>>());
        }
    }
}
