//! Networks, services, tasks and nodes, reduced to what service networking needs.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{NetworkId, NodeId, ServiceId, SharedMap, TaskId};

/// A swarm-scoped network, or a node-local one that a container of interest is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    #[serde(default = "overlay")]
    pub driver: String,
    /// True for the one network that carries published ports between nodes. It has no names.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ingress: bool,
    /// Of this node alone, such as a user-defined bridge. It has names and no VIPs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub local: bool,
    /// No way out of this network: its members resolve and reach each other only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub internal: bool,
    /// Plain containers may join.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attachable: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Bytes of an IP packet inside the network; Docker's default is 1500 less 50 for VXLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    #[schemars(with = "String")]
    pub subnet: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub id: ServiceId,
    pub name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub endpoint_mode: EndpointMode,
    /// As allocated: `published_port` is never 0 for an ingress port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// One per network and address family; empty in `dnsrr` mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VirtualIp>,
    /// Networks that the service's tasks join, with the aliases that the service has there. The ingress network is not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<ServiceNetwork>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceNetwork {
    pub network: NetworkId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtualIp {
    pub network: NetworkId,
    pub address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub protocol: Protocol,
    pub target_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_port: Option<u16>,
    #[serde(default)]
    pub publish_mode: PublishMode,
}

/// A task of a service, or a plain container on an attachable network (`service` is then absent).
// A large swarm has a hundred thousand of them, and few fields are set in those of other nodes: hence the short types.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub id: TaskId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// The container's name: `<service>.<slot or node>.<task>` for tasks.
    pub name: Arc<str>,
    /// Position among the service's replicas, from 1; absent for global services and plain containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    #[serde(default)]
    pub desired_state: TaskState,
    #[serde(default)]
    pub state: TaskState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
    /// Name of the task's network namespace below `--netns-dir`. Known only for tasks of the node that wrote the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Box<str>>,
    /// False once the container's health check has failed it, before the swarm has reacted. Absent where nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<TaskAddress>,
    /// The ports that this task was made for, where they are not its service's present ones: while an update that changes
    /// target ports together with the task's own spec rolls out, old tasks go on listening where they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Box<[Port]>>,
    /// How the container was told to resolve names. Known only for containers of the node that wrote the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Box<ContainerDns>>,
    /// Of a plain container whose labels ask for requests. Known only for containers of the node that wrote the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Box<ContainerRouting>>,
}

/// What a plain container says about the requests that it wants to answer, and where its node publishes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerRouting {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Published ports, with the container's own as target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Where its node itself reaches those ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<IpAddr>,
}

impl ContainerRouting {
    /// The label by which plain containers ask for requests. Of containers without it nothing is kept.
    pub const LABEL: &str = "interlock.hostname";
}

/// What a container's creator, or its engine's configuration, said about DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerDns {
    /// Asked instead of the host's servers, and from the container's own namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<IpAddr>,
    /// The number of dots was given, by the creator or the host: names without a dot are then not asked upstream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ndots: bool,
    /// The engine runs no resolver for this container, which has files of its own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
}

impl Task {
    /// Takes new connections: wanted, and running (which for Docker means healthy once), and not known to be unhealthy.
    pub fn is_usable(&self) -> bool {
        self.desired_state == TaskState::Running && self.state == TaskState::Running && self.healthy != Some(false)
    }

    /// Being shut down but still running: keeps what it has, gets nothing new while another task can take it.
    pub fn is_draining(&self) -> bool {
        self.state == TaskState::Running && !self.is_usable()
    }

    pub fn address_in(&self, network: &NetworkId) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(move |a| a.network == *network).map(|a| a.address)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskAddress {
    pub network: NetworkId,
    pub address: IpAddr,
    /// Names of this one task or container in this network, beyond those that follow from its name and id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What this container alone calls others in this network (`--link`): alias to name. Case matters in an alias.
    #[serde(default, skip_serializing_if = "SharedMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub links: SharedMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub id: NodeId,
    pub hostname: String,
    /// The address that the other nodes know it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub state: NodeState,
    #[serde(default)]
    pub availability: Availability,
    /// The release of its engine, such as `29.7.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Docker's task states, in the order a task passes through them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    #[default]
    New,
    Allocated,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Remove,
    Orphaned,
    /// A state that this version does not know. Treated as not usable.
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    #[default]
    Vip,
    Dnsrr,
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The protocol's number in the IP header (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    #[default]
    Ingress,
    Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    #[default]
    Ready,
    Down,
    Disconnected,
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    #[default]
    Active,
    Pause,
    Drain,
}

fn overlay() -> String {
    "overlay".to_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}
