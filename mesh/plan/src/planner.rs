//! The planner: a snapshot and indexes over it, kept up to date delta by delta.

mod named;
mod routed;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;
use swarmesh_model::{
    Delta, EndpointMode, HostLayout, Network, NetworkId, NodeId, NodeState, Port, Problem, Protocol, PublishMode, Service, ServiceId,
    ServiceNetwork, SharedMap, Snapshot, Subnet, Task, TaskId, TaskState,
};
use swarmesh_router::dialect;

use crate::{
    Added, Backend, BackendState, Ingress, NodePlan, OwnerKey, PlanDelta, Policy, PortKey, PublishedPort, SandboxPlan, SourceMode,
    TaskIngress, VirtualService,
    routes::{self, RouteIndex},
};

/// VXLAN's cost on a 1500-byte underlay, and Docker's default for overlays.
const OVERLAY_MTU: u32 = 1450;

/// What the plan must know of the node it is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// This node's id; without one, no task is local.
    pub node: Option<NodeId>,
    pub takeover: Takeover,
    /// Refuse new connections on published ports, so that external load balancers look elsewhere.
    pub draining: bool,
    /// Somebody else answers names; none are planned.
    pub leaves_names: bool,
    /// What was said beside the labels, in the systems that some of them were for.
    pub dialects: Arc<dialect::Settings>,
    /// Services that were told of beside the swarm's labels.
    pub added: Arc<Added>,
}

/// Which services are ours to handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Takeover {
    /// All but those labelled `swarmesh.enable=false`.
    #[default]
    On,
    /// Only those labelled `swarmesh.enable=true`.
    Labelled,
}

/// The plan of a whole snapshot.
pub fn plan(snapshot: &Snapshot, context: &NodeContext) -> NodePlan {
    let mut planner = Planner::new(context.clone());
    planner.update(&Delta::between(&Snapshot::default(), snapshot));
    planner.into_plan()
}

/// The incremental plan. A delta costs what it touches: the services it names, those of the tasks it names, and all
/// VIPs of a network that a local sandbox is the first to join.
#[derive(Debug)]
pub struct Planner {
    context: NodeContext,
    snapshot: Snapshot,
    services: HashMap<ServiceId, ServiceFacts>,
    tasks_of: HashMap<ServiceId, SortedList<TaskId>>,
    /// Who wants a VIP or a published port. The smallest id has it; the others are reported.
    vip_claims: BTreeMap<VipKey, Claimants>,
    port_claims: HashMap<PortKey, Claimants>,
    /// How many local sandboxes are in each network.
    members: HashMap<NetworkId, usize>,
    problems: BTreeMap<Subject, Vec<Problem>>,
    /// Of all services that are labelled with nothing of ours.
    default_policy: Arc<Policy>,
    routing: RouteIndex,
    /// Addresses that nothing of this node's reaches, though their tasks may well run.
    unreachable: Arc<BTreeSet<(NetworkId, IpAddr)>>,
    /// The swarm is known, so that an added name that no service bears is a host's. Before, nobody can tell.
    knows_names: bool,
    plan: NodePlan,
}

type VipKey = (NetworkId, IpAddr);

type Claimants = SortedList<ServiceId>;

/// What a service's own fields say, read once per change of the service.
#[derive(Debug, Default)]
struct ServiceFacts {
    policy: Arc<Policy>,
    /// Sorted; a set's node would have room for eleven where most services have one.
    vips: Vec<VipKey>,
    /// Published port to target port.
    ports: BTreeMap<PortKey, u16>,
    /// TCP target ports in host mode.
    host: BTreeSet<u16>,
}

/// Whose problems they are, so that they go when it is mended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Service(ServiceId),
    Backends(ServiceId),
    Vip(VipKey),
    Port(PortKey),
    Routes(OwnerKey),
}

/// What one delta touches.
#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceId>,
    tasks: BTreeSet<TaskId>,
    vips: BTreeSet<VipKey>,
    ports: BTreeSet<PortKey>,
    /// Tasks whose names or networks changed without a change of their own.
    named_tasks: BTreeSet<TaskId>,
    /// Services whose labels must be read for routes.
    routed: BTreeSet<ServiceId>,
    /// The same of this node's plain containers.
    routed_containers: BTreeSet<TaskId>,
    /// Names that were added, or removed, or that became a service's, or are one's no more.
    added: BTreeSet<String>,
    ingress: bool,
    problems: bool,
}

impl Planner {
    pub fn new(context: NodeContext) -> Self {
        Self {
            knows_names: false,
            context,
            snapshot: Snapshot::default(),
            services: HashMap::new(),
            tasks_of: HashMap::new(),
            vip_claims: BTreeMap::new(),
            port_claims: HashMap::new(),
            members: HashMap::new(),
            problems: BTreeMap::new(),
            default_policy: Arc::default(),
            routing: RouteIndex::default(),
            unreachable: Arc::default(),
            plan: NodePlan::default(),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    pub fn context(&self) -> &NodeContext {
        &self.context
    }

    /// See [`Self::set_reach`].
    pub fn unreachable(&self) -> &Arc<BTreeSet<(NetworkId, IpAddr)>> {
        &self.unreachable
    }

    pub fn into_plan(self) -> NodePlan {
        self.plan
    }

    /// Plans the same snapshot for a changed context. O(snapshot).
    pub fn set_context(&mut self, context: NodeContext) -> PlanDelta {
        if context == self.context {
            return PlanDelta { version: self.plan.version, ..PlanDelta::default() };
        }
        let mut all = Delta::between(&Snapshot::default(), &self.snapshot);
        all.version = self.snapshot.version;
        let routing = self.routing.successor();
        let unreachable = Arc::clone(&self.unreachable);
        let old = std::mem::replace(self, Self { routing, unreachable, ..Self::new(context) }).into_plan();
        self.update(&all);
        PlanDelta::between(&old, &self.plan)
    }

    /// Takes the next delta of the snapshot and returns what it changes for this node.
    pub fn update(&mut self, delta: &Delta) -> PlanDelta {
        let dirty = self.note_changes(delta);
        self.snapshot.apply(delta);
        self.replan(delta, dirty)
    }

    /// Plans for other services beside the swarm's. Costs a look at each service's name, and what changed.
    pub fn set_added(&mut self, added: Arc<Added>) -> PlanDelta {
        let mut dirty = Dirty { added: self.context.added.changed(&added).cloned().collect(), ..Dirty::default() };
        let concerned = self.snapshot.services.values().filter(|s| dirty.added.contains(&s.name));
        dirty.routed.extend(concerned.map(|s| s.id.clone()));
        self.context.added = added;
        self.replan(&Delta { version: self.plan.version, ..Delta::default() }, dirty)
    }

    /// Takes note of addresses that nothing of this node's reaches any more (`false`), or again (`true`). As with a node that is down,
    /// their tasks get nothing new while others can have it. Costs a look at every task, and what changed.
    pub fn set_reach(&mut self, changes: impl IntoIterator<Item = (NetworkId, IpAddr, bool)>) -> PlanDelta {
        let mut changed: HashMap<IpAddr, Vec<NetworkId>> = HashMap::new();
        let unreachable = Arc::make_mut(&mut self.unreachable);
        for (network, address, reachable) in changes {
            let key = (network.clone(), address);
            let is_news = if reachable { unreachable.remove(&key) } else { unreachable.insert(key) };
            if is_news {
                changed.entry(address).or_default().push(network);
            }
        }
        let is_concerned =
            |task: &Task| task.addresses.iter().any(|a| changed.get(&a.address).is_some_and(|networks| networks.contains(&a.network)));
        let tasks = self.snapshot.tasks.values().filter(|task| !changed.is_empty() && is_concerned(task));
        let dirty = Dirty { services: tasks.filter_map(|task| task.service.clone()).collect(), ..Dirty::default() };
        self.replan(&Delta { version: self.plan.version, ..Delta::default() }, dirty)
    }

    fn replan(&mut self, delta: &Delta, mut dirty: Dirty) -> PlanDelta {
        // Every swarm has nodes.
        let knows_names = !self.snapshot.nodes.is_empty() || !self.snapshot.services.is_empty();
        if std::mem::replace(&mut self.knows_names, knows_names) != knows_names {
            dirty.added.extend(self.context.added.iter().map(|(name, _)| name.clone()));
        }
        let mut out = PlanDelta { version: delta.version, ..PlanDelta::default() };
        self.plan_ingress(&mut out, &mut dirty);
        self.plan_host_layout(&mut out);
        self.read_services(&mut dirty);
        self.plan_sandboxes(&mut out, &mut dirty);
        self.plan_vips(&mut out, &mut dirty);
        self.plan_ports(&mut out, &mut dirty);
        self.plan_names(&mut out, delta, &dirty);
        self.plan_routes(&mut out, &mut dirty);
        if dirty.problems {
            out.problems = Some(self.problems.values().flatten().cloned().collect());
        }
        self.plan.apply(&out);
        out
    }

    fn is_on_node_that_is_down(&self, task: &Task) -> bool {
        task.node.as_ref().and_then(|n| self.snapshot.nodes.get(n)).is_some_and(|n| n.state == NodeState::Down)
    }

    /// This node's own tasks are reached without an overlay.
    fn is_out_of_reach(&self, task: &Task, network: &NetworkId, address: IpAddr) -> bool {
        !self.unreachable.is_empty() && !self.is_local(task) && self.unreachable.contains(&(network.clone(), address))
    }

    /// Finds what the delta touches, while both the old and the new objects are at hand.
    fn note_changes(&mut self, delta: &Delta) -> Dirty {
        let mut dirty = Dirty { services: delta.services.keys().cloned().collect(), ..Dirty::default() };
        let reroutes = |(id, new): &(&ServiceId, &Option<Arc<Service>>)| {
            self.snapshot.services.get(*id).map(|s| routed_by(s)) != new.as_ref().map(|s| routed_by(s))
        };
        dirty.routed.extend(delta.services.iter().filter(reroutes).map(|(id, _)| id.clone()));
        if !self.context.added.is_empty() {
            for id in &dirty.routed {
                let both = [self.snapshot.services.get(id), delta.services.get(id).and_then(Option::as_ref)];
                let names = both.into_iter().flatten().map(|s| &s.name).filter(|name| self.context.added.get(name).is_some());
                dirty.added.extend(names.cloned());
            }
        }
        for (id, task) in &delta.tasks {
            let old = self.snapshot.tasks.get(id);
            let asks = |task: &Arc<Task>| self.is_local(task) && routes::asking(task).is_some();
            if old.is_some_and(asks) || task.as_ref().is_some_and(asks) {
                dirty.routed_containers.insert(id.clone());
            }
            if old.is_some_and(|t| self.is_local(t)) || task.as_ref().is_some_and(|t| self.is_local(t)) {
                dirty.tasks.insert(id.clone());
            }
            let old = old.and_then(|t| t.service.clone());
            let new = task.as_ref().and_then(|t| t.service.clone());
            if old != new {
                if let Some(service) = &old {
                    disclaim(&mut self.tasks_of, service, id);
                }
                if let Some(service) = &new {
                    self.tasks_of.entry(service.clone()).or_default().insert(id.clone());
                }
            }
            dirty.services.extend(old.into_iter().chain(new));
        }
        for (id, node) in &delta.nodes {
            let was_down = self.snapshot.nodes.get(id).is_some_and(|n| n.state == NodeState::Down);
            if was_down != node.as_ref().is_some_and(|n| n.state == NodeState::Down) {
                let on_it = self.snapshot.tasks.values().filter(|t| t.node.as_ref() == Some(id));
                for task in on_it {
                    dirty.services.extend(task.service.clone());
                    dirty.named_tasks.insert(task.id.clone());
                }
            }
        }
        for (id, network) in &delta.networks {
            let old = self.snapshot.networks.get(id);
            dirty.ingress |= old.is_some_and(|n| n.ingress) || network.as_ref().is_some_and(|n| n.ingress);
            if old.map(|n| named_by(n)) != network.as_ref().map(|n| named_by(n)) {
                let tasks = self.snapshot.tasks.values().filter(|t| t.address_in(id).next().is_some());
                dirty.named_tasks.extend(tasks.map(|t| t.id.clone()));
                let services = self.snapshot.services.values().filter(|s| s.networks.iter().any(|n| n.network == *id));
                dirty.services.extend(services.map(|s| s.id.clone()));
            }
            if old.map(|n| routes::routed_by(n)) != network.as_ref().map(|n| routes::routed_by(n)) {
                let services = self.snapshot.services.values().filter(|s| s.networks.iter().any(|n| n.network == *id));
                dirty.routed.extend(services.map(|s| s.id.clone()));
                let tasks = self.snapshot.tasks.values().filter(|t| self.is_local(t) && routes::asking(t).is_some());
                dirty.routed_containers.extend(tasks.filter(|t| t.address_in(id).next().is_some()).map(|t| t.id.clone()));
            }
            // Its subnets decide which VIPs and backends are believed; its presence, which sandboxes see it. Networks
            // change rarely, so a look at every service and task is what this may cost.
            if old.map(|n| &n.subnets) != network.as_ref().map(|n| &n.subnets) {
                let services = self.snapshot.services.values().filter(|s| s.vips.iter().any(|v| v.network == *id));
                dirty.services.extend(services.map(|s| s.id.clone()));
                for task in self.snapshot.tasks.values().filter(|t| t.address_in(id).next().is_some()) {
                    dirty.services.extend(task.service.clone());
                    if self.is_local(task) {
                        dirty.tasks.insert(task.id.clone());
                        dirty.routed_containers.extend(routes::asking(task).map(|_| task.id.clone()));
                    }
                }
            }
        }
        dirty
    }

    fn plan_ingress(&mut self, out: &mut PlanDelta, dirty: &mut Dirty) {
        if !dirty.ingress {
            return;
        }
        let ingress = self.snapshot.ingress().map(|network| {
            Arc::new(Ingress {
                network: network.id.clone(),
                subnets: network.subnets.iter().map(|s| s.subnet).collect(),
                mtu: network.mtu.unwrap_or(OVERLAY_MTU),
            })
        });
        if ingress == self.plan.ingress {
            return;
        }
        // Every backend of a published port is an address in this network.
        dirty.services.extend(self.snapshot.services.values().filter(|s| !s.ports.is_empty()).map(|s| s.id.clone()));
        dirty.tasks.extend(self.snapshot.tasks.values().filter(|t| self.is_local(t)).map(|t| t.id.clone()));
        self.plan.ingress.clone_from(&ingress);
        out.ingress = Some(ingress);
    }

    fn plan_host_layout(&self, out: &mut PlanDelta) {
        let node = self.context.node.as_ref().and_then(|id| self.snapshot.nodes.get(id));
        let layout = node.and_then(|n| n.engine.as_deref()).and_then(HostLayout::of_release);
        out.host_layout = (layout != self.plan.host_layout).then_some(layout);
    }

    /// Reads the dirty services' own fields, and marks each VIP and port that they claim or have given up.
    fn read_services(&mut self, dirty: &mut Dirty) {
        for id in &dirty.services {
            let mut problems = Vec::new();
            let facts = self.snapshot.services.get(id).map(|s| self.read_service(s, &mut problems));
            let changed = note_problems(&mut self.problems, Subject::Service(id.clone()), problems);
            dirty.problems |= changed;

            let old = self.services.remove(id).unwrap_or_default();
            let new = facts.unwrap_or_default();
            for key in old.vips.iter().filter(|key| new.vips.binary_search(key).is_err()) {
                if self.vip_claims.get_mut(key).is_some_and(|claimants| !claimants.remove(id)) {
                    self.vip_claims.remove(key);
                }
            }
            for key in old.ports.keys().filter(|k| !new.ports.contains_key(*k)) {
                disclaim(&mut self.port_claims, key, id);
            }
            for key in &new.vips {
                self.vip_claims.entry(key.clone()).or_default().insert(id.clone());
            }
            for key in new.ports.keys() {
                self.port_claims.entry(*key).or_default().insert(id.clone());
            }
            // What a task's sandbox answers follows from its service's ports.
            if old.ports != new.ports || old.host != new.host || old.policy != new.policy {
                let tasks = self.tasks_of.get(id).into_iter().flat_map(|tasks| &tasks.0).filter_map(|t| self.snapshot.tasks.get(t));
                dirty.tasks.extend(tasks.filter(|t| self.is_local(t)).map(|t| t.id.clone()));
            }
            dirty.vips.extend(old.vips.into_iter().chain(new.vips.iter().cloned()));
            dirty.ports.extend(old.ports.keys().chain(new.ports.keys()).copied());
            if self.snapshot.services.contains_key(id) {
                self.services.insert(id.clone(), new);
            } else {
                dirty.problems |= note_problems(&mut self.problems, Subject::Backends(id.clone()), Vec::new());
            }
        }
    }

    fn read_service(&self, service: &Service, problems: &mut Vec<Problem>) -> ServiceFacts {
        let object = || format!("service {}", service.name);
        let (policy, wrong) = Policy::from_labels(&service.labels);
        let bind_is_wrong = wrong.iter().any(|(label, _)| label == "swarmesh.bind");
        let enable_is_wrong = wrong.iter().any(|(label, _)| label == "swarmesh.enable");
        problems.extend(wrong.into_iter().map(|(label, message)| Problem::new(object(), label, message)));

        let managed = match self.context.takeover {
            Takeover::On => policy.enable != Some(false),
            Takeover::Labelled => policy.enable == Some(true),
        } && !enable_is_wrong;
        let policy = if policy == *self.default_policy { Arc::clone(&self.default_policy) } else { Arc::new(policy) };
        let mut facts = ServiceFacts { policy, ..ServiceFacts::default() };
        if !managed {
            return facts;
        }
        if service.endpoint_mode != EndpointMode::Dnsrr {
            for vip in &service.vips {
                match self.snapshot.networks.get(&vip.network) {
                    // Published ports are looked up by port, and the ingress network has no other clients.
                    Some(network) if network.ingress => {}
                    Some(network) if owns(network, vip.address) => {
                        facts.vips.push((vip.network.clone(), vip.address));
                    }
                    Some(network) => problems.push(Problem::new(
                        object(),
                        "vips",
                        format!("{} is outside of the subnets of network {}; it is not served", vip.address, network.name),
                    )),
                    None => problems.push(Problem::new(
                        object(),
                        "vips",
                        format!("its network {} is not known (yet); {} is not served", vip.network, vip.address),
                    )),
                }
            }
        }
        facts.vips.sort();
        facts.vips.dedup();
        facts.vips.shrink_to_fit();
        // A port that was to listen on few addresses must not be opened on all of them by a typing mistake.
        if !bind_is_wrong {
            facts.ports = ingress_ports(&service.ports);
            facts.host = host_targets(&service.ports);
        }
        facts
    }

    fn plan_sandboxes(&mut self, out: &mut PlanDelta, dirty: &mut Dirty) {
        for id in &dirty.tasks {
            let new = self.snapshot.tasks.get(id).and_then(|t| self.sandbox(t)).map(Arc::new);
            let old = self.plan.sandboxes.get(id);
            if old == new.as_ref() {
                continue;
            }
            for network in old.iter().flat_map(|s| &s.networks) {
                if let Some(count) = self.members.get_mut(network) {
                    *count -= 1;
                }
            }
            for network in new.iter().flat_map(|s| &s.networks) {
                *self.members.entry(network.clone()).or_default() += 1;
            }
            out.sandboxes.insert(id.clone(), new);
        }
        self.members.retain(|_, count| *count > 0);
        for network in self.plan.networks.keys().filter(|n| !self.members.contains_key(*n)) {
            out.left.insert(network.clone());
        }
        for network in self.members.keys().filter(|n| !self.plan.networks.contains_key(*n)) {
            out.vips.insert(network.clone(), BTreeMap::new());
            let first = (network.clone(), IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
            dirty.vips.extend(self.vip_claims.range(first..).map(|(k, _)| k).take_while(|k| k.0 == *network).cloned());
        }
    }

    fn sandbox(&self, task: &Task) -> Option<SandboxPlan> {
        if !self.is_local(task) || task.state > TaskState::Running {
            return None;
        }
        let ingress_network = self.plan.ingress.as_ref().map(|i| &i.network);
        // A network of this node alone has no VIPs.
        let of_swarm = |id: &NetworkId| self.snapshot.networks.get(id).is_some_and(|n| !n.local);
        let networks = task.addresses.iter().map(|a| &a.network).filter(|n| Some(*n) != ingress_network && of_swarm(n));
        let addresses: Vec<IpAddr> = ingress_network.into_iter().flat_map(|n| task.address_in(n)).collect();
        let facts = task.service.as_ref().and_then(|s| self.services.get(s));
        let published = match (facts, &task.ports) {
            // Not managed, or nothing published: Docker's arrangement stays as it is.
            (Some(facts), _) if facts.ports.is_empty() => BTreeMap::new(),
            (Some(_), Some(own)) => ingress_ports(own),
            (Some(facts), None) => facts.ports.clone(),
            (None, _) => BTreeMap::new(),
        };
        let networks: BTreeSet<NetworkId> = networks.cloned().collect();
        // In no network of the swarm, it is nobody's client or backend.
        if networks.is_empty() && addresses.is_empty() {
            return None;
        }
        let ingress = (!addresses.is_empty() && !published.is_empty()).then(|| {
            let host = task.ports.as_deref().map_or_else(|| facts.map(|f| f.host.clone()).unwrap_or_default(), host_targets);
            TaskIngress { addresses, published, host }
        });
        let sandbox = task.sandbox.as_deref()?.to_owned();
        Some(SandboxPlan { task: task.id.clone(), name: task.name.to_string(), sandbox, networks, ingress })
    }

    fn plan_vips(&mut self, out: &mut PlanDelta, dirty: &mut Dirty) {
        for key in &dirty.vips {
            let claimants = self.vip_claims.get(key);
            let conflict = claimants.map(|c| self.conflict(c, &format!("virtual IP {}", key.1))).unwrap_or_default();
            dirty.problems |= note_problems(&mut self.problems, Subject::Vip(key.clone()), conflict);
            if !self.members.contains_key(&key.0) {
                continue;
            }
            let new = claimants.and_then(|c| c.0.first()).and_then(|winner| self.virtual_service(winner, key)).map(Arc::new);
            if new.as_ref() != self.plan.networks.get(&key.0).and_then(|vips| vips.get(&key.1)) {
                out.vips.entry(key.0.clone()).or_default().insert(key.1, new);
            }
        }
        for id in &dirty.services {
            let odd = self.odd_addresses(id);
            dirty.problems |= note_problems(&mut self.problems, Subject::Backends(id.clone()), odd);
        }
    }

    fn virtual_service(&self, id: &ServiceId, (network, vip): &VipKey) -> Option<VirtualService> {
        let service = self.snapshot.services.get(id)?;
        let facts = self.services.get(id)?;
        Some(VirtualService {
            service: id.clone(),
            name: service.name.clone(),
            policy: Arc::clone(&facts.policy),
            backends: self.backends(id, network, vip.is_ipv6(), false).into(),
        })
    }

    fn plan_ports(&mut self, out: &mut PlanDelta, dirty: &mut Dirty) {
        for key in &dirty.ports {
            let claimants = self.port_claims.get(key);
            let conflict = claimants.map(|c| self.conflict(c, &format!("published port {}/{}", key.1, key.0))).unwrap_or_default();
            dirty.problems |= note_problems(&mut self.problems, Subject::Port(*key), conflict);
            let new = claimants.and_then(|c| c.0.first()).and_then(|winner| self.published_port(winner, *key)).map(Arc::new);
            if new.as_ref() != self.plan.published.get(key) {
                out.published.insert(*key, new);
            }
        }
    }

    fn published_port(&self, id: &ServiceId, key: PortKey) -> Option<PublishedPort> {
        let ingress = self.plan.ingress.as_ref()?;
        let service = self.snapshot.services.get(id)?;
        let facts = self.services.get(id)?;
        let local_only = facts.policy.source == SourceMode::Local;
        let mut backends = self.backends(id, &ingress.network, false, local_only);
        backends.extend(self.backends(id, &ingress.network, true, local_only));
        Some(PublishedPort {
            service: id.clone(),
            name: service.name.clone(),
            target_port: *facts.ports.get(&key)?,
            policy: Arc::clone(&facts.policy),
            refuse: self.context.draining,
            backends,
        })
    }

    fn backends(&self, id: &ServiceId, network: &NetworkId, v6: bool, local_only: bool) -> Vec<Backend> {
        let Some(network) = self.snapshot.networks.get(network) else { return Vec::new() };
        let tasks = self.tasks_of.get(id).into_iter().flat_map(|tasks| &tasks.0).filter_map(|t| self.snapshot.tasks.get(t));
        let mut backends: Vec<Backend> = Vec::new();
        for task in tasks.filter(|t| !local_only || self.is_local(t)) {
            if !task.is_usable() && !task.is_draining() {
                continue;
            }
            let serves = task.is_usable() && !self.is_on_node_that_is_down(task);
            let addresses = task.address_in(&network.id).filter(|a| a.is_ipv6() == v6 && owns(network, *a));
            backends.extend(addresses.map(|address| {
                let is_ready = serves && !self.is_out_of_reach(task, &network.id, address);
                let state = if is_ready { BackendState::Ready } else { BackendState::Draining };
                Backend { address, state, task: task.id.clone() }
            }));
        }
        // Ready sorts before draining: of two tasks that claim one address, the one that serves it is kept.
        backends.sort_by(|a, b| (a.address, a.state, &a.task).cmp(&(b.address, b.state, &b.task)));
        backends.dedup_by_key(|b| b.address);
        backends
    }

    /// Tasks whose address lies outside of its network: never used as a backend, whatever the source says.
    fn odd_addresses(&self, id: &ServiceId) -> Vec<Problem> {
        let tasks = self.tasks_of.get(id).into_iter().flat_map(|tasks| &tasks.0).filter_map(|t| self.snapshot.tasks.get(t));
        let odd = tasks.flat_map(|t| t.addresses.iter().map(move |a| (t, a))).filter_map(|(task, a)| {
            let network = self.snapshot.networks.get(&a.network)?;
            (!owns(network, a.address)).then(|| {
                let message = format!("{} is outside of the subnets of network {}; it gets no traffic", a.address, network.name);
                Problem::new(format!("task {}", task.name), "addresses", message)
            })
        });
        odd.collect()
    }

    fn conflict(&self, claimants: &Claimants, what: &str) -> Vec<Problem> {
        let name = |id: &ServiceId| self.snapshot.services.get(id).map_or_else(|| id.to_string(), |s| s.name.clone());
        let Some(winner) = claimants.0.first() else { return Vec::new() };
        let message = format!("is taken by service {}; this service does not get it until that one lets go", name(winner));
        claimants.0.iter().skip(1).map(|id| Problem::new(format!("service {}", name(id)), what, message.clone())).collect()
    }

    fn is_local(&self, task: &Task) -> bool {
        self.context.node.is_some() && task.node == self.context.node
    }
}

/// What of a network decides about names, beyond its being there.
fn named_by(network: &Network) -> (&str, [bool; 3], &[Subnet]) {
    (&network.name, [network.local, network.internal, network.ingress], &network.subnets)
}

/// What of a service decides about its routes, beside its networks' own.
fn routed_by(service: &Service) -> (&str, &BTreeMap<String, String>, &[Port], &[ServiceNetwork]) {
    (&service.name, &service.labels, &service.ports, &service.networks)
}

/// Notes a new state where it differs from the old.
fn note<K: Ord + Clone, V: PartialEq + Clone>(out: &mut BTreeMap<K, Option<V>>, old: &SharedMap<K, V>, key: &K, new: Option<V>) {
    if old.get(key) != new.as_ref() {
        out.insert(key.clone(), new);
    }
}

fn ingress_ports(ports: &[Port]) -> BTreeMap<PortKey, u16> {
    let ingress = ports.iter().filter(|p| p.publish_mode == PublishMode::Ingress);
    ingress.filter_map(|p| Some(((p.protocol, p.published_port.filter(|n| *n != 0)?), p.target_port))).collect()
}

fn host_targets(ports: &[Port]) -> BTreeSet<u16> {
    ports.iter().filter(|p| p.publish_mode == PublishMode::Host && p.protocol == Protocol::Tcp).map(|p| p.target_port).collect()
}

/// Nobody may claim an address that is not the network's own (the lesson of CVE-2020-8554).
pub(crate) fn owns(network: &Network, address: IpAddr) -> bool {
    network.subnets.is_empty() || network.subnets.iter().any(|s| s.subnet.contains(&address))
}

fn disclaim<K: Hash + Eq, V: Ord>(claims: &mut HashMap<K, SortedList<V>>, key: &K, claimant: &V) {
    if claims.get_mut(key).is_some_and(|claimants| !claimants.remove(claimant)) {
        claims.remove(key);
    }
}

/// A set of few: a tree's node has room for eleven, where a VIP has one claimant.
#[derive(Clone, Debug)]
struct SortedList<T>(Vec<T>);

impl<T> Default for SortedList<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> SortedList<T> {
    fn insert(&mut self, value: T) {
        if let Err(at) = self.0.binary_search(&value) {
            if self.0.len() < 16 {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, value);
        }
    }

    /// Says whether any is left.
    fn remove(&mut self, value: &T) -> bool {
        if let Ok(at) = self.0.binary_search(value) {
            self.0.remove(at);
        }
        !self.0.is_empty()
    }
}

/// Says whether this changed anything.
fn note_problems(all: &mut BTreeMap<Subject, Vec<Problem>>, subject: Subject, problems: Vec<Problem>) -> bool {
    if problems.is_empty() {
        return all.remove(&subject).is_some();
    }
    if all.get(&subject) == Some(&problems) {
        return false;
    }
    all.insert(subject, problems);
    true
}
