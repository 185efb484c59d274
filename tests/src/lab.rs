//! The emulator as a test subject: a swarm without Docker, brought up for one test and taken down with it.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{
    load::{field, request},
    netns::within,
    patience::{patient, silence},
    plane::plane,
};

const UP: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(1500);

/// The built program: `SWARMESH_BIN`, or what cargo built beside the test.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("SWARMESH_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap_or_default();
    // target/debug/deps/<test>
    test.parent().and_then(Path::parent).map(|dir| dir.join("swarmesh")).unwrap_or_default()
}

#[derive(Debug)]
pub struct Lab {
    name: String,
    stacks: tempfile::TempDir,
}

impl Lab {
    /// A swarm of `nodes` from the text of a stack file, all tasks running, all agents ready.
    pub fn up(name: &str, nodes: usize, stack: &str, arguments: &[&str]) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the emulator makes network namespaces: run this tier as root");
        let lab = Self { name: name.to_owned(), stacks: tempfile::tempdir()? };
        lab.down()?;
        let file = lab.write_stack(stack)?;
        let (nodes, plane, limit) = (nodes.to_string(), plane().to_string(), patient(UP).as_secs().to_string());
        let mut words = vec!["up", "--nodes", &nodes, "--stack-name", "t", "--file", &file];
        words.extend(["--plane", &plane, "--wait", "--wait-timeout", &limit]);
        words.extend(arguments);
        lab.lab(&words)?;
        Ok(lab)
    }

    fn write_stack(&self, stack: &str) -> Result<String> {
        let file = self.stacks.path().join("stack.yml");
        std::fs::write(&file, stack)?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Deploys a changed stack over the present one.
    pub fn deploy(&self, stack: &str) -> Result<()> {
        let file = self.write_stack(stack)?;
        self.lab(&["deploy", "--prune", "--stack-name", "t", "--file", &file]).map(drop)
    }

    /// As [`Self::deploy`], with variables that the stack names.
    pub fn deploy_with(&self, stack: &str, variables: &[(&str, &str)]) -> Result<()> {
        let file = self.write_stack(stack)?;
        self.lab_with(&["deploy", "--prune", "--stack-name", "t", "--file", &file], variables).map(drop)
    }

    /// `swarmesh lab WORDS… ` for this lab.
    pub fn lab(&self, words: &[&str]) -> Result<String> {
        self.lab_with(words, &[])
    }

    fn lab_with(&self, words: &[&str], variables: &[(&str, &str)]) -> Result<String> {
        let (first, rest) = words.split_first().context("no command")?;
        let mut command = Command::new(program());
        command.args(["lab", first, "--name", &self.name]).args(rest).envs(variables.iter().copied()).stdin(Stdio::null());
        let output = command.output().context("cannot run swarmesh")?;
        if !output.status.success() {
            bail!("swarmesh lab {} ended with {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn exec(&self, place: &str, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(program());
        command.args(["lab", "exec", "--name", &self.name, place, "--"]).args(words).stdin(Stdio::null());
        command.output().context("cannot run swarmesh")
    }

    /// As [`Self::exec`], for commands that must succeed; returns what they print.
    pub fn run(&self, place: &str, words: &[&str]) -> Result<String> {
        let output = self.exec(place, words)?;
        if !output.status.success() {
            bail!("{place}: {} ended with {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The `swarmesh` program on a node, as an operator would call it.
    pub fn swarmesh(&self, node: &str, words: &[&str]) -> Result<String> {
        let program = program().to_string_lossy().into_owned();
        let words: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
        self.run(node, &words)
    }

    pub fn down(&self) -> Result<()> {
        self.lab(&["down"]).map(drop)
    }

    /// Where a node's or client's namespace is.
    pub fn namespace(&self, place: &str) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/swl-{}-{place}", self.name))
    }

    /// A task's namespace, found through the snapshot.
    pub fn task_namespace(&self, task: &Value) -> PathBuf {
        let node = self.node_name(task["node"].as_str().unwrap_or_default());
        let sandbox = task["sandbox"].as_str().unwrap_or_default();
        PathBuf::from(format!("/run/swarmesh-lab/{}/{node}/netns/{sandbox}", self.name))
    }

    pub fn ingress_namespace(&self, node: &str) -> PathBuf {
        PathBuf::from(format!("/run/swarmesh-lab/{}/{node}/netns/ingress_sbox", self.name))
    }

    pub fn node_name(&self, id: &str) -> String {
        let snapshot = self.snapshot().unwrap_or_default();
        let nodes = snapshot["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().find(|n| n["id"] == id).and_then(|n| n["hostname"].as_str()).unwrap_or_default().to_owned()
    }

    pub fn snapshot(&self) -> Result<Value> {
        let path = format!("/run/swarmesh-lab/{}/snapshot.json", self.name);
        Ok(serde_json::from_str(&std::fs::read_to_string(&path).with_context(|| path.clone())?)?)
    }

    /// The tasks of a service as the snapshot has them, usable ones only.
    pub fn tasks(&self, service: &str) -> Result<Vec<Value>> {
        let all = self.all_tasks(service)?;
        Ok(all.into_iter().filter(|t| t["state"] == "running" && t["desired_state"] == "running" && t["healthy"] != false).collect())
    }

    pub fn all_tasks(&self, service: &str) -> Result<Vec<Value>> {
        let snapshot = self.snapshot()?;
        let id = self.service(&snapshot, service)?["id"].clone();
        Ok(array(&snapshot["tasks"]).into_iter().filter(|t| t["service"] == id).collect())
    }

    pub fn service(&self, snapshot: &Value, name: &str) -> Result<Value> {
        array(&snapshot["services"])
            .into_iter()
            .find(|s| s["name"] == format!("t_{name}"))
            .with_context(|| format!("there is no service {name}"))
    }

    /// A service's VIP in a network of the stack.
    pub fn vip(&self, service: &str, network: &str) -> Result<IpAddr> {
        self.vip_of(service, network, false)
    }

    pub fn vip_of(&self, service: &str, network: &str, v6: bool) -> Result<IpAddr> {
        let snapshot = self.snapshot()?;
        let network = self.network(&snapshot, network)?;
        let service = self.service(&snapshot, service)?;
        let vips = array(&service["vips"]);
        let mut address = vips.iter().filter(|v| v["network"] == network).filter_map(|v| v["address"].as_str()?.parse::<IpAddr>().ok());
        address.find(|a| a.is_ipv6() == v6).context("it has no VIP there")
    }

    fn network(&self, snapshot: &Value, name: &str) -> Result<Value> {
        let networks = array(&snapshot["networks"]);
        let named = |n: &&Value| n["name"] == name || n["name"] == format!("t_{name}");
        Ok(networks.iter().find(named).with_context(|| format!("there is no network {name}"))?["id"].clone())
    }

    /// A task's address in a network.
    pub fn address(&self, task: &Value, network: &str) -> Result<IpAddr> {
        self.address_of(task, network, false)
    }

    pub fn address_of(&self, task: &Value, network: &str, v6: bool) -> Result<IpAddr> {
        let network = self.network(&self.snapshot()?, network)?;
        let addresses = array(&task["addresses"]);
        let mut there = addresses.iter().filter(|a| a["network"] == network).filter_map(|a| a["address"].as_str()?.parse().ok());
        there.find(|a: &IpAddr| a.is_ipv6() == v6).context("it has no address there")
    }

    pub fn api(&self, node: &str, path: &str) -> Result<(u16, String)> {
        let (url, limit) = (format!("http://127.0.0.1:9790{path}"), patient(PATIENCE).as_secs().to_string());
        let printed = self.run(node, &["curl", "--silent", "--show-error", "--max-time", &limit, "--write-out", "\n%{http_code}", &url])?;
        let (body, code) = printed.rsplit_once('\n').context("no status code")?;
        Ok((code.parse()?, body.to_owned()))
    }

    /// One HTTP request from `place` (a node, a client).
    pub fn get(&self, place: &str, target: SocketAddr) -> Result<String> {
        get_in(&self.namespace(place), target)
    }

    pub fn get_from_task(&self, task: &Value, target: SocketAddr) -> Result<String> {
        get_in(&self.task_namespace(task), target)
    }

    /// Who answered `count` requests.
    pub fn spread(&self, place: &str, target: SocketAddr, count: usize) -> Result<std::collections::BTreeMap<String, usize>> {
        spread_in(&self.namespace(place), target, count)
    }

    /// Waits until every agent has applied what the swarm is now.
    pub fn settled(&self, nodes: &[&str]) -> Result<()> {
        let version = self.snapshot()?["version"].as_u64().unwrap_or(0);
        for node in nodes {
            self.wait(&format!("{node} has applied version {version}"), || {
                let (code, _) = self.api(node, "/readyz")?;
                let status: Value = serde_json::from_str(&self.api(node, "/v1/status")?.1)?;
                let at = find_number(&status, "version").unwrap_or(0);
                Ok(code == 200 && at >= version)
            })?;
        }
        Ok(())
    }

    /// Restarts agents, and waits until the new ones have applied what the swarm is.
    pub fn restart_agents(&self, nodes: &[&str]) -> Result<()> {
        let pid = |node: &str| -> Result<Value> {
            let status: Value = serde_json::from_str(&self.api(node, "/v1/status")?.1)?;
            Ok(status["agent"]["pid"].clone())
        };
        let mut before = Vec::new();
        for node in nodes {
            before.push((node, pid(node)?));
            self.lab(&["agent", node, "restart"])?;
        }
        for (node, old) in before {
            // One that is told to stop answers on until its last request has ended.
            self.wait(&format!("another agent runs on {node}"), || Ok(pid(node)? != old))?;
        }
        self.settled(nodes)
    }

    /// Polls until `done`, for 30 s at most on an ordinary machine.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let limit = patient(Duration::from_secs(30));
        let end = Instant::now() + limit;
        loop {
            let outcome = done();
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > end {
                outcome.with_context(|| format!("waited in vain until {what}"))?;
                bail!("waited {} s in vain until {what}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is left of this lab on the machine.
    pub fn residue(&self) -> Vec<String> {
        let prefix = format!("swl-{}-", self.name);
        let mut left: Vec<String> = std::fs::read_dir("/var/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with(&prefix))
            .map(|n| format!("namespace {n}"))
            .collect();
        let run = format!("/run/swarmesh-lab/{}", self.name);
        if Path::new(&run).exists() {
            left.push(format!("directory {run}"));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|l| l.contains(&run) || l.contains(&prefix)).map(|l| format!("mount {l}")));
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let outcome = self.down();
        let left = self.residue();
        // A second panic would abort and hide the first.
        if !std::thread::panicking() {
            assert!(outcome.is_ok(), "lab down: {outcome:?}");
            assert!(left.is_empty(), "the lab left behind: {left:#?}");
        }
    }
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn find_number(value: &Value, key: &str) -> Option<u64> {
    match value {
        Value::Object(map) => map.get(key).and_then(Value::as_u64).or_else(|| map.values().find_map(|v| find_number(v, key))),
        _ => None,
    }
}

/// One HTTP request from the namespace at `path`.
pub fn get_in(path: &Path, target: SocketAddr) -> Result<String> {
    within(path, move || request(target, patient(PATIENCE)))?.with_context(|| format!("GET http://{target}/"))
}

pub fn spread_in(path: &Path, target: SocketAddr, count: usize) -> Result<std::collections::BTreeMap<String, usize>> {
    within(path, move || {
        let mut tasks = std::collections::BTreeMap::new();
        for _ in 0..count {
            let answer = request(target, patient(PATIENCE))?;
            *tasks.entry(field(&answer, "task").unwrap_or_default()).or_default() += 1;
        }
        std::io::Result::Ok(tasks)
    })?
    .with_context(|| format!("{count} requests to {target}"))
}

/// How a port that should not answer behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    Open,
    /// At once: RST, or ICMP for UDP.
    Refused,
    /// Nothing comes back.
    Silent,
}

pub fn knock_tcp(path: &Path, target: SocketAddr) -> Result<Knock> {
    knock_tcp_for(path, target, SILENCE)
}

/// A socket of no one server's, on a port of the client's own choice. Of `family`'s address family.
pub fn udp_socket_from(port: u16, family: SocketAddr) -> std::io::Result<UdpSocket> {
    let local: SocketAddr = if family.is_ipv6() { ([0u16; 8], port).into() } else { ([0, 0, 0, 0], port).into() };
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(silence(SILENCE)))?;
    Ok(socket)
}

/// What does not answer within `time` is silent.
pub fn knock_tcp_for(path: &Path, target: SocketAddr, time: Duration) -> Result<Knock> {
    let patience = silence(time);
    within(path, move || match TcpStream::connect_timeout(&target, patience) {
        Ok(_) => Ok(Knock::Open),
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable
            ) =>
        {
            Ok(Knock::Refused)
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => Ok(Knock::Silent),
        Err(e) => Err(e),
    })?
    .with_context(|| format!("tcp {target}"))
}

/// As [`knock_tcp`], of one who then speaks HTTP: a listener that takes connections and never says a word is silent, too.
pub fn knock_http(path: &Path, target: SocketAddr) -> Result<Knock> {
    let knock = knock_tcp(path, target)?;
    if knock != Knock::Open {
        return Ok(knock);
    }
    let patience = silence(SILENCE);
    let read = within(path, move || {
        let mut stream = TcpStream::connect_timeout(&target, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0])
    })?;
    Ok(if read.is_ok_and(|count| count > 0) { Knock::Open } else { Knock::Silent })
}

/// One port of a client's speaks to one task by each of `targets` at once, TCP and UDP, and whoever was asked answers.
pub fn speak_from_one_port(client: &Path, targets: &[SocketAddr]) -> Result<()> {
    // By turns, so that each is the first once.
    for turn in 0..targets.len() {
        let port = 33_000 + u16::try_from(turn)?;
        let order: Vec<SocketAddr> = targets[turn..].iter().chain(&targets[..turn]).copied().collect();
        let mut held = Vec::new();
        for target in &order {
            held.push(Held::open_from(client, port, *target)?);
            for connection in &mut held {
                connection.talk().with_context(|| format!("when {target} was asked"))?;
            }
        }
        let seen: BTreeSet<&str> = held.iter().map(Held::task).collect();
        ensure!(seen.len() == 1, "one task was asked for: {seen:?}");
        // The end of one is not the others'.
        held.remove(0);
        for connection in &mut held {
            connection.talk().context("when the first one had ended")?;
        }
        let any = order.first().copied().context("nobody to ask")?;
        let socket = within(client, move || udp_socket_from(port, any))??;
        for asked in order {
            socket.send_to(b"who", asked)?;
            let (_, from) = socket.recv_from(&mut [0; 2048]).with_context(|| format!("{asked} does not answer"))?;
            ensure!(from == asked, "asked {asked}, answered by {from}");
        }
    }
    Ok(())
}

/// Sends one datagram from a connected socket; what comes back, if anything does.
pub fn ask_udp(path: &Path, target: SocketAddr, text: &str) -> Result<Result<String, Knock>> {
    let text = text.to_owned();
    within(path, move || ask(&udp_socket(target)?, &text))?.with_context(|| format!("udp {target}"))
}

pub fn udp_socket(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let local: SocketAddr = if target.is_ipv6() { ([0u16; 8], 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let socket = UdpSocket::bind(local)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(silence(SILENCE)))?;
    Ok(socket)
}

/// One question on an open socket.
pub fn ask(socket: &UdpSocket, text: &str) -> std::io::Result<Result<String, Knock>> {
    let mut buffer = [0; 2048];
    let outcome = socket.send(text.as_bytes()).and_then(|_| socket.recv(&mut buffer));
    match outcome {
        Ok(length) => Ok(Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())),
        // A packet that is rejected where it is made fails the send itself.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::PermissionDenied) => {
            Ok(Err(Knock::Refused))
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => Ok(Err(Knock::Silent)),
        Err(e) => Err(e),
    }
}

/// A connection that is held open and talked on: `whoami` answers every line with itself.
#[derive(Debug)]
pub struct Held {
    stream: TcpStream,
    pub greeting: String,
}

impl Held {
    /// Opens it in the namespace at `path`; the socket stays there.
    pub fn open(path: &Path, target: SocketAddr) -> Result<Self> {
        let stream =
            within(path, move || TcpStream::connect_timeout(&target, patient(PATIENCE)))?.with_context(|| format!("connect {target}"))?;
        Self::greet(stream)
    }

    fn greet(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(patient(Duration::from_secs(3))))?;
        let mut held = Self { stream, greeting: String::new() };
        held.stream.write_all(b"hello\n")?;
        held.greeting = held.line()?;
        held.line()?;
        Ok(held)
    }

    /// As [`Self::open`], from a port that other connections of the client's may have, too.
    pub fn open_from(path: &Path, port: u16, target: SocketAddr) -> Result<Self> {
        let local: SocketAddr = if target.is_ipv6() { ([0u16; 8], port).into() } else { ([0, 0, 0, 0], port).into() };
        let stream = within(path, move || -> std::io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
            socket.connect_timeout(&target.into(), patient(PATIENCE))?;
            Ok(socket.into())
        })?
        .with_context(|| format!("connect {target} from port {port}"))?;
        Self::greet(stream)
    }

    /// Says something and waits for the echo.
    pub fn talk(&mut self) -> Result<()> {
        self.say("still there?")
    }

    /// As [`Self::talk`], with a line of the caller's.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).context("write")?;
        let answer = self.line()?;
        ensure!(answer == line, "unexpected answer {answer:.100?}");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            let count = self.stream.read(&mut byte).context("read")?;
            ensure!(count == 1, "closed by the other side");
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }

    /// This end and the other one, as this end sees them.
    pub fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.stream.local_addr()?, self.stream.peer_addr()?))
    }

    /// The task that answers, from the greeting.
    pub fn task(&self) -> &str {
        self.greeting.split_whitespace().next().unwrap_or_default()
    }
}
