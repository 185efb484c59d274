//! What the three kinds of namespace have in common: an open namespace, its skeleton, and how both are brought about.

use std::path::{Path, PathBuf};

use swarmesh_kernel::{
    ElementData, Family, FlowFilter, IpvsOp, Kernel, KernelError, Namespace, NetnsId, NftEvent, NftMonitor, NftOp, RealState, SetName,
    VirtualId, VirtualState,
};
use swarmesh_model::Protocol;

use crate::{
    balancer::{Balancer, Held},
    layout::{DELIVER, MARK_CHAIN, Skeleton, TABLE, VIRTUALS4, VIRTUALS6, inet},
    virtuals::{Changes, TIMEOUTS, Virtuals, is_ours},
};

/// A namespace that is open for programming.
pub(crate) struct Table {
    pub(crate) path: PathBuf,
    pub(crate) ns: Box<dyn Namespace>,
    pub(crate) monitor: NftMonitor,
    /// `None` for the namespace that the agent is in, which nobody replaces.
    id: Option<NetnsId>,
    pub(crate) debts: Debts,
    /// Something of Docker's went while a script of ours was loaded, and nobody has looked at it yet.
    pub(crate) overlooked: bool,
    /// See [`Self::look_up_late`].
    mistakes_sockets: bool,
    pub(crate) counts: Counts,
}

/// What is known of a table and not yet acted on to the end. It outlives the handle when an attempt fails.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Debts {
    /// Somebody took away something of ours: the presence of the marker says nothing any more.
    pub(crate) harmed: bool,
    /// There was none of ours before.
    pub(crate) fresh: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("path", &self.path).field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// What was done to one namespace's kernel state. Nothing moves while nothing changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) commits: u64,
    pub(crate) operations: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.commits += other.commits;
        self.operations += other.operations;
    }
}

/// Empties sets of a namespace that is not open and need not be; what there is not, is empty.
pub(crate) fn release(kernel: &dyn Kernel, path: Option<&Path>, sets: &[SetName]) -> Result<Counts, KernelError> {
    let mut ns = match path.map_or_else(|| kernel.open_current(), |path| kernel.open(path)) {
        Err(KernelError::NamespaceGone { .. }) => return Ok(Counts::default()),
        opened => opened?,
    };
    let mut counts = Counts::default();
    let filled = filled(&mut *ns, sets)?;
    if !filled.is_empty() {
        let ops: Vec<NftOp> = filled.iter().map(|set| NftOp::FlushSet { set: *set }).collect();
        ns.commit(&ops)?;
        counts.add(Counts { commits: 1, operations: ops.len() as u64 });
    }
    // Where there never were virtual servers, the kernel is not asked for any: asking loads its modules.
    let had_virtuals = sets.iter().any(|set| RETIRED.contains(set) && ns.elements(*set).is_ok());
    let servers = if had_virtuals { our_virtuals(&mut *ns)? } else { Vec::new() };
    if !servers.is_empty() {
        let ops: Vec<IpvsOp> = servers.iter().map(|(state, _)| IpvsOp::DeleteVirtual(state.server.id)).collect();
        ns.ipvs_apply(&ops)?.into_iter().collect::<Result<(), _>>()?;
        counts.add(Counts { commits: 1, operations: ops.len() as u64 });
    }
    Ok(counts)
}

/// Those that are there and not empty.
fn filled(ns: &mut dyn Namespace, sets: &[SetName]) -> Result<Vec<SetName>, KernelError> {
    let mut filled = Vec::new();
    for set in sets {
        match ns.elements(*set) {
            Err(KernelError::NotFound { .. }) => {}
            Err(error) => return Err(error),
            Ok(held) if held.is_empty() => {}
            Ok(_) => filled.push(*set),
        }
    }
    Ok(filled)
}

impl Table {
    /// `path` of `None` is the namespace that the agent itself runs in.
    pub(crate) fn open(kernel: &dyn Kernel, path: Option<&Path>, debts: Debts) -> Result<Self, KernelError> {
        let ns = match path {
            Some(path) => kernel.open(path)?,
            None => kernel.open_current()?,
        };
        // Listening starts before reading, so that no change falls between the two.
        let monitor = kernel.open_monitor(path)?;
        let id = path.map(|p| kernel.identity(p)).transpose()?;
        let path = path.map_or_else(|| PathBuf::from("/proc/self/ns/net"), Path::to_path_buf);
        let release = kernel.release();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let mistakes_sockets = numbers.next().zip(numbers.next()).is_some_and(|release| release < CORRECTS_EARLY_DEMUX);
        Ok(Self { path, ns, monitor, id, debts, overlooked: false, mistakes_sockets, counts: Counts::default() })
    }

    /// False once another namespace, or none, is behind the path: Docker rebuilds the ingress sandbox under its old name.
    pub(crate) fn is_current(&self, kernel: &dyn Kernel) -> bool {
        self.id.is_none_or(|id| kernel.identity(&self.path).is_ok_and(|now| now == id))
    }

    /// Sets sysctls, after notes for the uninstaller about those that are off: the other way round, a failure would lose them.
    /// Each with its note.
    pub(crate) fn switch_on(&mut self, switches: &[(&str, &str)]) -> Result<(), KernelError> {
        let mut notes = Vec::new();
        for (key, note) in switches {
            if self.ns.sysctl_read(key)?.trim() == "0" {
                notes.push(NftOp::AddChain { family: Family::Inet, table: TABLE, chain: format!("{WAS_OFF}{note}") });
            }
        }
        self.commit(notes)?;
        switches.iter().try_for_each(|(key, _)| self.ns.sysctl_ensure(key, "1").map(drop))
    }

    /// Lets sockets be looked up when address translation is done, and no earlier.
    ///
    /// Early demultiplexing looks for an established connection's socket after the destination was translated and before the source
    /// is: of two connections from one port of a client's, the second would be given to the first one's socket. Newer kernels take
    /// that back when the source's port was translated (seen on 6.12; not on 6.1, whose `nf_nat_ipv4_local_in` looks at the address only).
    pub(crate) fn look_up_late(&mut self) -> Result<(), KernelError> {
        if !self.mistakes_sockets || self.ns.sysctl_read(EARLY_DEMUX)?.trim() == "0" {
            return Ok(());
        }
        self.commit(vec![NftOp::AddChain { family: Family::Inet, table: TABLE, chain: WAS_ON_EARLY_DEMUX.to_owned() }])?;
        self.ns.sysctl_ensure(EARLY_DEMUX, "0").map(drop)
    }

    /// Loads the skeleton unless it is there, whole.
    pub(crate) fn load(&mut self, skeleton: &Skeleton) -> Result<(), KernelError> {
        let chains = self.ns.chains(Family::Inet, TABLE)?;
        let held = chains.as_deref().unwrap_or_default();
        if held.contains(&skeleton.marker) && !self.debts.harmed && self.is_whole(skeleton)? {
            return Ok(());
        }
        let known_layout = held.iter().any(|c| c.starts_with(&Skeleton::prefix()));
        let mut script = String::new();
        if known_layout {
            // Parameters changed: rules are replaced below, markers here, elements stay.
            for marker in held.iter().filter(|c| c.starts_with(&Skeleton::prefix())) {
                script.push_str(&format!("delete chain inet {TABLE} {marker}\n"));
            }
            let done: Vec<&String> = held.iter().filter(|c| skeleton.has_done_with(c)).collect();
            // Those that stay may lead to those that go.
            let rewritten = held.iter().filter(|c| !done.is_empty() && skeleton.rewrites(c));
            script.extend(rewritten.chain(done.iter().copied()).map(|c| format!("flush chain inet {TABLE} {c}\n")));
            script.extend(done.iter().map(|c| format!("delete chain inet {TABLE} {c}\n")));
            if done.iter().any(|c| *c == DELIVER) {
                // An older agent's table has no `near`.
                script.push_str(&format!("table inet {TABLE} {{\n\tset near {{ type inet_service; }}\n}}\n"));
                script.push_str(&format!("flush map inet {TABLE} port4\nflush map inet {TABLE} port6\nflush set inet {TABLE} near\n"));
            }
        } else if chains.is_some() {
            // Another layout's sets mean something else. One transaction replaces it all.
            script.push_str(&format!("delete table inet {TABLE}\n"));
        }
        if !skeleton.netdev && self.ns.chains(Family::Netdev, TABLE)?.is_some() {
            script.push_str(&format!("delete table netdev {TABLE}\n"));
        }
        script.push_str(&skeleton.script);
        let was_harmed = self.debts.harmed;
        self.load_script(&script)?;
        // A table that somebody took away had connections, and those go on.
        self.debts.fresh |= !known_layout && !was_harmed;
        Ok(())
    }

    fn is_whole(&mut self, skeleton: &Skeleton) -> Result<bool, KernelError> {
        for chain in &skeleton.chains {
            if !self.ns.has_rules(Family::Inet, TABLE, chain)? {
                return Ok(false);
            }
        }
        let netdev = if skeleton.netdev { self.ns.chains(Family::Netdev, TABLE)?.unwrap_or_default() } else { Vec::new() };
        Ok(!skeleton.netdev || netdev.iter().any(|c| c == "way_back"))
    }

    /// Loads nft text. What the monitor saw of our tables meanwhile is forgotten: `nft` is another program, but this was ours.
    pub(crate) fn load_script(&mut self, script: &str) -> Result<(), KernelError> {
        self.ns.load_script(script)?;
        self.counts.commits += 1;
        let events = self.monitor.read_events()?;
        self.overlooked |= events.iter().any(|event| matches!(event, NftEvent::Lost) || harm(event) == Harm::Docker);
        Ok(())
    }

    /// The worst that others did to our tables since last asked.
    pub(crate) fn harm(&mut self) -> Harm {
        let own = self.ns.port_id().ok();
        let harm = match self.monitor.read_events() {
            Ok(events) => events.iter().filter(|e| e.port().is_none() || e.port() != own).map(harm).max().unwrap_or(Harm::None),
            // If even reading fails, reading the tables tells.
            Err(_) => Harm::Ours,
        };
        self.debts.harmed |= harm == Harm::Ours;
        harm
    }

    pub(crate) fn commit(&mut self, mut ops: Vec<NftOp>) -> Result<(), KernelError> {
        if ops.is_empty() {
            return Ok(());
        }
        // Nothing is added and deleted again in one commit, so deletions may come first; the kernel takes a large commit
        // twice as fast that way.
        ops.sort_by_key(|op| !matches!(op, NftOp::DeleteElement { .. }));
        self.ns.commit(&ops)?;
        self.counts.commits += 1;
        self.counts.operations += ops.len() as u64;
        Ok(())
    }

    /// Does the parts of a change in their order.
    pub(crate) fn carry_out(&mut self, changes: Changes) -> Result<(), KernelError> {
        self.program(&changes.before)?;
        self.commit(changes.nft)?;
        self.program(&changes.after)
    }

    /// As [`Self::carry_out`], for what only ends old connections: a failure leaves those to their timeout, and holds up nothing.
    pub(crate) fn carry_out_late(&mut self, changes: Changes) {
        if let Err(error) = self.carry_out(changes) {
            tracing::warn!(namespace = %self.path.display(), %error, "connections to a backend that has drained stay until they time out");
        }
    }

    /// What the plane of virtual servers left in a namespace that is balanced by nftables now: nothing leads to it any more, but
    /// connections go on in it. A virtual server goes once it has none. The maps stay until the last one has gone: by them it is
    /// known whose each is, should the planes change again.
    pub(crate) fn retire_virtuals(&mut self) -> Result<(), KernelError> {
        let mut left = Vec::new();
        for set in RETIRED {
            match self.ns.elements(set) {
                Err(KernelError::NotFound { .. }) => {}
                Err(error) => return Err(error),
                Ok(_) => left.push(set),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let servers = match self.our_virtuals() {
            Err(KernelError::NotSupported { .. }) => Vec::new(),
            servers => servers?,
        };
        let is_idle = |reals: &[RealState]| reals.iter().all(|r| r.active == 0 && r.inactive == 0);
        let idle: Vec<IpvsOp> =
            servers.iter().filter(|(_, reals)| is_idle(reals)).map(|(state, _)| IpvsOp::DeleteVirtual(state.server.id)).collect();
        self.program(&idle)?;
        if idle.len() == servers.len() {
            let script: String = left.iter().map(|set| format!("delete map inet {TABLE} {}\n", set.set)).collect();
            self.load_script(&script)?;
        }
        Ok(())
    }

    /// Empties the sets of a balancer that virtual servers stand in for.
    pub(crate) fn retire_sets(&mut self, sets: &[SetName]) -> Result<(), KernelError> {
        let ops = filled(&mut *self.ns, sets)?.into_iter().map(|set| NftOp::FlushSet { set }).collect();
        self.commit(ops)
    }

    /// Each change of IPVS is done alone; the first one that is refused is what went wrong.
    pub(crate) fn program(&mut self, ops: &[IpvsOp]) -> Result<(), KernelError> {
        if ops.is_empty() {
            return Ok(());
        }
        let outcomes = self.ns.ipvs_apply(ops)?;
        self.counts.commits += 1;
        self.counts.operations += ops.len() as u64;
        // What is to go and is not there has gone.
        let done = |(op, outcome): (&IpvsOp, Result<(), KernelError>)| match outcome {
            Err(KernelError::NotFound { .. }) if matches!(op, IpvsOp::DeleteVirtual(_) | IpvsOp::DeleteReal { .. }) => Ok(()),
            outcome => outcome,
        };
        ops.iter().zip(outcomes).try_for_each(done)
    }

    /// True while the table that is loaded is of virtual servers.
    pub(crate) fn has_virtuals(&mut self) -> Result<bool, KernelError> {
        Ok(self.ns.chains(Family::Inet, TABLE)?.is_some_and(|chains| chains.iter().any(|c| c == MARK_CHAIN)))
    }

    /// True if a table of this layout is loaded, whatever its parameters.
    pub(crate) fn is_loaded(&mut self) -> Result<bool, KernelError> {
        Ok(self.ns.chains(Family::Inet, TABLE)?.is_some_and(|chains| chains.iter().any(|c| c.starts_with(&Skeleton::prefix()))))
    }

    /// Loads a skeleton in place of whatever is there.
    pub(crate) fn replace(&mut self, skeleton: &Skeleton) -> Result<(), KernelError> {
        self.load_script(&format!("delete table inet {TABLE}\n{}", skeleton.script))
    }

    /// Makes the sets of a skeleton that is not loaded yet, so that they can be filled before anything looks into them.
    pub(crate) fn declare(&mut self, skeleton: &Skeleton) -> Result<(), KernelError> {
        self.load_script(&skeleton.declarations)
    }

    /// What IPVS needs in a namespace, besides virtual servers.
    pub(crate) fn prepare_ipvs(&mut self) -> Result<(), KernelError> {
        // Asking loads the module, without which there are no sysctls.
        self.ns.ipvs_info()?;
        self.switch_on(&IPVS_SWITCHES)?;
        if self.ns.ipvs_timeouts()? != TIMEOUTS {
            self.program(&[IpvsOp::SetTimeouts(TIMEOUTS)])?;
        }
        Ok(())
    }

    /// Our virtual servers, of both families. Reads one list for each: at the start and in audits only.
    pub(crate) fn our_virtuals(&mut self) -> Result<Vec<(VirtualState, Vec<RealState>)>, KernelError> {
        our_virtuals(&mut *self.ns)
    }

    /// Reads both maps and `servers` into a mirror.
    pub(crate) fn adopt_virtuals(
        &mut self,
        virtuals: &mut Virtuals,
        servers: &[(VirtualState, Vec<RealState>)],
        changes: &mut Changes,
    ) -> Result<(), KernelError> {
        let sets = virtuals.sets();
        let (marks, parked) = (self.ns.elements(sets.marks)?, self.ns.elements(sets.parked)?);
        virtuals.adopt(marks, parked, servers, changes);
        Ok(())
    }

    /// Reads a balancer's sets back into its mirror; the returned operations remove what makes no sense.
    pub(crate) fn adopt(&mut self, balancer: &mut Balancer) -> Result<Vec<NftOp>, KernelError> {
        let sets = balancer.sets();
        let mut held = Held {
            front: self.ns.elements(sets.front)?,
            classes: self.ns.elements(sets.classes)?,
            slot: self.ns.elements(sets.slot)?,
            sticky: self.ns.elements(sets.sticky)?,
            live: self.ns.elements(sets.live)?,
            ..Held::default()
        };
        held.chains = self.ns.chains(Family::Inet, TABLE)?.unwrap_or_default();
        let chains =
            held.classes.iter().filter_map(|e| if let Some(ElementData::Goto(chain)) = &e.data { Some(chain.as_str()) } else { None });
        for chain in chains.chain([balancer.dispatch_chain()]) {
            if !self.ns.has_rules(Family::Inet, TABLE, chain)? {
                held.empty_chains.insert(chain.to_owned());
            }
        }
        Ok(balancer.adopt(&held))
    }

    /// Forgets flows, after the rule that sends their next packet elsewhere is in. A failure leaves stale flows to their
    /// timeout; it is logged and does not hold up anything else.
    pub(crate) fn forget(&mut self, filter: &FlowFilter) {
        if let Err(error) = self.ns.flush_flows(filter) {
            tracing::warn!(namespace = %self.path.display(), %error, "flows of a removed backend stay until they time out");
        }
    }

    /// True unless this namespace surely has no flow at all, as a new task's has none.
    pub(crate) fn has_flows(&mut self) -> bool {
        self.ns.sysctl_read("net/netfilter/nf_conntrack_count").map_or(true, |n| n.trim() != "0")
    }
}

/// Lets packets in by `leg` whose answers the main table would send out by another interface. Docker leaves this off;
/// some distributions turn it on, and the stricter of `all` and the interface's own holds unless one says loose.
pub(crate) fn loosen_reverse_path(ns: &mut dyn Namespace, leg: &str) -> Result<(), KernelError> {
    let own = format!("net/ipv4/conf/{leg}/rp_filter");
    let is = |ns: &mut dyn Namespace, key: &str, value: &str| ns.sysctl_read(key).map(|v| v.trim() == value);
    let strict = is(ns, "net/ipv4/conf/all/rp_filter", "1")? || is(ns, &own, "1")?;
    if strict && !is(ns, "net/ipv4/conf/all/rp_filter", "2")? {
        ns.sysctl_ensure(&own, "2")?;
    }
    Ok(())
}

pub(crate) fn our_virtuals(ns: &mut dyn Namespace) -> Result<Vec<(VirtualState, Vec<RealState>)>, KernelError> {
    let all = ns.virtual_servers()?;
    let ours = all.into_iter().filter(|state| matches!(state.server.id, VirtualId::Mark { mark, .. } if is_ours(mark.get())));
    ours.map(|state| ns.real_servers(&state.server.id).map(|reals| (state, reals))).collect()
}

/// Switches of IPVS, per namespace, and what remembers that one was off.
///
/// - `conntrack`: connections of IPVS are tracked as all others, so that answers are no strangers to firewalls and NAT.
/// - `expire_nodest_conn`: a connection to a backend that is gone ends at its next packet; otherwise it would wait there.
/// - `expire_quiescent_template`: a client that stayed with a backend gets another one as soon as that drains.
/// - `conn_reuse_mode`: a client's port that comes again begins a new connection. Docker switches this off, against a delay
///   of a second that Linux 5.9 did away with; off, a new connection goes to the backend of the old one, drained or not.
pub(crate) const IPVS_SWITCHES: [(&str, &str); 4] = [
    ("net/ipv4/vs/conntrack", "ipvs_conntrack"),
    ("net/ipv4/vs/expire_nodest_conn", "ipvs_expire_nodest"),
    ("net/ipv4/vs/expire_quiescent_template", "ipvs_expire_quiescent"),
    ("net/ipv4/vs/conn_reuse_mode", "ipvs_conn_reuse"),
];

/// The maps that only virtual servers need.
pub(crate) const RETIRED: [SetName; 6] =
    [VIRTUALS4.marks, VIRTUALS4.parked, VIRTUALS6.marks, VIRTUALS6.parked, inet("other4"), inet("other6")];

/// Empty chains whose names say which sysctls were off before we needed them.
pub(crate) const WAS_OFF: &str = "was_off_";
pub(crate) const IP_FORWARD: &str = "ip_forward";
pub(crate) const ROUTE_LOCALNET: &str = "route_localnet";

/// Of both families.
pub(crate) const EARLY_DEMUX: &str = "net/ipv4/tcp_early_demux";
const CORRECTS_EARLY_DEMUX: (u32, u32) = (6, 12);
/// An empty chain that says that it was on before we switched it off.
pub(crate) const WAS_ON_EARLY_DEMUX: &str = "was_on_tcp_early_demux";

/// What an event may have done to us, from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    None,
    /// Something of Docker's went: our rule in its user chain may have gone with it.
    Docker,
    Ours,
}

fn harm(event: &NftEvent) -> Harm {
    let (NftEvent::TableDeleted { table, .. }
    | NftEvent::ChainDeleted { table, .. }
    | NftEvent::RuleDeleted { table, .. }
    | NftEvent::SetDeleted { table, .. }
    | NftEvent::ElementsDeleted { table, .. }) = event
    else {
        return if matches!(event, NftEvent::Lost) { Harm::Ours } else { Harm::None };
    };
    match table.as_str() {
        TABLE => Harm::Ours,
        "filter" => Harm::Docker,
        _ => Harm::None,
    }
}

pub(crate) const UDP: u8 = Protocol::Udp.number();
