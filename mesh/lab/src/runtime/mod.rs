//! The emulator at work: namespaces for machines, a supervisor that runs the swarm, and the commands that talk to it.

pub mod client;
mod container_files;
mod control;
mod error;
mod health;
mod layout;
mod listener;
mod names;
mod netns;
mod process;
mod program;
mod protocol;
mod rules;
mod sandbox;
mod supervisor;
mod sweep;
mod tools;

pub use error::RuntimeError;
pub(crate) use layout::{MOST_CLIENTS, MOST_NODES};
pub use names::LabName;
pub use process::ProcessId;
pub use protocol::{
    AgentAction, AgentSetup, AgentState, LabStatus, MachineStatus, NetworkStatus, NodeStatus, ServiceRow, Setup, TaskProcess, TaskRow,
};
pub use rules::Layout;

/// Runs a lab's supervisor in this process, until the lab is taken down.
pub fn supervise(lab: &LabName) -> Result<(), RuntimeError> {
    supervisor::run(lab)
}
