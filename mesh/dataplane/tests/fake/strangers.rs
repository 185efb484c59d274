//! What others do to our tables.

use std::collections::BTreeMap;

use swarmesh_kernel::ElementData;
use swarmesh_kernel::Family;
use swarmesh_kernel::NftOp;
use swarmesh_kernel::fake::Call;
use swarmesh_plan::Scheduler;

use crate::EPERM;
use crate::common::*;

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
                world.audit();
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

/// With iptables on nftables, each question to the chain is a run of another program, and none is needed: who changes the chain
/// is noticed.
#[test]
fn an_audit_does_not_ask_for_what_it_would_have_been_told() {
    let mut world = World::with(rich());
    let mut docker = swarmesh_kernel::Kernel::open_current(&world.kernel).unwrap();
    docker.load_script("table ip filter { chain DOCKER-USER { counter } }").unwrap();
    world.check_events();
    let is_asked = |world: &mut World| {
        world.node().fail_next(Call::ForwardRule, EPERM);
        world.audit();
        let is_asked = !world.plane.is_settled();
        world.node().forget_faults();
        world.retry();
        is_asked
    };
    assert!(!is_asked(&mut world));
    // As on a system whose iptables has tables of its own, or where somebody emptied the chain.
    docker.load_script("flush chain ip filter DOCKER-USER").unwrap();
    world.check_events();
    assert!(is_asked(&mut world));
}
