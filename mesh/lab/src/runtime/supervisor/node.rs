//! Nodes and their agents.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use swarmesh_model::{NodeId, TaskId};

use super::{Event, Supervisor, Timer};
use crate::{
    runtime::{
        RuntimeError,
        error::Doing,
        layout::{NodeLayout, Overlay},
        names::{LabName, netns_path},
        netns,
        process::{self, Place, Running},
        protocol::{AgentAction, AgentState},
    },
    swarm::{NodeEndpoint, Observed},
};

pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct NodeRun {
    pub(super) id: NodeId,
    pub(super) layout: NodeLayout,
    pub(super) powered: bool,
    /// Tasks that ended with the node, which the swarm is told when it is back.
    pub(super) lost: Vec<TaskId>,
    pub(super) agent: Agent,
    /// Of its agent, when it is not the lab's.
    pub(super) plane: Option<String>,
}

#[derive(Debug)]
pub(super) enum Agent {
    Off,
    Running {
        process: Running,
        /// Start another one when this one has ended.
        again: bool,
    },
    Exited(i32),
}

impl NodeRun {
    pub(super) fn agent_state(&self) -> AgentState {
        match &self.agent {
            Agent::Off => AgentState::Off,
            Agent::Running { process, .. } => AgentState::Running(process.id()),
            Agent::Exited(code) => AgentState::Exited { code: *code },
        }
    }

    /// Every namespace on the node.
    fn namespaces(&self) -> BTreeSet<netns::Identity> {
        let own = self.layout.netns();
        let all = netns::list(&format!("{own}-")).into_iter().chain([own]);
        all.filter_map(|name| netns::identity(&netns_path(&name))).collect()
    }
}

pub(crate) fn agent_log(lab: &LabName, node: &str) -> PathBuf {
    lab.node_dir(node).join("agent.log")
}

impl Supervisor {
    pub(super) fn find_node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.layout.hostname() == name || n.id.as_str() == name)
    }

    fn ingress_of(&mut self, index: usize) -> Option<(NodeEndpoint, Overlay)> {
        let id = &self.nodes[index].id;
        let endpoint = self.swarm.node_endpoints().into_iter().find(|e| e.ingress && e.node == *id)?;
        let overlay = self.overlays.describe(&endpoint.network, endpoint.mtu, &endpoint.addresses);
        Some((endpoint, overlay))
    }

    pub(super) fn power_on(&mut self, index: usize) -> Result<(), RuntimeError> {
        let ingress = self.ingress_of(index);
        let node = &mut self.nodes[index];
        node.layout.power_on(ingress.as_ref().map(|(endpoint, overlay)| (endpoint, overlay)))?;
        // Without a name server, unless one was asked for: nothing is to leave the lab by itself.
        let resolv_conf = self.lab.node_resolv_conf(node.layout.hostname());
        let text: String = self.setup.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        fs::write(&resolv_conf, text).doing(|| format!("writing {}", resolv_conf.display()))?;
        node.powered = true;
        Ok(())
    }

    /// Cuts the power: no process says goodbye, and the managers notice after the heartbeat only.
    pub(super) fn power_off(&mut self, index: usize) -> Result<(), RuntimeError> {
        self.nodes[index].powered = false;
        process::kill_inside(&self.nodes[index].namespaces(), KILL_PATIENCE)?;
        // Also those that have left their namespaces.
        self.tasks.values().filter(|t| t.node == index).for_each(|t| t.signal(Signal::SIGKILL));
        let gone: Vec<TaskId> = self.tasks.iter().filter(|(_, t)| t.node == index).map(|(id, _)| id.clone()).collect();
        self.tasks_ended(gone);
        if let Agent::Running { process, .. } = std::mem::replace(&mut self.nodes[index].agent, Agent::Off) {
            self.nodes[index].agent = Agent::Exited(process.finish());
        }
        self.nodes[index].layout.power_off()?;
        self.state_changed = true;
        self.set_timer(self.setup.heartbeat, Timer::NodeLost(index));
        Ok(())
    }

    pub(super) fn node_lost(&mut self, index: usize) {
        let node = &self.nodes[index];
        if !node.powered
            && let Err(error) = self.swarm.node_down(node.id.as_str())
        {
            tracing::warn!("{error}");
        }
    }

    pub(super) fn boot(&mut self, index: usize) -> Result<(), RuntimeError> {
        self.power_on(index)?;
        for task in std::mem::take(&mut self.nodes[index].lost) {
            self.swarm.observe(&task, Observed::Exited(128 + Signal::SIGKILL as i32));
        }
        self.swarm.node_up(self.nodes[index].id.as_str())?;
        // Its ports are those that the others have.
        self.written = None;
        self.start_agent(index)
    }

    /// No error in a lab without agents.
    pub(super) fn start_agent(&mut self, index: usize) -> Result<(), RuntimeError> {
        let Some(setup) = &self.setup.agents else { return Ok(()) };
        let node = self.nodes[index].layout.hostname().to_owned();
        let program = setup.program.clone().unwrap_or_else(|| self.own_program());
        let state = self.lab.node_dir(&node).join("state");
        fs::create_dir_all(&state).doing(|| format!("making {}", state.display()))?;
        let mut command = process::detached(&program, &agent_log(&self.lab, &node))?;
        command
            .arg("agent")
            .arg("--source")
            .arg(format!("snapshot:{}", self.lab.snapshot().display()))
            .args(["--node", &node])
            .arg("--netns-dir")
            .arg(self.lab.node_netns_dir(&node))
            .arg("--state-dir")
            .arg(state)
            .arg("--resolv-conf")
            .arg(self.lab.node_resolv_conf(&node))
            .args(["--plane", self.nodes[index].plane.as_ref().unwrap_or(&setup.plane)])
            .args(&setup.args);
        let place = Place { netns: netns_path(&self.nodes[index].layout.netns()), container: None };
        let child = process::spawn(&place, &mut command)?;
        let (events, pid) = (self.events.clone(), child.id());
        let process = Running::watch(child, move || drop(events.send(Event::AgentEnded(index, pid))))?;
        tracing::info!(node, pid, "agent started");
        self.nodes[index].agent = Agent::Running { process, again: false };
        self.state_changed = true;
        Ok(())
    }

    pub(super) fn agent_ended(&mut self, index: usize, pid: u32) {
        let node = &mut self.nodes[index];
        match std::mem::replace(&mut node.agent, Agent::Off) {
            Agent::Running { process, again } if process.pid() == pid => {
                let code = process.reap();
                tracing::info!(node = node.layout.hostname(), code, "agent ended");
                node.agent = Agent::Exited(code);
                self.state_changed = true;
                if again && let Err(error) = self.start_agent(index) {
                    tracing::error!("{error}");
                }
            }
            // Of an earlier one.
            other => node.agent = other,
        }
    }

    pub(super) fn agent_action(&mut self, node: &str, action: AgentAction, plane: Option<String>) -> Result<String, RuntimeError> {
        let refuse = |message: &str| Err(RuntimeError::Refused(message.to_owned()));
        let Some(index) = self.find_node(node) else { return refuse(&format!("there is no node {node}")) };
        if self.setup.agents.is_none() {
            return refuse("this lab runs no agents");
        }
        if !self.nodes[index].powered {
            return refuse(&format!("{node} is off"));
        }
        if plane.is_some() {
            self.nodes[index].plane = plane;
        }
        match (&mut self.nodes[index].agent, action) {
            (Agent::Running { .. }, AgentAction::Start) => refuse("it runs already"),
            (Agent::Running { process, .. }, AgentAction::Stop) => {
                process.signal(Signal::SIGTERM);
                Ok(format!("stopping the agent of {node}"))
            }
            (Agent::Running { process, .. }, AgentAction::Kill) => {
                process.signal(Signal::SIGKILL);
                Ok(format!("killed the agent of {node}"))
            }
            (Agent::Running { process, again }, AgentAction::Restart) => {
                process.signal(Signal::SIGTERM);
                *again = true;
                Ok(format!("restarting the agent of {node}"))
            }
            (_, AgentAction::Start | AgentAction::Restart) => {
                self.start_agent(index)?;
                Ok(format!("started the agent of {node}"))
            }
            (_, AgentAction::Stop | AgentAction::Kill) => refuse("it does not run"),
        }
    }

    /// The end of the lab: nothing has to end well.
    pub(super) fn kill_everything(&mut self) {
        let all = self.nodes.iter().flat_map(NodeRun::namespaces).collect();
        if let Err(error) = process::kill_inside(&all, KILL_PATIENCE) {
            tracing::error!("{error}");
            return;
        }
        for (_, run) in std::mem::take(&mut self.tasks) {
            run.process.finish();
        }
        for node in &mut self.nodes {
            if let Agent::Running { process, .. } = std::mem::replace(&mut node.agent, Agent::Off) {
                process.finish();
            }
        }
    }
}
