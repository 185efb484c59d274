//! A kernel in memory, for tests of everything above the seam.
//!
//! A fake proves only what it was taught. So each rule about nftables that it was taught is a row in `tests/twins.rs`, and each
//! about IPVS one in `tests/twins_ipvs.rs`, which run against this kernel and against the real one in a namespace of its own.
//! Teach it nothing without a row there.
//!
//! What it does not know: packets (no rule is ever evaluated), timeouts, the contents of rules loaded as text beyond
//! the chains they go or jump to, and which sysctls there are (an unset one reads "0").

mod ipvs;
mod namespace;
mod script;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipvs::FakeIpvs;
use namespace::FakeNamespace;
use tables::Tables;

use crate::{
    DefaultRoute, Element, Expr, Family, FlowFilter, Interface, IpvsOp, Kernel, KernelError, Namespace, NeighbourEvent, NeighbourMonitor,
    NetnsId, NftEvent, NftMonitor, NftOp, RealServer, SetName, VirtualServer, fed::Feed,
};

/// Stands for the agent's own namespace among the paths.
const HERE: &str = "/proc/self/ns/net";

/// What a test can make fail, see [`FakeView::fail_next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    missing_docs,
    reason = "named after the methods of Kernel and Namespace; Route is all of rules, routes and neighbours; IpvsOp is one of a call's changes"
)]
pub enum Call {
    Open,
    OpenMonitor,
    OpenNeighbours,
    LoadScript,
    Commit,
    Elements,
    Chains,
    FlushFlows,
    Sysctl,
    Interfaces,
    Route,
    ForwardRule,
    Socket,
    Ipvs,
    IpvsOp,
}

/// A policy rule: IPv6, mark, mask, table, priority.
pub type FwmarkRule = (bool, u32, u32, u32, u32);

/// A rule as it was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FakeRule {
    /// By [`NftOp::AddRule`]: comment and expressions.
    Op(String, Vec<Expr>),
    /// By a script: the rule's text.
    Text(String),
}

/// Everything of one namespace.
#[derive(Debug, Default)]
struct State {
    removed: bool,
    tables: Tables,
    generation: u32,
    last_port: u32,
    interfaces: Vec<Interface>,
    routes: BTreeMap<(bool, u32), DefaultRoute>,
    rules: BTreeSet<FwmarkRule>,
    neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    sysctls: BTreeMap<String, String>,
    /// For IPv4 and IPv6.
    docker_user: [Option<Vec<Vec<String>>>; 2],
    flushed: Vec<FlowFilter>,
    ipvs: FakeIpvs,
    ipvs_ops: Vec<IpvsOp>,
    commits: Vec<Vec<NftOp>>,
    scripts: Vec<String>,
    writes: usize,
    faults: HashMap<Call, VecDeque<i32>>,
    monitors: Vec<Feed<NftEvent>>,
    /// Where it leads, of an overlay's.
    overlay: Option<Arc<Mutex<BTreeSet<IpAddr>>>>,
    neighbour_monitors: Vec<Feed<NeighbourEvent>>,
}

impl State {
    fn fault(&mut self, call: Call, action: &str) -> Result<(), KernelError> {
        match self.faults.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(errno) => Err(KernelError::from_errno(action, errno)),
            None => Ok(()),
        }
    }

    fn next_port(&mut self) -> u32 {
        self.last_port += 1;
        self.last_port
    }

    fn commit(&mut self, ops: &[NftOp], port: u32) -> Result<(), KernelError> {
        if ops.is_empty() {
            return Ok(());
        }
        let mut changed = self.tables.clone();
        let mut events = Vec::new();
        for op in ops {
            changed.apply(op, port, &mut events)?;
        }
        self.tables = changed;
        self.committed(port, events);
        Ok(())
    }

    fn committed(&mut self, port: u32, mut events: Vec<NftEvent>) {
        self.generation += 1;
        events.push(NftEvent::Generation { id: self.generation, pid: None, name: None, port });
        events.dedup();
        self.monitors.retain_mut(|monitor| events.iter().all(|event| monitor.push(event.clone())));
    }
}

type Shared = Arc<Mutex<State>>;

/// A poisoned lock only says that some test failed already.
fn locked(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel in memory. Clones share everything.
#[derive(Clone, Default)]
pub struct FakeKernel {
    namespaces: Arc<Mutex<BTreeMap<PathBuf, Shared>>>,
    release: String,
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FakeKernel").finish_non_exhaustive()
    }
}

impl FakeKernel {
    /// A kernel with the agent's own namespace only.
    pub fn new() -> Self {
        Self::of_release("")
    }

    /// The same, that says it is of this release.
    pub fn of_release(release: &str) -> Self {
        let kernel = Self { release: release.to_owned(), ..Self::default() };
        kernel.add_namespace(Path::new(HERE));
        kernel
    }

    /// Adds an empty namespace, or replaces the one that was there; handles to that one keep working on it.
    pub fn add_namespace(&self, path: impl AsRef<Path>) -> FakeView {
        let state = Shared::default();
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(path.as_ref().to_path_buf(), Arc::clone(&state));
        FakeView { state }
    }

    /// Removes a path: opening it is [`KernelError::NamespaceGone`] from now on, open handles keep the namespace alive.
    pub fn remove_namespace(&self, path: impl AsRef<Path>) {
        if let Some(state) = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).remove(path.as_ref()) {
            locked(&state).removed = true;
        }
    }

    /// A look at the namespace behind a path, and the means to disturb it; `None` if there is none.
    pub fn at(&self, path: impl AsRef<Path>) -> Option<FakeView> {
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.get(path.as_ref()).map(|state| FakeView { state: Arc::clone(state) })
    }

    /// A look at the agent's own namespace.
    pub fn here(&self) -> FakeView {
        self.at(HERE).unwrap_or_else(|| self.add_namespace(HERE))
    }

    fn find(&self, path: &Path) -> Result<Shared, KernelError> {
        self.at(path).map(|view| view.state).ok_or_else(|| KernelError::NamespaceGone { path: path.to_path_buf() })
    }
}

impl Kernel for FakeKernel {
    fn release(&self) -> String {
        self.release.clone()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Namespace>, KernelError> {
        let state = self.find(path)?;
        let port = {
            let mut state = locked(&state);
            state.fault(Call::Open, &format!("open the network namespace {}", path.display()))?;
            state.next_port()
        };
        Ok(Box::new(FakeNamespace::new(state, port)))
    }

    fn open_current(&self) -> Result<Box<dyn Namespace>, KernelError> {
        self.open(Path::new(HERE))
    }

    fn identity(&self, path: &Path) -> Result<NetnsId, KernelError> {
        let state = self.find(path)?;
        Ok(NetnsId { device: 0, inode: Arc::as_ptr(&state).addr() as u64 })
    }

    fn namespaces(&self, directory: &Path) -> Result<Vec<String>, KernelError> {
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = namespaces.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open_monitor(&self, path: Option<&Path>) -> Result<NftMonitor, KernelError> {
        let state = self.find(path.unwrap_or(Path::new(HERE)))?;
        let mut state = locked(&state);
        state.fault(Call::OpenMonitor, "listen to nftables")?;
        let (monitor, feed) = NftMonitor::fed()?;
        state.monitors.push(feed);
        Ok(monitor)
    }

    fn open_neighbours(&self, path: &Path) -> Result<NeighbourMonitor, KernelError> {
        let state = self.find(path)?;
        let mut state = locked(&state);
        let action = "listen to neighbours";
        state.fault(Call::OpenNeighbours, action)?;
        let overlay = state.overlay.clone().ok_or_else(|| KernelError::NotFound { action: action.to_owned() })?;
        let (monitor, feed) = NeighbourMonitor::fed(overlay)?;
        state.neighbour_monitors.push(feed);
        Ok(monitor)
    }
}

/// What a test sees of one namespace, and what it can do to it behind the data plane's back.
#[derive(Clone)]
pub struct FakeView {
    state: Shared,
}

impl fmt::Debug for FakeView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FakeView").finish_non_exhaustive()
    }
}

impl FakeView {
    /// Makes the next such call fail with that positive errno. Several are taken in order.
    pub fn fail_next(&self, call: Call, errno: i32) {
        locked(&self.state).faults.entry(call).or_default().push_back(errno);
    }

    /// Takes back what [`Self::fail_next`] said and no call has met yet.
    pub fn forget_faults(&self) {
        locked(&self.state).faults.clear();
    }

    /// Sets the interfaces.
    pub fn set_interfaces(&self, interfaces: Vec<Interface>) {
        locked(&self.state).interfaces = interfaces;
    }

    /// Sets the default route of the main table.
    pub fn set_default_route(&self, v6: bool, route: Option<DefaultRoute>) {
        let mut state = locked(&self.state);
        match route {
            Some(route) => state.routes.insert((v6, namespace::MAIN_TABLE), route),
            None => state.routes.remove(&(v6, namespace::MAIN_TABLE)),
        };
    }

    /// Sets a sysctl, uncounted.
    pub fn set_sysctl(&self, key: &str, value: &str) {
        locked(&self.state).sysctls.insert(key.to_owned(), value.to_owned());
    }

    /// Adds or removes Docker's DOCKER-USER chain of one family.
    pub fn set_docker_user(&self, v6: bool, present: bool) {
        locked(&self.state).docker_user[usize::from(v6)] = present.then(Vec::new);
    }

    /// A stranger's commit: told to monitors under a port of its own, neither recorded nor counted.
    pub fn commit_as_stranger(&self, ops: &[NftOp]) -> Result<(), KernelError> {
        let mut state = locked(&self.state);
        let port = state.next_port();
        state.commit(ops, port)
    }

    /// A kernel with IPVS, or without it. It has it unless this says otherwise.
    pub fn set_ipvs(&self, present: bool) {
        locked(&self.state).ipvs.absent = !present;
    }

    /// A stranger's change to IPVS, neither recorded nor counted. Nobody is told: IPVS has no monitors.
    pub fn ipvs_as_stranger(&self, op: &IpvsOp) -> Result<(), KernelError> {
        locked(&self.state).ipvs.apply(op)
    }

    /// All changes to IPVS that were done, in order.
    pub fn ipvs_ops(&self) -> Vec<IpvsOp> {
        locked(&self.state).ipvs_ops.clone()
    }

    /// All virtual servers with their real servers, by their identities.
    pub fn ipvs(&self) -> Vec<(VirtualServer, Vec<RealServer>)> {
        locked(&self.state).ipvs.all()
    }

    /// Makes every monitor of this namespace lose events.
    pub fn lose_events(&self) {
        let mut state = locked(&self.state);
        state.monitors.retain_mut(|monitor| monitor.push(NftEvent::Lost));
        state.neighbour_monitors.retain_mut(|monitor| monitor.push(NeighbourEvent::Lost));
    }

    /// Adds an overlay's interface, or takes it away.
    pub fn set_overlay(&self, present: bool) {
        let mut state = locked(&self.state);
        if state.overlay.take().is_some() {
            state.neighbour_monitors.retain_mut(|monitor| monitor.push(NeighbourEvent::Ended));
        }
        state.overlay = present.then(Arc::default);
    }

    /// Has the overlay lead to an address, or not. Whoever listens is told, unless `told` says otherwise.
    pub fn set_peer(&self, address: IpAddr, present: bool, told: bool) {
        let mut state = locked(&self.state);
        let Some(overlay) = &state.overlay else { return };
        let mut peers = overlay.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = if present { peers.insert(address) } else { peers.remove(&address) };
        drop(peers);
        if changed && told {
            let event = if present { NeighbourEvent::There(address) } else { NeighbourEvent::Gone(address) };
            state.neighbour_monitors.retain_mut(|monitor| monitor.push(event));
        }
    }

    /// All successful commits with operations, in order.
    pub fn commits(&self) -> Vec<Vec<NftOp>> {
        locked(&self.state).commits.clone()
    }

    /// All scripts that were loaded, in order.
    pub fn scripts(&self) -> Vec<String> {
        locked(&self.state).scripts.clone()
    }

    /// How often anything was changed through handles: commits, scripts, and each `ensure` or `remove` that found work.
    pub fn writes(&self) -> usize {
        locked(&self.state).writes
    }

    /// Forgets recorded commits, changes to IPVS, scripts, flushes and the count.
    pub fn forget_records(&self) {
        let mut state = locked(&self.state);
        state.commits.clear();
        state.ipvs_ops.clear();
        state.scripts.clear();
        state.flushed.clear();
        state.writes = 0;
    }

    /// All filters that flows were flushed by.
    pub fn flushed(&self) -> Vec<FlowFilter> {
        locked(&self.state).flushed.clone()
    }

    /// Elements of a set, by key; empty if there is no such set.
    pub fn elements(&self, set: SetName) -> Vec<Element> {
        locked(&self.state).tables.elements(set).unwrap_or_default()
    }

    /// Names of the chains of a table; `None` if there is no such table.
    pub fn chains(&self, family: Family, table: &str) -> Option<Vec<String>> {
        locked(&self.state).tables.chains(family, table)
    }

    /// Rules of a chain; empty if there is no such chain.
    pub fn rules(&self, family: Family, table: &str, chain: &str) -> Vec<FakeRule> {
        locked(&self.state).tables.rules(family, table, chain).to_vec()
    }

    /// All tables.
    pub fn tables(&self) -> Vec<(Family, String)> {
        locked(&self.state).tables.names()
    }

    /// Policy rules by mark.
    pub fn fwmark_rules(&self) -> Vec<FwmarkRule> {
        locked(&self.state).rules.iter().copied().collect()
    }

    /// The default route of a table.
    pub fn route(&self, v6: bool, table: u32) -> Option<DefaultRoute> {
        locked(&self.state).routes.get(&(v6, table)).copied()
    }

    /// A permanent neighbour.
    pub fn neighbour(&self, index: u32, address: IpAddr) -> Option<[u8; 6]> {
        locked(&self.state).neighbours.get(&(index, address)).copied()
    }

    /// A sysctl, if it was ever set.
    pub fn sysctl(&self, key: &str) -> Option<String> {
        locked(&self.state).sysctls.get(key).cloned()
    }

    /// Rules in DOCKER-USER, first one first; `None` without the chain.
    pub fn docker_user(&self, v6: bool) -> Option<Vec<Vec<String>>> {
        locked(&self.state).docker_user[usize::from(v6)].clone()
    }
}

#[cfg(test)]
mod tests;
