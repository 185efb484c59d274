//! Who asks, and what that one may see.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{NameHash, OwnerId, Record, Zone, ZoneCell};

/// A container as a client of ours. The socket that a query came in by says whose it is.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    pub id: u64,
    /// For people, such as the task's name.
    pub name: Arc<str>,
    /// Its networks, in the order in which they are searched. Of several that know a name, the first answers alone.
    pub networks: Vec<Membership>,
}

/// One network of an asker.
#[derive(Clone, Debug)]
pub struct Membership {
    /// As it may follow a name, in lower case.
    pub network: Box<str>,
    /// As it is written.
    pub title: Box<str>,
    pub zone: Arc<ZoneCell>,
    /// What this asker alone calls others here: alias to name, both in lower case.
    pub links: Vec<(Box<str>, Box<str>)>,
}

/// What one network knows of a name.
#[derive(Debug)]
pub struct Found<'z> {
    pub network: &'z Membership,
    /// The name inside of that network.
    pub name: &'z str,
    pub zone: &'z Zone,
    pub records: &'z [(OwnerId, Arc<Record>)],
}

impl Asker {
    /// Looks a name up, which is in lower case and without a last dot, and calls `then` with the first find.
    ///
    /// A name may end in its network's, and both may have dots: `a.b.c` is `a.b.c` anywhere, `a.b` in `c`, or `a` in `b.c`, in
    /// this order (`Sandbox.ResolveName` in libnetwork). An alias of a link comes before a name that looks like it.
    pub fn find<R>(&self, name: &str, then: impl FnOnce(&Found<'_>) -> R) -> Option<R> {
        let whole = std::iter::once((name, None));
        let qualified = name.rmatch_indices('.').map(|(dot, _)| (&name[..dot], Some(&name[dot + 1..])));
        for (name, network) in whole.chain(qualified) {
            let networks = || self.networks.iter().filter(|m| network.is_none_or(|n| *m.network == *n));
            for membership in networks() {
                let Some((_, target)) = membership.links.iter().find(|(alias, _)| **alias == *name) else { continue };
                let zone = membership.zone.load();
                let records = zone.find(target, NameHash::of(target));
                if !records.is_empty() {
                    return Some(then(&Found { network: membership, name: target, zone: &zone, records }));
                }
            }
            let hash = NameHash::of(name);
            for membership in networks() {
                let zone = membership.zone.load();
                let records = zone.find(name, hash);
                if !records.is_empty() {
                    return Some(then(&Found { network: membership, name, zone: &zone, records }));
                }
            }
        }
        None
    }

    /// The name that an address has in the first network that knows it.
    pub fn find_address<R>(&self, address: IpAddr, then: impl FnOnce(&Membership, &str) -> R) -> Option<R> {
        for membership in &self.networks {
            let zone = membership.zone.load();
            if let Some(name) = zone.reverse(address) {
                return Some(then(membership, name));
            }
        }
        None
    }
}

/// The address that a name below `in-addr.arpa` (RFC 1035, section 3.5) or `ip6.arpa` (RFC 3596, section 2.5) stands for.
pub(crate) fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = labels.rsplit('.');
        for octet in &mut octets {
            let label = labels.next()?;
            // "01" is another name than "1".
            *octet = label.parse().ok().filter(|_| label == "0" || !label.starts_with(['0', '+']))?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in labels.rsplit('.') {
        let mut characters = label.chars();
        let (Some(digit), None) = (characters.next()?.to_digit(16), characters.next()) else { return None };
        bits = bits << 4 | u128::from(digit);
        count += 1;
        if count > 32 {
            return None;
        }
    }
    (count == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

/// The name by which an address is asked for.
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let digits = v6.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            format!("{}ip6.arpa", digits.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_addresses_or_nothing() {
        for (name, expected) in [
            ("7.1.0.10.in-addr.arpa", Some("10.0.1.7")),
            ("07.1.0.10.in-addr.arpa", None),
            ("1.0.10.in-addr.arpa", None),
            ("1.7.1.0.10.in-addr.arpa", None),
            ("256.1.0.10.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa", Some("4321:0:1:2:3:4:567:89ab")),
            ("a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa", None),
            ("10.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.5.ip6.arpa", None),
        ] {
            let expected = expected.map(|e| e.parse().unwrap());
            assert_eq!(reversed(name), expected, "{name}");
            if let Some(address) = expected {
                assert_eq!(reverse_name(address), name);
            }
        }
    }
}
