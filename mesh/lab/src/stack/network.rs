//! The top-level `networks` section.

use std::net::IpAddr;

use ipnet::IpNet;
use swarmesh_model::Subnet;

use super::{
    NetworkSpec, StackNetwork, keys,
    tree::shown,
    value::{Fields, Read, Value},
};

/// A network and where the file declares it.
pub(super) struct NetworkAt<'a> {
    pub(super) network: StackNetwork,
    pub(super) subnets: Vec<(Subnet, Value<'a>)>,
    pub(super) at: Value<'a>,
    /// One of the networks that each node has for itself, and that service networking has nothing to do with.
    pub(super) node_local: bool,
}

/// Bytes that VXLAN takes from each packet.
const VXLAN_OVERHEAD: u64 = 50;

pub(super) fn network<'a>(key: &str, at: Value<'a>, value: &Value<'a>, stack: &str) -> Read<NetworkAt<'a>> {
    check_name(key, &at)?;
    let made = |spec, external| StackNetwork { key: key.to_owned(), line: at.line(), external, spec };
    let default_name = format!("{stack}_{key}");
    if value.is_null() {
        let network = made(NetworkSpec::overlay(default_name), false);
        return Ok(NetworkAt { network, subnets: Vec::new(), at, node_local: false });
    }
    let fields = value.fields(keys::NETWORK, keys::NETWORK_IGNORED)?;
    let name = fields.optional("name", name)?;
    if let Some(external) = external(&fields, key)? {
        if let Some(extra) = ["driver", "driver_opts", "ipam", "internal", "labels"].iter().find_map(|k| fields.get(k)) {
            return Err(extra.fail("an external network is made by someone else; this cannot be set here"));
        }
        let name = name.unwrap_or(external);
        let node_local = matches!(name.as_str(), "host" | "none" | "bridge");
        return Ok(NetworkAt { network: made(NetworkSpec::overlay(name), true), subnets: Vec::new(), at, node_local });
    }
    let mut spec = NetworkSpec::overlay(name.unwrap_or(default_name));
    if let Some(driver) = fields.get("driver") {
        spec.driver = driver.full_text()?;
        match spec.driver.as_str() {
            "overlay" => {}
            "bridge" | "host" | "none" | "null" => {
                return Err(driver.fail(format!("a {} network ends at its node; services need driver overlay", spec.driver)));
            }
            other => driver.note(format!("driver {} is not emulated: the network behaves as an overlay", shown(other))),
        }
    }
    if let Some(options) = fields.get("driver_opts") {
        for (option, _, value) in options.named()? {
            match option.as_str() {
                "com.docker.network.driver.mtu" => {
                    let outside = value.number("an MTU", 576, 65535)?;
                    spec.mtu = u32::try_from(outside - VXLAN_OVERHEAD).ok();
                }
                "encrypted" => value.note("traffic is not encrypted here"),
                _ => {}
            }
        }
    }
    spec.attachable = fields.read("attachable", false, Value::boolean)?;
    spec.internal = fields.read("internal", false, Value::boolean)?;
    spec.enable_ipv6 = fields.read("enable_ipv6", false, Value::boolean)?;
    spec.labels = fields.read("labels", spec.labels, Value::labels)?;
    let subnets = fields.read("ipam", Vec::new(), ipam)?;
    spec.enable_ipv6 |= subnets.iter().any(|(s, _)| s.subnet.addr().is_ipv6());
    spec.subnets = subnets.iter().map(|(subnet, _)| subnet.clone()).collect();
    Ok(NetworkAt { network: made(spec, false), subnets, at, node_local: false })
}

/// The name of an external network: `true`, or the older `{name: …}`.
fn external(fields: &Fields<'_>, key: &str) -> Read<Option<String>> {
    let Some(value) = fields.get("external") else { return Ok(None) };
    if value.is_scalar() {
        return Ok(value.boolean()?.then(|| key.to_owned()));
    }
    let inner = value.fields(&["name"], &[])?;
    Ok(Some(inner.optional("name", name)?.unwrap_or_else(|| key.to_owned())))
}

fn name(value: &Value<'_>) -> Read<String> {
    let name = value.full_text()?;
    check_name(&name, value)?;
    Ok(name)
}

fn check_name(name: &str, at: &Value<'_>) -> Read<()> {
    let fine = !name.is_empty()
        && name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if fine { Ok(()) } else { Err(at.fail(format!("{:?} is not a network's name; use letters, digits, dots, - and _", shown(name)))) }
}

fn ipam<'a>(value: &Value<'a>) -> Read<Vec<(Subnet, Value<'a>)>> {
    let fields = value.fields(keys::IPAM, keys::IPAM_IGNORED)?;
    let mut subnets = Vec::new();
    let Some(config) = fields.get("config") else { return Ok(subnets) };
    for item in config.list()? {
        let fields = item.fields(keys::SUBNET, keys::SUBNET_IGNORED)?;
        let gateway = fields.get("gateway");
        let Some(at) = fields.get("subnet") else {
            match gateway {
                Some(gateway) => return Err(gateway.fail("a gateway needs its subnet")),
                None => continue,
            }
        };
        let text = at.full_text()?;
        let subnet: IpNet = text.parse().map_err(|_| at.fail(format!("{:?} is not a subnet; write it like 10.1.0.0/24", shown(&text))))?;
        let subnet = subnet.trunc();
        if !is_for_hosts(&subnet) {
            return Err(at.fail(format!("{subnet} cannot be a network's subnet: it is loopback, link-local or multicast")));
        }
        let gateway = gateway.map(|gateway| read_gateway(&gateway, &subnet)).transpose()?;
        subnets.push((Subnet { subnet, gateway }, at));
    }
    Ok(subnets)
}

/// Addresses that a task can have, and that lead from one node to another.
fn is_for_hosts(subnet: &IpNet) -> bool {
    match subnet.network() {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_multicast(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_multicast() && !address.is_unicast_link_local(),
    }
}

fn read_gateway(value: &Value<'_>, subnet: &IpNet) -> Read<IpAddr> {
    let text = value.full_text()?;
    let gateway: IpAddr = text.parse().map_err(|_| value.fail(format!("{:?} is not an IP address", shown(&text))))?;
    let point_to_point = subnet.max_prefix_len() - subnet.prefix_len() < 2;
    if !subnet.contains(&gateway) {
        Err(value.fail(format!("gateway {gateway} is outside of {subnet}")))
    } else if !point_to_point && (gateway == subnet.network() || (gateway.is_ipv4() && gateway == subnet.broadcast())) {
        Err(value.fail(format!("{gateway} is the network or broadcast address of {subnet}, and no gateway")))
    } else {
        Ok(gateway)
    }
}
