//! A node in memory: the fake kernel with the namespaces that Docker would make, plans made by hand, and what a
//! namespace's tables mean, read without the data plane's own code.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaceState, PlaneConfig};
use swarmesh_kernel::{
    DefaultRoute, ElementData, Family, Interface, SetName, VirtualId,
    fake::{FakeKernel, FakeRule, FakeView},
};
use swarmesh_model::{Protocol, TaskId};
use swarmesh_plan::{
    Backend, BackendState, Ingress, NodePlan, PlanDelta, Policy, PublishedPort, SandboxPlan, Scheduler, TaskIngress, VirtualService,
};

/// Not there, so that no plane watches it.
pub const NETNS: &str = "/nonexistent/netns";

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub const fn set(name: &'static str) -> SetName {
    SetName { family: Family::Inet, table: "swarmesh", set: name }
}

pub fn interface(index: u32, name: &str, kind: Option<&str>, addresses: &[&str]) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1450,
        up: true,
        kind: kind.map(str::to_owned),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

// Plans.

pub fn policy(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy::default();
    change(&mut policy);
    policy
}

pub fn sticky() -> Policy {
    policy(|p| p.affinity = Some(Duration::from_secs(60)))
}

pub fn scheduled(scheduler: Scheduler) -> Policy {
    policy(|p| p.scheduler = scheduler)
}

/// `10.0.1.11`, or `10.0.1.11 drains`.
pub fn backends(of: &[&str]) -> Vec<Backend> {
    let mut backends: Vec<Backend> = of
        .iter()
        .map(|text| {
            let (address, state) = match text.split_once(' ') {
                Some((address, _)) => (address, BackendState::Draining),
                None => (*text, BackendState::Ready),
            };
            // Those of `Plan::task` are this node's.
            let task = match ip(address) {
                IpAddr::V4(a) if a.octets()[..3] == [10, 0, 0] && (101..110).contains(&a.octets()[3]) => {
                    format!("t{}", a.octets()[3] - 100)
                }
                _ => address.to_owned(),
            };
            Backend { address: ip(address), task: task.as_str().into(), state }
        })
        .collect();
    backends.sort();
    backends
}

/// Two networks `net1` (10.0.1.0/24, fd00:1::/64) and `net2` (10.0.2.0/24), the ingress network, and tasks `t1`….
#[derive(Clone, Debug, Default)]
pub struct Plan(pub NodePlan);

impl Plan {
    pub fn ingress(mut self) -> Self {
        self.0.ingress = Some(Arc::new(Ingress { network: "ingress".into(), subnets: vec!["10.0.0.0/24".parse().unwrap()], mtu: 1450 }));
        self
    }

    /// Task `tN` in the namespace `boxN`, in these networks; with published ports if there are any.
    pub fn task(mut self, number: u8, networks: &[&str], published: &[(Protocol, u16, u16)]) -> Self {
        let id: TaskId = format!("t{number}").as_str().into();
        let plan = SandboxPlan {
            task: id.clone(),
            name: format!("web.{number}"),
            sandbox: format!("box{number}"),
            networks: networks.iter().map(|n| (*n).into()).collect(),
            ingress: (!published.is_empty()).then(|| TaskIngress {
                addresses: vec![IpAddr::from([10, 0, 0, 100 + number])],
                published: published.iter().map(|(protocol, port, target)| ((*protocol, *port), *target)).collect(),
                host: BTreeSet::new(),
            }),
        };
        for network in networks {
            self.0.networks.entry((*network).into()).or_default();
        }
        self.0.sandboxes.insert(id, Arc::new(plan));
        self
    }

    pub fn vip(mut self, network: &str, vip: &str, policy: Policy, of: &[&str]) -> Self {
        let service = VirtualService { service: vip.into(), name: vip.to_owned(), policy: Arc::new(policy), backends: backends(of).into() };
        self.0.networks.entry(network.into()).or_default().insert(ip(vip), Arc::new(service));
        self
    }

    pub fn without_vip(mut self, network: &str, vip: &str) -> Self {
        self.0.networks.get_mut(network).unwrap().remove(&ip(vip));
        self
    }

    pub fn port(self, protocol: Protocol, port: u16, policy: Policy, of: &[&str]) -> Self {
        self.port_or_refuse(protocol, port, policy, of, false)
    }

    pub fn port_or_refuse(mut self, protocol: Protocol, port: u16, policy: Policy, of: &[&str], refuse: bool) -> Self {
        let service = format!("{protocol}{port}");
        let port_plan = PublishedPort {
            service: service.as_str().into(),
            name: service,
            target_port: 80,
            policy: Arc::new(policy),
            refuse,
            backends: backends(of),
        };
        self.0.published.insert((protocol, port), Arc::new(port_plan));
        self
    }

    pub fn without_port(mut self, protocol: Protocol, port: u16) -> Self {
        self.0.published.remove(&(protocol, port));
        self
    }

    pub fn without_task(mut self, number: u8) -> Self {
        self.0.sandboxes.remove(&format!("t{number}").as_str().into());
        let used: BTreeSet<_> = self.0.sandboxes.values().flat_map(|s| s.networks.clone()).collect();
        self.0.networks.retain(|n, _| used.contains(n));
        self
    }

    pub fn without_ingress(mut self) -> Self {
        self.0.ingress = None;
        self.0.published = Default::default();
        let without = |s: &SandboxPlan| Arc::new(SandboxPlan { ingress: None, ..s.clone() });
        self.0.sandboxes = self.0.sandboxes.iter().map(|(id, s)| (id.clone(), without(s))).collect();
        self
    }
}

/// Two tasks, one of which serves published ports; services of every kind.
pub fn rich() -> Plan {
    Plan::default()
        .ingress()
        .task(1, &["net1"], &[(Protocol::Tcp, 8080, 80), (Protocol::Udp, 5353, 53)])
        .task(2, &["net1", "net2"], &[])
        .vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11", "10.0.1.12", "10.0.1.13"])
        .vip("net1", "10.0.1.101", sticky(), &["10.0.1.14", "10.0.1.15"])
        .vip("net1", "10.0.1.102", scheduled(Scheduler::SourceHash), &["10.0.1.16", "10.0.1.17"])
        .vip("net1", "10.0.1.103", Policy::default(), &[])
        .vip("net1", "fd00:1::100", Policy::default(), &["fd00:1::11", "fd00:1::12"])
        .vip("net2", "10.0.2.100", scheduled(Scheduler::Random), &["10.0.2.11", "10.0.2.12"])
        .port(Protocol::Tcp, 8080, Policy::default(), &["10.0.0.101", "10.0.0.111"])
        .port(Protocol::Udp, 5353, sticky(), &["10.0.0.101", "10.0.0.112"])
        .port(Protocol::Tcp, 9090, policy(|p| p.source = swarmesh_plan::SourceMode::Snat), &["10.0.0.113"])
}

// The node.

pub struct World {
    pub kernel: FakeKernel,
    pub plane: NetfilterPlane,
    pub balancing: Balancing,
    pub plan: Plan,
    pub now: Instant,
}

impl World {
    /// With DOCKER-USER and the ingress sandbox, without tasks.
    pub fn new() -> Self {
        Self::on(Balancing::Nft)
    }

    pub fn on(balancing: Balancing) -> Self {
        let kernel = FakeKernel::new();
        let here = kernel.here();
        here.set_interfaces(vec![
            interface(1, "lo", None, &["127.0.0.1/8"]),
            interface(2, "eth0", None, &["192.0.2.1/24"]),
            interface(3, "docker_gwbridge", Some("bridge"), &["172.18.0.1/16"]),
        ]);
        here.set_docker_user(false, true);
        let world = Self { plane: plane(&kernel, &balancing), kernel, balancing, plan: Plan::default(), now: Instant::now() };
        world.add_sandbox();
        world
    }

    pub fn add_sandbox(&self) -> FakeView {
        let view = self.kernel.add_namespace(path("ingress_sbox"));
        view.set_interfaces(sandbox_interfaces());
        view.set_default_route(false, Some(DefaultRoute { index: 3, gateway: Some(ip("172.18.0.1")) }));
        view
    }

    pub fn add_box(&self, number: u8) -> FakeView {
        let view = self.kernel.add_namespace(path(&format!("box{number}")));
        view.set_interfaces(box_interfaces(number));
        view.set_default_route(false, Some(DefaultRoute { index: 4, gateway: Some(ip("172.18.0.1")) }));
        // A task that has run for a while has flows.
        view.set_sysctl("net/netfilter/nf_conntrack_count", "7");
        view
    }

    /// With the namespaces of all tasks of the plan, and all of it applied.
    pub fn with(plan: Plan) -> Self {
        Self::with_on(Balancing::Nft, plan)
    }

    pub fn with_on(balancing: Balancing, plan: Plan) -> Self {
        let mut world = Self::on(balancing);
        world.add_boxes(&plan);
        world.apply(plan);
        world.settled();
        world
    }

    pub fn add_boxes(&self, plan: &Plan) {
        for sandbox in plan.0.sandboxes.values() {
            let number = sandbox.sandbox.strip_prefix("box").unwrap().parse().unwrap();
            if self.kernel.at(path(&sandbox.sandbox)).is_none() {
                self.add_box(number);
            }
        }
    }

    pub fn apply(&mut self, plan: Plan) {
        let delta = PlanDelta::between(&self.plan.0, &plan.0);
        self.plan = plan;
        self.plane.apply(&delta, self.now);
    }

    /// Another agent over the same kernel.
    pub fn restart(&mut self) {
        self.plane = plane(&self.kernel, &self.balancing);
        let plan = std::mem::take(&mut self.plan);
        self.apply(plan);
    }

    /// The same with another plane.
    pub fn switch(&mut self, balancing: Balancing) {
        self.balancing = balancing;
        self.restart();
    }

    pub fn after(&mut self, time: Duration) {
        self.now += time;
        self.plane.run_due(self.now);
    }

    pub fn check_events(&mut self) {
        self.plane.check_events(self.now);
    }

    /// Retries as the agent does, for at most a synthetic minute.
    pub fn retry(&mut self) {
        let end = self.now + Duration::from_secs(60);
        while !self.plane.is_settled() {
            let Some(next) = self.plane.run_due(self.now) else { break };
            assert!(next <= end, "still pending: {:?}", self.plane.status(self.now).places);
            self.now = self.now.max(next);
        }
        self.settled();
    }

    pub fn settled(&self) {
        assert!(self.plane.is_settled(), "{:#?}", self.plane.status(self.now).places);
    }

    /// Places that are pending, with the reason.
    pub fn pending(&self) -> BTreeMap<String, String> {
        let places = self.plane.status(self.now).places;
        places.into_iter().filter(|p| p.state == PlaceState::Pending).map(|p| (p.place, p.error)).collect()
    }

    pub fn node(&self) -> FakeView {
        self.kernel.here()
    }

    pub fn sandbox(&self) -> FakeView {
        self.kernel.at(path("ingress_sbox")).unwrap()
    }

    pub fn task(&self, number: u8) -> FakeView {
        self.kernel.at(path(&format!("box{number}"))).unwrap()
    }

    pub fn view(&self, place: &str) -> FakeView {
        match place {
            "node" => self.node(),
            "ingress" => self.sandbox(),
            task => self.task(task.strip_prefix("task web.").unwrap().parse().unwrap()),
        }
    }

    /// Every namespace of the plan.
    pub fn views(&self) -> BTreeMap<String, FakeView> {
        let tasks = self.plan.0.sandboxes.values().filter_map(|s| Some((s.sandbox.clone(), self.kernel.at(path(&s.sandbox))?)));
        tasks
            .chain([("node".to_owned(), self.node())])
            .chain(self.kernel.at(path("ingress_sbox")).map(|v| ("ingress".to_owned(), v)))
            .collect()
    }

    pub fn forget_records(&self) {
        for view in self.views().values() {
            view.forget_records();
        }
    }

    /// How much was written to each namespace since [`Self::forget_records`], where anything was.
    pub fn written(&self) -> BTreeMap<String, usize> {
        self.views().into_iter().map(|(name, view)| (name, view.writes())).filter(|(_, n)| *n > 0).collect()
    }

    pub fn meaning(&self) -> BTreeMap<String, Meaning> {
        self.views().into_iter().map(|(name, view)| (name, Meaning::of(&view))).collect()
    }

    /// Fails unless every namespace is just as if a plane that never failed had been given this plan at once, and as the plan
    /// says.
    pub fn is_exact(&self) {
        self.settled();
        let fresh = Self::with_on(self.balancing.clone(), self.plan.clone());
        let (mine, wanted) = (self.meaning(), fresh.meaning());
        assert_eq!(mine.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        for (name, wanted) in &wanted {
            let mine = &mine[name];
            assert_eq!(mine.fronts, wanted.fronts, "frontends of {name}");
            assert_eq!(mine.plain, wanted.plain, "plain sets of {name}");
            // A plane that was never here leaves no table; one that has nothing to do any more may leave an empty one.
            if !wanted.rules.is_empty() {
                // What virtual servers stand in for lies idle there, and is put right before it is used again.
                let idle = self.balancing != Balancing::Nft && name == "ingress";
                assert!(idle || mine.strays.is_empty(), "{name} holds what means nothing: {:?}", mine.strays);
                assert_eq!(mine.rules, wanted.rules, "rules of {name}");
                assert_eq!(mine.routing, wanted.routing, "routing of {name}");
            }
        }
        match self.balancing {
            Balancing::Nft => self.is_planned(),
            Balancing::Ipvs { .. } => self.has_planned_virtuals(),
        }
    }

    /// Virtual servers as the plan says, and no others of ours.
    fn has_planned_virtuals(&self) {
        let wanted = |policy: &Policy, backends: Vec<&Backend>, refuse: bool| {
            let serving: BTreeSet<IpAddr> = backends.iter().map(|b| b.address).collect();
            (!refuse && !serving.is_empty()).then(|| Virtual {
                scheduler: match policy.scheduler {
                    Scheduler::RoundRobin | Scheduler::Random => "rr",
                    Scheduler::WeightedRoundRobin => "wrr",
                    Scheduler::LeastConnections => "lc",
                    Scheduler::WeightedLeastConnections => "wlc",
                    Scheduler::Maglev => "mh",
                    Scheduler::SourceHash => "sh",
                }
                .to_owned(),
                affinity: policy.affinity,
                serving,
            })
        };
        for sandbox in self.plan.0.sandboxes.values() {
            let vips = sandbox.networks.iter().filter_map(|n| self.plan.0.networks.get(n)).flatten();
            let all = vips.map(|(vip, service)| {
                let others = service.serving().filter(|b| b.task != sandbox.task).collect();
                ((vip.is_ipv6(), octets(*vip)), wanted(&service.policy, others, false))
            });
            assert_eq!(Virtual::of(&self.views()[&sandbox.sandbox]), all.collect(), "{}", sandbox.name);
        }
        let mut ports = BTreeMap::new();
        for ((protocol, port), published) in &self.plan.0.published {
            let [high, low] = port.to_be_bytes();
            let key = vec![protocol.number(), 0, 0, 0, high, low, 0, 0];
            for v6 in [false, true] {
                let serving = published.serving().filter(|b| b.address.is_ipv6() == v6).collect();
                ports.insert((v6, key.clone()), wanted(&published.policy, serving, published.refuse));
            }
        }
        if let Some(view) = self.views().get("ingress") {
            assert_eq!(Virtual::of(view), ports, "ingress");
        }
    }

    /// Compares with the plan, read without the plane's code.
    fn is_planned(&self) {
        let meaning = self.meaning();
        for sandbox in self.plan.0.sandboxes.values() {
            let mut wanted = BTreeMap::new();
            for (vip, service) in sandbox.networks.iter().filter_map(|n| self.plan.0.networks.get(n)).flatten() {
                wanted.insert((vip.is_ipv6(), octets(*vip)), picked(&service.policy, service.targets()));
            }
            assert_eq!(meaning[&sandbox.sandbox].fronts, wanted, "{}", sandbox.name);
        }
        let (mut wanted, mut turns) = (BTreeMap::new(), BTreeMap::new());
        for ((protocol, port), published) in &self.plan.0.published {
            let [high, low] = port.to_be_bytes();
            let key = vec![protocol.number(), 0, 0, 0, high, low, 0, 0];
            let (near, far) = self.near_and_far(*protocol, *port, published);
            if !near.is_empty() {
                let all = near.iter().copied().chain(far.iter().map(|_| ip("0.0.0.0")));
                turns.insert((false, key.clone()), picked(&published.policy, all));
            }
            let mut to = published.targets().filter(IpAddr::is_ipv4).collect::<Vec<_>>();
            if !near.is_empty() && !far.is_empty() {
                to = far;
            }
            wanted.insert((false, key.clone()), picked(&published.policy, to.into_iter()));
            wanted.insert((true, key), picked(&published.policy, published.targets().filter(IpAddr::is_ipv6)));
        }
        if let Some(ingress) = meaning.get("ingress") {
            assert_eq!(ingress.fronts, wanted, "ingress");
        }
        assert_eq!(meaning["node"].fronts, turns, "node");
        let published = meaning["node"].plain.get("published").cloned().unwrap_or_default();
        assert_eq!(published.into_keys().collect::<BTreeSet<_>>(), wanted.into_keys().map(|(_, key)| key).collect(), "node");
    }
}

impl World {
    /// Who serves a port: addresses on the bridge of tasks that are here and reached directly, ingress addresses of the others.
    pub fn near_and_far(&self, protocol: Protocol, port: u16, published: &PublishedPort) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let policy = &published.policy;
        let suits = protocol == Protocol::Tcp
            && policy.affinity.is_none()
            && policy.scheduler != Scheduler::SourceHash
            && policy.source != swarmesh_plan::SourceMode::Snat;
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for backend in published.serving().filter(|b| b.address.is_ipv4()) {
            let sandbox = self.plan.0.sandboxes.get(&backend.task);
            let taken = sandbox.and_then(|s| s.ingress.as_ref());
            if suits && taken.is_some_and(|i| i.published.contains_key(&(protocol, port)) && !i.host.contains(&port)) {
                let number: u8 = backend.task.as_str()[1..].parse().unwrap();
                near.push(IpAddr::from([172, 18, 0, 10 + number]));
            } else {
                far.push(backend.address);
            }
        }
        (near, far)
    }
}

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(NETNS).join(name)
}

pub fn ipvs() -> Balancing {
    let all = [
        Scheduler::RoundRobin,
        Scheduler::WeightedRoundRobin,
        Scheduler::LeastConnections,
        Scheduler::WeightedLeastConnections,
        Scheduler::SourceHash,
        Scheduler::Maglev,
    ];
    Balancing::Ipvs { schedulers: Arc::new(BTreeSet::from(all)) }
}

pub fn plane(kernel: &FakeKernel, balancing: &Balancing) -> NetfilterPlane {
    NetfilterPlane::new(
        Arc::new(kernel.clone()),
        PlaneConfig { balancing: balancing.clone(), netns_dir: NETNS.into(), node_address: Some(ip("192.0.2.1")) },
    )
}

pub fn sandbox_interfaces() -> Vec<Interface> {
    vec![
        interface(1, "lo", None, &["127.0.0.1/8"]),
        interface(2, "eth0", Some("veth"), &["10.0.0.2/24"]),
        interface(3, "eth1", Some("veth"), &["172.18.0.2/16"]),
    ]
}

pub fn box_interfaces(number: u8) -> Vec<Interface> {
    vec![
        interface(1, "lo", None, &["127.0.0.1/8"]),
        interface(2, "eth0", Some("veth"), &[&format!("10.0.0.{}/24", 100 + number)]),
        interface(3, "eth1", Some("veth"), &[&format!("10.0.1.{}/24", 200 + number)]),
        interface(4, "eth2", Some("veth"), &[&format!("172.18.0.{}/16", 10 + number)]),
    ]
}

// What tables mean.

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// How a frontend picks, and from what, sorted.
pub type Picked = (String, Vec<Vec<u8>>);

fn picked(policy: &Policy, targets: impl Iterator<Item = IpAddr>) -> Picked {
    let mut targets: Vec<Vec<u8>> = targets.map(octets).collect();
    targets.sort();
    if targets.is_empty() {
        return ("refuse".to_owned(), targets);
    }
    let scheduler = match policy.scheduler {
        Scheduler::Random => "random",
        Scheduler::SourceHash => "sh",
        _ => "rr",
    };
    let affinity = policy.affinity.map(|t| format!(" sticky{}", t.as_secs())).unwrap_or_default();
    (format!("{scheduler}{affinity}"), targets)
}

/// A virtual server that a frontend leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Virtual {
    pub scheduler: String,
    pub affinity: Option<Duration>,
    /// Real servers with a weight.
    pub serving: BTreeSet<IpAddr>,
}

impl Virtual {
    /// By family and key, what each frontend leads to; `None` is refused. Fails on what leads nowhere, and on virtual servers
    /// that nobody is led to or has been.
    pub fn of(view: &FakeView) -> BTreeMap<(bool, Vec<u8>), Option<Self>> {
        let mut servers: BTreeMap<(bool, u32), _> = BTreeMap::new();
        for (server, reals) in view.ipvs() {
            if let VirtualId::Mark { mark, v6 } = server.id
                && mark.get() >> 24 == 0x4d
            {
                servers.insert((v6, mark.get()), (server, reals));
            }
        }
        let mut fronts = BTreeMap::new();
        for (v6, marks, parked) in [(false, "marks4", "parked4"), (true, "marks6", "parked6")] {
            let read = |name| {
                let value = |data: Option<ElementData>| match data {
                    Some(ElementData::Value(bytes)) => u32::from_ne_bytes(bytes.try_into().unwrap()),
                    other => panic!("not a mark: {other:?}"),
                };
                view.elements(set(name)).into_iter().map(|e| (e.key, value(e.data))).collect::<BTreeMap<_, _>>()
            };
            for (key, mark) in read(marks) {
                let led_to =
                    (mark != 0x4d00_0000).then(|| servers.remove(&(v6, mark)).unwrap_or_else(|| panic!("{mark:#x} leads nowhere")));
                let virtual_server = led_to.map(|(server, reals)| Self {
                    scheduler: server.scheduler.name().to_owned(),
                    affinity: server.persistence.map(|p| p.timeout),
                    serving: reals.iter().filter(|r| r.weight > 0).map(|r| r.id.address).collect(),
                });
                fronts.insert((v6, key), virtual_server);
            }
            for (key, mark) in read(parked) {
                assert_eq!(fronts.get(&(v6, key.clone())), Some(&None), "{key:?} is parked and serves");
                assert!(servers.remove(&(v6, mark)).is_some(), "{mark:#x} is parked nowhere");
            }
        }
        assert!(servers.is_empty(), "nobody is led to {:?}", servers.keys());
        fronts
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Meaning {
    /// By family and key.
    pub fronts: BTreeMap<(bool, Vec<u8>), Picked>,
    pub plain: BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<ElementData>>>,
    /// By chain, of both tables; without the chains that pick, whose numbers depend on the way.
    pub rules: BTreeMap<String, Vec<FakeRule>>,
    pub routing: Vec<String>,
    /// Whatever leads nowhere or that nothing leads to.
    pub strays: BTreeSet<String>,
}

impl Meaning {
    pub fn of(view: &FakeView) -> Self {
        let mut meaning =
            Self { fronts: BTreeMap::new(), plain: BTreeMap::new(), rules: BTreeMap::new(), routing: Vec::new(), strays: BTreeSet::new() };
        meaning.walk(view, false);
        meaning.walk(view, true);
        for name in ["port4", "port6", "near", "direct", "hidden", "published", "bound", "other4", "other6"] {
            let elements: BTreeMap<_, _> = view.elements(set(name)).into_iter().map(|e| (e.key, e.data)).collect();
            if !elements.is_empty() {
                meaning.plain.insert(name, elements);
            }
        }
        for family in [Family::Inet, Family::Netdev] {
            let chains = view.chains(family, "swarmesh").unwrap_or_default();
            // The balancer's chains may outlive it by the plane that stands in for it.
            let is_fixed = |c: &&String| !["pick", "was_off_", "dispatch"].iter().any(|start| c.starts_with(start));
            for chain in chains.iter().filter(is_fixed) {
                meaning.rules.insert(format!("{family} {chain}"), view.rules(family, "swarmesh", chain));
            }
        }
        meaning.routing = view.fwmark_rules().iter().map(|r| format!("{r:?}")).collect();
        for v6 in [false, true] {
            for table in [swarmesh_dataplane::RETURN_TABLE, swarmesh_dataplane::NEAR_TABLE] {
                meaning.routing.extend(view.route(v6, table).map(|r| format!("{r:?}")));
            }
            meaning.routing.extend(view.docker_user(v6).into_iter().flatten().map(|r| r.join(" ")));
        }
        meaning.routing.sort();
        meaning
    }

    fn walk(&mut self, view: &FakeView, v6: bool) {
        let names = if v6 {
            ["front6", "classes6", "slot6", "sticky6", "live6", "pick6_", "dispatch6"]
        } else {
            ["front4", "classes4", "slot4", "sticky4", "live4", "pick4_", "dispatch4"]
        };
        let read = |name| view.elements(set(name)).into_iter().map(|e| (e.key, e.data)).collect::<BTreeMap<_, _>>();
        let value = |data: &Option<ElementData>| match data {
            Some(ElementData::Value(bytes)) => bytes.clone(),
            other => panic!("not a value: {other:?}"),
        };
        let [fronts, classes, mut slots, mut sticky, mut live] =
            [read(names[0]), read(names[1]), read(names[2]), read(names[3]), read(names[4])];
        let (prefix, dispatch) = (names[5], names[6]);

        let chains = view.chains(Family::Inet, "swarmesh").unwrap_or_default();
        let picks: BTreeSet<String> = chains.iter().filter(|c| c.starts_with(prefix)).cloned().collect();
        let mut led_to = BTreeSet::new();
        let mut chain_of = BTreeMap::new();
        for (number, data) in &classes {
            let Some(ElementData::Goto(chain)) = data else { panic!("a class without a chain") };
            chain_of.insert(number.clone(), chain.clone());
            if chain == "refuse" && *number == vec![0; 4] {
                continue;
            }
            if !led_to.insert(chain.clone()) || !picks.contains(chain) {
                self.strays.insert(format!("class {number:?} to {chain}"));
            }
            let rules = view.rules(Family::Inet, "swarmesh", chain).len();
            if rules != if chain.contains("sticky") { 4 } else { 1 } {
                self.strays.insert(format!("{rules} rules in {chain}"));
            }
        }
        if chains.contains(&dispatch.to_owned()) && chain_of.get(&vec![0; 4]).map(String::as_str) != Some("refuse") {
            self.strays.insert(format!("{} does not know to refuse", names[1]));
        }
        self.strays.extend(picks.difference(&led_to).map(|c| format!("chain {c}")));

        for (key, data) in &fronts {
            let class = value(data)[4..].to_vec();
            let Some(chain) = chain_of.get(&class) else {
                self.strays.insert(format!("front {key:?} to class {class:?}"));
                continue;
            };
            if chain == "refuse" {
                self.fronts.insert((v6, key.clone()), ("refuse".to_owned(), Vec::new()));
                continue;
            }
            let parts: Vec<&str> = chain.strip_prefix(prefix).unwrap().split('_').collect();
            let affinity = parts.get(3);
            let mut targets = Vec::new();
            for index in 0..parts[1].parse::<u32>().unwrap() {
                let slot = [key.clone(), index.to_ne_bytes().to_vec()].concat();
                let found = if affinity.is_some() {
                    sticky.remove(&slot).map(|d| value(&d)[4..].to_vec())
                } else {
                    slots.remove(&slot).map(|d| value(&d))
                };
                // The node takes turns with the sandbox, whose slots are empty.
                let found = found.or_else(|| chains.contains(&"entrust".to_owned()).then(|| vec![0; 4]));
                let Some(target) = found else {
                    self.strays.insert(format!("no slot {index} of {key:?}"));
                    continue;
                };
                if affinity.is_some() && live.remove(&[key.clone(), target.clone()].concat()).is_none() {
                    self.strays.insert(format!("{target:?} of {key:?} is not live"));
                }
                targets.push(target);
            }
            targets.sort();
            let how = affinity.map_or_else(|| parts[0].to_owned(), |a| format!("{} {a}", parts[0]));
            self.fronts.insert((v6, key.clone()), (how, targets));
        }
        for (name, left) in [("slot", slots), ("sticky", sticky), ("live", live)] {
            self.strays.extend(left.keys().map(|key| format!("{name}{prefix} {key:?}")));
        }
    }
}
