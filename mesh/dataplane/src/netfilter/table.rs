//! What the three kinds of namespace have in common: an open namespace, its skeleton, and how both are brought about.

use std::path::{Path, PathBuf};

use swarmesh_kernel::{ElementData, Family, FlowFilter, Kernel, KernelError, Namespace, NetnsId, NftEvent, NftMonitor, NftOp, SetName};
use swarmesh_model::Protocol;

use crate::{
    balancer::{Balancer, Held},
    layout::{DELIVER, Skeleton, TABLE},
};

/// A namespace that is open for programming.
pub(crate) struct Table {
    pub(crate) path: PathBuf,
    pub(crate) ns: Box<dyn Namespace>,
    pub(crate) monitor: NftMonitor,
    /// `None` for the namespace that the agent is in, which nobody replaces.
    id: Option<NetnsId>,
    pub(crate) debts: Debts,
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
    let mut ops = Vec::new();
    for set in sets {
        match ns.elements(*set) {
            Err(KernelError::NotFound { .. }) => {}
            Err(error) => return Err(error),
            Ok(held) if held.is_empty() => {}
            Ok(_) => ops.push(NftOp::FlushSet { set: *set }),
        }
    }
    if ops.is_empty() {
        return Ok(Counts::default());
    }
    ns.commit(&ops)?;
    Ok(Counts { commits: 1, operations: ops.len() as u64 })
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
        Ok(Self { path, ns, monitor, id, debts, counts: Counts::default() })
    }

    /// False once another namespace, or none, is behind the path: Docker rebuilds the ingress sandbox under its old name.
    pub(crate) fn is_current(&self, kernel: &dyn Kernel) -> bool {
        self.id.is_none_or(|id| kernel.identity(&self.path).is_ok_and(|now| now == id))
    }

    /// Sets a sysctl, after a note for the uninstaller if it is off: the other way round, a failure would lose the note.
    pub(crate) fn switch_on(&mut self, key: &str, note: &str) -> Result<(), KernelError> {
        if self.ns.sysctl_read(key)?.trim() == "0" {
            let chain = format!("{WAS_OFF}{note}");
            self.commit(vec![NftOp::AddChain { family: Family::Inet, table: TABLE, chain }])?;
        }
        self.ns.sysctl_ensure(key, "1").map(drop)
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

    /// Loads nft text. What the monitor saw meanwhile is forgotten: `nft` is another program, but this was ours.
    pub(crate) fn load_script(&mut self, script: &str) -> Result<(), KernelError> {
        self.ns.load_script(script)?;
        self.counts.commits += 1;
        self.monitor.read_events().map(drop)
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

/// Empty chains whose names say which sysctls were off before we needed them.
pub(crate) const WAS_OFF: &str = "was_off_";
pub(crate) const IP_FORWARD: &str = "ip_forward";
pub(crate) const ROUTE_LOCALNET: &str = "route_localnet";

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
