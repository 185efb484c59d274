use std::time::Duration;

use super::{Lab, SECOND, spec};
use crate::{
    stack::{FailureAction, Mode, ServiceSpec, UpdateConfig, UpdateOrder},
    swarm::{UpdateOptions, UpdateState},
};

fn start_first() -> UpdateOptions {
    UpdateOptions { order: Some(UpdateOrder::StartFirst), ..UpdateOptions::default() }
}

fn update_of(lab: &Lab, service: &str) -> Option<UpdateState> {
    lab.swarm.services().into_iter().find(|s| s.name == service).unwrap().update
}

fn running(replicas: u64) -> Lab {
    let mut lab = Lab::new(2);
    lab.swarm.create_service(spec("web", replicas)).unwrap();
    lab.settle();
    lab.take_log();
    lab
}

#[test]
fn stop_first_stops_one_before_it_starts_one() {
    let mut lab = running(3);
    lab.swarm.update("web", UpdateOptions::default()).unwrap();
    lab.settle();
    assert_eq!(lab.take_log(), "stop web.1, start web.1, stop web.2, start web.2, stop web.3, start web.3");
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Updating), "it is watched for a while");
    lab.after(5 * SECOND);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed));
    assert_eq!((lab.swarm.next_wakeup(), lab.swarm.is_settled()), (None, true));
}

#[test]
fn stop_first_waits_for_the_old_one_to_be_gone() {
    let mut lab = running(2);
    lab.slow_stop = true;
    lab.swarm.update("web", UpdateOptions::default()).unwrap();
    lab.after(60 * SECOND);
    assert_eq!(lab.take_log(), "stop web.1");
    assert_eq!(lab.placed("web"), "2@n2");
    let task = lab.stopping.remove(0);
    lab.swarm.observe(&task, crate::swarm::Observed::Exited(0));
    lab.settle();
    assert_eq!(lab.take_log(), "start web.1, stop web.2");
}

#[test]
fn start_first_starts_one_before_it_stops_one() {
    let mut lab = running(2);
    lab.swarm.update("web", start_first()).unwrap();
    lab.settle();
    assert_eq!(lab.take_log(), "start web.1, stop web.1, start web.2, stop web.2");
    assert_eq!(lab.tasks("web").len(), 2);
}

#[test]
fn start_first_waits_until_the_new_one_runs() {
    let mut lab = running(2);
    lab.swarm.update("web", start_first()).unwrap();
    let actions = lab.swarm.reconcile(lab.now);
    let [crate::swarm::Action::StartTask { task, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    lab.swarm.observe(task, crate::swarm::Observed::Starting);
    lab.after(60 * SECOND);
    assert_eq!((lab.take_log().as_str(), lab.placed("web").as_str()), ("", "1@n1 2@n2"));
    lab.swarm.observe(task, crate::swarm::Observed::Running);
    lab.settle();
    assert_eq!(lab.take_log(), "stop web.1, start web.2, stop web.2");
}

#[test]
fn parallelism_and_delay_hold() {
    let mut lab = running(5);
    let options = UpdateOptions { parallelism: Some(2), delay: Some(10 * SECOND), ..start_first() };
    lab.swarm.update("web", options).unwrap();
    lab.settle();
    assert_eq!(lab.take_log(), "start web.1, start web.2, stop web.1, stop web.2");
    lab.after(9 * SECOND);
    assert_eq!(lab.take_log(), "");
    lab.after(SECOND);
    assert_eq!(lab.take_log(), "start web.3, start web.4, stop web.3, stop web.4");
    lab.after(10 * SECOND);
    assert_eq!(lab.take_log(), "start web.5, stop web.5");
    lab.after(10 * SECOND);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed));

    lab.swarm.update("web", UpdateOptions { parallelism: Some(0), ..UpdateOptions::default() }).unwrap();
    lab.step();
    assert_eq!(lab.take_log(), "stop web.1, stop web.2, stop web.3, stop web.4, stop web.5");
}

fn failing(action: FailureAction, order: UpdateOrder) -> Lab {
    let mut lab = Lab::new(2);
    let update = UpdateConfig { failure_action: action, order, ..UpdateConfig::default() };
    let good = ServiceSpec { update, ..spec("web", 3) };
    lab.swarm.create_service(good.clone()).unwrap();
    lab.settle();
    lab.take_log();
    lab.broken_image = Some("broken".to_owned());
    lab.swarm.update_service(ServiceSpec { image: "broken".to_owned(), ..good }).unwrap();
    lab
}

#[test]
fn a_failed_update_pauses() {
    let mut lab = failing(FailureAction::Pause, UpdateOrder::StartFirst);
    lab.settle();
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Paused));
    assert_eq!(lab.placed("web"), "1@n1 2@n2 3@n1", "nothing was lost");
    assert_eq!(lab.take_log(), "start web.1");
    assert!(lab.swarm.problems().iter().any(|p| p.object == "service web" && p.message.contains("paused")));
    lab.swarm.update_service(ServiceSpec { image: "better".to_owned(), ..spec("web", 3) }).unwrap();
    lab.after(10 * SECOND);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed));
    assert!(lab.tasks("web").iter().all(|t| lab.swarm.task_spec(&t.id).unwrap().image == "better"));
}

#[test]
fn a_failed_stop_first_update_pauses_with_one_down() {
    let mut lab = failing(FailureAction::Pause, UpdateOrder::StopFirst);
    lab.settle();
    assert_eq!((lab.take_log().as_str(), lab.placed("web").as_str()), ("stop web.1, start web.1", "2@n2 3@n1"));
    // The restart policy tries it again and again, as Docker does.
    lab.after(11 * SECOND);
    assert_eq!(lab.take_log(), "start web.1, start web.1");
}

#[test]
fn a_failed_update_rolls_back() {
    for order in [UpdateOrder::StartFirst, UpdateOrder::StopFirst] {
        let mut lab = failing(FailureAction::Rollback, order);
        let vips = lab.service("web").vips;
        lab.after(30 * SECOND);
        assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed), "{order:?}");
        assert_eq!(lab.placed("web").split(' ').count(), 3);
        assert_eq!(lab.swarm.service_spec("web").unwrap().image, "whoami");
        assert!(lab.tasks("web").iter().all(|t| lab.swarm.task_spec(&t.id).unwrap().image == "whoami"));
        assert_eq!(lab.service("web").vips, vips);
    }
}

#[test]
fn an_update_may_go_on_in_spite_of_failures() {
    let mut lab = failing(FailureAction::Continue, UpdateOrder::StartFirst);
    lab.after(30 * SECOND);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Updating));
    assert_eq!(lab.placed("web"), "1@n1 2@n2 3@n1");
    lab.broken_image = None;
    lab.after(30 * SECOND);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed));
}

#[test]
fn a_task_that_fails_while_it_is_watched_counts() {
    let mut lab = running(2);
    let update = UpdateConfig { failure_action: FailureAction::Rollback, monitor: 20 * SECOND, ..UpdateConfig::default() };
    lab.swarm.update_service(ServiceSpec { image: "frail".to_owned(), update, ..spec("web", 2) }).unwrap();
    lab.after(10 * SECOND);
    let task = lab.tasks("web")[0].id.clone();
    lab.swarm.observe(&task, crate::swarm::Observed::Exited(1));
    lab.after(60 * SECOND);
    assert_eq!(lab.swarm.service_spec("web").unwrap().image, "whoami");
    assert_eq!(lab.placed("web"), "1@n2 2@n1");
}

#[test]
fn a_change_during_an_update_takes_over() {
    for order in [UpdateOrder::StartFirst, UpdateOrder::StopFirst] {
        let mut lab = running(3);
        lab.slow_stop = true;
        let update = UpdateConfig { order, ..UpdateConfig::default() };
        for image in ["second", "third"] {
            lab.swarm.update_service(ServiceSpec { image: image.to_owned(), update, ..spec("web", 3) }).unwrap();
            lab.step();
            lab.step();
        }
        lab.slow_stop = false;
        for task in std::mem::take(&mut lab.stopping) {
            lab.swarm.observe(&task, crate::swarm::Observed::Exited(0));
        }
        lab.after(60 * SECOND);
        assert_eq!(lab.placed("web").split(' ').count(), 3, "{order:?}");
        assert!(lab.tasks("web").iter().all(|t| lab.swarm.task_spec(&t.id).unwrap().image == "third"), "{order:?}");
        assert!(lab.swarm.is_settled());
    }
}

#[test]
fn scaling_and_node_loss_during_an_update_end_well() {
    let mut lab = running(4);
    lab.swarm.update("web", UpdateOptions { delay: Some(5 * SECOND), ..start_first() }).unwrap();
    lab.after(SECOND);
    lab.swarm.scale("web", 6).unwrap();
    lab.after(SECOND);
    lab.swarm.node_down("n1").unwrap();
    lab.after(SECOND);
    lab.swarm.scale("web", 2).unwrap();
    lab.after(SECOND);
    lab.swarm.node_up("n1").unwrap();
    lab.after(60 * SECOND);
    assert_eq!(lab.tasks("web").len(), 2);
    assert_eq!(update_of(&lab, "web"), Some(UpdateState::Completed));
    assert!(lab.swarm.is_settled());
}

#[test]
fn a_lost_node_does_not_hold_up_an_update() {
    let mut lab = running(2);
    lab.slow_stop = true;
    lab.swarm.update("web", UpdateOptions::default()).unwrap();
    lab.settle();
    lab.swarm.node_down("n1").unwrap();
    lab.settle();
    assert_eq!(lab.take_log(), "stop web.1, start web.1, stop web.2");
}

#[test]
fn global_services_roll_node_by_node() {
    let mut lab = Lab::new(2);
    lab.swarm.create_service(ServiceSpec { mode: Mode::Global, ..spec("all", 0) }).unwrap();
    lab.settle();
    lab.take_log();
    lab.swarm.update("all", start_first()).unwrap();
    lab.settle();
    let log = lab.take_log();
    let kinds: Vec<&str> = log.split(", ").map(|entry| &entry[..4]).collect();
    assert_eq!(kinds, ["star", "stop", "star", "stop"], "{log}");
    assert_eq!(lab.placed("all"), "@n1 @n2");
}

#[test]
fn an_update_of_nothing_is_done_at_once() {
    let mut lab = running(0);
    lab.swarm.update("web", UpdateOptions { delay: Some(Duration::from_secs(99)), ..UpdateOptions::default() }).unwrap();
    lab.settle();
    assert_eq!((update_of(&lab, "web"), lab.swarm.next_wakeup()), (Some(UpdateState::Completed), None));
}
