//! From name plans to zones: each owner's old names out, its new ones in, network by network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use swarmesh_dns::{Asker, Change, Host, Membership, OwnerId, Record, ServicePort, Services, ZoneCell};
use swarmesh_model::{NetworkId, Protocol, ServiceId, TaskId};
use swarmesh_plan::{AskerPlan, NameDelta, NamedNetwork, NamedTask, ServiceNames, ServiceZone};

/// All zones, and who owns what in them.
#[derive(Debug, Default)]
pub(crate) struct Book {
    networks: BTreeMap<NetworkId, Zoned>,
    services: BTreeMap<ServiceId, (OwnerId, Arc<ServiceNames>)>,
    tasks: BTreeMap<TaskId, (OwnerId, Arc<NamedTask>)>,
    last_owner: OwnerId,
}

#[derive(Debug)]
struct Zoned {
    title: Box<str>,
    cell: Arc<ZoneCell>,
}

/// What one owner has in one zone.
#[derive(Default)]
struct Entries {
    names: Vec<(Box<str>, Arc<Record>)>,
    addresses: Vec<(IpAddr, Arc<str>)>,
}

/// Changes on their way into zones. A first snapshot's would take more room than the names themselves.
#[derive(Default)]
struct Pending {
    changes: BTreeMap<NetworkId, Vec<Change>>,
    count: usize,
}

/// A zone is copied once per this many changes at most.
const MOST_PENDING: usize = 8192;

impl Pending {
    fn push(&mut self, network: NetworkId, change: Change, zones: &BTreeMap<NetworkId, Zoned>) {
        self.changes.entry(network).or_default().push(change);
        self.count += 1;
        if self.count >= MOST_PENDING {
            self.flush(zones);
        }
    }

    fn flush(&mut self, zones: &BTreeMap<NetworkId, Zoned>) {
        for (network, changes) in std::mem::take(&mut self.changes) {
            // The ingress network has no names, and one that is not known yet brings them along when it is.
            if let Some(zoned) = zones.get(&network) {
                zoned.cell.apply(&changes);
            }
        }
        self.count = 0;
    }
}

impl Book {
    /// Says whether any network came, went or changed its name: askers then have to be put together anew.
    pub(crate) fn apply(&mut self, delta: &NameDelta) -> bool {
        for (id, network) in &delta.networks {
            self.set_network(id, network.as_deref());
        }
        let mut changes = Pending::default();
        for (id, new) in &delta.services {
            let old = self.services.remove(id);
            let owner = old.as_ref().map_or_else(|| self.next_owner(), |(owner, _)| *owner);
            let networks = |names: Option<&ServiceNames>| names.into_iter().flat_map(|n| n.networks.keys().cloned()).collect::<Vec<_>>();
            let all: BTreeSet<NetworkId> =
                [networks(old.as_ref().map(|(_, n)| &**n)), networks(new.as_deref())].concat().into_iter().collect();
            for network in all {
                let old = old.as_ref().map(|(_, n)| service_entries(n, &network)).unwrap_or_default();
                let new = new.as_ref().map(|n| service_entries(n, &network)).unwrap_or_default();
                changes.push(network, change(owner, old, new), &self.networks);
            }
            if let Some(names) = new {
                self.services.insert(id.clone(), (owner, Arc::clone(names)));
            }
        }
        for (id, new) in &delta.tasks {
            let old = self.tasks.remove(id);
            let owner = old.as_ref().map_or_else(|| self.next_owner(), |(owner, _)| *owner);
            let networks = |named: Option<&NamedTask>| {
                named.into_iter().flat_map(|n| n.task.addresses.iter().map(|a| a.network.clone())).collect::<Vec<_>>()
            };
            let all: BTreeSet<NetworkId> =
                [networks(old.as_ref().map(|(_, n)| &**n)), networks(new.as_deref())].concat().into_iter().collect();
            for network in all {
                let old = old.as_ref().map(|(_, n)| task_entries(n, &network)).unwrap_or_default();
                let new = new.as_ref().map(|n| task_entries(n, &network)).unwrap_or_default();
                changes.push(network, change(owner, old, new), &self.networks);
            }
            if let Some(named) = new {
                self.tasks.insert(id.clone(), (owner, Arc::clone(named)));
            }
        }
        changes.flush(&self.networks);
        !delta.networks.is_empty()
    }

    fn set_network(&mut self, id: &NetworkId, network: Option<&NamedNetwork>) {
        let Some(network) = network else {
            self.networks.remove(id);
            return;
        };
        let title = network.name.as_str().into();
        if let Some(zoned) = self.networks.get_mut(id) {
            zoned.title = title;
            return;
        }
        // Names that came before their network.
        let services = self.services.values().map(|(owner, names)| change(*owner, Entries::default(), service_entries(names, id)));
        let tasks = self.tasks.values().map(|(owner, named)| change(*owner, Entries::default(), task_entries(named, id)));
        let known: Vec<Change> = services.chain(tasks).filter(|c| !c.names.is_empty() || !c.addresses.is_empty()).collect();
        let cell = Arc::new(ZoneCell::default());
        cell.apply(&known);
        self.networks.insert(id.clone(), Zoned { title, cell });
    }

    fn next_owner(&mut self) -> OwnerId {
        self.last_owner += 1;
        self.last_owner
    }

    /// The names of an asker's networks, in lower case.
    pub(crate) fn titles(&self, plan: &AskerPlan) -> Arc<[Box<str>]> {
        plan.networks.iter().filter_map(|n| Some(self.networks.get(&n.network)?.title.to_ascii_lowercase().into())).collect()
    }

    /// The asker as the server needs it. Networks that are not known yet are left out until they are.
    pub(crate) fn asker(&self, id: u64, plan: &AskerPlan) -> Asker {
        let networks = plan.networks.iter().filter_map(|n| {
            let zoned = self.networks.get(&n.network)?;
            Some(Membership {
                network: zoned.title.to_ascii_lowercase().into(),
                title: zoned.title.clone(),
                zone: Arc::clone(&zoned.cell),
                links: n.links.iter().map(|(alias, name)| (alias.as_str().into(), name.as_str().into())).collect(),
            })
        });
        Asker { id, name: plan.name.as_str().into(), networks: networks.collect() }
    }
}

fn change(owner: OwnerId, old: Entries, new: Entries) -> Change {
    Change {
        owner,
        gone: old.names.into_iter().map(|(name, _)| name).filter(|name| !new.names.iter().any(|(n, _)| n == name)).collect(),
        gone_addresses: old.addresses.into_iter().map(|(a, _)| a).filter(|a| !new.addresses.iter().any(|(n, _)| n == a)).collect(),
        names: new.names,
        addresses: new.addresses,
    }
}

fn service_entries(names: &ServiceNames, network: &NetworkId) -> Entries {
    let Some(zone) = names.networks.get(network) else { return Entries::default() };
    let ports: Box<[ServicePort]> =
        names.ports.iter().map(|p| ServicePort { name: p.name.as_str().into(), protocol: protocol(p.protocol), port: p.port }).collect();
    let of_tasks =
        Arc::new(Record { services: services(ports.clone(), Some(hosts(zone))), ..Record::of(zone.tasks.iter().map(|(a, _)| *a)) });
    let of_service = if zone.is_dnsrr {
        Arc::clone(&of_tasks)
    } else {
        Arc::new(Record { services: services(ports, None), ..Record::of(zone.vips.iter().copied()) })
    };
    let mut entries = Entries::default();
    for name in &zone.names {
        entries.names.push((name.as_str().into(), Arc::clone(&of_service)));
        entries.names.push((format!("tasks.{name}").into(), Arc::clone(&of_tasks)));
    }
    let own: Arc<str> = names.name.as_str().into();
    entries.addresses.extend(zone.vips.iter().map(|vip| (*vip, Arc::clone(&own))));
    entries
}

fn services(ports: Box<[ServicePort]>, hosts: Option<Box<[Host]>>) -> Option<Arc<Services>> {
    (!ports.is_empty()).then(|| Arc::new(Services { ports, hosts }))
}

fn hosts(zone: &ServiceZone) -> Box<[Host]> {
    zone.tasks.iter().map(|(address, name)| Host { name: Arc::clone(name), address: *address }).collect()
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn task_entries(named: &NamedTask, network: &NetworkId) -> Entries {
    let mut legs = named.task.addresses.iter().filter(|a| a.network == *network).peekable();
    if legs.peek().is_none() {
        return Entries::default();
    }
    let addresses: Vec<IpAddr> = named.addresses_in(network).collect();
    let record = Arc::new(Record::of(addresses.iter().copied()));
    let names = named.names();
    let mut entries = Entries::default();
    if let Some(first) = names.first() {
        let first: Arc<str> = first.as_str().into();
        entries.addresses.extend(addresses.iter().map(|address| (*address, Arc::clone(&first))));
    }
    for name in names.into_iter().chain(legs.flat_map(|a| &a.aliases).map(|a| a.to_ascii_lowercase())) {
        if !entries.names.iter().any(|(known, _)| **known == *name) {
            entries.names.push((name.into(), Arc::clone(&record)));
        }
    }
    entries
}
