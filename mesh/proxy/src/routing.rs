//! What all workers see of routes: the table, and for each route what is kept of it.
//!
//! One thread writes, by [`Switchboard`]; workers read a whole [`Routing`] at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use swarmesh_model::{NetworkId, SharedMap};
use swarmesh_router::{
    Route, RouteProblem, Table,
    model::{
        BackendProtocol, BackendSet, BackendTls, Filter, HeaderChange, HeaderChangeKind, Listener, Origin, Piece, Policy, Target, Tasks,
        Upstream, Variable,
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
    /// Backends that are connected to in the background, by id.
    checked: Arc<ArcSwap<SharedMap<u64, Arc<Endpoint>>>>,
    /// Those with gates whose files may change.
    gated: SharedMap<usize, Arc<Lane>>,
    groups: SharedMap<Group, Arc<GroupCounts>>,
    /// What routes could not have since others have it.
    pub claims: Arc<[RouteProblem]>,
    /// Endpoints that the routing before had and this one has not.
    left: Vec<Arc<Endpoint>>,
}

/// A route with what outlives changes of other routes.
///
/// With thousands of hosts, a request's lane is in no cache, and each part of it that a request has to look into costs it a tenth of a
/// microsecond. So the route itself is for those who tell of it; what routes have in common stands in their [`Recipe`].
#[derive(Debug)]
pub struct Lane {
    /// For routes that forward.
    pub live: Option<LiveSet>,
    pub(crate) recipe: Arc<Recipe>,
    pub counts: Arc<RouteCounts>,
    /// For each filter that asks for a user, in their order.
    pub(crate) gates: Box<[Arc<Gate>]>,
    pub(crate) names: Names,
    pub route: Arc<Route>,
}

/// What is done to a request and how, which many routes have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Recipe {
    pub(crate) filters: Vec<Filter>,
    pub(crate) policy: Policy,
    /// What is done to answers depends on the request's headers: they must be kept.
    pub(crate) answers_ask_headers: bool,
}

/// A route's service and label, as logs have them.
#[derive(Debug)]
pub(crate) struct Names {
    both: Box<str>,
    service: usize,
}

impl Names {
    fn new(origin: &Origin) -> Self {
        Self { both: [origin.owner.name.as_str(), &origin.label].concat().into(), service: origin.owner.name.len() }
    }

    pub(crate) fn service(&self) -> &str {
        &self.both[..self.service]
    }

    pub(crate) fn label(&self) -> &str {
        &self.both[self.service..]
    }
}

impl Lane {
    /// Looks into all that a request will need, so that the processor waits for memory once and not for one after the other.
    pub(crate) fn fetch(&self) {
        let endpoints = self.live.as_ref().map(LiveSet::fetch);
        black_box((self.counts.fetch(), self.names.both.as_bytes().first(), self.recipe.answers_ask_headers, endpoints));
    }

    /// Who is to get in, and does not.
    pub fn user_faults(&self) -> impl Iterator<Item = UserFault> {
        self.gates.iter().flat_map(|gate| gate.faults())
    }
}

impl Routing {
    pub fn lane(&self, position: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(position)
    }

    /// To retire once this routing is served: until then, requests find them.
    pub(crate) fn take_left(&mut self) -> Vec<Arc<Endpoint>> {
        std::mem::take(&mut self.left)
    }

    /// All of them, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.values()
    }

    /// Backends of routes that ask for it that they are connected to in the background, as they are now.
    pub(crate) fn checked(&self) -> SharedMap<u64, Arc<Endpoint>> {
        SharedMap::clone(&self.checked.load())
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
    checked: SharedMap<u64, Arc<Endpoint>>,
    checked_changed: bool,
    /// What all routings that it makes see of that.
    shown_checked: Arc<ArcSwap<SharedMap<u64, Arc<Endpoint>>>>,
    gated: SharedMap<usize, Arc<Lane>>,
    claims: Arc<[RouteProblem]>,
    endpoints: HashMap<Place, Arc<Endpoint>>,
    used: HashMap<u64, Use>,
    footholds: BTreeMap<NetworkId, Arc<Foothold>>,
    /// By service or container, the positions of routes that lead to it.
    named: HashMap<Box<str>, BTreeSet<usize>>,
    /// With how many lanes have each.
    recipes: HashMap<Arc<Recipe>, usize>,
    /// A route that is asked by another door counts anew: it is of another group.
    counts: HashMap<(Origin, Listener), (Arc<RouteCounts>, usize)>,
    groups: SharedMap<Group, Arc<GroupCounts>>,
    /// How many routes each group has. It stays while it has one.
    members: HashMap<Group, usize>,
    last_id: u64,
}

/// What an endpoint is used for.
#[derive(Debug)]
struct Use {
    place: Place,
    /// How many times live sets have it, and those of routes that want it checked.
    lanes: usize,
    checks: usize,
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
            checked_changed: false,
            shown_checked: Arc::default(),
            gated: SharedMap::default(),
            claims: Arc::default(),
            endpoints: HashMap::new(),
            used: HashMap::new(),
            footholds: BTreeMap::new(),
            named: HashMap::new(),
            recipes: HashMap::new(),
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
            keep(&mut self.gated, position, new.as_ref().filter(|lane| lane.gates.iter().any(|gate| gate.has_file())));
            if let Some(lane) = &new {
                self.name(position, lane, true);
            }
            self.lanes.set(position, new);
        }
        let left = left.iter().flat_map(|lane| self.put_down(lane)).collect();
        self.show_checked();
        if change.problems {
            self.claims = self.book.problems().into();
        }
        Routing {
            table: Arc::new(self.book.table().clone()),
            lanes: self.lanes.clone(),
            checked: Arc::clone(&self.shown_checked),
            gated: self.gated.clone(),
            groups: self.groups.clone(),
            claims: Arc::clone(&self.claims),
            left,
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
                self.use_endpoints(&live.endpoints(), lane.recipe.policy.check_connect);
                let left = self.leave_endpoints(&before, lane.recipe.policy.check_connect);
                left.iter().for_each(|endpoint| endpoint.retire(Instant::now()));
            }
        }
        self.show_checked();
    }

    /// Says from which namespace a network is reached; `None` if from none.
    pub fn set_foothold(&mut self, network: &NetworkId, sandbox: Option<PathBuf>) {
        self.foothold(network).set(sandbox, Instant::now());
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
        Arc::new(Lane { live, recipe: self.recipe(route), counts, gates, names: Names::new(&route.origin), route: Arc::clone(route) })
    }

    fn recipe(&mut self, route: &Route) -> Arc<Recipe> {
        let (filters, policy) = (route.filters.clone(), route.policy.clone());
        let recipe = Recipe { filters, policy, answers_ask_headers: answers_ask_headers(route) };
        match self.recipes.get_key_value(&recipe) {
            Some((known, _)) => Arc::clone(known),
            None => {
                let recipe = Arc::new(recipe);
                self.recipes.insert(Arc::clone(&recipe), 0);
                recipe
            }
        }
    }

    /// Notes what a lane that comes has.
    fn take_up(&mut self, lane: &Lane) {
        let (origin, listener) = (&lane.route.origin, lane.route.listener);
        if let Some((_, uses)) = self.counts.get_mut(&(origin.clone(), listener)) {
            *uses += 1;
        }
        *self.recipes.entry(Arc::clone(&lane.recipe)).or_default() += 1;
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
            self.use_endpoints(&live.endpoints(), lane.recipe.policy.check_connect);
        }
    }

    /// A lane went: what only it had goes, too. Says which endpoints nobody has any more.
    fn put_down(&mut self, lane: &Lane) -> Vec<Arc<Endpoint>> {
        let (origin, listener) = (&lane.route.origin, lane.route.listener);
        if let Entry::Occupied(mut counts) = self.counts.entry((origin.clone(), listener)) {
            counts.get_mut().1 -= 1;
            if counts.get().1 == 0 {
                counts.remove();
            }
        }
        if let Entry::Occupied(mut recipe) = self.recipes.entry(Arc::clone(&lane.recipe)) {
            *recipe.get_mut() -= 1;
            if *recipe.get() == 0 {
                recipe.remove();
            }
        }
        if let Entry::Occupied(mut members) = self.members.entry(Group::of(origin, listener)) {
            *members.get_mut() -= 1;
            if *members.get() == 0 {
                let (group, _) = members.remove_entry();
                self.groups.remove(&group);
            }
        }
        let live = lane.live.as_ref();
        live.map_or_else(Vec::new, |live| self.leave_endpoints(&live.endpoints(), lane.recipe.policy.check_connect))
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
        self.used.insert(endpoint.id, Use { place: place.clone(), lanes: 0, checks: 0 });
        self.endpoints.insert(place, Arc::clone(&endpoint));
        endpoint
    }

    fn use_endpoints(&mut self, endpoints: &[WeightedEndpoint], checks: bool) {
        for WeightedEndpoint { endpoint, .. } in endpoints {
            let Some(uses) = self.used.get_mut(&endpoint.id) else { continue };
            uses.lanes += 1;
            if checks {
                uses.checks += 1;
                if uses.checks == 1 {
                    self.checked.insert(endpoint.id, Arc::clone(endpoint));
                    self.checked_changed = true;
                }
            }
        }
    }

    /// Says which of these endpoints no live set has any more: those are to take nothing new.
    fn leave_endpoints(&mut self, endpoints: &[WeightedEndpoint], checks: bool) -> Vec<Arc<Endpoint>> {
        let mut left = Vec::new();
        for WeightedEndpoint { endpoint, .. } in endpoints {
            let Entry::Occupied(mut used) = self.used.entry(endpoint.id) else { continue };
            let uses = used.get_mut();
            uses.lanes -= 1;
            if checks {
                uses.checks -= 1;
                if uses.checks == 0 {
                    self.checked.remove(&endpoint.id);
                    self.checked_changed = true;
                    // Nobody looks at it any more, so nobody would find it well again.
                    endpoint.health.checked(true);
                }
            }
            if uses.lanes == 0 {
                self.endpoints.remove(&used.remove().place);
                left.push(Arc::clone(endpoint));
            }
        }
        left
    }

    fn show_checked(&mut self) {
        if std::mem::take(&mut self.checked_changed) {
            self.shown_checked.store(Arc::new(self.checked.clone()));
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

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use http::HeaderMap;
    use swarmesh_model::TaskId;
    use swarmesh_router::model::{Action, BackendMode, Member};

    use super::*;
    use crate::{live_set::Asking, tls::testing::route};

    struct These(Vec<u8>);

    impl Tasks for These {
        fn vip(&self, _: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
            None
        }

        fn usable(&self, _: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
            self.0.iter().map(|last| (TaskId::from(format!("task {last}")), IpAddr::from([127, 0, 0, *last]))).collect()
        }

        fn published(&self, _: &str) -> Option<IpAddr> {
            None
        }

        fn network(&self, _: &str, _: Option<&NetworkId>) -> Option<NetworkId> {
            None
        }
    }

    fn to_web(host: &str, checks: bool) -> Arc<Route> {
        let mut route = route(host, None);
        route.action = Action::Forward(BackendSet::of(Member::service("web", None, 80, BackendMode::Task)));
        route.policy.check_connect = checks;
        Arc::new(route)
    }

    #[test]
    fn backends_are_checked_while_a_route_asks_for_it() {
        let checked = |routing: &Routing| {
            routing.checked().values().map(|endpoint| endpoint.address.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let mut board = Switchboard::by_owner(&Config::default());
        let routing = board.change([("a", vec![to_web("a", false)])], &These(vec![1, 2]));
        assert!(checked(&routing).is_empty());
        let routing = board.change([("b", vec![to_web("b", true)]), ("c", vec![to_web("c", true)])], &These(vec![1, 2]));
        assert_eq!(checked(&routing), ["127.0.0.1", "127.0.0.2"]);
        // Routings that are in use see tasks come and go.
        board.refresh(&HashSet::from(["web"]), &These(vec![2, 3]));
        assert_eq!(checked(&routing), ["127.0.0.2", "127.0.0.3"]);
        let down = routing.checked().values().next().cloned().unwrap();
        assert!(down.health.checked(false) && down.health.is_out(Instant::now()));
        let after = board.change([("b", vec![])], &These(vec![2, 3]));
        assert_eq!(checked(&after).len(), 2, "c asks for it, too");
        let after = board.change([("c", vec![to_web("c", false)])], &These(vec![2, 3]));
        assert!(checked(&after).is_empty());
        assert!(!down.health.is_out(Instant::now()) && !down.is_gone(), "nobody would find it well again");
    }

    #[test]
    fn a_request_that_found_its_route_before_it_went_has_a_backend() {
        let asking = Asking { client: [192, 0, 2, 1].into(), headers: &HeaderMap::new(), tls: false, tls_session: None };
        let to = |lane: &Arc<Lane>, now| Some(lane.live.as_ref()?.choose(&asking, &[], now)?.endpoint.address.to_string());
        let mut board = Switchboard::by_owner(&Config::default());
        let routing = board.change([("a", vec![to_web("a", false)])], &These(vec![1]));
        let found = Arc::clone(routing.lanes().next().unwrap());
        // Tasks are others: the route has them.
        board.refresh(&HashSet::from(["web"]), &These(vec![2]));
        assert_eq!(to(&found, Instant::now()).as_deref(), Some("127.0.0.2:80"));
        let mut routing = board.change([("a", vec![])], &These(vec![2]));
        let last = found.live.as_ref().unwrap().endpoints()[0].endpoint.clone();
        assert!(!last.is_gone(), "the routing before is still served");
        let now = Instant::now();
        let left = routing.take_left();
        left.iter().for_each(|endpoint| endpoint.retire(now));
        assert!(last.is_gone() && left.len() == 1);
        assert_eq!(to(&found, now).as_deref(), Some("127.0.0.2:80"));
        assert_eq!(to(&found, now + Duration::from_secs(2)), None, "somebody else may have its address");
    }
}
