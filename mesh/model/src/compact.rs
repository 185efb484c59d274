//! Objects as a large swarm can afford to keep them: held once however often they are read, one text for each identifier
//! however often it is named, and lists without spare room.

use std::{collections::HashSet, sync::Arc};

use crate::{Id, Network, Node, Service, SharedMap, Snapshot, Task};

/// An earlier snapshot, and the identifiers that many objects name: its own, and those met since.
#[derive(Debug)]
pub(crate) struct KnownIds<'a> {
    before: &'a Snapshot,
    networks: Known<'a, Network>,
    services: Known<'a, Service>,
    nodes: Known<'a, Node>,
}

impl<'a> KnownIds<'a> {
    pub(crate) fn new(before: &'a Snapshot) -> Self {
        Self { before, networks: Known::new(&before.networks), services: Known::new(&before.services), nodes: Known::new(&before.nodes) }
    }
}

#[derive(Debug)]
struct Known<'a, K> {
    before: &'a SharedMap<Id<K>, Arc<K>>,
    met: HashSet<Id<K>>,
}

impl<'a, K> Known<'a, K> {
    fn new(before: &'a SharedMap<Id<K>, Arc<K>>) -> Self {
        Self { before, met: HashSet::new() }
    }

    fn share(&mut self, id: &mut Id<K>) {
        match self.before.get_key_value(id).map(|(same, _)| same).or_else(|| self.met.get(id)) {
            Some(same) => *id = same.clone(),
            None => {
                self.met.insert(id.clone());
            }
        }
    }
}

/// Parsers give each mention of an identifier a text of its own, and lists room for more than they hold.
pub(crate) trait Compact: PartialEq + Sized {
    /// The object of the same id in an earlier snapshot.
    fn earlier<'a>(&self, before: &'a Snapshot) -> Option<&'a Arc<Self>>;

    fn compact(&mut self, known: &mut KnownIds<'_>);

    /// What to keep of an object that was just read: the earlier one, unless it has changed.
    fn kept(mut self, known: &mut KnownIds<'_>) -> Arc<Self> {
        match self.earlier(known.before) {
            Some(earlier) if **earlier == self => Arc::clone(earlier),
            _ => {
                self.compact(known);
                Arc::new(self)
            }
        }
    }
}

impl Compact for Network {
    fn earlier<'a>(&self, before: &'a Snapshot) -> Option<&'a Arc<Self>> {
        before.networks.get(&self.id)
    }

    fn compact(&mut self, known: &mut KnownIds<'_>) {
        known.networks.share(&mut self.id);
        self.subnets.shrink_to_fit();
    }
}

impl Compact for Service {
    fn earlier<'a>(&self, before: &'a Snapshot) -> Option<&'a Arc<Self>> {
        before.services.get(&self.id)
    }

    fn compact(&mut self, known: &mut KnownIds<'_>) {
        known.services.share(&mut self.id);
        for vip in &mut self.vips {
            known.networks.share(&mut vip.network);
        }
        for joined in &mut self.networks {
            known.networks.share(&mut joined.network);
            joined.aliases.shrink_to_fit();
        }
        self.ports.shrink_to_fit();
        self.vips.shrink_to_fit();
        self.networks.shrink_to_fit();
    }
}

impl Compact for Task {
    fn earlier<'a>(&self, before: &'a Snapshot) -> Option<&'a Arc<Self>> {
        before.tasks.get(&self.id)
    }

    fn compact(&mut self, known: &mut KnownIds<'_>) {
        if let Some(service) = &mut self.service {
            known.services.share(service);
        }
        if let Some(node) = &mut self.node {
            known.nodes.share(node);
        }
        for address in &mut self.addresses {
            known.networks.share(&mut address.network);
            address.aliases.shrink_to_fit();
        }
        self.addresses.shrink_to_fit();
    }
}

impl Compact for Node {
    fn earlier<'a>(&self, before: &'a Snapshot) -> Option<&'a Arc<Self>> {
        before.nodes.get(&self.id)
    }

    fn compact(&mut self, known: &mut KnownIds<'_>) {
        known.nodes.share(&mut self.id);
    }
}
