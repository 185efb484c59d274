//! Docker Flow Proxy: `com.df.*` on services.
//!
//! A service has destinations, numbered 1 to 10, or one without a number. All services' routes are one list, which is
//! searched from its beginning: the first that matches has the request, not the most precise.

use std::{collections::BTreeMap, time::Duration};

use swarmesh_model::NetworkId;

use super::{
    MOST, Maker, Outcome, Workload,
    haproxy::{self, HeaderVerb, HostAlgorithm, PathAlgorithm},
    labels,
};
use crate::{
    model::{
        Action, BackendMode, BackendSet, BackendTls, Balance, BasicAuth, CertificateRef, Compression, CompressionAlgorithm, Dialect,
        Filter, ForwardHeaders, ForwardedProto, HeaderMatch, HostMatch, Limits, ListClass, ListOrder, Listener, Match, Member, Password,
        PathMatch, Pattern, Policy, Pool, Precedence, Redirect, RedirectCode, RedirectTarget, Replacement, Retries, RetryOn, Rewrite,
        Share, Stickiness, Target, TextMatch, Timeouts, User,
    },
    problem::Reason,
};

/// What its labels begin with.
pub const PREFIX: &str = "com.df.";

/// What the proxy's environment said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `SEPARATOR`
    pub separator: String,
    /// `SERVICE_DOMAIN_ALGO`
    pub domain_algorithm: String,
    /// `HTTPS_ONLY`
    pub https_only: bool,
    /// `PROXY_INSTANCE_NAME`, if `FILTER_PROXY_INSTANCE_NAME` is true
    pub instance: Option<String>,
    /// The networks that the proxy was on. A service on one of them is reached there, another in its first.
    pub networks: Vec<String>,
    /// `TIMEOUT_CONNECT` and so on
    pub timeouts: Timeouts,
    /// `maxconn` of its template
    pub connections: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = |n| Some(Duration::from_secs(n));
        Self {
            separator: ",".to_owned(),
            domain_algorithm: "hdr_beg(host)".to_owned(),
            https_only: false,
            instance: None,
            networks: vec!["proxy".to_owned()],
            timeouts: Timeouts {
                connect: seconds(5),
                client: seconds(20),
                server: seconds(20),
                queue: seconds(30),
                tunnel: seconds(3600),
                request: seconds(5),
                keep_alive: seconds(15),
            },
            connections: 5000,
        }
    }
}

/// Whether `SERVICE_DOMAIN_ALGO` can be understood.
pub fn check_domain_algorithm(text: &str) -> Result<(), Reason> {
    HostAlgorithm::of_host(text).map(drop)
}

/// Parameters that may have a number behind them.
const INDEXED: [&str; 30] = [
    "allowedmethods",
    "balancegroup",
    "checktcp",
    "clitcpka",
    "deniedmethods",
    "denyhttp",
    "httpsonly",
    "httpsport",
    "httpsredirectcode",
    "ignoreauthorization",
    "outboundhostname",
    "pathtype",
    "port",
    "redirectfromdomain",
    "reqmode",
    "reqpathsearchreplace",
    "servicedomain",
    "servicegroup",
    "serviceheader",
    "servicepath",
    "servicepathexclude",
    "srcport",
    "srchttpsport",
    "sslverifynone",
    "timeoutclient",
    "timeoutserver",
    "timeouttunnel",
    "verifyclientssl",
    "useragent",
    "userdef",
];

/// Parameters of the service as a whole.
const SERVICE: [&str; 44] = [
    "aclname",
    "addheader",
    "addreqheader",
    "addresheader",
    "backendextra",
    "checkresolvers",
    "compressionalgo",
    "compressiontype",
    "connectionmode",
    "consultemplatebepath",
    "consultemplatefepath",
    "delreqheader",
    "delresheader",
    "discoverytype",
    "distribute",
    "isdefaultbackend",
    "notify",
    "notifyservice",
    "proxyinstancename",
    "redirectunlesshttpsproto",
    "redirectwhenhttpproto",
    "replicas",
    "reqpathreplace",
    "reqpathsearch",
    "reqrepreplace",
    "reqrepsearch",
    "scrapenetwork",
    "servicecert",
    "servicecolor",
    "servicedomainalgo",
    "servicedomainmatchall",
    "servicename",
    "sessiontype",
    "setheader",
    "setreqheader",
    "setresheader",
    "shortname",
    "skipcheck",
    "templatebepath",
    "templatefepath",
    "users",
    "userspassencrypted",
    "userssecret",
    "xforwardedproto",
];

/// A label that cannot be followed: its name, what to show of its value, and why.
type Fault = Box<(String, String, Reason)>;

fn fault(label: impl Into<String>, value: impl Into<String>, reason: Reason) -> Fault {
    Box::new((label.into(), value.into(), reason))
}

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, settings: &Settings, outcome: &mut Outcome) {
    let mut params = BTreeMap::new();
    for (label, value) in workload.labels_from(PREFIX) {
        params.insert(label[PREFIX.len()..].to_ascii_lowercase(), (label, value.trim()));
    }
    let mut maker = Maker::new(&workload.owner, Dialect::FlowProxy, outcome);
    match params.get("notify") {
        None => return,
        Some((label, value)) => match labels::boolean(value) {
            Ok(true) => {}
            Ok(false) => return,
            Err(reason) => return maker.refuse(label, *value, reason),
        },
    }
    let mut reader = Reader { workload, settings, params };
    if let Err(fault) = reader.read(&mut maker) {
        let (label, value, reason) = *fault;
        maker.refuse(&label, value, reason);
    }
}

struct Reader<'r, 'w> {
    workload: &'r Workload<'w>,
    settings: &'r Settings,
    /// By name in lower case: the label and its value.
    params: BTreeMap<String, (&'w str, &'w str)>,
}

/// What a whole service says.
struct Service {
    acl: String,
    class: ListClass,
    algorithm: HostAlgorithm,
    /// Some domain begins with `*`: all are endings.
    wildcard: bool,
    request_headers: Vec<Filter>,
    sticky: Option<Stickiness>,
    mode: BackendMode,
    checked: bool,
    balance: Balance,
    close_upstream: bool,
    auth: Option<BasicAuth>,
    compression: Option<Compression>,
    certificate: Option<CertificateRef>,
    line: Option<Rewrite>,
    path: Option<Rewrite>,
    network: Option<NetworkId>,
    is_default: bool,
    when_http: bool,
    unless_https: bool,
}

impl<'w> Reader<'_, 'w> {
    /// The label and the value of a parameter; that of the number first, if there is one. Empty is absent.
    fn get(&self, name: &str, index: u16) -> Option<(&'w str, &'w str)> {
        let numbered = (index > 0).then(|| self.params.get(&format!("{name}.{index}"))).flatten();
        let find = |p: Option<&(&'w str, &'w str)>| p.copied().filter(|(_, value)| !value.is_empty());
        find(numbered).or_else(|| find(self.params.get(name)))
    }

    fn text(&self, name: &str) -> Option<&'w str> {
        self.get(name, 0).map(|(_, value)| value)
    }

    /// A parameter through a grammar.
    fn parse<T>(&self, name: &str, index: u16, parse: impl FnOnce(&'w str) -> Result<T, Reason>) -> Result<Option<T>, Fault> {
        let Some((label, value)) = self.get(name, index) else { return Ok(None) };
        parse(value).map(Some).map_err(|reason| fault(label.to_owned(), value.to_owned(), reason))
    }

    /// A boolean that closes something: one that cannot be read leaves no route.
    fn guard(&self, name: &str, index: u16) -> Result<bool, Fault> {
        Ok(self.parse(name, index, labels::boolean)?.unwrap_or(false))
    }

    /// A boolean that is false if it cannot be read, which is told.
    fn flag(&self, maker: &mut Maker<'_>, name: &str, index: u16) -> bool {
        self.guard(name, index).unwrap_or_else(|fault| {
            let (label, value, reason) = *fault;
            maker.ignore(&label, value, reason);
            false
        })
    }

    fn list(&self, name: &str, index: u16) -> Vec<&'w str> {
        self.get(name, index).map_or_else(Vec::new, |(_, value)| labels::list(value, &self.settings.separator).collect())
    }

    /// All parts of a list through a grammar, or the first that does not fit.
    fn parse_list<T>(&self, name: &str, index: u16, parse: impl Fn(&'w str) -> Result<T, Reason>) -> Result<Vec<T>, Fault> {
        let label = self.get(name, index).map_or("", |(label, _)| label);
        let list = self.list(name, index);
        if list.len() > MOST {
            return Err(fault(label, "", Reason::TooMany { most: MOST }));
        }
        list.into_iter().map(|part| parse(part).map_err(|r| fault(label.to_owned(), part.to_owned(), r))).collect()
    }

    fn read(&mut self, maker: &mut Maker<'_>) -> Result<(), Fault> {
        if let Some(instance) = &self.settings.instance {
            let theirs = self.text("proxyinstancename").unwrap_or_default();
            if theirs != instance {
                let label = self.get("proxyinstancename", 0).map_or_else(|| label("proxyInstanceName"), |(l, _)| l.to_owned());
                maker.ignore(&label, "", Reason::OtherCluster { cluster: theirs.to_owned() });
                return Ok(());
            }
        }
        // A service scaled to nothing is one that was removed.
        if self.parse("replicas", 0, |text| labels::number(text, 0, u64::from(u32::MAX)))? == Some(0) {
            return Ok(());
        }
        for name in ["templatefepath", "templatebepath"] {
            self.parse(name, 0, |_| Err::<(), _>(Reason::Raw { system: "HAProxy" }))?;
        }
        let indexes = self.indexes();
        self.tell_unknown(maker, &indexes);
        let service = self.service(maker, &indexes)?;
        let mut default = None;
        for index in indexes {
            if let Err(fault) = self.destination(maker, &service, index, &mut default) {
                let (label, value, reason) = *fault;
                maker.refuse(&label, value, reason);
            }
        }
        if let Some(mut route) = default.filter(|_| service.is_default) {
            route.precedence = Precedence::Default;
            route.matching = Match::default();
            route.listener = Listener::Any;
            route.origin = maker.origin(self.get("isdefaultbackend", 0).map_or("", |(label, _)| label));
            maker.add(route);
        }
        Ok(())
    }

    /// The numbers of the destinations: from 1 without a gap, or 0 for the one that has none.
    fn indexes(&self) -> Vec<u16> {
        let there = |suffix: &str| {
            ["servicepath", "port", "servicedomain", "httpsport"]
                .iter()
                .any(|name| self.params.get(&format!("{name}{suffix}")).is_some_and(|(_, value)| !value.is_empty()))
        };
        let numbered: Vec<u16> = (1..=10).take_while(|index| there(&format!(".{index}"))).collect();
        if numbered.is_empty() { vec![0] } else { numbered }
    }

    fn tell_unknown(&self, maker: &mut Maker<'_>, indexes: &[u16]) {
        for (name, (label, value)) in &self.params {
            let (base, index) = name.rsplit_once('.').map_or((name.as_str(), None), |(base, index)| (base, index.parse::<u16>().ok()));
            match index {
                Some(index) if INDEXED.contains(&base) => {
                    if !indexes.contains(&index) {
                        let other = "servicePath, serviceDomain, port or httpsPort of the same number, of 1 to 10 without a gap".to_owned();
                        maker.ignore(label, *value, Reason::Needs { other });
                    }
                }
                None if INDEXED.contains(&base) || SERVICE.contains(&base) => {}
                // Docker Flow Monitor shares the prefix.
                _ if base.starts_with("alert") || base.starts_with("scrape") => {}
                _ => maker.ignore(label, "", Reason::UnknownLabel),
            }
        }
        for (name, why) in [
            ("servicename", "the service's own name is used"),
            ("consultemplatefepath", "it is of a mode that went in 2017"),
            ("consultemplatebepath", "it is of a mode that went in 2017"),
        ] {
            if let Some((label, value)) = self.get(name, 0) {
                maker.ignore(label, value, Reason::NotSupported { why });
            }
        }
    }

    fn service(&self, maker: &mut Maker<'_>, indexes: &[u16]) -> Result<Service, Fault> {
        let name = self.name(maker);
        let paths = || indexes.iter().flat_map(|index| self.list("servicepath", *index));
        let domains = || indexes.iter().flat_map(|index| self.list("servicedomain", *index));
        let class = if paths().any(|p| p.to_ascii_lowercase().starts_with("/.well-known")) {
            ListClass::WellKnown
        } else if indexes.iter().any(|index| self.has_root(*index)) {
            ListClass::Root
        } else {
            ListClass::Plain
        };
        let http = indexes.iter().any(|i| self.get("reqmode", *i).is_none_or(|(_, mode)| mode.eq_ignore_ascii_case("http")));
        let algorithm = match self.get("servicedomainmatchall", 0) {
            Some((_, value)) if labels::boolean(value) == Ok(true) => HostAlgorithm::Labels,
            _ if !http => HostAlgorithm::Exact,
            _ => match self.parse("servicedomainalgo", 0, HostAlgorithm::of_host)? {
                Some(algorithm) => algorithm,
                None => HostAlgorithm::of_host(&self.settings.domain_algorithm)
                    .map_err(|reason| fault("SERVICE_DOMAIN_ALGO".to_owned(), self.settings.domain_algorithm.clone(), reason))?,
            },
        };
        let session = self.text("sessiontype");
        let sticky = (session == Some("sticky-server")).then(|| Stickiness::InsertCookie(name.clone()));
        if let Some(Stickiness::InsertCookie(cookie)) = &sticky {
            labels::cookie_name(cookie).map_err(|reason| fault(label("sessionType"), cookie.clone(), reason))?;
        }
        let by_dns = self.text("discoverytype").is_some_and(|t| t == "DNS");
        let close_upstream = match self.get("connectionmode", 0) {
            None | Some((_, "http-keep-alive")) => false,
            Some((_, "httpclose" | "http-server-close" | "forceclose")) => true,
            Some((label, "http-tunnel")) => {
                let why = "what follows a connection's first request would go by unseen; keep-alive is used";
                maker.ignore(label, "http-tunnel", Reason::NotSupported { why });
                false
            }
            Some((label, other)) => {
                let allowed = "http-keep-alive, http-server-close, httpclose, forceclose";
                maker.ignore(label, other, Reason::NotOneOf { allowed });
                false
            }
        };
        let (line, path) = (self.rewrite("reqrepsearch", "reqrepreplace", true)?, self.rewrite("reqpathsearch", "reqpathreplace", false)?);
        Ok(Service {
            acl: self.text("aclname").unwrap_or(&name).to_owned(),
            class,
            algorithm,
            wildcard: domains().any(|d| d.starts_with('*')),
            request_headers: self.headers()?,
            sticky,
            mode: if session.is_some() || by_dns { BackendMode::Task } else { BackendMode::Vip },
            checked: session.is_some() || by_dns,
            balance: self.parse("backendextra", 0, haproxy::backend_extra)?.flatten().unwrap_or_default(),
            close_upstream,
            auth: self.auth(&name)?,
            compression: self.compression(maker),
            certificate: self.certificate(&name)?,
            line,
            path,
            network: self.network(),
            is_default: self.flag(maker, "isdefaultbackend", 0),
            when_http: self.guard("redirectwhenhttpproto", 0)?,
            unless_https: self.guard("redirectunlesshttpsproto", 0)?,
        })
    }

    /// A domain without a path has all of them.
    fn has_root(&self, index: u16) -> bool {
        let paths = self.list("servicepath", index);
        paths.contains(&"/") || paths.is_empty() && self.get("servicedomain", index).is_some()
    }

    fn name(&self, maker: &mut Maker<'_>) -> String {
        let name = self.workload.owner.name.as_str();
        let stack = self.workload.labels.get("com.docker.stack.namespace");
        let short = stack.and_then(|stack| name.strip_prefix(stack.as_str())).and_then(|rest| rest.strip_prefix('_'));
        short.filter(|_| self.flag(maker, "shortname", 0)).unwrap_or(name).to_owned()
    }

    fn network(&self) -> Option<NetworkId> {
        let networks = &self.workload.networks;
        let on = |wanted: &String| networks.iter().find(|n| n.name == *wanted || n.name.ends_with(&format!("_{wanted}")));
        self.settings.networks.iter().find_map(on).or_else(|| networks.first()).map(|n| n.id.clone())
    }

    /// In the order in which the proxy wrote them.
    fn headers(&self) -> Result<Vec<Filter>, Fault> {
        let mut filters = Vec::new();
        for (name, old, verb, request) in [
            ("addreqheader", Some("addheader"), HeaderVerb::Add, true),
            ("setreqheader", Some("setheader"), HeaderVerb::Set, true),
            ("addresheader", None, HeaderVerb::Add, false),
            ("setresheader", None, HeaderVerb::Set, false),
            ("delreqheader", None, HeaderVerb::Delete, true),
            ("delresheader", None, HeaderVerb::Delete, false),
        ] {
            let name = if self.get(name, 0).is_some() { name } else { old.unwrap_or(name) };
            // A value may be a secret: the name is what is shown.
            let told = |mut fault: Fault| {
                fault.1 = fault.1.split_whitespace().next().unwrap_or_default().to_owned();
                fault
            };
            for change in self.parse_list(name, 0, |text| haproxy::header(text, verb)).map_err(told)? {
                filters.push(if request { Filter::Request(change) } else { Filter::Response(change) });
            }
        }
        Ok(filters)
    }

    fn rewrite(&self, search: &str, replace: &str, line: bool) -> Result<Option<Rewrite>, Fault> {
        let Some(pattern) = self.parse(search, 0, |text| Pattern::new(text).map_err(Reason::Pattern))? else {
            if let Some((label, value)) = self.get(replace, 0) {
                return Err(fault(
                    label.to_owned(),
                    value.to_owned(),
                    Reason::Needs { other: self::label(if line { "reqRepSearch" } else { "reqPathSearch" }) },
                ));
            }
            return Ok(None);
        };
        let by = |text: &str| Replacement::new(text, &pattern).map_err(Reason::Pattern);
        let replace = match self.parse(replace, 0, by)? {
            Some(replace) => replace,
            None => by("").map_err(|reason| fault(label(replace), String::new(), reason))?,
        };
        Ok(Some(if line { Rewrite::RequestLine { search: pattern, replace } } else { Rewrite::Path { search: pattern, replace } }))
    }

    fn auth(&self, name: &str) -> Result<Option<BasicAuth>, Fault> {
        let hashed = self.guard("userspassencrypted", 0)?;
        let secret = self.text("userssecret").map(|secret| format!("dfp_users_{secret}"));
        let Some((label, text)) = self.get("users", 0) else {
            return Ok(secret.map(|secret| BasicAuth {
                realm: format!("{name}Realm"),
                users: Vec::new(),
                secret: Some(secret),
                secret_hashed: hashed,
                consume: true,
            }));
        };
        let mut users = Vec::new();
        for part in text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty()) {
            let (user, password) = part.split_once(':').map_or((part, None), |(user, password)| (user.trim(), Some(password.trim())));
            if user.is_empty() || password == Some("") {
                return Err(fault(label.to_owned(), user.to_owned(), Reason::NotAPair));
            }
            let password = match password {
                Some(hash) if hashed => {
                    Some(Password::hash(hash).map_err(|e| fault(label.to_owned(), user.to_owned(), Reason::Password(e)))?)
                }
                Some(plain) => Some(Password::Plain(plain.to_owned())),
                None => None,
            };
            users.push(User { name: user.to_owned(), password });
        }
        Ok(Some(BasicAuth { realm: format!("{name}Realm"), users, secret, secret_hashed: hashed, consume: true }))
    }

    fn compression(&self, maker: &mut Maker<'_>) -> Option<Compression> {
        let (label, text) = self.get("compressionalgo", 0)?;
        let mut algorithms = Vec::new();
        for word in text.split_whitespace() {
            match word {
                "identity" => algorithms.push(CompressionAlgorithm::Identity),
                "gzip" => algorithms.push(CompressionAlgorithm::Gzip),
                "deflate" => algorithms.push(CompressionAlgorithm::Deflate),
                "raw-deflate" => algorithms.push(CompressionAlgorithm::RawDeflate),
                other => maker.ignore(label, other, Reason::NotOneOf { allowed: "identity, gzip, deflate, raw-deflate" }),
            }
        }
        let types = self.text("compressiontype").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        (!algorithms.is_empty()).then_some(Compression { algorithms, types })
    }

    fn certificate(&self, name: &str) -> Result<Option<CertificateRef>, Fault> {
        let Some((label, text)) = self.get("servicecert", 0) else { return Ok(None) };
        let pem = text.replace("\\n", "\n");
        // The value holds a key: it is not shown.
        if !pem.contains("-----BEGIN CERTIFICATE-----") || !pem.contains("PRIVATE KEY-----") {
            return Err(fault(label.to_owned(), String::new(), Reason::NotAPem));
        }
        let domain =
            self.list("servicedomain", 0).first().or(self.list("servicedomain", 1).first()).map(|d| d.trim_matches('*').to_owned());
        Ok(Some(CertificateRef::Inline { name: domain.unwrap_or_else(|| name.to_owned()), pem }))
    }

    fn destination(
        &self,
        maker: &mut Maker<'_>,
        service: &Service,
        index: u16,
        default: &mut Option<crate::model::Route>,
    ) -> Result<(), Fault> {
        match self.get("reqmode", index) {
            None => self.http(maker, service, index, default),
            Some((_, mode)) if mode.eq_ignore_ascii_case("http") => self.http(maker, service, index, default),
            Some((_, mode)) if mode.eq_ignore_ascii_case("tcp") => self.tcp(maker, service, index),
            Some((_, mode)) if mode.eq_ignore_ascii_case("sni") => self.sni(maker, service, index),
            Some((label, mode)) => Err(fault(label.to_owned(), mode.to_owned(), Reason::NotOneOf { allowed: "http, tcp, sni" })),
        }
    }

    fn port(&self, name: &str, index: u16) -> Result<Option<u16>, Fault> {
        self.parse(name, index, labels::port)
    }

    /// The label that a destination stands for in lists.
    fn main_label(&self, index: u16) -> String {
        let found = ["servicepath", "servicedomain", "port", "httpsport"].iter().find_map(|name| self.get(name, index));
        found.map_or_else(|| label("port"), |(label, _)| label.to_owned())
    }

    fn domains(&self, service: &Service, index: u16, algorithm: HostAlgorithm) -> Result<Vec<HostMatch>, Fault> {
        let algorithm = if service.wildcard { HostAlgorithm::End } else { algorithm };
        self.parse_list("servicedomain", index, |domain| algorithm.host(domain.trim_matches('*')))
    }

    fn backends(&self, service: &Service, index: u16, port: u16) -> Result<BackendSet, Fault> {
        let mut member = Member::service(self.workload.owner.id.clone(), service.network.clone(), port, service.mode);
        if let Some(name) = self.parse("outboundhostname", index, labels::host)? {
            member.target = Target::Host { name, network: service.network.clone() };
        } else if service.network.is_none() {
            return Err(fault(self.main_label(index), String::new(), Reason::NoNetwork));
        }
        if self.guard("sslverifynone", index)? {
            member.tls = Some(BackendTls { verify: false, name: None });
        }
        Ok(BackendSet { members: vec![member], balance: service.balance, stickiness: service.sticky.clone() })
    }

    fn policy(&self, maker: &mut Maker<'_>, service: &Service, index: u16) -> Result<Policy, Fault> {
        let mut timeouts = self.settings.timeouts.clone();
        for (name, place) in
            [("timeoutserver", &mut timeouts.server), ("timeouttunnel", &mut timeouts.tunnel), ("timeoutclient", &mut timeouts.client)]
        {
            if let Some(time) = self.parse(name, index, labels::seconds)? {
                *place = Some(time);
            }
        }
        Ok(Policy {
            timeouts,
            limits: Limits { body: None, connections: Some(self.settings.connections) },
            // `option redispatch`
            retries: Retries { attempts: Some(3), on: vec![RetryOn::ConnectFailure] },
            close_upstream: service.close_upstream,
            client_keepalive: self.flag(maker, "clitcpka", index),
            check_connect: service.checked || self.flag(maker, "checktcp", index),
            ..Policy::default()
        })
    }

    fn http(&self, maker: &mut Maker<'_>, service: &Service, index: u16, default: &mut Option<crate::model::Route>) -> Result<(), Fault> {
        let hosts = self.domains(service, index, service.algorithm)?;
        let algorithm = self.parse("pathtype", index, PathAlgorithm::new)?;
        let path = |text: &'w str| match &algorithm {
            Some(algorithm) => algorithm.path(text),
            None => labels::path(text).map(PathMatch::prefix),
        };
        let mut paths = self.parse_list("servicepath", index, path)?;
        if paths.is_empty() {
            if hosts.is_empty() {
                return Err(fault(label("servicePath"), String::new(), Reason::Missing));
            }
            paths.push(PathMatch::prefix("/"));
        }
        let not_paths = self.parse_list("servicepathexclude", index, path)?;
        let headers = self.parse_list("serviceheader", index, header_condition)?;
        let agents: Vec<TextMatch> = self.list("useragent", index).into_iter().map(|a| TextMatch::Contains(a.to_owned())).collect();
        let agent = (!agents.is_empty()).then(|| HeaderMatch { name: "user-agent".to_owned(), values: agents, negate: false });
        let (port, https_port) = (self.port("port", index)?, self.port("httpsport", index)?);
        if port.is_none() && https_port.is_none() {
            return Err(fault(label("port"), String::new(), Reason::Missing));
        }
        let (from, https_from) = (self.port("srcport", index)?, self.port("srchttpsport", index)?);
        let code = self.parse("httpsredirectcode", index, labels::redirect_code)?.unwrap_or(RedirectCode::Found);
        let policy = self.policy(maker, service, index)?;
        let shared = self.filters(maker, service, index)?;
        let list = |class, part| Precedence::Listed(ListOrder { class, name: service.acl.clone(), index: index * 2 + part });
        let main = self.main_label(index);

        self.redirects_from(maker, service, index, &hosts, &list(ListClass::Redirect, 0))?;

        let matching =
            Match { hosts, paths, not_paths, headers: headers.into_iter().chain(agent.clone()).collect(), methods: Vec::new(), port: from };
        if let Some(port) = port {
            for (name, wanted, negate, value) in [
                ("redirectwhenhttpproto", service.when_http, false, "http"),
                ("redirectunlesshttpsproto", service.unless_https, true, "https"),
            ] {
                if wanted {
                    let header =
                        HeaderMatch { name: "x-forwarded-proto".to_owned(), values: vec![TextMatch::Exact(value.to_owned())], negate };
                    let matching = Match { headers: vec![header], not_paths: Vec::new(), ..matching.clone() };
                    let action = Action::Redirect(Redirect { code, to: RedirectTarget::Https });
                    let label = self.get(name, 0).map_or("", |(label, _)| label);
                    let mut route = maker.route(label, Listener::Any, matching, action);
                    route.precedence = list(ListClass::Redirect, 1);
                    maker.add(route);
                }
            }
            // With a second port for TLS, this one is for what comes without, unless a port says it.
            let listener = if https_port.is_some() && from.is_none() { Listener::Http } else { Listener::Any };
            let mut route = maker.route(&main, listener, matching.clone(), Action::Forward(self.backends(service, index, port)?));
            if self.guard("httpsonly", index)? || self.guard("httpsonly", 0)? || self.settings.https_only {
                route.filters.push(Filter::HttpsOnly(code));
            }
            route.filters.extend(shared.iter().cloned());
            // Before anybody is asked for a password.
            if self.guard("denyhttp", index)? {
                let at = route
                    .filters
                    .iter()
                    .position(|f| matches!(f, Filter::BasicAuth(_) | Filter::GlobalAuth))
                    .unwrap_or(route.filters.len());
                route.filters.insert(at, Filter::RefusePlain);
            }
            route.precedence = list(service.class, 0);
            route.policy = policy.clone();
            route.certificate.clone_from(&service.certificate);
            *default = Some(route.clone());
            maker.add(route);
        }
        if let Some(port) = https_port {
            let listener = if https_from.is_none() { Listener::Https } else { Listener::Any };
            let matching = Match { headers: agent.into_iter().collect(), port: https_from, ..matching };
            let label = self.get("httpsport", index).map_or("", |(label, _)| label);
            let mut route = maker.route(label, listener, matching, Action::Forward(self.backends(service, index, port)?));
            route.filters = shared;
            route.precedence = list(service.class, 1);
            route.policy = policy;
            route.certificate.clone_from(&service.certificate);
            maker.add(route);
        }
        Ok(())
    }

    /// What both ports' requests go through.
    fn filters(&self, maker: &mut Maker<'_>, service: &Service, index: u16) -> Result<Vec<Filter>, Fault> {
        let mut filters =
            vec![Filter::Forward(ForwardHeaders { forwarded_for: true, proto: Some(ForwardedProto::IfTls), ..ForwardHeaders::default() })];
        filters.extend(service.compression.clone().map(Filter::Compress));
        filters.extend(service.request_headers.iter().cloned());
        filters.extend(service.path.clone().map(Filter::Rewrite));
        filters.extend(self.path_rewrites(index)?.into_iter().map(Filter::Rewrite));
        if self.guard("verifyclientssl", index)? {
            filters.push(Filter::ClientCertificate);
        }
        let allowed = self.parse_list("allowedmethods", index, labels::method)?;
        if !allowed.is_empty() {
            filters.push(Filter::AllowMethods(allowed));
        }
        let denied = self.parse_list("deniedmethods", index, labels::method)?;
        if !denied.is_empty() {
            filters.push(Filter::DenyMethods(denied));
        }
        if !self.flag(maker, "ignoreauthorization", index) {
            filters.extend(service.auth.clone().map(Filter::BasicAuth));
            filters.push(Filter::GlobalAuth);
        }
        filters.extend(service.line.clone().map(Filter::Rewrite));
        Ok(filters)
    }

    /// `search,replace:search,replace`
    fn path_rewrites(&self, index: u16) -> Result<Vec<Rewrite>, Fault> {
        let Some((label, text)) = self.get("reqpathsearchreplace", index) else { return Ok(Vec::new()) };
        if text.split(':').count() > MOST {
            return Err(fault(label, "", Reason::TooMany { most: MOST }));
        }
        text.split(':')
            .map(|pair| {
                let mut parts = pair.split(',');
                let (Some(search), Some(replace), None) = (parts.next(), parts.next(), parts.next()) else {
                    return Err((pair, Reason::NotAPair));
                };
                let search = Pattern::new(search).map_err(|e| (pair, Reason::Pattern(e)))?;
                let replace = Replacement::new(replace, &search).map_err(|e| (pair, Reason::Pattern(e)))?;
                Ok(Rewrite::Path { search, replace })
            })
            .map(|rewrite| rewrite.map_err(|(pair, reason)| fault(label, pair, reason)))
            .collect()
    }

    fn redirects_from(
        &self,
        maker: &mut Maker<'_>,
        service: &Service,
        index: u16,
        hosts: &[HostMatch],
        precedence: &Precedence,
    ) -> Result<(), Fault> {
        let Some((label, _)) = self.get("redirectfromdomain", index) else { return Ok(()) };
        let from = self.parse_list("redirectfromdomain", index, |text| HostAlgorithm::Beginning.host(text))?;
        let to = match hosts.first() {
            Some(host) if !service.wildcard => host.text(),
            _ => {
                maker.ignore(label, "", Reason::Needs { other: self::label("serviceDomain without *") });
                return Ok(());
            }
        };
        // A beginning that the target has too would lead there and back.
        let (from, looping): (Vec<_>, Vec<_>) = from.into_iter().partition(|f| !to.starts_with(f.text()));
        for host in looping {
            maker.ignore(
                label,
                host.text(),
                Reason::NotSupported { why: "the service's own domain begins so, and it would lead to itself" },
            );
        }
        if !from.is_empty() {
            let action =
                Action::Redirect(Redirect { code: RedirectCode::MovedPermanently, to: RedirectTarget::Before(format!("http://{to}")) });
            let mut route = maker.route(label, Listener::Any, Match { hosts: from, ..Match::default() }, action);
            route.precedence = precedence.clone();
            maker.add(route);
        }
        Ok(())
    }

    /// Both ports of what is not HTTP.
    fn ports(&self, index: u16) -> Result<(u16, u16), Fault> {
        match (self.port("srcport", index)?, self.port("port", index)?) {
            (Some(from), Some(to)) => Ok((from, to)),
            (None, _) => Err(fault(label("srcPort"), String::new(), Reason::Missing)),
            (_, None) => Err(fault(label("port"), String::new(), Reason::Missing)),
        }
    }

    fn tcp(&self, maker: &mut Maker<'_>, service: &Service, index: u16) -> Result<(), Fault> {
        let (from, to) = self.ports(index)?;
        let mut set = self.backends(service, index, to)?;
        set.stickiness = None;
        let group = self.get("servicegroup", index);
        if let Some(balance) = self.parse("balancegroup", index, haproxy::balance)? {
            if group.is_some() {
                set.balance = balance;
            } else if let Some((label, value)) = self.get("balancegroup", index) {
                maker.ignore(label, value, Reason::Needs { other: self::label("serviceGroup") });
            }
        }
        if group.is_some() {
            // Groups list every task.
            set.members.iter_mut().for_each(|m| m.mode = BackendMode::Task);
        }
        let (listener, hosts) = if self.get("servicedomain", index).is_some() {
            let algorithm = self.parse("servicedomainalgo", 0, HostAlgorithm::of_sni)?;
            let Some(algorithm) = algorithm else {
                return Err(fault(label("serviceDomainAlgo"), String::new(), Reason::Missing));
            };
            (Listener::Tls, self.domains(service, index, algorithm)?)
        } else {
            (Listener::Tcp, Vec::new())
        };
        let matching = Match { hosts, port: Some(from), ..Match::default() };
        let main = self.get("srcport", index).map_or("", |(label, _)| label);
        let mut route = maker.route(main, listener, matching, Action::Forward(set));
        if let Some((_, group)) = group {
            route.share = Share::Pool(Pool { dialect: Dialect::FlowProxy, name: group.to_owned() });
        }
        route.precedence = Precedence::Listed(ListOrder { class: service.class, name: service.acl.clone(), index });
        route.policy = self.policy(maker, service, index)?;
        maker.add(route);
        Ok(())
    }

    /// `servicePath` holds names, and `pathType` says how they are compared.
    fn sni(&self, maker: &mut Maker<'_>, service: &Service, index: u16) -> Result<(), Fault> {
        let (from, to) = self.ports(index)?;
        let Some(algorithm) = self.parse("pathtype", index, HostAlgorithm::of_sni)? else {
            return Err(fault(label("pathType"), String::new(), Reason::Missing));
        };
        let hosts = self.parse_list("servicepath", index, |name| algorithm.host(name))?;
        if hosts.is_empty() {
            return Err(fault(label("servicePath"), String::new(), Reason::Missing));
        }
        let mut set = self.backends(service, index, to)?;
        set.stickiness = None;
        let matching = Match { hosts, port: Some(from), ..Match::default() };
        let mut route = maker.route(&self.main_label(index), Listener::Tls, matching, Action::Forward(set));
        route.precedence = Precedence::Listed(ListOrder { class: service.class, name: service.acl.clone(), index });
        route.policy = self.policy(maker, service, index)?;
        maker.add(route);
        Ok(())
    }
}

/// `name:value`, compared exactly.
fn header_condition(text: &str) -> Result<HeaderMatch, Reason> {
    let (name, value) = text.split_once(':').ok_or(Reason::NotAPair)?;
    if value.contains(':') {
        return Err(Reason::NotAPair);
    }
    Ok(HeaderMatch { name: labels::header_name(name)?, values: vec![TextMatch::Exact(value.trim().to_owned())], negate: false })
}

fn label(name: &str) -> String {
    format!("{PREFIX}{name}")
}
