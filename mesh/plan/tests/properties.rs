//! What must hold for any swarm and any change of it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{net::IpAddr, sync::Arc};

use proptest::{collection::vec, prelude::*};
use swarmesh_model::{
    ContainerRouting, Delta, EndpointMode, Network, Node, NodeState, Port, Protocol, PublishMode, Service, ServiceNetwork, Snapshot,
    Subnet, Task, TaskAddress, TaskState, VirtualIp,
};
use swarmesh_plan::{Added, BackendState, NodeContext, NodePlan, PlanDelta, Planner, Takeover, plan};

const NETWORKS: u8 = 3;

fn networks() -> impl Strategy<Value = Vec<(bool, bool)>> {
    // Whether each network is there, and labelled for routes; network 0 is the ingress network.
    vec((prop::bool::weighted(0.9), any::<bool>()), NETWORKS as usize)
}

#[derive(Clone, Debug)]
struct ServiceShape {
    number: u8,
    dnsrr: bool,
    vip_networks: Vec<u8>,
    vip_host: u8,
    ports: Vec<(bool, u8, u8, bool)>,
    label: u8,
}

fn service() -> impl Strategy<Value = ServiceShape> {
    (
        0u8..6,
        prop::bool::weighted(0.2),
        vec(0..NETWORKS + 1, 0..3),
        2u8..12,
        vec((any::<bool>(), 0u8..6, 1u8..9, prop::bool::weighted(0.2)), 0..3),
        0u8..20,
    )
        .prop_map(|(number, dnsrr, vip_networks, vip_host, ports, label)| ServiceShape {
            number,
            dnsrr,
            vip_networks,
            vip_host,
            ports,
            label,
        })
}

#[derive(Clone, Debug)]
struct TaskShape {
    number: u8,
    service: Option<u8>,
    node: u8,
    desired: u8,
    state: u8,
    networks: Vec<u8>,
    sandbox: bool,
    host: u8,
    /// It asks for requests as a container; by a network or by a published port.
    asks: Option<bool>,
}

fn task() -> impl Strategy<Value = TaskShape> {
    (
        0u8..24,
        prop::option::weighted(0.8, 0u8..6),
        0u8..3,
        0u8..3,
        0u8..5,
        vec(0..NETWORKS, 0..3),
        any::<bool>(),
        20u8..60,
        prop::option::weighted(0.3, any::<bool>()),
    )
        .prop_map(|(number, service, node, desired, state, networks, sandbox, host, asks)| TaskShape {
            number,
            service,
            node,
            desired,
            state,
            networks,
            sandbox,
            host,
            asks,
        })
}

prop_compose! {
    fn swarm()(networks in networks(), services in vec(service(), 0..6), tasks in vec(task(), 0..24), down in 0u8..4, version in 0u64..1000) -> Snapshot {
        let mut snapshot = Snapshot { version, ..Snapshot::default() };
        for (number, (_, meshed)) in networks.iter().enumerate().filter(|(_, (there, _))| *there) {
            snapshot.insert_network(Network {
                id: format!("n{number}").into(), name: format!("net{number}"), driver: "overlay".into(), ingress: number == 0, internal: false,
                attachable: false, local: false, mtu: None,
                labels: meshed.then(|| ("com.docker.ucp.mesh.http".to_owned(), "true".to_owned())).into_iter().collect(),
                subnets: vec![Subnet { subnet: format!("10.0.{number}.0/24").parse().unwrap(), gateway: None }],
            });
        }
        for s in services {
            let labels: &[(&str, &str)] = match s.label {
                1 => &[("swarmesh.enable", "false")], 2 => &[("swarmesh.enable", "true")], 3 => &[("swarmesh.source", "local")],
                4 => &[("swarmesh.bind", "nonsense")], 5 => &[("swarmesh.affinity", "client-ip")], 6 => &[("swarmesh.drain", "3")],
                7 => &[("swarmesh.scheduler", "sh")],
                8 => &[("swarmesh.http.a.host", "a.example"), ("swarmesh.http.a.port", "80")],
                9 => &[("swarmesh.http.a.host", "a.example"), ("swarmesh.http.a.network", "net1"), ("swarmesh.http.a.port", "80"),
                    ("swarmesh.http.b.host", "b.example"), ("swarmesh.http.b.status", "404")],
                10 => &[("swarmesh.http.a.host", "!"), ("swarmesh.http.b.host", "b.example"), ("swarmesh.http.b.backend", "vip")],
                11 => &[("com.docker.lb.hosts", "a.example,b.example"), ("com.docker.lb.port", "80")],
                12 => &[("com.docker.lb.hosts", "a.example"), ("com.docker.lb.network", "net2"), ("com.docker.lb.backend_mode", "task")],
                13 | 14 => &[("com.docker.ucp.mesh.http.1", "external_route=http://a.example,internal_port=80")],
                15 => &[("com.docker.ucp.mesh.http.1", "external_route=http://a.example,internal_port=99999")],
                16 | 17 => &[("com.df.notify", "true"), ("com.df.port", "80"), ("com.df.servicePath", "/a")],
                18 => &[("com.df.notify", "true"), ("com.df.port", "80"), ("com.df.servicePath", "/a"), ("com.df.outboundHostname", "c.example")],
                _ => &[("other", "x")],
            };
            snapshot.insert_service(Service {
                id: format!("s{}", s.number).into(), name: format!("svc{}", s.number),
                labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                endpoint_mode: if s.dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip },
                ports: s.ports.iter().map(|(udp, published, target, host)| Port {
                    name: None, protocol: if *udp { Protocol::Udp } else { Protocol::Tcp }, target_port: u16::from(*target),
                    published_port: Some(8000 + u16::from(*published)),
                    publish_mode: if *host { PublishMode::Host } else { PublishMode::Ingress },
                }).collect(),
                // Network NETWORKS does not exist, and a host of 12 and more is another network's.
                vips: s.vip_networks.iter().map(|n| VirtualIp { network: format!("n{n}").into(), address: IpAddr::from([10, 0, *n, s.vip_host]) }).collect(),
                networks: s.vip_networks.iter().map(|n| ServiceNetwork { network: format!("n{n}").into(), aliases: vec![] }).collect(),
            });
        }
        for t in tasks {
            let state = |n: u8| [TaskState::Running, TaskState::Starting, TaskState::Shutdown, TaskState::Failed, TaskState::Running][usize::from(n)];
            snapshot.insert_task(Task {
                id: format!("t{:02}", t.number).into(), service: t.service.map(|n| format!("s{n}").into()), name: format!("task{}", t.number).into(),
                slot: None, node: Some(format!("node{}", t.node).into()), desired_state: state(t.desired), state: state(t.state),
                container: None, hostname: None, sandbox: t.sandbox.then(|| format!("box{}", t.number).into()), healthy: None, ports: None, dns: None,
                routing: t.asks.map(|network| {
                    let mut labels = vec![("interlock.hostname", "c.example")];
                    labels.extend(network.then_some([("interlock.network", "net1"), ("interlock.port", "80")]).into_iter().flatten());
                    let ports = vec![Port { name: None, protocol: Protocol::Tcp, target_port: 80, published_port: Some(8080), publish_mode: PublishMode::Host }];
                    let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
                    Box::new(ContainerRouting { labels, ports, published: Some(IpAddr::from([127, 0, 0, 1])) })
                }),
                addresses: t.networks.iter().map(|n| TaskAddress {
                    network: format!("n{n}").into(),
                    // Some lie outside of their network.
                    address: IpAddr::from([10, if t.host > 57 { 99 } else { 0 }, *n, t.host]), aliases: vec![], links: Default::default(),
                }).collect(),
            });
        }
        for number in 0..3 {
            snapshot.insert_node(Node {
                id: format!("node{number}").into(), hostname: format!("host{number}"), address: None, role: Default::default(),
                state: if number == down { NodeState::Down } else { NodeState::Ready }, availability: Default::default(),
                engine: ["29.7.3", "29.8.0"].get(usize::from(down)).map(|release| (*release).to_owned()),
            });
        }
        snapshot
    }
}

/// Of names that services may have, and of one that none has.
fn added() -> impl Strategy<Value = Arc<Added>> {
    vec((0u8..8, 0u8..3), 0..4).prop_map(|services| {
        let mut added = Added::default();
        for (name, port) in services {
            let parameters = [("servicePath", "/b".to_owned()), ("port", port.to_string())];
            added.insert(format!("svc{name}"), parameters.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
        }
        Arc::new(added)
    })
}

fn context() -> impl Strategy<Value = NodeContext> {
    let bools = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (0u8..4, bools, added()).prop_map(|(node, (labelled, draining, leaves_names), added)| NodeContext {
        added,
        node: (node < 3).then(|| format!("node{node}").into()),
        takeover: if labelled { Takeover::Labelled } else { Takeover::On },
        draining,
        leaves_names,
        ..NodeContext::default()
    })
}

/// As `expected`, but for footholds, which stay where they were first found: they must stand.
fn agree(plan: &NodePlan, expected: &NodePlan, snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let mut expected = expected.clone();
    prop_assert!(plan.routes.footholds.keys().eq(expected.routes.footholds.keys()));
    for (network, sandbox) in &plan.routes.footholds {
        let stands = |t: &Task| t.sandbox.as_deref() == Some(sandbox.as_str()) && t.address_in(network).next().is_some();
        let here = plan.sandboxes.keys().filter_map(|id| snapshot.tasks.get(id)).any(|t| stands(t));
        let is_ingress = plan.ingress.as_ref().is_some_and(|i| i.network == *network);
        prop_assert!(if is_ingress { sandbox == "ingress_sbox" } else { here }, "{network} from {sandbox}");
    }
    expected.routes.footholds = plan.routes.footholds.clone();
    prop_assert_eq!(plan, &expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Wherever a planner came from, it ends where planning the whole snapshot ends, and its delta leads there.
    #[test]
    fn the_way_does_not_matter(snapshots in vec(swarm(), 1..5), context in context()) {
        let mut planner = Planner::new(context.clone());
        let mut applied = NodePlan::default();
        let mut last = Snapshot::default();
        for snapshot in snapshots {
            let delta = planner.update(&Delta::between(&last, &snapshot));
            let whole = plan(&snapshot, &context);
            agree(planner.plan(), &whole, &snapshot)?;
            applied.apply(&delta);
            prop_assert_eq!(&applied, planner.plan());
            last = snapshot;
        }
    }

    /// Nothing that did not change is in the delta.
    #[test]
    fn a_delta_names_what_changed_only(a in swarm(), b in swarm(), context in context()) {
        let mut planner = Planner::new(context.clone());
        planner.update(&Delta::between(&Snapshot::default(), &a));
        let before = planner.plan().clone();
        let delta = planner.update(&Delta::between(&a, &b));
        let needed = PlanDelta::between(&before, planner.plan());
        prop_assert_eq!(delta.sandboxes, needed.sandboxes);
        prop_assert_eq!(delta.published, needed.published);
        prop_assert_eq!(delta.ingress, needed.ingress);
        prop_assert_eq!(delta.left, needed.left);
        prop_assert_eq!(delta.vips, needed.vips);
        prop_assert_eq!(delta.routes, needed.routes);
    }

    /// The same objects in another order of arrival make the same plan.
    #[test]
    fn order_of_arrival_does_not_matter(snapshot in swarm(), context in context(), seed in any::<u64>()) {
        let whole = Delta::between(&Snapshot::default(), &snapshot);
        let mut planner = Planner::new(context.clone());
        let mut pieces = Vec::new();
        for (id, o) in &whole.networks { pieces.push(Delta { networks: [(id.clone(), o.clone())].into(), ..Delta::default() }); }
        for (id, o) in &whole.services { pieces.push(Delta { services: [(id.clone(), o.clone())].into(), ..Delta::default() }); }
        for (id, o) in &whole.tasks { pieces.push(Delta { tasks: [(id.clone(), o.clone())].into(), ..Delta::default() }); }
        for (id, o) in &whole.nodes { pieces.push(Delta { nodes: [(id.clone(), o.clone())].into(), ..Delta::default() }); }
        let mut state = seed | 1;
        for i in (1..pieces.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let j = (state >> 33) as usize % (i + 1);
            pieces.swap(i, j);
        }
        for mut piece in pieces {
            piece.version = snapshot.version;
            planner.update(&piece);
        }
        let mut expected = plan(&snapshot, &context);
        expected.version = planner.plan().version;
        agree(planner.plan(), &expected, &snapshot)?;
    }

    /// A change of context leads where planning for it from the start leads.
    #[test]
    fn a_change_of_context_is_a_delta_too(snapshot in swarm(), a in context(), b in context()) {
        let mut planner = Planner::new(a);
        planner.update(&Delta::between(&Snapshot::default(), &snapshot));
        let mut applied = planner.plan().clone();
        let delta = planner.set_context(b.clone());
        applied.apply(&delta);
        prop_assert_eq!(planner.plan(), &plan(&snapshot, &b));
        prop_assert_eq!(&applied, planner.plan());
    }

    /// So does a change of what is added, which is not planned anew.
    #[test]
    fn what_is_added_is_a_delta_too(snapshot in swarm(), context in context(), all in vec(added(), 1..4)) {
        let mut planner = Planner::new(context.clone());
        planner.update(&Delta::between(&Snapshot::default(), &snapshot));
        for added in all {
            let mut applied = planner.plan().clone();
            applied.apply(&planner.set_added(Arc::clone(&added)));
            prop_assert_eq!(&applied, planner.plan());
            agree(planner.plan(), &plan(&snapshot, &NodeContext { added, ..context.clone() }), &snapshot)?;
        }
    }

    /// Nor does it matter when a way was lost, or found again. Who is out of reach gets nothing new, but for this node's own tasks.
    #[test]
    fn lost_ways_are_a_delta_too(a in swarm(), b in swarm(), context in context(), turns in vec((1u8..3, 20u8..60, any::<bool>()), 0..24)) {
        let reach = |turns: &[(u8, u8, bool)]| -> Vec<_> {
            turns.iter().map(|(network, host, found)| (format!("n{network}").into(), IpAddr::from([10, 0, *network, *host]), *found)).collect()
        };
        let (first, second) = turns.split_at(turns.len() / 2);
        let mut planner = Planner::new(context.clone());
        planner.update(&Delta::between(&Snapshot::default(), &a));
        let mut applied = planner.plan().clone();
        applied.apply(&planner.set_reach(reach(first)));
        prop_assert_eq!(&applied, planner.plan());
        applied.apply(&planner.update(&Delta::between(&a, &b)));
        applied.apply(&planner.set_reach(reach(second)));
        prop_assert_eq!(&applied, planner.plan());

        let mut known = Planner::new(NodeContext::default());
        known.set_reach(reach(&turns));
        known.set_context(context.clone());
        known.update(&Delta::between(&Snapshot::default(), &b));
        prop_assert_eq!(planner.unreachable(), known.unreachable());
        agree(planner.plan(), known.plan(), &b)?;

        let all = plan(&b, &context);
        for (network, vips) in &planner.plan().networks {
            for (vip, service) in vips.iter() {
                let before = all.networks[network].get(vip).unwrap();
                for (backend, before) in service.backends.iter().zip(before.backends.iter()) {
                    let task = b.tasks.get(&backend.task).unwrap();
                    let is_local = context.node.is_some() && task.node == context.node;
                    let is_lost = planner.unreachable().contains(&(network.clone(), backend.address)) && !is_local;
                    prop_assert_eq!(&backend.address, &before.address);
                    if is_lost {
                        prop_assert_eq!(backend.state, BackendState::Draining);
                    } else if backend.task == before.task {
                        prop_assert_eq!(backend.state, before.state);
                    }
                }
            }
        }
    }

    /// No packet may go to an address that is not its network's own, or to a task that does not run.
    #[test]
    fn backends_are_running_tasks_in_their_own_network(snapshot in swarm(), context in context()) {
        let plan = plan(&snapshot, &context);
        for (network, vips) in &plan.networks {
            let subnets = &snapshot.networks.get(network).unwrap().subnets;
            for (vip, service) in vips.iter() {
                prop_assert!(subnets.iter().any(|s| s.subnet.contains(vip)));
                for backend in service.backends.iter() {
                    let task = snapshot.tasks.get(&backend.task).unwrap();
                    prop_assert!(subnets.iter().any(|s| s.subnet.contains(&backend.address)));
                    prop_assert_eq!(task.service.as_ref(), Some(&service.service));
                    prop_assert_eq!(task.state, TaskState::Running);
                    if backend.state == BackendState::Ready {
                        prop_assert!(task.is_usable());
                    }
                }
            }
        }
        for port in plan.published.values().filter(|p| context.draining || p.backends.is_empty()) {
            prop_assert_eq!(port.targets().count(), 0);
        }
    }
}
