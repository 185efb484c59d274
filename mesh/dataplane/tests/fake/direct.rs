//! The direct way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use swarmesh_kernel::DefaultRoute;
use swarmesh_kernel::FlowFilter;
use swarmesh_kernel::fake::Call;
use swarmesh_model::Protocol::Tcp;
use swarmesh_plan::Policy;
use swarmesh_plan::Scheduler;

use crate::ENOBUFS;
use crate::common::*;
use crate::flows::flushed;
use crate::flows::to_backend;

/// What the node does with a published TCP port, and what the sandbox does: targets, or nothing.
fn ways(world: &World, port: u16) -> (Option<Vec<IpAddr>>, Vec<IpAddr>) {
    let [high, low] = port.to_be_bytes();
    let key = (false, vec![6, 0, 0, 0, high, low, 0, 0]);
    let address = |bytes: &Vec<u8>| <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from).ok();
    let of = |view| Meaning::of(&view).fronts.get(&key).map(|(_, to)| to.iter().filter_map(address).collect::<Vec<_>>());
    (of(world.node()), of(world.sandbox()).unwrap_or_default())
}

fn ips(of: &[&str]) -> Vec<IpAddr> {
    of.iter().map(|a| ip(a)).collect()
}

#[test]
fn a_nodes_own_tasks_are_reached_past_the_sandbox_in_turn_with_the_others() {
    let two = || rich().task(2, &["net1", "net2"], &[(Tcp, 8080, 81)]);
    let port = |of: &[&str]| two().port(Tcp, 8080, Policy::default(), of);
    let pass = "0.0.0.0";
    let mut world = World::with(port(&["10.0.0.101", "10.0.0.102", "10.0.0.111", "10.0.0.112", "10.0.0.113"]));
    let near = ["172.18.0.11", "172.18.0.12"];
    let turns = [&[pass; 3][..], &near].concat();
    assert_eq!(ways(&world, 8080), (Some(ips(&turns)), ips(&["10.0.0.111", "10.0.0.112", "10.0.0.113"])));
    // The sandbox's turns take no room, and no write when it has another task to choose from.
    assert_eq!(world.node().elements(set("slot4")).len(), 2);
    world.forget_records();
    world.apply(port(&["10.0.0.101", "10.0.0.102", "10.0.0.111", "10.0.0.112", "10.0.0.114"]));
    assert_eq!(world.written().keys().collect::<Vec<_>>(), ["ingress"]);
    // Without others, the sandbox could serve all; without own ones, it does.
    world.apply(port(&["10.0.0.101", "10.0.0.102"]));
    assert_eq!(ways(&world, 8080), (Some(ips(&near)), ips(&["10.0.0.101", "10.0.0.102"])));
    world.apply(port(&["10.0.0.101 drains", "10.0.0.111"]));
    assert_eq!(ways(&world, 8080), (None, ips(&["10.0.0.111"])));
    world.apply(port(&["10.0.0.101 drains", "10.0.0.102 drains"]));
    assert_eq!(ways(&world, 8080), (Some(ips(&near)), ips(&["10.0.0.101", "10.0.0.102"])));
    world.apply(port(&[]));
    assert_eq!(ways(&world, 8080), (None, vec![]));
    world.is_exact();
}

#[test]
fn what_is_chosen_or_disguised_in_the_sandbox_goes_there() {
    for policy in [sticky(), scheduled(Scheduler::SourceHash), policy(|p| p.source = swarmesh_plan::SourceMode::Snat)] {
        let world = World::with(rich().port(Tcp, 8080, policy, &["10.0.0.101", "10.0.0.111"]));
        assert_eq!(ways(&world, 8080), (None, ips(&["10.0.0.101", "10.0.0.111"])));
        world.is_exact();
    }
    for policy in [scheduled(Scheduler::Random), policy(|p| p.source = swarmesh_plan::SourceMode::Local)] {
        let world = World::with(rich().port(Tcp, 8080, policy, &["10.0.0.101"]));
        assert_eq!(ways(&world, 8080), (Some(ips(&["172.18.0.11"])), ips(&["10.0.0.101"])));
    }
    // UDP is the sandbox's, and so is a port by whose number Docker's host mode leads to something else in the task.
    let with = |host: u16| {
        let mut plan = rich();
        let mut sandbox = (*plan.0.sandboxes["t1"]).clone();
        sandbox.ingress.as_mut().unwrap().host.insert(host);
        plan.0.sandboxes.insert("t1".into(), Arc::new(sandbox));
        plan
    };
    let mut world = World::with(with(80));
    assert!(ways(&world, 8080).0.is_some());
    world.apply(with(8080));
    assert_eq!(ways(&world, 8080), (None, ips(&["10.0.0.101", "10.0.0.111"])));
    assert_eq!(world.task(1).elements(set("near")), []);
    world.is_exact();
    assert_eq!(world.node().elements(set("front4")), []);
}

/// Two namespaces change one after the other, and either may fail: whoever has a task is served by one.
#[test]
fn nobody_is_refused_between_two_namespaces() {
    let own = ["10.0.0.101", "10.0.0.102"];
    let others = ["10.0.0.111", "10.0.0.112"];
    let mut shapes: Vec<Vec<String>> = Vec::new();
    for here in 0..=2 {
        for there in 0..=2 {
            let addresses = own[..here].iter().chain(&others[..there]);
            shapes.push(addresses.clone().map(|a| (*a).to_owned()).collect());
            shapes.push(addresses.enumerate().map(|(i, a)| if i == 0 { format!("{a} drains") } else { (*a).to_owned() }).collect());
        }
    }
    let plan = |shape: &[String]| {
        let of: Vec<&str> = shape.iter().map(String::as_str).collect();
        rich().task(2, &["net1", "net2"], &[(Tcp, 8080, 81)]).port(Tcp, 8080, Policy::default(), &of)
    };
    let door = |shape: &[String]| -> Vec<IpAddr> {
        let own = shape.iter().filter_map(|a| a.split(' ').next()?.strip_prefix("10.0.0.10")?.parse::<u8>().ok());
        own.map(|n| IpAddr::from([172, 18, 0, 10 + n])).collect()
    };
    for before in &shapes {
        for after in &shapes {
            for failing in [&["node"][..], &["ingress"], &["node", "ingress"]] {
                let mut world = World::with(plan(before));
                for place in failing {
                    world.view(place).fail_next(Call::Commit, ENOBUFS);
                }
                world.apply(plan(after));
                let (node, sandbox) = ways(&world, 8080);
                let what = format!("{before:?} to {after:?}, {failing:?} fail: {node:?}, {sandbox:?}");
                if !before.is_empty() && !after.is_empty() {
                    let passes = node.as_ref().is_none_or(|turns| turns.contains(&ip("0.0.0.0")));
                    assert!(!passes || !sandbox.is_empty(), "{what}");
                }
                for turn in node.iter().flatten().filter(|a| !a.is_unspecified()) {
                    assert!(door(before).contains(turn) || door(after).contains(turn), "{what}");
                }
                world.retry();
                world.is_exact();
                world.forget_records();
                world.restart();
                assert_eq!(world.written(), BTreeMap::new(), "{what}");
            }
        }
    }
}

#[test]
fn a_task_is_near_only_while_its_own_table_is_applied() {
    let others = &["10.0.0.101", "10.0.0.111"];
    let plan = || rich().port(Tcp, 8080, Policy::default(), others);
    let mut world = World::new();
    world.add_boxes(&plan());
    world.task(1).fail_next(Call::Commit, ENOBUFS);
    world.apply(plan());
    assert_eq!(ways(&world, 8080), (None, ips(others)));
    assert!(world.plane.status(world.now).near.is_empty());
    world.retry();
    assert_eq!(world.plane.status(world.now).near, BTreeMap::from([("t1".into(), "172.18.0.11".parse().unwrap())]));
    world.is_exact();
    // What its table loses is the sandbox's before it does, whether the table's change succeeds or not.
    world.task(1).fail_next(Call::Commit, ENOBUFS);
    let less = plan().task(1, &["net1"], &[(Tcp, 9999, 80)]);
    world.apply(less);
    assert_eq!(ways(&world, 8080), (None, ips(others)));
    world.retry();
    world.is_exact();
    // With its namespace it goes, although the plan does not know yet.
    world.apply(plan());
    assert!(ways(&world, 8080).0.is_some());
    world.kernel.remove_namespace(path("box1"));
    world.audit();
    assert_eq!(ways(&world, 8080), (None, ips(others)));
}

#[test]
fn a_task_without_a_leg_on_the_nodes_bridge_is_reached_through_the_sandbox() {
    let others = ips(&["10.0.0.101", "10.0.0.111"]);
    for route in [None, Some((4, "192.168.9.1")), Some((2, "172.18.0.1")), Some((4, "172.18.0.1"))] {
        let mut world = World::new();
        world.add_boxes(&rich());
        world.task(1).set_default_route(false, route.map(|(index, gateway)| DefaultRoute { index, gateway: Some(ip(gateway)) }));
        world.apply(rich());
        world.settled();
        assert_eq!(ways(&world, 8080).0.is_some(), route == Some((4, "172.18.0.1")), "{route:?}");
        assert_eq!(ways(&world, 8080).1.len(), if route == Some((4, "172.18.0.1")) { 1 } else { 2 });
    }
    // A leg that went is noticed by the audit, and one that came.
    let mut world = World::with(rich());
    world.task(1).set_default_route(false, None);
    world.audit();
    assert_eq!(ways(&world, 8080), (None, others));
    assert!(world.task(1).fwmark_rules().len() == 1 && world.task(1).route(false, swarmesh_dataplane::NEAR_TABLE).is_none());
    world.task(1).set_default_route(false, Some(DefaultRoute { index: 4, gateway: Some(ip("172.18.0.1")) }));
    world.audit();
    world.is_exact();
}

/// Docker gives an address on the bridge to the next container at once.
#[test]
fn an_address_that_two_tasks_claim_is_neithers() {
    let plan = || {
        rich().task(2, &["net1", "net2"], &[(Tcp, 9091, 81)]).port(Tcp, 8080, Policy::default(), &["10.0.0.101"]).port(
            Tcp,
            9091,
            Policy::default(),
            &["10.0.0.102"],
        )
    };
    let mut world = World::new();
    world.add_boxes(&plan());
    let mut interfaces = box_interfaces(2);
    interfaces[3].addresses = vec!["172.18.0.11/16".parse().unwrap()];
    world.task(2).set_interfaces(interfaces);
    world.apply(plan());
    world.settled();
    assert_eq!((ways(&world, 8080).0, ways(&world, 9091).0), (None, None));
    world.apply(plan().without_task(1));
    assert_eq!((ways(&world, 8080).0, ways(&world, 9091).0), (None, Some(ips(&["172.18.0.11"]))));
}

#[test]
fn a_drain_cuts_connections_that_went_straight() {
    let short = || policy(|p| p.drain = Duration::from_secs(10));
    let plan = |of: &[&str]| rich().port(Tcp, 8080, short(), of);
    let through = FlowFilter { protocol: Some(6), original_destination_port: Some(8080), ..FlowFilter::default() };
    for failing in [false, true] {
        let mut world = World::with(plan(&["10.0.0.101", "10.0.0.111"]));
        world.apply(plan(&["10.0.0.101 drains", "10.0.0.111"]));
        assert_eq!(ways(&world, 8080).0, None);
        flushed(&world);
        if failing {
            // Neither the node nor the task can be programmed when its time is over.
            for _ in 0..9 {
                world.node().fail_next(Call::Commit, ENOBUFS);
                world.task(1).fail_next(Call::Commit, ENOBUFS);
            }
            world.now += Duration::from_secs(9);
            world.apply(plan(&["10.0.0.101 drains", "10.0.0.111"]).port(Tcp, 8081, short(), &["10.0.0.111"]).vip(
                "net1",
                "10.0.1.109",
                short(),
                &[],
            ));
            assert_eq!(world.pending().len(), 2);
        }
        world.after(Duration::from_secs(10));
        world.retry();
        let cut = flushed(&world);
        assert_eq!(cut["node"], [to_backend(through, "172.18.0.11")]);
        assert_eq!(cut["ingress"], [to_backend(through, "10.0.0.101")]);
    }
}
