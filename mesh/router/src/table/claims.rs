//! Who has what several ask for.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    model::{Action, HeaderMatch, HostMatch, Listener, Member, OwnerKind, PathKind, PathMatch, Pool, Precedence, Route, Share},
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

impl<'r> Claim<'r> {
    fn all(route: &'r Route) -> Vec<Self> {
        let matching = &route.matching;
        let listeners: &[Listener] = match route.listener {
            Listener::Any => &[Listener::Http, Listener::Https],
            Listener::Http => &[Listener::Http],
            Listener::Https => &[Listener::Https],
            Listener::Tls => &[Listener::Tls],
            Listener::Tcp => &[Listener::Tcp],
        };
        let hosts: Vec<_> = if matching.hosts.is_empty() { vec![None] } else { matching.hosts.iter().map(Some).collect() };
        let paths: Vec<_> =
            if matching.paths.is_empty() { vec![None] } else { matching.paths.iter().map(|p| (!p.is_every()).then_some(p)).collect() };
        let mut claims = Vec::with_capacity(listeners.len() * hosts.len() * paths.len());
        for listener in listeners {
            for host in &hosts {
                for path in &paths {
                    claims.push(Self {
                        listener: *listener,
                        host: *host,
                        path: *path,
                        not_paths: &matching.not_paths,
                        headers: &matching.headers,
                        methods: &matching.methods,
                        port: matching.port,
                    });
                }
            }
        }
        claims
    }

    /// The same for all listeners: what a pool comes together by.
    fn anywhere(&self) -> Self {
        Self { listener: Listener::Any, ..self.clone() }
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

/// Leaves out routes that could never be chosen, brings pools together, and says who lost what to whom. `routes` are in order.
#[expect(clippy::mutable_key_type, reason = "what changes in an expression is its scratch space; it is compared and hashed by its text")]
pub(super) fn settle(mut routes: Vec<Arc<Route>>, problems: &mut Vec<RouteProblem>) -> Vec<Arc<Route>> {
    let mut keep = vec![true; routes.len()];
    let mut members: Vec<Option<Vec<Member>>> = vec![None; routes.len()];
    {
        let mut holders: HashMap<Claim<'_>, usize> = HashMap::with_capacity(2 * routes.len());
        let mut pools: HashMap<(&Pool, Claim<'_>), Vec<usize>> = HashMap::new();
        for (number, route) in routes.iter().enumerate() {
            let claims = Claim::all(route);
            let mut lost: Vec<(usize, &Claim<'_>)> = Vec::new();
            for claim in &claims {
                match holders.entry(claim.clone()) {
                    Entry::Vacant(entry) => {
                        entry.insert(number);
                    }
                    Entry::Occupied(entry) if *entry.get() == number => {}
                    Entry::Occupied(entry) => lost.push((*entry.get(), claim)),
                }
            }
            keep[number] = lost.len() < claims.len();
            if let Share::Pool(pool) = &route.share {
                for claim in &claims {
                    let list = pools.entry((pool, claim.anywhere())).or_default();
                    if list.last() != Some(&number) {
                        list.push(number);
                    }
                }
            }
            report(&routes, number, &lost, keep[number], problems);
        }
        // A route's backends are those of all who share one of its claims.
        for sharers in pools.values().filter(|s| s.len() > 1) {
            for &number in sharers.iter().filter(|n| keep[**n]) {
                let all = members[number].get_or_insert_default();
                for member in sharers.iter().filter_map(|n| routes[*n].backends()).flat_map(|set| &set.members) {
                    if !all.contains(member) {
                        all.push(member.clone());
                    }
                }
            }
        }
    }
    for (route, members) in routes.iter_mut().zip(members) {
        let Some(members) = members else { continue };
        if let Action::Forward(set) = &mut Arc::make_mut(route).action {
            set.members = members;
        }
    }
    let mut keep = keep.into_iter();
    routes.retain(|_| keep.next().unwrap_or(true));
    routes
}

/// Says to a route's owner what it lost, once for each who has it.
fn report(routes: &[Arc<Route>], number: usize, lost: &[(usize, &Claim<'_>)], kept: bool, problems: &mut Vec<RouteProblem>) {
    let route = &routes[number];
    if route.precedence == Precedence::Rest {
        return;
    }
    let mut told: Vec<usize> = Vec::new();
    for (holder, claim) in lost {
        if told.contains(holder) {
            continue;
        }
        told.push(*holder);
        let first = &routes[*holder];
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

/// TLS for one name is opened here or passed on, and is opened with one certificate: the owner with the smaller id says which.
pub(super) fn settle_tls(routes: &mut Vec<Arc<Route>>, problems: &mut Vec<RouteProblem>) {
    let mut by_name: HashMap<HostMatch, Vec<usize>> = HashMap::new();
    for (number, route) in routes.iter().enumerate() {
        let passes = route.listener == Listener::Tls && route.matching.port.is_none();
        if passes || route.certificate.is_some() {
            for host in &route.matching.hosts {
                by_name.entry(host.clone()).or_default().push(number);
            }
        }
    }
    let mut drop = Vec::new();
    let mut bare = Vec::new();
    for (host, mut numbers) in by_name {
        // Stable: an owner's own routes stay in order.
        numbers.sort_by(|a, b| owner_key(&routes[*a]).cmp(&owner_key(&routes[*b])).then(a.cmp(b)));
        let Some((&first, rest)) = numbers.split_first() else { continue };
        for &number in rest {
            let (has, loses) = (&routes[first], &routes[number]);
            if has.certificate == loses.certificate && (has.listener == Listener::Tls) == (loses.listener == Listener::Tls) {
                continue;
            }
            let passes = loses.listener == Listener::Tls;
            let whole = passes && loses.matching.hosts.len() == 1;
            let reason = Reason::Claimed { winner: has.origin.owner.clone(), label: has.origin.label.clone() };
            let effect = if whole { Effect::NoRoute } else { Effect::Shadowed };
            problems.push(RouteProblem::of(&loses.origin, format!("TLS for {}", host.text()), reason, effect));
            if passes { drop.push((number, host.clone())) } else { bare.push(number) }
        }
    }
    for number in bare {
        Arc::make_mut(&mut routes[number]).certificate = None;
    }
    let mut gone = vec![false; routes.len()];
    for (number, host) in drop {
        Arc::make_mut(&mut routes[number]).matching.hosts.retain(|h| *h != host);
        // A route whose last host went must not become one for every host.
        gone[number] = routes[number].matching.hosts.is_empty();
    }
    let mut gone = gone.into_iter();
    routes.retain(|_| !gone.next().unwrap_or(false));
}

fn owner_key(route: &Route) -> (&str, OwnerKind) {
    (&route.origin.owner.id, route.origin.owner.kind)
}
