//! `/v1/routes`: every route in the order in which they are asked, whose it is and where it leads.

pub(crate) mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use swarmesh_model::{NetworkId, Problem, Protocol};
use swarmesh_plan::NodePlan;
use swarmesh_proxy::metrics::RouteCounts;
use swarmesh_router::{
    Route, RouteProblem, Table,
    model::{BackendSet, Dialect, Member, Origin, Tasks, Upstream},
};

use super::View;

/// All routes put together, and what some cannot have since others have it.
#[derive(Debug)]
pub struct Compiled {
    pub table: Arc<Table>,
    pub problems: Arc<[RouteProblem]>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteRow {
    /// `service web`
    pub owner: String,
    /// `hrm`, `interlock`, `flow_proxy`, `interlock1` or `swarmesh`.
    pub dialect: String,
    /// The label that asked for it.
    pub label: String,
    /// `http`, `https`, `any`, `tls` or `tcp`.
    pub listener: String,
    /// Empty: every host.
    pub hosts: Vec<String>,
    /// Empty: every path.
    pub paths: Vec<String>,
    pub conditions: Vec<String>,
    pub filters: Vec<String>,
    /// What clients are shown that come by TLS.
    pub certificate: Option<String>,
    /// Where it leads, or what it answers by itself.
    pub to: String,
    /// A redirect or a status: nobody else is asked.
    pub answers_itself: bool,
    /// Where requests can go now.
    pub backends: Vec<RouteBackend>,
    /// Tasks that requests can reach now, those behind a VIP too.
    pub usable: usize,
    /// Why requests that come to this node would not get there.
    pub missing: Vec<String>,
    /// What this node has done for it; `None` where no requests are taken.
    pub served: Option<Served>,
}

/// What a route has been asked for since it is there, on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub requests: u64,
    /// Answers from 500 on.
    pub failed: u64,
    pub in_flight: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteBackend {
    /// `task`, `vip`, `published` or `host`.
    pub kind: String,
    /// The task, service or container, or the other host.
    pub name: String,
    pub address: Option<IpAddr>,
    pub port: u16,
    /// How many turns it has among the others.
    pub weight: u16,
    /// Where the task runs.
    pub node: String,
}

pub fn routes(view: &View) -> Vec<RouteRow> {
    let routing = view.proxy.as_ref().map(|proxy| proxy.routing());
    let lanes = routing.iter().flat_map(|routing| routing.lanes());
    let counts: HashMap<&Origin, &RouteCounts> = lanes.map(|lane| (&lane.route.origin, &*lane.counts)).collect();
    let served = |route: &Route| {
        let counts = counts.get(&route.origin)?;
        Some(Served { requests: counts.requests(), failed: counts.answers(5), in_flight: counts.in_flight() })
    };
    view.compiled().table.routes().iter().map(|route| RouteRow { served: served(route), ..row(view, route) }).collect()
}

/// How many routes each dialect makes.
pub(crate) fn by_dialect(plan: &NodePlan) -> BTreeMap<Dialect, usize> {
    let mut counts: BTreeMap<Dialect, usize> = DIALECTS.into_iter().map(|dialect| (dialect, 0)).collect();
    for route in plan.routes.routes() {
        *counts.entry(route.origin.dialect).or_default() += 1;
    }
    counts
}

const DIALECTS: [Dialect; 5] = [Dialect::Hrm, Dialect::Interlock, Dialect::FlowProxy, Dialect::Interlock1, Dialect::Swarmesh];

/// As in JSON: `flow_proxy`.
pub(crate) fn dialect_name(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Hrm => "hrm",
        Dialect::Interlock => "interlock",
        Dialect::FlowProxy => "flow_proxy",
        Dialect::Interlock1 => "interlock1",
        Dialect::Swarmesh => "swarmesh",
    }
}

fn row(view: &View, route: &Route) -> RouteRow {
    let members = route.backends().map(|set| set.members.as_slice()).unwrap_or_default();
    let places: Vec<(Vec<RouteBackend>, usize)> = members.iter().map(|member| places(view, member)).collect();
    RouteRow {
        owner: route.origin.owner.to_string(),
        dialect: dialect_name(route.origin.dialect).to_owned(),
        label: route.origin.label.clone(),
        listener: words::listener(route.listener).to_owned(),
        hosts: route.matching.hosts.iter().map(words::host).collect(),
        paths: route.matching.paths.iter().map(words::path).collect(),
        conditions: words::conditions(&route.matching),
        filters: route.filters.iter().map(words::filter).collect(),
        certificate: route.certificate.as_ref().map(|c| format!("{c:?}")),
        answers_itself: route.backends().is_none(),
        to: words::action(view, &route.action),
        usable: places.iter().map(|(_, usable)| usable).sum(),
        backends: places.into_iter().flat_map(|(backends, _)| backends).collect(),
        missing: missing(view, route),
        served: None,
    }
}

/// Where a member of a set can be reached now, and how many tasks that makes.
pub(crate) fn places(view: &View, member: &Member) -> (Vec<RouteBackend>, usize) {
    let mut usable = 0;
    let upstreams = BackendSet::of(member.clone()).upstreams(&view.plan.routes);
    let backends = upstreams.into_iter().map(|weighted| {
        let (kind, name, address, port, node) = match weighted.upstream {
            Upstream::Task { task, address, port } => {
                usable += 1;
                ("task", view.task_name(&task), Some(address), port, view.task_node(&task))
            }
            Upstream::Vip { service, address, port } => {
                let network = view.plan.routes.network_of(&member.target);
                usable += view.plan.routes.usable(&service, network).len();
                ("vip", words::service_name(view, &service), Some(address), port, String::new())
            }
            Upstream::Published { container, address, port } => {
                usable += 1;
                ("published", view.task_name(&container.as_str().into()), Some(address), port, String::new())
            }
            Upstream::Host { name, port } => ("host", name, None, port, String::new()),
        };
        RouteBackend { kind: kind.to_owned(), name, address, port, weight: weighted.weight, node }
    });
    (backends.collect(), usable)
}

/// What keeps a route's requests from arriving.
pub(crate) fn missing(view: &View, route: &Route) -> Vec<String> {
    let mut missing = Vec::new();
    let plan = &view.plan.routes;
    for network in plan.networks_of(route).filter(|n| !plan.footholds.contains_key(*n)) {
        missing.push(no_foothold(view, network));
    }
    if let Some(set) = route.backends() {
        let members = || set.members.iter().filter(|m| m.weight > 0);
        if members().next().is_none() {
            missing.push("every backend has weight 0".to_owned());
        } else if set.upstreams(plan).is_empty() {
            let names: BTreeSet<String> = members().map(|m| words::target(view, &m.target)).collect();
            missing.push(format!("no usable task of {}", names.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    missing
}

fn no_foothold(view: &View, network: &NetworkId) -> String {
    format!(
        "this node has no task in network {}, so it cannot send requests there; run one here (a global service does), or let requests come \
         in by a node that has one",
        words::network_name(view, network)
    )
}

impl View {
    /// All routes as one table: the proxy's, or else put together when it is first asked for. O(routes).
    pub fn compiled(&self) -> &Compiled {
        self.table.get_or_init(|| {
            let (table, problems) = Table::new(self.plan.routes.routes().map(Arc::clone));
            Compiled { table: Arc::new(table), problems: problems.into() }
        })
    }

    /// What is wrong with routes beyond the labels themselves, which the plan tells: what others have claimed, and, on a node
    /// that takes requests, networks that are out of its reach.
    pub(super) fn route_problems(&self) -> impl Iterator<Item = Problem> {
        let mut unreached = BTreeMap::new();
        if !self.listeners.is_empty() {
            for (origin, network) in self.plan.routes.without_foothold() {
                unreached.entry((&origin.owner, network)).or_insert(&origin.label);
            }
        }
        let unreached = unreached
            .into_iter()
            .map(|((owner, network), label)| Problem::new(owner.to_string(), label.clone(), no_foothold(self, network)));
        let covered = self.covered_listeners().map(|(address, service)| {
            let message = format!(
                "port {} is published by service {service}, so connections go there and not to the router: publish the service on \
                 another port, or listen on one",
                address.port()
            );
            Problem::new("router", format!("listener {address}"), message)
        });
        let routes = self.compiled().problems.iter().map(RouteProblem::problem);
        routes.chain(unreached.collect::<Vec<_>>()).chain(covered.collect::<Vec<_>>())
    }

    /// Listeners of the router that a published port stands before: it is translated before anybody local is asked.
    fn covered_listeners(&self) -> impl Iterator<Item = (SocketAddr, &str)> {
        let all = self.listeners.http.iter().chain(&self.listeners.https);
        all.filter_map(|address| {
            let published = self.plan.published.get(&(Protocol::Tcp, address.port()))?;
            let bind = &published.policy.bind;
            let meets = bind.is_empty() || address.ip().is_unspecified() || bind.iter().any(|net| net.contains(&address.ip()));
            meets.then_some((*address, published.name.as_str()))
        })
    }

    /// The plan, with all that is wrong with its routes.
    pub fn told_plan(&self) -> NodePlan {
        let mut plan = self.plan.clone();
        plan.problems.extend(self.route_problems());
        plan
    }
}
