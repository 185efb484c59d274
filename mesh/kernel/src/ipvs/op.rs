//! One change to IPVS, and what a refusal of it means.

use std::fmt;

use nix::libc;
use serde::Serialize;

use super::{IpvsTimeouts, RealId, RealServer, VirtualId, VirtualServer};
use crate::{KernelError, netlink::Answer};

/// One change. Each is done alone, in order; a refused one stops none of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum IpvsOp {
    /// Adds a virtual server without real servers, which then refuses what comes.
    AddVirtual(VirtualServer),
    /// Changes what is there, connections and real servers untouched.
    SetVirtual(VirtualServer),
    /// Removes it, with its real servers.
    DeleteVirtual(VirtualId),
    /// Adds a real server.
    AddReal {
        /// To this one.
        of: VirtualId,
        /// The new one.
        real: RealServer,
    },
    /// Changes what is there, connections untouched.
    SetReal {
        /// Of this one.
        of: VirtualId,
        /// As it shall be.
        real: RealServer,
    },
    /// Removes a real server.
    DeleteReal {
        /// From this one.
        of: VirtualId,
        /// Which one.
        real: RealId,
    },
    /// Sets counters to zero: one virtual server's with its real servers', or all of the namespace.
    Zero(Option<VirtualId>),
    /// Removes all virtual servers of the namespace, whoever made them.
    Flush,
    /// Sets all three timeouts of the namespace.
    SetTimeouts(IpvsTimeouts),
}

impl fmt::Display for IpvsOp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVirtual(server) => {
                write!(formatter, "add the virtual server {} with scheduler {}", server.id, server.scheduler.name())
            }
            Self::SetVirtual(server) => write!(formatter, "set the virtual server {} to scheduler {}", server.id, server.scheduler.name()),
            Self::DeleteVirtual(id) => write!(formatter, "delete the virtual server {id}"),
            Self::AddReal { of, real } => write!(formatter, "add the real server {} with weight {} to {of}", real.id, real.weight),
            Self::SetReal { of, real } => write!(formatter, "set the real server {} of {of} to weight {}", real.id, real.weight),
            Self::DeleteReal { of, real } => write!(formatter, "delete the real server {real} of {of}"),
            Self::Zero(Some(id)) => write!(formatter, "zero the counters of the virtual server {id}"),
            Self::Zero(None) => write!(formatter, "zero all counters of IPVS"),
            Self::Flush => write!(formatter, "delete all virtual servers"),
            Self::SetTimeouts(timeouts) => {
                let IpvsTimeouts { tcp, tcp_fin, udp } = timeouts;
                write!(formatter, "set the timeouts of IPVS to {tcp:?}, {tcp_fin:?} and {udp:?}")
            }
        }
    }
}

impl IpvsOp {
    /// Sorts a refusal by what the caller can do about it. ENOENT is the one that depends on the request: of a virtual server
    /// it is the scheduler or the persistence engine that is missing, of a real server the real server itself (ESRCH is the
    /// virtual one; `ip_vs_genl_set_cmd` in `net/netfilter/ipvs/ip_vs_ctl.c`).
    pub(crate) fn refusal(&self, answer: Answer) -> KernelError {
        match (self, answer.errno) {
            (Self::AddVirtual(server) | Self::SetVirtual(server), libc::ENOENT) => {
                let engine = server.engine.as_ref().map(|name| format!(" or ip_vs_pe_{name}")).unwrap_or_default();
                let detail = format!("no module ip_vs_{}{engine}", server.scheduler.name());
                KernelError::NotSupported { action: self.to_string(), detail }
            }
            (Self::AddReal { of, real } | Self::SetReal { of, real }, libc::EINVAL) => {
                let why = match of.is_v6() == real.id.address.is_ipv6() {
                    true => "its address is none of a single host's, or its tunnel has no port",
                    false => "a real server of the other family needs a tunnel, and no synchronization daemon",
                };
                KernelError::protocol(self.to_string(), why)
            }
            (Self::AddReal { .. } | Self::SetReal { .. }, libc::ERANGE) => {
                KernelError::protocol(self.to_string(), "the weight is above 2147483647, or the lower threshold above the upper one")
            }
            (_, libc::EINVAL | libc::ERANGE | libc::EMSGSIZE) => {
                KernelError::protocol(self.to_string(), answer.explanation.unwrap_or_else(|| "the kernel finds no sense in it".to_owned()))
            }
            _ => match answer.into_result(&self.to_string()) {
                Err(error) => error,
                Ok(()) => KernelError::protocol(self.to_string(), "a refusal without an error"),
            },
        }
    }
}
