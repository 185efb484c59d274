//! What all workers see of routes: the table, and for each route what is kept of it.
//!
//! One thread writes, by [`Switchboard`]; workers read a whole [`Routing`] at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use swarmesh_model::{NetworkId, SharedMap};
use swarmesh_router::{
    Route, RouteProblem, Table,
    model::{
        BackendProtocol, BackendSet, BackendTls, Filter, HeaderChange, HeaderChangeKind, Listener, Origin, Piece, Target, Tasks, Upstream,
        Variable,
    },
    table::{Book, Slots},
};

use crate::{
    Config,
    auth::{Gate, NodeUsers, UserFault},
    endpoint::{Endpoint, Foothold},
    live_set::{LiveSet, WeightedEndpoint},
    metrics::{Group, GroupCounts, RouteCounts},
};

/// Everything that a request is decided by.
#[derive(Debug, Default)]
pub struct Routing {
    pub table: Arc<Table>,
    /// By their positions in the table.
    lanes: Slots<Arc<Lane>>,
    /// Those whose backends are connected to in the background.
    checked: SharedMap<usize, Arc<Lane>>,
    /// Those with gates whose files may change.
    gated: SharedMap<usize, Arc<Lane>>,
    groups: SharedMap<Group, Arc<GroupCounts>>,
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

impl Lane {
    /// Who is to get in, and does not.
    pub fn user_faults(&self) -> impl Iterator<Item = UserFault> {
        self.gates.iter().flat_map(|gate| gate.faults())
    }
}

impl Routing {
    pub fn lane(&self, position: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(position)
    }

    /// All of them, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.values()
    }

    /// Lanes of routes that ask for it that their backends are connected to in the background.
    pub(crate) fn checked(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.checked.values()
    }

    /// Gates of routes whose users are in files.
    pub(crate) fn gates_with_files(&self) -> impl Iterator<Item = &Arc<Gate>> {
        self.gated.values().flat_map(|lane| &lane.gates).filter(|gate| gate.has_file())
    }

    /// What is counted for those who read metrics.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, &Arc<GroupCounts>)> {
        self.groups.iter()
    }

    /// How many places each group's requests can be sent to, and how many of them have failed and are out for a while.
    pub fn endpoints(&self, now: Instant) -> BTreeMap<Group, (usize, usize)> {
        let mut found: BTreeMap<Group, HashMap<u64, bool>> = BTreeMap::new();
        for lane in self.lanes() {
            let Some(live) = &lane.live else { continue };
            let endpoints = found.entry(Group::of(&lane.route.origin, lane.route.listener)).or_default();
            endpoints.extend(live.endpoints().iter().map(|e| (e.endpoint.id, e.endpoint.health.is_out(now))));
        }
        found.into_iter().map(|(group, ids)| (group, (ids.len(), ids.values().filter(|out| **out).count()))).collect()
    }
}

/// Makes one routing after the other. A change of a few owners' routes costs what these are, however many routes there are: what is
/// kept of a route is found by its position, its origin and the services that it names, and endpoints are counted by use.
///
/// `K` is who has routes; `()` if all are given at once.
#[derive(Debug)]
pub struct Switchboard<K = ()> {
    secrets_dir: PathBuf,
    node_users: Option<NodeUsers>,
    book: Book<K>,
    lanes: Slots<Arc<Lane>>,
    checked: SharedMap<usize, Arc<Lane>>,
    gated: SharedMap<usize, Arc<Lane>>,
    claims: Arc<[RouteProblem]>,
    endpoints: HashMap<Place, Arc<Endpoint>>,
    /// By endpoint, where it is, and how many times live sets have it.
    used: HashMap<u64, (Place, usize)>,
    footholds: BTreeMap<NetworkId, Arc<Foothold>>,
    /// By service or container, the positions of routes that lead to it.
    named: HashMap<Box<str>, BTreeSet<usize>>,
    /// A route that is asked by another door counts anew: it is of another group.
    counts: HashMap<(Origin, Listener), (Arc<RouteCounts>, usize)>,
    groups: SharedMap<Group, Arc<GroupCounts>>,
    /// How many routes each group has. It stays while it has one.
    members: HashMap<Group, usize>,
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
    pub fn new(config: &Config) -> Self {
        Self::by_owner(config)
    }

    /// Makes a routing of these routes. Lanes of routes that stay as they were stay, too.
    pub fn route(&mut self, routes: impl IntoIterator<Item = Arc<Route>>, tasks: &impl Tasks) -> (Routing, Vec<RouteProblem>) {
        let routing = self.change([((), routes.into_iter().collect())], tasks);
        let claims = routing.claims.to_vec();
        (routing, claims)
    }
}

impl<K: Eq + Hash> Switchboard<K> {
    pub fn by_owner(config: &Config) -> Self {
        Self {
            secrets_dir: config.secrets_dir.clone(),
            node_users: config.users.clone(),
            book: Book::default(),
            lanes: Slots::default(),
            checked: SharedMap::default(),
            gated: SharedMap::default(),
            claims: Arc::default(),
            endpoints: HashMap::new(),
            used: HashMap::new(),
            footholds: BTreeMap::new(),
            named: HashMap::new(),
            counts: HashMap::new(),
            groups: SharedMap::default(),
            members: HashMap::new(),
            last_id: 0,
        }
    }

    /// Makes a routing in which all routes of these owners are others. None at all is an owner that is gone. Lanes of routes that
    /// stay as they were stay, too.
    pub fn change(&mut self, owners: impl IntoIterator<Item = (K, Vec<Arc<Route>>)>, tasks: &impl Tasks) -> Routing {
        let change = self.book.change(owners);
        // All that comes before anything goes: what one has left and the other has now is kept.
        let mut left = Vec::new();
        for position in change.positions {
            let route = self.book.table().at(position).cloned();
            let new = route.map(|route| self.lane(&route, tasks));
            if let Some(lane) = &new {
                self.take_up(lane);
            }
            if let Some(old) = self.lanes.get(position).cloned() {
                self.name(position, &old, false);
                left.push(old);
            }
            keep(&mut self.checked, position, new.as_ref().filter(|lane| lane.route.policy.check_connect));
            keep(&mut self.gated, position, new.as_ref().filter(|lane| lane.gates.iter().any(|gate| gate.has_file())));
            if let Some(lane) = &new {
                self.name(position, lane, true);
            }
            self.lanes.set(position, new);
        }
        for lane in left {
            self.put_down(&lane);
        }
        if change.problems {
            self.claims = self.book.problems().into();
        }
        Routing {
            table: Arc::new(self.book.table().clone()),
            lanes: self.lanes.clone(),
            checked: self.checked.clone(),
            gated: self.gated.clone(),
            groups: self.groups.clone(),
            claims: Arc::clone(&self.claims),
        }
    }

    /// Brings the endpoints of routes to these services, by id, up to date. Routings that are in use see it at once.
    pub fn refresh(&mut self, owners: &HashSet<&str>, tasks: &impl Tasks) {
        let positions: BTreeSet<usize> = owners.iter().filter_map(|owner| self.named.get(*owner)).flatten().copied().collect();
        for lane in positions.into_iter().filter_map(|position| self.lanes.get(position).cloned()).collect::<Vec<_>>() {
            if let (Some(live), Some(set)) = (&lane.live, lane.route.backends()) {
                let before = live.endpoints();
                let endpoints = self.endpoints_of(set, tasks);
                live.update(endpoints);
                self.use_endpoints(&live.endpoints());
                self.leave_endpoints(&before);
            }
        }
    }

    /// Says from which namespace a network is reached; `None` if from none.
    pub fn set_foothold(&mut self, network: &NetworkId, sandbox: Option<PathBuf>) {
        self.foothold(network).set(sandbox);
    }

    fn foothold(&mut self, network: &NetworkId) -> &Arc<Foothold> {
        self.footholds.entry(network.clone()).or_default()
    }

    fn lane(&mut self, route: &Arc<Route>, tasks: &impl Tasks) -> Arc<Lane> {
        let live = route.backends().map(|set| {
            let endpoints = self.endpoints_of(set, tasks);
            LiveSet::new(set.balance, set.stickiness.clone(), endpoints)
        });
        let (counts, _) = self.counts.entry((route.origin.clone(), route.listener)).or_default();
        let counts = Arc::clone(counts);
        let lists = route.filters.iter().filter_map(|filter| if let Filter::BasicAuth(auth) = filter { Some(auth) } else { None });
        let gates = lists.map(|auth| Gate::new(auth, &self.secrets_dir, self.node_users.as_ref())).collect();
        Arc::new(Lane { route: Arc::clone(route), live, counts, answers_ask_headers: answers_ask_headers(route), gates })
    }

    /// Notes what a lane that comes has.
    fn take_up(&mut self, lane: &Lane) {
        let (origin, listener) = (&lane.route.origin, lane.route.listener);
        if let Some((_, uses)) = self.counts.get_mut(&(origin.clone(), listener)) {
            *uses += 1;
        }
        let group = Group::of(origin, listener);
        *self.members.entry(group.clone()).or_default() += 1;
        match self.groups.get(&group) {
            Some(counts) => counts.join(&lane.counts),
            None => {
                let counts = Arc::<GroupCounts>::default();
                counts.join(&lane.counts);
                self.groups.insert(group, counts);
            }
        }
        if let Some(live) = &lane.live {
            self.use_endpoints(&live.endpoints());
        }
    }

    /// A lane went: what only it had goes, too.
    fn put_down(&mut self, lane: &Lane) {
        let (origin, listener) = (&lane.route.origin, lane.route.listener);
        if let Entry::Occupied(mut counts) = self.counts.entry((origin.clone(), listener)) {
            counts.get_mut().1 -= 1;
            if counts.get().1 == 0 {
                counts.remove();
            }
        }
        if let Entry::Occupied(mut members) = self.members.entry(Group::of(origin, listener)) {
            *members.get_mut() -= 1;
            if *members.get() == 0 {
                let (group, _) = members.remove_entry();
                self.groups.remove(&group);
            }
        }
        if let Some(live) = &lane.live {
            self.leave_endpoints(&live.endpoints());
        }
    }

    fn name(&mut self, position: usize, lane: &Lane, leads: bool) {
        let members = lane.route.backends().map_or(&[][..], |set| &set.members);
        for member in members {
            let (Target::Service { id, .. } | Target::Container { id, .. } | Target::Published { container: id }) = &member.target else {
                continue;
            };
            if leads {
                match self.named.get_mut(id.as_str()) {
                    Some(positions) => drop(positions.insert(position)),
                    None => drop(self.named.insert(id.as_str().into(), BTreeSet::from([position]))),
                }
            } else if let Some(positions) = self.named.get_mut(id.as_str()) {
                positions.remove(&position);
                if positions.is_empty() {
                    self.named.remove(id.as_str());
                }
            }
        }
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
        self.used.insert(endpoint.id, (place.clone(), 0));
        self.endpoints.insert(place, Arc::clone(&endpoint));
        endpoint
    }

    fn use_endpoints(&mut self, endpoints: &[WeightedEndpoint]) {
        for used in endpoints {
            if let Some((_, uses)) = self.used.get_mut(&used.endpoint.id) {
                *uses += 1;
            }
        }
    }

    /// Endpoints that no live set has any more take nothing new.
    fn leave_endpoints(&mut self, endpoints: &[WeightedEndpoint]) {
        for left in endpoints {
            let Entry::Occupied(mut used) = self.used.entry(left.endpoint.id) else { continue };
            used.get_mut().1 -= 1;
            if used.get().1 == 0 {
                let (place, _) = used.remove();
                self.endpoints.remove(&place);
                left.endpoint.retire();
            }
        }
    }
}

fn keep(lanes: &mut SharedMap<usize, Arc<Lane>>, position: usize, lane: Option<&Arc<Lane>>) {
    match lane {
        Some(lane) => lanes.insert(position, Arc::clone(lane)),
        None => lanes.remove(&position),
    };
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
