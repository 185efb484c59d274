//! `/metrics`: OpenMetrics text, made anew for each scrape from one view. No label ever names a task or a service.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use swarmesh_plan::BackendState;

use crate::view::{Origin, Shared};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Usable {
    front: &'static str,
    state: &'static str,
}

pub(super) fn render(shared: &Shared) -> Result<String, fmt::Error> {
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
    let vips = view.plan.networks.values().flat_map(|v| v.values()).map(|v| ("vip", &v.backends, v.targets().next().is_none()));
    let ports = view.plan.published.values().map(|p| ("published_port", &p.backends, p.usable() == 0));
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

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
