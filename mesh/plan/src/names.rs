//! Names: what each service and task is called, and who may ask.
//!
//! Names are planned by owner, not by name: a change of one task gives one entry of a delta, and whoever serves names
//! puts several owners' answers to one name together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;
use swarmesh_model::{EndpointMode, Network, NetworkId, Protocol, Service, ServiceId, Snapshot, Task, TaskAddress, TaskId, TaskState};

use crate::{Backend, BackendState, planner::owns};

/// The names of the whole swarm, and this node's askers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamePlan {
    pub networks: BTreeMap<NetworkId, Arc<NamedNetwork>>,
    pub services: BTreeMap<ServiceId, Arc<ServiceNames>>,
    pub tasks: BTreeMap<TaskId, Arc<NamedTask>>,
    pub askers: BTreeMap<TaskId, Arc<AskerPlan>>,
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
    pub name: String,
    pub networks: BTreeMap<NetworkId, ServiceZone>,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceZone {
    /// Its name and aliases, in lower case.
    pub names: BTreeSet<String>,
    /// VIPs, while a task serves; empty in `dnsrr` mode, where the tasks' own addresses are the answer.
    pub vips: Vec<IpAddr>,
    pub is_dnsrr: bool,
    /// Every task that takes connections, by address.
    pub tasks: Vec<(IpAddr, Arc<str>)>,
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
    /// Addresses that are not believed, since they lie outside of their network.
    pub odd: Box<[IpAddr]>,
}

impl NamedTask {
    /// What it is called in all of its networks, in lower case. Its addresses are translated back to the first.
    ///
    /// The order is Docker's (`buildEndpointDNSNames`), but for the aliases, which are each network's own.
    pub fn names(&self) -> Vec<String> {
        let container = self.task.container.as_deref().map(|id| id.get(..12).unwrap_or(id));
        let all = [Some(self.task.name.as_str()), container, self.task.hostname.as_deref()];
        let mut names: Vec<String> = Vec::with_capacity(all.len());
        for name in all.into_iter().flatten().filter(|n| !n.is_empty()).map(str::to_ascii_lowercase) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Where its names lead in `network`.
    pub fn addresses_in(&self, network: &NetworkId) -> impl Iterator<Item = IpAddr> {
        self.task.address_in(network).filter(|a| self.serves && !self.odd.contains(a))
    }
}

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
    pub tasks: BTreeMap<TaskId, Option<Arc<NamedTask>>>,
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

/// `backends_in` gives a service's tasks in a network, as the data plane has them.
pub(crate) fn service_names(service: &Service, snapshot: &Snapshot, backends_in: impl Fn(&NetworkId) -> Vec<Backend>) -> ServiceNames {
    let mut networks: BTreeMap<NetworkId, ServiceZone> = BTreeMap::new();
    let joined = service.networks.iter().map(|n| (&n.network, n.aliases.as_slice()));
    // A service that was given a VIP in a network is in it, whatever its specification says by now.
    let given = service.vips.iter().map(|v| (&v.network, &[][..]));
    for (id, aliases) in joined.chain(given) {
        let Some(network) = snapshot.networks.get(id).filter(|n| !n.ingress) else { continue };
        let zone = networks.entry(id.clone()).or_insert_with(|| {
            let backends = backends_in(id);
            let serving = backends.iter().filter(|b| b.state == BackendState::Ready);
            let name =
                |task: &TaskId| snapshot.tasks.get(task).map_or_else(|| task.as_str().into(), |t| t.name.to_ascii_lowercase().into());
            let is_dnsrr = service.endpoint_mode == EndpointMode::Dnsrr;
            // Also of a service that somebody else balances. While old tasks still serve and no new one does, it leads to them.
            let has_vips = !backends.is_empty() && !is_dnsrr;
            let vips = service.vips.iter().filter(|v| has_vips && v.network == *id && owns(network, v.address)).map(|v| v.address);
            ServiceZone {
                names: BTreeSet::from([service.name.to_ascii_lowercase()]),
                vips: vips.collect(),
                is_dnsrr,
                tasks: serving.map(|b| (b.address, name(&b.task))).collect(),
            }
        });
        zone.names.extend(aliases.iter().map(|a| a.to_ascii_lowercase()));
    }
    let ports = service.ports.iter().map(|p| NamedPort {
        name: p.name.as_deref().unwrap_or_default().to_ascii_lowercase(),
        protocol: p.protocol,
        port: p.target_port,
    });
    ServiceNames { name: service.name.to_ascii_lowercase(), networks, ports: ports.collect() }
}

/// `None` for a task that nobody may call: one that is over, or not on any network yet.
pub(crate) fn named_task(task: &Arc<Task>, snapshot: &Snapshot, node_is_down: bool) -> Option<NamedTask> {
    let has_names = |a: &TaskAddress| snapshot.networks.get(&a.network).is_some_and(|n| !n.ingress);
    if task.state > TaskState::Running || !task.addresses.iter().any(has_names) {
        return None;
    }
    let is_odd = |a: &&TaskAddress| snapshot.networks.get(&a.network).is_some_and(|n| !owns(n, a.address));
    let odd = task.addresses.iter().filter(is_odd).map(|a| a.address).collect();
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
        name: task.name.clone(),
        sandbox: task.sandbox.clone()?,
        networks: networks.into_iter().map(|(_, membership)| membership).collect(),
        servers: dns.servers,
        keeps_single_labels: dns.ndots,
        leads_out,
    })
}
