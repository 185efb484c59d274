//! From a task to a VIP: instructions per packet and per connection, way by way.
//!
//! Each way has namespaces of its own: a task that calls, the overlay's with its bridge, one with four tasks that answer, and
//! with Docker's arrangement the network's load balancer. All but one have Docker's rules for its resolver, as every task on
//! an overlay has.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaneConfig};
use swarmesh_kernel::{LinuxKernel, Netns, load_script};
use swarmesh_model::TaskId;
use swarmesh_plan::{Backend, BackendState, NodePlan, PlanDelta, Policy, SandboxPlan, VirtualService};
use swarmesh_tests::netns::within;

use super::Stopwatch;
use crate::{
    bench::stats::{Random, median, ratio},
    run::{output, say},
};

const PLACES: [&str; 4] = ["client", "overlay", "balancer", "tasks"];
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
const HOSTS: [u8; 4] = [11, 12, 13, 14];
/// Round trips of one flow, two packets each.
const TRIPS: usize = 500;
const CONNECTIONS: usize = 100;
/// What both trackers keep of a closed connection is gone after this (10 s), so no block finds a fuller table than another.
const FORGOTTEN: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OursIpvs,
    OursNft,
    Docker,
    Nft,
    Iptables,
    Ipvs,
    IpvsUntracked,
    Direct,
    Untracked,
}

const WAYS: [Way; 9] =
    [Way::OursIpvs, Way::OursNft, Way::Docker, Way::Nft, Way::Iptables, Way::Ipvs, Way::IpvsUntracked, Way::Direct, Way::Untracked];

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::OursIpvs => "ours on ipvs",
            Self::OursNft => "ours on nft",
            Self::Docker => "Docker's: through the network's load balancer (client's address lost)",
            Self::Nft => "hand-written nft: one DNAT rule in the task",
            Self::Iptables => "hand-written iptables-nft: `statistic` and DNAT in the task",
            Self::Ipvs => "hand-written IPVS by address and port in the task, `conntrack=1`",
            Self::IpvsUntracked => "the same, `conntrack=0`",
            Self::Direct => "no VIP",
            Self::Untracked => "no VIP, and tasks that track nothing",
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::OursIpvs => "oi",
            Self::OursNft => "on",
            Self::Docker => "docker",
            Self::Nft => "nft",
            Self::Iptables => "ipt",
            Self::Ipvs => "ipvs",
            Self::IpvsUntracked => "ipvsu",
            Self::Direct => "direct",
            Self::Untracked => "bare",
        }
    }

    /// What the answering task takes for the client.
    const fn seen(self) -> Ipv4Addr {
        if matches!(self, Self::Docker) { BALANCER } else { CLIENT }
    }

    fn target(self, turn: usize) -> Ipv4Addr {
        if matches!(self, Self::Direct | Self::Untracked) { host(HOSTS[turn % HOSTS.len()]) } else { VIP }
    }
}

const fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

pub(super) fn run(blocks: usize, balancing: &Balancing) -> Result<()> {
    let subjects = WAYS.iter().map(|way| Subject::new(*way, balancing)).collect::<Result<Vec<_>>>()?;
    for subject in &subjects {
        subject.check()?;
    }
    say(&format!(
        "{} ways: each of {} backends in turn; the client's address was {CLIENT} at all, {BALANCER} by Docker's way",
        subjects.len(),
        HOSTS.len()
    ));
    let packets = measure(&subjects, blocks, |subject| Ok(subject.per_trip()? / 2.0))?;
    table(&format!("instructions per packet of one UDP flow, {blocks} interleaved blocks of {TRIPS} round trips"), &packets);
    let connections = measure(&subjects, blocks, |subject| {
        let cost = subject.per_connection();
        thread::sleep(FORGOTTEN);
        cost
    })?;
    table(
        &format!("instructions per TCP connection (connect, one byte back, reset), {blocks} interleaved blocks of {CONNECTIONS}"),
        &connections,
    );
    Ok(())
}

fn measure(subjects: &[Subject], blocks: usize, cost: impl Fn(&Subject) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
    let mut costs = vec![Vec::new(); subjects.len()];
    let mut random = Random(11);
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            let cost = cost(&subjects[index]).with_context(|| format!("the block is void: {}", subjects[index].way.name()))?;
            if block > 0 {
                costs[index].push(cost);
            }
        }
    }
    Ok(costs)
}

fn table(title: &str, costs: &[Vec<f64>]) {
    say(title);
    say(
        "| way | instructions | beyond no VIP | ours on ipvs against it [95 % CI] | ours on nft against it [95 % CI] |\n|---|---|---|---|---|",
    );
    let direct = WAYS.iter().position(|way| *way == Way::Direct).map_or(f64::NAN, |index| median(&costs[index]));
    for (way, cost) in WAYS.iter().zip(costs) {
        let beyond = median(cost) - direct;
        say(&format!("| {} | {:.0} | {beyond:.0} | {} | {} |", way.name(), median(cost), ratio(&costs[0], cost), ratio(&costs[1], cost)));
    }
}

struct Subject {
    way: Way,
    listener: TcpListener,
    /// Of the task that the flow goes to.
    client: UdpSocket,
    server: UdpSocket,
    /// Keeps the agent's sockets open.
    _plane: Option<NetfilterPlane>,
    _directory: tempfile::TempDir,
}

impl Subject {
    fn new(way: Way, balancing: &Balancing) -> Result<Self> {
        lay_out(way)?;
        let directory = tempfile::tempdir()?;
        let mut plane = None;
        match way {
            Way::OursIpvs => plane = Some(ours(way, balancing.clone(), directory.path())?),
            Way::OursNft => plane = Some(ours(way, Balancing::Nft, directory.path())?),
            Way::Docker => dockers(way)?,
            Way::Nft => {
                let turns: Vec<String> = HOSTS.iter().enumerate().map(|(turn, last)| format!("{turn} : {}", host(*last))).collect();
                let text = format!(
                    "table ip hand {{ chain out {{ type nat hook output priority -100; ip daddr {VIP} dnat to numgen inc mod {} map {{ {} }}; }}; }}\n",
                    HOSTS.len(),
                    turns.join(", ")
                );
                script(way, "client", text)?;
            }
            Way::Iptables => {
                for (turn, last) in HOSTS.iter().enumerate() {
                    let left = HOSTS.len() - turn;
                    let nth = if left > 1 { format!("-m statistic --mode nth --every {left} --packet 0 ") } else { String::new() };
                    inside(way, "client", &format!("iptables -t nat -A OUTPUT -d {VIP} {nth}-j DNAT --to-destination {}", host(*last)))?;
                }
            }
            Way::Ipvs | Way::IpvsUntracked => {
                for server in [format!("-t {VIP}:80"), format!("-u {VIP}:53")] {
                    inside(way, "client", &format!("ipvsadm -A {server} -s rr"))?;
                    let port = if server.starts_with("-t") { 80 } else { 53 };
                    for last in HOSTS {
                        inside(way, "client", &format!("ipvsadm -a {server} -r {}:{port} -m", host(last)))?;
                    }
                }
                sysctl(way, "client", "vs/conntrack", if way == Way::Ipvs { "1" } else { "0" })?;
            }
            Way::Direct | Way::Untracked => {}
        }
        let listener = within(&path(way, "tasks"), || TcpListener::bind("0.0.0.0:80"))??;
        socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
        let (client, server) = flow(way)?;
        Ok(Self { way, listener, client, server, _plane: plane, _directory: directory })
    }

    /// All in turn, and each sees the client that it should.
    fn check(&self) -> Result<()> {
        let mut turns: BTreeMap<u8, usize> = BTreeMap::new();
        for last in self.connections(HOSTS.len() * 3)? {
            *turns.entry(last).or_default() += 1;
        }
        let expected: BTreeMap<u8, usize> = HOSTS.iter().map(|last| (*last, 3)).collect();
        ensure!(turns == expected, "{}: answers came from {turns:?}", self.way.name());
        Ok(())
    }

    fn per_trip(&self) -> Result<f64> {
        difference(TRIPS, |trips| self.trips(trips))
    }

    fn per_connection(&self) -> Result<f64> {
        difference(CONNECTIONS, |connections| self.connections(connections).map(drop))
    }

    fn trips(&self, trips: usize) -> Result<()> {
        let mut bytes = [0; 16];
        for _ in 0..trips {
            self.client.send(&bytes)?;
            let (length, from) = self.server.recv_from(&mut bytes)?;
            self.server.send_to(&bytes[..length], from)?;
            self.client.recv(&mut bytes)?;
        }
        Ok(())
    }

    /// Who answered, one after another.
    fn connections(&self, connections: usize) -> Result<Vec<u8>> {
        let (way, listener) = (self.way, self.listener.try_clone()?);
        within(&path(way, "client"), move || (0..connections).map(|turn| connection(way, turn, &listener)).collect())?
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for place in PLACES {
            let _ = Command::new("ip").args(["netns", "del", &name(self.way, place)]).output();
        }
    }
}

/// One connection, one byte back, closed by RST so that neither end remembers it.
fn connection(way: Way, turn: usize, listener: &TcpListener) -> Result<u8> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::from((way.target(turn), 80)).into())?;
    let (mut server, from) = listener.accept()?;
    let IpAddr::V4(local) = server.local_addr()?.ip() else { bail!("IPv6") };
    ensure!(from.ip() == way.seen(), "the client is {from} to its task");
    server.write_all(&local.octets()[3..])?;
    let mut client = TcpStream::from(socket);
    let mut last = [0];
    client.read_exact(&mut last)?;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    Ok(last[0])
}

/// Of twice as much work, what once as much did not cost.
fn difference(count: usize, work: impl Fn(usize) -> Result<()>) -> Result<f64> {
    // What was forgotten meanwhile, such as neighbours.
    work(10)?;
    let once = cost(&work, count)?;
    let twice = cost(&work, count * 2)?;
    Ok((twice - once) / count as f64)
}

fn cost(work: impl Fn(usize) -> Result<()>, count: usize) -> Result<f64> {
    let watch = Stopwatch::start()?;
    work(count)?;
    let passed = watch.stop()?;
    ensure!(passed.idle < Duration::from_micros(100), "it waited: {passed:?}");
    Ok(passed.busy.as_nanos() as f64)
}

/// A flow that has begun: the client's end, and that of the task which it leads to.
fn flow(way: Way) -> Result<(UdpSocket, UdpSocket)> {
    let client = within(&path(way, "client"), move || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((CLIENT, 0))?;
        socket.connect((way.target(0), 53))?;
        Ok(socket)
    })??;
    let servers =
        within(&path(way, "tasks"), || HOSTS.iter().map(|last| UdpSocket::bind((host(*last), 53))).collect::<std::io::Result<Vec<_>>>())??;
    for socket in servers.iter().chain([&client]) {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    client.send(b"?")?;
    thread::sleep(Duration::from_millis(100));
    let mut bytes = [0; 1];
    for server in servers {
        server.set_nonblocking(true)?;
        if let Ok((_, from)) = server.recv_from(&mut bytes) {
            server.set_nonblocking(false)?;
            ensure!(from.ip() == way.seen(), "{}: the client is {from} to its task", way.name());
            server.send_to(&bytes, from)?;
            client.recv(&mut bytes)?;
            return Ok((client, server));
        }
    }
    bail!("{}: no task got the datagram", way.name())
}

fn lay_out(way: Way) -> Result<()> {
    for place in PLACES {
        // Left over from a run that was killed.
        let _ = Command::new("ip").args(["netns", "del", &name(way, place)]).output();
        output(Command::new("ip").args(["netns", "add", &name(way, place)]))?;
        inside(way, place, "ip link set lo up")?;
    }
    inside(way, "overlay", "ip link add br0 type bridge")?;
    inside(way, "overlay", "ip link set br0 up")?;
    for (place, addresses) in [("client", vec![CLIENT]), ("balancer", vec![BALANCER]), ("tasks", HOSTS.map(host).to_vec())] {
        inside(way, place, &format!("ip link add eth0 type veth peer name {place} netns {}", name(way, "overlay")))?;
        inside(way, "overlay", &format!("ip link set {place} master br0 up"))?;
        inside(way, place, "ip link set eth0 up")?;
        for address in addresses {
            inside(way, place, &format!("ip addr add {address}/24 dev eth0"))?;
        }
        if way != Way::Untracked {
            dockers_resolver(way, place)?;
        }
    }
    Ok(())
}

/// What libnetwork puts into the namespace of each container on a network with names.
fn dockers_resolver(way: Way, place: &str) -> Result<()> {
    for (protocol, port) in [("tcp", 40001), ("udp", 40002)] {
        inside(
            way,
            place,
            &format!("iptables -t nat -A OUTPUT -d 127.0.0.11 -p {protocol} --dport 53 -j DNAT --to-destination 127.0.0.11:{port}"),
        )?;
        inside(way, place, &format!("iptables -t nat -A POSTROUTING -s 127.0.0.11 -p {protocol} --sport {port} -j SNAT --to-source :53"))?;
    }
    Ok(())
}

/// The load balancer that an engine makes for each of its overlays.
fn dockers(way: Way) -> Result<()> {
    let place = "balancer";
    for (key, value) in [
        ("ip_forward", "1"),
        ("vs/conntrack", "1"),
        ("vs/expire_nodest_conn", "1"),
        ("vs/expire_quiescent_template", "1"),
        ("vs/conn_reuse_mode", "0"),
    ] {
        sysctl(way, place, key, value)?;
    }
    inside(way, place, &format!("ip addr add {VIP}/32 dev eth0"))?;
    inside(way, place, &format!("iptables -t mangle -A INPUT -d {VIP}/32 -j MARK --set-mark 256"))?;
    inside(way, place, "ipvsadm -A -f 256 -s rr")?;
    for last in HOSTS {
        inside(way, place, &format!("ipvsadm -a -f 256 -r {} -m", host(last)))?;
    }
    inside(way, place, &format!("iptables -t nat -A POSTROUTING -m ipvs --ipvs -d 10.0.1.0/24 -j SNAT --to-source {BALANCER}"))
}

/// The real plane, on the calling task's namespace.
fn ours(way: Way, balancing: Balancing, directory: &Path) -> Result<NetfilterPlane> {
    std::os::unix::fs::symlink(path(way, "client"), directory.join("box"))?;
    let mut plan = NodePlan { version: 1, ..NodePlan::default() };
    let sandbox = SandboxPlan {
        task: "caller".into(),
        name: "caller.1".to_owned(),
        sandbox: "box".to_owned(),
        networks: BTreeSet::from(["net".into()]),
        ingress: None,
    };
    plan.sandboxes.insert(TaskId::from("caller"), Arc::new(sandbox));
    let backend = |last: &u8| Backend { address: host(*last).into(), task: format!("t{last}").as_str().into(), state: BackendState::Ready };
    let service = VirtualService {
        service: "web".into(),
        name: "web".to_owned(),
        policy: Arc::new(Policy::default()),
        backends: HOSTS.iter().map(backend).collect::<Vec<_>>().into(),
    };
    plan.networks.entry("net".into()).or_default().insert(VIP.into(), Arc::new(service));
    let config = PlaneConfig { balancing, netns_dir: directory.to_owned(), node_address: None };
    let mut plane = NetfilterPlane::new(Arc::new(LinuxKernel), config);
    plane.apply(&PlanDelta::between(&NodePlan::default(), &plan), Instant::now());
    ensure!(plane.is_settled(), "{:?}", plane.status(Instant::now()).places);
    Ok(plane)
}

fn name(way: Way, place: &str) -> String {
    format!("swbench-{}-{place}", way.tag())
}

fn path(way: Way, place: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/netns/{}", name(way, place)))
}

/// A command in one of the way's namespaces.
fn inside(way: Way, place: &str, command: &str) -> Result<()> {
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    within(&path(way, place), move || output(Command::new(&words[0]).args(&words[1..])))?.map(drop)
}

fn script(way: Way, place: &str, text: String) -> Result<()> {
    within(&path(way, place), move || Netns::current().and_then(|ns| load_script(&ns, &text)))?.map_err(Into::into)
}

fn sysctl(way: Way, place: &str, key: &'static str, value: &'static str) -> Result<()> {
    within(&path(way, place), move || std::fs::write(Path::new("/proc/sys/net/ipv4").join(key), value))?
        .with_context(|| format!("cannot set {key}"))
}
