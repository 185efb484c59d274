//! An HTTP request: which route takes it, what is done to it, and who answers.

#[cfg(test)]
mod tests;

use std::{fmt, time::SystemTime};

use swarmesh_model::{NetworkId, TaskId};
use swarmesh_plan::{Backend, BackendState};
use swarmesh_proxy::tls::{CertificateFault, CertificateProblem, ShownFor};
use swarmesh_router::{
    Request, Route,
    model::{Action, BackendMode, BackendSet, Filter, Member, Target, Tasks, Upstream},
    table::{Condition, Verdict as Tried},
};

use super::{
    OtherRoute, Story, Verdict, View,
    backends::{Asked, choice, left_out, names},
    percent_decode, percent_encode,
};
use crate::view::{
    endpoints::backends,
    routes::{dialect_name, words},
};

type Outcome = (Verdict, String);

/// As many of the routes that lost as a person reads.
const MOST_OTHERS: usize = 100;

/// `https://app.example.com:8443/x?method=POST&header=X-Version:2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    pub tls: bool,
    /// As in the `Host` header, with the port if one was said.
    pub authority: String,
    pub port: Option<u16>,
    /// Without a query, by which no route is chosen.
    pub path: String,
    pub method: String,
    pub headers: Vec<(String, String)>,
}

impl Asking {
    /// What stands behind `http://` or `https://`.
    pub(super) fn parse(tls: bool, rest: &str) -> Result<Self, &'static str> {
        let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, query)| (place, query));
        let (authority, path) = place.find('/').map_or((place, "/"), |at| place.split_at(at));
        if authority.is_empty() || authority.contains(['@', ' ']) {
            return Err("after the scheme comes HOST[:PORT][/PATH]");
        }
        let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
        let port = match after_host.rsplit_once(':') {
            None => None,
            Some((_, port)) => Some(port.parse().ok().filter(|p| *p > 0).ok_or("behind the host's colon comes a port")?),
        };
        let mut asking =
            Self { tls, authority: authority.to_owned(), port, path: path.to_owned(), method: "GET".to_owned(), headers: Vec::new() };
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let decoded = |text: &str| percent_decode(text).filter(|t| !t.is_empty());
            match pair.split_once('=') {
                Some(("method", word)) => asking.method = decoded(word).ok_or("the method is missing")?,
                Some(("header", line)) => {
                    let line = decoded(line).ok_or("a header is missing")?;
                    let (name, value) = line.split_once(':').ok_or("a header is NAME:VALUE")?;
                    asking.headers.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                _ => return Err("only method=METHOD and header=NAME:VALUE may follow the question mark: a query decides nothing"),
            }
        }
        Ok(asking)
    }
}

impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path)?;
        let method = (self.method != "GET").then(|| format!("method={}", percent_encode(&self.method)));
        let headers = self.headers.iter().map(|(name, value)| format!("header={}:{}", percent_encode(name), percent_encode(value)));
        let options: Vec<String> = method.into_iter().chain(headers).collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

pub(super) fn explain(view: &View, story: &mut Story, asking: &Asking) -> Outcome {
    let (flag, addresses) = if asking.tls { ("--https", &view.listeners.https) } else { ("--http", &view.listeners.http) };
    let port = asking.port.or(addresses.first().map(std::net::SocketAddr::port)).unwrap_or(if asking.tls { 443 } else { 80 });
    let listens = addresses.iter().any(|address| address.port() == port);
    if listens {
        story.hop("listener", format!("this node takes such requests on port {port}"));
    } else {
        let why = if addresses.is_empty() { format!("the agent runs with {flag} off") } else { format!("no {flag} has port {port}") };
        story.hop("listener", format!("{why}: this node takes no such request; what follows is where it would go"));
        story.missing(why);
    }
    let (verdict, summary) = routed(view, story, asking, port);
    if listens { (verdict, summary) } else { (Verdict::NotOurs, format!("not taken here; where it would be: {summary}")) }
}

fn routed(view: &View, story: &mut Story, asking: &Asking, port: u16) -> Outcome {
    let table = &view.compiled().table;
    let name = asking.authority.rsplit_once(':').filter(|_| asking.port.is_some()).map_or(asking.authority.as_str(), |(name, _)| name);
    if let Some(route) = table.find_tcp(port) {
        story.hop("route", format!("{}; whatever comes by it is passed on unopened", told(route)));
        return answered(view, story, route, asking);
    }
    if asking.tls {
        if let Some(route) = table.find_tls(Some(name), port) {
            story.hop("route", format!("{}; the connection is passed on unopened, by the name in its hello", told(route)));
            return answered(view, story, route, asking);
        }
        if !has_certificate(view, story, name) {
            return (Verdict::Refused, format!("no certificate for {name}: the connection is dropped"));
        }
    }
    let headers: Vec<(&str, &str)> = asking.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let headers = Sent(&headers);
    let request = Request { tls: asking.tls, port, host: &asking.authority, method: &asking.method, path: &asking.path, headers: &headers };
    let others: Vec<OtherRoute> = table.explain(&request).filter_map(|(route, tried)| other(route, tried)).collect();
    let chosen = table.find(&request);
    let hop = match chosen {
        Some(route) => story.hop("route", told(route)),
        None => story.hop("route", "no route takes it"),
    };
    hop.routes = others.into_iter().take(MOST_OTHERS).collect();
    let Some(route) = chosen else {
        return (Verdict::Refused, format!("no route takes it: {}", swarmesh_router::model::NO_ROUTE));
    };
    for filter in &route.filters {
        story.hop("filter", words::filter(filter));
        if let Some(outcome) = ends_at(filter, asking) {
            return outcome;
        }
    }
    answered(view, story, route, asking)
}

/// Tells which certificate a client is shown that asks for a name. A route's that cannot be used gives way to one that was put, and
/// that to the node's own.
fn has_certificate(view: &View, story: &mut Story, name: &str) -> bool {
    let certificates = view.proxy.as_ref().map(|proxy| &proxy.certificates);
    let named = view.compiled().table.certificate(Some(name));
    let problems = certificates.map(|c| c.problems(SystemTime::now())).unwrap_or_default();
    let counts_now = |p: &&CertificateProblem| !matches!(p.fault, CertificateFault::ExpiresSoon { .. });
    for problem in problems.iter().filter(|p| Some(&p.certificate) == named).filter(counts_now) {
        story.missing(format!("{:?}: {}", problem.certificate, problem.fault));
    }
    let shown = certificates.and_then(|certificates| certificates.choose(Some(name))).map(|(reason, _)| reason);
    match (named, shown) {
        (Some(named), Some(ShownFor::Route)) => story.hop("certificate", format!("TLS ends here, with {named:?}")),
        // The routes as such, without a proxy that has read any file.
        (Some(named), _) if certificates.is_none() => story.hop("certificate", format!("TLS would end here, with {named:?}")),
        (_, Some(ShownFor::Name(given))) => {
            story.hop("certificate", format!("TLS ends here, with {given}, which was put and is for this name"))
        }
        (_, Some(_)) => story.hop("certificate", "TLS ends here, with the node's own certificate"),
        (Some(named), None) => {
            story.hop("certificate", format!("{named:?} cannot be used, and the node has none of its own"));
            return false;
        }
        (None, None) => {
            story.hop(
                "certificate",
                "no route brings a certificate for this name, none passes it on unopened, and the node has none of its own",
            );
            story.missing(format!("a certificate for {name}"));
            return false;
        }
    };
    true
}

struct Sent<'a>(&'a [(&'a str, &'a str)]);

impl swarmesh_router::model::Headers for Sent<'_> {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.any(name, test)
    }
}

fn told(route: &Route) -> String {
    let origin = &route.origin;
    format!("{} of {} ({}) takes {}", origin.label, origin.owner, origin.dialect, words::matching(&route.matching))
}

/// A route of the same host that does not get the request.
fn other(route: &Route, tried: Tried) -> Option<OtherRoute> {
    let matching = &route.matching;
    let why = match tried {
        Tried::Chosen | Tried::Fails(Condition::Host) => return None,
        Tried::After => "matches too, and comes after it".to_owned(),
        Tried::Fails(Condition::Listener) => format!("is for {}", words::listener(route.listener)),
        Tried::Fails(Condition::Port) => format!("is for port {}", matching.port.unwrap_or_default()),
        Tried::Fails(Condition::Path) => "has other paths".to_owned(),
        Tried::Fails(Condition::Method) => format!("is for method {}", matching.methods.join(",")),
        Tried::Fails(Condition::Header) => "asks for other headers".to_owned(),
    };
    Some(OtherRoute {
        owner: route.origin.owner.to_string(),
        label: route.origin.label.clone(),
        dialect: dialect_name(route.origin.dialect).to_owned(),
        takes: words::matching(matching),
        why,
    })
}

/// What becomes of a request that goes no further than this filter, as far as that is decided by what is known of it.
fn ends_at(filter: &Filter, asking: &Asking) -> Option<Outcome> {
    let method = || asking.method.as_str();
    match filter {
        Filter::HttpsOnly(code) if !asking.tls => Some((Verdict::Answered, format!("redirected to https: {}", code.code()))),
        Filter::RefusePlain if !asking.tls => Some((Verdict::Refused, "refused without TLS: 403".to_owned())),
        Filter::AllowMethods(methods) if !methods.iter().any(|m| m == method()) => {
            Some((Verdict::Refused, format!("method {} is refused: 403", method())))
        }
        Filter::DenyMethods(methods) if methods.iter().any(|m| m == method()) => {
            Some((Verdict::Refused, format!("method {} is refused: 403", method())))
        }
        Filter::AppendSlash(slash) => slash.location(&asking.path).map(|path| (Verdict::Answered, format!("redirected to {path}: 301"))),
        _ => None,
    }
}

fn answered(view: &View, story: &mut Story, route: &Route, asking: &Asking) -> Outcome {
    match &route.action {
        Action::Forward(set) => forwarded(view, story, set),
        Action::Redirect(redirect) => {
            let to = redirect.location(&asking.authority, &asking.path);
            story.hop("answer", words::action(view, &route.action));
            (Verdict::Answered, format!("redirected to {to}: {}", redirect.code.code()))
        }
        Action::Status(code) => {
            story.hop("answer", words::action(view, &route.action));
            (Verdict::Answered, format!("answered here: {code}"))
        }
    }
}

fn forwarded(view: &View, story: &mut Story, set: &BackendSet) -> Outcome {
    let plan = &view.plan.routes;
    let (mut reached, mut out_of_reach, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
    let balance = words::balance(set);
    for member in &set.members {
        let what = words::member(view, member);
        if member.weight == 0 {
            story.hop("backend", format!("{what}: gets nothing"));
            continue;
        }
        let network = plan.network_of(&member.target);
        let foothold = network.map(|network| (network, plan.footholds.get(network)));
        let usable = one_member(view, story, member, &what, &balance, network);
        let from = match foothold {
            Some((network, None)) => {
                let network = words::network_name(view, network);
                story.hop("foothold", format!("this node has no namespace in network {network}"));
                story.missing(format!("a task on this node in network {network}, from whose namespace it could be reached"));
                out_of_reach.extend(usable);
                continue;
            }
            Some((network, Some(sandbox))) => {
                format!("namespace {sandbox}, which is in network {}", words::network_name(view, network))
            }
            None => "the node's own namespace".to_owned(),
        };
        story.hop("foothold", format!("connections are opened in {from}"));
        if usable.is_empty() && !matches!(member.target, Target::Service { .. } | Target::Container { .. }) {
            elsewhere.extend(BackendSet::of(member.clone()).upstreams(plan).into_iter().map(|u| match u.upstream {
                Upstream::Host { name, port } => format!("{name}:{port}"),
                Upstream::Published { address, port, .. } | Upstream::Vip { address, port, .. } | Upstream::Task { address, port, .. } => {
                    super::socket(address, port)
                }
            }));
        }
        reached.extend(usable);
    }
    if reached.is_empty() && elsewhere.is_empty() {
        let code = swarmesh_router::model::NO_ROUTE;
        if !out_of_reach.is_empty() {
            let tasks = names(view, out_of_reach.into_iter());
            return (Verdict::Refused, format!("cannot be sent from this node: {code}; elsewhere it would reach {tasks}"));
        }
        return (Verdict::Refused, format!("nobody can answer: {code}"));
    }
    let tasks = (!reached.is_empty()).then(|| names(view, reached.into_iter()));
    (Verdict::Delivered, format!("reaches {}", tasks.into_iter().chain(elsewhere).collect::<Vec<_>>().join(", ")))
}

/// One service, container or host of a set; returns its usable tasks.
fn one_member(
    view: &View,
    story: &mut Story,
    member: &Member,
    what: &str,
    balance: &str,
    network: Option<&NetworkId>,
) -> Vec<(TaskId, std::net::IpAddr)> {
    let plan = &view.plan.routes;
    let id = match &member.target {
        Target::Host { .. } => {
            story.hop("backend", format!("{what}: whoever that name leads to"));
            return Vec::new();
        }
        Target::Published { container } => {
            let is_there = plan.published(container).is_some();
            story.hop("backend", format!("{what}: by the port that the container publishes"));
            if !is_there {
                story.missing(format!("{what} does not take connections"));
            }
            return Vec::new();
        }
        Target::Service { id, .. } | Target::Container { id, .. } => id.as_str(),
    };
    let usable = plan.usable(id, network);
    let routed = plan.services.get(id).and_then(|s| s.in_network(network));
    let mut all: Vec<Backend> = routed.into_iter().flat_map(|n| n.backends.iter().flat_map(|f| f.iter())).cloned().collect();
    if plan.containers.contains_key(id) {
        all.extend(usable.iter().map(|(task, address)| Backend { address: *address, task: task.clone(), state: BackendState::Ready }));
    }
    let ready = all.iter().any(|b| b.state == BackendState::Ready);
    let vip = if member.mode == BackendMode::Vip { plan.vip(id, network) } else { None };
    let how = match (usable.len(), vip) {
        (0, _) => "nobody is there".to_owned(),
        (count, Some(vip)) => format!("its virtual IP {vip}; whoever balances that takes {}", choice(count, ready)),
        (count, None) => format!("{}, {balance}", choice(count, ready)),
    };
    let hop = story.hop("backend", format!("{what}: {how}"));
    hop.backends = backends(view, &all);
    if let (Some(service), Some(network)) = (view.snapshot.services.get(id), network) {
        let subnets = view.snapshot.networks.get(network).map(|n| n.subnets.as_slice()).unwrap_or_default();
        let v6 = !subnets.is_empty() && subnets.iter().all(|s| s.subnet.addr().is_ipv6());
        hop.left_out = left_out(view, service, Asked { network, v6, local_only: false }, &all);
    }
    if usable.is_empty() {
        story.missing(format!("no usable task of {}", words::target(view, &member.target)));
    }
    usable
}
