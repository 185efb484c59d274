//! What the commands and the supervisor say to each other: one JSON object a line.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use swarmesh_model::{Availability, EndpointMode, Port, Role, TaskState};

use super::{process::ProcessId, rules::Layout};
use crate::swarm::{Changes, ContainerSpec, UpdateOptions, UpdateState};

/// How a lab is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    pub nodes: u8,
    pub managers: u8,
    pub clients: u8,
    pub layout: Layout,
    /// `None`: the swarm has no ingress network.
    pub ingress: Option<String>,
    /// Give the ingress network and docker_gwbridge an IPv6 subnet too.
    pub ingress_v6: bool,
    /// The nodes' name servers.
    pub dns: Vec<IpAddr>,
    /// Of nodes and sandboxes: distributions differ.
    pub rp_filter: u8,
    /// Absent: the nodes run no agent.
    pub agents: Option<AgentSetup>,
    /// From a node's failure until the managers notice.
    pub heartbeat: Duration,
    pub restart_delay: Option<Duration>,
    pub convergence_delay: Option<Duration>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentSetup {
    /// Absent: this program.
    pub program: Option<PathBuf>,
    pub plane: String,
    pub args: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Setup(Setup),
    Deploy {
        file: String,
        text: String,
        stack: String,
        environment: BTreeMap<String, String>,
        prune: bool,
    },
    Status,
    Scale(Vec<(String, u64)>),
    Update {
        service: String,
        options: UpdateOptions,
    },
    Remove(String),
    /// A task's or a node's name.
    Kill(String),
    StartNode(String),
    Availability {
        node: String,
        availability: Availability,
    },
    Run(Box<ContainerSpec>),
    Agent {
        node: String,
        action: AgentAction,
        /// From now on, its `--plane`.
        plane: Option<String>,
    },
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum AgentAction {
    /// SIGTERM
    Stop,
    /// SIGKILL
    Kill,
    Start,
    /// Stop, wait for the end, start
    Restart,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// More follows.
    Progress(String),
    Done(String),
    Changes(Changes),
    Status(Box<LabStatus>),
    Failed(String),
}

/// Everything there is to know of a lab, as `lab status --output json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabStatus {
    pub name: String,
    pub layout: Layout,
    pub supervisor: u32,
    /// The snapshot's.
    pub version: u64,
    /// Everything is as the stacks want it.
    pub settled: bool,
    pub snapshot: PathBuf,
    pub nodes: Vec<NodeStatus>,
    pub clients: Vec<MachineStatus>,
    pub networks: Vec<NetworkStatus>,
    pub services: Vec<ServiceRow>,
    pub tasks: Vec<TaskRow>,
    pub problems: Vec<swarmesh_model::Problem>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineStatus {
    pub name: String,
    pub netns: String,
    pub address: IpAddr,
    pub address_v6: IpAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub id: String,
    #[serde(flatten)]
    pub machine: MachineStatus,
    pub role: Role,
    /// The managers see it.
    pub up: bool,
    /// It really runs.
    pub powered: bool,
    pub availability: Availability,
    /// Absent in a lab without agents.
    pub agent: Option<AgentState>,
    /// The ingress sandbox's addresses on the ingress network.
    pub ingress: Vec<IpAddr>,
    /// The node's own, as the machine that the lab runs on has it.
    pub resolv_conf: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    Running(ProcessId),
    /// Ended, or was ended.
    Exited {
        code: i32,
    },
    /// Not started yet.
    Off,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub id: String,
    pub name: String,
    pub ingress: bool,
    pub internal: bool,
    pub attachable: bool,
    pub subnets: Vec<IpNet>,
    /// Absent until the first task joins.
    pub vni: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    pub name: String,
    pub global: bool,
    pub wanted: u64,
    pub running: u64,
    pub update: Option<UpdateState>,
    pub endpoint_mode: EndpointMode,
    pub ports: Vec<Port>,
    /// By the network's name.
    pub vips: Vec<(String, IpAddr)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRow {
    pub id: String,
    pub name: String,
    pub service: Option<String>,
    pub slot: Option<u64>,
    pub node: Option<String>,
    pub state: TaskState,
    pub desired_state: TaskState,
    pub healthy: Option<bool>,
    /// By the network's name.
    pub addresses: Vec<(String, IpAddr)>,
    /// What runs there, absent when nothing does.
    pub process: Option<TaskProcess>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskProcess {
    #[serde(flatten)]
    pub id: ProcessId,
    pub netns: String,
    pub hostname: String,
    /// Its address on docker_gwbridge.
    pub gateway_address: Option<IpAddr>,
    /// It is the built-in server.
    pub built_in: bool,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
}
