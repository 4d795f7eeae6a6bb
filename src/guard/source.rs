//! What counts as one source.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// An IPv4 address, an IPv6 site or an IPv6 network.
pub(super) type Source = IpNet;

/// The source that an address belongs to: itself, or its IPv6 /64.
pub(super) fn source_of(ip: IpAddr) -> Source {
    // A dual-stack listener sees IPv4 peers as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2): the same source, not one /64.
    match ip.to_canonical() {
        IpAddr::V6(v6) => within(v6, SITE),
        v4 => IpNet::from(v4),
    }
}

/// The IPv6 /48 around an address: as much as one party may be given (RFC 6177 §2). An IPv4 address has none: its
/// neighbours are others.
pub(super) fn network_of(ip: IpAddr) -> Option<Source> {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Some(within(v6, NETWORK)),
        IpAddr::V4(_) => None,
    }
}

fn within(v6: Ipv6Addr, bits: u8) -> IpNet {
    match Ipv6Net::new(v6, bits) {
        Ok(net) => IpNet::V6(net.trunc()),
        Err(_) => IpNet::from(IpAddr::V6(v6)),
    }
}

const SITE: u8 = 64;
const NETWORK: u8 = 48;
