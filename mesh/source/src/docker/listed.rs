//! Services and tasks with what else the engine says of them, for [`super::view`] to put together.

use std::{collections::HashMap, sync::Arc};

use swarmesh_model::{NetworkId, Port, Service, ServiceId, ServiceNetwork, SharedMap, Task};

use super::{
    decode::{Decoded, FromDocker, Odd, previous_ports, service_networks},
    wire,
};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedService {
    pub(super) service: Arc<Service>,
    before: Option<Before>,
}

/// How the service published its ports until its last update.
#[derive(Debug, PartialEq, Eq)]
struct Before {
    until: Timestamp,
    ports: Vec<Port>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedTask {
    pub(super) task: Task,
    created: Timestamp,
    /// The networks of the specification that it was made from, with the aliases that its service had there then.
    joined: Vec<ServiceNetwork>,
}

/// As the engine writes them: UTC, with as many digits as it takes. Without the final Z, they sort as text.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Timestamp(String);

impl Timestamp {
    fn new(text: &str) -> Self {
        Self(text.trim_end_matches('Z').to_owned())
    }
}

impl ListedService {
    /// The ports that a task was made for, where they are others than its service's present ones. The API does not tell; but
    /// an update that changes ports replaces all tasks (swarmkit's `isTaskDirty`), so those from before it have the ports from before.
    pub(super) fn own_ports(&self, task: &ListedTask) -> Option<Vec<Port>> {
        let before = self.before.as_ref()?;
        (task.created < before.until).then(|| before.ports.clone())
    }
}

impl FromDocker for ListedService {
    type Wire = wire::Service;
    const KIND: &'static str = Service::KIND;

    fn id(&self) -> &str {
        self.service.id.as_str()
    }

    fn from_wire(wire: wire::Service) -> Result<Option<Decoded<Self>>, Odd> {
        let until = Timestamp::new(&wire.update_status.started_at);
        let previous = previous_ports(&wire);
        let Some(Decoded { object, problems }) = Service::from_wire(wire)? else { return Ok(None) };
        let before = previous.filter(|ports| !until.0.is_empty() && !same(ports, &object.ports)).map(|ports| Before { until, ports });
        Ok(Some(Decoded { object: Self { service: Arc::new(object), before }, problems }))
    }
}

impl ListedTask {
    /// An alias that an update takes away goes with the last task that was made with it, as in libnetwork's `addServiceBinding`.
    /// Until then it leads wherever the service's other names do.
    pub(super) fn keep_aliases(&self, services: &mut SharedMap<ServiceId, Arc<Service>>, names: &HashMap<&str, &NetworkId>) {
        let Some(service) = self.task.service.as_ref().and_then(|id| services.get_mut(id)) else { return };
        for joined in &self.joined {
            // A specification may name a network by its name as well.
            let network = names.get(joined.network.as_str()).map_or(&joined.network, |id| *id);
            let Some(at) = service.networks.iter().position(|n| n.network == *network) else { continue };
            let older = joined.aliases.iter().filter(|alias| !service.networks[at].aliases.contains(alias));
            let older: Vec<String> = older.cloned().collect();
            if !older.is_empty() {
                Arc::make_mut(service).networks[at].aliases.extend(older);
            }
        }
    }
}

fn same(one: &[Port], other: &[Port]) -> bool {
    let sorted = |ports: &[Port]| {
        let mut ports = ports.to_vec();
        ports.sort();
        ports
    };
    sorted(one) == sorted(other)
}

impl FromDocker for ListedTask {
    type Wire = wire::Task;
    const KIND: &'static str = Task::KIND;

    fn id(&self) -> &str {
        self.task.id.as_str()
    }

    fn from_wire(wire: wire::Task) -> Result<Option<Decoded<Self>>, Odd> {
        let created = Timestamp::new(&wire.created_at);
        let joined = service_networks(&wire.spec.networks);
        Ok(Task::from_wire(wire)?
            .map(|decoded| Decoded { object: Self { task: decoded.object, created, joined }, problems: decoded.problems }))
    }
}
