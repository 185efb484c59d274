//! Three real engines, one swarm, an agent on each node: everything by Docker's own commands, and what traffic makes of it.
//!
//! The rows run in order and each leaves the swarm as it found it. Names of rows are those of the emulator's tables
//! (TESTING.md) where the same is asked. Needs root, docker.io and busybox-static.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "all of this is a test")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::{
    signal::Signal,
    statfs::{NSFS_MAGIC, statfs},
};
use serde_json::Value;
use swarmesh_tests::{
    agents::{self, Agents},
    dockerlab::{DockerLab, residue},
    lab::{Held, Knock, ask, ask_udp, get_in, knock_tcp, knock_tcp_for, program, spread_in, udp_socket},
    load::{Load, Outcome, field},
    netns::{lasting_rules, within},
    rows::{Row, run},
};

const PREFIX: &str = "swrows";
const IMAGE: &str = "whoami:1";
const NODES: usize = 3;
const CLIENTS: [(usize, &str); 2] = [(1, "192.0.2.101"), (2, "192.0.2.102")];
const SERVES_ALL: [&str; 4] = ["--env", "WHOAMI_TCP=80,81", "--env", "WHOAMI_UDP=53"];
/// A task that is told to stop serves on for a moment, as a careful server does: that is what the agents need to hear of it.
const LINGERS: [&str; 4] = ["--env", "WHOAMI_LINGER=2", "--stop-grace-period", "10s"];
const HEALTH: [&str; 8] = [
    "--health-cmd",
    "test ! -e /tmp/sick && wget -q -O /dev/null http://127.0.0.1/health",
    "--health-interval",
    "500ms",
    "--health-retries",
    "3",
    "--health-timeout",
    "3s",
];

struct Swarm {
    lab: RefCell<DockerLab>,
    agents: RefCell<Agents>,
    /// Firewall and routing rules of the nodes and their ingress sandboxes before there was an agent.
    untouched: BTreeMap<PathBuf, String>,
}

/// A task's container, by what its engine says.
#[derive(Clone, Debug)]
struct Container {
    task: String,
    id: String,
    node: usize,
    healthy: bool,
    namespace: PathBuf,
    addresses: BTreeMap<String, IpAddr>,
}

impl Container {
    fn address(&self, network: &str) -> Result<IpAddr> {
        self.addresses.get(network).copied().with_context(|| format!("{} is not in {network}", self.task))
    }
}

impl Swarm {
    fn up() -> Result<Self> {
        let start = Instant::now();
        let lab = DockerLab::up(PREFIX, NODES, NODES)?;
        let agents = Agents::new(&lab, &program())?;
        agents::import_image(&lab, agents.program(), IMAGE)?;
        let mut swarm = Self { lab: RefCell::new(lab), agents: RefCell::new(agents), untouched: BTreeMap::new() };
        for node in 0..NODES {
            let sandbox = swarm.sandbox(node)?;
            swarm.wait("the ingress sandbox", 20, || Ok(sandbox.exists()))?;
            for place in [swarm.node(node), sandbox] {
                let rules = rules(&place)?;
                swarm.untouched.insert(place, rules);
            }
        }
        eprintln!("      {:6.1} s  three engines, one swarm, the image", start.elapsed().as_secs_f32());
        let start = Instant::now();
        for node in 0..NODES {
            swarm.start_agent(node)?;
        }
        swarm.docker(&["network", "create", "--driver", "overlay", "--attachable", "back"])?;
        swarm.docker(&["network", "create", "--driver", "overlay", "other"])?;
        swarm.create(
            "web",
            3,
            &[
                &["--network", "back", "--publish", "7000:80", "--publish", "7000:53/udp", "--publish", "7001:81"],
                &SERVES_ALL[..],
                &LINGERS,
            ]
            .concat(),
        )?;
        swarm.create("api", 2, &[&["--network", "back"], &SERVES_ALL[..]].concat())?;
        swarm.create("elsewhere", 1, &["--network", "other"])?;
        swarm.create("rr", 1, &["--network", "back", "--endpoint-mode", "dnsrr"])?;
        swarm.create("sticky", 3, &["--network", "back", "--publish", "7002:80", "--label", "swarmesh.affinity=client-ip:4"])?;
        swarm.create("near", 1, &["--publish", "7003:80", "--label", "swarmesh.source=local"])?;
        swarm.create("hidden", 2, &["--publish", "7004:80", "--label", "swarmesh.source=snat"])?;
        swarm.create("bound", 1, &["--publish", "7005:80", "--label", "swarmesh.bind=192.0.2.11, 127.0.0.0/8"])?;
        swarm.create("off", 1, &["--publish", "7007:80", "--label", "swarmesh.enable=false"])?;
        swarm.create("direct", 1, &["--publish", "published=7008,target=80,mode=host"])?;
        swarm.create("nobody", 0, &["--network", "back", "--publish", "7009:80", "--publish", "7009:53/udp"])?;
        for (service, count) in [
            ("web", 3),
            ("api", 2),
            ("elsewhere", 1),
            ("rr", 1),
            ("sticky", 3),
            ("near", 1),
            ("hidden", 2),
            ("bound", 1),
            ("off", 1),
            ("direct", 1),
        ] {
            swarm.settled(service, count)?;
        }
        let plain =
            ["run", "--detach", "--name", "plain", "--network", "back", "--env", "WHOAMI_TASK=plain", IMAGE, "/bin/swarmesh", "whoami"];
        swarm.lab.borrow().docker(1, &plain)?;
        eprintln!("      {:6.1} s  three agents, eleven services", start.elapsed().as_secs_f32());
        Ok(swarm)
    }

    /// Runs the Docker client against the first node's engine.
    fn docker(&self, words: &[&str]) -> Result<String> {
        self.lab.borrow().docker(0, words)
    }

    fn create(&self, name: &str, replicas: usize, options: &[&str]) -> Result<()> {
        let replicas = replicas.to_string();
        let options = [&["--replicas", &replicas], options].concat();
        self.docker(&agents::whoami(IMAGE, name, &options)).map(drop)
    }

    fn remove(&self, service: &str) -> Result<()> {
        self.docker(&["service", "rm", service])?;
        self.wait(&format!("{service} is gone"), 30, || Ok(self.containers(service)?.is_empty()))
    }

    fn update(&self, service: &str, options: &[&str]) -> Result<()> {
        self.docker(&[&["service", "update", "--quiet", "--detach", "--no-resolve-image"], options, &[service]].concat()).map(drop)
    }

    /// As [`Self::update`], and waits until the swarm has replaced the service's `count` tasks.
    fn roll(&self, service: &str, count: usize, options: &[&str]) -> Result<()> {
        let before: Vec<String> = self.containers(service)?.into_iter().map(|c| c.id).collect();
        self.update(service, options)?;
        self.wait(&format!("all tasks of {service} are replaced"), 90, || {
            let now = self.containers(service)?;
            Ok(now.len() == count && now.iter().all(|c| c.healthy && !before.contains(&c.id)))
        })?;
        self.settled(service, count)
    }

    fn scale(&self, service: &str, replicas: usize) -> Result<()> {
        self.docker(&["service", "scale", "--detach", &format!("{service}={replicas}")])?;
        self.settled(service, replicas)
    }

    /// The running containers of a service's tasks on all nodes, leaving ones included.
    fn containers(&self, service: &str) -> Result<Vec<Container>> {
        self.containers_with(&format!("label=com.docker.swarm.service.name={service}"))
    }

    fn plain(&self) -> Result<Container> {
        self.containers_with("name=plain")?.pop().context("the plain container is gone")
    }

    fn containers_with(&self, filter: &str) -> Result<Vec<Container>> {
        let lab = self.lab.borrow();
        let (kind, value) = filter.split_once('=').context("a filter")?;
        let query = format!("/containers/json?filters=%7B%22{kind}%22%3A%5B%22{}%22%5D%7D", value.replace('=', "%3D"));
        let mut containers = Vec::new();
        for node in 0..NODES {
            for listed in array(&lab.api(node, &query)?) {
                let id = text(&listed["Id"]);
                // It may have ended since.
                let Ok(seen) = lab.api(node, &format!("/containers/{id}/json")) else { continue };
                let sandbox = text(&seen["NetworkSettings"]["SandboxKey"]);
                let networks = seen["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
                containers.push(Container {
                    task: text(&seen["Config"]["Labels"]["com.docker.swarm.task.name"]),
                    node,
                    healthy: seen["State"]["Running"] == true && seen["State"]["Health"]["Status"].as_str().is_none_or(|s| s == "healthy"),
                    namespace: lab.netns_dir(node)?.join(sandbox.rsplit('/').next().unwrap_or_default()),
                    addresses: networks
                        .into_iter()
                        .filter_map(|(name, settings)| Some((name, settings["IPAddress"].as_str()?.parse().ok()?)))
                        .collect(),
                    id,
                });
            }
        }
        Ok(containers)
    }

    fn first(&self, service: &str) -> Result<Container> {
        self.containers(service)?.into_iter().next().with_context(|| format!("{service} has no task"))
    }

    fn vip(&self, service: &str, network: &str) -> Result<IpAddr> {
        let lab = self.lab.borrow();
        let network = lab.api(0, &format!("/networks/{network}?scope=swarm"))?["Id"].clone();
        let service = lab.api(0, &format!("/services/{service}"))?;
        let vip =
            array(&service["Endpoint"]["VirtualIPs"]).into_iter().find(|v| v["NetworkID"] == network).context("it has no VIP there")?;
        Ok(text(&vip["Addr"]).split('/').next().unwrap_or_default().parse()?)
    }

    /// Waits until a service has so many tasks and no others, and every agent has applied that.
    fn settled(&self, service: &str, count: usize) -> Result<()> {
        self.wait(&format!("{service} has {count} tasks and no others"), 60, || {
            let containers = self.containers(service)?;
            Ok(containers.len() == count && containers.iter().all(|c| c.healthy))
        })?;
        for node in 0..NODES {
            self.wait(&format!("n{} has applied {count} tasks of {service}", node + 1), 15, || {
                let snapshot: Value = serde_json::from_str(&self.admin(node, "/v1/snapshot")?.1)?;
                let id = array(&snapshot["services"]).into_iter().find(|s| s["name"] == service).context("it is not known")?["id"].clone();
                let tasks: Vec<_> = array(&snapshot["tasks"]).into_iter().filter(|t| t["service"] == id).collect();
                let usable = |t: &&Value| t["state"] == "running" && t["desired_state"] == "running" && t["healthy"] != false;
                Ok(tasks.len() == count && tasks.iter().filter(usable).count() == count && self.admin(node, "/readyz")?.0 == 200)
            })?;
        }
        Ok(())
    }

    /// Polls until `done`.
    fn wait(&self, what: &str, seconds: u64, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let outcome = done();
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > end {
                outcome.with_context(|| format!("waited in vain until {what}"))?;
                bail!("waited {seconds} s in vain until {what}");
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Status and body of an agent's admin API.
    fn admin(&self, node: usize, path: &str) -> Result<(u16, String)> {
        let answer = fetch(&self.node(node), "127.0.0.1:9790".parse()?, path)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }

    fn status(&self, node: usize) -> Result<Value> {
        let agents = self.agents.borrow();
        Ok(serde_json::from_str(&agents.swarmesh(&self.lab.borrow(), node, &["status", "--output", "json"])?)?)
    }

    fn start_agent(&self, node: usize) -> Result<()> {
        self.agents.borrow_mut().start(&self.lab.borrow(), node)
    }

    fn stop_agent(&self, node: usize, signal: Signal) -> Result<()> {
        self.agents.borrow_mut().stop(node, signal)
    }

    fn connected(&self, node: usize) -> Result<()> {
        self.wait(&format!("the agent of n{} is connected and ready", node + 1), 60, || {
            Ok(self.status(node)?["source"]["connected"] == true && self.admin(node, "/readyz")?.0 == 200)
        })
    }

    fn node(&self, node: usize) -> PathBuf {
        Path::new("/run/netns").join(self.lab.borrow().node_netns(node))
    }

    fn client(&self, client: usize) -> PathBuf {
        Path::new("/run/netns").join(self.lab.borrow().client_netns(client))
    }

    fn sandbox(&self, node: usize) -> Result<PathBuf> {
        Ok(self.lab.borrow().netns_dir(node)?.join("ingress_sbox"))
    }

    /// Runs a program inside of a container.
    fn inside(&self, container: &Container, words: &[&str]) -> Result<String> {
        self.lab.borrow().docker(container.node, &[&["exec", &container.id], words].concat())
    }
}

/// Two clients, 100 new connections a second in all, through every node.
struct Clients(Load, Load);

impl Clients {
    fn start(swarm: &Swarm, port: u16) -> Result<Self> {
        let targets: Vec<_> = (0..NODES).map(|node| at(node_address(node), port)).collect();
        Ok(Self(Load::start(&swarm.client(1), targets.clone(), 50)?, Load::start(&swarm.client(2), targets, 50)?))
    }

    /// Ends the load; nothing may have failed.
    fn stop(self) -> Result<Outcome> {
        let (mut first, second) = (self.0.stop(), self.1.stop());
        first.attempted += second.attempted;
        first.failed += second.failed;
        first.failures.extend(second.failures);
        ensure!(first.attempted > 50, "only {} connections were tried", first.attempted);
        ensure!(first.failed == 0, "{} of {} connections failed: {:?}", first.failed, first.attempted, first.failures);
        for (task, count) in second.tasks {
            *first.tasks.entry(task).or_default() += count;
        }
        Ok(first)
    }
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn node_address(node: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(node).unwrap_or(0)])
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn remote(answer: &str) -> Result<IpAddr> {
    Ok(field(answer, "remote").context("no remote address in the answer")?.parse::<SocketAddr>()?.ip())
}

fn first_word(answer: &str) -> String {
    answer.split_whitespace().next().unwrap_or_default().to_owned()
}

/// `GET path` from the namespace, the whole answer.
fn fetch(namespace: &Path, target: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n");
    within(namespace, move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    })?
    .with_context(|| format!("GET http://{target}{path}"))
}

fn printed(namespace: &Path, words: &'static [&'static str]) -> Result<String> {
    let output = within(namespace, move || Command::new(words[0]).args(&words[1..]).output())??;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Firewall and routing rules without what counts and what depends on the tasks of the moment.
fn rules(namespace: &Path) -> Result<String> {
    let mut text = String::new();
    for words in [&["iptables-save"][..], &["ip6tables-save"], &["ip", "rule"], &["ip", "-6", "rule"], &["nft", "list", "tables"]] {
        text.push_str(&printed(namespace, words)?);
    }
    let kept = text.lines().filter(|l| !l.starts_with('#') && !l.contains("--dport")).map(|l| l.split(" [").next().unwrap_or(l));
    Ok(kept.collect::<Vec<_>>().join("\n"))
}

/// Everything that nftables holds in a namespace, with the handles that tell an old rule from a rewritten one.
fn generation(namespace: &Path) -> Result<String> {
    let text = printed(namespace, &["nft", "--stateless", "--handle", "list", "ruleset"])?;
    Ok(lasting_rules(&text))
}

/// Fails when a node's rules are not those from before its agent.
fn left_of_ours(swarm: &Swarm, node: usize) -> Result<()> {
    for place in [swarm.node(node), swarm.sandbox(node)?] {
        let (before, after) = (&swarm.untouched[&place], rules(&place)?);
        let differs = before.lines().zip(after.lines()).find(|(b, a)| b != a);
        ensure!(*before == after, "{}: first difference {differs:?} in\n{after}\nwhich was\n{before}", place.display());
    }
    for entry in fs::read_dir(swarm.lab.borrow().netns_dir(node)?)? {
        let place = entry?.path();
        // An engine that was killed leaves the empty files that namespaces of before were mounted on.
        if statfs(&place)?.filesystem_type() != NSFS_MAGIC {
            continue;
        }
        let left = printed(&place, &["nft", "list", "tables"])? + &printed(&place, &["ip", "rule"])?;
        ensure!(!left.contains("swarmesh") && left.matches("lookup").count() == 3, "{}: {left}", place.display());
    }
    Ok(())
}

fn evenly(spread: &BTreeMap<String, usize>, tasks: usize, each: usize) -> Result<()> {
    ensure!(spread.len() == tasks && spread.values().all(|n| *n == each), "not {each} for each of {tasks}: {spread:?}");
    Ok(())
}

const ROWS: &[Row<Swarm>] = &[
    ("E36 K1 published port: every node's address, TCP, from both clients, evenly", |swarm| {
        for node in 0..NODES {
            for (client, _) in CLIENTS {
                evenly(&spread_in(&swarm.client(client), at(node_address(node), 7000), 9)?, 3, 3)
                    .with_context(|| format!("client{client} to n{}", node + 1))?;
            }
            ensure!(get_in(&swarm.client(1), at(node_address(node), 7001))?.contains(":81"), "the second port of the service");
        }
        Ok(())
    }),
    ("K1 published port: every node's address, UDP, answered from where it was asked", |swarm| {
        for node in 0..NODES {
            let mut tasks = BTreeMap::new();
            for turn in 0..6 {
                let answer = ask_udp(&swarm.client(1), at(node_address(node), 7000), &format!("turn {turn}"))?;
                let Ok(answer) = answer else { bail!("n{}: {answer:?}", node + 1) };
                ensure!(answer.ends_with(&format!("turn {turn}")) && answer.contains(CLIENTS[0].1), "{answer}");
                *tasks.entry(first_word(&answer)).or_insert(0) += 1;
            }
            ensure!(tasks.len() == 3, "6 datagrams through n{}: {tasks:?}", node + 1);
        }
        Ok(())
    }),
    ("S1 the task sees the client's own address, from outside and from every node", |swarm| {
        for node in 0..NODES {
            for (client, address) in CLIENTS {
                let seen = remote(&get_in(&swarm.client(client), at(node_address(node), 7000))?)?;
                ensure!(seen == address.parse::<IpAddr>()?, "client{client} through n{}: {seen}", node + 1);
            }
            for other in 0..NODES {
                let seen = remote(&get_in(&swarm.node(node), at(node_address(other), 7000))?)?;
                ensure!(seen == node_address(node), "n{} to n{}: {seen}", node + 1, other + 1);
                let udp = ask_udp(&swarm.node(node), at(node_address(other), 7000), "x")?;
                ensure!(
                    udp.as_ref().is_ok_and(|a| a.contains(&node_address(node).to_string())),
                    "n{} to n{}: {udp:?}",
                    node + 1,
                    other + 1
                );
            }
        }
        Ok(())
    }),
    ("E45 127.0.0.1 answers on every node, IPv6 answers or refuses, never hangs", |swarm| {
        for node in 0..NODES {
            evenly(&spread_in(&swarm.node(node), "127.0.0.1:7000".parse()?, 9)?, 3, 3)?;
            let seen = remote(&get_in(&swarm.node(node), "127.0.0.1:7000".parse()?)?)?;
            ensure!(seen == node_address(node), "n{} by 127.0.0.1 is seen as {seen}", node + 1);
            for _ in 0..3 {
                let udp = ask_udp(&swarm.node(node), "127.0.0.1:7000".parse()?, "x")?;
                ensure!(udp.is_ok(), "n{} by 127.0.0.1, UDP: {udp:?}", node + 1);
            }
            let knock = knock_tcp(&swarm.node(node), "[::1]:7000".parse()?)?;
            ensure!(knock != Knock::Silent, "[::1] on n{}: {knock:?}", node + 1);
            let knock = knock_tcp(&swarm.client(1), format!("[2001:db8::{}]:7000", 11 + node).parse()?)?;
            ensure!(knock != Knock::Silent, "n{}'s IPv6 address: {knock:?}", node + 1);
        }
        Ok(())
    }),
    ("S2 any local address of the node answers, its own bridges' included", |swarm| {
        for address in ["172.17.0.1:7000", "172.18.0.1:7000", "192.0.2.11:7000", "127.0.0.53:7000"] {
            ensure!(knock_tcp(&swarm.node(0), address.parse()?)? == Knock::Open, "{address}");
        }
        Ok(())
    }),
    ("S3 a task, and a plain container, reach published ports through every node", |swarm| {
        for caller in swarm.containers("api")?.iter().chain(&[swarm.plain()?]) {
            for node in 0..NODES {
                for _ in 0..3 {
                    get_in(&caller.namespace, at(node_address(node), 7000)).with_context(|| format!("{caller:?} to n{}", node + 1))?;
                }
                let udp = ask_udp(&caller.namespace, at(node_address(node), 7000), "x")?;
                ensure!(udp.is_ok(), "{caller:?} to n{}, UDP: {udp:?}", node + 1);
            }
        }
        Ok(())
    }),
    ("S16 large answers and large questions pass whole, by port and by VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        let caller = swarm.first("api")?;
        let places = (0..NODES).map(|node| (swarm.client(1), at(node_address(node), 7000))).chain([(caller.namespace, at(vip, 80))]);
        for (namespace, target) in places {
            for _ in 0..3 {
                let answer = fetch(&namespace, target, "/bytes?n=300000").with_context(|| target.to_string())?;
                ensure!(answer.len() > 300_000, "{target}: {} bytes", answer.len());
                let mut held = Held::open(&namespace, target)?;
                held.say(&"x".repeat(100_000)).with_context(|| format!("100000 bytes to {target} and back"))?;
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances any TCP port evenly across the nodes; the server sees the calling task", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            for port in [80, 81] {
                evenly(&spread_in(&caller.namespace, at(vip, port), 9)?, 3, 3).with_context(|| caller.task.clone())?;
                let seen = remote(&get_in(&caller.namespace, at(vip, port))?)?;
                ensure!(seen == caller.address("back")?, "{} is seen as {seen}", caller.task);
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances UDP, answered from the VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            let mut seen = BTreeMap::new();
            for _ in 0..6 {
                let answer = ask_udp(&caller.namespace, at(vip, 53), "x")?;
                let Ok(answer) = answer else { bail!("{}: {answer:?}", caller.task) };
                ensure!(answer.contains(&caller.address("back")?.to_string()), "{answer}");
                *seen.entry(first_word(&answer)).or_insert(0) += 1;
            }
            ensure!(seen.len() == 3, "{seen:?}");
        }
        Ok(())
    }),
    ("E31 K6 hairpin: a task reaches itself through its own VIP, TCP and UDP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for task in swarm.containers("web")? {
            evenly(&spread_in(&task.namespace, at(vip, 80), 9)?, 3, 3).with_context(|| task.task.clone())?;
            for _ in 0..3 {
                let udp = ask_udp(&task.namespace, at(vip, 53), "x")?;
                ensure!(udp.is_ok(), "{}: UDP to its own VIP: {udp:?}", task.task);
            }
        }
        Ok(())
    }),
    ("S5 ICMP echo to a VIP answers", |swarm| {
        let vip = swarm.vip("web", "back")?.to_string();
        for caller in swarm.containers("api")?.iter().chain(&swarm.containers("web")?) {
            swarm.inside(caller, &["ping", "-c", "1", "-W", "2", &vip])?;
        }
        Ok(())
    }),
    ("E1 by name: Docker's resolver says the VIP, and the VIP answers", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            let answer = swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://web:81/"])?;
            ensure!(field(&answer, "service").as_deref() == Some("web"), "{answer}");
            let names = swarm.inside(&caller, &["nslookup", "web"]).unwrap_or_else(|e| format!("{e:#}"));
            ensure!(names.contains(&vip.to_string()), "{names}");
        }
        Ok(())
    }),
    ("E21 S6 a VIP of a network that the task is not in is not reached", |swarm| {
        let vip = swarm.vip("elsewhere", "other")?;
        ensure!(knock_tcp(&swarm.first("api")?.namespace, at(vip, 80))? != Knock::Open, "{vip} is reached from another network");
        let own = swarm.first("elsewhere")?;
        ensure!(knock_tcp(&own.namespace, at(vip, 80))? == Knock::Open, "{vip} from its own network");
        Ok(())
    }),
    ("E22 dnsrr: no VIP; its tasks answer by name", |swarm| {
        ensure!(swarm.vip("rr", "back").is_err(), "Docker gave it a VIP");
        let (caller, task) = (swarm.first("api")?, swarm.first("rr")?);
        ensure!(swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://rr/"])?.contains("service: rr"), "by name");
        get_in(&caller.namespace, at(task.address("back")?, 80)).map(drop)
    }),
    ("S17 an attached plain container: it reaches VIPs, services reach it", |swarm| {
        let plain = swarm.plain()?;
        let vip = swarm.vip("web", "back")?;
        evenly(&spread_in(&plain.namespace, at(vip, 80), 9)?, 3, 3)?;
        ensure!(remote(&get_in(&plain.namespace, at(vip, 81))?)? == plain.address("back")?, "seen with another address");
        ensure!(ask_udp(&plain.namespace, at(vip, 53), "x")?.is_ok(), "UDP");
        ensure!(swarm.inside(&plain, &["wget", "-q", "-O", "-", "http://api/"])?.contains("service: api"), "by name");
        let answer = swarm.inside(&swarm.first("api")?, &["wget", "-q", "-O", "-", "http://plain/"])?;
        ensure!(answer.contains("task: plain"), "{answer}");
        Ok(())
    }),
    ("K4 affinity: a client stays with its task by port and by VIP", |swarm| {
        for (client, _) in CLIENTS {
            let spread = spread_in(&swarm.client(client), at(node_address(0), 7002), 12)?;
            ensure!(spread.len() == 1, "client{client} was moved: {spread:?}");
        }
        let spread = spread_in(&swarm.first("api")?.namespace, at(swarm.vip("sticky", "back")?, 80), 12)?;
        ensure!(spread.len() == 1, "by VIP: {spread:?}");
        Ok(())
    }),
    ("K8 source=local: only the node with the task answers, the others refuse; health says which", |swarm| {
        let home = swarm.first("near")?.node;
        for node in 0..NODES {
            let knock = knock_tcp(&swarm.client(1), at(node_address(node), 7003))?;
            let (code, body) = swarm.admin(node, "/v1/health/published/tcp/7003")?;
            let expected = if node == home { (Knock::Open, 200) } else { (Knock::Refused, 503) };
            ensure!((knock, code) == expected, "n{} (home is n{}): {knock:?}, health {code} {body}", node + 1, home + 1);
        }
        ensure!(remote(&get_in(&swarm.client(1), at(node_address(home), 7003))?)?.to_string() == CLIENTS[0].1, "the client's address");
        Ok(())
    }),
    ("S8 source=snat: the task sees the entry node's ingress address", |swarm| {
        for node in 0..NODES {
            for _ in 0..2 {
                let IpAddr::V4(seen) = remote(&get_in(&swarm.client(1), at(node_address(node), 7004))?)? else { bail!("IPv6") };
                ensure!(seen.octets()[..3] == [10, 0, 0], "{seen}");
            }
        }
        Ok(())
    }),
    ("S9 bind: published on the named addresses, refused on the others", |swarm| {
        ensure!(knock_tcp(&swarm.client(1), at(node_address(0), 7005))? == Knock::Open, "on 192.0.2.11");
        ensure!(knock_tcp(&swarm.client(1), at(node_address(1), 7005))? == Knock::Refused, "on 192.0.2.12");
        ensure!(knock_tcp(&swarm.node(1), "127.0.0.1:7005".parse()?)? == Knock::Open, "on 127.0.0.1 of n2");
        ensure!(knock_tcp(&swarm.node(1), at(node_address(1), 7005))? == Knock::Refused, "from n2 itself, on 192.0.2.12");
        Ok(())
    }),
    ("K14 enable=false: not ours, not touched; switched on by an update and off again", |swarm| {
        let target = at(node_address(0), 7007);
        ensure!(knock_tcp(&swarm.client(1), target)? == Knock::Refused, "somebody answers");
        swarm.update("off", &["--label-rm", "swarmesh.enable"])?;
        swarm.wait("it is served", 10, || Ok(knock_tcp(&swarm.client(1), target)? == Knock::Open))?;
        swarm.update("off", &["--label-add", "swarmesh.enable=false"])?;
        swarm.wait("it is left alone", 10, || Ok(knock_tcp(&swarm.client(1), target)? == Knock::Refused))
    }),
    ("E44 host mode is Docker's: it answers only where the task runs, and as before", |swarm| {
        let home = swarm.first("direct")?.node;
        for node in 0..NODES {
            let knock = knock_tcp(&swarm.client(1), at(node_address(node), 7008))?;
            ensure!((knock == Knock::Open) == (node == home), "n{} (home is n{}): {knock:?}", node + 1, home + 1);
        }
        Ok(())
    }),
    ("E41 K5 no task: refused at once, by VIP and by port, TCP and UDP", |swarm| {
        let vip = swarm.vip("nobody", "back")?;
        let caller = swarm.first("api")?.namespace;
        for (namespace, tcp, udp) in
            [(swarm.client(1), at(node_address(0), 7009), at(node_address(0), 7009)), (caller, at(vip, 80), at(vip, 53))]
        {
            let start = Instant::now();
            ensure!(knock_tcp(&namespace, tcp)? == Knock::Refused, "tcp {tcp}");
            let answer = ask_udp(&namespace, udp, "x")?;
            ensure!(answer == Err(Knock::Refused), "udp {udp}: {answer:?}");
            ensure!(start.elapsed() < Duration::from_millis(500), "refused after {:?}", start.elapsed());
        }
        ensure!(swarm.admin(0, "/v1/health/published/tcp/7009")?.0 == 503, "health of a port without tasks");
        ensure!(swarm.admin(0, "/v1/health/published/tcp/7000")?.0 == 200, "health of a port with tasks");
        Ok(())
    }),
    ("S33 a task of the entry node is reached past the ingress sandbox", |swarm| {
        for container in swarm.containers("web")? {
            let target = at(node_address(container.node), 7000);
            let (_, told) = swarm.admin(container.node, &format!("/v1/explain?target=tcp%3A%2F%2F{target}"))?;
            ensure!(told.contains("reached straight over docker_gwbridge, at 172."), "n{}: {told}", container.node + 1);
            let tracked = || printed(&swarm.node(container.node), &["conntrack", "-L", "-p", "tcp", "--orig-port-dst", "7000"]);
            spread_in(&swarm.client(1), target, 3)?;
            let sandbox = printed(&swarm.sandbox(container.node)?, &["ip", "-4", "-o", "addr", "show"])?;
            let past = tracked()?.lines().any(|line| {
                let answers = line.split("src=").nth(2).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                !answers.is_empty() && !sandbox.contains(&format!(" {answers}/"))
            });
            ensure!(past, "n{}: all of {}", container.node + 1, tracked()?);
        }
        Ok(())
    }),
    ("S12 restarted agents with nothing to change write nothing", |swarm| {
        let web = swarm.containers("web")?;
        let mut places: Vec<PathBuf> = web.iter().map(|c| c.namespace.clone()).collect();
        for node in 0..NODES {
            places.extend([swarm.node(node), swarm.sandbox(node)?]);
        }
        let before = places.iter().map(|p| generation(p)).collect::<Result<Vec<_>>>()?;
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGTERM)?;
            swarm.start_agent(node)?;
        }
        for node in 0..NODES {
            swarm.connected(node)?;
        }
        sleep(Duration::from_millis(500));
        for (place, before) in places.iter().zip(before) {
            let after = generation(place)?;
            ensure!(before.contains("table inet swarmesh"), "no table of ours in {}", place.display());
            let new: Vec<&str> = after.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
            ensure!(before == after, "{}: written: {new:?}", place.display());
        }
        for node in 0..NODES {
            let plane = swarm.status(node)?["plane"].clone();
            ensure!(plane["commits"] == 0 && plane["errors"] == 0, "n{}: {plane}", node + 1);
        }
        Ok(())
    }),
    ("E37 K13 a foreign flush of our table is healed within a second, in every namespace", |swarm| {
        let caller = swarm.first("api")?;
        let vip = swarm.vip("web", "back")?;
        let target = at(node_address(caller.node), 7000);
        for place in [swarm.node(caller.node), swarm.sandbox(caller.node)?, caller.namespace.clone()] {
            for words in [&["nft", "flush", "table", "inet", "swarmesh"][..], &["nft", "delete", "table", "inet", "swarmesh"]] {
                let start = Instant::now();
                printed(&place, words)?;
                loop {
                    // Shorter than a SYN's retransmission: what is asked is when the way is there again.
                    let outside = knock_tcp_for(&swarm.client(1), target, Duration::from_millis(100))?;
                    let inside = knock_tcp_for(&caller.namespace, at(vip, 80), Duration::from_millis(100))?;
                    if outside == Knock::Open && inside == Knock::Open {
                        break;
                    }
                    ensure!(
                        start.elapsed() < Duration::from_secs(1),
                        "{words:?} in {} is not healed after a second: {outside:?} from outside, {inside:?} from inside",
                        place.display()
                    );
                }
            }
        }
        Ok(())
    }),
    ("E24 scale up under load: 0 failed, and the new tasks are used", |swarm| {
        let clients = Clients::start(swarm, 7000)?;
        swarm.scale("web", 6)?;
        sleep(Duration::from_secs(1));
        let outcome = clients.stop()?;
        ensure!(outcome.tasks.len() == 6, "{:?}", outcome.tasks);
        Ok(())
    }),
    ("E25 scale down under load: 0 failed, and held connections last as long as their tasks", |swarm| {
        let clients = Clients::start(swarm, 7000)?;
        let mut held = (0..NODES).map(|node| Held::open(&swarm.client(1), at(node_address(node), 7000))).collect::<Result<Vec<_>>>()?;
        swarm.docker(&["service", "scale", "--detach", "web=3"])?;
        sleep(Duration::from_millis(1200));
        for connection in &mut held {
            connection.talk().context("a connection was cut while its task still ran")?;
        }
        swarm.settled("web", 3)?;
        sleep(Duration::from_millis(500));
        clients.stop().map(drop)
    }),
    ("S20 rolling update start-first with a health check under load: 0 failed", |swarm| {
        swarm.create(
            "roll",
            3,
            &[&["--publish", "7010:80", "--network", "back", "--update-order", "start-first"], &SERVES_ALL[..], &LINGERS, &HEALTH].concat(),
        )?;
        swarm.settled("roll", 3)?;
        let clients = Clients::start(swarm, 7010)?;
        let caller = swarm.first("api")?;
        let inside = Load::start(&caller.namespace, vec![at(swarm.vip("roll", "back")?, 80)], 20)?;
        swarm.roll("roll", 3, &["--force"])?;
        let (outside, inside) = (clients.stop(), inside.stop());
        ensure!(inside.failed == 0 && inside.attempted > 20, "by VIP: {inside:?}");
        ensure!(outside?.tasks.len() >= 6, "not all tasks were used");
        Ok(())
    }),
    ("S21 rolling update stop-first of three replicas under load: 0 failed", |swarm| {
        let clients = Clients::start(swarm, 7010)?;
        swarm.roll("roll", 3, &["--update-order", "stop-first", "--force"])?;
        clients.stop().map(drop)
    }),
    ("E38 K3 ports come and go by updates, and the one that stays is not disturbed", |swarm| {
        let target = at(node_address(2), 7011);
        let clients = Clients::start(swarm, 7010)?;
        swarm.roll("roll", 3, &["--update-order", "start-first", "--publish-add", "7011:81"])?;
        evenly(&spread_in(&swarm.client(1), target, 6)?, 3, 2)?;
        clients.stop().context("while the port came")?;
        let clients = Clients::start(swarm, 7010)?;
        swarm.update("roll", &["--publish-rm", "81"])?;
        swarm.wait("the port is closed", 10, || {
            let knock = knock_tcp(&swarm.client(1), target)?;
            ensure!(knock != Knock::Silent, "no answer while the port goes");
            Ok(knock == Knock::Refused)
        })?;
        swarm.wait("the update is complete", 60, || {
            Ok(swarm.lab.borrow().api(0, "/services/roll")?["UpdateStatus"]["State"] == "completed" && swarm.containers("roll")?.len() == 3)
        })?;
        clients.stop().map(drop)
    }),
    ("K10 an unhealthy task gets nothing new from its own node, while it still answers and until it is replaced", |swarm| {
        let before = swarm.containers("roll")?;
        let sick = before.first().context("no task")?;
        // Health is not in the swarm's state: other nodes hear of the task when it has ended.
        let load = Load::start(&swarm.client(1), vec![at(node_address(sick.node), 7010)], 100)?;
        // Its health check fails from now on; everything else goes on until the swarm replaces it.
        swarm.inside(sick, &["sh", "-c", ": > /tmp/sick"])?;
        swarm.wait("it is replaced", 60, || Ok(!swarm.containers("roll")?.iter().any(|c| c.id == sick.id)))?;
        swarm.settled("roll", 3)?;
        let outcome = load.stop();
        ensure!(outcome.attempted > 50 && outcome.failed == 0, "{outcome:?}");
        Ok(())
    }),
    ("E34 E35 service rm: its port never hangs and is refused; re-created with the same port it answers", |swarm| {
        let target = at(node_address(1), 7010);
        swarm.docker(&["service", "rm", "roll"])?;
        let start = Instant::now();
        loop {
            match knock_tcp(&swarm.client(1), target)? {
                Knock::Silent => bail!("it hangs {:?} after the removal", start.elapsed()),
                Knock::Refused => break,
                // Its last tasks serve on for as long as they live.
                Knock::Open => ensure!(start.elapsed() < Duration::from_secs(8), "still open"),
            }
            sleep(Duration::from_millis(20));
        }
        for node in 0..NODES {
            swarm.wait("the port is closed on every node", 3, || {
                Ok(knock_tcp(&swarm.client(2), at(node_address(node), 7010))? == Knock::Refused)
            })?;
        }
        swarm.create("roll", 2, &["--publish", "7010:80", "--network", "back"])?;
        swarm.settled("roll", 2)?;
        for node in 0..NODES {
            swarm.wait("both tasks are used", 3, || {
                evenly(&spread_in(&swarm.client(1), at(node_address(node), 7010), 4)?, 2, 2).map(|()| true)
            })?;
        }
        evenly(&spread_in(&swarm.first("api")?.namespace, at(swarm.vip("roll", "back")?, 80), 4)?, 2, 2)?;
        swarm.remove("roll")
    }),
    ("E35 a network is added to a running service and removed again: its VIP there comes and goes", |swarm| {
        let caller = swarm.first("elsewhere")?;
        let roll = |option: &str| swarm.roll("api", 2, &[option, "other"]);
        roll("--network-add")?;
        let vip = swarm.vip("api", "other")?;
        swarm.wait("the VIP in the new network answers", 20, || Ok(knock_tcp(&caller.namespace, at(vip, 80))? == Knock::Open))?;
        evenly(&spread_in(&caller.namespace, at(vip, 80), 8)?, 2, 4)?;
        let seen = remote(&get_in(&caller.namespace, at(vip, 80))?)?;
        ensure!(seen == caller.address("other")?, "seen as {seen}");
        ensure!(swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://api/"])?.contains("service: api"), "by name");
        let old = swarm.vip("api", "back")?;
        evenly(&spread_in(&swarm.plain()?.namespace, at(old, 80), 8)?, 2, 4)?;
        roll("--network-rm")?;
        ensure!(swarm.vip("api", "other").is_err(), "Docker left it a VIP");
        swarm.wait("the VIP is gone", 20, || Ok(knock_tcp(&caller.namespace, at(vip, 80))? != Knock::Open))?;
        evenly(&spread_in(&swarm.plain()?.namespace, at(swarm.vip("api", "back")?, 80), 8)?, 2, 4)
    }),
    ("K11 a UDP flow moves on when its task is killed, by port and by VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for (namespace, target) in [(swarm.client(1), at(node_address(0), 7000)), (swarm.first("api")?.namespace, at(vip, 53))] {
            let socket = within(&namespace, move || udp_socket(target))??;
            let Ok(answer) = ask(&socket, "x")? else { bail!("no answer from {target}") };
            let task = first_word(&answer);
            let container = swarm.containers("web")?.into_iter().find(|c| c.task.starts_with(&task)).context("the task that answered")?;
            swarm.lab.borrow().docker(container.node, &["kill", &container.id])?;
            let start = Instant::now();
            swarm.wait("another task answers", 5, || Ok(ask(&socket, "x")?.is_ok_and(|a| !a.starts_with(&task))))?;
            eprintln!("        {:?} until another task answers the flow to {target}", start.elapsed());
            swarm.settled("web", 3)?;
        }
        Ok(())
    }),
    ("S22 kill -9 and restart of every agent under load: 0 failed, 0 reset", |swarm| {
        let mut held = (0..NODES).map(|node| Held::open(&swarm.client(1), at(node_address(node), 7000))).collect::<Result<Vec<_>>>()?;
        let clients = Clients::start(swarm, 7000)?;
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGKILL)?;
        }
        sleep(Duration::from_secs(1));
        for node in 0..NODES {
            swarm.start_agent(node)?;
        }
        for node in 0..NODES {
            swarm.connected(node)?;
        }
        sleep(Duration::from_secs(1));
        for connection in &mut held {
            connection.talk()?;
        }
        clients.stop().map(drop)
    }),
    ("S25 what happened while no agent ran is caught up with", |swarm| {
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGKILL)?;
        }
        let before: Vec<String> = swarm.containers("web")?.into_iter().map(|c| c.id).collect();
        swarm.update("web", &["--force", "--update-parallelism", "0"])?;
        swarm.wait("all tasks are replaced", 60, || {
            let now = swarm.containers("web")?;
            Ok(now.len() == 3 && now.iter().all(|c| !before.contains(&c.id)))
        })?;
        for node in 0..NODES {
            swarm.start_agent(node)?;
        }
        swarm.settled("web", 3)?;
        let vip = swarm.vip("web", "back")?;
        for node in 0..NODES {
            evenly(&spread_in(&swarm.client(1), at(node_address(node), 7000), 9)?, 3, 3)?;
        }
        evenly(&spread_in(&swarm.first("api")?.namespace, at(vip, 80), 9)?, 3, 3)
    }),
    ("S26 an engine that hangs: the agent says so, keeps everything, and goes on when the engine does", |swarm| {
        // Docker itself takes the overlay's way to a silent node down after a few seconds, and the swarm starts its tasks again
        // elsewhere: what must not notice is the traffic to the others.
        swarm.create("calm", 2, &["--publish", "7012:80", "--constraint", "node.hostname!=n3"])?;
        swarm.settled("calm", 2)?;
        let clients = Clients::start(swarm, 7012)?;
        swarm.lab.borrow().signal_engine(2, Signal::SIGSTOP)?;
        let noticed = swarm.wait("status says disconnected", 40, || Ok(swarm.status(2)?["source"]["connected"] == false));
        let kept = (0..6).try_for_each(|_| get_in(&swarm.client(1), at(node_address(2), 7012)).map(drop));
        let outcome = clients.stop();
        swarm.lab.borrow().signal_engine(2, Signal::SIGCONT)?;
        noticed?;
        kept.context("through the node itself")?;
        outcome?;
        swarm.connected(2)?;
        swarm.settled("web", 3)?;
        swarm.remove("calm")
    }),
    ("S27 an engine that is killed and comes back: traffic to the other tasks goes on", |swarm| {
        let stay = swarm.containers("web")?.into_iter().filter(|c| c.node != 2).map(|c| c.task).collect::<Vec<_>>();
        swarm.lab.borrow_mut().stop_engine(2, Signal::SIGKILL)?;
        swarm.wait("status says disconnected", 20, || Ok(swarm.status(2)?["source"]["connected"] == false))?;
        // Its containers go on: nothing needs to fail.
        let clients = Clients::start(swarm, 7000)?;
        sleep(Duration::from_secs(2));
        let outcome = clients.stop();
        swarm.lab.borrow_mut().start_engine(2)?;
        swarm.lab.borrow_mut().wait_for_engine(2)?;
        let outcome = outcome?;
        ensure!(stay.iter().all(|task| outcome.tasks.keys().any(|t| task.starts_with(t.as_str()))), "{:?}", outcome.tasks);
        swarm.connected(2)?;
        swarm.settled("web", 3)?;
        for node in 0..NODES {
            evenly(&spread_in(&swarm.client(1), at(node_address(node), 7000), 9)?, 3, 3).with_context(|| format!("n{}", node + 1))?;
        }
        Ok(())
    }),
    ("E33 a drained node: its tasks move under load with 0 failed, and its address goes on to answer", |swarm| {
        let clients = Clients::start(swarm, 7000)?;
        swarm.docker(&["node", "update", "--availability", "drain", "n3"])?;
        let moved = swarm.wait("the tasks are elsewhere", 60, || {
            let now = swarm.containers("web")?;
            Ok(now.len() == 3 && now.iter().all(|c| c.node != 2))
        });
        let outcome = moved.and_then(|()| swarm.settled("web", 3)).and_then(|()| clients.stop());
        let answer = get_in(&swarm.client(1), at(node_address(2), 7000));
        swarm.docker(&["node", "update", "--availability", "active", "n3"])?;
        outcome?;
        answer.map(drop)
    }),
    ("S14 uninstall leaves Docker's rules as they were, and an agent brings ours back", |swarm| {
        swarm.stop_agent(0, Signal::SIGTERM)?;
        let state = agents::state_dir(&swarm.lab.borrow(), 0)?;
        let said = swarm.agents.borrow().swarmesh(&swarm.lab.borrow(), 0, &["uninstall", "--state-dir", &state.to_string_lossy()])?;
        ensure!(said.contains("removed") && !said.contains("FAILED"), "{said}");
        let forgotten = !state.exists();
        let left = left_of_ours(swarm, 0);
        let knock = knock_tcp(&swarm.client(1), at(node_address(0), 7000));
        swarm.start_agent(0)?;
        left?;
        ensure!(knock? == Knock::Refused, "somebody answers without an agent");
        ensure!(forgotten, "the state directory is left");
        swarm.connected(0)?;
        swarm.settled("web", 3)?;
        evenly(&spread_in(&swarm.client(1), at(node_address(0), 7000), 9)?, 3, 3)
    }),
    ("S28 nothing went wrong in the agents", |swarm| {
        for node in 0..NODES {
            let status = swarm.status(node)?;
            ensure!(status["problems"] == Value::Array(Vec::new()), "n{}: {}", node + 1, status["problems"]);
            ensure!(status["pending"] == Value::Array(Vec::new()), "n{}: {}", node + 1, status["pending"]);
            let log = fs::read_to_string(agents::log(&swarm.lab.borrow(), node)?)?;
            let bad: Vec<&str> = log.lines().filter(|l| l.contains("ERROR") || l.contains("panicked")).collect();
            ensure!(bad.is_empty(), "n{}: {bad:?}", node + 1);
        }
        Ok(())
    }),
];

#[test]
fn swarm_rows() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let swarm = Swarm::up().unwrap();
    // Whatever the rows say, nothing may stay.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&swarm, ROWS)));
    if outcome.is_err()
        && let Some(keep) = std::env::var_os("SWARM_LOGS")
    {
        for node in 0..NODES {
            let log = agents::log(&swarm.lab.borrow(), node).unwrap();
            let _copied = fs::copy(log, Path::new(&keep).join(format!("n{}.log", node + 1)));
        }
    }
    drop(swarm);
    assert_eq!(residue(PREFIX), Vec::<String>::new());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
