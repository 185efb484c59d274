//! The engine and the admin API together, on a kernel in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, as tests may")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use swarmesh_agent::{
    Router, Store,
    admin::{self, Listener},
    config::AdminAddress,
    engine::{Engine, Settings},
};
use swarmesh_dataplane::{NetfilterPlane, PlaneConfig};
use swarmesh_kernel::fake::FakeKernel;
use swarmesh_model::{Delta, Snapshot};
use swarmesh_router::model::CertificateRef;
use swarmesh_source::{SourceState, Update};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};

const SWARM: &str = r#"{"version": 1,
"networks": [{"id": "back", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}]}],
"services": [{"id": "s", "name": "web", "labels": {"swarmesh.http.a.host": "a.example", "swarmesh.http.a.port": "80"},
 "networks": [{"network": "back"}], "vips": [{"network": "back", "address": "10.0.1.2"}]}],
"tasks": [{"id": "t1", "service": "s", "name": "web.1.t1", "node": "n1", "desired_state": "running", "state": "running",
 "sandbox": "sb1", "addresses": [{"network": "back", "address": "10.0.1.5"}]}],
"nodes": [{"id": "n1", "hostname": "node1"}]}"#;

struct Agent {
    directory: TempDir,
    kernel: FakeKernel,
    updates: mpsc::Sender<Update>,
    engine: Engine,
    admin: tokio::task::JoinHandle<()>,
    socket: std::path::PathBuf,
}

impl Agent {
    async fn start(directory: TempDir) -> Self {
        Self::start_with(directory, None).await
    }

    async fn start_with(directory: TempDir, router: Option<Router>) -> Self {
        let kernel = FakeKernel::new();
        let (updates, received) = mpsc::channel(16);
        let listeners = swarmesh_agent::config::Listeners {
            http: router.iter().flat_map(|router| router.addresses().to_vec()).collect(),
            https: Vec::new(),
        };
        let settings = Settings {
            source: "snapshot:test".to_owned(),
            node: None,
            hostname: "node1".to_owned(),
            takeover: swarmesh_plan::Takeover::On,
            router: swarmesh_agent::config::RouterConfig { listeners, ..Default::default() },
            store: Store::new(directory.path().join("state")),
            patience: Duration::from_millis(200),
            audit_every: Duration::from_secs(60),
            other_planes: vec![(swarmesh_agent::config::PlaneChoice::Ebpf, "not in this version".to_owned())],
        };
        let config =
            PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir: directory.path().join("netns"), node_address: None };
        let shared = kernel.clone();
        let engine = Engine::start(settings, received, move || NetfilterPlane::new(Arc::new(shared), config), None, None, router).unwrap();
        let socket = directory.path().join("admin.sock");
        let listener = Listener::bind(&AdminAddress::Unix(socket.clone())).await.unwrap();
        let admin = tokio::spawn(admin::serve(listener, engine.handle().clone()));
        Self { directory, kernel, updates, engine, admin, socket }
    }

    /// Leaves the directory for the next one.
    async fn stop(self) -> TempDir {
        self.engine.stop().await;
        self.admin.abort();
        let _ = self.admin.await;
        self.directory
    }

    fn add_sandbox(&self, name: &str) {
        self.kernel.add_namespace(self.directory.path().join("netns").join(name));
    }

    async fn call(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        call(&self.socket, method, path, headers).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (code, body) = self.call("GET", path, "").await;
        (code, serde_json::from_str(&body).unwrap_or_default())
    }

    /// Asks until the answer's code is the wanted one.
    async fn until(&self, path: &str, wanted: u16) -> Value {
        for _ in 0..200 {
            let (code, body) = self.get(path).await;
            if code == wanted {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} never said {wanted}: {:?}", self.get(path).await);
    }
}

async fn call(socket: &std::path::Path, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A router on a port of this host's loopback, and where that is.
fn router(directory: &TempDir, config: swarmesh_proxy::Config) -> (Router, SocketAddr) {
    let config = swarmesh_proxy::Config { http: vec![([127, 0, 0, 1], 0).into()], workers: 1, ..config };
    let router = Router::start(config, directory.path().join("netns")).unwrap();
    let address = router.addresses()[0];
    (router, address)
}

/// The status that a request is answered.
async fn ask(address: SocketAddr, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn swarm() -> Snapshot {
    Snapshot::from_json(SWARM).unwrap()
}

fn connected() -> Update {
    Update::State(SourceState {
        source: "snapshot:test".to_owned(),
        connected: true,
        detail: String::new(),
        node: None,
        problems: Vec::new(),
    })
}

#[tokio::test]
async fn a_snapshot_becomes_ready_and_a_missing_sandbox_is_named() {
    let agent = Agent::start(tempfile::tempdir().unwrap()).await;
    assert_eq!(agent.get("/healthz").await.0, 200);
    let waiting = agent.until("/readyz", 503).await;
    assert_eq!(waiting["pending"][0]["what"], "snapshot");

    agent.updates.send(connected()).await.unwrap();
    agent.updates.send(Update::Full(swarm())).await.unwrap();
    for _ in 0..200 {
        if agent.get("/readyz").await.1["pending"][0]["what"] == "task web.1.t1" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(agent.get("/v1/endpoints").await.1[0]["applied"], false);

    agent.add_sandbox("sb1");
    let ready = agent.until("/readyz", 200).await;
    assert_eq!(ready["ready"], true);
    let status = agent.get("/v1/status").await.1;
    assert_eq!(status["snapshot"]["version"], 1);
    assert_eq!(status["snapshot"]["origin"], "source");
    assert_eq!(status["node"]["id"], "n1");
    assert_eq!(status["source"]["connected"], true);
    assert_eq!(status["plane"]["others"][0]["reason"], "not in this version");
    let endpoints = agent.get("/v1/endpoints").await.1;
    assert_eq!(endpoints[0]["backends"][0]["address"], "10.0.1.5");
    assert_eq!(endpoints[0]["applied"], true);
    assert_eq!(agent.get("/v1/services").await.1[0]["ready"], 1);
    assert_eq!(agent.get("/v1/plan").await.1["networks"]["back"]["10.0.1.2"]["name"], "web");
    assert_eq!(agent.get("/v1/explain?target=vip%3A%2F%2Fweb").await.1["verdict"], "delivered");
    let (_, snapshot) = agent.call("GET", "/v1/snapshot", "").await;
    assert_eq!(Snapshot::from_json(&snapshot), Ok(swarm()));

    assert_eq!(agent.get("/v1/routes").await.1[0]["usable"], 1);
    assert_eq!(agent.get("/v1/explain?target=http%3A%2F%2Fa.example").await.1["hops"][1]["at"], "route");

    let mut next = swarm();
    next.version = 2;
    next.tasks = Default::default();
    let mut web = next.services.get("s").unwrap().as_ref().clone();
    web.labels.insert("swarmesh.http.b.host".to_owned(), "b.example".to_owned());
    web.labels.insert("swarmesh.http.b.status".to_owned(), "404".to_owned());
    next.insert_service(web);
    agent.updates.send(Update::Delta(Delta::between(&swarm(), &next))).await.unwrap();
    for _ in 0..200 {
        if agent.get("/v1/status").await.1["snapshot"]["version"] == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(agent.get("/v1/services").await.1[0]["total"], 0);
    let routes = agent.get("/v1/routes").await.1;
    assert_eq!((routes.as_array().map(Vec::len), &routes[0]["usable"]), (Some(2), &Value::from(0)), "the table follows the plan");
    assert!(agent.call("GET", "/metrics", "").await.1.contains("swarmesh_routes{dialect=\"swarmesh\"} 2"));
    agent.stop().await;
}

#[tokio::test]
async fn what_routes_serve_is_counted_by_their_owner() {
    let directory = tempfile::tempdir().unwrap();
    let (router, address) = router(&directory, swarmesh_proxy::Config::default());
    let agent = Agent::start_with(directory, Some(router)).await;
    agent.add_sandbox("sb1");
    let mut swarm = swarm();
    let mut web = swarm.services.get("s").unwrap().as_ref().clone();
    for (label, value) in [("host", "b.example"), ("path", "/"), ("status", "404")] {
        web.labels.insert(format!("swarmesh.http.b.{label}"), value.to_owned());
    }
    web.labels.insert("swarmesh.http.a.eject".to_owned(), "1/600".to_owned());
    let mut other = web.clone();
    (other.id, other.name) = ("t".into(), "other".into());
    other.vips.clear();
    other.labels = [("swarmesh.http.c.host", "b.example"), ("swarmesh.http.c.path", "/"), ("swarmesh.http.c.status", "410")]
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into();
    swarm.insert_service(web);
    swarm.insert_service(other);
    agent.updates.send(connected()).await.unwrap();
    agent.updates.send(Update::Full(swarm)).await.unwrap();
    agent.until("/readyz", 200).await;

    // The task's namespace is none in truth, so nobody gets there.
    assert_eq!((ask(address, "a.example").await, ask(address, "b.example").await), (502, 404));
    assert_eq!(ask(address, "c.example").await, 503);
    let text = agent.call("GET", "/metrics", "").await.1;
    let of = "owner=\"service web\",dialect=\"swarmesh\",listener=\"any\"";
    for line in [
        "swarmesh_router_connections_total 3".to_owned(),
        "swarmesh_router_unrouted_total 1".to_owned(),
        "swarmesh_router_malformed_total 0".to_owned(),
        format!("swarmesh_route_requests_total{{{of}}} 2"),
        format!("swarmesh_route_answers_total{{{of},status=\"4xx\"}} 1"),
        format!("swarmesh_route_answers_total{{{of},status=\"5xx\"}} 1"),
        format!("swarmesh_route_answers_total{{{of},status=\"none\"}} 0"),
        format!("swarmesh_route_duration_seconds_count{{{of}}} 2"),
        format!("swarmesh_route_duration_seconds_bucket{{le=\"+Inf\",{of}}} 2"),
        format!("swarmesh_route_in_flight{{{of}}} 0"),
        format!("swarmesh_route_connect_failures_total{{{of}}} 1"),
        format!("swarmesh_route_retries_total{{{of}}} 0"),
        format!("swarmesh_route_endpoints{{{of}}} 1"),
        format!("swarmesh_route_endpoints_out{{{of}}} 1"),
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in\n{text}");
    }
    assert!(!text.contains(".example"), "what clients ask for is in no label");

    let routes = agent.get("/v1/routes").await.1;
    let served = |host: &str| routes.as_array().unwrap().iter().find(|row| row["hosts"][0] == host).unwrap()["served"].clone();
    assert_eq!(served("a.example"), serde_json::json!({"requests": 1, "failed": 1, "in_flight": 0}));
    assert_eq!(served("b.example"), serde_json::json!({"requests": 1, "failed": 0, "in_flight": 0}));
    let served = agent.get("/v1/status").await.1["routes"]["served"].clone();
    assert_eq!((&served["requests"], &served["failed"], &served["unrouted"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!(served["out"], serde_json::json!([{"owner": "service web", "backend": "10.0.1.5:80"}]));
    // The view's table is the proxy's, with all that it found wrong.
    let problems = agent.get("/v1/status").await.1["problems"].to_string();
    assert!(problems.contains("swarmesh.http.c.") && problems.contains("service other"), "{problems}");
    agent.stop().await;
}

#[tokio::test]
async fn certificates_are_told_on_the_services_that_ask_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(directory.path().join("old.pem"), format!("{}{}", certificate.pem(), key.serialize_pem())).unwrap();
    let file = |name: &str| Some(CertificateRef::Files { certificate: name.to_owned(), key: None });
    let (certificates_dir, secrets_dir) = (directory.path().to_owned(), directory.path().to_owned());
    let config = swarmesh_proxy::Config {
        default_certificate: file("none.pem"),
        certificates_dir,
        secrets_dir,
        backend_authorities: directory.path().join("bundle.pem"),
        ..swarmesh_proxy::Config::default()
    };
    let (router, _) = router(&directory, config);
    let agent = Agent::start_with(directory, Some(router)).await;
    agent.add_sandbox("sb1");
    let mut swarm = swarm();
    let mut web = swarm.services.get("s").unwrap().as_ref().clone();
    for (label, value) in [("tls.certificate", "old.pem"), ("backend-tls", "verify"), ("client-certificate", "true")] {
        web.labels.insert(format!("swarmesh.http.a.{label}"), value.to_owned());
    }
    swarm.insert_service(web);
    agent.updates.send(Update::Full(swarm)).await.unwrap();
    agent.until("/readyz", 200).await;

    let status = agent.get("/v1/status").await.1;
    let told: Vec<String> = status["problems"].as_array().unwrap().iter().map(|p| format!("{}: {}", p["object"], p["message"])).collect();
    for expected in [
        "\"router\": \"file none.pem with itself: certificate file \\\"none.pem\\\": is not there; it is not shown: put the file",
        "\"service web\": \"secret old.pem with itself: expired at 2020-02-01T00:00:00.000Z: put a newer one",
        "\"service web\": \"backends cannot be verified: ",
        "\"service web\": \"asks for client certificates, and this node knows no CA",
    ] {
        assert!(told.iter().any(|problem| problem.starts_with(expected)), "{expected} in {told:#?}");
    }
    let text = agent.call("GET", "/metrics", "").await.1;
    let line = "swarmesh_certificate_expiry_seconds{certificate=\"old.pem\",from=\"secret\"} 1580515200\n";
    assert!(text.contains(line), "{text}");
    agent.stop().await;
}

#[tokio::test]
async fn the_last_good_snapshot_bridges_a_restart() {
    let agent = Agent::start(tempfile::tempdir().unwrap()).await;
    agent.add_sandbox("sb1");
    agent.updates.send(Update::Full(swarm())).await.unwrap();
    agent.until("/readyz", 200).await;
    let directory = agent.stop().await;

    let mut agent = Agent::start(directory).await;
    agent.add_sandbox("sb1");
    agent.engine.ready().await;
    let status = agent.get("/v1/status").await.1;
    assert_eq!(status["snapshot"]["origin"], "state-dir");
    assert_eq!(status["snapshot"]["version"], 1);
    assert_eq!(agent.until("/readyz", 200).await["ready"], true);
    agent.stop().await;
}

#[tokio::test]
async fn only_this_node_drains_and_a_restart_does_not_forget() {
    let agent = Agent::start(tempfile::tempdir().unwrap()).await;
    assert_eq!(agent.call("POST", "/v1/drain", "Origin: http://evil.example\r\n").await.0, 403);
    assert_eq!(agent.call("GET", "/v1/drain", "").await.0, 405);
    assert_eq!(agent.get("/v1/status").await.1["draining"], false);
    assert_eq!(agent.call("POST", "/v1/drain", "").await.0, 200);
    assert_eq!(agent.get("/v1/status").await.1["draining"], true);
    let directory = agent.stop().await;

    let mut agent = Agent::start(directory).await;
    agent.engine.ready().await;
    assert_eq!(agent.get("/v1/status").await.1["draining"], true);
    assert_eq!(agent.call("POST", "/v1/resume", "").await.0, 200);
    assert_eq!(agent.get("/v1/status").await.1["draining"], false);
    agent.stop().await;
}

#[tokio::test]
async fn odd_requests_get_plain_answers() {
    let agent = Agent::start(tempfile::tempdir().unwrap()).await;
    for (method, path, code) in [
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/plan", 405),
        ("GET", "/v1/explain", 400),
        ("GET", "/v1/explain?target=http%3A%2F%2Fweb%3Aport", 400),
        ("GET", "/v1/names/log", 405),
        ("POST", "/v1/names/log", 400),
        ("POST", "/v1/names/log?every=2", 409),
        ("GET", "/v1/health/published/tcp/8000", 503),
        ("GET", "/v1/health/published/sctp/8000", 400),
        ("GET", "/v1/health/published/tcp/0", 400),
        ("GET", "/v1/health/published/tcp", 400),
    ] {
        let (answered, body) = agent.call(method, path, "").await;
        assert_eq!(answered, code, "{method} {path}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(), "{method} {path}: {body}");
    }
    assert_eq!(agent.call("POST", "/v1/drain", "Content-Length: 100000\r\n").await.0, 413);

    let (code, text) = agent.call("GET", "/metrics", "").await;
    assert_eq!(code, 200);
    for line in [
        "swarmesh_build_info{version=",
        "swarmesh_source_connected 0",
        "swarmesh_places_pending 0",
        "swarmesh_apply_seconds_count 0",
        "swarmesh_apply_seconds_bucket{le=\"+Inf\"} 0",
        "swarmesh_routes{dialect=\"hrm\"} 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn uninstall_refuses_while_an_agent_answers() {
    let agent = Agent::start(tempfile::tempdir().unwrap()).await;
    let mut command = tokio::task::spawn_blocking({
        let socket = agent.socket.clone();
        move || {
            std::process::Command::new(env!("CARGO_BIN_EXE_swarmesh"))
                .args(["uninstall", "--netns-dir", "/nonexistent", "--state-dir", "/nonexistent", "--admin"])
                .arg(socket)
                .output()
        }
    });
    let output = (&mut command).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stop it first, or use --force"));
    agent.stop().await;
}

#[tokio::test]
async fn a_load_balancer_sees_a_draining_router_and_its_requests_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let (router, address) = router(&directory, swarmesh_proxy::Config::default());
    let agent = Agent::start_with(directory, Some(router)).await;
    let health = format!("/v1/health/published/tcp/{}", address.port());
    agent.until(&health, 200).await;
    assert_eq!(agent.call("POST", "/v1/drain", "").await.0, 200);
    assert_eq!(agent.get(&health).await.0, 503);
    assert_eq!(ask(address, "nobody.example").await, 503, "the router itself still answers");
    assert_eq!(agent.call("POST", "/v1/resume", "").await.0, 200);
    assert_eq!(agent.get(&health).await.0, 200);
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_stops_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let (router, address) = router(&directory, swarmesh_proxy::Config::default());
    let agent = Agent::start_with(directory, Some(router)).await;
    agent.add_sandbox("sb1");
    agent.updates.send(Update::Full(swarm())).await.unwrap();
    agent.until("/readyz", 200).await;
    let Agent { engine, admin, socket, .. } = agent;
    engine.stop().await;
    // The API answers on meanwhile, for as long as the router's last request takes.
    let (code, body) = call(&socket, "GET", "/readyz", "").await;
    assert_eq!(code, 503);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["pending"][0]["what"], "agent");
    assert_eq!(call(&socket, "GET", &format!("/v1/health/published/tcp/{}", address.port()), "").await.0, 503);
    admin.abort();
}
