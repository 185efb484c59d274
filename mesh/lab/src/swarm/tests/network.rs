use swarmesh_model::{EndpointMode, PublishMode, Subnet};

use super::{Lab, config, port, spec};
use crate::{
    stack::{NetworkSpec, NetworkUse, ServiceSpec},
    swarm::{IngressSpec, Swarm, SwarmConfig, SwarmError, UpdateOptions},
};

fn subnet(text: &str) -> Subnet {
    Subnet { subnet: text.parse().unwrap(), gateway: None }
}

#[test]
fn the_ingress_network_comes_first_and_every_node_is_on_it() {
    let lab = Lab::new(3);
    let snapshot = lab.swarm.snapshot();
    let ingress = snapshot.ingress().unwrap();
    assert_eq!((ingress.name.as_str(), ingress.mtu), ("ingress", Some(1450)));
    assert_eq!(ingress.subnets[0].subnet.to_string(), "10.0.0.0/24");
    let net = snapshot.networks.values().find(|n| n.name == "net").unwrap();
    assert_eq!(net.subnets[0].subnet.to_string(), "10.0.1.0/24");
    assert_eq!(net.subnets[0].gateway.unwrap().to_string(), "10.0.1.1");
    let endpoints: Vec<String> =
        lab.swarm.node_endpoints().iter().map(|e| format!("{} {}", e.node_hostname, e.addresses[0].address)).collect();
    assert_eq!(endpoints, ["n1 10.0.0.2", "n2 10.0.0.3", "n3 10.0.0.4"]);
}

#[test]
fn a_published_service_is_on_ingress_first() {
    let mut lab = Lab::new(2);
    let ports = vec![port(80, Some(8080), PublishMode::Ingress), port(81, None, PublishMode::Ingress)];
    lab.swarm.create_service(ServiceSpec { ports, ..spec("web", 1) }).unwrap();
    lab.settle();
    let service = lab.service("web");
    let numbers: Vec<_> = service.ports.iter().map(|p| p.published_port).collect();
    assert_eq!(numbers, [Some(8080), Some(30000)]);
    let vips: Vec<String> = service.vips.iter().map(|v| v.address.to_string()).collect();
    assert_eq!(vips, ["10.0.0.4", "10.0.1.2"]);
    assert_eq!(service.networks.len(), 1);
    let task = lab.tasks("web").remove(0);
    let spec = lab.swarm.task_spec(&task.id).unwrap();
    let networks: Vec<String> = spec
        .networks
        .iter()
        .map(|n| format!("{} {}/{} via {}", n.name, n.addresses[0].address, n.addresses[0].prefix, n.addresses[0].gateway.unwrap()))
        .collect();
    assert_eq!(networks, ["ingress 10.0.0.5/24 via 10.0.0.1", "net 10.0.1.3/24 via 10.0.1.1"]);
    assert_eq!(spec.ports, service.ports);
    assert!(spec.networks[0].ingress && task.ports.is_none());
    let endpoints = lab.swarm.node_endpoints();
    let balancer: Vec<_> = endpoints.iter().filter(|e| !e.ingress).collect();
    assert_eq!((balancer.len(), balancer[0].node_hostname.as_str()), (1, "n1"));
    assert_eq!(balancer[0].addresses[0].address.to_string(), "10.0.1.4");
    lab.swarm.scale("web", 0).unwrap();
    lab.settle();
    assert!(lab.swarm.node_endpoints().iter().all(|e| e.ingress));
}

#[test]
fn virtual_ips_and_ports_are_kept_across_updates() {
    let mut lab = Lab::new(1);
    lab.swarm.create_network(&NetworkSpec::overlay("second")).unwrap();
    let ports = vec![port(80, None, PublishMode::Ingress)];
    let first = ServiceSpec { ports: ports.clone(), ..spec("web", 2) };
    lab.swarm.create_service(ServiceSpec { ports, ..spec("taken", 1) }).unwrap();
    lab.swarm.create_service(first.clone()).unwrap();
    lab.settle();
    let before = lab.service("web");
    assert_eq!(before.ports[0].published_port, Some(30001));
    lab.swarm.remove_service("taken").unwrap();
    lab.settle();

    let mut more = ServiceSpec { image: "new".to_owned(), ..first.clone() };
    more.ports.push(port(81, Some(8081), PublishMode::Ingress));
    more.networks.push(NetworkUse { network: "second".to_owned(), aliases: Vec::new() });
    assert!(lab.swarm.update_service(more).unwrap());
    lab.after(super::SECOND * 60);
    let after = lab.service("web");
    assert_eq!(after.ports[0].published_port, Some(30001));
    assert_eq!((&after.vips[..2], after.vips.len()), (&before.vips[..], 3));

    assert!(lab.swarm.update_service(ServiceSpec { ports: Vec::new(), endpoint_mode: EndpointMode::Dnsrr, ..first.clone() }).unwrap());
    lab.after(super::SECOND * 60);
    assert!(lab.service("web").vips.is_empty());
    assert_eq!(lab.tasks("web")[0].addresses.len(), 1);

    // Labels, scale and policies leave the tasks alone.
    let mut labelled = ServiceSpec { ports: Vec::new(), endpoint_mode: EndpointMode::Dnsrr, ..first };
    labelled.labels.insert("a".to_owned(), "b".to_owned());
    assert!(!lab.swarm.update_service(labelled).unwrap());
    lab.take_log();
    lab.settle();
    assert_eq!(lab.take_log(), "");
    assert_eq!(lab.service("web").labels["a"], "b");
}

#[test]
fn old_tasks_keep_their_ports_in_the_snapshot_while_an_update_rolls() {
    let mut lab = Lab::new(1);
    let with = |target| ServiceSpec { ports: vec![port(target, Some(80), PublishMode::Ingress)], ..spec("web", 2) };
    lab.swarm.create_service(with(8000)).unwrap();
    lab.settle();
    lab.slow_stop = true;
    lab.swarm.update_service(with(9000)).unwrap();
    lab.settle();
    assert_eq!(lab.service("web").ports[0].target_port, 9000);
    assert!(lab.tasks("web").iter().all(|t| t.ports.as_ref().is_some_and(|p| p[0].target_port == 8000)));
}

#[test]
fn published_ports_clash() {
    let mut lab = Lab::new(1);
    let with = |name: &str, mode| ServiceSpec { ports: vec![port(80, Some(80), mode)], ..spec(name, 1) };
    lab.swarm.create_service(with("a", PublishMode::Ingress)).unwrap();
    lab.settle();
    let error = lab.swarm.create_service(with("b", PublishMode::Ingress)).unwrap_err();
    assert_eq!(error.to_string(), "service b: port 80/tcp is published by service a already");
    lab.swarm.create_service(with("b", PublishMode::Host)).unwrap_err();
    let dnsrr = ServiceSpec { endpoint_mode: EndpointMode::Dnsrr, ..with("c", PublishMode::Ingress) };
    assert!(matches!(lab.swarm.create_service(dnsrr), Err(SwarmError::Invalid { .. })));
    // A removed service gives its port up to the next one though it still drains.
    lab.slow_stop = true;
    lab.swarm.remove_service("a").unwrap();
    lab.settle();
    lab.swarm.create_service(with("b", PublishMode::Ingress)).unwrap();
    lab.settle();
    lab.check();

    let mut none = Swarm::new(SwarmConfig { ingress: None, ..config(1) }).unwrap();
    let ports = ServiceSpec { networks: Vec::new(), ..with("a", PublishMode::Ingress) };
    assert!(none.create_service(ports).unwrap_err().to_string().contains("no ingress network"));
}

#[test]
fn a_full_network_is_an_error_or_a_reason_to_wait() {
    let mut lab = Lab::new(1);
    lab.swarm.create_network(&NetworkSpec { subnets: vec![subnet("10.50.0.0/29")], ..NetworkSpec::overlay("small") }).unwrap();
    let on_small = |name: &str, replicas| {
        let networks = vec![NetworkUse { network: "small".to_owned(), aliases: Vec::new() }];
        ServiceSpec { networks, ..spec(name, replicas) }
    };
    // Five addresses: a virtual IP, the node's own, and tasks.
    lab.swarm.create_service(on_small("web", 8)).unwrap();
    lab.settle();
    let problems: Vec<String> = lab.swarm.problems().iter().map(ToString::to_string).collect();
    assert!(problems[0].contains("network small has no free address left in 10.50.0.0/29"), "{problems:?}");
    let before = lab.swarm.clone();
    let error = lab.swarm.create_service(on_small("more", 1)).unwrap_err();
    assert_eq!(error.to_string(), "network small has no free address left in 10.50.0.0/29");
    assert_eq!(lab.swarm, before, "a refused service leaves nothing behind");
    lab.swarm.scale("web", 2).unwrap();
    lab.settle();
    assert_eq!((lab.placed("web").as_str(), lab.swarm.problems().len()), ("1@n1 2@n1", 0));
}

#[test]
fn subnets_do_not_overlap_and_the_pool_ends() {
    let mut swarm =
        Swarm::new(SwarmConfig { address_pool: crate::swarm::AddressPool { base: "10.0.0.0/22".parse().unwrap(), size: 24 }, ..config(1) })
            .unwrap();
    swarm.create_network(&NetworkSpec { subnets: vec![subnet("10.0.2.0/25")], ..NetworkSpec::overlay("given") }).unwrap();
    for name in ["one", "two"] {
        swarm.create_network(&NetworkSpec::overlay(name)).unwrap();
    }
    assert_eq!(swarm.create_network(&NetworkSpec::overlay("three")), Err(SwarmError::NoSubnet { pool: "10.0.0.0/22".parse().unwrap() }));
    let error = swarm.create_network(&NetworkSpec { subnets: vec![subnet("10.0.0.0/16")], ..NetworkSpec::overlay("wide") }).unwrap_err();
    assert!(error.to_string().contains("overlaps 10.0."), "{error}");
    assert!(matches!(swarm.create_network(&NetworkSpec::overlay("one")), Err(SwarmError::Exists { .. })));
}

#[test]
fn ipv6_networks_give_both_families() {
    let ingress = Some(IngressSpec { subnet_v6: Some("fd00:1::/64".parse().unwrap()), ..IngressSpec::default() });
    let mut swarm = Swarm::new(SwarmConfig { ingress, ..config(1) }).unwrap();
    swarm.create_network(&NetworkSpec { enable_ipv6: true, ..NetworkSpec::overlay("net") }).unwrap();
    let id = swarm.create_service(ServiceSpec { ports: vec![port(80, None, PublishMode::Ingress)], ..spec("web", 1) }).unwrap();
    swarm.reconcile(super::SECOND);
    let snapshot = swarm.snapshot();
    let vips: Vec<String> = snapshot.services[&id].vips.iter().map(|v| v.address.to_string()).collect();
    assert_eq!(vips, ["10.0.0.3", "fd00:1::3", "10.0.1.2", "fd53:7761:726d::2"]);
    let task = snapshot.tasks.values().next().unwrap();
    assert_eq!(task.addresses.len(), 4);
    let spec = swarm.task_spec(&task.id).unwrap();
    assert_eq!((spec.networks.len(), spec.networks[1].addresses[1].prefix), (2, 64));
    assert!(swarm.node_endpoints().iter().all(|e| e.addresses.len() == 2));
}

#[test]
fn the_same_calls_give_the_same_swarm() {
    let run = || {
        let mut lab = Lab::new(3);
        lab.swarm.create_service(spec("web", 5)).unwrap();
        lab.settle();
        lab.swarm.update("web", UpdateOptions::default()).unwrap();
        lab.after(super::SECOND * 30);
        lab.swarm
    };
    assert_eq!(run(), run());
}
