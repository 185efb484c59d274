//! Addresses of one subnet, and subnets of the pool.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::stack::NetworkSpec;

/// One subnet's addresses. Like swarmkit, the next one is always after the last one given, so that an address that has
/// just become free is not used again at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pool {
    pub(super) subnet: IpNet,
    pub(super) gateway: Option<IpAddr>,
    last: u128,
    used: BTreeSet<IpAddr>,
}

impl Pool {
    /// The gateway is the first address unless it is given.
    pub(super) fn new(subnet: IpNet, gateway: Option<IpAddr>) -> Self {
        let subnet = subnet.trunc();
        let mut pool = Self { subnet, gateway: None, last: 0, used: BTreeSet::new() };
        pool.gateway = gateway.or_else(|| pool.first());
        pool.used.extend(pool.gateway);
        pool
    }

    fn first(&self) -> Option<IpAddr> {
        let (low, high) = self.range();
        (low <= high).then(|| self.at(low))
    }

    /// Offsets of the first and last address that a host may have.
    fn range(&self) -> (u128, u128) {
        let bits = self.subnet.max_prefix_len() - self.subnet.prefix_len();
        // A /0 of IPv6 has one address more than fits; nobody notices.
        let size = 1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX);
        match self.subnet {
            // Without network and broadcast address, which point-to-point subnets do not have.
            IpNet::V4(_) if bits >= 2 => (1, size - 2),
            IpNet::V4(_) => (0, size - 1),
            // The first address is the routers' anycast address.
            IpNet::V6(_) if bits >= 2 => (1, size - 1),
            IpNet::V6(_) => (0, size - 1),
        }
    }

    fn at(&self, offset: u128) -> IpAddr {
        match self.subnet.network() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX)))),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset))),
        }
    }

    pub(super) fn take(&mut self) -> Option<IpAddr> {
        let (low, high) = self.range();
        if high < low || self.used.len() as u128 > high - low {
            return None;
        }
        let mut offset = if self.last >= high { low } else { self.last + 1 };
        // Ends: there is a free address, as counted above; the gateway may lie outside of the range and costs one round at most.
        for _ in 0..=self.used.len() {
            let address = self.at(offset);
            if self.used.insert(address) {
                self.last = offset;
                return Some(address);
            }
            offset = if offset >= high { low } else { offset + 1 };
        }
        None
    }

    pub(super) fn give_back(&mut self, address: &IpAddr) {
        if Some(*address) != self.gateway {
            self.used.remove(address);
        }
    }
}

/// The first subnet of `size` bits in `base` that shares no address with those `taken`.
pub(super) fn free_subnet(base: IpNet, size: u8, taken: &[IpNet]) -> Option<IpNet> {
    let exact: HashSet<&IpNet> = taken.iter().collect();
    base.subnets(size).ok()?.find(|candidate| !exact.contains(candidate) && !taken.iter().any(|t| NetworkSpec::overlap(t, candidate)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str) -> Pool {
        Pool::new(subnet.parse().unwrap(), None)
    }

    #[test]
    fn addresses_go_up_from_the_gateway() {
        let mut pool = pool("10.1.0.0/29");
        assert_eq!(pool.gateway, Some("10.1.0.1".parse().unwrap()));
        let taken: Vec<String> = std::iter::from_fn(|| pool.take()).map(|a| a.to_string()).collect();
        assert_eq!(taken, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
    }

    #[test]
    fn a_freed_address_waits_until_the_others_have_been_used() {
        let mut pool = pool("10.1.0.0/29");
        let first = pool.take().unwrap();
        pool.take().unwrap();
        pool.give_back(&first);
        assert_eq!(pool.take().unwrap().to_string(), "10.1.0.4");
        pool.take().unwrap();
        pool.take().unwrap();
        assert_eq!(pool.take(), Some(first));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn odd_subnets_work() {
        assert_eq!(pool("10.1.0.0/31").take().unwrap().to_string(), "10.1.0.1");
        assert_eq!(pool("10.1.0.0/32").take(), None);
        assert_eq!(pool("fd00:1::/64").take().unwrap().to_string(), "fd00:1::2");
        let mut given = Pool::new("10.1.0.0/29".parse().unwrap(), Some("10.1.0.6".parse().unwrap()));
        assert_eq!(std::iter::from_fn(|| given.take()).count(), 5);
    }

    #[test]
    fn subnets_skip_what_is_taken() {
        let taken = ["10.0.0.0/24".parse().unwrap(), "10.0.2.128/25".parse().unwrap()];
        let base = "10.0.0.0/8".parse().unwrap();
        assert_eq!(free_subnet(base, 24, &taken).unwrap().to_string(), "10.0.1.0/24");
        let more = [taken[0], taken[1], "10.0.1.0/24".parse().unwrap()];
        assert_eq!(free_subnet(base, 24, &more).unwrap().to_string(), "10.0.3.0/24");
        assert_eq!(free_subnet("10.0.0.0/24".parse().unwrap(), 24, &taken), None);
    }
}
