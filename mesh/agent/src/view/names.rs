//! `/v1/names`: what this node's containers can ask for, and what they are told.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use swarmesh_model::NetworkId;

use super::View;

/// One name in one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameRow {
    pub network: String,
    pub name: String,
    /// `service`, `tasks` or `task`.
    pub kind: String,
    /// Whose name it is.
    pub owner: String,
    /// Empty: the name is known and leads nowhere, since nobody serves.
    pub addresses: Vec<IpAddr>,
}

/// The names in the networks of this node's containers; all networks' with `everything`.
pub fn names(view: &View, everything: bool) -> Vec<NameRow> {
    let visible: BTreeSet<&NetworkId> = view.plan.names.askers.values().flat_map(|a| a.networks.iter().map(|n| &n.network)).collect();
    let networks = view.plan.names.networks.iter().filter(|(id, _)| everything || visible.contains(id));
    let mut rows = Vec::new();
    for (id, network) in networks {
        let mut row = |name: &str, kind: &str, owner: &str, addresses: Vec<IpAddr>| {
            rows.push(NameRow {
                network: network.name.clone(),
                name: name.to_owned(),
                kind: kind.to_owned(),
                owner: owner.to_owned(),
                addresses,
            });
        };
        for service in view.plan.names.services.values() {
            let Some(zone) = service.in_network(id) else { continue };
            let owner = format!("service {}", service.name);
            let tasks: Vec<IpAddr> = zone.serving().map(|b| b.address).collect();
            for name in service.names_in(zone) {
                row(name, "service", &owner, if zone.is_dnsrr { tasks.clone() } else { zone.vips.to_vec() });
                row(&format!("tasks.{name}"), "tasks", &owner, tasks.clone());
            }
        }
        for named in view.plan.names.tasks.values() {
            let mut legs = named.task.addresses.iter().filter(|a| a.network == *id).peekable();
            if legs.peek().is_none() {
                continue;
            }
            let owner = format!("{} {}", if named.task.service.is_some() { "task" } else { "container" }, named.task.name);
            let addresses: Vec<IpAddr> = named.addresses_in(id).collect();
            let names: BTreeSet<Arc<str>> =
                named.names().into_iter().chain(legs.flat_map(|a| &a.aliases).map(|a| a.to_ascii_lowercase().into())).collect();
            for name in names {
                row(&name, "task", &owner, addresses.clone());
            }
        }
    }
    rows.sort();
    rows
}
