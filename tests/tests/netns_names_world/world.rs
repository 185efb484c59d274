//! The agent's engine on a source that says what the test wants: a swarm that exists in its snapshot alone, and real namespaces
//! of containers that ask.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_agent::{
    NameSettings, Names, Store,
    engine::{Engine, EngineHandle, Resolver, Settings},
};
use swarmesh_dataplane::{NetfilterPlane, PlaneConfig};
use swarmesh_kernel::LinuxKernel;
use swarmesh_model::{
    Delta, EndpointMode, Network, Node, Service, ServiceNetwork, Snapshot, Subnet, Task, TaskAddress, TaskState, VirtualIp,
};
use swarmesh_source::{SourceState, Update};
use swarmesh_tests::names::Upstream;
use tokio::sync::{mpsc, watch};

/// As the agent has it.
const QUEUE: usize = 256;
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Gone with the value.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let name = format!("swn-{name}");
        // Left over from a run that was killed.
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        for words in [["netns", "add", &name].as_slice(), &["-n", &name, "link", "set", "lo", "up"]] {
            let output = Command::new("ip").args(words).output()?;
            ensure!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self(name))
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/netns/{}", self.0))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

pub(crate) struct World {
    updates: mpsc::Sender<Update>,
    engine: Option<Engine>,
    runtime: tokio::runtime::Runtime,
    pub(crate) handle: EngineHandle,
    pub(crate) upstream: Upstream,
    /// The version of the newest update, which the engine may not have seen yet.
    pub(crate) sent: AtomicU64,
    pub(crate) askers: Vec<Namespace>,
    _host_servers: watch::Sender<Arc<[IpAddr]>>,
    _directory: tempfile::TempDir,
}

impl World {
    /// To be called in the namespace that is to be the host's. Askers are tasks `asker0` and so on.
    pub(crate) fn up(host: &Namespace, name: &str, askers: usize, snapshot: &Snapshot) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let upstream = Upstream::start(&host.path(), UPSTREAM.into())?;
        let askers: Vec<Namespace> = (0..askers).map(|n| Namespace::new(&format!("{name}{n}"))).collect::<Result<_>>()?;
        for (number, asker) in askers.iter().enumerate() {
            std::os::unix::fs::symlink(asker.path(), directory.path().join(format!("box{number}")))?;
        }
        let (host_servers, received) = watch::channel(Arc::from([IpAddr::from(UPSTREAM)]));
        let netns_dir = directory.path().to_owned();
        let settings = NameSettings { answers: Default::default(), netns_dir: netns_dir.clone() };
        let names = Names::start(Arc::new(LinuxKernel), settings)?;
        let (updates, taken) = mpsc::channel(QUEUE);
        let settings = Settings {
            source: "test".to_owned(),
            node: Some("here".to_owned()),
            hostname: "here".to_owned(),
            takeover: Default::default(),
            router: Default::default(),
            store: Store::new(directory.path().join("state")),
            patience: Duration::from_secs(2),
            audit_every: Duration::from_secs(60),
            other_planes: Vec::new(),
        };
        let plane = PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir, node_address: None };
        let resolver = Resolver { names, host_servers: received };
        let engine = Engine::start(settings, taken, move || NetfilterPlane::new(Arc::new(LinuxKernel), plane), None, Some(resolver), None)?;
        let handle = engine.handle().clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let state =
            SourceState { source: "test".to_owned(), connected: true, detail: String::new(), node: Some("here".into()), problems: vec![] };
        updates.blocking_send(Update::State(state))?;
        updates.blocking_send(Update::Full(snapshot.clone()))?;
        let world = Self {
            updates,
            engine: Some(engine),
            runtime,
            handle,
            upstream,
            sent: AtomicU64::new(snapshot.version),
            askers,
            _host_servers: host_servers,
            _directory: directory,
        };
        world.wait("everything is in force", || world.applied() == snapshot.version && world.is_answering())?;
        Ok(world)
    }

    /// The version whose names are answered, at least.
    pub(crate) fn applied(&self) -> u64 {
        self.handle.shared.read(|view| view.snapshot.version)
    }

    fn is_answering(&self) -> bool {
        self.handle.shared.read(|view| view.resolvers.len() == self.askers.len() && view.resolvers.iter().all(|r| r.error.is_empty()))
    }

    /// Waits while the engine has more to do than it takes, as a source does.
    pub(crate) fn send(&self, delta: Delta) -> Result<()> {
        self.sent.store(delta.version, Ordering::SeqCst);
        Ok(self.updates.blocking_send(Update::Delta(delta))?)
    }

    pub(crate) fn wait(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !done() {
            ensure!(start.elapsed() < Duration::from_secs(120), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn down(mut self) -> Result<()> {
        let engine = self.engine.take().context("it is down already")?;
        self.runtime.block_on(engine.stop());
        Ok(())
    }
}

pub(crate) fn network(id: &str, internal: bool) -> Network {
    Network {
        id: id.into(),
        name: id.into(),
        driver: "overlay".to_owned(),
        ingress: false,
        local: false,
        internal,
        attachable: true,
        subnets: ["10.0.0.0/8", "fd00::/8"].iter().filter_map(|s| Some(Subnet { subnet: s.parse().ok()?, gateway: None })).collect(),
        mtu: None,
        labels: BTreeMap::new(),
    }
}

pub(crate) fn node() -> Node {
    Node {
        id: "here".into(),
        hostname: "here".to_owned(),
        address: None,
        role: Default::default(),
        state: Default::default(),
        availability: Default::default(),
        engine: None,
    }
}

/// With a VIP, or without one by its tasks' own addresses.
pub(crate) fn service(name: &str, network: &str, vip: Option<IpAddr>) -> Service {
    Service {
        id: name.into(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        endpoint_mode: if vip.is_some() { EndpointMode::Vip } else { EndpointMode::Dnsrr },
        ports: vec![],
        vips: vip.into_iter().map(|address| VirtualIp { network: network.into(), address }).collect(),
        networks: vec![ServiceNetwork { network: network.into(), aliases: vec![] }],
    }
}

/// On no node: nobody asks from there.
pub(crate) fn task(id: &str, service: Option<&str>, network: &str, address: IpAddr) -> Task {
    Task {
        id: id.into(),
        service: service.map(Into::into),
        name: id.into(),
        slot: None,
        node: None,
        desired_state: TaskState::Running,
        state: TaskState::Running,
        container: None,
        hostname: None,
        sandbox: None,
        healthy: None,
        addresses: vec![leg(network, address)],
        ports: None,
        dns: None,
        routing: None,
    }
}

pub(crate) fn leg(network: &str, address: IpAddr) -> TaskAddress {
    TaskAddress { network: network.into(), address, aliases: vec![], links: Default::default() }
}

/// A plain container on this node, in these networks.
pub(crate) fn asker(number: usize, networks: &[&str]) -> Task {
    let address = IpAddr::from([10, 1, 0, 1 + number as u8]);
    Task {
        node: Some("here".into()),
        sandbox: Some(format!("box{number}").into()),
        addresses: networks.iter().map(|network| leg(network, address)).collect(),
        dns: Some(Box::default()),
        ..task(&format!("asker{number}"), None, "", address)
    }
}
