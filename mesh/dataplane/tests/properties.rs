//! What must hold for the plane on any way from plan to plan, with failures, restarts and strangers on it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::*;
use proptest::{collection::vec, prelude::*, sample::Index};
use swarmesh_dataplane::Balancing;
use swarmesh_kernel::{ElementData, IpvsOp, NftOp, RealServer, fake::Call};
use swarmesh_model::Protocol;
use swarmesh_plan::{Policy, Scheduler, SourceMode};

const SETS: [&str; 25] = [
    "front4",
    "classes4",
    "slot4",
    "sticky4",
    "live4",
    "front6",
    "classes6",
    "slot6",
    "sticky6",
    "live6",
    "port4",
    "port6",
    "hidden",
    "published",
    "bound",
    "near",
    "direct",
    "front4",
    "slot4",
    "marks4",
    "marks6",
    "parked4",
    "parked6",
    "other4",
    "other6",
];

fn policies(kind: u8) -> Policy {
    match kind {
        0 | 1 => Policy::default(),
        2 => sticky(),
        3 => scheduled(Scheduler::Random),
        4 => scheduled(Scheduler::SourceHash),
        _ => policy(|p| {
            p.source = SourceMode::Snat;
            p.affinity = Some(Duration::from_secs(90));
        }),
    }
}

/// A frontend's policy and its backends: host, and whether it drains.
type Service = (u8, BTreeMap<u8, bool>);

fn service() -> impl Strategy<Value = Service> {
    (0u8..6, prop::collection::btree_map(0u8..8, prop::bool::weighted(0.2), 0..5))
}

/// Backends in the ingress network; the first hosts are this node's own tasks.
fn ingress_of(service: &Service) -> Vec<String> {
    let address = |host: &u8| if *host < 3 { 101 + host } else { 10 + host };
    service.1.iter().map(|(host, drains)| format!("10.0.0.{}{}", address(host), if *drains { " drains" } else { "" })).collect()
}

fn of(network: &str, service: &Service) -> Vec<String> {
    service.1.iter().map(|(host, drains)| format!("{network}{:x}{}", 0x10 + host, if *drains { " drains" } else { "" })).collect()
}

#[derive(Clone, Debug)]
struct Shape {
    ingress: bool,
    refuse: bool,
    /// Per task: in net1, in net2, with published ports.
    tasks: Vec<(bool, bool, bool)>,
    /// Network, host, IPv6.
    vips: BTreeMap<(bool, u8, bool), Service>,
    ports: BTreeMap<(bool, u8), Service>,
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        prop::bool::weighted(0.85),
        prop::bool::weighted(0.1),
        vec((prop::bool::weighted(0.8), any::<bool>(), any::<bool>()), 0..3),
        prop::collection::btree_map((any::<bool>(), 0u8..4, prop::bool::weighted(0.3)), service(), 0..6),
        prop::collection::btree_map((any::<bool>(), 0u8..3), service(), 0..4),
    )
        .prop_map(|(ingress, refuse, tasks, vips, ports)| Shape { ingress, refuse, tasks, vips, ports })
}

impl Shape {
    fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        plan.0.version = 1;
        let published: Vec<_> = self
            .ports
            .keys()
            .map(|(udp, port)| (if *udp { Protocol::Udp } else { Protocol::Tcp }, 8000 + u16::from(*port), 80 + u16::from(*port)))
            .collect();
        for (number, (first, second, serves)) in self.tasks.iter().enumerate() {
            let networks: Vec<&str> = [(*first, "net1"), (*second, "net2")].into_iter().filter(|n| n.0).map(|n| n.1).collect();
            plan = plan.task(number as u8 + 1, &networks, if self.ingress && *serves { &published } else { &[] });
        }
        for ((second, host, v6), service) in &self.vips {
            let (network, prefix) = match (*second, *v6) {
                (false, false) => ("net1", "10.0.1."),
                (true, false) => ("net2", "10.0.2."),
                (false, true) => ("net1", "fd00:1::"),
                (true, true) => ("net2", "fd00:2::"),
            };
            if plan.0.networks.contains_key(network) {
                let backends = of(prefix, service);
                let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
                plan = plan.vip(network, &format!("{prefix}{}", 100 + host), policies(service.0), &backends);
            }
        }
        if self.ingress {
            plan = plan.ingress();
            for ((protocol, port, _), service) in published.iter().zip(self.ports.values()) {
                let backends = ingress_of(service);
                let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
                plan = plan.port_or_refuse(*protocol, *port, policies(service.0), &backends, self.refuse);
            }
        }
        plan
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A plan, with calls that fail meanwhile: namespace, call, errno.
    Apply(Shape, Vec<(Index, Index, Index)>),
    Restart,
    /// To the other plane.
    Switch,
    Retry,
    Wait(u16),
    Audit,
    /// Elements that a stranger deletes or changes.
    Damage(Vec<(Index, Index, Index, bool)>),
    /// A virtual server, or one of its real servers, that a stranger deletes or changes.
    DamageIpvs(Index, Index, Index, u8),
    Lose(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (shape(), vec(any::<(Index, Index, Index)>(), 0..3)).prop_map(|(s, f)| Step::Apply(s, f)),
        1 => Just(Step::Restart),
        1 => Just(Step::Switch),
        2 => Just(Step::Retry),
        2 => (0u16..40_000).prop_map(Step::Wait),
        1 => Just(Step::Audit),
        2 => vec(any::<(Index, Index, Index, bool)>(), 1..5).prop_map(Step::Damage),
        1 => (any::<Index>(), any::<Index>(), any::<Index>(), 0u8..3).prop_map(|(v, s, r, how)| Step::DamageIpvs(v, s, r, how)),
        1 => any::<Index>().prop_map(Step::Lose),
    ]
}

const CALLS: [Call; 12] = [
    Call::Ipvs,
    Call::IpvsOp,
    Call::Open,
    Call::OpenMonitor,
    Call::LoadScript,
    Call::Commit,
    Call::Commit,
    Call::Elements,
    Call::Chains,
    Call::Sysctl,
    Call::Interfaces,
    Call::Route,
];
const ENOBUFS: i32 = 105;
const ERRORS: [i32; 5] = [1, 2, 17, 28, ENOBUFS];

impl Step {
    fn run(&self, world: &mut World) {
        match self {
            Self::Apply(shape, faults) => {
                let plan = shape.plan();
                // Docker removes the namespaces of tasks that ended.
                for (id, sandbox) in &world.plan.0.sandboxes {
                    if !plan.0.sandboxes.contains_key(id) {
                        world.kernel.remove_namespace(path(&sandbox.sandbox));
                    }
                }
                world.add_boxes(&plan);
                let views: Vec<_> = world.views().into_values().collect();
                for (view, call, errno) in faults {
                    let (call, errno) = (*call.get(&CALLS), *errno.get(&ERRORS));
                    // To a question for elements, ENOENT is the answer that there is no such set, and not a failure.
                    view.get(&views).fail_next(call, if call == Call::Elements { ENOBUFS } else { errno });
                }
                world.apply(plan);
            }
            Self::Restart => world.restart(),
            Self::Switch => {
                let other = if world.balancing == Balancing::Nft { ipvs() } else { Balancing::Nft };
                world.switch(other);
            }
            Self::DamageIpvs(view, server, real, how) => {
                let views: Vec<_> = world.views().into_values().collect();
                let view = view.get(&views);
                let servers = view.ipvs();
                if servers.is_empty() {
                    return;
                }
                let (server, reals) = server.get(&servers);
                let op = match (how, reals.is_empty()) {
                    (0, _) | (_, true) => IpvsOp::DeleteVirtual(server.id),
                    (1, _) => IpvsOp::DeleteReal { of: server.id, real: real.get(reals).id },
                    _ => {
                        let real = real.get(reals);
                        IpvsOp::SetReal { of: server.id, real: RealServer { weight: 1 - real.weight, ..*real } }
                    }
                };
                view.ipvs_as_stranger(&op).unwrap();
            }
            Self::Retry => world.retry(),
            Self::Wait(millis) => world.after(Duration::from_millis((*millis).into())),
            Self::Audit => world.audit(),
            Self::Damage(harm) => {
                let views: Vec<_> = world.views().into_values().collect();
                for (view, set_name, element, change) in harm {
                    let (view, name) = (view.get(&views), set(SETS[set_name.index(SETS.len())]));
                    let elements = view.elements(name);
                    if elements.is_empty() {
                        continue;
                    }
                    let hit = element.get(&elements);
                    let mut ops = vec![NftOp::DeleteElement { set: name, key: hit.key.clone() }];
                    if let (true, Some(ElementData::Value(bytes))) = (change, &hit.data) {
                        let mut bytes = bytes.clone();
                        *bytes.last_mut().unwrap() ^= 1;
                        ops.push(NftOp::AddElement { set: name, key: hit.key.clone(), data: Some(ElementData::Value(bytes)) });
                    }
                    view.commit_as_stranger(&ops).unwrap();
                }
                world.check_events();
            }
            Self::Lose(view) => {
                view.get(&world.views().into_values().collect::<Vec<_>>()).lose_events();
                world.check_events();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_way_ends_as_if_it_had_been_the_shortest(steps in vec(step(), 1..12), last in shape()) {
        let mut world = World::new();
        for step in &steps {
            step.run(&mut world);
        }
        Step::Apply(last, Vec::new()).run(&mut world);
        world.retry();
        // Faults that no call has met yet must not count against what follows; each call takes one.
        for _ in 0..24 {
            // IPVS tells nobody what is done to it: the audit sees it.
            world.audit();
            world.retry();
        }
        world.check_events();
        world.retry();
        world.is_exact();

        // And then nothing moves: not by asking again, and not by starting again.
        world.forget_records();
        world.audit();
        world.check_events();
        prop_assert_eq!(world.written(), BTreeMap::new());
        let drains = world.plan.0.networks.values().flatten().count();
        // Some calls are made by a start only, and one that fails is made good by writing.
        world.views().values().for_each(|view| view.forget_faults());
        world.restart();
        world.retry();
        prop_assert_eq!(world.written(), BTreeMap::new(), "{} VIPs", drains);
        world.is_exact();
    }

    /// A change of the plan reaches the places that it is about, and costs them one commit.
    #[test]
    fn a_change_is_one_commit_where_it_belongs(virtual_servers in any::<bool>(), before in shape(), after in shape()) {
        let (before, mut after) = (before, after);
        after.tasks.clone_from(&before.tasks);
        (after.ingress, after.ports) = (before.ingress, before.ports.clone());
        after.refuse = before.refuse;
        let mut world = World::with_on(if virtual_servers { ipvs() } else { Balancing::Nft }, before.plan());
        world.forget_records();
        world.apply(after.plan());
        world.settled();
        for (name, view) in world.views() {
            prop_assert!(view.scripts().is_empty(), "{}", name);
            let same = Meaning::of(&view).fronts == BTreeMap::new() || view.commits().len() <= 2;
            prop_assert!(same, "{}: {:?}", name, view.commits());
            if name == "node" || name == "ingress" {
                prop_assert_eq!(view.writes(), 0, "{}", name);
            }
        }
        world.is_exact();
    }
}
