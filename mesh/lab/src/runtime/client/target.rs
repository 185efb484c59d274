//! Finding what a command line means: a node, a client, a task, or another namespace of a node.

use std::path::PathBuf;

use crate::runtime::{
    LabName, RuntimeError,
    names::netns_path,
    protocol::{LabStatus, TaskRow},
};

/// Where a command can be run, or whose log can be read.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// A node, a client or the LAN; the namespace's path.
    Machine(PathBuf),
    Task(&'a TaskRow),
}

pub(super) fn find<'a>(lab: &LabName, status: &'a LabStatus, name: &str) -> Result<Target<'a>, RuntimeError> {
    if let Some(node) = status.nodes.iter().find(|n| n.machine.name == name || n.id == name) {
        if !node.powered {
            return Err(RuntimeError::Refused(format!("{name} is off")));
        }
        return Ok(Target::Machine(netns_path(&node.machine.netns)));
    }
    if let Some(client) = status.clients.iter().find(|c| c.name == name) {
        return Ok(Target::Machine(netns_path(&client.netns)));
    }
    if name == "lan" {
        return Ok(Target::Machine(netns_path(&lab.netns("lan"))));
    }
    if let Some((node, inner)) = name.split_once('/')
        && status.nodes.iter().any(|n| n.machine.name == node)
        && !inner.contains('/')
    {
        let path = lab.node_netns_dir(node).join(inner);
        return if path.exists() { Ok(Target::Machine(path)) } else { Err(unknown(name, "")) };
    }
    task(status, name).map(Target::Task)
}

/// A task by its id, its name, or the beginning of one up to a dot; the stack's name may be left out.
pub(super) fn task<'a>(status: &'a LabStatus, name: &str) -> Result<&'a TaskRow, RuntimeError> {
    let begins = |full: &str| full.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let named = |t: &TaskRow| begins(&t.name) || t.name.split_once('_').is_some_and(|(_, own)| begins(own));
    let by_id = |t: &TaskRow| name.len() >= 4 && t.id.starts_with(name);
    let mut found: Vec<&TaskRow> = status.tasks.iter().filter(|t| named(t) || by_id(t)).collect();
    // During an update two tasks share a slot: the one that stays is meant.
    if found.len() > 1 && found.iter().any(|t| is_wanted(t)) {
        found.retain(|t| is_wanted(t));
    }
    match found.as_slice() {
        [] => Err(unknown(name, "; `lab status` lists the nodes and tasks")),
        [one] => Ok(one),
        several => Err(RuntimeError::Ambiguous {
            name: name.to_owned(),
            candidates: several.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn is_wanted(task: &TaskRow) -> bool {
    task.desired_state == swarmesh_model::TaskState::Running && task.process.is_some()
}

fn unknown(name: &str, hint: &str) -> RuntimeError {
    RuntimeError::Unknown { name: name.to_owned(), hint: hint.to_owned() }
}
