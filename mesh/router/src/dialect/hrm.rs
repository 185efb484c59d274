//! Docker's HTTP routing mesh: `com.docker.ucp.mesh.http[.anything]` on services.
//!
//! One label is one route: `external_route=http://app.example.com,internal_port=8080,…`. UCP 2.0's form,
//! `8080=http://app.example.com`, may name several.

use swarmesh_model::NetworkId;

use super::{Maker, Outcome, Workload, labels};
use crate::{
    model::{
        Action, BackendMode, BackendSet, Dialect, Filter, ForwardHeaders, HostMatch, Listener, Match, Member, Precedence, Redirect,
        RedirectCode, Stickiness,
    },
    problem::Reason,
};

/// Of services, and of the networks by which they are reached.
pub const LABEL: &str = "com.docker.ucp.mesh.http";
/// Found in print for networks, once.
const NETWORK_LABEL_MISPRINTED: &str = "com.docker.mesh.http";
/// The network that UCP makes has no label of the kind.
const NETWORK: &str = "ucp-hrm";

/// What one label says.
#[derive(Debug, Default)]
struct Values<'a> {
    external_route: Option<&'a str>,
    internal_port: Option<&'a str>,
    sticky_sessions: Option<&'a str>,
    redirect: Option<&'a str>,
    include_forwarded_for: Option<&'a str>,
}

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, outcome: &mut Outcome) {
    let mut maker = Maker::new(&workload.owner, Dialect::Hrm, outcome);
    let superseded = workload.labels_from("com.docker.lb.").next().is_some();
    for (label, text) in workload.labels_from(LABEL) {
        if superseded {
            maker.ignore(label, "", Reason::Superseded { by: Dialect::Interlock });
        } else if text.trim().is_empty() {
            maker.refuse(label, "", Reason::Empty);
        } else if is_legacy(text) {
            for part in labels::list(text, ",") {
                let (port, route) = part.split_once('=').map_or((None, part), |(port, route)| (Some(port), route));
                let values = Values { external_route: Some(route), internal_port: port, ..Values::default() };
                one(workload, &mut maker, label, &values);
            }
        } else {
            let values = values(&mut maker, label, text);
            one(workload, &mut maker, label, &values);
        }
    }
}

/// UCP 2.0: `[port=]http://host`, and nothing else in it.
fn is_legacy(text: &str) -> bool {
    labels::list(text, ",").all(|part| part.split_once('=').map_or(part, |(_, route)| route).starts_with("http://"))
        && !labels::list(text, ",").any(|part| part.starts_with("external_route") || part.starts_with("redirect"))
}

fn values<'t>(maker: &mut Maker<'_>, label: &str, text: &'t str) -> Values<'t> {
    let mut values = Values::default();
    for part in labels::list(text, ",") {
        // The first: a URL may hold others.
        let Some((key, value)) = part.split_once('=') else {
            maker.ignore(label, part, Reason::NotAPair);
            continue;
        };
        let place = match key.trim() {
            "external_route" => &mut values.external_route,
            "internal_port" => &mut values.internal_port,
            "sticky_sessions" => &mut values.sticky_sessions,
            "redirect" => &mut values.redirect,
            "include_forwarded_for" => &mut values.include_forwarded_for,
            _ => {
                maker.ignore(label, part, Reason::UnknownKey);
                continue;
            }
        };
        if place.is_some() {
            maker.ignore(label, part, Reason::Twice { key: key.trim().to_owned() });
        } else {
            *place = Some(value.trim());
        }
    }
    values
}

/// `http://host` or `sni://host`; no host is every host that nobody else has.
fn external_route(text: &str) -> Result<(bool, Option<String>), Reason> {
    let (scheme, host) = text.split_once("://").ok_or(Reason::NotOneOf { allowed: "http://HOST, sni://HOST" })?;
    let sni = match scheme {
        "http" => false,
        "sni" => true,
        _ => return Err(Reason::NotOneOf { allowed: "http://HOST, sni://HOST" }),
    };
    // Seen in use: a slash behind the host.
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.contains('/') {
        return Err(Reason::NotSupported { why: "the HTTP routing mesh routes by host, not by path" });
    }
    Ok((sni, if host.is_empty() { None } else { Some(labels::host(host)?) }))
}

fn one(workload: &Workload<'_>, maker: &mut Maker<'_>, label: &str, values: &Values<'_>) {
    let Some(text) = values.external_route else {
        return maker.refuse(label, "external_route", Reason::Missing);
    };
    let (sni, host) = match external_route(text) {
        Ok(route) => route,
        Err(reason) => return maker.refuse(label, text, reason),
    };
    let matching = Match { hosts: host.clone().into_iter().map(HostMatch::Exact).collect(), ..Match::default() };
    let precedence = if host.is_some() { Precedence::Specific { priority: 0 } } else { Precedence::Default };
    let listener = if sni { Listener::Tls } else { Listener::Http };
    if sni {
        for (key, value) in [
            ("sticky_sessions", values.sticky_sessions),
            ("redirect", values.redirect),
            ("include_forwarded_for", values.include_forwarded_for),
        ] {
            if let Some(value) = value {
                maker.ignore(label, format!("{key}={value}"), Reason::Excludes { other: "sni://, which is not opened".to_owned() });
            }
        }
    }
    let redirect = values.redirect.filter(|_| !sni);
    let action = if let Some(text) = redirect {
        match redirect_to(text, host.as_deref()) {
            Ok(redirect) => Action::Redirect(redirect),
            Err(reason) => return maker.refuse(label, format!("redirect={text}"), reason),
        }
    } else {
        match backends(workload, values, sni) {
            Ok(set) => Action::Forward(set),
            Err((value, reason)) => return maker.refuse(label, value, reason),
        }
    };
    let forwarded_for = match values.include_forwarded_for.filter(|_| !sni).map(labels::boolean) {
        Some(Err(reason)) => {
            maker.ignore(label, format!("include_forwarded_for={}", values.include_forwarded_for.unwrap_or_default()), reason);
            false
        }
        Some(Ok(value)) => value,
        None => false,
    };
    let mut route = maker.route(label, listener, matching, action);
    route.precedence = precedence;
    if forwarded_for {
        route.filters.push(Filter::Forward(ForwardHeaders { forwarded_for, ..ForwardHeaders::default() }));
    }
    maker.add(route);
}

fn redirect_to(text: &str, from: Option<&str>) -> Result<Redirect, Reason> {
    // Listed among the targets: the host that is served by TLS.
    let text = text.strip_prefix("sni://").map_or_else(|| text.to_owned(), |host| format!("https://{host}"));
    let url = labels::url(&text)?;
    if url.scheme == "http" && url.port.is_none() && Some(url.host.as_str()) == from {
        return Err(Reason::NotSupported { why: "it leads to itself" });
    }
    Ok(Redirect { code: RedirectCode::MovedPermanently, to: url.target() })
}

fn backends(workload: &Workload<'_>, values: &Values<'_>, sni: bool) -> Result<BackendSet, (String, Reason)> {
    let port = match values.internal_port {
        Some(text) => labels::port(text).map_err(|reason| (format!("internal_port={text}"), reason))?,
        None => only_port(workload).map_err(|reason| ("internal_port".to_owned(), reason))?,
    };
    let sticky = match values.sticky_sessions.filter(|_| !sni) {
        Some(name) => Some(labels::cookie_name(name).map_err(|reason| (format!("sticky_sessions={name}"), reason))?),
        None => None,
    };
    let network = network(workload).map_err(|reason| (String::new(), reason))?;
    let (mode, stickiness) = match (sni, sticky) {
        (true, _) => (BackendMode::Task, Some(Stickiness::TlsSession)),
        (false, Some(cookie)) => (BackendMode::Task, Some(Stickiness::LearnCookie(cookie))),
        (false, None) => (BackendMode::Vip, None),
    };
    let member = Member::service(workload.owner.id.clone(), Some(network), port, mode);
    Ok(BackendSet { stickiness, ..BackendSet::of(member) })
}

fn only_port(workload: &Workload<'_>) -> Result<u16, Reason> {
    let mut targets: Vec<u16> = workload.ports.iter().map(|p| p.target_port).collect();
    targets.sort_unstable();
    targets.dedup();
    match targets[..] {
        [port] => Ok(port),
        [] => Err(Reason::NoPort),
        _ => Err(Reason::SeveralPorts),
    }
}

/// The network by which the mesh may reach the service: who shares a network with it is the operator's choice.
fn network(workload: &Workload<'_>) -> Result<NetworkId, Reason> {
    let is_meshed = |labels: &std::collections::BTreeMap<String, String>| {
        [LABEL, NETWORK_LABEL_MISPRINTED].iter().any(|label| labels.get(*label).is_some_and(|value| value != "false"))
    };
    let found = workload.networks.iter().find(|n| is_meshed(n.labels)).or_else(|| workload.networks.iter().find(|n| n.name == NETWORK));
    found.map(|n| n.id.clone()).ok_or(Reason::NoLabelledNetwork { label: LABEL })
}
