//! `/metrics`: OpenMetrics text, made anew for each scrape from one view. No label ever names a task, and only routes'
//! name a service: there are as many series as services with routes, whatever clients ask for.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text::encode},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use swarmesh_dns::stats::{BUCKETS, Ending, Histogram, Stats};
use swarmesh_plan::BackendState;
use swarmesh_proxy::metrics::{Group, LATENCY_BOUNDS, Totals};
use swarmesh_router::model::{CertificateRef, OwnerKind};

use crate::view::{
    Origin, Shared, View,
    routes::{by_dialect, dialect_name, words::listener},
};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Usable {
    front: &'static str,
    state: &'static str,
}

pub(crate) fn render(shared: &Shared) -> Result<String, fmt::Error> {
    let view = shared.view();
    let mut registry = Registry::with_prefix("swarmesh");
    registry.register("build", "The running program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    let uptime = Gauge::<f64, AtomicU64>::default();
    uptime.set(shared.uptime().as_secs_f64());
    registry.register_with_unit("uptime", "Time since the agent started", Unit::Seconds, uptime);

    let mut gauge = |name: &str, help: &str, value: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("source_connected", "1 while the source sees the swarm", usize::from(view.source.as_ref().is_some_and(|s| s.connected)));
    gauge("snapshot_stale", "1 while the snapshot is an earlier run's", usize::from(view.origin == Origin::StateDir));
    gauge("snapshot_version", "Version of the applied snapshot", usize::try_from(view.snapshot.version).unwrap_or(usize::MAX));
    gauge("draining", "1 while this node refuses new connections to published ports", usize::from(view.context.draining));
    gauge("places", "Namespaces that this agent programs", view.plane.places.len());
    gauge("places_pending", "Namespaces that are not as planned", view.pending_places().count());
    gauge("problems", "Problems of single objects, listed by swarmesh status", view.problems().len());

    let objects = Family::<Kind, Gauge>::default();
    let counts = [
        ("network", view.snapshot.networks.len()),
        ("service", view.snapshot.services.len()),
        ("task", view.snapshot.tasks.len()),
        ("node", view.snapshot.nodes.len()),
        ("sandbox", view.plan.sandboxes.len()),
        ("vip", view.plan.networks.values().map(|v| v.len()).sum()),
        ("published_port", view.plan.published.len()),
    ];
    for (kind, count) in counts {
        objects.get_or_create(&Kind { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("objects", "Objects known, by kind", objects);

    let backends = Family::<Usable, Gauge>::default();
    let without = Family::<Kind, Gauge>::default();
    let vips = view.plan.networks.values().flat_map(|v| v.values()).map(|v| ("vip", &v.backends[..], v.targets().next().is_none()));
    let ports = view.plan.published.values().map(|p| ("published_port", &p.backends[..], p.usable() == 0));
    for front in ["vip", "published_port"] {
        for state in ["ready", "draining"] {
            drop(backends.get_or_create(&Usable { front, state }));
        }
        drop(without.get_or_create(&Kind { kind: front }));
    }
    for (front, list, nobody) in vips.chain(ports) {
        for backend in list {
            let state = match backend.state {
                BackendState::Ready => "ready",
                BackendState::Draining => "draining",
            };
            backends.get_or_create(&Usable { front, state }).inc();
        }
        without.get_or_create(&Kind { kind: front }).inc_by(i64::from(nobody));
    }
    registry.register("backends", "Backends of VIPs and published ports on this node", backends);
    registry.register("unusable", "VIPs and published ports that refuse for want of a task, or because the node drains", without);

    let routes = Family::<InDialect, Gauge>::default();
    for (dialect, count) in by_dialect(&view.plan) {
        routes.get_or_create(&InDialect { dialect: dialect_name(dialect) }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("routes", "Routes that labels ask for, by dialect", routes);
    if let Some(proxy) = &view.proxy {
        router(&mut registry, proxy);
    }

    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter("commits", "Transactions with the kernel", view.plane.commits);
    counter("operations", "Operations in them", view.plane.operations);
    counter("errors", "Attempts on a namespace that failed", view.plane.errors);
    counter("healed", "Foreign changes that were undone", view.plane.healed);
    registry.register_with_unit("apply", "From the receipt of an update to its last commit", Unit::Seconds, shared.apply_seconds.clone());

    if let Some(dns) = &view.dns {
        names(&mut registry, dns, &view);
    }

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InDialect {
    dialect: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// What the resolver counts.
fn names(registry: &mut Registry, dns: &swarmesh_dns::Shared, view: &View) {
    let endings = Family::<Ended, Counter>::default();
    for ending in Ending::ALL {
        endings.get_or_create(&Ended { outcome: ending.name() }).inc_by(dns.stats.of(ending));
    }
    registry.register("dns_queries", "Queries of containers, by how they ended; forwarded ones were asked upstream", endings);
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter("dns_tcp_queries", "Those of them that came over TCP", dns.stats.tcp_queries.load(Relaxed));
    counter("dns_tcp_connections", "TCP connections of containers", dns.stats.tcp_connections.load(Relaxed));
    counter("dns_tcp_closed", "TCP connections that were closed for being too many or too slow", dns.stats.tcp_closed.load(Relaxed));
    for (name, value) in dns.forwarding.named() {
        counter(&format!("dns_upstream_{name}"), "What became of forwarded queries", value);
    }
    let pending = view.resolvers.iter().filter(|r| !r.error.is_empty()).count();
    for (name, help, value) in [
        ("dns_resolvers", "Containers that are answered here", view.resolvers.len() - pending),
        ("dns_resolvers_pending", "Containers that Docker's resolver answers still", pending),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    registry.register_collector(Box::new(Times(Arc::clone(&dns.stats))));
}

/// The resolver's times: its threads write plain counters, which become histograms only here.
#[derive(Debug)]
struct Times(Arc<Stats>);

impl Collector for Times {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut one = |name: &str, help: &str, times: &Histogram| {
            let (counts, sum) = times.read();
            let bounds = BUCKETS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
            // As the crate wants them: not cumulative.
            let mut before = 0;
            let buckets: Vec<(f64, u64)> =
                bounds.zip(counts).map(|(bound, count)| (bound, count - std::mem::replace(&mut before, count))).collect();
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
            let mut metric = metric;
            metric.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), counts[BUCKETS.len()], &buckets, None)
        };
        one("dns_local", "From a datagram's taking to its answer's departure, for names of the swarm", &self.0.local)?;
        one("dns_forwarded", "The same of names that were asked upstream", &self.0.forwarded)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoutes {
    owner: String,
    dialect: &'static str,
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswers {
    owner: String,
    dialect: &'static str,
    listener: &'static str,
    /// `2xx`; `none` where the client did not wait for an answer, and for what is passed on unread.
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCertificate {
    certificate: String,
    from: &'static str,
}

const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl OfRoutes {
    fn new(group: &Group) -> Self {
        let kind = match group.kind {
            OwnerKind::Service => "service",
            OwnerKind::Container => "container",
        };
        Self { owner: format!("{kind} {}", group.name), dialect: dialect_name(group.dialect), listener: listener(group.listener) }
    }
}

/// What the proxy counts.
fn router(registry: &mut Registry, proxy: &swarmesh_proxy::Shared) {
    let counts = &proxy.counts;
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter("router_connections", "Connections of clients", counts.connections.load(Relaxed));
    counter("router_handshakes", "TLS handshakes that were finished here", counts.handshakes.load(Relaxed));
    counter("router_failed_handshakes", "TLS handshakes that were not", counts.failed_handshakes.load(Relaxed));
    counter("router_passed_tls", "TLS connections that were passed on unopened", counts.passed_tls.load(Relaxed));
    counter("router_unrouted", "Requests that no route takes", counts.unrouted.load(Relaxed));
    counter("router_malformed", "Requests that are no requests", counts.malformed.load(Relaxed));

    if let Some(log) = &proxy.access_log {
        counter("access_log_lines", "Lines of the access log", log.written());
        counter("access_log_lost", "Lines that it could not take", log.lost());
    }

    let expiries = Family::<OfCertificate, Gauge>::default();
    for (reference, at) in proxy.certificates.expiries() {
        let from = match &reference {
            CertificateRef::Secrets { .. } => "secret",
            CertificateRef::Files { .. } => "file",
            CertificateRef::Inline { .. } => "label",
        };
        let gauge = expiries.get_or_create(&OfCertificate { certificate: reference.name().to_owned(), from });
        let at = at.duration_since(UNIX_EPOCH).map_or(0, |at| i64::try_from(at.as_secs()).unwrap_or(i64::MAX));
        // Of two with one name, the one that expires first. A new gauge is 0.
        if gauge.get() == 0 || at < gauge.get() {
            gauge.set(at);
        }
    }
    registry.register_with_unit("certificate_expiry", "When a certificate that is shown expires, as Unix time", Unit::Seconds, expiries);

    let routing = proxy.routing();
    let groups: Vec<(OfRoutes, Totals)> = routing.groups().map(|(group, counts)| (OfRoutes::new(group), counts.totals())).collect();
    let answers = Family::<OfAnswers, Counter>::default();
    for (of, totals) in &groups {
        for (status, count) in STATUSES.into_iter().zip(totals.answers) {
            let labels = OfAnswers { owner: of.owner.clone(), dialect: of.dialect, listener: of.listener, status };
            answers.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register("route_answers", "Requests that are over, by the class of their answer's status", answers);
    let mut counters = |name: &str, help: &str, unit: Option<Unit>, value: fn(&Totals) -> u64| {
        let family = Family::<OfRoutes, Counter>::default();
        for (of, totals) in &groups {
            family.get_or_create(of).inc_by(value(totals));
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    };
    counters("route_requests", "Requests and connections that came by routes of this owner", None, |t| t.requests);
    counters("route_received", "Bodies of requests, and tunnels", Some(Unit::Bytes), |t| t.received);
    counters("route_sent", "Bodies of answers, and tunnels", Some(Unit::Bytes), |t| t.sent);
    counters("route_retries", "Attempts beyond a request's first", None, |t| t.retries);
    counters("route_connect_failures", "Backends that could not be reached", None, |t| t.connect_failures);

    let mut gauges = |name: &str, help: &str, values: &mut dyn Iterator<Item = (OfRoutes, u64)>| {
        let family = Family::<OfRoutes, Gauge>::default();
        for (of, value) in values {
            family.get_or_create(&of).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        registry.register(name, help, family);
    };
    gauges("route_in_flight", "Requests and tunnels that are under way", &mut groups.iter().map(|(of, t)| (of.clone(), t.in_flight)));
    let endpoints = routing.endpoints(Instant::now());
    let of_endpoints = |value: fn(&(usize, usize)) -> usize| {
        endpoints.iter().map(move |(group, counts)| (OfRoutes::new(group), u64::try_from(value(counts)).unwrap_or(u64::MAX)))
    };
    gauges("route_endpoints", "Places that requests can be sent to", &mut of_endpoints(|(all, _)| *all));
    gauges("route_endpoints_out", "Those of them that failed and are passed over for a while", &mut of_endpoints(|(_, out)| *out));
    registry.register_collector(Box::new(RouteTimes(groups)));
}

/// Requests' times, which are counted in classes already.
#[derive(Debug)]
struct RouteTimes(Vec<(OfRoutes, Totals)>);

impl Collector for RouteTimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "From a request's head to the end of its answer, or of its tunnel";
        let mut metric = encoder.encode_descriptor("route_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (of, totals) in &self.0 {
            let bounds = LATENCY_BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(totals.latencies).collect();
            let count = totals.latencies.iter().sum();
            metric.encode_family(of)?.encode_histogram::<NoLabelSet>(totals.latency_sum.as_secs_f64(), count, &buckets, None)?;
        }
        Ok(())
    }
}
