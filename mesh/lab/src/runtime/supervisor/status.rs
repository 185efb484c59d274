//! The lab as its commands show it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Supervisor, task::TaskRun};
use crate::runtime::{
    layout::{address_v6, client_address, node_address},
    program,
    protocol::{LabStatus, MachineStatus, NetworkStatus, NodeStatus, ServiceRow, TaskProcess, TaskRow},
};

impl Supervisor {
    pub(super) fn status(&self) -> LabStatus {
        let snapshot = self.swarm.snapshot();
        let endpoints = self.swarm.node_endpoints();
        let hostnames: BTreeMap<_, _> = snapshot.nodes.iter().map(|(id, n)| (id, n.hostname.as_str())).collect();
        let network = |id| snapshot.networks.get(id).map(|n| n.name.clone()).unwrap_or_default();
        let nodes = self.nodes.iter().zip(1..).filter_map(|(node, number)| {
            let known = snapshot.nodes.get(&node.id)?;
            let on_ingress = endpoints.iter().filter(|e| e.ingress && e.node == node.id).flat_map(|e| &e.addresses);
            Some(NodeStatus {
                id: node.id.to_string(),
                machine: machine(&known.hostname, node.layout.netns(), node_address(number)),
                role: known.role,
                up: known.state == swarmesh_model::NodeState::Ready,
                powered: node.powered,
                availability: known.availability,
                agent: self.setup.agents.is_some().then(|| node.agent_state()),
                ingress: on_ingress.map(|a| a.address).collect(),
                resolv_conf: self.lab.node_resolv_conf(&known.hostname),
            })
        });
        let clients = (1..=self.setup.clients).map(|number| {
            let name = format!("client{number}");
            machine(&name, self.lab.netns(&name), client_address(number))
        });
        let mut networks: Vec<NetworkStatus> = snapshot
            .networks
            .values()
            .map(|n| NetworkStatus {
                id: n.id.to_string(),
                name: n.name.clone(),
                ingress: n.ingress,
                internal: n.internal,
                attachable: n.attachable,
                subnets: n.subnets.iter().map(|s| s.subnet).collect(),
                vni: self.overlays.vni(&n.id),
            })
            .collect();
        networks.sort_by(|a, b| (!a.ingress, &a.name).cmp(&(!b.ingress, &b.name)));
        let services = self.swarm.services().into_iter().filter_map(|s| {
            let service = self.swarm.service_id(&s.name).and_then(|id| snapshot.services.get(&id))?;
            Some(ServiceRow {
                name: s.name,
                global: s.global,
                wanted: s.wanted,
                running: s.running,
                update: s.update,
                endpoint_mode: service.endpoint_mode,
                ports: service.ports.clone(),
                vips: service.vips.iter().map(|v| (network(&v.network), v.address)).collect(),
            })
        });
        let mut tasks: Vec<TaskRow> = snapshot
            .tasks
            .values()
            .map(|task| TaskRow {
                id: task.id.to_string(),
                name: task.name.to_string(),
                service: task.service.as_ref().and_then(|id| snapshot.services.get(id)).map(|s| s.name.clone()),
                slot: task.slot,
                node: task.node.as_ref().and_then(|id| hostnames.get(id)).map(|h| (*h).to_owned()),
                state: task.state,
                desired_state: task.desired_state,
                healthy: task.healthy,
                addresses: task.addresses.iter().map(|a| (network(&a.network), a.address)).collect(),
                process: self.tasks.get(&task.id).map(process),
                error: self.errors.get(&task.id).cloned(),
            })
            .collect();
        tasks.sort_by(|a, b| (&a.service, a.slot, &a.name).cmp(&(&b.service, b.slot, &b.name)));
        LabStatus {
            name: self.lab.to_string(),
            layout: self.setup.layout,
            supervisor: std::process::id(),
            version: snapshot.version,
            settled: self.swarm.is_settled(),
            snapshot: self.lab.snapshot(),
            nodes: nodes.collect(),
            clients: clients.collect(),
            networks,
            services: services.collect(),
            tasks,
            problems: self.swarm.problems(),
        }
    }
}

fn machine(name: &str, netns: String, address: std::net::Ipv4Addr) -> MachineStatus {
    MachineStatus { name: name.to_owned(), netns, address: address.into(), address_v6: address_v6(address) }
}

fn process(run: &TaskRun) -> TaskProcess {
    let command = std::iter::once(run.program.path.display().to_string()).chain(run.program.args.iter().cloned());
    TaskProcess {
        id: run.process.id(),
        netns: run.sandbox.netns.clone(),
        hostname: run.spec.hostname.clone(),
        gateway_address: run.sandbox.gateway.map(Into::into),
        built_in: run.program.built_in,
        command: command.collect(),
        environment: program::environment(&run.spec),
    }
}

/// The word that the snapshot has for a value of one of the model's enumerations.
pub(crate) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
