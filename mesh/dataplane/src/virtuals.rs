//! Virtual servers: how one address family of one namespace is balanced by IPVS.
//!
//! A map of ours leads from VIP, or protocol and published port, to a firewall mark; the kernel has one virtual server per
//! mark. IPVS looks marks up as a whole, so each service has a number of its own, above Docker's, which count from 256.
//!
//! There are no transactions between the two, nor within IPVS, so a change has three parts, done in this order: what must be
//! there before a mark leads to it, the map, and what nothing leads to any more. In between, a new connection finds the old
//! backends or the new ones.
//!
//! A backend that drains has weight 0; one that is gone is deleted, and the kernel ends its connections at their next packet
//! (`expire_nodest_conn`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use swarmesh_kernel::{
    Element, ElementData, Forwarding, IpvsOp, IpvsTimeouts, NftOp, Persistence, RealId, RealServer, RealState, SchedulerFlags, SetName,
    VirtualId, VirtualScheduler, VirtualServer, VirtualState,
};
use swarmesh_plan::{Backend, BackendState, Policy, Scheduler};

use crate::{
    balancer::Front,
    layout::{ANSWER_MASK, MARK, REFUSE_MARK, VIRTUAL_MARK, VIRTUAL_MASK, VIRTUALS4, VIRTUALS6, VirtualSets},
};

/// Connection tracking's own, so that both forget a connection at the same time: the kernel's default for TCP, 900 s, cuts
/// idle connections that everybody else keeps for days (moby 31208).
pub(crate) const TIMEOUTS: IpvsTimeouts =
    IpvsTimeouts { tcp: Duration::from_secs(432_000), tcp_fin: Duration::from_secs(120), udp: Duration::from_secs(180) };
/// The kernel's (`ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c`).
pub(crate) const DEFAULT_TIMEOUTS: IpvsTimeouts =
    IpvsTimeouts { tcp: Duration::from_secs(900), tcp_fin: Duration::from_secs(120), udp: Duration::from_secs(300) };

/// What a frontend should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VirtualWanted {
    scheduler: Scheduler,
    affinity: Option<Duration>,
    /// Whether each takes new connections; those that do not keep what they have.
    reals: BTreeMap<IpAddr, bool>,
    /// New connections are refused, whoever may be there.
    refuse: bool,
}

impl VirtualWanted {
    /// For those of `backends` that `is_meant`; who serves is decided among all of them.
    pub(crate) fn new(policy: &Policy, backends: &[Backend], refuse: bool, is_meant: impl Fn(&Backend) -> bool) -> Self {
        let ready = backends.iter().any(|b| b.state == BackendState::Ready);
        let serves = |b: &Backend| b.state == BackendState::Ready || !ready;
        let reals = backends.iter().filter(|b| is_meant(b)).map(|b| (b.address, serves(b))).collect();
        Self { scheduler: policy.scheduler, affinity: policy.affinity, reals, refuse }
    }

    fn serves(&self) -> bool {
        !self.refuse && self.reals.values().any(|serves| *serves)
    }

    fn server(&self, id: VirtualId, schedulers: &BTreeSet<Scheduler>) -> VirtualServer {
        // Without its module, round robin stands in, and `status` says so.
        let scheduler = virtual_scheduler(self.scheduler).filter(|_| schedulers.contains(&self.scheduler));
        let scheduler = scheduler.unwrap_or(VirtualScheduler::RoundRobin);
        let by_client = matches!(scheduler, VirtualScheduler::SourceHash | VirtualScheduler::Maglev);
        VirtualServer {
            id,
            // Who hashes to a backend that drains gets another one. Maglev spreads connections, source hash clients.
            flags: SchedulerFlags { fallback: by_client, ports: scheduler == VirtualScheduler::Maglev, third: false },
            scheduler,
            one_packet: false,
            persistence: self.affinity.map(|timeout| Persistence { timeout, prefix: if id.is_v6() { 128 } else { 32 } }),
            engine: None,
        }
    }
}

/// IPVS's own name for it; `None` if there is none.
pub(crate) fn virtual_scheduler(of: Scheduler) -> Option<VirtualScheduler> {
    Some(match of {
        Scheduler::RoundRobin => VirtualScheduler::RoundRobin,
        Scheduler::WeightedRoundRobin => VirtualScheduler::WeightedRoundRobin,
        Scheduler::LeastConnections => VirtualScheduler::LeastConnection,
        Scheduler::WeightedLeastConnections => VirtualScheduler::WeightedLeastConnection,
        Scheduler::SourceHash => VirtualScheduler::SourceHash,
        Scheduler::Maglev => VirtualScheduler::Maglev,
        Scheduler::Random => return None,
    })
}

/// A change of one namespace, in the order in which its parts are done.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) before: Vec<IpvsOp>,
    pub(crate) nft: Vec<NftOp>,
    pub(crate) after: Vec<IpvsOp>,
}

#[derive(Clone, Debug, Default)]
struct Mirrored {
    /// As the map of marks has it.
    marked: Option<u32>,
    /// As the map of parked ones has it.
    parked: Option<u32>,
    virtual_server: Option<Virtual>,
}

#[derive(Clone, Debug)]
struct Virtual {
    server: VirtualServer,
    reals: BTreeMap<IpAddr, RealServer>,
}

/// The mirror of one family's virtual servers in one namespace, with the map that leads to them.
#[derive(Debug)]
pub(crate) struct Virtuals {
    v6: bool,
    /// Frontend to the mark that its packets get.
    marks: SetName,
    /// Frontend that refuses to the mark of its virtual server, whose connections go on: so that a restarted agent knows whose
    /// it is.
    parked: SetName,
    schedulers: Arc<BTreeSet<Scheduler>>,
    fronts: HashMap<Front, Mirrored>,
    /// The number that was given last. None is used again until all have been.
    last: u32,
    used: HashSet<u32>,
}

impl Virtuals {
    pub(crate) fn new(v6: bool, schedulers: Arc<BTreeSet<Scheduler>>) -> Self {
        let VirtualSets { marks, parked } = if v6 { VIRTUALS6 } else { VIRTUALS4 };
        Self { v6, marks, parked, schedulers, fronts: HashMap::new(), last: REFUSE_MARK, used: HashSet::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.fronts.len()
    }

    /// The maps that [`Self::adopt`] wants to see.
    pub(crate) const fn sets(&self) -> VirtualSets {
        VirtualSets { marks: self.marks, parked: self.parked }
    }

    pub(crate) fn fronts(&self) -> impl Iterator<Item = Front> {
        self.fronts.keys().copied()
    }

    pub(crate) fn holds(&self, front: Front) -> bool {
        self.fronts.contains_key(&front)
    }

    /// Makes `front` do as `wanted` says; `None` takes it away. Takes it for done: if one of the parts fails, the mirror must be
    /// read again.
    pub(crate) fn set(&mut self, front: Front, wanted: Option<&VirtualWanted>, changes: &mut Changes) {
        let mut held = self.fronts.remove(&front).unwrap_or_default();
        if let Some(wanted) = wanted {
            match &mut held.virtual_server {
                Some(virtual_server) => virtual_server.become_as(wanted, &self.schedulers, changes),
                None if wanted.reals.values().any(|serves| *serves) => {
                    let id = VirtualId::Mark { mark: self.number(), v6: self.v6 };
                    held.virtual_server = Some(Virtual::add(wanted.server(id, &self.schedulers), wanted, changes));
                }
                None => {}
            }
        }
        // One that nobody serves or has connections in.
        if let Some(idle) = held.virtual_server.take_if(|v| wanted.is_none() || v.reals.is_empty()) {
            self.used.remove(&mark_of(idle.server.id));
            changes.after.push(IpvsOp::DeleteVirtual(idle.server.id));
        }
        let number = held.virtual_server.as_ref().map(|v| mark_of(v.server.id));
        let mark = wanted.map(|w| number.filter(|_| w.serves()).unwrap_or(REFUSE_MARK));
        let parked = number.filter(|_| mark == Some(REFUSE_MARK));
        exchange(self.parked, front, &mut held.parked, parked, changes);
        exchange(self.marks, front, &mut held.marked, mark, changes);
        if wanted.is_some() {
            self.fronts.insert(front, held);
        }
    }

    /// Ends the connections of a backend that has drained for long enough: the kernel does so for a backend that it does not
    /// know. One that still has to serve, for want of others, is left alone.
    pub(crate) fn expel(&mut self, front: Front, backend: IpAddr, changes: &mut Changes) {
        let Some(held) = self.fronts.get_mut(&front) else { return };
        if let Some(virtual_server) = &mut held.virtual_server
            && virtual_server.reals.get(&backend).is_some_and(|real| real.weight == 0)
            && let Some(real) = virtual_server.reals.remove(&backend)
        {
            changes.after.push(IpvsOp::DeleteReal { of: virtual_server.server.id, real: real.id });
        }
        if let Some(idle) = held.virtual_server.take_if(|v| v.reals.is_empty()) {
            self.used.remove(&mark_of(idle.server.id));
            changes.after.push(IpvsOp::DeleteVirtual(idle.server.id));
            exchange(self.parked, front, &mut held.parked, None, changes);
            // Nobody was left to serve, so nothing led there.
            exchange(self.marks, front, &mut held.marked, Some(REFUSE_MARK), changes);
        }
    }

    fn number(&mut self) -> NonZeroU32 {
        loop {
            let next = (self.last.wrapping_add(1) & !VIRTUAL_MASK) | VIRTUAL_MARK;
            self.last = next;
            // What looks like an answer's mark would be routed as one.
            if next != REFUSE_MARK && next & ANSWER_MASK != MARK && self.used.insert(next) {
                return NonZeroU32::new(next).unwrap_or(NonZeroU32::MIN);
            }
        }
    }

    /// Takes over what the namespace holds; the changes remove what makes no sense. Virtual servers without a mark of ours are
    /// somebody else's.
    pub(crate) fn adopt(
        &mut self,
        marks: Vec<Element>,
        parked: Vec<Element>,
        servers: &[(VirtualState, Vec<RealState>)],
        changes: &mut Changes,
    ) {
        *self = Self::new(self.v6, Arc::clone(&self.schedulers));
        let mut found: HashMap<u32, Virtual> = HashMap::new();
        for (state, reals) in servers {
            let VirtualId::Mark { mark, v6 } = state.server.id else { continue };
            if v6 == self.v6 && is_ours(mark.get()) {
                let mut virtual_server = Virtual { server: state.server.clone(), reals: BTreeMap::new() };
                for real in reals {
                    // One with a port, or tunnelled, is not as we make them.
                    if real.server.id.port == 0 && real.server.forwarding == Forwarding::Masquerade {
                        virtual_server.reals.insert(real.server.id.address, real.server);
                    } else {
                        changes.after.push(IpvsOp::DeleteReal { of: virtual_server.server.id, real: real.server.id });
                    }
                }
                found.insert(mark.get(), virtual_server);
            }
        }
        self.used.extend(found.keys().copied());
        self.last = found.keys().copied().max().unwrap_or(REFUSE_MARK);
        for (elements, set) in [(marks, self.marks), (parked, self.parked)] {
            for element in elements {
                let mark = match &element.data {
                    Some(ElementData::Value(data)) => <[u8; 4]>::try_from(data.as_slice()).ok().map(u32::from_ne_bytes),
                    _ => None,
                };
                let (Some(front), Some(mark)) = (Front::from_key(&element.key), mark) else {
                    changes.nft.push(NftOp::DeleteElement { set, key: element.key });
                    continue;
                };
                let held = self.fronts.entry(front).or_default();
                let slot = if set == self.marks { &mut held.marked } else { &mut held.parked };
                *slot = Some(mark);
                // Two frontends of one virtual server cannot be: the second one begins anew.
                if held.virtual_server.is_none() {
                    held.virtual_server = found.remove(&mark);
                }
            }
        }
        for (mark, virtual_server) in found {
            self.used.remove(&mark);
            changes.after.push(IpvsOp::DeleteVirtual(virtual_server.server.id));
        }
    }
}

/// Brings one element of a map from what it is to what it shall be.
fn exchange(set: SetName, front: Front, held: &mut Option<u32>, wanted: Option<u32>, changes: &mut Changes) {
    if *held == wanted {
        return;
    }
    if held.is_some() {
        changes.nft.push(NftOp::DeleteElement { set, key: front.key() });
    }
    if let Some(mark) = wanted {
        let data = Some(ElementData::Value(mark.to_ne_bytes().to_vec()));
        changes.nft.push(NftOp::AddElement { set, key: front.key(), data });
    }
    *held = wanted;
}

impl Virtual {
    fn add(server: VirtualServer, wanted: &VirtualWanted, changes: &mut Changes) -> Self {
        changes.before.push(IpvsOp::AddVirtual(server.clone()));
        let mut added = Self { server, reals: BTreeMap::new() };
        added.take_in(wanted, changes);
        added
    }

    fn become_as(&mut self, wanted: &VirtualWanted, schedulers: &BTreeSet<Scheduler>, changes: &mut Changes) {
        let server = wanted.server(self.server.id, schedulers);
        if server != self.server {
            changes.before.push(IpvsOp::SetVirtual(server.clone()));
            self.server = server;
        }
        self.take_in(wanted, changes);
        let gone: Vec<RealId> = self.reals.values().map(|held| held.id).filter(|id| !wanted.reals.contains_key(&id.address)).collect();
        for real in gone {
            self.reals.remove(&real.address);
            changes.after.push(IpvsOp::DeleteReal { of: self.server.id, real });
        }
    }

    fn take_in(&mut self, wanted: &VirtualWanted, changes: &mut Changes) {
        let of = self.server.id;
        for (address, serves) in &wanted.reals {
            let real = real(*address, *serves);
            match self.reals.get(address) {
                // One that is not there has no connections to keep.
                None if !*serves => continue,
                Some(held) if *held == real => continue,
                None => changes.before.push(IpvsOp::AddReal { of, real }),
                // Who begins to serve does so before others stop.
                Some(_) if *serves => changes.before.push(IpvsOp::SetReal { of, real }),
                Some(_) => changes.after.push(IpvsOp::SetReal { of, real }),
            }
            self.reals.insert(*address, real);
        }
    }
}

fn real(address: IpAddr, serves: bool) -> RealServer {
    RealServer {
        id: RealId { address, port: 0 },
        weight: u32::from(serves),
        forwarding: Forwarding::Masquerade,
        upper_threshold: 0,
        lower_threshold: 0,
    }
}

/// Whether a mark is of the range that is ours.
pub(crate) const fn is_ours(mark: u32) -> bool {
    mark & VIRTUAL_MASK == VIRTUAL_MARK
}

fn mark_of(id: VirtualId) -> u32 {
    match id {
        VirtualId::Mark { mark, .. } => mark.get(),
        // Unreachable: ours are all by mark.
        VirtualId::Address { .. } => REFUSE_MARK,
    }
}
