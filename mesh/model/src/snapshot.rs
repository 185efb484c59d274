//! The swarm at one moment.

use std::{iter, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{Network, NetworkId, Node, NodeId, Service, ServiceId, SharedMap, Task, TaskId};

/// Every object that a source knows of, by id. Objects and maps are shared: a clone is O(1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with each change that the source saw; comparable only between snapshots of one source.
    pub version: u64,
    pub networks: SharedMap<NetworkId, Arc<Network>>,
    pub services: SharedMap<ServiceId, Arc<Service>>,
    pub tasks: SharedMap<TaskId, Arc<Task>>,
    pub nodes: SharedMap<NodeId, Arc<Node>>,
}

impl Snapshot {
    pub fn insert_network(&mut self, network: Network) {
        self.networks.insert(network.id.clone(), Arc::new(network));
    }

    pub fn insert_service(&mut self, service: Service) {
        self.services.insert(service.id.clone(), Arc::new(service));
    }

    pub fn insert_task(&mut self, task: Task) {
        self.tasks.insert(task.id.clone(), Arc::new(task));
    }

    pub fn insert_node(&mut self, node: Node) {
        self.nodes.insert(node.id.clone(), Arc::new(node));
    }

    /// The network that carries published ports, if the swarm has one.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.networks.values().find(|n| n.ingress)
    }

    /// The one-file form that [`Snapshot::from_json`] reads, one object a line.
    pub fn to_json(&self) -> String {
        self.json_lines().collect()
    }

    /// The same text piece by piece, for those who write it somewhere and need not hold all of it.
    pub fn json_lines(&self) -> impl Iterator<Item = String> {
        fn list<T: Serialize>(name: &str, objects: impl Iterator<Item = T>) -> impl Iterator<Item = String> {
            let objects = objects.enumerate().map(|(index, object)| {
                let mut line = String::from(if index == 0 { "\n" } else { ",\n" });
                // These types have string keys and no failing serializer, so there is no error to lose.
                line.push_str(&serde_json::to_string(&object).unwrap_or_default());
                line
            });
            iter::once(format!(",\n\"{name}\": [")).chain(objects).chain(iter::once("]".to_owned()))
        }
        iter::once(format!("{{\"version\": {}", self.version))
            .chain(list("networks", self.networks.values()))
            .chain(list("services", self.services.values()))
            .chain(list("tasks", self.tasks.values()))
            .chain(list("nodes", self.nodes.values()))
            .chain(iter::once("}\n".to_owned()))
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Snapshot", 5)?;
        s.serialize_field("version", &self.version)?;
        s.serialize_field("networks", &self.networks.values().collect::<Vec<_>>())?;
        s.serialize_field("services", &self.services.values().collect::<Vec<_>>())?;
        s.serialize_field("tasks", &self.tasks.values().collect::<Vec<_>>())?;
        s.serialize_field("nodes", &self.nodes.values().collect::<Vec<_>>())?;
        s.end()
    }
}
