//! Interlock 2 and 3: `com.docker.lb.*` on services.
//!
//! Each host is a route of its own. Services with the same host and path are one set of backends; all else is the first's.

use std::time::Duration;

use swarmesh_model::NetworkId;

use super::{MOST, Maker, Outcome, Workload, labels};
use crate::{
    model::{
        Action, AppendSlash, BackendMode, BackendSet, BackendTls, Balance, CertificateRef, Dialect, Ejection, Filter, ForwardHeaders,
        HostMatch, Limits, Listener, Match, Member, PathMatch, Policy, Pool, Precedence, Redirect, RedirectCode, Retries, RetryOn, Rewrite,
        Share, Stickiness, Timeouts,
    },
    problem::Reason,
};

/// What its labels begin with.
pub const PREFIX: &str = "com.docker.lb.";

/// What `config.toml` said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `ServiceCluster`; empty and `default` are the same.
    pub cluster: String,
    /// `IPHash`: for all services.
    pub ip_hash: bool,
    /// `HideInfoHeaders`
    pub hide_info_headers: bool,
    /// `ClientMaxBodySize`, in bytes
    pub body: u64,
    /// `ConnectTimeout`
    pub connect: Duration,
    /// `SendTimeout` and `ReadTimeout`
    pub server: Duration,
    /// `ClientBodyTimeout`
    pub client: Duration,
    /// `KeepaliveTimeout`
    pub keep_alive: Duration,
}

impl Default for Settings {
    /// As UCP configured it, where that differs from Interlock's own.
    fn default() -> Self {
        Self {
            cluster: String::new(),
            ip_hash: false,
            hide_info_headers: false,
            body: 32 * 1024 * 1024,
            connect: Duration::from_secs(5),
            server: Duration::from_secs(600),
            client: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
        }
    }
}

/// After what nginx was told to try another.
const RETRIED: [RetryOn; 7] = [
    RetryOn::ConnectFailure,
    RetryOn::Timeout,
    RetryOn::InvalidAnswer,
    RetryOn::Status(500),
    RetryOn::Status(502),
    RetryOn::Status(503),
    RetryOn::Status(504),
];

const KNOWN: [&str; 19] = [
    "backend_mode",
    "context_root",
    "context_root_rewrite",
    "defaul_backend",
    "default_backend",
    "hosts",
    "ip_hash",
    "network",
    "port",
    "redirects",
    "service_cluster",
    "ssl_backend",
    "ssl_backend_tls_verify",
    "ssl_cert",
    "ssl_key",
    "ssl_only",
    "ssl_passthrough",
    "sticky_session_cookie",
    "websocket_endpoints",
];

struct Reader<'r, 'w, 'o> {
    workload: &'r Workload<'w>,
    settings: &'r Settings,
    maker: Maker<'o>,
}

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, settings: &Settings, outcome: &mut Outcome) {
    if workload.labels_from(PREFIX).next().is_none() {
        return;
    }
    let maker = Maker::new(&workload.owner, Dialect::Interlock, outcome);
    Reader { workload, settings, maker }.read();
}

impl Reader<'_, '_, '_> {
    fn value(&self, name: &str) -> Option<String> {
        self.workload.labels.get(&label(name)).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// A label that is no boolean counts as not there.
    fn flag(&mut self, name: &str) -> bool {
        let Some(text) = self.value(name) else { return false };
        labels::boolean(&text).unwrap_or_else(|reason| {
            self.maker.ignore(&label(name), text, reason);
            false
        })
    }

    fn ignore(&mut self, name: &str, reason: Reason) {
        let value = self.value(name).unwrap_or_default();
        self.maker.ignore(&label(name), value, reason);
    }

    fn excludes(&mut self, names: &[&str], other: &str) {
        for name in names {
            if self.value(name).is_some_and(|v| labels::boolean(&v) != Ok(false)) {
                self.ignore(name, Reason::Excludes { other: label(other) });
            }
        }
    }

    fn read(&mut self) {
        for (name, _) in self.workload.labels_from(PREFIX) {
            if !KNOWN.contains(&&name[PREFIX.len()..]) {
                self.maker.ignore(name, "", Reason::UnknownLabel);
            }
        }
        let normal = |cluster: &str| if cluster == "default" { String::new() } else { cluster.to_owned() };
        let cluster = self.value("service_cluster").unwrap_or_default();
        if normal(&cluster) != normal(&self.settings.cluster) {
            return self.maker.ignore(&label("service_cluster"), "", Reason::OtherCluster { cluster });
        }
        let passthrough = self.flag("ssl_passthrough");
        if passthrough {
            let unseen = [
                "context_root",
                "context_root_rewrite",
                "redirects",
                "ssl_cert",
                "ssl_key",
                "ssl_only",
                "ssl_backend",
                "sticky_session_cookie",
                "websocket_endpoints",
            ];
            self.excludes(&unseen, "ssl_passthrough");
        }
        let hosts = self.hosts();
        let is_default = self.flag("default_backend") | self.flag("defaul_backend");
        if hosts.is_empty() && !is_default {
            if self.value("hosts").is_none() {
                self.maker.refuse(&label("hosts"), "", Reason::Missing);
            }
            return;
        }
        let Some(backends) = self.backends(passthrough) else { return };
        if passthrough {
            self.pass(hosts, is_default, &backends);
        } else {
            self.open(hosts, is_default, &backends);
        }
    }

    fn hosts(&mut self) -> Vec<String> {
        let mut hosts = Vec::new();
        let text = self.value("hosts").unwrap_or_default();
        if labels::list(&text, ",").count() > MOST {
            self.maker.refuse(&label("hosts"), "", Reason::TooMany { most: MOST });
            return hosts;
        }
        for part in labels::list(&text, ",") {
            match labels::host(part) {
                Ok(host) if hosts.contains(&host) => {}
                Ok(host) => hosts.push(host),
                Err(reason) => self.maker.refuse(&label("hosts"), part, reason),
            }
        }
        hosts
    }

    /// `None` and told, if nobody could be sent to.
    fn backends(&mut self, passthrough: bool) -> Option<BackendSet> {
        let Some(text) = self.value("port") else {
            self.maker.refuse(&label("port"), "", Reason::Missing);
            return None;
        };
        let port = match labels::port(&text) {
            Ok(port) => port,
            Err(reason) => {
                self.maker.refuse(&label("port"), text, reason);
                return None;
            }
        };
        let network = match self.network() {
            Ok(network) => network,
            Err(reason) => {
                let name = self.value("network").unwrap_or_default();
                self.maker.refuse(&label("network"), name, reason);
                return None;
            }
        };
        let mode = match self.value("backend_mode").as_deref() {
            None | Some("task" | "default") => BackendMode::Task,
            Some("vip") => BackendMode::Vip,
            Some(other) => {
                self.maker.ignore(&label("backend_mode"), other, Reason::NotOneOf { allowed: "task, vip" });
                BackendMode::Task
            }
        };
        let mut stickiness = None;
        let mut balance = if self.flag("ip_hash") || self.settings.ip_hash { Balance::IpHash } else { Balance::RoundRobin };
        if mode == BackendMode::Vip {
            self.excludes(&["sticky_session_cookie", "ip_hash"], "backend_mode=vip");
            balance = Balance::RoundRobin;
        } else if let Some(cookie) = self.value("sticky_session_cookie").filter(|_| !passthrough) {
            match labels::cookie_name(&cookie) {
                Ok(name) => stickiness = Some(Stickiness::HashCookie(name)),
                Err(reason) => self.maker.ignore(&label("sticky_session_cookie"), cookie, reason),
            }
        }
        let mut member = Member::service(self.workload.owner.id.clone(), Some(network), port, mode);
        if !passthrough {
            member.tls = self.backend_tls();
        }
        Some(BackendSet { members: vec![member], balance, stickiness })
    }

    fn backend_tls(&mut self) -> Option<BackendTls> {
        let verify = match self.value("ssl_backend_tls_verify").as_deref() {
            Some("none") => false,
            // Not saying so must not mean that anybody may answer.
            None | Some("required") => true,
            Some(other) => {
                self.maker.ignore(&label("ssl_backend_tls_verify"), other, Reason::NotOneOf { allowed: "none, required" });
                true
            }
        };
        if self.flag("ssl_backend") {
            return Some(BackendTls { verify, name: None });
        }
        if self.value("ssl_backend_tls_verify").is_some() {
            self.ignore("ssl_backend_tls_verify", Reason::Needs { other: label("ssl_backend") });
        }
        None
    }

    fn network(&self) -> Result<NetworkId, Reason> {
        match (self.value("network"), &self.workload.networks[..]) {
            (Some(name), networks) => networks
                .iter()
                .find(|n| n.name == name)
                .map(|n| n.id.clone())
                .ok_or_else(|| Reason::NotOnNetwork { on: self.workload.network_names() }),
            (None, [only]) => Ok(only.id.clone()),
            (None, []) => Err(Reason::NoNetwork),
            (None, _) => Err(Reason::SeveralNetworks),
        }
    }

    fn policy(&self) -> Policy {
        let settings = self.settings;
        Policy {
            timeouts: Timeouts {
                connect: Some(settings.connect),
                server: Some(settings.server),
                client: Some(settings.client),
                keep_alive: Some(settings.keep_alive),
                ..Timeouts::default()
            },
            limits: Limits { body: Some(settings.body), connections: None },
            retries: Retries { attempts: None, on: RETRIED.to_vec() },
            ejection: Some(Ejection { failures: 1, time: Duration::from_secs(10) }),
            ..Policy::default()
        }
    }

    /// TLS that is not opened.
    fn pass(&mut self, hosts: Vec<String>, is_default: bool, backends: &BackendSet) {
        let mut add = |matching: Match, precedence, name: &str, share| {
            let mut route = self.maker.route(&label(name), Listener::Tls, matching, Action::Forward(backends.clone()));
            route.policy.timeouts =
                Timeouts { connect: Some(self.settings.connect), tunnel: Some(self.settings.server), ..Timeouts::default() };
            (route.precedence, route.share) = (precedence, share);
            self.maker.add(route);
        };
        for host in hosts {
            add(Match::host(host), Precedence::Specific { priority: 0 }, "hosts", pool());
        }
        if is_default {
            add(Match::default(), Precedence::Default, "default_backend", Share::Alone);
        }
    }

    /// HTTP, and with a certificate HTTPS too.
    fn open(&mut self, hosts: Vec<String>, is_default: bool, backends: &BackendSet) {
        let Ok(certificate) = self.certificate() else { return };
        let Some(root) = self.context_root() else { return };
        let rewrite = self.flag("context_root_rewrite");
        if rewrite && root.is_none() {
            self.ignore("context_root_rewrite", Reason::Needs { other: label("context_root") });
        }
        self.websockets();
        let redirects = self.redirects(&hosts);

        let mut filters = Vec::new();
        if self.flag("ssl_only") {
            if certificate.is_some() {
                filters.push(Filter::HttpsOnly(RedirectCode::Found));
            } else {
                self.ignore("ssl_only", Reason::Needs { other: label("ssl_cert") });
            }
        }
        let forward = ForwardHeaders { forwarded_for: true, real_ip: true, request_id: true, ..ForwardHeaders::default() };
        filters.push(Filter::Forward(forward));
        if !self.settings.hide_info_headers {
            filters.push(Filter::InfoHeaders);
        }
        let mut routed = filters.clone();
        if let Some(root) = root.clone().filter(|_| rewrite) {
            routed.push(Filter::AppendSlash(AppendSlash { root: root.clone() }));
            routed.push(Filter::Rewrite(Rewrite::StripPrefix { root }));
        }

        let paths: Vec<PathMatch> = root.iter().map(PathMatch::prefix).collect();
        let mut places: Vec<(Option<String>, &str)> = hosts.into_iter().map(|h| (Some(h), "hosts")).collect();
        if is_default {
            places.push((None, "default_backend"));
        }
        for (host, name) in places {
            let redirect = host.as_ref().and_then(|host| redirects.iter().find(|(from, _)| from == host));
            let listener = match (redirect.is_some(), certificate.is_some()) {
                (false, true) => Some(Listener::Any),
                (false, false) => Some(Listener::Http),
                (true, true) => Some(Listener::Https),
                (true, false) => None,
            };
            let hosts: Vec<HostMatch> = host.clone().into_iter().map(HostMatch::Exact).collect();
            if let Some((_, redirect)) = redirect {
                let matching = Match { hosts: hosts.clone(), ..Match::default() };
                let mut route = self.maker.route(&label("redirects"), Listener::Http, matching, Action::Redirect(redirect.clone()));
                // The answer has the headers that say who gave it.
                route.filters = filters.iter().filter(|f| matches!(f, Filter::InfoHeaders)).cloned().collect();
                self.maker.add(route);
            }
            let Some(listener) = listener else { continue };
            let matching = Match { hosts, paths: paths.clone(), ..Match::default() };
            let mut route = self.maker.route(&label(name), listener, matching.clone(), Action::Forward(backends.clone()));
            route.filters.clone_from(&routed);
            route.certificate.clone_from(&certificate);
            route.policy = self.policy();
            if host.is_some() {
                route.share = pool();
            } else {
                route.precedence = Precedence::Default;
            }
            self.maker.add(route);
            // A host with a context root has nothing elsewhere; what another would do with it is not asked.
            if !paths.is_empty() && host.is_some() {
                let matching = Match { paths: Vec::new(), ..matching };
                let mut rest = self.maker.route(&label(name), listener, matching, Action::Status(404));
                rest.precedence = Precedence::Rest;
                self.maker.add(rest);
            }
        }
    }

    fn certificate(&mut self) -> Result<Option<CertificateRef>, ()> {
        match (self.value("ssl_cert"), self.value("ssl_key")) {
            (Some(certificate), key) => Ok(Some(CertificateRef::Secrets { certificate, key })),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                // Without it the service would answer by plain HTTP what was meant for TLS.
                let value = self.value("ssl_key").unwrap_or_default();
                self.maker.refuse(&label("ssl_key"), value, Reason::Needs { other: label("ssl_cert") });
                Err(())
            }
        }
    }

    /// `None` and told, if there is one that cannot be: the service must not get the whole host for it.
    #[expect(clippy::option_option, reason = "no root, and no route, are two things")]
    fn context_root(&mut self) -> Option<Option<String>> {
        let Some(text) = self.value("context_root") else { return Some(None) };
        match labels::path(&text) {
            Ok(path) => Some(Some(path).filter(|p| p != "/")),
            Err(reason) => {
                self.maker.refuse(&label("context_root"), text, reason);
                None
            }
        }
    }

    /// Every route takes upgrades; the list is looked at for mistakes only.
    fn websockets(&mut self) {
        let text = self.value("websocket_endpoints").unwrap_or_default();
        for part in labels::list(&text, ",") {
            if let Err(reason) = labels::path(part) {
                self.maker.ignore(&label("websocket_endpoints"), part, reason);
            }
        }
    }

    fn redirects(&mut self, hosts: &[String]) -> Vec<(String, Redirect)> {
        let name = label("redirects");
        let text = self.value("redirects").unwrap_or_default();
        let mut redirects: Vec<(String, Redirect)> = Vec::new();
        for pair in labels::list(&text, ";") {
            let Some((from, to)) = pair.split_once(',') else {
                self.maker.ignore(&name, pair, Reason::NotAPair);
                continue;
            };
            let (from, to) = match (labels::url(from), labels::url(to)) {
                (Ok(from), Ok(to)) => (from, to),
                (Err(reason), _) | (_, Err(reason)) => {
                    self.maker.ignore(&name, pair, reason);
                    continue;
                }
            };
            if !hosts.contains(&from.host) {
                self.maker.ignore(&name, pair, Reason::Needs { other: format!("{} in {}", from.host, label("hosts")) });
            } else if to.scheme == "http" && to.port.is_none() && to.host == from.host {
                self.maker.ignore(&name, pair, Reason::NotSupported { why: "it leads to itself" });
            } else if redirects.iter().any(|(host, _)| *host == from.host) {
                self.maker.ignore(&name, pair, Reason::Twice { key: from.host });
            } else {
                redirects.push((from.host.clone(), Redirect { code: RedirectCode::Found, to: to.before() }));
            }
        }
        redirects
    }
}

/// Backends of one host come together.
fn pool() -> Share {
    Share::Pool(Pool { dialect: Dialect::Interlock, name: String::new() })
}

fn label(name: &str) -> String {
    format!("{PREFIX}{name}")
}
