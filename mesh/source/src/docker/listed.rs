//! Services and tasks with what else the engine says of them, for [`super::view`] to put together.

use std::sync::Arc;

use swarmesh_model::{Port, Service, Task};

use super::{
    decode::{Decoded, FromDocker, Odd, previous_ports},
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
        Ok(Task::from_wire(wire)?.map(|decoded| Decoded { object: Self { task: decoded.object, created }, problems: decoded.problems }))
    }
}
