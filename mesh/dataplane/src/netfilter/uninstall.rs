//! Takes everything of ours out of the kernel. Docker's own state stays, and with it Docker's own behaviour returns.

use std::{net::IpAddr, path::Path};

use swarmesh_kernel::{Family, IpvsOp, Kernel, KernelError, Namespace, NftOp};

use super::{
    INGRESS_SANDBOX,
    node::forward_rules,
    table::{EARLY_DEMUX, IP_FORWARD, IPVS_SWITCHES, RETIRED, ROUTE_LOCALNET, WAS_OFF, WAS_ON_EARLY_DEMUX, our_virtuals},
};
use crate::{
    layout::{MARK, MARK_MASK, NEAR_MARK, NEAR_PRIORITY, NEAR_TABLE, RETURN_PRIORITY, RETURN_TABLE, RETURN_VIA4, RETURN_VIA6, TABLE},
    virtuals::{DEFAULT_TIMEOUTS, TIMEOUTS},
};

/// Clears the namespace that this process is in and every one below `netns_dir`. For each: its name, and whether
/// there was anything, or why it could not be cleared. Goes on after failures.
pub fn uninstall(kernel: &dyn Kernel, netns_dir: &Path) -> Vec<(String, Result<bool, KernelError>)> {
    let mut outcomes = Vec::new();
    // Our rules in Docker's user chain name the ingress sandbox, so it is asked before anything goes.
    let sandbox = sandbox_addresses(kernel, netns_dir);
    outcomes.push(("node".to_owned(), kernel.open_current().and_then(|mut ns| clear_node(&mut *ns, sandbox.as_ref()))));
    let entries = match std::fs::read_dir(netns_dir) {
        Ok(entries) => entries,
        Err(error) => {
            let action = format!("list the namespaces in {}", netns_dir.display());
            outcomes.push((netns_dir.display().to_string(), Err(KernelError::Io { action, source: error })));
            return outcomes;
        }
    };
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name()).collect();
    names.sort();
    for name in names {
        let outcome = match kernel.open(&netns_dir.join(&name)) {
            Ok(mut ns) => clear(&mut *ns, None),
            // Gone, or a file that never was a namespace: nothing of ours can be in it.
            Err(KernelError::NamespaceGone { .. }) => continue,
            Err(error) => Err(error),
        };
        outcomes.push((name.to_string_lossy().into_owned(), outcome));
    }
    outcomes
}

/// The ingress sandbox's addresses on the node's bridge, and that bridge's own.
fn sandbox_addresses(kernel: &dyn Kernel, netns_dir: &Path) -> Option<(Vec<IpAddr>, IpAddr)> {
    let mut ns = kernel.open(&netns_dir.join(INGRESS_SANDBOX)).ok()?;
    let route = ns.default_route(false).ok()??;
    let interfaces = ns.interfaces().ok()?;
    let leg = interfaces.into_iter().find(|i| i.index == route.index)?;
    Some((leg.addresses.iter().map(|n| n.addr()).collect(), route.gateway?))
}

fn clear_node(ns: &mut dyn Namespace, sandbox: Option<&(Vec<IpAddr>, IpAddr)>) -> Result<bool, KernelError> {
    let interfaces = ns.interfaces()?;
    let bridge = sandbox.and_then(|(_, gateway)| interfaces.iter().find(|i| i.addresses.iter().any(|a| a.addr() == *gateway)));
    let mut changed = clear(ns, bridge.map(|b| b.name.as_str()))?;
    if let (Some((addresses, _)), Some(bridge)) = (sandbox, bridge) {
        for address in addresses {
            for rule in forward_rules(&bridge.name, *address, &address.to_string()) {
                changed |= ns.remove_forward_rule(address.is_ipv6(), &rule)?.unwrap_or(false);
            }
        }
    }
    Ok(changed)
}

fn clear(ns: &mut dyn Namespace, bridge: Option<&str>) -> Result<bool, KernelError> {
    let mut changed = false;
    let chains = ns.chains(Family::Inet, TABLE)?.unwrap_or_default();
    // What was opened for us is closed before the rules that guard it go.
    if chains.contains(&format!("{WAS_OFF}{IP_FORWARD}")) {
        ns.sysctl_ensure("net/ipv4/ip_forward", "0")?;
    }
    if let Some(bridge) = bridge.filter(|_| chains.contains(&format!("{WAS_OFF}{ROUTE_LOCALNET}"))) {
        ns.sysctl_ensure(&format!("net/ipv4/conf/{bridge}/route_localnet"), "0")?;
    }
    if chains.iter().any(|chain| chain == WAS_ON_EARLY_DEMUX) {
        ns.sysctl_ensure(EARLY_DEMUX, "1")?;
    }
    changed |= clear_ipvs(ns, &chains)?;
    for family in [Family::Inet, Family::Netdev] {
        if ns.chains(family, TABLE)?.is_some() {
            ns.commit(&[NftOp::DeleteTable { family, table: TABLE }])?;
            changed = true;
        }
    }
    Ok(changed | remove_way_back(ns)?)
}

/// Our virtual servers, and what was switched on for them. Docker's are left, and somebody else's.
fn clear_ipvs(ns: &mut dyn Namespace, chains: &[String]) -> Result<bool, KernelError> {
    // Asking a kernel that has not loaded its IPVS would load it.
    let had_virtuals = RETIRED.iter().any(|set| ns.elements(*set).is_ok());
    if !had_virtuals {
        return Ok(false);
    }
    let servers = match our_virtuals(ns) {
        Err(KernelError::NotSupported { .. }) => return Ok(false),
        servers => servers?,
    };
    // Nothing may be led to them while they go.
    let flushes: Vec<NftOp> = RETIRED.into_iter().filter(|set| ns.elements(*set).is_ok()).map(|set| NftOp::FlushSet { set }).collect();
    ns.commit(&flushes)?;
    let mut ops: Vec<IpvsOp> = servers.iter().map(|(state, _)| IpvsOp::DeleteVirtual(state.server.id)).collect();
    if ns.ipvs_timeouts()? == TIMEOUTS {
        ops.push(IpvsOp::SetTimeouts(DEFAULT_TIMEOUTS));
    }
    ns.ipvs_apply(&ops)?.into_iter().collect::<Result<(), _>>()?;
    for (key, note) in IPVS_SWITCHES {
        if chains.contains(&format!("{WAS_OFF}{note}")) {
            ns.sysctl_ensure(key, "0")?;
        }
    }
    Ok(true)
}

/// Rule, route and neighbour by which answers leave a task for their entry node.
pub(crate) fn remove_way_back(ns: &mut dyn Namespace) -> Result<bool, KernelError> {
    let mut changed = remove_near_way(ns)?;
    for v6 in [false, true] {
        changed |= ns.remove_rule_fwmark(v6, MARK, MARK_MASK, RETURN_TABLE, RETURN_PRIORITY)?;
        changed |= ns.remove_default_route(v6, RETURN_TABLE)?;
        let via = if v6 { IpAddr::from(RETURN_VIA6) } else { IpAddr::from(RETURN_VIA4) };
        for interface in ns.interfaces()? {
            changed |= ns.remove_neighbour(interface.index, via)?;
        }
    }
    Ok(changed)
}

/// Rule and route by which answers to this node's own connections leave a task, where its other routes would mislead them.
pub(crate) fn remove_near_way(ns: &mut dyn Namespace) -> Result<bool, KernelError> {
    let changed = ns.remove_rule_fwmark(false, NEAR_MARK, MARK_MASK, NEAR_TABLE, NEAR_PRIORITY)?;
    Ok(changed | ns.remove_default_route(false, NEAR_TABLE)?)
}
