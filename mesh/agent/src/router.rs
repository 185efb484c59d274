//! The router beside the engine: routes of a plan brought to the proxy's workers.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use swarmesh_kernel::Netns;
use swarmesh_model::NetworkId;
use swarmesh_plan::{OwnerKey, OwnerRoutes, RouteDelta, RoutePlan};
use swarmesh_proxy::{Config, Proxy, ProxyError, Shared, endpoint::Dialer, routing::Switchboard};

/// Opens sockets to backends in a namespace of their network.
#[derive(Debug)]
struct NetnsDialer;

impl Dialer for NetnsDialer {
    fn socket(&self, sandbox: Option<&Path>, to: SocketAddr) -> io::Result<Socket> {
        let open = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        match sandbox {
            None => open(),
            Some(path) => Netns::open(path).and_then(|namespace| namespace.enter(open)).map_err(io::Error::other)?,
        }
    }
}

/// A running proxy, and what keeps its routes.
#[derive(Debug)]
pub struct Router {
    proxy: Proxy,
    switchboard: Switchboard<OwnerKey>,
    netns_dir: PathBuf,
}

impl Router {
    pub fn start(config: Config, netns_dir: PathBuf) -> Result<Self, ProxyError> {
        let switchboard = Switchboard::by_owner(&config);
        let proxy = Proxy::start(config, Arc::new(NetnsDialer))?;
        Ok(Self { proxy, switchboard, netns_dir })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        self.proxy.shared()
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        self.proxy.addresses()
    }

    /// Brings the workers from the last plan to this one. What routes take from each other, the views tell.
    pub fn apply(&mut self, delta: &RouteDelta, plan: &RoutePlan) {
        let (come, left): (Vec<_>, Vec<_>) = delta.footholds.iter().partition(|(_, sandbox)| sandbox.is_some());
        // Before anything is sent there.
        self.stand(&come);
        if !delta.owners.is_empty() {
            let routes = |owner: &Option<Arc<OwnerRoutes>>| owner.as_ref().map_or_else(Vec::new, |owner| owner.routes.clone());
            let owners = delta.owners.iter().map(|(key, owner)| (key.clone(), routes(owner)));
            self.proxy.shared().set_routing(self.switchboard.change(owners, plan));
        }
        let services = delta.services.keys().map(|id| id.as_str());
        let owners: HashSet<&str> = services.chain(delta.containers.keys().map(|id| id.as_str())).collect();
        if !owners.is_empty() {
            self.switchboard.refresh(&owners, plan);
        }
        // Behind everything that was sent there.
        self.stand(&left);
    }

    fn stand(&mut self, footholds: &[(&NetworkId, &Option<String>)]) {
        for (network, sandbox) in footholds {
            self.switchboard.set_foothold(network, sandbox.as_ref().map(|name| self.netns_dir.join(name)));
        }
    }

    /// Lets requests end, which may take seconds.
    pub fn stop(self) {
        self.proxy.stop();
    }
}
