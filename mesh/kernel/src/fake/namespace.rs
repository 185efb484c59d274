//! A handle to a namespace of the fake kernel.

use std::{
    collections::btree_map::Entry,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use nix::libc;

use super::{Call, Shared, State, locked, script};
use crate::{
    DefaultRoute, Element, Family, FlowFilter, Interface, IpvsInfo, IpvsOp, IpvsTimeouts, KernelError, Namespace, NftOp, RealState,
    SetName, VirtualId, VirtualState,
};

pub(super) const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;

pub(super) struct FakeNamespace {
    state: Shared,
    port: u32,
}

impl FakeNamespace {
    pub(super) const fn new(state: Shared, port: u32) -> Self {
        Self { state, port }
    }

    /// Runs `work` unless a fault was ordered for this call, and counts it if it says that it changed something.
    fn change(&self, call: Call, action: &str, work: impl FnOnce(&mut State) -> Result<bool, KernelError>) -> Result<bool, KernelError> {
        let mut state = locked(&self.state);
        state.fault(call, action)?;
        let changed = work(&mut state)?;
        state.writes += usize::from(changed);
        Ok(changed)
    }

    fn read<T>(&self, call: Call, action: &str, work: impl FnOnce(&State) -> T) -> Result<T, KernelError> {
        let mut state = locked(&self.state);
        state.fault(call, action)?;
        Ok(work(&state))
    }
}

fn not_found(action: String) -> KernelError {
    KernelError::NotFound { action }
}

impl Drop for FakeNamespace {
    /// What belongs to a socket goes with it.
    fn drop(&mut self) {
        let mut state = locked(&self.state);
        let port = self.port;
        let mut events = Vec::new();
        state.tables.0.retain(|(family, name), table| {
            let goes = table.owner == Some(port);
            if goes {
                table.deleted(*family, name, port, &mut events);
            }
            !goes
        });
        if !events.is_empty() {
            state.committed(port, events);
        }
    }
}

impl Namespace for FakeNamespace {
    fn load_script(&mut self, text: &str) -> Result<(), KernelError> {
        let port = locked(&self.state).next_port();
        self.change(Call::LoadScript, "load a table", |state| {
            let mut changed = state.tables.clone();
            let events = script::load(&mut changed, text, port)?;
            state.tables = changed;
            state.committed(port, events);
            state.scripts.push(text.to_owned());
            Ok(true)
        })
        .map(|_| ())
    }

    fn commit(&mut self, ops: &[NftOp]) -> Result<(), KernelError> {
        self.change(Call::Commit, &format!("commit {} changes to nftables", ops.len()), |state| {
            state.commit(ops, self.port)?;
            if !ops.is_empty() {
                state.commits.push(ops.to_vec());
            }
            Ok(!ops.is_empty())
        })
        .map(|_| ())
    }

    fn elements(&mut self, set: SetName) -> Result<Vec<Element>, KernelError> {
        let action = format!("read the elements of {set}");
        self.read(Call::Elements, &action, |state| state.tables.elements(set))?.ok_or_else(|| not_found(action))
    }

    fn chains(&mut self, family: Family, table: &str) -> Result<Option<Vec<String>>, KernelError> {
        self.read(Call::Chains, "read the chains", |state| state.tables.chains(family, table))
    }

    fn has_rules(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, KernelError> {
        self.read(Call::Chains, "count the rules", |state| !state.tables.rules(family, table, chain).is_empty())
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(locked(&self.state).generation)
    }

    fn port_id(&mut self) -> Result<u32, KernelError> {
        Ok(self.port)
    }

    /// A real socket, though of the test's own namespace: on loopback, and on a port of its own.
    fn bind_udp(&mut self, address: SocketAddr) -> Result<UdpSocket, KernelError> {
        let action = format!("bind UDP {address}");
        self.read(Call::Socket, &action, |_| ())?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|s| s.set_nonblocking(true).map(|()| s));
        socket.map_err(|error| KernelError::from_io(action, error))
    }

    fn listen_tcp(&mut self, address: SocketAddr) -> Result<TcpListener, KernelError> {
        let action = format!("listen on TCP {address}");
        self.read(Call::Socket, &action, |_| ())?;
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|s| s.set_nonblocking(true).map(|()| s));
        socket.map_err(|error| KernelError::from_io(action, error))
    }

    fn flush_flows(&mut self, filter: &FlowFilter) -> Result<(), KernelError> {
        filter.check(&format!("forget connections {filter:?}"))?;
        self.change(Call::FlushFlows, "forget connections", |state| {
            state.flushed.push(*filter);
            Ok(true)
        })
        .map(|_| ())
    }

    fn sysctl_read(&mut self, key: &str) -> Result<String, KernelError> {
        self.read(Call::Sysctl, &format!("read sysctl {key}"), |state| state.sysctls.get(key).cloned().unwrap_or_else(|| "0".to_owned()))
    }

    fn sysctl_ensure(&mut self, key: &str, value: &str) -> Result<bool, KernelError> {
        self.change(Call::Sysctl, &format!("set sysctl {key}"), |state| {
            let old = state.sysctls.insert(key.to_owned(), value.to_owned());
            Ok(old.as_deref().unwrap_or("0") != value)
        })
    }

    fn interfaces(&mut self) -> Result<Vec<Interface>, KernelError> {
        self.read(Call::Interfaces, "list the interfaces", |state| state.interfaces.clone())
    }

    fn default_route(&mut self, v6: bool) -> Result<Option<DefaultRoute>, KernelError> {
        self.read(Call::Route, "list the routes", |state| state.routes.get(&(v6, MAIN_TABLE)).copied())
    }

    fn ensure_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        self.change(Call::Route, "add a rule", |state| Ok(state.rules.insert((v6, mark, mask, table, priority))))
    }

    fn remove_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        self.change(Call::Route, "delete a rule", |state| Ok(state.rules.remove(&(v6, mark, mask, table, priority))))
    }

    fn ensure_default_route(&mut self, v6: bool, table: u32, index: u32, via: IpAddr) -> Result<bool, KernelError> {
        let action = format!("set the default route of table {table}");
        if via.is_ipv6() != v6 {
            return Err(KernelError::protocol(action, "the next hop is of the other family"));
        }
        self.change(Call::Route, &action, |state| {
            if !state.interfaces.iter().any(|interface| interface.index == index) {
                return Err(not_found(action.clone()));
            }
            let wanted = DefaultRoute { index, gateway: Some(via) };
            Ok(state.routes.insert((v6, table), wanted) != Some(wanted))
        })
    }

    fn remove_default_route(&mut self, v6: bool, table: u32) -> Result<bool, KernelError> {
        self.change(Call::Route, "delete the default route", |state| Ok(state.routes.remove(&(v6, table)).is_some()))
    }

    fn ensure_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<bool, KernelError> {
        let action = format!("set the neighbour {address} on interface {index}");
        self.change(Call::Route, &action, |state| {
            if !state.interfaces.iter().any(|interface| interface.index == index) {
                return Err(not_found(action.clone()));
            }
            Ok(match state.neighbours.entry((index, address)) {
                Entry::Occupied(held) if *held.get() == mac => false,
                entry => {
                    entry.insert_entry(mac);
                    true
                }
            })
        })
    }

    fn remove_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, KernelError> {
        self.change(Call::Route, "delete a neighbour", |state| Ok(state.neighbours.remove(&(index, address)).is_some()))
    }

    fn ensure_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError> {
        let rule: Vec<String> = rule.iter().map(|word| (*word).to_owned()).collect();
        let mut chain = false;
        let changed = self.change(Call::ForwardRule, "add a rule to DOCKER-USER", |state| {
            let Some(rules) = &mut state.docker_user[usize::from(v6)] else { return Ok(false) };
            chain = true;
            if rules.contains(&rule) {
                return Ok(false);
            }
            rules.insert(0, rule);
            Ok(true)
        })?;
        Ok(chain.then_some(changed))
    }

    fn remove_forward_rule(&mut self, v6: bool, rule: &[&str]) -> Result<Option<bool>, KernelError> {
        let mut chain = false;
        let changed = self.change(Call::ForwardRule, "delete a rule from DOCKER-USER", |state| {
            let Some(rules) = &mut state.docker_user[usize::from(v6)] else { return Ok(false) };
            chain = true;
            let before = rules.len();
            rules.retain(|held| held != rule);
            Ok(rules.len() != before)
        })?;
        Ok(chain.then_some(changed))
    }

    fn ipvs_apply(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        let mut results = Vec::with_capacity(ops.len());
        self.change(Call::Ipvs, &format!("make {} changes to IPVS", ops.len()), |state| {
            state.ipvs.present()?;
            for op in ops {
                let done = match state.fault(Call::IpvsOp, &op.to_string()) {
                    Ok(()) => state.ipvs.apply(op),
                    fault => fault,
                };
                if done.is_ok() {
                    state.ipvs_ops.push(op.clone());
                }
                results.push(done);
            }
            Ok(results.iter().any(Result::is_ok))
        })?;
        Ok(results)
    }

    fn virtual_servers(&mut self) -> Result<Vec<VirtualState>, KernelError> {
        self.read(Call::Ipvs, "list the virtual servers", |state| state.ipvs.virtual_servers())?
    }

    fn real_servers(&mut self, of: &VirtualId) -> Result<Vec<RealState>, KernelError> {
        self.read(Call::Ipvs, "list the real servers", |state| state.ipvs.real_servers(of))?
    }

    fn ipvs_timeouts(&mut self) -> Result<IpvsTimeouts, KernelError> {
        self.read(Call::Ipvs, "read the timeouts of IPVS", |state| state.ipvs.timeouts())?
    }

    fn ipvs_info(&mut self) -> Result<IpvsInfo, KernelError> {
        self.read(Call::Ipvs, "read the version of IPVS", |state| state.ipvs.info())?
    }
}
