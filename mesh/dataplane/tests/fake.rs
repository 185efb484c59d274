//! The nft plane on the kernel in memory: what it writes, what it leaves alone, and how it comes back from failures.

mod common;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use common::*;
use swarmesh_dataplane::{NftPlane, PlaneConfig};
use swarmesh_kernel::{DefaultRoute, ElementData, Family, FlowFilter, NftOp, fake::Call};
use swarmesh_model::Protocol::{Tcp, Udp};
use swarmesh_plan::{Ingress, PlanDelta, Policy, Scheduler};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;
const ENOBUFS: i32 = 105;
const UDP: u8 = 17;

// Whole plans.

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

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let mut world = World::with(rich());
    world.forget_records();
    world.restart();
    world.settled();
    assert_eq!(world.written(), BTreeMap::new());
    assert_eq!(world.plane.status(world.now).commits, 0);
    world.plane.audit(world.now);
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

// Failures.

/// Fails one call in one place during a change that touches every place. The others must not notice, the place must say why,
/// and a retry must lead to what a plane that never failed has.
fn fails_and_converges(place: &str, call: Call, errno: i32, message: &str) {
    let mut world = World::with(rich());
    world.view(place).fail_next(call, errno);
    let changed = rich()
        .vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11", "10.0.1.12"])
        .vip("net1", "10.0.1.109", sticky(), &["10.0.1.12"])
        .port(Tcp, 8080, Policy::default(), &["10.0.0.101"])
        .port(Tcp, 8081, Policy::default(), &["10.0.0.101"]);
    world.apply(changed);
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), [place], "{call:?} {errno}");
    assert!(pending[place].contains(message), "{call:?} {errno}: {}", pending[place]);
    let meaning = world.meaning();
    let fresh = World::with(world.plan.clone()).meaning();
    let name = place.replace("task web.", "box");
    for other in fresh.keys().filter(|n| **n != name) {
        assert_eq!(meaning[other].fronts, fresh[other].fronts, "{other} was disturbed by {place}");
        assert_eq!(meaning[other].plain, fresh[other].plain, "{other} was disturbed by {place}");
    }
    world.retry();
    world.is_exact();
}

#[test]
fn a_failing_commit_stays_in_its_place_and_is_made_good() {
    for place in ["node", "ingress", "task web.1"] {
        for (errno, message) in
            [(EPERM, "not permitted"), (ENOENT, "is not there"), (EEXIST, "exists already"), (ENOBUFS, "no buffer space"), (ENOSPC, "full")]
        {
            fails_and_converges(place, Call::Commit, errno, message);
        }
    }
}

/// Each call that opening a place makes fails once, at every position that it has there.
#[test]
fn failures_while_a_place_is_opened_are_made_good() {
    let calls = [
        Call::Open,
        Call::OpenMonitor,
        Call::LoadScript,
        Call::Commit,
        Call::Elements,
        Call::Chains,
        Call::Sysctl,
        Call::Interfaces,
        Call::Route,
    ];
    for place in ["node", "ingress", "task web.1"] {
        for call in calls.into_iter().chain((place == "node").then_some(Call::ForwardRule)) {
            if place == "node" && call == Call::Route {
                continue;
            }
            let mut world = World::new();
            world.add_boxes(&rich());
            world.view(place).fail_next(call, EPERM);
            world.apply(rich());
            let pending = world.pending();
            assert!(pending.get(place).is_some_and(|e| e.contains("not permitted")), "{place} {call:?}: {pending:?}");
            // Only the node has to wait for the ingress sandbox, and says so.
            let others: Vec<_> = pending.iter().filter(|(p, _)| *p != place).collect();
            assert!(others.iter().all(|(p, e)| place == "ingress" && *p == "node" && e.contains("waits for")), "{others:?}");
            world.retry();
            world.is_exact();
        }
    }
}

/// As above, with the table there already and damaged: what is half mended must be mended to the end.
#[test]
fn a_mending_that_fails_is_made_good() {
    for place in ["node", "ingress", "task web.1"] {
        for call in [Call::LoadScript, Call::Commit, Call::Chains, Call::Elements, Call::Interfaces] {
            for chain in ["refuse", "forward", "vips", "deliver"] {
                let mut world = World::with(rich());
                let view = world.view(place);
                if !view.chains(Family::Inet, "swarmesh").unwrap().iter().any(|c| c == chain) {
                    continue;
                }
                // What refuses is not noticed by itself, only by the event.
                let emptied = if place == "node" { "published" } else { "classes4" };
                view.commit_as_stranger(&[NftOp::FlushSet { set: set(emptied) }]).unwrap();
                view.fail_next(call, ENOBUFS);
                world.check_events();
                assert!(world.pending().contains_key(place), "{place} {call:?}");
                world.retry();
                world.is_exact();
            }
        }
    }
}

#[test]
fn many_failures_in_a_row_slow_down_and_end() {
    let mut world = World::with(rich());
    for _ in 0..12 {
        world.task(2).fail_next(Call::Open, EPERM);
    }
    world.task(2).fail_next(Call::Commit, ENOBUFS);
    world.apply(rich().vip("net2", "10.0.2.100", Policy::default(), &["10.0.2.13"]));
    let mut last = world.now;
    let mut pauses = Vec::new();
    while !world.plane.is_settled() {
        let Some(next) = world.plane.run_due(world.now) else { break };
        pauses.push(next - last);
        (last, world.now) = (world.now, next.max(world.now));
        assert!(pauses.len() < 400, "{pauses:?}");
    }
    assert!(pauses.iter().all(|p| *p <= Duration::from_secs(10)), "{pauses:?}");
    world.is_exact();
}

#[test]
fn a_retry_waits_for_its_time() {
    let mut world = World::with(rich());
    world.task(2).fail_next(Call::Commit, EPERM);
    world.apply(rich().vip("net2", "10.0.2.100", Policy::default(), &["10.0.2.13"]));
    let next = world.plane.run_due(world.now).unwrap();
    assert!(next > world.now);
    assert!(!world.plane.is_settled());
    world.now = next;
    assert_eq!(world.plane.run_due(next), None);
    world.is_exact();
}

/// The note that a sysctl was off is written before the sysctl, or the uninstaller could not know.
#[test]
fn sysctls_that_were_off_are_noted_whatever_fails() {
    for (place, notes) in [("node", &["was_off_ip_forward", "was_off_route_localnet"][..]), ("ingress", &["was_off_ip_forward"])] {
        for failures in 0..4 {
            for call in [Call::Commit, Call::Sysctl] {
                let mut world = World::new();
                world.add_boxes(&rich());
                for _ in 0..failures {
                    world.view(place).fail_next(call, EPERM);
                }
                world.apply(rich());
                world.retry();
                let chains = world.view(place).chains(Family::Inet, "swarmesh").unwrap();
                let held: Vec<&str> = chains.iter().map(String::as_str).filter(|c| c.starts_with("was_off_")).collect();
                assert_eq!(held, notes, "{place} after {failures} failures of {call:?}");
                // What is on already is nobody's to switch off.
                world.forget_records();
                world.restart();
                assert_eq!(world.written(), BTreeMap::new());
            }
        }
    }
}

// Things that are not there yet.

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
    world.plane.audit(world.now);
    let rules = world.node().docker_user(false).unwrap();
    assert_eq!(rules.len(), 4);
    assert!(rules.iter().flatten().any(|w| w == "172.18.0.2") && rules.iter().flatten().any(|w| w == "docker_gwbridge"));
    world.forget_records();
    world.plane.audit(world.now);
    assert_eq!(world.written(), BTreeMap::new());
    world.is_exact();
}

// Strangers.

/// Every set of ours, where it has something in it.
fn filled_sets() -> Vec<(&'static str, &'static str)> {
    let places = [
        ("node", &["published", "front4", "classes4", "slot4", "direct"][..]),
        ("ingress", &["front4", "front6", "classes4", "classes6", "slot4", "sticky4", "live4", "hidden"]),
        ("task web.1", &["port4", "near", "front4", "classes4", "slot4", "sticky4", "live4", "front6", "classes6", "slot6"]),
    ];
    places.into_iter().flat_map(|(place, sets)| sets.iter().map(move |set| (place, *set))).collect()
}

#[test]
fn elements_that_a_stranger_deletes_are_put_back() {
    for (place, name) in filled_sets() {
        let elements = World::with(rich()).view(place).elements(set(name));
        assert!(!elements.is_empty(), "{place} {name}");
        for element in elements {
            let mut world = World::with(rich());
            world.forget_records();
            world.view(place).commit_as_stranger(&[NftOp::DeleteElement { set: set(name), key: element.key.clone() }]).unwrap();
            world.check_events();
            world.is_exact();
            assert_eq!(world.written().keys().collect::<Vec<_>>(), [&place.replace("task web.", "box")], "{name}");
            let status = world.plane.status(world.now);
            assert_eq!(status.healed, 1);
            assert_eq!(status.places.iter().find(|p| p.place == place).unwrap().healed, 1);
            // Our own work is no reason to look again.
            world.forget_records();
            world.check_events();
            assert_eq!(world.written(), BTreeMap::new());
        }
    }
}

/// The monitor was not there, so only what is read back can tell.
#[test]
fn damage_done_while_no_agent_ran_is_mended() {
    for (place, name) in filled_sets() {
        for element in World::with(rich()).view(place).elements(set(name)) {
            let mut world = World::with(rich());
            world.view(place).commit_as_stranger(&[NftOp::DeleteElement { set: set(name), key: element.key }]).unwrap();
            world.restart();
            world.is_exact();
        }
    }
    for place in ["node", "ingress", "task web.1"] {
        for (family, table) in World::with(rich()).view(place).tables() {
            let mut world = World::with(rich());
            assert_eq!(table, "swarmesh");
            world.view(place).commit_as_stranger(&[NftOp::DeleteTable { family, table: "swarmesh" }]).unwrap();
            world.restart();
            world.retry();
            world.is_exact();
        }
    }
}

#[test]
fn chains_and_tables_that_a_stranger_deletes_are_put_back() {
    for place in ["node", "ingress", "task web.1"] {
        let view = World::with(rich()).view(place);
        for (family, _) in view.tables() {
            let mut world = World::with(rich());
            world.view(place).commit_as_stranger(&[NftOp::DeleteTable { family, table: "swarmesh" }]).unwrap();
            world.check_events();
            world.is_exact();
            assert_eq!(world.plane.status(world.now).healed, 1);

            for chain in view.chains(family, "swarmesh").unwrap() {
                let mut world = World::with(rich());
                let delete = NftOp::DeleteChain { family, table: "swarmesh", chain: chain.clone() };
                // Those that something leads to cannot go alone.
                if world.view(place).commit_as_stranger(&[delete]).is_ok() {
                    world.check_events();
                    world.is_exact();
                }
            }
        }
    }
}

#[test]
fn what_a_stranger_adds_is_taken_out_by_the_audit() {
    let vip = |host: u8| vec![10, 0, 1, host];
    let value = |bytes: Vec<u8>| Some(ElementData::Value(bytes));
    let add = |name, key, data| NftOp::AddElement { set: set(name), key, data };
    let number = |n: u32| n.to_ne_bytes().to_vec();
    for (place, ops) in [
        ("task web.1", vec![add("front4", vip(77), value([number(1), number(1)].concat()))]),
        ("task web.1", vec![add("front4", vip(77), value([number(0), number(0)].concat()))]),
        ("task web.1", vec![add("slot4", [vip(100), number(3)].concat(), value(vip(66)))]),
        ("task web.1", vec![add("slot4", [vip(101), number(0)].concat(), value(vip(66)))]),
        ("task web.1", vec![add("sticky4", [vip(101), number(9)].concat(), value([number(0), vip(66)].concat()))]),
        ("task web.1", vec![add("live4", [vip(101), vip(66)].concat(), None)]),
        ("task web.1", vec![add("classes4", number(77), Some(ElementData::Goto("refuse".to_owned())))]),
        ("task web.1", vec![add("classes4", number(u32::MAX), Some(ElementData::Goto("pick4_rr_3_0".to_owned())))]),
        ("task web.1", vec![add("port4", vec![6, 0, 0, 0, 9, 9, 0, 0], value(vec![10, 0, 0, 9, 0, 80, 0, 0]))]),
        ("ingress", vec![add("front4", vec![1, 0, 0, 0, 9, 9, 0, 0], value([number(0), number(0)].concat()))]),
        ("ingress", vec![add("slot4", [vec![1, 0, 0, 0, 9, 9, 0, 0], number(0)].concat(), value(vip(9)))]),
        ("ingress", vec![add("hidden", vec![6, 0, 0, 0, 9, 9, 0, 0], None)]),
        ("node", vec![add("published", vec![6, 0, 0, 0, 0, 22, 0, 0], None)]),
        (
            "task web.1",
            vec![
                NftOp::AddChain { family: Family::Inet, table: "swarmesh", chain: "pick4_rr_5_0".to_owned() },
                add("classes4", number(9), Some(ElementData::Goto("pick4_rr_5_0".to_owned()))),
                add("front4", vip(78), value([number(9), number(9)].concat())),
            ],
        ),
        ("task web.1", vec![NftOp::AddChain { family: Family::Inet, table: "swarmesh", chain: "pick4_rr_5_0".to_owned() }]),
    ] {
        for restart in [false, true] {
            let mut world = World::with(rich());
            world.view(place).commit_as_stranger(&ops).unwrap();
            if restart {
                world.restart();
            } else {
                world.plane.audit(world.now);
            }
            world.is_exact();
            // And the next new class has a number.
            world.apply(rich().vip("net1", "10.0.1.109", scheduled(Scheduler::Random), &["10.0.1.12"]));
            world.is_exact();
        }
    }
}

#[test]
fn elements_that_a_stranger_changed_are_changed_back() {
    for (place, name) in filled_sets() {
        for element in World::with(rich()).view(place).elements(set(name)) {
            let Some(ElementData::Value(mut bytes)) = element.data else { continue };
            // The last byte of all values means something, but for a port's padding.
            let at = bytes.len() - if name == "port4" { 3 } else { 1 };
            bytes[at] ^= 0x40;
            let mut world = World::with(rich());
            let ops = [
                NftOp::DeleteElement { set: set(name), key: element.key.clone() },
                NftOp::AddElement { set: set(name), key: element.key.clone(), data: Some(ElementData::Value(bytes)) },
            ];
            world.view(place).commit_as_stranger(&ops).unwrap();
            world.check_events();
            world.is_exact();
        }
    }
}

#[test]
fn lost_events_lead_to_a_look_at_everything_and_to_no_more() {
    let mut world = World::with(rich());
    world.forget_records();
    for place in ["node", "ingress", "task web.1", "task web.2"] {
        world.view(place).lose_events();
    }
    world.check_events();
    world.is_exact();
    for (name, view) in world.views() {
        assert_eq!(view.commits(), Vec::<Vec<NftOp>>::new(), "{name}");
    }
    // Something was among what was lost.
    for (place, name) in [("node", "published"), ("ingress", "slot4"), ("task web.1", "front6")] {
        let mut world = World::with(rich());
        world.plane.check_events(world.now);
        let key = world.view(place).elements(set(name))[0].key.clone();
        world.view(place).commit_as_stranger(&[NftOp::DeleteElement { set: set(name), key }]).unwrap();
        world.view(place).lose_events();
        world.check_events();
        world.is_exact();
    }
}

#[test]
fn strangers_tables_are_none_of_ours() {
    let mut world = World::with(rich());
    let mut docker = swarmesh_kernel::Kernel::open_current(&world.kernel).unwrap();
    docker.load_script("table ip nat { chain DOCKER-INGRESS { } }\ntable ip filter { chain DOCKER-INGRESS { } }").unwrap();
    world.forget_records();
    docker.load_script("delete table ip nat").unwrap();
    world.check_events();
    assert_eq!(world.node().scripts().len(), 1);
    assert_eq!(world.plane.status(world.now).healed, 0);
    // Docker's filter table went: our rules in its user chain with it.
    world.node().set_docker_user(false, true);
    docker.load_script("delete table ip filter").unwrap();
    world.check_events();
    assert_eq!(world.node().docker_user(false).unwrap().len(), 4);
    world.is_exact();
}

// Places come and go.

#[test]
fn a_removed_task_closes_its_place() {
    let mut world = World::with(rich());
    world.apply(rich().without_task(2));
    assert!(!world.plane.status(world.now).places.iter().any(|p| p.place.contains("web.2")));
    world.is_exact();
    // Also while it is pending, and whatever happens to its namespace later.
    let mut world = World::with(rich());
    world.task(2).fail_next(Call::Commit, EPERM);
    world.apply(rich().vip("net2", "10.0.2.100", Policy::default(), &["10.0.2.13"]));
    assert_eq!(world.pending().len(), 1);
    world.kernel.remove_namespace(path("box2"));
    world.apply(rich().without_task(2));
    world.settled();
    assert_eq!(world.plane.run_due(world.now), None);
    world.is_exact();
}

#[test]
fn a_task_that_moved_to_another_namespace_is_followed() {
    let mut world = World::with(rich());
    let mut plan = rich();
    let moved = Arc::new(swarmesh_plan::SandboxPlan { sandbox: "box7".to_owned(), ..(*plan.0.sandboxes["t1"]).clone() });
    plan.0.sandboxes.insert("t1".into(), moved);
    let view = world.add_box(7);
    view.set_interfaces(box_interfaces(1));
    world.apply(plan);
    world.settled();
    assert_eq!(Meaning::of(&view).fronts, Meaning::of(&world.task(1)).fronts);
    assert_eq!(Meaning::of(&view).rules.len(), Meaning::of(&world.task(1)).rules.len());
}

#[test]
fn a_task_without_published_ports_any_more_keeps_nothing_of_them() {
    let mut world = World::with(rich());
    world.apply(rich().task(1, &["net1"], &[]));
    world.is_exact();
    world.apply(rich());
    world.is_exact();
    world.apply(rich().task(1, &["net2"], &[(Tcp, 8080, 81)]));
    world.is_exact();
}

#[test]
fn another_ingress_network_has_another_sandbox() {
    let mut world = World::with(rich());
    let mut plan = rich();
    plan.0.ingress = Some(Arc::new(Ingress { network: "other".into(), subnets: vec!["10.9.0.0/24".parse().unwrap()], mtu: 1300 }));
    world.apply(plan);
    assert!(world.pending()["ingress"].contains("10.9.0.0/24"));
    // Docker makes the new one under the old name.
    let view = world.add_sandbox();
    let mut interfaces = sandbox_interfaces();
    interfaces[1].addresses = vec!["10.9.0.2/24".parse().unwrap()];
    interfaces[2].addresses = vec!["172.18.0.9/16".parse().unwrap()];
    view.set_interfaces(interfaces);
    world.retry();
    assert_eq!(Meaning::of(&view).fronts.len(), 6);
    assert!(view.scripts().concat().contains("maxseg size set 1260"));
    assert!(world.node().scripts().last().unwrap().contains("dnat ip to 172.18.0.9"));
    assert!(!Meaning::of(&world.node()).rules.values().any(|rules| format!("{rules:?}").contains("172.18.0.2\"")));
}

/// The node's namespace stays when the ingress network goes, and its ports must be free for others then.
#[test]
fn ports_of_an_ingress_network_that_went_are_not_taken_any_more() {
    for failing in [false, true] {
        let mut world = World::with(rich());
        world.kernel.remove_namespace(path("ingress_sbox"));
        if failing {
            world.node().fail_next(Call::Commit, ENOBUFS);
        }
        world.apply(rich().without_ingress());
        assert_eq!(world.pending().len(), usize::from(failing));
        world.retry();
        assert_eq!(world.node().elements(set("published")), []);
        world.add_sandbox();
        world.is_exact();
        world.apply(rich());
        world.is_exact();
    }
}

#[test]
fn ports_that_went_while_no_agent_ran_are_not_taken_any_more() {
    for plan in [rich().without_port(Tcp, 8080).without_port(Udp, 5353).without_port(Tcp, 9090), rich().without_ingress(), Plan::default()]
    {
        let mut world = World::with(rich());
        // An agent that does not know the swarm yet leaves everything as it is.
        world.forget_records();
        world.plan = Plan::default();
        world.restart();
        world.plane.audit(world.now);
        assert_eq!(world.written(), BTreeMap::new());
        world.plan = plan;
        world.plan.0.version = 1;
        world.restart();
        world.settled();
        world.plane.audit(world.now);
        assert_eq!(world.node().elements(set("published")), []);
        assert_eq!(world.sandbox().elements(set("front4")), []);
        world.forget_records();
        world.restart();
        assert_eq!(world.written(), BTreeMap::new());
    }
}

#[test]
fn nothing_published_needs_no_ingress_sandbox() {
    let plan = || Plan::default().ingress().task(1, &["net1"], &[]);
    let mut world = World::with(plan());
    world.kernel.remove_namespace(path("ingress_sbox"));
    world.settled();
    world.apply(plan().port(Tcp, 80, Policy::default(), &["10.0.0.3"]));
    assert_eq!(world.pending().len(), 2);
    world.apply(plan());
    world.retry();
    assert_eq!(world.node().writes(), 0);
}

// Flows.

fn udp_vip(vip: &str) -> FlowFilter {
    FlowFilter { protocol: Some(UDP), original_destination: Some(ip(vip)), ..FlowFilter::default() }
}

fn udp_port(port: u16) -> FlowFilter {
    FlowFilter { protocol: Some(UDP), original_destination_port: Some(port), ..FlowFilter::default() }
}

fn to_backend(filter: FlowFilter, backend: &str) -> FlowFilter {
    FlowFilter { reply_source: Some(ip(backend)), ..filter }
}

/// What was flushed since last asked, where anything was.
fn flushed(world: &World) -> BTreeMap<String, Vec<FlowFilter>> {
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
        world.plane.audit(world.now);
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

// The direct way.

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
    world.plane.audit(world.now);
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
    world.plane.audit(world.now);
    assert_eq!(ways(&world, 8080), (None, others));
    assert!(world.task(1).fwmark_rules().len() == 1 && world.task(1).route(false, swarmesh_dataplane::NEAR_TABLE).is_none());
    world.task(1).set_default_route(false, Some(DefaultRoute { index: 4, gateway: Some(ip("172.18.0.1")) }));
    world.plane.audit(world.now);
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

// Names that come from outside.

#[test]
fn an_interface_name_cannot_say_anything_but_itself() {
    for name in ["et\"h0", "eth*", "et\\h0", "eth+", "é0", "a b", "x\" accept;#"] {
        let mut world = World::new();
        world.add_boxes(&rich());
        let mut interfaces = sandbox_interfaces();
        interfaces[1].name = name.to_owned();
        world.sandbox().set_interfaces(interfaces);
        let mut interfaces = box_interfaces(1);
        interfaces[1].name = name.to_owned();
        world.task(1).set_interfaces(interfaces);
        world.apply(rich());
        let pending = world.pending();
        assert_eq!(pending.keys().collect::<Vec<_>>(), ["ingress", "node", "task web.1"], "{name}");
        assert!(pending["ingress"].contains(&format!("{name:?}")), "{pending:?}");
        assert!(world.sandbox().scripts().is_empty() && world.task(1).scripts().is_empty());

        let mut world = World::new();
        world.node().set_interfaces(vec![interface(3, name, Some("bridge"), &["172.18.0.1/16"])]);
        world.apply(rich().without_task(1).without_task(2));
        assert_eq!(world.pending().keys().collect::<Vec<_>>(), ["node"], "{name}");
        assert_eq!(world.node().writes(), 0);
    }
    for name in ["eth0", "br-0123456789ab", "a;b", "vlan.10", "x{y}", "#1", "$a"] {
        let mut world = World::new();
        world.add_boxes(&rich());
        let mut interfaces = box_interfaces(1);
        interfaces[1].name = name.to_owned();
        world.task(1).set_interfaces(interfaces);
        world.apply(rich());
        world.settled();
    }
}

// Without a place to watch.

#[test]
fn a_new_namespace_ends_the_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let config = PlaneConfig { netns_dir: dir.path().to_owned(), node_address: None };
    let mut plane = NftPlane::new(Arc::new(world.kernel.clone()), config);
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
