//! The swarm against a runtime that does at once what it is told.

mod life;
mod network;
mod placement;
mod rollout;
mod stacks;
mod walk;

use std::{collections::BTreeMap, time::Duration};

use swarmesh_model::{Port, Protocol, PublishMode, Role, Service, Snapshot, Task, TaskId};

use super::{Action, NodeSpec, Observed, Swarm, SwarmConfig};
use crate::stack::{Mode, NetworkSpec, NetworkUse, ServiceSpec};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn config(nodes: usize) -> SwarmConfig {
    let node = |number: usize| NodeSpec {
        hostname: format!("n{number}"),
        address: format!("192.0.2.{number}").parse().unwrap(),
        address_v6: None,
        role: if number == 1 { Role::Manager } else { Role::Worker },
        labels: BTreeMap::from([("parity".to_owned(), if number.is_multiple_of(2) { "even" } else { "odd" }.to_owned())]),
        engine: None,
    };
    SwarmConfig { nodes: (1..=nodes).map(node).collect(), ..SwarmConfig::default() }
}

/// On a network `net`, which [`Lab::new`] makes.
pub(super) fn spec(name: &str, replicas: u64) -> ServiceSpec {
    let networks = vec![NetworkUse { network: "net".to_owned(), aliases: Vec::new() }];
    ServiceSpec { mode: Mode::Replicated { replicas }, networks, ..ServiceSpec::new(name, "whoami") }
}

pub(super) fn port(target_port: u16, published_port: Option<u16>, publish_mode: PublishMode) -> Port {
    Port { name: None, protocol: Protocol::Tcp, target_port, published_port, publish_mode }
}

/// A swarm, its clock, and what the tests want its containers to do.
pub(super) struct Lab {
    pub(super) swarm: Swarm,
    pub(super) now: Duration,
    /// Every action, as `start web.1` with the slot's name.
    pub(super) log: Vec<String>,
    /// New containers of this image fail.
    pub(super) broken_image: Option<String>,
    /// Containers that have been told to stop, and do so only when asked to.
    pub(super) slow_stop: bool,
    pub(super) stopping: Vec<TaskId>,
    checked: std::cell::Cell<u64>,
}

impl Lab {
    pub(super) fn new(nodes: usize) -> Self {
        let mut swarm = Swarm::new(config(nodes)).unwrap();
        swarm.create_network(&NetworkSpec { attachable: true, ..NetworkSpec::overlay("net") }).unwrap();
        Self {
            swarm,
            now: Duration::ZERO,
            log: Vec::new(),
            broken_image: None,
            slow_stop: false,
            stopping: Vec::new(),
            checked: std::cell::Cell::default(),
        }
    }

    fn short(&self, task: &TaskId) -> String {
        self.swarm.snapshot().tasks.get(task).map(|t| slot_name(t)).unwrap_or_default()
    }

    /// One decision, carried out. True if there was something to do.
    pub(super) fn step(&mut self) -> bool {
        let actions = self.swarm.reconcile(self.now);
        self.check();
        for action in &actions {
            let name = self.short(action.task());
            match action {
                Action::StartTask { task, .. } => {
                    self.log.push(format!("start {name}"));
                    let image = self.swarm.task_spec(task).unwrap().image;
                    let code = Some(image) == self.broken_image;
                    self.swarm.observe(task, Observed::Starting);
                    self.swarm.observe(task, if code { Observed::Exited(1) } else { Observed::Running });
                }
                Action::StopTask { task, .. } => {
                    self.log.push(format!("stop {name}"));
                    if self.slow_stop { self.stopping.push(task.clone()) } else { self.swarm.observe(task, Observed::Exited(143)) }
                }
                Action::KillTask { task, .. } => {
                    self.log.push(format!("kill {name}"));
                    self.swarm.observe(task, Observed::Exited(137));
                }
            }
        }
        !actions.is_empty()
    }

    /// Until nothing is to be done at this time.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() && self.swarm.next_wakeup().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("the swarm does not come to rest: {:?}", self.log);
    }

    pub(super) fn after(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) = self.swarm.next_wakeup().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// What every state has to be.
    pub(super) fn check(&self) {
        if self.checked.replace(self.swarm.version) == self.swarm.version {
            return;
        }
        let snapshot = self.swarm.snapshot();
        assert_eq!(Snapshot::from_json(&snapshot.to_json()), Ok(snapshot.clone()));
        let mut addresses = BTreeMap::new();
        let tasks = snapshot.tasks.values().flat_map(|t| t.addresses.iter().map(|a| (a.network.clone(), a.address, t.name.to_string())));
        let vips = snapshot.services.values().flat_map(|s| s.vips.iter().map(|v| (v.network.clone(), v.address, s.name.clone())));
        let nodes = self.swarm.node_endpoints();
        let nodes = nodes.iter().flat_map(|n| n.addresses.iter().map(|a| (n.network.clone(), a.address, n.node_hostname.clone())));
        for (network, address, user) in tasks.chain(vips).chain(nodes) {
            if let Some(other) = addresses.insert((network, address), user.clone()) {
                panic!("{address} belongs to {user} and {other}");
            }
        }
        let json = serde_json::to_string(&self.swarm).unwrap();
        assert_eq!(serde_json::from_str::<Swarm>(&json).unwrap(), self.swarm);
    }

    pub(super) fn service(&self, name: &str) -> Service {
        let id = self.swarm.service_id(name).unwrap();
        Service::clone(&self.swarm.snapshot().services[&id])
    }

    /// The service's tasks by slot, then age.
    pub(super) fn tasks(&self, service: &str) -> Vec<Task> {
        let mut tasks: Vec<Task> = self
            .swarm
            .tasks_in_order()
            .into_iter()
            .map(|id| Task::clone(&self.swarm.snapshot().tasks[&id]))
            .filter(|t| t.name.starts_with(&format!("{service}.")))
            .collect();
        tasks.sort_by_key(|t| t.slot);
        tasks
    }

    /// `1@n1 2@n2`: slots and nodes of the tasks that take connections.
    pub(super) fn placed(&self, service: &str) -> String {
        let hostname = |task: &Task| self.swarm.nodes[task.node.as_ref().unwrap()].spec.hostname.clone();
        let slot = |task: &Task| task.slot.map_or_else(String::new, |s| s.to_string());
        let tasks = self.tasks(service);
        let mut placed: Vec<String> = tasks.iter().filter(|t| t.is_usable()).map(|t| format!("{}@{}", slot(t), hostname(t))).collect();
        placed.sort();
        placed.join(" ")
    }

    pub(super) fn take_log(&mut self) -> String {
        std::mem::take(&mut self.log).join(", ")
    }
}

fn slot_name(task: &Task) -> String {
    task.name.rsplit_once('.').map_or(task.name.to_string(), |(front, _)| front.to_owned())
}
