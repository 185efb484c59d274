//! Real clients: what each of them makes of answers to pairs of A and AAAA, of search lists, and of answers that no datagram of
//! theirs holds.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_model::Snapshot;
use swarmesh_tests::netns::within;

use crate::world::{Namespace, World, asker, leg, network, node, service, task};

const MANY: usize = 100;
/// What every client takes in one datagram, and musl before 1.2.4 in all: 512 bytes.
const FEW: usize = 28;
/// Known to the server upstream.
const OUTSIDE: &str = "198.51.100.7";

/// A program that prints the addresses of the name that is its last word.
struct Client {
    name: &'static str,
    words: Vec<String>,
    /// Comes again by TCP for what was cut.
    has_tcp: bool,
    /// Tries the names of a search list until one is there. busybox shows what each of them gives.
    searches: bool,
}

fn client(name: &'static str, words: &[&str]) -> Client {
    Client { name, words: words.iter().map(|w| (*w).to_owned()).collect(), has_tcp: true, searches: true }
}

/// Builds what has to be built.
fn clients(directory: &Path) -> Result<Vec<Client>> {
    let source = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/netns_names_world").join(name);
    let build = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("cannot run {:?}: is it installed?", command.get_program()))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let [glibc, musl, go] = ["glibc", "musl", "go"].map(|name| directory.join(name));
    let c = source("lookup.c");
    build(Command::new("gcc").args(["-Wall", "-Werror", "-O2", "-o"]).args([&glibc, &c]))?;
    build(Command::new("musl-gcc").args(["-static", "-Wall", "-Werror", "-O2", "-o"]).args([&musl, &c]))?;
    let python = "import socket, sys\n\
        try: print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], None)}, sep='\\n')\n\
        except socket.gaierror as e: sys.exit(3 if e.errno == socket.EAI_NONAME else 1)";
    let mut clients = vec![
        client("glibc", &[&glibc.to_string_lossy()]),
        Client { has_tcp: false, ..client("musl", &[&musl.to_string_lossy()]) },
        client("Python", &["python3", "-c", python]),
        client("dig", &["dig", "+short", "+search"]),
        Client { has_tcp: false, searches: false, ..client("busybox", &["busybox", "nslookup"]) },
    ];
    if Command::new("go").arg("version").output().is_ok_and(|o| o.status.success()) {
        let cache = directory.join("cache");
        build(Command::new("go").args(["build", "-o"]).args([&go, &source("lookup.go")]).env("CGO_ENABLED", "0").env("GOCACHE", cache))?;
        clients.push(client("Go", &[&go.to_string_lossy()]));
    } else {
        eprintln!("      there is no go on this machine: its resolver is not tried");
    }
    Ok(clients)
}

impl Client {
    /// The addresses, in a container whose `resolv.conf` is this; `None` where the name does not exist.
    fn find(&self, namespace: &Path, resolv_conf: &Path, name: &str) -> Result<Option<BTreeSet<IpAddr>>> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
        command.arg(resolv_conf).args(&self.words).arg(name);
        let output = within(namespace, move || command.output())??;
        let printed = String::from_utf8_lossy(&output.stdout);
        // busybox prints the server first, and all else after a label.
        let told = printed.split_once("\n\n").map_or(&*printed, |(_, answer)| answer);
        let found: BTreeSet<IpAddr> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match output.status.code() {
            Some(0) => Ok(Some(found)),
            Some(3) => Ok(None),
            Some(1) if self.name == "busybox" => Ok(None),
            code => bail!("{} {name}: {code:?}, {printed}{}", self.name, String::from_utf8_lossy(&output.stderr)),
        }
    }
}

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
