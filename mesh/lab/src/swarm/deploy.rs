//! Stacks: `docker stack deploy` and `docker stack rm`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;
use swarmesh_model::{Role, Snapshot};

use super::{Action, Changes, NodeSpec, Observed, Swarm, SwarmConfig, SwarmError, state::NetworkRecord};
use crate::stack::{Mode, NetworkSpec, STACK_LABEL, Stack, StackError};

impl Swarm {
    /// Makes and updates a stack's networks and services. All or nothing.
    pub fn deploy(&mut self, stack: &Stack) -> Result<Changes, SwarmError> {
        let mut next = self.clone();
        let changes = next.deploy_to(stack)?;
        *self = next;
        Ok(changes)
    }

    /// As [`Swarm::deploy`], and removes services of the stack that the file no longer has.
    pub fn deploy_and_prune(&mut self, stack: &Stack) -> Result<Changes, SwarmError> {
        let mut next = self.clone();
        // First, so that a renamed service finds its published port free.
        let kept: BTreeSet<&str> = stack.services.iter().map(|s| s.spec.name.as_str()).collect();
        let mut gone: Vec<String> = next.services_of(&stack.name);
        gone.retain(|name| !kept.contains(name.as_str()));
        for name in &gone {
            next.remove_service(name)?;
        }
        let mut changes = next.deploy_to(stack)?;
        changes.services_removed = gone;
        *self = next;
        Ok(changes)
    }

    fn deploy_to(&mut self, stack: &Stack) -> Result<Changes, SwarmError> {
        let mut changes = Changes::default();
        changes.notes.extend(stack.notes.iter().map(|n| match n.line {
            0 => format!("{}: {}", n.place, n.message),
            line => format!("line {line}: {}: {}", n.place, n.message),
        }));
        // Networks with a given subnet first, so that none of the others is put in its way.
        let (fixed, free): (Vec<_>, Vec<_>) = stack.networks.iter().partition(|n| !n.spec.subnets.is_empty());
        for network in fixed.into_iter().chain(free) {
            let name = &network.spec.name;
            let there = self.network_id(name).and_then(|id| self.networks.get_mut(&id));
            match (there, network.external) {
                (Some(record), external) => {
                    record.removed = false;
                    if !external && record.asked != network.spec {
                        changes.notes.push(format!("network {name} exists already and is left as it is; remove it first to change it"));
                    }
                }
                (None, external) => {
                    let mut spec = network.spec.clone();
                    if external {
                        // Nobody else is here who could have made it.
                        spec = NetworkSpec { attachable: true, ..spec };
                        changes.notes.push(format!("network {name} is external and did not exist: made as an attachable overlay network"));
                    }
                    self.create_network(&spec)?;
                    changes.networks_created.push(name.clone());
                }
            }
        }
        for service in &stack.services {
            let name = service.spec.name.clone();
            match self.service_id(&name).and_then(|id| self.services.get(&id)) {
                None => {
                    self.add_service(service.spec.clone())?;
                    changes.services_created.push(name);
                }
                Some(record) if record.spec == service.spec => changes.services_unchanged.push(name),
                Some(_) => {
                    self.change_service(service.spec.clone())?;
                    changes.services_updated.push(name);
                }
            }
        }
        Ok(changes)
    }

    /// Removes a stack's services at once, and those of its networks that nothing else uses as soon as they are empty.
    pub fn remove_stack(&mut self, stack: &str) -> Result<Changes, SwarmError> {
        let services = self.services_of(stack);
        let is_its = |record: &&mut NetworkRecord| !record.removed && record.asked.labels.get(STACK_LABEL).is_some_and(|s| s == stack);
        let mut networks: Vec<&mut NetworkRecord> = self.networks.values_mut().filter(is_its).collect();
        networks.sort_by_key(|record| record.order);
        let names: Vec<String> = networks.iter().map(|record| record.asked.name.clone()).collect();
        if services.is_empty() && names.is_empty() {
            return Err(SwarmError::Unknown { kind: "stack", name: stack.to_owned() });
        }
        networks.into_iter().for_each(|record| record.removed = true);
        for service in &services {
            self.remove_service(service)?;
        }
        self.touch();
        Ok(Changes { services_removed: services, networks_removed: names, ..Changes::default() })
    }

    /// Removed networks go with their last user.
    pub(super) fn forget_networks(&mut self) {
        let removed: Vec<_> = self.networks.iter().filter(|(_, n)| n.removed).map(|(id, _)| id.clone()).collect();
        for id in removed {
            // In use still: the next round tries again.
            let _ = self.remove_network(id.as_str());
        }
    }

    fn services_of(&self, stack: &str) -> Vec<String> {
        let mut services: Vec<_> = self
            .services
            .values()
            .filter(|s| !s.removed && s.spec.labels.get(STACK_LABEL).is_some_and(|s| s == stack))
            .map(|s| (s.order, s.spec.name.clone()))
            .collect();
        services.sort_unstable();
        services.into_iter().map(|(_, name)| name).collect()
    }
}

impl Stack {
    /// Why the swarm refuses this stack, at the line of the network or service that it refuses.
    pub(crate) fn refused(&self, error: &SwarmError) -> StackError {
        let network = |name: &str| self.networks.iter().find(|n| n.spec.name == name).map(|n| (n.line, format!("networks.{}", n.key)));
        let service = |name: &str| self.services.iter().find(|s| s.spec.name == name).map(|s| (s.line, format!("services.{}", s.name)));
        let found = match error {
            SwarmError::NoAddress { network: name, .. } | SwarmError::Overlap { network: name, .. } => network(name),
            SwarmError::PortInUse { service: name, .. }
            | SwarmError::NoPort { service: name }
            | SwarmError::Invalid { service: name, .. } => service(name),
            SwarmError::Unknown { .. } | SwarmError::Exists { .. } | SwarmError::InUse { .. } | SwarmError::NoSubnet { .. } => None,
        };
        let (line, place) = found.unwrap_or_default();
        StackError { file: self.file.clone(), line, column: usize::from(line > 0), place, message: error.to_string() }
    }
}

/// The swarm as it would be with this stack alone on `nodes` imaginary nodes and every task running.
pub fn snapshot_of(stack: &Stack, nodes: usize) -> Result<Snapshot, StackError> {
    let hosts = (1..=nodes).map(|number| NodeSpec {
        hostname: format!("node-{number}"),
        // 198.18.0.0/15 is for benchmarks: it meets no one's subnets.
        address: std::net::Ipv4Addr::from_bits(0xc612_0000 | (number as u32 & 0x1_ffff)).into(),
        address_v6: None,
        role: if number == 1 { Role::Manager } else { Role::Worker },
        labels: BTreeMap::new(),
        engine: None,
    });
    // Docker's /24 is too small for some plans that are worth looking at.
    let tasks: u64 = stack.services.iter().map(|s| if let Mode::Replicated { replicas } = s.spec.mode { replicas } else { 0 }).sum();
    let addresses = tasks + (stack.services.len() as u64 + 2) * (nodes as u64 + 2);
    let size = (12..=24u8).rev().find(|size| (1u64 << (32 - size)) > addresses).unwrap_or(12);
    let mut config = SwarmConfig { nodes: hosts.collect(), ..SwarmConfig::default() };
    config.address_pool.size = size;
    if let Some(ingress) = &mut config.ingress {
        ingress.subnet = IpNet::new(ingress.subnet.addr(), size).unwrap_or(ingress.subnet);
    }
    let mut swarm = Swarm::new(config).map_err(|error| stack.refused(&error))?;
    swarm.deploy(stack).map_err(|error| stack.refused(&error))?;
    loop {
        let actions = swarm.reconcile(Duration::ZERO);
        if actions.is_empty() {
            return Ok(swarm.snapshot());
        }
        for action in actions {
            if let Action::StartTask { task, .. } = action {
                swarm.observe(&task, Observed::Running);
            }
        }
    }
}
