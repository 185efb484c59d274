//! `/v1/explain`: where a packet, a name or a request goes and why, hop by hop, and what is missing.

mod backends;
mod dns;
mod port;
mod request;
#[cfg(test)]
mod tests;
mod upstream;
mod vip;

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use swarmesh_model::Protocol;

pub use self::{request::Asking, upstream::UpstreamRow};
use super::{View, endpoints::BackendRow, socket};

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `tcp://192.0.2.1:8000`, `udp://[2001:db8::1]:53`.
    Port { protocol: Protocol, address: IpAddr, port: u16 },
    /// `vip://web`, `vip://10.0.1.5?from=web.1.x`.
    Vip { name: String, from: Option<String> },
    /// `dns://web?from=web.1.x&type=AAAA`.
    Dns { name: String, from: Option<String>, kind: u16 },
    /// `http://app.example.com/path?method=POST&header=X-Version:2`, `https://…`.
    Request(Asking),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{target:?} cannot be explained: {problem}; use tcp://ADDRESS:PORT, udp://ADDRESS:PORT, vip://NAME[?from=TASK], dns://NAME[?from=TASK][&type=A] or http[s]://HOST[:PORT][/PATH][?method=METHOD][&header=NAME:VALUE]"
)]
pub struct TargetError {
    target: String,
    problem: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = |problem| TargetError { target: text.to_owned(), problem };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("there is no scheme"))?;
        let protocol = match scheme {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "http" | "https" => return Asking::parse(scheme == "https", rest).map(Self::Request).map_err(wrong),
            "vip" => {
                let (name, query) = rest.split_once('?').map_or((rest, None), |(name, query)| (name, Some(query)));
                let from = match query {
                    None => None,
                    Some(query) => Some(query.strip_prefix("from=").ok_or_else(|| wrong("only from=TASK may follow the question mark"))?),
                };
                if name.is_empty() || from.is_some_and(str::is_empty) {
                    return Err(wrong("a name is missing"));
                }
                let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
                return Ok(Self::Vip { name: name.to_owned(), from: from.map(str::to_owned) });
            }
            "dns" => {
                let (name, query) = rest.split_once('?').map_or((rest, ""), |(name, query)| (name, query));
                let (mut from, mut kind) = (None, swarmesh_dns::wire::kind::A);
                for pair in query.split('&').filter(|p| !p.is_empty()) {
                    match pair.split_once('=') {
                        Some(("from", task)) if !task.is_empty() => from = Some(task.to_owned()),
                        Some(("type", word)) => {
                            let known = dns::KINDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
                            kind = known.ok_or_else(|| wrong("type is one of A, AAAA, PTR, SRV, MX and ANY"))?.1;
                        }
                        _ => return Err(wrong("only from=TASK and type=TYPE may follow the question mark")),
                    }
                }
                if name.is_empty() {
                    return Err(wrong("a name is missing"));
                }
                // An address is asked for by its reverse name.
                let (name, kind) = match name.trim_matches(['[', ']']).parse::<IpAddr>() {
                    Ok(address) => (swarmesh_dns::reverse_name(address), swarmesh_dns::wire::kind::PTR),
                    Err(_) => (name.trim_end_matches('/').to_owned(), kind),
                };
                return Ok(Self::Dns { name, from, kind });
            }
            _ => return Err(wrong("unknown scheme")),
        };
        let address: std::net::SocketAddr =
            rest.trim_end_matches('/').parse().map_err(|_| wrong("after the scheme comes ADDRESS:PORT, IPv6 in brackets"))?;
        if address.port() == 0 {
            return Err(wrong("0 is not a port"));
        }
        Ok(Self::Port { protocol, address: address.ip().to_canonical(), port: address.port() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { protocol, address, port } => write!(f, "{protocol}://{}", socket(*address, *port)),
            Self::Request(asking) => asking.fmt(f),
            Self::Vip { name, from: None } => write!(f, "vip://{name}"),
            Self::Vip { name, from: Some(task) } => write!(f, "vip://{name}?from={task}"),
            Self::Dns { name, from, kind } => {
                let kind = dns::KINDS.iter().find(|(_, number)| number == kind).map_or("a", |(name, _)| name);
                write!(f, "dns://{name}?type={kind}")?;
                from.iter().try_for_each(|task| write!(f, "&from={task}"))
            }
        }
    }
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A task answers.
    Delivered,
    /// This node answers by itself, with a redirect or a status that a route asks for.
    Answered,
    /// Known, and answered with a refusal at once.
    Refused,
    /// Somebody else's business: Docker's, another node's, or nobody's.
    NotOurs,
    /// Should be delivered, and is not applied yet.
    Pending,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    pub target: String,
    pub verdict: Verdict,
    /// In one sentence.
    pub summary: String,
    pub hops: Vec<Hop>,
    /// What keeps it from working, or from working as well as it could.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hop {
    /// `address`, `published port`, `ingress sandbox`, `task`, …
    pub at: String,
    pub what: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendRow>,
    /// Tasks of the service that get nothing, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// Servers that are asked about other people's names, in the order in which they were configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamRow>,
    /// Routes of the same host that do not get the request, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<OtherRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub task: String,
    pub node: String,
    pub why: String,
}

/// A route that another came before, or that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherRoute {
    pub owner: String,
    pub label: String,
    pub dialect: String,
    pub takes: String,
    pub why: String,
}

/// The addresses of the namespace that this process is in.
#[derive(Clone, Debug, Default)]
pub struct Local {
    pub addresses: Vec<(String, IpAddr)>,
}

impl Local {
    pub fn read() -> Self {
        let interfaces = match nix::ifaddrs::getifaddrs() {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::warn!(%error, "cannot list this node's addresses");
                return Self::default();
            }
        };
        let address = |i: nix::ifaddrs::InterfaceAddress| {
            let address = i.address?;
            let ip = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            Some((i.interface_name, ip.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))?))
        };
        Self { addresses: interfaces.filter_map(address).collect() }
    }

    fn interface(&self, address: IpAddr) -> Option<&str> {
        if address.is_loopback() {
            return Some("lo");
        }
        self.addresses.iter().find(|(_, a)| *a == address).map(|(name, _)| name.as_str())
    }
}

pub fn explain(view: &View, target: &Target, local: &Local) -> Explanation {
    let mut story = Story::new(target);
    let (verdict, summary) = match target {
        Target::Port { protocol, address, port } => port::explain(view, &mut story, local, *protocol, *address, *port),
        Target::Vip { name, from } => vip::explain(view, &mut story, name, from.as_deref()),
        Target::Dns { name, from, kind } => dns::explain(view, &mut story, name, from.as_deref(), *kind),
        Target::Request(asking) => request::explain(view, &mut story, asking),
    };
    story.0.verdict = verdict;
    story.0.summary = summary;
    if view.origin == super::Origin::StateDir {
        story.missing("the source has not delivered since the agent started; this follows the last good snapshot".to_owned());
    }
    story.0
}

/// An explanation while it is told.
struct Story(Explanation);

impl Story {
    fn new(target: &Target) -> Self {
        Self(Explanation {
            target: target.to_string(),
            verdict: Verdict::NotOurs,
            summary: String::new(),
            hops: Vec::new(),
            missing: Vec::new(),
        })
    }

    fn hop(&mut self, at: &str, what: impl Into<String>) -> &mut Hop {
        self.0.hops.push(Hop { at: at.to_owned(), what: what.into(), ..Hop::default() });
        // It has just been pushed.
        let last = self.0.hops.len() - 1;
        &mut self.0.hops[last]
    }

    fn missing(&mut self, what: String) {
        self.0.missing.push(what);
    }
}

/// `%3A` and `+`-free decoding, as `encodeURIComponent` writes. `None` when it is not UTF-8 or ends early.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (high, low) = (rest.first()?, rest.get(1)?);
        let digit = |b: u8| char::from(b).to_digit(16);
        bytes.push(u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Everything but RFC 3986's unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
