//! Data planes: from plan deltas to kernel operations, and the mirror of what each namespace holds.
//!
//! One plane so far: nftables. A namespace's table is read at start and when somebody else has touched it, never on the
//! update path: there the mirror of what was last committed stands for it.
#![forbid(unsafe_code)]

mod balancer;
mod directory;
mod error;
mod layout;
mod names;
mod netfilter;
mod overlays;
mod slots;
mod virtuals;

pub use balancer::{Balancer, Front, FrontState};
pub use error::PlaneError;
pub use layout::{MARK, MARK_MASK, NEAR_TABLE, RETURN_PRIORITY, RETURN_TABLE, TABLE};
pub use names::{RESOLVER, Redirect, ResolverSockets, TO_ENGINE};
pub use netfilter::{
    Balancing, HostFacts, NetfilterPlane, Place, PlaceState, PlaceStatus, PlaneConfig, PlaneStatus, goes_direct, try_ipvs, uninstall,
};
pub use overlays::{Overlays, Reach};
