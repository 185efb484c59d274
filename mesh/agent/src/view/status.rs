//! `/v1/status` and `/readyz`.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use serde::{Deserialize, Serialize};
use swarmesh_dns::stats::Ending;
use swarmesh_model::Problem;
use swarmesh_plan::Takeover;
use swarmesh_proxy::metrics::RouteCounts;

use super::{
    Origin, View, proxy,
    routes::{by_dialect, dialect_name},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub agent: Agent,
    pub node: Option<NodeRow>,
    pub draining: bool,
    pub takeover: String,
    pub source: Option<Source>,
    pub snapshot: SnapshotRow,
    pub plane: Plane,
    /// `None` with `--dns off`.
    pub names: Option<Names>,
    pub routes: Routes,
    /// What is not applied yet, by name; empty when `/readyz` says 200.
    pub pending: Vec<Pending>,
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agent {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRow {
    pub id: String,
    pub hostname: String,
    pub address: Option<std::net::IpAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    pub source: String,
    pub connected: bool,
    pub detail: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotRow {
    pub version: u64,
    pub origin: Origin,
    pub networks: usize,
    pub services: usize,
    pub tasks: usize,
    pub nodes: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plane {
    pub name: String,
    pub others: Vec<OtherPlane>,
    pub settled: bool,
    pub places: Vec<Place>,
    pub host: Option<Host>,
    pub commits: u64,
    pub operations: u64,
    pub errors: u64,
    pub healed: u64,
}

/// The resolver of this node's containers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Names {
    /// Containers whose questions are answered here.
    pub answered: usize,
    /// Containers whose questions go to Docker's resolver still; `pending` says why.
    pub pending: usize,
    /// Who is asked about everything else.
    pub host_servers: Vec<std::net::IpAddr>,
    pub queries: u64,
    /// Every so many queries one is logged; 0 is never.
    pub log_every: u64,
}

/// Routes by label.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Routes {
    /// Where requests come in; nowhere if both are empty.
    pub http: Vec<std::net::SocketAddr>,
    pub https: Vec<std::net::SocketAddr>,
    /// How many routes each dialect makes; those without any are left out.
    pub dialects: BTreeMap<String, usize>,
    /// Services and containers with labels that ask for routes.
    pub owners: usize,
    /// `None` where no requests are taken.
    pub served: Option<Served>,
}

/// What the proxy has done since the agent started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// Of clients.
    pub connections: u64,
    /// By the routes that there are now.
    pub requests: u64,
    /// Answers from 500 on, by them.
    pub failed: u64,
    pub in_flight: u64,
    pub unrouted: u64,
    pub failed_handshakes: u64,
    pub out: Vec<Out>,
}

/// A backend that failed and is passed over for a while.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Out {
    pub owner: String,
    pub backend: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    pub bridge: String,
    /// Docker's host rules are those of up to 29.7.
    pub old_layout: bool,
    /// Published ports answer over IPv6.
    pub ipv6: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OtherPlane {
    pub name: String,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    pub place: String,
    pub path: String,
    pub applied: bool,
    pub error: String,
    pub since_seconds: u64,
    pub fronts: usize,
    pub healed: u64,
}

/// Something that is known and not applied yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub what: String,
    pub why: String,
}

pub fn status(view: &View, uptime: Duration) -> Status {
    let stale = view.plane_read.map_or(0, |at| at.elapsed().as_secs());
    let pending = pending(view);
    Status {
        agent: Agent { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id(), uptime_seconds: uptime.as_secs() },
        node: view.context.node.as_ref().map(|id| {
            let node = view.this_node();
            NodeRow {
                id: id.to_string(),
                hostname: node.map(|n| n.hostname.clone()).unwrap_or_default(),
                address: node.and_then(|n| n.address),
            }
        }),
        draining: view.context.draining,
        takeover: match view.context.takeover {
            Takeover::On => "on",
            Takeover::Labelled => "labelled",
        }
        .to_owned(),
        source: view.source.as_ref().map(|s| Source { source: s.source.clone(), connected: s.connected, detail: s.detail.clone() }),
        snapshot: SnapshotRow {
            version: view.snapshot.version,
            origin: view.origin,
            networks: view.snapshot.networks.len(),
            services: view.snapshot.services.len(),
            tasks: view.snapshot.tasks.len(),
            nodes: view.snapshot.nodes.len(),
        },
        plane: Plane {
            name: view.plane.name.to_owned(),
            others: view.other_planes.iter().map(|(plane, why)| OtherPlane { name: plane.to_string(), reason: why.clone() }).collect(),
            settled: view.pending_places().next().is_none(),
            places: places(view, stale),
            host: view.plane.host.as_ref().map(|h| Host { bridge: h.bridge.clone(), old_layout: h.old_layout, ipv6: h.ipv6 }),
            commits: view.plane.commits,
            operations: view.plane.operations,
            errors: view.plane.errors,
            healed: view.plane.healed,
        },
        names: view.dns.as_ref().map(|dns| {
            let waiting = view.resolvers.iter().filter(|r| !r.error.is_empty()).count();
            Names {
                answered: view.resolvers.len() - waiting,
                pending: waiting,
                host_servers: view.host_servers.to_vec(),
                queries: Ending::ALL.iter().map(|ending| dns.stats.of(*ending)).sum(),
                log_every: dns.log_every.load(Relaxed),
            }
        }),
        routes: Routes {
            http: view.listeners.http.clone(),
            https: view.listeners.https.clone(),
            dialects: by_dialect(&view.plan).into_iter().filter(|(_, n)| *n > 0).map(|(d, n)| (dialect_name(d).to_owned(), n)).collect(),
            owners: view.plan.routes.owners.len(),
            served: view.proxy.as_deref().map(served),
        },
        pending,
        problems: view.problems(),
    }
}

fn served(proxy: &swarmesh_proxy::Shared) -> Served {
    let (routing, counts) = (proxy.routing(), &proxy.counts);
    let sum = |of: fn(&RouteCounts) -> u64| routing.lanes().map(|lane| of(&lane.counts)).sum();
    Served {
        connections: counts.connections.load(Relaxed),
        requests: sum(RouteCounts::requests),
        failed: sum(|counts| counts.answers(5)),
        in_flight: sum(RouteCounts::in_flight),
        unrouted: counts.unrouted.load(Relaxed),
        failed_handshakes: counts.failed_handshakes.load(Relaxed),
        out: proxy::out(proxy),
    }
}

fn places(view: &View, stale: u64) -> Vec<Place> {
    let place = |p: &swarmesh_dataplane::PlaceStatus| Place {
        place: p.place.clone(),
        path: p.path.display().to_string(),
        applied: p.state == swarmesh_dataplane::PlaceState::Applied,
        error: p.error.clone(),
        since_seconds: p.since_seconds + stale,
        fronts: p.fronts,
        healed: p.healed,
    };
    view.plane.places.iter().map(place).collect()
}

/// Everything that `/readyz` waits for. A source that is out of reach is not among it: what is known stays applied.
pub fn pending(view: &View) -> Vec<Pending> {
    let mut pending = Vec::new();
    if view.stopping {
        pending.push(Pending { what: "agent".to_owned(), why: "it stops; what it put into the kernel stays".to_owned() });
    }
    if view.origin == Origin::None {
        let detail =
            view.source.as_ref().map(|s| s.detail.as_str()).filter(|d| !d.is_empty()).unwrap_or("the source has not delivered yet");
        pending.push(Pending { what: "snapshot".to_owned(), why: detail.to_owned() });
    }
    if let Some(why) = &view.nameless {
        pending.push(Pending { what: "node".to_owned(), why: why.clone() });
    }
    pending.extend(view.pending_places().map(|p| Pending { what: p.place.clone(), why: p.error.clone() }));
    let resolvers = view.resolvers.iter().filter(|r| !r.error.is_empty());
    pending.extend(resolvers.map(|r| Pending { what: format!("names of {}", r.task), why: r.error.clone() }));
    pending
}
