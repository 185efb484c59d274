//! `/v1/endpoints`: every VIP and published port with the tasks behind it.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use swarmesh_model::{NetworkId, Protocol};
use swarmesh_plan::{Backend, BackendState};

use super::View;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    pub service: String,
    pub front: Front,
    /// Every namespace that needs it has it.
    pub applied: bool,
    /// The namespaces that do not have it yet.
    pub pending: Vec<String>,
    pub backends: Vec<BackendRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Front {
    /// Translated in the sandboxes of this node's tasks.
    Vip { network: String, address: IpAddr },
    /// Answered on this node's addresses.
    Port { protocol: Protocol, published: u16, target: u16, refuses: bool },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendRow {
    pub address: IpAddr,
    pub task: String,
    pub task_id: String,
    pub node: String,
    /// `ready` or `draining`.
    pub state: String,
}

pub fn endpoints(view: &View) -> Vec<EndpointRow> {
    let mut rows = Vec::new();
    let pending_in = pending_by_network(view);
    for (network, vips) in &view.plan.networks {
        let name = view.snapshot.networks.get(network).map_or_else(|| network.short().to_owned(), |n| n.name.clone());
        let pending = pending_in.get(network).cloned().unwrap_or_default();
        rows.extend(vips.iter().map(|(address, vip)| EndpointRow {
            service: vip.name.clone(),
            front: Front::Vip { network: name.clone(), address: *address },
            applied: pending.is_empty(),
            pending: pending.clone(),
            backends: backends(view, &vip.backends),
        }));
    }
    let pending: Vec<String> =
        view.pending_places().filter(|p| p.place == "node" || p.place == "ingress").map(|p| p.place.clone()).collect();
    rows.extend(view.plan.published.iter().map(|((protocol, number), port)| EndpointRow {
        service: port.name.clone(),
        front: Front::Port { protocol: *protocol, published: *number, target: port.target_port, refuses: port.refuse },
        applied: pending.is_empty(),
        pending: pending.clone(),
        backends: backends(view, &port.backends),
    }));
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

fn pending_by_network(view: &View) -> BTreeMap<NetworkId, Vec<String>> {
    let mut pending: BTreeMap<NetworkId, Vec<String>> = BTreeMap::new();
    for place in view.pending_places() {
        let sandbox = view.plan.sandboxes.values().find(|s| place.place.strip_prefix("task ") == Some(&s.name));
        for network in sandbox.iter().flat_map(|s| &s.networks) {
            pending.entry(network.clone()).or_default().push(place.place.clone());
        }
    }
    pending
}

pub(super) fn backends(view: &View, backends: &[Backend]) -> Vec<BackendRow> {
    let row = |b: &Backend| BackendRow {
        address: b.address,
        task: view.task_name(&b.task),
        task_id: b.task.to_string(),
        node: view.task_node(&b.task),
        state: match b.state {
            BackendState::Ready => "ready",
            BackendState::Draining => "draining",
        }
        .to_owned(),
    };
    backends.iter().map(row).collect()
}
