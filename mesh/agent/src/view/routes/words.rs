//! Routes in words, for people. Matches are written as our own labels write them.

use swarmesh_model::NetworkId;
use swarmesh_router::model::{
    Action, BackendMode, BackendProtocol, BackendSet, Balance, Filter, ForwardHeaders, ForwardedProto, HeaderChange, HeaderChangeKind,
    HeaderMatch, HostMatch, Listener, Match, Member, PathKind, PathMatch, Piece, Redirect, RedirectTarget, Rewrite, Stickiness, Target,
    Template, TextMatch, Variable, When,
};

use super::View;

pub(crate) fn listener(listener: Listener) -> &'static str {
    match listener {
        Listener::Http => "http",
        Listener::Https => "https",
        Listener::Any => "any",
        Listener::Tls => "tls",
        Listener::Tcp => "tcp",
    }
}

pub(crate) fn host(host: &HostMatch) -> String {
    match host {
        HostMatch::Exact(text) => text.clone(),
        HostMatch::Suffix(text) => format!("*{text}"),
        HostMatch::SuffixOrWhole(text) => format!("{text},*{text}"),
        HostMatch::Prefix(text) => format!("{text}*"),
        HostMatch::Labels(text) => format!("*.{text}.*"),
    }
}

pub(crate) fn path(path: &PathMatch) -> String {
    let text = match &path.kind {
        PathKind::Exact(text) => format!("={text}"),
        PathKind::Prefix(text) => format!("{text}*"),
        PathKind::Segments(text) => text.clone(),
        PathKind::Suffix(text) => format!("*{text}"),
        PathKind::Contains(text) => format!("*{text}*"),
        PathKind::Directory(text) => format!("*/{}/*", text.trim_matches('/')),
        PathKind::Regex(pattern) => format!("~{}", pattern.as_str()),
    };
    if path.ignore_case { format!("{text} (ignoring case)") } else { text }
}

/// All but hosts and paths.
pub(crate) fn conditions(matching: &Match) -> Vec<String> {
    let mut words: Vec<String> = matching.not_paths.iter().map(|p| format!("not {}", path(p))).collect();
    if !matching.methods.is_empty() {
        words.push(format!("method {}", matching.methods.join(",")));
    }
    words.extend(matching.headers.iter().map(header));
    words.extend(matching.port.map(|port| format!("port {port}")));
    words
}

fn header(header: &HeaderMatch) -> String {
    let value = |value: &TextMatch| match value {
        TextMatch::Exact(text) => text.clone(),
        TextMatch::Contains(text) => format!("*{text}*"),
        TextMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    };
    let values: Vec<String> = header.values.iter().map(value).collect();
    let values = if values.is_empty() { "*".to_owned() } else { values.join(",") };
    format!("{}header {}={values}", if header.negate { "not " } else { "" }, header.name)
}

/// The whole match in one line.
pub(crate) fn matching(matching: &Match) -> String {
    let or_every = |list: Vec<String>, every: &str| if list.is_empty() { every.to_owned() } else { list.join(",") };
    let hosts = or_every(matching.hosts.iter().map(host).collect(), "every host");
    let paths = or_every(matching.paths.iter().map(path).collect(), "every path");
    let mut words = vec![hosts, paths];
    words.extend(conditions(matching));
    words.join(", ")
}

/// Where it leads: `web:80 in back`.
pub(crate) fn action(view: &View, action: &Action) -> String {
    match action {
        Action::Forward(set) if set.members.is_empty() => "nobody".to_owned(),
        Action::Forward(set) => set.members.iter().map(|m| member(view, m)).collect::<Vec<_>>().join(", "),
        Action::Redirect(redirect) => redirect_words(redirect),
        Action::Status(code) => format!("status {code}"),
    }
}

fn redirect_words(redirect: &Redirect) -> String {
    let code = redirect.code.code();
    match &redirect.to {
        RedirectTarget::Https => format!("redirect {code} to https"),
        RedirectTarget::Before(prefix) => format!("redirect {code} to {prefix}, with the request's path"),
        RedirectTarget::Exactly(url) => format!("redirect {code} to {url}"),
    }
}

pub(crate) fn member(view: &View, member: &Member) -> String {
    let mut words = format!("{}:{}", target(view, &member.target), member.port);
    if let Some(network) = view.plan.routes.network_of(&member.target) {
        words.push_str(&format!(" in {}", network_name(view, network)));
    }
    let mut marks = Vec::new();
    if member.mode == BackendMode::Vip && matches!(member.target, Target::Service { .. }) {
        marks.push("vip".to_owned());
    }
    if member.weight != 1 {
        marks.push(format!("weight {}", member.weight));
    }
    match member.protocol {
        BackendProtocol::Http1 => {}
        BackendProtocol::H2c => marks.push("h2c".to_owned()),
        BackendProtocol::H2 => marks.push("h2".to_owned()),
    }
    if let Some(tls) = &member.tls {
        marks.push(if tls.verify { "tls, verified" } else { "tls, not verified" }.to_owned());
    }
    if !marks.is_empty() {
        words.push_str(&format!(" ({})", marks.join(", ")));
    }
    words
}

/// The name of what is meant.
pub(crate) fn target(view: &View, target: &Target) -> String {
    match target {
        Target::Service { id, .. } => service_name(view, id),
        Target::Container { id, .. } | Target::Published { container: id } => view.task_name(&id.as_str().into()),
        Target::Host { name, .. } => name.clone(),
    }
}

pub(crate) fn service_name(view: &View, id: &str) -> String {
    view.snapshot.services.get(id).map_or_else(|| id.to_owned(), |s| s.name.clone())
}

pub(crate) fn network_name(view: &View, id: &NetworkId) -> String {
    view.snapshot.networks.get(id).map_or_else(|| id.short().to_owned(), |n| n.name.clone())
}

/// How one backend is chosen.
pub(crate) fn balance(set: &BackendSet) -> String {
    let balance = match set.balance {
        Balance::RoundRobin => "in turn",
        Balance::LeastConnections => "the one with the fewest requests",
        Balance::IpHash => "by the client's address (of IPv4, the first three bytes)",
        Balance::SourceHash => "by the client's address",
        Balance::Random => "by chance",
    };
    match &set.stickiness {
        None => balance.to_owned(),
        Some(Stickiness::LearnCookie(name)) => format!("the one that set the client's cookie {name}, else {balance}"),
        Some(Stickiness::HashCookie(name)) => format!("by the hash of cookie {name}, else {balance}"),
        Some(Stickiness::InsertCookie(name)) => format!("the one that cookie {name} stands for, which the proxy sets, else {balance}"),
        Some(Stickiness::TlsSession) => format!("the one that knows the TLS session, else {balance}"),
    }
}

pub(crate) fn filter(filter: &Filter) -> String {
    match filter {
        Filter::HttpsOnly(code) => format!("without TLS: redirect {} to https", code.code()),
        Filter::RefusePlain => "without TLS: 403".to_owned(),
        Filter::AllowMethods(methods) => format!("methods other than {}: 403", methods.join(",")),
        Filter::DenyMethods(methods) => format!("methods {}: 403", methods.join(",")),
        Filter::ClientCertificate => "without a client certificate: 403".to_owned(),
        Filter::BasicAuth(auth) => {
            let users = match (auth.users.len(), &auth.secret) {
                (0, Some(secret)) => format!("the users in secret {secret}"),
                (n, Some(secret)) => format!("{n} users and those in secret {secret}"),
                (n, None) => format!("{n} users"),
            };
            format!("without a user: 401; realm {:?}, {users}{}", auth.realm, if auth.consume { "" } else { ", Authorization goes on" })
        }
        Filter::GlobalAuth => "without a user of the node's own list, if it has one: 401".to_owned(),
        Filter::Forward(headers) => forward(*headers),
        Filter::Request(change) => format!("request header {}", header_change(change)),
        Filter::Response(change) => format!("response header {}", header_change(change)),
        Filter::Rewrite(Rewrite::StripPrefix { root }) => format!("path without {root}"),
        Filter::Rewrite(Rewrite::Path { search, replace }) => format!("path: {} -> {replace}", search.as_str()),
        Filter::Rewrite(Rewrite::RequestLine { search, replace }) => format!("request line: {} -> {replace}", search.as_str()),
        Filter::AppendSlash(slash) => format!("directories below {} without a slash: redirect 301 to theirs", slash.root),
        Filter::Compress(compression) => {
            let algorithms = serde_json::to_value(&compression.algorithms).unwrap_or_default();
            let names = algorithms.as_array().into_iter().flatten().filter_map(|a| a.as_str()).collect::<Vec<_>>().join(",");
            let types = if compression.types.is_empty() { "everything".to_owned() } else { compression.types.join(",") };
            format!("answers compressed with {names}: {types}")
        }
        Filter::InfoHeaders => "answers say which backend it was and how long it took".to_owned(),
        Filter::StrictTransport { seconds, subdomains, preload } => format!(
            "Strict-Transport-Security for {seconds} s{}{} on answers in TLS",
            if *subdomains { ", subdomains" } else { "" },
            if *preload { ", preload" } else { "" }
        ),
    }
}

fn forward(headers: ForwardHeaders) -> String {
    let proto = headers.proto.map(|proto| match proto {
        ForwardedProto::Set => "X-Forwarded-Proto",
        ForwardedProto::IfTls => "X-Forwarded-Proto (with TLS)",
        ForwardedProto::Pass => "X-Forwarded-Proto (the client's)",
    });
    let names = [
        headers.forwarded_for.then_some("X-Forwarded-For"),
        headers.real_ip.then_some("X-Real-IP"),
        proto,
        headers.port.then_some("X-Forwarded-Port"),
        headers.request_id.then_some("X-Request-ID"),
    ];
    let names: Vec<&str> = names.into_iter().flatten().collect();
    if names.is_empty() {
        "the backend is told nothing of the client".to_owned()
    } else {
        format!("the backend is told {}", names.join(", "))
    }
}

fn header_change(change: &HeaderChange) -> String {
    let words = match &change.change {
        HeaderChangeKind::Add(value) => format!("{} also {:?}", change.name, template(value)),
        HeaderChangeKind::Set(value) => format!("{} is {:?}", change.name, template(value)),
        HeaderChangeKind::Delete => format!("{} goes", change.name),
    };
    match change.when {
        None => words,
        Some(When::Tls) => format!("{words}, with TLS"),
        Some(When::Plain) => format!("{words}, without TLS"),
    }
}

fn template(template: &Template) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Variable(variable) => format!("%[{}]", variable_name(variable)),
    };
    template.0.iter().map(piece).collect()
}

fn variable_name(variable: &Variable) -> String {
    let name = match variable {
        Variable::ClientAddress => "client address",
        Variable::ClientPort => "client port",
        Variable::LocalAddress => "local address",
        Variable::LocalPort => "local port",
        Variable::Host => "host",
        Variable::Path => "path",
        Variable::Method => "method",
        Variable::Tls => "tls",
        Variable::Sni => "sni",
        Variable::ProxyName => "proxy name",
        Variable::RequestId => "request id",
        Variable::Header(name) => return format!("header {name}"),
    };
    name.to_owned()
}
