//! Services to read labels of, and routes in one line each.
#![allow(dead_code, clippy::allow_attributes, reason = "each dialect's tests use what they need")]

use std::{collections::BTreeMap, fmt::Write as _};

use swarmesh_model::{Network, Port, Service, ServiceNetwork, Snapshot};
use swarmesh_router::{
    Effect, Request, Route, RouteProblem, Table,
    dialect::{self, Outcome, Settings, Workload},
    model::{
        Action, BackendProtocol, BackendSet, Filter, HeaderChange, HeaderChangeKind, HostMatch, Listener, PathKind, Piece, Precedence,
        RedirectTarget, Rewrite, Share, Stickiness, Target, Template, TextMatch, Variable, When,
    },
};

/// A swarm of services.
#[derive(Default)]
pub(crate) struct Swarm {
    pub(crate) snapshot: Snapshot,
    pub(crate) settings: Settings,
}

impl Swarm {
    pub(crate) fn network(mut self, name: &str, labels: &[(&str, &str)]) -> Self {
        self.snapshot.insert_network(Network {
            id: format!("n-{name}").into(),
            name: name.to_owned(),
            driver: "overlay".to_owned(),
            ingress: false,
            local: false,
            internal: false,
            attachable: false,
            subnets: vec![],
            mtu: None,
            labels: map(labels),
        });
        self
    }

    /// A service on networks, with published ports.
    pub(crate) fn service(mut self, name: &str, networks: &[&str], ports: &[u16], labels: &[(&str, &str)]) -> Self {
        self.snapshot.insert_service(Service {
            id: format!("id-{name}").into(),
            name: name.to_owned(),
            labels: map(labels),
            endpoint_mode: Default::default(),
            ports: ports
                .iter()
                .map(|p| Port {
                    name: None,
                    protocol: Default::default(),
                    target_port: *p,
                    published_port: None,
                    publish_mode: Default::default(),
                })
                .collect(),
            vips: vec![],
            networks: networks.iter().map(|n| ServiceNetwork { network: format!("n-{n}").into(), aliases: vec![] }).collect(),
        });
        self
    }

    pub(crate) fn read(&self) -> Outcome {
        let mut all = Outcome::default();
        for service in self.snapshot.services.values() {
            let one = dialect::routes(&Workload::service(service, &self.snapshot), &self.settings);
            all.routes.extend(one.routes);
            all.problems.extend(one.problems);
        }
        all
    }

    pub(crate) fn table(&self) -> (Table, Vec<RouteProblem>) {
        let outcome = self.read();
        let (table, claims) = Table::new(outcome.routes);
        (table, outcome.problems.into_iter().chain(claims).collect())
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Where a GET goes, as [`show`] has it.
pub(crate) fn get(table: &Table, url: &str) -> String {
    ask(table, "GET", url, &[])
}

pub(crate) fn ask(table: &Table, method: &str, url: &str, headers: &[(&'static str, &'static str); 0]) -> String {
    with_headers(table, method, url, headers)
}

pub(crate) fn with_headers<const N: usize>(table: &Table, method: &str, url: &str, headers: &[(&str, &str); N]) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let tls = scheme == "https";
    let port = host.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or(if tls { 443 } else { 80 });
    let path = if path.is_empty() { "/" } else { path };
    let request = Request { tls, port, host, method, path, headers };
    table.find(&request).map_or_else(|| "none".to_owned(), |route| action(&route.action))
}

pub(crate) fn lines(outcome: &Outcome) -> Vec<String> {
    outcome.routes.iter().map(show).collect()
}

pub(crate) fn told(problems: &[RouteProblem]) -> Vec<String> {
    problems
        .iter()
        .map(|p| {
            let effect = match p.effect {
                Effect::NoRoute => "no route",
                Effect::Ignored => "ignored",
                Effect::Shadowed => "shadowed",
            };
            assert!(!p.reason.remedy().is_empty());
            format!("{}: {:?} {} ({effect})", p.label, p.value, p.reason)
        })
        .collect()
}

/// A route in one line: door, match, conditions, precedence, filters, action, certificate.
pub(crate) fn show(route: &Route) -> String {
    let mut out = match route.listener {
        Listener::Http => "http",
        Listener::Https => "https",
        Listener::Any => "any",
        Listener::Tls => "tls",
        Listener::Tcp => "tcp",
    }
    .to_owned();
    let m = &route.matching;
    let hosts: Vec<String> = m
        .hosts
        .iter()
        .map(|h| match h {
            HostMatch::Exact(t) => t.clone(),
            HostMatch::Suffix(t) => format!("?*{t}"),
            HostMatch::SuffixOrWhole(t) => format!("*{t}"),
            HostMatch::Prefix(t) => format!("{t}*"),
            HostMatch::Labels(t) => format!("*.{t}.*"),
        })
        .collect();
    let _ = write!(out, " {}", if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") });
    let paths = |list: &[swarmesh_router::model::PathMatch]| {
        let shown: Vec<String> = list
            .iter()
            .map(|p| {
                let text = match &p.kind {
                    PathKind::Exact(t) => format!("={t}"),
                    PathKind::Prefix(t) => t.clone(),
                    PathKind::Segments(t) => format!("{t}/"),
                    PathKind::Suffix(t) => format!("end {t}"),
                    PathKind::Contains(t) => format!("sub {t}"),
                    PathKind::Directory(t) => format!("dir {t}"),
                    PathKind::Regex(r) => format!("~{}", r.as_str()),
                };
                if p.ignore_case { format!("{text} -i") } else { text }
            })
            .collect();
        shown.join(",")
    };
    if !m.paths.is_empty() {
        let _ = write!(out, " {}", paths(&m.paths));
    }
    if !m.not_paths.is_empty() {
        let _ = write!(out, " not({})", paths(&m.not_paths));
    }
    if let Some(port) = m.port {
        let _ = write!(out, " at {port}");
    }
    if !m.methods.is_empty() {
        let _ = write!(out, " {}", m.methods.join("|"));
    }
    for header in &m.headers {
        let values: Vec<String> = header
            .values
            .iter()
            .map(|v| match v {
                TextMatch::Exact(t) => format!("={t}"),
                TextMatch::Contains(t) => format!("~{t}"),
                TextMatch::Regex(r) => format!("{r:?}"),
            })
            .collect();
        let _ = write!(out, " {}{{{}{}}}", if header.negate { "!" } else { "" }, header.name, values.join("|"));
    }
    match &route.precedence {
        Precedence::Specific { priority: 0 } => {}
        Precedence::Specific { priority } => {
            let _ = write!(out, " [{priority}]");
        }
        Precedence::Rest => out.push_str(" [rest]"),
        Precedence::Default => out.push_str(" [default]"),
        Precedence::Listed(order) => {
            let _ = write!(out, " [{:?} {} {}]", order.class, order.name, order.index);
        }
    }
    if let Share::Pool(pool) = &route.share {
        let _ = write!(out, " pool{}{}", if pool.name.is_empty() { "" } else { " " }, pool.name);
    }
    for f in &route.filters {
        let _ = write!(out, " | {}", filter(f));
    }
    let _ = write!(out, " -> {}", action(&route.action));
    if let Some(certificate) = &route.certificate {
        let _ = write!(out, " with {certificate:?}");
    }
    out
}

fn filter(f: &Filter) -> String {
    match f {
        Filter::HttpsOnly(code) => format!("https {}", code.code()),
        Filter::RefusePlain => "refuse plain".to_owned(),
        Filter::AllowMethods(m) => format!("allow {}", m.join(",")),
        Filter::DenyMethods(m) => format!("deny {}", m.join(",")),
        Filter::ClientCertificate => "client certificate".to_owned(),
        Filter::BasicAuth(auth) => {
            let users: Vec<String> = auth
                .users
                .iter()
                .map(|u| match &u.password {
                    Some(p) => format!("{}:{p:?}", u.name),
                    None => u.name.clone(),
                })
                .collect();
            let secret =
                auth.secret.as_ref().map_or(String::new(), |s| format!(" secret {s}{}", if auth.secret_hashed { " hashed" } else { "" }));
            format!("auth {} {}{secret}{}", auth.realm, users.join(","), if auth.consume { "" } else { " kept" })
        }
        Filter::GlobalAuth => "global auth".to_owned(),
        Filter::Forward(f) => {
            let mut parts = Vec::new();
            if f.forwarded_for {
                parts.push("for".to_owned());
            }
            if f.real_ip {
                parts.push("real-ip".to_owned());
            }
            if let Some(proto) = f.proto {
                parts.push(format!("proto {proto:?}"));
            }
            if f.port {
                parts.push("port".to_owned());
            }
            if f.request_id {
                parts.push("request-id".to_owned());
            }
            format!("forward {}", parts.join(" "))
        }
        Filter::Request(change) => format!("request {}", header_change(change)),
        Filter::Response(change) => format!("response {}", header_change(change)),
        Filter::Rewrite(Rewrite::Path { search, replace }) => format!("path {search:?} {replace:?}"),
        Filter::Rewrite(Rewrite::StripPrefix { root }) => format!("strip {root}"),
        Filter::Rewrite(Rewrite::RequestLine { search, replace }) => format!("line {search:?} {replace:?}"),
        Filter::AppendSlash(append) => format!("slash below {}", append.root),
        Filter::Compress(c) => format!("compress {:?} {}", c.algorithms, c.types.join(" ")),
        Filter::InfoHeaders => "info".to_owned(),
        Filter::StrictTransport { seconds, subdomains, preload } => format!("hsts {seconds} {subdomains} {preload}"),
    }
}

fn header_change(change: &HeaderChange) -> String {
    let when = match change.when {
        None => "",
        Some(When::Tls) => " if tls",
        Some(When::Plain) => " if plain",
    };
    match &change.change {
        HeaderChangeKind::Add(t) => format!("+{}: {}{when}", change.name, template(t)),
        HeaderChangeKind::Set(t) => format!("={}: {}{when}", change.name, template(t)),
        HeaderChangeKind::Delete => format!("-{}{when}", change.name),
    }
}

fn template(t: &Template) -> String {
    t.0.iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Variable(Variable::Header(name)) => format!("<header {name}>"),
            Piece::Variable(v) => format!("<{v:?}>"),
        })
        .collect()
}

pub(crate) fn action(a: &Action) -> String {
    match a {
        Action::Status(code) => code.to_string(),
        Action::Redirect(r) => {
            let to = match &r.to {
                RedirectTarget::Https => "https".to_owned(),
                RedirectTarget::Before(url) => format!("{url}…"),
                RedirectTarget::Exactly(url) => url.clone(),
            };
            format!("{} {to}", r.code.code())
        }
        Action::Forward(set) => backends(set),
    }
}

fn backends(set: &BackendSet) -> String {
    let members: Vec<String> = set
        .members
        .iter()
        .map(|m| {
            let target = match &m.target {
                Target::Service { id, network } => format!("{id}@{}", network.as_ref().map_or("-", |n| n.as_str())),
                Target::Container { id, network } => format!("container {id}@{network}"),
                Target::Published { container } => format!("published {container}"),
                Target::Host { name, .. } => format!("host {name}"),
            };
            let tls = match &m.tls {
                None => String::new(),
                Some(tls) => format!(
                    " tls{}{}",
                    if tls.verify { " verified" } else { "" },
                    tls.name.as_ref().map_or(String::new(), |n| format!(" as {n}"))
                ),
            };
            let protocol = match m.protocol {
                BackendProtocol::Http1 => "",
                BackendProtocol::H2c => " h2c",
                BackendProtocol::H2 => " h2",
            };
            let weight = if m.weight == 1 { String::new() } else { format!(" x{}", m.weight) };
            let mode = format!("{:?}", m.mode).to_lowercase();
            format!("{target}:{} {mode}{weight}{protocol}{tls}", m.port)
        })
        .collect();
    let balance = format!("{:?}", set.balance);
    let sticky = match &set.stickiness {
        None => String::new(),
        Some(Stickiness::LearnCookie(name)) => format!(" learn {name}"),
        Some(Stickiness::HashCookie(name)) => format!(" hash {name}"),
        Some(Stickiness::InsertCookie(name)) => format!(" insert {name}"),
        Some(Stickiness::TlsSession) => " tls session".to_owned(),
    };
    format!("{}{}{sticky}", members.join(" + "), if balance == "RoundRobin" { String::new() } else { format!(" {balance}") })
}
