//! Networks of this node alone, and what a container's inspection says about names, as engines 20.10 and 28 put it.

use std::net::IpAddr;

use swarmesh_model::{ContainerDns, Network, SharedMap, Snapshot, Task};

use super::{
    fixtures::{BACK, BRIDGE, INGRESS, NODE, WEB, WEB_CONTAINER, WEB_TASK, list},
    view::View,
};

const NODE_ID: &str = "qd62rknqm88ks99aidc5sfw8h";
const TASK_ID: &str = "xhywa4hwqru2tc7utv5gai6e8";
const SHOP_ID: &str = "4e1b6a24b15f3c8b0a0d5c1d9c6ad30f9a7f3a5dc9a1d1cf1f6d0c5b2e7a9f10";
const CART_ID: &str = "77c8d5fa2b1199d3d34eb2d3e1ef8c5be3fba2f6d6a3fcb0a9d2dd6d8b2f0c41";

/// `docker network create --ipv6 --internal shop`, 20.10.
const SHOP: &str = r#"{"Name":"shop","Id":"4e1b6a24b15f3c8b0a0d5c1d9c6ad30f9a7f3a5dc9a1d1cf1f6d0c5b2e7a9f10","Created":"2026-11-21T02:31:09Z",
"Scope":"local","Driver":"bridge","EnableIPv6":true,"IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"172.20.0.0/16",
"Gateway":"172.20.0.1"},{"Subnet":"fd00:20::/64","Gateway":"fd00:20::1"}]},"Internal":true,"Attachable":false,"Ingress":false,
"ConfigFrom":{"Network":""},"ConfigOnly":false,"Containers":{},"Options":{},"Labels":{"com.docker.compose.network":"shop"}}"#;

/// `docker run --network shop --network-alias basket --link store:Db --hostname cart --dns 192.0.2.53`, 20.10.
const CART_20: &str = r#"{"Id":"77c8d5fa2b1199d3d34eb2d3e1ef8c5be3fba2f6d6a3fcb0a9d2dd6d8b2f0c41","State":{"Status":"running","Running":true,"Paused":false},
"ResolvConfPath":"RESOLV_CONF","HostsPath":"/var/lib/docker/containers/77c8/hosts","Name":"/shop_cart_1","RestartCount":0,"Driver":"overlay2",
"HostConfig":{"Binds":null,"NetworkMode":"shop","Dns":["192.0.2.53"],"DnsOptions":["ndots:2"],"DnsSearch":[],"ExtraHosts":null,
"Links":null},"Config":{"Hostname":"cart","Domainname":"","Labels":{}},"NetworkSettings":{"Bridge":"","SandboxID":"9d3c","HairpinMode":false,
"SandboxKey":"/var/run/docker/netns/9d3c1f0f2ab4","IPAddress":"","Networks":{"shop":{"IPAMConfig":{},"Links":["store:Db"],
"Aliases":["basket","77c8d5fa2b11","cart"],"NetworkID":"4e1b6a24b15f3c8b0a0d5c1d9c6ad30f9a7f3a5dc9a1d1cf1f6d0c5b2e7a9f10",
"EndpointID":"e1","Gateway":"","IPAddress":"172.20.0.3","IPPrefixLen":16,"IPv6Gateway":"","GlobalIPv6Address":"fd00:20::3",
"GlobalIPv6PrefixLen":64,"MacAddress":"02:42:ac:14:00:03","DriverOpts":null}}}}"#;

/// The same on 28.
const CART_28: &str = r#"{"Id":"77c8d5fa2b1199d3d34eb2d3e1ef8c5be3fba2f6d6a3fcb0a9d2dd6d8b2f0c41","State":{"Status":"running","Running":true,"Paused":false},
"ResolvConfPath":"RESOLV_CONF","HostsPath":"/var/lib/docker/containers/77c8/hosts","Name":"/shop_cart_1","RestartCount":0,"Driver":"overlayfs",
"HostConfig":{"Binds":null,"NetworkMode":"shop","Dns":["192.0.2.53"],"DnsOptions":["ndots:2"],"DnsSearch":[],"ExtraHosts":null,"Links":null},
"Config":{"Hostname":"cart","Domainname":"","Labels":{}},"NetworkSettings":{"SandboxID":"9d3c","SandboxKey":"/var/run/docker/netns/9d3c1f0f2ab4",
"Ports":{},"Networks":{"shop":{"IPAMConfig":{},"Links":["store:Db"],"Aliases":["basket"],"DriverOpts":null,"GwPriority":0,
"NetworkID":"4e1b6a24b15f3c8b0a0d5c1d9c6ad30f9a7f3a5dc9a1d1cf1f6d0c5b2e7a9f10","EndpointID":"e1","Gateway":"","IPAddress":"172.20.0.3",
"MacAddress":"8e:1c:6c:03:4d:5a","IPPrefixLen":16,"IPv6Gateway":"","GlobalIPv6Address":"fd00:20::3","GlobalIPv6PrefixLen":64,
"DNSNames":["shop_cart_1","basket","77c8d5fa2b11","cart"]}}}}"#;

fn view(networks: &[&str]) -> View {
    let mut view = View::default();
    view.node = Some(NODE_ID.into());
    take_networks(&mut view, networks);
    view.nodes.take("", list(&[NODE]).into()).unwrap();
    view.take_services("", list(&[WEB]).into()).unwrap();
    view.tasks.take("", list(&[WEB_TASK]).into()).unwrap();
    view
}

/// One list of the engine's, for both kinds.
fn take_networks(view: &mut View, networks: &[&str]) -> bool {
    let swarm = view.networks.take("", list(networks).into()).unwrap();
    view.local_networks.take("", list(networks).into()).unwrap() || swarm
}

fn snapshot(view: &mut View) -> Snapshot {
    let snapshot = view.assemble(1);
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), snapshot, "agrees with itself");
    snapshot
}

fn network<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Network> {
    snapshot.networks.values().find(|n| n.name == name).map(AsRef::as_ref)
}

/// The container's part of a snapshot that has it.
fn inspected(json: &str) -> Task {
    let mut view = view(&[INGRESS, BACK, BRIDGE, SHOP]);
    view.take_container("", json.as_bytes()).unwrap();
    snapshot(&mut view).tasks[CART_ID].as_ref().clone()
}

#[test]
fn old_and_new_engines_say_the_same() {
    let cart = inspected(CART_20);
    assert_eq!(inspected(CART_28), cart);
    assert_eq!((&*cart.name, cart.hostname.as_deref(), cart.sandbox.as_deref()), ("shop_cart_1", Some("cart"), Some("9d3c1f0f2ab4")));
    assert_eq!((cart.service.as_ref(), cart.node.as_ref().unwrap().as_str()), (None, NODE_ID));
    let addresses: Vec<IpAddr> = cart.addresses.iter().map(|a| a.address).collect();
    assert_eq!(addresses, ["172.20.0.3".parse::<IpAddr>().unwrap(), "fd00:20::3".parse().unwrap()]);
    for address in &cart.addresses {
        assert_eq!((address.network.as_str(), address.aliases.as_slice()), (SHOP_ID, ["basket".to_owned(), "cart".to_owned()].as_slice()));
        assert_eq!(address.links, SharedMap::from_iter([("Db".to_owned(), "store".to_owned())]));
    }
    let dns = ContainerDns { servers: vec!["192.0.2.53".parse().unwrap()], ndots: true, disabled: false };
    assert_eq!(cart.dns, Some(dns.into()));
}

#[test]
fn names_are_in_dockers_order() {
    let many = CART_28
        .replace(r#""Aliases":["basket"]"#, r#""Aliases":["zoo","basket","zoo"]"#)
        .replace(r#"["shop_cart_1","basket","#, r#"["shop_cart_1","zoo","basket","#);
    assert_eq!(inspected(&many).addresses[0].aliases, ["zoo", "basket", "cart"]);
}

#[test]
fn what_a_container_was_told_about_dns() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    let new =
        "nameserver 127.0.0.11\noptions ndots:0\n\n# ExtServers: [192.0.2.1]\n# Overrides: [nameservers]\n# Option ndots from: host\n";
    let plain = |json: &str| json.replace(r#"["192.0.2.53"]"#, "null").replace(r#"["ndots:2"]"#, "[]");
    let dns =
        |servers: &[&str], ndots| ContainerDns { servers: servers.iter().map(|s| s.parse().unwrap()).collect(), ndots, disabled: false };
    for json in [CART_20, CART_28] {
        for (what, json, text, expected) in [
            ("nothing", plain(json), None, dns(&[], false)),
            ("nothing, nulls", plain(json).replace(r#""DnsOptions":[]"#, r#""DnsOptions":null"#), None, dns(&[], false)),
            (
                "invalid ndots",
                plain(json).replace(r#""DnsOptions":[]"#, r#""DnsOptions":["ndots:x","ndots:-1","edns0"]"#),
                None,
                dns(&[], false),
            ),
            ("ndots:0, given", plain(json).replace(r#""DnsOptions":[]"#, r#""DnsOptions":["ndots:0"]"#), None, dns(&[], true)),
            ("20.10's file", plain(json), Some("nameserver 127.0.0.11\noptions ndots:0\n"), dns(&[], false)),
            ("20.10's file, the host's ndots", plain(json), Some("nameserver 127.0.0.11\noptions ndots:3\n"), dns(&[], true)),
            ("the daemon's servers", plain(json), Some(new), dns(&["192.0.2.1"], true)),
            ("the container's own come first", json.to_owned(), Some(new), dns(&["192.0.2.53"], true)),
            ("odd servers", json.replace("192.0.2.53", "a.test"), None, dns(&[], true)),
        ] {
            let _ = std::fs::remove_file(&file);
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let json = json.replace("RESOLV_CONF", &file.display().to_string());
            assert_eq!(inspected(&json).dns, Some(expected.into()), "{what}");
        }
    }
}

#[test]
fn containers_without_a_resolver() {
    let disabled = Some(Box::new(ContainerDns { disabled: true, ..ContainerDns::default() }));
    let on = |name: &str, id: &str| {
        WEB_CONTAINER.replace(r#""back":{"NetworkID":"lsg0dz53sfaryo8bjey7nif94""#, &format!(r#""{name}":{{"NetworkID":"{id}""#))
    };
    let task = |json: &str| {
        let mut view = view(&[INGRESS, BACK, BRIDGE]);
        view.take_container("", json.as_bytes()).unwrap();
        snapshot(&mut view).tasks[TASK_ID].dns.clone()
    };
    for name in ["host", "bridge", "none"] {
        assert_eq!(task(&on(name, "f00d")), disabled, "{name}");
    }
    for name in ["back", "ingress"] {
        assert_eq!(task(&on(name, "f00d")), Some(Box::default()), "{name}");
    }
    // A plain container without one is of no interest at all.
    let mut view = view(&[INGRESS, BACK, BRIDGE, SHOP]);
    let shared = CART_20.replace(r#""Networks":{"shop":{"#, r#""Networks":{},"Was":{"shop":{"#);
    assert!(shared.contains("Was"));
    view.take_container("", shared.as_bytes()).unwrap();
    view.take_container("", CART_20.replace(CART_ID, "b0").replace(SHOP_ID, "0f0f").as_bytes()).unwrap();
    let after = snapshot(&mut view);
    assert_eq!((after.tasks.len(), after.networks.len()), (1, 2));
    assert_eq!(after.tasks[TASK_ID].dns, None, "nothing is known of a container that was not looked at");
}

#[test]
fn a_local_network_is_there_as_long_as_somebody_is_on_it() {
    let mut view = view(&[INGRESS, BACK, BRIDGE, SHOP]);
    assert!(network(&snapshot(&mut view), "shop").is_none());
    let line = r#"[{"Id":"CART","Labels":null,"NetworkSettings":{"Networks":{"shop":{"NetworkID":"SHOP"}}}}]"#;
    let line = line.replace("CART", CART_ID).replace("SHOP", SHOP_ID);
    assert_eq!(view.take_container_list("", line.as_bytes()).unwrap().len(), 1);
    view.take_container("", CART_28.as_bytes()).unwrap();
    let after = snapshot(&mut view);
    let shop = network(&after, "shop").unwrap();
    assert!(shop.local && shop.internal && !shop.ingress && !shop.attachable);
    assert_eq!(shop.subnets.iter().map(|s| s.subnet.to_string()).collect::<Vec<_>>(), ["172.20.0.0/16", "fd00:20::/64"]);
    assert!(network(&after, "docker_gwbridge").is_none());
    assert!(after.networks.values().filter(|n| n.local).count() == 1);

    view.take_container("", CART_28.replace(r#""Running":true"#, r#""Running":false"#).as_bytes()).unwrap();
    assert!(network(&snapshot(&mut view), "shop").is_none());
    view.take_container("", CART_28.as_bytes()).unwrap();
    assert!(network(&snapshot(&mut view), "shop").is_some());
    assert!(take_networks(&mut view, &[INGRESS, BACK, BRIDGE]), "removed");
    let gone = snapshot(&mut view);
    assert!(network(&gone, "shop").is_none() && !gone.tasks.contains_key(CART_ID));
}

#[test]
fn what_counts_as_a_local_network() {
    let counts = |json: &str| {
        let mut view = view(&[INGRESS, BACK, json]);
        view.take_container("", CART_28.as_bytes()).unwrap();
        snapshot(&mut view).networks.len() == 3
    };
    for driver in ["bridge", "macvlan", "ipvlan", "weaveworks/net-plugin"] {
        assert!(counts(&SHOP.replace(r#""Driver":"bridge""#, &format!(r#""Driver":"{driver}""#))), "{driver}");
    }
    for (from, to) in [
        (r#""Driver":"bridge""#, r#""Driver":"host""#),
        (r#""Driver":"bridge""#, r#""Driver":"null""#),
        (r#""Name":"shop""#, r#""Name":"bridge""#),
        (r#""Name":"shop""#, r#""Name":"docker_gwbridge""#),
        (r#""ConfigOnly":false"#, r#""ConfigOnly":true"#),
        (r#""Scope":"local""#, r#""Scope":"global""#),
    ] {
        assert!(SHOP.contains(from) && !counts(&SHOP.replace(from, to)), "{to}");
    }
}

#[test]
fn a_task_on_a_local_network_has_that_address_too() {
    let mut view = view(&[INGRESS, BACK, SHOP]);
    let more = format!(
        r#""back":{{"NetworkID":"lsg0dz53sfaryo8bjey7nif94","Links":["a:B"],"Aliases":["567ba44abd14"],"DNSNames":["web.2.{TASK_ID}","567ba44abd14","web-host"],"IPAddress":"10.0.1.4"}},
        "shop":{{"NetworkID":"{SHOP_ID}","Aliases":["till"],"IPAddress":"172.20.0.9","GlobalIPv6Address":""}},"bridge":{{"NetworkID":"0f0f","IPAddress":"172.17.0.2"}}"#
    );
    let json = WEB_CONTAINER.replace(r#""back":{"NetworkID":"lsg0dz53sfaryo8bjey7nif94","Aliases":null,"IPAddress":"10.0.1.4"}"#, &more);
    assert!(json.contains("till"));
    let before = snapshot(&mut view).tasks[TASK_ID].addresses.clone();
    view.take_container("", json.as_bytes()).unwrap();
    let after = snapshot(&mut view);
    let addresses = &after.tasks[TASK_ID].addresses;
    assert_eq!(addresses[0], before[0], "ingress");
    assert_eq!((addresses[1].address, addresses[1].aliases.as_slice()), (before[1].address, ["web-host".to_owned()].as_slice()));
    assert_eq!(addresses[1].links["B"], "a");
    assert_eq!((addresses[2].network.as_str(), addresses[2].address.to_string().as_str()), (SHOP_ID, "172.20.0.9"));
    assert_eq!((addresses[2].aliases.as_slice(), addresses.len()), (["till".to_owned()].as_slice(), 3));
    view.take_container("", json.replace(r#""Running":true"#, r#""Running":false"#).as_bytes()).unwrap();
    assert_eq!(snapshot(&mut view).tasks[TASK_ID].addresses, before);
}

#[test]
fn ranges_in_use_twice_and_gateways_elsewhere_are_left_out() {
    for (from, to, left) in [
        ("172.20.0.0/16", "10.0.0.0/8", vec!["fd00:20::/64"]),
        ("172.20.0.0/16", "10.0.1.0/25", vec!["fd00:20::/64"]),
        (r#""172.20.0.1""#, r#""192.0.2.1""#, vec!["fd00:20::/64"]),
        (r#""fd00:20::1""#, r#""fe80::1""#, vec!["172.20.0.0/16"]),
        (r#""172.20.0.1""#, r#""""#, vec!["172.20.0.0/16", "fd00:20::/64"]),
    ] {
        let mut view = view(&[INGRESS, BACK, &SHOP.replace(from, to)]);
        view.take_container("", CART_20.as_bytes()).unwrap();
        let after = snapshot(&mut view);
        let subnets: Vec<String> = network(&after, "shop").unwrap().subnets.iter().map(|s| s.subnet.to_string()).collect();
        assert_eq!(subnets, left, "{to}");
        assert!(after.tasks.contains_key(CART_ID));
    }
}

#[test]
fn a_local_network_takes_no_name_from_the_swarms() {
    // A service that names its network by name means the swarm's.
    let mut view = view(&[INGRESS, BACK, &SHOP.replace(r#""Name":"shop""#, r#""Name":"back""#)]);
    view.take_services("", list(&[&WEB.replace(r#""Target":"lsg0dz53sfaryo8bjey7nif94""#, r#""Target":"back""#)]).into()).unwrap();
    view.take_container("", CART_20.as_bytes()).unwrap();
    let after = snapshot(&mut view);
    assert_eq!(after.networks.len(), 3);
    assert_eq!(after.services.values().next().unwrap().networks[0].network.as_str(), "lsg0dz53sfaryo8bjey7nif94");
}
