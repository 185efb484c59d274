//! What the engine needs of a data plane.

use std::{net::IpAddr, os::fd::BorrowedFd, time::Instant};

use swarmesh_dataplane::{NetfilterPlane, PlaneStatus};
use swarmesh_plan::PlanDelta;

/// One way of bringing plans into the kernel. Nothing here fails: what could not be done yet is in the status as pending,
/// and is tried again.
pub trait Plane {
    fn set_node_address(&mut self, address: Option<IpAddr>, now: Instant);
    fn apply(&mut self, delta: &PlanDelta, now: Instant);
    /// Does what has become due, and says when to call again.
    fn run_due(&mut self, now: Instant) -> Option<Instant>;
    /// Readable when somebody else changed the kernel's tables.
    fn events(&self) -> Option<BorrowedFd<'_>>;
    fn check_events(&mut self, now: Instant);
    /// Begins to read everything back and to mend what differs, which [`Self::run_due`] goes on with.
    fn start_audit(&mut self, now: Instant);
    fn is_settled(&self) -> bool;
    fn status(&self, now: Instant) -> PlaneStatus;
}

impl Plane for NetfilterPlane {
    fn set_node_address(&mut self, address: Option<IpAddr>, now: Instant) {
        Self::set_node_address(self, address, now);
    }

    fn apply(&mut self, delta: &PlanDelta, now: Instant) {
        Self::apply(self, delta, now);
    }

    fn run_due(&mut self, now: Instant) -> Option<Instant> {
        Self::run_due(self, now)
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Self::events(self)
    }

    fn check_events(&mut self, now: Instant) {
        Self::check_events(self, now);
    }

    fn start_audit(&mut self, now: Instant) {
        Self::start_audit(self, now);
    }

    fn is_settled(&self) -> bool {
        Self::is_settled(self)
    }

    fn status(&self, now: Instant) -> PlaneStatus {
        Self::status(self, now)
    }
}
