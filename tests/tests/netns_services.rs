//! Services, networks and ports that come, go, fail and take each other's place: who is served, and what names say meanwhile.
//!
//! The rows run in order and each leaves the swarm as it found it.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use serde_json::Value;
use swarmesh_tests::{
    lab::{Held, Knock, Lab, ask, ask_udp, get_in, knock_tcp, knock_tcp_for, spread_in, udp_socket},
    load::field,
    names::{self, Upstream, addresses, question},
    netns::{generation, within},
    patience::{patient, silence},
    rows::{Row, run},
};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const STACK: &str = r#"
version: "3.8"
services:
  caller:
    image: example/caller
    networks: [back, front]
    deploy: {mode: global, update_config: {parallelism: 0}}
  web:
    image: example/web
    environment: {WHOAMI_TCP: "80", WHOAMI_UDP: "53"}
    ports: ["8100:80", "8100:53/udp"]
    networks: [back]
    deploy: {replicas: 3, update_config: {order: start-first, parallelism: 3}}
  near:
    image: example/near
    environment: {WHOAMI_LINGER: "STAYS"}
    ports: ["8101:80"]
    stop_grace_period: 60s
    deploy: {replicas: 1, labels: {swarmesh.source: local}}
  brittle:
    image: example/brittle
    environment: {WHOAMI_TCP: "80", WHOAMI_UDP: "53"}
    ports: ["8102:80", "8102:53/udp"]
    networks: [back]
    deploy: {replicas: 2, restart_policy: {condition: none}}
  nobody:
    image: example/nobody
    environment: {WHOAMI_UDP: "53"}
    ports: ["8103:53/udp"]
    networks: [back]
    deploy: {replicas: 0}
  deaf:
    image: example/deaf
    environment: {WHOAMI_UDP: "53"}
    ports: ["8104:99/udp"]
    networks: [back]
    deploy: {replicas: 1}
  two:
    image: example/two
    ports: ["8105:80"]
    deploy: {replicas: 1, labels: {swarmesh.bind: "192.0.2.11, 192.0.2.12, 203.0.113.5"}}
  six:
    image: example/six
    networks: [back]
    healthcheck: {test: [CMD, "true"], interval: 500ms}
    deploy: {replicas: 2, labels: {swarmesh.drain: "30"}, update_config: {parallelism: 0}}
networks:
  back: {attachable: true}
  front:
"#;

/// What tasks take to leave or to come, if others are to see them at it.
fn seconds(on_an_ordinary_machine: u64) -> String {
    silence(Duration::from_secs(on_an_ordinary_machine)).as_secs().to_string()
}

fn stack() -> String {
    STACK.replace("STAYS", &seconds(4))
}

fn node_address(index: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(index).unwrap_or(0)])
}

fn on_node(index: usize, port: u16) -> SocketAddr {
    SocketAddr::new(node_address(index), port)
}

struct Subject {
    lab: Lab,
    _upstream: Upstream,
}

impl Subject {
    fn up() -> Result<Self> {
        let lab = Lab::up("services", 3, &stack(), &["--dns", "192.0.2.101", "--restart-delay", "0.5", "--convergence-delay", "0.5"])?;
        let upstream = Upstream::start(&lab.namespace("client1"), [192, 0, 2, 101].into())?;
        lab.settled(&NODES)?;
        Ok(Self { lab, _upstream: upstream })
    }

    /// The namespace of a caller, which is in both networks.
    fn caller(&self) -> Result<PathBuf> {
        let task = self.lab.tasks("caller")?.into_iter().next().context("no caller")?;
        Ok(self.lab.task_namespace(&task))
    }

    fn client(&self) -> PathBuf {
        self.lab.namespace("client1")
    }

    /// Deploys the stack with more services (indented, in YAML), and waits until the agents have it.
    fn with(&self, services: &str) -> Result<()> {
        self.deploy(&stack().replace("networks:\n  back: {att", &format!("{services}networks:\n  back: {{att")))
    }

    fn deploy(&self, stack: &str) -> Result<()> {
        self.lab.deploy(stack)?;
        self.lab.lab(&["wait", "--timeout", &patient(Duration::from_secs(30)).as_secs().to_string()])?;
        self.lab.settled(&NODES)
    }

    fn restore(&self) -> Result<()> {
        self.deploy(&stack())?;
        self.lab.wait("nothing else is left", || Ok(self.lab.snapshot()?["services"].as_array().map_or(0, Vec::len) == 8))?;
        self.lab.settled(&NODES)
    }

    /// Nobody here knows the name, and nobody outside.
    fn is_unknown(&self, asker: &std::path::Path, name: &str) -> Result<bool> {
        Ok(names::ask(asker, &question(name, RecordType::A, None)?)?.metadata.response_code == ResponseCode::NXDomain)
    }

    fn in_back(&self, tasks: &[Value]) -> Result<Vec<String>> {
        let mut all: Vec<String> = tasks.iter().map(|t| Ok(self.lab.address(t, "back")?.to_string())).collect::<Result<_>>()?;
        all.sort();
        Ok(all)
    }

    /// Tells the agents what the emulator's swarm would not do by itself; they take it for the source's word.
    fn tell(&self, change: impl Fn(&mut Value)) -> Result<()> {
        let mut snapshot = self.lab.snapshot()?;
        change(&mut snapshot);
        let path = "/run/swarmesh-lab/services/snapshot.json";
        std::fs::write(format!("{path}.new"), snapshot.to_string())?;
        Ok(std::fs::rename(format!("{path}.new"), path)?)
    }
}

fn name(task: &Value) -> &str {
    task["name"].as_str().unwrap_or_default()
}

const ROWS: &[Row<Subject>] = &[
    ("K1 K18 by name: from every node a service is found, and answers by TCP and UDP", |s| {
        for task in s.lab.tasks("caller")? {
            let answer = s.lab.run(name(&task), &["curl", "--silent", "--show-error", "--max-time", "5", "http://web/"])?;
            ensure!(field(&answer, "task").is_some_and(|t| t.starts_with("t_web.")), "{}: {answer}", name(&task));
            let namespace = s.lab.task_namespace(&task);
            let found = addresses(&namespace, "web")?;
            ensure!(found == [s.lab.vip("web", "back")?.to_string()], "{}: {found:?}", name(&task));
            ensure!(ask_udp(&namespace, format!("{}:53", found[0]).parse()?, "x")?.is_ok(), "{}: UDP", name(&task));
        }
        Ok(())
    }),
    ("K5 failed tasks: refused at once, by VIP and by port, TCP and UDP", |s| {
        let (vip, caller) = (s.lab.vip("brittle", "back")?, s.caller()?);
        let places = [(s.client(), on_node(1, 8102), on_node(1, 8102)), (caller, SocketAddr::new(vip, 80), SocketAddr::new(vip, 53))];
        for (namespace, tcp, udp) in &places {
            ensure!(knock_tcp(namespace, *tcp)? == Knock::Open && ask_udp(namespace, *udp, "x")?.is_ok(), "before: {tcp}");
        }
        for task in s.lab.tasks("brittle")? {
            s.lab.lab(&["kill", name(&task)])?;
        }
        s.lab.wait("both have failed", || Ok(s.lab.tasks("brittle")?.is_empty()))?;
        s.lab.settled(&NODES)?;
        for (namespace, tcp, udp) in &places {
            let start = Instant::now();
            let (knock, answer) = (knock_tcp(namespace, *tcp)?, ask_udp(namespace, *udp, "x")?);
            ensure!(knock == Knock::Refused && answer == Err(Knock::Refused), "{tcp}: {knock:?}, {udp}: {answer:?}");
            ensure!(start.elapsed() < patient(Duration::from_secs(1)), "refused after {:?}", start.elapsed());
        }
        ensure!(s.lab.api("node2", "/v1/health/published/tcp/8102")?.0 == 503, "health of a port whose tasks have failed");
        s.lab.lab(&["scale", "t_brittle=0"])?;
        s.restore_scale("brittle", 2)?;
        ensure!(places.iter().all(|(from, tcp, _)| knock_tcp(from, *tcp).is_ok_and(|k| k == Knock::Open)), "not back with the tasks");
        Ok(())
    }),
    ("K9 source=local: a last task that leaves still serves on its node, and on no other; health says 503", |s| {
        let task = s.lab.tasks("near")?.into_iter().next().context("no task")?;
        let home = s.lab.node_name(task["node"].as_str().unwrap_or_default());
        s.lab.lab(&["scale", "t_near=0"])?;
        s.lab.wait("it is leaving", || Ok(s.lab.tasks("near")?.is_empty()))?;
        s.lab.settled(&NODES)?;
        let knocks: Vec<Knock> = (0..3).map(|i| knock_tcp(&s.client(), on_node(i, 8101))).collect::<Result<_>>()?;
        let health = s.lab.api(&home, "/v1/health/published/tcp/8101")?.0;
        ensure!(!s.lab.all_tasks("near")?.is_empty(), "the task is gone too early for this row");
        for (node, knock) in NODES.iter().zip(&knocks) {
            ensure!((*knock == Knock::Open) == (*node == home) && *knock != Knock::Silent, "{node}, home is {home}: {knock:?}");
        }
        ensure!(health == 503, "health of a node whose only task leaves: {health}");
        s.lab.wait("it is gone", || Ok(s.lab.all_tasks("near")?.is_empty()))?;
        s.lab.settled(&NODES)?;
        for index in 0..3 {
            ensure!(knock_tcp(&s.client(), on_node(index, 8101))? == Knock::Refused, "node {} in the end", index + 1);
        }
        s.restore_scale("near", 1)
    }),
    ("K11 a UDP flow that met no task finds the first one, by VIP and by port", |s| {
        let vip = SocketAddr::new(s.lab.vip("nobody", "back")?, 53);
        let mut sockets = Vec::new();
        for (namespace, target) in [(s.caller()?, vip), (s.client(), on_node(0, 8103)), (s.client(), on_node(1, 8103))] {
            sockets.push((target, within(&namespace, move || udp_socket(target))??));
        }
        for (target, socket) in &sockets {
            ensure!(ask(socket, "early")? == Err(Knock::Refused), "{target} without a task");
        }
        s.lab.lab(&["scale", "t_nobody=1"])?;
        for (target, socket) in &sockets {
            s.lab.wait(&format!("the flow to {target} finds the task"), || Ok(ask(socket, "late")?.is_ok()))?;
        }
        s.lab.lab(&["scale", "t_nobody=0"])?;
        s.lab.wait("it is gone", || Ok(s.lab.all_tasks("nobody")?.is_empty()))
    }),
    ("K11 a UDP flow that never pauses moves on when its task goes, too", |s| {
        let vip = SocketAddr::new(s.lab.vip("web", "back")?, 53);
        for (namespace, target) in [(s.caller()?, vip), (s.client(), on_node(0, 8100))] {
            let socket = within(&namespace, move || udp_socket(target))??;
            let Ok(answer) = ask(&socket, "x")? else { bail!("no answer from {target}") };
            let task = answer.split_whitespace().next().unwrap_or_default().to_owned();
            s.lab.lab(&["kill", &task])?;
            socket.set_nonblocking(true)?;
            let (start, mut moved, mut buffer) = (Instant::now(), 0, [0; 2048]);
            while moved < 20 {
                // Refusals come back as errors of either call; what counts is who answers.
                let _ = socket.send(b"x");
                if let Ok(length) = socket.recv(&mut buffer) {
                    moved += u32::from(!String::from_utf8_lossy(&buffer[..length]).starts_with(&task));
                }
                ensure!(start.elapsed() < patient(Duration::from_secs(10)), "the flow to {target} still goes to {task}");
                std::thread::sleep(Duration::from_micros(200));
            }
            s.lab.wait("three tasks again", || Ok(s.lab.tasks("web")?.len() == 3))?;
        }
        s.lab.settled(&NODES)
    }),
    ("K12 a task's ICMP errors reach the client, by VIP and by port", |s| {
        ensure!(s.lab.tasks("deaf")?.len() == 1, "without a task, the mesh itself would refuse");
        let vip = SocketAddr::new(s.lab.vip("deaf", "back")?, 99);
        let caller = s.caller()?;
        for (namespace, target) in [(&caller, vip), (&s.client(), on_node(0, 8104)), (&s.client(), on_node(1, 8104))] {
            let answer = ask_udp(namespace, target, "x")?;
            ensure!(answer == Err(Knock::Refused), "nobody listens behind {target}: {answer:?}");
        }
        Ok(())
    }),
    ("K13 E34 a service that is made again is served, under its VIP of now; its names go and come with it", |s| {
        let (old, caller) = (s.lab.vip("web", "back")?, s.caller()?);
        let without = stack().replace("\n  web:\n", "\n  was:\n").replace("image: example/web", "image: example/was");
        let cut = without.find("  was:\n").zip(without.find("  near:\n")).map(|(a, b)| [&without[..a], &without[b..]].concat());
        s.deploy(&cut.context("no such service in the stack")?)?;
        s.lab.wait("its tasks are gone", || Ok(s.lab.service(&s.lab.snapshot()?, "web").is_err()))?;
        s.lab.settled(&NODES)?;
        ensure!(s.is_unknown(&caller, "web")? && s.is_unknown(&caller, "tasks.web")?, "its names are still there");
        ensure!(knock_tcp(&s.client(), on_node(0, 8100))? == Knock::Refused, "its port still answers");
        ensure!(knock_tcp_for(&caller, SocketAddr::new(old, 80), Duration::from_millis(500))? != Knock::Open, "its VIP still answers");
        s.restore()?;
        let new = s.lab.vip("web", "back")?;
        ensure!(addresses(&caller, "web")? == [new.to_string()], "{new}: {:?}", addresses(&caller, "web")?);
        let spread = spread_in(&caller, SocketAddr::new(new, 80), 6)?;
        ensure!(spread.len() == 3, "by its VIP {new} (it was {old}): {spread:?}");
        ensure!(s.lab.spread("client1", on_node(0, 8100), 6)?.len() == 3, "by its port");
        Ok(())
    }),
    ("K14 many services up and down: each answers by port, VIP and name; nothing of them stays", |s| {
        const COUNT: u16 = 20;
        let caller = s.caller()?;
        let places = || -> Result<Vec<usize>> {
            let places = [s.lab.namespace("node1"), s.lab.ingress_namespace("node1"), s.caller()?];
            places.iter().map(|p| Ok(generation(p)?.split([',', '\n']).count())).collect()
        };
        let before = places()?;
        let many: String = (0..COUNT)
            .map(|n| {
                let mode = if n % 5 == 4 { "dnsrr" } else { "vip" };
                let ports = if n % 5 == 4 { String::new() } else { format!("    ports: ['{}:80']\n", 8200 + n) };
                format!("  m{n}:\n    image: x\n    networks: [back]\n{ports}    deploy: {{replicas: 1, endpoint_mode: {mode}}}\n")
            })
            .collect();
        s.with(&many)?;
        for n in 0..COUNT {
            let found = addresses(&caller, &format!("m{n}"))?;
            ensure!(found.len() == 1, "m{n}: {found:?}");
            let answer = get_in(&caller, format!("{}:80", found[0]).parse()?)?;
            ensure!(field(&answer, "task").is_some_and(|t| t.starts_with(&format!("t_m{n}."))), "m{n} by name: {answer}");
            if n % 5 != 4 {
                ensure!(s.lab.get("client1", on_node(usize::from(n % 3), 8200 + n)).is_ok(), "m{n} by port");
            }
        }
        s.restore()?;
        for n in 0..COUNT {
            ensure!(s.is_unknown(&caller, &format!("m{n}"))?, "m{n} is still known");
            ensure!(knock_tcp(&s.client(), on_node(usize::from(n % 3), 8200 + n))? == Knock::Refused, "{}", 8200 + n);
        }
        let after = places()?;
        // Unused classes of the balancer go with the audit; what is per service is many times more.
        ensure!(before.iter().zip(&after).all(|(b, a)| *a < b + usize::from(COUNT)), "words of rules before {before:?}, after {after:?}");
        Ok(())
    }),
    ("K15 one port on two addresses; addresses that are not the node's are not answered, until they are", |s| {
        for (index, expected) in [Knock::Open, Knock::Open, Knock::Refused].into_iter().enumerate() {
            let knock = knock_tcp(&s.client(), on_node(index, 8105))?;
            ensure!(knock == expected, "node {}: {knock:?}", index + 1);
        }
        s.lab.run("client1", &["ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.13"])?;
        let knock = |port| knock_tcp_for(&s.client(), SocketAddr::new([203, 0, 113, 5].into(), port), Duration::from_millis(500));
        let foreign = [knock(8100), knock(8105)];
        // A node that is asked twice for what is not its own may tell the client of another way.
        s.lab.run("client1", &["ip", "route", "flush", "cache"])?;
        s.lab.run("node3", &["ip", "addr", "add", "203.0.113.5/32", "dev", "lo"])?;
        let own = [knock(8100), knock(8105)];
        s.lab.run("node3", &["ip", "addr", "del", "203.0.113.5/32", "dev", "lo"])?;
        s.lab.run("client1", &["ip", "route", "del", "203.0.113.0/24"])?;
        for outcome in foreign {
            let outcome = outcome?;
            ensure!(outcome != Knock::Open, "an address that is nobody's: {outcome:?}");
        }
        for outcome in own {
            let outcome = outcome?;
            ensure!(outcome == Knock::Open, "now it is the node's: {outcome:?}");
        }
        Ok(())
    }),
    ("K15 ports out of range are refused, and nothing changes", |s| {
        for ports in ["70000:80", "80:65536", "0:99999"] {
            let broken = format!("services:\n  a: {{image: x, ports: ['{ports}']}}\n");
            ensure!(s.lab.deploy(&broken).is_err(), "{ports} was deployed");
        }
        ensure!(s.lab.get("client1", on_node(0, 8100)).is_ok(), "the refused stack changed something");
        Ok(())
    }),
    ("E28 an endpoint that is disabled gets nothing new and loses its name, and is back when it is enabled", |s| {
        let (caller, vip) = (s.caller()?, SocketAddr::new(s.lab.vip("six", "back")?, 80));
        let tasks = s.lab.tasks("six")?;
        let [stays, goes] = &tasks[..] else { bail!("{} tasks", tasks.len()) };
        let mut held = Vec::new();
        while !held.iter().any(|h: &Held| h.task() == name(goes)) {
            ensure!(held.len() < 4, "{} is never met", name(goes));
            held.push(Held::open(&caller, vip)?);
        }
        let rules = [generation(&caller)?, generation(&s.lab.task_namespace(stays))?];
        s.tell(|_| {})?;
        let goes_id = &goes["id"];
        s.tell(|snapshot| {
            let all = snapshot["tasks"].as_array_mut().into_iter().flatten();
            all.filter(|t| t["id"] == *goes_id).for_each(|t| t["healthy"] = false.into());
        })?;
        s.lab.wait("its name has gone", || Ok(addresses(&caller, "tasks.six")? == s.in_back(std::slice::from_ref(stays))?))?;
        s.lab.wait("it gets nothing new", || Ok(spread_in(&caller, vip, 4)?.keys().eq([name(stays)])))?;
        for connection in &mut held {
            connection.talk().context("a connection to a disabled endpoint was cut")?;
        }
        s.tell(|snapshot| {
            let all = snapshot["tasks"].as_array_mut().into_iter().flatten();
            all.filter(|t| t["id"] == *goes_id).for_each(|t| t["healthy"] = true.into());
        })?;
        s.lab.wait("its name is back", || Ok(addresses(&caller, "tasks.six")? == s.in_back(&tasks)?))?;
        s.lab.wait("it has its turns again", || Ok(spread_in(&caller, vip, 4)?.values().all(|n| *n == 2)))?;
        let now = [generation(&caller)?, generation(&s.lab.task_namespace(stays))?];
        let chains = |listed: &str| listed.lines().filter(|l| l.contains("chain")).map(str::to_owned).collect::<Vec<_>>();
        for (before, after) in rules.iter().zip(&now) {
            let (before, after) = (chains(before), chains(after));
            // One more is none made anew: on ipvs, a task's own share is larger for a while.
            let gone: Vec<_> = before.iter().filter(|chain| !after.contains(chain)).collect();
            ensure!(gone.is_empty(), "chains were made anew for one endpoint: {gone:?}");
        }
        Ok(())
    }),
    ("E28 a container takes a service's name and gives it back: the old kind is gone first", |s| {
        let caller = s.caller()?;
        let container = || -> Result<()> {
            s.lab.lab(&["run", "swap", "--network", "t_back", "--alias", "t_swap"])?;
            s.lab.settled(&NODES)
        };
        container()?;
        let first = addresses(&caller, "swap")?;
        ensure!(first.len() == 1 && get_in(&caller, format!("{}:80", first[0]).parse()?).is_ok(), "the container: {first:?}");
        s.lab.lab(&["rm", "swap"])?;
        s.with("  swap:\n    image: x\n    networks: [back]\n    deploy: {replicas: 2}\n")?;
        let vip = s.lab.vip("swap", "back")?;
        let found = addresses(&caller, "swap")?;
        ensure!(found == [vip.to_string()] && found != first, "the service has {vip}: {found:?}");
        ensure!(spread_in(&caller, SocketAddr::new(vip, 80), 4)?.len() == 2, "by its VIP");
        s.restore()?;
        container()?;
        let last = addresses(&caller, "swap")?;
        ensure!(last.len() == 1 && last != found, "the container again: {last:?}");
        ensure!(addresses(&caller, "t_swap")? == last, "the service's full name: {:?}", addresses(&caller, "t_swap")?);
        ensure!(knock_tcp_for(&caller, SocketAddr::new(vip, 80), Duration::from_millis(500))? != Knock::Open, "the VIP is served on");
        s.lab.lab(&["rm", "swap"])?;
        s.restore()?;
        ensure!(s.is_unknown(&caller, "swap")?, "the container's name is left");
        Ok(())
    }),
    ("E29 names: a task is found when it is healthy, not before", |s| {
        let caller = s.caller()?;
        let late = r#"  late:
    image: example/late
    environment: {WHOAMI_READY_AFTER: "LATER"}
    networks: [back]
    healthcheck: {test: [CMD, curl, -sf, "http://127.0.0.1:80/health"], interval: 300ms, retries: 200, start_period: 1s}
    deploy: {replicas: 1}
"#
        .replace("LATER", &seconds(3));
        s.lab.deploy(&stack().replace("networks:\n  back: {att", &format!("{late}networks:\n  back: {{att")))?;
        s.lab.wait("it is starting", || Ok(s.lab.all_tasks("late")?.iter().any(|t| t["state"] == "starting")))?;
        s.lab.settled(&NODES)?;
        for name in ["tasks.late", "late"] {
            let early = names::ask(&caller, &question(name, RecordType::A, None)?)?;
            ensure!(early.answers.is_empty(), "{name} of a starting task: {early:?}");
        }
        s.lab.wait("it is healthy", || Ok(s.lab.tasks("late")?.len() == 1))?;
        s.lab.settled(&NODES)?;
        let own = s.in_back(&s.lab.tasks("late")?)?;
        ensure!(addresses(&caller, "tasks.late")? == own, "{:?}", addresses(&caller, "tasks.late")?);
        s.restore()
    }),
    ("E32 names: from vip to dnsrr, the name leads to the tasks alone; and back", |s| {
        let caller = s.caller()?;
        let vip = s.lab.vip("six", "back")?;
        s.deploy(&stack().replace("{replicas: 2, labels: {swarmesh.drain", "{replicas: 2, endpoint_mode: dnsrr, labels: {swarmesh.drain"))?;
        s.lab.wait("it has two tasks and no VIP", || Ok(s.lab.vip("six", "back").is_err() && s.lab.all_tasks("six")?.len() == 2))?;
        s.lab.settled(&NODES)?;
        let (found, tasks) = (addresses(&caller, "six")?, s.in_back(&s.lab.tasks("six")?)?);
        ensure!(found == tasks && !found.contains(&vip.to_string()), "the VIP was {vip}, the tasks are {tasks:?}: {found:?}");
        s.restore()?;
        let vip = s.lab.vip("six", "back")?;
        ensure!(addresses(&caller, "six")? == [vip.to_string()], "back: {:?}", addresses(&caller, "six")?);
        Ok(())
    }),
    ("E34 a removed network's names go, those of others stay", |s| {
        let gone = stack().replace("networks: [back]\n    deploy: {replicas: 3", "networks: [back, side]\n    deploy: {replicas: 3");
        let gone = gone.replace("  front:\n", "  front:\n  side:\n").replace("networks: [back, front]", "networks: [back, front, side]");
        s.deploy(&gone)?;
        let caller = s.caller()?;
        let (side, back) = (s.lab.vip("web", "side")?, s.lab.vip("web", "back")?);
        ensure!(addresses(&caller, "web.t_side")? == [side.to_string()], "{:?}", addresses(&caller, "web.t_side")?);
        ensure!(addresses(&caller, "web.t_back")? == [back.to_string()], "{:?}", addresses(&caller, "web.t_back")?);
        s.restore()?;
        let caller = s.caller()?;
        for name in ["web.t_side", "tasks.web.t_side"] {
            ensure!(s.is_unknown(&caller, name)?, "{name} is left");
        }
        let back = s.lab.vip("web", "back")?;
        for name in ["web", "web.t_back"] {
            ensure!(addresses(&caller, name)? == [back.to_string()], "{name}: {:?}", addresses(&caller, name)?);
        }
        Ok(())
    }),
    ("E38 a port that one service gives up, another can have", |s| {
        let ports = |service: &str, ports: &str| format!("  {service}:\n    image: x\n    ports: [{ports}]\n    deploy: {{replicas: 1}}\n");
        let who = |port| Ok::<_, anyhow::Error>(field(&s.lab.get("client1", on_node(2, port))?, "task").unwrap_or_default());
        s.with(&ports("one", "'8110:80', '8111:80'"))?;
        ensure!(who(8110)?.starts_with("t_one.") && who(8111)?.starts_with("t_one."), "both of the first's");
        ensure!(s.with(&[ports("one", "'8110:80', '8111:80'"), ports("other", "'8111:80'")].concat()).is_err(), "8111 was given twice");
        s.with(&[ports("one", "'8110:80'"), ports("other", "'8111:80'")].concat())?;
        ensure!(who(8110)?.starts_with("t_one.") && who(8111)?.starts_with("t_other."), "one each: {}, {}", who(8110)?, who(8111)?);
        s.restore()?;
        s.with(&ports("third", "'8110:80', '8111:80'"))?;
        ensure!(who(8110)?.starts_with("t_third.") && who(8111)?.starts_with("t_third."), "both of another's");
        s.restore()
    }),
    ("E39 a port that somebody listens on already is published all the same, and goes on when he has gone", |s| {
        let listener = within(&s.lab.namespace("node1"), || TcpListener::bind("0.0.0.0:8112"))??;
        s.with("  late:\n    image: x\n    ports: ['8112:80']\n    deploy: {replicas: 1}\n")?;
        let during = s.lab.get("client1", on_node(0, 8112));
        drop(listener);
        ensure!(during.is_ok(), "while he listens: {during:?}");
        ensure!(s.lab.get("client1", on_node(0, 8112)).is_ok(), "afterwards");
        s.restore()?;
        ensure!(knock_tcp(&s.client(), on_node(0, 8112))? == Knock::Refused, "it is left open");
        Ok(())
    }),
    ("E42 of two networks that say they are the ingress one, ports go by one, and the agent goes on", |s| {
        let before = s.lab.spread("client1", on_node(0, 8100), 6)?;
        s.tell(|snapshot| {
            let networks = snapshot["networks"].as_array_mut().into_iter().flatten();
            networks.filter(|n| n["name"] == "t_front").for_each(|n| n["ingress"] = true.into());
        })?;
        std::thread::sleep(patient(Duration::from_secs(1)));
        let during = s.lab.spread("client1", on_node(0, 8100), 6);
        s.tell(|snapshot| {
            let networks = snapshot["networks"].as_array_mut().into_iter().flatten();
            networks.filter(|n| n["name"] == "t_front").for_each(|n| n["ingress"] = false.into());
        })?;
        s.lab.wait("all is as before", || Ok(s.lab.spread("client1", on_node(0, 8100), 6)?.len() == before.len()))?;
        ensure!(during.as_ref().is_ok_and(|d| d.len() == before.len()), "with two: {during:?}");
        Ok(())
    }),
];

impl Subject {
    fn restore_scale(&self, service: &str, count: usize) -> Result<()> {
        self.lab.lab(&["scale", &format!("t_{service}={count}")])?;
        self.lab.wait("it is back", || Ok(self.lab.tasks(service)?.len() == count))?;
        self.lab.settled(&NODES)
    }
}

#[test]
fn services_rows() {
    run(&Subject::up().unwrap(), ROWS);
}
