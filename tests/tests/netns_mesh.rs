//! Steady state on a three-node emulated swarm: who is reached, by which way, and what the task sees.
//!
//! Rows `E…` are those of moby-semantics' conformance list, rows `K…` those of the Kubernetes behaviours that we adopted
//! (TESTING.md has both tables), rows `S…` are our own promises.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use swarmesh_tests::{
    lab::{Held, Knock, Lab, ask, ask_udp, knock_http, knock_tcp, knock_tcp_for, speak_from_one_port, udp_socket},
    load::{Load, field},
    netns::{generation, within},
    patience::{patient, silence},
    plane::{Plane, ipvs_only, nft_only, plane},
    rows::{Row, run, run_some},
    stray::inject,
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
    ports: ["7000:80/tcp", "7000:53/udp", "7001:81"]
    networks: [front, back]
    deploy: {replicas: 3}
  api:
    image: example/api
    environment: *both
    networks: [back]
    deploy: {replicas: 2}
  elsewhere:
    image: example/elsewhere
    networks: [other]
    deploy: {replicas: 1}
  rr:
    image: example/rr
    networks: [back]
    deploy: {replicas: 2, endpoint_mode: dnsrr}
  sticky:
    image: example/sticky
    ports: ["7002:80"]
    networks: [back]
    deploy: {replicas: 3, labels: {swarmesh.affinity: "client-ip:4"}}
  loyal:
    image: example/loyal
    ports: ["7011:80"]
    deploy: {replicas: 3, labels: {swarmesh.affinity: "client-ip:600"}}
  near:
    image: example/near
    ports: ["7003:80"]
    deploy: {replicas: 1, labels: {swarmesh.source: local}}
  hidden:
    image: example/hidden
    ports: ["7004:80"]
    deploy: {replicas: 2, labels: {swarmesh.source: snat}}
  bound:
    image: example/bound
    ports: ["7005:80"]
    deploy: {replicas: 1, labels: {swarmesh.bind: "192.0.2.11, 127.0.0.0/8"}}
  loopback:
    image: example/loopback
    ports: ["7006:80"]
    deploy: {replicas: 1, labels: {swarmesh.bind: "127.0.0.1"}}
  off:
    image: example/off
    ports: ["7007:80"]
    deploy: {replicas: 1, labels: {swarmesh.enable: "false"}}
  direct:
    image: example/direct
    ports: [{target: 80, published: 7008, mode: host}]
    deploy: {replicas: 1}
  nobody:
    image: example/nobody
    ports: ["7009:80", "7009:53/udp"]
    networks: [back]
    deploy: {replicas: 0}
  quiet:
    image: example/quiet
    environment: {WHOAMI_TCP: "80"}
    ports: ["7010:90"]
    networks: [back]
    deploy: {replicas: 1}
  lone:
    image: example/lone
    environment: *both
    ports: ["7012:80/tcp", "7012:53/udp"]
    deploy: {replicas: 1}
  six:
    image: example/six
    environment: *both
    networks: [six]
    deploy: {replicas: 2}
  odd:
    image: example/odd
    networks: [back]
    deploy: {replicas: 1, labels: {swarmesh.scheduler: lc, swarmesh.drain: soon}}
networks:
  front:
  back:
  other:
  six: {enable_ipv6: true}
"#;

fn node_address(index: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(index).unwrap_or(0)])
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

const CLIENT1: &str = "192.0.2.101";

const ROWS: &[Row<Lab>] = &[
    ("E36 K1 published port: any node's address, TCP", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let spread = lab.spread("client1", at(node_address(index), 7000), 9)?;
            ensure!(spread.len() == 3 && spread.values().all(|n| *n == 3), "9 requests through node {}: {spread:?}", index + 1);
        }
        Ok(())
    }),
    ("K1 published port: any node's address, UDP, answered from where it was asked", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let mut tasks = BTreeMap::new();
            for turn in 0..6 {
                let answer = ask_udp(&lab.namespace("client1"), at(node_address(index), 7000), &format!("turn {turn}"))?;
                let Ok(answer) = answer else { bail!("node {}: {answer:?}", index + 1) };
                ensure!(answer.ends_with(&format!("turn {turn}")) && answer.contains(CLIENT1), "{answer}");
                *tasks.entry(answer.split_whitespace().next().unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
            ensure!(tasks.len() == 3, "6 datagrams through node {}: {tasks:?}", index + 1);
        }
        Ok(())
    }),
    ("S1 the task sees the client's own address, from outside and from every node", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            for (client, address) in [("client1", CLIENT1.parse::<IpAddr>()?), ("client2", "192.0.2.102".parse()?)] {
                let seen = field(&lab.get(client, at(node_address(index), 7000))?, "remote").context("remote")?;
                ensure!(seen.parse::<SocketAddr>()?.ip() == address, "{client} through node {}: {seen}", index + 1);
            }
        }
        for (index, node) in NODES.iter().enumerate() {
            for (other, _) in NODES.iter().enumerate() {
                let seen = field(&lab.get(node, at(node_address(other), 7000))?, "remote").context("remote")?;
                ensure!(seen.parse::<SocketAddr>()?.ip() == node_address(index), "{node} to node {}: {seen}", other + 1);
            }
        }
        Ok(())
    }),
    ("S33 a task of the entry node is reached past the ingress sandbox, in turn with the others", |lab| {
        nft_only("its balancer is in the ingress sandbox, and nothing goes past it")?;
        let home = |task: &str| -> Result<String> {
            let tasks = lab.tasks("web")?;
            let task = tasks.iter().find(|t| name(t) == task).with_context(|| format!("{task} is no task"))?;
            Ok(lab.node_name(task["node"].as_str().unwrap_or_default()))
        };
        for (index, node) in NODES.iter().enumerate() {
            let mut own = 0;
            for _ in 0..6 {
                let held = Held::open(&lab.namespace("client1"), at(node_address(index), 7000))?;
                let port = held.ends()?.0.port().to_string();
                let tracked = within(&lab.ingress_namespace(node), move || {
                    std::process::Command::new("conntrack").args(["-L", "-p", "tcp", "--orig-port-src", &port]).output()
                })??;
                let through_sandbox = String::from_utf8_lossy(&tracked.stdout).contains("sport");
                let is_own = home(held.task())? == *node;
                ensure!(is_own != through_sandbox, "{} through {node}: its sandbox saw it: {through_sandbox}", held.task());
                own += usize::from(is_own);
            }
            ensure!(own == 2, "{own} of 6 connections through {node} met its own task");
            let explained = lab.swarmesh(node, &["explain", &format!("tcp://{}:7000", node_address(index))])?;
            ensure!(explained.contains("reached straight over docker_gwbridge, at 172.18.0."), "{explained}");
        }
        Ok(())
    }),
    ("S34 a client whose address is one of a task's networks is answered, from every node", |lab| {
        let task = lab.tasks("web")?.into_iter().next().context("no task")?;
        let IpAddr::V4(own) = lab.address(&task, "back")? else { bail!("no IPv4 address") };
        let [a, b, c, _] = own.octets();
        let client = format!("{a}.{b}.{c}.250");
        lab.run("client1", &["ip", "addr", "add", &format!("{client}/32"), "dev", "eth0"])?;
        for node in NODES {
            lab.run(node, &["ip", "route", "add", &client, "via", CLIENT1])?;
        }
        let mut outcome = Ok(());
        for (index, node) in NODES.iter().enumerate() {
            let url = format!("http://{}:7000/", node_address(index));
            let mut tasks = BTreeMap::new();
            for _ in 0..3 {
                let answer = lab.run("client1", &["curl", "--silent", "--max-time", "3", "--interface", &client, &url]);
                let of = |name| answer.as_deref().ok().and_then(|a| field(a, name)).unwrap_or_default();
                if !of("remote").starts_with(&format!("{client}:")) {
                    outcome = Err(anyhow::anyhow!("{client} through {node}: {answer:?}"));
                }
                *tasks.entry(of("task")).or_insert(0) += 1;
            }
            if outcome.is_ok() && tasks.len() != 3 {
                outcome = Err(anyhow::anyhow!("{client} through {node}: {tasks:?}"));
            }
        }
        for node in NODES {
            lab.run(node, &["ip", "route", "del", &client])?;
        }
        lab.run("client1", &["ip", "addr", "del", &format!("{client}/32"), "dev", "eth0"])?;
        outcome
    }),
    ("S35 a program bound to its ingress address is reached on its own node, too; what was cut there does not go on by itself", |lab| {
        let task = lab.tasks("quiet")?.into_iter().next().context("no task")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        let own = NODES.iter().position(|n| *n == home).context("no node")?;
        let address = lab.address(&task, "ingress")?;
        let listener = within(&lab.task_namespace(&task), move || TcpListener::bind((address, 90)))??;
        for index in [(own + 1) % 3, own] {
            let target = at(node_address(index), 7010);
            let mut client =
                within(&lab.namespace("client1"), move || TcpStream::connect_timeout(&target, patient(Duration::from_secs(2))))?
                    .with_context(|| format!("through node {}, the task is on {home}", index + 1))?;
            let (mut server, _) = listener.accept()?;
            client.set_read_timeout(Some(silence(Duration::from_millis(400))))?;
            server.write_all(b"a")?;
            client.read_exact(&mut [0])?;
            // With virtual servers this way leads through the sandbox, too, which goes on to translate.
            if index == own && plane() == Plane::Nft {
                within(&lab.namespace(&home), || {
                    std::process::Command::new("conntrack").args(["-D", "-p", "tcp", "--orig-port-dst", "7010"]).output()
                })??;
                server.write_all(b"b")?;
                let read = client.read(&mut [0]);
                ensure!(read.is_err(), "the task's next word after the cut arrives: {read:?}");
            }
        }
        Ok(())
    }),
    ("E45 127.0.0.1 answers on every node, [::1] answers or refuses, never hangs", |lab| {
        for (index, node) in NODES.iter().enumerate() {
            for _ in 0..3 {
                let seen = field(&lab.get(node, "127.0.0.1:7000".parse()?)?, "remote").context("remote")?;
                ensure!(seen.parse::<SocketAddr>()?.ip() == node_address(index), "{node} by 127.0.0.1 is seen as {seen}");
                let udp = ask_udp(&lab.namespace(node), "127.0.0.1:7000".parse()?, "x")?;
                ensure!(udp.is_ok(), "{node} by 127.0.0.1, UDP: {udp:?}");
            }
            let knock = knock_http(&lab.namespace(node), "[::1]:7000".parse()?)?;
            ensure!(knock != Knock::Silent, "[::1] on {node}: {knock:?}");
            let knock = knock_http(&lab.namespace("client1"), format!("[fd00:5741::{}]:7000", 11 + index).parse()?)?;
            ensure!(knock != Knock::Silent, "{node}'s IPv6 address: {knock:?}");
        }
        Ok(())
    }),
    ("S2 any local address of the node answers, its own bridges' included", |lab| {
        let node = &lab.namespace("node1");
        for address in ["172.18.0.1:7000", "192.0.2.11:7000", "127.0.0.53:7000"] {
            ensure!(knock_tcp(node, address.parse()?)? == Knock::Open, "{address}");
        }
        Ok(())
    }),
    ("S3 a task reaches published ports through its node and through another", |lab| {
        for task in lab.tasks("api")? {
            for (index, _) in NODES.iter().enumerate() {
                let answer = lab.get_from_task(&task, at(node_address(index), 7000));
                ensure!(answer.is_ok(), "from {} to node {}: {answer:?}", task["name"], index + 1);
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances any TCP port evenly; the server sees the calling task", |lab| {
        let vip = lab.vip("web", "back")?;
        for task in lab.tasks("api")? {
            for port in [80, 81] {
                let own = lab.address(&task, "back")?;
                let namespace = lab.task_namespace(&task);
                let spread = swarmesh_tests::lab::spread_in(&namespace, at(vip, port), 9)?;
                ensure!(spread.len() == 3 && spread.values().all(|n| *n == 3), "{}: {spread:?}", task["name"]);
                let seen = field(&lab.get_from_task(&task, at(vip, port))?, "remote").context("remote")?;
                ensure!(seen.parse::<SocketAddr>()?.ip() == own, "{} is seen as {seen}, is {own}", task["name"]);
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances UDP, answered from the VIP", |lab| {
        let vip = lab.vip("web", "back")?;
        for task in lab.tasks("api")? {
            let mut seen = BTreeMap::new();
            for _ in 0..6 {
                let answer = ask_udp(&lab.task_namespace(&task), at(vip, 53), "x")?;
                let Ok(answer) = answer else { bail!("{}: {answer:?}", task["name"]) };
                *seen.entry(answer.split_whitespace().next().unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
            ensure!(seen.len() == 3, "{seen:?}");
        }
        Ok(())
    }),
    ("E31 K6 hairpin: a task reaches itself through its own VIP, TCP and UDP", |lab| {
        let vip = lab.vip("web", "back")?;
        for task in lab.tasks("web")? {
            let namespace = lab.task_namespace(&task);
            let spread = swarmesh_tests::lab::spread_in(&namespace, at(vip, 80), 6)?;
            ensure!(spread.len() == 3, "{}: {spread:?}", task["name"]);
            for _ in 0..3 {
                ensure!(ask_udp(&namespace, at(vip, 53), "x")?.is_ok(), "{}: UDP to its own VIP", task["name"]);
            }
        }
        Ok(())
    }),
    ("S4 two services that a client calls in turn are both balanced", |lab| {
        let (web, api) = (lab.vip("web", "back")?, lab.vip("api", "back")?);
        let task = lab.tasks("web")?.into_iter().next().context("no task")?;
        let namespace = lab.task_namespace(&task);
        let mut seen: [BTreeMap<String, u32>; 2] = Default::default();
        for _ in 0..6 {
            for (vip, seen) in [web, api].iter().zip(&mut seen) {
                let answer = swarmesh_tests::lab::get_in(&namespace, at(*vip, 80))?;
                *seen.entry(field(&answer, "task").unwrap_or_default()).or_default() += 1;
            }
        }
        ensure!(seen[0].values().all(|n| *n == 2) && seen[1].values().all(|n| *n == 3), "{seen:?}");
        Ok(())
    }),
    ("S5 ICMP echo to a VIP answers", |lab| {
        let vip = lab.vip("web", "back")?;
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        lab.run(name(&task), &["ping", "-c", "2", "-W", "2", &vip.to_string()])?;
        Ok(())
    }),
    ("E21 S6 a VIP of a network that the task is not in is not translated", |lab| {
        let vip = lab.vip("elsewhere", "other")?;
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        ensure!(knock_tcp(&lab.task_namespace(&task), at(vip, 80))? != Knock::Open, "{vip} is reached from another network");
        Ok(())
    }),
    ("S7 IPv6 tasks and VIPs: TCP, UDP, hairpin", |lab| {
        let vip = lab.vip_of("six", "six", true)?;
        for task in lab.tasks("six")? {
            let namespace = lab.task_namespace(&task);
            let spread = swarmesh_tests::lab::spread_in(&namespace, at(vip, 80), 4)?;
            ensure!(spread.len() == 2 && spread.values().all(|n| *n == 2), "{spread:?}");
            ensure!(ask_udp(&namespace, at(vip, 53), "x")?.is_ok(), "UDP to {vip}");
        }
        Ok(())
    }),
    ("K2 K3 the same port on TCP and UDP, several ports per service", |lab| {
        let target = at(node_address(0), 7000);
        ensure!(lab.get("client1", target).is_ok() && ask_udp(&lab.namespace("client1"), target, "x")?.is_ok(), "7000 on both");
        ensure!(lab.get("client1", at(node_address(0), 7001)).is_ok(), "7001");
        let udp = ask_udp(&lab.namespace("client1"), at(node_address(0), 7001), "x")?;
        ensure!(udp.is_err(), "7001 is published for TCP only, and UDP answered {udp:?}");
        Ok(())
    }),
    ("K4 affinity: a client stays with its task by port and by VIP", |lab| {
        for client in ["client1", "client2"] {
            let spread = lab.spread(client, at(node_address(0), 7002), 12)?;
            ensure!(spread.len() == 1, "{client} was moved: {spread:?}");
        }
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        let spread = swarmesh_tests::lab::spread_in(&lab.task_namespace(&task), at(lab.vip("sticky", "back")?, 80), 12)?;
        ensure!(spread.len() == 1, "by VIP: {spread:?}");
        Ok(())
    }),
    ("K4 affinity ends with its time", |lab| {
        nft_only("IPVS forgets no client while it remembers a connection of its, as it does for two minutes after one was closed")?;
        let mut seen = BTreeMap::new();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(4600));
            *seen.entry(field(&lab.get("client1", at(node_address(0), 7002))?, "task").unwrap_or_default()).or_insert(0) += 1;
        }
        ensure!(seen.len() > 1, "the affinity never expires: {seen:?}");
        Ok(())
    }),
    ("S36 planes change under load: established connections go on, and no new one fails", |lab| {
        ipvs_only("it needs a kernel with two planes")?;
        let vip = lab.vip("web", "back")?;
        let caller = lab.tasks("api")?.into_iter().next().context("no caller")?;
        let by_vip = Load::start(&lab.task_namespace(&caller), vec![at(vip, 80)], 50)?;
        let by_port =
            Load::start(&lab.namespace("client1"), NODES.iter().enumerate().map(|(i, _)| at(node_address(i), 7000)).collect(), 50)?;
        let mut held = Vec::new();
        for next in ["nft", "ipvs"] {
            for (index, node) in NODES.iter().enumerate() {
                held.push(Held::open(&lab.namespace("client1"), at(node_address(index), 7000))?);
                held.push(Held::open(&lab.task_namespace(&caller), at(vip, 80))?);
                lab.lab(&["agent", node, "restart", "--plane", next])?;
                lab.wait("the other plane runs", || {
                    Ok(serde_json::from_str::<Value>(&lab.api(node, "/v1/status")?.1)?["plane"]["name"] == next)
                })?;
                lab.settled(&[node])?;
            }
            for connection in &mut held {
                connection.talk().with_context(|| format!("after the change to {next}"))?;
            }
        }
        for load in [by_vip, by_port] {
            let outcome = load.stop();
            ensure!(outcome.failed == 0 && outcome.attempted > 20, "{outcome:?}");
        }
        Ok(())
    }),
    ("S37 one port of a client speaks to one task through every node at once, TCP and UDP", |lab| {
        let targets: Vec<SocketAddr> = NODES.iter().enumerate().map(|(index, _)| at(node_address(index), 7012)).collect();
        speak_from_one_port(&lab.namespace("client1"), &targets)
    }),
    ("K4 affinity survives changes of other services", |lab| {
        let ask = || -> Result<Vec<String>> {
            let mut tasks = Vec::new();
            for client in ["client1", "client2"] {
                tasks.push(field(&lab.get(client, at(node_address(0), 7011))?, "task").context("task")?);
            }
            Ok(tasks)
        };
        let before = ask()?;
        for words in [["scale", "t_api=4"], ["scale", "t_web=2"], ["scale", "t_web=3"], ["scale", "t_api=2"]] {
            lab.lab(&words)?;
            let after = ask()?;
            ensure!(after == before, "after {words:?}: {after:?}, before: {before:?}");
        }
        lab.lab(&["wait"])?;
        ensure!(ask()? == before, "in the end");
        lab.settled(&NODES)
    }),
    ("K8 source=local: only the node with the task answers, the others refuse; health says which", |lab| {
        let task = lab.tasks("near")?.into_iter().next().context("no task")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        for (index, node) in NODES.iter().enumerate() {
            let knock = knock_tcp(&lab.namespace("client1"), at(node_address(index), 7003))?;
            let (code, body) = lab.api(node, "/v1/health/published/tcp/7003")?;
            let expected = if *node == home { (Knock::Open, 200) } else { (Knock::Refused, 503) };
            ensure!((knock, code) == expected, "{node} (home is {home}): {knock:?}, health {code} {body}");
        }
        Ok(())
    }),
    ("S8 source=snat: the task sees the entry node's ingress address", |lab| {
        for (index, _) in NODES.iter().enumerate() {
            let seen = field(&lab.get("client1", at(node_address(index), 7004))?, "remote").context("remote")?;
            let IpAddr::V4(address) = seen.parse::<SocketAddr>()?.ip() else { bail!("{seen}") };
            ensure!(address.octets()[..3] == [10, 0, 0], "{seen}");
        }
        Ok(())
    }),
    ("S9 bind: published on the named addresses, refused on the others", |lab| {
        let client = &lab.namespace("client1");
        ensure!(knock_tcp(client, at(node_address(0), 7005))? == Knock::Open, "on 192.0.2.11");
        ensure!(knock_tcp(client, at(node_address(1), 7005))? == Knock::Refused, "on 192.0.2.12");
        ensure!(knock_tcp(&lab.namespace("node2"), "127.0.0.1:7005".parse()?)? == Knock::Open, "on 127.0.0.1 of node2");
        ensure!(knock_tcp(&lab.namespace("node2"), "192.0.2.12:7005".parse()?)? == Knock::Refused, "from node2 itself, on 192.0.2.12");
        Ok(())
    }),
    ("S10 loopback-published stays loopback (moby 45610)", |lab| {
        ensure!(knock_tcp(&lab.namespace("node1"), "127.0.0.1:7006".parse()?)? == Knock::Open, "on 127.0.0.1");
        let client = lab.namespace("client1");
        ensure!(knock_tcp(&client, at(node_address(0), 7006))? == Knock::Refused, "from outside");
        // A neighbour that routes 127.0.0.1 to the node, and one that routes the node's bridge to it.
        for (network, target) in
            [("172.18.0.0/16", "172.18.0.2:7006"), ("172.18.0.0/16", "172.18.0.2:7000"), ("127.9.9.0/24", "127.9.9.9:7006")]
        {
            lab.run("client1", &["ip", "route", "replace", network, "via", "192.0.2.11", "table", "main"])?;
            if network.starts_with("127") {
                lab.run("client1", &["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])?;
            }
            let knock = knock_tcp(&client, target.parse()?);
            lab.run("client1", &["ip", "route", "del", network])?;
            ensure!(!matches!(knock, Ok(Knock::Open)), "a neighbour reaches {target}: {knock:?}");
        }
        Ok(())
    }),
    ("K14 enable=false: not ours, not touched", |lab| {
        ensure!(knock_tcp(&lab.namespace("client1"), at(node_address(0), 7007))? != Knock::Open, "somebody answers");
        let services = lab.swarmesh("node1", &["services"])?;
        ensure!(services.contains("t_off"), "{services}");
        Ok(())
    }),
    ("E44 host mode: listens only where the task runs", |lab| {
        let task = lab.tasks("direct")?.into_iter().next().context("no task")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        for (index, node) in NODES.iter().enumerate() {
            let knock = knock_tcp(&lab.namespace("client1"), at(node_address(index), 7008))?;
            ensure!((knock == Knock::Open) == (*node == home), "{node} (home is {home}): {knock:?}");
        }
        Ok(())
    }),
    ("E41 K5 no usable backend: refused at once, by VIP and by port, TCP and UDP", |lab| {
        let vip = lab.vip("nobody", "back")?;
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        let places = [
            (lab.namespace("client1"), at(node_address(0), 7009), at(node_address(0), 7009)),
            (lab.task_namespace(&task), at(vip, 80), at(vip, 53)),
        ];
        for (namespace, tcp, udp) in places {
            let start = Instant::now();
            ensure!(knock_tcp(&namespace, tcp)? == Knock::Refused, "tcp {tcp}");
            let answer = ask_udp(&namespace, udp, "x")?;
            ensure!(answer == Err(Knock::Refused), "udp {udp}: {answer:?}");
            ensure!(start.elapsed() < patient(Duration::from_millis(500)), "refused after {:?}", start.elapsed());
        }
        ensure!(lab.api("node1", "/v1/health/published/tcp/7009")?.0 == 503, "health of a port without tasks");
        ensure!(lab.api("node1", "/v1/health/published/tcp/7000")?.0 == 200, "health of a port with tasks");
        Ok(())
    }),
    ("E46 a task's ingress address: only published ports, and no way out", |lab| {
        let tasks = lab.tasks("web")?;
        let (first, second) = (tasks.first().context("no task")?, tasks.get(1).context("no second task")?);
        let target = lab.address(second, "ingress")?;
        // Another member of the ingress network, without our rules: the ingress sandbox of a node.
        let sandbox = lab.ingress_namespace("node1");
        for port in [80, 81, 22, 7002] {
            let knock = knock_tcp(&sandbox, at(target, port))?;
            ensure!(knock != Knock::Open, "port {port} of a task's ingress address is open");
        }
        let knock = knock_tcp(&lab.task_namespace(first), at(target, 7000))?;
        ensure!(knock != Knock::Open, "a task opens connections over ingress");
        Ok(())
    }),
    ("K12 a stray packet of an established connection draws no RST from the mesh", |lab| {
        let mut held = Held::open(&lab.namespace("client1"), at(node_address(0), 7000))?;
        held.talk()?;
        let (client, server) = held.ends()?;
        for sequence in [1, 0x4000_0000, 0x9000_0000] {
            within(&lab.namespace("client1"), move || inject(client, server, sequence))??;
        }
        // The same by VIP, where the caller itself translates.
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        let mut inside = Held::open(&lab.task_namespace(&task), at(lab.vip("web", "back")?, 80))?;
        std::thread::sleep(patient(Duration::from_millis(100)));
        held.talk().context("the connection by a published port was reset")?;
        inside.talk()
    }),
    ("K15 two services publish one port number on TCP and UDP, others are refused by validation", |lab| {
        let broken = "services:\n  a: {image: x, ports: ['7100:80']}\n  b: {image: x, ports: ['7100:81']}\n";
        let Err(error) = lab.deploy(broken) else { bail!("a duplicate port was deployed") };
        ensure!(format!("{error:#}").contains("7100"), "{error:#}");
        ensure!(lab.get("client1", at(node_address(0), 7000)).is_ok(), "the refused stack changed something");
        Ok(())
    }),
    ("E43 dnsrr with an ingress port is refused", |lab| {
        let broken = "services:\n  a:\n    image: x\n    ports: ['7100:80']\n    deploy: {endpoint_mode: dnsrr}\n";
        ensure!(lab.deploy(broken).is_err(), "dnsrr with an ingress port was deployed");
        Ok(())
    }),
    ("S11 problems are reported on the service they concern, and nowhere else", |lab| {
        let (_, body) = lab.api("node1", "/v1/status")?;
        ensure!(body.contains("swarmesh.drain") && body.contains("t_odd"), "{body}");
        let task = lab.tasks("odd")?.into_iter().next().context("no task")?;
        let vip = lab.vip("odd", "back")?;
        ensure!(lab.get_from_task(&task, at(vip, 80)).is_ok(), "a service with a bad label is still served");
        Ok(())
    }),
    ("S12 a restarted agent with nothing to change writes nothing", |lab| {
        let generations = |lab: &Lab| -> Result<Vec<String>> {
            let mut all = Vec::new();
            let tasks = lab.tasks("web")?;
            for task in &tasks {
                all.push(generation(&lab.task_namespace(task))?);
            }
            all.push(generation(&lab.namespace("node1"))?);
            all.push(generation(&lab.ingress_namespace("node1"))?);
            Ok(all)
        };
        let before = generations(lab)?;
        lab.restart_agents(&NODES)?;
        std::thread::sleep(patient(Duration::from_millis(500)));
        let after = generations(lab)?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(!before.is_empty(), "nft lists nothing");
            let new: Vec<&str> = after.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
            ensure!(before == after, "written: {new:?}");
        }
        Ok(())
    }),
    ("E37 K13 a foreign flush is healed within a second, in every namespace", |lab| {
        let task = lab.tasks("api")?.into_iter().next().context("no task")?;
        let vip = lab.vip("web", "back")?;
        let home = lab.node_name(task["node"].as_str().unwrap_or_default());
        let index = NODES.iter().position(|n| *n == home).unwrap_or(0);
        let sandbox = lab.ingress_namespace(&home);
        for namespace in [lab.namespace(&home), sandbox, lab.task_namespace(&task)] {
            let start = Instant::now();
            within(&namespace, || std::process::Command::new("nft").args(["flush", "ruleset"]).status())??;
            let (target, from) = (at(node_address(index), 7000), lab.namespace("client1"));
            loop {
                // Shorter than a SYN's retransmission: what is asked is when the way is there again.
                let outside = knock_tcp_for(&from, target, Duration::from_millis(100))?;
                let inside = knock_tcp_for(&lab.task_namespace(&task), at(vip, 80), Duration::from_millis(100))?;
                if outside == Knock::Open && inside == Knock::Open {
                    break;
                }
                ensure!(start.elapsed() < patient(Duration::from_secs(1)), "not healed after a second: {outside:?} {inside:?}");
            }
        }
        Ok(())
    }),
    ("S13 explain, endpoints and plan say what is", |lab| {
        let explained = lab.swarmesh("node1", &["explain", "tcp://192.0.2.11:7000"])?;
        ensure!(explained.contains("t_web"), "{explained}");
        let explained = lab.swarmesh("node1", &["explain", "tcp://192.0.2.11:4444"])?;
        ensure!(explained.contains("4444"), "{explained}");
        let endpoints: Value = serde_json::from_str(&lab.swarmesh("node1", &["endpoints", "--output", "json"])?)?;
        ensure!(endpoints.to_string().contains("t_web"), "{endpoints}");
        lab.swarmesh("node1", &["plan", "--output", "json"])?;
        Ok(())
    }),
    ("S14 uninstall takes everything of ours away, and the agent brings it back", |lab| {
        lab.lab(&["agent", "node3", "stop"])?;
        lab.wait("the agent has ended", || Ok(lab.api("node3", "/healthz").is_err()))?;
        let directory = format!("{}/node3/netns", lab_directory(lab));
        lab.swarmesh("node3", &["uninstall", "--netns-dir", &directory, "--state-dir", &format!("{}/node3/state", lab_directory(lab))])?;
        let rules = within(&lab.namespace("node3"), || std::process::Command::new("nft").args(["list", "ruleset"]).output())??;
        ensure!(!String::from_utf8_lossy(&rules.stdout).contains("swarmesh"), "rules are left in the node's namespace");
        let rules = within(&lab.ingress_namespace("node3"), || std::process::Command::new("nft").args(["list", "ruleset"]).output())??;
        ensure!(!String::from_utf8_lossy(&rules.stdout).contains("swarmesh"), "rules are left in the ingress sandbox");
        lab.lab(&["agent", "node3", "start"])?;
        lab.settled(&NODES)?;
        ensure!(lab.get("client1", at(node_address(2), 7000)).is_ok(), "not back");
        Ok(())
    }),
    ("S15 a UDP flow that began before its port was published finds the task afterwards", |lab| {
        let namespace = lab.namespace("client1");
        let target = at(node_address(0), 7110);
        let socket = within(&namespace, move || udp_socket(target))??;
        ensure!(ask(&socket, "early")?.is_err(), "somebody answers early");
        lab.deploy(&(STACK.replace("networks:\n  front:\n", "  late:\n    image: example/late\n    environment: *both\n    ports: ['7110:53/udp']\n    deploy: {replicas: 1}\nnetworks:\n  front:\n")))?;
        lab.wait("the flow finds the task", || Ok(ask(&socket, "late")?.is_ok()))
    }),
];

fn name(task: &Value) -> &str {
    task["name"].as_str().unwrap_or_default()
}

fn lab_directory(lab: &Lab) -> String {
    let sandbox = lab.ingress_namespace("node1");
    sandbox.ancestors().nth(3).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

#[test]
fn mesh_rows() {
    let lab = Lab::up("mesh", 3, STACK, &[]).unwrap();
    lab.settled(&NODES).unwrap();
    run(&lab, ROWS);
}

/// The rows that meet the host's own rules, under the rules that Docker has had since 29.8.
#[test]
fn mesh_rows_on_docker_29_8() {
    let lab = Lab::up("newlayout", 3, STACK, &["--layout", "docker-29.8"]).unwrap();
    lab.settled(&NODES).unwrap();
    run_some(&lab, ROWS, &HOST_ROWS);
}

/// The same on hosts without any rules of Docker's, whose distribution turns the strict reverse path filter on.
#[test]
fn mesh_rows_on_bare_hosts_with_strict_reverse_path() {
    let lab = Lab::up("bare", 3, STACK, &["--layout", "bare", "--rp-filter", "1"]).unwrap();
    lab.settled(&NODES).unwrap();
    // Not S3: without Docker's masquerade a task's packets do not come back from other nodes.
    run_some(&lab, ROWS, &HOST_ROWS[1..]);
}

const HOST_ROWS: [&str; 12] = ["S3 ", "S33", "S34", "S35", "E36", "K1", "S1 ", "E45", "S2 ", "E41", "S9", "S10"];
