//! A task's own namespace.

use std::net::Ipv4Addr;

use swarmesh_model::{NetworkId, Port};

use super::{
    RuntimeError,
    layout::{GWBRIDGE_ADDRESS, INGRESS_GATEWAY, NodeLayout, Overlay, gateway_of, parameters},
    names::netns_path,
    netns, rules,
    tools::iptables_restore,
};
use crate::swarm::TaskSpec;

/// What [`NodeLayout::create_sandbox`] made.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    /// Name of the namespace, for `ip -n`.
    pub(crate) netns: String,
    /// As the node's agent sees it.
    name: String,
    overlays: Vec<NetworkId>,
    pub(crate) gateway: Option<Ipv4Addr>,
    ports: Vec<Port>,
}

impl Sandbox {
    pub(crate) fn path(&self) -> std::path::PathBuf {
        netns_path(&self.netns)
    }
}

impl NodeLayout {
    /// Makes a task's namespace with its interfaces and Docker's rules. `overlays` are `spec.networks` in the same order.
    pub(crate) fn create_sandbox(&mut self, spec: &TaskSpec, overlays: &[Overlay]) -> Result<Sandbox, RuntimeError> {
        // A network that leads nowhere does not need a way out; everything else has one.
        let wants_gateway = spec.networks.is_empty() || spec.networks.iter().any(|n| !n.internal);
        let gateway = if wants_gateway { Some(self.take_gateway()?) } else { None };
        let sandbox = Sandbox {
            netns: self.netns_of(&spec.sandbox),
            name: spec.sandbox.clone(),
            overlays: spec.networks.iter().map(|n| n.network.clone()).collect(),
            gateway,
            ports: spec.ports.clone(),
        };
        let made = self.fill(&sandbox, spec, overlays);
        if made.is_err() {
            // The first error is the one to tell.
            let _ = self.remove_sandbox(&sandbox);
        }
        made.map(|()| sandbox)
    }

    fn fill(&mut self, sandbox: &Sandbox, spec: &TaskSpec, overlays: &[Overlay]) -> Result<(), RuntimeError> {
        let rp_filter = self.rp_filter;
        netns::create(&sandbox.netns, || {
            parameters(false, rp_filter)?;
            netns::sysctl(&[("net/ipv4/ip_unprivileged_port_start", "0")])
        })?;
        let attached: Vec<_> = overlays.iter().zip(&spec.networks).map(|(overlay, n)| (overlay, n.addresses.as_slice())).collect();
        self.attach(&sandbox.netns, &sandbox.name, &attached, sandbox.gateway)?;
        let ingress = spec.networks.iter().find(|n| n.ingress).and_then(|n| n.addresses.first()).map(|a| a.address);
        if let Some(rules) = rules::sandbox(self.layout, ingress, &spec.ports, &spec.sandbox) {
            iptables_restore(&sandbox.netns, false, &rules)?;
        }
        if let Some(gateway) = sandbox.gateway {
            self.restore(|layout, v6| rules::task_on_node(layout, gateway_of(gateway, v6), &spec.ports, true))?;
        }
        self.publish_netns(&sandbox.name, &sandbox.netns)
    }

    /// Removes a task's namespace and everything that leads there.
    pub(crate) fn remove_sandbox(&mut self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.unpublish_netns(&sandbox.name);
        if let Some(gateway) = sandbox.gateway {
            // Never made, when making the sandbox failed half-way.
            let _ = self.restore(|layout, v6| rules::task_on_node(layout, gateway_of(gateway, v6), &sandbox.ports, false));
            self.gateways.remove(&gateway);
        }
        self.detach(&sandbox.name, &sandbox.overlays, sandbox.gateway.is_some());
        netns::remove(&sandbox.netns)
    }

    /// The lowest free address on docker_gwbridge.
    fn take_gateway(&mut self) -> Result<Ipv4Addr, RuntimeError> {
        let first = GWBRIDGE_ADDRESS.to_bits() + 1;
        let free = (first..GWBRIDGE_ADDRESS.to_bits() | 0xfffe)
            .map(Ipv4Addr::from_bits)
            .find(|a| *a != INGRESS_GATEWAY && !self.gateways.contains(a));
        let free = free.ok_or_else(|| RuntimeError::Refused(format!("{}: docker_gwbridge is full", self.hostname)))?;
        self.gateways.insert(free);
        Ok(free)
    }
}
