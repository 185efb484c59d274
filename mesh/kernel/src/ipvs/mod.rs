//! IPVS by generic netlink: virtual servers, their real servers, counters and timeouts.
//!
//! Nothing here knows why a virtual server is there. The codec (`encode`, `decode`) is functions between these types and
//! neli's message types; [`IpvsSocket`] is the only one that talks to a kernel.
//!
//! What IPVS is like, and nobody can change from here:
//! - There are no transactions. Each request is done alone, so [`IpvsSocket::apply`] has a result for each.
//! - What it lists has no mark of consistency: IPVS never says that a list was changed while it was read
//!   (`ip_vs_genl_dump_services` keeps no sequence). A list of real servers of no virtual server is empty, and no error.
//! - A real server that goes leaves its connections to sysctl `expire_nodest_conn`. Weight 0 leaves them alone.

mod codes;
mod decode;
mod encode;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod op;
mod socket;

use std::{fmt, net::IpAddr, num::NonZeroU32, time::Duration};

pub use op::IpvsOp;
use serde::Serialize;
pub use socket::IpvsSocket;

/// Why the kernel is not even asked, if it is not.
pub(crate) fn check(op: &IpvsOp) -> Result<(), crate::KernelError> {
    encode::op(op).map(|_| ()).map_err(|why| crate::KernelError::protocol(op.to_string(), why))
}

/// Which virtual server: the kernel has at most one with each of these per namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VirtualId {
    /// Whatever bears a firewall mark, of one family. Zero is no mark.
    Mark {
        /// In host byte order.
        mark: NonZeroU32,
        /// IPv6 packets; IPv4 ones have another virtual server.
        v6: bool,
    },
    /// What is sent to an address and port.
    Address {
        /// Transport protocol number: TCP, UDP or SCTP.
        protocol: u8,
        /// The virtual address.
        address: IpAddr,
        /// Zero for all ports, which the kernel serves with persistence only.
        port: u16,
    },
}

impl VirtualId {
    /// True if its packets are IPv6. Its real servers may differ, through a tunnel.
    pub const fn is_v6(&self) -> bool {
        match self {
            Self::Mark { v6, .. } => *v6,
            Self::Address { address, .. } => address.is_ipv6(),
        }
    }
}

impl fmt::Display for VirtualId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark { mark, v6: false } => write!(formatter, "mark {mark:#x}"),
            Self::Mark { mark, v6: true } => write!(formatter, "mark {mark:#x} of IPv6"),
            Self::Address { protocol, address: IpAddr::V4(address), port } => write!(formatter, "protocol {protocol} {address}:{port}"),
            Self::Address { protocol, address: IpAddr::V6(address), port } => write!(formatter, "protocol {protocol} [{address}]:{port}"),
        }
    }
}

/// Who picks the real server of a new connection. Each is a kernel module, `ip_vs_<name>`, loaded at first use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VirtualScheduler {
    /// `rr`: in turn.
    RoundRobin,
    /// `wrr`: in turn, by weight.
    WeightedRoundRobin,
    /// `lc`: who has the fewest connections.
    LeastConnection,
    /// `wlc`: who has the fewest connections for its weight.
    WeightedLeastConnection,
    /// `sh`: by the client's address.
    SourceHash,
    /// `mh`: by the client's address, and few clients move when a real server comes or goes.
    Maglev,
    /// Another one by its name of at most 15 bytes, such as `sed`.
    Named(String),
}

impl VirtualScheduler {
    /// As the kernel knows it.
    pub fn name(&self) -> &str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
            Self::SourceHash => "sh",
            Self::Maglev => "mh",
            Self::Named(name) => name,
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Self {
        let known = [
            Self::RoundRobin,
            Self::WeightedRoundRobin,
            Self::LeastConnection,
            Self::WeightedLeastConnection,
            Self::SourceHash,
            Self::Maglev,
        ];
        known.into_iter().find(|scheduler| scheduler.name() == name).unwrap_or_else(|| Self::Named(name.to_owned()))
    }
}

/// Three bits that each scheduler has its own use for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SchedulerFlags {
    /// `sched-1`. sh and mh: who hashes to a real server of weight 0 or above its threshold gets another one.
    pub fallback: bool,
    /// `sched-2`. sh and mh: the client's port counts, too.
    pub ports: bool,
    /// `sched-3`.
    pub third: bool,
}

/// A client stays with its real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Persistence {
    /// After the last connection; whole seconds, up to some 24 days.
    pub timeout: Duration,
    /// Clients whose addresses agree in so many bits count as one: 32 or 128 for each of its own.
    pub prefix: u8,
}

/// A virtual server as it should be, and as it is read back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VirtualServer {
    /// Which one.
    pub id: VirtualId,
    /// Who picks.
    pub scheduler: VirtualScheduler,
    /// What the scheduler makes of it is its own business.
    pub flags: SchedulerFlags,
    /// Each datagram is scheduled anew (UDP only).
    pub one_packet: bool,
    /// `None`: each connection is scheduled anew.
    pub persistence: Option<Persistence>,
    /// What tells clients apart instead of their address: a persistence engine's name, such as `sip`.
    pub engine: Option<String>,
}

/// Which real server of a virtual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RealId {
    /// Of the virtual server's family, or through a tunnel of the other one.
    pub address: IpAddr,
    /// Zero keeps the port that the packet came for; so it must be for virtual servers by mark that serve several ports.
    pub port: u16,
}

impl fmt::Display for RealId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(formatter, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(formatter, "[{address}]:{}", self.port),
        }
    }
}

/// How a packet gets to the real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forwarding {
    /// Destination NAT. The answer must come back this way.
    Masquerade,
    /// Routed to it as it is; the real server has the virtual address, too.
    DirectRoute,
    /// Wrapped up.
    Tunnel(Tunnel),
    /// What the kernel makes of a real server that is itself, or that it bypasses. Never to be asked for.
    Kernel(u8),
}

/// What it is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation, Linux 5.3.
    Gue {
        /// UDP port of the other end; zero is refused.
        port: u16,
        /// Of the outer packet.
        checksum: TunnelChecksum,
    },
    /// Generic routing encapsulation, Linux 5.3.
    Gre {
        /// Of the outer packet; GRE has no remote one.
        checksum: TunnelChecksum,
    },
    /// One that this crate does not know.
    Other(u8),
}

/// Checksum of a tunnel's outer packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TunnelChecksum {
    /// None.
    #[default]
    None,
    /// Full.
    Full,
    /// Left to the other end.
    Remote,
}

/// A real server as it should be, and as it is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RealServer {
    /// Which one.
    pub id: RealId,
    /// Zero takes no new connections and keeps those that it has. At most `i32::MAX`.
    pub weight: u32,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// From this many connections on it gets no more; zero for no end.
    pub upper_threshold: u32,
    /// Below this many it gets some again; zero for three quarters of the upper one.
    pub lower_threshold: u32,
}

/// What went through, since it was there or since it was zeroed, as the kernel added it up last: every two seconds, and not at
/// all with sysctl `run_estimation` off. From 32-bit counters on kernels before 4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Counters {
    /// Connections that were scheduled.
    pub connections: u64,
    /// From clients.
    pub packets_in: u64,
    /// To clients; with masquerading only.
    pub packets_out: u64,
    /// From clients.
    pub bytes_in: u64,
    /// To clients; with masquerading only.
    pub bytes_out: u64,
    /// The kernel's own estimates.
    pub per_second: Rates,
}

/// Per second, estimated by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[expect(missing_docs, reason = "named as in Counters")]
pub struct Rates {
    pub connections: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A virtual server with what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualState {
    /// As it is.
    pub server: VirtualServer,
    /// What went through.
    pub counters: Counters,
}

/// A real server with what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RealState {
    /// As it is.
    pub server: RealServer,
    /// Connections that are established.
    pub active: u32,
    /// Connections that are not, any more or yet, and all of UDP.
    pub inactive: u32,
    /// Clients that are remembered.
    pub persistent: u32,
    /// What went through.
    pub counters: Counters,
}

/// The kernel's IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IpvsInfo {
    /// Major, minor, patch.
    pub version: (u8, u8, u8),
    /// Slots of the connection table, which has chains: no limit.
    pub connection_table: u32,
}

/// After how long without a packet a connection is forgotten; whole seconds, from one to some 24 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IpvsTimeouts {
    /// Established TCP.
    pub tcp: Duration,
    /// TCP after a FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}

#[cfg(test)]
mod tests;
