//! A node in memory: the fake kernel with the namespaces that Docker would make.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

mod meaning;
mod plans;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaceState, PlaneConfig};
use swarmesh_kernel::{
    DefaultRoute, Family, Interface, SetName,
    fake::{FakeKernel, FakeView},
};
use swarmesh_model::Protocol;
use swarmesh_plan::{Backend, PlanDelta, Policy, PublishedPort, Scheduler};

pub use meaning::*;
use meaning::{octets, picked};
pub use plans::*;

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

    /// From the first place to the last, at once.
    pub fn audit(&mut self) {
        audit(&mut self.plane, self.now);
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

/// One place a turn, as the engine does it, until there are no more.
pub fn audit(plane: &mut NetfilterPlane, now: Instant) {
    plane.start_audit(now);
    while plane.run_due(now) == Some(now) {}
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
