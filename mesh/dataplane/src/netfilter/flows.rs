//! Established flows of backends that leave: when they are cut, and which.
//!
//! A draining backend keeps its flows for the service's drain time. Once it is gone, UDP flows are cut at once, since
//! their sender would never learn; TCP is left to its ends, which the closing task has told already.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use swarmesh_model::{NetworkId, Protocol};
use swarmesh_plan::{Backend, BackendState, NodePlan, PlanDelta, PortKey};

use super::table::UDP;

/// The frontend whose flows are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum At {
    Vip(NetworkId, IpAddr),
    Port(PortKey),
}

/// Flows to cut, once the rules that replace them are in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    pub(crate) at: At,
    pub(crate) backend: IpAddr,
    /// `None`: whatever the protocol.
    pub(crate) protocol: Option<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    /// When the drain of a backend is over.
    drains: HashMap<(At, IpAddr), Instant>,
}

impl Flows {
    /// Compares the backends before and after a change.
    pub(crate) fn note(&mut self, old: &NodePlan, delta: &PlanDelta, now: Instant) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for (network, changes) in &delta.vips {
            for (vip, new) in changes {
                let before = old.networks.get(network).and_then(|v| v.get(vip));
                let (was, is) = (before.map_or(&[][..], |s| &s.backends), new.as_ref().map_or(&[][..], |s| &s.backends));
                let drain = new.as_ref().map_or(Duration::ZERO, |s| s.policy.drain);
                self.compare(&At::Vip(network.clone(), *vip), Some(UDP), was, is, drain, now, &mut cuts);
            }
        }
        for (key, new) in &delta.published {
            let before = old.published.get(key);
            let (was, is) = (before.map_or(&[][..], |p| &p.backends), new.as_ref().map_or(&[][..], |p| &p.backends));
            let drain = new.as_ref().map_or(Duration::ZERO, |p| p.policy.drain);
            let connectionless = (key.0 == Protocol::Udp).then_some(UDP);
            self.compare(&At::Port(*key), connectionless, was, is, drain, now, &mut cuts);
        }
        cuts
    }

    #[expect(clippy::too_many_arguments, reason = "one comparison, used for VIPs and for ports")]
    fn compare(
        &mut self,
        at: &At,
        connectionless: Option<u8>,
        was: &[Backend],
        is: &[Backend],
        drain: Duration,
        now: Instant,
        cuts: &mut Vec<Cut>,
    ) {
        let present: BTreeSet<IpAddr> = is.iter().map(|b| b.address).collect();
        for gone in was.iter().filter(|b| !present.contains(&b.address)) {
            self.drains.remove(&(at.clone(), gone.address));
            if let Some(protocol) = connectionless {
                cuts.push(Cut { at: at.clone(), backend: gone.address, protocol: Some(protocol) });
            }
        }
        for backend in is {
            let key = (at.clone(), backend.address);
            match backend.state {
                BackendState::Ready => {
                    self.drains.remove(&key);
                }
                BackendState::Draining => {
                    self.drains.entry(key).or_insert(now + drain);
                }
            }
        }
    }

    /// The flows whose time is up.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Cut> {
        let over: Vec<(At, IpAddr)> = self.drains.iter().filter(|(_, end)| **end <= now).map(|(k, _)| k.clone()).collect();
        over.into_iter()
            .map(|key| {
                self.drains.remove(&key);
                Cut { at: key.0, backend: key.1, protocol: None }
            })
            .collect()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.drains.values().min().copied()
    }
}
