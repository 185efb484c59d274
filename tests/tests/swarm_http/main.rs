//! What users of Docker's HTTP routing mesh, of Interlock and of Docker Flow Proxy had in print, on three real engines: stacks and
//! services by Docker's own commands, asked with curl, openssl, a WebSocket and chromium. `netns_http` has more rows of each.
//!
//! All of it is deployed at once and served side by side. Needs root, docker.io, busybox-static, chromium and chromium-driver.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "all of this is a test")]

mod swarm;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swarmesh_tests::{
    agents,
    browser::{Browser, Driver},
    certificates::serial,
    dockerlab::residue,
    http::{node, none_failed},
    load::{Load, field},
    printed::DEFAULT_HOST,
    rows::{Row, run},
};

use crate::swarm::{FLOW_PROXY, NODES, PREFIX, Swarm};

fn evenly(turns: &BTreeMap<String, usize>, tasks: usize, each: usize) -> Result<()> {
    ensure!(turns.len() == tasks && turns.values().all(|n| *n == each), "not {each} for each of {tasks}: {turns:?}");
    Ok(())
}

const ROWS: &[Row<Swarm>] = &[
    ("HRM1 http: every node answers for the domain, by all replicas in turn", |swarm| {
        for index in 0..NODES {
            evenly(&swarm.client.turns(index, "app.example.com", 10)?, 5, 2).with_context(|| format!("through n{}", index + 1))?;
            swarm.client.ask(index, "other.example.com", "/")?.is(503)?;
        }
        let answer = swarm.client.ask(0, "APP.example.com:80", "/x?y=1")?;
        answer.is_of("http_session-example")?;
        answer.asked_for("/x?y=1")
    }),
    ("HRM2 sticky sessions: the application's cookie keeps its task", |swarm| {
        for index in 0..NODES {
            let mut used = BTreeSet::new();
            for _ in 0..4 {
                let login = swarm.client.ask(index, "session.example.com", "/login?cookie=SESSION")?;
                login.is_of("sticky_session-example")?;
                let cookie = login.header("set-cookie").and_then(|v| v.split(';').next()).context("no cookie")?;
                let cookie = format!("Cookie: theme=dark; {cookie}");
                let spread = swarm.client.spread(index, "session.example.com", "/", 6, &["-H", &cookie])?;
                ensure!(spread.len() == 1 && spread.contains_key(&login.told("task")), "began with {}: {spread:?}", login.told("task"));
                used.insert(login.told("task"));
            }
            ensure!(used.len() > 1, "all sessions are those of {used:?}");
        }
        Ok(())
    }),
    ("HRM3 https: passed through to the service's own certificate, http redirected", |swarm| {
        for index in 0..NODES {
            swarm.client.ask(index, "secure.example.com", "/account?id=1")?.leads_to(301, "https://secure.example.com/account?id=1")?;
            for port in [443, 8443] {
                let answer = swarm.client.ask_tls(index, "secure.example.com", port, "/account")?;
                answer.is_of("https_session-example")?;
                ensure!(answer.told("local").ends_with(":8443"), "{answer:?}");
            }
            let subject = swarm.client.certificate(index, "secure.example.com", "subject")?;
            ensure!(subject.contains("secure.example.com"), "{subject}");
        }
        ensure!(swarm.client.certificate(0, "other.example.com", "subject").is_err(), "a name that nobody has was answered");
        Ok(())
    }),
    ("HRM4 HRM5 two ports of one service are two sites; redirection to another domain", |swarm| {
        for index in 0..NODES {
            for (host, port) in [("site1.example.com", ":8000"), ("site2.example.com", ":8001")] {
                let answer = swarm.client.ask(index, host, "/")?;
                answer.is_of("twosite")?;
                ensure!(answer.told("local").ends_with(port), "{host}: {answer:?}");
            }
            swarm.client.ask(index, "oldsite.example.com", "/a")?.leads_to(301, "http://foo.example.com/a")?;
            swarm.client.ask(index, "foo.example.com", "/a")?.is_of("lbinfo")?;
        }
        Ok(())
    }),
    ("IL1 http and websocket: the counter example", |swarm| {
        for index in 0..NODES {
            evenly(&swarm.client.turns(index, "app.dockerdemos.com", 6)?, 2, 3)?;
            let mut socket = swarm.client.websocket(index, "app.dockerdemos.com", "/total")?;
            ensure!(socket.task.starts_with("counter_web."), "{socket:?}");
            for total in ["1", "2", "and a longer one"] {
                socket.say(total)?;
            }
        }
        Ok(())
    }),
    ("IL3 sticky_session_cookie: each cookie has its task, on every node", |swarm| {
        evenly(&swarm.client.turns(0, "sticky.local", 10)?, 5, 2).context("clients without the cookie are balanced")?;
        let mut used = BTreeSet::new();
        for session in 0..8 {
            let cookie = format!("session=151015841529800920{session}");
            let mut tasks = BTreeMap::new();
            for index in 0..NODES {
                tasks.extend(swarm.client.spread(index, "sticky.local", "/ping", 2, &["--cookie", &cookie])?);
            }
            ensure!(tasks.len() == 1, "{cookie}: {tasks:?}");
            used.extend(tasks.into_keys());
        }
        ensure!(used.len() > 1, "all cookies lead to {used:?}");
        Ok(())
    }),
    ("IL4 ssl termination: certificate and key from two of Docker's secrets, and the headers in print", |swarm| {
        for index in 0..NODES {
            let answer = swarm.client.ask_tls(index, "demo.local", 443, "/ping")?;
            answer.is_of("demo")?;
            for header in ["x-request-id", "x-proxy-id", "x-server-info", "x-upstream-addr", "x-upstream-response-time"] {
                ensure!(answer.header(header).is_some_and(|v| !v.is_empty()), "no {header}: {answer:?}");
            }
            ensure!(answer.header("x-upstream-addr") == Some(answer.told("local").as_str()), "{answer:?}");
            let subject = swarm.client.certificate(index, "demo.local", "subject")?;
            ensure!(subject.contains("SomeCity") && subject.contains("demo.local"), "{subject}");
        }
        Ok(())
    }),
    ("IL4 another certificate: new secrets, given to the proxy's own service and named by the label; 0 failed", |swarm| {
        let (certificate, key) = swarm.certificates.pair("demo.local.2", "demo.local")?;
        swarm.docker(&["secret", "create", "demo.local.cert.2", &certificate])?;
        swarm.docker(&["secret", "create", "demo.local.key.2", &key])?;
        let load = swarm.client.load("demo.local")?;
        let update = ["service", "update", "--quiet", "--detach", "--no-resolve-image"];
        let given = [
            "--secret-add",
            "demo.local.cert.2",
            "--secret-add",
            "demo.local.key.2",
            "--update-monitor",
            "500ms",
            "--update-parallelism",
            "3",
            "edge",
        ];
        swarm.docker(&[&update[..], &given].concat())?;
        swarm.wait("the proxy's own service is replaced on every node", 60, || {
            let edge = swarm.lab.api(0, "/services/edge")?;
            Ok(edge["UpdateStatus"]["State"] == "completed")
        })?;
        let named =
            ["--label-add", "com.docker.lb.ssl_cert=demo.local.cert.2", "--label-add", "com.docker.lb.ssl_key=demo.local.key.2", "demo"];
        swarm.docker(&[&update[..], &named].concat())?;
        let wanted = serial(&certificate)?;
        swarm.wait("every node shows the new certificate", 30, || {
            Ok((0..NODES).all(|index| swarm.client.certificate(index, "demo.local", "serial").is_ok_and(|shown| shown == wanted)))
        })?;
        none_failed(load)
    }),
    ("IL5 ssl passthrough: the service's own certificate", |swarm| {
        let own = serial(&swarm.lab.work().join("pass.local.cert").to_string_lossy())?;
        for index in 0..NODES {
            swarm.client.ask_tls(index, "pass.local", 443, "/ping")?.is_of("passed")?;
            let shown = swarm.client.certificate(index, "pass.local", "serial")?;
            ensure!(shown == own, "{shown}");
        }
        Ok(())
    }),
    ("IL6 vip mode: one upstream, Docker's VIP, and all four tasks behind it; task mode: the tasks", |swarm| {
        let vip = format!("{}:8080", swarm.lab.vip("vip", "demo")?);
        for index in 0..NODES {
            let answer = swarm.client.ask(index, "vip.local", "/ping")?;
            answer.is_of("vip")?;
            ensure!(answer.header("x-upstream-addr") == Some(&vip), "not {vip}: {answer:?}");
            evenly(&swarm.client.turns(index, "vip.local", 8)?, 4, 2).context("behind the VIP")?;
            let answer = swarm.client.ask(index, "sticky.local", "/ping")?;
            ensure!(answer.header("x-upstream-addr") == Some(answer.told("local").as_str()), "{answer:?}");
        }
        Ok(())
    }),
    ("DFP1 DFP2 the demo by its paths, on every node; scaled, all replicas; removed, nobody", |swarm| {
        let asked = |index: usize, path: &str| swarm.client.curl(&[&format!("http://{}{path}", node(index))]);
        for index in 0..NODES {
            let answer = asked(index, "/demo/hello")?;
            answer.is_of("go-demo")?;
            answer.asked_for("/demo/hello")?;
            asked(index, "/demo/person/1")?.is_of("go-demo")?;
            asked(index, "/demo/other")?.is(503)?;
            asked(index, "/")?.is(503)?;
        }
        swarm.docker(&["service", "scale", "--detach", "go-demo=5"])?;
        swarm.settled()?;
        for index in 0..NODES {
            evenly(&swarm.client.turns_at(index, "anything", "/demo/hello/", 10)?, 5, 2)?;
        }
        swarm.docker(&["service", "rm", "go-demo"])?;
        swarm.wait("it is not available through any node", 10, || {
            for index in 0..NODES {
                asked(index, "/demo/hello")?.is(503)?;
            }
            Ok(true)
        })
    }),
    ("DFP3 two domains, and one by a wildcard", |swarm| {
        for index in 0..NODES {
            for (host, service) in [
                ("my-domain.com", "two-domains"),
                ("my-other-domain.com", "two-domains"),
                ("my-domain.org", "wildcard"),
                ("domain.org", "wildcard"),
            ] {
                swarm.client.ask(index, host, "/demo/other")?.is_of(service)?;
            }
            for host in ["domain.com", "my-domain.org.com"] {
                swarm.client.ask(index, host, "/demo/other")?.is(503)?;
            }
        }
        Ok(())
    }),
    ("DFP4 paths are rewritten: reqRepSearch as printed, and reqPathSearchReplace", |swarm| {
        for index in 0..NODES {
            for (path, service) in [("something", "rewritten"), ("anything", "replaced")] {
                let answer = swarm.client.curl(&[&format!("http://{}/{path}/hello?who=world", node(index))])?;
                answer.is_of(service)?;
                answer.asked_for("/demo/hello?who=world").context(path)?;
            }
        }
        Ok(())
    }),
    ("DFP5 users from one of Docker's secrets: 401 without, 200 with", |swarm| {
        for index in 0..NODES {
            let url = format!("http://{}/guarded/x", node(index));
            let answer = swarm.client.curl(&[&url])?;
            answer.is(401)?;
            ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=")), "{answer:?}");
            swarm.client.curl(&["-u", "observer:password", &url])?.is_of("guarded")?;
            swarm.client.curl(&["-u", "observer:other", &url])?.is(401)?;
        }
        Ok(())
    }),
    ("DFP6 users of the node, for all of its services: 401 without, 200 with; another list counts at once", |swarm| {
        let users = swarm.lab.work().join("node-users");
        fs::write(&users, "my-user-1:my-pass-1\nmy-user-2:my-pass-2\n")?;
        swarm.restart_with(&format!("users = {users:?}\n"))?;
        let asked = |index: usize, more: &[&str]| {
            swarm.client.curl(&[&["--header", "Host: my-domain.com"], more, &[&format!("http://{}/demo/hello", node(index))]].concat())
        };
        let outcome = (|| {
            for index in 0..NODES {
                let answer = asked(index, &[])?;
                answer.is(401)?;
                ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=\"defaultRealm\"")), "{answer:?}");
                asked(index, &["-u", "my-user-1:my-pass-1"])?.is_of("two-domains")?;
                asked(index, &["-u", "my-user-2:my-pass-2"])?.is_of("two-domains")?;
                asked(index, &["-u", "my-user-2:my-pass-1"])?.is(401)?;
                // Services of other systems do not ask for them.
                swarm.client.ask(index, "app.example.com", "/")?.is(200)?;
            }
            fs::write(&users, "my-user-3:my-pass-3\n")?;
            swarm.wait("another user gets in", 10, || {
                asked(0, &["-u", "my-user-3:my-pass-3"])?.is_of("two-domains")?;
                asked(0, &["-u", "my-user-1:my-pass-1"])?.is(401)?;
                Ok(true)
            })
        })();
        swarm.restart_with("")?;
        outcome
    }),
    ("DFP8 a certificate is put to each node's API: https fails before, and works after", |swarm| {
        let name = "my-domain.com";
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-addext", "subjectAltName=DNS:my-domain.com"];
        let (certificate, key) = swarm.certificates.of(name, name, &key)?;
        let both = swarm.lab.work().join("my-domain.com.pem");
        fs::write(&both, fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?)?;
        let (body, url) =
            (format!("@{}", both.display()), format!("http://{FLOW_PROXY}/v1/docker-flow-proxy/cert?certName=my-domain.com.pem"));
        for index in 0..NODES {
            ensure!(swarm.client.certificate(index, name, "serial").is_err(), "n{} has a certificate already", index + 1);
            swarm.node(index).curl(&["-XPUT", "--data-binary", &body, &url])?.is(200)?;
            swarm.client.ask_tls(index, name, 443, "/demo/other")?.is_of("two-domains")?;
            ensure!(swarm.client.certificate(index, name, "serial")? == serial(&certificate)?, "another one");
        }
        Ok(())
    }),
    ("IL10 a default host answers for what nobody has", |swarm| {
        swarm.create(DEFAULT_HOST, "8080")?;
        swarm.settled()?;
        for index in 0..NODES {
            swarm.client.ask(index, "nobody.example", "/x")?.is_of("demo-default")?;
            swarm.client.ask(index, "app.example.com", "/x")?.is_of("http_session-example")?;
        }
        Ok(())
    }),
    ("L1 rolling update start-first, 50 requests a second through all nodes: 0 failed", |swarm| {
        let before: BTreeSet<String> = swarm.lab.tasks("rolling")?.into_iter().map(|c| c.id).collect();
        let load = swarm.client.load("rolling.local")?;
        swarm.docker(&["service", "update", "--quiet", "--detach", "--no-resolve-image", "--force", "rolling"])?;
        swarm.wait("all six are replaced", 90, || {
            let now = swarm.lab.tasks("rolling")?;
            Ok(now.len() == 6 && now.iter().all(|c| c.healthy && !before.contains(&c.id)))
        })?;
        swarm.settled()?;
        none_failed(load)
    }),
    ("L2 scaled 6 to 2 to 6, 50 requests a second through all nodes: 0 failed", |swarm| {
        let load = swarm.client.load("rolling.local")?;
        has_heard(swarm, &load, 6)?;
        for count in ["2", "6"] {
            swarm.docker(&["service", "scale", "--detach", &format!("rolling={count}")])?;
            swarm.settled()?;
        }
        has_heard(swarm, &load, 10)?;
        none_failed(load)
    }),
    ("L3 from task to vip mode, and scaled 6 to 2 to 6 there, 50 requests a second through all nodes: 0 failed", |swarm| {
        let load = swarm.client.load("rolling.local")?;
        has_heard(swarm, &load, 6)?;
        let update = ["service", "update", "--quiet", "--detach", "--no-resolve-image"];
        swarm.docker(&[&update[..], &["--label-add", "com.docker.lb.backend_mode=vip", "rolling"]].concat())?;
        let vip = format!("{}:8080", swarm.lab.vip("rolling", "demo")?);
        swarm.wait("every node leads to the VIP", 10, || {
            Ok((0..NODES).all(|index| {
                swarm.client.ask(index, "rolling.local", "/").is_ok_and(|answer| answer.header("x-upstream-addr") == Some(&vip))
            }))
        })?;
        for count in ["2", "6"] {
            swarm.docker(&["service", "scale", "--detach", &format!("rolling={count}")])?;
            swarm.settled()?;
        }
        has_heard(swarm, &load, 10)?;
        none_failed(load)
    }),
    ("HRM2 in chromium: a session stays with its task; without its cookie, and in another profile, others answer", |swarm| {
        let driver =
            Driver::start(swarm.lab.lasting_command_in_client(1)?, swarm.client.namespace().to_owned(), swarm.lab.work().join("chromium"))?;
        let hosts = ["session.example.com", "app.dockerdemos.com", "demo.local"];
        let first = driver.open("first", &hosts, node(0))?;
        let task = session(&first)?;
        let second = driver.open("second", &hosts, node(0))?;
        second.load("http://session.example.com/")?;
        ensure!(second.cookies()?.is_empty(), "a new profile has cookies: {:?}", second.cookies()?);
        let mut others = BTreeSet::from([session(&second)?]);
        for _ in 0..9 {
            second.forget_cookies()?;
            others.insert(session(&second)?);
            if others.len() > 2 {
                break;
            }
        }
        ensure!(others.len() > 2, "ten new sessions had {others:?}");
        // Nor did those disturb the first.
        let again = shown(&first.load("http://session.example.com/")?)?;
        ensure!(again == task, "{task} became {again}");

        first.load("http://app.dockerdemos.com/")?;
        let said = first.ask_page(
            "const socket = new WebSocket('ws://app.dockerdemos.com/total'), heard = [];
             socket.onerror = () => done('failed');
             socket.onmessage = message => { heard.push(message.data); heard.length == 1 ? socket.send('1 more') : done(heard); };",
        )?;
        ensure!(said[0].as_str().is_some_and(|greeting| greeting.starts_with("counter_web.")) && said[1] == "1 more", "{said}");

        let page = first.load("https://demo.local/ping")?;
        ensure!(field(&page, "service").as_deref() == Some("demo"), "{page}");
        let protocol = first.ask_page("done(performance.getEntriesByType('navigation')[0].nextHopProtocol)")?;
        ensure!(protocol == "h2", "{protocol}");
        Ok(())
    }),
    ("S28 nothing went wrong in the agents", |swarm| {
        for index in 0..NODES {
            let status = swarm.admin(index, "/v1/status")?;
            for key in ["problems", "pending"] {
                ensure!(status[key] == Value::Array(Vec::new()), "n{}: {}", index + 1, status[key]);
            }
            let log = fs::read_to_string(agents::log(&swarm.lab, index)?)?;
            let bad: Vec<&str> = log.lines().filter(|l| l.contains("ERROR") || l.contains("panicked")).collect();
            ensure!(bad.is_empty(), "n{}: {bad:?}", index + 1);
        }
        Ok(())
    }),
];

/// Waits until so many tasks have answered a load: those of before a change, and then new ones.
fn has_heard(swarm: &Swarm, load: &Load, tasks: usize) -> Result<()> {
    swarm.wait(&format!("{tasks} tasks have answered"), 10, || {
        let heard = load.so_far().tasks;
        ensure!(heard.len() >= tasks, "{heard:?}");
        Ok(true)
    })
}

/// Logs in, and loads the page five times more: the one task that answered all of it.
fn session(browser: &Browser<'_>) -> Result<String> {
    let task = shown(&browser.load("http://session.example.com/login?cookie=SESSION")?)?;
    ensure!(browser.cookies()? == ["SESSION"], "the session's cookie is not kept: {:?}", browser.cookies()?);
    for _ in 0..5 {
        let now = shown(&browser.load("http://session.example.com/")?)?;
        ensure!(now == task, "a session that began with {task} was led to {now}");
    }
    Ok(task)
}

fn shown(page: &str) -> Result<String> {
    ensure!(field(page, "service").as_deref() == Some("sticky_session-example"), "{page}");
    field(page, "task").context("no task on the page")
}

#[test]
fn http_rows() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let swarm = Swarm::up().unwrap();
    // Whatever the rows say, nothing may stay.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&swarm, ROWS)));
    if outcome.is_err()
        && let Some(keep) = std::env::var_os("SWARM_LOGS")
    {
        for node in 0..NODES {
            let log = agents::log(&swarm.lab, node).unwrap();
            let _copied = fs::copy(log, Path::new(&keep).join(format!("n{}.log", node + 1)));
        }
    }
    drop(swarm);
    assert_eq!(residue(PREFIX), Vec::<String>::new());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
