//! Published ports and VIPs by IPv6, on a swarm whose ingress network and docker_gwbridge have it.
//!
//! Rows have the names of the same questions about IPv4, which are in `netns_mesh.rs` and `netns_life.rs`.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_tests::{
    lab::{Held, Knock, Lab, ask, ask_udp, knock_tcp, knock_tcp_for, speak_from_one_port, spread_in, udp_socket},
    load::field,
    netns::{generation, within},
    patience::patient,
    rows::{Row, run, run_some},
};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const STACK: &str = r#"
version: "3.8"
x-both: &both
  WHOAMI_TCP: "80,81"
  WHOAMI_UDP: "53"
services:
  web:
    image: example/web
    environment: *both
    ports: ["7000:80/tcp", "7000:53/udp"]
    networks: [six]
    deploy: {replicas: 3}
  api:
    image: example/api
    networks: [six]
    deploy: {replicas: 2}
  hidden:
    image: example/hidden
    ports: ["7004:80"]
    deploy: {replicas: 2, labels: {swarmesh.source: snat}}
  bound:
    image: example/bound
    ports: ["7005:80"]
    deploy: {replicas: 1, labels: {swarmesh.bind: "fd00:5741::11, 192.0.2.12"}}
  lone:
    image: example/lone
    environment: *both
    ports: ["7012:80/tcp", "7012:53/udp"]
    deploy: {replicas: 1}
  loopback:
    image: example/loopback
    ports: ["7006:80"]
    deploy: {replicas: 1, labels: {swarmesh.bind: "127.0.0.1, ::1"}}
  direct:
    image: example/direct
    ports: [{target: 80, published: 7008, mode: host}]
    deploy: {replicas: 1}
  nobody:
    image: example/nobody
    ports: ["7009:80", "7009:53/udp"]
    networks: [six]
    deploy: {replicas: 0}
  short:
    image: example/short
    environment: {WHOAMI_LINGER: "30"}
    ports: ["7010:80"]
    networks: [six]
    stop_grace_period: 40s
    deploy: {replicas: 2, labels: {swarmesh.drain: "2"}}
networks:
  six: {enable_ipv6: true}
"#;

/// fd00:5741::11, ::12 and ::13, written in hexadecimal digits.
fn node_address(index: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x5741, 0, 0, 0, 0, 0, 0x11 + u16::try_from(index).unwrap_or(0)).into()
}

fn on_node(index: usize, port: u16) -> SocketAddr {
    SocketAddr::new(node_address(index), port)
}

const ROWS: &[Row<Lab>] = &[
    ("E36 K1 published port: any node's address, TCP, evenly", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let spread = lab.spread("client1", on_node(index, 7000), 9)?;
            ensure!(spread.len() == 3 && spread.values().all(|n| *n == 3), "9 requests through node {}: {spread:?}", index + 1);
        }
        Ok(())
    }),
    ("K1 published port: any node's address, UDP, answered from where it was asked", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let mut tasks = BTreeMap::new();
            for turn in 0..6 {
                let answer = ask_udp(&lab.namespace("client1"), on_node(index, 7000), &format!("turn {turn}"))?;
                let Ok(answer) = answer else { bail!("node {}: {answer:?}", index + 1) };
                ensure!(answer.ends_with(&format!("turn {turn}")) && answer.contains("fd00:5741::101"), "{answer}");
                *tasks.entry(answer.split_whitespace().next().unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
            ensure!(tasks.len() == 3, "6 datagrams through node {}: {tasks:?}", index + 1);
        }
        Ok(())
    }),
    ("S1 the task sees the client's own address, from outside and from every node", |lab| {
        let clients = [("client1", "fd00:5741::101"), ("client2", "fd00:5741::102")];
        let nodes = [("node1", "fd00:5741::11"), ("node2", "fd00:5741::12"), ("node3", "fd00:5741::13")];
        for (place, address) in clients.iter().chain(&nodes) {
            for (index, _) in NODES.iter().enumerate() {
                for _ in 0..3 {
                    let seen = field(&lab.get(place, on_node(index, 7000))?, "remote").context("remote")?;
                    ensure!(seen.parse::<SocketAddr>()?.ip() == address.parse::<IpAddr>()?, "{place} by node {}: {seen}", index + 1);
                }
            }
        }
        Ok(())
    }),
    ("S37 one port of a client speaks to one task through every node at once, TCP and UDP", |lab| {
        let targets: Vec<SocketAddr> = NODES.iter().enumerate().map(|(index, _)| on_node(index, 7012)).collect();
        speak_from_one_port(&lab.namespace("client1"), &targets)
    }),
    ("S2 any local address of the node answers, its bridge's included; E45 [::1] is refused at once", |lab| {
        for (index, node) in NODES.iter().enumerate() {
            let namespace = &lab.namespace(node);
            for address in ["fd00:5741:18::1".parse()?, node_address(index)] {
                ensure!(knock_tcp(namespace, SocketAddr::new(address, 7000))? == Knock::Open, "{address} on {node}");
            }
            let start = Instant::now();
            ensure!(knock_tcp(namespace, "[::1]:7000".parse()?)? == Knock::Refused, "[::1] on {node}, TCP");
            ensure!(ask_udp(namespace, "[::1]:7000".parse()?, "x")? == Err(Knock::Refused), "[::1] on {node}, UDP");
            ensure!(start.elapsed() < patient(Duration::from_secs(1)), "[::1] on {node} took {:?}", start.elapsed());
        }
        Ok(())
    }),
    ("S3 a task reaches published ports through its node and through others, under an address that means one node", |lab| {
        for task in lab.tasks("api")? {
            let home = lab.node_name(task["node"].as_str().unwrap_or_default());
            let own = NODES.iter().position(|n| *n == home).context("no node")?;
            for (index, _) in NODES.iter().enumerate() {
                for _ in 0..3 {
                    let answer = lab.get_from_task(&task, on_node(index, 7000));
                    let seen = answer.as_deref().ok().and_then(|a| field(a, "remote")).and_then(|r| r.parse::<SocketAddr>().ok());
                    ensure!(
                        seen.is_some_and(|s| s.ip() == node_address(own)),
                        "from {} on {home} to node {}: seen as {seen:?}, {answer:?}",
                        task["name"],
                        index + 1
                    );
                }
            }
        }
        Ok(())
    }),
    ("S8 source=snat: the task sees the entry node's ingress address", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let seen = field(&lab.get("client1", on_node(index, 7004))?, "remote").context("remote")?;
            let IpAddr::V6(address) = seen.parse::<SocketAddr>()?.ip() else { bail!("{seen}") };
            ensure!(address.segments()[..4] == [0xfd00, 0x5741, 1, 0], "{seen}");
        }
        Ok(())
    }),
    ("S9 bind: published on the named addresses of either family, refused on the others", |lab| {
        let client = &lab.namespace("client1");
        for (address, expected) in [
            ("[fd00:5741::11]:7005", Knock::Open),
            ("[fd00:5741::12]:7005", Knock::Refused),
            ("192.0.2.12:7005", Knock::Open),
            ("192.0.2.11:7005", Knock::Refused),
        ] {
            let knock = knock_tcp(client, address.parse()?)?;
            ensure!(knock == expected, "{address}: {knock:?}");
        }
        let knock = knock_tcp(&lab.namespace("node1"), "[fd00:5741:18::1]:7005".parse()?)?;
        ensure!(knock == Knock::Refused, "the bridge's address on node1 itself: {knock:?}");
        Ok(())
    }),
    ("S10 what is published on loopback is not on the node's addresses; nobody else is led to the sandbox", |lab| {
        ensure!(knock_tcp(&lab.namespace("node1"), "127.0.0.1:7006".parse()?)? == Knock::Open, "on 127.0.0.1");
        ensure!(knock_tcp(&lab.namespace("node1"), "[::1]:7006".parse()?)? == Knock::Refused, "on ::1, which has no way");
        let client = lab.namespace("client1");
        ensure!(knock_tcp(&client, on_node(0, 7006))? == Knock::Refused, "from outside");
        lab.run("client1", &["ip", "route", "replace", "fd00:5741:18::/64", "via", "fd00:5741::11"])?;
        let knocks: Vec<_> = ["[fd00:5741:18::2]:7000", "[fd00:5741:18::2]:7006", "[fd00:5741:18::1]:7006"]
            .into_iter()
            .map(|target| Ok((target, knock_tcp_for(&client, target.parse()?, Duration::from_millis(500))?)))
            .collect::<Result<_>>()?;
        lab.run("client1", &["ip", "route", "del", "fd00:5741:18::/64"])?;
        ensure!(knocks.iter().all(|(_, knock)| *knock != Knock::Open), "a neighbour reaches: {knocks:?}");
        Ok(())
    }),
    ("E31 K6 a VIP balances any port, TCP and UDP; the server sees the caller, which may be itself", |lab| {
        let vip = lab.vip_of("web", "six", true)?;
        for task in lab.tasks("api")?.into_iter().chain(lab.tasks("web")?) {
            let (own, namespace) = (lab.address_of(&task, "six", true)?, lab.task_namespace(&task));
            for port in [80, 81] {
                let spread = spread_in(&namespace, SocketAddr::new(vip, port), 6)?;
                ensure!(spread.len() == 3 && spread.values().all(|n| *n == 2), "{}: {spread:?}", task["name"]);
            }
            let seen = field(&lab.get_from_task(&task, SocketAddr::new(vip, 80))?, "remote").context("remote")?;
            ensure!(seen.parse::<SocketAddr>()?.ip() == own, "{} is seen as {seen}, is {own}", task["name"]);
            ensure!(ask_udp(&namespace, SocketAddr::new(vip, 53), "x")?.is_ok(), "{}: UDP", task["name"]);
        }
        Ok(())
    }),
    ("E41 K5 no task: refused at once, by VIP and by port, TCP and UDP", |lab| {
        let vip = lab.vip_of("nobody", "six", true)?;
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        for (namespace, tcp, udp) in [
            (lab.namespace("client1"), on_node(0, 7009), on_node(0, 7009)),
            (lab.namespace("node1"), on_node(0, 7009), on_node(0, 7009)),
            (lab.task_namespace(&task), SocketAddr::new(vip, 80), SocketAddr::new(vip, 53)),
        ] {
            let start = Instant::now();
            ensure!(knock_tcp(&namespace, tcp)? == Knock::Refused, "tcp {tcp}");
            let answer = ask_udp(&namespace, udp, "x")?;
            ensure!(answer == Err(Knock::Refused), "udp {udp}: {answer:?}");
            ensure!(start.elapsed() < patient(Duration::from_secs(1)), "refused after {:?}", start.elapsed());
        }
        Ok(())
    }),
    ("E44 host mode answers where the task runs, and on no other node", |lab| {
        let task = lab.tasks("direct")?.into_iter().next().context("no task")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        for (index, node) in NODES.iter().enumerate() {
            let knock = knock_tcp(&lab.namespace("client1"), on_node(index, 7008))?;
            ensure!((knock == Knock::Open) == (*node == home), "{node} (home is {home}): {knock:?}");
        }
        Ok(())
    }),
    ("E46 a task's ingress address: only published ports, and no way out", |lab| {
        let tasks = lab.tasks("web")?;
        let (first, second) = (tasks.first().context("no task")?, tasks.get(1).context("no second task")?);
        let target = lab.address_of(second, "ingress", true)?;
        let sandbox = lab.ingress_namespace("node1");
        for port in [80, 81, 7004] {
            let knock = knock_tcp_for(&sandbox, SocketAddr::new(target, port), Duration::from_millis(500))?;
            ensure!(knock != Knock::Open, "port {port} of a task's ingress address is open");
        }
        let knock = knock_tcp(&lab.task_namespace(first), SocketAddr::new(target, 7000))?;
        ensure!(knock != Knock::Open, "a task opens connections over ingress");
        Ok(())
    }),
    ("K11 a UDP flow moves on when its task goes, by port and by VIP", |lab| {
        let caller = lab.tasks("api")?.into_iter().next().context("no caller")?;
        let vip = lab.vip_of("web", "six", true)?;
        for (namespace, target) in [(lab.namespace("client1"), on_node(0, 7000)), (lab.task_namespace(&caller), SocketAddr::new(vip, 53))] {
            let socket = within(&namespace, move || udp_socket(target))??;
            let Ok(answer) = ask(&socket, "x")? else { bail!("no answer from {target}") };
            let task = answer.split_whitespace().next().unwrap_or_default().to_owned();
            lab.lab(&["kill", &task])?;
            let start = Instant::now();
            while !matches!(ask(&socket, "x")?, Ok(answer) if !answer.starts_with(&task)) {
                ensure!(start.elapsed() < patient(Duration::from_secs(10)), "the flow to {target} still goes to {task}");
            }
            lab.wait("three tasks again", || Ok(lab.tasks("web")?.len() == 3 && lab.all_tasks("web")?.len() == 3))?;
        }
        lab.settled(&NODES)
    }),
    ("E30 K9 a leaving task gets nothing new, and its connections are cut when its drain ends", |lab| {
        let caller = lab.tasks("api")?.into_iter().next().context("no caller")?;
        let vip = SocketAddr::new(lab.vip_of("short", "six", true)?, 80);
        let mut held = Vec::new();
        for index in 0..6 {
            held.push(Held::open(&lab.namespace("client1"), on_node(index % 3, 7010))?);
        }
        for _ in 0..2 {
            held.push(Held::open(&lab.task_namespace(&caller), vip)?);
        }
        lab.lab(&["scale", "t_short=1"])?;
        lab.wait("one is leaving", || Ok(lab.tasks("short")?.len() == 1 && lab.all_tasks("short")?.len() == 2))?;
        lab.settled(&NODES)?;
        let stays = lab.tasks("short")?.first().and_then(|t| t["name"].as_str().map(str::to_owned)).context("no task stays")?;
        let spread = lab.spread("client1", on_node(0, 7010), 6)?;
        ensure!(spread.len() == 1 && spread.contains_key(&stays), "the leaving task got new connections: {spread:?}");
        ensure!(held.iter().any(|h| h.task() != stays), "nobody talks to the leaving task");
        for connection in &mut held {
            if connection.task() == stays {
                connection.talk().context("a connection to the task that stays")?;
            } else {
                let start = Instant::now();
                while connection.talk().is_ok() {
                    ensure!(start.elapsed() < patient(Duration::from_secs(10)), "a connection outlives its drain of 2 s");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        lab.lab(&["scale", "t_short=2"])?;
        lab.wait("two tasks run", || Ok(lab.tasks("short")?.len() == 2))
    }),
    ("S12 a restarted agent with nothing to change writes nothing", |lab| {
        lab.settled(&NODES)?;
        let generations = || -> Result<Vec<String>> {
            let mut places: Vec<_> = lab.tasks("web")?.iter().map(|t| lab.task_namespace(t)).collect();
            places.extend(NODES.iter().flat_map(|node| [lab.namespace(node), lab.ingress_namespace(node)]));
            places.iter().map(|p| generation(p)).collect()
        };
        let before = generations()?;
        ensure!(before.iter().all(|listed| !listed.is_empty()), "nft lists nothing");
        lab.restart_agents(&NODES)?;
        std::thread::sleep(patient(Duration::from_millis(500)));
        for (before, after) in before.iter().zip(&generations()?) {
            let new: Vec<&str> = after.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
            ensure!(before == after, "written: {new:?}");
        }
        Ok(())
    }),
    ("E37 a foreign flush is healed, in every namespace", |lab| {
        let task = lab.tasks("web")?.into_iter().next().context("no task")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        let index = NODES.iter().position(|n| *n == home).context("no node")?;
        let (from, target) = (lab.namespace("client1"), on_node(index, 7000));
        for namespace in [lab.namespace(&home), lab.ingress_namespace(&home), lab.task_namespace(&task)] {
            within(&namespace, || std::process::Command::new("nft").args(["flush", "ruleset"]).status())??;
            let start = Instant::now();
            let mut open = 0;
            // Every task in turn, the one with the flushed namespace among them.
            while open < 3 {
                let knock = knock_tcp_for(&from, target, Duration::from_millis(100))?;
                open = if knock == Knock::Open { open + 1 } else { 0 };
                ensure!(start.elapsed() < patient(Duration::from_secs(2)), "{}: not healed, {knock:?}", namespace.display());
            }
        }
        Ok(())
    }),
    ("S14 uninstall takes everything of ours away, and the agent brings it back", |lab| {
        lab.lab(&["agent", "node3", "stop"])?;
        lab.wait("the agent has ended", || Ok(lab.api("node3", "/healthz").is_err()))?;
        let sandbox = lab.ingress_namespace("node3");
        let netns = sandbox.parent().context("no directory")?.to_string_lossy().into_owned();
        let state = netns.replace("/netns", "/state");
        lab.swarmesh("node3", &["uninstall", "--netns-dir", &netns, "--state-dir", &state])?;
        for place in [&lab.namespace("node3"), &sandbox] {
            let rules = within(place, || std::process::Command::new("nft").args(["list", "ruleset"]).output())??;
            ensure!(!String::from_utf8_lossy(&rules.stdout).contains("swarmesh"), "rules are left in {}", place.display());
        }
        lab.lab(&["agent", "node3", "start"])?;
        lab.settled(&NODES)?;
        ensure!(lab.get("client1", on_node(2, 7000)).is_ok(), "not back");
        Ok(())
    }),
];

/// An interface takes its link-local address into use a second or two after it was made (RFC 4862, section 5.4), and its
/// neighbours are not found before.
fn awake(lab: &Lab) -> Result<()> {
    lab.settled(&NODES)?;
    for (index, _) in NODES.iter().enumerate() {
        lab.wait("published ports answer over IPv6", || Ok(lab.spread("client1", on_node(index, 7000), 3).is_ok()))?;
    }
    Ok(())
}

#[test]
fn ipv6_rows() {
    let lab = Lab::up("sixes", 3, STACK, &["--ipv6", "--restart-delay", "1"]).unwrap();
    awake(&lab).unwrap();
    run(&lab, ROWS);
}

/// The rows that meet the host's own rules, under the rules that Docker has had since 29.8.
#[test]
fn ipv6_rows_on_docker_29_8() {
    let lab = Lab::up("newsixes", 3, STACK, &["--ipv6", "--layout", "docker-29.8"]).unwrap();
    awake(&lab).unwrap();
    run_some(&lab, ROWS, &["E36", "K1 ", "S1 ", "S2 ", "S3 ", "S9 ", "S10 ", "E41", "E44"]);
}

/// The same on hosts without any rules of Docker's.
#[test]
fn ipv6_rows_on_bare_hosts() {
    let lab = Lab::up("baresixes", 3, STACK, &["--ipv6", "--layout", "bare"]).unwrap();
    awake(&lab).unwrap();
    run_some(&lab, ROWS, &["E36", "K1 ", "S1 ", "S2 ", "S9 ", "S10 ", "E41"]);
}
