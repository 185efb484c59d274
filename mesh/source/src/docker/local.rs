//! Networks of this node alone, such as user-defined bridges: their members have names, and nothing else of a swarm's network.

use std::{collections::BTreeSet, sync::Arc};

use swarmesh_model::{Network, Snapshot, Subnet};

use super::{
    decode::{Decoded, FromDocker, Odd},
    wire,
};

/// In these, containers have no names: the engine's own three (moby's `IsPreDefined`), and the bridge that is the tasks' way out.
const NAMELESS: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct LocalNetwork {
    network: Arc<Network>,
}

impl FromDocker for LocalNetwork {
    type Wire = wire::Network;
    const KIND: &'static str = Network::KIND;

    fn id(&self) -> &str {
        self.network.id.as_str()
    }

    fn from_wire(mut wire: wire::Network) -> Result<Option<Decoded<Self>>, Odd> {
        // Bridges, macvlans and ipvlans are told by their scope, and plugins' networks with them: to Docker's resolver they are all one.
        if wire.scope != "local" || NAMELESS.contains(&wire.name.as_str()) || matches!(wire.driver.as_str(), "host" | "null") {
            return Ok(None);
        }
        // Read as a network of the swarm, which differs in its scope alone.
        wire.scope.clear();
        wire.ingress = false;
        Ok(Network::from_wire(wire)?.map(|Decoded { object, problems }| {
            let network = Arc::new(Network { local: true, ..object });
            Decoded { object: Self { network }, problems }
        }))
    }
}

/// Adds those of the networks that somebody is on. The swarm's networks must be in the snapshot already.
pub(super) fn add<'a>(snapshot: &mut Snapshot, networks: impl Iterator<Item = &'a Arc<LocalNetwork>>, joined: &BTreeSet<&str>) {
    for LocalNetwork { network } in networks.map(AsRef::as_ref).filter(|n| joined.contains(n.id())) {
        if snapshot.networks.contains_key(&network.id) {
            continue;
        }
        // Docker keeps the swarm's addresses and a node's own apart, so one range can be in use in both; and macvlans may give
        // a gateway elsewhere. A snapshot has one table of networks, each with ranges of its own, and names do not need them.
        let fits = |s: &Subnet| s.gateway.is_none_or(|g| s.subnet.contains(&g)) && !overlaps(snapshot, s);
        let network = if network.subnets.iter().all(fits) {
            Arc::clone(network)
        } else {
            let subnets = network.subnets.iter().filter(|s| fits(s)).cloned().collect();
            Arc::new(Network { subnets, ..Network::clone(network) })
        };
        snapshot.networks.insert(network.id.clone(), network);
    }
}

fn overlaps(snapshot: &Snapshot, new: &Subnet) -> bool {
    let others = snapshot.networks.values().flat_map(|n| &n.subnets);
    others.map(|s| s.subnet).any(|other| other.contains(&new.subnet) || new.subnet.contains(&other))
}
