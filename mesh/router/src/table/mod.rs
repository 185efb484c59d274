//! Routes, compiled: which one takes a request.
//!
//! All routes stand in one order ([`Route::cmp_precedence`]), and the first that matches is the one. The table finds it
//! without asking those before it: exact hosts are hashed, the other forms of hosts stand in tries, and within a host
//! many paths stand in a trie. The cost follows the lengths of host and path and the number of routes that match both, not
//! the number of hosts. A lookup allocates nothing.

mod claims;
mod hosts;
mod trie;

use std::{collections::HashMap, fmt, sync::Arc};

pub(crate) use self::hosts::without_port;
use self::hosts::{Host, HostIndex};
use crate::{
    model::{CertificateRef, Headers, Listener, Match, PathMatch, Route},
    problem::RouteProblem,
};

/// All routes of a node.
#[derive(Clone, Debug, Default)]
pub struct Table {
    routes: Vec<Arc<Route>>,
    /// Whether a route asks for nothing but its host: then it need not be looked into.
    by_host_alone: Box<[bool]>,
    http: HostIndex,
    https: HostIndex,
    tls: HostIndex,
    certificates: HostIndex,
    tcp: HashMap<u16, u32>,
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
    /// but for those whose backends come together with others'.
    pub fn new<R: Into<Arc<Route>>>(routes: impl IntoIterator<Item = R>) -> (Self, Vec<RouteProblem>) {
        let routes: Vec<Arc<Route>> = routes.into_iter().map(Into::into).collect();
        let mut problems = Vec::new();
        let mut order: Vec<(_, usize)> = routes.iter().zip(0..).map(|(route, number)| (route.rank(), number)).collect();
        order.sort_unstable();
        let routes = order.into_iter().map(|(_, number)| Arc::clone(&routes[number])).collect();
        let mut routes = claims::settle(routes, &mut problems);
        claims::settle_tls(&mut routes, &mut problems);
        problems.sort();
        (Self::compile(routes), problems)
    }

    fn compile(routes: Vec<Arc<Route>>) -> Self {
        let index = |wanted: &dyn Fn(&Route) -> bool| {
            let numbers = (0u32..).zip(&routes).filter(|(_, route)| wanted(route)).map(|(number, _)| number);
            HostIndex::new(numbers, |number| &routes[number as usize].matching)
        };
        let http = index(&|route| matches!(route.listener, Listener::Http | Listener::Any));
        let https = index(&|route| matches!(route.listener, Listener::Https | Listener::Any));
        let tls = index(&|route| route.listener == Listener::Tls);
        let certificates = index(&|route| route.certificate.is_some());
        let mut tcp = HashMap::new();
        for (number, route) in (0u32..).zip(&routes).filter(|(_, route)| route.listener == Listener::Tcp) {
            if let Some(port) = route.matching.port {
                tcp.entry(port).or_insert(number);
            }
        }
        let by_host_alone = routes.iter().map(|route| route.matching.is_host_alone()).collect();
        Self { routes, by_host_alone, http, https, tls, certificates, tcp }
    }

    /// All routes, in order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    fn route(&self, number: u32) -> Option<&Arc<Route>> {
        self.routes.get(number as usize)
    }

    /// The route that takes a request.
    pub fn find(&self, request: &Request<'_>) -> Option<&Arc<Route>> {
        self.routes.get(self.position(request)?)
    }

    /// Where that route stands in [`Self::routes`], for who keeps something of his own for each.
    pub fn position(&self, request: &Request<'_>) -> Option<usize> {
        let index = if request.tls { &self.https } else { &self.http };
        let found = index.first(&Host::new(request.host), request.path, |number| {
            self.by_host_alone.get(number as usize) == Some(&true)
                || self.route(number).is_some_and(|route| route.matching.beyond_host(request).is_none())
        });
        found.map(|number| number as usize)
    }

    /// Where a TLS connection with this name in its hello goes unopened; `None` if it is to be opened here, or nobody's.
    pub fn find_tls(&self, name: Option<&str>, port: u16) -> Option<&Arc<Route>> {
        self.routes.get(self.position_tls(name, port)?)
    }

    /// As [`Self::position`].
    pub fn position_tls(&self, name: Option<&str>, port: u16) -> Option<usize> {
        let found = self.tls.first(&Host::new(name.unwrap_or_default()), "", |number| {
            self.route(number).is_some_and(|route| route.matching.port.is_none_or(|p| p == port))
        });
        found.map(|number| number as usize)
    }

    /// Where a connection to a port goes, whatever is in it.
    pub fn find_tcp(&self, port: u16) -> Option<&Arc<Route>> {
        self.routes.get(self.position_tcp(port)?)
    }

    /// As [`Self::position`].
    pub fn position_tcp(&self, port: u16) -> Option<usize> {
        self.tcp.get(&port).map(|number| *number as usize)
    }

    /// What to show a client that asks for this name.
    pub fn certificate(&self, name: Option<&str>) -> Option<&CertificateRef> {
        let found = self.certificates.first(&Host::new(name.unwrap_or_default()), "", |_| true);
        self.route(found?)?.certificate.as_ref()
    }

    /// What each route says to a request, in order. For people: this asks every route.
    pub fn explain<'t>(&'t self, request: &Request<'_>) -> impl Iterator<Item = (&'t Arc<Route>, Verdict)> {
        let chosen = self.find(request).map(Arc::as_ptr);
        let (tls, host) = (request.tls, Host::new(request.host));
        let verdicts: Vec<Verdict> = self
            .routes
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
                    None if chosen == Some(Arc::as_ptr(route)) => Verdict::Chosen,
                    None => Verdict::After,
                }
            })
            .collect();
        self.routes.iter().zip(verdicts)
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
