//! Who answers: services and containers, and how one of their tasks is chosen.

use std::net::IpAddr;

use serde::Serialize;
use swarmesh_model::{NetworkId, TaskId};

/// Everyone who may answer a route's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackendSet {
    pub members: Vec<Member>,
    pub balance: Balance,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stickiness: Option<Stickiness>,
}

/// One service or container of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    pub target: Target,
    pub port: u16,
    pub mode: BackendMode,
    /// Of each task in task mode, of the service in vip mode; 0 gets nothing. Counts beside the weights of the others.
    pub weight: u16,
    pub protocol: BackendProtocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A service, by id, in one of its networks.
    Service { id: String, network: Option<NetworkId> },
    /// A container, by id, in one of its networks.
    Container { id: String, network: NetworkId },
    /// A container by a port that its node publishes.
    Published { container: String },
    /// A name that leads somewhere else. It is resolved and reached from the node itself.
    Host { name: String, network: Option<NetworkId> },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendMode {
    /// The service's virtual IP; whoever balances that chooses the task. Without a VIP, as `Task`.
    Vip,
    /// Each task by itself.
    #[default]
    Task,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendProtocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 if TLS's handshake agrees on it, else HTTP/1.1.
    H2,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct BackendTls {
    /// Whether the backend must prove that it is who it says.
    pub verify: bool,
    /// The name that is asked for and proved; the request's host if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    #[default]
    RoundRobin,
    LeastConnections,
    /// The client's address chooses: the first three bytes of IPv4, all of IPv6.
    IpHash,
    /// All of the client's address chooses.
    SourceHash,
    Random,
}

/// How a client comes back to the same task. A client that has nothing to show yet, or whose task is gone, is balanced.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stickiness {
    /// The application sets the cookie; which task set which value is remembered.
    LearnCookie(String),
    /// The application sets the cookie; its value's hash chooses the task.
    HashCookie(String),
    /// The proxy sets the cookie; its value stands for a task's id and outlives other tasks' coming and going.
    InsertCookie(String),
    /// The TLS session's id, for what passes unopened.
    TlsSession,
}

/// What is known of a service's or container's addresses. The caller's business: the plan has it.
pub trait Tasks {
    /// A service's virtual IP in a network.
    fn vip(&self, service: &str, network: Option<&NetworkId>) -> Option<IpAddr>;
    /// The tasks of a service, or the one container, that take new connections.
    fn usable(&self, owner: &str, network: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)>;
    /// Where the node publishes a container's port.
    fn published(&self, container: &str) -> Option<IpAddr>;
    /// The network that [`Self::vip`] and [`Self::usable`] answer for, when they are asked like this.
    fn network(&self, owner: &str, asked: Option<&NetworkId>) -> Option<NetworkId>;
}

/// Where a connection can go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Upstream {
    Task { task: TaskId, address: IpAddr, port: u16 },
    Vip { service: String, address: IpAddr, port: u16 },
    Published { container: String, address: IpAddr, port: u16 },
    Host { name: String, port: u16 },
}

/// An upstream, and how many turns it has among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedUpstream {
    pub upstream: Upstream,
    pub weight: u16,
    /// Whose it is: a place in [`BackendSet::members`].
    pub member: usize,
    /// Where the address means something; `None` if anywhere.
    pub network: Option<NetworkId>,
}

impl Member {
    /// A service's tasks, one weight each, without TLS.
    pub fn service(id: impl Into<String>, network: Option<NetworkId>, port: u16, mode: BackendMode) -> Self {
        Self { target: Target::Service { id: id.into(), network }, port, mode, weight: 1, protocol: BackendProtocol::Http1, tls: None }
    }
}

impl BackendSet {
    /// One member, balanced by turns.
    pub fn of(member: Member) -> Self {
        Self { members: vec![member], ..Self::default() }
    }

    /// Everyone who can be sent to now. A service in vip mode is one, in task mode each of its tasks is one: that is what makes
    /// one task beside four a fifth, and one service beside another the half.
    pub fn upstreams(&self, tasks: &impl Tasks) -> Vec<WeightedUpstream> {
        let mut out = Vec::new();
        for (number, member) in self.members.iter().enumerate().filter(|(_, m)| m.weight > 0) {
            let (port, weight) = (member.port, member.weight);
            let network = match &member.target {
                Target::Service { id, network } => tasks.network(id, network.as_ref()),
                Target::Container { network, .. } => Some(network.clone()),
                Target::Published { .. } | Target::Host { .. } => None,
            };
            let mut add = |upstream| out.push(WeightedUpstream { upstream, weight, member: number, network: network.clone() });
            match &member.target {
                Target::Service { id, network } => {
                    let vip = if member.mode == BackendMode::Vip { tasks.vip(id, network.as_ref()) } else { None };
                    if let Some(address) = vip {
                        // A VIP without a task behind it refuses; it has no turn while others have.
                        if !tasks.usable(id, network.as_ref()).is_empty() {
                            add(Upstream::Vip { service: id.clone(), address, port });
                        }
                    } else {
                        for (task, address) in tasks.usable(id, network.as_ref()) {
                            add(Upstream::Task { task, address, port });
                        }
                    }
                }
                Target::Container { id, network } => {
                    for (task, address) in tasks.usable(id, Some(network)) {
                        add(Upstream::Task { task, address, port });
                    }
                }
                Target::Published { container } => {
                    if let Some(address) = tasks.published(container) {
                        add(Upstream::Published { container: container.clone(), address, port });
                    }
                }
                Target::Host { name, .. } => add(Upstream::Host { name: name.clone(), port }),
            }
        }
        out
    }
}
