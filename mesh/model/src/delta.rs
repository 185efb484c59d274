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
            networks: changes(&old.networks, &new.networks),
            services: changes(&old.services, &new.services),
            tasks: changes(&old.tasks, &new.tasks),
            nodes: changes(&old.nodes, &new.nodes),
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
        apply(&mut self.networks, &delta.networks);
        apply(&mut self.services, &delta.services);
        apply(&mut self.tasks, &delta.tasks);
        apply(&mut self.nodes, &delta.nodes);
    }
}

fn changes<I: Ord + Clone, T: PartialEq>(old: &BTreeMap<I, Arc<T>>, new: &BTreeMap<I, Arc<T>>) -> Changes<I, T> {
    let is_changed = |id: &I, object: &Arc<T>| old.get(id).is_none_or(|o| !Arc::ptr_eq(o, object) && o != object);
    let changed = new.iter().filter(|(id, object)| is_changed(id, object)).map(|(id, object)| (id.clone(), Some(Arc::clone(object))));
    let gone = old.keys().filter(|id| !new.contains_key(*id)).map(|id| (id.clone(), None));
    changed.chain(gone).collect()
}

fn apply<I: Ord + Clone, T>(objects: &mut BTreeMap<I, Arc<T>>, changes: &Changes<I, T>) {
    if objects.is_empty() {
        // Built at once, the map fills its nodes; grown in order, it would leave them half empty for good.
        *objects = changes.iter().filter_map(|(id, change)| Some((id.clone(), Arc::clone(change.as_ref()?)))).collect();
        return;
    }
    for (id, change) in changes {
        match change {
            Some(object) => objects.insert(id.clone(), Arc::clone(object)),
            None => objects.remove(id),
        };
    }
}
