//! Things that are not there yet, and how they are noticed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use swarmesh_dataplane::NetfilterPlane;
use swarmesh_dataplane::PlaneConfig;
use swarmesh_kernel::DefaultRoute;
use swarmesh_plan::Ingress;
use swarmesh_plan::PlanDelta;

use crate::common::*;

#[test]
fn a_missing_namespace_is_programmed_when_it_appears() {
    let mut world = World::new();
    world.add_box(1);
    world.apply(rich());
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["task web.2"]);
    assert!(pending["task web.2"].contains("no network namespace at /nonexistent/netns/box2"));
    let status = world.plane.status(world.now);
    assert_eq!(status.places.iter().find(|p| p.place == "task web.2").unwrap().path, path("box2"));
    world.after(Duration::from_secs(30));
    world.add_box(2);
    world.retry();
    world.is_exact();
}

#[test]
fn a_missing_ingress_sandbox_holds_up_the_node_only() {
    let mut world = World::new();
    world.add_boxes(&rich());
    world.kernel.remove_namespace(path("ingress_sbox"));
    world.apply(rich());
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["ingress", "node"]);
    assert!(pending["ingress"].contains("/nonexistent/netns/ingress_sbox"), "{pending:?}");
    assert!(pending["node"].contains("waits for the ingress sandbox"), "{pending:?}");
    assert_eq!(world.node().writes(), 0);
    world.add_sandbox();
    world.retry();
    world.is_exact();
}

#[test]
fn interfaces_and_routes_may_come_late() {
    let mut world = World::new();
    world.add_boxes(&rich());
    world.sandbox().set_interfaces(sandbox_interfaces()[..1].to_vec());
    world.task(1).set_interfaces(box_interfaces(1)[2..].to_vec());
    world.apply(rich());
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["ingress", "node", "task web.1"]);
    assert!(pending["ingress"].contains("10.0.0.0/24"), "{pending:?}");
    assert!(pending["task web.1"].contains("10.0.0.101"), "{pending:?}");

    world.task(1).set_interfaces(box_interfaces(1));
    world.sandbox().set_interfaces(sandbox_interfaces());
    world.sandbox().set_default_route(false, None);
    world.after(Duration::from_secs(10));
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["ingress", "node"]);
    assert!(pending["ingress"].contains("no default route"), "{pending:?}");

    let bridge = world.node();
    let all = vec![interface(2, "eth0", None, &["192.0.2.1/24"]), interface(3, "docker_gwbridge", Some("bridge"), &["172.18.0.1/16"])];
    bridge.set_interfaces(all[..1].to_vec());
    world.sandbox().set_default_route(false, Some(DefaultRoute { index: 3, gateway: Some(ip("172.18.0.1")) }));
    world.after(Duration::from_secs(10));
    world.after(Duration::from_secs(10));
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["node"]);
    assert!(pending["node"].contains("172.18.0.1"), "{pending:?}");
    bridge.set_interfaces(all);
    world.retry();
    world.is_exact();
}

#[test]
fn an_ingress_subnet_that_marks_cannot_tell_apart_is_named() {
    let mut world = World::new();
    world.add_box(1);
    let mut plan = rich().without_task(2);
    plan.0.ingress = Some(Arc::new(Ingress { network: "ingress".into(), subnets: vec!["10.0.0.0/8".parse().unwrap()], mtu: 1450 }));
    world.apply(plan);
    assert!(world.pending()["task web.1"].contains("10.0.0.0/8"));
}

#[test]
fn docker_user_may_be_absent_or_come_back() {
    let mut world = World::new();
    world.add_boxes(&rich());
    world.node().set_docker_user(false, false);
    world.apply(rich());
    world.settled();
    assert_eq!(world.node().docker_user(false), None);

    world.node().set_docker_user(false, true);
    world.audit();
    let rules = world.node().docker_user(false).unwrap();
    assert_eq!(rules.len(), 4);
    assert!(rules.iter().flatten().any(|w| w == "172.18.0.2") && rules.iter().flatten().any(|w| w == "docker_gwbridge"));
    world.forget_records();
    world.audit();
    assert_eq!(world.written(), BTreeMap::new());
    world.is_exact();
}

#[test]
fn a_new_namespace_ends_the_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let config = PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir: dir.path().to_owned(), node_address: None };
    let mut plane = NetfilterPlane::new(Arc::new(world.kernel.clone()), config);
    let mut now = world.now;
    let plan = rich().without_ingress().without_task(1);
    plane.apply(&PlanDelta::between(&Plan::default().0, &plan.0), now);
    for _ in 0..300 {
        now = plane.run_due(now).unwrap().max(now);
    }
    assert!(plane.run_due(now).unwrap() >= now);
    world.kernel.add_namespace(dir.path().join("box2"));
    std::fs::write(dir.path().join("box2"), "").unwrap();
    plane.check_events(now);
    plane.run_due(now);
    assert!(plane.is_settled(), "{:?}", plane.status(now).places);
}
