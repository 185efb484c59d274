//! The wishes, each in the dialects that can say it.

use swarmesh_router::model::Dialect::{self, FlowProxy as Df, Hrm, Interlock as Lb, Interlock1 as Old, Swarmesh as Own};

/// Keys without the dialect's prefix. HRM's are values; of our own, `r.` is the route.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    /// Services with their labels, by dialect. Who is not here cannot say it.
    pub(crate) says: &'a [(Dialect, &'a [Labels<'a>])],
    /// `METHOD URL [Name:value]…`, `tls NAME PORT`, `tcp PORT`, `certificate NAME`; and the decision.
    pub(crate) asks: &'a [(&'a str, &'a str)],
    /// Dialect, request, and what it decides instead.
    pub(crate) differs: &'a [(Dialect, &'a str, &'a str)],
}

/// What a dialect does to every request that it sends on or redirects, whatever its labels say; taken out before comparing. The
/// first row is about these.
pub(crate) const STANDING: [(Dialect, &[&str]); 5] = [
    (Hrm, &[]),
    (Lb, &["told for,real-ip,request-id", "info"]),
    (Df, &["told for,proto-if-tls", "node-users"]),
    (Old, &["told for,real-ip,proto-pass", "by task"]),
    (Own, &[]),
];

pub(crate) const ROWS: &[Row<'_>] = &[
    Row {
        name: "host",
        says: &[
            (Hrm, &[&[("1", "external_route=http://a.example,internal_port=80")]]),
            (Lb, &[&[("hosts", "a.example"), ("port", "80"), ("backend_mode", "vip")]]),
            (Df, &[&[("serviceDomain", "a.example"), ("serviceDomainAlgo", "hdr(host)"), ("port", "80"), ("srcPort", "80")]]),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "80")]]),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("backend", "vip"), ("listen", "http")]]),
        ],
        asks: &[
            ("GET http://a.example/", "to 80 / by vip"),
            ("PUT http://A.Example:80/x?y", "to 80 /x by vip"),
            ("GET https://a.example/", "none"),
            ("GET http://b.example/", "none"),
            ("GET http://a.example.b/", "none"),
            ("GET http://x.a.example/", "none"),
        ],
        differs: &[],
    },
    Row {
        name: "several hosts",
        says: &[
            (Hrm, &[&[("1", "external_route=http://a.example,internal_port=80"), ("2", "external_route=http://b.test,internal_port=80")]]),
            (Lb, &[&[("hosts", "a.example,b.test"), ("port", "80"), ("backend_mode", "vip")]]),
            (Df, &[&[("serviceDomain", "a.example,b.test"), ("serviceDomainAlgo", "hdr(host)"), ("port", "80")]]),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("alias_domain", "b.test"), ("port", "80")]]),
            (Own, &[&[("host", "a.example,b.test"), ("port", "80"), ("backend", "vip")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip"), ("GET http://b.test/", "to 80 / by vip"), ("GET http://c.example/", "none")],
        differs: &[],
    },
    Row {
        name: "hosts below a domain",
        says: &[
            (Df, &[&[("serviceDomain", "*.a.example"), ("port", "80")]]),
            (Own, &[&[("host", "*.a.example"), ("port", "80"), ("backend", "vip")]]),
        ],
        asks: &[
            ("GET http://x.a.example/", "to 80 / by vip"),
            ("GET http://x.y.a.example/", "to 80 / by vip"),
            ("GET http://a.example/", "none"),
            ("GET http://x.a.example.b/", "none"),
        ],
        differs: &[],
    },
    Row {
        name: "hosts by their beginning",
        says: &[(Df, &[&[("serviceDomain", "a.ex"), ("port", "80")]]), (Own, &[&[("host", "a.ex*"), ("port", "80"), ("backend", "vip")]])],
        asks: &[("GET http://a.example/", "to 80 / by vip"), ("GET http://b.a.example/", "none")],
        differs: &[],
    },
    Row {
        name: "two ports of one service",
        says: &[
            (
                Hrm,
                &[&[("1", "external_route=http://a.example,internal_port=80"), ("2", "external_route=http://b.example,internal_port=81")]],
            ),
            (
                Df,
                &[&[
                    ("serviceDomain.1", "a.example"),
                    ("port.1", "80"),
                    ("serviceDomain.2", "b.example"),
                    ("port.2", "81"),
                    ("serviceDomainAlgo", "hdr(host)"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("s.host", "b.example"),
                    ("s.port", "81"),
                    ("s.backend", "vip"),
                    ("s.forwarded", "none"),
                ]],
            ),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip"), ("GET http://b.example/", "to 81 / by vip")],
        differs: &[],
    },
    Row {
        name: "path below a host",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "80"), ("backend_mode", "vip"), ("context_root", "/app")]]),
            (Df, &[&[("serviceDomain", "a.example"), ("servicePath", "/app"), ("port", "80"), ("serviceDomainAlgo", "hdr(host)")]]),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "80"), ("context_root", "/app")]]),
            (Own, &[&[("host", "a.example"), ("path", "/app*"), ("port", "80"), ("backend", "vip")]]),
        ],
        asks: &[
            ("GET http://a.example/app", "to 80 /app by vip"),
            ("GET http://a.example/app/x", "to 80 /app/x by vip"),
            ("GET http://a.example/apple", "to 80 /apple by vip"),
            ("GET http://a.example/App", "none"),
            ("GET http://a.example/", "none"),
        ],
        // nginx had a server for the host, and so its own answer.
        differs: &[
            (Lb, "GET http://a.example/App", "status 404"),
            (Lb, "GET http://a.example/", "status 404"),
            (Old, "GET http://a.example/App", "status 404"),
            (Old, "GET http://a.example/", "status 404"),
        ],
    },
    Row {
        name: "several services below one host",
        says: &[
            (
                Lb,
                &[
                    &[("hosts", "a.example"), ("port", "80"), ("backend_mode", "vip"), ("context_root", "/app")],
                    &[("hosts", "a.example"), ("port", "81"), ("backend_mode", "vip"), ("context_root", "/app/deep")],
                ],
            ),
            (
                Df,
                &[
                    &[("serviceDomain", "a.example"), ("servicePath", "/app"), ("port", "80"), ("serviceDomainAlgo", "hdr(host)")],
                    &[("serviceDomain", "a.example"), ("servicePath", "/app/deep"), ("port", "81"), ("serviceDomainAlgo", "hdr(host)")],
                ],
            ),
            (
                Old,
                &[
                    &[("hostname", "a"), ("domain", "example"), ("port", "80"), ("context_root", "/app")],
                    &[("hostname", "a"), ("domain", "example"), ("port", "81"), ("context_root", "/app/deep")],
                ],
            ),
            (
                Own,
                &[
                    &[("host", "a.example"), ("path", "/app*"), ("port", "80"), ("backend", "vip")],
                    &[("host", "a.example"), ("path", "/app/deep*"), ("port", "81"), ("backend", "vip")],
                ],
            ),
        ],
        asks: &[("GET http://a.example/app/x", "to 80 /app/x by vip"), ("GET http://a.example/app/deep/x", "to 81 /app/deep/x by vip")],
        // The first of its list that matches, not the longest: `aclName` puts the longer one first.
        differs: &[(Df, "GET http://a.example/app/deep/x", "to 80 /app/deep/x by vip")],
    },
    Row {
        name: "the longer path first, by name",
        says: &[
            (
                Df,
                &[
                    &[
                        ("serviceDomain", "a.example"),
                        ("servicePath", "/app"),
                        ("port", "80"),
                        ("serviceDomainAlgo", "hdr(host)"),
                        ("aclName", "2"),
                    ],
                    &[
                        ("serviceDomain", "a.example"),
                        ("servicePath", "/app/deep"),
                        ("port", "81"),
                        ("serviceDomainAlgo", "hdr(host)"),
                        ("aclName", "1"),
                    ],
                ],
            ),
            (
                Own,
                &[
                    &[("host", "a.example"), ("path", "/app*"), ("port", "80"), ("backend", "vip")],
                    &[("host", "a.example"), ("path", "/app/deep*"), ("port", "81"), ("backend", "vip")],
                ],
            ),
        ],
        asks: &[("GET http://a.example/app/x", "to 80 /app/x by vip"), ("GET http://a.example/app/deep/x", "to 81 /app/deep/x by vip")],
        differs: &[],
    },
    Row {
        name: "path of every host",
        says: &[(Df, &[&[("servicePath", "/api"), ("port", "80")]]), (Own, &[&[("path", "/api*"), ("port", "80"), ("backend", "vip")]])],
        asks: &[("GET http://a.example/api/x", "to 80 /api/x by vip"), ("GET http://a.example/", "none")],
        differs: &[],
    },
    Row {
        name: "path exactly, by its end, by a part, by an expression",
        says: &[
            (
                Df,
                &[
                    &[("servicePath", "/exact"), ("pathType", "path"), ("port", "80"), ("serviceDomain", "a.example")],
                    &[("servicePath", ".png"), ("pathType", "path_end"), ("port", "81"), ("serviceDomain", "a.example")],
                    &[("servicePath", "part"), ("pathType", "path_sub"), ("port", "82"), ("serviceDomain", "a.example")],
                    &[("servicePath", "^/v[0-9]+/"), ("pathType", "path_reg"), ("port", "83"), ("serviceDomain", "a.example")],
                    &[("servicePath", "dir"), ("pathType", "path_dir"), ("port", "84"), ("serviceDomain", "a.example")],
                ],
            ),
            (
                Own,
                &[
                    &[("host", "a.example*"), ("path", "=/exact"), ("port", "80"), ("backend", "vip")],
                    &[("host", "a.example*"), ("path", "*.png"), ("port", "81"), ("backend", "vip")],
                    &[("host", "a.example*"), ("path", "*part*"), ("port", "82"), ("backend", "vip")],
                    &[("host", "a.example*"), ("path", "~^/v[0-9]+/"), ("port", "83"), ("backend", "vip")],
                    &[("host", "a.example*"), ("path", "*/dir/*"), ("port", "84"), ("backend", "vip")],
                ],
            ),
        ],
        asks: &[
            ("GET http://a.example/exact", "to 80 /exact by vip"),
            ("GET http://a.example/exact/", "none"),
            ("GET http://a.example/x/y.png", "to 81 /x/y.png by vip"),
            ("GET http://a.example/aparts", "to 82 /aparts by vip"),
            ("GET http://a.example/v12/x", "to 83 /v12/x by vip"),
            ("GET http://a.example/x/dir/y", "to 84 /x/dir/y by vip"),
            ("GET http://a.example/xdir", "none"),
        ],
        differs: &[],
    },
    Row {
        name: "all paths but some",
        says: &[
            (Df, &[&[("servicePath", "/"), ("servicePathExclude", "/admin"), ("port", "80"), ("serviceDomain", "a.example")]]),
            (Own, &[&[("host", "a.example*"), ("not-path", "/admin*"), ("port", "80"), ("backend", "vip")]]),
        ],
        asks: &[("GET http://a.example/x", "to 80 /x by vip"), ("GET http://a.example/admin/x", "none")],
        differs: &[],
    },
    Row {
        name: "header and user agent",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("serviceHeader", "X-Version:2"), ("userAgent", "Mozilla,curl")]]),
            (
                Own,
                &[&[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("header.X-Version", "2"), ("user-agent", "Mozilla,curl")]],
            ),
        ],
        asks: &[
            ("GET http://a.example/ X-Version:2 User-Agent:like-mozilla", "to 80 / by vip"),
            ("GET http://a.example/ X-Version:2 User-Agent:curl/8", "to 80 / by vip"),
            ("GET http://a.example/ X-Version:2", "none"),
            ("GET http://a.example/ X-Version:3 User-Agent:curl/8", "none"),
        ],
        differs: &[],
    },
    Row {
        name: "the port that the client connected to",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("srcPort", "8080")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("listen-port", "8080")]]),
        ],
        asks: &[("GET http://a.example:8080/", "to 80 / by vip"), ("GET http://a.example/", "none")],
        differs: &[],
    },
    Row {
        name: "a prefix taken off",
        says: &[
            (
                Lb,
                &[&[
                    ("hosts", "a.example"),
                    ("port", "80"),
                    ("backend_mode", "vip"),
                    ("context_root", "/app"),
                    ("context_root_rewrite", "true"),
                ]],
            ),
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("servicePath", "/app"),
                    ("port", "80"),
                    ("serviceDomainAlgo", "hdr(host)"),
                    ("reqPathSearchReplace", "^/app/+,/"),
                ]],
            ),
            (
                Old,
                &[&[("hostname", "a"), ("domain", "example"), ("port", "80"), ("context_root", "/app"), ("context_root_rewrite", "true")]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example"),
                    ("path", "/app*"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("strip-prefix", "/app"),
                    ("append-slash", "true"),
                ]],
            ),
        ],
        asks: &[
            ("GET http://a.example/app/", "to 80 / by vip"),
            ("GET http://a.example/app/x/y.css?z", "to 80 /x/y.css by vip"),
            ("GET http://a.example/app//x.css", "to 80 /x.css by vip"),
            ("GET http://a.example/app/x", "301 /app/x/"),
        ],
        differs: &[(Df, "GET http://a.example/app/x", "to 80 /x by vip")],
    },
    Row {
        name: "a path rewritten by an expression",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("reqPathSearchReplace", r"^/a/([a-z]+)$,/b/\1")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("rewrite", r"^/a/([a-z]+)$ -> /b/\1")]]),
        ],
        asks: &[("GET http://a.example/a/x", "to 80 /b/x by vip"), ("GET http://a.example/a/1", "to 80 /a/1 by vip")],
        differs: &[],
    },
    Row {
        name: "the request line rewritten",
        says: &[
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("reqRepSearch", r"^([^\ ]*)\ /something/(.*)"),
                    ("reqRepReplace", r"\1\ /demo/\2"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example*"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("rewrite-line", r"^([^ ]*) /something/(.*) -> \1 /demo/\2"),
                ]],
            ),
        ],
        asks: &[("GET http://a.example/something/x", "to 80 /demo/x by vip"), ("GET http://a.example/x", "to 80 /x by vip")],
        differs: &[],
    },
    Row {
        name: "an old host leads to a new one",
        says: &[
            (
                Hrm,
                &[&[
                    ("1", "external_route=http://new.example,internal_port=80"),
                    ("2", "external_route=http://old.example,redirect=http://new.example"),
                ]],
            ),
            (
                Lb,
                &[&[
                    ("hosts", "new.example,old.example"),
                    ("port", "80"),
                    ("backend_mode", "vip"),
                    ("redirects", "http://old.example,http://new.example;"),
                ]],
            ),
            (
                Df,
                &[&[
                    ("serviceDomain", "new.example"),
                    ("port", "80"),
                    ("redirectFromDomain", "old.example"),
                    ("serviceDomainAlgo", "hdr(host)"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "new.example"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("s.host", "old.example"),
                    ("s.redirect", "301 http://new.example"),
                    ("s.forwarded", "none"),
                ]],
            ),
        ],
        asks: &[("GET http://new.example/x", "to 80 /x by vip"), ("GET http://old.example/x?y", "301 http://new.example/x?y")],
        differs: &[(Lb, "GET http://old.example/x?y", "302 http://new.example/x?y")],
    },
    Row {
        name: "HTTP leads to HTTPS",
        says: &[
            (
                Lb,
                &[&[
                    ("hosts", "a.example"),
                    ("port", "80"),
                    ("backend_mode", "vip"),
                    ("ssl_cert", "c"),
                    ("ssl_key", "k"),
                    ("ssl_only", "true"),
                ]],
            ),
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("httpsOnly", "true"),
                    ("serviceDomainAlgo", "hdr(host)"),
                    ("serviceCert", PEM),
                ]],
            ),
            (
                Old,
                &[&[
                    ("hostname", "a"),
                    ("domain", "example"),
                    ("port", "80"),
                    ("ssl", "true"),
                    ("ssl_cert", "c"),
                    ("ssl_cert_key", "k"),
                    ("ssl_only", "true"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("https-only", "302"),
                    ("tls.certificate", "c"),
                    ("tls.key", "k"),
                ]],
            ),
        ],
        asks: &[
            ("GET http://a.example/x?y", "302 https://a.example/x?y"),
            ("GET https://a.example/x", "to 80 /x by vip"),
            ("certificate a.example", "secret c with k"),
            ("certificate b.example", "none"),
        ],
        differs: &[(Df, "certificate a.example", "label a.example with itself"), (Old, "certificate a.example", "file c with k")],
    },
    Row {
        name: "HTTP leads to HTTPS, which is passed through",
        says: &[
            (
                Hrm,
                &[&[
                    ("1", "external_route=http://a.example,redirect=https://a.example"),
                    ("2", "external_route=sni://a.example,internal_port=443"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example"),
                    ("redirect", "301 https://a.example"),
                    ("listen", "http"),
                    ("s.host", "a.example"),
                    ("s.listen", "tls"),
                    ("s.port", "443"),
                    ("s.sticky", "tls-session"),
                ]],
            ),
        ],
        asks: &[("GET http://a.example/x", "301 https://a.example/x"), ("tls a.example 443", "to 443 by task sticky tls-session")],
        differs: &[],
    },
    Row {
        name: "TLS passed through by name",
        says: &[
            (Hrm, &[&[("1", "external_route=sni://a.example,internal_port=443")]]),
            (Lb, &[&[("hosts", "a.example"), ("port", "443"), ("ssl_passthrough", "true")]]),
            (
                Df,
                &[&[("reqMode", "sni"), ("servicePath", "a.example"), ("pathType", "req_ssl_sni -i"), ("srcPort", "443"), ("port", "443")]],
            ),
            (Own, &[&[("host", "a.example"), ("port", "443"), ("listen", "tls")]]),
        ],
        asks: &[
            ("tls a.example 443", "to 443 by task"),
            ("tls A.example 443", "to 443 by task"),
            ("tls b.example 443", "none"),
            ("tls - 443", "none"),
            ("GET http://a.example/", "none"),
            ("certificate a.example", "none"),
        ],
        differs: &[
            (Hrm, "tls a.example 443", "to 443 by task sticky tls-session"),
            (Hrm, "tls A.example 443", "to 443 by task sticky tls-session"),
            (Df, "tls a.example 443", "to 443 by vip"),
            (Df, "tls A.example 443", "to 443 by vip"),
        ],
    },
    Row {
        name: "a TCP port",
        says: &[
            (Df, &[&[("reqMode", "tcp"), ("srcPort", "5432"), ("port", "5432")]]),
            (Own, &[&[("listen", "tcp"), ("listen-port", "5432"), ("port", "5432"), ("backend", "vip")]]),
        ],
        asks: &[("tcp 5432", "to 5432 by vip"), ("tcp 5433", "none")],
        differs: &[],
    },
    Row {
        name: "who has been there comes back, by a cookie",
        says: &[
            (Hrm, &[&[("1", "external_route=http://a.example,internal_port=80,sticky_sessions=S")]]),
            (Lb, &[&[("hosts", "a.example"), ("port", "80"), ("sticky_session_cookie", "S")]]),
            (
                Df,
                &[&[("serviceDomain", "a.example"), ("port", "80"), ("sessionType", "sticky-server"), ("serviceDomainAlgo", "hdr(host)")]],
            ),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("sticky", "learn:S")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task sticky learn S")],
        // The application's cookie by its hash; a cookie of the proxy's own, named like the service.
        differs: &[
            (Lb, "GET http://a.example/", "to 80 / by task sticky hash S"),
            (Df, "GET http://a.example/", "to 80 / by task sticky insert web"),
        ],
    },
    Row {
        name: "sticky by the cookie's hash",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "80"), ("sticky_session_cookie", "S")]]),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("sticky", "hash:S")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task sticky hash S")],
        differs: &[],
    },
    Row {
        name: "sticky by a cookie of the proxy's",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("sessionType", "sticky-server")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("sticky", "insert:web")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task sticky insert web")],
        differs: &[],
    },
    Row {
        name: "by the client's address",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "80"), ("ip_hash", "true")]]),
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("discoveryType", "DNS"),
                    ("backendExtra", "balance source"),
                    ("serviceDomainAlgo", "hdr(host)"),
                ]],
            ),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "80"), ("ip_hash", "true")]]),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("balance", "ip-hash")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task balance IpHash")],
        // All of the address, where nginx takes three bytes of it.
        differs: &[(Df, "GET http://a.example/", "to 80 / by task balance SourceHash")],
    },
    Row {
        name: "least connections",
        says: &[
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("discoveryType", "DNS"),
                    ("backendExtra", "balance leastconn"),
                    ("serviceDomainAlgo", "hdr(host)"),
                ]],
            ),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "80"), ("backend_option", "least_conn")]]),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("balance", "lc")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task balance LeastConnections")],
        differs: &[],
    },
    Row {
        name: "each task by itself",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "80")]]),
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("discoveryType", "DNS"), ("serviceDomainAlgo", "hdr(host)")]]),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "80")]]),
            (Own, &[&[("host", "a.example"), ("port", "80")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by task")],
        differs: &[],
    },
    Row {
        name: "two services share a host by their tasks",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "80")], &[("hosts", "a.example"), ("port", "81")]]),
            (
                Old,
                &[&[("hostname", "a"), ("domain", "example"), ("port", "80")], &[("hostname", "a"), ("domain", "example"), ("port", "81")]],
            ),
            (
                Own,
                &[&[("host", "a.example"), ("port", "80"), ("pool", "shop")], &[("host", "a.example"), ("port", "81"), ("pool", "shop")]],
            ),
        ],
        asks: &[("GET http://a.example/", "to 80+81 / by task")],
        differs: &[],
    },
    Row {
        name: "two services share a host by halves",
        says: &[
            (
                Lb,
                &[
                    &[("hosts", "a.example"), ("port", "80"), ("backend_mode", "vip")],
                    &[("hosts", "a.example"), ("port", "81"), ("backend_mode", "vip")],
                ],
            ),
            (
                Own,
                &[
                    &[("host", "a.example"), ("port", "80"), ("backend", "vip"), ("pool", "shop")],
                    &[("host", "a.example"), ("port", "81"), ("backend", "vip"), ("pool", "shop")],
                ],
            ),
        ],
        asks: &[("GET http://a.example/", "to 80+81 / by vip")],
        differs: &[],
    },
    Row {
        name: "what nobody else takes",
        says: &[
            (Hrm, &[&[("1", "external_route=http://,internal_port=80")]]),
            (Lb, &[&[("default_backend", "true"), ("port", "80"), ("backend_mode", "vip")]]),
            (Df, &[&[("serviceDomain", "own.example"), ("port", "80"), ("isDefaultBackend", "true")]]),
            (Own, &[&[("default", "true"), ("port", "80"), ("backend", "vip"), ("listen", "http")]]),
        ],
        asks: &[
            ("GET http://a.example/x", "to 80 /x by vip"),
            ("GET http://b.example/", "to 80 / by vip"),
            ("GET https://a.example/", "none"),
        ],
        // It has one listener for both.
        differs: &[(Df, "GET https://a.example/", "to 80 / by vip")],
    },
    Row {
        name: "the client's address in X-Forwarded-For",
        says: &[
            (Hrm, &[&[("1", "external_route=http://a.example,internal_port=80,include_forwarded_for=true")]]),
            (Own, &[&[("host", "a.example"), ("port", "80"), ("backend", "vip"), ("forwarded", "for")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip told for")],
        differs: &[],
    },
    Row {
        name: "headers changed",
        says: &[
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("addReqHeader", "X-A %[src]"),
                    ("delReqHeader", "X-B"),
                    ("setResHeader", "X-C 3 if { ssl_fc }"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example*"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("request-header.add.X-A", "%[src]"),
                    ("request-header.delete.X-B", "true"),
                    ("response-header.set-if-tls.X-C", "3"),
                ]],
            ),
        ],
        asks: &[
            ("GET https://a.example/", "to 80 / by vip changes +x-a=<ClientAddress>,-x-b,answer:=x-c=3"),
            ("GET http://a.example/", "to 80 / by vip changes +x-a=<ClientAddress>,-x-b"),
        ],
        differs: &[],
    },
    Row {
        name: "users and passwords",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("users", "u:p,v:q")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("auth.users", "u:p,v:q"), ("auth.realm", "webRealm")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip users u,v of webRealm")],
        differs: &[],
    },
    Row {
        name: "the node's users",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("auth.global", "true")]]),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip")],
        // Nothing in a label switches it on there: all of its routes ask if the node has users.
        differs: &[(Own, "GET http://a.example/", "to 80 / by vip node-users")],
    },
    Row {
        name: "methods allowed and denied, plain HTTP refused, client certificates",
        says: &[
            (
                Df,
                &[
                    &[("serviceDomain", "a.example"), ("port", "80"), ("allowedMethods", "GET,HEAD")],
                    &[("serviceDomain", "b.example"), ("port", "80"), ("deniedMethods", "PUT")],
                    &[("serviceDomain", "c.example"), ("port", "80"), ("denyHttp", "true")],
                    &[("serviceDomain", "d.example"), ("port", "80"), ("verifyClientSsl", "true")],
                ],
            ),
            (
                Own,
                &[
                    &[("host", "a.example*"), ("port", "80"), ("backend", "vip"), ("allow-methods", "GET,HEAD")],
                    &[("host", "b.example*"), ("port", "80"), ("backend", "vip"), ("deny-methods", "PUT")],
                    &[("host", "c.example*"), ("port", "80"), ("backend", "vip"), ("refuse-plain", "true")],
                    &[("host", "d.example*"), ("port", "80"), ("backend", "vip"), ("client-certificate", "true")],
                ],
            ),
        ],
        asks: &[
            ("GET http://a.example/", "to 80 / by vip"),
            ("PUT http://a.example/", "status 403"),
            ("PUT http://b.example/", "status 403"),
            ("POST http://b.example/", "to 80 / by vip"),
            ("GET http://c.example/", "status 403"),
            ("GET https://c.example/", "to 80 / by vip"),
            ("GET https://d.example/", "to 80 / by vip client-certificate"),
        ],
        differs: &[],
    },
    Row {
        name: "TLS to the backend, whoever it is",
        says: &[
            (
                Lb,
                &[&[
                    ("hosts", "a.example"),
                    ("port", "443"),
                    ("backend_mode", "vip"),
                    ("ssl_backend", "true"),
                    ("ssl_backend_tls_verify", "none"),
                ]],
            ),
            (Df, &[&[("serviceDomain", "a.example"), ("port", "443"), ("sslVerifyNone", "true"), ("serviceDomainAlgo", "hdr(host)")]]),
            (Old, &[&[("hostname", "a"), ("domain", "example"), ("port", "443"), ("ssl_backend", "true")]]),
            (Own, &[&[("host", "a.example"), ("port", "443"), ("backend", "vip"), ("backend-tls", "insecure")]]),
        ],
        asks: &[("GET http://a.example/", "to 443 / by vip tls")],
        differs: &[],
    },
    Row {
        name: "TLS to the backend, which must prove its name",
        says: &[
            (Lb, &[&[("hosts", "a.example"), ("port", "443"), ("backend_mode", "vip"), ("ssl_backend", "true")]]),
            (
                Old,
                &[&[
                    ("hostname", "a"),
                    ("domain", "example"),
                    ("port", "443"),
                    ("ssl_backend", "true"),
                    ("ssl_backend_tls_verify", "required"),
                ]],
            ),
            (Own, &[&[("host", "a.example"), ("port", "443"), ("backend", "vip"), ("backend-tls", "verify")]]),
        ],
        asks: &[("GET http://a.example/", "to 443 / by vip tls-verified")],
        differs: &[],
    },
    Row {
        name: "a name elsewhere instead of the service",
        says: &[
            (Df, &[&[("serviceDomain", "a.example"), ("port", "80"), ("outboundHostname", "other.test")]]),
            (Own, &[&[("host", "a.example*"), ("port", "80"), ("outbound-host", "other.test"), ("backend", "vip")]]),
        ],
        asks: &[("GET http://a.example/", "to other.test:80 / by vip")],
        differs: &[],
    },
    Row {
        name: "answers compressed",
        says: &[
            (
                Df,
                &[&[
                    ("serviceDomain", "a.example"),
                    ("port", "80"),
                    ("compressionAlgo", "gzip"),
                    ("compressionType", "text/html text/css"),
                ]],
            ),
            (
                Own,
                &[&[
                    ("host", "a.example*"),
                    ("port", "80"),
                    ("backend", "vip"),
                    ("compress", "gzip"),
                    ("compress-types", "text/html,text/css"),
                ]],
            ),
        ],
        asks: &[("GET http://a.example/", "to 80 / by vip compress [Gzip] text/html text/css")],
        differs: &[],
    },
];

const PEM: &str =
    r"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----";
