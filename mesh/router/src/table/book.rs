//! Routes that change, and the table of those that are served.
//!
//! A change costs what the changed routes and those that claim the same are, and what is copied of the table: one part of 256 of its
//! hosts and the way to the changed ones in its tries. What comes out is what building everything anew would give.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use super::{
    Placed, Table,
    claims::{Asked, Claims, Settled},
    hosts::{Entry, HostIndex, Order},
};
use crate::{
    model::{Listener, Match, Origin, Route},
    problem::RouteProblem,
};

/// All routes by who asks for them, and the table that they come to.
#[derive(Debug)]
pub struct Book<K = ()> {
    owners: HashMap<K, Vec<u32>>,
    routes: Routes,
    /// Numbers that are nobody's.
    free: Vec<u32>,
    claims: Claims,
    table: Table,
    /// Routes about which there is something to tell.
    told: BTreeSet<u32>,
}

impl<K> Default for Book<K> {
    fn default() -> Self {
        Self {
            owners: HashMap::new(),
            routes: Routes::default(),
            free: Vec::new(),
            claims: Claims::default(),
            table: Table::default(),
            told: BTreeSet::new(),
        }
    }
}

/// What a change came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Positions in the table at which there is another route now, or none any more.
    pub positions: Vec<usize>,
    /// Whether [`Book::problems`] may be others now. What one route has lost, another may have lost in the same words.
    pub problems: bool,
}

#[derive(Debug, Default)]
struct Routes(Vec<Option<Known>>);

/// A route that is asked for.
#[derive(Debug)]
struct Known {
    entry: Entry,
    asked: Arc<Route>,
    /// It is among those that ask for TLS.
    asks_tls: bool,
    problems: Vec<RouteProblem>,
}

impl Routes {
    fn get(&self, slot: u32) -> Option<&Known> {
        self.0.get(slot as usize)?.as_ref()
    }

    fn set(&mut self, slot: u32, known: Option<Known>) -> Option<Known> {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        std::mem::replace(&mut self.0[slot], known)
    }
}

impl Order for Routes {
    fn compare(&self, a: u32, b: u32) -> std::cmp::Ordering {
        match (self.get(a), self.get(b)) {
            (Some(first), Some(second)) => first.asked.cmp_precedence(&second.asked).then(a.cmp(&b)),
            _ => a.cmp(&b),
        }
    }
}

impl Asked for Routes {
    fn asked(&self, slot: u32) -> Option<&Arc<Route>> {
        self.get(slot).map(|known| &known.asked)
    }

    fn entry_of(&self, slot: u32) -> Option<Entry> {
        self.get(slot).map(|known| known.entry)
    }
}

impl<K: Eq + Hash> Book<K> {
    /// The table as it is now. A copy of it costs little.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What routes could not have since others have it, in order.
    pub fn problems(&self) -> Vec<RouteProblem> {
        let mut problems: Vec<RouteProblem> =
            self.told.iter().filter_map(|slot| self.routes.get(*slot)).flat_map(|known| &known.problems).cloned().collect();
        problems.sort();
        problems
    }

    /// Whose routes there are.
    pub fn owners(&self) -> impl Iterator<Item = &K> {
        self.owners.keys()
    }

    /// All of these owners' routes are others now; none at all is an owner that is gone. Routes that are as they were stay.
    pub fn change(&mut self, owners: impl IntoIterator<Item = (K, Vec<Arc<Route>>)>) -> Change {
        let (mut touched, mut gone, mut come) = (BTreeSet::new(), Vec::new(), Vec::new());
        for (owner, routes) in owners {
            let (kept, new) = self.compare(self.owners.get(&owner).map_or(&[], Vec::as_slice), routes);
            let mut slots = Vec::with_capacity(kept.len() + new.len());
            let mut new = new.into_iter();
            for place in kept {
                slots.push(place.or_else(|| {
                    let route = new.next()?;
                    let slot = self.free.pop().unwrap_or((self.routes.0.len()) as u32);
                    let entry = Entry { rank: route.packed_rank(), slot, by_host_alone: false };
                    self.routes.set(slot, Some(Known { entry, asked: route, asks_tls: false, problems: Vec::new() }));
                    come.push(slot);
                    Some(slot)
                }));
            }
            let slots: Vec<u32> = slots.into_iter().flatten().collect();
            let before = if slots.is_empty() { self.owners.remove(&owner) } else { self.owners.insert(owner, slots.clone()) };
            let slots: BTreeSet<u32> = slots.into_iter().collect();
            gone.extend(before.into_iter().flatten().filter(|slot| !slots.contains(slot)));
        }
        let mut change = Change::default();
        // All that goes before all that comes: what comes is compared with what there will be.
        let mut left = Vec::new();
        for slot in gone {
            let Some(known) = self.routes.get(slot) else { continue };
            let route = Arc::clone(&known.asked);
            self.claims.remove(slot, &route, &self.routes, &mut touched);
            if known.asks_tls {
                self.claims.ask_tls(slot, &route, false, &self.routes, &mut touched);
                touched.remove(&slot);
            }
            left.push(slot);
        }
        for slot in left {
            touched.remove(&slot);
            let known = self.routes.set(slot, None);
            change.problems |= known.is_some_and(|known| !known.problems.is_empty());
            self.told.remove(&slot);
            self.place(slot, None, &mut change);
            self.free.push(slot);
        }
        for slot in come {
            if let Some(route) = self.routes.asked(slot).cloned() {
                self.claims.add(slot, &route, &self.routes, &mut touched);
            }
        }
        self.judge(touched, &mut change);
        change.positions.sort_unstable();
        change.positions.dedup();
        change
    }

    /// For each route in its order the number that it has already; and those that are new.
    fn compare(&self, slots: &[u32], routes: Vec<Arc<Route>>) -> (Vec<Option<u32>>, Vec<Arc<Route>>) {
        let mut before: HashMap<&Origin, Vec<u32>> = HashMap::with_capacity(slots.len());
        for slot in slots.iter().rev() {
            if let Some(route) = self.routes.asked(*slot) {
                before.entry(&route.origin).or_default().push(*slot);
            }
        }
        let (mut kept, mut new) = (Vec::with_capacity(routes.len()), Vec::new());
        for route in routes {
            let same = before.get_mut(&route.origin).and_then(|slots| {
                let is_same = |slot: &u32| self.routes.asked(*slot).is_some_and(|known| Arc::ptr_eq(known, &route) || *known == route);
                let place = slots.iter().rposition(is_same)?;
                Some(slots.remove(place))
            });
            kept.push(same);
            if same.is_none() {
                new.push(route);
            }
        }
        (kept, new)
    }

    /// Judges again who may be judged otherwise.
    fn judge(&mut self, touched: BTreeSet<u32>, change: &mut Change) {
        let mut settled: HashMap<u32, Settled> = HashMap::with_capacity(touched.len());
        let mut about_tls = BTreeSet::new();
        for slot in &touched {
            let Some(route) = self.routes.asked(*slot).cloned() else { continue };
            let judged = self.claims.judge(*slot, &route, &self.routes);
            let asks = judged.route.is_some();
            settled.insert(*slot, judged);
            if let Some(Some(known)) = self.routes.0.get_mut(*slot as usize)
                && known.asks_tls != asks
            {
                known.asks_tls = asks;
                self.claims.ask_tls(*slot, &route, asks, &self.routes, &mut about_tls);
            }
        }
        for slot in touched.union(&about_tls) {
            let Some(route) = self.routes.asked(*slot) else { continue };
            let mut judged = settled.remove(slot).unwrap_or_else(|| self.claims.judge(*slot, route, &self.routes));
            self.claims.judge_tls(*slot, &mut judged, &self.routes);
            self.place(*slot, judged.route, change);
            if judged.problems.is_empty() {
                self.told.remove(slot)
            } else {
                self.told.insert(*slot)
            };
            if let Some(Some(known)) = self.routes.0.get_mut(*slot as usize)
                && known.problems != judged.problems
            {
                known.problems = judged.problems;
                change.problems = true;
            }
        }
    }

    /// Brings a route into the table, or takes it out.
    fn place(&mut self, slot: u32, served: Option<Arc<Route>>, change: &mut Change) {
        let position = slot as usize;
        let before = self.table.places.get(position).cloned();
        if let (Some(before), Some(served)) = (&before, &served)
            && before.served == *served
            && self.routes.get(slot).is_some_and(|known| known.entry.rank == before.entry.rank)
        {
            return;
        }
        if before.is_none() && served.is_none() {
            return;
        }
        change.positions.push(position);
        if let Some(before) = before {
            self.table.remove(&before);
            self.table.places.set(position, None);
        }
        if let (Some(served), Some(known)) = (served, self.routes.get(slot)) {
            let entry = Entry { by_host_alone: served.matching.is_host_alone(), ..known.entry };
            let placed = Placed { entry, asked: Arc::clone(&known.asked), served };
            self.table.places.set(position, Some(placed.clone()));
            self.table.insert(&placed);
        }
    }
}

impl Table {
    /// The indexes that a route stands in.
    fn indexes(&mut self, route: &Route) -> impl Iterator<Item = &mut HostIndex> {
        let http = matches!(route.listener, Listener::Http | Listener::Any).then_some(&mut self.http);
        let https = matches!(route.listener, Listener::Https | Listener::Any).then_some(&mut self.https);
        let tls = (route.listener == Listener::Tls).then_some(&mut self.tls);
        let certificates = route.certificate.is_some().then_some(&mut self.certificates);
        [http, https, tls, certificates].into_iter().flatten()
    }

    fn insert(&mut self, placed: &Placed) {
        let (places, route) = (self.places.clone(), &placed.served);
        let matching = |slot: u32| -> Option<Match> { places.get(slot as usize).map(|placed| placed.served.matching.clone()) };
        for index in self.indexes(route) {
            index.insert(placed.entry, &route.matching.hosts, &matching, &places);
        }
        if let Some(port) = tcp_port(route) {
            let mut list = self.tcp.get(&port).map_or_else(Vec::new, |list| list.to_vec());
            let place = list.partition_point(|other| places.is_before(*other, placed.entry));
            list.insert(place, placed.entry);
            self.tcp.insert(port, list.into());
        }
    }

    fn remove(&mut self, placed: &Placed) {
        let (places, route) = (self.places.clone(), &placed.served);
        for index in self.indexes(route) {
            index.remove(placed.entry, &route.matching, &places);
        }
        if let Some(port) = tcp_port(route) {
            let left: Vec<Entry> =
                self.tcp.get(&port).iter().flat_map(|list| list.iter()).copied().filter(|e| e.slot != placed.entry.slot).collect();
            if left.is_empty() {
                self.tcp.remove(&port)
            } else {
                self.tcp.insert(port, left.into())
            };
        }
    }
}

fn tcp_port(route: &Route) -> Option<u16> {
    route.matching.port.filter(|_| route.listener == Listener::Tcp)
}
