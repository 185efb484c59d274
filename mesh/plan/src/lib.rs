//! From a [`Snapshot`](swarmesh_model::Snapshot) to what one node must do about it.
//!
//! The plan is pure: no I/O, no clock, no randomness. [`Planner`] is its incremental form: it takes deltas and gives
//! deltas, at a cost that follows the change, and always ends where [`plan`] of the whole snapshot ends; only a
//! foothold stays where it was first found.
#![forbid(unsafe_code)]

mod added;
mod names;
mod node_plan;
mod planner;
mod policy;
mod routes;

pub use added::{Added, host_workload, labels_of_host};
pub use names::{AskerNetwork, AskerPlan, NameDelta, NamePlan, NamedNetwork, NamedPort, NamedTask, Odd, ServiceNames, ServiceZone};
pub use node_plan::{
    Backend, BackendState, Ingress, NodePlan, PlanDelta, PortKey, PublishedPort, SandboxPlan, TaskIngress, VipChanges, VirtualService,
};
pub use planner::{NodeContext, Planner, Takeover, plan};
pub use policy::{Policy, Scheduler, SourceMode};
pub use routes::{OwnerKey, OwnerRoutes, RouteDelta, RoutePlan, RoutedContainer, RoutedNetwork, RoutedService};
