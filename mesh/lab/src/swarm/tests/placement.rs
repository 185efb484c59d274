use swarmesh_model::{Availability, PublishMode};

use super::{Lab, port, spec};
use crate::{
    stack::{Constraint, ConstraintKey, Mode, Placement, ServiceSpec},
    swarm::SwarmError,
};

fn constraint(key: ConstraintKey, equal: bool, value: &str) -> Constraint {
    Constraint { key, equal, value: value.to_owned() }
}

#[test]
fn tasks_spread_by_service_then_by_load_then_by_node() {
    let mut lab = Lab::new(3);
    lab.swarm.create_service(spec("a", 4)).unwrap();
    lab.settle();
    assert_eq!(lab.placed("a"), "1@n1 2@n2 3@n3 4@n1");
    lab.swarm.create_service(spec("b", 2)).unwrap();
    lab.settle();
    assert_eq!(lab.placed("b"), "1@n2 2@n3");
}

#[test]
fn constraints_and_the_most_per_node_hold() {
    let mut lab = Lab::new(4);
    let placement = |constraints, max_replicas_per_node| Placement { constraints, max_replicas_per_node };
    let even = placement(vec![constraint(ConstraintKey::Label("parity".to_owned()), true, "even")], None);
    lab.swarm.create_service(ServiceSpec { placement: even, ..spec("even", 3) }).unwrap();
    let workers = vec![constraint(ConstraintKey::Role, false, "Manager"), constraint(ConstraintKey::Hostname, false, "n2")];
    lab.swarm.create_service(ServiceSpec { placement: placement(workers, Some(1)), ..spec("few", 3) }).unwrap();
    lab.settle();
    assert_eq!(lab.placed("even"), "1@n2 2@n4 3@n2");
    assert_eq!(lab.placed("few"), "1@n3 2@n4");
    let problems: Vec<String> = lab.swarm.problems().iter().map(ToString::to_string).collect();
    assert!(problems.len() == 1 && problems[0].contains("max_replicas_per_node"), "{problems:?}");
    assert!(!lab.swarm.is_settled());
}

#[test]
fn a_global_service_has_one_task_on_each_fitting_node() {
    let mut lab = Lab::new(3);
    let global = ServiceSpec { mode: Mode::Global, ..spec("all", 0) };
    lab.swarm.create_service(global).unwrap();
    lab.settle();
    assert_eq!(lab.placed("all"), "@n1 @n2 @n3");
    let task = &lab.tasks("all")[0];
    assert_eq!((task.slot, task.name.split('.').nth(1)), (None, task.node.as_ref().map(|n| n.as_str())));
    assert!(matches!(lab.swarm.scale("all", 2), Err(SwarmError::Invalid { .. })));
    lab.swarm.add_node(crate::swarm::NodeSpec { hostname: "n4".to_owned(), ..super::config(1).nodes.remove(0) }).unwrap();
    lab.swarm.set_availability("n2", Availability::Drain).unwrap();
    lab.settle();
    assert_eq!(lab.placed("all"), "@n1 @n3 @n4");
    lab.swarm.set_availability("n2", Availability::Active).unwrap();
    lab.swarm.node_down("n1").unwrap();
    lab.settle();
    assert_eq!(lab.placed("all"), "@n2 @n3 @n4");
    lab.swarm.node_up("n1").unwrap();
    lab.settle();
    assert_eq!(lab.placed("all"), "@n1 @n2 @n3 @n4");
}

#[test]
fn one_node_has_one_task_of_a_host_port() {
    let mut lab = Lab::new(2);
    let host = |name: &str| ServiceSpec { ports: vec![port(80, Some(80), PublishMode::Host)], ..spec(name, 1) };
    lab.swarm.create_service(host("a")).unwrap();
    lab.swarm.create_service(host("b")).unwrap();
    lab.swarm.create_service(host("c")).unwrap();
    lab.settle();
    assert_eq!((lab.placed("a"), lab.placed("b"), lab.placed("c")), ("1@n1".to_owned(), "1@n2".to_owned(), String::new()));
    assert!(lab.swarm.problems()[0].message.contains("host-mode ports"));
    lab.slow_stop = true;
    lab.swarm.remove_service("a").unwrap();
    lab.settle();
    assert_eq!(lab.placed("c"), "", "the port is a's until its task is gone");
    let task = lab.stopping.remove(0);
    lab.swarm.observe(&task, crate::swarm::Observed::Exited(0));
    lab.settle();
    assert_eq!(lab.placed("c"), "1@n1");
}

#[test]
fn paused_and_drained_nodes_get_nothing() {
    let mut lab = Lab::new(3);
    lab.swarm.set_availability("n1", Availability::Pause).unwrap();
    lab.swarm.create_service(spec("web", 3)).unwrap();
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n2 2@n3 3@n2");
    lab.swarm.set_availability("n2", Availability::Drain).unwrap();
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n3 2@n3 3@n3");
}
