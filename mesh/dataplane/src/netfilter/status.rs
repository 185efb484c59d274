//! What the plane tells of itself: its places, and what it cannot do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    time::Instant,
};

use serde::Serialize;
use swarmesh_model::{Problem, ServiceId, TaskId};
use swarmesh_plan::{PlanDelta, Policy, Scheduler};

use super::{Balancing, INGRESS_SANDBOX, NetfilterPlane, Place, Record, ingress::IngressTable, task::TaskTable};
use crate::virtuals::virtual_scheduler;

/// What was found of Docker's arrangement on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// The bridge between the node and the ingress sandbox.
    pub bridge: String,
    /// Docker up to 29.7, with its `DOCKER-INGRESS` chains.
    pub old_layout: bool,
    /// Published ports answer over IPv6.
    pub ipv6: bool,
}

/// One place, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct PlaceStatus {
    /// `node`, `ingress`, `task web.1.x2m…`.
    pub place: String,
    pub path: PathBuf,
    pub state: PlaceState,
    /// Why it is pending; empty when it is not.
    pub error: String,
    pub since_seconds: u64,
    /// VIPs or published ports that it holds.
    pub fronts: usize,
    /// How often somebody else's change was undone here.
    pub healed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaceState {
    Applied,
    Pending,
}

/// The plane as a whole, for `status` and `/metrics`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlaneStatus {
    /// `nft` or `ipvs`; empty before the first look.
    pub name: &'static str,
    /// IPVS picks, by marks of ours.
    pub virtual_servers: bool,
    pub places: Vec<PlaceStatus>,
    pub problems: Vec<Problem>,
    pub host: Option<HostFacts>,
    /// Tasks of this node that published ports reach directly, and their addresses on the node's bridge.
    pub near: BTreeMap<TaskId, Ipv4Addr>,
    /// Transactions and the operations in them. Neither grows while nothing changes.
    pub commits: u64,
    pub operations: u64,
    pub errors: u64,
    pub healed: u64,
}

impl NetfilterPlane {
    pub fn status(&self, now: Instant) -> PlaneStatus {
        PlaneStatus {
            name: self.config.balancing.name(),
            virtual_servers: self.config.balancing != Balancing::Nft,
            places: self.records.iter().map(|(place, record)| self.place_status(place, record, now)).collect(),
            problems: self.problems.values().cloned().collect(),
            host: self.node.as_ref().map(|n| n.facts().clone()),
            near: self.ingress.as_ref().map(|i| self.doors.addresses(i.facts().gateway)).unwrap_or_default(),
            commits: self.work(),
            operations: self.tables().map(|t| t.counts.operations).sum::<u64>() + self.closed.operations,
            errors: self.errors,
            healed: self.healed,
        }
    }

    fn place_status(&self, place: &Place, record: &Record, now: Instant) -> PlaceStatus {
        let path = match place {
            Place::Ingress => self.config.netns_dir.join(INGRESS_SANDBOX),
            Place::Node => PathBuf::from("/proc/self/ns/net"),
            Place::Task(id) => self.plan.sandboxes.get(id).map(|s| self.config.netns_dir.join(&s.sandbox)).unwrap_or_default(),
        };
        PlaceStatus {
            place: self.name(place),
            path,
            state: if record.pending.is_some() { PlaceState::Pending } else { PlaceState::Applied },
            error: record.pending.as_ref().map(|p| p.error.to_string()).unwrap_or_default(),
            since_seconds: now.saturating_duration_since(record.since).as_secs(),
            fronts: match place {
                Place::Ingress => self.ingress.as_ref().map_or(0, IngressTable::fronts),
                Place::Node => self.plan.published.len(),
                Place::Task(id) => self.tasks.get(id).map_or(0, TaskTable::fronts),
            },
            healed: record.healed,
        }
    }

    /// What this plane cannot do for a service, it says.
    pub(super) fn note_problems(&mut self, delta: &PlanDelta) {
        let vips = delta.vips.values().flat_map(|v| v.values().flatten()).map(|s| (&s.service, &s.name, &s.policy));
        let ports = delta.published.values().flatten().map(|p| (&p.service, &p.name, &p.policy));
        for (service, name, policy) in vips.chain(ports) {
            match unsupported(policy, &self.config.balancing) {
                Some(message) => {
                    self.problems.insert(service.clone(), Problem::new(format!("service {name}"), "swarmesh.scheduler", message));
                }
                None => {
                    self.problems.remove(service);
                }
            }
        }
        let gone = delta.vips.values().any(|v| v.values().any(Option::is_none)) || delta.published.values().any(Option::is_none);
        if gone && !self.problems.is_empty() {
            let vips = self.plan.networks.values().flat_map(|v| v.values().map(|s| s.service.clone()));
            let served: BTreeSet<ServiceId> = vips.chain(self.plan.published.values().map(|p| p.service.clone())).collect();
            self.problems.retain(|service, _| served.contains(service));
        }
    }
}

fn unsupported(policy: &Policy, balancing: &Balancing) -> Option<String> {
    let scheduler = policy.scheduler;
    let name = match scheduler {
        Scheduler::RoundRobin => return None,
        Scheduler::Random => "random",
        Scheduler::WeightedRoundRobin => "wrr (weighted round robin)",
        Scheduler::LeastConnections => "lc (least connections)",
        Scheduler::WeightedLeastConnections => "wlc (weighted least connections)",
        Scheduler::SourceHash => "sh (source hash)",
        Scheduler::Maglev => "maglev",
    };
    match balancing {
        Balancing::Nft => match scheduler {
            // All tasks of a service weigh the same.
            Scheduler::RoundRobin | Scheduler::WeightedRoundRobin | Scheduler::Random | Scheduler::SourceHash => None,
            _ => Some(format!("the nft plane cannot do {name}; rr is used. It can do rr, random and sh")),
        },
        Balancing::Ipvs { schedulers } if schedulers.contains(&scheduler) => None,
        Balancing::Ipvs { .. } => Some(match virtual_scheduler(scheduler) {
            Some(module) => {
                let module = module.name();
                format!(
                    "this kernel has no module ip_vs_{module} for {name}; rr is used. Load it (modprobe ip_vs_{module}) and restart the agent"
                )
            }
            None => format!("the ipvs plane cannot do {name}; rr is used. It can do rr, wrr, lc, wlc, sh and maglev"),
        }),
    }
}
