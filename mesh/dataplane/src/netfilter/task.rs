//! A task's namespace: VIPs become backends before the packet leaves, published ports become the task's own.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use swarmesh_kernel::{Family, FlowFilter, Interface, Kernel, KernelError, NftOp};
use swarmesh_model::{Protocol, TaskId};
use swarmesh_plan::{Ingress, NodePlan, PortKey, SandboxPlan, Scheduler, VipChanges, VirtualService};

use super::{
    Balancing,
    direct::{Door, near_ports},
    mirror::SetMirror,
    table::{Debts, Table, UDP, loosen_reverse_path},
    uninstall::{remove_near_way, remove_way_back},
};
use crate::{
    PlaneError,
    balancer::{Balancer, Front, FrontState, PASS, octets, port_key},
    layout::{
        ARRIVE, DELIVER, MARK, MARK_MASK, NEAR_MARK, NEAR_PRIORITY, NEAR_TABLE, RETURN_MAC, RETURN_PRIORITY, RETURN_TABLE, RETURN_VIA4,
        RETURN_VIA6, TABLE, TaskParameters, check_name, fits_in_mark, inet, task_skeleton, way_back_rule,
    },
    virtuals::{Changes, VirtualWanted, Virtuals},
};

/// More new VIPs than this at once are not searched for flows one by one.
const MOST_SEARCHES: usize = 64;

#[derive(Debug)]
pub(crate) struct TaskTable {
    pub(crate) table: Table,
    plan: Arc<SandboxPlan>,
    /// All VIPs; with virtual servers, those that the task itself serves, too.
    vips4: Balancer,
    vips6: Balancer,
    virtuals: Option<TaskVirtuals>,
    arrival: Option<Arrival>,
}

/// VIPs as virtual servers.
#[derive(Debug)]
struct TaskVirtuals {
    vips4: Virtuals,
    vips6: Virtuals,
    /// VIP to a backend, for protocols that IPVS does not know.
    other4: SetMirror,
    other6: SetMirror,
}

impl TaskVirtuals {
    fn new(schedulers: &Arc<BTreeSet<Scheduler>>) -> Self {
        Self {
            vips4: Virtuals::new(false, Arc::clone(schedulers)),
            vips6: Virtuals::new(true, Arc::clone(schedulers)),
            other4: SetMirror::new(inet("other4")),
            other6: SetMirror::new(inet("other6")),
        }
    }

    fn of(&mut self, vip: IpAddr) -> (&mut Virtuals, &mut SetMirror) {
        if vip.is_ipv6() { (&mut self.vips6, &mut self.other6) } else { (&mut self.vips4, &mut self.other4) }
    }
}

/// How published ports are delivered inside the task.
#[derive(Debug)]
struct Arrival {
    /// Where TCP and SCTP go: the ingress address that they were sent to.
    own4: Option<IpAddr>,
    own6: Option<IpAddr>,
    /// Where UDP goes: the address that a socket bound to all of them answers from, or its answer would match no flow.
    answers4: Option<IpAddr>,
    answers6: Option<IpAddr>,
    ports4: SetMirror,
    ports6: SetMirror,
    /// The leg on the node's bridge, by which connections come that this node did not have to send through its ingress
    /// sandbox.
    bridge: Option<BridgeLeg>,
    near: SetMirror,
}

#[derive(Clone, Debug)]
struct BridgeLeg {
    index: u32,
    name: String,
    address: Ipv4Addr,
    gateway: IpAddr,
}

impl TaskTable {
    /// Opens the namespace; [`Self::sync`] must follow.
    pub(crate) fn open(
        kernel: &dyn Kernel,
        path: &Path,
        debts: Debts,
        plan: &Arc<SandboxPlan>,
        balancing: &Balancing,
    ) -> Result<Self, PlaneError> {
        let table = Table::open(kernel, Some(path), debts)?;
        let (virtuals, vips4, vips6) = match balancing {
            Balancing::Nft => (None, Balancer::vips(false), Balancer::vips(true)),
            Balancing::Ipvs { schedulers } => {
                (Some(TaskVirtuals::new(schedulers)), Balancer::some_of_vips(false), Balancer::some_of_vips(true))
            }
        };
        Ok(Self { table, plan: Arc::clone(plan), vips4, vips6, virtuals, arrival: None })
    }

    /// Reads the kernel and mends what differs from the plan. Writes nothing if it holds that already.
    pub(crate) fn sync(&mut self, node: &NodePlan) -> Result<(), PlaneError> {
        let interfaces = self.table.ns.interfaces()?;
        let leg = self.plan.ingress.as_ref().map(|ingress| find_leg(&interfaces, &ingress.addresses)).transpose()?;
        match leg {
            Some(leg) => check_name(&leg.name)?,
            // What was for a leg that is gone, or not ours to handle any more.
            None if self.table.ns.has_rules(Family::Inet, TABLE, DELIVER)? => {
                remove_way_back(&mut *self.table.ns)?;
            }
            None => {}
        }
        let bridge = match leg {
            Some(leg) => bridge_leg(self.table.ns.default_route(false)?, &interfaces, leg),
            None => None,
        };
        if leg.is_some() && bridge.is_none() && self.table.ns.has_rules(Family::Inet, TABLE, ARRIVE)? {
            remove_near_way(&mut *self.table.ns)?;
        }
        let skeleton = task_skeleton(&TaskParameters {
            ingress_leg: leg.map(|l| l.name.clone()),
            bridge_leg: bridge.as_ref().map(|b| (b.name.clone(), b.address)),
            virtuals: self.virtuals.is_some(),
        });
        // From one plane to the other without a gap: the new one's sets are filled while the old one's rules still answer.
        let switches = self.table.is_loaded()? && self.table.has_virtuals()? != self.virtuals.is_some();
        let mut new = Vec::new();
        if switches {
            self.table.declare(&skeleton)?;
            new = if self.virtuals.is_some() { self.sync_virtuals(node)? } else { self.sync_balancers(node, Vec::new())? };
        }
        self.table.load(&skeleton)?;
        if self.virtuals.is_some() && !switches {
            new = self.sync_virtuals(node)?;
        }
        let mut ops = Vec::new();
        self.arrival = match (leg, &node.ingress) {
            (Some(leg), Some(ingress)) => {
                let leg = leg.clone();
                Some(self.prepare_arrival(&leg, bridge, ingress, &interfaces, &mut ops)?)
            }
            _ => None,
        };
        self.diff_arrivals(&mut ops);
        new.extend(self.sync_balancers(node, ops)?);
        if self.table.debts.fresh {
            self.forget_early_arrivals();
        } else {
            self.forget_vips(new);
        }
        Ok(())
    }

    /// Connections that were sent here before the way back was laid have no mark and would never find it; forgotten, their
    /// next packet is a new connection's.
    fn forget_early_arrivals(&mut self) {
        let Some(arrival) = &self.arrival else { return };
        let addresses: Vec<IpAddr> = arrival.own4.into_iter().chain(arrival.own6).collect();
        if self.table.has_flows() {
            for address in addresses {
                self.table.forget(&FlowFilter { original_destination: Some(address), ..FlowFilter::default() });
            }
        }
    }

    fn prepare_arrival(
        &mut self,
        leg: &Interface,
        bridge: Option<BridgeLeg>,
        ingress: &Ingress,
        interfaces: &[Interface],
        ops: &mut Vec<NftOp>,
    ) -> Result<Arrival, PlaneError> {
        if let Some(subnet) = ingress.subnets.iter().find(|s| matches!(s, IpNet::V4(_)) && !fits_in_mark(s)) {
            return Err(PlaneError::SubnetTooWide { subnet: *subnet });
        }
        self.table.look_up_late()?;
        let ns = &mut self.table.ns;
        // Clients are reached by another interface as far as the main table knows.
        loosen_reverse_path(&mut **ns, &leg.name)?;
        for v6 in [false, true] {
            if !leg.addresses.iter().any(|a| matches!(a, IpNet::V6(_)) == v6) || (v6 && !has_global6(leg)) {
                continue;
            }
            let via = if v6 { IpAddr::from(RETURN_VIA6) } else { IpAddr::from(RETURN_VIA4) };
            ns.ensure_neighbour(leg.index, via, RETURN_MAC)?;
            ns.ensure_default_route(v6, RETURN_TABLE, leg.index, via)?;
            ns.ensure_rule_fwmark(v6, MARK, MARK_MASK, RETURN_TABLE, RETURN_PRIORITY)?;
        }
        if let Some(bridge) = &bridge {
            loosen_reverse_path(&mut **ns, &bridge.name)?;
            ns.ensure_default_route(false, NEAR_TABLE, bridge.index, bridge.gateway)?;
            ns.ensure_rule_fwmark(false, NEAR_MARK, MARK_MASK, NEAR_TABLE, NEAR_PRIORITY)?;
        }
        if let Some(subnet) = ingress.subnets.iter().find_map(|s| if let IpNet::V4(net) = s { Some(*net) } else { None })
            && !ns.has_rules(Family::Netdev, TABLE, "way_back")?
        {
            ops.push(way_back_rule(subnet));
        }
        let mut arrival = Arrival {
            own4: own_address(leg, &self.plan, false),
            own6: own_address(leg, &self.plan, true),
            answers4: preferred_address(ns.default_route(false)?, interfaces, false),
            answers6: preferred_address(ns.default_route(true)?, interfaces, true),
            ports4: SetMirror::new(inet("port4")),
            ports6: SetMirror::new(inet("port6")),
            bridge,
            near: SetMirror::new(inet("near")),
        };
        for ports in [&mut arrival.ports4, &mut arrival.ports6, &mut arrival.near] {
            let held = ns.elements(ports.name())?;
            ports.adopt(held);
        }
        Ok(arrival)
    }

    /// Takes a changed plan of the sandbox itself: other networks, other ports.
    pub(crate) fn change(&mut self, plan: &Arc<SandboxPlan>, node: &NodePlan) -> Result<(), PlaneError> {
        let same_legs = self.plan.ingress.as_ref().map(|i| &i.addresses) == plan.ingress.as_ref().map(|i| &i.addresses);
        self.plan = Arc::clone(plan);
        if !same_legs {
            return self.sync(node);
        }
        let mut changes = Changes::default();
        let new = self.diff_vips(node, &mut changes);
        self.diff_arrivals(&mut changes.nft);
        self.table.carry_out(changes)?;
        self.forget_vips(new);
        Ok(())
    }

    /// Reads the balancers' sets and brings them to the plan, with `ops`. Returns the VIPs that were not there before.
    fn sync_balancers(&mut self, node: &NodePlan, ops: Vec<NftOp>) -> Result<Vec<IpAddr>, PlaneError> {
        let mut changes = Changes { nft: ops, ..Changes::default() };
        changes.nft.extend(self.table.adopt(&mut self.vips4)?);
        changes.nft.extend(self.table.adopt(&mut self.vips6)?);
        let new = self.diff_vips(node, &mut changes);
        self.table.carry_out(changes)?;
        Ok(new)
    }

    /// The same for virtual servers and the maps that lead to them.
    fn sync_virtuals(&mut self, node: &NodePlan) -> Result<Vec<IpAddr>, PlaneError> {
        let Some(virtuals) = &mut self.virtuals else { return Ok(Vec::new()) };
        self.table.prepare_ipvs()?;
        let servers = self.table.our_virtuals()?;
        let mut changes = Changes::default();
        for mirror in [&mut virtuals.vips4, &mut virtuals.vips6] {
            self.table.adopt_virtuals(mirror, &servers, &mut changes)?;
        }
        for others in [&mut virtuals.other4, &mut virtuals.other6] {
            let held = self.table.ns.elements(others.name())?;
            others.adopt(held);
        }
        let new = self.diff_virtuals(node, &mut changes);
        self.table.carry_out(changes)?;
        Ok(new)
    }

    /// Returns the VIPs that were not there before.
    fn diff_vips(&mut self, node: &NodePlan, changes: &mut Changes) -> Vec<IpAddr> {
        let new = self.diff_virtuals(node, changes);
        let plan = Arc::clone(&self.plan);
        let mut wanted = HashSet::new();
        let mut balanced = Vec::new();
        for vips in plan.networks.iter().filter_map(|n| node.networks.get(n)) {
            for (vip, service) in vips {
                let front = Front::Vip(*vip);
                wanted.insert(front);
                if self.virtuals.is_none() && self.balancer(*vip).targets(front).is_none() {
                    balanced.push(*vip);
                }
                self.set_balanced(*vip, Some(service), &mut changes.nft);
            }
        }
        for balancer in [&mut self.vips4, &mut self.vips6] {
            let gone: Vec<Front> = balancer.fronts().filter(|f| !wanted.contains(f)).collect();
            for front in gone {
                balancer.set(front, None, &mut changes.nft);
            }
        }
        [new, balanced].concat()
    }

    fn diff_virtuals(&mut self, node: &NodePlan, changes: &mut Changes) -> Vec<IpAddr> {
        let Some(virtuals) = &mut self.virtuals else { return Vec::new() };
        let mut wanted = HashSet::new();
        let mut new = Vec::new();
        for vips in self.plan.networks.iter().filter_map(|n| node.networks.get(n)) {
            for (vip, service) in vips {
                wanted.insert(Front::Vip(*vip));
                if !virtuals.of(*vip).0.holds(Front::Vip(*vip)) {
                    new.push(*vip);
                }
                set_virtual(virtuals, &self.plan, *vip, Some(service), changes);
            }
        }
        let fronts = virtuals.vips4.fronts().chain(virtuals.vips6.fronts());
        let gone: Vec<Front> = fronts.filter(|f| !wanted.contains(f)).collect();
        for front in gone {
            if let Front::Vip(vip) = front {
                set_virtual(virtuals, &self.plan, vip, None, changes);
            }
        }
        for (others, v6) in [(&mut virtuals.other4, false), (&mut virtuals.other6, true)] {
            others.retain(|key| (key.len() == 16) == v6 && Front::from_key(key).is_some_and(|f| wanted.contains(&f)), &mut changes.nft);
        }
        new
    }

    fn diff_arrivals(&mut self, ops: &mut Vec<NftOp>) {
        if let (Some(arrival), Some(ingress)) = (&mut self.arrival, &self.plan.ingress) {
            arrival.ports4.replace(arrivals(&ingress.published, arrival.own4, arrival.answers4), ops);
            arrival.ports6.replace(arrivals(&ingress.published, arrival.own6, arrival.answers6), ops);
            let near = arrival.bridge.iter().filter(|_| arrival.own4.is_some()).flat_map(|_| near_ports(ingress));
            arrival.near.replace(near.map(|port| (port.to_be_bytes().to_vec(), None)).collect(), ops);
        }
    }

    /// Takes changed VIPs of one of its networks.
    pub(crate) fn change_vips(&mut self, vips: &VipChanges) -> Result<(), PlaneError> {
        let mut changes = Changes::default();
        let mut new = Vec::new();
        for (vip, service) in vips {
            let front = Front::Vip(*vip);
            let held = match &mut self.virtuals {
                Some(virtuals) => virtuals.of(*vip).0.holds(front),
                None => self.balancer(*vip).targets(front).is_some(),
            };
            if service.is_some() && !held {
                new.push(*vip);
            }
            if let Some(virtuals) = &mut self.virtuals {
                set_virtual(virtuals, &self.plan, *vip, service.as_deref(), &mut changes);
            }
            self.set_balanced(*vip, service.as_deref(), &mut changes.nft);
        }
        self.table.carry_out(changes)?;
        self.forget_vips(new);
        Ok(())
    }

    /// What the balancer does with a VIP: all of it, or the task's own share of it.
    fn set_balanced(&mut self, vip: IpAddr, service: Option<&VirtualService>, ops: &mut Vec<NftOp>) {
        let state = match self.virtuals {
            None => service.map(|s| FrontState::new(&s.policy, s.targets().collect())),
            Some(_) => service.and_then(|s| own_share(s, &self.plan.task)),
        };
        self.balancer(vip).set(Front::Vip(vip), state.as_ref(), ops);
    }

    fn forget_vips(&mut self, new: Vec<IpAddr>) {
        // UDP that was sent before the VIP was known has a flow that goes nowhere, and would go there for good.
        if !new.is_empty() && new.len() <= MOST_SEARCHES && self.table.has_flows() {
            for vip in new {
                self.table.forget(&FlowFilter { protocol: Some(UDP), original_destination: Some(vip), ..FlowFilter::default() });
            }
        }
    }

    /// Cuts flows to a backend: those of `protocol`, or all.
    pub(crate) fn forget_backend(&mut self, vip: IpAddr, backend: IpAddr, protocol: Option<u8>) {
        if let Some(virtuals) = self.virtuals.as_mut().filter(|_| protocol.is_none()) {
            let mut changes = Changes::default();
            virtuals.of(vip).0.expel(Front::Vip(vip), backend, &mut changes);
            self.table.carry_out_late(changes);
        }
        let filter = FlowFilter { protocol, original_destination: Some(vip), reply_source: Some(backend), ..FlowFilter::default() };
        self.table.forget(&filter);
    }

    /// Where it takes connections from its own node, as last committed.
    pub(crate) fn door(&self) -> Option<Door> {
        let arrival = self.arrival.as_ref()?;
        let bridge = arrival.bridge.as_ref().filter(|_| arrival.own4.is_some())?;
        let ports = near_ports(self.plan.ingress.as_ref()?);
        Some(Door { address: bridge.address, gateway: bridge.gateway, ports })
    }

    pub(crate) fn plan(&self) -> &Arc<SandboxPlan> {
        &self.plan
    }

    pub(crate) fn fronts(&self) -> usize {
        self.virtuals.as_ref().map_or(self.vips4.len() + self.vips6.len(), |v| v.vips4.len() + v.vips6.len())
    }

    pub(crate) fn tidy(&mut self) -> Result<(), KernelError> {
        let mut ops = Vec::new();
        self.vips4.tidy(&mut ops);
        self.vips6.tidy(&mut ops);
        self.table.commit(ops)?;
        if self.virtuals.is_none() { self.table.retire_virtuals() } else { Ok(()) }
    }

    fn balancer(&mut self, vip: IpAddr) -> &mut Balancer {
        if vip.is_ipv6() { &mut self.vips6 } else { &mut self.vips4 }
    }
}

/// Gives a VIP its virtual server. The task's own address is not in it: IPVS has no way back into the namespace that a packet
/// leaves from.
fn set_virtual(virtuals: &mut TaskVirtuals, plan: &SandboxPlan, vip: IpAddr, service: Option<&VirtualService>, changes: &mut Changes) {
    let (mirror, others) = virtuals.of(vip);
    let wanted = service.map(|s| VirtualWanted::new(&s.policy, &s.backends, false, |b| b.task != plan.task));
    mirror.set(Front::Vip(vip), wanted.as_ref(), changes);
    let one = service.and_then(|s| s.serving().find(|b| b.task == plan.task).or_else(|| s.serving().next()));
    others.set(octets(vip), one.map(|b| Some(octets(b.address))), &mut changes.nft);
}

/// A task's turns among those of its own service. Who chooses by the client, always the same one here, chooses among the
/// others if there are any.
fn own_share(service: &VirtualService, task: &TaskId) -> Option<FrontState> {
    let own = service.serving().find(|b| b.task == *task)?.address;
    let others = service.serving().count() - 1;
    let by_client = service.policy.affinity.is_some() || matches!(service.policy.scheduler, Scheduler::SourceHash | Scheduler::Maglev);
    let turns = std::iter::once(own).chain(std::iter::repeat_n(PASS, others)).collect();
    (others == 0 || !by_client).then_some(FrontState { scheduler: Scheduler::RoundRobin, affinity: None, targets: turns })
}

fn find_leg<'a>(interfaces: &'a [Interface], addresses: &[IpAddr]) -> Result<&'a Interface, PlaneError> {
    interfaces
        .iter()
        .find(|i| i.addresses.iter().any(|net| addresses.contains(&net.addr())))
        .ok_or_else(|| PlaneError::NoTaskLeg { addresses: addresses.to_vec() })
}

/// The leg that the default route leads out by, if it is of the kind that Docker makes: on a bridge of the node's.
fn bridge_leg(route: Option<swarmesh_kernel::DefaultRoute>, interfaces: &[Interface], ingress: &Interface) -> Option<BridgeLeg> {
    let route = route?;
    let leg = interfaces.iter().find(|i| i.index == route.index && i.index != ingress.index)?;
    check_name(&leg.name).ok()?;
    let address = leg.addresses.iter().find_map(|net| if let IpNet::V4(net) = net { Some(net.addr()) } else { None })?;
    Some(BridgeLeg { index: leg.index, name: leg.name.clone(), address, gateway: route.gateway? })
}

fn has_global6(leg: &Interface) -> bool {
    leg.addresses.iter().any(|net| matches!(net, IpNet::V6(n) if !n.addr().is_unicast_link_local()))
}

fn own_address(leg: &Interface, plan: &SandboxPlan, v6: bool) -> Option<IpAddr> {
    let planned = &plan.ingress.as_ref()?.addresses;
    leg.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv6() == v6 && planned.contains(a))
}

fn preferred_address(route: Option<swarmesh_kernel::DefaultRoute>, interfaces: &[Interface], v6: bool) -> Option<IpAddr> {
    let index = route?.index;
    let leg = interfaces.iter().find(|i| i.index == index)?;
    leg.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv6() == v6 && !matches!(a, IpAddr::V6(a) if a.is_unicast_link_local()))
}

fn arrivals(
    published: &std::collections::BTreeMap<PortKey, u16>,
    own: Option<IpAddr>,
    answers: Option<IpAddr>,
) -> HashMap<Vec<u8>, Option<Vec<u8>>> {
    let Some(own) = own else { return HashMap::new() };
    published
        .iter()
        .map(|(key, target)| {
            let to = if key.0 == Protocol::Udp { answers.unwrap_or(own) } else { own };
            let mut data = octets(to);
            data.extend(target.to_be_bytes());
            data.extend([0, 0]);
            (port_key(*key).to_vec(), Some(data))
        })
        .collect()
}
