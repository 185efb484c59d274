//! What IPVS costs, on a kernel that has it: in a guest whose clock counts instructions, so that a nanosecond is one.
//!
//! Everything runs on one processor, and nothing waits: a packet is through all namespaces when `send` returns. So the time
//! that passes is what was executed, in programs and kernel alike. Waiting would let time leap; it is measured, too.

mod paths;
mod servers;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use swarmesh_dataplane::{Balancing, try_ipvs};
use swarmesh_kernel::LinuxKernel;
use swarmesh_tests::netns::within;

use super::swarm::Sandbox;
use crate::{
    run::say,
    vm::{self, Series},
};

/// On the machine outside.
pub(crate) fn run(kernel: Series, work: &GuestArgs) -> Result<()> {
    let GuestArgs { blocks, rounds, services, tasks } = work;
    let words = ["bench-guest".to_owned(), blocks.to_string(), rounds.to_string(), services.to_string(), tasks.to_string()];
    vm::run_counted(kernel, &std::env::current_exe()?, &words)
}

#[derive(Args)]
pub(crate) struct GuestArgs {
    /// Of the ways to a VIP; none leaves them out
    pub(crate) blocks: usize,
    pub(crate) rounds: usize,
    /// Behind as many virtual servers; none leaves them out
    pub(crate) services: u32,
    pub(crate) tasks: u32,
}

/// Inside.
pub(crate) fn guest(args: &GuestArgs) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel to ask")?;
    say(&format!("Linux {}", release.trim()));
    let schedulers = within(&Sandbox::new("try")?.path(), || try_ipvs(&LinuxKernel))??;
    let balancing = Balancing::Ipvs { schedulers: Arc::new(schedulers) };
    if args.blocks > 0 {
        paths::run(args.blocks, &balancing)?;
    }
    if args.services > 0 {
        servers::run(args.rounds, args.services, args.tasks, &balancing)?;
    }
    Ok(())
}

/// What passed between two moments.
#[derive(Clone, Copy, Debug)]
struct Passed {
    /// Instructions, of all there is in the guest.
    busy: Duration,
    /// The time that leapt.
    idle: Duration,
}

struct Stopwatch {
    idle: Duration,
    at: Instant,
}

impl Stopwatch {
    fn start() -> Result<Self> {
        let idle = idle()?;
        Ok(Self { idle, at: Instant::now() })
    }

    fn stop(&self) -> Result<Passed> {
        let took = self.at.elapsed();
        let idle = idle()?.saturating_sub(self.idle);
        Ok(Passed { busy: took.saturating_sub(idle), idle })
    }
}

/// How long the guest's processor has had nothing to do, to the nanosecond.
fn idle() -> Result<Duration> {
    let timers = fs::read_to_string("/proc/timer_list").context("cannot read the processor's idle time")?;
    let line = timers.lines().find_map(|line| line.trim().strip_prefix(".idle_sleeptime"));
    let nanoseconds = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    nanoseconds.map(Duration::from_nanos).context("this kernel does not say how long its processor was idle")
}
