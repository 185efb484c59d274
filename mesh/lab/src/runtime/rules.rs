//! The firewall rules that Docker makes on a node and in its sandboxes, as input for `iptables-restore --noflush`.
//!
//! Text only; what runs it is elsewhere. The node's rules follow dumps of Docker 29.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use swarmesh_model::{Port, Protocol, PublishMode};

use super::layout::{GWBRIDGE, GWBRIDGE_NET, GWBRIDGE_NET_V6, INGRESS_GATEWAY, gateway_of};

/// Whose rules the nodes have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Layout {
    /// Docker up to 29.7: chains DOCKER-INGRESS, and `route_localnet` on docker_gwbridge
    #[default]
    #[value(name = "docker-29.7")]
    #[serde(rename = "docker-29.7")]
    Docker29_7,
    /// Docker from 29.8: a published port is a port mapping of the ingress sandbox
    #[value(name = "docker-29.8")]
    #[serde(rename = "docker-29.8")]
    Docker29_8,
    /// The same interfaces and no rules at all
    #[value(name = "bare")]
    #[serde(rename = "bare")]
    Bare,
}

impl Layout {
    /// Of an engine that has made these rules.
    pub(crate) fn release(self) -> Option<&'static str> {
        match self {
            Self::Docker29_7 => Some("29.7.3"),
            Self::Docker29_8 => Some("29.8.0"),
            Self::Bare => None,
        }
    }
}

/// A port that every node publishes.
pub(crate) type Published = (Protocol, u16);

/// What a node has before anything runs on it, for one family of addresses. With IPv6 the bridge is docker_gwbridge alone.
pub(crate) fn node(layout: Layout, v6: bool) -> Option<String> {
    if layout == Layout::Bare {
        return None;
    }
    let (network, loopback) = if v6 { (GWBRIDGE_NET_V6, "::1/128") } else { (GWBRIDGE_NET, "127.0.0.0/8") };
    let rules = format!(
        "*raw
{raw}COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {network} ! -o {GWBRIDGE} -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER ! -i {GWBRIDGE} -o {GWBRIDGE} -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-BRIDGE -o {GWBRIDGE} -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-CT -o {GWBRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-FORWARD -i {GWBRIDGE} -o {GWBRIDGE} -j DROP
-A DOCKER-FORWARD -i {GWBRIDGE} ! -o {GWBRIDGE} -j ACCEPT
COMMIT
",
        raw = direct_access('A', gateway_of(INGRESS_GATEWAY, v6)),
    );
    let is_there = |line: &&str| !(v6 && line.contains("docker0"));
    Some(rules.lines().filter(is_there).flat_map(|line| [line, "\n"]).collect())
}

/// What a node gets with its first published port, and keeps.
pub(crate) fn ingress_chains(layout: Layout, v6: bool) -> Option<String> {
    // Docker never led IPv6 to its mesh by these.
    (layout == Layout::Docker29_7 && !v6).then(|| {
        format!(
            "*nat
:DOCKER-INGRESS - [0:0]
-I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-I OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS
-I POSTROUTING -o {GWBRIDGE} -m addrtype --src-type LOCAL -j MASQUERADE
-A DOCKER-INGRESS -j RETURN
COMMIT
*filter
:DOCKER-INGRESS - [0:0]
-I DOCKER-FORWARD -j DOCKER-INGRESS
-A DOCKER-INGRESS -j RETURN
COMMIT
"
        )
    })
}

/// Nobody but the bridge's own members may address a container's docker_gwbridge address.
fn direct_access(verb: char, address: IpAddr) -> String {
    format!("-{verb} PREROUTING -d {} ! -i {GWBRIDGE} -j DROP\n", IpNet::from(address))
}

/// Takes a node from one set of ingress ports to another.
pub(crate) fn ingress_ports(layout: Layout, v6: bool, old: &BTreeSet<Published>, new: &BTreeSet<Published>) -> Option<String> {
    let gone = old.difference(new).map(|port| ('D', port));
    let come = new.difference(old).map(|port| ('I', port));
    let (mut nat, mut filter) = (String::new(), String::new());
    // Writing to a String cannot fail.
    for (verb, (protocol, port)) in gone.chain(come) {
        let matched = format!("-p {protocol} -m {protocol}");
        match layout {
            Layout::Docker29_7 if v6 => return None,
            Layout::Docker29_7 => {
                let _ = writeln!(nat, "-{verb} DOCKER-INGRESS {matched} --dport {port} -j DNAT --to-destination {INGRESS_GATEWAY}:{port}");
                let _ = writeln!(
                    filter,
                    "-{verb} DOCKER-INGRESS {matched} --sport {port} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                );
                let _ = writeln!(filter, "-{verb} DOCKER-INGRESS {matched} --dport {port} -j ACCEPT");
            }
            Layout::Docker29_8 => {
                port_mapping(&mut nat, &mut filter, verb, *protocol, *port, SocketAddr::new(gateway_of(INGRESS_GATEWAY, v6), *port));
            }
            Layout::Bare => return None,
        }
    }
    (!nat.is_empty()).then(|| format!("*nat\n{nat}COMMIT\n*filter\n{filter}COMMIT\n"))
}

/// As `docker run -p` makes it.
fn port_mapping(nat: &mut String, filter: &mut String, verb: char, protocol: Protocol, published: u16, to: SocketAddr) {
    let matched = format!("-p {protocol} -m {protocol}");
    let _ = writeln!(nat, "-{verb} DOCKER ! -i {GWBRIDGE} {matched} --dport {published} -j DNAT --to-destination {to}");
    let (address, target) = (IpNet::from(to.ip()), to.port());
    let _ = writeln!(filter, "-{verb} DOCKER -d {address} ! -i {GWBRIDGE} -o {GWBRIDGE} {matched} --dport {target} -j ACCEPT");
}

/// What a task with this docker_gwbridge address adds to its node (`come`), or takes away.
pub(crate) fn task_on_node(layout: Layout, address: IpAddr, ports: &[Port], come: bool) -> Option<String> {
    if layout == Layout::Bare {
        return None;
    }
    let verb = if come { 'I' } else { 'D' };
    let (mut nat, mut filter) = (String::new(), String::new());
    for port in ports.iter().filter(|p| p.publish_mode == PublishMode::Host) {
        if let Some(published) = port.published_port {
            port_mapping(&mut nat, &mut filter, verb, port.protocol, published, SocketAddr::new(address, port.target_port));
        }
    }
    let raw = direct_access(if come { 'A' } else { 'D' }, address);
    Some(format!("*raw\n{raw}COMMIT\n*nat\n{nat}COMMIT\n*filter\n{filter}COMMIT\n"))
}

/// What is in a sandbox called `name`: its resolver's translation, and a task's way in from the ingress network.
pub(crate) fn sandbox(layout: Layout, ingress: Option<IpAddr>, ports: &[Port], name: &str) -> Option<String> {
    if layout == Layout::Bare {
        return None;
    }
    let (tcp, udp) = resolver_ports(name);
    let mut nat = format!(
        "*nat
:DOCKER_OUTPUT - [0:0]
:DOCKER_POSTROUTING - [0:0]
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A POSTROUTING -d 127.0.0.11/32 -j DOCKER_POSTROUTING
-A DOCKER_OUTPUT -d 127.0.0.11/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.11:{tcp}
-A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:{udp}
-A DOCKER_POSTROUTING -s 127.0.0.11/32 -p tcp -m tcp --sport {tcp} -j SNAT --to-source :53
-A DOCKER_POSTROUTING -s 127.0.0.11/32 -p udp -m udp --sport {udp} -j SNAT --to-source :53
"
    );
    let mut filter = String::new();
    let ports: Vec<_> = ports.iter().filter(|p| p.publish_mode == PublishMode::Ingress).collect();
    if let Some(IpAddr::V4(address)) = ingress
        && !ports.is_empty()
    {
        filter.push_str("*filter\n");
        for port in ports {
            let (protocol, target) = (port.protocol, port.target_port);
            if let Some(published) = port.published_port {
                let _ = writeln!(
                    nat,
                    "-A PREROUTING -d {address}/32 -p {protocol} -m {protocol} --dport {published} -j REDIRECT --to-ports {target}"
                );
            }
            let _ = writeln!(
                filter,
                "-I INPUT -d {address}/32 -p {protocol} -m {protocol} --dport {target} -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\n\
                 -I OUTPUT -s {address}/32 -p {protocol} -m {protocol} --sport {target} -m conntrack --ctstate ESTABLISHED -j ACCEPT"
            );
        }
        for protocol in [Protocol::Sctp, Protocol::Udp, Protocol::Tcp] {
            let _ = writeln!(filter, "-A INPUT -d {address}/32 -p {protocol} -j DROP\n-A OUTPUT -s {address}/32 -p {protocol} -j DROP");
        }
        filter.push_str("COMMIT\n");
    }
    nat.push_str("COMMIT\n");
    Some(nat + &filter)
}

/// Where Docker's resolver would listen in this sandbox: ephemeral ports, others in each.
fn resolver_ports(sandbox: &str) -> (u16, u16) {
    let seed = sandbox.bytes().fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)));
    let tcp = 32_768 + seed % 14_000;
    (tcp, tcp + 14_001)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(published: u16, target: u16, mode: PublishMode) -> Port {
        Port { name: None, protocol: Protocol::Tcp, target_port: target, published_port: Some(published), publish_mode: mode }
    }

    #[test]
    fn ports_come_and_go_one_by_one() {
        let old = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Tcp, 81)]);
        let new = BTreeSet::from([(Protocol::Tcp, 81), (Protocol::Udp, 53)]);
        let text = ingress_ports(Layout::Docker29_7, false, &old, &new).unwrap();
        assert!(text.contains("-D DOCKER-INGRESS -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.18.0.2:80\n"), "{text}");
        assert!(text.contains("-I DOCKER-INGRESS -p udp -m udp --dport 53 -j DNAT --to-destination 172.18.0.2:53\n"), "{text}");
        assert!(!text.contains("81"), "{text}");
        assert_eq!(ingress_ports(Layout::Docker29_7, false, &new, &new), None);
        assert_eq!(ingress_ports(Layout::Bare, false, &old, &new), None);
        let text = ingress_ports(Layout::Docker29_8, false, &old, &new).unwrap();
        assert!(
            text.contains("-I DOCKER ! -i docker_gwbridge -p udp -m udp --dport 53 -j DNAT --to-destination 172.18.0.2:53\n"),
            "{text}"
        );
    }

    #[test]
    fn only_docker_up_to_29_7_has_its_ingress_chain() {
        assert!(ingress_chains(Layout::Docker29_7, false).unwrap().contains("DOCKER-INGRESS"));
        for layout in [Layout::Docker29_7, Layout::Docker29_8] {
            assert!(!node(layout, false).unwrap().contains("DOCKER-INGRESS"), "before the first port");
        }
        for (layout, v6) in [(Layout::Docker29_8, false), (Layout::Bare, false), (Layout::Docker29_7, true)] {
            assert_eq!(ingress_chains(layout, v6), None);
        }
        assert_eq!(node(Layout::Bare, false), None);
    }

    #[test]
    fn ipv6_is_a_port_mapping_or_nothing() {
        let ports = BTreeSet::from([(Protocol::Tcp, 80)]);
        assert_eq!(ingress_ports(Layout::Docker29_7, true, &BTreeSet::new(), &ports), None);
        let text = ingress_ports(Layout::Docker29_8, true, &BTreeSet::new(), &ports).unwrap();
        assert!(text.contains("--dport 80 -j DNAT --to-destination [fd00:5741:18::2]:80\n"), "{text}");
        assert!(text.contains("-I DOCKER -d fd00:5741:18::2/128 "), "{text}");
        let text = node(Layout::Docker29_7, true).unwrap();
        assert!(text.contains("-A POSTROUTING -s fd00:5741:18::/64 ! -o docker_gwbridge -j MASQUERADE\n"), "{text}");
        assert!(
            text.contains(":FORWARD DROP") && !text.contains("docker0") && !text.contains("172.") && !text.contains("INGRESS"),
            "{text}"
        );
    }

    #[test]
    fn a_task_lets_in_its_published_targets_only() {
        let ports = [port(8000, 80, PublishMode::Ingress), port(9000, 90, PublishMode::Host)];
        let text = sandbox(Layout::Docker29_7, Some([10, 0, 0, 5].into()), &ports, "sandbox").unwrap();
        assert!(text.contains("-A PREROUTING -d 10.0.0.5/32 -p tcp -m tcp --dport 8000 -j REDIRECT --to-ports 80\n"), "{text}");
        assert!(text.contains("-A INPUT -d 10.0.0.5/32 -p tcp -j DROP\n"), "{text}");
        assert!(!text.contains("--dport 9000") && !text.contains("--dport 90 "), "{text}");
        let text = task_on_node(Layout::Docker29_7, [172, 18, 0, 3].into(), &ports, true).unwrap();
        assert!(text.contains("--dport 9000 -j DNAT --to-destination 172.18.0.3:90\n"), "{text}");
    }
}
