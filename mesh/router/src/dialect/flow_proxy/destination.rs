//! What one destination's labels say: its routes.

use super::{
    super::{
        MOST, Maker,
        haproxy::{self, HostAlgorithm, PathAlgorithm},
        labels,
    },
    Fault, fault, label,
    service::{Reader, Service},
};
use crate::{
    model::{
        Action, BackendMode, BackendSet, BackendTls, Dialect, Filter, ForwardHeaders, ForwardedProto, HeaderMatch, HostMatch, Limits,
        ListClass, ListOrder, Listener, Match, Member, PathMatch, Pattern, Policy, Pool, Precedence, Redirect, RedirectCode,
        RedirectTarget, Replacement, Retries, RetryOn, Rewrite, Share, Target, TextMatch,
    },
    problem::Reason,
};

impl<'w> Reader<'_, 'w> {
    pub(super) fn destination(
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
