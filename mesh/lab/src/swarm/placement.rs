//! Which node a task runs on.

use std::collections::{BTreeMap, BTreeSet};

use swarmesh_model::{NodeId, Protocol, PublishMode, ServiceId, TaskId, TaskState};

use super::{
    Swarm,
    state::{NodeRecord, Owner, Place, TaskRecord},
};
use crate::stack::ServiceSpec;

/// What the nodes carry now.
#[derive(Default)]
struct Load {
    tasks: BTreeMap<NodeId, usize>,
    of_service: BTreeMap<(ServiceId, NodeId), u64>,
    host_ports: BTreeSet<(NodeId, Protocol, u16)>,
}

impl Load {
    fn add(&mut self, task: &TaskRecord, spec: Option<&ServiceSpec>, node: &NodeId) {
        // A task that is being stopped no longer counts, but has its ports until it is gone.
        if task.is_live() {
            *self.tasks.entry(node.clone()).or_default() += 1;
            if let Some(service) = task.service() {
                *self.of_service.entry((service.clone(), node.clone())).or_default() += 1;
            }
        }
        self.host_ports.extend(host_ports(spec).map(|(protocol, port)| (node.clone(), protocol, port)));
    }
}

fn host_ports(spec: Option<&ServiceSpec>) -> impl Iterator<Item = (Protocol, u16)> {
    let ports = spec.map(|s| s.ports.as_slice()).unwrap_or_default();
    ports.iter().filter(|p| p.publish_mode == PublishMode::Host).filter_map(|p| Some((p.protocol, p.published_port?)))
}

pub(super) fn constraints_allow(spec: &ServiceSpec, id: &NodeId, node: &NodeRecord) -> bool {
    spec.placement.constraints.iter().all(|c| c.allows(id.as_str(), &node.spec.hostname, node.spec.role, &node.spec.labels))
}

impl Swarm {
    /// Gives addresses and a node to every task that waits for them, oldest first.
    pub(super) fn place_tasks(&mut self) {
        let waiting: Vec<TaskId> = self
            .tasks_in_order()
            .into_iter()
            .filter(|id| self.tasks.get(id).is_some_and(|t| t.node.is_none() && t.is_live() && !t.has_ended()))
            .collect();
        if waiting.is_empty() {
            return;
        }
        let mut load = Load::default();
        for task in self.tasks.values().filter(|t| !t.has_ended()) {
            if let Some(node) = &task.node {
                load.add(task, self.task_spec_of(task), node);
            }
        }
        for id in waiting {
            if let Err(reason) = self.place(&id, &mut load)
                && let Some(task) = self.tasks.get_mut(&id)
            {
                task.waits_for = Some(reason);
            }
        }
    }

    fn place(&mut self, id: &TaskId, load: &mut Load) -> Result<(), String> {
        let Some(Owner::Service { id: service, .. }) = self.tasks.get(id).map(|t| t.owner.clone()) else { return Ok(()) };
        // As in Docker, addresses come first and the scheduler second.
        if self.tasks.get(id).is_some_and(|t| !t.addressed) {
            let networks = self.networks_for(&service);
            let addresses = self.address_task(&networks, &[]).map_err(|e| e.to_string())?;
            if let Some(task) = self.tasks.get_mut(id) {
                task.addresses = addresses;
                task.addressed = true;
                task.state = TaskState::Pending;
            }
            self.touch();
        }
        let node = self.choose_node(id, &service, load)?;
        self.ensure_endpoints(&node, &self.networks_of(id)).map_err(|e| e.to_string())?;
        if let Some(task) = self.tasks.get_mut(id) {
            task.node = Some(node.clone());
            task.state = TaskState::Assigned;
            task.waits_for = None;
        }
        if let Some(task) = self.tasks.get(id) {
            load.add(task, self.task_spec_of(task), &node);
        }
        self.touch();
        Ok(())
    }

    /// The fitting node with the fewest tasks of this service, then with the fewest tasks, then the first.
    fn choose_node(&self, id: &TaskId, service: &ServiceId, load: &Load) -> Result<NodeId, String> {
        let (Some(task), Some(record)) = (self.tasks.get(id), self.services.get(service)) else {
            return Err("its service is gone".to_owned());
        };
        let spec = self.task_spec_of(task).unwrap_or(&record.spec);
        let count = |node: &NodeId| load.of_service.get(&(service.clone(), node.clone())).copied().unwrap_or(0);
        // Each filter that leaves nothing is the reason, as in `docker service ps`.
        let bound = match task.place() {
            Some(Place::Node(node)) => Some(node),
            _ => None,
        };
        let mut fitting: Vec<(&NodeId, &NodeRecord)> = self.nodes.iter().collect();
        let mut keep = |reason: &str, fits: &dyn Fn(&NodeId, &NodeRecord) -> bool| {
            fitting.retain(|(id, node)| fits(id, node));
            if fitting.is_empty() { Err(format!("no suitable node: {reason}")) } else { Ok(()) }
        };
        keep("no node is up and takes tasks", &|_, node| node.takes_tasks())?;
        keep("the service's node is down", &|id, _| bound.is_none_or(|b| b == id))?;
        keep("placement constraints are not satisfied", &|id, node| constraints_allow(spec, id, node))?;
        keep("the host-mode ports are in use on every node", &|id, _| {
            host_ports(Some(spec)).all(|(protocol, port)| !load.host_ports.contains(&(id.clone(), protocol, port)))
        })?;
        if let Some(most) = spec.placement.max_replicas_per_node.filter(|most| *most > 0) {
            keep("every node has max_replicas_per_node tasks of the service", &|id, _| count(id) < most)?;
        }
        let best = fitting.into_iter().min_by_key(|(id, node)| (count(id), load.tasks.get(*id).copied().unwrap_or(0), node.order));
        best.map(|(id, _)| id.clone()).ok_or_else(|| "no suitable node".to_owned())
    }
}
