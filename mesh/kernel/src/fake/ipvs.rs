//! IPVS in memory: what is refused and why, and nothing of packets. Counters stay zero.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use nix::libc;

use crate::{
    Counters, Forwarding, IpvsInfo, IpvsOp, IpvsTimeouts, KernelError, RealId, RealServer, RealState, Tunnel, VirtualId, VirtualServer,
    VirtualState, ipvs, netlink::Answer,
};

/// Modules that Debian's kernels have.
const SCHEDULERS: [&str; 13] = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"];
const ENGINES: [&str; 1] = ["sip"];

/// One namespace's IPVS.
#[derive(Debug)]
pub(super) struct FakeIpvs {
    /// The kernel has no such module.
    pub(super) absent: bool,
    servers: BTreeMap<VirtualId, (VirtualServer, BTreeMap<RealId, RealServer>)>,
    timeouts: IpvsTimeouts,
}

impl Default for FakeIpvs {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let timeouts = IpvsTimeouts { tcp: seconds(900), tcp_fin: seconds(120), udp: seconds(300) };
        Self { absent: false, servers: BTreeMap::new(), timeouts }
    }
}

impl FakeIpvs {
    pub(super) fn present(&self) -> Result<(), KernelError> {
        if self.absent {
            return Err(KernelError::NotSupported { action: "use IPVS".to_owned(), detail: "no module ip_vs".to_owned() });
        }
        Ok(())
    }

    pub(super) fn apply(&mut self, op: &IpvsOp) -> Result<(), KernelError> {
        ipvs::check(op)?;
        self.done(op).map_err(|errno| op.refusal(Answer { errno, explanation: None, offset: None }))
    }

    fn done(&mut self, op: &IpvsOp) -> Result<(), i32> {
        match op {
            IpvsOp::AddVirtual(server) => {
                if self.servers.contains_key(&server.id) {
                    return Err(libc::EEXIST);
                }
                modules(server)?;
                self.servers.insert(server.id, (server.clone(), BTreeMap::new()));
            }
            IpvsOp::SetVirtual(server) => {
                let (held, _) = self.servers.get_mut(&server.id).ok_or(libc::ESRCH)?;
                modules(server)?;
                *held = server.clone();
            }
            IpvsOp::DeleteVirtual(id) => {
                self.servers.remove(id).ok_or(libc::ESRCH)?;
            }
            IpvsOp::AddReal { of, real } => {
                let reals = self.reals(of)?;
                sound(of, real)?;
                if reals.contains_key(&real.id) {
                    return Err(libc::EEXIST);
                }
                single_host(real.id.address)?;
                reals.insert(real.id, *real);
            }
            IpvsOp::SetReal { of, real } => {
                let reals = self.reals(of)?;
                sound(of, real)?;
                *reals.get_mut(&real.id).ok_or(libc::ENOENT)? = *real;
            }
            IpvsOp::DeleteReal { of, real } => {
                self.reals(of)?.remove(real).ok_or(libc::ENOENT)?;
            }
            IpvsOp::Zero(Some(id)) => {
                self.reals(id)?;
            }
            IpvsOp::Zero(None) => {}
            IpvsOp::Flush => self.servers.clear(),
            IpvsOp::SetTimeouts(timeouts) => self.timeouts = *timeouts,
        }
        Ok(())
    }

    fn reals(&mut self, of: &VirtualId) -> Result<&mut BTreeMap<RealId, RealServer>, i32> {
        self.servers.get_mut(of).map(|(_, reals)| reals).ok_or(libc::ESRCH)
    }

    pub(super) fn all(&self) -> Vec<(VirtualServer, Vec<RealServer>)> {
        self.servers.values().map(|(server, reals)| (server.clone(), reals.values().copied().collect())).collect()
    }

    pub(super) fn virtual_servers(&self) -> Result<Vec<VirtualState>, KernelError> {
        self.present()?;
        let state = |(server, _): &(VirtualServer, _)| VirtualState { server: server.clone(), counters: Counters::default() };
        Ok(self.servers.values().map(state).collect())
    }

    pub(super) fn real_servers(&self, of: &VirtualId) -> Result<Vec<RealState>, KernelError> {
        self.present()?;
        let state =
            |server: &RealServer| RealState { server: *server, active: 0, inactive: 0, persistent: 0, counters: Counters::default() };
        Ok(self.servers.get(of).into_iter().flat_map(|(_, reals)| reals.values().map(state)).collect())
    }

    pub(super) fn timeouts(&self) -> Result<IpvsTimeouts, KernelError> {
        self.present().map(|()| self.timeouts)
    }

    pub(super) fn info(&self) -> Result<IpvsInfo, KernelError> {
        self.present().map(|()| IpvsInfo { version: (1, 2, 1), connection_table: 4096 })
    }
}

fn modules(server: &VirtualServer) -> Result<(), i32> {
    let known =
        SCHEDULERS.contains(&server.scheduler.name()) && server.engine.as_ref().is_none_or(|engine| ENGINES.contains(&engine.as_str()));
    if known { Ok(()) } else { Err(libc::ENOENT) }
}

/// In the kernel's order.
fn sound(of: &VirtualId, real: &RealServer) -> Result<(), i32> {
    if of.is_v6() != real.id.address.is_ipv6() && !matches!(real.forwarding, Forwarding::Tunnel(_)) {
        return Err(libc::EINVAL);
    }
    if i32::try_from(real.weight).is_err() || real.lower_threshold > real.upper_threshold {
        return Err(libc::ERANGE);
    }
    if matches!(real.forwarding, Forwarding::Tunnel(Tunnel::Gue { port: 0, .. })) {
        return Err(libc::EINVAL);
    }
    Ok(())
}

fn single_host(address: IpAddr) -> Result<(), i32> {
    let single = match address {
        IpAddr::V4(address) => !(address.is_multicast() || address.is_broadcast() || address.octets()[0] == 0),
        IpAddr::V6(address) => !(address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local()),
    };
    if single { Ok(()) } else { Err(libc::EINVAL) }
}
