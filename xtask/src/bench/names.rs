//! B7: names. CPU per query of each server at a fixed rate that none of them finds hard, and how long answers take.
//!
//! Pairs of A and AAAA for random services of ten thousand, and every twentieth query a name that does not exist. The agent
//! asks upstream for those; the upstream is a thread of this program, so its cost is not the agent's.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_tests::netns::{spawn_within, within};

use super::{
    stats::{Random, median, percentile, ratio},
    swarm::{Sandbox, snapshot, vip},
};
use crate::run::{build, say};

/// Queries per second. Below the knee of the slowest on two cores that the generator shares.
const RATE: u32 = 20_000;
const BLOCK: Duration = Duration::from_secs(3);
const SOCKETS: usize = 16;
const MISSING: u32 = 500;
const MOST_OPEN: usize = 64;
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn run(blocks: usize, services: u32) -> Result<()> {
    let sandbox = Sandbox::new("names")?;
    let directory = tempfile::tempdir()?;
    let upstream = spawn_within(&sandbox.path(), nothing_exists)?;
    let mut servers = Vec::new();
    for kind in [Kind::Ours, Kind::Dnsmasq, Kind::Unbound, Kind::Knot, Kind::Echo] {
        servers.push(Server::start(kind, &sandbox, directory.path(), services)?);
    }
    let mut cpu: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    let mut p99: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    let mut p50: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    let mut random = Random(11);
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..servers.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            let server = &servers[index];
            let before = server.cpu()?;
            let (address, is_echo, seed) = (server.kind.address(), server.kind == Kind::Echo, (block * 7 + index) as u64 + 1);
            let mut times = within(&sandbox.path(), move || generate(address, services, is_echo, seed))?
                .with_context(|| format!("{:?}", server.kind))?;
            let spent = server.cpu()? - before;
            if block > 0 {
                cpu[index].push(spent / times.len() as f64 * 1e6);
                p50[index].push(percentile(&mut times, 0.5) * 1e6);
                p99[index].push(percentile(&mut times, 0.99) * 1e6);
            }
        }
    }
    say(&format!(
        "{services} services, {RATE} queries/s, A and AAAA, 5 % missing, {blocks} interleaved blocks of {} s\n| server | CPU per query, µs | ours against it [95 % CI] | p50, µs | p99, µs | ours p99 against it [95 % CI] |\n|---|---|---|---|---|---|",
        BLOCK.as_secs()
    ));
    for (index, server) in servers.iter().enumerate() {
        say(&format!(
            "| {} | {:.2} | {} | {:.0} | {:.0} | {} |",
            server.kind.name(),
            median(&cpu[index]),
            ratio(&cpu[0], &cpu[index]),
            median(&p50[index]),
            median(&p99[index]),
            ratio(&p99[0], &p99[index]),
        ));
    }
    drop(servers);
    drop(upstream);
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Dnsmasq,
    Unbound,
    Knot,
    Echo,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours (the whole agent)",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound, local-data, one thread",
            Self::Knot => "knot, one UDP worker",
            Self::Echo => "UDP echo, recvfrom and sendto",
        }
    }

    fn address(self) -> SocketAddr {
        let (host, port) = match self {
            Self::Ours => (11, 53),
            Self::Dnsmasq => (21, 53),
            Self::Unbound => (22, 53),
            Self::Knot => (23, 53),
            Self::Echo => (24, 53),
        };
        SocketAddr::from(([127, 0, 0, host], port))
    }
}

struct Server {
    kind: Kind,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(kind: Kind, sandbox: &Sandbox, directory: &std::path::Path, services: u32) -> Result<Self> {
        let at = |name: &str| directory.join(name);
        let text = |name: &str, text: String| std::fs::write(at(name), text).with_context(|| name.to_owned());
        let mut command = match kind {
            Kind::Ours => {
                text("resolv.conf", "nameserver 127.0.0.2\n".to_owned())?;
                text("snapshot.json", snapshot(services, 1).to_json())?;
                let mut command = Command::new(build(true)?);
                command.args(["agent", "--node", "here", "--source"]).arg(format!("snapshot:{}", at("snapshot.json").display()));
                command.arg("--netns-dir").arg(sandbox.netns_dir()).arg("--state-dir").arg(at("state"));
                command.arg("--resolv-conf").arg(at("resolv.conf"));
                command
            }
            Kind::Dnsmasq => {
                text("hosts", (0..services).map(|n| format!("{} service{n}\n", vip(n))).collect())?;
                let mut command = Command::new("dnsmasq");
                command.args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--bind-interfaces",
                    "--user=root",
                ]);
                command
                    .args(["--listen-address=127.0.0.21", "--local=/#/", "--local-ttl=5", "--pid-file="])
                    .arg(format!("--addn-hosts={}", at("hosts").display()));
                command
            }
            Kind::Unbound => {
                let data: String = (0..services).map(|n| format!("  local-data: \"service{n}. 5 A {}\"\n", vip(n))).collect();
                text(
                    "unbound.conf",
                    format!(
                        "server:\n  interface: 127.0.0.22\n  num-threads: 1\n  do-daemonize: no\n  use-syslog: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{0}\"\n  pidfile: \"\"\n  access-control: 127.0.0.0/8 allow\n  module-config: \"iterator\"\n  local-zone: \".\" static\n{data}remote-control:\n  control-enable: no\n",
                        directory.display()
                    ),
                )?;
                let mut command = Command::new("unbound");
                command.arg("-c").arg(at("unbound.conf"));
                command
            }
            Kind::Knot => {
                let records: String = (0..services).map(|n| format!("service{n}. 5 A {}\n", vip(n))).collect();
                text("root.zone", format!(". 5 SOA . . 1 3600 600 86400 5\n. 5 NS ns.\nns. 5 A 127.0.0.23\n{records}"))?;
                text(
                    "knot.conf",
                    format!(
                        "server:\n  listen: 127.0.0.23@53\n  rundir: {0}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\ndatabase:\n  storage: {0}/knot\nlog:\n  - target: stderr\n    any: error\nzone:\n  - domain: .\n    file: {0}/root.zone\n",
                        directory.display()
                    ),
                )?;
                let mut command = Command::new("knotd");
                command.arg("-c").arg(at("knot.conf"));
                command
            }
            Kind::Echo => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bench-echo", &kind.address().to_string()]);
                command
            }
        };
        command.stdout(Stdio::null()).stderr(std::fs::File::create(at(&format!("{kind:?}.log")))?);
        let child = within(&sandbox.path(), move || command.spawn())?.with_context(|| format!("cannot run {kind:?}"))?;
        let server = Self { kind, child };
        let path = sandbox.path();
        let start = Instant::now();
        while !within(&path, move || is_up(kind.address(), kind == Kind::Echo))? {
            if start.elapsed() > Duration::from_secs(30) {
                bail!("{kind:?} does not answer: {}", std::fs::read_to_string(at(&format!("{kind:?}.log"))).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Seconds of user and system time since its start.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{}/stat", self.child.id())))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("an odd stat line")?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).context("an odd stat line");
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }
}

/// The smallest server that there is: what it costs, every server has to pay.
pub(crate) fn echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut room = [0; 2048];
    loop {
        let (len, client) = socket.recv_from(&mut room)?;
        room[2] |= 0x80;
        socket.send_to(&room[..len], client)?;
    }
}

/// The upstream: every name is missing, for a while.
fn nothing_exists() {
    let Ok(socket) = UdpSocket::bind("127.0.0.2:53") else { return };
    let mut room = [0; 2048];
    while let Ok((len, client)) = socket.recv_from(&mut room) {
        // Header, question, and whatever else is dropped.
        let Some(name) = room[12..len].iter().position(|b| *b == 0) else { continue };
        let mut answer = room[..12 + name + 5].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 1, 0, 0]);
        // . 300 SOA . . 1 1 1 1 300
        answer.extend([0, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0]);
        answer.extend([1u32, 1, 1, 1, 300].iter().flat_map(|n| n.to_be_bytes()));
        let _ = socket.send_to(&answer, client);
    }
}

fn query(id: u16, name: &str, is_aaaa: bool) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0, if is_aaaa { 28 } else { 1 }, 0, 1]);
    bytes
}

fn is_up(address: SocketAddr, is_echo: bool) -> bool {
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(address)?;
        socket.send(&query(1, "service0", false))?;
        let mut room = [0; 512];
        let len = socket.recv(&mut room)?;
        Ok(len > 12 && (is_echo || room[7] > 0))
    };
    ask().unwrap_or(false)
}

/// Asks at the fixed rate and checks every answer. Returns the time that each took, in seconds.
fn generate(address: SocketAddr, services: u32, is_echo: bool, seed: u64) -> Result<Vec<f64>> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()?;
    let total = (f64::from(RATE) * BLOCK.as_secs_f64()) as usize & !1;
    let mut sent: Vec<(Instant, bool, bool)> = Vec::with_capacity(total);
    let mut times = Vec::with_capacity(total);
    let start = Instant::now();
    let gap = Duration::from_secs_f64(2.0 / f64::from(RATE));
    let mut room = [0; 2048];
    let mut pair = 0;
    while times.len() < total {
        // After a pause that was not ours, no burst makes up for it beyond what any server's socket takes.
        if sent.len() < total && sent.len() - times.len() < MOST_OPEN && start.elapsed() >= gap * pair {
            let is_missing = pair % 20 == 19;
            let name = if is_missing {
                format!("missing{}", random.below(MISSING as usize))
            } else {
                format!("service{}", random.below(services as usize))
            };
            // Both of a pair on one socket, as getaddrinfo does it.
            let socket = &sockets[pair as usize % SOCKETS];
            for is_aaaa in [false, true] {
                let bytes = query(sent.len() as u16, &name, is_aaaa);
                sent.push((Instant::now(), is_missing, is_aaaa));
                socket.send(&bytes)?;
            }
            pair += 1;
            continue;
        }
        let mut idle = true;
        for socket in &sockets {
            while let Ok(len) = socket.recv(&mut room) {
                idle = false;
                ensure!(len >= 12, "a short answer");
                // IDs are counted; fewer than 65536 queries are ever on their way.
                let low = u16::from_be_bytes([room[0], room[1]]);
                let newest = sent.len() - 1;
                let index = newest - usize::from((newest as u16).wrapping_sub(low));
                let (asked, is_missing, is_aaaa) = sent[index];
                times.push(asked.elapsed().as_secs_f64());
                let (code, answers) = (room[3] & 15, room[7]);
                let expected = match (is_missing, is_aaaa) {
                    (true, _) => (3, 0),
                    (false, true) => (0, 0),
                    (false, false) => (0, 1),
                };
                ensure!(is_echo || (code, answers) == expected, "a wrong answer: code {code}, {answers} records, expected {expected:?}");
            }
        }
        if idle {
            ensure!(start.elapsed() < BLOCK * 3 + Duration::from_secs(5), "{} of {total} answers are missing", total - times.len());
            if sent.len() == total || gap * pair > start.elapsed() + Duration::from_micros(60) {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
    Ok(times)
}
