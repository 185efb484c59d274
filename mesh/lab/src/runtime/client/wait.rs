//! Waiting until everything runs.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use swarmesh_model::TaskState;

use super::{Progress, require_root};
use crate::runtime::{
    LabName, RuntimeError,
    control::Control,
    health::http_status,
    names::netns_path,
    netns,
    protocol::{AgentState, LabStatus, NodeStatus, TaskRow},
};

const PAUSE: Duration = Duration::from_millis(100);
const LISTEN: Duration = Duration::from_secs(20);
/// The agent's admin API, on its node's loopback.
const ADMIN_PORT: u16 = 9790;

/// Returns when every task runs and every agent has applied what it knows.
pub fn wait(lab: &LabName, timeout: Duration, progress: &mut Progress) -> Result<(), RuntimeError> {
    require_root()?;
    let mut control = Control::connect(lab)?;
    let deadline = Instant::now() + timeout;
    loop {
        let status = control.status()?;
        let pending = pending(&status)?;
        if pending.is_empty() {
            let_servers_listen(&status);
            let running: u64 = status.services.iter().map(|s| s.running).sum();
            progress.line(&format!("{running} tasks of {} services run", status.services.len()));
            return Ok(());
        }
        let pending = pending.join(", ");
        if Instant::now() > deadline {
            return Err(RuntimeError::NotReady { seconds: timeout.as_secs(), pending });
        }
        progress.transient(&format!("waiting for {pending}"));
        thread::sleep(PAUSE);
    }
}

/// A task without a health check runs from its first instruction on. The built-in server needs a moment more, which
/// whoever waits for the lab does not want to know about.
fn let_servers_listen(status: &LabStatus) {
    let is_late = |name: &str| matches!(name, "WHOAMI_READY_AFTER" | "WHOAMI_FAIL");
    let servers = status.tasks.iter().filter_map(|t| t.process.as_ref()).filter(|p| p.built_in);
    let prompt: Vec<_> = servers.filter(|p| !p.environment.keys().any(|name| is_late(name))).collect();
    let deadline = Instant::now() + LISTEN;
    while Instant::now() < deadline && prompt.iter().any(|p| is_silent(p.id.pid)) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// It is there and does not listen yet.
fn is_silent(pid: u32) -> bool {
    // The kernel's own view of the process's namespace; state 0A is LISTEN.
    let tables = ["tcp6", "tcp"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    let is_there = tables.iter().any(Result::is_ok);
    is_there && !tables.iter().flatten().flat_map(|text| text.lines().skip(1)).any(|line| line.split_whitespace().nth(3) == Some("0A"))
}

fn pending(status: &LabStatus) -> Result<Vec<String>, RuntimeError> {
    let mut pending: Vec<String> = status
        .services
        .iter()
        .filter(|s| s.running < s.wanted || s.update.is_some_and(|u| u == crate::swarm::UpdateState::Updating))
        .map(|s| format!("{} {}/{}", s.name, s.running, s.wanted))
        .collect();
    // Those of a node that is off leave when it is back.
    let is_off = |task: &TaskRow| status.nodes.iter().any(|n| !n.powered && Some(&n.machine.name) == task.node.as_ref());
    let here = || status.tasks.iter().filter(|t| !is_off(t));
    let leaving = here().filter(|t| t.desired_state != TaskState::Running && t.process.is_some()).count();
    if leaving > 0 {
        pending.push(format!("{leaving} tasks on their way out"));
    }
    // A global service that wants one on each node does not count them as missing.
    let failed = here().filter(|t| t.state == TaskState::Failed).count();
    if failed > 0 {
        pending.push(format!("{failed} failed tasks"));
    }
    if !pending.is_empty() {
        // What keeps them is worth more than the numbers.
        pending.extend(status.problems.iter().take(1).map(ToString::to_string));
    }
    for node in status.nodes.iter().filter(|n| n.powered) {
        match node.agent {
            None => {}
            Some(AgentState::Running(_)) if is_ready(node)? => {}
            Some(AgentState::Running(_) | AgentState::Off) => pending.push(format!("the agent of {}", node.machine.name)),
            Some(AgentState::Exited { code }) => {
                let node = &node.machine.name;
                return Err(RuntimeError::Refused(format!("the agent of {node} ended with exit code {code}; see `lab logs {node}`")));
            }
        }
    }
    Ok(pending)
}

fn is_ready(node: &NodeStatus) -> Result<bool, RuntimeError> {
    netns::within(&netns_path(&node.machine.netns), || {
        Ok(http_status((Ipv4Addr::LOCALHOST, ADMIN_PORT).into(), "/readyz", Duration::from_secs(1)) == Some(200))
    })
}
