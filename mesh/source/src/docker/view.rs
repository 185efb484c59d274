//! What the engine has said so far, and the snapshot that follows from it.
//!
//! Lists of different kinds are read at different moments, so a task may name a service that is not listed yet, or no longer.
//! [`View::assemble`] makes snapshots whose objects agree with each other, whatever the order of arrival was.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hyper::body::Bytes;
use swarmesh_model::{
    ContainerDns, ContainerRouting, Network, NetworkId, Node, NodeId, Port, Problem, Protocol, PublishMode, Service, ServiceId,
    ServiceNetwork, SharedMap, Snapshot, Task, TaskAddress, TaskState,
};

use super::{
    http::ApiError,
    kind::Kind,
    listed::{ListedService, ListedTask},
    local::{self, LocalNetwork},
    name_resolution, wire,
};

const TASK_LABEL: &str = "com.docker.swarm.task.id";

#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) networks: Kind<Network>,
    /// Those of this node alone.
    pub(super) local_networks: Kind<LocalNetwork>,
    pub(super) tasks: Kind<ListedTask>,
    pub(super) nodes: Kind<Node>,
    services: Kind<ListedService>,
    /// Removed services whose tasks still run: Docker forgets a service at once, and its tasks after their stop grace period.
    leaving: BTreeMap<String, Arc<Service>>,
    containers: BTreeMap<String, Local>,
    /// This node's own id.
    pub(super) node: Option<NodeId>,
}

/// What is known of a container on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Local {
    /// The swarm task that it carries out.
    task: Option<String>,
    name: String,
    hostname: Option<String>,
    sandbox: Option<String>,
    running: bool,
    healthy: Option<bool>,
    addresses: Vec<TaskAddress>,
    dns: ContainerDns,
    routing: Option<ContainerRouting>,
}

impl View {
    pub(super) fn take_services(&mut self, path: &str, body: Bytes) -> Result<bool, ApiError> {
        let before = self.services.objects().clone();
        let changed = self.services.take(path, body)?;
        if changed {
            let now = self.services.objects();
            self.leaving.retain(|id, _| !now.contains_key(id));
            let removed = before.into_iter().filter(|(id, _)| !now.contains_key(id));
            self.leaving.extend(removed.map(|(id, listed)| (id, Arc::clone(&listed.service))));
        }
        Ok(changed)
    }

    /// True when some task belongs to a service that nobody has heard of: it is time to list services.
    pub(super) fn misses_a_service(&self) -> bool {
        let known = |id: &ServiceId| self.services.objects().contains_key(id.as_str()) || self.leaving.contains_key(id.as_str());
        // A task on its way out belongs to a service that was removed before this agent started.
        let wanted = |task: &Task| task.desired_state <= TaskState::Running;
        self.tasks.objects().values().map(|t| &t.task).any(|t| wanted(t) && t.service.as_ref().is_some_and(|s| !known(s)))
    }

    /// Containers from `/containers/json` that may matter, by id. Those that are gone are noted.
    pub(super) fn take_container_list(&mut self, path: &str, body: &[u8]) -> Result<BTreeSet<String>, ApiError> {
        let garbled = |error: serde_json::Error| ApiError::Garbled { path: path.to_owned(), message: error.to_string() };
        let list: Option<Vec<serde_json::Value>> = serde_json::from_slice(body).map_err(garbled)?;
        let mut listed = BTreeSet::new();
        for value in list.unwrap_or_default() {
            // One that is not understood is no reason to overlook the others.
            let Ok(line) = serde_json::from_value::<wire::ContainerLine>(value) else { continue };
            let known = |id: &str| self.networks.objects().contains_key(id) || self.local_networks.objects().contains_key(id);
            let on_network = || line.network_settings.networks.values().flatten().any(|e| known(&e.network_id));
            let asks = line.labels.contains_key(TASK_LABEL) || line.labels.contains_key(ContainerRouting::LABEL);
            if !line.id.is_empty() && (asks || on_network()) {
                listed.insert(line.id);
            }
        }
        let gone: Vec<String> = self.containers.keys().filter(|id| !listed.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| {
            self.container_gone(id);
        });
        Ok(listed)
    }

    /// The answer to `/containers/{id}/json`. True when something is different from before.
    pub(super) fn take_container(&mut self, path: &str, body: &[u8]) -> Result<bool, ApiError> {
        let garbled = |message: String| ApiError::Garbled { path: path.to_owned(), message };
        let container: wire::Container = serde_json::from_slice(body).map_err(|e| garbled(e.to_string()))?;
        if container.id.is_empty() {
            return Err(garbled("Id is missing".to_owned()));
        }
        let id = container.id.clone();
        let local = Local::from_wire(container);
        let changed = self.containers.get(&id) != Some(&local);
        self.containers.insert(id, local);
        Ok(changed)
    }

    /// The engine does not know this container any more, or does not list it as running.
    pub(super) fn container_gone(&mut self, id: &str) -> bool {
        match self.containers.get_mut(id) {
            // The swarm takes a moment to notice. Until then the task is still listed as running, and must not be used.
            Some(local) if local.task.as_ref().is_some_and(|task| self.tasks.objects().contains_key(task)) => {
                let changed = local.running;
                local.stop();
                changed
            }
            Some(_) => self.containers.remove(id).is_some(),
            None => false,
        }
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        [self.networks.problems(), self.local_networks.problems(), self.services.problems(), self.tasks.problems(), self.nodes.problems()]
            .concat()
    }

    /// The snapshot of what is known, with references to listed objects only.
    pub(super) fn assemble(&mut self, version: u64) -> Snapshot {
        let mut snapshot = Snapshot { version, ..Snapshot::default() };
        for network in self.networks.objects().values() {
            snapshot.networks.insert(network.id.clone(), Arc::clone(network));
        }
        for node in self.nodes.objects().values() {
            snapshot.nodes.insert(node.id.clone(), Arc::clone(node));
        }
        let names: HashMap<&str, &NetworkId> = snapshot.networks.values().map(|n| (n.name.as_str(), &n.id)).collect();
        let services: Vec<Arc<Service>> = self.services.objects().values().map(|s| connected(&s.service, &snapshot, &names)).collect();
        let leaving = self.leaving_services(&snapshot, &names);
        for service in services.into_iter().chain(leaving) {
            snapshot.services.insert(service.id.clone(), service);
        }
        for listed in self.tasks.objects().values() {
            listed.keep_aliases(&mut snapshot.services, &names);
        }
        // After the services, which cannot join or name one of these.
        let joined = self.containers.values().filter(|l| l.running).flat_map(|l| &l.addresses).map(|a| a.network.as_str()).collect();
        local::add(&mut snapshot, self.local_networks.objects().values(), &joined);
        self.add_tasks(&mut snapshot);
        snapshot
    }

    /// Removed services with tasks left, less what others have been given since.
    fn leaving_services(&mut self, snapshot: &Snapshot, names: &HashMap<&str, &NetworkId>) -> Vec<Arc<Service>> {
        if self.leaving.is_empty() {
            return Vec::new();
        }
        let tasked: HashSet<&str> = self.tasks.objects().values().filter_map(|t| t.task.service.as_ref()).map(ServiceId::as_str).collect();
        let live = self.services.objects().values().map(|listed| &listed.service);
        let taken: HashSet<&str> = live.clone().map(|s| s.name.as_str()).collect();
        let ports: HashSet<_> = live
            .clone()
            .flat_map(|s| &s.ports)
            .filter(|p| p.publish_mode == PublishMode::Ingress)
            .map(|p| (p.protocol, p.published_port))
            .collect();
        let vips: HashSet<_> = live.flat_map(|s| &s.vips).map(|v| (&v.network, v.address)).collect();
        self.leaving.retain(|id, service| tasked.contains(id.as_str()) && !taken.contains(service.name.as_str()));
        self.leaving
            .values()
            .map(|service| {
                let mut service = Service::clone(&connected(service, snapshot, names));
                service.ports.retain(|p| p.publish_mode == PublishMode::Host || !ports.contains(&(p.protocol, p.published_port)));
                service.vips.retain(|v| !vips.contains(&(&v.network, v.address)));
                Arc::new(service)
            })
            .collect()
    }

    fn add_tasks(&self, snapshot: &mut Snapshot) {
        let locals: HashMap<&str, &Local> = self.containers.values().filter_map(|l| Some((l.task.as_deref()?, l))).collect();
        for listed in self.tasks.objects().values() {
            let mut task = listed.task.clone();
            let Some(service) = task.service.as_ref().and_then(|id| snapshot.services.get(id)) else { continue };
            task.ports = self.services.objects().get(service.id.as_str()).and_then(|s| s.own_ports(listed)).map(Into::into);
            let place = match (task.slot, &task.node) {
                (Some(slot), _) => slot.to_string(),
                (None, Some(node)) => node.to_string(),
                (None, None) => "0".to_owned(),
            };
            task.name = format!("{}.{place}.{}", service.name, task.id).into();
            task.node = task.node.filter(|node| snapshot.nodes.contains_key(node));
            task.addresses.retain(|a| snapshot.networks.contains_key(&a.network));
            if let Some(local) = locals.get(task.id.as_str()) {
                task.sandbox = local.sandbox.as_deref().map(Into::into);
                task.healthy = if local.running { local.healthy } else { Some(false) };
                if let Some(hostname) = &local.hostname {
                    task.hostname = Some(hostname.as_str().into());
                }
                task.dns = Some(local.dns.clone().into());
                local.complete(&mut task, snapshot);
            }
            snapshot.insert_task(task);
        }
        let node = self.node.clone().filter(|node| snapshot.nodes.contains_key(node));
        for (id, local) in self.containers.iter().filter(|(_, l)| l.task.is_none() && l.running) {
            let addresses: Vec<_> = local.addresses.iter().filter(|a| snapshot.networks.contains_key(&a.network)).cloned().collect();
            // One that asks for requests may be on the engine's own bridge alone, and be reached by a port that it publishes.
            if addresses.is_empty() && local.routing.is_none() {
                continue;
            }
            snapshot.insert_task(Task {
                id: id.as_str().into(),
                service: None,
                name: local.name.as_str().into(),
                slot: None,
                node: node.clone(),
                desired_state: TaskState::Running,
                state: TaskState::Running,
                container: Some(id.as_str().into()),
                hostname: local.hostname.as_deref().map(Into::into),
                sandbox: local.sandbox.as_deref().map(Into::into),
                healthy: local.healthy,
                addresses,
                ports: None,
                dns: Some(local.dns.clone().into()),
                routing: local.routing.clone().map(Box::new),
            });
        }
    }
}

/// The service with references to listed networks only, and without the ingress network, which is nobody's to join.
fn connected(service: &Arc<Service>, snapshot: &Snapshot, names: &HashMap<&str, &NetworkId>) -> Arc<Service> {
    let joinable = |id: &NetworkId| snapshot.networks.get(id).is_some_and(|n| !n.ingress);
    if service.networks.iter().all(|n| joinable(&n.network)) && service.vips.iter().all(|v| snapshot.networks.contains_key(&v.network)) {
        return Arc::clone(service);
    }
    let mut service = Service::clone(service);
    service.networks = std::mem::take(&mut service.networks)
        .into_iter()
        .filter_map(|n| {
            // A spec may name a network by its name as well.
            let network = if snapshot.networks.contains_key(&n.network) { n.network } else { (*names.get(n.network.as_str())?).clone() };
            joinable(&network).then_some(ServiceNetwork { network, aliases: n.aliases })
        })
        .collect();
    service.vips.retain(|v| snapshot.networks.contains_key(&v.network));
    Arc::new(service)
}

impl Local {
    fn from_wire(container: wire::Container) -> Self {
        let dns = name_resolution::container_dns(&container);
        let name = container.name.trim_start_matches('/').to_owned();
        let short: String = container.id.chars().take(12).collect();
        let mut addresses = Vec::new();
        for endpoint in container.network_settings.networks.into_values().flatten() {
            // The container's name and short id follow from itself, whether the engine lists them or not (it does so differently by version).
            let known = |alias: &String| *alias != name && *alias != short && !alias.is_empty();
            let mut aliases: Vec<String> = Vec::new();
            for alias in endpoint.aliases.into_iter().chain(endpoint.dns_names).filter(known) {
                // In Docker's order: the given ones, then the host name.
                if !aliases.contains(&alias) {
                    aliases.push(alias);
                }
            }
            let links: SharedMap<_, _> = name_resolution::links(&endpoint.links).into_iter().collect();
            for text in [endpoint.ip_address, endpoint.global_ipv6_address] {
                if let Ok(address) = text.parse::<IpAddr>() {
                    let (aliases, links) = (aliases.clone(), links.clone());
                    addresses.push(TaskAddress { network: endpoint.network_id.as_str().into(), address, aliases, links });
                }
            }
        }
        let labels = container.config.labels;
        let task = labels.get(TASK_LABEL).cloned().flatten().filter(|t| !t.is_empty());
        let asks = task.is_none() && labels.contains_key(ContainerRouting::LABEL);
        let mut local = Self {
            routing: asks.then(|| routing(labels, &container.network_settings.ports)),
            task,
            name,
            hostname: Some(container.config.hostname).filter(|h| !h.is_empty()),
            sandbox: sandbox(&container.network_settings.sandbox_key),
            running: container.state.running,
            healthy: match container.state.health.status.as_str() {
                "healthy" => Some(true),
                "unhealthy" => Some(false),
                _ => None,
            },
            addresses,
            dns,
        };
        if !local.running {
            local.stop();
        }
        local
    }

    /// Adds what the swarm does not know of its own task: names that the container alone has, and the networks of this node
    /// that it was connected to beside the swarm's.
    fn complete(&self, task: &mut Task, snapshot: &Snapshot) {
        for own in self.addresses.iter().filter(|_| self.running) {
            match task.addresses.iter_mut().find(|a| a.network == own.network && a.address == own.address) {
                Some(known) => {
                    known.aliases.clone_from(&own.aliases);
                    known.links.clone_from(&own.links);
                }
                None if snapshot.networks.get(&own.network).is_some_and(|n| n.local) => task.addresses.push(own.clone()),
                None => {}
            }
        }
    }

    fn stop(&mut self) {
        self.running = false;
        self.sandbox = None;
    }
}

/// Of a plain container that asks for requests: all of its labels, and its published ports as this node reaches them.
fn routing(labels: BTreeMap<String, Option<String>>, published: &BTreeMap<String, Option<Vec<wire::PortBinding>>>) -> ContainerRouting {
    let mut reached: Vec<(IpAddr, Port)> = Vec::new();
    for (name, bindings) in published {
        let (target, protocol) = name.split_once('/').unwrap_or((name, "tcp"));
        let (Ok(target_port), "tcp") = (target.parse(), protocol) else { continue };
        for binding in bindings.iter().flatten() {
            let Some(number) = binding.host_port.parse().ok().filter(|n| *n > 0u16) else { continue };
            // What is published on all addresses is published on loopback, too.
            let address = match binding.host_ip.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                Ok(ip) if !ip.is_unspecified() => ip,
                _ => Ipv4Addr::LOCALHOST.into(),
            };
            let port =
                Port { name: None, protocol: Protocol::Tcp, target_port, published_port: Some(number), publish_mode: PublishMode::Host };
            reached.push((address, port));
        }
    }
    reached.sort();
    reached.dedup();
    let addresses = || reached.iter().map(|(address, _)| *address);
    // Ports of one address: it is told once for all of them.
    let address = addresses().find(|a| *a == Ipv4Addr::LOCALHOST).or_else(|| addresses().next());
    let ports = reached.into_iter().filter(|(a, _)| Some(*a) == address).map(|(_, port)| port).collect();
    let labels = labels.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect();
    ContainerRouting { labels, ports, published: address }
}

/// `/var/run/docker/netns/fc2fb6c63009` → `fc2fb6c63009`. The host's own namespace (`default`) is no sandbox.
fn sandbox(key: &str) -> Option<String> {
    let name = key.rsplit('/').next().unwrap_or_default();
    (!name.is_empty() && !name.starts_with('.') && name != "default").then(|| name.to_owned())
}
