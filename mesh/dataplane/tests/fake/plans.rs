//! Whole plans.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaneConfig, uninstall};
use swarmesh_kernel::fake::FakeKernel;
use swarmesh_model::{HostLayout, Protocol::Tcp};
use swarmesh_plan::PlanDelta;
use swarmesh_plan::Policy;

use crate::common::*;

#[test]
fn a_whole_plan_is_as_planned() {
    let world = World::with(rich());
    world.is_exact();
    let status = world.plane.status(world.now);
    let fronts: BTreeMap<String, usize> = status.places.iter().map(|p| (p.place.clone(), p.fronts)).collect();
    let wanted = [("ingress", 3), ("node", 3), ("task web.1", 5), ("task web.2", 6)];
    assert_eq!(fronts, wanted.map(|(name, n)| (name.to_owned(), n)).into());
    assert_eq!((status.errors, status.healed), (0, 0));
    assert_eq!(status.host.unwrap().bridge, "docker_gwbridge");
    // Nothing that the plan does not name was touched.
    assert_eq!(world.task(2).fwmark_rules(), []);
    assert_eq!(world.node().docker_user(false).unwrap().len(), 4);
}

/// Where IPv6 has a way, Docker's firewall for it lets that pass, and clients whose address every node has are given this node's.
#[test]
fn ipv6_has_a_way_of_its_own() {
    let mut world = World::new();
    world.add_boxes(&rich());
    world.node().set_docker_user(true, true);
    let sandbox = world.sandbox();
    let mut legs = sandbox_interfaces();
    legs[1].addresses.push("fd00:2::2/64".parse().unwrap());
    legs[2].addresses.push("fd00:18::2/64".parse().unwrap());
    sandbox.set_interfaces(legs);
    world.node().set_interfaces(vec![
        interface(1, "lo", None, &["127.0.0.1/8"]),
        interface(2, "eth0", None, &["192.0.2.1/24", "fe80::1/64", "fd00:5741::1/64"]),
        interface(3, "docker_gwbridge", Some("bridge"), &["172.18.0.1/16", "fe80::1/64", "fd00:18::1/64"]),
    ]);
    world.apply(rich());
    world.settled();
    let rules = world.node().docker_user(true).unwrap();
    assert_eq!(rules.len(), 2);
    assert!(rules.iter().all(|r| r.contains(&"fd00:18::2".to_owned())), "{rules:?}");
    assert_eq!(world.node().docker_user(false).unwrap().len(), 4);
    let loaded = world.node().scripts().concat();
    assert!(loaded.contains("ip6 daddr fd00:18::2 ct status dnat ip6 saddr fd00:18::/64 snat ip6 to fd00:5741::1\n"), "{loaded}");
    assert!(!loaded.contains("fe80"), "{loaded}");
}

/// Docker's silent listener comes with a published port's first task and its chains no earlier, so neither is waited for where
/// the release says what will come. An engine that is replaced brings the other rules with it.
#[test]
fn ipv6_without_a_way_is_refused_by_the_engines_release() {
    let mut world = World::with(rich());
    for (layout, wanted) in [
        (None, false),
        (Some(HostLayout::IngressChains), true),
        (Some(HostLayout::PortMappings), false),
        (Some(HostLayout::IngressChains), true),
        (None, false),
    ] {
        let mut plan = rich();
        plan.0.host_layout = layout;
        world.apply(plan);
        world.is_exact();
        let refuses = world.node().scripts().last().unwrap().contains("meta nfproto ipv6 meta l4proto . th dport @published goto refuse");
        assert_eq!((refuses, world.plane.status(world.now).host.unwrap().old_layout), (wanted, wanted), "{layout:?}");
    }
    // Of no known release, the chain is what tells.
    swarmesh_kernel::Kernel::open_current(&world.kernel).unwrap().load_script("table ip filter { chain DOCKER-INGRESS { } }").unwrap();
    world.audit();
    assert!(world.node().scripts().last().unwrap().contains("meta nfproto ipv6 meta l4proto . th dport @published goto refuse"));
}

#[test]
fn sockets_are_looked_up_late_where_the_kernel_is_old() {
    for (release, before, during) in
        [("6.1.0-56-cloud-amd64", "1", "0"), ("5.16.1", "0", "0"), ("6.12.117+deb12", "1", "1"), ("7.0-rc1", "1", "1"), ("odd", "1", "1")]
    {
        let directory = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::of_release(release);
        let path = directory.path().join("box1");
        std::fs::write(&path, "").unwrap();
        let view = kernel.add_namespace(&path);
        view.set_interfaces(box_interfaces(1));
        view.set_sysctl("net/ipv4/tcp_early_demux", before);
        let look = || view.sysctl("net/ipv4/tcp_early_demux").unwrap();
        let config = PlaneConfig { balancing: Balancing::Nft, netns_dir: directory.path().to_owned(), node_address: None };
        // Without a way in there is nothing to mistake.
        for (published, wanted) in [(&[][..], before), (&[(Tcp, 8080, 80)], during)] {
            let mut plane = NetfilterPlane::new(std::sync::Arc::new(kernel.clone()), config.clone());
            let plan = Plan::default().ingress().task(1, &["net1"], published);
            plane.apply(&PlanDelta::between(&Default::default(), &plan.0), std::time::Instant::now());
            assert_eq!(look(), wanted, "{release}");
        }
        assert!(uninstall(&kernel, directory.path()).into_iter().all(|(_, outcome)| outcome.is_ok()));
        assert_eq!(look(), before, "{release}");
    }
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let mut world = World::with(rich());
    world.forget_records();
    world.restart();
    world.settled();
    assert_eq!(world.written(), BTreeMap::new());
    assert_eq!(world.plane.status(world.now).commits, 0);
    world.audit();
    world.check_events();
    world.after(Duration::from_secs(3600));
    assert_eq!(world.written(), BTreeMap::new());
    world.is_exact();
}

#[test]
fn a_restart_after_any_history_writes_nothing() {
    let mut world = World::with(rich());
    // Slots move and classes come and go, so what is read back is not what a fresh plane would have written.
    world.apply(rich().vip("net1", "10.0.1.100", sticky(), &["10.0.1.13", "10.0.1.19"]).without_port(Tcp, 9090));
    world.apply(rich().vip("net1", "10.0.1.101", Policy::default(), &["10.0.1.19"]).without_vip("net1", "10.0.1.103"));
    world.forget_records();
    world.restart();
    assert_eq!(world.written(), BTreeMap::new());
    world.is_exact();
}

#[test]
fn the_same_plan_again_writes_nothing() {
    let mut world = World::with(rich());
    world.forget_records();
    let all = PlanDelta::between(&Plan::default().0, &world.plan.0);
    let all = PlanDelta { ingress: None, ..all };
    world.plane.apply(&all, world.now);
    assert_eq!(world.written(), BTreeMap::new());
}
