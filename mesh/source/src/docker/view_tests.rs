use hyper::body::Bytes;
use swarmesh_model::{Snapshot, TaskState};

use super::{
    fixtures::{BACK, INGRESS, NODE, PLAIN, WEB, WEB_CONTAINER, WEB_TASK, list},
    view::View,
};

const NODE_ID: &str = "qd62rknqm88ks99aidc5sfw8h";
const TASK_ID: &str = "xhywa4hwqru2tc7utv5gai6e8";

fn full() -> View {
    let mut view = View::default();
    view.node = Some(NODE_ID.into());
    view.networks.take("", list(&[INGRESS, BACK]).into()).unwrap();
    view.nodes.take("", list(&[NODE]).into()).unwrap();
    services(&mut view, &[WEB]);
    tasks(&mut view, &[WEB_TASK]);
    view
}

fn services(view: &mut View, objects: &[&str]) -> bool {
    view.take_services("", list(objects).into()).unwrap()
}

fn tasks(view: &mut View, objects: &[&str]) -> bool {
    view.tasks.take("", list(objects).into()).unwrap()
}

/// Assembled, and found to agree with itself.
fn snapshot(view: &mut View) -> Snapshot {
    let snapshot = view.assemble(1);
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), snapshot);
    snapshot
}

fn container_list(id: &str, label: &str) -> String {
    format!(
        r#"[{{"Id":"{id}","Labels":{{{label}}},"NetworkSettings":{{"Networks":{{"back":{{"NetworkID":"lsg0dz53sfaryo8bjey7nif94"}}}}}}}}]"#
    )
}

#[test]
fn a_task_gets_its_name_and_its_container_the_sandbox() {
    let mut view = full();
    let before = snapshot(&mut view);
    let task = &before.tasks[TASK_ID];
    assert_eq!((&*task.name, task.sandbox.as_deref()), ("web.2.xhywa4hwqru2tc7utv5gai6e8", None));
    assert!(view.take_container("", WEB_CONTAINER.as_bytes()).unwrap());
    assert!(!view.take_container("", WEB_CONTAINER.as_bytes()).unwrap(), "the same again");
    let after = snapshot(&mut view);
    assert_eq!(after.tasks[TASK_ID].sandbox.as_deref(), Some("b1a0c61565ee"));
    assert_eq!(after.tasks.len(), 1, "a task's container is no plain one");
}

#[test]
fn health_and_death_are_known_before_the_swarm_reacts() {
    let mut view = full();
    let sick = WEB_CONTAINER.replace(r#""Running":true"#, r#""Running":true,"Health":{"Status":"unhealthy"}"#);
    view.take_container("", sick.as_bytes()).unwrap();
    assert!(snapshot(&mut view).tasks[TASK_ID].is_draining());
    view.take_container("", sick.replace("unhealthy", "starting").as_bytes()).unwrap();
    assert!(snapshot(&mut view).tasks[TASK_ID].is_usable());
    view.take_container("", WEB_CONTAINER.replace(r#""Running":true"#, r#""Running":false"#).as_bytes()).unwrap();
    let dead = snapshot(&mut view).tasks[TASK_ID].clone();
    assert!(!dead.is_usable() && dead.sandbox.is_none());
    assert!(!view.container_gone("567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55"), "nothing new");
    assert!(!snapshot(&mut view).tasks[TASK_ID].is_usable(), "gone is not healthy");
}

#[test]
fn a_global_task_is_named_after_its_node() {
    let mut view = full();
    tasks(&mut view, &[&WEB_TASK.replace(r#""Slot":2,"#, "")]);
    assert_eq!(*snapshot(&mut view).tasks[TASK_ID].name, *format!("web.{NODE_ID}.{TASK_ID}"));
}

#[test]
fn a_plain_container_that_asks_for_requests_comes_with_its_labels_and_ports() {
    let mut view = full();
    // `docker run -p 80 -p 127.0.0.1:81:81 -l interlock.hostname=demo`, on the engine's own bridge.
    let asks = PLAIN
        .replace(r#""Labels":null"#, r#""Labels":{"interlock.hostname":"demo","com.example":null}"#)
        .replace("lsg0dz53sfaryo8bjey7nif94", "0b0b")
        .replace(
            r#""Networks""#,
            r#""Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"32768"},{"HostIp":"::","HostPort":"32768"}],"9/tcp":null,
               "81/tcp":[{"HostIp":"127.0.0.1","HostPort":"81"}],"53/udp":[{"HostIp":"0.0.0.0","HostPort":"53"}]},"Networks""#,
        );
    const ID: &str = "b2df664cc44820f2f6db29968b9299bed64d385d379db2b1431eb6ce808aaba1";
    let labelled = |label: &str| {
        let line = format!(r#"[{{"Id":"{ID}","Labels":{{"{label}":"demo"}},"NetworkSettings":{{"Networks":{{}}}}}}]"#);
        View::default().take_container_list("", line.as_bytes()).unwrap().len()
    };
    assert_eq!((labelled("interlock.hostname"), labelled("interlock.domain")), (1, 0), "whom to look at");

    view.take_container("", asks.as_bytes()).unwrap();
    let found = snapshot(&mut view);
    let container = &found.tasks[ID];
    let routing = container.routing.as_deref().unwrap();
    assert!(container.addresses.is_empty() && container.is_usable());
    assert_eq!(routing.labels.get("interlock.hostname").map(String::as_str), Some("demo"));
    assert_eq!(routing.labels.len(), 2);
    assert_eq!(routing.published, Some("127.0.0.1".parse().unwrap()));
    let ports: Vec<_> = routing.ports.iter().map(|p| (p.target_port, p.published_port)).collect();
    assert_eq!(ports, [(80, Some(32768)), (81, Some(81))]);

    for (host, reached) in [("192.0.2.11", "192.0.2.11"), ("::", "::1"), ("", "127.0.0.1")] {
        let one = PLAIN
            .replace(r#""Labels":null"#, r#""Labels":{"interlock.hostname":"demo"}"#)
            .replace(r#""Networks""#, &format!(r#""Ports":{{"80/tcp":[{{"HostIp":"{host}","HostPort":"8080"}}]}},"Networks""#));
        view.take_container("", one.as_bytes()).unwrap();
        let found = snapshot(&mut view).tasks[ID].routing.clone().unwrap();
        assert_eq!((found.published, found.ports.len()), (Some(reached.parse().unwrap()), 1), "{host}");
    }
    view.take_container("", PLAIN.as_bytes()).unwrap();
    assert_eq!(snapshot(&mut view).tasks[ID].routing, None, "nothing is kept of others");
    let of_service = WEB_CONTAINER.replace(r#""Labels":{"#, r#""Labels":{"interlock.hostname":"demo","#);
    view.take_container("", of_service.as_bytes()).unwrap();
    assert_eq!(snapshot(&mut view).tasks[TASK_ID].routing, None, "a task's container has its service's labels");
}

#[test]
fn plain_containers_of_swarm_networks() {
    let mut view = full();
    view.take_container("", PLAIN.as_bytes()).unwrap();
    let id = "b2df664cc44820f2f6db29968b9299bed64d385d379db2b1431eb6ce808aaba1";
    let after = snapshot(&mut view);
    let plain = &after.tasks[id];
    assert_eq!((&*plain.name, plain.state), ("plain", TaskState::Running));
    assert_eq!(plain.node.as_ref().unwrap().as_str(), NODE_ID);
    assert_eq!(plain.addresses[0].aliases, ["pal"]);
    assert_eq!(plain.sandbox.as_deref(), Some("fc2fb6c63009"));
    let newer = PLAIN.replace(r#""Aliases":["pal","b2df664cc448"]"#, r#""Aliases":["pal"],"DNSNames":["plain","pal","b2df664cc448"]"#);
    assert!(!view.take_container("", newer.as_bytes()).unwrap(), "newer engines say the same in other words");
    assert!(view.take_container_list("", b"[]").unwrap().is_empty());
    assert!(!snapshot(&mut view).tasks.contains_key(id));
    view.take_container("", PLAIN.replace("fc2fb6c63009", "default").as_bytes()).unwrap();
    assert_eq!(snapshot(&mut view).tasks[id].sandbox, None, "the host's own namespace is no sandbox");
}

#[test]
fn containers_worth_a_look() {
    let mut view = full();
    let wanted = |view: &mut View, json: &str| view.take_container_list("", json.as_bytes()).unwrap().len();
    assert_eq!(wanted(&mut view, &container_list("a", "")), 1);
    assert_eq!(wanted(&mut view, &container_list("a", "").replace("lsg0dz53sfaryo8bjey7nif94", "0f0f")), 0);
    assert_eq!(wanted(&mut view, &container_list("a", r#""com.docker.swarm.task.id":"t""#).replace("lsg0", "x")), 1);
    assert_eq!(wanted(&mut view, "[7, null, {\"Id\": 3}]"), 0);
    assert!(view.take_container_list("", b"{\"message\":\"no\"}").is_err());
}

#[test]
fn a_removed_service_stays_with_its_tasks() {
    let mut view = full();
    services(&mut view, &[]);
    let leaving = WEB_TASK.replace(r#""DesiredState":"running""#, r#""DesiredState":"remove""#);
    tasks(&mut view, &[&leaving]);
    let after = snapshot(&mut view);
    assert_eq!(after.services.len(), 1);
    assert!(after.tasks[TASK_ID].is_draining());

    // Its port and its address are another's now; its name is not.
    let other = WEB.replace("ixxro9r4qcfobuhm4lug0m9g0", "other").replace(r#""Name":"web""#, r#""Name":"other""#);
    services(&mut view, &[&other]);
    let after = snapshot(&mut view);
    let old = &after.services["ixxro9r4qcfobuhm4lug0m9g0"];
    assert!(old.ports.is_empty() && old.vips.is_empty());
    assert_eq!(after.services["other"].ports.len(), 2);

    // A new service of the same name takes its place at once.
    services(&mut view, &[&WEB.replace("ixxro9r4qcfobuhm4lug0m9g0", "newweb")]);
    let after = snapshot(&mut view);
    assert_eq!(after.services.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["newweb"]);
    assert!(after.tasks.is_empty());
}

#[test]
fn a_removed_service_goes_with_its_last_task() {
    let mut view = full();
    services(&mut view, &[]);
    assert_eq!(snapshot(&mut view).services.len(), 1);
    tasks(&mut view, &[]);
    let after = snapshot(&mut view);
    assert!(after.services.is_empty() && after.tasks.is_empty() && after.nodes.len() == 1);
}

#[test]
fn a_task_from_before_an_update_keeps_its_ports() {
    let mut view = full();
    let created = WEB_TASK.replace(r#""Version""#, r#""CreatedAt":"2026-11-21T02:29:01Z","Version""#);
    let newer = created.replace(TASK_ID, "newer").replace("02:29:01Z", "02:29:01.75Z");
    tasks(&mut view, &[&created, &newer]);
    let previous = |target: u16, published: u16| {
        let ports = format!(r#"[{{"TargetPort":{target},"PublishedPort":{published}}}]"#);
        let spec = format!(r#"{{"Name":"web","EndpointSpec":{{"Ports":{ports}}}}}"#);
        let status = r#"{"State":"updating","StartedAt":"2026-11-21T02:29:01.5Z"}"#;
        WEB.replacen('{', &format!(r#"{{"PreviousSpec":{spec},"UpdateStatus":{status},"#), 1)
    };
    services(&mut view, &[&previous(90, 8080)]);
    let after = snapshot(&mut view);
    let ports = after.tasks[TASK_ID].ports.as_ref().unwrap();
    assert_eq!((ports[0].target_port, ports[0].published_port), (90, Some(8080)));
    assert_eq!(after.tasks["newer"].ports, None);
    // What the swarm once chose is not known any more.
    services(&mut view, &[&previous(90, 0)]);
    assert_eq!(snapshot(&mut view).tasks[TASK_ID].ports, None);
    // The same ports in another order are no others.
    let both = r#"[{"Protocol":"udp","TargetPort":81,"PublishedPort":8081},{"TargetPort":80,"PublishedPort":8080}]"#;
    services(&mut view, &[&previous(1, 1).replace(r#"[{"TargetPort":1,"PublishedPort":1}]"#, both)]);
    assert_eq!(snapshot(&mut view).tasks[TASK_ID].ports, None);
}

#[test]
fn an_alias_stays_until_the_last_task_that_was_made_with_it_is_gone() {
    let mut view = full();
    let made_with = |id: &str, network: &str, alias: &str| {
        let joined = format!(r#""Networks":[{{"Target":"{network}","Aliases":["{alias}"]}}]"#);
        WEB_TASK.replace(r#""Networks":[{"Target":"lsg0dz53sfaryo8bjey7nif94"}]"#, &joined).replace(TASK_ID, id)
    };
    let (old, named, new) = (
        made_with("old", "lsg0dz53sfaryo8bjey7nif94", "old"),
        made_with("older", "back", "older"),
        made_with("new", "elsewhere", "leaked"),
    );
    let aliases = |view: &mut View| snapshot(view).services.values().next().unwrap().networks[0].aliases.clone();
    tasks(&mut view, &[&old, &named, &new]);
    assert_eq!(aliases(&mut view), ["www", "old", "older"]);
    tasks(&mut view, &[&old.replace(r#""State":"running""#, r#""State":"shutdown""#), &new]);
    assert_eq!(aliases(&mut view), ["www"]);
}

#[test]
fn what_refers_to_unlisted_objects_waits_for_them() {
    let mut view = View::default();
    tasks(&mut view, &[WEB_TASK]);
    assert!(view.misses_a_service());
    assert!(snapshot(&mut view).tasks.is_empty());
    services(&mut view, &[WEB]);
    assert!(!view.misses_a_service());
    let partial = snapshot(&mut view);
    assert_eq!((partial.services.len(), partial.tasks.len()), (1, 1));
    assert!(partial.tasks[TASK_ID].node.is_none() && partial.tasks[TASK_ID].addresses.is_empty());
    view.networks.take("", list(&[INGRESS, BACK]).into()).unwrap();
    view.nodes.take("", list(&[NODE]).into()).unwrap();
    assert_eq!(snapshot(&mut view), snapshot(&mut full()));
    // A spec may name a network by its name.
    services(&mut view, &[&WEB.replace(r#""Target":"lsg0dz53sfaryo8bjey7nif94""#, r#""Target":"back""#)]);
    assert_eq!(snapshot(&mut view).services.values().next().unwrap().networks[0].network.as_str(), "lsg0dz53sfaryo8bjey7nif94");
}

#[test]
fn an_odd_object_keeps_its_last_good_form() {
    let mut view = full();
    let before = snapshot(&mut view);
    let odd = WEB.replace("10.0.1.2/24", "ten");
    let new = r#"{"ID":"new","Spec":{"Name":7}}"#;
    assert!(services(&mut view, &[&odd, new, "7", "null"]), "problems are news");
    assert_eq!(snapshot(&mut view), before);
    let problems: Vec<String> = view.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("service web: ") && p.ends_with("its last good form stays")), "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("service new: ") && p.ends_with("it is left out")), "{problems:?}");
    assert!(services(&mut view, &[WEB]));
    assert!(view.problems().is_empty());
}

#[test]
fn a_list_that_is_none_changes_nothing() {
    let mut view = full();
    let before = snapshot(&mut view);
    for body in ["", "{", "[{\"ID\":", "{\"message\":\"x\"}", "7"] {
        assert!(view.take_services("/services", Bytes::from(body)).is_err(), "{body}");
        assert!(view.tasks.take("/tasks", Bytes::from(body)).is_err(), "{body}");
    }
    assert_eq!(snapshot(&mut view), before);
}
