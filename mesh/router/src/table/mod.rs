//! Routes, compiled: which one takes a request.
//!
//! All routes stand in one order ([`Route::cmp_precedence`]), and the first that matches is the one. The table finds it
//! without asking those before it: exact hosts are hashed, the other forms of hosts stand in tries, and within a host
//! many paths stand in a trie. The cost follows the lengths of host and path and the number of routes that match both, not
//! the number of hosts. A lookup allocates nothing.

mod book;
mod claims;
mod hosts;
mod slots;
mod trie;

use std::{cmp::Ordering, fmt, sync::Arc};

use swarmesh_model::SharedMap;

pub(crate) use self::hosts::without_port;
use self::hosts::{Entry, Host, HostIndex, Order};
pub use self::{
    book::{Book, Change},
    slots::Slots,
};
use crate::{
    model::{CertificateRef, Headers, Listener, Match, PathMatch, Route},
    problem::RouteProblem,
};

/// All routes of a node. Copies share what they have in common, and cost little.
#[derive(Clone, Debug, Default)]
pub struct Table {
    places: Slots<Placed>,
    http: HostIndex,
    https: HostIndex,
    tls: HostIndex,
    certificates: HostIndex,
    tcp: SharedMap<u16, Arc<[Entry]>>,
}

/// A route that is served.
#[derive(Clone, Debug)]
struct Placed {
    entry: Entry,
    /// As it was asked for, which decides its place in the order.
    asked: Arc<Route>,
    /// What is left of that after others have had theirs.
    served: Arc<Route>,
}

impl Order for Slots<Placed> {
    fn compare(&self, a: u32, b: u32) -> Ordering {
        match (self.get(a as usize), self.get(b as usize)) {
            (Some(first), Some(second)) => first.asked.cmp_precedence(&second.asked).then(a.cmp(&b)),
            _ => a.cmp(&b),
        }
    }
}

/// What is known of a request when it is to be routed.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// It came in TLS that ended here.
    pub tls: bool,
    /// The port that the client connected to.
    pub port: u16,
    /// `Host` or `:authority`, as sent.
    pub host: &'a str,
    pub method: &'a str,
    /// As sent, without the query.
    pub path: &'a str,
    pub headers: &'a dyn Headers,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{} {scheme}://{}{} at {}", self.method, self.host, self.path, self.port)
    }
}

/// A condition that a request does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Listener,
    Port,
    Host,
    Path,
    Method,
    Header,
}

/// Why a route takes a request or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Chosen,
    /// It matches, and another comes before it.
    After,
    Fails(Condition),
}

impl Table {
    /// Compiles routes. What cannot be served for another's claim is left out and told. Routes that are shared are not copied,
    /// but for those whose backends come together with others'. Who has routes that change keeps a [`Book`].
    pub fn new<R: Into<Arc<Route>>>(routes: impl IntoIterator<Item = R>) -> (Self, Vec<RouteProblem>) {
        let mut book = Book::default();
        book.change([((), routes.into_iter().map(Into::into).collect())]);
        (book.table().clone(), book.problems())
    }

    /// All routes, in order. For people: this sorts them.
    pub fn routes(&self) -> Vec<&Arc<Route>> {
        self.placed().into_iter().map(|placed| &placed.served).collect()
    }

    /// What one table has and another has not, in pairs by position: `None` is nothing. What both have in common costs nothing.
    pub fn differences<'t>(&'t self, other: &'t Self) -> impl Iterator<Item = (Option<&'t Arc<Route>>, Option<&'t Arc<Route>>)> {
        let served = |placed: Option<&'t Placed>| placed.map(|placed| &placed.served);
        let pairs = self.places.unshared(&other.places).map(move |(here, there)| (served(here), served(there)));
        pairs.filter(|(here, there)| match (here, there) {
            (Some(here), Some(there)) => !Arc::ptr_eq(here, there),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        })
    }

    fn placed(&self) -> Vec<&Placed> {
        let mut all: Vec<&Placed> = self.places.values().collect();
        all.sort_unstable_by(|a, b| a.entry.rank.cmp(&b.entry.rank).then_with(|| self.places.compare(a.entry.slot, b.entry.slot)));
        all
    }

    /// The route at a [`Self::position`].
    pub fn at(&self, position: usize) -> Option<&Arc<Route>> {
        self.places.get(position).map(|placed| &placed.served)
    }

    fn route(&self, slot: u32) -> Option<&Route> {
        self.at(slot as usize).map(|route| &**route)
    }

    /// The route that takes a request.
    pub fn find(&self, request: &Request<'_>) -> Option<&Arc<Route>> {
        self.at(self.position(request)?)
    }

    /// A number that is that route's while it stays as it is, for who keeps something of his own for each. It says nothing of order.
    pub fn position(&self, request: &Request<'_>) -> Option<usize> {
        let index = if request.tls { &self.https } else { &self.http };
        let found = index.first(&Host::new(request.host), request.path, &self.places, |entry| {
            entry.by_host_alone || self.route(entry.slot).is_some_and(|route| route.matching.beyond_host(request).is_none())
        });
        found.map(|number| number as usize)
    }

    /// Where a TLS connection with this name in its hello goes unopened; `None` if it is to be opened here, or nobody's.
    pub fn find_tls(&self, name: Option<&str>, port: u16) -> Option<&Arc<Route>> {
        self.at(self.position_tls(name, port)?)
    }

    /// As [`Self::position`].
    pub fn position_tls(&self, name: Option<&str>, port: u16) -> Option<usize> {
        let found = self.tls.first(&Host::new(name.unwrap_or_default()), "", &self.places, |entry| {
            self.route(entry.slot).is_some_and(|route| route.matching.port.is_none_or(|p| p == port))
        });
        found.map(|number| number as usize)
    }

    /// Where a connection to a port goes, whatever is in it.
    pub fn find_tcp(&self, port: u16) -> Option<&Arc<Route>> {
        self.at(self.position_tcp(port)?)
    }

    /// As [`Self::position`].
    pub fn position_tcp(&self, port: u16) -> Option<usize> {
        self.tcp.get(&port)?.first().map(|entry| entry.slot as usize)
    }

    /// What to show a client that asks for this name.
    pub fn certificate(&self, name: Option<&str>) -> Option<&CertificateRef> {
        let found = self.certificates.first(&Host::new(name.unwrap_or_default()), "", &self.places, |_| true);
        self.route(found?)?.certificate.as_ref()
    }

    /// What each route says to a request, in order. For people: this asks every route.
    pub fn explain<'t>(&'t self, request: &Request<'_>) -> impl Iterator<Item = (&'t Arc<Route>, Verdict)> {
        let chosen = self.find(request).map(Arc::as_ptr);
        let (tls, host) = (request.tls, Host::new(request.host));
        let routes = self.routes();
        let verdicts: Vec<Verdict> = routes
            .iter()
            .map(|route| {
                // The host first: who has another is no candidate, by whatever door.
                let hosts = &route.matching.hosts;
                if !hosts.is_empty() && !hosts.iter().any(|h| host.as_str().is_some_and(|host| h.matches(host))) {
                    return Verdict::Fails(Condition::Host);
                }
                let listener = match route.listener {
                    Listener::Any => true,
                    Listener::Http => !tls,
                    Listener::Https => tls,
                    Listener::Tls | Listener::Tcp => false,
                };
                if !listener {
                    return Verdict::Fails(Condition::Listener);
                }
                match route.matching.beyond_host(request) {
                    Some(condition) => Verdict::Fails(condition),
                    None if chosen == Some(Arc::as_ptr(*route)) => Verdict::Chosen,
                    None => Verdict::After,
                }
            })
            .collect();
        routes.into_iter().zip(verdicts)
    }
}

impl Match {
    fn is_host_alone(&self) -> bool {
        let Self { hosts: _, paths, not_paths, headers, methods, port } = self;
        paths.is_empty() && not_paths.is_empty() && headers.is_empty() && methods.is_empty() && port.is_none()
    }

    /// The first condition that a request of the right host does not meet.
    fn beyond_host(&self, request: &Request<'_>) -> Option<Condition> {
        let matches = |path: &PathMatch| path.matches(request.path);
        if self.port.is_some_and(|port| port != request.port) {
            Some(Condition::Port)
        } else if !self.paths.is_empty() && !self.paths.iter().any(matches) || self.not_paths.iter().any(matches) {
            Some(Condition::Path)
        } else if !self.methods.is_empty() && !self.methods.iter().any(|m| m == request.method) {
            Some(Condition::Method)
        } else if !self.headers.iter().all(|header| header.holds(request.headers)) {
            Some(Condition::Header)
        } else {
            None
        }
    }
}
