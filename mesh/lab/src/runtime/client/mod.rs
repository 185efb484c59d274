//! The commands' side: they ask the supervisor, or look for themselves where it cannot help.

mod exec;
mod logs;
mod progress;
mod table;
mod target;
mod up;
mod wait;

pub use exec::exec;
pub use logs::logs;
pub use progress::Progress;
pub use table::render;
pub use up::{StackFile, UpOptions, deploy, read_stack, up};
pub use wait::wait;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{
    LabName, RuntimeError,
    control::Control,
    protocol::{AgentAction, LabStatus, Reply, Request},
    sweep,
};
use crate::swarm::{Changes, ContainerSpec, UpdateOptions};

const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    Said(String),
    Changed(Changes),
}

pub(super) fn require_root() -> Result<(), RuntimeError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(RuntimeError::NotRoot) }
}

fn ask(lab: &LabName, request: &Request) -> Result<Outcome, RuntimeError> {
    require_root()?;
    match Control::connect(lab)?.call(request, |_| {})? {
        Reply::Done(text) => Ok(Outcome::Said(text)),
        Reply::Changes(changes) => Ok(Outcome::Changed(changes)),
        _ => Err(RuntimeError::Refused("the supervisor answered another question".to_owned())),
    }
}

pub fn status(lab: &LabName) -> Result<LabStatus, RuntimeError> {
    require_root()?;
    Control::connect(lab)?.status()
}

/// As [`status`]; what the supervisor has last written when it is gone.
pub(super) fn last_status(lab: &LabName) -> Result<LabStatus, RuntimeError> {
    status(lab).or_else(|error| {
        let saved = fs::read_to_string(lab.state()).ok().and_then(|text| serde_json::from_str(&text).ok());
        saved.ok_or(error)
    })
}

/// Each service's name with the replicas that it shall have. All or none.
pub fn scale(lab: &LabName, services: Vec<(String, u64)>) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Scale(services))
}

pub fn update(lab: &LabName, service: String, options: UpdateOptions) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Update { service, options })
}

/// Removes a service, a plain container or a stack.
pub fn remove(lab: &LabName, name: String) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Remove(name))
}

/// Kills a task's process, or cuts a node's power.
pub fn kill(lab: &LabName, name: &str) -> Result<Outcome, RuntimeError> {
    let status = status(lab)?;
    if status.nodes.iter().any(|n| n.machine.name == name || n.id == name) {
        return ask(lab, &Request::Kill(name.to_owned()));
    }
    let task = target::task(&status, name)?;
    let outcome = ask(lab, &Request::Kill(task.id.clone()))?;
    // So that whoever looks next sees what came of it.
    let deadline = Instant::now() + KILL_PATIENCE;
    while Instant::now() < deadline && self::status(lab)?.tasks.iter().any(|t| t.id == task.id && t.process.is_some()) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(outcome)
}

pub fn start_node(lab: &LabName, node: String) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::StartNode(node))
}

pub fn set_availability(lab: &LabName, node: String, availability: swarmesh_model::Availability) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Availability { node, availability })
}

pub fn run_container(lab: &LabName, spec: ContainerSpec) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Run(Box::new(spec)))
}

pub fn agent(lab: &LabName, node: String, action: AgentAction, plane: Option<String>) -> Result<Outcome, RuntimeError> {
    ask(lab, &Request::Agent { node, action, plane })
}

/// True when there was something to take down.
pub fn down(lab: &LabName) -> Result<bool, RuntimeError> {
    require_root()?;
    let there = sweep::exists(lab);
    sweep::take_down(lab)?;
    Ok(there)
}
