use swarmesh_model::Snapshot;

use super::{Lab, SECOND};
use crate::{
    stack::{self, Stack},
    swarm::{SwarmError, snapshot_of},
};

fn load(text: &str) -> Stack {
    stack::load(text.as_bytes(), "stack.yml", "shop", &|_| None).unwrap()
}

const BOTH: &str = "
services:
  web: {image: web, ports: ['80:80'], networks: [front, outside], deploy: {replicas: 2}}
  db: {image: db}
networks: {front: , outside: {external: true}}
";

#[test]
fn a_stack_is_deployed_changed_pruned_and_removed() {
    let mut lab = Lab::new(2);
    let changes = lab.swarm.deploy(&load(BOTH)).unwrap();
    assert_eq!(changes.services_created, ["shop_web", "shop_db"]);
    assert_eq!(changes.networks_created, ["shop_front", "outside", "shop_default"]);
    assert!(changes.notes.iter().any(|n| n.contains("outside is external")), "{:?}", changes.notes);
    lab.settle();
    assert_eq!((lab.placed("shop_web"), lab.placed("shop_db")), ("1@n1 2@n2".to_owned(), "1@n1".to_owned()));
    let outside = lab.swarm.network_id("outside").unwrap();
    assert!(lab.swarm.snapshot().networks[&outside].attachable);

    let changes = lab.swarm.deploy(&load(BOTH)).unwrap();
    assert_eq!((changes.services_unchanged.len(), changes.networks_created.len(), changes.notes.len()), (2, 0, 0));

    let renamed = BOTH.replace("web: {image: web", "www: {image: web").replace("db: {image: db}", "db: {image: db2}");
    let error = lab.swarm.deploy(&load(&renamed)).unwrap_err();
    assert!(matches!(error, SwarmError::PortInUse { .. }), "{error}");
    assert_eq!(lab.swarm.service_spec("shop_db").unwrap().image, "db", "all or nothing");
    let changes = lab.swarm.deploy_and_prune(&load(&renamed)).unwrap();
    assert_eq!((changes.services_removed, changes.services_created), (vec!["shop_web".to_owned()], vec!["shop_www".to_owned()]));
    assert_eq!(changes.services_updated, ["shop_db"]);
    lab.after(10 * SECOND);
    assert_eq!(lab.swarm.services().len(), 2);
    assert!(lab.swarm.is_settled());

    let changes = lab.swarm.remove_stack("shop").unwrap();
    assert_eq!((changes.services_removed.len(), changes.networks_removed), (2, vec!["shop_front".to_owned(), "shop_default".to_owned()]));
    lab.settle();
    let names: Vec<String> = lab.swarm.snapshot().networks.values().map(|n| n.name.clone()).collect();
    assert_eq!((names.len(), lab.swarm.snapshot().services.len()), (3, 0), "ingress, net and the external one stay: {names:?}");
    assert!(lab.swarm.remove_stack("shop").is_err());
}

#[test]
fn a_stack_that_comes_back_before_it_has_gone_keeps_its_networks() {
    let mut lab = Lab::new(1);
    lab.swarm.deploy(&load(BOTH)).unwrap();
    lab.settle();
    lab.slow_stop = true;
    lab.swarm.remove_stack("shop").unwrap();
    lab.settle();
    lab.swarm.deploy(&load(BOTH)).unwrap();
    lab.settle();
    for task in std::mem::take(&mut lab.stopping) {
        lab.swarm.observe(&task, crate::swarm::Observed::Exited(0));
    }
    lab.settle();
    assert!(lab.swarm.network_id("shop_front").is_some() && lab.swarm.is_settled());
}

#[test]
fn templates_are_filled_in() {
    let mut lab = Lab::new(1);
    lab.swarm
        .deploy(&load(
            "services: {web: {image: a, hostname: '{{.Service.Name}}-{{ .Task.Slot }}', environment: {AT: '{{.Node.Hostname}}'}}}",
        ))
        .unwrap();
    lab.settle();
    let task = lab.tasks("shop_web").remove(0);
    assert_eq!(task.hostname.as_deref(), Some("shop_web-1"));
    assert_eq!(lab.swarm.task_spec(&task.id).unwrap().environment["AT"], "n1");
}

#[test]
fn a_snapshot_of_a_stack_has_every_task_running() {
    let stack = load("services: {web: {image: a, ports: [80], deploy: {replicas: 700}}, all: {image: b, deploy: {mode: global}}}");
    let snapshot = snapshot_of(&stack, 300).unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.nodes.len()), (1000, 300));
    assert!(snapshot.tasks.values().all(|t| t.is_usable()));
    assert_eq!(Snapshot::from_json(&snapshot.to_json()), Ok(snapshot));
    assert!(snapshot_of(&stack, 0).unwrap().tasks.values().all(|t| t.node.is_none()));
}
