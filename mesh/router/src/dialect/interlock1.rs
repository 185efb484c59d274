//! Interlock 1: `interlock.*` on plain containers, as its nginx backend served them.
//!
//! A switch is on if its label is there, whatever it says. Containers of one host and path are one set of backends.

use std::time::Duration;

use swarmesh_model::ContainerRouting;

use super::{Maker, Outcome, Workload, haproxy, labels};
use crate::{
    model::{
        Action, AppendSlash, BackendMode, BackendProtocol, BackendSet, BackendTls, Balance, CertificateRef, Dialect, Ejection, Filter,
        ForwardHeaders, ForwardedProto, Limits, Listener, Match, Member, OwnerKind, PathMatch, Policy, Pool, Precedence, RedirectCode,
        Retries, RetryOn, Rewrite, Share, Target, Timeouts,
    },
    problem::Reason,
};

/// What its labels begin with.
pub const PREFIX: &str = "interlock.";
const HOSTNAME: &str = ContainerRouting::LABEL;

const KNOWN: [&str; 18] = [
    "balance_algorithm",
    "context_root",
    "context_root_rewrite",
    "domain",
    "health_check",
    "health_check_interval",
    "hostname",
    "ip_hash",
    "network",
    "port",
    "ssl",
    "ssl_backend",
    "ssl_backend_tls_verify",
    "ssl_cert",
    "ssl_cert_key",
    "ssl_only",
    "ext.name",
    "app",
];

/// Labels of which any that has this in its name counts.
const LISTS: [&str; 3] = ["interlock.alias_domain", "interlock.backend_option", "interlock.websocket_endpoint"];

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, outcome: &mut Outcome) {
    // Its containers are chosen by this one label, and its own are left out.
    let has = |label: &str| workload.labels.contains_key(label);
    if !has(HOSTNAME) || has("interlock.ext.name") || has("interlock.app") {
        return;
    }
    let mut maker = Maker::new(&workload.owner, Dialect::Interlock1, outcome);
    if workload.owner.kind == OwnerKind::Service {
        return maker.refuse(
            HOSTNAME,
            "",
            Reason::NotSupported { why: "these labels are for plain containers; services have com.docker.lb labels" },
        );
    }
    Reader { workload, maker }.read();
}

struct Reader<'r, 'w, 'o> {
    workload: &'r Workload<'w>,
    maker: Maker<'o>,
}

impl<'w> Reader<'_, 'w, '_> {
    fn value(&self, name: &str) -> Option<&'w str> {
        self.workload.labels.get(&label(name)).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    /// On by being there.
    fn has(&self, name: &str) -> bool {
        self.workload.labels.contains_key(&label(name))
    }

    fn list(&self, name: &'static str) -> Vec<(&'w str, &'w str)> {
        self.workload.labels.iter().filter(|(l, _)| l.contains(name)).map(|(l, v)| (l.as_str(), v.trim())).collect()
    }

    fn ignore(&mut self, name: &str, reason: Reason) {
        let value = self.value(name).unwrap_or_default();
        self.maker.ignore(&label(name), value, reason);
    }

    fn read(&mut self) {
        for (name, _) in self.workload.labels_from(PREFIX) {
            if !KNOWN.contains(&&name[PREFIX.len()..]) && !LISTS.iter().any(|l| name.contains(l)) {
                self.maker.ignore(name, "", Reason::UnknownLabel);
            }
        }
        let Some(hosts) = self.hosts() else { return };
        let root = match self.value("context_root").map(labels::path).transpose() {
            Ok(root) => root.filter(|r| r != "/"),
            Err(reason) => return self.maker.refuse(&label("context_root"), self.value("context_root").unwrap_or_default(), reason),
        };
        let Some(backends) = self.backends() else { return };
        let certificate = self.certificate();
        for (name, value) in self.list("interlock.websocket_endpoint") {
            // Every route takes upgrades; the list is looked at for mistakes only.
            if let Err(reason) = labels::path(value) {
                self.maker.ignore(name, value, reason);
            }
        }
        let policy = self.policy();
        let filters = self.filters(root.as_deref(), certificate.is_some());
        let listener = if certificate.is_some() { Listener::Any } else { Listener::Http };
        for (name, host) in hosts {
            let matching = Match { paths: root.iter().map(PathMatch::prefix).collect(), ..Match::host(host) };
            let mut route = self.maker.route(&name, listener, matching.clone(), Action::Forward(backends.clone()));
            route.filters.clone_from(&filters);
            route.share = Share::Pool(Pool { dialect: Dialect::Interlock1, name: String::new() });
            route.certificate.clone_from(&certificate);
            route.policy = policy.clone();
            self.maker.add(route);
            if root.is_some() {
                let mut rest = self.maker.route(&name, listener, Match { paths: Vec::new(), ..matching }, Action::Status(404));
                rest.precedence = Precedence::Rest;
                self.maker.add(rest);
            }
        }
    }

    /// `<hostname>.<domain>`, the domain alone if that is the hostname too, and the aliases.
    fn hosts(&mut self) -> Option<Vec<(String, String)>> {
        let hostname = self.workload.labels.get(HOSTNAME).map_or("unknown", |v| v.trim());
        let domain = self.workload.labels.get("interlock.domain").map_or("local", |v| v.trim());
        let name = if hostname.is_empty() || hostname == domain { domain.to_owned() } else { format!("{hostname}.{domain}") };
        let mut hosts = match labels::host(&name) {
            Ok(host) => vec![(HOSTNAME.to_owned(), host)],
            Err(reason) => {
                self.maker.refuse(HOSTNAME, name, reason);
                return None;
            }
        };
        for (name, value) in self.list("interlock.alias_domain") {
            match labels::host(value) {
                Ok(host) if hosts.iter().any(|(_, h)| *h == host) => {}
                Ok(host) => hosts.push((name.to_owned(), host)),
                Err(reason) => self.maker.refuse(name, value, reason),
            }
        }
        Some(hosts)
    }

    fn backends(&mut self) -> Option<BackendSet> {
        let (target, port) = match self.address() {
            Ok(address) => address,
            Err((name, reason)) => {
                self.maker.refuse(&label(name), self.value(name).unwrap_or_default(), reason);
                return None;
            }
        };
        let tls = self.has("ssl_backend").then(|| {
            let verify = match self.value("ssl_backend_tls_verify") {
                None | Some("none") => false,
                Some("required") => true,
                Some(_) => {
                    self.ignore("ssl_backend_tls_verify", Reason::NotOneOf { allowed: "none, required" });
                    true
                }
            };
            BackendTls { verify, name: None }
        });
        let mut balance = if self.has("ip_hash") { Balance::IpHash } else { Balance::RoundRobin };
        match self.value("balance_algorithm").map(haproxy::balance) {
            Some(Ok(algorithm)) => balance = algorithm,
            Some(Err(reason)) => self.ignore("balance_algorithm", reason),
            None => {}
        }
        for (name, value) in self.list("interlock.backend_option") {
            match value.trim_end_matches(';').trim() {
                "least_conn" => balance = Balance::LeastConnections,
                "ip_hash" => balance = Balance::IpHash,
                // As it is anyway, or what the policy has.
                "" | "http-keep-alive" | "forwardfor" | "redispatch" | "httpclose" | "http-server-close" | "forceclose" => {}
                _ => {
                    self.maker.refuse(name, value, Reason::Raw { system: "HAProxy or nginx" });
                    return None;
                }
            }
        }
        let member = Member { target, port, mode: BackendMode::Task, weight: 1, protocol: BackendProtocol::Http1, tls };
        Some(BackendSet { members: vec![member], balance, stickiness: None })
    }

    /// In the named network by the container's own port, else by a port that is published.
    fn address(&self) -> Result<(Target, u16), (&'static str, Reason)> {
        let wanted = self.value("port").map(labels::port).transpose().map_err(|reason| ("port", reason))?;
        if let Some(name) = self.value("network") {
            let network = self.workload.networks.iter().find(|n| n.name == name);
            let network = network.ok_or_else(|| ("network", Reason::NotOnNetwork { on: self.workload.network_names() }))?;
            let published = || self.workload.ports.iter().find_map(|p| p.published_port);
            let port = wanted.or_else(published).ok_or(("port", Reason::NotPublished))?;
            return Ok((Target::Container { id: self.workload.owner.id.clone(), network: network.id.clone() }, port));
        }
        let published = self.workload.ports.iter().filter(|p| wanted.is_none_or(|w| p.target_port == w)).find_map(|p| p.published_port);
        let port = published.ok_or(("port", Reason::NotPublished))?;
        Ok((Target::Published { container: self.workload.owner.id.clone() }, port))
    }

    fn certificate(&mut self) -> Option<CertificateRef> {
        match (self.has("ssl"), self.value("ssl_cert")) {
            (true, Some(certificate)) => {
                // Names of files in one directory, and of none beside it.
                for name in ["ssl_cert", "ssl_cert_key"] {
                    if self.value(name).is_some_and(|file| file.contains('/') || file == "..") {
                        self.ignore(name, Reason::NotSupported { why: "a file's name has no directories" });
                        return None;
                    }
                }
                Some(CertificateRef::Files { certificate: certificate.to_owned(), key: self.value("ssl_cert_key").map(str::to_owned) })
            }
            (true, None) => {
                self.ignore("ssl", Reason::Needs { other: label("ssl_cert") });
                None
            }
            (false, Some(_)) => {
                self.ignore("ssl_cert", Reason::Needs { other: label("ssl") });
                None
            }
            (false, None) => None,
        }
    }

    fn filters(&mut self, root: Option<&str>, tls: bool) -> Vec<Filter> {
        let mut filters = Vec::new();
        if self.has("ssl_only") {
            if tls {
                filters.push(Filter::HttpsOnly(RedirectCode::Found));
            } else {
                self.ignore("ssl_only", Reason::Needs { other: label("ssl") });
            }
        }
        let proto = Some(ForwardedProto::Pass);
        filters.push(Filter::Forward(ForwardHeaders { forwarded_for: true, real_ip: true, proto, ..ForwardHeaders::default() }));
        if self.has("context_root_rewrite") {
            if let Some(root) = root {
                filters.push(Filter::AppendSlash(AppendSlash { root: root.to_owned() }));
                filters.push(Filter::Rewrite(Rewrite::StripPrefix { root: root.to_owned() }));
            } else {
                self.ignore("context_root_rewrite", Reason::Needs { other: label("context_root") });
            }
        }
        filters
    }

    fn policy(&mut self) -> Policy {
        for name in ["health_check", "health_check_interval"] {
            if self.has(name) {
                self.ignore(name, Reason::NotSupported { why: "connecting is what is tried, and how often is not a label's choice" });
            }
        }
        let closing = ["httpclose", "http-server-close", "forceclose"];
        let proxy = Some(Duration::from_secs(600));
        Policy {
            timeouts: Timeouts { connect: Some(Duration::from_secs(5)), client: proxy, server: proxy, ..Timeouts::default() },
            limits: Limits { body: Some(2048 * 1024 * 1024), connections: None },
            retries: Retries { attempts: None, on: vec![RetryOn::ConnectFailure, RetryOn::Timeout] },
            ejection: Some(Ejection { failures: 1, time: Duration::from_secs(10) }),
            close_upstream: self.list("interlock.backend_option").iter().any(|(_, v)| closing.contains(v)),
            check_connect: self.has("health_check"),
            ..Policy::default()
        }
    }
}

fn label(name: &str) -> String {
    format!("{PREFIX}{name}")
}
