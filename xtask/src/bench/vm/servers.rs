//! Virtual servers by the thousand: made, and changed one at a time.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroU32,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use swarmesh_dataplane::Balancing;
use swarmesh_kernel::{
    Forwarding, IpvsOp, Kernel, LinuxKernel, RealId, RealServer, SchedulerFlags, VirtualId, VirtualScheduler, VirtualServer,
};
use swarmesh_model::{Delta, Snapshot};

use super::{Passed, Stopwatch};
use crate::{
    bench::{
        stats::{median, percentile, ratio},
        swarm::{Ours, Sandbox, backend, snapshot, task},
    },
    run::say,
};

/// The first round is smaller by this, and discarded: the kernel's memory has grown by then.
const WARM_UP: u32 = 10;
const FLIPS: u32 = 40;
const SIZES: [u32; 3] = [10, 1_000, 10_000];
/// How often is asked whether the guest has come to rest, and what it may still be doing then: IPVS estimates rates.
const LOOK: Duration = Duration::from_secs(1);
const RESTS: Duration = Duration::from_millis(50);

pub(super) fn run(rounds: usize, services: u32, tasks: u32, balancing: &Balancing) -> Result<()> {
    cold(rounds, services, tasks, balancing)?;
    flips(services, tasks, balancing)
}

#[derive(Clone, Copy)]
enum Loader {
    Bindings,
    Ipvsadm,
    PlaneIpvs,
    PlaneNft,
}

const LOADERS: [Loader; 4] = [Loader::Bindings, Loader::Ipvsadm, Loader::PlaneIpvs, Loader::PlaneNft];

impl Loader {
    const fn name(self) -> &'static str {
        match self {
            Self::Bindings => "our bindings, virtual servers alone",
            Self::Ipvsadm => "`ipvsadm -R`, virtual servers alone",
            Self::PlaneIpvs => "ours on ipvs: maps of marks, too",
            Self::PlaneNft => "ours on nft",
        }
    }
}

fn cold(rounds: usize, services: u32, tasks: u32, balancing: &Balancing) -> Result<()> {
    let mut busy = vec![Vec::new(); LOADERS.len()];
    let mut idle = vec![Vec::new(); LOADERS.len()];
    for round in 0..=rounds {
        let size = if round > 0 { services } else { services.div_ceil(WARM_UP) };
        for (index, loader) in LOADERS.into_iter().enumerate() {
            let passed = load(loader, size, tasks, balancing)?;
            say(&format!("{size} services, {}: {passed:?}", loader.name()));
            settle()?;
            if round > 0 {
                busy[index].push(passed.busy.as_secs_f64());
                idle[index].push(passed.idle.as_secs_f64());
            }
        }
    }
    say(&format!(
        "cold, {services} services x {tasks} tasks, {rounds} rounds behind a small one\n| what | instructions, 10⁹ | waited, s | against `ipvsadm -R` [95 % CI] |\n|---|---|---|---|"
    ));
    for (index, loader) in LOADERS.into_iter().enumerate() {
        say(&format!(
            "| {} | {:.3} | {:.3} | {} |",
            loader.name(),
            median(&busy[index]),
            median(&idle[index]),
            ratio(&busy[index], &busy[1])
        ));
    }
    Ok(())
}

/// A namespace with that many goes in the background, and that must not be counted.
fn settle() -> Result<()> {
    for _ in 0..120 {
        let watch = Stopwatch::start()?;
        thread::sleep(LOOK);
        if watch.stop()?.busy < RESTS {
            return Ok(());
        }
    }
    bail!("the guest does not come to rest")
}

fn load(loader: Loader, services: u32, tasks: u32, balancing: &Balancing) -> Result<Passed> {
    let sandbox = Sandbox::new("load")?;
    let mut ns = LinuxKernel.open(&sandbox.path())?;
    // Loads the module, and makes what a namespace has of IPVS.
    ns.ipvs_info()?;
    let passed = match loader {
        Loader::Bindings => {
            let ops = ops(services, tasks);
            let watch = Stopwatch::start()?;
            let outcomes = ns.ipvs_apply(&ops)?;
            let passed = watch.stop()?;
            outcomes.into_iter().collect::<Result<(), _>>()?;
            passed
        }
        Loader::Ipvsadm => {
            let text = text(services, tasks);
            let watch = Stopwatch::start()?;
            sandbox.run("ipvsadm", &["-R"], text)?;
            watch.stop()?
        }
        Loader::PlaneIpvs | Loader::PlaneNft => {
            let all = Delta::between(&Snapshot::default(), &snapshot(services, tasks));
            let balancing = if matches!(loader, Loader::PlaneIpvs) { balancing.clone() } else { Balancing::Nft };
            let mut ours = Ours::balancing(&sandbox, balancing);
            let change = ours.planner.update(&all);
            let watch = Stopwatch::start()?;
            ours.plane.apply(&change, Instant::now());
            let passed = watch.stop()?;
            ensure!(ours.plane.is_settled(), "{:?}", ours.plane.status(Instant::now()).places);
            passed
        }
    };
    if !matches!(loader, Loader::PlaneNft) {
        let servers = ns.virtual_servers()?;
        ensure!(servers.len() == services as usize, "{}: {} virtual servers", loader.name(), servers.len());
        for server in servers.iter().step_by(97) {
            let reals = ns.real_servers(&server.server.id)?.len();
            ensure!(reals == tasks as usize, "{}: {reals} real servers of {:?}", loader.name(), server.server.id);
        }
    }
    Ok(passed)
}

fn ops(services: u32, tasks: u32) -> Vec<IpvsOp> {
    let mut ops = Vec::new();
    for service in 0..services {
        let Some(mark) = NonZeroU32::new(service + 1) else { continue };
        let id = VirtualId::Mark { mark, v6: false };
        let flags = SchedulerFlags::default();
        ops.push(IpvsOp::AddVirtual(VirtualServer {
            id,
            scheduler: VirtualScheduler::RoundRobin,
            flags,
            one_packet: false,
            persistence: None,
            engine: None,
        }));
        ops.extend((service * tasks..(service + 1) * tasks).map(|number| IpvsOp::AddReal {
            of: id,
            real: RealServer {
                id: RealId { address: backend(number), port: 0 },
                weight: 1,
                forwarding: Forwarding::Masquerade,
                upper_threshold: 0,
                lower_threshold: 0,
            },
        }));
    }
    ops
}

fn text(services: u32, tasks: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        let mark = service + 1;
        text.push_str(&format!("-A -f {mark} -s rr\n"));
        for number in service * tasks..(service + 1) * tasks {
            text.push_str(&format!("-a -f {mark} -r {} -m -w 1\n", backend(number)));
        }
    }
    text
}

fn flips(services: u32, tasks: u32, balancing: &Balancing) -> Result<()> {
    say(&format!(
        "one task is replaced by another, {FLIPS} times; instructions, thousands: plan, then all to the commit\n\
         | plane | services x {tasks} | plan | whole, median | worst | waited, ms | whole against the smallest [95 % CI] |\n|---|---|---|---|---|---|---|"
    ));
    for balancing in [balancing, &Balancing::Nft] {
        let mut smallest: Option<Vec<f64>> = None;
        for size in SIZES.into_iter().filter(|size| *size <= services) {
            let sandbox = Sandbox::new("flip")?;
            let mut ours = Ours::balancing(&sandbox, balancing.clone());
            ours.apply(&Delta::between(&Snapshot::default(), &snapshot(size, tasks)))?;
            settle()?;
            let mut addresses: BTreeSet<IpAddr> = (0..size * tasks).map(backend).collect();
            let (mut plan, mut whole, mut idle) = (Vec::new(), Vec::new(), Vec::new());
            // The first ones find everything cold.
            for flip in 0..FLIPS + 2 {
                let (planned, passed) = one(&mut ours, size, tasks, flip, &mut addresses)?;
                if flip >= 2 {
                    plan.push(planned.as_secs_f64() * 1e6);
                    whole.push(passed.busy.as_secs_f64() * 1e6);
                    idle.push(passed.idle.as_secs_f64() * 1e3);
                }
            }
            ensure!(*balancing == Balancing::Nft || held(&sandbox)? == addresses, "the kernel holds other real servers than the plan has");
            let against = ratio(&whole, smallest.get_or_insert_with(|| whole.clone()));
            say(&format!(
                "| {} | {size} | {:.0} | {:.0} | {:.0} | {:.2} | {against} |",
                if *balancing == Balancing::Nft { "nft" } else { "ipvs" },
                median(&plan),
                median(&whole),
                percentile(&mut whole, 1.0),
                median(&idle),
            ));
            drop(sandbox);
            settle()?;
        }
    }
    Ok(())
}

/// One change. Returns what planning took, and what all of it took.
fn one(ours: &mut Ours, size: u32, tasks: u32, flip: u32, addresses: &mut BTreeSet<IpAddr>) -> Result<(Duration, Passed)> {
    // Never the same service twice in a row, and no task twice.
    let service = (flip * 7) % size;
    let gone = task(service, service * tasks + (flip / size) % tasks);
    let new = task(service, 4_000_000 + flip);
    addresses.remove(&gone.addresses[0].address);
    addresses.insert(new.addresses[0].address);
    let delta = Delta {
        version: u64::from(flip) + 2,
        tasks: [(gone.id.clone(), None), (new.id.clone(), Some(new.into()))].into(),
        ..Delta::default()
    };
    let watch = Stopwatch::start()?;
    let start = Instant::now();
    let change = ours.planner.update(&delta);
    let planned = start.elapsed();
    ours.plane.apply(&change, start);
    let passed = watch.stop()?;
    ensure!(ours.plane.is_settled(), "{:?}", ours.plane.status(Instant::now()).places);
    Ok((planned, passed))
}

/// All real servers' addresses.
fn held(sandbox: &Sandbox) -> Result<BTreeSet<IpAddr>> {
    let mut ns = LinuxKernel.open(&sandbox.path())?;
    let mut held = BTreeSet::new();
    for server in ns.virtual_servers()? {
        held.extend(ns.real_servers(&server.server.id)?.iter().map(|real| real.server.id.address));
    }
    Ok(held)
}
