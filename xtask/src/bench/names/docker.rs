//! Docker's own resolver: part of a real dockerd, which answers on 127.0.0.11 in the namespace of a container on a user-defined
//! network.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use swarmesh_tests::{
    dockerlab::{DockerLab, Rootfs},
    netns::{spawn_within, within},
};

use super::{
    load::{BLOCK, RATE, generate, is_up, nothing_exists},
    server::{Kind, Server},
};

/// Its lab sweeps what an earlier one of that name left, so the other namespaces of the bench have another name.
const LAB: &str = "benchdns";
const IMAGE: &str = "box:1";
/// A container has one address and as many aliases as one likes: containers are what costs an engine of a bench.
const ALIASES: u32 = 1000;
/// Of the load's names, the engine holds as many as it is made to hold in a few seconds.
const MOST_NAMES: u32 = 10_000;
const SLOWEST: u32 = RATE / 16;

pub(super) fn start(services: u32) -> Result<Server> {
    let names = services.min(MOST_NAMES);
    let lab = DockerLab::up(LAB, 1, 1)?;
    // Raft's heartbeats are none of the resolver's work.
    lab.docker(0, &["swarm", "leave", "--force"])?;
    let root = Rootfs::new(lab.work().join("box"))?;
    root.busybox(&["sleep"])?;
    lab.import_image(IMAGE, root.path())?;
    lab.docker(0, &["network", "create", "names"])?;
    // `--dns`: whoever is asked for names that do not exist is then asked from the container's namespace, where our upstream is.
    let container = |name: &str, aliases: &[String]| {
        let mut words = vec!["run", "--detach", "--name", name, "--network", "names", "--dns", "127.0.0.2"];
        words.extend(aliases.iter().map(String::as_str));
        words.extend([IMAGE, "sleep", "1000000"]);
        lab.docker(0, &words).map(drop)
    };
    container("asker", &[])?;
    let all: Vec<String> = (0..names).map(|n| format!("--network-alias=service{n}")).collect();
    let mut containers = 0;
    for aliases in all.chunks(ALIASES as usize) {
        container(&format!("holder{containers}"), aliases).with_context(|| format!("{} names", containers * ALIASES))?;
        containers += 1;
    }
    let place = lab.task_netns(0, "asker")?;
    let process = std::fs::read_to_string(lab.node_work(0)?.join("dockerd.pid"))?.trim().parse()?;
    spawn_within(&place, nothing_exists)?;
    let started = Instant::now();
    while !within(&place, || is_up(Kind::Docker.address(), false))? {
        ensure!(started.elapsed() < Duration::from_secs(10), "Docker's resolver does not know service0");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut server = Server::of_engine(lab, place, process, names);
    server.rate = rate(&server)?;
    server.note = format!(
        "asked at {} queries/s (half load: {}), where ours was asked as often for the comparison; {names} names, which are aliases of \
         {containers} containers; the engine is in no swarm, and keeps no answers of its upstream",
        server.rate,
        server.rate / 2
    );
    Ok(server)
}

/// The highest rate of a few at which it answers everything in time.
fn rate(server: &Server) -> Result<u32> {
    let mut rate = RATE;
    loop {
        let (names, started) = (server.names, Instant::now());
        let outcome = within(&server.place, move || generate(Kind::Docker.address(), names, false, 1, rate))?;
        if outcome.is_ok() && started.elapsed() < BLOCK.mul_f64(1.1) {
            return Ok(rate);
        }
        if rate <= SLOWEST {
            outcome?;
            bail!("it cannot keep up with {rate} queries/s");
        }
        rate /= 2;
    }
}
