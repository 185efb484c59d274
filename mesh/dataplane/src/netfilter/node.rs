//! The node's own namespace: published ports on its addresses, handed to the ingress sandbox or straight to tasks of this
//! node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use swarmesh_kernel::{Family, FlowFilter, Interface, Kernel, NftOp, SetName};
use swarmesh_model::{HostLayout, Protocol};
use swarmesh_plan::{NodePlan, PortKey, PublishedPort};

use super::{
    HostFacts,
    direct::Doors,
    ingress::IngressFacts,
    mirror::SetMirror,
    table::{Debts, IP_FORWARD, ROUTE_LOCALNET, Table, UDP},
};
use crate::{
    PlaneError,
    balancer::{Balancer, Front, FrontState, port_key},
    layout::{NodeParameters, SETS4, TABLE, check_name, inet, node_skeleton},
};

/// Its sets that make it answer.
pub(crate) const SETS: [SetName; 7] =
    [inet("published"), inet("bound"), inet("bound4"), inet("bound6"), SETS4.front, SETS4.slot, inet("direct")];

#[derive(Debug)]
pub(crate) struct NodeTable {
    pub(crate) table: Table,
    facts: HostFacts,
    published: SetMirror,
    bound: SetMirror,
    /// Turns over the tasks of ports that have some here; the other turns are the sandbox's.
    turns: Balancer,
    /// The ports that it knows.
    direct: SetMirror,
    /// The bridge's own address.
    gateway: Option<IpAddr>,
    /// Ports that listen on few addresses, with those; and the marker chain that says which of them are loaded.
    bindings: BTreeMap<PortKey, Vec<IpNet>>,
    bindings_marker: String,
    /// What Docker's user chain was seen to let through.
    forwarded: Option<(String, IngressFacts)>,
}

impl NodeTable {
    /// Opens the namespace; [`Self::sync`] must follow.
    pub(crate) fn open(kernel: &dyn Kernel, debts: Debts) -> Result<Self, PlaneError> {
        Ok(Self {
            table: Table::open(kernel, None, debts)?,
            facts: HostFacts::default(),
            published: SetMirror::new(inet("published")),
            bound: SetMirror::new(inet("bound")),
            turns: Balancer::some_of_ports(),
            direct: SetMirror::new(inet("direct")),
            gateway: None,
            bindings: BTreeMap::new(),
            bindings_marker: String::new(),
            forwarded: None,
        })
    }

    pub(crate) fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// Reads the kernel and mends what differs from the plan.
    pub(crate) fn sync(
        &mut self,
        node: &NodePlan,
        ingress: &IngressFacts,
        address: Option<IpAddr>,
        doors: &Doors,
    ) -> Result<(), PlaneError> {
        let interfaces = self.table.ns.interfaces()?;
        let bridge = find_bridge(&interfaces, ingress)?;
        check_name(&bridge.name)?;
        // Docker makes the chain as late as with the first published port's first task on this node, and where iptables is
        // not nftables, nobody but itself sees it: where the release is known, it says what is coming.
        let old_layout = match node.host_layout {
            Some(layout) => layout == HostLayout::IngressChains,
            None => self.table.ns.chains(Family::Ip, "filter")?.unwrap_or_default().iter().any(|c| c == "DOCKER-INGRESS"),
        };
        let parameters = NodeParameters {
            bridge: bridge.name.clone(),
            sandbox4: ingress.address4,
            sandbox6: ingress.address6,
            node4: node_address(&interfaces, address),
            node6: node_address6(&interfaces, address),
            private: private_subnets(&interfaces, address),
            // From 29.8 on Docker's own proxy serves IPv6; before, a listener that never accepts does not.
            refuse6: ingress.address6.is_none() && old_layout,
        };
        self.facts = HostFacts { bridge: bridge.name.clone(), old_layout, ipv6: ingress.address6.is_some() };
        self.gateway = ingress.gateway;
        let harmed = self.table.debts.harmed;
        self.table.load(&node_skeleton(&parameters))?;

        // 127.0.0.1 as a source leaves by the bridge, and the answer comes in by it; our guard keeps others out.
        let route_localnet = format!("net/ipv4/conf/{}/route_localnet", bridge.name);
        self.table.switch_on(&[("net/ipv4/ip_forward", IP_FORWARD), (&route_localnet, ROUTE_LOCALNET)])?;
        if harmed || !self.is_forwarded(&bridge.name, ingress)? {
            self.ensure_forwarding(ingress)?;
        }

        let (published, bound) = (self.table.ns.elements(self.published.name())?, self.table.ns.elements(self.bound.name())?);
        self.published.adopt(published);
        self.bound.adopt(bound);
        let held = self.table.ns.chains(Family::Inet, TABLE)?.unwrap_or_default();
        self.bindings_marker = held.into_iter().find(|c| c.starts_with(BINDINGS)).unwrap_or_default();

        self.bindings =
            node.published.iter().filter(|(_, p)| !p.policy.bind.is_empty()).map(|(k, p)| (*k, p.policy.bind.clone())).collect();
        // How many elements a set of ranges is dumped as is the kernel's business; whether there are any is not.
        let ranges = !self.table.ns.elements(inet("bound4"))?.is_empty() || !self.table.ns.elements(inet("bound6"))?.is_empty();
        self.load_bindings((harmed && !self.bindings.is_empty()) || ranges == self.bindings.is_empty())?;
        let mut ops = self.table.adopt(&mut self.turns)?;
        let direct = self.table.ns.elements(self.direct.name())?;
        self.direct.adopt(direct);
        for (key, port) in &node.published {
            self.set_turns(*key, Some(port), doors, &mut ops);
        }
        let gone: Vec<Front> = self.turns.fronts().filter(|f| !matches!(f, Front::Port(key) if node.published.contains_key(key))).collect();
        for front in gone {
            self.turns.set(front, None, &mut ops);
        }
        self.direct.replace(self.turns.fronts().filter_map(direct_key).map(|key| (key, None)).collect(), &mut ops);
        let held = |key: &PortKey| self.published.holds(&port_key(*key)) || self.bound.holds(&port_key(*key));
        let new_udp: Vec<u16> = if self.table.debts.fresh {
            Vec::new()
        } else {
            node.published.keys().filter(|key| key.0 == Protocol::Udp && !held(key)).map(|key| key.1).collect()
        };
        let (everywhere, few): (Vec<_>, Vec<_>) = node.published.iter().partition(|(_, p)| p.policy.bind.is_empty());
        self.published.replace(everywhere.into_iter().map(|(k, _)| (port_key(*k).to_vec(), None)).collect(), &mut ops);
        self.bound.replace(few.into_iter().map(|(k, _)| (port_key(*k).to_vec(), None)).collect(), &mut ops);
        self.table.commit(ops)?;
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, changes: &BTreeMap<PortKey, Option<Arc<PublishedPort>>>, doors: &Doors) -> Result<(), PlaneError> {
        let mut ops: Vec<NftOp> = Vec::new();
        let mut new_udp = Vec::new();
        let mut bindings_changed = false;
        for (key, port) in changes {
            let bind = port.as_ref().map(|p| p.policy.bind.as_slice());
            let everywhere = bind.is_some_and(<[IpNet]>::is_empty);
            let few = bind.is_some_and(|b| !b.is_empty());
            let before = self.bindings.get(key).cloned();
            match bind.filter(|b| !b.is_empty()) {
                Some(addresses) => self.bindings.insert(*key, addresses.to_vec()),
                None => self.bindings.remove(key),
            };
            bindings_changed |= before.as_ref() != self.bindings.get(key);
            let opened = self.published.set(port_key(*key).to_vec(), everywhere.then_some(None), &mut ops);
            let opened_few = self.bound.set(port_key(*key).to_vec(), few.then_some(None), &mut ops);
            self.set_turns(*key, port.as_deref(), doors, &mut ops);
            if key.0 == Protocol::Udp && (opened || opened_few) && port.is_some() {
                new_udp.push(key.1);
            }
        }
        // Narrowing closes first, widening opens last: in between, less is open and never more.
        if bindings_changed {
            self.load_bindings(false)?;
        }
        self.table.commit(ops)?;
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    fn set_turns(&mut self, key: PortKey, port: Option<&PublishedPort>, doors: &Doors, ops: &mut Vec<NftOp>) {
        let state = port.map(|p| FrontState::new(&p.policy, doors.divide(key, p, self.gateway).turns()));
        let state = state.filter(|s| !s.targets.is_empty());
        self.turns.set(Front::Port(key), state.as_ref(), ops);
        if let Some(number) = direct_key(Front::Port(key)) {
            self.direct.set(number, state.map(|_| None), ops);
        }
    }

    /// Cuts connections that went straight to a task.
    pub(crate) fn forget_task(&mut self, key: PortKey, address: Ipv4Addr) {
        self.table.forget(&FlowFilter {
            protocol: Some(key.0.number()),
            original_destination_port: Some(key.1),
            reply_source: Some(address.into()),
            ..FlowFilter::default()
        });
    }

    pub(crate) fn tidy(&mut self) -> Result<(), swarmesh_kernel::KernelError> {
        let mut ops = Vec::new();
        self.turns.tidy(&mut ops);
        self.table.commit(ops)
    }

    /// As in the ingress sandbox.
    fn forget_port(&mut self, port: u16) {
        self.table.forget(&FlowFilter { protocol: Some(UDP), original_destination_port: Some(port), ..FlowFilter::default() });
    }

    /// Ranges of addresses are few and rarely change: they are loaded whole, as text, in one transaction.
    fn load_bindings(&mut self, again: bool) -> Result<(), PlaneError> {
        let mut hasher = DefaultHasher::new();
        self.bindings.hash(&mut hasher);
        let marker = format!("{BINDINGS}{:016x}", hasher.finish());
        if !again && (marker == self.bindings_marker || (self.bindings.is_empty() && self.bindings_marker.is_empty())) {
            return Ok(());
        }
        let mut script = format!("flush set inet {TABLE} bound4\nflush set inet {TABLE} bound6\n");
        if !self.bindings_marker.is_empty() {
            let _ = writeln!(script, "delete chain inet {TABLE} {}", self.bindings_marker);
        }
        let _ = writeln!(script, "add chain inet {TABLE} {marker}");
        for ((protocol, port), nets) in &self.bindings {
            let aggregated = IpNet::aggregate(nets);
            for net in aggregated {
                let set = if matches!(net, IpNet::V4(_)) { "bound4" } else { "bound6" };
                let _ = writeln!(script, "add element inet {TABLE} {set} {{ {protocol} . {port} . {net} }}");
            }
        }
        self.table.load_script(&script)?;
        self.bindings_marker = marker;
        Ok(())
    }

    /// Whether Docker's user chain surely has our rules still. Asking it is a run of another program for each of them, during
    /// which nothing else is done: long enough on a slow machine for backends to go that new connections are still sent to.
    /// Where iptables is nftables behind the scenes, whoever takes a rule out is noticed as it happens.
    fn is_forwarded(&mut self, bridge: &str, ingress: &IngressFacts) -> Result<bool, PlaneError> {
        if self.table.overlooked || !self.forwarded.as_ref().is_some_and(|(name, facts)| name == bridge && facts == ingress) {
            return Ok(false);
        }
        let families = [(Family::Ip, ingress.address4.is_some()), (Family::Ip6, ingress.address6.is_some())];
        for (family, _) in families.into_iter().filter(|(_, is_used)| *is_used) {
            if !self.table.ns.has_rules(family, "filter", USER_CHAIN)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts Docker's user chain right if our rules are not in it.
    pub(crate) fn ensure_forwarding(&mut self, ingress: &IngressFacts) -> Result<(), PlaneError> {
        self.forwarded = None;
        self.table.overlooked = false;
        let bridge = self.facts.bridge.clone();
        if accept_forwarded(&mut *self.table.ns, &bridge, ingress)? {
            self.forwarded = Some((bridge, ingress.clone()));
        }
        Ok(())
    }
}

fn direct_key(front: Front) -> Option<Vec<u8>> {
    match front {
        Front::Port((Protocol::Tcp, port)) => Some(port.to_be_bytes().to_vec()),
        Front::Port(_) | Front::Vip(_) => None,
    }
}

const BINDINGS: &str = "bindings_";

/// The place that Docker leaves to others.
const USER_CHAIN: &str = "DOCKER-USER";

/// Docker's FORWARD policy is to drop, which an accept in a table of ours cannot override; its user chain can. Only what came
/// through a published port is let through. Says whether the chain is there: without it, there is no Docker that would drop
/// what we forward.
fn accept_forwarded(ns: &mut dyn swarmesh_kernel::Namespace, bridge: &str, ingress: &IngressFacts) -> Result<bool, PlaneError> {
    let sandboxes = [ingress.address4.map(IpAddr::from), ingress.address6.map(IpAddr::from)];
    let mut is_there = true;
    for sandbox in sandboxes.into_iter().flatten() {
        for rule in forward_rules(bridge, sandbox, &sandbox.to_string()) {
            is_there &= ns.ensure_forward_rule(sandbox.is_ipv6(), &rule)?.is_some();
        }
    }
    Ok(is_there)
}

/// To the sandbox and to tasks, and answers. By the connection, not by tasks' addresses: those come and go, and each change
/// of the chain is another program's run. IPv6 does not go straight to tasks, and has no rules for that.
pub(crate) fn forward_rules<'a>(bridge: &'a str, sandbox: IpAddr, written: &'a str) -> Vec<Vec<&'a str>> {
    let words = |matches: &[&'a str]| [matches, &["-m", "comment", "--comment", "swarmesh", "-j", "ACCEPT"]].concat();
    let to_tasks = [
        words(&["-o", bridge, "-p", "tcp", "-m", "conntrack", "--ctstate", "DNAT", "--ctdir", "ORIGINAL"]),
        words(&["-i", bridge, "-p", "tcp", "-m", "conntrack", "--ctstate", "DNAT", "--ctdir", "REPLY"]),
    ];
    let to_sandbox = [
        words(&["-o", bridge, "-d", written, "-m", "conntrack", "--ctstate", "DNAT"]),
        words(&["-i", bridge, "-s", written, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "--ctdir", "REPLY"]),
    ];
    to_tasks.into_iter().filter(|_| sandbox.is_ipv4()).chain(to_sandbox).collect()
}

fn find_bridge<'a>(interfaces: &'a [Interface], ingress: &IngressFacts) -> Result<&'a Interface, PlaneError> {
    let gateway = ingress.gateway.ok_or(PlaneError::WaitsForIngress)?;
    interfaces.iter().find(|i| i.addresses.iter().any(|a| a.addr() == gateway)).ok_or(PlaneError::NoBridge { gateway })
}

/// The address that other nodes know this one by, if it is really here.
fn node_address(interfaces: &[Interface], address: Option<IpAddr>) -> Option<Ipv4Addr> {
    let Some(IpAddr::V4(address)) = address else { return None };
    interfaces.iter().any(|i| i.addresses.iter().any(|a| a.addr() == IpAddr::V4(address))).then_some(address)
}

/// Its IPv6 address on the same interface.
fn node_address6(interfaces: &[Interface], address: Option<IpAddr>) -> Option<Ipv6Addr> {
    let address = address?;
    let addresses = &interfaces.iter().find(|i| i.addresses.iter().any(|a| a.addr() == address))?.addresses;
    let global = |net: &IpNet| if let IpAddr::V6(a) = net.addr() { Some(a).filter(|a| !a.is_unicast_link_local()) } else { None };
    addresses.iter().find(|net| net.addr() == address).and_then(global).or_else(|| addresses.iter().find_map(global))
}

/// Subnets of bridges that this node has to itself, as Docker makes them: the same ones exist on every node, so their
/// addresses tell nobody who a client is.
fn private_subnets(interfaces: &[Interface], node: Option<IpAddr>) -> Vec<IpNet> {
    let is_nodes = |i: &Interface| i.addresses.iter().any(|net| node.is_some_and(|n| net.contains(&n)));
    // A bridge on the nodes' LAN has an IPv6 subnet of the LAN, too, which the node's one address does not tell.
    let is_private = |i: &Interface, net: &IpNet| match net.addr() {
        IpAddr::V4(_) => !node.is_some_and(|n| net.contains(&n)),
        IpAddr::V6(a) => !a.is_unicast_link_local() && !is_nodes(i),
    };
    let bridges = interfaces.iter().filter(|i| i.kind.as_deref() == Some("bridge"));
    let nets: BTreeSet<IpNet> = bridges.flat_map(|i| i.addresses.iter().filter(move |net| is_private(i, net))).map(IpNet::trunc).collect();
    nets.into_iter().collect()
}
