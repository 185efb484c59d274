//! Why a namespace is not as planned.

use std::path::PathBuf;

use ipnet::IpNet;
use swarmesh_kernel::KernelError;

/// What keeps a namespace from being programmed. It is tried again until it works or is no longer planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaneError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(
        "the ingress sandbox {} has no interface with an address in {}; is the ingress network whole on this node? (docker network inspect ingress)",
        path.display(),
        show(subnets)
    )]
    NoIngressLeg { path: PathBuf, subnets: Vec<IpNet> },
    #[error("the ingress sandbox {} has no leg on the node's bridge (no default route); restart Docker to have it rebuilt", path.display())]
    NoBridgeLeg { path: PathBuf },
    #[error(
        "no bridge of this node has the address {gateway} that the ingress sandbox routes by; restart Docker to have docker_gwbridge rebuilt"
    )]
    NoBridge { gateway: std::net::IpAddr },
    #[error("the task has no interface with its ingress address {}; it may still be starting", show(addresses))]
    NoTaskLeg { addresses: Vec<std::net::IpAddr> },
    #[error("the ingress network's subnet {subnet} has more than 20 host bits; use a /12 or smaller: entry nodes cannot be told apart")]
    SubnetTooWide { subnet: IpNet },
    #[error("the interface {name:?} has a name that nft or iptables would misread; rename it to letters, digits, '-', '_' and '.'")]
    OddInterface { name: String },
    #[error("another agent answers names here; it has to end first")]
    ResolverTaken,
    #[error("this kernel has no tables that end with their owner; Linux 5.12 or newer has. Docker's own resolver goes on to answer")]
    NoOwnedTables,
    #[error("waits for the ingress sandbox")]
    WaitsForIngress,
}

fn show<T: std::fmt::Display>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
