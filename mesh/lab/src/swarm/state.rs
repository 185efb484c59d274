//! What the swarm remembers. All of it is serializable, so that a lab can be left and taken up again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use swarmesh_model::{Availability, NetworkId, NodeId, Port, ServiceId, TaskAddress, TaskId, TaskState, VirtualIp};

use super::{ContainerSpec, NodeSpec, SwarmConfig, UpdateState, ids, ipam::Pool};
use crate::stack::{NetworkSpec, ServiceSpec, UpdateConfig};

/// A simulated swarm. See the [module](super).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swarm {
    pub(super) config: SwarmConfig,
    pub(super) version: u64,
    /// Of objects ever made; every id comes from it.
    pub(super) counter: u64,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) networks: BTreeMap<NetworkId, NetworkRecord>,
    pub(super) services: BTreeMap<ServiceId, ServiceRecord>,
    pub(super) tasks: BTreeMap<TaskId, TaskRecord>,
    /// When `reconcile` has something to do again though nothing has happened.
    pub(super) wakeup: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) order: u64,
    pub(super) spec: NodeSpec,
    pub(super) up: bool,
    pub(super) availability: Availability,
    /// Addresses of the node itself: the ingress sandbox's, and the load balancer's in each network with a task here.
    pub(super) endpoints: BTreeMap<NetworkId, Vec<std::net::IpAddr>>,
}

impl NodeRecord {
    pub(super) fn takes_tasks(&self) -> bool {
        self.up && self.availability == Availability::Active
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkRecord {
    pub(super) order: u64,
    /// As asked for: subnets may be missing.
    pub(super) asked: NetworkSpec,
    pub(super) ingress: bool,
    pub(super) pools: Vec<Pool>,
    /// Goes with its last user.
    pub(super) removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServiceRecord {
    pub(super) order: u64,
    /// The newest version of what it should be.
    pub(super) spec: ServiceSpec,
    /// Of `spec`. Grows when the tasks have to be replaced.
    pub(super) version: u64,
    /// Every version that a task or a rollback may still need.
    pub(super) specs: BTreeMap<u64, ServiceSpec>,
    pub(super) previous: Option<u64>,
    /// As `spec.networks`, by id.
    pub(super) networks: Vec<NetworkId>,
    /// As `spec.ports`, with numbers for those that had none.
    pub(super) ports: Vec<Port>,
    pub(super) vips: Vec<VirtualIp>,
    pub(super) update: Option<UpdateProgress>,
    /// Its tasks, oldest first.
    pub(super) tasks: BTreeSet<(u64, TaskId)>,
    /// Removed by its owner; stays until its last task has stopped, so that connections can end.
    pub(super) removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UpdateProgress {
    pub(super) state: UpdateState,
    pub(super) config: UpdateConfig,
    pub(super) in_flight: Vec<(Place, Phase)>,
    /// The last new task came up at this time; it is watched for `config.monitor`.
    pub(super) last_started: Option<Duration>,
}

/// Where a task belongs in its service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Place {
    Slot(u64),
    /// Of a global service.
    Node(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The old task has to be gone before the new one is made.
    Stopping,
    /// The new task has to run.
    Starting,
    /// It does; the next one waits until then.
    Resting(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Owner {
    Service { id: ServiceId, version: u64, place: Place },
    Container(Box<ContainerSpec>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TaskRecord {
    pub(super) order: u64,
    pub(super) owner: Owner,
    pub(super) name: String,
    pub(super) container: String,
    pub(super) sandbox: String,
    pub(super) node: Option<NodeId>,
    pub(super) state: TaskState,
    pub(super) desired: TaskState,
    pub(super) healthy: Option<bool>,
    pub(super) addresses: Vec<TaskAddress>,
    pub(super) addressed: bool,
    /// Its service's, as they were allotted when it was made.
    pub(super) ports: Vec<Port>,
    /// The runtime knows of it.
    pub(super) started: bool,
    pub(super) stop: Stop,
    /// Starts of this place before this one, for `max_attempts`.
    pub(super) attempts: u64,
    pub(super) restart: Restart,
    pub(super) running_since: Option<Duration>,
    /// Why it is not placed.
    pub(super) waits_for: Option<String>,
    /// What a container's state was before its node went down.
    pub(super) before_down: Option<TaskState>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stop {
    #[default]
    No,
    /// Its health check has failed it: it is to be stopped though the swarm wants it to run.
    Wanted,
    KillWanted,
    Told,
    Killed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Restart {
    /// It has not ended, or nobody has looked since.
    #[default]
    Undecided,
    At(Duration),
    Never,
}

impl TaskRecord {
    /// It should run, and may.
    pub(super) fn is_live(&self) -> bool {
        self.desired == TaskState::Running
    }

    /// It ran and ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, TaskState::Complete | TaskState::Failed)
    }

    pub(super) fn service(&self) -> Option<&ServiceId> {
        match &self.owner {
            Owner::Service { id, .. } => Some(id),
            Owner::Container(_) => None,
        }
    }

    pub(super) fn place(&self) -> Option<&Place> {
        match &self.owner {
            Owner::Service { place, .. } => Some(place),
            Owner::Container(_) => None,
        }
    }

    pub(super) fn version(&self) -> Option<u64> {
        match &self.owner {
            Owner::Service { version, .. } => Some(*version),
            Owner::Container(_) => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == TaskState::Running && self.healthy != Some(false)
    }
}

impl Swarm {
    pub(super) fn next_id(&mut self, name: &str) -> (u64, String) {
        self.counter += 1;
        (self.counter, ids::object(self.counter, name))
    }

    /// Something changed: the snapshot is a new one, and `reconcile` has to look.
    pub(super) fn touch(&mut self) {
        self.version += 1;
        self.wakeup = Some(Duration::ZERO);
    }

    pub(super) fn tasks_in_order(&self) -> Vec<TaskId> {
        let mut tasks: Vec<(u64, &TaskId)> = self.tasks.iter().map(|(id, task)| (task.order, id)).collect();
        tasks.sort_unstable();
        tasks.into_iter().map(|(_, id)| id.clone()).collect()
    }

    pub(super) fn task_spec_of(&self, task: &TaskRecord) -> Option<&ServiceSpec> {
        match &task.owner {
            Owner::Service { id, version, .. } => self.services.get(id)?.specs.get(version),
            Owner::Container(_) => None,
        }
    }

    /// Forgets a task and gives its addresses back.
    pub(super) fn drop_task(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.remove(id) else { return };
        for address in &task.addresses {
            self.give_back(&address.network, &address.address);
        }
        if let Some(service) = task.service().and_then(|id| self.services.get_mut(id)) {
            service.tasks.remove(&(task.order, id.clone()));
        }
        self.touch();
    }

    /// A service's tasks, oldest first.
    pub(super) fn tasks_of(&self, service: &ServiceId) -> Vec<TaskId> {
        self.services.get(service).map(|s| s.tasks.iter().map(|(_, id)| id.clone()).collect()).unwrap_or_default()
    }

    /// Forgets service versions that no task runs and no rollback needs.
    pub(super) fn drop_old_specs(&mut self) {
        let mut used: BTreeSet<(&ServiceId, u64)> = BTreeSet::new();
        for task in self.tasks.values() {
            if let Owner::Service { id, version, .. } = &task.owner {
                used.insert((id, *version));
            }
        }
        for (id, record) in &mut self.services {
            let (current, previous) = (record.version, record.previous);
            record.specs.retain(|version, _| *version == current || Some(*version) == previous || used.contains(&(id, *version)));
        }
    }
}
