//! From name plans to zones: each owner's old names out, its new ones in, network by network.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use swarmesh_dns::{Asker, Change, Host, Membership, OwnerId, Record, ServicePort, Services, Zone, ZoneCell};
use swarmesh_model::{NetworkId, Protocol, ServiceId, TaskId};
use swarmesh_plan::{AskerPlan, NameDelta, NamePlan, NamedNetwork, NamedTask, ServiceNames, ServiceZone};

/// All zones, and the plan that they were made from.
#[derive(Debug, Default)]
pub(crate) struct Book {
    networks: BTreeMap<NetworkId, Zoned>,
    plan: NamePlan,
}

#[derive(Debug)]
struct Zoned {
    title: Box<str>,
    cell: Arc<ZoneCell>,
}

/// What one owner has in one zone.
#[derive(Default)]
struct Entries {
    names: Vec<(Arc<str>, Arc<Record>)>,
    addresses: Vec<(IpAddr, Arc<str>)>,
}

#[derive(Hash)]
enum Owner<'a> {
    Service(&'a ServiceId),
    Task(&'a TaskId),
}

impl Owner<'_> {
    /// A digest, so that nobody has to keep a list of numbers. It matters only where two owners have one name in one
    /// network, and 64 bits keep those few apart.
    fn id(&self) -> OwnerId {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Zones' next states. A large change goes into each bit by bit, and is seen all at once.
#[derive(Default)]
struct Drafts(BTreeMap<NetworkId, Zone>);

impl Drafts {
    fn apply(&mut self, network: &NetworkId, change: &Change, zones: &BTreeMap<NetworkId, Zoned>) {
        if let Some(draft) = self.0.get_mut(network) {
            return draft.apply(change);
        }
        // The ingress network has no names, and one that is not known yet brings them along when it is.
        let Some(zoned) = zones.get(network) else { return };
        let mut draft = zoned.cell.draft();
        draft.apply(change);
        self.0.insert(network.clone(), draft);
    }

    fn publish(self, zones: &BTreeMap<NetworkId, Zoned>) {
        for (network, draft) in self.0 {
            if let Some(zoned) = zones.get(&network) {
                zoned.cell.publish(draft);
            }
        }
    }
}

impl Book {
    /// All of a plan's names.
    pub(crate) fn of(plan: &NamePlan) -> Self {
        let mut book = Self::default();
        book.apply(&plan.as_delta(), plan);
        book
    }

    /// Follows `delta`, which leads to `plan`. Says whether any network came, went or changed its name: askers then have to
    /// be put together anew.
    pub(crate) fn apply(&mut self, delta: &NameDelta, plan: &NamePlan) -> bool {
        for (id, network) in &delta.networks {
            self.set_network(id, network.as_deref());
        }
        let mut drafts = Drafts::default();
        for (id, new) in &delta.services {
            let owner = Owner::Service(id).id();
            let (old, new) = (self.plan.services.get(id), new.as_ref());
            let networks = old.into_iter().chain(new).flat_map(|names| names.zones.iter().map(|z| &z.network));
            for network in networks.collect::<BTreeSet<_>>() {
                let old = old.map(|names| service_entries(names, network, &self.plan)).unwrap_or_default();
                let new = new.map(|names| service_entries(names, network, plan)).unwrap_or_default();
                drafts.apply(network, &change(owner, old, new), &self.networks);
            }
        }
        for (id, new) in &delta.tasks {
            let owner = Owner::Task(id).id();
            let (old, new) = (self.plan.tasks.get(id), new.as_ref());
            let networks = old.into_iter().chain(new).flat_map(|named| named.task.addresses.iter().map(|a| &a.network));
            for network in networks.collect::<BTreeSet<_>>() {
                let old = old.map(|named| task_entries(named, network)).unwrap_or_default();
                let new = new.map(|named| task_entries(named, network)).unwrap_or_default();
                drafts.apply(network, &change(owner, old, new), &self.networks);
            }
        }
        drafts.publish(&self.networks);
        self.plan = plan.clone();
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
        let new = |owner: Owner<'_>, entries| change(owner.id(), Entries::default(), entries);
        let services = self.plan.services.iter().map(|(s, names)| new(Owner::Service(s), service_entries(names, id, &self.plan)));
        let tasks = self.plan.tasks.iter().map(|(t, named)| new(Owner::Task(t), task_entries(named, id)));
        let mut zone = Zone::default();
        for change in services.chain(tasks) {
            zone.apply(&change);
        }
        let cell = Arc::new(ZoneCell::default());
        cell.publish(zone);
        self.networks.insert(id.clone(), Zoned { title, cell });
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

fn service_entries(names: &ServiceNames, network: &NetworkId, plan: &NamePlan) -> Entries {
    let Some(zone) = names.in_network(network) else { return Entries::default() };
    let ports: Box<[ServicePort]> =
        names.ports.iter().map(|p| ServicePort { name: p.name.as_str().into(), protocol: protocol(p.protocol), port: p.port }).collect();
    let by_task = (!ports.is_empty()).then(|| Arc::new(Services { ports: ports.clone(), hosts: Some(hosts(zone, plan)) }));
    let of_tasks = Arc::new(Record { services: by_task, ..Record::of(zone.serving().map(|b| b.address)) });
    let of_service = if zone.is_dnsrr {
        Arc::clone(&of_tasks)
    } else {
        let by_name = (!ports.is_empty()).then(|| Arc::new(Services { ports, hosts: None }));
        Arc::new(Record { services: by_name, ..Record::of(zone.vips.iter().copied()) })
    };
    let mut entries = Entries::default();
    for name in names.names_in(zone) {
        entries.names.push((Arc::clone(name), Arc::clone(&of_service)));
        entries.names.push((format!("tasks.{name}").into(), Arc::clone(&of_tasks)));
    }
    entries.addresses.extend(zone.vips.iter().map(|vip| (*vip, Arc::clone(&names.name))));
    entries
}

fn hosts(zone: &ServiceZone, plan: &NamePlan) -> Box<[Host]> {
    let host =
        |task: &TaskId| plan.tasks.get(task).and_then(|named| named.names().into_iter().next()).unwrap_or_else(|| task.as_str().into());
    zone.serving().map(|b| Host { name: host(&b.task), address: b.address }).collect()
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
        entries.addresses.extend(addresses.iter().map(|address| (*address, Arc::clone(first))));
    }
    for name in names.into_iter().chain(legs.flat_map(|a| &a.aliases).map(|a| a.to_ascii_lowercase().into())) {
        if !entries.names.iter().any(|(known, _)| *known == name) {
            entries.names.push((name, Arc::clone(&record)));
        }
    }
    entries
}
