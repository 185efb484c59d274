//! What a node must do, as data.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use swarmesh_model::{HostLayout, NetworkId, Problem, Protocol, ServiceId, SharedMap, TaskId};

use crate::{NameDelta, NamePlan, Policy, RouteDelta, RoutePlan};

/// Everything that one node must have in its kernel for one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodePlan {
    /// The snapshot's version.
    pub version: u64,
    /// For each network that a local sandbox is in: the VIPs that are visible there.
    pub networks: BTreeMap<NetworkId, SharedMap<IpAddr, Arc<VirtualService>>>,
    /// The namespaces of this node's tasks and of its containers on swarm networks.
    pub sandboxes: SharedMap<TaskId, Arc<SandboxPlan>>,
    /// What this node answers on its own addresses, on behalf of the whole swarm.
    #[serde(serialize_with = "by_port_shared")]
    pub published: SharedMap<PortKey, Arc<PublishedPort>>,
    /// The network that carries published ports; `None` while the swarm has none.
    pub ingress: Option<Arc<Ingress>>,
    /// By the release of this node's engine; `None` when that is not known.
    pub host_layout: Option<HostLayout>,
    pub names: NamePlan,
    pub routes: RoutePlan,
    pub problems: BTreeSet<Problem>,
}

/// A protocol and a port number in host order.
pub type PortKey = (Protocol, u16);

/// One VIP and who answers it. Every port and protocol of the VIP is balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualService {
    pub service: ServiceId,
    pub name: String,
    pub policy: Arc<Policy>,
    /// Sorted by address.
    pub backends: Arc<[Backend]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Backend {
    pub address: IpAddr,
    pub task: TaskId,
    pub state: BackendState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Takes new connections.
    Ready,
    /// Keeps its established connections; takes new ones only when no other backend is left.
    Draining,
}

impl VirtualService {
    /// Where new connections go: the ready backends or, when there is none, the draining ones, which still serve.
    pub fn targets(&self) -> impl Iterator<Item = IpAddr> {
        self.serving().map(|b| b.address)
    }

    /// The backends behind [`Self::targets`].
    pub fn serving(&self) -> impl Iterator<Item = &Backend> {
        serving(&self.backends)
    }
}

fn serving(backends: &[Backend]) -> impl Iterator<Item = &Backend> {
    let wanted = if backends.iter().any(|b| b.state == BackendState::Ready) { BackendState::Ready } else { BackendState::Draining };
    backends.iter().filter(move |b| b.state == wanted)
}

/// A port that every node answers on its own addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedPort {
    pub service: ServiceId,
    pub name: String,
    pub target_port: u16,
    pub policy: Arc<Policy>,
    /// The node drains: new connections are refused, established ones go on.
    pub refuse: bool,
    /// Addresses in the ingress network, sorted; with `source=local`, of this node's tasks only.
    pub backends: Vec<Backend>,
}

impl PublishedPort {
    /// As [`VirtualService::targets`]; nothing while the node drains.
    pub fn targets(&self) -> impl Iterator<Item = IpAddr> {
        self.serving().map(|b| b.address)
    }

    /// The backends behind [`Self::targets`].
    pub fn serving(&self) -> impl Iterator<Item = &Backend> {
        serving(if self.refuse { &[] } else { &self.backends })
    }

    /// How many tasks take new connections.
    pub fn usable(&self) -> usize {
        self.targets().count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ingress {
    pub network: NetworkId,
    pub subnets: Vec<IpNet>,
    /// Bytes of an IP packet.
    pub mtu: u32,
}

/// One task's (or plain container's) namespace on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SandboxPlan {
    pub task: TaskId,
    pub name: String,
    /// File name below `--netns-dir`.
    pub sandbox: String,
    /// Networks whose VIPs are translated here.
    pub networks: BTreeSet<NetworkId>,
    pub ingress: Option<TaskIngress>,
}

/// How published ports arrive at a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskIngress {
    /// The task's own addresses in the ingress network.
    pub addresses: Vec<IpAddr>,
    /// Published port to the port that the task listens on.
    #[serde(serialize_with = "by_port")]
    pub published: BTreeMap<PortKey, u16>,
    /// TCP ports of the task that host mode leads to: Docker sends those to the task's address on the node's bridge.
    pub host: BTreeSet<u16>,
}

/// By VIP, the new state of each that changed; `None` for those that went.
pub type VipChanges = BTreeMap<IpAddr, Option<Arc<VirtualService>>>;

/// What changed between two plans of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlanDelta {
    pub version: u64,
    /// Networks whose VIPs changed. One that a first local sandbox joined is here with all of its VIPs.
    pub vips: BTreeMap<NetworkId, VipChanges>,
    /// Networks that no local sandbox is in any more.
    pub left: BTreeSet<NetworkId>,
    pub sandboxes: BTreeMap<TaskId, Option<Arc<SandboxPlan>>>,
    #[serde(serialize_with = "by_port")]
    pub published: BTreeMap<PortKey, Option<Arc<PublishedPort>>>,
    pub ingress: Option<Option<Arc<Ingress>>>,
    pub host_layout: Option<Option<HostLayout>>,
    pub names: NameDelta,
    pub routes: RouteDelta,
    pub problems: Option<BTreeSet<Problem>>,
}

impl PlanDelta {
    /// True when nothing but perhaps the version, names, routes and problems changed: nothing for the kernel's tables.
    pub fn is_empty(&self) -> bool {
        self.vips.is_empty()
            && self.left.is_empty()
            && self.sandboxes.is_empty()
            && self.published.is_empty()
            && self.ingress.is_none()
            && self.host_layout.is_none()
    }

    /// What turns `old` into `new`. O(both plans): for comparing plans that were made apart.
    pub fn between(old: &NodePlan, new: &NodePlan) -> Self {
        let mut delta = Self { version: new.version, ..Self::default() };
        let none = SharedMap::new();
        for (network, vips) in &new.networks {
            let changes = old.networks.get(network).unwrap_or(&none).changes_to(vips);
            if !changes.is_empty() || !old.networks.contains_key(network) {
                delta.vips.insert(network.clone(), changes);
            }
        }
        delta.left = old.networks.keys().filter(|n| !new.networks.contains_key(*n)).cloned().collect();
        delta.sandboxes = old.sandboxes.changes_to(&new.sandboxes);
        delta.published = old.published.changes_to(&new.published);
        delta.names = NameDelta {
            networks: old.names.networks.changes_to(&new.names.networks),
            services: old.names.services.changes_to(&new.names.services),
            tasks: old.names.tasks.changes_to(&new.names.tasks),
            askers: old.names.askers.changes_to(&new.names.askers),
        };
        delta.routes = RouteDelta::between(&old.routes, &new.routes);
        delta.ingress = (old.ingress != new.ingress).then(|| new.ingress.clone());
        delta.host_layout = (old.host_layout != new.host_layout).then_some(new.host_layout);
        delta.problems = (old.problems != new.problems).then(|| new.problems.clone());
        delta
    }
}

impl NodePlan {
    pub fn apply(&mut self, delta: &PlanDelta) {
        self.apply_tables(delta);
        self.names.networks.merge(&delta.names.networks);
        self.names.services.merge(&delta.names.services);
        self.names.tasks.merge(&delta.names.tasks);
        self.names.askers.merge(&delta.names.askers);
        self.routes.apply(&delta.routes);
    }

    /// All but names and routes, for who programs the kernel's tables.
    pub fn apply_tables(&mut self, delta: &PlanDelta) {
        self.version = delta.version;
        for network in &delta.left {
            self.networks.remove(network);
        }
        for (network, changes) in &delta.vips {
            self.networks.entry(network.clone()).or_default().merge(changes);
        }
        self.sandboxes.merge(&delta.sandboxes);
        self.published.merge(&delta.published);
        if let Some(ingress) = &delta.ingress {
            self.ingress.clone_from(ingress);
        }
        if let Some(layout) = delta.host_layout {
            self.host_layout = layout;
        }
        if let Some(problems) = &delta.problems {
            self.problems.clone_from(problems);
        }
    }
}

/// JSON keys are strings: `tcp/8080`.
fn by_port<V: Serialize, S: Serializer>(map: &BTreeMap<PortKey, V>, serializer: S) -> Result<S::Ok, S::Error> {
    collect_by_port(map.iter(), serializer)
}

fn by_port_shared<V: Clone + Serialize, S: Serializer>(map: &SharedMap<PortKey, V>, serializer: S) -> Result<S::Ok, S::Error> {
    collect_by_port(map.iter(), serializer)
}

fn collect_by_port<'a, V: Serialize + 'a, S: Serializer>(
    entries: impl Iterator<Item = (&'a PortKey, &'a V)>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.map(|((protocol, port), value)| (format!("{protocol}/{port}"), value)))
}
