//! New connections per second through a published port: ours, hand-written rules on the way through the ingress sandbox, the
//! shortest hand-written DNAT there is, HAProxy in TCP mode, and plain routing.
//!
//! Each subject has namespaces of its own, laid out as Docker does on a node: client, node, ingress sandbox, task. The tasks have
//! Docker's rules for its resolver, as every task on an overlay has: they make the task's own namespace track connections.
//! The shortest way is measured once more without them.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_dataplane::{NetfilterPlane, PlaneConfig};
use swarmesh_kernel::LinuxKernel;
use swarmesh_model::{Delta, Network, Node, Port, Service, Snapshot, Subnet, TaskAddress};
use swarmesh_plan::{NodeContext, Planner};
use swarmesh_tests::netns::{spawn_within, within};

use super::{
    stats::{Random, median, ratio},
    swarm::task,
};
use crate::run::{output, say};

const CLIENTS: usize = 4;
/// Source addresses: enough that no connection meets the ghost of an earlier one with the same ports.
const ADDRESSES: usize = 64;
const PLACES: [&str; 5] = ["client", "node", "overlay", "sandbox", "task"];
const BLOCK: Duration = Duration::from_secs(2);

pub(crate) fn run(blocks: usize) -> Result<()> {
    let subjects = [
        Subject::new(Way::Ours)?,
        Subject::new(Way::SamePath)?,
        Subject::new(Way::Shortest)?,
        Subject::new(Way::Untracked)?,
        Subject::new(Way::Haproxy)?,
        Subject::new(Way::Routed)?,
    ];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
    let mut random = Random(7);
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            let rate = subjects[index].measure()?;
            if block > 0 {
                rates[index].push(rate);
            }
        }
    }
    say(&format!(
        "{CLIENTS} clients, {blocks} interleaved blocks of {} s\n| way | connections/s | ours against it [95 % CI] |\n|---|---|---|",
        BLOCK.as_secs()
    ));
    for (subject, rate) in subjects.iter().zip(&rates) {
        say(&format!("| {} | {:.0} | {} |", subject.way.name(), median(rate), ratio(&rates[0], rate)));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ours,
    SamePath,
    Shortest,
    Untracked,
    Haproxy,
    Routed,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::SamePath => "hand-written nft through the ingress sandbox (client's address kept)",
            Self::Shortest => "one hand-written nft DNAT, node to task (client's address kept)",
            Self::Untracked => "the same, to a task without Docker's rules, which tracks nothing",
            Self::Haproxy => "HAProxy, TCP mode (client's address lost)",
            Self::Routed => "plain routing, no translation",
        }
    }

    const fn tag(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::SamePath => "path",
            Self::Shortest => "short",
            Self::Untracked => "bare",
            Self::Haproxy => "ha",
            Self::Routed => "route",
        }
    }
}

struct Subject {
    way: Way,
    haproxy: Option<Child>,
    /// Keeps the agent's sockets open.
    _plane: Option<NetfilterPlane>,
    _directory: tempfile::TempDir,
}

impl Subject {
    fn new(way: Way) -> Result<Self> {
        remove(way);
        let directory = tempfile::tempdir()?;
        let mut subject = Self { way, haproxy: None, _plane: None, _directory: directory };
        subject.lay_out()?;
        drop(serve(&path(way, "task"))?);
        if way != Way::Untracked {
            dockers_resolver(way)?;
        }
        match way {
            Way::Ours => subject._plane = Some(ours(way, subject._directory.path())?),
            Way::SamePath => same_path(way)?,
            Way::Shortest | Way::Untracked => script(
                way,
                "node",
                "add table ip hand\nadd chain ip hand pre { type nat hook prerouting priority -100; }\nadd rule ip hand pre tcp dport 8000 dnat to 172.18.0.3:80\n",
            )?,
            Way::Haproxy => subject.haproxy = Some(haproxy(way, subject._directory.path())?),
            Way::Routed => ip(way, "client", "route add 172.18.0.0/16 via 192.0.2.11")?,
        }
        std::thread::sleep(Duration::from_millis(300));
        Ok(subject)
    }

    fn lay_out(&self) -> Result<()> {
        let way = self.way;
        for place in PLACES {
            output(Command::new("ip").args(["netns", "add", &name(way, place)]))?;
            ip(way, place, "link set lo up")?;
        }
        ip(way, "node", "link add docker_gwbridge type bridge")?;
        // In a namespace of its own, as Docker has it: bridged packets must not meet the node's rules.
        ip(way, "overlay", "link add ingress type bridge")?;
        for (place, device, mac, address, peer, bridge) in [
            ("client", "eth0", "02:00:00:00:00:01", "192.0.2.101/24", "eth0", ""),
            ("sandbox", "eth0", "02:42:0a:00:00:02", "10.0.0.2/24", "vi0", "ingress"),
            ("sandbox", "eth1", "02:42:ac:12:00:02", "172.18.0.2/16", "vg0", "docker_gwbridge"),
            ("task", "eth0", "02:42:0a:00:00:03", "10.0.0.3/24", "vi1", "ingress"),
            ("task", "eth1", "02:42:ac:12:00:03", "172.18.0.3/16", "vg1", "docker_gwbridge"),
        ] {
            let other = if bridge == "ingress" { "overlay" } else { "node" };
            ip(way, place, &format!("link add {device} address {mac} type veth peer name {peer} netns {}", name(way, other)))?;
            ip(way, place, &format!("addr add {address} dev {device}"))?;
            ip(way, place, &format!("link set {device} up"))?;
            if !bridge.is_empty() {
                ip(way, other, &format!("link set {peer} master {bridge}"))?;
            }
            ip(way, other, &format!("link set {peer} up"))?;
        }
        ip(way, "node", "addr add 192.0.2.11/24 dev eth0")?;
        ip(way, "node", "addr add 172.18.0.1/16 dev docker_gwbridge")?;
        ip(way, "node", "link set docker_gwbridge up")?;
        ip(way, "overlay", "link set ingress up")?;
        for client in 1..ADDRESSES {
            ip(way, "client", &format!("addr add 192.0.2.{}/24 dev eth0", 101 + client))?;
        }
        ip(way, "client", "route add default via 192.0.2.11")?;
        ip(way, "sandbox", "route add default via 172.18.0.1")?;
        ip(way, "task", "route add default via 172.18.0.1")?;
        for place in ["node", "sandbox"] {
            within(&path(way, place), || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        }
        // As Docker leaves them; the effective value is the greater of this and `all`.
        for place in PLACES {
            within(&path(way, place), || {
                for entry in std::fs::read_dir("/proc/sys/net/ipv4/conf")?.flatten() {
                    std::fs::write(entry.path().join("rp_filter"), "0")?;
                }
                std::io::Result::Ok(())
            })??;
        }
        Ok(())
    }

    fn measure(&self) -> Result<f64> {
        let target: SocketAddr = if self.way == Way::Routed { "172.18.0.3:80" } else { "192.0.2.11:8000" }.parse()?;
        let (done, failed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        let start = Instant::now();
        for client in 0..CLIENTS {
            let (done, failed, stop) = (Arc::clone(&done), Arc::clone(&failed), Arc::clone(&stop));
            threads.push(spawn_within(&path(self.way, "client"), move || {
                let mut turn = client;
                while !stop.load(Ordering::Relaxed) {
                    turn += CLIENTS;
                    let counter = if connect(target, turn % ADDRESSES).is_ok() { &done } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })?);
        }
        std::thread::sleep(BLOCK);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let _ = thread.join();
        }
        let failed = failed.load(Ordering::Relaxed);
        ensure!(failed == 0, "{failed} connections failed by {}: the block is void", self.way.name());
        Ok(done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(child) = &mut self.haproxy {
            let _ = child.kill();
            let _ = child.wait();
        }
        remove(self.way);
    }
}

/// One connection, one byte back, closed by RST so that neither end nor any tracker remembers it.
fn connect(target: SocketAddr, client: usize) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let source = SocketAddr::from(([192, 0, 2, 101 + u8::try_from(client).unwrap_or(0)], 0));
    socket.bind(&source.into())?;
    socket.connect_timeout(&target.into(), Duration::from_secs(3))?;
    let mut stream = TcpStream::from(socket);
    stream.read_exact(&mut [0; 1])?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

fn serve(path: &std::path::Path) -> Result<std::thread::JoinHandle<()>> {
    let listener = within(path, || TcpListener::bind("0.0.0.0:80"))??;
    spawn_within(path, move || {
        let mut open = std::collections::VecDeque::new();
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"x");
            // The client closes first.
            open.push_back(stream);
            if open.len() > 256 {
                open.pop_front();
            }
        }
    })
}

/// What libnetwork puts into the namespace of each container on a network with names.
fn dockers_resolver(way: Way) -> Result<()> {
    script(
        way,
        "task",
        "add table ip nat\n\
         add chain ip nat OUTPUT { type nat hook output priority -100; }\n\
         add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }\n\
         add rule ip nat OUTPUT ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:40001\n\
         add rule ip nat OUTPUT ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40002\n\
         add rule ip nat POSTROUTING ip saddr 127.0.0.11 tcp sport 40001 snat to :53\n\
         add rule ip nat POSTROUTING ip saddr 127.0.0.11 udp sport 40002 snat to :53\n",
    )
}

fn name(way: Way, place: &str) -> String {
    format!("swbench-{}-{place}", way.tag())
}

fn path(way: Way, place: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/netns/{}", name(way, place)))
}

fn remove(way: Way) {
    for place in PLACES {
        let _ = Command::new("ip").args(["netns", "del", &name(way, place)]).output();
    }
}

fn ip(way: Way, place: &str, words: &str) -> Result<()> {
    output(Command::new("ip").args(["-n", &name(way, place)]).args(words.split(' '))).map(drop)
}

fn script(way: Way, place: &str, text: &str) -> Result<()> {
    let text = text.to_owned();
    within(&path(way, place), move || swarmesh_kernel::Netns::current().and_then(|ns| swarmesh_kernel::load_script(&ns, &text)))?
        .map_err(Into::into)
}

/// The fewest rules that do what ours do for a task elsewhere: no maps, one backend, the client's address kept.
fn same_path(way: Way) -> Result<()> {
    let to = |address: &str| {
        format!(
            "add table ip hand\nadd chain ip hand pre {{ type nat hook prerouting priority -110; }}\nadd rule ip hand pre tcp dport 8000 dnat to {address}\n"
        )
    };
    script(way, "node", &to("172.18.0.2"))?;
    script(way, "sandbox", &to("10.0.0.3"))?;
    script(
        way,
        "task",
        &(to("10.0.0.3:80")
            + "add chain ip hand entry { type filter hook prerouting priority -150; }\nadd rule ip hand entry iifname eth0 ct state new ct mark set 1\n\
               add chain ip hand back { type route hook output priority -150; }\nadd rule ip hand back ct mark 1 meta mark set 1\n"),
    )?;
    ip(way, "task", "rule add fwmark 1 lookup 100")?;
    ip(way, "task", "route add default via 10.0.0.2 dev eth0 table 100")
}

fn haproxy(way: Way, directory: &std::path::Path) -> Result<Child> {
    let config = directory.join("haproxy.cfg");
    std::fs::write(
        &config,
        "global\n  maxconn 8000\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 3s\n  timeout client 10s\n  timeout server 10s\n\
         frontend f\n  bind 192.0.2.11:8000\n  default_backend b\nbackend b\n  server s 172.18.0.3:80\n",
    )?;
    within(&path(way, "node"), move || Command::new("haproxy").arg("-f").arg(config).spawn())?.context("cannot run haproxy")
}

/// The real plane, on the node's, the sandbox's and the task's namespaces.
fn ours(way: Way, directory: &std::path::Path) -> Result<NetfilterPlane> {
    std::os::unix::fs::symlink(path(way, "sandbox"), directory.join("ingress_sbox"))?;
    std::os::unix::fs::symlink(path(way, "task"), directory.join("box"))?;
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.insert_network(Network {
        id: "ingress".into(),
        name: "ingress".into(),
        driver: "overlay".into(),
        ingress: true,
        internal: false,
        attachable: false,
        local: false,
        subnets: vec![Subnet { subnet: "10.0.0.0/24".parse()?, gateway: None }],
        mtu: None,
        labels: Default::default(),
    });
    snapshot.insert_node(Node {
        id: "here".into(),
        hostname: "here".to_owned(),
        address: Some("192.0.2.11".parse()?),
        role: Default::default(),
        state: Default::default(),
        availability: Default::default(),
        engine: None,
    });
    let web = task(0, 0);
    snapshot.insert_service(Service {
        id: web.service.clone().context("no service")?,
        name: "web".to_owned(),
        labels: Default::default(),
        endpoint_mode: Default::default(),
        ports: vec![Port {
            name: None,
            protocol: Default::default(),
            target_port: 80,
            published_port: Some(8000),
            publish_mode: Default::default(),
        }],
        vips: vec![],
        networks: vec![],
    });
    snapshot.insert_task(swarmesh_model::Task {
        node: Some("here".into()),
        sandbox: Some("box".into()),
        addresses: vec![TaskAddress {
            network: "ingress".into(),
            address: "10.0.0.3".parse()?,
            aliases: vec![],
            links: Default::default(),
        }],
        ..web
    });
    let config = PlaneConfig {
        balancing: swarmesh_dataplane::Balancing::Nft,
        netns_dir: directory.to_owned(),
        node_address: Some("192.0.2.11".parse()?),
    };
    // The plane programs the namespace that it runs in as the node's.
    within(&path(way, "node"), move || {
        let mut planner = Planner::new(NodeContext { node: Some("here".into()), ..NodeContext::default() });
        let mut plane = NetfilterPlane::new(Arc::new(LinuxKernel), config);
        plane.apply(&planner.update(&Delta::between(&Snapshot::default(), &snapshot)), Instant::now());
        ensure!(plane.is_settled(), "{:?}", plane.status(Instant::now()).places);
        Ok(plane)
    })?
}
