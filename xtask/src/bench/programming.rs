//! B5: how long until a large table is in the kernel, and until a change of one endpoint in it reaches a packet.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use swarmesh_model::{Delta, Snapshot};
use swarmesh_tests::netns::within;

use super::{
    stats::percentile,
    swarm::{Ours, Sandbox, ask, backend, snapshot, task, vip},
};
use crate::run::say;

const FLIPS: u32 = 1_000;

pub(crate) fn run(services: u32, tasks: u32) -> Result<()> {
    cold(services, tasks)?;
    flips(services, tasks)?;
    // The cost of a flip must not follow the size of the table.
    flips(1, tasks)
}

fn cold(services: u32, tasks: u32) -> Result<()> {
    let all = Delta::between(&Snapshot::default(), &snapshot(services, tasks));
    let elements: String = {
        let mut text = String::from("table inet peer {\nmap front { type ipv4_addr : mark; elements = { ");
        for service in 0..services {
            text.push_str(&format!("{} : 1, ", vip(service)));
        }
        text.push_str("} }\nmap slot { type ipv4_addr . mark : ipv4_addr; elements = { ");
        for service in 0..services {
            for slot in 0..tasks {
                text.push_str(&format!("{} . {slot} : {}, ", vip(service), backend(service * tasks + slot)));
            }
        }
        text + "} }\n}\n"
    };
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let sandbox = Sandbox::new("cold")?;
        let took = Ours::new(&sandbox).apply(&all)?.as_secs_f64();
        let sandbox = Sandbox::new("cold-nft")?;
        let by_nft = sandbox.run("nft", &["-f", "-"], elements.clone())?.as_secs_f64();
        if round > 0 {
            ours.push(took);
            peer.push(by_nft);
        }
    }
    let against = super::stats::ratio(&ours, &peer);
    say(&format!(
        "cold load of {services} services x {tasks} tasks, plan included: {:.3} s (worst {:.3}); the same elements by `nft -f`: {:.3} s; ratio {against}",
        percentile(&mut ours, 0.5),
        percentile(&mut ours, 1.0),
        percentile(&mut peer, 0.5),
    ));
    Ok(())
}

fn flips(services: u32, tasks: u32) -> Result<()> {
    let sandbox = Sandbox::new("flip")?;
    drop(sandbox.serve()?);
    let mut ours = Ours::new(&sandbox);
    ours.apply(&Delta::between(&Snapshot::default(), &snapshot(services, tasks)))?;
    let (mut programmed, mut seen) = (Vec::new(), Vec::new());
    for flip in 0..FLIPS {
        let service = flip % services;
        let old = service * tasks + (flip / services) % tasks;
        // One task is replaced by another, back and forth.
        let turn = flip / services / tasks;
        let fresh = 4_000_000 + flip;
        let gone = if turn == 0 { task(service, old).id } else { task(service, 4_000_000 + flip - services * tasks).id };
        let new = task(service, fresh);
        let address = new.addresses[0].address;
        let delta =
            Delta { version: u64::from(flip) + 2, tasks: [(gone, None), (new.id.clone(), Some(new.into()))].into(), ..Delta::default() };
        let start = Instant::now();
        programmed.push(ours.apply(&delta)?.as_secs_f64() * 1e3);
        let target = SocketAddr::new(vip(service), 80);
        let found = within(&sandbox.path(), move || -> std::io::Result<bool> {
            // One round of the round robin must meet the new one.
            for _ in 0..tasks {
                if ask(target)? == address {
                    return Ok(true);
                }
            }
            Ok(false)
        })??;
        seen.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(found, "flip {flip}: the new backend got no packet in one round");
    }
    let p = |samples: &mut Vec<f64>, f| percentile(samples, f);
    say(&format!(
        "one flip with {services} services x {tasks} tasks resident, {FLIPS} times, ms: event to commit p50 {:.3} p99 {:.3} max {:.3}; event to a packet at the new backend p50 {:.3} p99 {:.3} max {:.3}",
        p(&mut programmed, 0.5),
        p(&mut programmed, 0.99),
        p(&mut programmed, 1.0),
        p(&mut seen, 0.5),
        p(&mut seen, 0.99),
        p(&mut seen, 1.0),
    ));
    // Let the kernel's deferred freeing settle before the next measurement.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}
