//! A swarm of any size, and one task's namespace in which its VIPs can be called: all backend addresses are local there.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaneConfig};
use swarmesh_kernel::LinuxKernel;
use swarmesh_model::{Delta, Network, Node, Service, Snapshot, Subnet, Task, TaskAddress, TaskState, VirtualIp};
use swarmesh_plan::{NodeContext, Planner};
use swarmesh_tests::netns::{spawn_within, within};

use crate::run::output;

/// VIPs are 10.64.0.0/10, backends 10.128.0.0/9.
pub(crate) fn vip(service: u32) -> IpAddr {
    IpAddr::from((0x0a40_0000 + service + 1).to_be_bytes())
}

pub(crate) fn backend(number: u32) -> IpAddr {
    IpAddr::from((0x0a80_0000 + number + 1).to_be_bytes())
}

pub(crate) fn task(service: u32, number: u32) -> Task {
    Task {
        id: format!("task{number:025}").into(),
        service: Some(format!("service{service:018}").into()),
        name: format!("service{service}.{number}").into(),
        slot: None,
        node: Some("there".into()),
        desired_state: TaskState::Running,
        state: TaskState::Running,
        container: None,
        hostname: None,
        sandbox: None,
        healthy: None,
        addresses: vec![TaskAddress { network: "network".into(), address: backend(number), aliases: vec![], links: Default::default() }],
        ports: None,
        dns: None,
        routing: None,
    }
}

/// `services` services of `tasks` tasks each on one network, and one local task that sees them all.
pub(crate) fn snapshot(services: u32, tasks: u32) -> Snapshot {
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.insert_network(Network {
        id: "network".into(),
        name: "network".into(),
        driver: "overlay".into(),
        ingress: false,
        internal: false,
        attachable: false,
        local: false,
        subnets: vec![Subnet { subnet: "10.0.0.0/8".parse().unwrap_or_default(), gateway: None }],
        mtu: None,
        labels: Default::default(),
    });
    for (id, name) in [("here", "here"), ("there", "there")] {
        snapshot.insert_node(Node {
            id: id.into(),
            hostname: name.to_owned(),
            address: None,
            role: Default::default(),
            state: Default::default(),
            availability: Default::default(),
            engine: None,
        });
    }
    for service in 0..services {
        snapshot.insert_service(Service {
            id: format!("service{service:018}").into(),
            name: format!("service{service}"),
            labels: Default::default(),
            endpoint_mode: Default::default(),
            ports: vec![],
            vips: vec![VirtualIp { network: "network".into(), address: vip(service) }],
            networks: vec![],
        });
        for number in service * tasks..(service + 1) * tasks {
            snapshot.insert_task(task(service, number));
        }
    }
    let local = Task {
        id: "local".into(),
        service: None,
        name: "local".into(),
        node: Some("here".into()),
        sandbox: Some("box".into()),
        addresses: vec![TaskAddress {
            network: "network".into(),
            address: IpAddr::from([10, 63, 0, 1]),
            aliases: vec![],
            links: Default::default(),
        }],
        ..task(0, 0)
    };
    snapshot.insert_task(local);
    snapshot
}

/// A namespace that goes with the value.
pub(crate) struct Sandbox {
    name: String,
    directory: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let name = format!("swbench-{name}");
        // Left over from a run that was killed.
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let sandbox = Self { name, directory: tempfile::tempdir()? };
        std::os::unix::fs::symlink(sandbox.path(), sandbox.directory.path().join("box"))?;
        for words in
            ["link set lo up", "addr add 10.63.0.1/32 dev lo", "route add local 10.128.0.0/9 dev lo", "route add 10.0.0.0/8 dev lo"]
        {
            output(Command::new("ip").args(["-n", &sandbox.name]).args(words.split(' ')))?;
        }
        Ok(sandbox)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/{}", self.name))
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub(crate) fn run(&self, program: &'static str, words: &[&str], input: String) -> Result<Duration> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        within(&self.path(), move || {
            use std::io::Write;
            let start = Instant::now();
            let mut child = Command::new(program).args(&words).stdin(std::process::Stdio::piped()).spawn()?;
            child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
            ensure!(child.wait()?.success(), "{program} failed");
            Ok(start.elapsed())
        })?
    }

    /// A server on every backend address that tells each caller which one it reached.
    pub(crate) fn serve(&self) -> Result<JoinHandle<()>> {
        let listener = within(&self.path(), || TcpListener::bind("0.0.0.0:80"))??;
        spawn_within(&self.path(), move || {
            for stream in listener.incoming().flatten() {
                let Ok(local) = stream.local_addr() else { continue };
                let IpAddr::V4(address) = local.ip() else { continue };
                // The caller may be gone already.
                let _ = std::io::Write::write_all(&mut &stream, &address.octets());
            }
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Connects and learns who answered. Call it in the namespace.
pub(crate) fn ask(target: SocketAddr) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets)?;
    Ok(IpAddr::from(octets))
}

/// Ours, as the agent runs it, without its wires.
pub(crate) struct Ours {
    pub(crate) planner: Planner,
    pub(crate) plane: NetfilterPlane,
}

impl Ours {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self::balancing(sandbox, Balancing::Nft)
    }

    pub(crate) fn balancing(sandbox: &Sandbox, balancing: Balancing) -> Self {
        let context = NodeContext { node: Some("here".into()), ..NodeContext::default() };
        let config = PlaneConfig { balancing, netns_dir: sandbox.netns_dir(), node_address: None };
        Self { planner: Planner::new(context), plane: NetfilterPlane::new(Arc::new(LinuxKernel), config) }
    }

    pub(crate) fn apply(&mut self, delta: &Delta) -> Result<Duration> {
        let start = Instant::now();
        let change = self.planner.update(delta);
        self.plane.apply(&change, start);
        let took = start.elapsed();
        ensure!(self.plane.is_settled(), "{:?}", self.plane.status(Instant::now()).places);
        Ok(took)
    }
}
