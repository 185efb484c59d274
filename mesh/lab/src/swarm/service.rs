//! Services: making and changing them, their virtual IPs and published ports.

use std::collections::{BTreeMap, BTreeSet};

use swarmesh_model::{EndpointMode, NetworkId, Port, Protocol, PublishMode, ServiceId, VirtualIp};

use super::{
    Swarm, SwarmError, UpdateOptions, UpdateState,
    network::unknown_network,
    state::{ServiceRecord, UpdateProgress},
};
use crate::stack::{MOST_REPLICAS, Mode, ServiceSpec};

/// Where Docker takes published ports from that nobody has chosen.
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

const FIRST_VERSION: u64 = 1;

/// The part of a spec that lives in the tasks: when it changes, they are replaced.
fn template(spec: &ServiceSpec) -> ServiceSpec {
    ServiceSpec {
        labels: BTreeMap::new(),
        mode: Mode::Replicated { replicas: 0 },
        update: crate::stack::UpdateConfig::default(),
        rollback: crate::stack::UpdateConfig::default(),
        restart: crate::stack::RestartPolicy::default(),
        ..spec.clone()
    }
}

impl ServiceRecord {
    pub(super) fn uses_ingress(spec: &ServiceSpec) -> bool {
        spec.ports.iter().any(|p| p.publish_mode == PublishMode::Ingress)
    }
}

impl Swarm {
    /// Makes a service. Its tasks follow with the next [`Swarm::reconcile`].
    pub fn create_service(&mut self, spec: ServiceSpec) -> Result<ServiceId, SwarmError> {
        let mut next = self.clone();
        let id = next.add_service(spec)?;
        *self = next;
        Ok(id)
    }

    /// On an error the swarm is half changed: for callers who work on a copy.
    pub(super) fn add_service(&mut self, spec: ServiceSpec) -> Result<ServiceId, SwarmError> {
        if self.service_id(&spec.name).is_some() {
            return Err(SwarmError::Exists { kind: "service", name: spec.name });
        }
        let (order, id) = self.next_id(&spec.name);
        let id = ServiceId::from(id);
        let record = ServiceRecord {
            order,
            spec: ServiceSpec::new(spec.name.clone(), spec.image.clone()),
            version: FIRST_VERSION,
            specs: BTreeMap::new(),
            previous: None,
            networks: Vec::new(),
            ports: Vec::new(),
            vips: Vec::new(),
            update: None,
            tasks: BTreeSet::new(),
            removed: false,
        };
        self.services.insert(id.clone(), record);
        self.give_spec(&id, spec)?;
        if let Some(record) = self.services.get_mut(&id) {
            record.specs.insert(FIRST_VERSION, record.spec.clone());
        }
        self.touch();
        Ok(id)
    }

    /// Gives a service (found by the spec's name) a new spec. True when its tasks will be replaced one after the other.
    pub fn update_service(&mut self, spec: ServiceSpec) -> Result<bool, SwarmError> {
        let mut next = self.clone();
        let replace = next.change_service(spec)?;
        *self = next;
        Ok(replace)
    }

    /// On an error the swarm is half changed: for callers who work on a copy.
    pub(super) fn change_service(&mut self, spec: ServiceSpec) -> Result<bool, SwarmError> {
        let id = self.service_id(&spec.name).ok_or_else(|| unknown_service(&spec.name))?;
        let replace = self.services.get(&id).is_some_and(|record| template(&record.spec) != template(&spec));
        self.give_spec(&id, spec)?;
        self.new_version(&id, replace, UpdateOptions::default());
        self.touch();
        Ok(replace)
    }

    /// Replaces all tasks of a service though its spec has not changed (`docker service update --force`).
    pub fn update(&mut self, service: &str, options: UpdateOptions) -> Result<(), SwarmError> {
        let id = self.service_id(service).ok_or_else(|| unknown_service(service))?;
        self.new_version(&id, true, options);
        self.touch();
        Ok(())
    }

    fn new_version(&mut self, id: &ServiceId, replace: bool, options: UpdateOptions) {
        let Some(record) = self.services.get_mut(id) else { return };
        if !replace {
            // Replicas, labels and policies hold for tasks that run already.
            record.specs.insert(record.version, record.spec.clone());
            return;
        }
        let config = crate::stack::UpdateConfig {
            order: options.order.unwrap_or(record.spec.update.order),
            parallelism: options.parallelism.unwrap_or(record.spec.update.parallelism),
            delay: options.delay.unwrap_or(record.spec.update.delay),
            ..record.spec.update
        };
        record.previous = Some(record.version);
        record.version = record.specs.last_key_value().map_or(FIRST_VERSION, |(newest, _)| newest + 1);
        record.specs.insert(record.version, record.spec.clone());
        record.update = Some(UpdateProgress { state: UpdateState::Updating, config, in_flight: Vec::new(), last_started: None });
    }

    /// Back to the spec before the last one, as a failed update does.
    pub(super) fn roll_back(&mut self, id: &ServiceId) -> Result<(), SwarmError> {
        let Some(record) = self.services.get(id) else { return Ok(()) };
        let Some((version, mut spec)) = record.previous.and_then(|v| Some((v, record.specs.get(&v)?.clone()))) else { return Ok(()) };
        // A scaling since then stays.
        spec.mode = record.spec.mode;
        let config = record.spec.rollback;
        self.give_spec(id, spec)?;
        if let Some(record) = self.services.get_mut(id) {
            record.previous = None;
            record.version = version;
            record.update = Some(UpdateProgress { state: UpdateState::RollingBack, config, in_flight: Vec::new(), last_started: None });
        }
        self.touch();
        Ok(())
    }

    pub fn scale(&mut self, service: &str, replicas: u64) -> Result<(), SwarmError> {
        let id = self.service_id(service).ok_or_else(|| unknown_service(service))?;
        let Some(record) = self.services.get_mut(&id) else { return Ok(()) };
        let invalid = |message: String| SwarmError::Invalid { service: service.to_owned(), message };
        if record.spec.mode == Mode::Global {
            return Err(invalid("a global service has one task on each node and cannot be scaled".to_owned()));
        }
        if replicas > MOST_REPLICAS {
            return Err(invalid(format!("{replicas} replicas are too many; {MOST_REPLICAS} is the most")));
        }
        record.spec.mode = Mode::Replicated { replicas };
        record.specs.insert(record.version, record.spec.clone());
        self.touch();
        Ok(())
    }

    /// Stops a service's tasks and then forgets it. Its name is free at once.
    pub fn remove_service(&mut self, service: &str) -> Result<(), SwarmError> {
        let id = self.service_id(service).ok_or_else(|| unknown_service(service))?;
        if let Some(record) = self.services.get_mut(&id) {
            record.removed = true;
            record.update = None;
        }
        self.touch();
        Ok(())
    }

    /// A service's id, found by its name or id.
    pub fn service_id(&self, service: &str) -> Option<ServiceId> {
        let there = || self.services.iter().filter(|(_, record)| !record.removed);
        there()
            .find(|(_, record)| record.spec.name == service)
            .or_else(|| there().find(|(id, _)| id.as_str() == service))
            .map(|(id, _)| id.clone())
    }

    /// The last of a removed service: its virtual IPs go back.
    pub(super) fn forget_service(&mut self, id: &ServiceId) {
        if let Some(record) = self.services.remove(id) {
            record.vips.iter().for_each(|vip| self.give_back(&vip.network, &vip.address));
            self.touch();
        }
    }

    /// Checks a spec against the swarm, and gives the service what follows from it. On an error the swarm is half changed:
    /// callers work on a copy.
    fn give_spec(&mut self, id: &ServiceId, spec: ServiceSpec) -> Result<(), SwarmError> {
        let invalid = |message: String| SwarmError::Invalid { service: spec.name.clone(), message };
        let ingress = ServiceRecord::uses_ingress(&spec);
        if ingress && spec.endpoint_mode == EndpointMode::Dnsrr {
            return Err(invalid("a dnsrr service cannot publish ports through ingress; use mode host".to_owned()));
        }
        if ingress && self.ingress_id().is_none() {
            return Err(invalid("it publishes ports through ingress, but the swarm has no ingress network".to_owned()));
        }
        if let Mode::Replicated { replicas } = spec.mode
            && replicas > MOST_REPLICAS
        {
            return Err(invalid(format!("{replicas} replicas are too many; {MOST_REPLICAS} is the most")));
        }
        let is_global = |mode: &Mode| *mode == Mode::Global;
        if self.services.get(id).is_some_and(|s| !s.specs.is_empty() && is_global(&s.spec.mode) != is_global(&spec.mode)) {
            return Err(invalid("a service cannot change between replicated and global; remove it first".to_owned()));
        }
        let mut networks = Vec::new();
        for wanted in &spec.networks {
            networks.push(self.network_id(&wanted.network).ok_or_else(|| unknown_network(&wanted.network))?);
        }
        let ports = self.allot_ports(id, &spec)?;
        let mut on: Vec<NetworkId> = Vec::new();
        if spec.endpoint_mode == EndpointMode::Vip {
            on.extend(self.ingress_id().filter(|_| ingress));
            on.extend(networks.iter().cloned());
        }
        let vips = self.allot_vips(id, &on)?;
        if let Some(record) = self.services.get_mut(id) {
            record.spec = spec;
            record.networks = networks;
            record.ports = ports;
            record.vips = vips;
        }
        Ok(())
    }

    /// Keeps the virtual IPs of networks that the service stays on.
    fn allot_vips(&mut self, id: &ServiceId, networks: &[NetworkId]) -> Result<Vec<VirtualIp>, SwarmError> {
        let old = self.services.get(id).map(|record| record.vips.clone()).unwrap_or_default();
        for vip in old.iter().filter(|vip| !networks.contains(&vip.network)) {
            self.give_back(&vip.network, &vip.address);
        }
        let mut vips = Vec::new();
        for network in networks {
            let kept: Vec<VirtualIp> = old.iter().filter(|vip| vip.network == *network).cloned().collect();
            if kept.is_empty() {
                let new = self.take_addresses(network)?;
                vips.extend(new.into_iter().map(|address| VirtualIp { network: network.clone(), address }));
            } else {
                vips.extend(kept);
            }
        }
        Ok(vips)
    }

    fn allot_ports(&mut self, id: &ServiceId, spec: &ServiceSpec) -> Result<Vec<Port>, SwarmError> {
        let name = || spec.name.clone();
        for port in &spec.ports {
            if let Some(other) = self.port_holder(id, port) {
                return Err(SwarmError::PortInUse { service: name(), port: text(port), other });
            }
        }
        // A removed service drains on, but not on a port that someone else wants.
        for record in self.services.values_mut().filter(|s| s.removed) {
            record.ports.retain(|held| !spec.ports.iter().any(|port| clash(held, port)));
        }
        let mut taken: BTreeSet<(Protocol, u16)> = self
            .services
            .iter()
            .filter(|(other, _)| *other != id)
            .flat_map(|(_, record)| &record.ports)
            .chain(&spec.ports)
            .filter_map(|p| Some((p.protocol, p.published_port?)))
            .collect();
        let old = self.services.get(id).map(|record| record.ports.clone()).unwrap_or_default();
        let mut ports = Vec::new();
        for port in &spec.ports {
            let mut port = port.clone();
            if port.publish_mode == PublishMode::Ingress && port.published_port.is_none() {
                let before = old.iter().find(|p| {
                    p.publish_mode == PublishMode::Ingress
                        && (p.target_port, p.protocol, &p.name) == (port.target_port, port.protocol, &port.name)
                        && p.published_port.is_some_and(|n| DYNAMIC_PORTS.contains(&n) && !taken.contains(&(p.protocol, n)))
                });
                let number = before
                    .and_then(|p| p.published_port)
                    .or_else(|| DYNAMIC_PORTS.into_iter().find(|n| !taken.contains(&(port.protocol, *n))))
                    .ok_or_else(|| SwarmError::NoPort { service: name() })?;
                taken.insert((port.protocol, number));
                port.published_port = Some(number);
            }
            ports.push(port);
        }
        Ok(ports)
    }

    /// The other service that has this published port. Two services may share one in host mode: they run on different nodes.
    fn port_holder(&self, id: &ServiceId, port: &Port) -> Option<String> {
        let others = self.services.iter().filter(|(other, record)| *other != id && !record.removed);
        others.map(|(_, record)| record).find(|record| record.ports.iter().any(|held| clash(held, port))).map(|r| r.spec.name.clone())
    }
}

fn clash(held: &Port, wanted: &Port) -> bool {
    held.published_port.is_some()
        && (held.published_port, held.protocol) == (wanted.published_port, wanted.protocol)
        && (held.publish_mode == PublishMode::Ingress || wanted.publish_mode == PublishMode::Ingress)
}

pub(super) fn text(port: &Port) -> String {
    format!("{}/{}", port.published_port.unwrap_or(port.target_port), port.protocol)
}

pub(super) fn unknown_service(name: &str) -> SwarmError {
    SwarmError::Unknown { kind: "service", name: name.to_owned() }
}
