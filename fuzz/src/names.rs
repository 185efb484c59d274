//! A container in two networks, small enough to be known by heart.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use swarmesh_dns::{Asker, Change, Host, Membership, Record, ServicePort, Services, ZoneCell};

pub(crate) const LONGEST_LABEL: &str = "a-label-of-sixty-three-characters-which-is-as-long-as-they-come";

/// A name, and all of its addresses.
type Known = (&'static str, fn() -> Vec<IpAddr>);

/// Of network `Front`, which is searched first. What is asked for by these names, or with `.front`, is known in full.
pub(crate) const FRONT: [Known; 7] = [
    ("web", || vec![v4(2), v6(2)]),
    ("tasks.web", || vec![v4(3), v4(4), v6(3)]),
    // Cut for clients of 512 bytes.
    ("sixty", || (0..60).map(|n| v4(100 + n)).collect()),
    // Cut for every client.
    ("crowd", || (0..400).map(|n| if n % 2 == 0 { v4(1000 + n) } else { v6(1000 + n) }).collect()),
    // Scaled to zero.
    ("none", Vec::new),
    ("six", || vec![v6(6)]),
    (LONGEST_LABEL, || vec![v4(7)]),
];

/// Of network `back.net`, where `web` is somebody else.
pub(crate) const BACK: [Known; 2] = [("web", || vec![v4(20_000)]), ("db", || vec![v4(20_001)])];

fn v4(host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}

fn v6(host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into()
}

/// The addresses that a name has for this asker, who asks in lower case; `None` if it is none that is known here.
pub(crate) fn addresses(name: &str) -> Option<Vec<IpAddr>> {
    let of = |list: &[Known], name: &str| list.iter().find(|(known, _)| *known == name).map(|(_, all)| all());
    of(&FRONT, name)
        .or_else(|| of(&BACK, name))
        .or_else(|| of(&BACK, name.strip_suffix(".back.net")?))
        .or_else(|| of(&FRONT, name.strip_suffix(".front")?))
}

pub(crate) fn asker() -> Asker {
    let links = vec![("linked".into(), "web".into())];
    let mut front: Vec<Change> = FRONT.iter().zip(1..).map(|((name, all), owner)| change(owner, name, &all())).collect();
    let port = |name: &str, protocol, port| ServicePort { name: name.into(), protocol, port };
    let ports: Box<[ServicePort]> = Box::new([port("http", "tcp", 80), port("", "udp", 53), port("http", "sctp", 81)]);
    let hosts = |count| (0..count).map(|n| Host { name: format!("web.{n}.{n:025}").into(), address: v4(3 + n) }).collect();
    for (owner, name, hosts) in [(1, "web", None), (2, "tasks.web", Some(hosts(2))), (3, "sixty", Some(hosts(60)))] {
        for change in front.iter_mut().filter(|c| c.owner == owner) {
            let record = Record { services: Some(Arc::new(Services { ports: ports.clone(), hosts: hosts.clone() })), ..record_of(name) };
            change.names = vec![(name.into(), Arc::new(record))];
        }
    }
    // PTR of names that are as long as DNS can write, and longer.
    let longest = [LONGEST_LABEL, LONGEST_LABEL, LONGEST_LABEL, &LONGEST_LABEL[..55]].join(".");
    for (host, name) in [(30_000, longest.clone()), (30_001, format!("{longest}y")), (30_002, format!("{LONGEST_LABEL}y"))] {
        front.push(Change { owner: 50, addresses: vec![(v4(host), name.into())], ..Change::default() });
    }
    let back: Vec<Change> = BACK.iter().zip(1..).map(|((name, all), owner)| change(owner, name, &all())).collect();
    Asker { networks: vec![network("Front", &front, links), network("back.net", &back, Vec::new())], ..Asker::default() }
}

fn record_of(name: &str) -> Record {
    Record::of(addresses(name).unwrap_or_default())
}

fn change(owner: u64, name: &str, all: &[IpAddr]) -> Change {
    Change {
        owner,
        names: vec![(name.into(), Arc::new(Record::of(all.iter().copied())))],
        addresses: all.iter().map(|address| (*address, name.into())).collect(),
        ..Change::default()
    }
}

fn network(title: &str, changes: &[Change], links: Vec<(Box<str>, Box<str>)>) -> Membership {
    let zone = ZoneCell::default();
    zone.apply(changes);
    Membership { network: title.to_lowercase().into(), title: title.into(), zone: Arc::new(zone), links }
}
