//! The docker source against real engines, and the lab that they run in. Needs root, docker.io and busybox-static.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "all of this is a test")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use swarmesh_model::{ContainerDns, EndpointMode, Protocol, PublishMode, Snapshot, Task, TaskState};
use swarmesh_source::{SourceSpec, SourceState, Update};
use swarmesh_tests::dockerlab::{DockerLab, Rootfs, residue};
use tokio::sync::mpsc;

const IMAGE: &str = "box:1";
/// As an engine's first process, busybox's sleep does not hear SIGTERM: its task drains for the whole grace period.
const SERVICE: [&str; 4] = ["--detach", "--stop-grace-period", "2s", "--no-resolve-image"];

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn lab(prefix: &str, nodes: usize, managers: usize) -> DockerLab {
    let lab = DockerLab::up(prefix, nodes, managers).unwrap();
    let root = Rootfs::new(lab.work().join("box")).unwrap();
    root.busybox(&["sh", "sleep"]).unwrap();
    lab.import_image(IMAGE, root.path()).unwrap();
    lab
}

/// What a source said so far.
#[derive(Debug, Default)]
struct Heard {
    snapshot: Option<Snapshot>,
    states: Vec<SourceState>,
    deltas: usize,
    /// Names of tasks that were seen draining.
    drained: Vec<String>,
}

/// A source and its only reader.
#[derive(Clone)]
struct Consumer {
    heard: Arc<Mutex<Heard>>,
}

impl Consumer {
    fn start(lab: &DockerLab, node: usize) -> Self {
        let spec: SourceSpec = format!("docker:unix://{}", lab.socket(node).display()).parse().unwrap();
        let consumer = Self { heard: Arc::default() };
        let heard = Arc::clone(&consumer.heard);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (sender, mut updates) = mpsc::channel(64);
                let source = tokio::spawn(swarmesh_source::run(spec, sender));
                while let Some(update) = updates.recv().await {
                    heard.lock().unwrap().take(update);
                }
                source.await.unwrap().unwrap();
            });
        });
        consumer
    }

    /// Waits until the source has said something that makes `check` true.
    fn wait(&self, what: &str, seconds: u64, check: impl Fn(&Heard) -> bool) -> Duration {
        let started = Instant::now();
        loop {
            let heard = self.heard.lock().unwrap_or_else(|e| panic!("{what}: the consumer stopped: {e}"));
            if check(&heard) {
                let took = started.elapsed();
                eprintln!("{:>6} ms  {what}", took.as_millis());
                return took;
            }
            assert!(started.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}\n{heard:#?}");
            drop(heard);
            sleep(Duration::from_millis(5));
        }
    }

    fn tasks(&self, service: &str) -> Vec<Arc<Task>> {
        self.heard.lock().unwrap().tasks(service)
    }
}

impl Heard {
    fn take(&mut self, update: Update) {
        match update {
            Update::Full(snapshot) => {
                assert!(self.snapshot.is_none(), "a second full snapshot");
                self.snapshot = Some(snapshot);
            }
            Update::Delta(delta) => {
                assert!(!delta.is_empty(), "an empty delta");
                let snapshot = self.snapshot.as_mut().expect("a full snapshot first");
                assert!(delta.version > snapshot.version, "versions grow");
                snapshot.apply(&delta);
                assert!(!snapshot.nodes.is_empty() && !snapshot.networks.is_empty(), "an emptied snapshot");
                self.deltas += 1;
            }
            Update::State(state) => {
                eprintln!("           state: connected {} {}", state.connected, state.detail);
                self.states.push(state);
            }
        }
        if let Some(snapshot) = &self.snapshot {
            let again = Snapshot::from_json(&snapshot.to_json()).expect("a snapshot whose objects agree with each other");
            assert_eq!(&again, snapshot);
            self.drained.extend(snapshot.tasks.values().filter(|t| t.is_draining()).map(|t| t.name.to_string()));
        }
    }

    fn tasks(&self, service: &str) -> Vec<Arc<Task>> {
        let Some(snapshot) = &self.snapshot else { return Vec::new() };
        let Some(service) = snapshot.services.values().find(|s| s.name == service) else { return Vec::new() };
        snapshot.tasks.values().filter(|t| t.service.as_ref() == Some(&service.id)).cloned().collect()
    }

    fn usable(&self, service: &str) -> usize {
        self.tasks(service).iter().filter(|t| t.is_usable()).count()
    }

    fn connected(&self) -> Option<bool> {
        self.states.last().map(|s| s.connected)
    }
}

fn service(lab: &DockerLab, args: &[&str]) {
    let words: Vec<&str> = ["service", "create"].iter().chain(&SERVICE).chain(args).chain(&[IMAGE, "sleep", "1000000"]).copied().collect();
    lab.docker(0, &words).unwrap();
}

#[test]
fn a_swarm_is_followed() {
    if !is_root() {
        return;
    }
    let prefix = "dlfollow";
    let mut lab = lab(prefix, 3, 3);
    lab.docker(0, &["network", "create", "--driver", "overlay", "--attachable", "--label", "tier=back", "back"]).unwrap();
    service(&lab, &["--name", "keep", "--network", "back", "--constraint", "node.hostname==n2"]);
    let source = Consumer::start(&lab, 0);
    source.wait("the first snapshot", 10, |h| h.snapshot.is_some() && h.connected() == Some(true));
    source.wait("keep runs", 20, |h| h.usable("keep") == 1);
    let own = source.heard.lock().unwrap().states.last().unwrap().node.clone().unwrap();

    service(&lab, &["--name", "web", "--replicas", "3", "--network", "name=back,alias=www", "--publish", "8080:80", "--label", "a=b"]);
    source.wait("create: three tasks run", 20, |h| h.usable("web") == 3);
    let here = |h: &Heard, name: &str| h.tasks(name).iter().filter(|t| t.node.as_ref() == Some(&own)).cloned().collect::<Vec<_>>();
    source.wait("create: sandboxes of this node's tasks", 5, |h| {
        let tasks = here(h, "web");
        !tasks.is_empty() && tasks.iter().all(|t| t.sandbox.is_some() && t.healthy != Some(false))
    });
    {
        let heard = source.heard.lock().unwrap();
        let snapshot = heard.snapshot.as_ref().unwrap();
        let web = snapshot.services.values().find(|s| s.name == "web").unwrap();
        let back = snapshot.networks.values().find(|n| n.name == "back").unwrap();
        assert_eq!(back.labels["tier"], "back");
        assert_eq!(web.labels["a"], "b");
        assert_eq!(web.endpoint_mode, EndpointMode::Vip);
        assert_eq!((web.ports[0].protocol, web.ports[0].target_port, web.ports[0].published_port), (Protocol::Tcp, 80, Some(8080)));
        assert_eq!(web.ports[0].publish_mode, PublishMode::Ingress);
        assert_eq!((&web.networks[0].network, web.networks[0].aliases.as_slice()), (&back.id, &["www".to_owned()][..]));
        assert_eq!(web.vips.len(), 2, "one in back, one in ingress");
        assert!(snapshot.ingress().is_some());
        assert_eq!(snapshot.nodes.len(), 3);
        assert_eq!(snapshot.nodes[&own].hostname, "n1");
        assert_eq!(snapshot.nodes[&own].address, Some(lab.address(0)));
        for task in here(&heard, "web") {
            let name = lab.docker(0, &["inspect", "--format", "{{.Name}}", task.container.as_ref().unwrap()]).unwrap();
            assert_eq!(name.trim(), format!("/{}", task.name));
            assert!(lab.netns_dir(0).unwrap().join(task.sandbox.as_deref().unwrap()).exists());
            assert_eq!(task.address_in(&back.id).count(), 1);
        }
    }

    lab.docker(0, &["service", "scale", "--detach", "web=6"]).unwrap();
    source.wait("scale up: six tasks run", 20, |h| h.usable("web") == 6);
    lab.docker(0, &["service", "scale", "--detach", "web=2"]).unwrap();
    source.wait("scale down: four tasks drain", 5, |h| {
        h.usable("web") == 2 && h.tasks("web").iter().filter(|t| t.is_draining()).count() == 4
    });
    source.wait("scale down: they are gone", 20, |h| h.tasks("web").len() == 2);

    let old: Vec<std::sync::Arc<str>> = source.tasks("web").iter().map(|t| t.name.clone()).collect();
    let update =
        ["service", "update", "--detach", "--update-order", "start-first", "--publish-rm", "80", "--publish-add", "8080:81", "web"];
    lab.docker(0, &update).unwrap();
    source.wait("update: old tasks keep their target port", 10, |h| {
        let port = |t: &Arc<Task>| t.ports.as_ref().and_then(|ports| Some((ports.first()?.target_port, ports.first()?.published_port)));
        let tasks = h.tasks("web");
        tasks.len() > 2 && tasks.iter().all(|t| port(t) == old.contains(&t.name).then_some((80, Some(8080))))
    });
    source.wait("update: other tasks run", 60, |h| {
        let tasks = h.tasks("web");
        tasks.len() == 2 && h.usable("web") == 2 && tasks.iter().all(|t| !old.contains(&t.name))
    });
    let drained = source.heard.lock().unwrap().drained.clone();
    assert!(old.iter().all(|name| drained.iter().any(|d| **d == **name)), "not all of {old:?} were seen draining: {drained:?}");

    lab.docker(0, &["run", "--detach", "--name", "plain", "--network", "back", "--network-alias", "pal", IMAGE, "sleep", "1000000"])
        .unwrap();
    let plain = |h: &Heard| h.snapshot.as_ref().and_then(|s| s.tasks.values().find(|t| &*t.name == "plain").cloned());
    source.wait("a plain container", 5, |h| {
        plain(h).is_some_and(|t| t.service.is_none() && t.sandbox.is_some() && t.addresses[0].aliases == ["pal"] && t.is_usable())
    });
    lab.docker(0, &["kill", "plain"]).unwrap();
    source.wait("the plain container is gone", 5, |h| plain(h).is_none());

    let task = here(&source.heard.lock().unwrap(), "web").first().cloned();
    if let Some(task) = task {
        lab.docker(0, &["kill", task.container.as_ref().unwrap()]).unwrap();
        source.wait("a killed task is out of use", 5, |h| !h.tasks("web").iter().any(|t| t.id == task.id && t.is_usable()));
        source.wait("and replaced", 30, |h| h.usable("web") == 2);
    }

    lab.docker(0, &["service", "update", "--detach", "--publish-rm", "81", "--endpoint-mode", "dnsrr", "web"]).unwrap();
    source.wait("update to dnsrr: no VIPs", 10, |h| {
        let web = h.snapshot.as_ref().and_then(|s| s.services.values().find(|s| s.name == "web").cloned());
        web.is_some_and(|w| w.endpoint_mode == EndpointMode::Dnsrr && w.vips.is_empty() && w.ports.is_empty())
    });
    source.wait("the update is done", 60, |h| h.usable("web") == 2 && h.tasks("web").len() == 2);
    lab.docker(0, &["service", "rm", "web"]).unwrap();
    source.wait("remove: its tasks drain", 5, |h| h.tasks("web").len() == 2 && h.tasks("web").iter().all(|t| t.is_draining()));
    source.wait("remove: all gone", 20, |h| h.snapshot.as_ref().unwrap().services.len() == 1);
    assert!(source.heard.lock().unwrap().snapshot.as_ref().unwrap().tasks.values().all(|t| t.state <= TaskState::Running));

    let before = source.heard.lock().unwrap().snapshot.clone().unwrap();
    lab.signal_engine(0, Signal::SIGSTOP).unwrap();
    source.wait("stopped: not connected", 20, |h| h.connected() == Some(false));
    assert_eq!(source.heard.lock().unwrap().snapshot.as_ref().unwrap(), &before);
    lab.signal_engine(0, Signal::SIGCONT).unwrap();
    source.wait("continued: connected", 30, |h| h.connected() == Some(true) && h.usable("keep") == 1);

    lab.stop_engine(0, Signal::SIGKILL).unwrap();
    source.wait("killed: not connected", 5, |h| h.connected() == Some(false));
    assert_eq!(source.heard.lock().unwrap().usable("keep"), 1);
    lab.start_engine(0).unwrap();
    lab.wait_for_engine(0).unwrap();
    source.wait("started: connected", 60, |h| h.connected() == Some(true) && h.usable("keep") == 1);
    lab.stop_engine(0, Signal::SIGTERM).unwrap();
    source.wait("ended: not connected", 5, |h| h.connected() == Some(false));
    lab.start_engine(0).unwrap();
    source.wait("started again: connected", 60, |h| h.connected() == Some(true) && h.usable("keep") == 1);

    drop(lab);
    assert_eq!(residue(prefix), Vec::<String>::new());
}

#[test]
fn names_and_networks_of_one_node_are_seen() {
    if !is_root() {
        return;
    }
    let prefix = "dlnames";
    let lab = lab(prefix, 1, 1);
    let docker = |args: &[&str]| lab.docker(0, args).unwrap();
    let run = |options: &[&str]| docker(&[&["run", "--detach"], options, &[IMAGE, "sleep", "1000000"]].concat());
    // In the range of one of the swarm's networks: the engine does not mind.
    let subnets = ["--ipv6", "--subnet", "10.7.1.0/24", "--subnet", "fd00:20::/64"];
    docker(&[&["network", "create", "--internal"], subnets.as_slice(), &["shop"]].concat());
    docker(&["network", "create", "--driver", "overlay", "--subnet", "10.7.0.0/16", "wide"]);
    docker(&["network", "create", "--driver", "overlay", "back"]);
    run(&["--name", "store", "--network", "shop"]);
    let cart = ["--name", "cart", "--network", "shop", "--network-alias", "zoo", "--network-alias", "basket", "--hostname", "trolley"];
    run(&[cart.as_slice(), &["--link", "store:Db", "--dns", "192.0.2.53", "--dns-option", "ndots:2"]].concat());
    run(&["--name", "bridged"]);
    run(&["--name", "hosted", "--network", "host"]);
    service(&lab, &["--name", "web", "--network", "back", "--dns", "192.0.2.54", "--hostname", "w{{.Task.Slot}}"]);

    let source = Consumer::start(&lab, 0);
    let find = |h: &Heard, name: &str| h.snapshot.as_ref().and_then(|s| s.tasks.values().find(|t| &*t.name == name).cloned());
    source.wait("containers on a network of this node", 10, |h| find(h, "cart").is_some() && find(h, "store").is_some());
    {
        let heard = source.heard.lock().unwrap();
        let snapshot = heard.snapshot.as_ref().unwrap();
        let shop = snapshot.networks.values().find(|n| n.name == "shop").unwrap();
        assert!(shop.local && shop.internal && shop.subnets.len() == 1 && shop.subnets[0].subnet.addr().is_ipv6(), "{shop:?}");
        assert_eq!(snapshot.networks.values().filter(|n| n.local).count(), 1, "neither bridge nor docker_gwbridge");
        let (cart, store) = (find(&heard, "cart").unwrap(), find(&heard, "store").unwrap());
        assert!(find(&heard, "bridged").is_none() && find(&heard, "hosted").is_none());
        assert_eq!(cart.addresses.len(), 2, "both families: {:?}", cart.addresses);
        assert!(cart.addresses.iter().all(|a| a.network == shop.id && a.links["Db"] == "store"), "{:?}", cart.addresses);
        assert_eq!(cart.addresses[0].aliases, ["zoo", "basket", "trolley"]);
        assert_eq!(cart.hostname.as_deref(), Some("trolley"));
        assert!(lab.netns_dir(0).unwrap().join(cart.sandbox.as_deref().unwrap()).exists());
        let told = ContainerDns { servers: vec![[192, 0, 2, 53].into()], ndots: true, disabled: false };
        assert_eq!((&cart.dns, &store.dns), (&Some(told.into()), &Some(Box::default())));
    }

    source.wait("a task", 20, |h| h.usable("web") == 1 && h.tasks("web")[0].dns.is_some());
    let web = source.tasks("web").remove(0);
    assert_eq!((web.hostname.as_deref(), web.dns.clone().unwrap().servers), (Some("w1"), vec![[192, 0, 2, 54].into()]));
    let joined = |h: &Heard| h.tasks("web")[0].addresses.iter().filter(|a| a.aliases.contains(&"till".to_owned())).count();
    docker(&["network", "connect", "--alias", "till", "shop", web.container.as_ref().unwrap()]);
    source.wait("the task joins too", 5, |h| joined(h) == 2);
    docker(&["network", "disconnect", "shop", web.container.as_ref().unwrap()]);
    source.wait("and leaves", 5, |h| joined(h) == 0);
    docker(&["rm", "--force", "cart", "store"]);
    source.wait("its last member goes, and the network with it", 5, |h| {
        find(h, "cart").is_none() && h.snapshot.as_ref().unwrap().networks.values().all(|n| !n.local)
    });
    drop(lab);
    assert_eq!(residue(prefix), Vec::<String>::new());
}

#[test]
fn a_worker_says_so() {
    if !is_root() {
        return;
    }
    let prefix = "dlworker";
    let lab = lab(prefix, 2, 1);
    let source = Consumer::start(&lab, 1);
    source.wait("not connected", 10, |h| h.connected() == Some(false));
    let state = source.heard.lock().unwrap().states[0].clone();
    assert!(state.detail.starts_with("this node is a worker"), "{}", state.detail);
    assert!(state.node.is_some() && source.heard.lock().unwrap().snapshot.is_none());
    lab.docker(0, &["node", "promote", "n2"]).unwrap();
    source.wait("promoted: connected", 30, |h| h.connected() == Some(true) && h.snapshot.is_some());
    // Clients reach the nodes, and each other, over the LAN.
    lab.exec_client(1, &["busybox", "ping", "-c1", "-W2", &lab.address(1).to_string()]).unwrap();
    assert_eq!(lab.exec_node(1, &["hostname"]).unwrap().trim(), "n2");
    // A program that is not static runs with its libraries beside it.
    let linked = Rootfs::new(lab.work().join("linked")).unwrap();
    linked.program(Path::new("/bin/hostname"), "hostname").unwrap();
    lab.import_image("linked:1", linked.path()).unwrap();
    assert_eq!(lab.docker(1, &["run", "--rm", "--hostname", "inside", "linked:1", "/bin/hostname"]).unwrap().trim(), "inside");
    assert!(lab.netns_dir(1).unwrap().join("ingress_sbox").exists());
    drop(lab);
    assert_eq!(residue(prefix), Vec::<String>::new());
}

/// A lab whose process was killed runs no destructor.
#[test]
fn a_lost_lab_is_swept() {
    if !is_root() {
        return;
    }
    let prefix = "dllost";
    let first = lab(prefix, 2, 1);
    first.docker(1, &["run", "--detach", IMAGE, "sleep", "1000000"]).unwrap();
    let mut agent = first.spawn_in_node(0, std::process::Command::new("sleep").arg("1000000")).unwrap();
    first.keep();
    let left = residue(prefix).join("\n");
    for kind in ["namespace dllost-n1", "process", "cgroup", "directory"] {
        assert!(left.contains(kind), "{kind}: {left}");
    }
    DockerLab::sweep(prefix).unwrap();
    assert_eq!(residue(prefix), Vec::<String>::new());
    assert!(agent.wait().unwrap().code().is_none(), "the agent was killed with its lab");
}
