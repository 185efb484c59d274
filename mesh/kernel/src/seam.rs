//! What the data plane may ask of the kernel, and nothing else.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    DefaultRoute, Element, Family, FlowFilter, IpvsInfo, IpvsOp, IpvsTimeouts, KernelError, NeighbourMonitor, NetnsId, NftMonitor, NftOp,
    RealState, SetName, VirtualId, VirtualState,
};

/// A network interface with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Number in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Ethernet address; `None` for interfaces that have none.
    pub mac: Option<[u8; 6]>,
    /// Bytes of a packet without its link header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Driver kind such as `veth` or `vxlan`; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// Its own addresses with their prefix lengths, of both families.
    pub addresses: Vec<IpNet>,
}

/// Opens namespaces.
pub trait Kernel: Send + Sync {
    /// Linux's release, such as `6.1.0-56-cloud-amd64`; empty where nobody tells.
    fn release(&self) -> String;

    /// Opens the namespace behind a path such as `/run/docker/netns/<id>`.
    fn open(&self, path: &Path) -> Result<Box<dyn Namespace>, KernelError>;

    /// Opens the namespace that the agent itself is in.
    fn open_current(&self) -> Result<Box<dyn Namespace>, KernelError>;

    /// Which namespace is behind a path now: an open handle goes on meaning the one that it was opened for.
    fn identity(&self, path: &Path) -> Result<NetnsId, KernelError>;

    /// Names of the files in a directory of namespaces, in no order.
    fn namespaces(&self, directory: &Path) -> Result<Vec<String>, KernelError>;

    /// Starts to listen to nftables in a namespace; `None` is the agent's own.
    fn open_monitor(&self, path: Option<&Path>) -> Result<NftMonitor, KernelError>;

    /// Starts to listen to where an overlay leads, in its namespace. [`KernelError::NotFound`] if that has no overlay (yet).
    fn open_neighbours(&self, path: &Path) -> Result<NeighbourMonitor, KernelError>;
}

/// Everything the data plane asks of one namespace.
///
/// A handle keeps the namespace alive. Whatever begins with `ensure` reads first, and returns whether it had to change
/// anything; whatever begins with `remove` takes absence for success and returns whether there was something.
pub trait Namespace: Send {
    /// Loads nft's own language, in one transaction. Another process does it, so monitors see it under a port that is not
    /// [`Namespace::port_id`].
    fn load_script(&mut self, script: &str) -> Result<(), KernelError>;

    /// Commits all of `ops`, or none. See [`NftOp`] for what each one asks of the state before it.
    fn commit(&mut self, ops: &[NftOp]) -> Result<(), KernelError>;

    /// All elements of a set or map, in no order; [`KernelError::NotFound`] if there is no such set.
    fn elements(&mut self, set: SetName) -> Result<Vec<Element>, KernelError>;

    /// Names of all chains of a table; `None` if there is no such table.
    fn chains(&mut self, family: Family, table: &str) -> Result<Option<Vec<String>>, KernelError>;

    /// True if the chain is there and has a rule.
    fn has_rules(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, KernelError>;

    /// Number that changes with every commit to nftables in this namespace, whoever makes it.
    fn generation(&mut self) -> Result<u32, KernelError>;

    /// Netlink port id that this handle's commits carry in [`NftEvent`](crate::NftEvent)s.
    fn port_id(&mut self) -> Result<u32, KernelError>;

    /// Opens a datagram socket on `address`, non-blocking. It belongs to the namespace, whoever uses it from wherever.
    fn bind_udp(&mut self, address: SocketAddr) -> Result<UdpSocket, KernelError>;

    /// Listens on `address`, non-blocking.
    fn listen_tcp(&mut self, address: SocketAddr) -> Result<TcpListener, KernelError>;

    /// Forgets tracked connections. A filter that names nothing is refused.
    fn flush_flows(&mut self, filter: &FlowFilter) -> Result<(), KernelError>;

    /// Reads a sysctl by its path below `/proc/sys`, such as `net/ipv4/ip_forward`.
    fn sysctl_read(&mut self, key: &str) -> Result<String, KernelError>;

    /// Sets a sysctl.
    fn sysctl_ensure(&mut self, key: &str, value: &str) -> Result<bool, KernelError>;

    /// All interfaces with their addresses.
    fn interfaces(&mut self) -> Result<Vec<Interface>, KernelError>;

    /// The default route of the main table.
    fn default_route(&mut self, v6: bool) -> Result<Option<DefaultRoute>, KernelError>;

    /// Makes packets with `mark` under `mask` use the routing table `table`.
    fn ensure_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError>;

    /// Takes that rule away.
    fn remove_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError>;

    /// Makes the default route of `table` lead to `via`, on the link of interface `index`.
    fn ensure_default_route(&mut self, v6: bool, table: u32, index: u32, via: IpAddr) -> Result<bool, KernelError>;

    /// Takes the default route of `table` away.
    fn remove_default_route(&mut self, v6: bool, table: u32) -> Result<bool, KernelError>;

    /// Makes `address` on interface `index` a permanent neighbour.
    fn ensure_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<bool, KernelError>;

    /// Takes a neighbour away.
    fn remove_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, KernelError>;

    /// Puts `rule`, in iptables' words, behind what others have in one family's DOCKER-USER chain of Docker's. `None` if there is no such
    /// chain.
    fn ensure_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError>;

    /// Takes it out again. `None` if there is no such chain.
    fn remove_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError>;

    /// Does each of these changes to IPVS, in order, and has a result for each: there are no transactions. An error of the whole
    /// leaves open what was done; [`KernelError::NotSupported`] if the kernel has no IPVS.
    fn ipvs_apply(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelError>;

    /// All virtual servers, in no order.
    fn virtual_servers(&mut self) -> Result<Vec<VirtualState>, KernelError>;

    /// All real servers of a virtual one, in no order. None if there is no such virtual server: the kernel makes no difference.
    fn real_servers(&mut self, of: &VirtualId) -> Result<Vec<RealState>, KernelError>;

    /// Timeouts of IPVS connections.
    fn ipvs_timeouts(&mut self) -> Result<IpvsTimeouts, KernelError>;

    /// Version and size of the kernel's IPVS.
    fn ipvs_info(&mut self) -> Result<IpvsInfo, KernelError>;
}
