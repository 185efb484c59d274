//! Docker Flow Proxy's API of a running agent, row by row, and what its routes do.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, as tests may")]

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use serde_json::Value;
use swarmesh_agent::{
    Router, Store,
    config::{PlaneChoice, RouterConfig},
    engine::{Engine, Settings},
    flow_proxy::{self, Certificates},
};
use swarmesh_dataplane::{NetfilterPlane, PlaneConfig};
use swarmesh_kernel::fake::FakeKernel;
use swarmesh_model::Snapshot;
use swarmesh_source::Update;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

const SWARM: &str = r#"{"version": 1,
"networks": [{"id": "back", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}]}],
"services": [{"id": "s", "name": "web", "networks": [{"network": "back"}], "vips": [{"network": "back", "address": "10.0.1.2"}]},
 {"id": "l", "name": "labelled", "labels": {"com.df.notify": "true", "com.df.servicePath": "/l", "com.df.port": "80"},
  "networks": [{"network": "back"}]},
 {"id": "p", "name": "private", "labels": {"com.df.notify": "true", "com.df.servicePath": "/p", "com.df.port": "80",
  "com.df.users": "u:hidden-password"}, "networks": [{"network": "back"}]}],
"tasks": [{"id": "t1", "service": "s", "name": "web.1.t1", "node": "n1", "desired_state": "running", "state": "running",
 "sandbox": "sb1", "addresses": [{"network": "back", "address": "10.0.1.5"}]}],
"nodes": [{"id": "n1", "hostname": "node1"}]}"#;

struct Agent {
    directory: TempDir,
    updates: mpsc::Sender<Update>,
    engine: Engine,
    proxy: Arc<swarmesh_proxy::Shared>,
    /// Where requests come in.
    http: SocketAddr,
    api: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Agent {
    async fn start(directory: TempDir) -> Self {
        let (updates, received) = mpsc::channel(16);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = flow_proxy::bind(loopback).await.unwrap();
        let api = listener.address().to_string().parse().unwrap();
        let store = Store::new(directory.path().join("state"));
        let settings = Settings {
            source: "snapshot:test".to_owned(),
            node: None,
            hostname: "node1".to_owned(),
            takeover: swarmesh_plan::Takeover::On,
            router: RouterConfig { flow_proxy_api: Some(api), ..RouterConfig::default() },
            store: store.clone(),
            patience: Duration::from_secs(60),
            audit_every: Duration::from_secs(60),
            other_planes: vec![(PlaneChoice::Ebpf, "not in this version".to_owned())],
        };
        let netns_dir = directory.path().join("netns");
        let config = PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir: netns_dir.clone(), node_address: None };
        let router = Router::start(
            swarmesh_proxy::Config { http: vec![loopback], workers: 1, local_hosts: true, ..swarmesh_proxy::Config::default() },
            netns_dir,
        )
        .unwrap();
        let (proxy, http) = (Arc::clone(router.shared()), router.addresses()[0]);
        let kernel = Arc::new(FakeKernel::new());
        let engine = Engine::start(settings, received, move || NetfilterPlane::new(kernel, config), None, None, Some(router)).unwrap();
        let certificates = Certificates::new(store, Some(Arc::clone(&proxy)));
        let server = tokio::spawn(flow_proxy::serve(listener, engine.handle().clone(), certificates));
        Self { directory, updates, engine, proxy, http, api, server }
    }

    async fn with_swarm() -> Self {
        let agent = Self::start(tempfile::tempdir().unwrap()).await;
        agent.updates.send(Update::Full(Snapshot::from_json(SWARM).unwrap())).await.unwrap();
        for _ in 0..500 {
            if agent.engine.handle().shared.view().snapshot.version == 1 {
                return agent;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the snapshot was not taken");
    }

    /// Leaves the directory for the next one.
    async fn stop(self) -> TempDir {
        self.server.abort();
        let _ = self.server.await;
        self.engine.stop().await;
        self.directory
    }

    async fn call(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let length = body.len();
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let request = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        exchange(self.api, &request).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (code, _, body) = self.call("GET", path, "", "").await;
        (code, serde_json::from_str(&body).unwrap_or_default())
    }

    async fn reconfigure(&self, query: &str) -> (u16, Value) {
        self.get(&format!("/v1/docker-flow-proxy/reconfigure?{query}")).await
    }

    /// Owner, label and where it leads of each route.
    fn routes(&self) -> Vec<String> {
        let rows = swarmesh_agent::view::routes::routes(&self.engine.handle().shared.view());
        rows.iter().map(|row| format!("{} {} {}", row.owner, row.label, row.to)).collect()
    }
}

/// Code, head and body.
async fn exchange(to: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn every_path_answers_as_it_is_documented() {
    let agent = Agent::with_swarm().await;
    for (method, path, code, wanted) in [
        ("GET", "/v1/docker-flow-proxy/ping", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-proxy/ping/", 301, ""),
        ("GET", "/v1/test", 200, r#""Message":"Test v1""#),
        ("GET", "/v2/test", 200, r#""Message":"Test v2""#),
        ("GET", "/v1/docker-flow-proxy/successfulinitreload", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-proxy/reload?recreate=true", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-proxy/reload?fromListener=true", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-proxy/nothing", 404, "404 page not found"),
        ("GET", "/", 404, "404 page not found"),
        ("GET", "/v1/docker-flow-proxy/metrics", 200, "swarmesh_routes{"),
        ("GET", "/metrics", 200, "swarmesh_routes{"),
        ("GET", "/v1/docker-flow-proxy/config", 500, "type=json"),
        ("GET", "/v1/docker-flow-proxy/config?type=JSON", 200, r#""labelled":{"#),
        ("GET", "/v1/docker-flow-proxy/reconfigure", 400, r#""Message":"serviceName parameter is mandatory.""#),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&port=80", 409, "servicePath or serviceDomain are mandatory"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=/", 400, "the port query is mandatory"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&reqMode=tcp&port=80", 400, "srcPort and port parameters are mandatory"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=/&port=80&distribute=true", 500, "distribute is not taken up"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=/&port=no", 500, "is not a port"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=/&port=1&templateFePath=/x", 500, "HAProxy text"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=%2", 400, "not percent-encoded"),
        ("GET", "/v1/docker-flow-proxy/reconfigure?serviceName=a%0Ab&servicePath=/&port=80", 400, "serviceName is not a name"),
        ("GET", "/v1/docker-flow-proxy/remove", 400, r#""Message":"The serviceName query is mandatory""#),
        ("GET", "/v1/docker-flow-proxy/remove?serviceName=unknown", 200, r#""Message":"","ServiceName":"unknown","Status":"OK""#),
        ("GET", "/v1/docker-flow-proxy/remove?serviceName=labelled", 200, "labels say stays"),
        ("GET", "/v1/docker-flow-proxy/remove?serviceName=x&distribute=true", 500, r#""Status":"NOK""#),
        ("GET", "/v1/docker-flow-proxy/cert?certName=x", 405, ""),
        ("PUT", "/v1/docker-flow-proxy/cert", 400, "certName parameter is mandatory"),
        ("PUT", "/v1/docker-flow-proxy/cert?certName=x", 400, "Body cannot be empty"),
        ("PUT", "/v1/docker-flow-proxy/cert?certName=x&distribute=true", 400, "distribute is not taken up"),
        ("GET", "/v1/docker-flow-proxy/certs", 200, r#""Certs":[],"Message":"","Status":"OK""#),
        ("GET", "/v1/docker-flow-swarm-listener/ping", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-swarm-listener/notify-services", 200, r#""Status":"OK""#),
        ("GET", "/v1/docker-flow-swarm-listener/get-services", 200, r#""serviceName":"labelled""#),
    ] {
        let (answered, _, body) = agent.call(method, path, "", "").await;
        assert_eq!(answered, code, "{method} {path}: {body}");
        assert!(body.contains(wanted), "{method} {path}: {body}");
    }
    let moved = agent.call("GET", "/v1/docker-flow-proxy/config/?type=json", "", "").await.1;
    assert!(moved.contains("location: /v1/docker-flow-proxy/config?type=json"), "{moved}");
    assert_eq!(agent.routes().len(), 2, "nothing that was refused has a route: {:?}", agent.routes());
    agent.stop().await;
}

#[tokio::test]
async fn web_pages_and_foreign_names_are_refused() {
    let agent = Agent::with_swarm().await;
    let change = "/v1/docker-flow-proxy/reconfigure?serviceName=x&servicePath=/&port=80";
    for (path, headers, code) in [
        ("/v1/docker-flow-proxy/ping", "Host: evil.example\r\n", 403),
        (change, "Host: evil.example\r\n", 403),
        (change, "Origin: null\r\n", 403),
        (change, "Referer: http://evil.example/\r\n", 403),
        (change, "Sec-Fetch-Site: cross-site\r\n", 403),
        ("/v1/docker-flow-proxy/ping", "Sec-Fetch-Site: none\r\n", 200),
        (change, "", 200),
    ] {
        assert_eq!(agent.call("GET", path, headers, "").await.0, code, "{path} {headers}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_service_is_reached_through_the_swarm_and_its_labels_count_again_when_it_is_removed() {
    let agent = Agent::with_swarm().await;
    let (code, answer) =
        agent.reconfigure("serviceName=web&servicePath=/api,/v2&port=8080&users=u:hidden-password&addReqHeader=X-Key+hidden").await;
    assert_eq!((code, &answer["Status"], &answer["ServiceName"]), (200, &"OK".into(), &"web".into()), "{answer}");
    assert_eq!(answer["ServiceDest"][0]["ServicePath"], serde_json::json!(["/api", "/v2"]));
    assert_eq!((&answer["Users"][0]["Username"], &answer["AclName"]), (&"u".into(), &"web".into()));
    assert!(!answer.to_string().contains("hidden"), "{answer}");
    let routes = agent.routes();
    assert!(routes.iter().any(|r| r == "service web com.df.servicePath web:8080 in back (vip)"), "{routes:?}");

    // Another call about it stands for the first.
    assert_eq!(
        agent.reconfigure("serviceName=web&servicePath=/other&port=81&unknown=1").await.1["Message"]
            .as_str()
            .map(|m| m.contains("unknown: is not a label")),
        Some(true)
    );
    let routes = agent.routes();
    assert!(routes.iter().any(|r| r.contains("web:81")) && !routes.iter().any(|r| r.contains("8080")), "{routes:?}");

    let (_, config) = agent.get("/v1/docker-flow-proxy/config?type=json").await;
    assert_eq!(
        config.as_object().map(|c| c.keys().cloned().collect::<Vec<_>>()),
        Some(vec!["labelled".into(), "private".into(), "web".into()])
    );
    assert!(!config.to_string().contains("hidden"), "{config}");
    let (_, listed) = agent.get("/v1/docker-flow-swarm-listener/get-services").await;
    assert_eq!(listed, serde_json::json!([{"serviceName": "labelled", "servicePath": "/l", "port": "80", "distribute": "true"}]));

    agent.reconfigure("serviceName=labelled&servicePath=/called&port=82").await;
    assert!(agent.routes().iter().any(|r| r.contains("labelled:82")));
    agent.get("/v1/docker-flow-proxy/remove?serviceName=labelled").await;
    assert!(agent.routes().iter().any(|r| r.contains("labelled:80")), "{:?}", agent.routes());
    agent.stop().await;
}

#[tokio::test]
async fn a_host_is_served_by_the_proxy_and_a_restart_does_not_forget() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = backend.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = backend.accept().await {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap_or_default();
            let line = String::from_utf8_lossy(&head[..read]).lines().next().unwrap_or_default().to_owned();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}", line.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let request = "GET /x/y HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let agent = Agent::with_swarm().await;
    assert_eq!(exchange(agent.http, request).await.0, 503);
    let query = format!("serviceName=outside&servicePath=/x&serviceDomain=shop.example&port={port}&outboundHostname=127.0.0.1");
    assert_eq!(agent.reconfigure(&query).await.0, 200);
    let (code, _, body) = exchange(agent.http, request).await;
    assert_eq!((code, body.as_str()), (200, "GET /x/y HTTP/1.1"), "the answer comes when it is in force");
    // A name that is no service's is a host's.
    assert_eq!(agent.reconfigure(&format!("serviceName=localhost&servicePath=/host&port={port}")).await.0, 200);
    let local = request.replace("/x/y", "/host");
    let (code, head, body) = exchange(agent.http, &local).await;
    assert_eq!(code, 200, "{head} {body} {:?}", agent.routes());

    let directory = agent.stop().await;
    let stored = directory.path().join("state/flow-proxy.json");
    assert_eq!(std::fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o600);
    let agent = Agent::start(directory).await;
    agent.updates.send(Update::Full(Snapshot::from_json(SWARM).unwrap())).await.unwrap();
    let mut code = 0;
    for _ in 0..500 {
        code = exchange(agent.http, request).await.0;
        if code == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code, 200);
    assert_eq!(agent.get("/v1/docker-flow-proxy/remove?serviceName=outside").await.0, 200);
    assert_eq!(exchange(agent.http, request).await.0, 503);
    assert_eq!(exchange(agent.http, &local).await.0, 200, "the other one stays");
    agent.stop().await;
    answering.abort();
}

#[tokio::test]
async fn certificates_are_shown_for_their_names_and_listed_without_keys() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["put.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    let agent = Agent::with_swarm().await;
    let shown = |agent: &Agent, name| agent.proxy.certificates.find(Some(name)).is_some();
    let put = async |agent: &Agent, name: &str, body: &str| {
        agent.call("PUT", &format!("/v1/docker-flow-proxy/cert?certName={name}"), "", body).await
    };
    for (name, body, wanted) in [
        ("../x", pem.as_str(), "plain file name"),
        ("put.pem", "no certificate", "has no private key"),
        ("put.pem", &certificate.pem(), "has no private key"),
        ("put.pem", &key.serialize_pem(), "has no certificate"),
    ] {
        let (code, _, answer) = put(&agent, name, body).await;
        assert_eq!(code, 400, "{answer}");
        assert!(answer.contains(wanted) && answer.contains(r#""Status":"NOK""#), "{answer}");
    }
    assert!(!shown(&agent, "put.example"));
    let (code, _, answer) = put(&agent, "put.pem", &pem).await;
    assert_eq!((code, answer.as_str()), (200, r#"{"Certs":null,"Message":"","Status":"OK"}"#));
    assert!(shown(&agent, "put.example") && !shown(&agent, "other.example"));
    let (_, listed) = agent.get("/v1/docker-flow-proxy/certs").await;
    assert_eq!(listed["Certs"][0]["ProxyServiceName"], "put.pem");
    assert!(listed["Certs"][0]["CertContent"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    assert!(!listed.to_string().contains("PRIVATE"), "{listed}");

    let directory = agent.stop().await;
    let file = directory.path().join("state/flow-proxy-certificates/put.pem");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let agent = Agent::start(directory).await;
    assert!(shown(&agent, "put.example"), "it is shown from the start");
    agent.stop().await;
}
