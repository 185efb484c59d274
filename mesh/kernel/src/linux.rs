//! The real kernel.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use crate::{
    ConntrackSocket, DOCKER_USER, DefaultRoute, Element, Family, FlowFilter, Interface, Iptables, IpvsInfo, IpvsOp, IpvsSocket,
    IpvsTimeouts, Kernel, KernelError, Namespace, NeighbourMonitor, Netns, NetnsId, NftMonitor, NftOp, NftSocket, RealState, RouteSocket,
    SetName, VirtualId, VirtualState, load_script, sysctl,
};

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxKernel;

impl Kernel for LinuxKernel {
    fn release(&self) -> String {
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim_end().to_owned()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Namespace>, KernelError> {
        Ok(Box::new(LinuxNamespace::new(Netns::open(path)?)))
    }

    fn open_current(&self) -> Result<Box<dyn Namespace>, KernelError> {
        Ok(Box::new(LinuxNamespace::new(Netns::current()?)))
    }

    fn identity(&self, path: &Path) -> Result<NetnsId, KernelError> {
        Netns::open(path).map(|ns| ns.id())
    }

    fn namespaces(&self, directory: &Path) -> Result<Vec<String>, KernelError> {
        let action = || format!("list the namespaces in {}", directory.display());
        let names = fs::read_dir(directory).map_err(|source| KernelError::from_io(action(), source))?;
        // One with another kind of name is none of Docker's.
        Ok(names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    fn open_monitor(&self, path: Option<&Path>) -> Result<NftMonitor, KernelError> {
        NftMonitor::open(&path.map_or_else(Netns::current, Netns::open)?)
    }

    fn open_neighbours(&self, path: &Path) -> Result<NeighbourMonitor, KernelError> {
        NeighbourMonitor::open(&Netns::open(path)?)
    }
}

/// Opens each socket when it is first needed and keeps it: closing one costs more than a change does.
#[derive(Debug)]
struct LinuxNamespace {
    ns: Netns,
    nft: Option<NftSocket>,
    route: Option<RouteSocket>,
    conntrack: Option<ConntrackSocket>,
    ipvs: Option<IpvsSocket>,
}

/// The socket in `slot`, opened if it is not yet.
fn opened<S>(slot: &mut Option<S>, open: impl FnOnce() -> Result<S, KernelError>) -> Result<&mut S, KernelError> {
    Ok(match slot {
        Some(socket) => socket,
        None => slot.insert(open()?),
    })
}

impl LinuxNamespace {
    const fn new(ns: Netns) -> Self {
        Self { ns, nft: None, route: None, conntrack: None, ipvs: None }
    }

    fn socket<S>(&self, action: &str, open: impl FnOnce() -> io::Result<S>) -> Result<S, KernelError> {
        self.ns.enter(open)?.map_err(|error| KernelError::from_io(action, error))
    }

    fn nft(&mut self) -> Result<&mut NftSocket, KernelError> {
        opened(&mut self.nft, || NftSocket::open(&self.ns))
    }

    fn route(&mut self) -> Result<&mut RouteSocket, KernelError> {
        opened(&mut self.route, || RouteSocket::open(&self.ns))
    }

    fn ipvs(&mut self) -> Result<&mut IpvsSocket, KernelError> {
        opened(&mut self.ipvs, || IpvsSocket::open(&self.ns))
    }
}

impl Namespace for LinuxNamespace {
    fn load_script(&mut self, script: &str) -> Result<(), KernelError> {
        load_script(&self.ns, script)
    }

    fn commit(&mut self, ops: &[NftOp]) -> Result<(), KernelError> {
        self.nft()?.commit(ops)
    }

    fn elements(&mut self, set: SetName) -> Result<Vec<Element>, KernelError> {
        self.nft()?.elements(set.family, set.table, set.set)
    }

    fn chains(&mut self, family: Family, table: &str) -> Result<Option<Vec<String>>, KernelError> {
        match self.nft()?.chains(family, table) {
            Err(KernelError::NotFound { .. }) => Ok(None),
            chains => chains.map(Some),
        }
    }

    fn has_rules(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, KernelError> {
        Ok(self.nft()?.rules_count(family, table, chain)? > 0)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        self.nft()?.generation()
    }

    fn port_id(&mut self) -> Result<u32, KernelError> {
        Ok(self.nft()?.port_id())
    }

    fn bind_udp(&mut self, address: SocketAddr) -> Result<UdpSocket, KernelError> {
        self.socket(&format!("bind UDP {address}"), || {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn listen_tcp(&mut self, address: SocketAddr) -> Result<TcpListener, KernelError> {
        self.socket(&format!("listen on TCP {address}"), || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn flush_flows(&mut self, filter: &FlowFilter) -> Result<(), KernelError> {
        opened(&mut self.conntrack, || ConntrackSocket::open(&self.ns))?.flush(filter)
    }

    fn sysctl_read(&mut self, key: &str) -> Result<String, KernelError> {
        sysctl::read(&self.ns, key)
    }

    fn sysctl_ensure(&mut self, key: &str, value: &str) -> Result<bool, KernelError> {
        sysctl::ensure(&self.ns, key, value)
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, KernelError> {
        let route = self.route()?;
        let links = route.links()?;
        let addresses = route.addresses()?;
        let interface = |link: crate::Link| {
            let own = addresses.iter().filter(|address| address.index == link.index).map(|address| address.net).collect();
            let crate::Link { index, name, mac, mtu, up, kind } = link;
            Interface { index, name, mac, mtu, up, kind, addresses: own }
        };
        Ok(links.into_iter().map(interface).collect())
    }

    fn default_route(&mut self, v6: bool) -> Result<Option<DefaultRoute>, KernelError> {
        self.route()?.default_route(v6)
    }

    fn ensure_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        self.route()?.ensure_rule_fwmark(v6, mark, mask, table, priority)
    }

    fn remove_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        self.route()?.remove_rule_fwmark(v6, mark, mask, table, priority)
    }

    fn ensure_default_route(&mut self, v6: bool, table: u32, index: u32, via: IpAddr) -> Result<bool, KernelError> {
        self.route()?.ensure_default_route(v6, table, index, via)
    }

    fn remove_default_route(&mut self, v6: bool, table: u32) -> Result<bool, KernelError> {
        self.route()?.remove_default_route(v6, table)
    }

    fn ensure_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<bool, KernelError> {
        self.route()?.ensure_neighbour(index, address, mac)
    }

    fn remove_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, KernelError> {
        self.route()?.remove_neighbour(index, address)
    }

    // Looked for each time: Docker may come, go, or change its firewall backend while the agent runs.
    fn ensure_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError> {
        Iptables::detect(&self.ns, v6)?.map(|iptables| iptables.ensure_rule(&self.ns, DOCKER_USER, rule)).transpose()
    }

    fn remove_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError> {
        Iptables::detect(&self.ns, v6)?.map(|iptables| iptables.remove_rule(&self.ns, DOCKER_USER, rule)).transpose()
    }

    fn ipvs_apply(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        self.ipvs()?.apply(ops)
    }

    fn virtual_servers(&mut self) -> Result<Vec<VirtualState>, KernelError> {
        self.ipvs()?.virtual_servers()
    }

    fn real_servers(&mut self, of: &VirtualId) -> Result<Vec<RealState>, KernelError> {
        self.ipvs()?.real_servers(of)
    }

    fn ipvs_timeouts(&mut self) -> Result<IpvsTimeouts, KernelError> {
        self.ipvs()?.timeouts()
    }

    fn ipvs_info(&mut self) -> Result<IpvsInfo, KernelError> {
        self.ipvs()?.info()
    }
}
