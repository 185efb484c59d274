//! Labels to routes. Each dialect is a module that reads labels and makes routes, and nothing else.
//!
//! A label that is wrong costs its own route, or nothing; it is told with its name, its value, the reason and a remedy.
//! What a mistake would open stays closed: a route whose protection cannot be understood does not exist.
//! `docs/compatibility.md` has the decisions, row by row.

pub mod flow_proxy;
mod haproxy;
pub mod hrm;
pub mod interlock;
pub mod interlock1;
mod labels;
pub mod swarmesh;

use std::{collections::BTreeMap, ops::Bound};

use swarmesh_model::{NetworkId, Port, Service, Snapshot};

use crate::{
    model::{Action, Dialect, Listener, Match, Origin, Owner, OwnerKind, Policy, Precedence, Route, Share},
    problem::{Effect, Reason, RouteProblem, shown},
};

/// A service or a container, as far as routes care.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    pub owner: Owner,
    pub labels: &'a BTreeMap<String, String>,
    /// A service's ports; a container's published ones, with the container's own as target.
    pub ports: &'a [Port],
    /// Without the ingress network.
    pub networks: Vec<WorkloadNetwork<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub struct WorkloadNetwork<'a> {
    pub id: &'a NetworkId,
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

impl<'a> Workload<'a> {
    /// A service with the networks that the snapshot knows.
    pub fn service(service: &'a Service, snapshot: &'a Snapshot) -> Self {
        let networks = service
            .networks
            .iter()
            .filter_map(|n| snapshot.networks.get(&n.network))
            .filter(|n| !n.ingress)
            .map(|n| WorkloadNetwork { id: &n.id, name: &n.name, labels: &n.labels })
            .collect();
        let owner = Owner { id: service.id.as_str().to_owned(), name: service.name.clone(), kind: OwnerKind::Service };
        Self { owner, labels: &service.labels, ports: &service.ports, networks }
    }

    fn network_names(&self) -> String {
        self.networks.iter().map(|n| n.name).collect::<Vec<_>>().join(", ")
    }

    /// Labels that begin so, in order.
    fn labels_from(&self, prefix: &'static str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.labels
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(label, _)| label.starts_with(prefix))
            .map(|(label, value)| (label.as_str(), value.as_str()))
    }
}

/// What was said beside the labels, in the systems that the labels were for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub interlock: interlock::Settings,
    pub flow_proxy: flow_proxy::Settings,
}

/// What labels came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub routes: Vec<Route>,
    pub problems: Vec<RouteProblem>,
}

/// All routes of one service or container.
pub fn routes(workload: &Workload<'_>, settings: &Settings) -> Outcome {
    let mut outcome = Outcome::default();
    if workload.owner.kind == OwnerKind::Service {
        hrm::read(workload, &mut outcome);
        interlock::read(workload, &settings.interlock, &mut outcome);
        flow_proxy::read(workload, &settings.flow_proxy, &mut outcome);
        swarmesh::read(workload, &mut outcome);
    }
    interlock1::read(workload, &mut outcome);
    outcome
}

/// As many hosts, or paths, as one label may name: hosts times paths is what a service can make everybody's table hold.
const MOST: usize = 100;

/// Makes the routes of one dialect for one owner.
struct Maker<'o> {
    owner: &'o Owner,
    dialect: Dialect,
    out: &'o mut Outcome,
    parts: u16,
}

impl<'o> Maker<'o> {
    fn new(owner: &'o Owner, dialect: Dialect, out: &'o mut Outcome) -> Self {
        Self { owner, dialect, out, parts: 0 }
    }

    fn origin(&mut self, label: &str) -> Origin {
        self.parts = self.parts.saturating_add(1);
        Origin { owner: self.owner.clone(), dialect: self.dialect, label: label.to_owned(), part: self.parts }
    }

    /// A route with nothing special about it; the caller changes what is.
    fn route(&mut self, label: &str, listener: Listener, matching: Match, action: Action) -> Route {
        Route {
            origin: self.origin(label),
            listener,
            matching,
            precedence: Precedence::Specific { priority: 0 },
            share: Share::Alone,
            filters: Vec::new(),
            action,
            certificate: None,
            policy: Policy::default(),
        }
    }

    fn add(&mut self, route: Route) {
        self.out.routes.push(route);
    }

    fn problem(&mut self, label: &str, value: impl Into<String>, reason: Reason, effect: Effect) {
        let (owner, dialect, label) = (self.owner.clone(), self.dialect, label.to_owned());
        self.out.problems.push(RouteProblem { owner, dialect, label, value: shown(value.into()), reason, effect });
    }

    /// No route comes of this label.
    fn refuse(&mut self, label: &str, value: impl Into<String>, reason: Reason) {
        self.problem(label, value, reason, Effect::NoRoute);
    }

    /// The route comes without what this says.
    fn ignore(&mut self, label: &str, value: impl Into<String>, reason: Reason) {
        self.problem(label, value, reason, Effect::Ignored);
    }
}
