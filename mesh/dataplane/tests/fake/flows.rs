//! Which flows are cut, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmesh_kernel::FlowFilter;
use swarmesh_kernel::fake::Call;
use swarmesh_model::Protocol::Tcp;
use swarmesh_model::Protocol::Udp;
use swarmesh_plan::Policy;

use crate::common::*;
use crate::{ENOBUFS, UDP};

fn udp_vip(vip: &str) -> FlowFilter {
    FlowFilter { protocol: Some(UDP), original_destination: Some(ip(vip)), ..FlowFilter::default() }
}

fn udp_port(port: u16) -> FlowFilter {
    FlowFilter { protocol: Some(UDP), original_destination_port: Some(port), ..FlowFilter::default() }
}

pub(crate) fn to_backend(filter: FlowFilter, backend: &str) -> FlowFilter {
    FlowFilter { reply_source: Some(ip(backend)), ..filter }
}

/// What was flushed since last asked, where anything was.
pub(crate) fn flushed(world: &World) -> BTreeMap<String, Vec<FlowFilter>> {
    let views = world.views();
    let all = views.iter().map(|(name, view)| (name.clone(), view.flushed())).filter(|(_, f)| !f.is_empty()).collect();
    world.forget_records();
    all
}

fn only(place: &str, filter: FlowFilter) -> BTreeMap<String, Vec<FlowFilter>> {
    BTreeMap::from([(place.to_owned(), vec![filter])])
}

#[test]
fn udp_flows_are_cut_when_a_backend_is_gone_and_not_otherwise() {
    let plan = |of: &[&str]| {
        rich().vip("net2", "10.0.2.100", Policy::default(), of).port(Tcp, 8080, Policy::default(), &["10.0.0.101", "10.0.0.111"])
    };
    let mut world = World::with(plan(&["10.0.2.11", "10.0.2.12"]));
    flushed(&world);
    // Added, replaced in order, draining, ready again, other scheduler: no flow is cut.
    for of in [
        &["10.0.2.11", "10.0.2.12", "10.0.2.13"][..],
        &["10.0.2.11 drains", "10.0.2.12", "10.0.2.13"],
        &["10.0.2.11", "10.0.2.12", "10.0.2.13"],
    ] {
        world.apply(plan(of));
        assert_eq!(flushed(&world), BTreeMap::new());
    }
    world.apply(plan(&["10.0.2.11", "10.0.2.13"]));
    assert_eq!(flushed(&world), only("box2", to_backend(udp_vip("10.0.2.100"), "10.0.2.12")));
    // With its service.
    world.apply(plan(&["10.0.2.13"]));
    flushed(&world);
    world.apply(plan(&[]).without_vip("net2", "10.0.2.100"));
    assert_eq!(flushed(&world), only("box2", to_backend(udp_vip("10.0.2.100"), "10.0.2.13")));
    // Published: TCP's tasks have told their clients themselves.
    let now = world.plan.clone();
    world.apply(now.clone().port(Tcp, 8080, Policy::default(), &["10.0.0.101"]));
    assert_eq!(flushed(&world), BTreeMap::new());
    world.apply(now.clone().port(Udp, 5353, sticky(), &["10.0.0.101"]));
    assert_eq!(flushed(&world), only("ingress", to_backend(udp_port(5353), "10.0.0.112")));
    world.apply(now.without_port(Udp, 5353));
    assert_eq!(flushed(&world), only("ingress", to_backend(udp_port(5353), "10.0.0.101")));
}

#[test]
fn udp_flows_that_went_nowhere_are_cut_when_their_vip_or_port_appears() {
    let mut world = World::with(rich());
    flushed(&world);
    world.apply(rich().vip("net2", "10.0.2.109", Policy::default(), &["10.0.2.13"]));
    assert_eq!(flushed(&world), only("box2", udp_vip("10.0.2.109")));
    // A backend that comes later is no new VIP.
    world.apply(rich().vip("net2", "10.0.2.109", Policy::default(), &["10.0.2.13", "10.0.2.14"]));
    assert_eq!(flushed(&world), BTreeMap::new());
    world.apply(world.plan.clone().port(Udp, 53, Policy::default(), &["10.0.0.3"]).port(Tcp, 53, Policy::default(), &["10.0.0.3"]));
    let both = BTreeMap::from([("node".to_owned(), vec![udp_port(53)]), ("ingress".to_owned(), vec![udp_port(53)])]);
    assert_eq!(flushed(&world), both);
    // A namespace that has no flow is not searched.
    world.task(2).set_sysctl("net/netfilter/nf_conntrack_count", "0");
    world.apply(world.plan.clone().vip("net2", "10.0.2.110", Policy::default(), &["10.0.2.13"]));
    assert_eq!(flushed(&world), BTreeMap::new());
}

#[test]
fn a_vip_that_appears_with_a_changed_sandbox_is_new_all_the_same() {
    let mut world = World::with(rich());
    flushed(&world);
    world.apply(rich().task(2, &["net1", "net2", "net3"], &[]).vip("net3", "10.0.3.100", Policy::default(), &["10.0.3.11"]));
    assert_eq!(flushed(&world), only("box2", udp_vip("10.0.3.100")));
}

#[test]
fn flows_that_a_failure_kept_are_cut_by_the_retry() {
    for (place, name) in [("task web.2", "box2"), ("ingress", "ingress")] {
        for more in [0, 2] {
            let mut world = World::with(rich());
            flushed(&world);
            for _ in 0..=more {
                world.view(place).fail_next(Call::Commit, ENOBUFS);
            }
            let changed = if name == "box2" {
                rich().vip("net2", "10.0.2.100", Policy::default(), &["10.0.2.11"]).vip(
                    "net2",
                    "10.0.2.109",
                    Policy::default(),
                    &["10.0.2.11"],
                )
            } else {
                rich().port(Udp, 5353, sticky(), &["10.0.0.101"]).port(Udp, 53, Policy::default(), &["10.0.0.101"])
            };
            world.apply(changed);
            world.retry();
            world.is_exact();
            let cut = flushed(&world).remove(name).unwrap_or_default();
            let wanted = if name == "box2" {
                [udp_vip("10.0.2.109"), to_backend(udp_vip("10.0.2.100"), "10.0.2.12")]
            } else {
                [udp_port(53), to_backend(udp_port(5353), "10.0.0.112")]
            };
            assert_eq!(cut, wanted, "{place} after {} failures", more + 1);
        }
    }
}

/// Connections that came before the way back was laid start over, also when laying it took two attempts.
#[test]
fn early_arrivals_start_over_once() {
    let own = FlowFilter { original_destination: Some(ip("10.0.0.101")), ..FlowFilter::default() };
    for failures in 0..3 {
        let mut world = World::new();
        world.add_boxes(&rich());
        for _ in 0..failures {
            world.task(1).fail_next(Call::Commit, ENOBUFS);
        }
        world.apply(rich());
        world.retry();
        assert_eq!(world.task(1).flushed(), [own], "after {failures} failures");
        flushed(&world);
        world.audit();
        world.restart();
        world.apply(rich().task(1, &["net1"], &[(Tcp, 8080, 81)]));
        assert_eq!(world.task(1).flushed(), []);
    }
}

#[test]
fn a_drain_cuts_everything_when_its_time_is_over_and_not_before() {
    let short = || policy(|p| p.drain = Duration::from_secs(10));
    let plan = |vip: &[&str], port: &[&str]| rich().vip("net2", "10.0.2.100", short(), vip).port(Tcp, 8080, short(), port);
    let mut world = World::with(plan(&["10.0.2.11", "10.0.2.12"], &["10.0.0.101", "10.0.0.111"]));
    world.apply(plan(&["10.0.2.11 drains", "10.0.2.12"], &["10.0.0.101", "10.0.0.111 drains"]));
    flushed(&world);
    let start = world.now;
    assert_eq!(world.plane.run_due(world.now), Some(start + Duration::from_secs(10)));
    world.after(Duration::from_millis(9_999));
    assert_eq!(flushed(&world), BTreeMap::new());
    // Another change meanwhile does not prolong it.
    world.apply(plan(&["10.0.2.11 drains", "10.0.2.12", "10.0.2.13"], &["10.0.0.101", "10.0.0.111 drains"]));
    assert_eq!(world.plane.run_due(world.now), Some(start + Duration::from_secs(10)));
    world.after(Duration::from_millis(1));
    let vip = FlowFilter { original_destination: Some(ip("10.0.2.100")), reply_source: Some(ip("10.0.2.11")), ..FlowFilter::default() };
    let port = FlowFilter {
        protocol: Some(6),
        original_destination_port: Some(8080),
        reply_source: Some(ip("10.0.0.111")),
        ..FlowFilter::default()
    };
    assert_eq!(flushed(&world), BTreeMap::from([("box2".to_owned(), vec![vip]), ("ingress".to_owned(), vec![port])]));
    assert_eq!(world.plane.run_due(world.now), None);
    world.after(Duration::from_secs(60));
    assert_eq!(flushed(&world), BTreeMap::new());
}

#[test]
fn a_backend_that_is_ready_again_during_its_drain_keeps_its_flows() {
    let plan = |of: &[&str]| rich().vip("net2", "10.0.2.100", policy(|p| p.drain = Duration::from_secs(10)), of);
    let mut world = World::with(plan(&["10.0.2.11", "10.0.2.12"]));
    world.apply(plan(&["10.0.2.11 drains", "10.0.2.12"]));
    flushed(&world);
    world.after(Duration::from_secs(5));
    world.apply(plan(&["10.0.2.11", "10.0.2.12"]));
    world.after(Duration::from_secs(60));
    assert_eq!(flushed(&world), BTreeMap::new());
    // One that drains a second time has all of its time.
    world.apply(plan(&["10.0.2.11 drains", "10.0.2.12"]));
    world.after(Duration::from_secs(9));
    assert_eq!(flushed(&world), BTreeMap::new());
    world.after(Duration::from_secs(1));
    assert_eq!(flushed(&world).len(), 1);
}

#[test]
fn a_node_that_drains_refuses_what_is_new_and_cuts_nothing() {
    let mut world = World::with(rich());
    flushed(&world);
    world.apply(
        rich()
            .port_or_refuse(Tcp, 8080, Policy::default(), &["10.0.0.101", "10.0.0.111"], true)
            .port_or_refuse(Udp, 5353, sticky(), &["10.0.0.101", "10.0.0.112"], true)
            .port_or_refuse(Tcp, 9090, policy(|p| p.source = swarmesh_plan::SourceMode::Snat), &["10.0.0.113"], true),
    );
    world.after(Duration::from_secs(3600));
    assert_eq!(flushed(&world), BTreeMap::new());
    world.is_exact();
    assert!(Meaning::of(&world.sandbox()).fronts.values().all(|(how, to)| how == "refuse" && to.is_empty()));
    // And the ports are still the swarm's, so that they are refused and not somebody else's.
    assert_eq!(world.node().elements(set("published")).len(), 3);
    world.apply(rich());
    assert_eq!(flushed(&world), BTreeMap::new());
    world.is_exact();
}
