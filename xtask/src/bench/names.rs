//! B7: names. CPU per query of each server at a fixed rate that none of them finds hard, and how long answers take, at that rate
//! and at half of it.
//!
//! Pairs of A and AAAA for random services of ten thousand, and every twentieth query a name that does not exist. The agent
//! asks upstream for those; the upstream is a thread of this program, so its cost is not the agent's.

mod dead;
mod docker;
mod load;
mod server;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use swarmesh_tests::netns::{spawn_within, within};

pub(crate) use self::load::echo;
use self::{
    load::{BLOCK, RATE, generate, nothing_exists},
    server::{Kind, Server},
};
use super::{
    stats::{Random, median, percentile, ratio},
    swarm::Sandbox,
};
use crate::run::say;

/// The only upstream.
const UPSTREAM: &str = "nameserver 127.0.0.2\n";

pub(crate) fn run(blocks: usize, services: u32) -> Result<()> {
    side_by_side(blocks, services)?;
    dead::run(blocks, services)
}

/// What one server did at one rate, block by block.
#[derive(Default)]
struct Figures {
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn side_by_side(blocks: usize, services: u32) -> Result<()> {
    let sandbox = Sandbox::new("names")?;
    let directory = tempfile::tempdir()?;
    let upstream = spawn_within(&sandbox.path(), nothing_exists)?;
    let mut servers: Vec<Server> = Vec::new();
    let mut failed: BTreeMap<Kind, String> = BTreeMap::new();
    for kind in Kind::ALL {
        match start(kind, &sandbox, directory.path(), services) {
            Ok(server) => servers.push(server),
            Err(error) if kind.is_optional() => {
                say(&format!("{} is left out: {error:#}", kind.name()));
                failed.insert(kind, format!("{error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    // Each at its rate and at half of it. Ours also at the rates of those that cannot keep up: a server that is asked less often
    // takes fewer queries at a time, and each costs it more.
    let mut rates: Vec<u32> = servers.iter().flat_map(|server| [server.rate, server.rate / 2]).collect();
    rates.sort_unstable();
    rates.dedup();
    let own = |server: &Server, rate: u32| server.kind == Kind::Ours || rate == server.rate || rate == server.rate / 2;
    let mut figures: BTreeMap<(Kind, u32), Figures> = BTreeMap::new();
    let mut random = Random(11);
    for block in 0..=blocks {
        let mut order: Vec<(usize, u32)> = (0..servers.len()).flat_map(|index| rates.iter().map(move |rate| (index, *rate))).collect();
        order.retain(|(index, rate)| own(&servers[*index], *rate));
        random.shuffle(&mut order);
        for (index, rate) in order {
            let server = &servers[index];
            if failed.contains_key(&server.kind) {
                continue;
            }
            match measure(server, rate, (block * 7 + index) as u64 + 1) {
                Ok(_) if block == 0 => {}
                Ok((cpu, mut times)) => {
                    let figures = figures.entry((server.kind, rate)).or_default();
                    figures.cpu.push(cpu / times.len() as f64 * 1e6);
                    figures.p50.push(percentile(&mut times, 0.5) * 1e6);
                    figures.p99.push(percentile(&mut times, 0.99) * 1e6);
                }
                Err(error) if server.kind.is_optional() => {
                    say(&format!("{} is left out from block {block} on: {error:#}", server.kind.name()));
                    failed.insert(server.kind, format!("{error:#}"));
                }
                Err(error) => return Err(error).with_context(|| server.kind.name()),
            }
        }
    }
    report(blocks, services, &servers, &figures, &failed);
    drop(servers);
    drop(upstream);
    Ok(())
}

fn start(kind: Kind, sandbox: &Sandbox, directory: &Path, services: u32) -> Result<Server> {
    if kind == Kind::Docker { docker::start(services) } else { Server::start(kind, sandbox, directory, services, UPSTREAM) }
}

/// Seconds of CPU, and what each answer took.
fn measure(server: &Server, rate: u32, seed: u64) -> Result<(f64, Vec<f64>)> {
    let before = server.cpu()?;
    let (address, names, is_echo) = (server.kind.address(), server.names, server.kind == Kind::Echo);
    let times = within(&server.place, move || generate(address, names, is_echo, seed, rate))??;
    Ok((server.cpu()? - before, times))
}

fn report(blocks: usize, services: u32, servers: &[Server], figures: &BTreeMap<(Kind, u32), Figures>, failed: &BTreeMap<Kind, String>) {
    say(&format!(
        "{services} services, {RATE} queries/s, A and AAAA, 5 % missing, {blocks} interleaved blocks of {} s; half load is {} queries/s\n\
         | server | CPU per query, µs | ours against it [95 % CI] | p50, µs | p99, µs | ours p99 against it [95 % CI] | p99 at half load, µs | ours against it [95 % CI] |\n\
         |---|---|---|---|---|---|---|---|",
        BLOCK.as_secs(),
        RATE / 2,
    ));
    for server in servers.iter().filter(|server| !failed.contains_key(&server.kind)) {
        let of = |kind: Kind, rate: u32| figures.get(&(kind, rate));
        let (rate, half) = (server.rate, server.rate / 2);
        let (Some(full), Some(calm)) = (of(server.kind, rate), of(server.kind, half)) else { continue };
        let (Some(ours), Some(ours_calm)) = (of(Kind::Ours, rate), of(Kind::Ours, half)) else { continue };
        say(&format!(
            "| {} | {:.2} | {} | {:.0} | {:.0} | {} | {:.0} | {} |",
            server.kind.name(),
            median(&full.cpu),
            ratio(&ours.cpu, &full.cpu),
            median(&full.p50),
            median(&full.p99),
            ratio(&ours.p99, &full.p99),
            median(&calm.p99),
            ratio(&ours_calm.p99, &calm.p99),
        ));
    }
    for server in servers.iter().filter(|server| !server.note.is_empty()) {
        say(&format!("{}: {}", server.kind.name(), server.note));
    }
    for (kind, why) in failed {
        say(&format!("{}: no figures: {why}", kind.name()));
    }
}
