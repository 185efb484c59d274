//! Docker's objects into the model's.
//!
//! A word that this version does not know costs as little as possible: a port, a state that counts as not usable, and a
//! [`Problem`]. A value that makes no sense makes the object [`Odd`], and the caller keeps what it had.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use swarmesh_model::{
    Availability, EndpointMode, Network, Node, NodeState, Port, Problem, Protocol, PublishMode, Role, Service, ServiceNetwork, Subnet,
    Task, TaskAddress, TaskState, VirtualIp,
};

use super::wire;

/// An object as decoded, with what was left out of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded<T> {
    pub(super) object: T,
    pub(super) problems: Vec<Problem>,
}

/// Why an object cannot be taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Odd {
    /// Empty when not even that could be read.
    pub(super) id: String,
    pub(super) problem: Problem,
}

/// How each kind of object is read.
pub(super) trait FromDocker: Sized + PartialEq {
    type Wire: DeserializeOwned;
    const KIND: &'static str;

    /// `None`: not an object of interest, which is nothing to complain about.
    fn from_wire(wire: Self::Wire) -> Result<Option<Decoded<Self>>, Odd>;
    fn id(&self) -> &str;
}

pub(super) fn object<T: FromDocker>(json: &RawValue) -> Result<Option<Decoded<T>>, Odd> {
    match serde_json::from_str::<T::Wire>(json.get()) {
        Ok(wire) => T::from_wire(wire),
        Err(error) => {
            let id = id_of(json);
            let name = if id.is_empty() { T::KIND.to_owned() } else { format!("{} {id}", T::KIND) };
            Err(Odd { problem: Problem::new(name, "", format!("not understood: {error}")), id })
        }
    }
}

/// The id of an object of which nothing else can be read.
fn id_of(json: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Upper {
        #[serde(rename = "ID")]
        id: String,
    }
    #[derive(Deserialize)]
    struct Capital {
        #[serde(rename = "Id")]
        id: String,
    }
    serde_json::from_str::<Upper>(json.get())
        .map(|o| o.id)
        .or_else(|_| serde_json::from_str::<Capital>(json.get()).map(|o| o.id))
        .unwrap_or_default()
}

/// Collects what is wrong with one object.
struct Notes {
    object: String,
    id: String,
    problems: Vec<Problem>,
}

impl Notes {
    fn new(kind: &str, name: &str, id: &str) -> Result<Self, Odd> {
        if id.is_empty() {
            let object = if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") };
            return Err(Odd { id: String::new(), problem: Problem::new(object, "ID", "is missing") });
        }
        let object = format!("{kind} {}", if name.is_empty() { id } else { name });
        Ok(Self { object, id: id.to_owned(), problems: Vec::new() })
    }

    fn note(&mut self, place: &str, message: String) {
        self.problems.push(Problem::new(self.object.clone(), place, message));
    }

    fn odd(&self, place: &str, message: String) -> Odd {
        Odd { id: self.id.clone(), problem: Problem::new(self.object.clone(), place, message) }
    }

    fn need<'a>(&self, place: &str, text: &'a str) -> Result<&'a str, Odd> {
        if text.is_empty() { Err(self.odd(place, "is missing".to_owned())) } else { Ok(text) }
    }

    /// The address in `10.0.1.6/24` or `10.0.1.6`.
    fn address(&self, place: &str, text: &str) -> Result<IpAddr, Odd> {
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        address.parse().map_err(|_| self.odd(place, format!("{text:?} is not an address")))
    }

    fn port(&self, place: &str, number: u32) -> Result<u16, Odd> {
        u16::try_from(number).map_err(|_| self.odd(place, format!("{number} is not a port")))
    }

    fn done<T>(self, object: T) -> Result<Option<Decoded<T>>, Odd> {
        Ok(Some(Decoded { object, problems: self.problems }))
    }
}

fn labels(labels: BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    labels.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect()
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|t| !t.is_empty())
}

impl FromDocker for Network {
    type Wire = wire::Network;
    const KIND: &'static str = "network";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn from_wire(wire: wire::Network) -> Result<Option<Decoded<Self>>, Odd> {
        let mut notes = Notes::new(Self::KIND, &wire.name, &wire.id)?;
        // A config-only network is a template, and has no members. Networks of one node alone are not the swarm's.
        if wire.config_only || !matches!(wire.scope.as_str(), "swarm" | "") {
            return Ok(None);
        }
        notes.need("Name", &wire.name)?;
        let mut subnets = Vec::new();
        for config in wire.ipam.config.iter().filter(|c| !c.subnet.is_empty()) {
            let subnet: IpNet = config
                .subnet
                .parse()
                .map_err(|_| notes.odd("IPAM.Config.Subnet", format!("{:?} is not a subnet; write it as 10.0.1.0/24", config.subnet)))?;
            let gateway = match config.gateway.as_str() {
                "" => None,
                text => Some(notes.address("IPAM.Config.Gateway", text)?),
            };
            subnets.push(Subnet { subnet, gateway });
        }
        const MTU: &str = "com.docker.network.driver.mtu";
        let mtu = wire.options.get(MTU).cloned().flatten().and_then(|text| {
            let mtu = text.parse().ok();
            if mtu.is_none() {
                notes.note(MTU, format!("{text:?} is not a number of bytes; the default is used"));
            }
            mtu
        });
        notes.done(Self {
            id: wire.id.into(),
            name: wire.name,
            driver: some(wire.driver).unwrap_or_else(|| "overlay".to_owned()),
            ingress: wire.ingress,
            internal: wire.internal,
            attachable: wire.attachable,
            local: false,
            subnets,
            mtu,
            labels: labels(wire.labels),
        })
    }
}

impl FromDocker for Service {
    type Wire = wire::Service;
    const KIND: &'static str = "service";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn from_wire(wire: wire::Service) -> Result<Option<Decoded<Self>>, Odd> {
        let mut notes = Notes::new(Self::KIND, &wire.spec.name, &wire.id)?;
        notes.need("Spec.Name", &wire.spec.name)?;
        // The spec is what is wanted; the endpoint is what has been allocated so far, and lags behind an update of the mode.
        let mode = if wire.spec.endpoint_spec.mode.is_empty() { &wire.endpoint.spec.mode } else { &wire.spec.endpoint_spec.mode };
        let endpoint_mode = match mode.as_str() {
            "" | "vip" => EndpointMode::Vip,
            "dnsrr" => EndpointMode::Dnsrr,
            other => {
                notes.note("Spec.EndpointSpec.Mode", format!("{other:?} is not known to this version"));
                EndpointMode::Unknown
            }
        };
        let mut ports = Vec::new();
        for port in &wire.endpoint.ports {
            if let Some(port) = service_port(port, &mut notes)?
                // What is left of the time before an update to dnsrr, which cannot publish through ingress.
                && !(port.publish_mode == PublishMode::Ingress && endpoint_mode == EndpointMode::Dnsrr)
            {
                ports.push(port);
            }
        }
        let mut vips = Vec::new();
        if endpoint_mode == EndpointMode::Vip {
            // Without an address: not allocated yet.
            for vip in wire.endpoint.virtual_ips.iter().filter(|v| !v.addr.is_empty()) {
                let address = notes.address("Endpoint.VirtualIPs", &vip.addr)?;
                notes.need("Endpoint.VirtualIPs.NetworkID", &vip.network_id)?;
                vips.push(VirtualIp { network: vip.network_id.as_str().into(), address });
            }
        }
        // Specs written before API 1.25 have their networks outside of the task template.
        let template = &wire.spec.task_template.networks;
        let networks = if template.is_empty() { &wire.spec.networks } else { template };
        let networks = service_networks(networks);
        notes.done(Self {
            id: wire.id.into(),
            name: wire.spec.name,
            labels: labels(wire.spec.labels),
            endpoint_mode,
            ports,
            vips,
            networks,
        })
    }
}

pub(super) fn service_networks(targets: &[wire::NetworkTarget]) -> Vec<ServiceNetwork> {
    let named = targets.iter().filter(|n| !n.target.is_empty());
    named.map(|n| ServiceNetwork { network: n.target.as_str().into(), aliases: n.aliases.clone() }).collect()
}

/// The ports of the spec before the present one; `None` without one, and where its ports were never written down.
pub(super) fn previous_ports(wire: &wire::Service) -> Option<Vec<Port>> {
    let previous = &wire.previous_spec;
    let mut notes = Notes::new(Service::KIND, &previous.name, &wire.id).ok()?;
    notes.need("PreviousSpec.Name", &previous.name).ok()?;
    let ports = previous.endpoint_spec.ports.iter().map(|port| service_port(port, &mut notes));
    let ports: Vec<Port> = ports.collect::<Result<Vec<_>, _>>().ok()?.into_iter().flatten().collect();
    // The number that the swarm chose is in the endpoint alone, and that is the present spec's by now.
    let chosen = |p: &Port| p.publish_mode == PublishMode::Ingress && p.published_port.is_none();
    (!ports.iter().any(chosen)).then_some(ports)
}

fn service_port(port: &wire::Port, notes: &mut Notes) -> Result<Option<Port>, Odd> {
    const PLACE: &str = "Endpoint.Ports";
    let protocol = match port.protocol.as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            notes.note(PLACE, format!("protocol {other:?} is not known to this version; the port is left out"));
            return Ok(None);
        }
    };
    let publish_mode = match port.publish_mode.as_str() {
        "" | "ingress" => PublishMode::Ingress,
        "host" => PublishMode::Host,
        other => {
            notes.note(PLACE, format!("publish mode {other:?} is not known to this version; the port is left out"));
            return Ok(None);
        }
    };
    if port.target_port == 0 {
        notes.note(PLACE, "target port 0 is not a port; it is left out".to_owned());
        return Ok(None);
    }
    let published_port = match port.published_port {
        // Host mode: the node picks one. Ingress: not allocated yet.
        0 => None,
        number => Some(notes.port(PLACE, number)?),
    };
    let target_port = notes.port(PLACE, port.target_port)?;
    Ok(Some(Port { name: some(port.name.clone()), protocol, target_port, published_port, publish_mode }))
}

impl FromDocker for Task {
    type Wire = wire::Task;
    const KIND: &'static str = "task";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn from_wire(wire: wire::Task) -> Result<Option<Decoded<Self>>, Odd> {
        let mut notes = Notes::new(Self::KIND, "", &wire.id)?;
        // Tasks without a service attach plain containers to networks; the container itself says more.
        if wire.service_id.is_empty() {
            return Ok(None);
        }
        let state = task_state("Status.State", &wire.status.state, &mut notes);
        if matches!(
            state,
            TaskState::Complete | TaskState::Shutdown | TaskState::Failed | TaskState::Rejected | TaskState::Remove | TaskState::Orphaned
        ) {
            return Ok(None);
        }
        let desired_state = task_state("DesiredState", &wire.desired_state, &mut notes);
        let mut addresses = Vec::new();
        for attachment in &wire.networks_attachments {
            for text in attachment.addresses.iter().filter(|a| !a.is_empty()) {
                let address = notes.address("NetworksAttachments.Addresses", text)?;
                notes.need("NetworksAttachments.Network.ID", &attachment.network.id)?;
                addresses.push(TaskAddress {
                    network: attachment.network.id.as_str().into(),
                    address,
                    aliases: Vec::new(),
                    links: Default::default(),
                });
            }
        }
        let container = some(wire.status.container_status.container_id);
        // The engine names a container after its id unless told otherwise; templates are filled in by its own node only.
        let hostname = some(wire.spec.container_spec.hostname)
            .filter(|h| !h.contains("{{"))
            .or_else(|| container.as_ref().map(|id| id.chars().take(12).collect()));
        notes.done(Self {
            id: wire.id.into(),
            service: Some(wire.service_id.into()),
            // Filled in where the service's name is known.
            name: "".into(),
            slot: Some(wire.slot).filter(|slot| *slot > 0),
            node: some(wire.node_id).map(Into::into),
            desired_state,
            state,
            container: container.map(Into::into),
            hostname: hostname.map(Into::into),
            sandbox: None,
            healthy: None,
            addresses,
            ports: None,
            dns: None,
            routing: None,
        })
    }
}

fn task_state(place: &str, word: &str, notes: &mut Notes) -> TaskState {
    match word {
        "" | "new" => TaskState::New,
        "allocated" => TaskState::Allocated,
        "pending" => TaskState::Pending,
        "assigned" => TaskState::Assigned,
        "accepted" => TaskState::Accepted,
        "preparing" => TaskState::Preparing,
        "ready" => TaskState::Ready,
        "starting" => TaskState::Starting,
        "running" => TaskState::Running,
        "complete" => TaskState::Complete,
        "shutdown" => TaskState::Shutdown,
        "failed" => TaskState::Failed,
        "rejected" => TaskState::Rejected,
        "remove" => TaskState::Remove,
        "orphaned" => TaskState::Orphaned,
        other => {
            notes.note(place, format!("{other:?} is not known to this version; the task is not used"));
            TaskState::Unknown
        }
    }
}

impl FromDocker for Node {
    type Wire = wire::Node;
    const KIND: &'static str = "node";

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn from_wire(wire: wire::Node) -> Result<Option<Decoded<Self>>, Odd> {
        let mut notes = Notes::new(Self::KIND, &wire.description.hostname, &wire.id)?;
        let state = match wire.status.state.as_str() {
            "ready" => NodeState::Ready,
            "down" => NodeState::Down,
            "disconnected" => NodeState::Disconnected,
            "" | "unknown" => NodeState::Unknown,
            other => {
                notes.note("Status.State", format!("{other:?} is not known to this version"));
                NodeState::Unknown
            }
        };
        let role = match wire.spec.role.as_str() {
            "manager" => Role::Manager,
            "" | "worker" => Role::Worker,
            other => {
                notes.note("Spec.Role", format!("{other:?} is not known to this version; taken for a worker"));
                Role::Worker
            }
        };
        let availability = match wire.spec.availability.as_str() {
            "" | "active" => Availability::Active,
            "pause" => Availability::Pause,
            "drain" => Availability::Drain,
            other => {
                notes.note("Spec.Availability", format!("{other:?} is not known to this version; taken for active"));
                Availability::Active
            }
        };
        // A manager that listens on all addresses may know itself as 0.0.0.0; where the others reach it is said beside.
        let manager = wire.manager_status.addr.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']));
        let address = [Some(wire.status.addr.as_str()), manager]
            .into_iter()
            .flatten()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .find(|address| !address.is_unspecified() && !address.is_loopback());
        let engine = Some(wire.description.engine.engine_version).filter(|release| !release.is_empty());
        notes.done(Self { id: wire.id.into(), hostname: wire.description.hostname, address, role, state, availability, engine })
    }
}
