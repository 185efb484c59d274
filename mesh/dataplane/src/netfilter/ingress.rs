//! The ingress sandbox: a published port becomes a task's ingress address, the client stays who it is.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use swarmesh_kernel::{FlowFilter, Interface, Kernel, KernelError, NftOp, SetName};
use swarmesh_model::Protocol;
use swarmesh_plan::{Ingress, NodePlan, PortKey, PublishedPort, SourceMode};

use super::{
    direct::Doors,
    mirror::SetMirror,
    table::{Debts, IP_FORWARD, Table, UDP, loosen_reverse_path},
};
use crate::{
    PlaneError,
    balancer::{Balancer, Front, FrontState, port_key},
    layout::{IngressParameters, SETS4, SETS6, check_name, inet, ingress_skeleton},
};

/// Its sets that make it answer.
pub(crate) const SETS: [SetName; 9] =
    [SETS4.front, SETS4.slot, SETS4.sticky, SETS4.live, SETS6.front, SETS6.slot, SETS6.sticky, SETS6.live, inet("hidden")];

#[derive(Debug)]
pub(crate) struct IngressTable {
    pub(crate) table: Table,
    ports4: Balancer,
    ports6: Balancer,
    hidden: SetMirror,
    facts: IngressFacts,
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
    pub(crate) fn open(kernel: &dyn Kernel, path: &Path, debts: Debts) -> Result<Self, PlaneError> {
        Ok(Self {
            table: Table::open(kernel, Some(path), debts)?,
            ports4: Balancer::ports(false),
            ports6: Balancer::ports(true),
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

        let parameters = IngressParameters { bridge_leg: bridge_leg.name.clone(), ingress_leg: ingress_leg.name.clone(), mtu: ingress.mtu };
        self.table.load(&ingress_skeleton(&parameters))?;
        self.table.switch_on("net/ipv4/ip_forward", IP_FORWARD)?;
        let ns = &mut self.table.ns;
        for leg in [&bridge_leg.name, &ingress_leg.name] {
            loosen_reverse_path(&mut **ns, leg)?;
        }
        if self.facts.address6.is_some() {
            ns.sysctl_ensure("net/ipv6/conf/all/forwarding", "1")?;
        }

        let mut ops = Vec::new();
        ops.extend(self.table.adopt(&mut self.ports4)?);
        ops.extend(self.table.adopt(&mut self.ports6)?);
        let held = self.table.ns.elements(self.hidden.name())?;
        self.hidden.adopt(held);

        let new_udp: Vec<u16> = if self.table.debts.fresh {
            Vec::new()
        } else {
            node.published.keys().filter(|key| self.is_new_udp(**key)).map(|key| key.1).collect()
        };
        for (key, port) in &node.published {
            self.set_port(*key, Some(port), doors, &mut ops);
        }
        let wanted: HashSet<Front> = node.published.keys().map(|k| Front::Port(*k)).collect();
        for balancer in [&mut self.ports4, &mut self.ports6] {
            let gone: Vec<Front> = balancer.fronts().filter(|f| !wanted.contains(f)).collect();
            for front in gone {
                balancer.set(front, None, &mut ops);
            }
        }
        let hidden = node.published.iter().filter(|(_, p)| p.policy.source == SourceMode::Snat);
        self.hidden.replace(hidden.map(|(k, _)| (port_key(*k).to_vec(), None)).collect::<HashMap<_, _>>(), &mut ops);
        self.table.commit(ops)?;
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, changes: &BTreeMap<PortKey, Option<Arc<PublishedPort>>>, doors: &Doors) -> Result<(), PlaneError> {
        let mut ops = Vec::new();
        let mut new_udp = Vec::new();
        for (key, port) in changes {
            if port.is_some() && self.is_new_udp(*key) {
                new_udp.push(key.1);
            }
            self.set_port(*key, port.as_deref(), doors, &mut ops);
        }
        self.table.commit(ops)?;
        for port in new_udp {
            self.forget_port(port);
        }
        Ok(())
    }

    fn is_new_udp(&self, key: PortKey) -> bool {
        key.0 == Protocol::Udp && self.ports4.targets(Front::Port(key)).is_none()
    }

    fn set_port(&mut self, key: PortKey, port: Option<&PublishedPort>, doors: &Doors, ops: &mut Vec<NftOp>) {
        let state4 = port.map(|p| FrontState::new(&p.policy, doors.divide(key, p, self.facts.gateway).sandbox()));
        self.ports4.set(Front::Port(key), state4.as_ref(), ops);
        let state6 = port.map(|p| FrontState::new(&p.policy, p.targets().filter(IpAddr::is_ipv6).collect()));
        self.ports6.set(Front::Port(key), state6.as_ref(), ops);
        let hidden = port.is_some_and(|p| p.policy.source == SourceMode::Snat);
        self.hidden.set(port_key(key).to_vec(), hidden.then_some(None), ops);
    }

    /// UDP flows of a port that was just published: made when nothing answered, they would go on meeting nothing.
    fn forget_port(&mut self, port: u16) {
        self.table.forget(&FlowFilter { protocol: Some(UDP), original_destination_port: Some(port), ..FlowFilter::default() });
    }

    pub(crate) fn forget_backend(&mut self, key: PortKey, backend: IpAddr) {
        self.table.forget(&FlowFilter {
            protocol: Some(key.0.number()),
            original_destination_port: Some(key.1),
            reply_source: Some(backend),
            ..FlowFilter::default()
        });
    }

    pub(crate) fn fronts(&self) -> usize {
        self.ports4.len()
    }

    pub(crate) fn tidy(&mut self) -> Result<(), KernelError> {
        let mut ops = Vec::new();
        self.ports4.tidy(&mut ops);
        self.ports6.tidy(&mut ops);
        self.table.commit(ops)
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
