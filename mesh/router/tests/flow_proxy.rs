//! Docker Flow Proxy: every parameter with its default, indexes, aliases, match order, and every example in print.

mod common;

use std::time::Duration;

use common::{Swarm, get, lines, told, with_headers};
use swarmesh_router::{
    Table,
    dialect::{Outcome, flow_proxy::Settings},
    model::{CertificateRef, Filter, HostMatch, Policy, REFUSED, RetryOn, Rewrite, UNAUTHORIZED},
};

fn add(swarm: Swarm, name: &str, labels: &[(&str, &str)]) -> Swarm {
    let labels: Vec<(String, &str)> = labels.iter().map(|(l, v)| (format!("com.df.{l}"), *v)).collect();
    let labels: Vec<(&str, &str)> = labels.iter().map(|(l, v)| (l.as_str(), *v)).collect();
    swarm.service(name, &["go-demo", "proxy"], &[], &labels)
}

fn networks() -> Swarm {
    Swarm::default().network("go-demo", &[]).network("proxy", &[])
}

/// What every row has besides: notice, a path and a port; `-` takes one away.
fn demo(labels: &[(&str, &str)]) -> Swarm {
    let mut all = vec![("notify", "true"), ("servicePath", "/demo"), ("port", "8080")];
    for (label, value) in labels {
        all.retain(|(l, _)| l != label);
        if *value != "-" {
            all.push((label, value));
        }
    }
    add(networks(), "go-demo", &all)
}

/// M: the match of every row; F: what it says of the client; G: the node's own users; B: where it goes.
fn short(outcome: &Outcome) -> Vec<String> {
    let shorten = |line: String| {
        line.replace("any * /demo [Plain go-demo 0]", "M")
            .replace("| forward for proto IfTls", "F")
            .replace("| global auth", "G")
            .replace("id-go-demo@n-proxy:8080 vip", "B")
    };
    lines(outcome).into_iter().map(shorten).collect()
}

/// Row, labels, routes, problems without `com.df.`.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

fn check(rows: &[Row<'_>]) {
    for (row, labels, routes, problems) in rows {
        let outcome = demo(labels).read();
        assert_eq!(short(&outcome), *routes, "{row}");
        let told: Vec<String> = told(&outcome.problems).iter().map(|p| p.replace("com.df.", "")).collect();
        assert_eq!(told, *problems, "{row}");
    }
}

const PLAIN: &str = "M F G -> B";

#[test]
fn parameters_that_choose_requests() {
    check(&[
        ("notify", &[], &[PLAIN], &[]),
        ("notify in any case", &[("notify", "True")], &[PLAIN], &[]),
        ("notify false", &[("notify", "false")], &[], &[]),
        ("notify missing", &[("notify", "-")], &[], &[]),
        ("notify with another value", &[("notify", "yes")], &[], &["notify: \"yes\" is neither true nor false (no route)"]),
        (
            "servicePath, several",
            &[("servicePath", "/demo/hello,/demo/person")],
            &["any * /demo/hello,/demo/person [Plain go-demo 0] F G -> B"],
            &[],
        ),
        ("servicePath and serviceDomain missing: 409", &[("servicePath", "-")], &[], &["servicePath: \"\" is missing (no route)"]),
        ("servicePath, wrong", &[("servicePath", "/demo,demo")], &[], &["servicePath: \"demo\" is not a path (no route)"]),
        (
            "servicePath defaults to / with a domain",
            &[("servicePath", "-"), ("serviceDomain", "acme.com")],
            &["any acme.com* / [Root go-demo 0] F G -> B"],
            &[],
        ),
        ("servicePathExclude", &[("servicePathExclude", "/demo/admin")], &["any * /demo not(/demo/admin) [Plain go-demo 0] F G -> B"], &[]),
        ("servicePathExclude, wrong", &[("servicePathExclude", "admin")], &[], &["servicePathExclude: \"admin\" is not a path (no route)"]),
        ("pathType path", &[("pathType", "path")], &["any * =/demo [Plain go-demo 0] F G -> B"], &[]),
        ("pathType path_beg", &[("pathType", "path_beg")], &[PLAIN], &[]),
        ("pathType path_end", &[("pathType", "path_end"), ("servicePath", ".png")], &["any * end .png [Plain go-demo 0] F G -> B"], &[]),
        ("pathType path_sub", &[("pathType", "path_sub"), ("servicePath", "demo")], &["any * sub demo [Plain go-demo 0] F G -> B"], &[]),
        ("pathType path_dir", &[("pathType", "path_dir"), ("servicePath", "demo")], &["any * dir demo [Plain go-demo 0] F G -> B"], &[]),
        (
            "pathType path_reg",
            &[("pathType", "path_reg"), ("servicePath", "^/demo/[0-9]+$")],
            &["any * ~^/demo/[0-9]+$ [Plain go-demo 0] F G -> B"],
            &[],
        ),
        ("pathType -i", &[("pathType", "path_beg -i")], &["any * /demo -i [Plain go-demo 0] F G -> B"], &[]),
        ("pathType -m", &[("pathType", "path -m beg")], &[PLAIN], &[]),
        (
            "pathType, its own exclusion too",
            &[("pathType", "path_end"), ("servicePathExclude", ".gif")],
            &["any * end /demo not(end .gif) [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "pathType beyond",
            &[("pathType", "url_param(x)")],
            &[],
            &["pathType: \"url_param(x)\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "path_reg that looks around",
            &[("pathType", "path_reg"), ("servicePath", "^/(?!x)")],
            &[],
            &["servicePath: \"^/(?!x)\" looks around or refers back, which cannot be done in linear time (no route)"],
        ),
        (
            "serviceDomain, several",
            &[("serviceDomain", "my-domain.com,my-other-domain.com")],
            &["any my-domain.com*,my-other-domain.com* /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        ("serviceDomain with *", &[("serviceDomain", "*domain.com")], &["any *domain.com /demo [Plain go-demo 0] F G -> B"], &[]),
        (
            "serviceDomain, one * makes all endings",
            &[("serviceDomain", "acme.com,*.acme.org")],
            &["any *acme.com,*.acme.org /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceDomain with a port",
            &[("serviceDomain", "acme.com:8080")],
            &[],
            &["serviceDomain: \"acme.com:8080\" names a port with the host (no route)"],
        ),
        (
            "serviceDomainAlgo hdr",
            &[("serviceDomain", "acme.com"), ("serviceDomainAlgo", "hdr(host)")],
            &["any acme.com /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceDomainAlgo hdr_end",
            &[("serviceDomain", "acme.com"), ("serviceDomainAlgo", "hdr_end(host)")],
            &["any *acme.com /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceDomainAlgo hdr_dom",
            &[("serviceDomain", "acme.com"), ("serviceDomainAlgo", "hdr_dom(host)")],
            &["any *.acme.com.* /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceDomainAlgo beyond",
            &[("serviceDomain", "acme.com"), ("serviceDomainAlgo", "hdr_reg(host)")],
            &[],
            &["serviceDomainAlgo: \"hdr_reg(host)\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "serviceDomainMatchAll",
            &[("serviceDomain", "acme.com"), ("serviceDomainMatchAll", "true")],
            &["any *.acme.com.* /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceHeader",
            &[("serviceHeader", "X-Version:3, name:Viktor")],
            &["any * /demo {x-version=3} {name=Viktor} [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "serviceHeader with two colons",
            &[("serviceHeader", "X:a:b")],
            &[],
            &["serviceHeader: \"X:a:b\" is not a pair of a name and a value (no route)"],
        ),
        ("userAgent", &[("userAgent", "googlebot,Amiga")], &["any * /demo {user-agent~googlebot|~Amiga} [Plain go-demo 0] F G -> B"], &[]),
        ("port missing: 400", &[("port", "-")], &[], &["port: \"\" is missing (no route)"]),
        ("port, wrong", &[("port", "http")], &[], &["port: \"http\" is not a port from 1 to 65535 (no route)"]),
        ("srcPort", &[("srcPort", "81")], &["any * /demo at 81 [Plain go-demo 0] F G -> B"], &[]),
        ("srcPort, wrong", &[("srcPort", "x")], &[], &["srcPort: \"x\" is not a port from 1 to 65535 (no route)"]),
        (
            "httpsPort: 80 and 443 are the doors without and with TLS",
            &[("httpsPort", "8443"), ("serviceHeader", "X:1"), ("httpsOnly", "true"), ("denyHttp", "true")],
            &[
                "http * /demo {x=1} [Plain go-demo 0] | https 302 F | refuse plain G -> B",
                "https * /demo [Plain go-demo 1] F G -> id-go-demo@n-proxy:8443 vip",
            ],
            &[],
        ),
        (
            "httpsPort with ports",
            &[("httpsPort", "8443"), ("srcPort", "81"), ("srcHttpsPort", "444")],
            &["any * /demo at 81 [Plain go-demo 0] F G -> B", "any * /demo at 444 [Plain go-demo 1] F G -> id-go-demo@n-proxy:8443 vip"],
            &[],
        ),
        (
            "httpsPort alone",
            &[("port", "-"), ("httpsPort", "8443")],
            &["https * /demo [Plain go-demo 1] F G -> id-go-demo@n-proxy:8443 vip"],
            &[],
        ),
        ("reqMode http", &[("reqMode", "http")], &[PLAIN], &[]),
        ("reqMode, another", &[("reqMode", "health")], &[], &["reqMode: \"health\" is not one of http, tcp, sni (no route)"]),
        ("aclName", &[("aclName", "05-go-demo-acl")], &["any * /demo [Plain 05-go-demo-acl 0] F G -> B"], &[]),
        ("isDefaultBackend", &[("isDefaultBackend", "true")], &[PLAIN, "any * [default] F G -> B"], &[]),
        (
            "isDefaultBackend, wrong",
            &[("isDefaultBackend", "yes")],
            &[PLAIN],
            &["isDefaultBackend: \"yes\" is neither true nor false (ignored)"],
        ),
        ("names in any case", &[("serviceDOMAIN", "acme.com")], &["any acme.com* /demo [Plain go-demo 0] F G -> B"], &[]),
    ]);
}

#[test]
fn parameters_that_choose_backends() {
    check(&[
        ("outboundHostname", &[("outboundHostname", "acme.example")], &["M F G -> host acme.example:8080 vip"], &[]),
        ("outboundHostname, wrong", &[("outboundHostname", "a b")], &[], &["outboundHostname: \"a b\" is not a host name (no route)"]),
        ("discoveryType DNS", &[("discoveryType", "DNS")], &["M F G -> id-go-demo@n-proxy:8080 task"], &[]),
        ("discoveryType, another", &[("discoveryType", "Overlay")], &[PLAIN], &[]),
        ("replicas", &[("replicas", "3")], &[PLAIN], &[]),
        ("replicas 0 removes", &[("replicas", "0")], &[], &[]),
        (
            "checkResolvers, skipCheck, serviceColor, xForwardedProto",
            &[("checkResolvers", "true"), ("skipCheck", "true"), ("serviceColor", "blue"), ("xForwardedProto", "true")],
            &[PLAIN],
            &[],
        ),
        ("sessionType sticky-server", &[("sessionType", "sticky-server")], &["M F G -> id-go-demo@n-proxy:8080 task insert go-demo"], &[]),
        ("sessionType, any other", &[("sessionType", "none")], &["M F G -> id-go-demo@n-proxy:8080 task"], &[]),
        ("sslVerifyNone", &[("sslVerifyNone", "true")], &["M F G -> B tls"], &[]),
        ("sslVerifyNone, wrong", &[("sslVerifyNone", "yes")], &[], &["sslVerifyNone: \"yes\" is neither true nor false (no route)"]),
        ("backendExtra, understood", &[("backendExtra", "balance leastconn")], &["M F G -> B LeastConnections"], &[]),
        ("backendExtra, the client's address", &[("backendExtra", "balance source")], &["M F G -> B SourceHash"], &[]),
        (
            "backendExtra beyond",
            &[("backendExtra", "http-request deny if { src 10.0.0.0/8 }")],
            &[],
            &["backendExtra: \"http-request deny if { src 10.0.0.0/8 }\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "templateFePath",
            &[("templateFePath", "/x.tmpl")],
            &[],
            &["templateFePath: \"/x.tmpl\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "templateBePath",
            &[("templateBePath", "/x.tmpl")],
            &[],
            &["templateBePath: \"/x.tmpl\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "userDef, distribute, scrapeNetwork, notifyService",
            &[("userDef", "x"), ("distribute", "true"), ("scrapeNetwork", "monitor"), ("notifyService", "x")],
            &[PLAIN],
            &[],
        ),
        (
            "serviceName",
            &[("serviceName", "other")],
            &[PLAIN],
            &["serviceName: \"other\" is not taken up: the service's own name is used (ignored)"],
        ),
        (
            "consulTemplateFePath",
            &[("consulTemplateFePath", "/x")],
            &[PLAIN],
            &["consulTemplateFePath: \"/x\" is not taken up: it is of a mode that went in 2017 (ignored)"],
        ),
        ("proxyInstanceName counts only if asked for", &[("proxyInstanceName", "other")], &[PLAIN], &[]),
        ("labels of Docker Flow Monitor", &[("scrapePort", "8080"), ("alertName", "mem")], &[PLAIN], &[]),
        (
            "unknown",
            &[("servicePaht", "/x"), ("users.1", "a:b")],
            &[PLAIN],
            &[
                "servicePaht: \"\" is not a label that this dialect knows (ignored)",
                "users.1: \"\" is not a label that this dialect knows (ignored)",
            ],
        ),
    ]);
}

#[test]
fn parameters_that_change_requests() {
    check(&[
        ("httpsOnly", &[("httpsOnly", "true")], &["M | https 302 F G -> B"], &[]),
        ("httpsOnly, wrong: closed", &[("httpsOnly", "yes")], &[], &["httpsOnly: \"yes\" is neither true nor false (no route)"]),
        ("httpsRedirectCode", &[("httpsOnly", "true"), ("httpsRedirectCode", "301")], &["M | https 301 F G -> B"], &[]),
        (
            "httpsRedirectCode, wrong",
            &[("httpsRedirectCode", "300")],
            &[],
            &["httpsRedirectCode: \"300\" is not a status for redirects (no route)"],
        ),
        (
            "redirectWhenHttpProto",
            &[("redirectWhenHttpProto", "true")],
            &["any * /demo {x-forwarded-proto=http} [Redirect go-demo 1] -> 302 https", PLAIN],
            &[],
        ),
        (
            "redirectUnlessHttpsProto",
            &[("redirectUnlessHttpsProto", "true"), ("httpsRedirectCode", "308")],
            &["any * /demo !{x-forwarded-proto=https} [Redirect go-demo 1] -> 308 https", PLAIN],
            &[],
        ),
        (
            "redirectFromDomain",
            &[("serviceDomain", "acme.com"), ("redirectFromDomain", "old.com,older.com")],
            &["any old.com*,older.com* [Redirect go-demo 0] -> 301 http://acme.com…", "any acme.com* /demo [Plain go-demo 0] F G -> B"],
            &[],
        ),
        (
            "redirectFromDomain without a domain",
            &[("redirectFromDomain", "old.com")],
            &[PLAIN],
            &["redirectFromDomain: \"\" does nothing without serviceDomain without * (ignored)"],
        ),
        (
            "redirectFromDomain that begins as the target does",
            &[("serviceDomain", "acme.com"), ("redirectFromDomain", "acme.co")],
            &["any acme.com* /demo [Plain go-demo 0] F G -> B"],
            &["redirectFromDomain: \"acme.co\" is not taken up: the service's own domain begins so, and it would lead to itself (ignored)"],
        ),
        ("denyHttp", &[("denyHttp", "true")], &["M F | refuse plain G -> B"], &[]),
        ("allowedMethods", &[("allowedMethods", "GET,DELETE")], &["M F | allow GET,DELETE G -> B"], &[]),
        ("deniedMethods", &[("deniedMethods", "PUT,POST")], &["M F | deny PUT,POST G -> B"], &[]),
        ("allowedMethods, wrong: closed", &[("allowedMethods", "GET,(x)")], &[], &["allowedMethods: \"(x)\" is not a method (no route)"]),
        ("verifyClientSsl", &[("verifyClientSsl", "true")], &["M F | client certificate G -> B"], &[]),
        (
            "reqPathSearchReplace",
            &[("reqPathSearchReplace", "/demo,/:^/x,/y")],
            &["M F | path //demo/ Replacement([Text(\"/\")]) | path /^/x/ Replacement([Text(\"/y\")]) G -> B"],
            &[],
        ),
        (
            "reqPathSearchReplace, wrong",
            &[("reqPathSearchReplace", "/demo")],
            &[],
            &["reqPathSearchReplace: \"/demo\" is not a pair of a name and a value (no route)"],
        ),
        (
            "reqPathSearch and reqPathReplace",
            &[("reqPathSearch", "^/demo/(.*)"), ("reqPathReplace", r"/\1")],
            &["M F | path /^/demo/(.*)/ Replacement([Text(\"/\"), Group(1)]) G -> B"],
            &[],
        ),
        (
            "reqRepSearch and reqRepReplace",
            &[("reqRepSearch", r"^([^\ ]*)\ /something/(.*)"), ("reqRepReplace", r"\1\ /demo/\2")],
            &["M F G | line /^([^\\ ]*)\\ /something/(.*)/ Replacement([Group(1), Text(\" /demo/\"), Group(2)]) -> B"],
            &[],
        ),
        (
            "reqRepReplace with a group too many",
            &[("reqRepSearch", "a"), ("reqRepReplace", r"\1")],
            &[],
            &["reqRepReplace: \"\\\\1\" refers to group 1, which the expression does not have (no route)"],
        ),
        ("reqRepReplace alone", &[("reqRepReplace", "x")], &[], &["reqRepReplace: \"x\" does nothing without reqRepSearch (no route)"]),
        (
            "headers, in the order in which they were written",
            &[
                ("addReqHeader", "X-Forwarded-Port %[dst_port],X-Forwarded-Ssl on if { ssl_fc }"),
                ("setReqHeader", "X-A \"b c\""),
                ("addResHeader", "X-Via %[env(HOSTNAME)],Server haproxy"),
                ("setResHeader", "X-B %%"),
                ("delReqHeader", "X-C"),
                ("delResHeader", "X-D unless { ssl_fc }"),
            ],
            &[
                "M F | request +x-forwarded-port: <LocalPort> | request +x-forwarded-ssl: on if tls | request =x-a: b c | response +x-via: <ProxyName> | response +server: haproxy | response =x-b: % | request -x-c | response -x-d if plain G -> B",
            ],
            &[],
        ),
        (
            "addHeader and setHeader, the old names",
            &[("addHeader", "X-A a"), ("setHeader", "X-B b")],
            &["M F | request +x-a: a | request =x-b: b G -> B"],
            &[],
        ),
        ("the new name counts", &[("addHeader", "X-A a"), ("addReqHeader", "X-B b")], &["M F | request +x-b: b G -> B"], &[]),
        (
            "headers beyond: no value is shown",
            &[("setReqHeader", "X-Key hunter2 if { src 10.0.0.1 }")],
            &[],
            &["setReqHeader: \"X-Key\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "compressionAlgo",
            &[("compressionAlgo", "gzip deflate"), ("compressionType", "text/html text/css")],
            &["M F | compress [Gzip, Deflate] text/html text/css G -> B"],
            &[],
        ),
        (
            "compressionAlgo, wrong",
            &[("compressionAlgo", "br")],
            &[PLAIN],
            &["compressionAlgo: \"br\" is not one of identity, gzip, deflate, raw-deflate (ignored)"],
        ),
    ]);
}

#[test]
fn users() {
    check(&[
        ("users", &[("users", "admin:password,other:pass:word")], &["M F | auth go-demoRealm admin:plain,other:plain G -> B"], &[]),
        ("users, by lines", &[("users", "a:b\nc:d")], &["M F | auth go-demoRealm a:plain,c:plain G -> B"], &[]),
        (
            "users without a password look it up",
            &[("users", "a,b:c"), ("usersSecret", "x")],
            &["M F | auth go-demoRealm a,b:plain secret dfp_users_x G -> B"],
            &[],
        ),
        (
            "usersSecret",
            &[("usersSecret", "x"), ("usersPassEncrypted", "true")],
            &["M F | auth go-demoRealm  secret dfp_users_x hashed G -> B"],
            &[],
        ),
        (
            "usersPassEncrypted",
            &[("users", "a:$6$salt$hash"), ("usersPassEncrypted", "true")],
            &["M F | auth go-demoRealm a:Sha512 G -> B"],
            &[],
        ),
        (
            "usersPassEncrypted without a hash: closed, and not shown",
            &[("users", "a:secret"), ("usersPassEncrypted", "true")],
            &[],
            &["users: \"a\" is no hash in crypt(3)'s form (no route)"],
        ),
        ("users without a name: closed", &[("users", ":x")], &[], &["users: \"\" is not a pair of a name and a value (no route)"]),
        ("users, nobody: closed for all", &[("users", ",")], &["M F | auth go-demoRealm  G -> B"], &[]),
        ("ignoreAuthorization", &[("users", "a:b"), ("ignoreAuthorization", "true")], &["M F -> B"], &[]),
        (
            "ignoreAuthorization, wrong: closed",
            &[("ignoreAuthorization", "yes")],
            &[PLAIN],
            &["ignoreAuthorization: \"yes\" is neither true nor false (ignored)"],
        ),
    ]);
    assert_eq!((UNAUTHORIZED, REFUSED), (401, 403));
}

fn policy(labels: &[(&str, &str)]) -> Policy {
    demo(labels).read().routes[0].policy.clone()
}

#[test]
fn times_and_connections() {
    let timeouts = |labels| policy(labels).timeouts;
    let seconds = |n| Some(Duration::from_secs(n));
    let default = timeouts(&[]);
    assert_eq!((default.connect, default.client, default.server), (seconds(5), seconds(20), seconds(20)));
    assert_eq!((default.queue, default.tunnel, default.request, default.keep_alive), (seconds(30), seconds(3600), seconds(5), seconds(15)));
    assert_eq!(timeouts(&[("timeoutServer", "60")]).server, seconds(60));
    assert_eq!(timeouts(&[("timeoutTunnel", "1800")]).tunnel, seconds(1800));
    assert_eq!(timeouts(&[("timeoutClient", "7")]).client, seconds(7));
    assert_eq!(policy(&[]).limits.connections, Some(5000));
    assert_eq!(policy(&[]).retries.on, [RetryOn::ConnectFailure]);
    for (mode, close) in [("http-keep-alive", false), ("httpclose", true), ("http-server-close", true), ("forceclose", true)] {
        assert_eq!(policy(&[("connectionMode", mode)]).close_upstream, close, "{mode}");
    }
    assert!(policy(&[("sessionType", "sticky-server")]).check_connect);
    check(&[
        ("timeoutServer, wrong", &[("timeoutServer", "1m")], &[], &["timeoutServer: \"1m\" is not a number from 1 to 86400 (no route)"]),
        (
            "connectionMode http-tunnel",
            &[("connectionMode", "http-tunnel")],
            &[PLAIN],
            &[
                "connectionMode: \"http-tunnel\" is not taken up: what follows a connection's first request would go by unseen; keep-alive is used (ignored)",
            ],
        ),
        (
            "connectionMode, wrong",
            &[("connectionMode", "x")],
            &[PLAIN],
            &["connectionMode: \"x\" is not one of http-keep-alive, http-server-close, httpclose, forceclose (ignored)"],
        ),
    ]);
}

#[test]
fn certificates_in_labels() {
    let pem = r"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----";
    let certificate = |labels: &[(&str, &str)]| demo(labels).read().routes[0].certificate.clone();
    let with_domain = certificate(&[("serviceCert", pem), ("serviceDomain", "*.acme.com,b.com")]).unwrap();
    assert_eq!(with_domain.name(), ".acme.com");
    assert!(matches!(with_domain, CertificateRef::Inline { pem, .. } if pem.lines().count() == 6));
    assert_eq!(certificate(&[("serviceCert", pem)]).unwrap().name(), "go-demo");
    check(&[(
        "serviceCert, wrong",
        &[("serviceCert", "secret")],
        &[],
        &["serviceCert: \"\" is not a certificate and a key in PEM (no route)"],
    )]);
}

#[test]
fn indexes() {
    check(&[
        (
            "two destinations; what has no number is for both",
            &[
                ("servicePath", "-"),
                ("port", "-"),
                ("servicePath.1", "/a"),
                ("port.1", "80"),
                ("servicePath.2", "/b"),
                ("port.2", "81"),
                ("serviceDomain", "x.com"),
                ("allowedMethods", "GET"),
                ("allowedMethods.2", "PUT"),
            ],
            &[
                "any x.com* /a [Plain go-demo 2] F | allow GET G -> id-go-demo@n-proxy:80 vip",
                "any x.com* /b [Plain go-demo 4] F | allow PUT G -> id-go-demo@n-proxy:81 vip",
            ],
            &[],
        ),
        ("numbered ones replace the one without", &[("servicePath.1", "/a")], &["any * /a [Plain go-demo 2] F G -> B"], &[]),
        ("any of four names makes one", &[("serviceDomain.1", "x.com")], &["any x.com* /demo [Plain go-demo 2] F G -> B"], &[]),
        (
            "one wrong leaves the other",
            &[("servicePath.1", "a"), ("servicePath.2", "/b")],
            &["any * /b [Plain go-demo 4] F G -> B"],
            &["servicePath.1: \"a\" is not a path (no route)"],
        ),
        (
            "a gap ends them",
            &[("servicePath.1", "/a"), ("servicePath.3", "/c")],
            &["any * /a [Plain go-demo 2] F G -> B"],
            &[
                "servicePath.3: \"/c\" does nothing without servicePath, serviceDomain, port or httpsPort of the same number, of 1 to 10 without a gap (ignored)",
            ],
        ),
    ]);
    let many: Vec<(String, String)> = (1..=11).map(|i| (format!("servicePath.{i}"), format!("/{i}"))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(l, v)| (l.as_str(), v.as_str())).collect();
    let outcome = demo(&many).read();
    assert_eq!((outcome.routes.len(), outcome.problems.len()), (10, 1));
    let paths = vec!["/x"; 101].join(",");
    let too_many = "servicePath: \"\" has more than 100 parts (no route)";
    check(&[("as many paths as one label may name", &[("servicePath", &paths)], &[], &[too_many])]);
}

#[test]
fn tcp_and_sni() {
    check(&[
        ("tcp", &[("reqMode", "tcp"), ("srcPort", "6379")], &["tcp * at 6379 [Plain go-demo 0] -> B"], &[]),
        ("tcp without srcPort: 400", &[("reqMode", "tcp")], &[], &["srcPort: \"\" is missing (no route)"]),
        ("tcp without port: 400", &[("reqMode", "tcp"), ("srcPort", "1"), ("port", "-")], &[], &["port: \"\" is missing (no route)"]),
        (
            "serviceGroup and balanceGroup",
            &[("reqMode", "tcp"), ("srcPort", "1"), ("serviceGroup", "g"), ("balanceGroup", "leastconn")],
            &["tcp * at 1 [Plain go-demo 0] pool g -> id-go-demo@n-proxy:8080 task LeastConnections"],
            &[],
        ),
        (
            "balanceGroup alone",
            &[("reqMode", "tcp"), ("srcPort", "1"), ("balanceGroup", "leastconn")],
            &["tcp * at 1 [Plain go-demo 0] -> B"],
            &["balanceGroup: \"leastconn\" does nothing without serviceGroup (ignored)"],
        ),
        (
            "balanceGroup beyond",
            &[("reqMode", "tcp"), ("srcPort", "1"), ("serviceGroup", "g"), ("balanceGroup", "uri")],
            &[],
            &["balanceGroup: \"uri\" is HAProxy text beyond what is understood (no route)"],
        ),
        (
            "tcp by name",
            &[("reqMode", "tcp"), ("srcPort", "1"), ("serviceDomain", "x.com"), ("serviceDomainAlgo", "req.ssl_sni")],
            &["tls x.com at 1 [Plain go-demo 0] -> B"],
            &[],
        ),
        (
            "tcp by a name that nobody sends",
            &[("reqMode", "tcp"), ("srcPort", "1"), ("serviceDomain", "x.com")],
            &[],
            &["serviceDomainAlgo: \"\" is missing (no route)"],
        ),
        (
            "sni",
            &[("reqMode", "sni"), ("srcPort", "443"), ("servicePath", "a.example,b.example"), ("pathType", "req_ssl_sni -i -m beg")],
            &["tls a.example*,b.example* at 443 [Plain go-demo 0] -> B"],
            &[],
        ),
        (
            "sni without pathType",
            &[("reqMode", "sni"), ("srcPort", "443"), ("servicePath", "a.example")],
            &[],
            &["pathType: \"\" is missing (no route)"],
        ),
        (
            "sni, pathType beyond",
            &[("reqMode", "sni"), ("srcPort", "443"), ("servicePath", "a.example"), ("pathType", "path_beg")],
            &[],
            &["pathType: \"path_beg\" is HAProxy text beyond what is understood (no route)"],
        ),
    ]);
    let tcp = policy(&[("reqMode", "tcp"), ("srcPort", "1"), ("checkTcp", "true"), ("clitcpka", "true")]);
    assert!(tcp.check_connect && tcp.client_keepalive);
    // A group is one set of all its services' tasks.
    let group = [("notify", "true"), ("reqMode", "tcp"), ("srcPort", "1"), ("port", "5"), ("serviceGroup", "g")];
    let (table, problems) = add(add(networks(), "a", &group), "b", &group).table();
    assert_eq!(problems, []);
    assert_eq!(table.find_tcp(1).unwrap().backends().unwrap().members.len(), 2);
}

#[test]
fn what_the_environment_says() {
    let with = |settings: Settings, labels: &[(&str, &str)]| {
        let mut swarm = demo(labels);
        swarm.settings.flow_proxy = settings;
        swarm.read()
    };
    let default = Settings::default;
    assert_eq!(short(&with(Settings { https_only: true, ..default() }, &[])), ["M | https 302 F G -> B"]);
    assert_eq!(
        short(&with(Settings { separator: "|".into(), ..default() }, &[("servicePath", "/a|/b")])),
        ["any * /a,/b [Plain go-demo 0] F G -> B"]
    );
    assert_eq!(
        short(&with(Settings { domain_algorithm: "hdr(host)".into(), ..default() }, &[("serviceDomain", "x.com")])),
        ["any x.com /demo [Plain go-demo 0] F G -> B"]
    );
    let ours = Settings { instance: Some("ours".into()), ..default() };
    assert_eq!(short(&with(ours.clone(), &[("proxyInstanceName", "ours")])), [PLAIN]);
    let outcome = with(ours, &[("proxyInstanceName", "other")]);
    assert_eq!(
        told(&outcome.problems),
        ["com.df.proxyInstanceName: \"\" is for cluster \"other\", which this node does not route for (ignored)"]
    );
    // Without the proxy's network, the service's first.
    let elsewhere = with(Settings { networks: vec!["x".into()], ..default() }, &[]);
    assert_eq!(short(&elsewhere), ["M F G -> id-go-demo@n-go-demo:8080 vip"]);
    let nowhere =
        Swarm::default().service("a", &[], &[], &[("com.df.notify", "true"), ("com.df.servicePath", "/"), ("com.df.port", "80")]).read();
    assert_eq!(told(&nowhere.problems), ["com.df.servicePath: \"\" the service is on no network (no route)"]);
}

#[test]
fn short_names() {
    let labels = [
        ("com.docker.stack.namespace", "shop"),
        ("com.df.notify", "true"),
        ("com.df.servicePath", "/"),
        ("com.df.port", "80"),
        ("com.df.users", "a:b"),
        ("com.df.sessionType", "sticky-server"),
        ("com.df.shortName", "true"),
    ];
    let outcome = networks().service("shop_web", &["proxy"], &[], &labels).read();
    assert_eq!(
        lines(&outcome),
        ["any * / [Root web 0] | forward for proto IfTls | auth webRealm a:plain | global auth -> id-shop_web@n-proxy:80 task insert web"]
    );
}

fn order(services: &[(&str, &[(&str, &str)])]) -> Table {
    let mut swarm = networks();
    for (name, labels) in services {
        let mut all = vec![("notify", "true"), ("port", "80")];
        all.extend_from_slice(labels);
        swarm = add(swarm, name, &all);
    }
    let (table, problems) = swarm.table();
    assert_eq!(problems, []);
    table
}

#[test]
fn the_first_in_the_list_has_it() {
    let to = |name: &str| format!("id-{name}@n-proxy:80 vip");
    // By name, and not by the longest path.
    let table = order(&[("a", &[("servicePath", "/api")]), ("b", &[("servicePath", "/api/v2")])]);
    assert_eq!(get(&table, "http://x/api/v2"), to("a"));
    let table = order(&[("a", &[("servicePath", "/api"), ("aclName", "z")]), ("b", &[("servicePath", "/api/v2")])]);
    assert_eq!(get(&table, "http://x/api/v2"), to("b"));
    // Names are compared by bytes.
    let table = order(&[("a", &[("servicePath", "/api")]), ("B", &[("servicePath", "/api/v2")])]);
    assert_eq!(get(&table, "http://x/api/v2"), to("B"));
    // Owners of / are last, whatever their name, and with all their paths.
    let table = order(&[("a", &[("servicePath", "/,/api/v2")]), ("b", &[("servicePath", "/api")])]);
    assert_eq!(get(&table, "http://x/api/v2"), to("b"));
    assert_eq!(get(&table, "http://x/other"), to("a"));
    // /.well-known is first, even of an owner of /.
    let table = order(&[("a", &[("servicePath", "/.well-known/x")]), ("z", &[("servicePath", "/,/.Well-Known/acme")])]);
    assert_eq!(get(&table, "http://x/.well-known/x"), to("a"));
    let table = order(&[("b", &[("servicePath", "/app")]), ("z", &[("servicePath", "/,/.well-known/acme")])]);
    assert_eq!(get(&table, "http://x/app"), to("z"));
    // A domain's beginning is enough, a port behind it does not matter; a host in the list before beats one that is exact.
    let table = order(&[
        ("a", &[("serviceDomain", "acme.com"), ("servicePath", "/x")]),
        ("b", &[("serviceDomain", "acme.com.evil"), ("servicePath", "/x")]),
    ]);
    assert_eq!(get(&table, "http://acme.com.evil/x"), to("a"));
    assert_eq!(get(&table, "http://ACME.com:8080/x"), to("a"));
    assert_eq!(get(&table, "http://www.acme.com/x"), "none");
    // Paths are case-sensitive.
    assert_eq!(get(&table, "http://acme.com/X"), "none");
    // Redirects come before all backends.
    let table = order(&[("a", &[("servicePath", "/x")]), ("b", &[("serviceDomain", "new.com"), ("redirectFromDomain", "old.com")])]);
    assert_eq!(get(&table, "http://old.com/x"), "301 http://new.com…");
    // All conditions of one must hold.
    let table = order(&[("a", &[("servicePath", "/x"), ("serviceHeader", "X-V:1"), ("userAgent", "moz")])]);
    assert_eq!(with_headers(&table, "GET", "http://x/x", &[("x-v", "1"), ("User-Agent", "Mozilla")]), to("a"));
    assert_eq!(with_headers(&table, "GET", "http://x/x", &[("x-v", "2"), ("User-Agent", "Mozilla")]), "none");
    assert_eq!(with_headers(&table, "GET", "http://x/x", &[("x-v", "1"), ("User-Agent", "curl")]), "none");
}

/// The examples of both articles.
#[test]
fn examples_in_print() {
    let go_demo = |labels: &[(&str, &str)]| {
        let mut all = vec![("notify", "true"), ("distribute", "true"), ("servicePath", "/demo"), ("port", "8080")];
        for (label, value) in labels {
            all.retain(|(l, _)| l != label);
            all.push((label, value));
        }
        let (table, problems) = add(networks(), "go-demo", &all).table();
        assert_eq!(problems, []);
        table
    };
    let there = "id-go-demo@n-proxy:8080 vip";
    let table = go_demo(&[]);
    assert_eq!(get(&table, "http://192.168.99.100/demo/hello"), there);
    assert_eq!(get(&table, "http://192.168.99.100/other"), "none");
    assert_eq!(get(&table, "https://192.168.99.100.xip.io/demo/hello"), there);
    let table = go_demo(&[("servicePath", "/demo/hello,/demo/person")]);
    assert_eq!(get(&table, "http://a/demo/person/1"), there);
    assert_eq!(get(&table, "http://a/demo/x"), "none");
    let table = go_demo(&[("serviceDomain", "my-domain.com,my-other-domain.com")]);
    assert_eq!(get(&table, "http://my-other-domain.com/demo/x"), there);
    assert_eq!(get(&table, "http://acme.com/demo/x"), "none");
    let table = go_demo(&[("serviceDomain", "*domain.com")]);
    assert_eq!(get(&table, "http://my-other-domain.com/demo/x"), there);
    assert_eq!(table.routes()[0].matching.hosts, [HostMatch::SuffixOrWhole("domain.com".into())]);
    // Rewriting.
    let table =
        go_demo(&[("servicePath", "/something"), ("reqRepSearch", r"^([^\ ]*)\ /something/(.*)"), ("reqRepReplace", r"\1\ /demo/\2")]);
    assert_eq!(get(&table, "http://a/something/hello"), there);
    let rewrite: &Rewrite = table.routes()[0].filters.iter().find_map(|f| if let Filter::Rewrite(r) = f { Some(r) } else { None }).unwrap();
    assert_eq!(rewrite.request_line("GET", "/something/hello"), Ok(Some(("GET".into(), "/demo/hello".into()))));
    // Users.
    let table = go_demo(&[("users", "admin:password")]);
    assert!(
        table.routes()[0]
            .filters
            .iter()
            .any(|f| matches!(f, Filter::BasicAuth(auth) if auth.realm == "go-demoRealm" && auth.users[0].name == "admin"))
    );
}
