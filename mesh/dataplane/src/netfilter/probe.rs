//! Whether a plane's kernel features are there: tried in a namespace that nobody else sees.

use std::{collections::BTreeSet, net::Ipv4Addr, num::NonZeroU32};

use swarmesh_kernel::{IpvsOp, Kernel, KernelError, SchedulerFlags, VirtualId, VirtualScheduler, VirtualServer};
use swarmesh_plan::Scheduler;

use super::table::{Debts, Table};
use crate::{
    layout::{IngressParameters, TaskParameters, VIRTUAL_MARK, ingress_skeleton, task_skeleton},
    virtuals::virtual_scheduler,
};

const SCHEDULERS: [Scheduler; 6] = [
    Scheduler::RoundRobin,
    Scheduler::WeightedRoundRobin,
    Scheduler::LeastConnections,
    Scheduler::WeightedLeastConnections,
    Scheduler::SourceHash,
    Scheduler::Maglev,
];

/// Tries all that virtual servers ([`Balancing::Ipvs`](super::Balancing)) need in the calling thread's namespace, which must be a scratch one with a loopback
/// interface: tables, rules and sysctls stay in it. Loads the modules that it uses. Returns what these can do.
///
/// # Errors
///
/// What the kernel would not do.
pub fn try_ipvs(kernel: &dyn Kernel) -> Result<BTreeSet<Scheduler>, KernelError> {
    let mut table = Table::open(kernel, None, Debts::default())?;
    table.load(&ingress_skeleton(&IngressParameters {
        bridge_leg: "lo".to_owned(),
        ingress_leg: "lo".to_owned(),
        mtu: 1500,
        virtuals: true,
    }))?;
    // A task's table has other sets by the same names.
    table.replace(&task_skeleton(&TaskParameters {
        ingress_leg: Some("lo".to_owned()),
        bridge_leg: Some(("lo".to_owned(), Ipv4Addr::LOCALHOST)),
        virtuals: true,
    }))?;
    table.prepare_ipvs()?;
    let mut schedulers = BTreeSet::new();
    for (scheduler, number) in SCHEDULERS.into_iter().zip(1..) {
        let (Some(name), Some(mark)) = (virtual_scheduler(scheduler), NonZeroU32::new(VIRTUAL_MARK + number)) else { continue };
        let id = VirtualId::Mark { mark, v6: false };
        match try_scheduler(&mut table, id, name) {
            Ok(()) => _ = schedulers.insert(scheduler),
            // A service that asks for it is told.
            Err(KernelError::NotSupported { .. }) if scheduler != Scheduler::RoundRobin => {}
            Err(error) => return Err(error),
        }
    }
    Ok(schedulers)
}

fn try_scheduler(table: &mut Table, id: VirtualId, scheduler: VirtualScheduler) -> Result<(), KernelError> {
    let flags = SchedulerFlags::default();
    let server = VirtualServer { id, scheduler, flags, one_packet: false, persistence: None, engine: None };
    table.program(&[IpvsOp::AddVirtual(server)])?;
    table.program(&[IpvsOp::DeleteVirtual(id)])
}
