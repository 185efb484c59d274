//! What changes while traffic runs: updates, scaling, failures, and the agent's own death, on a three-node emulated swarm.
//!
//! The rows run in order and each leaves the swarm as it found it.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_tests::{
    lab::{Held, Knock, Lab, ask, ask_udp, knock_tcp, spread_in, udp_socket},
    load::{Load, Outcome},
    netns::within,
    patience::{patient, silence},
    rows::{Row, run},
};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const STACK: &str = r#"
version: "3.8"
services:
  web:
    image: example/web
    environment: {WHOAMI_TCP: "80", WHOAMI_UDP: "53", WHOAMI_LINGER: "MOMENT"}
    ports: ["8000:80", "8000:53/udp"]
    networks: [back]
    stop_grace_period: 60s
    healthcheck: {test: [CMD, curl, -sf, "http://127.0.0.1:80/health"], interval: PULSEms, retries: 20}
    deploy:
      replicas: 6
      update_config: {order: start-first, parallelism: 2, delay: 500ms}
      labels: {swarmesh.drain: "10"}
  single:
    image: example/single
    environment: {WHOAMI_LINGER: "MOMENT"}
    networks: [back]
    stop_grace_period: 60s
    deploy:
      replicas: 1
      update_config: {order: start-first}
  caller:
    image: example/caller
    networks: [back]
    deploy: {replicas: 1}
  short:
    image: example/short
    environment: {WHOAMI_LINGER: "LONGER"}
    ports: ["8001:80"]
    stop_grace_period: 120s
    deploy: {replicas: 2, labels: {swarmesh.drain: "SHORT"}}
networks:
  back:
"#;

/// Seconds that are short, and yet time enough to look twice: three on an ordinary machine.
fn short() -> u64 {
    patient(Duration::from_secs(3)).as_secs()
}

/// Seconds for which a task outlasts a short drain.
fn longer() -> u64 {
    short() + silence(Duration::from_secs(12)).as_secs()
}

/// With so long to stop, tasks outlast the news of it: a second on an ordinary machine, beside Docker's two before the signal.
fn moment() -> u64 {
    patient(Duration::from_secs(1)).as_secs()
}

/// Milliseconds between two checks. A check is a program that is started: six tasks' checks twice a second would be all that an
/// emulated machine does.
fn pulse() -> u128 {
    silence(Duration::from_millis(500)).as_millis()
}

fn stack() -> String {
    let stack = STACK.replace("SHORT", &short().to_string()).replace("LONGER", &longer().to_string());
    stack.replace("MOMENT", &moment().to_string()).replace("PULSE", &pulse().to_string())
}

fn node_address(index: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(index).unwrap_or(0)])
}

fn published(port: u16) -> Vec<SocketAddr> {
    (0..3).map(|i| SocketAddr::new(node_address(i), port)).collect()
}

/// Two clients, 100 new connections a second in all, through every node.
struct Clients(Load, Load);

impl Clients {
    fn start(lab: &Lab) -> Result<Self> {
        Ok(Self(Load::start(&lab.namespace("client1"), published(8000), 50)?, Load::start(&lab.namespace("client2"), published(8000), 50)?))
    }

    /// Ends the load; nothing may have failed.
    fn stop(self) -> Result<Outcome> {
        let (mut first, second) = (self.0.stop(), self.1.stop());
        first.attempted += second.attempted;
        first.failed += second.failed;
        first.failures.extend(second.failures);
        ensure!(first.attempted > 100, "only {} connections were tried", first.attempted);
        ensure!(first.failed == 0, "{} of {} connections failed: {:?}", first.failed, first.attempted, first.failures);
        for (task, count) in second.tasks {
            *first.tasks.entry(task).or_default() += count;
        }
        Ok(first)
    }
}

fn wait_for_tasks(lab: &Lab, service: &str, count: usize) -> Result<()> {
    lab.wait(&format!("{service} has {count} tasks and no other"), || {
        Ok(lab.tasks(service)?.len() == count && lab.all_tasks(service)?.len() == count)
    })
}

const ROWS: &[Row<Lab>] = &[
    ("S20 rolling update of 6 tasks under load, start-first: 0 failed", |lab| {
        let before: Vec<_> = lab.tasks("web")?.iter().map(|t| t["id"].clone()).collect();
        let clients = Clients::start(lab)?;
        lab.lab(&["update", "t_web", "--force"])?;
        lab.wait("all six are replaced", || {
            let now = lab.all_tasks("web")?;
            Ok(now.len() == 6 && lab.tasks("web")?.len() == 6 && now.iter().all(|t| !before.contains(&t["id"])))
        })?;
        sleep(Duration::from_millis(500));
        clients.stop().map(drop)
    }),
    ("S21 scale 6 to 2 to 6 under load: 0 failed, established connections finish", |lab| {
        let mut held = Vec::new();
        for index in 0..12 {
            held.push(Held::open(&lab.namespace("client1"), SocketAddr::new(node_address(index % 3), 8000))?);
        }
        let clients = Clients::start(lab)?;
        sleep(Duration::from_millis(500));
        lab.lab(&["scale", "t_web=2"])?;
        lab.wait("four are leaving", || Ok(lab.tasks("web")?.len() == 2))?;
        // Docker's two seconds before the stop signal: who has a connection still has it.
        sleep(Duration::from_millis(1000));
        for connection in &mut held {
            connection.talk().with_context(|| format!("with {}", connection.task()))?;
        }
        drop(held);
        wait_for_tasks(lab, "web", 2)?;
        lab.lab(&["scale", "t_web=6"])?;
        wait_for_tasks(lab, "web", 6)?;
        sleep(silence(Duration::from_secs(1)));
        let outcome = clients.stop()?;
        ensure!(outcome.tasks.len() >= 10, "six old and four new tasks got traffic: {:?}", outcome.tasks);
        Ok(())
    }),
    ("S22 kill -9 and restart of every agent under load: 0 failed, 0 reset", |lab| {
        let mut held = Vec::new();
        for index in 0..3 {
            held.push(Held::open(&lab.namespace("client1"), SocketAddr::new(node_address(index), 8000))?);
        }
        let clients = Clients::start(lab)?;
        for node in NODES {
            lab.lab(&["agent", node, "kill"])?;
        }
        sleep(Duration::from_secs(1));
        for node in NODES {
            lab.lab(&["agent", node, "start"])?;
        }
        lab.settled(&NODES)?;
        sleep(Duration::from_secs(1));
        for connection in &mut held {
            connection.talk()?;
        }
        clients.stop().map(drop)
    }),
    ("E27 start-first with one replica: the VIP answers before, during and after", |lab| {
        let vip = lab.vip("single", "back")?;
        let caller = lab.tasks("caller")?.into_iter().next().context("no caller")?;
        let old = lab.tasks("single")?.first().context("no task")?["id"].clone();
        let load = Load::start(&lab.task_namespace(&caller), vec![SocketAddr::new(vip, 80)], 50)?;
        lab.lab(&["update", "t_single", "--force"])?;
        lab.wait("it is replaced", || Ok(lab.all_tasks("single")?.iter().all(|t| t["id"] != old) && lab.tasks("single")?.len() == 1))?;
        let outcome = load.stop();
        ensure!(outcome.failed == 0 && outcome.attempted > 20, "{outcome:?}");
        ensure!(lab.vip("single", "back")? == vip, "the VIP changed");
        Ok(())
    }),
    ("E28 E30 K9 a leaving task gets nothing new while others are there, and keeps what it has", |lab| {
        let mut held = Vec::new();
        // Through all nodes: to a task of its own, a node has another way than to others.
        for target in published(8001) {
            for _ in 0..2 {
                held.push(Held::open(&lab.namespace("client1"), target)?);
            }
        }
        lab.lab(&["scale", "t_short=1"])?;
        lab.wait("one is leaving", || Ok(lab.tasks("short")?.len() == 1 && lab.all_tasks("short")?.len() == 2))?;
        lab.settled(&NODES)?;
        let leaving = Instant::now();
        let spread = lab.spread("client1", SocketAddr::new(node_address(0), 8001), 12)?;
        ensure!(spread.len() == 1, "the leaving task got new connections: {spread:?}");
        for connection in &mut held {
            connection.talk().context("a connection was cut while draining")?;
        }
        // Its swarmesh.drain is over then; the task itself is still there.
        sleep(Duration::from_secs(short() + 2).saturating_sub(leaving.elapsed()));
        let stay: Vec<String> = lab.tasks("short")?.iter().map(|t| t["name"].as_str().unwrap_or_default().to_owned()).collect();
        for connection in &mut held {
            let task = connection.task().to_owned();
            let talks = connection.talk().is_ok();
            ensure!(talks == stay.contains(&task), "{task}: talks after its drain: {talks}, {stay:?} stay");
        }
        Ok(())
    }),
    ("K9 the last leaving task still serves, until it is gone; then refused", |lab| {
        lab.lab(&["scale", "t_short=0"])?;
        lab.wait("it is leaving", || Ok(lab.tasks("short")?.is_empty()))?;
        lab.settled(&NODES)?;
        let target = SocketAddr::new(node_address(1), 8001);
        ensure!(!lab.all_tasks("short")?.is_empty(), "the tasks are gone too early for this row");
        ensure!(lab.get("client1", target).is_ok(), "refused while a leaving task still serves");
        lab.wait("the last one is gone", || Ok(lab.all_tasks("short")?.is_empty()))
            .or_else(|_| lab.wait("the last one is gone", || Ok(lab.all_tasks("short")?.is_empty())))?;
        lab.settled(&NODES)?;
        ensure!(knock_tcp(&lab.namespace("client1"), target)? == Knock::Refused, "not refused with no task left");
        lab.lab(&["scale", "t_short=2"])?;
        wait_for_tasks(lab, "short", 2)?;
        lab.settled(&NODES)?;
        ensure!(lab.get("client1", target).is_ok(), "E41: not back with the tasks");
        Ok(())
    }),
    ("K11 a UDP flow moves on when its task goes, by port and by VIP", |lab| {
        let caller = lab.tasks("caller")?.into_iter().next().context("no caller")?;
        let vip = lab.vip("web", "back")?;
        let places =
            [(lab.namespace("client1"), SocketAddr::new(node_address(0), 8000)), (lab.task_namespace(&caller), SocketAddr::new(vip, 53))];
        for (namespace, target) in places {
            let socket = within(&namespace, move || udp_socket(target))??;
            let Ok(answer) = ask(&socket, "x")? else { bail!("no answer from {target}") };
            let task = answer.split_whitespace().next().unwrap_or_default().to_owned();
            lab.lab(&["kill", &task])?;
            let start = Instant::now();
            loop {
                if let Ok(answer) = ask(&socket, "x")?
                    && !answer.starts_with(&task)
                {
                    break;
                }
                ensure!(start.elapsed() < patient(Duration::from_secs(5)), "the flow to {target} still goes to {task}");
            }
            wait_for_tasks(lab, "web", 6)?;
        }
        Ok(())
    }),
    ("E29 K10 a task is used when it is healthy, not before, and not when it no longer is", |lab| {
        let late = stack()
            .replace(
                "networks:\n  back:\n",
                r#"  late:
    image: example/late
    environment: {WHOAMI_READY_AFTER: "SHORT"}
    ports: ["8002:80"]
    healthcheck: {test: [CMD, curl, -sf, "http://127.0.0.1:80/health"], interval: PULSEms, retries: 20, start_period: LONGERs}
    deploy: {replicas: 1}
networks:
  back:
"#,
            )
            .replace("SHORT", &short().to_string())
            .replace("LONGER", &longer().to_string())
            .replace("PULSE", &pulse().to_string());
        lab.deploy(&late)?;
        let target = SocketAddr::new(node_address(0), 8002);
        lab.wait("it is starting", || Ok(lab.all_tasks("late")?.iter().any(|t| t["state"] == "starting")))?;
        lab.settled(&NODES)?;
        ensure!(knock_tcp(&lab.namespace("client1"), target)? == Knock::Refused, "a starting task gets traffic");
        lab.wait("it is healthy and used", || Ok(lab.get("client1", target).is_ok()))?;
        let sick = late
            .replace("WHOAMI_READY_AFTER: \"", "WHOAMI_FAIL: \"unhealthy-after=")
            .replace("retries: 20", "retries: 1")
            .replace(&format!("start_period: {}s", longer()), "start_period: 1s");
        lab.deploy(&sick)?;
        lab.wait("it answers", || Ok(lab.get("client1", target).is_ok()))?;
        lab.wait("the unhealthy one is taken out", || Ok(lab.tasks("late")?.is_empty()))?;
        lab.deploy(&stack())?;
        lab.wait("it is removed", || Ok(lab.all_tasks("late").map_or(true, |t| t.is_empty())))
    }),
    ("E38 K3 ports come and go live, and nothing else is disturbed", |lab| {
        let clients = Clients::start(lab)?;
        let more = stack().replace("ports: [\"8000:80\", \"8000:53/udp\"]", "ports: [\"8000:80\", \"8000:53/udp\", \"9090:80\"]");
        lab.deploy(&more)?;
        let target = SocketAddr::new(node_address(2), 9090);
        lab.wait("the new port answers", || Ok(lab.get("client1", target).is_ok()))?;
        lab.deploy(&stack())?;
        lab.wait("the port is closed again", || Ok(knock_tcp(&lab.namespace("client1"), target)? == Knock::Refused))?;
        lab.wait("web is whole", || Ok(lab.tasks("web")?.len() == 6))?;
        clients.stop().map(drop)
    }),
    ("K2 one of two protocols of a port is dropped: the other goes on, the dropped one fails", |lab| {
        let target = SocketAddr::new(node_address(0), 8000);
        let namespace = lab.namespace("client1");
        lab.deploy(&stack().replace("ports: [\"8000:80\", \"8000:53/udp\"]", "ports: [\"8000:80\"]"))?;
        lab.wait("UDP is refused", || Ok(ask_udp(&namespace, target, "x")?.is_err()))?;
        ensure!(lab.get("client1", target).is_ok(), "TCP went with it");
        lab.deploy(&stack())?;
        lab.wait("UDP is back", || Ok(ask_udp(&namespace, target, "x")?.is_ok()))
    }),
    ("E40 K17 the target port changes under a published port", |lab| {
        let moved = stack().replace("WHOAMI_TCP: \"80\", WHOAMI_UDP", "WHOAMI_TCP: \"80,85\", WHOAMI_UDP");
        lab.deploy(&moved)?;
        lab.wait("the tasks listen on both", || Ok(lab.tasks("web")?.len() == 6 && lab.all_tasks("web")?.len() == 6))?;
        let clients = Clients::start(lab)?;
        lab.deploy(&moved.replace("8000:80", "8000:85"))?;
        lab.wait("a task is reached on 85", || Ok(lab.get("client1", SocketAddr::new(node_address(0), 8000))?.contains(":85")))?;
        lab.deploy(&moved)?;
        lab.wait("web is whole", || Ok(lab.tasks("web")?.len() == 6 && lab.all_tasks("web")?.len() == 6))?;
        clients.stop()?;
        lab.deploy(&stack())?;
        wait_for_tasks(lab, "web", 6)
    }),
    ("E32 vip to dnsrr: after the rollout the VIP is no longer served", |lab| {
        let vip = lab.vip("single", "back")?;
        let caller = lab.tasks("caller")?.into_iter().next().context("no caller")?;
        lab.deploy(&stack().replace(
            "      replicas: 1\n      update_config: {order: start-first}\n",
            "      replicas: 1\n      endpoint_mode: dnsrr\n      update_config: {order: start-first}\n",
        ))?;
        lab.wait("it has no VIP", || Ok(lab.vip("single", "back").is_err()))?;
        lab.settled(&NODES)?;
        ensure!(knock_tcp(&lab.task_namespace(&caller), SocketAddr::new(vip, 80))? != Knock::Open, "the old VIP still answers");
        lab.deploy(&stack())?;
        lab.wait("it has a VIP again", || {
            Ok(lab.vip("single", "back").is_ok() && lab.tasks("single")?.len() == 1 && lab.all_tasks("single")?.len() == 1)
        })
    }),
    ("E34 E35 K13 services and networks come and go; a VIP that comes back works", |lab| {
        let extra = stack().replace("networks:\n  back:\n", "  extra:\n    image: example/extra\n    networks: [back, side]\n    ports: [\"8003:80\"]\n    deploy: {replicas: 2}\nnetworks:\n  back:\n  side:\n");
        for _ in 0..2 {
            lab.deploy(&extra)?;
            lab.wait("extra runs", || Ok(lab.tasks("extra")?.len() == 2))?;
            lab.settled(&NODES)?;
            let caller = lab.tasks("caller")?.into_iter().next().context("no caller")?;
            let spread = spread_in(&lab.task_namespace(&caller), SocketAddr::new(lab.vip("extra", "back")?, 80), 4)?;
            ensure!(spread.len() == 2, "{spread:?}");
            let first = lab.tasks("extra")?.into_iter().next().context("no task")?;
            ensure!(lab.get_from_task(&first, SocketAddr::new(lab.vip("extra", "side")?, 80)).is_ok(), "by the side network");
            ensure!(lab.get("client1", SocketAddr::new(node_address(0), 8003)).is_ok(), "by its port");
            lab.deploy(&stack())?;
            lab.wait("extra is gone", || Ok(lab.all_tasks("extra").is_err()))?;
            lab.wait("its port is closed", || {
                Ok(knock_tcp(&lab.namespace("client1"), SocketAddr::new(node_address(0), 8003))? == Knock::Refused)
            })?;
        }
        let caller = lab.tasks("caller")?.into_iter().next().context("no caller")?;
        ensure!(lab.get_from_task(&caller, SocketAddr::new(lab.vip("single", "back")?, 80)).is_ok(), "another service was disturbed");
        Ok(())
    }),
    ("E39 a port that somebody on a node has already is published all the same", |lab| {
        let listener = within(&lab.namespace("node1"), || std::net::TcpListener::bind("0.0.0.0:9091"))??;
        listener.set_nonblocking(true)?;
        lab.deploy(&stack().replace("\"8000:53/udp\"]", "\"8000:53/udp\", \"9091:80\"]"))?;
        let target = SocketAddr::new(node_address(0), 9091);
        lab.wait("the port answers", || Ok(lab.get("client1", target).is_ok()))?;
        // Until it was published, it was theirs.
        while listener.accept().is_ok() {}
        lab.get("client1", target)?;
        let accepted = listener.accept();
        ensure!(accepted.is_err(), "who had the port was asked: {accepted:?}");
        drop(listener);
        lab.get("client1", target).context("when the port is free again")?;
        lab.deploy(&stack())?;
        lab.wait("the port is closed again", || Ok(knock_tcp(&lab.namespace("client1"), target)? == Knock::Refused))?;
        wait_for_tasks(lab, "web", 6)
    }),
    ("E33 a failed node's tasks leave, and are back when it is", |lab| {
        let task = lab
            .tasks("web")?
            .into_iter()
            .find(|t| lab.node_name(t["node"].as_str().unwrap_or_default()) == "node3")
            .context("no task on node3")?;
        lab.lab(&["kill", "node3"])?;
        lab.wait("six tasks run elsewhere", || {
            let tasks = lab.tasks("web")?;
            Ok(tasks.len() == 6 && tasks.iter().all(|t| t["node"] != task["node"]))
        })?;
        lab.settled(&["node1", "node2"])?;
        for index in 0..2 {
            let spread = lab.spread("client1", SocketAddr::new(node_address(index), 8000), 12)?;
            ensure!(spread.len() == 6, "through node {}: {spread:?}", index + 1);
        }
        lab.lab(&["start", "node3"])?;
        lab.wait("node3 answers again", || Ok(lab.get("client1", SocketAddr::new(node_address(2), 8000)).is_ok()))
    }),
    ("S23 a broken snapshot file changes nothing and is reported", |lab| {
        let path = format!("/run/swarmesh-lab/{}/snapshot.json", "life");
        let good = std::fs::read_to_string(&path)?;
        for broken in ["", "{", &good[..good.len() / 2], "[]", "{\"version\": -1}"] {
            std::fs::write(&path, broken)?;
            lab.wait("status says so", || {
                let (_, status) = lab.api("node1", "/v1/status")?;
                Ok(status.contains("line") || status.contains("snapshot"))
            })?;
            ensure!(lab.get("client1", SocketAddr::new(node_address(0), 8000)).is_ok(), "traffic was disturbed");
        }
        std::fs::write(&path, &good)?;
        lab.settled(&["node1"])
    }),
    ("S24 a draining node refuses new connections only", |lab| {
        let target = SocketAddr::new(node_address(0), 8000);
        let mut held = Held::open(&lab.namespace("client1"), target)?;
        lab.swarmesh("node1", &["drain"])?;
        lab.wait("node1 refuses", || Ok(knock_tcp(&lab.namespace("client1"), target)? == Knock::Refused))?;
        held.talk().context("an established connection was cut")?;
        ensure!(lab.api("node1", "/v1/health/published/tcp/8000")?.0 == 503, "health of a draining node");
        ensure!(lab.get("client1", SocketAddr::new(node_address(1), 8000)).is_ok(), "another node refuses too");
        lab.swarmesh("node1", &["resume"])?;
        lab.wait("node1 is back", || Ok(lab.get("client1", target).is_ok()))
    }),
];

#[test]
fn life_rows() {
    let lab = Lab::up("life", 3, &stack(), &[]).unwrap();
    lab.settled(&NODES).unwrap();
    run(&lab, ROWS);
}

/// E42: a swarm without an ingress network, and one whose ingress network has another name.
#[test]
fn e42_custom_and_missing_ingress() {
    let stack = "services:\n  web:\n    image: x\n    networks: [back]\n    deploy: {replicas: 2}\nnetworks:\n  back:\n";
    let lab = Lab::up("noingress", 2, stack, &["--ingress", "none"]).unwrap();
    lab.settled(&NODES[..2]).unwrap();
    let task = lab.tasks("web").unwrap().remove(0);
    let vip = lab.vip("web", "back").unwrap();
    assert!(lab.get_from_task(&task, SocketAddr::new(vip, 80)).is_ok(), "VIPs need no ingress network");
    let published = "services:\n  web:\n    image: x\n    ports: ['8000:80']\n    deploy: {replicas: 2}\n";
    assert!(lab.deploy(published).is_err(), "a service that needs ingress was accepted");
    drop(lab);

    let lab = Lab::up("owningress", 2, published, &["--ingress", "my-mesh"]).unwrap();
    lab.settled(&NODES[..2]).unwrap();
    let snapshot = lab.snapshot().unwrap();
    let ingress = snapshot["networks"].as_array().unwrap().iter().find(|n| n["ingress"] == true).unwrap();
    assert_eq!(ingress["name"], "my-mesh");
    for node in 0..2 {
        let spread = lab.spread("client1", SocketAddr::new([192, 0, 2, 11 + node].into(), 8000), 8).unwrap();
        assert!(spread.len() == 2 && spread.values().all(|n| *n == 4), "{spread:?}");
    }
}
