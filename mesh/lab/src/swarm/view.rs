//! What can be seen of the swarm.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use swarmesh_model::{ContainerDns, Network, Node, NodeId, NodeState, Problem, Service, ServiceNetwork, Snapshot, Task, TaskId, TaskState};

use super::{
    InterfaceAddress, NodeEndpoint, NodeSpec, Swarm, UpdateState,
    state::{NetworkRecord, NodeRecord, ServiceRecord, TaskRecord},
    task::slot,
};
use crate::stack::{DnsSpec, Mode, ServiceSpec};

/// One line of `docker service ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub global: bool,
    /// Tasks that should run.
    pub wanted: u64,
    /// Tasks that take connections.
    pub running: u64,
    pub update: Option<UpdateState>,
}

impl Swarm {
    /// The swarm's state in the form that sources deliver. Its version has grown if anything has changed.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { version: self.version, ..Snapshot::default() };
        for (id, record) in &self.networks {
            snapshot.insert_network(Network {
                id: id.clone(),
                name: record.asked.name.clone(),
                driver: record.asked.driver.clone(),
                ingress: record.ingress,
                internal: record.asked.internal,
                attachable: record.asked.attachable,
                local: false,
                subnets: record.subnets(),
                mtu: Some(record.mtu()),
                labels: record.asked.labels.clone(),
            });
        }
        for (id, record) in &self.services {
            let aliases = self.aliases(record);
            let networks = record.networks.iter().zip(&record.spec.networks);
            snapshot.insert_service(Service {
                id: id.clone(),
                name: record.spec.name.clone(),
                labels: record.spec.labels.clone(),
                endpoint_mode: record.spec.endpoint_mode,
                ports: record.ports.clone(),
                vips: record.vips.clone(),
                networks: networks
                    .map(|(id, wanted)| ServiceNetwork {
                        network: id.clone(),
                        aliases: aliases.get(wanted.network.as_str()).cloned().unwrap_or_default(),
                    })
                    .collect(),
            });
        }
        for (id, record) in &self.tasks {
            snapshot.insert_task(self.task(id, record));
        }
        for (id, record) in &self.nodes {
            snapshot.insert_node(Node {
                id: id.clone(),
                hostname: record.spec.hostname.clone(),
                address: Some(record.spec.address),
                role: record.spec.role,
                state: if record.up { NodeState::Ready } else { NodeState::Down },
                availability: record.availability,
                engine: record.spec.engine.clone(),
            });
        }
        snapshot
    }

    /// By network's name: what the service is called, and by tasks of earlier versions is still called, until the last of them is gone.
    fn aliases<'r>(&'r self, record: &'r ServiceRecord) -> BTreeMap<&'r str, Vec<String>> {
        let running = record.tasks.iter().filter_map(|(_, id)| self.tasks.get(id)).filter(|task| !task.has_ended());
        let specs = running.filter_map(|task| self.task_spec_of(task));
        let mut aliases: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for wanted in std::iter::once(&record.spec).chain(specs).flat_map(|spec| &spec.networks) {
            let known = aliases.entry(wanted.network.as_str()).or_default();
            for alias in &wanted.aliases {
                if !known.contains(alias) {
                    known.push(alias.clone());
                }
            }
        }
        aliases
    }

    fn task(&self, id: &TaskId, record: &TaskRecord) -> Task {
        Task {
            id: id.clone(),
            service: record.service().cloned(),
            name: record.name.as_str().into(),
            slot: slot(record),
            node: record.node.clone(),
            desired_state: record.desired,
            state: record.state,
            container: record.started.then(|| record.container.as_str().into()),
            hostname: record.started.then(|| self.hostname(id, record).into()),
            sandbox: record.started.then(|| record.sandbox.as_str().into()),
            healthy: record.healthy,
            addresses: record.addresses.clone(),
            ports: record
                .service()
                .and_then(|id| self.services.get(id))
                .filter(|service| service.ports != record.ports)
                .map(|_| record.ports.as_slice().into()),
            // The nodes share one snapshot, so that it says what each of them knows of its own containers.
            dns: record.started.then(|| self.dns(record).map(container_dns).unwrap_or_default().into()),
            routing: None,
        }
    }

    /// The nodes' own addresses: on ingress of every node, and in each network of every node that has a task there.
    pub fn node_endpoints(&self) -> Vec<NodeEndpoint> {
        let mut endpoints = Vec::new();
        let mut nodes: Vec<(&NodeId, &NodeRecord)> = self.nodes.iter().collect();
        nodes.sort_by_key(|(_, record)| record.order);
        for (node, record) in nodes {
            let mut on: Vec<_> = record.endpoints.iter().filter_map(|(id, a)| Some((id, self.networks.get(id)?, a))).collect();
            on.sort_by_key(|(_, network, _)| (!network.ingress, network.order));
            endpoints.extend(on.into_iter().map(|(id, network, addresses)| NodeEndpoint {
                node: node.clone(),
                node_hostname: record.spec.hostname.clone(),
                network: id.clone(),
                network_name: network.asked.name.clone(),
                ingress: network.ingress,
                mtu: network.mtu(),
                addresses: addresses.iter().filter_map(|address| interface(network, address)).collect(),
            }));
        }
        endpoints
    }

    /// The nodes in the order in which they joined, and whether they are up.
    pub fn nodes(&self) -> Vec<(NodeId, &NodeSpec, bool)> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|(_, record)| record.order);
        nodes.into_iter().map(|(id, record)| (id.clone(), &record.spec, record.up)).collect()
    }

    /// The services in the order in which they were made. Removed ones that still drain are left out.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let mut services: Vec<&ServiceRecord> = self.services.values().filter(|s| !s.removed).collect();
        services.sort_by_key(|record| record.order);
        services.into_iter().map(|record| self.status(record)).collect()
    }

    fn status(&self, record: &ServiceRecord) -> ServiceStatus {
        let live = || record.tasks.iter().filter_map(|(_, id)| self.tasks.get(id)).filter(|t| t.is_live());
        ServiceStatus {
            name: record.spec.name.clone(),
            global: record.spec.mode == Mode::Global,
            wanted: match record.spec.mode {
                Mode::Replicated { replicas } => replicas,
                Mode::Global => live().count() as u64,
            },
            running: live().filter(|t| t.is_up()).count() as u64,
            update: record.update.as_ref().map(|u| u.state),
        }
    }

    /// The spec of a service, by its name or id, as last given.
    pub fn service_spec(&self, service: &str) -> Option<&ServiceSpec> {
        self.services.get(&self.service_id(service)?).map(|record| &record.spec)
    }

    /// True when every service has what it wants, nothing is being replaced, and nothing is on its way out.
    pub fn is_settled(&self) -> bool {
        self.services.values().all(|record| {
            let status = self.status(record);
            !record.removed
                && status.running == status.wanted
                && !matches!(status.update, Some(UpdateState::Updating | UpdateState::RollingBack))
        }) && self.tasks.values().all(|t| t.is_live() && t.is_up())
    }

    /// What keeps the swarm from being what it was asked to be.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for task in self.tasks.values() {
            if let Some(reason) = task.waits_for.as_ref().filter(|_| task.node.is_none()) {
                problems.push(Problem::new(format!("task {}", task.name), "placement", reason.clone()));
            }
            if task.state == TaskState::Failed {
                problems.push(Problem::new(format!("task {}", task.name), "state", "its container failed"));
            }
        }
        for service in self.services.values() {
            if service.update.as_ref().is_some_and(|u| u.state == UpdateState::Paused) {
                problems.push(Problem::new(
                    format!("service {}", service.spec.name),
                    "update",
                    "paused: a new task failed; the next update goes on",
                ));
            }
        }
        problems.sort();
        problems
    }
}

fn container_dns(spec: &DnsSpec) -> ContainerDns {
    ContainerDns { servers: spec.servers.clone(), ndots: spec.ndots().is_some(), disabled: false }
}

fn interface(network: &NetworkRecord, address: &std::net::IpAddr) -> Option<InterfaceAddress> {
    let pool = network.pools.iter().find(|p| p.subnet.contains(address))?;
    Some(InterfaceAddress { address: *address, prefix: pool.subnet.prefix_len(), gateway: pool.gateway })
}
