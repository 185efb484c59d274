use swarmesh_plan::{NodeContext, plan};

use super::*;
use crate::{
    config::Listeners,
    view::{
        Origin,
        explain::{Explanation, Local, Target as Explained, explain},
        routes::routes,
        status::status,
    },
};

/// Services in each dialect. `far` has its tasks elsewhere only.
const SWARM: &str = r#"{"version": 1,
"networks": [
 {"id": "back", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}], "labels": {"com.docker.ucp.mesh.http": "true"}},
 {"id": "out", "name": "out", "subnets": [{"subnet": "10.0.2.0/24"}]}],
"services": [
 {"id": "a", "name": "own", "networks": [{"network": "back"}], "labels": {
   "swarmesh.http.web.host": "app.example", "swarmesh.http.web.port": "80", "swarmesh.http.web.method": "GET",
   "swarmesh.http.web.response-header.set.x-by": "%[path]", "swarmesh.http.web.deny-methods": "TRACE",
   "swarmesh.http.post.host": "app.example", "swarmesh.http.post.method": "POST", "swarmesh.http.post.status": "405",
   "swarmesh.http.two.host": "app.example", "swarmesh.http.two.header.x-version": "2", "swarmesh.http.two.port": "80",
   "swarmesh.http.safe.host": "safe.example", "swarmesh.http.safe.port": "80", "swarmesh.http.safe.https-only": "true",
   "swarmesh.http.safe.tls.certificate": "safe.pem",
   "swarmesh.http.sni.host": "sni.example", "swarmesh.http.sni.port": "443", "swarmesh.http.sni.listen": "tls",
   "swarmesh.http.raw.listen": "tcp", "swarmesh.http.raw.listen-port": "9000", "swarmesh.http.raw.port": "9"}},
 {"id": "b", "name": "lb", "networks": [{"network": "back"}], "vips": [{"network": "back", "address": "10.0.1.2"}],
  "labels": {"com.docker.lb.hosts": "lb.example", "com.docker.lb.port": "80", "com.docker.lb.backend_mode": "vip"}},
 {"id": "c", "name": "hrm", "networks": [{"network": "back"}],
  "labels": {"com.docker.ucp.mesh.http.1": "external_route=http://hrm.example,internal_port=80"}},
 {"id": "d", "name": "flow", "networks": [{"network": "back"}],
  "labels": {"com.df.notify": "true", "com.df.servicePath": "/flow", "com.df.port": "80"}},
 {"id": "e", "name": "far", "networks": [{"network": "out"}], "labels": {"swarmesh.http.f.host": "far.example", "swarmesh.http.f.port": "80"}},
 {"id": "f", "name": "late", "networks": [{"network": "back"}],
  "labels": {"swarmesh.http.l.host": "app.example", "swarmesh.http.l.method": "GET", "swarmesh.http.l.port": "80",
   "swarmesh.http.bad.host": "b.example", "swarmesh.http.bad.port": "80", "swarmesh.http.bad.prot": "80"}}],
"tasks": [
 {"id": "t1", "service": "a", "name": "own.1.t1", "node": "n1", "desired_state": "running", "state": "running", "sandbox": "sb1",
  "addresses": [{"network": "back", "address": "10.0.1.5"}]},
 {"id": "t2", "service": "a", "name": "own.2.t2", "node": "n2", "desired_state": "running", "state": "starting"},
 {"id": "t3", "service": "b", "name": "lb.1.t3", "node": "n2", "desired_state": "running", "state": "running",
  "addresses": [{"network": "back", "address": "10.0.1.6"}]},
 {"id": "t4", "service": "e", "name": "far.1.t4", "node": "n2", "desired_state": "running", "state": "running",
  "addresses": [{"network": "out", "address": "10.0.2.5"}]},
 {"id": "u1", "name": "old", "node": "n1", "desired_state": "running", "state": "running", "sandbox": "sb9",
  "addresses": [{"network": "back", "address": "10.0.1.9"}],
  "routing": {"labels": {"interlock.hostname": "old", "interlock.domain": "example", "interlock.network": "back", "interlock.port": "80"}}},
 {"id": "u2", "name": "shown", "node": "n1", "desired_state": "running", "state": "running",
  "routing": {"labels": {"interlock.hostname": "shown", "interlock.domain": "example"}, "published": "127.0.0.1",
   "ports": [{"target_port": 80, "published_port": 32768, "publish_mode": "host"}]}},
 {"id": "u3", "name": "mute", "node": "n1", "desired_state": "running", "state": "running",
  "routing": {"labels": {"interlock.hostname": "mute", "interlock.domain": "example"}}}],
"nodes": [{"id": "n1", "hostname": "node1"}, {"id": "n2", "hostname": "node2"}]}"#;

fn view() -> View {
    let snapshot = swarmesh_model::Snapshot::from_json(SWARM).unwrap();
    let context = NodeContext { node: Some("n1".into()), ..NodeContext::default() };
    let plan = plan(&snapshot, &context);
    let listeners = Listeners { http: vec!["0.0.0.0:80".parse().unwrap()], https: vec!["0.0.0.0:443".parse().unwrap()] };
    View { snapshot, plan, context, listeners, origin: Origin::Source, ..View::default() }
}

fn ask(view: &View, target: &str) -> Explanation {
    explain(view, &target.parse().unwrap(), &Local::default())
}

fn at<'e>(told: &'e Explanation, at: &str) -> Vec<&'e str> {
    told.hops.iter().filter(|h| h.at == at).map(|h| h.what.as_str()).collect()
}

#[test]
fn requests_read_as_they_are_written() {
    for text in [
        "http://app.example/",
        "https://app.example:8443/x/y",
        "http://[fd00::1]:8080/",
        "http://a/?method=POST&header=X-Version:2&header=Cookie:a%3Db%26c",
    ] {
        assert_eq!(text.parse::<Explained>().unwrap().to_string(), text);
    }
    assert_eq!("http://a".parse::<Explained>().unwrap().to_string(), "http://a/");
    assert_eq!("http://a?method=PUT".parse::<Explained>().unwrap().to_string(), "http://a/?method=PUT");
    for (text, problem) in [
        ("http://", "HOST[:PORT][/PATH]"),
        ("http:///x", "HOST[:PORT][/PATH]"),
        ("http://user@a/", "HOST[:PORT][/PATH]"),
        ("http://a:0/", "comes a port"),
        ("http://a:x/", "comes a port"),
        ("http://a/?q=1", "a query decides nothing"),
        ("http://a/?header=X", "NAME:VALUE"),
        ("http://a/?method=", "the method is missing"),
    ] {
        let error = text.parse::<Explained>().unwrap_err().to_string();
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn a_request_is_followed_to_its_tasks() {
    let told = ask(&view(), "http://app.example/x");
    assert_eq!((told.verdict, told.summary.as_str()), (Verdict::Delivered, "reaches own.1.t1 on node1 (10.0.1.5)"));
    assert_eq!(
        told.hops.iter().map(|h| h.at.as_str()).collect::<Vec<_>>(),
        ["listener", "route", "filter", "filter", "filter", "backend", "foothold"]
    );
    assert_eq!(at(&told, "route"), ["swarmesh.http.web.host of service own (Swarmesh) takes app.example, every path, method GET"]);
    assert!(at(&told, "filter").contains(&"response header x-by is \"%[path]\""), "{:?}", at(&told, "filter"));
    assert_eq!(at(&told, "backend"), ["own:80 in back: the only ready backend, in turn"]);
    assert_eq!(at(&told, "foothold"), ["connections are opened in namespace sb1, which is in network back"]);
    let others: Vec<_> = told.hops[1].routes.iter().map(|o| (o.label.as_str(), o.why.as_str())).collect();
    assert!(others.contains(&("swarmesh.http.post.host", "is for method POST")), "{others:?}");
    assert!(others.contains(&("swarmesh.http.two.host", "asks for other headers")), "{others:?}");
    assert!(!others.iter().any(|(label, _)| label.starts_with("com.docker")), "other hosts are no candidates: {others:?}");
    let waiting: Vec<_> = told.hops[5].left_out.iter().map(|l| (l.task.as_str(), l.why.as_str())).collect();
    assert_eq!(waiting, [("own.2.t2", "is starting (starting)")]);
    assert_eq!(told.missing, [""; 0]);
}

#[test]
fn what_a_request_says_decides() {
    let view = view();
    for (target, verdict, summary) in [
        ("http://app.example/?method=POST", Verdict::Answered, "answered here: 405"),
        ("http://APP.example:80/?header=X-Version:2&method=PUT", Verdict::Delivered, "reaches own.1.t1"),
        ("http://app.example/?method=PUT", Verdict::Refused, "no route takes it: 503"),
        ("http://safe.example/x", Verdict::Answered, "redirected to https: 308"),
        ("http://lb.example/", Verdict::Delivered, "reaches lb.1.t3 on node2 (10.0.1.6)"),
        ("http://hrm.example/", Verdict::Refused, "nobody can answer: 503"),
        ("http://other.example/flow/x", Verdict::Refused, "nobody can answer: 503"),
        ("http://nobody.example/", Verdict::Refused, "no route takes it: 503"),
        ("http://far.example/", Verdict::Refused, "cannot be sent from this node: 503; elsewhere it would reach far.1.t4"),
        ("http://app.example:81/", Verdict::NotOurs, "not taken here; where it would be: reaches own.1.t1"),
    ] {
        let told = ask(&view, target);
        assert_eq!(told.verdict, verdict, "{target}: {}", told.summary);
        assert!(told.summary.starts_with(summary), "{target}: {}", told.summary);
    }
    let told = ask(&view, "http://far.example/");
    assert_eq!(told.missing, ["a task on this node in network out, from whose namespace it could be reached"]);
    let told = ask(&view, "http://old.example/");
    assert_eq!(told.summary, "reaches old on node1 (10.0.1.9)");
    assert_eq!(at(&told, "backend"), ["old:80 in back: the only ready backend, in turn"]);
    assert_eq!(told.hops.iter().flat_map(|h| &h.backends).map(|b| b.task.as_str()).collect::<Vec<_>>(), ["old"]);
    let told = ask(&view, "http://shown.example/");
    assert_eq!((told.verdict, told.summary.as_str()), (Verdict::Delivered, "reaches 127.0.0.1:32768"));
    assert_eq!(at(&told, "foothold"), ["connections are opened in the node's own namespace"]);
    assert!(at(&ask(&view, "http://lb.example/"), "backend")[0].contains("its virtual IP 10.0.1.2; whoever balances"));

    let told = ask(&view, "https://safe.example/");
    assert_eq!(at(&told, "certificate"), ["TLS would end here, with secret safe.pem with itself"]);
    assert_eq!(told.verdict, Verdict::Delivered, "{}", told.summary);
    let told = ask(&view, "https://sni.example/");
    assert!(at(&told, "route")[0].ends_with("passed on unopened, by the name in its hello"), "{told:?}");
    assert_eq!((told.verdict, at(&told, "backend")[0]), (Verdict::Delivered, "own:443 in back: the only ready backend, in turn"));
    let told = ask(&view, "http://any.example:9000/");
    assert!(at(&told, "route")[0].ends_with("whatever comes by it is passed on unopened"), "{told:?}");

    let told = ask(&view, "https://app.example/");
    assert_eq!((told.verdict, told.summary.as_str()), (Verdict::Refused, "no certificate for app.example: the connection is dropped"));
    assert_eq!(told.missing, ["a certificate for app.example"]);
}

#[test]
fn without_a_listener_it_says_so_and_where_it_would_go() {
    let view = View { listeners: Listeners::default(), ..view() };
    let told = ask(&view, "http://app.example/");
    assert_eq!(told.verdict, Verdict::NotOurs);
    assert_eq!(told.summary, "not taken here; where it would be: reaches own.1.t1 on node1 (10.0.1.5)");
    assert_eq!(told.missing, ["the agent runs with --http off"]);
}

#[test]
fn routes_are_listed_in_the_order_in_which_they_are_asked() {
    let view = view();
    let rows = routes(&view);
    let row = |label: &str| rows.iter().find(|r| r.label == label).unwrap();
    let web = row("swarmesh.http.web.host");
    assert_eq!((web.owner.as_str(), web.dialect.as_str(), web.listener.as_str(), web.usable), ("service own", "swarmesh", "any", 1));
    assert_eq!((web.to.as_str(), web.hosts.as_slice()), ("own:80 in back", &["app.example".to_owned()][..]));
    assert_eq!(web.conditions, ["method GET"]);
    assert_eq!((web.backends[0].kind.as_str(), web.backends[0].name.as_str(), web.backends[0].port), ("task", "own.1.t1", 80));
    let lb = row("com.docker.lb.hosts");
    assert_eq!((lb.to.as_str(), lb.usable, lb.backends[0].kind.as_str()), ("lb:80 in back (vip)", 1, "vip"));
    assert_eq!(lb.dialect, "interlock");
    assert_eq!(row("com.docker.ucp.mesh.http.1").missing, ["no usable task of hrm"]);
    assert_eq!(row("com.df.servicePath").paths, ["/flow*"]);
    let post = row("swarmesh.http.post.host");
    assert!(post.answers_itself && post.to == "status 405" && post.backends.is_empty());
    assert!(row("swarmesh.http.f.host").missing[0].starts_with("this node has no task in network out"));
    let place = |label: &str| rows.iter().position(|r| r.label == label).unwrap();
    assert!(place("swarmesh.http.two.host") < place("com.df.servicePath"), "a host comes before a path of any host");
    let json = serde_json::to_string(&rows).unwrap();
    assert_eq!(serde_json::from_str::<Vec<crate::view::routes::RouteRow>>(&json).unwrap().len(), rows.len());
}

#[test]
fn problems_are_their_own_services() {
    let view = view();
    let told = |view: &View| {
        let problems = status(view, std::time::Duration::ZERO).problems;
        problems.into_iter().map(|p| (p.object, p.place)).collect::<Vec<_>>()
    };
    let pair = |object: &str, place: &str| (object.to_owned(), place.to_owned());
    let conflict = pair("service late", "swarmesh.http.l.host");
    let refused = pair("service late", "swarmesh.http.bad.prot");
    let unpublished = pair("container mute", "interlock.port");
    let unreached = pair("service far", "swarmesh.http.f.host");
    assert_eq!(told(&view), [unpublished.clone(), unreached.clone(), refused.clone(), conflict.clone()]);
    let service = view.snapshot.services.get("f").unwrap();
    assert_eq!(view.problems_of(service).len(), 2);
    assert_eq!(view.told_plan().problems.len(), 4);
    // Where no request comes in, nobody has to be reached.
    let view = View { listeners: Listeners::default(), ..view };
    assert_eq!(told(&view), [unpublished, refused, conflict]);

    let counted = status(&view, std::time::Duration::ZERO).routes;
    assert_eq!(counted.dialects["swarmesh"], 8);
    assert_eq!((counted.dialects["flow_proxy"], counted.owners, counted.http.len()), (1, 9, 0));
}

#[test]
fn a_published_port_before_a_listener_is_told() {
    let mut view = view();
    let told = |view: &View| view.problems().into_iter().filter(|p| p.object == "router").map(|p| p.message).collect::<Vec<_>>();
    assert_eq!(told(&view), [""; 0]);
    let publish = |bind: &[&str]| {
        let policy = swarmesh_plan::Policy { bind: bind.iter().map(|b| b.parse().unwrap()).collect(), ..Default::default() };
        let port = swarmesh_plan::PublishedPort {
            service: "a".into(),
            name: "own".into(),
            target_port: 80,
            policy: policy.into(),
            refuse: false,
            backends: Vec::new(),
        };
        ((swarmesh_model::Protocol::Tcp, 443), std::sync::Arc::new(port))
    };
    let (key, port) = publish(&[]);
    view.plan.published.insert(key, port);
    assert!(told(&view)[0].starts_with("port 443 is published by service own"), "{:?}", told(&view));
    view.listeners.https = vec!["192.0.2.1:443".parse().unwrap()];
    let (key, port) = publish(&["127.0.0.1/32"]);
    view.plan.published.insert(key, port);
    assert_eq!(told(&view), [""; 0]);
}
