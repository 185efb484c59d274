//! Names on an emulated swarm: real clients in real namespaces, the real agent, and a name server upstream that remembers what
//! it was asked.
//!
//! Rows `E…` are those of moby-semantics' conformance list; `N…` are our own promises. Rows that need no namespace are in
//! `dns/src/answer/tests.rs` and `dns/src/forward/tests.rs`, under the same names.
#![forbid(unsafe_code)]

mod hostile;
mod servers;

use std::{
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType, serialize::binary::BinEncodable};
use serde_json::Value;
use swarmesh_tests::{
    lab::Lab,
    names::{Upstream, addresses, ask, ask_on, ask_tcp, data, is_no_data, question},
    netns::within,
    patience::patient,
    rows::{Row, run},
};

const NODES: [&str; 2] = ["node1", "node2"];
const STACK: &str = r#"
version: "3.8"
services:
  web:
    image: example/web
    networks: {front: {aliases: [www, WWW2]}}
    ports: ["7200:80"]
    deploy: {replicas: 3}
  rr:
    image: example/rr
    networks: [front]
    deploy: {replicas: 2, endpoint_mode: dnsrr}
  both:
    image: example/both
    networks: [front, back]
    hostname: boat
    deploy: {replicas: 2}
  hidden:
    image: example/hidden
    networks: [back]
    deploy: {replicas: 1}
  inside:
    image: example/inside
    networks: [inner]
    deploy: {replicas: 1}
  nobody:
    image: example/nobody
    networks: [front]
    deploy: {replicas: 0}
  moving:
    image: example/moving
    networks: {front: {aliases: [old]}}
    deploy: {replicas: 3, update_config: {order: start-first, delay: 1s}}
networks:
  front: {attachable: true}
  back:
  inner: {internal: true, attachable: true}
"#;
/// client1's and client2's own addresses on the nodes' LAN.
const FIRST: [u8; 4] = [192, 0, 2, 101];
const SECOND: [u8; 4] = [192, 0, 2, 102];

struct Subject {
    lab: Lab,
    upstream: Upstream,
    second: Upstream,
}

impl Subject {
    fn up() -> Result<Self> {
        let lab = Lab::up("names", 2, STACK, &["--dns", "192.0.2.101", "--dns", "192.0.2.102"])?;
        let upstream = Upstream::start(&lab.namespace("client1"), FIRST.into())?;
        let second = Upstream::start(&lab.namespace("client2"), SECOND.into())?;
        lab.settled(&NODES)?;
        Ok(Self { lab, upstream, second })
    }

    /// The namespace of a service's first task.
    fn of(&self, service: &str) -> Result<PathBuf> {
        let task = self.lab.tasks(service)?.into_iter().next().with_context(|| format!("no task of {service}"))?;
        Ok(self.lab.task_namespace(&task))
    }

    fn all(&self, service: &str, network: &str) -> Result<Vec<String>> {
        let tasks = self.lab.tasks(service)?;
        let mut all: Vec<String> = tasks.iter().map(|t| Ok(self.lab.address(t, network)?.to_string())).collect::<Result<_>>()?;
        all.sort();
        Ok(all)
    }

    fn vip(&self, service: &str, network: &str) -> Result<Vec<String>> {
        Ok(vec![self.lab.vip(service, network)?.to_string()])
    }

    /// What both servers were asked meanwhile.
    fn leaked(&self) -> Vec<String> {
        [self.upstream.asked(), self.second.asked()].concat()
    }
}

fn name(task: &Value) -> &str {
    task["name"].as_str().unwrap_or_default()
}

const ROWS: &[Row<Subject>] = &[
    ("E1 E22 services, tasks, aliases: by A, in any case, with the network's name and without", |s| {
        let asker = s.of("web")?;
        let (vip, tasks) = (s.vip("web", "front")?, s.all("web", "front")?);
        for name in ["web", "t_web", "www", "WwW2", "WEB.", "web.t_front", "www.t_front"] {
            ensure!(addresses(&asker, name)? == vip, "{name}: {:?}", addresses(&asker, name)?);
        }
        for name in ["tasks.web", "tasks.t_web", "tasks.www", "tasks.web.t_front"] {
            ensure!(addresses(&asker, name)? == tasks, "{name}: {:?}", addresses(&asker, name)?);
        }
        ensure!(addresses(&asker, "rr")? == s.all("rr", "front")?, "dnsrr");
        ensure!(addresses(&asker, "tasks.rr")? == s.all("rr", "front")?, "tasks of dnsrr");
        let answer = ask(&asker, &question("wEb", RecordType::A, None)?)?;
        ensure!(answer.answers[0].name.to_string() == "wEb." && answer.answers[0].ttl == 5, "{answer:?}");
        ensure!(s.leaked().is_empty(), "asked upstream");
        Ok(())
    }),
    ("E17 a task is found by its name, its container's short id and its hostname", |s| {
        let asker = s.of("web")?;
        for task in s.lab.tasks("both")? {
            let own = vec![s.lab.address(&task, "front")?.to_string()];
            let container = task["container"].as_str().context("no container")?;
            ensure!(addresses(&asker, name(&task))? == own, "{}", name(&task));
            ensure!(addresses(&asker, &container[..12])? == own, "{container}");
        }
        ensure!(addresses(&asker, "boat")? == s.all("both", "front")?, "one hostname of two tasks");
        s.leaked();
        Ok(())
    }),
    ("E3 N1 no type of a name of ours is asked upstream", |s| {
        let asker = s.of("web")?;
        for kind in ["AAAA", "MX", "TXT", "HTTPS", "SVCB", "NS", "SOA", "CNAME", "CAA", "SRV"] {
            let answer = ask(&asker, &question("web", kind.parse()?, None)?)?;
            ensure!(is_no_data(&answer) && answer.metadata.authoritative, "{kind}: {answer:?}");
        }
        ensure!(s.leaked().is_empty(), "asked upstream");
        Ok(())
    }),
    ("E24 N2 a service without a task that serves is known and empty, by every type", |s| {
        let asker = s.of("web")?;
        for name in ["nobody", "tasks.nobody", "t_nobody", "nobody.t_front"] {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
                ensure!(is_no_data(&ask(&asker, &question(name, kind, None)?)?), "{name} {kind}");
            }
        }
        ensure!(s.leaked().is_empty(), "asked upstream");
        Ok(())
    }),
    ("E20 E21 a name is known in the networks of who asks, and nowhere else", |s| {
        let both = s.of("both")?;
        ensure!(addresses(&both, "hidden")? == s.vip("hidden", "back")?, "a member's other network");
        let (front, back) = (s.vip("both", "front")?, s.vip("both", "back")?);
        ensure!(addresses(&both, "both.t_front")? == front && addresses(&both, "both.t_back")? == back, "by network");
        ensure!([&front, &back].contains(&&addresses(&both, "both")?), "one network answers alone");
        s.leaked();
        let web = s.of("web")?;
        for name in ["hidden", "hidden.t_back", "both.t_back", "tasks.hidden"] {
            let answer = ask(&web, &question(name, RecordType::A, None)?)?;
            ensure!(answer.metadata.response_code == ResponseCode::NXDomain, "{name}: {answer:?}");
        }
        ensure!(s.leaked() == ["both.t_back.", "hidden.", "hidden.t_back.", "tasks.hidden."], "to a stranger they are any names");
        Ok(())
    }),
    ("N3 addresses have names: tasks' and VIPs'", |s| {
        let asker = s.of("web")?;
        let reverse = |address: &str| -> Result<String> {
            let octets: Vec<&str> = address.split('.').rev().collect();
            let answer = ask(&asker, &question(&format!("{}.in-addr.arpa.", octets.join(".")), RecordType::PTR, None)?)?;
            Ok(data(&answer).join(","))
        };
        ensure!(reverse(&s.vip("web", "front")?[0])? == "t_web.t_front.", "{}", reverse(&s.vip("web", "front")?[0])?);
        for task in s.lab.tasks("web")? {
            let address = s.lab.address(&task, "front")?.to_string();
            ensure!(reverse(&address)? == format!("{}.t_front.", name(&task)), "{}", reverse(&address)?);
        }
        Ok(())
    }),
    ("N4 SRV: ports and who listens", |s| {
        let asker = s.of("web")?;
        let srv = |name: &str| -> Result<Vec<String>> { Ok(data(&ask(&asker, &question(name, RecordType::SRV, Some(1400))?)?)) };
        ensure!(srv("_tcp.web")? == ["0 0 80 web.t_front."], "{:?}", srv("_tcp.web")?);
        let mut expected: Vec<String> = s.lab.tasks("web")?.iter().map(|t| format!("0 0 80 {}.t_front.", name(t))).collect();
        expected.sort();
        ensure!(srv("_tcp.tasks.web")? == expected, "{:?}", srv("_tcp.tasks.web")?);
        Ok(())
    }),
    ("E5 E6 other names are asked upstream, from the node, and a missing one is final", |s| {
        let asker = s.of("web")?;
        s.leaked();
        ensure!(addresses(&asker, "some.example")? == ["198.51.100.7"], "{:?}", addresses(&asker, "some.example")?);
        let answer = ask(&asker, &question("missing.org", RecordType::A, None)?)?;
        ensure!(answer.metadata.response_code == ResponseCode::NXDomain && answer.authorities.len() == 1, "{answer:?}");
        ensure!(s.upstream.asked() == ["missing.org.", "some.example."] && s.second.asked().is_empty(), "the first alone is asked");
        addresses(&asker, "SOME.example")?;
        ensure!(s.leaked().is_empty(), "the second time from the cache");
        Ok(())
    }),
    ("E11 CVE-2024-29018: a task in an internal network alone reaches no server outside", |s| {
        let inside = s.of("inside")?;
        s.leaked();
        ensure!(addresses(&inside, "inside")? == s.vip("inside", "inner")?, "its own names are there");
        for (name, kind) in [("leak.example", RecordType::A), ("leak.example", RecordType::TXT), ("data.leak.example", RecordType::AAAA)] {
            let answer = ask(&inside, &question(name, kind, None)?)?;
            ensure!(answer.metadata.response_code == ResponseCode::ServFail, "{name}: {answer:?}");
        }
        ensure!(s.leaked().is_empty(), "asked outside");
        Ok(())
    }),
    ("E13 a dead first server costs little at first and then nothing; names of ours wait for nobody", |s| {
        let asker = s.of("web")?;
        s.upstream.set_dead(true);
        let start = Instant::now();
        let outcome = within(&asker, move || -> Result<(Vec<Duration>, Vec<Duration>)> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect("127.0.0.11:53")?;
            let (mut local, mut forwarded) = (Vec::new(), Vec::new());
            for number in 0..400 {
                let asked = Instant::now();
                ask_on(&socket, &question(&format!("dead{number}.example"), RecordType::A, None)?.to_bytes()?)?;
                if start.elapsed() > Duration::from_millis(1200) {
                    forwarded.push(asked.elapsed());
                }
                let asked = Instant::now();
                ask_on(&socket, &question("web", RecordType::A, None)?.to_bytes()?)?;
                local.push(asked.elapsed());
            }
            Ok((local, forwarded))
        })?;
        s.upstream.set_dead(false);
        let (mut local, mut forwarded) = outcome?;
        local.sort();
        forwarded.sort();
        let at = |times: &[Duration]| times[times.len() * 99 / 100];
        ensure!(
            forwarded.len() > 100 && at(&forwarded) < Duration::from_millis(100),
            "{} forwarded, p99 {:?}",
            forwarded.len(),
            at(&forwarded)
        );
        ensure!(at(&local) < Duration::from_millis(20), "local p99 {:?}", at(&local));
        s.leaked();
        Ok(())
    }),
    ("E26 stuck questions upstream do not hold up names of ours, and end", |s| {
        let asker = s.of("web")?;
        s.upstream.set_dead(true);
        s.second.set_dead(true);
        let outcome = within(&asker, || -> Result<(usize, Duration)> {
            let flood = UdpSocket::bind("0.0.0.0:0")?;
            flood.connect("127.0.0.11:53")?;
            for number in 0..1500 {
                flood.send(&question(&format!("stuck{number}.example"), RecordType::A, None)?.to_bytes()?)?;
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect("127.0.0.11:53")?;
            let start = Instant::now();
            for _ in 0..20 {
                ask_on(&socket, &question("web", RecordType::A, None)?.to_bytes()?)?;
            }
            let took = start.elapsed();
            flood.set_read_timeout(Some(Duration::from_millis(200)))?;
            let mut refused = 0;
            let mut room = [0; 512];
            while let Ok(len) = flood.recv(&mut room) {
                refused += usize::from(len >= 12 && room[3] & 15 == 5);
            }
            Ok((refused, took))
        })?;
        s.upstream.set_dead(false);
        s.second.set_dead(false);
        let (refused, took) = outcome?;
        ensure!(took < Duration::from_millis(500), "twenty names of ours took {took:?}");
        // More answers than this do not fit into the socket of a client that reads none of them.
        ensure!(refused > 100, "{refused} were refused at once");
        // They are given up before the next row.
        std::thread::sleep(Duration::from_millis(4500));
        ensure!(addresses(&asker, "after.example")? == ["198.51.100.7"], "and afterwards all is well");
        s.leaked();
        Ok(())
    }),
    ("N5 the host's servers change while the agent runs", |s| {
        let asker = s.of("web")?;
        let write = |text: &str| -> Result<()> {
            for node in NODES {
                let path = PathBuf::from(format!("/run/swarmesh-lab/names/{node}/resolv.conf"));
                let next = path.with_extension("next");
                std::fs::write(&next, text)?;
                std::fs::rename(&next, &path)?;
            }
            Ok(())
        };
        s.leaked();
        write("nameserver 192.0.2.102\n")?;
        let mut number = 0;
        s.lab.wait("the new server is asked", || {
            number += 1;
            addresses(&asker, &format!("changed{number}.example"))?;
            s.upstream.asked();
            Ok(!s.second.asked().is_empty())
        })?;
        write("what is this\n")?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(addresses(&asker, "kept.example")? == ["198.51.100.7"], "a broken file changes nothing");
        write("nameserver 192.0.2.101\nnameserver 192.0.2.102\n")?;
        s.lab.wait("the first server is asked again", || {
            number += 1;
            addresses(&asker, &format!("back{number}.example"))?;
            Ok(!s.upstream.asked().is_empty())
        })
    }),
    ("N6 TCP: several questions on one connection, and answers that no datagram holds", |s| {
        let asker = s.of("web")?;
        let questions = [
            question("web", RecordType::A, None)?,
            question("tcp.example", RecordType::A, None)?,
            question("tasks.web", RecordType::A, None)?,
        ];
        let mut answers = ask_tcp(&asker, &questions)?;
        ensure!(answers.len() == 3, "{}", answers.len());
        answers.sort_by_key(|a| a.metadata.id);
        for asked in &questions {
            let answer = answers.iter().find(|a| a.metadata.id == asked.metadata.id).context("an answer is missing")?;
            ensure!(
                !answer.answers.is_empty()
                    && answer.queries[0].name().to_string().trim_end_matches('.') == asked.queries[0].name().to_string(),
                "{answer:?}"
            );
        }
        Ok(())
    }),
    ("N9 dig, getaddrinfo of glibc and Python, busybox", |s| {
        let task = s.lab.tasks("web")?.into_iter().next().context("no task")?;
        let vip = s.vip("web", "front")?.join("");
        for words in [
            &["dig", "+short", "web"][..],
            &["dig", "+short", "+tcp", "web"],
            &["getent", "ahostsv4", "web"],
            &["python3", "-c", "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('web', 80)}))"],
            &["busybox", "nslookup", "web"],
        ] {
            let printed = s.lab.run(name(&task), words)?;
            ensure!(printed.contains(&vip), "{words:?}: {printed}");
        }
        Ok(())
    }),
    ("N10 explain and names tell what is answered and why", |s| {
        let task = s.lab.tasks("web")?.into_iter().next().context("no task")?;
        let node = s.lab.node_name(task["node"].as_str().unwrap_or_default());
        let vip = s.vip("web", "front")?.join("");
        let explained = s.lab.swarmesh(&node, &["explain", &format!("dns://web?from={}", name(&task))])?;
        ensure!(explained.contains(&vip) && explained.contains("t_front"), "{explained}");
        let explained = s.lab.swarmesh(&node, &["explain", &format!("dns://other.example?from={}", name(&task))])?;
        ensure!(explained.contains("192.0.2.101 from the host"), "{explained}");
        let listed: Value = serde_json::from_str(&s.lab.swarmesh(&node, &["names", "--output", "json"])?)?;
        let row = listed
            .as_array()
            .into_iter()
            .flatten()
            .find(|r| r["name"] == "t_web" && r["kind"] == "service")
            .context("t_web is not listed")?;
        ensure!(row["addresses"][0] == vip.as_str(), "{row}");
        let (_, metrics) = s.lab.api(&node, "/metrics")?;
        ensure!(
            metrics.contains("swarmesh_dns_queries_total{outcome=\"records\"}") && metrics.contains("swarmesh_dns_local_seconds_bucket"),
            "{metrics}"
        );
        Ok(())
    }),
    ("E4 E18 N11 scaled, names follow at once, and never a wrong or a lost answer", |s| {
        let asker = s.of("web")?;
        let vip = s.vip("rr", "front").ok();
        ensure!(vip.is_none(), "dnsrr has no VIP");
        let known: Vec<String> = s.all("rr", "front")?;
        let (is_over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, counted) = (Arc::clone(&is_over), Arc::clone(&count));
        let web = s.vip("web", "front")?;
        let load = swarmesh_tests::netns::spawn_within(&asker, move || -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect("127.0.0.11:53")?;
            while !over.load(Ordering::Relaxed) {
                let answer = ask_on(&socket, &question("web", RecordType::A, None)?.to_bytes()?)?;
                ensure!(data(&answer) == web, "{answer:?}");
                let answer = ask_on(&socket, &question("rr", RecordType::A, None)?.to_bytes()?)?;
                ensure!(!answer.answers.is_empty(), "{answer:?}");
                counted.fetch_add(2, Ordering::Relaxed);
            }
            Ok(())
        })?;
        for replicas in [4, 1, 3, 2] {
            s.lab.lab(&["scale", &format!("t_rr={replicas}")])?;
            s.lab.wait("names follow", || {
                Ok(addresses(&asker, "rr")?.len() == replicas && addresses(&asker, "rr")? == s.all("rr", "front")?)
            })?;
        }
        is_over.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("the asker panicked"))??;
        ensure!(count.load(Ordering::Relaxed) > 1000, "{count:?} answers");
        ensure!(!known.is_empty(), "no task");
        s.leaked();
        Ok(())
    }),
    ("N12 an agent that is restarted loses no question that is asked again within a second", |s| {
        let task = s.lab.tasks("web")?.into_iter().next().context("no task")?;
        let (asker, node) = (s.lab.task_namespace(&task), s.lab.node_name(task["node"].as_str().unwrap_or_default()));
        let (is_over, vip) = (Arc::new(AtomicBool::new(false)), s.vip("web", "front")?);
        let load = {
            let is_over = Arc::clone(&is_over);
            swarmesh_tests::netns::spawn_within(&asker, move || -> Result<usize> {
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let first_asked = Instant::now();
                    // One that the old agent took along is asked again after a second; while nobody listens, it is refused at once.
                    let again = ["+short", "+time=1", "+tries=1", "web", "@127.0.0.11"];
                    while !String::from_utf8(Command::new("dig").args(again).output()?.stdout)?.lines().eq(&vip) {
                        ensure!(first_asked.elapsed() < patient(Duration::from_secs(2)), "no answer to the question after {count}");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    count += 1;
                }
                Ok(count)
            })?
        };
        let outcome = s.lab.restart_agents(&[&node]);
        is_over.store(true, Ordering::Relaxed);
        let count = load.join().map_err(|_| anyhow::anyhow!("the asker panicked"))??;
        ensure!(count > 1, "only {count} questions");
        outcome
    }),
];

#[test]
fn names_rows() {
    let subject = Subject::up().unwrap();
    run(&subject, &[ROWS, servers::ROWS, hostile::ROWS].concat());
}

/// Nothing of ours stays in a namespace when the agent has ended, however it ended.
#[test]
fn names_end_with_the_agent() {
    let lab = Lab::up("namesend", 1, STACK, &[]).unwrap();
    lab.settled(&["node1"]).unwrap();
    let task = lab.tasks("web").unwrap().remove(0);
    let namespace = lab.task_namespace(&task);
    let tables = |namespace: &PathBuf| {
        let output = within(namespace, || Command::new("nft").args(["list", "tables"]).output()).unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(tables(&namespace).contains("swarmesh_names"));
    assert!(addresses(&namespace, "web").is_ok());
    for how in ["kill", "stop"] {
        lab.lab(&["agent", "node1", how]).unwrap();
        lab.wait("the redirect is gone", || Ok(!tables(&namespace).contains("swarmesh_names"))).unwrap();
        assert!(tables(&namespace).contains("inet swarmesh"), "VIPs stay");
        // Until its end was noticed, it counts as running.
        lab.wait("the agent starts again", || Ok(lab.lab(&["agent", "node1", "start"]).is_ok())).unwrap();
        lab.settled(&["node1"]).unwrap();
        assert!(addresses(&namespace, "web").is_ok());
    }
    let _: IpAddr = lab.vip("web", "front").unwrap();
}
