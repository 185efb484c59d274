//! Real clients: what each of them makes of answers to pairs of A and AAAA, of search lists, and of answers that no datagram of
//! theirs holds.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use anyhow::{Result, ensure};
use swarmesh_model::Snapshot;
use swarmesh_tests::{clients::clients, netns::within};

use crate::world::{Namespace, World, asker, leg, network, node, service, task};

const MANY: usize = 100;
/// What every client takes in one datagram, and musl before 1.2.4 in all: 512 bytes.
const FEW: usize = 28;
/// Known to the server upstream.
const OUTSIDE: &str = "198.51.100.7";

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[test]
fn n9_real_clients_find_pairs_of_families_search_and_come_by_tcp() {
    let host = Arc::new(Namespace::new("clients").unwrap());
    let inside = Arc::clone(&host);
    within(&host.path(), move || check(&inside)).unwrap().unwrap();
}

fn check(host: &Namespace) -> Result<()> {
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.insert_node(node());
    snapshot.insert_network(network("front", false));
    snapshot.insert_task(asker(0, &["front"]));
    let six = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 3, 1u16]);
    snapshot.insert_service(service("single", "front", Some(IpAddr::from([10, 2, 0, 1]))));
    snapshot.insert_task(task("single.1", Some("single"), "front", IpAddr::from([10, 2, 0, 2])));
    for name in ["pair", "six", "many"] {
        snapshot.insert_service(service(name, "front", None));
    }
    let mut both = task("pair.1", Some("pair"), "front", IpAddr::from([10, 3, 0, 1]));
    both.addresses.push(leg("front", six));
    snapshot.insert_task(both);
    snapshot.insert_task(task("six.1", Some("six"), "front", IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 3, 2))));
    let many: BTreeSet<IpAddr> = (0..MANY).map(|n| IpAddr::from([10, 4, 0, n as u8])).collect();
    for (number, address) in many.iter().enumerate() {
        snapshot.insert_task(task(&format!("many.{number}"), Some("many"), "front", *address));
    }
    let world = World::up(host, "clients", 1, &snapshot)?;
    let namespace = world.askers[0].path();
    let directory = tempfile::tempdir()?;
    let [plain, search] = ["plain", "search"].map(|name| directory.path().join(name));
    std::fs::write(&plain, "nameserver 127.0.0.11\noptions ndots:0\n")?;
    std::fs::write(&search, "nameserver 127.0.0.11\nsearch front example\noptions ndots:1\n")?;
    let tcp_queries = || world.handle.shared.read(|view| view.dns.as_ref().map_or(0, |dns| dns.stats.tcp_queries.load(Relaxed)));
    let mut wrong = Vec::new();
    for client in clients(directory.path())? {
        for (what, resolv_conf, name, expected) in [
            ("one family", &plain, "single", Some(addresses(&["10.2.0.1"]))),
            ("both", &plain, "pair", Some(addresses(&["10.3.0.1", "fd00::3:1"]))),
            ("the other family", &plain, "six", Some(addresses(&["fd00::3:2"]))),
            ("with the network's name", &plain, "pair.front", Some(addresses(&["10.3.0.1", "fd00::3:1"]))),
            ("upstream", &plain, "some.example", Some(addresses(&[OUTSIDE]))),
            ("missing", &plain, "missing.org", None),
            ("found by the first of the list", &search, "single", Some(addresses(&["10.2.0.1"]))),
            ("both by the list", &search, "pair", Some(addresses(&["10.3.0.1", "fd00::3:1"]))),
            ("found by the second", &search, "some", Some(addresses(&[OUTSIDE]))),
            ("large", &plain, "many", Some(many.clone())),
            ("large, by the list", &search, "many", Some(many.clone())),
        ] {
            if *resolv_conf == search && !client.searches {
                continue;
            }
            let before = tcp_queries();
            let found = client.find(&namespace, resolv_conf, name)?;
            let is_large = what.starts_with("large");
            let is_right = match (&found, &expected) {
                (Some(found), Some(expected)) if is_large && !client.has_tcp => found.is_subset(expected) && found.len() >= FEW,
                // dig asks for A alone, and prints nothing for what is not there.
                (Some(found), expected) if client.name == "dig" => {
                    let v4 = expected.iter().flatten().filter(|a| a.is_ipv4()).copied().collect();
                    *found == v4
                }
                (found, expected) => found == expected,
            };
            if !is_right || is_large && client.has_tcp && tcp_queries() == before {
                wrong.push(format!("{}, {what}: {name} is {found:?}, not {expected:?}; {} by TCP", client.name, tcp_queries() - before));
            }
        }
        eprintln!("      {}", client.name);
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    world.down()
}
