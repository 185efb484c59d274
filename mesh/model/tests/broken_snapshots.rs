//! Broken snapshot files: each gives one error that names the line and the place, and no snapshot.

use swarmesh_model::{Snapshot, schema};

const GOOD: &str = r#"{"version": 7,
"networks": [
{"id": "ing", "name": "ingress", "ingress": true, "subnets": [{"subnet": "10.0.0.0/24", "gateway": "10.0.0.1"}]},
{"id": "net", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}, {"subnet": "fd00::/64"}]}],
"services": [
{"id": "web", "name": "web", "ports": [{"target_port": 80, "published_port": 8080}], "vips": [{"network": "net", "address": "10.0.1.2"}], "networks": [{"network": "net"}]},
{"id": "api", "name": "api", "endpoint_mode": "dnsrr", "networks": [{"network": "net", "aliases": ["a"]}]}],
"tasks": [
{"id": "t1", "service": "web", "name": "web.1.t1", "node": "n1", "desired_state": "running", "state": "running", "sandbox": "abc", "addresses": [{"network": "net", "address": "10.0.1.3"}]}],
"nodes": [
{"id": "n1", "hostname": "node1", "address": "192.0.2.11"}]}
"#;

/// What is broken: the name, text to replace in GOOD, its replacement, the line, a part of the place and of the message.
type Case = (&'static str, &'static str, &'static str, usize, &'static str, &'static str);

const CASES: &[Case] = &[
    ("nothing", GOOD, "", 1, "", "EOF"),
    ("white space", GOOD, " \n\n ", 3, "", "EOF"),
    (
        "half a file",
        "\"nodes\": [\n{\"id\": \"n1\", \"hostname\": \"node1\", \"address\": \"192.0.2.11\"}]}",
        "\"nodes\": [\n{\"id\": ",
        12,
        "",
        "EOF",
    ),
    ("a list", GOOD, "[]", 1, "", "invalid length"),
    ("no version", "\"version\": 7,\n", "\n", 11, "", "missing field `version`"),
    ("negative version", "\"version\": 7", "\"version\": -7", 1, "", "invalid value"),
    ("version as text", "\"version\": 7", "\"version\": \"7\"", 1, "", "invalid type"),
    ("unknown list", "\"nodes\": [", "\"machines\": [", 10, "", "unknown field `machines`"),
    ("trailing comma", "\"address\": \"192.0.2.11\"}]}", "\"address\": \"192.0.2.11\"},]}", 11, "", "trailing comma"),
    ("trailing text", "\"192.0.2.11\"}]}", "\"192.0.2.11\"}]} x", 11, "", "trailing characters"),
    ("unknown field", "\"name\": \"back\"", "\"nmae\": \"back\"", 4, "networks[1]", "unknown field `nmae`"),
    ("missing name", "\"name\": \"back\", ", "", 4, "networks[1]", "missing field `name`"),
    ("empty name", "\"name\": \"back\"", "\"name\": \"\"", 4, "networks[1].name", "needs a name"),
    ("empty id", "{\"id\": \"net\"", "{\"id\": \"\"", 4, "networks[1].id", "needs an id"),
    ("duplicate network", "{\"id\": \"net\"", "{\"id\": \"ing\"", 4, "networks[1].id", "listed twice"),
    ("two ingress networks", "\"name\": \"back\"", "\"name\": \"back\", \"ingress\": true", 4, "networks[1].ingress", "only one network"),
    ("bad subnet", "10.0.1.0/24", "10.0.1.0/33", 4, "networks[1]", "invalid IP address syntax"),
    ("overlapping subnets", "10.0.1.0/24", "10.0.0.128/25", 4, "networks[1].subnets", "overlaps 10.0.0.0/24 of network ingress"),
    ("gateway elsewhere", "\"gateway\": \"10.0.0.1\"", "\"gateway\": \"10.9.0.1\"", 3, "networks[0].subnets[0]", "outside of 10.0.0.0/24"),
    ("IPv6 in brackets", "fd00::/64", "[fd00::]/64", 4, "networks[1]", "invalid IP address syntax"),
    ("port 0", "\"target_port\": 80", "\"target_port\": 0", 6, "services[0].ports[0].target_port", "0 is not a port"),
    ("published port 0", "\"published_port\": 8080", "\"published_port\": 0", 6, "services[0].ports[0].published_port", "0 is not a port"),
    ("port 65536", "8080", "65536", 6, "services[0]", "expected u16"),
    ("negative port", "8080", "-1", 6, "services[0]", "expected u16"),
    ("bad protocol", "\"target_port\": 80", "\"protocol\": \"icmp\", \"target_port\": 80", 6, "services[0]", "unknown variant `icmp`"),
    (
        "published twice",
        "\"endpoint_mode\": \"dnsrr\"",
        "\"ports\": [{\"target_port\": 81, \"published_port\": 8080}]",
        7,
        "services[1].ports[0]",
        "published by service web already",
    ),
    (
        "dnsrr with ingress",
        "\"endpoint_mode\": \"dnsrr\"",
        "\"endpoint_mode\": \"dnsrr\", \"ports\": [{\"target_port\": 81, \"published_port\": 81}]",
        7,
        "services[1].ports[0]",
        "use mode host",
    ),
    (
        "unknown network of a service",
        "[{\"network\": \"net\"}]",
        "[{\"network\": \"nte\"}]",
        6,
        "services[0].networks[0]",
        "there is no network nte",
    ),
    (
        "unknown network of a VIP",
        "[{\"network\": \"net\", \"address\": \"10.0.1.2\"}]",
        "[{\"network\": \"x\", \"address\": \"10.0.1.2\"}]",
        6,
        "services[0].vips[0]",
        "there is no network x",
    ),
    ("VIP outside of its network", "10.0.1.2", "10.0.7.2", 6, "services[0].vips[0]", "outside of the subnets of network back"),
    (
        "VIP twice",
        "\"endpoint_mode\": \"dnsrr\"",
        "\"vips\": [{\"network\": \"net\", \"address\": \"10.0.1.2\"}]",
        7,
        "services[1].vips[0]",
        "virtual IP of service web already",
    ),
    ("bad endpoint mode", "dnsrr", "dnsrrr", 7, "services[1]", "unknown variant `dnsrrr`"),
    ("unknown service", "\"service\": \"web\"", "\"service\": \"bew\"", 9, "tasks[0].service", "there is no service bew"),
    ("unknown node", "\"node\": \"n1\"", "\"node\": \"n9\"", 9, "tasks[0].node", "there is no node n9"),
    ("bad state", "\"state\": \"running\"", "\"state\": \"runing\"", 9, "tasks[0]", "unknown variant `runing`"),
    ("bad address", "10.0.1.3", "10.0.1.300", 9, "tasks[0]", "invalid IP address syntax"),
    ("loopback as a task's address", "10.0.1.3", "127.0.0.1", 9, "tasks[0].addresses[0]", "cannot be a task's address"),
    ("a path as a sandbox", "\"sandbox\": \"abc\"", "\"sandbox\": \"../../proc/1/ns/net\"", 9, "tasks[0].sandbox", "name of one file"),
    ("control character in a name", "\"hostname\": \"node1\"", "\"hostname\": \"no\u{1}de\"", 11, "", "control character"),
];

#[test]
fn the_good_one_is_good() {
    let snapshot = Snapshot::from_json(GOOD).unwrap();
    assert_eq!((snapshot.version, snapshot.services.len(), snapshot.tasks.len()), (7, 2, 1));
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), snapshot);
}

#[test]
fn each_broken_file_is_one_error_with_its_line() {
    let mut wrong = Vec::new();
    for (name, from, to, line, place, message) in CASES {
        assert!(GOOD.contains(from), "{name}: nothing to replace");
        match Snapshot::from_json(&GOOD.replacen(from, to, 1)) {
            Ok(_) => wrong.push(format!("{name}: was taken")),
            Err(e) if e.line == *line && e.place.contains(place) && e.message.contains(message) => {}
            Err(e) => wrong.push(format!("{name}: {e:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_huge_label_is_refused_without_being_repeated() {
    let huge = format!("\"name\": \"web\", \"labels\": {{\"a\": \"{}\"}}", "x".repeat(10 << 20));
    let error = Snapshot::from_json(&GOOD.replacen("\"name\": \"web\"", &huge, 1)).unwrap_err();
    assert_eq!((error.line, error.place.as_str()), (6, "services[0].labels"));
    assert!(error.to_string().len() < 300);
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let bomb = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Snapshot::from_json(&bomb).is_err());
    assert!(Snapshot::from_json(&GOOD.replacen("\"version\": 7", &format!("\"version\": {bomb}"), 1)).is_err());
}

#[test]
fn the_schema_names_every_list() {
    let schema = schema();
    for list in ["version", "networks", "services", "tasks", "nodes"] {
        assert!(schema["properties"].get(list).is_some(), "{list}");
    }
}
