//! Names on real engines: the same questions to Docker's own resolver and to ours, so that each difference is one that we list.
//!
//! Needs root, docker.io and busybox-static.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "all of this is a test")]

mod changes;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType, serialize::binary::BinEncodable};
use nix::sys::signal::Signal;
use serde_json::Value;
use swarmesh_tests::{
    agents::{self, Agents},
    clients::clients,
    dockerlab::{DockerLab, residue},
    lab::program,
    names::{Upstream, ask, data, question},
    netns::spawn_within,
};

use crate::changes::Whose;

const PREFIX: &str = "swnames";
const UPSTREAM: [u8; 4] = [192, 0, 2, 101];
const IMAGE: &str = "whoami:1";

/// Who asks, for what, and what Docker says where that is not what we say. `=` is: as Docker says.
///
/// The last column is the table of differences of TESTING.md, by its row.
const QUESTIONS: &[(&str, &str, &str, &str)] = &[
    ("web", "web", "A", "="),
    ("web", "WEB", "A", "="),
    ("web", "web.", "A", "="),
    ("web", "www", "A", "="),
    ("web", "tasks.web", "A", "="),
    ("web", "tasks.www", "A", "="),
    ("web", "web.front", "A", "="),
    ("web", "tasks.web.front", "A", "="),
    ("web", "rr", "A", "="),
    ("web", "tasks.rr", "A", "="),
    ("web", "plain", "A", "="),
    ("web", "pal", "A", "="),
    ("web", "yacht", "A", "="),
    ("web", "plain.front", "A", "="),
    ("web", "faraway", "A", "="),
    ("web", "distant", "A", "="),
    ("web", "faraway.front", "A", "="),
    ("b2", "faraway", "A", "="),
    ("plain", "web", "A", "="),
    ("plain", "rr", "A", "="),
    ("web", "web", "AAAA", "="),
    ("web", "plain", "AAAA", "="),
    ("web", "web", "MX", "="),
    ("web", "other", "A", "="),
    ("web", "web.back", "A", "="),
    ("web", "b1", "A", "="),
    ("b2", "b1", "A", "="),
    ("b2", "b1.yard", "A", "="),
    ("b2", "first", "A", "="),
    ("b2", "uncle", "A", "="),
    ("b1", "uncle", "A", "="),
    ("b2", "web", "A", "="),
    ("b2", "b1", "AAAA", "="),
    ("web", "unknown", "A", "="),
    ("web", "unknown.example", "TXT", "="),
    // Old engines try all the same, and stall.
    ("inside", "unknown.example", "A", "~"),
    ("inside", "inside", "A", "="),
    ("web", "web", "TXT", "D1"),
    ("web", "web", "HTTPS", "D1"),
    ("web", "tasks.web", "NS", "D1"),
    ("b2", "b1", "TXT", "D1"),
    ("web", "nobody", "A", "D2"),
    ("web", "tasks.nobody", "A", "D2"),
    ("web", "_tcp.web", "SRV", "D3"),
    ("web", "web.FRONT", "A", "D5"),
];

/// Reverse names: of what, and whether Docker knows it too.
const REVERSE: &[(&str, &str, &str)] = &[("web", "plain", "="), ("b2", "b1", "="), ("web", "web", "D4")];

struct Subject {
    lab: DockerLab,
    upstream: Upstream,
    askers: RefCell<BTreeMap<&'static str, PathBuf>>,
}

impl Subject {
    fn up() -> Result<(Self, Agents)> {
        let lab = DockerLab::up(PREFIX, 2, 2)?;
        let agents = Agents::new(&lab, &program())?;
        agents::import_image(&lab, agents.program(), IMAGE)?;
        // Both resolvers ask one server for everything else, which is a client of the lab.
        let upstream = Upstream::start(&Path::new("/run/netns").join(lab.client_netns(1)), UPSTREAM.into())?;
        for node in 0..2 {
            let file = lab.node_work(node)?.join("agent-resolv.conf");
            std::fs::write(&file, "nameserver 192.0.2.101\n")?;
            lab.exec_node(node, &["mount", "--bind", &file.to_string_lossy(), "/etc/resolv.conf"])?;
        }
        let docker = |node: usize, words: &[&str]| lab.docker(node, words);
        for network in ["front", "back"] {
            docker(0, &["network", "create", "--driver", "overlay", "--attachable", network])?;
        }
        docker(0, &["network", "create", "--driver", "overlay", "--internal", "inner"])?;
        docker(0, &["network", "create", "yard"])?;
        docker(0, &["network", "create", "--internal", "cellar"])?;
        for (name, options) in [
            ("web", &["--replicas", "2", "--network", "name=front,alias=www", "--publish", "7000:80"][..]),
            ("rr", &["--replicas", "2", "--network", "front", "--endpoint-mode", "dnsrr"]),
            ("nobody", &["--replicas", "0", "--network", "front"]),
            ("other", &["--replicas", "1", "--network", "back"]),
            ("inside", &["--replicas", "2", "--network", "inner"]),
            ("moving", &["--replicas", "2", "--network", "name=front,alias=old", "--update-order", "start-first", "--update-delay", "1s"]),
        ] {
            docker(0, &agents::whoami(IMAGE, name, options))?;
        }
        let run = |name: &str, options: &[&str]| {
            let words = [&["run", "--detach", "--name", name], options, &[IMAGE, "/bin/swarmesh", "whoami"]].concat();
            docker(0, &words).map(drop)
        };
        run("plain", &["--network", "front", "--network-alias", "pal", "--hostname", "yacht"])?;
        run("keeper", &["--network", "cellar"])?;
        run("b1", &["--network", "yard", "--network-alias", "first"])?;
        run("b2", &["--network", "yard", "--link", "b1:uncle"])?;
        // On the other node: no API tells its name.
        lab.docker(
            1,
            &["run", "--detach", "--name", "faraway", "--network", "front", "--network-alias", "distant", IMAGE, "/bin/swarmesh", "whoami"],
        )?;
        let subject = Self { lab, upstream, askers: RefCell::default() };
        subject.wait("all tasks run", || {
            Ok([("web", 2), ("rr", 2), ("other", 1), ("inside", 2), ("moving", 2)].iter().all(|(s, n)| subject.running(s) == *n))
        })?;
        for (asker, service) in [("web", true), ("inside", true), ("plain", false), ("b1", false), ("b2", false)] {
            let filter = if service { format!("label=com.docker.swarm.service.name={asker}") } else { format!("name={asker}") };
            let ids = subject.lab.docker(0, &["ps", "--quiet", "--no-trunc", "--filter", &filter])?;
            let id = ids.lines().next().with_context(|| format!("no container of {asker} on the first node"))?.to_owned();
            let namespace = subject.lab.task_netns(0, &id)?;
            subject.askers.borrow_mut().insert(asker, namespace);
        }
        Ok((subject, agents))
    }

    fn running(&self, service: &str) -> usize {
        let filter = format!(r#"{{"service":["{service}"],"desired-state":["running"]}}"#);
        let path = format!("/tasks?filters={}", filter.replace('{', "%7B").replace('}', "%7D").replace('"', "%22"));
        let tasks = self.lab.api(0, &path).unwrap_or_default();
        tasks.as_array().into_iter().flatten().filter(|t| t["Status"]["State"] == "running").count()
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !matches!(done(), Ok(true)) {
            ensure!(start.elapsed() < Duration::from_secs(40), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn asker(&self, name: &str) -> Result<PathBuf> {
        self.askers.borrow().get(name).cloned().with_context(|| format!("{name} does not ask"))
    }

    /// What a question comes to, in words that do not depend on who answers.
    fn outcome(&self, asker: &str, name: &str, kind: &str) -> Result<String> {
        let Ok(answer) = ask(&self.asker(asker)?, &question(name, kind.parse::<RecordType>()?, None)?) else {
            return Ok("no answer".to_owned());
        };
        Ok(match answer.metadata.response_code {
            ResponseCode::NoError if answer.answers.is_empty() => "nothing".to_owned(),
            ResponseCode::NoError => data(&answer).join(" "),
            // The one upstream knows none of these names, and answers of ours have no such code but for ports.
            ResponseCode::NXDomain if !name.starts_with('_') => "asked upstream".to_owned(),
            code => code.to_string(),
        })
    }

    /// In a task's namespace, with the `resolv.conf` that Docker gives it.
    fn real_clients(&self, ours: &BTreeMap<String, String>) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let resolv_conf = directory.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 127.0.0.11\noptions ndots:0\n")?;
        let mut wrong = Vec::new();
        for client in clients(directory.path())? {
            for name in ["web", "www", "tasks.web", "web.front", "rr", "plain", "faraway"] {
                let expected: BTreeSet<IpAddr> =
                    ours[&format!("web asks for {name} A")].split(' ').filter_map(|a| a.parse().ok()).collect();
                ensure!(!expected.is_empty(), "{name} has no address");
                let found = client.find(&self.asker("web")?, &resolv_conf, name)?;
                if found.as_ref() != Some(&expected) {
                    wrong.push(format!("{}: {name} is {found:?}, not {expected:?}", client.name));
                }
            }
            eprintln!("      {} has found what is there", client.name);
        }
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    }

    fn all(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for (asker, name, kind, _) in QUESTIONS {
            let outcome = self.outcome(asker, name, kind).with_context(|| format!("{asker} asks for {name} {kind}"))?;
            all.insert(format!("{asker} asks for {name} {kind}"), outcome);
        }
        for (asker, name, _) in REVERSE {
            let address = self.outcome(asker, name, "A")?;
            let reversed: Vec<&str> = address.split('.').rev().collect();
            let outcome = self.outcome(asker, &format!("{}.in-addr.arpa", reversed.join(".")), "PTR")?;
            all.insert(format!("{asker} asks for the name of {name}"), outcome);
        }
        Ok(all)
    }
}

/// How many questions there were, and how long those took that took long.
type Load = std::thread::JoinHandle<Result<(usize, Vec<Duration>)>>;

/// Asks for `web` a hundred times a second until told to stop. A question is asked again after a second, as resolvers do.
fn load(asker: &Path, is_over: Arc<AtomicBool>) -> Result<Load> {
    spawn_within(asker, move || {
        let (mut count, mut slow) = (0, Vec::new());
        while !is_over.load(Ordering::Relaxed) {
            let start = Instant::now();
            // glibc asks from a new socket each time.
            let mut answered = false;
            while !answered && start.elapsed() < Duration::from_secs(10) {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect("127.0.0.11:53")?;
                let bytes = question("web", RecordType::A, None)?.to_bytes()?;
                answered = within_a_second(&socket, &bytes);
            }
            ensure!(answered, "no answer for ten seconds");
            count += 1;
            if start.elapsed() > Duration::from_millis(100) {
                slow.push(start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok((count, slow))
    })
}

fn within_a_second(socket: &UdpSocket, bytes: &[u8]) -> bool {
    let mut room = [0; 512];
    let asked = socket.set_read_timeout(Some(Duration::from_secs(1))).and_then(|()| socket.send(bytes));
    asked.is_ok() && socket.recv(&mut room).is_ok_and(|len| len > 12 && room[7] > 0)
}

#[test]
fn names_beside_docker() {
    check().unwrap();
    let left = residue(PREFIX);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn check() -> Result<()> {
    let (subject, mut agents) = Subject::up()?;
    let dockers = subject.all()?;
    subject.aliases_follow_a_rollout(Whose::Docker)?;
    subject.a_way_out_comes_and_goes(Whose::Docker)?;
    subject.own_servers(Whose::Docker)?;
    for node in 0..2 {
        agents.start(&subject.lab, node)?;
    }
    let status = |agents: &Agents| -> Result<Value> {
        Ok(serde_json::from_str(&agents.swarmesh(&subject.lab, 0, &["status", "--output", "json"])?)?)
    };
    subject.wait("the agents answer", || {
        let status = status(&agents)?;
        Ok(status["pending"].as_array().is_some_and(Vec::is_empty) && status["names"]["answered"].as_u64() >= Some(5))
    })?;
    let ours = subject.all()?;
    let mut wrong = Vec::new();
    let rows = QUESTIONS.iter().map(|(asker, name, kind, difference)| (format!("{asker} asks for {name} {kind}"), *difference));
    let rows = rows.chain(REVERSE.iter().map(|(asker, name, difference)| (format!("{asker} asks for the name of {name}"), *difference)));
    for (row, difference) in rows {
        let (docker, own) = (&dockers[&row], &ours[&row]);
        eprintln!("      {difference:3} {row}: {docker} / {own}");
        let is_same = docker == own;
        if difference != "~" && is_same != (difference == "=") {
            wrong.push(format!("{row}: Docker says {docker:?}, we say {own:?}, listed as {difference}"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    subject.upstream.asked();
    subject.outcome("inside", "leak.example", "A")?;
    ensure!(subject.upstream.asked().is_empty(), "an internal network leaks (CVE-2024-29018)");

    subject.aliases_follow_a_rollout(Whose::Ours)?;
    subject.a_way_out_comes_and_goes(Whose::Ours)?;
    subject.own_servers(Whose::Ours)?;

    subject.real_clients(&ours)?;

    // In the container itself, by its own program.
    let id = subject.lab.docker(0, &["ps", "--quiet", "--filter", "name=plain"])?;
    let printed = subject.lab.docker(0, &["exec", id.trim(), "nslookup", "web"])?;
    ensure!(printed.contains(&ours["web asks for web A"]), "{printed}");

    // An agent that ends, and one that is killed: Docker's resolver answers in between.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let is_over = Arc::new(AtomicBool::new(false));
        let asking = load(&subject.asker("web")?, Arc::clone(&is_over))?;
        std::thread::sleep(Duration::from_millis(500));
        agents.stop(0, signal)?;
        std::thread::sleep(Duration::from_millis(1500));
        let queries = status(&agents).is_ok();
        ensure!(!queries, "the agent lives");
        agents.start(&subject.lab, 0)?;
        subject.wait("the agent answers again", || Ok(status(&agents)?["names"]["answered"].as_u64() >= Some(5)))?;
        std::thread::sleep(Duration::from_millis(500));
        is_over.store(true, Ordering::Relaxed);
        let (count, slow) = asking.join().map_err(|_| anyhow::anyhow!("the asker panicked"))??;
        eprintln!("      {signal}: {count} questions, {} of them took longer than 100 ms: {slow:?}", slow.len());
        ensure!(slow.iter().all(|time| *time < Duration::from_millis(2200)), "{slow:?}");
        ensure!(slow.len() <= if signal == Signal::SIGTERM { 0 } else { 1 }, "{signal}: {slow:?}");
    }

    // A container that comes, is renamed by nobody, and goes.
    subject.lab.docker(0, &["run", "--detach", "--name", "late", "--network", "yard", IMAGE, "/bin/swarmesh", "whoami"])?;
    subject.wait("the new container is known", || Ok(subject.outcome("b2", "late", "A")?.contains('.')))?;
    subject.lab.docker(0, &["network", "connect", "front", "b2"])?;
    subject.wait("the new member sees the network's names", || Ok(subject.outcome("b2", "web", "A")? == ours["web asks for web A"]))?;
    subject.lab.docker(0, &["network", "disconnect", "front", "b2"])?;
    subject.wait("and sees them no more", || Ok(subject.outcome("b2", "web", "A")? == "asked upstream"))?;
    subject.lab.docker(0, &["rm", "--force", "late"])?;
    subject.wait("the container is forgotten", || Ok(subject.outcome("b2", "late", "A")? == "asked upstream"))?;

    for node in 0..2 {
        agents.stop(node, Signal::SIGTERM)?;
    }
    ensure!(subject.all()? == dockers, "Docker's resolver answers again as it did");
    Ok(())
}
