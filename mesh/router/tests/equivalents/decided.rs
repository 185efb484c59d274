//! From labels to the table that they make, and in words what that decides about a request.

use std::collections::{BTreeMap, BTreeSet};

use swarmesh_model::NetworkId;
use swarmesh_router::{
    Request, Route, Table,
    dialect::{Outcome, Settings, Workload, WorkloadNetwork, routes},
    model::{
        Action, BackendMode, CertificateRef,
        Dialect::{self, FlowProxy as Df, Hrm, Interlock as Lb, Interlock1 as Old, Swarmesh as Own},
        Filter, ForwardedProto, HeaderChange, HeaderChangeKind, Owner, OwnerKind, Piece, RedirectTarget, Stickiness, Target, When,
    },
};

use crate::{
    common::{self, Swarm},
    rows::Labels,
};

pub(crate) fn table(dialect: Dialect, services: &[Labels<'_>], row: &str) -> Table {
    let mut all = Outcome::default();
    for (number, keys) in services.iter().enumerate() {
        let name = if number == 0 { "web".to_owned() } else { format!("web-{number}") };
        let outcome = if dialect == Old { container(&name, keys) } else { service(dialect, &name, keys) };
        all.routes.extend(outcome.routes);
        all.problems.extend(outcome.problems);
    }
    assert_eq!(common::told(&all.problems), [] as [&str; 0], "{row}: {dialect}");
    let (table, claims) = Table::new(all.routes);
    let claims: Vec<_> = claims.iter().filter(|c| !matches!(c.reason, swarmesh_router::Reason::OptionsOfFirst { .. })).collect();
    assert!(claims.is_empty(), "{row}: {dialect}: {claims:?}");
    table
}

fn service(dialect: Dialect, name: &str, keys: Labels<'_>) -> Outcome {
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in keys {
        let label = match dialect {
            Hrm => format!("com.docker.ucp.mesh.http.{key}"),
            Lb => format!("com.docker.lb.{key}"),
            Df => format!("com.df.{key}"),
            _ if key.starts_with("s.") => format!("swarmesh.http.{key}"),
            _ => format!("swarmesh.http.r.{key}"),
        };
        labels.insert(label, (*value).to_owned());
    }
    if dialect == Df {
        labels.insert("com.df.notify".to_owned(), "true".to_owned());
    }
    // Ours tells backends of clients unless it is told not to; a route that is not opened cannot.
    let is_open = !keys.iter().any(|(key, value)| *key == "listen" && matches!(*value, "tls" | "tcp"));
    if dialect == Own && is_open {
        labels.entry("swarmesh.http.r.forwarded".to_owned()).or_insert_with(|| "none".to_owned());
    }
    let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    Swarm::default().network("net", &[("com.docker.ucp.mesh.http", "true")]).service(name, &["net"], &[], &labels).read()
}

fn container(name: &str, keys: Labels<'_>) -> Outcome {
    let mut labels: BTreeMap<String, String> = keys.iter().map(|(k, v)| (format!("interlock.{k}"), (*v).to_owned())).collect();
    labels.insert("interlock.network".to_owned(), "net".to_owned());
    let (network, none) = (NetworkId::from("n-net"), BTreeMap::new());
    let workload = Workload {
        owner: Owner { id: format!("id-{name}"), name: name.to_owned(), kind: OwnerKind::Container },
        labels: &labels,
        ports: &[],
        networks: vec![WorkloadNetwork { id: &network, name: "net", labels: &none }],
    };
    routes(&workload, &Settings::default())
}

/// `a` and `b c` of `a by b c`: what belongs together is one part.
pub(crate) fn parts(text: &str) -> Vec<String> {
    const BEGIN: [&str; 13] = [
        "to",
        "by",
        "told",
        "info",
        "node-users",
        "sticky",
        "balance",
        "changes",
        "users",
        "client-certificate",
        "tls",
        "tls-verified",
        "compress",
    ];
    let mut out: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match out.last_mut() {
            // `sticky tls-session` is a value, and no part begins so.
            Some(last) if !BEGIN.contains(&word) => *last = format!("{last} {word}"),
            _ => out.push(word.to_owned()),
        }
    }
    out
}

pub(crate) fn without(decided: &[String], standing: &[&str]) -> Vec<String> {
    // A container has no VIP, whoever asks for one.
    let replaced = |part: &String| standing.contains(&"by task") && part.as_str() == "by vip";
    decided.iter().filter(|part| !standing.contains(&part.as_str()) && !replaced(part)).cloned().collect()
}

pub(crate) fn decide(table: &Table, ask: &str) -> Vec<String> {
    let mut words = ask.split(' ');
    let (what, of) = (words.next().unwrap(), words.next().unwrap());
    let headers: Vec<(&str, &str)> = match what {
        "tls" => {
            let name = (of != "-").then_some(of);
            let port = words.next().unwrap().parse().unwrap();
            return table.find_tls(name, port).map_or_else(none, |route| forwarded_to(route, None));
        }
        "tcp" => return table.find_tcp(of.parse().unwrap()).map_or_else(none, |route| forwarded_to(route, None)),
        "certificate" => return table.certificate(Some(of)).map_or_else(none, |reference| vec![certificate(reference)]),
        _ => words.map(|header| header.split_once(':').unwrap()).collect(),
    };
    let (scheme, rest) = of.split_once("://").unwrap();
    let (host, target) = rest.split_at(rest.find('/').unwrap());
    let path = target.split('?').next().unwrap();
    let tls = scheme == "https";
    let port = host.rsplit_once(':').map_or(if tls { 443 } else { 80 }, |(_, port)| port.parse().unwrap());
    struct Sent<'a>(&'a [(&'a str, &'a str)]);
    impl swarmesh_router::model::Headers for Sent<'_> {
        fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            self.0.any(name, test)
        }
    }
    let headers = Sent(&headers);
    let request = Request { tls, port, host, method: what, path, headers: &headers };
    table.find(&request).map_or_else(none, |route| through(route, &request, target))
}

fn none() -> Vec<String> {
    vec!["none".to_owned()]
}

/// What a request meets on its way, in the order in which it does.
fn through(route: &Route, request: &Request<'_>, target: &str) -> Vec<String> {
    let mut path = request.path.to_owned();
    let (mut out, mut changes) = (Vec::new(), Vec::new());
    let refused = || vec!["status 403".to_owned()];
    for filter in &route.filters {
        match filter {
            Filter::HttpsOnly(code) if !request.tls => {
                let redirect = swarmesh_router::model::Redirect { code: *code, to: RedirectTarget::Https };
                return vec![format!("{} {}", code.code(), redirect.location(request.host, target))];
            }
            Filter::HttpsOnly(_) => {}
            Filter::RefusePlain if !request.tls => return refused(),
            Filter::RefusePlain => {}
            Filter::AllowMethods(methods) if !methods.iter().any(|m| m == request.method) => return refused(),
            Filter::DenyMethods(methods) if methods.iter().any(|m| m == request.method) => return refused(),
            Filter::AllowMethods(_) | Filter::DenyMethods(_) => {}
            Filter::ClientCertificate => out.push("client-certificate".to_owned()),
            Filter::BasicAuth(auth) => {
                let users: Vec<&str> = auth.users.iter().map(|user| user.name.as_str()).collect();
                out.push(format!("users {} of {}{}", users.join(","), auth.realm, if auth.consume { "" } else { ", kept" }));
            }
            Filter::GlobalAuth => out.push("node-users".to_owned()),
            Filter::Forward(f) => {
                let proto = f.proto.map(|proto| match proto {
                    ForwardedProto::Set => "proto",
                    ForwardedProto::IfTls => "proto-if-tls",
                    ForwardedProto::Pass => "proto-pass",
                });
                let all = [
                    f.forwarded_for.then_some("for"),
                    f.real_ip.then_some("real-ip"),
                    proto,
                    f.port.then_some("port"),
                    f.request_id.then_some("request-id"),
                ];
                out.push(format!("told {}", all.into_iter().flatten().collect::<Vec<_>>().join(",")));
            }
            Filter::Request(change) => changes.extend(changed(change, request.tls)),
            Filter::Response(change) => changes.extend(changed(change, request.tls).map(|text| format!("answer:{text}"))),
            Filter::Rewrite(rewrite) => {
                if let Some(new) = rewrite.path(&path) {
                    path = new;
                }
                if let Some((_, new)) = rewrite.request_line(request.method, &path).unwrap() {
                    path = new;
                }
            }
            Filter::AppendSlash(append) => {
                if let Some(to) = append.location(&path) {
                    return vec![format!("301 {to}")];
                }
            }
            Filter::Compress(c) => out.push(format!("compress {:?} {}", c.algorithms, c.types.join(" "))),
            Filter::InfoHeaders => out.push("info".to_owned()),
            Filter::StrictTransport { .. } => out.push("hsts".to_owned()),
        }
    }
    if !changes.is_empty() {
        changes.sort_by_key(|change| (change.starts_with("answer:"), change.starts_with('-')));
        out.push(format!("changes {}", changes.join(",")));
    }
    match &route.action {
        Action::Status(code) => vec![format!("status {code}")],
        Action::Redirect(redirect) => {
            out.retain(|part| part == "info");
            out.insert(0, format!("{} {}", redirect.code.code(), redirect.location(request.host, target)));
            out
        }
        Action::Forward(_) => {
            let mut to = forwarded_to(route, Some(&path));
            out.sort();
            to.extend(out);
            to
        }
    }
}

fn changed(change: &HeaderChange, tls: bool) -> Option<String> {
    let applies = match change.when {
        None => true,
        Some(When::Tls) => tls,
        Some(When::Plain) => !tls,
    };
    let name = &change.name;
    let text = |template: &swarmesh_router::model::Template| {
        let piece = |piece: &Piece| if let Piece::Text(text) = piece { text.clone() } else { shown(piece) };
        template.0.iter().map(piece).collect::<String>()
    };
    applies.then(|| match &change.change {
        HeaderChangeKind::Add(template) => format!("+{name}={}", text(template)),
        HeaderChangeKind::Set(template) => format!("={name}={}", text(template)),
        HeaderChangeKind::Delete => format!("-{name}"),
    })
}

fn shown(piece: &Piece) -> String {
    if let Piece::Variable(variable) = piece { format!("<{variable:?}>") } else { String::new() }
}

fn forwarded_to(route: &Route, path: Option<&str>) -> Vec<String> {
    let set = route.backends().unwrap();
    let to: BTreeSet<String> = set
        .members
        .iter()
        .map(|member| match &member.target {
            Target::Host { name, .. } => format!("{name}:{}", member.port),
            Target::Service { .. } | Target::Container { .. } | Target::Published { .. } => member.port.to_string(),
        })
        .collect();
    let mut out =
        vec![format!("to {}{}", to.into_iter().collect::<Vec<_>>().join("+"), path.map_or(String::new(), |path| format!(" {path}")))];
    let modes: BTreeSet<&str> =
        set.members.iter().map(|member| if member.mode == BackendMode::Vip { "by vip" } else { "by task" }).collect();
    out.extend(modes.into_iter().map(str::to_owned));
    for tls in set.members.iter().filter_map(|member| member.tls.as_ref()) {
        out.push(if tls.verify { "tls-verified" } else { "tls" }.to_owned());
    }
    let balance = format!("{:?}", set.balance);
    if balance != "RoundRobin" {
        out.push(format!("balance {balance}"));
    }
    out.extend(set.stickiness.as_ref().map(|sticky| match sticky {
        Stickiness::LearnCookie(name) => format!("sticky learn {name}"),
        Stickiness::HashCookie(name) => format!("sticky hash {name}"),
        Stickiness::InsertCookie(name) => format!("sticky insert {name}"),
        Stickiness::TlsSession => "sticky tls-session".to_owned(),
    }));
    out
}

fn certificate(reference: &CertificateRef) -> String {
    let with = |key: &Option<String>| key.clone().unwrap_or_else(|| "itself".to_owned());
    match reference {
        CertificateRef::Secrets { certificate, key } => format!("secret {certificate} with {}", with(key)),
        CertificateRef::Files { certificate, key } => format!("file {certificate} with {}", with(key)),
        CertificateRef::Inline { name, .. } => format!("label {name} with itself"),
    }
}
