//! Real engines on one machine: a swarm of dockerd processes, each in network, mount and UTS namespaces of its own, on one
//! LAN with two clients outside of the swarm.
//!
//! ```text
//!   client1 .101   client2 .102        192.0.2.0/24, 2001:db8::/64
//!        \            /
//!         bridge `lan`  (in a namespace of its own: the host's stays as it is)
//!        /      |      \
//!   n1 .11   n2 .12   n3 .13           eth0 of each node
//! ```
//!
//! Inside of a node everything is where an engine of its own machine has it: `/var/run/docker.sock`, `/var/run/docker/netns`.
//! All processes of a lab are in cgroups below its name, so that one write ends them all, whoever started them.

mod ask;
mod cleanup;
mod rootfs;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use ask::Container;
pub use cleanup::residue;
pub use rootfs::Rootfs;

// In an emulated machine, too.
const ENGINE_STARTS: Duration = Duration::from_secs(180);
const API_ANSWERS: Duration = Duration::from_secs(60);
const NODE_JOINS: Duration = Duration::from_secs(180);
const NODE_IS_MADE: Duration = Duration::from_secs(60);

/// A running lab; gone with everything in it when dropped, unless it is kept.
#[derive(Debug)]
pub struct DockerLab {
    prefix: String,
    work: PathBuf,
    nodes: Vec<Node>,
    kept: bool,
    /// Held until the lab is gone or left alone; nothing ever connects to it.
    _name: Option<UnixListener>,
}

#[derive(Debug)]
struct Node {
    work: PathBuf,
    keeper: Keeper,
    engine: Option<Child>,
}

/// Holds a node's namespaces while its engine is down.
#[derive(Debug)]
enum Keeper {
    Own(Child),
    /// Started by the process that made the lab.
    Found(u32),
}

impl Keeper {
    fn id(&self) -> u32 {
        match self {
            Self::Own(child) => child.id(),
            Self::Found(id) => *id,
        }
    }
}

impl DockerLab {
    /// Brings up `nodes` engines, the first `managers` of which are the swarm's managers.
    pub fn up(prefix: &str, nodes: usize, managers: usize) -> Result<Self> {
        ensure!(
            (1..=10).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
            "lab name {prefix:?}: use 1 to 10 small letters and digits"
        );
        ensure!((1..=80).contains(&nodes) && (1..=nodes).contains(&managers), "a lab has 1 to 80 nodes and at least one manager");
        ensure!(nix::unistd::geteuid().is_root(), "a lab needs root for its namespaces");
        let name = reserve(prefix)?;
        cleanup::remove(prefix)?;
        let work = cleanup::work_dir(prefix);
        fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
        let mut lab = Self { prefix: prefix.to_owned(), work, nodes: Vec::new(), kept: false, _name: Some(name) };
        lab.make_lan(nodes)?;
        for index in 0..nodes {
            let node = Node::start(&lab, index)?;
            lab.nodes.push(node);
        }
        for index in 0..nodes {
            lab.start_engine(index)?;
        }
        for index in 0..nodes {
            lab.wait_for_engine(index)?;
        }
        lab.form_swarm(managers)?;
        Ok(lab)
    }

    /// Leaves the lab running behind this process: [`Self::attach`] finds it again, [`Self::sweep`] ends it.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Finds a lab that was kept. Its engines are those of the process that started them: they can be asked, not stopped.
    pub fn attach(prefix: &str) -> Result<Self> {
        let work = cleanup::work_dir(prefix);
        let mut lab = Self { prefix: prefix.to_owned(), work, nodes: Vec::new(), kept: true, _name: None };
        while let Ok(text) = fs::read_to_string(lab.node_dir(lab.nodes.len()).join("ready")) {
            let name = node_name(lab.nodes.len());
            let id: u32 = text.trim().parse().with_context(|| format!("no process is known for node {name}"))?;
            ensure!(Path::new(&format!("/proc/{id}")).exists(), "node {name} of lab {prefix} is gone");
            let work = lab.node_dir(lab.nodes.len());
            lab.nodes.push(Node { work, keeper: Keeper::Found(id), engine: None });
        }
        ensure!(!lab.nodes.is_empty(), "there is no lab {prefix}");
        Ok(lab)
    }

    /// Removes what an earlier lab of this name left, however it ended.
    pub fn sweep(prefix: &str) -> Result<()> {
        let _name = reserve(prefix)?;
        cleanup::remove(prefix)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// For the caller's own files; removed with the lab.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The node's address on the LAN.
    pub fn address(&self, node: usize) -> IpAddr {
        address(node)
    }

    /// Where a node's own files are; removed with the lab.
    pub fn node_work(&self, node: usize) -> Result<&Path> {
        Ok(&self.node(node)?.work)
    }

    /// The engine's socket, as seen from outside of the node.
    pub fn socket(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("docker.sock")
    }

    /// The node's `/var/run/docker/netns`, as seen from outside of its mount namespace.
    pub fn netns_dir(&self, node: usize) -> Result<PathBuf> {
        // By its real name: /var/run is an absolute link, which would lead back to this process's own /run.
        Ok(PathBuf::from(format!("/proc/{}/root/run/docker/netns", self.node(node)?.keeper.id())))
    }

    /// Name of the node's network namespace below `/run/netns`.
    pub fn node_netns(&self, node: usize) -> String {
        format!("{}-{}", self.prefix, node_name(node))
    }

    /// Name of the network namespace of client 1 or 2.
    pub fn client_netns(&self, client: usize) -> String {
        format!("{}-client{client}", self.prefix)
    }

    /// The network namespace of one of the node's containers, as a path for `setns`.
    pub fn task_netns(&self, node: usize, container: &str) -> Result<PathBuf> {
        let key = self.docker(node, &["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", container])?;
        let name = key.trim().rsplit('/').next().filter(|n| !n.is_empty()).with_context(|| format!("{container} has no sandbox"))?;
        Ok(self.netns_dir(node)?.join(name))
    }

    /// Runs the Docker client against a node's engine and returns what it printed.
    pub fn docker(&self, node: usize, args: &[&str]) -> Result<String> {
        output(self.docker_command(node).args(args))
    }

    /// The Docker client, set up for a node's engine; add arguments.
    pub fn docker_command(&self, node: usize) -> Command {
        let mut command = Command::new("docker");
        let socket = format!("unix://{}", self.socket(node).display());
        // A configuration of its own: nothing of the caller's contexts, plugins or credentials.
        command.env("DOCKER_HOST", socket).env("DOCKER_CONFIG", self.work.join("cli")).env_remove("DOCKER_CONTEXT");
        command
    }

    /// What a node's engine answers to `GET path`, as JSON.
    pub fn api(&self, node: usize, path: &str) -> Result<serde_json::Value> {
        let answer = http_get(&self.socket(node), path, API_ANSWERS).with_context(|| format!("GET {path} of {}", node_name(node)))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "GET {path} of {}: {status}: {}", node_name(node), body.trim());
        Ok(serde_json::from_str(body)?)
    }

    /// Runs a program of this machine in a node's network, mount and UTS namespaces.
    pub fn exec_node(&self, node: usize, args: &[&str]) -> Result<String> {
        let (program, args) = args.split_first().context("nothing to run")?;
        output(self.command_in_node(node, program)?.args(args))
    }

    /// Runs a program of this machine as client 1 or 2: on the LAN, outside of the swarm.
    pub fn exec_client(&self, client: usize, args: &[&str]) -> Result<String> {
        output(self.command_in_client(client).args(args))
    }

    /// A command that runs in a client's network namespace; add program and arguments.
    pub fn command_in_client(&self, client: usize) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.client_netns(client))).arg("--");
        command
    }

    /// As [`Self::command_in_client`], for what starts processes of its own: they end with the lab at the latest.
    pub fn lasting_command_in_client(&self, client: usize) -> Result<Command> {
        let cgroup = cleanup::cgroup(&self.prefix)?.join(format!("client{client}"));
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot create cgroup {}", cgroup.display()))?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
        command.arg("nsenter").arg(format!("--net=/run/netns/{}", self.client_netns(client))).arg("--");
        Ok(command)
    }

    /// A command that runs in a node's namespaces; add arguments, environment, input and output as usual. The process
    /// id is the program's own, and the program ends with the lab at the latest.
    pub fn command_in_node(&self, node: usize, program: &str) -> Result<Command> {
        let keeper = self.node(node)?.keeper.id();
        let procs = cleanup::cgroup(&self.prefix)?.join(node_name(node)).join("engine/cgroup.procs");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs);
        command.args(["nsenter", "--net", "--mount", "--uts", "--target", &keeper.to_string(), "--", program]);
        Ok(command)
    }

    /// Starts the command's program with its arguments and environment in a node's namespaces, such as an agent.
    pub fn spawn_in_node(&self, node: usize, command: &Command) -> Result<Child> {
        let program = command.get_program().to_str().context("the program's name is not text")?;
        let mut inside = self.command_in_node(node, program)?;
        inside.args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.spawn().with_context(|| format!("cannot start {program} in {}", node_name(node)))
    }

    /// Imports a directory as an image into every node. What runs in it must be in it: see [`Rootfs`].
    pub fn import_image(&self, tag: &str, rootfs: &Path) -> Result<()> {
        self.import_image_with(tag, rootfs, &[])
    }

    /// As [`Self::import_image`], with lines of a Dockerfile, such as `CMD …`.
    pub fn import_image_with(&self, tag: &str, rootfs: &Path, lines: &[&str]) -> Result<()> {
        let tar = self.work.join("image.tar");
        output(Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&tar).arg("."))?;
        let tar = tar.to_str().context("the lab's directory is not text")?;
        let mut words = vec!["import"];
        lines.iter().for_each(|line| words.extend(["--change", line]));
        words.extend([tar, tag]);
        let words = &words;
        thread::scope(|scope| {
            let imports: Vec<_> = (0..self.nodes.len()).map(|node| scope.spawn(move || self.docker(node, words))).collect();
            imports.into_iter().try_for_each(|import| match import.join() {
                Ok(result) => result.map(drop),
                Err(_) => bail!("an import of {tag} panicked"),
            })
        })?;
        Ok(fs::remove_file(tar)?)
    }

    /// Gives an image further names on every node.
    pub fn name_image(&self, tag: &str, names: &[&str]) -> Result<()> {
        for node in 0..self.nodes.len() {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--fail", "--request", "POST", "--unix-socket"]).arg(self.socket(node));
            command.args(names.iter().map(|name| {
                let (repository, tag_of) = name.split_once(':').unwrap_or((name, "latest"));
                format!("http://engine/images/{tag}/tag?repo={repository}&tag={tag_of}")
            }));
            output(&mut command).with_context(|| format!("naming {tag} on {}", node_name(node)))?;
        }
        Ok(())
    }

    /// Starts a node's engine, which must not be running.
    pub fn start_engine(&mut self, node: usize) -> Result<()> {
        ensure!(self.node(node)?.engine.is_none(), "the engine of {} runs already", node_name(node));
        let dir = self.node_dir(node);
        let log = File::options().create(true).append(true).open(dir.join("dockerd.log"))?;
        let mut command = self.command_in_node(node, "dockerd")?;
        command.arg("--data-root").arg(dir.join("data")).args(["--exec-root", "/var/run/docker"]);
        command.arg("--pidfile").arg(dir.join("dockerd.pid")).args(["--host", "unix:///var/run/docker.sock", "--host"]);
        command.arg(format!("unix://{}", self.socket(node).display()));
        command.arg("--cgroup-parent").arg(format!("/{}/{}", self.prefix, node_name(node)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let engine = command.spawn().context("cannot start dockerd; is docker.io installed?")?;
        self.node_mut(node)?.engine = Some(engine);
        Ok(())
    }

    /// Waits until the engine answers.
    pub fn wait_for_engine(&mut self, node: usize) -> Result<()> {
        let socket = self.socket(node);
        let log = self.node_dir(node).join("dockerd.log");
        let engine = self.node_mut(node)?.engine.as_mut().context("the engine is not started")?;
        let started = Instant::now();
        while !answers(&socket) {
            let ended = engine.try_wait()?;
            if ended.is_some() || started.elapsed() > ENGINE_STARTS {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(5).collect();
                bail!("the engine of {} does not answer (ended: {ended:?}): {}", node_name(node), tail.join("\n"));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends the engine a signal.
    pub fn signal_engine(&self, node: usize, signal: Signal) -> Result<()> {
        let engine = self.node(node)?.engine.as_ref().context("the engine is not started")?;
        kill(Pid::from_raw(i32::try_from(engine.id())?), signal).with_context(|| format!("cannot signal the engine of {}", node_name(node)))
    }

    /// Stops the engine (`SIGTERM`: its containers end too; `SIGKILL`: they stay) and waits for its end.
    pub fn stop_engine(&mut self, node: usize, signal: Signal) -> Result<()> {
        self.signal_engine(node, signal)?;
        let mut engine = self.node_mut(node)?.engine.take().context("the engine is not started")?;
        engine.wait()?;
        // One that was killed leaves its socket and pid files. The next one would wait for the containerd of before, which
        // ends with its engine, but passes for alive for as long as nobody reaps it: not every init of a test machine does.
        let dir = self.node_dir(node);
        let containerd = format!("/proc/{}/root/run/docker/containerd/containerd.pid", self.node(node)?.keeper.id());
        for file in [dir.join("docker.sock"), dir.join("dockerd.pid"), containerd.into()] {
            remove_if_there(&file)?;
        }
        Ok(())
    }

    fn node(&self, node: usize) -> Result<&Node> {
        self.nodes.get(node).with_context(|| format!("there is no node {node} in a lab of {}", self.nodes.len()))
    }

    fn node_mut(&mut self, node: usize) -> Result<&mut Node> {
        let nodes = self.nodes.len();
        self.nodes.get_mut(node).with_context(|| format!("there is no node {node} in a lab of {nodes}"))
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.work.join(node_name(node))
    }

    fn make_lan(&self, nodes: usize) -> Result<()> {
        let lan = format!("{}-lan", self.prefix);
        ip(&["netns", "add", &lan])?;
        ip(&["-n", &lan, "link", "add", "lan", "type", "bridge"])?;
        ip(&["-n", &lan, "link", "set", "lan", "up"])?;
        // Frames between the nodes are nobody's to filter. There is no such switch while the kernel does not filter bridges at all.
        for family in ["ip", "ip6", "arp"] {
            let switch = format!("net.bridge.bridge-nf-call-{family}tables=0");
            let _absent = output(Command::new("ip").args(["netns", "exec", &lan, "sysctl", "-qw", &switch]));
        }
        let clients = (1..=2).map(|client| (format!("client{client}"), 100 + client));
        let members = (0..nodes).map(|node| (node_name(node), host(node))).chain(clients);
        for (name, host) in members {
            let netns = format!("{}-{name}", self.prefix);
            ip(&["netns", "add", &netns])?;
            ip(&["-n", &netns, "link", "set", "lo", "up"])?;
            ip(&["-n", &lan, "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
            ip(&["-n", &lan, "link", "set", &name, "master", "lan", "up"])?;
            ip(&["-n", &netns, "address", "add", &format!("192.0.2.{host}/24"), "dev", "eth0"])?;
            ip(&["-n", &netns, "address", "add", &format!("2001:db8::{host}/64"), "dev", "eth0", "nodad"])?;
            ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn form_swarm(&self, managers: usize) -> Result<()> {
        let first = self.address(0).to_string();
        self.docker(0, &["swarm", "init", "--advertise-addr", &first])?;
        let meeting = format!("{first}:2377");
        for node in 1..self.nodes.len() {
            let role = if node < managers { "manager" } else { "worker" };
            let token = self.docker(0, &["swarm", "join-token", "--quiet", role])?;
            if let Err(error) = self.docker(node, &["swarm", "join", "--token", token.trim(), &meeting]) {
                // The client gives up after 20 s, the engine goes on.
                self.wait_for_member(node).with_context(|| format!("{error:#}"))?;
            }
        }
        Ok(())
    }

    fn wait_for_member(&self, node: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            let state = self.api(node, "/info")?["Swarm"]["LocalNodeState"].clone();
            match state.as_str() {
                Some("active") => return Ok(()),
                Some("pending") if started.elapsed() < NODE_JOINS => sleep(Duration::from_secs(1)),
                _ => bail!("{} does not join: its state is {state}", node_name(node)),
            }
        }
    }
}

impl Drop for DockerLab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = cleanup::remove(&self.prefix) {
            report(&format!("lab {} is not gone: {error:#}", self.prefix));
        }
        for node in &mut self.nodes {
            let keeper = match &mut node.keeper {
                Keeper::Own(child) => Some(child),
                Keeper::Found(_) => None,
            };
            for child in [keeper, node.engine.as_mut()].into_iter().flatten() {
                // Killed with the lab; this only takes notice.
                let _status = child.wait();
            }
        }
    }
}

impl Node {
    /// Makes the node's namespaces and cgroup, with nothing running in them yet.
    fn start(lab: &DockerLab, index: usize) -> Result<Self> {
        let name = node_name(index);
        let work = lab.work.join(&name);
        fs::create_dir_all(&work)?;
        let cgroup = cleanup::cgroup(&lab.prefix)?.join(&name).join("engine");
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot create cgroup {}", cgroup.display()))?;
        let script = work.join("node.sh");
        fs::write(&script, include_str!("dockerlab/node.sh"))?;
        // `ip netns exec` would mount a /sys of its own, which hides the cgroups from the engine.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}-{name}", lab.prefix));
        command.args(["unshare", "--mount", "--uts", "--propagation", "private", "sh"]).arg(&script);
        command.arg(&name).arg(&cgroup).arg(work.join("ready"));
        // Nothing of the caller's terminal or pipes: a lab may outlive its caller.
        let log = File::create(work.join("node.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let mut keeper = command.spawn().with_context(|| format!("cannot start node {name}"))?;
        wait_until_made(&name, &work, &mut keeper)?;
        Ok(Self { work, keeper: Keeper::Own(keeper), engine: None })
    }
}

/// Keeps other processes from making, and thereby sweeping, a lab of the same name. An abstract socket ends with its process,
/// however that ends, and leaves no file.
fn reserve(prefix: &str) -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("swarmesh-dockerlab-{prefix}"))?;
    UnixListener::bind_addr(&address).with_context(|| format!("lab {prefix} is another process's at the moment"))
}

fn wait_until_made(name: &str, work: &Path, keeper: &mut Child) -> Result<()> {
    let started = Instant::now();
    while !work.join("ready").exists() {
        if let Some(status) = keeper.try_wait()? {
            let said = fs::read_to_string(work.join("node.log")).unwrap_or_default();
            bail!("the namespaces of node {name} cannot be made: {status}: {}", said.trim());
        }
        ensure!(started.elapsed() < NODE_IS_MADE, "node {name} is not made after {} s", NODE_IS_MADE.as_secs());
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn node_name(node: usize) -> String {
    format!("n{}", node + 1)
}

fn host(node: usize) -> usize {
    11 + node
}

fn address(node: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(host(node)).unwrap_or(u8::MAX)).into()
}

fn answers(socket: &Path) -> bool {
    http_get(socket, "/_ping", Duration::from_secs(1)).is_ok_and(|answer| answer.ends_with("OK"))
}

/// Head and body of the answer. HTTP 1.0, so that it ends with the connection and comes in one piece.
fn http_get(socket: &Path, path: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// What the command printed; an error with what it complained about when it failed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} {} ended with {}: {}", command.get_program().to_string_lossy(), words.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[expect(clippy::print_stderr, reason = "a destructor has nobody else to tell")]
fn report(text: &str) {
    eprintln!("{text}");
}
