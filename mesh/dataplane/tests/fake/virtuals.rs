//! Virtual servers: what a change costs, what fails and is made good, and what others do.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmesh_dataplane::Balancing;
use swarmesh_dataplane::PlaneConfig;
use swarmesh_dataplane::try_ipvs;
use swarmesh_dataplane::uninstall;
use swarmesh_kernel::IpvsOp;
use swarmesh_kernel::KernelError;
use swarmesh_kernel::fake::Call;
use swarmesh_kernel::fake::FakeKernel;
use swarmesh_model::Protocol::Tcp;
use swarmesh_plan::Policy;
use swarmesh_plan::Scheduler;

use crate::common::*;
use crate::{EEXIST, ENOBUFS, ENOENT, EPERM};

/// A plan that differs from `rich()` in every place.
fn changed() -> Plan {
    rich()
        .vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11", "10.0.1.12"])
        .vip("net1", "10.0.1.109", sticky(), &["10.0.1.12"])
        .port(Tcp, 8080, Policy::default(), &["10.0.0.101"])
        .port(Tcp, 8081, Policy::default(), &["10.0.0.101"])
}

#[test]
fn a_plan_becomes_virtual_servers_and_a_restart_writes_nothing() {
    let mut world = World::with_on(ipvs(), rich());
    world.is_exact();
    world.forget_records();
    world.restart();
    world.settled();
    assert_eq!(world.written(), BTreeMap::new());
    world.apply(changed());
    world.is_exact();
}

/// Never by deleting and adding: connections would end.
#[test]
fn what_is_there_is_changed_and_not_made_again() {
    let mut world = World::with_on(ipvs(), rich());
    let steps = [
        rich().vip("net1", "10.0.1.100", sticky(), &["10.0.1.11", "10.0.1.12", "10.0.1.13"]),
        rich().vip("net1", "10.0.1.100", scheduled(Scheduler::LeastConnections), &["10.0.1.11 drains", "10.0.1.12", "10.0.1.14"]),
        rich().vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11 drains", "10.0.1.12 drains", "10.0.1.14 drains"]),
        rich(),
    ];
    for plan in steps {
        world.forget_records();
        world.apply(plan);
        world.is_exact();
        let ops = world.task(1).ipvs_ops();
        assert!(!ops.iter().any(|op| matches!(op, IpvsOp::AddVirtual(_) | IpvsOp::DeleteVirtual(_) | IpvsOp::Flush)), "{ops:?}");
    }
}

#[test]
fn a_backend_drains_at_weight_zero_and_is_deleted_in_the_end() {
    let mut world = World::with_on(ipvs(), rich());
    world.forget_records();
    let policy = policy(|p| p.drain = Duration::from_secs(30));
    world.apply(rich().vip("net1", "10.0.1.100", policy, &["10.0.1.11 drains", "10.0.1.12", "10.0.1.13"]));
    let of_drained = |world: &World| -> Vec<IpvsOp> {
        let is_its = |op: &IpvsOp| match op {
            IpvsOp::SetReal { real, .. } => real.id.address == ip("10.0.1.11"),
            IpvsOp::DeleteReal { real, .. } => real.address == ip("10.0.1.11"),
            _ => false,
        };
        world.task(1).ipvs_ops().into_iter().filter(is_its).collect()
    };
    assert!(matches!(of_drained(&world)[..], [IpvsOp::SetReal { real, .. }] if real.weight == 0), "{:?}", of_drained(&world));
    world.after(Duration::from_secs(29));
    assert_eq!(of_drained(&world).len(), 1);
    world.after(Duration::from_secs(2));
    assert!(matches!(of_drained(&world)[1..], [IpvsOp::DeleteReal { .. }]), "{:?}", of_drained(&world));
    world.is_exact();
    // And it does not come back by another change.
    world.apply(world.plan.clone().vip("net1", "10.0.1.102", Policy::default(), &["10.0.1.16"]));
    world.restart();
    assert_eq!(of_drained(&world).len(), 2);
}

/// A drained node refuses new connections; its established ones outlive even a restart of the agent.
#[test]
fn what_refuses_keeps_its_virtual_server() {
    let refuses = |refuse| rich().port_or_refuse(Tcp, 8080, Policy::default(), &["10.0.0.101", "10.0.0.111"], refuse);
    let mut world = World::with_on(ipvs(), refuses(false));
    let servers = world.sandbox().ipvs();
    world.apply(refuses(true));
    world.is_exact();
    world.restart();
    world.settled();
    assert_eq!(world.sandbox().ipvs(), servers);
    world.apply(refuses(false));
    world.is_exact();
    assert_eq!(world.sandbox().ipvs(), servers);
}

#[test]
fn a_refused_change_stays_in_its_place_and_is_made_good() {
    for place in ["ingress", "task web.1"] {
        for call in [Call::Ipvs, Call::IpvsOp] {
            for (errno, message) in
                [(EPERM, "not permitted"), (ENOENT, "is not there"), (EEXIST, "exists already"), (ENOBUFS, "no buffer space")]
            {
                let mut world = World::with_on(ipvs(), rich());
                world.view(place).fail_next(call, errno);
                world.apply(changed());
                let pending = world.pending();
                assert_eq!(pending.keys().collect::<Vec<_>>(), [place], "{call:?} {errno}");
                assert!(pending[place].contains(message), "{call:?} {errno}: {}", pending[place]);
                world.retry();
                world.is_exact();
            }
        }
    }
}

/// Each change to IPVS is done alone: so many are refused, and those behind them are done.
#[test]
fn a_change_that_is_done_in_part_is_made_good() {
    for refused in 1..12 {
        let mut world = World::with_on(ipvs(), rich());
        let view = world.task(1);
        (0..refused).for_each(|_| view.fail_next(Call::IpvsOp, ENOBUFS));
        world.apply(changed());
        assert!(world.pending().contains_key("task web.1"));
        world.retry();
        view.forget_faults();
        world.is_exact();
    }
}

#[test]
fn what_others_do_to_ours_is_mended_and_theirs_is_left() {
    let mut world = World::with_on(ipvs(), rich());
    let id = world.task(1).ipvs()[0].0.id;
    let theirs = {
        let mut server = world.task(1).ipvs()[0].0.clone();
        server.id = swarmesh_kernel::VirtualId::Mark { mark: 257.try_into().unwrap(), v6: false };
        server
    };
    world.task(1).ipvs_as_stranger(&IpvsOp::AddVirtual(theirs.clone())).unwrap();
    world.task(1).ipvs_as_stranger(&IpvsOp::DeleteVirtual(id)).unwrap();
    world.audit();
    assert_eq!(world.plane.status(world.now).healed, 1);
    world.is_exact();
    assert!(world.task(1).ipvs().iter().any(|(server, _)| *server == theirs));
    // Somebody flushes it all.
    world.task(1).ipvs_as_stranger(&IpvsOp::Flush).unwrap();
    world.audit();
    world.is_exact();
}

#[test]
fn an_audit_takes_turns_with_changes() {
    let mut world = World::with_on(ipvs(), rich());
    for view in world.views().values() {
        view.ipvs_as_stranger(&IpvsOp::Flush).unwrap();
    }
    world.plane.start_audit(world.now);
    let mut healed = Vec::new();
    while world.plane.run_due(world.now) == Some(world.now) {
        healed.push(world.plane.status(world.now).healed);
        // What changes between two places is carried out there, and a place that has gone by its turn is none any more.
        world.apply(changed().without_task(2));
        world.settled();
    }
    // One after the other, as far as they have virtual servers.
    assert!(healed.len() > 1 && healed.windows(2).all(|two| two[1] <= two[0] + 1), "{healed:?}");
    world.is_exact();
}

#[test]
fn from_plane_to_plane_and_back_without_a_trace() {
    let mut world = World::with(rich());
    for _ in 0..2 {
        world.switch(ipvs());
        // The balancer's sets, which nothing looks into any more, are emptied by the audit.
        world.audit();
        world.is_exact();
        world.switch(Balancing::Nft);
        world.settled();
        // Nobody has connections in the virtual servers: the audit takes them away, and the maps with the last one.
        world.audit();
        world.is_exact();
        for view in world.views().values() {
            assert_eq!(view.ipvs(), []);
            assert_eq!(view.elements(set("marks4")), []);
        }
    }
}

#[test]
fn services_are_told_what_the_plane_cannot_do() {
    let said = |world: &World| -> Vec<String> { world.plane.status(world.now).problems.iter().map(|p| p.message.clone()).collect() };
    let with = |scheduler| rich().without_vip("net2", "10.0.2.100").vip("net1", "10.0.1.100", scheduled(scheduler), &["10.0.1.11"]);
    for (scheduler, message) in [
        (Scheduler::Random, Some("the ipvs plane cannot do random; rr is used. It can do rr, wrr, lc, wlc, sh and maglev")),
        (Scheduler::Maglev, None),
        (Scheduler::WeightedLeastConnections, None),
    ] {
        let world = World::with_on(ipvs(), with(scheduler));
        assert_eq!(said(&world), message.into_iter().collect::<Vec<_>>());
        world.is_exact();
    }
    // A kernel without the module serves, and says what to load.
    let Balancing::Ipvs { schedulers } = ipvs() else { unreachable!() };
    let few = schedulers.iter().copied().filter(|s| *s != Scheduler::Maglev).collect();
    let world = World::with_on(Balancing::Ipvs { schedulers: std::sync::Arc::new(few) }, with(Scheduler::Maglev));
    assert!(said(&world)[0].contains("modprobe ip_vs_mh"), "{:?}", said(&world));
    assert!(world.task(1).ipvs().iter().all(|(server, _)| server.scheduler.name() != "mh"));
}

#[test]
fn the_plane_is_tried_before_it_is_chosen() {
    let kernel = FakeKernel::new();
    assert_eq!(try_ipvs(&kernel).unwrap().len(), 6);
    let kernel = FakeKernel::new();
    kernel.here().set_ipvs(false);
    assert!(matches!(try_ipvs(&kernel), Err(KernelError::NotSupported { .. })));
    for (call, errno) in [(Call::Ipvs, EPERM), (Call::IpvsOp, EPERM), (Call::Sysctl, EPERM), (Call::LoadScript, EPERM)] {
        let kernel = FakeKernel::new();
        kernel.here().fail_next(call, errno);
        assert!(try_ipvs(&kernel).is_err(), "{call:?}");
    }
}

/// A plane of virtual servers on a kernel that lost them says so, place by place, and goes on when it has them.
#[test]
fn a_kernel_without_ipvs_is_named() {
    let mut world = World::on(ipvs());
    world.add_boxes(&rich());
    world.task(1).set_ipvs(false);
    world.apply(rich());
    let pending = world.pending();
    assert_eq!(pending.keys().collect::<Vec<_>>(), ["task web.1"]);
    assert!(pending["task web.1"].contains("no module ip_vs"), "{pending:?}");
    world.task(1).set_ipvs(true);
    world.retry();
    world.is_exact();
}

#[test]
fn uninstall_takes_virtual_servers_and_sysctls_back() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let path = directory.path().join("box1");
    std::fs::write(&path, "").unwrap();
    let view = kernel.add_namespace(&path);
    view.set_interfaces(box_interfaces(1));
    view.set_sysctl("net/ipv4/vs/conn_reuse_mode", "1");
    let config = PlaneConfig { balancing: ipvs(), netns_dir: directory.path().to_owned(), node_address: None };
    let mut plane = swarmesh_dataplane::NetfilterPlane::new(std::sync::Arc::new(kernel.clone()), config);
    let plan = Plan::default().task(1, &["net1"], &[]).vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11"]);
    plane.apply(&swarmesh_plan::PlanDelta::between(&Default::default(), &plan.0), std::time::Instant::now());
    assert_eq!((view.ipvs().len(), view.sysctl("net/ipv4/vs/conntrack").as_deref()), (1, Some("1")));
    assert!(uninstall(&kernel, directory.path()).into_iter().all(|(_, outcome)| outcome.is_ok()));
    assert_eq!((view.ipvs(), view.tables()), (vec![], vec![]));
    assert_eq!(view.sysctl("net/ipv4/vs/conntrack").as_deref(), Some("0"));
    assert_eq!(view.sysctl("net/ipv4/vs/conn_reuse_mode").as_deref(), Some("1"), "it was on before us");
}
