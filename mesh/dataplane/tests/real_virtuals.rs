//! Virtual servers on a real kernel: what a task's table does with IPVS, and how a node changes planes under load.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use swarmesh_dataplane::{Balancing, NetfilterPlane, PlaneConfig, try_ipvs, uninstall};
use swarmesh_kernel::{IpvsOp, Kernel, KernelError, LinuxKernel, RealId};
use swarmesh_model::TaskId;
use swarmesh_plan::{Backend, BackendState, NodePlan, PlanDelta, Policy, SandboxPlan, Scheduler, VirtualService};

/// More than an emulated machine needs.
const PATIENCE: Duration = Duration::from_secs(5);

struct Namespace {
    file: File,
    path: PathBuf,
    /// Keeps the namespace alive as its path does.
    holder: Child,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Namespace {
    fn new() -> Self {
        let holder = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            Command::new("sleep").arg("600").spawn().expect("sleep")
        });
        let holder = holder.join().expect("the namespace");
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let namespace = Self { file: File::open(&path).expect("the namespace"), path, holder };
        namespace.run("ip link set lo up");
        namespace
    }

    fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.file.try_clone().expect("a descriptor");
        let work = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root");
            work()
        };
        thread::spawn(work).join().expect("the work")
    }

    fn run(&self, command: &str) -> String {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let output = self.within(move || Command::new(&words[0]).args(&words[1..]).output().expect("the program"));
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }
}

/// A task's namespace and one with backends 10.0.1.11 to .14, on one wire; the task is 10.0.1.5 and serves, too.
struct World {
    client: Namespace,
    /// Alive for as long.
    _servers: Namespace,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (client, servers) = (Namespace::new(), Namespace::new());
        client.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", servers.holder.id()));
        for (side, addresses) in [(&client, 5..=5), (&servers, 11..=14)] {
            side.run("ip link set eth0 up");
            for host in addresses {
                side.run(&format!("ip addr add 10.0.1.{host}/24 dev eth0"));
                side.run(&format!("ip -6 addr add fd00:1::{host}/64 dev eth0 nodad"));
                for address in [format!("10.0.1.{host}:80"), format!("[fd00:1::{host}]:80")] {
                    let listener = side.within(move || TcpListener::bind(&address).expect("a port"));
                    thread::spawn(move || {
                        for mut stream in listener.incoming().flatten() {
                            thread::spawn(move || serve(&mut stream, host));
                        }
                    });
                }
                let socket = side.within(move || UdpSocket::bind((IpAddr::from([10, 0, 1, host]), 53)).expect("a port"));
                thread::spawn(move || {
                    let mut bytes = [0; 64];
                    while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(host.to_string().as_bytes(), from);
                    }
                });
            }
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(&client.path, dir.path().join("box")).expect("a link");
        Self { client, _servers: servers, dir }
    }

    fn connect(&self, vip: &str) -> std::io::Result<TcpStream> {
        let target: SocketAddr = format!("{vip}:80").parse().expect("an address");
        self.client.within(move || connect(target))
    }

    fn ask(&self, vip: &str) -> std::io::Result<String> {
        let mut stream = self.connect(vip)?;
        greeting(&mut stream)
    }

    /// How often each backend answered.
    fn spread(&self, vip: &str, times: usize) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        for _ in 0..times {
            *seen.entry(self.ask(vip).unwrap_or_else(|error| format!("{error}"))).or_default() += 1;
        }
        seen
    }

    fn real_weights(&self) -> BTreeMap<IpAddr, u32> {
        let mut ns = LinuxKernel.open(&self.client.path).unwrap();
        let servers = ns.virtual_servers().unwrap();
        servers.iter().flat_map(|s| ns.real_servers(&s.server.id).unwrap()).map(|r| (r.server.id.address, r.server.weight)).collect()
    }
}

/// Says who it is, then says everything again that it hears.
fn serve(stream: &mut TcpStream, host: u8) {
    if writeln!(stream, "{host}").is_ok() {
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
    }
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn greeting(stream: &mut TcpStream) -> std::io::Result<String> {
    let (mut text, mut byte) = (String::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

fn still_answers(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)
}

const VIP: &str = "10.0.1.100";

/// The service behind 10.0.1.100 and, over IPv6, fd00:1::100: these hosts, `true` for those that are ready.
fn plan(hosts: &[(u8, bool)], policy: &Policy) -> NodePlan {
    let mut plan = NodePlan { version: 1, ..NodePlan::default() };
    let sandbox = SandboxPlan {
        task: "me".into(),
        name: "web.1".to_owned(),
        sandbox: "box".to_owned(),
        networks: BTreeSet::from(["net".into()]),
        ingress: None,
    };
    plan.sandboxes.insert(TaskId::from("me"), Arc::new(sandbox));
    for v6 in [false, true] {
        let address = |host: u8| if v6 { format!("fd00:1::{host}").parse().unwrap() } else { IpAddr::from([10, 0, 1, host]) };
        let backends: Vec<Backend> = hosts
            .iter()
            .map(|(host, ready)| Backend {
                address: address(*host),
                task: if *host == 5 { "me".into() } else { format!("t{host}").as_str().into() },
                state: if *ready { BackendState::Ready } else { BackendState::Draining },
            })
            .collect();
        let service =
            VirtualService { service: "web".into(), name: "web".to_owned(), policy: Arc::new(policy.clone()), backends: backends.into() };
        plan.networks.entry("net".into()).or_default().insert(address(100), Arc::new(service));
    }
    plan
}

const VIP6: &str = "[fd00:1::100]";

struct Agent {
    plane: NetfilterPlane,
    plan: NodePlan,
}

impl Agent {
    fn new(dir: &Path, balancing: Balancing) -> Self {
        let config = PlaneConfig { balancing, netns_dir: dir.to_owned(), node_address: None };
        Self { plane: NetfilterPlane::new(Arc::new(LinuxKernel), config), plan: NodePlan::default() }
    }

    fn apply(&mut self, plan: NodePlan) {
        self.plane.apply(&PlanDelta::between(&self.plan, &plan), Instant::now());
        self.plan = plan;
        assert!(self.plane.is_settled(), "{:?}", self.plane.status(Instant::now()).places);
    }

    fn audit(&mut self) {
        let now = Instant::now();
        self.plane.start_audit(now);
        while self.plane.run_due(now) == Some(now) {}
    }

    fn commits(&self) -> u64 {
        self.plane.status(Instant::now()).commits
    }
}

/// `None` on kernels without IPVS.
fn ipvs() -> Option<Balancing> {
    let scratch = Namespace::new();
    match scratch.within(|| try_ipvs(&LinuxKernel)) {
        Ok(schedulers) => Some(Balancing::Ipvs { schedulers: Arc::new(schedulers) }),
        Err(KernelError::NotSupported { detail, .. }) => {
            println!("skipped: this kernel has no IPVS ({detail}); the vm tier has kernels with it");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn ready(hosts: &[u8]) -> Vec<(u8, bool)> {
    hosts.iter().map(|h| (*h, true)).collect()
}

#[test]
fn virtual_servers_balance_drain_refuse_and_go() {
    let Some(balancing) = ipvs() else { return };
    let Balancing::Ipvs { schedulers } = &balancing else { panic!("{balancing:?}") };
    assert!(!schedulers.contains(&Scheduler::Random) && schedulers.len() == 6, "{schedulers:?}");
    let world = World::new();
    let mut agent = Agent::new(world.dir.path(), balancing.clone());
    let policy = Policy { drain: Duration::from_secs(1), ..Policy::default() };

    // In turn, over both families; any port; the client's address is kept by having no other.
    agent.apply(plan(&ready(&[11, 12, 13]), &policy));
    for vip in [VIP, VIP6] {
        let spread = world.spread(vip, 9);
        assert!(spread.len() == 3 && spread.values().all(|n| *n == 3), "{vip}: {spread:?}");
    }
    world.client.run("ping -c 1 -W 5 10.0.1.100");

    // A second agent finds all as it should be, and writes nothing.
    drop(agent);
    let mut agent = Agent::new(world.dir.path(), balancing.clone());
    agent.apply(plan(&ready(&[11, 12, 13]), &policy));
    assert_eq!(agent.commits(), 0);

    // Who drains keeps what it has until its time is over, and is then reset.
    let mut held: Vec<(String, TcpStream)> = (0..3)
        .map(|_| {
            let mut stream = world.connect(VIP).unwrap();
            (greeting(&mut stream).unwrap(), stream)
        })
        .collect();
    agent.apply(plan(&[(11, true), (12, true), (13, false)], &policy));
    assert_eq!(world.spread(VIP, 6).keys().collect::<Vec<_>>(), ["11", "12"]);
    held.iter_mut().for_each(|(_, stream)| still_answers(stream).unwrap());
    assert_eq!(world.real_weights()[&IpAddr::from([10, 0, 1, 13])], 0);
    while let Some(due) = agent.plane.run_due(Instant::now()) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    for (host, stream) in &mut held {
        let outcome = still_answers(stream);
        assert_eq!(outcome.as_ref().err().map(|e| e.kind()), (host == "13").then_some(ErrorKind::ConnectionReset), "{host}: {outcome:?}");
    }

    // The last ones that drain still serve; without any, it is refused at once.
    agent.apply(plan(&[(12, false)], &policy));
    assert_eq!(world.ask(VIP).unwrap(), "12");
    agent.apply(plan(&[], &policy));
    for vip in [VIP, VIP6] {
        assert_eq!(world.ask(vip).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{vip}");
    }
    // A segment of no known connection is reset, too, and does not leave by the wire: this one's connection went.
    agent.apply(plan(&ready(&[14]), &policy));
    let mut stream = world.connect(VIP).unwrap();
    greeting(&mut stream).unwrap();
    agent.apply(plan(&ready(&[11]), &policy));
    assert_eq!(still_answers(&mut stream).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let outcomes = uninstall(&LinuxKernel, world.dir.path());
    assert!(outcomes.iter().all(|(_, o)| o.is_ok()), "{outcomes:?}");
    assert_eq!(world.client.run("nft list ruleset"), "");
    assert_eq!(LinuxKernel.open(&world.client.path).unwrap().virtual_servers().unwrap(), []);
    for key in ["conntrack", "expire_nodest_conn", "expire_quiescent_template"] {
        assert_eq!(world.client.run(&format!("cat /proc/sys/net/ipv4/vs/{key}")).trim(), "0", "{key}");
    }
}

#[test]
fn a_task_has_its_share_of_its_own_service() {
    let Some(balancing) = ipvs() else { return };
    let world = World::new();
    let mut agent = Agent::new(world.dir.path(), balancing);
    agent.apply(plan(&ready(&[5, 11, 12]), &Policy::default()));
    let spread = world.spread(VIP, 18);
    assert!(spread.len() == 3 && spread.values().all(|n| *n == 6), "{spread:?}");
    agent.apply(plan(&ready(&[5]), &Policy::default()));
    assert_eq!(world.spread(VIP, 4), BTreeMap::from([("5".to_owned(), 4)]));
    agent.apply(plan(&ready(&[11]), &Policy::default()));
    assert_eq!(world.spread(VIP, 4), BTreeMap::from([("11".to_owned(), 4)]));
    for policy in [
        Policy { affinity: Some(Duration::from_secs(60)), ..Policy::default() },
        Policy { scheduler: Scheduler::SourceHash, ..Policy::default() },
    ] {
        agent.apply(plan(&ready(&[5, 11, 12, 13]), &policy));
        let first = world.ask(VIP).unwrap();
        assert_eq!(world.spread(VIP, 8), BTreeMap::from([(first.clone(), 8)]));
        // Its one goes, and it gets another one at once.
        let left: Vec<u8> = [5, 11, 12, 13].into_iter().filter(|h| h.to_string() != first).collect();
        agent.apply(plan(&ready(&left), &policy));
        let next = world.ask(VIP).unwrap();
        assert_ne!(next, first);
        assert_eq!(world.spread(VIP, 4), BTreeMap::from([(next, 4)]));
    }
    for scheduler in [Scheduler::LeastConnections, Scheduler::Maglev, Scheduler::WeightedRoundRobin, Scheduler::WeightedLeastConnections] {
        agent.apply(plan(&ready(&[11, 12, 13]), &Policy { scheduler, ..Policy::default() }));
        let spread = world.spread(VIP, 24);
        assert!(spread.keys().all(|k| ["11", "12", "13"].contains(&k.as_str())) && spread.len() > 1, "{scheduler:?}: {spread:?}");
    }
}

/// IPVS forgets a client when its time is over, unless it remembers connections of the client; then it looks again every 60 s
/// (`ip_vs_conn_expire`). It remembers one that was reset for 10 s, one that was closed for 120 s.
#[test]
fn affinity_ends_some_time_after_the_last_connection() {
    let Some(balancing) = ipvs() else { return };
    let world = World::new();
    let mut agent = Agent::new(world.dir.path(), balancing);
    agent.apply(plan(&ready(&[11, 12]), &Policy { affinity: Some(Duration::from_secs(1)), ..Policy::default() }));
    let ask_and_reset = || {
        let mut stream = world.connect(VIP).unwrap();
        let host = greeting(&mut stream).unwrap();
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &reset_on_close()).unwrap();
        host
    };
    let first = ask_and_reset();
    assert!((0..4).all(|_| ask_and_reset() == first));
    // Longer than a second, ten and sixty; twice, should an emulated machine be late.
    let others = (0..2).map(|_| {
        thread::sleep(Duration::from_secs(80));
        ask_and_reset()
    });
    // Round robin: the next one that is scheduled is the other one.
    assert!(others.into_iter().any(|host| host != first), "the affinity never ends");
}

/// Closing resets.
fn reset_on_close() -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: 0 }
}

#[test]
fn a_udp_flow_leaves_a_backend_that_is_gone() {
    let Some(balancing) = ipvs() else { return };
    let world = World::new();
    let mut agent = Agent::new(world.dir.path(), balancing);
    agent.apply(plan(&ready(&[11, 12]), &Policy::default()));
    let socket = world.client.within(|| UdpSocket::bind("10.0.1.5:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let ask = || {
        // A datagram may be lost while the flow moves.
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let mut bytes = [0; 8];
            if socket.send_to(b"?", (VIP, 53)).is_ok()
                && let Ok(n) = socket.recv(&mut bytes)
            {
                return String::from_utf8(bytes[..n].to_vec()).unwrap();
            }
        }
        panic!("no answer")
    };
    let first = ask();
    assert_eq!(ask(), first);
    let other = if first == "11" { 12 } else { 11 };
    agent.apply(plan(&ready(&[other]), &Policy::default()));
    assert_eq!(ask(), other.to_string());
}

/// There are no notifications, so it is the audit that sees what others do.
#[test]
fn what_others_do_to_virtual_servers_is_mended_by_the_audit() {
    let Some(balancing) = ipvs() else { return };
    let world = World::new();
    let mut agent = Agent::new(world.dir.path(), balancing);
    agent.apply(plan(&ready(&[11, 12]), &Policy::default()));
    let mut ns = LinuxKernel.open(&world.client.path).unwrap();
    let ours = |ns: &mut dyn swarmesh_kernel::Namespace| {
        let servers = ns.virtual_servers().unwrap();
        servers.into_iter().map(|s| s.server.id).find(|id| !id.is_v6()).unwrap()
    };
    let id = ours(&mut *ns);
    let real = |host| RealId { address: IpAddr::from([10, 0, 1, host]), port: 0 };
    let mut state = ns.real_servers(&id).unwrap()[0].server;
    state.weight = 0;
    let stranger = {
        let mut real_server = state;
        real_server.id = real(13);
        real_server.weight = 1;
        real_server
    };
    for (harm, healed) in [
        (IpvsOp::DeleteReal { of: id, real: real(11) }, 1),
        (IpvsOp::SetReal { of: id, real: state }, 2),
        (IpvsOp::AddReal { of: id, real: stranger }, 3),
        (IpvsOp::DeleteVirtual(id), 4),
        (IpvsOp::Flush, 5),
    ] {
        ns.ipvs_apply(std::slice::from_ref(&harm)).unwrap().remove(0).unwrap();
        agent.audit();
        assert!(agent.plane.is_settled());
        assert_eq!(agent.plane.status(Instant::now()).healed, healed, "{harm}");
        let spread = world.spread(VIP, 4);
        assert_eq!(spread, BTreeMap::from([("11".to_owned(), 2), ("12".to_owned(), 2)]), "{harm}");
    }
}

#[test]
fn planes_change_under_load_and_nothing_fails() {
    let Some(balancing) = ipvs() else { return };
    let world = World::new();
    let hosts = ready(&[11, 12, 13]);
    let mut agent = Agent::new(world.dir.path(), Balancing::Nft);
    agent.apply(plan(&hosts, &Policy::default()));
    let mut held = Vec::new();
    for next in [balancing.clone(), Balancing::Nft, balancing, Balancing::Nft] {
        for _ in 0..3 {
            let mut stream = world.connect(VIP).unwrap();
            greeting(&mut stream).unwrap();
            held.push(stream);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let namespace = world.client.file.try_clone().unwrap();
        let load = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let target: SocketAddr = format!("{VIP}:80").parse().unwrap();
            let (mut done, mut failed) = (0, Vec::new());
            while !stopped.load(Relaxed) {
                match connect(target).and_then(|mut stream| greeting(&mut stream)) {
                    Ok(_) => done += 1,
                    Err(error) => failed.push(error.to_string()),
                }
            }
            (done, failed)
        });
        thread::sleep(Duration::from_millis(300));
        drop(agent);
        let name = next.name();
        agent = Agent::new(world.dir.path(), next);
        agent.apply(plan(&hosts, &Policy::default()));
        thread::sleep(Duration::from_millis(300));
        agent.audit();
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        let (done, failed) = load.join().unwrap();
        assert!(done > 10 && failed.is_empty(), "to {name}: {done} done, failed: {failed:?}");
        held.iter_mut().for_each(|stream| still_answers(stream).unwrap_or_else(|error| panic!("to {name}: {error}")));
        assert_eq!(world.spread(VIP, 6).len(), 3);
    }
    // Those connections are in the virtual servers still, which wait for them.
    assert_ne!(LinuxKernel.open(&world.client.path).unwrap().virtual_servers().unwrap(), []);
    assert!(world.client.run("nft list ruleset").contains("marks4"));
}
