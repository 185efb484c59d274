//! The swarm that is asked: three engines, and an agent on each node or none.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use swarmesh_tests::{
    agents::{self, Agents},
    dockerlab::{Container, DockerLab},
    names,
    netns::within,
};

use super::{
    sampler,
    seen::{Caller, Reach, Saw},
};
use crate::run::say;

pub(super) const PREFIX: &str = "meshes";
const IMAGE: &str = "whoami:1";
/// An emulated machine on a busy one starts a task in half a minute.
const PATIENCE: Duration = Duration::from_secs(900);
/// Two TCP ports and one for UDP; on SIGTERM it serves on, as a careful server does.
pub(super) const SERVES: [&str; 8] =
    ["--env", "WHOAMI_TCP=80,81", "--env", "WHOAMI_UDP=53", "--env", "WHOAMI_LINGER=8", "--stop-grace-period", "30s"];

/// What takes so long is said.
const TELL: Duration = Duration::from_secs(60);
/// The services that every row finds, and how many tasks they have.
const OURS: [(&str, usize); 3] = [("web", 3), ("api", 1), ("elsewhere", 1)];

pub(super) struct Swarm {
    lab: RefCell<DockerLab>,
    agents: Option<RefCell<Agents>>,
}

impl Swarm {
    /// With agents on a plane, or without any.
    pub(super) fn up(program: &Path, nodes: usize, plane: Option<&str>) -> Result<Self> {
        let started = Instant::now();
        let lab = DockerLab::up(PREFIX, nodes, nodes)?;
        let mut agents =
            Agents::new(&lab, program)?.with_options(plane.map(|plane| ["--plane", plane]).as_ref().map_or(&[], |words| &words[..]));
        agents::import_image(&lab, agents.program(), IMAGE)?;
        say(&format!("      {:6.1} s  {nodes} engines, one swarm, the image", started.elapsed().as_secs_f32()));
        if plane.is_some() {
            (0..nodes).try_for_each(|node| agents.start(&lab, node))?;
        }
        let swarm = Self { lab: RefCell::new(lab), agents: plane.is_some().then(|| RefCell::new(agents)) };
        swarm.populate().with_context(|| swarm.complaints())?;
        say(&format!("      {:6.1} s  the services answer", started.elapsed().as_secs_f32()));
        Ok(swarm)
    }

    /// The services that every row finds.
    fn populate(&self) -> Result<()> {
        for network in ["back", "other"] {
            self.docker(&["network", "create", "--driver", "overlay", "--attachable", network])?;
        }
        let web = [&["--network", "back", "--publish", "7000:80", "--publish", "7000:53/udp"], &SERVES[..]].concat();
        self.create("web", 3, &web)?;
        self.create("api", 1, &[&["--network", "back"], &SERVES[..]].concat())?;
        self.create("elsewhere", 1, &[&["--network", "other"], &SERVES[..]].concat())?;
        for (service, count) in OURS {
            self.runs(service, count)?;
        }
        self.all_answer(7000, 3)
    }

    /// What the engines say when nothing comes up.
    fn complaints(&self) -> String {
        let mut text = self.docker(&["service", "ps", "--no-trunc", "web"]).unwrap_or_else(|error| format!("{error:#}"));
        for node in 0..self.nodes() {
            let log = self.lab().node_work(node).map(|work| work.join("dockerd.log"));
            let log = log.and_then(|path| Ok(std::fs::read_to_string(path)?)).unwrap_or_default();
            let serious: Vec<&str> = log.lines().filter(|l| l.contains("level=error") || l.contains("level=warning")).collect();
            text += &format!("\nn{}: {}", node + 1, serious[serious.len().saturating_sub(12)..].join("\n"));
        }
        text
    }

    pub(super) fn lab(&self) -> std::cell::Ref<'_, DockerLab> {
        self.lab.borrow()
    }

    pub(super) fn lab_mut(&self) -> std::cell::RefMut<'_, DockerLab> {
        self.lab.borrow_mut()
    }

    pub(super) fn nodes(&self) -> usize {
        self.lab().len()
    }

    /// The one that rows disturb.
    pub(super) fn last(&self) -> usize {
        self.nodes() - 1
    }

    /// The client against the first engine.
    pub(super) fn docker(&self, words: &[&str]) -> Result<String> {
        self.lab().docker(0, words)
    }

    /// Whether the first engine does it. Only its client's exit code counts.
    pub(super) fn takes(&self, words: &[&str], input: &str) -> Result<bool> {
        let mut command = self.lab().docker_command(0);
        let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            // A client that does not ask is gone by now.
            let _unread = pipe.write_all(input.as_bytes());
        }
        Ok(child.wait()?.success())
    }

    pub(super) fn create(&self, name: &str, replicas: usize, options: &[&str]) -> Result<()> {
        let replicas = replicas.to_string();
        self.docker(&agents::whoami(IMAGE, name, &[&["--replicas", &replicas], options].concat())).map(drop)
    }

    /// Whether the engine takes such a service. It is removed again.
    pub(super) fn creates(&self, name: &str, options: &[&str]) -> Result<Saw> {
        let taken = self.takes(&agents::whoami(IMAGE, name, &[&["--replicas", "0"], options].concat()), "")?;
        if taken {
            self.docker(&["service", "rm", name])?;
        }
        Ok(if taken { Saw::Accepted } else { Saw::Rejected })
    }

    pub(super) fn update(&self, service: &str, options: &[&str]) -> Result<()> {
        self.docker(&[&["service", "update", "--quiet", "--detach", "--no-resolve-image"], options, &[service]].concat()).map(drop)
    }

    pub(super) fn scale(&self, service: &str, replicas: usize) -> Result<()> {
        self.docker(&["service", "scale", "--detach", &format!("{service}={replicas}")]).map(drop)
    }

    /// Services that no row needs any more cost processor time.
    pub(super) fn remove(&self, service: &str) -> Result<()> {
        self.docker(&["service", "rm", service])?;
        self.wait(&format!("{service} is gone"), || Ok(self.tasks(service)?.is_empty()))
    }

    /// What a row that broke off has left.
    pub(super) fn tidy(&self) -> Result<()> {
        let services = self.docker(&["service", "ls", "--format", "{{.Name}}"])?;
        services.lines().filter(|name| !OURS.iter().any(|(ours, _)| ours == name)).try_for_each(|name| self.remove(name))
    }

    pub(super) fn tasks(&self, service: &str) -> Result<Vec<Container>> {
        self.lab().tasks(service)
    }

    pub(super) fn task(&self, service: &str) -> Result<Container> {
        self.tasks(service)?.into_iter().next().with_context(|| format!("{service} has no task"))
    }

    pub(super) fn vip(&self, service: &str, network: &str) -> Result<IpAddr> {
        self.lab().vip(service, network)
    }

    pub(super) fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut tell = Instant::now() + TELL;
        loop {
            let outcome = done();
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > end {
                outcome.with_context(|| format!("waited in vain until {what}"))?;
                bail!("waited {} s in vain until {what}", PATIENCE.as_secs());
            }
            if Instant::now() > tell {
                say(&format!("      … until {what}: {outcome:?}"));
                tell = Instant::now() + TELL;
            }
            // Looking costs the engines more than waiting.
            sleep(Duration::from_secs(1));
        }
    }

    /// Waits until the swarm has so many healthy tasks of a service and no others.
    pub(super) fn runs(&self, service: &str, count: usize) -> Result<()> {
        self.wait(&format!("{service} has {count} tasks and no others"), || {
            let tasks = self.tasks(service)?;
            Ok(tasks.len() == count && tasks.iter().all(|task| task.healthy))
        })
    }

    /// Updates a service and waits until all of its `count` tasks are others than before.
    pub(super) fn roll(&self, service: &str, count: usize, options: &[&str]) -> Result<()> {
        let before: BTreeSet<String> = self.tasks(service)?.into_iter().map(|task| task.id).collect();
        self.update(service, options)?;
        self.wait(&format!("all tasks of {service} are replaced"), || {
            let now = self.tasks(service)?;
            Ok(now.len() == count && now.iter().all(|task| task.healthy && !before.contains(&task.id)))
        })
    }

    /// Waits until so many tasks answer by a port of every node: gossip takes its time.
    pub(super) fn all_answer(&self, port: u16, tasks: usize) -> Result<()> {
        for node in 0..self.nodes() {
            self.wait(&format!("{tasks} tasks answer by n{}:{port}", node + 1), || {
                let reaches = sampler::tcp_times(&self.client(), self.at(node, port), 2 * tasks)?;
                let who: BTreeSet<_> = reaches.iter().filter_map(Reach::task).collect();
                ensure!(who.len() == tasks && reaches.iter().all(Reach::answered), "{}", Saw::Spread(reaches.clone()));
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// Outside of the swarm.
    pub(super) fn client(&self) -> PathBuf {
        Path::new("/run/netns").join(self.lab().client_netns(1))
    }

    pub(super) fn client_address(&self) -> IpAddr {
        [192, 0, 2, 101].into()
    }

    pub(super) fn node(&self, node: usize) -> PathBuf {
        Path::new("/run/netns").join(self.lab().node_netns(node % self.nodes()))
    }

    pub(super) fn sandbox(&self, node: usize) -> Result<PathBuf> {
        Ok(self.lab().netns_dir(node % self.nodes())?.join("ingress_sbox"))
    }

    /// A node's port. In a swarm with fewer nodes than a row thinks of, some of them are the same.
    pub(super) fn at(&self, node: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.lab().address(node % self.nodes()), port)
    }

    /// A port of every node.
    pub(super) fn everywhere(&self, port: u16) -> Vec<SocketAddr> {
        (0..self.nodes()).map(|node| self.at(node, port)).collect()
    }

    /// Whom the task of an answer saw, when the caller's own addresses are these. `None` without an answer.
    pub(super) fn caller(&self, reach: &Reach, own: &[IpAddr]) -> Result<Option<Caller>> {
        let Reach::Answered { caller, .. } = reach else { return Ok(None) };
        if own.contains(caller) {
            return Ok(Some(Caller::Itself));
        }
        for node in 0..self.nodes() {
            for entry in std::fs::read_dir(self.lab().netns_dir(node)?)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let place = match name.as_str() {
                    "ingress_sbox" => Caller::IngressSandbox,
                    name if name.starts_with("lb_") => Caller::NetworkSandbox,
                    _ => continue,
                };
                if addresses(&entry.path())?.contains(caller) {
                    return Ok(Some(place));
                }
            }
            if addresses(&self.node(node))?.contains(caller) {
                return Ok(Some(Caller::Node));
            }
        }
        Ok(Some(Caller::Unknown(*caller)))
    }

    /// Whom tasks took for their caller.
    pub(super) fn callers(&self, reaches: &[Reach], own: &[IpAddr]) -> Result<Saw> {
        let callers = reaches.iter().filter_map(|reach| self.caller(reach, own).transpose()).collect::<Result<Vec<_>>>()?;
        ensure!(!callers.is_empty(), "nothing was answered");
        Ok(Saw::Callers(callers))
    }

    /// Where a name leads for a container; `vip` and `tasks` are what it might lead to.
    pub(super) fn name(&self, asker: &Path, name: &str, vip: Option<IpAddr>, tasks: &[IpAddr]) -> Result<Saw> {
        let Some(found) = self.resolve(asker, name)? else { return Ok(Saw::Reach(Reach::Silent)) };
        if found.is_empty() {
            return Ok(Saw::NoName);
        }
        let known = found.iter().filter(|address| tasks.contains(address)).count();
        let is_vip = found.iter().any(|address| Some(*address) == vip);
        Ok(Saw::Name { vip: is_vip, tasks: known, others: found.len() - known - usize::from(is_vip) })
    }

    /// The addresses of a name, none for a name that is not there; nothing if nobody answers, as where an engine passes the
    /// question on to servers that are out of reach.
    pub(super) fn resolve(&self, asker: &Path, name: &str) -> Result<Option<Vec<IpAddr>>> {
        match names::found(asker, name) {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_silence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Polls until `done`, which is an observation and not an error if it does not happen within `limit`.
    pub(super) fn until(&self, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Saw> {
        let started = Instant::now();
        while !done()? {
            if started.elapsed() > limit {
                return Ok(Saw::NotWithin(limit));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(Saw::After(started.elapsed()))
    }

    /// The state of a container's health check, or nothing when it is gone.
    pub(super) fn health(&self, container: &Container) -> Option<String> {
        let seen = self.lab().api(container.node, &format!("/containers/{}/json", container.id)).ok()?;
        (seen["State"]["Running"] == true).then(|| seen["State"]["Health"]["Status"].as_str().unwrap_or_default().to_owned())
    }

    pub(super) fn inside(&self, container: &Container, words: &[&str]) -> Result<String> {
        self.lab().docker(container.node, &[&["exec", &container.id], words].concat())
    }

    /// Which agent this is, for the table's head.
    pub(super) fn plane(&self) -> Result<Option<String>> {
        let Some(agents) = &self.agents else { return Ok(None) };
        let status: Value = serde_json::from_str(&agents.borrow().swarmesh(&self.lab(), 0, &["status", "--output", "json"])?)?;
        Ok(status["plane"]["name"].as_str().map(str::to_owned))
    }
}

/// All IPv4 addresses of a namespace.
fn is_silence(error: &anyhow::Error) -> bool {
    let silent = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|cause| silent.contains(&cause.kind()))
}

fn addresses(namespace: &Path) -> Result<Vec<IpAddr>> {
    let output = within(namespace, || Command::new("ip").args(["-4", "-o", "addr", "show"]).output())??;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut addresses = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().skip_while(|word| *word != "inet").skip(1);
        let Some(word) = words.next() else { continue };
        addresses.push(word.split('/').next().unwrap_or_default().parse()?);
    }
    Ok(addresses)
}

pub(super) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
