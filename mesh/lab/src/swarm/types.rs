//! What goes into the simulated swarm and what comes out of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use swarmesh_model::{NetworkId, NodeId, Port, Role, ServiceId, TaskId};

use crate::stack::{DnsSpec, Healthcheck};

/// How a swarm starts out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmConfig {
    pub nodes: Vec<NodeSpec>,
    /// `None`: a swarm whose ingress network was removed.
    pub ingress: Option<IngressSpec>,
    pub address_pool: AddressPool,
    /// Where networks with IPv6 and no subnet of their own get a /64; must be a /48 or wider.
    pub address_pool_v6: IpNet,
    /// Between a task's failure and its replacement, for services that do not say.
    pub restart_delay: Duration,
    /// Between a task's withdrawal and its stop signal: the time that Docker gives the nodes to hear of it.
    pub convergence_delay: Duration,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            ingress: Some(IngressSpec::default()),
            address_pool: AddressPool::default(),
            // Any fixed unique-local prefix does: nothing outside of the emulator routes it.
            address_pool_v6: IpNet::new_assert(IpAddr::from([0xfd53, 0x7761, 0x726d, 0, 0, 0, 0, 0]), 48),
            restart_delay: Duration::from_secs(5),
            convergence_delay: Duration::from_secs(2),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub hostname: String,
    pub address: IpAddr,
    pub address_v6: Option<IpAddr>,
    pub role: Role,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The release of its engine, such as `29.7.3`.
    #[serde(default)]
    pub engine: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressSpec {
    pub name: String,
    pub subnet: IpNet,
    #[serde(default)]
    pub subnet_v6: Option<IpNet>,
    pub mtu: u32,
}

impl Default for IngressSpec {
    fn default() -> Self {
        Self {
            name: "ingress".to_owned(),
            subnet: IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 24),
            subnet_v6: None,
            mtu: DEFAULT_MTU,
        }
    }
}

/// 1500 less VXLAN's 50.
pub const DEFAULT_MTU: u32 = 1450;

/// Networks without a subnet of their own get the next free one of `size` bits from `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    pub base: Ipv4Net,
    pub size: u8,
}

impl Default for AddressPool {
    fn default() -> Self {
        Self { base: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8), size: 24 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwarmError {
    #[error("there is no {kind} {name}")]
    Unknown { kind: &'static str, name: String },
    #[error("a {kind} {name} exists already")]
    Exists { kind: &'static str, name: String },
    #[error("{kind} {name} is in use by {user}")]
    InUse { kind: &'static str, name: String, user: String },
    #[error("network {network} has no free address left in {subnet}")]
    NoAddress { network: String, subnet: IpNet },
    #[error("no free subnet is left in the address pool {pool}")]
    NoSubnet { pool: IpNet },
    #[error("subnet {subnet} of network {network} overlaps {other} of network {other_network}")]
    Overlap { network: String, subnet: IpNet, other_network: String, other: IpNet },
    #[error("service {service}: port {port} is published by service {other} already")]
    PortInUse { service: String, port: String, other: String },
    #[error("service {service}: no port is free between 30000 and 32767")]
    NoPort { service: String },
    #[error("service {service}: {message}")]
    Invalid { service: String, message: String },
}

/// What a command did, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub networks_created: Vec<String>,
    pub networks_removed: Vec<String>,
    pub services_created: Vec<String>,
    pub services_updated: Vec<String>,
    pub services_removed: Vec<String>,
    pub services_unchanged: Vec<String>,
    /// For the person at the terminal.
    pub notes: Vec<String>,
}

/// What the runtime saw of a task's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// It exists and runs, but its health check has not passed yet.
    Starting,
    /// It runs, and is healthy or has no health check.
    Running,
    /// Its health check has failed `retries` times in a row.
    Unhealthy,
    /// It is gone. The exit code is 128 + n for signal n.
    Exited(i32),
}

/// What the runtime must do. Each is given once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Make the sandbox and start the container as [`super::Swarm::task_spec`] says, then report what becomes of it.
    StartTask { task: TaskId, node: NodeId },
    /// Wait `converge`, send `signal`, wait at most `grace`, kill; then report the exit.
    StopTask { task: TaskId, node: NodeId, converge: Duration, signal: String, grace: Duration },
    /// Kill at once and report the exit.
    KillTask { task: TaskId, node: NodeId },
}

impl Action {
    pub const fn task(&self) -> &TaskId {
        match self {
            Self::StartTask { task, .. } | Self::StopTask { task, .. } | Self::KillTask { task, .. } => task,
        }
    }

    pub const fn node(&self) -> &NodeId {
        match self {
            Self::StartTask { node, .. } | Self::StopTask { node, .. } | Self::KillTask { node, .. } => node,
        }
    }
}

/// Everything that is needed to run one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub id: TaskId,
    /// The container's name.
    pub name: String,
    /// Absent for plain containers.
    pub service: Option<ServiceId>,
    pub service_name: Option<String>,
    pub slot: Option<u64>,
    pub node: NodeId,
    pub node_hostname: String,
    pub hostname: String,
    pub dns: DnsSpec,
    /// 64 hex digits.
    pub container: String,
    /// 12 hex digits: the name of its network namespace.
    pub sandbox: String,
    pub image: String,
    pub entrypoint: Option<Vec<String>>,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<Port>,
    pub healthcheck: Option<Healthcheck>,
    pub stop_grace: Duration,
    pub stop_signal: String,
    /// The ingress network first if the task is on it.
    pub networks: Vec<TaskNetwork>,
}

/// A task's interface in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetwork {
    pub network: NetworkId,
    pub name: String,
    pub ingress: bool,
    pub internal: bool,
    pub mtu: u32,
    /// IPv4 first.
    pub addresses: Vec<InterfaceAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
}

/// A node's own interface in one network: in ingress the ingress sandbox's, else the load balancer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEndpoint {
    pub node: NodeId,
    pub node_hostname: String,
    pub network: NetworkId,
    pub network_name: String,
    pub ingress: bool,
    pub mtu: u32,
    pub addresses: Vec<InterfaceAddress>,
}

/// A container that no service owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: String,
    /// The hostname or id of the node to run on.
    pub node: String,
    /// Names or ids of attachable networks.
    pub networks: Vec<String>,
    /// Its names besides its own, in each of the networks.
    pub aliases: Vec<String>,
    /// Absent: the first twelve characters of the container's id.
    pub hostname: Option<String>,
    pub dns: DnsSpec,
    pub image: String,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
}

/// Replaces parts of a service's update settings; see [`super::Swarm::update`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateOptions {
    pub order: Option<crate::stack::UpdateOrder>,
    pub parallelism: Option<u64>,
    pub delay: Option<Duration>,
}

/// Where a rolling update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateState {
    Updating,
    /// A new task failed; waits for the next change of the service.
    Paused,
    RollingBack,
    Completed,
}
