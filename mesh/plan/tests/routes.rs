//! Routes in the plan: what is read when, where tasks are found, and from where a network is reached.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use swarmesh_model::{
    ContainerRouting, Delta, Network, Port, Protocol, PublishMode, Service, ServiceNetwork, Snapshot, Subnet, Task, TaskAddress, TaskState,
    VirtualIp,
};
use swarmesh_plan::{Added, NodeContext, OwnerKey, Planner, RouteDelta, RoutePlan, RoutedService};
use swarmesh_router::model::{BackendMode, BackendSet, Member, Upstream};

fn network(id: &str, third: u8, ingress: bool) -> Network {
    Network {
        id: id.into(),
        name: format!("{id}-name"),
        driver: "overlay".into(),
        ingress,
        local: false,
        internal: false,
        attachable: false,
        subnets: vec![Subnet { subnet: format!("10.0.{third}.0/24").parse().unwrap(), gateway: None }],
        mtu: None,
        labels: Default::default(),
    }
}

fn service(id: &str, labels: &[(&str, &str)], networks: &[&str]) -> Service {
    let vips = networks.iter().map(|n| VirtualIp { network: (*n).into(), address: "10.0.1.2".parse().unwrap() });
    Service {
        id: id.into(),
        name: format!("{id}-name"),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        endpoint_mode: Default::default(),
        ports: vec![],
        vips: vips.collect(),
        networks: networks.iter().map(|n| ServiceNetwork { network: (*n).into(), aliases: vec![] }).collect(),
    }
}

/// On node `here`, in network `n1` as 10.0.1.`host`.
fn task(id: &str, service: &str, host: u8) -> Task {
    Task {
        id: id.into(),
        service: Some(service.into()),
        name: format!("{id}-name").into(),
        slot: None,
        node: Some("here".into()),
        desired_state: TaskState::Running,
        state: TaskState::Running,
        container: None,
        hostname: None,
        sandbox: Some(format!("box-{id}").into()),
        healthy: None,
        addresses: vec![TaskAddress { network: "n1".into(), address: [10, 0, 1, host].into(), aliases: vec![], links: Default::default() }],
        ports: None,
        dns: None,
        routing: None,
    }
}

const LABELS: &[(&str, &str)] = &[("swarmesh.http.web.host", "web.example"), ("swarmesh.http.web.port", "80")];

fn swarm() -> Snapshot {
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.insert_network(network("n0", 0, true));
    snapshot.insert_network(network("n1", 1, false));
    snapshot.insert_service(service("web", LABELS, &["n1"]));
    snapshot.insert_service(Service { vips: vec![], ..service("other", &[("com.example", "x")], &["n1"]) });
    snapshot.insert_task(task("t5", "web", 15));
    snapshot
}

/// A planner that follows a snapshot.
struct Following {
    planner: Planner,
    now: Snapshot,
}

impl Following {
    fn new(leaves_names: bool) -> (Self, RouteDelta) {
        let context = NodeContext { node: Some("here".into()), leaves_names, ..NodeContext::default() };
        let mut this = Self { planner: Planner::new(context), now: Snapshot::default() };
        let first = this.step(|snapshot| *snapshot = swarm());
        (this, first)
    }

    fn step(&mut self, change: impl FnOnce(&mut Snapshot)) -> RouteDelta {
        let mut next = self.now.clone();
        change(&mut next);
        let delta = self.planner.update(&Delta::between(&self.now, &next)).routes;
        self.now = next;
        delta
    }

    fn routes(&self) -> &RoutePlan {
        &self.planner.plan().routes
    }

    fn foothold(&self, network: &str) -> Option<&str> {
        self.routes().footholds.get(network).map(String::as_str)
    }

    fn upstreams(&self) -> Vec<Upstream> {
        let route = self.routes().routes().next().unwrap();
        route.backends().unwrap().upstreams(self.routes()).into_iter().map(|u| u.upstream).collect()
    }
}

fn to(task: &str, host: u8, port: u16) -> Upstream {
    Upstream::Task { task: task.into(), address: [10, 0, 1, host].into(), port }
}

#[test]
fn a_task_changes_its_service_and_no_route() {
    let (mut plan, first) = Following::new(false);
    assert_eq!((first.owners.len(), first.services.len(), first.footholds.len()), (1, 1, 1));
    assert_eq!(plan.upstreams(), [to("t5", 15, 80)]);

    let delta = plan.step(|s| s.insert_task(task("t6", "web", 16)));
    assert_eq!((delta.owners.len(), delta.services.len(), delta.footholds.len()), (0, 1, 0));
    assert_eq!(plan.upstreams(), [to("t5", 15, 80), to("t6", 16, 80)]);

    let delta = plan.step(|s| s.insert_task(task("t7", "other", 17)));
    assert!(delta.is_empty(), "a service without routes is nobody's business: {delta:?}");
}

#[test]
fn tasks_are_the_names_own_lists_and_are_known_without_names() {
    let (mut plan, _) = Following::new(false);
    plan.step(|s| s.insert_task(task("t6", "web", 16)));
    let names = &plan.planner.plan().names.services.get("web").unwrap().zones[0].backends[0];
    assert!(Arc::ptr_eq(names, &plan.routes().services.get("web").unwrap().networks[0].backends[0]));

    let (plan, _) = Following::new(true);
    assert!(plan.planner.plan().names.services.is_empty());
    assert_eq!(plan.upstreams(), [to("t5", 15, 80)]);
    let vip = &plan.planner.plan().networks.get("n1").unwrap().get(&"10.0.1.2".parse().unwrap()).unwrap().backends;
    assert!(Arc::ptr_eq(vip, &plan.routes().services.get("web").unwrap().networks[0].backends[0]));
}

#[test]
fn stopping_tasks_serve_while_no_other_does() {
    let (mut plan, _) = Following::new(false);
    let stopping = Task { desired_state: TaskState::Shutdown, ..task("t5", "web", 15) };
    plan.step(|s| s.insert_task(stopping));
    assert_eq!(plan.upstreams(), [to("t5", 15, 80)]);
    plan.step(|s| s.insert_task(task("t6", "web", 16)));
    assert_eq!(plan.upstreams(), [to("t6", 16, 80)]);
    plan.step(|s| {
        s.tasks.remove(&"t5".into());
        s.tasks.remove(&"t6".into());
    });
    assert_eq!(plan.upstreams(), []);
}

#[test]
fn a_vip_is_one_place_and_has_its_network() {
    let (mut plan, _) = Following::new(false);
    let labels = [LABELS, &[("swarmesh.http.web.backend", "vip")]].concat();
    plan.step(|s| s.insert_service(service("web", &labels, &["n1"])));
    assert_eq!(plan.upstreams(), [Upstream::Vip { service: "web".into(), address: "10.0.1.2".parse().unwrap(), port: 80 }]);
    plan.step(|s| {
        s.insert_service(Service { endpoint_mode: swarmesh_model::EndpointMode::Dnsrr, ..service("web", &labels, &["n1"]) });
    });
    assert_eq!(plan.upstreams(), [to("t5", 15, 80)], "without a VIP, its tasks");
}

#[test]
fn a_published_service_is_reached_by_ingress_if_by_nothing_else() {
    let (mut plan, _) = Following::new(false);
    let port =
        Port { name: None, protocol: Protocol::Tcp, target_port: 80, published_port: Some(8000), publish_mode: PublishMode::Ingress };
    plan.step(|s| {
        s.insert_service(Service { ports: vec![port], ..service("web", LABELS, &["n1"]) });
        let mut t5 = task("t5", "web", 15);
        t5.addresses.push(TaskAddress { network: "n0".into(), address: [10, 0, 0, 15].into(), ..t5.addresses[0].clone() });
        s.insert_task(t5);
    });
    let somewhere = BackendSet::of(Member::service("web", None, 80, BackendMode::Task));
    let by_ingress = BackendSet::of(Member::service("web", Some("n0".into()), 80, BackendMode::Vip));
    let reached = |routes: &RoutePlan, set: &BackendSet| {
        let network = routes.network_of(&set.members[0].target).cloned();
        (network, set.upstreams(routes).into_iter().map(|u| u.upstream).collect::<Vec<_>>())
    };
    let ingress = (Some("n0".into()), vec![Upstream::Task { task: "t5".into(), address: [10, 0, 0, 15].into(), port: 80 }]);
    assert_eq!(reached(plan.routes(), &by_ingress), ingress);
    assert_eq!(reached(plan.routes(), &somewhere), (Some("n1".into()), vec![to("t5", 15, 80)]));

    let mut routes = plan.routes().clone();
    let both = routes.services.get("web").unwrap().as_ref().clone();
    routes.services.insert("web".into(), Arc::new(RoutedService { networks: Box::default(), ..both }));
    assert_eq!(reached(&routes, &somewhere), ingress);

    plan.step(|s| drop(s.networks.remove(&"n0".into())));
    assert_eq!(reached(plan.routes(), &by_ingress).1, []);
}

#[test]
fn a_foothold_stays_while_it_stands() {
    let (mut plan, _) = Following::new(false);
    assert_eq!(plan.foothold("n1"), Some("box-t5"));
    let delta = plan.step(|s| s.insert_task(task("t1", "other", 11)));
    assert_eq!((plan.foothold("n1"), delta.footholds.len()), (Some("box-t5"), 0), "a smaller id is no reason to move");
    let draining = NodeContext { draining: true, ..plan.planner.context().clone() };
    plan.planner.set_context(draining);
    assert_eq!(plan.foothold("n1"), Some("box-t5"), "nor is another context");

    plan.step(|s| s.insert_task(Task { desired_state: TaskState::Shutdown, ..task("t5", "web", 15) }));
    assert_eq!(plan.foothold("n1"), Some("box-t1"), "one that leaves is left in time");
    plan.step(|s| s.insert_task(Task { sandbox: Some("box-new".into()), ..task("t1", "other", 11) }));
    assert_eq!(plan.foothold("n1"), Some("box-new"));
    plan.step(|s| drop(s.tasks.remove(&"t1".into())));
    assert_eq!(plan.foothold("n1"), Some("box-t5"), "better than none");
    plan.step(|s| s.insert_task(Task { node: Some("elsewhere".into()), ..task("t5", "web", 15) }));
    assert_eq!(plan.foothold("n1"), None);
    let missing: Vec<_> = plan.routes().without_foothold().map(|(origin, n)| (origin.owner.name.as_str(), n.as_str())).collect();
    assert_eq!(missing, [("web-name", "n1")]);
    assert_eq!(plan.upstreams(), [to("t5", 15, 80)], "it is known where to go, and not from where");

    plan.step(|s| s.insert_task(task("t5", "web", 15)));
    let delta = plan.step(|s| s.insert_service(service("web", &[], &["n1"])));
    assert_eq!(delta.footholds.get("n1"), Some(&None), "nobody wants it any more");
    assert!(plan.routes().services.is_empty() && plan.routes().owners.is_empty());
}

#[test]
fn labels_are_read_again_when_what_they_name_changes() {
    let (mut plan, _) = Following::new(false);
    let labels =
        [LABELS, &[("swarmesh.http.web.network", "blue"), ("swarmesh.http.api.host", "api.example"), ("swarmesh.http.api.status", "404")]]
            .concat();
    plan.step(|s| s.insert_service(service("web", &labels, &["n1"])));
    let key = OwnerKey::Service("web".into());
    let of_web = |plan: &Following| plan.routes().owners.get(&key).unwrap().as_ref().clone();
    let before = of_web(&plan);
    assert_eq!((before.routes.len(), before.problems.len()), (1, 1));
    let told = |plan: &Following| plan.planner.plan().problems.iter().filter(|p| p.object == "service web-name").count();
    assert_eq!(told(&plan), 1);

    plan.step(|s| s.insert_network(Network { name: "blue".into(), ..network("n1", 1, false) }));
    let after = of_web(&plan);
    assert_eq!((after.routes.len(), after.problems.len(), told(&plan)), (2, 0, 0));
    let kept = after.routes.iter().any(|r| Arc::ptr_eq(r, &before.routes[0]));
    assert!(kept, "a route that came out as before is the same object");
}

#[test]
fn a_plain_container_is_reached_by_its_network_or_by_its_published_port() {
    let (mut plan, _) = Following::new(false);
    plan.step(|s| s.insert_service(service("web", &[], &["n1"])));
    let port = Port { name: None, protocol: Protocol::Tcp, target_port: 80, published_port: Some(32768), publish_mode: PublishMode::Host };
    let container = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let published = Some([127, 0, 0, 1].into());
        let routing = ContainerRouting { labels, ports: vec![port.clone()], published };
        Task { service: None, routing: Some(Box::new(routing)), ..task("c1", "web", 21) }
    };
    let by_port = [("interlock.hostname", "old"), ("interlock.domain", "example")];
    let delta = plan.step(|s| s.insert_task(container(&by_port)));
    assert_eq!((delta.owners.len(), delta.containers.len(), delta.services.len(), delta.footholds.len()), (1, 1, 0, 0));
    let published = Upstream::Published { container: "c1".into(), address: [127, 0, 0, 1].into(), port: 32768 };
    assert_eq!(plan.upstreams(), [published]);

    let by_network = [by_port[0], by_port[1], ("interlock.network", "n1-name"), ("interlock.port", "81")];
    plan.step(|s| s.insert_task(container(&by_network)));
    assert_eq!(plan.upstreams(), [to("c1", 21, 81)]);
    assert!(plan.foothold("n1").is_some(), "its own namespace, or another in that network");
    let elsewhere = Network { subnets: network("n1", 7, false).subnets, ..network("n1", 1, false) };
    plan.step(|s| s.insert_network(elsewhere));
    assert_eq!(plan.upstreams(), [], "an address that is not its network's own is nobody's");
    plan.step(|s| s.insert_network(network("n1", 1, false)));
    assert_eq!(plan.upstreams(), [to("c1", 21, 81)]);
    let delta = plan.step(|s| s.insert_task(Task { healthy: Some(false), ..container(&by_network) }));
    assert_eq!((delta.owners.len(), plan.upstreams().len()), (0, 0), "an unhealthy one gets nothing");

    plan.step(|s| s.insert_network(Network { name: "blue".into(), ..network("n1", 1, false) }));
    let told = plan.planner.plan().problems.iter().filter(|p| p.object == "container c1-name" && p.place == "interlock.network").count();
    assert_eq!((told, plan.routes().routes().count(), plan.routes().containers.len()), (1, 0, 0));
    plan.step(|s| s.insert_task(Task { node: Some("elsewhere".into()), ..container(&by_network) }));
    assert!(plan.routes().owners.is_empty(), "another node's is that node's to route");
}

#[test]
fn a_plan_with_routes_has_a_json_form() {
    let (plan, _) = Following::new(false);
    let json = serde_json::to_value(plan.planner.plan()).unwrap();
    assert_eq!(json["routes"]["owners"]["service/web"]["routes"][0]["origin"]["dialect"], "swarmesh");
    assert_eq!(json["routes"]["footholds"]["n1"], "box-t5");
}

fn added(services: &[(&str, &[(&str, &str)])]) -> Arc<Added> {
    let mut added = Added::default();
    for (name, parameters) in services {
        added.insert((*name).to_owned(), parameters.iter().map(|(p, v)| ((*p).to_owned(), (*v).to_owned())).collect());
    }
    Arc::new(added)
}

#[test]
fn what_is_added_leads_to_the_service_of_the_name_or_to_the_host() {
    let (mut plan, _) = Following::new(false);
    let owners = |plan: &Following| plan.routes().owners.keys().cloned().collect::<Vec<_>>();
    let parameters: &[(&str, &str)] = &[("servicePath", "/x"), ("port", "8080"), ("serviceName", "other-name"), ("users", "u:secret")];
    let now = added(&[("other-name", parameters)]);
    assert!(!format!("{now:?}").contains("secret"));
    let delta = plan.planner.set_added(now);
    assert_eq!(delta.routes.owners.keys().collect::<Vec<_>>(), [&OwnerKey::Service("other".into())]);
    assert!(plan.routes().services.contains_key("other"), "its tasks are known from now on");
    assert_eq!(delta.problems, None, "its name is no mistake");
    let route = Arc::clone(&plan.routes().owners.get(&OwnerKey::Service("other".into())).unwrap().routes[0]);
    assert_eq!((route.origin.label.as_str(), route.origin.owner.id.as_str()), ("com.df.servicePath", "other"));

    // The service goes, and comes back.
    let others = plan.now.services.get("other").unwrap().as_ref().clone();
    plan.step(|s| s.services = s.services.iter().filter(|(id, _)| id.as_str() != "other").map(|(k, v)| (k.clone(), v.clone())).collect());
    assert_eq!(owners(&plan), [OwnerKey::Service("web".into()), OwnerKey::Added("other-name".into())]);
    let host = |plan: &Following| plan.routes().owners.get(&OwnerKey::Added("other-name".into())).unwrap().routes[0].clone();
    let to = host(&plan).backends().unwrap().upstreams(plan.routes());
    assert_eq!(to.iter().map(|u| u.upstream.clone()).collect::<Vec<_>>(), [Upstream::Host { name: "other-name".into(), port: 8080 }]);
    // Whatever is planned anew has it too.
    let context = NodeContext { draining: true, ..plan.planner.context().clone() };
    plan.planner.set_context(context);
    assert_eq!(owners(&plan).len(), 2);
    assert_eq!(swarmesh_plan::plan(&plan.now, plan.planner.context()).routes.owners, plan.routes().owners);
    plan.step(|s| s.insert_service(others));
    assert_eq!(owners(&plan), [OwnerKey::Service("other".into()), OwnerKey::Service("web".into())]);

    // Before the swarm is known, nobody can tell what the name is.
    let nothing = Planner::new(plan.planner.context().clone()).plan().routes.clone();
    assert_eq!((swarmesh_plan::plan(&Snapshot::default(), plan.planner.context()).routes, nothing.owners.len()), (nothing, 0));

    // Its own labels of the dialect count again when nothing else is said.
    plan.planner.set_added(added(&[("web-name", &[("servicePath", "/y"), ("port", "1"), ("outboundHostname", "else.example")])]));
    assert_eq!(owners(&plan), [OwnerKey::Service("web".into())]);
    let labels = |plan: &Following| plan.routes().routes().map(|r| r.origin.label.clone()).collect::<Vec<_>>();
    assert_eq!(labels(&plan), ["com.df.servicePath", "swarmesh.http.web.host"], "other dialects' labels stay");
    plan.planner.set_added(Arc::default());
    assert_eq!(labels(&plan), ["swarmesh.http.web.host"]);
}
