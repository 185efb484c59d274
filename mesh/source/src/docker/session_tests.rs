use std::time::Duration;

use swarmesh_model::{Delta, Snapshot};
use tokio::{
    sync::mpsc::{Receiver, channel},
    task::JoinHandle,
    time::{self, timeout},
};

use super::{
    Endpoint, Timing,
    fake_engine::{Answer, FakeEngine},
    fixtures::{BACK, INGRESS, NODE, PLAIN, WEB, WEB_CONTAINER, WEB_TASK, list},
    run_with,
    session::Source,
    view::View,
};
use crate::{SourceState, Update, publish::Publisher};

const TASK_ID: &str = "xhywa4hwqru2tc7utv5gai6e8";
const CONTAINER: &str = "/containers/567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55/json";
const LISTED: &str = r#"[{"Id":"567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55","Labels":{"com.docker.swarm.task.id":"xhywa4hwqru2tc7utv5gai6e8"}}]"#;

fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing { poll: ms(30), resync: Duration::from_secs(60), settle: ms(5), patience: ms(400), first_retry: ms(10), last_retry: ms(50) }
}

/// A source under test, and what it should have made of what it said.
struct Lab {
    engine: FakeEngine,
    updates: Receiver<Update>,
    snapshot: Option<Snapshot>,
    states: Vec<SourceState>,
    source: JoinHandle<()>,
}

impl Lab {
    fn start(engine: FakeEngine, timing: Timing) -> Self {
        let (sender, updates) = channel(16);
        let source = Source {
            name: "docker:test".to_owned(),
            endpoint: Endpoint::Unix(engine.socket.clone()),
            timing,
            publisher: Publisher::new(sender),
            view: View::default(),
        };
        Self { engine, updates, snapshot: None, states: Vec::new(), source: tokio::spawn(run_with(source)) }
    }

    /// A swarm with one task here, and the source connected to it.
    async fn connected() -> Self {
        Self::connected_with(timing()).await
    }

    async fn connected_with(timing: Timing) -> Self {
        let mut lab = Self::start(swarm(), timing);
        lab.until(|l| l.snapshot.is_some() && l.is_connected()).await;
        lab
    }

    /// Takes updates until `check` is true. Whatever else happens, no update takes the swarm away.
    async fn until(&mut self, check: impl Fn(&Self) -> bool) {
        let taken = timeout(Duration::from_secs(10), async {
            while !check(self) {
                match self.updates.recv().await.expect("a running source") {
                    Update::Full(snapshot) => {
                        assert!(self.snapshot.replace(snapshot).is_none(), "a second full snapshot");
                    }
                    Update::Delta(delta) => self.apply(&delta),
                    Update::State(state) => {
                        assert_ne!(self.states.last(), Some(&state), "the same state twice");
                        self.states.push(state);
                    }
                }
            }
        });
        taken.await.unwrap_or_else(|_| panic!("nothing more came: {:?} {:#?}", self.snapshot, self.states));
    }

    fn apply(&mut self, delta: &Delta) {
        assert!(!delta.is_empty(), "an empty delta");
        let snapshot = self.snapshot.as_mut().expect("a full snapshot first");
        assert!(delta.version > snapshot.version);
        snapshot.apply(delta);
        assert!(!snapshot.networks.is_empty() && !snapshot.services.is_empty() && !snapshot.nodes.is_empty(), "emptied: {delta:?}");
    }

    fn is_connected(&self) -> bool {
        self.states.last().is_some_and(|s| s.connected)
    }

    fn detail(&self) -> &str {
        self.states.last().map_or("", |s| &s.detail)
    }

    /// Waits for a loss whose reason contains `reason`, and sees that nothing was taken away.
    async fn lost(&mut self, reason: &str) {
        let before = self.snapshot.clone();
        self.until(|l| !l.is_connected() && l.detail().contains(reason)).await;
        assert_eq!(self.snapshot, before);
    }

    async fn quiet(&mut self, length: Duration) {
        let update = timeout(length, self.updates.recv()).await;
        assert!(update.is_err(), "unexpected {update:?}");
    }
}

fn swarm() -> FakeEngine {
    let engine = FakeEngine::start();
    restore(&engine);
    engine
}

fn restore(engine: &FakeEngine) {
    engine.info("qd62rknqm88ks99aidc5sfw8h", true);
    engine.json("/networks", list(&[INGRESS, BACK]));
    engine.json("/nodes", list(&[NODE]));
    engine.json("/services", list(&[WEB]));
    engine.json("/tasks", list(&[WEB_TASK]));
    engine.json("/containers/json", LISTED);
    engine.json(CONTAINER, WEB_CONTAINER);
}

#[tokio::test]
async fn everything_is_in_the_first_snapshot() {
    let lab = Lab::connected().await;
    let snapshot = lab.snapshot.as_ref().unwrap();
    assert_eq!(snapshot.tasks[TASK_ID].sandbox.as_deref(), Some("b1a0c61565ee"));
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), *snapshot);
    assert_eq!(lab.states.len(), 1);
    assert_eq!(lab.states[0].node.as_ref().unwrap().as_str(), "qd62rknqm88ks99aidc5sfw8h");
}

#[tokio::test]
async fn polls_that_bring_nothing_new_say_nothing() {
    let mut lab = Lab::connected().await;
    let asked = lab.engine.times_asked("/tasks");
    lab.quiet(Duration::from_millis(200)).await;
    assert!(lab.engine.times_asked("/tasks") > asked + 1);
    assert_eq!(lab.engine.times_asked("/services"), 1, "only tasks are polled");
}

#[tokio::test]
async fn tasks_are_polled_and_the_rest_waits_for_events() {
    let mut lab = Lab::connected().await;
    lab.engine.json("/tasks", list(&[&WEB_TASK.replace(r#""DesiredState":"running""#, r#""DesiredState":"shutdown""#)]));
    lab.until(|l| l.snapshot.as_ref().unwrap().tasks[TASK_ID].is_draining()).await;
    lab.engine.json("/services", list(&[&WEB.replace(r#""a":"b""#, r#""a":"c""#)]));
    lab.quiet(Duration::from_millis(100)).await;
    lab.engine.event(r#"{"Type":"service","Action":"update","Actor":{"ID":"ixxro9r4qcfobuhm4lug0m9g0"},"scope":"swarm"}"#);
    lab.until(|l| l.snapshot.as_ref().unwrap().services.values().all(|s| s.labels["a"] == "c")).await;
    lab.engine.json("/nodes", list(&[&NODE.replace("ready", "down")]));
    lab.engine.event(r#"{"Type":"node","Action":"update"}"#);
    lab.until(|l| l.snapshot.as_ref().unwrap().nodes.values().all(|n| n.state == swarmesh_model::NodeState::Down)).await;
}

#[tokio::test]
async fn a_container_event_asks_for_that_container() {
    let mut lab = Lab::connected().await;
    lab.engine.json("/containers/b2df664c/json", PLAIN);
    lab.engine.event(r#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"b2df664c"}}}"#);
    lab.until(|l| l.snapshot.as_ref().unwrap().tasks.values().any(|t| &*t.name == "plain")).await;
    lab.engine.json(CONTAINER, WEB_CONTAINER.replace(r#""Running":true"#, r#""Running":true,"Health":{"Status":"unhealthy"}"#));
    lab.engine.event(
        r#"{"Type":"container","Action":"health_status: unhealthy","Actor":{"ID":"567ba44abd145dc07b14624c1a694b071fe3b531d100c1aa80c567f1ef84ff55"}}"#,
    );
    lab.until(|l| l.snapshot.as_ref().unwrap().tasks[TASK_ID].healthy == Some(false)).await;
    assert_eq!(lab.engine.times_asked("/containers/json"), 1);
}

#[tokio::test]
async fn local_networks_follow_the_events() {
    let mut lab = Lab::connected().await;
    let of_this_node = |l: &Lab| l.snapshot.as_ref().unwrap().networks.values().filter(|n| n.local).count();
    let shop = r#"{"Name":"shop","Id":"shop1","Scope":"local","Driver":"bridge","IPAM":{"Config":[{"Subnet":"172.20.0.0/16"}]}}"#;
    lab.engine.json("/networks", list(&[INGRESS, BACK, shop]));
    lab.engine.event(
        r#"{"Type":"network","Action":"create","Actor":{"ID":"shop1","Attributes":{"name":"shop","type":"bridge"}},"scope":"local"}"#,
    );
    lab.quiet(Duration::from_millis(100)).await;
    let plain = PLAIN.replace("lsg0dz53sfaryo8bjey7nif94", "shop1").replace(r#""IPAddress":"10.0.1.15""#, r#""IPAddress":"172.20.0.2""#);
    lab.engine.json("/containers/b2df664c/json", &plain);
    lab.engine.event(r#"{"Type":"network","Action":"connect","Actor":{"ID":"shop1","Attributes":{"container":"b2df664c"}}}"#);
    lab.until(|l| of_this_node(l) == 1 && l.snapshot.as_ref().unwrap().tasks.values().any(|t| &*t.name == "plain")).await;
    lab.engine.json("/containers/b2df664c/json", plain.replace(r#""NetworkID":"shop1""#, r#""NetworkID":"0f0f""#));
    lab.engine.event(r#"{"Type":"network","Action":"disconnect","Actor":{"ID":"shop1","Attributes":{"container":"b2df664c"}}}"#);
    lab.until(|l| of_this_node(l) == 0 && l.snapshot.as_ref().unwrap().tasks.len() == 1).await;
    assert_eq!(lab.engine.times_asked("/networks"), 2, "one list brings both kinds");
}

#[tokio::test]
async fn a_slow_container_holds_up_nobody_and_a_failing_one_is_asked_for_again() {
    let mut lab = Lab::connected().await;
    lab.engine.answer("/containers/b2df664c/json", Answer::Stall);
    lab.engine.event(r#"{"Type":"container","Action":"start","Actor":{"ID":"b2df664c"}}"#);
    lab.engine.json("/tasks", list(&[&WEB_TASK.replace(r#""DesiredState":"running""#, r#""DesiredState":"remove""#)]));
    lab.until(|l| l.snapshot.as_ref().unwrap().tasks[TASK_ID].is_draining()).await;
    lab.engine.json("/containers/b2df664c/json", PLAIN);
    lab.until(|l| l.snapshot.as_ref().unwrap().tasks.values().any(|t| &*t.name == "plain")).await;
    assert!(lab.is_connected() && lab.states.len() == 1, "{:?}", lab.states);
}

#[tokio::test]
async fn the_end_of_the_event_stream_means_list_again() {
    let mut lab = Lab::connected().await;
    lab.engine.json("/services", list(&[&WEB.replace(r#""a":"b""#, r#""a":"c""#)]));
    lab.engine.end_events();
    lab.lost("ended the event stream").await;
    lab.until(|l| l.is_connected() && l.snapshot.as_ref().unwrap().services.values().all(|s| s.labels["a"] == "c")).await;
}

#[tokio::test]
async fn no_failure_takes_anything_away() {
    let mut lab = Lab::connected().await;
    let half = list(&[WEB_TASK]);
    let failures = [
        ("/tasks", Answer::Status(500, "rpc error: code = DeadlineExceeded"), "rpc error"),
        ("/tasks", Answer::Broken(half[..half.len() / 2].to_owned()), "broke off"),
        ("/tasks", Answer::Json(half[..half.len() / 2].to_owned()), "not what the Docker API promises"),
        ("/tasks", Answer::Json(String::new()), "not what the Docker API promises"),
        ("/tasks", Answer::Json("{\"message\":\"hello\"}".to_owned()), "not what the Docker API promises"),
        ("/tasks", Answer::Status(503, "The swarm does not have a leader."), "does not have a leader"),
        ("/tasks", Answer::Stall, "did not answer GET /v1.41/tasks"),
    ];
    for (path, answer, reason) in failures {
        lab.engine.answer(path, answer);
        lab.lost(reason).await;
        restore(&lab.engine);
        lab.until(Lab::is_connected).await;
    }
    for path in ["/networks", "/services", "/nodes", "/containers/json", "/info", "/events", "/_ping"] {
        lab.engine.answer(path, Answer::Status(500, "some trouble"));
        lab.engine.end_events();
        if path == "/_ping" {
            // Its answer is of no interest; that there is one, is.
            lab.engine.answer(path, Answer::Stall);
            lab.lost("did not answer GET /_ping").await;
            break;
        }
        lab.lost("some trouble").await;
        if path != "/events" {
            restore(&lab.engine);
            lab.until(Lab::is_connected).await;
        } else {
            lab.engine.forget("/events");
            lab.until(Lab::is_connected).await;
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_gone_comes_back_at_its_own_time() {
    let mut lab = Lab::connected().await;
    let (socket, new) = (lab.engine.socket.clone(), swarm());
    let old = std::mem::replace(&mut lab.engine, new);
    old.end_events();
    drop(old);
    lab.lost("cannot connect to Docker").await;
    time::sleep(Duration::from_millis(100)).await;
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&lab.engine.socket, &socket).unwrap();
    lab.until(Lab::is_connected).await;
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_worker_is_told_what_to_do() {
    let engine = swarm();
    engine.info("w1", false);
    let mut lab = Lab::start(engine, timing());
    lab.until(|l| !l.states.is_empty()).await;
    let state = lab.states[0].clone();
    assert!(!state.connected && state.detail.contains("this node is a worker"), "{state:?}");
    assert!(state.detail.contains("--source snapshot") && state.detail.contains("run on a manager"), "{state:?}");
    assert_eq!(state.node.unwrap().as_str(), "w1");
    assert!(lab.snapshot.is_none());
    lab.quiet(Duration::from_millis(150)).await;
    lab.engine.info("w1", true);
    lab.until(|l| l.is_connected() && l.snapshot.is_some()).await;
}

#[tokio::test]
async fn a_demoted_manager_keeps_what_it_knows() {
    let mut lab = Lab::connected().await;
    lab.engine.info("qd62rknqm88ks99aidc5sfw8h", false);
    for path in ["/tasks", "/services", "/nodes"] {
        lab.engine.answer(path, Answer::Status(503, "This node is not a swarm manager."));
    }
    lab.lost("this node is a worker").await;
}

#[tokio::test]
async fn engines_outside_of_a_swarm_and_old_ones() {
    let engine = FakeEngine::start();
    engine.json("/info", r#"{"Swarm":{"NodeID":"","LocalNodeState":"locked","ControlAvailable":false}}"#);
    let mut lab = Lab::start(engine, timing());
    lab.until(|l| l.detail().contains("(locked)")).await;
    lab.engine.json("/info", r#"{"Swarm":null}"#);
    lab.until(|l| l.detail().contains("docker swarm init")).await;
}

/// Without a leader, the engine lists the networks that it has itself, and hides that the swarm did not answer.
#[tokio::test]
async fn a_short_list_of_networks_is_doubted() {
    let mut lab = Lab::connected().await;
    lab.engine.json("/networks", list(&[INGRESS]));
    lab.engine.answer("/nodes", Answer::Status(503, "The swarm does not have a leader."));
    lab.engine.event(r#"{"Type":"network","Action":"create","Actor":{"ID":"x"}}"#);
    lab.lost("does not have a leader").await;
    restore(&lab.engine);
    lab.until(Lab::is_connected).await;
    lab.engine.json("/networks", list(&[INGRESS]));
    lab.engine.event(r#"{"Type":"network","Action":"remove","Actor":{"ID":"x"}}"#);
    lab.until(|l| l.snapshot.as_ref().unwrap().networks.len() == 1).await;
}

#[tokio::test]
async fn an_odd_object_is_reported_and_stays() {
    let mut lab = Lab::connected().await;
    let before = lab.snapshot.clone();
    lab.engine.json("/services", list(&[&WEB.replace("10.0.1.2/24", "ten"), "7"]));
    lab.engine.event(r#"{"Type":"service","Action":"update"}"#);
    lab.until(|l| l.states.last().unwrap().problems.len() == 2).await;
    assert!(lab.is_connected());
    assert_eq!(lab.snapshot, before);
    restore(&lab.engine);
    lab.engine.event(r#"{"Type":"service","Action":"update"}"#);
    lab.until(|l| l.states.last().unwrap().problems.is_empty()).await;
}

#[tokio::test]
async fn what_events_have_missed_is_found_all_the_same() {
    let mut lab = Lab::connected_with(Timing { resync: Duration::from_millis(100), ..timing() }).await;
    lab.engine.json("/services", list(&[&WEB.replace(r#""a":"b""#, r#""a":"c""#)]));
    lab.engine.json("/containers/json", "[]");
    lab.until(|l| {
        let snapshot = l.snapshot.as_ref().unwrap();
        snapshot.services.values().all(|s| s.labels["a"] == "c") && snapshot.tasks[TASK_ID].healthy == Some(false)
    })
    .await;
}

#[tokio::test]
async fn ends_when_nobody_listens() {
    let mut lab = Lab::connected().await;
    lab.updates.close();
    timeout(Duration::from_secs(5), &mut lab.source).await.expect("an end").unwrap();
}
