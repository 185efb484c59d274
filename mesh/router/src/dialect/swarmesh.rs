//! Our own: `swarmesh.http.<route>.<key>`, on services. It can say everything that a route can be.
//!
//! `docs/routes.md` lists the keys. What is wrong in a label leaves out that route, an unknown key too: it may have been
//! meant to protect.

use std::{collections::BTreeMap, time::Duration};

use super::{MOST, Maker, Outcome, Workload, haproxy, labels};
use crate::{
    model::{
        Action, AppendSlash, BackendMode, BackendProtocol, BackendSet, BackendTls, Balance, BasicAuth, CertificateRef, Compression,
        CompressionAlgorithm, Dialect, Ejection, Filter, ForwardHeaders, ForwardedProto, HeaderChange, HeaderChangeKind, HeaderMatch,
        HostMatch, Limits, Listener, Match, Member, Password, PathKind, PathMatch, Pattern, Policy, Pool, Precedence, ProxyProtocol,
        Redirect, RedirectCode, RedirectTarget, Replacement, Retries, RetryOn, Rewrite, Route, Share, Stickiness, Target, TextMatch,
        Timeouts, User, When,
    },
    problem::Reason,
};

/// What its labels begin with.
pub const PREFIX: &str = "swarmesh.http.";

/// Keys that say who answers.
const BACKEND: [&str; 10] =
    ["backend", "backend-name", "backend-tls", "balance", "network", "outbound-host", "port", "protocol", "sticky", "weight"];

/// A label that cannot be followed: its name, what to show of its value, and why.
type Fault = Box<(String, String, Reason)>;

fn fault(label: impl Into<String>, value: impl Into<String>, reason: Reason) -> Fault {
    Box::new((label.into(), value.into(), reason))
}

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, outcome: &mut Outcome) {
    let mut maker = Maker::new(&workload.owner, Dialect::Swarmesh, outcome);
    let mut routes: BTreeMap<&str, BTreeMap<&str, (&str, &str)>> = BTreeMap::new();
    for (label, value) in workload.labels_from(PREFIX) {
        match label[PREFIX.len()..].split_once('.') {
            Some((route, key)) if !route.is_empty() && !key.is_empty() => {
                routes.entry(route).or_default().insert(key, (label, value.trim()));
            }
            _ => maker.refuse(label, "", Reason::UnknownLabel),
        }
    }
    for (name, keys) in routes {
        let mut reader = Reader { workload, prefix: format!("{PREFIX}{name}."), keys };
        match reader.route(&mut maker) {
            Ok(made) => made.into_iter().for_each(|route| maker.add(route)),
            Err(fault) => {
                let (label, value, reason) = *fault;
                maker.refuse(&label, value, reason);
            }
        }
    }
}

/// One route's labels. What is read is taken out; what is left was not known.
struct Reader<'r, 'w> {
    workload: &'r Workload<'w>,
    prefix: String,
    keys: BTreeMap<&'w str, (&'w str, &'w str)>,
}

impl<'w> Reader<'_, 'w> {
    fn label(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A key's value through a grammar.
    fn take<T>(&mut self, key: &str, parse: impl FnOnce(&'w str) -> Result<T, Reason>) -> Result<Option<T>, Fault> {
        let Some((label, value)) = self.keys.remove(key) else { return Ok(None) };
        let parsed = if value.is_empty() { Err(Reason::Empty) } else { parse(value) };
        parsed.map(Some).map_err(|reason| fault(label, value, reason))
    }

    fn flag(&mut self, key: &str) -> Result<bool, Fault> {
        Ok(self.take(key, labels::boolean)?.unwrap_or(false))
    }

    /// Every part of a list through a grammar.
    fn list<T>(&mut self, key: &str, parse: impl Fn(&'w str) -> Result<T, Reason>) -> Result<Vec<T>, Fault> {
        let parsed = self.take(key, |text| {
            if labels::list(text, ",").count() > MOST {
                return Err(Reason::TooMany { most: MOST });
            }
            labels::list(text, ",").map(parse).collect::<Result<Vec<T>, Reason>>()
        })?;
        match parsed {
            Some(parts) if parts.is_empty() => Err(fault(self.label(key), "", Reason::Empty)),
            parts => Ok(parts.unwrap_or_default()),
        }
    }

    /// Keys that begin so, with what follows.
    fn family(&mut self, start: &str) -> Vec<(&'w str, &'w str, &'w str)> {
        let keys: Vec<&'w str> = self.keys.keys().copied().filter(|k| k.starts_with(start)).collect();
        keys.into_iter().filter_map(|k| self.keys.remove(k).map(|(label, value)| (label, &k[start.len()..], value))).collect()
    }

    fn route(&mut self, maker: &mut Maker<'_>) -> Result<Vec<Route>, Fault> {
        let listener = self.take("listen", listener)?.unwrap_or(Listener::Any);
        let hosts = self.list("host", host)?;
        let (paths, rest) = self.matching()?;
        let is_default = self.flag("default")?;
        let priority = self.take("priority", |text| {
            let number = text.parse().ok().filter(|n| (-1000..=1000).contains(n));
            number.ok_or(Reason::NotOneOf { allowed: "the numbers from -1000 to 1000" })
        })?;
        let is_open = !matches!(listener, Listener::Tls | Listener::Tcp);
        let needs_host = match listener {
            Listener::Tcp => false,
            Listener::Tls => hosts.is_empty(),
            Listener::Http | Listener::Https | Listener::Any => hosts.is_empty() && paths.is_empty(),
        };
        if needs_host && !is_default {
            // Nobody takes everything by leaving something out.
            return Err(fault(self.label("host"), "", Reason::Missing));
        }
        if listener == Listener::Tcp && rest.port.is_none() {
            return Err(fault(self.label("listen-port"), "", Reason::Missing));
        }
        let certificate = self.certificate()?;
        let filters = self.filters(is_open)?;
        let policy = self.policy()?;
        let pool = self.take("pool", |name| Ok(Share::Pool(Pool { dialect: Dialect::Swarmesh, name: name.to_owned() })))?;
        let action = self.action(listener)?;
        if let Some((_, (label, _))) = self.keys.pop_first() {
            return Err(fault(label, "", Reason::UnknownLabel));
        }
        if !is_open {
            let unseen = [
                !filters.is_empty(),
                certificate.is_some(),
                !paths.is_empty(),
                !rest.headers.is_empty(),
                !rest.methods.is_empty(),
                !rest.not_paths.is_empty(),
                !matches!(action, Action::Forward(_)),
                listener == Listener::Tcp && !hosts.is_empty(),
            ];
            if unseen.contains(&true) {
                return Err(fault(
                    self.label("listen"),
                    "",
                    Reason::Excludes { other: "labels about what is not looked at there".to_owned() },
                ));
            }
        }
        let main = self.label(match (hosts.is_empty(), paths.is_empty()) {
            (false, _) => "host",
            (true, false) => "path",
            (true, true) if listener == Listener::Tcp => "listen-port",
            (true, true) => "default",
        });
        let each_host: Vec<Vec<HostMatch>> = if hosts.is_empty() { vec![vec![]] } else { hosts.into_iter().map(|h| vec![h]).collect() };
        let each_path: Vec<Vec<PathMatch>> = if paths.is_empty() { vec![vec![]] } else { paths.into_iter().map(|p| vec![p]).collect() };
        let mut routes = Vec::new();
        for hosts in &each_host {
            for paths in &each_path {
                let matching = Match { hosts: hosts.clone(), paths: paths.clone(), ..rest.clone() };
                let mut route = maker.route(&main, listener, matching, action.clone());
                route.precedence = if is_default { Precedence::Default } else { Precedence::Specific { priority: priority.unwrap_or(0) } };
                route.share = pool.clone().unwrap_or(Share::Alone);
                route.filters.clone_from(&filters);
                route.certificate.clone_from(&certificate);
                route.policy = policy.clone();
                routes.push(route);
            }
        }
        Ok(routes)
    }

    /// Paths, and all conditions but those on host and path.
    fn matching(&mut self) -> Result<(Vec<PathMatch>, Match), Fault> {
        let ignore_case = self.flag("ignore-case")?;
        let paths = self.paths("path", ignore_case)?;
        let not_paths = self.paths("not-path", ignore_case)?;
        let mut headers = Vec::new();
        for (start, negate) in [("header.", false), ("not-header.", true)] {
            for (label, name, value) in self.family(start) {
                let condition = header(name, value).map_err(|reason| fault(label, value, reason))?;
                headers.push(HeaderMatch { negate, ..condition });
            }
        }
        let agents = self.list("user-agent", |text| Ok(TextMatch::Contains(text.to_owned())))?;
        if !agents.is_empty() {
            headers.push(HeaderMatch { name: "user-agent".to_owned(), values: agents, negate: false });
        }
        let methods = self.list("method", labels::method)?;
        let port = self.take("listen-port", labels::port)?;
        Ok((paths, Match { not_paths, headers, methods, port, ..Match::default() }))
    }

    /// A list, or one expression, which may hold commas.
    fn paths(&mut self, key: &str, ignore_case: bool) -> Result<Vec<PathMatch>, Fault> {
        let is_regex = self.keys.get(key).is_some_and(|(_, value)| value.starts_with('~'));
        if is_regex {
            let one = self.take(key, |text| {
                let text = text.trim_start_matches('~');
                let pattern = if ignore_case { Pattern::ignoring_case(text) } else { Pattern::new(text) };
                pattern.map(|p| PathMatch::new(PathKind::Regex(p))).map_err(Reason::Pattern)
            })?;
            return Ok(one.into_iter().collect());
        }
        self.list(key, |text| path(text).map(|kind| PathMatch { kind, ignore_case }))
    }

    fn certificate(&mut self) -> Result<Option<CertificateRef>, Fault> {
        let certificate = self.take("tls.certificate", |name| Ok(name.to_owned()))?;
        let key = self.take("tls.key", |name| Ok(name.to_owned()))?;
        match (certificate, key) {
            (Some(certificate), key) => Ok(Some(CertificateRef::Secrets { certificate, key })),
            (None, None) => Ok(None),
            (None, Some(key)) => Err(fault(self.label("tls.key"), key, Reason::Needs { other: self.label("tls.certificate") })),
        }
    }

    /// In the order in which they are applied: who is let in, what the backend is told, what is changed.
    fn filters(&mut self, is_open: bool) -> Result<Vec<Filter>, Fault> {
        let mut filters = Vec::new();
        let https_only = self.take("https-only", |text| match labels::boolean(text) {
            Ok(true) => Ok(Some(RedirectCode::Permanent)),
            Ok(false) => Ok(None),
            Err(_) => labels::redirect_code(text).map(Some),
        })?;
        filters.extend(https_only.flatten().map(Filter::HttpsOnly));
        for (key, filter) in [("refuse-plain", Filter::RefusePlain), ("client-certificate", Filter::ClientCertificate)] {
            if self.flag(key)? {
                filters.push(filter);
            }
        }
        for (key, filter) in [("allow-methods", Filter::AllowMethods as fn(Vec<String>) -> Filter), ("deny-methods", Filter::DenyMethods)] {
            let methods = self.list(key, labels::method)?;
            if !methods.is_empty() {
                filters.push(filter(methods));
            }
        }
        filters.extend(self.auth()?.map(Filter::BasicAuth));
        if self.flag("auth.global")? {
            filters.push(Filter::GlobalAuth);
        }
        let default = ForwardHeaders { forwarded_for: true, proto: Some(ForwardedProto::Set), ..ForwardHeaders::default() };
        let forward = self.take("forwarded", forwarded)?.unwrap_or(if is_open { default } else { ForwardHeaders::default() });
        if forward != ForwardHeaders::default() {
            filters.push(Filter::Forward(forward));
        }
        for (start, side) in [("request-header.", Filter::Request as fn(HeaderChange) -> Filter), ("response-header.", Filter::Response)] {
            for (label, what, value) in self.family(start) {
                // A value may be a secret.
                filters.push(side(header_change(what, value).map_err(|reason| fault(label, "", reason))?));
            }
        }
        if let Some(root) = self.take("strip-prefix", labels::path)? {
            if self.flag("append-slash")? {
                filters.push(Filter::AppendSlash(AppendSlash { root: root.clone() }));
            }
            filters.push(Filter::Rewrite(Rewrite::StripPrefix { root }));
        }
        if let Some((search, replace)) = self.take("rewrite", rewrite)? {
            filters.push(Filter::Rewrite(Rewrite::Path { search, replace }));
        }
        if let Some((search, replace)) = self.take("rewrite-line", rewrite)? {
            filters.push(Filter::Rewrite(Rewrite::RequestLine { search, replace }));
        }
        let algorithms = self.list("compress", |text| match text {
            "identity" => Ok(CompressionAlgorithm::Identity),
            "gzip" => Ok(CompressionAlgorithm::Gzip),
            "deflate" => Ok(CompressionAlgorithm::Deflate),
            "raw-deflate" => Ok(CompressionAlgorithm::RawDeflate),
            _ => Err(Reason::NotOneOf { allowed: "identity, gzip, deflate, raw-deflate" }),
        })?;
        if !algorithms.is_empty() {
            let types = self.list("compress-types", |text| Ok(text.to_owned()))?;
            filters.push(Filter::Compress(Compression { algorithms, types }));
        }
        if self.flag("info-headers")? {
            filters.push(Filter::InfoHeaders);
        }
        filters.extend(self.take("hsts", strict_transport)?);
        Ok(filters)
    }

    fn auth(&mut self) -> Result<Option<BasicAuth>, Fault> {
        let secret_hashed = self.flag("auth.hashed")?;
        let consume = !self.flag("auth.keep")?;
        let realm = self.take("auth.realm", realm)?.unwrap_or_else(|| self.workload.owner.name.clone());
        let secret = self.take("auth.secret", |name| Ok(name.to_owned()))?;
        let mut users = Vec::new();
        if let Some((label, text)) = self.keys.remove("auth.users") {
            for part in labels::list(text, ",") {
                let (name, password) = part.split_once(':').map_or((part, None), |(name, password)| (name.trim(), Some(password.trim())));
                if name.is_empty() || password == Some("") {
                    return Err(fault(label, name, Reason::NotAPair));
                }
                let password = match password {
                    Some(hash) if secret_hashed => Some(Password::hash(hash).map_err(|e| fault(label, name, Reason::Password(e)))?),
                    Some(plain) => Some(Password::Plain(plain.to_owned())),
                    None => None,
                };
                users.push(User { name: name.to_owned(), password });
            }
            if users.is_empty() {
                return Err(fault(label, "", Reason::Empty));
            }
        } else if secret.is_none() {
            return Ok(None);
        }
        Ok(Some(BasicAuth { realm, users, secret, secret_hashed, consume }))
    }

    fn policy(&mut self) -> Result<Policy, Fault> {
        let mut seconds = |key: &str| self.take(key, labels::seconds);
        let timeouts = Timeouts {
            connect: seconds("timeout.connect")?,
            client: seconds("timeout.client")?,
            server: seconds("timeout.server")?,
            tunnel: seconds("timeout.tunnel")?,
            request: seconds("timeout.request")?,
            keep_alive: seconds("timeout.keep-alive")?,
            queue: seconds("timeout.queue")?,
        };
        let limits = Limits {
            body: self.take("limit.body", bytes)?,
            connections: self.take("limit.connections", |text| labels::number(text, 1, 1_000_000).map(|n| n as u32))?,
        };
        let attempts = self.take("retries", |text| labels::number(text, 0, 100).map(|n| n as u8))?;
        let on = self.list("retry-on", |text| match text {
            "connect" => Ok(RetryOn::ConnectFailure),
            "timeout" => Ok(RetryOn::Timeout),
            "invalid" => Ok(RetryOn::InvalidAnswer),
            status => labels::number(status, 500, 599).map(|s| RetryOn::Status(s as u16)),
        })?;
        // Asked for times and no reason: the reason that is always safe.
        let on = if on.is_empty() && attempts.is_some_and(|n| n > 0) { vec![RetryOn::ConnectFailure] } else { on };
        Ok(Policy {
            timeouts,
            limits,
            retries: Retries { attempts, on },
            ejection: self.take("eject", ejection)?,
            proxy_protocol: self
                .take("proxy-protocol", |text| match text {
                    "off" => Ok(None),
                    "v1" => Ok(Some(ProxyProtocol::V1)),
                    "v2" => Ok(Some(ProxyProtocol::V2)),
                    _ => Err(Reason::NotOneOf { allowed: "off, v1, v2" }),
                })?
                .flatten(),
            close_upstream: self.flag("close-upstream")?,
            client_keepalive: self.flag("client-keepalive")?,
            check_connect: self.flag("check-connect")?,
        })
    }

    fn action(&mut self, listener: Listener) -> Result<Action, Fault> {
        let redirect = self.take("redirect", redirect)?.map(Action::Redirect);
        let status = self.take("status", |text| labels::number(text, 400, 599).map(|s| Action::Status(s as u16)))?;
        match (redirect, status) {
            (Some(_), Some(_)) => Err(fault(self.label("status"), "", Reason::Excludes { other: self.label("redirect") })),
            (Some(action), None) | (None, Some(action)) => {
                let other = self.label(if matches!(action, Action::Redirect(_)) { "redirect" } else { "status" });
                match BACKEND.iter().find_map(|key| self.keys.get(key)) {
                    Some((label, _)) => Err(fault(*label, "", Reason::Excludes { other })),
                    None => Ok(action),
                }
            }
            (None, None) => self.backends(listener).map(Action::Forward),
        }
    }

    fn backends(&mut self, listener: Listener) -> Result<BackendSet, Fault> {
        let port = match self.take("port", labels::port)? {
            Some(port) => port,
            None => self.only_port().map_err(|reason| fault(self.label("port"), "", reason))?,
        };
        let mode = self.take("backend", |text| match text {
            "vip" => Ok(BackendMode::Vip),
            "task" => Ok(BackendMode::Task),
            _ => Err(Reason::NotOneOf { allowed: "vip, task" }),
        })?;
        let wanted = self.take("network", |name| Ok(name.to_owned()))?;
        let networks = &self.workload.networks;
        let network = match (&wanted, &networks[..]) {
            (Some(name), _) => networks
                .iter()
                .find(|n| n.name == *name)
                .ok_or_else(|| fault(self.label("network"), name.as_str(), Reason::NotOnNetwork { on: self.workload.network_names() }))?,
            (None, [only]) => only,
            (None, []) => return Err(fault(self.label("network"), "", Reason::NoNetwork)),
            (None, _) => return Err(fault(self.label("network"), "", Reason::SeveralNetworks)),
        }
        .id
        .clone();
        let mut member = Member::service(self.workload.owner.id.clone(), Some(network.clone()), port, mode.unwrap_or(BackendMode::Task));
        if let Some(name) = self.take("outbound-host", labels::host)? {
            member.target = Target::Host { name, network: Some(network) };
        }
        member.weight = self.take("weight", |text| labels::number(text, 0, 1000))?.map_or(1, |n| n as u16);
        member.protocol = self
            .take("protocol", |text| match text {
                "http1" => Ok(BackendProtocol::Http1),
                "h2c" => Ok(BackendProtocol::H2c),
                "h2" => Ok(BackendProtocol::H2),
                _ => Err(Reason::NotOneOf { allowed: "http1, h2c, h2" }),
            })?
            .unwrap_or_default();
        let name = self.take("backend-name", labels::host)?;
        let tls = self.take("backend-tls", |text| match text {
            "off" => Ok(None),
            "verify" => Ok(Some(true)),
            "insecure" => Ok(Some(false)),
            _ => Err(Reason::NotOneOf { allowed: "off, verify, insecure" }),
        })?;
        member.tls = tls.flatten().map(|verify| BackendTls { verify, name: name.clone() });
        let protocol = match (member.protocol, &member.tls) {
            (BackendProtocol::H2, None) => Some(Reason::Needs { other: self.label("backend-tls") }),
            (BackendProtocol::H2c, Some(_)) => Some(Reason::Excludes { other: self.label("backend-tls") }),
            _ => None,
        };
        if let Some(reason) = protocol {
            return Err(fault(self.label("protocol"), "", reason));
        }
        if let (Some(name), None) = (name, &member.tls) {
            return Err(fault(self.label("backend-name"), name, Reason::Needs { other: self.label("backend-tls") }));
        }
        let balance = self.take("balance", |text| match text {
            "rr" => Ok(Balance::RoundRobin),
            "lc" => Ok(Balance::LeastConnections),
            "random" => Ok(Balance::Random),
            "ip-hash" => Ok(Balance::IpHash),
            "source-hash" => Ok(Balance::SourceHash),
            _ => Err(Reason::NotOneOf { allowed: "rr, lc, random, ip-hash, source-hash" }),
        })?;
        let stickiness = self.take("sticky", sticky)?.flatten();
        if let Some(kind) = &stickiness {
            let other = match kind {
                _ if mode == Some(BackendMode::Vip) => Some("backend"),
                Stickiness::TlsSession => (listener != Listener::Tls).then_some("listen"),
                _ => matches!(listener, Listener::Tls | Listener::Tcp).then_some("listen"),
            };
            if let Some(other) = other {
                return Err(fault(self.label("sticky"), "", Reason::Excludes { other: self.label(other) }));
            }
        }
        Ok(BackendSet { members: vec![member], balance: balance.unwrap_or_default(), stickiness })
    }

    fn only_port(&self) -> Result<u16, Reason> {
        let mut ports: Vec<u16> = self.workload.ports.iter().map(|p| p.target_port).collect();
        ports.sort_unstable();
        ports.dedup();
        match ports[..] {
            [port] => Ok(port),
            [] => Err(Reason::NoPort),
            _ => Err(Reason::SeveralPorts),
        }
    }
}

fn listener(text: &str) -> Result<Listener, Reason> {
    match text {
        "http" => Ok(Listener::Http),
        "https" => Ok(Listener::Https),
        "any" => Ok(Listener::Any),
        "tls" => Ok(Listener::Tls),
        "tcp" => Ok(Listener::Tcp),
        _ => Err(Reason::NotOneOf { allowed: "http, https, any, tls, tcp" }),
    }
}

/// `name`, `*.name`, `*name`, `name*`, `*.name.*`
fn host(text: &str) -> Result<HostMatch, Reason> {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(_), Some(_)) => {
            let name = text.strip_prefix("*.").and_then(|t| t.strip_suffix(".*")).ok_or(Reason::NotAHost)?;
            labels::host(name).map(HostMatch::Labels)
        }
        (Some(end), None) => {
            let end = labels::host_part(end)?;
            Ok(if end.starts_with('.') { HostMatch::Suffix(end) } else { HostMatch::SuffixOrWhole(end) })
        }
        (None, Some(start)) => labels::host_part(start).map(HostMatch::Prefix),
        (None, None) => labels::host(text).map(HostMatch::Exact),
    }
}

/// `/segments`, `=/exact`, `/bytes*`, `*end`, `*part*`, `*/whole/segments/*`
fn path(text: &str) -> Result<PathKind, Reason> {
    let part = |text: &str| {
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'*');
        if fits { Ok(text.to_owned()) } else { Err(Reason::NotAPath) }
    };
    if let Some(exact) = text.strip_prefix('=') {
        return labels::path(exact).map(PathKind::Exact);
    }
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(_), Some(_)) => {
            let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
            let whole = inner.len() > 2 && inner.starts_with('/') && inner.ends_with('/');
            if whole { part(inner).map(PathKind::Directory) } else { part(inner).map(PathKind::Contains) }
        }
        (Some(end), None) => part(end).map(PathKind::Suffix),
        (None, Some(start)) => labels::path(start).map(PathKind::Prefix),
        (None, None) => labels::path(text).map(PathKind::Segments),
    }
}

/// `*` is any value, `~` begins an expression, `*text*` is contained; anything else is the value.
fn header(name: &str, value: &str) -> Result<HeaderMatch, Reason> {
    let name = labels::header_name(name)?;
    let values = match value {
        "" => return Err(Reason::Empty),
        "*" => Vec::new(),
        _ => vec![match (value.strip_prefix('~'), value.strip_prefix('*').and_then(|v| v.strip_suffix('*'))) {
            (Some(text), _) => TextMatch::Regex(Pattern::new(text).map_err(Reason::Pattern)?),
            (None, Some(part)) => TextMatch::Contains(part.to_owned()),
            (None, None) => TextMatch::Exact(value.to_owned()),
        }],
    };
    Ok(HeaderMatch { name, values, negate: false })
}

/// `add.NAME`, `set.NAME`, `delete.NAME`, each also with `-if-tls` or `-if-plain` behind the verb.
fn header_change(what: &str, value: &str) -> Result<HeaderChange, Reason> {
    let (verb, name) = what.split_once('.').ok_or(Reason::UnknownLabel)?;
    let (verb, when) = match (verb.strip_suffix("-if-tls"), verb.strip_suffix("-if-plain")) {
        (Some(verb), _) => (verb, Some(When::Tls)),
        (None, Some(verb)) => (verb, Some(When::Plain)),
        (None, None) => (verb, None),
    };
    let name = labels::header_name(name)?;
    if labels::is_framing(&name) {
        return Err(Reason::NotSupported { why: "this header says where a message ends or to whom it goes" });
    }
    let change = match verb {
        "add" => HeaderChangeKind::Add(haproxy::template(value)?),
        "set" => HeaderChangeKind::Set(haproxy::template(value)?),
        "delete" if labels::boolean(value)? => HeaderChangeKind::Delete,
        _ => return Err(Reason::NotOneOf { allowed: "add.NAME=VALUE, set.NAME=VALUE, delete.NAME=true" }),
    };
    Ok(HeaderChange { name, change, when })
}

fn forwarded(text: &str) -> Result<ForwardHeaders, Reason> {
    let mut forward = ForwardHeaders::default();
    for word in labels::list(text, ",") {
        match word {
            "none" => {}
            "for" => forward.forwarded_for = true,
            "real-ip" => forward.real_ip = true,
            "port" => forward.port = true,
            "request-id" => forward.request_id = true,
            "proto" => forward.proto = Some(ForwardedProto::Set),
            "proto-if-tls" => forward.proto = Some(ForwardedProto::IfTls),
            "proto-pass" => forward.proto = Some(ForwardedProto::Pass),
            _ => return Err(Reason::NotOneOf { allowed: "none, for, real-ip, port, request-id, proto, proto-if-tls, proto-pass" }),
        }
    }
    Ok(forward)
}

/// It stands between quotes in a header.
fn realm(text: &str) -> Result<String, Reason> {
    if labels::is_header_value(text) && text.is_ascii() && !text.contains(['"', '\\']) {
        Ok(text.to_owned())
    } else {
        Err(Reason::NotAHeader)
    }
}

/// `SEARCH -> REPLACE`
fn rewrite(text: &str) -> Result<(Pattern, Replacement), Reason> {
    let (search, replace) = text.split_once(" -> ").ok_or(Reason::NotAPair)?;
    let search = Pattern::new(search.trim()).map_err(Reason::Pattern)?;
    let replace = Replacement::new(replace.trim(), &search).map_err(Reason::Pattern)?;
    Ok((search, replace))
}

/// `SECONDS[,subdomains][,preload]`
fn strict_transport(text: &str) -> Result<Filter, Reason> {
    let mut words = labels::list(text, ",");
    let seconds = labels::number(words.next().unwrap_or_default(), 0, 10 * 365 * 24 * 3600)?;
    let (mut subdomains, mut preload) = (false, false);
    for word in words {
        match word {
            "subdomains" => subdomains = true,
            "preload" => preload = true,
            _ => return Err(Reason::NotOneOf { allowed: "subdomains, preload" }),
        }
    }
    Ok(Filter::StrictTransport { seconds, subdomains, preload })
}

/// `[CODE] https` or `[CODE] URL`
fn redirect(text: &str) -> Result<Redirect, Reason> {
    let (code, to) = match text.split_once(' ') {
        Some((code, to)) => (labels::redirect_code(code)?, to.trim()),
        None => (RedirectCode::Found, text),
    };
    let to = if to == "https" { RedirectTarget::Https } else { labels::url(to)?.target() };
    Ok(Redirect { code, to })
}

fn sticky(text: &str) -> Result<Option<Stickiness>, Reason> {
    let allowed = "none, learn:COOKIE, hash:COOKIE, insert:COOKIE, tls-session";
    match text.split_once(':') {
        None if text == "none" => Ok(None),
        None if text == "tls-session" => Ok(Some(Stickiness::TlsSession)),
        Some(("learn", name)) => labels::cookie_name(name).map(|n| Some(Stickiness::LearnCookie(n))),
        Some(("hash", name)) => labels::cookie_name(name).map(|n| Some(Stickiness::HashCookie(n))),
        Some(("insert", name)) => labels::cookie_name(name).map(|n| Some(Stickiness::InsertCookie(n))),
        _ => Err(Reason::NotOneOf { allowed }),
    }
}

/// Bytes, with `k`, `m` or `g` for powers of 1024.
fn bytes(text: &str) -> Result<u64, Reason> {
    const MOST: u64 = 1 << 40;
    let wrong = Reason::NotANumber { least: 0, most: MOST };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return Err(wrong),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n <= MOST).ok_or(wrong)
}

/// `FAILURES/SECONDS`
fn ejection(text: &str) -> Result<Ejection, Reason> {
    let (failures, time) = text.split_once('/').ok_or(Reason::NotAPair)?;
    Ok(Ejection { failures: labels::number(failures, 1, 1000)? as u16, time: Duration::from_secs(labels::number(time, 1, 3600)?) })
}
