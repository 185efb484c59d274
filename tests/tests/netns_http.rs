//! What users of Docker's HTTP routing mesh, of Interlock and of Docker Flow Proxy had in print, run on a three-node emulated
//! swarm: stacks, commands and requests are the documents' own, the servers in them are the emulator's.
//!
//! Each row deploys what it needs in the place of what was there. The service `edge` stands for the proxy's own service of the
//! documents: it is on the networks that the proxy was on, on every node.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_tests::{
    lab::Lab,
    load::{Load, field},
    netns::spawn_within,
    patience::patient,
    rows::{Row, run},
    service_create::service,
    websocket::WebSocket,
};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const CLIENT: &str = "client1";

/// The lab, and what the nodes' operator keeps in files.
struct Site {
    lab: Lab,
    files: tempfile::TempDir,
}

/// What curl printed.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn read(printed: &str) -> Result<Self> {
        let printed = printed.replace("\r\n", "\n");
        let (head, body) = printed.split_once("\n\n").with_context(|| format!("no end of the head in {printed:?}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split_whitespace().nth(1)).and_then(|s| s.parse().ok()).context("no status")?;
        let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
        Ok(Self { status, headers, body: body.to_owned() })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A line of what the server tells: `task`, `service`, or a header that it got.
    fn told(&self, name: &str) -> String {
        field(&self.body, name).unwrap_or_default()
    }

    /// It came from this service, with 200.
    fn is_of(&self, service: &str) -> Result<()> {
        ensure!(self.status == 200, "{self:?}");
        ensure!(self.told("service") == format!("t_{service}"), "not from {service}: {self:?}");
        Ok(())
    }

    fn is(&self, status: u16) -> Result<()> {
        ensure!(self.status == status, "not {status}: {self:?}");
        Ok(())
    }

    /// It sends the client elsewhere.
    fn leads_to(&self, status: u16, location: &str) -> Result<()> {
        ensure!(self.status == status && self.header("location") == Some(location), "not {status} to {location}: {self:?}");
        Ok(())
    }

    /// The request line that the server got has this path.
    fn asked_for(&self, path: &str) -> Result<()> {
        ensure!(self.body.lines().any(|l| l == format!("GET {path} HTTP/1.1")), "the server was not asked for {path}: {self:?}");
        Ok(())
    }
}

fn node(index: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(index).unwrap_or(0)])
}

fn every_node(port: u16) -> Vec<SocketAddr> {
    (0..NODES.len()).map(|index| SocketAddr::new(node(index), port)).collect()
}

/// A stack of `services` and the networks of the documents; `networks` are those of the services' own.
fn stack(services: &str, networks: &str) -> String {
    format!(
        r#"
version: "3.8"
services:
    edge:
      image: example/edge
      networks: [ucp-hrm, demo, proxy]
      deploy: {{mode: global}}
{services}
networks:
    ucp-hrm:
      name: ucp-hrm
      labels: {{com.docker.ucp.mesh.http: "true"}}
    demo:
      name: demo
    proxy:
      name: proxy
{networks}
"#
    )
}

/// The operator's file for all nodes.
fn configure(files: &Path, more: &str) -> Result<()> {
    let [secrets, users] = ["secrets", "users"].map(|name| files.join(name));
    Ok(fs::write(
        files.join("swarmesh.toml"),
        format!("[router]\nsecrets = {secrets:?}\nusers = {users:?}\ncertificates = {files:?}\n{more}"),
    )?)
}

impl Site {
    fn up() -> Result<Self> {
        let files = tempfile::tempdir()?;
        fs::create_dir(files.path().join("secrets"))?;
        fs::write(files.path().join("users"), "")?;
        configure(files.path(), "")?;
        let config = format!("--agent-arg=--config={}", files.path().join("swarmesh.toml").display());
        let lab = Lab::up(
            "http",
            3,
            &stack("", ""),
            &["--agent-arg=--http=0.0.0.0:80", "--agent-arg=--https=0.0.0.0:443,0.0.0.0:8443", &config],
        )?;
        lab.settled(&NODES)?;
        Ok(Self { lab, files })
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_string_lossy().into_owned()
    }

    /// Puts `services` in the place of what was there, and waits until they are served.
    fn deploy(&self, services: &str, networks: &str, variables: &[(&str, &str)]) -> Result<()> {
        self.lab.deploy(&stack("", ""))?;
        self.lab.wait("what was there is gone", || {
            Ok(self.lab.snapshot()?["services"].as_array().is_some_and(|services| services.len() == 1))
        })?;
        self.lab.deploy_with(&stack(services, networks), variables)?;
        self.lab.lab(&["wait"])?;
        self.lab.settled(&NODES)
    }

    fn create_demo(&self, command: &str) -> Result<()> {
        let database = "docker service create --name go-demo-db --network go-demo mongo";
        self.create(&[(database, "27017"), (command, "8080")])
    }

    /// Services by the commands that documents print, each with the ports that its server listens on.
    fn create(&self, commands: &[(&str, &str)]) -> Result<()> {
        let services: String = commands.iter().map(|(command, ports)| service(command, ports)).collect::<Result<_>>()?;
        self.deploy(&services, "    go-demo:\n      name: go-demo\n", &[])
    }

    fn curl(&self, words: &[&str]) -> Result<Answer> {
        self.curl_from(CLIENT, words)
    }

    fn curl_from(&self, place: &str, words: &[&str]) -> Result<Answer> {
        let limit = patient(Duration::from_secs(10)).as_secs().to_string();
        let mut all = vec!["curl", "--silent", "--show-error", "--include", "--max-time", &limit];
        all.extend(words);
        Answer::read(&self.lab.run(place, &all)?)
    }

    /// `curl -H "Host: HOST" http://NODE/PATH`.
    fn ask(&self, index: usize, host: &str, path: &str) -> Result<Answer> {
        self.ask_with(index, host, path, &[])
    }

    fn ask_with(&self, index: usize, host: &str, path: &str, words: &[&str]) -> Result<Answer> {
        let (header, url) = (format!("Host: {host}"), format!("http://{}{path}", node(index)));
        let mut all = vec!["-H", &header, &url];
        all.extend(words);
        self.curl(&all)
    }

    /// `curl -k https://HOST:PORT/PATH`, with the name led to a node.
    fn ask_tls(&self, index: usize, host: &str, port: u16, path: &str) -> Result<Answer> {
        let (lead, url) = (format!("{host}:{port}:{}", node(index)), format!("https://{host}:{port}{path}"));
        self.curl(&["--insecure", "--resolve", &lead, &url])
    }

    /// Which tasks answer `count` requests.
    fn spread(&self, index: usize, host: &str, path: &str, count: usize, words: &[&str]) -> Result<BTreeMap<String, usize>> {
        let mut tasks = BTreeMap::new();
        for _ in 0..count {
            let answer = self.ask_with(index, host, path, words)?;
            answer.is(200)?;
            *tasks.entry(answer.told("task")).or_default() += 1;
        }
        Ok(tasks)
    }

    /// As [`Self::spread`], on one connection: a node's workers each count turns for themselves.
    fn turns(&self, index: usize, host: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        self.told_on_one_connection(index, host, count, "task: ")
    }

    /// As [`Self::turns`], by service.
    fn shares(&self, index: usize, host: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        self.told_on_one_connection(index, host, count, "service: t_")
    }

    fn told_on_one_connection(&self, index: usize, host: &str, count: usize, what: &str) -> Result<BTreeMap<String, usize>> {
        let (header, url) = (format!("Host: {host}"), format!("http://{}/[1-{count}]", node(index)));
        let printed = self.lab.run(CLIENT, &["curl", "--silent", "--show-error", "--fail", "-H", &header, &url])?;
        let mut told = BTreeMap::new();
        for value in printed.lines().filter_map(|l| l.strip_prefix(what)) {
            *told.entry(value.to_owned()).or_default() += 1;
        }
        ensure!(told.values().sum::<usize>() == count, "{count} requests: {told:?}");
        Ok(told)
    }

    /// What `openssl s_client` shows of the certificate: `subject`, `serial`.
    fn certificate(&self, index: usize, name: &str, shown: &str) -> Result<String> {
        let script = format!(
            "openssl s_client -connect {}:443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -{shown}",
            node(index)
        );
        self.lab.run(CLIENT, &["sh", "-c", &script])
    }

    /// The documents' own command: a certificate and its key, in two files.
    fn make_certificate(&self, name: &str) -> Result<(String, String)> {
        self.make_certificate_of(name, name, &["-newkey", "rsa:4096"])
    }

    fn make_certificate_of(&self, files: &str, name: &str, key: &[&str]) -> Result<(String, String)> {
        let [certificate, private] = ["cert", "key"].map(|end| self.file(&format!("{files}.{end}")));
        let subject = format!("/C=US/ST=SomeState/L=SomeCity/O=Interlock/CN={name}");
        let mut command = Command::new("openssl");
        command.args(["req", "-new"]).args(key).args(["-days", "3650", "-nodes", "-x509", "-subj", &subject]);
        let output = command.args(["-keyout", &private, "-out", &certificate]).output().context("cannot run openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok((certificate, private))
    }

    /// As [`Self::make_certificate`], sooner done, in files of another name.
    fn pair(&self, files: &str, name: &str) -> Result<(String, String)> {
        self.make_certificate_of(files, name, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn serial(&self, certificate: &str) -> Result<String> {
        let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in", certificate]).output()?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// 50 requests a second through all nodes.
    fn load(&self, host: &'static str) -> Result<Load> {
        Load::start_for(&self.lab.namespace(CLIENT), every_node(80), Some(host), 50)
    }

    /// `docker secret create NAME FILE`: on a node, secrets are files.
    fn secret(&self, name: &str, file: &str) -> Result<()> {
        let (new, place) = (self.file("new-secret"), Path::new(&self.file("secrets")).join(name));
        fs::copy(file, &new)?;
        Ok(fs::rename(new, place)?)
    }

    /// A file for servers that open TLS themselves.
    fn pem(&self, name: &str) -> Result<String> {
        let (certificate, key) = self.make_certificate(name)?;
        let pem = self.file(&format!("{name}.pem"));
        fs::write(&pem, fs::read_to_string(certificate)? + &fs::read_to_string(key)?)?;
        Ok(pem)
    }

    /// Restarts every agent, for what is read at its start.
    fn restart_agents(&self) -> Result<()> {
        for node in NODES {
            self.lab.lab(&["agent", node, "restart"])?;
        }
        self.lab.settled(&NODES)
    }

    fn wait_for_tasks(&self, service: &str, count: usize) -> Result<()> {
        self.lab.wait(&format!("{service} has {count} tasks and no other"), || {
            Ok(self.lab.tasks(service)?.len() == count && self.lab.all_tasks(service)?.len() == count)
        })?;
        self.lab.settled(&NODES)
    }
}

/// The Compose file of the HTTP routing mesh's examples.
const SESSION_EXAMPLE: &str = r#"
    redis:
      image: redis:3.0.7
      hostname: redis
      networks:
        - back-end
      deploy:
        mode: replicated
        replicas: 1
    session-example:
      image: ahromis/session-example:0.1
      ports:
        - 8080
      networks:
        - back-end
        - ucp-hrm
      deploy:
        mode: replicated
        replicas: 5
        labels:
          - com.docker.ucp.mesh.http.8080=external_route=http://${DOMAIN},internal_port=8080
"#;
const BACK_END: &str = "    back-end:\n      driver: overlay\n";
const DOMAIN: &[(&str, &str)] = &[("DOMAIN", "app.example.com")];

/// `docker service create` of Docker Flow Proxy's demo, with these labels besides.
fn go_demo(more: &str) -> String {
    format!(
        r"docker service create --name go-demo \
    -e DB=go-demo-db \
    --network go-demo \
    --network proxy \
    --label com.df.notify=true \
    --label com.df.distribute=true \
    --label com.df.port=8080 \
    {more} \
    vfarcic/go-demo"
    )
}

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

fn none_failed(load: Load) -> Result<()> {
    let outcome = load.stop();
    ensure!(outcome.attempted > 50, "only {} requests were tried", outcome.attempted);
    ensure!(outcome.failed == 0, "{} of {} requests failed: {:?}", outcome.failed, outcome.attempted, outcome.failures);
    Ok(())
}

/// Handshakes with every node, one after the other and each a new one, until it is told to stop.
struct Handshakes {
    stop: PathBuf,
    running: Vec<JoinHandle<Result<String>>>,
}

impl Handshakes {
    fn start(site: &Site) -> Result<Self> {
        let stop = PathBuf::from(site.file("stop-handshakes"));
        // Nothing may be left of the last run.
        let _ = fs::remove_file(&stop);
        let mut running = Vec::new();
        for index in 0..NODES.len() {
            let lead = format!("demo.local:443:{}", node(index));
            let script = format!(
                "while [ ! -e {} ]; do curl --silent --show-error --insecure --max-time 5 --resolve {lead} --output /dev/null \
                 --write-out '%{{http_code}}\\n' https://demo.local/ping 2>&1; done",
                stop.display()
            );
            let namespace = site.lab.namespace(CLIENT);
            let run = move || Ok(String::from_utf8_lossy(&Command::new("sh").args(["-c", &script]).output()?.stdout).into_owned());
            running.push(spawn_within(&namespace, run)?);
        }
        Ok(Self { stop, running })
    }

    fn stop(self) -> Result<()> {
        fs::write(&self.stop, "")?;
        for run in self.running {
            let printed = run.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            let (good, bad): (Vec<&str>, Vec<&str>) = printed.lines().partition(|line| *line == "200");
            ensure!(bad.is_empty(), "{} of {} failed: {:?}", bad.len(), good.len() + bad.len(), bad.first());
            ensure!(good.len() > 20, "only {} handshakes", good.len());
        }
        Ok(())
    }
}

const ROWS: &[Row<Site>] = &[
    ("HRM1 http: every node answers for the domain, by all replicas in turn", |site| {
        site.deploy(SESSION_EXAMPLE, BACK_END, DOMAIN)?;
        for index in 0..3 {
            let turns = site.turns(index, "app.example.com", 10)?;
            ensure!(turns.len() == 5 && turns.values().all(|n| *n == 2), "through node {}: {turns:?}", index + 1);
            site.ask(index, "other.example.com", "/")?.is(503)?;
        }
        site.ask(0, "APP.example.com:80", "/x?y=1")?.asked_for("/x?y=1")
    }),
    ("HRM2 sticky sessions: the application's cookie keeps its task, also when the service is scaled", |site| {
        site.deploy(&SESSION_EXAMPLE.replace("internal_port=8080", "internal_port=8080,sticky_sessions=SESSION"), BACK_END, DOMAIN)?;
        ensure!(site.turns(0, "app.example.com", 10)?.len() == 5, "without a cookie, all replicas are asked");
        let mut sessions = Vec::new();
        for _ in 0..4 {
            let login = site.ask(0, "app.example.com", "/login?cookie=SESSION")?;
            login.is_of("session-example")?;
            let cookie = login.header("set-cookie").and_then(|v| v.split(';').next()).context("no cookie")?;
            sessions.push((format!("Cookie: theme=dark; {cookie}"), login.told("task")));
        }
        let stay = |site: &Site| -> Result<()> {
            for (cookie, task) in &sessions {
                let spread = site.spread(0, "app.example.com", "/", 6, &["-H", cookie])?;
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
        let pem = site.pem("secure.example.com")?;
        let labels = r"          - com.docker.ucp.mesh.http.1=external_route=http://${DOMAIN},redirect=https://${DOMAIN}
          - com.docker.ucp.mesh.http.8443=external_route=sni://${DOMAIN},internal_port=8443
";
        let (kept, _) = SESSION_EXAMPLE.split_once("          - com.docker").context("the example has no label")?;
        let own = format!("        - 8443\n      environment:\n        - SPRING_PROFILES_ACTIVE=https\n        - WHOAMI_TLS={pem}\n");
        let https = kept.replace("        - 8080\n", &own) + labels;
        site.deploy(&https, BACK_END, &[("DOMAIN", "secure.example.com")])?;
        for index in 0..3 {
            site.ask(index, "secure.example.com", "/")?.leads_to(301, "https://secure.example.com/")?;
            site.ask(index, "secure.example.com", "/account?id=1")?.leads_to(301, "https://secure.example.com/account?id=1")?;
            for port in [443, 8443] {
                let answer = site.ask_tls(index, "secure.example.com", port, "/account")?;
                answer.is_of("session-example")?;
                answer.asked_for("/account")?;
                ensure!(answer.told("local").ends_with(":8443"), "{answer:?}");
            }
            let subject = site.certificate(index, "secure.example.com", "subject")?;
            ensure!(subject.contains("secure.example.com"), "{subject}");
        }
        ensure!(site.certificate(0, "other.example.com", "subject").is_err(), "a name that nobody has was answered");
        Ok(())
    }),
    ("HRM4 two ports of one service are two sites", |site| {
        site.create(&[(
            r"docker service create \
      -l com.docker.ucp.mesh.http.8000=external_route=http://site1.example.com,internal_port=8000 \
      -l com.docker.ucp.mesh.http.8001=external_route=http://site2.example.com,internal_port=8001 \
      -p 8000 \
      -p 8001 \
      --network ucp-hrm \
      --replicas 3 \
      --name twosite ahromis/nginx-twosite:latest",
            "8000,8001",
        )])?;
        for index in 0..3 {
            for (host, port) in [("site1.example.com", ":8000"), ("site2.example.com", ":8001")] {
                let answer = site.ask(index, host, "/")?;
                answer.is_of("twosite")?;
                ensure!(answer.told("local").ends_with(port), "{host}: {answer:?}");
            }
        }
        Ok(())
    }),
    ("HRM5 redirection to another domain", |site| {
        site.create(&[(
            r"docker service create \
      -l com.docker.ucp.mesh.http.1=external_route=http://oldsite.example.com,redirect=http://foo.example.com \
      -l com.docker.ucp.mesh.http.8080=external_route=http://foo.example.com,internal_port=8080 \
      --replicas 3 \
      --network ucp-hrm \
      --name lbinfo \
      ahromis/lbinfo:latest",
            "8080",
        )])?;
        for index in 0..3 {
            site.ask(index, "oldsite.example.com", "/a")?.leads_to(301, "http://foo.example.com/a")?;
            site.ask(index, "foo.example.com", "/a")?.is_of("lbinfo")?;
        }
        Ok(())
    }),
    ("HRM6 a redirect and the name's TLS in two labels; a network that is labelled later", |site| {
        let pem = site.pem("example.com")?;
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
            site.ask(index, "example.com", "/")?.leads_to(301, "https://example.com/")?;
            site.ask_tls(index, "example.com", 443, "/")?.is_of("site")?;
        }
        Ok(())
    }),
    ("IL1 http and websocket: the counter example", |site| {
        let services = r"
    web:
      image: dockersuccess/webserver:latest
      environment:
        app_url: app:8080
        WHOAMI_TCP: 2015
      deploy:
        replicas: 2
        labels:
          com.docker.lb.hosts: ${DOMAIN:-app.dockerdemos.com}
          com.docker.lb.port: 2015
          com.docker.lb.websocket_endpoints: /total
      networks:
        - demo
    app:
      image: dockersuccess/counter-demo:latest
      deploy:
        replicas: 5
        endpoint_mode: dnsrr
      networks:
        - demo
        - backend
    db:
      image: redis:latest
      networks:
        - backend
";
        site.deploy(services, "    backend:\n      driver: overlay\n", &[])?;
        for (index, target) in every_node(80).into_iter().enumerate() {
            let turns = site.turns(index, "app.dockerdemos.com", 6)?;
            ensure!(turns.len() == 2 && turns.values().all(|n| *n == 3), "{turns:?}");
            let mut socket = WebSocket::open(&site.lab.namespace(CLIENT), target, "app.dockerdemos.com", "/total")?;
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
            let spread = site.spread(index, "demo.local", "/ping", 6, &[])?;
            ensure!(spread.len() == 1, "through node {}: {spread:?}", index + 1);
            first.extend(spread);
        }
        ensure!(first.len() == 1, "the client has another task behind another node: {first:?}");
        Ok(())
    }),
    ("IL3 sticky_session_cookie: each cookie has its task, on every node", |site| {
        site.create(&[(
            r"docker service create --name demo --network demo --detach=false --replicas=5 \
    --label com.docker.lb.hosts=demo.local --label com.docker.lb.port=8080 \
    --label com.docker.lb.sticky_session_cookie=session ehazlett/docker-demo",
            "8080",
        )])?;
        ensure!(site.turns(0, "demo.local", 10)?.len() == 5, "clients without the cookie are balanced");
        let mut used = std::collections::BTreeSet::new();
        for session in 0..12 {
            let cookie = format!("session=151015841529800920{session}");
            let mut tasks = BTreeMap::new();
            for index in 0..3 {
                tasks.extend(site.spread(index, "demo.local", "/ping", 2, &["--cookie", &cookie])?);
            }
            ensure!(tasks.len() == 1, "{cookie}: {tasks:?}");
            used.extend(tasks.into_keys());
        }
        ensure!(used.len() > 1, "all cookies lead to {used:?}");
        Ok(())
    }),
    ("IL4 ssl termination: certificate and key from secrets, and the headers in print", |site| {
        let (certificate, key) = site.make_certificate("demo.local")?;
        site.secret("demo.local.cert", &certificate)?;
        site.secret("demo.local.key", &key)?;
        site.create(&[(
            r"docker service create \
    --name demo \
    --network demo \
    --label com.docker.lb.hosts=demo.local \
    --label com.docker.lb.port=8080 \
    --label com.docker.lb.ssl_cert=demo.local.cert \
    --label com.docker.lb.ssl_key=demo.local.key \
    ehazlett/docker-demo",
            "8080",
        )])?;
        for index in 0..3 {
            let answer = site.ask_tls(index, "demo.local", 443, "/ping")?;
            answer.is_of("demo")?;
            for header in ["x-request-id", "x-proxy-id", "x-server-info", "x-upstream-addr", "x-upstream-response-time"] {
                ensure!(answer.header(header).is_some_and(|v| !v.is_empty()), "no {header}: {answer:?}");
            }
            ensure!(answer.header("x-upstream-addr") == Some(answer.told("local").as_str()), "{answer:?}");
            ensure!(answer.header("x-request-id") == Some(answer.told("x-request-id").as_str()), "{answer:?}");
            let subject = site.certificate(index, "demo.local", "subject")?;
            for part in ["C = US", "ST = SomeState", "L = SomeCity", "O = Interlock", "CN = demo.local"] {
                ensure!(subject.contains(part) || subject.contains(&part.replace(" = ", "=")), "{part} is not in {subject}");
            }
        }
        Ok(())
    }),
    ("IL5 ssl passthrough: the service's own certificate", |site| {
        let pem = site.pem("pass.local")?;
        let command = format!(
            r"docker service create \
    --name demo \
    --network demo \
    --detach=false \
    --label com.docker.lb.hosts=pass.local \
    --label com.docker.lb.port=8080 \
    --label com.docker.lb.ssl_passthrough=true \
    --env METADATA=demo-ssl-passthrough \
    --env WHOAMI_TLS={pem} \
    ehazlett/docker-demo"
        );
        site.create(&[(&command, "8080")])?;
        let own = site.serial(&pem)?;
        for index in 0..3 {
            site.ask_tls(index, "pass.local", 443, "/ping")?.is_of("demo")?;
            let shown = site.certificate(index, "pass.local", "serial")?;
            ensure!(shown == own, "{shown}");
        }
        Ok(())
    }),
    ("IL6 vip mode: one upstream, the service's VIP, and all four tasks behind it", |site| {
        site.create(&[(
            r#"docker service create \
    --name demo \
    --network demo \
    --detach=false \
    --replicas=4 \
    --label com.docker.lb.hosts=demo.local \
    --label com.docker.lb.port=8080 \
    --label com.docker.lb.backend_mode=vip \
    --env METADATA="demo-vip-1" \
    ehazlett/docker-demo"#,
            "8080",
        )])?;
        let vip = format!("{}:8080", site.lab.vip("demo", "demo")?);
        for index in 0..3 {
            let answer = site.ask(index, "demo.local", "/ping")?;
            answer.is_of("demo")?;
            ensure!(answer.header("x-upstream-addr") == Some(&vip), "not {vip}: {answer:?}");
        }
        let turns = site.turns(0, "demo.local", 8)?;
        ensure!(turns.len() == 4 && turns.values().all(|n| *n == 2), "behind the VIP: {turns:?}");
        Ok(())
    }),
    ("IL7 a canary beside four tasks: 20 % in task mode, 50 % in vip mode", |site| {
        let demo = |name: &str, replicas: u32, mode: &str| {
            format!(
                r"docker service create --name {name} --network demo --replicas={replicas} \
                --label com.docker.lb.hosts=demo.local --label com.docker.lb.port=8080 \
                --label com.docker.lb.backend_mode={mode} ehazlett/docker-demo"
            )
        };
        for (mode, share) in [("task", 20), ("vip", 50)] {
            site.create(&[(&demo("demo", 4, mode), "8080"), (&demo("canary", 1, mode), "8080")])?;
            for index in 0..3 {
                let shares = site.shares(index, "demo.local", 100)?;
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
            let answer = site.ask(index, "demo.local", "/app/ping/?x=1")?;
            answer.is_of("app")?;
            answer.asked_for("/ping/?x=1")?;
            site.ask(index, "demo.local", "/app/ping?x=1")?.leads_to(301, "/app/ping/?x=1")?;
            let answer = site.ask(index, "demo.local", "/api/ping")?;
            answer.is_of("api")?;
            answer.asked_for("/api/ping")?;
            site.ask(index, "demo.local", "/other")?.is(404)?;
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
            site.ask(index, "old.local", "/ping")?.leads_to(302, "http://new.local/ping")?;
            site.ask(index, "new.local", "/ping")?.is_of("demo")?;
        }
        Ok(())
    }),
    ("IL10 a default host answers for what nobody has", |site| {
        site.create(&[
            (
                r"docker service create \
    --name demo-default \
    --network demo \
    --detach=false \
    --replicas=1 \
    --label com.docker.lb.default_backend=true \
    --label com.docker.lb.port=8080 \
    ehazlett/interlock-default-app",
                "8080",
            ),
            (
                r"docker service create --name demo --network demo --label com.docker.lb.hosts=demo.local \
    --label com.docker.lb.port=8080 ehazlett/docker-demo",
                "8080",
            ),
        ])?;
        for index in 0..3 {
            site.ask(index, "nobody.example", "/x")?.is_of("demo-default")?;
            site.ask(index, "demo.local", "/x")?.is_of("demo")?;
        }
        Ok(())
    }),
    ("DFP1 the demo: by its path, on every node; scaled, all replicas; removed, nobody", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo"))?;
        for index in 0..3 {
            let answer = site.curl(&[&format!("http://{}/demo/hello", node(index))])?;
            answer.is_of("go-demo")?;
            answer.asked_for("/demo/hello")?;
            site.curl(&[&format!("http://{}/", node(index))])?.is(503)?;
        }
        site.lab.lab(&["scale", "t_go-demo=5"])?;
        site.wait_for_tasks("go-demo", 5)?;
        let printed = site.lab.run(CLIENT, &["curl", "-sf", &format!("http://{}/demo/[1-20]", node(0))])?;
        let mut turns: BTreeMap<&str, usize> = BTreeMap::new();
        printed.lines().filter_map(|l| l.strip_prefix("task: ")).for_each(|task| *turns.entry(task).or_default() += 1);
        ensure!(turns.len() == 5 && turns.values().all(|n| *n == 4), "not a fifth each: {turns:?}");
        site.lab.lab(&["rm", "t_go-demo"])?;
        site.lab.wait("it is not available through the proxy", || {
            for index in 0..3 {
                site.curl(&[&format!("http://{}/demo/hello", node(index))])?.is(503)?;
            }
            Ok(true)
        })
    }),
    ("DFP2 several paths, and nothing beside them", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo/hello,/demo/person"))?;
        for index in 0..3 {
            for (path, status) in [("/demo/hello", 200), ("/demo/person/1", 200), ("/demo/other", 503), ("/", 503)] {
                site.curl(&[&format!("http://{}{path}", node(index))])?.is(status)?;
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
                    site.ask(index, host, "/demo/hello")?.is_of("go-demo")?;
                }
                for host in elsewhere {
                    site.ask(index, host, "/demo/hello")?.is(503)?;
                }
            }
        }
        Ok(())
    }),
    ("DFP4 paths are rewritten: reqRepSearch as printed, and reqPathSearchReplace", |site| {
        for labels in [
            r"--label com.df.reqRepSearch='^([^\ ]*)\ /something/(.*)' --label com.df.reqRepReplace='\1\ /demo/\2'",
            "--label com.df.reqPathSearchReplace=/something/,/demo/",
        ] {
            site.create_demo(&go_demo(&format!("--label com.df.servicePath=/something {labels} --replicas 3")))?;
            for index in 0..3 {
                let answer = site.curl(&[&format!("http://{}/something/hello?who=world", node(index))])?;
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
            let answer = site.curl(&[&url])?;
            answer.is(401)?;
            ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=")), "{answer:?}");
            let answer = site.curl(&["-u", "admin:password", &url])?;
            answer.is_of("go-demo")?;
            ensure!(!answer.body.contains("authorization:"), "the password went on to the service: {answer:?}");
            site.curl(&["-u", "admin:other", &url])?.is(401)?;
        }
        Ok(())
    }),
    ("DFP6 users of the node, for all services; with a service's own, who is in both lists", |site| {
        fs::write(site.file("users"), "my-user-1:my-pass-1\nmy-user-2:my-pass-2\n")?;
        site.restart_agents()?;
        let outcome = (|| {
            site.create_demo(&go_demo("--label com.df.servicePath=/demo --replicas 3"))?;
            for index in 0..3 {
                let url = format!("http://{}/demo/hello", node(index));
                let answer = site.curl(&[&url])?;
                answer.is(401)?;
                ensure!(answer.header("www-authenticate").is_some_and(|v| v.starts_with("Basic realm=\"defaultRealm\"")), "{answer:?}");
                site.curl(&["-u", "my-user-1:my-pass-1", &url])?.is_of("go-demo")?;
                site.curl(&["-u", "my-user-2:my-pass-2", &url])?.is_of("go-demo")?;
                site.curl(&["-u", "my-user-2:my-pass-1", &url])?.is(401)?;
            }
            site.create_demo(&go_demo("--label com.df.servicePath=/demo --label com.df.users=admin:password,my-user-1:my-pass-1"))?;
            let url = format!("http://{}/demo/hello", node(0));
            site.curl(&["-u", "my-user-1:my-pass-1", &url])?.is_of("go-demo")?;
            site.curl(&["-u", "my-user-2:my-pass-2", &url])?.is(401)?;
            site.curl(&["-u", "admin:password", &url])?.is(401)
        })();
        fs::write(site.file("users"), "")?;
        site.restart_agents()?;
        outcome
    }),
    ("DFP7 https: refused without a certificate, served with the node's own", |site| {
        site.create_demo(&go_demo("--label com.df.servicePath=/demo"))?;
        let https = |index: usize, more: &[&str]| {
            let (lead, url) = (format!("x.xip.io:443:{}", node(index)), "https://x.xip.io/demo/hello");
            site.lab.exec(CLIENT, &[&["curl", "--silent", "--include", "--max-time", "5", "--resolve", &lead, url], more].concat())
        };
        for index in 0..3 {
            // curl's own code for a handshake that fails.
            ensure!(https(index, &[])?.status.code() == Some(35), "{:?}", https(index, &[])?);
        }
        site.make_certificate_of("xip.io", "*.xip.io", &["-newkey", "rsa:2048"])?;
        configure(site.files.path(), "default-certificate = \"xip.io.cert\"\ndefault-key = \"xip.io.key\"\n")?;
        site.restart_agents()?;
        let outcome = (|| {
            for index in 0..3 {
                // A certificate that nobody signed.
                ensure!(https(index, &[])?.status.code() == Some(60), "{:?}", https(index, &[])?);
                Answer::read(&String::from_utf8(https(index, &["--insecure"])?.stdout)?)?.is_of("go-demo")?;
                site.curl(&[&format!("http://{}/demo/hello", node(index))])?.is_of("go-demo")?;
            }
            Ok(())
        })();
        configure(site.files.path(), "")?;
        site.restart_agents()?;
        outcome
    }),
    ("T1 a certificate is swapped under load: no handshake fails", |site| {
        let (first, second) = (&site.pair("first", "demo.local")?, &site.pair("second", "demo.local")?);
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
            let wanted = site.serial(&pair.0)?;
            site.lab.wait("every node shows the new certificate", || {
                Ok((0..3).all(|index| site.certificate(index, "demo.local", "serial").is_ok_and(|shown| shown == wanted)))
            })?;
        }
        load.stop()
    }),
    ("L1 rolling update of a routed service, 50 requests a second through all nodes: 0 failed", |site| {
        site.deploy(ROLLING, "", &[])?;
        let before: Vec<_> = site.lab.tasks("rolling")?.iter().map(|t| t["id"].clone()).collect();
        let load = site.load("rolling.local")?;
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
        let load = site.load("rolling.local")?;
        for count in [2, 6] {
            site.lab.lab(&["scale", &format!("t_rolling={count}")])?;
            site.wait_for_tasks("rolling", count)?;
            sleep(Duration::from_millis(500));
        }
        none_failed(load)
    }),
    ("L3 the same in vip mode: 0 failed", |site| {
        site.deploy(&ROLLING.replace("backend_mode: task", "backend_mode: vip"), "", &[])?;
        let load = site.load("rolling.local")?;
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
        for target in every_node(80).into_iter().cycle().take(12) {
            sockets.push(WebSocket::open(&site.lab.namespace(CLIENT), target, "rolling.local", "/")?);
        }
        let everybody: std::collections::BTreeSet<String> = sockets.iter().map(|s| s.task.clone()).collect();
        ensure!(everybody.len() == 3, "{everybody:?}");
        site.lab.lab(&["scale", "t_rolling=1"])?;
        site.lab.wait("two are leaving", || Ok(site.lab.tasks("rolling")?.len() == 1))?;
        let leaving = Instant::now();
        site.lab.settled(&NODES)?;
        for index in 0..3 {
            let turns = site.turns(index, "rolling.local", 6)?;
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
];

#[test]
fn http_rows() {
    let site = Site::up().unwrap();
    run(&site, ROWS);
}
