//! What a service's labels say of it as a whole, and how any of them is read.

use std::collections::BTreeMap;

use swarmesh_model::NetworkId;

use super::{
    super::{
        MOST, Maker, Workload,
        haproxy::{self, HeaderVerb, HostAlgorithm},
        labels,
    },
    Fault, INDEXED, SERVICE, Settings, fault, label,
};
use crate::{
    model::{
        BackendMode, Balance, BasicAuth, CertificateRef, Compression, CompressionAlgorithm, Filter, ListClass, Listener, Match, Password,
        Pattern, Precedence, Replacement, Rewrite, Stickiness, User,
    },
    problem::Reason,
};

pub(super) struct Reader<'r, 'w> {
    pub(super) workload: &'r Workload<'w>,
    pub(super) settings: &'r Settings,
    /// By name in lower case: the label and its value.
    pub(super) params: BTreeMap<String, (&'w str, &'w str)>,
}

/// What a whole service says.
pub(super) struct Service {
    pub(super) acl: String,
    pub(super) class: ListClass,
    pub(super) algorithm: HostAlgorithm,
    /// Some domain begins with `*`: all are endings.
    pub(super) wildcard: bool,
    pub(super) request_headers: Vec<Filter>,
    pub(super) sticky: Option<Stickiness>,
    pub(super) mode: BackendMode,
    pub(super) checked: bool,
    pub(super) balance: Balance,
    pub(super) close_upstream: bool,
    pub(super) auth: Option<BasicAuth>,
    pub(super) compression: Option<Compression>,
    pub(super) certificate: Option<CertificateRef>,
    pub(super) line: Option<Rewrite>,
    pub(super) path: Option<Rewrite>,
    pub(super) network: Option<NetworkId>,
    pub(super) is_default: bool,
    pub(super) when_http: bool,
    pub(super) unless_https: bool,
}

impl<'w> Reader<'_, 'w> {
    /// The label and the value of a parameter; that of the number first, if there is one. Empty is absent.
    pub(super) fn get(&self, name: &str, index: u16) -> Option<(&'w str, &'w str)> {
        let numbered = (index > 0).then(|| self.params.get(&format!("{name}.{index}"))).flatten();
        let find = |p: Option<&(&'w str, &'w str)>| p.copied().filter(|(_, value)| !value.is_empty());
        find(numbered).or_else(|| find(self.params.get(name)))
    }

    pub(super) fn text(&self, name: &str) -> Option<&'w str> {
        self.get(name, 0).map(|(_, value)| value)
    }

    /// A parameter through a grammar.
    pub(super) fn parse<T>(&self, name: &str, index: u16, parse: impl FnOnce(&'w str) -> Result<T, Reason>) -> Result<Option<T>, Fault> {
        let Some((label, value)) = self.get(name, index) else { return Ok(None) };
        parse(value).map(Some).map_err(|reason| fault(label.to_owned(), value.to_owned(), reason))
    }

    /// A boolean that closes something: one that cannot be read leaves no route.
    pub(super) fn guard(&self, name: &str, index: u16) -> Result<bool, Fault> {
        Ok(self.parse(name, index, labels::boolean)?.unwrap_or(false))
    }

    /// A boolean that is false if it cannot be read, which is told.
    pub(super) fn flag(&self, maker: &mut Maker<'_>, name: &str, index: u16) -> bool {
        self.guard(name, index).unwrap_or_else(|fault| {
            let (label, value, reason) = *fault;
            maker.ignore(&label, value, reason);
            false
        })
    }

    pub(super) fn list(&self, name: &str, index: u16) -> Vec<&'w str> {
        self.get(name, index).map_or_else(Vec::new, |(_, value)| labels::list(value, &self.settings.separator).collect())
    }

    /// All parts of a list through a grammar, or the first that does not fit.
    pub(super) fn parse_list<T>(&self, name: &str, index: u16, parse: impl Fn(&'w str) -> Result<T, Reason>) -> Result<Vec<T>, Fault> {
        let label = self.get(name, index).map_or("", |(label, _)| label);
        let list = self.list(name, index);
        if list.len() > MOST {
            return Err(fault(label, "", Reason::TooMany { most: MOST }));
        }
        list.into_iter().map(|part| parse(part).map_err(|r| fault(label.to_owned(), part.to_owned(), r))).collect()
    }

    pub(super) fn read(&mut self, maker: &mut Maker<'_>) -> Result<(), Fault> {
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
}
