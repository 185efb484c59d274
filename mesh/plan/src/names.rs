//! Names: what each service and task is called, and who may ask.
//!
//! Names are planned by owner, not by name: a change of one task gives one entry of a delta, and whoever serves names
//! puts several owners' answers to one name together.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde::Serialize;
use swarmesh_model::{
    EndpointMode, Network, NetworkId, Protocol, Service, ServiceId, SharedMap, Snapshot, Task, TaskAddress, TaskId, TaskState,
};

use crate::{Backend, BackendState, planner::owns};

/// The names of the whole swarm, and this node's askers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamePlan {
    pub networks: SharedMap<NetworkId, Arc<NamedNetwork>>,
    pub services: SharedMap<ServiceId, Arc<ServiceNames>>,
    pub tasks: SharedMap<TaskId, NamedTask>,
    pub askers: SharedMap<TaskId, Arc<AskerPlan>>,
}

impl NamePlan {
    /// The change that leads here from no names at all.
    pub fn as_delta(&self) -> NameDelta {
        let none = Self::default();
        NameDelta {
            networks: none.networks.changes_to(&self.networks),
            services: none.services.changes_to(&self.services),
            tasks: none.tasks.changes_to(&self.tasks),
            askers: none.askers.changes_to(&self.askers),
        }
    }
}

/// A network that has names: any but the ingress network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedNetwork {
    /// What may follow a name, in its own case.
    pub name: String,
}

/// What a service is called, and what its names mean, in each of its networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceNames {
    /// In lower case; what its VIPs are translated back to.
    pub name: Arc<str>,
    /// One per network, sorted by it.
    pub zones: Box<[ServiceZone]>,
    pub ports: Box<[NamedPort]>,
}

impl ServiceNames {
    pub fn in_network(&self, network: &NetworkId) -> Option<&ServiceZone> {
        let at = self.zones.binary_search_by(|z| z.network.cmp(network)).ok()?;
        self.zones.get(at)
    }

    /// Its name and its aliases in `zone`.
    pub fn names_in<'a>(&'a self, zone: &'a ServiceZone) -> impl Iterator<Item = &'a Arc<str>> {
        std::iter::once(&self.name).chain(&zone.aliases)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceZone {
    pub network: NetworkId,
    /// What it is called beside its name: in lower case, sorted, each once.
    pub aliases: Box<[Arc<str>]>,
    /// VIPs, while a task serves; empty in `dnsrr` mode, where the tasks' own addresses are the answer.
    pub vips: Box<[IpAddr]>,
    pub is_dnsrr: bool,
    /// Its tasks, the very lists that its VIPs lead to: by IPv4, and by IPv6.
    pub backends: [Arc<[Backend]>; 2],
}

impl ServiceZone {
    /// Every task that takes connections, by address.
    pub fn serving(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().flat_map(|family| family.iter()).filter(|b| b.state == BackendState::Ready)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    /// Where the tasks listen.
    pub port: u16,
}

/// One task or container with its names, which follow from what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedTask {
    pub task: Arc<Task>,
    /// Takes connections. While it does not, its names are taken and lead nowhere.
    pub serves: bool,
    /// Addresses that are not believed, since they lie outside of their network. Nearly always none.
    pub odd: Option<Box<Odd>>,
}

impl NamedTask {
    /// What it is called in all of its networks, in lower case. Its addresses are translated back to the first.
    ///
    /// The order is Docker's (`buildEndpointDNSNames`), but for the aliases, which are each network's own.
    pub fn names(&self) -> Vec<Arc<str>> {
        let container = self.task.container.as_deref().map(|id| id.get(..12).unwrap_or(id));
        let rest = [container, self.task.hostname.as_deref()].into_iter().flatten().map(lower);
        let mut names: Vec<Arc<str>> = Vec::with_capacity(3);
        for name in std::iter::once(lower_shared(&self.task.name)).chain(rest).filter(|n| !n.is_empty()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Where its names lead in `network`.
    pub fn addresses_in(&self, network: &NetworkId) -> impl Iterator<Item = IpAddr> {
        self.task.address_in(network).filter(|a| self.serves && !self.odd.as_ref().is_some_and(|odd| odd.0.contains(a)))
    }
}

/// Addresses outside of their network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Odd(Box<[IpAddr]>);

/// A container of this node, as one that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AskerPlan {
    pub name: String,
    /// File name below `--netns-dir`.
    pub sandbox: String,
    /// In the order in which they are searched.
    pub networks: Vec<AskerNetwork>,
    /// Its creator's servers, asked from its own namespace instead of the host's ones from the host's.
    pub servers: Vec<IpAddr>,
    /// Names without a dot are kept from upstream servers.
    pub keeps_single_labels: bool,
    /// Some network leads out. Without one, the host's servers are not asked (CVE-2024-29018).
    pub leads_out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AskerNetwork {
    pub network: NetworkId,
    /// Alias to name, both in lower case.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
}

/// What changed between two name plans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NameDelta {
    pub networks: BTreeMap<NetworkId, Option<Arc<NamedNetwork>>>,
    pub services: BTreeMap<ServiceId, Option<Arc<ServiceNames>>>,
    pub tasks: BTreeMap<TaskId, Option<NamedTask>>,
    pub askers: BTreeMap<TaskId, Option<Arc<AskerPlan>>>,
}

impl NameDelta {
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.services.is_empty() && self.tasks.is_empty() && self.askers.is_empty()
    }
}

pub(crate) fn named_network(network: &Network) -> Option<NamedNetwork> {
    (!network.ingress).then(|| NamedNetwork { name: network.name.clone() })
}

/// `backends_in` gives a service's tasks in a network by address family, as the data plane has them.
pub(crate) fn service_names(
    service: &Service,
    snapshot: &Snapshot,
    backends_in: impl Fn(&NetworkId) -> [Arc<[Backend]>; 2],
) -> ServiceNames {
    let own: Arc<str> = lower(&service.name);
    let joined = service.networks.iter().map(|n| (&n.network, n.aliases.as_slice()));
    // A service that was given a VIP in a network is in it, whatever its specification says by now.
    let given = service.vips.iter().map(|v| (&v.network, &[][..]));
    let mut aliases_in: BTreeMap<&NetworkId, Vec<Arc<str>>> = BTreeMap::new();
    for (id, aliases) in joined.chain(given) {
        aliases_in.entry(id).or_default().extend(aliases.iter().map(|a| lower(a)).filter(|a| *a != own));
    }
    let zones = aliases_in.into_iter().filter_map(|(id, mut aliases)| {
        let network = snapshot.networks.get(id).filter(|n| !n.ingress)?;
        aliases.sort();
        aliases.dedup();
        let backends = backends_in(id);
        let is_dnsrr = service.endpoint_mode == EndpointMode::Dnsrr;
        // Also of a service that somebody else balances. While old tasks still serve and no new one does, it leads to them.
        let has_vips = backends.iter().any(|family| !family.is_empty()) && !is_dnsrr;
        let vips = service.vips.iter().filter(|v| has_vips && v.network == *id && owns(network, v.address)).map(|v| v.address);
        Some(ServiceZone { network: id.clone(), aliases: aliases.into(), vips: vips.collect(), is_dnsrr, backends })
    });
    let ports = service.ports.iter().map(|p| NamedPort {
        name: p.name.as_deref().unwrap_or_default().to_ascii_lowercase(),
        protocol: p.protocol,
        port: p.target_port,
    });
    ServiceNames { zones: zones.collect(), ports: ports.collect(), name: own }
}

fn lower(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

/// The same text where it is in lower case already, as Docker's names of tasks nearly always are.
fn lower_shared(name: &Arc<str>) -> Arc<str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) { lower(name) } else { Arc::clone(name) }
}

/// `None` for a task that nobody may call: one that is over, or not on any network yet.
pub(crate) fn named_task(task: &Arc<Task>, snapshot: &Snapshot, node_is_down: bool) -> Option<NamedTask> {
    let has_names = |a: &TaskAddress| snapshot.networks.get(&a.network).is_some_and(|n| !n.ingress);
    if task.state > TaskState::Running || !task.addresses.iter().any(has_names) {
        return None;
    }
    let is_odd = |a: &&TaskAddress| snapshot.networks.get(&a.network).is_some_and(|n| !owns(n, a.address));
    let odd: Box<[IpAddr]> = task.addresses.iter().filter(is_odd).map(|a| a.address).collect();
    let odd = (!odd.is_empty()).then(|| Box::new(Odd(odd)));
    Some(NamedTask { task: Arc::clone(task), serves: task.is_usable() && !node_is_down, odd })
}

/// `None` for a container that asks nobody of ours.
pub(crate) fn asker(task: &Task, snapshot: &Snapshot) -> Option<AskerPlan> {
    let dns = task.dns.clone().unwrap_or_default();
    if task.state > TaskState::Running || dns.disabled {
        return None;
    }
    let mut networks: Vec<(&Network, AskerNetwork)> = Vec::new();
    let mut leads_out = false;
    for address in &task.addresses {
        let Some(network) = snapshot.networks.get(&address.network) else { continue };
        leads_out |= !network.internal && !network.ingress;
        if network.ingress {
            continue;
        }
        let links = address.links.iter().map(|(alias, name)| (alias.to_ascii_lowercase(), name.to_ascii_lowercase()));
        match networks.iter_mut().find(|(known, _)| known.id == network.id) {
            Some((_, membership)) => membership.links.extend(links),
            None => networks.push((network, AskerNetwork { network: network.id.clone(), links: links.collect() })),
        }
    }
    if networks.is_empty() {
        return None;
    }
    // Swarm networks before local ones (`ByNetworkType` in libnetwork), and those that lead out before others, as in its
    // order of endpoints; then by name.
    networks.sort_by(|(a, _), (b, _)| (a.local, a.internal, &a.name, &a.id).cmp(&(b.local, b.internal, &b.name, &b.id)));
    Some(AskerPlan {
        name: task.name.to_string(),
        sandbox: task.sandbox.as_deref()?.to_owned(),
        networks: networks.into_iter().map(|(_, membership)| membership).collect(),
        servers: dns.servers,
        keeps_single_labels: dns.ndots,
        leads_out,
    })
}
