//! What changed between two snapshots.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Network, NetworkId, Node, NodeId, Service, ServiceId, Snapshot, Task, TaskId};

/// New or changed objects, and (`None`) the ids of removed ones.
pub type Changes<I, T> = BTreeMap<I, Option<Arc<T>>>;

/// Applied to the snapshot it was made from, gives the one it was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub version: u64,
    pub networks: Changes<NetworkId, Network>,
    pub services: Changes<ServiceId, Service>,
    pub tasks: Changes<TaskId, Task>,
    pub nodes: Changes<NodeId, Node>,
}

impl Delta {
    /// O(objects in both): for sources that see whole lists only.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        Self {
            version: new.version,
            networks: old.networks.changes_to(&new.networks),
            services: old.services.changes_to(&new.services),
            tasks: old.tasks.changes_to(&new.tasks),
            nodes: old.nodes.changes_to(&new.nodes),
        }
    }

    /// True when no object changed, whatever the versions say.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.services.is_empty() && self.tasks.is_empty() && self.nodes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.networks.len() + self.services.len() + self.tasks.len() + self.nodes.len()
    }
}

impl Snapshot {
    /// O(changed objects × log of all).
    pub fn apply(&mut self, delta: &Delta) {
        self.version = delta.version;
        self.networks.merge(&delta.networks);
        self.services.merge(&delta.services);
        self.tasks.merge(&delta.tasks);
        self.nodes.merge(&delta.nodes);
    }
}
