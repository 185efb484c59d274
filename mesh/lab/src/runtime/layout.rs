//! The machines of a lab, as namespaces: one LAN, nodes laid out as Docker lays them out, and clients beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::symlink,
};

use swarmesh_model::NetworkId;

use super::{
    RuntimeError,
    error::Doing,
    listener::Listener,
    names::{LabName, netns_path},
    netns,
    protocol::Setup,
    rules::{self, Layout, Published},
    tools::{Batch, iptables_restore},
};
use crate::swarm::{InterfaceAddress, NodeEndpoint};

pub(crate) const GWBRIDGE: &str = "docker_gwbridge";
pub(crate) const GWBRIDGE_NET: &str = "172.18.0.0/16";
/// With an ingress network that has IPv6.
pub(crate) const GWBRIDGE_NET_V6: &str = "fd00:5741:18::/64";
const DOCKER0_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
pub(super) const GWBRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// The ingress sandbox's address on docker_gwbridge.
pub(crate) const INGRESS_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
const FIRST_VNI: u32 = 4096;
const LAN_BRIDGE: &str = "lan0";
/// More would run into the clients' addresses.
pub(crate) const MOST_NODES: u8 = 89;
pub(crate) const MOST_CLIENTS: u8 = 100;

pub(crate) fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + number)
}

pub(crate) fn client_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + number)
}

/// The IPv6 address that ends in the same digits.
pub(crate) fn address_v6(address: Ipv4Addr) -> IpAddr {
    let last = u16::from(address.octets()[3]);
    let digits = ((last / 100) << 8) | ((last / 10 % 10) << 4) | (last % 10);
    IpAddr::from([0xfd00, 0x5741, 0, 0, 0, 0, 0, digits])
}

/// An address on docker_gwbridge in one of the two families: both end in the same 16 bits.
pub(crate) fn gateway_of(address: Ipv4Addr, v6: bool) -> IpAddr {
    let [_, _, high, low] = address.octets();
    if v6 { [0xfd00, 0x5741, 0x18, 0, 0, 0, 0, u16::from_be_bytes([high, low])].into() } else { address.into() }
}

/// As Docker derives it, so that a packet's sender can be told by its MAC address.
pub(crate) fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// What every bridge of ours is spared: a second pass of each frame through the host's firewall.
const NO_BRIDGE_FIREWALL: [&str; 3] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables"];

fn spare_bridges() {
    for name in NO_BRIDGE_FIREWALL {
        // Absent where the kernel does not do it anyway.
        let _ = netns::sysctl(&[(name, "0")]);
    }
}

/// Kernel parameters of a new node or sandbox, which would otherwise be those of whatever host the lab runs on.
pub(super) fn parameters(forward: bool, rp_filter: u8) -> Result<(), RuntimeError> {
    let rp_filter = rp_filter.to_string();
    netns::sysctl(&[
        ("net/ipv4/ip_forward", if forward { "1" } else { "0" }),
        ("net/ipv4/conf/all/rp_filter", &rp_filter),
        ("net/ipv4/conf/default/rp_filter", &rp_filter),
    ])
}

/// Makes the LAN and the clients on it.
pub(crate) fn create_lan(lab: &LabName, clients: u8) -> Result<(), RuntimeError> {
    let lan = lab.netns("lan");
    netns::create(&lan, || {
        spare_bridges();
        Ok(())
    })?;
    let gateway = Ipv4Addr::new(192, 0, 2, 1);
    let mut batch = Batch::default();
    batch.add("link set lo up");
    batch.add(format!("link add {LAN_BRIDGE} up type bridge"));
    batch.add(format!("addr add {gateway}/24 dev {LAN_BRIDGE}"));
    batch.add(format!("addr add {}/64 dev {LAN_BRIDGE} nodad", address_v6(gateway)));
    batch.run(&lan)?;
    for number in 1..=clients {
        let name = format!("client{number}");
        netns::create(&lab.netns(&name), || Ok(()))?;
        plug_in(lab, &name, client_address(number))?;
    }
    Ok(())
}

/// Gives a machine its interface on the LAN, under its own name there.
fn plug_in(lab: &LabName, machine: &str, address: Ipv4Addr) -> Result<(), RuntimeError> {
    let netns = lab.netns(machine);
    let mut batch = Batch::default();
    // A machine keeps its MAC address over a boot, as its neighbours expect.
    let mac = mac(address);
    batch.add(format!("link add {machine} master {LAN_BRIDGE} up type veth peer name eth0 netns {netns} address {mac}"));
    batch.run(&lab.netns("lan"))?;
    let mut batch = Batch::default();
    batch.add("link set lo up");
    batch.add(format!("addr add {address}/24 brd + dev eth0"));
    batch.add(format!("addr add {}/64 dev eth0 nodad", address_v6(address)));
    batch.add("link set eth0 up");
    batch.add("route add default via 192.0.2.1");
    batch.add(format!("route add default via {}", address_v6(Ipv4Addr::new(192, 0, 2, 1))));
    batch.run(&netns)
}

/// An overlay network, as each node needs to know it.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    id: NetworkId,
    vni: u32,
    mtu: u32,
    gateways: Vec<(IpAddr, u8)>,
}

/// Numbers the overlays in the order of their first use.
#[derive(Debug, Default)]
pub(crate) struct Overlays {
    vnis: BTreeMap<NetworkId, u32>,
    next: u32,
}

impl Overlays {
    pub(crate) fn describe(&mut self, id: &NetworkId, mtu: u32, addresses: &[InterfaceAddress]) -> Overlay {
        let next = &mut self.next;
        let vni = *self.vnis.entry(id.clone()).or_insert_with(|| {
            *next += 1;
            FIRST_VNI + *next - 1
        });
        let gateways = addresses.iter().filter_map(|a| Some((a.gateway?, a.prefix))).collect();
        Overlay { id: id.clone(), vni, mtu, gateways }
    }

    pub(crate) fn vni(&self, id: &NetworkId) -> Option<u32> {
        self.vnis.get(id).copied()
    }
}

/// One node's part of the layout.
#[derive(Debug)]
pub(crate) struct NodeLayout {
    pub(super) lab: LabName,
    pub(super) layout: Layout,
    pub(super) rp_filter: u8,
    /// The families of docker_gwbridge: IPv4, and IPv6 (true) where the ingress network has it.
    families: &'static [bool],
    pub(super) hostname: String,
    address: Ipv4Addr,
    /// The other nodes' addresses.
    peers: Vec<Ipv4Addr>,
    /// The namespaces of the overlays that something on this node has joined.
    overlays: BTreeMap<NetworkId, String>,
    /// Addresses on docker_gwbridge.
    pub(super) gateways: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<Published>,
    /// A port has been published since the node was booted.
    has_ingress_chains: bool,
    /// Docker's, up to 29.7: one for each published port, which nobody ever accepts from.
    listeners: BTreeMap<Published, Listener>,
}

impl NodeLayout {
    pub(crate) fn new(lab: &LabName, setup: &Setup, number: u8) -> Self {
        let nodes = setup.nodes;
        Self {
            lab: lab.clone(),
            layout: setup.layout,
            rp_filter: setup.rp_filter,
            families: if setup.ingress_v6 { &[false, true] } else { &[false] },
            hostname: format!("node{number}"),
            address: node_address(number),
            peers: (1..=nodes).filter(|n| *n != number).map(node_address).collect(),
            overlays: BTreeMap::new(),
            gateways: BTreeSet::new(),
            ports: BTreeSet::new(),
            has_ingress_chains: false,
            listeners: BTreeMap::new(),
        }
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The node's own namespace.
    pub(crate) fn netns(&self) -> String {
        self.lab.netns(&self.hostname)
    }

    /// A namespace on the node, which its agent finds as `name`.
    pub(super) fn netns_of(&self, name: &str) -> String {
        self.lab.netns(&format!("{}-{name}", self.hostname))
    }

    pub(super) fn publish_netns(&self, name: &str, netns: &str) -> Result<(), RuntimeError> {
        let path = self.lab.node_netns_dir(&self.hostname).join(name);
        symlink(netns_path(netns), &path).doing(|| format!("making {}", path.display()))
    }

    pub(super) fn unpublish_netns(&self, name: &str) {
        // Gone already is as good.
        let _ = fs::remove_file(self.lab.node_netns_dir(&self.hostname).join(name));
    }

    /// Makes the node as it is after a boot: no task, no ports.
    pub(crate) fn power_on(&mut self, ingress: Option<(&NodeEndpoint, &Overlay)>) -> Result<(), RuntimeError> {
        let dir = self.lab.node_netns_dir(&self.hostname);
        fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
        let netns = self.netns();
        let rp_filter = self.rp_filter;
        netns::create(&netns, || parameters(true, rp_filter))?;
        plug_in(&self.lab, &self.hostname, self.address)?;
        let mut batch = Batch::default();
        for (bridge, address) in [("docker0", DOCKER0_ADDRESS), (GWBRIDGE, GWBRIDGE_ADDRESS)] {
            // A MAC address of its own, as Docker gives it one: else it is the lowest of the ports', and changes with them.
            batch.add(format!("link add {bridge} up address {} type bridge", mac(address)));
            batch.add(format!("addr add {address}/16 brd + dev {bridge}"));
        }
        if self.families.contains(&true) {
            batch.add(format!("addr add {}/64 nodad dev {GWBRIDGE}", gateway_of(GWBRIDGE_ADDRESS, true)));
            // Docker does it for the first of its bridges that has IPv6.
            netns::within(&netns_path(&netns), || netns::sysctl(&[("net/ipv6/conf/all/forwarding", "1")]))?;
        }
        batch.run(&netns)?;
        self.restore(rules::node)?;
        if let Some((endpoint, overlay)) = ingress {
            self.create_ingress_sandbox(endpoint, overlay)?;
        }
        Ok(())
    }

    /// Takes the node off the LAN and removes everything on it. Its processes must have ended.
    pub(crate) fn power_off(&mut self) -> Result<(), RuntimeError> {
        let mut batch = Batch::default();
        batch.add(format!("link del {}", self.hostname));
        batch.run_all(&self.lab.netns("lan"));
        for netns in netns::list(&format!("{}-", self.netns())) {
            netns::remove(&netns)?;
        }
        netns::remove(&self.netns())?;
        self.overlays.clear();
        self.gateways.clear();
        self.ports.clear();
        self.has_ingress_chains = false;
        self.listeners.clear();
        let dir = self.lab.node_netns_dir(&self.hostname);
        fs::remove_dir_all(&dir).doing(|| format!("removing {}", dir.display()))
    }

    fn create_ingress_sandbox(&mut self, endpoint: &NodeEndpoint, overlay: &Overlay) -> Result<(), RuntimeError> {
        let name = "ingress_sbox";
        let netns = self.netns_of(name);
        let rp_filter = self.rp_filter;
        // Docker does not switch forwarding on here: its IPVS does not need it.
        netns::create(&netns, || parameters(false, rp_filter))?;
        let attached = [(overlay, endpoint.addresses.as_slice())];
        self.attach(&netns, "ingress", &attached, Some(INGRESS_GATEWAY))?;
        if let Some(rules) = rules::sandbox(self.layout, None, &[], name) {
            iptables_restore(&netns, false, &rules)?;
        }
        self.publish_netns(name, &netns)
    }

    /// The overlay's own namespace on this node: a bridge, and the tunnel to the other nodes.
    pub(super) fn join_overlay(&mut self, overlay: &Overlay) -> Result<String, RuntimeError> {
        if let Some(netns) = self.overlays.get(&overlay.id) {
            return Ok(netns.clone());
        }
        let short: String = overlay.id.as_str().chars().take(10).collect();
        let name = format!("1-{short}");
        let netns = self.netns_of(&name);
        netns::create(&netns, || {
            spare_bridges();
            Ok(())
        })?;
        let (vni, mtu, local) = (overlay.vni, overlay.mtu, self.address);
        // Made here, so that its packets travel between the nodes' own addresses wherever it goes.
        let mut batch = Batch::default();
        batch.add(format!("link add vxlan0 netns {netns} type vxlan id {vni} dstport 4789 local {local} learning"));
        batch.run(&self.netns())?;
        let mut batch = Batch::default();
        batch.add("link set lo up");
        batch.add(format!("link add br0 mtu {mtu} up type bridge"));
        for (gateway, prefix) in &overlay.gateways {
            let options = if gateway.is_ipv4() { "brd +" } else { "nodad" };
            batch.add(format!("addr add {gateway}/{prefix} {options} dev br0"));
        }
        batch.add(format!("link set vxlan0 mtu {mtu} master br0 up"));
        batch.run(&netns)?;
        let mut flood = Batch::default();
        for peer in &self.peers {
            flood.add(format!("fdb append 00:00:00:00:00:00 dev vxlan0 dst {peer} self permanent"));
        }
        flood.run_bridge(&netns)?;
        self.publish_netns(&name, &netns)?;
        self.overlays.insert(overlay.id.clone(), netns.clone());
        Ok(netns)
    }

    /// Removes what is left of overlays that the swarm no longer has.
    pub(crate) fn keep_overlays(&mut self, known: &BTreeSet<NetworkId>) -> Result<(), RuntimeError> {
        let gone: Vec<NetworkId> = self.overlays.keys().filter(|id| !known.contains(*id)).cloned().collect();
        for id in gone {
            if let Some(netns) = self.overlays.remove(&id) {
                let short: String = id.as_str().chars().take(10).collect();
                self.unpublish_netns(&format!("1-{short}"));
                netns::remove(&netns)?;
            }
        }
        Ok(())
    }

    /// Changes the node's rules, in each family that it has.
    pub(super) fn restore(&self, rules: impl Fn(Layout, bool) -> Option<String>) -> Result<(), RuntimeError> {
        for v6 in self.families {
            if let Some(rules) = rules(self.layout, *v6) {
                iptables_restore(&self.netns(), *v6, &rules)?;
            }
        }
        Ok(())
    }

    /// Brings the node's published ports to this set.
    pub(crate) fn publish_ports(&mut self, ports: &BTreeSet<Published>) -> Result<(), RuntimeError> {
        if self.layout == Layout::Docker29_7 {
            self.listen(ports)?;
            if !self.has_ingress_chains && !ports.is_empty() {
                netns::within(&netns_path(&self.netns()), || netns::sysctl(&[("net/ipv4/conf/docker_gwbridge/route_localnet", "1")]))?;
                self.restore(rules::ingress_chains)?;
                self.has_ingress_chains = true;
            }
        }
        self.restore(|layout, v6| rules::ingress_ports(layout, v6, &self.ports, ports))?;
        self.ports.clone_from(ports);
        Ok(())
    }

    fn listen(&mut self, ports: &BTreeSet<Published>) -> Result<(), RuntimeError> {
        self.listeners.retain(|port, _| ports.contains(port));
        let new: Vec<Published> = ports.difference(&self.ports).copied().collect();
        if !new.is_empty() {
            let opened = netns::within(&netns_path(&self.netns()), || {
                Ok(new.into_iter().filter_map(|port| Some((port, Listener::open(port)?))).collect::<Vec<_>>())
            })?;
            self.listeners.extend(opened);
        }
        Ok(())
    }

    /// Gives a sandbox `eth0`… in the overlays, and last its leg on docker_gwbridge, which is its way out.
    pub(super) fn attach(
        &mut self,
        netns: &str,
        id: &str,
        overlays: &[(&Overlay, &[InterfaceAddress])],
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), RuntimeError> {
        let mut inside = Batch::default();
        let mut without_v6 = vec![];
        inside.add("link set lo up");
        for (index, (overlay, addresses)) in overlays.iter().enumerate() {
            let overlay_netns = self.join_overlay(overlay)?;
            let mtu = overlay.mtu;
            let mac = addresses.iter().find_map(|a| match a.address {
                IpAddr::V4(address) => Some(format!("address {}", mac(address))),
                IpAddr::V6(_) => None,
            });
            let mac = mac.unwrap_or_default();
            let mut batch = Batch::default();
            batch.add(format!(
                "link add {} mtu {mtu} master br0 up type veth peer name eth{index} netns {netns} mtu {mtu} {mac}",
                veth_name("v", id)
            ));
            batch.run(&overlay_netns)?;
            for address in *addresses {
                let options = if address.address.is_ipv4() { "brd +" } else { "nodad" };
                inside.add(format!("addr add {}/{} {options} dev eth{index}", address.address, address.prefix));
            }
            if addresses.iter().all(|a| a.address.is_ipv4()) {
                without_v6.push(index);
            }
            inside.add(format!("link set eth{index} up"));
        }
        if let Some(address) = gateway {
            let index = overlays.len();
            let mut batch = Batch::default();
            batch.add(format!(
                "link add {} master {GWBRIDGE} up type veth peer name eth{index} netns {netns} address {}",
                veth_name("veth", id),
                mac(address)
            ));
            batch.run(&self.netns())?;
            inside.add(format!("addr add {address}/16 brd + dev eth{index}"));
            if self.families.contains(&true) {
                inside.add(format!("addr add {}/64 nodad dev eth{index}", gateway_of(address, true)));
            } else {
                without_v6.push(index);
            }
            inside.add(format!("link set eth{index} up"));
            for v6 in self.families {
                inside.add(format!("route add default via {}", gateway_of(GWBRIDGE_ADDRESS, *v6)));
            }
        }
        netns::within(&netns_path(netns), || {
            without_v6.iter().try_for_each(|index| netns::sysctl(&[(&format!("net/ipv6/conf/eth{index}/disable_ipv6"), "1")]))
        })?;
        inside.run(netns)
    }

    /// Cuts a sandbox off at once, while its namespace may live on for a moment.
    pub(super) fn detach(&self, id: &str, overlays: &[NetworkId], gateway: bool) {
        for netns in overlays.iter().filter_map(|id| self.overlays.get(id)) {
            let mut batch = Batch::default();
            batch.add(format!("link del {}", veth_name("v", id)));
            batch.run_all(netns);
        }
        if gateway {
            let mut batch = Batch::default();
            batch.add(format!("link del {}", veth_name("veth", id)));
            batch.run_all(&self.netns());
        }
    }
}

/// An interface's name has at most 15 characters.
fn veth_name(prefix: &str, id: &str) -> String {
    prefix.chars().chain(id.chars()).take(15).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_end_in_the_same_digits() {
        assert_eq!(address_v6(node_address(1)).to_string(), "fd00:5741::11");
        assert_eq!(address_v6(client_address(2)).to_string(), "fd00:5741::102");
        assert_eq!(mac(Ipv4Addr::new(10, 0, 1, 16)), "02:42:0a:00:01:10");
        assert_eq!(veth_name("veth", "0123456789abcdef"), "veth0123456789a");
    }
}
