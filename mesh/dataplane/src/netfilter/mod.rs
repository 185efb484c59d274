//! The planes that live in netfilter: every namespace's table, brought about and kept.
//!
//! East–west is translated in the client task's own namespace, north–south at the entry node (for the node's own tasks
//! directly, see `direct.rs`), and answers find the entry node by a mark; see ARCHITECTURE.md for a packet's way. Each
//! namespace is a *place* of its own: what fails in one is retried there, and holds up no other.

mod direct;
mod flows;
mod ingress;
mod mirror;
mod node;
mod probe;
mod status;
mod table;
mod task;
mod uninstall;
mod watch;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags},
    inotify::{AddWatchFlags, Inotify},
};
use swarmesh_kernel::Kernel;
use swarmesh_model::{Problem, Protocol, ServiceId, TaskId};
use swarmesh_plan::{NodePlan, PlanDelta, PortKey, PublishedPort, SandboxPlan, Scheduler};

use self::{
    direct::{Door, Doors, near_ports},
    flows::{Cut, Flows},
    ingress::IngressTable,
    node::NodeTable,
    table::{Debts, release},
    task::TaskTable,
};
use crate::{PlaneError, directory};

pub use direct::goes_direct;
pub use probe::try_ipvs;
pub use status::{HostFacts, PlaceState, PlaceStatus, PlaneStatus};
pub use uninstall::uninstall;

/// Docker's name for the namespace that published ports go through.
const INGRESS_SANDBOX: &str = "ingress_sbox";
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// A namespace that is being made is there within this time, and its task may get traffic right away: until then, no pause
/// grows.
const EARLY: Duration = Duration::from_secs(1);
const SLOW_RETRY: Duration = Duration::from_millis(320);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// More flows than this are not remembered for a place that cannot cut them yet.
const MOST_CUTS: usize = 1024;

type PortChanges = BTreeMap<PortKey, Option<Arc<PublishedPort>>>;

/// Who picks the backend of a new connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// Rules and maps of our own.
    #[default]
    Nft,
    /// The kernel's virtual servers.
    Ipvs {
        /// What its modules can do; for others, round robin stands in.
        schedulers: Arc<BTreeSet<Scheduler>>,
    },
}

impl Balancing {
    /// The plane's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ipvs { .. } => "ipvs",
        }
    }
}

/// Where the plane finds things on this node.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    pub balancing: Balancing,
    /// Where Docker keeps its namespaces.
    pub netns_dir: PathBuf,
    /// What tasks see of clients whose own address means nothing outside of this node.
    pub node_address: Option<IpAddr>,
}

/// A namespace that the plane programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Ingress,
    Node,
    Task(TaskId),
}

#[derive(Debug)]
struct Record {
    pending: Option<Pending>,
    since: Instant,
    healed: u64,
}

#[derive(Debug)]
struct Pending {
    error: PlaneError,
    retry: Instant,
    pause: Duration,
    /// Flows that are to be cut here once it works again.
    cuts: BTreeSet<Cut>,
}

/// See the module's own words.
pub struct NetfilterPlane {
    kernel: Arc<dyn Kernel>,
    config: PlaneConfig,
    plan: NodePlan,
    node: Option<NodeTable>,
    ingress: Option<IngressTable>,
    tasks: BTreeMap<TaskId, TaskTable>,
    doors: Doors,
    /// Published TCP ports whose tasks' doors have changed since the node and the sandbox were last told.
    untold: BTreeSet<u16>,
    records: BTreeMap<Place, Record>,
    /// Of places whose last attempt failed.
    debts: BTreeMap<Place, Debts>,
    flows: Flows,
    problems: BTreeMap<ServiceId, Problem>,
    watch: Option<Epoll>,
    /// Tells of namespaces as they appear: a task may get traffic a moment later.
    directory: Option<Inotify>,
    /// Numbers by which the watch tells places apart.
    watched: HashMap<u64, Place>,
    next_watch: u64,
    /// Places that the audit under way has not come to yet.
    unaudited: VecDeque<Place>,
    errors: u64,
    healed: u64,
    /// Work of tables that are closed by now.
    closed: table::Counts,
}

impl fmt::Debug for NetfilterPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetfilterPlane").field("config", &self.config).field("records", &self.records).finish_non_exhaustive()
    }
}

impl NetfilterPlane {
    pub fn new(kernel: Arc<dyn Kernel>, config: PlaneConfig) -> Self {
        let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .inspect_err(|error| tracing::warn!(%error, "foreign changes are noticed by the audit only"))
            .ok();
        let directory = watch.as_ref().and_then(|watch| {
            directory::watch(watch, &config.netns_dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB)
                .inspect_err(|error| tracing::info!(directory = %config.netns_dir.display(), %error, "new namespaces are found by trying"))
                .ok()
        });
        Self {
            kernel,
            config,
            plan: NodePlan::default(),
            node: None,
            ingress: None,
            tasks: BTreeMap::new(),
            doors: Doors::default(),
            untold: BTreeSet::new(),
            records: BTreeMap::new(),
            debts: BTreeMap::new(),
            flows: Flows::default(),
            problems: BTreeMap::new(),
            watch,
            directory,
            watched: HashMap::new(),
            next_watch: 0,
            unaudited: VecDeque::new(),
            errors: 0,
            healed: 0,
            closed: table::Counts::default(),
        }
    }

    /// The address that other nodes know this one by, once that is known.
    pub fn set_node_address(&mut self, address: Option<IpAddr>, now: Instant) {
        if self.config.node_address != address {
            self.config.node_address = address;
            if self.node.is_some() {
                self.attempt(&Place::Node, now, Self::sync);
            }
        }
    }

    /// Brings the kernel from the last plan to the next. What fails stays pending and is retried by [`Self::run_due`].
    pub fn apply(&mut self, delta: &PlanDelta, now: Instant) {
        let cuts = self.flows.note(&self.plan, delta, now);
        self.note_problems(delta);
        self.plan.apply_tables(delta);
        if delta.is_empty() {
            return;
        }
        self.withdraw(delta, now);
        // A task's own table comes first: what is sent to it before that has to be sent again.
        for (task, change) in &delta.sandboxes {
            self.apply_sandbox(task, change.is_some(), now);
        }
        self.apply_ingress(delta, now);
        for (network, changes) in &delta.vips {
            // A sandbox that changed has taken these along already.
            let members = self.tasks.iter().filter(|(id, t)| !delta.sandboxes.contains_key(*id) && t.plan().networks.contains(network));
            let members: Vec<TaskId> = members.map(|(id, _)| id.clone()).collect();
            for task in members {
                self.attempt(&Place::Task(task), now, |plane, place| match plane.task(place) {
                    Some(table) => table.change_vips(changes),
                    None => Ok(()),
                });
            }
        }
        self.cut(&cuts);
    }

    fn apply_ingress(&mut self, delta: &PlanDelta, now: Instant) {
        if delta.ingress.is_some() {
            // Another ingress network has another sandbox under the same name.
            for place in [Place::Ingress, Place::Node] {
                self.close(&place);
            }
        }
        // With a new ingress network, nobody knows what an earlier agent left; and what waits must learn that it need not.
        let waits = self.records.contains_key(&Place::Ingress) || self.records.contains_key(&Place::Node);
        let needed = !self.plan.published.is_empty() || waits || delta.ingress.is_some();
        let changes = self.with_untold(&delta.published);
        if self.ingress.is_none() && needed {
            self.attempt(&Place::Ingress, now, Self::sync);
        } else {
            self.change_ingress(&changes, now);
        }
        // Another release of Docker has other rules: its restart has changed more than the plan says.
        let rearranged = self.node.is_some() && delta.host_layout.is_some();
        if (self.node.is_none() && needed) || rearranged {
            self.attempt(&Place::Node, now, Self::sync);
        } else {
            self.change_node(&changes, now);
        }
    }

    /// These changes, and the ports whose tasks' doors have changed.
    fn with_untold<'a>(&mut self, changes: &'a PortChanges) -> Cow<'a, PortChanges> {
        let mut changes = Cow::Borrowed(changes);
        for number in std::mem::take(&mut self.untold) {
            let key = (Protocol::Tcp, number);
            if let Some(port) = self.plan.published.get(&key) {
                changes.to_mut().entry(key).or_insert_with(|| Some(Arc::clone(port)));
            }
        }
        changes
    }

    fn change_ingress(&mut self, changes: &PortChanges, now: Instant) {
        if self.ingress.is_some() && !changes.is_empty() {
            self.attempt(&Place::Ingress, now, |plane, _| match &mut plane.ingress {
                Some(table) => table.change(changes, &plane.doors),
                None => Ok(()),
            });
        }
    }

    fn change_node(&mut self, changes: &PortChanges, now: Instant) {
        if self.node.is_some() && !changes.is_empty() {
            self.attempt(&Place::Node, now, |plane, _| match &mut plane.node {
                Some(table) => table.change(changes, &plane.doors),
                None => Ok(()),
            });
        }
    }

    /// Before a task's table changes so that it takes less than it does: nothing must be sent straight to what goes.
    fn withdraw(&mut self, delta: &PlanDelta, now: Instant) {
        for (id, change) in &delta.sandboxes {
            let (Some(door), Some(table)) = (self.doors.get(id), self.tasks.get(id)) else { continue };
            let before = table.plan();
            let same_legs = |new: &SandboxPlan| {
                new.sandbox == before.sandbox && new.ingress.as_ref().map(|i| &i.addresses) == before.ingress.as_ref().map(|i| &i.addresses)
            };
            let left = change.as_ref().filter(|new| same_legs(new)).and_then(|new| new.ingress.as_ref()).map(|ingress| {
                let ports = near_ports(ingress);
                Door { ports: door.ports.intersection(&ports).copied().collect(), ..door.clone() }
            });
            self.untold.extend(self.doors.set(id, left));
        }
        // Another ingress network begins with another sandbox, and with all ports told anew.
        if delta.ingress.is_none() {
            self.tell(now);
        }
    }

    /// Tells the node and the sandbox of doors that have changed. First the node: who goes must be sent nothing.
    fn tell(&mut self, now: Instant) {
        if self.untold.is_empty() {
            return;
        }
        let changes = self.with_untold(&PortChanges::new()).into_owned();
        self.change_node(&changes, now);
        self.change_ingress(&changes, now);
    }

    fn apply_sandbox(&mut self, task: &TaskId, planned: bool, now: Instant) {
        let place = Place::Task(task.clone());
        let wanted = if planned { self.plan.sandboxes.get(task).cloned() } else { None };
        let Some(wanted) = wanted else {
            self.close(&place);
            return;
        };
        if self.tasks.get(task).is_some_and(|t| t.plan().sandbox != wanted.sandbox) {
            self.close(&place);
        }
        let node = std::mem::take(&mut self.plan);
        self.attempt(&place, now, |plane, place| match plane.task(place) {
            Some(table) => table.change(&wanted, &node),
            None => plane.open_task(task, &node),
        });
        self.plan = node;
    }

    fn task(&mut self, place: &Place) -> Option<&mut TaskTable> {
        match place {
            Place::Task(id) => self.tasks.get_mut(id),
            Place::Node | Place::Ingress => None,
        }
    }

    /// Runs one piece of work on one place and keeps the outcome. After a failure the mirror is not to be trusted: the
    /// place is closed, and its next attempt starts from what the kernel holds.
    fn attempt(&mut self, place: &Place, now: Instant, work: impl FnOnce(&mut Self, &Place) -> Result<(), PlaneError>) {
        let before = self.records.remove(place);
        let healed = before.as_ref().map_or(0, |r| r.healed);
        match work(self, place) {
            Ok(()) => {
                self.debts.remove(place);
                // What is not needed is not open either.
                let Some(table) = self.table(place) else { return };
                table.debts = Debts::default();
                if let Place::Task(id) = place {
                    // Virtual servers choose among all tasks in one place, the sandbox.
                    let is_direct = self.config.balancing == Balancing::Nft;
                    let door = self.tasks.get(id).filter(|_| is_direct).and_then(TaskTable::door);
                    self.untold.extend(self.doors.set(id, door));
                }
                let (was_pending, before) = (before.as_ref().is_some_and(|r| r.pending.is_some()), before);
                let since = before.as_ref().filter(|_| !was_pending).map_or(now, |r| r.since);
                self.records.insert(place.clone(), Record { pending: None, since, healed });
                self.watch(place);
                for cut in before.and_then(|r| r.pending).into_iter().flat_map(|p| p.cuts) {
                    self.cut_at(place, &cut);
                }
            }
            Err(error) => {
                if let Some(debts) = self.drop_table(place) {
                    self.debts.insert(place.clone(), debts);
                }
                let (mut again, mut cuts) = (None, BTreeSet::new());
                if let Some(Record { pending: Some(pending), since, .. }) = before {
                    again = Some((pending.pause, since));
                    cuts = pending.cuts;
                }
                let since = again.map_or(now, |(_, since)| since);
                let early = now.saturating_duration_since(since) < EARLY;
                let pause = again.filter(|_| !early).map_or(FIRST_RETRY, |(pause, _)| (pause * 2).min(LAST_RETRY));
                // Said once, when it is more than a namespace that is not quite there yet.
                if pause > SLOW_RETRY && pause <= SLOW_RETRY * 2 {
                    tracing::warn!(place = %self.name(place), %error, "still not applied, will be tried again");
                } else {
                    tracing::debug!(place = %self.name(place), %error, "not applied, will be tried again");
                }
                if !early {
                    self.errors += 1;
                }
                let pending = Some(Pending { error, retry: now + pause, pause, cuts });
                self.records.insert(place.clone(), Record { pending, since, healed });
            }
        }
    }

    /// Opens a place, or reads an open one back, and mends what differs from the plan.
    fn sync(&mut self, place: &Place) -> Result<(), PlaneError> {
        let plan = std::mem::take(&mut self.plan);
        let outcome = self.sync_to(place, &plan);
        self.plan = plan;
        outcome
    }

    fn sync_to(&mut self, place: &Place, plan: &NodePlan) -> Result<(), PlaneError> {
        let needed = plan.ingress.is_some() && (!plan.published.is_empty() || self.table(place).is_some());
        let debts = self.debts.get(place).copied().unwrap_or_default();
        match place {
            // A task's namespace goes with its task. The node's stays, and our hold on its ports must not.
            Place::Ingress if !needed => {
                self.closed.add(release(&*self.kernel, Some(&self.config.netns_dir.join(INGRESS_SANDBOX)), &ingress::SETS)?);
            }
            Place::Node if !needed => self.closed.add(release(&*self.kernel, None, &node::SETS)?),
            Place::Ingress => {
                let Some(network) = &plan.ingress else { return Ok(()) };
                if self.ingress.is_none() {
                    let path = self.config.netns_dir.join(INGRESS_SANDBOX);
                    self.ingress = Some(IngressTable::open(&*self.kernel, &path, debts, &self.config.balancing)?);
                }
                self.ingress.as_mut().map_or(Ok(()), |table| table.sync(plan, network, &self.doors))?;
            }
            Place::Node => {
                let facts = self.ingress.as_ref().map(|i| i.facts().clone()).ok_or(PlaneError::WaitsForIngress)?;
                if self.node.is_none() {
                    self.node = Some(NodeTable::open(&*self.kernel, debts)?);
                }
                let address = self.config.node_address;
                self.node.as_mut().map_or(Ok(()), |table| table.sync(plan, &facts, address, &self.doors))?;
            }
            Place::Task(id) => match self.tasks.get_mut(id) {
                Some(table) => table.sync(plan)?,
                None => self.open_task(id, plan)?,
            },
        }
        Ok(())
    }

    fn open_task(&mut self, id: &TaskId, plan: &NodePlan) -> Result<(), PlaneError> {
        if let Some(sandbox) = plan.sandboxes.get(id) {
            let path = self.config.netns_dir.join(&sandbox.sandbox);
            let debts = self.debts.get(&Place::Task(id.clone())).copied().unwrap_or_default();
            let table = TaskTable::open(&*self.kernel, &path, debts, sandbox, &self.config.balancing)?;
            self.tasks.entry(id.clone()).or_insert(table).sync(plan)?;
        }
        Ok(())
    }

    /// Forgets a place that is no longer planned. What it holds in the kernel goes with its namespace.
    fn close(&mut self, place: &Place) {
        self.drop_table(place);
        self.records.remove(place);
        self.debts.remove(place);
        if let Place::Task(id) = place {
            self.doors.forget(id);
        }
    }

    fn drop_table(&mut self, place: &Place) -> Option<Debts> {
        self.watched.retain(|_, p| p != place);
        let table = match place {
            Place::Ingress => self.ingress.take().map(|t| t.table),
            Place::Node => self.node.take().map(|t| t.table),
            Place::Task(id) => {
                self.untold.extend(self.doors.set(id, None));
                self.tasks.remove(id).map(|t| t.table)
            }
        };
        // Closing its sockets takes them out of the watch, and lets the namespace go.
        table.map(|table| {
            self.closed.add(table.counts);
            table.debts
        })
    }

    /// Retries what is due, ends drains that are over, and audits one place if an audit is under way. Returns when to call again.
    pub fn run_due(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<Place> =
            self.records.iter().filter(|(_, r)| r.pending.as_ref().is_some_and(|p| p.retry <= now)).map(|(p, _)| p.clone()).collect();
        for place in due {
            self.attempt(&place, now, Self::sync);
        }
        self.tell(now);
        let cuts = self.flows.due(now);
        self.cut(&cuts);
        if self.audit_next(now) {
            return Some(now);
        }
        let retries = self.records.values().filter_map(|r| r.pending.as_ref().map(|p| p.retry));
        retries.chain(self.flows.next()).min()
    }

    fn cut(&mut self, cuts: &[flows::Cut]) {
        for cut in cuts {
            match &cut.at {
                flows::At::Vip(network, _) => {
                    let members = self.plan.sandboxes.iter().filter(|(_, s)| s.networks.contains(network));
                    for place in members.map(|(id, _)| Place::Task(id.clone())).collect::<Vec<_>>() {
                        self.cut_at(&place, cut);
                    }
                }
                flows::At::Port((protocol, _)) => {
                    self.cut_at(&Place::Ingress, cut);
                    if *protocol == Protocol::Tcp {
                        self.cut_at(&Place::Node, cut);
                    }
                }
            }
        }
    }

    fn cut_at(&mut self, place: &Place, cut: &Cut) {
        if let Some(pending) = self.records.get_mut(place).and_then(|r| r.pending.as_mut()) {
            if pending.cuts.len() < MOST_CUTS {
                pending.cuts.insert(cut.clone());
            }
            return;
        }
        match (&cut.at, place) {
            (flows::At::Vip(_, vip), _) => {
                if let Some(table) = self.task(place) {
                    table.forget_backend(*vip, cut.backend, cut.protocol);
                }
            }
            (flows::At::Port(key), Place::Node) => {
                let backends = self.plan.published.get(key).map(|p| &p.backends);
                let task = backends.into_iter().flatten().find(|b| b.address == cut.backend).map(|b| &b.task);
                let address = task.and_then(|task| self.doors.known(task));
                if let (Some(table), Some(address)) = (&mut self.node, address) {
                    table.forget_task(*key, address);
                }
            }
            (flows::At::Port(key), _) => {
                if let Some(table) = &mut self.ingress {
                    table.forget_backend(*key, cut.backend);
                }
            }
        }
    }

    fn table(&mut self, place: &Place) -> Option<&mut table::Table> {
        match place {
            Place::Ingress => self.ingress.as_mut().map(|t| &mut t.table),
            Place::Node => self.node.as_mut().map(|t| &mut t.table),
            Place::Task(id) => self.tasks.get_mut(id).map(|t| &mut t.table),
        }
    }

    /// Begins to read every place back, and to mend what differs. [`Self::run_due`] reads one place a call: a place may have
    /// thousands of lists to read, and what has changed in the swarm is not to wait for all places.
    pub fn start_audit(&mut self, now: Instant) {
        self.leave_replaced(now);
        self.release_leftovers();
        self.unaudited = self.records.keys().cloned().collect();
    }

    /// Says whether there are more.
    fn audit_next(&mut self, now: Instant) -> bool {
        let is_settled = |r: &Record| r.pending.is_none();
        let next = std::iter::from_fn(|| self.unaudited.pop_front()).find(|place| self.records.get(place).is_some_and(is_settled));
        if let Some(place) = next {
            self.audit(&place, now);
        }
        !self.unaudited.is_empty()
    }

    fn audit(&mut self, place: &Place, now: Instant) {
        let before = self.work();
        self.attempt(place, now, |plane, place| {
            plane.sync(place)?;
            if plane.work() != before {
                tracing::warn!(place = %plane.name(place), "the audit found differences and mended them");
                plane.healed += 1;
            }
            match place {
                Place::Ingress => plane.ingress.as_mut().map_or(Ok(()), IngressTable::tidy)?,
                Place::Task(id) => plane.tasks.get_mut(id).map_or(Ok(()), TaskTable::tidy)?,
                Place::Node => plane.node.as_mut().map_or(Ok(()), NodeTable::tidy)?,
            }
            Ok(())
        });
        self.tell(now);
    }

    /// Published ports that an earlier agent left, in a swarm that has none any more. Not done at the first plan: an agent
    /// that does not know the swarm yet has a plan without ports, too.
    fn release_leftovers(&mut self) {
        let unused = |place| !self.records.contains_key(&place);
        if self.plan.version == 0 || !self.plan.published.is_empty() || !unused(Place::Node) || !unused(Place::Ingress) {
            return;
        }
        let sandbox = self.config.netns_dir.join(INGRESS_SANDBOX);
        for (path, sets) in [(None, &node::SETS[..]), (Some(sandbox.as_path()), &ingress::SETS[..])] {
            match release(&*self.kernel, path, sets) {
                Ok(counts) => self.closed.add(counts),
                Err(error) => tracing::warn!(%error, "ports of an earlier agent may still be answered"),
            }
        }
    }

    fn work(&self) -> u64 {
        self.tables().map(|t| t.counts.commits).sum::<u64>() + self.closed.commits
    }

    fn tables(&self) -> impl Iterator<Item = &table::Table> {
        let single = self.ingress.iter().map(|t| &t.table).chain(self.node.iter().map(|t| &t.table));
        single.chain(self.tasks.values().map(|t| &t.table))
    }

    /// Whether all that is planned is in the kernel.
    pub fn is_settled(&self) -> bool {
        self.records.values().all(|r| r.pending.is_none())
    }

    fn name(&self, place: &Place) -> String {
        match place {
            Place::Ingress => "ingress".to_owned(),
            Place::Node => "node".to_owned(),
            Place::Task(id) => format!("task {}", self.plan.sandboxes.get(id).map_or(id.as_str(), |s| &s.name)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingress => f.write_str("ingress"),
            Self::Node => f.write_str("node"),
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}
