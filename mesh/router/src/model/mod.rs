//! What a route is: who made it, which requests it takes, what is done to them, and who answers.
//!
//! Plain data. A label's text is nowhere in it, except in [`Origin`], which says where a route came from.

mod backend;
mod filter;
mod matching;
mod pattern;
mod policy;
mod secret;

use std::{
    cmp::{Ordering, Reverse},
    fmt,
};

use serde::Serialize;

use matching::Precision;

pub use backend::{
    BackendMode, BackendProtocol, BackendSet, BackendTls, Balance, Member, Stickiness, Target, Tasks, Upstream, WeightedUpstream,
};
pub(crate) use filter::is_token;
pub use filter::{
    AppendSlash, BasicAuth, Compression, CompressionAlgorithm, Filter, ForwardHeaders, ForwardedProto, HeaderChange, HeaderChangeKind,
    Piece, Redirect, RedirectCode, RedirectTarget, RequestLineError, Rewrite, Template, User, Variable, When,
};
pub use matching::{HeaderMatch, Headers, HostMatch, Match, PathKind, PathMatch, TextMatch};
pub use pattern::{Pattern, PatternError, Replacement};
pub use policy::{Ejection, Limits, Policy, ProxyProtocol, Retries, RetryOn, Timeouts};
pub use secret::{CertificateRef, HashKind, Password, PasswordError};

/// One rule: requests that match go through the filters and then to the action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    pub origin: Origin,
    pub listener: Listener,
    #[serde(rename = "match")]
    pub matching: Match,
    pub precedence: Precedence,
    pub share: Share,
    /// In the order in which they are applied to a request.
    pub filters: Vec<Filter>,
    pub action: Action,
    /// What to show clients that come by TLS and ask for one of this route's hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateRef>,
    pub policy: Policy,
}

/// Which service or container, and which of its labels, made a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Origin {
    pub owner: Owner,
    pub dialect: Dialect,
    /// The label that asked for the route.
    pub label: String,
    /// Tells apart the routes that one label makes.
    pub part: u16,
}

/// A service or a plain container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Owner {
    pub id: String,
    pub name: String,
    pub kind: OwnerKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKind {
    Service,
    Container,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            OwnerKind::Service => "service",
            OwnerKind::Container => "container",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// The language that a route was asked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Docker's HTTP routing mesh, `com.docker.ucp.mesh.http*`.
    Hrm,
    /// Interlock 2 and 3, `com.docker.lb.*`.
    Interlock,
    /// Docker Flow Proxy, `com.df.*`.
    FlowProxy,
    /// Interlock 1, `interlock.*` on containers.
    Interlock1,
    /// `swarmesh.http.*`.
    Swarmesh,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hrm => "HTTP routing mesh",
            Self::Interlock => "Interlock",
            Self::FlowProxy => "Docker Flow Proxy",
            Self::Interlock1 => "Interlock 1",
            Self::Swarmesh => "Swarmesh",
        })
    }
}

/// By which door a request has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Listener {
    /// HTTP without TLS.
    Http,
    /// HTTP in TLS that ends at the proxy.
    Https,
    /// HTTP, with or without TLS.
    Any,
    /// TLS that is passed through unopened. The name in its hello is the host.
    Tls,
    /// A TCP port. Nothing in it is looked at.
    Tcp,
}

/// Where a route stands among those that match the same request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precedence {
    /// The more precise match comes first; a larger priority comes before that, among routes of equally precise hosts.
    Specific { priority: i32 },
    /// Comes after every other match of the same host: what is said about a host's other paths.
    Rest,
    /// The first in the list that matches, whatever else matches better.
    Listed(ListOrder),
    /// Only what nothing else matches.
    Default,
}

/// A place in a list that is searched from its beginning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ListOrder {
    pub class: ListClass,
    pub name: String,
    pub index: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ListClass {
    /// Before any backend is chosen.
    Redirect,
    /// Services with a path that begins with `/.well-known`.
    WellKnown,
    Plain,
    /// Services with the path `/`.
    Root,
}

/// What happens when services claim the same match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// One has it, the others are reported.
    Alone,
    /// Their backends become one set. All but backends is the first's.
    Pool(Pool),
}

/// Whose backends may come together: only those that name the same pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Pool {
    pub dialect: Dialect,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Forward(BackendSet),
    Redirect(Redirect),
    /// An answer of our own with this status.
    Status(u16),
}

/// Nobody claims the request.
pub const NO_ROUTE: u16 = 503;
/// A method, a missing client certificate or a plain connection is refused. All dialects that can refuse say 403.
pub const REFUSED: u16 = 403;
/// A user and password are needed.
pub const UNAUTHORIZED: u16 = 401;
/// A rewritten request line is no request line.
pub const BAD_REQUEST: u16 = 400;

/// A route's place in the order of all. The first field that differs decides.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank<'r> {
    tier: u8,
    listed: Option<&'r ListOrder>,
    host: (u8, Reverse<usize>),
    is_rest: bool,
    priority: Reverse<i32>,
    path: (u8, Reverse<usize>),
    conditions: Reverse<usize>,
    owner: &'r str,
    origin: &'r Origin,
    listener: Listener,
}

/// Fields of a rank, from the highest bit on. What does not fit ends it: what comes after says nothing then.
struct Packed {
    word: u64,
    left: u32,
    is_full: bool,
}

impl Packed {
    fn put(&mut self, bits: u32, value: u64) {
        self.left -= bits;
        if !self.is_full {
            self.word |= value << self.left;
        }
    }

    /// The larger comes first.
    fn put_reverse(&mut self, bits: u32, value: u64) {
        let most = (1 << bits) - 1;
        self.put(bits, most - value.min(most));
        self.is_full |= value >= most;
    }
}

impl Route {
    /// Orders routes so that of all that match a request the smallest is right. Never depends on the request.
    ///
    /// 1. Routes with a host, by precision of host, then of path, then by number of further conditions.
    /// 2. Listed routes, in their list's order.
    /// 3. Routes for any host, by precision.
    /// 4. Defaults.
    ///
    /// What is left undecided goes to the owner with the smaller id.
    pub fn cmp_precedence(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }

    /// What [`Self::cmp_precedence`] compares, worked out once.
    pub(crate) fn rank(&self) -> Rank<'_> {
        let (tier, listed, is_rest, priority) = match &self.precedence {
            Precedence::Listed(order) => (1, Some(order), false, 0),
            Precedence::Default => (3, None, false, 0),
            Precedence::Rest => (if self.matching.is_any_host() { 2 } else { 0 }, None, true, 0),
            Precedence::Specific { priority } => (if self.matching.is_any_host() { 2 } else { 0 }, None, false, *priority),
        };
        let precision = if listed.is_some() { Precision::default() } else { self.matching.precision() };
        Rank {
            tier,
            listed,
            host: precision.host,
            is_rest,
            priority: Reverse(priority),
            path: precision.path,
            conditions: Reverse(precision.conditions),
            owner: &self.origin.owner.id,
            origin: &self.origin,
            listener: self.listener,
        }
    }

    /// As much of [`Self::rank`] as fits: the smaller number comes first, and what has the same is compared whole.
    pub(crate) fn packed_rank(&self) -> u64 {
        let Rank { tier, listed, host, is_rest, priority, path, conditions, .. } = self.rank();
        let mut packed = Packed { word: 0, left: u64::BITS, is_full: false };
        packed.put(2, u64::from(tier));
        if let Some(order) = listed {
            packed.put(2, order.class as u64);
            for byte in order.name.bytes().chain([0; 7]).take(7) {
                packed.put(8, u64::from(byte));
            }
            return packed.word;
        }
        packed.put(3, u64::from(host.0.min(7)));
        packed.put_reverse(8, host.1.0 as u64);
        packed.put(1, u64::from(is_rest));
        packed.put_reverse(12, (i64::from(priority.0) + 2048).clamp(0, 4095) as u64);
        if priority.0 <= -2048 {
            packed.is_full = true;
        }
        packed.put(3, u64::from(path.0.min(7)));
        packed.put_reverse(12, path.1.0 as u64);
        packed.put_reverse(8, conditions.0 as u64);
        packed.word
    }

    /// The backends, unless the route answers by itself.
    pub fn backends(&self) -> Option<&BackendSet> {
        match &self.action {
            Action::Forward(set) => Some(set),
            Action::Redirect(_) | Action::Status(_) => None,
        }
    }
}
