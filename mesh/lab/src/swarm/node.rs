//! The swarm's beginning, and its nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmesh_model::{Availability, NodeId, Subnet, TaskId, TaskState};

use super::{
    NodeSpec, Swarm, SwarmConfig, SwarmError,
    state::{NodeRecord, Owner, Stop},
};
use crate::stack::NetworkSpec;

impl Swarm {
    /// A swarm with its nodes up and nothing on them. Fails only if the ingress network has no room for its nodes.
    pub fn new(config: SwarmConfig) -> Result<Self, SwarmError> {
        let mut swarm = Self {
            config,
            version: 0,
            counter: 0,
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            services: BTreeMap::new(),
            tasks: BTreeMap::new(),
            wakeup: None,
        };
        if let Some(ingress) = swarm.config.ingress.clone() {
            let subnets = std::iter::once(ingress.subnet).chain(ingress.subnet_v6);
            let spec = NetworkSpec {
                mtu: Some(ingress.mtu),
                subnets: subnets.map(|subnet| Subnet { subnet, gateway: None }).collect(),
                enable_ipv6: ingress.subnet_v6.is_some(),
                ..NetworkSpec::overlay(ingress.name)
            };
            swarm.add_network(&spec, true)?;
        }
        for node in swarm.config.nodes.clone() {
            swarm.add_node(node)?;
        }
        swarm.touch();
        Ok(swarm)
    }

    pub fn add_node(&mut self, spec: NodeSpec) -> Result<NodeId, SwarmError> {
        if self.nodes.values().any(|n| n.spec.hostname == spec.hostname) {
            return Err(SwarmError::Exists { kind: "node", name: spec.hostname });
        }
        let (order, id) = self.next_id(&spec.hostname);
        let id = NodeId::from(id);
        let record = NodeRecord { order, spec, up: true, availability: Availability::Active, endpoints: BTreeMap::new() };
        self.nodes.insert(id.clone(), record);
        let ingress: BTreeSet<_> = self.ingress_id().into_iter().collect();
        if let Err(error) = self.ensure_endpoints(&id, &ingress) {
            self.nodes.remove(&id);
            return Err(error);
        }
        self.touch();
        Ok(id)
    }

    /// A node's id, found by its hostname or id.
    pub fn node_id(&self, node: &str) -> Option<NodeId> {
        let by_name = self.nodes.iter().find(|(_, record)| record.spec.hostname == node);
        by_name.map(|(id, _)| id.clone()).or_else(|| self.nodes.get_key_value(node).map(|(id, _)| id.clone()))
    }

    /// The managers have lost a node: its tasks are replaced elsewhere. What still runs there is stopped when it comes back,
    /// unless the runtime reports before that it has ended.
    pub fn node_down(&mut self, node: &str) -> Result<(), SwarmError> {
        let id = self.node_id(node).ok_or_else(|| unknown_node(node))?;
        if let Some(record) = self.nodes.get_mut(&id) {
            record.up = false;
        }
        for task in self.tasks_on(&id) {
            let Some(record) = self.tasks.get_mut(&task) else { continue };
            if matches!(record.owner, Owner::Container(_)) {
                // Nobody replaces it; it is there again when its node is.
                record.before_down.get_or_insert(record.state);
                record.state = TaskState::Orphaned;
            } else if record.has_ended() {
                // Its replacement need not wait for its own node.
                record.node = None;
            } else {
                self.shut_down(&task);
            }
        }
        self.touch();
        Ok(())
    }

    pub fn node_up(&mut self, node: &str) -> Result<(), SwarmError> {
        let id = self.node_id(node).ok_or_else(|| unknown_node(node))?;
        if let Some(record) = self.nodes.get_mut(&id) {
            record.up = true;
        }
        for task in self.tasks_on(&id) {
            if let Some(record) = self.tasks.get_mut(&task)
                && let Some(state) = record.before_down.take()
            {
                record.state = state;
            }
        }
        self.touch();
        Ok(())
    }

    /// `Drain` moves the services' tasks away, `Pause` only keeps new ones off.
    pub fn set_availability(&mut self, node: &str, availability: Availability) -> Result<(), SwarmError> {
        let id = self.node_id(node).ok_or_else(|| unknown_node(node))?;
        if let Some(record) = self.nodes.get_mut(&id) {
            record.availability = availability;
        }
        if availability == Availability::Drain {
            for task in self.tasks_on(&id) {
                if self.tasks.get(&task).is_some_and(|t| t.service().is_some() && t.is_live()) {
                    self.shut_down(&task);
                }
            }
        }
        self.touch();
        Ok(())
    }

    fn tasks_on(&self, node: &NodeId) -> Vec<TaskId> {
        self.tasks.iter().filter(|(_, t)| t.node.as_ref() == Some(node)).map(|(id, _)| id.clone()).collect()
    }

    /// Withdraws a task. One that was never started is gone at once.
    pub(super) fn shut_down(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        if !task.started || task.has_ended() {
            self.drop_task(id);
        } else if task.desired != TaskState::Shutdown {
            task.desired = TaskState::Shutdown;
            self.touch();
        }
    }

    /// Kills a task's container, as a crash would: the swarm finds out by what the runtime then sees.
    pub fn kill_task(&mut self, task: &str) -> Result<(), SwarmError> {
        let id = self.find_task(task).ok_or_else(|| SwarmError::Unknown { kind: "task", name: task.to_owned() })?;
        if let Some(record) = self.tasks.get_mut(&id)
            && record.started
            && record.stop != Stop::Killed
        {
            record.stop = Stop::KillWanted;
            self.touch();
        }
        Ok(())
    }

    /// When [`Swarm::reconcile`] is due: at once after a change, else when a delay runs out. `None`: not before something happens.
    pub fn next_wakeup(&self) -> Option<Duration> {
        self.wakeup
    }
}

pub(super) fn unknown_node(name: &str) -> SwarmError {
    SwarmError::Unknown { kind: "node", name: name.to_owned() }
}
