//! Labels broken in every way cost their own service and nobody else.

mod common;

use common::{Swarm, get};
use proptest::{collection::vec, prelude::*, sample::select};

const OURS: &str = "id-good@n-net:80 task";

/// A label of each kind there is, in all dialects.
const LABELS: [&str; 112] = [
    "com.docker.ucp.mesh.http",
    "com.docker.ucp.mesh.http.1",
    "com.docker.lb.hosts",
    "com.docker.lb.port",
    "com.docker.lb.network",
    "com.docker.lb.context_root",
    "com.docker.lb.context_root_rewrite",
    "com.docker.lb.ssl_cert",
    "com.docker.lb.ssl_key",
    "com.docker.lb.ssl_passthrough",
    "com.docker.lb.sticky_session_cookie",
    "com.docker.lb.ip_hash",
    "com.docker.lb.backend_mode",
    "com.docker.lb.default_backend",
    "com.docker.lb.redirects",
    "com.docker.lb.websocket_endpoints",
    "com.docker.lb.service_cluster",
    "com.docker.lb.ssl_backend",
    "com.docker.lb.ssl_backend_tls_verify",
    "com.docker.lb.ssl_only",
    "com.df.notify",
    "com.df.servicePath",
    "com.df.servicePath.1",
    "com.df.servicePathExclude",
    "com.df.pathType",
    "com.df.serviceDomain",
    "com.df.serviceDomain.1",
    "com.df.serviceDomainAlgo",
    "com.df.serviceDomainMatchAll",
    "com.df.serviceHeader",
    "com.df.userAgent",
    "com.df.port",
    "com.df.port.1",
    "com.df.httpsPort",
    "com.df.srcPort",
    "com.df.srcHttpsPort",
    "com.df.reqMode",
    "com.df.aclName",
    "com.df.isDefaultBackend",
    "com.df.outboundHostname",
    "com.df.discoveryType",
    "com.df.replicas",
    "com.df.sessionType",
    "com.df.connectionMode",
    "com.df.httpsOnly",
    "com.df.httpsRedirectCode",
    "com.df.redirectWhenHttpProto",
    "com.df.redirectUnlessHttpsProto",
    "com.df.redirectFromDomain",
    "com.df.denyHttp",
    "com.df.allowedMethods",
    "com.df.deniedMethods",
    "com.df.verifyClientSsl",
    "com.df.sslVerifyNone",
    "com.df.users",
    "com.df.usersSecret",
    "com.df.usersPassEncrypted",
    "com.df.ignoreAuthorization",
    "com.df.reqPathSearchReplace",
    "com.df.reqPathSearch",
    "com.df.reqPathReplace",
    "com.df.reqRepSearch",
    "com.df.reqRepReplace",
    "com.df.addReqHeader",
    "com.df.setResHeader",
    "com.df.delReqHeader",
    "com.df.compressionAlgo",
    "com.df.timeoutServer",
    "com.df.serviceGroup",
    "com.df.balanceGroup",
    "com.df.serviceCert",
    "com.df.backendExtra",
    "com.df.templateFePath",
    "swarmesh.http.r.host",
    "swarmesh.http.r.path",
    "swarmesh.http.r.not-path",
    "swarmesh.http.r.header.x",
    "swarmesh.http.r.user-agent",
    "swarmesh.http.r.method",
    "swarmesh.http.r.listen",
    "swarmesh.http.r.listen-port",
    "swarmesh.http.r.priority",
    "swarmesh.http.r.default",
    "swarmesh.http.r.pool",
    "swarmesh.http.r.port",
    "swarmesh.http.r.network",
    "swarmesh.http.r.backend",
    "swarmesh.http.r.weight",
    "swarmesh.http.r.protocol",
    "swarmesh.http.r.backend-tls",
    "swarmesh.http.r.outbound-host",
    "swarmesh.http.r.balance",
    "swarmesh.http.r.sticky",
    "swarmesh.http.r.redirect",
    "swarmesh.http.r.status",
    "swarmesh.http.r.https-only",
    "swarmesh.http.r.auth.users",
    "swarmesh.http.r.auth.secret",
    "swarmesh.http.r.forwarded",
    "swarmesh.http.r.request-header.set.x",
    "swarmesh.http.r.strip-prefix",
    "swarmesh.http.r.rewrite",
    "swarmesh.http.r.rewrite-line",
    "swarmesh.http.r.compress",
    "swarmesh.http.r.hsts",
    "swarmesh.http.r.tls.certificate",
    "swarmesh.http.r.tls.key",
    "swarmesh.http.r.timeout.server",
    "swarmesh.http.r.limit.body",
    "swarmesh.http.r.retry-on",
    "swarmesh.http.r.eject",
    "interlock.hostname",
];

/// What makes labels matter, so that others are read at all.
const GOOD: [(&str, &str); 9] = [
    ("com.docker.lb.hosts", "bad.example"),
    ("com.docker.lb.port", "80"),
    ("com.df.notify", "true"),
    ("com.df.servicePath", "/"),
    ("com.df.port", "80"),
    ("com.docker.ucp.mesh.http", "external_route=http://bad.example,internal_port=80"),
    ("swarmesh.http.r.host", "bad.example"),
    ("swarmesh.http.r.path", "/"),
    ("swarmesh.http.r.port", "80"),
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "",
            " ",
            ",",
            ";",
            ":",
            "=",
            "/",
            "//",
            "*",
            ".",
            "..",
            "*.",
            "*.*",
            "~",
            "~(",
            "\\",
            "%",
            "%[",
            "%[]",
            "\"",
            "-",
            "-1",
            "0",
            "65536",
            "99999999999999999999",
            "true",
            "false",
            "http://",
            "sni://",
            "http://:0/",
            "http://[::1]:80",
            "a,b",
            "http://a,http://b;",
            "external_route=",
            "a:b:c",
            "a -> \\9",
            "$6$",
            "301 ",
            "x\r\ny: z",
            "\u{0}",
            "\u{1f996}",
            "(?=x)",
            "((((a{99}){99}){99}){99})",
            "bad.example",
            "good.example.",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,40}",
        "[-a-zA-Z0-9./*:,;=~ %\\[\\]{}()\\\\\"]{0,60}",
        (1usize..3).prop_map(|n| "a.".repeat(n * 3000)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn others_are_untouched(
        broken in vec((select(LABELS.to_vec()), value()), 1..6),
        with_good in vec(any::<bool>(), GOOD.len()),
    ) {
        let good = [("com.docker.lb.hosts", "good.example"), ("com.docker.lb.port", "80")];
        let mut labels: Vec<(&str, &str)> = GOOD.iter().zip(with_good).filter(|(_, w)| *w).map(|(g, _)| *g).collect();
        labels.extend(broken.iter().map(|(label, value)| (*label, value.as_str())));
        let swarm = Swarm::default()
            .network("net", &[("com.docker.ucp.mesh.http", "true")])
            // The smaller id: if two claim one host, it is not the broken one's.
            .service("good", &["net"], &[], &good)
            .service("zbroken", &["net"], &[80], &labels);
        let (table, problems) = swarm.table();
        prop_assert!(get(&table, "http://good.example/x").starts_with(OURS), "{:?}", table);
        for problem in &problems {
            prop_assert_eq!(&problem.owner.name, "zbroken");
            // Named and shown without anything that ends a line of a log or a terminal.
            prop_assert!(!problem.reason.remedy().is_empty());
            let line = problem.to_string();
            prop_assert!(line.starts_with("service zbroken: ") && !line.contains(['\n', '\r', '\u{0}']), "{:?}", line);
        }
    }
}
