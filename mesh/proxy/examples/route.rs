//! What it costs to find where a request goes, and nothing else, for profilers and benches.
//!
//! `route exact|wildcard HOSTS table|choice LOOKUPS`: asks a table of `h00000.example` and so on, or of `*.h00000.example`, for
//! random ones of them, and prints nanoseconds of CPU per lookup. With `choice`, the route's backend is chosen, too.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::{
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    thread,
    time::Instant,
};

use http::HeaderMap;
use swarmesh_model::{NetworkId, TaskId};
use swarmesh_proxy::{
    Config,
    live_set::Asking,
    routing::{Routing, Switchboard},
};
use swarmesh_router::{
    Request, Route,
    model::{
        Action, BackendMode, BackendSet, Dialect, HostMatch, Listener, Match, Member, Origin, Owner, OwnerKind, Policy, Precedence, Share,
        Tasks,
    },
};

const USAGE: &str = "route exact|wildcard HOSTS table|choice LOOKUPS";
const NO_HEADERS: [(&str, &str); 0] = [];

/// Each service has three tasks.
struct Three;

impl Tasks for Three {
    fn vip(&self, _: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        None
    }

    fn usable(&self, _: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        (1..=3).map(|number| (TaskId::from(format!("task{number}")), Ipv4Addr::new(10, 0, 0, number).into())).collect()
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn network(&self, _: &str, _: Option<&NetworkId>) -> Option<NetworkId> {
        None
    }
}

fn routing(hosts: u32, wildcard: bool) -> Routing {
    let routes = (0..hosts).map(|number| {
        let owner = Owner { id: format!("{number}"), name: "web".to_owned(), kind: OwnerKind::Service };
        let host =
            if wildcard { HostMatch::Suffix(format!(".h{number:05}.example")) } else { HostMatch::Exact(format!("h{number:05}.example")) };
        Arc::new(Route {
            origin: Origin { owner, dialect: Dialect::Swarmesh, label: "bench".to_owned(), part: 0 },
            listener: Listener::Any,
            matching: Match { hosts: vec![host], ..Match::default() },
            precedence: Precedence::Specific { priority: 0 },
            share: Share::Alone,
            filters: Vec::new(),
            action: Action::Forward(BackendSet::of(Member::service("web", None, 80, BackendMode::Task))),
            certificate: None,
            policy: Policy::default(),
        })
    });
    Switchboard::new(&Config::default()).route(routes, &Three).0
}

/// Nanoseconds of this thread so far: others may use the core, too.
fn cpu() -> Result<u64, Box<dyn std::error::Error>> {
    // The kernel counts up to now when a thread gives way.
    thread::yield_now();
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [form, hosts, part, lookups] = words.as_slice() else { return Err(USAGE.into()) };
    let (hosts, lookups): (u32, usize) = (hosts.parse()?, lookups.parse()?);
    let wildcard = match form.as_str() {
        "exact" => false,
        "wildcard" => true,
        _ => return Err(USAGE.into()),
    };
    let chooses = match part.as_str() {
        "table" => false,
        "choice" => true,
        _ => return Err(USAGE.into()),
    };
    let routing = routing(hosts, wildcard);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let asked: Vec<String> = (0..4096)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) % u64::from(hosts);
            if wildcard { format!("www.h{number:05}.example") } else { format!("h{number:05}.example") }
        })
        .collect();
    let headers = HeaderMap::new();
    let asking = Asking { client: Ipv4Addr::LOCALHOST.into(), headers: &headers, tls: false, tls_session: None };
    let mut found = 0_usize;
    let (now, before) = (Instant::now(), cpu()?);
    for number in 0..lookups {
        let request = Request {
            tls: false,
            port: 80,
            host: black_box(&asked[number % asked.len()]),
            method: "GET",
            path: "/index.html",
            headers: &NO_HEADERS,
        };
        let Some(position) = routing.table.position(&request) else { continue };
        if !chooses {
            found += usize::from(black_box(position) < hosts as usize);
            continue;
        }
        let live = routing.lane(position).and_then(|lane| lane.live.as_ref());
        found += usize::from(live.and_then(|live| black_box(live.choose(&asking, &[], now))).is_some());
    }
    let took = cpu()? - before;
    if found != lookups {
        return Err(format!("{found} of {lookups} requests have a route").into());
    }
    println!("{:.2}", took as f64 / lookups as f64);
    Ok(())
}
