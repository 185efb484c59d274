//! Networks, the nodes' own addresses in them, and the tasks'.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use swarmesh_model::{NetworkId, NodeId, Subnet, TaskAddress, TaskId};

use super::{DEFAULT_MTU, Swarm, SwarmError, ipam, ipam::Pool, state::NetworkRecord};
use crate::stack::NetworkSpec;

impl NetworkRecord {
    pub(super) fn subnets(&self) -> Vec<Subnet> {
        self.pools.iter().map(|pool| Subnet { subnet: pool.subnet, gateway: pool.gateway }).collect()
    }

    pub(super) fn mtu(&self) -> u32 {
        self.asked.mtu.unwrap_or(DEFAULT_MTU)
    }

    /// One address of each family, or none at all.
    fn take(&mut self) -> Result<Vec<IpAddr>, SwarmError> {
        let mut taken: Vec<IpAddr> = Vec::new();
        let mut full = None;
        // The first pool of a family that has one left: a network may have several subnets.
        for pool in &mut self.pools {
            if taken.iter().any(|a| a.is_ipv4() == pool.subnet.addr().is_ipv4()) {
                continue;
            }
            match pool.take() {
                Some(address) => taken.push(address),
                None => full = full.or(Some(pool.subnet)),
            }
        }
        match full {
            Some(subnet) if !taken.iter().any(|a| a.is_ipv4() == subnet.addr().is_ipv4()) => {
                taken.iter().for_each(|address| self.give_back(address));
                Err(SwarmError::NoAddress { network: self.asked.name.clone(), subnet })
            }
            _ => Ok(taken),
        }
    }

    fn give_back(&mut self, address: &IpAddr) {
        self.pools.iter_mut().filter(|pool| pool.subnet.contains(address)).for_each(|pool| pool.give_back(address));
    }
}

impl Swarm {
    /// Makes an overlay network, with subnets from the address pools where it has none.
    pub fn create_network(&mut self, spec: &NetworkSpec) -> Result<NetworkId, SwarmError> {
        let id = self.add_network(spec, false)?;
        self.touch();
        Ok(id)
    }

    pub(super) fn add_network(&mut self, spec: &NetworkSpec, ingress: bool) -> Result<NetworkId, SwarmError> {
        if self.network_id(&spec.name).is_some() {
            return Err(SwarmError::Exists { kind: "network", name: spec.name.clone() });
        }
        let mut subnets = spec.subnets.clone();
        for (index, subnet) in spec.subnets.iter().enumerate() {
            let earlier = spec.subnets[..index].iter().map(|s| (spec.name.as_str(), s.subnet));
            if let Some((name, other)) = self.all_subnets().chain(earlier).find(|(_, s)| NetworkSpec::overlap(s, &subnet.subnet)) {
                return Err(SwarmError::Overlap {
                    network: spec.name.clone(),
                    subnet: subnet.subnet,
                    other_network: name.to_owned(),
                    other,
                });
            }
        }
        let mut taken: Vec<IpNet> = self.all_subnets().map(|(_, subnet)| subnet).collect();
        if !subnets.iter().any(|s| s.subnet.addr().is_ipv4()) {
            taken.extend(subnets.iter().map(|s| s.subnet));
            let pool = IpNet::V4(self.config.address_pool.base);
            let free = ipam::free_subnet(pool, self.config.address_pool.size, &taken).ok_or(SwarmError::NoSubnet { pool })?;
            subnets.insert(0, Subnet { subnet: free, gateway: None });
        }
        if spec.enable_ipv6 && !subnets.iter().any(|s| s.subnet.addr().is_ipv6()) {
            let pool = self.config.address_pool_v6;
            let free = ipam::free_subnet(pool, 64, &taken).ok_or(SwarmError::NoSubnet { pool })?;
            subnets.push(Subnet { subnet: free, gateway: None });
        }
        let (order, id) = self.next_id(&spec.name);
        let id = NetworkId::from(id);
        let pools = subnets.into_iter().map(|s| Pool::new(s.subnet, s.gateway)).collect();
        self.networks.insert(id.clone(), NetworkRecord { order, asked: spec.clone(), ingress, pools, removed: false });
        Ok(id)
    }

    /// Removes a network that nothing uses, by name or id.
    pub fn remove_network(&mut self, network: &str) -> Result<(), SwarmError> {
        let id = self.network_id(network).ok_or_else(|| unknown_network(network))?;
        let user = self.services.values().find(|s| s.networks.contains(&id)).map(|s| format!("service {}", s.spec.name));
        let user = user
            .or_else(|| self.tasks.values().find(|t| t.addresses.iter().any(|a| a.network == id)).map(|t| format!("task {}", t.name)))
            .or_else(|| self.networks.get(&id).filter(|n| n.ingress).map(|_| "the routing mesh".to_owned()));
        match user {
            Some(user) => Err(SwarmError::InUse { kind: "network", name: network.to_owned(), user }),
            None => {
                self.networks.remove(&id);
                self.touch();
                Ok(())
            }
        }
    }

    /// A network's id, found by its name or id.
    pub fn network_id(&self, network: &str) -> Option<NetworkId> {
        let by_name = self.networks.iter().find(|(_, record)| record.asked.name == network);
        by_name.map(|(id, _)| id.clone()).or_else(|| self.networks.get_key_value(network).map(|(id, _)| id.clone()))
    }

    pub(super) fn ingress_id(&self) -> Option<NetworkId> {
        self.networks.iter().find(|(_, record)| record.ingress).map(|(id, _)| id.clone())
    }

    fn all_subnets(&self) -> impl Iterator<Item = (&str, IpNet)> {
        self.networks.values().flat_map(|n| n.pools.iter().map(|p| (n.asked.name.as_str(), p.subnet)))
    }

    pub(super) fn take_addresses(&mut self, network: &NetworkId) -> Result<Vec<IpAddr>, SwarmError> {
        self.networks.get_mut(network).ok_or_else(|| unknown_network(network.as_str()))?.take()
    }

    pub(super) fn give_back(&mut self, network: &NetworkId, address: &IpAddr) {
        if let Some(record) = self.networks.get_mut(network) {
            record.give_back(address);
        }
    }

    /// Addresses in each of the networks, or in none of them.
    pub(super) fn address_task(&mut self, networks: &[NetworkId], aliases: &[String]) -> Result<Vec<TaskAddress>, SwarmError> {
        let mut addresses: Vec<TaskAddress> = Vec::new();
        for network in networks {
            match self.take_addresses(network) {
                Ok(taken) => addresses.extend(taken.into_iter().map(|address| TaskAddress {
                    network: network.clone(),
                    address,
                    aliases: aliases.to_vec(),
                    links: Default::default(),
                })),
                Err(error) => {
                    addresses.iter().for_each(|a| self.give_back(&a.network, &a.address));
                    return Err(error);
                }
            }
        }
        Ok(addresses)
    }

    /// The node needs an address of its own in each network that it has a task in.
    pub(super) fn ensure_endpoints(&mut self, node: &NodeId, networks: &BTreeSet<NetworkId>) -> Result<(), SwarmError> {
        for network in networks {
            let missing = self.nodes.get(node).is_some_and(|n| !n.endpoints.contains_key(network));
            if missing {
                let addresses = self.take_addresses(network)?;
                if let Some(record) = self.nodes.get_mut(node) {
                    record.endpoints.insert(network.clone(), addresses);
                }
            }
        }
        Ok(())
    }

    /// Gives the nodes' addresses back in networks where they have no task left. Every node stays on ingress.
    pub(super) fn release_endpoints(&mut self) {
        let mut used: BTreeSet<(&NodeId, &NetworkId)> = BTreeSet::new();
        for task in self.tasks.values() {
            if let Some(node) = &task.node {
                used.extend(task.addresses.iter().map(|a| (node, &a.network)));
            }
        }
        let is_ingress = |network: &NetworkId| self.networks.get(network).is_some_and(|n| n.ingress);
        let unused: Vec<(NodeId, NetworkId)> = self
            .nodes
            .iter()
            .flat_map(|(node, record)| record.endpoints.keys().map(move |network| (node, network)))
            .filter(|(node, network)| !is_ingress(network) && !used.contains(&(*node, *network)))
            .map(|(node, network)| (node.clone(), network.clone()))
            .collect();
        for (node, network) in unused {
            let addresses = self.nodes.get_mut(&node).and_then(|n| n.endpoints.remove(&network)).unwrap_or_default();
            addresses.iter().for_each(|address| self.give_back(&network, address));
        }
    }

    pub(super) fn networks_of(&self, task: &TaskId) -> BTreeSet<NetworkId> {
        self.tasks.get(task).map(|t| t.addresses.iter().map(|a| a.network.clone()).collect()).unwrap_or_default()
    }
}

pub(super) fn unknown_network(name: &str) -> SwarmError {
    SwarmError::Unknown { kind: "network", name: name.to_owned() }
}
