//! What the parts of a file have to do with each other.

use std::collections::{BTreeMap, BTreeSet};

use swarmesh_model::{EndpointMode, Protocol, PublishMode};

use super::{
    NetworkSpec, NetworkUse, STACK_LABEL, StackNetwork, StackService, keys, network::NetworkAt, service::ServiceAt, tree::shown,
    value::Read,
};

/// The network of services that name none.
const DEFAULT: &str = "default";

/// Checks services and networks against each other, and gives the services their networks' full names.
pub(super) fn join<'a>(
    services: Vec<ServiceAt<'a>>,
    networks: Vec<NetworkAt<'a>>,
    stack: &str,
) -> Read<(Vec<StackService>, Vec<StackNetwork>)> {
    check_subnets(&networks)?;
    check_names(&networks)?;
    check_ports(&services)?;
    let declared: BTreeMap<&str, &NetworkAt<'a>> = networks.iter().map(|n| (n.network.key.as_str(), n)).collect();
    let full_name = |key: &str| declared.get(key).map_or_else(|| format!("{stack}_{key}"), |n| n.network.spec.name.clone());
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut joined = Vec::new();
    for service in services {
        let mut spec = service.spec;
        let mut uses = Vec::new();
        for (wanted, at) in &service.networks {
            let key = wanted.network.as_str();
            let Some(network) = declared.get(key) else {
                if key == DEFAULT {
                    uses.push(wanted.clone());
                    continue;
                }
                let near = keys::closest(key, declared.keys()).map_or_else(String::new, |near| format!("; did you mean {near}?"));
                return Err(at.fail(format!("network {} is not among the networks of this file{near}", shown(key))));
            };
            if network.node_local {
                at.note(format!("the {} network is the node's own and is left out here", network.network.spec.name));
            } else {
                uses.push(wanted.clone());
            }
        }
        if service.networks.is_empty() {
            uses.push(NetworkUse { network: DEFAULT.to_owned(), aliases: Vec::new() });
        }
        for wanted in uses {
            used.insert(wanted.network.clone());
            // Docker's command line gives each service its short name, which is how the others of the stack know it.
            let mut aliases = vec![service.name.clone()];
            aliases.extend(wanted.aliases.into_iter().filter(|alias| *alias != service.name));
            spec.networks.push(NetworkUse { network: full_name(&wanted.network), aliases });
        }
        joined.push(StackService { name: service.name, line: service.at.line(), spec });
    }
    let needs_default = used.contains(DEFAULT) && !declared.contains_key(DEFAULT);
    let mut kept: Vec<StackNetwork> = Vec::new();
    for network in networks {
        if used.contains(&network.network.key) {
            kept.push(network.network);
        } else if !network.node_local {
            network.at.note("no service is on this network; it is not made");
        }
    }
    if needs_default {
        let spec = NetworkSpec::overlay(format!("{stack}_{DEFAULT}"));
        kept.push(StackNetwork { key: DEFAULT.to_owned(), line: 0, external: false, spec });
    }
    for network in kept.iter_mut().filter(|n| !n.external) {
        network.spec.labels.insert(STACK_LABEL.to_owned(), stack.to_owned());
    }
    Ok((joined, kept))
}

fn check_subnets(networks: &[NetworkAt<'_>]) -> Read<()> {
    let all: Vec<_> = networks.iter().flat_map(|n| n.subnets.iter().map(move |(s, at)| (&n.network.key, s.subnet, at))).collect();
    for (index, (_, subnet, at)) in all.iter().enumerate() {
        if let Some((key, other, _)) = all.iter().take(index).find(|(_, other, _)| NetworkSpec::overlap(other, subnet)) {
            return Err(at.fail(format!("{subnet} overlaps {other} of network {key}")));
        }
    }
    Ok(())
}

/// With two keys for one network, a service on both would join it twice.
fn check_names(networks: &[NetworkAt<'_>]) -> Read<()> {
    for (index, one) in networks.iter().enumerate() {
        let same = |other: &&NetworkAt<'_>| other.network.spec.name == one.network.spec.name;
        if let Some(other) = networks.iter().take(index).find(same) {
            return Err(one.at.fail(format!("this is network {} again, as is {}", one.network.spec.name, other.network.key)));
        }
    }
    Ok(())
}

fn check_ports(services: &[ServiceAt<'_>]) -> Read<()> {
    let mut published: BTreeMap<(Protocol, u16), Vec<(PublishMode, &str)>> = BTreeMap::new();
    for service in services {
        for port in &service.ports {
            let (mode, protocol) = (port.port.publish_mode, port.port.protocol);
            if mode == PublishMode::Ingress && service.spec.endpoint_mode == EndpointMode::Dnsrr {
                return Err(port.at.fail("a dnsrr service cannot publish ports through ingress; use mode: host"));
            }
            let Some(number) = port.port.published_port else { continue };
            let holders = published.entry((protocol, number)).or_default();
            // Host mode alone may share: the tasks are then on different nodes.
            if let Some((_, other)) = holders.iter().find(|(held, _)| PublishMode::Ingress == *held || PublishMode::Ingress == mode) {
                return Err(port.at.fail(format!("{number}/{protocol} is published by service {other} already")));
            }
            holders.push((mode, &service.name));
        }
    }
    Ok(())
}
