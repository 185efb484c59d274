//! The ingress sandbox: a published port becomes a task's ingress address, the client stays who it is.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use swarmesh_kernel::{FlowFilter, Interface, Kernel, KernelError, SetName};
use swarmesh_model::Protocol;
use swarmesh_plan::{Ingress, NodePlan, PortKey, PublishedPort, SourceMode};

use super::{
    Balancing,
    direct::Doors,
    mirror::SetMirror,
    table::{Debts, IP_FORWARD, Table, UDP, loosen_reverse_path},
};
use crate::{
    PlaneError,
    balancer::{Balancer, Front, FrontState, port_key},
    layout::{IngressParameters, SETS4, SETS6, VIRTUALS4, VIRTUALS6, check_name, inet, ingress_skeleton},
    virtuals::{Changes, VirtualWanted, Virtuals},
};

/// Its sets that make it answer.
pub(crate) const SETS: [SetName; 13] = [
    SETS4.front,
    SETS4.slot,
    SETS4.sticky,
    SETS4.live,
    SETS6.front,
    SETS6.slot,
    SETS6.sticky,
    SETS6.live,
    VIRTUALS4.marks,
    VIRTUALS4.parked,
    VIRTUALS6.marks,
    VIRTUALS6.parked,
    inet("hidden"),
];
/// Those that only the balancer needs.
const BALANCERS: [SetName; 8] = [SETS4.front, SETS4.slot, SETS4.sticky, SETS4.live, SETS6.front, SETS6.slot, SETS6.sticky, SETS6.live];

#[derive(Debug)]
pub(crate) struct IngressTable {
    pub(crate) table: Table,
    ports: Ports,
    hidden: SetMirror,
    facts: IngressFacts,
}

/// Who balances published ports over IPv4 and over IPv6.
#[derive(Debug)]
enum Ports {
    Balancers(Box<(Balancer, Balancer)>),
    Virtuals(Box<(Virtuals, Virtuals)>),
}

/// What the node's own namespace must know of the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IngressFacts {
    /// Its addresses on the node's bridge.
    pub(crate) address4: Option<std::net::Ipv4Addr>,
    pub(crate) address6: Option<std::net::Ipv6Addr>,
    /// The bridge's own address.
    pub(crate) gateway: Option<IpAddr>,
}

impl IngressTable {
    /// Opens the namespace; [`Self::sync`] must follow.
    pub(crate) fn open(kernel: &dyn Kernel, path: &Path, debts: Debts, balancing: &Balancing) -> Result<Self, PlaneError> {
        Ok(Self {
            table: Table::open(kernel, Some(path), debts)?,
            ports: match balancing {
                Balancing::Nft => Ports::Balancers(Box::new((Balancer::ports(false), Balancer::ports(true)))),
                Balancing::Ipvs { schedulers } => {
                    Ports::Virtuals(Box::new((Virtuals::new(false, Arc::clone(schedulers)), Virtuals::new(true, Arc::clone(schedulers)))))
                }
            },
            hidden: SetMirror::new(inet("hidden")),
            facts: IngressFacts::default(),
        })
    }

    pub(crate) fn facts(&self) -> &IngressFacts {
        &self.facts
    }

    /// Reads the kernel and mends what differs from the plan.
    pub(crate) fn sync(&mut self, node: &NodePlan, ingress: &Ingress, doors: &Doors) -> Result<(), PlaneError> {
        let interfaces = self.table.ns.interfaces()?;
        let path = || self.table.path.clone();
        let ingress_leg = interfaces
            .iter()
            .find(|i| i.addresses.iter().any(|a| ingress.subnets.iter().any(|s| s.contains(&a.addr()))))
            .ok_or_else(|| PlaneError::NoIngressLeg { path: path(), subnets: ingress.subnets.clone() })?
            .clone();
        let route = self.table.ns.default_route(false)?.ok_or_else(|| PlaneError::NoBridgeLeg { path: path() })?;
        let bridge_leg = interfaces
            .iter()
            .find(|i| i.index == route.index && i.index != ingress_leg.index)
            .ok_or_else(|| PlaneError::NoBridgeLeg { path: path() })?
            .clone();
        check_name(&bridge_leg.name)?;
        check_name(&ingress_leg.name)?;
        self.facts = facts(&bridge_leg, &ingress_leg, route.gateway);

        let is_virtual = matches!(self.ports, Ports::Virtuals(_));
        let skeleton = ingress_skeleton(&IngressParameters {
            bridge_leg: bridge_leg.name.clone(),
            ingress_leg: ingress_leg.name.clone(),
            mtu: ingress.mtu,
            virtuals: is_virtual,
        });
        // As in a task: filled first, if another plane's rules still answer.
        let mut new_udp = Vec::new();
        let switches = self.table.is_loaded()? && self.table.has_virtuals()? != is_virtual;
        if switches {
            self.table.declare(&skeleton)?;
            new_udp = self.sync_ports(node, doors)?;
        }
        self.table.load(&skeleton)?;
        self.table.switch_on(&[("net/ipv4/ip_forward", IP_FORWARD)])?;
        let ns = &mut self.table.ns;
        for leg in [&bridge_leg.name, &ingress_leg.name] {
            loosen_reverse_path(&mut **ns, leg)?;
        }
        if self.facts.address6.is_some() {
            ns.sysctl_ensure("net/ipv6/conf/all/forwarding", "1")?;
        }

        if !switches {
            new_udp = self.sync_ports(node, doors)?;
        }
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    /// Reads what the namespace holds and brings it to the plan. Returns new UDP ports.
    fn sync_ports(&mut self, node: &NodePlan, doors: &Doors) -> Result<Vec<u16>, PlaneError> {
        let mut changes = Changes::default();
        match &mut self.ports {
            Ports::Balancers(ports) => {
                let (ports4, ports6) = &mut **ports;
                changes.nft.extend(self.table.adopt(ports4)?);
                changes.nft.extend(self.table.adopt(ports6)?);
            }
            Ports::Virtuals(ports) => {
                let (ports4, ports6) = &mut **ports;
                self.table.prepare_ipvs()?;
                let servers = self.table.our_virtuals()?;
                self.table.adopt_virtuals(ports4, &servers, &mut changes)?;
                self.table.adopt_virtuals(ports6, &servers, &mut changes)?;
            }
        }
        let held = self.table.ns.elements(self.hidden.name())?;
        self.hidden.adopt(held);

        let new_udp: Vec<u16> = if self.table.debts.fresh {
            Vec::new()
        } else {
            node.published.keys().filter(|key| self.is_new_udp(**key)).map(|key| key.1).collect()
        };
        for (key, port) in &node.published {
            self.set_port(*key, Some(port), doors, &mut changes);
        }
        let wanted: HashSet<Front> = node.published.keys().map(|k| Front::Port(*k)).collect();
        match &mut self.ports {
            Ports::Balancers(ports) => {
                let (ports4, ports6) = &mut **ports;
                for balancer in [ports4, ports6] {
                    let gone: Vec<Front> = balancer.fronts().filter(|f| !wanted.contains(f)).collect();
                    gone.into_iter().for_each(|front| balancer.set(front, None, &mut changes.nft));
                }
            }
            Ports::Virtuals(ports) => {
                let (ports4, ports6) = &mut **ports;
                for virtuals in [ports4, ports6] {
                    let gone: Vec<Front> = virtuals.fronts().filter(|f| !wanted.contains(f)).collect();
                    gone.into_iter().for_each(|front| virtuals.set(front, None, &mut changes));
                }
            }
        }
        let hidden = node.published.iter().filter(|(_, p)| p.policy.source == SourceMode::Snat);
        self.hidden.replace(hidden.map(|(k, _)| (port_key(*k).to_vec(), None)).collect::<HashMap<_, _>>(), &mut changes.nft);
        self.table.carry_out(changes)?;
        Ok(new_udp)
    }

    pub(crate) fn change(&mut self, changes: &BTreeMap<PortKey, Option<Arc<PublishedPort>>>, doors: &Doors) -> Result<(), PlaneError> {
        let mut all = Changes::default();
        let mut new_udp = Vec::new();
        for (key, port) in changes {
            if port.is_some() && self.is_new_udp(*key) {
                new_udp.push(key.1);
            }
            self.set_port(*key, port.as_deref(), doors, &mut all);
        }
        self.table.carry_out(all)?;
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    fn is_new_udp(&self, key: PortKey) -> bool {
        let front = Front::Port(key);
        key.0 == Protocol::Udp
            && match &self.ports {
                Ports::Balancers(ports) => ports.0.targets(front).is_none(),
                Ports::Virtuals(ports) => !ports.0.holds(front),
            }
    }

    fn set_port(&mut self, key: PortKey, port: Option<&PublishedPort>, doors: &Doors, changes: &mut Changes) {
        let front = Front::Port(key);
        match &mut self.ports {
            Ports::Balancers(ports) => {
                let (ports4, ports6) = &mut **ports;
                let state4 = port.map(|p| FrontState::new(&p.policy, doors.divide(key, p, self.facts.gateway).sandbox()));
                ports4.set(front, state4.as_ref(), &mut changes.nft);
                let state6 = port.map(|p| FrontState::new(&p.policy, p.targets().filter(IpAddr::is_ipv6).collect()));
                ports6.set(front, state6.as_ref(), &mut changes.nft);
            }
            Ports::Virtuals(ports) => {
                let (ports4, ports6) = &mut **ports;
                for (virtuals, v6) in [(ports4, false), (ports6, true)] {
                    let wanted = port.map(|p| VirtualWanted::new(&p.policy, &p.backends, p.refuse, |b| b.address.is_ipv6() == v6));
                    virtuals.set(front, wanted.as_ref(), changes);
                }
            }
        }
        let hidden = port.is_some_and(|p| p.policy.source == SourceMode::Snat);
        self.hidden.set(port_key(key).to_vec(), hidden.then_some(None), &mut changes.nft);
    }

    /// UDP flows of a port that was just published: made when nothing answered, they would go on meeting nothing.
    fn forget_port(&mut self, port: u16) {
        self.table.forget(&FlowFilter { protocol: Some(UDP), original_destination_port: Some(port), ..FlowFilter::default() });
    }

    /// Cuts flows to a backend.
    pub(crate) fn forget_backend(&mut self, key: PortKey, backend: IpAddr) {
        if let Ports::Virtuals(ports) = &mut self.ports {
            let (ports4, ports6) = &mut **ports;
            let mut changes = Changes::default();
            let virtuals = if backend.is_ipv6() { ports6 } else { ports4 };
            virtuals.expel(Front::Port(key), backend, &mut changes);
            self.table.carry_out_late(changes);
        }
        self.table.forget(&FlowFilter {
            protocol: Some(key.0.number()),
            original_destination_port: Some(key.1),
            reply_source: Some(backend),
            ..FlowFilter::default()
        });
    }

    pub(crate) fn fronts(&self) -> usize {
        match &self.ports {
            Ports::Balancers(ports) => ports.0.len(),
            Ports::Virtuals(ports) => ports.0.len(),
        }
    }

    pub(crate) fn tidy(&mut self) -> Result<(), KernelError> {
        match &mut self.ports {
            Ports::Balancers(ports) => {
                let (ports4, ports6) = &mut **ports;
                let mut ops = Vec::new();
                ports4.tidy(&mut ops);
                ports6.tidy(&mut ops);
                self.table.commit(ops)?;
                self.table.retire_virtuals()
            }
            Ports::Virtuals(_) => self.table.retire_sets(&BALANCERS),
        }
    }
}

fn facts(bridge_leg: &Interface, ingress_leg: &Interface, gateway: Option<IpAddr>) -> IngressFacts {
    let address4 = bridge_leg.addresses.iter().find_map(|a| if let IpNet::V4(n) = a { Some(n.addr()) } else { None });
    let global6 = |i: &Interface| {
        i.addresses.iter().find_map(|a| match a {
            IpNet::V6(n) if !n.addr().is_unicast_link_local() => Some(n.addr()),
            _ => None,
        })
    };
    // IPv6 needs both legs.
    IngressFacts { address4, address6: global6(bridge_leg).filter(|_| global6(ingress_leg).is_some()), gateway }
}
