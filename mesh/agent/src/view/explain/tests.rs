use swarmesh_dataplane::{PlaceState, PlaceStatus};
use swarmesh_plan::{NodeContext, Takeover, plan};

use super::*;
use crate::view::Origin;

const SWARM: &str = r#"{"version": 1,
"networks": [
 {"id": "ing", "name": "ingress", "ingress": true, "subnets": [{"subnet": "10.0.0.0/24"}]},
 {"id": "back", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}]},
 {"id": "six", "name": "six", "subnets": [{"subnet": "fd00::/64"}]}],
"services": [
 {"id": "web", "name": "web", "ports": [{"target_port": 80, "published_port": 8000}],
  "vips": [{"network": "ing", "address": "10.0.0.2"}, {"network": "back", "address": "10.0.1.2"}]},
 {"id": "near", "name": "near", "labels": {"swarmesh.source": "local", "swarmesh.bind": "127.0.0.1"}, "ports": [{"target_port": 81, "published_port": 8001}]},
 {"id": "off", "name": "off", "labels": {"swarmesh.enable": "false"}, "ports": [{"target_port": 80, "published_port": 8002}],
  "vips": [{"network": "back", "address": "10.0.1.3"}]},
 {"id": "host", "name": "host", "endpoint_mode": "dnsrr", "ports": [{"target_port": 53, "published_port": 5353, "protocol": "udp", "publish_mode": "host"}]},
 {"id": "v6", "name": "v6", "vips": [{"network": "six", "address": "fd00::2"}]}],
"tasks": [
 {"id": "t1", "service": "web", "name": "web.1.t1", "node": "n1", "desired_state": "running", "state": "running", "sandbox": "sb1",
  "addresses": [{"network": "ing", "address": "10.0.0.5"}, {"network": "back", "address": "10.0.1.5"}]},
 {"id": "t2", "service": "web", "name": "web.2.t2", "node": "n2", "desired_state": "running", "state": "preparing"},
 {"id": "t3", "service": "web", "name": "web.3.t3", "node": "n2", "desired_state": "running", "state": "running", "healthy": false,
  "addresses": [{"network": "ing", "address": "10.0.0.6"}]},
 {"id": "t4", "service": "web", "name": "web.4.t4", "node": "n3", "desired_state": "running", "state": "running",
  "addresses": [{"network": "ing", "address": "10.0.0.7"}]},
 {"id": "t5", "service": "web", "name": "web.5.t5", "node": "n2", "desired_state": "shutdown", "state": "failed"},
 {"id": "t6", "service": "near", "name": "near.1.t6", "node": "n2", "desired_state": "running", "state": "running",
  "addresses": [{"network": "ing", "address": "10.0.0.8"}]},
 {"id": "t7", "service": "v6", "name": "v6.1.t7", "node": "n1", "desired_state": "running", "state": "running", "sandbox": "sb7",
  "addresses": [{"network": "six", "address": "fd00::5"}]}],
"nodes": [
 {"id": "n1", "hostname": "node1", "address": "192.0.2.11"},
 {"id": "n2", "hostname": "node2", "address": "192.0.2.12"},
 {"id": "n3", "hostname": "node3", "address": "192.0.2.13", "state": "down"}]}"#;

fn view() -> View {
    let snapshot = swarmesh_model::Snapshot::from_json(SWARM).unwrap();
    let context = NodeContext { node: Some("n1".into()), takeover: Takeover::On, ..NodeContext::default() };
    let plan = plan(&snapshot, &context);
    View { snapshot, plan, context, origin: Origin::Source, ..View::default() }
}

fn ask(view: &View, target: &str) -> Explanation {
    let local = Local { addresses: vec![("eth0".to_owned(), "192.0.2.11".parse().unwrap())] };
    explain(view, &target.parse().unwrap(), &local)
}

fn pending(place: &str) -> PlaceStatus {
    PlaceStatus {
        place: place.to_owned(),
        path: "/x".into(),
        state: PlaceState::Pending,
        error: "why not".to_owned(),
        since_seconds: 0,
        fronts: 0,
        healed: 0,
    }
}

#[test]
fn targets_read_as_they_are_written() {
    for text in [
        "tcp://192.0.2.1:80",
        "udp://[2001:db8::1]:53",
        "vip://web",
        "vip://fd00::2",
        "vip://web?from=web.1",
        "dns://web?type=a",
        "dns://web?type=srv&from=web.1",
    ] {
        assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
    }
    assert_eq!("dns://10.0.1.2".parse::<Target>().unwrap().to_string(), "dns://2.1.0.10.in-addr.arpa?type=ptr");
    for text in [
        "",
        "web",
        "dns://",
        "dns://web?type=x",
        "dns://web?to=web.1",
        "ftp://x/",
        "tcp://host:80",
        "tcp://192.0.2.1",
        "tcp://192.0.2.1:0",
        "vip://",
        "vip://web?to=x",
        "vip://web?from=",
    ] {
        let error = text.parse::<Target>().unwrap_err().to_string();
        assert!(error.contains("use tcp://ADDRESS:PORT"), "{error}");
    }
    let odd = "vip://é b?from=%";
    assert_eq!(percent_decode(&percent_encode(odd)).as_deref(), Some(odd));
    assert_eq!(percent_decode("%4"), None);
    assert_eq!(percent_decode("%zz"), None);
}

#[test]
fn a_published_port_is_followed_to_its_tasks_and_back() {
    let told = ask(&view(), "tcp://192.0.2.11:8000");
    assert_eq!(told.verdict, Verdict::Delivered);
    assert_eq!(told.summary, "reaches service web on 80: web.1.t1 on node1 (10.0.0.5)");
    assert_eq!(
        told.hops.iter().map(|h| h.at.as_str()).collect::<Vec<_>>(),
        ["address", "published port", "node", "ingress sandbox", "task", "way back"]
    );
    assert!(told.hops[0].what.contains("node1 (eth0)"));
    assert!(told.hops[4].what.starts_with("translates 8000 to 80"));
    assert!(told.hops[5].what.contains("sees the client's own address"));
    assert_eq!(told.missing, [""; 0]);

    let why: Vec<(&str, &str)> = told.hops[3].left_out.iter().map(|l| (l.task.as_str(), l.why.as_str())).collect();
    let keeps = "keeps what it has and gets nothing new while others are ready";
    assert_eq!(
        why,
        [
            ("web.2.t2", "is starting (preparing)"),
            ("web.3.t3", format!("its health check fails; {keeps}").as_str()),
            ("web.4.t4", format!("its node node3 is down; {keeps}").as_str()),
        ]
    );
}

#[test]
fn tasks_of_this_node_are_reached_past_the_ingress_sandbox() {
    let mut view = view();
    view.plane.near.insert("t1".into(), [172, 18, 0, 5].into());
    let told = ask(&view, "tcp://192.0.2.11:8000");
    assert_eq!(told.summary, "reaches service web on 80: web.1.t1 on node1 (10.0.0.5)");
    assert!(told.hops[2].what.contains("reached straight, at 172.18.0.5:8000"), "{}", told.hops[2].what);
    assert_eq!(told.hops[2].backends.len(), 1);
    assert_eq!(told.hops[3].what, "is not on the way: every backend is this node's own");
    assert!(told.hops[3].backends.iter().all(|b| b.task_id != "t1"));
    assert!(told.hops[4].what.starts_with("translates 8000 to 80"));
    assert!(told.hops[5].what.ends_with("it comes straight from the task's leg on the node's bridge"));
    // What has to be decided in one place is decided in the sandbox.
    let key = (Protocol::Tcp, 8000);
    let port = view.plan.published.get(&key).unwrap();
    let sticky = swarmesh_plan::Policy { affinity: Some(std::time::Duration::from_secs(60)), ..(*port.policy).clone() };
    let port = swarmesh_plan::PublishedPort { policy: std::sync::Arc::new(sticky), ..(**port).clone() };
    view.plan.published.insert(key, port.into());
    assert!(ask(&view, "tcp://192.0.2.11:8000").hops[2].what.contains("hands it to the ingress sandbox"));
}

#[test]
fn what_refuses_says_why() {
    let mut view = view();
    let told = ask(&view, "tcp://127.0.0.1:8001");
    assert_eq!(
        (told.verdict, told.summary.as_str()),
        (Verdict::Refused, "refused at once with a reset: service near has no usable task on this node")
    );
    assert_eq!(told.hops[4].left_out[0].why, "runs on another node, and swarmesh.source=local uses this node's tasks only");
    assert!(ask(&view, "tcp://192.0.2.11:8001").summary.contains("near is published on 127.0.0.1/32 only"));

    let told = ask(&view, "tcp://[::1]:8000");
    assert_eq!(told.verdict, Verdict::Refused);
    assert!(told.missing[0].contains("no IPv6 subnet"), "{:?}", told.missing);

    view.context.draining = true;
    view.plan = plan(&view.snapshot, &view.context);
    assert_eq!(ask(&view, "tcp://127.0.0.1:8000").summary, "refused at once with a reset: this node drains");
}

#[test]
fn what_is_not_ours_says_whose_it_is() {
    let view = view();
    for (target, expected) in [
        ("tcp://127.0.0.1:9", "nothing of the swarm listens here: no service publishes 9/tcp"),
        ("udp://127.0.0.1:8000", "no service publishes 8000/udp"),
        ("tcp://198.51.100.1:8000", "198.51.100.1 is not local to this node: nothing of the swarm listens here"),
        ("tcp://127.0.0.1:8002", "swarmesh.enable=false leaves it to Docker"),
        ("udp://127.0.0.1:5353", "host mode is Docker's own"),
        ("tcp://10.0.1.2:80", "ask for vip://web"),
        ("tcp://10.0.0.6:80", "is a task's own"),
        ("vip://nobody", "there is no service nobody"),
        ("vip://off", "swarmesh.enable=false leaves it to Docker"),
        ("vip://host", "a dnsrr service has no virtual IP"),
        ("vip://near", "joins no network"),
        ("vip://web?from=web.2", "runs on node2; ask that node's agent"),
        ("vip://web?from=v6.1", "they share no network"),
        ("vip://web?from=x", "there is no task x"),
    ] {
        let told = ask(&view, target);
        assert_eq!(told.verdict, Verdict::NotOurs, "{target}: {}", told.summary);
        assert!(told.summary.contains(expected), "{target}: {}", told.summary);
    }
}

#[test]
fn a_virtual_ip_is_followed_from_the_caller() {
    let view = view();
    for target in ["vip://web", "vip://10.0.1.2", "vip://web?from=web.1", "vip://web?from=t1"] {
        let told = ask(&view, target);
        assert_eq!(
            (told.verdict, told.summary.as_str()),
            (Verdict::Delivered, "10.0.1.2 reaches web.1.t1 on node1 (10.0.1.5)"),
            "{target}"
        );
        let sandbox = told.hops.iter().find(|h| h.at == "caller's sandbox").unwrap();
        assert!(sandbox.left_out.iter().any(|l| l.task == "web.3.t3" && l.why == "has no IPv4 address in network back"));
    }
    assert_eq!(ask(&view, "vip://v6").summary, "fd00::2 reaches v6.1.t7 on node1 (fd00::5)");
}

#[test]
fn what_is_not_applied_is_missing() {
    let mut view = view();
    view.plane.places = vec![pending("ingress"), pending("task web.1.t1")];
    let told = ask(&view, "tcp://127.0.0.1:8000");
    assert_eq!(told.verdict, Verdict::Pending);
    assert_eq!(told.missing, ["not applied in ingress: why not", "not applied in task web.1.t1: why not"]);
    assert_eq!(ask(&view, "vip://web").verdict, Verdict::Pending);
    view.origin = Origin::StateDir;
    assert!(ask(&view, "vip://v6").missing[0].contains("last good snapshot"));
}
