//! Swarm objects with Docker's meanings, the versioned [`Snapshot`] that holds them, and the [`Delta`] between two.
//!
//! Nothing here does I/O. A source builds snapshots, the plan reads them, and nobody else knows where they came from.
#![forbid(unsafe_code)]

mod compact;
mod delta;
mod engine;
mod file;
mod id;
mod objects;
mod problem;
mod shared_map;
mod snapshot;

pub use delta::{Changes, Delta};
pub use engine::HostLayout;
pub use file::{FileError, schema};
pub use id::{Id, NetworkId, NodeId, ServiceId, TaskId};
pub use objects::{
    Availability, ContainerDns, ContainerRouting, EndpointMode, Network, Node, NodeState, Port, Protocol, PublishMode, Role, Service,
    ServiceNetwork, Subnet, Task, TaskAddress, TaskState, VirtualIp,
};
pub use problem::Problem;
pub use shared_map::SharedMap;
pub use snapshot::Snapshot;
