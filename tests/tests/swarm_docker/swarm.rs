//! The swarm that the rows are about: three engines with agents, two clients, and what can be asked of them.

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
    dockerlab::{Container, DockerLab},
    lab::{program, spread_in},
    load::{Load, Outcome, field},
    netns::{lasting_rules, within},
};

pub(crate) const PREFIX: &str = "swrows";
pub(crate) const IMAGE: &str = "whoami:1";
pub(crate) const NODES: usize = 3;
pub(crate) const CLIENTS: [(usize, &str); 2] = [(1, "192.0.2.101"), (2, "192.0.2.102")];
pub(crate) const SERVES_ALL: [&str; 4] = ["--env", "WHOAMI_TCP=80,81", "--env", "WHOAMI_UDP=53"];
/// A task that is told to stop serves on for a moment, as a careful server does: that is what the agents need to hear of it.
pub(crate) const LINGERS: [&str; 4] = ["--env", "WHOAMI_LINGER=2", "--stop-grace-period", "10s"];
pub(crate) const HEALTH: [&str; 8] = [
    "--health-cmd",
    "test ! -e /tmp/sick && wget -q -O /dev/null http://127.0.0.1/health",
    "--health-interval",
    "500ms",
    "--health-retries",
    "3",
    "--health-timeout",
    "3s",
];

pub(crate) struct Swarm {
    pub(crate) lab: RefCell<DockerLab>,
    pub(crate) agents: RefCell<Agents>,
    /// Firewall and routing rules of the nodes and their ingress sandboxes before there was an agent.
    pub(crate) untouched: BTreeMap<PathBuf, String>,
}

impl Swarm {
    pub(crate) fn up() -> Result<Self> {
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
        swarm.create("lone", 1, &[&["--publish", "7013:80", "--publish", "7013:53/udp"], &SERVES_ALL[..]].concat())?;
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
            ("lone", 1),
        ] {
            swarm.settled(service, count)?;
        }
        let plain =
            ["run", "--detach", "--name", "plain", "--network", "back", "--env", "WHOAMI_TASK=plain", IMAGE, "/bin/swarmesh", "whoami"];
        swarm.lab.borrow().docker(1, &plain)?;
        eprintln!("      {:6.1} s  three agents, twelve services", start.elapsed().as_secs_f32());
        Ok(swarm)
    }

    /// Runs the Docker client against the first node's engine.
    pub(crate) fn docker(&self, words: &[&str]) -> Result<String> {
        self.lab.borrow().docker(0, words)
    }

    pub(crate) fn create(&self, name: &str, replicas: usize, options: &[&str]) -> Result<()> {
        let replicas = replicas.to_string();
        let options = [&["--replicas", &replicas], options].concat();
        self.docker(&agents::whoami(IMAGE, name, &options)).map(drop)
    }

    pub(crate) fn remove(&self, service: &str) -> Result<()> {
        self.docker(&["service", "rm", service])?;
        self.wait(&format!("{service} is gone"), 30, || Ok(self.containers(service)?.is_empty()))
    }

    pub(crate) fn update(&self, service: &str, options: &[&str]) -> Result<()> {
        self.docker(&[&["service", "update", "--quiet", "--detach", "--no-resolve-image"], options, &[service]].concat()).map(drop)
    }

    /// As [`Self::update`], and waits until the swarm has replaced the service's `count` tasks.
    pub(crate) fn roll(&self, service: &str, count: usize, options: &[&str]) -> Result<()> {
        let before: Vec<String> = self.containers(service)?.into_iter().map(|c| c.id).collect();
        self.update(service, options)?;
        self.wait(&format!("all tasks of {service} are replaced"), 90, || {
            let now = self.containers(service)?;
            Ok(now.len() == count && now.iter().all(|c| c.healthy && !before.contains(&c.id)))
        })?;
        self.settled(service, count)
    }

    pub(crate) fn scale(&self, service: &str, replicas: usize) -> Result<()> {
        self.docker(&["service", "scale", "--detach", &format!("{service}={replicas}")])?;
        self.settled(service, replicas)
    }

    /// The running containers of a service's tasks on all nodes, leaving ones included.
    pub(crate) fn containers(&self, service: &str) -> Result<Vec<Container>> {
        self.lab.borrow().tasks(service)
    }

    pub(crate) fn plain(&self) -> Result<Container> {
        self.containers_with("name=plain")?.pop().context("the plain container is gone")
    }

    pub(crate) fn containers_with(&self, filter: &str) -> Result<Vec<Container>> {
        self.lab.borrow().containers(filter)
    }

    pub(crate) fn first(&self, service: &str) -> Result<Container> {
        self.containers(service)?.into_iter().next().with_context(|| format!("{service} has no task"))
    }

    pub(crate) fn vip(&self, service: &str, network: &str) -> Result<IpAddr> {
        self.lab.borrow().vip(service, network)
    }

    /// Waits until a service has so many tasks and no others, and every agent has applied that.
    pub(crate) fn settled(&self, service: &str, count: usize) -> Result<()> {
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

    /// Waits until Docker's overlays lead from every node to every task again: an engine that was silent is taken off them by the
    /// others' gossip, and comes back to them some seconds after its tasks are running in everybody's view.
    pub(crate) fn overlays_converged(&self, port: u16, tasks: usize) -> Result<()> {
        for node in 0..NODES {
            self.wait(&format!("{tasks} tasks answer by n{}:{port}", node + 1), 60, || {
                evenly(&spread_in(&self.client(1), at(node_address(node), port), 3 * tasks)?, tasks, 3).map(|()| true)
            })?;
        }
        Ok(())
    }

    /// Polls until `done`.
    pub(crate) fn wait(&self, what: &str, seconds: u64, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
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
    pub(crate) fn admin(&self, node: usize, path: &str) -> Result<(u16, String)> {
        let answer = fetch(&self.node(node), "127.0.0.1:9790".parse()?, path)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
    }

    pub(crate) fn status(&self, node: usize) -> Result<Value> {
        let agents = self.agents.borrow();
        Ok(serde_json::from_str(&agents.swarmesh(&self.lab.borrow(), node, &["status", "--output", "json"])?)?)
    }

    pub(crate) fn start_agent(&self, node: usize) -> Result<()> {
        self.agents.borrow_mut().start(&self.lab.borrow(), node)
    }

    pub(crate) fn stop_agent(&self, node: usize, signal: Signal) -> Result<()> {
        self.agents.borrow_mut().stop(node, signal)
    }

    pub(crate) fn connected(&self, node: usize) -> Result<()> {
        self.wait(&format!("the agent of n{} is connected and ready", node + 1), 60, || {
            Ok(self.status(node)?["source"]["connected"] == true && self.admin(node, "/readyz")?.0 == 200)
        })
    }

    pub(crate) fn node(&self, node: usize) -> PathBuf {
        Path::new("/run/netns").join(self.lab.borrow().node_netns(node))
    }

    pub(crate) fn client(&self, client: usize) -> PathBuf {
        Path::new("/run/netns").join(self.lab.borrow().client_netns(client))
    }

    pub(crate) fn sandbox(&self, node: usize) -> Result<PathBuf> {
        Ok(self.lab.borrow().netns_dir(node)?.join("ingress_sbox"))
    }

    /// Runs a program inside of a container.
    pub(crate) fn inside(&self, container: &Container, words: &[&str]) -> Result<String> {
        self.lab.borrow().docker(container.node, &[&["exec", &container.id], words].concat())
    }
}

/// Two clients, 100 new connections a second in all, through every node.
pub(crate) struct Clients(pub(crate) Load, pub(crate) Load);

impl Clients {
    pub(crate) fn start(swarm: &Swarm, port: u16) -> Result<Self> {
        let targets: Vec<_> = (0..NODES).map(|node| at(node_address(node), port)).collect();
        Ok(Self(Load::start(&swarm.client(1), targets.clone(), 50)?, Load::start(&swarm.client(2), targets, 50)?))
    }

    /// Ends the load; nothing may have failed.
    pub(crate) fn stop(self) -> Result<Outcome> {
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

pub(crate) fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

pub(crate) fn node_address(node: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(node).unwrap_or(0)])
}

pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

pub(crate) fn remote(answer: &str) -> Result<IpAddr> {
    Ok(field(answer, "remote").context("no remote address in the answer")?.parse::<SocketAddr>()?.ip())
}

pub(crate) fn first_word(answer: &str) -> String {
    answer.split_whitespace().next().unwrap_or_default().to_owned()
}

/// `GET path` from the namespace, the whole answer.
pub(crate) fn fetch(namespace: &Path, target: SocketAddr, path: &str) -> Result<String> {
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

pub(crate) fn printed(namespace: &Path, words: &'static [&'static str]) -> Result<String> {
    let output = within(namespace, move || Command::new(words[0]).args(&words[1..]).output())??;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Firewall and routing rules without what counts and what depends on the tasks of the moment.
pub(crate) fn rules(namespace: &Path) -> Result<String> {
    let mut text = String::new();
    for words in [&["iptables-save"][..], &["ip6tables-save"], &["ip", "rule"], &["ip", "-6", "rule"], &["nft", "list", "tables"]] {
        text.push_str(&printed(namespace, words)?);
    }
    let kept = text.lines().filter(|l| !l.starts_with('#') && !l.contains("--dport")).map(|l| l.split(" [").next().unwrap_or(l));
    Ok(kept.collect::<Vec<_>>().join("\n"))
}

/// Everything that nftables holds in a namespace, with the handles that tell an old rule from a rewritten one.
pub(crate) fn generation(namespace: &Path) -> Result<String> {
    let text = printed(namespace, &["nft", "--stateless", "--handle", "list", "ruleset"])?;
    Ok(lasting_rules(&text))
}

/// Fails when a node's rules are not those from before its agent.
pub(crate) fn left_of_ours(swarm: &Swarm, node: usize) -> Result<()> {
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

pub(crate) fn evenly(spread: &BTreeMap<String, usize>, tasks: usize, each: usize) -> Result<()> {
    ensure!(spread.len() == tasks && spread.values().all(|n| *n == each), "not {each} for each of {tasks}: {spread:?}");
    Ok(())
}
