use serde_json::value::RawValue;
use swarmesh_model::{
    Availability, EndpointMode, Network, Node, NodeState, Problem, Protocol, PublishMode, Role, Service, Task, TaskState,
};

use super::{
    decode::{self, Decoded, FromDocker, Odd},
    fixtures::{BACK, BRIDGE, INGRESS, NODE, WEB, WEB_TASK},
};

fn decode<T: FromDocker>(json: &str) -> Result<Option<Decoded<T>>, Odd> {
    decode::object(&RawValue::from_string(json.to_owned()).unwrap())
}

fn good<T: FromDocker>(json: &str) -> T {
    let decoded = decode::<T>(json).unwrap_or_else(|odd| panic!("{odd:?}")).expect("an object of interest");
    assert_eq!(decoded.problems, []);
    decoded.object
}

/// The object, and its only problem.
fn noted<T: FromDocker>(json: &str) -> (T, Problem) {
    let mut decoded = decode::<T>(json).unwrap_or_else(|odd| panic!("{odd:?}")).expect("an object of interest");
    assert_eq!(decoded.problems.len(), 1, "{:?}", decoded.problems);
    (decoded.object, decoded.problems.remove(0))
}

fn odd<T: FromDocker + std::fmt::Debug>(json: &str) -> Odd {
    decode::<T>(json).expect_err(json)
}

#[test]
fn networks() {
    let ingress: Network = good(INGRESS);
    assert!(ingress.ingress && !ingress.attachable && ingress.labels.is_empty());
    let back: Network = good(BACK);
    assert_eq!((back.name.as_str(), back.mtu, back.attachable), ("back", Some(1400), true));
    assert_eq!(back.subnets[0].subnet.to_string(), "10.0.1.0/24");
    assert_eq!(back.subnets[0].gateway, Some("10.0.1.1".parse().unwrap()));
    assert!(decode::<Network>(BRIDGE).unwrap().is_none());
    assert!(decode::<Network>(r#"{"Id":"t","Name":"t","Scope":"swarm","ConfigOnly":true}"#).unwrap().is_none());
    let (bare, _) = noted::<Network>(r#"{"Id":"x","Name":"x","Options":{"com.docker.network.driver.mtu":"big"}}"#);
    assert_eq!((bare.driver.as_str(), bare.mtu), ("overlay", None));
    let odd = odd::<Network>(r#"{"Id":"x","Name":"x","IPAM":{"Config":[{"Subnet":"ten"}]}}"#);
    assert_eq!((odd.id.as_str(), odd.problem.object.as_str()), ("x", "network x"));
}

#[test]
fn services() {
    let web: Service = good(WEB);
    assert_eq!((web.name.as_str(), web.endpoint_mode), ("web", EndpointMode::Vip));
    assert_eq!(web.ports.len(), 2);
    assert_eq!((web.ports[1].protocol, web.ports[1].target_port, web.ports[1].published_port), (Protocol::Udp, 81, Some(8081)));
    assert_eq!(web.vips[1].address.to_string(), "10.0.1.2");
    assert_eq!(web.networks[0].aliases, ["www"]);
}

#[test]
fn the_spec_has_the_last_word_on_the_endpoint_mode() {
    let web: Service = good(&WEB.replace(r#""EndpointSpec":{"Mode":"vip""#, r#""EndpointSpec":{"Mode":"dnsrr""#));
    assert_eq!(web.endpoint_mode, EndpointMode::Dnsrr);
    assert!(web.vips.is_empty() && web.ports.is_empty(), "what is left of the time before is not used");
    let bare: Service = good(r#"{"ID":"s","Spec":{"Name":"s","EndpointSpec":null},"Endpoint":{"Spec":{"Mode":"dnsrr"}}}"#);
    assert_eq!(bare.endpoint_mode, EndpointMode::Dnsrr);
}

#[test]
fn networks_of_old_specs() {
    let old: Service = good(r#"{"ID":"s","Spec":{"Name":"s","Networks":[{"Target":"n","Aliases":null}]},"Endpoint":null}"#);
    assert_eq!(old.networks[0].network.as_str(), "n");
}

#[test]
fn ports_with_unknown_words_are_left_out_alone() {
    for (from, to) in
        [(r#""udp""#, r#""quic""#), (r#""PublishedPort":8081,"PublishMode":"ingress""#, r#""PublishMode":"anycast""#), (":81,", ":0,")]
    {
        let (web, problem) = noted::<Service>(&WEB.replace(from, to));
        assert_eq!(web.ports.len(), 1, "{to}");
        assert_eq!((problem.object.as_str(), problem.place.as_str()), ("service web", "Endpoint.Ports"));
    }
    let (web, problem) = noted::<Service>(&WEB.replace(r#""Mode":"vip""#, r#""Mode":"mesh""#));
    assert_eq!((web.endpoint_mode, web.vips.len()), (EndpointMode::Unknown, 0));
    assert!(problem.message.contains("mesh"), "{problem}");
}

#[test]
fn unallocated_ports_and_addresses_are_not_there_yet() {
    let service: Service = good(
        r#"{"ID":"s","Spec":{"Name":"s"},"Endpoint":{"Ports":[{"TargetPort":80,"PublishMode":"host"}],"VirtualIPs":[{"NetworkID":"n"},{"NetworkID":"n","Addr":""}]}}"#,
    );
    assert_eq!((service.ports[0].published_port, service.ports[0].publish_mode), (None, PublishMode::Host));
    assert!(service.vips.is_empty());
}

#[test]
fn tasks() {
    let task: Task = good(WEB_TASK);
    assert_eq!((task.slot, task.state, task.desired_state), (Some(2), TaskState::Running, TaskState::Running));
    assert_eq!(task.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(), ["10.0.0.7", "10.0.1.4"]);
    assert_eq!(task.hostname.as_deref(), Some("567ba44abd14"));
    let named = WEB_TASK.replace(r#"{"Image":"box:1"}"#, r#"{"Image":"box:1","Hostname":"own"}"#);
    assert_eq!(good::<Task>(&named).hostname.as_deref(), Some("own"));
    let template = named.replace("own", "{{.Node.Hostname}}");
    assert_eq!(good::<Task>(&template).hostname.as_deref(), Some("567ba44abd14"));
    let global: Task = good(&WEB_TASK.replace(r#""Slot":2,"#, ""));
    assert_eq!(global.slot, None);
}

#[test]
fn a_task_stays_until_it_has_stopped_running() {
    for desired in ["shutdown", "remove", "completed-some-day"] {
        let json = WEB_TASK.replace(r#""DesiredState":"running""#, &format!(r#""DesiredState":"{desired}""#));
        assert!(decode::<Task>(&json).unwrap().unwrap().object.is_draining(), "{desired}");
    }
    for state in ["complete", "shutdown", "failed", "rejected", "remove", "orphaned"] {
        assert!(decode::<Task>(&WEB_TASK.replace(r#""State":"running""#, &format!(r#""State":"{state}""#))).unwrap().is_none(), "{state}");
    }
    let (task, problem) = noted::<Task>(&WEB_TASK.replace(r#""State":"running""#, r#""State":"levitating""#));
    assert!(task.state == TaskState::Unknown && !task.is_usable(), "{problem}");
    assert!(decode::<Task>(&WEB_TASK.replace("ServiceID", "Other")).unwrap().is_none(), "an attachment of a plain container");
}

#[test]
fn nodes() {
    let node: Node = good(NODE);
    assert_eq!(
        (node.hostname.as_str(), node.role, node.state, node.availability),
        ("n1", Role::Manager, NodeState::Ready, Availability::Active)
    );
    assert_eq!(node.engine.as_deref(), Some("20.10.24"));
    let behind = NODE.replace(r#""State":"ready","Addr":"192.0.2.11""#, r#""State":"disconnected","Addr":"0.0.0.0""#);
    let node: Node = good(&behind);
    assert_eq!((node.address, node.state), (Some("192.0.2.11".parse().unwrap()), NodeState::Disconnected));
    let six: Node = good(r#"{"ID":"n","Status":{"Addr":"::"},"ManagerStatus":{"Addr":"[2001:db8::7]:2377"}}"#);
    assert_eq!((six.address, six.engine), (Some("2001:db8::7".parse().unwrap()), None));
    let (node, _) = noted::<Node>(&NODE.replace("active", "resting"));
    assert_eq!(node.availability, Availability::Active);
}

#[test]
fn what_makes_no_sense_is_named() {
    for (json, id, place) in [
        (r#"{"ID":"s","Spec":{"Name":"s"},"Endpoint":{"VirtualIPs":[{"NetworkID":"n","Addr":"x/24"}]}}"#, "s", "Endpoint.VirtualIPs"),
        (r#"{"ID":"s","Spec":{"Name":"s"},"Endpoint":{"Ports":[{"TargetPort":70000}]}}"#, "s", "Endpoint.Ports"),
        (r#"{"ID":"s","Spec":{}}"#, "s", "Spec.Name"),
        (r#"{"Spec":{"Name":"s"}}"#, "", "ID"),
        (r#"{"ID":"s","Spec":{"Name":7}}"#, "s", ""),
        (r#"{"ID":"s","Endpoint":"none"}"#, "s", ""),
        (r#"{"ID":7}"#, "", ""),
        ("[]", "", "ID"),
        ("7", "", ""),
        ("\"text\"", "", ""),
        ("null", "", ""),
    ] {
        let odd = odd::<Service>(json);
        assert_eq!((odd.id.as_str(), odd.problem.place.as_str()), (id, place), "{json}: {odd:?}");
        assert!(odd.problem.object.starts_with("service"), "{odd:?}");
    }
}
