//! A whole swarm, simulated: what the managers of a Docker Swarm would decide, without clock, threads or network.
//!
//! The same calls in the same order give the same ids, addresses and placement. The runtime that really starts processes
//! tells the swarm what it [observes](Swarm::observe), and asks it what to do with [`Swarm::reconcile`].

mod deploy;
mod ids;
mod ipam;
mod network;
mod node;
mod placement;
mod reconcile;
mod rollout;
mod service;
mod state;
mod task;
mod types;
mod view;

#[cfg(test)]
mod tests;

pub use deploy::snapshot_of;
pub use state::Swarm;
pub use types::{
    Action, AddressPool, Changes, ContainerSpec, DEFAULT_MTU, IngressSpec, InterfaceAddress, NodeEndpoint, NodeSpec, Observed, SwarmConfig,
    SwarmError, TaskNetwork, TaskSpec, UpdateOptions, UpdateState,
};
pub use view::ServiceStatus;
