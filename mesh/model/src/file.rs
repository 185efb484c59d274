//! The snapshot file: JSON in, [`Snapshot`] out, or one error that names the line.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    EndpointMode, Network, Node, Protocol, PublishMode, Service, Snapshot, Task,
    compact::{Compact, KnownIds},
};

/// Larger label values are refused: nothing reads them, and they would sit in every copy of the snapshot.
const LONGEST_LABEL: usize = 64 * 1024;
/// One swarm can hold this many objects before a file is taken for a mistake.
const MOST_OBJECTS: usize = 2_000_000;

/// Why a snapshot file was not taken. The last good snapshot stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// The place inside the object: `services[2].ports[0].published_port`.
    pub place: String,
    pub message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)
    }
}

/// What the file holds, for the published schema.
#[derive(JsonSchema)]
#[schemars(title = "Swarmesh snapshot")]
#[expect(dead_code, reason = "read by schemars only: the parser below keeps the text of each object for its line number")]
struct SnapshotFile {
    version: u64,
    #[schemars(default)]
    networks: Vec<Network>,
    #[schemars(default)]
    services: Vec<Service>,
    #[schemars(default)]
    tasks: Vec<Task>,
    #[schemars(default)]
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile<'a> {
    version: u64,
    #[serde(borrow, default)]
    networks: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    services: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    tasks: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    nodes: Vec<&'a RawValue>,
}

/// The JSON schema of the snapshot file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(SnapshotFile).to_value()
}

impl Snapshot {
    /// Reads the snapshot file's text and checks that its objects agree with each other.
    pub fn from_json(text: &str) -> Result<Self, FileError> {
        Self::from_json_after(text, &Self::default())
    }

    /// The same for a file that was read `before`: objects that have not changed are taken from there. Holding both then
    /// costs little more than holding one.
    pub fn from_json_after(text: &str, before: &Self) -> Result<Self, FileError> {
        let raw: RawFile<'_> = serde_json::from_str(text).map_err(|e| syntax(&e, 0, String::new()))?;
        if raw.networks.len() + raw.services.len() + raw.tasks.len() + raw.nodes.len() > MOST_OBJECTS {
            return Err(FileError { line: 0, place: String::new(), message: format!("more than {MOST_OBJECTS} objects") });
        }
        let lines = Lines::new(text);
        let mut known = KnownIds::new(before);
        let networks: Vec<Arc<Network>> = objects(&lines, "networks", &raw.networks, &mut known)?;
        let services: Vec<Arc<Service>> = objects(&lines, "services", &raw.services, &mut known)?;
        let tasks: Vec<Arc<Task>> = objects(&lines, "tasks", &raw.tasks, &mut known)?;
        let nodes: Vec<Arc<Node>> = objects(&lines, "nodes", &raw.nodes, &mut known)?;

        let at = |list: &'static str, values: &[&RawValue], index: usize, place: &str, message: String| FileError {
            line: lines.of(values[index].get()),
            place: format!("{list}[{index}]{place}"),
            message,
        };
        check_networks(&networks).map_err(|e| at("networks", &raw.networks, e.index, &e.place, e.message))?;
        check_nodes(&nodes).map_err(|e| at("nodes", &raw.nodes, e.index, &e.place, e.message))?;
        let known: HashSet<&str> = networks.iter().map(|n| n.id.as_str()).collect();
        check_services(&services, &networks, &known).map_err(|e| at("services", &raw.services, e.index, &e.place, e.message))?;
        check_tasks(&tasks, &services, &nodes, &known).map_err(|e| at("tasks", &raw.tasks, e.index, &e.place, e.message))?;

        // Collected, not inserted one by one: a map that is built at once fills its nodes, one that grows leaves them half empty.
        Ok(Self {
            version: raw.version,
            networks: networks.into_iter().map(|n| (n.id.clone(), n)).collect(),
            services: services.into_iter().map(|s| (s.id.clone(), s)).collect(),
            tasks: tasks.into_iter().map(|t| (t.id.clone(), t)).collect(),
            nodes: nodes.into_iter().map(|n| (n.id.clone(), n)).collect(),
        })
    }
}

fn syntax(error: &serde_json::Error, lines_before: usize, place: String) -> FileError {
    let text = error.to_string();
    // serde_json appends its own " at line … column …", counted from the start of what it was given.
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(m, _)| m).to_owned();
    FileError { line: lines_before + error.line(), place, message }
}

fn objects<T: DeserializeOwned + Compact>(
    lines: &Lines<'_>,
    list: &str,
    values: &[&RawValue],
    known: &mut KnownIds<'_>,
) -> Result<Vec<Arc<T>>, FileError> {
    values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            serde_json::from_str::<T>(value.get())
                .map(|object| object.kept(known))
                .map_err(|e| syntax(&e, lines.of(value.get()) - 1, format!("{list}[{index}]")))
        })
        .collect()
}

/// Finds the line of a slice of the text it was made from.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1)).collect();
        Self { text, starts }
    }

    fn of(&self, part: &str) -> usize {
        let offset = (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        self.starts.partition_point(|start| *start <= offset)
    }
}

struct Wrong {
    index: usize,
    place: String,
    message: String,
}

fn wrong(index: usize, place: impl Into<String>, message: impl Into<String>) -> Wrong {
    Wrong { index, place: place.into(), message: message.into() }
}

fn check_unique<'a>(kind: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), Wrong> {
    let mut seen = HashMap::new();
    for (index, id) in ids.enumerate() {
        if id.is_empty() {
            return Err(wrong(index, ".id", format!("a {kind} needs an id")));
        }
        if let Some(first) = seen.insert(id, index) {
            return Err(wrong(index, ".id", format!("{kind} {id} is listed twice, first at position {first}")));
        }
    }
    Ok(())
}

fn check_labels(index: usize, labels: &BTreeMap<String, String>) -> Result<(), Wrong> {
    match labels.iter().find(|(name, value)| name.len() + value.len() > LONGEST_LABEL) {
        Some((name, value)) => {
            let shown: String = name.chars().take(64).collect();
            Err(wrong(
                index,
                ".labels",
                format!("label {shown:?} has {} bytes; at most {LONGEST_LABEL} are taken", name.len() + value.len()),
            ))
        }
        None => Ok(()),
    }
}

fn check_networks(networks: &[Arc<Network>]) -> Result<(), Wrong> {
    check_unique("network", networks.iter().map(|n| n.id.as_str()))?;
    let mut subnets: Vec<(IpNet, usize)> = Vec::new();
    let mut ingress = None;
    for (index, network) in networks.iter().enumerate() {
        if network.name.is_empty() {
            return Err(wrong(index, ".name", "a network needs a name"));
        }
        check_labels(index, &network.labels)?;
        if network.ingress
            && let Some(first) = ingress.replace(index)
        {
            return Err(wrong(
                index,
                ".ingress",
                format!("only one network can be the ingress network; {} is one already", networks[first].name),
            ));
        }
        for (position, subnet) in network.subnets.iter().enumerate() {
            let place = format!(".subnets[{position}]");
            if let Some(gateway) = subnet.gateway
                && !subnet.subnet.contains(&gateway)
            {
                return Err(wrong(index, place, format!("gateway {gateway} is outside of {}", subnet.subnet)));
            }
            subnets.push((subnet.subnet, index));
        }
    }
    // Sorted by start, an overlap is always between neighbours of one family, or with a wider one just before.
    subnets.sort_by_key(|(net, _)| (net.addr().is_ipv6(), net.network(), net.prefix_len()));
    let mut widest: Option<(IpNet, usize)> = None;
    for (net, index) in subnets {
        if let Some((before, other)) = widest
            && before.contains(&net.network())
        {
            let (index, other) = if index > other { (index, other) } else { (other, index) };
            return Err(wrong(index, ".subnets", format!("{net} overlaps {before} of network {}", networks[other].name)));
        }
        widest = Some((net, index));
    }
    Ok(())
}

fn check_nodes(nodes: &[Arc<Node>]) -> Result<(), Wrong> {
    check_unique("node", nodes.iter().map(|n| n.id.as_str()))
}

fn check_services(services: &[Arc<Service>], networks: &[Arc<Network>], known: &HashSet<&str>) -> Result<(), Wrong> {
    check_unique("service", services.iter().map(|s| s.id.as_str()))?;
    let mut published: HashMap<(Protocol, u16), usize> = HashMap::new();
    let mut vips: HashMap<(&str, IpAddr), usize> = HashMap::new();
    let by_id: HashMap<&str, &Arc<Network>> = networks.iter().map(|n| (n.id.as_str(), n)).collect();
    for (index, service) in services.iter().enumerate() {
        if service.name.is_empty() {
            return Err(wrong(index, ".name", "a service needs a name"));
        }
        check_labels(index, &service.labels)?;
        for (position, network) in service.networks.iter().enumerate() {
            if !known.contains(network.network.as_str()) {
                return Err(wrong(index, format!(".networks[{position}]"), format!("there is no network {}", network.network)));
            }
        }
        for (position, port) in service.ports.iter().enumerate() {
            let place = format!(".ports[{position}]");
            if port.target_port == 0 {
                return Err(wrong(index, place + ".target_port", "0 is not a port; ports are 1 to 65535"));
            }
            if port.published_port == Some(0) {
                return Err(wrong(index, place + ".published_port", "0 is not a port; leave it out until the swarm has allocated one"));
            }
            if port.publish_mode == PublishMode::Ingress && service.endpoint_mode == EndpointMode::Dnsrr && port.published_port.is_some() {
                return Err(wrong(index, place, "a dnsrr service cannot publish ports through ingress; use mode host"));
            }
            if let (PublishMode::Ingress, Some(number)) = (port.publish_mode, port.published_port)
                && let Some(other) = published.insert((port.protocol, number), index)
            {
                let message = format!("{number}/{} is published by service {} already", port.protocol, services[other].name);
                return Err(wrong(index, place + ".published_port", message));
            }
        }
        for (position, vip) in service.vips.iter().enumerate() {
            let place = format!(".vips[{position}]");
            let Some(network) = by_id.get(vip.network.as_str()) else {
                return Err(wrong(index, place, format!("there is no network {}", vip.network)));
            };
            if !network.subnets.is_empty() && !network.subnets.iter().any(|s| s.subnet.contains(&vip.address)) {
                return Err(wrong(index, place, format!("{} is outside of the subnets of network {}", vip.address, network.name)));
            }
            if let Some(other) = vips.insert((vip.network.as_str(), vip.address), index) {
                return Err(wrong(index, place, format!("{} is the virtual IP of service {} already", vip.address, services[other].name)));
            }
        }
    }
    Ok(())
}

fn check_tasks(tasks: &[Arc<Task>], services: &[Arc<Service>], nodes: &[Arc<Node>], networks: &HashSet<&str>) -> Result<(), Wrong> {
    check_unique("task", tasks.iter().map(|t| t.id.as_str()))?;
    let services: HashSet<&str> = services.iter().map(|s| s.id.as_str()).collect();
    let nodes: HashSet<&str> = nodes.iter().map(|n| n.id.as_str()).collect();
    for (index, task) in tasks.iter().enumerate() {
        if let Some(service) = &task.service
            && !services.contains(service.as_str())
        {
            return Err(wrong(index, ".service", format!("there is no service {service}")));
        }
        if let Some(node) = &task.node
            && !nodes.contains(node.as_str())
        {
            return Err(wrong(index, ".node", format!("there is no node {node}")));
        }
        for (position, address) in task.addresses.iter().enumerate() {
            let place = format!(".addresses[{position}]");
            if !networks.contains(address.network.as_str()) {
                return Err(wrong(index, place, format!("there is no network {}", address.network)));
            }
            if address.address.is_unspecified() || address.address.is_multicast() || address.address.is_loopback() {
                return Err(wrong(index, place, format!("{} cannot be a task's address", address.address)));
            }
        }
        if task.sandbox.as_ref().is_some_and(|s| s.is_empty() || s.contains('/') || s.starts_with('.')) {
            return Err(wrong(index, ".sandbox", "a sandbox is the name of one file below --netns-dir"));
        }
    }
    Ok(())
}
