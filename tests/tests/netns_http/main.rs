//! What users of Docker's HTTP routing mesh, of Interlock and of Docker Flow Proxy had in print, run on a three-node emulated
//! swarm: stacks, commands and requests are the documents' own, the servers in them are the emulator's.
//!
//! Each row deploys what it needs in the place of what was there. The service `edge` stands for the proxy's own service of the
//! documents: it is on the networks that the proxy was on, on every node.
#![forbid(unsafe_code)]

mod site;

use std::{
    collections::BTreeMap,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swarmesh_tests::{
    certificates::serial,
    http::{Answer, every_node, node, none_failed},
    load::Load,
    printed::{
        BACK_END, BY_VIP, COUNTER, COUNTER_BACKEND, DEFAULT_HOST, PASSED, REDIRECTED, REWRITTEN, SESSION_EXAMPLE, STICKY, TERMINATED,
        TWO_SITES, demo, go_demo, session_example_https, session_example_sticky,
    },
    rows::{Row, run},
    service_create::service,
};

use crate::site::{Handshakes, NODES, Site, stack};

const DOMAIN: &[(&str, &str)] = &[("DOMAIN", "app.example.com")];

const ROLLING: &str = r#"
    rolling:
      image: example/rolling
      environment: {WHOAMI_TCP: 8080}
      networks: [demo]
      stop_grace_period: 20s
      healthcheck: {test: [CMD, curl, -sf, "http://127.0.0.1:8080/health"], interval: 500ms, retries: 20}
      deploy:
        replicas: 6
        update_config: {order: start-first, parallelism: 2, delay: 500ms}
        labels:
          com.docker.lb.hosts: rolling.local
          com.docker.lb.port: 8080
          com.docker.lb.backend_mode: task
"#;

/// The same service with two replicas, these labels in the place of its own, and more ports and networks to name in them.
fn labelled(labels: &[(&str, &str)], environment: &str, networks: &str) -> String {
    let labels: String = labels.iter().map(|(name, value)| format!("          {name}: {value:?}\n")).collect();
    let (service, _) = ROLLING.split_once("          com.docker").unwrap_or((ROLLING, ""));
    let service = service.replace("WHOAMI_TCP: 8080", environment).replace("[demo]", &format!("[{networks}]"));
    format!("{}{labels}", service.replace("replicas: 6", "replicas: 2"))
}

const ROWS: &[Row<Site>] = &[
    ("HRM1 http: every node answers for the domain, by all replicas in turn", |site| {
        site.deploy(SESSION_EXAMPLE, BACK_END, DOMAIN)?;
        for index in 0..3 {
            let turns = site.client.turns(index, "app.example.com", 10)?;
            ensure!(turns.len() == 5 && turns.values().all(|n| *n == 2), "through node {}: {turns:?}", index + 1);
            site.client.ask(index, "other.example.com", "/")?.is(503)?;
        }
        site.client.ask(0, "APP.example.com:80", "/x?y=1")?.asked_for("/x?y=1")
    }),
    ("HRM2 sticky sessions: the application's cookie keeps its task, also when the service is scaled", |site| {
        site.deploy(&session_example_sticky(), BACK_END, DOMAIN)?;
        ensure!(site.client.turns(0, "app.example.com", 10)?.len() == 5, "without a cookie, all replicas are asked");
        let mut sessions = Vec::new();
        for _ in 0..4 {
            let login = site.client.ask(0, "app.example.com", "/login?cookie=SESSION")?;
            login.is_of("session-example")?;
            let cookie = login.header("set-cookie").and_then(|v| v.split(';').next()).context("no cookie")?;
            sessions.push((format!("Cookie: theme=dark; {cookie}"), login.told("task")));
        }
        let stay = |site: &Site| -> Result<()> {
            for (cookie, task) in &sessions {
                let spread = site.client.spread(0, "app.example.com", "/", 6, &["-H", cookie])?;
                ensure!(spread.len() == 1 && spread.contains_key(task), "{cookie} began with {task}: {spread:?}");
            }
            Ok(())
        };
        stay(site)?;
        site.lab.lab(&["scale", "t_session-example=8"])?;
        site.wait_for_tasks("session-example", 8)?;
        stay(site)
    }),
    ("HRM3 https: passed through to the service's own certificate, http redirected", |site| {
        let pem = site.certificates.pem("secure.example.com")?;
        let own = format!("SPRING_PROFILES_ACTIVE=https\n        - WHOAMI_TLS={pem}");
        let https = session_example_https().replace("SPRING_PROFILES_ACTIVE=https", &own);
        site.deploy(&https, BACK_END, &[("DOMAIN", "secure.example.com")])?;
        for index in 0..3 {
            site.client.ask(index, "secure.example.com", "/")?.leads_to(301, "https://secure.example.com/")?;
            site.client.ask(index, "secure.example.com", "/account?id=1")?.leads_to(301, "https://secure.example.com/account?id=1")?;
            for port in [443, 8443] {
                let answer = site.client.ask_tls(index, "secure.example.com", port, "/account")?;
                answer.is_of("session-example")?;
                answer.asked_for("/account")?;
                ensure!(answer.told("local").ends_with(":8443"), "{answer:?}");
            }
            let subject = site.client.certificate(index, "secure.example.com", "subject")?;
            ensure!(subject.contains("secure.example.com"), "{subject}");
        }
        ensure!(site.client.certificate(0, "other.example.com", "subject").is_err(), "a name that nobody has was answered");
        Ok(())
    }),
    ("HRM4 two ports of one service are two sites", |site| {
        site.create(&[(TWO_SITES, "8000,8001")])?;
        for index in 0..3 {
            for (host, port) in [("site1.example.com", ":8000"), ("site2.example.com", ":8001")] {
                let answer = site.client.ask(index, host, "/")?;
                answer.is_of("twosite")?;
                ensure!(answer.told("local").ends_with(port), "{host}: {answer:?}");
            }
        }
        Ok(())
    }),
    ("HRM5 redirection to another domain", |site| {
        site.create(&[(REDIRECTED, "8080")])?;
        for index in 0..3 {
            site.client.ask(index, "oldsite.example.com", "/a")?.leads_to(301, "http://foo.example.com/a")?;
            site.client.ask(index, "foo.example.com", "/a")?.is_of("lbinfo")?;
        }
        Ok(())
    }),
    ("HRM6 a redirect and the name's TLS in two labels; a network that is labelled later", |site| {
        let pem = site.certificates.pem("example.com")?;
        let services = service(
            &format!(
                r"docker service create --name site --network new-hrm-network -p 8443 --env WHOAMI_TLS={pem} \
    --label com.docker.ucp.mesh.http.1=external_route=http://example.com,redirect=https://example.com \
    --label com.docker.ucp.mesh.http.2=external_route=sni://example.com ahromis/lbinfo:latest"
            ),
            "8443",
        )?;
        let here = "    here:\n      image: example/here\n      networks: [new-hrm-network]\n      deploy: {mode: global}\n";
        let network = "    new-hrm-network:\n      name: new-hrm-network\n      labels: {com.docker.ucp.mesh.http: \"true\"}\n";
        site.deploy(&(services + here), network, &[])?;
        for index in 0..3 {
            site.client.ask(index, "example.com", "/")?.leads_to(301, "https://example.com/")?;
            site.client.ask_tls(index, "example.com", 443, "/")?.is_of("site")?;
        }
        Ok(())
    }),
    ("IL1 http and websocket: the counter example", |site| {
        site.deploy(COUNTER, COUNTER_BACKEND, &[])?;
        for index in 0..3 {
            let turns = site.client.turns(index, "app.dockerdemos.com", 6)?;
            ensure!(turns.len() == 2 && turns.values().all(|n| *n == 3), "{turns:?}");
            let mut socket = site.client.websocket(index, "app.dockerdemos.com", "/total")?;
            ensure!(socket.task.starts_with("t_web."), "{socket:?}");
            for total in ["1", "2", "and a longer one"] {
                socket.say(total)?;
            }
        }
        Ok(())
    }),
    ("IL2 ip_hash: each client has its task", |site| {
        site.create(&[(
            r#"docker service create \
    --name demo \
    --network demo \
    --detach=false \
    --replicas=5 \
    --label com.docker.lb.hosts=demo.local \
    --label com.docker.lb.port=8080 \
    --label com.docker.lb.ip_hash=true \
    --env METADATA="demo-sticky" \
    ehazlett/docker-demo"#,
            "8080",
        )])?;
        let mut first = BTreeMap::new();
        for index in 0..3 {
            let spread = site.client.spread(index, "demo.local", "/ping", 6, &[])?;
            ensure!(spread.len() == 1, "through node {}: {spread:?}", index + 1);
            first.extend(spread);
        }
        ensure!(first.len() == 1, "the client has another task behind another node: {first:?}");
        Ok(())
    }),
    ("IL3 sticky_session_cookie: each cookie has its task, on every node", |site| {
        site.create(&[(&demo(STICKY), "8080")])?;
        ensure!(site.client.turns(0, "demo.local", 10)?.len() == 5, "clients without the cookie are balanced");
        let mut used = std::collections::BTreeSet::new();
        for session in 0..12 {
            let cookie = format!("session=151015841529800920{session}");
            let mut tasks = BTreeMap::new();
            for index in 0..3 {
                tasks.extend(site.client.spread(index, "demo.local", "/ping", 2, &["--cookie", &cookie])?);
            }
            ensure!(tasks.len() == 1, "{cookie}: {tasks:?}");
            used.extend(tasks.into_keys());
        }
        ensure!(used.len() > 1, "all cookies lead to {used:?}");
        Ok(())
    }),
    ("IL4 ssl termination: certificate and key from secrets, and the headers in print", |site| {
        let (certificate, key) = site.certificates.as_printed("demo.local")?;
        site.secret("demo.local.cert", &certificate)?;
        site.secret("demo.local.key", &key)?;
        site.create(&[(&demo(TERMINATED), "8080")])?;
        for index in 0..3 {
            let answer = site.client.ask_tls(index, "demo.local", 443, "/ping")?;
            answer.is_of("demo")?;
            for header in ["x-request-id", "x-proxy-id", "x-server-info", "x-upstream-addr", "x-upstream-response-time"] {
                ensure!(answer.header(header).is_some_and(|v| !v.is_empty()), "no {header}: {answer:?}");
            }
            ensure!(answer.header("x-upstream-addr") == Some(answer.told("local").as_str()), "{answer:?}");
            ensure!(answer.header("x-request-id") == Some(answer.told("x-request-id").as_str()), "{answer:?}");
            let subject = site.client.certificate(index, "demo.local", "subject")?;
            for part in ["C = US", "ST = SomeState", "L = SomeCity", "O = Interlock", "CN = demo.local"] {
                ensure!(subject.contains(part) || subject.contains(&part.replace(" = ", "=")), "{part} is not in {subject}");
            }
        }
        Ok(())
    }),
    ("IL5 ssl passthrough: the service's own certificate", |site| {
        let pem = site.certificates.pem("pass.local")?;
        site.create(&[(&demo(&format!("{PASSED} --env WHOAMI_TLS={pem}")), "8080")])?;
        let own = serial(&pem)?;
        for index in 0..3 {
            site.client.ask_tls(index, "pass.local", 443, "/ping")?.is_of("demo")?;
            let shown = site.client.certificate(index, "pass.local", "serial")?;
            ensure!(shown == own, "{shown}");
        }
        Ok(())
    }),
    ("IL6 vip mode: one upstream, the service's VIP, and all four tasks behind it", |site| {
        site.create(&[(&demo(BY_VIP), "8080")])?;
        let vip = format!("{}:8080", site.lab.vip("demo", "demo")?);
        for index in 0..3 {
            let answer = site.client.ask(index, "demo.local", "/ping")?;
            answer.is_of("demo")?;
            ensure!(answer.header("x-upstream-addr") == Some(&vip), "not {vip}: {answer:?}");
        }
        let turns = site.client.turns(0, "demo.local", 8)?;
        ensure!(turns.len() == 4 && turns.values().all(|n| *n == 2), "behind the VIP: {turns:?}");
        Ok(())
    }),
    ("IL7 a canary beside four tasks: 20 % in task mode, 50 % in vip mode", |site| {
        let shared = |name: &str, replicas: u32, mode: &str| {
            format!(
                r"docker service create --name {name} --network demo --replicas={replicas} \
                --label com.docker.lb.hosts=demo.local --label com.docker.lb.port=8080 \
                --label com.docker.lb.backend_mode={mode} ehazlett/docker-demo"
            )
        };
        for (mode, share) in [("task", 20), ("vip", 50)] {
            site.create(&[(&shared("demo", 4, mode), "8080"), (&shared("canary", 1, mode), "8080")])?;
            for index in 0..3 {
                let shares = site.client.shares(index, "demo.local", 100)?;
                let canary = shares.get("canary").copied().unwrap_or(0);
                ensure!(canary.abs_diff(share) <= 1, "{mode} mode through node {}: {shares:?}", index + 1);
            }
        }
        Ok(())
    }),
    ("IL8 context roots, with and without rewriting", |site| {
        let app = |name: &str, labels: &str| {
            format!(
                r"docker service create --name {name} --network demo --label com.docker.lb.hosts=demo.local \
                --label com.docker.lb.port=8080 {labels} ehazlett/docker-demo"
            )
        };
        site.create(&[
            (&app("app", "--label com.docker.lb.context_root=/app --label com.docker.lb.context_root_rewrite=true"), "8080"),
            (&app("api", "--label com.docker.lb.context_root=/api"), "8080"),
        ])?;
        for index in 0..3 {
            let answer = site.client.ask(index, "demo.local", "/app/ping/?x=1")?;
            answer.is_of("app")?;
            answer.asked_for("/ping/?x=1")?;
            site.client.ask(index, "demo.local", "/app/ping?x=1")?.leads_to(301, "/app/ping/?x=1")?;
            let answer = site.client.ask(index, "demo.local", "/api/ping")?;
            answer.is_of("api")?;
            answer.asked_for("/api/ping")?;
            site.client.ask(index, "demo.local", "/other")?.is(404)?;
        }
        Ok(())
    }),
    ("IL9 redirects from an old host", |site| {
        site.create(&[(
            r"docker service create --name demo --network demo --detach=false \
    --label com.docker.lb.hosts=old.local,new.local --label com.docker.lb.port=8080 \
    --label com.docker.lb.redirects=http://old.local,http://new.local ehazlett/docker-demo",
            "8080",
        )])?;
        for index in 0..3 {
            site.client.ask(index, "old.local", "/ping")?.leads_to(302, "http://new.local/ping")?;
            site.client.ask(index, "new.local", "/ping")?.is_of("demo")?;
        }
        Ok(())
    }),
    ("IL10 a default host answers for what nobody has", |site| {
        site.create(&[(DEFAULT_HOST, "8080"), (&demo("--label com.docker.lb.hosts=demo.local"), "8080")])?;
        for index in 0..3 {
            site.client.ask(index, "nobody.example", "/x")?.is_of("demo-default")?;
            site.client.ask(index, "demo.local", "/x")?.is_of("demo")?;
        }
        Ok(())
    }),
    ("DFP1 the demo: by its path, on every node; scaled, all replicas; removed, nobody", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo"))?;
        for index in 0..3 {
            let answer = site.client.curl(&[&format!("http://{}/demo/hello", node(index))])?;
            answer.is_of("go-demo")?;
            answer.asked_for("/demo/hello")?;
            site.client.curl(&[&format!("http://{}/", node(index))])?.is(503)?;
        }
        site.lab.lab(&["scale", "t_go-demo=5"])?;
        site.wait_for_tasks("go-demo", 5)?;
        let turns = site.client.turns_at(0, "anything", "/demo/", 20)?;
        ensure!(turns.len() == 5 && turns.values().all(|n| *n == 4), "not a fifth each: {turns:?}");
        site.lab.lab(&["rm", "t_go-demo"])?;
        site.lab.wait("it is not available through the proxy", || {
            for index in 0..3 {
                site.client.curl(&[&format!("http://{}/demo/hello", node(index))])?.is(503)?;
            }
            Ok(true)
        })
    }),
    ("DFP2 several paths, and nothing beside them", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo/hello,/demo/person"))?;
        for index in 0..3 {
            for (path, status) in [("/demo/hello", 200), ("/demo/person/1", 200), ("/demo/other", 503), ("/", 503)] {
                site.client.curl(&[&format!("http://{}{path}", node(index))])?.is(status)?;
            }
        }
        Ok(())
    }),
    ("DFP3 domains: one, several, and by a wildcard", |site| {
        for (domains, there, elsewhere) in [
            ("my-domain.com", &["my-domain.com"][..], &["my-other-domain.com", "domain.com"][..]),
            ("my-domain.com,my-other-domain.com", &["my-domain.com", "my-other-domain.com"], &["domain.com"]),
            ("*domain.com", &["my-domain.com", "my-other-domain.com", "domain.com"], &["domain.org", "my-domain.com.org"]),
        ] {
            site.create_demo(&go_demo(&format!("--label com.df.servicePath=/demo --label com.df.serviceDomain={domains}")))?;
            for index in 0..3 {
                for host in there {
                    site.client.ask(index, host, "/demo/hello")?.is_of("go-demo")?;
                }
                for host in elsewhere {
                    site.client.ask(index, host, "/demo/hello")?.is(503)?;
                }
            }
        }
        Ok(())
    }),
    ("DFP4 paths are rewritten: reqRepSearch as printed, and reqPathSearchReplace", |site| {
        for labels in REWRITTEN {
            site.create_demo(&go_demo(&format!("--label com.df.servicePath=/something {labels} --replicas 3")))?;
            for index in 0..3 {
                let answer = site.client.curl(&[&format!("http://{}/something/hello?who=world", node(index))])?;
                answer.is_of("go-demo").context(labels)?;
                answer.asked_for("/demo/hello?who=world").context(labels)?;
            }
        }
        Ok(())
    }),
    ("DFP5 users of a service: 401 without, 200 with", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo --label com.df.users=admin:password"))?;
        for index in 0..3 {
            let url = format!("http://{}/demo/hello", node(index));
            let answer = site.client.curl(&[&url])?;
            answer.is(401)?;
            ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=")), "{answer:?}");
            let answer = site.client.curl(&["-u", "admin:password", &url])?;
            answer.is_of("go-demo")?;
            ensure!(!answer.body.contains("authorization:"), "the password went on to the service: {answer:?}");
            site.client.curl(&["-u", "admin:other", &url])?.is(401)?;
        }
        Ok(())
    }),
    ("DFP6 users of the node, for all services; with a service's own, who is in both lists", |site| {
        fs::write(site.file("users"), "my-user-1:my-pass-1\nmy-user-2:my-pass-2\n")?;
        site.configure(&format!("users = {:?}\n", site.file("users")))?;
        site.restart_agents()?;
        let outcome = (|| {
            site.create_demo(&go_demo("--label com.df.servicePath=/demo --replicas 3"))?;
            for index in 0..3 {
                let url = format!("http://{}/demo/hello", node(index));
                let answer = site.client.curl(&[&url])?;
                answer.is(401)?;
                ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=\"defaultRealm\"")), "{answer:?}");
                site.client.curl(&["-u", "my-user-1:my-pass-1", &url])?.is_of("go-demo")?;
                site.client.curl(&["-u", "my-user-2:my-pass-2", &url])?.is_of("go-demo")?;
                site.client.curl(&["-u", "my-user-2:my-pass-1", &url])?.is(401)?;
            }
            site.create_demo(&go_demo("--label com.df.servicePath=/demo --label com.df.users=admin:password,my-user-1:my-pass-1"))?;
            let url = format!("http://{}/demo/hello", node(0));
            site.client.curl(&["-u", "my-user-1:my-pass-1", &url])?.is_of("go-demo")?;
            site.client.curl(&["-u", "my-user-2:my-pass-2", &url])?.is(401)?;
            site.client.curl(&["-u", "admin:password", &url])?.is(401)?;
            // Another list counts at once. Without any, it is closed, and says why.
            fs::write(site.file("users"), "admin:password\n")?;
            site.lab.wait("another user gets in", || {
                site.client.curl(&["-u", "admin:password", &url])?.is(200)?;
                site.client.curl(&["-u", "my-user-1:my-pass-1", &url])?.is(401)?;
                Ok(true)
            })?;
            fs::remove_file(site.file("users"))?;
            site.lab.wait("nobody gets in", || {
                site.client.curl(&["-u", "admin:password", &url])?.is(401)?;
                Ok(true)
            })?;
            site.client.curl(&[&url])?.is(401)?;
            let status = site.lab.swarmesh("node1", &["status"])?;
            ensure!(status.contains("is not there, so none of its users gets in"), "{status}");
            Ok(())
        })();
        site.configure("")?;
        site.restart_agents()?;
        outcome
    }),
    ("DFP7 https: refused without a certificate, served with the node's own", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo"))?;
        let https = |index: usize, more: &[&str]| {
            let (lead, url) = (format!("x.xip.io:443:{}", node(index)), "https://x.xip.io/demo/hello");
            site.client.output(&[&["curl", "--silent", "--include", "--max-time", "5", "--resolve", &lead, url], more].concat())
        };
        for index in 0..3 {
            // curl's own code for a handshake that fails.
            ensure!(https(index, &[])?.status.code() == Some(35), "{:?}", https(index, &[])?);
        }
        site.certificates.of("xip.io", "*.xip.io", &["-newkey", "rsa:2048"])?;
        site.configure("default-certificate = \"xip.io.cert\"\ndefault-key = \"xip.io.key\"\n")?;
        site.restart_agents()?;
        let outcome = (|| {
            for index in 0..3 {
                // A certificate that nobody signed.
                ensure!(https(index, &[])?.status.code() == Some(60), "{:?}", https(index, &[])?);
                Answer::read(&String::from_utf8(https(index, &["--insecure"])?.stdout)?)?.is_of("go-demo")?;
                site.client.curl(&[&format!("http://{}/demo/hello", node(index))])?.is_of("go-demo")?;
            }
            Ok(())
        })();
        site.configure("")?;
        site.restart_agents()?;
        outcome
    }),
    ("T1 a certificate is swapped under load: no handshake fails", |site| {
        let (first, second) = (&site.certificates.pair("first", "demo.local")?, &site.certificates.pair("second", "demo.local")?);
        let put = |pair: &(String, String)| -> Result<()> {
            site.secret("swap.cert", &pair.0)?;
            // In between, the two do not belong together.
            sleep(Duration::from_millis(700));
            site.secret("swap.key", &pair.1)
        };
        put(first)?;
        site.create(&[(
            r"docker service create --name demo --network demo --replicas=2 --label com.docker.lb.hosts=demo.local \
    --label com.docker.lb.port=8080 --label com.docker.lb.ssl_cert=swap.cert --label com.docker.lb.ssl_key=swap.key \
    ehazlett/docker-demo",
            "8080",
        )])?;
        let load = Handshakes::start(site)?;
        for pair in [second, first, second] {
            sleep(Duration::from_secs(1));
            put(pair)?;
            let wanted = serial(&pair.0)?;
            site.lab.wait("every node shows the new certificate", || {
                Ok((0..3).all(|index| site.client.certificate(index, "demo.local", "serial").is_ok_and(|shown| shown == wanted)))
            })?;
        }
        load.stop()
    }),
    ("T2 TLS is ended, passed through and ended again, in three dialects, under load: no handshake fails", |site| {
        let pair = site.certificates.pair("first", "demo.local")?;
        site.secret("swap.cert", &pair.0)?;
        site.secret("swap.key", &pair.1)?;
        let says: [&[(&str, &str)]; 4] = [
            &[
                ("com.docker.lb.hosts", "demo.local"),
                ("com.docker.lb.port", "8080"),
                ("com.docker.lb.network", "demo"),
                ("com.docker.lb.ssl_cert", "swap.cert"),
                ("com.docker.lb.ssl_key", "swap.key"),
            ],
            &[
                ("com.docker.lb.hosts", "demo.local"),
                ("com.docker.lb.port", "8443"),
                ("com.docker.lb.network", "demo"),
                ("com.docker.lb.ssl_passthrough", "true"),
            ],
            &[
                ("swarmesh.http.all.host", "demo.local"),
                ("swarmesh.http.all.port", "8080"),
                ("swarmesh.http.all.network", "demo"),
                ("swarmesh.http.all.tls.certificate", "swap.cert"),
                ("swarmesh.http.all.tls.key", "swap.key"),
            ],
            &[("com.docker.ucp.mesh.http.1", "external_route=sni://demo.local,internal_port=8443")],
        ];
        let pem = site.certificates.pem("demo.local")?;
        let environment = format!("WHOAMI_TCP: \"8080,8443\", WHOAMI_TLS: {pem:?}");
        let services = |labels| labelled(labels, &environment, "demo, ucp-hrm");
        site.deploy(&services(says[0]), "", &[])?;
        let load = Handshakes::start(site)?;
        for turn in (0..4).cycle().take(16) {
            site.lab.deploy(&stack(&services(says[turn]), ""))?;
            sleep(Duration::from_millis(300));
        }
        load.stop()
    }),
    ("L1 rolling update of a routed service, 50 requests a second through all nodes: 0 failed", |site| {
        site.deploy(ROLLING, "", &[])?;
        let before: Vec<_> = site.lab.tasks("rolling")?.iter().map(|t| t["id"].clone()).collect();
        let load = site.client.load("rolling.local")?;
        site.lab.lab(&["update", "t_rolling", "--force"])?;
        site.lab.wait("all six are replaced", || {
            let now = site.lab.all_tasks("rolling")?;
            Ok(now.len() == 6 && site.lab.tasks("rolling")?.len() == 6 && now.iter().all(|t| !before.contains(&t["id"])))
        })?;
        sleep(Duration::from_millis(500));
        none_failed(load)
    }),
    ("L2 scaled 6 to 2 to 6, 50 requests a second through all nodes: 0 failed", |site| {
        site.deploy(ROLLING, "", &[])?;
        let load = site.client.load("rolling.local")?;
        for count in [2, 6] {
            site.lab.lab(&["scale", &format!("t_rolling={count}")])?;
            site.wait_for_tasks("rolling", count)?;
            sleep(Duration::from_millis(500));
        }
        none_failed(load)
    }),
    ("L3 the same in vip mode: 0 failed", |site| {
        site.deploy(&ROLLING.replace("backend_mode: task", "backend_mode: vip"), "", &[])?;
        let load = site.client.load("rolling.local")?;
        site.lab.lab(&["update", "t_rolling", "--force"])?;
        site.lab.wait("it is being replaced", || Ok(site.lab.all_tasks("rolling")?.len() > 6))?;
        site.wait_for_tasks("rolling", 6)?;
        for count in [2, 6] {
            site.lab.lab(&["scale", &format!("t_rolling={count}")])?;
            site.wait_for_tasks("rolling", count)?;
            sleep(Duration::from_millis(500));
        }
        none_failed(load)
    }),
    ("L4 a WebSocket to a leaving task lives until its drain is over; new requests avoid it", |site| {
        let services = ROLLING.replace("replicas: 6", "replicas: 3").replace("WHOAMI_TCP: 8080", "WHOAMI_TCP: 8080, WHOAMI_LINGER: 5");
        site.deploy(&services, "", &[])?;
        let mut sockets = Vec::new();
        for index in (0..3).cycle().take(12) {
            sockets.push(site.client.websocket(index, "rolling.local", "/")?);
        }
        let everybody: std::collections::BTreeSet<String> = sockets.iter().map(|s| s.task.clone()).collect();
        ensure!(everybody.len() == 3, "{everybody:?}");
        site.lab.lab(&["scale", "t_rolling=1"])?;
        site.lab.wait("two are leaving", || Ok(site.lab.tasks("rolling")?.len() == 1))?;
        let leaving = Instant::now();
        site.lab.settled(&NODES)?;
        for index in 0..3 {
            let turns = site.client.turns(index, "rolling.local", 6)?;
            ensure!(turns.len() == 1, "leaving tasks got new requests: {turns:?}");
        }
        // Two seconds before the signal, and five that the server goes on.
        while leaving.elapsed() < Duration::from_secs(5) {
            ensure!(site.lab.all_tasks("rolling")?.len() == 3, "the tasks are gone too early for this row");
            for socket in &mut sockets {
                socket.say("still there?").with_context(|| format!("with {}", socket.task))?;
            }
            sleep(Duration::from_millis(200));
        }
        site.wait_for_tasks("rolling", 1)?;
        let stays = site.lab.tasks("rolling")?[0]["name"].as_str().unwrap_or_default().to_owned();
        for socket in &mut sockets {
            let talks = socket.say("still there?").is_ok();
            ensure!(talks == (socket.task == stays), "{}: talks: {talks}, {stays} stays", socket.task);
        }
        Ok(())
    }),
    ("L5 a WebSocket ends when the namespace goes by which its network is reached; others take its place at once", |site| {
        site.deploy(&ROLLING.replace("replicas: 6", "replicas: 3"), "", &[])?;
        let mut sockets = Vec::new();
        for _ in 0..6 {
            sockets.push(site.client.websocket(0, "rolling.local", "/")?);
        }
        let plan: Value = serde_json::from_str(&site.lab.api(NODES[0], "/v1/plan")?.1)?;
        let snapshot = site.lab.snapshot()?;
        let footholds = plan["routes"]["footholds"].as_object().context("no footholds in the plan")?.clone();
        let all = snapshot["tasks"].as_array().context("no tasks")?;
        let foothold = all.iter().find(|t| footholds.values().any(|name| *name == t["sandbox"])).context("no task is the foothold")?;
        let name = foothold["name"].as_str().context("it has no name")?;
        site.lab.lab(&["kill", name])?;
        site.lab.wait(&format!("{name} is no foothold any more"), || {
            let plan: Value = serde_json::from_str(&site.lab.api(NODES[0], "/v1/plan")?.1)?;
            Ok(plan["routes"]["footholds"].as_object().is_some_and(|now| *now != footholds))
        })?;
        site.client.websocket(0, "rolling.local", "/")?.say("anew")?;
        for mut socket in sockets {
            let start = Instant::now();
            ensure!(socket.ends_within(Duration::from_secs(40))?, "{}: the client still waits after {:?}", socket.task, start.elapsed());
        }
        Ok(())
    }),
    (
        "L6 from one dialect to the next and back, by tasks and by VIP, in three networks, 100 requests a second through all nodes: 0 failed",
        |site| {
            let says: [&[(&str, &str)]; 7] = [
                &[("com.docker.lb.hosts", "rolling.local"), ("com.docker.lb.port", "8080"), ("com.docker.lb.network", "demo")],
                &[
                    ("com.docker.lb.hosts", "rolling.local"),
                    ("com.docker.lb.port", "8080"),
                    ("com.docker.lb.backend_mode", "vip"),
                    ("com.docker.lb.network", "proxy"),
                ],
                &[("com.docker.ucp.mesh.http.1", "external_route=http://rolling.local,internal_port=8080")],
                &[("com.df.notify", "true"), ("com.df.serviceDomain", "rolling.local"), ("com.df.port", "8080")],
                &[
                    ("com.docker.lb.hosts", "rolling.local"),
                    ("com.docker.lb.port", "8081"),
                    ("com.docker.lb.sticky_session_cookie", "s"),
                    ("com.docker.lb.network", "demo"),
                ],
                &[("swarmesh.http.all.host", "rolling.local"), ("swarmesh.http.all.port", "8080"), ("swarmesh.http.all.network", "proxy")],
                &[("com.docker.ucp.mesh.http.1", "external_route=http://rolling.local,internal_port=8081,sticky_sessions=s")],
            ];
            let services = |labels| labelled(labels, "WHOAMI_TCP: \"8080,8081\"", "demo, ucp-hrm, proxy");
            site.deploy(&services(says[0]), "", &[])?;
            let before: Vec<_> = site.lab.tasks("rolling")?.iter().map(|t| t["id"].clone()).collect();
            let load = Load::start_for(site.client.namespace(), every_node(80), Some("rolling.local"), 100)?;
            for turn in 1..=21usize {
                // Each comes after each of the others.
                let now = says[(turn * turn.div_ceil(7)) % says.len()];
                site.lab.deploy(&stack(&services(now), ""))?;
                sleep(Duration::from_millis(300));
            }
            let after: Vec<_> = site.lab.tasks("rolling")?.iter().map(|t| t["id"].clone()).collect();
            ensure!(before == after, "labels of a service are no reason to replace its tasks");
            none_failed(load)
        },
    ),
    ("L7 a host goes from one service to another by way of both, 100 requests a second through all nodes: 0 failed", |site| {
        let blue = ROLLING.replace("replicas: 6", "replicas: 2");
        let green = blue.replace("rolling:", "green:").replace("example/rolling", "example/green");
        site.deploy(&blue, "", &[])?;
        let load = Load::start_for(site.client.namespace(), every_node(80), Some("rolling.local"), 100)?;
        let (mut here, mut there) = (("rolling", &blue), ("green", &green));
        for _ in 0..2 {
            site.lab.deploy(&stack(&format!("{blue}{green}"), ""))?;
            site.wait_for_tasks(there.0, 2)?;
            let answer = |services: &[&str]| {
                let mut shares = (0..3).map(|index| site.client.shares(index, "rolling.local", 8));
                shares.try_fold(true, |all, shares| Ok(all && shares?.keys().eq(services)))
            };
            site.lab.wait("both services answer everywhere", || answer(&["green", "rolling"]))?;
            site.lab.lab(&["rm", &format!("t_{}", here.0)])?;
            site.lab.wait("the other service answers everywhere, and alone", || answer(&[there.0]))?;
            (here, there) = (there, here);
        }
        none_failed(load)
    }),
];

#[test]
fn http_rows() {
    let site = Site::up().unwrap();
    run(&site, ROWS);
}
