//! Whole labs, up and down, by the commands that people use. Needs root; without it these tests say so and pass.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may stop at the first surprise, in its helpers too")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use swarmesh_lab::runtime::{LabStatus, TaskRow};

const PROGRAM: &str = env!("CARGO_BIN_EXE_swarmesh-lab");

/// One lab of its own name; taken down when the test ends, however it ends.
struct Lab {
    name: &'static str,
    dir: tempfile::TempDir,
}

impl Lab {
    /// `None` without root: the caller returns.
    fn new(name: &'static str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a lab needs root");
            return None;
        }
        let lab = Self { name, dir: tempfile::tempdir().unwrap() };
        lab.lab(&["down"]);
        Some(lab)
    }

    fn run(&self, args: &[&str]) -> Output {
        // The name belongs to the subcommand, before anything that is another program's.
        let (command, rest) = args.split_first().unwrap();
        Command::new(PROGRAM).args(["lab", command, "--name", self.name]).args(rest).env("DOMAIN", "app.test").output().unwrap()
    }

    /// What a command printed; it must succeed.
    fn lab(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "lab {args:?} failed\n{out}\n{err}\n{}", self.log());
        out.into_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.run_dir().join("supervisor.log")).unwrap_or_default()
    }

    fn stack(&self, file: &str, text: &str) -> String {
        let path = self.dir.path().join(file);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn status(&self) -> LabStatus {
        serde_json::from_str(&self.lab(&["status", "--output", "json"])).unwrap()
    }

    fn tasks(&self, service: &str) -> Vec<TaskRow> {
        let tasks = self.status().tasks.into_iter();
        tasks.filter(|t| t.service.as_deref() == Some(service) && t.process.is_some()).collect()
    }

    fn run_dir(&self) -> PathBuf {
        Path::new("/run/swarmesh-lab").join(self.name)
    }

    fn prefix(&self) -> String {
        format!("swl-{}-", self.name)
    }

    /// What is left of the lab.
    fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.run_dir().exists() {
            left.push(self.run_dir().display().to_string());
        }
        let names = fs::read_dir("/var/run/netns").into_iter().flatten().flatten();
        left.extend(names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(&self.prefix())));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(
            mounts.lines().filter(|m| m.contains(&self.prefix()) || m.contains(self.run_dir().to_str().unwrap())).map(str::to_owned),
        );
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.run(&["down"]);
        if !thread::panicking() {
            assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
            assert_eq!(self.leftovers(), Vec::<String>::new());
        }
    }
}

/// Runs `work` in a namespace of the lab.
fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(Path::new("/var/run/netns").join(netns)).unwrap();
    thread::scope(|scope| {
        let work = || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn netns_of(task: &TaskRow) -> &str {
    &task.process.as_ref().unwrap().netns
}

fn address_in(task: &TaskRow, network: &str) -> std::net::IpAddr {
    task.addresses.iter().find(|(name, _)| name == network).unwrap().1
}

/// Gone, or waiting to be buried by its parent.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with(['Z', 'X']))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        thread::sleep(Duration::from_millis(20));
    }
}

const SHOP: &str = r#"
version: "3.8"
services:
  web:
    image: nginx
    ports:
      - "8000:80"
      - "5353:53/udp"
    deploy:
      replicas: 3
      update_config: {monitor: 100ms}
  late:
    image: example/late
    environment:
      WHOAMI_READY_AFTER: "0.5"
    healthcheck:
      test: ["CMD", "no-such-program-here"]
      interval: 1s
      timeout: 1s
      retries: 3
    deploy:
      update_config: {monitor: 100ms}
  host:
    image: example/host
    ports:
      - target: 80
        published: 7000
        mode: host
    deploy:
      mode: global
  asleep:
    image: busybox
    command: sleep 1000
    networks: [inner]
networks:
  inner:
    driver: overlay
    internal: true
    attachable: true
"#;

/// Short waits everywhere.
const QUICK: [&str; 7] = ["--no-agents", "--restart-delay", "0.3", "--convergence-delay", "0.2", "--heartbeat", "0.5"];

#[test]
fn printed_stacks_come_up_unedited_and_go_without_a_trace() {
    let Some(lab) = Lab::new("seeds") else { return };
    let stacks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stacks");
    let file = |name: &str| stacks.join(name).to_str().unwrap().to_owned();
    let files = [file("hrm-http.yml"), file("hrm-https.yml"), file("hrm-sticky.yml")];
    for _ in 0..2 {
        let start = Instant::now();
        lab.lab(&["up", "--no-agents", "--wait", "-f", &files[0], "-f", &files[1], "-f", &files[2]]);
        assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
        let tasks = lab.tasks("hrm-http_session-example");
        assert_eq!(tasks.len(), 5);
        // Neighbours on other nodes answer over the overlay, and see who asks.
        let (one, other) = (&tasks[0], tasks.iter().find(|t| t.node != tasks[0].node).unwrap());
        let (from, to) = (address_in(one, "ucp-hrm"), address_in(other, "ucp-hrm"));
        let answer = inside(netns_of(one), || get((to, 8080).into(), "/")).expect("no answer over the overlay");
        assert!(answer.contains(&format!("task: {}\n", other.name)), "{answer}");
        assert!(answer.contains(&format!("remote: {from}:")), "{answer}");
        let pids: Vec<u32> = lab.status().tasks.iter().filter_map(|t| Some(t.process.as_ref()?.id.pid)).collect();
        assert_eq!(pids.len(), 18);
        lab.lab(&["down"]);
        assert_eq!(lab.leftovers(), Vec::<String>::new());
        until("every process has ended", || pids.iter().all(|pid| is_dead(*pid)));
    }
}

#[test]
fn nothing_is_left_after_kill_9_of_the_supervisor() {
    let Some(lab) = Lab::new("killed") else { return };
    let file = lab.stack("shop.yml", SHOP);
    // Leaves its namespace, as no well-behaved task does.
    let stray = lab.stack("stray.yml", "services:\n  stray:\n    image: busybox\n    command: unshare --net sleep 1000\n");
    let up = |lab: &Lab, stacks: &[&str]| lab.lab(&[&["up", "--wait"], stacks, QUICK.as_slice()].concat());
    let murder = |lab: &Lab| {
        let status = lab.status();
        let supervisor = Pid::from_raw(status.supervisor.try_into().unwrap());
        kill(supervisor, Signal::SIGKILL).unwrap();
        until("the supervisor is dead", || is_dead(status.supervisor));
        let pids: Vec<u32> = status.tasks.iter().filter_map(|t| Some(t.process.as_ref()?.id.pid)).collect();
        assert!(pids.len() >= 8 && pids.iter().all(|pid| !is_dead(*pid)));
        assert_eq!(lab.run(&["status"]).status.code(), Some(69));
        pids
    };
    up(&lab, &["-f", &file, "-f", &stray]);
    let pids = murder(&lab);
    // A new lab takes the place of the dead one, and only of a dead one.
    up(&lab, &["-f", &file]);
    until("the old processes have ended", || pids.iter().all(|pid| is_dead(*pid)));
    assert_eq!(lab.run(&["up", "--no-agents"]).status.code(), Some(1));
    let pids = murder(&lab);
    // Not even its directory is needed.
    fs::remove_dir_all(lab.run_dir()).unwrap();
    lab.lab(&["down"]);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    until("every process has ended", || pids.iter().all(|pid| is_dead(*pid)));
    lab.lab(&["down"]);
}

#[test]
fn commands_do_what_they_say() {
    let Some(lab) = Lab::new("commands") else { return };
    let file = lab.stack("shop.yml", SHOP);
    lab.lab(&[&["up", "--wait", "-f", &file], QUICK.as_slice()].concat());

    // exec: machines, tasks, exit codes, a task's own environment.
    assert!(lab.lab(&["exec", "node2", "--", "ip", "-br", "addr"]).contains("192.0.2.12/24"));
    assert!(lab.lab(&["exec", "client1", "ip", "-br", "addr"]).contains("192.0.2.101/24"));
    assert!(lab.lab(&["exec", "node1/ingress_sbox", "ip", "-br", "addr"]).contains("10.0.0.2/24"));
    let web = lab.tasks("shop_web");
    let script = "echo $WHOAMI_TASK; hostname; cat /etc/resolv.conf";
    let told = lab.lab(&["exec", "web.1", "--", "sh", "-c", script]);
    assert!(told.starts_with(&format!("{}\n{}\n", web[0].name, web[0].process.as_ref().unwrap().hostname)), "{told}");
    assert!(told.contains("nameserver 127.0.0.11\n"), "{told}");
    assert_eq!(lab.run(&["exec", "node1", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.run(&["exec", "node9", "--", "true"]).status.code(), Some(1));

    // Host-mode ports answer on their node, an internal network has no way out.
    let status = lab.status();
    let client = status.clients[0].netns.clone();
    for node in &status.nodes {
        let answer = inside(&client, || get((node.machine.address, 7000).into(), "/")).expect("no answer on a host port");
        assert!(answer.contains(&format!("node: {}\n", node.machine.name)) && answer.contains("remote: 192.0.2.101:"), "{answer}");
    }
    let asleep = &lab.tasks("shop_asleep")[0];
    assert_eq!(asleep.process.as_ref().unwrap().gateway_address, None);
    assert_eq!(asleep.process.as_ref().unwrap().command[1], "1000");

    // Ingress brings in published targets and nothing else.
    let ingress = address_in(&web[0], "ingress");
    let sandbox = format!("{}{}-ingress_sbox", lab.prefix(), web[0].node.as_ref().unwrap());
    assert!(inside(&sandbox, || get((ingress, 8000).into(), "/")).is_some());
    assert!(inside(&sandbox, || TcpStream::connect_timeout(&(ingress, 443).into(), Duration::from_millis(300))).is_err());
    let answer = inside(&sandbox, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send_to(b"ping", (ingress, 5353)).unwrap();
        let mut buffer = [0; 200];
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    assert!(answer.unwrap().ends_with(" ping"));

    // scale, kill, update.
    lab.lab(&["scale", "web=5", "shop_asleep=0"]);
    lab.lab(&["wait"]);
    assert_eq!((lab.tasks("shop_web").len(), lab.tasks("shop_asleep").len()), (5, 0));
    assert_eq!(lab.run(&["scale", "web=1", "nosuch=2"]).status.code(), Some(1));
    let before = lab.tasks("shop_web");
    assert_eq!(before.len(), 5);
    lab.lab(&["kill", "web.2"]);
    lab.lab(&["wait"]);
    let after = lab.tasks("shop_web");
    assert!(after.len() == 5 && after[1].id != before[1].id && after[0].id == before[0].id);
    lab.lab(&["update", "web", "--force", "--order", "start-first", "--parallelism", "0"]);
    lab.lab(&["wait"]);
    assert!(lab.tasks("shop_web").iter().all(|t| after.iter().all(|old| old.id != t.id)));

    // Plain containers, and services that go.
    lab.lab(&["run", "probe", "--network", "shop_inner", "--node", "node3", "--", "sleep", "1000"]);
    lab.lab(&["wait"]);
    assert!(lab.lab(&["exec", "probe", "--", "ip", "-br", "addr"]).contains("/24"));
    lab.lab(&["rm", "probe"]);
    lab.lab(&["rm", "web"]);
    lab.lab(&[
        "deploy",
        "--prune",
        "-f",
        &lab.stack("shop.yml", "services:\n  late: {image: other, deploy: {update_config: {monitor: 100ms}}}\n"),
    ]);
    lab.lab(&["wait"]);
    let status = lab.status();
    assert_eq!(status.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["shop_late"]);
    assert!(lab.lab(&["logs", "late.1"]).contains("listening"));

    // Nothing of removed tasks stays on the nodes.
    for node in &status.nodes {
        let links = lab.lab(&["exec", &node.machine.name, "--", "ip", "-br", "link"]);
        let running = status.tasks.iter().filter(|t| t.node.as_ref() == Some(&node.machine.name)).count();
        assert_eq!(links.lines().filter(|l| l.starts_with("veth")).count(), running + 1, "{links}");
    }
}

const NAMES: &str = r#"
version: "3.8"
services:
  told:
    image: busybox
    command: sh -c 'cat /etc/resolv.conf; sleep 1000'
    hostname: "told-{{.Task.Slot}}"
    dns: [192.0.2.53]
    dns_search: [a.test, b.test]
    dns_opt: ["ndots:2"]
    ports: ["9000:80"]
    networks: [net]
  asks:
    image: busybox
    command: sleep 1000
    healthcheck:
      test: ["CMD", "grep", "-q", "ndots:0", "/etc/resolv.conf"]
    networks: [net, six]
networks:
  net: {attachable: true}
  six: {enable_ipv6: true}
"#;

#[test]
fn every_container_has_its_own_resolv_conf_and_hosts() {
    let Some(lab) = Lab::new("names") else { return };
    let of_host = || (fs::read("/etc/resolv.conf").ok(), fs::read("/etc/hosts").ok(), fs::read_to_string("/proc/self/mounts").unwrap());
    let before = of_host();
    let file = lab.stack("app.yml", NAMES);
    lab.lab(&[&["up", "--wait", "--nodes", "2", "--dns", "192.0.2.101", "--dns", "2001:db8::1", "-f", &file], QUICK.as_slice()].concat());
    lab.lab(&[
        "run",
        "probe",
        "--network",
        "app_net",
        "--hostname",
        "bench",
        "--dns",
        "192.0.2.54",
        "--dns-option",
        "timeout:1",
        "--",
        "sleep",
        "1000",
    ]);
    lab.lab(&["wait"]);

    let cat = |target: &str, file: &str| lab.lab(&["exec", target, "--", "cat", file]);
    let told = "nameserver 127.0.0.11\nsearch a.test b.test\noptions ndots:2\n";
    assert_eq!(cat("told.1", "/etc/resolv.conf"), told);
    assert_eq!(lab.lab(&["logs", "told.1"]), told, "the task itself sees what exec sees");
    assert_eq!(cat("asks.1", "/etc/resolv.conf"), "nameserver 127.0.0.11\noptions ndots:0\n");
    assert_eq!(cat("probe", "/etc/resolv.conf"), "nameserver 127.0.0.11\noptions timeout:1 ndots:0\n");

    // Localhost, and the container's own name at each of its addresses but that on ingress.
    let names = |target: &str| {
        let hosts = cat(target, "/etc/hosts");
        let own =
            hosts.lines().filter_map(|line| line.split_once('\t')).filter(|(_, name)| !name.contains("local") && !name.contains("ip6-"));
        own.map(|(address, name)| (address.to_owned(), name.to_owned())).collect::<Vec<_>>()
    };
    let (told, asks) = (&lab.tasks("app_told")[0], &lab.tasks("app_asks")[0]);
    assert_eq!(names("told.1"), [(address_in(told, "app_net").to_string(), "told-1".to_owned())]);
    assert_eq!(lab.lab(&["exec", "probe", "--", "hostname"]), "bench\n");
    let hostname = asks.process.as_ref().unwrap().hostname.clone();
    let mut own: Vec<_> = asks.addresses.iter().map(|(_, address)| (address.to_string(), hostname.clone())).collect();
    assert_eq!((own.len(), asks.addresses.iter().filter(|(_, a)| a.is_ipv6()).count()), (3, 1), "IPv6 where the network has it");
    own.sort();
    let mut found = names("asks.1");
    found.sort();
    assert_eq!(found, own);

    // The snapshot says the same, and the nodes have files of their own.
    let status = lab.status();
    let snapshot = swarmesh_model::Snapshot::from_json(&fs::read_to_string(&status.snapshot).unwrap()).unwrap();
    let dns = |name: &str| snapshot.tasks.values().find(|t| t.name.starts_with(name)).unwrap().dns.clone().unwrap();
    assert_eq!((dns("app_told").servers, dns("app_told").ndots), (vec![std::net::IpAddr::from([192, 0, 2, 53])], true));
    assert_eq!((dns("probe").servers.len(), dns("probe").ndots, dns("app_asks").servers.len()), (1, false, 0));
    for node in &status.nodes {
        assert_eq!(node.resolv_conf, lab.run_dir().join(&node.machine.name).join("resolv.conf"));
        assert_eq!(fs::read_to_string(&node.resolv_conf).unwrap(), "nameserver 192.0.2.101\nnameserver 2001:db8::1\n");
    }
    // What is mounted over a container's files is mounted there alone.
    let files = |mounts: &str| mounts.lines().filter(|m| m.contains(" /etc/")).map(str::to_owned).collect::<Vec<_>>();
    let now = of_host();
    assert_eq!((&now.0, &now.1, files(&now.2)), (&before.0, &before.1, files(&before.2)));
    lab.lab(&["kill", "node2"]);
    lab.lab(&["start", "node2"]);
    assert!(fs::read_to_string(&status.nodes[1].resolv_conf).unwrap().starts_with("nameserver 192.0.2.101\n"));
    lab.lab(&["down"]);
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    let after = of_host();
    assert_eq!((after.0, after.1, files(&after.2)), (before.0, before.1, files(&before.2)));
}

#[test]
fn a_node_can_lose_its_power_and_come_back() {
    let Some(lab) = Lab::new("power") else { return };
    let file = lab.stack("shop.yml", SHOP);
    lab.lab(&[&["up", "--wait", "-f", &file], QUICK.as_slice()].concat());
    lab.lab(&["kill", "node2"]);
    let status = lab.status();
    assert!(!status.nodes[1].powered && status.nodes[1].up);
    assert_eq!(lab.run(&["exec", "node2", "--", "true"]).status.code(), Some(1));
    let client = status.clients[0].netns.clone();
    assert_eq!(inside(&client, || get(([192, 0, 2, 12], 7000).into(), "/")), None);
    until("the managers notice", || !lab.status().nodes[1].up);
    lab.lab(&["wait"]);
    assert!(lab.tasks("shop_web").iter().all(|t| t.node.as_deref() != Some("node2")));
    assert_eq!(lab.tasks("shop_web").len(), 3);
    lab.lab(&["start", "node2"]);
    lab.lab(&["wait"]);
    assert!(inside(&client, || get(([192, 0, 2, 12], 7000).into(), "/")).is_some());
    assert!(lab.status().nodes[1].up);
    // Back before anybody has noticed: its tasks are started anew.
    lab.lab(&["kill", "node3"]);
    lab.lab(&["start", "node3"]);
    lab.lab(&["wait"]);
    assert!(inside(&client, || get(([192, 0, 2, 13], 7000).into(), "/")).is_some());
}

#[test]
fn agents_are_started_watched_and_restarted() {
    let Some(lab) = Lab::new("agents") else { return };
    // The built-in server says 200 to everything, /readyz included.
    let agent = lab.stack("agent", &format!("#!/bin/sh\necho \"args: $*\"\nexec {PROGRAM} whoami --tcp 9790\n"));
    fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    lab.lab(&[
        "up",
        "--wait",
        "--nodes",
        "2",
        "--clients",
        "0",
        "--agent",
        &agent,
        "--agent-arg",
        "--dns=off",
        "--layout",
        "docker-29.8",
        "--ipv6",
    ]);
    let log = lab.lab(&["logs", "node2"]);
    let dir = lab.run_dir();
    let dir = dir.display();
    let expected = format!(
        "args: agent --source snapshot:{dir}/snapshot.json --node node2 --netns-dir {dir}/node2/netns --state-dir {dir}/node2/state \
         --resolv-conf {dir}/node2/resolv.conf --plane nft --dns=off\n"
    );
    assert!(log.starts_with(&expected), "{log}");
    let agent = |status: &LabStatus| status.nodes[0].agent.unwrap();
    let first = agent(&lab.status());
    lab.lab(&["agent", "node1", "restart"]);
    until("another agent runs", || {
        let now = agent(&lab.status());
        now != first && matches!(now, swarmesh_lab::runtime::AgentState::Running(_))
    });
    lab.lab(&["agent", "node1", "kill"]);
    until("the agent's end is seen", || agent(&lab.status()) == swarmesh_lab::runtime::AgentState::Exited { code: 137 });
    assert_eq!(lab.run(&["wait"]).status.code(), Some(1));
    lab.lab(&["agent", "node1", "start"]);
    lab.lab(&["wait"]);
}

#[test]
fn bad_usage_is_told_apart_from_failure() {
    let Some(lab) = Lab::new("usage") else { return };
    assert_eq!(lab.run(&["status"]).status.code(), Some(69));
    assert_eq!(lab.run(&["up", "--nodes", "0"]).status.code(), Some(64));
    let file = lab.stack("bad.yml", "services:\n  web:\n    imagee: x\n");
    let output = lab.run(&["up", "-f", &file]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad.yml:3:"), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}
