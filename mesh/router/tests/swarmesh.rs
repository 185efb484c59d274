//! Our own dialect: every key and every refusal. That it can say what the others say is in `equivalents.rs`.

mod common;

use std::time::Duration;

use common::{Swarm, get, lines, told};
use swarmesh_router::model::{ProxyProtocol, RetryOn};

/// Keys of the route `r`, with a host and a port unless they say otherwise (`-` takes away).
fn web(keys: &[(&str, &str)]) -> Swarm {
    service(Swarm::default().network("net", &[]), "web", keys)
}

fn service(swarm: Swarm, name: &str, keys: &[(&str, &str)]) -> Swarm {
    let mut all = vec![("host", "a.example"), ("port", "80"), ("forwarded", "none")];
    for (key, value) in keys {
        all.retain(|(k, _)| k != key);
        if *value != "-" {
            all.push((key, value));
        }
    }
    let all: Vec<(String, &str)> = all.iter().map(|(k, v)| (format!("swarmesh.http.r.{k}"), *v)).collect();
    let all: Vec<(&str, &str)> = all.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    swarm.service(name, &["net"], &[], &all)
}

type Row<'a> = (&'a [(&'a str, &'a str)], &'a str);

/// `B` is the service's tasks at port 80.
#[test]
fn every_key() {
    let rows: &[Row<'_>] = &[
        (&[], "any a.example -> B"),
        (&[("forwarded", "-")], "any a.example | forward for proto Set -> B"),
        // Match.
        (
            &[("host", "a.example, *.b.example,*c.example,d.*,*.e.*")],
            "any a.example -> B; any ?*.b.example -> B; any *c.example -> B; any d.* -> B; any *.e.* -> B",
        ),
        (
            &[("path", "/s,=/e,/p*,*.end,*part*,*/dir/*")],
            "any a.example /s/ -> B; any a.example =/e -> B; any a.example /p -> B; any a.example end .end -> B; any a.example sub part -> B; any a.example dir /dir/ -> B",
        ),
        (&[("path", "~^/v[0-9]{1,2}/")], "any a.example ~^/v[0-9]{1,2}/ -> B"),
        (&[("path", "/a"), ("ignore-case", "true")], "any a.example /a/ -i -> B"),
        (&[("not-path", "/x,=/y")], "any a.example not(/x/,=/y) -> B"),
        (
            &[("header.X-Version", "2"), ("header.x-any", "*"), ("header.x-part", "*p*"), ("header.x-re", "~^v"), ("not-header.x-no", "1")],
            "any a.example {x-version=2} {x-any} {x-part~p} {x-re/^v/} !{x-no=1} -> B",
        ),
        (&[("user-agent", "moz,curl")], "any a.example {user-agent~moz|~curl} -> B"),
        (&[("method", "GET,HEAD")], "any a.example GET|HEAD -> B"),
        (&[("listen", "http")], "http a.example -> B"),
        (&[("listen", "https")], "https a.example -> B"),
        (&[("listen", "tls"), ("forwarded", "-"), ("sticky", "tls-session")], "tls a.example -> B tls session"),
        (&[("listen", "tcp"), ("forwarded", "-"), ("host", "-"), ("listen-port", "5432")], "tcp * at 5432 -> B"),
        (&[("listen-port", "8080")], "any a.example at 8080 -> B"),
        (&[("host", "-"), ("path", "/x")], "any * /x/ -> B"),
        (&[("host", "-"), ("default", "true")], "any * [default] -> B"),
        (&[("priority", "-5")], "any a.example [-5] -> B"),
        (&[("pool", "shop")], "any a.example pool shop -> B"),
        // Action.
        (&[("port", "-"), ("redirect", "https://b.example")], "any a.example -> 302 https://b.example…"),
        (&[("port", "-"), ("redirect", "301 https://b.example/x")], "any a.example -> 301 https://b.example/x"),
        (&[("port", "-"), ("redirect", "308 https"), ("listen", "http")], "http a.example -> 308 https"),
        (&[("port", "-"), ("status", "404")], "any a.example -> 404"),
        // Backends.
        (&[("backend", "vip")], "any a.example -> id-web@n-net:80 vip"),
        (&[("backend", "task")], "any a.example -> B"),
        (&[("network", "net")], "any a.example -> B"),
        (&[("outbound-host", "Other.example")], "any a.example -> host other.example:80 task"),
        (&[("weight", "5")], "any a.example -> B x5"),
        (&[("weight", "0")], "any a.example -> B x0"),
        (&[("protocol", "h2c")], "any a.example -> B h2c"),
        (&[("protocol", "h2"), ("backend-tls", "verify")], "any a.example -> B h2 tls verified"),
        (&[("backend-tls", "insecure"), ("backend-name", "b.example")], "any a.example -> B tls as b.example"),
        (&[("backend-tls", "off")], "any a.example -> B"),
        (&[("balance", "rr")], "any a.example -> B"),
        (&[("balance", "lc")], "any a.example -> B LeastConnections"),
        (&[("balance", "random")], "any a.example -> B Random"),
        (&[("balance", "ip-hash")], "any a.example -> B IpHash"),
        (&[("balance", "source-hash")], "any a.example -> B SourceHash"),
        (&[("sticky", "none")], "any a.example -> B"),
        (&[("sticky", "learn:S")], "any a.example -> B learn S"),
        (&[("sticky", "hash:S")], "any a.example -> B hash S"),
        (&[("sticky", "insert:S")], "any a.example -> B insert S"),
        // Filters, in their order.
        (&[("https-only", "true")], "any a.example | https 308 -> B"),
        (&[("https-only", "302")], "any a.example | https 302 -> B"),
        (&[("https-only", "false")], "any a.example -> B"),
        (&[("refuse-plain", "true"), ("client-certificate", "true")], "any a.example | refuse plain | client certificate -> B"),
        (&[("allow-methods", "GET"), ("deny-methods", "PUT")], "any a.example | allow GET | deny PUT -> B"),
        (&[("auth.users", "a:b,c"), ("auth.secret", "s"), ("auth.realm", "Shop")], "any a.example | auth Shop a:plain,c secret s -> B"),
        (
            &[("auth.users", "a:$6$s$h"), ("auth.hashed", "true"), ("auth.keep", "true"), ("auth.global", "true")],
            "any a.example | auth web a:Sha512 kept | global auth -> B",
        ),
        (&[("forwarded", "for,real-ip,port,request-id,proto-pass")], "any a.example | forward for real-ip proto Pass port request-id -> B"),
        (&[("forwarded", "proto-if-tls")], "any a.example | forward proto IfTls -> B"),
        (
            &[
                ("request-header.add.X-A", "1 %[src]"),
                ("request-header.set-if-tls.X-B", "2"),
                ("request-header.delete.X-C", "true"),
                ("response-header.set-if-plain.X-D", "3"),
            ],
            "any a.example | request +x-a: 1 <ClientAddress> | request -x-c | request =x-b: 2 if tls | response =x-d: 3 if plain -> B",
        ),
        (&[("strip-prefix", "/app"), ("append-slash", "true")], "any a.example | slash below /app | strip /app -> B"),
        (
            &[("rewrite", r"^/a/(.*) -> /b/\1"), ("rewrite-line", r"^GET (.*) -> HEAD \1")],
            "any a.example | path /^/a/(.*)/ Replacement([Text(\"/b/\"), Group(1)]) | line /^GET (.*)/ Replacement([Text(\"HEAD \"), Group(1)]) -> B",
        ),
        (
            &[("compress", "gzip,deflate,raw-deflate,identity"), ("compress-types", "text/html,text/css")],
            "any a.example | compress [Gzip, Deflate, RawDeflate, Identity] text/html text/css -> B",
        ),
        (&[("info-headers", "true")], "any a.example | info -> B"),
        (&[("hsts", "3600,subdomains,preload")], "any a.example | hsts 3600 true true -> B"),
        // TLS.
        (&[("tls.certificate", "c"), ("tls.key", "k")], "any a.example -> B with secret c with k"),
        (&[("tls.certificate", "c")], "any a.example -> B with secret c with itself"),
    ];
    for (keys, expected) in rows {
        let outcome = web(keys).read();
        assert_eq!(told(&outcome.problems), [] as [&str; 0], "{keys:?}");
        assert_eq!(lines(&outcome).join("; ").replace("id-web@n-net:80 task", "B"), *expected, "{keys:?}");
    }
}

#[test]
fn policy() {
    let policy = web(&[
        ("timeout.connect", "1"),
        ("timeout.client", "2"),
        ("timeout.server", "3"),
        ("timeout.tunnel", "4"),
        ("timeout.request", "5"),
        ("timeout.keep-alive", "6"),
        ("timeout.queue", "7"),
        ("limit.body", "10m"),
        ("limit.connections", "100"),
        ("retries", "2"),
        ("retry-on", "connect,timeout,invalid,502"),
        ("eject", "3/30"),
        ("proxy-protocol", "v2"),
        ("close-upstream", "true"),
        ("client-keepalive", "true"),
        ("check-connect", "true"),
    ])
    .read()
    .routes
    .pop()
    .unwrap()
    .policy;
    let t = &policy.timeouts;
    let times = [t.connect, t.client, t.server, t.tunnel, t.request, t.keep_alive, t.queue];
    assert_eq!(times, [1, 2, 3, 4, 5, 6, 7].map(|n| Some(Duration::from_secs(n))));
    assert_eq!((policy.limits.body, policy.limits.connections), (Some(10 << 20), Some(100)));
    assert_eq!(policy.retries.attempts, Some(2));
    assert_eq!(policy.retries.on, [RetryOn::ConnectFailure, RetryOn::Timeout, RetryOn::InvalidAnswer, RetryOn::Status(502)]);
    let ejection = policy.ejection.unwrap();
    assert_eq!((ejection.failures, ejection.time), (3, Duration::from_secs(30)));
    assert_eq!(policy.proxy_protocol, Some(ProxyProtocol::V2));
    assert!(policy.close_upstream && policy.client_keepalive && policy.check_connect);
    assert_eq!(web(&[("retries", "1")]).read().routes[0].policy.retries.on, [RetryOn::ConnectFailure]);
}

#[test]
fn a_mistake_costs_its_route_and_no_other() {
    let many = vec!["/x"; 101].join(",");
    for (key, value, told_as) in [
        ("path", many.as_str(), "\"<many>\" has more than 100 parts"),
        ("host", "a b", "\"a b\" is not a host name"),
        ("host", "a.example:80", "\"a.example:80\" names a port with the host"),
        ("host", "*", "\"*\" is not a host name"),
        ("host", "-", "\"\" is missing"),
        ("host", "", "\"\" is empty"),
        ("host", ",", "\"\" is empty"),
        ("path", "x", "\"x\" is not a path"),
        ("path", "*", "\"*\" is not a path"),
        ("path", "~(", "\"~(\" is no regular expression: unclosed group"),
        ("not-path", "x", "\"x\" is not a path"),
        ("ignore-case", "yes", "\"yes\" is neither true nor false"),
        ("header.a b", "x", "\"x\" is not a header's name"),
        ("header.x", "", "\"\" is empty"),
        ("method", "get", "\"get\" is not a method"),
        ("listen", "quic", "\"quic\" is not one of http, https, any, tls, tcp"),
        ("listen-port", "0", "\"0\" is not a port from 1 to 65535"),
        ("priority", "high", "\"high\" is not one of the numbers from -1000 to 1000"),
        ("default", "x", "\"x\" is neither true nor false"),
        ("port", "x", "\"x\" is not a port from 1 to 65535"),
        ("port", "-", "\"\" the service has no published port that could be meant"),
        ("network", "other", "\"other\" the service is not on this network; it is on net"),
        ("backend", "dns", "\"dns\" is not one of vip, task"),
        ("weight", "-1", "\"-1\" is not a number from 0 to 1000"),
        ("protocol", "h3", "\"h3\" is not one of http1, h2c, h2"),
        ("protocol", "h2", "\"\" does nothing without swarmesh.http.r.backend-tls"),
        ("backend-tls", "true", "\"true\" is not one of off, verify, insecure"),
        ("backend-name", "b.example", "\"b.example\" does nothing without swarmesh.http.r.backend-tls"),
        ("outbound-host", "a/b", "\"a/b\" is not a host name"),
        ("balance", "uri", "\"uri\" is not one of rr, lc, random, ip-hash, source-hash"),
        ("sticky", "cookie", "\"cookie\" is not one of none, learn:COOKIE, hash:COOKIE, insert:COOKIE, tls-session"),
        ("sticky", "hash:a b", "\"hash:a b\" is not a cookie's name"),
        ("sticky", "tls-session", "\"\" does not go together with swarmesh.http.r.listen"),
        ("redirect", "b.example", "\"b.example\" is not an http or https URL"),
        ("redirect", "304 https", "\"304 https\" is not a status for redirects"),
        ("status", "200", "\"200\" is not a number from 400 to 599"),
        ("https-only", "maybe", "\"maybe\" is not a status for redirects"),
        ("allow-methods", "a", "\"a\" is not a method"),
        // No password is shown.
        ("auth.users", ":secret", "\"\" is not a pair of a name and a value"),
        ("auth.realm", "a\"b", "\"a\\\"b\" is not a header's name"),
        ("forwarded", "all", "\"all\" is not one of none, for, real-ip, port, request-id, proto, proto-if-tls, proto-pass"),
        ("request-header.add", "x", "\"\" is not a label that this dialect knows"),
        ("request-header.put.x", "x", "\"\" is not one of add.NAME=VALUE, set.NAME=VALUE, delete.NAME=true"),
        ("request-header.set.content-length", "5", "\"\" is not taken up: this header says where a message ends or to whom it goes"),
        ("request-header.set.x", "%[env(HOME)]", "\"\" is HAProxy text beyond what is understood"),
        ("strip-prefix", "app", "\"app\" is not a path"),
        ("append-slash", "true", "\"\" is not a label that this dialect knows"),
        ("rewrite", "/a", "\"/a\" is not a pair of a name and a value"),
        ("rewrite", r"/a -> \1", r#""/a -> \\1" refers to group 1, which the expression does not have"#),
        ("compress", "br", "\"br\" is not one of identity, gzip, deflate, raw-deflate"),
        ("hsts", "x", "\"x\" is not a number from 0 to 315360000"),
        ("hsts", "1,all", "\"1,all\" is not one of subdomains, preload"),
        ("tls.key", "k", "\"k\" does nothing without swarmesh.http.r.tls.certificate"),
        ("timeout.server", "1m", "\"1m\" is not a number from 1 to 86400"),
        ("limit.body", "1t", "\"1t\" is not a number from 0 to 1099511627776"),
        ("limit.body", "18446744073709551615g", "\"18446744073709551615g\" is not a number from 0 to 1099511627776"),
        ("limit.connections", "0", "\"0\" is not a number from 1 to 1000000"),
        ("retries", "x", "\"x\" is not a number from 0 to 100"),
        ("retry-on", "404", "\"404\" is not a number from 500 to 599"),
        ("eject", "3", "\"3\" is not a pair of a name and a value"),
        ("proxy-protocol", "v3", "\"v3\" is not one of off, v1, v2"),
        ("close-upstream", "x", "\"x\" is neither true nor false"),
        ("atuh.users", "a:b", "\"\" is not a label that this dialect knows"),
    ] {
        let shown = format!("{}…", many.chars().take(200).collect::<String>());
        // Another route of the same service, which has nothing wrong.
        let mut swarm = web(&[(key, value)]);
        let mut service = (**swarm.snapshot.services.values().next().unwrap()).clone();
        for (k, v) in [("host", "other.example"), ("port", "81"), ("forwarded", "none")] {
            service.labels.insert(format!("swarmesh.http.z.{k}"), v.to_owned());
        }
        swarm.snapshot.insert_service(service);
        let outcome = swarm.read();
        assert_eq!(
            told(&outcome.problems),
            [format!("swarmesh.http.r.{key}: {} (no route)", told_as.replace("<many>", &shown))],
            "{key}={value}"
        );
        assert_eq!(lines(&outcome), ["any other.example -> id-web@n-net:81 task"], "{key}={value}");
    }
    let outcome = Swarm::default()
        .network("net", &[])
        .service("web", &["net"], &[], &[("swarmesh.http.web", "x"), ("swarmesh.http..host", "x")])
        .read();
    assert_eq!(outcome.problems.len(), 2);
}

#[test]
fn what_is_not_opened_has_nothing_in_it() {
    for (listen, key, value) in [
        ("tls", "path", "/x"),
        ("tls", "header.x", "1"),
        ("tls", "method", "GET"),
        ("tls", "not-path", "/x"),
        ("tls", "auth.users", "a:b"),
        ("tls", "tls.certificate", "c"),
        ("tls", "redirect", "https"),
        ("tls", "forwarded", "for"),
        ("tcp", "host", "a.example"),
    ] {
        let mut keys = vec![("listen", listen), ("forwarded", "-"), ("listen-port", "1"), (key, value)];
        if key == "redirect" {
            keys.push(("port", "-"));
        }
        let outcome = web(&keys).read();
        assert_eq!(outcome.routes, [], "{listen} {key}");
        let expected = "swarmesh.http.r.listen: \"\" does not go together with labels about what is not looked at there (no route)";
        assert_eq!(told(&outcome.problems), [expected], "{listen} {key}");
    }
    let outcome = web(&[("listen", "tls"), ("sticky", "learn:S")]).read();
    assert_eq!(told(&outcome.problems), ["swarmesh.http.r.sticky: \"\" does not go together with swarmesh.http.r.listen (no route)"]);
    let outcome = web(&[("backend", "vip"), ("sticky", "learn:S")]).read();
    assert_eq!(told(&outcome.problems), ["swarmesh.http.r.sticky: \"\" does not go together with swarmesh.http.r.backend (no route)"]);
    let outcome = web(&[("redirect", "https"), ("listen", "http")]).read();
    assert_eq!(told(&outcome.problems), ["swarmesh.http.r.port: \"\" does not go together with swarmesh.http.r.redirect (no route)"]);
    let outcome = web(&[("listen", "tcp"), ("host", "-")]).read();
    assert_eq!(told(&outcome.problems), ["swarmesh.http.r.listen-port: \"\" is missing (no route)"]);
}

#[test]
fn pools_have_weights() {
    let swarm = service(web(&[("pool", "shop"), ("weight", "9")]), "canary", &[("pool", "shop")]);
    let (table, problems) = swarm.table();
    assert_eq!(problems, []);
    assert_eq!(get(&table, "http://a.example/"), "id-canary@n-net:80 task + id-web@n-net:80 task x9");
    // Who does not name the pool gets no share of it.
    let (table, problems) = service(web(&[("pool", "shop")]), "other", &[("pool", "another")]).table();
    assert_eq!(get(&table, "http://a.example/"), "id-other@n-net:80 task");
    assert_eq!(
        told(&problems),
        ["swarmesh.http.r.host: \"a.example\" is claimed by service other already, by swarmesh.http.r.host (no route)"]
    );
}
