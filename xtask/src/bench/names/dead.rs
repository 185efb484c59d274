//! Forwarding while the first upstream is dead: what others' names wait, and that ours do not.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_tests::netns::{spawn_within, within};

use super::{
    UPSTREAM,
    load::{BLOCK, nothing_exists, query},
    server::{Kind, Server},
};
use crate::{
    bench::{
        stats::{Random, median, percentile, ratio},
        swarm::Sandbox,
    },
    run::say,
};

/// Queries per second; every eleventh is for somebody else's name.
const MIXED: u32 = 2200;
const EVERY: usize = 11;
/// Takes everything and says nothing.
const DEAD: &str = "127.0.0.3:53";

struct Place {
    server: Server,
    _sandbox: Sandbox,
    _directory: tempfile::TempDir,
    local: Vec<f64>,
    /// After the first second of the first block.
    forwarded: Vec<f64>,
    first_second: Vec<f64>,
}

pub(super) fn run(blocks: usize, services: u32) -> Result<()> {
    let mut places = Vec::new();
    for (name, upstream) in [("well", UPSTREAM.to_owned()), ("dead", format!("nameserver 127.0.0.3\n{UPSTREAM}"))] {
        let (sandbox, directory) = (Sandbox::new(&format!("names-{name}"))?, tempfile::tempdir()?);
        spawn_within(&sandbox.path(), nothing_exists)?;
        let server = Server::start(Kind::Ours, &sandbox, directory.path(), services, &upstream)?;
        places.push(Place {
            server,
            _sandbox: sandbox,
            _directory: directory,
            local: Vec::new(),
            forwarded: Vec::new(),
            first_second: Vec::new(),
        });
    }
    // Its room for datagrams fills, and then they are lost, as on the way to a host that is not there.
    let dead = within(&places[1].server.place, || UdpSocket::bind(DEAD))?.context(DEAD)?;
    let mut random = Random(13);
    for block in 0..=blocks {
        let mut order = [0, 1];
        random.shuffle(&mut order);
        for index in order {
            let place = &mut places[index];
            let mut times = within(&place.server.place, move || mixed(services, block))??;
            if block > 0 {
                place.local.push(percentile(&mut times.local, 0.99) * 1e6);
            }
            for (since, took) in times.forwarded {
                let is_first = block == 0 && since < 1.0;
                if is_first { &mut place.first_second } else { &mut place.forwarded }.push(took * 1e3);
            }
        }
    }
    drop(dead);
    say(&format!(
        "\n{MIXED} queries/s, every {EVERY}th for another name each, to be asked upstream; {blocks} interleaved blocks of {} s and one before them\n\
         | upstreams | p99 of ours, µs | against both well [95 % CI] | forwarded p50, ms | p99, ms | worst, ms | worst in the first second, ms |\n\
         |---|---|---|---|---|---|---|",
        BLOCK.as_secs()
    ));
    let well = places[0].local.clone();
    for (place, name) in places.iter_mut().zip(["one, well", "the first dead, the second well"]) {
        say(&format!(
            "| {name} | {:.0} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            median(&place.local),
            ratio(&place.local, &well),
            percentile(&mut place.forwarded, 0.5),
            percentile(&mut place.forwarded, 0.99),
            percentile(&mut place.forwarded, 1.0),
            percentile(&mut place.first_second, 1.0),
        ));
    }
    say("Targets: the first row's p99 of ours; p99 of forwarded ones at most 100 ms.");
    Ok(())
}

#[derive(Default)]
struct Times {
    local: Vec<f64>,
    /// When since the block's beginning, and how long.
    forwarded: Vec<(f64, f64)>,
}

/// Asks for names of ours and, in between, for others that nobody has asked for yet. Every one is answered, or it is an error.
fn mixed(services: u32, block: usize) -> Result<Times> {
    let address: SocketAddr = Kind::Ours.address();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let mut random = Random((block as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let total = (f64::from(MIXED) * BLOCK.as_secs_f64()) as usize;
    let mut sent: Vec<Instant> = Vec::with_capacity(total);
    let mut is_answered = vec![false; total];
    let (mut times, mut room, mut answered) = (Times::default(), [0; 2048], 0);
    let start = Instant::now();
    while answered < total {
        if sent.len() < total && start.elapsed().as_secs_f64() >= sent.len() as f64 / f64::from(MIXED) {
            let is_forwarded = sent.len().is_multiple_of(EVERY);
            let name = if is_forwarded {
                format!("absent{block}.of{}.test", sent.len())
            } else {
                format!("service{}", random.below(services as usize))
            };
            let bytes = query(sent.len() as u16, &name, false);
            sent.push(Instant::now());
            socket.send(&bytes)?;
        }
        let mut idle = true;
        while let Ok(len) = socket.recv(&mut room) {
            idle = false;
            ensure!(len >= 12, "a short answer");
            let index = usize::from(u16::from_be_bytes([room[0], room[1]]));
            let asked = sent.get(index).context("an answer to nothing")?;
            ensure!(!std::mem::replace(&mut is_answered[index], true), "answered twice");
            answered += 1;
            let took = asked.elapsed().as_secs_f64();
            let is_forwarded = index.is_multiple_of(EVERY);
            let (code, records) = (room[3] & 15, room[7]);
            let expected = if is_forwarded { (3, 0) } else { (0, 1) };
            ensure!((code, records) == expected, "a wrong answer: code {code}, {records} records, expected {expected:?}");
            if is_forwarded {
                times.forwarded.push((asked.duration_since(start).as_secs_f64(), took));
            } else {
                times.local.push(took);
            }
        }
        if idle {
            ensure!(start.elapsed() < BLOCK + Duration::from_secs(6), "{} of {total} answers are missing", total - answered);
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    Ok(times)
}
