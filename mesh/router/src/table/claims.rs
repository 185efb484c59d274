//! Who has what several ask for.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use super::hosts::{self, Order};
use crate::{
    model::{Action, HeaderMatch, HostMatch, Listener, Member, PathKind, PathMatch, Pool, Precedence, Route, Share},
    problem::{Effect, Reason, RouteProblem},
};

/// One host and one path, with all further conditions. Who claims it second never gets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim<'r> {
    listener: Listener,
    host: Option<&'r HostMatch>,
    /// `None` is every path.
    path: Option<&'r PathMatch>,
    not_paths: &'r [PathMatch],
    headers: &'r [HeaderMatch],
    methods: &'r [String],
    port: Option<u16>,
}

/// By which doors there are claims.
const DOORS: [Listener; 4] = [Listener::Http, Listener::Https, Listener::Tls, Listener::Tcp];

impl<'r> Claim<'r> {
    fn listeners(route: &Route) -> &'static [Listener] {
        match route.listener {
            Listener::Any => &[Listener::Http, Listener::Https],
            Listener::Http => &[Listener::Http],
            Listener::Https => &[Listener::Https],
            Listener::Tls => &[Listener::Tls],
            Listener::Tcp => &[Listener::Tcp],
        }
    }

    fn all(route: &'r Route) -> impl Iterator<Item = Self> {
        let matching = &route.matching;
        let count = Self::listeners(route).len() * matching.hosts.len().max(1) * matching.paths.len().max(1);
        (0..count as u32).filter_map(|number| Self::at(route, number))
    }

    /// One of a route's claims. Each door has each host with each path.
    fn at(route: &'r Route, number: u32) -> Option<Self> {
        let matching = &route.matching;
        let (hosts, paths) = (matching.hosts.len().max(1), matching.paths.len().max(1));
        let number = number as usize;
        Some(Self {
            listener: *Self::listeners(route).get(number / paths / hosts)?,
            host: matching.hosts.get(number / paths % hosts),
            path: matching.paths.get(number % paths).filter(|path| !path.is_every()),
            not_paths: &matching.not_paths,
            headers: &matching.headers,
            methods: &matching.methods,
            port: matching.port,
        })
    }

    /// The same by another door.
    fn by(&self, listener: Listener) -> Self {
        Self { listener, ..self.clone() }
    }

    fn show(&self) -> String {
        let host = match self.host {
            None => "*".to_owned(),
            Some(HostMatch::Exact(text)) => text.clone(),
            Some(HostMatch::Suffix(text) | HostMatch::SuffixOrWhole(text)) => format!("*{text}"),
            Some(HostMatch::Prefix(text)) => format!("{text}*"),
            Some(HostMatch::Labels(text)) => format!("*{text}*"),
        };
        let path = self.path.map_or("", |path| match &path.kind {
            PathKind::Exact(text)
            | PathKind::Prefix(text)
            | PathKind::Segments(text)
            | PathKind::Suffix(text)
            | PathKind::Contains(text)
            | PathKind::Directory(text) => text,
            PathKind::Regex(pattern) => pattern.as_str(),
        });
        format!("{host}{path}")
    }
}

/// A claim, and the routes that make it, in their order. The first has it.
#[derive(Debug)]
struct Claimed {
    /// One of them, and which of its claims it is: texts are not kept twice.
    of: (Arc<Route>, u32),
    by: Vec<(u32, u32)>,
}

impl Claimed {
    fn claim(&self) -> Option<Claim<'_>> {
        Claim::at(&self.of.0, self.of.1)
    }

    fn is(&self, claim: &Claim<'_>) -> bool {
        self.claim().as_ref() == Some(claim)
    }
}

/// All routes as they were asked for. A set of answers to: who is first?
#[derive(Debug, Default)]
pub(super) struct Claims {
    hash: RandomState,
    claimed: HashTable<Claimed>,
    /// By name, the routes that say how TLS for it is treated, with who says it first.
    tls: HashMap<HostMatch, Vec<u32>>,
}

/// What claims are told about: routes by their numbers, in their order.
pub(super) trait Asked: Order {
    fn asked(&self, slot: u32) -> Option<&Arc<Route>>;

    fn entry_of(&self, slot: u32) -> Option<hosts::Entry>;

    fn comes_before(&self, a: u32, b: u32) -> bool {
        match (self.entry_of(a), self.entry_of(b)) {
            (Some(a), Some(b)) => self.is_before(a, b),
            _ => a < b,
        }
    }
}

/// What became of a route where others ask for the same.
#[derive(Debug)]
pub(super) struct Settled {
    /// `None` if it could never be chosen.
    pub(super) route: Option<Arc<Route>>,
    pub(super) problems: Vec<RouteProblem>,
}

impl Claims {
    fn hash_of(&self, claim: &Claim<'_>) -> u64 {
        self.hash.hash_one(claim)
    }

    fn claimants(&self, claim: &Claim<'_>) -> impl Iterator<Item = u32> {
        let found = self.claimed.find(self.hash_of(claim), |claimed| claimed.is(claim));
        found.map_or(&[][..], |claimed| &claimed.by).iter().map(|(slot, _)| *slot)
    }

    /// A route comes. Those that may be judged otherwise for it are added to `touched`.
    pub(super) fn add(&mut self, slot: u32, route: &Arc<Route>, all: &impl Asked, touched: &mut BTreeSet<u32>) {
        for (number, claim) in (0..).zip(Claim::all(route)) {
            let hash = self.hash_of(&claim);
            let state = &self.hash;
            let hash_of = |claimed: &Claimed| claimed.claim().map_or(0, |claim| state.hash_one(claim));
            let entry = self.claimed.entry(hash, |claimed| claimed.is(&claim), hash_of);
            let mut entry = entry.or_insert_with(|| Claimed { of: (Arc::clone(route), number), by: Vec::new() });
            let by = &mut entry.get_mut().by;
            // It may make the same claim twice.
            if !by.iter().any(|(other, _)| *other == slot) {
                let place = by.partition_point(|(other, _)| all.comes_before(*other, slot));
                by.insert(place, (slot, number));
            }
            self.touch(route, &claim, touched);
        }
        touched.insert(slot);
    }

    /// A route goes.
    pub(super) fn remove(&mut self, slot: u32, route: &Arc<Route>, all: &impl Asked, touched: &mut BTreeSet<u32>) {
        for claim in Claim::all(route) {
            let hash = self.hash_of(&claim);
            if let Ok(mut found) = self.claimed.find_entry(hash, |claimed| claimed.is(&claim)) {
                found.get_mut().by.retain(|(other, _)| *other != slot);
                let first = found.get().by.first().and_then(|(first, number)| Some((Arc::clone(all.asked(*first)?), *number)));
                match first {
                    // It may have been kept by the one that goes.
                    Some(first) => found.get_mut().of = first,
                    None => drop(found.remove()),
                }
            }
            self.touch(route, &claim, touched);
        }
        touched.remove(&slot);
    }

    /// Backends come together by all doors.
    fn touch(&self, route: &Route, claim: &Claim<'_>, touched: &mut BTreeSet<u32>) {
        if matches!(route.share, Share::Pool(_)) {
            DOORS.iter().for_each(|door| touched.extend(self.claimants(&claim.by(*door))));
        } else {
            touched.extend(self.claimants(claim));
        }
    }

    /// Whether a route has anything that it asks for, with the backends of those it shares with; and what it lost, and to whom.
    pub(super) fn judge(&self, slot: u32, route: &Arc<Route>, all: &impl Asked) -> Settled {
        let claims: Vec<Claim<'_>> = Claim::all(route).collect();
        let holder = |claim: &Claim<'_>| self.claimants(claim).next().filter(|first| *first != slot);
        let lost: Vec<(u32, &Claim<'_>)> = claims.iter().filter_map(|claim| Some((holder(claim)?, claim))).collect();
        let kept = lost.len() < claims.len();
        let mut problems = Vec::new();
        report(route, &lost, kept, all, &mut problems);
        if !kept {
            return Settled { route: None, problems };
        }
        let mut settled = Arc::clone(route);
        if let Share::Pool(pool) = &route.share
            && let Some(members) = self.members(pool, &claims, all)
            && let Action::Forward(set) = &route.action
            && set.members != members
            && let Action::Forward(set) = &mut Arc::make_mut(&mut settled).action
        {
            set.members = members;
        }
        Settled { route: Some(settled), problems }
    }

    /// The backends of all who share one of these claims; `None` if nobody else does.
    fn members(&self, pool: &Pool, claims: &[Claim<'_>], all: &impl Asked) -> Option<Vec<Member>> {
        let mut members: Option<Vec<Member>> = None;
        for claim in claims {
            let mut sharers: Vec<u32> = Vec::new();
            for door in DOORS {
                sharers.extend(self.claimants(&claim.by(door)));
            }
            sharers.retain(|slot| all.asked(*slot).is_some_and(|route| matches!(&route.share, Share::Pool(other) if other == pool)));
            sharers.sort_by(|a, b| {
                let first = if a == b { std::cmp::Ordering::Equal } else { std::cmp::Ordering::Greater };
                if all.comes_before(*a, *b) { std::cmp::Ordering::Less } else { first }
            });
            sharers.dedup();
            if sharers.len() < 2 {
                continue;
            }
            let members = members.get_or_insert_default();
            for member in sharers.iter().filter_map(|slot| all.asked(*slot)?.backends()).flat_map(|set| &set.members) {
                if !members.contains(member) {
                    members.push(member.clone());
                }
            }
        }
        members
    }

    /// A route that [`Self::judge`] kept, or keeps no more, asks for TLS. Adds those to `touched` that may be judged otherwise.
    pub(super) fn ask_tls(&mut self, slot: u32, route: &Route, asks: bool, all: &impl Asked, touched: &mut BTreeSet<u32>) {
        if !is_about_tls(route) {
            return;
        }
        let key = |slot: u32| all.asked(slot).map(|route| (route.origin.owner.id.as_str(), route.origin.owner.kind));
        let own = (route.origin.owner.id.as_str(), route.origin.owner.kind);
        for host in &route.matching.hosts {
            let mut entry = match self.tls.entry(host.clone()) {
                Entry::Occupied(entry) => entry,
                Entry::Vacant(_) if !asks => continue,
                Entry::Vacant(entry) => entry.insert_entry(Vec::new()),
            };
            let by = entry.get_mut();
            by.retain(|other| *other != slot);
            if asks {
                // An owner's own routes stay in order.
                let place = by.partition_point(|other| {
                    let other_key = key(*other);
                    other_key < Some(own) || other_key == Some(own) && all.comes_before(*other, slot)
                });
                by.insert(place, slot);
            }
            touched.extend(by.iter());
            if by.is_empty() {
                entry.remove();
            }
        }
        touched.insert(slot);
    }

    /// TLS for one name is opened here or passed on, and is opened with one certificate: the owner with the smaller id says which.
    /// Takes from a route what others have.
    pub(super) fn judge_tls(&self, slot: u32, settled: &mut Settled, all: &impl Asked) {
        let Some(route) = &settled.route else { return };
        if !is_about_tls(route) {
            return;
        }
        let passes = route.listener == Listener::Tls;
        let mut lost: Vec<&HostMatch> = Vec::new();
        for host in &route.matching.hosts {
            let first = self.tls.get(host).and_then(|by| by.first()).filter(|first| **first != slot);
            let Some(has) = first.and_then(|first| all.asked(*first)).filter(|_| !lost.contains(&host)) else { continue };
            if has.certificate == route.certificate && (has.listener == Listener::Tls) == passes {
                continue;
            }
            lost.push(host);
            let whole = passes && route.matching.hosts.len() == 1;
            let reason = Reason::Claimed { winner: has.origin.owner.clone(), label: has.origin.label.clone() };
            let effect = if whole { Effect::NoRoute } else { Effect::Shadowed };
            settled.problems.push(RouteProblem::of(&route.origin, format!("TLS for {}", host.text()), reason, effect));
        }
        if lost.is_empty() {
            return;
        }
        let mut changed = Route::clone(route);
        if passes {
            changed.matching.hosts.retain(|host| !lost.contains(&host));
        } else {
            changed.certificate = None;
        }
        // A route whose last host went must not become one for every host.
        settled.route = (!changed.matching.hosts.is_empty()).then(|| Arc::new(changed));
    }
}

fn is_about_tls(route: &Route) -> bool {
    route.listener == Listener::Tls && route.matching.port.is_none() || route.certificate.is_some()
}

/// Says to a route's owner what it lost, once for each who has it.
fn report(route: &Route, lost: &[(u32, &Claim<'_>)], kept: bool, all: &impl Asked, problems: &mut Vec<RouteProblem>) {
    if route.precedence == Precedence::Rest {
        return;
    }
    let mut told: Vec<u32> = Vec::new();
    for (holder, claim) in lost {
        if told.contains(holder) {
            continue;
        }
        told.push(*holder);
        let Some(first) = all.asked(*holder) else { continue };
        if pooled(route, first) {
            if !same_options(route, first) && route.origin.owner != first.origin.owner {
                let reason = Reason::OptionsOfFirst { first: first.origin.owner.clone() };
                problems.push(RouteProblem::of(&route.origin, claim.show(), reason, Effect::Ignored));
            }
            continue;
        }
        if !matches!(route.action, Action::Forward(_)) && route.action == first.action && route.filters == first.filters {
            // Both say the same, and it is said.
            continue;
        }
        let reason = Reason::Claimed { winner: first.origin.owner.clone(), label: first.origin.label.clone() };
        let effect = if kept { Effect::Shadowed } else { Effect::NoRoute };
        problems.push(RouteProblem::of(&route.origin, claim.show(), reason, effect));
    }
}

fn pooled(a: &Route, b: &Route) -> bool {
    matches!((&a.share, &b.share), (Share::Pool(a), Share::Pool(b)) if a == b)
}

/// Whether all but the backends is alike.
fn same_options(a: &Route, b: &Route) -> bool {
    let action = match (&a.action, &b.action) {
        (Action::Forward(a), Action::Forward(b)) => a.balance == b.balance && a.stickiness == b.stickiness,
        (a, b) => a == b,
    };
    action && a.filters == b.filters && a.policy == b.policy && a.certificate == b.certificate && a.listener == b.listener
}
