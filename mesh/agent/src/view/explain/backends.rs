//! Who may answer, and why the others do not.

use std::collections::BTreeSet;

use swarmesh_model::{NetworkId, Node, NodeState, Service, Task, TaskId, TaskState};
use swarmesh_plan::{Backend, BackendState};

use super::{LeftOut, View};
use crate::view::services::{Condition, condition};

/// What a backend must have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) network: &'a NetworkId,
    pub(super) v6: bool,
    /// `swarmesh.source=local`.
    pub(super) local_only: bool,
}

/// How many there are to choose from, and of which kind.
pub(super) fn choice(count: usize, ready: bool) -> String {
    let kind = if ready { "ready" } else { "draining" };
    let count = if count == 1 { format!("the only {kind} backend") } else { format!("one of {count} {kind} backends") };
    if ready { count } else { format!("{count}, for want of ready ones") }
}

/// Tasks of the service that are not among `used`, with the reason. Tasks that ended are history and are left out of this, too.
pub(super) fn left_out(view: &View, service: &Service, asked: Asked<'_>, used: &[Backend]) -> Vec<LeftOut> {
    let ready_exists = used.iter().any(|b| b.state == BackendState::Ready);
    let mut left_out = Vec::new();
    let used_tasks: BTreeSet<&TaskId> = used.iter().map(|b| &b.task).collect();
    for task in view.snapshot.tasks.values().filter(|t| t.service.as_ref() == Some(&service.id)) {
        let draining = used.iter().any(|b| b.task == task.id && b.state == BackendState::Draining);
        let why = if draining && ready_exists {
            format!("{}; keeps what it has and gets nothing new while others are ready", drain_reason(view, task))
        } else if used_tasks.contains(&task.id) {
            continue;
        } else {
            match reason(view, task, asked) {
                Some(why) => why,
                None => continue,
            }
        };
        left_out.push(LeftOut { task: task.name.to_string(), node: view.task_node(&task.id), why });
    }
    left_out.sort_by(|a, b| a.task.cmp(&b.task));
    left_out
}

fn reason(view: &View, task: &Task, asked: Asked<'_>) -> Option<String> {
    match condition(view, task) {
        Condition::Over => return None,
        Condition::Starting => return Some(format!("is starting ({})", word(task.state))),
        Condition::Ready | Condition::Draining => {}
    }
    if asked.local_only && task.node != view.context.node {
        return Some("runs on another node, and swarmesh.source=local uses this node's tasks only".to_owned());
    }
    let mut addresses = task.address_in(asked.network).filter(|a| a.is_ipv6() == asked.v6);
    let name = view.snapshot.networks.get(asked.network).map_or_else(|| asked.network.short(), |n| n.name.as_str());
    match addresses.next() {
        None => Some(format!("has no {} address in network {name}", if asked.v6 { "IPv6" } else { "IPv4" })),
        Some(address) => Some(format!("its address {address} is outside of the subnets of network {name}, or another task has it")),
    }
}

/// Why a running task takes nothing new.
pub(super) fn drain_reason(view: &View, task: &Task) -> String {
    let node = task.node.as_ref().and_then(|id| view.snapshot.nodes.get(id));
    match node.map(AsRef::<Node>::as_ref) {
        Some(node) if node.state == NodeState::Down => format!("its node {} is down", node.hostname),
        Some(node) if task.is_usable() && view.is_out_of_reach(task) => {
            format!("no overlay leads to it: Docker's gossip has lost its node {}", node.hostname)
        }
        _ if task.healthy == Some(false) => "its health check fails".to_owned(),
        _ => format!("is shutting down (desired: {})", word(task.desired_state)),
    }
}

fn word(state: TaskState) -> String {
    serde_json::json!(state).as_str().unwrap_or_default().to_owned()
}

/// `web.1.x on node2 (10.0.0.5)`, joined.
pub(super) fn names(view: &View, backends: impl Iterator<Item = (TaskId, std::net::IpAddr)>) -> String {
    let name = |(task, address): (TaskId, std::net::IpAddr)| format!("{} on {} ({address})", view.task_name(&task), view.task_node(&task));
    backends.map(name).collect::<Vec<_>>().join(", ")
}
