//! Interlock 1: every label, the choice of containers and of addresses, and the example in print.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{get, lines, told};
use swarmesh_model::{NetworkId, Port};
use swarmesh_router::{
    Table,
    dialect::{Outcome, Settings, Workload, WorkloadNetwork, routes},
    model::{Owner, OwnerKind},
};

/// A container with published ports (own, published) on the network `net`.
fn read(kind: OwnerKind, id: &str, ports: &[(u16, Option<u16>)], labels: &[(&str, &str)]) -> Outcome {
    let labels: BTreeMap<String, String> = labels.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
    let none = BTreeMap::new();
    let network = NetworkId::from("n-net");
    let ports: Vec<Port> = ports
        .iter()
        .map(|(target_port, published_port)| Port {
            name: None,
            protocol: Default::default(),
            target_port: *target_port,
            published_port: *published_port,
            publish_mode: Default::default(),
        })
        .collect();
    let workload = Workload {
        owner: Owner { id: id.to_owned(), name: id.to_owned(), kind },
        labels: &labels,
        ports: &ports,
        networks: vec![WorkloadNetwork { id: &network, name: "net", labels: &none }],
    };
    routes(&workload, &Settings::default())
}

/// With a host and two published ports; `-` takes a label away.
fn demo(id: &str, labels: &[(&str, &str)]) -> Outcome {
    let mut all = vec![("interlock.hostname".to_owned(), "demo"), ("interlock.domain".to_owned(), "app.example")];
    for (label, value) in labels {
        let label = format!("interlock.{label}");
        all.retain(|(l, _)| *l != label);
        if *value != "-" {
            all.push((label, value));
        }
    }
    let all: Vec<(&str, &str)> = all.iter().map(|(l, v)| (l.as_str(), *v)).collect();
    read(OwnerKind::Container, id, &[(9000, None), (8080, Some(32768)), (81, Some(32769))], &all)
}

/// F: what the backend is told of the client; B: the container by its first published port.
fn short(outcome: &Outcome) -> Vec<String> {
    let shorten = |line: String| line.replace("| forward for real-ip proto Pass", "F").replace("published c:32768 task", "B");
    lines(outcome).into_iter().map(shorten).collect()
}

type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

#[test]
fn every_label() {
    let plain = "http demo.app.example pool F -> B";
    let rest = "http demo.app.example [rest] -> 404";
    let rows: &[Row<'_>] = &[
        ("hostname and domain", &[], &[plain], &[]),
        ("domain defaults to local", &[("domain", "-")], &["http demo.local pool F -> B"], &[]),
        ("hostname is the domain", &[("hostname", "app.example")], &["http app.example pool F -> B"], &[]),
        ("hostname is empty", &[("hostname", "")], &["http app.example pool F -> B"], &[]),
        ("hostname is wrong", &[("hostname", "a b")], &[], &["hostname: \"a b.app.example\" is not a host name (no route)"]),
        ("alias_domain", &[("alias_domain", "x.example")], &[plain, "http x.example pool F -> B"], &[]),
        (
            "alias_domain, several",
            &[("alias_domain.0", "x.example"), ("alias_domain.1", "demo.app.example"), ("alias_domain.2", "*")],
            &[plain, "http x.example pool F -> B"],
            &["alias_domain.2: \"*\" is not a host name (no route)"],
        ),
        ("port picks by the container's own", &[("port", "81")], &["http demo.app.example pool F -> published c:32769 task"], &[]),
        (
            "port that is not published",
            &[("port", "9000")],
            &[],
            &["port: \"9000\" the container has no published port that fits (no route)"],
        ),
        ("port, wrong", &[("port", "x")], &[], &["port: \"x\" is not a port from 1 to 65535 (no route)"]),
        (
            "network takes the port as it is",
            &[("network", "net"), ("port", "9000")],
            &["http demo.app.example pool F -> container c@n-net:9000 task"],
            &[],
        ),
        (
            "network without a port takes the first published",
            &[("network", "net")],
            &["http demo.app.example pool F -> container c@n-net:32768 task"],
            &[],
        ),
        (
            "network, wrong",
            &[("network", "other")],
            &[],
            &["network: \"other\" the service is not on this network; it is on net (no route)"],
        ),
        ("context_root", &[("context_root", "/app")], &["http demo.app.example /app pool F -> B", rest], &[]),
        ("context_root, wrong", &[("context_root", "app")], &[], &["context_root: \"app\" is not a path (no route)"]),
        (
            "context_root_rewrite is on by being there",
            &[("context_root", "/app"), ("context_root_rewrite", "false")],
            &["http demo.app.example /app pool F | slash below /app | strip /app -> B", rest],
            &[],
        ),
        (
            "context_root_rewrite alone",
            &[("context_root_rewrite", "true")],
            &[plain],
            &["context_root_rewrite: \"true\" does nothing without interlock.context_root (ignored)"],
        ),
        (
            "ssl, ssl_cert and ssl_cert_key",
            &[("ssl", "false"), ("ssl_cert", "a.pem"), ("ssl_cert_key", "a.key")],
            &["any demo.app.example pool F -> B with file a.pem with a.key"],
            &[],
        ),
        ("ssl alone", &[("ssl", "true")], &[plain], &["ssl: \"true\" does nothing without interlock.ssl_cert (ignored)"]),
        ("ssl_cert alone", &[("ssl_cert", "a.pem")], &[plain], &["ssl_cert: \"a.pem\" does nothing without interlock.ssl (ignored)"]),
        (
            "ssl_cert is a file's name",
            &[("ssl", ""), ("ssl_cert", "../../etc/key.pem")],
            &[plain],
            &["ssl_cert: \"../../etc/key.pem\" is not taken up: a file's name has no directories (ignored)"],
        ),
        (
            "ssl_only: 302",
            &[("ssl", ""), ("ssl_cert", "a.pem"), ("ssl_only", "")],
            &["any demo.app.example pool | https 302 F -> B with file a.pem with itself"],
            &[],
        ),
        ("ssl_only alone", &[("ssl_only", "true")], &[plain], &["ssl_only: \"true\" does nothing without interlock.ssl (ignored)"]),
        ("ssl_backend does not verify", &[("ssl_backend", "")], &["http demo.app.example pool F -> B tls"], &[]),
        (
            "ssl_backend_tls_verify",
            &[("ssl_backend", ""), ("ssl_backend_tls_verify", "required")],
            &["http demo.app.example pool F -> B tls verified"],
            &[],
        ),
        (
            "ssl_backend_tls_verify, wrong: verified",
            &[("ssl_backend", ""), ("ssl_backend_tls_verify", "x")],
            &["http demo.app.example pool F -> B tls verified"],
            &["ssl_backend_tls_verify: \"x\" is not one of none, required (ignored)"],
        ),
        ("websocket_endpoint", &[("websocket_endpoint", "/ws"), ("websocket_endpoint.1", "/ws2")], &[plain], &[]),
        (
            "websocket_endpoint, wrong",
            &[("websocket_endpoint.1", "ws")],
            &[plain],
            &["websocket_endpoint.1: \"ws\" is not a path (ignored)"],
        ),
        (
            "health_check",
            &[("health_check", "httpchk GET /ping")],
            &[plain],
            &[
                "health_check: \"httpchk GET /ping\" is not taken up: connecting is what is tried, and how often is not a label's choice (ignored)",
            ],
        ),
        (
            "health_check_interval",
            &[("health_check_interval", "1000")],
            &[plain],
            &[
                "health_check_interval: \"1000\" is not taken up: connecting is what is tried, and how often is not a label's choice (ignored)",
            ],
        ),
        ("balance_algorithm", &[("balance_algorithm", "leastconn")], &["http demo.app.example pool F -> B LeastConnections"], &[]),
        (
            "balance_algorithm, beyond",
            &[("balance_algorithm", "uri")],
            &[plain],
            &["balance_algorithm: \"uri\" is HAProxy text beyond what is understood (ignored)"],
        ),
        ("backend_option, nginx's", &[("backend_option", "least_conn;")], &["http demo.app.example pool F -> B LeastConnections"], &[]),
        ("backend_option, HAProxy's", &[("backend_option.0", "forwardfor"), ("backend_option.1", "http-server-close")], &[plain], &[]),
        (
            "backend_option, beyond",
            &[("backend_option.0", "keepalive 16; }")],
            &[],
            &["backend_option.0: \"keepalive 16; }\" is HAProxy or nginx text beyond what is understood (no route)"],
        ),
        ("ip_hash is on by being there", &[("ip_hash", "false")], &["http demo.app.example pool F -> B IpHash"], &[]),
        ("ext.name: its own container", &[("ext.name", "nginx")], &[], &[]),
        ("app: itself", &[("app", "interlock")], &[], &[]),
        ("no hostname: not chosen", &[("hostname", "-")], &[], &[]),
        ("unknown", &[("hostnmae", "x")], &[plain], &["hostnmae: \"\" is not a label that this dialect knows (ignored)"]),
    ];
    for (row, labels, routes, problems) in rows {
        let outcome = demo("c", labels);
        assert_eq!(short(&outcome), *routes, "{row}");
        let told: Vec<String> = told(&outcome.problems).iter().map(|p| p.replacen("interlock.", "", 1)).collect();
        assert_eq!(told, *problems, "{row}");
    }
}

#[test]
fn containers_of_one_host_are_one_set() {
    let mut all = demo("b", &[]).routes;
    all.extend(demo("a", &[("ip_hash", "")]).routes);
    all.extend(demo("c", &[("context_root", "/app")]).routes);
    all.extend(demo("d", &[("context_root", "/app/x"), ("alias_domain", "other.example")]).routes);
    let (table, problems) = Table::new(all);
    assert_eq!(get(&table, "http://demo.app.example/"), "published a:32768 task + published b:32768 task IpHash");
    assert_eq!(get(&table, "http://demo.app.example/app/"), "published c:32768 task");
    assert_eq!(get(&table, "http://demo.app.example/app/x/y"), "published d:32768 task");
    // The alias has what its container has: one root, and nothing elsewhere.
    assert_eq!(get(&table, "http://other.example/app/x"), "published d:32768 task");
    assert_eq!(get(&table, "http://other.example/"), "404");
    assert_eq!(get(&table, "http://none.example/"), "none");
    assert_eq!(
        told(&problems),
        [
            "interlock.hostname: \"demo.app.example\" differs from container a, which claimed the host first; that one's options are used (ignored)"
        ]
    );
}

#[test]
fn policy() {
    let policy = |labels| demo("c", labels).routes[0].policy.clone();
    let default = policy(&[]);
    assert_eq!(default.limits.body, Some(2048 << 20));
    assert_eq!(default.timeouts.server, Some(Duration::from_secs(600)));
    assert_eq!(default.ejection.unwrap().time, Duration::from_secs(10));
    assert!(policy(&[("backend_option", "forceclose")]).close_upstream && !default.close_upstream);
    assert!(policy(&[("health_check", "x")]).check_connect && !default.check_connect);
}

#[test]
fn services_are_told() {
    let outcome = read(OwnerKind::Service, "s", &[(80, Some(80))], &[("interlock.hostname", "demo")]);
    assert_eq!(outcome.routes, []);
    assert_eq!(outcome.problems.len(), 1);
}

/// `docker run -p 8080 --label interlock.hostname=demo --label interlock.domain=app.example.com …`
#[test]
fn example_in_print() {
    let outcome = read(
        OwnerKind::Container,
        "demo",
        &[(8080, Some(32770))],
        &[("interlock.hostname", "demo"), ("interlock.domain", "app.example.com")],
    );
    assert_eq!(outcome.problems, []);
    let (table, _) = Table::new(outcome.routes);
    assert_eq!(get(&table, "http://demo.app.example.com/"), "published demo:32770 task");
}
