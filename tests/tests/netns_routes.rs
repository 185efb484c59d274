//! Routes by label, as the agents of a swarm plan and show them: a service in each dialect, mistakes, and who is reached from where.
//!
//! The rows run in order and each leaves the swarm as it found it.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swarmesh_tests::{
    lab::{Lab, get_in},
    load::field,
    rows::{Row, run},
};

const NODES: [&str; 2] = ["node1", "node2"];
/// Where the agents take requests.
const PORT: u16 = 8080;
const STACK: &str = r#"
version: "3.8"
services:
  own:
    image: example/own
    networks: [back]
    deploy:
      replicas: 2
      labels:
        swarmesh.http.web.host: own.example
        swarmesh.http.web.port: "80"
        swarmesh.http.post.host: own.example
        swarmesh.http.post.method: POST
        swarmesh.http.post.status: "405"
  lb:
    image: example/lb
    networks: [back]
    deploy: {replicas: 1, labels: {com.docker.lb.hosts: lb.example, com.docker.lb.port: "80", com.docker.lb.backend_mode: vip}}
  hrm:
    image: example/hrm
    networks: [mesh]
    deploy: {replicas: 1, labels: {com.docker.ucp.mesh.http.1: "external_route=http://hrm.example,internal_port=80"}}
  flow:
    image: example/flow
    networks: [back]
    deploy: {replicas: 1, labels: {com.df.notify: "true", com.df.servicePath: /flow, com.df.port: "80"}}
  far:
    image: example/far
    networks: [out]
    deploy:
      replicas: 1
      placement: {constraints: [node.hostname == node2]}
      labels: {swarmesh.http.f.host: far.example, swarmesh.http.f.port: "80"}
  wrong:
    image: example/wrong
    networks: [back]
    deploy:
      replicas: 0
      labels:
        swarmesh.http.one.host: twice.example
        swarmesh.http.one.status: "404"
        swarmesh.http.two.host: twice.example
        swarmesh.http.two.status: "410"
        swarmesh.http.typo.host: typo.example
        swarmesh.http.typo.port: "80"
        swarmesh.http.typo.prot: "80"
        interlock.hostname: old
networks:
  back:
  mesh: {labels: {com.docker.ucp.mesh.http: "true"}}
  out:
"#;

struct Subject(Lab);

impl Subject {
    fn routes(&self, node: &str) -> Result<Vec<Value>> {
        let printed = self.0.swarmesh(node, &["routes", "--output", "json"])?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// The route of a host without a condition.
    fn route(&self, node: &str, host: &str) -> Result<Value> {
        let rows = self.routes(node)?;
        let plain = |r: &Value| r["conditions"].as_array().is_some_and(Vec::is_empty);
        let found = rows.into_iter().find(|r| plain(r) && r["hosts"].as_array().is_some_and(|hosts| hosts.iter().any(|h| h == host)));
        found.with_context(|| format!("{node} has no route for {host}"))
    }

    fn explain(&self, node: &str, target: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.0.swarmesh(node, &["explain", target, "--output", "json"])?)?)
    }

    /// Status and body of a request that a client sends to a node.
    fn request(&self, node: &str, host: &str, path: &str, method: &str) -> Result<(u16, String)> {
        let address = if node == "node1" { "192.0.2.11" } else { "192.0.2.12" };
        let url = format!("http://{address}:{PORT}{path}");
        let host = format!("Host: {host}");
        let words =
            ["curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}", "--request", method, "--header"];
        let printed = self.0.run("client1", &[&words[..], &[&host, &url]].concat())?;
        let (body, code) = printed.rsplit_once('\n').context("no status code")?;
        Ok((code.parse()?, body.to_owned()))
    }

    fn hop(&self, node: &str, target: &str, at: &str) -> Result<String> {
        let told = self.explain(node, target)?;
        let hops = told["hops"].as_array().into_iter().flatten();
        let what = hops.filter(|h| h["at"] == at).filter_map(|h| h["what"].as_str()).map(str::to_owned).next();
        what.with_context(|| format!("{target} at {node}: no {at} in {told}"))
    }

    fn problems(&self, node: &str) -> Result<Vec<(String, String)>> {
        let status: Value = serde_json::from_str(&self.0.api(node, "/v1/status")?.1)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(status["problems"].as_array().into_iter().flatten().map(|p| (text(&p["object"]), text(&p["place"]))).collect())
    }

    /// The namespace from which a node reaches what a network's routes lead to, as its plan says.
    fn foothold(&self, node: &str, network: &str) -> Result<Option<PathBuf>> {
        let plan: Value = serde_json::from_str(&self.0.api(node, "/v1/plan")?.1)?;
        let networks = self.0.snapshot()?["networks"].as_array().cloned().unwrap_or_default();
        let id = networks.iter().find(|n| n["name"] == format!("t_{network}")).and_then(|n| n["id"].as_str()).context("no such network")?;
        let file = plan["routes"]["footholds"][id].as_str();
        Ok(file.map(|file| self.0.ingress_namespace(node).with_file_name(file)))
    }
}

/// Addresses and ports of a route's backends.
fn places(route: &Value) -> Result<Vec<SocketAddr>> {
    let backends = route["backends"].as_array().context("no backends")?;
    backends
        .iter()
        .map(|b| Ok(SocketAddr::new(b["address"].as_str().unwrap_or_default().parse::<IpAddr>()?, b["port"].as_u64().unwrap_or(0) as u16)))
        .collect()
}

const ROWS: &[Row<Subject>] = &[
    ("RT1 every dialect's labels are routes on every node, in one order", |s| {
        for node in NODES {
            let rows = s.routes(node)?;
            let told: Vec<(&str, &str, u64)> = rows
                .iter()
                .map(|r| {
                    (r["owner"].as_str().unwrap_or_default(), r["dialect"].as_str().unwrap_or_default(), r["usable"].as_u64().unwrap_or(99))
                })
                .collect();
            for expected in [
                ("service t_own", "swarmesh", 2),
                ("service t_lb", "interlock", 1),
                ("service t_hrm", "hrm", 1),
                ("service t_flow", "flow_proxy", 1),
                ("service t_far", "swarmesh", 1),
            ] {
                ensure!(told.contains(&expected), "{node}: {expected:?} in {told:?}");
            }
            ensure!(told.iter().filter(|(owner, ..)| *owner == "service t_wrong").count() == 1, "{node}: {told:?}");
            let place = |owner: &str| told.iter().position(|(o, ..)| *o == owner);
            ensure!(place("service t_hrm") < place("service t_flow"), "{node}: a host comes before a path of any host: {told:?}");
            let metrics = s.0.api(node, "/metrics")?.1;
            ensure!(metrics.lines().any(|l| l == "swarmesh_routes{dialect=\"swarmesh\"} 5"), "{node}: {metrics}");
        }
        let table = s.0.swarmesh("node1", &["routes"])?;
        ensure!(table.lines().any(|l| l.contains("own.example") && l.contains("t_own:80 in t_back")), "{table}");
        Ok(())
    }),
    ("RT2 backends are the tasks' own, and answer from the namespace that the plan names", |s| {
        for (node, host, network, service) in
            [("node1", "own.example", "back", "own"), ("node2", "own.example", "back", "own"), ("node2", "far.example", "out", "far")]
        {
            let from = s.foothold(node, network)?.with_context(|| format!("{node} has no foothold in {network}"))?;
            let places = places(&s.route(node, host)?)?;
            ensure!(places.len() == s.0.tasks(service)?.len(), "{host}: {places:?}");
            for place in places {
                let answer = get_in(&from, place)?;
                ensure!(field(&answer, "task").is_some_and(|t| t.starts_with(&format!("t_{service}."))), "{place} from {node}: {answer}");
            }
        }
        // A VIP is balanced in the namespace that asks for it.
        let vip = places(&s.route("node1", "lb.example")?)?;
        ensure!(vip == [SocketAddr::new(s.0.vip("lb", "back")?, 80)], "{vip:?}");
        let from = s.foothold("node1", "back")?.context("no foothold")?;
        ensure!(field(&get_in(&from, vip[0])?, "task").is_some_and(|t| t.starts_with("t_lb.")), "{vip:?}");
        Ok(())
    }),
    ("RT3 explain follows a request, and says why other routes do not have it", |s| {
        let told = s.explain("node1", "http://own.example/x")?;
        ensure!(told["verdict"] == "delivered" && told["missing"][0].is_null(), "{told}");
        ensure!(told["summary"].as_str().is_some_and(|t| t.contains("reaches t_own.")), "{told}");
        ensure!(s.hop("node1", "http://own.example/x", "route")?.starts_with("swarmesh.http.web.host of service t_own"), "{told}");
        let others = told["hops"][1]["routes"].as_array().cloned().unwrap_or_default();
        ensure!(others.iter().any(|o| o["label"] == "swarmesh.http.post.host" && o["why"] == "is for method POST"), "{told}");
        let post = s.explain("node1", "http://own.example/x?method=POST")?;
        ensure!(post["summary"].as_str().is_some_and(|t| t.contains("answered here: 405")), "{post}");
        for (target, expected) in [
            ("http://lb.example/", "its virtual IP"),
            ("http://hrm.example/", "the only ready backend"),
            ("http://any.example/flow/x", "the only ready backend"),
        ] {
            let backend = s.hop("node2", target, "backend")?;
            ensure!(backend.contains(expected), "{target}: {backend}");
        }
        let nobody = s.explain("node1", "http://nobody.example/")?;
        ensure!(nobody["summary"].as_str().is_some_and(|t| t.contains("no route takes it: 503")), "{nobody}");
        Ok(())
    }),
    ("RT4 a network that the node has nothing in is told, and reached from the node that has", |s| {
        ensure!(s.foothold("node1", "out")?.is_none() && s.foothold("node2", "out")?.is_some(), "footholds in out");
        let missing = |node: &str| Ok::<_, anyhow::Error>(s.route(node, "far.example")?["missing"].to_string());
        ensure!(missing("node1")?.contains("no task in network t_out"), "{}", missing("node1")?);
        ensure!(missing("node2")? == "[]", "{}", missing("node2")?);
        let told = s.explain("node1", "http://far.example/")?["summary"].to_string();
        ensure!(told.contains("cannot be sent from this node") && told.contains("t_far."), "{told}");
        Ok(())
    }),
    ("RT5 mistakes are told on their own service, and cost no other one", |s| {
        for node in NODES {
            let problems = s.problems(node)?;
            for place in ["interlock.hostname", "swarmesh.http.typo.prot", "swarmesh.http.two.host"] {
                let expected = ("service t_wrong".to_owned(), place.to_owned());
                ensure!(problems.contains(&expected), "{node}: {expected:?} in {problems:?}");
            }
            // On a node that takes requests, a network out of its reach is a problem of who is in it, there.
            let is_unreached = |r: &&Value| r["missing"].to_string().contains("no task in network");
            let rows = s.routes(node)?;
            let unreached: Vec<&Value> = rows.iter().filter(is_unreached).collect();
            ensure!(unreached.iter().any(|r| r["owner"] == "service t_far") == (node == "node1"), "{node}: {unreached:?}");
            let others = problems.iter().filter(|(object, _)| object != "service t_wrong");
            for (object, place) in others.clone() {
                ensure!(unreached.iter().any(|r| r["owner"] == *object && r["label"] == *place), "{node}: {object} {place}");
            }
            ensure!(others.count() == unreached.len(), "{node}: {problems:?}, {unreached:?}");
            ensure!(s.route(node, "twice.example")?["to"] == "status 404", "{node}: the first has it");
        }
        Ok(())
    }),
    ("RT6 routes follow their tasks and labels", |s| {
        s.0.lab(&["scale", "t_own=3"])?;
        s.0.wait("a third task is a backend on both nodes", || {
            Ok(NODES.iter().all(|n| s.route(n, "own.example").is_ok_and(|r| r["usable"] == 3)))
        })?;
        s.0.deploy(&STACK.replace("own.example", "new.example"))?;
        s.0.wait("the new host is there, and the old one is not", || {
            Ok(NODES.iter().all(|n| s.route(n, "new.example").is_ok() && s.route(n, "own.example").is_err()))
        })?;
        s.0.deploy(STACK)?;
        s.0.wait("the old one is back", || Ok(NODES.iter().all(|n| s.route(n, "own.example").is_ok_and(|r| r["usable"] == 2))))?;
        s.0.settled(&NODES)
    }),
    ("RT7 what explain says of a request is what becomes of it", |s| {
        for node in NODES {
            for (host, path, method) in [
                ("own.example", "/x", "GET"),
                ("own.example", "/x", "POST"),
                ("lb.example", "/", "GET"),
                ("hrm.example", "/", "GET"),
                ("any.example", "/flow/x", "GET"),
                ("far.example", "/", "GET"),
                ("nobody.example", "/", "GET"),
            ] {
                let told = s.explain(node, &format!("http://{host}{path}?method={method}"))?;
                let (code, body) = s.request(node, host, path, method)?;
                let task = field(&body, "task").unwrap_or_default();
                let said = told["summary"].as_str().unwrap_or_default();
                let agrees = match told["verdict"].as_str() {
                    Some("delivered") => code == 200 && !task.is_empty() && said.contains(&task),
                    Some("answered" | "refused") => said.contains(&code.to_string()) && task.is_empty(),
                    _ => false,
                };
                ensure!(agrees, "{method} {host}{path} at {node}: {code} {task:?}, and {told}");
            }
        }
        Ok(())
    }),
];

#[test]
fn routes_rows() {
    let lab = Lab::up("routes", 2, STACK, &[&format!("--agent-arg=--http=0.0.0.0:{PORT}")]).unwrap();
    lab.settled(&NODES).unwrap();
    run(&Subject(lab), ROWS);
}
