//! What the agent knows and has done, as others may see it.
//!
//! The engine writes [`Shared`] change by change; readers take a [`View`], which costs one reference per object under the
//! lock, and do all their work outside of it.

pub mod endpoints;
pub mod explain;
pub mod names;
mod proxy;
pub mod routes;
pub mod services;
pub mod status;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde::{Deserialize, Serialize};
use swarmesh_dataplane::{PlaceState, PlaceStatus, PlaneStatus};
use swarmesh_model::{NetworkId, Node, NodeId, Problem, Service, Snapshot, Task, TaskId};
use swarmesh_plan::{NodeContext, NodePlan, Policy, Takeover};
use swarmesh_source::SourceState;

use self::routes::Compiled;
use crate::{
    ResolverStatus,
    config::{Listeners, PlaneChoice},
};

/// Where the snapshot in force came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// There is none yet.
    #[default]
    None,
    Source,
    /// The last good one of an earlier run; the source has not delivered since.
    StateDir,
    /// `swarmesh plan --from`.
    File,
}

/// Everything at one moment, as applied.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub snapshot: Snapshot,
    pub plan: NodePlan,
    /// Addresses of tasks that no overlay leads to from this node.
    pub unreachable: Arc<BTreeSet<(NetworkId, IpAddr)>>,
    pub context: NodeContext,
    pub origin: Origin,
    pub source: Option<SourceState>,
    pub plane: PlaneStatus,
    /// The planes that do not run, and why.
    pub other_planes: Vec<(PlaneChoice, String)>,
    /// One per container of this node that asks for names; none with `--dns off`.
    pub resolvers: Vec<ResolverStatus>,
    /// Of the host, for containers without servers of their own.
    pub host_servers: Arc<[IpAddr]>,
    /// What the resolver counts; `None` with `--dns off`.
    pub dns: Option<Arc<swarmesh_dns::Shared>>,
    /// Where requests come in.
    pub listeners: Listeners,
    /// What the proxy serves and counts; `None` if it listens nowhere.
    pub proxy: Option<Arc<swarmesh_proxy::Shared>>,
    /// The plan's routes as a table, once somebody has asked for it; with other routes comes another cell.
    pub table: Arc<OnceLock<Compiled>>,
    /// When `plane` was read.
    pub plane_read: Option<Instant>,
    /// Why it is not known which node this is, when the snapshot has nodes to choose from.
    pub nameless: Option<String>,
    /// It ends, so nobody new should be sent to what it listens on itself.
    pub stopping: bool,
    /// What is wrong with the agent itself, such as a state directory that cannot be written.
    pub own_problems: Vec<Problem>,
}

/// Written by the engine, read by the admin API.
#[derive(Debug)]
pub struct Shared {
    view: Mutex<View>,
    /// From the receipt of an update to the end of its last commit.
    pub apply_seconds: Histogram,
    pub started: Instant,
}

impl Default for Shared {
    fn default() -> Self {
        // 100 µs to 26 s in steps of two.
        let apply_seconds = Histogram::new(exponential_buckets(0.0001, 2.0, 19));
        Self { view: Mutex::default(), apply_seconds, started: Instant::now() }
    }
}

impl Shared {
    /// O(objects), all of it references.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.lock());
    }

    /// Looks at a part without copying the whole.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.lock())
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        // Nobody panics while holding it, and if somebody did, a half-told view beats none.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    pub fn this_node(&self) -> Option<&Node> {
        self.context.node.as_ref().and_then(|id| self.snapshot.nodes.get(id)).map(AsRef::as_ref)
    }

    /// In one of its networks, from this node, that is.
    pub fn is_out_of_reach(&self, task: &Task) -> bool {
        let is_here = self.context.node.is_some() && task.node == self.context.node;
        !self.unreachable.is_empty()
            && !is_here
            && task.addresses.iter().any(|a| self.unreachable.contains(&(a.network.clone(), a.address)))
    }

    /// How a person calls a node.
    pub fn node_name(&self, id: &NodeId) -> String {
        match self.snapshot.nodes.get(id) {
            Some(node) if !node.hostname.is_empty() => node.hostname.clone(),
            _ => id.short().to_owned(),
        }
    }

    pub fn task_name(&self, id: &TaskId) -> String {
        self.snapshot.tasks.get(id).map_or_else(|| id.short().to_owned(), |t| t.name.to_string())
    }

    pub fn task_node(&self, id: &TaskId) -> String {
        let node = self.snapshot.tasks.get(id).and_then(|t| t.node.as_ref());
        node.map(|n| self.node_name(n)).unwrap_or_default()
    }

    pub fn pending_places(&self) -> impl Iterator<Item = &PlaceStatus> {
        self.plane.places.iter().filter(|p| p.state == PlaceState::Pending)
    }

    /// The pending one of the places that every published port depends on.
    pub fn pending_entry(&self) -> Option<&PlaceStatus> {
        self.pending_places().find(|p| p.place == "node" || p.place == "ingress")
    }

    pub fn problems(&self) -> Vec<Problem> {
        let source = self.source.iter().flat_map(|s| s.problems.iter());
        let mut all: Vec<Problem> =
            self.plan.problems.iter().chain(source).chain(&self.plane.problems).chain(&self.own_problems).cloned().collect();
        all.extend(self.route_problems());
        if let Some(proxy) = &self.proxy {
            all.extend(proxy::problems(proxy, SystemTime::now()));
        }
        all.sort();
        all.dedup();
        all
    }

    pub fn problems_of(&self, service: &Service) -> Vec<Problem> {
        let object = format!("service {}", service.name);
        self.problems().into_iter().filter(|p| p.object == object).collect()
    }
}

/// Why a service is left to Docker, or `None` when it is ours.
pub(crate) fn left_alone(service: &Service, takeover: Takeover) -> Option<String> {
    let (policy, wrong) = Policy::from_labels(&service.labels);
    if wrong.iter().any(|(label, _)| label == "swarmesh.enable") {
        return Some("its label swarmesh.enable has a bad value, so it is left to Docker".to_owned());
    }
    match (takeover, policy.enable) {
        (_, Some(false)) => Some("its label swarmesh.enable=false leaves it to Docker".to_owned()),
        (Takeover::Labelled, None) => Some("--takeover labelled leaves it to Docker; label it swarmesh.enable=true".to_owned()),
        (Takeover::On, None) | (_, Some(true)) => None,
    }
}

/// `10.0.0.2:80`, `[fd00::2]:80`.
pub(crate) fn socket(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// The policy in the words of its labels; only what differs from the defaults, and the scheduler always.
pub(crate) fn policy_words(policy: &Policy) -> String {
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = vec![word(serde_json::json!(policy.scheduler))];
    if let Some(time) = policy.affinity {
        words.push(format!("affinity=client-ip:{}", time.as_secs()));
    }
    let defaults = Policy::default();
    if policy.source != defaults.source {
        words.push(format!("source={}", word(serde_json::json!(policy.source))));
    }
    if !policy.bind.is_empty() {
        words.push(format!("bind={}", policy.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")));
    }
    if policy.drain != defaults.drain {
        words.push(format!("drain={}s", policy.drain.as_secs()));
    }
    words.join(" ")
}
