//! Answers of a real engine (20.10, API 1.41), cut down to what matters.

pub(super) const INGRESS: &str = r#"{"Name":"ingress","Id":"jd77usspn33p9xylwi24wkpq8","Scope":"swarm","Driver":"overlay","EnableIPv6":false,
"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.1"}]},"Internal":false,"Attachable":false,
"Ingress":true,"ConfigFrom":{"Network":""},"ConfigOnly":false,"Containers":null,
"Options":{"com.docker.network.driver.overlay.vxlanid_list":"4096"},"Labels":null}"#;

pub(super) const BACK: &str = r#"{"Name":"back","Id":"lsg0dz53sfaryo8bjey7nif94","Scope":"swarm","Driver":"overlay",
"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"10.0.1.0/24","Gateway":"10.0.1.1"}]},"Internal":false,"Attachable":true,
"Ingress":false,"ConfigOnly":false,"Containers":null,"Options":{"com.docker.network.driver.mtu":"1400"},"Labels":{"tier":"back"}}"#;

pub(super) const BRIDGE: &str =
    r#"{"Name":"docker_gwbridge","Id":"0f0f","Scope":"local","Driver":"bridge","IPAM":{"Config":null},"Options":null,"Labels":null}"#;

pub(super) const WEB: &str = r#"{"ID":"ixxro9r4qcfobuhm4lug0m9g0","Version":{"Index":26},"Spec":{"Name":"web","Labels":{"a":"b"},"TaskTemplate":{
"ContainerSpec":{"Image":"box:1","Init":false,"DNSConfig":{},"Isolation":"default"},"Networks":[{"Target":"lsg0dz53sfaryo8bjey7nif94",
"Aliases":["www"]}],"ForceUpdate":0,"Runtime":"container"},"Mode":{"Replicated":{"Replicas":3}},"EndpointSpec":{"Mode":"vip","Ports":[
{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"}]}},"Endpoint":{"Spec":{"Mode":"vip"},"Ports":[
{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"},
{"Protocol":"udp","TargetPort":81,"PublishedPort":8081,"PublishMode":"ingress"}],"VirtualIPs":[
{"NetworkID":"jd77usspn33p9xylwi24wkpq8","Addr":"10.0.0.5/24"},{"NetworkID":"lsg0dz53sfaryo8bjey7nif94","Addr":"10.0.1.2/24"}]}}"#;

/// Task 2 of web, on this node.
pub(super) const WEB_TASK: &str = r#"{"ID":"xhywa4hwqru2tc7utv5gai6e8","Version":{"Index":52},"Labels":{},"Spec":{"ContainerSpec":{"Image":"box:1"},
"Networks":[{"Target":"lsg0dz53sfaryo8bjey7nif94"}]},"ServiceID":"ixxro9r4qcfobuhm4lug0m9g0","Slot":2,"NodeID":"qd62rknqm88ks99aidc5sfw8h",
"Status":{"Timestamp":"2026-11-21T02:29:03Z","State":"running","Message":"started","ContainerStatus":{
"ContainerID":"567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55","PID":11492,"ExitCode":0},"PortStatus":{}},
"DesiredState":"running","NetworksAttachments":[{"Network":{"ID":"jd77usspn33p9xylwi24wkpq8","Spec":{"Name":"ingress","Ingress":true}},
"Addresses":["10.0.0.7/24"]},{"Network":{"ID":"lsg0dz53sfaryo8bjey7nif94","Spec":{"Name":"back"}},"Addresses":["10.0.1.4/24"]}]}"#;

pub(super) const NODE: &str = r#"{"ID":"qd62rknqm88ks99aidc5sfw8h","Version":{"Index":39},"Spec":{"Labels":{},"Role":"manager","Availability":"active"},
"Description":{"Hostname":"n1","Engine":{"EngineVersion":"20.10.24"}},"Status":{"State":"ready","Addr":"192.0.2.11"},
"ManagerStatus":{"Leader":true,"Reachability":"reachable","Addr":"192.0.2.11:2377"}}"#;

/// The container of [`WEB_TASK`].
pub(super) const WEB_CONTAINER: &str = r#"{"Id":"567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55","State":{"Status":"running","Running":true},
"Name":"/web.2.xhywa4hwqru2tc7utv5gai6e8","Config":{"Hostname":"567ba44abd14","Labels":{"com.docker.swarm.task":"",
"com.docker.swarm.task.id":"xhywa4hwqru2tc7utv5gai6e8"}},"NetworkSettings":{"SandboxKey":"/var/run/docker/netns/b1a0c61565ee","Networks":{
"back":{"NetworkID":"lsg0dz53sfaryo8bjey7nif94","Aliases":null,"IPAddress":"10.0.1.4"}}}}"#;

/// A container that somebody started with `docker run --network back --network-alias pal`.
pub(super) const PLAIN: &str = r#"{"Id":"b2df664cc44820f2f6db29968b9299bed64d385d379db2b1431eb6ce808aaba1","State":{"Status":"running","Running":true},
"Name":"/plain","Config":{"Hostname":"b2df664cc448","Labels":null},"NetworkSettings":{"SandboxKey":"/var/run/docker/netns/fc2fb6c63009",
"Networks":{"back":{"IPAMConfig":{"IPv4Address":"10.0.1.15"},"Links":null,"Aliases":["pal","b2df664cc448"],
"NetworkID":"lsg0dz53sfaryo8bjey7nif94","IPAddress":"10.0.1.15","IPPrefixLen":24,"GlobalIPv6Address":"","DriverOpts":null},"odd":null}}}"#;

pub(super) fn list(objects: &[&str]) -> String {
    format!("[{}]", objects.join(","))
}
