//! Places come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarmesh_kernel::fake::Call;
use swarmesh_model::Protocol::Tcp;
use swarmesh_model::Protocol::Udp;
use swarmesh_plan::Ingress;
use swarmesh_plan::Policy;

use crate::common::*;
use crate::{ENOBUFS, EPERM};

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
        world.audit();
        assert_eq!(world.written(), BTreeMap::new());
        world.plan = plan;
        world.plan.0.version = 1;
        world.restart();
        world.settled();
        world.audit();
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
