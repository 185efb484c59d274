//! Interlock 2 and 3: every label with its default, its effects and its conflicts, and every example in print.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::{net::IpAddr, time::Duration};

use common::{Swarm, get, lines, told};
use swarmesh_model::{NetworkId, TaskId};
use swarmesh_router::{
    dialect::interlock::Settings,
    model::{NO_ROUTE, Redirect, RedirectCode, RedirectTarget, RetryOn, Tasks, Upstream},
};

const FORWARD: &str = "forward for real-ip request-id | info";

/// `com.docker.lb.` labels, those that every service has besides: a host and a port.
fn demo(labels: &[(&str, &str)]) -> Swarm {
    service(Swarm::default().network("demo", &[]), "demo", &["demo"], labels)
}

fn service(swarm: Swarm, name: &str, networks: &[&str], labels: &[(&str, &str)]) -> Swarm {
    let mut all = vec![("com.docker.lb.hosts".to_owned(), "demo.local"), ("com.docker.lb.port".to_owned(), "8080")];
    for (label, value) in labels {
        let label = format!("com.docker.lb.{label}");
        all.retain(|(l, _)| *l != label);
        if *value != "-" {
            all.push((label, value));
        }
    }
    let all: Vec<(&str, &str)> = all.iter().map(|(l, v)| (l.as_str(), *v)).collect();
    swarm.service(name, networks, &[], &all)
}

/// Row, labels besides host and port (`-` takes one away), routes, problems.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

#[test]
fn every_label() {
    let plain = "http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task";
    let tls = "any demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task with secret c with k";
    let pass = "tls demo.local pool -> id-demo@n-demo:8080 task";
    let app = "http demo.local /app pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task";
    let rest = "http demo.local [rest] -> 404";
    let redirect = "http old.local | info -> 302 http://new.local…";
    let new = "http new.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task";
    let default = "http * [default] | forward for real-ip request-id | info -> id-demo@n-demo:8080 task";
    let rows: &[Row<'_>] = &[
        ("hosts", &[], &[plain], &[]),
        ("hosts, several", &[("hosts", "demo.local, New.Local.,demo.local")], &[plain, new], &[]),
        (
            "hosts, one is wrong",
            &[("hosts", "demo.local,*.local,new.local:80")],
            &[plain],
            &[
                "com.docker.lb.hosts: \"*.local\" is not a host name (no route)",
                "com.docker.lb.hosts: \"new.local:80\" names a port with the host (no route)",
            ],
        ),
        ("hosts, missing", &[("hosts", "-")], &[], &["com.docker.lb.hosts: \"\" is missing (no route)"]),
        ("port, missing", &[("port", "-")], &[], &["com.docker.lb.port: \"\" is missing (no route)"]),
        ("port, wrong", &[("port", "http")], &[], &["com.docker.lb.port: \"http\" is not a port from 1 to 65535 (no route)"]),
        ("network", &[("network", "demo")], &[plain], &[]),
        (
            "network, wrong",
            &[("network", "other")],
            &[],
            &["com.docker.lb.network: \"other\" the service is not on this network; it is on demo (no route)"],
        ),
        ("context_root", &[("context_root", "/app")], &[app, rest], &[]),
        ("context_root, the root", &[("context_root", "/")], &[plain], &[]),
        ("context_root, wrong", &[("context_root", "app")], &[], &["com.docker.lb.context_root: \"app\" is not a path (no route)"]),
        ("context_root_rewrite is off", &[("context_root", "/app"), ("context_root_rewrite", "false")], &[app, rest], &[]),
        (
            "context_root_rewrite",
            &[("context_root", "/app"), ("context_root_rewrite", "true")],
            &[
                "http demo.local /app pool | forward for real-ip request-id | info | slash below /app | strip /app -> id-demo@n-demo:8080 task",
                rest,
            ],
            &[],
        ),
        (
            "context_root_rewrite alone",
            &[("context_root_rewrite", "true")],
            &[plain],
            &["com.docker.lb.context_root_rewrite: \"true\" does nothing without com.docker.lb.context_root (ignored)"],
        ),
        ("ssl_cert and ssl_key", &[("ssl_cert", "c"), ("ssl_key", "k")], &[tls], &[]),
        (
            "ssl_cert alone: both are in it",
            &[("ssl_cert", "c")],
            &["any demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task with secret c with itself"],
            &[],
        ),
        (
            "ssl_key alone",
            &[("ssl_key", "k")],
            &[],
            &["com.docker.lb.ssl_key: \"k\" does nothing without com.docker.lb.ssl_cert (no route)"],
        ),
        ("ssl_passthrough", &[("ssl_passthrough", "true")], &[pass], &[]),
        ("ssl_passthrough is off", &[("ssl_passthrough", "false")], &[plain], &[]),
        (
            "ssl_passthrough excludes what needs opening",
            &[
                ("ssl_passthrough", "true"),
                ("redirects", "http://demo.local,http://new.local"),
                ("context_root", "/app"),
                ("sticky_session_cookie", "s"),
                ("ssl_only", "false"),
            ],
            &[pass],
            &[
                "com.docker.lb.context_root: \"/app\" does not go together with com.docker.lb.ssl_passthrough (ignored)",
                "com.docker.lb.redirects: \"http://demo.local,http://new.local\" does not go together with com.docker.lb.ssl_passthrough (ignored)",
                "com.docker.lb.sticky_session_cookie: \"s\" does not go together with com.docker.lb.ssl_passthrough (ignored)",
            ],
        ),
        (
            "sticky_session_cookie",
            &[("sticky_session_cookie", "session")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task hash session"],
            &[],
        ),
        (
            "sticky_session_cookie, wrong",
            &[("sticky_session_cookie", "a;b")],
            &[plain],
            &["com.docker.lb.sticky_session_cookie: \"a;b\" is not a cookie's name (ignored)"],
        ),
        (
            "ip_hash",
            &[("ip_hash", "true")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task IpHash"],
            &[],
        ),
        ("ip_hash is off", &[("ip_hash", "false")], &[plain], &[]),
        ("ip_hash, wrong", &[("ip_hash", "yes")], &[plain], &["com.docker.lb.ip_hash: \"yes\" is neither true nor false (ignored)"]),
        ("backend_mode task", &[("backend_mode", "task")], &[plain], &[]),
        ("backend_mode default", &[("backend_mode", "default")], &[plain], &[]),
        (
            "backend_mode vip",
            &[("backend_mode", "vip")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 vip"],
            &[],
        ),
        (
            "backend_mode, wrong",
            &[("backend_mode", "dns")],
            &[plain],
            &["com.docker.lb.backend_mode: \"dns\" is not one of task, vip (ignored)"],
        ),
        (
            "backend_mode vip excludes sessions",
            &[("backend_mode", "vip"), ("sticky_session_cookie", "s"), ("ip_hash", "true")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 vip"],
            &[
                "com.docker.lb.sticky_session_cookie: \"s\" does not go together with com.docker.lb.backend_mode=vip (ignored)",
                "com.docker.lb.ip_hash: \"true\" does not go together with com.docker.lb.backend_mode=vip (ignored)",
            ],
        ),
        ("default_backend without hosts", &[("hosts", "-"), ("default_backend", "true")], &[default], &[]),
        ("default_backend with hosts", &[("default_backend", "true")], &[plain, default], &[]),
        ("default_backend as misspelt", &[("hosts", "-"), ("defaul_backend", "true")], &[default], &[]),
        (
            "default_backend with TLS",
            &[("hosts", "-"), ("default_backend", "true"), ("ssl_passthrough", "true")],
            &["tls * [default] -> id-demo@n-demo:8080 task"],
            &[],
        ),
        (
            "default_backend with a certificate",
            &[("hosts", "-"), ("default_backend", "true"), ("ssl_cert", "c"), ("ssl_key", "k")],
            &["any * [default] | forward for real-ip request-id | info -> id-demo@n-demo:8080 task with secret c with k"],
            &[],
        ),
        ("redirects", &[("hosts", "old.local,new.local"), ("redirects", "http://old.local,http://new.local")], &[redirect, new], &[]),
        (
            "redirects, semicolon at the end",
            &[("hosts", "old.local,new.local"), ("redirects", "http://old.local,http://new.local;")],
            &[redirect, new],
            &[],
        ),
        (
            "redirects, several",
            &[
                ("hosts", "old.local,older.local,new.local"),
                ("redirects", "http://old.local,http://new.local;http://older.local,https://new.local/"),
            ],
            &[redirect, "http older.local | info -> 302 https://new.local…", new],
            &[],
        ),
        (
            "redirects are for http",
            &[("hosts", "old.local"), ("redirects", "http://old.local,http://new.local"), ("ssl_cert", "c"), ("ssl_key", "k")],
            &[redirect, "https old.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task with secret c with k"],
            &[],
        ),
        (
            "redirects, wrong",
            &[("redirects", "http://demo.local;a,b;http://old.local,http://new.local;http://demo.local,http://demo.local/;")],
            &[plain],
            &[
                "com.docker.lb.redirects: \"http://demo.local\" is not a pair of a name and a value (ignored)",
                "com.docker.lb.redirects: \"a,b\" is not an http or https URL (ignored)",
                "com.docker.lb.redirects: \"http://old.local,http://new.local\" does nothing without old.local in com.docker.lb.hosts (ignored)",
                "com.docker.lb.redirects: \"http://demo.local,http://demo.local/\" is not taken up: it leads to itself (ignored)",
            ],
        ),
        ("websocket_endpoints", &[("websocket_endpoints", "/total,/ws")], &[plain], &[]),
        ("websocket_endpoints, the root", &[("websocket_endpoints", "/")], &[plain], &[]),
        (
            "websocket_endpoints, wrong",
            &[("websocket_endpoints", "ws")],
            &[plain],
            &["com.docker.lb.websocket_endpoints: \"ws\" is not a path (ignored)"],
        ),
        ("service_cluster, ours", &[("service_cluster", "default")], &[plain], &[]),
        (
            "service_cluster, another",
            &[("service_cluster", "us-east")],
            &[],
            &["com.docker.lb.service_cluster: \"\" is for cluster \"us-east\", which this node does not route for (ignored)"],
        ),
        (
            "ssl_backend",
            &[("ssl_backend", "true")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task tls verified"],
            &[],
        ),
        (
            "ssl_backend_tls_verify none",
            &[("ssl_backend", "true"), ("ssl_backend_tls_verify", "none")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task tls"],
            &[],
        ),
        (
            "ssl_backend_tls_verify, wrong",
            &[("ssl_backend", "true"), ("ssl_backend_tls_verify", "off")],
            &["http demo.local pool | forward for real-ip request-id | info -> id-demo@n-demo:8080 task tls verified"],
            &["com.docker.lb.ssl_backend_tls_verify: \"off\" is not one of none, required (ignored)"],
        ),
        (
            "ssl_backend_tls_verify alone",
            &[("ssl_backend_tls_verify", "none")],
            &[plain],
            &["com.docker.lb.ssl_backend_tls_verify: \"none\" does nothing without com.docker.lb.ssl_backend (ignored)"],
        ),
        (
            "ssl_only",
            &[("ssl_cert", "c"), ("ssl_key", "k"), ("ssl_only", "true")],
            &["any demo.local pool | https 302 | forward for real-ip request-id | info -> id-demo@n-demo:8080 task with secret c with k"],
            &[],
        ),
        (
            "ssl_only without a certificate",
            &[("ssl_only", "true")],
            &[plain],
            &["com.docker.lb.ssl_only: \"true\" does nothing without com.docker.lb.ssl_cert (ignored)"],
        ),
        ("no weight, ever", &[("weight", "2")], &[plain], &["com.docker.lb.weight: \"\" is not a label that this dialect knows (ignored)"]),
    ];
    for (row, labels, routes, problems) in rows {
        let outcome = demo(labels).read();
        assert_eq!(lines(&outcome), *routes, "{row}");
        assert_eq!(told(&outcome.problems), *problems, "{row}");
    }
}

#[test]
fn the_network_is_named_where_there_are_several() {
    let two = |labels: &[(&str, &str)]| {
        service(Swarm::default().network("a", &[]).network("shop_b", &[]), "demo", &["a", "shop_b"], labels).read()
    };
    assert_eq!(told(&two(&[]).problems), ["com.docker.lb.network: \"\" the service is on several networks (no route)"]);
    assert_eq!(
        told(&two(&[("network", "b")]).problems),
        ["com.docker.lb.network: \"b\" the service is not on this network; it is on a, shop_b (no route)"]
    );
    assert_eq!(lines(&two(&[("network", "shop_b")])), [format!("http demo.local pool | {FORWARD} -> id-demo@n-shop_b:8080 task")]);
    let none = service(Swarm::default(), "demo", &[], &[]).read();
    assert_eq!(told(&none.problems), ["com.docker.lb.network: \"\" the service is on no network (no route)"]);
}

#[test]
fn what_the_configuration_says() {
    let mut swarm = demo(&[("service_cluster", "us-east")]);
    swarm.settings.interlock = Settings { cluster: "us-east".into(), hide_info_headers: true, ip_hash: true, ..Settings::default() };
    assert_eq!(lines(&swarm.read()), ["http demo.local pool | forward for real-ip request-id -> id-demo@n-demo:8080 task IpHash"]);
    let outcome = demo(&[]).read();
    let policy = &outcome.routes[0].policy;
    assert_eq!(policy.limits.body, Some(32 << 20));
    assert_eq!(policy.timeouts.server, Some(Duration::from_secs(600)));
    assert_eq!(policy.retries.on[3..], [500, 502, 503, 504].map(RetryOn::Status));
    let ejection = policy.ejection.unwrap();
    assert_eq!((ejection.failures, ejection.time), (1, Duration::from_secs(10)));
}

#[test]
fn a_host_with_a_root_has_nothing_elsewhere() {
    let swarm = demo(&[("context_root", "/app"), ("context_root_rewrite", "true")]);
    let swarm = service(swarm, "docs", &["demo"], &[("context_root", "/app/docs")]);
    let (table, problems) = service(swarm, "rest", &["demo"], &[("hosts", "-"), ("default_backend", "true")]).table();
    assert_eq!(problems, []);
    for (url, to) in [
        ("http://demo.local/app/x", "id-demo@n-demo:8080 task"),
        // As nginx's locations: by bytes, the longest first.
        ("http://demo.local/apple", "id-demo@n-demo:8080 task"),
        ("http://demo.local/app/docs", "id-docs@n-demo:8080 task"),
        ("http://demo.local/other", "404"),
        ("http://DEMO.local:8080/app", "id-demo@n-demo:8080 task"),
        ("http://other.local/other", "id-rest@n-demo:8080 task"),
    ] {
        assert_eq!(get(&table, url), to, "{url}");
    }
}

#[test]
fn nobodys_host() {
    let (table, _) = demo(&[]).table();
    assert_eq!(get(&table, "http://other.local/"), "none");
    assert_eq!(NO_ROUTE, 503);
    // By TLS: nobody opens it, nobody takes it.
    assert!(table.find_tls(Some("other.local"), 443).is_none() && table.find_tls(None, 443).is_none());
    assert_eq!(table.certificate(Some("other.local")), None);
}

#[test]
fn the_first_service_says_how() {
    let swarm = service(demo(&[("sticky_session_cookie", "s"), ("context_root", "/app")]), "demo2", &["demo"], &[("context_root", "/app")]);
    let (table, problems) = swarm.table();
    assert_eq!(get(&table, "http://demo.local/app"), "id-demo@n-demo:8080 task + id-demo2@n-demo:8080 task hash s");
    assert_eq!(
        told(&problems),
        [
            "com.docker.lb.hosts: \"demo.local/app\" differs from service demo, which claimed the host first; that one's options are used (ignored)"
        ]
    );
    // One that has no TLS takes none away from one that has.
    let (table, _) = service(demo(&[]), "demo2", &["demo"], &[("ssl_cert", "c"), ("ssl_key", "k")]).table();
    assert_eq!(get(&table, "https://demo.local/"), "id-demo@n-demo:8080 task + id-demo2@n-demo:8080 task");
    // Two defaults: the smaller id has it.
    let default = [("hosts", "-"), ("default_backend", "true")];
    let (table, problems) = service(demo(&default), "demo2", &["demo"], &default).table();
    assert_eq!(get(&table, "http://any.local/"), "id-demo@n-demo:8080 task");
    assert_eq!(
        told(&problems),
        ["com.docker.lb.default_backend: \"*\" is claimed by service demo already, by com.docker.lb.default_backend (no route)"]
    );
}

/// As many tasks as its name says, a VIP each.
struct Counted;

impl Tasks for Counted {
    fn vip(&self, service: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, service.len() as u8]))
    }

    fn usable(&self, owner: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        let tasks = owner.chars().last().unwrap().to_digit(10).unwrap() as u8;
        (0..tasks).map(|t| (format!("{owner}.{t}").into(), IpAddr::from([10, 0, 1, t]))).collect()
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn network(&self, _: &str, asked: Option<&NetworkId>) -> Option<NetworkId> {
        asked.cloned()
    }
}

fn share(of: &str, swarm: &Swarm) -> (usize, usize) {
    let (table, _) = swarm.table();
    let upstreams = table.routes()[0].backends().unwrap().upstreams(&Counted);
    let its = upstreams.iter().filter(|u| match &u.upstream {
        Upstream::Task { task, .. } => task.as_str().starts_with(of),
        Upstream::Vip { service, .. } => service == of,
        _ => false,
    });
    (its.count(), upstreams.len())
}

#[test]
fn a_canary_gets_its_share() {
    let swarm = |mode4: &str, mode1: &str| {
        let swarm = service(Swarm::default().network("demo", &[]), "demo-4", &["demo"], &[("backend_mode", mode4)]);
        service(swarm, "canary-1", &["demo"], &[("backend_mode", mode1)])
    };
    // One task of five is 20 %; one service of two is 50 %.
    assert_eq!(share("id-canary-1", &swarm("task", "task")), (1, 5));
    assert_eq!(share("id-canary-1", &swarm("vip", "vip")), (1, 2));
    // Both modes on one host are one pool all the same.
    assert_eq!(share("id-canary-1", &swarm("task", "vip")), (1, 5));
    // Scaled to nothing, it has no turn in either mode.
    let gone = |mode: &str| {
        let swarm = service(Swarm::default().network("demo", &[]), "demo-4", &["demo"], &[("backend_mode", mode)]);
        service(swarm, "old-0", &["demo"], &[("backend_mode", mode)])
    };
    assert_eq!(share("id-old-0", &gone("task")), (0, 4));
    assert_eq!(share("id-old-0", &gone("vip")), (0, 1));
}

/// The examples of the Interlock reference architecture, and of the page on VIP mode.
#[test]
fn examples_in_print() {
    // HTTP with a websocket.
    let swarm = Swarm::default().network("http-example_frontend", &[]).service(
        "web",
        &["http-example_frontend"],
        &[],
        &[("com.docker.lb.hosts", "app.dockerdemos.com"), ("com.docker.lb.port", "2015"), ("com.docker.lb.websocket_endpoints", "/total")],
    );
    let (table, problems) = swarm.table();
    assert_eq!(problems, []);
    for url in ["http://app.dockerdemos.com/", "http://app.dockerdemos.com/total"] {
        assert_eq!(get(&table, url), "id-web@n-http-example_frontend:2015 task");
    }
    // Sessions by address.
    assert_eq!(
        lines(&demo(&[("ip_hash", "true")]).read()),
        [format!("http demo.local pool | {FORWARD} -> id-demo@n-demo:8080 task IpHash")]
    );
    // TLS that ends here.
    let (table, _) = demo(&[("ssl_cert", "demo.local.cert"), ("ssl_key", "demo.local.key")]).table();
    assert_eq!(get(&table, "https://demo.local/ping"), "id-demo@n-demo:8080 task");
    assert_eq!(table.certificate(Some("demo.local")).map(|c| c.name()), Some("demo.local.cert"));
    // The default host.
    let (table, _) = demo(&[("hosts", "-"), ("default_backend", "true")]).table();
    assert_eq!(get(&table, "http://whatever.example/x"), "id-demo@n-demo:8080 task");
    // VIP mode.
    let (table, _) = demo(&[("backend_mode", "vip")]).table();
    assert_eq!(get(&table, "http://demo.local/ping"), "id-demo@n-demo:8080 vip");
    // Redirects keep the path.
    let redirect = Redirect { code: RedirectCode::Found, to: RedirectTarget::Before("http://new.local".into()) };
    assert_eq!(redirect.location("old.local", "/ping?x=1"), "http://new.local/ping?x=1");
}

#[test]
fn what_both_say_alike_is_nobodys_problem() {
    let redirect = [("hosts", "old.local,new.local"), ("redirects", "http://old.local,http://new.local")];
    let (table, problems) = service(demo(&redirect), "demo2", &["demo"], &redirect).table();
    assert_eq!(problems, []);
    assert_eq!(get(&table, "http://old.local/x"), "302 http://new.local…");
    assert_eq!(get(&table, "http://new.local/x"), "id-demo@n-demo:8080 task + id-demo2@n-demo:8080 task");
}

#[test]
fn one_label_cannot_fill_the_table() {
    let hosts = |n: usize| (0..n).map(|i| format!("h{i}.local")).collect::<Vec<_>>().join(",");
    assert_eq!(demo(&[("hosts", &hosts(100))]).read().routes.len(), 100);
    let outcome = demo(&[("hosts", &hosts(101))]).read();
    assert_eq!(outcome.routes, []);
    assert_eq!(told(&outcome.problems), ["com.docker.lb.hosts: \"\" has more than 100 parts (no route)"]);
    // Nor a message.
    let outcome = demo(&[("hosts", &"!".repeat(5000))]).read();
    assert_eq!(outcome.problems[0].value.chars().count(), 201);
}
