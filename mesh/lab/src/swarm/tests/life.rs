use std::{collections::BTreeMap, time::Duration};

use swarmesh_model::TaskState;

use super::{Lab, SECOND, spec};
use crate::{
    stack::{DnsSpec, HealthTest, Healthcheck, RestartCondition, RestartPolicy, ServiceSpec},
    swarm::{Action, ContainerSpec, Observed, SwarmError},
};

#[test]
fn a_task_passes_through_its_states() {
    let mut lab = Lab::new(1);
    lab.swarm.create_service(ServiceSpec { stop_grace: 7 * SECOND, stop_signal: "SIGINT".to_owned(), ..spec("web", 1) }).unwrap();
    let before = lab.swarm.snapshot().version;
    let actions = lab.swarm.reconcile(lab.now);
    let [Action::StartTask { task, node }] = actions.as_slice() else { panic!("{actions:?}") };
    let seen = |lab: &Lab| lab.swarm.snapshot().tasks[task].clone();
    assert_eq!((seen(&lab).state, seen(&lab).desired_state), (TaskState::Preparing, TaskState::Running));
    assert!(lab.swarm.snapshot().version > before);
    let spec = lab.swarm.task_spec(task).unwrap();
    assert_eq!((&spec.node, spec.node_hostname.as_str(), spec.slot), (node, "n1", Some(1)));
    assert_eq!(spec.name, format!("web.1.{task}"));
    assert_eq!((spec.container.len(), spec.sandbox.len(), spec.hostname.as_str()), (64, 12, &spec.container[..12]));
    assert_eq!(seen(&lab).hostname.as_deref(), Some(spec.hostname.as_str()));
    lab.swarm.observe(task, Observed::Starting);
    assert_eq!(seen(&lab).state, TaskState::Starting);
    lab.swarm.observe(task, Observed::Running);
    assert!(seen(&lab).is_usable() && seen(&lab).healthy.is_none() && lab.swarm.is_settled());
    let version = lab.swarm.snapshot().version;
    lab.swarm.observe(task, Observed::Running);
    assert_eq!(lab.swarm.reconcile(lab.now), []);
    assert_eq!((lab.swarm.snapshot().version, lab.swarm.next_wakeup()), (version, None), "nothing has changed");

    lab.swarm.scale("web", 0).unwrap();
    assert_eq!(lab.swarm.next_wakeup(), Some(Duration::ZERO));
    let actions = lab.swarm.reconcile(lab.now);
    let stop =
        Action::StopTask { task: task.clone(), node: node.clone(), converge: 2 * SECOND, signal: "SIGINT".to_owned(), grace: 7 * SECOND };
    assert_eq!(actions, [stop]);
    assert!(seen(&lab).is_draining());
    assert_eq!(lab.swarm.reconcile(lab.now), [], "told once");
    lab.swarm.observe(task, Observed::Exited(0));
    assert!(lab.swarm.snapshot().tasks.is_empty());
    lab.swarm.observe(task, Observed::Running);
}

#[test]
fn scaling_down_takes_what_does_not_run_and_then_the_newest() {
    let mut lab = Lab::new(2);
    lab.swarm.create_service(spec("web", 4)).unwrap();
    lab.settle();
    lab.swarm.scale("web", 3).unwrap();
    lab.take_log();
    lab.settle();
    assert_eq!(lab.take_log(), "stop web.4");
    let second = lab.tasks("web")[1].id.clone();
    lab.swarm.observe(&second, Observed::Exited(1));
    lab.swarm.scale("web", 2).unwrap();
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n1 3@n1");
    lab.swarm.scale("web", 4).unwrap();
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n1 2@n2 3@n1 4@n2");
    assert!(matches!(lab.swarm.scale("web", 1_000_000), Err(SwarmError::Invalid { .. })));
}

#[test]
fn a_failed_task_is_replaced_after_the_delay() {
    let mut lab = Lab::new(2);
    lab.swarm.create_service(spec("web", 2)).unwrap();
    lab.settle();
    let first = lab.tasks("web")[0].clone();
    lab.swarm.kill_task("web.1").unwrap();
    lab.settle();
    let failed = lab.tasks("web")[0].clone();
    assert_eq!((failed.id, failed.state, failed.desired_state), (first.id, TaskState::Failed, TaskState::Shutdown));
    assert_eq!(lab.swarm.next_wakeup(), Some(5 * SECOND));
    lab.after(4 * SECOND);
    assert_eq!(lab.placed("web"), "2@n2");
    lab.after(SECOND);
    assert_eq!(lab.placed("web"), "1@n1 2@n2");
    assert_eq!(lab.tasks("web").len(), 2);
}

#[test]
fn the_restart_policy_decides() {
    for (condition, code, attempts, restarts) in [
        (RestartCondition::Any, 0, None, 5),
        (RestartCondition::OnFailure, 0, None, 0),
        (RestartCondition::OnFailure, 1, Some(2), 2),
        (RestartCondition::None, 1, None, 0),
    ] {
        let mut lab = Lab::new(1);
        let restart = RestartPolicy { condition, delay: Some(SECOND), max_attempts: attempts };
        lab.swarm.create_service(ServiceSpec { restart, ..spec("web", 1) }).unwrap();
        lab.settle();
        lab.take_log();
        for _ in 0..5 {
            let task = lab.tasks("web")[0].id.clone();
            lab.swarm.observe(&task, Observed::Exited(code));
            lab.after(2 * SECOND);
        }
        assert_eq!(lab.take_log().matches("start").count(), restarts, "{condition:?} {code}");
        assert_eq!(lab.tasks("web").len(), 1, "its slot stays taken");
    }
}

#[test]
fn an_unhealthy_task_is_stopped_and_replaced() {
    let mut lab = Lab::new(1);
    let test = HealthTest::Shell("true".to_owned());
    let healthcheck = Healthcheck { test, interval: SECOND, timeout: SECOND, retries: 3, start_period: Duration::ZERO };
    lab.swarm.create_service(ServiceSpec { healthcheck: Some(healthcheck), ..spec("web", 1) }).unwrap();
    lab.settle();
    let task = lab.tasks("web")[0].clone();
    assert_eq!(task.healthy, Some(true));
    lab.slow_stop = true;
    lab.swarm.observe(&task.id, Observed::Unhealthy);
    lab.settle();
    let task = lab.tasks("web")[0].clone();
    assert_eq!((task.healthy, task.state, task.desired_state), (Some(false), TaskState::Running, TaskState::Running));
    assert_eq!(lab.stopping, std::slice::from_ref(&task.id));
    lab.swarm.observe(&task.id, Observed::Running);
    assert!(!lab.tasks("web")[0].is_usable(), "it is being stopped");
    lab.swarm.observe(&task.id, Observed::Exited(0));
    lab.settle();
    assert_eq!(lab.tasks("web")[0].state, TaskState::Failed);
    lab.after(5 * SECOND);
    assert_eq!(lab.placed("web"), "1@n1");
}

#[test]
fn a_lost_node_is_replaced_and_cleaned_up_when_it_returns() {
    let mut lab = Lab::new(2);
    lab.swarm.create_service(spec("web", 4)).unwrap();
    lab.settle();
    lab.take_log();
    lab.swarm.node_down("n1").unwrap();
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n2 2@n2 3@n2 4@n2");
    assert_eq!(lab.take_log(), "start web.1, start web.3", "nothing can be stopped on a lost node");
    assert_eq!(lab.tasks("web").iter().filter(|t| t.is_draining()).count(), 2);
    lab.swarm.node_up("n1").unwrap();
    lab.settle();
    assert_eq!(lab.take_log(), "stop web.1, stop web.3");
    assert_eq!(lab.tasks("web").len(), 4);
    assert!(matches!(lab.swarm.node_down("n9"), Err(SwarmError::Unknown { kind: "node", .. })));

    // The runtime may also see that they are gone.
    lab.swarm.node_down("n2").unwrap();
    for task in lab.tasks("web") {
        lab.swarm.observe(&task.id, Observed::Exited(137));
    }
    lab.settle();
    assert_eq!(lab.placed("web"), "1@n1 2@n1 3@n1 4@n1");
    assert_eq!(lab.tasks("web").len(), 4);
}

#[test]
fn a_removed_service_drains_and_its_name_is_free() {
    let mut lab = Lab::new(1);
    lab.swarm.create_service(spec("web", 1)).unwrap();
    lab.settle();
    lab.slow_stop = true;
    lab.swarm.remove_service("web").unwrap();
    lab.settle();
    assert_eq!(lab.swarm.service_id("web"), None);
    lab.swarm.create_service(spec("web", 1)).unwrap();
    lab.settle();
    assert_eq!(lab.swarm.snapshot().services.len(), 2);
    let task = lab.stopping.remove(0);
    lab.swarm.observe(&task, Observed::Exited(0));
    lab.settle();
    assert_eq!((lab.swarm.snapshot().services.len(), lab.tasks("web").len()), (1, 1));
}

#[test]
fn plain_containers_join_attachable_networks() {
    let mut lab = Lab::new(2);
    let container = |name: &str, network: &str| ContainerSpec {
        name: name.to_owned(),
        node: "n2".to_owned(),
        networks: vec![network.to_owned()],
        aliases: vec!["tools".to_owned()],
        hostname: Some("bench-{{.Node.Hostname}}".to_owned()),
        dns: DnsSpec { servers: vec!["192.0.2.53".parse().unwrap()], ..DnsSpec::default() },
        image: "whoami".to_owned(),
        command: vec!["serve".to_owned()],
        environment: BTreeMap::new(),
    };
    let id = lab.swarm.run_container(container("debug", "net")).unwrap();
    lab.settle();
    let task = lab.swarm.snapshot().tasks[&id].clone();
    assert!(task.service.is_none() && task.slot.is_none() && task.is_usable() && task.addresses[0].aliases == ["tools"]);
    let spec = lab.swarm.task_spec(&id).unwrap();
    assert_eq!((spec.hostname.as_str(), task.hostname.as_deref()), ("bench-n2", Some("bench-n2")));
    assert_eq!(
        (&spec.dns.servers, task.dns.as_ref().map(|dns| dns.servers.clone())),
        (&vec!["192.0.2.53".parse().unwrap()], Some(spec.dns.servers.clone()))
    );
    assert_eq!((spec.name.as_str(), spec.node_hostname.as_str(), spec.networks[0].name.as_str()), ("debug", "n2", "net"));
    assert!(matches!(lab.swarm.run_container(container("debug", "net")), Err(SwarmError::Exists { .. })));
    assert!(matches!(lab.swarm.run_container(container("other", "ingress")), Err(SwarmError::Invalid { .. })));
    assert!(matches!(lab.swarm.remove_network("net"), Err(SwarmError::InUse { .. })));
    lab.swarm.node_down("n2").unwrap();
    lab.settle();
    assert_eq!(lab.swarm.snapshot().tasks[&id].state, TaskState::Orphaned);
    lab.swarm.node_up("n2").unwrap();
    assert!(lab.swarm.snapshot().tasks[&id].is_usable());
    lab.swarm.remove_container("debug").unwrap();
    lab.settle();
    assert!(lab.swarm.snapshot().tasks.is_empty());
    lab.swarm.remove_network("net").unwrap();
}

#[test]
fn tasks_are_found_by_what_people_type() {
    let mut lab = Lab::new(1);
    let id = lab.swarm.create_service(spec("web", 2)).unwrap();
    lab.settle();
    let task = lab.tasks("web")[1].clone();
    for text in [task.id.as_str(), task.id.short(), &task.name, "web.2", &task.container.clone().unwrap()[..12]] {
        assert_eq!(lab.swarm.find_task(text).as_ref(), Some(&task.id), "{text}");
    }
    assert_eq!((lab.swarm.find_task("web.3"), lab.swarm.find_task("w"), lab.swarm.find_task("")), (None, None, None));
    assert_eq!(lab.swarm.service_id(id.as_str()), Some(id));
}
