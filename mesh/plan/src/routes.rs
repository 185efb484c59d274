//! Routes: what each service's and container's labels ask for, and the tasks that these routes lead to.
//!
//! As names, routes are planned by owner: a change of one task gives one entry of a delta, and whoever serves routes puts
//! all owners' together. Labels are read only when something changed that they are read with.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Serialize, Serializer};
use swarmesh_model::{ContainerRouting, Network, NetworkId, ServiceId, SharedMap, Snapshot, Task, TaskAddress, TaskId, TaskState};
use swarmesh_router::{
    Route, RouteProblem,
    dialect::{self, Settings, Workload, WorkloadNetwork},
    model::{Origin, Owner, OwnerKind, Target, Tasks},
};

use crate::{Backend, BackendState, planner::owns};

/// Where Docker keeps the namespace by which published ports arrive, below `--netns-dir`.
const INGRESS_SANDBOX: &str = "ingress_sbox";

/// The routes of the whole swarm, and how this node reaches their backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoutePlan {
    /// Everybody whose labels ask for routes, or try to.
    pub owners: SharedMap<OwnerKey, Arc<OwnerRoutes>>,
    /// The services that some route leads to.
    pub services: SharedMap<ServiceId, Arc<RoutedService>>,
    /// The containers that some route leads to.
    pub containers: SharedMap<TaskId, Arc<RoutedContainer>>,
    /// For each network that a route leads into: the namespace of this node, a file name below `--netns-dir`, from which it is
    /// reached. A network that this node has nothing in is not here.
    pub footholds: SharedMap<NetworkId, String>,
}

/// Whose labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKey {
    Service(ServiceId),
    /// A plain container of this node.
    Container(TaskId),
    /// A name that this node was told of, and that is no service's.
    Added(String),
}

/// JSON keys are strings: `service/x2m…`.
impl Serialize for OwnerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Service(id) => serializer.collect_str(&format_args!("service/{id}")),
            Self::Container(id) => serializer.collect_str(&format_args!("container/{id}")),
            Self::Added(name) => serializer.collect_str(&format_args!("added/{name}")),
        }
    }
}

/// What one owner's labels came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnerRoutes {
    pub routes: Vec<Arc<Route>>,
    /// What is wrong with the labels themselves. What other owners claim is found when all routes are put together.
    pub problems: Vec<RouteProblem>,
}

/// A service as routes reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoutedService {
    /// In the service's own order.
    pub networks: Box<[RoutedNetwork]>,
    /// Of a service that is published. It has no VIP there that a router could use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RoutedNetwork>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoutedNetwork {
    pub network: NetworkId,
    /// Empty in `dnsrr` mode.
    pub vips: Box<[IpAddr]>,
    /// Its tasks, the very lists that names and VIPs lead to: by IPv4, and by IPv6.
    pub backends: [Arc<[Backend]>; 2],
}

/// A plain container of this node as routes reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoutedContainer {
    /// Takes connections.
    pub serves: bool,
    pub addresses: Vec<(NetworkId, IpAddr)>,
    /// Where its published ports are reached from this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<IpAddr>,
}

/// What changed between two route plans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteDelta {
    pub owners: BTreeMap<OwnerKey, Option<Arc<OwnerRoutes>>>,
    pub services: BTreeMap<ServiceId, Option<Arc<RoutedService>>>,
    pub containers: BTreeMap<TaskId, Option<Arc<RoutedContainer>>>,
    pub footholds: BTreeMap<NetworkId, Option<String>>,
}

impl RouteDelta {
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.services.is_empty() && self.containers.is_empty() && self.footholds.is_empty()
    }

    /// What turns `old` into `new`.
    pub fn between(old: &RoutePlan, new: &RoutePlan) -> Self {
        Self {
            owners: old.owners.changes_to(&new.owners),
            services: old.services.changes_to(&new.services),
            containers: old.containers.changes_to(&new.containers),
            footholds: old.footholds.changes_to(&new.footholds),
        }
    }
}

impl RoutePlan {
    pub fn apply(&mut self, delta: &RouteDelta) {
        self.owners.merge(&delta.owners);
        self.services.merge(&delta.services);
        self.containers.merge(&delta.containers);
        self.footholds.merge(&delta.footholds);
    }

    /// The change that leads here from no routes at all.
    pub fn as_delta(&self) -> RouteDelta {
        RouteDelta::between(&Self::default(), self)
    }

    /// Everybody's routes, as a table takes them.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.owners.values().flat_map(|owner| &owner.routes)
    }

    /// What is wrong with labels, not counting what others claim.
    pub fn problems(&self) -> impl Iterator<Item = &RouteProblem> {
        self.owners.values().flat_map(|owner| &owner.problems)
    }

    /// The network in which a target is reached; `None` for one that is reached from the node itself, or not at all.
    pub fn network_of<'a>(&'a self, target: &'a Target) -> Option<&'a NetworkId> {
        match target {
            Target::Service { network: Some(network), .. } | Target::Container { network, .. } => Some(network),
            Target::Service { id, network: None } => Some(&self.services.get(id.as_str())?.in_network(None)?.network),
            // Found, and connected to, from where the agent is.
            Target::Host { .. } | Target::Published { .. } => None,
        }
    }

    /// The networks that a route leads into, each once.
    pub fn networks_of<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = &'a NetworkId> + use<'a> {
        let members = route.backends().into_iter().flat_map(|set| &set.members);
        members.filter_map(|member| self.network_of(&member.target)).collect::<BTreeSet<_>>().into_iter()
    }

    /// Routes into networks that this node has no namespace in, with these networks.
    pub fn without_foothold(&self) -> impl Iterator<Item = (&Origin, &NetworkId)> {
        let networks = self.routes().flat_map(|route| self.networks_of(route).map(|network| (&route.origin, network)));
        networks.filter(|(_, network)| !self.footholds.contains_key(*network))
    }
}

impl RoutedService {
    /// In this network; without one, in its first, or in the ingress network if it is in no other.
    pub fn in_network(&self, network: Option<&NetworkId>) -> Option<&RoutedNetwork> {
        match network {
            Some(network) => self.networks.iter().chain(&self.ingress).find(|n| n.network == *network),
            None => self.networks.first().or(self.ingress.as_ref()),
        }
    }

    /// Where it can be reached, in order.
    fn network_ids(&self) -> impl Iterator<Item = &NetworkId> {
        self.networks.iter().chain(&self.ingress).map(|n| &n.network)
    }
}

impl RoutedNetwork {
    /// Its tasks that take new connections, each once: those that are ready or, while none is, those that only finish what
    /// they have.
    pub fn serving(&self) -> Vec<&Backend> {
        let all = || self.backends.iter().flat_map(|family| family.iter());
        let wanted = if all().any(|b| b.state == BackendState::Ready) { BackendState::Ready } else { BackendState::Draining };
        let serving = all().filter(|b| b.state == wanted);
        if self.backends.iter().any(|family| family.is_empty()) {
            return serving.collect();
        }
        // By IPv4 where it has both.
        let mut seen = HashSet::new();
        serving.filter(|b| seen.insert(&b.task)).collect()
    }
}

impl Tasks for RoutePlan {
    fn vip(&self, service: &str, network: Option<&NetworkId>) -> Option<IpAddr> {
        self.services.get(service)?.in_network(network)?.vips.first().copied()
    }

    fn usable(&self, owner: &str, network: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        if let Some(service) = self.services.get(owner) {
            let tasks = service.in_network(network).map(RoutedNetwork::serving).unwrap_or_default();
            return tasks.into_iter().map(|b| (b.task.clone(), b.address)).collect();
        }
        let Some((id, container)) = self.containers.get_key_value(owner).filter(|(_, c)| c.serves) else { return Vec::new() };
        let mut addresses = container.addresses.iter().filter(|(id, _)| network.is_none_or(|network| network == id));
        addresses.next().map(|(_, address)| (id.clone(), *address)).into_iter().collect()
    }

    fn published(&self, container: &str) -> Option<IpAddr> {
        self.containers.get(container).filter(|c| c.serves)?.published
    }

    fn network(&self, owner: &str, asked: Option<&NetworkId>) -> Option<NetworkId> {
        if let Some(service) = self.services.get(owner) {
            return service.in_network(asked).map(|n| n.network.clone());
        }
        let addresses = &self.containers.get(owner)?.addresses;
        addresses.iter().map(|(network, _)| network).find(|n| asked.is_none_or(|asked| asked == *n)).cloned()
    }
}

/// Reads an owner's labels. Routes that came out as before are the same objects.
pub(crate) fn owner_routes(workload: &Workload<'_>, settings: &Settings, old: Option<&OwnerRoutes>) -> Option<OwnerRoutes> {
    let outcome = dialect::routes(workload, settings);
    if outcome.routes.is_empty() && outcome.problems.is_empty() {
        return None;
    }
    let known: HashMap<&Origin, &Arc<Route>> = old.into_iter().flat_map(|o| &o.routes).map(|r| (&r.origin, r)).collect();
    let shared = |route: Route| match known.get(&route.origin) {
        Some(same) if ***same == route => Arc::clone(same),
        _ => Arc::new(route),
    };
    Some(OwnerRoutes { routes: outcome.routes.into_iter().map(shared).collect(), problems: outcome.problems })
}

/// What a plain container says about requests.
pub(crate) fn asking(task: &Task) -> Option<&ContainerRouting> {
    task.routing.as_deref().filter(|_| task.service.is_none())
}

/// A plain container with the networks that the snapshot knows, each once.
pub(crate) fn container<'a>(task: &'a Task, snapshot: &'a Snapshot) -> Option<Workload<'a>> {
    let routing = asking(task)?;
    let mut networks: Vec<WorkloadNetwork<'a>> = Vec::new();
    for network in task.addresses.iter().filter_map(|a| snapshot.networks.get(&a.network)).filter(|n| !n.ingress) {
        if networks.iter().all(|n| *n.id != network.id) {
            networks.push(WorkloadNetwork { id: &network.id, name: &network.name, labels: &network.labels });
        }
    }
    let owner = Owner { id: task.id.as_str().to_owned(), name: task.name.to_string(), kind: OwnerKind::Container };
    Some(Workload { owner, labels: &routing.labels, ports: &routing.ports, networks })
}

pub(crate) fn routed_container(task: &Task, snapshot: &Snapshot) -> Option<RoutedContainer> {
    let known = |a: &&TaskAddress| snapshot.networks.get(&a.network).is_some_and(|n| owns(n, a.address));
    Some(RoutedContainer {
        serves: task.is_usable(),
        addresses: task.addresses.iter().filter(known).map(|a| (a.network.clone(), a.address)).collect(),
        published: asking(task)?.published,
    })
}

/// What of a network decides about the routes of services in it.
pub(crate) fn routed_by(network: &Network) -> (&str, bool, &BTreeMap<String, String>) {
    (&network.name, network.ingress, &network.labels)
}

/// Who is named by whom, and which networks must be reached from where.
#[derive(Debug, Default)]
pub(crate) struct RouteIndex {
    /// By service, the owners whose routes lead to it.
    named_by: HashMap<ServiceId, BTreeSet<OwnerKey>>,
    /// The networks that each owner's routes lead into.
    leads_into: HashMap<OwnerKey, BTreeSet<NetworkId>>,
    /// How many owners' routes lead into each network.
    wanted: HashMap<NetworkId, usize>,
    /// This node's namespaces in each network, those that are best to stand on first.
    standing: HashMap<NetworkId, BTreeSet<(Standing, TaskId)>>,
    /// By local task, what it gave to `standing`.
    stands: HashMap<TaskId, (Standing, BTreeSet<NetworkId>)>,
    chosen: HashMap<NetworkId, TaskId>,
}

/// How well a namespace serves as a foothold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Stays,
    /// It comes up, or it leaves.
    Passes,
}

impl RouteIndex {
    /// One that will choose as this one did, where it can.
    pub(crate) fn successor(&mut self) -> Self {
        Self { chosen: std::mem::take(&mut self.chosen), ..Self::default() }
    }

    pub(crate) fn is_named(&self, service: &ServiceId) -> bool {
        self.named_by.contains_key(service)
    }

    pub(crate) fn owners_naming(&self, service: &ServiceId) -> impl Iterator<Item = &OwnerKey> {
        self.named_by.get(service).into_iter().flatten()
    }

    /// Notes that an owner's routes changed. Returns the services that it names now or named before.
    pub(crate) fn rename(&mut self, owner: &OwnerKey, old: Option<&OwnerRoutes>, new: Option<&OwnerRoutes>) -> BTreeSet<ServiceId> {
        let (old, new) = (services_named(old), services_named(new));
        for id in old.difference(&new) {
            if let Some(owners) = self.named_by.get_mut(id) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.named_by.remove(id);
                }
            }
        }
        for id in new.difference(&old) {
            self.named_by.entry(id.clone()).or_default().insert(owner.clone());
        }
        old.into_iter().chain(new).collect()
    }

    /// Notes which networks an owner's routes lead into. Those that nobody wants any more, or somebody for the first time, are
    /// added to `touched`.
    pub(crate) fn lead(&mut self, owner: &OwnerKey, plan: &RoutePlan, touched: &mut BTreeSet<NetworkId>) {
        let routes = plan.owners.get(owner).map(|o| o.routes.as_slice()).unwrap_or_default();
        let new: BTreeSet<NetworkId> = routes.iter().flat_map(|route| plan.networks_of(route)).cloned().collect();
        let old = self.leads_into.remove(owner).unwrap_or_default();
        for network in new.difference(&old) {
            *self.wanted.entry(network.clone()).or_default() += 1;
            touched.insert(network.clone());
        }
        for network in old.difference(&new) {
            if let Some(count) = self.wanted.get_mut(network) {
                *count -= 1;
                if *count == 0 {
                    self.wanted.remove(network);
                }
            }
            touched.insert(network.clone());
        }
        if !new.is_empty() {
            self.leads_into.insert(owner.clone(), new);
        }
    }

    /// Notes where a local task's namespace is; `None` for a task that is over, or elsewhere.
    pub(crate) fn stand(&mut self, id: &TaskId, task: Option<&Task>, touched: &mut BTreeSet<NetworkId>) {
        let there = task.filter(|t| t.sandbox.is_some() && t.state <= TaskState::Running).map(|t| {
            let runs = t.state == TaskState::Running && t.desired_state == TaskState::Running;
            let networks: BTreeSet<NetworkId> = t.addresses.iter().map(|a| a.network.clone()).collect();
            (if runs { Standing::Stays } else { Standing::Passes }, networks)
        });
        if let Some((standing, networks)) = self.stands.remove(id) {
            for network in networks {
                if let Some(others) = self.standing.get_mut(&network) {
                    others.remove(&(standing, id.clone()));
                    if others.is_empty() {
                        self.standing.remove(&network);
                    }
                }
                touched.insert(network);
            }
        }
        if let Some((standing, networks)) = there {
            for network in &networks {
                self.standing.entry(network.clone()).or_default().insert((standing, id.clone()));
                touched.insert(network.clone());
            }
            self.stands.insert(id.clone(), (standing, networks));
        }
    }

    /// Every network that a route leads into.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &NetworkId> {
        self.wanted.keys()
    }

    /// The namespace to reach a network from. It stays the one that it was as long as none is better: connections that are
    /// made while a namespace goes would fail.
    pub(crate) fn foothold(
        &mut self,
        network: &NetworkId,
        ingress: Option<&NetworkId>,
        sandbox: impl Fn(&TaskId) -> Option<String>,
    ) -> Option<String> {
        if !self.wanted.contains_key(network) {
            self.chosen.remove(network);
            return None;
        }
        if ingress == Some(network) {
            self.chosen.remove(network);
            return Some(INGRESS_SANDBOX.to_owned());
        }
        let Some((best, first)) = self.standing.get(network).and_then(BTreeSet::first).cloned() else {
            self.chosen.remove(network);
            return None;
        };
        let kept = self.chosen.get(network).filter(|task| self.stands.get(*task).is_some_and(|(s, n)| *s == best && n.contains(network)));
        let task = kept.cloned().unwrap_or(first);
        let file = sandbox(&task);
        self.chosen.insert(network.clone(), task);
        file
    }
}

fn services_named(owner: Option<&OwnerRoutes>) -> BTreeSet<ServiceId> {
    let sets = owner.into_iter().flat_map(|o| &o.routes).filter_map(|route| route.backends());
    let targets = sets.flat_map(|set| &set.members).filter_map(|member| match &member.target {
        Target::Service { id, .. } => Some(ServiceId::from(id.as_str())),
        Target::Container { .. } | Target::Published { .. } | Target::Host { .. } => None,
    });
    targets.collect()
}

/// Whether a service is in other networks than before, as far as routes to it are concerned.
pub(crate) fn moved(old: Option<&RoutedService>, new: Option<&RoutedService>) -> bool {
    !old.into_iter().flat_map(RoutedService::network_ids).eq(new.into_iter().flat_map(RoutedService::network_ids))
}
