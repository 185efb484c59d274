//! The one seam to the kernel: namespaces, nftables, IPVS, routing, connection tracking and sysctls.
//!
//! Everything here is synchronous and short; callers that must not wait run it on a thread of their own. The data plane
//! talks to [`Namespace`] and [`Kernel`], which [`LinuxKernel`] implements for real and [`fake::FakeKernel`] in memory.

mod conntrack;
mod error;
pub mod fake;
mod fed;
mod iptables;
mod ipvs;
mod linux;
mod neighbours;
mod netlink;
mod netns;
mod nft;
mod route;
mod seam;
pub mod sysctl;

pub use conntrack::{ConntrackSocket, FlowFilter};
pub use error::KernelError;
pub use iptables::{DOCKER_USER, Iptables};
#[cfg(feature = "fuzz")]
pub use ipvs::fuzz as ipvs_fuzz;
pub use ipvs::{
    Counters, Forwarding, IpvsInfo, IpvsOp, IpvsSocket, IpvsTimeouts, Persistence, Rates, RealId, RealServer, RealState, SchedulerFlags,
    Tunnel, TunnelChecksum, VirtualId, VirtualScheduler, VirtualServer, VirtualState,
};
pub use linux::LinuxKernel;
pub use neighbours::{NeighbourEvent, NeighbourMonitor};
pub use netns::{Netns, NetnsId};
pub use nft::{
    Checksum, CmpOp, CtDirection, CtKey, DynsetOp, Element, ElementData, Expr, Family, MetaKey, NatFamily, NatKind, NftEvent, NftMonitor,
    NftOp, NftSocket, NumgenKind, PayloadBase, Reg, RejectKind, SetName, Verdict, check_script, load_script,
};
pub use route::{Address, DefaultRoute, Link, RouteSocket};
pub use seam::{Interface, Kernel, Namespace};
