//! Tasks and plain containers: made, watched, described to the runtime.

use swarmesh_model::{EndpointMode, NetworkId, ServiceId, TaskId, TaskState};

use super::{
    ContainerSpec, InterfaceAddress, Observed, Swarm, SwarmError, TaskNetwork, TaskSpec, ids,
    network::unknown_network,
    node::unknown_node,
    state::{Owner, Place, Restart, Stop, TaskRecord},
};
use crate::stack::{DnsSpec, HealthTest};

impl Swarm {
    /// A new task of the service's current version. It is placed later in the same `reconcile`.
    pub(super) fn new_task(&mut self, service: &ServiceId, place: &Place, attempts: u64) {
        let Some(record) = self.services.get(service) else { return };
        let (version, name) = (record.version, record.spec.name.clone());
        let (order, id) = self.next_id(&name);
        let name = match place {
            Place::Slot(slot) => format!("{name}.{slot}.{id}"),
            Place::Node(node) => format!("{name}.{node}.{id}"),
        };
        let owner = Owner::Service { id: service.clone(), version, place: place.clone() };
        self.insert_task(TaskId::from(id), order, name, owner, attempts);
    }

    fn insert_task(&mut self, id: TaskId, order: u64, name: String, owner: Owner, attempts: u64) {
        let service = if let Owner::Service { id, .. } = &owner { self.services.get(id) } else { None };
        let record = TaskRecord {
            order,
            ports: service.map(|s| s.ports.clone()).unwrap_or_default(),
            owner,
            container: ids::container(order, &name),
            sandbox: ids::sandbox(order),
            name,
            node: None,
            state: TaskState::New,
            desired: TaskState::Running,
            healthy: None,
            addresses: Vec::new(),
            addressed: false,
            started: false,
            stop: Stop::No,
            attempts,
            restart: Restart::Undecided,
            running_since: None,
            waits_for: None,
            before_down: None,
        };
        if let Some(service) = record.service().and_then(|id| self.services.get_mut(id)) {
            service.tasks.insert((order, id.clone()));
        }
        self.tasks.insert(id, record);
        self.touch();
    }

    /// Starts a container that no service owns, on attachable networks (`docker run --network`).
    pub fn run_container(&mut self, spec: ContainerSpec) -> Result<TaskId, SwarmError> {
        if self.tasks.values().any(|t| t.name == spec.name && t.service().is_none()) {
            return Err(SwarmError::Exists { kind: "container", name: spec.name });
        }
        let invalid = |message: String| SwarmError::Invalid { service: spec.name.clone(), message };
        let node = self.node_id(&spec.node).ok_or_else(|| unknown_node(&spec.node))?;
        if !self.nodes.get(&node).is_some_and(|n| n.up) {
            return Err(invalid(format!("node {} is down", spec.node)));
        }
        let mut networks = Vec::new();
        for wanted in &spec.networks {
            let id = self.network_id(wanted).ok_or_else(|| unknown_network(wanted))?;
            if !self.networks.get(&id).is_some_and(|n| n.asked.attachable) {
                return Err(invalid(format!("network {wanted} is not attachable: only services can join it")));
            }
            if !networks.contains(&id) {
                networks.push(id);
            }
        }
        let mut next = self.clone();
        let addresses = next.address_task(&networks, &spec.aliases)?;
        next.ensure_endpoints(&node, &networks.into_iter().collect())?;
        let (order, id) = next.next_id(&spec.name);
        let id = TaskId::from(id);
        next.insert_task(id.clone(), order, spec.name.clone(), Owner::Container(Box::new(spec)), 0);
        if let Some(task) = next.tasks.get_mut(&id) {
            task.addresses = addresses;
            task.addressed = true;
            task.node = Some(node);
            task.state = TaskState::Assigned;
        }
        *self = next;
        Ok(id)
    }

    pub fn remove_container(&mut self, name: &str) -> Result<(), SwarmError> {
        let found = self.tasks.iter().find(|(id, t)| t.service().is_none() && (t.name == name || id.as_str() == name));
        let id = found.map(|(id, _)| id.clone()).ok_or_else(|| SwarmError::Unknown { kind: "container", name: name.to_owned() })?;
        self.shut_down(&id);
        Ok(())
    }

    /// What the runtime saw of a task's container. Reports about tasks that are gone are ignored: they were on their way.
    pub fn observe(&mut self, id: &TaskId, seen: Observed) {
        let looks = self.tasks.get(id).is_some_and(|t| self.has_healthcheck(t));
        let Some(task) = self.tasks.get_mut(id) else { return };
        let before = (task.state, task.healthy, task.desired);
        match seen {
            // It has been said already.
            _ if task.has_ended() => return,
            Observed::Exited(code) => {
                task.before_down = None;
                if !task.is_live() || task.service().is_none() {
                    self.drop_task(id);
                    return;
                }
                task.state = if code == 0 && task.healthy != Some(false) { TaskState::Complete } else { TaskState::Failed };
                task.desired = TaskState::Shutdown;
                task.healthy = None;
            }
            Observed::Starting if task.state < TaskState::Starting => task.state = TaskState::Starting,
            Observed::Starting => {}
            // Its fate is sealed: health that comes back while it is being stopped changes nothing.
            Observed::Running if task.healthy == Some(false) => {}
            Observed::Running => {
                set_state(task, TaskState::Running);
                task.healthy = looks.then_some(true);
            }
            Observed::Unhealthy => {
                task.healthy = Some(false);
                if task.stop == Stop::No {
                    task.stop = Stop::Wanted;
                }
            }
        }
        if before != (task.state, task.healthy, task.desired) {
            self.touch();
        }
    }

    fn has_healthcheck(&self, task: &TaskRecord) -> bool {
        let spec = self.task_spec_of(task).and_then(|s| s.healthcheck.as_ref());
        spec.is_some_and(|h| matches!(h.test, HealthTest::Command(_) | HealthTest::Shell(_)))
    }

    /// A task's id, found by its id, the start of its id or container id, its name, or `service.slot`.
    pub fn find_task(&self, text: &str) -> Option<TaskId> {
        if let Some((id, _)) = self.tasks.get_key_value(text) {
            return Some(id.clone());
        }
        let exact = |t: &TaskRecord| {
            t.name == text || (t.is_live() && t.name.rsplit_once('.').is_some_and(|(front, _)| t.service().is_some() && front == text))
        };
        // The newest one of a slot; an older one may still be draining.
        let named = self.tasks.iter().filter(|(_, t)| exact(t)).max_by_key(|(_, t)| t.order);
        let begins = || self.tasks.iter().find(|(id, t)| id.as_str().starts_with(text) || t.container.starts_with(text));
        named.or_else(|| begins().filter(|_| text.len() >= 4)).map(|(id, _)| id.clone())
    }

    /// Everything needed to run a task; `None` until it has a node.
    pub fn task_spec(&self, id: &TaskId) -> Option<TaskSpec> {
        let task = self.tasks.get(id)?;
        let node = task.node.clone()?;
        let networks = self.task_networks(task);
        let common = TaskSpec {
            id: id.clone(),
            name: task.name.clone(),
            service: task.service().cloned(),
            service_name: None,
            slot: slot(task),
            node_hostname: self.nodes.get(&node).map(|n| n.spec.hostname.clone()).unwrap_or_default(),
            node,
            hostname: self.hostname(id, task),
            dns: self.dns(task).cloned().unwrap_or_default(),
            container: task.container.clone(),
            sandbox: task.sandbox.clone(),
            image: String::new(),
            entrypoint: None,
            command: Vec::new(),
            environment: std::collections::BTreeMap::new(),
            labels: std::collections::BTreeMap::new(),
            ports: Vec::new(),
            healthcheck: None,
            stop_grace: std::time::Duration::from_secs(10),
            stop_signal: "SIGTERM".to_owned(),
            networks,
        };
        Some(match &task.owner {
            Owner::Container(spec) => {
                TaskSpec { image: spec.image.clone(), command: spec.command.clone(), environment: spec.environment.clone(), ..common }
            }
            Owner::Service { .. } => {
                let spec = self.task_spec_of(task)?;
                let environment = spec.environment.iter().map(|(k, v)| (k.clone(), self.fill_in(v, id, task))).collect();
                TaskSpec {
                    service_name: Some(spec.name.clone()),
                    image: spec.image.clone(),
                    entrypoint: spec.entrypoint.clone(),
                    command: spec.command.clone(),
                    environment,
                    labels: spec.container_labels.clone(),
                    ports: task.ports.clone(),
                    healthcheck: spec.healthcheck.clone(),
                    stop_grace: spec.stop_grace,
                    stop_signal: spec.stop_signal.clone(),
                    ..common
                }
            }
        })
    }

    fn task_networks(&self, task: &TaskRecord) -> Vec<TaskNetwork> {
        let mut networks: Vec<TaskNetwork> = Vec::new();
        for taken in &task.addresses {
            let Some(record) = self.networks.get(&taken.network) else { continue };
            let Some(pool) = record.pools.iter().find(|p| p.subnet.contains(&taken.address)) else { continue };
            let address = InterfaceAddress { address: taken.address, prefix: pool.subnet.prefix_len(), gateway: pool.gateway };
            match networks.iter_mut().find(|n| n.network == taken.network) {
                Some(network) => network.addresses.push(address),
                None => networks.push(TaskNetwork {
                    network: taken.network.clone(),
                    name: record.asked.name.clone(),
                    ingress: record.ingress,
                    internal: record.asked.internal,
                    mtu: record.mtu(),
                    addresses: vec![address],
                }),
            }
        }
        networks
    }

    pub(super) fn hostname(&self, id: &TaskId, task: &TaskRecord) -> String {
        let given = match &task.owner {
            Owner::Container(spec) => spec.hostname.as_ref(),
            Owner::Service { .. } => self.task_spec_of(task).and_then(|spec| spec.hostname.as_ref()),
        };
        given.map_or_else(|| task.container.chars().take(12).collect(), |hostname| self.fill_in(hostname, id, task))
    }

    pub(super) fn dns<'a>(&'a self, task: &'a TaskRecord) -> Option<&'a DnsSpec> {
        match &task.owner {
            Owner::Container(spec) => Some(&spec.dns),
            Owner::Service { .. } => self.task_spec_of(task).map(|spec| &spec.dns),
        }
    }

    /// Docker's templates in hostnames and environments, those that need no more than the task's own place.
    fn fill_in(&self, text: &str, id: &TaskId, task: &TaskRecord) -> String {
        if !text.contains("{{") {
            return text.to_owned();
        }
        let service = task.service().and_then(|s| Some((s.as_str(), self.services.get(s)?.spec.name.as_str())));
        let node = task.node.as_ref().and_then(|n| Some((n.as_str(), self.nodes.get(n)?.spec.hostname.as_str())));
        let slot = slot(task).map_or_else(|| node.map_or("", |n| n.0).to_owned(), |s| s.to_string());
        let mut text = text.to_owned();
        for (name, value) in [
            ("Service.ID", service.map_or("", |s| s.0)),
            ("Service.Name", service.map_or("", |s| s.1)),
            ("Node.ID", node.map_or("", |n| n.0)),
            ("Node.Hostname", node.map_or("", |n| n.1)),
            ("Task.ID", id.as_str()),
            ("Task.Name", task.name.as_str()),
            ("Task.Slot", slot.as_str()),
        ] {
            text = text.replace(&format!("{{{{.{name}}}}}"), value).replace(&format!("{{{{ .{name} }}}}"), value);
        }
        text
    }

    /// Networks of a task, in the order of its interfaces: ingress first.
    pub(super) fn networks_for(&self, service: &ServiceId) -> Vec<NetworkId> {
        let Some(record) = self.services.get(service) else { return Vec::new() };
        let ingress = super::state::ServiceRecord::uses_ingress(&record.spec) && record.spec.endpoint_mode == EndpointMode::Vip;
        let mut networks: Vec<_> = self.ingress_id().filter(|_| ingress).into_iter().collect();
        for network in &record.networks {
            if !networks.contains(network) {
                networks.push(network.clone());
            }
        }
        networks
    }
}

pub(super) fn slot(task: &TaskRecord) -> Option<u64> {
    match task.place() {
        Some(Place::Slot(slot)) => Some(*slot),
        _ => None,
    }
}

/// A task of a lost node keeps what it was told beneath.
fn set_state(task: &mut TaskRecord, state: TaskState) {
    match &mut task.before_down {
        Some(before) => *before = state,
        None => task.state = state,
    }
}
