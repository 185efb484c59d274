//! HTTP routing mesh: every row of its grammar, its keys and its behaviour, and every example in print.

mod common;

use common::{Swarm, get, lines, told};
use swarmesh_router::model::NO_ROUTE;

const L: &str = "com.docker.ucp.mesh.http";

/// On `ucp-hrm`, with one published port.
fn web(labels: &[(&str, &str)]) -> Swarm {
    Swarm::default().network("ucp-hrm", &[]).service("web", &["ucp-hrm"], &[8080], labels)
}

/// Row, label's ending, value, routes, problems.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const VIP: &str = "http a.example -> id-web@n-ucp-hrm:8080 vip";

#[test]
fn every_row_of_the_grammar_and_the_keys() {
    let rows: &[Row] = &[
        // 1.1 grammar
        ("key without suffix", "", "external_route=http://a.example", &[VIP], &[]),
        ("key with a number", ".80", "external_route=http://a.example", &[VIP], &[]),
        ("key as the UI writes it", ".80-1", "external_route=http://a.example", &[VIP], &[]),
        ("key with any suffix", "-main", "external_route=http://a.example", &[VIP], &[]),
        ("order is free", ".1", "internal_port=80,external_route=http://a.example", &["http a.example -> id-web@n-ucp-hrm:80 vip"], &[]),
        (
            "blanks around",
            ".1",
            " external_route=http://a.example , internal_port=80 ",
            &["http a.example -> id-web@n-ucp-hrm:80 vip"],
            &[],
        ),
        (
            "split at the first =",
            ".1",
            "external_route=http://a.example,redirect=http://b.example/x?a=b",
            &["http a.example -> 301 http://b.example/x?a=b"],
            &[],
        ),
        ("2.0's form", "", "http://a.example", &[VIP], &[]),
        ("2.0's form with a port", "", "80=http://a.example", &["http a.example -> id-web@n-ucp-hrm:80 vip"], &[]),
        (
            "2.0's form with several",
            "",
            "80=http://a.example,http://b.example",
            &["http a.example -> id-web@n-ucp-hrm:80 vip", "http b.example -> id-web@n-ucp-hrm:8080 vip"],
            &[],
        ),
        (
            "2.0's form is for http only",
            "",
            "80=sni://a.example",
            &[],
            &[
                "com.docker.ucp.mesh.http: \"80=sni://a.example\" has a key that this dialect does not know (ignored)",
                "com.docker.ucp.mesh.http: \"external_route\" is missing (no route)",
            ],
        ),
        (
            "a slash behind the host",
            ".1",
            "external_route=http://a.example/,internal_port=80",
            &["http a.example -> id-web@n-ucp-hrm:80 vip"],
            &[],
        ),
        ("upper case host", ".1", "external_route=http://A.Example", &[VIP], &[]),
        // 1.2 keys
        (
            "external_route is mandatory",
            ".1",
            "internal_port=80",
            &[],
            &["com.docker.ucp.mesh.http.1: \"external_route\" is missing (no route)"],
        ),
        ("external_route sni", ".1", "external_route=sni://a.example", &["tls a.example -> id-web@n-ucp-hrm:8080 task tls session"], &[]),
        ("external_route blank http", ".1", "external_route=http://", &["http * [default] -> id-web@n-ucp-hrm:8080 vip"], &[]),
        ("external_route blank sni", ".1", "external_route=sni://", &["tls * [default] -> id-web@n-ucp-hrm:8080 task tls session"], &[]),
        (
            "external_route other scheme",
            ".1",
            "external_route=https://a.example",
            &[],
            &["com.docker.ucp.mesh.http.1: \"https://a.example\" is not one of http://HOST, sni://HOST (no route)"],
        ),
        (
            "external_route with a path",
            ".1",
            "external_route=http://a.example/x",
            &[],
            &[
                "com.docker.ucp.mesh.http.1: \"http://a.example/x\" is not taken up: the HTTP routing mesh routes by host, not by path (no route)",
            ],
        ),
        (
            "external_route with a port",
            ".1",
            "external_route=http://a.example:80",
            &[],
            &["com.docker.ucp.mesh.http.1: \"http://a.example:80\" names a port with the host (no route)"],
        ),
        (
            "external_route wildcard",
            ".1",
            "external_route=http://*.example",
            &[],
            &["com.docker.ucp.mesh.http.1: \"http://*.example\" is not a host name (no route)"],
        ),
        ("internal_port defaults to the only one", ".1", "external_route=http://a.example", &[VIP], &[]),
        (
            "internal_port given",
            ".1",
            "external_route=http://a.example,internal_port=81",
            &["http a.example -> id-web@n-ucp-hrm:81 vip"],
            &[],
        ),
        (
            "internal_port is no port",
            ".1",
            "external_route=http://a.example,internal_port=http",
            &[],
            &["com.docker.ucp.mesh.http.1: \"internal_port=http\" is not a port from 1 to 65535 (no route)"],
        ),
        (
            "sticky_sessions",
            ".1",
            "external_route=http://a.example,sticky_sessions=JSESSIONID",
            &["http a.example -> id-web@n-ucp-hrm:8080 task learn JSESSIONID"],
            &[],
        ),
        (
            "sticky_sessions is no cookie",
            ".1",
            "external_route=http://a.example,sticky_sessions=a b",
            &[],
            &["com.docker.ucp.mesh.http.1: \"sticky_sessions=a b\" is not a cookie's name (no route)"],
        ),
        (
            "sticky_sessions is for http",
            ".1",
            "external_route=sni://a.example,sticky_sessions=S",
            &["tls a.example -> id-web@n-ucp-hrm:8080 task tls session"],
            &["com.docker.ucp.mesh.http.1: \"sticky_sessions=S\" does not go together with sni://, which is not opened (ignored)"],
        ),
        (
            "redirect to http",
            ".1",
            "external_route=http://a.example,redirect=http://b.example",
            &["http a.example -> 301 http://b.example…"],
            &[],
        ),
        (
            "redirect to https",
            ".1",
            "external_route=http://a.example,redirect=https://a.example",
            &["http a.example -> 301 https://a.example…"],
            &[],
        ),
        (
            "redirect to sni",
            ".1",
            "external_route=http://a.example,redirect=sni://a.example",
            &["http a.example -> 301 https://a.example…"],
            &[],
        ),
        (
            "redirect from https is impossible",
            ".1",
            "external_route=sni://a.example,redirect=http://b.example",
            &["tls a.example -> id-web@n-ucp-hrm:8080 task tls session"],
            &["com.docker.ucp.mesh.http.1: \"redirect=http://b.example\" does not go together with sni://, which is not opened (ignored)"],
        ),
        (
            "redirect to itself",
            ".1",
            "external_route=http://a.example,redirect=http://A.example/",
            &[],
            &["com.docker.ucp.mesh.http.1: \"redirect=http://A.example/\" is not taken up: it leads to itself (no route)"],
        ),
        (
            "redirect to nowhere",
            ".1",
            "external_route=http://a.example,redirect=b.example",
            &[],
            &["com.docker.ucp.mesh.http.1: \"redirect=b.example\" is not an http or https URL (no route)"],
        ),
        ("include_forwarded_for is off", ".1", "external_route=http://a.example", &[VIP], &[]),
        (
            "include_forwarded_for",
            ".1",
            "external_route=http://a.example,include_forwarded_for=true",
            &["http a.example | forward for -> id-web@n-ucp-hrm:8080 vip"],
            &[],
        ),
        ("include_forwarded_for false", ".1", "external_route=http://a.example,include_forwarded_for=false", &[VIP], &[]),
        (
            "include_forwarded_for is no bool",
            ".1",
            "external_route=http://a.example,include_forwarded_for=yes",
            &[VIP],
            &["com.docker.ucp.mesh.http.1: \"include_forwarded_for=yes\" is neither true nor false (ignored)"],
        ),
        (
            "include_forwarded_for is for http",
            ".1",
            "external_route=sni://a.example,include_forwarded_for=true",
            &["tls a.example -> id-web@n-ucp-hrm:8080 task tls session"],
            &["com.docker.ucp.mesh.http.1: \"include_forwarded_for=true\" does not go together with sni://, which is not opened (ignored)"],
        ),
        (
            "unknown key",
            ".1",
            "external_route=http://a.example,weight=2",
            &[VIP],
            &["com.docker.ucp.mesh.http.1: \"weight=2\" has a key that this dialect does not know (ignored)"],
        ),
        (
            "a key twice",
            ".1",
            "external_route=http://a.example,external_route=http://b.example",
            &[VIP],
            &["com.docker.ucp.mesh.http.1: \"external_route=http://b.example\" says external_route twice (ignored)"],
        ),
        (
            "no pair",
            ".1",
            "external_route=http://a.example,sticky",
            &[VIP],
            &["com.docker.ucp.mesh.http.1: \"sticky\" is not a pair of a name and a value (ignored)"],
        ),
        ("empty value", ".1", "", &[], &["com.docker.ucp.mesh.http.1: \"\" is empty (no route)"]),
    ];
    for (row, suffix, value, routes, problems) in rows {
        let label = format!("{L}{suffix}");
        let outcome = web(&[(&label, value)]).read();
        assert_eq!(lines(&outcome), *routes, "{row}");
        assert_eq!(told(&outcome.problems), *problems, "{row}");
    }
}

#[test]
fn the_port_must_be_clear() {
    let with = |ports: &[u16]| {
        Swarm::default().network("ucp-hrm", &[]).service("web", &["ucp-hrm"], ports, &[(L, "external_route=http://a.example")]).read()
    };
    assert_eq!(
        told(&with(&[]).problems),
        [format!("{L}: \"internal_port\" the service has no published port that could be meant (no route)")]
    );
    assert_eq!(told(&with(&[80, 81]).problems), [format!("{L}: \"internal_port\" the service has several published ports (no route)")]);
    // One port by TCP and by UDP is one port.
    assert_eq!(lines(&with(&[80, 80])), ["http a.example -> id-web@n-ucp-hrm:80 vip"]);
}

#[test]
fn the_network_must_be_the_meshs() {
    let label = &[(L, "external_route=http://a.example")];
    for (row, name, network_label, ok) in [
        ("labelled", "other", Some((L, "true")), true),
        ("labelled with anything", "other", Some((L, "")), true),
        ("labelled as misprinted", "other", Some(("com.docker.mesh.http", "true")), true),
        ("the mesh's own", "ucp-hrm", None, true),
        ("labelled false", "other", Some((L, "false")), false),
        ("another's", "other", None, false),
    ] {
        let labels: Vec<_> = network_label.into_iter().collect();
        let swarm = Swarm::default().network("first", &[]).network(name, &labels).service("web", &["first", name], &[80], label);
        let outcome = swarm.read();
        if ok {
            assert_eq!(lines(&outcome), [format!("http a.example -> id-web@n-{name}:80 vip")], "{row}");
        } else {
            let reason = format!("{L}: \"\" the service is on no network that is labelled {L} (no route)");
            assert_eq!(told(&outcome.problems), [reason], "{row}");
        }
    }
}

#[test]
fn behaviour() {
    let swarm = Swarm::default()
        .network("ucp-hrm", &[])
        .service("a", &["ucp-hrm"], &[80], &[(L, "external_route=http://a.example")])
        .service("b", &["ucp-hrm"], &[80], &[(L, "external_route=http://a.example")])
        .service("c", &["ucp-hrm"], &[443], &[(L, "external_route=sni://a.example")]);
    let (table, problems) = swarm.table();
    // Two services with one route: not documented; the smaller id has it.
    assert_eq!(get(&table, "http://a.example/x"), "id-a@n-ucp-hrm:80 vip");
    assert_eq!(told(&problems), [format!("{L}: \"a.example\" is claimed by service a already, by {L} (no route)")]);
    // No HTTP match is 503; TLS is opened by nobody.
    assert_eq!(get(&table, "http://b.example/"), "none");
    assert_eq!(NO_ROUTE, 503);
    assert_eq!(get(&table, "https://a.example/"), "none");
    assert!(table.find_tls(Some("b.example"), 8443).is_none());
    assert_eq!(table.find_tls(Some("a.example"), 8443).map(|r| r.origin.owner.name.as_str()), Some("c"));

    // Unless there is a default.
    let (table, _) = swarm
        .service("d", &["ucp-hrm"], &[80], &[(L, "external_route=http://"), ("com.docker.ucp.mesh.http.2", "external_route=sni://")])
        .table();
    assert_eq!(get(&table, "http://b.example/"), "id-d@n-ucp-hrm:80 vip");
    assert_eq!(get(&table, "http://a.example/"), "id-a@n-ucp-hrm:80 vip");
    for name in [None, Some("b.example")] {
        assert_eq!(table.find_tls(name, 8443).map(|r| r.origin.owner.name.as_str()), Some("d"));
    }
}

/// UCP 3 gave such services Interlock's labels; the older ones counted no more.
#[test]
fn interlocks_labels_supersede() {
    let outcome = web(&[(L, "external_route=http://a.example"), ("com.docker.lb.hosts", "b.example"), ("com.docker.lb.port", "80")]).read();
    assert!(outcome.routes.iter().all(|r| r.origin.label != L));
    assert!(told(&outcome.problems).contains(&format!("{L}: \"\" is superseded: the service has Interlock labels (ignored)")));
}

/// The examples of the HRM reference architecture.
#[test]
fn examples_in_print() {
    let session = |ports: &[u16], labels: &[(&str, &str)]| {
        Swarm::default()
            .network("back-end", &[])
            .network("ucp-hrm", &[])
            .service("session-example", &["back-end", "ucp-hrm"], ports, labels)
            .read()
    };
    // HTTP.
    let outcome = session(&[8080], &[("com.docker.ucp.mesh.http.8080", "external_route=http://shop.example.com,internal_port=8080")]);
    assert_eq!(lines(&outcome), ["http shop.example.com -> id-session-example@n-ucp-hrm:8080 vip"]);
    // Sticky sessions.
    let outcome = session(
        &[8080],
        &[("com.docker.ucp.mesh.http.8080", "external_route=http://shop.example.com,internal_port=8080,sticky_sessions=SESSION")],
    );
    assert_eq!(lines(&outcome), ["http shop.example.com -> id-session-example@n-ucp-hrm:8080 task learn SESSION"]);
    // HTTPS, with HTTP redirected.
    let outcome = session(
        &[8443],
        &[
            ("com.docker.ucp.mesh.http.1", "external_route=http://shop.example.com,redirect=https://shop.example.com"),
            ("com.docker.ucp.mesh.http.8443", "external_route=sni://shop.example.com,internal_port=8443"),
        ],
    );
    assert_eq!(
        lines(&outcome),
        [
            "http shop.example.com -> 301 https://shop.example.com…",
            "tls shop.example.com -> id-session-example@n-ucp-hrm:8443 task tls session"
        ]
    );
    assert_eq!(outcome.problems, []);
    // Two ports.
    let outcome = Swarm::default()
        .network("ucp-hrm", &[])
        .service(
            "twosite",
            &["ucp-hrm"],
            &[8000, 8001],
            &[
                ("com.docker.ucp.mesh.http.8000", "external_route=http://site1.example.com,internal_port=8000"),
                ("com.docker.ucp.mesh.http.8001", "external_route=http://site2.example.com,internal_port=8001"),
            ],
        )
        .read();
    assert_eq!(
        lines(&outcome),
        ["http site1.example.com -> id-twosite@n-ucp-hrm:8000 vip", "http site2.example.com -> id-twosite@n-ucp-hrm:8001 vip"]
    );
    // Redirection, both forms in the text.
    let outcome = web(&[
        ("com.docker.ucp.mesh.http.1", "external_route=http://example.com,redirect=https://example.com"),
        ("com.docker.ucp.mesh.http.2", "external_route=sni://example.com"),
    ])
    .read();
    assert_eq!(
        lines(&outcome),
        ["http example.com -> 301 https://example.com…", "tls example.com -> id-web@n-ucp-hrm:8080 task tls session"]
    );
    let outcome = web(&[
        ("com.docker.ucp.mesh.http.1", "external_route=http://old.example.com,redirect=http://new.example.com"),
        ("com.docker.ucp.mesh.http.2", "external_route=http://new.example.com"),
    ])
    .read();
    assert_eq!(
        lines(&outcome),
        ["http old.example.com -> 301 http://new.example.com…", "http new.example.com -> id-web@n-ucp-hrm:8080 vip"]
    );
    // The example for redirection names no network: what needs none works, the rest is told.
    let outcome = Swarm::default()
        .service(
            "lbinfo",
            &[],
            &[],
            &[
                ("com.docker.ucp.mesh.http.1", "external_route=http://oldsite.example.com,redirect=http://foo.example.com"),
                ("com.docker.ucp.mesh.http.8080", "external_route=http://foo.example.com,internal_port=8080"),
            ],
        )
        .read();
    assert_eq!(lines(&outcome), ["http oldsite.example.com -> 301 http://foo.example.com…"]);
    assert_eq!(
        told(&outcome.problems),
        ["com.docker.ucp.mesh.http.8080: \"\" the service is on no network that is labelled com.docker.ucp.mesh.http (no route)"]
    );
}
