//! What a stack file asks for, once every field has been read and checked.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use swarmesh_model::{EndpointMode, Port, Role, Subnet};

/// A slip of the finger is not to cost the machine's memory.
pub(crate) const MOST_REPLICAS: u64 = 100_000;

/// A service as the swarm is asked to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The swarm-wide name: `<stack>_<service>` for a service of a stack.
    pub name: String,
    pub image: String,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// Replaces the image's entry point; `Some` of nothing clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Absent: the first twelve characters of the container's id.
    pub hostname: Option<String>,
    pub dns: DnsSpec,
    pub environment: BTreeMap<String, String>,
    /// In the order of the file. Never the ingress network.
    pub networks: Vec<NetworkUse>,
    /// Ranges are spread out: one entry a port.
    pub ports: Vec<Port>,
    pub endpoint_mode: EndpointMode,
    /// Labels of the service (`deploy.labels`), which routing reads.
    pub labels: BTreeMap<String, String>,
    /// Labels of each container (`labels` of the service in the file).
    pub container_labels: BTreeMap<String, String>,
    pub healthcheck: Option<Healthcheck>,
    pub stop_grace: Duration,
    /// With its SIG, or as a number: `SIGTERM`, `15`.
    pub stop_signal: String,
    pub mode: Mode,
    pub update: UpdateConfig,
    pub rollback: UpdateConfig,
    pub restart: RestartPolicy,
    pub placement: Placement,
}

impl ServiceSpec {
    /// Docker's defaults: one replica, a virtual IP, stopped with SIGTERM and ten seconds.
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            command: Vec::new(),
            entrypoint: None,
            hostname: None,
            dns: DnsSpec::default(),
            environment: BTreeMap::new(),
            networks: Vec::new(),
            ports: Vec::new(),
            endpoint_mode: EndpointMode::Vip,
            labels: BTreeMap::new(),
            container_labels: BTreeMap::new(),
            healthcheck: None,
            stop_grace: Duration::from_secs(10),
            stop_signal: "SIGTERM".to_owned(),
            mode: Mode::Replicated { replicas: 1 },
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
        }
    }
}

/// How a container is told to resolve names, beyond asking its engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// The resolver asks these instead of the node's.
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// As in a `resolv.conf`: `timeout:1`, `ndots:2`.
    pub options: Vec<String>,
}

impl DnsSpec {
    /// The number in a valid `ndots:N`, the last one if there are several. Docker passes over others.
    pub(crate) fn ndots(&self) -> Option<u32> {
        self.options.iter().filter_map(|option| option.strip_prefix("ndots:")?.parse().ok()).next_back()
    }
}

/// One network that a service's tasks join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// The network's swarm-wide name.
    pub network: String,
    /// Names of the service there besides its own.
    pub aliases: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Replicated {
        replicas: u64,
    },
    /// One task on each node that the constraints allow.
    Global,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    pub test: HealthTest,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many failures in a row make a container unhealthy.
    pub retries: u32,
    /// Failures do not count for so long after the start.
    pub start_period: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthTest {
    /// Times are given, the test is the image's own.
    Image,
    /// Switched off, even if the image brings one.
    None,
    Command(Vec<String>),
    Shell(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Tasks replaced at a time; 0 means all.
    pub parallelism: u64,
    pub delay: Duration,
    pub order: UpdateOrder,
    pub failure_action: FailureAction,
    /// A new task that fails within this time of its start counts as a failed update.
    pub monitor: Duration,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            order: UpdateOrder::StopFirst,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// Absent: the swarm's default.
    pub delay: Option<Duration>,
    /// Absent or 0: without end.
    pub max_attempts: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub constraints: Vec<Constraint>,
    pub max_replicas_per_node: Option<u64>,
}

/// `node.role == manager`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    pub key: ConstraintKey,
    /// True for `==`, false for `!=`.
    pub equal: bool,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConstraintKey {
    Id,
    Hostname,
    Role,
    Label(String),
}

impl Constraint {
    /// Names, roles and labels are compared without regard to case, as swarmkit does.
    pub fn allows(&self, id: &str, hostname: &str, role: Role, labels: &BTreeMap<String, String>) -> bool {
        let found = match &self.key {
            ConstraintKey::Id => id,
            ConstraintKey::Hostname => hostname,
            ConstraintKey::Role => match role {
                Role::Worker => "worker",
                Role::Manager => "manager",
            },
            // A node without the label has an empty one.
            ConstraintKey::Label(name) => labels.get(name).map_or("", String::as_str),
        };
        found.eq_ignore_ascii_case(&self.value) == self.equal
    }
}

/// A network as the swarm is asked to make it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The swarm-wide name: `<stack>_<network>` unless the file gives one.
    pub name: String,
    pub driver: String,
    pub attachable: bool,
    pub internal: bool,
    pub enable_ipv6: bool,
    /// Bytes of an IP packet inside the network; absent: Docker's 1450.
    pub mtu: Option<u32>,
    /// Absent families are filled from the swarm's address pools.
    pub subnets: Vec<Subnet>,
    pub labels: BTreeMap<String, String>,
}

impl NetworkSpec {
    pub fn overlay(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            driver: "overlay".to_owned(),
            attachable: false,
            internal: false,
            enable_ipv6: false,
            mtu: None,
            subnets: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// True when the two ranges share an address.
    pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
        one.contains(&other.network()) || other.contains(&one.network())
    }
}
