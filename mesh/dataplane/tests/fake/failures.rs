//! What fails is made good.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmesh_kernel::Family;
use swarmesh_kernel::NftOp;
use swarmesh_kernel::fake::Call;
use swarmesh_model::Protocol::Tcp;
use swarmesh_plan::Policy;

use crate::common::*;
use crate::{EEXIST, ENOBUFS, ENOENT, ENOSPC, EPERM};

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
