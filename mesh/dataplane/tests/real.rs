//! The nft plane on a real kernel, in a namespace of its own: what a task's table does, and what it leaves alone.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use swarmesh_dataplane::{NetfilterPlane, PlaceState, PlaneConfig, uninstall};
use swarmesh_kernel::LinuxKernel;
use swarmesh_model::{Delta, Network, Service, Snapshot, Subnet, Task, TaskAddress, TaskState, VirtualIp};
use swarmesh_plan::{NodeContext, Planner};

/// A task's namespace, with backends on its own loopback interface.
struct Sandbox {
    dir: tempfile::TempDir,
    namespace: File,
    /// Keeps the namespace alive as its path does.
    _holder: std::process::Child,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self._holder.kill();
        let _ = self._holder.wait();
    }
}

impl Sandbox {
    fn new() -> Self {
        let holder = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            for words in [
                &["link", "set", "lo", "up"][..],
                &["addr", "add", "10.0.1.1/24", "dev", "lo"],
                &["-6", "addr", "add", "fd00::1/64", "dev", "lo"],
            ] {
                assert!(Command::new("ip").args(words).status().expect("ip").success());
            }
            for host in 11..=14 {
                assert!(
                    Command::new("ip").args(["addr", "add", &format!("10.0.1.{host}/32"), "dev", "lo"]).status().expect("ip").success()
                );
            }
            Command::new("sleep").arg("600").spawn().expect("sleep")
        })
        .join()
        .expect("the namespace");
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(&path, dir.path().join("box")).expect("a link");
        Self { namespace: File::open(path).expect("the namespace"), dir, _holder: holder }
    }

    fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace.try_clone().expect("a descriptor");
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root");
            work()
        })
        .join()
        .expect("the work")
    }

    fn ruleset(&self) -> String {
        let output = self.within(|| Command::new("nft").args(["-a", "list", "ruleset"]).output().expect("nft"));
        assert!(output.status.success(), "nft cannot list what we made: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Every backend says its own address.
    fn serve(&self, hosts: std::ops::RangeInclusive<u8>) {
        for host in hosts {
            let listener = self.within(move || TcpListener::bind((IpAddr::from([10, 0, 1, host]), 80)).expect("a port"));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut stream = stream;
                    let _ = writeln!(stream, "{host}");
                }
            });
        }
    }

    fn ask(&self, vip: &str) -> std::io::Result<String> {
        let target: SocketAddr = format!("{vip}:80").parse().expect("an address");
        self.within(move || {
            let mut answer = String::new();
            TcpStream::connect_timeout(&target, Duration::from_secs(1))?.read_to_string(&mut answer)?;
            Ok(answer.trim().to_owned())
        })
    }
}

fn swarm(backends: &[u8], labels: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.insert_network(Network {
        id: "net".into(),
        name: "net".into(),
        driver: "overlay".into(),
        ingress: false,
        internal: false,
        attachable: false,
        local: false,
        subnets: vec![Subnet { subnet: "10.0.1.0/24".parse().unwrap(), gateway: None }],
        mtu: None,
        labels: BTreeMap::new(),
    });
    for (id, host) in [("web", 100u8), ("other", 101)] {
        snapshot.insert_service(Service {
            id: id.into(),
            name: id.into(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            endpoint_mode: Default::default(),
            ports: vec![],
            vips: vec![VirtualIp { network: "net".into(), address: IpAddr::from([10, 0, 1, host]) }],
            networks: vec![],
        });
    }
    for host in backends {
        snapshot.insert_task(task(&format!("t{host}"), "web", *host, None));
        snapshot.insert_task(task(&format!("o{host}"), "other", *host, None));
    }
    snapshot.insert_task(task("me", "web", 200, Some("box")));
    snapshot
}

fn task(id: &str, service: &str, host: u8, sandbox: Option<&str>) -> Task {
    Task {
        id: id.into(),
        service: Some(service.into()),
        name: id.into(),
        slot: None,
        node: Some(if sandbox.is_some() { "here" } else { "there" }.into()),
        desired_state: TaskState::Running,
        state: if sandbox.is_some() { TaskState::Starting } else { TaskState::Running },
        container: None,
        hostname: None,
        sandbox: sandbox.map(Into::into),
        healthy: None,
        addresses: vec![TaskAddress {
            network: "net".into(),
            address: IpAddr::from([10, 0, 1, host]),
            aliases: vec![],
            links: Default::default(),
        }],
        ports: None,
        dns: None,
        routing: None,
    }
}

struct Node {
    planner: Planner,
    plane: NetfilterPlane,
}

impl Node {
    fn new(dir: &Path) -> Self {
        let context = NodeContext { node: Some("here".into()), ..NodeContext::default() };
        let config = PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir: dir.to_owned(), node_address: None };
        Self { planner: Planner::new(context), plane: NetfilterPlane::new(Arc::new(LinuxKernel), config) }
    }

    fn apply(&mut self, snapshot: &Snapshot) {
        let delta = Delta::between(self.planner.snapshot(), snapshot);
        let delta = self.planner.update(&delta);
        self.plane.apply(&delta, Instant::now());
        let status = self.plane.status(Instant::now());
        assert!(self.plane.is_settled(), "{:?}", status.places);
        assert!(status.places.iter().all(|p| p.state == PlaceState::Applied));
    }
}

#[test]
fn a_tasks_table_balances_changes_refuses_heals_and_goes() {
    let sandbox = Sandbox::new();
    sandbox.serve(11..=14);
    let mut node = Node::new(sandbox.dir.path());

    // Two services that are called in turn are balanced each for itself.
    node.apply(&swarm(&[11, 12, 13], &[]));
    let mut seen: [BTreeMap<String, u32>; 2] = Default::default();
    for _ in 0..9 {
        *seen[0].entry(sandbox.ask("10.0.1.100").unwrap()).or_default() += 1;
        *seen[1].entry(sandbox.ask("10.0.1.101").unwrap()).or_default() += 1;
    }
    for counts in &seen {
        assert!(counts.len() == 3 && counts.values().all(|n| *n == 3), "{seen:?}");
    }

    // A change of one backend is a change of one slot.
    let before = node.plane.status(Instant::now()).operations;
    node.apply(&swarm(&[11, 12, 14], &[]));
    assert_eq!(node.plane.status(Instant::now()).operations - before, 4, "two services, one slot each out and in");
    assert!((0..6).any(|_| sandbox.ask("10.0.1.100").unwrap() == "14"));

    // A second agent finds all as it should be, and writes nothing.
    let ruleset = sandbox.ruleset();
    let mut second = Node::new(sandbox.dir.path());
    second.apply(&swarm(&[11, 12, 14], &[]));
    assert_eq!(sandbox.ruleset(), ruleset);
    assert_eq!(second.plane.status(Instant::now()).commits, 0);
    drop(node);
    let mut node = second;

    // Affinity, on and off again.
    let sticky = [("swarmesh.affinity", "client-ip:60")];
    node.apply(&swarm(&[11, 12, 14], &sticky));
    assert!(sandbox.ruleset().contains("stay with the remembered backend"));
    let first = sandbox.ask("10.0.1.100").unwrap();
    assert!((0..8).all(|_| sandbox.ask("10.0.1.100").unwrap() == first));
    let left: Vec<u8> = [11, 12, 14].into_iter().filter(|h| h.to_string() != first).collect();
    node.apply(&swarm(&left, &sticky));
    let next = sandbox.ask("10.0.1.100").unwrap();
    assert_ne!(next, first, "the remembered backend is gone and was believed");
    assert!((0..8).all(|_| sandbox.ask("10.0.1.100").unwrap() == next));
    node.apply(&swarm(&left, &[("swarmesh.scheduler", "random")]));
    node.apply(&swarm(&left, &[("swarmesh.scheduler", "sh")]));
    let hashed = sandbox.ask("10.0.1.100").unwrap();
    assert!((0..8).all(|_| sandbox.ask("10.0.1.100").unwrap() == hashed));

    // No backend: refused at once.
    node.apply(&swarm(&[], &[]));
    let start = Instant::now();
    let error = sandbox.ask("10.0.1.100").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    assert!(start.elapsed() < Duration::from_millis(300));

    // Somebody empties the table, or the whole ruleset.
    node.apply(&swarm(&[11, 12], &[]));
    for harm in ["flush ruleset", "flush chain inet swarmesh dispatch4", "flush map inet swarmesh slot4", "delete table inet swarmesh"] {
        sandbox.within(move || assert!(Command::new("nft").arg(harm).status().unwrap().success()));
        node.plane.check_events(Instant::now());
        assert!(["11", "12"].contains(&sandbox.ask("10.0.1.100").unwrap_or_default().as_str()), "not healed after {harm}");
    }
    assert_eq!(node.plane.status(Instant::now()).healed, 4);

    let outcomes = uninstall(&LinuxKernel, sandbox.dir.path());
    assert!(outcomes.iter().all(|(_, o)| o.is_ok()), "{outcomes:?}");
    assert_eq!(sandbox.ruleset(), "");
}
