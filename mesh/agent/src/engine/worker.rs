//! The engine's own loop.

use std::{
    collections::BTreeSet,
    future::pending,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, poll};
use swarmesh_dataplane::{Overlays, PlaneStatus, Reach};
use swarmesh_model::{Delta, NetworkId, Node, NodeId, Problem, Task};
use swarmesh_plan::{Added, NodeContext, PlanDelta, Planner};
use swarmesh_source::Update;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval_at, sleep_until, timeout},
};

use super::{
    AddedChange, Command, Resolver, Settings,
    batch::{Batch, Clues, LARGEST},
};
use crate::{
    Names, Plane, ResolverStatus, Router,
    store::{Memory, StoreError},
    view::{Origin, Shared, routes::Compiled},
};

const STORE_EVERY: Duration = Duration::from_secs(5);
/// A status costs a line per namespace, so while all is well it is not made more often than this.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// How long a first snapshot waits for the source to say which node this is.
const IDENTITY_PATIENCE: Duration = Duration::from_millis(250);

pub(super) struct Worker<P> {
    settings: Settings,
    plane: P,
    /// `None` if nothing can be watched.
    overlays: Option<Overlays>,
    names: Option<Names>,
    router: Option<Router>,
    /// The host's own name servers, as its file has them now.
    host_servers: Option<watch::Receiver<Arc<[IpAddr]>>>,
    planner: Planner,
    shared: Arc<Shared>,
    memory: Memory,
    /// As it is on disk.
    remembered: Option<Memory>,
    is_ready: Option<oneshot::Sender<()>>,
    origin: Origin,
    source_node: Option<NodeId>,
    /// What the source had said of this node when it was last identified.
    identified_with: Option<NodeId>,
    /// When to write the snapshot to disk.
    store_at: Option<Instant>,
    stored: Option<Instant>,
    /// Writing to disk takes longer than programming the kernel, and must not hold it up.
    storing: Option<JoinHandle<()>>,
    was_settled: bool,
    status_read: Option<Instant>,
    /// When the status, which is out of date, will be made.
    status_at: Option<Instant>,
}

impl<P: Plane> Worker<P> {
    pub(super) fn new(
        settings: Settings,
        plane: P,
        overlays: Option<Overlays>,
        resolver: Option<Resolver>,
        router: Option<Router>,
        shared: Arc<Shared>,
        is_ready: oneshot::Sender<()>,
    ) -> Self {
        let (names, host_servers) = resolver.map_or((None, None), |mut r| {
            // What the file says at the start is news, too.
            r.host_servers.mark_changed();
            (Some(r.names), Some(r.host_servers))
        });
        if let Some(names) = &names {
            let dns = Arc::clone(names.shared());
            shared.change(|view| view.dns = Some(dns));
        }
        if let Some(router) = &router {
            let proxy = Arc::clone(router.shared());
            shared.change(|view| view.proxy = Some(proxy));
        }
        let mut this = Self {
            names,
            router,
            host_servers,
            planner: Planner::new(NodeContext::default()),
            settings,
            plane,
            overlays,
            shared,
            memory: Memory::default(),
            remembered: None,
            is_ready: Some(is_ready),
            origin: Origin::None,
            source_node: None,
            identified_with: None,
            store_at: None,
            stored: None,
            storing: None,
            was_settled: false,
            status_read: None,
            status_at: None,
        };
        match this.settings.store.load_memory() {
            Ok(memory) => this.memory = memory,
            Err(error) => tell(&this.shared, Err(error)),
        }
        let draining = this.memory.draining;
        if this.memory.source != this.settings.source {
            this.memory = Memory { source: this.settings.source.clone(), node: None, draining };
        }
        if draining {
            tracing::warn!("this node still drains, as it was told before the restart; `swarmesh resume` ends that");
        }
        let mut added = Added::default();
        if this.settings.router.flow_proxy_api.is_some() {
            match this.settings.store.load_added() {
                Ok(stored) => added = stored,
                Err(error) => tell(&this.shared, Err(error)),
            }
        }
        let leaves_names = this.names.is_none();
        let dialects = Arc::clone(&this.settings.router.dialects);
        let listeners = this.settings.router.listeners.clone();
        let context =
            NodeContext { node: None, takeover: this.settings.takeover, draining, leaves_names, dialects, added: Arc::new(added) };
        this.planner.set_context(context.clone());
        let others = std::mem::take(&mut this.settings.other_planes);
        let plane = this.plane.status(Instant::now());
        this.shared.change(|view| {
            view.context = context;
            view.other_planes = others;
            view.listeners = listeners;
            view.plane = plane;
        });
        this
    }

    pub(super) async fn run(mut self, mut updates: mpsc::Receiver<Update>, mut commands: mpsc::Receiver<Command>) {
        let events = watch(self.plane.events(), "foreign changes are noticed by the audit only");
        let ways = watch(self.overlays.as_ref().map(Overlays::events), "lost ways are noticed by the audit only");
        let start = tokio::time::Instant::now();
        let mut audit = interval_at(start + self.settings.audit_every, self.settings.audit_every);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Some(Instant::now() + self.settings.patience);
        let mut source_lives = true;
        loop {
            let now = Instant::now();
            let reach_due = self.take_reach(now);
            let due = [self.plane.run_due(now), self.names.as_mut().and_then(|n| n.run_due(now)), reach_due].into_iter().flatten().min();
            self.publish();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Drain(drain, done)) => {
                        self.drain(drain);
                        // Who asked may have hung up.
                        let _ = done.send(());
                    }
                    Some(Command::Added(change, done)) => {
                        // As above.
                        let _ = done.send(self.change_added(change));
                    }
                    Some(Command::Stop) | None => break,
                },
                update = updates.recv(), if source_lives => match update {
                    Some(update) => {
                        self.take(update, &mut updates).await;
                        if self.origin != Origin::None {
                            patience = None;
                        }
                    }
                    None => source_lives = false,
                },
                () = at(due) => {}
                () = at(self.status_at) => {}
                () = at(self.store_at) => self.store(),
                () = at(patience) => {
                    patience = None;
                    self.take_stored();
                    self.say_ready();
                }
                () = changed(events.as_ref()) => self.check_events(),
                () = changed(ways.as_ref()) => self.check_overlays(),
                () = next(&mut self.host_servers) => self.take_host_servers(),
                _ = audit.tick() => {
                    self.plane.start_audit(Instant::now());
                    if let Some(overlays) = &mut self.overlays {
                        overlays.audit(Instant::now());
                    }
                    if let Some(names) = &mut self.names {
                        names.audit(Instant::now());
                    }
                }
            }
        }
        if self.store_at.is_some() {
            self.store();
        }
        if let Some(storing) = self.storing.take() {
            // Its own failure is in the log; a panic in it is no reason not to end.
            let _ = storing.await;
        }
        self.publish_now();
        if let Some(names) = self.names.take() {
            // It waits for what was asked upstream.
            let _ = tokio::task::spawn_blocking(move || names.stop()).await;
        }
        if let Some(router) = self.router.take() {
            // It waits for requests that are under way. A panic in it is logged there.
            let _ = tokio::task::spawn_blocking(move || router.stop()).await;
        }
    }

    /// Says whose servers the host asks now, the first time included.
    fn take_host_servers(&mut self) {
        if let (Some(names), Some(servers)) = (&mut self.names, &mut self.host_servers) {
            let now = Arc::clone(&servers.borrow_and_update());
            names.set_host_servers(Arc::clone(&now));
            self.shared.change(|view| view.host_servers = now);
        }
    }

    fn check_events(&mut self) {
        // The runtime tells of new events only, so what one look leaves behind must be looked at now. The bound is for a
        // program that changes tables faster than they are mended.
        for _ in 0..32 {
            self.plane.check_events(Instant::now());
            if !self.plane.events().is_some_and(is_readable) {
                break;
            }
        }
    }

    fn check_overlays(&mut self) {
        let Some(overlays) = &mut self.overlays else { return };
        // As above.
        for _ in 0..32 {
            overlays.check_events(Instant::now());
            if !is_readable(overlays.events()) {
                break;
            }
        }
    }

    /// Plans for what has become known of ways, and says when to look again.
    fn take_reach(&mut self, now: Instant) -> Option<Instant> {
        let (changes, due) = self.overlays.as_mut()?.run_due(now);
        if !changes.is_empty() {
            self.log_reach(&changes);
            let plan = self.planner.set_reach(changes.into_iter().map(|c| (c.network, c.address, c.reachable)));
            self.carry_out(&plan);
        }
        due
    }

    /// That the way to a task goes which has ended is no news.
    fn log_reach(&self, changes: &[Reach]) {
        for (reachable, what) in
            [(false, "no overlay leads to these tasks any more, so others get what is new"), (true, "these tasks are reached again")]
        {
            let places: BTreeSet<_> = changes.iter().filter(|c| c.reachable == reachable).map(|c| (&c.network, c.address)).collect();
            let is_there = |task: &Task| task.addresses.iter().any(|a| places.contains(&(&a.network, a.address)));
            let all = self.planner.snapshot().tasks.values();
            let tasks: Vec<&str> = all.filter(|task| task.is_usable() && is_there(task)).map(|task| &*task.name).collect();
            if !tasks.is_empty() {
                tracing::info!(?tasks, "{what}");
            }
        }
    }

    /// Takes this update and all that wait behind it, in one step.
    async fn take(&mut self, first: Update, updates: &mut mpsc::Receiver<Update>) {
        let received = Instant::now();
        let mut batch = Batch::default();
        batch.push(first);
        let mut count = 1;
        while count < LARGEST
            && let Ok(update) = updates.try_recv()
        {
            batch.push(update);
            count += 1;
        }
        self.note_source(&mut batch);
        // Planned without knowing which node this is, a snapshot would take the local tasks' VIPs away for a moment.
        if batch.is_full() && self.source_node.is_none() && self.identity_after(batch.nodes().into_iter()).is_err() {
            let deadline = received + IDENTITY_PATIENCE;
            while self.source_node.is_none()
                && let Ok(Some(update)) = timeout(deadline.saturating_duration_since(Instant::now()), updates.recv()).await
            {
                batch.push(update);
                self.note_source(&mut batch);
            }
        }
        if self.identify_and_apply(batch) {
            self.shared.apply_seconds.observe(received.elapsed().as_secs_f64());
        }
    }

    fn note_source(&mut self, batch: &mut Batch) {
        let Some(state) = batch.state.take() else { return };
        if state.node.is_some() {
            self.source_node.clone_from(&state.node);
        }
        self.shared.change(|view| view.source = Some(state));
    }

    /// Says whether there was anything to apply.
    fn identify_and_apply(&mut self, batch: Batch) -> bool {
        let delta = batch.into_delta(self.planner.snapshot());
        self.identify(delta.as_ref());
        let Some(delta) = delta else { return false };
        if self.origin != Origin::Source {
            self.origin = Origin::Source;
            tracing::info!(version = delta.version, "first snapshot from the source");
        }
        self.apply(&delta);
        self.store_soon();
        self.say_ready();
        true
    }

    fn apply(&mut self, delta: &Delta) {
        let plan = self.planner.update(delta);
        self.carry_out(&plan);
    }

    /// Programs the kernel, then tells.
    fn carry_out(&mut self, plan: &PlanDelta) {
        self.plane.apply(plan, Instant::now());
        if let Some(names) = &mut self.names {
            names.apply(&plan.names, &self.planner.plan().names, Instant::now());
        }
        if let Some(router) = &mut self.router {
            router.apply(&plan.routes, &self.planner.plan().routes);
        }
        if !plan.sandboxes.is_empty() || plan.ingress.is_some() {
            self.want_overlays();
        }
        // In one step with what is pending of it: nobody must see the new version with the old all-clear.
        let now = Instant::now();
        let settled = self.is_settled();
        let status = (!settled || !self.was_settled).then(|| self.status(now));
        if status.is_some() {
            self.was_settled = settled;
            self.status_read = Some(now);
        }
        // What the proxy has put together, nobody needs to put together again.
        let table = (!plan.routes.owners.is_empty()).then(|| {
            let compiled = self.router.as_ref().map(|router| {
                let routing = router.shared().routing();
                Compiled { table: Arc::clone(&routing.table), problems: Arc::clone(&routing.claims) }
            });
            Arc::new(compiled.map_or_else(OnceLock::new, OnceLock::from))
        });
        let origin = self.origin;
        let context = self.planner.context().clone();
        let (snapshot, applied) = (self.planner.snapshot().clone(), self.planner.plan().clone());
        let unreachable = Arc::clone(self.planner.unreachable());
        self.shared.change(|view| {
            view.snapshot = snapshot;
            view.plan = applied;
            view.unreachable = unreachable;
            if let Some(table) = table {
                view.table = table;
            }
            view.origin = origin;
            view.context = context;
            if let Some((plane, resolvers)) = status {
                view.plane = plane;
                view.resolvers = resolvers;
                view.plane_read = Some(now);
            }
        });
        self.status_at.get_or_insert_with(Instant::now);
    }

    /// Those that something of this node's is in.
    fn want_overlays(&mut self) {
        let Some(overlays) = &mut self.overlays else { return };
        let plan = self.planner.plan();
        let networks = plan.networks.keys().chain(plan.ingress.as_ref().map(|ingress| &ingress.network));
        let is_overlay = |id: &&NetworkId| self.planner.snapshot().networks.get(*id).is_some_and(|n| n.driver == "overlay");
        overlays.want(networks.filter(is_overlay).cloned().collect(), Instant::now());
    }

    fn is_settled(&self) -> bool {
        self.plane.is_settled() && self.names.as_ref().is_none_or(Names::is_settled)
    }

    fn status(&self, now: Instant) -> (PlaneStatus, Vec<ResolverStatus>) {
        (self.plane.status(now), self.names.as_ref().map(|n| n.status(now)).unwrap_or_default())
    }

    fn identity_after<'n>(&self, nodes: impl Iterator<Item = &'n Node> + Clone) -> Result<NodeId, String> {
        let clues = Clues {
            given: self.settings.node.as_deref(),
            source: self.source_node.as_ref(),
            remembered: self.memory.node.as_ref(),
            hostname: &self.settings.hostname,
        };
        clues.resolve(nodes)
    }

    /// Finds out which node this is in the snapshot that `delta` leads to, before anything of it is planned.
    fn identify(&mut self, delta: Option<&Delta>) {
        let nodes_changed = delta.is_some_and(|d| !d.nodes.is_empty());
        if !nodes_changed && self.identified_with == self.source_node {
            return;
        }
        self.identified_with.clone_from(&self.source_node);
        let mut nodes = self.planner.snapshot().nodes.clone();
        for (id, change) in delta.iter().flat_map(|d| &d.nodes) {
            match change {
                Some(node) => nodes.insert(id.clone(), Arc::clone(node)),
                None => nodes.remove(id),
            };
        }
        let found = self.identity_after(nodes.values().map(AsRef::as_ref).collect::<Vec<_>>().into_iter());
        let nameless = found.as_ref().err().filter(|_| !nodes.is_empty()).cloned();
        let node = found.ok();
        let now = Instant::now();
        let address = node.as_ref().and_then(|id| nodes.get(id)).and_then(|n| n.address);
        self.plane.set_node_address(address, now);
        self.shared.change(|view| view.nameless = nameless);
        if let Some(id) = &self.source_node
            && self.memory.node.as_ref() != Some(id)
        {
            self.memory.node = Some(id.clone());
            self.remember();
        }
        // Nodes that vanish from one reading of the list do not make this one forget who it is.
        if node.is_some() && node != self.planner.context().node {
            if let Some(id) = &node {
                tracing::info!(node = %id, "this node is known");
            }
            let context = NodeContext { node, ..self.planner.context().clone() };
            let plan = self.planner.set_context(context);
            self.carry_out(&plan);
        }
    }

    fn drain(&mut self, draining: bool) {
        if self.planner.context().draining != draining {
            tracing::info!("{}", if draining { "this node drains" } else { "this node takes new connections again" });
        }
        let context = NodeContext { draining, ..self.planner.context().clone() };
        let plan = self.planner.set_context(context);
        self.carry_out(&plan);
        self.publish_now();
        if self.memory.draining != draining {
            self.memory.draining = draining;
            self.remember();
        }
    }

    /// Stored first: what was answered with a yes outlives the agent. Says whether anything is other than before.
    fn change_added(&mut self, change: AddedChange) -> Result<bool, StoreError> {
        let before = &self.planner.context().added;
        let mut added = before.as_ref().clone();
        match change {
            AddedChange::Put(name, parameters) => added.insert(name, parameters),
            AddedChange::Remove(name) => drop(added.remove(&name)),
        }
        if added == **before {
            return Ok(false);
        }
        self.settings.store.save_added(&added)?;
        let plan = self.planner.set_added(Arc::new(added));
        self.carry_out(&plan);
        self.publish_now();
        Ok(true)
    }

    /// The source has not delivered in time: the last good snapshot of an earlier run is better than nothing.
    fn take_stored(&mut self) {
        if self.origin != Origin::None {
            return;
        }
        // What an agent with another source stored may be another swarm's.
        let same_source = self.settings.store.load_memory().is_ok_and(|m| m.source == self.settings.source);
        if !same_source {
            return;
        }
        match self.settings.store.load_snapshot() {
            Ok(Some(snapshot)) => {
                tracing::warn!(
                    version = snapshot.version,
                    "the source does not deliver; using the last good snapshot from the state directory"
                );
                let delta = Delta::between(self.planner.snapshot(), &snapshot);
                self.identify(Some(&delta));
                self.origin = Origin::StateDir;
                self.apply(&delta);
            }
            Ok(None) => {}
            Err(error) => tell(&self.shared, Err(error)),
        }
    }

    fn store_soon(&mut self) {
        if self.store_at.is_none() {
            let now = Instant::now();
            self.store_at = Some(self.stored.map_or(now, |at| (at + STORE_EVERY).max(now)));
        }
    }

    fn store(&mut self) {
        self.store_at = None;
        self.stored = Some(Instant::now());
        // First, so that a snapshot is never there without its source's name.
        self.remember();
        let (store, shared, snapshot) = (self.settings.store.clone(), Arc::clone(&self.shared), self.planner.snapshot().clone());
        let before = self.storing.take();
        self.storing = Some(tokio::spawn(async move {
            if let Some(before) = before {
                // Two writers would rename each other's files.
                let _ = before.await;
            }
            let written = tokio::task::spawn_blocking(move || store.save_snapshot(&snapshot)).await;
            if let Ok(written) = written {
                tell(&shared, written);
            }
        }));
    }

    fn remember(&mut self) {
        if self.remembered.as_ref() != Some(&self.memory) {
            let written = self.settings.store.save_memory(&self.memory);
            self.remembered = written.is_ok().then(|| self.memory.clone());
            tell(&self.shared, written);
        }
    }

    fn say_ready(&mut self) {
        if let Some(is_ready) = self.is_ready.take() {
            self.publish_now();
            // Nobody may be waiting.
            let _ = is_ready.send(());
        }
    }

    /// Makes the status anew where that is due: at once whenever something is pending or has ceased to be.
    fn publish(&mut self) {
        let now = Instant::now();
        let settled = self.is_settled();
        let recent = self.status_read.map(|at| at + STATUS_EVERY).filter(|due| *due > now);
        match recent {
            Some(due) if settled && self.was_settled => {
                if self.status_at.is_some() {
                    self.status_at = Some(due);
                }
            }
            _ => self.publish_now(),
        }
    }

    fn publish_now(&mut self) {
        let now = Instant::now();
        let (plane, resolvers) = self.status(now);
        self.was_settled = self.is_settled();
        self.status_read = Some(now);
        self.status_at = None;
        self.shared.change(|view| {
            view.plane = plane;
            view.resolvers = resolvers;
            view.plane_read = Some(now);
        });
    }
}

/// Puts what became of a write into the status.
fn tell(shared: &Shared, written: Result<(), StoreError>) {
    let problems = match written {
        Ok(()) => Vec::new(),
        Err(error) => {
            tracing::warn!("{error}");
            vec![Problem::new("agent", "state-dir", error.to_string())]
        }
    };
    shared.change(|view| view.own_problems = problems);
}

#[expect(deprecated, reason = "the new constructors are unsafe for types that may close their descriptor early; an OwnedFd does not")]
fn watch(events: Option<BorrowedFd<'_>>, without: &str) -> Option<AsyncFd<OwnedFd>> {
    let events = events?.try_clone_to_owned();
    events.and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE)).inspect_err(|error| tracing::warn!(%error, "{without}")).ok()
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => pending().await,
    }
}

async fn changed(events: Option<&AsyncFd<OwnedFd>>) {
    let Some(events) = events else { return pending().await };
    match events.readable().await {
        Ok(mut guard) => guard.clear_ready(),
        Err(error) => {
            let error: io::Error = error;
            tracing::warn!(%error, "foreign changes are noticed by the audit only");
            pending::<()>().await;
        }
    }
}

/// Resolves when the host's servers have changed, and the first time at once.
async fn next(servers: &mut Option<watch::Receiver<Arc<[IpAddr]>>>) {
    let Some(receiver) = servers else { return pending().await };
    if receiver.changed().await.is_err() {
        // Nobody tells any more; what was told last holds.
        pending::<()>().await;
    }
}

fn is_readable(events: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, 0u8).is_ok_and(|ready| ready > 0)
}
