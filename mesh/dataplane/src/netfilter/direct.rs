//! The direct way: connections to a published TCP port whose task is on this node go past the ingress sandbox, from the
//! node's namespace to the task's leg on the node's bridge. That is one translation and two hops less.
//!
//! The node's table takes turns over all usable tasks; a turn of a task that is not here, or not known to be reached
//! directly, is the sandbox's. The sandbox then chooses among those only. Two namespaces cannot be changed in one step, and
//! need not be:
//!
//! - **The sandbox refuses only what has no usable task at all.** It serves the tasks that the node does not, and all of them
//!   when there is no such task. So whatever the node still or already sends there finds a task, in whatever order the two are
//!   committed, and however long one of them cannot be. In between, turns are uneven; nothing fails.
//! - **The node's slot of a task goes before what makes it answer.** A task counts as near only while its own table is
//!   applied, with the port among those that it takes from the bridge. A change that takes a port or the task away is
//!   withdrawn here first; one that brings them is told here last.
//! - **An address belongs to one task.** Docker gives an address on the bridge to the next container at once. The port is
//!   kept until the task's own table translates it, so a container that has the address of one that just went answers
//!   nothing of its predecessor's; and while two tasks claim an address, neither is near.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use swarmesh_model::{Protocol, TaskId};
use swarmesh_plan::{PortKey, PublishedPort, Scheduler, SourceMode, TaskIngress};

use crate::balancer::PASS;

/// Where a task takes connections from its own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    /// Its address on the node's bridge.
    pub(crate) address: Ipv4Addr,
    /// The bridge's own, as the task knows it.
    pub(crate) gateway: IpAddr,
    /// Published TCP ports that its table takes there.
    pub(crate) ports: BTreeSet<u16>,
}

/// The doors of this node's tasks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doors {
    open: BTreeMap<TaskId, Door>,
    holders: HashMap<Ipv4Addr, BTreeSet<TaskId>>,
    /// The last known address of each task of the plan, for connections that it still has.
    known: BTreeMap<TaskId, Ipv4Addr>,
}

impl Doors {
    pub(crate) fn get(&self, task: &TaskId) -> Option<&Door> {
        self.open.get(task)
    }

    /// Returns the ports whose connections may go another way now.
    pub(crate) fn set(&mut self, task: &TaskId, door: Option<Door>) -> BTreeSet<u16> {
        let old = self.open.get(task);
        if old == door.as_ref() {
            return BTreeSet::new();
        }
        let old = old.cloned();
        let mut ports = BTreeSet::new();
        for door in old.iter().chain(&door) {
            let others = self.holders.get(&door.address).into_iter().flatten().filter_map(|t| self.open.get(t));
            ports.extend(others.chain([door]).flat_map(|d| d.ports.iter().copied()));
        }
        if let Some(old) = old
            && let Some(holders) = self.holders.get_mut(&old.address)
        {
            holders.remove(task);
            if holders.is_empty() {
                self.holders.remove(&old.address);
            }
        }
        match door {
            Some(door) => {
                self.holders.entry(door.address).or_default().insert(task.clone());
                self.known.insert(task.clone(), door.address);
                self.open.insert(task.clone(), door);
            }
            None => {
                self.open.remove(task);
            }
        }
        ports
    }

    /// The task is no longer this node's.
    pub(crate) fn forget(&mut self, task: &TaskId) {
        self.known.remove(task);
    }

    pub(crate) fn known(&self, task: &TaskId) -> Option<Ipv4Addr> {
        self.known.get(task).copied()
    }

    /// Where `task` takes `port` on the bridge that has the address `bridge`.
    fn address(&self, task: &TaskId, port: u16, bridge: Option<IpAddr>) -> Option<Ipv4Addr> {
        let door = self.open.get(task)?;
        let alone = self.holders.get(&door.address).is_some_and(|h| h.len() == 1);
        (alone && Some(door.gateway) == bridge && door.ports.contains(&port)).then_some(door.address)
    }

    /// Divides a published port's IPv4 backends.
    pub(crate) fn divide(&self, key: PortKey, port: &PublishedPort, bridge: Option<IpAddr>) -> Division {
        let mut division = Division::default();
        let suits = suits(key, port);
        for backend in port.serving().filter(|b| b.address.is_ipv4()) {
            match self.address(&backend.task, key.1, bridge).filter(|_| suits) {
                Some(address) => division.near.push(address.into()),
                None => division.far.push(backend.address),
            }
            division.all.push(backend.address);
        }
        division
    }

    /// Each task that is reached directly, and where.
    pub(crate) fn addresses(&self, bridge: Option<IpAddr>) -> BTreeMap<TaskId, Ipv4Addr> {
        let near = self.open.iter().filter_map(|(task, door)| {
            let port = door.ports.first()?;
            Some((task.clone(), self.address(task, *port, bridge)?))
        });
        near.collect()
    }
}

/// Who serves a published port, over IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Division {
    /// Addresses on the node's bridge.
    near: Vec<IpAddr>,
    /// Ingress addresses of the other tasks.
    far: Vec<IpAddr>,
    /// Ingress addresses of all.
    all: Vec<IpAddr>,
}

impl Division {
    /// What the node takes turns over; empty if the sandbox serves all.
    pub(crate) fn turns(&self) -> Vec<IpAddr> {
        if self.near.is_empty() {
            return Vec::new();
        }
        self.near.iter().copied().chain(std::iter::repeat_n(PASS, self.far.len())).collect()
    }

    /// Whom the sandbox serves.
    pub(crate) fn sandbox(self) -> Vec<IpAddr> {
        if self.far.is_empty() { self.all } else { self.far }
    }
}

/// Services whose connections all have to be chosen in one place, or disguised in the sandbox, go through it.
fn suits((protocol, _): PortKey, port: &PublishedPort) -> bool {
    protocol == Protocol::Tcp
        && port.policy.affinity.is_none()
        && port.policy.scheduler != Scheduler::SourceHash
        && port.policy.source != SourceMode::Snat
}

/// Published TCP ports that a task takes from its node's bridge: all but those that host mode has another meaning for there.
pub(crate) fn near_ports(ingress: &TaskIngress) -> BTreeSet<u16> {
    let tcp = ingress.published.keys().filter(|(protocol, _)| *protocol == Protocol::Tcp);
    tcp.map(|(_, port)| *port).filter(|port| !ingress.host.contains(port)).collect()
}

/// Whether new connections to a published port go straight to `task`, if it is one of [`crate::PlaneStatus::near`].
pub fn goes_direct(key: PortKey, port: &PublishedPort, ingress: &TaskIngress) -> bool {
    suits(key, port) && near_ports(ingress).contains(&key.1)
}
