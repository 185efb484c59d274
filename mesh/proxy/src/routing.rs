//! What all workers see of routes: the table, and for each route what is kept of it.
//!
//! One thread writes, by [`Switchboard`]; workers read a whole [`Routing`] at a time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use swarmesh_model::NetworkId;
use swarmesh_router::{
    Route, RouteProblem, Table,
    model::{
        BackendProtocol, BackendSet, BackendTls, Filter, HeaderChange, HeaderChangeKind, Listener, Origin, Piece, Target, Tasks, Upstream,
        Variable,
    },
};

use crate::{
    Config,
    auth::{Gate, Users},
    endpoint::{Endpoint, Foothold},
    live_set::{LiveSet, WeightedEndpoint},
    metrics::{Group, GroupCounts, RouteCounts},
};

/// Everything that a request is decided by.
#[derive(Debug, Default)]
pub struct Routing {
    pub table: Arc<Table>,
    /// In the table's order.
    lanes: Vec<Arc<Lane>>,
    groups: Vec<(Group, Arc<GroupCounts>)>,
    /// What routes could not have since others have it.
    pub claims: Arc<[RouteProblem]>,
}

/// A route with what outlives changes of other routes.
#[derive(Debug)]
pub struct Lane {
    pub route: Arc<Route>,
    /// For routes that forward.
    pub live: Option<LiveSet>,
    pub counts: Arc<RouteCounts>,
    /// What is done to answers depends on the request's headers: they must be kept.
    pub(crate) answers_ask_headers: bool,
    /// For each filter that asks for a user, in their order.
    pub(crate) gates: Vec<Arc<Gate>>,
}

impl Routing {
    pub fn lane(&self, position: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(position)
    }

    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// What is counted for those who read metrics.
    pub fn groups(&self) -> &[(Group, Arc<GroupCounts>)] {
        &self.groups
    }

    /// How many places each group's requests can be sent to, and how many of them have failed and are out for a while.
    pub fn endpoints(&self, now: Instant) -> BTreeMap<Group, (usize, usize)> {
        let mut found: BTreeMap<Group, HashMap<u64, bool>> = BTreeMap::new();
        for lane in &self.lanes {
            let Some(live) = &lane.live else { continue };
            let endpoints = found.entry(Group::of(&lane.route.origin, lane.route.listener)).or_default();
            endpoints.extend(live.endpoints().iter().map(|e| (e.endpoint.id, e.endpoint.health.is_out(now))));
        }
        found.into_iter().map(|(group, ids)| (group, (ids.len(), ids.values().filter(|out| **out).count()))).collect()
    }
}

/// Keeps endpoints, live sets and footholds from one routing to the next.
#[derive(Debug)]
pub struct Switchboard {
    secrets_dir: PathBuf,
    node_users: Users,
    endpoints: HashMap<Place, Arc<Endpoint>>,
    footholds: BTreeMap<NetworkId, Arc<Foothold>>,
    lanes: HashMap<Origin, Arc<Lane>>,
    /// A route that is asked by another door counts anew: it is of another group.
    counts: HashMap<(Origin, Listener), Arc<RouteCounts>>,
    groups: BTreeMap<Group, Arc<GroupCounts>>,
    last_id: u64,
}

/// What makes two upstreams one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    upstream: Upstream,
    network: Option<NetworkId>,
    protocol: BackendProtocol,
    tls: Option<BackendTls>,
}

impl Switchboard {
    /// Reads the node's users.
    pub fn new(config: &Config) -> Self {
        Self {
            secrets_dir: config.secrets_dir.clone(),
            node_users: config.node_users(),
            endpoints: HashMap::new(),
            footholds: BTreeMap::new(),
            lanes: HashMap::new(),
            counts: HashMap::new(),
            groups: BTreeMap::new(),
            last_id: 0,
        }
    }

    /// Makes a routing of these routes. Lanes of routes that stay as they were stay, too.
    pub fn route(&mut self, routes: impl IntoIterator<Item = Arc<Route>>, tasks: &impl Tasks) -> (Routing, Vec<RouteProblem>) {
        let (table, problems) = Table::new(routes);
        let lanes: Vec<Arc<Lane>> = table.routes().iter().map(|route| self.lane(route, tasks)).collect();
        self.lanes = lanes.iter().map(|lane| (lane.route.origin.clone(), Arc::clone(lane))).collect();
        self.counts.retain(|(origin, door), _| self.lanes.get(origin).is_some_and(|lane| lane.route.listener == *door));
        self.retire_unused();
        let groups = self.regroup(&lanes);
        let claims = problems.as_slice().into();
        (Routing { table: Arc::new(table), lanes, groups, claims }, problems)
    }

    /// A group stays while it has a route.
    fn regroup(&mut self, lanes: &[Arc<Lane>]) -> Vec<(Group, Arc<GroupCounts>)> {
        let mut before = std::mem::take(&mut self.groups);
        for lane in lanes {
            let group = Group::of(&lane.route.origin, lane.route.listener);
            let kept = before.remove(&group);
            self.groups.entry(group).or_insert_with(|| kept.unwrap_or_default()).join(&lane.counts);
        }
        self.groups.iter().map(|(group, counts)| (group.clone(), Arc::clone(counts))).collect()
    }

    /// Brings the endpoints of routes to these services, by id, up to date. Routings that are in use see it at once.
    pub fn refresh(&mut self, owners: &HashSet<&str>, tasks: &impl Tasks) {
        let concerned: Vec<Arc<Lane>> = self.lanes.values().filter(|lane| names_one_of(lane, owners)).cloned().collect();
        for lane in &concerned {
            if let (Some(live), Some(set)) = (&lane.live, lane.route.backends()) {
                live.update(self.endpoints_of(set, tasks));
            }
        }
        if !concerned.is_empty() {
            self.retire_unused();
        }
    }

    /// Says from which namespace a network is reached; `None` if from none.
    pub fn set_foothold(&mut self, network: &NetworkId, sandbox: Option<PathBuf>) {
        self.foothold(network).sandbox.store(sandbox.map(Arc::new));
    }

    fn foothold(&mut self, network: &NetworkId) -> &Arc<Foothold> {
        self.footholds.entry(network.clone()).or_default()
    }

    fn lane(&mut self, route: &Arc<Route>, tasks: &impl Tasks) -> Arc<Lane> {
        let kept = self.lanes.get(&route.origin).filter(|lane| Arc::ptr_eq(&lane.route, route) || lane.route == *route).cloned();
        if let Some(lane) = kept {
            return lane;
        }
        let live = route.backends().map(|set| {
            let endpoints = self.endpoints_of(set, tasks);
            LiveSet::new(set.balance, set.stickiness.clone(), endpoints)
        });
        let counts = Arc::clone(self.counts.entry((route.origin.clone(), route.listener)).or_default());
        let lists = route.filters.iter().filter_map(|filter| if let Filter::BasicAuth(auth) = filter { Some(auth) } else { None });
        let gates = lists.map(|auth| Gate::new(auth, &self.secrets_dir, &self.node_users)).collect();
        Arc::new(Lane { route: Arc::clone(route), live, counts, answers_ask_headers: answers_ask_headers(route), gates })
    }

    fn endpoints_of(&mut self, set: &BackendSet, tasks: &impl Tasks) -> Vec<WeightedEndpoint> {
        let mut out = Vec::new();
        for found in set.upstreams(tasks) {
            let Some(member) = set.members.get(found.member) else { continue };
            let place = Place { upstream: found.upstream, network: found.network, protocol: member.protocol, tls: member.tls.clone() };
            out.push(WeightedEndpoint { endpoint: self.endpoint(place), weight: found.weight });
        }
        out
    }

    fn endpoint(&mut self, place: Place) -> Arc<Endpoint> {
        if let Some(endpoint) = self.endpoints.get(&place) {
            return Arc::clone(endpoint);
        }
        self.last_id += 1;
        let foothold = place.network.as_ref().map(|network| Arc::clone(self.foothold(network)));
        let endpoint = Arc::new(Endpoint::new(self.last_id, place.upstream.clone(), place.protocol, place.tls.clone(), foothold));
        self.endpoints.insert(place, Arc::clone(&endpoint));
        endpoint
    }

    /// Endpoints that no live set has any more take nothing new.
    fn retire_unused(&mut self) {
        let used: HashSet<u64> = self
            .lanes
            .values()
            .filter_map(|lane| lane.live.as_ref())
            .flat_map(|live| live.endpoints().iter().map(|e| e.endpoint.id).collect::<Vec<_>>())
            .collect();
        self.endpoints.retain(|_, endpoint| {
            let stays = used.contains(&endpoint.id);
            if !stays {
                endpoint.retire();
            }
            stays
        });
    }
}

fn answers_ask_headers(route: &Route) -> bool {
    let asks = |piece: &Piece| matches!(piece, Piece::Variable(Variable::Header(_)));
    route.filters.iter().any(|filter| match filter {
        Filter::Response(HeaderChange { change: HeaderChangeKind::Add(template) | HeaderChangeKind::Set(template), .. }) => {
            template.0.iter().any(asks)
        }
        _ => false,
    })
}

fn names_one_of(lane: &Lane, owners: &HashSet<&str>) -> bool {
    let members = lane.route.backends().map_or(&[][..], |set| &set.members);
    members.iter().any(|member| match &member.target {
        Target::Service { id, .. } | Target::Container { id, .. } | Target::Published { container: id } => owners.contains(id.as_str()),
        Target::Host { .. } => false,
    })
}
