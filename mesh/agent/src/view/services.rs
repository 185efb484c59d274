//! `/v1/services`: what this node does for each service.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use swarmesh_model::{EndpointMode, NodeState, Port, PublishMode, Service, Task, TaskState};
use swarmesh_plan::Policy;

use super::{View, left_alone, policy_words};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    pub id: String,
    pub name: String,
    /// `vip` or `dnsrr`.
    pub mode: EndpointMode,
    pub managed: bool,
    /// Why it is not managed; empty when it is.
    pub reason: String,
    pub vips: Vec<Vip>,
    pub ports: Vec<PortRow>,
    /// Tasks that take new connections.
    pub ready: usize,
    /// Tasks that only finish what they have.
    pub draining: usize,
    /// Those, and the tasks that are on their way to running.
    pub total: usize,
    pub policy: String,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vip {
    pub network: String,
    pub address: std::net::IpAddr,
    /// Translated in the sandboxes of this node; false when no local task is in the network, and then nobody here could ask.
    pub here: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRow {
    pub protocol: swarmesh_model::Protocol,
    pub published: Option<u16>,
    pub target: u16,
    pub mode: PublishMode,
    /// Answered by this node on behalf of the swarm.
    pub here: bool,
    /// Tasks that this node sends new connections to.
    pub usable: usize,
}

pub fn services(view: &View) -> Vec<ServiceRow> {
    let mut rows: Vec<ServiceRow> = view.snapshot.services.values().map(|s| row(view, s)).collect();
    let mut problems = HashMap::<String, Vec<String>>::new();
    for problem in view.problems() {
        problems.entry(problem.object).or_default().push(format!("{}: {}", problem.place, problem.message));
    }
    let mut counts = HashMap::<&str, (usize, usize, usize)>::new();
    for task in view.snapshot.tasks.values() {
        let Some(service) = &task.service else { continue };
        let count = counts.entry(service.as_str()).or_default();
        match condition(view, task) {
            Condition::Ready => count.0 += 1,
            Condition::Draining => count.1 += 1,
            Condition::Starting => {}
            Condition::Over => continue,
        }
        count.2 += 1;
    }
    for row in &mut rows {
        (row.ready, row.draining, row.total) = counts.get(row.id.as_str()).copied().unwrap_or_default();
        row.problems = problems.remove(&format!("service {}", row.name)).unwrap_or_default();
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Ready,
    Draining,
    Starting,
    Over,
}

pub(super) fn condition(view: &View, task: &Task) -> Condition {
    let node_is_down = task.node.as_ref().and_then(|n| view.snapshot.nodes.get(n)).is_some_and(|n| n.state == NodeState::Down);
    match (task.is_usable(), task.is_draining()) {
        (true, _) if !node_is_down && !view.is_out_of_reach(task) => Condition::Ready,
        (true, _) | (_, true) => Condition::Draining,
        _ if task.state < TaskState::Running && task.desired_state <= TaskState::Running => Condition::Starting,
        _ => Condition::Over,
    }
}

fn row(view: &View, service: &Service) -> ServiceRow {
    let (policy, _) = Policy::from_labels(&service.labels);
    let reason = left_alone(service, view.context.takeover);
    let vips = service.vips.iter().map(|vip| Vip {
        network: view.snapshot.networks.get(&vip.network).map_or_else(|| vip.network.short().to_owned(), |n| n.name.clone()),
        address: vip.address,
        here: view.plan.networks.get(&vip.network).and_then(|v| v.get(&vip.address)).is_some_and(|v| v.service == service.id),
    });
    ServiceRow {
        id: service.id.to_string(),
        name: service.name.clone(),
        mode: service.endpoint_mode,
        managed: reason.is_none(),
        reason: reason.unwrap_or_default(),
        vips: vips.collect(),
        ports: service.ports.iter().map(|p| port(view, service, p)).collect(),
        ready: 0,
        draining: 0,
        total: 0,
        policy: policy_words(&policy),
        problems: Vec::new(),
    }
}

fn port(view: &View, service: &Service, port: &Port) -> PortRow {
    let ingress = port.published_port.filter(|_| port.publish_mode == PublishMode::Ingress);
    let planned = ingress.and_then(|number| view.plan.published.get(&(port.protocol, number))).filter(|p| p.service == service.id);
    PortRow {
        protocol: port.protocol,
        published: port.published_port,
        target: port.target_port,
        mode: port.publish_mode,
        here: planned.is_some(),
        usable: planned.map_or(0, |p| p.usable()),
    }
}
